//! Streams and consumer as the worker makes them, so that all contenders find the same.
//!
//! Neighbours: the comparison makes them anew before every run, the bare loop binds to them. The worker's own are in
//! `actors/src/nats/streams.rs`; a whole-node test holds the two together.

use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use futures_util::TryStreamExt;

/// Subject of assignments.
pub const ASSIGN: &str = "caf.exec.assign.v1";
/// Subject of acknowledgements.
pub const ACK: &str = "caf.exec.assign.v1.ack";
/// Subject of results.
pub const RESULT: &str = "caf.exec.result.v1";
/// Stream of assignments.
pub const STREAM: &str = "caf-stream";
/// Stream of results and acknowledgements.
pub const RESULTS_STREAM: &str = "caf-results";
/// Consumer (queue group in core mode) that all workers share.
pub const DURABLE: &str = "caf-workers";
const STREAM_BYTES: i64 = 1024 * 1024 * 1024;

/// The stream of assignments.
pub fn assignments() -> Config {
    Config {
        name: STREAM.to_owned(),
        subjects: vec![ASSIGN.to_owned()],
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        max_messages: 1_000_000,
        max_bytes: STREAM_BYTES,
        storage: StorageType::File,
        duplicate_window: Duration::from_secs(120),
        ..Config::default()
    }
}

/// The stream of results and acknowledgements.
pub fn results() -> Config {
    Config {
        name: RESULTS_STREAM.to_owned(),
        subjects: vec![RESULT.to_owned(), ACK.to_owned()],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        max_bytes: STREAM_BYTES,
        max_age: Duration::from_secs(24 * 3600),
        storage: StorageType::File,
        duplicate_window: Duration::from_secs(3600),
        ..Config::default()
    }
}

/// The consumer.
pub fn consumer() -> pull::Config {
    pull::Config {
        durable_name: Some(DURABLE.to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_secs(30),
        max_deliver: -1,
        max_ack_pending: 10_000,
        filter_subject: ASSIGN.to_owned(),
        ..pull::Config::default()
    }
}

/// Takes every stream and bucket away.
///
/// # Errors
/// When the broker refuses.
pub async fn clear(jetstream: &Context) -> Result<()> {
    let names: Vec<String> = jetstream.stream_names().try_collect().await?;
    for name in names {
        jetstream.delete_stream(&name).await.with_context(|| name)?;
    }
    Ok(())
}

/// Takes every stream and bucket away and makes these two anew: each run begins with an empty store.
///
/// # Errors
/// When the broker refuses.
pub async fn renew(jetstream: &Context) -> Result<()> {
    clear(jetstream).await?;
    jetstream.create_stream(assignments()).await?;
    jetstream.create_stream(results()).await?;
    Ok(())
}
