//! `dashboards/`: the dashboard is as Grafana writes it, and each of its panels shows data of a working node.
//!
//! Neighbours: a real Prometheus scrapes real workers under a mixed load; alerts themselves are tried in `alerts.rs`, the
//! scripts that show and judge metrics in `observability_scripts.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use caf_testkit::faulty_http::{Fault, FaultyHttp};
use caf_testkit::openai::OpenAi;
use caf_testkit::promql::{Scrape, named};
use caf_testkit::wait::poll;
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, Prometheus, TempDir, http, wait_until};
use serde_json::{Value, json};

use crate::deploy::{shipped, text_of};
use crate::observability_scripts::validate;
use crate::support::{ASSIGNMENTS, Node, SOON, jobs};

const DASHBOARD: &str = "dashboards/worker-observability.json";
const RULES: &str = "alerts/worker-alerts.yml";
/// Set, the pictures in `dashboards/pictures` are drawn anew, from two minutes of load.
const DRAW: &str = "DRAW_DASHBOARD";
/// Longest time until every panel has data: two workers, a Prometheus and a broker on two cores.
const PATIENCE: Duration = Duration::from_secs(60);
/// Contract 8.5, in its order.
const FIRST: [&str; 8] = [
    "Step execution rate",
    "Step duration p50/p95/p99",
    "Step error rate",
    "Queue depth by pool",
    "Active tasks by pool",
    "Flow duration p95/p99",
    "Health",
    "Success/error ratio",
];
const ROWS: [&str; 5] = ["Flow", "Pools", "Blocks", "Delivery", "Process"];
/// What may be at 0 under load: what only faults bring, and what is over too soon to be seen for certain.
const QUIET: [&str; 12] = [
    "worker_log_lines_dropped_total",
    "worker_leases_lapsed_total",
    "worker_results_suppressed_total",
    "worker_pending_messages",
    "worker_outbox_",
    "worker_drain",
    "worker_pull_rebuilds_total",
    "worker_restart",
    "worker_stray_threads",
    "worker_series_limited_total",
    "worker_lease_oldest_age_seconds",
    "worker_event_loop_blocked_seconds",
];
/// Alerts that must not even be pending while all is well, however busy the machine is.
const SILENT: [&str; 7] = [
    "WorkerDown",
    "WorkerNotConsuming",
    "WorkerOutboxNotDraining",
    "WorkerLeaseLost",
    "WorkerRestartBudgetLow",
    "WorkerDrainStuck",
    "WorkerSeriesLimited",
];
/// What Prometheus itself adds to every series, and to buckets.
const ADDED: [&str; 3] = ["instance", "job", "le"];

fn dashboard() -> Value {
    serde_json::from_str(&text_of(DASHBOARD)).expect("is JSON")
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Every panel but the heads of rows.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let all = array(&dashboard["panels"]).iter();
    all.filter(|panel| panel["type"] != "row").collect()
}

#[test]
fn the_dashboard_can_be_imported_and_begins_with_the_panels_of_the_contract() {
    let dashboard = dashboard();
    // What is asked for at an import is a data source, and that is a variable.
    assert!(dashboard.get("__inputs").is_none() && dashboard["id"].is_null());
    assert!(
        dashboard["schemaVersion"]
            .as_u64()
            .is_some_and(|version| version >= 39)
    );
    for (key, value) in [
        ("title", json!("Worker Observability (CP2 Wave 1)")),
        ("uid", json!("caf-worker-observability")),
        ("refresh", json!("30s")),
        ("time", json!({"from": "now-1h", "to": "now"})),
    ] {
        assert_eq!(dashboard[key], value);
    }
    let titles: Vec<_> = panels(&dashboard)
        .iter()
        .map(|panel| text(&panel["title"]))
        .collect();
    assert_eq!(titles[..FIRST.len()], FIRST);
    let rows = array(&dashboard["panels"])
        .iter()
        .filter(|panel| panel["type"] == "row");
    assert_eq!(rows.map(|row| text(&row["title"])).collect::<Vec<_>>(), ROWS);
    let variables: BTreeMap<_, _> = array(&dashboard["templating"]["list"])
        .iter()
        .map(|variable| (text(&variable["name"]), variable))
        .collect();
    assert_eq!(
        (
            &variables["datasource"]["type"],
            &variables["datasource"]["query"]
        ),
        (&json!("datasource"), &json!("prometheus"))
    );
    for name in ["instance", "pool", "tenant"] {
        let variable = variables[name];
        assert_eq!(
            (&variable["multi"], &variable["includeAll"]),
            (&json!(true), &json!(true))
        );
        // All: also where the label is empty.
        assert_eq!(
            (&variable["allValue"], &variable["type"]),
            (&json!(".*"), &json!("query"))
        );
    }
}

