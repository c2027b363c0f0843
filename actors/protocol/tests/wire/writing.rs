//! The writing direction: whatever the worker writes, the router accepts, the schema allows, and stricter rules find
//! nothing to object to.

use std::sync::LazyLock;

use caf_protocol::ack::{ExecAssignmentAck, OverloadStatus, RejectReason};
use caf_protocol::assignment::{Identity, Payload, Reading, read};
use caf_protocol::block::Outputs;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::headers::Headers;
use caf_protocol::ids::{Correlation, RunFlowStep};
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use caf_protocol::result::{ExecResult, OutputRef};
use caf_protocol::schemas;
use caf_testkit::router::{BreakerCount, Header, RouterIntake, Verdict, breaker_counts};
use caf_testkit::strict;
use jsonschema::Validator;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const REASONS: [RejectReason; 10] = [
    RejectReason::UnsupportedVersion,
    RejectReason::MissingField,
    RejectReason::InvalidField,
    RejectReason::DuplicateKey,
    RejectReason::UnsupportedJobType,
    RejectReason::InvalidInputs,
    RejectReason::UnsupportedPayloadRef,
    RejectReason::TenantNotAllowed,
    RejectReason::QuotaExceeded,
    RejectReason::QueueFull,
];

pub(crate) fn validator(file: &str) -> Validator {
    let (_, schema) = schemas::all()
        .into_iter()
        .find(|(name, _)| *name == file)
        .expect("is generated");
    jsonschema::validator_for(schema.as_value()).expect("is a schema")
}

