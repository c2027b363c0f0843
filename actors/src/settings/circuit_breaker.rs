//! Settings of circuit breakers: when nothing is called any more that keeps failing, and how much may be tried again.
//!
//! Neighbours: the node's settings hold them as `worker.circuit_breaker`; the breakers go by them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules::Rules;

/// Longest time in milliseconds: the longest deadline. What is left alone for longer is better switched off.
const MAX_MS: u64 = 3_600_000;

/// Most breakers that may be kept: 10 MB, and some milliseconds to look at all of them while nobody else may.
const MAX_BREAKERS: usize = 10_000;

/// Circuit breakers: one for each HTTP server, database and directory of files that jobs of a tenant talk to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CircuitBreakerSettings {
    /// Whether there are any.
    pub enabled: bool,
    /// Failures in a row after which nothing is called any more (contract 9.2, CHAOS-009).
    #[schemars(range(min = 1, max = 1_000))]
    pub failure_threshold: u32,
    /// For how long, in milliseconds; then some calls find out whether it works again (contract 9.2, CHAOS-009).
    #[schemars(range(min = 10, max = MAX_MS))]
    pub recovery_ms: u64,
    /// Such calls that must succeed before all may call again (contract 3.4).
    #[schemars(range(min = 1, max = 1_000))]
    pub success_threshold: u32,
    /// Most such calls at once (contract 3.4).
    #[schemars(range(min = 1, max = 1_000))]
    pub half_open_calls: u32,
    /// A call that the deadline or another limit on the whole job cuts off counts as a failure when it has run for at least
    /// this long, in milliseconds: cut off sooner, it says more of the deadline.
    #[schemars(range(min = 0, max = MAX_MS))]
    pub slow_call_ms: u64,
    /// Most breakers that are kept, about 1 KB each; beyond, the tenant that has most of them loses one.
    #[schemars(range(min = 1, max = MAX_BREAKERS))]
    pub max_breakers: usize,
    /// Most retry tokens of an endpoint, and how many it begins with. A retry takes one; without one, there is none.
    #[schemars(range(min = 0, max = 100_000))]
    pub retry_budget_max: u32,
    /// Share of a token that each first call of a job adds, in thousandths at most.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub retry_budget_ratio: f64,
}

impl Default for CircuitBreakerSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            failure_threshold: 5,
            recovery_ms: 10_000,
            success_threshold: 2,
            half_open_calls: 3,
            slow_call_ms: 1_000,
            max_breakers: 1_000,
            retry_budget_max: 10,
            retry_budget_ratio: 0.2,
        }
    }
}

impl CircuitBreakerSettings {
    /// Checks that breakers can open, and close again.
    pub fn validate(&self, rules: &mut Rules) {
        rules.range("failure_threshold", self.failure_threshold, 1..=1_000);
        rules.range("recovery_ms", self.recovery_ms, 10..=MAX_MS);
        rules.range("success_threshold", self.success_threshold, 1..=1_000);
        rules.range("half_open_calls", self.half_open_calls, 1..=1_000);
        rules.range("slow_call_ms", self.slow_call_ms, 0..=MAX_MS);
        rules.range("max_breakers", self.max_breakers, 1..=MAX_BREAKERS);
        rules.range("retry_budget_max", self.retry_budget_max, 0..=100_000);
        rules.range("retry_budget_ratio", self.retry_budget_ratio, 0.0..=100.0);
    }
}
