//! What metrics cost a whole node: `METRICS_BENCH=1 cargo test --release --test node metrics_cost -- --nocapture`. Without
//! the variable it runs small.
//!
//! Prints figures and asserts nothing about them: they depend on the machine. Runs with and without metrics take turns, so
//! that what else the machine does hits both.

use std::time::{Duration, Instant};

use caf_testkit::wait::poll;
use caf_testkit::{AssignmentBuilder, http};

use crate::support::{ANSWERS, ASSIGNMENTS, Node, jobs};

const METRICS: &str = "CP2_OBSERVABILITY_METRICS_ENABLED";
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
fn run(count: usize, measures: bool) -> (f64, Duration) {
    let mut node = Node::start_with(|worker| worker.env(METRICS, measures.to_string()));
    let load = jobs(count, |_| AssignmentBuilder::echo());
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
        (left == 0 && answers >= 2 * count as u64).then_some(())
    });
    assert!(answered.is_some(), "all are answered");
    (cpu_seconds(node.worker.id()) - before, begun.elapsed())
}

#[test]
fn processor_time_with_metrics_and_without() {
    let is_long = std::env::var_os("METRICS_BENCH").is_some();
    let (count, turns) = if is_long { (20_000, 5) } else { (100, 1) };
    let mut sums = [0.0, 0.0];
    for _ in 0..turns {
        for measures in [false, true] {
            let (cpu, took) = run(count, measures);
            sums[usize::from(measures)] += cpu;
            println!("metrics {measures}: {cpu:.2} s of processor time in {took:?} for {count} jobs");
        }
    }
    let more = (sums[1] / sums[0] - 1.0) * 100.0;
    println!("with metrics {more:+.1} %");
}
