//! Results and dead letters, stored before they are published and removed after, so that kill -9 loses none.
//!
//! Neighbours: the publisher stores and removes, the node replays at start what earlier processes left, the source
//! pulls only while there is [`Outbox::has_room`]. One thread (`outbox/writer.rs`) owns the database
//! (`outbox/database.rs`, SQLite in the worker's [`StateDir`]) and commits what waits together; when it forces to disk
//! is decided in `outbox/sync_plan.rs`. `outbox/reserve.rs` keeps room for removals on a disk that got full.
//!
//! Invariants: a caller hears of a stored entry after its commit, never before. Nothing is dropped or refused because
//! there is much of it: above `outbox.max_bytes` only pulling stops. Payloads are let go after the commit. A removal may
//! get lost with the process: the entry is replayed then, which the stream's message ids make harmless. This file knows
//! no broker and never deletes or repairs a database that it cannot read.

mod database;
mod reserve;
mod sync_plan;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use caf_protocol::ids::AssignmentKey;
use serde::Serialize;
use tokio::sync::{oneshot, watch};

use crate::events::Log;
use crate::settings::OutboxSettings;
use crate::sink::Outgoing;
use crate::state_dir::{FileId, StateDir, StateDirError, still_leads_to};
use database::Database;
use reserve::Reserve;

/// Most messages of one entry: a result and a dead letter, with room to spare. Part of how they are numbered on disk.
pub const MAX_MESSAGES: usize = 256;

// ---- What goes in and out ----

/// Number of an entry; later ones have greater numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct EntryId(i64);

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The last word on one assignment, to be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEntry {
    /// The assignment.
    pub key: AssignmentKey,
    /// The worker that holds its claim.
    pub owner: String,
    /// Stream and sequence of the delivery, where there is one.
    pub position: Option<(Arc<str>, u64)>,
    /// What is to be published, in this order; at most [`MAX_MESSAGES`].
    pub messages: Vec<Arc<Outgoing>>,
    /// Now, in milliseconds since 1970.
    pub stored_at_ms: u64,
}

/// One that is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its number.
    pub id: EntryId,
    /// What was stored, byte for byte.
    pub content: NewEntry,
}

/// Why something could not be stored or read. Every text names `worker.state_dir` and the file.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OutboxError {
    /// The file cannot be made or opened. Fix what the reason names.
    #[error("worker.state_dir: cannot open {}: {reason}", file.display())]
    CannotOpen {
        /// The database.
        file: PathBuf,
        /// What the system or SQLite says.
        reason: String,
    },
    /// Written by another version. Start that version to publish what is in it, or move the file away.
    #[error(
        "worker.state_dir: {} has schema version {found}, this version knows {known}",
        file.display()
    )]
    OtherVersion {
        /// The database.
        file: PathBuf,
        /// Its version; 0 when something else wrote it.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The content makes no sense. Move the file away to start without it; what it held can be lost.
    #[error("worker.state_dir: {} is damaged: {reason}", file.display())]
    Damaged {
        /// The database.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A write failed, nothing of it is stored. It may be tried again.
    #[error("worker.state_dir: cannot write {}: {reason}", file.display())]
    NotWritten {
        /// The database.
        file: PathBuf,
        /// What the system or SQLite says.
        reason: String,
    },
    /// A read failed. It may be tried again.
    #[error("worker.state_dir: cannot read {}: {reason}", file.display())]
    NotRead {
        /// The database.
        file: PathBuf,
        /// What the system or SQLite says.
        reason: String,
    },
    /// The thread is gone: a broken invariant, which the log tells. Only a new process helps.
    #[error("worker.state_dir: nothing writes {} any more", file.display())]
    Ended {
        /// The database.
        file: PathBuf,
    },
}

/// What is in the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutboxSnapshot {
    /// Entries stored and not removed yet.
    pub entries: u64,
    /// Bytes of their messages.
    pub bytes: u64,
    /// `outbox.max_bytes`: pulling stops there.
    pub max_bytes: u64,
    /// Times that everything stored so far was forced to disk since the start.
    pub syncs: u64,
    /// Why the last write failed; nothing while writes work.
    pub failure: Option<String>,
}

