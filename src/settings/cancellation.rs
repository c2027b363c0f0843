//! Settings of requests to cancel assignments.
//!
//! Neighbours: [`super::WorkerSettings`] has them; the subject on which requests come is `nats.subjects.cancel`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Requests to cancel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CancellationSettings {
    /// Whether they are read and obeyed.
    pub enabled: bool,
}
