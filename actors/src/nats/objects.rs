//! Object store buckets: inputs that a job refers to are read from them, outputs that fit no message are put into one.
//!
//! Neighbours: `serve` makes both and gives [`ObjectFetch`] to the block workers, [`ObjectOutputs`] to the publisher's
//! [`crate::spill::Spiller`]. What is read is bounded and checked against its digest; links to other buckets are not
//! followed. Only outputs are written, and only into the worker's own bucket.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::push::OrderedConfig;
use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::object_store::{InfoErrorKind, ObjectInfo, ObjectMetadata, ObjectStore};
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType, Stream};
use async_nats::jetstream::{self, Context, ErrorCode as ServerCode};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE;
use bytes::Bytes;
use caf_protocol::block::{BlockContext, RunMode};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::ids::sha256;
use caf_protocol::outcome::Failure;
use caf_protocol::reference::{self, Fetch, FetchFuture, Location, Scheme};
use caf_protocol::result::OutputRef;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::time::timeout;

use super::connection::Connection;
use super::streams::{MAX_STREAM_BYTES, RESULTS_AGE, create};
use crate::errors::chain;
use crate::events::Log;
use crate::settings::{NatsSettings, PayloadRefSettings};
use crate::spill::{OutputObject, OutputStore, StoreError};

/// Largest piece in which an object is written, in bytes; a server with smaller messages gets smaller pieces.
const CHUNK_BYTES: usize = 128 * 1024;
/// How the server words that a bucket is full or that there is no room for one, and the client that a piece is larger than
/// the largest message. None of these passes by waiting a moment.
const WILL_NOT_FIT: [&str; 6] = [
    "maximum bytes exceeded",
    "maximum messages exceeded",
    "maximum number of streams",
    "resource limits exceeded",
    "insufficient",
    "Payload size limit",
];

/// The stream behind a bucket, as every client of object stores names it.
fn stream_name(bucket: &str) -> String {
    format!("OBJ_{bucket}")
}

fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ServerCode::STREAM_NOT_FOUND)
}

/// A digest as objects carry it.
fn digest_of(bytes: &[u8]) -> String {
    format!("SHA-256={}", BASE64_URL_SAFE.encode(sha256(bytes)))
}

fn context(connection: &Connection, limit: Duration) -> Context {
    let mut jetstream = jetstream::new(connection.client.clone());
    jetstream.set_timeout(limit);
    jetstream
}

// ---- Reading ----

/// Fetches `nats-obj://bucket/key`.
pub struct ObjectFetch {
    jetstream: Context,
    allowed: PayloadRefSettings,
    /// Longest wait for one answer or one piece.
    silence: Duration,
}

impl ObjectFetch {
    /// Reads over this connection, from the buckets that the settings let jobs read.
    pub fn new(connection: &Connection, settings: &NatsSettings, allowed: &PayloadRefSettings) -> Self {
        let silence = Duration::from_millis(settings.request_timeout_ms);
        Self {
            jetstream: context(connection, silence),
            allowed: allowed.clone(),
            silence,
        }
    }

    async fn read(&self, bucket: &str, key: &str, max_bytes: u64) -> Result<Bytes, Failure> {
        if !self.allowed.allows(bucket) {
            let rule = "the bucket is not one that payload_ref.buckets lets jobs read";
            return Err(Failure::of_field(
                ErrorCode::PermissionDenied,
                reference::FIELD,
                rule,
            ));
        }
        let stream = self
            .in_time(self.jetstream.get_stream(stream_name(bucket)))
            .await?;
        let stream = stream.map_err(|error| match is_missing(&error) {
            true => absent("there is no such bucket"),
            false => unreachable(&error),
        })?;
        let store = self.in_time(self.jetstream.get_object_store(bucket)).await?;
        let store = store.map_err(|error| unreachable(&error))?;
        let info = self.info(&store, key).await?;
        if info.size as u64 > max_bytes {
            return Err(reference::too_large(max_bytes));
        }
        let bytes = self.pieces(&stream, bucket, &info).await?;
        if info.digest.as_deref() != Some(digest_of(&bytes).as_str()) {
            // It may have been replaced while it was read: another try reads the new one.
            return Err(absent("the object does not match its digest"));
        }
        Ok(bytes)
    }

    async fn info(&self, store: &ObjectStore, key: &str) -> Result<ObjectInfo, Failure> {
        let info = self.in_time(store.info(key)).await?;
        let info = info.map_err(|error| match error.kind() {
            InfoErrorKind::NotFound => absent("there is no such object"),
            InfoErrorKind::TimedOut => too_slow(),
            InfoErrorKind::InvalidName | InfoErrorKind::Other => unreachable(&error),
        })?;
        if info.deleted {
            return Err(absent("there is no such object"));
        }
        // A link may lead to a bucket that jobs may not read, or in a circle.
        if info
            .options
            .as_ref()
            .is_some_and(|options| options.link.is_some())
        {
            let rule = "must be an object, not a link to one";
            return Err(Failure::of_field(ErrorCode::InvalidInput, reference::FIELD, rule));
        }
        Ok(info)
    }

    /// Reads no more than the object is said to have, whatever the stream holds.
    async fn pieces(&self, stream: &Stream, bucket: &str, info: &ObjectInfo) -> Result<Bytes, Failure> {
        let mut bytes = Vec::new();
        if info.size == 0 {
            return Ok(Bytes::new());
        }
        let config = OrderedConfig {
            deliver_subject: self.jetstream.client().new_inbox(),
            filter_subject: format!("$O.{bucket}.C.{}", info.nuid),
            ..OrderedConfig::default()
        };
        let consumer = self.in_time(stream.create_consumer(config)).await?;
        let consumer = consumer.map_err(|error| unreachable(&error))?;
        let pieces = self.in_time(consumer.messages()).await?;
        let mut pieces = pieces.map_err(|error| unreachable(&error))?;
        while bytes.len() < info.size {
            let piece = self.in_time(pieces.next()).await?;
            let piece = piece.ok_or_else(|| unreachable(&"the pieces ended early"))?;
            let piece = piece.map_err(|error| unreachable(&error))?;
            if bytes.len() + piece.payload.len() > info.size {
                break;
            }
            bytes.extend_from_slice(&piece.payload);
        }
        Ok(bytes.into())
    }

