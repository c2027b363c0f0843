//! What operators see: heartbeats, health page, log lines, memory.

use caf_testkit::client::HEARTBEAT;
use caf_testkit::worker::{Line, Stream};
use caf_testkit::{AssignmentBuilder, http, wait_until};
use serde_json::{Value, json};

use crate::support::{Node, SOON, assert_each_answered_once, jobs};

/// Most memory of its own of a worker that has nothing to do, in bytes. Pages of the program file are not counted: they are the
/// system's to drop, and of a program built for tests there are twice as many.
const IDLE_BYTES: u64 = 12 * 1024 * 1024;

/// UTC, ISO 8601, six fraction digits.
fn is_timestamp(value: &Value) -> bool {
    let form = "dddd-dd-ddTdd:dd:dd.ddddddZ";
    value.as_str().is_some_and(|text| {
        text.len() == form.len()
            && text
                .chars()
                .zip(form.chars())
                .all(|(given, wanted)| match wanted {
                    'd' => given.is_ascii_digit(),
                    other => given == other,
                })
    })
}

/// Contract 5.1.
#[test]
fn heartbeats_tell_who_and_how_the_worker_is_until_it_has_left() {
    let mut node = Node::start_with(|worker| {
        worker
            .env("WORKER__WORKER__ID", "worker-under-test")
            .env("WORKER__WORKER__HEARTBEAT_INTERVAL_MS", 200)
            .env("WORKER__LIMITS__MAX_HELD", 1)
    });
    let beats = node.client.collect(&[HEARTBEAT]).expect("listens");
    let has = |status: &str| beats.on(HEARTBEAT).iter().any(|beat| beat["status"] == status);
    beats.wait_for(HEARTBEAT, 5, SOON).expect("beats");
    assert!(has("ready") && !has("busy") && !has("draining"));
    let seconds = |beat: &Value| -> f64 {
        let text = beat["timestamp"].as_str().unwrap_or_default();
        text.get(17..26)
            .and_then(|seconds| seconds.parse().ok())
            .unwrap_or_default()
    };
    let regular = beats.on(HEARTBEAT);
    let span = (seconds(&regular[4]) - seconds(&regular[0])).rem_euclid(60.0);
    assert!((0.7..2.5).contains(&span), "5 heartbeats in {span} s");

    let job = [AssignmentBuilder::sleep(1_500)];
    node.client.assign_all(&job).expect("is sent");
    wait_until("the worker is busy", SOON, || has("busy"));
    node.worker.terminate().expect("is told");
    wait_until("the worker says that it leaves", SOON, || has("draining"));
    assert!(node.worker.is_running());
    assert_eq!(node.worker.wait_exit(SOON).expect("ends").code(), Some(0));
    for beat in beats.on(HEARTBEAT) {
        assert_eq!(
            (&beat["version"], &beat["worker_id"]),
            (&json!("1"), &json!("worker-under-test"))
        );
        assert!(is_timestamp(&beat["timestamp"]), "{beat}");
        let resources = &beat["resources"];
        for share in ["cpu", "gpu"] {
            assert!(
                (0.0..=1.0).contains(&resources[share].as_f64().expect("is a number")),
                "{beat}"
            );
        }
        assert!(resources["mem_bytes"].as_u64() > Some(0), "{beat}");
        let in_flight = u64::from(beat["status"] == "busy");
        assert!(resources["jobs_in_flight"].as_u64() >= Some(in_flight), "{beat}");
    }
    let last = beats.on(HEARTBEAT).pop().expect("there are some");
    assert_eq!(last["status"], "draining");
    assert_each_answered_once(&node.answers(), &job);
}

/// Contract 8.3.
#[test]
fn the_health_page_has_the_form_that_monitors_expect() {
    let mut node = Node::start();
    let page = node.worker.get("/_health").expect("answers");
    assert_eq!(
        (page.status, page.header("content-type")),
        (200, Some("application/json"))
    );
    let body = page.json().expect("is JSON");
    assert_eq!(body["status"], "healthy");
    assert!(is_timestamp(&body["timestamp"]), "{body}");
    for check in ["processor", "nats", "pools", "publisher"] {
        assert_eq!(body["checks"][check]["status"], "ok", "{check}: {body}");
        assert!(body["checks"][check]["message"].is_string(), "{check}: {body}");
    }
    assert_eq!(body["checks"]["nats"]["message"], "connected");
    assert_eq!(body["checks"]["state_dir"]["message"], "usable");
    let details = &body["details"];
    for pool in ["cpu", "gpu", "io"] {
        assert_eq!(details["pools"][pool]["slots_unaccounted"], 0, "{details}");
    }
    assert_eq!(
        (
            &details["outbox"]["entries"],
            &details["outbox"]["bytes"],
            &details["outbox"]["failure"]
        ),
        (&json!(0), &json!(0), &Value::Null)
    );
    assert_eq!(details["outbox"]["max_bytes"], 1_073_741_824);
    assert_eq!(
        details["claims"],
        json!({"entries": 0, "bytes": 0, "idempotency_window_s": 3_600, "results_suppressed": 0, "unavailable_ms": 0})
    );
    let port = node.worker.health_port().expect("is logged");
    let here = ([127, 0, 0, 1], port).into();
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/_health/x"),
        ("GET", "/metrics"),
        ("POST", "/_health"),
    ] {
        let answer = http::request(here, method, path, &[], b"").expect("answers");
        assert_eq!(answer.status, 404, "{method} {path}");
        let kind = answer.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("text/plain"), "{method} {path}: {kind}");
    }
}

