use caf_protocol::error_code::ErrorCode;
use serde_json::{Value, json};

use super::*;

fn identity() -> Arc<Identity> {
    Arc::new(Identity {
        assignment_id: "a-1".to_owned(),
        tenant_id: "acme".to_owned(),
        ..Identity::default()
    })
}

fn limit(operation: Operation) -> OperationLimit {
    OperationLimit {
        operation,
        allowed: Duration::from_millis(250),
    }
}

/// Every sample as name, labels and value.
fn samples(events: &[Event]) -> Vec<(&'static str, String, f64)> {
    let samples = events.iter().flat_map(|event| &event.samples);
    samples
        .map(|sample| (sample.metric.name, sample.labels.join(","), sample.value))
        .collect()
}

const HTTP: [Operation; 2] = [Operation::HttpConnect, Operation::HttpRead];

fn field(event: &Event, name: &str) -> Value {
    json!(event.field(name).expect("it is said"))
}

#[test]
fn a_limit_that_ran_out_is_a_warning_with_its_figures_and_counts_as_one_event() {
    let failure = limit(Operation::FsRead).ends_the_job(Duration::from_millis(300));
    let events = of_attempt(&identity(), &[Operation::FsRead], Some(&failure));
    let [event] = &events[..] else {
        panic!("one line, not {}", events.len())
    };
    assert_eq!((event.level, event.message), (Level::Warn, "Operation timeout"));
    assert_eq!(field(event, "error_code"), "timeout");
    for (key, value) in [
        ("operation_type", json!("fs_read")),
        ("timeout_type", json!("operation")),
        ("timeout_ms", json!(250)),
        ("elapsed_ms", json!(300)),
    ] {
        assert_eq!(field(event, key), value, "{key}");
    }
    let expected = [
        ("worker_operations_total", "fs_read".to_owned(), 1.0),
        ("worker_timeout_rate", "fs_read".to_owned(), 1.0),
        ("worker_timeout_events_total", "fs_read,operation".to_owned(), 1.0),
        ("worker_timeout_duration_seconds", "fs_read".to_owned(), 0.3),
    ];
    assert_eq!(samples(&events), expected);
}

#[test]
fn operations_count_up_to_the_one_that_was_given_up() {
    let count = |failure: Option<&Failure>| {
        let events = of_attempt(&identity(), &HTTP, failure);
        let counted = samples(&events).into_iter();
        let rates = counted.filter(|(name, ..)| *name == "worker_timeout_rate");
        rates.map(|(_, label, value)| (label, value)).collect::<Vec<_>>()
    };
    let (connect, read) = ("http_connect".to_owned(), "http_read".to_owned());
    let well = vec![(connect.clone(), 0.0), (read.clone(), 0.0)];
    assert_eq!(count(None), well);
    assert_eq!(count(Some(&Failure::new(ErrorCode::HttpError, "x"))), well);
    let gave_up = |operation| limit(operation).ends_the_attempt("waiting", Duration::from_secs(1));
    assert_eq!(
        count(Some(&gave_up(Operation::HttpConnect))),
        [(connect.clone(), 1.0)]
    );
    assert_eq!(
        count(Some(&gave_up(Operation::HttpRead))),
        [(connect, 0.0), (read, 1.0)]
    );
}

#[test]
fn limits_on_a_job_are_told_once_when_it_ends_and_not_by_its_attempts() {
    let deadline = (Duration::from_secs(2), Duration::from_secs(3));
    let late = Failure::deadline();
    assert!(samples(&of_attempt(&identity(), &[], Some(&late))).is_empty());
    let events = of_job(&identity(), Some(&late), deadline);
    assert_eq!(field(&events[1], "operation_type"), "deadline");
    assert_eq!(
        (field(&events[1], "timeout_ms"), field(&events[1], "elapsed_ms")),
        (json!(2_000), json!(3_000))
    );
    let total = limit(Operation::Total).ends_the_job(Duration::from_millis(250));
    assert_eq!(total.code, ErrorCode::CancelledByTimeout);
    let ran_out = |events: &[Event]| {
        let told = events.iter().filter(|event| event.level == Level::Warn);
        told.map(|event| field(event, "operation_type"))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        ran_out(&of_job(&identity(), Some(&total), deadline)),
        [json!("total")]
    );
    assert_eq!(ran_out(&of_job(&identity(), None, deadline)), [json!(null); 0]);
    let of_an_attempt = limit(Operation::FsRead).ends_the_job(Duration::ZERO);
    assert!(ran_out(&of_job(&identity(), Some(&of_an_attempt), deadline)).is_empty());
}

#[test]
fn the_names_of_operations_are_distinct_and_their_labels_a_closed_set() {
    let names: std::collections::BTreeSet<_> = Operation::ALL.map(Operation::as_str).into_iter().collect();
    assert_eq!(names.len(), Operation::ALL.len());
    for operation in Operation::ALL {
        assert!(["attempt", "operation", "total", "deadline"].contains(&operation.timeout_type()));
    }
}
