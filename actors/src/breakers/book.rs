//! All breakers of a node with their retry tokens: one of each for every endpoint of every tenant, bounded. Pure.
//!
//! Neighbours: [`super::Breakers`] holds it behind a lock and tells what happens. Keyed by tenant, as the router's breakers
//! are: what a tenant can make fail (by paths that answer 500, deadlines that are absurd) is left alone for that tenant only.
//! The price is that each tenant finds out for itself that an endpoint is down, at so many calls as the threshold says.
//!
//! Whoever needs a breaker gets one. Beyond the bound the tenant with most breakers loses the one that it has not used for
//! longest, closed ones first: who floods the book with endpoints pushes out its own.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use caf_protocol::endpoint::{Endpoint, EndpointKind};
use tokio::time::Instant;

use super::machine::{Change, Epochs, Machine, Phase, Refusal, Thresholds, Ticket, Verdict};
use super::tokens::{TokenRules, Tokens};
use crate::settings::circuit_breaker::CircuitBreakerSettings;

/// Breakers and tokens.
#[derive(Debug)]
pub struct Book {
    thresholds: Thresholds,
    token_rules: TokenRules,
    max: usize,
    shelves: HashMap<Arc<str>, Shelf>,
    /// Tenants by number of breakers; of equals the one that is used least comes last.
    by_size: BTreeSet<(usize, Reverse<u64>, Arc<str>)>,
    count: usize,
    /// Counts uses, so that they have an order.
    uses: u64,
    epochs: Epochs,
}

/// Those of one tenant.
#[derive(Debug, Default)]
struct Shelf {
    entries: HashMap<Endpoint, Entry>,
    /// By last use.
    closed: BTreeMap<u64, Endpoint>,
    /// By last use.
    others: BTreeMap<u64, Endpoint>,
    used: u64,
}

#[derive(Debug)]
struct Entry {
    machine: Machine,
    tokens: Tokens,
    used: u64,
    changed: Option<Instant>,
    refused: u64,
}

/// Whether a call may be made, and what happened on the way.
#[derive(Debug)]
pub struct Admission {
    /// The right to call, or why not.
    pub verdict: Result<Ticket, Refusal>,
    /// The breaker changed.
    pub change: Option<Change>,
    /// Another one had to go.
    pub forgotten: Option<Forgotten>,
}

/// A breaker that had to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// Whose it was.
    pub tenant_id: Arc<str>,
    /// Of what.
    pub endpoint: Endpoint,
    /// What it was.
    pub phase: Phase,
}

/// Why no retry is made although the job may have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withheld {
    /// The breaker is open, and still is when the wait is over.
    Breaker(Refusal),
    /// There is no token.
    NoToken,
}

/// One breaker, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Whose.
    pub tenant_id: Arc<str>,
    /// Of what.
    pub endpoint: Endpoint,
    /// What it lets through.
    pub phase: Phase,
    /// Failures in a row while it is closed.
    pub failures: u32,
    /// When it last changed; nothing if it never did.
    pub changed: Option<Instant>,
    /// How long it lets nothing through, at most.
    pub retry_after: Option<Duration>,
    /// Calls that it did not let through since it last opened.
    pub refused: u64,
    /// Retries that may be made at once.
    pub retry_tokens: u64,
}

/// Number of breakers by kind and phase.
pub type Counts = BTreeMap<(EndpointKind, Phase), usize>;

impl Book {
    /// An empty one.
    pub fn new(settings: &CircuitBreakerSettings) -> Self {
        Self {
            thresholds: Thresholds {
                failures: settings.failure_threshold.max(1),
                recovery: Duration::from_millis(settings.recovery_ms),
                successes: settings.success_threshold.max(1),
                trials: settings.half_open_calls.max(1),
            },
            token_rules: TokenRules::new(settings.retry_budget_max, settings.retry_budget_ratio),
            max: settings.max_breakers.max(1),
            shelves: HashMap::new(),
            by_size: BTreeSet::new(),
            count: 0,
            uses: 0,
            epochs: Epochs::default(),
        }
    }

