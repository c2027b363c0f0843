//! What becomes of an assignment in jetstream mode: good ones, odd ones, hostile ones, slow ones and repeated ones.

use std::collections::BTreeMap;

use caf_testkit::client::{ACK, DLQ, RESULT};
use caf_testkit::malformed::{Expect, Malformed};
use caf_testkit::router::header_violations;
use caf_testkit::{AssignmentBuilder, Client, Collector, fixtures, malformed, wait_until};
use serde_json::{Value, json};

use crate::support::{
    ANSWERS, ASSIGNMENTS, CONSUMER, Node, SOON, assert_each_answered_once, assert_nothing_pending, jobs,
};

/// Largest message of a broker with default settings, in bytes.
pub(crate) const MAX_PAYLOAD: usize = 1024 * 1024;

/// A short lease, in milliseconds. A machine that is busy with other tests still renews three times in this.
const ACK_WAIT_MS: u64 = 2_000;

/// Deliveries so far: more than messages means that some were delivered again.
fn deliveries(client: &Client) -> u64 {
    let request = format!("CONSUMER.INFO.{ASSIGNMENTS}.{CONSUMER}");
    let info = client
        .jetstream_api(&request, &json!({}))
        .expect("there is a consumer");
    info["delivered"]["consumer_seq"].as_u64().expect("is counted")
}

/// Every shape of contract 2.4, with a job that can run here.
#[test]
fn every_shape_of_an_assignment_is_acknowledged_and_answered_once() {
    let node = Node::start();
    let readable = fixtures::assignments()
        .into_iter()
        .filter(|fixture| fixture.expected["reading"] == "valid")
        // What references lead to is a matter of `large.rs`.
        .filter(|fixture| fixture.expected.get("payload_ref").is_none());
    let mut sent = Vec::new();
    for fixture in readable {
        let text = String::from_utf8(fixture.payload).expect("fixtures are text");
        let old_id = fixture.expected["identity"]["assignment_id"]
            .as_str()
            .expect("is read");
        let id = format!("shape-{}", sent.len());
        let text = text.replace("\"http.request\"", "\"echo\"").replace(old_id, &id);
        let headers: Vec<_> = fixture
            .headers
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        node.client
            .publish("caf.exec.assign.v1", &headers, text)
            .expect("is sent");
        sent.push((id, fixture.name, fixture.expected));
    }
    assert!(sent.len() > 30, "only {} fixtures", sent.len());
    wait_until("all are answered", SOON, || {
        node.client
            .stream_count(ANSWERS)
            .is_ok_and(|count| count >= 2 * sent.len() as u64)
    });
    let answers = node.answers();
    for (id, name, expected) in &sent {
        let (acks, results) = (answers.acks(id), answers.results(id));
        assert_eq!((acks.len(), results.len()), (1, 1), "{name}");
        assert_eq!(
            (&acks[0]["status"], &results[0]["status"]),
            (&json!("accepted"), &json!("success")),
            "{name}"
        );
        assert_eq!(results[0]["outputs"], expected["inputs"], "{name}");
        for key in [
            "tenant_id",
            "request_id",
            "trace_id",
            "run_id",
            "flow_id",
            "step_id",
            "idempotency_key",
        ] {
            let given = &expected["identity"][key];
            if key == "tenant_id" || key == "request_id" || (key == "trace_id" && !given.is_null()) {
                assert_eq!(&results[0][key], given, "{key} of {name}");
            }
        }
    }
    assert_eq!(answers.len(), 2 * sent.len());
    assert_eq!(answers.objections(), Vec::<String>::new());
    assert_nothing_pending(&node.client);
}

/// Contract 1.5.
#[test]
fn answers_carry_their_message_id_tenant_trace_and_version_as_headers() {
    let node = Node::start();
    let job = [AssignmentBuilder::echo()];
    node.client.assign_all(&job).expect("is sent");
    node.wait_answered(&job, SOON);
    let id = job[0].assignment_id();
    let trace = job[0].value()["correlation"]["trace_id"]
        .as_str()
        .expect("is text");
    let messages = node.answers().messages();
    assert_eq!(messages.len(), 2);
    for (message, kind) in messages.iter().zip(["ack", "result"]) {
        assert_eq!(
            message.header("Nats-Msg-Id"),
            Some(format!("{id}.{kind}").as_str())
        );
        assert_eq!(message.header("tenant_id"), Some("acme"));
        assert_eq!(message.header("trace_id"), Some(trace));
        assert_eq!(message.header("version"), Some("1"));
        assert_eq!(header_violations(&message.headers), Vec::<&str>::new());
    }
    assert_nothing_pending(&node.client);
}

