//! What this process knows about assignments: which it holds, which it has finished and with what answer.
//!
//! Neighbours: intake looks an assignment up and takes a claim on it; the job carries the claim; the publisher records
//! the answer in it. In memory and bounded: the oldest go first. What other processes must know is in [`fleet`]; there
//! the decisions are those of [`record`].

pub mod fleet;
pub mod record;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use caf_protocol::ids::AssignmentKey;
use tokio::time::Instant;

use self::fleet::{Fleet, FleetClaim};
use crate::lease::Lease;
use crate::settings::IdempotencySettings;
use crate::sink::Outgoing;

/// What remembering one assignment takes beside the bytes of its answer: its key, its places in the book, and subject and
/// headers of a message.
const OVERHEAD_BYTES: usize = 768;

/// All claims of this process. Cheap to clone.
#[derive(Clone)]
pub struct Claims(Arc<Shared>);

struct Shared {
    max_entries: usize,
    max_bytes: usize,
    ttl: std::time::Duration,
    fleet: Option<Fleet>,
    book: Mutex<Book>,
    /// Results that were not published because somebody else has answered or will.
    suppressed: AtomicU64,
    /// How far back the fleet's store really reaches, in seconds; the whole time until that is known.
    fleet_window_s: AtomicU64,
}

/// What is known of assignments now.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ClaimsSnapshot {
    /// Assignments in this process's memory.
    pub entries: usize,
    /// Bytes that the finished ones take, with their answers.
    pub bytes: usize,
    /// How long a finished assignment is really remembered, in seconds: `idempotency.ttl_s`, or less when there is too
    /// little room. By the fleet where claims are shared, else by this process.
    pub idempotency_window_s: u64,
    /// Results not published since the start because another worker answers.
    pub results_suppressed: u64,
    /// For how long the fleet's claims could not be read or written, in milliseconds; 0 while they can.
    pub unavailable_ms: u64,
}

#[derive(Default)]
struct Book {
    entries: HashMap<AssignmentKey, Entry>,
    /// Released claims, oldest first. An entry claimed again since then has another release number.
    released: VecDeque<(AssignmentKey, u64)>,
    /// Claims that leave no memory behind when they are dropped.
    forgotten: HashSet<AssignmentKey>,
    bytes: usize,
    releases: u64,
    /// When the youngest was released of those that went for want of room.
    pushed_out: Option<Instant>,
}

struct Entry {
    first_start: Instant,
    ack: Option<Arc<Outgoing>>,
    result: Option<Arc<Outgoing>>,
    /// The message that the result was confirmed for; nothing before.
    answered: Option<(Arc<str>, u64)>,
    /// The lease of the delivery that is being worked on; dangling once the claim is released.
    lease: Weak<Lease>,
    /// The claim that the fleet knows; dangling without one.
    fleet: Weak<FleetClaim>,
    /// When the claim was released, and its number; nothing while it is held.
    released: Option<(Instant, u64)>,
}

/// What is known of an assignment.
#[derive(Clone)]
pub enum Standing {
    /// Nothing.
    New,
    /// This process works on it; the lease when it came from a stream.
    Held(Option<Arc<Lease>>),
    /// This process works on it or is about to, and cannot be certain that it may: the fleet has not granted it yet, or
    /// the lease does not vouch for it any more.
    Uncertain(Option<Arc<Lease>>),
    /// It was answered with this result; nothing when it is not to be repeated: it cannot be read back any more, or this
    /// very message was answered with it.
    Finished(Option<Arc<Outgoing>>),
    /// Another worker works on it.
    Elsewhere {
        /// Whether by this very message.
        same_message: bool,
    },
    /// It was taken on but never answered: handed back, or lost with a failed actor.
    Interrupted {
        /// When it was first handled.
        first_start: Instant,
        /// The acknowledgement that was sent, byte for byte.
        ack: Option<Arc<Outgoing>>,
    },
}

/// The right to answer one assignment. Released when dropped.
pub struct Claim {
    key: AssignmentKey,
    claims: Claims,
    fleet: Option<Arc<FleetClaim>>,
}

