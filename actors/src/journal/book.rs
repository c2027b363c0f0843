//! The book of assignments: which are remembered, and which go first for want of room. Pure.
//!
//! Neighbours: [`super::Journal`] shares it between threads. What runs is never pushed out by what is finished; only when
//! there is nothing else to forget, the one in hand goes that was taken on longest ago.

use std::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::entry::{Entry, Life, MAX_TEXT_BYTES, Meaning, Phase, cut, job_type, text};
use super::notes::Literals;
use crate::events::{Event, Word};

/// Bytes of an entry beside itself: its place in the index, and room that is kept to grow.
const OVERHEAD_BYTES: usize = 64;

/// All that is remembered.
pub(super) struct Book {
    max_entries: usize,
    max_bytes: usize,
    bytes: usize,
    next: u64,
    /// Entries in places that never change; those that are free.
    places: Vec<Option<Kept>>,
    free: Vec<Place>,
    /// Where an assignment is, by the hash of its name.
    index: HashTable<Place>,
    hasher: RandomState,
    /// In the order in which they are forgotten: what is over, what is in hand, what waits, what runs; in each the oldest first.
    /// Lists through the places: an entry changes its rank five times, and a tree takes most of what it takes to note an event.
    ranks: [List; RANKS],
    forgotten: u64,
    literals: Literals,
    /// The note that is being written.
    note: Vec<u8>,
}

/// The ends of a list.
#[derive(Clone, Copy, Default)]
struct List {
    first: Option<Place>,
    last: Option<Place>,
}

/// A place in the book, from 1: nothing takes no more room than a place.
type Place = std::num::NonZeroU32;

/// An assignment, by its tenant, id and replay, as an event tells.
struct Named<'a> {
    assignment_id: &'a str,
    tenant_id: &'a str,
    replay: u32,
    job_type: &'a str,
}

impl<'a> Named<'a> {
    /// The assignment that an event is about, if it is about one.
    fn by(event: &'a Event) -> Option<Self> {
        let (assignment_id, tenant_id, replay) = match event.identity() {
            Some(identity) => (&*identity.assignment_id, &*identity.tenant_id, identity.replay),
            None => {
                let replay = event.field("replay").and_then(Word::as_u64);
                let replay = replay.and_then(|replay| replay.try_into().ok()).unwrap_or(0);
                (text(event, "assignment_id"), text(event, "tenant_id"), replay)
            }
        };
        let is_whole = !assignment_id.is_empty() && !tenant_id.is_empty();
        is_whole.then(|| Self {
            assignment_id,
            tenant_id,
            replay,
            job_type: cut(job_type(event), MAX_TEXT_BYTES),
        })
    }

    fn hash(&self, hasher: &RandomState) -> u64 {
        hasher.hash_one((self.assignment_id, self.tenant_id, self.replay))
    }
}

/// The same as it is kept: one text, and where its parts end. All of the identity would take five times as much.
struct Name {
    text: Box<str>,
    id_end: usize,
    tenant_end: usize,
    replay: u32,
}

impl Name {
    fn new(named: &Named<'_>) -> Self {
        let id_end = named.assignment_id.len();
        Self {
            text: [named.assignment_id, named.tenant_id, named.job_type]
                .concat()
                .into(),
            id_end,
            tenant_end: id_end + named.tenant_id.len(),
            replay: named.replay,
        }
    }

    fn parts(&self) -> Named<'_> {
        Named {
            assignment_id: &self.text[..self.id_end],
            tenant_id: &self.text[self.id_end..self.tenant_end],
            replay: self.replay,
            job_type: &self.text[self.tenant_end..],
        }
    }

    fn is(&self, named: &Named<'_>) -> bool {
        let own = self.parts();
        (own.assignment_id, own.tenant_id, own.replay) == (named.assignment_id, named.tenant_id, named.replay)
    }
}

/// How many of them there are.
const RANKS: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rank {
    Over,
    InHand,
    Waiting,
    Running,
}

struct Kept {
    name: Name,
    life: Life,
    rank: Rank,
    /// Grows with each change of rank.
    number: u64,
    bytes: usize,
    earlier: Option<Place>,
    later: Option<Place>,
}

