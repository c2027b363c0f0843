//! Reads the stream of dead letters and sends assignments again. For `caf-worker dlq`.
//!
//! Neighbours: the command uses it; the worker's own stations never do. Takes nothing away and leaves no consumer
//! behind: letters are read through an ordered consumer that the server forgets, or one by one.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::context::{GetStreamByNameErrorKind, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::timeout;

use super::connection::{ConnectError, Connection, connect};
use super::header_map;
use super::replays::{Replays, ReplaysError};
use crate::errors::chain;
use crate::events::Log;
use crate::settings::NatsSettings;
use crate::sink::{Outgoing, Published};

/// The stream of dead letters, and the way back to the workers.
pub struct DeadLetters {
    connection: Connection,
    jetstream: Context,
    stream: Stream,
    settings: NatsSettings,
}

/// A letter as the stream has it.
#[derive(Debug, Clone)]
pub struct StoredLetter {
    /// Its sequence in the stream of dead letters.
    pub sequence: u64,
    /// When it was stored.
    pub stored_at: SystemTime,
    /// Its bytes.
    pub payload: Bytes,
}

/// Which letters are read. Sequences and times only narrow what is transferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// All after this sequence; 0 is all.
    After(u64),
    /// All stored at this time or later.
    Since(SystemTime),
}

/// Why it does not work.
#[derive(Debug, thiserror::Error)]
pub enum DeadLettersError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Nothing keeps dead letters.
    #[error("no stream stores {0}: has a worker been here, and is JetStream enabled?")]
    NoStream(String),
    /// Larger than the server takes; others may fit.
    #[error("larger than the largest message that the server takes")]
    TooLarge,
    /// It cannot be remembered which letters were replayed.
    #[error(transparent)]
    Replays(#[from] ReplaysError),
    /// The broker did not do what it was asked to.
    #[error("{what}: {why}")]
    Broken {
        /// What was tried.
        what: &'static str,
        /// What came back.
        why: String,
    },
}

fn broken(what: &'static str) -> impl Fn(&dyn std::error::Error) -> DeadLettersError {
    move |error| DeadLettersError::Broken {
        what,
        why: chain(error),
    }
}

impl DeadLetters {
    /// Connects and finds the stream that covers `nats.subjects.dlq`.
    ///
    /// # Errors
    /// When the server cannot be reached within `nats.connect_deadline_ms`, or nothing keeps dead letters.
    pub async fn connect(settings: &NatsSettings, log: &Log) -> Result<Self, DeadLettersError> {
        let connection = connect(settings, "dlq", log, |_| {}).await?;
        let mut jetstream = jetstream::new(connection.client.clone());
        jetstream.set_timeout(Duration::from_millis(settings.request_timeout_ms));
        let subject = &settings.subjects.dlq;
        let Some(name) = covering(&jetstream, subject).await? else {
            return Err(DeadLettersError::NoStream(subject.clone()));
        };
        let stream = jetstream.get_stream(&name).await;
        let stream = stream.map_err(|error| broken("reading the stream of dead letters")(&error))?;
        Ok(Self {
            connection,
            jetstream,
            stream,
            settings: settings.clone(),
        })
    }

    /// Name of the stream of dead letters.
    pub fn stream(&self) -> &str {
        &self.stream.cached_info().config.name
    }

    /// What is remembered of the replays of these letters. Without `may_make` a missing bucket is as an empty one.
    ///
    /// # Errors
    /// When the bucket cannot be read, or is missing and must not or cannot be made.
    pub async fn replays(&self, may_make: bool) -> Result<Replays, DeadLettersError> {
        let info = self.stream.cached_info();
        let created_ns = i64::try_from(info.created.unix_timestamp_nanos()).unwrap_or(i64::MAX);
        let stream = (info.config.name.as_str(), created_ns);
        Ok(Replays::open(&self.jetstream, &self.settings, stream, may_make).await?)
    }

    /// The stream had no letter below this sequence when it was found.
    pub fn first_sequence(&self) -> u64 {
        self.stream.cached_info().state.first_sequence
    }

    /// Whether a stream keeps assignments, so that sending one is confirmed and a second copy is dropped.
    ///
    /// # Errors
    /// When the broker does not say.
    pub async fn assignments_are_stored(&self) -> Result<bool, DeadLettersError> {
        let stream = covering(&self.jetstream, &self.settings.subjects.assign).await?;
        Ok(stream.is_some())
    }

