//! Since when a thread waits for the disk, for whoever must notice a disk that hangs.
//!
//! Neighbours: the threads that write marks and the outbox say when they are at it; the node looks now and then. Decides
//! nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What one thread is at.
#[derive(Debug, Default)]
pub(crate) struct DiskWait(Mutex<Option<Instant>>);

impl DiskWait {
    /// Does work that the disk may hold up.
    pub(crate) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        *self.since() = Some(Instant::now());
        let done = work();
        *self.since() = None;
        done
    }

    /// For how long the work has lasted that is going on.
    pub(crate) fn lasts(&self) -> Duration {
        self.since().map(|since| since.elapsed()).unwrap_or_default()
    }

    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_that_goes_on_lasts() {
        let wait = DiskWait::default();
        assert_eq!(wait.lasts(), Duration::ZERO);
        let lasted = wait.during(|| {
            let at = Instant::now();
            while at.elapsed() < Duration::from_millis(2) {
                std::thread::yield_now();
            }
            wait.lasts()
        });
        assert!(lasted >= Duration::from_millis(2));
        assert_eq!(wait.lasts(), Duration::ZERO);
    }
}
