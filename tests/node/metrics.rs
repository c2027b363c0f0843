//! What a node measures, as whoever scrapes it sees it: names, labels, types and buckets of the contract, and numbers that
//! are exactly those of the load.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use caf_actors::metrics::MetricKind;
use caf_testkit::client::ASSIGN;
use caf_testkit::wait::poll;
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, http, wait_until};
use caf_worker::telemetry::metrics::{catalogue, fault_of};
use serde_json::json;

use crate::side_effects::Outside;
use crate::support::{Node, SOON, answers, jobs};

const METRICS: &str = "CP2_OBSERVABILITY_METRICS_ENABLED";

// ---- The contract (8.4, and what the node adds) ----

const STEP: &str = "step_type execution_status tenant_id run_id flow_id step_id";
const STEP_BOUNDS: &str = "0.001 0.005 0.01 0.05 0.1 0.25 0.5 1 2 2.5 5 10 30 60";
const FLOW_BOUNDS: &str = "0.01 0.1 0.5 1 2.5 5 10 30 60 120 300";

/// Name, type, labels, and for histograms bounds where the contract gives them.
const CONTRACT: &[(&str, &str, &str, &str)] = &[
    // CP1
    ("worker_tasks_total", "counter", "block_type status", ""),
    (
        "worker_task_latency_ms",
        "histogram",
        "block_type",
        "50 100 200 500 1000 2000 5000",
    ),
    ("worker_pool_queue_depth", "gauge", "resource_class", ""),
    ("worker_task_failures_total", "counter", "", ""),
    ("worker_resource_cpu_time_ms", "gauge", "", ""),
    ("worker_resource_mem_bytes", "gauge", "", ""),
    // CP2
    ("worker_step_executions_total", "counter", STEP, ""),
    (
        "worker_step_execution_duration_seconds",
        "histogram",
        STEP,
        STEP_BOUNDS,
    ),
    ("worker_step_errors_total", "counter", "step_type error_code", ""),
    (
        "worker_flow_execution_duration_seconds",
        "histogram",
        "tenant_id run_id flow_id",
        FLOW_BOUNDS,
    ),
    ("worker_queue_depth", "gauge", "resource_pool", ""),
    ("worker_active_tasks", "gauge", "resource_pool", ""),
    ("worker_health_status", "gauge", "check", ""),
    (
        "worker_errors_total",
        "counter",
        "error_code tenant_id run_id",
        "",
    ),
    // Wave 1
    (
        "worker_retry_attempts_total",
        "counter",
        "error_code step_type retryable",
        "",
    ),
    ("worker_retry_success_rate", "gauge", "error_code step_type", ""),
    (
        "worker_retry_backoff_duration_seconds",
        "histogram",
        "attempt step_type",
        "",
    ),
    ("worker_retry_budget_usage", "gauge", "step_type", ""),
    (
        "worker_timeout_events_total",
        "counter",
        "operation_type timeout_type",
        "",
    ),
    (
        "worker_timeout_duration_seconds",
        "histogram",
        "operation_type",
        "",
    ),
    ("worker_timeout_rate", "gauge", "operation_type", ""),
    (
        "worker_queue_rejections_total",
        "counter",
        "resource_pool rejection_reason",
        "",
    ),
    ("worker_overload_status", "gauge", "resource_pool", ""),
    ("worker_queue_wait_seconds", "histogram", "resource_pool", ""),
    ("worker_queue_acceptances_total", "counter", "resource_pool", ""),
    ("worker_operations_total", "counter", "operation_type", ""),
    // Our own
    ("worker_pool_slots", "gauge", "resource_pool", ""),
    ("worker_pool_slots_used", "gauge", "resource_pool", ""),
    ("worker_pool_slots_available", "gauge", "resource_pool", ""),
    ("worker_tenants_waiting", "gauge", "resource_pool", ""),
    ("worker_tenants_at_limit", "gauge", "resource_pool", ""),
    ("worker_wait_seconds", "histogram", "cause", ""),
    ("worker_publish_to_result_seconds", "histogram", "", ""),
    ("worker_publish_seconds", "histogram", "kind", ""),
    ("worker_outbox_entries", "gauge", "", ""),
    ("worker_outbox_bytes", "gauge", "", ""),
    ("worker_outbox_oldest_age_seconds", "gauge", "", ""),
    ("worker_jobs_held", "gauge", "", ""),
    ("worker_permits_available", "gauge", "", ""),
    ("worker_leases_held", "gauge", "", ""),
    ("worker_lease_oldest_age_seconds", "gauge", "", ""),
    ("worker_leases_lapsed_total", "counter", "", ""),
    ("worker_last_delivery_age_seconds", "gauge", "", ""),
    ("worker_pending_messages", "gauge", "", ""),
    ("worker_connected", "gauge", "", ""),
    ("worker_consuming", "gauge", "", ""),
    ("worker_ready", "gauge", "", ""),
    ("worker_draining", "gauge", "", ""),
    ("worker_drain_seconds", "gauge", "", ""),
    ("worker_pull_rebuilds_total", "counter", "", ""),
    ("worker_restarts_total", "counter", "actor", ""),
    ("worker_quota_rejections_total", "counter", "quota tenant_id", ""),
    ("worker_policy_fetches_total", "counter", "outcome", ""),
    ("worker_policy_store_up", "gauge", "", ""),
    ("worker_policy_stale_seconds", "gauge", "", ""),
    ("worker_secret_uses_total", "counter", "outcome", ""),
    ("worker_restart_budget_used", "gauge", "", ""),
    ("worker_llm_calls_total", "counter", "provider status", ""),
    ("worker_llm_tokens_total", "counter", "provider direction", ""),
    ("worker_llm_cost_total", "counter", "provider", ""),
    (
        "worker_llm_call_duration_seconds",
        "histogram",
        "provider status",
        "",
    ),
    ("worker_llm_first_token_seconds", "histogram", "provider", ""),
    ("worker_approvals_requested_total", "counter", "", ""),
    ("worker_approvals_decided_total", "counter", "decision", ""),
    ("worker_approvals_pending", "gauge", "", ""),
    ("worker_approvals_oldest_pending_seconds", "gauge", "", ""),
    ("worker_cancel_requests_total", "counter", "source outcome", ""),
    ("worker_cancel_tombstones", "gauge", "", ""),
    ("worker_stray_threads", "gauge", "", ""),
    ("worker_duplicates_total", "counter", "kind", ""),
    ("worker_results_suppressed_total", "counter", "", ""),
    ("worker_dead_letters_total", "counter", "error_code", ""),
    ("worker_assignments_total", "counter", "row", ""),
    ("worker_event_loop_lag_seconds", "histogram", "event_loop", ""),
    ("worker_event_loop_blocked_seconds", "gauge", "event_loop", ""),
    ("worker_build_info", "gauge", "version mode worker_id", ""),
    (
        "worker_circuit_breaker_transitions_total",
        "counter",
        "kind to",
        "",
    ),
    ("worker_circuit_breaker_refusals_total", "counter", "kind", ""),
    (
        "worker_circuit_breaker_forgotten_total",
        "counter",
        "kind state",
        "",
    ),
    ("worker_circuit_breakers", "gauge", "kind state", ""),
    ("worker_retries_withheld_total", "counter", "kind reason", ""),
    ("worker_series_limited_total", "counter", "metric", ""),
    ("worker_samples_dropped_total", "counter", "", ""),
    ("process_cpu_seconds_total", "counter", "", ""),
    ("process_resident_memory_bytes", "gauge", "", ""),
    ("process_open_fds", "gauge", "", ""),
    ("process_max_fds", "gauge", "", ""),
    ("process_threads", "gauge", "", ""),
    ("process_start_time_seconds", "gauge", "", ""),
];

