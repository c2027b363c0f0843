//! A block worker without its tree: one job, whose calls end as they are told, on the test's own clock.

use std::sync::Mutex;

use bytes::Bytes;
use caf_protocol::assignment::Identity;
use caf_protocol::block::{BlockFuture, CancellationToken, ResourceClass};
use caf_protocol::endpoint::Endpoint;
use caf_protocol::headers::Headers;
use serde_json::{Map, Value, json};
use slog::KV as _;
use tokio::sync::oneshot;

use super::*;
use crate::block_worker::retry::RetryRules;
use crate::block_worker::retry::numbers::Asked;
use crate::cancellation::Cancellable;
use crate::held::HeldPermits;
use crate::job::{Arrival, Holdings, SentAck};
use crate::metrics::{Meter, Sample};
use crate::pool::{Admitted, Places, TakenPlace};
use crate::settings::LimitSettings;
use crate::settings::circuit_breaker::CircuitBreakerSettings;
use crate::settings::policies::{Jitter, RetryPolicySettings};
use crate::sink::Outgoing;
use crate::tenants::Share;

/// A call that takes so long does not end.
pub(super) const NEVER: u64 = 3_600_000;

pub(super) fn failed(code: ErrorCode) -> Failure {
    Failure::new(code, "asked to fail")
}

pub(super) fn answered(status: u64) -> Failure {
    failed(ErrorCode::HttpError).with("status_code", status.into())
}

/// The defaults without jitter, so that waits are exact.
pub(super) fn policy() -> RetryPolicySettings {
    let mut policy = RetryPolicySettings::default();
    policy.default_policy.jitter_type = Jitter::None;
    policy
}

/// How one call ends, and after how long. The last one repeats.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) takes_ms: u64,
    pub(super) result: Result<(), Failure>,
}

impl Call {
    pub(super) fn fails(failure: Failure) -> Self {
        Self {
            takes_ms: 0,
            result: Err(failure),
        }
    }

    pub(super) fn works() -> Self {
        Self {
            takes_ms: 0,
            result: Ok(()),
        }
    }
}

struct Script {
    calls: Vec<Call>,
    talks: bool,
    start: Instant,
    called_at_ms: Mutex<Vec<u64>>,
}

impl Task for Script {
    fn mode(&self) -> RunMode {
        RunMode::Async
    }

    fn endpoint(&self) -> Option<Endpoint> {
        self.talks
            .then(|| Endpoint::new(EndpointKind::Http, "http://probe"))
    }

    fn run(self: Arc<Self>, context: BlockContext) -> BlockFuture {
        let mut called = self.called_at_ms.lock().expect("no panic holds it");
        called.push(whole_ms(self.start.elapsed()));
        assert_eq!(called.len(), context.attempt as usize + 1, "attempts are counted");
        let call = self.calls[(called.len() - 1).min(self.calls.len() - 1)].clone();
        drop(called);
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(call.takes_ms)).await;
            call.result.map(|()| Outputs::new())
        })
    }
}

/// What is given to the worker.
pub(super) struct Bench {
    pub(super) rules: RetryRules,
    pub(super) asked: Asked,
    pub(super) skip_retries: bool,
    pub(super) skip_circuit_breaker: bool,
    /// Whether calls go to an HTTP server.
    pub(super) talks: bool,
    pub(super) breakers: Option<CircuitBreakerSettings>,
    pub(super) deadline_ms: u64,
    pub(super) queued_ms: u64,
}

/// What came of it.
pub(super) struct Done {
    pub(super) outcome: Outcome,
    pub(super) retries_used: u32,
    pub(super) called_at_ms: Vec<u64>,
    pub(super) ended_at_ms: u64,
    pub(super) lines: Vec<Value>,
    /// As `name[labels] value`.
    pub(super) samples: Vec<String>,
}

impl Done {
    pub(super) fn calls(&self) -> usize {
        self.called_at_ms.len()
    }

    pub(super) fn status(&self) -> &'static str {
        self.outcome.status().as_str()
    }

    pub(super) fn error_code(&self) -> &'static str {
        self.outcome.error_code()
    }

    pub(super) fn messages(&self) -> Vec<&str> {
        self.lines
            .iter()
            .filter_map(|line| line["message"].as_str())
            .collect()
    }

    pub(super) fn lines_of(&self, message: &str) -> Vec<Value> {
        let of = |line: &&Value| line["message"] == message;
        self.lines.iter().filter(of).cloned().collect()
    }

    pub(super) fn line(&self, message: &str) -> Value {
        let lines = self.lines_of(message);
        assert_eq!(lines.len(), 1, "{message} in {:?}", self.messages());
        lines[0].clone()
    }
}

impl Bench {
    pub(super) fn cp1() -> Self {
        Self {
            rules: RetryRules {
                default_attempts: 4,
                policy: None,
                total: None,
            },
            asked: Asked::default(),
            skip_retries: false,
            skip_circuit_breaker: false,
            talks: false,
            breakers: None,
            deadline_ms: 60_000,
            queued_ms: 0,
        }
    }

    pub(super) fn by_policy(policy: RetryPolicySettings) -> Self {
        let mut bench = Self::cp1();
        bench.rules.policy = Some(Arc::new(policy));
        bench
    }

    pub(super) fn asking(mut self, max_attempts: u32, backoff_ms: u64) -> Self {
        self.asked = Asked {
            max_attempts: Some(max_attempts),
            backoff_ms: Some(backoff_ms),
        };
        self
    }

