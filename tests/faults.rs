//! Faults at named points: the broker ends, freezes or forgets, the worker is asked to leave or dies. Afterwards every
//! assignment is counted.

#[path = "faults/chaos.rs"]
mod chaos;
#[path = "faults/consumption.rs"]
mod consumption;
#[path = "faults/drain.rs"]
mod drain;
#[path = "faults/hangs.rs"]
mod hangs;
#[path = "faults/kills.rs"]
mod kills;
#[path = "faults/outages.rs"]
mod outages;
#[path = "faults/side_effects.rs"]
mod side_effects;
#[path = "faults/sizes.rs"]
mod sizes;
#[path = "node/support.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use caf_testkit::client::{ACK, RESULT};
use caf_testkit::{AssignmentBuilder, Client, NatsServer, Worker, wait_until};
use serde_json::json;
use support::{
    ANSWERS, ASSIGNMENTS, CONSUMER, Node, SOON, answers, assert_each_answered_once, jobs, program, statuses,
};

/// Results stored so far; 0 while the broker is away.
fn results_stored(node: &Node) -> usize {
    node.client
        .stream(ANSWERS)
        .ok()
        .flatten()
        .map_or(0, |info| usize::try_from(info.state.messages).unwrap_or(0))
}

/// Sleeping jobs of different lengths, so that at any moment some wait, some run and some have just ended.
fn sleepers(count: usize) -> Vec<AssignmentBuilder> {
    jobs(count, |n| AssignmentBuilder::sleep(500 + (n as u64 * 37) % 1_000))
}

/// Two hundred sleeping jobs over an outage; the worker is the same before and after.
fn outage_among_sleeping_jobs(outage: impl FnOnce(&mut NatsServer)) {
    // A last word to the broker that is lost with it needs no confirmation: the assignment comes back after the ack
    // wait and is answered with the same bytes, which the stream drops.
    let mut node = Node::start_with(|worker| {
        worker
            .env("WORKER_IO_POOL_SIZE", 50)
            .env("NATS_ACK_WAIT_MS", 5_000)
    });
    let load = sleepers(200);
    node.client.assign_all(&load).expect("are sent");
    wait_until("some are answered", SOON, || results_stored(&node) > 230);
    outage(&mut node.nats);
    node.worker.wait_ready().expect("becomes ready again");
    node.wait_answered(&load, SOON);
    assert_each_answered_once(&node.answers(), &load);
    assert_eq!(statuses(&node.answers())["success"], 200);
    node.assert_alive();
    assert!(node.worker.is_running());
    let restarted = node
        .worker
        .logs()
        .into_iter()
        .filter(|log| log["level"] == "ERROR");
    assert_eq!(restarted.collect::<Vec<_>>(), Vec::<serde_json::Value>::new());
}

#[test]
fn a_restart_of_the_broker_among_sleeping_jobs_loses_and_repeats_nothing() {
    outage_among_sleeping_jobs(|nats| nats.restart().expect("restarts"));
}

#[test]
fn a_crash_of_the_broker_among_sleeping_jobs_loses_and_repeats_nothing() {
    outage_among_sleeping_jobs(|nats| {
        nats.kill();
        nats.restart().expect("starts again");
    });
}

#[test]
fn a_broker_that_freezes_while_jobs_finish_gets_each_result_once() {
    let mut node = Node::start_with(|worker| {
        worker
            .env("WORKER_IO_POOL_SIZE", 30)
            .env("WORKER__NATS__REQUEST_TIMEOUT_MS", 1_000)
    });
    let load = sleepers(60);
    node.client.assign_all(&load).expect("are sent");
    wait_until("some are answered", SOON, || results_stored(&node) > 70);
    node.nats.pause().expect("is held still");
    let noticed = node
        .worker
        .wait_for_log(|line| {
            line["message"] == "Publish not confirmed, sending again"
                && line["context"]["message_id"]
                    .as_str()
                    .is_some_and(|id| id.ends_with(".result"))
        })
        .expect("the worker notices");
    assert!(noticed["assignment_id"].is_string() || noticed["context"]["assignment_id"].is_string());
    node.nats.resume().expect("goes on");
    node.wait_answered(&load, SOON);
    assert_each_answered_once(&node.answers(), &load);
}

/// Quick jobs with some sleeping ones among them.
fn mixed_load() -> Vec<AssignmentBuilder> {
    jobs(300, |n| match n % 10 {
        0 => AssignmentBuilder::sleep(400),
        1..4 => AssignmentBuilder::sleep(n as u64 % 7),
        _ => AssignmentBuilder::echo(),
    })
}

