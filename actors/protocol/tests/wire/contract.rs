//! The contract tests that the earlier worker names (contract 9.5): StepResult to ExecResult.

use std::collections::BTreeMap;

use caf_protocol::assignment::{Identity, Reading};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use caf_protocol::result::ExecResult;
use caf_testkit::fixtures;
use serde_json::{Map, Value, json};

use crate::reading::read_fixture;
use crate::writing::check_result;

fn identity_of(name: &str) -> Identity {
    let fixture = fixtures::assignments()
        .into_iter()
        .find(|fixture| fixture.name == name);
    match read_fixture(&fixture.expect("is on file")) {
        Reading::Valid(assignment) => assignment.identity,
        other => panic!("{name}: {other:?}"),
    }
}

fn converted_for(identity: &Identity, outcome: Outcome) -> Value {
    let step = StepResult {
        cost: Default::default(),
        outcome,
        latency_ms: 42,
        retries_used: 1,
    };
    let result = ExecResult::new(identity, step, "worker_4711", 1_767_225_600_535);
    check_result(&result, "contract");
    serde_json::to_value(result).expect("serialises")
}

fn converted(outcome: impl Into<Outcome>) -> Value {
    converted_for(&identity_of("a_as_the_router_builds_it"), outcome.into())
}

fn error_fields(value: &Value) -> Vec<&str> {
    let keys = value.as_object().expect("is an object").keys();
    keys.map(String::as_str)
        .filter(|key| key.starts_with("error"))
        .collect()
}

#[test]
fn stepresult_to_execresult_success_keeps_the_outputs_and_names_no_error() {
    let mut outputs = Map::new();
    outputs.insert("status_code".to_owned(), json!(200));
    outputs.insert("body".to_owned(), json!(""));
    let value = converted(Outcome::Success(outputs));
    assert_eq!(value["status"], "success");
    assert_eq!(value["outputs"], json!({"status_code": 200, "body": ""}));
    assert_eq!(error_fields(&value), Vec::<&str>::new());
    assert_eq!(
        (&value["latency_ms"], &value["retries_used"]),
        (&json!(42), &json!(1))
    );
}

#[test]
fn stepresult_to_execresult_error_carries_code_type_message_and_details() {
    let mut failure = Failure::new(ErrorCode::HttpError, "upstream answered with a server failure")
        .with("status_code", json!(503));
    failure.outputs.insert("body".to_owned(), json!("busy"));
    let value = converted(failure);
    assert_eq!(value["status"], "error");
    assert_eq!(value["error_code"], "HTTP_ERROR");
    assert_eq!(value["error_type"], "server_error");
    assert_eq!(value["error_message"], "upstream answered with a server failure");
    let error = json!({
        "code": "HTTP_ERROR",
        "message": "upstream answered with a server failure",
        "retryable": true,
        "details": {"status_code": 503},
    });
    assert_eq!(value["error"], error);
    assert_eq!(value["outputs"], json!({"body": "busy"}));
}

#[test]
fn stepresult_to_execresult_timeout_has_a_status_and_a_code_of_its_own() {
    let value = converted(Failure::timeout("deadline"));
    assert_eq!(
        (&value["status"], &value["error_code"]),
        (&json!("timeout"), &json!("CANCELLED_BY_TIMEOUT"))
    );
    assert_eq!(value["error"]["retryable"], false);
}

#[test]
fn stepresult_to_execresult_cancelled_is_written_with_two_ls() {
    let value = converted(Failure::new(ErrorCode::CancelledByUser, "cancelled on request"));
    assert_eq!(
        (&value["status"], &value["error_code"]),
        (&json!("cancelled"), &json!("CANCELLED_BY_USER"))
    );
}

#[test]
fn stepresult_to_execresult_metadata_preservation_covers_every_id_of_the_assignment() {
    let followed = converted_for(
        &identity_of("d_top_level_ids_and_resource_hints"),
        Outcome::Success(Map::new()),
    );
    let expected = [
        ("assignment_id", "7be1d04c-52f4-a1c9-3e77-90b2f6d81a35"),
        ("request_id", "3d0f6c1e-8a52-4b7d-9e13-5c2a7f90b846"),
        ("tenant_id", "acme"),
        ("provider_id", "prov-a"),
        ("trace_id", "9f3c1a7be24d40c88a61d2f05b7e934c"),
        ("run_id", "01J8ZQ4T6M9X2K7V5R3N1B0CDE"),
        ("flow_id", "01J8ZQ4T6M9X2K7V5R3N1B0CDF"),
        ("step_id", "4f9d2c6a-1b3e-4c5d-8e7f-0a1b2c3d4e5f"),
    ];
    for (key, id) in expected {
        assert_eq!(followed[key], id, "{key}");
    }
    assert_eq!(followed["metadata"]["worker_id"], "worker_4711");
    let keyed = converted_for(&identity_of("g_idempotency_key"), Outcome::Success(Map::new()));
    assert_eq!(keyed["idempotency_key"], "order-4711");
}

