//! Metrics of jobs that were accepted: how they ended, how long they took, what they waited for (contract 8.4).
//!
//! Neighbours: the publisher emits [`ended`], whose line is [`super::step_ended`]; pool, block worker and source tell what was
//! waited for. Ids of tenant, run, flow and step are given as they came: the registry decides what of them is shown.

use std::sync::Arc;
use std::time::Duration;

use caf_protocol::assignment::Identity;
use caf_protocol::outcome::{Failure, Outcome, StepResult};

use super::Event;
use crate::metrics::{Metric, MetricKind, Sample};

/// Upper bounds of times that a step may take, in milliseconds: both sets of the contract together.
const STEP_BUCKETS_MS: &[u64] = &[
    1, 5, 10, 50, 100, 250, 500, 1_000, 2_000, 2_500, 5_000, 10_000, 30_000, 60_000,
];
/// The same for flows.
const FLOW_BUCKETS_MS: &[u64] = &[
    10, 100, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000,
];
/// Labels of a step, with the ids that came with it.
const STEP_LABELS: &[&str] = &[
    "step_type",
    "execution_status",
    "tenant_id",
    "run_id",
    "flow_id",
    "step_id",
];

/// Statuses of executions.
pub const STATUSES: &[&str] = &["success", "error", "timeout", "cancelled"];
/// What a job may wait for.
pub const CAUSES: &[&str] = &["permit", "queue", "retry", "tenant_limit"];

/// Jobs that ended, under the name of CP1.
pub static TASKS: Metric = Metric {
    name: "worker_tasks_total",
    help: "Accepted jobs that ended, by job type and status of the result.",
    labels: &["block_type", "status"],
    kind: MetricKind::Counter,
};

/// How long jobs took, as their results say.
pub static TASK_LATENCY: Metric = Metric {
    name: "worker_task_latency_ms",
    help: "latency_ms of results: from the first start of handling to the outcome, waiting included, in milliseconds.",
    labels: &["block_type"],
    kind: MetricKind::Milliseconds(&[50, 100, 200, 500, 1_000, 2_000, 5_000]),
};

/// Jobs that failed.
pub static TASK_FAILURES: Metric = Metric {
    name: "worker_task_failures_total",
    help: "Accepted jobs that ended with error or timeout.",
    labels: &[],
    kind: MetricKind::Counter,
};

/// Jobs that ended.
pub static EXECUTIONS: Metric = Metric {
    name: "worker_step_executions_total",
    help: "Accepted jobs that ended, by job type and status of the result.",
    labels: STEP_LABELS,
    kind: MetricKind::Counter,
};

/// How long they ran.
pub static EXECUTION_DURATION: Metric = Metric {
    name: "worker_step_execution_duration_seconds",
    help: "Time that jobs ran: their attempts and the waits between them, without the queue. Those that never got a slot \
           are not in it.",
    labels: STEP_LABELS,
    kind: MetricKind::Seconds(STEP_BUCKETS_MS),
};

/// Why they failed.
pub static ERRORS: Metric = Metric {
    name: "worker_step_errors_total",
    help: "Accepted jobs that ended with error or timeout, by the code of the result.",
    labels: &["step_type", "error_code"],
    kind: MetricKind::Counter,
};

/// How long the steps of flows took.
pub static FLOW_DURATION: Metric = Metric {
    name: "worker_flow_execution_duration_seconds",
    help: "Time from the first start of handling to the outcome, waiting included, of jobs that name a flow: the part of the \
           flow that this worker sees.",
    labels: &["tenant_id", "run_id", "flow_id"],
    kind: MetricKind::Seconds(FLOW_BUCKETS_MS),
};

/// Results with an error, whatever the row.
pub static ALL_ERRORS: Metric = Metric {
    name: "worker_errors_total",
    help: "Results that carry an error code, of rejected assignments too.",
    labels: &["error_code", "tenant_id", "run_id"],
    kind: MetricKind::Counter,
};

/// What was waited for.
pub static WAITS: Metric = Metric {
    name: "worker_wait_seconds",
    help: "Waits by cause: permit, the source until there was room to ask for more; queue, a job until it had a slot or left without one; \
           tenant_limit, the part of that in which its tenant ran as many jobs as it may, which queue leaves out; retry, a job \
           before its next attempt.",
    labels: &["cause"],
    kind: MetricKind::Seconds(&[
        1, 5, 10, 50, 100, 500, 1_000, 5_000, 10_000, 30_000, 60_000, 300_000,
    ]),
};

/// The job type. Only accepted jobs get here, so that it is one of the registered ones.
fn step_type(identity: &Arc<Identity>) -> &str {
    identity.job_type.as_deref().unwrap_or("unknown")
}

/// An accepted job ended. `ran`: since it had its slot; nothing when it never had one.
pub fn ended(identity: &Arc<Identity>, step: &StepResult, ran: Option<Duration>) -> Event {
    let (kind, status) = (step_type(identity), step.outcome.status().as_str());
    let ids = Ids::of(identity);
    let labels = [kind, status, ids.tenant, ids.run, ids.flow, ids.step];
    let latency = Duration::from_millis(step.latency_ms);
    let mut event = super::step_ended(identity, step)
        .measuring(TASKS.one(&[kind, status]))
        .measuring(TASK_LATENCY.sample(&[kind], latency.as_secs_f64() * 1_000.0))
        .measuring(EXECUTIONS.one(&labels));
    if let Some(ran) = ran {
        event = event.measuring(EXECUTION_DURATION.sample(&labels, ran.as_secs_f64()));
    }
    if !ids.flow.is_empty() {
        let labels = [ids.tenant, ids.run, ids.flow];
        event = event.measuring(FLOW_DURATION.sample(&labels, latency.as_secs_f64()));
    }
    let Some(failure) = step.outcome.failure() else {
        return event;
    };
    if let Outcome::Error(_) | Outcome::Timeout(_) = &step.outcome {
        event = event
            .measuring(TASK_FAILURES.one(&[]))
            .measuring(ERRORS.one(&[kind, failure.code.as_str()]));
    }
    event.measuring(error(identity, failure))
}

/// A job was rejected: its result carries an error, and nothing ran. What was wrong is another line.
pub fn rejected(identity: &Arc<Identity>, failure: &Failure) -> Event {
    Event::silent().measuring(error(identity, failure))
}

fn error(identity: &Arc<Identity>, failure: &Failure) -> Sample {
    let ids = Ids::of(identity);
    ALL_ERRORS.one(&[failure.code.as_str(), ids.tenant, ids.run])
}

/// Somebody waited; `cause` is one of [`CAUSES`].
pub fn waited(cause: &'static str, waited: Duration) -> Event {
    Event::silent().measuring(wait(cause, waited))
}

/// The sample of [`waited`], for lines that carry it.
pub(super) fn wait(cause: &'static str, waited: Duration) -> Sample {
    WAITS.sample(&[cause], waited.as_secs_f64())
}

/// Correlation as labels: empty where it is not known.
struct Ids<'a> {
    tenant: &'a str,
    run: &'a str,
    flow: &'a str,
    step: &'a str,
}

impl<'a> Ids<'a> {
    fn of(identity: &'a Identity) -> Self {
        let raw = &identity.correlation.raw;
        Self {
            tenant: &identity.tenant_id,
            run: raw.run_id.as_deref().unwrap_or_default(),
            flow: raw.flow_id.as_deref().unwrap_or_default(),
            step: raw.step_id.as_deref().unwrap_or_default(),
        }
    }
}
