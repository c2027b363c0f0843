//! How often something was asked for, how often it failed, and how long it took: what discovery tells of an endpoint.
//!
//! Neighbours: the publisher counts answers, the lease keeper questions; `nats::discovery` reads. Plain numbers since the
//! start of the process, whatever the flags: metrics are another matter.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use caf_protocol::error_code::ErrorCode;

/// Counts of one endpoint. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Counts(Arc<Mutex<Counted>>);

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Requests that were answered.
    pub requests: u64,
    /// Those of them that were answered with an error.
    pub errors: u64,
    /// Code of the last error; never its message, which may hold what tenants sent.
    pub last_error: Option<ErrorCode>,
    /// Time that answering took, in all.
    pub took: Duration,
}

impl Counted {
    /// Time that answering takes on average.
    pub fn average(&self) -> Duration {
        let requests = u32::try_from(self.requests).unwrap_or(u32::MAX);
        self.took.checked_div(requests).unwrap_or_default()
    }
}

impl Counts {
    /// One more was answered.
    pub fn answered(&self, took: Duration, error: Option<ErrorCode>) {
        let mut counted = self.counted();
        counted.requests += 1;
        counted.took = counted.took.saturating_add(took);
        if error.is_some() {
            counted.errors += 1;
            counted.last_error = error;
        }
    }

    /// What was counted so far.
    pub fn view(&self) -> Counted {
        *self.counted()
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_requests_too_and_the_last_one_is_kept() {
        let counts = Counts::default();
        assert_eq!(counts.view().average(), Duration::ZERO);
        counts.answered(Duration::from_millis(10), Some(ErrorCode::HttpError));
        counts.answered(Duration::from_millis(30), None);
        let seen = counts.view();
        assert_eq!(
            (seen.requests, seen.errors, seen.last_error),
            (2, 1, Some(ErrorCode::HttpError))
        );
        assert_eq!(seen.average(), Duration::from_millis(20));
    }
}
