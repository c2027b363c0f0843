//! Opening the log: every segment is read, and what may not be whole is told from what is damaged.
//!
//! Neighbours: [`super`] has the open log. Nothing is changed before all of it was read; then only an end that was not
//! finished is cut off.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use super::{EXTENSION, Live, MODE, Segment, Segments, cannot_open, damaged, directory_in};
use crate::outbox::OutboxError;
use crate::outbox::record::{self, Frame, HEADER_BYTES, Header, NoHeader, Record};
use crate::state_dir::FileId;

/// What stands behind the last whole record of the last segment, and was cut off.
pub(in crate::outbox) struct Cut {
    pub(in crate::outbox) file: PathBuf,
    /// Its length.
    pub(in crate::outbox) bytes: u64,
    /// Where it began; 0 when not even the header was whole.
    end: u64,
}

impl Segments {
    /// Opens the log in a slot's directory, or makes it, and reads all of it; `forces` says whether it is ever forced to
    /// disk. An end that a killed process did not finish is cut off.
    pub(in crate::outbox) fn open(slot: &Path, forces: bool) -> Result<(Self, Option<Cut>), OutboxError> {
        let dir = directory_in(slot);
        let made = make_dir(slot, &dir).and_then(|()| File::open(&dir));
        let dir_file = made.map_err(|error| cannot_open(&dir, &error))?;
        let (mut log, cut) = Self::read_all(dir, dir_file)?;
        log.forces = forces;
        log.settle(cut.as_ref())
            .map_err(|error| cannot_open(&log.dir, &error))?;
        Ok((log, cut.filter(|cut| cut.bytes > 0)))
    }

    /// Reads all of it, and changes nothing.
    fn read_all(dir: PathBuf, dir_file: File) -> Result<(Self, Option<Cut>), OutboxError> {
        let numbers = numbers_in(&dir).map_err(|error| cannot_open(&dir, &error))?;
        let mut log = Self::empty(dir, dir_file);
        let mut cut = None;
        for (place, number) in numbers.iter().enumerate() {
            if place > 0 && numbers[place - 1] + 1 != *number {
                return Err(damaged(&log.path(number - 1), "the file is missing".to_owned()));
            }
            cut = log.load(*number, place + 1 == numbers.len())?;
        }
        log.unsynced_from = log.next_id;
        Ok((log, cut))
    }

    /// Cuts off what was not finished, and has what a killed process left forced to disk.
    fn settle(&self, cut: Option<&Cut>) -> io::Result<()> {
        match cut {
            Some(cut) if cut.end == 0 => fs::remove_file(&cut.file)?,
            Some(cut) => OpenOptions::new().write(true).open(&cut.file)?.set_len(cut.end)?,
            None => {}
        }
        match self.segments.last_key_value() {
            Some((newest, _)) if self.forces => File::open(self.path(*newest))?.sync_data(),
            _ => Ok(()),
        }
    }

    /// Reads one segment, the ones before it being read. Returns what stands behind its last record.
    fn load(&mut self, number: u64, is_newest: bool) -> Result<Option<Cut>, OutboxError> {
        let path = self.path(number);
        let failed = |error| cannot_open(&path, &error);
        let file = File::open(&path).map_err(failed)?;
        let opened = file.metadata().map_err(failed)?;
        let length = opened.len();
        let mut bytes =
            vec![0; usize::try_from(length).map_or(HEADER_BYTES, |length| length.min(HEADER_BYTES))];
        file.read_exact_at(&mut bytes, 0).map_err(failed)?;
        let header = match Header::read(&bytes) {
            Ok(header) if header.number == number => header,
            // Its process was killed before it had written anything.
            Err(NoHeader::Torn) if is_newest && length <= HEADER_BYTES as u64 => {
                return Ok(Some(Cut {
                    file: path,
                    bytes: length,
                    end: 0,
                }));
            }
            Err(NoHeader::Version(found)) => {
                return Err(OutboxError::OtherVersion {
                    file: path,
                    found: found.into(),
                    known: record::VERSION.into(),
                });
            }
            _ => {
                return Err(damaged(
                    &path,
                    "it does not begin as a segment of the outbox".to_owned(),
                ));
            }
        };
        bytes.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
        file.read_exact_at(&mut bytes[HEADER_BYTES..], HEADER_BYTES as u64)
            .map_err(failed)?;
        let end = self.read_records(header, &bytes, is_newest, &path)?;
        self.next_number = number + 1;
        self.names
            .change(|names| names.insert(path.clone(), FileId::from(&opened)));
        let (end, bytes) = (end as u64, length - end as u64);
        Ok((bytes > 0).then_some(Cut {
            file: path,
            bytes,
            end,
        }))
    }

    /// Takes note of what whole records say. Returns where they end: the end of the newest segment may be missing.
    fn read_records(
        &mut self,
        header: Header,
        bytes: &[u8],
        is_newest: bool,
        path: &Path,
    ) -> Result<usize, OutboxError> {
        let number = header.number;
        self.next_id = self.next_id.max(header.next);
        self.segments.insert(
            number,
            Segment {
                header: header.clone(),
                bytes: 0,
                live: 0,
            },
        );
        let mut at = HEADER_BYTES;
        while let Some(frame) = Frame::read(&bytes[at..], &header, at as u64) {
            self.note_record(number, at as u64, &frame)
                .map_err(|why| damaged(path, format!("the record at byte {at} makes no sense: {why}")))?;
            at += frame.length();
        }
        if at < bytes.len() && (!is_newest || record::has_record(&bytes[at..], &header, at as u64)) {
            let reason = format!("the record at byte {at} is not what was written");
            return Err(damaged(path, reason));
        }
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.bytes = at as u64;
        }
        Ok(at)
    }

    fn note_record(&mut self, segment: u64, at: u64, frame: &Frame<'_>) -> Result<(), record::Nonsense> {
        match frame.record()? {
            Record::Entry(id, content) => {
                let (stored_at_ms, content_bytes) = record::age_and_size(id, content)?;
                let live = Live {
                    segment,
                    at,
                    record_bytes: frame.length() as u64,
                    content_bytes,
                    stored_at_ms,
                };
                self.note(id, live);
            }
            Record::Removal(ids) => {
                for id in ids {
                    self.forget(id);
                }
            }
        }
        Ok(())
    }
}

/// Whether a log that nobody has open holds entries.
pub(in crate::outbox) fn holds_entries(slot: &Path) -> Result<bool, OutboxError> {
    let dir = directory_in(slot);
    let numbers = numbers_in(&dir).map_err(|error| cannot_open(&dir, &error))?;
    if numbers.is_empty() {
        return Ok(false);
    }
    let dir_file = File::open(&dir).map_err(|error| cannot_open(&dir, &error))?;
    Ok(Segments::read_all(dir, dir_file)?.0.entries() > 0)
}

/// Makes the directory unless it is there, and has the system remember it over a loss of power.
fn make_dir(slot: &Path, dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(MODE).create(dir) {
        Ok(()) => File::open(slot)?.sync_all(),
        Err(_) if dir.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Numbers of the segments, in order. Other files are left alone.
fn numbers_in(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = PathBuf::from(entry?.file_name());
        let number: Option<u64> = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        numbers.extend(number.filter(|_| path.extension().is_some_and(|extension| extension == EXTENSION)));
    }
    numbers.sort_unstable();
    Ok(numbers)
}
