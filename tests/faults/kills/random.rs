//! Many kills at random moments under load, each followed by a successor on the same state directory.
//!
//! `FAULTS_KILLS` asks for more of them than CI has time for, `FAULTS_SEED` repeats a run.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use caf_testkit::client::RESULT;
use caf_testkit::wait::poll;
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, Worker};

use super::{Fleet, home, lines, patient};
use crate::support::{answers, jobs, statuses};

/// Kills in CI.
const KILLS: usize = 50;
/// Longest life of a worker: some live long enough to ask for what dead owners held, and to run it.
const LONGEST_LIFE_MS: u64 = 3_500;
/// Jobs sent in each life.
const BATCH: usize = 12;

/// Numbers by chance, repeatable by their seed (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound.max(1)
    }
}

fn asked_for<T: std::str::FromStr>(variable: &str) -> Option<T> {
    std::env::var(variable).ok()?.parse().ok()
}

/// As an operator of preemptible machines would set it: deaths are the machine's doing, not the job's.
fn used_to_deaths(worker: WorkerBuilder) -> WorkerBuilder {
    worker
        .env("WORKER__WORKER__SUPERVISION__MAX_DEATHS", 100)
        .env("NATS_MAX_DELIVER", 1_000)
        .env("WORKER_IO_POOL_SIZE", 16)
}

fn batch(fleet: &Fleet) -> Vec<AssignmentBuilder> {
    jobs(BATCH, |n| match n % 6 {
        0 => patient(AssignmentBuilder::sleep(300)),
        1 => patient(AssignmentBuilder::sleep(20)),
        2 | 3 => fleet.web.job("/quick"),
        _ => patient(AssignmentBuilder::echo()),
    })
}

/// What workers said, by message.
fn tally(counts: &mut BTreeMap<&'static str, usize>, worker: &Worker) {
    for message in [
        "Assignment taken over",
        "Assignment answered again",
        "Outbox replayed",
        "Result suppressed",
        "Suspect runs alone",
        "Assignment rejected",
        "Worker died while it ran an assignment",
    ] {
        *counts.entry(message).or_default() += lines(worker, message).len();
    }
}

#[test]
fn fifty_random_kills_under_load_lose_nothing_and_double_nothing() {
    let kills = asked_for("FAULTS_KILLS").unwrap_or(KILLS);
    let seed = asked_for("FAULTS_SEED").unwrap_or_else(|| RandomState::new().hash_one(kills));
    println!("FAULTS_SEED={seed} FAULTS_KILLS={kills}");
    let (mut chance, mut said) = (Chance(seed | 1), BTreeMap::new());
    let (mut fleet, home) = (Fleet::start(), home());
    // The streams are there before the first assignment.
    let mut worker = super::ready(used_to_deaths(fleet.worker(&home)));
    for _ in 0..kills {
        let load = batch(&fleet);
        fleet.assign(load);
        // Whichever comes first: so many messages, or so much time. Sometimes it is not even ready then.
        let life = Duration::from_millis(chance.below(LONGEST_LIFE_MS));
        let heard = fleet.plain.len() + usize::try_from(chance.below(8 * BATCH as u64)).expect("is small");
        let _ = poll(life, || (fleet.plain.len() >= heard).then_some(()));
        assert!(worker.is_running(), "ended by itself");
        worker.kill();
        tally(&mut said, &worker);
        worker = used_to_deaths(fleet.worker(&home)).start().expect("starts");
    }
    worker.wait_ready().expect("becomes ready");
    fleet.assert_each_answered_once();
    tally(&mut said, &worker);
    let stored = answers(&fleet.client);
    let heard = fleet.plain.on(RESULT).len();
    println!(
        "{} assignments, {heard} results heard, {} requests for {} jobs; {said:?}; {:?}",
        fleet.sent.len(),
        fleet.web.count("/quick"),
        fleet.sent.len() / 3,
        statuses(&stored),
    );
    assert_eq!(
        statuses(&stored),
        BTreeMap::from([("success".to_owned(), fleet.sent.len())])
    );
    // What the dead had stored is published, not run again: no second content, not even for a plain subscriber.
    let doubled = fleet.with_many_contents(RESULT);
    assert!(doubled.is_empty(), "answered in two ways: {doubled:?}");
}
