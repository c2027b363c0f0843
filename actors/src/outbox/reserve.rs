//! Room on the disk that is ours: without it a disk that our own entries filled could stay full, because what still lives
//! in a segment is copied before the segment can go.
//!
//! Neighbours: the writer gives the room up while it removes and copies, and takes it again before it calls the disk
//! usable. The content is zeros and never read.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, retry_on_intr};

/// Name of the file in the slot's directory.
const FILE: &str = "reserve";
/// Its size: as long as a segment of the log gets, so that what lives in one can be copied.
pub(super) const RESERVE_BYTES: u64 = 8 * 1024 * 1024;
/// Taken at once: an error keeps what was taken before.
const CHUNK: u64 = 1024 * 1024;
/// The same where zeros have to be written.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

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
            self.take(self.filled, CHUNK)?;
            self.filled += CHUNK;
        }
        Ok(())
    }

    /// Has the file system set the room aside, which writes nothing: eight megabytes of zeros were a fifth of a start. A file
    /// that is only long would take no room.
    fn take(&self, from: u64, bytes: u64) -> io::Result<()> {
        match retry_on_intr(|| fallocate(&self.file, FallocateFlags::empty(), from, bytes)) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.write_zeros(from, bytes),
            taken => Ok(taken?),
        }
    }

    fn write_zeros(&self, from: u64, bytes: u64) -> io::Result<()> {
        let chunks = (from..from + bytes).step_by(ZEROS.len());
        chunks
            .into_iter()
            .try_for_each(|at| self.file.write_all_at(&ZEROS, at))
    }

    /// Gives the room up.
    pub(super) fn release(&mut self) {
        // Where this fails there is less room than hoped for, which the next write finds out.
        let _ = self.file.set_len(0);
        self.filled = 0;
    }
}
