//! Keeping the log short: segments in which nothing lives go, and what lives in the oldest moves to the end.
//!
//! Neighbours: [`super`] has the open log; the writer says when. Nothing is removed whose content is not written elsewhere
//! and, where anything is forced to disk, on disk there.

use std::fs::{self, File};
use std::io;

use super::{LEAST_SEGMENT_BYTES, Segment, Segments, WriteError};
use crate::outbox::record::{self, Frame};

impl Segments {
    /// Removes the oldest segments in which nothing lives.
    pub(in crate::outbox) fn drop_dead(&mut self) -> Result<(), WriteError> {
        while let Some((number, segment)) = self.segments.first_key_value()
            && segment.live == 0
            && self
                .writing
                .as_ref()
                .is_none_or(|writing| writing.number != *number)
        {
            let path = self.path(*number);
            self.names.change(|names| names.remove(&path));
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(WriteError::from(&error));
                }
                _ => drop(self.segments.pop_first()),
            }
        }
        if self.segments.is_empty() {
            // What they are about is gone.
            self.unwritten.clear();
        }
        Ok(())
    }

    /// Ends the newest segment when nothing lives and it is longer than this, so that it can be removed.
    pub(in crate::outbox) fn end_empty(&mut self, longer_than: u64) -> Result<(), WriteError> {
        if self.live.is_empty() && self.length() > longer_than {
            self.end_newest()?;
        }
        self.drop_dead()
    }

    pub(super) fn length(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    /// Whether the log is longer than twice what lives in it, and so much more.
    pub(in crate::outbox) fn is_wasteful(&self, spare_bytes: u64) -> bool {
        let counted = |segment: &Segment| segment.bytes.max(LEAST_SEGMENT_BYTES);
        let length: u64 = self.segments.values().map(counted).sum();
        self.segments.len() > 1 && length > 2 * self.record_bytes + spare_bytes
    }

    /// Copies what lives in the oldest segment to the end, and removes it.
    pub(in crate::outbox) fn copy_oldest(&mut self) -> Result<(), WriteError> {
        self.copy_to_end()?;
        self.drop_dead()
    }

    /// Copies what lives in the oldest segment to the end.
    pub(in crate::outbox) fn copy_to_end(&mut self) -> Result<(), WriteError> {
        let Some((&oldest, _)) = self.segments.first_key_value() else {
            return Ok(());
        };
        if self
            .writing
            .as_ref()
            .is_some_and(|writing| writing.number == oldest)
        {
            self.end_newest()?;
        }
        self.copy(oldest)?;
        if self.forces {
            self.sync()?;
        }
        Ok(())
    }

    /// Copies what lives in a segment, which is not the newest, to the end.
    pub(super) fn copy(&mut self, number: u64) -> Result<(), WriteError> {
        let (path, mut records) = (self.path(number), Vec::new());
        let file = File::open(&path).map_err(|error| WriteError::from(&error))?;
        for (id, live) in self.live.iter().filter(|(_, live)| live.segment == number) {
            let record = self.read(&file, live).map_err(|error| WriteError::from(&error))?;
            self.frame(&record, live)
                .map_err(|why| WriteError::broken(&format!("{} is damaged: {why}", path.display())))?;
            records.push((*id, live.at, record));
        }
        let Some(old) = self.segments.get(&number).map(|segment| segment.header.clone()) else {
            return Ok(());
        };
        if records.is_empty() {
            return Ok(());
        }
        let content = records.iter().map(|(_, _, record)| record.len() as u64).sum();
        let mut placed = Vec::with_capacity(records.len());
        self.append(content, |buffer, header, base, _| {
            for (id, at, record) in &records {
                if let Some(frame) = Frame::read(record, &old, *at) {
                    placed.push((*id, record::put_copy(buffer, header, base, &frame)));
                }
            }
        })?;
        let newest = self.writing.as_ref().map_or(number, |writing| writing.number);
        for (id, at) in placed {
            if let Some(live) = self.live.get_mut(&id) {
                (live.segment, live.at) = (newest, at);
                for (of, change) in [(number, -1), (newest, 1)] {
                    if let Some(segment) = self.segments.get_mut(&of) {
                        segment.live = segment.live.saturating_add_signed(change);
                    }
                }
            }
        }
        Ok(())
    }
}