#[test]
fn every_panel_of_the_dashboard_says_what_it_shows_and_has_a_place_of_its_own() {
    let dashboard = dashboard();
    let mut places: BTreeMap<(u64, u64), &str> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for panel in array(&dashboard["panels"]) {
        let title = text(&panel["title"]);
        assert!(ids.insert(panel["id"].as_u64()), "{title}");
        let place = |key: &str| panel["gridPos"][key].as_u64().expect("is a number");
        assert!(place("x") + place("w") <= 24, "{title}");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert_eq!(places.insert((x, y), title), None, "{title}");
            }
        }
    }
    let readme = text_of("dashboards/README.md");
    for panel in panels(&dashboard) {
        let (title, defaults) = (text(&panel["title"]), &panel["fieldConfig"]["defaults"]);
        assert!(
            !text(&panel["description"]).is_empty() && !text(&defaults["unit"]).is_empty(),
            "{title}"
        );
        assert!(!array(&defaults["thresholds"]["steps"]).is_empty(), "{title}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        assert!(
            readme.contains(&format!("| {title} |")),
            "{title} is not in dashboards/README.md"
        );
        for target in array(&panel["targets"]) {
            let (expression, legend) = (text(&target["expr"]), text(&target["legendFormat"]));
            assert!(
                !legend.is_empty() && target["datasource"] == panel["datasource"],
                "{title}"
            );
            assert!(
                expression.contains("instance=~\"$instance\""),
                "{title}: {expression}"
            );
            // Windows follow the scrape interval and the zoom.
            assert_eq!(
                expression.matches('[').count(),
                expression.matches("[$__rate_interval]").count()
            );
        }
    }
}

#[test]
fn the_ratio_that_the_alert_of_errors_judges_has_a_panel_with_its_limit() {
    let alerts = text_of("alerts/worker-alerts.yml");
    let (_, rule) = alerts
        .split_once("- alert: WorkerHighTaskErrorRate")
        .expect("is there");
    let (rule, _) = rule.split_once("for:").expect("has one");
    let limit: f64 = rule
        .rsplit_once("> ")
        .and_then(|(_, limit)| limit.trim().parse().ok())
        .expect("ends with its limit");
    let dashboard = dashboard();
    let panel = panels(&dashboard)
        .into_iter()
        .find(|panel| text(&panel["description"]).contains("WorkerHighTaskErrorRate"))
        .expect("is shown");
    let defaults = &panel["fieldConfig"]["defaults"];
    assert_eq!(defaults["thresholds"]["steps"][1]["value"], limit);
    assert_eq!(defaults["unit"], "percentunit");
    let expression = text(&panel["targets"][0]["expr"]);
    assert_eq!(
        expression.matches("sum by (step_type)").count(),
        2,
        "{expression}"
    );
}

#[test]
fn panels_filter_by_pool_and_tenant_where_metrics_have_these_labels() {
    let dashboard = dashboard();
    for panel in panels(&dashboard) {
        for target in array(&panel["targets"]) {
            let expression = text(&target["expr"]);
            let names = named(&filled(expression, &[])).metrics;
            let of = |start: &str| names.iter().any(|name| name.starts_with(start));
            let by_tenant = of("worker_step_execution") || of("worker_flow_") || of("worker_errors_total");
            assert_eq!(
                expression.contains("tenant_id=~\"$tenant\""),
                by_tenant,
                "{expression}"
            );
            let pools = [
                "worker_queue_",
                "worker_active_tasks",
                "worker_overload",
                "worker_pool_",
            ];
            assert_eq!(
                expression.contains("=~\"$pool\""),
                pools.into_iter().any(of),
                "{expression}"
            );
        }
    }
}

/// With its variables filled in: all, where nothing else is said.
fn filled(expression: &str, variables: &[(&str, &str)]) -> String {
    let mut expression = expression.replace("$__rate_interval", "5s");
    for (name, value) in variables {
        expression = expression.replace(&format!("${name}"), value);
    }
    for name in ["$instance", "$pool", "$tenant"] {
        expression = expression.replace(name, ".*");
    }
    expression
}

