//! Workers that leave while others stay or come after them: what they hand back, what they leave, and what of it runs
//! when and where. `faults.rs` has the single worker that leaves.

use std::time::{Duration, Instant};

use caf_testkit::client::ACK;
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, Client, Collector, NatsServer, Proxy, TempDir, Worker, wait_until};
use serde_json::{Value, json};

use crate::outages::assert_heard_once;
use crate::side_effects::Outside;
use crate::support::{SOON, answers, assert_each_answered_once, jobs, program, statuses, wait_answered};

/// Stream of the bucket of claims.
const CLAIMS: &str = "KV_caf-claims";
/// Questions between workers.
const QUESTIONS: &str = "caf.worker.owner.v1.>";
/// Ack wait of these workers: so long that whatever came only after it would be missed.
const ACK_WAIT: Duration = Duration::from_secs(30);

/// A broker, and somebody who hears everything. Fields end in this order.
struct Fleet {
    heard: Collector,
    questions: Collector,
    client: Client,
    nats: NatsServer,
}

/// The claim that a worker asks itself about, to see that questions get through: that of no tenant and no assignment.
const NOTHING: &[u8] = b"af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc";

impl Fleet {
    /// Questions about assignments.
    fn questions(&self) -> usize {
        let asked = self.questions.messages();
        asked
            .iter()
            .filter(|question| question.payload != NOTHING)
            .count()
    }

    fn new() -> Self {
        let nats = NatsServer::start().expect("the broker starts");
        let client = Client::connect(&nats).expect("the client connects");
        Self {
            heard: client.collect_answers().expect("listens"),
            questions: client.collect(&[QUESTIONS]).expect("listens"),
            client,
            nats,
        }
    }

