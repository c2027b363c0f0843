//! Rules for what the worker writes that are stricter than the router's (contract 3.2, 3.3, 3.6).
//!
//! Neighbours: tests of the protocol and of the whole node. What a job yields is the job's own business: `outputs`
//! and the details of an error may hold anything.

use serde_json::Value;

/// Fields that are numbers wherever they stand.
const NUMBERS: [&str; 11] = [
    "acknowledged_at",
    "cost",
    "latency_ms",
    "original_payload_bytes",
    "queue_depth",
    "received_at",
    "retries_used",
    "stream_sequence",
    "timestamp",
    "attempt",
    "jobs_in_flight",
];
/// Fields whose content is not the worker's.
const FOREIGN: [&str; 3] = ["outputs", "details", "original_headers"];

/// Every fault of an acknowledgement, a result or a dead letter, each with its path: a null, an empty string, the
/// string `"undefined"`, or a number that is written as a string.
pub fn faults(message: &Value) -> Vec<String> {
    let mut found = Vec::new();
    look(message, "", &mut found);
    if message["version"] != "1" {
        found.push("version: is not the string \"1\"".to_owned());
    }
    found
}

fn look(value: &Value, path: &str, found: &mut Vec<String>) {
    let fault = match value {
        Value::Null => Some("is null"),
        Value::String(text) if text.is_empty() => Some("is empty"),
        Value::String(text) if text == "undefined" => Some("is \"undefined\""),
        _ => None,
    };
    found.extend(fault.map(|fault| format!("{path}: {fault}")));
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                if NUMBERS.contains(&key.as_str()) && !value.is_number() {
                    found.push(format!("{path}: is not a number"));
                }
                if !FOREIGN.contains(&key.as_str()) {
                    look(value, &path, found);
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                look(item, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn faults_are_found_at_any_depth_and_named_by_path() {
        let message = json!({
            "version": "1", "latency_ms": "5", "a": null, "b": {"c": ""}, "d": [{"e": "undefined"}],
            "outputs": {"row": null}, "error": {"details": {"x": ""}},
        });
        let expected = [
            "a: is null",
            "b.c: is empty",
            "d[0].e: is \"undefined\"",
            "latency_ms: is not a number",
        ];
        assert_eq!(faults(&message), expected);
        assert_eq!(
            faults(&json!({"version": 1})),
            ["version: is not the string \"1\""]
        );
        assert!(faults(&json!({"version": "1", "latency_ms": 5})).is_empty());
    }
}
