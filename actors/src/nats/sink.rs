//! Publishes to NATS, once per call, and says whether the message was stored.
//!
//! Neighbours: the publisher calls it and tries again. Nothing is sent while the broker is away or a stream of ours is
//! missing: what the client library buffered would arrive a second time, and what nobody stores would be lost.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::buckets::ensure_claims_bucket;
use super::confirmations::{Confirmations, NotStored};
use super::connection::{Connection, delay};
use super::header_map;
use super::streams::{AnswerStreams, StreamError, restore_answer_streams};
use crate::clock::whole_ms;
use crate::errors::chain;
use crate::events::{self, Log};
use crate::lease::LeaseToken;
use crate::settings::{IdempotencySettings, NatsSettings};
use crate::sink::{Outgoing, PublishError, Published, Sink, Verdict};

/// A message is larger than its stream takes.
const TOO_LARGE_FOR_STREAM: ErrorCode = ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM;

/// The sink of a connected worker.
pub struct NatsSink(Arc<Line>);

/// What every publish uses.
struct Line {
    connection: Connection,
    confirmations: Confirmations,
    /// What a stream of ours stores, by subject.
    stored: HashMap<String, Subject>,
    /// Largest message that every stream of ours takes, in bytes.
    stream_max_bytes: usize,
    /// Whether publishing can succeed now.
    open: watch::Receiver<bool>,
    /// Told when a stream turns out to be missing.
    stream_lost: Arc<Notify>,
    limit: Duration,
}

impl NatsSink {
    /// `streams` store what is confirmed; publishing on other subjects is not. `bucket` is made again when it is lost, as
    /// the streams are. Spawns a task on this runtime that watches for the broker's return and for the loss of a stream.
    pub fn new(
        connection: Connection,
        settings: &NatsSettings,
        streams: AnswerStreams,
        bucket: Option<IdempotencySettings>,
        log: &Log,
    ) -> Self {
        let limit = Duration::from_millis(settings.request_timeout_ms);
        let mut jetstream = jetstream::new(connection.client.clone());
        jetstream.set_timeout(limit);
        let (opened, open) = watch::channel(true);
        let with_subject = |subject: &String| (subject.clone(), Subject::from(&**subject));
        let stored = streams.subjects.iter().map(with_subject).collect();
        let stream_lost = Arc::new(Notify::new());
        let gate = Gate {
            connection: connection.clone(),
            jetstream,
            settings: settings.clone(),
            stored: streams.subjects.into_iter().collect(),
            bucket,
            stream_lost: Arc::clone(&stream_lost),
            opened,
            log: log.clone(),
        };
        tokio::spawn(gate.keep());
        Self(Arc::new(Line {
            confirmations: Confirmations::new(&connection, limit),
            connection,
            stored,
            stream_max_bytes: streams.max_message_bytes,
            open,
            stream_lost,
            limit,
        }))
    }
}

impl NatsSink {
    /// Whether the broker is there and, as far as is known, every stream that answers are stored in.
    pub fn is_open(&self) -> watch::Receiver<bool> {
        self.0.open.clone()
    }

    /// What else is stored on this connection is confirmed in the same way, waits for the same gate, and tells of the same
    /// loss.
    pub(super) fn gate(&self) -> (Connection, Confirmations, watch::Receiver<bool>, Arc<Notify>) {
        (
            self.0.connection.clone(),
            self.0.confirmations.clone(),
            self.0.open.clone(),
            Arc::clone(&self.0.stream_lost),
        )
    }
}

/// Keeps publishing shut from a broken connection or a lost stream until the streams are there (again): a server that
/// has just started takes messages before it can store them.
struct Gate {
    connection: Connection,
    jetstream: Context,
    settings: NatsSettings,
    stored: HashSet<String>,
    bucket: Option<IdempotencySettings>,
    stream_lost: Arc<Notify>,
    opened: watch::Sender<bool>,
    log: Log,
}

impl Gate {
    async fn keep(self) {
        let mut link = self.connection.link.clone();
        loop {
            let up = link.borrow_and_update().up;
            self.opened.send_replace(false);
            if up && self.restore_streams().await {
                self.opened.send_replace(true);
            }
            let alive = tokio::select! {
                changed = link.changed() => changed.is_ok(),
                () = self.stream_lost.notified() => true,
                () = self.opened.closed() => false,
            };
            if !alive {
                return;
            }
        }
    }

    async fn try_to_restore(&self) -> Result<(), StreamError> {
        restore_answer_streams(&self.jetstream, &self.settings, &self.stored, &self.log).await?;
        if let Some(bucket) = &self.bucket {
            ensure_claims_bucket(&self.jetstream, &self.settings, bucket, &self.log).await?;
        }
        Ok(())
    }

