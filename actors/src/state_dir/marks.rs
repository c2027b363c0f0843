//! Which assignments were running when a process died: the trace that a job leaves which kills its worker.
//!
//! Neighbours: who runs a job sets a mark before and drops it after; the node reads at start what was left. A mark is
//! one small write into a file of fixed records. It is in the system's memory then and survives kill -9; it is never
//! forced to disk, so after a loss of power marks may be missing or torn: those are ignored. Marks are hints for
//! quarantine: a mark that cannot be written never stops a job. A thread of its own writes, in the order of the requests:
//! a disk that hangs must hold up who waits for a mark, and nobody else.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use caf_protocol::ids::AssignmentKey;
use tokio::sync::oneshot;

use super::{DiskWait, StateDir, StateDirError};

/// The file.
const FILE: &str = "running";
/// Bytes of a record: magic, key, flag, checksum and room; divides a page, so that a kill cannot tear it.
const RECORD_BYTES: usize = 128;
/// What a record in use starts with.
const MAGIC: &[u8; 8] = b"cafmark1";
/// Digits of a key.
const KEY_BYTES: usize = 64;
/// Where the flag stands.
const FLAG_AT: usize = MAGIC.len() + KEY_BYTES;
/// Where the checksum stands: over everything before it.
const SUM_AT: usize = FLAG_AT + 8;
/// Most bytes read at start: more records than pools can have slots; a foreign file is not loaded whole.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// An assignment that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Which.
    pub key: AssignmentKey,
    /// Whether nothing else ran in the worker: then its death is this assignment's doing.
    pub alone: bool,
}

/// The file of marks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Marks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    requests: mpsc::Sender<Request>,
    book: Mutex<Book>,
    progress: Arc<Progress>,
}

#[derive(Debug)]
struct Book {
    free: Vec<u64>,
    records: u64,
}

/// What is written where; `done` hears of its end.
#[derive(Debug)]
struct Request {
    at: u64,
    bytes: Vec<u8>,
    done: Option<oneshot::Sender<()>>,
}

/// How the thread gets on.
#[derive(Debug, Default)]
struct Progress {
    unwritten: AtomicU64,
    disk: DiskWait,
}

/// The mark of one running assignment. Gone when dropped.
#[derive(Debug)]
#[must_use = "the mark is taken away when this is dropped"]
pub struct MarkGuard {
    marks: Marks,
    record: u64,
}

impl Marks {
    /// Opens the file with room for `records` marks, and returns those that a killed process left. They are cleared.
    ///
    /// # Errors
    /// When the file cannot be made, read or written.
    pub fn open(dir: &StateDir, records: usize) -> Result<(Self, Vec<Mark>), StateDirError> {
        let path: PathBuf = dir.path().join(FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(StateDirError::refused("open", &path))?;
        let left = read_left(&file, &path)?;
        let room = vec![0; records.saturating_mul(RECORD_BYTES)];
        file.set_len(0)
            // Written, not only counted: a mark must not fail later because the disk is full.
            .and_then(|()| file.write_all_at(&room, 0))
            .map_err(StateDirError::refused("write", &path))?;
        let records = records as u64;
        let book = Book {
            free: (0..records).rev().collect(),
            records,
        };
        let progress = Arc::<Progress>::default();
        let (requests, incoming) = mpsc::channel();
        let (writes, lock) = (Arc::clone(&progress), dir.clone());
        std::thread::Builder::new()
            .name("marks".to_owned())
            .spawn(move || {
                // Keeps the slot for as long as something may be written into it.
                let _lock = lock;
                write_all(&file, &incoming, &writes);
            })
            .map_err(StateDirError::refused("start a thread for", &path))?;
        let shared = Shared {
            requests,
            book: Mutex::new(book),
            progress,
        };
        Ok((Self(Arc::new(shared)), left))
    }

    /// Marks an assignment as running, for as long as the guard lives. When all records are in use the file grows. Dropped
    /// before it ends, it leaves no mark.
    pub async fn set(&self, mark: &Mark) -> MarkGuard {
        let record = self.book().take();
        let guard = MarkGuard {
            marks: self.clone(),
            record,
        };
        self.write(offset(record), encode(mark).to_vec()).await;
        guard
    }

    /// Takes all marks away: the process leaves of its own will, and nobody is to be blamed for its end.
    pub async fn clear(&self) {
        let records = usize::try_from(self.book().records).unwrap_or(0);
        // A mark that stays is looked into once more than needed.
        self.write(0, vec![0; records.saturating_mul(RECORD_BYTES)]).await;
    }

    /// Marks that could not be written since the start.
    pub fn unwritten(&self) -> u64 {
        self.0.progress.unwritten.load(Relaxed)
    }

    /// For how long the write has lasted that is going on.
    pub fn writing_for(&self) -> Duration {
        self.0.progress.disk.lasts()
    }

    async fn write(&self, at: u64, bytes: Vec<u8>) {
        let (done, is_done) = oneshot::channel();
        let done = Some(done);
        // The thread lives for as long as there is somebody to ask it.
        let _ = self.0.requests.send(Request { at, bytes, done });
        let _ = is_done.await;
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes until nobody can ask any more.
fn write_all(file: &File, incoming: &mpsc::Receiver<Request>, progress: &Progress) {
    while let Ok(Request { at, bytes, done }) = incoming.recv() {
        let written = progress.disk.during(|| file.write_all_at(&bytes, at));
        progress.unwritten.fetch_add(u64::from(written.is_err()), Relaxed);
        if let Some(done) = done {
            // Who waited may have given up.
            let _ = done.send(());
        }
    }
}

impl Book {
    fn take(&mut self) -> u64 {
        self.free.pop().unwrap_or_else(|| {
            self.records += 1;
            self.records - 1
        })
    }
}

impl Drop for MarkGuard {
    fn drop(&mut self) {
        let request = Request {
            at: offset(self.record),
            bytes: vec![0; RECORD_BYTES],
            done: None,
        };
        let _ = self.marks.0.requests.send(request);
        // At once: whoever takes it next writes after this.
        self.marks.book().free.push(self.record);
    }
}

fn offset(record: u64) -> u64 {
    record * RECORD_BYTES as u64
}

fn read_left(file: &File, path: &Path) -> Result<Vec<Mark>, StateDirError> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(StateDirError::refused("read", path))?;
    Ok(bytes.chunks_exact(RECORD_BYTES).filter_map(decode).collect())
}

fn encode(mark: &Mark) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    record[..MAGIC.len()].copy_from_slice(MAGIC);
    record[MAGIC.len()..FLAG_AT].copy_from_slice(mark.key.as_str().as_bytes());
    record[FLAG_AT] = u8::from(mark.alone);
    let sum = checksum(&record[..SUM_AT]);
    record[SUM_AT..SUM_AT + 8].copy_from_slice(&sum.to_le_bytes());
    record
}

/// The mark in a record; nothing when the record is free, torn or foreign.
fn decode(record: &[u8]) -> Option<Mark> {
    let whole = record.starts_with(MAGIC)
        && record.get(SUM_AT..SUM_AT + 8)? == checksum(record.get(..SUM_AT)?).to_le_bytes();
    let digits = std::str::from_utf8(record.get(MAGIC.len()..FLAG_AT)?).ok()?;
    let key = AssignmentKey::from_hex(digits)?;
    whole.then_some(Mark {
        key,
        alone: record.get(FLAG_AT) == Some(&1),
    })
}

/// FNV-1a, 64 bits: tells torn from whole; nobody here forges marks.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
