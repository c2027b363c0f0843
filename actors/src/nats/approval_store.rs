//! Approvals in a key-value bucket of JetStream.
//!
//! Neighbours: [`crate::approvals`] calls it. A bucket is a stream: a key is a subject, compare-and-set is a publish that
//! expects a revision, and who watches it has a consumer that begins with the last message of each subject. Reads go to the
//! leader, so that a conflict is never followed by an older state. Tries once per call.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::context::{GetStreamErrorKind, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, LastRawMessageErrorKind, RetentionPolicy, StorageType, Stream,
};
use async_nats::jetstream::{self, Context};
use caf_protocol::approval::ApprovalId;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use tokio::time::timeout;

use super::buckets::is_there_when_possible;
use super::claim_store::{bucket_stream, bucket_subject};
use super::connection::Connection;
use super::streams::{StreamError, create, failed};
use crate::approvals::record::Entry;
use crate::approvals::store::{ApprovalStore, Change, Found, StoreError};
use crate::claims::fleet::Revision;
use crate::errors::chain;
use crate::events::Log;
use crate::settings::NatsSettings;

/// Largest size of the bucket, in bytes: what waits must not be pushed out, so that a full one takes no more questions.
const MAX_BYTES: i64 = 1024 * 1024 * 1024;
/// How long the broker may be silent at the beginning of a watch.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// The approvals of a connected worker. Cheap to clone.
#[derive(Clone)]
pub struct NatsApprovalStore(Arc<Shared>);

struct Shared {
    connection: Connection,
    jetstream: Context,
    bucket: String,
    create: bool,
    limit: Duration,
    log: Log,
}

impl NatsApprovalStore {
    /// Approvals in `bucket`, once it is there, after trying until the broker can make it. Nothing when it is missing and must
    /// not be created: the log says so.
    pub async fn open_when_possible(
        connection: &Connection,
        settings: &NatsSettings,
        bucket: &str,
        log: &Log,
    ) -> Option<Self> {
        let limit = Duration::from_millis(settings.request_timeout_ms);
        let mut jetstream = jetstream::new(connection.client.clone());
        jetstream.set_timeout(limit);
        let store = Self(Arc::new(Shared {
            connection: connection.clone(),
            jetstream,
            bucket: bucket.to_owned(),
            create: settings.create_streams,
            limit,
            log: log.clone(),
        }));
        let ensure = async || store.ensure().await;
        is_there_when_possible(bucket, ensure, "nobody can be asked for approval", log)
            .await
            .then_some(store)
    }

    /// Whether the bucket is there, after creating it where that is allowed. Never changes what it finds.
    async fn ensure(&self) -> Result<bool, StreamError> {
        let shared = &self.0;
        let name = bucket_stream(&shared.bucket);
        match shared.jetstream.get_stream(&name).await {
            Ok(_) => return Ok(true),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error)
                    if error.error_code() == async_nats::jetstream::ErrorCode::STREAM_NOT_FOUND => {}
                _ => return Err(failed(format!("reading bucket {}", shared.bucket), &error)),
            },
        }
        if !shared.create {
            return Ok(false);
        }
        let config = Config {
            name,
            description: Some("what jobs ask people, and what they answered".to_owned()),
            subjects: vec![bucket_subject(&shared.bucket, ">")],
            retention: RetentionPolicy::Limits,
            // A question that waits is never pushed out by another one.
            discard: DiscardPolicy::New,
            max_messages_per_subject: 1,
            max_bytes: MAX_BYTES,
            storage: StorageType::File,
            allow_rollup: true,
            allow_direct: true,
            deny_delete: true,
            ..Config::default()
        };
        create(&shared.jetstream, config, &shared.log).await?;
        Ok(true)
    }

    /// Makes a call with a limit; nothing is sent while the broker is away: it would arrive when nobody expects it.
    fn call<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let shared = Arc::clone(&self.0);
        async move {
            if !shared.connection.wait_up(shared.limit).await {
                return Err(unavailable("the broker is away"));
            }
            let answer = timeout(shared.limit, call).await;
            answer.unwrap_or_else(|_| Err(unavailable("no answer in time")))
        }
        .boxed()
    }

    async fn stream(&self) -> Result<Stream<()>, StoreError> {
        let name = bucket_stream(&self.0.bucket);
        let stream = self.0.jetstream.get_stream_no_info(name).await;
        stream.map_err(|error| unavailable(chain(&error)))
    }

    /// Everything that is there, and what comes.
    async fn watch(self) -> Result<BoxStream<'static, Result<Change, StoreError>>, StoreError> {
        match self.ensure().await {
            Ok(true) => {}
            Ok(false) => return Err(unavailable("the bucket is missing")),
            Err(error) => return Err(unavailable(error)),
        }
        let prefix = bucket_subject(&self.0.bucket, "");
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::LastPerSubject,
            filter_subject: format!("{prefix}>"),
            ..OrderedConfig::default()
        };
        let consumer = self.stream().await?.create_consumer(config).await;
        let consumer = consumer.map_err(|error| unavailable(chain(&error)))?;
        let waiting = consumer.cached_info().num_pending;
        let messages = consumer.messages().await;
        let messages = messages.map_err(|error| unavailable(chain(&error)))?;
        let complete = (waiting == 0).then_some(Ok(Change::Complete));
        let mut left = waiting;
        let told = messages
            .map_err(|error| unavailable(chain(&error)))
            .map_ok(move |message| {
                let revision = message.info().map_or(0, |info| info.stream_sequence);
                let id = message.subject.strip_prefix(&prefix).and_then(ApprovalId::parse);
                let change = match serde_json::from_slice::<Entry>(&message.payload) {
                    Ok(entry) => Some(Change::Is(Box::new(entry), revision)),
                    // Somebody has deleted it by hand.
                    Err(_) if message.payload.is_empty() => id.map(Change::Gone),
                    // Of a later version: whoever can read it does what is due.
                    Err(_) => None,
                };
                let is_last = left == 1;
                left = left.saturating_sub(1);
                change.into_iter().chain(is_last.then_some(Change::Complete))
            })
            .map_ok(|changes| stream::iter(changes.map(Ok)))
            .try_flatten();
        Ok(stream::iter(complete).chain(told).boxed())
    }
}

