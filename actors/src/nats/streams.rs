//! Makes sure that the streams and the consumer are there: bound as they are, or created where allowed.
//!
//! Neighbours: the source calls [`ensure_consumer`], `serve` calls [`ensure_answer_streams_when_possible`], the sink
//! [`restore_answer_streams`]. Never changes what it finds.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind, GetStreamByNameErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{Context, ErrorCode};
use futures_util::future::try_join_all;

use super::connection::{Connection, delay};
use super::floor::{FloorError, Floors};
use crate::clock::whole_ms;
use crate::errors::chain;
use crate::events::{self, Log};
use crate::settings::NatsSettings;

/// Most assignments that may wait in a stream of ours: beyond it the router hears that it is full.
const MAX_WAITING_ASSIGNMENTS: i64 = 1_000_000;
/// Largest size of a stream of ours, in bytes. The server reserves it.
pub(super) const MAX_STREAM_BYTES: i64 = 1024 * 1024 * 1024;
/// Size tried on a server that cannot reserve [`MAX_STREAM_BYTES`].
const SMALL_STREAM_BYTES: i64 = 64 * 1024 * 1024;
/// How long results stay readable.
pub(super) const RESULTS_AGE: Duration = Duration::from_secs(24 * 3600);
/// How long dead letters stay readable.
const DLQ_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a stream of ours drops second copies: as long as the router remembers.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(3600);

/// Why a stream or consumer cannot be used. All are tried again: an operator may mend them meanwhile.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Nobody answers for JetStream: not enabled, or not yet.
    #[error("the broker or the account has no JetStream (yet): enable it, or set nats.mode to core")]
    NoJetStream,
    /// JetStream did not answer as it should.
    #[error("{what}: {why}")]
    Request {
        /// What was tried.
        what: String,
        /// What came back.
        why: String,
    },
    /// No stream covers a subject, and creating is not allowed.
    #[error("no stream covers {0} and nats.create_streams is false")]
    NotCovered(String),
    /// The stream to create exists, but without these subjects.
    #[error(
        "stream {name} exists and does not store {subjects}: add the subjects to it, or name another stream in the settings"
    )]
    NameTaken {
        /// The stream.
        name: String,
        /// What it would have to store.
        subjects: String,
    },
    /// The consumer exists but cannot be used.
    #[error("consumer {name} of stream {stream} {rule}")]
    Consumer {
        /// The stream.
        stream: String,
        /// The consumer.
        name: String,
        /// What it would have to be.
        rule: &'static str,
    },
    /// Where a consumer must begin is not known: it is not made, or it would repeat what was acknowledged.
    #[error("not known where a new consumer of stream {stream} must begin: {why}")]
    Beginning {
        /// The stream.
        stream: String,
        /// Why.
        why: String,
    },
}

/// How the client library words a request that nobody answered, and the server an account without JetStream. A
/// whole-node test holds the library to it.
const NO_JETSTREAM: [&str; 2] = ["requested JetStream resource does not exist", "not enabled"];

pub(super) fn failed(what: impl Into<String>, error: &dyn std::error::Error) -> StreamError {
    let why = chain(error);
    if NO_JETSTREAM.iter().any(|words| why.contains(words)) {
        return StreamError::NoJetStream;
    }
    let what = what.into();
    StreamError::Request { what, why }
}

/// The stream that covers a subject, if any.
async fn covering(jetstream: &Context, subject: &str) -> Result<Option<String>, StreamError> {
    match jetstream.stream_by_subject(subject).await {
        Ok(name) => Ok(Some(name)),
        Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(format!("looking for the stream of {subject}"), &error)),
    }
}

/// Creates a stream; on a server without room for its size, a smaller one.
pub(super) async fn create(jetstream: &Context, config: Config, log: &Log) -> Result<(), StreamError> {
    let name = config.name.clone();
    let taken = StreamError::NameTaken {
        name: name.clone(),
        subjects: config.subjects.join(", "),
    };
    let smaller = Config {
        max_bytes: SMALL_STREAM_BYTES,
        ..config.clone()
    };
    let no_room = [
        ErrorCode::STORAGE_RESOURCES_EXCEEDED,
        ErrorCode::INSUFFICIENT_RESOURCES,
    ];
    let created = match jetstream.create_stream(config).await {
        Err(error) if code_of(&error).is_some_and(|code| no_room.contains(&code)) => {
            jetstream.create_stream(smaller).await
        }
        other => other,
    };
    created.map_err(|error| match code_of(&error) {
        Some(ErrorCode::STREAM_NAME_EXIST) => taken,
        _ => failed(format!("creating stream {name}"), &error),
    })?;
    log.emit(events::stream_ready("stream", &name, true));
    Ok(())
}

