use std::sync::Arc;
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
fn told(events: impl Fn(&Arc<Identity>) -> Vec<Event>) -> Explanation {
    explained(events, Some(true))
}

fn explained(events: impl Fn(&Arc<Identity>) -> Vec<Event>, held: Option<bool>) -> Explanation {
    let (journal, who) = (Journal::default(), identity());
    for (second, event) in (1..).zip(events(&who)) {
        journal.note(&event, second * 1_000);
    }
    let beside = Beside {
        held,
        ..Beside::default()
    };
    explain(&journal.find("a-1", None, 1)[0], beside, 60_000)
}

fn identity() -> Arc<Identity> {
    Arc::new(Identity {
        assignment_id: "a-1".into(),
        tenant_id: "acme".into(),
        job_type: Some("echo".into()),
        ..Identity::default()
    })
}

fn received(who: &Arc<Identity>) -> Event {
    events::course::received(who, Some(("stream", 7)), Some(2))
}

fn accepted(who: &Arc<Identity>) -> Event {
    events::course::accepted(who, "io", Duration::from_secs(100), 3)
}

fn started(who: &Arc<Identity>) -> Event {
    events::step_started(who, "io", 5)
}

fn failed(who: &Arc<Identity>) -> Event {
    let failure = Failure::new(ErrorCode::NetworkError, "no route");
    events::attempt_failed(who, &failure, 0, 80_000)
}