/// Contract 8.1, for one line of a serving worker.
fn assert_is_log_line(Line { stream, text }: &Line) {
    let log: Value = serde_json::from_str(text).unwrap_or_default();
    let object = log
        .as_object()
        .unwrap_or_else(|| panic!("not a JSON object: {text}"));
    assert!(is_timestamp(&log["timestamp"]), "{text}");
    let level = log["level"].as_str().unwrap_or_default();
    assert!(["ERROR", "WARN", "INFO", "DEBUG"].contains(&level), "{text}");
    assert_eq!(*stream == Stream::Stderr, level == "ERROR", "{text}");
    assert_eq!(log["component"], "worker", "{text}");
    assert!(
        log["message"].is_string() && log["context"]["worker_id"].is_string(),
        "{text}"
    );
    let top = [
        "timestamp",
        "level",
        "component",
        "message",
        "context",
        "tenant_id",
        "run_id",
        "flow_id",
        "step_id",
        "trace_id",
        "error_code",
        "latency_ms",
        "error",
    ];
    for (key, value) in object {
        assert!(top.contains(&key.as_str()), "{key}: {text}");
        assert!(!value.is_null() && value != "", "{key}: {text}");
    }
    if object.contains_key("step_id") {
        for key in ["run_id", "flow_id", "tenant_id"] {
            assert!(object.contains_key(key), "{key}: {text}");
        }
    }
}

#[test]
fn every_line_of_the_log_has_its_form_and_each_job_one_line_at_level_info() {
    let node = Node::start_with(|worker| worker.env("LOG_LEVEL", "debug"));
    let ulid = |n: u32| format!("01J8ZQ4T6M9X2K7V5R3N1B0CD{n}");
    let load = [
        AssignmentBuilder::echo().run_flow_step(&ulid(1), &ulid(2), &ulid(3)),
        AssignmentBuilder::echo().set("step_id", ulid(4).into()),
        AssignmentBuilder::sleep(5),
        AssignmentBuilder::sleep(5_000).deadline_ms(50),
        AssignmentBuilder::new("fs.blob_get", json!({"path": "data/absent"})).max_attempts(2),
        AssignmentBuilder::new("no.such.type", json!({"password": "pa55word"})),
        AssignmentBuilder::new("http.request", json!({"method": "GET"})),
    ];
    node.client.assign_all(&load).expect("are sent");
    node.client
        .publish("caf.exec.assign.v1", &[], "not json")
        .expect("is sent");
    node.wait_answered(&load, SOON);
    node.assert_alive();
    let mut worker = node.worker;
    worker.terminate().expect("is told");
    let finished = worker.finish(SOON).expect("ends");
    assert!(finished.lines.len() > 20, "{}", finished.stdout());
    finished.lines.iter().for_each(assert_is_log_line);
    let logs: Vec<Value> = finished
        .lines
        .iter()
        .filter_map(|line| serde_json::from_str(&line.text).ok())
        .collect();
    for job in &load {
        let about: Vec<_> = logs
            .iter()
            .filter(|log| log["context"]["assignment_id"] == job.assignment_id() && log["level"] != "DEBUG")
            .collect();
        assert_eq!(about.len(), 1, "{about:?}");
    }
    assert!(logs.iter().any(|log| log["step_id"] == ulid(3).as_str()));
    assert!(!logs.iter().any(|log| log["step_id"] == ulid(4).as_str()));
    assert!(!finished.lines.iter().any(|line| line.text.contains("pa55word")));
    for message in [
        "Worker starting",
        "Worker runtime running",
        "Worker shutting down",
        "Actor pools initialized",
    ] {
        assert!(logs.iter().any(|log| log["message"] == message), "{message}");
    }
}

#[test]
fn an_idle_worker_is_small() {
    let node = Node::start();
    node.assert_alive();
    let bytes = node.worker.own_resident_bytes().expect("it runs");
    assert!(bytes < IDLE_BYTES, "{} KiB", bytes / 1024);
}

/// Thirty assignments where ten are remembered: the hour that was promised is not covered.
#[test]
fn the_health_page_tells_how_long_assignments_are_really_remembered() {
    for scope in ["fleet", "worker"] {
        let mut node = Node::start_with(|worker| {
            worker
                .env("WORKER__IDEMPOTENCY__SCOPE", scope)
                .env("WORKER__IDEMPOTENCY__MAX_ENTRIES", 10)
        });
        let load = jobs(30, |_| AssignmentBuilder::echo());
        node.client.assign_all(&load).expect("are sent");
        node.wait_answered(&load, SOON);
        wait_until("the page says so", SOON, || {
            let page = node
                .worker
                .get("/_health")
                .expect("answers")
                .json()
                .expect("is JSON");
            let claims = &page["details"]["claims"];
            claims["idempotency_window_s"]
                .as_u64()
                .is_some_and(|window| window < 600)
                && claims["entries"] == 10
        });
    }
}
