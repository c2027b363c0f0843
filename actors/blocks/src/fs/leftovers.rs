//! Temporary files: how they are called and locked, and how those of processes that died are found and removed.
//!
//! Neighbours: `put` writes into one, `usage` and `put` remove what is left. A writer holds a lock on its file, which
//! ends with its process, so that a temporary file without a lock belongs to nobody; the same holds between several workers
//! that share a directory. Where locks do not work, nothing is removed.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cap_std::fs::{Dir, File, MetadataExt, OpenOptions, OpenOptionsExt};
use rustix::fs::{FlockOperation, OFlags, flock};
use uuid::Uuid;

use crate::watch::Watch;

const PREFIX: &str = ".caf-";
const SUFFIX: &str = ".tmp";
/// How often a new temporary file is tried when another process took the one before for a leftover.
const TRIES: u32 = 8;
/// Most directories that are remembered as looked through; when there are more, they are looked through again.
const MAX_REMEMBERED: usize = 4_096;

/// Whether a file of this name is a temporary file. Jobs cannot name one.
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// A new temporary file, locked for as long as it is open.
pub(super) fn create(parent: &Dir) -> io::Result<(PathBuf, File)> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    for _ in 0..TRIES {
        let name = PathBuf::from(format!("{PREFIX}{}{SUFFIX}", Uuid::new_v4().simple()));
        let file = parent.open_with(&name, &options)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Somebody was quicker and is about to remove it, or has already.
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => continue,
            // A file system without locks: nobody removes there.
            Err(_) => return Ok((name, file)),
            Ok(()) if file.metadata()?.nlink() == 0 => continue,
            Ok(()) => return Ok((name, file)),
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// Removes a temporary file whose writer is dead. True when it is gone.
pub(super) fn remove_if_abandoned(parent: &Dir, name: &Path) -> bool {
    let mut options = OpenOptions::new();
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    options.read(true).custom_flags(flags.bits().cast_signed());
    let Ok(file) = parent.open_with(name, &options) else {
        return false;
    };
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    is_file
        && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        && parent.remove_file(name).is_ok()
}

/// The directories that this process has looked through already.
#[derive(Default)]
pub(super) struct Swept(Mutex<HashSet<(u64, u64)>>);

impl Swept {
    /// Removes what dead processes left in a directory, the first time that this process writes there. Gives up quietly when
    /// it is time to: the next process looks again.
    pub(super) fn once(&self, parent: &Dir, watch: &Watch) {
        let Ok(metadata) = parent.dir_metadata() else {
            return;
        };
        {
            let mut swept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if swept.len() >= MAX_REMEMBERED {
                swept.clear();
            }
            if !swept.insert((metadata.dev(), metadata.ino())) {
                return;
            }
        }
        for entry in parent.entries().into_iter().flatten().flatten() {
            if watch.check().is_err() {
                return;
            }
            let name = entry.file_name();
            if name.to_str().is_some_and(is_temporary) {
                remove_if_abandoned(parent, Path::new(&name));
            }
        }
    }
}
