//! Every metric there is, and which series begin at 0: a rate can be taken of the first sample then, and an alert sees a
//! figure where nothing has happened yet.
//!
//! Neighbours: the definitions stand beside the events that carry them, in `actors/src/events/`, and in [`super::state`] for
//! what is read when somebody looks. A test holds this table against the contract; whoever adds a metric adds it here.

use caf_actors::breakers::machine::Phase;
use caf_actors::cancellation::Asker;
use caf_actors::events::tracing::{SPANS, SpanOutcome};
use caf_actors::events::{
    approvals, breakers, cancellation, delivery, logging, models, queue, retry, running, secrets, steps,
    tenants, timeouts,
};
use caf_actors::metrics::{CORRELATION, Metric};
use caf_protocol::block::ResourceClass;
use caf_protocol::endpoint::EndpointKind;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::limit::Operation;

use super::{DROPPED, LIMITED, state};

/// Parts that the supervisor re-creates, as the label `actor` names them.
const ACTORS: &[&str] = &[
    "abandoned",
    "approvals",
    "block_worker.cpu",
    "block_worker.gpu",
    "block_worker.io",
    "intake",
    "pool.cpu",
    "pool.gpu",
    "pool.io",
    "publisher",
    "slot_auditor",
    "source",
    "watchdog",
];
/// Why a bounded queue refuses.
const REJECTION_REASONS: &[&str] = &["queue_full", "overloaded", "critical"];

/// One metric.
pub struct Listed {
    /// Its definition.
    pub metric: &'static Metric,
    /// Label values of the series that begin at 0.
    pub from_zero: Vec<Vec<&'static str>>,
}

/// All of them.
pub fn listed() -> Vec<Listed> {
    let states = state::ALL.iter().map(|&metric| without_series(metric));
    measured().into_iter().chain(states).collect()
}

/// The series that begin at 0 once the job types are known.
pub fn of_job_types<'a>(job_types: &[&'a str]) -> Vec<(&'static Metric, Vec<&'a str>)> {
    let of_type = |job_type: &&'a str| {
        let job_type = *job_type;
        steps::STATUSES.iter().flat_map(move |&status| {
            let tasks = (&steps::TASKS, vec![job_type, status]);
            let executions = (&steps::EXECUTIONS, vec![job_type, status, "", "", "", ""]);
            [tasks, executions]
        })
    };
    job_types.iter().flat_map(of_type).collect()
}

/// What is counted when it happens.
fn measured() -> Vec<Listed> {
    let classes = ResourceClass::ALL.map(ResourceClass::as_str);
    let operations = Operation::ALL.map(Operation::as_str);
    let limits = Operation::ALL.map(|operation| vec![operation.as_str(), operation.timeout_type()]);
    let codes = ErrorCode::ALL.map(ErrorCode::as_str);
    let rejections = classes
        .iter()
        .flat_map(|&class| REJECTION_REASONS.iter().map(move |&reason| vec![class, reason]));
    let kinds = EndpointKind::ALL.map(EndpointKind::as_str);
    let of_breakers = |metric, values: &[&'static str]| Listed {
        metric,
        from_zero: kinds
            .iter()
            .flat_map(|&kind| values.iter().map(move |&value| vec![kind, value]))
            .collect(),
    };
    let phases = Phase::ALL.map(Phase::as_str);
    let requests = Asker::ALL.into_iter().flat_map(|by| {
        let outcomes = cancellation::OUTCOMES.into_iter();
        outcomes.map(move |outcome| vec![by.as_str(), outcome])
    });
    let mut all = vec![
        of_breakers(&breakers::TRANSITIONS, &phases),
        each(&breakers::REFUSALS, &kinds),
        of_breakers(&breakers::FORGOTTEN, &phases),
        of_breakers(&breakers::RETRIES_WITHHELD, breakers::REASONS),
        one(&steps::TASK_FAILURES),
        each(&steps::WAITS, steps::CAUSES),
        each(&delivery::ASSIGNMENTS, delivery::ROWS),
        each(&delivery::DUPLICATES, delivery::DUPLICATE_KINDS),
        one(&delivery::SUPPRESSED),
        each(&delivery::DEAD_LETTERS, &codes),
        each(&delivery::PUBLISH, delivery::ANSWER_KINDS),
        one(&delivery::PUBLISH_TO_RESULT),
        each(&running::RESTARTS, ACTORS),
        one(&approvals::REQUESTED),
        each(&approvals::DECIDED, approvals::DECISIONS),
        each(&secrets::USES, secrets::OUTCOMES),
        Listed {
            metric: &queue::REJECTIONS,
            from_zero: rejections.collect(),
        },
        each(&queue::ACCEPTANCES, &classes),
        each(&queue::OVERLOAD_STATUS, &classes),
        each(&queue::WAIT, &classes),
        each(&timeouts::OPERATIONS, &operations),
        Listed {
            metric: &timeouts::EVENTS,
            from_zero: limits.to_vec(),
        },
        each(&timeouts::DURATION, &operations),
        each(&logging::LINES_DROPPED, logging::LEVELS),
        each(&SPANS, &SpanOutcome::ALL.map(SpanOutcome::as_str)),
        one(&DROPPED),
        Listed {
            metric: &cancellation::REQUESTS,
            from_zero: requests.collect(),
        },
        each(&tenants::POLICY_FETCHES, tenants::POLICY_OUTCOMES),
    ];
    let others = [
        &approvals::PENDING,
        &approvals::OLDEST,
        &steps::TASKS,
        &steps::TASK_LATENCY,
        &steps::EXECUTIONS,
        &steps::EXECUTION_DURATION,
        &steps::ERRORS,
        &steps::FLOW_DURATION,
        &steps::ALL_ERRORS,
        &running::LOOP_LAG,
        &retry::ATTEMPTS,
        &retry::SUCCESS_RATE,
        &retry::BACKOFF,
        &retry::BUDGET_USAGE,
        &timeouts::RATE,
        &tenants::QUOTA_REJECTIONS,
        &tenants::POLICY_STORE_UP,
        &tenants::POLICY_STALE,
        &models::CALLS,
        &models::TOKENS,
        &models::COST,
        &models::CALL_DURATION,
        &models::FIRST_TOKEN,
    ];
    all.extend(others.into_iter().map(without_series));
    // Only names that come with assignments get there, unless the program is at fault.
    let is_open = |listed: &&Listed| {
        listed
            .metric
            .labels
            .iter()
            .any(|label| CORRELATION.contains(label))
    };
    let open: Vec<_> = all
        .iter()
        .filter(is_open)
        .map(|listed| listed.metric.name)
        .collect();
    all.push(each(&LIMITED, &open));
    all
}

fn without_series(metric: &'static Metric) -> Listed {
    Listed {
        metric,
        from_zero: Vec::new(),
    }
}

/// A metric with one label, which has these values.
fn each(metric: &'static Metric, values: &[&'static str]) -> Listed {
    Listed {
        metric,
        from_zero: values.iter().map(|&value| vec![value]).collect(),
    }
}

/// A metric without labels, which has one series.
fn one(metric: &'static Metric) -> Listed {
    Listed {
        metric,
        from_zero: vec![Vec::new()],
    }
}
