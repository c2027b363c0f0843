//! Up to where a stream is acknowledged, kept outside the consumer: it is needed when the consumer is gone.
//!
//! Neighbours: the watchdog notes it, `streams.rs` asks for it before it makes a consumer on a stream that keeps what was
//! acknowledged. A key-value bucket shared by all workers; a floor only rises, by compare-and-set, and belongs to one
//! life of the stream: made anew, the stream begins anew.

use std::time::Duration;

use async_nats::jetstream::context::KeyValueErrorKind;
use async_nats::jetstream::kv::{Config, CreateErrorKind, Store, UpdateErrorKind};
use async_nats::jetstream::{self, Context};
use serde::{Deserialize, Serialize};

use super::connection::Connection;
use super::streams::Bound;
use crate::errors::chain;
use crate::settings::NatsSettings;

/// Most bytes of the bucket: some dozens for each pair of stream and consumer, some 250 for each letter that was replayed
/// and is still in its stream.
const BUCKET_BYTES: i64 = 16 * 1024 * 1024;
/// Attempts at one floor: others note the same one at the same time.
const ATTEMPTS: usize = 3;

/// Why a floor could not be read or kept. It is tried again.
#[derive(Debug, thiserror::Error)]
#[error("key-value bucket {bucket}: {why}")]
pub(super) struct FloorError {
    bucket: String,
    why: String,
}

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Floor {
    /// When the stream was made, in nanoseconds since the Unix epoch: tells its lives apart.
    stream_created_ns: i64,
    /// Everything up to this sequence is acknowledged.
    sequence: u64,
}

impl Floor {
    /// Whether this is to take the place of what is kept.
    fn replaces(&self, kept: Option<&Self>) -> bool {
        match kept {
            Some(kept) if kept.stream_created_ns == self.stream_created_ns => self.sequence > kept.sequence,
            Some(kept) => self.stream_created_ns > kept.stream_created_ns,
            None => true,
        }
    }
}

/// The bucket. Opened when it is needed for the first time.
pub(super) struct Floors {
    jetstream: Context,
    bucket: String,
    durable: String,
    may_create: bool,
    store: Option<Store>,
    noted: Option<Floor>,
}

impl Floors {
    pub(super) fn new(connection: &Connection, settings: &NatsSettings) -> Self {
        let mut jetstream = jetstream::new(connection.client.clone());
        jetstream.set_timeout(Duration::from_millis(settings.request_timeout_ms));
        Self::over(jetstream, settings)
    }

    pub(super) fn over(jetstream: Context, settings: &NatsSettings) -> Self {
        Self {
            jetstream,
            bucket: settings.state_bucket.clone(),
            durable: settings.durable.clone(),
            may_create: settings.create_streams,
            store: None,
            noted: None,
        }
    }

    /// Keeps that everything up to `sequence` is acknowledged, where that is of use.
    pub(super) async fn note(&mut self, bound: &Bound, sequence: u64) -> Result<(), FloorError> {
        let floor = Floor {
            stream_created_ns: bound.created_ns,
            sequence,
        };
        if !bound.keeps_acknowledged || sequence == 0 || !floor.replaces(self.noted.as_ref()) {
            return Ok(());
        }
        let kept = self.keep(&key(&bound.stream, &self.durable), &floor).await;
        match kept {
            Ok(()) => self.noted = Some(floor),
            // It may have been deleted.
            Err(_) => self.store = None,
        }
        kept
    }

    /// Everything up to here was acknowledged in this life of the stream; nothing when that was never noted.
    pub(super) async fn read(&mut self, stream: &str, created_ns: i64) -> Result<Option<u64>, FloorError> {
        let key = key(stream, &self.durable);
        let kept = self.entry(&key).await?;
        Ok(kept
            .map(|(floor, _)| floor)
            .filter(|floor| floor.stream_created_ns == created_ns)
            .map(|floor| floor.sequence))
    }