fn unavailable(why: impl ToString) -> StoreError {
    StoreError::Unavailable(why.to_string())
}

impl ApprovalStore for NatsApprovalStore {
    fn write(&self, entry: &Entry, expected: Revision) -> BoxFuture<'static, Result<Revision, StoreError>> {
        let subject = bucket_subject(&self.0.bucket, entry.request.approval_id.as_str());
        let body = serde_json::to_vec(entry).expect("an entry holds only strings and numbers");
        let jetstream = self.0.jetstream.clone();
        self.call(async move {
            let sort = |error: jetstream::context::PublishError| match error.kind() {
                PublishErrorKind::WrongLastSequence => StoreError::Conflict,
                _ => unavailable(chain(&error)),
            };
            let publish = PublishMessage::build()
                .payload(body.into())
                .expected_last_subject_sequence(expected);
            let stored = jetstream.send_publish(subject, publish).await.map_err(sort)?;
            Ok(stored.await.map_err(sort)?.sequence)
        })
    }

    fn read(&self, id: &ApprovalId) -> BoxFuture<'static, Result<Found, StoreError>> {
        let subject = bucket_subject(&self.0.bucket, id.as_str());
        let store = self.clone();
        self.call(async move {
            match store
                .stream()
                .await?
                .get_last_raw_message_by_subject(&subject)
                .await
            {
                Ok(message) => Ok(Found {
                    entry: serde_json::from_slice(&message.payload).ok(),
                    revision: message.sequence,
                }),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(Found::default()),
                Err(error) => Err(unavailable(chain(&error))),
            }
        })
    }

    fn remove(&self, id: &ApprovalId, expected: Revision) -> BoxFuture<'static, Result<(), StoreError>> {
        let subject = bucket_subject(&self.0.bucket, id.as_str());
        let store = self.clone();
        self.call(async move {
            // Deleting a key would leave a marker of the deletion in the bucket. What is newer stays.
            let bucket = store.stream().await?;
            let purge = bucket.purge().filter(subject).sequence(expected + 1);
            purge.await.map(drop).map_err(|error| unavailable(chain(&error)))
        })
    }

    fn changes(&self) -> BoxStream<'static, Result<Change, StoreError>> {
        let store = self.clone();
        let begin = async move {
            if !store.0.connection.wait_up(FIRST_WORD).await {
                return Err(unavailable("the broker is away"));
            }
            let begun = timeout(FIRST_WORD, store.watch()).await;
            begun.unwrap_or_else(|_| Err(unavailable("no answer in time")))
        };
        stream::once(begin).try_flatten().boxed()
    }
}
