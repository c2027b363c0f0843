//! Assignments whose every attempt costs a worker: told from their neighbours, and given up.

use caf_testkit::client::{ACK, DLQ, RESULT};
use caf_testkit::wait::poll;
use caf_testkit::{AssignmentBuilder, TempDir, Worker};
use serde_json::json;

use super::{Fleet, SETTLED, home, lines, patient, ready};
use crate::support::{SOON, answers, jobs};

/// Deaths until an assignment is given up, by default.
const MAX_DEATHS: usize = 3;

/// The request at which its worker is killed.
const POISON: &str = "/held/poison";

/// Workers that are started again, each in its own directory, whenever one dies.
struct Supervised {
    homes: Vec<TempDir>,
    workers: Vec<Worker>,
    /// What those that died had said.
    said: Vec<serde_json::Value>,
}

impl Supervised {
    fn start(fleet: &Fleet, count: usize) -> Self {
        let homes: Vec<_> = (0..count).map(|_| home()).collect();
        let workers = homes.iter().map(|home| ready(fleet.worker(home))).collect();
        Self {
            homes,
            workers,
            said: Vec::new(),
        }
    }

    /// Kills whoever has begun this job, and starts it again. Nobody that began it has lived on.
    fn kill_who_runs(&mut self, fleet: &Fleet, id: &str) {
        let begun = |worker: &Worker| {
            let started = lines(worker, "Step execution started");
            started.iter().any(|log| log.to_string().contains(id))
        };
        let victim = poll(SOON, || self.workers.iter().position(&begun)).expect("somebody runs it");
        self.workers[victim].kill();
        self.said.extend(self.workers[victim].logs());
        self.workers[victim] = ready(fleet.worker(&self.homes[victim]));
    }

    fn said(&self, message: &str) -> usize {
        let living = self.workers.iter().map(|worker| lines(worker, message).len());
        let dead = self.said.iter().filter(|log| log["message"] == message);
        living.sum::<usize>() + dead.count()
    }
}

/// A job that kills its worker, beside neighbours that run at the same time; returns the number of deaths.
fn killer_among_neighbours(workers: usize) -> usize {
    let mut fleet = Fleet::start();
    let mut supervised = Supervised::start(&fleet, workers);
    let poison = fleet.web.job(POISON);
    let mut load = jobs(6, |n| match n % 2 {
        0 => patient(AssignmentBuilder::sleep(1_500)),
        _ => fleet.web.job(&format!("/held/neighbour/{n}")),
    });
    load.insert(3, poison.clone());
    fleet.assign(load);
    let is_answered = || !answers(&fleet.client).results(poison.assignment_id()).is_empty();
    let mut deaths = 0;
    while poll(SETTLED, || {
        let again = fleet.web.count(POISON) > deaths;
        (again || is_answered()).then_some(again)
    })
    .expect("it runs again or is given up")
    {
        // Neighbours run beside it the first time, and from then on may end.
        if deaths == 0 {
            let beside = || {
                (1..6)
                    .step_by(2)
                    .all(|n| fleet.web.count(&format!("/held/neighbour/{n}")) > 0)
            };
            assert_eq!(
                poll(SOON, || beside().then_some(())),
                Some(()),
                "run at the same time"
            );
            fleet.web.release("/held/neighbour");
        }
        supervised.kill_who_runs(&fleet, poison.assignment_id());
        deaths += 1;
        assert!(deaths <= 2 * MAX_DEATHS, "it is never given up");
    }
    fleet.assert_each_answered_once();
    assert_given_up(&fleet, &poison, "quarantined");
    for job in fleet
        .sent
        .iter()
        .filter(|job| job.assignment_id() != poison.assignment_id())
    {
        assert_eq!(fleet.result_of(job)["status"], "success");
    }
    assert!(supervised.said("Suspect runs alone") > 0);
    println!(
        "{deaths} deaths; noted: {}, ran alone: {}, taken over: {}",
        supervised.said("Worker died while it ran an assignment"),
        supervised.said("Suspect runs alone"),
        supervised.said("Assignment taken over"),
    );
    // The worker lives on.
    fleet.assign(jobs(3, |_| AssignmentBuilder::echo()));
    fleet.assert_each_answered_once();
    assert!(supervised.workers.iter_mut().all(Worker::is_running));
    assert_eq!(fleet.web.count(POISON), deaths, "it never runs again");
    deaths
}

