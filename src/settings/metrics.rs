//! Settings of metrics.
//!
//! Neighbours: [`super::WorkerSettings`] has them; the registry in `telemetry` goes by them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Metrics: what happens in the worker, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsSettings {
    /// Whether anything is measured, and shown at `http.metrics_addr`.
    pub enabled: bool,
    /// Tenants that `tenant_id` names; all others are `other`. Empty leaves the label empty.
    pub tenant_label_allowlist: Vec<String>,
    /// Whether `run_id`, `flow_id` and `step_id` are filled in.
    pub detailed_labels: bool,
}