    /// Number of breakers.
    pub fn count(&self) -> usize {
        self.count
    }

    /// A job wants to call; `is_first`: unlike a retry, which has taken a token.
    pub fn admit(&mut self, tenant_id: &str, endpoint: &Endpoint, is_first: bool, now: Instant) -> Admission {
        let forgotten = self.make_room_for(tenant_id, endpoint);
        let (thresholds, rules) = (self.thresholds, self.token_rules);
        let (verdict, change) = self.with_entry(tenant_id, endpoint, |entry, epochs| {
            match entry.machine.admit(&thresholds, now, epochs) {
                Ok((ticket, change)) => {
                    if is_first {
                        entry.tokens.first_call(&rules);
                    }
                    entry.note(change, now);
                    (Ok(ticket), change)
                }
                Err(refusal) => {
                    entry.refused += 1;
                    (Err(refusal), None)
                }
            }
        });
        Admission {
            verdict,
            change,
            forgotten,
        }
    }

    /// A call has ended; `took_token`: it was a retry. A breaker that was forgotten meanwhile learns nothing.
    pub fn settle(
        &mut self,
        tenant_id: &str,
        endpoint: &Endpoint,
        (ticket, took_token): (&Ticket, bool),
        verdict: Verdict,
        now: Instant,
    ) -> Option<Change> {
        if !self.knows(tenant_id, endpoint) {
            return None;
        }
        let (thresholds, rules) = (self.thresholds, self.token_rules);
        self.with_entry(tenant_id, endpoint, |entry, epochs| {
            if took_token && verdict == Verdict::Success {
                entry.tokens.give_back(&rules);
            }
            let change = entry.machine.settle(ticket, verdict, &thresholds, now, epochs);
            entry.note(change, now);
            change
        })
    }

    /// A job wants to call again after this wait. Takes a token.
    ///
    /// # Errors
    /// It must not.
    pub fn retry(
        &mut self,
        tenant_id: &str,
        endpoint: &Endpoint,
        wait: Duration,
        now: Instant,
    ) -> Result<(), Withheld> {
        if !self.knows(tenant_id, endpoint) {
            return Ok(());
        }
        self.with_entry(tenant_id, endpoint, |entry, _| {
            // Trials that run now may have ended by then.
            let refusal = entry.machine.refusal(now);
            match refusal.filter(|refusal| refusal.phase == Phase::Open && refusal.retry_after > wait) {
                Some(refusal) => Err(Withheld::Breaker(refusal)),
                None if entry.tokens.take() => Ok(()),
                None => Err(Withheld::NoToken),
            }
        })
    }

    /// How many there are.
    pub fn counts(&self, now: Instant) -> Counts {
        let mut counts = Counts::new();
        for (_, endpoint, entry) in self.entries() {
            *counts
                .entry((endpoint.kind(), entry.machine.phase(now)))
                .or_default() += 1;
        }
        counts
    }

    /// At most `max` of them: open ones first, then half-open ones, then those with most failures in a row.
    pub fn look(&self, max: usize, now: Instant) -> Vec<Seen> {
        if max == 0 {
            return Vec::new();
        }
        let mut seen: Vec<_> = self.entries().collect();
        seen.sort_by_key(|(tenant_id, endpoint, entry)| {
            let rank = match entry.machine.phase(now) {
                Phase::Open => 0,
                Phase::HalfOpen => 1,
                Phase::Closed => 2,
            };
            (rank, Reverse(entry.machine.failures()), *tenant_id, *endpoint)
        });
        seen.truncate(max);
        let seen = seen.into_iter();
        seen.map(|(tenant_id, endpoint, entry)| entry.seen(tenant_id, endpoint, now))
            .collect()
    }

    fn entries(&self) -> impl Iterator<Item = (&Arc<str>, &Endpoint, &Entry)> {
        let shelves = self.shelves.iter();
        shelves.flat_map(|(tenant_id, shelf)| {
            let entries = shelf.entries.iter();
            entries.map(move |(endpoint, entry)| (tenant_id, endpoint, entry))
        })
    }

