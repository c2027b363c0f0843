//! Retries of a whole node: flags by environment, calls counted where they arrive; and the dry run that rehearses them.

use caf_testkit::faulty_http::{Fault, FaultyHttp};
use caf_testkit::worker::{Finished, WorkerBuilder};
use caf_testkit::{AssignmentBuilder, Collector, wait_until};
use serde_json::{Value, json};

use crate::support::{Node, SOON, assert_each_answered_once, program};

const RETRY: &str = "CP2_ADVANCED_RETRY_ENABLED";

/// A server whose paths are the status they answer with; `/503/2` works from the third call on.
fn statuses() -> FaultyHttp {
    let server = FaultyHttp::start().expect("starts");
    server.set(|call| {
        let mut parts = call.path.split('/').skip(1).filter_map(|part| part.parse().ok());
        let (status, failures) = (parts.next().unwrap_or(500), parts.next());
        match failures {
            Some(failures) if call.number >= usize::from(failures) => Fault::None,
            _ => Fault::Status(status, ""),
        }
    });
    server
}

fn job(server: &FaultyHttp, path: &str, attempts: u32) -> AssignmentBuilder {
    let inputs = json!({"method": "GET", "url": server.url(path)});
    AssignmentBuilder::new("http.request", inputs).set(
        "options",
        json!({"deadline_ms": 30_000, "retry": {"max_attempts": attempts, "backoff_ms": 5}}),
    )
}