#[test]
fn the_catalogue_has_the_metrics_of_the_contract_with_their_types_labels_and_buckets() {
    let listed = catalogue::listed();
    for &(name, kind, labels, bounds) in CONTRACT {
        let found: Vec<_> = listed
            .iter()
            .filter(|listed| listed.metric.name == name)
            .collect();
        assert_eq!(found.len(), 1, "{name}");
        let metric = found[0].metric;
        assert_eq!(metric.labels.join(" "), labels, "{name}");
        let (is, upper) = match metric.kind {
            MetricKind::Counter => ("counter", None),
            MetricKind::Gauge | MetricKind::Ratio | MetricKind::Peak => ("gauge", None),
            MetricKind::Seconds(bounds) => ("histogram", Some((bounds, 1_000.0))),
            MetricKind::Milliseconds(bounds) => ("histogram", Some((bounds, 1.0))),
        };
        assert_eq!(is, kind, "{name}");
        if let (Some((upper, unit)), false) = (upper, bounds.is_empty()) {
            let shown: Vec<_> = upper
                .iter()
                .map(|&bound| (bound as f64 / unit).to_string())
                .collect();
            assert_eq!(shown.join(" "), bounds, "{name}");
        }
    }
    for listed in &listed {
        assert_eq!(fault_of(listed.metric), None, "{}", listed.metric.name);
    }
}

