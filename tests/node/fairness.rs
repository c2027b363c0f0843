//! Tenants that share a worker: whose turn it is, how urgent jobs of one tenant are, and how many of a tenant run at once.
//!
//! What started when is read from the log of pool and intake, which one thread writes in the order of things.

use std::collections::BTreeMap;

use caf_testkit::client::ACK;
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, Worker, http, wait_until};
use serde_json::{Value, json};

use crate::side_effects::Outside;
use crate::support::{Node, SOON, answers, assert_each_answered_once, jobs, statuses};

/// Jobs of the tenant that floods.
const FLOOD: usize = 10_000;
/// Lines of jobs that are let in and that start.
const LEVELS: &str = "[log.levels]\npool = \"debug\"\nintake = \"debug\"\n";
/// Slots of the pool that is flooded.
const SLOTS: usize = 2;

fn with(worker: WorkerBuilder, settings: &str) -> WorkerBuilder {
    worker.file("config/worker.toml", format!("{settings}\n{LEVELS}"))
}

/// Ids of the jobs in the order of their starts, of those that `counts`.
fn starts(worker: &Worker, counts: impl Fn(&str) -> bool) -> Vec<String> {
    let logs = worker.logs();
    let started = logs
        .iter()
        .filter(|line| line["message"] == "Step execution started");
    let ids = started.filter_map(|line| line["context"]["assignment_id"].as_str());
    ids.filter(|id| counts(id)).map(str::to_owned).collect()
}

/// Where the first line with this message about this job stands in the log.
fn line_of(logs: &[Value], message: &str, id: &str) -> usize {
    let is_it = |line: &Value| line["message"] == message && line["context"]["assignment_id"] == id;
    logs.iter()
        .position(is_it)
        .unwrap_or_else(|| panic!("no '{message}' of {id}"))
}

#[track_caller]
fn wait_accepted(node: &Node, count: usize) {
    wait_until(&format!("{count} acknowledgements"), SOON, || {
        answers(&node.client).on(ACK).len() >= count
    });
}

/// The proof of the formula in ARCHITECTURE.md, end to end: the worker holds the flood, and the one job of another tenant
/// behind it starts as its turn comes, not as the flood ends.
#[test]
fn one_job_beside_a_flood_of_ten_thousand_waits_for_one_turn_of_the_other_tenant() {
    let settings = format!(
        "[limits]\nmax_held = {}\n[nats]\nmax_ack_pending = {}\n[pools.io]\nmax_concurrency = {SLOTS}\n",
        FLOOD + 1_000,
        4 * FLOOD
    );
    let node = Node::start_with(|worker| with(worker, &settings));
    // Over as many keys as there are: runs, priorities, job types, requests.
    let flood = jobs(FLOOD, |n| {
        let job = match n % 2 {
            0 => AssignmentBuilder::sleep(50),
            _ => AssignmentBuilder::new("echo", json!({"n": n})).set("resources", json!({"class": "io"})),
        };
        job.tenant("flood")
            .run_flow_step(&format!("run-{n}"), &format!("flow-{n}"), &format!("step-{n}"))
            .set("options", json!({"priority": n % 101, "deadline_ms": 3_000_000}))
    });
    let single = AssignmentBuilder::sleep(1).tenant("single");
    node.client.assign_all(&flood).expect("are sent");
    node.client.assign_stored(&single).expect("is sent");
    wait_until("the single job starts", 4 * SOON, || {
        starts(&node.worker, |id| id == single.assignment_id()).len() == 1
    });
    let logs = node.worker.logs();
    let accepted = line_of(&logs, "Assignment accepted", single.assignment_id());
    let started = line_of(&logs, "Step execution started", single.assignment_id());
    let count =
        |range: &[Value], message: &str| range.iter().filter(|line| line["message"] == message).count();
    let behind =
        count(&logs[..accepted], "Assignment accepted") - count(&logs[..accepted], "Step execution started");
    assert!(behind > FLOOD / 2, "only {behind} of the flood waited");
    let before = count(&logs[accepted..started], "Step execution started");
    // One turn of the other tenant, of weight 1; and what starts between the two lines, while it is on its way to the pool.
    assert!(
        before <= 1 + SLOTS,
        "{before} started before it, beside {behind} that waited"
    );
    println!("{before} started before the single job, {behind} of the flood waited");
}