    /// Tries until the streams are there; false when the connection broke meanwhile.
    async fn restore_streams(&self) -> bool {
        for attempt in 0.. {
            let Err(error) = self.try_to_restore().await else {
                break;
            };
            if !self.connection.link.borrow().up {
                return false;
            }
            let wait = delay(attempt);
            // A server that has just started needs a moment; after that, one line every few seconds.
            if attempt % 10 == 5 {
                let wait_ms = whole_ms(wait);
                self.log
                    .emit(events::answers_not_stored(&error.to_string(), wait_ms));
            }
            tokio::time::sleep(wait).await;
        }
        true
    }
}

fn unconfirmed(error: impl ToString) -> PublishError {
    PublishError::Unconfirmed(error.to_string())
}

/// A message as the client takes it.
type Parts = (Subject, HeaderMap, Bytes);

async fn publish_stored(line: &Line, (subject, headers, payload): Parts) -> Result<Published, PublishError> {
    let stored = line.confirmations.publish(subject, headers, payload).await;
    let stored = stored.map_err(|error| match &error {
        NotStored::TooLarge(_) => PublishError::Refused(error.to_string()),
        NotStored::Refused { code, .. } if *code == TOO_LARGE_FOR_STREAM.0 => {
            PublishError::Refused(error.to_string())
        }
        // A plain subscriber takes the place of the missing answer "nobody listens" when a stream is lost: then nothing
        // answers at all.
        NotStored::NoStream | NotStored::Silent => {
            line.stream_lost.notify_one();
            unconfirmed(error)
        }
        NotStored::Refused { .. } | NotStored::CutOff | NotStored::Other(_) => unconfirmed(error),
    })?;
    Ok(Published {
        position: Some((stored.stream, stored.sequence)),
        known_before: stored.known_before,
    })
}

async fn publish_plain(
    client: &async_nats::Client,
    (subject, headers, payload): Parts,
) -> Result<Published, PublishError> {
    use async_nats::client::PublishErrorKind as Kind;
    let sort = |error: async_nats::client::PublishError| match error.kind() {
        Kind::MaxPayloadExceeded => PublishError::Refused(chain(&error)),
        _ => PublishError::Unconfirmed(chain(&error)),
    };
    client
        .publish_with_headers(subject, headers, payload)
        .await
        .map_err(sort)?;
    // Handed over when the server has answered the flush.
    client.flush().await.map_err(unconfirmed)?;
    Ok(Published::default())
}

impl Sink for NatsSink {
    fn publish(&self, message: &Outgoing) -> BoxFuture<'static, Result<Published, PublishError>> {
        let line = Arc::clone(&self.0);
        let stored = line.stored.get(&message.subject).cloned();
        let is_stored = stored.is_some();
        let parts = (
            stored.unwrap_or_else(|| Subject::from(&*message.subject)),
            header_map(&message.headers),
            message.payload.clone(),
        );
        async move {
            // Whoever had to wait may have lost the right to publish meanwhile, and asks again.
            let was_open = *line.open.borrow();
            if !was_open {
                let _ = timeout(line.limit, line.open.clone().wait_for(|open| *open)).await;
                return Err(unconfirmed("the broker or a stream was away"));
            }
            if is_stored {
                return publish_stored(&line, parts).await;
            }
            timeout(line.limit, publish_plain(&line.connection.client, parts))
                .await
                .unwrap_or_else(|_| Err(unconfirmed("no confirmation in time")))
        }
        .boxed()
    }

    fn settle(&self, token: LeaseToken, verdict: Verdict) -> BoxFuture<'static, ()> {
        let line = Arc::clone(&self.0);
        async move {
            let client = &line.connection.client;
            let told = client.publish(Subject::from(&*token), verdict_body(verdict));
            let _ = timeout(line.limit, told).await;
        }
        .boxed()
    }

    fn max_message_bytes(&self) -> usize {
        self.0
            .connection
            .client
            .max_payload()
            .min(self.0.stream_max_bytes)
    }
}

/// A verdict in JetStream's words.
pub(super) fn verdict_body(verdict: Verdict) -> Bytes {
    match verdict {
        Verdict::Ack => Bytes::from_static(b"+ACK"),
        Verdict::Nak { delay_ms } => format!("-NAK {{\"delay\": {}}}", delay_ms * 1_000_000).into(),
        Verdict::InProgress => Bytes::from_static(b"+WPI"),
    }
}