// ---- Reading a scrape ----

/// A scrape, read as strictly as the format is (text form 0.0.4).
struct Scrape {
    kinds: BTreeMap<String, String>,
    /// By name with labels, as it stands there.
    values: BTreeMap<String, f64>,
}

impl Scrape {
    #[track_caller]
    fn of(node: &mut Node) -> Self {
        let port = node.worker.metrics_port().expect("is logged");
        let answer = http::get(port, "/metrics").expect("answers");
        assert_eq!(answer.status, 200);
        let kind = answer.header("content-type").expect("has a type").to_owned();
        assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
        Self::read(&answer.text())
    }

    #[track_caller]
    fn read(text: &str) -> Self {
        let (mut kinds, mut values) = (BTreeMap::new(), BTreeMap::new());
        let mut helped = BTreeSet::new();
        let mut family = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("help follows");
                assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type follows");
                assert!(helped.contains(name), "{line}");
                family = name.to_owned();
                assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
            } else {
                let (series, value) = line.rsplit_once(' ').expect("a value follows");
                let name = series.split('{').next().expect("a name begins it");
                let end = name.strip_prefix(family.as_str());
                let ends: &[&str] = match kinds[&family].as_str() {
                    "histogram" => &["_bucket", "_sum", "_count"],
                    _ => &[""],
                };
                assert!(end.is_some_and(|end| ends.contains(&end)), "{line}");
                let value = value.parse().expect("is a number");
                assert!(values.insert(series.to_owned(), value).is_none(), "{line}");
            }
        }
        let scrape = Self { kinds, values };
        scrape.assert_histograms_fit();
        scrape
    }

    #[track_caller]
    fn assert_histograms_fit(&self) {
        for (series, &value) in &self.values {
            if let Some((name, labels)) = series.split_once("_bucket{") {
                let (labels, bound) = labels.rsplit_once("le=\"").expect("a bucket has a bound");
                let labels = labels.trim_end_matches(',');
                let labels = if labels.is_empty() {
                    String::new()
                } else {
                    format!("{{{labels}}}")
                };
                let count = self.values[&format!("{name}_count{labels}")];
                assert!(value <= count, "{series}");
                assert!(bound != "+Inf\"}" || value == count, "{series}");
            }
        }
    }

    /// The value of a series, with its labels in the order of their names; 0 when it is not shown.
    fn value(&self, series: &str) -> f64 {
        self.values.get(series).copied().unwrap_or_default()
    }

    /// Sum of all series that begin so.
    fn sum(&self, start: &str) -> f64 {
        let of = |(series, value): (&String, &f64)| series.starts_with(start).then_some(*value);
        self.values.iter().filter_map(of).sum()
    }

    #[track_caller]
    fn assert_values(&self, expected: &[(&str, f64)]) {
        let wrong: Vec<_> = expected
            .iter()
            .filter(|(series, value)| self.value(series) != *value)
            .map(|(series, value)| format!("{series}: {} in place of {value}", self.value(series)))
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[track_caller]
    fn assert_of_contract(&self) {
        for &(name, kind, labels, _) in CONTRACT {
            assert_eq!(self.kinds.get(name).map(String::as_str), Some(kind), "{name}");
            let expected: BTreeSet<_> = labels.split_whitespace().collect();
            for series in self.values.keys() {
                let (of, found) = series.split_once('{').unwrap_or((series, ""));
                let of = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| of.strip_suffix(end).filter(|_| kind == "histogram"))
                    .unwrap_or(of);
                if of == name {
                    let names = found.split("\",").filter_map(|label| label.split_once("=\""));
                    let names: BTreeSet<_> =
                        names.map(|(name, _)| name).filter(|name| *name != "le").collect();
                    assert_eq!(names, expected, "{series}");
                }
            }
        }
    }
}

