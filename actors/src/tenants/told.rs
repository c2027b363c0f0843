//! What the policy store has told, for each tenant, and when it is to be asked again. Pure: the clock is given, questions
//! and answers are values.
//!
//! Neighbours: [`super::Tenants`] keeps one of these behind its lock; the node's client of the store answers. Nothing is asked
//! unless a job comes: an answer that has aged still counts, and the job that finds it aged has it asked again. What was told
//! counts until something else is told: a store that is away changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::settings::{PolicyStoreSettings, TenantOverride, TenantPolicy};

/// Pause after a first answer that cannot be used; doubled for each more, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause: a store that is back is noticed within it.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Failures in a row from which on the store counts as away, whoever is asked about: one alone may be chance.
const AWAY_FROM: u32 = 3;
/// A question that was not answered for so many of its longest times was lost with whoever should have asked it.
const LOST_AFTER: u32 = 20;

/// A question for the store.
#[derive(Debug)]
pub struct Question {
    /// About whom.
    pub tenant: Arc<str>,
    /// What the store called its last answer, to be told if it still holds.
    pub etag: Option<String>,
    /// Jobs wait for it; dropped, they go on.
    answered: watch::Sender<bool>,
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// A policy, and what the store calls it.
    Policy(TenantOverride, Option<String>),
    /// The last one holds.
    Unchanged,
    /// The store has none for this tenant.
    Absent,
    /// What it said cannot be used.
    Unusable,
    /// It did not answer.
    Away,
}

/// A job's wait for the first answer about its tenant. Ends with the answer, or when the time is over.
pub struct FirstAnswer {
    answered: watch::Receiver<bool>,
    until: Instant,
}

impl FirstAnswer {
    /// Waits.
    pub async fn wait(mut self) {
        let _ = timeout_at(self.until, self.answered.wait_for(|answered| *answered)).await;
    }
}

/// What a job finds.
pub(super) enum Found {
    /// Nothing to ask, nothing to wait for.
    Settled,
    /// Somebody has to ask this; the job may have to wait.
    Ask(Question, Option<FirstAnswer>),
    /// Somebody is asking.
    Wait(FirstAnswer),
}

/// A policy as it is kept for a later process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// What was told.
    pub policy: TenantOverride,
    /// What the store calls it.
    pub etag: Option<String>,
}

/// All answers.
#[derive(Debug, Default)]
pub(super) struct Told {
    entries: HashMap<Arc<str>, Entry>,
    /// Those with a policy, by when they were asked about last, and those without: as many of either are kept, so that
    /// tenants that nobody knows take no room from those with a policy.
    with_policy: BTreeSet<Rank>,
    without: BTreeSet<Rank>,
    /// Failures in a row, and until when nobody is asked for their sake.
    failures: u32,
    resting: Option<Instant>,
    /// A question is on its way that tells whether the store is back.
    probing: bool,
    /// Whether policies have changed since [`Told::take_changed`].
    changed: bool,
}

type Rank = (Instant, Arc<str>);

#[derive(Debug)]
struct Entry {
    policy: Option<Policy>,
    /// Whether the store has ever answered, also that it has none.
    is_known: bool,
    asked_at: Instant,
    /// Not before this it is asked again.
    next: Instant,
    /// Somebody is asking.
    asking: Option<watch::Receiver<bool>>,
    /// Unusable answers in a row.
    failures: u32,
}

#[derive(Debug)]
struct Policy {
    given: TenantOverride,
    resolved: Arc<TenantPolicy>,
    etag: Option<String>,
    /// When the store said last that it holds.
    confirmed_at: Instant,
}

impl Told {
    /// The policy of this tenant, on top of what the settings say; nothing when the store has told none.
    pub(super) fn policy(&self, tenant: &str) -> Option<Arc<TenantPolicy>> {
        let policy = self.entries.get(tenant)?.policy.as_ref()?;
        Some(Arc::clone(&policy.resolved))
    }