/// Everything that CP2 has, with queues so short that something is refused, and a model that costs something.
fn everything(worker: WorkerBuilder, models: &OpenAi) -> WorkerBuilder {
    let provider = format!(
        "[providers.\"openai:*\"]\nbase_url = \"{}\"\noutput_price_per_million = 10\n",
        models.base_url()
    );
    let pool = |slots: usize, queue: usize| json!({"max_concurrency": slots, "max_queue_size": queue});
    worker
        .env("CP2_ADVANCED_RETRY_ENABLED", "true")
        .env("CP2_COMPLETE_TIMEOUT_ENABLED", "true")
        .env("CP2_QUEUE_MANAGEMENT_ENABLED", "true")
        .env("CP2_OBSERVABILITY_METRICS_ENABLED", "true")
        .env("CP2_OBSERVABILITY_TRACING_ENABLED", "true")
        // Nobody is there: spans are dropped, and that is measured.
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        .env("WORKER__BLOCKS__HTTP__ALLOW_TARGETS", "127.0.0.0/8")
        .policy("retry", &json!({}))
        .policy("timeout", &json!({"http_connection": {"read_timeout_ms": 200}}))
        .policy(
            "queue",
            &json!({"resource_pools": {"cpu": pool(4, 50), "gpu": pool(1, 1), "io": pool(8, 50)}}),
        )
        .file("data/note.txt", "hello")
        .file("config/worker.toml", provider)
}

/// One round of the load: of everything that can become of a job, some.
fn round(server: &FaultyHttp) -> Vec<AssignmentBuilder> {
    let id = || uuid::Uuid::new_v4().to_string();
    let (run, flow) = (id(), id());
    let http = |path: &str| {
        AssignmentBuilder::new("http.request", json!({"method": "GET", "url": server.url(path)}))
    };
    let failing = |code: &str| AssignmentBuilder::new("fail", json!({"error_code": code}));
    let mut jobs = vec![
        http(&format!("/twice/{}", id())).max_attempts(3),
        http("/slow"),
        failing("EXECUTION_FAILED"),
        failing("NETWORK_ERROR"),
        AssignmentBuilder::new("fs.blob_get", json!({"path": "data/note.txt"})),
        AssignmentBuilder::sleep(2_000).deadline_ms(200),
        AssignmentBuilder::new("echo", json!([])),
        AssignmentBuilder::new("nobody.knows", json!({})),
        AssignmentBuilder::new("chat", json!({"text": "hello"})).set(
            "executor",
            json!({"provider_id": "openai:small", "channel": "nats"}),
        ),
    ];
    // More than a slot and a place in the queue.
    let gpu = || AssignmentBuilder::sleep(100).set("resources", json!({"class": "gpu"}));
    jobs.extend((0..4).map(|_| gpu()));
    jobs.extend((0..3).map(|_| AssignmentBuilder::echo().run_flow_step(&run, &flow, &id())));
    let whose = |(n, job): (usize, AssignmentBuilder)| if n % 2 == 0 { job } else { job.tenant("globex") };
    let mut jobs: Vec<_> = jobs.into_iter().enumerate().map(whose).collect();
    // One arrives twice.
    jobs.extend(jobs.last().cloned());
    jobs
}

/// A server that is slow on one path, and on the others fails the first time.
fn unreliable() -> FaultyHttp {
    let server = FaultyHttp::start().expect("starts");
    server.set(|call| match (call.path, call.number) {
        ("/slow", _) => Fault::Delay(Duration::from_millis(600)),
        (_, 0) => Fault::Status(503, ""),
        _ => Fault::None,
    });
    server
}

/// One query of the dashboard.
struct Query {
    /// Panel, and variables that were filled in.
    of: String,
    expression: String,
    legend: String,
}

fn queries(dashboard: &Value, variables: &[(&str, &str)]) -> Vec<Query> {
    let of_panel = |panel: &Value| {
        let of = format!("{} {variables:?}", text(&panel["title"]));
        let targets = array(&panel["targets"]).iter().map(move |target| Query {
            of: of.clone(),
            expression: filled(text(&target["expr"]), variables),
            legend: text(&target["legendFormat"]).to_owned(),
        });
        targets.collect::<Vec<_>>()
    };
    panels(dashboard).into_iter().flat_map(of_panel).collect()
}

