//! Every log line of the pipeline: names, levels and fields in one place (contract 8.1, 8.2).
//!
//! Neighbours: stations make an [`Event`] by one of the functions here and give it to [`Log::emit`]; the node builds
//! the logger and its drain, which masks secrets. Never logs payloads, inputs or outputs. Correlation ids stand at top
//! level, the rest in `context`.

pub mod admin;
pub mod approval_audit;
pub mod approvals;
pub mod breakers;
pub mod cancellation;
pub mod course;
pub mod delivery;
pub mod discovery;
mod fields;
pub mod logging;
pub mod models;
pub mod outbox;
pub mod queue;
pub mod retry;
pub mod running;
pub mod secrets;
pub mod steps;
pub mod tenants;
pub mod timeouts;
pub mod tracing;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::panic::Location;
use std::sync::Arc;

use caf_protocol::ack::RejectReason;
use caf_protocol::assignment::Identity;
use caf_protocol::ids::{MAX_ID_BYTES, MAX_TENANT_BYTES, is_usable};
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use fields::Fields;
pub use fields::Word;
use serde::Serialize;
use serde_json::{Map, Value};
use slog::{KV, Key, Record, SerdeValue, Serializer};

use crate::breakers::{BUDGET_DETAIL, STATE_DETAIL};
use crate::claims::fleet::StoreError;
use crate::claims::record::ClaimRecord;
use crate::levels::Levels;
use crate::metrics::{Meter, Sample};
use crate::pool::auditor::Look;

/// The module that lines of ours come from, as a logger sees it.
pub const MODULE: &str = module_path!();
/// The field of a line that holds all others but the few at top level. Of a line of ours, its
/// [`serialize_fallback`](SerdeValue::serialize_fallback) tells them one by one.
pub const CONTEXT: &str = "context";

/// How loud a line is: error for a failed job and a fault of the worker, warn is looked at in the morning, info is a
/// change of state (and one line per job), debug is everything else about a job. Ordered from quiet to loud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// A job or the worker failed; goes to the stream of errors.
    Error,
    /// Looked at in the morning.
    Warn,
    /// Change of state.
    Info,
    /// Per job.
    Debug,
    /// Nothing is written: there are only samples.
    Silent,
}

/// One line to be.
#[derive(Debug, Clone)]
pub struct Event {
    level: Level,
    message: &'static str,
    /// Whose ids it names.
    of: Option<Arc<Identity>>,
    top: Fields,
    context: Fields,
    samples: Vec<Sample>,
}

/// Where events go. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    logger: slog::Logger,
    levels: Option<Levels>,
    meter: Option<Arc<dyn Meter>>,
    observer: Option<Arc<dyn Observer>>,
    worker_id: Arc<str>,
}

/// Sees every event, whether a line of it is written or not. Never blocks.
pub trait Observer: Send + Sync + 'static {
    /// Takes one event in.
    fn observe(&self, event: &Event);
}

impl Log {
    /// Writes lines through `logger`, in the name of `worker_id`.
    pub fn new(logger: slog::Logger, worker_id: &str) -> Self {
        Self {
            logger,
            levels: None,
            meter: None,
            observer: None,
            worker_id: worker_id.into(),
        }
    }

    /// Writes only what these let through; without them the logger decides alone.
    #[must_use]
    pub fn with_levels(mut self, levels: Levels) -> Self {
        self.levels = Some(levels);
        self
    }

    /// Gives the samples of events to `meter`.
    #[must_use]
    pub fn with_meter(mut self, meter: Arc<dyn Meter>) -> Self {
        self.meter = Some(meter);
        self
    }

    /// Shows events to `observer`.
    #[must_use]
    pub fn with_observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Writes nothing. For tests.
    pub fn discard() -> Self {
        Self::new(slog::Logger::root(slog::Discard, slog::o!()), "none")
    }

    /// The worker's id.
    pub fn worker_id(&self) -> &str {
        &self.worker_id
    }

    /// Whether anybody takes samples.
    pub fn is_measuring(&self) -> bool {
        self.meter.is_some()
    }

