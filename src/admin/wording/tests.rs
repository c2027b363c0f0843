use std::time::Duration;

use caf_actors::events::{self, Event};
use caf_actors::journal::Journal;
use caf_protocol::ack::RejectReason;
use caf_protocol::assignment::Identity;
use caf_protocol::block::ResourceClass;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::{Failure, Outcome, StepResult};

use super::*;

/// An assignment, events about it one second apart from second 1 on, and what is said of it at second 60.
fn told(events: impl Fn(&Identity) -> Vec<Event>) -> Explanation {
    explained(events, Some(true))
}

fn explained(events: impl Fn(&Identity) -> Vec<Event>, held: Option<bool>) -> Explanation {
    let (journal, who) = (Journal::default(), identity());
    for (second, event) in (1..).zip(events(&who)) {
        journal.note(&event, second * 1_000);
    }
    explain(&journal.find("a-1", None, 1)[0], held, None, 60_000)
}

fn identity() -> Identity {
    Identity {
        assignment_id: "a-1".into(),
        tenant_id: "acme".into(),
        job_type: Some("echo".into()),
        ..Identity::default()
    }
}

fn received(who: &Identity) -> Event {
    events::course::received(who, Some(("stream", 7)), Some(2))
}

fn accepted(who: &Identity) -> Event {
    events::course::accepted(who, "io", Duration::from_secs(100), 3)
}

fn started(who: &Identity) -> Event {
    events::step_started(who, "io", 5)
}

fn failed(who: &Identity) -> Event {
    let failure = Failure::new(ErrorCode::NetworkError, "no route");
    events::attempt_failed(who, &failure, 0, 80_000)
}

fn ended(who: &Identity, outcome: Outcome) -> Event {
    let step = StepResult {
        outcome,
        latency_ms: 1_500,
        retries_used: 0,
    };
    events::step_ended(who, &step)
}

#[test]
fn what_it_waits_for_is_said_with_numbers() {
    let waiting = told(|who| vec![received(who), accepted(who)]);
    assert_eq!(
        waiting.summary,
        "Waits for a slot of pool io for 58.0 s, as number 1 of 1 in the queue. 42.0 s are left until its deadline."
    );
    let running = told(|who| vec![received(who), accepted(who), started(who)]);
    assert_eq!(
        running.summary,
        "Runs on pool io for 57.0 s, attempt 1 of at most 3. 42.0 s are left until its deadline."
    );
    let retry = told(|who| vec![accepted(who), started(who), failed(who)]);
    assert_eq!(
        retry.summary,
        "Attempt 1 failed with NETWORK_ERROR; attempt 2 of at most 3 begins in 23.0 s. It keeps its slot on pool io. \
         41.0 s are left until its deadline."
    );
    let deferred = told(|who| vec![events::queue::deferred(who, ResourceClass::Io, (5, 9), 61_500)]);
    assert!(
        deferred
            .summary
            .ends_with("(row 5); it is delivered again in 2.5 s."),
        "{}",
        deferred.summary
    );
    let answering = told(|who| {
        vec![
            accepted(who),
            started(who),
            ended(who, Outcome::Success(Default::default())),
        ]
    });
    assert!(answering.summary.ends_with("not confirmed yet."));
}

#[test]
fn calls_are_told_with_codes_and_lengths() {
    let again = |who: &Identity| events::course::called_again(who, 2, 3);
    let said = told(|who| vec![accepted(who), started(who), failed(who), again(who)]);
    let calls: Vec<_> = said
        .attempts
        .iter()
        .map(|call| {
            (
                call.number,
                call.duration_ms,
                call.running,
                call.error_code.as_deref(),
            )
        })
        .collect();
    assert_eq!(
        calls,
        [(1, 1_000, false, Some("NETWORK_ERROR")), (2, 56_000, true, None)]
    );
    assert_eq!(said.state, Phase::Running);
}

#[test]
fn each_end_is_told_with_its_row() {
    let row = |events: &dyn Fn(&Identity) -> Vec<Event>| told(events).outcome.expect("it ended").row;
    let error = || Outcome::from(Failure::new(ErrorCode::NetworkError, "x"));
    let timeout = || Outcome::from(Failure::timeout("the deadline"));
    let cancelled = || Outcome::from(Failure::new(ErrorCode::CancelledByUser, "x"));
    let refused = |reason| {
        let failure = Failure::new(ErrorCode::InvalidInput, "x");
        row(&move |who: &Identity| vec![received(who), events::rejected(who, reason, &failure)])
    };
    let ran = |outcome: &dyn Fn() -> Outcome| {
        row(&|who: &Identity| vec![received(who), accepted(who), started(who), ended(who, outcome())])
    };
    assert_eq!(ran(&|| Outcome::Success(Default::default())), "6");
    assert_eq!((ran(&error), ran(&timeout), ran(&cancelled)), ("7", "8", "9"));
    assert_eq!(
        row(&|who: &Identity| vec![received(who), ended(who, timeout())]),
        "8b"
    );
    assert_eq!(
        row(&|who: &Identity| vec![received(who), events::queue_full(who, "io", 3, 3)]),
        "4"
    );
    assert_eq!(refused(RejectReason::InvalidField), "2");
    assert_eq!(refused(RejectReason::TenantNotAllowed), "3");
    assert_eq!(refused(RejectReason::Quarantined), "14");
    assert_eq!(refused(RejectReason::AttemptsExhausted), "17");
    let places = caf_actors::pool::Places::unbounded(ResourceClass::Io, 1);
    let dropped = row(&|who: &Identity| {
        vec![
            accepted(who),
            events::queue::dropped(who, ResourceClass::Io, &places),
            ended(who, error()),
        ]
    });
    assert_eq!(dropped, "16");
}

#[test]
fn what_a_failed_part_has_lost_is_not_said_to_run() {
    let lost = explained(
        |who| vec![received(who), accepted(who), started(who)],
        Some(false),
    );
    assert!(lost.summary.contains("is not any more"), "{}", lost.summary);
    let unsure = explained(|who| vec![received(who), accepted(who), started(who)], None);
    assert!(unsure.summary.starts_with("Runs on pool io"));
}

#[test]
fn a_job_that_came_again_is_told_by_its_last_life() {
    let said = told(|who| {
        let back = events::not_run(who, "draining");
        vec![
            received(who),
            accepted(who),
            started(who),
            failed(who),
            back,
            received(who),
            accepted(who),
        ]
    });
    assert_eq!((said.state, said.attempts.len()), (Phase::Waiting, 0));
    assert_eq!(said.events.len(), 7, "and all that happened is there");
    assert_eq!(
        said.events[0].words,
        "received: message 7 of stream stream, delivery 2"
    );
}

#[test]
fn lengths_are_for_people() {
    let lengths = [0, 999, 1_000, 59_999, 60_000, 3_599_999, 3_600_000, 90_000_000].map(length);
    assert_eq!(
        lengths,
        [
            "0 ms",
            "999 ms",
            "1.0 s",
            "59.9 s",
            "1 min 0 s",
            "59 min 59 s",
            "1 h 0 min",
            "1 d 1 h"
        ]
    );
}
