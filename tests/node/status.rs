//! What the admin port tells operators: the status, what became of each assignment, and to whom it says so.

use std::net::SocketAddr;
use std::time::Duration;

use caf_testkit::http::{self, Response};
use caf_testkit::wait::poll;
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, NatsOptions, NatsServer, Worker, wait_until};
use serde_json::{Value, json};

use crate::side_effects::Outside;
use crate::support::{Node, SOON, program};

/// Ids that hurt whoever believes them.
pub(crate) const HOSTILE: [&str; 7] = [
    "<img src=x onerror=\"document.title='owned'\">",
    "</script><script>document.title='owned'</script>",
    "a/b?c=d#e&tenant=f%2F%00",
    "../../status",
    "..",
    "مرحبا\u{202e}txt.exe日本語",
    "'\"; --+ %41",
];

/// A queue with one slot and two that may wait in the io pool, and what else `change` says.
fn narrow(worker: WorkerBuilder, change: &Value) -> WorkerBuilder {
    let mut policy = json!({"resource_pools": {"io": {"max_concurrency": 1, "max_queue_size": 2}}});
    for (key, value) in change.as_object().into_iter().flatten() {
        policy[key] = value.clone();
    }
    worker
        .env("CP2_QUEUE_MANAGEMENT_ENABLED", "true")
        .policy("queue", &policy)
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn ask(port: u16, path: &str, headers: &[(&str, &str)]) -> Response {
    let server = SocketAddr::from(([127, 0, 0, 1], port));
    http::request(server, "GET", path, headers, b"").expect("answers")
}

/// What a worker says became of an assignment; its first match.
fn explained(worker: &mut Worker, id: &str) -> Value {
    let port = worker.admin_port().expect("is logged");
    let answer = http::get(port, &format!("/explain/{}", encoded(id))).expect("answers");
    let said = answer.json().expect("is JSON");
    said["matches"].get(0).cloned().unwrap_or_default()
}

/// Waits until a worker says that an assignment is in this state.
#[track_caller]
fn wait_state(worker: &mut Worker, id: &str, state: &str) -> Value {
    let mut said = Value::Null;
    let reached = poll(SOON, || {
        said = explained(worker, id);
        (said["state"] == state).then_some(())
    });
    assert!(reached.is_some(), "{id} is never {state}: {said}");
    said
}

fn has_words(said: &Value, words: &str) -> bool {
    let events = said["events"].as_array().into_iter().flatten();
    events
        .filter_map(|event| event["words"].as_str())
        .any(|said| said.contains(words))
}

#[test]
fn each_state_of_an_assignment_is_explained_as_it_is() {
    let outside = Outside::start();
    let mut node = Node::start_with(|worker| narrow(outside.allow(worker), &json!({})));
    let [running, first, second, refused] = ["running", "first", "second", "refused"]
        .map(|id| outside.job(id).id(id).set("resources", json!({"class": "io"})));
    let worker = &mut node.worker;
    for (job, state) in [(&running, "running"), (&first, "waiting"), (&second, "waiting")] {
        node.client.assign(job).expect("is sent");
        wait_state(worker, job.assignment_id(), state);
    }
    node.client.assign(&refused).expect("is sent");

    let said = wait_state(worker, "refused", "finished");
    let outcome = &said["outcome"];
    assert_eq!(
        [
            &outcome["status"],
            &outcome["row"],
            &outcome["reason"],
            &outcome["error_code"]
        ],
        ["rejected", "4", "queue_full", "SYSTEM_OVERLOAD"],
    );
    assert!(
        said["summary"]
            .as_str()
            .is_some_and(|words| words.contains("queue_full")),
        "{said}"
    );

    let said = explained(worker, "second");
    let waiting = &said["waiting"];
    assert_eq!(
        (&waiting["what"], &waiting["position"], &waiting["queue_depth"]),
        (&json!("slot"), &json!(2), &json!(2))
    );
    assert_eq!(waiting["slots_held_by"][0]["assignment_id"], "running");
    assert!(
        said["deadline"]["left_ms"].as_u64().is_some_and(|left| left > 0),
        "{said}"
    );

    // The same assignment in another message.
    node.client.assign(&running).expect("is sent");
    let copied = poll(SOON, || {
        let said = explained(worker, "running");
        has_words(&said, "copy of an assignment that is held").then_some(said)
    });
    let said = copied.expect("the copy is told");
    assert_eq!((&said["state"], &said["pool"]), (&json!("running"), &json!("io")));
    assert_eq!(
        (&said["attempts"][0]["number"], &said["attempts"][0]["running"]),
        (&json!(1), &json!(true))
    );

    let port = worker.admin_port().expect("is logged");
    let status = http::get(port, "/status")
        .expect("answers")
        .json()
        .expect("is JSON");
    let io = &status["pools"][2];
    assert_eq!(
        (
            &io["name"],
            &io["running"],
            &io["slots"],
            &io["queued"],
            &io["max_queue_size"],
            &io["rejected"]
        ),
        (
            &json!("io"),
            &json!(1),
            &json!(1),
            &json!(2),
            &json!(2),
            &json!(1)
        )
    );
    assert_eq!(status["running"][0]["assignment_id"], "running");
    assert_eq!(status["failures"][0]["reason"], "queue_full");
    assert_eq!(
        (&status["leases"]["held"], &status["held"]["jobs"]),
        (&json!(3), &json!(3))
    );
    assert_eq!(
        (&status["features"]["queue"], &status["ready"]),
        (&json!("cp2"), &json!(true))
    );

    outside.open();
    for id in ["running", "first", "second"] {
        let said = wait_state(worker, id, "finished");
        let (outcome, answer) = (&said["outcome"], &said["answer"]);
        assert_eq!(
            (&outcome["status"], &outcome["row"]),
            (&json!("success"), &json!("6"))
        );
        assert!(
            answer["acknowledgement"].is_string() && answer["result"].is_string(),
            "{said}"
        );
        assert_eq!(
            (&answer["broker_told"], &said["waiting"]),
            (&json!(true), &Value::Null)
        );
    }
    let status = http::get(port, "/status")
        .expect("answers")
        .json()
        .expect("is JSON");
    assert_eq!(
        (&status["totals"]["success"], &status["totals"]["rejected"]),
        (&json!(3), &json!(1))
    );
    let buckets = status["throughput"]["buckets"].as_array().expect("a list");
    let ended: u64 = buckets
        .iter()
        .filter_map(|bucket| bucket["success"].as_u64())
        .sum();
    assert_eq!((buckets.len(), ended), (120, 3));
    assert!(buckets.iter().any(|bucket| bucket["p95_ms"].is_number()));
    // Asked for again after it was answered.
    node.client.assign(&first.clone()).expect("is sent");
    wait_until("it is answered again", SOON, || {
        has_words(&explained(worker, "first"), "assignment answered again")
    });
    assert_eq!(explained(worker, "first")["state"], "finished");
}

#[test]
fn a_wait_between_calls_and_a_deferral_are_told_with_their_end() {
    let outside = Outside::start();
    let defer = json!({
        "rejection_policy": "defer",
        "policies": {"defer": {"enabled": true}},
    });
    let patient = json!({
        "default_policy": {"max_attempts": 3, "base_delay_ms": 100_000, "max_delay_ms": 100_000,
                           "retry_budget_ms": 600_000, "jitter_type": "none"},
    });
    let mut node = Node::start_with(|worker| {
        narrow(outside.allow(worker), &defer)
            .env("CP2_ADVANCED_RETRY_ENABLED", "true")
            .policy("retry", &patient)
    });
    let failing = AssignmentBuilder::new(
        "fail",
        json!({"error_code": "NETWORK_ERROR", "message": "password=s3cret"}),
    )
    .id("failing")
    .set(
        "options",
        json!({"deadline_ms": 500_000, "retry": {"max_attempts": 3, "backoff_ms": 100_000}}),
    );
    node.client.assign(&failing).expect("is sent");
    let worker = &mut node.worker;
    let said = wait_state(worker, "failing", "waiting_for_retry");
    assert_eq!(said["waiting"]["what"], "retry");
    assert!(
        said["waiting"]["left_ms"]
            .as_u64()
            .is_some_and(|left| left > 10_000),
        "{said}"
    );
    assert_eq!(said["attempts"][0]["error_code"], "NETWORK_ERROR");
    assert!(!said.to_string().contains("s3cret"), "{said}");

    for id in ["slot", "queue-1", "queue-2"] {
        let job = outside.job(id).id(id).set("resources", json!({"class": "io"}));
        node.client.assign(&job).expect("is sent");
        let is_there = || {
            has_words(
                &explained(worker, id),
                if id == "queue-2" { "sent back" } else { "accepted" },
            )
        };
        wait_until(&format!("{id} has come"), SOON, is_there);
    }
    let said = wait_state(worker, "queue-2", "deferred");
    assert_eq!(said["waiting"]["what"], "broker");
    assert!(
        said["summary"]
            .as_str()
            .is_some_and(|words| words.contains("pool is loaded")),
        "{said}"
    );
    outside.open();
    wait_state(worker, "queue-2", "finished");
}

#[test]
fn what_another_worker_has_and_what_nobody_knows_is_told_as_far_as_the_fleet_knows() {
    let outside = Outside::start();
    let mut node = Node::start_with(|worker| outside.allow(worker).env("WORKER__WORKER__ID", "first"));
    let job = outside.job("held").id("held");
    node.client.assign(&job).expect("is sent");
    wait_state(&mut node.worker, "held", "running");
    let mut other = node.another(|worker| worker.env("WORKER__WORKER__ID", "second"));
    let port = other.admin_port().expect("is logged");

    let answer = ask(port, "/explain/held?tenant=acme", &[]);
    let said = answer.json().expect("is JSON");
    assert_eq!((answer.status, &said["known"]), (200, &json!(true)));
    assert_eq!(
        (&said["claim"]["worker_id"], &said["claim"]["state"]),
        (&json!("first"), &json!("running"))
    );

    for (path, words) in [
        ("/explain/held", "name the tenant"),
        ("/explain/nobody?tenant=acme", "no claim on it"),
        ("/explain/held?tenant=other", "no claim on it"),
    ] {
        let answer = ask(port, path, &[]);
        let said = answer.json().expect("is JSON");
        assert_eq!((answer.status, &said["known"]), (404, &json!(false)), "{path}");
        let summary = said["summary"].as_str().expect("words");
        assert!(
            summary.contains(words) && summary.contains("dlq list"),
            "{path}: {summary}"
        );
    }
    outside.open();
    wait_state(&mut node.worker, "held", "finished");
    let finished = poll(SOON, || {
        let said = ask(port, "/explain/held?tenant=acme", &[])
            .json()
            .expect("is JSON");
        (said["claim"]["state"] == "finished").then_some(said)
    });
    assert!(finished.is_some_and(|said| said["claim"]["result"][1].is_u64()));

    // While it shuts down, with a job that runs.
    let outside = Outside::start();
    let mut node = Node::start_with(|worker| outside.allow(worker));
    node.client
        .assign(&outside.job("late").id("late"))
        .expect("is sent");
    wait_state(&mut node.worker, "late", "running");
    node.worker.terminate().expect("is told");
    let port = node.worker.admin_port().expect("is logged");
    wait_until("it says that it shuts down", SOON, || {
        let status = ask(port, "/status", &[]).json().expect("is JSON");
        let drain = &status["drain"];
        drain["draining"] == true && drain["jobs_left"] == 1 && drain["soft_limit_left_ms"].is_u64()
    });
    outside.open();
    node.worker.wait_exit(SOON).expect("leaves");
}

#[test]
fn only_who_has_the_token_and_the_right_host_is_answered() {
    let nats = NatsServer::start_with(NatsOptions::jetstream()).expect("the broker starts");
    let mut worker = program()
        .serve(&nats)
        .env("WORKER__HTTP__ADMIN_TOKEN", "t0ps3cret")
        .env("WORKER__HTTP__ADMIN_HOSTS", "worker-0.workers")
        .start()
        .expect("starts");
    worker.wait_ready().expect("is ready");
    let port = worker.admin_port().expect("is logged");
    let right = ("Authorization", "Bearer t0ps3cret");
    for path in ["/status", "/explain/a", "/elsewhere", "//status"] {
        assert_eq!(ask(port, path, &[]).status, 401, "{path}");
        assert_eq!(
            ask(port, path, &[("Authorization", "Bearer wrong")]).status,
            401,
            "{path}"
        );
    }
    assert_eq!(ask(port, "/status?token=t0ps3cret", &[]).status, 401);
    assert_eq!(ask(port, "/status", &[right]).status, 200);
    assert_eq!(ask(port, "/elsewhere", &[right]).status, 404);
    assert_eq!(ask(port, "/explain/", &[right]).status, 400);
    assert_eq!(ask(port, "/explain/%ff", &[right]).status, 400);
    for (host, status) in [
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost:1", 200),
        ("worker-0.workers:9093", 200),
        ("[::1]:9093", 200),
    ] {
        assert_eq!(
            ask(port, "/status", &[("Host", host), right]).status,
            status,
            "{host}"
        );
    }
    let server = SocketAddr::from(([127, 0, 0, 1], port));
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = http::request(server, method, "/status", &[right], b"").expect("answers");
        assert_eq!(
            (answer.status, answer.header("allow")),
            (405, Some("GET, HEAD")),
            "{method}"
        );
    }
    let head = http::request(server, "HEAD", "/status", &[right], b"").expect("answers");
    assert_eq!((head.status, head.body.len()), (200, 0));

    // The page is there without a token, and knows nothing; browsers are told what they may do.
    let page = ask(port, "/", &[("Origin", "http://evil.example")]);
    assert_eq!(
        (page.status, page.header("access-control-allow-origin")),
        (200, None)
    );
    for answer in [
        &page,
        &ask(port, "/status", &[]),
        &ask(port, "/elsewhere", &[right]),
    ] {
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let policy = answer.header("content-security-policy").expect("there is one");
        assert!(
            policy.starts_with("default-src 'none'") && !policy.contains("unsafe"),
            "{policy}"
        );
    }
    let policies: Vec<_> = [&page, &ask(port, "/", &[])]
        .map(|page| page.header("content-security-policy").map(str::to_owned))
        .into();
    assert_ne!(policies[0], policies[1], "the number is used once");
    let lines: Vec<_> = worker.lines().into_iter().map(|line| line.text).collect();
    assert!(!lines.join("\n").contains("t0ps3cret"));
    assert!(!page.text().contains("t0ps3cret") && !page.text().contains("{{"));
}

