//! Whether a failed attempt is followed by another, and when. Pure.

use std::time::Duration;

use caf_protocol::error_code::Category;
use caf_protocol::outcome::Failure;

/// Step of the CP1 backoff in milliseconds (contract 7.2).
const CP1_STEP_MS: u64 = 100;

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStep {
    /// Call again after this wait.
    RetryAfter(Duration),
    /// The failure is the outcome.
    GiveUp,
}

/// The plan of one job.
#[derive(Debug, Clone, Copy)]
pub struct RetryPlan {
    max_attempts: u32,
}

impl RetryPlan {
    /// CP1: every error of a running block is retried after 100·(attempt+1) ms, until `max_attempts` calls are made.
    /// What ended by cancellation or by a total limit is over.
    pub fn cp1(max_attempts: u32) -> Self {
        Self { max_attempts }
    }

    /// What follows when attempt number `attempt`, from 0, ended with `failure`.
    pub fn after(&self, failure: &Failure, attempt: u32) -> NextStep {
        let over = failure.total_limit || failure.code.category() == Category::Cancellation;
        if over || attempt + 1 >= self.max_attempts {
            return NextStep::GiveUp;
        }
        NextStep::RetryAfter(Duration::from_millis(CP1_STEP_MS * (u64::from(attempt) + 1)))
    }

    /// The same when the block was not called because its inputs could not be had: only what another try can mend is
    /// tried again. Validation that fails before the block runs never is.
    pub fn before_the_first_call(&self, failure: &Failure, attempt: u32) -> NextStep {
        if failure.is_retryable() {
            self.after(failure, attempt)
        } else {
            NextStep::GiveUp
        }
    }
}

#[cfg(test)]
mod tests {
    use caf_protocol::error_code::ErrorCode;

    use super::*;

    fn delays_ms(code: ErrorCode, max_attempts: u32) -> Vec<u128> {
        let plan = RetryPlan::cp1(max_attempts);
        (0..)
            .map_while(|attempt| match plan.after(&Failure::new(code, "x"), attempt) {
                NextStep::RetryAfter(delay) => Some(delay.as_millis()),
                NextStep::GiveUp => None,
            })
            .collect()
    }

    #[test]
    fn cp1_waits_100_then_200_then_300_ms_for_every_error() {
        for code in [
            ErrorCode::NetworkError,
            ErrorCode::PermissionDenied,
            ErrorCode::InternalError,
        ] {
            assert_eq!(delays_ms(code, 4), [100, 200, 300], "{code}");
        }
        assert_eq!(delays_ms(ErrorCode::HttpError, 2), [100]);
        assert!(delays_ms(ErrorCode::HttpError, 1).is_empty());
    }

    #[test]
    fn inputs_that_cannot_be_had_are_asked_for_again_only_if_that_can_help() {
        let plan = RetryPlan::cp1(2);
        let next = |code, attempt| plan.before_the_first_call(&Failure::new(code, "x"), attempt);
        for code in [ErrorCode::NetworkError, ErrorCode::ResourceUnavailable] {
            assert_eq!(
                next(code, 0),
                NextStep::RetryAfter(Duration::from_millis(100)),
                "{code}"
            );
            assert_eq!(next(code, 1), NextStep::GiveUp, "{code}");
        }
        for code in [
            ErrorCode::InvalidInput,
            ErrorCode::MissingRequiredField,
            ErrorCode::PermissionDenied,
            ErrorCode::InternalError,
        ] {
            assert_eq!(next(code, 0), NextStep::GiveUp, "{code}");
        }
    }

    #[test]
    fn cancellations_and_total_limits_are_never_retried() {
        assert!(delays_ms(ErrorCode::CancelledByUser, 4).is_empty());
        assert_eq!(
            RetryPlan::cp1(4).after(&Failure::timeout("statement limit"), 0),
            NextStep::GiveUp
        );
    }
}
