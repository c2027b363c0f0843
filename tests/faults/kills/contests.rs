//! Several workers and one assignment: who has it, who may speak, and who must be silent.

use std::collections::BTreeSet;

use caf_testkit::client::{ASSIGN, RESULT};
use caf_testkit::{AssignmentBuilder, Proxy, wait_until};

use super::{DELIVERY, Fleet, Traffic, deliveries, home, lines, mentions, patient, ready, settings};
use crate::support::{ASSIGNMENTS, SOON, answers, jobs, program, statuses};

/// Jobs that the frozen worker holds.
const FROZEN: usize = 4;

fn mixed_load(fleet: &Fleet) -> Vec<AssignmentBuilder> {
    jobs(150, |n| match n % 5 {
        0 => patient(AssignmentBuilder::sleep(200 + n as u64 % 7 * 50)),
        1 => fleet.web.job("/quick"),
        _ => patient(AssignmentBuilder::echo()),
    })
}

fn asked_at_least(fleet: &Fleet, beginning: &str, times: usize) -> bool {
    (0..FROZEN / 2).all(|n| fleet.web.count(&format!("{beginning}/{n}")) >= times)
}

#[test]
fn one_worker_killed_one_frozen_and_one_drained_leave_each_assignment_with_one_answer() {
    let mut fleet = Fleet::start();
    let share = home();
    // So full that nothing is on its way to it when it freezes.
    let frozen = fleet
        .worker_behind_the_line(&share)
        .env("WORKER__LIMITS__MAX_HELD", FROZEN);
    let traffic = Traffic::record(&fleet.proxy);
    let mut frozen = ready(frozen);
    let held: Vec<_> = ["/held/early/0", "/held/early/1", "/held/late/0", "/held/late/1"]
        .map(|path| fleet.web.job(path))
        .into();
    fleet.assign(held.clone());
    wait_until("it runs them all", SOON, || {
        asked_at_least(&fleet, "/held/early", 1) && asked_at_least(&fleet, "/held/late", 1)
    });
    let killed_line = Proxy::start(&fleet.nats).expect("the proxy starts");
    let killed_traffic = Traffic::record(&killed_line);
    let limited = |worker: caf_testkit::worker::WorkerBuilder| worker.env("WORKER__LIMITS__MAX_HELD", 20);
    let mut killed = ready(limited(settings(program().serve_through(&killed_line), &share)));
    let mut drained = ready(limited(fleet.worker(&share)));
    let mut survivor = ready(fleet.worker(&share).env("WORKER_IO_POOL_SIZE", 20));
    let load = mixed_load(&fleet);
    fleet.assign(load);
    let published = |traffic: &Traffic| {
        traffic
            .frames()
            .iter()
            .filter(|frame| frame.publishes(RESULT))
            .count()
    };
    wait_until("they work", SOON, || published(&killed_traffic) > 5);

    killed.kill();
    frozen.pause().expect("is held still");
    let before = traffic.len();
    drained.terminate().expect("is told");
    assert_eq!(drained.wait_exit(SOON).expect("ends").code(), Some(0));
    wait_until("others run what the frozen one had", SOON, || {
        asked_at_least(&fleet, "/held/early", 2) && asked_at_least(&fleet, "/held/late", 2)
    });
    // Some are answered while it is frozen, the others end in both workers at once.
    fleet.web.release("/held/early");
    let answered = |job: &AssignmentBuilder| !answers(&fleet.client).results(job.assignment_id()).is_empty();
    wait_until("others have answered", SOON, || held[..2].iter().all(answered));
    frozen.resume().expect("goes on");
    wait_until("it notices", SOON, || {
        lines(&frozen, "Result suppressed").len() == 2
    });
    fleet.web.release("/held/late");
    wait_until("it notices again", SOON, || {
        lines(&frozen, "Result suppressed").len() == FROZEN
    });

    fleet.assert_each_answered_once();
    assert_eq!(statuses(&answers(&fleet.client))["success"], fleet.sent.len());
    let frames = traffic.frames();
    let lapsed = deliveries(&frames[..before]);
    let said_late = frames[before..].iter().filter(|frame| {
        frame.publishes(DELIVERY) && frame.subject.as_ref().is_some_and(|name| lapsed.contains(name))
    });
    assert_eq!(said_late.count(), 0, "verdicts of deliveries that lapsed");
    assert!(!frames[before..].iter().any(|frame| {
        frame.publishes(RESULT) && held.iter().any(|job| mentions(frame, job.assignment_id()))
    }));
    // What the killed one had published and nobody knew of was answered again by others; nothing else was.
    let half_out: BTreeSet<String> = killed_traffic
        .frames()
        .iter()
        .filter(|frame| frame.publishes(RESULT))
        .filter_map(|frame| serde_json::from_slice::<serde_json::Value>(&frame.payload).ok())
        .filter_map(|result| Some(result["assignment_id"].as_str()?.to_owned()))
        .collect();
    let doubled = fleet.with_many_contents(RESULT);
    println!(
        "{} published by the killed one, {} heard twice",
        half_out.len(),
        doubled.len()
    );
    assert!(doubled.is_subset(&half_out), "{doubled:?}");
    assert!(survivor.is_running() && frozen.is_running());
}

