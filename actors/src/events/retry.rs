//! Log lines and metrics of retries by policy (contract 8.2, 8.4): none of them is emitted while the feature is off.
//!
//! Neighbours: the block worker emits them. In all of them `attempt` is the number of the retry, from 1, so that 0 is the
//! first call; `max_attempts` and `total_attempts` count calls.

use std::sync::Arc;
use std::time::Duration;

use caf_protocol::assignment::Identity;
use caf_protocol::outcome::Outcome;

use super::{Event, Level};
use crate::block_worker::retry::Course;
use crate::block_worker::retry::course::Pending;
use crate::clock::whole_ms;
use crate::metrics::{Metric, MetricKind};

/// Upper bounds of waits in milliseconds: from the shortest base to the longest `Retry-After` that fits a budget.
const BACKOFF_BUCKETS_MS: &[u64] = &[50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000];
/// Retries beyond this number share a label.
const MAX_ATTEMPT_LABEL: u32 = 10;

/// Retries that were begun.
pub static ATTEMPTS: Metric = Metric {
    name: "worker_retry_attempts_total",
    help: "Retries that were begun, by the error before them",
    labels: &["error_code", "step_type", "retryable"],
    kind: MetricKind::Counter,
};

/// Whether retries helped.
pub static SUCCESS_RATE: Metric = Metric {
    name: "worker_retry_success_rate",
    help: "Share of the jobs retried in the last five minutes that succeeded, by the last error that was retried; absent when \
           there was none",
    labels: &["error_code", "step_type"],
    kind: MetricKind::Ratio,
};

/// Waits before retries.
pub static BACKOFF: Metric = Metric {
    name: "worker_retry_backoff_duration_seconds",
    help: "Waits before retries, by the number of the retry",
    labels: &["attempt", "step_type"],
    kind: MetricKind::Seconds(BACKOFF_BUCKETS_MS),
};

/// How much of its budget a job used.
pub static BUDGET_USAGE: Metric = Metric {
    name: "worker_retry_budget_usage",
    help: "Largest share of its retry budget that a job of the last five minutes had used when it ended, from 0 to 1; absent \
           when there was none",
    labels: &["step_type"],
    kind: MetricKind::Peak,
};

/// The job type. Only jobs of registered types get here, so that the set of values is closed.
fn step_type(identity: &Arc<Identity>) -> &str {
    identity.job_type.as_deref().unwrap_or("unknown")
}

fn attempt_label(retry: u32) -> String {
    if retry <= MAX_ATTEMPT_LABEL {
        retry.to_string()
    } else {
        "more".to_owned()
    }
}

/// Retry number `retry`, from 1, begins.
pub fn attempt_started(identity: &Arc<Identity>, retry: u32, pending: &Pending) -> Event {
    let (code, step_type) = (pending.code.as_str(), step_type(identity));
    let backoff = BACKOFF.sample(&[&attempt_label(retry), step_type], pending.delay.as_secs_f64());
    Event::new(Level::Info, "Retry attempt started")
        .of(identity)
        .with("error_code", code)
        .with("attempt", retry)
        .with("max_attempts", pending.max_attempts)
        .with("backoff_delay_ms", whole_ms(pending.delay))
        .with("retryable", true)
        .measuring(ATTEMPTS.one(&[code, step_type, "true"]))
        .measuring(backoff)
}

/// A job under a retry policy ended with `outcome`, `spent` after the start of its first call.
pub fn ended(identity: &Arc<Identity>, course: &Course, outcome: &Outcome, spent: Duration) -> Vec<Event> {
    let used_ms = whole_ms(spent);
    let retried = course.pending();
    let has_succeeded = matches!(outcome, Outcome::Success(_));
    let word = if has_succeeded {
        retried.map(|retried| {
            Event::new(Level::Info, "Retry succeeded")
                .of(identity)
                .with("error_code", retried.code.as_str())
                .with("attempt", course.retries())
                .with("total_attempts", course.retries().saturating_add(1))
                .with("retry_budget_used_ms", used_ms)
        })
    } else {
        course.exhausted().map(|exhausted| {
            Event::new(Level::Error, "Retry exhausted")
                .of(identity)
                .at_top("error_code", exhausted.code.as_str())
                .with("attempt", course.retries())
                .with("max_attempts", exhausted.max_attempts)
                .with("retry_budget_used_ms", used_ms)
                .with("retryable", true)
        })
    };
    let usage = budget_used(identity, course, used_ms);
    let usage = match retried {
        // A retry that was decided on and never began has not failed.
        Some(retried) if course.retries() > 0 => {
            let labels = [retried.code.as_str(), step_type(identity)];
            usage.measuring(SUCCESS_RATE.sample(&labels, f64::from(u8::from(has_succeeded))))
        }
        _ => usage,
    };
    word.into_iter().chain([usage]).collect()
}

fn budget_used(identity: &Arc<Identity>, course: &Course, used_ms: u64) -> Event {
    let budget_ms = course.plan().budget_ms().unwrap_or_default();
    if budget_ms == 0 {
        return Event::silent();
    }
    let (used, budget) = (Duration::from_millis(used_ms), Duration::from_millis(budget_ms));
    let share = (used.as_secs_f64() / budget.as_secs_f64()).min(1.0);
    Event::silent().measuring(BUDGET_USAGE.sample(&[step_type(identity)], share))
}