fn assert_left_in_good_order(worker: &mut Worker) {
    let status = worker.wait_exit(SOON).expect("ends");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_worker_that_is_told_to_leave_under_load_leaves_the_rest_to_its_successor() {
    let mut node = Node::start_with(|worker| worker.env("WORKER_IO_POOL_SIZE", 2));
    let load = mixed_load();
    node.client.assign_all(&load).expect("are sent");
    wait_until("some are answered", SOON, || results_stored(&node) > 320);
    node.worker.terminate().expect("is told");
    let _successor = node.another(|worker| worker);
    assert_left_in_good_order(&mut node.worker);
    node.wait_answered(&load, SOON);
    assert_each_answered_once(&node.answers(), &load);
    assert_eq!(statuses(&node.answers())["success"], 300);
}

#[test]
fn one_of_two_workers_that_leaves_under_load_is_not_missed() {
    let mut node = Node::start_with(|worker| worker.env("WORKER__LIMITS__MAX_HELD", 40));
    let second = node.another(|worker| worker.env("WORKER__LIMITS__MAX_HELD", 40));
    let load = mixed_load();
    node.client.assign_all(&load).expect("are sent");
    wait_until("some are answered", SOON, || results_stored(&node) > 150);
    node.worker.terminate().expect("is told");
    assert_left_in_good_order(&mut node.worker);
    node.wait_answered(&load, SOON);
    assert_each_answered_once(&node.answers(), &load);
    drop(second);
}

#[test]
fn a_worker_that_leaves_waits_for_what_runs_and_hands_back_what_waits() {
    let mut node = Node::start_with(|worker| worker.env("WORKER_IO_POOL_SIZE", 2));
    let running = jobs(2, |_| AssignmentBuilder::sleep(1_500));
    node.client.assign_all(&running).expect("are sent");
    wait_until("both are held", SOON, || results_stored(&node) == 2);
    let waiting = jobs(3, |_| AssignmentBuilder::sleep(10));
    node.client.assign_all(&waiting).expect("are sent");
    wait_until("all are held", SOON, || results_stored(&node) == 5);
    node.worker.terminate().expect("is told");
    node.worker.wait_for_readiness(503).expect("says that it leaves");
    assert_left_in_good_order(&mut node.worker);
    let left = answers(&node.client);
    assert_eq!(left.on(RESULT).len(), 2);
    assert_eq!(statuses(&left)["success"], 2);
    assert_eq!(node.client.stream_count(ASSIGNMENTS).expect("is there"), 3);
    let _successor = node.another(|worker| worker);
    node.wait_answered(&waiting, SOON);
    let all: Vec<_> = running.into_iter().chain(waiting).collect();
    assert_each_answered_once(&node.answers(), &all);
}

/// A server that takes requests and never answers.
fn silent_http_server() -> (std::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/slow", listener.local_addr().expect("has an address"));
    (listener, url)
}

#[test]
fn at_the_soft_limit_repeatable_jobs_are_handed_back_and_others_cancelled() {
    let mut node = Node::start_with(|worker| {
        worker
            .env("WORKER__DRAIN__SOFT_S", 1)
            .env("WORKER__BLOCKS__HTTP__ALLOW_TARGETS", "127.0.0.0/8")
    });
    let (_silent, url) = silent_http_server();
    let repeatable = AssignmentBuilder::sleep(20_000);
    let other = AssignmentBuilder::new("http.request", json!({"url": url, "method": "POST"}));
    let load = [repeatable.clone(), other.clone()];
    node.client.assign_all(&load).expect("are sent");
    wait_until("both are accepted", SOON, || results_stored(&node) == 2);
    node.worker.terminate().expect("is told");
    assert_left_in_good_order(&mut node.worker);
    let logs = node.worker.logs();
    let cut_off: BTreeMap<_, _> = logs
        .iter()
        .filter(|log| log["message"] == "Step cut off by shutdown")
        .map(|log| {
            (
                log["context"]["assignment_id"].as_str(),
                &log["context"]["handed_back"],
            )
        })
        .collect();
    let expected = [
        (Some(repeatable.assignment_id()), &json!(true)),
        (Some(other.assignment_id()), &json!(false)),
    ];
    assert_eq!(cut_off, BTreeMap::from(expected));
    let answers = node.answers();
    assert_eq!(
        answers.results(repeatable.assignment_id()),
        Vec::<serde_json::Value>::new()
    );
    let result = &answers.results(other.assignment_id())[0];
    assert_eq!(
        (&result["status"], &result["error_code"]),
        (&json!("cancelled"), &json!("CANCELLED_BY_USER"))
    );
    assert_eq!(answers.objections(), Vec::<String>::new());
    assert_eq!(node.client.stream_count(ASSIGNMENTS).expect("is there"), 1);
    let state = node.client.consumer(ASSIGNMENTS, CONSUMER).expect("is there");
    assert_eq!(state.pending + state.ack_pending as u64, 1, "{state:?}");
}

#[test]
fn a_second_signal_cancels_at_once() {
    let mut node = Node::start();
    let load = [AssignmentBuilder::sleep(20_000)];
    node.client.assign_all(&load).expect("are sent");
    wait_until("it is accepted", SOON, || results_stored(&node) == 1);
    node.worker.terminate().expect("is told");
    node.worker
        .wait_for_message("Worker shutting down")
        .expect("is heard");
    node.worker.interrupt().expect("is told again");
    // Well below the soft limit of 20 seconds.
    let status = node.worker.wait_exit(Duration::from_secs(5)).expect("ends");
    assert_eq!(status.code(), Some(0));
    assert_eq!(node.client.stream_count(ASSIGNMENTS).expect("is there"), 1);
}

/// A worker with a job that has ended and whose answer nobody takes: the broker is gone.
fn worker_that_cannot_answer(soft_s: u64) -> Node {
    let mut node = Node::start_with(|worker| {
        worker
            .env("WORKER__DRAIN__SOFT_S", soft_s)
            .env("WORKER__DRAIN__HARD_S", soft_s + 1)
    });
    let load = [AssignmentBuilder::sleep(300)];
    node.client.assign_all(&load).expect("are sent");
    wait_until("it is accepted", SOON, || results_stored(&node) == 1);
    node.nats.kill();
    node.worker
        .wait_for_message("Step execution completed")
        .expect("it runs on");
    node
}

/// Exit code for work that is still held.
const UNFINISHED: Option<i32> = Some(80);

#[test]
fn at_the_hard_limit_the_worker_leaves_whatever_it_holds() {
    let mut node = worker_that_cannot_answer(1);
    node.worker.terminate().expect("is told");
    let status = node.worker.wait_exit(Duration::from_secs(8)).expect("ends");
    assert_eq!(status.code(), UNFINISHED);
}

#[test]
fn a_third_signal_ends_the_worker_on_the_spot() {
    let mut node = worker_that_cannot_answer(60);
    node.worker.terminate().expect("is told");
    node.worker
        .wait_for_message("Worker shutting down")
        .expect("is heard");
    // Two kinds, so that neither hides the other.
    node.worker.interrupt().expect("is told again");
    node.worker.terminate().expect("is told once more");
    let status = node.worker.wait_exit(Duration::from_secs(4)).expect("ends");
    assert_eq!(status.code(), UNFINISHED);
}

/// Longest time after which a worker has mended what somebody deleted.
const MENDED: Duration = Duration::from_secs(5);

#[test]
fn what_somebody_deletes_at_the_broker_is_made_again() {
    let mut node = Node::start();
    node.assert_alive();
    let delete = |node: &Node, what: &str| {
        let done = node.client.jetstream_api(what, &json!({}));
        done.expect("is deleted");
    };
    let consumer_is_there = |node: &Node| node.client.consumer(ASSIGNMENTS, CONSUMER).is_ok();

    delete(&node, &format!("CONSUMER.DELETE.{ASSIGNMENTS}.{CONSUMER}"));
    wait_until("the consumer is back", MENDED, || consumer_is_there(&node));
    node.assert_alive();

    delete(&node, &format!("STREAM.DELETE.{ASSIGNMENTS}"));
    wait_until("the stream is back", MENDED, || consumer_is_there(&node));
    node.assert_alive();

    delete(&node, &format!("STREAM.DELETE.{ANSWERS}"));
    let job = [AssignmentBuilder::echo()];
    node.client.assign_all(&job).expect("is sent");
    wait_until("both answers have a stream", MENDED, || {
        results_stored(&node) == 2
    });
    assert_each_answered_once(&node.answers(), &job);
    assert!(node.worker.is_running());
}

#[test]
fn answers_wait_for_a_stream_that_only_the_operator_may_make() {
    let mut node = Node::start();
    node.worker.terminate().expect("is told");
    assert_left_in_good_order(&mut node.worker);
    node.worker = node.another(|worker| worker.env("WORKER__NATS__CREATE_STREAMS", false));
    let info = node
        .client
        .jetstream_api(&format!("STREAM.INFO.{ANSWERS}"), &json!({}));
    let config = info.expect("is there")["config"].clone();
    node.client
        .jetstream_api(&format!("STREAM.DELETE.{ANSWERS}"), &json!({}))
        .expect("is deleted");
    let job = [AssignmentBuilder::echo()];
    node.client.assign_all(&job).expect("is sent");
    let log = node.worker.wait_for_message("Answers wait for their stream");
    assert!(log.expect("says so").to_string().contains("nats.create_streams"));
    node.client
        .jetstream_api(&format!("STREAM.CREATE.{ANSWERS}"), &config)
        .expect("is created");
    wait_until("both answers are stored", MENDED, || results_stored(&node) == 2);
    assert_each_answered_once(&node.answers(), &job);
    node.assert_alive();
}

#[test]
fn a_broker_that_comes_back_without_its_files_is_set_up_again() {
    let mut node = Node::start();
    let job = [AssignmentBuilder::sleep(1_000)];
    node.client.assign_all(&job).expect("is sent");
    wait_until("it is accepted", SOON, || results_stored(&node) == 1);
    node.nats.forget().expect("forgets");
    node.nats.restart().expect("starts again");
    node.worker.wait_ready().expect("becomes ready again");
    let stored = || node.answers().results(job[0].assignment_id()).len();
    wait_until("the result is kept", MENDED, || stored() == 1);
    node.assert_alive();
}

/// What a dead worker held runs again elsewhere. Without a store that outlives the process, a job whose result was
/// sent but not settled may be answered twice; the stream keeps the first.
#[test]
fn what_a_killed_worker_held_is_answered_by_its_successor() {
    let mut node = Node::start_with(|worker| worker.env("NATS_ACK_WAIT_MS", 1_000));
    let load = jobs(60, |n| AssignmentBuilder::sleep(50 + n as u64 % 5 * 50));
    node.client.assign_all(&load).expect("are sent");
    wait_until("some are answered", SOON, || results_stored(&node) > 70);
    node.worker.kill();
    assert!(results_stored(&node) < 120, "nothing was left to do");
    let _successor = node.another(|worker| worker.env("NATS_ACK_WAIT_MS", 1_000));
    node.wait_answered(&load, SOON);
    assert_each_answered_once(&node.answers(), &load);
}

/// Row 15, by the limit of the stream.
#[test]
fn a_result_that_its_stream_cannot_take_becomes_an_error_with_size_and_hash() {
    let nats = NatsServer::start().expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    let config =
        json!({"name": ANSWERS, "subjects": [RESULT, ACK], "max_msg_size": 2_000, "storage": "memory"});
    client
        .jetstream_api(&format!("STREAM.CREATE.{ANSWERS}"), &config)
        .expect("is created");
    let mut worker = program()
        .serve(&nats)
        .env("WORKER__OUTPUTS__SPILL", "off")
        .start()
        .expect("starts");
    worker.wait_ready().expect("becomes ready");
    let heard = client.collect_answers().expect("listens");
    let large = AssignmentBuilder::new("echo", json!({"text": "x".repeat(3_000)}));
    client.assign(&large).expect("is sent");
    let result = heard
        .wait_for_result(large.assignment_id(), SOON)
        .expect("is answered");
    assert_eq!(
        (&result["status"], &result["error_code"]),
        (&json!("error"), &json!("RESOURCE_UNAVAILABLE"))
    );
    wait_until("both answers are stored", SOON, || {
        client.stream_count(ANSWERS).is_ok_and(|count| count == 2)
    });
    assert_eq!(heard.objections(), Vec::<String>::new());
}

/// Somebody who listens hides from the worker that nobody stores.
#[test]
fn a_lost_stream_is_made_again_although_somebody_listens() {
    let node = Node::start_with(|worker| worker.env("WORKER__NATS__REQUEST_TIMEOUT_MS", 500));
    let _gateway = node.client.collect_answers().expect("listens");
    let request = format!("STREAM.DELETE.{ANSWERS}");
    node.client
        .jetstream_api(&request, &json!({}))
        .expect("is deleted");
    let load = jobs(5, |_| AssignmentBuilder::echo());
    node.client.assign_all(&load).expect("are sent");
    node.wait_answered(&load, SOON);
    assert_each_answered_once(&node.answers(), &load);
}

/// Row 15.
#[test]
fn a_result_that_the_server_cannot_take_becomes_an_error_with_size_and_hash() {
    let node = Node::start_with(|worker| worker.env("WORKER__OUTPUTS__SPILL", "off"));
    // Little beside the text, so that the result is the larger of the two.
    let small = |text: &str| {
        let job = AssignmentBuilder::new("echo", json!({"text": text}));
        ["decision", "metadata", "options", "correlation"]
            .into_iter()
            .fold(job, AssignmentBuilder::without)
    };
    let text = "x".repeat(1024 * 1024 - small("").bytes().len());
    let job = [small(&text)];
    node.client
        .assign_all(&job)
        .expect("is as large as the server takes");
    node.wait_answered(&job, SOON);
    let answers = node.answers();
    assert_each_answered_once(&answers, &job);
    let result = &answers.results(job[0].assignment_id())[0];
    assert_eq!(
        (&result["status"], &result["error_code"]),
        (&json!("error"), &json!("RESOURCE_UNAVAILABLE"))
    );
    let details = &result["error"]["details"];
    let outputs = json!({"text": text}).to_string();
    assert_eq!(details["outputs_bytes"], outputs.len(), "{details}");
    assert_eq!(
        details["outputs_sha256"].as_str().map(str::len),
        Some(64),
        "{details}"
    );
    node.assert_alive();
}
