//! Limits on operations in the whole tree: what is told of them, and that nothing is while their policy is not in force.
//!
//! Neighbours: `rig`. The probe keeps its thread until the rig releases it, as a disk does that hangs.

use caf_worker::settings::Settings;
use serde_json::{Value, json};

use crate::rig::{Rig, assignment, in_system};

fn settings(in_force: bool) -> Settings {
    let mut settings = Settings::default();
    settings.worker.timeouts.v2.enabled = in_force;
    settings
}

/// A job whose thread hangs, and one that is done at once; the samples and the lines of both.
async fn run_both(in_force: bool, stuck: Value) -> (Vec<String>, usize) {
    let rig = Rig::start_with(settings(in_force)).await;
    rig.deliver(assignment("stuck", &stuck), 1).await;
    let quick = json!({"job": {"type": "probe", "payload": {"limit_ms": 60_000}}});
    rig.deliver(assignment("quick", &quick), 2).await;
    rig.settled(2).await;
    assert_eq!(rig.result_of("stuck")["status"], "timeout");
    assert_eq!(rig.result_of("stuck")["error_code"], "CANCELLED_BY_TIMEOUT");
    assert_eq!(rig.result_of("quick")["status"], "success");
    assert_eq!(rig.tree().threads.strays(), 1);
    let scraped = rig.scrape();
    let of_limits = |line: &&str| line.contains("operation_type=");
    let samples = scraped.lines().filter(of_limits).map(str::to_owned).collect();
    let lines = rig.lines("Operation timeout");
    rig.release();
    rig.wait("the thread returns", |rig| rig.tree().threads.strays() == 0)
        .await;
    rig.stop().await;
    (samples, lines)
}

fn value_of(samples: &[String], series: &str) -> Option<f64> {
    let line = samples.iter().find(|line| line.starts_with(series))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn a_limit_that_ran_out_is_one_line_and_one_event_among_all_operations() {
    in_system(async {
        let stuck = json!({"job": {"type": "probe", "payload": {"block_thread": true, "limit_ms": 50}}});
        let (samples, lines) = run_both(true, stuck).await;
        assert_eq!(lines, 1);
        for (series, value) in [
            (r#"worker_operations_total{operation_type="fs_read"}"#, 2.0),
            (r#"worker_operations_total{operation_type="total"}"#, 2.0),
            (r#"worker_operations_total{operation_type="deadline"}"#, 2.0),
            (
                r#"worker_timeout_events_total{operation_type="fs_read",timeout_type="operation"}"#,
                1.0,
            ),
            (r#"worker_timeout_rate{operation_type="fs_read"}"#, 0.5),
            (r#"worker_timeout_rate{operation_type="deadline"}"#, 0.0),
            (
                r#"worker_timeout_duration_seconds_count{operation_type="fs_read"}"#,
                1.0,
            ),
        ] {
            assert_eq!(value_of(&samples, series), Some(value), "{series}: {samples:#?}");
        }
    });
}

#[test]
fn a_deadline_that_passed_is_told_once_for_its_job() {
    in_system(async {
        let mut stuck = json!({"job": {"type": "probe", "payload": {"block_thread": true}}});
        stuck["options"] = json!({"deadline_ms": 100});
        let (samples, lines) = run_both(true, stuck).await;
        assert_eq!(lines, 1);
        let series = r#"worker_timeout_events_total{operation_type="deadline",timeout_type="deadline"}"#;
        assert_eq!(value_of(&samples, series), Some(1.0), "{samples:#?}");
        assert_eq!(
            value_of(&samples, r#"worker_timeout_rate{operation_type="deadline"}"#),
            Some(0.5)
        );
    });
}

#[test]
fn without_the_policy_limits_are_counted_and_no_line_tells_of_them() {
    in_system(async {
        let stuck = json!({"job": {"type": "probe", "payload": {"block_thread": true, "limit_ms": 50}}});
        let (samples, lines) = run_both(false, stuck).await;
        assert_eq!(lines, 0);
        for (series, value) in [
            (r#"worker_operations_total{operation_type="fs_read"}"#, 2.0),
            (
                r#"worker_timeout_events_total{operation_type="fs_read",timeout_type="operation"}"#,
                1.0,
            ),
        ] {
            assert_eq!(value_of(&samples, series), Some(value), "{series}: {samples:#?}");
        }
    });
}

#[test]
fn the_total_limit_is_told_once_whether_it_holds_for_all_calls_or_for_each() {
    in_system(async {
        for across in [true, false] {
            let mut settings = settings(true);
            let total = &mut settings.worker.timeouts.v2.retry_budget;
            (total.total_timeout_ms, total.enforce_across_retries) = (50, across);
            let rig = Rig::start_with(settings).await;
            let mut stuck = json!({"job": {"type": "probe", "payload": {"wait": true}}});
            stuck["options"] = json!({"retry": {"max_attempts": 2}});
            rig.deliver(assignment("stuck", &stuck), 1).await;
            rig.settled(1).await;
            let scraped = rig.scrape();
            let samples: Vec<_> = scraped.lines().map(str::to_owned).collect();
            let series = r#"worker_timeout_events_total{operation_type="total",timeout_type="total"}"#;
            assert_eq!(value_of(&samples, series), Some(1.0), "{scraped}");
            rig.stop().await;
        }
    });
}

/// Two jobs whose deadline passes, one of them in a slot and one in the line behind it: what is measured, and the lines.
async fn run_and_wait_too_long(in_force: bool) -> (Rig, Vec<String>) {
    let mut settings = settings(in_force);
    settings.pools.cpu.max_concurrency = 1;
    let rig = Rig::start_with(settings).await;
    for (sequence, (id, deadline_ms)) in [(1, ("runs", 400)), (2, ("waits", 100))] {
        let patch = json!({
            "job": {"type": "probe", "payload": {"wait": true}},
            "options": {"deadline_ms": deadline_ms},
        });
        rig.deliver(assignment(id, &patch), sequence).await;
        rig.published(|counts| counts.0 == usize::try_from(sequence).expect("is small"))
            .await;
    }
    rig.settled(2).await;
    assert_eq!(rig.result_of("waits")["error"]["details"]["waiting"], true);
    let samples = rig.scrape().lines().map(str::to_owned).collect();
    (rig, samples)
}

#[test]
fn a_deadline_that_passes_in_the_line_is_told_and_measured_like_one_that_passes_in_a_slot() {
    in_system(async {
        for in_force in [true, false] {
            let (rig, samples) = run_and_wait_too_long(in_force).await;
            assert_eq!(rig.lines("Operation timeout"), if in_force { 2 } else { 0 });
            for (series, value) in [
                (
                    r#"worker_timeout_events_total{operation_type="deadline",timeout_type="deadline"}"#,
                    2.0,
                ),
                (r#"worker_operations_total{operation_type="deadline"}"#, 2.0),
                (r#"worker_operations_total{operation_type="total"}"#, 1.0),
                (r#"worker_timeout_rate{operation_type="deadline"}"#, 1.0),
                (r#"worker_queue_wait_seconds_count{resource_pool="cpu"}"#, 2.0),
                (r#"worker_wait_seconds_count{cause="queue"}"#, 2.0),
                // It never ran: it is no execution of 0 seconds.
                ("worker_step_execution_duration_seconds_count", 1.0),
                ("worker_step_executions_total", 2.0),
            ] {
                assert_eq!(
                    value_of(&samples, series),
                    Some(value),
                    "{series} {in_force}: {samples:#?}"
                );
            }
            rig.stop().await;
        }
    });
}
