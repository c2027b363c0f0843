//! The tests of observability that contract 9.5 names, by their names: unit, edge, and performance, which prints what it
//! measures. The groups on the health endpoint are in `tests/node/`.

use std::time::Instant;

use caf_actors::events::{Log, warning};

use super::*;
use crate::check::{self, Secrets};

/// The line of an event with these fields.
fn of(message: &str, fields: Value) -> Value {
    let Value::Object(fields) = fields else {
        panic!("fields are an object")
    };
    let bytes = line::compose("INFO", message, fields, "worker_4711", SystemTime::now());
    assert_eq!(bytes.iter().filter(|b| **b == b'\n').count(), 1);
    let text = std::str::from_utf8(&bytes).unwrap().trim_end();
    assert_eq!(check::line(text, &Secrets::default()), Vec::<String>::new());
    serde_json::from_str(text).unwrap()
}

fn ids() -> Value {
    json!({"tenant_id": "t", "run_id": "r", "flow_id": "f", "step_id": "s", "trace_id": "9f"})
}

// Unit.

#[test]
fn timestamp_format() {
    let line = of("x", json!({}));
    let timestamp = line["timestamp"].as_str().unwrap();
    assert_eq!((timestamp.len(), &timestamp[26..]), (27, "Z"));
}

#[test]
fn log_format_compliance() {
    let line = of("x", ids());
    assert_eq!(line["component"], "worker");
    assert_eq!(line["context"]["worker_id"], "worker_4711");
}

#[test]
fn cp1_fields_at_top_level() {
    let line = of("x", ids());
    for (key, value) in ids().as_object().unwrap() {
        assert_eq!(&line[key], value);
    }
    assert_eq!(line["correlation"], Value::Null);
}

#[test]
fn cp1_fields_with_context() {
    let mut fields = ids();
    fields["context"] = json!({"block_type": "echo"});
    let line = of("x", fields);
    assert_eq!(
        (&line["run_id"], &line["context"]["block_type"]),
        (&json!("r"), &json!("echo"))
    );
}

#[test]
fn pii_filtering() {
    let keys = [
        "password",
        "api_key",
        "secret",
        "token",
        "access_token",
        "refresh_token",
        "authorization",
        "credit_card",
        "ssn",
        "email",
        "phone",
    ];
    for key in keys {
        let nested = json!({key.to_uppercase(): "hunter", "list": [{key: {"deep": "hunter"}}]});
        let json = json!({"body": json!({key: "hunter"}).to_string()});
        for context in [nested, json] {
            let line = of(
                "Bearer hunter",
                json!({"context": context, "error": {key: "hunter"}}),
            );
            assert!(!line.to_string().contains("hunter"), "{line}");
        }
    }
}

#[test]
fn all_log_levels() {
    let (log, errors, rest) = captured(LogLevel::Debug);
    error!(log, "x");
    warn!(log, "x");
    info!(log, "x");
    debug!(log, "x");
    let levels = |lines: Vec<Value>| lines.iter().map(|line| line["level"].clone()).collect::<Vec<_>>();
    assert_eq!(levels(errors.lines()), ["ERROR"]);
    assert_eq!(levels(rest.lines()), ["WARN", "INFO", "DEBUG"]);
}

#[test]
fn context_object_structure() {
    for context in [json!(null), json!({}), json!({"a": {"b": [1]}})] {
        assert!(of("x", json!({"context": context}))["context"].is_object());
    }
}

// Edge.

#[test]
fn very_long_message() {
    let message = "m".repeat(100 * 1024);
    assert_eq!(of(&message, json!({}))["message"], message);
}

#[test]
fn very_long_cp1_fields() {
    let id = "i".repeat(1_000);
    let line = of(
        "x",
        json!({"tenant_id": id, "run_id": id, "flow_id": id, "step_id": id, "trace_id": id}),
    );
    assert_eq!(line["step_id"], id);
}

