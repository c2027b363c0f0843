//! Questions to people: kept while nobody has decided, answered once when somebody has, whoever asked and whoever is there.
//!
//! `APPROVALS_LONG=1 cargo test --test node approvals::many -- --nocapture` parks 10,000 and prints what they cost.

use std::net::SocketAddr;
use std::time::Duration;

use caf_testkit::client::ACK;
use caf_testkit::http::{self, Response};
use caf_testkit::proxy::Frame;
use caf_testkit::wait::poll;
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, Client, Proxy, Worker, wait_until};
use serde_json::{Value, json};

use crate::cancellation::cancel_assignment;
use crate::support::{
    ASSIGNMENTS, CONSUMER, Node, SOON, answers, assert_each_answered_once, jobs, program, wait_answered,
};

/// Stream behind the bucket of approvals.
const BUCKET: &str = "KV_caf-approvals";

fn asking(worker: WorkerBuilder) -> WorkerBuilder {
    worker
        .env("WORKER__APPROVALS__ENABLED", "true")
        .env("CP2_OBSERVABILITY_METRICS_ENABLED", "true")
}

fn question(inputs: Value) -> AssignmentBuilder {
    // The router's default: it must not count.
    AssignmentBuilder::new("human.approval", inputs).deadline_ms(5_000)
}

fn deploy() -> AssignmentBuilder {
    question(json!({"approval_type": "deploy", "description": "ship it?", "approvers": ["ann", "bob"]}))
}

/// Everything that is kept: the entries of the bucket.
fn kept(client: &Client) -> Vec<Value> {
    let messages = client.stream_messages(BUCKET).expect("can be read");
    let entries = messages.iter().filter(|message| !message.payload.is_empty());
    entries.map(caf_testkit::client::Message::json).collect()
}

fn entry_of(client: &Client, job: &AssignmentBuilder) -> Option<Value> {
    let is_its = |entry: &Value| entry["request"]["assignment_id"] == job.assignment_id();
    kept(client).into_iter().find(is_its)
}

/// Waits until a question is kept, its job acknowledged and its message forgotten, and tells its id.
#[track_caller]
fn wait_parked(client: &Client, job: &AssignmentBuilder) -> String {
    let parked = poll(SOON, || {
        let entry = entry_of(client, job)?;
        let waits = client.stream_count(ASSIGNMENTS).ok()? > 0;
        (entry["acknowledged"] == true && !waits).then_some(entry)
    });
    let entry = parked.expect("it is set aside");
    let acks = answers(client).acks(job.assignment_id());
    assert_eq!(acks.len(), 1, "{acks:?}");
    assert_eq!(acks[0]["status"], "accepted");
    entry["request"]["approval_id"]
        .as_str()
        .expect("has an id")
        .to_owned()
}

fn decide(worker: &mut Worker, id: &str, decision: &Value) -> Response {
    let server = SocketAddr::from(([127, 0, 0, 1], worker.admin_port().expect("is logged")));
    let path = format!("/v1/approvals/{id}/decision");
    let json = ("Content-Type", "application/json");
    http::request(server, "POST", &path, &[json], decision.to_string().as_bytes()).expect("answers")
}

fn yes(approver: &str) -> Value {
    json!({"decision": "approved", "approver": approver, "comment": "tested"})
}

fn result_of(client: &Client, job: &AssignmentBuilder) -> Value {
    let result = poll(SOON, || answers(client).results(job.assignment_id()).pop());
    result.expect("it is answered")
}

