//! Settings of circuit breakers: when nothing is called any more that keeps failing.
//!
//! Neighbours: the node's settings hold them as `worker.circuit_breaker`; the breakers go by them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Circuit breakers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CircuitBreakerSettings {
    /// Whether there are any.
    pub enabled: bool,
}
