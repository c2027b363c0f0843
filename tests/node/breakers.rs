//! Circuit breakers and retry tokens of a whole node: what reaches a server that fails, and what an operator sees of it.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use caf_testkit::faulty_http::{Fault, FaultyHttp};
use caf_testkit::postgres::Postgres;
use caf_testkit::stall::{HeldCall, Stall};
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, http, wait_until};
use serde_json::{Value, json};

use crate::support::{Node, SOON, jobs};

const FLAG: &str = "CP2_CIRCUIT_BREAKER_ENABLED";

fn start(adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Node {
    Node::start_with(|worker| {
        adjust(
            worker
                .env(FLAG, "true")
                .env("CP2_OBSERVABILITY_METRICS_ENABLED", "true")
                .env("WORKER__BLOCKS__HTTP__ALLOW_TARGETS", "127.0.0.0/8"),
        )
    })
}

fn set(worker: WorkerBuilder, key: &str, value: impl ToString) -> WorkerBuilder {
    worker.env(&format!("WORKER__WORKER__CIRCUIT_BREAKER__{key}"), value)
}

fn get(url: &str) -> AssignmentBuilder {
    AssignmentBuilder::new("http.request", json!({"method": "GET", "url": url})).max_attempts(1)
}

/// The results of these, in their order.
fn results(node: &Node, jobs: &[AssignmentBuilder]) -> Vec<Value> {
    node.client.assign_all(jobs).expect("are sent");
    node.wait_answered(jobs, SOON);
    let answers = node.answers();
    assert_eq!(answers.objections(), Vec::<String>::new());
    let of = |job: &AssignmentBuilder| {
        let (acks, mut results) = (
            answers.acks(job.assignment_id()),
            answers.results(job.assignment_id()),
        );
        assert_eq!((acks.len(), results.len()), (1, 1), "{}", job.assignment_id());
        assert_eq!(acks[0]["status"], "accepted");
        results.remove(0)
    };
    jobs.iter().map(of).collect()
}

fn is_refused(result: &&Value) -> bool {
    result["error_message"] == "circuit_breaker_open"
}

fn admin(node: &mut Node, path: &str) -> Value {
    let port = node.worker.admin_port().expect("is logged");
    http::get(port, path).expect("answers").json().expect("is JSON")
}

/// The breaker that stands first on the status page: the one that is open, if one is.
fn first(node: &mut Node) -> Value {
    admin(node, "/status")["circuit_breakers"]["listed"][0].clone()
}

fn metric(node: &mut Node, series: &str) -> f64 {
    let port = node.worker.metrics_port().expect("is logged");
    let page = http::get(port, "/metrics").expect("answers").text();
    let mut lines = page.lines().filter_map(|line| line.rsplit_once(' '));
    let found = lines.find(|(name, _)| *name == series);
    found.map_or(-1.0, |(_, value)| value.parse().expect("is a number"))
}

fn changes(node: &Node) -> Vec<Value> {
    let logs = node.worker.logs().into_iter();
    let of = logs.filter(|line| line["message"] == "Circuit breaker state changed");
    of.map(|line| line["context"]["new_state"].clone()).collect()
}

#[test]
fn while_a_breaker_is_open_no_call_reaches_the_server_and_others_are_not_concerned() {
    let (server, other) = (
        FaultyHttp::start().expect("starts"),
        FaultyHttp::start().expect("starts"),
    );
    server.set(|_| Fault::Status(500, ""));
    let mut node = start(|worker| set(worker, "RECOVERY_MS", 3_600_000));
    for _ in 0..5 {
        let failed = &results(&node, &[get(&server.url("/"))])[0];
        assert_eq!(
            (&failed["error_type"], &failed["error"]["details"]["status_code"]),
            (&json!("server_error"), &json!(500))
        );
    }
    let left_alone = jobs(20, |_| get(&server.url("/")).max_attempts(4));
    for result in results(&node, &left_alone) {
        let error = &result["error"];
        let told = [
            &result["error_code"],
            &result["error_type"],
            &result["error_message"],
        ];
        assert_eq!(
            told,
            ["HTTP_ERROR", "provider_unavailable", "circuit_breaker_open"]
        );
        assert_eq!(
            (&error["retryable"], &error["details"]["circuit_breaker"]),
            (&json!(false), &json!("open"))
        );
        assert!(
            error["details"]["retry_after_ms"].as_u64() > Some(3_000_000),
            "{error}"
        );
        assert_eq!(result["retries_used"], 0);
    }
    assert_eq!(server.calls("/"), 5, "no call while it is open");
    let letters = node.answers().dead_letters(left_alone[0].assignment_id());
    assert_eq!(
        letters.len(),
        1,
        "row 7: it can be replayed when the server is well"
    );

    let elsewhere = [
        get(&server.url("/")).tenant("other"),
        get(&other.url("/")),
        AssignmentBuilder::echo(),
    ];
    let told = results(&node, &elsewhere);
    assert_eq!(
        told.iter().map(|result| &result["status"]).collect::<Vec<_>>(),
        ["error", "success", "success"]
    );
    assert_eq!((server.calls("/"), other.calls("/")), (6, 1));

    let breaker = first(&mut node);
    assert_eq!(
        (
            &breaker["state"],
            &breaker["endpoint"],
            &breaker["tenant_id"],
            &breaker["refused"]
        ),
        (&json!("open"), &json!(server.url("")), &json!("acme"), &json!(20))
    );
    for (series, value) in [
        ("worker_circuit_breakers{kind=\"http\",state=\"open\"}", 1.0),
        ("worker_circuit_breakers{kind=\"http\",state=\"closed\"}", 2.0),
        (
            "worker_circuit_breaker_transitions_total{kind=\"http\",to=\"open\"}",
            1.0,
        ),
        ("worker_circuit_breaker_refusals_total{kind=\"http\"}", 20.0),
    ] {
        assert_eq!(metric(&mut node, series), value, "{series}");
    }
    let said = admin(&mut node, &format!("/explain/{}", left_alone[0].assignment_id()));
    let said = &said["matches"][0];
    let summary = said["summary"].as_str().expect("is text");
    assert!(
        summary.contains("without a call") && summary.contains("left alone"),
        "{summary}"
    );
    assert!(
        said["advice"]
            .as_str()
            .is_some_and(|advice| advice.contains("replay")),
        "{said}"
    );
    let failed = |line: &Value| line["message"] == "HTTP request failed";
    let told = node.worker.logs().into_iter().filter(failed).count();
    assert_eq!(told, 6, "of calls that were made");
}

#[test]
fn a_few_calls_at_once_find_out_whether_it_works_again() {
    let server = FaultyHttp::start().expect("starts");
    server.set(|_| Fault::Status(503, ""));
    let trial = Duration::from_secs(1);
    let mut node = start(|worker| {
        let worker = set(worker, "RECOVERY_MS", 3_000);
        set(worker, "HALF_OPEN_CALLS", 2).env("WORKER_IO_POOL_SIZE", 20)
    });
    for _ in 0..5 {
        results(&node, &[get(&server.url("/"))]);
    }
    assert_eq!(changes(&node), ["open"]);
    let called = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&called);
    server.set(move |_| {
        noted.lock().expect("no panic holds it").push(Instant::now());
        Fault::Delay(trial)
    });
    wait_until("it may be called again", SOON, || {
        first(&mut node)["state"] == "half_open"
    });
    let half_open = "worker_circuit_breakers{kind=\"http\",state=\"half_open\"}";
    assert_eq!(metric(&mut node, half_open), 1.0);
    let told = results(&node, &jobs(20, |_| get(&server.url("/"))));
    let called = called.lock().expect("no panic holds it").clone();
    let refused: Vec<_> = told.iter().filter(is_refused).collect();
    assert_eq!(refused.len() + called.len(), 20);
    if let Some(third) = called.get(2) {
        assert!(*third - called[0] >= trial, "no more than two at once");
    }
    let states = refused
        .iter()
        .map(|result| &result["error"]["details"]["circuit_breaker"]);
    assert!(states.into_iter().all(|state| state == "half_open"));
    assert_eq!(first(&mut node)["state"], "closed");
    assert_eq!(changes(&node), ["open", "half_open", "closed"]);
    server.set(|_| Fault::None);
    let after = results(&node, &jobs(10, |_| get(&server.url("/"))));
    assert!(after.iter().all(|result| result["status"] == "success"));
}

