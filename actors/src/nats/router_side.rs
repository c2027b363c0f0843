//! Speaks as the router does: sends assignments and listens to what comes back. For `caf-worker submit`.
//!
//! Neighbours: the command uses it; the worker's own stations never do.

use std::time::Duration;

use async_nats::client::PublishErrorKind;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::context::GetStreamByNameErrorKind;
use async_nats::jetstream::{self, stream::Stream};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, PollNext};
use tokio::sync::{mpsc, watch};

use super::connection::{ConnectError, Connection, Link, connect};
use super::headers_of;
use crate::events::Log;
use crate::settings::{NatsMode, NatsSettings};
use crate::sink::Outgoing;

/// Answers read ahead of whoever prints them.
const ANSWERS_AHEAD: usize = 256;
/// Pause before the stream is read again.
const REREAD_WAIT: Duration = Duration::from_millis(200);

/// A connection that plays the router.
pub struct RouterSide {
    connection: Connection,
    settings: NatsSettings,
}

/// Reads a stream from sequence `next` on, again and again after the broker was away, until nobody listens.
async fn read_stream(
    stream: Stream,
    filter: Vec<String>,
    mut next: u64,
    mut link: watch::Receiver<Link>,
    answers: mpsc::Sender<Outgoing>,
) {
    while !answers.is_closed() {
        let generation = link.borrow_and_update().generation;
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: next },
            filter_subjects: filter.clone(),
            ..OrderedConfig::default()
        };
        let reader = async { stream.create_consumer(config).await.ok()?.messages().await.ok() };
        if let Some(mut messages) = reader.await {
            loop {
                let message = tokio::select! {
                    message = messages.next() => message,
                    // The server has forgotten this reader.
                    _ = link.wait_for(|link| link.generation != generation) => break,
                };
                let Some(Ok(message)) = message else { break };
                next = message.info().map_or(next, |info| info.stream_sequence + 1);
                if answers.send(outgoing(&message)).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(REREAD_WAIT).await;
    }
}

fn outgoing(message: &async_nats::Message) -> Outgoing {
    Outgoing {
        subject: message.subject.to_string(),
        headers: headers_of(message.headers.as_ref()),
        payload: message.payload.clone(),
    }
}

fn broken(error: impl ToString) -> RouterSideError {
    RouterSideError::Broken(error.to_string())
}

/// Why it does not work.
#[derive(Debug, thiserror::Error)]
pub enum RouterSideError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The assignment is larger than the server takes; others may fit.
    #[error("larger than the largest message that the server takes")]
    TooLarge,
    /// The connection broke.
    #[error("nats: {0}")]
    Broken(String),
}

impl RouterSide {
    /// Connects.
    ///
    /// # Errors
    /// When the server cannot be reached within `nats.connect_deadline_ms`.
    pub async fn connect(settings: &NatsSettings, log: &Log) -> Result<Self, RouterSideError> {
        let connection = connect(settings, "submit", log, |_| {}).await?;
        Ok(Self {
            connection,
            settings: settings.clone(),
        })
    }

    /// Every acknowledgement and result from now on, some of them twice: as they pass by, and from the stream that stores
    /// them if there is one. The first shows what a stream drops because it had it before, the second what passed by
    /// while the broker was away.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn answers(&self) -> Result<mpsc::Receiver<Outgoing>, RouterSideError> {
        let subjects = &self.settings.subjects;
        let jetstream = jetstream::new(self.connection.client.clone());
        let (answers, receiver) = mpsc::channel(ANSWERS_AHEAD);
        let stored = (
            jetstream.stream_by_subject(subjects.result.as_str()).await,
            jetstream.stream_by_subject(subjects.ack.as_str()).await,
        );
        if let (Ok(results), Ok(acks)) = stored
            && results == acks
            && let Ok(stream) = jetstream.get_stream(&results).await
        {
            let next = stream.cached_info().state.last_sequence + 1;
            let filter = vec![subjects.ack.clone(), subjects.result.clone()];
            let link = self.connection.link.clone();
            tokio::spawn(read_stream(stream, filter, next, link, answers.clone()));
        }
        let client = &self.connection.client;
        let acks = client.subscribe(subjects.ack.clone()).await.map_err(broken)?;
        let results = client.subscribe(subjects.result.clone()).await.map_err(broken)?;
        // Nothing may be sent before the server knows what we listen to.
        client.flush().await.map_err(broken)?;
        tokio::spawn(async move {
            // An acknowledgement is sent before its result; it must not be overtaken here, or the last one is missed.
            let mut both = stream::select_with_strategy(acks, results, |(): &mut ()| PollNext::Left);
            while let Some(message) = both.next().await {
                if answers.send(outgoing(&message)).await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    /// Whether it is certain that no stream keeps what is sent: JetStream is meant to be used, answers, and knows none.
    /// Somebody may listen all the same.
    pub async fn is_stored_by_nobody(&self) -> bool {
        let subject = self.settings.subjects.assign.as_str();
        let jetstream = jetstream::new(self.connection.client.clone());
        self.settings.mode == NatsMode::Jetstream
            && jetstream
                .stream_by_subject(subject)
                .await
                .is_err_and(|error| error.kind() == GetStreamByNameErrorKind::NotFound)
    }

    /// Sends one assignment, as the router does: without headers.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn submit(&self, payload: Bytes) -> Result<(), RouterSideError> {
        let client = &self.connection.client;
        let subject = self.settings.subjects.assign.clone();
        client
            .publish(subject, payload)
            .await
            .map_err(|error| match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => RouterSideError::TooLarge,
                _ => broken(error),
            })
    }

    /// Waits until the server has everything that was sent.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn flush(&self) -> Result<(), RouterSideError> {
        self.connection.client.flush().await.map_err(broken)
    }
}
