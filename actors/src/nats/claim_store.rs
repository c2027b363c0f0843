//! Claims in a key-value bucket of JetStream, and questions to their owners.
//!
//! Neighbours: [`crate::claims::fleet`] calls it; the lease keeper answers the questions. A bucket is a stream: a key is
//! a subject, compare-and-set is a publish that expects a revision. Reads go to the leader, so that a conflict is never
//! followed by an older state. Tries once per call.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageErrorKind, RetentionPolicy, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{HeaderMap, HeaderValue, Subject};
use caf_protocol::assignment::{Reading, read};
use caf_protocol::ids::{AssignmentKey, sha256_hex};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::confirmations::{Confirmations, NotStored};
use super::connection::Connection;
use super::headers_of;
use super::sink::NatsSink;
use crate::claims::fleet::{ClaimStore, Found, Revision, StoreError};
use crate::claims::record::{ClaimRecord, OutcomeRef, OwnerWord};
use crate::clock::whole_ms;
use crate::errors::chain;
use crate::settings::NatsSettings;
use crate::sink::Outgoing;

/// What an owner says that works on the assignment.
pub(super) const OWNER_HOLDS: &str = "held";
/// What an owner says that does not.
pub(super) const OWNER_LET_GO: &str = "free";
/// How often an owner is asked before its silence counts. A worker that has lost the broker is back within a second.
const OWNER_TRIES: u32 = 4;
/// How long each question waits, and the pause after one that nobody heard.
const OWNER_PATIENCE: Duration = Duration::from_millis(600);

/// The bucket holds another revision than the one expected.
const CONFLICT: ErrorCode = ErrorCode::STREAM_WRONG_LAST_SEQUENCE;

/// Subject on which a process is asked about its claims.
pub(super) fn owner_subject(settings: &NatsSettings, owner: &str) -> String {
    format!("{}.{owner}", settings.subjects.owner)
}

/// The stream behind a bucket.
pub(super) fn bucket_stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// The subjects of a bucket.
pub(super) fn bucket_subject(bucket: &str, key: &str) -> String {
    format!("$KV.{bucket}.{key}")
}

/// The claims of a connected worker.
pub struct NatsClaimStore {
    connection: Connection,
    confirmations: Confirmations,
    /// Whether storing can succeed now.
    open: watch::Receiver<bool>,
    /// Told when the bucket turns out to be missing.
    bucket_lost: Arc<Notify>,
    jetstream: Context,
    bucket: Arc<str>,
    settings: Arc<NatsSettings>,
    limit: Duration,
    /// Since when no call has succeeded.
    failing: Arc<Mutex<Option<Instant>>>,
}

impl NatsClaimStore {
    /// Claims beside a sink: the bucket must exist, and the sink's gate makes it again when it is lost.
    pub fn new(sink: &NatsSink, settings: &NatsSettings, bucket: &str) -> Self {
        let (connection, confirmations, open, bucket_lost) = sink.gate();
        let limit = Duration::from_millis(settings.request_timeout_ms);
        let mut jetstream = jetstream::new(connection.client.clone());
        jetstream.set_timeout(limit);
        Self {
            connection,
            confirmations,
            open,
            bucket_lost,
            jetstream,
            bucket: bucket.into(),
            settings: Arc::new(settings.clone()),
            limit,
            failing: Arc::default(),
        }
    }

    /// Makes a call with a limit.
    fn call<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let limit = self.limit;
        self.when_open(async move {
            let answer = timeout(limit, call).await;
            answer.unwrap_or_else(|_| Err(unavailable("no answer in time")))
        })
    }

    /// Makes a call that has a limit of its own; nothing is sent while the broker is away: it would arrive when nobody
    /// expects it.
    fn when_open<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let (mut open, limit) = (self.open.clone(), self.limit);
        let failing = Arc::clone(&self.failing);
        async move {
            let was_open = *open.borrow();
            let is_open = was_open || matches!(timeout(limit, open.wait_for(|open| *open)).await, Ok(Ok(_)));
            let answer = if is_open {
                call.await
            } else {
                Err(unavailable("the broker or the bucket is away"))
            };
            let mut failing = failing.lock().unwrap_or_else(PoisonError::into_inner);
            match &answer {
                Err(StoreError::Unavailable(_)) => drop(failing.get_or_insert_with(Instant::now)),
                Ok(_) | Err(StoreError::Conflict) => *failing = None,
            }
            answer
        }
        .boxed()
    }
}

fn unavailable(why: impl ToString) -> StoreError {
    StoreError::Unavailable(why.to_string())
}

async fn stream(jetstream: &Context, name: &str) -> Result<Stream<()>, StoreError> {
    let stream = jetstream.get_stream_no_info(name).await;
    stream.map_err(|error| unavailable(chain(&error)))
}