/// Sends jobs until one is refused; how they failed that were not.
fn until_refused(node: &Node, job: impl Fn() -> AssignmentBuilder) -> Vec<Value> {
    let mut failed = Vec::new();
    while failed.len() < 20 {
        let result = results(node, &[job()]).remove(0);
        if is_refused(&&result) {
            assert_eq!(
                (&result["error_code"], &result["error_type"]),
                (&json!("RESOURCE_UNAVAILABLE"), &json!("provider_unavailable"))
            );
            return failed;
        }
        failed.push(result["error_code"].clone());
    }
    panic!("never refused: {failed:?}");
}

#[track_caller]
fn wait_success(node: &Node, job: impl Fn() -> AssignmentBuilder) {
    wait_until("it works again", SOON, || {
        results(node, &[job()])[0]["status"] == "success"
    });
}

fn with_roots(worker: WorkerBuilder, slow: &Path, database: &str) -> WorkerBuilder {
    let text = format!(
        "[blocks.fs.roots]\ndata = \"./data\"\nslow = \"{}\"\n[blocks.sql.connections.main]\nurl = \"{database}\"\n",
        slow.display()
    );
    worker.file("config/worker.toml", text)
}

#[test]
fn databases_and_directories_that_fail_are_left_alone_until_they_work_again() {
    let mut database = Postgres::start().expect("starts");
    let stall = Stall::new().expect("is made");
    let mut node = start(|worker| {
        let worker = with_roots(worker, &stall.directory(), &database.url());
        let worker = set(worker.under(&stall), "RECOVERY_MS", 3_000);
        set(worker, "SUCCESS_THRESHOLD", 1)
    });
    let query = || {
        let inputs = json!({"connection": "main", "query": "SELECT 1 AS one"});
        AssignmentBuilder::new("sql.query", inputs).max_attempts(1)
    };
    let put = |root: &str| {
        let inputs = json!({"path": format!("{root}/file"), "content": "x", "overwrite": true});
        AssignmentBuilder::new("fs.blob_put", inputs).max_attempts(1)
    };
    assert_eq!(results(&node, &[query()])[0]["status"], "success");

    // What jobs do wrong opens nothing.
    let wrong = jobs(8, |_| {
        let inputs = json!({"connection": "main", "query": "SELECT nothing_of_that_name"});
        AssignmentBuilder::new("sql.query", inputs).max_attempts(1)
    });
    let missing = jobs(8, |_| {
        AssignmentBuilder::new("fs.blob_get", json!({"path": "slow/missing"})).max_attempts(1)
    });
    assert!(
        !results(&node, &[wrong, missing].concat())
            .iter()
            .any(|one| is_refused(&one))
    );

    database.stop().expect("stops");
    assert_eq!(until_refused(&node, query), vec!["NETWORK_ERROR"; 5]);
    let breaker = first(&mut node);
    assert_eq!(
        (&breaker["kind"], &breaker["endpoint"]),
        (&json!("sql"), &json!("main")),
        "by its name in the settings"
    );
    stall.refuse(HeldCall::Open).expect("is switched");
    assert_eq!(
        until_refused(&node, || put("slow")),
        vec!["PERMISSION_DENIED"; 5],
        "a directory that cannot be written"
    );
    assert_eq!(results(&node, &[put("data")])[0]["status"], "success");
    database.restart().expect("starts");
    stall.release(HeldCall::Open).expect("is switched");
    wait_success(&node, query);
    wait_success(&node, || put("slow"));

    stall.fill_up().expect("is switched");
    assert_eq!(
        until_refused(&node, || put("slow")),
        vec!["RESOURCE_UNAVAILABLE"; 5]
    );
    stall.release(HeldCall::Write).expect("is switched");
    wait_success(&node, || put("slow"));
}

