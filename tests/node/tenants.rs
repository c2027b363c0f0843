//! Quotas of tenants on the wire: exact counts, others unaffected, changes at once.
//!
//! No count depends on how fast anything is: rates bring nothing within the life of a test, and jobs that must be under way
//! ask a server that withholds its answers.

use std::collections::BTreeMap;

use caf_testkit::client::{ACK, DLQ, RESULT};
use caf_testkit::{AssignmentBuilder, wait_until};
use serde_json::{Value, json};

use crate::side_effects::Outside;
use crate::support::{Node, SOON, assert_each_answered_once, jobs};

/// So slow that nothing is regained while a test runs.
const QUOTAS: &str = r#"
[pools.io]
max_concurrency = 2
[tenants.overrides."rated.eu"]
rate_per_s = 0.001
burst = 5
[tenants.overrides.waiting]
max_queued = 3
[tenants.overrides.sending]
max_bytes_in_per_s = 1
[tenants.overrides.holding]
max_held_bytes = 1
[tenants.overrides.remembering]
max_memory_bytes = 1073741824
[tenants.overrides.computing]
max_cpu_time_ms = 3600000
[tenants.overrides.answering]
max_bytes_out_per_s = 1
"#;

/// Sends, and waits until all are acknowledged.
fn send(node: &Node, load: &[AssignmentBuilder]) {
    let before = node.answers().on(ACK).len();
    node.client.assign_all(load).expect("are sent");
    wait_until("all are acknowledged", SOON, || {
        node.answers().on(ACK).len() >= before + load.len()
    });
}

/// Acknowledgements of these by their message; `accepted` for those without.
fn acks(node: &Node, load: &[AssignmentBuilder]) -> BTreeMap<String, usize> {
    let (all, mut counts) = (node.answers(), BTreeMap::new());
    for job in load {
        for ack in all.acks(job.assignment_id()) {
            let word = ack["message"].as_str().unwrap_or("accepted").to_owned();
            *counts.entry(word).or_default() += 1;
        }
    }
    counts
}

fn counts(accepted: usize, refused: usize) -> BTreeMap<String, usize> {
    let all = [("accepted", accepted), ("quota_exceeded", refused)];
    let told = all.into_iter().filter(|(_, count)| *count > 0);
    told.map(|(word, count)| (word.to_owned(), count)).collect()
}

/// The error of the first of these that was refused.
fn refusal(node: &Node, load: &[AssignmentBuilder]) -> Value {
    let all = node.answers();
    let mut results = load.iter().flat_map(|job| all.results(job.assignment_id()));
    results
        .find(|result| result["error_code"] == "QUOTA_EXCEEDED")
        .expect("one was refused")
}

fn of(tenant: &str, job: AssignmentBuilder) -> AssignmentBuilder {
    job.tenant(tenant)
}

fn needing(tenant: &str, outside: &Outside, key: &str, amount: u64) -> AssignmentBuilder {
    of(tenant, outside.job("held")).set("resources", json!({"class": "gpu", key: amount}))
}

