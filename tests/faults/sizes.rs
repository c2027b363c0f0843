//! Sizes at the limit of the server: assignments, results with their outputs inside or elsewhere, and a limit that becomes
//! smaller while results wait.

use std::collections::{BTreeMap, BTreeSet};

use caf_testkit::client::{Message, RESULT};
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, Client, Collector, NatsOptions, NatsServer, TempDir, wait_until};
use serde_json::{Value, json};

use crate::outages::assert_heard_once;
use crate::side_effects::Outside;
use crate::support::{ANSWERS, Node, SOON, answers, assert_each_answered_once, jobs, program, wait_answered};

/// The server's own default for its largest message.
const DEFAULT_LIMIT: usize = 1024 * 1024;
/// Stream of the bucket that keeps outputs.
const OUTPUTS: &str = "OBJ_caf-outputs";

/// An echo with little beside its text, so that the result is the larger of the two.
fn echo_of(bytes: usize) -> AssignmentBuilder {
    let job = AssignmentBuilder::new("echo", json!({"text": "x".repeat(bytes)}));
    ["decision", "metadata", "options", "correlation"]
        .into_iter()
        .fold(job, AssignmentBuilder::without)
}

/// Bytes that count against the server's limit.
fn wire_bytes(message: &Message) -> usize {
    let headers: usize = message
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len() + 4)
        .sum();
    12 + headers + message.payload.len()
}

