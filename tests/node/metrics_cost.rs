//! What metrics cost a whole node: `cargo test --release --test node metrics_cost -- --ignored --nocapture`.
//!
//! Prints figures and asserts nothing about them: they depend on the machine. Runs with and without metrics take turns, so
//! that what else the machine does hits both.

use std::time::{Duration, Instant};

use caf_testkit::wait::poll;
use caf_testkit::{AssignmentBuilder, http};

use crate::support::{ANSWERS, ASSIGNMENTS, Node, jobs};

const METRICS: &str = "CP2_OBSERVABILITY_METRICS_ENABLED";
const JOBS: usize = 20_000;
const TURNS: usize = 3;
/// Time between two scrapes; Prometheus takes 15 s, so this is hard on the node.
const SCRAPE_EVERY: Duration = Duration::from_secs(1);

/// Processor time of a process so far, in seconds.
fn cpu_seconds(id: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).expect("it runs");
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields
        .skip(11)
        .take(2)
        .map(|text| text.parse::<f64>().expect("is a number"))
        .sum();
    ticks / 100.0
}

/// Processor time that a node takes for the jobs, and how long they take.
fn run(measures: bool) -> (f64, Duration) {
    let mut node = Node::start_with(|worker| {
        let log = worker.env("LOG_LEVEL", "error");
        log.env(METRICS, measures.to_string())
    });
    let load = jobs(JOBS, |_| AssignmentBuilder::echo());
    let (before, begun) = (cpu_seconds(node.worker.id()), Instant::now());
    node.client.assign_all(&load).expect("is sent");
    let mut scraped = Instant::now();
    let answered = poll(Duration::from_secs(600), || {
        if measures && scraped.elapsed() > SCRAPE_EVERY {
            let port = node.worker.metrics_port().ok()?;
            let answer = http::get(port, "/metrics").expect("answers");
            assert_eq!(answer.status, 200);
            scraped = Instant::now();
        }
        let left = node.client.stream_count(ASSIGNMENTS).ok()?;
        let answers = node.client.stream_count(ANSWERS).ok()?;
        (left == 0 && answers >= 2 * JOBS as u64).then_some(())
    });
    assert!(answered.is_some(), "all are answered");
    (cpu_seconds(node.worker.id()) - before, begun.elapsed())
}

#[test]
#[ignore = "prints figures; takes minutes"]
fn processor_time_with_metrics_and_without() {
    let mut sums = [0.0, 0.0];
    for _ in 0..TURNS {
        for measures in [false, true] {
            let (cpu, took) = run(measures);
            sums[usize::from(measures)] += cpu;
            println!("metrics {measures}: {cpu:.2} s of processor time in {took:?} for {JOBS} jobs");
        }
    }
    let more = (sums[1] / sums[0] - 1.0) * 100.0;
    println!("with metrics {more:+.1} %");
}
