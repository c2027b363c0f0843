//! The AsyncAPI document on file is that of the program, sound in itself, and its examples fit its schemas.

use std::collections::BTreeSet;
use std::path::Path;

use caf_testkit::asyncapi::Document;
use caf_testkit::fixtures;
use caf_worker::asyncapi::document;
use caf_worker::settings::Settings;
use serde_json::{Value, json};

use crate::Place;

const FILE: &str = "actors/protocol/schemas/asyncapi.json";

#[test]
fn the_document_on_file_is_that_of_the_default_settings() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    let generated = format!("{:#}\n", document(&Settings::default()));
    if std::env::var_os("UPDATE_SCHEMAS").is_some_and(|value| value == "1") {
        std::fs::write(&path, &generated).expect("the document can be written");
    }
    let on_file = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        on_file == generated,
        "{FILE} is out of date: run this test with UPDATE_SCHEMAS=1"
    );
}

#[test]
fn the_command_prints_the_document_with_the_subjects_in_force_and_no_secret() {
    let variables = [
        ("WORKER__NATS__SUBJECTS__RESULT", "my.results"),
        ("WORKER__NATS__SUBJECTS__CANCEL", "my.cancels"),
        ("WORKER__NATS__DURABLE", "my-workers"),
        ("NATS_URL", "tls://me:s3cret@broker.example"),
    ];
    let ran = Place::new()
        .expect("there is room")
        .run("asyncapi", &variables)
        .expect("runs");
    assert_eq!(ran.code, 0, "{}", ran.complaint);
    assert!(!ran.answer.contains("s3cret"));
    let printed: Value = serde_json::from_str(&ran.answer).expect("is JSON");
    assert_eq!(printed["channels"]["result"]["address"], "my.results");
    assert_eq!(printed["channels"]["cancel"]["address"], "my.cancels.{tenant}");
    assert_eq!(
        printed["operations"]["takeAssignment"]["bindings"]["nats"]["queue"],
        "my-workers"
    );
    assert_eq!(
        printed["servers"]["broker"],
        json!({"host": "broker.example:4222", "protocol": "tls", "description": printed["servers"]["broker"]["description"]})
    );
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_and_message_is_used() {
    let document = document(&Settings::default());
    assert_eq!(document["asyncapi"], "3.0.0");
    let mut used = BTreeSet::new();
    references(&document, &mut used);
    for reference in &used {
        let pointer = reference.strip_prefix('#').expect("leads into the document");
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    for kind in ["schemas", "messages"] {
        for name in document["components"][kind].as_object().expect("is there").keys() {
            let reference = format!("#/components/{kind}/{name}");
            assert!(used.contains(&reference), "nothing leads to {reference}");
        }
    }
    for (name, operation) in document["operations"].as_object().expect("is there") {
        assert!(
            ["send", "receive"].contains(&operation["action"].as_str().unwrap_or_default()),
            "{name}"
        );
    }
    let subjects = &Settings::default().nats.subjects;
    let known = Document::new(document);
    for subject in [
        &subjects.assign,
        &subjects.ack,
        &subjects.result,
        &subjects.heartbeat,
        &subjects.dlq,
    ] {
        assert!(known.channel_of(subject).is_some(), "{subject}");
    }
}

/// Every subject that a worker sends on (or listens on), by the document.
fn subjects(document: &Value, action: &str) -> Vec<String> {
    let of_action = |operation: &&Value| operation["action"] == action;
    let operations = document["operations"].as_object().expect("is there").values();
    let channels = operations.filter(of_action).map(|operation| {
        let reference = operation["channel"]["$ref"].as_str().expect("is there");
        &document.pointer(&reference[1..]).expect("leads somewhere")["address"]
    });
    let brokers = document["x-broker-protocol"][action]
        .as_array()
        .expect("is there");
    let all = channels.chain(brokers).filter_map(Value::as_str);
    all.map(str::to_owned).collect()
}

/// Whether a permission covers an address, whose parameters may be any token.
fn covers(permission: &str, address: &str) -> bool {
    let prefix = permission.strip_suffix('>');
    permission == address || prefix.is_some_and(|prefix| address.starts_with(prefix))
}

#[test]
fn the_permissions_that_operators_are_told_are_those_that_the_document_needs() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"));
    let readme = readme.expect("is there");
    let document = document(&Settings::default());
    for (list, action) in [("publish", "send"), ("subscribe", "receive")] {
        let (_, rest) = readme.split_once(&format!("\n{list}: [")).expect("is told");
        let (told, _) = rest.split_once(']').expect("ends");
        let told: Vec<_> = told
            .split(',')
            .map(|subject| subject.trim().trim_matches('"'))
            .collect();
        let needed = subjects(&document, action);
        for subject in &needed {
            // By pulling they arrive in the inbox; the README says what core mode needs.
            let is_pulled = *subject == Settings::default().nats.subjects.assign;
            let is_told = told.iter().any(|permission| covers(permission, subject));
            assert!(is_told || is_pulled, "{list} does not allow {subject}");
        }
        for permission in told {
            let is_needed = needed.iter().any(|subject| covers(permission, subject));
            assert!(
                is_needed,
                "{list} allows {permission}, which the document does not name"
            );
        }
    }
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            found.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
            object.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[test]
fn every_message_of_the_contract_has_an_example_that_fits_its_schema() {
    let document = Document::new(document(&Settings::default()));
    let messages = document.value()["components"]["messages"]
        .as_object()
        .expect("is there");
    for (name, message) in messages {
        let is_record = name.ends_with("Record");
        let examples = message["examples"].as_array().cloned().unwrap_or_default();
        assert_eq!(examples.is_empty(), is_record, "{name}");
        for example in examples {
            let faults = document.faults(name, &example["headers"], &example["payload"]);
            assert_eq!(faults, Vec::<String>::new(), "{name}");
        }
    }
    let assignment = fixtures::assignments()
        .into_iter()
        .find(|fixture| fixture.name == "a_as_the_router_builds_it")
        .expect("is on file");
    let assignment: Value = serde_json::from_slice(&assignment.payload).expect("is JSON");
    assert_eq!(messages["ExecAssignment"]["examples"][0]["payload"], assignment);
    let result = fixtures::results()
        .into_iter()
        .find(|fixture| fixture.name == "headers_as_the_worker_sets_them")
        .expect("is on file");
    assert_eq!(messages["ExecResult"]["examples"][0]["payload"], result.payload);
}

#[test]
fn what_no_schema_names_is_a_fault() {
    let document = Document::new(document(&Settings::default()));
    let example = &document.value()["components"]["messages"]["Heartbeat"]["examples"][0];
    let mut payload = example["payload"].clone();
    payload["resources"]["temperature"] = json!(40);
    assert_eq!(document.faults("Heartbeat", &Value::Null, &payload).len(), 1);
    let example = &document.value()["components"]["messages"]["ExecResult"]["examples"][0];
    let mut headers = example["headers"].clone();
    headers["x-unknown"] = json!("1");
    assert_eq!(
        document.faults("ExecResult", &headers, &example["payload"]).len(),
        1
    );
}
