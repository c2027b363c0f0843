//! Where approvals are kept: the edge that [`super::Approvals`] works on, and one in memory for tests.
//!
//! Neighbours: `nats::approval_store` is the real one. A store tries once per call, never waits without limit, and
//! knows nothing of what it keeps but names and revisions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use caf_protocol::approval::ApprovalId;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::broadcast;

use super::record::Entry;
use crate::claims::fleet::Revision;

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It holds another revision than the one expected.
    #[error("the approval has changed")]
    Conflict,
    /// It did not answer, or not as it should: it may have done it or not.
    #[error("approvals: {0}")]
    Unavailable(String),
}

/// What the store holds under a name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// The entry, if there is one and it can be read.
    pub entry: Option<Entry>,
    /// Its revision; 0 when there is none.
    pub revision: Revision,
}

/// What a store tells of its entries.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// This one is there now.
    Is(Box<Entry>, Revision),
    /// This one is gone.
    Gone(ApprovalId),
    /// Everything that was there at the beginning has been told.
    Complete,
}

/// Where approvals are kept.
pub trait ApprovalStore: Send + Sync + 'static {
    /// Writes an entry if the store holds the expected revision; 0 stands for "there is none".
    fn write(&self, entry: &Entry, expected: Revision) -> BoxFuture<'static, Result<Revision, StoreError>>;

    /// What the store holds. An entry that cannot be read has a revision but no content.
    fn read(&self, id: &ApprovalId) -> BoxFuture<'static, Result<Found, StoreError>>;

    /// Forgets an entry for good, if it still has this revision.
    fn remove(&self, id: &ApprovalId, expected: Revision) -> BoxFuture<'static, Result<(), StoreError>>;

    /// All entries that are there, then [`Change::Complete`], then what changes. Ends, or yields an error, when it must
    /// be asked again.
    fn changes(&self) -> BoxStream<'static, Result<Change, StoreError>>;
}

/// Changes that a reader of the store in memory may be behind before it must ask again.
const MOST_BEHIND: usize = 1024;

/// A store in memory, for tests: one fleet's, shared by its clones.
#[derive(Clone)]
pub struct MemoryStore(Arc<Kept>);

/// What is stored, and the last revision.
type Entries = (BTreeMap<ApprovalId, (Entry, Revision)>, Revision);

struct Kept {
    entries: Mutex<Entries>,
    changes: broadcast::Sender<Change>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self(Arc::new(Kept {
            entries: Mutex::default(),
            changes: broadcast::channel(MOST_BEHIND).0,
        }))
    }
}

impl MemoryStore {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_now(&self, entry: &Entry, expected: Revision) -> Result<Revision, StoreError> {
        let mut kept = self.entries();
        let (entries, last) = &mut *kept;
        let id = &entry.request.approval_id;
        if entries.get(id).map_or(0, |(_, revision)| *revision) != expected {
            return Err(StoreError::Conflict);
        }
        *last += 1;
        entries.insert(id.clone(), (entry.clone(), *last));
        // Nobody may be listening.
        let _ = self.0.changes.send(Change::Is(Box::new(entry.clone()), *last));
        Ok(*last)
    }

    fn remove_now(&self, id: &ApprovalId, expected: Revision) -> Result<(), StoreError> {
        let mut kept = self.entries();
        if kept.0.get(id).is_none_or(|(_, revision)| *revision != expected) {
            return Err(StoreError::Conflict);
        }
        kept.0.remove(id);
        let _ = self.0.changes.send(Change::Gone(id.clone()));
        Ok(())
    }
}

impl ApprovalStore for MemoryStore {
    fn write(&self, entry: &Entry, expected: Revision) -> BoxFuture<'static, Result<Revision, StoreError>> {
        std::future::ready(self.write_now(entry, expected)).boxed()
    }

    fn read(&self, id: &ApprovalId) -> BoxFuture<'static, Result<Found, StoreError>> {
        let found = self.entries().0.get(id).map(|(entry, revision)| Found {
            entry: Some(entry.clone()),
            revision: *revision,
        });
        std::future::ready(Ok(found.unwrap_or_default())).boxed()
    }

    fn remove(&self, id: &ApprovalId, expected: Revision) -> BoxFuture<'static, Result<(), StoreError>> {
        std::future::ready(self.remove_now(id, expected)).boxed()
    }

    fn changes(&self) -> BoxStream<'static, Result<Change, StoreError>> {
        let kept = self.entries();
        let later = self.0.changes.subscribe();
        let now: Vec<_> = kept.0.values().cloned().collect();
        let now = now
            .into_iter()
            .map(|(entry, revision)| Change::Is(Box::new(entry), revision));
        let now = stream::iter(now.chain([Change::Complete]).map(Ok));
        let later = stream::unfold(later, |mut later| async {
            let change = later.recv().await.ok()?;
            Some((Ok(change), later))
        });
        now.chain(later).boxed()
    }
}
