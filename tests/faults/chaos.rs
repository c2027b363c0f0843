//! CHAOS-001 to CHAOS-009 (contract 9.2): shares of jobs meet a fault, and what becomes of them is counted exactly.
//!
//! Neighbours: `faulty_http` and `stall` of the test kit make the faults, `support` the node. Which jobs meet a fault is
//! drawn from a seed, so that shares are exact. By default the load is small and sent at once, and limits and waits are
//! short; `FAULTS_LONG=1` runs the loads, limits and policies of the contract, some minutes each, and prints latencies. No
//! test judges a speed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use caf_testkit::client::RESULT;
use caf_testkit::faulty_http::{Call, Fault, FaultyHttp, Silent, draw};
use caf_testkit::stall::{HeldCall, Stall};
use caf_testkit::wait::poll;
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, wait_until};
use serde_json::{Value, json};

use crate::support::{ANSWERS, Node, SOON, jobs};

/// Draws the jobs that meet a fault.
const SEED: u64 = 20_261_121;
/// Kilobytes of a file: the contract's megabyte would not fit a message with anything beside it.
const FILE_KB: usize = 512;

fn is_long() -> bool {
    std::env::var_os("FAULTS_LONG").is_some_and(|value| value == "1")
}

/// One of two values: for the short variant, and for the long one.
fn sized<T>(short: T, long: T) -> T {
    if is_long() { long } else { short }
}

/// How many jobs there are, and how many are sent in a second; the short variant sends all at once.
struct Load {
    count: usize,
    per_second: usize,
}

/// The contract's load of HTTP scenarios.
fn http_load() -> Load {
    Load {
        count: sized(60, 3_000),
        per_second: 50,
    }
}

/// The contract's load of file scenarios.
fn file_load() -> Load {
    Load {
        count: sized(40, 1_200),
        per_second: 20,
    }
}