/// A worker that may call the server, with the policy files beside it.
fn beside(adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Node {
    Node::start_with(|builder| {
        adjust(
            builder
                .policy("retry", &json!({}))
                .env("WORKER__BLOCKS__HTTP__ALLOW_TARGETS", "127.0.0.0/8"),
        )
    })
}

fn answered(node: &Node, jobs: &[AssignmentBuilder]) -> Collector {
    node.client.assign_all(jobs).expect("are sent");
    node.wait_answered(jobs, SOON);
    let answers = node.answers();
    assert_each_answered_once(&answers, jobs);
    answers
}

fn logged(node: &Node, message: &str) -> Vec<Value> {
    let of = |line: &Value| line["message"] == message;
    node.worker.logs().into_iter().filter(of).collect()
}

/// POC-005, 006 and 008; CHAOS-005.
#[test]
fn with_the_flag_on_the_status_decides_and_the_assignment_counts() {
    let server = statuses();
    let mut node = beside(|builder| builder.env(RETRY, "true"));
    let denied = AssignmentBuilder::new("fail", json!({"error_code": "PERMISSION_DENIED"}));
    let jobs = [
        job(&server, "/503", 3),
        job(&server, "/400", 5),
        job(&server, "/503/2", 5),
        job(&server, "/429", 2),
        denied.max_attempts(4),
    ];
    let answers = answered(&node, &jobs);
    let result = |job: &AssignmentBuilder| answers.results(job.assignment_id())[0].clone();
    let calls = ["/503", "/400", "/503/2", "/429"].map(|path| server.calls(path));
    assert_eq!(calls, [3, 1, 3, 2]);
    let used: Vec<_> = jobs
        .iter()
        .map(|job| result(job)["retries_used"].clone())
        .collect();
    assert_eq!(used, [2, 0, 2, 1, 0]);
    assert_eq!(result(&jobs[2])["status"], "success");
    node.worker
        .wait_for_message("Retry succeeded")
        .expect("is logged");
    assert_eq!(logged(&node, "Retry attempt started").len(), 5);
    let exhausted = logged(&node, "Retry exhausted");
    let codes: Vec<_> = exhausted.iter().map(|line| &line["error_code"]).collect();
    assert_eq!(codes, ["HTTP_ERROR", "HTTP_ERROR"]);

    // Once per job of such requests that failed, and without the path, which may hold secrets.
    let failed = logged(&node, "HTTP request failed");
    let mut told: Vec<_> = failed
        .iter()
        .map(|line| {
            let context = &line["context"];
            assert_eq!(
                (&line["level"], &context["url"], &context["error_code"]),
                (&json!("ERROR"), &json!(server.url("")), &json!("HTTP_ERROR"))
            );
            assert_eq!(context["block_type"], "http.request");
            (context["retryable"].as_bool(), context["retry_count"].as_u64())
        })
        .collect();
    told.sort();
    let expected = [(false, 0), (true, 1), (true, 2)];
    assert_eq!(
        told,
        expected.map(|(retryable, count)| (Some(retryable), Some(count)))
    );
    let all = logged(&node, "Step execution failed");
    assert_eq!(all.len(), failed.len() + 1, "the block `fail` sends nothing");
}

/// POC-004.
#[test]
fn with_the_flag_off_every_error_is_called_again_and_nothing_new_is_logged() {
    let server = statuses();
    let node = beside(|builder| builder.env(RETRY, "false").env("LOG_LEVEL", "debug"));
    let answers = answered(&node, &[job(&server, "/503", 2), job(&server, "/400", 3)]);
    assert_eq!(["/503", "/400"].map(|path| server.calls(path)), [2, 3]);
    assert_eq!(answers.objections(), Vec::<String>::new());
    let failed = logged(&node, "Attempt failed");
    let waits: Vec<_> = failed
        .iter()
        .map(|line| line["context"]["backoff_delay_ms"].as_u64())
        .collect();
    assert_eq!(waits.iter().filter(|wait| **wait == Some(100)).count(), 2);
    for message in ["Retry attempt started", "Retry exhausted"] {
        assert!(logged(&node, message).is_empty(), "{message}");
    }
}

#[test]
fn a_job_that_waits_for_its_next_call_keeps_its_slot_and_counts_as_running() {
    let mut node = beside(|builder| {
        builder
            .policy("retry", &json!({"default_policy": {"jitter_type": "none"}}))
            .env(RETRY, "true")
            .env("WORKER_IO_POOL_SIZE", 1)
            .env("LOG_LEVEL", "debug")
    });
    let retry = json!({"max_attempts": 2, "backoff_ms": 3_000});
    let waits = AssignmentBuilder::new("fail", json!({"error_code": "NETWORK_ERROR"}))
        .set("options", json!({"deadline_ms": 30_000, "retry": retry}))
        .set("resources", json!({"class": "io"}));
    let next = AssignmentBuilder::echo().set("resources", json!({"class": "io"}));
    node.client.assign(&waits).expect("is sent");
    node.worker.wait_for_message("Attempt failed").expect("is logged");
    node.client.assign(&next).expect("is sent");
    wait_until("the next one waits for the only slot", SOON, || {
        let page = node.worker.get("/_health").expect("answers");
        let pool = page.json().expect("is JSON")["details"]["pools"]["io"].clone();
        (&pool["running"], &pool["queued"]) == (&json!(1), &json!(1))
    });
    node.wait_answered(&[waits, next], SOON);
}

// ---- The dry run ----

fn dry_run(
    input: impl Into<Vec<u8>>,
    adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder,
) -> (Finished, Vec<Value>) {
    let builder = program()
        .args(["exec", "--dry-run", "-"])
        .stdin(input)
        .policy("retry", &json!({}))
        .policy("timeout", &json!({}))
        .policy("queue", &json!({}));
    let finished = adjust(builder).run(SOON).expect("ends by itself");
    let lines = finished.stdout();
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("is JSON"));
    (finished, lines.collect())
}

fn example(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name);
    std::fs::read(path).expect("is there")
}

#[test]
fn the_dry_run_shows_the_fixed_plan_of_every_example_with_all_flags_off() {
    let (finished, lines) = dry_run(example("assignments.jsonl"), |builder| builder);
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    assert!(lines.len() > 5);
    for line in &lines {
        assert_eq!(
            (&line["verdict"], &line["retry"]["mode"]),
            (&json!("runs"), &json!("cp1"))
        );
        assert_eq!(
            line["flags"],
            json!({"retry": false, "timeouts": false, "queue": false})
        );
        assert_eq!(
            (&line["timeouts"], &line["queue"]["max_queue_size"]),
            (&Value::Null, &Value::Null)
        );
    }
    let sleep = lines
        .iter()
        .find(|line| line["job_type"] == "sleep")
        .expect("is there");
    assert_eq!(
        (&sleep["pool"], &sleep["deadline_ms"]),
        (&json!("io"), &json!(5_000))
    );
    let waits = json!([{"min": 100, "max": 100}, {"min": 200, "max": 200}, {"min": 300, "max": 300}]);
    assert_eq!(
        (&sleep["retry"]["max_attempts"], &sleep["retry"]["waits_ms"]),
        (&json!(4), &waits)
    );
}

