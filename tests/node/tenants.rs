//! Quotas of tenants on the wire: exact counts, others unaffected, changes at once.
//!
//! No count depends on how fast anything is: rates bring nothing within the life of a test, and jobs that must be under way
//! ask a server that withholds its answers.

use std::collections::BTreeMap;
use std::time::Duration;

use caf_testkit::client::{ACK, DLQ, RESULT};
use caf_testkit::faulty_http::{Call, Fault, FaultyHttp};
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, wait_until};
use serde_json::{Value, json};

use crate::side_effects::Outside;
use crate::support::{Node, SOON, assert_each_answered_once, jobs, program};

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

/// Where the policy of a tenant is asked for.
fn path_of(tenant: &str) -> String {
    format!("/base/tenants/{tenant}/policies/worker")
}

fn policy(etag: &str, body: &str) -> Fault {
    Fault::Answer(200, format!("ETag: \"{etag}\"\r\n"), body.to_owned())
}

/// What a store says to a call for the first tenant of the path; to others that it has no policy.
fn by_tenant(
    answers: impl Fn(&str, usize) -> Option<Fault> + Send + Sync + 'static,
) -> impl Fn(Call<'_>) -> Fault + Send + Sync {
    move |call| {
        let tenant = call.path.split('/').nth(3).unwrap_or_default();
        answers(tenant, call.number).unwrap_or(Fault::Status(404, ""))
    }
}

/// Settings that ask this store; a first answer is waited for as long as that may be, so that counts are exact.
fn asking(store: &FaultyHttp, first_wait_ms: u64) -> String {
    format!(
        "[tenants.default]\nrate_per_s = 0.001\nburst = 4\n[tenants.policy_store]\nurl = \"{}\"\ntoken = \"t0ken\"\n\
         refresh_s = 1\ntimeout_ms = 1000\nfirst_wait_ms = {first_wait_ms}\n",
        store.url("/base")
    )
}

fn echoes(tenant: &str, count: usize) -> Vec<AssignmentBuilder> {
    jobs(count, |_| of(tenant, AssignmentBuilder::echo()))
}

#[test]
fn a_policy_store_rules_while_it_answers_and_what_it_said_last_while_it_does_not() {
    let store = FaultyHttp::refusing().expect("has a port");
    let directory = caf_testkit::TempDir::new("policies").expect("can be made");
    let start = |worker: WorkerBuilder| {
        worker
            .current_dir(directory.path())
            .file("config/worker.toml", asking(&store, 1_000))
    };
    let mut node = Node::start_with(start);
    let mut all = Vec::new();
    let mut expect = |node: &Node, tenant: &str, sent: usize, accepted: usize, what: &str| {
        let load = echoes(tenant, sent);
        send(node, &load);
        assert_eq!(acks(node, &load), counts(accepted, sent - accepted), "{what}");
        all.extend(load);
    };
    expect(&node, "early", 6, 4, "it is down at the start: by settings");

    let garbage = "{\"burst\": 1, \"colour\": \"blue\"}";
    store.set(by_tenant(move |tenant, number| match tenant {
        "acme.eu" if number == 0 => Some(policy("v1", "{\"burst\": 2}")),
        "acme.eu" => Some(Fault::Status(304, "")),
        "a%2F..%2Fb" => Some(policy("v1", "{\"burst\": 1}")),
        "garbage" => Some(policy("v1", garbage)),
        "huge" => Some(policy("v1", &" ".repeat(100_000))),
        "elsewhere" => Some(Fault::Status(
            302,
            "Location: /base/tenants/acme.eu/policies/worker",
        )),
        "reset" => Some(Fault::Reset),
        _ => None,
    }));
    store.recover().expect("it listens");
    // One failure does not make it away, but is waited out.
    expect(&node, "acme.eu", 6, 2, "on top of the default");
    expect(&node, "a/../b", 3, 1, "the name is one segment of the path");
    for tenant in ["garbage", "huge", "elsewhere", "unknown", "reset", ".."] {
        expect(&node, tenant, 6, 4, tenant);
    }
    let unusable = node.worker.wait_for_log(|log| {
        log["message"] == "Policy of a tenant cannot be used" && log["context"]["policy_tenant"] == "garbage"
    });
    let why = unusable.expect("is said")["context"]["error"].to_string();
    assert!(why.contains("colour"), "{why}");

    // It is asked again once its answer has aged, by the ETag.
    let path = path_of("acme.eu");
    wait_until("it is asked again", SOON, || {
        expect(&node, "acme.eu", 1, 0, "nothing is regained");
        store.calls(&path) > 1
    });
    assert_eq!(
        store.header(&path, "If-None-Match")[..2],
        [None, Some("\"v1\"".to_owned())]
    );
    assert_eq!(
        store.header(&path, "Authorization")[0].as_deref(),
        Some("Bearer t0ken")
    );

    // Gone, hanging, or failing: what it said counts, also for the next process.
    for (number, fault) in [Fault::Reset, Fault::Hang, Fault::Status(500, "")]
        .into_iter()
        .enumerate()
    {
        let kept = directory.path().join("state/0/policies.json");
        wait_until("it is kept on disk", SOON, || {
            std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("acme.eu"))
        });
        store.set(move |_| fault.clone());
        node.worker.terminate().expect("is told");
        node.worker.wait_exit(SOON).expect("it ends");
        node.worker = node.another(start);
        expect(&node, "acme.eu", 6, 2, "a new process knows it");
        expect(
            &node,
            &format!("new-{number}"),
            6,
            4,
            "nothing is known of others",
        );
    }
    store.set(by_tenant(|_, _| Some(policy("v2", "{\"burst\": 3}"))));
    let mut round = 0;
    wait_until("it is back", SOON, || {
        round += 1;
        let load = echoes(&format!("back-{round}"), 4);
        send(&node, &load);
        all.extend(load.clone());
        acks(&node, &load) == counts(3, 1)
    });
    node.wait_answered(&all, SOON);
    assert_each_answered_once(&node.answers(), &all);
}

