//! When what was written is forced to disk: pure arithmetic on `outbox.sync` and the clock.
//!
//! Neighbours: the writer asks before and after each write and reports what it did.

use std::time::Duration;

use tokio::time::Instant;

use crate::settings::OutboxSync;

/// With `interval`: longest time that something is stored and not on disk.
pub(super) const SYNC_INTERVAL: Duration = Duration::from_millis(100);
/// Longest time that nothing but removals is not on disk: lost, they cost a second publication and no result.
pub(super) const REMOVALS_INTERVAL: Duration = Duration::from_secs(1);

/// What is not forced yet.
pub(super) struct SyncPlan {
    mode: OutboxSync,
    /// Since when something is written that is not on disk.
    behind_since: Option<Instant>,
}

impl SyncPlan {
    pub(super) fn new(mode: OutboxSync) -> Self {
        Self {
            mode,
            behind_since: None,
        }
    }

    /// Whether anything is ever forced.
    pub(super) fn ever_forces(&self) -> bool {
        self.mode != OutboxSync::None
    }

    /// Whether callers hear of stored entries only when these are on disk.
    pub(super) fn forces_stores(&self) -> bool {
        self.mode == OutboxSync::Always
    }

    /// Something was written at `now`.
    pub(super) fn written(&mut self, now: Instant) {
        if self.ever_forces() {
            self.behind_since.get_or_insert(now);
        }
    }

    /// All that was written is on disk.
    pub(super) fn synced(&mut self) {
        self.behind_since = None;
    }

    /// When to force; nothing when all is on disk that is to be. What was stored and is removed already need not be:
    /// `holds_entries` tells whether there is more than that.
    pub(super) fn due(&self, holds_entries: bool) -> Option<Instant> {
        let interval = if holds_entries {
            SYNC_INTERVAL
        } else {
            REMOVALS_INTERVAL
        };
        self.behind_since.map(|since| since + interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(1);

    #[test]
    fn with_interval_no_entry_stays_unforced_longer_than_it_and_removals_may() {
        let start = Instant::now();
        let mut plan = SyncPlan::new(OutboxSync::Interval);
        assert!(!plan.forces_stores() && plan.due(true).is_none());
        plan.written(start);
        plan.written(start + STEP);
        assert_eq!(plan.due(true), Some(start + SYNC_INTERVAL));
        assert_eq!(plan.due(false), Some(start + REMOVALS_INTERVAL));
        plan.synced();
        assert!(plan.due(true).is_none() && plan.due(false).is_none());
        plan.written(start + STEP);
        assert_eq!(plan.due(true), Some(start + STEP + SYNC_INTERVAL));
    }

    #[test]
    fn none_never_forces_and_always_forces_what_is_stored_before_anybody_hears() {
        let now = Instant::now();
        let mut none = SyncPlan::new(OutboxSync::None);
        let mut always = SyncPlan::new(OutboxSync::Always);
        none.written(now);
        always.written(now);
        assert!(none.due(true).is_none() && !none.ever_forces() && !none.forces_stores());
        assert!(always.forces_stores() && always.ever_forces());
    }
}
