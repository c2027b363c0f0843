//! The book of assignments: which are remembered, and which go first for want of room. Pure.
//!
//! Neighbours: [`super::Journal`] shares it between threads. What runs is never pushed out by what is finished; only when
//! there is nothing else to forget, the one in hand goes that was taken on longest ago.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use caf_protocol::assignment::Identity;

use super::entry::{Entry, Phase, text};
use crate::events::{Event, Word};

/// Bytes of an entry beside what it says of itself: its keys in both maps.
const OVERHEAD_BYTES: usize = 192;

/// All that is remembered.
pub(super) struct Book {
    max_entries: usize,
    max_bytes: usize,
    bytes: usize,
    next: u64,
    /// By hash: a tree of ten thousand ids costs each event some dozen looks into cold memory.
    entries: HashMap<Key, Kept>,
    /// In the order in which they are forgotten: what is over, what waits, what runs; in each the oldest first.
    order: BTreeMap<(Rank, u64), Key>,
    forgotten: u64,
}

/// An assignment, by its tenant, id and replay.
#[derive(Debug, Clone)]
struct Key(Arc<Identity>);

impl Key {
    /// The assignment that an event is about, if it is about one.
    fn of(event: &Event) -> Option<Self> {
        let identity = event.identity().map(Arc::clone);
        let named = || {
            let replay = event.field("replay").and_then(Word::as_u64);
            Arc::new(Identity {
                assignment_id: text(event, "assignment_id").to_owned(),
                tenant_id: text(event, "tenant_id").to_owned(),
                replay: replay.and_then(|replay| replay.try_into().ok()).unwrap_or(0),
                ..Identity::default()
            })
        };
        let identity = identity.unwrap_or_else(named);
        let is_whole = !identity.assignment_id.is_empty() && !identity.tenant_id.is_empty();
        is_whole.then_some(Self(identity))
    }

    fn bytes(&self) -> usize {
        let raw = &self.0.correlation.raw;
        let others = [
            &self.0.request_id,
            &self.0.provider_id,
            &self.0.job_type,
            &self.0.idempotency_key,
            &raw.run_id,
            &raw.flow_id,
            &raw.step_id,
        ];
        let others = others.into_iter().flatten().map(String::len).sum::<usize>();
        size_of::<Identity>() + self.0.assignment_id.len() + self.0.tenant_id.len() + others
    }

    fn parts(&self) -> (&str, &str, u32) {
        (&self.0.assignment_id, &self.0.tenant_id, self.0.replay)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.parts() == other.parts()
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Over,
    InHand,
    Waiting,
    Running,
}

struct Kept {
    entry: Entry,
    place: (Rank, u64),
    bytes: usize,
}

/// An assignment that was found, with what it stands behind.
#[derive(Debug, Clone)]
pub struct Found {
    /// Whose it is.
    pub tenant_id: String,
    /// How often an operator had sent it again; 0 for the assignment itself.
    pub replay: u32,
    /// What is known.
    pub entry: Entry,
    /// While it waits: how many wait before it in the same pool.
    pub before: usize,
    /// While it waits: how many wait in the same pool, itself included.
    pub waiting: usize,
    /// While it waits: who has the slots of its pool, the longest first; a few.
    pub slots: Vec<Running>,
}

/// A job that runs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Running {
    /// Its id.
    pub assignment_id: String,
    /// Whose it is.
    pub tenant_id: String,
    /// How often an operator had sent it again.
    pub replay: u32,
    /// Its job type.
    pub job_type: String,
    /// Its pool.
    pub pool: String,
    /// Since when it has its slot, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// Number of the call, from 1.
    pub attempt: u32,
    /// Most calls, as far as known.
    pub max_attempts: Option<u32>,
    /// When it must be over, in milliseconds since the Unix epoch.
    pub deadline_ms: Option<u64>,
    /// Whether it waits for its next call.
    pub waits_for_retry: bool,
}

/// How many who wait for a slot are told who has them.
pub const MAX_HOLDERS: usize = 20;

/// How much is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// Assignments.
    pub assignments: usize,
    /// Most of them.
    pub max_assignments: usize,
    /// Bytes, as reckoned.
    pub bytes: usize,
    /// Most of them.
    pub max_bytes: usize,
    /// Assignments that were forgotten for want of room.
    pub forgotten: u64,
}