#[test]
fn empty_cp1_fields() {
    let line = of(
        "x",
        json!({"tenant_id": "", "run_id": "", "flow_id": null, "step_id": "s", "trace_id": ""}),
    );
    for key in ["tenant_id", "run_id", "flow_id", "step_id", "trace_id"] {
        assert_eq!(line.get(key), None, "{key}");
    }
    // A step without its run is not lost.
    assert_eq!(line["context"]["step_id"], "s");
}

#[test]
fn special_characters() {
    let text = "a\n\r\t\"\\\0\u{7f}\u{2028}\u{1f600}é\u{202e}</script>{}";
    let line = of(text, json!({"tenant_id": text, "context": {text: text}}));
    assert_eq!(
        (&line["message"], &line["tenant_id"], &line["context"][text]),
        (&json!(text), &json!(text), &json!(text))
    );
    let controls = "\u{1}".repeat(100 * 1024);
    assert_eq!(of(&controls, json!({}))["message"], controls);
}

#[test]
fn very_large_context() {
    for bytes in [10, 1_000, 2_000] {
        let value = "v".repeat(bytes);
        let context: Map<String, Value> = (0..1_000).map(|i| (format!("k{i}"), json!(value))).collect();
        let line = of("x", json!({"context": context}));
        let kept = line["context"].as_object().unwrap();
        assert_eq!(kept.len(), 1_001);
        assert!(kept["k999"].as_str().unwrap().len() >= bytes.min(512), "{bytes}");
    }
}

#[test]
fn invalid_json_in_context() {
    for context in ["{\"a\":", "not json", "\u{0}"] {
        let line = of("x", json!({"context": context}));
        assert_eq!(line["context"]["value"], context);
    }
}

// Performance.

#[test]
fn logging_throughput() {
    let (log, errors, rest) = captured(LogLevel::Info);
    let log = Log::new(log, "w");
    let start = Instant::now();
    (0..10_000).for_each(|_| log.emit(warning("a warning of the usual length, with some words in it")));
    println!("logging_throughput: 10000 lines in {:?}", start.elapsed());
    assert_eq!(errors.lines().len() + rest.lines().len(), 10_000);
}

#[test]
fn pii_filtering_latency() {
    let context = json!({"url": "nats://u:p@h", "body": "{\"password\":\"x\"}", "items": [{"token": 1}], "text": "x".repeat(200)});
    let start = Instant::now();
    for _ in 0..1_000 {
        caf_actors::mask::mask(&mut context.clone());
    }
    println!("pii_filtering_latency: {:?} each", start.elapsed() / 1_000);
}

#[test]
fn json_serialization() {
    let start = Instant::now();
    for number in 0..1_000 {
        let mut fields = ids().as_object().unwrap().clone();
        fields.insert(
            "context".to_owned(),
            json!({"block_type": "echo", "number": number}),
        );
        line::compose("INFO", "Step execution completed", fields, "w", SystemTime::now());
    }
    println!("json_serialization: {:?} each", start.elapsed() / 1_000);
}

#[test]
fn memory_usage() {
    let resident = || {
        std::fs::read_to_string("/proc/self/statm")
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            * 4
    };
    let before = resident();
    let log = direct_logger(LogLevel::Info, Output::writers(io::sink(), io::sink()), "w");
    (0..10_000).for_each(|i| info!(log, "x"; "number" => i));
    println!(
        "memory_usage: {before} KiB before, {} KiB after 10000 lines",
        resident()
    );
}

#[test]
fn concurrent_logging() {
    let (log, _, rest) = captured(LogLevel::Info);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let log = log.clone();
            scope.spawn(move || (0..1_000).for_each(|i| info!(log, "x"; "thread" => thread, "i" => i)));
        }
    });
    println!("concurrent_logging: 4 x 1000 lines in {:?}", start.elapsed());
    assert_eq!(rest.lines().len(), 4_000);
}