    /// A job of this tenant has come.
    pub(super) fn look(&mut self, tenant: &str, store: &PolicyStoreSettings, now: Instant) -> Found {
        let first_wait = store.first_wait();
        let lost_after = Duration::from_millis(store.timeout_ms) * LOST_AFTER;
        let is_resting = self.resting.is_some_and(|until| now < until);
        let Some(entry) = self.entries.get(tenant) else {
            return match is_resting {
                true => Found::Settled,
                false => self.ask(tenant.into(), store, now, true),
            };
        };
        match &entry.asking {
            Some(answered) if now < entry.asked_at + lost_after => {
                let until = entry.asked_at + first_wait;
                match entry.is_known || entry.failures > 0 || now >= until {
                    true => Found::Settled,
                    false => Found::Wait(FirstAnswer {
                        answered: answered.clone(),
                        until,
                    }),
                }
            }
            _ if is_resting || now < entry.next => Found::Settled,
            _ => {
                let (tenant, _) = self.entries.get_key_value(tenant).expect("it was just found");
                self.ask(Arc::clone(tenant), store, now, false)
            }
        }
    }

    fn ask(&mut self, tenant: Arc<str>, store: &PolicyStoreSettings, now: Instant, may_wait: bool) -> Found {
        let (answered, is_answered) = watch::channel(false);
        if self.failures >= AWAY_FROM {
            // One question at a time, to hear whether it is back.
            self.resting = Some(now + Duration::from_millis(store.timeout_ms));
            self.probing = true;
        }
        self.unrank(&tenant);
        let entry = self.entries.entry(Arc::clone(&tenant));
        let entry = entry.or_insert_with(|| Entry::blank(now));
        entry.asked_at = now;
        entry.asking = Some(is_answered.clone());
        let etag = entry.policy.as_ref().and_then(|policy| policy.etag.clone());
        self.rank(&tenant);
        self.forget(store.max_tenants);
        let waits = may_wait && store.first_wait_ms > 0 && self.failures < AWAY_FROM;
        let wait = waits.then(|| FirstAnswer {
            answered: is_answered,
            until: now + store.first_wait(),
        });
        let question = Question {
            tenant,
            etag,
            answered,
        };
        Found::Ask(question, wait)
    }

