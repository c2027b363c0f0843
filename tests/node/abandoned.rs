//! Assignments that the broker gives up delivering: a consumer that an operator made with a limit, and clients that are
//! not ours.

use caf_testkit::client::{ASSIGN, Message};
use caf_testkit::wait::poll;
use caf_testkit::{AssignmentBuilder, Client, NatsServer, Worker, wait_until};
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::support::{ASSIGNMENTS, CONSUMER, LETTERS, SOON, ready_worker};

const GIVEN_UP: &str = "Assignment given up by the broker";

/// A broker whose operator has made the stream, and a consumer that delivers twice.
fn limited() -> (NatsServer, Client) {
    limited_with(&[ASSIGN])
}

/// As [`limited`], with other subjects in the stream.
fn limited_with(subjects: &[&str]) -> (NatsServer, Client) {
    let nats = NatsServer::start().expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    let stream = json!({"name": ASSIGNMENTS, "subjects": subjects, "retention": "workqueue"});
    client
        .jetstream_api(&format!("STREAM.CREATE.{ASSIGNMENTS}"), &stream)
        .expect("is created");
    let consumer = json!({
        "stream_name": ASSIGNMENTS,
        "config": {
            "durable_name": CONSUMER, "ack_policy": "explicit", "max_deliver": 2, "ack_wait": 2_000_000_000_u64,
            "filter_subject": ASSIGN,
        },
    });
    client
        .jetstream_api(
            &format!("CONSUMER.DURABLE.CREATE.{ASSIGNMENTS}.{CONSUMER}"),
            &consumer,
        )
        .expect("is created");
    (nats, client)
}

/// A client that is not ours takes the next message; its reply subject.
fn take(client: &Client) -> Option<String> {
    let nats = client.nats();
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{ASSIGNMENTS}.{CONSUMER}");
    let body = r#"{"batch":1,"no_wait":true}"#;
    // Not a request: what is delivered keeps the subject that it was published on.
    let answer = client.run(async move {
        let inbox = nats.new_inbox();
        let mut answers = nats.subscribe(inbox.clone()).await.ok()?;
        nats.publish_with_reply(subject, inbox, body.into()).await.ok()?;
        answers.next().await
    });
    let answer = answer.expect("is answered").expect("the broker answers");
    answer.reply.map(|reply| reply.to_string())
}

/// As [`take`], when a message is on its way: what was published is stored a moment later.
fn take_next(client: &Client) -> String {
    poll(SOON, || take(client)).expect("there is a message")
}

/// Gives the next message back as often as its consumer delivers it, until the broker has given it up.
fn exhaust(client: &Client) {
    let before = pending(client);
    for _ in 0..2 {
        let reply = take_next(client);
        client.publish(&reply, &[], "-NAK").expect("is sent");
    }
    wait_until("the broker gives it up", SOON, || {
        assert_eq!(take(client), None);
        pending(client) == before
    });
}

/// Says in the broker's name that it gave a message up, as every client can.
fn forge(client: &Client, kind: &str, word: &str, sequence: u64) {
    let subject = format!("$JS.EVENT.ADVISORY.CONSUMER.{kind}.{ASSIGNMENTS}.{CONSUMER}");
    let advisory = json!({
        "type": format!("io.nats.jetstream.advisory.v1.{word}"), "id": "x", "stream": ASSIGNMENTS,
        "consumer": CONSUMER, "stream_seq": sequence, "deliveries": 9,
    });
    client
        .publish(&subject, &[], advisory.to_string())
        .expect("is sent");
}

fn pending(client: &Client) -> usize {
    let consumer = client.consumer(ASSIGNMENTS, CONSUMER);
    consumer.expect("there is a consumer").ack_pending
}

fn letters(client: &Client) -> Vec<Message> {
    match client.stream(LETTERS).expect("the broker answers") {
        Some(_) => client.stream_messages(LETTERS).expect("can be read"),
        None => Vec::new(),
    }
}

fn given_up(worker: &Worker) -> Vec<Value> {
    let mut logs = worker.logs();
    logs.retain(|log| log["message"] == GIVEN_UP);
    logs
}

#[track_caller]
fn assert_letter(letter: &Message, job: &AssignmentBuilder, sequence: u64) {
    let body = letter.json();
    assert_eq!(
        letter.header("Nats-Msg-Id"),
        Some(format!("{ASSIGNMENTS}.{sequence}.dlq").as_str())
    );
    assert_eq!(
        (&body["reason"], &body["error_code"], &body["assignment_id"]),
        (
            &json!("max_deliver"),
            &json!("INTERNAL_ERROR"),
            &json!(job.assignment_id())
        )
    );
    assert_eq!(body["original_payload"], job.value().to_string());
}

