//! Which dead letters were replayed, kept beside the letters: a letter itself never changes. For `caf-worker dlq`.
//!
//! Neighbours: [`super::dead_letters`] opens it, in the bucket that `floor` makes. A marker is written before its
//! replay is sent and confirmed after; it only rises, by compare-and-set, so of two operators at once one sends. It lives
//! as long as its letter: what the stream has forgotten is pruned. Never sends a replay.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::kv::{CreateErrorKind, Operation, Store, UpdateErrorKind};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::floor::{escaped, open_bucket};
use crate::errors::chain;
use crate::settings::NatsSettings;

/// Attempts to confirm one marker: others who sent the same replay confirm it too.
const ATTEMPTS: usize = 3;
/// Most markers pruned by one run: each costs a request, and the next run goes on.
const MOST_PRUNED: usize = 1_000;

/// Why it cannot be told or remembered which letters were replayed.
#[derive(Debug, thiserror::Error)]
#[error("replays cannot be remembered: key-value bucket {bucket}: {why}")]
pub struct ReplaysError {
    bucket: String,
    why: String,
}

/// What is kept of a letter that was replayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Which replay was sent last: 1 is the first.
    pub replay: u32,
    /// When it was sent, in milliseconds since the Unix epoch.
    pub sent_at_ms: u64,
    /// Whether the broker confirmed it. What was not confirmed may have been sent or not.
    pub confirmed: bool,
    /// When the stream of dead letters was made, in nanoseconds since the Unix epoch: tells its lives apart.
    #[serde(default)]
    stream_created_ns: i64,
}

impl Marker {
    /// A marker of the stream that is there, for what is built without a broker.
    pub fn new(replay: u32, sent_at_ms: u64, confirmed: bool) -> Self {
        Self {
            replay,
            sent_at_ms,
            confirmed,
            stream_created_ns: 0,
        }
    }

    /// How many replays were surely sent, as far as this tells.
    pub fn sent(&self) -> u32 {
        if self.confirmed {
            self.replay
        } else {
            self.replay.saturating_sub(1)
        }
    }

    /// Whether this may take the place of what is kept: the same replay is tried again until it is confirmed.
    fn may_replace(&self, kept: &Self) -> bool {
        kept.stream_created_ns < self.stream_created_ns
            || (kept.stream_created_ns == self.stream_created_ns
                && (self.replay > kept.replay || (self.replay == kept.replay && !kept.confirmed)))
    }
}

/// A marker as it was read, with the revision that a change of it must meet.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// What is kept of the letter; nothing when it was never replayed.
    pub marker: Option<Marker>,
    kept: Option<Marker>,
    revision: Option<u64>,
}

/// The markers of one stream of dead letters.
pub struct Replays {
    bucket: String,
    store: Option<Store>,
    stream: String,
    created_ns: i64,
    limit: Duration,
}

impl Replays {
    /// Opens the bucket for the stream of this name and time of creation.
    pub(super) async fn open(
        jetstream: &Context,
        settings: &NatsSettings,
        (stream, created_ns): (&str, i64),
        may_make: bool,
    ) -> Result<Self, ReplaysError> {
        let mut replays = Self {
            bucket: settings.state_bucket.clone(),
            store: None,
            stream: stream.to_owned(),
            created_ns,
            limit: Duration::from_millis(settings.request_timeout_ms),
        };
        if !may_make && replays.is_missing(jetstream).await? {
            return Ok(replays);
        }
        let store = open_bucket(jetstream, &replays.bucket, may_make && settings.create_streams).await;
        replays.store = Some(store.map_err(|why| replays.failed(why))?);
        Ok(replays)
    }