    /// Tells events whose lines belong to a policy: without it only their numbers are recorded, which make sense all the same.
    #[track_caller]
    pub fn tell(&self, with_lines: bool, events: impl FnOnce() -> Vec<Event>) {
        if !with_lines && !self.is_measuring() {
            return;
        }
        for event in events() {
            self.emit(if with_lines { event } else { event.without_line() });
        }
    }

    /// Records the samples of an event that is made only where anything is measured. For events without a line.
    pub fn measure(&self, event: impl FnOnce() -> Event) {
        if self.meter.is_some() {
            self.emit(event());
        }
    }

    /// Writes a line of level debug that has no samples, and tells an observer nothing that another event does not: it is made only
    /// where it is written.
    #[track_caller]
    pub fn detail(&self, event: impl FnOnce() -> Event) {
        let file = Location::caller().file();
        let is_written = |levels: &Levels| levels.let_through(Level::Debug, file);
        if self.levels.as_ref().is_none_or(is_written) {
            self.emit(event());
        }
    }

    /// Writes one line, if its level is written for the module that calls, and records the samples that go with it.
    #[track_caller]
    pub fn emit(&self, event: Event) {
        if let Some(observer) = &self.observer {
            observer.observe(&event);
        }
        if let Some(meter) = &self.meter {
            event.samples.iter().for_each(|sample| meter.record(sample));
        }
        let (level, message) = (event.level, event.message);
        let file = Location::caller().file();
        let is_written = |levels: &Levels| levels.let_through(level, file);
        if level == Level::Silent || !self.levels.as_ref().is_none_or(is_written) {
            return;
        }
        let event = event.with_ids();
        let fields = Line {
            top: event.top,
            context: Context(event.context),
        };
        match level {
            Level::Error => slog::error!(self.logger, "{}", message; fields),
            Level::Warn => slog::warn!(self.logger, "{}", message; fields),
            Level::Info => slog::info!(self.logger, "{}", message; fields),
            Level::Debug => slog::debug!(self.logger, "{}", message; fields),
            Level::Silent => {}
        }
    }
}

/// The fields of a line, with its ids. The drain masks secrets, cuts what is too long, and adds time, level and worker id.
struct Line {
    top: Fields,
    context: Context,
}

impl KV for Line {
    fn serialize(&self, _: &Record<'_>, serializer: &mut dyn Serializer) -> slog::Result {
        self.top.emit(serializer)?;
        serializer.emit_serde(CONTEXT.into(), &self.context)
    }
}

/// What stands in `context`: for drains that know serde one value, for others each of its fields by itself.
#[derive(Clone)]
struct Context(Fields);

impl SerdeValue for Context {
    fn serialize_fallback(&self, _: Key, serializer: &mut dyn Serializer) -> slog::Result {
        self.0.emit(serializer)
    }

    fn as_serde(&self) -> &dyn erased_serde::Serialize {
        &self.0
    }

    fn to_sendable(&self) -> Box<dyn SerdeValue + Send + 'static> {
        Box::new(self.clone())
    }
}

impl slog::Value for Context {
    fn serialize(&self, _: &Record<'_>, key: Key, serializer: &mut dyn Serializer) -> slog::Result {
        serializer.emit_serde(key, self)
    }
}

impl Serialize for Context {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl Event {
    /// Its message; empty when there are only samples.
    pub fn message(&self) -> &'static str {
        self.message
    }

