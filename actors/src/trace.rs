//! Spans of the pipeline, as plain data (contract 8.5): what happens to one delivery, from arrival to the last verdict.
//!
//! Neighbours: intake opens the span of a delivery by [`Tracer::execution`]; it travels in [`crate::job::Holdings`], and
//! whoever has those opens spans below it. A span is handed to the node's [`SpanSink`] when it is dropped, so that none is
//! left open whatever way a job takes. Knows no exporter and never waits. While traces are off, every [`Span`] is empty:
//! nothing is recorded, no id is made, nothing is passed on.
//!
//! Nothing that a job brings or yields is in a span but its ids: of a failure its code, type and the code's sentence, and
//! not the message, which may quote inputs. The log has that, masked, under the same ids.

pub mod sampler;
mod span;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::SystemTime;

use caf_protocol::trace_context::{RemoteTrace, SpanContext, SpanId, TRACEPARENT, TraceId};
use tokio::time::Instant;

pub use self::span::{Attribute, FinishedSpan, MAX_EVENTS, Span, SpanEvent, SpanKind};
use crate::sink::Outgoing;
use sampler::Sampler;

/// Where finished spans go. Never blocks.
pub trait SpanSink: Send + Sync + 'static {
    /// Takes one in.
    fn take(&self, span: FinishedSpan);
}

/// Opens the spans of deliveries, or none while traces are off. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Shared>>);

struct Shared {
    sink: Arc<dyn SpanSink>,
    sampler: Sampler,
    service_name: String,
}

/// A span that others may be opened below. Cheap to clone; empty while traces are off.
#[derive(Clone, Default)]
pub struct Scope(Option<(Arc<Shared>, SpanContext)>);

/// What is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publishing {
    /// An acknowledgement.
    Ack,
    /// A result.
    Result,
    /// A dead letter.
    DeadLetter,
}

impl Publishing {
    const fn span_name(self) -> &'static str {
        match self {
            Self::Ack => "worker.publish.ack",
            Self::Result => "worker.publish.result",
            Self::DeadLetter => "worker.publish.dead_letter",
        }
    }

    /// As metrics and the protocol crate, when it writes the header, name it.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Ack => "ack",
            Self::Result => "result",
            Self::DeadLetter => "dead_letter",
        }
    }
}

impl Tracer {
    /// Spans go to `sink` if `sampler` takes them; `service_name` is this node's, as spans say it.
    pub fn new(sink: Arc<dyn SpanSink>, sampler: Sampler, service_name: &str) -> Self {
        Self(Some(Arc::new(Shared {
            sink,
            sampler,
            service_name: service_name.to_owned(),
        })))
    }

    /// The span of a delivery that arrived at `received`, below the one that its message names.
    pub fn execution(&self, remote: Option<&RemoteTrace>, received: Instant) -> Span {
        let Some(shared) = &self.0 else {
            return Span::default();
        };
        let trace_id = remote.map_or_else(new_trace_id, |remote| remote.trace_id);
        let context = SpanContext {
            trace_id,
            span_id: new_span_id(),
            sampled: shared
                .sampler
                .takes(remote.and_then(|remote| remote.sampled), trace_id),
            state: remote.and_then(|remote| remote.state.clone()),
        };
        let parent = remote.and_then(|remote| remote.span_id);
        let mut span = shared.open("worker.execution", SpanKind::Consumer, context, parent);
        span.began_at(received);
        span.comes_from_afar();
        span.set("service.name", shared.service_name.as_str());
        span.set("execution.status", "started");
        span
    }

    /// What an earlier process was about to publish: below the span that its header names.
    pub fn left_behind(&self, message: &Outgoing) -> Scope {
        let named = message.headers.get(TRACEPARENT);
        let context = named.and_then(SpanContext::from_traceparent);
        Scope(self.0.clone().zip(context))
    }
}

impl Shared {
    fn open(
        self: &Arc<Self>,
        name: &'static str,
        kind: SpanKind,
        context: SpanContext,
        parent: Option<SpanId>,
    ) -> Span {
        let record = context.sampled.then(|| FinishedSpan {
            name,
            kind,
            context: context.clone(),
            parent,
            parent_is_remote: false,
            link: None,
            start: SystemTime::now(),
            end: SystemTime::UNIX_EPOCH,
            attributes: Vec::new(),
            events: Vec::new(),
            dropped_events: 0,
            error: None,
        });
        Span::open(
            Arc::clone(&self.sink),
            Scope(Some((Arc::clone(self), context))),
            record,
        )
    }
}

impl Scope {
    /// The span itself, as others are told of it.
    pub fn context(&self) -> Option<&SpanContext> {
        self.0.as_ref().map(|(_, context)| context)
    }

    /// Opens a span below this one.
    pub fn child(&self, name: &'static str, kind: SpanKind) -> Span {
        let Some((shared, context)) = &self.0 else {
            return Span::default();
        };
        let child = SpanContext {
            span_id: new_span_id(),
            ..context.clone()
        };
        shared.open(name, kind, child, Some(context.span_id))
    }

    /// Opens the span in which a message is published: the one that its header names, if it was written here. A message
    /// that is published once more, by another process or for another delivery, gets a span of its own with a link to that.
    pub fn publishing(&self, what: Publishing, message: &Outgoing) -> Span {
        let Some((shared, context)) = &self.0 else {
            return Span::default();
        };
        let named = message.headers.get(TRACEPARENT);
        let named = named.and_then(SpanContext::from_traceparent);
        let planned = context.publishing(what.kind());
        let is_planned = named
            .as_ref()
            .is_none_or(|named| named.span_id == planned.span_id);
        let own = SpanContext {
            span_id: if is_planned && named.is_some() {
                planned.span_id
            } else {
                new_span_id()
            },
            ..context.clone()
        };
        let mut span = shared.open(what.span_name(), SpanKind::Producer, own, Some(context.span_id));
        if let Some(named) = named.filter(|named| !is_planned && named.span_id != context.span_id) {
            span.link(named);
        }
        span.set("subject", message.subject.as_str());
        span
    }
}

/// A random id: unique among spans, no secret.
fn random() -> [u8; 8] {
    RandomState::new().hash_one(()).to_ne_bytes()
}

fn new_span_id() -> SpanId {
    loop {
        if let Some(id) = SpanId::new(random()) {
            return id;
        }
    }
}

fn new_trace_id() -> TraceId {
    loop {
        let (high, low) = (u64::from_ne_bytes(random()), u64::from_ne_bytes(random()));
        let both = u128::from(high) << 64 | u128::from(low);
        if let Some(id) = TraceId::new(both.to_ne_bytes()) {
            return id;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
