//! Which assignments were running when a process died: the trace that a job leaves which kills its worker.
//!
//! Neighbours: who runs a job sets a mark before and drops it after; the node reads at start what was left. A mark is
//! one small write into a file of fixed records. It is in the system's memory then and survives kill -9; it is never
//! forced to disk, so after a loss of power marks may be missing or torn: those are ignored. Marks are hints for
//! quarantine: a mark that cannot be written never stops a job.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use caf_protocol::ids::AssignmentKey;

use super::{StateDir, StateDirError};

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
    file: File,
    book: Mutex<Book>,
    /// Keeps the slot.
    _dir: StateDir,
}

#[derive(Debug)]
struct Book {
    free: Vec<u64>,
    records: u64,
    unwritten: u64,
}

/// The mark of one running assignment. Gone when dropped.
#[derive(Debug)]
#[must_use = "the mark is taken away when this is dropped"]
pub struct MarkGuard {
    marks: Marks,
    record: Option<u64>,
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
            unwritten: 0,
        };
        let shared = Shared {
            file,
            book: Mutex::new(book),
            _dir: dir.clone(),
        };
        Ok((Self(Arc::new(shared)), left))
    }

    /// Marks an assignment as running, for as long as the guard lives. When all records are in use the file grows.
    pub fn set(&self, mark: &Mark) -> MarkGuard {
        let record = self.book().take();
        let written = self.0.file.write_all_at(&encode(mark), offset(record));
        let record = match written {
            Ok(()) => Some(record),
            Err(_) => {
                let mut book = self.book();
                book.unwritten += 1;
                book.free.push(record);
                None
            }
        };
        MarkGuard {
            marks: self.clone(),
            record,
        }
    }

    /// Takes all marks away: the process leaves of its own will, and nobody is to be blamed for its end.
    pub fn clear(&self) {
        let records = self.book().records;
        let nothing = vec![0; usize::try_from(records).unwrap_or(0).saturating_mul(RECORD_BYTES)];
        // A mark that stays is looked into once more than needed.
        let _ = self.0.file.write_all_at(&nothing, 0);
    }

    /// Marks that could not be written since the start.
    pub fn unwritten(&self) -> u64 {
        self.book().unwritten
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
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
        let Some(record) = self.record else { return };
        let cleared = self.marks.0.file.write_all_at(&[0; RECORD_BYTES], offset(record));
        let mut book = self.marks.book();
        // Free all the same: the next mark overwrites what could not be cleared.
        book.unwritten += u64::from(cleared.is_err());
        book.free.push(record);
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
