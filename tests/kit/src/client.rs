//! The other end of the broker: publishes assignments, collects answers, looks into streams.
//!
//! Neighbours: [`crate::nats`] is the broker, [`crate::router`] judges what was collected. Runs on a thread of its own
//! and blocks the caller, so it serves tests with and without a runtime; a test that runs the node on its own thread
//! waits with [`crate::wait_until_async`] for what a [`Collector`] holds.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use async_nats::jetstream::{self, consumer, object_store, stream};
use async_nats::{ConnectOptions, HeaderMap};
use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::router::{Header, RouterIntake, Verdict};
use crate::strict;
use crate::wait::poll;
use crate::{AssignmentBuilder, NatsAuth, NatsServer};

/// Subject of assignments (contract 1.1).
pub const ASSIGN: &str = "caf.exec.assign.v1";
/// Subject of acknowledgements.
pub const ACK: &str = "caf.exec.assign.v1.ack";
/// Subject of results.
pub const RESULT: &str = "caf.exec.result.v1";
/// Subject of heartbeats.
pub const HEARTBEAT: &str = "caf.worker.heartbeat.v1";
/// Subject of the worker's dead letters.
pub const DLQ: &str = "caf.exec.dlq.v1";

/// Longest wait for one operation.
const PATIENCE: Duration = Duration::from_secs(30);

/// A message as it was received.
#[derive(Debug, Clone)]
pub struct Message {
    /// Subject.
    pub subject: String,
    /// Names and values, in no particular order.
    pub headers: Vec<Header>,
    /// Bytes.
    pub payload: Vec<u8>,
}

impl Message {
    /// First value of a header; the name is compared exactly.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The payload as JSON; null when it is not.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.payload).unwrap_or_default()
    }

    fn of(subject: &str, headers: &HeaderMap, payload: &[u8]) -> Self {
        let pairs = headers.iter().flat_map(|(name, values)| {
            values
                .iter()
                .map(move |value| (name.to_string(), value.to_string()))
        });
        Self {
            subject: subject.to_owned(),
            headers: pairs.collect(),
            payload: payload.to_vec(),
        }
    }
}

/// How full a consumer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsumerState {
    /// Messages not delivered yet.
    pub pending: u64,
    /// Messages delivered and not acknowledged.
    pub ack_pending: usize,
    /// Messages delivered more than once and not acknowledged.
    pub redelivered: usize,
}

/// A connection; closed on drop.
#[derive(Debug)]
pub struct Client {
    nats: async_nats::Client,
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    /// Connects to a server of this crate, with whatever it asks for; it reconnects for ever when the server restarts.
    ///
    /// # Errors
    /// When no connection comes about.
    pub fn connect(server: &NatsServer) -> Result<Self> {
        let options = match server.auth() {
            NatsAuth::User { user, password } => {
                ConnectOptions::with_user_and_password(user.clone(), password.clone())
            }
            NatsAuth::Token(token) => ConnectOptions::with_token(token.clone()),
            NatsAuth::Nkey { seed, .. } => ConnectOptions::with_nkey(seed.clone()),
            NatsAuth::Credentials(credentials) => {
                ConnectOptions::with_credentials(&std::fs::read_to_string(credentials.file())?)?
            }
            NatsAuth::None => ConnectOptions::new(),
        };
        let options = match server.certificates() {
            Some(certificates) => {
                let (certificate, key) = certificates.client();
                options
                    .add_root_certificates(certificates.authority())
                    .add_client_certificate(certificate, key)
            }
            None => options,
        };
        Self::connect_with(&server.url(), options)
    }