// ---- State ----

/// The outbox. Cheap to clone. When the last clone is gone, what waits is committed and the slot is let go.
#[derive(Clone)]
pub struct Outbox {
    /// Unbounded, and bounded all the same: each store belongs to a held job, each removal to a stored entry.
    orders: mpsc::Sender<Order>,
    shared: Arc<Shared>,
}

/// What handles and writer both see.
struct Shared {
    file: PathBuf,
    /// Which file that was when it was opened.
    opened: FileId,
    dir: StateDir,
    /// The first number that this process gives; smaller ones were left behind.
    first_own: EntryId,
    max_bytes: u64,
    entries: AtomicU64,
    bytes: AtomicU64,
    /// When each entry was stored that is not removed yet, in milliseconds since the Unix epoch.
    stored_at_ms: Mutex<BTreeMap<EntryId, u64>>,
    syncs: AtomicU64,
    failure: Mutex<Option<String>>,
    has_room: watch::Sender<bool>,
}

type Reply<T> = oneshot::Sender<Result<T, OutboxError>>;

/// What the writer is asked for.
enum Order {
    Store(NewEntry, Reply<EntryId>),
    Remove(EntryId),
    LeftBehind {
        after: Option<EntryId>,
        limit: usize,
        reply: Reply<Vec<Entry>>,
    },
    Flush(Reply<()>),
    #[cfg(test)]
    Meddle(Box<dyn FnOnce(&rusqlite::Connection) + Send>, Reply<()>),
}

impl Outbox {
    /// Opens the outbox in `dir`, or makes it, and starts its thread. Takes as long as checking what is in it: about a
    /// second per gigabyte. On a full disk it opens what is there, so that it can be published, and has no room.
    ///
    /// # Errors
    /// When the file cannot be made or read, is damaged, or belongs to another version. It is left as it is.
    pub fn open(dir: &StateDir, settings: &OutboxSettings, log: &Log) -> Result<Self, OutboxError> {
        let file = database::file_in(dir.path());
        let database = Database::open(&file, settings.sync)?;
        let tally = database.tally()?;
        let cannot_open = |error: std::io::Error| OutboxError::CannotOpen {
            file: file.clone(),
            reason: error.to_string(),
        };
        let opened = std::fs::metadata(&file).map_err(cannot_open)?;
        let reserve = Reserve::open(dir.path()).map_err(cannot_open)?;
        let shared = Arc::new(Shared {
            first_own: tally.next,
            max_bytes: settings.max_bytes,
            entries: AtomicU64::new(tally.entries),
            bytes: AtomicU64::new(tally.bytes),
            stored_at_ms: Mutex::new(tally.stored_at_ms),
            syncs: AtomicU64::new(0),
            failure: Mutex::default(),
            has_room: watch::Sender::new(tally.bytes < settings.max_bytes),
            file: file.clone(),
            opened: FileId::from(&opened),
            dir: dir.clone(),
        });
        let (orders, received) = mpsc::channel();
        let parts = writer::Parts {
            database,
            reserve,
            orders: received,
            shared: Arc::clone(&shared),
            sync: settings.sync,
            log: log.clone(),
            dir: dir.clone(),
        };
        writer::start(parts).map_err(cannot_open)?;
        Ok(Self { orders, shared })
    }

