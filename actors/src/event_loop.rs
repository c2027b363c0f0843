//! How late event loops are: a light task on each looks once a second.
//!
//! Neighbours: the node starts [`watch`] on every loop where anything is measured; its metrics page reads
//! [`LoopClock::blocked_for`], which also tells of a loop that does not wake up at all. Changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::whole_ms;
use crate::events::{self, Log};

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// When an event loop was last seen awake. Cheap to clone.
#[derive(Clone)]
pub struct LoopClock {
    name: Arc<str>,
    begun: Instant,
    /// Milliseconds from `begun` to when it is to wake up next.
    due_ms: Arc<AtomicU64>,
}

impl LoopClock {
    /// The clock of the loop of this name, which begins now.
    pub fn start(name: &str) -> Self {
        Self {
            name: name.into(),
            begun: Instant::now(),
            due_ms: Arc::new(AtomicU64::new(whole_ms(LOOK_EVERY))),
        }
    }

    /// Its name, such as `pipeline`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long its next look is overdue; nothing for a loop that is well.
    pub fn blocked_for(&self, now: Instant) -> Duration {
        let due = Duration::from_millis(self.due_ms.load(Relaxed));
        now.saturating_duration_since(self.begun + due)
    }

    fn next_due(&self, now: Instant) {
        let next = now.saturating_duration_since(self.begun) + LOOK_EVERY;
        self.due_ms.store(whole_ms(next), Relaxed);
    }
}

/// Measures the loop that it runs on, for as long as it is polled.
pub async fn watch(clock: LoopClock, log: Log) {
    loop {
        let due = Instant::now() + LOOK_EVERY;
        clock.next_due(Instant::now());
        tokio::time::sleep_until(due).await;
        let late = Instant::now().saturating_duration_since(due);
        log.measure(|| events::running::loop_woke(&clock.name, late));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_does_not_wake_up_is_overdue_the_longer_the_worse() {
        let clock = LoopClock::start("pipeline");
        let at = |ms| clock.begun + Duration::from_millis(ms);
        assert_eq!(clock.blocked_for(at(1_000)), Duration::ZERO);
        assert_eq!(clock.blocked_for(at(1_250)), Duration::from_millis(250));
        clock.next_due(at(1_250));
        assert_eq!(clock.blocked_for(at(2_250)), Duration::ZERO);
        assert_eq!(clock.blocked_for(at(9_250)), Duration::from_secs(7));
    }
}