/// Error, one dead letter for this reason, and the acknowledgement of its first start.
#[track_caller]
fn assert_given_up(fleet: &Fleet, job: &AssignmentBuilder, reason: &str) {
    let result = fleet.result_of(job);
    assert_eq!(
        (&result["status"], &result["error_code"]),
        (&json!("error"), &json!("INTERNAL_ERROR"))
    );
    let id = job.assignment_id();
    let letters = fleet.plain.dead_letters(id);
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0]["reason"], reason);
    assert_eq!(fleet.plain.on(DLQ).len(), 1, "only of that one");
    assert_eq!(fleet.contents(RESULT)[id], 1);
    assert_eq!(fleet.contents(ACK)[id], 1);
    assert_eq!(answers(&fleet.client).acks(id)[0]["status"], "accepted");
}

#[test]
fn a_job_that_kills_its_worker_is_given_up_after_it_ran_alone_and_its_neighbours_succeed() {
    assert_eq!(killer_among_neighbours(1), MAX_DEATHS);
}

#[test]
fn a_job_that_kills_one_worker_after_the_other_is_given_up_too() {
    let deaths = killer_among_neighbours(2);
    assert!((MAX_DEATHS..=MAX_DEATHS + 2).contains(&deaths), "{deaths}");
}

/// Row 17: what kills workers whose state directories vanish with them leaves no mark, only attempts.
#[test]
fn an_assignment_whose_every_attempt_loses_its_worker_is_given_up_when_no_attempt_is_left() {
    const ATTEMPTS: usize = 3;
    let mut fleet = Fleet::start();
    let start = |fleet: &Fleet, home: &TempDir| ready(fleet.worker(home).env("NATS_MAX_DELIVER", ATTEMPTS));
    let job = fleet.web.job(POISON);
    for attempt in 0..ATTEMPTS {
        let home = home();
        let mut worker = start(&fleet, &home);
        if attempt == 0 {
            fleet.assign(vec![job.clone()]);
        }
        let runs = poll(SETTLED, || (fleet.web.count(POISON) > attempt).then_some(()));
        assert!(runs.is_some(), "attempt {attempt} never came");
        worker.kill();
    }
    let home = home();
    let mut last = start(&fleet, &home);
    fleet.assert_each_answered_once();
    assert_given_up(&fleet, &job, "attempts_exhausted");
    assert_eq!(fleet.web.count(POISON), ATTEMPTS);
    assert!(last.is_running());
}

/// A claim fixes the acknowledgement before it is sent: that it is fixed does not say that it was.
#[test]
fn an_assignment_that_is_given_up_is_acknowledged_even_if_no_attempt_could_do_so() {
    const ATTEMPTS: usize = 2;
    let mut fleet = Fleet::start();
    let swallowed = fleet.proxy.drop_all(|frame| frame.publishes(ACK));
    let job = fleet.web.job(POISON);
    for attempt in 0..ATTEMPTS {
        let home = home();
        let worker = fleet.worker_behind_the_line(&home);
        let mut worker = ready(worker.env("NATS_MAX_DELIVER", ATTEMPTS));
        if attempt == 0 {
            fleet.assign(vec![job.clone()]);
        }
        let runs = poll(SETTLED, || {
            let said = swallowed.count() > attempt;
            (said && fleet.web.count(POISON) > attempt).then_some(())
        });
        assert!(runs.is_some(), "attempt {attempt} never came");
        worker.kill();
    }
    let home = home();
    let _last = ready(fleet.worker(&home).env("NATS_MAX_DELIVER", ATTEMPTS));
    fleet.assert_each_answered_once();
    assert_given_up(&fleet, &job, "attempts_exhausted");
}
