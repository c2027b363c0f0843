//! Makes sure that the bucket of claims is there: used as it is, or created where allowed.
//!
//! Neighbours: [`super::claim_store`] keeps claims in it, the sink's gate makes it again when it was lost. Never changes
//! what it finds.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};

use super::claim_store::{bucket_stream, bucket_subject};
use super::connection::{Connection, delay};
use super::streams::{StreamError, create, failed};
use crate::clock::whole_ms;
use crate::events::{self, Log};
use crate::settings::{IdempotencyScope, IdempotencySettings, NatsSettings};

/// Largest size of the bucket, in bytes: a claim is about one kilobyte.
const MAX_CLAIM_BYTES: i64 = 512 * 1024 * 1024;

/// The bucket's settings once it is there, after trying until the broker can. Nothing when claims are not shared, or
/// the bucket is missing and must not be created: the log says so.
pub async fn ensure_claims_bucket_when_possible(
    connection: &Connection,
    settings: &NatsSettings,
    idempotency: &IdempotencySettings,
    log: &Log,
) -> Option<IdempotencySettings> {
    if idempotency.scope == IdempotencyScope::Worker {
        return None;
    }
    let mut jetstream = async_nats::jetstream::new(connection.client.clone());
    jetstream.set_timeout(Duration::from_millis(settings.request_timeout_ms));
    for attempt in 0.. {
        match ensure_claims_bucket(&jetstream, settings, idempotency, log).await {
            Ok(true) => return Some(idempotency.clone()),
            Ok(false) => {
                log.emit(events::warning(&format!(
                    "bucket {} is missing and nats.create_streams is false: assignments are claimed in this process only",
                    idempotency.bucket
                )));
                return None;
            }
            Err(error) => {
                let wait = delay(attempt);
                if attempt % 10 == 0 {
                    log.emit(events::answers_not_stored(&error.to_string(), whole_ms(wait)));
                }
                tokio::time::sleep(wait).await;
            }
        }
    }
    None
}

/// Whether the bucket is there, after creating it where that is allowed.
///
/// # Errors
/// [`StreamError`]; every kind may pass, so the caller tries again.
pub(super) async fn ensure_claims_bucket(
    jetstream: &Context,
    settings: &NatsSettings,
    idempotency: &IdempotencySettings,
    log: &Log,
) -> Result<bool, StreamError> {
    let name = bucket_stream(&idempotency.bucket);
    match jetstream.get_stream(&name).await {
        Ok(_) => return Ok(true),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(error)
                if error.error_code() == async_nats::jetstream::ErrorCode::STREAM_NOT_FOUND => {}
            _ => return Err(failed(format!("reading bucket {}", idempotency.bucket), &error)),
        },
    }
    if !settings.create_streams {
        return Ok(false);
    }
    let age = Duration::from_secs(idempotency.ttl_s);
    let config = Config {
        name,
        description: Some("who works on which assignment, and what became of it".to_owned()),
        subjects: vec![bucket_subject(&idempotency.bucket, ">")],
        retention: RetentionPolicy::Limits,
        // When it is full, what was written longest ago goes first: claims that are held are written again in time.
        discard: DiscardPolicy::Old,
        max_messages: i64::try_from(idempotency.max_entries).unwrap_or(i64::MAX),
        max_messages_per_subject: 1,
        max_bytes: MAX_CLAIM_BYTES,
        max_age: age,
        duplicate_window: age.min(Duration::from_secs(120)),
        storage: StorageType::File,
        allow_rollup: true,
        allow_direct: true,
        deny_delete: true,
        ..Config::default()
    };
    create(jetstream, config, log).await?;
    Ok(true)
}
