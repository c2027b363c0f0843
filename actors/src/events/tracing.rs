//! Events of the export of spans: one line when it begins to fail, one when it works again, one at the end; and what became
//! of every span, as samples.
//!
//! Neighbours: the node's exporter emits them, only while traces are on. Never a line per span.

use super::{Event, Level};
use crate::metrics::{Metric, MetricKind};

/// What became of spans.
pub static SPANS: Metric = Metric {
    name: "worker_trace_spans_total",
    help: "Spans by what became of them: exported, dropped because too many waited, or failed because the collector did \
           not take them",
    labels: &["outcome"],
    kind: MetricKind::Counter,
};

/// What became of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanOutcome {
    /// The collector has it.
    Exported,
    /// It was not kept: too many waited.
    Dropped,
    /// It was given up: the collector did not take it.
    Failed,
}

impl SpanOutcome {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Exported, Self::Dropped, Self::Failed];

    /// As the label says it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exported => "exported",
            Self::Dropped => "dropped",
            Self::Failed => "failed",
        }
    }
}

/// Spans since the start, by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpanCounts {
    /// Taken by the collector.
    pub exported: u64,
    /// Not kept.
    pub dropped: u64,
    /// Given up.
    pub failed: u64,
}

/// So many spans came to this end.
pub fn spans(outcome: SpanOutcome, count: u64) -> Event {
    // Counts stay far below what a float holds exactly.
    Event::silent().measuring(SPANS.sample(&[outcome.as_str()], count as f64))
}

fn with_counts(event: Event, counts: SpanCounts) -> Event {
    event
        .with("exported", counts.exported)
        .with("dropped", counts.dropped)
        .with("failed", counts.failed)
}

/// Spans are sent to a collector.
pub fn export_started(protocol: &'static str, address: &str) -> Event {
    Event::new(Level::Info, "Trace export started")
        .with("protocol", protocol)
        .with("address", address)
}

/// Spans are being lost, from now until [`export_recovered`]. `hint`: what an operator should look at.
pub fn export_failing(address: &str, reason: &str, hint: Option<&'static str>, counts: SpanCounts) -> Event {
    let event = Event::new(Level::Warn, "Trace export failing")
        .with("address", address)
        .with("error", reason);
    let event = hint
        .into_iter()
        .fold(event, |event, hint| event.with("hint", hint));
    with_counts(event, counts)
}

/// Spans reach the collector again.
pub fn export_recovered(counts: SpanCounts) -> Event {
    with_counts(Event::new(Level::Info, "Trace export recovered"), counts)
}

/// The last spans were sent, or given up.
pub fn export_stopped(counts: SpanCounts) -> Event {
    with_counts(Event::new(Level::Info, "Trace export stopped"), counts)
}
