//! The log of a node as a process: settings read again under load, a reader that has stopped, files that fill up or are
//! moved away, lines of dependencies, and the script that checks all of it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::process::Command;

use caf_testkit::worker::Finished;
use caf_testkit::{AssignmentBuilder, Client, NatsOptions, NatsServer, TempDir, Worker, wait_until};
use serde_json::{Value, json};

use crate::deploy::shipped;
use crate::support::{
    ASSIGNMENTS, CONSUMER, Node, SOON, assert_each_answered_once, jobs, program, wait_answered,
};

/// The settings of one reading.
fn settings(text: &str) -> String {
    format!("[limits]\nmax_held = 500\n{text}\n")
}

/// Waits until a worker has made what it consumes from, and listens.
fn wait_consuming(client: &Client) {
    wait_until("it consumes", SOON, || {
        let consumer = client.consumer(ASSIGNMENTS, CONSUMER);
        consumer.is_ok()
    });
}

#[test]
fn a_sighup_under_load_changes_what_may_change_names_the_rest_and_loses_no_job() {
    let mut node = Node::start_with(|worker| worker.file("config/worker.toml", settings("")));
    let file = node.worker.directory().join("config/worker.toml");
    let load = jobs(200, |_| AssignmentBuilder::sleep(20));
    node.client.assign_all(&load).expect("are sent");
    assert!(!node.worker.logs().iter().any(|log| log["level"] == "DEBUG"));

    let changed = "[outputs]\nspill = \"off\"\n[log]\nlevel = \"warn\"\n[log.levels]\npublisher = \"debug\"\nblock_worker = \"debug\"\n[tenants]\nallowed = [\"nobody-else\"]";
    std::fs::write(&file, settings(changed)).expect("is written");
    node.worker.hang_up().expect("is told");
    let refused = node
        .worker
        .wait_for_message("Changed setting needs a restart")
        .expect("is named");
    assert_eq!(refused["context"]["key"], "outputs.spill");
    assert_eq!(refused["context"]["source"], "file config/worker.toml");
    // The summary is an information, and those are no longer written: what it names is in force all the same.
    let probe = AssignmentBuilder::echo();
    node.client
        .assign_all(std::slice::from_ref(&probe))
        .expect("is sent");
    node.worker
        .wait_for_log(|log| {
            log["context"]["assignment_id"] == probe.assignment_id() && log["level"] == "WARN"
        })
        .expect("the tenant is not allowed any more");

    // A broken file changes nothing.
    let broken = "[log]\nlevel = \"loud\"\n[tenants]\nallowed = []";
    std::fs::write(&file, settings(broken)).expect("is written");
    node.worker.hang_up().expect("is told");
    let refused = node
        .worker
        .wait_for_message("Settings not reloaded")
        .expect("is said");
    let context = &refused["context"];
    assert_eq!(
        (&context["source"], &context["key"]),
        (&json!("file config/worker.toml"), &json!("log.level"))
    );
    assert!(
        context["rule"]
            .as_str()
            .is_some_and(|rule| rule.contains("error, warn, info, debug")),
        "{context}"
    );

    // And back.
    std::fs::write(&file, settings("")).expect("is written");
    node.worker.hang_up().expect("is told");
    let applied = node
        .worker
        .wait_for_message("Settings reloaded")
        .expect("is said");
    let keys: Vec<_> = applied["context"]["applied"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| entry["key"].clone())
        .collect();
    assert_eq!(keys, ["log.level", "log.levels", "tenants.allowed"], "{applied}");
    assert_eq!(applied["context"]["need_restart"], 0);
    let last = AssignmentBuilder::echo();
    let all = [load, vec![probe, last]].concat();
    node.client.assign_all(&all[all.len() - 1..]).expect("is sent");
    node.wait_answered(&all, SOON);
    assert_each_answered_once(&node.answers(), &all);
    assert!(node.worker.is_running());
}

#[test]
fn while_nobody_reads_the_log_jobs_go_on_and_no_warning_is_lost_to_the_end() {
    let nats = NatsServer::start_with(NatsOptions::jetstream()).expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    let directory = TempDir::new("deaf").expect("can be made");
    let fifo = directory.path().join("out");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .expect("is there")
            .success()
    );
    let start = || {
        Worker::builder("/bin/sh")
            .args(["-c", "exec \"$0\" \"$@\" >out", env!("CARGO_BIN_EXE_caf-worker")])
            .serve(&nats)
            .env("LOG_LEVEL", "debug")
            .current_dir(directory.path())
            .start()
            .expect("starts")
    };
    let mut worker = start();
    // Whoever opens it waits for the other end; nothing is read until the worker has left.
    let mut reader = File::open(&fifo).expect("opens");
    let refused = jobs(300, |_| {
        AssignmentBuilder::new("no.such.type", json!({})).set("version", "9".into())
    });
    let load = [jobs(300, |_| AssignmentBuilder::echo()), refused.clone()].concat();
    wait_consuming(&client);
    client.assign_all(&load).expect("are sent");
    wait_answered(&client, &load, SOON);
    worker.terminate().expect("is told");
    assert_eq!(worker.wait_exit(SOON).expect("ends").code(), Some(0));
    let Finished { lines, .. } = worker.finish(SOON).expect("is over");

    let mut taken = String::new();
    reader.read_to_string(&mut taken).expect("is read");
    let left = std::fs::read_to_string(directory.path().join("state/log-unwritten.jsonl")).expect("is there");
    let errors = lines.into_iter().map(|line| line.text);
    let said: Vec<Value> = taken
        .lines()
        .chain(left.lines())
        .map(str::to_owned)
        .chain(errors)
        .filter_map(|line| serde_json::from_str(&line).ok())
        .collect();
    let warned: BTreeSet<&str> = said
        .iter()
        .filter(|log| log["level"] == "WARN")
        .filter_map(|log| log["context"]["assignment_id"].as_str())
        .collect();
    let missing = refused
        .iter()
        .filter(|job| !warned.contains(job.assignment_id()))
        .count();
    assert_eq!(missing, 0, "of {}", refused.len());
    assert!(!left.contains("\"DEBUG\""), "what does not matter is not left");

    let mut successor = start();
    let reader = File::open(&fifo).expect("opens");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(reader));
    let told = lines.find(|line| {
        line.as_ref()
            .is_ok_and(|line| line.contains("left log lines that nobody took"))
    });
    assert!(told.is_some());
    successor.kill();
}

