//! The key with which the fleet signs links to approvals, kept beside them: whoever needs it first makes it.
//!
//! Neighbours: `src/approvals.rs` asks for it once, when the first link is made or opened and the settings have no key.
//! Who may read the bucket can sign links, as who may write to it can decide. Never changes a key that is there; deleting it makes all links
//! void, once the workers are started again.

use std::time::Duration;

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use async_nats::jetstream::{self, Context};
use tokio::time::timeout;

use super::claim_store::{bucket_stream, bucket_subject};
use super::connection::Connection;
use crate::errors::chain;
use crate::settings::NatsSettings;
use crate::settings::approval_links::MIN_KEY_BYTES;

/// Its name in the bucket; no approval has one like it.
const NAME: &str = "link-key";
/// How often it is looked for: whoever finds none and is too late to write finds one the next time.
const TRIES: u32 = 2;

/// The key that is kept in this bucket; where none is, `fresh`, which is then kept.
///
/// # Errors
/// When the broker does not answer in time, or there is no such bucket.
pub async fn link_key(
    connection: &Connection,
    settings: &NatsSettings,
    bucket: &str,
    fresh: &[u8],
) -> Result<Vec<u8>, String> {
    let limit = Duration::from_millis(settings.request_timeout_ms);
    let mut jetstream = jetstream::new(connection.client.clone());
    jetstream.set_timeout(limit);
    let found = async {
        for _ in 0..TRIES {
            let (key, revision) = read(&jetstream, bucket).await?;
            if key.len() >= MIN_KEY_BYTES {
                return Ok(key);
            }
            if create(&jetstream, bucket, fresh, revision).await? {
                return Ok(fresh.to_vec());
            }
        }
        Err("the key of links comes and goes".to_owned())
    };
    // Each try has two calls.
    let found = timeout(limit * TRIES * 2, found).await;
    found.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

/// With its revision, from the leader: a follower may not have it yet. What was deleted is empty, and so is what never was.
async fn read(jetstream: &Context, bucket: &str) -> Result<(Vec<u8>, u64), String> {
    let stream = jetstream.get_stream_no_info(bucket_stream(bucket)).await;
    let stream = stream.map_err(|error| chain(&error))?;
    match stream
        .get_last_raw_message_by_subject(&bucket_subject(bucket, NAME))
        .await
    {
        Ok(message) => Ok((message.payload.to_vec(), message.sequence)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok((Vec::new(), 0)),
        Err(error) => Err(chain(&error)),
    }
}

/// Keeps it, unless another was faster.
async fn create(jetstream: &Context, bucket: &str, fresh: &[u8], revision: u64) -> Result<bool, String> {
    let publish = PublishMessage::build()
        .payload(fresh.to_vec().into())
        .expected_last_subject_sequence(revision);
    let stored = match jetstream
        .send_publish(bucket_subject(bucket, NAME), publish)
        .await
    {
        Ok(stored) => stored.await.map(drop),
        Err(error) => Err(error),
    };
    match stored {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
        Err(error) => Err(chain(&error)),
    }
}
