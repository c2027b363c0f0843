//! Lines and metrics of circuit breakers and retry tokens, while their flag is on.
//!
//! Neighbours: [`crate::breakers`] emits them. A line for each change of a breaker, which takes a call, often several: no flood
//! of its own. Names of endpoints stand in lines and on the status page, never in labels.

use caf_protocol::assignment::Identity;
use caf_protocol::endpoint::Endpoint;
use std::sync::Arc;

use super::{Event, Level};
use crate::breakers::book::{Forgotten, Withheld};
use crate::breakers::machine::{Change, Phase, Refusal};
use crate::clock::whole_ms;
use crate::metrics::{Metric, MetricKind};
use crate::settings::circuit_breaker::CircuitBreakerSettings;

/// Why a retry is not made.
pub const REASONS: &[&str] = &["circuit_breaker", "retry_budget"];

/// Changes of state.
pub static TRANSITIONS: Metric = Metric {
    name: "worker_circuit_breaker_transitions_total",
    help: "Changes of circuit breakers, by kind of endpoint and the state after it.",
    labels: &["kind", "to"],
    kind: MetricKind::Counter,
};

/// Calls that were not made.
pub static REFUSALS: Metric = Metric {
    name: "worker_circuit_breaker_refusals_total",
    help: "Calls that were not made because the circuit breaker of their endpoint was open, or half-open with all its trials \
           running.",
    labels: &["kind"],
    kind: MetricKind::Counter,
};

/// Breakers that had to go.
pub static FORGOTTEN: Metric = Metric {
    name: "worker_circuit_breaker_forgotten_total",
    help: "Circuit breakers that made room for others, by the state that they were in.",
    labels: &["kind", "state"],
    kind: MetricKind::Counter,
};

/// Retries that were not made.
pub static RETRIES_WITHHELD: Metric = Metric {
    name: "worker_retries_withheld_total",
    help: "Retries that a job might have had and did not get: circuit_breaker, its endpoint is left alone; retry_budget, too \
           much was tried again there.",
    labels: &["kind", "reason"],
    kind: MetricKind::Counter,
};

fn of_endpoint(level: Level, message: &'static str, tenant_id: &str, endpoint: &Endpoint) -> Event {
    Event::new(level, message)
        .at_top("tenant_id", tenant_id)
        .with("kind", endpoint.kind().as_str())
        .with("endpoint", endpoint.name())
}

/// A breaker changed.
pub fn changed(
    tenant_id: &str,
    endpoint: &Endpoint,
    change: Change,
    settings: &CircuitBreakerSettings,
) -> Event {
    let (kind, to) = (endpoint.kind().as_str(), change.to.as_str());
    let level = match change.to {
        Phase::Open => Level::Warn,
        Phase::HalfOpen | Phase::Closed => Level::Info,
    };
    let event = of_endpoint(level, "Circuit breaker state changed", tenant_id, endpoint)
        .with("old_state", change.from.as_str())
        .with("new_state", to)
        .measuring(TRANSITIONS.one(&[kind, to]));
    match change.to {
        Phase::Open => event.with("recovery_ms", settings.recovery_ms),
        Phase::HalfOpen | Phase::Closed => event,
    }
}

/// A breaker made room for another. Only of one that was not closed there is a line: what is lost of a closed one is how
/// often it had failed in a row.
pub fn forgotten(forgotten: &Forgotten) -> Event {
    let Forgotten {
        tenant_id,
        endpoint,
        phase,
    } = forgotten;
    let sample = FORGOTTEN.one(&[endpoint.kind().as_str(), phase.as_str()]);
    let event = match phase {
        Phase::Closed => Event::silent(),
        Phase::Open | Phase::HalfOpen => {
            let message = "Circuit breaker forgotten";
            of_endpoint(Level::Warn, message, tenant_id, endpoint).with("state", phase.as_str())
        }
    };
    event.measuring(sample)
}

/// A call was not made.
pub fn refused(identity: &Arc<Identity>, endpoint: &Endpoint, refusal: Refusal) -> Event {
    let kind = endpoint.kind().as_str();
    Event::new(Level::Debug, "Call refused by circuit breaker")
        .of(identity)
        .with("kind", kind)
        .with("endpoint", endpoint.name())
        .with("circuit_breaker", refusal.phase.as_str())
        .with("retry_after_ms", whole_ms(refusal.retry_after))
        .measuring(REFUSALS.one(&[kind]))
}

/// A job is not called again.
pub fn retry_withheld(identity: &Arc<Identity>, endpoint: &Endpoint, withheld: Withheld) -> Event {
    let kind = endpoint.kind().as_str();
    let reason = match withheld {
        Withheld::Breaker(_) => REASONS[0],
        Withheld::NoToken => REASONS[1],
    };
    Event::new(Level::Debug, "Retry withheld")
        .of(identity)
        .with("kind", kind)
        .with("endpoint", endpoint.name())
        .with("reason", reason)
        .measuring(RETRIES_WITHHELD.one(&[kind, reason]))
}