#[test]
fn the_dry_run_shows_each_wait_with_its_jitter_and_what_an_error_has_of_its_own() {
    let job = AssignmentBuilder::new(
        "http.request",
        json!({"method": "GET", "url": "https://example.com/"}),
    )
    .set("options", json!({"deadline_ms": 60_000}));
    let (finished, lines) = dry_run(job.bytes(), |builder| builder.env(RETRY, "1"));
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let retry = &lines[0]["retry"];
    assert_eq!(
        (&retry["mode"], &retry["budget_ms"]),
        (&json!("cp2"), &json!(30_000))
    );
    let waits = json!([{"min": 100, "max": 200}, {"min": 200, "max": 400}, {"min": 400, "max": 800}, {"min": 800, "max": 1600}]);
    assert_eq!((&retry["max_attempts"], &retry["waits_ms"]), (&json!(5), &waits));
    let groups = retry["by_error"].as_array().expect("is a list");
    let own = groups
        .iter()
        .find(|group| group["errors"] == json!(["HTTP_ERROR 429"]));
    let own = own.expect("429 has numbers of its own");
    assert_eq!(
        own["waits_ms"],
        json!([{"min": 500, "max": 1_000}, {"min": 1_000, "max": 2_000}])
    );
    let not_retried = retry["not_retried"].as_array().expect("is a list");
    for code in ["HTTP_ERROR 4xx", "PERMISSION_DENIED", "INVALID_INPUT"] {
        assert!(not_retried.contains(&json!(code)), "{code}");
    }
}

#[test]
fn the_dry_run_says_which_limit_leaves_no_time_for_more_retries() {
    let job = AssignmentBuilder::new("fail", json!({"error_code": "NETWORK_ERROR"})).set(
        "options",
        json!({"deadline_ms": 250, "retry": {"max_attempts": 9}}),
    );
    let (_, lines) = dry_run(job.bytes(), |builder| builder);
    let retry = &lines[0]["retry"];
    assert_eq!(
        (&retry["waits_ms"], &retry["cut_by"], &retry["may_be_cut_by"]),
        (
            &json!([{"min": 100, "max": 100}]),
            &json!("deadline"),
            &json!("deadline")
        )
    );
}

#[test]
fn the_dry_run_says_which_limit_cuts_retries_only_when_jitter_makes_the_waits_long() {
    let waits = json!([{"min": 0, "max": 100}, {"min": 0, "max": 200}, {"min": 0, "max": 400}]);
    for (deadline_ms, budget_ms, limit) in [
        (500, 30_000, json!("deadline")),
        (60_000, 700, json!("retry_budget")),
        (60_000, 701, Value::Null),
    ] {
        let retry = json!({"max_attempts": 4, "backoff_ms": 100});
        let job = AssignmentBuilder::new("fail", json!({"error_code": "NETWORK_ERROR"}))
            .set("options", json!({"deadline_ms": deadline_ms, "retry": retry}));
        let (_, lines) = dry_run(job.bytes(), |builder| {
            builder
                .policy(
                    "retry",
                    &json!({"default_policy": {"retry_budget_ms": budget_ms}}),
                )
                .env(RETRY, "1")
        });
        let retry = &lines[0]["retry"];
        assert_eq!(
            (&retry["waits_ms"], &retry["cut_by"], &retry["may_be_cut_by"]),
            (&waits, &Value::Null, &limit),
            "{deadline_ms} {budget_ms}"
        );
    }
}

#[test]
fn the_dry_run_names_the_queue_policy_that_counts_which_need_not_be_the_one_that_is_written() {
    let flag = "CP2_QUEUE_MANAGEMENT_ENABLED";
    let defer = json!({"policies": {"reject_new": {"default": false}, "defer": {"enabled": true}}});
    for (on, change, effective) in [
        ("false", &defer, Value::Null),
        ("true", &json!({}), json!("reject_new")),
        ("true", &json!({"rejection_policy": "degrade"}), json!("degrade")),
        ("true", &defer, json!("defer")),
    ] {
        let (_, lines) = dry_run(AssignmentBuilder::echo().bytes(), |builder| {
            builder.policy("queue", change).env(flag, on)
        });
        let queue = &lines[0]["queue"];
        assert_eq!(
            queue.get("effective_policy"),
            Some(&effective),
            "{on} {change}: {queue}"
        );
    }
}

