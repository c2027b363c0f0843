//! What one job does when its endpoint is left alone, or has no retry token.

use serde_json::json;

use super::bench::{Bench, Call, answered, failed, policy};
use super::*;
use crate::settings::circuit_breaker::CircuitBreakerSettings;

fn with(change: impl FnOnce(&mut CircuitBreakerSettings)) -> Bench {
    let mut settings = CircuitBreakerSettings::default();
    change(&mut settings);
    let mut bench = Bench::by_policy(policy()).asking(9, 100);
    (bench.talks, bench.breakers) = (true, Some(settings));
    bench
}

fn detail(failure: &Failure, key: &str) -> serde_json::Value {
    failure.details.get(key).cloned().unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_opens_ends_the_retries_of_a_job_at_once() {
    let bench = with(|breaker| breaker.failure_threshold = 3);
    let done = bench.run([Call::fails(answered(503))]).await;
    assert_eq!(
        (done.called_at_ms.clone(), done.ended_at_ms),
        (vec![0, 100, 300], 300)
    );
    assert_eq!(
        (done.retries_used, done.status(), done.error_code()),
        (2, "error", "HTTP_ERROR")
    );
    let failure = done.outcome.failure().expect("it failed");
    assert_eq!(
        (&*failure.message, failure.error_type()),
        ("circuit_breaker_open", "provider_unavailable")
    );
    assert_eq!(detail(failure, "circuit_breaker"), "open");
    assert_eq!(
        detail(failure, "last_error"),
        json!({"code": "HTTP_ERROR", "message": "asked to fail", "status_code": 503})
    );
    let changed = done.line("Circuit breaker state changed");
    assert_eq!(
        (&changed["level"], &changed["context"]["new_state"]),
        (&json!("WARN"), &json!("open"))
    );
    assert_eq!(
        done.line("Retry withheld")["context"]["reason"],
        "circuit_breaker"
    );
    let withheld = "worker_retries_withheld_total[http,circuit_breaker] 1".to_owned();
    assert!(done.samples.contains(&withheld), "{:?}", done.samples);
    // Of the retry that was decided on and not made, nothing is told or measured.
    assert!(done.lines_of("Retry exhausted").is_empty());
    assert_eq!(done.lines_of("Attempt failed").len(), 2);
    assert_eq!(done.lines_of("HTTP request failed").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_ends_after_the_recovery_time_is_waited_and_the_call_is_a_trial() {
    let bench = with(|breaker| {
        breaker.failure_threshold = 1;
        breaker.recovery_ms = 100;
        breaker.success_threshold = 1;
    });
    let done = bench.run([Call::fails(failed(NETWORK)), Call::works()]).await;
    assert_eq!(
        (done.called_at_ms.clone(), done.status()),
        (vec![0, 100], "success")
    );
    let states: Vec<_> = done
        .lines_of("Circuit breaker state changed")
        .iter()
        .map(|line| line["context"]["new_state"].clone())
        .collect();
    assert_eq!(states, ["open", "half_open", "closed"]);
}

#[tokio::test(start_paused = true)]
async fn without_a_token_a_job_ends_with_the_failure_that_it_has() {
    for (tokens, calls) in [(0, 1), (2, 3)] {
        let bench = with(|breaker| {
            breaker.failure_threshold = 100;
            breaker.retry_budget_max = tokens;
            breaker.retry_budget_ratio = 0.0;
        });
        let done = bench.run([Call::fails(answered(503))]).await;
        assert_eq!((done.calls(), done.retries_used as usize), (calls, calls - 1));
        let failure = done.outcome.failure().expect("it failed");
        assert_eq!(
            (&*failure.message, failure.error_type()),
            ("asked to fail", "server_error")
        );
        assert_eq!(detail(failure, "retry_budget"), "endpoint");
        assert_eq!(done.line("Retry withheld")["context"]["reason"], "retry_budget");
    }
}

#[tokio::test(start_paused = true)]
async fn errors_of_jobs_open_nothing() {
    let bench = with(|breaker| breaker.failure_threshold = 1);
    for failure in [
        answered(404),
        failed(ErrorCode::PermissionDenied),
        failed(ErrorCode::InvalidInput),
    ] {
        let done = bench.run([Call::fails(failure)]).await;
        assert!(done.lines_of("Circuit breaker state changed").is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_its_deadline_cuts_off_counts_when_it_had_its_time() {
    for (deadline_ms, opens) in [(999, 0), (1_000, 1)] {
        let mut bench = with(|breaker| breaker.failure_threshold = 1);
        bench.deadline_ms = deadline_ms;
        let hangs = Call {
            takes_ms: bench::NEVER,
            result: Ok(()),
        };
        let done = bench.run([hangs]).await;
        assert_eq!(done.status(), "timeout");
        let lines = done.lines_of("Circuit breaker state changed");
        assert_eq!(lines.len(), opens, "{deadline_ms}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_goes_past_the_breaker_asks_for_nothing() {
    let mut bench = with(|breaker| {
        breaker.failure_threshold = 1;
        breaker.retry_budget_max = 0;
    });
    bench.skip_circuit_breaker = true;
    let done = bench.asking(3, 10).run([Call::fails(failed(NETWORK))]).await;
    assert_eq!(done.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn with_the_flag_off_nothing_is_kept_or_told() {
    let mut bench = Bench::by_policy(policy()).asking(9, 10);
    bench.talks = true;
    let done = bench.run([Call::fails(failed(NETWORK))]).await;
    assert_eq!(done.calls(), 9);
    assert!(!done.samples.iter().any(|sample| sample.contains("breaker")));
}