/// Set, what is measured is held to what is promised: for a release build on a machine of its own.
const LONG: &str = "LOAD_LONG";

#[test]
fn no_job_waits_for_the_store_beyond_its_bound() {
    let store = FaultyHttp::start().expect("starts");
    let node = Node::start_with(|worker| worker.file("config/worker.toml", asking(&store, 50)));
    let mut all = Vec::new();
    for (name, fault, promised_ms) in [
        ("at once", Fault::Status(404, ""), 50),
        ("after 20 ms", Fault::Delay(Duration::from_millis(20)), 50),
        ("never", Fault::Hang, 100),
    ] {
        store.set(move |_| fault.clone());
        let load = jobs(30, |number| {
            of(&format!("{name}-{number}"), AssignmentBuilder::echo())
        });
        for job in &load {
            send(&node, std::slice::from_ref(job));
        }
        node.wait_answered(&load, SOON);
        let answers = node.answers();
        let latency =
            |job: &AssignmentBuilder| answers.results(job.assignment_id())[0]["latency_ms"].as_u64();
        let mut latencies: Vec<u64> = load
            .iter()
            .map(|job| latency(job).expect("is a number"))
            .collect();
        latencies.sort_unstable();
        let (median, worst) = (latencies[15], latencies[29]);
        println!(
            "first jobs of 30 tenants, the store answers {name}: median {median} ms, longest {worst} ms"
        );
        let most = std::env::var_os(LONG).map_or(2_000, |_| promised_ms);
        assert!(worst <= most, "{latencies:?}");
        all.extend(load);
    }
    assert_each_answered_once(&node.answers(), &all);
}

#[test]
fn the_example_of_the_manual_is_accepted_and_a_limit_that_lets_nothing_through_is_not() {
    let manual = include_str!("../../README.md");
    let section = manual.split_once("\n## Tenants\n").expect("there is one").1;
    let example = section
        .split("```toml\n")
        .nth(1)
        .and_then(|text| text.split("```").next());
    let example = example.expect("it has an example");
    let check = |text: &str| {
        let worker = program()
            .args(["config", "check"])
            .file("config/worker.toml", text);
        worker.run(SOON).expect("it ends")
    };
    assert_eq!(check(example).code(), Some(0), "{}", check(example).stderr());
    let refused = check(&example.replace("rate_per_s = 500.0", "rate_per_s = 0.0"));
    assert_eq!(refused.code(), Some(78));
    let told = refused.stdout() + &refused.stderr();
    assert!(
        told.contains("tenants.overrides.\"acme.eu\".rate_per_s: must be from 0.001"),
        "{told}"
    );
}
