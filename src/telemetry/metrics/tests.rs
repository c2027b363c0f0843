use caf_actors::events::{Log, retry, steps};
use caf_protocol::assignment::Identity;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::{Failure, Outcome, StepResult};

use super::*;

static HITS: Metric = Metric {
    name: "worker_hits_total",
    help: "Hits",
    labels: &["place"],
    kind: MetricKind::Counter,
};
static LEVEL: Metric = Metric {
    name: "worker_level",
    help: "Level",
    labels: &["place"],
    kind: MetricKind::Gauge,
};
static RATE: Metric = Metric {
    name: "worker_rate",
    help: "Rate",
    labels: &[],
    kind: MetricKind::Ratio,
};
static WAIT: Metric = Metric {
    name: "worker_delay_seconds",
    help: "Wait",
    labels: &["place"],
    kind: MetricKind::Seconds(&[50, 100, 2_000]),
};

fn series(metrics: &Metrics, name: &str) -> Vec<String> {
    let text = metrics.encode(&[]);
    let of = |line: &&str| line.starts_with(name);
    text.lines().filter(of).map(str::to_owned).collect()
}

#[test]
fn every_metric_of_the_catalogue_is_shown_before_anything_happened() {
    let text = Metrics::default().encode(&[]);
    for listed in catalogue::listed() {
        let (name, help) = (listed.metric.name, listed.metric.help);
        let kind = match listed.metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge | MetricKind::Ratio | MetricKind::Peak => "gauge",
            MetricKind::Seconds(_) | MetricKind::Milliseconds(_) => "histogram",
        };
        let head = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        assert_eq!(text.matches(&head).count(), 1, "{name}");
    }
    for line in [
        "worker_queue_rejections_total{rejection_reason=\"critical\",resource_pool=\"gpu\"} 0",
        "worker_assignments_total{row=\"10b\"} 0",
        "worker_dead_letters_total{error_code=\"HTTP_ERROR\"} 0",
        "worker_publish_to_result_seconds_count 0",
        "worker_series_limited_total{metric=\"worker_errors_total\"} 0",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line}");
    }
    assert!(!text.contains("worker_step_executions_total{"));
}

#[test]
fn jobs_of_known_types_are_counted_from_0() {
    let metrics = Metrics::default();
    metrics.know_job_types(&["echo"]);
    let cancelled = "worker_tasks_total{block_type=\"echo\",status=\"cancelled\"} 0".to_owned();
    assert!(series(&metrics, "worker_tasks_total").contains(&cancelled));
    assert_eq!(series(&metrics, "worker_step_executions_total").len(), 4);
}

#[test]
fn counters_add_gauges_keep_the_last_and_ratios_the_mean() {
    let metrics = Metrics::default();
    for value in [1.0, 2.0] {
        metrics.record(&HITS.sample(&["a"], value));
        metrics.record(&LEVEL.sample(&["a"], value));
    }
    for hit in [1.0, 0.0, 1.0, 1.0] {
        metrics.record(&RATE.sample(&[], hit));
    }
    assert_eq!(
        series(&metrics, "worker_hits"),
        ["worker_hits_total{place=\"a\"} 3"]
    );
    assert_eq!(series(&metrics, "worker_level"), ["worker_level{place=\"a\"} 2"]);
    assert_eq!(series(&metrics, "worker_rate"), ["worker_rate 0.75"]);
    let text = metrics.encode(&[]);
    assert!(
        text.contains("# HELP worker_hits_total Hits\n# TYPE worker_hits_total counter\n"),
        "{text}"
    );
}

