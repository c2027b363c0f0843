//! Metrics of the way in and out: by which row assignments leave, what comes twice, how long answers take (contract 8.4).
//!
//! Neighbours: intake, pools, block workers and publisher wrap the lines of [`super`] in these, or emit them alone where no
//! line is due.

use std::time::Duration;

use super::Event;
use crate::metrics::{Metric, MetricKind};
use crate::trace::Publishing;

/// Upper bounds of the time until a message is confirmed, in milliseconds: a stream answers within a few; an outage lasts.
const CONFIRM_BUCKETS_MS: &[u64] = &[
    1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 60_000,
];

/// Every row of the table in ARCHITECTURE.md.
pub const ROWS: &[&str] = &[
    "1", "2", "3", "4", "4b", "5", "6", "7", "8", "8b", "9", "10", "10b", "10c", "11", "12", "13", "14",
    "15", "16", "17", "18",
];
/// Kinds of duplicates.
pub const DUPLICATE_KINDS: &[&str] = &["held", "copy", "elsewhere", "uncertain", "finished"];
/// Kinds of answers.
pub const ANSWER_KINDS: &[&str] = &["ack", "result", "dead_letter"];

/// What became of what arrived.
pub static ASSIGNMENTS: Metric = Metric {
    name: "worker_assignments_total",
    help: "Assignments that left the worker, by the row of the table in ARCHITECTURE.md; one that comes again leaves again.",
    labels: &["row"],
    kind: MetricKind::Counter,
};

/// What came although it was known.
pub static DUPLICATES: Metric = Metric {
    name: "worker_duplicates_total",
    help: "Assignments that were not run because they are known: held here (row 10), a copy of one that is held (10b), held \
           elsewhere (10c), not certain yet by whom (10c too: it comes again), finished before (11).",
    labels: &["kind"],
    kind: MetricKind::Counter,
};

/// Results that are not published.
pub static SUPPRESSED: Metric = Metric {
    name: "worker_results_suppressed_total",
    help: "Results that were not published because another worker answers, or has answered.",
    labels: &[],
    kind: MetricKind::Counter,
};

/// What people have to look at.
pub static DEAD_LETTERS: Metric = Metric {
    name: "worker_dead_letters_total",
    help: "Dead letters written, by the code of the failure.",
    labels: &["error_code"],
    kind: MetricKind::Counter,
};

/// How long answers take to be stored.
pub static PUBLISH: Metric = Metric {
    name: "worker_publish_seconds",
    help: "Time from the first try to send an answer until it was confirmed.",
    labels: &["kind"],
    kind: MetricKind::Seconds(CONFIRM_BUCKETS_MS),
};

/// The whole way through the broker and this worker.
pub static PUBLISH_TO_RESULT: Metric = Metric {
    name: "worker_publish_to_result_seconds",
    help: "Time from the publication of an assignment, by the clock of the broker, until its result was confirmed, by ours.",
    labels: &[],
    kind: MetricKind::Seconds(&[
        5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 3_600_000,
    ]),
};

/// `event`, of an assignment that leaves by this row.
pub fn left(event: Event, row: &'static str) -> Event {
    event.measuring(ASSIGNMENTS.one(&[row]))
}

/// `event`, of an assignment that is not run because it is known; `kind` is one of [`DUPLICATE_KINDS`].
pub fn known(event: Event, kind: &'static str) -> Event {
    event.measuring(DUPLICATES.one(&[kind]))
}

/// An assignment leaves by this row, and its line was another one or is still to come.
pub fn left_by(row: &'static str) -> Event {
    left(Event::silent(), row)
}

/// A dead letter was written for a failure with this code.
pub fn dead_letter(error_code: &'static str) -> Event {
    Event::silent().measuring(DEAD_LETTERS.one(&[error_code]))
}

/// An answer was confirmed, so long after it was first sent.
pub fn confirmed(what: Publishing, took: Duration) -> Event {
    Event::silent().measuring(PUBLISH.sample(&[what.kind()], took.as_secs_f64()))
}

/// The result of an assignment was confirmed that was published so long ago.
pub fn answered(after: Duration) -> Event {
    Event::silent().measuring(PUBLISH_TO_RESULT.sample(&[], after.as_secs_f64()))
}