#[test]
fn stepresult_to_execresult_metadata_preservation_keeps_bad_ids_where_the_router_does_not_look() {
    let lone = converted_for(&identity_of("a_with_a_lone_run_id"), Outcome::Success(Map::new()));
    assert_eq!(
        (lone.get("run_id"), &lone["correlation"]),
        (None, &json!({"run_id": "01J8ZQ4T6M9X2K7V5R3N1B0CDE"}))
    );
    let bad = converted_for(
        &identity_of("a_with_badly_formatted_ids"),
        Outcome::Success(Map::new()),
    );
    assert_eq!(
        bad["correlation"],
        json!({"run_id": "run-1", "flow_id": "flow-1", "step_id": "step-1"})
    );
    let trace = converted_for(
        &identity_of("a_with_a_badly_formatted_trace"),
        Outcome::Success(Map::new()),
    );
    assert_eq!(
        (trace.get("trace_id"), &trace["metadata"]["original_trace_id"]),
        (None, &json!("tr-1"))
    );
}

#[test]
fn stepresult_to_execresult_error_code_mapping_sends_the_string_form_of_every_code() {
    let mut sent = BTreeMap::new();
    for code in ErrorCode::ALL {
        let value = converted(Failure::new(code, "words"));
        sent.insert(
            code.number(),
            value["error_code"].as_str().expect("is a string").to_owned(),
        );
        assert_eq!(value["error_code"], value["error"]["code"]);
    }
    let contract = [
        (1001, "INVALID_INPUT"),
        (1002, "MISSING_REQUIRED_FIELD"),
        (1003, "INVALID_FORMAT"),
        (2001, "EXECUTION_FAILED"),
        (2002, "RESOURCE_UNAVAILABLE"),
        (2003, "PERMISSION_DENIED"),
        (2004, "QUOTA_EXCEEDED"),
        (3001, "NETWORK_ERROR"),
        (3002, "CONNECTION_TIMEOUT"),
        (3003, "HTTP_ERROR"),
        (4001, "INTERNAL_ERROR"),
        (4002, "SYSTEM_OVERLOAD"),
        (5001, "CANCELLED_BY_USER"),
        (5002, "CANCELLED_BY_TIMEOUT"),
        (9999, "UNKNOWN_ERROR"),
    ];
    assert_eq!(
        sent,
        contract.map(|(number, text)| (number, text.to_owned())).into()
    );
}

#[test]
fn stepresult_to_execresult_validation_leaves_no_success_with_a_code_and_no_failure_without() {
    for code in ErrorCode::ALL {
        let failure = Failure::new(code, "words");
        for outcome in [
            Outcome::Error(failure.clone()),
            Outcome::Timeout(failure.clone()),
            Outcome::Cancelled(failure),
        ] {
            let fields = ["error", "error_code", "error_message", "error_type"];
            assert_eq!(error_fields(&converted(outcome)), fields, "{code}");
        }
    }
    let largest = StepResult {
        cost: Default::default(),
        outcome: Outcome::Success(Map::new()),
        latency_ms: u64::MAX,
        retries_used: u32::MAX,
    };
    let result = ExecResult::new(
        &identity_of("a_as_the_router_builds_it"),
        largest,
        "w-1",
        u64::MAX,
    );
    check_result(&result, "largest figures");
}

#[test]
fn stepresult_to_execresult_status_mapping_follows_the_code_and_the_limit() {
    let mut total_limit = Failure::new(ErrorCode::ExecutionFailed, "statement limit exceeded");
    total_limit.total_limit = true;
    for (outcome, status) in [
        (Outcome::Success(Map::new()), "success"),
        (Failure::new(ErrorCode::ExecutionFailed, "x").into(), "error"),
        // A limit on one attempt is an error, a total limit is a timeout.
        (Failure::new(ErrorCode::ConnectionTimeout, "x").into(), "error"),
        (total_limit.into(), "timeout"),
        (Failure::new(ErrorCode::CancelledByTimeout, "x").into(), "timeout"),
        (Failure::new(ErrorCode::CancelledByUser, "x").into(), "cancelled"),
    ] {
        assert_eq!(converted(outcome.clone())["status"], status, "{outcome:?}");
    }
}
