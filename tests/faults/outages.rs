//! What is held over an outage: of the broker while many jobs finish, of the disk that results wait on, of time on busy
//! cores. Afterwards every result and every side effect is counted.
//!
//! Longer variants run with `FAULTS_LONG=1`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use caf_testkit::client::{ACK, HEARTBEAT, RESULT};
use caf_testkit::wait::poll;
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, Client, Collector, NatsServer, Proxy, TempDir, Worker, wait_until};
use serde_json::{Value, json};

use crate::side_effects::Outside;
use crate::support::{
    ANSWERS, ASSIGNMENTS, CONSUMER, Node, SOON, answers, assert_each_answered_once, jobs, program, statuses,
    wait_answered,
};

/// Whether the variants run that take minutes.
pub(crate) fn is_long() -> bool {
    std::env::var_os("FAULTS_LONG").is_some()
}

/// Milliseconds after which the broker delivers again.
const ACK_WAIT_MS: u64 = 2_000;
/// Longest time after an outage until everything that was held is published. Two busy cores.
const PUBLISHED: Duration = Duration::from_secs(60);

/// How long the broker is away: several times the ack wait.
fn outage() -> Duration {
    Duration::from_secs(if is_long() { 60 } else { 8 })
}

/// A worker behind a line, and somebody at the broker who hears everything. Fields end in this order.
struct Line {
    worker: Worker,
    heard: Collector,
    client: Client,
    proxy: Proxy,
    nats: NatsServer,
    state: TempDir,
}

