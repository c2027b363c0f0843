//! Lines and metrics of questions to people. What was asked, and what was said to it, is in none of them.
//!
//! Neighbours: intake and [`crate::approvals`] tell them. That a job has ended by a decision is its usual line at the end.

use std::sync::Arc;

use caf_protocol::approval::{ApprovalRequest, Standing};
use caf_protocol::assignment::Identity;

use super::{Event, Level};
use crate::metrics::{Metric, MetricKind};

/// How a question ends, as the label `decision` has it.
pub const DECISIONS: &[&str] = &["approved", "rejected", "expired", "cancelled"];

/// Questions that were asked.
pub static REQUESTED: Metric = Metric {
    name: "worker_approvals_requested_total",
    help: "Questions to people that this worker has stored.",
    labels: &[],
    kind: MetricKind::Counter,
};

/// Questions that were settled.
pub static DECIDED: Metric = Metric {
    name: "worker_approvals_decided_total",
    help: "Questions to people that this worker has settled: approved or rejected by somebody, expired, or cancelled.",
    labels: &["decision"],
    kind: MetricKind::Counter,
};

/// Questions that wait.
pub static PENDING: Metric = Metric {
    name: "worker_approvals_pending",
    help: "Questions to people that wait in the whole fleet, as far as this worker knows.",
    labels: &[],
    kind: MetricKind::Gauge,
};

/// How long the oldest has waited.
pub static OLDEST: Metric = Metric {
    name: "worker_approvals_oldest_pending_seconds",
    help: "How long the question has waited that has waited longest; 0 when none waits.",
    labels: &[],
    kind: MetricKind::Gauge,
};

/// A job asks people, and is set aside.
pub fn parked(identity: &Arc<Identity>) -> Event {
    Event::new(Level::Debug, "Assignment set aside for approval").of(identity)
}

/// A question is stored: its job holds nothing here any more.
pub fn requested(request: &ApprovalRequest, identity: &Arc<Identity>) -> Event {
    Event::new(Level::Info, "Approval requested")
        .of(identity)
        .with("approval_id", request.approval_id.as_str())
        .with("approvers", request.approvers.len() as u64)
        .with("expires_at", request.expires_at)
        .measuring(REQUESTED.one(&[]))
}

/// A question is settled.
pub fn settled(request: &ApprovalRequest, standing: &Standing, identity: &Arc<Identity>) -> Event {
    let event = Event::new(Level::Info, "Approval settled")
        .of(identity)
        .with("approval_id", request.approval_id.as_str())
        .with("decision", standing.word())
        .measuring(DECIDED.one(&[standing.word()]));
    match standing {
        Standing::Decided(decision) => event
            .with("decided_by", decision.by.as_str())
            .with("via", decision.via.as_str()),
        Standing::Cancelled { by, .. } => event.with("requested_by", by.as_str()),
        Standing::Pending | Standing::Expired { .. } => event,
    }
}

/// The result of a question is confirmed.
pub fn answered(request: &ApprovalRequest, identity: &Arc<Identity>) -> Event {
    Event::new(Level::Debug, "Approval answered")
        .of(identity)
        .with("approval_id", request.approval_id.as_str())
}

/// Questions cannot be stored or settled at the moment; it is tried again.
pub fn unavailable(what: &'static str, error: &str) -> Event {
    Event::new(Level::Warn, "Approvals unavailable, trying again")
        .with("operation", what)
        .with("error", error)
}

/// How many wait, and for how long.
pub fn waiting(pending: usize, oldest_ms: u64) -> Event {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^50")]
    let (pending, oldest_s) = (pending as f64, oldest_ms as f64 / 1_000.0);
    Event::silent()
        .measuring(PENDING.sample(&[], pending))
        .measuring(OLDEST.sample(&[], oldest_s))
}