fn pairs(headers: &Headers) -> Vec<Header> {
    headers
        .iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Holds headers to what any broker carries unchanged.
fn check_headers(headers: &Headers, context: &str) {
    for (name, value) in headers.iter() {
        assert!(
            !value.is_empty() && value.trim() == value,
            "{context}: header {name}: {value:?}"
        );
        assert!(
            !value.chars().any(char::is_control),
            "{context}: header {name}: {value:?}"
        );
    }
    assert!(
        headers
            .get("Nats-Msg-Id")
            .is_some_and(|id| id.bytes().all(|b| b.is_ascii_graphic())),
        "{context}"
    );
    assert_eq!(headers.get("version"), Some("1"), "{context}");
}

/// Holds an acknowledgement to every rule there is.
pub(crate) fn check_ack(ack: &ExecAssignmentAck, context: &str) {
    static SCHEMA: LazyLock<Validator> = LazyLock::new(|| validator("exec_assignment_ack.json"));
    let value = serde_json::to_value(ack).expect("serialises");
    let bytes = serde_json::to_vec(ack).expect("serialises");
    check_headers(&ack.headers(), context);
    for headers in [Vec::new(), pairs(&ack.headers())] {
        assert_eq!(
            RouterIntake::new().ack(&headers, &bytes),
            Verdict::Accepted,
            "{context}: {value}"
        );
    }
    assert_eq!(strict::faults(&value), Vec::<String>::new(), "{context}: {value}");
    assert!(
        SCHEMA.is_valid(&value),
        "{context}: {:?}: {value}",
        SCHEMA.iter_errors(&value).map(|e| e.to_string()).next()
    );
}

/// Holds a result to every rule there is.
pub(crate) fn check_result(result: &ExecResult, context: &str) {
    static SCHEMA: LazyLock<Validator> = LazyLock::new(|| validator("exec_result.json"));
    let value = serde_json::to_value(result).expect("serialises");
    let bytes = serde_json::to_vec(result).expect("serialises");
    check_headers(&result.headers(), context);
    for headers in [Vec::new(), pairs(&result.headers())] {
        assert_eq!(
            RouterIntake::new().result(&headers, &bytes),
            Verdict::Accepted,
            "{context}: {value}"
        );
    }
    assert_eq!(strict::faults(&value), Vec::<String>::new(), "{context}: {value}");
    assert!(
        SCHEMA.is_valid(&value),
        "{context}: {:?}: {value}",
        SCHEMA.iter_errors(&value).map(|e| e.to_string()).next()
    );
}

/// Identities from the plainest to the worst that reading lets through.
fn identities() -> Vec<(&'static str, Identity)> {
    let some = |text: &str| Some(text.to_owned());
    let plain = Identity {
        assignment_id: "7be1d04c-52f4-a1c9-3e77-90b2f6d81a35".to_owned(),
        tenant_id: "acme".to_owned(),
        request_id: some("3d0f6c1e-8a52-4b7d-9e13-5c2a7f90b846"),
        provider_id: some("prov-a"),
        job_type: some("http.request"),
        correlation: Correlation::default(),
        idempotency_key: None,
        replay: 0,
        sandbox: false,
    };
    let ids = |run, flow, step| RunFlowStep {
        run_id: run,
        flow_id: flow,
        step_id: step,
    };
    let (ulid, uuid) = (
        "01J8ZQ4T6M9X2K7V5R3N1B0CDE",
        "4f9d2c6a-1b3e-4c5d-8e7f-0a1b2c3d4e5f",
    );
    let with = |correlation| Identity {
        correlation,
        ..plain.clone()
    };
    let traced = Correlation {
        trace_id: some("9f3c1a7be24d40c88a61d2f05b7e934c"),
        ..Correlation::default()
    };
    vec![
        ("traced", with(traced.clone())),
        (
            "followed",
            with(Correlation {
                raw: ids(some(ulid), some(ulid), some(uuid)),
                ..traced.clone()
            }),
        ),
        (
            "a lone run id",
            with(Correlation {
                raw: ids(some(ulid), None, None),
                ..traced.clone()
            }),
        ),
        (
            "one bad id of three",
            with(Correlation {
                raw: ids(some(ulid), some("flow-1"), some(uuid)),
                ..traced
            }),
        ),
        (
            "a badly formatted trace",
            with(Correlation {
                original_trace_id: some(" tr\u{202e}-1 "),
                ..Correlation::default()
            }),
        ),
        (
            "an idempotency key",
            Identity {
                idempotency_key: some(&"k".repeat(256)),
                ..plain.clone()
            },
        ),
        (
            "ids that look like wildcards",
            Identity {
                assignment_id: "a.*.>".to_owned(),
                tenant_id: " > ".to_owned(),
                request_id: some("*"),
                provider_id: some("試験"),
                job_type: some(" "),
                ..plain.clone()
            },
        ),
        (
            "the longest ids",
            Identity {
                assignment_id: "é".repeat(64),
                tenant_id: "t".repeat(256),
                request_id: some(&"r".repeat(128)),
                ..plain.clone()
            },
        ),
        (
            "nothing but what must be",
            Identity {
                request_id: None,
                provider_id: None,
                job_type: None,
                ..plain.clone()
            },
        ),
        ("plain", plain),
    ]
}

/// Every kind of outcome with every code, with and without a fact that steers the breaker, and with hostile texts.
fn outcomes() -> Vec<Outcome> {
    let mut outputs = Map::new();
    outputs.insert("rows".to_owned(), json!([null, "", {"undefined": "undefined"}]));
    let mut outcomes = vec![Outcome::Success(Map::new()), Outcome::Success(outputs.clone())];
    for code in ErrorCode::ALL {
        for message in ["", "status 405: a timeout of the connection", "plain words"] {
            for status_code in [None, Some(404), Some(503)] {
                let mut failure = Failure::new(code, message).internally("secret host");
                failure.outputs = outputs.clone();
                failure
                    .details
                    .extend(status_code.map(|status| ("status_code".to_owned(), json!(status))));
                outcomes.extend([
                    Outcome::from(failure.clone()),
                    Outcome::Error(failure.clone()),
                    Outcome::Timeout(failure.clone()),
                    Outcome::Cancelled(failure),
                ]);
            }
        }
    }
    outcomes
}

fn result_of(identity: &Identity, outcome: &Outcome) -> ExecResult {
    let step = StepResult {
        cost: Default::default(),
        outcome: outcome.clone(),
        latency_ms: 412,
        retries_used: 2,
    };
    ExecResult::new(identity, step, "w-1", 1_767_225_600_535)
}

#[test]
fn every_result_of_every_identity_and_outcome_is_accepted() {
    for (name, identity) in identities() {
        for outcome in outcomes() {
            let mut result = result_of(&identity, &outcome);
            check_result(&result, name);
            result.overload_status = Some(OverloadStatus::Critical);
            result.queue_depth = Some(7);
            check_result(&result, name);
        }
    }
}

#[test]
fn a_result_whose_outputs_are_kept_elsewhere_is_accepted() {
    for (name, identity) in identities() {
        for outcome in outcomes() {
            let mut result = result_of(&identity, &outcome);
            result.outputs = Map::new();
            result.output_ref = Some(OutputRef {
                uri: "nats-obj://caf-outputs/k".to_owned(),
                size: 2_000_000,
                sha256: "0a".repeat(32),
            });
            check_result(&result, name);
        }
    }
}

#[test]
fn every_acknowledgement_of_every_identity_is_accepted() {
    use OverloadStatus as O;
    for (name, identity) in identities() {
        for rejection in REASONS.map(Some).into_iter().chain([None]) {
            for overload in [
                None,
                Some(O::Healthy),
                Some(O::Degraded),
                Some(O::Overloaded),
                Some(O::Critical),
            ] {
                let ack = ExecAssignmentAck::new(&identity, rejection, overload, 1_767_225_600_123);
                check_ack(&ack, name);
                let value = serde_json::to_value(&ack).expect("serialises");
                assert_eq!(value["message"], value["reason"]);
                assert_eq!(
                    value["status"],
                    if rejection.is_some() {
                        "rejected"
                    } else {
                        "accepted"
                    }
                );
            }
        }
    }
}

#[test]
fn an_answers_numbers_are_numbers_and_its_job_is_an_object() {
    let (_, identity) = &identities()[0];
    let value = serde_json::to_value(result_of(identity, &outcomes()[2])).expect("serialises");
    for number in ["latency_ms", "cost", "timestamp", "retries_used"] {
        assert!(value[number].is_number(), "{number} in {value}");
    }
    assert_eq!(value["job"], json!({"type": "http.request"}));
    assert!(!value.to_string().contains("secret host"), "{value}");
}

#[test]
fn a_result_and_its_acknowledgement_carry_different_message_ids() {
    for (name, identity) in identities() {
        let ack = ExecAssignmentAck::new(&identity, None, None, 1).headers();
        let result = result_of(&identity, &outcomes()[0]).headers();
        assert_ne!(ack.get("Nats-Msg-Id"), result.get("Nats-Msg-Id"), "{name}");
    }
}

#[test]
fn the_routers_breaker_blames_the_provider_for_the_providers_faults_only() {
    let (_, identity) = &identities()[0];
    for outcome in outcomes() {
        let bytes = serde_json::to_vec(&result_of(identity, &outcome)).expect("serialises");
        let expected = match &outcome {
            Outcome::Success(_) => BreakerCount::Success,
            Outcome::Timeout(_) => BreakerCount::Failure,
            Outcome::Cancelled(_) => BreakerCount::Ignored,
            Outcome::Error(failure) => {
                let status = failure.details.get("status_code").and_then(Value::as_u64);
                let providers = match failure.code {
                    ErrorCode::NetworkError | ErrorCode::ConnectionTimeout => true,
                    ErrorCode::HttpError => status == Some(503),
                    _ => false,
                };
                if providers {
                    BreakerCount::Failure
                } else {
                    BreakerCount::Ignored
                }
            }
        };
        assert_eq!(breaker_counts(&bytes), expected, "{outcome:?}");
    }
}

/// Ids as nobody should send them, and some as they should.
fn junk() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        Just(json!(7)),
        Just(json!("")),
        Just(json!("undefined")),
        Just(json!("01J8ZQ4T6M9X2K7V5R3N1B0CDE")),
        Just(json!("01j8zq4t6m9x2k7v5r3n1b0cde")),
        Just(json!("9f3c1a7be24d40c88a61d2f05b7e934c")),
        Just(json!("4f9d2c6a-1b3e-4c5d-8e7f-0a1b2c3d4e5f")),
        any::<String>().prop_map(Value::from),
        "[ -~]{1,300}".prop_map(Value::from),
        "\\PC{1,40}".prop_map(Value::from),
    ]
}