    pub(super) async fn run(&self, calls: impl IntoIterator<Item = Call>) -> Done {
        self.run_until(calls, CancellationToken::new()).await
    }

    pub(super) async fn run_until(
        &self,
        calls: impl IntoIterator<Item = Call>,
        cancel: CancellationToken,
    ) -> Done {
        let received = Instant::now();
        tokio::time::sleep(Duration::from_millis(self.queued_ms)).await;
        let script = Arc::new(Script {
            calls: calls.into_iter().collect(),
            talks: self.talks,
            start: Instant::now(),
            called_at_ms: Mutex::default(),
        });
        let (task, start) = (Arc::clone(&script) as Arc<dyn Task>, script.start);
        let mut job = self.job(task, received, cancel).await;
        let heard = Arc::new(Heard::default());
        let logger = slog::Logger::root(HeardDrain(Arc::clone(&heard)), slog::o!());
        let log = Log::new(logger, "bench").with_meter(Arc::clone(&heard) as Arc<dyn Meter>);
        let threads = Threads::default();
        let breakers = self.breakers.as_ref();
        let breakers =
            breakers.map_or_else(Breakers::default, |settings| Breakers::new(settings, log.clone()));
        let worker = BlockWorker::new(PublisherRoutes::default(), threads, 1, None, log);
        let worker = worker.with_breakers(breakers.clone());
        let Ended::Outcome(outcome, retries_used) = attempts(&mut job, &worker.0).await else {
            panic!("it was neither interrupted nor taken over");
        };
        let called_at_ms = script.called_at_ms.lock().expect("no panic holds it").clone();
        Done {
            outcome,
            retries_used,
            called_at_ms,
            ended_at_ms: whole_ms(start.elapsed()),
            lines: heard.lines.lock().expect("no panic holds it").clone(),
            samples: heard.samples.lock().expect("no panic holds it").clone(),
        }
    }

    async fn job(&self, task: Arc<dyn Task>, received: Instant, cancel: CancellationToken) -> Job {
        let permits = HeldPermits::new(&LimitSettings::default());
        let permit = permits.reserve(1).await.take(1).expect("just reserved");
        let Admitted::Taken(TakenPlace { place, .. }) =
            Places::unbounded(ResourceClass::Cpu, 1).admit(received, None)
        else {
            panic!("there is room");
        };
        let (_, confirmed) = oneshot::channel();
        Job {
            arrival: Arrival {
                subject: "caf.exec.assign.v1".into(),
                headers: Arc::new(Headers::default()),
                payload: Bytes::new(),
                position: None,
                published_at_ms: None,
                received_at_ms: 1,
                received,
            },
            identity: Arc::new(Identity {
                job_type: Some("probe".to_owned()),
                ..Identity::default()
            }),
            work: Work::Ready(task),
            class: ResourceClass::Cpu,
            priority: 50,
            repeatable: false,
            started: received,
            began: None,
            deadline: received + Duration::from_millis(self.deadline_ms),
            retry: self.rules.plan("probe", self.asked),
            skip_retries: self.skip_retries,
            skip_circuit_breaker: self.skip_circuit_breaker,
            alone: false,
            load: None,
            ack: SentAck {
                message: Arc::new(Outgoing {
                    subject: String::new(),
                    headers: Headers::default(),
                    payload: Bytes::new(),
                }),
                confirmed,
            },
            place,
            holdings: Holdings {
                claim: None,
                lease: None,
                permit,
                given_up: None,
                share: Share::default(),
                cancel: Cancellable::by_shutdown(cancel),
                span: Span::default(),
            },
        }
    }
}

// ---- What is logged and measured ----

#[derive(Default)]
struct Heard {
    lines: Mutex<Vec<Value>>,
    samples: Mutex<Vec<String>>,
}

impl Meter for Heard {
    fn record(&self, sample: &Sample) {
        let labels = sample.labels.join(",");
        let text = format!("{}[{labels}] {}", sample.metric.name, sample.value);
        self.samples.lock().expect("no panic holds it").push(text);
    }
}

struct HeardDrain(Arc<Heard>);

impl slog::Drain for HeardDrain {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        let mut fields = Fields(Map::new());
        let _ = record.kv().serialize(record, &mut fields);
        let level = match record.level() {
            slog::Level::Error => "ERROR",
            slog::Level::Info => "INFO",
            slog::Level::Warning => "WARN",
            _ => "OTHER",
        };
        fields.0.insert("level".to_owned(), json!(level));
        fields
            .0
            .insert("message".to_owned(), json!(record.msg().to_string()));
        let mut lines = self.0.lines.lock().expect("no panic holds it");
        lines.push(Value::Object(fields.0));
        Ok(())
    }
}

struct Fields(Map<String, Value>);

impl slog::Serializer for Fields {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        self.0.insert(key.to_string(), json!(value.to_string()));
        Ok(())
    }

    fn emit_u64(&mut self, key: slog::Key, value: u64) -> slog::Result {
        self.0.insert(key.to_string(), json!(value));
        Ok(())
    }

    fn emit_serde(&mut self, key: slog::Key, value: &dyn slog::SerdeValue) -> slog::Result {
        let value = serde_json::to_value(value.as_serde()).expect("can be written down");
        self.0.insert(key.to_string(), value);
        Ok(())
    }
}
