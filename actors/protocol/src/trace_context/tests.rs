use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::ack::ExecAssignmentAck;
use crate::assignment::{Identity, Reading, read};
use crate::outcome::{Failure, Outcome, StepResult};
use crate::result::ExecResult;

const TRACE: &str = "9f3c1a7be24d40c88a61d2f05b7e934c";
const SPAN: &str = "00f067aa0ba902b7";

fn parent() -> String {
    format!("00-{TRACE}-{SPAN}-01")
}

fn headers(pairs: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::default();
    pairs.iter().for_each(|(name, value)| headers.push(*name, *value));
    headers
}

fn identity(fields: Value, pairs: &[(&str, &str)]) -> Identity {
    let mut message = json!({"assignment_id": "a", "tenant_id": "t"});
    if let (Value::Object(message), Value::Object(fields)) = (&mut message, fields) {
        message.extend(fields);
    }
    match read(message.to_string().as_bytes(), &headers(pairs)) {
        Reading::Invalid(identity, _) => identity,
        other => panic!("{other:?}"),
    }
}

fn remote(fields: Value, pairs: &[(&str, &str)]) -> Option<RemoteTrace> {
    identity(fields, pairs).correlation.remote
}

/// Trace, span and flag as texts.
fn shown(remote: Option<RemoteTrace>) -> Option<(String, String, Option<bool>)> {
    let span = |id: Option<SpanId>| id.map(|id| id.to_string()).unwrap_or_default();
    remote.map(|remote| (remote.trace_id.to_string(), span(remote.span_id), remote.sampled))
}

#[test]
fn a_valid_traceparent_is_read_and_written_the_same() {
    for flags in ["00", "01"] {
        let text = format!("00-{TRACE}-{SPAN}-{flags}");
        let context = SpanContext::from_traceparent(&text).expect("is valid");
        assert_eq!(context.traceparent(), text);
    }
    let unknown_flags = SpanContext::from_traceparent(&format!("00-{TRACE}-{SPAN}-ff")).expect("is valid");
    assert_eq!(unknown_flags.traceparent(), parent());
}

#[test]
fn of_a_later_version_the_known_fields_count() {
    for rest in ["", "-", "-extra", "-what-the-future-will-be-like"] {
        for version in ["01", "cc", "fe"] {
            let text = format!("{version}-{TRACE}-{SPAN}-01{rest}");
            let context = SpanContext::from_traceparent(&text).expect(&text);
            assert_eq!(context.traceparent(), parent(), "{text}");
        }
    }
}

#[test]
fn a_malformed_traceparent_is_ignored() {
    let hex_of_text = "39663363316137626532346434306338386136316432663035623765393334".repeat(2);
    for bad in [
        String::new(),
        format!("ff-{TRACE}-{SPAN}-01"),
        format!("ff-{TRACE}-{SPAN}-01-extra"),
        format!("CC-{TRACE}-{SPAN}-01"),
        format!("c-{TRACE}-{SPAN}-01"),
        format!("cc-{TRACE}-{SPAN}"),
        format!("cc-{TRACE}-{SPAN}-01.extra"),
        format!("cc-{TRACE}-{}-01-extra", "0".repeat(16)),
        format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
        format!("00-{TRACE}-{}-01", SPAN.to_uppercase()),
        format!("00-{TRACE}-{}-01", "0".repeat(16)),
        format!("00-{}-{SPAN}-01", "0".repeat(32)),
        format!("00-{TRACE}-{SPAN}-1"),
        format!("00-{TRACE}-{SPAN}-0g"),
        format!("00-{TRACE}-{SPAN}-01-x"),
        format!("00-{TRACE}-{SPAN}"),
        format!(" 00-{TRACE}-{SPAN}-01"),
        format!("00-{hex_of_text}-{TRACE}-01"),
        format!("00-{}é-{SPAN}-01", &TRACE[2..]),
    ] {
        assert_eq!(SpanContext::from_traceparent(&bad), None, "{bad}");
        assert_eq!(
            remote(json!({"traceparent": bad}), &[(TRACEPARENT, &bad)]),
            None,
            "{bad}"
        );
    }
}