/// What JetStream itself said, if it answered.
fn code_of(error: &CreateStreamError) -> Option<ErrorCode> {
    match error.kind() {
        CreateStreamErrorKind::JetStream(error) => Some(error.error_code()),
        _ => None,
    }
}

/// Where assignments are consumed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The stream.
    pub stream: Arc<str>,
    /// How long its consumer waits for an answer or a renewal.
    pub ack_wait: Duration,
    /// When the stream was made, in nanoseconds since the Unix epoch: tells its lives apart.
    pub created_ns: i64,
    /// Whether the stream keeps what was acknowledged: a consumer made anew must not begin at its beginning.
    pub keeps_acknowledged: bool,
}

/// The assignment stream and its consumer, found or created.
///
/// # Errors
/// [`StreamError`]; every kind may pass, so the caller tries again.
pub async fn ensure_consumer(
    jetstream: &Context,
    settings: &NatsSettings,
    log: &Log,
) -> Result<Bound, StreamError> {
    let subject = &settings.subjects.assign;
    let stream = match covering(jetstream, subject).await? {
        Some(name) => name,
        None if settings.create_streams => {
            let config = Config {
                name: settings.stream.clone(),
                subjects: vec![subject.clone()],
                retention: RetentionPolicy::WorkQueue,
                discard: DiscardPolicy::New,
                max_messages: MAX_WAITING_ASSIGNMENTS,
                max_bytes: MAX_STREAM_BYTES,
                storage: StorageType::File,
                duplicate_window: Duration::from_secs(120),
                ..Config::default()
            };
            create(jetstream, config, log).await?;
            settings.stream.clone()
        }
        None => return Err(StreamError::NotCovered(subject.clone())),
    };
    let handle = jetstream
        .get_stream(&stream)
        .await
        .map_err(|error| failed(format!("reading stream {stream}"), &error))?;
    let info = handle.cached_info();
    let created_ns = i64::try_from(info.created.unix_timestamp_nanos()).unwrap_or(i64::MAX);
    let keeps_acknowledged = info.config.retention == RetentionPolicy::Limits;
    let name = settings.durable.as_str();
    let unknown = |error: FloorError| StreamError::Beginning {
        stream: stream.clone(),
        why: error.to_string(),
    };
    let what = || format!("consumer {name} of stream {stream}");
    let existing: Result<PullConsumer, _> = handle.get_consumer(name).await;
    let created = existing.is_err() && settings.create_streams;
    let consumer = match existing {
        Ok(consumer) => consumer,
        // Another worker may be creating it at the same time.
        Err(_) if created => {
            let begin = if keeps_acknowledged {
                begin_after(
                    Floors::over(jetstream.clone(), settings)
                        .read(&stream, created_ns)
                        .await
                        .map_err(unknown)?,
                )
            } else {
                DeliverPolicy::All
            };
            let config = consumer_config(settings, begin);
            let made = handle.get_or_create_consumer(name, config).await;
            made.map_err(|error| failed(what(), &error))?
        }
        Err(error) => {
            let why = error.to_string();
            return Err(StreamError::Request { what: what(), why });
        }
    };
    if consumer.cached_info().config.ack_policy != AckPolicy::Explicit {
        let (name, rule) = (name.to_owned(), "must use explicit acknowledgement");
        return Err(StreamError::Consumer { stream, name, rule });
    }
    log.emit(events::stream_ready(
        "consumer",
        &format!("{stream}.{name}"),
        created,
    ));
    let found = &consumer.cached_info().config;
    for oddity in oddities(found, settings) {
        log.emit(events::warning(&oddity));
    }
    Ok(Bound {
        ack_wait: patience(found, settings),
        stream: stream.into(),
        created_ns,
        keeps_acknowledged,
    })
}

/// Where a consumer begins on a stream that keeps what was acknowledged.
fn begin_after(floor: Option<u64>) -> DeliverPolicy {
    match floor {
        Some(sequence) => DeliverPolicy::ByStartSequence {
            start_sequence: sequence.saturating_add(1),
        },
        // Nothing was ever acknowledged.
        None => DeliverPolicy::All,
    }
}

