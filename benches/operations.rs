//! What the hot path does to one task, step by step, as single calls.
//!
//! Neighbours: `benches/hot_path.rs` takes their time, `examples/instructions.rs` counts their instructions. Uses the worker's
//! crates as they are; whoever changes one of these calls changes it here.

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use caf_actors::events::{Log, steps};
use caf_actors::metrics::Meter;
use caf_actors::pool::line::{Ageing, Line, Newcomer, Turn};
use caf_actors::pool::{Admitted, Places, Slots};
use caf_actors::runtime::Route;
use caf_bench::assignment::{Job, Shape, Template};
use caf_protocol::assignment::{Assignment, Reading, read};
use caf_protocol::block::ResourceClass;
use caf_protocol::headers::Headers;
use caf_protocol::model::Cost;
use caf_protocol::outcome::{Outcome, StepResult};
use caf_protocol::result::ExecResult;
use caf_worker::settings::{LogLevel, MetricsSettings};
use caf_worker::telemetry::direct_logger;
use caf_worker::telemetry::metrics::Metrics;
use caf_worker::telemetry::output::Output;
use serde_json::Map;
use tokio::time::Instant;

/// Bytes of the payload.
const PAYLOAD: usize = 1024;
/// Slots of the pool; one more job waits than they are.
const SLOTS: usize = 4;

/// One call of the hot path, with all that it needs.
pub(crate) type Operation = Box<dyn FnMut()>;

/// Makes one, with what it needs.
pub(crate) type Make = fn() -> Operation;

/// All of them, by name.
pub(crate) const ALL: [(&str, Make); 7] = [
    ("decode", || Box::new(decode(PAYLOAD))),
    ("decode_100_kb", || Box::new(decode(100 * PAYLOAD))),
    ("validate", || Box::new(validate())),
    ("encode", || Box::new(encode())),
    ("admission", || Box::new(admission())),
    ("log_line", || Box::new(log_line())),
    ("metric", || Box::new(metric())),
];

fn message(bytes: usize) -> Vec<u8> {
    let template = Template::new(&Job::Echo { bytes }, &Shape::default(), 1);
    template.render(1).to_vec()
}

fn assignment() -> Assignment {
    match read(&message(PAYLOAD), &Headers::default()) {
        Reading::Valid(assignment) => assignment,
        other => panic!("the generator's assignments are valid: {other:?}"),
    }
}

/// Bytes to an assignment that may run.
fn decode(bytes: usize) -> impl FnMut() {
    let (message, headers) = (message(bytes), Headers::default());
    move || {
        black_box(read(black_box(&message), &headers));
    }
}

/// Bytes to a refusal that names the field: what is invalid must not cost more than what is valid.
fn validate() -> impl FnMut() {
    let message = String::from_utf8(message(PAYLOAD)).expect("is text");
    let message = message
        .replace("\"version\":\"1\"", "\"version\":\"2\"")
        .into_bytes();
    let headers = Headers::default();
    move || {
        black_box(read(black_box(&message), &headers));
    }
}

/// Outputs to the bytes of a result, with its headers.
fn encode() -> impl FnMut() {
    let assignment = assignment();
    let step = || StepResult {
        outcome: Outcome::Success(Map::from_iter([("text".to_owned(), "x".repeat(PAYLOAD).into())])),
        latency_ms: 12,
        retries_used: 0,
        cost: Cost::default(),
    };
    move || {
        let result = ExecResult::new(&assignment.identity, step(), "worker", 1_700_000_000_000);
        black_box((
            result.headers(),
            serde_json::to_vec(&result).expect("can be written"),
        ));
    }
}

/// A place, the line, a slot, and all back.
fn admission() -> impl FnMut() {
    let places = Places::unbounded(ResourceClass::Cpu, SLOTS);
    let slots = Slots::new(SLOTS, Route::default());
    let mut line = Line::new(Ageing(Duration::from_millis(100)));
    move || {
        let now = Instant::now();
        let Admitted::Taken(taken) = places.admit(now, None) else {
            return;
        };
        line.push(Newcomer {
            tenant: "acme",
            priority: 50,
            since: now,
            deadline: now + Duration::from_secs(30),
            item: taken,
        });
        let next = line.pop_next(now, |_| Some(Turn { weight: 1, right: () }));
        black_box((next, slots.try_take()));
    }
}

/// The line that says how a job ended: the one that each job has at info.
fn log_line() -> impl FnMut() {
    let output = Output::writers(io::sink(), io::sink());
    let log = Log::new(direct_logger(LogLevel::Info, output, "worker"), "worker");
    end_of_job(log)
}

/// The samples of a job that ended.
fn metric() -> impl FnMut() {
    let metrics = Arc::new(Metrics::new(&MetricsSettings::default()));
    end_of_job(Log::discard().with_meter(metrics as Arc<dyn Meter>))
}

fn end_of_job(log: Log) -> impl FnMut() {
    let identity = Arc::new(assignment().identity);
    let step = StepResult {
        outcome: Outcome::Success(Map::new()),
        latency_ms: 12,
        retries_used: 0,
        cost: Cost::default(),
    };
    move || log.emit(steps::ended(&identity, &step, Some(Duration::from_millis(12))))
}