#[test]
fn an_admin_port_that_others_can_reach_is_not_opened_without_a_token() {
    let nats = NatsServer::start_with(NatsOptions::jetstream()).expect("the broker starts");
    let finished = program()
        .serve(&nats)
        .env("WORKER__HTTP__ADMIN_ADDR", "0.0.0.0:0")
        .run(SOON)
        .expect("ends");
    assert_eq!(finished.code(), Some(78));
    let said = finished.stderr();
    assert!(
        said.contains("http.admin_token")
            && said.contains("must be set when http.admin_addr is not a loopback"),
        "{said}"
    );
    let shown = program()
        .args(["config", "show"])
        .env("WORKER__HTTP__ADMIN_TOKEN", "t0ps3cret")
        .run(SOON)
        .expect("ends");
    assert!(
        shown.stdout().contains("http.admin_token = \"[REDACTED]\""),
        "{}",
        shown.stdout()
    );
}

#[test]
fn hostile_ids_are_explained_like_any_others() {
    let mut node = Node::start();
    let jobs = HOSTILE.map(|id| AssignmentBuilder::new("nope", json!({})).id(id).tenant(id));
    node.client.assign_all(&jobs).expect("are sent");
    node.wait_answered(&jobs, SOON);
    let port = node.worker.admin_port().expect("is logged");
    for id in HOSTILE {
        let said = wait_state(&mut node.worker, id, "finished");
        assert_eq!(
            (&said["tenant_id"], &said["outcome"]["row"]),
            (&json!(id), &json!("2")),
            "{id}"
        );
        let narrowed = format!("/explain/{}?tenant={}", encoded(id), encoded(id));
        assert_eq!(ask(port, &narrowed, &[]).status, 200, "{id}");
        let asked = program()
            .args([
                "explain",
                "--admin",
                &format!("http://127.0.0.1:{port}"),
                "--tenant",
                id,
                "--",
                id,
            ])
            .run(SOON)
            .expect("ends");
        let said = asked.stdout();
        assert_eq!(asked.code(), Some(0), "{id}: {}", asked.stderr());
        assert!(
            !said.contains(['\u{202e}', '\u{1b}']) && said.contains("Refused "),
            "{said}"
        );
    }
}