    /// A ready worker with this directory for its state.
    fn worker(&self, state: &TempDir, adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Worker {
        let worker = program()
            .env("NATS_ACK_WAIT_MS", ACK_WAIT.as_millis())
            .env("WORKER__WORKER__STATE_DIR", state.path().display())
            .serve(&self.nats);
        let mut worker = adjust(worker).start().expect("the worker starts");
        worker.wait_ready().expect("the worker becomes ready");
        worker
    }

    fn wait_acknowledged(&self, count: usize) {
        wait_until("they are acknowledged", SOON, || {
            self.heard.on(ACK).len() >= count
        });
    }

    /// What the fleet knows of an assignment.
    fn claim(&self, job: &AssignmentBuilder) -> Value {
        let tenant = job.value()["tenant_id"].as_str().expect("has one");
        let key = caf_protocol::ids::AssignmentKey::new(tenant, job.assignment_id());
        let stored = self.client.stream_messages(CLAIMS).expect("can be read");
        let mut of_job = stored
            .iter()
            .filter(|message| message.subject.ends_with(key.as_str()));
        of_job
            .next_back()
            .map(|message| message.json())
            .unwrap_or_default()
    }

    fn result(&self, job: &AssignmentBuilder) -> Value {
        answers(&self.client).results(job.assignment_id()).remove(0)
    }

    #[track_caller]
    fn assert_each_once(&self, load: &[AssignmentBuilder]) {
        wait_answered(&self.client, load, SOON);
        assert_each_answered_once(&answers(&self.client), load);
        assert_heard_once(&self.heard, load);
    }
}

fn leave(worker: &mut Worker) {
    worker.terminate().expect("is told");
    assert_eq!(worker.wait_exit(SOON).expect("ends").code(), Some(0));
}

/// Claims of assignments that were handed back at least once; no claim counts that as an attempt.
#[track_caller]
fn handed_back(fleet: &Fleet, load: &[AssignmentBuilder]) -> usize {
    let stored = fleet.client.stream_messages(CLAIMS).expect("can be read");
    let claims: Vec<Value> = stored.iter().map(|message| message.json()).collect();
    assert_eq!(claims.len(), load.len());
    for claim in &claims {
        assert_eq!(
            (&claim["attempt"], &claim["state"]),
            (&json!(1), &json!("finished")),
            "{claim}"
        );
        let history = claim["history"].as_array().expect("is a list");
        assert!(history.iter().all(|past| past["given_back"] == true), "{claim}");
    }
    claims
        .iter()
        .filter(|claim| claim["history"] != json!([]))
        .count()
}

#[test]
fn a_rolling_restart_of_three_workers_under_load_loses_nothing_doubles_nothing_and_delays_little() {
    let (fleet, outside) = (Fleet::new(), Outside::start());
    let states = [(); 3].map(|()| TempDir::new("state").expect("a directory"));
    let settings = |worker: WorkerBuilder| {
        outside
            .allow(worker)
            .env("WORKER_IO_POOL_SIZE", 3)
            .env("WORKER__LIMITS__MAX_HELD", 60)
    };
    let mut workers: Vec<_> = states.iter().map(|state| fleet.worker(state, settings)).collect();
    let mut load = Vec::new();
    let began = Instant::now();
    for (n, state) in states.iter().enumerate() {
        let more = jobs(120, |job| {
            outside.job(&format!("after/{}/{n}-{job}", 20 + job % 7 * 30))
        });
        fleet.client.assign_all(&more).expect("are sent");
        load.extend(more);
        fleet.wait_acknowledged(load.len() - 100);
        leave(&mut workers[n]);
        workers[n] = fleet.worker(state, settings);
    }
    let restarted = began.elapsed();
    fleet.assert_each_once(&load);
    let latencies = answers(&fleet.client);
    let latencies = load
        .iter()
        .filter_map(|job| latencies.results(job.assignment_id())[0]["latency_ms"].as_u64());
    let longest = Duration::from_millis(latencies.max().expect("there are some"));
    let handed_back = handed_back(&fleet, &load);
    println!(
        "3 restarts in {restarted:?} among {} jobs: {handed_back} handed back, longest from first start to result {longest:?}",
        load.len()
    );
    assert!(handed_back > 0, "nothing waited when a worker left");
    assert!(
        longest < ACK_WAIT / 2,
        "{longest:?}: somebody waited for the ack wait"
    );
    assert_eq!(statuses(&answers(&fleet.client))["success"], load.len());
    assert_eq!(outside.seen().len(), load.len());
    assert_eq!(outside.repeated(), Vec::<String>::new());
}

#[test]
fn a_job_handed_back_keeps_its_acknowledgement_and_its_first_start() {
    let (fleet, outside) = (Fleet::new(), Outside::start());
    let state = TempDir::new("state").expect("a directory");
    let settings = |worker: WorkerBuilder| outside.allow(worker).env("WORKER_IO_POOL_SIZE", 1);
    let mut worker = fleet.worker(&state, settings);
    let deadline = Duration::from_secs(4);
    let running = outside.job("running");
    fleet.client.assign(&running).expect("is sent");
    wait_until("it runs", SOON, || outside.seen().len() == 1);
    let short = outside.job("short").deadline_ms(4_000);
    let long = outside.job("long");
    fleet
        .client
        .assign_all(&[short.clone(), long.clone()])
        .expect("are sent");
    fleet.wait_acknowledged(3);
    let first_start = Instant::now();
    worker.terminate().expect("is told");
    wait_until("what waits is handed back", SOON, || {
        [&short, &long]
            .iter()
            .all(|job| fleet.claim(job)["state"] == "interrupted")
    });
    outside.open();
    assert_eq!(worker.wait_exit(SOON).expect("ends").code(), Some(0));
    // Nobody is there, and the time goes on.
    wait_until("the deadline has passed", deadline * 2, || {
        first_start.elapsed() > deadline
    });
    let _successor = fleet.worker(&state, settings);
    let load = [running, short.clone(), long.clone()];
    fleet.assert_each_once(&load);
    assert_eq!(fleet.result(&short)["status"], "timeout");
    assert_eq!(fleet.result(&long)["status"], "success");
    for job in [&short, &long] {
        assert!(
            fleet.result(job)["latency_ms"].as_u64() >= Some(4_000),
            "{}",
            fleet.result(job)
        );
        let acks = fleet.heard.acks(job.assignment_id());
        assert!(acks.iter().all(|ack| *ack == acks[0]), "{acks:?}");
    }
    assert_eq!(outside.seen().len(), 2, "what was out of time did not run");
    assert_eq!(handed_back(&fleet, &load), 2);
    assert_eq!(fleet.questions(), 0, "who was given it asked all the same");
}

/// A job that may be repeated is cut off, and another worker runs it.
fn cut_off_and_taken_over(soft_s: u64, cut_off: impl FnOnce(&mut Worker)) {
    let fleet = Fleet::new();
    let states = [(); 2].map(|()| TempDir::new("state").expect("a directory"));
    let settings = |worker: WorkerBuilder| {
        worker
            .env("WORKER__DRAIN__SOFT_S", soft_s)
            .env("WORKER__DRAIN__HARD_S", soft_s + 5)
    };
    let mut first = fleet.worker(&states[0], settings);
    let load = jobs(6, |_| AssignmentBuilder::sleep(3_000).deadline_ms(60_000));
    fleet.client.assign_all(&load).expect("are sent");
    fleet.wait_acknowledged(load.len());
    let second = fleet.worker(&states[1], settings);
    cut_off(&mut first);
    assert_eq!(first.wait_exit(SOON).expect("ends").code(), Some(0));
    fleet.assert_each_once(&load);
    assert_eq!(statuses(&answers(&fleet.client))["success"], load.len());
    assert_eq!(handed_back(&fleet, &load), load.len());
    assert_eq!(fleet.questions(), 0, "who was given it asked all the same");
    for job in &load {
        // Ran for a while, and again from the start.
        assert!(fleet.result(job)["latency_ms"].as_u64() > Some(3_000));
    }
    let ran = second
        .logs()
        .into_iter()
        .filter(|log| log["message"] == "Step execution completed");
    assert_eq!(ran.count(), load.len());
}

#[test]
fn what_may_be_repeated_and_is_cut_off_at_the_soft_limit_is_taken_over_without_asking() {
    cut_off_and_taken_over(1, |worker| worker.terminate().expect("is told"));
}

#[test]
fn what_may_be_repeated_and_is_cut_off_by_a_second_signal_is_taken_over_without_asking() {
    cut_off_and_taken_over(30, |worker| {
        worker.terminate().expect("is told");
        worker.wait_for_message("Worker shutting down").expect("is heard");
        worker.interrupt().expect("is told again");
    });
}

/// Exit code of a worker whose lease keeper is gone.
const LEASE_KEEPER_LOST: Option<i32> = Some(82);

#[test]
fn a_worker_without_its_lease_keeper_takes_nothing_on_and_leaves() {
    let (fleet, outside) = (Fleet::new(), Outside::start());
    let state = TempDir::new("state").expect("a directory");
    let proxy = Proxy::start(&fleet.nats).expect("the proxy starts");
    let is_lease_keeper = |payload: &[u8]| payload.windows(12).any(|part| part == b"lease keeper");
    // Held, not swallowed: a server without passwords does not wait for a CONNECT.
    let held = proxy.hold_when(move |frame| frame.op == "CONNECT" && is_lease_keeper(&frame.payload));
    let worker = |proxy: &Proxy| {
        outside
            .allow(program())
            .env("NATS_ACK_WAIT_MS", 2_000)
            .env("WORKER__NATS__CONNECT_DEADLINE_MS", 1_000)
            .env("WORKER__WORKER__STATE_DIR", state.path().display())
            .serve_through(proxy)
    };
    let mut first = worker(&proxy).start().expect("starts");
    assert_eq!(first.wait_exit(SOON).expect("ends").code(), LEASE_KEEPER_LOST);
    assert!(held.wait(SOON).is_some());
    let ready = first
        .logs()
        .iter()
        .any(|log| log["message"] == "Worker runtime running");
    assert!(!ready, "whom nobody can ask takes nothing on");
    drop(held);
    outside.open();
    let load = jobs(12, |n| outside.job(&n.to_string()));
    let mut second = worker(&proxy).start().expect("starts");
    second.wait_ready().expect("becomes ready");
    fleet.client.assign_all(&load).expect("are sent");
    fleet.assert_each_once(&load);
    assert_eq!(statuses(&answers(&fleet.client))["success"], load.len());
}

#[test]
fn whoever_comes_after_a_killed_worker_names_the_assignments_that_it_ran() {
    let (fleet, outside) = (Fleet::new(), Outside::start());
    let state = TempDir::new("state").expect("a directory");
    let mut killed = fleet.worker(&state, |worker| outside.allow(worker));
    let job = outside.job("killed");
    fleet.client.assign(&job).expect("is sent");
    wait_until("it runs", SOON, || outside.seen().len() == 1);
    killed.kill();
    let mut successor = fleet.worker(&state, |worker| outside.allow(worker));
    let log = successor
        .wait_for_message("Worker died while it ran an assignment")
        .expect("says so");
    assert_eq!(
        (&log["tenant_id"], &log["context"]["assignment_id"]),
        (&job.value()["tenant_id"], &json!(job.assignment_id())),
        "{log}"
    );
    assert_eq!(fleet.claim(&job)["deaths"], 1);
}