impl Claims {
    /// Knows nothing. With a `fleet`, what is held here is claimed there as well.
    pub fn new(settings: &IdempotencySettings, fleet: Option<Fleet>) -> Self {
        Self(Arc::new(Shared {
            max_entries: settings.max_entries,
            max_bytes: settings.memory_bytes,
            ttl: std::time::Duration::from_secs(settings.ttl_s),
            fleet,
            book: Mutex::default(),
            suppressed: AtomicU64::new(0),
            fleet_window_s: AtomicU64::new(settings.ttl_s),
        }))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The claims that all workers share, if they do.
    pub fn fleet(&self) -> Option<&Fleet> {
        self.0.fleet.as_ref()
    }

    /// Whether this process works on an assignment.
    pub fn is_held(&self, key: &AssignmentKey) -> bool {
        let book = self.book();
        book.entries
            .get(key)
            .is_some_and(|entry| entry.released.is_none())
    }

    /// The fleet's claims on everything that is held.
    pub fn held_in_fleet(&self) -> Vec<Arc<FleetClaim>> {
        let book = self.book();
        let held = book.entries.values().filter(|entry| entry.released.is_none());
        held.filter_map(|entry| entry.fleet.upgrade()).collect()
    }

    /// What is known of an assignment now.
    pub fn look(&self, key: &AssignmentKey, now: Instant) -> Standing {
        let mut book = self.book();
        book.forget_before(now.checked_sub(self.0.ttl));
        let Some(entry) = book.entries.get(key) else {
            return Standing::New;
        };
        match (entry.released, &entry.result) {
            (None, _) => {
                let lease = entry.lease.upgrade();
                let vouches = lease.as_ref().map(|lease| lease.vouches(now));
                let is_certain = match &self.0.fleet {
                    Some(_) => entry.fleet.upgrade().is_some() && vouches == Some(true),
                    None => vouches != Some(false),
                };
                if is_certain {
                    Standing::Held(lease)
                } else {
                    Standing::Uncertain(lease)
                }
            }
            (Some(_), Some(result)) => Standing::Finished(Some(Arc::clone(result))),
            (Some(_), None) => Standing::Interrupted {
                first_start: entry.first_start,
                ack: entry.ack.clone(),
            },
        }
    }

    /// Takes an assignment on. The caller has seen that it is not held.
    pub fn take(&self, key: AssignmentKey, lease: Option<&Arc<Lease>>, now: Instant) -> Claim {
        let mut book = self.book();
        let entry = book.entries.entry(key.clone()).or_insert_with(|| Entry {
            first_start: now,
            ack: None,
            result: None,
            answered: None,
            lease: Weak::new(),
            fleet: Weak::new(),
            released: None,
        });
        entry.lease = lease.map(Arc::downgrade).unwrap_or_default();
        let counted = entry.released.take().map_or(0, |_| entry.bytes());
        book.bytes = book.bytes.saturating_sub(counted);
        drop(book);
        Claim {
            key,
            claims: self.clone(),
            fleet: None,
        }
    }

    /// Whether the answer to an assignment was confirmed for this very message: it comes back only because the broker was
    /// not told.
    pub fn is_answered(&self, key: &AssignmentKey, position: Option<&(Arc<str>, u64)>) -> bool {
        let book = self.book();
        let answered = book.entries.get(key).and_then(|entry| entry.answered.as_ref());
        answered.is_some() && answered == position
    }

    /// How far back the fleet's store reaches, in seconds.
    pub fn set_fleet_window(&self, seconds: u64) {
        self.0.fleet_window_s.store(seconds, Relaxed);
    }

    /// What is known now, for people.
    pub fn snapshot(&self, now: Instant) -> ClaimsSnapshot {
        let (entries, bytes) = self.size();
        let idempotency_window_s = match self.0.fleet {
            Some(_) => self.0.fleet_window_s.load(Relaxed),
            None => self.own_window(now).as_secs(),
        };
        ClaimsSnapshot {
            entries,
            bytes,
            idempotency_window_s,
            results_suppressed: self.0.suppressed.load(Relaxed),
            unavailable_ms: self.0.fleet.as_ref().map_or(0, Fleet::failing_ms),
        }
    }

    /// How long this process remembers what it has finished.
    fn own_window(&self, now: Instant) -> std::time::Duration {
        let pushed_out = self.book().pushed_out;
        let reaches = pushed_out.map_or(self.0.ttl, |at| now.saturating_duration_since(at));
        reaches.min(self.0.ttl)
    }

    /// Assignments remembered now, and the bytes that the finished ones take.
    pub fn size(&self) -> (usize, usize) {
        let book = self.book();
        (book.entries.len(), book.bytes)
    }
}

impl Claim {
    fn with_entry(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.claims.book().entries.get_mut(&self.key) {
            change(entry);
        }
    }