#[test]
fn a_disk_without_room_for_the_log_stops_nothing_and_warnings_go_to_standard_error() {
    let nats = NatsServer::start_with(NatsOptions::jetstream()).expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    let mut worker = program()
        .serve(&nats)
        .env("WORKER__LOG__FILE", "/dev/full")
        .start()
        .expect("starts");
    worker.wait_for_message("Log cannot be written").expect("is said");
    let refused = [AssignmentBuilder::echo().set("version", "9".into())];
    wait_consuming(&client);
    client.assign_all(&refused).expect("is sent");
    worker
        .wait_for_log(|log| log["context"]["assignment_id"] == refused[0].assignment_id())
        .expect("is on standard error");
    wait_answered(&client, &refused, SOON);
    assert!(worker.is_running());
}

#[test]
fn a_log_file_that_was_moved_away_is_made_anew_at_a_sighup() {
    let nats = NatsServer::start_with(NatsOptions::jetstream()).expect("the broker starts");
    let mut worker = program()
        .serve(&nats)
        .env("WORKER__LOG__FILE", "worker.log")
        .start()
        .expect("starts");
    let (file, moved) = (
        worker.directory().join("worker.log"),
        worker.directory().join("worker.log.1"),
    );
    let has = |path: &std::path::Path, text: &str| {
        std::fs::read_to_string(path).is_ok_and(|log| log.contains(text))
    };
    wait_until("it runs", SOON, || has(&file, "Worker runtime running"));
    std::fs::rename(&file, &moved).expect("is moved");
    worker.hang_up().expect("is told");
    wait_until("it goes on in a new file", SOON, || {
        has(&file, "Settings reloaded")
    });
    assert!(!has(&moved, "Settings reloaded") && worker.is_running());
}

#[test]
fn the_script_is_content_with_a_working_node_and_tells_the_rest_by_its_exit_code() {
    let mut node = Node::start_with(|worker| worker.env("LOG_LEVEL", "debug"));
    let secret = "s3cret-of-a-tenant";
    let job = [AssignmentBuilder::new(
        "echo",
        json!({"password": secret, "note": secret}),
    )];
    node.client.assign_all(&job).expect("is sent");
    node.wait_answered(&job, SOON);
    let directory = TempDir::new("observed").expect("can be made");
    let log = directory.path().join("worker.log");
    let text: String = node
        .worker
        .lines()
        .iter()
        .map(|line| format!("{}\n", line.text))
        .collect();
    std::fs::write(&log, &text).expect("is written");
    let port = node.worker.health_port().expect("is logged");
    let validate = |url: &str, secret: &str| {
        let ran = Command::new(shipped("scripts/observability/validate_observability.sh"))
            .args(["--secret", secret, "--log"])
            .arg(&log)
            .env("CAF_WORKER_BIN", env!("CARGO_BIN_EXE_caf-worker"))
            .env("WORKER_URL", url)
            .env("WORKER_METRICS_URL", "http://127.0.0.1:1/metrics")
            .output()
            .expect("can be started");
        let said = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
        (ran.status.code(), said)
    };
    let url = format!("http://127.0.0.1:{port}");
    let (code, said) = validate(&url, secret);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.ends_with("[OK] passed\n"), "{said}");
    let (code, said) = validate("http://127.0.0.1:1", secret);
    assert_eq!(code, Some(2), "{said}");
    // Something that is in the log: it would be found.
    let (code, said) = validate(&url, job[0].assignment_id());
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("holds the secret number 1") && !said.contains(job[0].assignment_id()),
        "{said}"
    );
    // Nothing to judge is nothing passed.
    let kept = log.with_extension("kept");
    std::fs::rename(&log, &kept).expect("is there");
    let (code, said) = validate(&url, secret);
    assert!(
        code == Some(1) && said.contains("no file that can be read"),
        "{said}"
    );
    std::fs::write(&log, "").expect("is written");
    let (code, said) = validate(&url, secret);
    assert!(code == Some(1) && said.contains("is empty"), "{said}");
    // Doctored.
    std::fs::write(
        &log,
        text.replace("\"component\":\"worker\"", "\"component\":\"router\""),
    )
    .expect("is written");
    let (code, said) = validate(&url, secret);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("component must be"), "{said}");
}