fn ended(who: &Arc<Identity>, outcome: Outcome) -> Event {
    let step = StepResult {
        cost: Default::default(),
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
            .ends_with("pool is loaded; it is delivered again in 2.5 s."),
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
    let again = |who: &Arc<Identity>| events::course::called_again(who, 2, 3);
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
    let row = |events: &dyn Fn(&Arc<Identity>) -> Vec<Event>| told(events).outcome.expect("it ended").row;
    let error = || Outcome::from(Failure::new(ErrorCode::NetworkError, "x"));
    let timeout = || Outcome::from(Failure::timeout("the deadline"));
    let cancelled = || Outcome::from(Failure::new(ErrorCode::CancelledByUser, "x"));
    let refused = |reason| {
        let failure = Failure::new(ErrorCode::InvalidInput, "x");
        row(&move |who: &Arc<Identity>| vec![received(who), events::rejected(who, reason, &failure)])
    };
    let ran = |outcome: &dyn Fn() -> Outcome| {
        row(&|who: &Arc<Identity>| vec![received(who), accepted(who), started(who), ended(who, outcome())])
    };
    assert_eq!(ran(&|| Outcome::Success(Default::default())), "6");
    assert_eq!((ran(&error), ran(&timeout), ran(&cancelled)), ("7", "8", "9"));
    assert_eq!(
        row(&|who: &Arc<Identity>| vec![received(who), ended(who, timeout())]),
        "8b"
    );
    assert_eq!(
        row(&|who: &Arc<Identity>| vec![received(who), events::queue_full(who, "io", 3, 3)]),
        "4"
    );
    assert_eq!(refused(RejectReason::InvalidField), "2");
    assert_eq!(refused(RejectReason::TenantNotAllowed), "3");
    assert_eq!(refused(RejectReason::QuotaExceeded), "4b");
    assert_eq!(refused(RejectReason::Quarantined), "14");
    assert_eq!(refused(RejectReason::AttemptsExhausted), "17");
    let places = caf_actors::pool::Places::unbounded(ResourceClass::Io, 1);
    let dropped = row(&|who: &Arc<Identity>| {
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

/// An assignment that failed, whose dead letter is confirmed.
fn left(events: impl Fn(&Arc<Identity>) -> Vec<Event>) -> Explanation {
    told(|who| {
        let mut confirmed = events::course::Confirmed::default();
        confirmed.note(events::course::Part::DeadLetter, 59_000);
        let mut all = events(who);
        all.push(events::course::concluded(who, &confirmed, true));
        all
    })
}

fn late() -> Failure {
    Failure::timeout("the deadline of the assignment")
}

#[test]
fn a_job_that_never_got_a_slot_is_told_with_its_wait_and_the_setting_in_force() {
    let journal = Journal::default();
    let who = identity();
    let end = ended(&who, Outcome::from(late().with("waiting", true.into())));
    for (at_ms, event) in [(1_000, accepted(&who)), (31_000, end), (31_500, concluded(&who))] {
        journal.note(&event, at_ms);
    }
    let beside = Beside {
        slots_key: Some("worker.queue.v2.resource_pools.io.max_concurrency"),
        ..Beside::default()
    };
    let said = explain(&journal.find("a-1", None, 1)[0], beside, 60_000);
    assert!(said.summary.contains("without a call"), "{}", said.summary);
    assert!(
        said.summary.contains("It waited 30.0 s for a slot of pool io"),
        "{}",
        said.summary
    );
    let advice = said.advice.expect("there is some");
    assert!(
        advice.contains("worker.queue.v2.resource_pools.io.max_concurrency")
            && advice.contains("longer deadline"),
        "{advice}"
    );
}

fn concluded(who: &Arc<Identity>) -> Event {
    events::course::concluded(who, &events::course::Confirmed::default(), true)
}

#[test]
fn the_setting_in_force_is_the_one_that_who_waits_is_told_of() {
    let journal = Journal::default();
    journal.note(&accepted(&identity()), 0);
    let found = &journal.find("a-1", None, 1)[0];
    let advice = |slots_key| {
        let beside = Beside {
            slots_key,
            ..Beside::default()
        };
        explain(found, beside, 1_000).advice.expect("there is some")
    };
    assert!(advice(Some("here.it.is")).contains("(here.it.is)"));
    assert!(advice(None).contains("(pools.io.max_concurrency)"));
}

#[test]
fn a_wait_that_would_outlast_a_limit_is_told_with_the_failure_before_it() {
    let last = serde_json::json!({"code": "HTTP_ERROR", "message": "503"});
    let failure = || {
        late()
            .with("limit", "retry_budget".into())
            .with("limit_ms", 60_000.into())
            .with("next_wait_ms", 40_000.into())
            .with("last_error", last.clone())
    };
    let said = left(|who| {
        let again = events::course::called_again(who, 2, 3);
        vec![
            accepted(who),
            started(who),
            failed(who),
            again,
            ended(who, Outcome::from(failure())),
        ]
    });
    let codes: Vec<_> = said
        .attempts
        .iter()
        .map(|call| call.error_code.as_deref())
        .collect();
    assert_eq!(codes, [Some("NETWORK_ERROR"), Some("HTTP_ERROR")]);
    assert!(
        said.summary.contains(
            "The last attempt failed with HTTP_ERROR; the wait of 40.0 s before the next one would outlast the retry \
             budget of 1 min 0 s."
        ),
        "{}",
        said.summary
    );
}

#[test]
fn a_deadline_that_another_worker_began_is_told() {
    let said = told(|who| {
        let record = serde_json::json!({
            "owner": "p", "worker_id": "w-1", "stream": "s", "sequence": 1, "attempt": 2, "first_start_ms": 0,
            "state": "running", "ack": null, "outcome": null,
            "history": [{"worker_id": "w-0", "attempt": 1, "given_back": false}],
        });
        let record = serde_json::from_value(record).expect("is a record");
        vec![
            received(who),
            events::taken_over(who, &record),
            accepted(who),
            started(who),
            ended(who, Outcome::from(late())),
        ]
    });
    let words = "taken over from worker w-0, and its deadline counts from the first start there";
    assert!(said.summary.contains(words), "{}", said.summary);
}

#[test]
fn nobody_is_sent_to_a_replay_that_cannot_help() {
    let refused = |reason| {
        let failure = Failure::new(ErrorCode::InvalidInput, "x");
        let said = left(|who| vec![received(who), events::rejected(who, reason, &failure)]);
        said.advice.expect("there is some")
    };
    let quota = refused(RejectReason::QuotaExceeded);
    assert!(
        quota.starts_with("Send it again when the tenant has less under way"),
        "{quota}"
    );
    let tenant = refused(RejectReason::TenantNotAllowed);
    assert!(
        tenant.starts_with("Allow the tenant first (tenants.allowed, then SIGHUP)")
            && tenant.contains("after that"),
        "{tenant}"
    );
    for reason in [RejectReason::UnsupportedJobType, RejectReason::InvalidInputs] {
        let advice = refused(reason);
        assert!(
            advice.contains("mend the sender") && advice.contains("same bytes"),
            "{advice}"
        );
    }
    let failed = left(|who| {
        let failure = Failure::new(ErrorCode::NetworkError, "x");
        vec![accepted(who), started(who), ended(who, Outcome::from(failure))]
    });
    assert!(
        failed
            .advice
            .is_some_and(|advice| advice.contains("dlq replay to run it again"))
    );
}

#[test]
fn a_broker_that_is_away_is_said_of_what_is_in_hand_only() {
    let said = |events: &[Event]| {
        let journal = Journal::default();
        for event in events {
            journal.note(event, 1_000);
        }
        let beside = Beside {
            trouble: Some("This worker is not connected to the broker."),
            ..Beside::default()
        };
        explain(&journal.find("a-1", None, 1)[0], beside, 60_000)
    };
    let who = identity();
    let end = || ended(&who, Outcome::Success(Default::default()));
    let running = said(&[accepted(&who), started(&who)]);
    assert!(
        running
            .summary
            .contains("not connected to the broker. It goes on"),
        "{}",
        running.summary
    );
    let answering = said(&[accepted(&who), started(&who), end()]);
    assert!(
        answering.summary.contains("The answer is kept, and sent when"),
        "{}",
        answering.summary
    );
    assert_eq!(answering.advice, None);
    let over = said(&[accepted(&who), started(&who), end(), concluded(&who)]);
    assert!(!over.summary.contains("not connected"), "{}", over.summary);
}

#[test]
fn a_claim_tells_since_when_and_where_the_result_is_and_what_it_does_not_know() {
    let words = |state: &str, refused: bool, held: bool| {
        let record = serde_json::json!({
            "owner": "p", "worker_id": "w-1", "stream": "s", "sequence": 1, "attempt": 1, "first_start_ms": 0,
            "state": state, "refused": refused, "ack": null,
            "outcome": {"hash": "", "position": ["results", 9]},
        });
        let record = serde_json::from_value(record).expect("is a record");
        ClaimView::of(&record, ("w-1", held), 30_000).words
    };
    let finished = words("finished", false, false);
    assert!(
        finished.contains("message 9 of stream results") && finished.contains("does not say"),
        "{finished}"
    );
    assert!(words("finished", true, false).contains("refused it"));
    let running = words("running", false, false);
    assert!(
        running.contains("earlier life")
            && running.contains("first started at 1970-01-01")
            && running.contains("nats.ack_wait_ms (30.0 s)"),
        "{running}"
    );
    assert!(!words("running", false, true).contains("ack_wait"));
}
