//! Settings of requests to cancel assignments.
//!
//! Neighbours: [`super::WorkerSettings`] has them; the subject on which requests come is `nats.subjects.cancel`.

use caf_actors::settings::rules::Rules;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Requests to cancel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CancellationSettings {
    /// Whether they are read and obeyed.
    pub enabled: bool,
    /// For so long, in seconds, what was asked for is answered `cancelled` when it arrives later. An assignment that
    /// comes after an hour finds its claim gone as well (`idempotency.ttl_s`).
    pub tombstone_ttl_s: u64,
    /// Most requests that are kept for that. Each has less than 1 KiB: at the default they take 10 MiB. When there are more, the
    /// oldest go first, of the tenant that has the most.
    pub max_tombstones: usize,
}

impl Default for CancellationSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            tombstone_ttl_s: 3_600,
            max_tombstones: 10_000,
        }
    }
}

impl CancellationSettings {
    /// Checks that requests are kept for some time, and not for ever.
    pub(super) fn validate(&self, rules: &mut Rules) {
        rules.range("tombstone_ttl_s", self.tombstone_ttl_s, 1..=86_400);
        rules.range("max_tombstones", self.max_tombstones, 0..=1_000_000);
    }
}