impl Line {
    fn start(adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Self {
        let nats = NatsServer::start().expect("the broker starts");
        let client = Client::connect(&nats).expect("the client connects");
        let heard = client.collect_answers().expect("listens");
        let proxy = Proxy::start(&nats).expect("the proxy starts");
        let state = TempDir::new("state").expect("a directory");
        let worker = adjust(settings(&state)).serve_through(&proxy).start();
        let mut worker = worker.expect("the worker starts");
        worker.wait_ready().expect("the worker becomes ready");
        Self {
            worker,
            heard,
            client,
            proxy,
            nats,
            state,
        }
    }

    fn successor(&self, adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Worker {
        let worker = adjust(settings(&self.state)).serve_through(&self.proxy).start();
        worker.expect("the worker starts")
    }

    /// Assigns, and waits until each is acknowledged and so held by the worker.
    fn hold(&self, load: &[AssignmentBuilder]) {
        self.client.assign_all(load).expect("are sent");
        wait_until("all are acknowledged", PUBLISHED, || {
            self.stored(ACK) >= load.len()
        });
    }

    /// Messages on the stream of answers with this subject.
    fn stored(&self, subject: &str) -> usize {
        let stored = self.client.stream_messages(ANSWERS).unwrap_or_default();
        stored.iter().filter(|message| message.subject == subject).count()
    }

    fn break_off(&mut self) {
        self.proxy.cut();
        self.nats.kill();
    }

    /// The broker first, and whoever listens there, so that nothing is missed when the worker comes.
    fn mend(&mut self) {
        self.nats.restart().expect("starts again");
        wait_until("the client is back", SOON, || {
            self.client.publish("caf.test.ping", &[], "").is_ok() && self.client.stream(ANSWERS).is_ok()
        });
        self.proxy.mend();
    }

    fn assert_each_once(&self, load: &[AssignmentBuilder]) {
        wait_answered(&self.client, load, PUBLISHED);
        assert_each_answered_once(&answers(&self.client), load);
        assert_heard_once(&self.heard, load);
    }
}

fn settings(state: &TempDir) -> WorkerBuilder {
    program()
        .env("NATS_ACK_WAIT_MS", ACK_WAIT_MS)
        .env("WORKER__WORKER__STATE_DIR", state.path().display())
        .env("WORKER__NATS__REQUEST_TIMEOUT_MS", 2_000)
}

/// Somebody who listens without a stream has heard one result of each, and no acknowledgement with two contents.
#[track_caller]
pub(crate) fn assert_heard_once(heard: &Collector, load: &[AssignmentBuilder]) {
    let counts = heard.counts();
    let results = |job: &AssignmentBuilder| counts.get(job.assignment_id()).map_or(0, |a| a.results);
    let odd: Vec<_> = load
        .iter()
        .map(|job| (job.assignment_id(), results(job)))
        .filter(|(_, results)| *results != 1)
        .collect();
    assert_eq!(odd, [], "assignments with another number of results than one");
    assert_eq!(heard.objections(), Vec::<String>::new());
}

fn said(worker: &Worker, message: &str) -> usize {
    let logs = worker.logs();
    logs.iter().filter(|log| log["message"] == message).count()
}

/// Deliveries so far, repeated ones included.
fn deliveries(client: &Client) -> u64 {
    let request = format!("CONSUMER.INFO.{ASSIGNMENTS}.{CONSUMER}");
    let info = client
        .jetstream_api(&request, &json!({}))
        .expect("there is a consumer");
    info["delivered"]["consumer_seq"].as_u64().expect("is counted")
}

// ---- The broker is away while jobs finish ----

#[test]
fn a_thousand_jobs_that_finish_while_the_broker_is_away_are_answered_once_when_it_is_back() {
    let count = 1_000;
    let mut line = Line::start(|worker| worker.env("WORKER_IO_POOL_SIZE", count));
    let nap_ms = if is_long() { 20_000 } else { 12_000 };
    let load = jobs(count, |_| AssignmentBuilder::sleep(nap_ms).deadline_ms(200_000));
    line.hold(&load);
    let before = line.stored(RESULT);
    let began = Instant::now();
    line.break_off();
    wait_until("all have finished", PUBLISHED, || {
        said(&line.worker, "Step execution completed") == count
    });
    wait_until("the outage is over", outage(), || began.elapsed() >= outage());
    assert!(line.worker.is_running());
    let held = health(&mut line.worker)["details"]["jobs_held"].clone();
    line.mend();
    let back = Instant::now();
    line.assert_each_once(&load);
    println!(
        "{count} results: {before} before the outage of {:?}, {held} held at its end, all published {:?} after it",
        outage(),
        back.elapsed()
    );
    assert_eq!(statuses(&answers(&line.client))["success"], count);
    assert!(before < count / 10, "{before} were answered before the outage");
    assert_eq!(held, count - before);
}

#[test]
fn a_result_that_was_lost_with_its_connection_is_sent_again_when_that_is_back_and_not_when_its_time_is_up() {
    let minute_ms = 60_000;
    let line = Line::start(|worker| worker.env("WORKER__NATS__REQUEST_TIMEOUT_MS", minute_ms));
    let load = jobs(1, |_| AssignmentBuilder::sleep(1));
    let result = line.proxy.hold_when(|frame| frame.publishes(RESULT));
    line.client.assign_all(&load).expect("is sent");
    result.wait(SOON).expect("it is answered");
    result.sever();
    wait_until("the result is stored", SOON, || line.stored(RESULT) == 1);
    line.assert_each_once(&load);
}

#[test]
fn what_finished_while_the_broker_was_away_survives_the_death_of_its_worker_and_runs_no_second_time() {
    let outside = Outside::start();
    let count = 100;
    let mut line = Line::start(|worker| outside.allow(worker).env("WORKER_IO_POOL_SIZE", count));
    let load = jobs(count, |n| outside.job(&n.to_string()));
    line.hold(&load);
    wait_until("all are running", SOON, || outside.seen().len() == count);
    let began = Instant::now();
    line.break_off();
    outside.open();
    wait_until("all have finished", SOON, || {
        said(&line.worker, "Step execution completed") == count
    });
    wait_until("all are stored", SOON, || {
        outbox(&mut line.worker)["entries"] == count
    });
    line.worker.kill();
    let mut worker = line.successor(|worker| outside.allow(worker));
    worker
        .wait_for_message("State directory opened")
        .expect("opens it");
    wait_until("the outage is over", outage(), || began.elapsed() >= outage());
    line.mend();
    line.assert_each_once(&load);
    assert_eq!(statuses(&answers(&line.client))["success"], count);
    assert_eq!(outside.seen().len(), count);
    assert_eq!(outside.repeated(), Vec::<String>::new());
    worker.wait_ready().expect("goes on");
}

// ---- The directory that results wait in ----

/// A worker whose `worker.state_dir` is this, beside a broker.
fn worker_with(state: &Path, nats: &NatsServer) -> Worker {
    let worker = program()
        .env("WORKER__WORKER__STATE_DIR", state.display())
        .serve(nats);
    worker.start().expect("starts")
}

fn health(worker: &mut Worker) -> Value {
    let page = worker.get("/_health").expect("answers");
    page.json().expect("is JSON")
}

fn outbox(worker: &mut Worker) -> Value {
    health(worker)["details"]["outbox"].clone()
}

/// Waits until nothing is asked of the broker any more: a request that was open before ends after 20 seconds.
fn wait_until_pulling_stops(worker: &mut Worker) {
    // Long before an open request would expire.
    wait_until("pulling stops", Duration::from_secs(10), || {
        worker
            .get("/readyz")
            .is_ok_and(|page| page.text().contains("pulls_outstanding: 0\n"))
    });
}

fn not_ready_because(worker: &mut Worker) -> String {
    let page = worker.get("/readyz").expect("answers");
    assert_eq!(page.status, 503, "{}", page.text());
    page.text()
}

/// The worker waits at its start, and says for what.
#[track_caller]
fn assert_waits_for_its_directory(worker: &mut Worker, state: &Path, reason: &str) {
    let log = worker
        .wait_for_message("State directory unusable")
        .expect("says so");
    assert_eq!(log["level"], "ERROR");
    let error = log["context"]["error"].as_str().unwrap_or_default().to_owned();
    assert!(
        error.contains("worker.state_dir")
            && error.contains(&state.display().to_string())
            && error.contains(reason),
        "{error}"
    );
    wait_until("readiness says so", SOON, || {
        worker.get("/readyz").is_ok_and(|page| {
            page.status == 503 && page.text().contains("worker.state_dir") && page.text().contains(reason)
        })
    });
    let page = health(worker);
    assert_ne!(page["status"], "healthy");
    let broker = &page["checks"]["nats"]["message"];
    assert_eq!(broker, "not tried yet: waiting for worker.state_dir");
    assert!(worker.is_running());
}

/// Refused at start, mended by the operator, and again with a signal instead of mending.
fn waits_until_it_is_mended(reason: &str, spoil: impl Fn(&Path), mend: impl Fn(&Path)) {
    let nats = NatsServer::start().expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    let home = TempDir::new("state").expect("a directory");
    let state = home.path().join("state");
    spoil(&state);
    let mut worker = worker_with(&state, &nats);
    assert_waits_for_its_directory(&mut worker, &state, reason);
    let mut other = worker_with(&state, &nats);
    assert_waits_for_its_directory(&mut other, &state, reason);
    other.terminate().expect("is told");
    assert_eq!(other.wait_exit(SOON).expect("ends").code(), Some(0));

    mend(&state);
    worker.wait_ready().expect("becomes ready by itself");
    let job = [AssignmentBuilder::echo()];
    client.assign_all(&job).expect("is sent");
    wait_answered(&client, &job, SOON);
    assert_eq!(health(&mut worker)["status"], "healthy");
}

#[test]
fn a_state_directory_that_is_a_file_is_waited_for_and_named() {
    waits_until_it_is_mended(
        "is not a directory",
        |state| std::fs::write(state, "in the way").expect("is written"),
        |state| std::fs::remove_file(state).expect("is removed"),
    );
}

/// Not even root can make anything there.
#[test]
fn a_state_directory_where_nothing_can_be_made_is_waited_for_and_named() {
    waits_until_it_is_mended(
        "cannot create",
        |state| std::os::unix::fs::symlink("/proc/self", state).expect("is made"),
        |state| {
            std::fs::remove_file(state).expect("is removed");
            std::fs::create_dir(state).expect("is made");
        },
    );
}

/// A file system of its own, where the system lets us have one.
struct SmallDisk {
    place: TempDir,
}

impl SmallDisk {
    fn mount(mib: usize) -> Option<Self> {
        let place = TempDir::new("disk").expect("a directory");
        let size = format!("size={mib}m");
        let disk = Self { place };
        run_mount(&["-t", "tmpfs", "-o", &size, "none"], disk.path()).then_some(disk)
    }

    fn path(&self) -> &Path {
        self.place.path()
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Takes what is free.
    fn fill(&self) {
        let written = std::fs::write(self.filler(), vec![0; 64 * 1024 * 1024]);
        assert!(written.is_err(), "the disk is larger than it should be");
    }

    fn make_room(&self) {
        std::fs::remove_file(self.filler()).expect("is removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a worker may still have files there.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.path())
            .stderr(Stdio::null())
            .status();
    }
}

fn run_mount(arguments: &[&str], place: &Path) -> bool {
    let mount = Command::new("mount")
        .args(arguments)
        .arg(place)
        .stderr(Stdio::null())
        .status();
    mount.is_ok_and(|status| status.success())
}

/// Needs the right to mount; the tests of the outbox show the same with a log that may not grow.
#[test]
fn a_read_only_disk_and_a_full_one_are_waited_for_and_named() {
    let Some(disk) = SmallDisk::mount(24) else { return };
    let nats = NatsServer::start().expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    assert!(run_mount(&["-o", "remount,ro"], disk.path()));
    let mut worker = worker_with(disk.path(), &nats);
    assert_waits_for_its_directory(&mut worker, disk.path(), "Read-only file system");
    assert!(run_mount(&["-o", "remount,rw"], disk.path()));
    worker.wait_ready().expect("becomes ready by itself");
    worker.terminate().expect("is told");
    assert_eq!(worker.wait_exit(SOON).expect("ends").code(), Some(0));

    std::fs::remove_dir_all(disk.path().join("0")).expect("is removed");
    disk.fill();
    let mut worker = worker_with(disk.path(), &nats);
    assert_waits_for_its_directory(&mut worker, disk.path(), "o space left");
    disk.make_room();
    worker.wait_ready().expect("becomes ready by itself");
    let job = [AssignmentBuilder::echo()];
    client.assign_all(&job).expect("is sent");
    wait_answered(&client, &job, SOON);
}

/// Needs the right to mount, as above. Room for all files, but not for the reserve.
#[test]
fn a_disk_that_is_nearly_full_at_the_start_is_told_once_with_how_much_must_be_free() {
    let Some(disk) = SmallDisk::mount(4) else { return };
    let nats = NatsServer::start().expect("the broker starts");
    let mut worker = worker_with(disk.path(), &nats);
    worker
        .wait_for_message("Worker runtime running")
        .expect("runs, and takes nothing on");
    let why = not_ready_because(&mut worker);
    assert!(why.contains("8388608 bytes must be free"), "{why}");
    let failing = |worker: &Worker| {
        let logs = worker.logs().into_iter();
        logs.filter(|line| line["message"] == "Results cannot be stored, pulling stops")
            .collect::<Vec<_>>()
    };
    let told = failing(&worker);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0]["context"]["free_bytes_needed"].as_u64() > Some(8 * 1024 * 1024));
}

/// Needs the right to mount, as above.
#[test]
fn a_disk_that_gets_full_stops_pulling_and_what_runs_is_answered_all_the_same() {
    let Some(disk) = SmallDisk::mount(24) else { return };
    let outside = Outside::start();
    let mut node = Node::start_with(|worker| {
        outside
            .allow(worker)
            .env("WORKER__WORKER__STATE_DIR", disk.path().display())
            .env("WORKER__LIMITS__MAX_HELD", 4)
            .env("WORKER_IO_POOL_SIZE", 4)
    });
    // Results that the little room beside the filler cannot take.
    let running = jobs(4, |n| outside.job(&format!("{n}-400000")));
    node.client.assign_all(&running).expect("are sent");
    wait_until("all are running", SOON, || outside.seen().len() == 4);
    disk.fill();
    outside.open();
    let log = node
        .worker
        .wait_for_message("Results cannot be stored, pulling stops");
    let log = log.expect("says so").to_string();
    assert!(
        log.contains("worker.state_dir")
            && log.contains("no space left on the disk")
            && log.contains("free_bytes_needed"),
        "{log}"
    );
    // Stored or not, what had run is answered.
    wait_until("what ran is answered", SOON, || {
        answers(&node.client).on(RESULT).len() == 4
    });
    let why = not_ready_because(&mut node.worker);
    assert!(
        why.contains("worker.state_dir") && why.contains("no space left"),
        "{why}"
    );
    assert!(outbox(&mut node.worker)["failure"].is_string());
    assert_eq!(health(&mut node.worker)["status"], "degraded");

    wait_until_pulling_stops(&mut node.worker);
    let later = jobs(20, |_| AssignmentBuilder::echo());
    node.client.assign_all(&later).expect("are sent");
    wait_until("all wait at the broker", SOON, || {
        node.client
            .consumer(ASSIGNMENTS, CONSUMER)
            .is_ok_and(|state| state.pending == 20)
    });
    disk.make_room();
    node.worker.wait_ready().expect("becomes ready by itself");
    let all: Vec<_> = running.into_iter().chain(later).collect();
    node.wait_answered(&all, SOON);
    assert_each_answered_once(&node.answers(), &all);
    assert_eq!(statuses(&node.answers())["success"], all.len());
    assert_eq!(outside.repeated(), Vec::<String>::new());
}

/// The one who removes it may also have made room for somebody else: neither is served by going on.
#[test]
fn a_state_directory_that_is_removed_under_a_worker_is_noticed_and_what_runs_is_answered() {
    let (outside, home) = (Outside::start(), TempDir::new("state").expect("a directory"));
    let state = home.path().join("state");
    let settings = |worker: WorkerBuilder| {
        outside
            .allow(worker)
            .env("WORKER__WORKER__STATE_DIR", state.display())
            .env("WORKER_IO_POOL_SIZE", 4)
    };
    let mut node = Node::start_with(settings);
    let running = jobs(4, |n| outside.job(&n.to_string()));
    node.client.assign_all(&running).expect("are sent");
    wait_until("all are running", SOON, || outside.seen().len() == 4);
    std::fs::remove_dir_all(&state).expect("is removed");
    let log = node.worker.wait_for_message("State directory unusable");
    let log = log.expect("says so").to_string();
    assert!(
        log.contains("worker.state_dir") && log.contains("restart the worker"),
        "{log}"
    );
    wait_until("readiness says so", SOON, || {
        node.worker.get("/readyz").is_ok_and(|page| {
            page.status == 503
                && page.text().contains("worker.state_dir")
                && page.text().contains("removed or replaced")
        })
    });
    assert_eq!(health(&mut node.worker)["status"], "degraded");

    wait_until_pulling_stops(&mut node.worker);
    let later = jobs(20, |_| AssignmentBuilder::echo());
    node.client.assign_all(&later).expect("are sent");
    outside.open();
    wait_until("what ran is answered", SOON, || {
        answers(&node.client).on(RESULT).len() == 4
    });
    // Results come and go in what is left of the outbox: its room is no reason to go on.
    let why = not_ready_because(&mut node.worker);
    assert!(why.contains("removed or replaced"), "{why}");
    let pending = node.client.consumer(ASSIGNMENTS, CONSUMER).expect("can be read");
    assert_eq!(pending.pending, 20);
    assert_eq!(said(&node.worker, "State directory unusable"), 1);

    node.worker.terminate().expect("is told");
    assert_eq!(node.worker.wait_exit(SOON).expect("ends").code(), Some(0));
    node.worker = node.another(settings);
    let all: Vec<_> = running.into_iter().chain(later).collect();
    node.wait_answered(&all, SOON);
    assert_each_answered_once(&node.answers(), &all);
    assert_eq!(outside.repeated(), Vec::<String>::new());
}

#[test]
fn an_outbox_that_is_full_stops_pulling_and_drops_nothing() {
    let outside = Outside::start();
    let mut line = Line::start(|worker| {
        outside
            .allow(worker)
            .env("WORKER__OUTBOX__MAX_BYTES", 1_048_576)
            .env("WORKER_IO_POOL_SIZE", 8)
    });
    let load = jobs(8, |n| outside.job(&format!("{n}-300000")));
    line.hold(&load);
    wait_until("all are running", SOON, || outside.seen().len() == 8);
    // Results do not get out, all else does: the broker could still be pulled from.
    let swallowed = line.proxy.drop_all(|frame| frame.publishes(RESULT));
    outside.open();
    wait_until("all are stored", SOON, || {
        outbox(&mut line.worker)["entries"] == 8
    });
    let full = outbox(&mut line.worker);
    assert!(full["bytes"].as_u64() > Some(8 * 300_000), "{full}");
    assert_eq!(
        (&full["max_bytes"], &full["failure"]),
        (&json!(1_048_576), &Value::Null)
    );
    let why = not_ready_because(&mut line.worker);
    assert!(
        why.contains("worker.state_dir") && why.contains("is full"),
        "{why}"
    );
    wait_until_pulling_stops(&mut line.worker);
    let more = jobs(500, |_| AssignmentBuilder::echo());
    line.client.assign_all(&more).expect("are sent");
    wait_until("all wait at the broker", SOON, || {
        line.client
            .consumer(ASSIGNMENTS, CONSUMER)
            .is_ok_and(|state| state.pending == 500)
    });
    assert_eq!(outbox(&mut line.worker)["entries"], 8);
    assert!(swallowed.count() > 0);
    drop(swallowed);
    line.worker.wait_ready().expect("becomes ready by itself");
    let all: Vec<_> = load.into_iter().chain(more).collect();
    line.assert_each_once(&all);
    assert_eq!(outside.repeated(), Vec::<String>::new());
}

// ---- Long jobs and busy cores ----

#[test]
fn a_job_many_times_as_long_as_the_ack_wait_runs_once() {
    let outside = Outside::start();
    let line = Line::start(|worker| outside.allow(worker));
    let length_ms = if is_long() { 60_000 } else { 12_000 };
    let load = [outside.job(&format!("after/{length_ms}/long"))];
    line.hold(&load);
    let answered = line
        .heard
        .wait_for_result(load[0].assignment_id(), Duration::from_secs(90));
    assert_eq!(answered.expect("ends")["status"], "success");
    line.assert_each_once(&load);
    assert_eq!(outside.seen().into_values().collect::<Vec<_>>(), [1]);
    assert_eq!(deliveries(&line.client), 1);
}

/// Between two signs of life pass at most so many intervals while the cores are busy: renewals, which are due as often
/// and travel the same way, still come in time.
const LATE_BEATS: u32 = 4;

#[test]
fn while_all_pools_spin_heartbeats_come_and_nothing_is_delivered_twice() {
    let interval = Duration::from_millis(500);
    let line = Line::start(|worker| {
        worker
            .env("CAF_HEARTBEAT_INTERVAL_MS", interval.as_millis())
            .env("WORKER__BLOCKS__SQL__MEMORY__STATEMENT_TIMEOUT_MS", 100_000)
    });
    let spin = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c";
    let spin_ms = if is_long() { 60_000 } else { 8_000 };
    let classes = [("cpu", 4), ("gpu", 1), ("io", 8)];
    let spinning = |class: &str| {
        AssignmentBuilder::new("sql.query", json!({"query": spin}))
            .set("resources", json!({"class": class}))
            .deadline_ms(spin_ms)
    };
    let load: Vec<_> = classes
        .iter()
        .flat_map(|(class, slots)| jobs(*slots, |_| spinning(class)))
        .collect();
    line.hold(&load);
    let beats = line.client.collect(&[HEARTBEAT]).expect("listens");
    let (mut last, mut longest, mut seen) = (Instant::now(), Duration::ZERO, 0);
    let ended = poll(PUBLISHED * 2, || {
        if beats.len() > seen {
            seen = beats.len();
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        (line.heard.on(RESULT).len() == load.len()).then_some(())
    });
    ended.expect("all run out of time");
    println!("{seen} heartbeats, longest wait {longest:?}");
    assert!(seen > 5, "{seen} heartbeats");
    assert!(
        longest < interval * LATE_BEATS,
        "{longest:?} without a sign of life"
    );
    line.assert_each_once(&load);
    let codes: BTreeSet<_> = line
        .heard
        .on(RESULT)
        .iter()
        .map(|r| r["error_code"].to_string())
        .collect();
    assert_eq!(codes, BTreeSet::from(["\"CANCELLED_BY_TIMEOUT\"".to_owned()]));
    assert_eq!(deliveries(&line.client), load.len() as u64);
}
