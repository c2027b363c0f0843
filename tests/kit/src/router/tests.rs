use super::*;
use crate::fixtures;

const CORRELATION: Verdict = Verdict::Dlq(DlqCode::CorrelationFieldsInvalid);

fn ack_of(patch: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value = json!({
        "version": "1", "assignment_id": "a-1", "request_id": "r-1", "tenant_id": "acme", "status": "accepted",
    });
    patch(&mut value);
    value.to_string().into_bytes()
}

fn result_of(patch: impl FnOnce(&mut Value)) -> Vec<u8> {
    ack_of(|value| {
        value["status"] = json!("success");
        value["provider_id"] = json!("prov-a");
        value["job"] = json!({"type": "echo"});
        value["latency_ms"] = json!(5);
        value["cost"] = json!(0.0);
        patch(value);
    })
}

fn judge_result(patch: impl FnOnce(&mut Value)) -> Verdict {
    RouterIntake::new().result(&[], &result_of(patch))
}

fn judge_ack(patch: impl FnOnce(&mut Value)) -> Verdict {
    RouterIntake::new().ack(&[], &ack_of(patch))
}

fn headers(pairs: &[(&str, &str)]) -> Vec<Header> {
    pairs
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn remove(value: &mut Value, key: &str) {
    let removed = value.as_object_mut().and_then(|object| object.remove(key));
    assert!(removed.is_some(), "there was no {key}");
}

#[test]
fn every_vector_of_the_contract_gets_its_verdict() {
    let fixtures = fixtures::results();
    assert!(
        fixtures.len() >= 24,
        "one per row and alternative of 9.6, not {}",
        fixtures.len()
    );
    for fixture in fixtures {
        let mut router = RouterIntake::new();
        let payload = fixture.payload.to_string().into_bytes();
        if let Some(earlier) = &fixture.earlier {
            let verdict = router.result(&[], earlier.to_string().as_bytes());
            assert_eq!(verdict, Verdict::Accepted, "{}: the earlier one", fixture.name);
        }
        let verdict = router.result(&fixture.headers, &payload);
        assert_eq!(verdict.name(), fixture.verdict, "{}", fixture.name);
    }
}

#[test]
fn what_is_no_json_object_is_dead_lettered() {
    for bytes in [&b""[..], b"{", b"[]", b"7", b"null", b"\xff", b"{} {}"] {
        let verdict = RouterIntake::new().result(&[], bytes);
        assert_eq!(
            verdict,
            Verdict::Dlq(DlqCode::SchemaValidationFailed),
            "{bytes:?}"
        );
        assert_eq!(RouterIntake::new().ack(&[], bytes), verdict);
    }
}

#[test]
fn the_ack_subject_stands_for_a_version_and_the_result_subject_does_not() {
    assert_eq!(judge_ack(|v| remove(v, "version")), Verdict::Accepted);
    let unsupported = Verdict::Dlq(DlqCode::VersionUnsupported);
    assert_eq!(judge_result(|v| remove(v, "version")), unsupported);
    assert_eq!(judge_ack(|v| v["version"] = json!("2")), unsupported);
    assert_eq!(judge_ack(|v| v["version"] = json!(1)), Verdict::NakLost);
}

#[test]
fn a_version_header_wins_over_the_payload_in_both_directions() {
    let mut router = RouterIntake::new();
    let without = result_of(|v| remove(v, "version"));
    assert_eq!(
        router.result(&headers(&[("version", "1")]), &without),
        Verdict::Accepted
    );
    let other_case = headers(&[("Version", "2")]);
    let fine = result_of(|v| v["assignment_id"] = json!("a-2"));
    assert_eq!(router.result(&other_case, &fine), Verdict::Accepted);
}

#[test]
fn correlation_ids_are_all_or_none_and_of_known_formats() {
    let uuid = "9f3c1a7b-e24d-40c8-8a61-d2f05b7e934c";
    let ulid = "01J8ZQ4T6M9X2K7V5R3N1B0CDE";
    let three = |run: Value, flow: Value, step: Value| {
        judge_result(|v| {
            v["run_id"] = run;
            v["flow_id"] = flow;
            v["step_id"] = step;
        })
    };
    assert_eq!(
        three(json!(uuid), json!(uuid.to_uppercase()), json!(ulid)),
        Verdict::Accepted
    );
    for bad in [
        json!(""),
        json!(null),
        json!(5),
        json!("01J8ZQ4T6M9X2K7V5R3N1B0CDI"),
        json!(&uuid[1..]),
    ] {
        assert_eq!(three(json!(uuid), bad.clone(), json!(ulid)), CORRELATION, "{bad}");
    }
    let two = judge_result(|v| {
        v["run_id"] = json!(uuid);
        v["flow_id"] = json!(uuid);
    });
    assert_eq!(two, CORRELATION);
    let wrong_variant = "9f3c1a7b-e24d-40c8-ca61-d2f05b7e934c";
    assert_eq!(three(json!(wrong_variant), json!(uuid), json!(uuid)), CORRELATION);
}

#[test]
fn trace_id_and_idempotency_key_are_valid_or_absent() {
    for good in [
        "9f3c1a7be24d40c88a61d2f05b7e934c",
        "9F3C1A7BE24D40C88A61D2F05B7E934C",
    ] {
        assert_eq!(judge_ack(|v| v["trace_id"] = json!(good)), Verdict::Accepted);
    }
    assert_eq!(judge_ack(|v| v["trace_id"] = json!(5)), CORRELATION);
    for (key, verdict) in [
        (json!("k"), Verdict::Accepted),
        (json!("k".repeat(256)), Verdict::Accepted),
        (json!("k".repeat(257)), CORRELATION),
        (json!(""), CORRELATION),
        (json!(null), CORRELATION),
    ] {
        assert_eq!(
            judge_result(|v| v["idempotency_key"] = key.clone()),
            verdict,
            "{key}"
        );
    }
}

#[test]
fn statuses_and_ids_are_checked_per_subject() {
    for status in ["accepted", "rejected", "error"] {
        assert_eq!(judge_ack(|v| v["status"] = json!(status)), Verdict::Accepted);
    }
    for status in ["success", "error", "timeout", "cancelled"] {
        assert_eq!(judge_result(|v| v["status"] = json!(status)), Verdict::Accepted);
    }
    assert_eq!(judge_ack(|v| v["status"] = json!("success")), Verdict::Stuck);
    assert_eq!(judge_result(|v| remove(v, "status")), Verdict::Stuck);
    assert_eq!(judge_ack(|v| remove(v, "assignment_id")), Verdict::Stuck);
    assert_eq!(judge_result(|v| remove(v, "assignment_id")), Verdict::Accepted);
    let neither = judge_result(|v| {
        remove(v, "assignment_id");
        remove(v, "request_id");
    });
    assert_eq!(neither, Verdict::Stuck);
    assert_eq!(
        judge_result(|v| v["request_id"] = json!(5)),
        Verdict::CrashAfterMark
    );
    assert_eq!(judge_result(|v| v["msg_id"] = json!(5)), Verdict::CrashAfterMark);
    let with_id = headers(&[("Nats-Msg-Id", "m")]);
    let verdict = RouterIntake::new().result(&with_id, &result_of(|v| v["msg_id"] = json!(5)));
    assert_eq!(verdict, Verdict::Accepted);
}

#[test]
fn the_first_answer_counts_for_an_hour_and_acks_and_results_do_not_mix() {
    let mut router = RouterIntake::new();
    assert_eq!(router.ack(&[], &ack_of(|_| ())), Verdict::Accepted);
    assert_eq!(router.result(&[], &result_of(|_| ())), Verdict::Accepted);
    router.advance(Duration::from_secs(3599));
    assert_eq!(router.ack(&[], &ack_of(|_| ())), Verdict::DuplicateDropped);
    assert_eq!(router.result(&[], &result_of(|_| ())), Verdict::DuplicateDropped);
    router.advance(Duration::from_secs(1));
    assert_eq!(router.result(&[], &result_of(|_| ())), Verdict::Accepted);
    assert_eq!(router.usage().len(), 2);
}

#[test]
fn a_tenant_that_fails_after_the_mark_is_lost() {
    let mut router = RouterIntake::with_allowed_tenants(&["other"]);
    assert_eq!(router.result(&[], &result_of(|_| ())), Verdict::NakThenDuplicate);
    assert_eq!(router.result(&[], &result_of(|_| ())), Verdict::DuplicateDropped);
    let allowed = headers(&[("tenant_id", "other")]);
    assert_eq!(
        router.result(&allowed, &result_of(|v| v["assignment_id"] = json!("a-2"))),
        Verdict::Accepted
    );
    let empty = headers(&[("tenant_id", "")]);
    assert_eq!(
        RouterIntake::new().result(&empty, &result_of(|_| ())),
        Verdict::NakThenDuplicate
    );
}

#[test]
fn a_result_becomes_one_usage_event() {
    let mut router = RouterIntake::new();
    router.result(&[], &result_of(|v| remove(v, "cost")));
    let usage = &router.usage()[0];
    assert_eq!(
        (&usage["event_type"], &usage["latency_ms"]),
        (&json!("echo"), &json!(5))
    );
    assert_eq!(
        (&usage["cost"], &usage["trace_id"]),
        (&json!("undefined"), &json!("undefined"))
    );
}

#[test]
fn the_breaker_counts_by_code_type_and_the_words_of_the_message() {
    let count = |status: &str, code: &str, error_type: &str, message: &str| {
        breaker_counts(&result_of(|v| {
            v["status"] = json!(status);
            v["error_code"] = json!(code);
            v["error_type"] = json!(error_type);
            v["error_message"] = json!(message);
        }))
    };
    use BreakerCount::{Failure, Ignored, Success};
    assert_eq!(count("success", "", "", ""), Success);
    assert_eq!(count("timeout", "", "", ""), Failure);
    assert_eq!(count("cancelled", "TIMEOUT", "timeout", "timeout"), Ignored);
    for code in [
        "TIMEOUT",
        "CONNECTION_ERROR",
        "PROVIDER_UNAVAILABLE",
        "5XX",
        "HTTP_5XX",
        "SERVER_ERROR",
    ] {
        assert_eq!(count("error", code, "x", "x"), Failure, "{code}");
    }
    for error_type in [
        "timeout",
        "connection_error",
        "provider_unavailable",
        "5xx",
        "server_error",
    ] {
        assert_eq!(count("error", "X", error_type, "x"), Failure, "{error_type}");
    }
    for message in ["status 405", "a timeout", "no connection", "unavailable"] {
        assert_eq!(count("error", "X", "x", message), Failure, "{message}");
    }
    assert_eq!(
        count("error", "HTTP_ERROR", "client_error", "Timeout, Connection"),
        Ignored
    );
    assert_eq!(breaker_counts(&result_of(|v| remove(v, "provider_id"))), Ignored);
    assert_eq!(breaker_counts(b"nonsense"), Ignored);
}

#[test]
fn headers_that_break_the_contract_are_named() {
    assert!(header_violations(&[]).is_empty());
    let fine = headers(&[
        ("trace_id", "t"),
        ("tenant_id", "a"),
        ("version", "1"),
        ("Nats-Msg-Id", "m"),
    ]);
    assert!(header_violations(&fine).is_empty());
    let bad = headers(&[("trace_id", ""), ("Tenant_id", "a"), ("version", "2")]);
    assert_eq!(
        header_violations(&bad),
        ["trace_id", "tenant_id", "version", "nats-msg-id"]
    );
}