#[test]
fn a_question_holds_nothing_and_is_answered_when_somebody_decides() {
    let mut node = Node::start_with(|worker| asking(worker).env("WORKER__POOLS__CPU__MAX_CONCURRENCY", 1));
    let heard = node
        .client
        .collect(&["caf.approval.requested.v1", "caf.approval.decided.v1"])
        .expect("listens");
    let job = deploy();
    node.client.assign(&job).expect("is sent");
    let id = wait_parked(&node.client, &job);
    // The one slot is free.
    node.assert_alive();
    let asked = &heard.on("caf.approval.requested.v1")[0];
    assert_eq!(
        (&asked["approval_id"], &asked["status"]),
        (&json!(id), &json!("pending"))
    );
    assert_eq!(
        (&asked["description"], &asked["approvers"]),
        (&json!("ship it?"), &json!(["ann", "bob"]))
    );

    // Neither a copy nor the broker's repetition asks again.
    node.client.assign(&job).expect("is sent");
    wait_until("the copy is forgotten", SOON, || {
        node.client
            .stream_count(ASSIGNMENTS)
            .is_ok_and(|count| count == 0)
    });
    assert_eq!(kept(&node.client).len(), 1);

    assert_eq!(decide(&mut node.worker, &id, &yes("eve")).status, 403);
    assert_eq!(decide(&mut node.worker, &"0".repeat(64), &yes("ann")).status, 404);
    assert_eq!(
        decide(
            &mut node.worker,
            &id,
            &json!({"decision": "maybe", "approver": "ann"})
        )
        .status,
        400
    );
    assert_eq!(decide(&mut node.worker, &id, &yes("ann")).status, 200);
    assert_eq!(
        decide(
            &mut node.worker,
            &id,
            &json!({"decision": "rejected", "approver": "bob"})
        )
        .status,
        409
    );

    let result = result_of(&node.client, &job);
    assert_eq!(result["status"], "success", "{result}");
    let outputs = &result["outputs"];
    for (name, value) in [
        ("approval_id", json!(id)),
        ("approved", json!(true)),
        ("decision", json!("approved")),
        ("approver", json!("ann")),
        ("approved_by", json!("ann")),
        ("comment", json!("tested")),
        ("reason", json!("tested")),
    ] {
        assert_eq!(outputs[name], value, "{name}: {outputs}");
    }
    assert!(outputs["approved_at"].is_u64());
    heard
        .wait_for("caf.approval.decided.v1", 1, SOON)
        .expect("is told");
    let told = &heard.on("caf.approval.decided.v1")[0];
    assert_eq!(
        (&told["approval_id"], &told["status"]),
        (&json!(id), &json!("approved"))
    );
    assert_eq!((told.get("comment"), told.get("description")), (None, None));

    // What comes again is answered with what stands; what was said is in no line.
    node.client.assign(&job).expect("is sent");
    wait_until("the copy is forgotten", SOON, || {
        node.client
            .stream_count(ASSIGNMENTS)
            .is_ok_and(|count| count == 0)
    });
    let results = answers(&node.client).results(job.assignment_id());
    assert!(results.iter().all(|again| *again == result), "{results:?}");
    let lines = node
        .worker
        .logs()
        .iter()
        .map(ToString::to_string)
        .collect::<String>();
    assert!(lines.contains("Approval settled") && !lines.contains("ship it?") && !lines.contains("tested"));
    let metrics = http::get(node.worker.metrics_port().expect("is logged"), "/metrics").expect("answers");
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(
        metrics.contains("worker_approvals_decided_total{decision=\"approved\"} 1"),
        "{metrics}"
    );
}

#[test]
fn nobody_decides_in_time_or_somebody_cancels_or_says_no() {
    let mut node = Node::start_with(|worker| {
        asking(worker)
            .env("CP2_CANCELLATION_ENABLED", "true")
            .env("WORKER__APPROVALS__MAX_PENDING_PER_TENANT", 3)
    });
    let late = question(json!({"prompt": "quick?", "timeout_ms": 300}));
    let unwanted = question(json!({"prompt": "still?", "timeout_ms": 600_000})).set("run_id", json!("r-1"));
    let refused = deploy();
    for job in [&late, &unwanted, &refused] {
        node.client.assign(job).expect("is sent");
    }
    let result = result_of(&node.client, &late);
    assert_eq!(
        (&result["status"], &result["error_code"]),
        (&json!("timeout"), &json!("CANCELLED_BY_TIMEOUT")),
        "{result}"
    );
    let over = entry_of(&node.client, &late).expect("is remembered");
    let over = over["request"]["approval_id"]
        .as_str()
        .expect("has an id")
        .to_owned();
    assert_eq!(decide(&mut node.worker, &over, &yes("ann")).status, 409);

    wait_parked(&node.client, &unwanted);
    let server = SocketAddr::from(([127, 0, 0, 1], node.worker.admin_port().expect("is logged")));
    let request = json!({"version": "1", "tenant_id": "acme", "run_id": "r-1"}).to_string();
    let json_type = ("Content-Type", "application/json");
    let answer =
        http::request(server, "POST", "/v1/cancel", &[json_type], request.as_bytes()).expect("answers");
    assert_eq!(answer.json().expect("is JSON")["outcome"], "cancelled");
    let result = result_of(&node.client, &unwanted);
    assert_eq!(
        (&result["status"], &result["error_code"]),
        (&json!("cancelled"), &json!("CANCELLED_BY_USER")),
        "{result}"
    );

    let id = wait_parked(&node.client, &refused);
    let no = json!({"decision": "rejected", "approver": "bob", "comment": "too early"});
    assert_eq!(decide(&mut node.worker, &id, &no).status, 200);
    let result = result_of(&node.client, &refused);
    assert_eq!(result["status"], "success", "a rejection is an answer: {result}");
    assert_eq!(
        (&result["outputs"]["approved"], &result["outputs"]["decision"]),
        (&json!(false), &json!("rejected"))
    );

    // Three may wait at once, however fast they come.
    let many = jobs(5, |_| deploy());
    node.client.assign_all(&many).expect("is sent");
    wait_until("all are taken in", SOON, || {
        answers(&node.client).on(ACK).len() == 8
    });
    let said = answers(&node.client);
    let of = |job: &AssignmentBuilder| said.acks(job.assignment_id())[0]["status"].clone();
    let rejected: Vec<_> = many.iter().filter(|job| of(job) == "rejected").collect();
    assert_eq!(rejected.len(), 2);
    let result = result_of(&node.client, rejected[0]);
    assert_eq!(
        (&result["error_code"], &result["error"]["details"]["quota"]),
        (&json!("QUOTA_EXCEEDED"), &json!("approvals"))
    );
}