/// What is named and not shown: a metric, or a label that none of the metrics beside it has.
fn unknown(scrapes: &[Scrape], expression: &str, legend: &str) -> Vec<String> {
    let names = named(expression);
    let mut labels: BTreeSet<&str> = ADDED.into();
    let mut unknown = Vec::new();
    // Prometheus' own.
    for metric in names.metrics.iter().filter(|name| *name != "up") {
        let families: Vec<_> = scrapes
            .iter()
            .filter_map(|scrape| scrape.family(metric))
            .collect();
        if families.is_empty() {
            unknown.push(metric.clone());
        }
        labels.extend(
            families
                .iter()
                .flat_map(|family| &family.labels)
                .map(String::as_str),
        );
    }
    let shown = legend
        .split("{{")
        .skip(1)
        .filter_map(|rest| rest.split("}}").next());
    let used = names.labels.iter().map(String::as_str).chain(shown);
    unknown.extend(
        used.filter(|label| !labels.contains(label))
            .map(|label| format!("{{{label}}}")),
    );
    unknown
}

fn has_data(prometheus: &Prometheus, query: &Query) -> bool {
    let result = prometheus
        .query(&query.expression)
        .unwrap_or_else(|error| panic!("{}: {error:#}", query.of));
    let may_be_zero = QUIET.iter().any(|name| query.expression.contains(name));
    let values = result
        .iter()
        .filter_map(|series| text(&series["value"][1]).parse::<f64>().ok());
    values
        .filter(|value| !value.is_nan())
        .any(|value| may_be_zero || value > 0.0)
}

#[test]
fn under_a_mixed_load_every_panel_shows_data_and_every_alert_can_be_evaluated() {
    let server = unreliable();
    let models = OpenAi::start(None, &[]).expect("starts");
    let mut node = Node::start_with(|worker| everything(worker, &models));
    // A second one whose labels name a tenant.
    let mut second =
        node.another(|worker| everything(worker, &models).env("METRICS_TENANT_LABEL_ALLOWLIST", "acme"));
    let ports = [&mut node.worker, &mut second].map(|worker| worker.metrics_port().expect("is logged"));
    let prometheus = Prometheus::start(&ports, &[&shipped(RULES)]).expect("Prometheus starts");

    let dashboard = dashboard();
    let instance = format!("127.0.0.1:{}", ports[1]);
    let mut waiting = queries(&dashboard, &[]);
    waiting.extend(queries(
        &dashboard,
        &[("instance", instance.as_str()), ("tenant", "acme|other")],
    ));
    waiting.extend(queries(&dashboard, &[("pool", "io|cpu|gpu")]));
    let all: Vec<_> = queries(&dashboard, &[]);
    let draws = std::env::var_os(DRAW).is_some();
    let (begun, shortest) = (Instant::now(), Duration::from_secs(if draws { 120 } else { 0 }));
    poll(PATIENCE + shortest, || {
        // No more than the workers can take.
        if node
            .client
            .stream_count(ASSIGNMENTS)
            .is_ok_and(|count| count < 30)
        {
            node.client.assign_all(&round(&server)).expect("are sent");
            node.client
                .publish("caf.exec.assign.v1", &[], "{")
                .expect("is sent");
        }
        waiting.retain(|query| !has_data(&prometheus, query));
        (waiting.is_empty() && begun.elapsed() >= shortest).then_some(())
    });
    let empty: Vec<_> = waiting
        .iter()
        .map(|query| format!("{}: {}", query.of, query.expression))
        .collect();
    assert!(empty.is_empty(), "no data: {empty:#?}");

    let pages = ports.map(|port| http::get(port, "/metrics").expect("answers").text());
    let scrapes = pages.each_ref().map(|page| Scrape::read(page));
    for query in &all {
        let unknown = unknown(&scrapes, &query.expression, &query.legend);
        assert_eq!(
            unknown,
            Vec::<String>::new(),
            "{}: {}",
            query.of,
            query.expression
        );
    }
    variables_have_values(&dashboard, &scrapes);
    let alerts = alerts_can_be_evaluated(&prometheus, &scrapes);
    pictures_can_be_drawn(&prometheus, draws);
    let (code, said) = validate(ports[0], &["--strict"]);
    assert_eq!(code, Some(0), "{said}");

    // The same expressions, when something is wrong.
    let becomes_true = |name: &str| {
        wait_until(name, SOON, || holds(&prometheus, &alerts[name]));
    };
    // One that shuts down can still be scraped.
    let long = || AssignmentBuilder::sleep(60_000).deadline_ms(120_000);
    node.client.assign_all(&jobs(6, |_| long())).expect("are sent");
    let running = format!(r#"min_over_time(worker_active_tasks{{instance="{instance}"}}[3s]) > 0"#);
    wait_until("the second one has some", SOON, || holds(&prometheus, &running));
    second.terminate().expect("can be signalled");
    let drains = format!(r#"worker_drain_seconds{{instance="{instance}"}} > 1 and worker_draining == 1"#);
    wait_until("its drain is seen", SOON, || holds(&prometheus, &drains));
    node.nats.kill();
    becomes_true("WorkerNotConsuming");
    becomes_true("WorkerUnhealthy");
    second.kill();
    becomes_true("WorkerDown");
    prometheus.stop().expect("ends");
}

/// Whether there is a series of which this is true.
fn holds(prometheus: &Prometheus, expression: &str) -> bool {
    prometheus
        .query(expression)
        .is_ok_and(|result| !result.is_empty())
}

/// `label_values(metric, label)` of each variable.
fn variables_have_values(dashboard: &Value, scrapes: &[Scrape]) {
    let variables = array(&dashboard["templating"]["list"])
        .iter()
        .filter(|one| one["type"] == "query");
    for variable in variables {
        let query = text(&variable["definition"]);
        let inner = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')'));
        let (metric, label) = inner
            .and_then(|inner| inner.split_once(','))
            .expect("is label_values");
        let expression = format!("sum by ({label}) ({metric})");
        assert_eq!(unknown(scrapes, &expression, ""), Vec::<String>::new(), "{query}");
    }
}