    /// Whose ids it names, if it is about an assignment.
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.of.as_ref()
    }

    /// A field of `context`, or else one at top level: of two with one name the narrower one. The ids of
    /// [`Event::identity`] are not among them.
    pub fn field(&self, key: &str) -> Option<&Word> {
        self.context.get(key).or_else(|| self.top.get(key))
    }

    /// All fields, each once; those of `context` last. The ids of [`Event::identity`] are not among them.
    pub fn fields(&self) -> impl Iterator<Item = (&Cow<'static, str>, &Word)> {
        let top = self.top.iter();
        let top = top.filter(|(name, _)| self.context.get(name).is_none());
        top.chain(self.context.iter())
    }

    fn new(level: Level, message: &'static str) -> Self {
        Self {
            level,
            message,
            of: None,
            top: Fields::default(),
            context: Fields::default(),
            samples: Vec::new(),
        }
    }

    /// Samples only, where no line is due.
    fn silent() -> Self {
        Self::new(Level::Silent, "")
    }

    /// The same without its line, where that belongs to a feature that is off.
    #[must_use]
    pub fn without_line(mut self) -> Self {
        self.level = Level::Silent;
        self
    }

    /// Records this too.
    fn measuring(mut self, sample: Sample) -> Self {
        self.samples.push(sample);
        self
    }

    fn with(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Word>) -> Self {
        if self.level != Level::Silent {
            self.context.set(name.into(), value.into());
        }
        self
    }

    fn at_top(mut self, name: &'static str, value: impl Into<Word>) -> Self {
        if self.level != Level::Silent {
            self.top.set(name.into(), value.into());
        }
        self
    }

    /// Names the ids of this assignment.
    fn of(mut self, identity: &Arc<Identity>) -> Self {
        if self.level != Level::Silent {
            self.of = Some(Arc::clone(identity));
        }
        self
    }

    /// The same with the ids as fields, before the others. At top level, the log checker wants run, flow and tenant beside a
    /// step: the step goes only with them.
    fn with_ids(mut self) -> Self {
        let Some(identity) = self.of.take() else {
            return self;
        };
        let (top, context) = (std::mem::take(&mut self.top), std::mem::take(&mut self.context));
        let raw = &identity.correlation.raw;
        let trace = identity
            .correlation
            .trace_id
            .as_ref()
            .or(identity.correlation.original_trace_id.as_ref());
        // Where the message names no trace, the one that its spans are in.
        let own = identity.correlation.span.as_ref();
        let own = own.map(|span| span.trace_id.to_string());
        let step = raw
            .step_id
            .as_ref()
            .filter(|_| raw.run_id.is_some() && raw.flow_id.is_some());
        let ids = [
            ("tenant_id", Some(&identity.tenant_id)),
            ("run_id", raw.run_id.as_ref()),
            ("flow_id", raw.flow_id.as_ref()),
            ("step_id", step),
            ("trace_id", trace.or(own.as_ref())),
        ];
        for (key, id) in ids {
            if let Some(id) = id {
                self.top.set(key.into(), id.as_str().into());
            }
        }
        if identity.replay > 0 {
            self.context.set("replay".into(), identity.replay.into());
        }
        if identity.sandbox {
            self.context.set("sandbox".into(), true.into());
        }
        let block_type = identity.job_type.as_deref().unwrap_or("unknown");
        self.context
            .set("assignment_id".into(), identity.assignment_id.as_str().into());
        self.context.set("block_type".into(), block_type.into());
        self.top.extend(top);
        self.context.extend(context);
        self
    }

    fn because(self, failure: &Failure) -> Self {
        let event = self
            .with("error_code", failure.code.as_str())
            .with("error", failure.message.as_str());
        match &failure.internal {
            Some(internal) => event.with("error_internal", &**internal),
            None => event,
        }
    }

    /// What made a job run out of time: whether it waited for a slot until then; which limit, how long it is, which wait
    /// before the next call it did not hold, and how the last call had failed.
    /// For want of what it was not called, or not called again, too.
    fn limited(self, failure: &Failure) -> Self {
        let details = &failure.details;
        let mut event = self;
        for key in [
            "waiting",
            "limit",
            "limit_ms",
            "next_wait_ms",
            STATE_DETAIL,
            BUDGET_DETAIL,
        ] {
            if let Some(value) = details.get(key) {
                event = event.with(key, value.clone());
            }
        }
        match details.get("last_error").and_then(|last| last["code"].as_str()) {
            Some(code) => event.with("last_error_code", code),
            None => event,
        }
    }
}