    /// Connects anywhere, by any options.
    ///
    /// # Errors
    /// When no connection comes about.
    pub fn connect_with(url: &str, options: ConnectOptions) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            // Either way it is over: told to stop, or the client is gone.
            let _ = runtime.block_on(stopped);
        });
        let options = options
            .name("caf-testkit")
            // Soon and steadily: a test that restarts the server waits for this.
            .reconnect_delay_callback(|_| Duration::from_millis(20));
        let url = url.to_owned();
        let connect = async move { options.connect(url).await };
        let nats = run_on(&handle, connect)?.context("cannot connect to the nats-server")?;
        Ok(Self {
            nats,
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Runs anything on the client's own thread and waits for it.
    ///
    /// # Errors
    /// When it takes longer than half a minute.
    pub fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> Result<T> {
        run_on(&self.handle, future)
    }

    /// The connection itself, for what has no method here; use it inside [`Client::run`].
    pub fn nats(&self) -> async_nats::Client {
        self.nats.clone()
    }

    /// JetStream over this connection; use it inside [`Client::run`].
    pub fn jetstream(&self) -> jetstream::Context {
        // It starts a task of its own as it is made.
        let _runtime = self.handle.enter();
        jetstream::new(self.nats())
    }

    /// Publishes a message and waits until the server has it.
    ///
    /// # Errors
    /// When the message is too large, or the server away.
    pub fn publish(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        payload: impl Into<Vec<u8>>,
    ) -> Result<()> {
        let nats = self.nats();
        let (subject, payload) = (subject.to_owned(), payload.into());
        let mut map = HeaderMap::new();
        for &(name, value) in headers {
            map.insert(name, value);
        }
        self.run(async move {
            if map.is_empty() {
                nats.publish(subject, payload.into()).await?;
            } else {
                nats.publish_with_headers(subject, map, payload.into()).await?;
            }
            nats.flush().await?;
            anyhow::Ok(())
        })?
    }

    /// Publishes an assignment as the router does: a plain publish without headers.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub fn assign(&self, assignment: &AssignmentBuilder) -> Result<()> {
        self.publish(ASSIGN, &[], assignment.bytes())
    }

    /// Publishes many assignments and waits once, at the end, until the server has them all.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub fn assign_all(&self, assignments: &[AssignmentBuilder]) -> Result<()> {
        let nats = self.nats();
        let payloads: Vec<_> = assignments.iter().map(AssignmentBuilder::bytes).collect();
        self.run(async move {
            for payload in payloads {
                nats.publish(ASSIGN, payload.into()).await?;
            }
            nats.flush().await?;
            anyhow::Ok(())
        })?
    }

    /// Publishes an assignment and waits until a stream has it. It may be tried again after an error: the stream keeps
    /// one copy.
    ///
    /// # Errors
    /// When no stream confirms it, or the server is away.
    pub fn assign_stored(&self, assignment: &AssignmentBuilder) -> Result<()> {
        let (context, body) = (self.jetstream(), assignment.bytes());
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", assignment.assignment_id());
        self.run(async move {
            let ack = context.publish_with_headers(ASSIGN, headers, body.into()).await?;
            ack.await?;
            anyhow::Ok(())
        })?
    }

    /// Collects what is published from now on. Messages published while the connection is away are missed; what must
    /// be complete over a restart of the server is read from its stream with [`Client::stream_messages`].
    ///
    /// # Errors
    /// When the server is away.
    pub fn collect(&self, subjects: &[&str]) -> Result<Collector> {
        let messages = Arc::new(Mutex::new(Vec::new()));
        for subject in subjects {
            let (nats, subject, sink) = (self.nats(), (*subject).to_owned(), Arc::clone(&messages));
            self.run(async move {
                let mut subscription = nats.subscribe(subject).await?;
                server_has_heard(&nats).await?;
                tokio::spawn(async move {
                    while let Some(message) = subscription.next().await {
                        let headers = message.headers.unwrap_or_default();
                        let message = Message::of(&message.subject, &headers, &message.payload);
                        sink.lock().unwrap_or_else(PoisonError::into_inner).push(message);
                    }
                });
                anyhow::Ok(())
            })??;
        }
        Ok(Collector { messages })
    }

    /// Collects acknowledgements, results and dead letters.
    ///
    /// # Errors
    /// As [`Client::collect`].
    pub fn collect_answers(&self) -> Result<Collector> {
        self.collect(&[ACK, RESULT, DLQ])
    }

    /// State of a stream; nothing when there is none of that name.
    ///
    /// # Errors
    /// When the server is away or has no JetStream.
    pub fn stream(&self, name: &str) -> Result<Option<stream::Info>> {
        let (context, name) = (self.jetstream(), name.to_owned());
        self.run(async move {
            match context.get_stream(name).await {
                Ok(stream) => Ok(Some(stream.cached_info().clone())),
                Err(error) if is_not_found(&error) => Ok(None),
                Err(error) => Err(anyhow!(error)),
            }
        })?
    }

    /// Number of messages in a stream; 0 when there is none of that name.
    ///
    /// # Errors
    /// As [`Client::stream`].
    pub fn stream_count(&self, name: &str) -> Result<u64> {
        Ok(self.stream(name)?.map_or(0, |info| info.state.messages))
    }

    /// Every message in a stream, oldest first. Takes nothing away.
    ///
    /// # Errors
    /// When there is no such stream, or the server is away.
    pub fn stream_messages(&self, name: &str) -> Result<Vec<Message>> {
        let (context, name) = (self.jetstream(), name.to_owned());
        self.run(async move {
            let stream = context.get_stream(name).await?;
            let state = stream.cached_info().state.clone();
            let mut messages = Vec::new();
            for sequence in state.first_sequence.max(1)..=state.last_sequence {
                match stream.get_raw_message(sequence).await {
                    Ok(message) => {
                        messages.push(Message::of(&message.subject, &message.headers, &message.payload));
                    }
                    // Gaps are where messages were taken away.
                    Err(error) if error.kind() == stream::LastRawMessageErrorKind::NoMessageFound => {}
                    Err(error) => return Err(anyhow!(error)),
                }
            }
            Ok(messages)
        })?
    }

    /// Puts an object into a bucket, which is made when it is missing.
    ///
    /// # Errors
    /// When the server is away or has no JetStream.
    pub fn put_object(&self, bucket: &str, key: &str, bytes: impl Into<Vec<u8>>) -> Result<()> {
        let (context, bucket, key, bytes) =
            (self.jetstream(), bucket.to_owned(), key.to_owned(), bytes.into());
        self.run(async move {
            let store = match context.get_object_store(&bucket).await {
                Ok(store) => store,
                Err(_) => {
                    let config = object_store::Config {
                        bucket,
                        ..object_store::Config::default()
                    };
                    context.create_object_store(config).await?
                }
            };
            store.put(key.as_str(), &mut bytes.as_slice()).await?;
            Ok(())
        })?
    }

    /// The bytes of an object, their digest checked by the client library; nothing when there is no such object.
    ///
    /// # Errors
    /// When there is no such bucket, or the server is away.
    pub fn object(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>> {
        let (context, bucket, key) = (self.jetstream(), bucket.to_owned(), key.to_owned());
        self.run(async move {
            let store = context.get_object_store(&bucket).await?;
            let mut object = match store.get(key).await {
                Ok(object) => object,
                Err(error) if error.kind() == object_store::GetErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(anyhow!(error)),
            };
            let mut bytes = Vec::new();
            object.read_to_end(&mut bytes).await?;
            Ok(Some(bytes))
        })?
    }

    /// State of a pull consumer.
    ///
    /// # Errors
    /// When there is no such stream or consumer, or the server is away.
    pub fn consumer(&self, stream: &str, name: &str) -> Result<ConsumerState> {
        let (context, stream, name) = (self.jetstream(), stream.to_owned(), name.to_owned());
        self.run(async move {
            let stream = context.get_stream(stream).await?;
            let mut consumer: consumer::PullConsumer =
                stream.get_consumer(&name).await.map_err(|e| anyhow!(e))?;
            let info = consumer.info().await?;
            anyhow::Ok(ConsumerState {
                pending: info.num_pending,
                ack_pending: info.num_ack_pending,
                redelivered: info.num_redelivered,
            })
        })?
    }
}

