//! `exec` and `submit`, as somebody at a terminal or in a script meets them.

use std::path::{Path, PathBuf};

use caf_testkit::client::{ACK, DLQ, Message, RESULT};
use caf_testkit::malformed::Malformed;
use caf_testkit::worker::Finished;
use caf_testkit::{AssignmentBuilder, Collector, NatsServer, malformed};
use serde_json::{Value, json};

use crate::answering::{MAX_PAYLOAD, assert_left_by_their_rows};
use crate::support::{ANSWER_SUBJECTS, Node, SOON, assert_each_answered_once, jobs, program, ready_worker};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// One assignment per line.
fn lines(assignments: &[AssignmentBuilder]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for assignment in assignments {
        bytes.extend(assignment.bytes());
        bytes.push(b'\n');
    }
    bytes
}

/// What was printed, as messages; every line must be one.
fn printed(finished: &Finished) -> Collector {
    let message = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let keys: Vec<_> = line.as_object().expect("is an object").keys().collect();
        assert_eq!(keys, ["headers", "payload", "subject"], "{line}");
        let headers = line["headers"].as_object().expect("is an object");
        let subject = line["subject"].as_str().expect("is text").to_owned();
        assert!(ANSWER_SUBJECTS.contains(&subject.as_str()), "{subject}");
        Message {
            subject,
            headers: headers
                .iter()
                .map(|(name, value)| (name.clone(), value.as_str().expect("is text").to_owned()))
                .collect(),
            payload: line["payload"].to_string().into_bytes(),
        }
    };
    Collector::of(finished.stdout().lines().map(message).collect())
}

fn exec(input: impl Into<Vec<u8>>) -> Finished {
    program()
        .args(["exec", "-"])
        .stdin(input)
        .run(SOON)
        .expect("ends by itself")
}

#[test]
fn the_examples_run_without_any_server_and_all_succeed() {
    let run = |file: &str| {
        let finished = program()
            .arg("exec")
            .arg(example(file))
            .run(SOON)
            .expect("ends by itself");
        assert_eq!(finished.code(), Some(0), "{file}: {}", finished.stderr());
        finished
    };
    run("demo.jsonl");
    let finished = run("assignments.jsonl");
    let answers = printed(&finished);
    let count = std::fs::read_to_string(example("assignments.jsonl"))
        .expect("is there")
        .lines()
        .count();
    assert_eq!(
        (
            answers.on(ACK).len(),
            answers.on(RESULT).len(),
            answers.on(DLQ).len()
        ),
        (count, count, 0)
    );
    assert!(
        answers
            .on(RESULT)
            .iter()
            .all(|result| result["status"] == "success")
    );
    assert_eq!(answers.objections(), Vec::<String>::new());
}

#[test]
fn the_examples_of_failures_show_every_category_and_exit_with_one() {
    let finished = program()
        .arg("exec")
        .arg(example("failures.jsonl"))
        .run(SOON)
        .expect("ends by itself");
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
    let answers = printed(&finished);
    assert!(
        answers
            .on(RESULT)
            .iter()
            .all(|result| result["status"] != "success")
    );
    let codes: Vec<String> = answers
        .on(RESULT)
        .iter()
        .map(|result| result["error_code"].to_string())
        .collect();
    // One of each category (contract 6.1): validation, execution, network, system, cancellation.
    for code in [
        "MISSING_REQUIRED_FIELD",
        "EXECUTION_FAILED",
        "NETWORK_ERROR",
        "INTERNAL_ERROR",
        "CANCELLED_BY_TIMEOUT",
    ] {
        assert!(codes.iter().any(|seen| seen.contains(code)), "{code}: {codes:?}");
    }
    assert_eq!(answers.objections(), Vec::<String>::new());
}

#[test]
fn whatever_bytes_exec_is_given_each_line_leaves_by_its_row() {
    let mut corpus = malformed();
    // A line feed ends an assignment here, and an empty line is none.
    corpus.retain(|message| !message.bytes.contains(&b'\n') && !message.bytes.trim_ascii().is_empty());
    // What a broker could not carry is no success (row 15), whatever the corpus says of it.
    let too_large =
        |message: &Malformed| message.bytes.len() > MAX_PAYLOAD && message.assignment_id.is_some();
    let mut input = Vec::new();
    for message in &corpus {
        input.extend_from_slice(&message.bytes);
        input.push(b'\n');
    }
    let finished = exec(input);
    assert_eq!(finished.code(), Some(1));
    let mut messages = printed(&finished).messages();
    let all = Collector::of(messages.clone());
    let (large, corpus): (Vec<_>, Vec<_>) = corpus.into_iter().partition(too_large);
    assert!(!large.is_empty());
    for id in large
        .iter()
        .filter_map(|message| message.assignment_id.as_deref())
    {
        assert_eq!((all.acks(id).len(), all.results(id).len()), (1, 1), "{id}");
        messages.retain(|message| message.json()["assignment_id"] != id);
    }
    assert_left_by_their_rows(&corpus, &Collector::of(messages));
}

