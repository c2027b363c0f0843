//! What is kept of an assignment that cannot be helped (contract 5.2 C): an error result with the original bytes.
//!
//! Neighbours: the publisher and the watch over abandoned messages make one, `caf-worker dlq` reads it. It stays with
//! operators: it may tell what a result must not, but no secrets. Never sent to the router. [`kept`] reads it again.

pub mod kept;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::assignment::Identity;
use crate::error_code::ErrorCode;
use crate::headers::Headers;
use crate::ids::sha256_hex;
use crate::outcome::{Failure, Status};
use crate::result::{ErrorBody, JobRef, breaker_safe_message};
use crate::{VERSION, is_empty_map};

/// Where an assignment came from and what it was, byte for byte.
#[derive(Debug, Clone)]
pub struct Original<'a> {
    /// Subject it arrived on.
    pub subject: &'a str,
    /// Its headers.
    pub headers: &'a Headers,
    /// Its bytes.
    pub payload: &'a [u8],
    /// Stream and sequence, when it came from a stream.
    pub position: Option<(&'a str, u64)>,
    /// When it arrived, in milliseconds since the Unix epoch.
    pub received_at_ms: u64,
}

/// Why a letter is kept, and what was tried before.
#[derive(Debug, Clone, Copy)]
pub struct Cause<'a> {
    /// The root cause.
    pub failure: &'a Failure,
    /// Which rule of the worker sent it here.
    pub reason: &'static str,
    /// Calls of the block beyond the first.
    pub retries_used: u32,
    /// Who took it on, oldest first.
    pub attempts: &'a [Attempt],
}

/// One worker taking an assignment on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Attempt {
    /// Who.
    pub worker_id: String,
    /// Which time it was, from 1.
    pub attempt: u32,
    /// When it began, in milliseconds since the Unix epoch; absent when nothing was begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<u64>,
}

/// Why the original bytes are not in a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Omitted {
    /// The worker's settings say so.
    BySetting,
    /// The letter would be larger than the server takes.
    TooLarge,
}

/// Dead letter, as it travels.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct DeadLetter {
    /// Always `"1"`.
    pub version: &'static str,
    /// The assignment, when the message names a usable one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assignment_id: Option<String>,
    /// As it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// As it came, when the message names a usable one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    /// Always `error`.
    pub status: Status,
    /// As it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<String>,
    /// The job's type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobRef>,
    /// Code of the root cause.
    pub error_code: ErrorCode,
    /// As in the result.
    pub error_type: &'static str,
    /// As in the result.
    pub error_message: String,
    /// The whole error.
    pub error: ErrorBody,
    /// What went wrong from the outside in: the message for the caller, then what the worker knows beyond it.
    pub error_chain: Vec<String>,
    /// Which rule of the worker sent it here.
    pub reason: &'static str,
    /// Who wrote this.
    pub worker_id: String,
    /// Who took the assignment on, oldest first.
    pub attempts: Vec<Attempt>,
    /// Calls of the block beyond the first.
    pub retries_used: u32,
    /// How often the assignment had been replayed from a dead letter when it arrived.
    pub replay: u32,
    /// When it arrived, in milliseconds since the Unix epoch.
    pub received_at: u64,
    /// When this was written, in milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// Subject it arrived on.
    pub original_subject: String,
    /// Lower-case hexadecimal SHA-256 of the original bytes.
    pub original_payload_hash: String,
    /// Number of original bytes.
    pub original_payload_bytes: usize,
    /// The original bytes, when they are UTF-8 and there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_payload: Option<String>,
    /// The original bytes in base64, when they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_payload_base64: Option<String>,
    /// Why the original bytes are not here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_payload_omitted: Option<Omitted>,
    /// The original headers.
    #[serde(skip_serializing_if = "is_empty_map")]
    pub original_headers: Map<String, Value>,
    /// Stream it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Its sequence there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_sequence: Option<u64>,
}

impl DeadLetter {
    /// `identity` is absent when nobody could be answered. `now_ms`: milliseconds since the Unix epoch.
    pub fn new(
        identity: Option<&Identity>,
        cause: &Cause<'_>,
        original: &Original<'_>,
        worker_id: &str,
        now_ms: u64,
    ) -> Self {
        let failure = cause.failure;
        let error = ErrorBody::from(failure);
        let internal = failure.internal.as_deref().filter(|text| !text.is_empty());
        let error_chain = std::iter::once(error.message.as_str()).chain(internal);
        let error_chain = error_chain.map(str::to_owned).collect();
        let text = std::str::from_utf8(original.payload).ok().map(str::to_owned);
        Self {
            version: VERSION,
            assignment_id: identity.map(|i| i.assignment_id.clone()),
            request_id: identity.and_then(|i| i.request_id.clone()),
            tenant_id: identity.map(|i| i.tenant_id.clone()),
            status: Status::Error,
            provider_id: identity.and_then(|i| i.provider_id.clone()),
            job: identity.map(JobRef::from),
            error_code: failure.code,
            error_type: failure.error_type(),
            error_message: breaker_safe_message(failure),
            error,
            error_chain,
            reason: cause.reason,
            worker_id: worker_id.to_owned(),
            attempts: cause.attempts.to_vec(),
            retries_used: cause.retries_used,
            replay: original.headers.replay(),
            received_at: original.received_at_ms,
            timestamp: now_ms,
            original_subject: original.subject.to_owned(),
            original_payload_hash: sha256_hex(original.payload),
            original_payload_bytes: original.payload.len(),
            original_payload_base64: text.is_none().then(|| base64(original.payload)),
            original_payload: text.filter(|text| !text.is_empty()),
            original_payload_omitted: None,
            original_headers: original
                .headers
                .iter()
                .map(|(name, value)| (name.to_owned(), value.into()))
                .collect(),
            stream: original.position.map(|(stream, _)| stream.to_owned()),
            stream_sequence: original.position.map(|(_, sequence)| sequence),
        }
    }

    /// Leaves out the original bytes; hash and size stay.
    pub fn drop_original_payload(&mut self, why: Omitted) {
        self.original_payload = None;
        self.original_payload_base64 = None;
        self.original_payload_omitted = Some(why);
    }

    /// Message id by which a stream drops a second copy.
    pub fn message_id(&self) -> String {
        match (&self.stream, self.stream_sequence, self.replay) {
            (Some(stream), Some(sequence), _) => format!("{stream}.{sequence}.dlq"),
            (_, _, 0) => format!("sha256:{}.dlq", self.original_payload_hash),
            // A replay has the bytes of its original, and its letter is another all the same.
            (_, _, replay) => format!("sha256:{}.r{replay}.dlq", self.original_payload_hash),
        }
    }

    /// Headers that go with it.
    pub fn headers(&self) -> Headers {
        Headers::of_answer(
            self.message_id(),
            self.tenant_id.as_deref().unwrap_or_default(),
            None,
        )
    }
}

/// The original bytes as text in base64; [`kept`] turns it back.
fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