#[test]
fn what_the_broker_gave_up_while_nobody_listened_has_one_letter_with_two_workers() {
    let (nats, client) = limited();
    let lost = AssignmentBuilder::echo();
    client.assign(&lost).expect("is sent");
    exhaust(&client);

    let workers = [ready_worker(&nats, |w| w), ready_worker(&nats, |w| w)];
    wait_until("it is found", SOON, || {
        !workers.iter().all(|worker| given_up(worker).is_empty())
    });
    for log in workers.iter().flat_map(given_up) {
        assert_eq!(log["context"]["found"], "left behind");
    }
    let well = AssignmentBuilder::echo();
    client.assign(&well).expect("is sent");
    wait_until("the letter is kept and the others go on", SOON, || {
        let answered = crate::support::answers(&client).results(well.assignment_id());
        !letters(&client).is_empty() && !answered.is_empty()
    });
    let kept = letters(&client);
    assert_eq!(kept.len(), 1);
    assert_letter(&kept[0], &lost, 1);
    wait_until("what is answered is removed", SOON, || {
        client.stream_count(ASSIGNMENTS).is_ok_and(|count| count == 0)
    });
    let results = crate::support::answers(&client).results(lost.assignment_id());
    assert_eq!(results.len(), 1, "{results:?}");
}

#[test]
fn of_an_advisory_one_worker_of_two_hears_and_keeps_one_letter() {
    let (nats, client) = limited();
    // Workers that are busy leave the next messages to others.
    let full = |w: caf_testkit::worker::WorkerBuilder| w.env("WORKER__LIMITS__MAX_HELD", 1);
    let mut workers = [ready_worker(&nats, full), ready_worker(&nats, full)];
    let long = [AssignmentBuilder::sleep(10_000), AssignmentBuilder::sleep(10_000)];
    client.assign_all(&long).expect("are sent");
    wait_until("both are busy", SOON, || pending(&client) == 2);

    let lost = AssignmentBuilder::echo();
    client.assign(&lost).expect("is sent");
    exhaust(&client);
    // What is terminated, a work queue forgets: the log is all that remains.
    client.assign(&AssignmentBuilder::echo()).expect("is sent");
    let reply = take_next(&client);
    client.publish(&reply, &[], "+TERM").expect("is sent");
    let gone = "Assignment terminated by another client and gone";
    wait_until("one of them says so", SOON, || {
        workers
            .iter()
            .flat_map(Worker::logs)
            .any(|log| log["message"] == gone && log["context"]["stream_sequence"] == 4)
    });
    // The audit has the last word, and it can tell when nothing is in work.
    wait_until("the letter is kept", SOON, || !letters(&client).is_empty());
    let heard = || -> Vec<Value> { workers.iter().flat_map(given_up).collect() };
    wait_until("the log has arrived", SOON, || !heard().is_empty());
    let heard = heard();
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert_eq!(heard[0]["context"]["found"], "exhausted");
    let kept = letters(&client);
    assert_eq!(kept.len(), 1);
    assert_letter(&kept[0], &lost, 3);
    assert_eq!(kept[0].json()["error"]["details"]["deliveries"], 2);
    assert!(workers.iter_mut().all(Worker::is_running));
}

#[test]
fn what_was_given_up_is_answered_and_removed_and_what_is_in_work_is_left_alone() {
    let (nats, client) = limited();
    let jobs = [
        AssignmentBuilder::echo(),
        AssignmentBuilder::echo(),
        AssignmentBuilder::echo(),
    ];
    client.assign(&jobs[0]).expect("is sent");
    exhaust(&client);
    client.assign(&jobs[1]).expect("is sent");
    let done = take_next(&client);
    client.publish(&done, &[], "+ACK").expect("is sent");
    client.assign(&jobs[2]).expect("is sent");
    take_next(&client);

    let _worker = ready_worker(&nats, |w| w);
    wait_until("all are dealt with", SOON, || {
        client.stream_count(ASSIGNMENTS).is_ok_and(|count| count == 0)
    });
    let kept = letters(&client);
    assert_eq!(kept.len(), 1);
    assert_letter(&kept[0], &jobs[0], 1);
    let answers = crate::support::answers(&client);
    let given_up = &answers.results(jobs[0].assignment_id())[0];
    assert_eq!(
        (&given_up["status"], &given_up["error_code"]),
        (&json!("error"), &json!("INTERNAL_ERROR"))
    );
    let ack = &answers.acks(jobs[0].assignment_id())[0];
    assert_eq!(
        (&ack["status"], &ack["message"]),
        (&json!("rejected"), &json!("attempts_exhausted"))
    );
    assert!(answers.results(jobs[1].assignment_id()).is_empty());
    let in_work = &answers.results(jobs[2].assignment_id())[0];
    assert_eq!(in_work["status"], "success");
    assert_eq!(answers.objections(), Vec::<String>::new());
}