#[test]
fn retries_of_all_jobs_together_are_bounded_and_so_is_what_is_kept_of_endpoints() {
    let server = FaultyHttp::start().expect("starts");
    server.set(|call| match call.path {
        "/dead" => Fault::Status(500, ""),
        _ => Fault::None,
    });
    let mut node = start(|worker| {
        let worker = set(worker, "FAILURE_THRESHOLD", 1_000);
        set(worker, "MAX_BREAKERS", 10).env("WORKER_IO_POOL_SIZE", 50)
    });
    let storm = jobs(200, |_| get(&server.url("/dead")).max_attempts(4));
    let told = results(&node, &storm);
    let calls = server.calls("/dead");
    assert!((205..=250).contains(&calls), "{calls}");
    let retries: u64 = told
        .iter()
        .filter_map(|result| result["retries_used"].as_u64())
        .sum();
    assert_eq!(retries as usize, calls - 200);
    let short = |result: &&Value| result["error"]["details"]["retry_budget"] == "endpoint";
    let withheld = told.iter().filter(short).count();
    assert!(withheld > 150, "{withheld}");
    let series = "worker_retries_withheld_total{kind=\"http\",reason=\"retry_budget\"}";
    assert_eq!(metric(&mut node, series), withheld as f64);
    let last = told
        .iter()
        .zip(&storm)
        .find(|(result, _)| short(result))
        .expect("some");
    let said = admin(&mut node, &format!("/explain/{}", last.1.assignment_id()));
    let summary = said["matches"][0]["summary"]
        .as_str()
        .expect("is text")
        .to_owned();
    assert!(summary.contains("retries at the same endpoint"), "{summary}");

    let other = get(&server.url("/dead")).tenant("other").max_attempts(4);
    assert_eq!(
        results(&node, &[other])[0]["retries_used"],
        3,
        "another tenant has tokens of its own"
    );

    // Addresses on which nobody listens.
    let port = server.url("").rsplit(':').next().expect("has a port").to_owned();
    results(&node, &jobs(60, |n| get(&format!("http://127.0.1.{n}:{port}/"))));
    let kept = &admin(&mut node, "/status")["circuit_breakers"];
    assert_eq!((&kept["total"], &kept["max"]), (&json!(10), &json!(10)));
    let forgotten = "worker_circuit_breaker_forgotten_total{kind=\"http\",state=\"closed\"}";
    assert_eq!(metric(&mut node, forgotten), 52.0);
}

#[test]
fn with_the_flag_off_everything_is_called_and_nothing_is_kept() {
    let server = FaultyHttp::start().expect("starts");
    server.set(|_| Fault::Status(500, ""));
    let mut node = start(|worker| worker.env(FLAG, "false"));
    let told = results(&node, &jobs(12, |_| get(&server.url("/"))));
    assert!(told.iter().all(|result| result["error_type"] == "server_error"));
    assert_eq!(server.calls("/"), 12);
    assert_eq!(admin(&mut node, "/status")["circuit_breakers"], Value::Null);
    let open = "worker_circuit_breakers{kind=\"http\",state=\"open\"}";
    assert_eq!(metric(&mut node, open), -1.0, "is not shown");
}