/// A job ended: the one line that every job has at level info.
pub fn step_ended(identity: &Arc<Identity>, step: &StepResult) -> Event {
    let status = step.outcome.status().as_str();
    let (level, message) = match &step.outcome {
        Outcome::Success(_) => (Level::Info, "Step execution completed"),
        Outcome::Cancelled(_) => (Level::Info, "Step canceled"),
        Outcome::Error(_) | Outcome::Timeout(_) => (Level::Error, "Step execution failed"),
    };
    let event = Event::new(level, message)
        .of(identity)
        .at_top("latency_ms", step.latency_ms)
        .with("status", status)
        .with("retries_used", step.retries_used);
    // What the other side answered is a fact about the call, not payload.
    let answered = match &step.outcome {
        Outcome::Success(outputs) => outputs.get("status_code"),
        other => other
            .failure()
            .and_then(|failure| failure.details.get("status_code")),
    };
    let event = match answered.and_then(Value::as_u64) {
        Some(code) => event.with("response_code", code),
        None => event,
    };
    match step.outcome.failure() {
        None => event,
        Some(failure) if level == Level::Error => event
            .at_top("error_code", "WORKER_STEP_EXECUTION_FAILED")
            .because(failure)
            .limited(failure),
        Some(failure) => cancellation::by_request(event.because(failure), failure),
    }
}

/// A job got its slot.
pub fn step_started(identity: &Arc<Identity>, class: &'static str, queued_ms: u64) -> Event {
    Event::new(Level::Debug, "Step execution started")
        .of(identity)
        .with("resource_class", class)
        .with("queued_ms", queued_ms)
}

/// A job may have killed its worker before: nothing runs beside it.
pub fn runs_alone(identity: &Arc<Identity>) -> Event {
    Event::new(Level::Warn, "Suspect runs alone").of(identity)
}

/// A job that waited is next.
pub fn processing_queued(identity: &Arc<Identity>, class: &'static str, queue_depth: usize) -> Event {
    Event::new(Level::Debug, "Processing queued request")
        .of(identity)
        .with("resource_class", class)
        .with("queue_depth", queue_depth)
}

/// An attempt failed and another follows.
pub fn attempt_failed(identity: &Arc<Identity>, failure: &Failure, attempt: u32, delay_ms: u64) -> Event {
    Event::new(Level::Debug, "Attempt failed")
        .of(identity)
        .because(failure)
        .with("attempt", attempt)
        .with("backoff_delay_ms", delay_ms)
}

/// An assignment was rejected.
pub fn rejected(identity: &Arc<Identity>, reason: RejectReason, failure: &Failure) -> Event {
    let (level, message) = match reason {
        RejectReason::UnsupportedJobType => (Level::Error, "Unknown block type"),
        _ => (Level::Warn, "Assignment rejected"),
    };
    Event::new(level, message)
        .of(identity)
        .because(failure)
        .with("reason", reason.as_str())
}

/// An assignment was rejected because its pool has no place.
pub fn queue_full(
    identity: &Arc<Identity>,
    class: &'static str,
    queue_depth: usize,
    max_queue_size: usize,
) -> Event {
    Event::new(Level::Warn, "Queue full - rejecting request")
        .of(identity)
        .with("resource_class", class)
        .with("queue_depth", queue_depth)
        .with("max_queue_size", max_queue_size)
        .with("reason", RejectReason::QueueFull.as_str())
}

/// A message that nobody can be answered for.
pub fn unanswerable(subject: &str, bytes: usize, failure: &Failure) -> Event {
    Event::new(Level::Warn, "Assignment unreadable")
        .with("subject", subject)
        .with("bytes", bytes)
        .because(failure)
}

/// A message was answered with the recorded result.
pub fn answered_again(identity: &Arc<Identity>) -> Event {
    Event::new(Level::Info, "Assignment answered again").of(identity)
}

/// A message left by a row that publishes no new answer.
pub fn not_run(identity: &Arc<Identity>, why: &'static str) -> Event {
    Event::new(Level::Debug, "Assignment not run")
        .of(identity)
        .with("reason", why)
}

