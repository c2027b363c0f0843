use caf_actors::events::{Log, retry};

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
            MetricKind::Gauge | MetricKind::Ratio => "gauge",
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
