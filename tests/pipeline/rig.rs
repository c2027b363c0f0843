//! A tree with fake edges: deliveries go in by hand, publications and verdicts are collected.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use caf_actors::claims::Claims;
use caf_actors::events::Log;
use caf_actors::job::{Arrival, Delivery};
use caf_actors::lease::LeaseToken;
use caf_actors::metrics::{Meter, Sample};
use caf_actors::pool::{EmptyLine, LookAtPool};
use caf_actors::publisher::{LookAtPublisher, PublisherSnapshot};
use caf_actors::runtime::Undelivered;
use caf_actors::sink::{Outgoing, PublishError, Published, Sink, Verdict};
use caf_actors::supervisor::{Escalation, StopWatching};
use caf_actors::trace::Tracer;
use caf_blocks::Blocks;
use caf_protocol::block::{
    Block, BlockContext, BlockFuture, BlockSpec, Inputs, Outputs, Registry, ResourceClass, RunMode, Task,
};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::headers::Headers;
use caf_protocol::limit::{Operation, OperationLimit};
use caf_protocol::outcome::Failure;
use caf_protocol::reference::Fetchers;
use caf_worker::settings::Settings;
use caf_worker::settings::environment::split;
use caf_worker::settings::in_force::InForce;
use caf_worker::settings::load::Ranks;
use caf_worker::telemetry::metrics::Metrics;
use caf_worker::wiring::{Edges, EventLoops, Tree, build, new_cancellations, new_status};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

/// Longest wait for anything: far beyond what a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn in_system(test: impl Future<Output = ()>) {
    actix_rt::System::new().block_on(test);
}

/// An assignment for the probe block; `patch` replaces top-level fields, null removes one.
pub(crate) fn assignment(id: &str, patch: &Value) -> Value {
    let mut value = json!({
        "version": "1", "assignment_id": id, "request_id": "r-1", "tenant_id": "acme",
        "executor": {"provider_id": "prov-a"}, "job": {"type": "probe", "payload": {}},
    });
    for (key, field) in patch.as_object().into_iter().flatten() {
        match field {
            Value::Null => drop(value.as_object_mut().map(|object| object.remove(key))),
            field => value[key] = field.clone(),
        }
    }
    value
}

pub(crate) fn waiting() -> Value {
    json!({"job": {"type": "probe", "payload": {"wait": true}}})
}

pub(crate) fn failing(code: &str, attempts: u32) -> Value {
    json!({
        "job": {"type": "probe", "payload": {"fail": code}},
        "options": {"retry": {"max_attempts": attempts}},
    })
}

pub(crate) fn yielding(bytes: usize) -> Value {
    json!({"job": {"type": "probe", "payload": {"yield": bytes}}})
}

pub(crate) fn in_pool(class: &str) -> Value {
    json!({"resources": {"class": class}})
}

pub(crate) fn settings_with_one_slot() -> Settings {
    let mut settings = Settings::default();
    settings.pools.cpu.max_concurrency = 1;
    settings
}

// ---- The probe block ----

struct Probe {
    spec: BlockSpec,
    runs: Arc<AtomicUsize>,
    released: watch::Receiver<bool>,
}

struct ProbeTask {
    inputs: Inputs,
    runs: Arc<AtomicUsize>,
    released: watch::Receiver<bool>,
}

impl Block for Probe {
    fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    fn prepare(&self, inputs: Inputs) -> Result<Arc<dyn Task>, Failure> {
        assert!(!inputs.contains_key("panic_in_prepare"), "asked to panic");
        if inputs.contains_key("refuse") {
            return Err(Failure::of_field(
                ErrorCode::InvalidInput,
                "refuse",
                "must be absent",
            ));
        }
        Ok(Arc::new(ProbeTask {
            inputs,
            runs: Arc::clone(&self.runs),
            released: self.released.clone(),
        }))
    }
}

impl Task for ProbeTask {
    fn mode(&self) -> RunMode {
        let on_thread = self.inputs.contains_key("block_thread")
            || self.inputs.get("panic").is_some_and(|mode| mode == "thread");
        if on_thread {
            RunMode::Thread
        } else {
            RunMode::Async
        }
    }

