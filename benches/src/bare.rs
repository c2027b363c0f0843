//! The smallest honest worker that one can write with async-nats: what the node is compared with.
//!
//! Neighbours: the comparison starts it as a process of its own. It promises what a durable worker must: an assignment is
//! acknowledged to the broker only after its result is confirmed as stored. It has no flags, no log, no limits, no
//! renewal of leases, and dies of what it does not expect. One thread: a second costs more than it gives here.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, Message};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use crate::streams;
use crate::web::Caller;

/// Most results whose confirmation is waited for, and most messages pulled ahead: as many as the worker holds.
const UNCONFIRMED: usize = 1000;
/// Most messages of one pull, as the worker's.
const PULL_BATCH: usize = 256;

/// What it does.
#[derive(Debug, Clone)]
pub struct Bare {
    /// The broker.
    pub url: String,
    /// Plain queue subscription, at most once, in place of JetStream.
    pub core: bool,
    /// HTTP calls at once.
    pub calls: usize,
    /// Answers every n-th assignment not at all: to see whether it is noticed. 0: none.
    pub drop_every: usize,
    /// Answers every n-th assignment twice. 0: none.
    pub double_every: usize,
}

#[derive(Deserialize)]
struct Assignment<'a> {
    #[serde(borrow)]
    assignment_id: Cow<'a, str>,
    #[serde(borrow)]
    request_id: Cow<'a, str>,
    #[serde(borrow)]
    tenant_id: Cow<'a, str>,
    #[serde(borrow)]
    executor: Executor<'a>,
    #[serde(borrow)]
    job: Job<'a>,
    #[serde(borrow)]
    correlation: Correlation<'a>,
}

#[derive(Deserialize)]
struct Executor<'a> {
    #[serde(borrow)]
    provider_id: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Job<'a> {
    #[serde(borrow, rename = "type")]
    job_type: Cow<'a, str>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

#[derive(Deserialize)]
struct Correlation<'a> {
    #[serde(borrow)]
    trace_id: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Call<'a> {
    #[serde(borrow)]
    url: Cow<'a, str>,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow, default)]
    body: Cow<'a, str>,
}

#[derive(Serialize)]
struct Ack<'a> {
    version: &'static str,
    assignment_id: &'a str,
    request_id: &'a str,
    tenant_id: &'a str,
    status: &'static str,
    trace_id: &'a str,
    acknowledged_at: u64,
}

#[derive(Serialize)]
struct Answer<'a, Outputs> {
    version: &'static str,
    assignment_id: &'a str,
    request_id: &'a str,
    tenant_id: &'a str,
    status: &'static str,
    provider_id: &'a str,
    job: JobRef<'a>,
    latency_ms: u64,
    cost: f64,
    trace_id: &'a str,
    timestamp: u64,
    outputs: Outputs,
    retries_used: u32,
    metadata: Metadata,
}

#[derive(Serialize)]
struct JobRef<'a> {
    #[serde(rename = "type")]
    job_type: &'a str,
}

#[derive(Serialize)]
struct Metadata {
    worker_id: &'static str,
}

impl Bare {
    /// Works until the broker is gone.
    ///
    /// # Errors
    /// At anything that it does not expect.
    pub async fn run(self) -> Result<()> {
        let client = async_nats::connect(&self.url).await?;
        if self.core {
            self.work_core(client).await
        } else {
            self.work_durable(client).await
        }
    }

    async fn work_durable(&self, client: async_nats::Client) -> Result<()> {
        let jetstream = jetstream::new(client.clone());
        let stream = jetstream.get_stream(streams::STREAM).await?;
        let consumer = stream
            .get_or_create_consumer(streams::DURABLE, streams::consumer())
            .await?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(PULL_BATCH)
            .expires(Duration::from_secs(30))
            .heartbeat(Duration::from_secs(5))
            .messages()
            .await?;
        let (unconfirmed, confirmed) = mpsc::channel(UNCONFIRMED);
        let acknowledging = tokio::spawn(acknowledge(confirmed));
        ready();
        let caller = Caller::default();
        let calls = Arc::new(Semaphore::new(self.calls.max(1)));
        let mut messages = messages;
        let mut number = 0;
        while let Some(message) = messages.next().await {
            let message = message?;
            number += 1;
            let times = self.times(number);
            let payload = message.payload.clone();
            let assignment: Assignment = serde_json::from_slice(&payload)?;
            accept(&client, &assignment).await?;
            if assignment.job.job_type != "http.request" {
                let answer = answered(&assignment, assignment.job.payload, Instant::now())?;
                let result = (assignment.headers("result"), answer);
                send(&jetstream, result, times, message, &unconfirmed).await?;
                continue;
            }
            let permit = Arc::clone(&calls).acquire_owned().await?;
            let (jetstream, unconfirmed, caller) = (jetstream.clone(), unconfirmed.clone(), caller.clone());
            tokio::spawn(async move {
                let sent = async {
                    let result = called(&payload, &caller).await?;
                    drop(permit);
                    send(&jetstream, result, times, message, &unconfirmed).await
                };
                if let Err(error) = sent.await {
                    eprintln!("bare loop: {error:#}");
                }
            });
        }
        drop(unconfirmed);
        acknowledging.await?
    }