/// Another worker gave it back, died with it or cannot be reached: it is ours now.
pub fn taken_over(identity: &Arc<Identity>, record: &ClaimRecord) -> Event {
    let from = record.history.last();
    Event::new(Level::Info, "Assignment taken over")
        .of(identity)
        .with("attempt", record.attempt)
        .with("deaths", record.deaths)
        .with("from_worker", from.map(|past| past.worker_id.as_str()))
        .with("given_back", from.is_some_and(|past| past.given_back))
}

/// The claims that the fleet shares cannot be reached.
pub fn claims_unavailable(identity: &Arc<Identity>, error: &StoreError) -> Event {
    Event::new(Level::Warn, "Claims not available, asking again")
        .of(identity)
        .with("error", error.to_string())
}

/// Nothing is pulled: other workers could not ask this one what it works on.
pub fn not_askable(error: &str) -> Event {
    Event::new(Level::Error, "Other workers cannot ask this one").with("error", error)
}

/// The claims that the fleet shares cannot be reached, and an answer waits for them.
pub fn claims_silent(error: &str) -> Event {
    Event::new(Level::Warn, "Answer waits for claims").with("error", error)
}

/// A result is not published: while the lease had lapsed, another worker took the assignment over.
pub fn result_suppressed(identity: Option<&Arc<Identity>>, why: &str) -> Event {
    let event = Event::new(Level::Warn, "Result suppressed")
        .with("reason", why)
        .measuring(delivery::SUPPRESSED.one(&[]));
    match identity {
        Some(identity) => event.of(identity),
        None => event,
    }
}

/// A result could not be stored before it is published; it is published all the same.
pub fn not_kept(error: &str) -> Event {
    Event::new(Level::Error, "Result not stored before publishing").with("error", error)
}

/// The state directory cannot be used.
pub fn state_unusable(error: &str) -> Event {
    Event::new(Level::Error, "State directory unusable").with("error", error)
}

/// The state directory is in use.
pub fn state_opened(path: &std::path::Path, entries: u64) -> Event {
    Event::new(Level::Info, "State directory opened")
        .with("path", path.display().to_string())
        .with("results_left_behind", entries)
}

/// Results of an earlier process were dealt with.
pub fn replayed(entries: usize) -> Event {
    Event::new(Level::Info, "Outbox replayed").with("entries", entries)
}

/// An earlier process died while it ran an assignment; the fleet knows now. `claim` has the names behind the key: what
/// stands in the bucket may be anybody's, so only usable ones are said.
pub fn death_noted(key: &str, alone: bool, claim: Option<&ClaimRecord>) -> Event {
    let usable = |id: Option<&String>, max| id.filter(|id| is_usable(id, max)).cloned();
    let assignment_id = claim.and_then(|claim| usable(claim.assignment_id.as_ref(), MAX_ID_BYTES));
    let tenant_id = claim.and_then(|claim| usable(claim.tenant_id.as_ref(), MAX_TENANT_BYTES));
    let event = Event::new(Level::Warn, "Worker died while it ran an assignment")
        .with("claim", key)
        .with("ran_alone", alone);
    let event = match tenant_id {
        Some(id) => event.at_top("tenant_id", id),
        None => event,
    };
    match assignment_id {
        Some(id) => event.with("assignment_id", id),
        None => event,
    }
}

/// A job that ran when the node's patience ended is cut off. Handed back: the broker delivers it again, nobody is
/// answered; otherwise it is answered as cancelled.
pub fn cut_off(identity: &Arc<Identity>, handed_back: bool) -> Event {
    Event::new(Level::Info, "Step cut off by shutdown")
        .of(identity)
        .with("handed_back", handed_back)
}

/// A result was too large for the server.
pub fn result_too_large(identity: &Arc<Identity>, bytes: usize, limit: usize) -> Event {
    Event::new(Level::Warn, "Result larger than the server's maximum")
        .of(identity)
        .with("result_bytes", bytes)
        .with("limit_bytes", limit)
}

/// Outputs that did not fit a result are stored elsewhere.
pub fn outputs_spilled(identity: &Arc<Identity>, bytes: u64) -> Event {
    Event::new(Level::Debug, "Outputs kept in the object store")
        .of(identity)
        .with("outputs_bytes", bytes)
}