/// Hostile messages that a broker with default settings carries.
pub(crate) fn hostile_messages() -> Vec<Malformed> {
    let mut corpus = malformed();
    corpus.retain(|message| message.bytes.len() <= MAX_PAYLOAD);
    assert!(corpus.len() > 60, "only {} hostile messages", corpus.len());
    corpus
}

/// Every hostile message left by its row; nothing else was said.
pub(crate) fn assert_left_by_their_rows(corpus: &[Malformed], answers: &Collector) {
    // Each answer is parsed once: some are large.
    let mut said: BTreeMap<(String, Option<String>), Vec<Value>> = BTreeMap::new();
    for message in answers.messages() {
        let body = message.json();
        let id = body["assignment_id"].as_str().map(str::to_owned);
        said.entry((message.subject, id)).or_default().push(body);
    }
    let mut take = |subject: &str, id: Option<&str>| {
        let key = (subject.to_owned(), id.map(str::to_owned));
        said.remove(&key).unwrap_or_default()
    };
    let unanswerable = corpus.iter().filter(|message| message.expect == Expect::Row1);
    assert_eq!(take(DLQ, None).len(), unanswerable.count());
    for message in corpus {
        let Some(id) = message.assignment_id.as_deref() else {
            continue;
        };
        let name = &message.name;
        let (acks, results) = (take(ACK, Some(id)), take(RESULT, Some(id)));
        assert_eq!((acks.len(), results.len()), (1, 1), "{name}");
        let (ack_status, status, letters) = match message.expect {
            Expect::Runs => ("accepted", "success", 0),
            _ => ("rejected", "error", 1),
        };
        assert_eq!(
            (&acks[0]["status"], &results[0]["status"]),
            (&json!(ack_status), &json!(status)),
            "{name}: {}",
            results[0]
        );
        assert_eq!(take(DLQ, Some(id)).len(), letters, "{name}");
    }
    assert_eq!(said, BTreeMap::new(), "nobody asked for these");
    assert_eq!(answers.objections(), Vec::<String>::new());
}

#[test]
fn hostile_messages_leave_by_their_row_and_the_next_good_one_is_answered() {
    let mut node = Node::start();
    let corpus = hostile_messages();
    for message in &corpus {
        node.client
            .publish("caf.exec.assign.v1", &[], message.bytes.clone())
            .expect("is sent");
    }
    wait_until("all have left", SOON, || {
        let count = |stream| node.client.stream_count(stream).unwrap_or(0);
        let answered = corpus
            .iter()
            .filter(|message| message.assignment_id.is_some())
            .count() as u64;
        count(ASSIGNMENTS) == 0 && count(ANSWERS) >= 2 * answered
    });
    assert_nothing_pending(&node.client);
    assert_left_by_their_rows(&corpus, &node.answers());
    node.assert_alive();
    assert!(node.worker.is_running());
    assert_eq!(deliveries(&node.client), corpus.len() as u64 + 1);
    let restarts = node
        .worker
        .logs()
        .into_iter()
        .filter(|log| log["message"] == "Actor failed, restarting");
    assert_eq!(restarts.count(), 0);
}

#[test]
fn jobs_that_take_longer_than_the_ack_wait_are_delivered_once() {
    let node = Node::start_with(|worker| {
        worker
            .env("NATS_ACK_WAIT_MS", ACK_WAIT_MS)
            .env("WORKER_IO_POOL_SIZE", 1)
    });
    // One runs for three times the ack wait; one waits behind it for as long.
    let load = [
        AssignmentBuilder::sleep(3 * ACK_WAIT_MS),
        AssignmentBuilder::sleep(10),
    ];
    node.client.assign_all(&load).expect("are sent");
    node.wait_answered(&load, SOON);
    assert_each_answered_once(&node.answers(), &load);
    assert_eq!(deliveries(&node.client), 2);
    assert_nothing_pending(&node.client);
}