/// The asking worker is killed while people think; another one is asked, and answers.
/// All workers hear a request to cancel, and all know when the time is over: who settled a question answers it, and the others
/// only when that one has not after a while.
#[test]
fn who_was_not_first_to_settle_a_question_leaves_its_answer_to_the_first() {
    let cancelling = |worker| asking(worker).env("CP2_CANCELLATION_ENABLED", "true");
    let node = Node::start_with(cancelling);
    let _other = node.another(cancelling);
    let said = node.client.collect_answers().expect("listens");
    let many = jobs(20, |number| {
        question(json!({"prompt": "still?", "timeout_ms": 600_000}))
            .set("run_id", json!(format!("r-{number}")))
    });
    node.client.assign_all(&many).expect("is sent");
    for job in &many {
        wait_parked(&node.client, job);
    }
    for job in &many {
        cancel_assignment(&node.client, job);
    }
    wait_answered(&node.client, &many, SOON);
    wait_until("it is noted of each", SOON, || {
        kept(&node.client)
            .iter()
            .all(|entry| !entry["answered"].is_null())
    });
    for job in &many {
        let results = said.results(job.assignment_id());
        assert_eq!(results.len(), 1, "{results:?}");
        assert_eq!(results[0]["status"], "cancelled");
    }
}

#[test]
fn whoever_asked_may_die_and_whoever_is_there_answers() {
    let mut node = Node::start_with(asking);
    let (first, second) = (deploy(), deploy());
    node.client.assign(&first).expect("is sent");
    let id = wait_parked(&node.client, &first);
    node.worker.kill();
    let mut other = node.another(asking);
    assert_eq!(decide(&mut other, &id, &yes("ann")).status, 200);
    wait_answered(&node.client, std::slice::from_ref(&first), SOON);
    node.client.assign(&second).expect("is sent");
    let id = wait_parked(&node.client, &second);
    // Nobody is there for a while, and the next one still knows.
    other.kill();
    let mut third = node.another(asking);
    assert_eq!(decide(&mut third, &id, &yes("bob")).status, 200);
    let both = [first, second];
    wait_answered(&node.client, &both, SOON);
    assert_each_answered_once(&answers(&node.client), &both);
}

/// Killed when the decision is stored and the result is not published: another worker publishes it, the same bytes.
#[test]
fn what_was_decided_is_published_by_another_when_the_decider_dies_over_it() {
    let node = Node::start_with(asking);
    let proxy = Proxy::start(&node.nats).expect("starts");
    let mut dying = asking(program().serve_through(&proxy)).start().expect("starts");
    dying.wait_ready().expect("is ready");
    let job = deploy();
    node.client.assign(&job).expect("is sent");
    let id = wait_parked(&node.client, &job);
    let is_result = |frame: &Frame| frame.publishes("caf.exec.result.v1");
    let held = proxy.hold_when(is_result);
    assert_eq!(decide(&mut dying, &id, &yes("ann")).status, 200);
    held.wait(SOON).expect("the result is on its way");
    dying.kill();
    held.drop_frame();
    let result = result_of(&node.client, &job);
    assert_eq!(result["outputs"]["approver"], "ann");
    wait_until("it is noted", SOON, || {
        entry_of(&node.client, &job).is_some_and(|entry| !entry["answered"].is_null())
    });
    assert_each_answered_once(&answers(&node.client), &[job]);
}