    async fn is_missing(&self, jetstream: &Context) -> Result<bool, ReplaysError> {
        match jetstream.get_stream(format!("KV_{}", self.bucket)).await {
            Ok(_) => Ok(false),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error)
                    if error.error_code() == async_nats::jetstream::ErrorCode::STREAM_NOT_FOUND =>
                {
                    Ok(true)
                }
                _ => Err(self.failed(chain(&error))),
            },
        }
    }

    /// What is kept of one letter.
    ///
    /// # Errors
    /// When the bucket cannot be read, or holds something else under the letter's key.
    pub async fn get(&self, sequence: u64) -> Result<Seen, ReplaysError> {
        let Some(store) = &self.store else {
            return Ok(Seen::default());
        };
        let key = self.key(sequence);
        let entry = store.entry(&key).await;
        let Some(entry) = entry.map_err(|error| self.failed(chain(&error)))? else {
            return Ok(Seen::default());
        };
        let kept = match entry.operation {
            Operation::Put => Some(self.parse(&key, &entry.value)?),
            _ => None,
        };
        Ok(Seen {
            marker: kept.clone().filter(|marker| self.is_of_this_life(marker)),
            kept,
            revision: Some(entry.revision),
        })
    }

    /// What is kept of all letters, by sequence.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn all(&self) -> Result<HashMap<u64, Marker>, ReplaysError> {
        let mut markers = self.kept().await?;
        markers.retain(|_, marker| self.is_of_this_life(marker));
        Ok(markers)
    }

    /// Notes that this replay is about to be sent. False when another has noted something since `seen`: then it must not
    /// be sent.
    ///
    /// # Errors
    /// When it is not known to be kept: then it must not be sent either.
    pub async fn begin(
        &self,
        sequence: u64,
        replay: u32,
        now_ms: u64,
        seen: &Seen,
    ) -> Result<bool, ReplaysError> {
        let marker = Marker {
            stream_created_ns: self.created_ns,
            ..Marker::new(replay, now_ms, false)
        };
        self.write(sequence, &marker, seen).await
    }

    /// Notes that this replay was sent.
    ///
    /// # Errors
    /// When it is not known to be kept: the same replay would be sent again.
    pub async fn confirm(&self, sequence: u64, replay: u32, now_ms: u64) -> Result<(), ReplaysError> {
        let marker = Marker {
            stream_created_ns: self.created_ns,
            ..Marker::new(replay, now_ms, true)
        };
        for _ in 0..ATTEMPTS {
            let seen = self.get(sequence).await?;
            let is_higher = seen.kept.as_ref().is_some_and(|kept| !marker.may_replace(kept));
            if is_higher || self.write(sequence, &marker, &seen).await? {
                return Ok(());
            }
        }
        Err(self.failed(format!("others keep changing {}", self.key(sequence))))
    }

    /// Forgets markers of letters that the stream has forgotten: those below `first`, its first sequence, and those of
    /// its earlier lives. Tells how many, at most a thousand.
    ///
    /// # Errors
    /// When the bucket does not answer; what is left is pruned by a later run.
    pub async fn prune(&self, first: u64) -> Result<usize, ReplaysError> {
        let Some(store) = &self.store else {
            return Ok(0);
        };
        let mut pruned = 0;
        for (sequence, marker) in self.kept().await? {
            let is_of_an_earlier_life = marker.stream_created_ns < self.created_ns;
            let is_forgotten = self.is_of_this_life(&marker) && sequence < first;
            if pruned < MOST_PRUNED && (is_of_an_earlier_life || is_forgotten) {
                // Deleting a key would leave a marker of the deletion in the bucket.
                let subject = format!("{}{}", store.prefix, self.key(sequence));
                let gone = store.stream.purge().filter(subject).await;
                gone.map_err(|error| self.failed(chain(&error)))?;
                pruned += 1;
            }
        }
        Ok(pruned)
    }

    /// Whether the marker took the place of what was seen; false when another was faster, or it would not rise.
    async fn write(&self, sequence: u64, marker: &Marker, seen: &Seen) -> Result<bool, ReplaysError> {
        let Some(store) = &self.store else {
            return Err(self.failed("it is not there".to_owned()));
        };
        if seen.kept.as_ref().is_some_and(|kept| !marker.may_replace(kept)) {
            return Ok(false);
        }
        let key = self.key(sequence);
        let body = serde_json::to_vec(marker).expect("a marker holds only numbers");
        let (outrun, why) = match seen.revision {
            None => match store.create(&key, body.into()).await {
                Ok(_) => return Ok(true),
                Err(error) => (error.kind() == CreateErrorKind::AlreadyExists, chain(&error)),
            },
            Some(revision) => match store.update(&key, body.into(), revision).await {
                Ok(_) => return Ok(true),
                Err(error) => (error.kind() == UpdateErrorKind::WrongLastRevision, chain(&error)),
            },
        };
        if outrun { Ok(false) } else { Err(self.failed(why)) }
    }

    /// Every marker under this name of a stream, whatever its life.
    async fn kept(&self) -> Result<HashMap<u64, Marker>, ReplaysError> {
        let mut markers = HashMap::new();
        let Some(store) = &self.store else {
            return Ok(markers);
        };
        let prefix = format!("{}{}", store.prefix, self.key_prefix());
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::LastPerSubject,
            filter_subject: format!("{prefix}*"),
            ..OrderedConfig::default()
        };
        let consumer = store.stream.create_consumer(config).await;
        let consumer = consumer.map_err(|error| self.failed(chain(&error)))?;
        if consumer.cached_info().num_pending == 0 {
            return Ok(markers);
        }
        let messages = consumer.messages().await;
        let mut messages = messages.map_err(|error| self.failed(chain(&error)))?;
        loop {
            let message = match timeout(self.limit, messages.next()).await {
                Ok(Some(message)) => message.map_err(|error| self.failed(chain(&error)))?,
                Ok(None) | Err(_) => return Err(self.failed("the broker sends no more of it".to_owned())),
            };
            let pending = message
                .info()
                .map_err(|error| self.failed(chain(&*error)))?
                .pending;
            let sequence = message.subject.strip_prefix(&prefix);
            // What somebody deleted by hand is an empty message.
            if let (Some(sequence), false) =
                (sequence.and_then(|s| s.parse().ok()), message.payload.is_empty())
            {
                markers.insert(sequence, self.parse(&message.subject, &message.payload)?);
            }
            if pending == 0 {
                return Ok(markers);
            }
        }
    }

    fn parse(&self, key: &str, value: &[u8]) -> Result<Marker, ReplaysError> {
        let parsed = serde_json::from_slice(value);
        parsed.map_err(|error| self.failed(format!("{key} cannot be read: {error}")))
    }

    fn is_of_this_life(&self, marker: &Marker) -> bool {
        marker.stream_created_ns == self.created_ns
    }

    fn key_prefix(&self) -> String {
        format!("replayed.{}.", escaped(&self.stream))
    }

    fn key(&self, sequence: u64) -> String {
        format!("{}{sequence}", self.key_prefix())
    }

    fn failed(&self, why: String) -> ReplaysError {
        let bucket = self.bucket.clone();
        ReplaysError { bucket, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker(stream_created_ns: i64, replay: u32, confirmed: bool) -> Marker {
        Marker {
            stream_created_ns,
            ..Marker::new(replay, 1, confirmed)
        }
    }

    #[test]
    fn a_marker_only_rises_and_what_was_not_confirmed_is_tried_again_under_its_number() {
        let kept = marker(1, 2, true);
        assert!(marker(1, 3, false).may_replace(&kept));
        assert!(!marker(1, 2, false).may_replace(&kept) && !marker(1, 1, true).may_replace(&kept));
        let kept = marker(1, 2, false);
        assert!(marker(1, 2, false).may_replace(&kept) && marker(1, 2, true).may_replace(&kept));
        assert!(!marker(1, 1, true).may_replace(&kept));
        assert!(
            marker(2, 1, false).may_replace(&marker(1, 9, true)),
            "the stream was made anew"
        );
        assert!(!marker(1, 9, true).may_replace(&marker(2, 1, false)));
        assert_eq!((marker(1, 2, true).sent(), marker(1, 2, false).sent()), (2, 1));
    }
}
