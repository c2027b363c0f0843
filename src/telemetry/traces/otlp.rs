//! Spans in the form of OTLP.
//!
//! Neighbours: [`super`] makes a request of each batch, [`super::wire`] sends it. Pure.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use caf_actors::mask::mask_text;
use caf_actors::trace::{Attribute, FinishedSpan, SpanKind};
use caf_protocol::trace_context::SpanContext;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource as OtlpResource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link, SpanKind as OtlpKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

use crate::settings::tracing::TracingSettings;
use crate::telemetry::secrets::Secrets;

/// Bit of a span's flags: it is known whether the parent is another process's.
const KNOWS_PARENT: u32 = 0x100;
/// Bit of a span's flags: the parent is another process's.
const PARENT_IS_REMOTE: u32 = 0x200;

/// A batch as it travels.
pub(super) type Request = ExportTraceServiceRequest;

/// This process, as each request names it, and what no span may hold.
pub(super) struct Resource(OtlpResource, Secrets);

impl Resource {
    /// The process that these settings and this id describe.
    pub(super) fn of(settings: &TracingSettings, worker_id: &str, secrets: Secrets) -> Self {
        let mut attributes = settings.resource_attributes();
        let known = [
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("service.instance.id", worker_id),
        ];
        for (name, value) in known {
            attributes
                .entry(name.to_owned())
                .or_insert_with(|| value.to_owned());
        }
        attributes.insert("service.name".to_owned(), settings.service_name());
        let attributes = attributes.into_iter();
        let resource = OtlpResource {
            attributes: attributes
                .map(|(name, value)| key_value(&name, Value::StringValue(value)))
                .collect(),
            ..OtlpResource::default()
        };
        Self(resource, secrets)
    }

    /// Ids are whatever callers put there.
    fn clean(&self, mut span: FinishedSpan) -> FinishedSpan {
        let of_events = span.events.iter_mut().flat_map(|event| &mut event.attributes);
        for (_, attribute) in span.attributes.iter_mut().chain(of_events) {
            if let Attribute::Text(text) = attribute {
                self.1.hide(text);
            }
        }
        span
    }

    /// A batch of this process's spans.
    pub(super) fn request(&self, batch: Vec<FinishedSpan>) -> Request {
        let scope = InstrumentationScope {
            name: "caf-worker".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let spans = ScopeSpans {
            scope: Some(scope),
            spans: batch
                .into_iter()
                .map(|finished| span(self.clean(finished)))
                .collect(),
            ..ScopeSpans::default()
        };
        Request {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.0.clone()),
                scope_spans: vec![spans],
                ..ResourceSpans::default()
            }],
        }
    }
}

fn span(span: FinishedSpan) -> Span {
    let kind = match span.kind {
        SpanKind::Internal => OtlpKind::Internal,
        SpanKind::Producer => OtlpKind::Producer,
        SpanKind::Consumer => OtlpKind::Consumer,
        SpanKind::Client => OtlpKind::Client,
    };
    let remote = if span.parent_is_remote {
        PARENT_IS_REMOTE
    } else {
        0
    };
    let status = match span.error {
        Some(message) => Status {
            code: StatusCode::Error.into(),
            message: message.to_owned(),
        },
        None => Status::default(),
    };
    Span {
        trace_id: span.context.trace_id.bytes().to_vec(),
        span_id: span.context.span_id.bytes().to_vec(),
        trace_state: state(&span.context),
        parent_span_id: span.parent.map(|id| id.bytes().to_vec()).unwrap_or_default(),
        flags: u32::from(span.context.sampled) | KNOWS_PARENT | remote,
        name: span.name.to_owned(),
        kind: kind.into(),
        start_time_unix_nano: nanos(span.start),
        end_time_unix_nano: nanos(span.end),
        attributes: attributes(span.attributes),
        events: span
            .events
            .into_iter()
            .map(|event| Event {
                time_unix_nano: nanos(event.at),
                name: event.name.to_owned(),
                attributes: attributes(event.attributes),
                dropped_attributes_count: 0,
            })
            .collect(),
        dropped_events_count: span.dropped_events,
        links: span.link.iter().map(link).collect(),
        status: Some(status),
        ..Span::default()
    }
}

fn link(context: &SpanContext) -> Link {
    Link {
        trace_id: context.trace_id.bytes().to_vec(),
        span_id: context.span_id.bytes().to_vec(),
        trace_state: state(context),
        flags: u32::from(context.sampled),
        ..Link::default()
    }
}

fn state(context: &SpanContext) -> String {
    context.state.as_deref().unwrap_or_default().to_owned()
}

fn attributes(given: Vec<(&'static str, Attribute)>) -> Vec<KeyValue> {
    let value = |value| match value {
        Attribute::Text(text) => Value::StringValue(masked(text)),
        Attribute::Number(number) => Value::IntValue(i64::try_from(number).unwrap_or(i64::MAX)),
        Attribute::Flag(flag) => Value::BoolValue(flag),
    };
    let pairs = given.into_iter();
    pairs.map(|(name, given)| key_value(name, value(given))).collect()
}

/// An id may be anything, a key too. Most are hexadecimal, and those are not looked at.
fn masked(text: String) -> String {
    if text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return text;
    }
    match mask_text(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(masked) => masked,
    }
}

fn key_value(name: &str, value: Value) -> KeyValue {
    KeyValue {
        key: name.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_look_like_secrets_are_masked_in_spans() {
        for (id, shown) in [
            (
                "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
                "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
            ),
            ("order 7: blue", "order 7: blue"),
            ("password=hunter2", "password=[REDACTED]"),
            ("sk-0123456789abcdef0123", "[REDACTED]"),
        ] {
            let sent = attributes(vec![("run.id", Attribute::from(id))]);
            let expected = key_value("run.id", Value::StringValue(shown.to_owned()));
            assert_eq!(sent, [expected], "{id}");
        }
    }
}