/// A worker that dies over a question that is stored, before anything else is said, has asked it all the same; it is not asked
/// again, and its acknowledgement is not lost.
#[test]
fn a_question_that_was_stored_by_a_worker_that_died_is_asked_once() {
    let mut node = Node::start_with(|worker| asking(worker).env("WORKER__NATS__ACK_WAIT_MS", 2_000));
    node.worker.kill();
    let proxy = Proxy::start(&node.nats).expect("starts");
    let mut dying = asking(program().serve_through(&proxy))
        .env("WORKER__NATS__ACK_WAIT_MS", 2_000)
        .start()
        .expect("starts");
    dying.wait_ready().expect("is ready");
    let held = proxy.hold_when(|frame: &Frame| frame.publishes(ACK));
    let job = deploy();
    node.client.assign(&job).expect("is sent");
    held.wait(SOON).expect("the acknowledgement is on its way");
    dying.kill();
    held.drop_frame();
    let mut heir = node.another(|worker| asking(worker).env("WORKER__NATS__ACK_WAIT_MS", 2_000));
    let id = wait_parked(&node.client, &job);
    assert_eq!(kept(&node.client).len(), 1);
    assert_eq!(decide(&mut heir, &id, &yes("ann")).status, 200);
    wait_answered(&node.client, std::slice::from_ref(&job), SOON);
    assert_each_answered_once(&answers(&node.client), &[job]);
}

#[test]
fn where_nobody_can_be_asked_nothing_is_approved() {
    // Off: the type is not known, as it never was.
    let node = Node::start();
    let job = deploy();
    node.client.assign(&job).expect("is sent");
    let result = result_of(&node.client, &job);
    assert_eq!(result["error_code"], "INVALID_INPUT", "{result}");
    assert!(node.client.stream(BUCKET).expect("answers").is_none());

    let node = Node::start_with(|worker| asking(worker).env("WORKER__IDEMPOTENCY__SCOPE", "worker"));
    let job = deploy();
    node.client.assign(&job).expect("is sent");
    let result = result_of(&node.client, &job);
    assert_eq!(
        (&result["status"], &result["error_code"]),
        (&json!("error"), &json!("RESOURCE_UNAVAILABLE")),
        "{result}"
    );
}

mod many {
    use super::*;

    /// More than there are permits and slots; a restart in between; then every single one is decided.
    #[test]
    fn thousands_wait_without_a_slot_and_survive_a_restart() {
        let long = std::env::var_os("APPROVALS_LONG").is_some();
        let count = if long { 10_000 } else { 300 };
        let within = if long { Duration::from_secs(600) } else { 2 * SOON };
        let settings = |worker: WorkerBuilder| {
            asking(worker)
                .env("WORKER__POOLS__CPU__MAX_CONCURRENCY", 1)
                .env("WORKER__LIMITS__MAX_HELD", 64)
        };
        let mut node = Node::start_with(settings);
        let before = node.worker.own_resident_bytes().expect("is read");
        let load = jobs(count, |_| deploy());
        node.client.assign_all(&load).expect("is sent");
        wait_until("all wait for people", within, || {
            node.client
                .stream_count(BUCKET)
                .is_ok_and(|kept| kept == count as u64)
                && node.client.stream_count(ASSIGNMENTS).is_ok_and(|left| left == 0)
        });
        // All slots and permits are there: more than may be held is parked, and this one runs.
        node.assert_alive();
        let after = node.worker.own_resident_bytes().expect("is read");
        println!(
            "{count} parked: {} KiB before, {} KiB after",
            before / 1024,
            after / 1024
        );
        assert!(
            after.saturating_sub(before) < 20_000_000 + count as u64 * 4_096,
            "{before} {after}"
        );

        node.worker.kill();
        let mut heir = node.another(settings);
        wait_until("the heir knows them all", within, || pending(&mut heir) == count);
        let some = if long { count } else { 50 };
        let entries = kept(&node.client);
        for entry in &entries[..some] {
            let id = entry["request"]["approval_id"].as_str().expect("has an id");
            assert_eq!(decide(&mut heir, id, &yes("ann")).status, 200);
        }
        wait_until("they are answered", within, || pending(&mut heir) == count - some);
        let wanted = entries[..some]
            .iter()
            .map(|entry| entry["request"]["assignment_id"].clone());
        let wanted: std::collections::BTreeSet<_> = wanted.map(|id| id.to_string()).collect();
        let answered = || -> usize {
            let said = answers(&node.client);
            let results = said.on(caf_testkit::client::RESULT);
            results
                .iter()
                .filter(|result| wanted.contains(&result["assignment_id"].to_string()))
                .count()
        };
        wait_until("each once", within, || answered() == some);
        let state = node.client.consumer(ASSIGNMENTS, CONSUMER).expect("is there");
        assert_eq!((state.pending, state.ack_pending), (0, 0), "{state:?}");
        println!(
            "{} KiB in the heir",
            heir.own_resident_bytes().expect("is read") / 1024
        );
    }

    fn pending(worker: &mut Worker) -> usize {
        let metrics = http::get(worker.metrics_port().expect("is logged"), "/metrics").expect("answers");
        let text = String::from_utf8_lossy(&metrics.body).into_owned();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("worker_approvals_pending "));
        line.and_then(|value| value.trim().parse::<f64>().ok())
            .map_or(0, |value| value as usize)
    }
}
