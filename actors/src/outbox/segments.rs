//! The outbox on disk: an append-only log in segments, `<slot>/outbox/<number>.log`, and where in it each entry lives.
//!
//! Neighbours: only the writer uses it, from its one thread; `opening` reads what is there, `record` knows the form of what
//! is written. Decides nothing about when.
//!
//! Segments go in the order of their numbers, the oldest first, and only when nothing lives in them: so the record of a
//! removal outlives the entry that it is about. What lives in the oldest can be copied to the end. Only the last segment
//! may end in the middle of a record, when its process was killed; what is damaged otherwise is left as it is.

mod opening;
mod shortening;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::record::{self, Frame, Header, Record};
use super::{Entry, EntryId, NewEntry, OutboxError};
use crate::state_dir::{FileId, StateDirError, still_leads_to};
pub(super) use opening::holds_entries;

/// Name of the directory in the slot's directory.
const DIRECTORY: &str = "outbox";
/// How names of segments end.
const EXTENSION: &str = "log";
/// Results belong to tenants, as in the slot's directory.
const MODE: u32 = 0o700;
/// A segment is not begun anew before it is about so long; one batch can be longer. Large enough that making and removing
/// files costs next to nothing per entry, small enough that copying what lives in one holds nobody up.
pub(super) const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;
/// The log may be so much longer than twice what lives in it.
pub(super) const SPARE_BYTES: u64 = 32 * 1024 * 1024;
/// A segment counts as this long at least: bounds the number of files that short lives leave.
const LEAST_SEGMENT_BYTES: u64 = 256 * 1024;
/// Most removals in one record; the others follow with the next write.
const MAX_REMOVALS: usize = 4_096;
/// Most bytes of entries read at once.
const MAX_READ_BYTES: u64 = 8 * 1024 * 1024;
/// The buffer is given back when a batch made it longer.
const KEPT_BUFFER_BYTES: usize = 1024 * 1024;

/// The directory of a slot's log.
pub(super) fn directory_in(slot: &Path) -> PathBuf {
    slot.join(DIRECTORY)
}

/// The open log.
pub(super) struct Segments {
    dir: PathBuf,
    /// Kept open: its number is not given away, and it can be forced to disk.
    dir_file: File,
    /// Whether files were made since the directory was last forced to disk.
    is_dir_behind: bool,
    segments: BTreeMap<u64, Segment>,
    /// The newest, while it takes more.
    writing: Option<Writing>,
    next_number: u64,
    next_id: EntryId,
    live: BTreeMap<EntryId, Live>,
    /// Bytes that all entries count as.
    content_bytes: u64,
    /// Bytes of their records.
    record_bytes: u64,
    /// Removed, and not written down yet.
    unwritten: Vec<EntryId>,
    /// Entries from here on may not be on disk.
    unsynced_from: EntryId,
    buffer: Vec<u8>,
    names: Names,
    /// Whether anything is ever forced to disk.
    forces: bool,
    /// [`SEGMENT_BYTES`], which tests make smaller.
    pub(super) segment_bytes: u64,
    /// Times that everything was.
    syncs: u64,
    /// What it did not take: whether the system still has it is not known, so what lives there is written once more.
    suspect: Option<u64>,
    /// What stands in for the size of the disk.
    #[cfg(test)]
    pub(super) room: Option<u64>,
}

struct Segment {
    header: Header,
    bytes: u64,
    /// Entries whose last copy is here, and that are not removed.
    live: u64,
}

struct Writing {
    number: u64,
    file: File,
    /// Whether a write that failed may have left something behind the end.
    is_untidy: bool,
}

/// Where an entry is.
struct Live {
    segment: u64,
    at: u64,
    record_bytes: u64,
    content_bytes: u64,
    stored_at_ms: u64,
}

/// Why a write failed, as far as the writer acts on it.
#[derive(Debug)]
pub(super) struct WriteError {
    pub(super) reason: String,
    /// Whether a smaller write may work: room is short, nothing is broken.
    pub(super) is_shortage: bool,
}

/// The files of the log, for whoever looks whether they are still there.
#[derive(Clone, Default)]
pub(super) struct Names(Arc<Mutex<BTreeMap<PathBuf, FileId>>>);