/// A node with retries and timeouts in force: by the policies that are shipped, or with short waits and limits.
fn node(adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Node {
    let (mut retry, mut timeouts) = (json!({}), json!({}));
    if !is_long() {
        let short = json!({"base_delay_ms": 5, "max_delay_ms": 20});
        retry = json!({"block_policies": {"http": short, "fs": short, "sql": short}});
        timeouts = json!({"http_connection": {"connect_timeout_ms": 200}});
    }
    Node::start_with(|worker| {
        let worker = worker
            .policy("retry", &retry)
            .policy("timeout", &timeouts)
            .env("CP2_ADVANCED_RETRY_ENABLED", true)
            .env("CP2_COMPLETE_TIMEOUT_ENABLED", true)
            .env("WORKER__BLOCKS__HTTP__ALLOW_TARGETS", "127.0.0.0/8")
            // Enough that a share that hangs does not make the others wait.
            .env("WORKER_IO_POOL_SIZE", sized(20, 256));
        adjust(worker)
    })
}

/// Sends the load, waits for all answers, and gives the results in the order of the jobs.
fn run(node: &Node, load: &Load, retries: u32, job: impl FnMut(usize) -> AssignmentBuilder) -> Outcomes {
    let job = jobs(load.count, job);
    let job: Vec<_> = job.into_iter().map(|job| job.max_attempts(retries + 1)).collect();
    let before = answers_stored(node);
    if is_long() {
        let begun = Instant::now();
        for (n, second) in job.chunks(load.per_second).enumerate() {
            node.client.assign_all(second).expect("are sent");
            let next = begun + Duration::from_secs(n as u64 + 1);
            poll(next.saturating_duration_since(Instant::now()), || None::<()>);
        }
    } else {
        node.client.assign_all(&job).expect("are sent");
    }
    // By numbers, and read once: reading thousands of answers again and again would be a load of its own.
    let patience = sized(SOON, Duration::from_secs(180));
    wait_until("all are answered", patience, || {
        answers_stored(node) >= before + 2 * load.count
    });
    let results = node.answers().on(RESULT).into_iter();
    let by_id: BTreeMap<_, _> = results
        .map(|result| (result["assignment_id"].to_string(), result))
        .collect();
    let result_of = |job: &AssignmentBuilder| by_id[&json!(job.assignment_id()).to_string()].clone();
    let outcomes = Outcomes(job.iter().map(result_of).collect());
    outcomes.print_latency();
    outcomes
}

/// Acknowledgements and results so far.
fn answers_stored(node: &Node) -> usize {
    let count = node.client.stream_count(ANSWERS).expect("the broker answers");
    usize::try_from(count).expect("is small")
}

/// Results in the order of the jobs.
struct Outcomes(Vec<Value>);

impl Outcomes {
    fn ok(&self) -> BTreeSet<usize> {
        let results = self.0.iter().enumerate();
        results
            .filter(|(_, result)| result["status"] == "success")
            .map(|(n, _)| n)
            .collect()
    }

    /// At least this share succeeded, and whatever else came has one of these statuses and codes.
    #[track_caller]
    fn assert_at_least(&self, percent: usize, else_: &[(&str, &str)]) {
        let ok = self.ok();
        for (n, result) in self.0.iter().enumerate() {
            let told = (
                result["status"].as_str().unwrap_or_default(),
                result["error_code"].as_str().unwrap_or_default(),
            );
            assert!(ok.contains(&n) || else_.contains(&told), "job {n}: {result}");
        }
        assert!(
            ok.len() * 100 >= percent * self.0.len(),
            "{} of {} succeeded, less than {percent} %",
            ok.len(),
            self.0.len()
        );
    }

    /// Just these failed, each after so many retries.
    #[track_caller]
    fn assert_failed(&self, expected: &BTreeSet<usize>, retries: u64) {
        let all: BTreeSet<_> = (0..self.0.len()).collect();
        let failed: BTreeSet<_> = all.difference(&self.ok()).copied().collect();
        assert_eq!(&failed, expected);
        for n in failed {
            assert_eq!(self.0[n]["retries_used"], retries, "{}", self.0[n]);
        }
    }

    fn print_latency(&self) {
        if is_long() {
            let mut latencies: Vec<_> = self
                .0
                .iter()
                .filter_map(|result| result["latency_ms"].as_u64())
                .collect();
            latencies.sort_unstable();
            let at = |percent: usize| latencies.get(latencies.len() * percent / 100).copied();
            println!(
                "latency_ms: p50 {:?}, p95 {:?}, max {:?}",
                at(50),
                at(95),
                latencies.last()
            );
        }
    }
}

/// A request of a kilobyte.
fn post(url: &str) -> AssignmentBuilder {
    AssignmentBuilder::new(
        "http.request",
        json!({"url": url, "method": "POST", "body": "x".repeat(1_024)}),
    )
}

fn path(n: usize) -> String {
    format!("/job/{n}")
}

/// The job that a path belongs to.
fn job_of(path: &str) -> usize {
    path.rsplit('/')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(usize::MAX)
}

/// A file of the given root.
fn put(root: &str, n: usize) -> AssignmentBuilder {
    let content = "x".repeat(sized(8, FILE_KB) * 1_024);
    let given = json!({"path": format!("{root}/{n}"), "content": content});
    AssignmentBuilder::new("fs.blob_put", given).deadline_ms(5_000)
}

fn with_slow_root(stall: &Stall, worker: WorkerBuilder) -> WorkerBuilder {
    let roots = format!(
        "[blocks.fs.roots]\ndata = \"./data\"\nslow = \"{}\"\n",
        stall.directory().display()
    );
    worker.under(stall).file("config/worker.toml", roots)
}

#[test]
fn chaos_001_half_of_the_answers_half_a_second_late() {
    let (server, load) = (FaultyHttp::start().expect("starts"), http_load());
    let late = draw(SEED, load.count, 50);
    server.set(move |call| match late.contains(&job_of(call.path)) {
        true => Fault::Delay(Duration::from_millis(500)),
        false => Fault::None,
    });
    let node = node(|worker| worker);
    let outcomes = run(&node, &load, 2, |n| post(&server.url(&path(n))));
    outcomes.assert_at_least(90, &[("timeout", "CANCELLED_BY_TIMEOUT")]);
    outcomes.assert_failed(&BTreeSet::new(), 0);
    for n in 0..load.count {
        assert_eq!(
            server.calls(&path(n)),
            1,
            "late is not failed: job {n} is not tried again"
        );
    }
}

#[test]
fn chaos_002_a_third_of_the_writes_a_second_late() {
    let (stall, load) = (Stall::new().expect("is made"), file_load());
    let late = draw(SEED, load.count, 30);
    // Once for each file, unlike writing: the content comes in pieces.
    stall
        .delay(HeldCall::Rename, Duration::from_secs(1))
        .expect("is switched");
    let node = node(|worker| with_slow_root(&stall, worker));
    let root = |n| if late.contains(&n) { "slow" } else { "data" };
    let outcomes = run(&node, &load, 2, |n| put(root(n), n));
    outcomes.assert_at_least(85, &[("timeout", "CANCELLED_BY_TIMEOUT")]);
    assert_eq!(stall.held(HeldCall::Rename), late.len());
}

#[test]
fn chaos_003_a_tenth_of_the_jobs_refused_connection() {
    let (server, closed) = (
        FaultyHttp::start().expect("starts"),
        FaultyHttp::refusing().expect("has a port"),
    );
    let load = http_load();
    let refused = draw(SEED, load.count, 10);
    let node = node(|worker| worker);
    let outcomes = run(&node, &load, 3, |n| match refused.contains(&n) {
        true => post(&closed.url(&path(n))),
        false => post(&server.url(&path(n))),
    });
    outcomes.assert_at_least(85, &[("error", "NETWORK_ERROR")]);
    outcomes.assert_failed(&refused, 3);
}

#[test]
fn chaos_004_a_share_of_the_jobs_answered_500() {
    let (server, load) = (FaultyHttp::start().expect("starts"), http_load());
    let failing = draw(SEED, load.count, 15);
    let fails = failing.clone();
    server.set(move |call| match fails.contains(&job_of(call.path)) {
        true => Fault::Status(500, ""),
        false => Fault::None,
    });
    let node = node(|worker| worker);
    let outcomes = run(&node, &load, 3, |n| post(&server.url(&path(n))));
    outcomes.assert_at_least(80, &[("error", "HTTP_ERROR")]);
    outcomes.assert_failed(&failing, 3);
    for n in 0..load.count {
        let expected = if failing.contains(&n) { 4 } else { 1 };
        assert_eq!(server.calls(&path(n)), expected, "calls of job {n}");
    }
}

#[test]
fn chaos_005_a_tenth_of_the_jobs_answered_400() {
    let (server, load) = (FaultyHttp::start().expect("starts"), http_load());
    let refused = draw(SEED, load.count, 10);
    let fails = refused.clone();
    server.set(move |call| match fails.contains(&job_of(call.path)) {
        true => Fault::Status(400, ""),
        false => Fault::None,
    });
    let node = node(|worker| worker);
    let outcomes = run(&node, &load, 3, |n| post(&server.url(&path(n))));
    outcomes.assert_at_least(90, &[("error", "HTTP_ERROR")]);
    outcomes.assert_failed(&refused, 0);
    for n in 0..load.count {
        assert_eq!(server.calls(&path(n)), 1, "calls of job {n}");
    }
}

/// The system itself refuses, below the worker: tests may run as a user who may do everything.
#[test]
fn chaos_006_a_twentieth_of_the_files_not_permitted() {
    let (stall, load) = (Stall::new().expect("is made"), file_load());
    let refused = draw(SEED, load.count, 5);
    let node = node(|worker| with_slow_root(&stall, worker));
    stall.refuse(HeldCall::Open).expect("is switched");
    let root = |n| if refused.contains(&n) { "slow" } else { "data" };
    let outcomes = run(&node, &load, 2, |n| put(root(n), n));
    outcomes.assert_at_least(95, &[("error", "PERMISSION_DENIED")]);
    outcomes.assert_failed(&refused, 0);
    assert_eq!(stall.held(HeldCall::Open), refused.len(), "one call each");
}

#[test]
fn chaos_007_a_fifth_of_the_connections_never_established() {
    let (server, silent) = (
        FaultyHttp::start().expect("starts"),
        Silent::open().expect("opens"),
    );
    let load = http_load();
    let dropped = draw(SEED, load.count, 20);
    let mut node = node(|worker| worker);
    let outcomes = run(&node, &load, 3, |n| match dropped.contains(&n) {
        true => post(&silent.url(&path(n))),
        false => post(&server.url(&path(n))),
    });
    let else_ = [
        ("error", "CONNECTION_TIMEOUT"),
        ("timeout", "CANCELLED_BY_TIMEOUT"),
    ];
    outcomes.assert_at_least(75, &else_);
    outcomes.assert_failed(&dropped, 3);
    let line = node
        .worker
        .wait_for_message("Operation timeout")
        .expect("is told");
    assert_eq!(
        (
            &line["context"]["operation_type"],
            &line["context"]["timeout_type"]
        ),
        (&json!("http_connect"), &json!("attempt")),
        "{line}"
    );
}

#[test]
fn chaos_008_after_a_failure_of_the_network_jobs_succeed_again() {
    let server = FaultyHttp::refusing().expect("has a port");
    let node = node(|worker| worker);
    let load = http_load();
    let during = run(&node, &load, 3, |n| post(&server.url(&path(n))));
    during.assert_at_least(
        0,
        &[("error", "NETWORK_ERROR"), ("timeout", "CANCELLED_BY_TIMEOUT")],
    );
    assert_eq!(during.ok(), BTreeSet::new(), "nothing can succeed before");

    let recovered = Instant::now();
    server.recover().expect("listens");
    let first = [post(&server.url("/first"))];
    node.client.assign_all(&first).expect("is sent");
    node.wait_answered(&first, Duration::from_secs(10));
    if is_long() {
        println!("recovered after {:?}", recovered.elapsed());
    }
    let after = run(&node, &load, 3, |n| post(&server.url(&path(n))));
    after.assert_at_least(95, &[]);
    after.assert_failed(&BTreeSet::new(), 0);
}

/// Without a circuit breaker: retries do not make a failing server worse for good.
#[test]
fn chaos_009_after_a_time_of_many_500_jobs_succeed_again() {
    let server = FaultyHttp::start().expect("starts");
    let failing = Arc::new(AtomicBool::new(true));
    let fails = Arc::clone(&failing);
    server.set(move |call: Call<'_>| {
        // Four of five calls, another draw for each.
        let drawn = draw(SEED + job_of(call.path) as u64, 5, 80).contains(&call.number);
        match fails.load(SeqCst) && drawn {
            true => Fault::Status(500, ""),
            false => Fault::None,
        }
    });
    let node = node(|worker| worker);
    let mut load = http_load();
    load.count = sized(load.count, 1_500);
    let during = run(&node, &load, 3, |n| post(&server.url(&path(n))));
    during.assert_at_least(0, &[("error", "HTTP_ERROR"), ("timeout", "CANCELLED_BY_TIMEOUT")]);
    let retried: usize = (0..load.count).map(|n| server.calls(&path(n)) - 1).sum();
    let told: u64 = during
        .0
        .iter()
        .filter_map(|result| result["retries_used"].as_u64())
        .sum();
    assert_eq!(retried as u64, told, "every retry is one call");

    failing.store(false, SeqCst);
    let after = run(&node, &load, 3, |n| post(&server.url(&path(load.count + n))));
    after.assert_at_least(80, &[("error", "HTTP_ERROR")]);
    after.assert_failed(&BTreeSet::new(), 0);
    wait_until("nothing is held any more", SOON, || {
        node.client
            .stream_count(crate::support::ASSIGNMENTS)
            .is_ok_and(|count| count == 0)
    });
}