/// One slot that is taken until all have come: then whose turn it is is exact.
#[test]
fn tenants_take_turns_by_weight_and_the_urgent_jobs_of_each_go_first() {
    let outside = Outside::start();
    let settings = "[pools.io]\nmax_concurrency = 1\n[tenants.default]\nweight = 2\n";
    let node = Node::start_with(|worker| outside.allow(with(worker, settings)));
    let first = outside.job("first").id("first");
    node.client.assign(&first).expect("is sent");
    wait_accepted(&node, 1);
    let job = |tenant: &str, n: usize, priority: Value| {
        let options = json!({"priority": priority, "deadline_ms": 200_000});
        let job = AssignmentBuilder::sleep(1).id(format!("{tenant}-{n}"));
        job.tenant(tenant).set("options", options)
    };
    let mut load = jobs(6, |n| job("a", n, json!(50)));
    // The last but one is the most urgent, the next the least; what is no priority is the middle.
    let priorities = [json!(50), json!("high"), json!(0), json!(100), json!(75)];
    load.extend(
        priorities
            .into_iter()
            .enumerate()
            .map(|(n, priority)| job("b", n, priority)),
    );
    for (n, job) in load.iter().enumerate() {
        node.client.assign(job).expect("is sent");
        wait_accepted(&node, n + 2);
    }
    outside.open();
    node.wait_answered(&load, SOON);
    let order = starts(&node.worker, |id| id != "first");
    assert_eq!(
        order,
        [
            "a-0", "a-1", "b-3", "b-4", "a-2", "a-3", "b-0", "b-1", "a-4", "a-5", "b-2"
        ]
    );
}

fn admin(node: &mut Node, path: &str) -> Value {
    let port = node.worker.admin_port().expect("is logged");
    let answer = http::get(port, path).expect("answers");
    answer.json().expect("is JSON")
}

/// In all pools together, live, and told to whoever asks.
#[test]
fn a_tenant_runs_no_more_jobs_than_it_may_and_others_pass_it() {
    let outside = Outside::start();
    let limited = |max: usize| format!("[tenants.default]\nmax_running = {max}\n");
    let mut node = Node::start_with(|worker| {
        let worker = worker.env("CP2_OBSERVABILITY_METRICS_ENABLED", "true");
        outside.allow(with(worker, &limited(2)))
    });
    let job = |tenant: &str, n: usize| {
        let class = ["io", "cpu", "gpu"][n % 3];
        let id = format!("{tenant}-{n}");
        let job = outside.job(&id).id(id.as_str()).tenant(tenant);
        job.set("resources", json!({"class": class}))
    };
    let seen = |count: usize| wait_until(&format!("{count} run"), SOON, || outside.seen().len() == count);
    let load = jobs(9, |n| job("a", n));
    for (n, job) in load.iter().enumerate() {
        node.client.assign(job).expect("is sent");
        wait_accepted(&node, n + 1);
    }
    let other = job("b", 0);
    node.client.assign(&other).expect("is sent");
    seen(3);
    assert_eq!(
        outside
            .seen()
            .keys()
            .filter(|path| path.starts_with("/a-"))
            .count(),
        2
    );

    let said = admin(&mut node, "/explain/a-6");
    let said = &said["matches"][0];
    let (waiting, line) = (&said["waiting"], &said["waiting"]["line"]);
    assert_eq!(
        (&waiting["what"], &line["at_limit"]),
        (&json!("tenant_limit"), &json!(true))
    );
    assert_eq!(
        (&line["before_of_tenant"], &line["of_tenant"], &line["tenants"]),
        (&json!(1), &json!(2), &json!(1)),
        "{said}"
    );
    assert_eq!(
        (&line["tenant_running"], &line["tenant_max_running"]),
        (&json!(2), &json!(2))
    );
    let summary = said["summary"].as_str().expect("is text");
    assert!(summary.contains("which runs 2 jobs of at most 2"), "{summary}");
    let pools = admin(&mut node, "/status")["pools"].clone();
    for pool in pools.as_array().expect("is a list") {
        assert_eq!(
            (&pool["tenants_waiting"], &pool["tenants_at_limit"]),
            (&json!(1), &json!(1)),
            "{pool}"
        );
    }
    let page = node
        .worker
        .metrics_port()
        .and_then(|port| http::get(port, "/metrics"))
        .expect("answers");
    let page = page.text();
    for series in ["worker_tenants_waiting", "worker_tenants_at_limit"] {
        let line = format!("{series}{{resource_pool=\"io\"}} 1");
        assert!(page.lines().any(|found| found == line), "{line}");
    }

    // Raised while it runs; then lowered, which ends nothing.
    for (max, running) in [(4, 5), (1, 5)] {
        let file = node.worker.directory().join("config/worker.toml");
        std::fs::write(file, format!("{}\n{LEVELS}", limited(max))).expect("is written");
        node.worker.hang_up().expect("is told");
        node.worker
            .wait_for_message("Settings reloaded")
            .expect("is logged");
        seen(running);
    }
    outside.open();
    let mut load = load;
    load.push(other);
    node.wait_answered(&load, SOON);
    let all = node.answers();
    assert_each_answered_once(&all, &load);
    assert_eq!(
        statuses(&all),
        BTreeMap::from([("success".to_owned(), load.len())])
    );
    assert!(outside.repeated().is_empty());
    wait_until("nothing waits", SOON, || {
        admin(&mut node, "/status")["pools"][2]["tenants_waiting"] == 0
    });
}