#[test]
fn the_strongest_usable_source_counts() {
    let other = "11111111111111111111111111111111";
    let in_payload = format!("00-{other}-{SPAN}-00");
    let cases = [
        (
            json!({"traceparent": in_payload, "trace_id": other}),
            vec![("Traceparent", parent())],
            (TRACE, SPAN, Some(true)),
        ),
        (
            json!({"traceparent": in_payload, "trace_id": TRACE}),
            vec![],
            (other, SPAN, Some(false)),
        ),
        (
            json!({"correlation": {"traceparent": in_payload}}),
            vec![],
            (other, SPAN, Some(false)),
        ),
        (
            json!({"metadata": {"traceparent": in_payload}}),
            vec![],
            (other, SPAN, Some(false)),
        ),
        (
            json!({"trace_id": TRACE, "span_id": SPAN}),
            vec![("X-Trace-Id", other.to_owned())],
            (TRACE, SPAN, None),
        ),
        (
            json!({"trace_id": "tr-1"}),
            vec![("trace_id", TRACE.to_uppercase()), ("span_id", SPAN.to_owned())],
            (TRACE, SPAN, None),
        ),
        (
            json!({"trace_id": "9f3c1a7b-e24d-40c8-8a61-d2f05b7e934c"}),
            vec![],
            (TRACE, "", None),
        ),
        (
            json!({"trace_id": TRACE, "span_id": "f".repeat(64)}),
            vec![("span_id", SPAN.to_owned())],
            (TRACE, SPAN, None),
        ),
        (
            json!({"trace_id": TRACE}),
            vec![("trace_id", other.to_owned()), ("span_id", SPAN.to_owned())],
            (TRACE, "", None),
        ),
        (
            json!({}),
            vec![("x-trace-id", TRACE.to_owned()), ("X-Span-Id", SPAN.to_owned())],
            (TRACE, SPAN, None),
        ),
    ];
    for (fields, pairs, (trace, span, sampled)) in cases {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let expected = Some((trace.to_owned(), span.to_owned(), sampled));
        assert_eq!(
            shown(remote(fields.clone(), &pairs)),
            expected,
            "{fields} {pairs:?}"
        );
    }
    assert_eq!(
        remote(json!({"trace_id": "0".repeat(32)}), &[("X-Trace-Id", "no")]),
        None
    );
}

#[test]
fn of_two_traceparents_none_counts() {
    let parent = parent();
    let twice = [(TRACEPARENT, &*parent), ("Traceparent", &*parent)];
    assert_eq!(remote(json!({}), &twice), None);
}

#[test]
fn a_tracestate_is_passed_on_only_when_it_is_valid_and_beside_its_traceparent() {
    let state = |pairs: &[(&str, &str)]| {
        let parent = parent();
        let all = [&[(TRACEPARENT, &*parent)], pairs].concat();
        remote(json!({}), &all).and_then(|remote| remote.state)
    };
    for good in ["a=1", "a=1, b@v=x y", "rojo=00f0,congo=t61"] {
        assert_eq!(state(&[(TRACESTATE, good)]).as_deref(), Some(good));
    }
    let split = [(TRACESTATE, "a=1"), (TRACESTATE, "b=2")];
    assert_eq!(state(&split).as_deref(), Some("a=1,b=2"));
    let (long, many) = (format!("a={}", "x".repeat(511)), "a=1,".repeat(33));
    for bad in [
        "", ",", "a", "A=1", "=1", "a=", "a=1,a=2", "a=ü", "a@b@c=1", &long, &many,
    ] {
        assert_eq!(state(&[(TRACESTATE, bad)]), None, "{bad}");
    }
    let elsewhere = remote(json!({"traceparent": parent()}), &[(TRACESTATE, "a=1")]);
    assert_eq!(elsewhere.and_then(|remote| remote.state), None);
}

#[test]
fn answers_say_in_which_span_they_are_published_and_their_bodies_do_not_change() {
    let plain = identity(json!({}), &[]);
    let mut traced = plain.clone();
    let mut context = SpanContext::from_traceparent(&parent()).expect("is valid");
    context.state = Some("a=1".into());
    traced.correlation.span = Some(context.clone());
    let step = || StepResult {
        cost: Default::default(),
        outcome: Outcome::from(Failure::timeout("the deadline")),
        latency_ms: 1,
        retries_used: 0,
    };
    let answers = |identity: &Identity| {
        let ack = ExecAssignmentAck::new(identity, None, None, 1);
        let result = ExecResult::new(identity, step(), "w", 1);
        let body = (json!(ack), json!(result));
        (body, [ack.headers(), result.headers()])
    };
    let ((plain_bodies, plain_headers), (traced_bodies, traced_headers)) =
        (answers(&plain), answers(&traced));
    assert_eq!(plain_bodies, traced_bodies);
    for (kind, (without, with)) in ["ack", "result"]
        .into_iter()
        .zip(plain_headers.iter().zip(&traced_headers))
    {
        assert_eq!((without.get(TRACEPARENT), without.get(TRACESTATE)), (None, None));
        let published = SpanContext::from_traceparent(with.get(TRACEPARENT).expect("is there"));
        let expected = SpanContext {
            state: None,
            ..context.publishing(kind)
        };
        assert_eq!((published, with.get(TRACESTATE)), (Some(expected), Some("a=1")));
    }
    assert_ne!(context.publishing("ack"), context.publishing("result"));
}

proptest! {
    #[test]
    fn whatever_is_read_can_be_written_and_read_again(text in "(00|01|-|0|f|9f3c1a7be24d40c8|00f067aa0ba902b7|é){0,9}") {
        if let Some(context) = SpanContext::from_traceparent(&text) {
            prop_assert_eq!(SpanContext::from_traceparent(&context.traceparent()), Some(context));
        }
    }
}