fn consumer_config(settings: &NatsSettings, begin: DeliverPolicy) -> pull::Config {
    pull::Config {
        durable_name: Some(settings.durable.clone()),
        description: Some("shared by all workers of the fleet".to_owned()),
        deliver_policy: begin,
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_millis(settings.ack_wait_ms),
        // Hand-backs count against this limit and a message past it is never answered: attempts are ours to count.
        max_deliver: -1,
        max_ack_pending: i64::try_from(settings.max_ack_pending).unwrap_or(i64::MAX),
        filter_subject: settings.subjects.assign.clone(),
        ..pull::Config::default()
    }
}

/// How long the consumer really waits: a backoff overrides the ack wait.
fn patience(found: &consumer::Config, settings: &NatsSettings) -> Duration {
    let waits = found.backoff.iter().chain([&found.ack_wait]);
    let shortest = waits.filter(|wait| !wait.is_zero()).min();
    shortest
        .copied()
        .unwrap_or(Duration::from_millis(settings.ack_wait_ms))
}

/// What an operator should know of a consumer that was not created by these settings.
fn oddities(found: &consumer::Config, settings: &NatsSettings) -> Vec<String> {
    let mut oddities = Vec::new();
    let ack_wait_ms = patience(found, settings).as_millis();
    if ack_wait_ms != u128::from(settings.ack_wait_ms) {
        oddities.push(format!(
            "the consumer's ack_wait is {ack_wait_ms} ms, nats.ack_wait_ms is {}: the consumer's counts",
            settings.ack_wait_ms
        ));
    }
    if found.max_deliver > 0 {
        oddities.push(format!(
            "the consumer's max_deliver is {}: an assignment that is handed back that often is never answered; -1 is \
             better",
            found.max_deliver
        ));
    }
    oddities
}

/// The streams of what the worker says: name, subjects, and how long a message stays.
fn answer_streams(settings: &NatsSettings) -> [(&str, Vec<&str>, Duration); 2] {
    let subjects = &settings.subjects;
    [
        (
            &settings.results_stream,
            vec![&subjects.result, &subjects.ack],
            RESULTS_AGE,
        ),
        (&settings.dlq_stream, vec![&subjects.dlq], DLQ_AGE),
    ]
}

fn answer_stream(name: &str, subjects: &[&str], max_age: Duration) -> Config {
    Config {
        name: name.to_owned(),
        subjects: subjects.iter().map(|&subject| subject.to_owned()).collect(),
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        max_bytes: MAX_STREAM_BYTES,
        max_age,
        storage: StorageType::File,
        duplicate_window: DUPLICATE_WINDOW,
        ..Config::default()
    }
}

/// Each of `subjects` with the stream that stores it, if any. Asked for at once: a start waits for the answers.
async fn stored_in<'a>(
    jetstream: &Context,
    subjects: Vec<&'a str>,
) -> Result<Vec<(&'a str, Option<String>)>, StreamError> {
    let look = |subject| async move { Ok((subject, covering(jetstream, subject).await?)) };
    try_join_all(subjects.into_iter().map(look)).await
}

/// Those of `subjects` that no stream stores.
async fn not_stored<'a>(jetstream: &Context, subjects: Vec<&'a str>) -> Result<Vec<&'a str>, StreamError> {
    let found = stored_in(jetstream, subjects).await?.into_iter();
    Ok(found
        .filter(|(_, stream)| stream.is_none())
        .map(|(subject, _)| subject)
        .collect())
}

/// The subjects of ours that a stream stores, after creating the streams that are missing. Publishing on these is
/// confirmed; on the others it is not.
///
/// # Errors
/// [`StreamError`]; every kind may pass, so the caller tries again.
pub async fn ensure_answer_streams(
    jetstream: &Context,
    settings: &NatsSettings,
    log: &Log,
) -> Result<AnswerStreams, StreamError> {
    let ensured = answer_streams(settings).map(|(name, wanted, max_age)| async move {
        let found = stored_in(jetstream, wanted).await?;
        let missing: Vec<_> = found
            .iter()
            .filter(|(_, stream)| stream.is_none())
            .map(|(subject, _)| *subject)
            .collect();
        let creates = !missing.is_empty() && settings.create_streams;
        if creates {
            create(jetstream, answer_stream(name, &missing, max_age), log).await?;
        } else if !missing.is_empty() {
            let text = format!(
                "{}: no stream stores it and nats.create_streams is false; not confirmed",
                missing.join(", ")
            );
            log.emit(events::warning(&text));
        }
        let found = found.into_iter().filter_map(|(subject, stream)| {
            let stream = stream.or_else(|| creates.then(|| name.to_owned()))?;
            Some((subject.to_owned(), stream))
        });
        AnswerStreams::read(jetstream, found.collect()).await
    });
    let ensured = try_join_all(ensured).await?;
    Ok(ensured
        .into_iter()
        .fold(AnswerStreams::none(), AnswerStreams::and))
}

