//! Attempts and waits of one job on a paused clock: when the block is called, and what is told of it.

mod bench;
mod breakers;
mod models;

use caf_protocol::block::CancellationToken;
use serde_json::json;

use self::bench::{Bench, Call, NEVER, answered, failed, policy};
use super::*;
use crate::settings::policies::{Jitter, TotalLimit};

const NETWORK: ErrorCode = ErrorCode::NetworkError;

fn total(total_timeout_ms: u64, enforce_across_retries: bool) -> Option<TotalLimit> {
    Some(TotalLimit {
        total_timeout_ms,
        enforce_across_retries,
    })
}

/// Name and length of the limit that a failure says it ran into.
fn limit_of(outcome: &Outcome) -> (ErrorCode, serde_json::Value, serde_json::Value) {
    let failure = outcome.failure().expect("it failed");
    let fact = |key| failure.details.get(key).cloned().unwrap_or_default();
    (failure.code, fact("limit"), fact("limit_ms"))
}

/// POC-001.
#[tokio::test(start_paused = true)]
async fn waits_grow_exponentially_with_the_flag_on() {
    let bench = Bench::by_policy(policy()).asking(4, 100);
    let done = bench.run([Call::fails(failed(NETWORK))]).await;
    assert_eq!(done.called_at_ms, [0, 100, 300, 700]);
    assert_eq!(done.error_code(), "NETWORK_ERROR");
    assert_eq!(done.retries_used, 3);
}

/// POC-004.
#[tokio::test(start_paused = true)]
async fn waits_grow_by_100_ms_with_the_flag_off() {
    let done = Bench::cp1()
        .asking(4, 7_000)
        .run([Call::fails(failed(NETWORK))])
        .await;
    assert_eq!(done.called_at_ms, [0, 100, 300, 600]);
    assert_eq!(
        Bench::cp1().run([Call::fails(failed(NETWORK))]).await.calls(),
        4,
        "calls where the assignment does not say"
    );
}

/// POC-005.
#[tokio::test(start_paused = true)]
async fn the_flag_switches_waits_and_classification() {
    let denied = failed(ErrorCode::PermissionDenied);
    for (bench, after_network, after_denied) in [
        (Bench::cp1(), vec![0, 100, 300], vec![0, 100, 300]),
        (Bench::by_policy(policy()), vec![0, 50, 150], vec![0]),
    ] {
        let bench = bench.asking(3, 50);
        let network = bench.run([Call::fails(failed(NETWORK))]).await;
        assert_eq!(network.called_at_ms, after_network);
        let denied = bench.run([Call::fails(denied.clone())]).await;
        assert_eq!(denied.called_at_ms, after_denied);
    }
}

/// POC-002, 006 and 007.
#[tokio::test(start_paused = true)]
async fn errors_that_may_pass_are_retried() {
    let bench = Bench::by_policy(policy()).asking(3, 10);
    for failure in [
        failed(NETWORK),
        failed(ErrorCode::ConnectionTimeout),
        answered(503),
        answered(429),
        answered(408),
    ] {
        let done = bench.run([Call::fails(failure.clone())]).await;
        assert_eq!(done.calls(), 3, "{failure:?}");
    }
}

