//! The book of who can be cancelled, without actors.

use caf_protocol::ids::{Correlation, RunFlowStep};
use proptest::prelude::*;

use super::*;

const TTL: Duration = Duration::from_secs(60);

fn cancellations() -> Cancellations {
    Cancellations::new(TTL, 100, Log::discard())
}

fn identity(tenant: &str, assignment: &str) -> Arc<Identity> {
    Arc::new(Identity {
        tenant_id: tenant.to_owned(),
        assignment_id: assignment.to_owned(),
        correlation: Correlation {
            raw: RunFlowStep {
                run_id: Some("run-1".to_owned()),
                flow_id: None,
                step_id: Some(format!("step-{assignment}")),
            },
            ..Correlation::default()
        },
        ..Identity::default()
    })
}

fn request(tenant: &str, target: Target) -> CancelRequest {
    CancelRequest {
        tenant_id: tenant.to_owned(),
        target,
        reason: None,
    }
}

fn assignment(id: &str) -> Target {
    Target::Assignment(id.to_owned())
}

fn enter(cancellations: &Cancellations, tenant: &str, id: &str) -> Cancellable {
    cancellations.enter(&identity(tenant, id), CancellationToken::new(), Instant::now())
}

fn ask(cancellations: &Cancellations, tenant: &str, target: Target) -> (CancelOutcome, u64, Option<u64>) {
    let answer = cancellations
        .ask(&request(tenant, target), Asker::Subject, None, Instant::now())
        .expect("it is on");
    (answer.outcome, answer.cancelled, answer.tombstone_s)
}

#[test]
fn a_job_is_cancelled_by_its_assignment_its_run_or_its_step_and_by_its_tenant_only() {
    let targets = [
        assignment("a"),
        Target::Run("run-1".to_owned()),
        Target::Step("step-a".to_owned()),
    ];
    for target in targets {
        let all = cancellations();
        let (own, others) = (enter(&all, "acme", "a"), enter(&all, "evil", "a"));
        assert_eq!(ask(&all, "nobody", target.clone()).0, CancelOutcome::Unknown);
        assert_eq!(
            ask(&all, "acme", target),
            (CancelOutcome::Cancelled, 1, Some(TTL.as_secs()))
        );
        assert!(own.token().is_cancelled() && matches!(own.stop(), Stop::Asked(_)));
        assert!(!others.token().is_cancelled() && others.asked().is_none());
    }
    // The name of a step is not that of an assignment.
    let all = cancellations();
    let job = enter(&all, "acme", "a");
    assert_eq!(
        ask(&all, "acme", Target::Step("a".to_owned())).0,
        CancelOutcome::Unknown
    );
    assert!(job.asked().is_none());
}

#[test]
fn a_request_counts_until_the_outcome_is_sealed_and_then_the_answer_says_so() {
    let all = cancellations();
    let job = enter(&all, "acme", "a");
    assert_eq!(job.seal(), None);
    assert_eq!(
        ask(&all, "acme", assignment("a")),
        (CancelOutcome::Finished, 0, None)
    );
    assert!(!job.token().is_cancelled() && job.seal().is_none());

    let job = enter(&all, "acme", "b");
    assert_eq!(ask(&all, "acme", assignment("b")).0, CancelOutcome::Cancelled);
    let asked = job.seal().expect("it decides");
    assert_eq!(asked.failure().code, ErrorCode::CancelledByUser);
    // Asked again, nothing changes.
    assert_eq!(ask(&all, "acme", assignment("b")).0, CancelOutcome::Finished);
}

#[test]
fn asked_again_is_harmless_and_the_first_reason_stands() {
    let all = cancellations();
    let job = enter(&all, "acme", "a");
    for (reason, by) in [("first", Asker::Admin), ("second", Asker::Subject)] {
        let request = CancelRequest {
            reason: Some(reason.to_owned()),
            ..request("acme", assignment("a"))
        };
        let answer = all.ask(&request, by, None, Instant::now()).expect("it is on");
        assert_eq!((answer.outcome, answer.cancelled), (CancelOutcome::Cancelled, 1));
    }
    let asked = job.asked().expect("somebody has");
    assert_eq!((asked.by, asked.reason.as_deref()), (Asker::Admin, Some("first")));
}