/// Scrapes until a series has this value.
#[track_caller]
fn scrape_when(node: &mut Node, series: &str, value: f64) -> Scrape {
    let mut last = f64::NAN;
    let found = poll(SOON, || {
        let scrape = Scrape::of(node);
        last = scrape.value(series);
        (last == value).then_some(scrape)
    });
    found.unwrap_or_else(|| panic!("{series} is {last} in place of {value}"))
}

// ---- Tests ----

#[test]
fn the_metrics_port_is_open_only_with_its_flag() {
    let mut node = Node::start_with(|worker| worker.env(METRICS, "true"));
    let port = node.worker.metrics_port().expect("is logged");
    let answer = http::get(port, "/metrics").expect("answers");
    assert_eq!(answer.status, 200);
    assert_eq!(http::get(port, "/elsewhere").expect("answers").status, 404);

    let node = Node::start();
    let opened = |log: &serde_json::Value| log["message"] == "Metrics endpoint started";
    assert!(!node.worker.logs().iter().any(opened));
}

fn failing(code: &str) -> AssignmentBuilder {
    AssignmentBuilder::new("fail", json!({"error_code": code}))
}

/// Sends the load of which [`expected`] has the numbers, and waits until it is answered.
fn send_mixed_load(node: &Node) {
    let flow = AssignmentBuilder::echo().run_flow_step("run-1", "flow-1", "step-1");
    let mut load = jobs(4, |_| AssignmentBuilder::echo());
    load.push(flow);
    load.extend(jobs(2, |_| AssignmentBuilder::echo().tenant("beta")));
    load.extend(jobs(3, |_| failing("PERMISSION_DENIED").max_attempts(1)));
    load.push(failing("NETWORK_ERROR").max_attempts(2));
    load.extend(jobs(2, |_| AssignmentBuilder::sleep(60_000).deadline_ms(200)));
    load.push(AssignmentBuilder::new("no.such.block", json!({})));
    load.push(AssignmentBuilder::echo().tenant("stranger"));
    node.client.assign_all(&load).expect("is sent");
    node.client
        .publish(ASSIGN, &[], b"no JSON".to_vec())
        .expect("is sent");
    node.wait_answered(&load, SOON);

    // One that was finished before, and a copy of one that runs.
    node.client.assign(&load[0]).expect("is sent");
    let held = AssignmentBuilder::sleep(60_000).deadline_ms(3_000);
    node.client.assign(&held).expect("is sent");
    wait_until("it runs", SOON, || {
        !answers(&node.client).acks(held.assignment_id()).is_empty()
    });
    node.client.assign(&held).expect("is sent");
    node.wait_answered(&[held], SOON);
}