/// An operator's consumer may give less time than the settings say.
#[test]
fn leases_are_renewed_as_often_as_the_consumer_asks_for() {
    let mut node = Node::start();
    node.worker.terminate().expect("is told");
    node.worker.wait_exit(SOON).expect("ends");
    let request = format!("CONSUMER.DELETE.{ASSIGNMENTS}.{CONSUMER}");
    node.client
        .jetstream_api(&request, &json!({}))
        .expect("is deleted");
    let ack_wait_ns = ACK_WAIT_MS * 1_000_000;
    let theirs = json!({
        "stream_name": ASSIGNMENTS,
        "config": {"durable_name": CONSUMER, "ack_policy": "explicit", "ack_wait": ack_wait_ns, "max_deliver": 5},
    });
    let request = format!("CONSUMER.DURABLE.CREATE.{ASSIGNMENTS}.{CONSUMER}");
    node.client.jetstream_api(&request, &theirs).expect("is created");
    node.worker = node.another(|worker| worker);
    let load = [AssignmentBuilder::sleep(2 * ACK_WAIT_MS)];
    node.client.assign_all(&load).expect("is sent");
    node.wait_answered(&load, SOON);
    assert_each_answered_once(&node.answers(), &load);
    assert_eq!(deliveries(&node.client), 1);
    let warned = |key: &str| {
        let logs = node.worker.logs();
        logs.iter()
            .any(|log| log["level"] == "WARN" && log["context"]["detail"].to_string().contains(key))
    };
    assert!(warned("ack_wait") && warned("max_deliver"));
}

/// Held permits bound jobs and bytes; what is larger than all of them is taken alone.
#[test]
fn a_worker_with_little_room_answers_everything_in_its_turn() {
    let node = Node::start_with(|worker| {
        worker
            .env("WORKER__LIMITS__MAX_HELD", 5)
            .env("WORKER__LIMITS__MAX_HELD_BYTES", 100_000)
    });
    let load = jobs(60, |n| match n % 12 {
        0 => AssignmentBuilder::new("echo", json!({"text": "x".repeat(200_000)})),
        1..4 => AssignmentBuilder::new("echo", json!({"text": "x".repeat(40_000)})),
        _ => AssignmentBuilder::sleep(5),
    });
    node.client.assign_all(&load).expect("are sent");
    node.wait_answered(&load, SOON);
    assert_each_answered_once(&node.answers(), &load);
    assert_eq!(deliveries(&node.client), 60);
}

#[test]
fn leases_are_renewed_while_every_slot_computes() {
    let node = Node::start_with(|worker| {
        worker
            .env("NATS_ACK_WAIT_MS", ACK_WAIT_MS)
            .env("WORKER_IO_POOL_SIZE", 2)
    });
    let endless =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) AS n FROM n";
    let mut load = jobs(2, |_| {
        AssignmentBuilder::new("sql.query", json!({"connection": ":memory:", "query": endless}))
            .deadline_ms(2 * ACK_WAIT_MS)
    });
    load.push(AssignmentBuilder::sleep(10));
    node.client.assign_all(&load).expect("are sent");
    node.wait_answered(&load, SOON);
    let answers = node.answers();
    assert_each_answered_once(&answers, &load);
    let statuses: Vec<Value> = load
        .iter()
        .map(|job| answers.results(job.assignment_id())[0]["status"].clone())
        .collect();
    assert_eq!(statuses, ["timeout", "timeout", "success"]);
    assert_eq!(deliveries(&node.client), 3);
}

/// Rows 10b and 11, as the router causes them: the same message published again.
#[test]
fn an_assignment_published_again_runs_once_and_is_answered_with_the_same_bytes() {
    let node = Node::start_with(|worker| worker.env("LOG_LEVEL", "debug"));
    let heard = node.client.collect_answers().expect("listens");
    let job = [AssignmentBuilder::sleep(500)];
    node.client.assign(&job[0]).expect("is sent");
    // Before it is accepted, a copy is neither dropped nor answered: it comes back.
    heard.wait_for(ACK, 1, SOON).expect("is accepted");
    node.client.assign(&job[0]).expect("is sent twice");
    node.wait_answered(&job, SOON);
    node.client.assign(&job[0]).expect("is sent again");
    heard.wait_for(RESULT, 2, SOON).expect("is answered again");
    assert_nothing_pending(&node.client);
    assert_each_answered_once(&node.answers(), &job);
    let results: Vec<_> = heard
        .messages()
        .into_iter()
        .filter(|message| message.subject == RESULT)
        .collect();
    assert_eq!(results.len(), 2);
    assert_eq!(results[0].payload, results[1].payload);
    assert_eq!(results[0].header("Nats-Msg-Id"), results[1].header("Nats-Msg-Id"));
    let logs = node.worker.logs();
    let said = |message: &str| logs.iter().filter(|log| log["message"] == message).count();
    assert_eq!(
        (
            said("Step execution started"),
            said("Assignment not run"),
            said("Assignment answered again")
        ),
        (1, 1, 1)
    );
    assert_eq!(heard.objections(), Vec::<String>::new());
}
