//! Events of limits that ran out, and the operations that they are a share of (contract 8.2, 8.4).
//!
//! Neighbours: the block worker emits them, and the pool those of jobs that wait: lines only while the policy of timeouts is in
//! force, numbers without it too.

use std::sync::Arc;
use std::time::Duration;

use caf_protocol::assignment::Identity;
use caf_protocol::limit::{Operation, OperationLimit, RanOut};
use caf_protocol::outcome::Failure;

use super::{Event, Level};
use crate::clock::whole_ms;
use crate::metrics::{Metric, MetricKind};

/// Operations that began.
pub static OPERATIONS: Metric = Metric {
    name: "worker_operations_total",
    help: "Operations of blocks that were begun, and jobs for the limits on a job as a whole",
    labels: &["operation_type"],
    kind: MetricKind::Counter,
};

/// Limits that ran out.
pub static EVENTS: Metric = Metric {
    name: "worker_timeout_events_total",
    help: "Operations that were given up because a limit ran out",
    labels: &["operation_type", "timeout_type"],
    kind: MetricKind::Counter,
};

/// How long they had taken by then. Buckets reach from the shortest sensible limit to the default deadline and beyond.
pub static DURATION: Metric = Metric {
    name: "worker_timeout_duration_seconds",
    help: "How long operations had taken when they were given up",
    labels: &["operation_type"],
    kind: MetricKind::Seconds(&[
        100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 3_600_000,
    ]),
};

/// Share of operations that ran into their limit.
pub static RATE: Metric = Metric {
    name: "worker_timeout_rate",
    help: "Share of the operations of the last five minutes that were given up because a limit ran out; absent when there was none",
    labels: &["operation_type"],
    kind: MetricKind::Ratio,
};

/// What an attempt that may need `performed`, in this order, has to tell. What comes after the operation that ran out was
/// not begun.
pub fn of_attempt(
    identity: &Arc<Identity>,
    performed: &[Operation],
    failure: Option<&Failure>,
) -> Vec<Event> {
    let gave_up = failure
        .and_then(|failure| failure.ran_out.as_deref().copied())
        .and_then(|ran_out| match ran_out {
            RanOut::Limit { limit, taken } if !is_of_job(limit.operation) => Some((limit, taken)),
            _ => None,
        });
    let reached = performed
        .iter()
        .take_while(|operation| gave_up.is_none_or(|(limit, _)| limit.operation != **operation));
    let mut events: Vec<_> = reached.map(|operation| within_limit(*operation)).collect();
    events.extend(gave_up.map(|(limit, taken)| ran_out(identity, limit, taken)));
    events
}

/// What a job that has ended has to tell of the limits on it as a whole. `deadline` are its figures: how long the job
/// could take, and has taken.
pub fn of_job(
    identity: &Arc<Identity>,
    failure: Option<&Failure>,
    deadline: (Duration, Duration),
) -> Vec<Event> {
    let gave_up = match failure.and_then(|failure| failure.ran_out.as_deref().copied()) {
        Some(RanOut::Deadline) => Some((
            OperationLimit {
                operation: Operation::Deadline,
                allowed: deadline.0,
            },
            deadline.1,
        )),
        Some(RanOut::Limit { limit, taken }) if is_of_job(limit.operation) => Some((limit, taken)),
        _ => None,
    };
    let kept = [Operation::Total, Operation::Deadline]
        .into_iter()
        .filter(|operation| gave_up.is_none_or(|(limit, _)| limit.operation != *operation));
    let mut events: Vec<_> = kept.map(within_limit).collect();
    // A wait that was not begun: less time has passed than the limit allows.
    let not_begun = failure.and_then(|failure| failure.details.get("next_wait_ms"));
    events.extend(gave_up.map(|(limit, taken)| {
        let event = ran_out(identity, limit, taken);
        match not_begun {
            Some(wait_ms) => event.with("next_wait_ms", wait_ms.clone()),
            None => event,
        }
    }));
    events
}

/// The deadline of a job passed before it had a slot: it was `allowed` so long, and has `taken` so long. No other limit on it
/// had begun.
pub fn of_waiting(identity: &Arc<Identity>, allowed: Duration, taken: Duration) -> Event {
    let operation = Operation::Deadline;
    ran_out(identity, OperationLimit { operation, allowed }, taken)
}

fn is_of_job(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::Total | Operation::RetryBudget | Operation::Deadline
    )
}

/// An operation ended, well or not, within its limit.
fn within_limit(operation: Operation) -> Event {
    let name = operation.as_str();
    Event::silent()
        .measuring(OPERATIONS.one(&[name]))
        .measuring(RATE.sample(&[name], 0.0))
}

/// An operation was given up: a limit ran out.
fn ran_out(identity: &Arc<Identity>, limit: OperationLimit, taken: Duration) -> Event {
    let (name, kind) = (limit.operation.as_str(), limit.operation.timeout_type());
    Event::new(Level::Warn, "Operation timeout")
        .of(identity)
        .at_top("error_code", "timeout")
        .with("operation_type", name)
        .with("timeout_type", kind)
        .with("timeout_ms", whole_ms(limit.allowed))
        .with("elapsed_ms", whole_ms(taken))
        .measuring(OPERATIONS.one(&[name]))
        .measuring(RATE.sample(&[name], 1.0))
        .measuring(EVENTS.one(&[name, kind]))
        .measuring(DURATION.sample(&[name], taken.as_secs_f64()))
}

#[cfg(test)]
mod tests;