/// What every node has measured after the mixed load, whatever its flags. The last ones come when all is done with.
const MIXED: &[(&str, f64)] = &[
    ("worker_tasks_total{block_type=\"echo\",status=\"success\"}", 7.0),
    ("worker_tasks_total{block_type=\"fail\",status=\"error\"}", 4.0),
    ("worker_tasks_total{block_type=\"sleep\",status=\"timeout\"}", 3.0),
    ("worker_tasks_total{block_type=\"sleep\",status=\"success\"}", 0.0),
    ("worker_task_latency_ms_count{block_type=\"echo\"}", 7.0),
    (
        "worker_task_latency_ms_bucket{block_type=\"sleep\",le=\"100\"}",
        0.0,
    ),
    ("worker_task_failures_total", 7.0),
    (
        "worker_step_errors_total{error_code=\"PERMISSION_DENIED\",step_type=\"fail\"}",
        3.0,
    ),
    (
        "worker_step_errors_total{error_code=\"NETWORK_ERROR\",step_type=\"fail\"}",
        1.0,
    ),
    (
        "worker_step_errors_total{error_code=\"CANCELLED_BY_TIMEOUT\",step_type=\"sleep\"}",
        3.0,
    ),
    (
        "worker_retry_attempts_total{error_code=\"NETWORK_ERROR\",retryable=\"true\",step_type=\"fail\"}",
        1.0,
    ),
    (
        "worker_retry_success_rate{error_code=\"NETWORK_ERROR\",step_type=\"fail\"}",
        0.0,
    ),
    (
        "worker_retry_backoff_duration_seconds_count{attempt=\"1\",step_type=\"fail\"}",
        1.0,
    ),
    ("worker_wait_seconds_count{cause=\"retry\"}", 1.0),
    ("worker_wait_seconds_count{cause=\"queue\"}", 14.0),
    (
        "worker_timeout_events_total{operation_type=\"deadline\",timeout_type=\"deadline\"}",
        3.0,
    ),
    (
        "worker_timeout_duration_seconds_count{operation_type=\"deadline\"}",
        3.0,
    ),
    ("worker_operations_total{operation_type=\"deadline\"}", 14.0),
    ("worker_assignments_total{row=\"1\"}", 1.0),
    ("worker_assignments_total{row=\"2\"}", 1.0),
    ("worker_assignments_total{row=\"3\"}", 1.0),
    ("worker_assignments_total{row=\"4\"}", 0.0),
    ("worker_assignments_total{row=\"6\"}", 7.0),
    ("worker_assignments_total{row=\"7\"}", 4.0),
    ("worker_assignments_total{row=\"8\"}", 3.0),
    ("worker_assignments_total{row=\"10b\"}", 1.0),
    ("worker_assignments_total{row=\"11\"}", 1.0),
    ("worker_duplicates_total{kind=\"copy\"}", 1.0),
    ("worker_duplicates_total{kind=\"finished\"}", 1.0),
    ("worker_duplicates_total{kind=\"held\"}", 0.0),
    ("worker_dead_letters_total{error_code=\"PERMISSION_DENIED\"}", 4.0),
    ("worker_dead_letters_total{error_code=\"NETWORK_ERROR\"}", 1.0),
    (
        "worker_dead_letters_total{error_code=\"CANCELLED_BY_TIMEOUT\"}",
        0.0,
    ),
    ("worker_publish_seconds_count{kind=\"ack\"}", 16.0),
    ("worker_publish_seconds_count{kind=\"dead_letter\"}", 7.0),
    ("worker_publish_to_result_seconds_count", 16.0),
    ("worker_results_suppressed_total", 0.0),
    ("worker_leases_lapsed_total", 0.0),
    ("worker_samples_dropped_total", 0.0),
    ("worker_restarts_total{actor=\"pool.io\"}", 0.0),
    ("worker_jobs_held", 0.0),
    ("worker_leases_held", 0.0),
    ("worker_outbox_entries", 0.0),
    ("worker_connected", 1.0),
    ("worker_consuming", 1.0),
    ("worker_ready", 1.0),
    ("worker_draining", 0.0),
    ("worker_drain_seconds", 0.0),
    ("worker_health_status{check=\"nats\"}", 1.0),
    ("worker_health_status{check=\"pools\"}", 1.0),
    ("worker_pool_slots_used{resource_pool=\"cpu\"}", 0.0),
    ("worker_publish_seconds_count{kind=\"result\"}", 17.0),
];

