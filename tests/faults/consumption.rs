//! Consumption goes on, within a stated time and without a restart, whatever became of the broker, of the line to it,
//! or of what it had stored; and every assignment is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use caf_testkit::client::{ACK, ASSIGN, HEARTBEAT, Message, RESULT};
use caf_testkit::proxy::{Direction, Frame, Pace};
use caf_testkit::wait::poll;
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, Client, Collector, NatsServer, Proxy, Worker, wait_until};
use serde_json::{Value, json};

use crate::support::{
    ANSWERS, ASSIGNMENTS, CONSUMER, SOON, answers, assert_each_answered_once, jobs, program, wait_answered,
};

/// `nats.stall_ms` of these workers: long beside a hiccup of a busy machine.
const STALL_MS: u64 = 1_000;
/// Longest time after a fault is over until assignments sent then are answered. A silent connection is noticed by the
/// watchdog after three stalls or by unanswered pings within 15 s, the client library tries again within a second, and
/// what was lost on the way is delivered again after an ack wait of 2 s. The rest is for two busy cores.
const RESUMES: Duration = Duration::from_secs(20);
/// Longest time in which a stall that nothing mends goes through all its stages: four stalls, four looks in between,
/// and the shutdown. Again with room for busy cores.
const GIVES_UP: Duration = Duration::from_secs(20);
/// Assignments that a worker holds at most here: so many may come by a request that was sent before a fault.
const MAX_HELD: usize = 8;

/// A worker behind a line that can be broken. Fields end in this order.
struct Line {
    worker: Worker,
    client: Client,
    proxy: Proxy,
    nats: NatsServer,
    /// Everything that was assigned.
    sent: Vec<AssignmentBuilder>,
}

fn settings(worker: WorkerBuilder) -> WorkerBuilder {
    worker
        .env("WORKER__NATS__STALL_MS", STALL_MS)
        .env("WORKER__NATS__REQUEST_TIMEOUT_MS", 1_000)
        .env("NATS_ACK_WAIT_MS", 2_000)
        .env("WORKER__LIMITS__MAX_HELD", MAX_HELD)
        .env("CAF_HEARTBEAT_INTERVAL_MS", 500)
        .env("WORKER__DRAIN__SOFT_S", 5)
}

impl Line {
    fn start() -> Self {
        Self::start_with(|worker| worker)
    }

