//! The schemas on file are those of the types, and allow what they should.

use std::path::Path;

use caf_protocol::assignment::{Identity, Reading};
use caf_protocol::dead_letter::{Attempt, Cause, DeadLetter, Omitted, Original};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::headers::Headers;
use caf_protocol::heartbeat::{Heartbeat, Intake, Resources, WorkerStatus};
use caf_protocol::outcome::Failure;
use caf_protocol::schemas;
use caf_testkit::{fixtures, strict};
use serde_json::{Map, Value};

use crate::reading::read_fixture;
use crate::writing::validator;

#[test]
fn the_schemas_on_file_are_current() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let update = std::env::var_os("UPDATE_SCHEMAS").is_some_and(|value| value == "1");
    for (name, schema) in schemas::all() {
        let path = directory.join(name);
        let generated = format!("{:#}\n", schema.as_value());
        if update {
            std::fs::write(&path, generated).expect("the schema can be written");
        } else {
            let on_file = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                on_file == generated,
                "{name} is out of date: run this test with UPDATE_SCHEMAS=1"
            );
        }
    }
    let files = std::fs::read_dir(&directory)
        .expect("the directory is there")
        .count();
    assert_eq!(
        files,
        schemas::all().len() + usize::from(directory.join("asyncapi.json").exists()),
        "a file of no schema lies in {}",
        directory.display()
    );
}

#[test]
fn the_schema_of_assignments_allows_what_is_read_unless_it_is_only_tolerated() {
    let schema = validator("exec_assignment.json");
    for fixture in fixtures::assignments() {
        let value: Value = serde_json::from_slice(&fixture.payload).expect("fixtures are JSON");
        let is_read = matches!(read_fixture(&fixture), Reading::Valid(_));
        let allowed = schema.is_valid(&value);
        if is_read && !fixture.tolerated {
            assert!(
                allowed,
                "{}: {:?}",
                fixture.name,
                schema.iter_errors(&value).map(|e| e.to_string()).next()
            );
        } else if fixture.tolerated {
            assert!(
                !allowed,
                "{}: is allowed, so it is not only tolerated",
                fixture.name
            );
        }
    }
}

#[test]
fn the_schema_of_results_refuses_what_the_router_cannot_use() {
    let schema = validator("exec_result.json");
    let refused = [
        "version_removed",
        "version_as_a_number",
        "version_null",
        "tenant_id_missing",
        "tenant_id_as_a_number",
        "status_canceled_with_one_l",
        "job_as_a_string",
        "provider_id_as_a_number",
        "assignment_id_as_a_number",
    ];
    for fixture in fixtures::results() {
        if refused.contains(&fixture.name.as_str()) {
            assert!(!schema.is_valid(&fixture.payload), "{}", fixture.name);
        } else if fixture.verdict == "accepted" {
            assert!(schema.is_valid(&fixture.payload), "{}", fixture.name);
        }
    }
}

#[test]
fn dead_letters_fit_their_schema_whatever_the_original() {
    let schema = validator("dead_letter.json");
    let identity = Identity {
        assignment_id: "a-1".to_owned(),
        tenant_id: "acme".to_owned(),
        ..Identity::default()
    };
    let mut headers = Headers::default();
    headers.push("x", "");
    for payload in [&b"{}"[..], b"\xff\x00", b""] {
        for known in [None, Some(&identity)] {
            for position in [None, Some(("caf-stream", 7))] {
                let original = Original {
                    subject: "caf.exec.assign.v1",
                    headers: &headers,
                    payload,
                    position,
                    received_at_ms: 1,
                };
                let failure = Failure::missing("assignment_id").internally("deep inside");
                let attempt = |attempt, started_at| Attempt {
                    worker_id: "w-1".to_owned(),
                    attempt,
                    started_at,
                };
                let cause = Cause {
                    failure: &failure,
                    reason: "unanswerable",
                    retries_used: 2,
                    attempts: &[attempt(1, None), attempt(2, Some(1))],
                };
                let mut letter = DeadLetter::new(known, &cause, &original, "w-1", 2);
                for _ in 0..2 {
                    let value = serde_json::to_value(&letter).expect("serialises");
                    assert!(
                        schema.is_valid(&value),
                        "{:?}: {value}",
                        schema.iter_errors(&value).map(|e| e.to_string()).next()
                    );
                    let faults: Vec<_> = strict::faults(&value);
                    let empty_original = payload.is_empty() && faults == ["original_payload: is empty"];
                    assert!(faults.is_empty() || empty_original, "{faults:?}: {value}");
                    assert_eq!(value["error_code"], ErrorCode::MissingRequiredField.as_str());
                    assert_eq!(value["error_chain"][1], "deep inside");
                    assert_eq!(value["attempts"].as_array().map(Vec::len), Some(2));
                    letter.drop_original_payload(Omitted::TooLarge);
                }
            }
        }
    }
}

#[test]
fn heartbeats_fit_their_schema() {
    let schema = validator("heartbeat.json");
    use WorkerStatus as W;
    for status in [W::Ready, W::Busy, W::Degraded, W::Draining] {
        let resources = Resources {
            cpu: 0.5,
            gpu: 0.0,
            mem_bytes: 1,
            jobs_in_flight: 0,
        };
        let intake = Intake {
            last_delivery_age_ms: (status == W::Ready).then_some(7),
            ..Intake::default()
        };
        let now = "2026-01-01T00:00:00.000000Z".to_owned();
        let beat = Heartbeat::new("w-1", now, status, resources, intake, Map::new());
        let value = serde_json::to_value(beat).expect("serialises");
        assert!(
            schema.is_valid(&value),
            "{:?}",
            schema.iter_errors(&value).map(|e| e.to_string()).next()
        );
    }
}