/// What was on its way to it may be long in other hands when it reads it. It cannot tell from the message how old the
/// delivery is, so it may say a word to the broker about it that comes too late; the claim keeps it from more.
#[test]
fn a_worker_that_froze_while_messages_were_on_their_way_answers_none_that_others_have() {
    let mut fleet = Fleet::start();
    let homes = [home(), home()];
    let traffic = Traffic::record(&fleet.proxy);
    let mut frozen = ready(fleet.worker_behind_the_line(&homes[0]));
    frozen.pause().expect("is held still");
    let load: Vec<_> = ["/quick/0", "/quick/1", "/held/0", "/held/1"]
        .map(|path| fleet.web.job(path))
        .into();
    fleet.assign(load.clone());
    wait_until("they are on their way to it", SOON, || {
        deliveries(&traffic.frames()).len() == load.len()
    });
    let mut other = ready(fleet.worker(&homes[1]));
    let count = |path: &str| fleet.web.count(path);
    wait_until("another has them", SOON, || {
        count("/held/0") + count("/held/1") == 2
    });
    let answered = |job: &AssignmentBuilder| !answers(&fleet.client).results(job.assignment_id()).is_empty();
    wait_until("another has answered some", SOON, || {
        load[..2].iter().all(answered)
    });
    let stale = deliveries(&traffic.frames());
    frozen.resume().expect("goes on");
    wait_until("it has read them all", SOON, || {
        let read = [
            lines(&frozen, "Assignment not run"),
            lines(&frozen, "Assignment answered again"),
        ]
        .concat();
        load.iter().all(|job| {
            read.iter()
                .any(|log| log["context"]["assignment_id"] == job.assignment_id())
        })
    });
    fleet.web.release("/held");
    fleet.assert_each_answered_once();
    for path in ["/quick/0", "/quick/1", "/held/0", "/held/1"] {
        assert_eq!(fleet.web.count(path), 1, "{path} ran once");
    }
    assert!(fleet.with_many_contents(RESULT).is_empty());
    let said = |frame: &&caf_testkit::proxy::Frame| {
        frame.publishes(DELIVERY) && frame.subject.as_ref().is_some_and(|name| stale.contains(name))
    };
    assert_eq!(
        traffic.frames().iter().filter(said).count(),
        0,
        "verdicts of deliveries that others have"
    );
    assert!(frozen.is_running() && other.is_running());
}

/// Two workers; the first has room for one job and holds it, everything else goes to the second.
struct Pair {
    fleet: Fleet,
    first: caf_testkit::Worker,
    second: caf_testkit::Worker,
    job: AssignmentBuilder,
    _homes: [caf_testkit::TempDir; 2],
}

/// What the first one runs.
const HELD: &str = "/held/job";

impl Pair {
    fn start() -> Self {
        let mut fleet = Fleet::start();
        let homes = [home(), home()];
        let first = fleet
            .worker_behind_the_line(&homes[0])
            .env("WORKER__LIMITS__MAX_HELD", 1);
        let first = ready(first);
        let job = fleet.web.job(HELD);
        fleet.assign(vec![job.clone()]);
        wait_until("it runs", SOON, || fleet.web.count(HELD) == 1);
        let second = ready(fleet.worker(&homes[1]));
        Self {
            fleet,
            first,
            second,
            job,
            _homes: homes,
        }
    }

    /// How often the second one left the job alone for this reason.
    fn left_alone(&self, reason: &str) -> usize {
        let left = lines(&self.second, "Assignment not run");
        left.iter()
            .filter(|log| log["context"]["reason"] == reason)
            .count()
    }

    /// The first one ends it, once.
    fn finish(&mut self) {
        self.fleet.web.release("/held");
        self.fleet.assert_each_answered_once();
        assert_eq!(self.fleet.web.count(HELD), 1, "it ran once");
        assert_eq!(self.fleet.contents(RESULT)[self.job.assignment_id()], 1);
        assert!(self.first.is_running() && self.second.is_running());
    }
}

/// Row 10b.
#[test]
fn a_copy_of_an_assignment_that_another_worker_runs_is_done_with_at_once() {
    let mut pair = Pair::start();
    pair.fleet
        .client
        .publish(ASSIGN, &[], pair.job.bytes())
        .expect("is sent again");
    wait_until("the copy is left alone", SOON, || {
        pair.left_alone("copy of an assignment that another worker holds") == 1
    });
    wait_until("only the original is left", SOON, || {
        pair.fleet
            .client
            .stream_count(ASSIGNMENTS)
            .is_ok_and(|count| count == 1)
    });
    assert_eq!(pair.fleet.plain.on(RESULT).len(), 0);
    pair.finish();
}

/// Row 10c.
#[test]
fn a_worker_whose_renewals_are_lost_still_answers_for_what_it_runs() {
    let mut pair = Pair::start();
    let traffic = Traffic::record(&pair.fleet.proxy);
    let renewals = pair
        .fleet
        .proxy
        .drop_all(|frame| frame.publishes(DELIVERY) && frame.payload == b"+WPI");
    wait_until("the other one has asked more than once", SOON, || {
        pair.left_alone("held by another worker") > 1
    });
    assert!(renewals.count() > 0);
    pair.finish();
    // Its lease had lapsed: the last word to the broker is for whoever has the delivery now.
    let said = traffic.frames();
    let verdicts = said
        .iter()
        .filter(|frame| frame.publishes(DELIVERY) && frame.payload != b"+WPI");
    assert_eq!(verdicts.count(), 0);
}