    async fn work_core(&self, client: async_nats::Client) -> Result<()> {
        let mut messages = client
            .queue_subscribe(streams::ASSIGN, streams::DURABLE.to_owned())
            .await?;
        client.flush().await?;
        ready();
        let mut number = 0;
        while let Some(message) = messages.next().await {
            number += 1;
            let assignment: Assignment = serde_json::from_slice(&message.payload)?;
            accept(&client, &assignment).await?;
            let answer = answered(&assignment, assignment.job.payload, Instant::now())?;
            for _ in 0..self.times(number) {
                client
                    .publish_with_headers(streams::RESULT, assignment.headers("result"), answer.clone())
                    .await?;
            }
        }
        Ok(())
    }

    /// How often the assignment with this number, from 1 on, is answered.
    fn times(&self, number: usize) -> usize {
        let nth = |every: usize| every > 0 && number.is_multiple_of(every);
        match (nth(self.drop_every), nth(self.double_every)) {
            (true, _) => 0,
            (false, true) => 2,
            (false, false) => 1,
        }
    }
}

impl Assignment<'_> {
    fn headers(&self, kind: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("{}.{kind}", self.assignment_id));
        headers.insert("trace_id", self.trace_id());
        headers.insert("tenant_id", &*self.tenant_id);
        headers.insert("version", "1");
        headers
    }

    fn trace_id(&self) -> &str {
        &self.correlation.trace_id
    }
}

async fn accept(client: &async_nats::Client, assignment: &Assignment<'_>) -> Result<()> {
    let ack = Ack {
        version: "1",
        assignment_id: &assignment.assignment_id,
        request_id: &assignment.request_id,
        tenant_id: &assignment.tenant_id,
        status: "accepted",
        trace_id: assignment.trace_id(),
        acknowledged_at: now_ms(),
    };
    let payload = serde_json::to_vec(&ack)?.into();
    Ok(client
        .publish_with_headers(streams::ACK, assignment.headers("ack"), payload)
        .await?)
}

fn answered(assignment: &Assignment<'_>, outputs: impl Serialize, since: Instant) -> Result<Bytes> {
    let answer = Answer {
        version: "1",
        assignment_id: &assignment.assignment_id,
        request_id: &assignment.request_id,
        tenant_id: &assignment.tenant_id,
        status: "success",
        provider_id: &assignment.executor.provider_id,
        job: JobRef {
            job_type: &assignment.job.job_type,
        },
        latency_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
        cost: 0.0,
        trace_id: assignment.trace_id(),
        timestamp: now_ms(),
        outputs,
        retries_used: 0,
        metadata: Metadata { worker_id: "bare" },
    };
    Ok(serde_json::to_vec(&answer)?.into())
}

/// Does the call of an http.request, and renders the result.
async fn called(payload: &[u8], caller: &Caller) -> Result<(HeaderMap, Bytes)> {
    let since = Instant::now();
    let assignment: Assignment = serde_json::from_slice(payload)?;
    let call: Call = serde_json::from_str(assignment.job.payload.get())?;
    let body = Bytes::copy_from_slice(call.body.as_bytes());
    let (status_code, headers, body) = caller.call(&call.method, &call.url, body).await?;
    let headers: serde_json::Map<String, Value> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let latency_ms = since.elapsed().as_millis();
    let outputs = json!({
        "status_code": status_code,
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
        "latency_ms": u64::try_from(latency_ms).unwrap_or(u64::MAX),
    });
    Ok((
        assignment.headers("result"),
        answered(&assignment, outputs, since)?,
    ))
}

/// A message whose result is on its way; several when a fault is rehearsed, none when it is dropped.
type Unconfirmed = (Vec<PublishAckFuture>, Message);

async fn send(
    jetstream: &jetstream::Context,
    (headers, answer): (HeaderMap, Bytes),
    times: usize,
    message: Message,
    unconfirmed: &mpsc::Sender<Unconfirmed>,
) -> Result<()> {
    let mut confirmations = Vec::with_capacity(times);
    for _ in 0..times {
        let publish = PublishMessage::build()
            .payload(answer.clone())
            .headers(headers.clone());
        confirmations.push(jetstream.send_publish(streams::RESULT, publish).await?);
    }
    unconfirmed
        .send((confirmations, message))
        .await
        .context("nobody acknowledges any more")
}

/// Acknowledges each message when its result is confirmed, in any order.
async fn acknowledge(messages: mpsc::Receiver<Unconfirmed>) -> Result<()> {
    let messages = stream::unfold(messages, |mut messages| async {
        messages.recv().await.map(|next| (next, messages))
    });
    let confirmed = messages.map(|(confirmations, message)| async move {
        for confirmation in confirmations {
            confirmation.await?;
        }
        message.ack().await.map_err(|error| anyhow::anyhow!(error))
    });
    let mut confirmed = std::pin::pin!(confirmed.buffered(UNCONFIRMED));
    while let Some(acknowledged) = confirmed.next().await {
        acknowledged?;
    }
    Ok(())
}

/// Tells whoever started it.
fn ready() {
    println!("ready");
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
