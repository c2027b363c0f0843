use proptest::prelude::*;
use serde_json::json;

use super::*;

fn minimal() -> Value {
    json!({
        "version": "1", "assignment_id": "a-1", "request_id": "r-1", "tenant_id": "acme",
        "executor": {"provider_id": "prov-a"}, "job": {"type": "echo", "payload": {"x": 1}}
    })
}

fn patched(patch: impl FnOnce(&mut Value)) -> Value {
    let mut value = minimal();
    patch(&mut value);
    value
}

fn read_value(value: &Value) -> Reading {
    read(value.to_string().as_bytes(), &Headers::default())
}

fn valid(value: &Value) -> Assignment {
    match read_value(value) {
        Reading::Valid(assignment) => assignment,
        other => panic!("not valid: {other:?}"),
    }
}

fn refusal(value: &Value) -> Refusal {
    match read_value(value) {
        Reading::Invalid(_, refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn the_tenant_is_taken_from_the_payload_then_the_header_then_the_decision() {
    let mut headers = Headers::default();
    headers.push("tenant_id", "by-header");
    let value = patched(|v| v["tenant_id"] = json!("undefined"));
    let Reading::Valid(assignment) = read(value.to_string().as_bytes(), &headers) else {
        panic!()
    };
    assert_eq!(assignment.identity.tenant_id, "by-header");
    let value = patched(|v| {
        v["tenant_id"] = json!(7);
        v["decision"] = json!({"metadata": {"tenant_id": "by-decision"}});
    });
    assert_eq!(valid(&value).identity.tenant_id, "by-decision");
    assert_eq!(valid(&minimal()).identity.tenant_id, "acme");
}

#[test]
fn without_an_id_or_a_tenant_nobody_can_be_answered() {
    for value in [
        json!([]),
        json!("x"),
        json!({}),
        patched(|v| v["assignment_id"] = json!(12)),
        patched(|v| v["assignment_id"] = json!("")),
        patched(|v| v["assignment_id"] = json!("undefined")),
        patched(|v| v["assignment_id"] = json!("a\r\nb")),
        patched(|v| v["assignment_id"] = json!("x".repeat(10_000))),
        patched(|v| v["tenant_id"] = json!("t".repeat(257))),
        patched(|v| v["tenant_id"] = json!(null)),
    ] {
        assert!(matches!(read_value(&value), Reading::Unanswerable(_)), "{value}");
    }
    let twice = br#"{"version":"1","assignment_id":"a","assignment_id":"b","tenant_id":"t"}"#;
    assert!(matches!(
        read(twice, &Headers::default()),
        Reading::Unanswerable(_)
    ));
}

#[test]
fn a_refusal_names_the_field_and_the_rule() {
    use RejectReason as R;
    for (value, reason, field) in [
        (
            patched(|v| v["version"] = json!("2")),
            R::UnsupportedVersion,
            "version",
        ),
        (
            patched(|v| v["version"] = json!(1)),
            R::UnsupportedVersion,
            "version",
        ),
        (
            patched(|v| v["request_id"] = json!("undefined")),
            R::MissingField,
            "request_id",
        ),
        (
            patched(|v| v["request_id"] = json!(5)),
            R::InvalidField,
            "request_id",
        ),
        (
            patched(|v| v["executor"] = json!(null)),
            R::MissingField,
            "executor",
        ),
        (
            patched(|v| v["executor"] = json!("x")),
            R::InvalidField,
            "executor",
        ),
        (
            patched(|v| v["executor"] = json!({})),
            R::MissingField,
            "executor.provider_id",
        ),
        (patched(|v| v["job"] = json!("echo")), R::InvalidField, "job"),
        (patched(|v| v["job"] = json!({})), R::MissingField, "job.type"),
        (
            patched(|v| v["job"]["type"] = json!(["echo"])),
            R::InvalidField,
            "job.type",
        ),
        (
            patched(|v| v["job"]["payload"] = json!([1])),
            R::InvalidField,
            "job.payload",
        ),
        (
            patched(|v| v["job"]["payload"] = json!("nope")),
            R::InvalidField,
            "job.payload",
        ),
        (
            patched(|v| v["job"]["payload_ref"] = json!("s3://x")),
            R::UnsupportedPayloadRef,
            "job.payload_ref",
        ),
        (
            patched(|v| v["job"]["payload_ref"] = json!(7)),
            R::InvalidField,
            "job.payload_ref",
        ),
        (
            patched(|v| v["job"]["payload_ref"] = json!("http://user:secret@h/x")),
            R::InvalidField,
            "job.payload_ref",
        ),
        (
            patched(|v| {
                v["job"]["payload_ref"] = json!("file:data/x");
                v["job"]["payload_sha256"] = json!("0A".repeat(32));
            }),
            R::InvalidField,
            "job.payload_sha256",
        ),
    ] {
        let refusal = refusal(&value);
        assert_eq!(
            (refusal.reason, refusal.failure.details["field"].as_str()),
            (reason, Some(field)),
            "{value}"
        );
        assert!(
            refusal.failure.message.starts_with(field),
            "{}",
            refusal.failure.message
        );
    }
}

#[test]
fn a_key_given_twice_is_refused_by_its_path() {
    let text = minimal().to_string().replace("{\"x\":1}", "{\"x\":1,\"x\":2}");
    let Reading::Invalid(_, refusal) = read(text.as_bytes(), &Headers::default()) else {
        panic!()
    };
    assert_eq!(refusal.reason, RejectReason::DuplicateKey);
    assert_eq!(refusal.failure.details["field"], "job.payload.x");
}

#[test]
fn the_version_may_come_in_each_known_form_or_by_header() {
    for version in ["1", "1.0", "v1"] {
        valid(&patched(|v| v["version"] = json!(version)));
    }
    let mut headers = Headers::default();
    headers.push("version", "1");
    let without = patched(|v| drop(v.as_object_mut().map(|o| o.remove("version"))));
    assert!(matches!(
        read(without.to_string().as_bytes(), &headers),
        Reading::Valid(_)
    ));
    assert_eq!(refusal(&without).reason, RejectReason::UnsupportedVersion);
}

#[test]
fn deadlines_are_read_leniently_and_only_shortened_by_the_job() {
    for (options, inputs, expected) in [
        (json!({}), json!({}), 30_000),
        (json!({"deadline_ms": 5000}), json!({}), 5_000),
        (json!({"deadline_ms": "5000"}), json!({}), 5_000),
        (json!({"deadline_ms": 1500.7}), json!({}), 1_500),
        (json!({"deadline_ms": "soon"}), json!({}), 30_000),
        (json!({"deadline_ms": -5}), json!({}), 30_000),
        (json!({"deadline_ms": null}), json!({}), 30_000),
        (json!({"deadline_ms": 0}), json!({}), 1),
        (json!({"deadline_ms": 1e300}), json!({}), 3_600_000),
        (json!({"deadline_ms": 5000}), json!({"timeout_ms": 100}), 100),
        (json!({"deadline_ms": 5000}), json!({"timeout_ms": 9000}), 5_000),
    ] {
        let value = patched(|v| {
            v["options"] = options.clone();
            v["job"]["payload"] = inputs.clone();
        });
        assert_eq!(valid(&value).deadline_ms, expected, "{options} {inputs}");
    }
    let top_level = patched(|v| v["timeout_ms"] = json!(700));
    assert_eq!(valid(&top_level).deadline_ms, 700);
}

#[test]
fn a_reference_beats_the_inputs_beside_it_and_a_null_one_is_none() {
    let with = |reference: Value| valid(&patched(|v| v["job"]["payload_ref"] = reference)).payload;
    let Payload::Referenced(reference) = with(json!("nats-obj://b/k")) else {
        panic!("the inputs were preferred")
    };
    assert_eq!(reference.sha256, None);
    assert!(matches!(with(json!(null)), Payload::Inline(inputs) if inputs["x"] == 1));
}

#[test]
fn attempts_are_total_calls_and_retries_count_one_more() {
    for (patch, expected) in [
        (json!({}), None),
        (json!({"options": {"retry": {"max_attempts": 2}}}), Some(2)),
        (json!({"options": {"retry": {"max_attempts": 0}}}), Some(1)),
        (json!({"options": {"retry": {"max_attempts": "3"}}}), Some(3)),
        (json!({"options": {"retry": {"max_attempts": -1}}}), None),
        (json!({"options": {"retry": 7}}), None),
        (json!({"retry": {"max_retries": 2, "backoff_ms": 10}}), Some(3)),
        (
            json!({"options": {"retry": {"max_attempts": 1_000_000}}}),
            Some(100),
        ),
    ] {
        let value = patched(|v| {
            for (key, field) in patch.as_object().expect("object") {
                v[key] = field.clone();
            }
        });
        assert_eq!(valid(&value).max_attempts, expected, "{patch}");
    }
}

#[test]
fn the_wait_that_an_assignment_asks_for_is_read_leniently_and_bounded() {
    for (patch, expected) in [
        (json!({}), None),
        (json!({"options": {"retry": {"backoff_ms": 200}}}), Some(200)),
        (json!({"options": {"retry": {"backoff_ms": "250"}}}), Some(250)),
        (json!({"options": {"retry": {"backoff_ms": 0}}}), Some(0)),
        (json!({"options": {"retry": {"backoff_ms": -1}}}), None),
        (json!({"options": {"retry": {"backoff_ms": {}}}}), None),
        (
            json!({"options": {"retry": {"backoff_ms": 1e300}}}),
            Some(MAX_DEADLINE_MS),
        ),
        (
            json!({"retry": {"backoff_ms": 10}, "options": {"retry": {"backoff_ms": "x"}}}),
            Some(10),
        ),
        (
            json!({"options": {"retry": {"max_attempts": 2}}, "retry": {"backoff_ms": 7}}),
            Some(7),
        ),
    ] {
        let value = patched(|v| {
            for (key, field) in patch.as_object().expect("object") {
                v[key] = field.clone();
            }
        });
        assert_eq!(valid(&value).backoff_ms, expected, "{patch}");
    }
}

#[test]
fn a_priority_is_read_leniently_and_bounded() {
    for (priority, expected) in [
        (json!(0), 0),
        (json!(25), 25),
        (json!(100), 100),
        (json!(" 75 "), 75),
        (json!(74.9), 74),
        (json!(-3), 0),
        (json!(101), 100),
        (json!(1e300), 100),
        (json!("-inf"), 0),
        (json!("NaN"), 50),
        (json!("high"), 50),
        (json!(""), 50),
        (json!(null), 50),
        (json!(true), 50),
        (json!([1]), 50),
    ] {
        let value = patched(|v| v["options"] = json!({"priority": priority}));
        assert_eq!(valid(&value).priority, expected, "{priority}");
    }
    assert_eq!(valid(&patched(|v| v["options"] = json!(7))).priority, 50);
}

#[test]
fn bad_correlation_ids_do_not_stop_a_job_and_are_kept_apart() {
    let value = patched(|v| {
        v["correlation"] = json!({"trace_id": "tr-1", "run_id": "run-1"});
        v["metadata"] = json!({"flow_id": "undefined", "step_id": "s"});
    });
    let correlation = valid(&value).identity.correlation;
    assert_eq!(correlation.trace_id, None);
    assert_eq!(correlation.original_trace_id.as_deref(), Some("tr-1"));
    assert_eq!(correlation.raw.run_id.as_deref(), Some("run-1"));
    assert_eq!(correlation.raw.flow_id, None);
    assert!(correlation.raw.all_valid_or_none().is_empty());
}

#[test]
fn a_valid_trace_id_further_down_beats_a_bad_one_further_up() {
    let trace = "9f3c1a7be24d40c88a61d2f05b7e934c";
    let value = patched(|v| {
        v["correlation"] = json!({"trace_id": "undefined"});
        v["trace_id"] = json!(trace);
    });
    assert_eq!(
        valid(&value).identity.correlation.trace_id.as_deref(),
        Some(trace)
    );
}

#[test]
fn a_replay_is_another_assignment_with_the_same_ids() {
    let bytes = serde_json::to_vec(&patched(|_| {})).expect("serialises");
    let identity = |value: Option<&str>| {
        let mut headers = Headers::default();
        if let Some(value) = value {
            headers.push("Caf-Replay", value);
        }
        match read(&bytes, &headers) {
            Reading::Valid(assignment) => assignment.identity,
            other => panic!("{other:?}"),
        }
    };
    let (first, second) = (identity(None), identity(Some("2")));
    assert_eq!((first.replay, second.replay), (0, 2));
    assert_eq!(first.assignment_id, second.assignment_id);
    assert_ne!(first.key(), second.key());
    assert_eq!(identity(Some("many")).key(), first.key());
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
        let _ = read(&bytes, &Headers::default());
    }

    #[test]
    fn any_value_in_any_field_is_read_without_panic(
        field in prop::sample::select(vec![
            "version", "assignment_id", "request_id", "tenant_id", "executor", "job", "options", "correlation",
            "decision", "metadata", "resources", "timeout_ms", "retry", "trace_id", "run_id", "kind", "data",
            "job/payload", "job/payload_ref", "job/payload_sha256",
        ]),
        junk in prop::sample::select(vec![
            json!(null), json!(true), json!(-1), json!(1e308), json!(""), json!("undefined"), json!("\u{0}"),
            json!([]), json!([[[]]]), json!({}), json!({"type": null}), json!({"class": 5}), json!({"retry": []}),
        ]),
    ) {
        let value = patched(|v| {
            v["job"]["payload_ref"] = json!("file:data/x");
            match field.split_once('/') {
                Some((outer, inner)) => v[outer][inner] = junk,
                None => v[field] = junk,
            }
        });
        if let Reading::Invalid(identity, refusal) = read_value(&value) {
            prop_assert!(is_usable(&identity.assignment_id, MAX_ID_BYTES));
            prop_assert!(is_usable(&identity.tenant_id, MAX_TENANT_BYTES));
            prop_assert_eq!(refusal.failure.code.number() / 1000, 1);
        }
    }
}