/// The results of these assignments, one each, as they are stored.
fn stored_results(client: &Client, load: &[AssignmentBuilder]) -> Vec<Message> {
    let stored = client.stream_messages(ANSWERS).expect("can be read");
    let results = stored.into_iter().filter(|message| message.subject == RESULT);
    let mut by_id: BTreeMap<String, Message> = results
        .map(|result| {
            (
                result.json()["assignment_id"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
                result,
            )
        })
        .collect();
    let taken = load.iter().map(|job| by_id.remove(job.assignment_id()));
    taken.map(|result| result.expect("is answered")).collect()
}

/// An assignment of exactly as many bytes as the server takes; its result has more.
fn as_large_as(limit: usize) -> AssignmentBuilder {
    let job = echo_of(0);
    let text = "x".repeat(limit - job.bytes().len());
    let job = job.set("job", json!({"type": "echo", "payload": {"text": text}}));
    assert_eq!(job.bytes().len(), limit);
    job
}

/// Bytes that a result would have had as a success with its outputs inside.
fn whole_bytes(result: &Message, outputs: &Value) -> usize {
    let mut whole = result.json();
    (whole["outputs"], whole["status"]) = (outputs.clone(), json!("success"));
    let fields = whole.as_object_mut().expect("is an object");
    for key in ["output_ref", "error", "error_code", "error_type", "error_message"] {
        fields.remove(key);
    }
    wire_bytes(result) - result.payload.len() + whole.to_string().len()
}

/// The object that a result refers to, after size and hash were compared.
#[track_caller]
fn referred(client: &Client, result: &Value) -> Vec<u8> {
    let kept = &result["output_ref"];
    let uri = kept["uri"]
        .as_str()
        .unwrap_or_else(|| panic!("no reference in {result}"));
    let (bucket, key) = uri
        .strip_prefix("nats-obj://")
        .and_then(|rest| rest.split_once('/'))
        .expect("leads to an object");
    let object = client
        .object(bucket, key)
        .expect("can be read")
        .expect("is there");
    assert_eq!(kept["size"], object.len(), "{kept}");
    assert_eq!(kept["sha256"], sha256(&object), "{kept}");
    assert_eq!(result["outputs"], json!({}));
    object
}

fn sha256(bytes: &[u8]) -> String {
    caf_protocol::ids::sha256_hex(bytes)
}

/// Most rounds of jobs until results of all three sizes were seen.
const ROUNDS: usize = 10;

/// Runs jobs whose results have one byte less than the limit, exactly as many, and one more; `check` looks at those
/// that did not fit.
fn at_the_limit(
    max_payload: Option<usize>,
    adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder,
    check: impl Fn(&Node, &Value, &Value),
) {
    let limit = max_payload.unwrap_or(DEFAULT_LIMIT);
    let options = NatsOptions {
        max_payload,
        ..NatsOptions::jetstream()
    };
    let node = Node::beside(options, adjust);
    let mut all = vec![echo_of(100)];
    node.client.assign_all(&all).expect("is sent");
    node.wait_answered(&all, SOON);
    let rest = wire_bytes(&stored_results(&node.client, &all)[0]) - 100;
    let mut seen = BTreeSet::new();
    // The time that a job took has one digit or more, so the size is known only afterwards.
    for _ in 0..ROUNDS {
        let load = jobs(6, |n| echo_of(limit - rest + n - 4));
        node.client.assign_all(&load).expect("are sent");
        node.wait_answered(&load, SOON);
        for (job, result) in load.iter().zip(stored_results(&node.client, &load)) {
            let (json, outputs) = (result.json(), &job.value()["job"]["payload"]);
            let whole = whole_bytes(&result, outputs);
            assert!(wire_bytes(&result) <= limit, "{}", wire_bytes(&result));
            let is_inside = json["outputs"] == *outputs;
            assert_eq!(is_inside, whole <= limit, "{whole} bytes");
            if is_inside {
                assert_eq!(json["status"], "success");
            } else {
                check(&node, &json, outputs);
            }
            seen.insert(whole);
        }
        all.extend(load);
        if (limit - 1..=limit + 1).all(|bytes| seen.contains(&bytes)) {
            assert_each_answered_once(&node.answers(), &all);
            return;
        }
    }
    panic!("not all sizes around {limit} came about: {seen:?}");
}

fn outputs_beyond_the_limit_are_elsewhere(max_payload: Option<usize>) {
    at_the_limit(
        max_payload,
        |worker| worker,
        |node, result, outputs| {
            assert_eq!(result["status"], "success");
            assert_eq!(referred(&node.client, result), outputs.to_string().into_bytes());
        },
    );
}

#[test]
fn a_result_up_to_the_limit_has_its_outputs_inside_and_one_byte_more_elsewhere() {
    outputs_beyond_the_limit_are_elsewhere(None);
}

#[test]
fn a_result_up_to_a_small_limit_has_its_outputs_inside_and_one_byte_more_elsewhere() {
    outputs_beyond_the_limit_are_elsewhere(Some(16 * 1024));
}

/// Row 15.
#[test]
fn without_spilling_one_byte_more_is_an_error_with_size_and_hash() {
    at_the_limit(
        Some(16 * 1024),
        |worker| worker.env("WORKER__OUTPUTS__SPILL", "off"),
        |_, result, outputs| assert_row_15(result, outputs),
    );
}

#[track_caller]
fn assert_row_15(result: &Value, outputs: &Value) {
    assert_eq!(
        (&result["status"], &result["error_code"], &result["output_ref"]),
        (&json!("error"), &json!("RESOURCE_UNAVAILABLE"), &Value::Null)
    );
    let (details, text) = (&result["error"]["details"], outputs.to_string());
    assert_eq!(details["outputs_bytes"], text.len(), "{details}");
    assert_eq!(details["outputs_sha256"], sha256(text.as_bytes()), "{details}");
}

#[test]
fn an_assignment_up_to_the_limit_is_answered_and_one_byte_more_is_refused_to_its_sender() {
    for max_payload in [None, Some(16 * 1024)] {
        let options = NatsOptions {
            max_payload,
            ..NatsOptions::jetstream()
        };
        let limit = max_payload.unwrap_or(DEFAULT_LIMIT);
        let node = Node::beside(options, |worker| worker);
        let load = [as_large_as(limit - 1), as_large_as(limit)];
        node.client.assign_all(&load).expect("are sent");
        node.wait_answered(&load, SOON);
        let answers = node.answers();
        assert_each_answered_once(&answers, &load);
        for job in &load {
            let result = &answers.results(job.assignment_id())[0];
            let object = referred(&node.client, result);
            assert_eq!(object, job.value()["job"]["payload"].to_string().into_bytes());
        }
        assert!(node.client.assign(&as_large_as(limit + 1)).is_err());
        node.assert_alive();
    }
}

#[test]
fn outputs_that_were_kept_elsewhere_are_inputs_of_the_next_job() {
    let options = NatsOptions {
        max_payload: Some(16 * 1024),
        ..NatsOptions::jetstream()
    };
    let node = Node::beside(options, |worker| worker);
    let first = [as_large_as(16 * 1024)];
    node.client.assign_all(&first).expect("is sent");
    node.wait_answered(&first, SOON);
    let kept = node.answers().results(first[0].assignment_id())[0]["output_ref"].clone();
    let next = [echo_of(0).set(
        "job",
        json!({"type": "echo", "payload_ref": kept["uri"], "payload_sha256": kept["sha256"]}),
    )];
    node.client.assign_all(&next).expect("is sent");
    node.wait_answered(&next, SOON);
    let result = &node.answers().results(next[0].assignment_id())[0];
    let object = referred(&node.client, result);
    assert_eq!(
        object,
        first[0].value()["job"]["payload"].to_string().into_bytes()
    );
}

#[test]
fn a_bucket_of_outputs_that_somebody_deletes_is_made_again() {
    let node = Node::beside(
        NatsOptions {
            max_payload: Some(16 * 1024),
            ..NatsOptions::jetstream()
        },
        |worker| worker,
    );
    for _ in 0..2 {
        let job = [as_large_as(16 * 1024)];
        node.client.assign_all(&job).expect("is sent");
        node.wait_answered(&job, SOON);
        referred(&node.client, &node.answers().results(job[0].assignment_id())[0]);
        let delete = format!("STREAM.DELETE.{OUTPUTS}");
        node.client
            .jetstream_api(&delete, &json!({}))
            .expect("is deleted");
    }
}

#[test]
fn without_a_bucket_that_may_be_made_the_result_is_the_error_with_size_and_hash() {
    let mut node = Node::beside(
        NatsOptions {
            max_payload: Some(16 * 1024),
            ..NatsOptions::jetstream()
        },
        |worker| worker,
    );
    node.worker.terminate().expect("is told");
    node.worker.wait_exit(SOON).expect("ends");
    node.worker = node.another(|worker| worker.env("WORKER__NATS__CREATE_STREAMS", false));
    let job = [as_large_as(16 * 1024)];
    node.client.assign_all(&job).expect("is sent");
    node.wait_answered(&job, SOON);
    let result = node.answers().results(job[0].assignment_id())[0].clone();
    assert_row_15(&result, &job[0].value()["job"]["payload"]);
    assert_eq!(node.client.stream(OUTPUTS).expect("answers").map(|_| ()), None);
    assert_each_answered_once(&node.answers(), &job);
}

/// A worker whose results, written for the default limit, wait for a broker that comes back with a smaller one.
fn limit_becomes_smaller(dies: bool, spill: &str, check: impl Fn(&Client, &Value)) {
    let outside = Outside::start();
    let mut nats = NatsServer::start().expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    let heard: Collector = client.collect_answers().expect("listens");
    let state = TempDir::new("state").expect("a directory");
    let settings = |nats: &NatsServer| {
        outside
            .allow(program())
            .env("WORKER__OUTPUTS__SPILL", spill)
            .env("WORKER__WORKER__STATE_DIR", state.path().display())
            .env("NATS_ACK_WAIT_MS", 3_000)
            .serve(nats)
    };
    let mut worker = settings(&nats).start().expect("starts");
    worker.wait_ready().expect("becomes ready");
    let load = jobs(4, |n| outside.job(&format!("{n}-{}", 200_000 + n)));
    client.assign_all(&load).expect("are sent");
    wait_until("all are running", SOON, || outside.seen().len() == load.len());
    nats.kill();
    outside.open();
    wait_until("all are stored", SOON, || {
        let page = worker.get("/_health").expect("answers").json().expect("is JSON");
        page["details"]["outbox"]["entries"] == load.len()
    });
    if dies {
        worker.kill();
        worker = settings(&nats).start().expect("starts");
        worker
            .wait_for_message("State directory opened")
            .expect("opens it");
    }
    nats.set_max_payload(Some(64 * 1024));
    nats.restart().expect("starts again");
    wait_answered(&client, &load, SOON);
    assert_each_answered_once(&answers(&client), &load);
    assert_heard_once(&heard, &load);
    assert_eq!(outside.repeated(), Vec::<String>::new());
    for job in &load {
        check(&client, &answers(&client).results(job.assignment_id())[0]);
    }
    worker.wait_ready().expect("is ready");
    wait_until("nothing is left", SOON, || {
        let page = worker.get("/_health").expect("answers").json().expect("is JSON");
        page["details"]["outbox"]["entries"] == 0
    });
}

fn assert_is_elsewhere(client: &Client, result: &Value) {
    assert_eq!(result["status"], "success", "{result}");
    let outputs: Value = serde_json::from_slice(&referred(client, result)).expect("is JSON");
    assert_eq!(outputs["status_code"], 200);
    assert!(outputs["body"].as_str().is_some_and(|body| body.len() >= 200_000));
}

#[test]
fn results_that_a_smaller_limit_does_not_let_through_are_answered_with_a_reference() {
    limit_becomes_smaller(false, "objects", assert_is_elsewhere);
}

#[test]
fn so_are_those_that_an_earlier_process_left_behind() {
    limit_becomes_smaller(true, "objects", assert_is_elsewhere);
}

#[test]
fn results_that_a_smaller_limit_does_not_let_through_are_errors_where_nothing_is_kept_elsewhere() {
    for dies in [false, true] {
        limit_becomes_smaller(dies, "off", |_, result| {
            assert_eq!(
                (&result["status"], &result["error_code"]),
                (&json!("error"), &json!("RESOURCE_UNAVAILABLE")),
                "{result}"
            );
            assert!(result["error"]["details"]["outputs_bytes"].as_u64() > Some(200_000));
        });
    }
}
