//! Metrics of the program itself as it runs: actors that are re-created, event loops that are late (contract 8.4).
//!
//! Neighbours: the supervisor's lines carry the restarts; [`crate::event_loop`] measures the loops.

use std::time::Duration;

use super::Event;
use crate::metrics::{Metric, MetricKind, Sample};

/// Actors that were re-created.
pub static RESTARTS: Metric = Metric {
    name: "worker_restarts_total",
    help: "Actors and tasks that failed and were re-created.",
    labels: &["actor"],
    kind: MetricKind::Counter,
};

/// How late event loops are.
pub static LOOP_LAG: Metric = Metric {
    name: "worker_event_loop_lag_seconds",
    help: "How much later than asked for each event loop woke up, looked at once a second.",
    labels: &["event_loop"],
    kind: MetricKind::Seconds(&[1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 5_000, 10_000]),
};

/// One more restart of the actor of this name. Those that stand beside each other share a label.
pub(super) fn restart(name: &str) -> Sample {
    let is_number = |end: &str| !end.is_empty() && end.bytes().all(|byte| byte.is_ascii_digit());
    let kind = match name.rsplit_once('.') {
        Some((kind, end)) if is_number(end) => kind,
        _ => name,
    };
    RESTARTS.one(&[kind])
}

/// An event loop woke up so late.
pub fn loop_woke(event_loop: &str, late: Duration) -> Event {
    Event::silent().measuring(LOOP_LAG.sample(&[event_loop], late.as_secs_f64()))
}
