//! Events of tenants: quotas that are used up (row 4b), and what the policy store says.
//!
//! Neighbours: intake emits the former, the node's client of the store the latter.

use std::sync::Arc;
use std::time::Duration;

use caf_protocol::ack::RejectReason;
use caf_protocol::assignment::Identity;
use caf_protocol::outcome::Failure;

use super::{Event, Level};
use crate::metrics::{Metric, MetricKind};
use crate::tenants::{Answer, Quota};

/// Jobs that a quota refused.
pub static QUOTA_REJECTIONS: Metric = Metric {
    name: "worker_quota_rejections_total",
    help: "Jobs refused because a quota of their tenant was used up",
    labels: &["quota", "tenant_id"],
    kind: MetricKind::Counter,
};

/// Row 4b. Not counted where a worker that has died since had refused it: that one has counted it.
pub fn over_quota(identity: &Arc<Identity>, failure: &Failure) -> Event {
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

/// Questions to the policy store.
pub static POLICY_FETCHES: Metric = Metric {
    name: "worker_policy_fetches_total",
    help: "Questions to the policy store, by what came of them",
    labels: &["outcome"],
    kind: MetricKind::Counter,
};

/// What comes of questions, as the label `outcome` says it.
pub const POLICY_OUTCOMES: &[&str] = &["fetched", "not_modified", "absent", "unusable", "away"];

/// Whether the store answers.
pub static POLICY_STORE_UP: Metric = Metric {
    name: "worker_policy_store_up",
    help: "Whether the policy store answers: 1, or 0 after three failures in a row; absent where there is none",
    labels: &[],
    kind: MetricKind::Gauge,
};

/// How old policies are that should have been asked for again.
pub static POLICY_STALE: Metric = Metric {
    name: "worker_policy_stale_seconds",
    help: "How long ago the store confirmed the oldest policy that is in force although the store did not confirm it when asked \
           again; 0 when there is none",
    labels: &[],
    kind: MetricKind::Gauge,
};

/// A question was answered, or not.
pub fn policy_fetched(answer: &Answer) -> Event {
    let outcome = match answer {
        Answer::Policy(..) => "fetched",
        Answer::Unchanged => "not_modified",
        Answer::Absent => "absent",
        Answer::Unusable => "unusable",
        Answer::Away => "away",
    };
    Event::silent().measuring(POLICY_FETCHES.one(&[outcome]))
}

/// What the store said of a tenant is no policy: the one before, or the settings, count. Said at each try, which become rare.
pub fn policy_unusable(tenant_id: &str, why: &str) -> Event {
    Event::new(Level::Warn, "Policy of a tenant cannot be used")
        .with("policy_tenant", tenant_id)
        .with("error", why)
}

/// The store does not answer any more.
pub fn store_away(why: &str) -> Event {
    Event::new(Level::Warn, "Policy store is away").with("error", why)
}

/// It answers again.
pub fn store_back() -> Event {
    Event::new(Level::Info, "Policy store is back")
}

/// How the store is, once a second.
pub fn store_state(is_away: bool, stale: Duration) -> Event {
    Event::silent()
        .measuring(POLICY_STORE_UP.sample(&[], if is_away { 0.0 } else { 1.0 }))
        .measuring(POLICY_STALE.sample(&[], stale.as_secs_f64()))
}

/// Policies that an earlier process kept are lost: they are asked for again.
pub fn policies_unreadable(why: &str) -> Event {
    Event::new(Level::Warn, "Kept policies cannot be read").with("error", why)
}

/// A restart while the store is away would forget its policies.
pub fn policies_unkept(why: &str) -> Event {
    Event::new(Level::Warn, "Policies cannot be kept").with("error", why)
}
