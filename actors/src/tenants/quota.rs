//! Which quotas there are, what a job asks of them, and what is said when one is used up. Pure.
//!
//! Neighbours: `accounts` judges; intake makes row 4b of an [`Exceeded`].

use std::time::Duration;

use caf_protocol::assignment::Estimate;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use serde_json::{Number, Value};

use crate::clock::whole_ms;

/// What a tenant can use up, apart from running jobs: those are only made to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    /// Jobs that wait for a slot.
    Queued,
    /// Bytes of assignments that wait or run.
    HeldBytes,
    /// Memory that waiting and running jobs say they need.
    Memory,
    /// Processor time that waiting and running jobs say they need.
    CpuTime,
    /// Jobs per second.
    Rate,
    /// Bytes of assignments per second.
    BytesIn,
    /// Bytes of results per second.
    BytesOut,
    /// Questions to people that wait for an answer.
    Approvals,
}

impl Quota {
    /// All, in the order in which they are looked at.
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::HeldBytes,
        Self::Memory,
        Self::CpuTime,
        Self::BytesOut,
        Self::BytesIn,
        Self::Rate,
        Self::Approvals,
    ];

    /// In results, lines and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::HeldBytes => "held_bytes",
            Self::Memory => "memory",
            Self::CpuTime => "cpu_time",
            Self::Rate => "rate",
            Self::BytesIn => "bytes_in",
            Self::BytesOut => "bytes_out",
            Self::Approvals => "approvals",
        }
    }

    /// The key of the settings that limits it.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Queued => "max_queued",
            Self::HeldBytes => "max_held_bytes",
            Self::Memory => "max_memory_bytes",
            Self::CpuTime => "max_cpu_time_ms",
            Self::Rate => "rate_per_s",
            Self::BytesIn => "max_bytes_in_per_s",
            Self::BytesOut => "max_bytes_out_per_s",
            // Of section `approvals`: it is the same for all tenants.
            Self::Approvals => "max_pending_per_tenant",
        }
    }
}

/// What a job asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ask {
    /// Bytes of its assignment.
    pub bytes: u64,
    /// What it says that it will need.
    pub estimate: Estimate,
    /// Whether its pool has a slot for it: then it does not wait, unless its tenant runs as many as it may.
    pub has_slot: bool,
    /// Whether it was taken on before, by this worker or another: then it is counted, and neither judged nor paid for again.
    pub taken_on_before: bool,
}

/// Which quota is used up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exceeded {
    /// Which.
    pub quota: Quota,
    /// What it lets through, in the unit of its key.
    pub limit: f64,
    /// When there will be room for this job, if nobody else takes it; nothing where that hangs on jobs that end.
    pub retry_after: Option<Duration>,
}

impl Exceeded {
    /// What the result says. No figure stands in the message: routers read digits there as failures of a provider.
    pub fn failure(&self) -> Failure {
        let failure = used_up()
            .with("quota", self.quota.as_str().into())
            .with("limit", number(self.limit));
        match self.retry_after {
            // Rounded up: who comes back as told must not be too early.
            Some(wait) => failure.with("retry_after_ms", (whole_ms(wait) + 1).into()),
            None => failure,
        }
    }
}

/// What the result says where it is no longer known which quota it was.
pub fn used_up() -> Failure {
    Failure::new(
        ErrorCode::QuotaExceeded,
        "the tenant has used up its quota on this worker",
    )
}

/// Whole where it is.
fn number(value: f64) -> Value {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "limits are whole up to 2^50, and never negative"
    )]
    if value.fract() == 0.0 {
        return Value::from(value as u64);
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use caf_protocol::outcome::trips_breaker;

    #[test]
    fn a_refusal_says_which_quota_and_when_to_come_back_and_blames_no_provider() {
        for quota in Quota::ALL {
            let failure = Exceeded {
                quota,
                limit: 0.5,
                retry_after: Some(Duration::from_micros(55_500)),
            }
            .failure();
            assert_eq!(failure.error_type(), "quota");
            assert!(!failure.is_retryable());
            assert!(!trips_breaker(&failure.message), "{}", failure.message);
            let details = serde_json::to_value(&failure.details).expect("plain data");
            let expected = serde_json::json!({"quota": quota.as_str(), "limit": 0.5, "retry_after_ms": 56});
            assert_eq!(details, expected);
        }
        assert_eq!(number(1024.0), Value::from(1024));
    }
}
