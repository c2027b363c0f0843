//! kill -9 at each point of an assignment's way, with a successor that finds what the dead worker had stored, and with
//! one that does not.

use std::path::Path;
use std::sync::Mutex;

use caf_testkit::client::{ACK, ASSIGN, RESULT};
use caf_testkit::proxy::{Frame, Held};
use caf_testkit::{AssignmentBuilder, wait_until};

use super::{Fleet, home, mentions, patient, ready};
use crate::support::SOON;

/// Where the claims of the fleet are written.
const CLAIMS: &str = "$KV.caf-claims.";

/// How far the assignment is when its worker dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    /// Delivered; nothing was said about it.
    Pulled,
    /// The claim is stored; the worker has not heard of that.
    Claimed,
    /// It has run and its result is stored, but its acknowledgement has not left.
    Unacknowledged,
    /// Its block runs.
    Running,
    /// Its result is stored, and has not left.
    Stored,
    /// Its result is on the stream; the worker has not heard of that.
    Published,
    /// Everything is said but the last word to the broker.
    Unsettled,
}

/// Who goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Successor {
    /// A process on the same state directory.
    SameHost,
    /// One that knows only what the broker has.
    OtherHost,
}

/// What the world has seen of the assignment afterwards.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Calls of its block.
    runs: usize,
    /// Distinct results that a plain subscriber heard. The stream has one in any case.
    results: usize,
}

impl Point {
    /// Withholds the message at which the worker of this assignment is to die.
    fn catch(self, fleet: &Fleet, id: &str) -> Option<Held> {
        let says = |subject: &'static str| {
            let id = id.to_owned();
            move |frame: &Frame| frame.publishes(subject) && mentions(frame, &id)
        };
        let proxy = &fleet.proxy;
        Some(match self {
            Self::Running => return None,
            Self::Pulled => proxy.hold_when(says(CLAIMS)),
            Self::Unacknowledged => proxy.hold_when(says(ACK)),
            Self::Stored => proxy.hold_when(says(RESULT)),
            Self::Claimed => proxy.hold_when(answer_to(says(CLAIMS))),
            Self::Published => proxy.hold_when(answer_to(says(RESULT))),
            Self::Unsettled => proxy.hold_when(last_word_on(id)),
        })
    }
}

/// Recognises the verdict that an assignment is done with.
fn last_word_on(id: &str) -> impl Fn(&Frame) -> bool + Send + Sync + use<> {
    let (id, delivery) = (id.to_owned(), Mutex::new(None));
    move |frame| {
        let mut delivery = delivery.lock().expect("is whole");
        if frame.delivers(ASSIGN) && mentions(frame, &id) {
            delivery.clone_from(&frame.reply);
        }
        let named = delivery.as_deref();
        named.is_some_and(|name| frame.publishes(name)) && frame.payload == b"+ACK"
    }
}

/// Recognises the broker's answer to what `question` recognises.
fn answer_to(question: impl Fn(&Frame) -> bool + Send + Sync) -> impl Fn(&Frame) -> bool + Send + Sync {
    let inbox = Mutex::new(None);
    move |frame| {
        let mut inbox = inbox.lock().expect("is whole");
        if question(frame) {
            *inbox = frame.reply.clone();
        }
        inbox.as_deref().is_some_and(|inbox| frame.delivers(inbox))
    }
}

/// Whether a file below this directory contains the text: only the outbox writes names of assignments.
fn is_written(directory: &Path, text: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return is_written(&path, text);
        }
        let content = std::fs::read(&path).unwrap_or_default();
        content
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    })
}

