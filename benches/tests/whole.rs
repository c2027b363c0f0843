//! The generator and the scripts, run as somebody runs them who measures: with a real broker, and with a worker where the
//! scripts start one.
//!
//! Neighbours: counting and judging by themselves are tested beside their code. Nothing here says how fast anything is.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use caf_bench::streams;
use caf_testkit::wait::poll;
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{NatsServer, TempDir, Worker, wait_until};
use serde_json::Value;

/// Longest wait for what is on its way: debug builds, two cores, many tests at once.
const SOON: Duration = Duration::from_secs(60);

fn bench() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_caf-bench"))
}

/// The worker that was built beside this test, or the one that is named.
fn worker() -> PathBuf {
    let named = std::env::var_os("CAF_WORKER_BIN").map(PathBuf::from);
    let worker = named.unwrap_or_else(|| bench().with_file_name("caf-worker"));
    assert!(
        worker.is_file(),
        "no {}: cargo build --bin caf-worker, or cargo test --workspace",
        worker.display()
    );
    worker
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../scripts")
        .join(name)
}

/// What `caf-bench` says when it is run with these words.
fn say(words: &[&str]) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(bench())
        .args(words)
        .output()
        .expect("can be started");
    let errors = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{words:?}: {errors}");
    String::from_utf8_lossy(&stdout).into_owned()
}

/// 700 assignments for a bare loop with these options, as counted.
fn counted(nats: &NatsServer, options: &[&str]) -> Value {
    let url = nats.url();
    let words = ["bare", "--url", &url].into_iter().chain(options.iter().copied());
    let bare = Worker::builder(bench()).args(words).start().expect("starts");
    let is_ready = || bare.lines().iter().any(|line| line.text == "ready");
    wait_until("the loop is ready", SOON, is_ready);
    let text = say(&[
        "generate",
        "--url",
        &url,
        "--count",
        "700",
        "--window",
        "1000",
        "--warm-up",
        "0",
        "--patience",
        "2",
        "--watch",
        &format!("bare={}", bare.id()),
    ]);
    serde_json::from_str(&text).expect("is JSON")
}

fn number(measured: &Value, key: &str) -> u64 {
    measured[key]
        .as_u64()
        .unwrap_or_else(|| panic!("no {key} in {measured}"))
}

#[test]
fn what_a_loop_drops_and_doubles_is_counted_and_what_it_does_right_too() {
    let nats = NatsServer::start().expect("the broker starts");
    say(&["renew", "--url", &nats.url()]);
    let honest = counted(&nats, &[]);
    for (key, expected) in [
        ("sent", 700),
        ("answered", 700),
        ("missing", 0),
        ("duplicated", 0),
        ("foreign", 0),
    ] {
        assert_eq!(number(&honest, key), expected, "{key}: {honest}");
    }
    assert_eq!(honest["statuses"]["success"], 700);
    assert_eq!(
        (&honest["acks"]["accepted"], number(&honest, "acks_missing")),
        (&700.into(), 0)
    );
    assert!(
        number(&honest["used"]["bare"]["at_end"], "peak_kib") > 0,
        "{honest}"
    );

    say(&["renew", "--url", &nats.url()]);
    let faulty = counted(&nats, &["--drop-every", "10", "--double-every", "7"]);
    // Every tenth is dropped, also when it is a seventh.
    for (key, expected) in [
        ("answered", 630),
        ("missing", 70),
        ("duplicated", 90),
        ("acks_missing", 0),
    ] {
        assert_eq!(number(&faulty, key), expected, "{key}: {faulty}");
    }
}

#[test]
fn what_waits_in_the_stream_before_anybody_works_is_drained_and_counted() {
    let nats = NatsServer::start().expect("the broker starts");
    let url = nats.url();
    say(&["renew", "--url", &url]);
    let words = ["generate", "--url", &url, "--prefill", "300", "--patience", "30"];
    let generator = Worker::builder(bench()).args(words).start().expect("starts");
    let is_filled = || generator.lines().iter().any(|line| line.text == "filled");
    wait_until("the stream is filled", SOON, is_filled);
    let _bare = Worker::builder(bench())
        .args(["bare", "--url", &url])
        .start()
        .expect("starts");
    let finished = generator.finish(SOON).expect("ends");
    let drained: Value = serde_json::from_str(&finished.stdout()).expect("is JSON");
    let counts = ["sent", "tasks", "missing", "duplicated"].map(|key| number(&drained, key));
    assert_eq!(counts, [300, 300, 0, 0], "{drained}");
}

#[test]
fn the_core_loop_answers_everything_and_its_faults_are_counted() {
    let nats = NatsServer::start().expect("the broker starts");
    let honest = counted(&nats, &["--core"]);
    assert_eq!(
        (number(&honest, "missing"), number(&honest, "duplicated")),
        (0, 0),
        "{honest}"
    );
    let faulty = counted(&nats, &["--core", "--drop-every", "10", "--double-every", "7"]);
    assert_eq!(
        (number(&faulty, "missing"), number(&faulty, "duplicated")),
        (70, 90),
        "{faulty}"
    );
}

