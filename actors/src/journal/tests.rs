use std::time::Duration;

use caf_protocol::ack::RejectReason;
use caf_protocol::assignment::Identity;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use proptest::prelude::*;

use super::entry::{FIRST_NOTES, LAST_NOTES};
use super::*;
use crate::events;

fn identity(id: &str, tenant: &str) -> Arc<Identity> {
    Arc::new(Identity {
        assignment_id: id.into(),
        tenant_id: tenant.into(),
        job_type: Some("echo".into()),
        ..Identity::default()
    })
}

fn ended(identity: &Arc<Identity>, outcome: Outcome, latency_ms: u64) -> Event {
    let step = StepResult {
        cost: Default::default(),
        outcome,
        latency_ms,
        retries_used: 0,
    };
    events::step_ended(identity, &step)
}

fn received(identity: &Arc<Identity>) -> Event {
    events::course::received(identity, Some(("stream", 7)), Some(1))
}

fn accepted(identity: &Arc<Identity>) -> Event {
    events::course::accepted(identity, "io", Duration::from_secs(30), 3)
}

fn concluded(identity: &Arc<Identity>) -> Event {
    events::course::concluded(identity, &events::course::Confirmed::default(), true)
}

fn phase(journal: &Journal, id: &str) -> Phase {
    journal.find(id, None, 1)[0].entry.phase
}

fn failure() -> Failure {
    Failure::new(ErrorCode::NetworkError, "no route, password=hunter2")
}

/// Each message is the one of the very event that stations emit: a line that is renamed fails here.
#[test]
fn the_phase_of_an_assignment_follows_the_events_of_the_stations() {
    let (journal, who) = (Journal::default(), identity("a", "acme"));
    let after = |event: Event| {
        journal.note(&event, 1_000);
        phase(&journal, "a")
    };
    assert_eq!(after(received(&who)), Phase::Deciding);
    assert_eq!(after(accepted(&who)), Phase::Waiting);
    assert_eq!(after(events::step_started(&who, "io", 3)), Phase::Running);
    assert_eq!(
        after(events::attempt_failed(&who, &failure(), 0, 400)),
        Phase::WaitingForRetry
    );
    assert_eq!(
        journal.find("a", None, 1)[0].entry.until_ms,
        Some(1_400),
        "the wait counts from the failure"
    );
    assert_eq!(after(events::course::called_again(&who, 2, 3)), Phase::Running);
    // The same message again, and a copy, while it runs.
    assert_eq!(after(received(&who)), Phase::Running);
    assert_eq!(after(events::not_run(&who, "held here")), Phase::Running);
    let copy = "copy of an assignment that is held";
    assert_eq!(after(events::not_run(&who, copy)), Phase::Running);
    assert_eq!(after(ended(&who, Outcome::from(failure()), 5)), Phase::Answering);
    let part = events::course::Part::Result;
    assert_eq!(after(events::course::unconfirmed(&who, part)), Phase::Answering);
    assert_eq!(after(concluded(&who)), Phase::Finished);
    assert_eq!(after(received(&who)), Phase::Deciding);
    assert_eq!(after(events::answered_again(&who)), Phase::Finished);
    assert_eq!(after(received(&who)), Phase::Deciding);
    assert_eq!(
        after(events::not_run(&who, "held by another worker")),
        Phase::Elsewhere
    );
    assert_eq!(after(received(&who)), Phase::Deciding);
    let class = caf_protocol::block::ResourceClass::Io;
    assert_eq!(
        after(events::queue::deferred(&who, class, (5, 10), 200)),
        Phase::Deferred
    );
    assert_eq!(after(received(&who)), Phase::Deciding);
    assert_eq!(after(events::queue_full(&who, "io", 10, 10)), Phase::Answering);
    assert_eq!(after(accepted(&who)), Phase::Waiting);
    assert_eq!(after(events::not_run(&who, "draining")), Phase::Returned);
    assert_eq!(after(accepted(&who)), Phase::Waiting);
    assert_eq!(after(events::cut_off(&who, true)), Phase::Returned);
    assert_eq!(after(accepted(&who)), Phase::Waiting);
    assert_eq!(
        after(events::result_suppressed(Some(&who), "taken over")),
        Phase::Elsewhere
    );
    for reason in [RejectReason::InvalidField, RejectReason::UnsupportedJobType] {
        assert_eq!(after(received(&who)), Phase::Deciding);
        assert_eq!(
            after(events::rejected(&who, reason, &failure())),
            Phase::Answering
        );
        assert_eq!(after(concluded(&who)), Phase::Finished);
    }
}