/// Names and expressions of all alerts.
fn alerts_can_be_evaluated(prometheus: &Prometheus, scrapes: &[Scrape]) -> BTreeMap<String, String> {
    let groups = prometheus.get("rules").expect("answers");
    let rules = array(&groups["groups"][0]["rules"]);
    assert!(rules.len() >= 14, "{groups}");
    for rule in rules {
        let (name, expression) = (text(&rule["name"]), text(&rule["query"]));
        let result = prometheus
            .query(expression)
            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert!(result.is_empty() || !SILENT.contains(&name), "{name}: {result:?}");
        let annotations = rule["annotations"].to_string();
        let shown = annotations
            .split("{{ $labels.")
            .skip(1)
            .filter_map(|rest| rest.split(" }}").next());
        let legend: String = shown.map(|label| format!("{{{{{label}}}}}")).collect();
        assert_eq!(
            unknown(scrapes, expression, &legend),
            Vec::<String>::new(),
            "{name}: {expression}"
        );
    }
    let named = |rule: &Value| (text(&rule["name"]).to_owned(), text(&rule["query"]).to_owned());
    rules.iter().map(named).collect()
}

/// One picture of each row, from what was just measured; into the repository when asked to.
fn pictures_can_be_drawn(prometheus: &Prometheus, draws: bool) {
    let directory = TempDir::new("pictures").expect("can be made");
    let out = if draws {
        shipped("dashboards/pictures")
    } else {
        directory.path().to_owned()
    };
    let minutes = if draws { "1.9" } else { "0.2" };
    let ran = Command::new("python3")
        .arg(shipped("scripts/observability/draw_dashboard.py"))
        .args(["--prometheus", &format!("http://127.0.0.1:{}", prometheus.port())])
        .args(["--minutes", minutes, "--interval", "5s", "--out"])
        .arg(&out)
        .output()
        .expect("python3 can be started");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!((ran.status.success(), said.as_ref()), (true, ""));
    for row in ["Overview"].iter().chain(&ROWS) {
        let name = format!("{}.svg", row.to_lowercase());
        let picture = std::fs::read_to_string(out.join(&name)).expect("was drawn");
        assert!(
            picture.starts_with("<svg ") && picture.ends_with("</svg>\n"),
            "{name}"
        );
        assert!(picture.contains("<polyline "), "{name}");
        // Shown in the repository.
        assert!(shipped("dashboards/pictures").join(&name).is_file(), "{name}");
    }
}