/// Waits until the last of the load is counted, and holds everything against it.
#[track_caller]
fn assert_mixed_load(node: &mut Node) -> Scrape {
    wait_until("nothing is held", SOON, || {
        Scrape::of(node).value("worker_jobs_held") == 0.0
    });
    // The disk hears of it last.
    let scrape = scrape_when(node, "worker_outbox_entries", 0.0);
    scrape.assert_values(MIXED);
    scrape.assert_of_contract();
    assert_eq!(scrape.sum("worker_step_executions_total{"), 14.0);
    assert_eq!(scrape.sum("worker_step_execution_duration_seconds_count{"), 14.0);
    assert_eq!(scrape.sum("worker_queue_acceptances_total{"), 14.0);
    assert_eq!(scrape.sum("worker_queue_wait_seconds_count{"), 14.0);
    assert_eq!(scrape.sum("worker_errors_total{"), 9.0);
    assert_eq!(scrape.sum("worker_dead_letters_total{"), 7.0);
    scrape
}

fn with_tenants(worker: WorkerBuilder) -> WorkerBuilder {
    worker
        .env(METRICS, "true")
        .env("WORKER__TENANTS__ALLOWED", "acme,beta")
}

#[test]
fn numbers_are_those_of_the_load_with_only_the_flag_of_metrics() {
    let mut node =
        Node::start_with(|worker| with_tenants(worker).env("METRICS_TENANT_LABEL_ALLOWLIST", "acme"));
    let before = Scrape::of(&mut node);
    before.assert_of_contract();
    send_mixed_load(&node);
    let scrape = assert_mixed_load(&mut node);
    let executions = |kind: &str, status: &str, tenant: &str| {
        let ids = format!("execution_status=\"{status}\",flow_id=\"\",run_id=\"\",step_id=\"\"");
        scrape.value(&format!(
            "worker_step_executions_total{{{ids},step_type=\"{kind}\",tenant_id=\"{tenant}\"}}"
        ))
    };
    assert_eq!(executions("echo", "success", "acme"), 5.0);
    assert_eq!(executions("echo", "success", "other"), 2.0);
    assert_eq!(executions("sleep", "timeout", "acme"), 3.0);
    let flows = "worker_flow_execution_duration_seconds_count{flow_id=\"\",run_id=\"\",tenant_id=\"acme\"}";
    assert_eq!(scrape.value(flows), 1.0);
    assert!(scrape.value("worker_last_delivery_age_seconds") > 0.0);
    assert_eq!(
        scrape.value("worker_pool_slots{resource_pool=\"io\"}"),
        scrape.value("worker_pool_slots_available{resource_pool=\"io\"}")
    );
    for event_loop in ["main", "pipeline", "block_0"] {
        let lag = format!("worker_event_loop_lag_seconds_count{{event_loop=\"{event_loop}\"}}");
        assert!(scrape.value(&lag) >= 1.0, "{lag}");
    }
    for (series, value) in &before.values {
        let kind = before
            .kinds
            .iter()
            .find(|(name, _)| series.split('{').next() == Some(name));
        if kind.is_some_and(|(_, kind)| kind == "counter") {
            assert!(scrape.value(series) >= *value, "{series}");
        }
    }
    // Lines belong to the flags that are off.
    for message in ["Retry attempt started", "Operation timeout", "Assignment queued"] {
        assert!(
            !node.worker.logs().iter().any(|line| line["message"] == message),
            "{message}"
        );
    }
}

