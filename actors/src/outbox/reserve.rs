//! Room on the disk that is ours: without it a disk that our own entries filled could stay full, because what still lives
//! in a segment is copied before the segment can go.
//!
//! Neighbours: the writer gives the room up while it removes and copies, and takes it again before it calls the disk
//! usable. The content is zeros and never read.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Name of the file in the slot's directory.
const FILE: &str = "reserve";
/// Its size: as long as a segment of the log gets, so that what lives in one can be copied.
pub(super) const RESERVE_BYTES: u64 = 8 * 1024 * 1024;
/// Written at once.
const CHUNK: usize = 64 * 1024;

/// The file.
pub(super) struct Reserve {
    file: File,
    filled: u64,
}

impl Reserve {
    /// Opens the file; takes no room yet.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(dir.join(FILE))?;
        Ok(Self { file, filled: 0 })
    }

    /// Takes the room. What it got before an error it keeps.
    pub(super) fn fill(&mut self) -> io::Result<()> {
        while self.filled < RESERVE_BYTES {
            // Written: a file that is only long takes no room.
            self.file.write_all_at(&[0; CHUNK], self.filled)?;
            self.filled += CHUNK as u64;
        }
        Ok(())
    }

    /// Gives the room up.
    pub(super) fn release(&mut self) {
        // Where this fails there is less room than hoped for, which the next write finds out.
        let _ = self.file.set_len(0);
        self.filled = 0;
    }
}
