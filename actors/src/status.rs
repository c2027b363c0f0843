//! What the node is doing, as health page, heartbeat and decisions see it.
//!
//! Neighbours: edges and shutdown write it, everything reads it. Shared between threads; plain values, no events.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::consumption::Consumption;
use crate::counts::Counts;
use crate::held::HeldPermits;
use crate::pool::Deferrals;

/// After this long without a look at the checks, who looks is at fault: it looks every second.
const CHECKS_STALE: Duration = Duration::from_secs(10);
/// Said in place of a check's name when nobody has looked for [`CHECKS_STALE`].
const NOBODY_LOOKS: &str = "health_checks";

/// State of one node. Cheap to clone.
#[derive(Clone)]
pub struct NodeStatus(Arc<Shared>);

struct Shared {
    /// Whether it was ever tried to reach the broker.
    tried: AtomicBool,
    connected: AtomicBool,
    consuming: AtomicBool,
    draining: watch::Sender<bool>,
    draining_since: OnceLock<Instant>,
    /// Why nothing is taken on, in words for an operator.
    obstacle: Mutex<Option<String>>,
    held: HeldPermits,
    deferrals: Deferrals,
    consumption: Consumption,
    /// Answers to assignments.
    answered: Counts,
    /// Checks of the health page that fail, and when that was found.
    failing: Mutex<Option<(Instant, Vec<String>)>>,
}

impl NodeStatus {
    /// A node that has just begun.
    pub fn new(held: HeldPermits, deferrals: Deferrals) -> Self {
        Self(Arc::new(Shared {
            tried: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            consuming: AtomicBool::new(false),
            draining: watch::Sender::new(false),
            draining_since: OnceLock::new(),
            obstacle: Mutex::default(),
            held,
            deferrals,
            consumption: Consumption::default(),
            answered: Counts::default(),
            failing: Mutex::default(),
        }))
    }

    /// How assignments were answered.
    pub fn answered(&self) -> &Counts {
        &self.0.answered
    }

    /// These checks of the health page fail, as of `now`.
    pub fn set_failing(&self, checks: Vec<String>, now: Instant) {
        *self.0.failing.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, checks));
    }

    /// What [`NodeStatus::set_failing`] said last; nothing before the first time.
    pub fn failing(&self, now: Instant) -> Vec<String> {
        let failing = self.0.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match &*failing {
            Some((at, _)) if now.saturating_duration_since(*at) > CHECKS_STALE => {
                vec![NOBODY_LOOKS.to_owned()]
            }
            Some((_, checks)) => checks.clone(),
            None => Vec::new(),
        }
    }

    /// What the node holds.
    pub fn held(&self) -> &HeldPermits {
        &self.0.held
    }

    /// What the node has sent back to the broker for a while.
    pub fn deferrals(&self) -> &Deferrals {
        &self.0.deferrals
    }

    /// How assignments come in.
    pub fn consumption(&self) -> &Consumption {
        &self.0.consumption
    }

    /// Whether the broker is reachable.
    pub fn is_connected(&self) -> bool {
        self.0.connected.load(SeqCst)
    }

    /// Whether it was ever tried to reach the broker: a node that waits for its state directory has not.
    pub fn has_tried_to_connect(&self) -> bool {
        self.0.tried.load(SeqCst)
    }

    /// From now on it is tried to reach the broker.
    pub fn start_connecting(&self) {
        self.0.tried.store(true, SeqCst);
    }

    /// The broker came or went.
    pub fn set_connected(&self, connected: bool) {
        self.start_connecting();
        self.0.connected.store(connected, SeqCst);
    }

    /// Whether assignments are being asked for.
    pub fn is_consuming(&self) -> bool {
        self.0.consuming.load(SeqCst)
    }

    /// Asking for assignments began or ended.
    pub fn set_consuming(&self, consuming: bool) {
        self.0.consuming.store(consuming, SeqCst);
    }

    /// Whether the node shuts down.
    pub fn is_draining(&self) -> bool {
        *self.0.draining.borrow()
    }

    /// Tells when the node begins to shut down.
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.0.draining.subscribe()
    }

    /// How long the node has been shutting down; nothing while it does not.
    pub fn draining_for(&self) -> Option<Duration> {
        self.0.draining_since.get().map(Instant::elapsed)
    }

    /// The node begins to shut down; there is no way back.
    pub fn start_draining(&self) {
        let _ = self.0.draining_since.set(Instant::now());
        self.0.draining.send_replace(true);
    }

    /// Why nothing is taken on although the broker is there, such as a full disk.
    pub fn obstacle(&self) -> Option<String> {
        self.0
            .obstacle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Something keeps the node from taking work on.
    pub fn set_obstacle(&self, why: &str) {
        *self.0.obstacle.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
    }

    /// Nothing does any more.
    pub fn clear_obstacle(&self) {
        *self.0.obstacle.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Ready = connected, consuming, not draining, and nothing in the way.
    pub fn is_ready(&self) -> bool {
        self.is_connected() && self.is_consuming() && !self.is_draining() && self.obstacle().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::LimitSettings;

    #[test]
    fn checks_that_nobody_looks_at_any_more_are_a_fault_themselves() {
        let held = HeldPermits::new(&LimitSettings::default());
        let (status, start) = (NodeStatus::new(held, Deferrals::new(10)), Instant::now());
        assert!(status.failing(start).is_empty());
        status.set_failing(vec!["claims".to_owned()], start);
        assert_eq!(status.failing(start + CHECKS_STALE), ["claims"]);
        assert_eq!(status.failing(start + 2 * CHECKS_STALE), [NOBODY_LOOKS]);
    }
}