impl Client {
    /// Asks JetStream's own API, e.g. `STREAM.DELETE.caf-stream`; what an operator's tool would do.
    ///
    /// # Errors
    /// When the server is away, or answers with an error.
    pub fn jetstream_api(&self, request: &str, body: &Value) -> Result<Value> {
        let nats = self.nats();
        let (subject, body) = (format!("$JS.API.{request}"), body.to_string());
        let answer = self.run(async move { nats.request(subject, body.into()).await })??;
        let answer: Value = serde_json::from_slice(&answer.payload)?;
        match answer.get("error") {
            Some(error) => Err(anyhow!("{request}: {error}")),
            None => Ok(answer),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic over there has failed the operation that it belonged to.
            let _ = thread.join();
        }
    }
}

fn is_not_found(error: &jetstream::context::GetStreamError) -> bool {
    use jetstream::context::GetStreamErrorKind;
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND)
}

fn run_on<T: Send + 'static>(handle: &Handle, future: impl Future<Output = T> + Send + 'static) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    handle.spawn(async move {
        // Nobody listens any more when the wait was given up.
        let _ = sender.send(future.await);
    });
    receiver
        .recv_timeout(PATIENCE)
        .map_err(|_| anyhow!("the nats-server did not answer within {PATIENCE:?}"))
}