impl Kept {
    fn bytes_now(&self) -> usize {
        size_of::<Self>() + OVERHEAD_BYTES + self.name.text.len() + self.life.bytes()
    }
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
            places: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            hasher: RandomState::default(),
            ranks: Default::default(),
            forgotten: 0,
            literals: Literals::default(),
            note: Vec::new(),
        }
    }

    /// Notes an event, if it is about an assignment and says what no other does. Tells what it means, and where the
    /// assignment was until now, if it was known.
    pub(super) fn note(&mut self, event: &Event, at_ms: u64) -> (Meaning, Option<Phase>) {
        let (message, meaning) = self.literals.message(event.message());
        if says_nothing_new(meaning, event) {
            return (meaning, None);
        }
        let Some(named) = Named::by(event) else {
            return (meaning, None);
        };
        self.literals.write(message, event, at_ms, &mut self.note);
        let (place, is_known) = self.place_of(&named);
        self.next += 1;
        let number = self.next;
        let kept = kept_mut(&mut self.places, place);
        let before = kept.life.phase;
        kept.life.note(meaning, event, at_ms, &self.note);
        self.bytes -= kept.bytes;
        kept.bytes = kept.bytes_now();
        self.bytes += kept.bytes;
        let rank = Rank::of(kept.life.phase);
        if !is_known || rank != kept.rank {
            kept.number = number;
            if is_known {
                self.unlink(place);
            }
            self.append(place, rank);
        }
        self.shrink();
        (meaning, is_known.then_some(before))
    }

    /// Where it is, and whether it was known; if not, it is in no list yet.
    fn place_of(&mut self, named: &Named<'_>) -> (Place, bool) {
        let hash = named.hash(&self.hasher);
        let places = &self.places;
        let is_it = |place: &Place| kept(places, *place).name.is(named);
        if let Some(place) = self.index.find(hash, is_it) {
            return (*place, true);
        }
        let new = Some(Kept {
            name: Name::new(named),
            life: Life::new(),
            rank: Rank::Over,
            number: 0,
            bytes: 0,
            earlier: None,
            later: None,
        });
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            let count = u32::try_from(self.places.len()).ok().and_then(Place::new);
            count.expect("the book is bounded far below, and is not empty")
        });
        self.places[at(place)] = new;
        let (places, hasher) = (&self.places, &self.hasher);
        self.index.insert_unique(hash, place, |place| {
            kept(places, *place).name.parts().hash(hasher)
        });
        (place, false)
    }

    fn shrink(&mut self) {
        while self.index.len() > self.max_entries || self.bytes > self.max_bytes {
            let Some(place) = self.ranks.iter().find_map(|list| list.first) else {
                return;
            };
            self.unlink(place);
            let gone = self.places[at(place)].take();
            if let Some(gone) = gone {
                let hash = gone.name.parts().hash(&self.hasher);
                if let Ok(entry) = self.index.find_entry(hash, |other| *other == place) {
                    entry.remove();
                }
                self.bytes -= gone.bytes;
            }
            self.free.push(place);
            self.forgotten += 1;
        }
    }

    /// Takes it out of the list of its rank.
    fn unlink(&mut self, place: Place) {
        let kept = kept_mut(&mut self.places, place);
        let (rank, earlier, later) = (kept.rank, kept.earlier.take(), kept.later.take());
        let list = &mut self.ranks[rank as usize];
        match earlier {
            Some(earlier) => kept_mut(&mut self.places, earlier).later = later,
            None => list.first = later,
        }
        match later {
            Some(later) => kept_mut(&mut self.places, later).earlier = earlier,
            None => list.last = earlier,
        }
    }

    /// Puts it at the end of the list of a rank.
    fn append(&mut self, place: Place, rank: Rank) {
        let list = &mut self.ranks[rank as usize];
        let last = list.last.replace(place);
        match last {
            Some(last) => kept_mut(&mut self.places, last).later = Some(place),
            None => list.first = Some(place),
        }
        let kept = kept_mut(&mut self.places, place);
        (kept.rank, kept.earlier) = (rank, last);
    }

    pub(super) fn find(&self, assignment_id: &str, tenant_id: Option<&str>, limit: usize) -> Vec<Found> {
        let fits = |kept: &&Kept| {
            let named = kept.name.parts();
            named.assignment_id == assignment_id && tenant_id.is_none_or(|tenant| named.tenant_id == tenant)
        };
        // All of them are looked at: people ask seldom, events come thousands of times a second.
        let mut found: Vec<_> = self.places.iter().flatten().filter(fits).collect();
        found.sort_by_key(|kept| std::cmp::Reverse(kept.number));
        found.truncate(limit);
        found.into_iter().map(|kept| self.found(kept)).collect()
    }

    fn found(&self, kept: &Kept) -> Found {
        let named = kept.name.parts();
        let mut found = Found {
            tenant_id: named.tenant_id.to_owned(),
            replay: named.replay,
            entry: kept.life.entry(named.job_type, &self.literals),
            before: 0,
            waiting: 0,
            slots: Vec::new(),
        };
        if kept.life.phase == Phase::Waiting {
            let same_pool = |other: &&Kept| other.life.pool == kept.life.pool;
            for other in self.of_rank(Rank::Waiting).filter(same_pool) {
                found.waiting += 1;
                found.before += usize::from(other.number < kept.number);
            }
            let running = self.of_rank(Rank::Running).filter(same_pool);
            found.slots = running.take(MAX_HOLDERS).map(running_of).collect();
        }
        found
    }

    pub(super) fn running(&self, limit: usize) -> Vec<Running> {
        self.of_rank(Rank::Running).take(limit).map(running_of).collect()
    }

    fn of_rank(&self, rank: Rank) -> impl Iterator<Item = &Kept> {
        let first = self.ranks[rank as usize].first;
        let first = first.map(|place| kept(&self.places, place));
        std::iter::successors(first, |one| one.later.map(|place| kept(&self.places, place)))
    }

    pub(super) fn memory(&self) -> Memory {
        Memory {
            assignments: self.index.len(),
            max_assignments: self.max_entries,
            bytes: self.bytes,
            max_bytes: self.max_bytes,
            forgotten: self.forgotten,
        }
    }
}

