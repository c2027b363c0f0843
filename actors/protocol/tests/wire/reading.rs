//! The reading direction: every assignment on file is read as its neighbour file says.

use std::collections::BTreeSet;

use caf_protocol::assignment::{Identity, Payload, Reading, read};
use caf_protocol::headers::Headers;
use caf_protocol::reference::Location;
use caf_testkit::fixtures::{self, AssignmentFixture};
use serde_json::{Map, Value, json};

pub(crate) fn headers(pairs: &[(String, String)]) -> Headers {
    let mut headers = Headers::default();
    for (name, value) in pairs {
        headers.push(name, value);
    }
    headers
}

/// A reading in the form of the `.expected.json` files: what is not known is absent.
fn describe(reading: &Reading) -> Value {
    let described = match reading {
        Reading::Unanswerable(failure) => json!({
            "reading": "unanswerable",
            "code": failure.code,
            "field": failure.details["field"],
        }),
        Reading::Invalid(identity, refusal) => json!({
            "reading": "invalid",
            "identity": describe_identity(identity),
            "reason": refusal.reason,
            "code": refusal.failure.code,
            "field": refusal.failure.details["field"],
        }),
        Reading::Valid(assignment) => {
            assert_eq!(
                assignment.identity.job_type.as_deref(),
                Some(assignment.job_type.as_str())
            );
            let (inputs, reference) = match &assignment.payload {
                Payload::Inline(inputs) => (Some(inputs), None),
                Payload::Referenced(reference) => (None, Some(reference)),
            };
            json!({
                "reading": "valid",
                "identity": describe_identity(&assignment.identity),
                "inputs": inputs,
                "payload_ref": reference.map(|reference| describe_location(&reference.location)),
                "payload_sha256": reference.and_then(|reference| reference.sha256.as_deref()),
                "deadline_ms": assignment.deadline_ms,
                "max_attempts": assignment.max_attempts,
                "resource_class": assignment.resource_class,
            })
        }
    };
    without_nulls(described)
}

fn describe_location(location: &Location) -> Value {
    match location {
        Location::Object { bucket, key } => json!({"bucket": bucket, "key": key}),
        Location::File { path } => json!({"path": path}),
        Location::Http { url } => json!({"url": url.as_str()}),
    }
}

fn describe_identity(identity: &Identity) -> Value {
    let correlation = &identity.correlation;
    without_nulls(json!({
        "assignment_id": identity.assignment_id,
        "tenant_id": identity.tenant_id,
        "request_id": identity.request_id,
        "provider_id": identity.provider_id,
        "job_type": identity.job_type,
        "idempotency_key": identity.idempotency_key,
        "trace_id": correlation.trace_id,
        "original_trace_id": correlation.original_trace_id,
        "run_id": correlation.raw.run_id,
        "flow_id": correlation.raw.flow_id,
        "step_id": correlation.raw.step_id,
    }))
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let known: Map<_, _> = object.into_iter().filter(|(_, value)| !value.is_null()).collect();
            known.into()
        }
        other => other,
    }
}

pub(crate) fn read_fixture(fixture: &AssignmentFixture) -> Reading {
    read(&fixture.payload, &headers(&fixture.headers))
}

#[test]
fn every_assignment_on_file_is_read_as_expected() {
    for fixture in fixtures::assignments() {
        assert_eq!(
            describe(&read_fixture(&fixture)),
            fixture.expected,
            "{}",
            fixture.name
        );
    }
}

#[test]
fn every_variant_of_the_contract_and_every_kind_of_reading_is_on_file() {
    let fixtures = fixtures::assignments();
    let variants: BTreeSet<_> = fixtures.iter().filter_map(|f| f.name.chars().next()).collect();
    assert_eq!(variants, ('a'..='g').collect());
    let readings: BTreeSet<_> = fixtures
        .iter()
        .filter_map(|f| f.expected["reading"].as_str())
        .collect();
    assert_eq!(readings, ["invalid", "unanswerable", "valid"].into());
}

#[test]
fn the_order_of_fields_and_white_space_do_not_matter() {
    for fixture in fixtures::assignments() {
        let value: Value = serde_json::from_slice(&fixture.payload).expect("fixtures are JSON");
        for text in [value.to_string(), format!("\r\n {value:#} \t")] {
            let reading = read(text.as_bytes(), &headers(&fixture.headers));
            assert_eq!(describe(&reading), fixture.expected, "{}", fixture.name);
        }
    }
}