impl Names {
    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<PathBuf, FileId>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether all files have their names. May block.
    pub(super) fn are_in_place(&self) -> Result<(), StateDirError> {
        for (path, opened) in self.change(|names| names.clone()) {
            let found = still_leads_to(&path, opened);
            // One that was removed by us meanwhile was taken off the list before.
            if found.is_err() && self.change(|names| names.get(&path) == Some(&opened)) {
                return found;
            }
        }
        Ok(())
    }
}

impl Segments {
    fn empty(dir: PathBuf, dir_file: File) -> Self {
        Self {
            dir,
            dir_file,
            is_dir_behind: false,
            segments: BTreeMap::new(),
            writing: None,
            next_number: 1,
            next_id: EntryId(1),
            live: BTreeMap::new(),
            content_bytes: 0,
            record_bytes: 0,
            unwritten: Vec::new(),
            unsynced_from: EntryId(1),
            buffer: Vec::new(),
            names: Names::default(),
            forces: false,
            segment_bytes: SEGMENT_BYTES,
            syncs: 0,
            suspect: None,
            #[cfg(test)]
            room: None,
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:010}.{EXTENSION}"))
    }

    // ---- What is in it ----

    pub(super) fn entries(&self) -> u64 {
        self.live.len() as u64
    }

    pub(super) fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    pub(super) fn oldest_stored_at_ms(&self) -> Option<u64> {
        self.live.first_key_value().map(|(_, live)| live.stored_at_ms)
    }

    /// The number of the next entry.
    pub(super) fn next_id(&self) -> EntryId {
        self.next_id
    }

    pub(super) fn names(&self) -> Names {
        self.names.clone()
    }

    pub(super) fn directory_id(&self) -> io::Result<FileId> {
        Ok(FileId::from(&self.dir_file.metadata()?))
    }

    /// Whether something is stored that may not be on disk.
    pub(super) fn holds_unsynced(&self) -> bool {
        let newest = self.live.last_key_value();
        newest.is_some_and(|(id, _)| *id >= self.unsynced_from)
    }

