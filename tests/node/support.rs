//! What the whole-node tests share: a broker with a worker beside it, and the count of every answer.
//!
//! Neighbours: `node.rs` and `faults.rs`. What is counted is what the streams hold, so that nothing is missed while a
//! connection is away.

use std::collections::BTreeMap;
use std::time::Duration;

use caf_testkit::client::{ACK, Answers, DLQ, RESULT};
use caf_testkit::wait::poll;
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, Client, Collector, NatsOptions, NatsServer, Worker, wait_until};

/// Longest wait for a state that is on its way. Two cores, debug builds, several servers at once.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// Stream of assignments.
pub(crate) const ASSIGNMENTS: &str = "caf-stream";
/// Stream of acknowledgements and results.
pub(crate) const ANSWERS: &str = "caf-results";
/// Stream of dead letters.
pub(crate) const LETTERS: &str = "caf-dlq";
/// The shared consumer.
pub(crate) const CONSUMER: &str = "caf-workers";

/// The program under test.
pub(crate) fn program() -> WorkerBuilder {
    Worker::builder(env!("CARGO_BIN_EXE_caf-worker"))
}

/// A broker, a connection to it and a worker beside it. Fields end in this order.
pub(crate) struct Node {
    /// The worker.
    pub(crate) worker: Worker,
    /// The other side.
    pub(crate) client: Client,
    /// The broker.
    pub(crate) nats: NatsServer,
}

impl Node {
    /// A ready worker beside a broker with JetStream.
    pub(crate) fn start() -> Self {
        Self::start_with(|builder| builder)
    }

    /// As [`Node::start`], with settings of its own.
    pub(crate) fn start_with(adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Self {
        Self::beside(NatsOptions::jetstream(), adjust)
    }

    /// A ready worker beside a broker of this kind.
    pub(crate) fn beside(options: NatsOptions, adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Self {
        let nats = NatsServer::start_with(options).expect("the broker starts");
        let client = Client::connect(&nats).expect("the client connects");
        let worker = ready_worker(&nats, adjust);
        Self { worker, client, nats }
    }

    /// One more ready worker of the same fleet.
    pub(crate) fn another(&self, adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Worker {
        ready_worker(&self.nats, adjust)
    }

    /// Waits until each of these is answered on the results stream, and no longer waits on the stream of assignments.
    #[track_caller]
    pub(crate) fn wait_answered(&self, assignments: &[AssignmentBuilder], within: Duration) {
        wait_answered(&self.client, assignments, within);
    }

    /// Everything on the streams of answers.
    pub(crate) fn answers(&self) -> Collector {
        answers(&self.client)
    }

    /// Sends one job and waits until it is answered with success: the worker is well.
    pub(crate) fn assert_alive(&self) {
        let job = [AssignmentBuilder::echo()];
        self.client.assign_all(&job).expect("is sent");
        wait_answered(&self.client, &job, SOON);
        let result = &self.answers().results(job[0].assignment_id())[0];
        assert_eq!(result["status"], "success", "{result}");
    }
}

/// A worker that is ready beside `nats`.
pub(crate) fn ready_worker(nats: &NatsServer, adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Worker {
    let mut worker = adjust(program().serve(nats)).start().expect("the worker starts");
    worker.wait_ready().expect("the worker becomes ready");
    worker
}

/// `count` jobs.
pub(crate) fn jobs(count: usize, job: impl FnMut(usize) -> AssignmentBuilder) -> Vec<AssignmentBuilder> {
    (0..count).map(job).collect()
}

/// See [`Node::wait_answered`].
#[track_caller]
pub(crate) fn wait_answered(client: &Client, assignments: &[AssignmentBuilder], within: Duration) {
    let mut missing = assignments.len();
    let answered = poll(within, || {
        // Fails while the broker is away. A message that was sent may be stored a moment later.
        if client.stream_count(ASSIGNMENTS).ok()? > 0 {
            return None;
        }
        let counts = answers(client).counts();
        let results = |job: &AssignmentBuilder| counts.get(job.assignment_id()).map_or(0, |a| a.results);
        missing = assignments.iter().filter(|job| results(job) == 0).count();
        (missing == 0).then_some(())
    });
    assert!(
        answered.is_some(),
        "after {within:?}: {missing} of {} without a result, on the stream of assignments: {:?}",
        assignments.len(),
        client.stream_count(ASSIGNMENTS),
    );
}

/// Everything on the streams of answers.
pub(crate) fn answers(client: &Client) -> Collector {
    let stored = |name| match client.stream(name).expect("the broker answers") {
        Some(_) => client.stream_messages(name).expect("answers can be read"),
        // Not made yet, or deleted by the test.
        None => Vec::new(),
    };
    Collector::of([stored(ANSWERS), stored(LETTERS)].concat())
}

/// Every assignment has exactly one acknowledgement and one result, nobody else has any, and the router objects to
/// none.
#[track_caller]
pub(crate) fn assert_each_answered_once(answers: &Collector, assignments: &[AssignmentBuilder]) {
    let mut expected: BTreeMap<String, (usize, usize)> = assignments
        .iter()
        .map(|job| (job.assignment_id().to_owned(), (1, 1)))
        .collect();
    for (id, Answers { acks, results, .. }) in answers.counts() {
        let wanted = expected.remove(&id).unwrap_or_default();
        assert_eq!((acks, results), wanted, "(acks, results) of {id}");
    }
    assert!(expected.is_empty(), "never answered: {expected:?}");
    assert_eq!(answers.objections(), Vec::<String>::new());
}

/// Number of results with each status.
pub(crate) fn statuses(answers: &Collector) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for result in answers.on(RESULT) {
        *counts
            .entry(result["status"].as_str().unwrap_or_default().to_owned())
            .or_default() += 1;
    }
    counts
}

/// Nothing waits at the broker, and nothing was delivered twice.
#[track_caller]
pub(crate) fn assert_nothing_pending(client: &Client) {
    wait_until("the broker holds no assignment", SOON, || {
        client.stream_count(ASSIGNMENTS).is_ok_and(|count| count == 0)
    });
    let state = client
        .consumer(ASSIGNMENTS, CONSUMER)
        .expect("there is a consumer");
    assert_eq!(
        (state.pending, state.ack_pending, state.redelivered),
        (0, 0, 0),
        "{state:?}"
    );
}

/// Listens to every subject of answers, for brokers without streams.
pub(crate) const ANSWER_SUBJECTS: [&str; 3] = [ACK, RESULT, DLQ];