    /// Which assignment.
    pub fn key(&self) -> &AssignmentKey {
        &self.key
    }

    /// The fleet has granted it too.
    pub fn grant(&mut self, claim: FleetClaim) {
        let claim = Arc::new(claim);
        self.with_entry(|entry| entry.fleet = Arc::downgrade(&claim));
        self.fleet = Some(claim);
    }

    /// The fleet's side of it, if it has one.
    pub fn fleet(&self) -> Option<&Arc<FleetClaim>> {
        self.fleet.as_ref()
    }

    /// Lets go as if it had never been taken: somebody else answers.
    pub fn forget(self) {
        let mut book = self.claims.book();
        if let Some(entry) = book.entries.get_mut(&self.key) {
            (entry.ack, entry.result, entry.answered) = (None, None, None);
        }
        book.forgotten.insert(self.key.clone());
    }

    /// Somebody else answers although there is a result here: counts it, and lets go as [`Claim::forget`] does.
    pub fn suppress(self) {
        self.claims.0.suppressed.fetch_add(1, Relaxed);
        self.forget();
    }

    /// The result is stored for whoever listens; `position` is the message that asked for it.
    pub fn note_answered(&self, position: Option<&(Arc<str>, u64)>) {
        self.with_entry(|entry| entry.answered = position.cloned());
    }

    /// Fixes the acknowledgement: no other is ever sent for this assignment.
    pub fn record_ack(&self, ack: &Arc<Outgoing>) {
        self.with_entry(|entry| entry.ack = Some(Arc::clone(ack)));
    }

    /// Fixes the result: no other is ever sent for this assignment.
    pub fn record_result(&self, result: &Arc<Outgoing>) {
        self.with_entry(|entry| entry.result = Some(Arc::clone(result)));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let shared = Arc::clone(&self.claims.0);
        let mut book = self.claims.book();
        book.release(&self.key, Instant::now());
        book.shrink_to(shared.max_entries, shared.max_bytes);
    }
}

impl Book {
    fn release(&mut self, key: &AssignmentKey, now: Instant) {
        if self.forgotten.remove(key) {
            self.entries.remove(key);
            return;
        }
        self.releases += 1;
        let number = self.releases;
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if entry.result.is_some() {
            // It is never sent again: what comes back is answered with the result.
            entry.ack = None;
        }
        entry.released = Some((now, number));
        self.bytes += entry.bytes();
        self.released.push_back((key.clone(), number));
    }

    fn shrink_to(&mut self, max_entries: usize, max_bytes: usize) {
        while self.released.len() > max_entries || self.bytes > max_bytes {
            let Some((key, number)) = self.released.pop_front() else {
                return;
            };
            let released = self.entries.get(&key).and_then(|entry| entry.released);
            let current = released.filter(|(_, current)| *current == number);
            self.pushed_out = self.pushed_out.max(current.map(|(at, _)| at));
            self.forget(&key, number);
        }
    }

    fn forget_before(&mut self, limit: Option<Instant>) {
        let Some(limit) = limit else { return };
        while let Some((key, number)) = self.released.front().cloned() {
            let released = self.entries.get(&key).and_then(|entry| entry.released);
            let fresh = released.is_some_and(|(at, current)| current == number && at >= limit);
            if fresh {
                return;
            }
            self.released.pop_front();
            self.forget(&key, number);
        }
    }

    fn forget(&mut self, key: &AssignmentKey, number: u64) {
        let current = self.entries.get(key).and_then(|entry| entry.released);
        if current.is_some_and(|(_, n)| n == number)
            && let Some(entry) = self.entries.remove(key)
        {
            self.bytes = self.bytes.saturating_sub(entry.bytes());
        }
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        let size = |message: &Option<Arc<Outgoing>>| message.as_ref().map_or(0, |m| m.payload.len());
        OVERHEAD_BYTES + size(&self.ack) + size(&self.result)
    }
}

#[cfg(test)]
mod tests;