#[test]
fn forged_advisories_leave_what_waits_what_is_in_work_and_what_is_not_ours_alone() {
    const ORDERS: &str = "other.orders";
    let (nats, client) = limited_with(&[ASSIGN, ORDERS]);
    let worker = ready_worker(&nats, |w| w.env("WORKER__LIMITS__MAX_HELD", 1));
    let jobs = [
        AssignmentBuilder::sleep(6_000),
        AssignmentBuilder::echo(),
        AssignmentBuilder::echo(),
    ];
    client.assign_stored(&jobs[0]).expect("is stored");
    wait_until("the worker is busy", SOON, || pending(&client) == 1);
    client.assign_stored(&jobs[1]).expect("is stored");
    client.publish(ORDERS, &[], "1").expect("is sent");
    wait_until("the order is stored", SOON, || {
        client.stream_count(ASSIGNMENTS).is_ok_and(|count| count == 3)
    });
    client.assign_stored(&jobs[2]).expect("is stored");
    for sequence in 1..=4 {
        forge(&client, "MAX_DELIVERIES", "max_deliver", sequence);
        forge(&client, "MSG_TERMINATED", "terminated", sequence);
    }

    wait_until("all are answered", SOON, || {
        let answers = crate::support::answers(&client);
        jobs.iter()
            .all(|job| !answers.results(job.assignment_id()).is_empty())
    });
    // Again, now that everything before and after the order was delivered.
    forge(&client, "MAX_DELIVERIES", "max_deliver", 3);
    forge(&client, "MSG_TERMINATED", "terminated", 3);
    // One that was really given up is found after all of them.
    let long = AssignmentBuilder::sleep(6_000);
    client.assign_stored(&long).expect("is stored");
    wait_until("the worker is busy", SOON, || pending(&client) == 1);
    let lost = AssignmentBuilder::echo();
    client.assign_stored(&lost).expect("is stored");
    exhaust(&client);
    wait_until("it is found", SOON, || !letters(&client).is_empty());

    let answers = crate::support::answers(&client);
    for job in &jobs {
        let results = answers.results(job.assignment_id());
        assert_eq!((results.len(), &results[0]["status"]), (1, &json!("success")));
    }
    assert_letter(&letters(&client)[0], &lost, 6);
    assert_eq!(letters(&client).len(), 1);
    assert_eq!(given_up(&worker).len(), 1, "{:?}", given_up(&worker));
    wait_until("only the order is left", SOON, || {
        client.stream_count(ASSIGNMENTS).is_ok_and(|count| count == 1)
    });
    assert_eq!(
        client.stream_messages(ASSIGNMENTS).expect("can be read")[0].subject,
        ORDERS
    );
}

#[test]
fn advisories_of_impossible_messages_do_not_stop_the_watch() {
    let (nats, client) = limited();
    let worker = ready_worker(&nats, |w| w.env("WORKER__LIMITS__MAX_HELD", 1));
    let long = AssignmentBuilder::sleep(6_000);
    client.assign_stored(&long).expect("is stored");
    wait_until("the worker is busy", SOON, || pending(&client) == 1);
    for sequence in [0, 1_000_000, u64::MAX] {
        forge(&client, "MAX_DELIVERIES", "max_deliver", sequence);
        forge(&client, "MSG_TERMINATED", "terminated", sequence);
    }
    let lost = AssignmentBuilder::echo();
    client.assign_stored(&lost).expect("is stored");
    exhaust(&client);
    wait_until("it is found", SOON, || !letters(&client).is_empty());
    assert_letter(&letters(&client)[0], &lost, 2);
    let interrupted = "Watch over abandoned assignments interrupted";
    assert!(worker.logs().iter().all(|log| log["message"] != interrupted));
}