/// Outputs that do not fit a result will not be stored elsewhere: the result is an error.
pub fn outputs_refused(identity: &Arc<Identity>, error: &str) -> Event {
    Event::new(Level::Warn, "Outputs refused by the object store")
        .of(identity)
        .with("error", error)
}

/// Outputs that do not fit a result wait for the object store.
pub fn outputs_retried(identity: &Arc<Identity>, error: &str, delay_ms: u64) -> Event {
    Event::new(Level::Warn, "Outputs wait for the object store")
        .of(identity)
        .with("error", error)
        .with("backoff_delay_ms", delay_ms)
}

/// A message was not confirmed and is sent again. Where it is not known whose answer it is, its id tells.
pub fn publish_retried(
    identity: Option<&Arc<Identity>>,
    (subject, message_id): (&str, &str),
    error: &str,
    attempt: u32,
    delay_ms: u64,
) -> Event {
    let event = Event::new(Level::Warn, "Publish not confirmed, sending again");
    identity
        .into_iter()
        .fold(event, Event::of)
        .with("subject", subject)
        .with("message_id", message_id)
        .with("error", error)
        .with("attempt", attempt)
        .with("backoff_delay_ms", delay_ms)
}

/// The stream kept an earlier answer with the same message id: whoever reads the stream will not see this one.
pub fn answered_before(subject: &str, message_id: &str) -> Event {
    Event::new(
        Level::Warn,
        "Answer dropped by the stream: this id was answered before",
    )
    .with("subject", subject)
    .with("message_id", message_id)
}

/// The server will never take a message; what it said is lost to the subscribers, the job counts as answered.
pub fn publish_refused(subject: &str, error: &str) -> Event {
    Event::new(Level::Error, "Publish refused by the server")
        .with("subject", subject)
        .with("error", error)
}

/// The node begins.
pub fn starting(mode: &str, pools: [usize; 3], sandbox: bool, version: &str) -> Event {
    Event::new(Level::Info, "Worker starting")
        .with("mode", mode)
        .with("cpu_pool_size", pools[0])
        .with("gpu_pool_size", pools[1])
        .with("io_pool_size", pools[2])
        .with("sandbox_mode", sandbox)
        .with("version", version)
}

/// The worker starts: which features are in force, and where their flags come from.
pub fn features_in_force(features: Map<String, Value>) -> Event {
    let event = Event::new(Level::Info, "Features in force");
    features
        .into_iter()
        .fold(event, |event, (key, value)| event.with(key, value))
}

/// The pools are up.
pub fn pools_initialized(pools: [usize; 3]) -> Event {
    Event::new(Level::Info, "Actor pools initialized")
        .with("cpu_pool", pools[0])
        .with("gpu_pool", pools[1])
        .with("io_pool", pools[2])
}

/// Every part of the tree takes messages.
pub fn tree_initialized(pools: [usize; 3]) -> Event {
    Event::new(Level::Info, "WorkerActor initialized")
        .with("cpu_pool_size", pools[0])
        .with("gpu_pool_size", pools[1])
        .with("io_pool_size", pools[2])
}

/// The blocks are known.
pub fn blocks_registered(job_types: &[&str]) -> Event {
    Event::new(Level::Info, "Block executors registration system initialized").with("job_types", job_types)
}

/// The node takes jobs.
pub fn running(subject: &str) -> Event {
    Event::new(Level::Info, "Worker runtime running").with("subject", subject)
}

/// The node begins to leave.
pub fn shutting_down(signal: &str, held: usize) -> Event {
    Event::new(Level::Info, "Worker shutting down")
        .with("signal", signal)
        .with("jobs_held", held)
}

/// The node has left.
pub fn stopped(held: usize, exit_code: u8) -> Event {
    Event::new(Level::Info, "Worker stopped")
        .with("jobs_held", held)
        .with("exit_code", exit_code)
}

/// The node cannot go on.
pub fn fatal(error: &str) -> Event {
    Event::new(Level::Error, "Worker fatal error").with("error", error)
}

/// A setting has no effect, or something else an operator should look at.
pub fn warning(text: &str) -> Event {
    Event::new(Level::Warn, "Warning").with("detail", text)
}