#[test]
fn what_is_not_here_is_cancelled_when_it_comes_and_so_is_what_comes_again() {
    let all = cancellations();
    assert_eq!(
        ask(&all, "acme", assignment("late")),
        (CancelOutcome::Unknown, 0, Some(TTL.as_secs()))
    );
    let job = enter(&all, "acme", "late");
    assert!(job.token().is_cancelled() && job.asked().is_some());
    drop(job);
    // It was lost on its way, and is delivered again.
    assert!(enter(&all, "acme", "late").asked().is_some());
    assert!(enter(&all, "evil", "late").asked().is_none());
    let later = Instant::now() + TTL;
    let after = all.enter(&identity("acme", "late"), CancellationToken::new(), later);
    assert!(after.asked().is_none());
}

#[test]
fn a_run_is_cancelled_as_a_whole_with_what_comes_of_it_later() {
    let all = cancellations();
    let jobs: Vec<_> = ["a", "b", "c"].map(|id| enter(&all, "acme", id)).into();
    assert_eq!(jobs[0].seal(), None);
    let run = Target::Run("run-1".to_owned());
    assert_eq!(ask(&all, "acme", run.clone()).1, 2);
    assert!(jobs[0].asked().is_none() && jobs[1].asked().is_some() && jobs[2].asked().is_some());
    drop(jobs);
    assert!(enter(&all, "acme", "d").asked().is_some());
}

#[test]
fn a_shutdown_is_told_from_a_request_and_a_request_wins() {
    let (all, parent) = (cancellations(), CancellationToken::new());
    let job = all.enter(&identity("acme", "a"), parent.child_token(), Instant::now());
    parent.cancel();
    assert!(job.token().is_cancelled());
    assert_eq!(job.stop(), Stop::Shutdown);
    assert_eq!(ask(&all, "acme", assignment("a")).0, CancelOutcome::Cancelled);
    assert!(matches!(job.stop(), Stop::Asked(_)));
}

#[test]
fn while_the_feature_is_off_nothing_is_kept_and_nobody_is_cancelled() {
    let off = Cancellations::off();
    let job = enter(&off, "acme", "a");
    let asked = off.ask(
        &request("acme", assignment("a")),
        Asker::Admin,
        None,
        Instant::now(),
    );
    assert_eq!((asked, off.tombstones(Instant::now())), (None, None));
    assert!(job.asked().is_none() && job.seal().is_none() && !job.token().is_cancelled());
}

#[test]
fn what_has_left_leaves_nothing_in_the_book() {
    let all = cancellations();
    let jobs: Vec<_> = (0..50).map(|n| enter(&all, "acme", &n.to_string())).collect();
    drop(jobs);
    let book = all.0.as_ref().expect("it is on").book();
    assert!(book.held.is_empty() && book.named.is_empty());
}

#[test]
fn a_request_and_an_end_at_the_same_time_agree_on_who_was_first() {
    for _ in 0..500 {
        let all = cancellations();
        let job = enter(&all, "acme", "a");
        let asking = all.clone();
        let asked = std::thread::spawn(move || ask(&asking, "acme", assignment("a")).0);
        let sealed = job.seal().is_some();
        let outcome = asked.join().expect("does not panic");
        let expected = match sealed {
            true => CancelOutcome::Cancelled,
            false => CancelOutcome::Finished,
        };
        assert_eq!(outcome, expected);
    }
}

proptest! {
    /// Whatever the order: who was asked for before its outcome was sealed is cancelled, and nobody else.
    #[test]
    fn answers_say_what_happens(steps in prop::collection::vec((0u8..3, 0usize..6), 0..60)) {
        let all = cancellations();
        let mut jobs: Vec<Option<(Cancellable, bool)>> = (0..6).map(|_| None).collect();
        let mut wanted = [false; 6];
        for (step, n) in steps {
            let id = n.to_string();
            match (step, jobs[n].is_some()) {
                (0, false) => {
                    let job = enter(&all, "acme", &id);
                    prop_assert_eq!(job.asked().is_some(), wanted[n]);
                    jobs[n] = Some((job, false));
                }
                (1, _) => {
                    let (outcome, ..) = ask(&all, "acme", assignment(&id));
                    let expected = match &jobs[n] {
                        None => CancelOutcome::Unknown,
                        Some((_, true)) => CancelOutcome::Finished,
                        Some((_, false)) => CancelOutcome::Cancelled,
                    };
                    prop_assert_eq!(outcome, expected);
                    wanted[n] = expected != CancelOutcome::Finished;
                }
                (2, true) => {
                    let (job, sealed) = jobs[n].take().expect("is there");
                    if !sealed {
                        prop_assert_eq!(job.seal().is_some(), wanted[n]);
                        jobs[n] = Some((job, true));
                    }
                }
                _ => {}
            }
        }
    }
}
