//! Events of tenants: quotas that are used up (row 4b), and what the policy store says.
//!
//! Neighbours: intake emits the former, the node's client of the store the latter.

use caf_protocol::ack::RejectReason;
use caf_protocol::assignment::Identity;
use caf_protocol::outcome::Failure;

use super::Event;
use crate::metrics::{Metric, MetricKind};
use crate::tenants::Quota;

/// Jobs that a quota refused.
pub static QUOTA_REJECTIONS: Metric = Metric {
    name: "worker_quota_rejections_total",
    help: "Jobs refused because a quota of their tenant was used up",
    labels: &["quota", "tenant_id"],
    kind: MetricKind::Counter,
};

/// Row 4b. Not counted where a worker that has died since had refused it: that one has counted it.
pub fn over_quota(identity: &Identity, failure: &Failure) -> Event {
    let told = |key: &str| failure.details.get(key).cloned();
    let event = super::rejected(identity, RejectReason::QuotaExceeded, failure);
    let quota = told("quota").and_then(|named| {
        let named = named.as_str()?;
        Quota::ALL.into_iter().find(|quota| quota.as_str() == named)
    });
    let Some(quota) = quota else { return event };
    let mut event = event
        .with("quota", quota.as_str())
        .measuring(QUOTA_REJECTIONS.one(&[quota.as_str(), &identity.tenant_id]));
    for key in ["limit", "retry_after_ms"] {
        if let Some(value) = told(key) {
            event = event.with(key, value);
        }
    }
    event
}