#[test]
fn numbers_are_those_of_the_load_with_every_flag_and_in_detail() {
    let outside = Outside::start();
    let sizes = json!({"max_concurrency": 8, "max_queue_size": 100});
    let small = json!({"max_concurrency": 1, "max_queue_size": 2});
    let mut node = Node::start_with(|worker| {
        outside
            .allow(with_tenants(worker))
            .env("CP2_ADVANCED_RETRY_ENABLED", "true")
            .env("CP2_COMPLETE_TIMEOUT_ENABLED", "true")
            .env("CP2_QUEUE_MANAGEMENT_ENABLED", "true")
            .env("CP2_OBSERVABILITY_TRACING_ENABLED", "true")
            .env("WORKER__WORKER__METRICS__DETAILED_LABELS", "true")
            .env("LOG_LEVEL", "debug")
            .policy("retry", &json!({}))
            .policy("timeout", &json!({}))
            .policy(
                "queue",
                &json!({"resource_pools": {"cpu": sizes, "gpu": small, "io": sizes}}),
            )
    });
    send_mixed_load(&node);
    let scrape = assert_mixed_load(&mut node);
    let step = "execution_status=\"success\",flow_id=\"flow-1\",run_id=\"run-1\",step_id=\"step-1\",step_type=\"echo\",tenant_id=\"\"";
    assert_eq!(
        scrape.value(&format!("worker_step_executions_total{{{step}}}")),
        1.0
    );
    assert!(
        scrape
            .values
            .contains_key("worker_retry_budget_usage{step_type=\"fail\"}")
    );

    // One runs, two wait, three are refused; the server answers when it is told.
    let load = jobs(6, |n| {
        let job = outside.job(&format!("job-{n}"));
        job.set("resources", json!({"class": "gpu"}))
    });
    for (sent, job) in load.iter().enumerate() {
        node.client.assign(job).expect("is sent");
        let acked = |job: &AssignmentBuilder| !answers(&node.client).acks(job.assignment_id()).is_empty();
        wait_until("it is acknowledged", SOON, || load[..=sent].iter().all(acked));
    }
    let full = scrape_when(&mut node, "worker_jobs_held", 3.0);
    full.assert_values(&[
        (
            "worker_queue_rejections_total{rejection_reason=\"queue_full\",resource_pool=\"gpu\"}",
            3.0,
        ),
        (
            "worker_queue_rejections_total{rejection_reason=\"critical\",resource_pool=\"gpu\"}",
            0.0,
        ),
        ("worker_assignments_total{row=\"4\"}", 3.0),
        ("worker_overload_status{resource_pool=\"gpu\"}", 3.0),
        ("worker_overload_status{resource_pool=\"cpu\"}", 0.0),
        ("worker_queue_depth{resource_pool=\"gpu\"}", 2.0),
        ("worker_pool_queue_depth{resource_class=\"gpu\"}", 2.0),
        ("worker_active_tasks{resource_pool=\"gpu\"}", 1.0),
        ("worker_pool_slots{resource_pool=\"gpu\"}", 1.0),
        ("worker_pool_slots_available{resource_pool=\"gpu\"}", 0.0),
        ("worker_leases_held", 3.0),
    ]);
    outside.open();
    node.wait_answered(&load, SOON);
    scrape_when(&mut node, "worker_overload_status{resource_pool=\"gpu\"}", 0.0);
}

/// Contract 8.3: below 100 ms. What it may take here is the patience with a part that does not answer.
#[test]
fn a_scrape_answers_while_the_worker_drains_and_tells_since_when() {
    let outside = Outside::start();
    let mut node = Node::start_with(|worker| outside.allow(worker.env(METRICS, "true")));
    let job = [outside.job("slow")];
    node.client.assign_all(&job).expect("is sent");
    scrape_when(&mut node, "worker_active_tasks{resource_pool=\"io\"}", 1.0);
    let before = Instant::now();
    node.worker.terminate().expect("is told");
    let draining = scrape_when(&mut node, "worker_draining", 1.0);
    assert_eq!(draining.value("worker_ready"), 0.0);
    let found = poll(SOON, || {
        let seconds = Scrape::of(&mut node).value("worker_drain_seconds");
        (seconds > 0.2).then_some(seconds)
    });
    let limit = before.elapsed().max(Duration::from_millis(200)).as_secs_f64();
    assert!(found.is_some_and(|seconds| seconds <= limit), "{found:?}");
    outside.open();
    assert!(node.worker.wait_exit(SOON).expect("ends").success());
}