#[test]
fn contenders_find_the_streams_that_the_worker_would_make() {
    let nats = NatsServer::start().expect("the broker starts");
    let mut worker = Worker::builder(worker()).serve(&nats).start().expect("starts");
    worker.wait_ready().expect("becomes ready");
    let found = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("can be built")
        .block_on(async {
            let jetstream = async_nats::jetstream::new(async_nats::connect(nats.url()).await?);
            let assignments = jetstream.get_stream(streams::STREAM).await?;
            let results = jetstream
                .get_stream(streams::RESULTS_STREAM)
                .await?
                .cached_info()
                .config
                .clone();
            let consumer = assignments.consumer_info(streams::DURABLE).await?.config;
            anyhow::Ok((assignments.cached_info().config.clone(), results, consumer))
        });
    let (assignments, results, consumer) = found.expect("are there");
    for (found, ours) in [
        (assignments, streams::assignments()),
        (results, streams::results()),
    ] {
        assert_eq!(
            (
                found.subjects,
                found.retention,
                found.discard,
                found.storage,
                found.max_age
            ),
            (
                ours.subjects,
                ours.retention,
                ours.discard,
                ours.storage,
                ours.max_age
            )
        );
        assert_eq!(found.duplicate_window, ours.duplicate_window);
    }
    let ours = streams::consumer();
    assert_eq!(
        (
            consumer.ack_policy,
            consumer.ack_wait,
            consumer.max_deliver,
            consumer.max_ack_pending
        ),
        (
            ours.ack_policy,
            ours.ack_wait,
            ours.max_deliver,
            ours.max_ack_pending
        )
    );
}

/// A script with the programs of this build, and a directory for what it leaves.
fn scripted(name: &str, words: &[&str], temporary: &TempDir) -> WorkerBuilder {
    let kept = ["PATH", "HOME", "NATS_SERVER_BIN"];
    let kept = kept
        .iter()
        .filter_map(|name| Some((*name, std::env::var(name).ok()?)));
    let builder = Worker::builder(script(name))
        .args(words.iter().copied())
        .env("CAF_BENCH_BIN", bench().display())
        .env("CAF_WORKER_BIN", worker().display())
        .env("TMPDIR", temporary.path().display());
    kept.fold(builder, |builder, (name, value)| builder.env(name, value))
}

/// Nothing lies in the directory, and nobody works there.
fn is_left(temporary: &TempDir) -> bool {
    let lies = std::fs::read_dir(temporary.path())
        .expect("can be listed")
        .count()
        > 0;
    lies || std::fs::read_dir("/proc")
        .expect("can be listed")
        .flatten()
        .any(|process| {
            std::fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(temporary.path()))
        })
}

#[test]
fn a_row_is_measured_and_written_as_markdown_and_nothing_is_left() {
    let temporary = TempDir::new("bench").expect("can be made");
    let words = [
        "echo",
        "start",
        "--rounds",
        "1",
        "--seconds",
        "0.3",
        "--warm-up",
        "0.1",
        "--window",
        "50",
        "--markdown",
    ];
    let finished = scripted("bench.sh", &words, &temporary).run(SOON).expect("ends");
    let (out, errors) = (finished.stdout(), finished.stderr());
    assert_eq!(finished.code(), Some(0), "{out}\n{errors}");
    for wanted in [
        "# Benchmarks",
        "- Broker: nats-server",
        "|---|---:|",
        "| echo: tasks/s",
        "| start: ready",
    ] {
        assert!(out.contains(wanted), "no {wanted} in {out}");
    }
    assert!(!is_left(&temporary), "{out}\n{errors}");
}

#[test]
fn a_row_or_scenario_that_nobody_knows_is_named() {
    let temporary = TempDir::new("bench").expect("can be made");
    for (name, word) in [("bench.sh", "ech"), ("load.sh", "LOAD-008")] {
        let finished = scripted(name, &[word], &temporary).run(SOON).expect("ends");
        assert_eq!(finished.code(), Some(1));
        assert!(finished.stderr().contains(word), "{}", finished.stderr());
    }
    assert!(!is_left(&temporary));
}

#[test]
fn scenarios_say_what_was_expected_and_measured_and_fail_by_their_exit_code() {
    let temporary = TempDir::new("load").expect("can be made");
    let words = ["LOAD-001", "LOAD-005", "--seconds", "1"];
    let finished = scripted("load.sh", &words, &temporary).run(SOON).expect("ends");
    let out = finished.stdout();
    assert_eq!(
        out.matches("pass  expected every assignment answered once; measured")
            .count(),
        2,
        "{out}"
    );
    // How fast it is depends on the machine.
    let failed = out.contains("FAIL  expected");
    assert_eq!(
        finished.code(),
        Some(i32::from(failed)),
        "{out}\n{}",
        finished.stderr()
    );
    assert!(!is_left(&temporary), "{out}");
}

#[test]
fn whoever_ends_a_measurement_ends_its_processes() {
    let temporary = TempDir::new("bench").expect("can be made");
    let mut running = scripted("bench.sh", &["echo", "--seconds", "600"], &temporary)
        .start()
        .expect("starts");
    wait_until("broker and contender run", SOON, || {
        let entries = std::fs::read_dir(temporary.path())
            .expect("can be listed")
            .flatten();
        entries
            .flat_map(|stage| std::fs::read_dir(stage.path()))
            .flatten()
            .flatten()
            .count()
            >= 2
    });
    running.terminate().expect("can be told");
    assert_eq!(running.finish(SOON).expect("ends").code(), Some(1));
    assert!(
        poll(SOON, || (!is_left(&temporary)).then_some(())).is_some(),
        "something is left"
    );
}