#[test]
fn what_is_kept_of_a_failure_is_masked_and_cut() {
    let (journal, who) = (Journal::default(), identity("a", "acme"));
    let long = Failure::new(
        ErrorCode::NetworkError,
        format!("token=s3cret {}", "ü".repeat(5_000)),
    );
    journal.note(&ended(&who, Outcome::from(long), 5), 0);
    let found = journal.find("a", None, 1);
    let kept = format!("{:?}", found[0].entry.notes().collect::<Vec<_>>());
    assert!(
        kept.contains("NETWORK_ERROR") && !kept.contains("s3cret"),
        "{kept}"
    );
    let flow = journal.flow();
    let failure = flow.failures().next().expect("one failed");
    assert!(failure.message.starts_with("token=[REDACTED]") && failure.message.len() <= 256);
    assert_eq!(
        (failure.error_code.as_str(), failure.attempts),
        ("NETWORK_ERROR", 1)
    );
}

#[test]
fn assignments_of_several_tenants_with_one_id_are_told_apart() {
    let journal = Journal::default();
    for tenant in ["acme", "other", "zeta"] {
        journal.note(&received(&identity("a", tenant)), 0);
    }
    journal.note(&received(&identity("ab", "acme")), 0);
    let tenants = |found: Vec<Found>| found.into_iter().map(|found| found.tenant_id).collect::<Vec<_>>();
    assert_eq!(tenants(journal.find("a", None, 10)), ["zeta", "other", "acme"]);
    assert_eq!(tenants(journal.find("a", None, 2)), ["zeta", "other"]);
    assert_eq!(tenants(journal.find("a", Some("other"), 10)), ["other"]);
    assert_eq!(tenants(journal.find("a", Some("othe"), 10)), [""; 0]);
    assert_eq!(tenants(journal.find("", None, 10)), [""; 0]);
}

#[test]
fn who_waits_is_told_how_many_are_before_it_and_who_has_the_slots() {
    let journal = Journal::default();
    for id in ["r", "w1", "w2", "w3"] {
        let who = identity(id, "acme");
        journal.note(&received(&who), 0);
        journal.note(&accepted(&who), 10);
    }
    let elsewhere = identity("cpu", "acme");
    journal.note(
        &events::course::accepted(&elsewhere, "cpu", Duration::from_secs(1), 1),
        10,
    );
    journal.note(&events::step_started(&identity("r", "acme"), "io", 0), 20);
    let found = &journal.find("w2", None, 1)[0];
    assert_eq!((found.before, found.waiting), (1, 3));
    let holders: Vec<_> = found
        .slots
        .iter()
        .map(|slot| slot.assignment_id.as_str())
        .collect();
    assert_eq!(holders, ["r"]);
    let running = journal.running(10);
    assert_eq!(
        (running.len(), running[0].since_ms, running[0].deadline_ms),
        (1, 20, Some(30_010))
    );
}

#[test]
fn what_events_say_is_read_back_as_it_was_said() {
    let journal = Journal::default();
    let mut who = (*identity("a", "acme")).clone();
    who.replay = 2;
    let who = Arc::new(who);
    let at_ms = 1_900_000_000_123;
    let long = Failure::new(ErrorCode::NetworkError, "ü".repeat(200));
    for event in [
        accepted(&who),
        events::cut_off(&who, false),
        events::cut_off(&who, true),
        events::attempt_failed(&who, &long, 0, u64::MAX),
    ] {
        journal.note(&event, at_ms);
    }
    let entry = &journal.find("a", None, 1)[0].entry;
    let told: Vec<_> = entry
        .notes()
        .map(|note| serde_json::to_value(note).unwrap())
        .collect();
    let replay = |event: &str, mut facts: serde_json::Value| {
        facts["replay"] = 2.into();
        serde_json::json!({"at_ms": at_ms, "event": event, "facts": facts})
    };
    let accepted = serde_json::json!({"resource_class": "io", "time_left_ms": 30_000, "max_attempts": 3});
    let failed = serde_json::json!({
        "attempt": 0, "backoff_delay_ms": u64::MAX, "error_code": "NETWORK_ERROR", "error": "ü".repeat(128),
    });
    assert_eq!(
        told,
        [
            replay("Assignment accepted", accepted),
            replay(
                "Step cut off by shutdown",
                serde_json::json!({"handed_back": false})
            ),
            replay(
                "Step cut off by shutdown",
                serde_json::json!({"handed_back": true})
            ),
            replay("Attempt failed", failed),
        ]
    );
}