    async fn keep(&mut self, key: &str, floor: &Floor) -> Result<(), FloorError> {
        let body = serde_json::to_vec(floor).expect("a floor holds only a string and a number");
        for _ in 0..ATTEMPTS {
            let kept = self.entry(key).await?;
            if !floor.replaces(kept.as_ref().map(|(floor, _)| floor)) {
                return Ok(());
            }
            let store = self.store().await?;
            let (outrun, why) = match kept {
                None => match store.create(key, body.clone().into()).await {
                    Ok(_) => return Ok(()),
                    Err(error) => (error.kind() == CreateErrorKind::AlreadyExists, chain(&error)),
                },
                Some((_, revision)) => match store.update(key, body.clone().into(), revision).await {
                    Ok(_) => return Ok(()),
                    Err(error) => (error.kind() == UpdateErrorKind::WrongLastRevision, chain(&error)),
                },
            };
            if !outrun {
                return Err(self.failed(why));
            }
        }
        // Others are at it: they note the same.
        Ok(())
    }

    /// What is kept, and its revision.
    async fn entry(&mut self, key: &str) -> Result<Option<(Floor, u64)>, FloorError> {
        let entry = self.store().await?.entry(key).await;
        let entry = entry.map_err(|error| self.failed(chain(&error)))?;
        let Some(entry) = entry.filter(|entry| entry.operation == jetstream::kv::Operation::Put) else {
            return Ok(None);
        };
        match serde_json::from_slice(&entry.value) {
            Ok(floor) => Ok(Some((floor, entry.revision))),
            Err(error) => Err(self.failed(format!("{key} cannot be read: {error}"))),
        }
    }

    async fn store(&mut self) -> Result<Store, FloorError> {
        if let Some(store) = &self.store {
            return Ok(store.clone());
        }
        let found = open_bucket(&self.jetstream, &self.bucket, self.may_create).await;
        let store = found.map_err(|why| self.failed(why))?;
        self.store = Some(store.clone());
        Ok(store)
    }

    fn failed(&self, why: String) -> FloorError {
        let bucket = self.bucket.clone();
        FloorError { bucket, why }
    }
}

/// The bucket as it is, or made where allowed; else why not.
pub(super) async fn open_bucket(
    jetstream: &Context,
    bucket: &str,
    may_create: bool,
) -> Result<Store, String> {
    match jetstream.get_key_value(bucket).await {
        Err(error) if error.kind() == KeyValueErrorKind::GetBucket && may_create => {
            let config = Config {
                bucket: bucket.to_owned(),
                description: "what the workers of the fleet know of their streams".to_owned(),
                history: 1,
                max_bytes: BUCKET_BYTES,
                ..Config::default()
            };
            let created = jetstream.create_key_value(config).await;
            created.map_err(|error| chain(&error))
        }
        other => other.map_err(|error| chain(&error)),
    }
}

/// Key of a pair of stream and consumer.
fn key(stream: &str, durable: &str) -> String {
    format!("floor.{}.{}", escaped(stream), escaped(durable))
}

/// A name as part of a key: what a key must not hold is written as `=` and the byte in hex.
pub(super) fn escaped(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
            other => format!("={other:02x}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floor(stream_created_ns: i64, sequence: u64) -> Floor {
        Floor {
            stream_created_ns,
            sequence,
        }
    }

    #[test]
    fn a_floor_only_rises_until_the_stream_is_made_anew() {
        let (early, late) = (10, 11);
        assert!(floor(early, 1).replaces(None));
        assert!(floor(early, 2).replaces(Some(&floor(early, 1))));
        assert!(!floor(early, 1).replaces(Some(&floor(early, 1))));
        assert!(!floor(early, 0).replaces(Some(&floor(early, 1))));
        assert!(floor(late, 1).replaces(Some(&floor(early, 9))));
        assert!(!floor(early, 10).replaces(Some(&floor(late, 1))));
    }

    #[test]
    fn keys_hold_only_what_keys_may_hold_and_differ_where_names_do() {
        assert_eq!(key("caf-stream", "caf_workers"), "floor.caf-stream.caf_workers");
        assert_eq!(key("a:b", "c=3a"), "floor.a=3ab.c=3d3a");
    }
}
