//! One call of a model, seen from outside: its span and its figures.
//!
//! Neighbours: [`super`] opens it around the attempt of a task that names a model, and closes it however that ends; the task
//! writes down meanwhile what it learns ([`ModelCall`]). Inert for all other tasks. Reads nothing of inputs and outputs.

use std::sync::Arc;

use caf_protocol::assignment::Identity;
use caf_protocol::block::{BlockContext, Task};
use caf_protocol::model_call::{ModelCall, ModelTarget};
use tokio::time::Instant;

use super::Attempt;
use super::retry::limit::Limit;
use crate::events::{self, Log};
use crate::trace::{Span, SpanKind};

/// A call that may be under way.
pub(super) struct Calling {
    target: ModelTarget,
    call: ModelCall,
    span: Span,
}

impl Calling {
    /// Opens the span of the call below that of the attempt; it is what the provider is told of.
    pub(super) fn open(task: &dyn Task, attempt: &Span, context: &mut BlockContext) -> Option<Self> {
        let target = task.model()?;
        let mut span = attempt.child("worker.llm.call", SpanKind::Client);
        span.set("provider.id", &*target.provider_id);
        span.set("model.id", &*target.model);
        context.correlation.span = span.context().cloned();
        let call = context.model_call.clone();
        Some(Self { target, call, span })
    }

    /// Says how it ended. An attempt that never got as far as asking leaves no trace of a call.
    pub(super) fn close(mut self, attempt: &Attempt, identity: &Arc<Identity>, log: &Log) {
        let facts = self.call.facts();
        if facts.sent.is_none() && !facts.is_rate_limited {
            self.span.discard();
            return;
        }
        let status = facts.status(matches!(attempt, Attempt::Done(Ok(_))));
        if let Some(sent) = facts.sent {
            self.span.begins_at(sent);
        }
        self.span.set("llm.call.status", status.as_str());
        let tokens = [
            ("llm.tokens.input", facts.usage.input),
            ("llm.tokens.output", facts.usage.output),
        ];
        for (name, tokens) in tokens {
            if let Some(tokens) = tokens {
                self.span.set(name, tokens);
            }
        }
        match attempt {
            Attempt::OutOfTime(limit) => self.span.fail(&Limit::failure(*limit)),
            other => {
                if let Some(failure) = other.failure() {
                    self.span.fail(failure);
                }
            }
        }
        let took = facts
            .sent
            .map(|sent| Instant::now().saturating_duration_since(sent));
        log.emit(events::models::called(
            identity,
            &self.target,
            &facts,
            status,
            took,
        ));
    }
}