fn killed_when(point: Point, successor: Successor) -> Seen {
    let mut fleet = Fleet::start();
    let (first_home, other_home) = (home(), home());
    let mut first = ready(fleet.worker_behind_the_line(&first_home));
    let path = if point == Point::Running {
        "/held/job"
    } else {
        "/job"
    };
    let job = fleet.web.job(path);
    let caught = point.catch(&fleet, job.assignment_id());
    fleet.assign(vec![
        patient(AssignmentBuilder::echo()),
        patient(AssignmentBuilder::sleep(50)),
        job.clone(),
        patient(AssignmentBuilder::sleep(300)),
    ]);
    match &caught {
        Some(held) => drop(held.wait(SOON).expect("the point is reached")),
        None => wait_until("the block runs", SOON, || fleet.web.count(path) == 1),
    }
    if point == Point::Unacknowledged {
        wait_until("its result is stored", SOON, || {
            is_written(first_home.path(), job.assignment_id())
        });
    }
    first.kill();
    if let Some(held) = caught {
        held.sever();
    }
    fleet.web.release("/held");
    let home = match successor {
        Successor::SameHost => &first_home,
        Successor::OtherHost => &other_home,
    };
    let _second = ready(fleet.worker(home));
    fleet.assert_each_answered_once();
    assert_eq!(fleet.result_of(&job)["status"], "success");
    Seen {
        runs: fleet.web.count(path),
        results: fleet.contents(RESULT)[job.assignment_id()],
    }
}

/// Kills at this point and counts, with a successor of either kind.
#[track_caller]
fn assert_seen(point: Point, same_host: Seen, other_host: Seen) {
    let seen = [Successor::SameHost, Successor::OtherHost].map(|successor| killed_when(point, successor));
    assert_eq!(
        seen,
        [same_host, other_host],
        "{point:?}, by the same host and by another"
    );
}

const ONCE: Seen = Seen { runs: 1, results: 1 };
const RUNS_AGAIN: Seen = Seen { runs: 2, results: 1 };

#[test]
fn a_worker_killed_with_what_it_had_pulled_is_replaced() {
    assert_seen(Point::Pulled, ONCE, ONCE);
}

#[test]
fn a_worker_killed_with_a_claim_is_replaced() {
    assert_seen(Point::Claimed, ONCE, ONCE);
}

#[test]
fn a_worker_killed_in_the_middle_of_a_block_is_replaced_and_the_block_runs_again() {
    assert_seen(Point::Running, RUNS_AGAIN, RUNS_AGAIN);
}

#[test]
fn an_acknowledgement_that_a_killed_worker_could_not_send_is_sent_by_its_successor() {
    assert_seen(Point::Unacknowledged, ONCE, RUNS_AGAIN);
}

#[test]
fn a_result_that_a_killed_worker_had_stored_is_published_by_the_successor_that_finds_it() {
    assert_seen(Point::Stored, ONCE, RUNS_AGAIN);
}

/// Nobody but the dead worker knew that the result was out, so on another host the block runs again and its result is
/// published: the stream drops it, a plain subscriber hears two.
#[test]
fn a_result_that_a_killed_worker_had_published_stays_the_only_one_on_the_stream() {
    assert_seen(Point::Published, ONCE, Seen { runs: 2, results: 2 });
}

#[test]
fn a_worker_killed_before_its_last_word_to_the_broker_has_answered() {
    assert_seen(Point::Unsettled, ONCE, ONCE);
}

/// The heir has the claim when it dies, so the next one must know for whom it had it.
#[test]
fn a_stored_result_outlives_a_second_worker_that_is_killed_while_it_publishes_it() {
    let mut fleet = Fleet::start();
    let home = home();
    let job = fleet.web.job("/job");
    let mut first = ready(fleet.worker_behind_the_line(&home));
    let caught = Point::Stored
        .catch(&fleet, job.assignment_id())
        .expect("a message");
    fleet.assign(vec![job.clone()]);
    caught.wait(SOON).expect("its result is stored");
    first.kill();
    caught.sever();
    let caught = Point::Stored
        .catch(&fleet, job.assignment_id())
        .expect("a message");
    let mut second = fleet.worker_behind_the_line(&home).start().expect("starts");
    caught.wait(SOON).expect("it is published by the heir");
    second.kill();
    caught.sever();
    let _third = ready(fleet.worker(&home));
    fleet.assert_each_answered_once();
    assert_eq!(
        (
            fleet.web.count("/job"),
            fleet.contents(RESULT)[job.assignment_id()]
        ),
        (1, 1)
    );
}