    /// Stores an entry. It is under way when this returns; the future says when it is committed: from then on kill -9
    /// does not lose it (power loss: see `outbox.sync`). Dropping the future does not stop it.
    ///
    /// # Errors
    /// When it could not be written: the disk is full or broken, or memory is short. It may be stored again.
    pub fn store(
        &self,
        entry: NewEntry,
    ) -> impl Future<Output = Result<EntryId, OutboxError>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        if entry.messages.len() <= MAX_MESSAGES {
            self.order(Order::Store(entry, reply));
        } else {
            let _ = reply.send(Err(OutboxError::NotWritten {
                file: self.shared.file.clone(),
                reason: format!("an entry has at most {MAX_MESSAGES} messages"),
            }));
        }
        self.answer(answer)
    }

    /// Removes an entry, soon. If the process dies before, the entry is found by the next one.
    pub fn remove(&self, id: EntryId) {
        self.order(Order::Remove(id));
    }

    /// What earlier processes left, in the order it was stored, after the entry `after`: at most `limit` entries, and
    /// fewer when they are large. Nothing means the end.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn left_behind(
        &self,
        after: Option<EntryId>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Entry>, OutboxError>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        self.order(Order::LeftBehind { after, limit, reply });
        self.answer(answer)
    }

    /// Waits until everything asked for before is committed, and on disk unless `outbox.sync` is `none`. For the end
    /// of a process.
    ///
    /// # Errors
    /// When the last write failed: then removals may be missing.
    pub fn flush(&self) -> impl Future<Output = Result<(), OutboxError>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        self.order(Order::Flush(reply));
        self.answer(answer)
    }

    /// What is in it now.
    pub fn snapshot(&self) -> OutboxSnapshot {
        OutboxSnapshot {
            entries: self.shared.entries.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
            max_bytes: self.shared.max_bytes,
            syncs: self.shared.syncs.load(Ordering::Relaxed),
            failure: self.shared.failure(),
        }
    }

    /// When the oldest entry was stored, in milliseconds since the Unix epoch; nothing when it is empty.
    pub fn oldest_stored_at_ms(&self) -> Option<u64> {
        let stored = self.shared.stored_at_ms();
        // Numbers grow with time, unless the clock was set back.
        stored.first_key_value().map(|(_, at_ms)| *at_ms)
    }

    /// Whether more work may be taken on: there is less than `outbox.max_bytes` in it, and the last write worked.
    pub fn has_room(&self) -> bool {
        *self.shared.has_room.borrow()
    }

    /// [`Self::has_room`], now and whenever it changes.
    pub fn room_changes(&self) -> watch::Receiver<bool> {
        self.shared.has_room.subscribe()
    }

    /// Whether a later process finds what is stored here: the directory and the database still have their names. Asks
    /// the file system: may block.
    ///
    /// # Errors
    /// When they have not, or the system refuses to say.
    pub fn is_in_place(&self) -> Result<(), StateDirError> {
        self.shared.dir.is_in_place()?;
        still_leads_to(&self.shared.file, self.shared.opened)
    }

    /// The database, for messages to people.
    pub fn file(&self) -> &Path {
        &self.shared.file
    }

    fn order(&self, order: Order) {
        // Without a writer the order is dropped and its reply with it, which is what `answer` sees. A removal is
        // dropped then, and the entry stays, which is the safe side.
        let _ = self.orders.send(order);
    }

    fn answer<T: Send + 'static>(
        &self,
        answer: oneshot::Receiver<Result<T, OutboxError>>,
    ) -> impl Future<Output = Result<T, OutboxError>> + Send + use<T> {
        let shared = Arc::clone(&self.shared);
        async move {
            answer.await.unwrap_or_else(|_| {
                Err(OutboxError::Ended {
                    file: shared.file.clone(),
                })
            })
        }
    }
}

impl Shared {
    fn stored_at_ms(&self) -> MutexGuard<'_, BTreeMap<EntryId, u64>> {
        self.stored_at_ms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self) -> Option<String> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes note of how the last write went. Returns what it replaces.
    fn set_failure(&self, failure: Option<String>) -> Option<String> {
        let before = std::mem::replace(
            &mut *self.failure.lock().unwrap_or_else(PoisonError::into_inner),
            failure,
        );
        self.update_room();
        before
    }

    /// Only the writer calls this, so what it sees cannot change meanwhile.
    fn update_room(&self) {
        let has_room = self.bytes.load(Ordering::Relaxed) < self.max_bytes && self.failure().is_none();
        self.has_room.send_if_modified(|known| {
            let changes = *known != has_room;
            *known = has_room;
            changes
        });
    }
}

// ---- For finding slots that were left behind ----

/// Whether a directory has an outbox.
pub(crate) fn exists_in(dir: &Path) -> bool {
    database::file_in(dir).is_file()
}

/// Whether there may be something to publish. What cannot be read may hold something.
pub(crate) fn may_hold_entries(dir: &StateDir) -> bool {
    database::holds_entries(&database::file_in(dir.path())).unwrap_or(true)
}

#[cfg(test)]
mod tests;