#[test]
fn the_commands_say_by_their_exit_codes_whether_the_node_answers_and_knows() {
    let mut node = Node::start_with(|worker| worker.env("WORKER__HTTP__ADMIN_TOKEN", "t0ps3cret"));
    let job = [AssignmentBuilder::echo().id("known")];
    node.client.assign_all(&job).expect("is sent");
    node.wait_answered(&job, SOON);
    let port = node.worker.admin_port().expect("is logged").to_string();
    let run = |arguments: &[&str], token: &str| {
        let worker = program().args(arguments.iter().copied());
        let worker = worker.env("WORKER__HTTP__ADMIN_TOKEN", token);
        worker
            .env("WORKER__HTTP__ADMIN_ADDR", format!("127.0.0.1:{port}"))
            .run(Duration::from_secs(60))
            .expect("ends")
    };
    let known = run(&["explain", "known"], "t0ps3cret");
    assert_eq!(known.code(), Some(0));
    assert!(
        known.stdout().contains("success") && known.stdout().contains("result confirmed"),
        "{}",
        known.stdout()
    );
    let json = run(&["explain", "known", "--output", "json"], "t0ps3cret");
    let json: Value = serde_json::from_str(&json.stdout()).expect("is JSON");
    assert_eq!(json["matches"][0]["outcome"]["status"], "success");
    assert_eq!(run(&["explain", "unknown"], "t0ps3cret").code(), Some(1));
    assert_eq!(
        run(&["explain", "known", "--tenant", "other"], "t0ps3cret").code(),
        Some(1)
    );
    let refused = run(&["explain", "known"], "wrong");
    assert_eq!(refused.code(), Some(78));
    assert!(
        refused.stderr().contains("http.admin_token"),
        "{}",
        refused.stderr()
    );
    assert_eq!(run(&["explain", ""], "t0ps3cret").code(), Some(64));
    assert_eq!(run(&["explain"], "t0ps3cret").code(), Some(64));
    assert_eq!(run(&["top", "--admin", "ftp://a"], "t0ps3cret").code(), Some(64));
    assert_eq!(
        run(&["top", "--admin", "127.0.0.1:1"], "t0ps3cret").code(),
        Some(69)
    );
    // Where standard output is no terminal it draws once.
    let top = run(&["top"], "t0ps3cret");
    assert_eq!(top.code(), Some(0));
    assert!(
        top.stdout().lines().all(|line| line.chars().count() <= 80),
        "{}",
        top.stdout()
    );
    for word in ["healthy", "cpu", "io", "running: nothing", "in all 1 success"] {
        assert!(top.stdout().contains(word), "{word}: {}", top.stdout());
    }
    let json = run(&["top", "--once", "--output", "json"], "t0ps3cret");
    let json: Value = serde_json::from_str(&json.stdout()).expect("is JSON");
    assert_eq!(json["totals"]["success"], 1);
    node.worker.kill();
    assert_eq!(run(&["explain", "known"], "t0ps3cret").code(), Some(69));
    assert_eq!(run(&["top"], "t0ps3cret").code(), Some(69));
}

#[test]
fn a_broker_that_was_not_tried_for_want_of_a_state_directory_is_not_called_away() {
    let nats = NatsServer::start_with(NatsOptions::jetstream()).expect("the broker starts");
    let mut worker = program()
        .serve(&nats)
        .env("WORKER__WORKER__STATE_DIR", "/dev/null/state")
        .start()
        .expect("starts");
    let port = worker.admin_port().expect("is logged");
    let status = || ask(port, "/status", &[]).json().expect("is JSON");
    wait_until("the directory is found unusable", SOON, || {
        status()["checks"]["state_dir"]["status"] == "fail"
    });
    assert_eq!(
        status()["checks"]["nats"]["message"],
        "not tried yet: waiting for worker.state_dir"
    );
    let said = ask(port, "/explain/any?tenant=acme", &[])
        .json()
        .expect("is JSON");
    let summary = said["summary"].as_str().expect("words");
    assert!(
        summary.contains("has not tried to reach the broker yet") && summary.contains("/dev/null/state"),
        "{summary}"
    );
}