#[test]
fn ten_megabytes_through_exec_are_an_error_with_size_and_hash_and_not_a_crash() {
    let job = AssignmentBuilder::new("echo", json!({"text": "x".repeat(10 * 1024 * 1024)}));
    let finished = exec(lines(std::slice::from_ref(&job)));
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
    let answers = printed(&finished);
    let result = &answers.results(job.assignment_id())[0];
    assert_eq!(
        (&result["status"], &result["error_code"]),
        (&json!("error"), &json!("RESOURCE_UNAVAILABLE"))
    );
    assert!(
        result["error"]["details"]["outputs_bytes"].as_u64() > Some(10 * 1024 * 1024),
        "{result}"
    );
    assert_eq!(answers.objections(), Vec::<String>::new());
}

#[test]
fn exec_answers_every_line_once_and_says_how_a_wrong_call_ends() {
    let load = jobs(200, |_| AssignmentBuilder::echo());
    let finished = exec(lines(&load));
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    assert_each_answered_once(&printed(&finished), &load);
    for (arguments, code, said) in [
        (vec!["exec", "absent.jsonl"], 64, "absent.jsonl"),
        (vec!["exec"], 64, "FILE"),
        (vec!["exec", "-", "--set", "nats.urll=x"], 78, "nats.url"),
        (
            vec!["exec", "-", "--set", "blocks.http.ca_file=/no/such.pem"],
            78,
            "blocks.http.ca_file",
        ),
        (
            vec!["exec", "-", "--set", "worker.sandbox.recordings=/no/such"],
            78,
            "worker.sandbox.recordings",
        ),
    ] {
        let finished = program()
            .args(arguments.clone())
            .run(SOON)
            .expect("ends by itself");
        assert_eq!(finished.code(), Some(code), "{arguments:?}");
        assert!(
            finished.stderr().contains(said),
            "{arguments:?}: {}",
            finished.stderr()
        );
        assert_eq!(finished.stdout(), "", "{arguments:?}");
    }
}

#[test]
fn submit_sends_prints_and_sums_up() {
    let node = Node::start();
    let submit = |output: &str, load: &[AssignmentBuilder]| {
        program()
            .args(["submit", "-", "--output", output, "--timeout-s", "20"])
            .env("NATS_URL", node.nats.url())
            .stdin(lines(load))
            .run(SOON)
            .expect("ends by itself")
    };
    let good = jobs(3, |_| AssignmentBuilder::echo());
    let finished = submit("text", &good);
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    let out = finished.stdout();
    assert!(
        out.contains("sent 3; acks: 3 accepted; results: 3 success"),
        "{out}"
    );
    assert!(out.contains("p50") && out.contains("p99"), "{out}");

    // The worker answers again, and the stream drops what it has: submit hears it all the same.
    let again = submit("text", &good);
    assert_eq!(again.code(), Some(0), "{}", again.stderr());
    assert!(
        again.stdout().contains("results: 3 success"),
        "{}",
        again.stdout()
    );

    let bad = [
        AssignmentBuilder::echo(),
        AssignmentBuilder::new("no.such.type", json!({})),
    ];
    let finished = submit("json", &bad);
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
    assert_each_answered_once(&printed(&finished), &bad);
    let all: Vec<_> = good.into_iter().chain(bad).collect();
    assert_each_answered_once(&node.answers(), &all);
}

#[test]
fn submit_tells_what_is_not_stored_from_what_is_not_heard_of_and_what_is_not_finished() {
    let nats = NatsServer::start().expect("the broker starts");
    let submit = |job: &AssignmentBuilder| {
        program()
            .args(["submit", "-", "--timeout-s", "2"])
            .env("NATS_URL", nats.url())
            .stdin(lines(std::slice::from_ref(job)))
            .run(SOON)
            .expect("ends by itself")
    };
    let unheard = submit(&AssignmentBuilder::echo());
    assert_eq!(unheard.code(), Some(1));
    let said = unheard.stderr();
    assert!(
        said.contains("no stream stores what is sent to caf.exec.assign.v1"),
        "{said}"
    );
    assert!(
        said.contains("is a worker running?") && !said.contains("acknowledged"),
        "{said}"
    );

    let _worker = ready_worker(&nats, |worker| worker);
    let slow = AssignmentBuilder::sleep(20_000);
    let unfinished = submit(&slow);
    assert_eq!(unfinished.code(), Some(1));
    let said = unfinished.stderr();
    let reason = format!(
        "no result for {}: acknowledged, no result within 2 s",
        slow.assignment_id()
    );
    assert!(said.contains(&reason), "{said}");
    assert!(
        !said.contains("is a worker running?") && !said.contains("no stream"),
        "{said}"
    );
}

#[test]
fn submit_without_broker_or_file_says_so_and_ends() {
    let finished = program()
        .args(["submit", "-"])
        .env("NATS_URL", "nats://127.0.0.1:1")
        .env("WORKER__NATS__CONNECT_DEADLINE_MS", 200)
        .run(SOON)
        .expect("ends by itself");
    assert_eq!(finished.code(), Some(69), "{}", finished.stderr());
    assert!(finished.stderr().contains("127.0.0.1:1"), "{}", finished.stderr());
    let finished = program()
        .args(["submit", "absent.jsonl"])
        .run(SOON)
        .expect("ends by itself");
    assert_eq!(finished.code(), Some(64));
}