/// With one: open, half-open, closed, told in this order; nothing is called while it is open.
#[test]
fn chaos_009_the_breaker_opens_finds_out_and_closes() {
    let server = FaultyHttp::start().expect("starts");
    let failing = Arc::new(AtomicBool::new(true));
    let fails = Arc::clone(&failing);
    server.set(move |call: Call<'_>| {
        let drawn = draw(SEED + job_of(call.path) as u64, 5, 80).contains(&call.number);
        match fails.load(SeqCst) && drawn {
            true => Fault::Status(500, ""),
            false => Fault::None,
        }
    });
    let mut node = node(|worker| {
        worker.env("CP2_CIRCUIT_BREAKER_ENABLED", true).env(
            "WORKER__WORKER__CIRCUIT_BREAKER__RECOVERY_MS",
            sized(2_000, 10_000),
        )
    });
    let mut load = http_load();
    load.count = sized(load.count, 1_500);
    let during = run(&node, &load, 3, |n| post(&server.url(&path(n))));
    during.assert_at_least(0, &[("error", "HTTP_ERROR"), ("timeout", "CANCELLED_BY_TIMEOUT")]);
    let is_refused = |result: &&Value| result["error_message"] == "circuit_breaker_open";
    let refused = during.0.iter().filter(is_refused).count();
    assert!(refused > load.count / 4, "{refused}");
    let calls: usize = (0..load.count).map(|n| server.calls(&path(n))).sum();
    assert!(
        calls < load.count,
        "{calls} calls of {} jobs, which may make four each",
        load.count
    );

    failing.store(false, SeqCst);
    let mut tries = 0;
    let recovered = Instant::now();
    wait_until("a job succeeds", SOON, || {
        let job = [post(&server.url(&path(1_000_000 + tries)))];
        tries += 1;
        node.client.assign_all(&job).expect("is sent");
        node.wait_answered(&job, SOON);
        node.worker
            .logs()
            .iter()
            .any(|line| line["context"]["new_state"] == "closed")
    });
    if is_long() {
        println!("closed {:?} after the server was well", recovered.elapsed());
    }
    let after = run(&node, &load, 3, |n| post(&server.url(&path(load.count + n))));
    after.assert_at_least(80, &[("error", "HTTP_ERROR")]);
    after.assert_failed(&BTreeSet::new(), 0);
    let logs = node.worker.logs().into_iter();
    let changes = logs.filter(|line| line["message"] == "Circuit breaker state changed");
    let states: Vec<_> = changes.map(|line| line["context"]["new_state"].clone()).collect();
    // A trial may meet a fault, and it opens again.
    let [.., open, half_open, closed] = &states[..] else {
        panic!("{states:?}");
    };
    assert_eq!(
        [open, half_open, closed],
        ["open", "half_open", "closed"],
        "{states:?}"
    );
    let port = node.worker.admin_port().expect("is logged");
    let status = caf_testkit::http::get(port, "/status").expect("answers");
    let breaker = status.json().expect("is JSON")["circuit_breakers"]["listed"][0].clone();
    assert_eq!(breaker["state"], "closed", "{breaker}");
}

