use serde_json::json;

use super::*;

fn good() -> Value {
    json!({
        "timestamp": "2026-01-01T00:00:00.123456Z", "level": "INFO", "component": "worker", "message": "x",
        "tenant_id": "t", "run_id": "r", "flow_id": "f", "step_id": "s", "trace_id": "9f", "latency_ms": 42,
        "context": {"worker_id": "w", "password": "[REDACTED]"},
    })
}

#[test]
fn a_good_line_is_not_complained_of() {
    assert_eq!(
        line(&good().to_string(), &Secrets::default()),
        Vec::<String>::new()
    );
}

#[test]
fn each_rule_broken_once_is_found_and_no_other() {
    let without = |key: &str| {
        let mut line = good();
        line.as_object_mut().expect("is one").remove(key);
        line.to_string()
    };
    let with = |pointer: &str, value: Value| {
        let mut line = good();
        *line.pointer_mut(pointer).expect("is there") = value;
        line.to_string()
    };
    let added = |key: &str, value: Value| {
        let mut line = good();
        line[key] = value;
        line.to_string()
    };
    for (text, part) in [
        ("not json".to_owned(), "is not JSON"),
        ("[1]".to_owned(), "not a JSON object"),
        (
            good().to_string().replacen("{", "{\"level\":\"INFO\",", 1),
            "level is given twice",
        ),
        (without("timestamp"), "timestamp"),
        (with("/timestamp", json!("2026-01-01T00:00:00.123Z")), "timestamp"),
        (
            with("/timestamp", json!("2026-13-01T00:00:00.123456Z")),
            "timestamp",
        ),
        (with("/timestamp", json!(1)), "timestamp"),
        (with("/level", json!("info")), "level must"),
        (with("/component", json!("router")), "component"),
        (with("/message", json!(1)), "message"),
        (without("context"), "context must"),
        (with("/context/worker_id", json!("")), "context.worker_id"),
        (with("/trace_id", json!("")), "trace_id"),
        (without("run_id"), "step_id is there, and run_id is not"),
        (without("flow_id"), "step_id is there, and flow_id is not"),
        (without("tenant_id"), "step_id is there, and tenant_id is not"),
        (with("/latency_ms", json!("42")), "latency_ms"),
        (added("error", json!("x")), "error must"),
        (
            added("correlation", json!({})),
            "correlation must stand in context",
        ),
        (with("/context/password", json!("x")), "should be [REDACTED]"),
        (with("/message", json!("Bearer abc")), "should be [REDACTED]"),
    ] {
        let found = line(&text, &Secrets::default());
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].contains(part), "{text}: {found:?}");
    }
}

#[test]
fn a_given_secret_is_found_in_every_form_and_never_repeated() {
    let secret = "hunter \"2\" é/+";
    let secrets = Secrets::new(["none".to_owned(), secret.to_owned()]);
    for form in [
        secret.to_owned(),
        Value::from(secret).to_string(),
        "hunter%20%222%22%20%C3%A9%2F%2B".to_owned(),
        STANDARD.encode(secret),
        URL_SAFE_NO_PAD.encode(secret),
    ] {
        let found = leaks(&format!("a {form} b"), &secrets);
        assert_eq!(found, ["holds the secret number 2"], "{form}");
    }
}

#[test]
fn a_health_page_is_held_against_its_form() {
    let page = json!({
        "status": "healthy", "timestamp": "2026-01-01T00:00:00.123456Z",
        "checks": {"nats": {"status": "ok", "message": "connected"}},
    });
    assert_eq!(
        health(&page.to_string(), &Secrets::default()),
        Vec::<String>::new()
    );
    for (pointer, value, part) in [
        ("/status", json!("ok"), "status must be healthy"),
        ("/timestamp", json!("now"), "timestamp"),
        ("/checks", json!({}), "checks"),
        ("/checks/nats/status", json!("healthy"), "checks.nats.status"),
        ("/checks/nats/message", json!(1), "checks.nats.message"),
    ] {
        let mut broken = page.clone();
        *broken.pointer_mut(pointer).expect("is there") = value;
        let found = health(&broken.to_string(), &Secrets::default());
        assert!(
            found.len() == 1 && found[0].contains(part),
            "{pointer}: {found:?}"
        );
    }
    assert!(health("<html>", &Secrets::default())[0].contains("is not JSON"));
}
