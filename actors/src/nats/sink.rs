//! Publishes to NATS, once per call, and says whether the message was stored.
//!
//! Neighbours: the publisher calls it and tries again. Nothing is sent while the broker is away or a stream of ours is
//! missing: what the client library buffered would arrive a second time, and what nobody stores would be lost.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, Context};
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::buckets::ensure_claims_bucket;
use super::connection::{Connection, delay};
use super::header_map;
use super::streams::{AnswerStreams, StreamError, restore_answer_streams};
use crate::clock::whole_ms;
use crate::errors::chain;
use crate::events::{self, Log};
use crate::lease::LeaseToken;
use crate::settings::{IdempotencySettings, NatsSettings};
use crate::sink::{Outgoing, PublishError, Published, Sink, Verdict};

/// How the server words that a message is larger than its stream takes (error 10054).
const TOO_LARGE_FOR_STREAM: &str = "10054";

/// The sink of a connected worker.
pub struct NatsSink(Arc<Line>);

/// What every publish uses.
struct Line {
    connection: Connection,
    jetstream: Context,
    stored: Arc<HashSet<String>>,
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
        let stored: Arc<HashSet<String>> = Arc::new(streams.subjects.into_iter().collect());
        let stream_lost = Arc::new(Notify::new());
        let gate = Gate {
            connection: connection.clone(),
            jetstream: jetstream.clone(),
            settings: settings.clone(),
            stored: Arc::clone(&stored),
            bucket,
            stream_lost: Arc::clone(&stream_lost),
            opened,
            log: log.clone(),
        };
        tokio::spawn(gate.keep());
        Self(Arc::new(Line {
            connection,
            jetstream,
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

    /// What else is stored on this connection waits for the same gate, and tells of the same loss.
    pub(super) fn gate(&self) -> (Connection, watch::Receiver<bool>, Arc<Notify>) {
        (
            self.0.connection.clone(),
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
    stored: Arc<HashSet<String>>,
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

async fn publish_stored(
    jetstream: &Context,
    (subject, headers, payload): Parts,
    stream_lost: &Notify,
) -> Result<Published, PublishError> {
    let publish = PublishMessage::build().payload(payload).headers(headers);
    let sort = |error: async_nats::jetstream::context::PublishError| match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => PublishError::Refused(chain(&error)),
        // A plain subscriber takes the place of the missing answer "nobody listens" when a stream is lost: then nothing
        // answers at all.
        PublishErrorKind::StreamNotFound | PublishErrorKind::TimedOut => {
            stream_lost.notify_one();
            PublishError::Unconfirmed(chain(&error))
        }
        _ if chain(&error).contains(TOO_LARGE_FOR_STREAM) => PublishError::Refused(chain(&error)),
        _ => PublishError::Unconfirmed(chain(&error)),
    };
    let stored = jetstream
        .send_publish(subject, publish)
        .await
        .map_err(sort)?
        .await
        .map_err(sort)?;
    Ok(Published {
        position: Some((stored.stream, stored.sequence)),
        known_before: stored.duplicate,
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
        let stored = line.stored.contains(&message.subject);
        let parts = (
            Subject::from(&*message.subject),
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
            let attempt = async {
                if stored {
                    publish_stored(&line.jetstream, parts, &line.stream_lost).await
                } else {
                    publish_plain(&line.connection.client, parts).await
                }
            };
            timeout(line.limit, attempt)
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
