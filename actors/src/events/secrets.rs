//! The audit of named secrets: one line for each time that a job asked for a value, and a count by outcome.
//!
//! Neighbours: the node gives an [`Audit`] to the vault that blocks ask. Says names, tenants and destinations; never a
//! value, and no name that nobody gave a secret: it may be a value in the wrong place.

use std::sync::Arc;

use caf_protocol::assignment::Identity;
use caf_protocol::secret::vault::{Asked, Denial, Witness};

use super::{Event, Level, Log};
use crate::metrics::{Metric, MetricKind};

/// What becomes of a question for a value.
pub const OUTCOMES: &[&str] = &["used", "denied"];

/// Questions for values.
pub static USES: Metric = Metric {
    name: "worker_secret_uses_total",
    help: "Times that an attempt of a job named a secret: whether it was given the value.",
    labels: &["outcome"],
    kind: MetricKind::Counter,
};

/// Tells every answer of a vault to the log.
#[derive(Clone)]
pub struct Audit(Log);

impl Audit {
    /// To this log.
    pub fn new(log: Log) -> Self {
        Self(log)
    }
}

impl Witness for Audit {
    fn saw(&self, asked: &Asked<'_>) {
        self.0.emit(asked_for(asked));
    }
}

/// A job asked for a value.
fn asked_for(asked: &Asked<'_>) -> Event {
    let (level, message, outcome) = match asked.denial {
        None => (Level::Info, "Secret used", "used"),
        Some(_) => (Level::Warn, "Secret denied", "denied"),
    };
    let identity = Identity {
        assignment_id: asked.context.assignment_id.clone(),
        tenant_id: asked.context.tenant_id.clone(),
        correlation: asked.context.correlation.clone(),
        job_type: Some(asked.block_type.to_owned()),
        ..Identity::default()
    };
    let event = Event::new(level, message)
        .of(&Arc::new(identity))
        .with("name", asked.name.unwrap_or("(unknown)"))
        .with("destination", asked.target.to_string())
        .with("attempt", asked.context.attempt)
        .measuring(USES.one(&[outcome]));
    match asked.denial.map(Denial::as_str) {
        Some(reason) => event.with("reason", reason),
        None => event,
    }
}