    /// Whether removals are not written down yet.
    pub(super) fn has_unwritten(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// What was left by earlier processes, between two numbers.
    pub(super) fn left(
        &self,
        after: Option<EntryId>,
        below: EntryId,
        limit: usize,
    ) -> Result<Vec<Entry>, OutboxError> {
        let from = after.map_or(EntryId(i64::MIN), |id| EntryId(id.0 + 1)).min(below);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let mut open: Option<(u64, File)> = None;
        for (id, live) in self.live.range(from..below).take(limit) {
            if bytes >= MAX_READ_BYTES {
                break;
            }
            bytes += live.content_bytes;
            let path = self.path(live.segment);
            let (_, file) = match open.take_if(|(number, _)| *number == live.segment) {
                Some(kept) => open.insert(kept),
                None => open.insert((
                    live.segment,
                    File::open(&path).map_err(|error| not_read(&path, &error))?,
                )),
            };
            let record = self.read(file, live).map_err(|error| not_read(&path, &error))?;
            let entry = self
                .frame(&record, live)
                .and_then(|frame| match frame.record()? {
                    Record::Entry(found, content) if found == *id => record::entry(found, content),
                    _ => Err("another record stands where an entry was"),
                })
                .map_err(|why| damaged(&path, why.to_owned()))?;
            entries.push(entry);
        }
        Ok(entries)
    }

    fn read(&self, file: &File, live: &Live) -> io::Result<Vec<u8>> {
        let mut record = vec![0; usize::try_from(live.record_bytes).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut record, live.at)?;
        Ok(record)
    }

    fn frame<'a>(&self, record: &'a [u8], live: &Live) -> Result<Frame<'a>, record::Nonsense> {
        let segment = self.segments.get(&live.segment).ok_or("its segment is gone")?;
        Frame::read(record, &segment.header, live.at).ok_or("an entry is not what was written")
    }

    // ---- Changes ----

    fn note(&mut self, id: EntryId, live: Live) {
        // A copy takes the place of the original.
        self.forget(id);
        self.next_id = self.next_id.max(EntryId(id.0.saturating_add(1)));
        self.content_bytes += live.content_bytes;
        self.record_bytes += live.record_bytes;
        if let Some(segment) = self.segments.get_mut(&live.segment) {
            segment.live += 1;
        }
        self.live.insert(id, live);
    }

    /// Returns whether it was there.
    fn forget(&mut self, id: EntryId) -> bool {
        self.next_id = self.next_id.max(EntryId(id.0.saturating_add(1)));
        let Some(live) = self.live.remove(&id) else {
            return false;
        };
        self.content_bytes -= live.content_bytes;
        self.record_bytes -= live.record_bytes;
        if let Some(segment) = self.segments.get_mut(&live.segment) {
            segment.live -= 1;
        }
        true
    }

    /// Removes entries. It is written down with the next write.
    pub(super) fn remove(&mut self, ids: impl IntoIterator<Item = EntryId>) {
        for id in ids {
            if self.forget(id) {
                self.unwritten.push(id);
            }
        }
    }

    /// Writes removals down and adds entries, in one write: all of it or nothing. Returns the number of the first entry.
    pub(super) fn write<'a>(
        &mut self,
        entries: impl ExactSizeIterator<Item = &'a NewEntry> + Clone,
    ) -> Result<EntryId, WriteError> {
        let first = self.next_id;
        let content: u64 = entries.clone().map(record::size_of).sum();
        let removals = self.unwritten.len().min(MAX_REMOVALS);
        let mut placed = Vec::with_capacity(entries.len());
        self.append(content, |buffer, header, base, unwritten| {
            if removals > 0 {
                record::put_removal(buffer, header, base, &unwritten[..removals]);
            }
            for (id, entry) in (first.0..).zip(entries.clone()) {
                let before = buffer.len();
                let at = record::put_entry(buffer, header, base, EntryId(id), entry);
                placed.push((at, (buffer.len() - before) as u64));
            }
        })?;
        self.unwritten.drain(..removals);
        let segment = self.writing.as_ref().map_or(0, |writing| writing.number);
        for ((id, entry), (at, record_bytes)) in (first.0..).zip(entries).zip(placed) {
            self.note(
                EntryId(id),
                Live {
                    segment,
                    at,
                    record_bytes,
                    content_bytes: record::size_of(entry),
                    stored_at_ms: entry.stored_at_ms,
                },
            );
        }
        Ok(first)
    }

    /// Writes what `fill` puts into the buffer to the end of the log; about `content` bytes.
    fn append(
        &mut self,
        content: u64,
        fill: impl FnOnce(&mut Vec<u8>, &Header, u64, &[EntryId]),
    ) -> Result<(), WriteError> {
        let newest = self
            .writing
            .as_ref()
            .and_then(|writing| self.segments.get(&writing.number));
        if newest.is_some_and(|newest| newest.bytes + content > self.segment_bytes) {
            self.end_newest()?;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let outcome = match &self.writing {
            Some(Writing { number, .. }) => match self.segments.get(number) {
                Some(Segment { header, bytes, .. }) => {
                    let base = *bytes;
                    fill(&mut buffer, header, base, &self.unwritten);
                    self.put(&buffer, base)
                }
                None => Err(WriteError::broken("the newest segment is not known")),
            },
            None => {
                let header = Header::new(self.next_number, self.next_id, uuid::Uuid::new_v4().as_fields().0);
                header.put(&mut buffer);
                fill(&mut buffer, &header, 0, &self.unwritten);
                self.begin(header, &buffer)
            }
        };
        if buffer.capacity() <= KEPT_BUFFER_BYTES {
            self.buffer = buffer;
        }
        outcome
    }

    /// Nothing more is written to the newest segment: all of it must be whole from now on.
    fn end_newest(&mut self) -> Result<(), WriteError> {
        if self.forces && self.writing.is_some() {
            self.sync()?;
        }
        self.writing = None;
        Ok(())
    }

    /// Writes to the newest segment.
    fn put(&mut self, bytes: &[u8], at: u64) -> Result<(), WriteError> {
        #[cfg(test)]
        self.check_room(bytes.len())?;
        let Some(writing) = &mut self.writing else {
            return Err(WriteError::broken("there is no newest segment"));
        };
        if writing.is_untidy {
            writing
                .file
                .set_len(at)
                .map_err(|error| WriteError::from(&error))?;
        }
        writing.is_untidy = true;
        if let Err(error) = writing.file.write_all_at(bytes, at) {
            // Behind the end nothing may stand that could be taken for damage.
            writing.is_untidy = writing.file.set_len(at).is_err();
            return Err(WriteError::from(&error));
        }
        writing.is_untidy = false;
        if let Some(segment) = self.segments.get_mut(&writing.number) {
            segment.bytes = at + bytes.len() as u64;
        }
        Ok(())
    }

    /// Makes the next segment, with these first bytes.
    fn begin(&mut self, header: Header, bytes: &[u8]) -> Result<(), WriteError> {
        #[cfg(test)]
        self.check_room(bytes.len())?;
        let path = self.path(header.number);
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            // One that could not be removed after it could not be written.
            .truncate(true)
            .open(&path)
            .and_then(|file| Ok((file.metadata()?, file)));
        let (opened, file) = made.map_err(|error| WriteError::from(&error))?;
        if let Err(error) = file.write_all_at(bytes, 0) {
            let _ = fs::remove_file(&path);
            return Err(WriteError::from(&error));
        }
        self.names
            .change(|names| names.insert(path, FileId::from(&opened)));
        let number = header.number;
        self.next_number = number + 1;
        self.is_dir_behind = true;
        self.segments.insert(
            number,
            Segment {
                header,
                bytes: bytes.len() as u64,
                live: 0,
            },
        );
        self.writing = Some(Writing {
            number,
            file,
            is_untidy: false,
        });
        Ok(())
    }

    /// Writes so many bytes of nothing behind the end, and takes them away; for whether writing works.
    pub(super) fn probe(&mut self, bytes: u64) -> Result<(), WriteError> {
        if self.writing.is_none() {
            self.append(0, |_, _, _, _| {})?;
        }
        #[cfg(test)]
        self.check_room(usize::try_from(bytes).unwrap_or(usize::MAX))?;
        let newest = self.writing.as_mut().zip(self.segments.last_key_value());
        let Some((writing, (_, segment))) = newest else {
            return Err(WriteError::broken("there is no newest segment"));
        };
        writing.is_untidy = true;
        let zeros = vec![0; usize::try_from(bytes).unwrap_or(0)];
        let written = writing.file.write_all_at(&zeros, segment.bytes).and_then(|()| {
            if self.forces {
                writing.file.sync_data()
            } else {
                Ok(())
            }
        });
        let cut = writing.file.set_len(segment.bytes);
        writing.is_untidy = cut.is_err();
        written.and(cut).map_err(|error| WriteError::from(&error))
    }

    /// Forces everything written so far to disk.
    pub(super) fn sync(&mut self) -> Result<(), WriteError> {
        if let Some(number) = self.suspect {
            if self
                .writing
                .as_ref()
                .is_some_and(|writing| writing.number == number)
            {
                self.writing = None;
            }
            self.copy(number)?;
        }
        if let Err(error) = self.force() {
            self.is_dir_behind = true;
            self.suspect = self.writing.as_ref().map(|writing| writing.number);
            return Err(WriteError::from(&error));
        }
        self.suspect = None;
        self.unsynced_from = self.next_id;
        self.syncs += 1;
        Ok(())
    }

    fn force(&mut self) -> io::Result<()> {
        if let Some(writing) = &self.writing {
            writing.file.sync_data()?;
        }
        if std::mem::take(&mut self.is_dir_behind) {
            self.dir_file.sync_all()?;
        }
        Ok(())
    }

    /// Times that everything written so far was forced to disk.
    pub(super) fn syncs(&self) -> u64 {
        self.syncs
    }

    #[cfg(test)]
    fn check_room(&self, bytes: usize) -> Result<(), WriteError> {
        if self.room.is_some_and(|room| self.length() + bytes as u64 > room) {
            return Err(WriteError::from(&io::ErrorKind::StorageFull.into()));
        }
        Ok(())
    }
}

// ---- What went wrong ----

/// What is said of a full disk.
const NO_SPACE: &str = "no space left on the disk";

impl WriteError {
    fn broken(reason: &str) -> Self {
        Self {
            reason: reason.to_owned(),
            is_shortage: false,
        }
    }
}

impl From<&io::Error> for WriteError {
    fn from(error: &io::Error) -> Self {
        let is_shortage = matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        );
        Self {
            reason: reason(error),
            is_shortage,
        }
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull => NO_SPACE.to_owned(),
        _ => error.to_string(),
    }
}

fn cannot_open(file: &Path, error: &io::Error) -> OutboxError {
    OutboxError::CannotOpen {
        file: file.to_owned(),
        reason: reason(error),
    }
}

fn not_read(file: &Path, error: &io::Error) -> OutboxError {
    OutboxError::NotRead {
        file: file.to_owned(),
        reason: error.to_string(),
    }
}

fn damaged(file: &Path, reason: String) -> OutboxError {
    OutboxError::Damaged {
        file: file.to_owned(),
        reason,
    }
}
