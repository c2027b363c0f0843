//! One span: open while its value lives, handed over when that is dropped.
//!
//! Neighbours: [`super`] opens them. Times are those of the wall clock at the start and of the steady clock since.

use std::sync::Arc;
use std::time::SystemTime;

use caf_protocol::assignment::Identity;
use caf_protocol::outcome::Failure;
use caf_protocol::trace_context::{SpanContext, SpanId};
use tokio::time::Instant;

use super::{Scope, SpanSink};

/// Most events of a span: a publish is tried for as long as a broker is away.
pub const MAX_EVENTS: usize = 32;

/// Part that a span plays between processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// Within the worker.
    Internal,
    /// Sends a message.
    Producer,
    /// Works on a message.
    Consumer,
    /// Asks somebody and waits for the answer.
    Client,
}

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// A text: an id, a code, a name. Never anything that a job brings or yields.
    Text(String),
    /// A number.
    Number(u64),
    /// Yes or no.
    Flag(bool),
}

impl From<&str> for Attribute {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u64> for Attribute {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Attribute {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<bool> for Attribute {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

/// Something that happened within a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanEvent {
    /// What.
    pub name: &'static str,
    /// When.
    pub at: SystemTime,
    /// More of it.
    pub attributes: Vec<(&'static str, Attribute)>,
}

/// A span that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedSpan {
    /// Its name.
    pub name: &'static str,
    /// Its part.
    pub kind: SpanKind,
    /// Its ids.
    pub context: SpanContext,
    /// The span above it.
    pub parent: Option<SpanId>,
    /// Whether that one is another process's.
    pub parent_is_remote: bool,
    /// Another span that has to do with it.
    pub link: Option<SpanContext>,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// What is to be known of it.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// What happened within it, at most [`MAX_EVENTS`].
    pub events: Vec<SpanEvent>,
    /// Events beyond those.
    pub dropped_events: u32,
    /// Why it failed, if it did.
    pub error: Option<&'static str>,
}

/// An open span. Empty while traces are off; unrecorded when its trace is not sampled, but then others are still told of
/// it.
#[derive(Default)]
pub struct Span(Option<Box<Open>>);

struct Open {
    sink: Arc<dyn SpanSink>,
    scope: Scope,
    began: Instant,
    record: Option<FinishedSpan>,
}

impl Span {
    pub(super) fn open(sink: Arc<dyn SpanSink>, scope: Scope, record: Option<FinishedSpan>) -> Self {
        Self(Some(Box::new(Open {
            sink,
            scope,
            began: Instant::now(),
            record,
        })))
    }

    /// For spans below this one.
    pub fn scope(&self) -> Scope {
        self.0.as_ref().map(|open| open.scope.clone()).unwrap_or_default()
    }

    /// Opens a span below this one.
    pub fn child(&self, name: &'static str, kind: SpanKind) -> Self {
        self.0
            .as_ref()
            .map(|open| open.scope.child(name, kind))
            .unwrap_or_default()
    }

    /// As others are told of it; nothing while traces are off.
    pub fn context(&self) -> Option<&SpanContext> {
        self.0.as_ref()?.scope.context()
    }

    fn record(&mut self) -> Option<&mut FinishedSpan> {
        self.0.as_mut()?.record.as_mut()
    }

    /// Whether anybody will see it: what is not to be had for nothing need not be said to others.
    pub fn is_recorded(&self) -> bool {
        self.0.as_ref().is_some_and(|open| open.record.is_some())
    }

    /// Says one thing about it; what was said before under this name is replaced.
    pub fn set(&mut self, name: &'static str, value: impl Into<Attribute>) {
        let Some(record) = self.record() else { return };
        let value = value.into();
        match record.attributes.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => record.attributes.push((name, value)),
        }
    }

    /// Says whose assignment it is about.
    pub fn identify(&mut self, identity: &Identity) {
        let correlation = &identity.correlation;
        let span_trace = self.context().map(|context| context.trace_id.to_string());
        let other_trace = correlation
            .trace_id
            .as_ref()
            .or(correlation.original_trace_id.as_ref());
        let ids = [
            ("tenant.id", Some(&identity.tenant_id)),
            ("run.id", correlation.raw.run_id.as_ref()),
            ("flow.id", correlation.raw.flow_id.as_ref()),
            ("assignment.id", Some(&identity.assignment_id)),
            ("request.id", identity.request_id.as_ref()),
            // Under this id the log and the result speak of it.
            (
                "assignment.trace_id",
                other_trace.filter(|other| Some(*other) != span_trace.as_ref()),
            ),
        ];
        for (name, id) in ids {
            if let Some(id) = id {
                self.set(name, id.as_str());
            }
        }
        if identity.replay > 0 {
            self.set("assignment.replay", identity.replay);
        }
    }

    /// Says that something happens now.
    pub fn event(&mut self, name: &'static str, attributes: Vec<(&'static str, Attribute)>) {
        let Some(record) = self.record() else { return };
        if record.events.len() >= MAX_EVENTS {
            record.dropped_events += 1;
            return;
        }
        record.events.push(SpanEvent {
            name,
            at: SystemTime::now(),
            attributes,
        });
    }

    /// Says that it failed, and how.
    pub fn fail(&mut self, failure: &Failure) {
        let code = failure.code;
        self.set("error.code", code.as_str());
        self.set("error.message", code.sentence());
        self.set("error.type", failure.error_type());
        let status = failure.details.get("status_code");
        if let Some(status) = status.and_then(serde_json::Value::as_u64) {
            self.set("http.response.status_code", status);
        }
        self.mark_failed(code.sentence());
    }

    /// Says that it failed, where no job did.
    pub fn mark_failed(&mut self, why: &'static str) {
        if let Some(record) = self.record() {
            record.error = Some(why);
        }
    }

    pub(super) fn link(&mut self, other: SpanContext) {
        if let Some(record) = self.record() {
            record.link = Some(other);
        }
    }

    pub(super) fn comes_from_afar(&mut self) {
        if let Some(record) = self.record() {
            record.parent_is_remote = record.parent.is_some();
        }
    }

    /// Says that it began before it was opened.
    pub(super) fn began_at(&mut self, began: Instant) {
        let Some(open) = &mut self.0 else { return };
        let earlier = open.began.saturating_duration_since(began);
        open.began = began.min(open.began);
        if let Some(record) = &mut open.record {
            record.start = record.start.checked_sub(earlier).unwrap_or(record.start);
        }
    }

    /// Says that it began later than it was opened.
    pub fn begins_at(&mut self, began: Instant) {
        let Some(open) = &mut self.0 else { return };
        let later = began.saturating_duration_since(open.began);
        open.began += later;
        if let Some(record) = &mut open.record {
            record.start += later;
        }
    }

    /// Nobody gets to see it: what it was opened for did not come about.
    pub fn discard(mut self) {
        self.0 = None;
    }

    /// Milliseconds since it began.
    pub fn elapsed_ms(&self) -> u64 {
        let elapsed = self.0.as_ref().map(|open| open.began.elapsed());
        elapsed.map_or(0, crate::clock::whole_ms)
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(open) = self.0.take() else { return };
        let Open {
            sink, began, record, ..
        } = *open;
        if let Some(mut record) = record {
            record.end = record.start + began.elapsed();
            sink.take(record);
        }
    }
}