#[test]
fn a_long_life_keeps_its_beginning_and_its_end() {
    let (journal, who) = (Journal::default(), identity("a", "acme"));
    for at in 0..1_000 {
        journal.note(&received(&who), at);
    }
    let entry = &journal.find("a", None, 1)[0].entry;
    let times: Vec<_> = entry.notes().map(|note| note.at_ms).collect();
    assert_eq!(times.len(), FIRST_NOTES + LAST_NOTES);
    assert_eq!(
        (times[0], times[FIRST_NOTES], times[times.len() - 1]),
        (0, 968, 999)
    );
    assert_eq!(entry.left_out, 1_000 - 48);
}

#[test]
fn what_runs_is_never_pushed_out_by_what_is_finished() {
    let journal = Journal::new(10, MAX_BYTES);
    for n in 0..5 {
        let who = identity(&format!("running-{n}"), "acme");
        journal.note(&accepted(&who), 0);
        journal.note(&events::step_started(&who, "io", 0), 0);
    }
    for n in 0..1_000 {
        let who = identity(&format!("done-{n}"), "acme");
        journal.note(&accepted(&who), 0);
        journal.note(&concluded(&who), 0);
    }
    assert_eq!(journal.running(100).len(), 5);
    let memory = journal.memory();
    assert_eq!((memory.assignments, memory.forgotten), (10, 995));
    assert!(journal.find("done-994", None, 1).is_empty());
    assert_eq!(
        journal.find("done-995", None, 1).len(),
        1,
        "the youngest are kept"
    );
}

proptest! {
    #[test]
    fn neither_bound_is_ever_exceeded_and_the_bytes_are_the_sum_of_the_entries(
        steps in prop::collection::vec((0usize..40, 0usize..8), 0..300),
    ) {
        let journal = Journal::new(20, 5_000);
        for (who, what) in steps {
            let who = identity(&"x".repeat(who + 1), "acme");
            let event = match what {
                0 => received(&who),
                1 => accepted(&who),
                2 => events::step_started(&who, "io", 0),
                3 => ended(&who, Outcome::from(failure()), 1),
                4 => concluded(&who),
                5 => events::not_run(&who, "draining"),
                6 => events::attempt_failed(&who, &failure(), 0, 1),
                _ => events::panicked("place", "thread"),
            };
            journal.note(&event, 0);
            let memory = journal.memory();
            prop_assert!(memory.assignments <= 20 && memory.bytes <= 5_000);
        }
        journal.state().book.check();
    }
}

#[test]
fn buckets_count_by_outcome_and_tell_latencies_within_their_bounds() {
    let (journal, who) = (Journal::default(), identity("a", "acme"));
    let start = 1_000_000_000;
    for latency in [10, 10, 10, 400] {
        journal.note(&ended(&who, Outcome::Success(Default::default()), latency), start);
    }
    journal.note(&ended(&who, Outcome::from(failure()), 10), start + 5_000);
    journal.note(&events::queue_full(&who, "io", 1, 1), start + 5_000);
    // The clock was set back: it counts in the newest bucket.
    journal.note(
        &ended(&who, Outcome::from(Failure::timeout("x")), 10),
        start - 60_000,
    );
    let flow = journal.flow();
    let buckets = flow.buckets(start + 9_000);
    assert_eq!(buckets.len(), BUCKETS);
    let [.., first, last] = &buckets[..] else {
        panic!("there are two")
    };
    assert_eq!((first.at_s, first.outcomes.success), (start / 1000, 4));
    assert_eq!((first.p50_ms, first.p95_ms), (Some(10.0), Some(400.0)));
    let outcomes = last.outcomes;
    assert_eq!((outcomes.error, outcomes.rejected, outcomes.timeout), (1, 1, 1));
    // An hour later nothing of it is left, and the total is.
    let later = flow.buckets(start + 3_600_000);
    assert_eq!(
        (later.len(), later.iter().map(|b| b.outcomes.success).sum::<u64>()),
        (BUCKETS, 0)
    );
    assert_eq!(flow.total.success, 4);
}

