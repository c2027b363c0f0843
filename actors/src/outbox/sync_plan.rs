//! When a commit forces to disk: pure arithmetic on `outbox.sync` and the clock.
//!
//! Neighbours: the writer asks before each commit and reports what it did.

use std::time::Duration;

use tokio::time::Instant;

use crate::settings::OutboxSync;

/// With `interval`: longest time that something is stored and not on disk.
pub(super) const SYNC_INTERVAL: Duration = Duration::from_millis(100);

/// What was forced when.
pub(super) struct SyncPlan {
    mode: OutboxSync,
    /// When everything stored so far was last forced to disk.
    synced_at: Option<Instant>,
    /// Whether something was committed since, unforced.
    is_behind: bool,
}

impl SyncPlan {
    pub(super) fn new(mode: OutboxSync) -> Self {
        Self {
            mode,
            synced_at: None,
            is_behind: false,
        }
    }

    /// Whether a commit at `now` forces to disk, itself and all before it.
    pub(super) fn forces(&self, now: Instant) -> bool {
        match self.mode {
            OutboxSync::None => false,
            OutboxSync::Always => true,
            OutboxSync::Interval => self
                .synced_at
                .is_none_or(|at| now.saturating_duration_since(at) >= SYNC_INTERVAL),
        }
    }

    /// Whether anything is ever forced.
    pub(super) fn ever_forces(&self) -> bool {
        self.mode != OutboxSync::None
    }

    /// When a commit must be made just to force what was committed before; nothing when all of it is on disk.
    pub(super) fn due(&self) -> Option<Instant> {
        self.synced_at
            .filter(|_| self.is_behind && self.mode == OutboxSync::Interval)
            .map(|at| at + SYNC_INTERVAL)
    }

    /// A commit was made.
    pub(super) fn committed(&mut self, now: Instant, forced: bool) {
        if forced {
            self.synced_at = Some(now);
        }
        self.is_behind = !forced && self.ever_forces();
    }

    /// The log was emptied into the database. The next commit begins it anew and must be forced, whatever the time:
    /// on disk its first pages could otherwise mix with old ones that still carry valid checksums.
    pub(super) fn checkpointed(&mut self) {
        self.synced_at = None;
        self.is_behind = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(1);

    #[test]
    fn with_interval_nothing_stays_unforced_longer_than_it() {
        let start = Instant::now();
        let mut plan = SyncPlan::new(OutboxSync::Interval);
        assert!(plan.forces(start) && plan.due().is_none());
        plan.committed(start, true);
        assert!(plan.due().is_none());
        let soon = start + STEP;
        assert!(!plan.forces(soon));
        plan.committed(soon, false);
        assert_eq!(plan.due(), Some(start + SYNC_INTERVAL));
        assert!(plan.forces(start + SYNC_INTERVAL) && !plan.forces(start + SYNC_INTERVAL - STEP));
        plan.committed(start + SYNC_INTERVAL, true);
        assert!(plan.due().is_none());
    }

    #[test]
    fn with_interval_the_first_commit_after_a_checkpoint_is_forced() {
        let start = Instant::now();
        let mut plan = SyncPlan::new(OutboxSync::Interval);
        plan.committed(start, true);
        plan.committed(start, false);
        plan.checkpointed();
        assert!(plan.forces(start) && plan.due().is_none());
    }

    #[test]
    fn none_never_forces_and_always_always_does() {
        let now = Instant::now();
        let mut none = SyncPlan::new(OutboxSync::None);
        let mut always = SyncPlan::new(OutboxSync::Always);
        for _ in 0..3 {
            assert!(!none.forces(now) && always.forces(now));
            none.committed(now, false);
            always.committed(now, true);
            assert!(none.due().is_none() && always.due().is_none());
        }
        assert!(!none.ever_forces() && always.ever_forces());
    }
}
