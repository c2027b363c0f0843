//! Lines and metrics of requests to cancel (contract 8.2). That a job has ended by one is `Step canceled`, as for every end.
//!
//! Neighbours: [`crate::cancellation`] carries requests out, the listener and the admin port bring them. Who asks for what is
//! not here may do so thousands of times a second: such requests have lines at level debug only.

use caf_protocol::assignment::Identity;
use caf_protocol::cancel::{CancelOutcome, CancelRequest};
use caf_protocol::outcome::Failure;
use std::sync::Arc;

use super::{Event, Level};
use crate::cancellation::{Asked, Asker};
use crate::metrics::{Metric, MetricKind};

/// What becomes of requests, as the label `outcome` has it.
pub const OUTCOMES: [&str; 4] = ["cancelled", "finished", "unknown", REFUSED];
/// The outcome of what is no request.
const REFUSED: &str = "refused";

/// Requests.
pub static REQUESTS: Metric = Metric {
    name: "worker_cancel_requests_total",
    help: "Requests to cancel, by the way they came and what they met: cancelled, at least one job; finished, one that had ended; \
           unknown, nothing here; refused, what is no request, or is for another tenant than its subject says.",
    labels: &["source", "outcome"],
    kind: MetricKind::Counter,
};

/// A job that is held is to be cancelled.
pub fn requested(identity: &Arc<Identity>, request: &CancelRequest, asked: &Asked) -> Event {
    let event = Event::new(Level::Info, "Step cancellation requested")
        .of(identity)
        .with("requested_by", asked.by.as_str())
        .with("requested_for", request.target.field());
    match &asked.reason {
        Some(reason) => event.with("cancel_reason", reason.as_str()),
        None => event,
    }
}

/// `event`, of a job that has ended by a request, as its failure tells.
pub(super) fn by_request(event: Event, failure: &Failure) -> Event {
    let told = [("requested_by", "requested_by"), ("reason", "cancel_reason")];
    told.into_iter().fold(event, |event, (detail, name)| {
        match failure.details.get(detail).and_then(serde_json::Value::as_str) {
            Some(text) => event.with(name, text),
            None => event,
        }
    })
}

/// A request was carried out.
pub fn asked(request: &CancelRequest, asked: &Asked, outcome: CancelOutcome) -> Event {
    Event::new(Level::Debug, "Cancellation request carried out")
        .at_top("tenant_id", request.tenant_id.as_str())
        .with("requested_by", asked.by.as_str())
        .with("requested_for", request.target.field())
        .with("outcome", outcome.as_str())
        .measuring(REQUESTS.one(&[asked.by.as_str(), outcome.as_str()]))
}

/// What came is no request; `error` names field and rule. `others` came since the last line and have none of their own.
pub fn refused(by: Asker, error: &str, others: u64) -> Event {
    Event::new(Level::Warn, "Cancellation request refused")
        .with("requested_by", by.as_str())
        .with("error", error)
        .with("others", others)
        .measuring(REQUESTS.one(&[by.as_str(), REFUSED]))
}

/// The same without a line: there was one a moment ago.
pub fn refused_again(by: Asker) -> Event {
    Event::silent().measuring(REQUESTS.one(&[by.as_str(), REFUSED]))
}

/// A request may not have reached every worker that it is for.
pub fn failed(request: &CancelRequest, error: &str) -> Event {
    Event::new(Level::Error, "Failed to cancel step")
        .at_top("tenant_id", request.tenant_id.as_str())
        .with(request.target.field(), request.target.id())
        .with("error", error)
}

/// The broker does not let the worker hear requests, or answer them: said once.
pub fn not_permitted(error: &str) -> Event {
    Event::new(
        Level::Error,
        "Cancellation requests not permitted by the broker, none are heard there",
    )
    .with("error", error)
    .with("setting", "nats.subjects.cancel")
}

/// Nobody hears requests on the broker any more; the worker works on.
pub fn ended(error: &str) -> Event {
    Event::new(
        Level::Error,
        "Cancellation listener ended, requests on the broker are not heard",
    )
    .with("error", error)
}