#[cfg(test)]
impl Book {
    /// Index, places and lists know the same, and the bytes are the sum of the entries.
    pub(super) fn check(&self) {
        let all = || self.places.iter().flatten();
        assert_eq!(self.index.len(), all().count());
        assert_eq!(self.index.len() + self.free.len(), self.places.len());
        assert_eq!(self.bytes, all().map(Kept::bytes_now).sum::<usize>());
        for place in &self.index {
            let named = kept(&self.places, *place).name.parts();
            let found = self.index.find(named.hash(&self.hasher), |other| {
                kept(&self.places, *other).name.is(&named)
            });
            assert_eq!(found, Some(place));
        }
        let ranks = [Rank::Over, Rank::InHand, Rank::Waiting, Rank::Running];
        let listed = ranks.map(|rank| {
            let numbers: Vec<u64> = self.of_rank(rank).map(|kept| kept.number).collect();
            assert!(numbers.is_sorted());
            assert!(
                self.of_rank(rank)
                    .all(|kept| kept.rank == rank && Rank::of(kept.life.phase) == rank)
            );
            numbers.len()
        });
        assert_eq!(listed.iter().sum::<usize>(), self.index.len());
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

/// Whether another event of the same moment says the same.
fn says_nothing_new(meaning: Meaning, event: &Event) -> bool {
    match meaning {
        Meaning::Repetition => true,
        Meaning::QueueRejection => text(event, "rejection_reason") == "queue_full",
        _ => false,
    }
}

fn at(place: Place) -> usize {
    place.get() as usize - 1
}

fn kept(places: &[Option<Kept>], place: Place) -> &Kept {
    let kept = places[at(place)].as_ref();
    kept.expect("lists and index name places that are taken")
}

fn kept_mut(places: &mut [Option<Kept>], place: Place) -> &mut Kept {
    let kept = places[at(place)].as_mut();
    kept.expect("lists and index name places that are taken")
}

fn running_of(kept: &Kept) -> Running {
    let (named, life) = (kept.name.parts(), &kept.life);
    Running {
        assignment_id: named.assignment_id.to_owned(),
        tenant_id: named.tenant_id.to_owned(),
        replay: named.replay,
        job_type: named.job_type.to_owned(),
        pool: life.pool.as_deref().unwrap_or("unknown").to_owned(),
        since_ms: life.started_ms.unwrap_or_default(),
        attempt: life.attempt,
        max_attempts: life.max_attempts,
        deadline_ms: life.deadline_ms,
        waits_for_retry: life.phase == Phase::WaitingForRetry,
    }
}