/// A port is open. `message` is one of contract 8.2, such as `Health endpoint started`.
pub fn endpoint(message: &'static str, address: SocketAddr) -> Event {
    Event::new(Level::Info, message)
        .with("address", address.ip().to_string())
        .with("port", address.port())
}

/// A port could not be opened; `address` as it is set, which may be no address.
pub fn bind_failed(message: &'static str, address: &str, error: &str) -> Event {
    let event = Event::new(Level::Error, message).with("error", error);
    if let Ok(address) = address.parse::<SocketAddr>() {
        return event
            .with("address", address.ip().to_string())
            .with("port", address.port());
    }
    // A name, which a port may stand behind.
    match address
        .split_once(':')
        .map(|(host, port)| (host, port.parse::<u16>()))
    {
        Some((host, Ok(port))) => event.with("address", host).with("port", port),
        _ => event.with("address", address),
    }
}

/// Something panicked; what became of it is another line.
pub fn panicked(place: &str, thread: &str) -> Event {
    Event::new(Level::Error, "Panic")
        .with("place", place)
        .with("thread", thread)
}

/// An actor or task ended and is re-created.
pub fn actor_restarted(name: &str, panicked: bool, restarts: usize) -> Event {
    Event::new(Level::Error, "Actor failed, restarting")
        .with("actor", name)
        .with("panicked", panicked)
        .with("restarts_in_window", restarts)
        .measuring(running::restart(name))
}

/// An actor failed more often than the budget allows.
pub fn restart_budget_spent(name: &str, restarts: usize) -> Event {
    Event::new(Level::Error, "Restart budget spent")
        .with("actor", name)
        .with("restarts_in_window", restarts)
}

/// The broker is there, or there again.
pub fn nats_connected(connection: &'static str, server: &str) -> Event {
    Event::new(Level::Info, "NATS connected")
        .with("connection", connection)
        .with("server", server)
}

/// The broker is away.
pub fn nats_disconnected(connection: &'static str) -> Event {
    Event::new(Level::Warn, "NATS disconnected").with("connection", connection)
}

/// The broker is not there yet.
pub fn nats_waiting(connection: &'static str, error: &str, delay_ms: u64) -> Event {
    Event::new(Level::Warn, "Waiting for NATS")
        .with("connection", connection)
        .with("error", error)
        .with("retry_in_ms", delay_ms)
}

/// The broker was there, and has been away for `away_ms`; `error` is how the last attempt to reconnect ended.
pub fn nats_away(connection: &'static str, error: &str, away_ms: u64) -> Event {
    Event::new(Level::Warn, "Waiting for NATS")
        .with("connection", connection)
        .with("error", error)
        .with("away_ms", away_ms)
}

/// The broker or the client library reported something.
pub fn nats_reported(connection: &'static str, what: &str) -> Event {
    Event::new(Level::Warn, "NATS reported")
        .with("connection", connection)
        .with("detail", what)
}

/// A stream or consumer is in use.
pub fn stream_ready(kind: &'static str, name: &str, created: bool) -> Event {
    Event::new(Level::Info, "Stream ready")
        .with("kind", kind)
        .with("name", name)
        .with("created", created)
}

/// Answers wait because no stream would store them.
pub fn answers_not_stored(error: &str, delay_ms: u64) -> Event {
    Event::new(Level::Warn, "Answers wait for their stream")
        .with("error", error)
        .with("retry_in_ms", delay_ms)
}

/// Pulling failed and begins anew.
pub fn pull_rebuilt(error: &str, delay_ms: u64) -> Event {
    Event::new(Level::Warn, "Pull failed, rebuilding")
        .with("error", error)
        .with("retry_in_ms", delay_ms)
}

/// Results cannot be stored: pulling stops until they can. For want of room, about how many bytes must be free.
pub fn outbox_failing(error: &str, free_bytes_needed: Option<u64>) -> Event {
    let event = Event::new(Level::Error, "Results cannot be stored, pulling stops").with("error", error);
    match free_bytes_needed {
        Some(bytes) => event.with("free_bytes_needed", bytes),
        None => event,
    }
}