    /// `limit_ms` makes it a read of a file with that limit.
    fn limit(&self) -> Option<OperationLimit> {
        let allowed = self.inputs.get("limit_ms").and_then(Value::as_u64)?;
        Some(OperationLimit {
            operation: Operation::FsRead,
            allowed: Duration::from_millis(allowed),
        })
    }

    fn operations(&self) -> &'static [Operation] {
        match self.limit() {
            Some(_) => &[Operation::FsRead],
            None => &[],
        }
    }

    fn run(self: Arc<Self>, context: BlockContext) -> BlockFuture {
        self.runs.fetch_add(1, SeqCst);
        async move {
            let mut released = self.released.clone();
            assert!(!self.inputs.contains_key("panic"), "asked to panic");
            if self.inputs.contains_key("wait") {
                let _ = released.wait_for(|released| *released).await;
            }
            while self.inputs.contains_key("block_thread") && !*released.borrow() {
                std::thread::yield_now();
            }
            let works_after = self.inputs.get("works_after").and_then(Value::as_u64);
            let is_mended = works_after.is_some_and(|calls| u64::from(context.attempt) >= calls);
            if let (Some(code), false) = (self.inputs.get("fail").and_then(Value::as_str), is_mended) {
                let failure = Failure::new(ErrorCode::from_wire(code), "asked to fail");
                let facts = self.inputs.get("details").and_then(Value::as_object);
                let facts = facts.into_iter().flatten();
                return Err(facts.fold(failure, |failure, (key, fact)| failure.with(key, fact.clone())));
            }
            let size = self.inputs.get("yield").and_then(Value::as_u64).unwrap_or(0);
            let text = "x".repeat(usize::try_from(size).expect("small"));
            Ok(Outputs::from_iter([
                ("ok".to_owned(), json!(true)),
                ("text".to_owned(), json!(text)),
            ]))
        }
        .boxed_local()
    }
}

// ---- The fake sink ----

pub(crate) struct FakeSink {
    published: Mutex<Vec<Outgoing>>,
    verdicts: Mutex<Vec<(String, Verdict)>>,
    refusing: AtomicBool,
    knows_all: AtomicBool,
    tries: AtomicUsize,
    max_message_bytes: AtomicUsize,
}

impl FakeSink {
    pub(crate) fn refuse_publishes(&self, refuse: bool) {
        self.refusing.store(refuse, SeqCst);
    }

    /// From now on the stream has had every message id before.
    pub(crate) fn know_all(&self) {
        self.knows_all.store(true, SeqCst);
    }

    pub(crate) fn tries(&self) -> usize {
        self.tries.load(SeqCst)
    }

    pub(crate) fn set_max_message_bytes(&self, bytes: usize) {
        self.max_message_bytes.store(bytes, SeqCst);
    }
}

impl Sink for FakeSink {
    fn publish(&self, message: &Outgoing) -> BoxFuture<'static, Result<Published, PublishError>> {
        self.tries.fetch_add(1, SeqCst);
        let answer = if self.refusing.load(SeqCst) {
            Err(PublishError::Unconfirmed("asked to refuse".to_owned()))
        } else {
            self.published
                .lock()
                .expect("no panic holds it")
                .push(message.clone());
            Ok(Published {
                known_before: self.knows_all.load(SeqCst),
                ..Published::default()
            })
        };
        std::future::ready(answer).boxed()
    }

    fn settle(&self, token: LeaseToken, verdict: Verdict) -> BoxFuture<'static, ()> {
        self.verdicts
            .lock()
            .expect("no panic holds it")
            .push((token.to_string(), verdict));
        std::future::ready(()).boxed()
    }

    fn max_message_bytes(&self) -> usize {
        self.max_message_bytes.load(SeqCst)
    }
}

// ---- A log that panics on request: how a station is made to fail without hooks in production code ----

#[derive(Default)]
struct Saboteur {
    lines: Mutex<Vec<String>>,
    fail_at: Mutex<Option<(String, bool)>>,
}

struct SaboteurDrain(Arc<Saboteur>);

