//! Makes sure that the bucket of claims is there: used as it is, or created where allowed.
//!
//! Neighbours: [`super::claim_store`] keeps claims in it, the sink's gate makes it again when it was lost. Never changes
//! what it finds.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::Context;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};

use super::claim_store::{bucket_stream, bucket_subject};
use super::connection::{Connection, delay};
use super::streams::{StreamError, create, failed};
use crate::claims::Claims;
use crate::clock::whole_ms;
use crate::events::{self, Log};
use crate::settings::{IdempotencyScope, IdempotencySettings, NatsSettings};

/// Largest size of the bucket, in bytes: a claim is about one kilobyte.
const MAX_CLAIM_BYTES: i64 = 512 * 1024 * 1024;

/// Time between two looks at how far back the bucket reaches: people read it, nothing waits for it.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Room below which the next claim may push the oldest out, in bytes: a large claim.
const CLAIM_ROOM_BYTES: u64 = 64 * 1024;

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
    let ensure = async || ensure_claims_bucket(&jetstream, settings, idempotency, log).await;
    let without = "assignments are claimed in this process only";
    is_there_when_possible(&idempotency.bucket, ensure, without, log)
        .await
        .then(|| idempotency.clone())
}

/// Asks for a bucket until the broker can say whether it is there. When it is missing and must not be created, the log says
/// what becomes of that.
pub(super) async fn is_there_when_possible(
    bucket: &str,
    ensure: impl AsyncFn() -> Result<bool, StreamError>,
    without: &str,
    log: &Log,
) -> bool {
    for attempt in 0.. {
        match ensure().await {
            Ok(true) => return true,
            Ok(false) => {
                log.emit(events::warning(&format!(
                    "bucket {bucket} is missing and nats.create_streams is false: {without}"
                )));
                return false;
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
    false
}

/// How far back the bucket of claims really reaches, in seconds; looked at now and then, for as long as this is polled.
pub async fn watch_claims_window(
    connection: &Connection,
    settings: &NatsSettings,
    idempotency: &IdempotencySettings,
    claims: &Claims,
) {
    let mut jetstream = async_nats::jetstream::new(connection.client.clone());
    jetstream.set_timeout(Duration::from_millis(settings.request_timeout_ms));
    let name = bucket_stream(&idempotency.bucket);
    loop {
        // While the broker is away the last word stands.
        if let Ok(bucket) = jetstream.get_stream(&name).await {
            let info = bucket.cached_info();
            let config = &info.config;
            let first = SystemTime::from(info.state.first_timestamp);
            let window = window(&Reach {
                max_age: config.max_age,
                messages: (info.state.messages, config.max_messages),
                bytes: (info.state.bytes, config.max_bytes),
                oldest: SystemTime::now().duration_since(first).unwrap_or_default(),
            });
            claims.set_fleet_window(window.map_or(idempotency.ttl_s, |window| window.as_secs()));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// How full a bucket is: used, and most allowed; nothing bounds it where that is not positive.
struct Reach {
    max_age: Duration,
    messages: (u64, i64),
    bytes: (u64, i64),
    oldest: Duration,
}

/// How long a record stays: until it is too old, unless those before it had to go for want of room. Nothing when it stays
/// for ever.
fn window(reach: &Reach) -> Option<Duration> {
    let is_full = |(used, most): (u64, i64), room: u64| {
        u64::try_from(most).is_ok_and(|most| most > 0 && used.saturating_add(room) >= most)
    };
    let may_age = (!reach.max_age.is_zero()).then_some(reach.max_age);
    if is_full(reach.messages, 0) || is_full(reach.bytes, CLAIM_ROOM_BYTES) {
        return Some(may_age.map_or(reach.oldest, |age| age.min(reach.oldest)));
    }
    may_age
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

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(messages: u64, bytes: u64, oldest_s: u64) -> Reach {
        Reach {
            max_age: Duration::from_secs(3_600),
            messages: (messages, 100),
            bytes: (bytes, 1_000_000),
            oldest: Duration::from_secs(oldest_s),
        }
    }

    #[test]
    fn a_bucket_reaches_back_its_whole_time_until_it_is_full_and_then_to_its_oldest_record() {
        let seconds = |reach: Reach| window(&reach).map(|window| window.as_secs());
        assert_eq!(seconds(reach(99, 0, 20)), Some(3_600));
        assert_eq!(seconds(reach(100, 0, 20)), Some(20));
        assert_eq!(seconds(reach(3, 900_000, 20)), Some(3_600));
        assert_eq!(seconds(reach(3, 990_000, 20)), Some(20));
        assert_eq!(
            seconds(reach(100, 0, 4_000)),
            Some(3_600),
            "it is about to go by age"
        );
        let unbounded = Reach {
            max_age: Duration::ZERO,
            messages: (1_000, -1),
            bytes: (1_000, 0),
            oldest: Duration::ZERO,
        };
        assert_eq!(window(&unbounded), None);
    }
}