/// A message of a stream by its sequence, from the leader.
async fn message(
    jetstream: &Context,
    name: &str,
    sequence: u64,
) -> Result<Option<StreamMessage>, StoreError> {
    match stream(jetstream, name).await?.get_raw_message(sequence).await {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        // A stream that is gone has no messages.
        Err(error) if chain(&error).contains("stream not found") => Ok(None),
        Err(error) => Err(unavailable(chain(&error))),
    }
}

/// Whether messages leave the stream when they are acknowledged.
async fn forgets_what_is_done(jetstream: &Context, name: &str) -> Result<bool, StoreError> {
    let stream = jetstream.get_stream(name).await;
    let stream = stream.map_err(|error| unavailable(chain(&error)))?;
    Ok(stream.cached_info().config.retention == RetentionPolicy::WorkQueue)
}

impl ClaimStore for NatsClaimStore {
    fn write(
        &self,
        key: &AssignmentKey,
        record: &ClaimRecord,
        expected: Revision,
    ) -> BoxFuture<'static, Result<Revision, StoreError>> {
        let subject = bucket_subject(&self.bucket, key.as_str());
        let body = serde_json::to_vec(record).expect("a record holds only strings and numbers");
        let (confirmations, bucket_lost) = (self.confirmations.clone(), Arc::clone(&self.bucket_lost));
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(expected));
        self.when_open(async move {
            let stored = confirmations
                .publish(Subject::from(subject), headers, body.into())
                .await;
            let stored = stored.map_err(|error| match error {
                NotStored::Refused { code, .. } if code == CONFLICT.0 => StoreError::Conflict,
                NotStored::NoStream | NotStored::Silent => {
                    bucket_lost.notify_one();
                    unavailable(error)
                }
                _ => unavailable(error),
            })?;
            Ok(stored.sequence)
        })
    }

    fn read(&self, key: &AssignmentKey) -> BoxFuture<'static, Result<Found, StoreError>> {
        let subject = bucket_subject(&self.bucket, key.as_str());
        let (jetstream, name) = (self.jetstream.clone(), bucket_stream(&self.bucket));
        self.call(async move {
            let bucket = stream(&jetstream, &name).await?;
            match bucket.get_last_raw_message_by_subject(&subject).await {
                Ok(message) => Ok(Found {
                    record: serde_json::from_slice(&message.payload).ok(),
                    revision: message.sequence,
                }),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(Found::default()),
                Err(error) => Err(unavailable(chain(&error))),
            }
        })
    }

    fn ask_owner(&self, owner: &str, key: &AssignmentKey) -> BoxFuture<'static, OwnerWord> {
        let subject = owner_subject(&self.settings, owner);
        let (client, question) = (self.connection.client.clone(), key.as_str().to_owned());
        async move {
            for _ in 0..OWNER_TRIES {
                let asked = client.request(subject.clone(), question.clone().into());
                match timeout(OWNER_PATIENCE, asked).await {
                    Ok(Ok(answer)) if answer.payload == OWNER_HOLDS => return OwnerWord::Holds,
                    Ok(Ok(_)) => return OwnerWord::LetGo,
                    Ok(Err(_)) => tokio::time::sleep(OWNER_PATIENCE).await,
                    Err(_) => {}
                }
            }
            OwnerWord::Silent
        }
        .boxed()
    }

    fn failing_ms(&self) -> u64 {
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.map_or(0, |since| whole_ms(since.elapsed()))
    }

    fn is_waiting(
        &self,
        stream: &str,
        sequence: u64,
        key: &AssignmentKey,
    ) -> BoxFuture<'static, Result<bool, StoreError>> {
        let (jetstream, name, key) = (self.jetstream.clone(), stream.to_owned(), key.clone());
        self.call(async move {
            // Under the same number another message may stand: streams are deleted and made again.
            let Some(found) = message(&jetstream, &name, sequence).await? else {
                return Ok(false);
            };
            let carries = match read(&found.payload, &headers_of(Some(&found.headers))) {
                Reading::Valid(assignment) => assignment.identity.key() == key,
                Reading::Invalid(identity, _) => identity.key() == key,
                Reading::Unanswerable(_) => false,
            };
            // A stream that keeps what is acknowledged does not tell by having it.
            Ok(carries && forgets_what_is_done(&jetstream, &name).await?)
        })
    }

    fn result(&self, outcome: &OutcomeRef) -> BoxFuture<'static, Result<Option<Outgoing>, StoreError>> {
        let Some((name, sequence)) = outcome.position.clone() else {
            return std::future::ready(Ok(None)).boxed();
        };
        let (jetstream, hash) = (self.jetstream.clone(), outcome.hash.clone());
        let results = self.settings.subjects.result.clone();
        self.call(async move {
            let found = message(&jetstream, &name, sequence).await?;
            let same = found
                .filter(|found| *found.subject == *results && sha256_hex(&found.payload).starts_with(&hash));
            Ok(same.map(|found| Outgoing {
                subject: found.subject.to_string(),
                headers: headers_of(Some(&found.headers)),
                payload: found.payload,
            }))
        })
    }
}
