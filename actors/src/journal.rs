//! The journal: what happened to the last assignments, and how much went through lately, for whoever asks the node.
//!
//! Neighbours: the log shows it every event ([`Observer`]), written or not, so that a line and an entry are one call; the
//! admin port asks it. In memory, bounded by number and bytes; a restart begins with nothing. Keeps ids, codes and
//! numbers, and the masked text of failures; never payloads, inputs or outputs. Decides nothing about assignments.

mod book;
mod entry;
mod flow;
mod notes;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::book::Book;
pub use self::book::{Found, MAX_HOLDERS, Memory, Running};
use self::entry::Meaning;
pub use self::entry::{Entry, Fact, Note, Phase};
pub use self::flow::{BUCKET_S, BUCKETS, Bucket, FailureNote, Flow, MAX_FAILURES, Outcomes};
use crate::clock;
use crate::events::{Event, Observer};

/// Most assignments that are remembered: at 100 a second, the last minute and a half of a busy node; at one a second, the
/// last hours.
pub const MAX_ASSIGNMENTS: usize = 10_000;
/// Most bytes that they take: a usual one takes about half a kilobyte, one that was called many times several.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Most parts of the node whose restarts are counted by name: more than there can be block workers.
const MAX_ACTORS: usize = 1_000;

/// The journal. Cheap to clone.
#[derive(Clone)]
pub struct Journal(Arc<Shared>);

struct Shared {
    started_ms: u64,
    state: Mutex<State>,
}

struct State {
    book: Book,
    flow: Flow,
    restarts: BTreeMap<String, u64>,
    draining_since_ms: Option<u64>,
}

impl Default for Journal {
    fn default() -> Self {
        Self::new(MAX_ASSIGNMENTS, MAX_BYTES)
    }
}

impl Journal {
    /// An empty one for at most so many assignments and bytes.
    pub fn new(max_assignments: usize, max_bytes: usize) -> Self {
        Self(Arc::new(Shared {
            started_ms: clock::epoch_ms(),
            state: Mutex::new(State {
                book: Book::new(max_assignments, max_bytes),
                flow: Flow::default(),
                restarts: BTreeMap::new(),
                draining_since_ms: None,
            }),
        }))
    }

    /// When it began, in milliseconds since the Unix epoch.
    pub fn started_ms(&self) -> u64 {
        self.0.started_ms
    }

    /// Takes an event in that happened at this time, in milliseconds since the Unix epoch.
    pub fn note(&self, event: &Event, at_ms: u64) {
        if event.message().is_empty() {
            return;
        }
        let mut state = self.state();
        let (meaning, before) = state.book.note(event, at_ms);
        // Of what is not remembered it is taken that it ran.
        let had_slot = before.is_none_or(Phase::has_slot);
        state.flow.note(meaning, event, had_slot, at_ms);
        match meaning {
            Meaning::ActorRestarted => {
                let actor = event.field("actor").and_then(|actor| actor.as_str());
                let name = actor.unwrap_or("unknown");
                if state.restarts.len() < MAX_ACTORS || state.restarts.contains_key(name) {
                    *state.restarts.entry(name.to_owned()).or_default() += 1;
                }
            }
            Meaning::ShuttingDown => {
                state.draining_since_ms.get_or_insert(at_ms);
            }
            _ => {}
        }
    }

    /// What is known of the assignments with this id, of all tenants or of one: at most `limit`, the newest first.
    pub fn find(&self, assignment_id: &str, tenant_id: Option<&str>, limit: usize) -> Vec<Found> {
        self.state().book.find(assignment_id, tenant_id, limit)
    }

    /// The jobs that run, the longest first: at most `limit`.
    pub fn running(&self, limit: usize) -> Vec<Running> {
        self.state().book.running(limit)
    }

    /// How much is remembered.
    pub fn memory(&self) -> Memory {
        self.state().book.memory()
    }

    /// A copy of what went through lately.
    pub fn flow(&self) -> Flow {
        self.state().flow.clone()
    }

    /// How often each part of the node was re-created.
    pub fn restarts(&self) -> BTreeMap<String, u64> {
        self.state().restarts.clone()
    }

    /// Since when the node leaves, in milliseconds since the Unix epoch.
    pub fn draining_since_ms(&self) -> Option<u64> {
        self.state().draining_since_ms
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Journal {
    fn observe(&self, event: &Event) {
        // Most events without a line tell nothing here: they do not ask for the time.
        if !event.message().is_empty() {
            self.note(event, clock::epoch_ms());
        }
    }
}

#[cfg(test)]
mod tests;
