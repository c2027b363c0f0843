//! Who watches the turns of tenants in one process: no tenant passes a waiting one by more than its weight, and of one
//! tenant the job goes first that is worth most by then. By counting, not as the line keeps them.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::scenario::Scenario;

/// A job that waits.
#[derive(Clone)]
pub(crate) struct Waits {
    pub tenant: String,
    pub priority: u8,
    pub since: Instant,
}

#[derive(Default)]
pub(crate) struct Turns {
    waiting: BTreeMap<u64, Waits>,
    next: u64,
    /// For each tenant that waits, how often each other has started a job since it waits, or has started one itself.
    passed: BTreeMap<String, BTreeMap<String, u32>>,
}

impl Turns {
    /// A job comes. The number is its name here.
    pub(crate) fn came(&mut self, waits: Waits) -> u64 {
        self.next += 1;
        self.passed.entry(waits.tenant.clone()).or_default();
        self.waiting.insert(self.next, waits);
        self.next
    }

    /// A job leaves the line without a start.
    pub(crate) fn left(&mut self, number: u64) {
        let Some(left) = self.waiting.remove(&number) else {
            return;
        };
        if self.waiting.values().all(|waits| waits.tenant != left.tenant) {
            self.passed.remove(&left.tenant);
        }
    }

    /// A job starts, beside so many of each tenant that run, itself included. Says what is wrong with that.
    pub(crate) fn starts(
        &mut self,
        number: u64,
        now: Instant,
        scenario: &Scenario,
        running: impl Fn(&str) -> usize,
    ) -> Option<String> {
        let started = self.waiting[&number].clone();
        self.left(number);
        let at_limit = |tenant: &str, beside: usize| {
            scenario
                .max_running
                .is_some_and(|max| running(tenant) + beside > max)
        };
        if at_limit(&started.tenant, 0) {
            return Some(format!("{} runs more jobs than it may", started.tenant));
        }
        for (tenant, passed) in &mut self.passed {
            if *tenant == started.tenant || at_limit(tenant, 1) {
                passed.clear();
                continue;
            }
            let times = passed.entry(started.tenant.clone()).or_default();
            *times += 1;
            if *times > scenario.weight(&started.tenant) {
                return Some(format!(
                    "{tenant} waits, and {} has started {times} jobs meanwhile",
                    started.tenant
                ));
            }
        }
        let worth = |waits: &Waits| {
            let waited = now.saturating_duration_since(waits.since);
            let lead = scenario.ageing.0 * u32::from(waits.priority);
            waited + lead
        };
        let own = self
            .waiting
            .values()
            .filter(|waits| waits.tenant == started.tenant);
        let most: Duration = own.map(worth).max().unwrap_or_default();
        (most > worth(&started))
            .then(|| format!("a job of {} starts before one that is worth more", started.tenant))
    }

    /// One of its jobs ended: a tenant that was at its limit has its turn from the back.
    pub(crate) fn ended(&mut self, tenant: &str) {
        if let Some(passed) = self.passed.get_mut(tenant) {
            passed.clear();
        }
    }
}