    fn knows(&self, tenant_id: &str, endpoint: &Endpoint) -> bool {
        let shelf = self.shelves.get(tenant_id);
        shelf.is_some_and(|shelf| shelf.entries.contains_key(endpoint))
    }

    /// Lets `act` work on the entry, made if need be, and keeps the order of uses.
    fn with_entry<T>(
        &mut self,
        tenant_id: &str,
        endpoint: &Endpoint,
        act: impl FnOnce(&mut Entry, &mut Epochs) -> T,
    ) -> T {
        self.uses += 1;
        let used = self.uses;
        let (tenant_id, mut shelf) = self.take_shelf(tenant_id);
        let known = shelf.entries.remove_entry(endpoint);
        let (endpoint, mut entry) = match known {
            Some((endpoint, entry)) => {
                shelf.closed.remove(&entry.used);
                shelf.others.remove(&entry.used);
                (endpoint, entry)
            }
            None => {
                self.count += 1;
                (endpoint.clone(), Entry::new(&self.token_rules, &mut self.epochs))
            }
        };
        let done = act(&mut entry, &mut self.epochs);
        (entry.used, shelf.used) = (used, used);
        let order = if entry.machine.recorded() == Phase::Closed {
            &mut shelf.closed
        } else {
            &mut shelf.others
        };
        order.insert(used, endpoint.clone());
        shelf.entries.insert(endpoint, entry);
        self.put_shelf(tenant_id, shelf);
        done
    }

    fn make_room_for(&mut self, tenant_id: &str, endpoint: &Endpoint) -> Option<Forgotten> {
        if self.count < self.max || self.knows(tenant_id, endpoint) {
            return None;
        }
        let (_, _, largest) = self.by_size.last()?.clone();
        let (tenant_id, mut shelf) = self.take_shelf(&largest);
        let oldest = shelf.closed.pop_first().or_else(|| shelf.others.pop_first());
        let forgotten = oldest.and_then(|(_, endpoint)| {
            let entry = shelf.entries.remove(&endpoint)?;
            self.count -= 1;
            Some(Forgotten {
                tenant_id: Arc::clone(&tenant_id),
                endpoint,
                phase: entry.machine.recorded(),
            })
        });
        if !shelf.entries.is_empty() {
            self.put_shelf(tenant_id, shelf);
        }
        forgotten
    }

    fn take_shelf(&mut self, tenant_id: &str) -> (Arc<str>, Shelf) {
        let Some((tenant_id, shelf)) = self.shelves.remove_entry(tenant_id) else {
            return (tenant_id.into(), Shelf::default());
        };
        let place = (shelf.entries.len(), Reverse(shelf.used), tenant_id);
        self.by_size.remove(&place);
        (place.2, shelf)
    }

    fn put_shelf(&mut self, tenant_id: Arc<str>, shelf: Shelf) {
        let place = (shelf.entries.len(), Reverse(shelf.used), Arc::clone(&tenant_id));
        self.by_size.insert(place);
        self.shelves.insert(tenant_id, shelf);
    }
}

impl Entry {
    fn new(rules: &TokenRules, epochs: &mut Epochs) -> Self {
        Self {
            machine: Machine::new(epochs),
            tokens: Tokens::full(rules),
            used: 0,
            changed: None,
            refused: 0,
        }
    }

    fn note(&mut self, change: Option<Change>, now: Instant) {
        let Some(change) = change else { return };
        self.changed = Some(now);
        if change.to == Phase::Open && change.from == Phase::Closed {
            self.refused = 0;
        }
    }

    fn seen(&self, tenant_id: &Arc<str>, endpoint: &Endpoint, now: Instant) -> Seen {
        Seen {
            tenant_id: Arc::clone(tenant_id),
            endpoint: endpoint.clone(),
            phase: self.machine.phase(now),
            failures: self.machine.failures(),
            changed: self.changed,
            retry_after: self.machine.refusal(now).map(|refusal| refusal.retry_after),
            refused: self.refused,
            retry_tokens: self.tokens.whole(),
        }
    }
}

#[cfg(test)]
mod tests;
