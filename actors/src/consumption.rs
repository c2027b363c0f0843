//! How assignments come in: what the source does about it, and what came of it.
//!
//! Neighbours: the source writes it, the watchdog compares it with what the broker says, health page and heartbeat show
//! it. Shared between threads; plain values, no events. Decides nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};

use serde::Serialize;
use tokio::time::Instant;

use crate::clock::whole_ms;

/// What the source does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// It sees to stream, consumer and subscription, or waits before it tries again.
    Preparing,
    /// It waits for room.
    NoRoom,
    /// It has room and has asked for as much.
    Pulling,
    /// The next message does not fit into the bytes that are free.
    TooLarge,
}

/// Shared by all who speak of consumption. Cheap to clone.
#[derive(Clone)]
pub struct Consumption(Arc<Shared>);

struct Shared {
    begun: Instant,
    /// Milliseconds from `begun` to the last delivery, plus one; 0 before the first.
    last_delivery: AtomicU64,
    deliveries: AtomicU64,
    heard: AtomicU64,
    phase: AtomicU8,
    pulls: AtomicUsize,
    subscriptions: AtomicU64,
    /// Messages that the broker has for us, plus one; 0 before it said.
    pending: AtomicU64,
}

impl Default for Consumption {
    fn default() -> Self {
        Self(Arc::new(Shared {
            begun: Instant::now(),
            last_delivery: AtomicU64::new(0),
            deliveries: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            phase: AtomicU8::new(Phase::Preparing as u8),
            pulls: AtomicUsize::new(0),
            subscriptions: AtomicU64::new(0),
            pending: AtomicU64::new(0),
        }))
    }
}

/// What operators see of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ConsumptionView {
    /// Milliseconds since the last assignment arrived; nothing before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_delivery_age_ms: Option<u64>,
    /// Requests for assignments that are open at the broker.
    pub pulls_outstanding: usize,
    /// How often asking was set up anew, after a failure or a stall.
    pub pull_rebuilds: u64,
}

/// A request that is open at the broker, until dropped.
pub struct OpenPull(Arc<Shared>);

impl Drop for OpenPull {
    fn drop(&mut self) {
        self.0.pulls.fetch_sub(1, SeqCst);
    }
}

impl Consumption {
    /// An assignment arrived.
    pub fn delivered(&self) {
        self.heard();
        self.0.deliveries.fetch_add(1, SeqCst);
        let since = whole_ms(self.0.begun.elapsed()).saturating_add(1);
        self.0.last_delivery.fetch_max(since, SeqCst);
    }

    /// The broker said something about a request: it knows it.
    pub fn heard(&self) {
        self.0.heard.fetch_add(1, SeqCst);
    }

    /// A request was sent.
    #[must_use = "it counts as open for as long as the value lives"]
    pub fn open_pull(&self) -> OpenPull {
        self.0.pulls.fetch_add(1, SeqCst);
        OpenPull(Arc::clone(&self.0))
    }

    /// Asking was set up, for the first time or anew.
    pub fn subscribed(&self) {
        self.0.subscriptions.fetch_add(1, SeqCst);
    }

    /// The source does something else now.
    pub fn set_phase(&self, phase: Phase) {
        self.0.phase.store(phase as u8, SeqCst);
    }

    /// What the source does.
    pub fn phase(&self) -> Phase {
        let stored = self.0.phase.load(SeqCst);
        let all = [Phase::Preparing, Phase::NoRoom, Phase::Pulling, Phase::TooLarge];
        let found = all.into_iter().find(|phase| *phase as u8 == stored);
        found.unwrap_or(Phase::Preparing)
    }

    /// The broker has so many messages for this worker and its fleet that nobody has got yet; nothing when it does not say.
    pub fn set_pending(&self, messages: Option<u64>) {
        let stored = messages.map_or(0, |messages| messages.saturating_add(1));
        self.0.pending.store(stored, SeqCst);
    }

    /// What [`Consumption::set_pending`] said last.
    pub fn pending(&self) -> Option<u64> {
        self.0.pending.load(SeqCst).checked_sub(1)
    }

    /// Assignments that arrived so far.
    pub fn deliveries(&self) -> u64 {
        self.0.deliveries.load(SeqCst)
    }

    /// How often the broker said something so far.
    pub fn times_heard(&self) -> u64 {
        self.0.heard.load(SeqCst)
    }

    /// What operators see.
    pub fn view(&self) -> ConsumptionView {
        let last = self.0.last_delivery.load(SeqCst).checked_sub(1);
        let now = whole_ms(self.0.begun.elapsed());
        ConsumptionView {
            last_delivery_age_ms: last.map(|last| now.saturating_sub(last)),
            pulls_outstanding: self.0.pulls.load(SeqCst),
            pull_rebuilds: self.0.subscriptions.load(SeqCst).saturating_sub(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ages_counts_and_open_pulls_are_told() {
        let consumption = Consumption::default();
        assert_eq!(consumption.view().last_delivery_age_ms, None);
        consumption.subscribed();
        let pull = consumption.open_pull();
        consumption.delivered();
        tokio::time::advance(Duration::from_millis(70)).await;
        consumption.subscribed();
        let expected = ConsumptionView {
            last_delivery_age_ms: Some(70),
            pulls_outstanding: 1,
            pull_rebuilds: 1,
        };
        assert_eq!(consumption.view(), expected);
        drop(pull);
        assert_eq!(consumption.view().pulls_outstanding, 0);
        assert_eq!((consumption.deliveries(), consumption.times_heard()), (1, 1));
        for phase in [Phase::NoRoom, Phase::Pulling, Phase::TooLarge, Phase::Preparing] {
            consumption.set_phase(phase);
            assert_eq!(consumption.phase(), phase);
        }
    }
}