#[test]
fn each_quota_lets_through_exactly_what_it_says_and_affects_nobody_else() {
    let outside = Outside::start();
    let mut node = Node::start_with(|worker| {
        let worker = outside.allow(worker).file("config/worker.toml", QUOTAS);
        worker
            .env("CP2_OBSERVABILITY_METRICS_ENABLED", "true")
            .env("METRICS_TENANT_LABEL_ALLOWLIST", "rated.eu")
    });
    let echo = |tenant: &'static str| move |_: usize| of(tenant, AssignmentBuilder::echo());
    let loads: [(&str, Vec<AssignmentBuilder>, usize); 7] = [
        ("rate", jobs(20, echo("rated.eu")), 5),
        ("queued", jobs(9, |_| of("waiting", outside.job("held"))), 2 + 3),
        ("bytes_in", jobs(4, echo("sending")), 1),
        ("held_bytes", jobs(2, echo("holding")), 0),
        (
            "memory",
            jobs(5, |_| needing("remembering", &outside, "memory_bytes", 512 << 20)),
            2,
        ),
        (
            "cpu_time",
            jobs(5, |_| needing("computing", &outside, "cpu_time_ms", 1_200_000)),
            3,
        ),
        ("bytes_out", jobs(4, echo("answering")), 1),
    ];
    let (first, rest) = loads[6].1.split_at(1);
    send(&node, first);
    node.wait_answered(first, SOON);
    send(&node, rest);
    for (quota, load, accepted) in &loads {
        if *quota != "bytes_out" {
            send(&node, load);
        }
        assert_eq!(
            acks(&node, load),
            counts(*accepted, load.len() - accepted),
            "{quota}"
        );
    }
    let free = jobs(50, |_| AssignmentBuilder::echo());
    send(&node, &free);
    assert_eq!(acks(&node, &free), counts(50, 0), "others are not affected");

    for (quota, load, _) in &loads {
        let result = refusal(&node, load);
        assert_eq!(
            (&result["status"], &result["error_type"]),
            (&json!("error"), &json!("quota"))
        );
        let details = &result["error"]["details"];
        assert_eq!(details["quota"], *quota, "{result}");
        assert!(details["limit"].is_number(), "{result}");
        let by_time = matches!(*quota, "rate" | "bytes_in" | "bytes_out");
        assert_eq!(details["retry_after_ms"].is_number(), by_time, "{result}");
    }
    assert_eq!(node.answers().on(DLQ).len(), 0);

    // What is under way ends, and its room is there again.
    outside.open();
    let all = [loads.iter().flat_map(|(_, load, _)| load.clone()).collect(), free].concat();
    node.wait_answered(&all, SOON);
    let again = [
        of("waiting", AssignmentBuilder::echo()),
        needing("remembering", &outside, "memory_bytes", 1 << 30),
    ];
    wait_until("nothing is held", SOON, || {
        let port = node.worker.metrics_port().expect("is logged");
        let page = caf_testkit::http::get(port, "/metrics").expect("is shown").text();
        page.contains("worker_jobs_held 0\n")
    });
    send(&node, &again);
    assert_eq!(acks(&node, &again), counts(2, 0));
    let all = [all, again.to_vec()].concat();
    node.wait_answered(&all, SOON);
    assert_each_answered_once(&node.answers(), &all);
    for result in node.answers().on(RESULT) {
        assert!(
            matches!(result["status"].as_str(), Some("success" | "error")),
            "{result}"
        );
    }
    let port = node.worker.metrics_port().expect("is logged");
    let page = caf_testkit::http::get(port, "/metrics").expect("is shown").text();
    for line in [
        "worker_quota_rejections_total{quota=\"rate\",tenant_id=\"rated.eu\"} 15\n",
        "worker_quota_rejections_total{quota=\"queued\",tenant_id=\"other\"} 4\n",
        "worker_assignments_total{row=\"4b\"} 32\n",
    ] {
        assert!(page.contains(line), "{line} is not in {page}");
    }
}

/// Settings with this burst for everybody.
fn with_burst(burst: usize) -> String {
    format!("[tenants.default]\nrate_per_s = 0.001\nburst = {burst}\n")
}

#[test]
fn a_sighup_raises_and_lowers_quotas_at_once_for_what_was_spent_before() {
    let mut node = Node::start_with(|worker| worker.file("config/worker.toml", with_burst(5)));
    let file = node.worker.directory().join("config/worker.toml");
    let mut rounds = vec![(5, 3)];
    rounds.extend([(8, 3), (4, 0), (10, 2)]);
    let mut all = Vec::new();
    for (round, (burst, accepted)) in rounds.into_iter().enumerate() {
        let accepted = if round == 0 { burst } else { accepted };
        if round > 0 {
            std::fs::write(&file, with_burst(burst)).expect("is written");
            node.worker.hang_up().expect("is told");
            node.worker
                .wait_for_log(|log| {
                    log["message"] == "Settings reloaded"
                        && log["context"]["applied"][0]["value"] == json!(burst)
                })
                .expect("is said");
        }
        let load = jobs(7, |_| AssignmentBuilder::echo());
        send(&node, &load);
        assert_eq!(
            acks(&node, &load),
            counts(accepted, 7 - accepted),
            "burst {burst}"
        );
        all.extend(load);
    }
    node.wait_answered(&all, SOON);
    assert_each_answered_once(&node.answers(), &all);
}
