//! Feature gates (contract 9.4): what each flag changes on the wire and in the log, alone and with the others; that nothing
//! changes while it is off, or on without a policy.

use std::collections::BTreeSet;
use std::time::Duration;

use caf_testkit::faulty_http::{Fault, FaultyHttp};
use caf_testkit::{AssignmentBuilder, Collector};
use serde_json::{Value, json};

use crate::support::{Node, SOON, assert_each_answered_once, jobs};

const RETRY: &str = "CP2_ADVANCED_RETRY_ENABLED";
const TIMEOUTS: &str = "CP2_COMPLETE_TIMEOUT_ENABLED";
const QUEUE: &str = "CP2_QUEUE_MANAGEMENT_ENABLED";

/// Lines that are written only while a feature is in force, with its flag.
const LINES: [(&str, &str); 5] = [
    ("Retry attempt started", RETRY),
    ("Retry exhausted", RETRY),
    ("Operation timeout", TIMEOUTS),
    ("Overload status changed", QUEUE),
    ("Queue rejection", QUEUE),
];

/// What can be told apart from outside.
#[derive(Debug, PartialEq)]
struct Behaviour {
    /// Calls of a server that answers 400 to a job that may make three.
    calls_after_400: usize,
    /// Calls of a server that answers 503 to a job that may make two.
    calls_after_503: usize,
    /// Status and code of a request that is never answered.
    unanswered: [String; 2],
    /// Jobs refused of five for a pool with two slots and, by its policy, one place in its queue.
    refused: usize,
    lines: BTreeSet<&'static str>,
}

impl Behaviour {
    fn expected(in_force: &[&str]) -> Self {
        let has = |flag| in_force.contains(&flag);
        let unanswered = if has(TIMEOUTS) {
            ["error", "CONNECTION_TIMEOUT"]
        } else {
            ["timeout", "CANCELLED_BY_TIMEOUT"]
        };
        let lines = LINES.into_iter().filter(|(_, flag)| has(flag));
        Self {
            calls_after_400: if has(RETRY) { 1 } else { 3 },
            calls_after_503: 2,
            unanswered: unanswered.map(str::to_owned),
            refused: if has(QUEUE) { 2 } else { 0 },
            lines: lines.map(|(line, _)| line).collect(),
        }
    }
}

fn request(url: &str, attempts: u32) -> AssignmentBuilder {
    AssignmentBuilder::new("http.request", json!({"method": "GET", "url": url})).set(
        "options",
        json!({"deadline_ms": 3_000, "retry": {"max_attempts": attempts, "backoff_ms": 5}}),
    )
}

fn observe(flags: &[&str], with_policies: bool) -> (Behaviour, Vec<Value>) {
    let server = FaultyHttp::start().expect("starts");
    server.set(|call| match call.path {
        "/400" => Fault::Status(400, ""),
        "/503" => Fault::Status(503, ""),
        _ => Fault::Hang,
    });
    let node = Node::start_with(|worker| {
        let worker = worker
            .env("WORKER__BLOCKS__HTTP__ALLOW_TARGETS", "127.0.0.0/8")
            .env("WORKER_GPU_POOL_SIZE", 2)
            .env("LOG_LEVEL", "debug");
        let worker = flags.iter().fold(worker, |worker, flag| worker.env(flag, "true"));
        if !with_policies {
            return worker;
        }
        worker
            .policy("retry", &json!({}))
            .policy("timeout", &json!({"http_connection": {"read_timeout_ms": 500}}))
            .policy(
                "queue",
                &json!({"resource_pools": {"gpu": {"max_queue_size": 1}}}),
            )
    });
    let mut load = vec![
        request(&server.url("/400"), 3),
        request(&server.url("/503"), 2),
        request(&server.url("/hang"), 1),
    ];
    let sleeping = |_| AssignmentBuilder::sleep(1_000).set("resources", json!({"class": "gpu"}));
    load.extend(jobs(5, sleeping));
    node.client.assign_all(&load).expect("are sent");
    node.wait_answered(&load, SOON);
    let answers: Collector = node.answers();
    assert_each_answered_once(&answers, &load);
    assert_eq!(answers.objections(), Vec::<String>::new());
    let result = |job: &AssignmentBuilder| answers.results(job.assignment_id())[0].clone();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let unanswered = result(&load[2]);
    let overloaded = |job: &&AssignmentBuilder| result(job)["error_code"] == "SYSTEM_OVERLOAD";
    let refused = load[3..].iter().filter(overloaded).count();
    // The log has a thread of its own: what was said of a job may come after its answer.
    caf_testkit::wait_until("all jobs that ran are logged", Duration::from_secs(10), || {
        let ended = node.worker.logs();
        let of = |line: &&Value| line["context"]["status"].is_string();
        ended.iter().filter(of).count() >= load.len() - refused
    });
    let logs = node.worker.logs();
    let said = |message: &str| logs.iter().any(|line| line["message"] == message);
    let behaviour = Behaviour {
        calls_after_400: server.calls("/400"),
        calls_after_503: server.calls("/503"),
        unanswered: [&unanswered["status"], &unanswered["error_code"]].map(text),
        refused,
        lines: LINES
            .into_iter()
            .map(|(line, _)| line)
            .filter(|line| said(line))
            .collect(),
    };
    (behaviour, logs)
}

#[test]
fn with_all_flags_off_policies_change_nothing() {
    assert_eq!(observe(&[], true).0, Behaviour::expected(&[]));
}

#[test]
fn each_flag_alone_changes_its_own_feature_and_no_other() {
    for flag in [RETRY, TIMEOUTS, QUEUE] {
        assert_eq!(observe(&[flag], true).0, Behaviour::expected(&[flag]), "{flag}");
    }
}

#[test]
fn with_all_flags_on_every_feature_is_in_force() {
    let all = [RETRY, TIMEOUTS, QUEUE];
    assert_eq!(observe(&all, true).0, Behaviour::expected(&all));
}

#[test]
fn flags_without_policies_change_nothing_and_each_warns() {
    let (behaviour, logs) = observe(&[RETRY, TIMEOUTS, QUEUE], false);
    assert_eq!(behaviour, Behaviour::expected(&[]));
    let is_warning = |line: &&Value| line["message"] == "Warning" && line["level"] == "WARN";
    assert_eq!(logs.iter().filter(is_warning).count(), 3);
}
