//! Publishes to NATS, once per call, and says whether the message was stored.
//!
//! Neighbours: the publisher calls it and tries again. Nothing is sent while the broker is away or its streams do not
//! answer: what the client library buffered would arrive a second time.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, Context};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::timeout;

use super::connection::{Connection, delay};
use super::header_map;
use crate::errors::chain;
use crate::lease::LeaseToken;
use crate::settings::NatsSettings;
use crate::sink::{Outgoing, PublishError, Sink, Verdict};

/// The sink of a connected worker.
pub struct NatsSink {
    connection: Connection,
    jetstream: Context,
    stored: Arc<HashSet<String>>,
    /// Whether publishing can succeed now.
    open: watch::Receiver<bool>,
    limit: Duration,
}

impl NatsSink {
    /// `stored` are the subjects that a stream stores; publishing on others is not confirmed. Spawns a task on this
    /// runtime that watches for the broker's return.
    pub fn new(connection: Connection, settings: &NatsSettings, stored: Vec<String>) -> Self {
        let limit = Duration::from_millis(settings.request_timeout_ms);
        let mut jetstream = jetstream::new(connection.client.clone());
        jetstream.set_timeout(limit);
        let (opened, open) = watch::channel(true);
        let probe = stored.first().cloned();
        tokio::spawn(watch_gate(connection.clone(), jetstream.clone(), probe, opened));
        Self {
            connection,
            jetstream,
            stored: Arc::new(stored.into_iter().collect()),
            open,
            limit,
        }
    }
}

/// Keeps the gate shut from a broken connection until the streams answer again: a server that has just started takes
/// messages before it can store them.
async fn watch_gate(
    connection: Connection,
    jetstream: Context,
    probe: Option<String>,
    opened: watch::Sender<bool>,
) {
    let mut link = connection.link.clone();
    loop {
        let up = link.borrow_and_update().up;
        opened.send_replace(false);
        if up {
            for attempt in 0.. {
                let answered = match &probe {
                    Some(subject) => jetstream.stream_by_subject(subject.as_str()).await.is_ok(),
                    None => true,
                };
                if answered {
                    opened.send_replace(true);
                    break;
                }
                if !link.borrow().up {
                    break;
                }
                tokio::time::sleep(delay(attempt)).await;
            }
        }
        let alive = tokio::select! {
            changed = link.changed() => changed.is_ok(),
            () = opened.closed() => false,
        };
        if !alive {
            return;
        }
    }
}

fn unconfirmed(error: impl ToString) -> PublishError {
    PublishError::Unconfirmed(error.to_string())
}

async fn publish_stored(jetstream: Context, message: Outgoing) -> Result<(), PublishError> {
    let publish = PublishMessage::build()
        .payload(message.payload)
        .headers(header_map(&message.headers));
    let sort = |error: async_nats::jetstream::context::PublishError| match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => PublishError::Refused(chain(&error)),
        _ => PublishError::Unconfirmed(chain(&error)),
    };
    // `duplicate: true` in the answer counts as stored: an earlier copy is.
    jetstream
        .send_publish(message.subject, publish)
        .await
        .map_err(sort)?
        .await
        .map_err(sort)?;
    Ok(())
}

async fn publish_plain(client: async_nats::Client, message: Outgoing) -> Result<(), PublishError> {
    use async_nats::client::PublishErrorKind as Kind;
    let sort = |error: async_nats::client::PublishError| match error.kind() {
        Kind::MaxPayloadExceeded => PublishError::Refused(chain(&error)),
        _ => PublishError::Unconfirmed(chain(&error)),
    };
    client
        .publish_with_headers(message.subject, header_map(&message.headers), message.payload)
        .await
        .map_err(sort)?;
    // Handed over when the server has answered the flush.
    client.flush().await.map_err(unconfirmed)
}

impl Sink for NatsSink {
    fn publish(&self, message: &Outgoing) -> BoxFuture<'static, Result<(), PublishError>> {
        let message = message.clone();
        let stored = self.stored.contains(&message.subject);
        let (client, jetstream) = (self.connection.client.clone(), self.jetstream.clone());
        let (mut open, limit) = (self.open.clone(), self.limit);
        async move {
            match timeout(limit, open.wait_for(|open| *open)).await {
                Ok(Ok(_)) => {}
                _ => return Err(unconfirmed("the broker is away")),
            }
            let attempt = async {
                if stored {
                    publish_stored(jetstream, message).await
                } else {
                    publish_plain(client, message).await
                }
            };
            timeout(limit, attempt)
                .await
                .unwrap_or_else(|_| Err(unconfirmed("no confirmation in time")))
        }
        .boxed()
    }

    fn settle(&self, token: LeaseToken, verdict: Verdict) -> BoxFuture<'static, ()> {
        let (client, limit) = (self.connection.client.clone(), self.limit);
        async move {
            let _ = timeout(
                limit,
                client.publish(token.to_string(), verdict_body(verdict).into()),
            )
            .await;
        }
        .boxed()
    }

    fn max_message_bytes(&self) -> usize {
        self.connection.client.max_payload()
    }
}

/// A verdict in JetStream's words.
pub(super) fn verdict_body(verdict: Verdict) -> String {
    match verdict {
        Verdict::Ack => "+ACK".to_owned(),
        Verdict::Nak { delay_ms } => format!("-NAK {{\"delay\": {}}}", delay_ms * 1_000_000),
        Verdict::InProgress => "+WPI".to_owned(),
    }
}