/// CHAOS-007's neighbour for the answer: a head that does not come is one attempt's limit, and the next may succeed.
#[test]
fn an_answer_that_hangs_once_is_asked_for_again() {
    let server = FaultyHttp::start().expect("starts");
    server.set(|call| match (call.path, call.number) {
        ("/head", 0) => Fault::Hang,
        ("/body", 0) => Fault::SlowBody(Duration::from_secs(3_600)),
        ("/reset", 0) => Fault::Reset,
        _ => Fault::None,
    });
    let mut node = node(|worker| {
        worker.env(
            "WORKER__WORKER__TIMEOUTS__V2__HTTP_CONNECTION__READ_TIMEOUT_MS",
            300,
        )
    });
    for path in ["/head", "/body", "/reset"] {
        let job = [post(&server.url(path)).max_attempts(2)];
        node.client.assign_all(&job).expect("is sent");
        node.wait_answered(&job, SOON);
        let result = node.answers().results(job[0].assignment_id())[0].clone();
        assert_eq!(
            (&result["status"], &result["retries_used"]),
            (&json!("success"), &json!(1)),
            "{path}: {result}"
        );
        assert_eq!(server.calls(path), 2);
    }
    let mut told = BTreeMap::<_, usize>::new();
    node.worker
        .wait_for_message("Operation timeout")
        .expect("is told");
    for log in node.worker.logs() {
        if log["message"] == "Operation timeout" {
            *told
                .entry(log["context"]["operation_type"].to_string())
                .or_default() += 1;
        }
    }
    assert_eq!(told, BTreeMap::from([("\"http_read\"".to_owned(), 2)]));
}

