//! Jobs that wait for the limit of their tenant: how they leave the line without a start, and that the limit outlives pools.

use caf_actors::pool::EmptyLine;
use caf_actors::sink::Verdict;
use caf_worker::settings::Settings;
use serde_json::{Value, json};

use crate::rig::{Rig, assignment, in_system};

/// A job of this tenant that runs until the test lets it end.
fn job(id: &str, tenant: &str, class: &str, deadline_ms: u64) -> Value {
    let patch = json!({
        "tenant_id": tenant,
        "resources": {"class": class},
        "job": {"type": "probe", "payload": {"wait": true}},
        "options": {"deadline_ms": deadline_ms},
    });
    assignment(id, &patch)
}

/// Each tenant runs one job.
async fn start() -> Rig {
    let mut settings = Settings::default();
    settings.tenants.default.max_running = Some(1);
    settings.worker.supervision.max_restarts = 100;
    Rig::start_with(settings).await
}

#[test]
fn a_deadline_ends_the_wait_for_the_limit_and_a_drain_gives_the_rest_back() {
    in_system(async {
        let rig = start().await;
        rig.deliver(job("runs", "acme", "cpu", 60_000), 1).await;
        rig.wait("it runs", |rig| rig.runs() == 1).await;
        rig.deliver(job("late", "acme", "io", 100), 2).await;
        rig.deliver(job("waits", "acme", "io", 60_000), 3).await;
        // Slots are free, for others.
        rig.deliver(job("other", "beta", "io", 60_000), 4).await;
        rig.wait("the other tenant's runs", |rig| rig.runs() == 2).await;
        rig.settled(1).await;
        let late = rig.result_of("late");
        assert_eq!(
            (&late["status"], &late["error"]["details"]["waiting"]),
            (&json!("timeout"), &json!(true))
        );
        let scraped = rig.scrape();
        let count = r#"worker_wait_seconds_count{cause="tenant_limit"} 1"#;
        assert!(scraped.lines().any(|line| line == count), "{scraped}");
        rig.empty_lines(EmptyLine::HandBack).await;
        rig.settled(2).await;
        let (token, verdict) = &rig.verdicts()[1];
        assert_eq!(token, "delivery-3");
        assert!(matches!(verdict, Verdict::Nak { .. }), "{verdict:?}");
        assert_eq!(rig.runs(), 2);
        rig.stop().await;
    });
}

#[test]
fn a_limit_outlives_the_pools_and_what_failed_to_start_does_not_count() {
    in_system(async {
        let rig = start().await;
        rig.deliver(job("runs", "acme", "cpu", 60_000), 1).await;
        rig.wait("it runs", |rig| rig.runs() == 1).await;
        for (failures, class) in [(1, "cpu"), (2, "io")] {
            rig.fail_at("Step execution started");
            rig.deliver(
                job(&format!("lost-{class}"), "beta", class, 60_000),
                1 + failures as u64,
            )
            .await;
            rig.wait("the pool is made again", |rig| rig.restarts() == failures)
                .await;
            rig.alive().await;
        }
        // The tenant whose jobs were lost runs none; the other one still runs its own.
        rig.deliver(job("more", "acme", "cpu", 60_000), 10).await;
        rig.deliver(job("again", "beta", "cpu", 60_000), 11).await;
        rig.wait("the tenant without one runs", |rig| rig.runs() == 2)
            .await;
        rig.deliver(job("third", "gamma", "cpu", 60_000), 12).await;
        rig.wait("and a third", |rig| rig.runs() == 3).await;
        rig.release();
        rig.wait("now the rest runs", |rig| rig.runs() == 4).await;
        rig.settled(4).await;
        assert_eq!(rig.result_of("more")["status"], "success");
        rig.stop().await;
    });
}