impl slog::Drain for SaboteurDrain {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        let line = record.msg().to_string();
        let fail = {
            let mut fail_at = self.0.fail_at.lock().expect("no panic holds it");
            let hit = fail_at.as_ref().is_some_and(|(at, _)| *at == line);
            if hit && fail_at.as_ref().is_some_and(|(_, always)| !always) {
                *fail_at = None;
            }
            hit
        };
        self.0.lines.lock().expect("no panic holds it").push(line);
        assert!(!fail, "asked to fail");
        Ok(())
    }
}

// ---- The fake meter ----

/// Keeps samples as they come, and in the real registry.
#[derive(Default)]
struct FakeMeter {
    samples: Mutex<Vec<Sample>>,
    registry: Metrics,
}

impl Meter for FakeMeter {
    fn record(&self, sample: &Sample) {
        self.samples
            .lock()
            .expect("no panic holds it")
            .push(sample.clone());
        self.registry.record(sample);
    }
}

// ---- The rig ----

pub(crate) struct Rig {
    meter: Arc<FakeMeter>,
    tree: Tree,
    pub(crate) sink: Arc<FakeSink>,
    runs: Arc<AtomicUsize>,
    released: watch::Sender<bool>,
    log: Arc<Saboteur>,
    /// How often each message was delivered.
    deliveries: Mutex<HashMap<u64, u64>>,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::start_with(Settings::default()).await
    }

    pub(crate) async fn start_with(settings: Settings) -> Self {
        Self::start_with_fetchers(settings, Fetchers::default()).await
    }

    pub(crate) async fn start_with_fetchers(settings: Settings, fetchers: Fetchers) -> Self {
        let claims = Claims::new(&settings.idempotency, None);
        Self::start_with_parts(settings, fetchers, claims).await
    }

    pub(crate) async fn start_with_claims(settings: Settings, claims: Claims) -> Self {
        Self::start_with_parts(settings, Fetchers::default(), claims).await
    }

    async fn start_with_parts(settings: Settings, fetchers: Fetchers, claims: Claims) -> Self {
        let (released, is_released) = watch::channel(false);
        let runs = Arc::new(AtomicUsize::new(0));
        let probe = |job_types, repeatable| {
            Arc::new(Probe {
                spec: BlockSpec {
                    job_types,
                    class: ResourceClass::Cpu,
                    repeatable,
                    inputs: true.into(),
                    outputs: true.into(),
                },
                runs: Arc::clone(&runs),
                released: is_released.clone(),
            })
        };
        let registry = Registry::default()
            .with(probe(&["probe"], true))
            .with(probe(&["probe.once"], false));
        let sink = Arc::new(FakeSink {
            published: Mutex::default(),
            verdicts: Mutex::default(),
            refusing: AtomicBool::new(false),
            knows_all: AtomicBool::new(false),
            tries: AtomicUsize::new(0),
            max_message_bytes: AtomicUsize::new(1024 * 1024),
        });
        let log = Arc::new(Saboteur::default());
        let logger = slog::Logger::root(SaboteurDrain(Arc::clone(&log)), slog::o!());
        let meter = Arc::new(FakeMeter::default());
        let status = new_status(&settings);
        let mut blocks = Blocks::from(registry);
        blocks.fetchers = fetchers;
        let in_force = InForce::of(&settings, &every_policy());
        let log_of_all =
            Log::new(logger, "worker-under-test").with_meter(Arc::clone(&meter) as Arc<dyn Meter>);
        let cancellations = new_cancellations(&settings, &in_force, &log_of_all);
        let tree = build(
            &settings,
            &in_force,
            blocks,
            Edges {
                approvals: None,
                sink: Arc::clone(&sink) as Arc<dyn Sink>,
                outputs: None,
                claims,
                outbox: None,
                marks: None,
                cancellations,
                tracer: Tracer::default(),
            },
            EventLoops::start(&settings),
            status,
            &log_of_all,
        )
        .await;
        Self {
            meter,
            tree,
            sink,
            runs,
            released,
            log,
            deliveries: Mutex::default(),
        }
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Ends the tree; fails when something is still held.
    pub(crate) async fn stop(self) {
        self.release();
        self.wait("nothing is held at the end", |rig| {
            rig.tree.status.held().held_jobs() == 0
        })
        .await;
        let _ = self.tree.supervisor.send(StopWatching).await;
    }

    // Deliveries.

    pub(crate) async fn deliver(&self, assignment: Value, sequence: u64) {
        self.deliver_bytes(assignment.to_string().into_bytes(), sequence)
            .await;
    }

    pub(crate) async fn deliver_bytes(&self, bytes: Vec<u8>, sequence: u64) {
        self.deliver_as(bytes, sequence, &format!("delivery-{sequence}"))
            .await;
    }

    pub(crate) async fn deliver_again(&self, assignment: Value, sequence: u64, token: &str) {
        self.deliver_as(assignment.to_string().into_bytes(), sequence, token)
            .await;
    }

    async fn deliver_as(&self, bytes: Vec<u8>, sequence: u64, token: &str) {
        let permit = self
            .tree
            .status
            .held()
            .reserve(1)
            .await
            .take(bytes.len())
            .expect("just reserved");
        let arrival = Arrival {
            subject: "caf.exec.assign.v1".into(),
            headers: Arc::new(Headers::default()),
            payload: Bytes::from(bytes),
            position: Some(("caf-stream".into(), sequence)),
            published_at_ms: None,
            received_at_ms: 1,
            received: Instant::now(),
        };
        let lease = Some(Arc::new(self.tree.leases.hold(
            token.into(),
            sequence,
            self.count_delivery(sequence),
            Instant::now(),
        )));
        self.tree.status.deferrals().came_back(sequence);
        let mut delivery = Delivery {
            arrival,
            permit,
            lease,
            given_up: None,
        };
        let start = Instant::now();
        while let Err(Undelivered(back)) = self.tree.intake.tell(delivery) {
            if self.escalated() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "the intake does not come back");
            delivery = back;
            tokio::task::yield_now().await;
        }
    }

    fn count_delivery(&self, sequence: u64) -> u64 {
        let mut deliveries = self.deliveries.lock().expect("not poisoned");
        let count = deliveries.entry(sequence).or_default();
        *count += 1;
        *count
    }

    /// Lets every waiting probe finish, now and from now on.
    pub(crate) fn release(&self) {
        self.released.send_replace(true);
    }

    pub(crate) async fn empty_lines(&self, how: EmptyLine) {
        for pool in &self.tree.pools {
            pool.empty.ask(how, PATIENCE).await.expect("the pool answers");
        }
    }

    // Faults.

    /// Whoever logs this line next panics.
    pub(crate) fn fail_at(&self, line: &str) {
        *self.log.fail_at.lock().expect("no panic holds it") = Some((line.to_owned(), false));
    }

    pub(crate) fn always_fail_at(&self, line: &str) {
        *self.log.fail_at.lock().expect("no panic holds it") = Some((line.to_owned(), true));
    }

    pub(crate) fn lines(&self, message: &str) -> usize {
        self.log
            .lines
            .lock()
            .expect("no panic holds it")
            .iter()
            .filter(|line| *line == message)
            .count()
    }

    /// Everything measured so far, as a scrape would show it.
    pub(crate) fn scrape(&self) -> String {
        self.meter.registry.encode(&[])
    }

    pub(crate) fn restarts(&self) -> usize {
        self.lines("Actor failed, restarting")
    }

    pub(crate) fn escalated(&self) -> bool {
        self.lines("Restart budget spent") > 0
    }

    pub(crate) async fn escalation(&mut self) -> Escalation {
        tokio::time::timeout(PATIENCE, self.tree.escalations.recv())
            .await
            .expect("in time")
            .expect("one")
    }

    // Waiting.

    pub(crate) async fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(
                start.elapsed() < PATIENCE,
                "waited in vain for: {what}; published {:?}",
                self.counts()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Lets time pass that a deadline is measured by.
    pub(crate) async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    pub(crate) async fn settled(&self, count: usize) {
        self.wait(&format!("{count} verdicts"), |rig| rig.verdicts().len() >= count)
            .await;
    }

    pub(crate) async fn published(&self, done: impl Fn((usize, usize, usize)) -> bool) {
        self.wait("publications", |rig| done(rig.counts())).await;
    }

    /// Waits until every station answers.
    pub(crate) async fn alive(&self) {
        let start = Instant::now();
        loop {
            let mut silent = self.tree.publisher.ask(LookAtPublisher, PATIENCE).await.is_none();
            for pool in &self.tree.pools {
                silent |= pool.look.ask(LookAtPool, PATIENCE).await.is_none();
            }
            if !silent {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "a station does not come back");
            tokio::task::yield_now().await;
        }
    }

    // What came out.

    /// What the health page is told of the publisher.
    pub(crate) async fn publisher(&self) -> PublisherSnapshot {
        self.tree
            .publisher
            .ask(LookAtPublisher, PATIENCE)
            .await
            .expect("it answers")
    }

    fn payloads(&self, subject: &str) -> Vec<String> {
        let published = self.sink.published.lock().expect("no panic holds it");
        published
            .iter()
            .filter(|message| message.subject == subject)
            .map(|message| String::from_utf8(message.payload.to_vec()).expect("text"))
            .collect()
    }

    fn values(&self, subject: &str) -> Vec<Value> {
        self.payloads(subject)
            .iter()
            .map(|text| serde_json::from_str(text).expect("json"))
            .collect()
    }

    pub(crate) fn acks(&self) -> Vec<Value> {
        self.values("caf.exec.assign.v1.ack")
    }

    pub(crate) fn raw_acks(&self) -> Vec<String> {
        self.payloads("caf.exec.assign.v1.ack")
    }

    pub(crate) fn results(&self) -> Vec<Value> {
        self.values("caf.exec.result.v1")
    }

    pub(crate) fn raw_results(&self) -> Vec<String> {
        self.payloads("caf.exec.result.v1")
    }

    pub(crate) fn dead_letters(&self) -> Vec<Value> {
        self.values("caf.exec.dlq.v1")
    }

    /// Acks, results, dead letters.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        (self.acks().len(), self.results().len(), self.dead_letters().len())
    }

    pub(crate) fn ack_statuses(&self) -> BTreeMap<String, usize> {
        let mut statuses = BTreeMap::new();
        for ack in self.acks() {
            *statuses
                .entry(ack["status"].as_str().expect("text").to_owned())
                .or_default() += 1;
        }
        statuses
    }

    pub(crate) fn result_of(&self, id: &str) -> Value {
        let found = self
            .results()
            .into_iter()
            .find(|result| result["assignment_id"] == id);
        found.unwrap_or_else(|| panic!("no result of {id}"))
    }

    pub(crate) fn verdicts(&self) -> Vec<(String, Verdict)> {
        self.sink.verdicts.lock().expect("no panic holds it").clone()
    }

    /// Samples of a metric: values of its labels, and the value.
    pub(crate) fn samples(&self, metric: &str) -> Vec<(Vec<String>, f64)> {
        let samples = self.meter.samples.lock().expect("no panic holds it");
        let wanted = samples.iter().filter(|sample| sample.metric.name == metric);
        wanted
            .map(|sample| {
                (
                    sample.labels.iter().map(ToString::to_string).collect(),
                    sample.value,
                )
            })
            .collect()
    }

    /// Every metric that was recorded.
    pub(crate) fn metrics(&self) -> BTreeSet<&'static str> {
        let samples = self.meter.samples.lock().expect("no panic holds it");
        samples.iter().map(|sample| sample.metric.name).collect()
    }

    pub(crate) fn runs(&self) -> usize {
        self.runs.load(SeqCst)
    }
}

/// As if a source had spoken of each policy: the flags decide.
fn every_policy() -> Ranks {
    let policies = [
        "retries.v2.default_policy",
        "timeouts.v2.retry_budget",
        "queue.v2.policies",
    ];
    let key = |policy: &str| split(&format!("worker.{policy}"));
    policies.into_iter().map(|policy| (key(policy), 1)).collect()
}
