//! Results and dead letters, stored before they are published and removed after, so that kill -9 loses none.
//!
//! Neighbours: the publisher stores and removes, the node replays at start what earlier processes left, the source
//! pulls only while there is [`Outbox::has_room`]. One thread (`outbox/writer.rs`) owns the log (`outbox/segments.rs`, in
//! the worker's [`StateDir`]; its form is `outbox/record.rs`) and writes what waits together; when it forces to disk
//! is decided in `outbox/sync_plan.rs`. `outbox/reserve.rs` keeps room for copying on a disk that got full,
//! `outbox/earlier.rs` sees what a version before left.
//!
//! Invariants: a caller hears of a stored entry after it was written, never before: what the system has taken survives the
//! process. Nothing is dropped or refused because there is much of it: above `outbox.max_bytes` only pulling stops. Payloads
//! are let go after the write. A removal may get lost with the process: the entry is replayed then, which the stream's
//! message ids make harmless. This file knows no broker and never deletes or repairs what it cannot read.

mod earlier;
mod record;
mod reserve;
mod segments;
mod sync_plan;
mod writer;

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use caf_protocol::ids::AssignmentKey;
use serde::Serialize;
use tokio::sync::{oneshot, watch};

use crate::events::{self, Log};
use crate::settings::{OutboxSettings, OutboxSync};
use crate::sink::Outgoing;
use crate::state_dir::{DiskWait, FileId, StateDir, StateDirError, still_leads_to};
use reserve::Reserve;
use segments::{Names, Segments};

