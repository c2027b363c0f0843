//! What each tenant uses right now, and whether it may use more. Pure: the clock and the policy are given.
//!
//! Neighbours: [`super::Tenants`] keeps one of these behind its lock, [`super::Share`] gives back what it took. A tenant is
//! forgotten when it holds nothing and all that it spent is regained, so nobody gains by being forgotten; only beyond
//! [`MAX_IDLE`] tenants is one forgotten early.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::bucket::{Bucket, Rate};
use super::quota::{Ask, Exceeded, Quota};
use crate::settings::TenantPolicy;

/// Most tenants that are remembered although they hold nothing, for what they have spent: some 3 MB. Beyond it the one is
/// forgotten whose buckets are full again soonest: what it gains is least.
pub(super) const MAX_IDLE: usize = 10_000;

/// All tenants that hold or owe anything.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    open: HashMap<Arc<str>, Account>,
    /// Those that hold nothing, by when they owe nothing any more.
    idle: BTreeSet<(Instant, Arc<str>)>,
}

/// One tenant.
#[derive(Debug)]
struct Account {
    used: Used,
    rate: Bucket,
    bytes_in: Bucket,
    bytes_out: Bucket,
    /// Its key among the idle ones, when it is there.
    idle_until: Option<Instant>,
}

/// What the jobs of one tenant hold together, and what one of them holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) waiting: usize,
    pub(super) running: usize,
    pub(super) bytes: u64,
    pub(super) memory_bytes: u64,
    pub(super) cpu_time_ms: u64,
}

impl Used {
    fn add(&mut self, other: Self) {
        self.waiting += other.waiting;
        self.running += other.running;
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.memory_bytes = self.memory_bytes.saturating_add(other.memory_bytes);
        self.cpu_time_ms = self.cpu_time_ms.saturating_add(other.cpu_time_ms);
    }

    fn remove(&mut self, other: Self) {
        self.waiting = self.waiting.saturating_sub(other.waiting);
        self.running = self.running.saturating_sub(other.running);
        self.bytes = self.bytes.saturating_sub(other.bytes);
        self.memory_bytes = self.memory_bytes.saturating_sub(other.memory_bytes);
        self.cpu_time_ms = self.cpu_time_ms.saturating_sub(other.cpu_time_ms);
    }
}

/// The rates of a policy.
struct Rates {
    jobs: Option<Rate>,
    bytes_in: Option<Rate>,
    bytes_out: Option<Rate>,
}

impl Rates {
    fn of(policy: &TenantPolicy) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "settings allow at most 2^50")]
        let bytes = |per_s: u64| Rate {
            per_s: per_s as f64,
            size: per_s as f64,
        };
        Self {
            jobs: policy.rate_per_s.map(|per_s| Rate {
                per_s,
                size: policy.burst.map_or(per_s.max(1.0), f64::from),
            }),
            bytes_in: policy.max_bytes_in_per_s.map(bytes),
            bytes_out: policy.max_bytes_out_per_s.map(bytes),
        }
    }
}

/// A new job of a tenant, taken on: what it holds. It has paid for itself, unless it was taken on before.
pub(super) struct Taken {
    pub(super) tenant: Arc<str>,
    pub(super) used: Used,
}

impl Accounts {
    /// Takes a job on, or says which quota it would exceed.
    pub(super) fn admit(
        &mut self,
        tenant: &str,
        policy: &TenantPolicy,
        ask: &Ask,
        now: Instant,
    ) -> Result<Taken, Exceeded> {
        self.forget(now);
        let rates = Rates::of(policy);
        let tenant = self.key(tenant);
        let account = self.open.get(&tenant);
        let mut account = account.map_or_else(|| Account::new(now), Account::copy);
        account.settle(now, &rates);
        let runs = ask.has_slot && policy.max_running.is_none_or(|most| account.used.running < most);
        let used = Used {
            waiting: usize::from(!runs),
            running: usize::from(runs),
            bytes: ask.bytes,
            memory_bytes: ask.estimate.memory_bytes,
            cpu_time_ms: ask.estimate.cpu_time_ms,
        };
        if !ask.taken_on_before {
            account.judge(used, policy, &rates)?;
            account.rate.spend(1.0);
            account.bytes_in.spend(amount(ask.bytes));
        }
        account.used.add(used);
        self.set_busy(&tenant);
        account.idle_until = None;
        self.open.insert(Arc::clone(&tenant), account);
        Ok(Taken { tenant, used })
    }

    /// A job has got its slot.
    pub(super) fn begin(&mut self, tenant: &str, used: &mut Used) {
        let Some(account) = self.open.get_mut(tenant) else {
            return;
        };
        account.used.remove(*used);
        (used.waiting, used.running) = (0, 1);
        account.used.add(*used);
    }

    /// A job holds nothing any more. `refund`: it never came to be one, so it pays nothing.
    pub(super) fn end(&mut self, tenant: &Arc<str>, used: Used, refund: bool, policy: &TenantPolicy) {
        let Some(account) = self.open.get_mut(tenant) else {
            return;
        };
        account.used.remove(used);
        if refund {
            account.rate.refund(1.0);
            account.bytes_in.refund(amount(used.bytes));
        }
        self.set_idle(tenant, policy);
    }