    /// Nobody could take the question on.
    pub(super) fn not_asked(&mut self, question: &Question, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&question.tenant) {
            entry.asking = None;
            entry.next = now + FIRST_PAUSE;
        }
    }

    /// An answer has come. `below` is what the settings say of the tenant. Returns whether the store has gone away by it, or
    /// come back.
    pub(super) fn hear(
        &mut self,
        question: &Question,
        answer: Answer,
        below: &TenantPolicy,
        store: &PolicyStoreSettings,
        now: Instant,
    ) -> Option<bool> {
        let turned = self.note(matches!(answer, Answer::Away), now);
        let tenant = &question.tenant;
        self.unrank(tenant);
        // It may have been forgotten for others meanwhile.
        let entry = self.entries.entry(Arc::clone(tenant));
        let entry = entry.or_insert_with(|| Entry::blank(now));
        entry.asking = None;
        let had = entry.policy.as_ref().map(|policy| policy.given.clone());
        entry.take(answer, below, store, now);
        let has = entry.policy.as_ref().map(|policy| &policy.given);
        self.changed |= had.as_ref() != has;
        self.rank(tenant);
        self.forget(store.max_tenants);
        question.answered.send_replace(true);
        turned
    }

    /// Counts failures to reach the store.
    fn note(&mut self, away: bool, now: Instant) -> Option<bool> {
        let was_away = self.failures >= AWAY_FROM;
        if away && self.is_resting(now) && !std::mem::take(&mut self.probing) {
            // It was asked before that was known: no further news.
        } else if away {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= AWAY_FROM {
                self.resting = Some(now + pause(self.failures - AWAY_FROM));
            }
        } else {
            (self.failures, self.resting, self.probing) = (0, None, false);
        }
        let is_away = self.failures >= AWAY_FROM;
        (was_away != is_away).then_some(is_away)
    }

    /// Whether nobody is to be asked at the moment.
    pub(super) fn is_resting(&self, now: Instant) -> bool {
        self.failures >= AWAY_FROM && self.resting.is_some_and(|until| now < until)
    }

    /// Whether the store is away.
    pub(super) fn is_away(&self) -> bool {
        self.failures >= AWAY_FROM
    }

    /// How long ago the store said last that the oldest policy holds, of those about which it should have been asked again and
    /// did not answer; 0 when there is none.
    pub(super) fn stale(&self, now: Instant) -> Duration {
        let entries = self.entries.values().filter(|entry| entry.failures > 0);
        let confirmed = entries.filter_map(|entry| Some(entry.policy.as_ref()?.confirmed_at));
        confirmed
            .min()
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }

    /// The settings have changed: what lies below each policy.
    pub(super) fn revise(&mut self, max_tenants: usize, below: impl Fn(&str) -> Arc<TenantPolicy>) {
        for (tenant, entry) in &mut self.entries {
            if let Some(policy) = &mut entry.policy {
                policy.resolved = Arc::new(policy.given.on_top_of(&below(tenant)));
            }
        }
        self.forget(max_tenants);
    }

    /// All policies, if any has changed since this was called last.
    pub(super) fn take_changed(&mut self) -> Option<BTreeMap<String, Kept>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let kept = self.entries.iter().filter_map(|(tenant, entry)| {
            let policy = entry.policy.as_ref()?;
            let kept = Kept {
                policy: policy.given.clone(),
                etag: policy.etag.clone(),
            };
            Some((tenant.to_string(), kept))
        });
        Some(kept.collect())
    }

    /// What an earlier process was told. It counts, and is asked again with the first job of its tenant.
    pub(super) fn recall(
        &mut self,
        tenant: &str,
        kept: Kept,
        below: &TenantPolicy,
        max_tenants: usize,
        now: Instant,
    ) {
        if self.entries.contains_key(tenant) {
            return;
        }
        let tenant: Arc<str> = tenant.into();
        let entry = Entry {
            policy: Some(Policy {
                resolved: Arc::new(kept.policy.on_top_of(below)),
                given: kept.policy,
                etag: kept.etag,
                confirmed_at: now,
            }),
            is_known: true,
            ..Entry::blank(now)
        };
        self.entries.insert(Arc::clone(&tenant), entry);
        self.rank(&tenant);
        self.forget(max_tenants);
    }

    /// Tenants about which something is known, or asked.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.entries.len(), self.with_policy.len() + self.without.len());
        self.entries.len()
    }

    fn rank(&mut self, tenant: &Arc<str>) {
        if let Some(entry) = self.entries.get(tenant) {
            let rank = (entry.asked_at, Arc::clone(tenant));
            match entry.policy {
                Some(_) => self.with_policy.insert(rank),
                None => self.without.insert(rank),
            };
        }
    }

    fn unrank(&mut self, tenant: &Arc<str>) {
        if let Some(entry) = self.entries.get(tenant) {
            let rank = (entry.asked_at, Arc::clone(tenant));
            match entry.policy {
                Some(_) => self.with_policy.remove(&rank),
                None => self.without.remove(&rank),
            };
        }
    }

    fn forget(&mut self, most: usize) {
        while self.with_policy.len() > most
            && let Some((_, tenant)) = self.with_policy.pop_first()
        {
            self.entries.remove(&tenant);
            self.changed = true;
        }
        while self.without.len() > most
            && let Some((_, tenant)) = self.without.pop_first()
        {
            self.entries.remove(&tenant);
        }
    }
}

impl Entry {
    fn blank(now: Instant) -> Self {
        Self {
            policy: None,
            is_known: false,
            asked_at: now,
            next: now,
            asking: None,
            failures: 0,
        }
    }

    fn take(&mut self, answer: Answer, below: &TenantPolicy, store: &PolicyStoreSettings, now: Instant) {
        match (answer, &mut self.policy) {
            (Answer::Policy(given, etag), _) => {
                self.policy = Some(Policy {
                    resolved: Arc::new(given.on_top_of(below)),
                    given,
                    etag,
                    confirmed_at: now,
                });
            }
            (Answer::Unchanged, Some(policy)) => policy.confirmed_at = now,
            (Answer::Absent, policy) => *policy = None,
            (Answer::Unchanged | Answer::Unusable | Answer::Away, _) => {
                self.next = now + pause(self.failures).min(store.refresh().max(FIRST_PAUSE));
                self.failures = self.failures.saturating_add(1);
                return;
            }
        }
        (self.is_known, self.failures, self.next) = (true, 0, now + store.refresh());
    }
}

fn pause(failures: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.min(10));
    doubled.min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests;