#[test]
fn without_the_flag_only_the_deadline_limits_a_request() {
    let deadline_ms = 1_000;
    let (server, silent) = (
        FaultyHttp::start().expect("starts"),
        Silent::open().expect("opens"),
    );
    server.set(|call| match call.path {
        "/head" => Fault::Hang,
        _ => Fault::SlowBody(Duration::from_secs(3_600)),
    });
    let limits = json!({"http_connection": {"connect_timeout_ms": 100, "read_timeout_ms": 100}});
    let node = Node::start_with(|worker| {
        worker
            .policy("timeout", &limits)
            .env("WORKER__BLOCKS__HTTP__ALLOW_TARGETS", "127.0.0.0/8")
    });
    for url in [server.url("/head"), server.url("/body"), silent.url("/connect")] {
        let job = [post(&url).deadline_ms(deadline_ms)];
        node.client.assign_all(&job).expect("is sent");
        node.wait_answered(&job, SOON);
        let result = node.answers().results(job[0].assignment_id())[0].clone();
        assert_eq!(
            (&result["status"], &result["error_code"], &result["retries_used"]),
            (&json!("timeout"), &json!("CANCELLED_BY_TIMEOUT"), &json!(0)),
            "{url}: {result}"
        );
        assert!(
            result["latency_ms"].as_u64() >= Some(deadline_ms),
            "{url}: {result}"
        );
    }
    let told = |log: &Value| log["message"] == "Operation timeout";
    assert!(!node.worker.logs().iter().any(told));
}
