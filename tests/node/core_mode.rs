//! Core mode: a plain queue subscription on a broker without JetStream. At most once.

use caf_testkit::client::{ACK, RESULT};
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, NatsOptions, wait_until};
use serde_json::json;

use crate::answering::{assert_left_by_their_rows, hostile_messages};
use crate::support::{Node, SOON, assert_each_answered_once, jobs, statuses};

fn core(worker: WorkerBuilder) -> WorkerBuilder {
    worker.env("WORKER__NATS__MODE", "core")
}

fn start(adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Node {
    Node::beside(NatsOptions::default(), |worker| adjust(core(worker)))
}

#[test]
fn two_workers_share_the_assignments_and_say_that_delivery_is_at_most_once() {
    let mut node = start(|worker| worker);
    let mut second = node.another(core);
    let heard = node.client.collect_answers().expect("listens");
    let load = jobs(60, |n| match n % 3 {
        0 => AssignmentBuilder::sleep(5),
        _ => AssignmentBuilder::echo(),
    });
    node.client.assign_all(&load).expect("are sent");
    heard.wait_for(RESULT, 60, SOON).expect("are answered");
    heard.wait_for(ACK, 60, SOON).expect("are acknowledged");
    assert_each_answered_once(&heard, &load);
    for worker in [&mut node.worker, &mut second] {
        let page = worker.get("/_health").expect("answers").json().expect("is JSON");
        assert_eq!(
            (&page["status"], &page["details"]["mode"]),
            (&json!("healthy"), &json!("core"))
        );
        let delivery = page["details"]["delivery"].as_str().unwrap_or_default();
        assert!(delivery.contains("at most once"), "{page}");
        let ran = worker
            .logs()
            .into_iter()
            .filter(|log| log["message"] == "Step execution completed");
        assert!(ran.count() > 0, "one of two did nothing");
        let warned = worker.logs().into_iter().any(|log| {
            log["level"] == "WARN" && log["context"]["detail"].to_string().contains("at most once")
        });
        assert!(warned);
    }
}

#[test]
fn hostile_messages_leave_by_their_row_without_jetstream_too() {
    let mut node = start(|worker| worker);
    let heard = node.client.collect_answers().expect("listens");
    let corpus = hostile_messages();
    for message in &corpus {
        node.client
            .publish("caf.exec.assign.v1", &[], message.bytes.clone())
            .expect("is sent");
    }
    let last = AssignmentBuilder::echo();
    node.client.assign(&last).expect("is sent");
    let result = heard
        .wait_for_result(last.assignment_id(), SOON)
        .expect("is answered");
    assert_eq!(result["status"], "success");
    let answered = corpus
        .iter()
        .filter(|message| message.assignment_id.is_some())
        .count();
    heard.wait_for(RESULT, answered + 1, SOON).expect("are answered");
    heard.wait_for(ACK, answered + 1, SOON).expect("are acknowledged");
    wait_until("nothing is held", SOON, || {
        let page = node.worker.get("/_health").and_then(|answer| answer.json());
        page.is_ok_and(|page| page["details"]["jobs_held"] == 0)
    });
    let mut messages = heard.messages();
    messages.retain(|message| message.json()["assignment_id"] != last.assignment_id());
    assert_left_by_their_rows(&corpus, &caf_testkit::Collector::of(messages));
}

#[test]
fn a_worker_that_leaves_runs_what_it_has_taken() {
    let mut node = start(|worker| worker.env("WORKER_IO_POOL_SIZE", 1));
    let heard = node.client.collect_answers().expect("listens");
    let load = jobs(5, |_| AssignmentBuilder::sleep(200));
    node.client.assign_all(&load).expect("are sent");
    heard.wait_for(ACK, 5, SOON).expect("are accepted");
    node.worker.terminate().expect("is told");
    assert_eq!(node.worker.wait_exit(SOON).expect("ends").code(), Some(0));
    heard.wait_for(RESULT, 5, SOON).expect("are answered");
    assert_each_answered_once(&heard, &load);
    assert_eq!(statuses(&heard)["success"], 5);
}

#[test]
fn at_the_soft_limit_what_runs_is_cancelled_and_what_waits_is_refused() {
    let mut node = start(|worker| {
        worker
            .env("WORKER_IO_POOL_SIZE", 1)
            .env("WORKER__DRAIN__SOFT_S", 1)
    });
    let heard = node.client.collect_answers().expect("listens");
    let load = jobs(3, |_| AssignmentBuilder::sleep(10_000));
    node.client.assign_all(&load).expect("are sent");
    heard.wait_for(ACK, 3, SOON).expect("are accepted");
    node.worker.terminate().expect("is told");
    assert_eq!(node.worker.wait_exit(SOON).expect("ends").code(), Some(0));
    heard.wait_for(RESULT, 3, SOON).expect("are answered");
    assert_each_answered_once(&heard, &load);
    let mut codes: Vec<_> = heard
        .on(RESULT)
        .iter()
        .map(|result| result["error_code"].to_string())
        .collect();
    codes.sort();
    assert_eq!(
        codes,
        [
            "\"CANCELLED_BY_USER\"",
            "\"SYSTEM_OVERLOAD\"",
            "\"SYSTEM_OVERLOAD\""
        ]
    );
}

#[test]
fn after_a_restart_of_the_broker_assignments_arrive_again() {
    let mut node = start(|worker| worker);
    let heard = node.client.collect_answers().expect("listens");
    let during = AssignmentBuilder::sleep(700);
    node.client.assign(&during).expect("is sent");
    heard.wait_for(ACK, 1, SOON).expect("is accepted");
    node.nats.restart().expect("restarts");
    node.worker.wait_ready().expect("becomes ready again");
    let after = [AssignmentBuilder::echo()];
    wait_until("somebody answers", SOON, || {
        // Nobody keeps what is sent while the worker is not subscribed yet.
        node.client.assign(&after[0]).is_ok() && !heard.results(after[0].assignment_id()).is_empty()
    });
    wait_until("the job that ran on is answered", SOON, || {
        !heard.results(during.assignment_id()).is_empty()
    });
    assert_eq!(heard.objections(), Vec::<String>::new());
}