impl Book {
    pub(super) fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self {
            max_entries,
            max_bytes,
            bytes: 0,
            next: 0,
            entries: HashMap::new(),
            order: BTreeMap::new(),
            forgotten: 0,
        }
    }

    /// Notes an event that is about an assignment. Says where that was until now, if it was known.
    pub(super) fn note(&mut self, event: &Event, at_ms: u64) -> Option<Phase> {
        if says_nothing_new(event) {
            return None;
        }
        let key = Key::of(event)?;
        self.next += 1;
        let number = self.next;
        let mut before = None;
        if let Some(kept) = self.entries.get_mut(&key) {
            self.bytes -= kept.bytes;
            before = Some(kept.entry.phase);
            kept.entry.note(event, at_ms);
            kept.bytes = bytes_of(&key, &kept.entry);
            self.bytes += kept.bytes;
            let rank = Rank::of(kept.entry.phase);
            if rank != kept.place.0
                && let Some(key) = self.order.remove(&kept.place)
            {
                kept.place = (rank, number);
                self.order.insert(kept.place, key);
            }
        } else {
            let mut entry = Entry::new(event);
            entry.note(event, at_ms);
            let place = (Rank::of(entry.phase), number);
            let bytes = bytes_of(&key, &entry);
            self.order.insert(place, key.clone());
            self.entries.insert(key, Kept { entry, place, bytes });
            self.bytes += bytes;
        }
        self.shrink();
        before
    }

    fn shrink(&mut self) {
        while self.entries.len() > self.max_entries || self.bytes > self.max_bytes {
            let Some((_, key)) = self.order.pop_first() else {
                return;
            };
            if let Some(kept) = self.entries.remove(&key) {
                self.bytes -= kept.bytes;
                self.forgotten += 1;
            }
        }
    }

    pub(super) fn find(&self, assignment_id: &str, tenant_id: Option<&str>, limit: usize) -> Vec<Found> {
        let fits = |key: &Key| {
            key.0.assignment_id == assignment_id && tenant_id.is_none_or(|tenant| key.0.tenant_id == tenant)
        };
        // All of them are looked at: people ask seldom, events come thousands of times a second.
        let mut found: Vec<_> = self.entries.iter().filter(|(key, _)| fits(key)).collect();
        found.sort_by_key(|(_, kept)| std::cmp::Reverse(kept.place.1));
        found.truncate(limit);
        found
            .into_iter()
            .map(|(key, kept)| self.found(key, kept))
            .collect()
    }

    fn found(&self, key: &Key, kept: &Kept) -> Found {
        let mut found = Found {
            tenant_id: key.0.tenant_id.clone(),
            replay: key.0.replay,
            entry: kept.entry.clone(),
            before: 0,
            waiting: 0,
            slots: Vec::new(),
        };
        if kept.entry.phase == Phase::Waiting {
            for (number, other) in self.of_rank(Rank::Waiting) {
                if other.entry.pool == kept.entry.pool {
                    found.waiting += 1;
                    found.before += usize::from(number < kept.place.1);
                }
            }
            let running = self.of_rank_with_keys(Rank::Running);
            let same_pool = running.filter(|(_, other)| other.entry.pool == kept.entry.pool);
            found.slots = same_pool
                .take(MAX_HOLDERS)
                .map(|(key, other)| running_of(key, &other.entry))
                .collect();
        }
        found
    }

    pub(super) fn running(&self, limit: usize) -> Vec<Running> {
        let running = self.of_rank_with_keys(Rank::Running).take(limit);
        running.map(|(key, kept)| running_of(key, &kept.entry)).collect()
    }

    fn of_rank(&self, rank: Rank) -> impl Iterator<Item = (u64, &Kept)> {
        let of_rank = self.order.range((rank, 0)..=(rank, u64::MAX));
        of_rank.filter_map(|((_, number), key)| Some((*number, self.entries.get(key)?)))
    }

    fn of_rank_with_keys(&self, rank: Rank) -> impl Iterator<Item = (&Key, &Kept)> {
        let of_rank = self.order.range((rank, 0)..=(rank, u64::MAX));
        of_rank.filter_map(|(_, key)| Some((key, self.entries.get(key)?)))
    }

    pub(super) fn memory(&self) -> Memory {
        Memory {
            assignments: self.entries.len(),
            max_assignments: self.max_entries,
            bytes: self.bytes,
            max_bytes: self.max_bytes,
            forgotten: self.forgotten,
        }
    }
}

#[cfg(test)]
impl Book {
    /// Both maps know the same, and the bytes are the sum of the entries.
    pub(super) fn check(&self) {
        assert_eq!(self.entries.len(), self.order.len());
        let sum = |(key, kept): (&Key, &Kept)| bytes_of(key, &kept.entry);
        assert_eq!(self.bytes, self.entries.iter().map(sum).sum::<usize>());
        for (place, key) in &self.order {
            let kept = &self.entries[key];
            assert_eq!((kept.place, Rank::of(kept.entry.phase)), (*place, place.0));
        }
    }
}

impl Rank {
    fn of(phase: Phase) -> Self {
        match phase {
            Phase::Deciding | Phase::Answering => Self::InHand,
            Phase::Waiting => Self::Waiting,
            Phase::Running | Phase::WaitingForRetry => Self::Running,
            Phase::Deferred | Phase::Returned | Phase::Asking | Phase::Elsewhere | Phase::Finished => {
                Self::Over
            }
        }
    }
}

/// Whether another event of the same moment says the same: the start of a job, the call that begins, the refusal of a full
/// queue.
fn says_nothing_new(event: &Event) -> bool {
    match event.message() {
        "Processing queued request" | "Retry attempt started" => true,
        "Queue rejection" => text(event, "rejection_reason") == "queue_full",
        _ => false,
    }
}

fn bytes_of(key: &Key, entry: &Entry) -> usize {
    OVERHEAD_BYTES + key.bytes() + entry.bytes()
}

fn running_of(key: &Key, entry: &Entry) -> Running {
    Running {
        assignment_id: key.0.assignment_id.clone(),
        tenant_id: key.0.tenant_id.clone(),
        replay: key.0.replay,
        job_type: entry.job_type.to_string(),
        pool: entry.pool.as_deref().unwrap_or("unknown").to_owned(),
        since_ms: entry.started_ms.unwrap_or_default(),
        attempt: entry.attempt,
        max_attempts: entry.max_attempts,
        deadline_ms: entry.deadline_ms,
        waits_for_retry: entry.phase == Phase::WaitingForRetry,
    }
}