    /// Bytes of inputs that came in, or of results that went out, for a job that has been taken on.
    pub(super) fn charge(
        &mut self,
        tenant: &str,
        policy: &TenantPolicy,
        (bytes_in, bytes_out): (u64, u64),
        now: Instant,
    ) {
        let tenant = self.key(tenant);
        self.set_busy(&tenant);
        let account = self
            .open
            .entry(Arc::clone(&tenant))
            .or_insert_with(|| Account::new(now));
        account.settle(now, &Rates::of(policy));
        account.bytes_in.spend(amount(bytes_in));
        account.bytes_out.spend(amount(bytes_out));
        self.set_idle(&tenant, policy);
    }

    /// The policies have changed: when an idle tenant owes nothing any more hangs on them.
    pub(super) fn revise(&mut self, policy_of: impl Fn(&str) -> Arc<TenantPolicy>) {
        let idle: Vec<_> = std::mem::take(&mut self.idle).into_iter().collect();
        for (_, tenant) in idle {
            self.set_idle(&tenant, &policy_of(&tenant));
        }
    }

    /// Tenants that hold or owe something.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Jobs of a tenant that wait or run.
    pub(super) fn held(&self, tenant: &str) -> usize {
        let account = self.open.get(tenant);
        account.map_or(0, |account| account.used.waiting + account.used.running)
    }

    /// What a tenant holds.
    #[cfg(test)]
    pub(super) fn used(&self, tenant: &str) -> Used {
        self.open
            .get(tenant)
            .map(|account| account.used)
            .unwrap_or_default()
    }

    fn key(&self, tenant: &str) -> Arc<str> {
        let known = self.open.get_key_value(tenant);
        known.map_or_else(|| tenant.into(), |(tenant, _)| Arc::clone(tenant))
    }

    fn set_busy(&mut self, tenant: &Arc<str>) {
        let account = self.open.get_mut(tenant);
        if let Some(until) = account.and_then(|account| account.idle_until.take()) {
            self.idle.remove(&(until, Arc::clone(tenant)));
        }
    }

    /// Puts it among the idle ones if it holds nothing.
    fn set_idle(&mut self, tenant: &Arc<str>, policy: &TenantPolicy) {
        let Some(account) = self.open.get_mut(tenant) else {
            return;
        };
        if account.used.waiting + account.used.running > 0 {
            return;
        }
        let until = account.full_at(&Rates::of(policy));
        account.idle_until = Some(until);
        self.idle.insert((until, Arc::clone(tenant)));
        if self.idle.len() > MAX_IDLE {
            self.forget_first();
        }
    }

    /// Forgets who holds and owes nothing.
    fn forget(&mut self, now: Instant) {
        while self.idle.first().is_some_and(|(until, _)| *until <= now) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, tenant)) = self.idle.pop_first() {
            self.open.remove(&tenant);
        }
    }
}

impl Account {
    fn new(now: Instant) -> Self {
        Self {
            used: Used::default(),
            rate: Bucket::full(now),
            bytes_in: Bucket::full(now),
            bytes_out: Bucket::full(now),
            idle_until: None,
        }
    }

    /// As it is: kept only if the job is taken on.
    fn copy(&self) -> Self {
        Self { ..*self }
    }

    fn settle(&mut self, now: Instant, rates: &Rates) {
        self.rate.settle(now, rates.jobs);
        self.bytes_in.settle(now, rates.bytes_in);
        self.bytes_out.settle(now, rates.bytes_out);
    }

    fn full_at(&self, rates: &Rates) -> Instant {
        let buckets = [
            self.rate.full_at(rates.jobs),
            self.bytes_in.full_at(rates.bytes_in),
            self.bytes_out.full_at(rates.bytes_out),
        ];
        buckets.into_iter().max().unwrap_or(self.rate.full_at(None))
    }

    /// Looks at every quota before anything is spent.
    fn judge(&self, new: Used, policy: &TenantPolicy, rates: &Rates) -> Result<(), Exceeded> {
        let waiting = policy.max_queued.filter(|_| new.waiting > 0);
        let sums = [
            (
                Quota::Queued,
                waiting.map(|most| most as u64),
                self.used.waiting as u64,
                1,
            ),
            (
                Quota::HeldBytes,
                policy.max_held_bytes,
                self.used.bytes,
                new.bytes,
            ),
            (
                Quota::Memory,
                policy.max_memory_bytes,
                self.used.memory_bytes,
                new.memory_bytes,
            ),
            (
                Quota::CpuTime,
                policy.max_cpu_time_ms,
                self.used.cpu_time_ms,
                new.cpu_time_ms,
            ),
        ];
        for (quota, limit, used, more) in sums {
            if let Some(limit) = limit
                // Who asks for nothing of it takes nothing from anybody, also when a lower limit has just come in force.
                && more > 0
                && used.saturating_add(more) > limit
            {
                return Err(exceeded(quota, amount(limit), None));
            }
        }
        let buckets = [
            (Quota::BytesOut, rates.bytes_out, self.bytes_out, None),
            (
                Quota::BytesIn,
                rates.bytes_in,
                self.bytes_in,
                Some(amount(new.bytes)),
            ),
            (Quota::Rate, rates.jobs, self.rate, Some(1.0)),
        ];
        for (quota, rate, bucket, more) in buckets {
            let Some(rate) = rate else { continue };
            let checked = match more {
                Some(more) => bucket.check(more, rate),
                None => bucket.check_open(rate),
            };
            checked.map_err(|wait| exceeded(quota, rate.per_s, Some(wait)))?;
        }
        Ok(())
    }
}

fn exceeded(quota: Quota, limit: f64, retry_after: Option<Duration>) -> Exceeded {
    Exceeded {
        quota,
        limit,
        retry_after,
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rounding error of a few bytes in petabytes"
)]
fn amount(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests;