/// Sees to it that every subject in `stored` is stored again, after a stream was deleted or the server came back
/// without its files: what the streams held is gone, what is said from now on is kept.
///
/// # Errors
/// [`StreamError`], also when a stream is missing that must not be created; every kind may pass, so the caller tries
/// again.
pub async fn restore_answer_streams(
    jetstream: &Context,
    settings: &NatsSettings,
    stored: &HashSet<String>,
    log: &Log,
) -> Result<(), StreamError> {
    for (name, mut wanted, max_age) in answer_streams(settings) {
        wanted.retain(|subject| stored.contains(*subject));
        let missing = not_stored(jetstream, wanted).await?;
        match missing.first() {
            None => {}
            Some(_) if settings.create_streams => {
                create(jetstream, answer_stream(name, &missing, max_age), log).await?;
            }
            Some(subject) => return Err(StreamError::NotCovered((*subject).to_owned())),
        }
    }
    Ok(())
}

/// The streams of what the worker says, as far as the sink must know them.
#[derive(Debug, Clone)]
pub struct AnswerStreams {
    /// Subjects that a stream stores.
    pub subjects: Vec<String>,
    /// Largest message that each of these streams takes, in bytes.
    pub max_message_bytes: usize,
}

impl AnswerStreams {
    /// Nothing is stored, as in core mode.
    pub fn none() -> Self {
        Self {
            subjects: Vec::new(),
            max_message_bytes: usize::MAX,
        }
    }

    /// What is to be known of these subjects, each with the stream that stores it.
    async fn read(jetstream: &Context, stored: Vec<(String, String)>) -> Result<Self, StreamError> {
        let mut read = Self::none();
        let names: BTreeSet<&String> = stored.iter().map(|(_, stream)| stream).collect();
        for name in names {
            let stream = jetstream.get_stream(name).await;
            let stream = stream.map_err(|error| failed(format!("reading stream {name}"), &error))?;
            // Not positive: no limit of the stream's own.
            if let Ok(max @ 1..) = usize::try_from(stream.cached_info().config.max_message_size) {
                read.max_message_bytes = read.max_message_bytes.min(max);
            }
        }
        read.subjects = stored.into_iter().map(|(subject, _)| subject).collect();
        Ok(read)
    }

    fn and(mut self, other: Self) -> Self {
        self.subjects.extend(other.subjects);
        self.max_message_bytes = self.max_message_bytes.min(other.max_message_bytes);
        self
    }
}

/// [`ensure_answer_streams`], again and again until the broker can: it may be starting, or an operator may be needed.
/// The log says so, readiness too.
pub async fn ensure_answer_streams_when_possible(
    connection: &Connection,
    settings: &NatsSettings,
    log: &Log,
) -> AnswerStreams {
    let mut jetstream = async_nats::jetstream::new(connection.client.clone());
    jetstream.set_timeout(Duration::from_millis(settings.request_timeout_ms));
    for attempt in 0.. {
        match ensure_answer_streams(&jetstream, settings, log).await {
            Ok(streams) => return streams,
            Err(error) => {
                let wait = delay(attempt);
                if attempt % 10 == 0 {
                    let wait_ms = whole_ms(wait);
                    log.emit(events::answers_not_stored(&error.to_string(), wait_ms));
                }
                tokio::time::sleep(wait).await;
            }
        }
    }
    AnswerStreams::none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_wait_of_a_consumer_counts_and_what_is_odd_about_it_is_told() {
        let settings = NatsSettings::default();
        let mut found = consumer::Config {
            ack_wait: Duration::from_secs(30),
            max_deliver: -1,
            ..consumer::Config::default()
        };
        assert_eq!(patience(&found, &settings), Duration::from_secs(30));
        assert_eq!(oddities(&found, &settings), Vec::<String>::new());
        found.backoff = vec![Duration::from_secs(2), Duration::from_secs(60)];
        found.max_deliver = 3;
        assert_eq!(patience(&found, &settings), Duration::from_secs(2));
        assert_eq!(oddities(&found, &settings).len(), 2);
    }
}