    /// One step. A broker that is silent is tried again by the plan of the job.
    async fn in_time<T>(&self, step: impl Future<Output = T>) -> Result<T, Failure> {
        timeout(self.silence, step).await.map_err(|_| too_slow())
    }
}

impl Fetch for ObjectFetch {
    fn scheme(&self) -> Scheme {
        Scheme::NatsObj
    }

    fn mode(&self) -> RunMode {
        RunMode::Async
    }

    fn fetch(self: Arc<Self>, location: Location, max_bytes: u64, _: BlockContext) -> FetchFuture {
        async move {
            match location {
                Location::Object { bucket, key } => self.read(&bucket, &key, max_bytes).await,
                _ => Err(reference::misdirected()),
            }
        }
        .boxed_local()
    }
}

fn absent(rule: &str) -> Failure {
    Failure::of_field(ErrorCode::ResourceUnavailable, reference::FIELD, rule)
}

fn too_slow() -> Failure {
    let rule = "timeout while reading from the object store";
    Failure::of_field(ErrorCode::ConnectionTimeout, reference::FIELD, rule)
}

fn unreachable(error: &dyn std::fmt::Display) -> Failure {
    let rule = "the object store could not be read";
    Failure::of_field(ErrorCode::NetworkError, reference::FIELD, rule).internally(error)
}

// ---- Writing ----

/// Keeps outputs in the bucket `nats.objects_bucket`, as long as results are kept. Cheap to clone.
#[derive(Clone)]
pub struct ObjectOutputs {
    connection: Connection,
    jetstream: Context,
    bucket: String,
    may_create: bool,
    log: Log,
}

impl ObjectOutputs {
    /// Writes over this connection. The bucket is looked for, and made where that is allowed, when it is needed.
    pub fn new(connection: &Connection, settings: &NatsSettings, log: &Log) -> Self {
        Self {
            connection: connection.clone(),
            jetstream: context(connection, Duration::from_millis(settings.request_timeout_ms)),
            bucket: settings.objects_bucket.clone(),
            may_create: settings.create_streams,
            log: log.clone(),
        }
    }

    async fn store(&self, object: OutputObject) -> Result<OutputRef, StoreError> {
        // What the client library buffered while the broker is away would be written twice.
        if !self.connection.link.borrow().up {
            return Err(StoreError::Away);
        }
        let store = self.open().await?;
        let kept = OutputRef {
            uri: format!("nats-obj://{}/{}", self.bucket, object.key),
            size: object.bytes.len() as u64,
            sha256: object.sha256,
        };
        let digest = digest_of(&object.bytes);
        let is_there = |info: ObjectInfo| !info.deleted && info.digest.as_ref() == Some(&digest);
        if store.info(&object.key).await.is_ok_and(is_there) {
            return Ok(kept);
        }
        let metadata = ObjectMetadata {
            name: object.key,
            chunk_size: Some(CHUNK_BYTES.min(self.connection.client.max_payload()).max(1)),
            ..ObjectMetadata::default()
        };
        let put = store.put(metadata, &mut object.bytes.as_ref()).await;
        put.map_err(|error| sorted(chain(&error)))?;
        Ok(kept)
    }

    async fn open(&self) -> Result<ObjectStore, StoreError> {
        match self.jetstream.get_stream(stream_name(&self.bucket)).await {
            Ok(_) => {}
            Err(error) if !is_missing(&error) => return Err(StoreError::Unavailable(chain(&error))),
            Err(_) if !self.may_create => {
                let bucket = &self.bucket;
                let text = format!("there is no bucket {bucket} and nats.create_streams is false");
                return Err(StoreError::Refused(text));
            }
            Err(_) => {
                // Another worker may be making it at the same time: then the next attempt finds it.
                let made = create(&self.jetstream, bucket_config(&self.bucket), &self.log).await;
                made.map_err(|error| sorted(chain(&error)))?;
            }
        }
        let opened = self.jetstream.get_object_store(&self.bucket).await;
        opened.map_err(|error| StoreError::Unavailable(chain(&error)))
    }
}

impl OutputStore for ObjectOutputs {
    fn put(&self, object: OutputObject) -> BoxFuture<'static, Result<OutputRef, StoreError>> {
        let this = self.clone();
        async move { this.store(object).await }.boxed()
    }
}

/// Whether waiting can help.
fn sorted(error: String) -> StoreError {
    if WILL_NOT_FIT.iter().any(|words| error.contains(words)) {
        StoreError::Refused(error)
    } else {
        StoreError::Unavailable(error)
    }
}

/// The stream of a bucket as the client library would make it, bounded as our other streams are. A full bucket refuses:
/// the oldest outputs are what somebody is about to read.
fn bucket_config(bucket: &str) -> Config {
    Config {
        name: stream_name(bucket),
        subjects: vec![format!("$O.{bucket}.C.>"), format!("$O.{bucket}.M.>")],
        description: Some("outputs that are too large for a result".to_owned()),
        discard: DiscardPolicy::New,
        max_bytes: MAX_STREAM_BYTES,
        max_age: RESULTS_AGE,
        storage: StorageType::File,
        allow_rollup: true,
        allow_direct: true,
        ..Config::default()
    }
}