/// Slots of a pool are missing on two looks in a row, or are not any more. A fault of the program: restart it, report it.
pub fn slots_unaccounted(pool: &str, slots: usize, look: &Look) -> Event {
    let (level, message) = match slots {
        0 => (Level::Info, "Slots accounted for again"),
        _ => (Level::Error, "Slots unaccounted for"),
    };
    Event::new(level, message)
        .with("pool", pool)
        .with("slots_unaccounted", slots)
        .with("slots", look.slots)
        .with("free", look.free)
        .with("issued", look.issued.len())
        .with("running", look.running.len())
}

/// Results can be stored again.
pub fn outbox_recovered() -> Event {
    Event::new(Level::Info, "Results can be stored again")
}

/// Assignments wait and none arrives, or the broker does not answer; what is done about it. An error when it is to leave.
pub fn consumption_stalled(
    action: &'static str,
    facts: Vec<(&'static str, u64)>,
    limit_ms: u64,
    leaving: bool,
) -> Event {
    let level = if leaving { Level::Error } else { Level::Warn };
    let event = Event::new(level, "Consumption stalled")
        .with("action", action)
        .with("stall_ms", limit_ms);
    facts
        .into_iter()
        .fold(event, |event, (key, value)| event.with(key, value))
}

/// Up to where the stream is acknowledged could not be kept.
pub fn floor_not_kept(error: &str) -> Event {
    Event::new(Level::Warn, "Acknowledged position not kept").with("error", error)
}

/// The broker has given an assignment up; `found` says how that was found. Nobody but the log tells the router.
pub fn abandoned(stream: &str, sequence: u64, found: &'static str) -> Event {
    Event::new(Level::Warn, "Assignment given up by the broker")
        .with("stream", stream)
        .with("stream_sequence", sequence)
        .with("found", found)
}

/// A client of the broker terminated an assignment, and the stream has forgotten it: nothing can be kept of it.
pub fn terminated_and_gone(stream: &str, sequence: u64) -> Event {
    Event::new(Level::Error, "Assignment terminated by another client and gone")
        .with("stream", stream)
        .with("stream_sequence", sequence)
}

/// What the broker gives up is not noticed at the moment.
pub fn abandoned_unwatched(error: &str) -> Event {
    Event::new(Level::Warn, "Watch over abandoned assignments interrupted").with("error", error)
}

#[cfg(test)]
mod tests {
    use caf_protocol::ids::{Correlation, RunFlowStep};

    use super::*;

    #[test]
    fn a_port_that_cannot_be_opened_is_told_as_one_that_is_open() {
        for (set, address, port) in [
            ("0.0.0.0:9091", "0.0.0.0", Some(9091)),
            ("[::1]:9091", "::1", Some(9091)),
            ("localhost:9091", "localhost", Some(9091)),
            ("localhost", "localhost", None),
            ("::1", "::1", None),
            ("0.0.0.0:70000", "0.0.0.0:70000", None),
        ] {
            let event = bind_failed("Failed to bind health socket", set, "taken");
            let of_port = event.context.get("port").and_then(Word::as_u64);
            assert_eq!(event.context.get("address"), Some(&address.into()), "{set}");
            assert_eq!(of_port, port, "{set}");
            assert_eq!(event.context.get("error"), Some(&"taken".into()));
        }
    }

    #[test]
    fn a_step_id_never_stands_without_run_and_flow() {
        let mut identity = Identity {
            tenant_id: "acme".into(),
            ..Identity::default()
        };
        identity.correlation = Correlation {
            raw: RunFlowStep {
                step_id: Some("s".into()),
                run_id: Some("r".into()),
                flow_id: None,
            },
            ..Correlation::default()
        };
        let top = |identity: &Identity| not_run(&Arc::new(identity.clone()), "x").with_ids().top;
        assert!(top(&identity).get("run_id").is_some() && top(&identity).get("step_id").is_none());
        identity.correlation.raw.flow_id = Some("f".into());
        assert!(top(&identity).get("step_id").is_some());
    }
}