    fn start_with(adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Self {
        let nats = NatsServer::start().expect("the broker starts");
        Self::before(nats, adjust)
    }

    fn before(nats: NatsServer, adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Self {
        let client = Client::connect(&nats).expect("the client connects");
        let proxy = Proxy::start(&nats).expect("the proxy starts");
        let worker = adjust(settings(program()).serve_through(&proxy)).start();
        let mut worker = worker.expect("the worker starts");
        worker.wait_ready().expect("the worker becomes ready");
        Self {
            worker,
            client,
            proxy,
            nats,
            sent: Vec::new(),
        }
    }

    /// Assigns, and is sure that the broker has it: it may be away at the moment.
    fn assign(&mut self, jobs: Vec<AssignmentBuilder>) {
        for job in &jobs {
            let stored = poll(SOON, || self.client.assign_stored(job).ok());
            stored.expect("the broker takes it");
        }
        self.sent.extend(jobs);
    }

    fn answered(&self) -> usize {
        let answers = answers(&self.client);
        answers.on(RESULT).len()
    }

    /// Whatever was sent now is answered within the bound, and everything before has been, once.
    fn assert_resumed(&mut self) {
        let after = jobs(20, |_| AssignmentBuilder::echo());
        self.assign(after.clone());
        wait_answered(&self.client, &after, RESUMES);
        self.assert_all_answered_once();
        assert!(self.worker.is_running());
        self.worker.wait_ready().expect("is ready");
    }

    fn assert_all_answered_once(&self) {
        wait_answered(&self.client, &self.sent, RESUMES);
        assert_each_answered_once(&answers(&self.client), &self.sent);
    }

    /// Actions of the watchdog so far.
    fn actions(&self) -> Vec<String> {
        actions(&self.worker.logs())
    }
}

fn actions(logs: &[Value]) -> Vec<String> {
    let stalled = logs.iter().filter(|log| log["message"] == "Consumption stalled");
    stalled
        .filter_map(|log| log["context"]["action"].as_str().map(str::to_owned))
        .collect()
}

/// Quick jobs, and some that are still running when the fault comes.
fn load() -> Vec<AssignmentBuilder> {
    jobs(40, |n| match n % 4 {
        0 => AssignmentBuilder::sleep(300 + n as u64 * 10),
        _ => AssignmentBuilder::echo(),
    })
}

/// A fault in the middle of work, and what is sent after it.
fn goes_on_after(fault: impl FnOnce(&mut Line)) {
    let mut line = Line::start();
    line.assign(load());
    wait_until("some are answered", SOON, || line.answered() > 5);
    fault(&mut line);
    line.assert_resumed();
}

#[test]
fn consumption_goes_on_after_a_restart_of_the_broker() {
    goes_on_after(|line| line.nats.restart().expect("restarts"));
}

#[test]
fn consumption_goes_on_after_a_crash_of_the_broker() {
    goes_on_after(|line| {
        line.nats.kill();
        line.nats.restart().expect("starts again");
    });
}

#[test]
fn consumption_goes_on_after_the_line_was_cut() {
    goes_on_after(|line| {
        line.proxy.cut();
        line.assign(load());
        line.worker.wait_for_readiness(503).expect("notices");
        line.proxy.mend();
    });
}

#[test]
fn consumption_goes_on_after_connections_were_reset() {
    goes_on_after(|line| {
        for _ in 0..3 {
            line.proxy.reset();
            line.assign(jobs(5, |_| AssignmentBuilder::echo()));
        }
    });
}

fn goes_on_after_silence(silent: &'static [Direction]) {
    goes_on_after(move |line| {
        line.proxy.half_open(silent);
        line.assign(load());
        line.worker.wait_for_readiness(503).expect("notices");
        line.proxy.mend();
    });
}

#[test]
fn consumption_goes_on_after_a_line_that_was_silent_in_both_directions() {
    goes_on_after_silence(&[Direction::ToServer, Direction::ToWorker]);
}

#[test]
fn consumption_goes_on_after_a_line_on_which_only_the_broker_was_silent() {
    goes_on_after_silence(&[Direction::ToWorker]);
}

#[test]
fn consumption_goes_on_after_a_line_on_which_only_the_worker_was_silent() {
    goes_on_after_silence(&[Direction::ToServer]);
}

#[test]
fn consumption_goes_on_over_a_slow_line() {
    goes_on_after(|line| {
        line.proxy.slow(Pace::Delay(Duration::from_millis(100)));
        line.assign(load());
        wait_answered(&line.client, &line.sent, SOON);
        line.proxy.slow(Pace::BytesPerSecond(20_000));
        line.assign(jobs(10, |_| AssignmentBuilder::echo()));
        wait_answered(&line.client, &line.sent, SOON);
        assert_eq!(line.actions(), Vec::<String>::new());
        line.proxy.mend();
    });
}

#[test]
fn a_broker_without_jetstream_is_waited_for_however_long_it_lasts() {
    goes_on_after(|line| {
        line.nats.set_jetstream(false);
        line.nats.restart().expect("restarts");
        line.worker.wait_for_readiness(503).expect("notices");
        // Longer than all stages of a stall take.
        let beats = line.client.collect(&[HEARTBEAT]).expect("listens");
        let long_enough = usize::try_from(6 * STALL_MS / 500).expect("is small");
        wait_until("time has passed", SOON, || beats.len() > long_enough);
        assert!(line.worker.is_running());
        line.nats.set_jetstream(true);
        line.nats.restart().expect("restarts");
    });
}

#[test]
fn consumption_goes_on_after_the_consumer_was_deleted() {
    goes_on_after(|line| {
        let request = format!("CONSUMER.DELETE.{ASSIGNMENTS}.{CONSUMER}");
        line.client
            .jetstream_api(&request, &json!({}))
            .expect("is deleted");
    });
}

/// Jobs that run for a while, all of them started.
fn running_jobs(line: &mut Line) {
    let running = jobs(MAX_HELD, |_| AssignmentBuilder::sleep(3_000));
    line.assign(running);
    wait_until("all are accepted", SOON, || {
        answers(&line.client).on(ACK).len() == line.sent.len()
    });
}

/// What waited in it is gone with it; what ran is answered.
#[test]
fn consumption_goes_on_after_the_stream_of_assignments_was_deleted() {
    let mut line = Line::start();
    running_jobs(&mut line);
    line.client
        .jetstream_api(&format!("STREAM.DELETE.{ASSIGNMENTS}"), &json!({}))
        .expect("is deleted");
    wait_until("the stream is made again", RESUMES, || {
        line.client.stream(ASSIGNMENTS).is_ok_and(|found| found.is_some())
    });
    line.assert_resumed();
}

#[test]
fn consumption_goes_on_after_the_stream_of_results_was_deleted() {
    let mut line = Line::start();
    line.assign(load());
    wait_answered(&line.client, &line.sent, SOON);
    running_jobs(&mut line);
    let stored = line.client.stream_messages(ANSWERS).expect("can be read");
    line.client
        .jetstream_api(&format!("STREAM.DELETE.{ANSWERS}"), &json!({}))
        .expect("is deleted");
    line.assign(jobs(20, |_| AssignmentBuilder::echo()));
    let all = || -> Collector {
        let now = line.client.stream_messages(ANSWERS).unwrap_or_default();
        Collector::of([stored.clone(), now].concat())
    };
    wait_until("all are answered", RESUMES, || {
        all().on(RESULT).len() >= line.sent.len()
    });
    assert_each_answered_once(&all(), &line.sent);
    assert!(line.worker.is_running());
}

/// A request for assignments.
fn asks(frame: &Frame) -> bool {
    frame.publishes("$JS.API.CONSUMER.MSG.NEXT.")
}

/// These frames, until the worker connects anew. Its lease keeper has a connection of its own, which does not count.
fn until_reconnected(wanted: impl Fn(&Frame) -> bool) -> impl Fn(&Frame) -> bool {
    let again = AtomicBool::new(false);
    move |frame| {
        let text = String::from_utf8_lossy(&frame.payload);
        if frame.op == "CONNECT" && text.contains("caf-worker pipeline") {
            again.store(true, SeqCst);
        }
        wanted(frame) && !again.load(SeqCst)
    }
}

/// Others that are served hide it from nobody, and are left alone themselves.
#[test]
fn a_worker_whose_requests_vanish_notices_although_another_is_served() {
    let mut line = Line::start();
    let other = settings(program()).serve(&line.nats).start();
    let mut other = other.expect("the other worker starts");
    other.wait_ready().expect("becomes ready");
    let _swallowed = line.proxy.drop_all(until_reconnected(asks));
    // Eight at once: they last longer than three stalls.
    line.assign(jobs(200, |_| AssignmentBuilder::sleep(250)));
    line.worker
        .wait_for_log(|log| log["context"]["action"] == "reconnect")
        .expect("reconnects");
    wait_answered(&line.client, &line.sent, SOON);
    line.assert_all_answered_once();
    let expected = ["rebuild the pull", "rebuild the consumer", "reconnect"];
    assert_eq!(line.actions(), expected);
    assert_eq!(actions(&other.logs()), Vec::<String>::new());
}

#[test]
fn requests_that_vanish_are_met_in_stages_until_a_new_connection_heals_it() {
    let mut line = Line::start();
    let swallowed = line.proxy.drop_all(until_reconnected(asks));
    line.assign(load());
    line.assert_resumed();
    assert!(swallowed.count() >= 3, "one for each stage");
    let expected = ["rebuild the pull", "rebuild the consumer", "reconnect"];
    assert_eq!(line.actions(), expected);
    let page = line
        .worker
        .get("/_health")
        .expect("answers")
        .json()
        .expect("is JSON");
    let consumption = &page["details"]["consumption"];
    assert!(consumption["pull_rebuilds"].as_u64() >= Some(2), "{page}");
    assert!(consumption["last_delivery_age_ms"].is_u64(), "{page}");
    assert_eq!(consumption["pulls_outstanding"], 1, "{page}");
    let ready = line.worker.get("/readyz").expect("answers");
    let body = String::from_utf8_lossy(&ready.body).into_owned();
    assert!(
        body.starts_with("ready\n") && body.contains("pulls_outstanding: 1"),
        "{body}"
    );
    let beats = line.client.collect(&[HEARTBEAT]).expect("listens");
    beats.wait_for(HEARTBEAT, 1, SOON).expect("beats");
    let beat = &beats.on(HEARTBEAT)[0];
    assert!(beat["pull_rebuilds"].as_u64() >= Some(2), "{beat}");
    assert!(
        beat["last_delivery_age_ms"].is_u64() && beat["pulls_outstanding"] == 1,
        "{beat}"
    );
}

/// Exit code for a stall that nothing mended.
const STALLED: Option<i32> = Some(83);

#[test]
fn a_worker_whose_requests_vanish_for_ever_leaves_and_its_successor_carries_on() {
    let mut line = Line::start();
    let swallowed = line.proxy.drop_all(asks);
    line.assign(load());
    let status = line.worker.wait_exit(GIVES_UP).expect("leaves");
    assert_eq!(status.code(), STALLED);
    let expected = ["rebuild the pull", "rebuild the consumer", "reconnect", "leave"];
    assert_eq!(line.actions(), expected);
    assert!(swallowed.count() > 3);
    assert!(line.answered() <= MAX_HELD, "the rest is left to do");
    line.worker = settings(program()).serve(&line.nats).start().expect("starts");
    line.worker.wait_ready().expect("becomes ready");
    line.assert_resumed();
}

/// Room that is missing, and messages that another worker takes, are nobody's fault.
#[test]
fn a_worker_without_room_is_left_alone_while_messages_wait() {
    let mut line = Line::start();
    let beats = line.client.collect(&[HEARTBEAT]).expect("listens");
    // Longer than all stages of a stall.
    let long = jobs(MAX_HELD, |_| AssignmentBuilder::sleep(6 * STALL_MS));
    line.assign(long);
    line.assign(load());
    line.assert_all_answered_once();
    assert_eq!(line.actions(), Vec::<String>::new());
    assert!(line.worker.is_running() && !beats.is_empty());
}

/// Bytes that are missing are nobody's fault either.
#[test]
fn a_worker_without_room_for_the_next_message_is_left_alone() {
    let mut line = Line::start_with(|worker| worker.env("WORKER__LIMITS__MAX_HELD_BYTES", 4_000));
    line.assign(vec![AssignmentBuilder::sleep(6 * STALL_MS)]);
    line.assign(vec![AssignmentBuilder::new(
        "echo",
        json!({"text": "x".repeat(3_900)}),
    )]);
    line.assert_all_answered_once();
    assert_eq!(line.actions(), Vec::<String>::new());
}

#[test]
fn questions_that_nobody_answers_lead_to_a_new_connection() {
    let mut line = Line::start();
    let questions = until_reconnected(|frame| frame.publishes("$JS.API.CONSUMER."));
    let _swallowed = line.proxy.drop_all(questions);
    line.assign(load());
    line.assert_resumed();
    assert_eq!(line.actions(), ["reconnect"]);
}

/// A consumer that an operator holds is no fault either.
#[test]
fn a_worker_whose_consumer_is_paused_waits() {
    let mut line = Line::start();
    let pause = format!("CONSUMER.PAUSE.{ASSIGNMENTS}.{CONSUMER}");
    let until = |time: &str| json!({"pause_until": time});
    line.client
        .jetstream_api(&pause, &until("2100-01-01T00:00:00Z"))
        .expect("is paused");
    let beats = line.client.collect(&[HEARTBEAT]).expect("listens");
    line.assign(load());
    let long_enough = usize::try_from(6 * STALL_MS / 500).expect("is small");
    wait_until("time has passed", SOON, || beats.len() > long_enough);
    assert_eq!(line.actions(), Vec::<String>::new());
    line.client
        .jetstream_api(&pause, &until("2000-01-01T00:00:00Z"))
        .expect("goes on");
    line.assert_resumed();
}

/// A broker whose stream of assignments keeps what was acknowledged.
fn keeping_stream(client: &Client) {
    let config = json!({"name": ASSIGNMENTS, "subjects": [ASSIGN], "retention": "limits", "storage": "file"});
    client
        .jetstream_api(&format!("STREAM.CREATE.{ASSIGNMENTS}"), &config)
        .expect("is created");
}

fn keeping_line() -> Line {
    let nats = NatsServer::start().expect("the broker starts");
    keeping_stream(&Client::connect(&nats).expect("the client connects"));
    Line::before(nats, |worker| worker)
}

/// Stream behind the key-value bucket of the fleet.
const STATE: &str = "KV_caf-state";

fn noted_floor(client: &Client) -> Option<u64> {
    let noted: Vec<Message> = client.stream_messages(STATE).ok()?;
    noted.last()?.json()["sequence"].as_u64()
}

fn wait_results(line: &Line, count: usize) {
    wait_until("all are answered", RESUMES, || line.answered() >= count);
}

/// Assignments that were delivered to anybody since the consumer was made.
fn delivered(client: &Client) -> u64 {
    let info = client.jetstream_api(&format!("CONSUMER.INFO.{ASSIGNMENTS}.{CONSUMER}"), &json!({}));
    info.map_or(0, |info| info["delivered"]["consumer_seq"].as_u64().unwrap_or(0))
}

fn delete_consumer(client: &Client) {
    let request = format!("CONSUMER.DELETE.{ASSIGNMENTS}.{CONSUMER}");
    client.jetstream_api(&request, &json!({})).expect("is deleted");
}

#[test]
fn a_consumer_deleted_on_a_stream_that_keeps_everything_repeats_nothing_acknowledged() {
    let mut line = keeping_line();
    line.assign(jobs(20, |_| AssignmentBuilder::echo()));
    wait_results(&line, 20);
    wait_until("the position is kept", SOON, || {
        noted_floor(&line.client) == Some(20)
    });
    delete_consumer(&line.client);
    line.assign(jobs(5, |_| AssignmentBuilder::echo()));
    wait_results(&line, 25);
    assert_eq!(delivered(&line.client), 5);
    wait_until("the position is kept", SOON, || {
        noted_floor(&line.client) == Some(25)
    });

    // Nor does a worker that remembers nothing.
    line.worker.terminate().expect("is told");
    line.worker.wait_exit(SOON).expect("ends");
    delete_consumer(&line.client);
    line.worker = settings(program()).serve(&line.nats).start().expect("starts");
    line.worker.wait_ready().expect("becomes ready");
    line.assign(jobs(5, |_| AssignmentBuilder::echo()));
    wait_results(&line, 30);
    assert_eq!(delivered(&line.client), 5);
    assert_each_answered_once(&answers(&line.client), &line.sent);
}

#[test]
fn a_stream_that_is_made_anew_is_consumed_from_its_beginning() {
    let mut line = keeping_line();
    line.assign(jobs(20, |_| AssignmentBuilder::echo()));
    wait_results(&line, 20);
    wait_until("the position is kept", SOON, || {
        noted_floor(&line.client) == Some(20)
    });
    line.worker.terminate().expect("is told");
    line.worker.wait_exit(SOON).expect("ends");
    line.client
        .jetstream_api(&format!("STREAM.DELETE.{ASSIGNMENTS}"), &json!({}))
        .expect("is deleted");
    keeping_stream(&line.client);
    line.assign(jobs(5, |_| AssignmentBuilder::echo()));
    line.worker = settings(program()).serve(&line.nats).start().expect("starts");
    wait_results(&line, 25);
    wait_until("the position is kept", SOON, || {
        noted_floor(&line.client) == Some(5)
    });
    assert_each_answered_once(&answers(&line.client), &line.sent);
}

#[test]
fn no_consumer_is_made_while_nobody_knows_where_it_must_begin() {
    let mut line = keeping_line();
    line.assign(jobs(10, |_| AssignmentBuilder::echo()));
    wait_results(&line, 10);
    wait_until("the position is kept", SOON, || {
        noted_floor(&line.client) == Some(10)
    });
    line.worker.terminate().expect("is told");
    line.worker.wait_exit(SOON).expect("ends");
    delete_consumer(&line.client);
    // Every question about the bucket vanishes on the way.
    let asked = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&asked);
    let swallowed = line.proxy.drop_all(move |frame| {
        let about_state = frame.publishes("$JS.API.") && frame.subject.iter().any(|it| it.contains(STATE));
        if about_state {
            seen.store(true, SeqCst);
        }
        about_state
    });
    line.worker = settings(program())
        .serve_through(&line.proxy)
        .start()
        .expect("starts");
    let log = line.worker.wait_for_message("Pull failed, rebuilding");
    let log = log.expect("says so").to_string();
    assert!(log.contains("not known where a new consumer"), "{log}");
    assert!(asked.load(SeqCst) && line.client.consumer(ASSIGNMENTS, CONSUMER).is_err());
    drop(swallowed);
    line.worker.wait_ready().expect("becomes ready");
    line.assign(jobs(5, |_| AssignmentBuilder::echo()));
    wait_results(&line, 15);
    assert_eq!(delivered(&line.client), 5);
    assert_each_answered_once(&answers(&line.client), &line.sent);
}
