//! Outputs that do not fit a result: kept elsewhere, with a reference in the result. Row 15's error where that cannot be.
//!
//! Neighbours: the publisher asks [`Spiller::result`] for the result of a job before it sends or stores anything;
//! `answers` writes; `nats::objects` is the real [`OutputStore`], tests bring their own. Never a success with missing
//! data: a reference is written only after its object is stored.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use caf_protocol::assignment::Identity;
use caf_protocol::ids::{AssignmentKey, sha256_hex};
use caf_protocol::outcome::StepResult;
use caf_protocol::result::OutputRef;
use futures_util::future::BoxFuture;

use crate::answers::{Answers, Draft, WrittenResult};
use crate::clock::whole_ms;
use crate::events::{self, Log};
use crate::job::PoolLoad;

/// Wait before a store that is away is asked again: an outage lasts seconds at least.
const RETRY_WAIT: Duration = Duration::from_secs(1);
/// How often a store is asked that does not answer although the broker is there: minutes. A broker that does not let this
/// worker use object stores is silent too, and the job must end.
const MAX_SILENT_TRIES: u32 = 60;

/// Why outputs were not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The broker is away: ask again when it is back.
    #[error("the broker is away")]
    Away,
    /// The broker is there, the store is not: ask again, but not for ever.
    #[error("not stored: {0}")]
    Unavailable(String),
    /// The store will not take them. Asking again is pointless.
    #[error("refused: {0}")]
    Refused(String),
}

/// Where outputs are kept.
pub trait OutputStore: Send + Sync + 'static {
    /// Stores an object once. The same key always comes with the same bytes: storing it again changes nothing. Resolves
    /// when it is confirmed as stored; never waits without limit.
    fn put(&self, object: OutputObject) -> BoxFuture<'static, Result<OutputRef, StoreError>>;
}

/// Outputs on their way to a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputObject {
    /// Key: the assignment and the content, so that a repeat finds its own object.
    pub key: String,
    /// JSON text of the outputs.
    pub bytes: Bytes,
    /// SHA-256 of the bytes: 64 lower-case hexadecimal digits.
    pub sha256: String,
}

impl OutputObject {
    /// The object of these outputs of this assignment.
    pub fn new(assignment: &AssignmentKey, bytes: Bytes) -> Self {
        let sha256 = sha256_hex(&bytes);
        let key = format!("{}/{sha256}", assignment.as_str());
        Self { key, bytes, sha256 }
    }
}

/// Writes results, and keeps elsewhere what does not fit. Cheap to clone.
#[derive(Clone)]
pub struct Spiller {
    store: Option<Arc<dyn OutputStore>>,
    log: Log,
}

impl Spiller {
    /// Spills into `store`; without one (switched off, core and local mode) outputs that do not fit end as row 15's error.
    pub fn new(store: Option<Arc<dyn OutputStore>>, log: Log) -> Self {
        Self { store, log }
    }

    /// The result of a job, at most `limit` bytes: whole, or with a reference to its outputs, or row 15's error. Waits
    /// for as long as the broker is away; may be dropped at any time and asked again.
    pub async fn result(
        &self,
        answers: &Answers,
        (identity, step): (&Arc<Identity>, &mut StepResult),
        load: Option<PoolLoad>,
        limit: usize,
        now_ms: u64,
    ) -> WrittenResult {
        let outputs = match answers.draft(identity, step, load, limit, now_ms) {
            Draft::Whole(message) => return WrittenResult::whole(message),
            Draft::TooLarge { outputs, .. } => outputs,
        };
        match self.keep(identity, outputs).await {
            Some(kept) => answers.referring(identity, step, load, &kept, limit, now_ms),
            None => answers.result(identity, step, load, limit, now_ms),
        }
    }

    /// Stores until it is stored or refused.
    pub(crate) async fn keep(&self, identity: &Arc<Identity>, outputs: Option<Bytes>) -> Option<OutputRef> {
        let store = self.store.as_ref()?;
        let object = OutputObject::new(&identity.key(), outputs?);
        let mut silent_tries = 0;
        loop {
            let error = match store.put(object.clone()).await {
                Ok(kept) => {
                    self.log.emit(events::outputs_spilled(identity, kept.size));
                    return Some(kept);
                }
                Err(error) => error,
            };
            silent_tries += u32::from(matches!(error, StoreError::Unavailable(_)));
            if matches!(error, StoreError::Refused(_)) || silent_tries >= MAX_SILENT_TRIES {
                let error = error.to_string();
                self.log.emit(events::outputs_refused(identity, &error));
                return None;
            }
            let (error, wait_ms) = (error.to_string(), whole_ms(RETRY_WAIT));
            self.log.emit(events::outputs_retried(identity, &error, wait_ms));
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }
}

#[cfg(test)]
mod tests;
