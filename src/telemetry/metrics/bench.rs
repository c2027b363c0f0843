//! What metrics cost, in figures: `METRICS_BENCH=1 cargo test --release --lib metrics::bench -- --nocapture`. Without the
//! variable it runs small.
//!
//! Prints and asserts nothing about speed: that depends on the machine. What it costs a whole node is measured in
//! `tests/node/metrics_cost.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use caf_actors::events::{Log, steps};
use caf_actors::metrics::Meter;
use caf_protocol::assignment::Identity;
use caf_protocol::outcome::{Outcome, StepResult};

use super::Metrics;
use crate::settings::MetricsSettings;

/// Whether there is time for figures that mean something.
fn is_long() -> bool {
    std::env::var_os("METRICS_BENCH").is_some()
}

fn samples() -> u32 {
    if is_long() { 1_000_000 } else { 1_000 }
}

fn identity(tenant: usize) -> Arc<Identity> {
    Arc::new(Identity {
        tenant_id: format!("tenant-{tenant}"),
        job_type: Some("http.request".to_owned()),
        ..Identity::default()
    })
}

#[test]
fn samples_per_second() {
    let metrics = Arc::new(Metrics::default());
    let labels = ["http.request", "success", "acme", "", "", ""];
    for threads in [1, 2, 4] {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    for _ in 0..samples() / 2 {
                        metrics.record(&steps::TASKS.one(&labels[..2]));
                        metrics.record(&steps::EXECUTION_DURATION.sample(&labels, 0.012));
                    }
                });
            }
        });
        let all = f64::from(samples() * threads);
        let per_second = all / begun.elapsed().as_secs_f64();
        println!("{threads} threads: {per_second:.0} samples/s");
    }
}

#[test]
fn the_event_of_a_job_that_ended() {
    let step = StepResult {
        cost: Default::default(),
        outcome: Outcome::Success(serde_json::Map::new()),
        latency_ms: 12,
        retries_used: 0,
    };
    let identity = identity(1);
    let metered = Log::discard().with_meter(Arc::new(Metrics::default()) as Arc<dyn Meter>);
    for (name, log) in [("off", Log::discard()), ("on", metered)] {
        let begun = Instant::now();
        for _ in 0..samples() / 4 {
            log.emit(steps::ended(&identity, &step, Some(Duration::from_millis(12))));
        }
        let each = begun.elapsed() / (samples() / 4);
        println!("metrics {name}: {each:?} each");
    }
}

#[test]
fn a_scrape() {
    for tenants in [0, 250, 500, 1_000, 10_000]
        .into_iter()
        .take(if is_long() { 5 } else { 2 })
    {
        let settings = MetricsSettings {
            tenant_label_allowlist: (0..tenants).map(|n| format!("tenant-{n}")).collect(),
            ..MetricsSettings::default()
        };
        let metrics = Arc::new(Metrics::new(&settings));
        let log = Log::discard().with_meter(Arc::clone(&metrics) as Arc<dyn Meter>);
        let step = StepResult {
            cost: Default::default(),
            outcome: Outcome::Success(serde_json::Map::new()),
            latency_ms: 12,
            retries_used: 0,
        };
        for tenant in 0..tenants {
            let mut identity = identity(tenant);
            Arc::make_mut(&mut identity).correlation.raw.flow_id = Some("flow".to_owned());
            log.emit(steps::ended(&identity, &step, Some(Duration::from_millis(12))));
        }
        let mut took = Vec::new();
        let mut text = String::new();
        for _ in 0..20 {
            let begun = Instant::now();
            text = metrics.encode(&[]);
            took.push(begun.elapsed());
        }
        took.sort();
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        println!(
            "{tenants} tenants: {series} series, {} KiB: median {:?}, worst {:?}",
            text.len() / 1024,
            took[took.len() / 2],
            took[took.len() - 1]
        );
    }
}