/// Most messages of one entry: a result and a dead letter, with room to spare.
pub const MAX_MESSAGES: usize = 256;
/// Most bytes of one entry: far above what a broker takes, far below what lengths in the log can say.
const MAX_ENTRY_BYTES: u64 = 1024 * 1024 * 1024;
/// So many removals wake the writer, which takes them along otherwise: bounds what waits.
const MANY_REMOVALS: usize = 1_024;

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
    /// It cannot be made or opened. Fix what the reason names.
    #[error("worker.state_dir: cannot open {}: {reason}", file.display())]
    CannotOpen {
        /// The file, or the directory of all.
        file: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// Written by another version. Start that one to publish what is in it, or move the file away.
    #[error(
        "worker.state_dir: {} is an outbox of form {found}, this version knows {known}: the version that wrote it publishes what is in it",
        file.display()
    )]
    OtherVersion {
        /// The file, or the directory of all.
        file: PathBuf,
        /// Its version; 1 is the SQLite database of versions before.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The content makes no sense. Move the file away to start without it; what it held can be lost.
    #[error("worker.state_dir: {} is damaged: {reason}", file.display())]
    Damaged {
        /// The file, or the directory of all.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A write failed, nothing of it is stored. It may be tried again.
    #[error("worker.state_dir: cannot write {}: {reason}", file.display())]
    NotWritten {
        /// The file, or the directory of all.
        file: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// A read failed. It may be tried again.
    #[error("worker.state_dir: cannot read {}: {reason}", file.display())]
    NotRead {
        /// The file, or the directory of all.
        file: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The thread is gone: a broken invariant, which the log tells. Only a new process helps.
    #[error("worker.state_dir: nothing writes {} any more", file.display())]
    Ended {
        /// The file, or the directory of all.
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

/// The outbox. Cheap to clone. When the last clone is gone, what waits is written and the slot is let go.
#[derive(Clone)]
pub struct Outbox {
    /// Unbounded, and bounded all the same: each store belongs to a held job, each removal to a stored entry.
    orders: mpsc::Sender<Order>,
    shared: Arc<Shared>,
}

/// What handles and writer both see.
struct Shared {
    file: PathBuf,
    /// Which directory that was when it was opened.
    opened: FileId,
    /// The files in it.
    names: Names,
    dir: StateDir,
    /// The first number that this process gives; smaller ones were left behind.
    first_own: EntryId,
    max_bytes: u64,
    entries: AtomicU64,
    bytes: AtomicU64,
    /// When the oldest entry was stored, in milliseconds since the Unix epoch; the greatest number when there is none.
    oldest_ms: AtomicU64,
    syncs: AtomicU64,
    /// To be removed with the next write: they do not wake the writer, unless somebody waits for room.
    removals: Mutex<Vec<EntryId>>,
    is_failing: AtomicBool,
    failure: Mutex<Option<String>>,
    has_room: watch::Sender<bool>,
    disk: DiskWait,
}

type Reply<T> = oneshot::Sender<Result<T, OutboxError>>;

/// What the writer is asked for.
enum Order {
    Store(NewEntry, Reply<EntryId>),
    /// There are removals.
    Remove,
    LeftBehind {
        after: Option<EntryId>,
        limit: usize,
        reply: Reply<Vec<Entry>>,
    },
    Flush(Reply<()>),
    #[cfg(test)]
    Meddle(Box<dyn FnOnce(&mut Segments) + Send>, Reply<()>),
}

impl Outbox {
    /// Opens the outbox in `dir`, or makes it, and starts its thread. Takes as long as reading what is in it: about a
    /// second per gigabyte. On a full disk it opens what is there, so that it can be published, and has no room.
    ///
    /// # Errors
    /// When it cannot be made or read, is damaged, or belongs to another version. It is left as it is. An end that was
    /// not finished is no damage: it is cut off, and the log tells.
    pub fn open(dir: &StateDir, settings: &OutboxSettings, log: &Log) -> Result<Self, OutboxError> {
        let file = segments::directory_in(dir.path());
        if earlier::may_hold_entries(dir.path()) {
            return Err(OutboxError::OtherVersion {
                file: earlier::file_in(dir.path()),
                found: 1,
                known: record::VERSION.into(),
            });
        }
        let (segments, cut) = Segments::open(dir.path(), settings.sync != OutboxSync::None)?;
        if let Some(cut) = cut {
            log.emit(events::outbox::end_cut(&cut.file, cut.bytes));
        }
        let cannot_open = |error: std::io::Error| OutboxError::CannotOpen {
            file: file.clone(),
            reason: error.to_string(),
        };
        let reserve = Reserve::open(dir.path()).map_err(cannot_open)?;
        let shared = Arc::new(Shared {
            first_own: segments.next_id(),
            max_bytes: settings.max_bytes,
            entries: AtomicU64::new(segments.entries()),
            bytes: AtomicU64::new(segments.content_bytes()),
            oldest_ms: AtomicU64::new(segments.oldest_stored_at_ms().unwrap_or(u64::MAX)),
            syncs: AtomicU64::new(0),
            removals: Mutex::default(),
            is_failing: AtomicBool::new(false),
            failure: Mutex::default(),
            disk: DiskWait::default(),
            has_room: watch::Sender::new(segments.content_bytes() < settings.max_bytes),
            opened: segments.directory_id().map_err(cannot_open)?,
            names: segments.names(),
            file: file.clone(),
            dir: dir.clone(),
        });
        let (orders, received) = mpsc::channel();
        let parts = writer::Parts {
            segments,
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

    /// Stores an entry. It is under way when this returns; the future says when it is written: from then on kill -9
    /// does not lose it (power loss: see `outbox.sync`). Dropping the future does not stop it.
    ///
    /// # Errors
    /// When it could not be written: the disk is full or broken. It may be stored again.
    pub fn store(
        &self,
        entry: NewEntry,
    ) -> impl Future<Output = Result<EntryId, OutboxError>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        if entry.messages.len() <= MAX_MESSAGES && record::size_of(&entry) <= MAX_ENTRY_BYTES {
            self.order(Order::Store(entry, reply));
        } else {
            let _ = reply.send(Err(OutboxError::NotWritten {
                file: self.shared.file.clone(),
                reason: format!("an entry has at most {MAX_MESSAGES} messages and {MAX_ENTRY_BYTES} bytes"),
            }));
        }
        self.answer(answer)
    }

    /// Removes an entry, soon. If the process dies before, the entry is found by the next one.
    pub fn remove(&self, id: EntryId) {
        let waiting = {
            let mut removals = self.shared.removals();
            removals.push(id);
            removals.len()
        };
        // Otherwise they go with what is stored next, or soon.
        if waiting % MANY_REMOVALS == 0 || !self.has_room() {
            self.order(Order::Remove);
        }
    }

    /// For how long the thread that owns the log has been at what it does now: longer than a moment, and the disk hangs.
    pub fn writing_for(&self) -> Duration {
        self.shared.disk.lasts()
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

    /// Waits until everything asked for before is written, and on disk unless `outbox.sync` is `none`. For the end
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
        // Numbers grow with time, unless the clock was set back.
        Some(self.shared.oldest_ms.load(Ordering::Relaxed)).filter(|at_ms| *at_ms != u64::MAX)
    }

    /// Whether more work may be taken on: there is less than `outbox.max_bytes` in it, and the last write worked.
    pub fn has_room(&self) -> bool {
        *self.shared.has_room.borrow()
    }

    /// [`Self::has_room`], now and whenever it changes.
    pub fn room_changes(&self) -> watch::Receiver<bool> {
        self.shared.has_room.subscribe()
    }

    /// Whether a later process finds what is stored here: the directory and what is in it still have their names. Asks
    /// the file system: may block.
    ///
    /// # Errors
    /// When they have not, or the system refuses to say.
    pub fn is_in_place(&self) -> Result<(), StateDirError> {
        self.shared.dir.is_in_place()?;
        still_leads_to(&self.shared.file, self.shared.opened)?;
        self.shared.names.are_in_place()
    }

    /// Where it is, for messages to people.
    pub fn file(&self) -> &Path {
        &self.shared.file
    }

    fn order(&self, order: Order) {
        // Without a writer the order is dropped and its reply with it, which is what `answer` sees.
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
    fn removals(&self) -> MutexGuard<'_, Vec<EntryId>> {
        self.removals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self) -> Option<String> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes note of how the last write went. Returns what it replaces.
    fn set_failure(&self, failure: Option<String>) -> Option<String> {
        self.is_failing.store(failure.is_some(), Ordering::Relaxed);
        let before = std::mem::replace(
            &mut *self.failure.lock().unwrap_or_else(PoisonError::into_inner),
            failure,
        );
        self.update_room();
        before
    }

    /// Only the writer calls this, so what it sees cannot change meanwhile.
    fn update_room(&self) {
        let has_room =
            self.bytes.load(Ordering::Relaxed) < self.max_bytes && !self.is_failing.load(Ordering::Relaxed);
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
    segments::directory_in(dir).is_dir() || earlier::file_in(dir).is_file()
}

/// Whether there may be something to publish. What cannot be read may hold something.
pub(crate) fn may_hold_entries(dir: &StateDir) -> bool {
    let dir = dir.path();
    earlier::may_hold_entries(dir)
        || segments::directory_in(dir).exists() && segments::holds_entries(dir).unwrap_or(true)
}

#[cfg(test)]
mod tests;