    /// Gives every letter that was there when it began to `each`, oldest first.
    ///
    /// # Errors
    /// When the broker goes away, or its stream cannot be read by a consumer beside others.
    pub async fn read(
        &self,
        from: ReadFrom,
        mut each: impl FnMut(StoredLetter),
    ) -> Result<(), DeadLettersError> {
        let last = self.stream.cached_info().state.last_sequence;
        let deliver_policy = match from {
            ReadFrom::After(sequence) => DeliverPolicy::ByStartSequence {
                start_sequence: sequence.saturating_add(1),
            },
            ReadFrom::Since(time) => DeliverPolicy::ByStartTime {
                start_time: time.into(),
            },
        };
        let config = OrderedConfig {
            deliver_policy,
            filter_subject: self.settings.subjects.dlq.clone(),
            ..OrderedConfig::default()
        };
        let what = "reading dead letters";
        let consumer = self.stream.create_consumer(config).await;
        let consumer = consumer.map_err(|error| broken(what)(&error))?;
        if consumer.cached_info().num_pending == 0 {
            return Ok(());
        }
        let mut messages = consumer.messages().await.map_err(|error| broken(what)(&error))?;
        let limit = Duration::from_millis(self.settings.request_timeout_ms);
        loop {
            let message = match timeout(limit, messages.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return Err(broken(what)(&error)),
                Ok(None) | Err(_) => {
                    let why = "the broker sends no more letters although there are some".to_owned();
                    return Err(DeadLettersError::Broken { what, why });
                }
            };
            let info = message.info().map_err(|error| broken(what)(&*error))?;
            let (sequence, pending) = (info.stream_sequence, info.pending);
            // A replay that fails again writes a new letter; what comes later is another run's business.
            if sequence <= last {
                each(StoredLetter {
                    sequence,
                    stored_at: info.published.into(),
                    payload: message.payload.clone(),
                });
            }
            if pending == 0 || sequence >= last {
                return Ok(());
            }
        }
    }

    /// One letter; nothing when the stream has none of this sequence.
    ///
    /// # Errors
    /// When the broker goes away.
    pub async fn get(&self, sequence: u64) -> Result<Option<StoredLetter>, DeadLettersError> {
        if sequence == 0 {
            return Ok(None);
        }
        match self.stream.get_raw_message(sequence).await {
            // The stream may keep other things too.
            Ok(message) if message.subject.as_str() != self.settings.subjects.dlq => Ok(None),
            Ok(message) => Ok(Some(StoredLetter {
                sequence,
                stored_at: message.time.into(),
                payload: message.payload,
            })),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(broken("reading a dead letter")(&error)),
        }
    }

    /// Sends a message and waits until the stream of assignments has it. Tries once: sent again under the same message
    /// id, it is dropped by the stream within its duplicate window.
    ///
    /// # Errors
    /// When it was not confirmed, or is too large.
    pub async fn send_stored(&self, message: &Outgoing) -> Result<Published, DeadLettersError> {
        let publish = PublishMessage::build()
            .payload(message.payload.clone())
            .headers(header_map(&message.headers));
        let sort = |error: jetstream::context::PublishError| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => DeadLettersError::TooLarge,
            _ => broken("sending an assignment")(&error),
        };
        let sent = self
            .jetstream
            .send_publish(message.subject.clone(), publish)
            .await;
        let stored = sent.map_err(sort)?.await.map_err(sort)?;
        Ok(Published {
            position: Some((stored.stream.into(), stored.sequence)),
            known_before: stored.duplicate,
        })
    }

    /// Sends a message to whoever listens; nothing confirms that anybody does.
    ///
    /// # Errors
    /// When the connection broke, or it is too large.
    pub async fn send_plain(&self, message: &Outgoing) -> Result<(), DeadLettersError> {
        use async_nats::client::PublishErrorKind as Kind;
        let (what, client) = ("sending an assignment", &self.connection.client);
        let headers = header_map(&message.headers);
        client
            .publish_with_headers(message.subject.clone(), headers, message.payload.clone())
            .await
            .map_err(|error| match error.kind() {
                Kind::MaxPayloadExceeded => DeadLettersError::TooLarge,
                _ => broken(what)(&error),
            })?;
        let limit = Duration::from_millis(self.settings.request_timeout_ms);
        match timeout(limit, client.flush()).await {
            Ok(flushed) => flushed.map_err(|error| broken(what)(&error)),
            Err(elapsed) => Err(broken(what)(&elapsed)),
        }
    }
}

/// The stream that covers a subject, if any; none without JetStream either.
async fn covering(jetstream: &Context, subject: &str) -> Result<Option<String>, DeadLettersError> {
    match jetstream.stream_by_subject(subject).await {
        Ok(name) => Ok(Some(name)),
        Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => Ok(None),
        Err(error) => Err(broken("looking for a stream")(&error)),
    }
}