#[test]
fn no_latency_is_told_that_did_not_happen() {
    let told = |latencies: &[u64]| {
        let (journal, who) = (Journal::default(), identity("a", "acme"));
        for latency in latencies {
            journal.note(
                &ended(&who, Outcome::Success(Default::default()), *latency),
                5_000,
            );
        }
        let last = journal.flow().buckets(5_000).pop().expect("there is one");
        (last.p50_ms, last.p95_ms)
    };
    assert_eq!(told(&[80_000]), (Some(80_000.0), Some(80_000.0)));
    assert_eq!(told(&[80_000, 81_000]), (Some(80_000.0), Some(81_000.0)));
    assert_eq!(told(&[0, 0, 7_200_000]), (Some(0.0), Some(7_200_000.0)));
    let hundred: Vec<u64> = (1..=100).map(|n| 60_000 + n).collect();
    assert_eq!(told(&hundred), (Some(60_050.0), Some(60_095.0)));
    assert_eq!(told(&[]), (None, None));
}

#[test]
fn a_job_that_never_got_a_slot_made_no_call() {
    let (journal, who) = (Journal::default(), identity("a", "acme"));
    journal.note(&accepted(&who), 0);
    let late =
        || Outcome::from(Failure::timeout("the deadline of the assignment").with("waiting", true.into()));
    journal.note(&ended(&who, late(), 30_000), 30_000);
    let attempts = |journal: &Journal| journal.flow().failures().next().map(|failure| failure.attempts);
    assert_eq!(attempts(&journal), Some(0));
    let entry = &journal.find("a", None, 1)[0].entry;
    assert!(entry.notes().last().is_some_and(|note| note.is_true("waiting")));
    let who = identity("b", "acme");
    for event in [
        accepted(&who),
        events::step_started(&who, "io", 0),
        ended(&who, late(), 5),
    ] {
        journal.note(&event, 0);
    }
    assert_eq!(attempts(&journal), Some(1));
}

#[test]
fn what_two_events_say_is_kept_once() {
    let (journal, who) = (Journal::default(), identity("a", "acme"));
    let class = caf_protocol::block::ResourceClass::Io;
    let refused = |cannot_defer| crate::pool::Refused {
        depth: 1,
        cannot_defer,
    };
    journal.note(&events::queue_full(&who, "io", 1, 1), 0);
    journal.note(&events::queue::refused(&who, class, refused(false), 1), 0);
    assert_eq!(journal.find("a", None, 1)[0].entry.notes().count(), 1);
    journal.note(&events::queue::refused(&who, class, refused(true), 1), 0);
    assert_eq!(journal.find("a", None, 1)[0].entry.notes().count(), 2);
}

#[test]
fn a_flood_of_refusals_does_not_push_real_failures_out() {
    let journal = Journal::default();
    journal.note(&ended(&identity("a", "acme"), Outcome::from(failure()), 1), 0);
    for n in 0..1_000 {
        journal.note(
            &events::queue_full(&identity(&format!("{n}"), "acme"), "io", 1, 1),
            n,
        );
    }
    let flow = journal.flow();
    let failures: Vec<_> = flow.failures().collect();
    assert_eq!(
        (failures.len(), failures[0].count, failures[0].at_ms),
        (2, 1_000, 999)
    );
    assert_eq!(failures[0].error_code, "SYSTEM_OVERLOAD");
    for n in 0..1_000 {
        journal.note(
            &ended(&identity(&format!("{n}"), "acme"), Outcome::from(failure()), 1),
            0,
        );
    }
    assert_eq!(journal.flow().failures().count(), MAX_FAILURES);
}

#[test]
fn restarts_and_the_beginning_of_the_drain_are_noted() {
    let journal = Journal::default();
    journal.note(&events::actor_restarted("pool.io", true, 1), 5);
    journal.note(&events::actor_restarted("pool.io", true, 2), 6);
    journal.note(&events::shutting_down("SIGTERM", 3), 7);
    journal.note(&events::shutting_down("SIGTERM", 3), 8);
    assert_eq!(journal.restarts()["pool.io"], 2);
    assert_eq!(journal.draining_since_ms(), Some(7));
}