/// Messages collected so far; grows while the test goes on.
#[derive(Debug, Clone, Default)]
pub struct Collector {
    messages: Arc<Mutex<Vec<Message>>>,
}

/// How often an assignment was answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answers {
    /// Acknowledgements.
    pub acks: usize,
    /// Results.
    pub results: usize,
    /// Dead letters.
    pub dead_letters: usize,
}

impl Collector {
    /// What was read elsewhere, e.g. by [`Client::stream_messages`], to be counted and judged here.
    pub fn of(messages: Vec<Message>) -> Self {
        Self {
            messages: Arc::new(Mutex::new(messages)),
        }
    }

    /// Every message, in the order of arrival.
    pub fn messages(&self) -> Vec<Message> {
        self.messages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Number of messages.
    pub fn len(&self) -> usize {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing has arrived.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Payloads of one subject.
    pub fn on(&self, subject: &str) -> Vec<Value> {
        let of_subject = self
            .messages()
            .into_iter()
            .filter(|message| message.subject == subject);
        of_subject.map(|message| message.json()).collect()
    }

    /// Acknowledgements of an assignment.
    pub fn acks(&self, assignment_id: &str) -> Vec<Value> {
        self.answers_on(ACK, assignment_id)
    }

    /// Results of an assignment.
    pub fn results(&self, assignment_id: &str) -> Vec<Value> {
        self.answers_on(RESULT, assignment_id)
    }

    /// Dead letters of an assignment.
    pub fn dead_letters(&self, assignment_id: &str) -> Vec<Value> {
        self.answers_on(DLQ, assignment_id)
    }

    fn answers_on(&self, subject: &str, assignment_id: &str) -> Vec<Value> {
        let mut answers = self.on(subject);
        answers.retain(|answer| answer["assignment_id"] == assignment_id);
        answers
    }

    /// How often each assignment was answered; answers without an id count under the empty one.
    pub fn counts(&self) -> BTreeMap<String, Answers> {
        let mut counts: BTreeMap<String, Answers> = BTreeMap::new();
        for message in self.messages() {
            let id = message.json()["assignment_id"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let answers = counts.entry(id).or_default();
            match message.subject.as_str() {
                ACK => answers.acks += 1,
                RESULT => answers.results += 1,
                DLQ => answers.dead_letters += 1,
                _ => {}
            }
        }
        counts
    }

    /// Waits for the first result of an assignment.
    ///
    /// # Errors
    /// When none arrives `within` that time.
    pub fn wait_for_result(&self, assignment_id: &str, within: Duration) -> Result<Value> {
        poll(within, || self.results(assignment_id).into_iter().next())
            .with_context(|| format!("no result of {assignment_id} within {within:?}"))
    }

    /// Waits until at least this many messages have arrived on a subject.
    ///
    /// # Errors
    /// When fewer arrive `within` that time; then with their number.
    pub fn wait_for(&self, subject: &str, count: usize, within: Duration) -> Result<()> {
        let arrived = || {
            let messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
            messages
                .iter()
                .filter(|message| message.subject == subject)
                .count()
        };
        poll(within, || (arrived() >= count).then_some(()))
            .with_context(|| format!("{} of {count} messages on {subject} within {within:?}", arrived()))
    }

    /// Every reason for which the router, or our own stricter rules, would object to an acknowledgement, a result or
    /// a dead letter in here. A second copy of the same bytes is no reason: at-least-once sends them.
    pub fn objections(&self) -> Vec<String> {
        let mut router = RouterIntake::new();
        let mut first_copies: BTreeMap<(String, String), Vec<u8>> = BTreeMap::new();
        let mut objections = Vec::new();
        for message in self.messages() {
            let json = message.json();
            let verdict = match message.subject.as_str() {
                ACK => router.ack(&message.headers, &message.payload),
                RESULT => router.result(&message.headers, &message.payload),
                DLQ => Verdict::Accepted,
                _ => continue,
            };
            let key = (message.subject.clone(), json["assignment_id"].to_string());
            let first = first_copies.entry(key).or_insert_with(|| message.payload.clone());
            let repeated = verdict == Verdict::DuplicateDropped && *first == message.payload;
            if verdict != Verdict::Accepted && !repeated {
                objections.push(format!("{}: {}: {json}", message.subject, verdict.name()));
            }
            let faults = strict::faults(&json);
            objections.extend(
                faults
                    .iter()
                    .map(|fault| format!("{}: {fault}: {json}", message.subject)),
            );
        }
        objections
    }
}

/// Waits until the server has done what this connection told it. A flush alone only hands it to the socket: what another
/// connection publishes then may overtake a subscription.
async fn server_has_heard(nats: &async_nats::Client) -> Result<()> {
    let echo = nats.new_inbox();
    let mut heard = nats.subscribe(echo.clone()).await?;
    nats.publish(echo, "".into()).await?;
    nats.flush().await?;
    let heard = tokio::time::timeout(PATIENCE, heard.next()).await;
    heard
        .context("the server does not answer")?
        .context("the connection has ended")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn message(subject: &str, payload: &Value) -> Message {
        Message::of(subject, &HeaderMap::new(), payload.to_string().as_bytes())
    }

    #[test]
    fn answers_are_counted_by_assignment() {
        let collector = Collector::of(vec![
            message(ACK, &json!({"assignment_id": "a"})),
            message(RESULT, &json!({"assignment_id": "a"})),
            message(RESULT, &json!({"assignment_id": "a"})),
            message(DLQ, &json!({"assignment_id": "b"})),
        ]);
        let counts = collector.counts();
        assert_eq!(
            counts["a"],
            Answers {
                acks: 1,
                results: 2,
                dead_letters: 0
            }
        );
        assert_eq!(
            counts["b"],
            Answers {
                acks: 0,
                results: 0,
                dead_letters: 1
            }
        );
        assert_eq!(collector.results("a").len(), 2);
    }

    #[test]
    fn a_repeated_answer_is_fine_and_a_second_content_is_not() {
        let ack = |at: u64| json!({"version": "1", "assignment_id": "a", "tenant_id": "t", "status": "accepted", "acknowledged_at": at});
        let same = Collector::of(vec![message(ACK, &ack(1)), message(ACK, &ack(1))]);
        assert_eq!(same.objections(), Vec::<String>::new());
        let other = Collector::of(vec![message(ACK, &ack(1)), message(ACK, &ack(2))]);
        assert_eq!(other.objections().len(), 1);
        let no_number = Collector::of(vec![message(
            ACK,
            &json!({
                "version": "1", "assignment_id": "a", "tenant_id": "t", "status": "accepted", "acknowledged_at": "1",
            }),
        )]);
        assert_eq!(no_number.objections().len(), 1);
    }
}
