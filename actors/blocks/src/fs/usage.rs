//! How much a root holds, and whether there is room for more: the quota of `blocks.fs.quotas`.
//!
//! Neighbours: `put` reserves before it writes, `delete` tells what it removed, `roots` keeps one [`Usage`] for each root
//! with a quota. A thread of its own counts the whole root before the first write, and again when the count is old or a
//! write would be refused; in between the own writes are added.
//!
//! Exact for what this process writes. What others write is seen by the next count: several workers together may exceed a
//! quota by what they write within [`RECOUNT_AFTER`].

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use cap_std::fs::{Dir, MetadataExt};
use serde_json::json;

use super::leftovers::{is_temporary, remove_if_abandoned};
use crate::settings::FsQuotaSettings;
use crate::watch::Watch;

/// How old a count may be before another one is begun.
const RECOUNT_AFTER: Duration = Duration::from_secs(60);
/// How old a count may be before a write is refused by it: space that somebody has freed is seen, and refusals in a row
/// do not count a large root each time.
const REFUSE_AFTER: Duration = Duration::from_secs(1);
/// How long is waited for a count between two looks at the watch.
const LOOK: Duration = Duration::from_millis(50);

/// What lies in a root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Amount {
    /// Lengths of files together: what holes in them would take counts.
    bytes: u64,
    /// Files, directories and whatever else has a name.
    entries: u64,
}

impl Amount {
    fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            entries: self.entries.saturating_add(other.entries),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            entries: self.entries.saturating_sub(other.entries),
        }
    }
}

#[derive(Default)]
struct State {
    used: Amount,
    /// When the last count ended; nothing before the first.
    counted: Option<Instant>,
    is_counting: bool,
    /// Added since the count that runs began: it may have seen them or not, so that they count twice until the next one.
    added_meanwhile: Amount,
}

/// What a root holds.
pub(super) struct Usage {
    quota: FsQuotaSettings,
    state: Mutex<State>,
    changed: Condvar,
}

impl Usage {
    pub(super) fn new(quota: &FsQuotaSettings) -> Arc<Self> {
        Arc::new(Self {
            quota: quota.clone(),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Room for a file of `bytes`, with `entries` new names; returned when dropped, unless it was used.
    pub(super) fn reserve(
        self: &Arc<Self>,
        root: &Dir,
        bytes: u64,
        entries: u64,
        watch: &Watch,
    ) -> Result<Reservation, Failure> {
        let amount = Amount { bytes, entries };
        let is_old = |state: &State, age: Duration| state.counted.is_none_or(|at| at.elapsed() >= age);
        let mut state = self.lock();
        if is_old(&state, RECOUNT_AFTER) {
            self.count(&mut state, root)?;
            state = self.wait(state, |state| state.counted.is_some(), watch)?;
        }
        if !self.fits(state.used.plus(amount)) && is_old(&state, REFUSE_AFTER) {
            self.count(&mut state, root)?;
            state = self.wait(state, |state| !state.is_counting, watch)?;
        }
        let after = state.used.plus(amount);
        if !self.fits(after) {
            return Err(self.refusal(state.used));
        }
        state.used = after;
        if state.is_counting {
            state.added_meanwhile = state.added_meanwhile.plus(amount);
        }
        drop(state);
        let usage = Arc::clone(self);
        Ok(Reservation { usage, amount })
    }

    /// Something is gone.
    pub(super) fn removed(&self, bytes: u64) {
        let mut state = self.lock();
        state.used = state.used.minus(Amount { bytes, entries: 1 });
    }

    fn fits(&self, used: Amount) -> bool {
        used.bytes <= self.quota.max_bytes && used.entries <= self.quota.max_files
    }

    fn refusal(&self, used: Amount) -> Failure {
        Failure::new(
            ErrorCode::ResourceUnavailable,
            "the quota of the directory is used up",
        )
        .with("quota_bytes", json!(self.quota.max_bytes))
        .with("quota_files", json!(self.quota.max_files))
        .with("used_bytes", json!(used.bytes))
        .with("used_files", json!(used.entries))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        done: impl Fn(&State) -> bool,
        watch: &Watch,
    ) -> Result<MutexGuard<'a, State>, Failure> {
        while !done(&state) {
            watch.check()?;
            let waited = self.changed.wait_timeout(state, LOOK.min(watch.left()));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(state)
    }

    /// Begins a count, unless one runs.
    fn count(self: &Arc<Self>, state: &mut State, root: &Dir) -> Result<(), Failure> {
        if state.is_counting {
            return Ok(());
        }
        let failed = |error: std::io::Error| {
            let text = "what the directory holds cannot be counted";
            Failure::new(ErrorCode::ResourceUnavailable, text).internally(error)
        };
        let (usage, root) = (Arc::clone(self), root.try_clone().map_err(failed)?);
        let counting = move || {
            let used = amount_of(&root, usage.quota.max_files);
            let mut state = usage.lock();
            state.used = used.plus(state.added_meanwhile);
            state.added_meanwhile = Amount::default();
            state.counted = Some(Instant::now());
            state.is_counting = false;
            usage.changed.notify_all();
        };
        let thread = std::thread::Builder::new().name("fs.count".to_owned());
        thread.spawn(counting).map_err(failed)?;
        state.is_counting = true;
        Ok(())
    }
}

/// Counts a whole root, and removes what dead writers left. Beyond `max_entries` it is full whatever else it holds.
fn amount_of(root: &Dir, max_entries: u64) -> Amount {
    let mut amount = Amount::default();
    // Paths, not handles: a deep tree must not use up the process's descriptors.
    let mut ahead = vec![PathBuf::from(".")];
    while let Some(path) = ahead.pop() {
        let Ok(directory) = root.open_dir(&path) else {
            continue;
        };
        for entry in directory.entries().into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_leftover =
                name.to_str().is_some_and(is_temporary) && remove_if_abandoned(&directory, Path::new(&name));
            if is_leftover {
                continue;
            }
            // Of a symbolic link, the link itself.
            let Ok(metadata) = directory.symlink_metadata(&name) else {
                continue;
            };
            amount.entries += 1;
            if metadata.is_dir() {
                ahead.push(path.join(&name));
            } else {
                amount.bytes = amount.bytes.saturating_add(metadata.size());
            }
            if amount.entries > max_entries {
                return amount;
            }
        }
    }
    amount
}

/// Room that was promised.
pub(super) struct Reservation {
    usage: Arc<Usage>,
    amount: Amount,
}

impl Reservation {
    /// The file is there. `replaced`: the length of the one whose name it took.
    pub(super) fn used(mut self, replaced: Option<u64>) {
        self.amount = replaced.map_or_else(Amount::default, |bytes| Amount { bytes, entries: 1 });
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.usage.lock();
        state.used = state.used.minus(self.amount);
    }
}
