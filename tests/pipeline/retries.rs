//! Retries through the whole tree: what the flags change, and what is published and measured. Exact waits are a matter of
//! the block worker's own tests, on a clock of theirs.

use caf_worker::settings::Settings;
use serde_json::{Value, json};

use crate::rig::{Rig, assignment, in_system};

/// Everything as with the files shipped, where a test does not say otherwise.
fn with_retries() -> Settings {
    let mut settings = Settings::default();
    settings.worker.retries.v2.enabled = true;
    settings
}

fn job(payload: Value, attempts: u32) -> Value {
    json!({
        "job": {"type": "probe", "payload": payload},
        "options": {"retry": {"max_attempts": attempts, "backoff_ms": 1}},
    })
}

async fn run(settings: Settings, payload: Value, attempts: u32) -> (Rig, Value) {
    let rig = Rig::start_with(settings).await;
    rig.deliver(assignment("a", &job(payload, attempts)), 1).await;
    rig.settled(1).await;
    let result = rig.result_of("a");
    (rig, result)
}

/// POC-005 and 008.
#[test]
fn the_flag_decides_whether_a_lasting_error_is_called_again() {
    in_system(async {
        for (settings, calls) in [(Settings::default(), 3), (with_retries(), 1)] {
            let (rig, result) = run(settings, json!({"fail": "PERMISSION_DENIED"}), 3).await;
            assert_eq!((rig.runs(), &result["retries_used"]), (calls, &json!(calls - 1)));
            assert_eq!(rig.counts(), (1, 1, 1), "an error with a dead letter either way");
            rig.stop().await;
        }
    });
}

#[test]
fn a_retry_that_helps_ends_in_success_and_is_measured() {
    in_system(async {
        let payload = json!({"fail": "NETWORK_ERROR", "works_after": 2});
        let (rig, result) = run(with_retries(), payload, 5).await;
        assert_eq!(
            (&result["status"], &result["retries_used"], rig.runs()),
            (&json!("success"), &json!(2), 3)
        );
        assert_eq!(
            (rig.lines("Retry attempt started"), rig.lines("Retry succeeded")),
            (2, 1)
        );
        let text = rig.scrape();
        for line in [
            "worker_retry_attempts_total{error_code=\"NETWORK_ERROR\",retryable=\"true\",step_type=\"probe\"} 2",
            "worker_retry_success_rate{error_code=\"NETWORK_ERROR\",step_type=\"probe\"} 1",
            "worker_retry_backoff_duration_seconds_count{attempt=\"2\",step_type=\"probe\"} 1",
            "# TYPE worker_retry_budget_usage gauge",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        rig.stop().await;
    });
}

#[test]
fn with_the_flag_off_retries_are_counted_and_nothing_of_it_is_logged() {
    in_system(async {
        let payload = json!({"fail": "NETWORK_ERROR", "works_after": 1});
        let (rig, result) = run(Settings::default(), payload, 2).await;
        assert_eq!(result["status"], "success");
        let words = ["Retry attempt started", "Retry succeeded"];
        assert_eq!(words.map(|word| rig.lines(word)), [0, 0]);
        let attempts = rig.samples("worker_retry_attempts_total");
        let labels = ["NETWORK_ERROR", "probe", "true"].map(str::to_owned).to_vec();
        assert_eq!(attempts, [(labels, 1.0)]);
        rig.stop().await;
    });
}

#[test]
fn a_budget_that_is_used_up_is_a_timeout_that_names_it_and_leaves_no_letter() {
    in_system(async {
        let mut settings = with_retries();
        settings.worker.retries.v2.default_policy.retry_budget_ms = 50;
        let (rig, result) = run(settings, json!({"wait": true}), 3).await;
        assert_eq!(
            (&result["status"], &result["error_code"]),
            (&json!("timeout"), &json!("CANCELLED_BY_TIMEOUT"))
        );
        let details = &result["error"]["details"];
        assert_eq!(
            (&details["limit"], &details["limit_ms"]),
            (&json!("retry_budget"), &json!(50))
        );
        assert_eq!((rig.counts(), rig.runs()), ((1, 1, 0), 1));
        rig.stop().await;
    });
}

#[test]
fn a_wait_that_the_other_side_asks_for_and_the_budget_does_not_hold_ends_the_job_at_once() {
    in_system(async {
        let details = json!({"status_code": 429, "retry_after_ms": 3_600_000});
        let payload = json!({"fail": "HTTP_ERROR", "details": details});
        let (rig, result) = run(with_retries(), payload, 3).await;
        assert_eq!((rig.runs(), &result["status"]), (1, &json!("timeout")));
        let details = &result["error"]["details"];
        let why = (&details["limit"], &details["next_wait_ms"]);
        assert_eq!(why, (&json!("retry_budget"), &json!(3_600_000)));
        let last = &details["last_error"];
        let cause = (&last["code"], &last["status_code"], &last["retry_after_ms"]);
        assert_eq!(cause, (&json!("HTTP_ERROR"), &json!(429), &json!(3_600_000)));
        assert_eq!(rig.lines("Retry exhausted"), 1);
        rig.stop().await;
    });
}

#[test]
fn the_total_limit_holds_with_the_timeouts_flag_alone() {
    in_system(async {
        let mut settings = Settings::default();
        settings.worker.timeouts.v2.enabled = true;
        settings.worker.timeouts.v2.retry_budget.total_timeout_ms = 50;
        let (rig, result) = run(settings, json!({"wait": true}), 3).await;
        assert_eq!(result["status"], "timeout");
        assert_eq!(result["error"]["details"]["limit"], "total_timeout");
        assert_eq!(rig.runs(), 1);
        assert!(!rig.scrape().contains("worker_retry_attempts_total{"));
        rig.stop().await;
    });
}

#[test]
fn a_total_limit_of_each_call_ends_the_job_too_for_the_call_may_go_on() {
    in_system(async {
        let mut settings = Settings::default();
        settings.worker.timeouts.v2.enabled = true;
        let total = &mut settings.worker.timeouts.v2.retry_budget;
        (total.total_timeout_ms, total.enforce_across_retries) = (50, false);
        let (rig, result) = run(settings, json!({"wait": true}), 2).await;
        assert_eq!(
            (&result["status"], &result["error_code"]),
            (&json!("timeout"), &json!("CANCELLED_BY_TIMEOUT"))
        );
        assert_eq!(rig.runs(), 1);
        rig.stop().await;
    });
}
