//! Which limit ended a job or one of its calls, and what the caller is told of it (design, section 5).

use std::time::Duration;

use caf_protocol::limit::{Operation, OperationLimit, RanOut};
use caf_protocol::outcome::Failure;
use tokio::time::Instant;

/// A limit on a job, or on one call of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The deadline of the assignment.
    Deadline,
    /// The retry policy's budget for all calls and waits.
    RetryBudget {
        /// Its length in milliseconds.
        limit_ms: u64,
    },
    /// The timeout policy's total for all calls and waits.
    TotalTime {
        /// Its length in milliseconds.
        limit_ms: u64,
    },
    /// The same total, where each call has it for itself.
    TotalTimeOfOneCall {
        /// Its length in milliseconds.
        limit_ms: u64,
    },
}

impl Limit {
    /// How long it is; nothing for the deadline, which is a point in time.
    pub fn length(self) -> Option<Duration> {
        match self {
            Self::Deadline => None,
            Self::RetryBudget { limit_ms }
            | Self::TotalTime { limit_ms }
            | Self::TotalTimeOfOneCall { limit_ms } => Some(Duration::from_millis(limit_ms)),
        }
    }

    /// The fact that it ran out when its job, or the call, had taken so long.
    pub fn ran_out(self, taken: Duration) -> RanOut {
        let operation = match self {
            Self::Deadline => return RanOut::Deadline,
            Self::RetryBudget { .. } => Operation::RetryBudget,
            Self::TotalTime { .. } | Self::TotalTimeOfOneCall { .. } => Operation::Total,
        };
        let allowed = self.length().unwrap_or_default();
        OperationLimit { operation, allowed }.ran_out(taken)
    }

    /// What running out of it means: the job is over as `timeout`. Not tried again, also where each call has its own total:
    /// what was given up may still be doing its work. Details name the limit; those of the deadline are CP1's, without.
    pub fn failure(self) -> Failure {
        let named = |failure: Failure, name: &str, limit_ms: u64| {
            failure
                .with("limit", name.into())
                .with("limit_ms", limit_ms.into())
        };
        match self {
            Self::Deadline => Failure::timeout("the deadline of the assignment"),
            Self::RetryBudget { limit_ms } => {
                named(Failure::timeout("the retry budget"), "retry_budget", limit_ms)
            }
            Self::TotalTime { limit_ms } => named(
                Failure::timeout("the total time limit"),
                "total_timeout",
                limit_ms,
            ),
            Self::TotalTimeOfOneCall { limit_ms } => named(
                Failure::timeout("the time limit of one call"),
                "total_timeout",
                limit_ms,
            ),
        }
    }
}

/// When a job, or a call of it, must be over, and because of which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// When.
    pub at: Instant,
    /// Because of what.
    pub limit: Limit,
}

impl End {
    /// This end, or that of another limit if it comes before. One too far away to be written down never comes.
    #[must_use]
    pub fn or_sooner(self, from: Instant, limit: Option<(Limit, Duration)>) -> Self {
        let other = limit.and_then(|(limit, length)| {
            Some(Self {
                at: from.checked_add(length)?,
                limit,
            })
        });
        match other {
            Some(other) if other.at < self.at => other,
            _ => self,
        }
    }
}
