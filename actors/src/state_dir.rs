//! Where a worker keeps what must outlive it: one numbered directory in `worker.state_dir`, for itself alone.
//!
//! Neighbours: the node takes one at start and gives it to [`crate::outbox`] and [`marks`]. Several workers of a host
//! share `worker.state_dir`: each takes the first free number, and whoever comes later finds what a killed one left
//! there. The lock is the system's (`flock`), so it ends with the process however that ends. Nothing here ever deletes
//! a directory or looks into another worker's while that worker lives.

mod disk_wait;
pub mod marks;

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use self::disk_wait::DiskWait;
use crate::outbox;

/// Most workers that can share a directory: far above what one host runs; it bounds the search.
pub const MAX_SLOTS: u32 = 256;
/// The file that is locked.
const LOCK_FILE: &str = "lock";
/// Results belong to tenants: other users of the host have no business there.
const SLOT_MODE: u32 = 0o700;

/// Why there is no directory to keep things in. Fix what the text names and start again.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// The system refused.
    #[error("worker.state_dir: cannot {attempt} {}: {reason}", path.display())]
    Refused {
        /// What was tried, as a verb.
        attempt: &'static str,
        /// The directory or file.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// Something else has the name.
    #[error("worker.state_dir: {} is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// [`MAX_SLOTS`] workers run here.
    #[error("worker.state_dir: all {MAX_SLOTS} slots in {} are taken by running workers", path.display())]
    AllTaken {
        /// `worker.state_dir`.
        path: PathBuf,
    },
    /// What is in use has lost its name: a result stored there ends with the process, and another worker may take the
    /// same slot.
    #[error(
        "worker.state_dir: {} was removed or replaced under this worker, nothing stored outlives it: restart the worker",
        path.display()
    )]
    Replaced {
        /// The file that is not there any more, or is another one.
        path: PathBuf,
    },
}

impl StateDirError {
    fn refused(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |reason| Self::Refused {
            attempt,
            path: path.to_owned(),
            reason,
        }
    }
}

/// A directory that no other process uses. Cheap to clone; free again when the last clone is dropped, and what was
/// opened in it holds one.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
    slot: u32,
    lock: Arc<File>,
}

impl StateDir {
    /// Takes the first free slot in `base`; makes both when they are missing.
    ///
    /// # Errors
    /// When `base` is no directory or cannot be made or written, or all slots are taken.
    pub fn take(base: &Path) -> Result<Self, StateDirError> {
        make_dir(base, DirBuilder::new().recursive(true))?;
        for slot in 0..MAX_SLOTS {
            make_dir(&slot_path(base, slot), DirBuilder::new().mode(SLOT_MODE))?;
            if let Some(taken) = Self::try_take(base, slot)? {
                return Ok(taken);
            }
        }
        Err(StateDirError::AllTaken {
            path: base.to_owned(),
        })
    }

    /// Takes all other slots that nobody uses and that hold results, so that those of a worker that never comes back
    /// are published too. One whose outbox cannot be read is among them: opening it says why. Looks at files only for
    /// as long as it takes; call it again later to find what was left since.
    pub fn take_left_behind(base: &Path, own_slot: u32) -> Vec<Self> {
        (0..MAX_SLOTS)
            .filter(|slot| *slot != own_slot && outbox::exists_in(&slot_path(base, *slot)))
            .filter_map(|slot| Self::try_take(base, slot).ok().flatten())
            .filter(outbox::may_hold_entries)
            .collect()
    }

    /// The slot, unless another process has it.
    fn try_take(base: &Path, slot: u32) -> Result<Option<Self>, StateDirError> {
        let path = slot_path(base, slot);
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(StateDirError::refused("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self {
                path,
                slot,
                lock: Arc::new(lock),
            })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(reason)) => Err(StateDirError::refused("lock", &lock_path)(reason)),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its number.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Whether the name still leads to what is locked here. Asks the file system: may block.
    ///
    /// # Errors
    /// [`StateDirError::Replaced`] when it does not, or what the system refuses.
    pub fn is_in_place(&self) -> Result<(), StateDirError> {
        let path = self.path.join(LOCK_FILE);
        let opened = self
            .lock
            .metadata()
            .map_err(StateDirError::refused("look at", &path))?;
        still_leads_to(&path, FileId::from(&opened))
    }
}

/// Tells files apart whatever they are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl From<&Metadata> for FileId {
    fn from(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
        }
    }
}

/// Whether `path` is the name of the file `opened`, which somebody keeps open: so its number is not given away again.
pub(crate) fn still_leads_to(path: &Path, opened: FileId) -> Result<(), StateDirError> {
    let replaced = || StateDirError::Replaced {
        path: path.to_owned(),
    };
    match fs::metadata(path) {
        Ok(found) if FileId::from(&found) == opened => Ok(()),
        Ok(_) => Err(replaced()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Err(replaced())
        }
        Err(reason) => Err(StateDirError::refused("look at", path)(reason)),
    }
}

fn slot_path(base: &Path, slot: u32) -> PathBuf {
    base.join(slot.to_string())
}

/// Makes a directory unless it is there, and has the system remember it over a loss of power.
fn make_dir(path: &Path, builder: &DirBuilder) -> Result<(), StateDirError> {
    if path.is_dir() {
        return Ok(());
    }
    match builder.create(path) {
        Ok(()) => {}
        // Another worker was faster, or something else has the name.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return if path.is_dir() {
                Ok(())
            } else {
                Err(StateDirError::NotADirectory {
                    path: path.to_owned(),
                })
            };
        }
        Err(reason) => return Err(StateDirError::refused("create", path)(reason)),
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))
        .and_then(|parent| parent.sync_all())
        .map_err(StateDirError::refused("create", path))
}

#[cfg(test)]
pub(crate) mod tests;