#[test]
fn ratios_and_peaks_are_of_the_last_five_minutes_and_not_shown_when_nothing_happened_in_them() {
    static PEAK: Metric = Metric {
        name: "worker_peak",
        help: "Peak",
        labels: &["place"],
        kind: MetricKind::Peak,
    };
    let metrics = Metrics::default();
    for value in [0.5, 0.75, 0.25] {
        metrics.record(&PEAK.sample(&["a"], value));
        metrics.record(&RATE.sample(&[], value));
    }
    let shown_after = |seconds| {
        let text = metrics.encode_at(&[], Instant::now() + Duration::from_secs(seconds));
        let is_shown = |line: &&str| line.starts_with("worker_peak") || line.starts_with("worker_rate");
        text.lines()
            .filter(is_shown)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let expected = ["worker_peak{place=\"a\"} 0.75", "worker_rate 0.5"];
    assert_eq!(shown_after(0), expected);
    assert_eq!(shown_after(240), expected);
    assert!(shown_after(301).is_empty());
    // The next sample begins it again.
    metrics.record(&PEAK.sample(&["a"], 0.125));
    assert_eq!(shown_after(0), ["worker_peak{place=\"a\"} 0.125"]);
}

#[test]
fn times_are_counted_in_buckets_of_seconds() {
    let metrics = Metrics::default();
    for seconds in [0.05, 0.06, 3.0] {
        metrics.record(&WAIT.sample(&["a"], seconds));
    }
    let expected = [
        "worker_delay_seconds_bucket{place=\"a\",le=\"0.05\"} 1",
        "worker_delay_seconds_bucket{place=\"a\",le=\"0.1\"} 2",
        "worker_delay_seconds_bucket{place=\"a\",le=\"2\"} 2",
        "worker_delay_seconds_bucket{place=\"a\",le=\"+Inf\"} 3",
        "worker_delay_seconds_sum{place=\"a\"} 3.11",
        "worker_delay_seconds_count{place=\"a\"} 3",
    ];
    assert_eq!(series(&metrics, "worker_delay_seconds"), expected);
}

#[test]
fn series_are_bounded_and_the_rest_shares_one() {
    let metrics = Metrics::default();
    for n in 0..MAX_SERIES + 7 {
        metrics.record(&HITS.one(&[&format!("place-{n}")]));
        metrics.record(&HITS.one(&["place-0"]));
    }
    let shown = series(&metrics, "worker_hits");
    assert_eq!(shown.len(), MAX_SERIES + 1);
    assert!(shown.contains(&"worker_hits_total{place=\"other\"} 7".to_owned()));
    let first = format!("worker_hits_total{{place=\"place-0\"}} {}", MAX_SERIES + 8);
    assert!(shown.contains(&first), "{}", shown[0]);
}

#[test]
fn a_sample_that_fits_nothing_is_counted_and_hurts_nobody() {
    static OTHER_HITS: Metric = Metric {
        name: "worker_hits_total",
        help: "Other hits",
        labels: &["place"],
        kind: MetricKind::Gauge,
    };
    static NO_NAME: Metric = Metric {
        name: "no name",
        ..RATE
    };
    let metrics = Metrics::default();
    metrics.record(&HITS.one(&["a"]));
    let wrong = [
        OTHER_HITS.one(&["a"]),
        NO_NAME.one(&[]),
        HITS.sample(&["a"], -1.0),
        HITS.sample(&["a"], f64::NAN),
        Sample {
            labels: Vec::new(),
            ..HITS.one(&["a"])
        },
    ];
    for sample in &wrong {
        metrics.record(sample);
    }
    assert_eq!(
        series(&metrics, "worker_hits"),
        ["worker_hits_total{place=\"a\"} 1"]
    );
    assert_eq!(
        series(&metrics, "worker_samples_dropped"),
        ["worker_samples_dropped_total 5"]
    );
}

#[test]
fn definitions_are_checked() {
    for metric in [&HITS, &LEVEL, &RATE, &WAIT] {
        assert_eq!(fault_of(metric), None, "{}", metric.name);
    }
    let broken = [
        Metric {
            name: "Worker-hits_total",
            ..HITS
        },
        Metric { help: " ", ..HITS },
        Metric {
            labels: &["block.type"],
            ..HITS
        },
        Metric {
            labels: &["a", "a"],
            ..HITS
        },
        Metric {
            labels: &["le"],
            ..HITS
        },
        Metric {
            name: "worker_hits",
            ..HITS
        },
        Metric {
            name: "worker_level_total",
            ..LEVEL
        },
        Metric {
            name: "worker_wait_ms",
            ..WAIT
        },
        Metric {
            kind: MetricKind::Seconds(&[100, 50]),
            ..WAIT
        },
    ];
    for metric in &broken {
        assert!(fault_of(metric).is_some(), "{metric:?}");
    }
}

/// Contract 8.4.
#[test]
fn metrics_of_retries_are_sound_and_named_as_agreed() {
    let expected: [(&Metric, &str, &[&str]); 4] = [
        (
            &retry::ATTEMPTS,
            "worker_retry_attempts_total",
            &["error_code", "step_type", "retryable"],
        ),
        (
            &retry::SUCCESS_RATE,
            "worker_retry_success_rate",
            &["error_code", "step_type"],
        ),
        (
            &retry::BACKOFF,
            "worker_retry_backoff_duration_seconds",
            &["attempt", "step_type"],
        ),
        (&retry::BUDGET_USAGE, "worker_retry_budget_usage", &["step_type"]),
    ];
    for (metric, name, labels) in expected {
        assert_eq!((metric.name, metric.labels), (name, labels));
        assert_eq!(fault_of(metric), None, "{name}");
    }
}

#[test]
fn a_log_with_a_meter_gives_it_nothing_for_events_without_samples() {
    let metrics = std::sync::Arc::new(Metrics::default());
    let log = Log::discard().with_meter(std::sync::Arc::clone(&metrics) as std::sync::Arc<dyn Meter>);
    let before = metrics.encode(&[]);
    log.emit(caf_actors::events::warning("nothing to measure"));
    assert_eq!(metrics.encode(&[]), before);
}

// ---- Bounds on what comes with assignments ----

const MANY: usize = 100_000;

fn settings(tenants: impl IntoIterator<Item = String>, detailed_labels: bool) -> MetricsSettings {
    MetricsSettings {
        enabled: true,
        tenant_label_allowlist: tenants.into_iter().collect(),
        detailed_labels,
    }
}

fn step(n: usize) -> StepResult {
    let outcome = match n % 2 {
        0 => Outcome::Success(serde_json::Map::new()),
        _ => Outcome::from(Failure::new(ErrorCode::HttpError, "asked to fail")),
    };
    StepResult {
        cost: Default::default(),
        outcome,
        latency_ms: 7,
        retries_used: 0,
    }
}

fn identity(tenant: String, ids: &str) -> Arc<Identity> {
    let mut identity = Identity {
        tenant_id: tenant,
        job_type: Some("echo".to_owned()),
        ..Identity::default()
    };
    let id = |kind: &str| (!ids.is_empty()).then(|| format!("{kind}-{ids}"));
    identity.correlation.raw.run_id = id("run");
    identity.correlation.raw.flow_id = id("flow");
    identity.correlation.raw.step_id = id("step");
    Arc::new(identity)
}

/// What `count` jobs of as many tenants, runs, flows and steps leave behind, beside one tenant who was there first.
fn after_many(settings: &MetricsSettings) -> Metrics {
    let metrics = Arc::new(Metrics::new(settings));
    let log = Log::discard().with_meter(Arc::clone(&metrics) as Arc<dyn Meter>);
    let ran = Duration::from_millis(3);
    log.emit(steps::ended(
        &identity("first".to_owned(), ""),
        &step(0),
        Some(ran),
    ));
    for n in 0..MANY {
        let identity = identity(format!("tenant-{n}"), &n.to_string());
        log.emit(steps::ended(&identity, &step(n), Some(ran)));
    }
    log.emit(steps::ended(
        &identity("first".to_owned(), ""),
        &step(0),
        Some(ran),
    ));
    drop(log);
    Arc::into_inner(metrics).expect("nobody else has it")
}

fn value_of(line: &str) -> f64 {
    let (_, value) = line.rsplit_once(' ').expect("a value follows");
    value.parse().expect("is a number")
}

#[track_caller]
fn assert_bounded(metrics: &Metrics) {
    let text = metrics.encode(&[]);
    let series = |start: &str| {
        let of = |line: &&str| line.starts_with(start);
        text.lines().filter(of).collect::<Vec<_>>()
    };
    let all = series("worker_");
    let is_named = |line: &&&str| {
        ["tenant-", "run-", "\"first\""]
            .iter()
            .any(|name| line.contains(name))
    };
    let named = all.iter().filter(is_named).count();
    assert!((1..=MAX_LINES).contains(&named), "{named} lines name somebody");
    assert!(all.len() < MAX_LINES + 1_000, "{} lines", all.len());
    assert!(text.len() < 8 * 1024 * 1024);
    // Nothing is lost: what has no series of its own is in another.
    for (name, expected) in [
        ("worker_step_executions_total{", MANY + 2),
        ("worker_step_execution_duration_seconds_count{", MANY + 2),
        ("worker_errors_total{", MANY / 2),
        ("worker_flow_execution_duration_seconds_count", MANY),
    ] {
        let sum: f64 = series(name).iter().map(|line| value_of(line)).sum();
        assert_eq!(sum, expected as f64, "{name}");
    }
    let limited = series("worker_series_limited_total{metric=\"worker_step_executions_total\"}");
    assert!(value_of(limited[0]) > MANY as f64 / 2.0, "{limited:?}");
    // What is no name stays apart.
    let shared = series("worker_step_executions_total{execution_status=\"error\"");
    assert!(
        shared
            .iter()
            .any(|line| line.contains("\"other\"") && line.contains("step_type=\"echo\""))
    );
}

#[test]
fn a_hundred_thousand_tenants_on_the_list_make_no_more_series_than_the_bound() {
    let tenants = (0..MANY)
        .map(|n| format!("tenant-{n}"))
        .chain(["first".to_owned()]);
    let metrics = after_many(&settings(tenants, false));
    assert_bounded(&metrics);
    let first = series(&metrics, "worker_step_executions_total{");
    let first: Vec<_> = first.iter().filter(|line| line.contains("\"first\"")).collect();
    assert_eq!(first.len(), 1);
    assert_eq!(value_of(first[0]), 2.0, "who was there before keeps the series");
}

#[test]
fn a_hundred_thousand_runs_in_detailed_mode_make_no_more_series_than_the_bound() {
    assert_bounded(&after_many(&settings(["first".to_owned()], true)));
}

#[test]
fn what_is_beyond_the_bound_in_detailed_mode_still_tells_of_which_listed_tenant_it_is() {
    let metrics = Arc::new(Metrics::new(&settings(["acme".to_owned()], true)));
    let log = Log::discard().with_meter(Arc::clone(&metrics) as Arc<dyn Meter>);
    let count = 3_000;
    for n in 0..count {
        let tenant = if n % 2 == 0 { "acme" } else { "stranger" };
        let identity = identity(tenant.to_owned(), &n.to_string());
        log.emit(steps::ended(&identity, &step(0), Some(Duration::ZERO)));
    }
    let shown = series(&metrics, "worker_step_executions_total{");
    let of = |ids: &str| {
        let line = shown.iter().find(|line| line.contains(ids));
        line.map_or(0.0, |line| value_of(line))
    };
    let rest = ["acme", "other"].map(|tenant| {
        of(&format!(
            "flow_id=\"other\",run_id=\"other\",step_id=\"other\",step_type=\"echo\",tenant_id=\"{tenant}\""
        ))
    });
    let by_tenant = ["acme", "other"].map(|tenant| {
        let of = |line: &&String| line.contains(&format!("tenant_id=\"{tenant}\""));
        shown.iter().filter(of).map(|line| value_of(line)).sum::<f64>()
    });
    assert_eq!(by_tenant, [1_500.0; 2], "every job is told of its tenant");
    assert!(rest.iter().all(|jobs| *jobs > 1_000.0), "{rest:?}");
}

#[test]
fn by_default_a_hundred_thousand_tenants_make_one_series_and_nothing_is_limited() {
    let metrics = after_many(&settings([], false));
    assert_eq!(series(&metrics, "worker_step_executions_total{").len(), 2);
    let limited = series(&metrics, "worker_series_limited_total{");
    assert!(limited.iter().all(|line| value_of(line) == 0.0), "{limited:?}");
}

#[test]
fn who_is_taken_off_the_list_is_not_shown_any_more_and_makes_room() {
    let metrics = Arc::new(Metrics::new(&settings(
        ["acme".to_owned(), "beta".to_owned()],
        false,
    )));
    let log = Log::discard().with_meter(Arc::clone(&metrics) as Arc<dyn Meter>);
    let count = |tenant: &str| {
        log.emit(steps::ended(
            &identity(tenant.to_owned(), ""),
            &step(0),
            Some(Duration::ZERO),
        ));
    };
    ["acme", "beta", "beta", "gamma"].into_iter().for_each(count);
    let shown = || {
        let all = series(&metrics, "worker_step_executions_total{");
        let of = |line: &String| (line.split("tenant_id=").nth(1).map(str::to_owned)).expect("is a label");
        all.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(shown(), ["\"acme\"} 1", "\"beta\"} 2", "\"other\"} 1"]);
    metrics.allow_tenants(["acme".to_owned(), "gamma".to_owned()]);
    ["beta", "gamma"].into_iter().for_each(count);
    assert_eq!(shown(), ["\"acme\"} 1", "\"gamma\"} 1", "\"other\"} 2"]);
    metrics.allow_tenants([]);
    assert_eq!(shown(), ["\"other\"} 2"]);
}

#[test]
fn what_is_read_now_is_gone_when_it_is_not_read_any_more() {
    let metrics = Metrics::default();
    let now = [state::HEALTH_STATUS.sample(&["nats"], 1.0)];
    assert!(
        metrics
            .encode(&now)
            .contains("worker_health_status{check=\"nats\"} 1\n")
    );
    let text = metrics.encode(&[]);
    assert!(!text.contains("worker_health_status{"));
    assert!(text.contains("# TYPE worker_health_status gauge\n"));
}

#[test]
fn a_histogram_is_consistent_while_it_is_written() {
    let metrics = Arc::new(Metrics::default());
    let writers: Vec<_> = (0..2)
        .map(|_| {
            let metrics = Arc::clone(&metrics);
            std::thread::spawn(move || (0..20_000).for_each(|_| metrics.record(&WAIT.sample(&["a"], 0.06))))
        })
        .collect();
    let mut last = 0.0;
    while writers.iter().any(|writer| !writer.is_finished()) {
        let shown = series(&metrics, "worker_delay_seconds");
        let value = |end: &str| {
            shown
                .iter()
                .find(|line| line.contains(end))
                .map(|line| value_of(line))
        };
        let Some(count) = value("_count") else { continue };
        assert_eq!(value("le=\"0.1\""), Some(count));
        assert_eq!(value("le=\"+Inf\""), Some(count));
        assert!((value("_sum").expect("is shown") - count * 0.06).abs() < 1e-6 * count.max(1.0));
        assert!(count >= last);
        last = count;
    }
    writers
        .into_iter()
        .for_each(|writer| writer.join().expect("ends"));
    assert_eq!(
        value_of(&series(&metrics, "worker_delay_seconds_count")[0]),
        40_000.0
    );
}