proptest! {
    #[test]
    fn no_junk_in_any_id_makes_the_router_put_an_answer_aside(
        ids in prop::collection::vec(junk(), 12),
        header in "\\PC{0,40}",
    ) {
        let message = json!({
            "version": "1", "assignment_id": ids[0], "request_id": ids[1], "tenant_id": ids[2],
            "executor": {"provider_id": ids[3]}, "job": {"type": ids[4]}, "trace_id": ids[5],
            "correlation": {"trace_id": ids[6], "run_id": ids[7]}, "run_id": ids[8], "flow_id": ids[9],
            "metadata": {"step_id": ids[10]}, "idempotency_key": ids[11],
            "decision": {"metadata": {"tenant_id": "acme"}},
        });
        let mut headers = Headers::default();
        headers.push("trace_id", header.clone());
        headers.push("tenant_id", header);
        let (identity, rejection, outcome) = match read(message.to_string().as_bytes(), &headers) {
            Reading::Unanswerable(_) => return Ok(()),
            Reading::Invalid(identity, refusal) => (identity, Some(refusal.reason), Outcome::from(refusal.failure)),
            Reading::Valid(assignment) => {
                let outputs = match assignment.payload {
                    Payload::Inline(inputs) => inputs,
                    Payload::Referenced(_) => Outputs::new(),
                };
                (assignment.identity, None, Outcome::Success(outputs))
            }
        };
        check_ack(&ExecAssignmentAck::new(&identity, rejection, None, 1), "junk");
        check_result(&result_of(&identity, &outcome), "junk");
    }
}

#[test]
fn what_answers_a_replay_differs_from_the_first_answer_in_its_message_id_only() {
    for (name, first) in identities() {
        let replay = Identity {
            replay: 3,
            ..first.clone()
        };
        let id = |headers: caf_protocol::headers::Headers| headers.get("Nats-Msg-Id").map(str::to_owned);
        let ack = |identity| ExecAssignmentAck::new(identity, None, None, 1);
        assert_eq!(json!(ack(&first)), json!(ack(&replay)), "{name}");
        assert_ne!(id(ack(&first).headers()), id(ack(&replay).headers()), "{name}");
        let step = || StepResult {
            cost: Default::default(),
            outcome: Outcome::Success(Map::new()),
            latency_ms: 1,
            retries_used: 0,
        };
        let result = |identity| ExecResult::new(identity, step(), "w-1", 1);
        assert_eq!(json!(result(&first)), json!(result(&replay)), "{name}");
        assert_ne!(
            id(result(&first).headers()),
            id(result(&replay).headers()),
            "{name}"
        );
        assert!(id(result(&replay).headers()).is_some_and(|id| id.ends_with(".r3.result")));
    }
}