#[test]
fn the_dry_run_shows_what_each_flag_alone_puts_in_force() {
    let flags = [
        "CP2_ADVANCED_RETRY_ENABLED",
        "CP2_COMPLETE_TIMEOUT_ENABLED",
        "CP2_QUEUE_MANAGEMENT_ENABLED",
    ];
    for (index, flag) in flags.into_iter().enumerate() {
        let (_, lines) = dry_run(example("assignments.jsonl"), |builder| builder.env(flag, "yes"));
        let put = lines
            .iter()
            .find(|line| line["job_type"] == "fs.blob_put")
            .expect("is there");
        let on = [
            put["retry"]["mode"] == "cp2",
            put["timeouts"]["operations"]["write_timeout_ms"] == 10_000,
            put["queue"]["max_queue_size"] == 500 && put["queue"]["policy"]["rejection_policy"].is_string(),
        ];
        assert_eq!(on, [index == 0, index == 1, index == 2], "{flag}: {put}");
        let flags = ["retry", "timeouts", "queue"].map(|name| put["flags"][name] == true);
        assert_eq!(flags, on, "{flag}");
    }
}

#[test]
fn the_dry_run_names_the_endpoint_of_a_job_while_circuit_breakers_are_in_force() {
    let inputs = json!({"method": "GET", "url": "https://example.com/secret?token=x"});
    let input = [
        AssignmentBuilder::new("http.request", inputs).bytes(),
        AssignmentBuilder::new("fs.blob_get", json!({"path": "data/x"})).bytes(),
        AssignmentBuilder::echo().bytes(),
    ];
    for (on, expected) in [
        (
            "true",
            [
                json!(["http", "https://example.com", 5]),
                json!(["fs", "data", 5]),
                Value::Null,
            ],
        ),
        ("false", [Value::Null, Value::Null, Value::Null]),
    ] {
        let (_, lines) = dry_run(input.join(&b'\n'), |builder| {
            builder.env("CP2_CIRCUIT_BREAKER_ENABLED", on)
        });
        let told = lines.iter().map(|line| {
            let breaker = line.get("circuit_breaker")?;
            Some(json!([
                breaker["kind"],
                breaker["endpoint"],
                breaker["failure_threshold"]
            ]))
        });
        let told: Vec<_> = told.map(Option::unwrap_or_default).collect();
        assert_eq!(told, expected, "{on}");
    }
}

#[test]
fn the_dry_run_tells_why_assignments_do_not_run_and_touches_nothing() {
    let put = || AssignmentBuilder::new("fs.blob_put", json!({"path": "data/x", "content": "x"}));
    let fetched = json!({"type": "echo", "payload_ref": "file:data/y"});
    let input = [
        put().bytes(),
        put().tenant("other").bytes(),
        AssignmentBuilder::echo().set("job", fetched).bytes(),
        b"not json".to_vec(),
        AssignmentBuilder::new("no.such.block", json!({})).bytes(),
    ];
    let directory = caf_testkit::TempDir::new("dry-run").expect("can be made");
    let (finished, lines) = dry_run(input.join(&b'\n'), |builder| {
        builder
            .current_dir(directory.path())
            .env("WORKER__LOG__FILE", "worker.log")
            .env("WORKER__TENANTS__ALLOWED", "acme")
    });
    assert_eq!(finished.code(), Some(1));
    let told: Vec<_> = lines
        .iter()
        .map(|line| [&line["verdict"], &line["reason"]])
        .collect();
    let expected = [
        [&json!("runs"), &Value::Null],
        [&json!("rejected"), &json!("tenant_not_allowed")],
        [&json!("runs"), &Value::Null],
        [&json!("unanswerable"), &Value::Null],
        [&json!("rejected"), &json!("unsupported_job_type")],
    ];
    assert_eq!(told, expected);
    assert_eq!(lines[2]["inputs"], "referenced");
    let left: Vec<_> = std::fs::read_dir(directory.path())
        .expect("can be read")
        .collect();
    assert_eq!(left.len(), 1, "config alone: {left:?}");
}