/// POC-003 and 008, and the statuses of POC-006 that no call changes.
#[tokio::test(start_paused = true)]
async fn errors_that_stay_are_not_retried_however_often_the_assignment_asks() {
    let bench = Bench::by_policy(policy()).asking(100, 10);
    for failure in [
        failed(ErrorCode::InvalidInput),
        failed(ErrorCode::PermissionDenied),
        failed(ErrorCode::UnknownError),
        answered(400),
        answered(404),
    ] {
        let done = bench.run([Call::fails(failure.clone())]).await;
        assert_eq!(done.calls(), 1, "{failure:?}");
        assert!(done.messages().is_empty(), "nothing is exhausted");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_runs_when_the_budget_is_over_is_ended() {
    let mut policy = policy();
    policy.default_policy.retry_budget_ms = 1_000;
    let bench = Bench::by_policy(policy).asking(9, 100);
    let calls = [
        Call::fails(failed(NETWORK)),
        Call {
            takes_ms: NEVER,
            result: Ok(()),
        },
    ];
    let done = bench.run(calls).await;
    assert_eq!((done.calls(), done.ended_at_ms), (2, 1_000));
    assert_eq!(done.status(), "timeout");
    let limit = (ErrorCode::CancelledByTimeout, json!("retry_budget"), json!(1_000));
    assert_eq!(limit_of(&done.outcome), limit);
    assert_eq!(
        done.line("Retry exhausted")["context"]["retry_budget_used_ms"],
        1_000
    );
}

#[tokio::test(start_paused = true)]
async fn a_job_ends_at_once_when_its_next_wait_would_outlast_the_budget() {
    let mut policy = policy();
    policy.default_policy.retry_budget_ms = 1_000;
    let bench = Bench::by_policy(policy).asking(9, 300);
    let done = bench.run([Call::fails(failed(NETWORK))]).await;
    assert_eq!(done.called_at_ms, [0, 300, 900]);
    assert_eq!((done.ended_at_ms, done.status()), (900, "timeout"));
    assert_eq!(limit_of(&done.outcome).1, "retry_budget");
}

#[tokio::test(start_paused = true)]
async fn the_budget_begins_with_the_first_call_and_not_with_the_wait_for_a_slot() {
    let mut policy = policy();
    policy.default_policy.retry_budget_ms = 1_000;
    let mut bench = Bench::by_policy(policy).asking(2, 10);
    bench.queued_ms = 5_000;
    let calls = [Call {
        takes_ms: 900,
        result: Ok(()),
    }];
    assert_eq!(bench.run(calls).await.status(), "success");
}

#[tokio::test(start_paused = true)]
async fn what_the_other_side_asks_for_is_waited_within_the_budget() {
    let bench = Bench::by_policy(policy()).asking(3, 10);
    let asking = |ms: u64| answered(429).with(retry::backoff::RETRY_AFTER_MS, ms.into());
    let calls = [Call::fails(asking(2_000)), Call::fails(asking(3)), Call::works()];
    let done = bench.run(calls).await;
    assert_eq!(done.called_at_ms, [0, 2_000, 2_020]);
    let done = bench.run([Call::fails(asking(30_000))]).await;
    assert_eq!((done.calls(), done.ended_at_ms, done.status()), (1, 0, "timeout"));
    let done = Bench::cp1().asking(2, 10).run([Call::fails(asking(2_000))]).await;
    assert_eq!(done.called_at_ms, [0, 100], "not with the flag off");
}

#[tokio::test(start_paused = true)]
async fn the_total_limit_covers_all_calls_with_and_without_the_retry_flag() {
    for mut bench in [Bench::cp1(), Bench::by_policy(policy())] {
        bench.rules.total = total(1_000, true);
        let slow = Call {
            takes_ms: 450,
            result: Err(failed(NETWORK)),
        };
        let done = bench.asking(9, 100).run([slow]).await;
        assert_eq!((done.called_at_ms, done.ended_at_ms), (vec![0, 550], 1_000));
        let limit = (
            ErrorCode::CancelledByTimeout,
            json!("total_timeout"),
            json!(1_000),
        );
        assert_eq!(limit_of(&done.outcome), limit);
    }
}

#[tokio::test(start_paused = true)]
async fn a_total_limit_of_each_call_begins_anew_with_each_and_ends_the_job_all_the_same() {
    for mut bench in [Bench::cp1(), Bench::by_policy(policy())] {
        bench.rules.total = total(500, false);
        let call = |takes_ms, result| Call { takes_ms, result };
        let bench = bench.asking(2, 100);
        let done = bench
            .run([call(450, Err(failed(NETWORK))), call(450, Ok(()))])
            .await;
        assert_eq!(
            (done.called_at_ms.clone(), done.status()),
            (vec![0, 550], "success")
        );
        let done = bench.run([call(NEVER, Ok(()))]).await;
        assert_eq!(
            (done.calls(), done.ended_at_ms, done.status()),
            (1, 500, "timeout")
        );
        let limit = (ErrorCode::CancelledByTimeout, json!("total_timeout"), json!(500));
        assert_eq!(limit_of(&done.outcome), limit);
    }
}

#[tokio::test(start_paused = true)]
async fn under_cp1_the_deadline_ends_a_wait_and_says_what_it_always_said() {
    let mut bench = Bench::cp1().asking(9, 100);
    bench.deadline_ms = 250;
    let done = bench.run([Call::fails(failed(NETWORK))]).await;
    assert_eq!((done.called_at_ms.clone(), done.ended_at_ms), (vec![0, 100], 250));
    assert_eq!(
        done.outcome,
        Outcome::from(Failure::timeout("the deadline of the assignment").by(RanOut::Deadline))
    );
}

#[tokio::test(start_paused = true)]
async fn by_policy_a_wait_that_reaches_the_deadline_holds_no_slot_and_the_last_failure_is_told() {
    let mut bench = Bench::by_policy(policy()).asking(9, 100);
    bench.deadline_ms = 250;
    let done = bench.run([Call::fails(answered(503))]).await;
    assert_eq!((done.called_at_ms.clone(), done.ended_at_ms), (vec![0, 100], 100));
    assert_eq!(done.status(), "timeout");
    let failure = done.outcome.failure().expect("it failed");
    assert_eq!(failure.details["next_wait_ms"], 200);
    let last = &failure.details["last_error"];
    assert_eq!(
        (&last["code"], &last["status_code"]),
        (&json!("HTTP_ERROR"), &json!(503))
    );
    let exhausted = done.lines_of("Retry exhausted");
    assert!(exhausted.is_empty(), "the deadline is no budget");
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_ends_a_wait_at_once() {
    let bench = Bench::by_policy(policy()).asking(9, 10_000);
    let cancel = CancellationToken::new();
    let soon = async {
        tokio::time::sleep(Duration::from_millis(70)).await;
        cancel.cancel();
        std::future::pending::<()>().await;
    };
    let done = tokio::select! {
        done = bench.run_until([Call::fails(failed(NETWORK))], cancel.clone()) => done,
        () = soon => unreachable!("it never ends"),
    };
    assert_eq!(
        (done.calls(), done.ended_at_ms, done.status()),
        (1, 70, "cancelled")
    );
}

#[tokio::test(start_paused = true)]
async fn a_job_told_to_skip_retries_is_called_once() {
    for mut bench in [Bench::cp1(), Bench::by_policy(policy())] {
        bench.skip_retries = true;
        let done = bench.asking(9, 10).run([Call::fails(failed(NETWORK))]).await;
        assert_eq!((done.calls(), done.status()), (1, "error"));
    }
}

/// Contract 8.2.
#[tokio::test(start_paused = true)]
async fn a_retry_that_helps_is_told_and_measured() {
    let bench = Bench::by_policy(policy()).asking(4, 100);
    let done = bench
        .run([
            Call::fails(failed(NETWORK)),
            Call::fails(answered(503)),
            Call::works(),
        ])
        .await;
    let expected = [
        "Attempt failed",
        "Attempt started",
        "Retry attempt started",
        "Attempt failed",
        "Attempt started",
        "Retry attempt started",
        "Retry succeeded",
    ];
    assert_eq!(done.messages(), expected);
    let started = &done.lines_of("Retry attempt started")[1];
    assert_eq!(started["level"], "INFO");
    let context = &started["context"];
    for (key, expected) in [
        ("error_code", json!("HTTP_ERROR")),
        ("attempt", json!(2)),
        ("max_attempts", json!(4)),
        ("backoff_delay_ms", json!(200)),
        ("retryable", json!(true)),
    ] {
        assert_eq!(context[key], expected, "{key}");
    }
    let succeeded = done.line("Retry succeeded");
    assert_eq!(succeeded["level"], "INFO");
    for (key, expected) in [
        ("error_code", json!("HTTP_ERROR")),
        ("attempt", json!(2)),
        ("total_attempts", json!(3)),
        ("retry_budget_used_ms", json!(300)),
    ] {
        assert_eq!(succeeded["context"][key], expected, "{key}");
    }
    let expected = [
        "worker_wait_seconds[retry] 0.1",
        "worker_retry_attempts_total[NETWORK_ERROR,probe,true] 1",
        "worker_retry_backoff_duration_seconds[1,probe] 0.1",
        "worker_wait_seconds[retry] 0.2",
        "worker_retry_attempts_total[HTTP_ERROR,probe,true] 1",
        "worker_retry_backoff_duration_seconds[2,probe] 0.2",
        "worker_retry_budget_usage[probe] 0.01",
        "worker_retry_success_rate[HTTP_ERROR,probe] 1",
    ];
    assert_eq!(done.samples, expected);
}

/// Contract 8.2.
#[tokio::test(start_paused = true)]
async fn retries_that_are_used_up_are_told_as_an_error_and_measured() {
    let bench = Bench::by_policy(policy()).asking(2, 100);
    let done = bench.run([Call::fails(failed(NETWORK))]).await;
    let exhausted = done.line("Retry exhausted");
    assert_eq!(
        (&exhausted["level"], &exhausted["error_code"]),
        (&json!("ERROR"), &json!("NETWORK_ERROR"))
    );
    for (key, expected) in [
        ("attempt", json!(1)),
        ("max_attempts", json!(2)),
        ("retry_budget_used_ms", json!(100)),
        ("retryable", json!(true)),
    ] {
        assert_eq!(exhausted["context"][key], expected, "{key}");
    }
    assert_eq!(
        done.samples.last().map(String::as_str),
        Some("worker_retry_success_rate[NETWORK_ERROR,probe] 0")
    );
}

#[tokio::test(start_paused = true)]
async fn a_retried_job_that_then_fails_for_good_is_a_miss_and_not_exhausted() {
    let bench = Bench::by_policy(policy()).asking(9, 100);
    let done = bench
        .run([Call::fails(failed(NETWORK)), Call::fails(answered(400))])
        .await;
    assert_eq!(done.error_code(), "HTTP_ERROR");
    assert!(done.lines_of("Retry exhausted").is_empty());
    let miss = "worker_retry_success_rate[NETWORK_ERROR,probe] 0".to_owned();
    assert!(done.samples.contains(&miss), "{:?}", done.samples);
}

#[tokio::test(start_paused = true)]
async fn labels_of_many_retries_come_from_a_closed_set() {
    let bench = Bench::by_policy(policy()).asking(14, 1);
    let done = bench.run([Call::fails(failed(NETWORK))]).await;
    let waits = done.samples.iter().filter(|sample| sample.contains("backoff"));
    let shared = waits.filter(|sample| sample.contains("[more,probe]"));
    assert_eq!(shared.count(), 3);
}

#[tokio::test(start_paused = true)]
async fn with_the_flag_off_nothing_new_is_logged_and_retries_are_measured_all_the_same() {
    let mut bench = Bench::cp1();
    bench.rules.total = total(1_000, true);
    let done = bench.run([Call::fails(failed(NETWORK)), Call::works()]).await;
    assert_eq!(done.messages(), ["Attempt failed", "Attempt started"]);
    let expected = [
        "worker_wait_seconds[retry] 0.1",
        "worker_retry_attempts_total[NETWORK_ERROR,probe,true] 1",
        "worker_retry_backoff_duration_seconds[1,probe] 0.1",
        "worker_retry_success_rate[NETWORK_ERROR,probe] 1",
    ];
    let retries = done.samples.iter().filter(|sample| !sample.contains("operation"));
    assert_eq!(retries.collect::<Vec<_>>(), expected);
}

#[tokio::test(start_paused = true)]
async fn full_jitter_stays_below_the_wait() {
    let mut policy = policy();
    policy.default_policy.jitter_type = Jitter::Full;
    let bench = Bench::by_policy(policy).asking(2, 1_000);
    let done = bench.run([Call::fails(failed(NETWORK))]).await;
    assert!(done.called_at_ms[1] <= 1_000, "{:?}", done.called_at_ms);
}
