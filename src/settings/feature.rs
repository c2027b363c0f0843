//! The CP2 features that this version has: names of flags, place of the policy, and what a policy file must say
//! (contract 4.2, 7.1 to 7.3). One table, so that reading, checking and showing cannot disagree.
//!
//! Neighbours: [`super::environment`] reads the flags, [`super::load`] the policy files, [`super::in_force`] decides what
//! follows. Knows no values.

use super::environment::split;
use super::origin::KeyPath;

/// A feature that is off unless its flag is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// Exponential backoff, classification of errors, budget.
    Retry,
    /// Limits on operations and on all attempts together.
    Timeouts,
    /// Bounded queues and overload answers.
    Queue,
    /// Metrics and the port that shows them.
    Metrics,
    /// Spans of each assignment, sent to a collector.
    Tracing,
    /// Requests to cancel assignments are read and obeyed.
    Cancellation,
    /// Nothing is called that keeps failing.
    CircuitBreaker,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Retry,
        Self::Timeouts,
        Self::Queue,
        Self::Metrics,
        Self::Tracing,
        Self::Cancellation,
        Self::CircuitBreaker,
    ];

    /// Those that need a policy to be in force, in the order in which their files are read.
    pub const WITH_POLICY: [Self; 3] = [Self::Retry, Self::Timeouts, Self::Queue];

    /// Name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Timeouts => "timeouts",
            Self::Queue => "queue",
            Self::Metrics => "metrics",
            Self::Tracing => "tracing",
            Self::Cancellation => "cancellation",
            Self::CircuitBreaker => "circuit breaker",
        }
    }

    /// Section of flag and policy, dotted.
    pub const fn section(self) -> &'static str {
        match self {
            Self::Retry => "worker.retries.v2",
            Self::Timeouts => "worker.timeouts.v2",
            Self::Queue => "worker.queue.v2",
            Self::Metrics => "worker.metrics",
            Self::Tracing => "worker.tracing",
            Self::Cancellation => "worker.cancellation",
            Self::CircuitBreaker => "worker.circuit_breaker",
        }
    }

    /// Key of the flag, dotted.
    pub fn flag_key(self) -> String {
        format!("{}.enabled", self.section())
    }

    /// Variables that are the flag too, beside `WORKER__…`.
    pub const fn variables(self) -> &'static [&'static str] {
        match self {
            Self::Retry => &["CP2_ADVANCED_RETRY_ENABLED", "WORKER_RETRIES_V2_ENABLED"],
            Self::Timeouts => &["CP2_COMPLETE_TIMEOUT_ENABLED"],
            Self::Queue => &["CP2_QUEUE_MANAGEMENT_ENABLED", "WORKER_QUEUE_V2_ENABLED"],
            Self::Metrics => &["CP2_OBSERVABILITY_METRICS_ENABLED", "BEAMLINE_METRICS_ENABLED"],
            Self::Tracing => &["CP2_OBSERVABILITY_TRACING_ENABLED", "BEAMLINE_TRACING_ENABLED"],
            Self::Cancellation => &["CP2_CANCELLATION_ENABLED"],
            Self::CircuitBreaker => &["CP2_CIRCUIT_BREAKER_ENABLED"],
        }
    }

    /// File of the policy, relative to the working directory; read when it is there. Nothing for a feature whose flag is
    /// enough.
    pub const fn policy_file(self) -> Option<&'static str> {
        match self {
            Self::Retry => Some("config/worker/retry_policy.json"),
            Self::Timeouts => Some("config/worker/timeout_policy.json"),
            Self::Queue => Some("config/worker/queue_policy.json"),
            Self::Metrics | Self::Tracing | Self::Cancellation | Self::CircuitBreaker => None,
        }
    }

    /// Keys that a policy file must have. All others have the contract's numbers by default.
    pub fn required(self) -> Vec<KeyPath> {
        let below: &[&str] = match self {
            Self::Retry => &[
                "enabled",
                "default_policy.max_attempts",
                "default_policy.base_delay_ms",
                "default_policy.max_delay_ms",
            ],
            Self::Timeouts => &[
                "enabled",
                "fs_operations.read_timeout_ms",
                "fs_operations.write_timeout_ms",
                "fs_operations.delete_timeout_ms",
                "http_connection.connect_timeout_ms",
                "http_connection.read_timeout_ms",
                "retry_budget.total_timeout_ms",
            ],
            Self::Queue => &["enabled", "max_queue_size", "rejection_policy"],
            Self::Metrics | Self::Tracing | Self::Cancellation | Self::CircuitBreaker => &[],
        };
        let key = |name: &&str| split(&format!("{}.{name}", self.section()));
        below.iter().map(key).collect()
    }
}
