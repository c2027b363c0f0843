//! Settings of metrics.
//!
//! Neighbours: [`super::WorkerSettings`] has them; the registry in `telemetry` goes by them.

use caf_actors::settings::rules::Rules;
use caf_protocol::ids::is_usable;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest value of a label whose values come with assignments, in bytes.
pub const MAX_LABEL_BYTES: usize = 128;

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

impl MetricsSettings {
    /// Reports what is wrong.
    pub fn validate(&self, rules: &mut Rules) {
        let mut tenants = self.tenant_label_allowlist.iter();
        rules.require(
            "tenant_label_allowlist",
            tenants.all(|tenant| is_usable(tenant, MAX_LABEL_BYTES)),
            "must hold tenant ids of 1 to 128 bytes without control characters",
        );
    }
}
