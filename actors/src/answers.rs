//! Writes what leaves the worker: acknowledgements, results, dead letters, each as exact bytes with its headers.
//!
//! Neighbours: intake writes acknowledgements with it, the publisher the rest. Pure but for the given time.

use std::sync::Arc;

use bytes::Bytes;
use caf_protocol::ack::{ExecAssignmentAck, OverloadStatus, RejectReason};
use caf_protocol::assignment::Identity;
use caf_protocol::dead_letter::{Attempt, Cause, DeadLetter, Omitted, Original};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::headers::Headers;
use caf_protocol::ids::sha256_hex;
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use caf_protocol::result::ExecResult;
use serde::Serialize;
use serde_json::{Value, json};

use crate::job::PoolLoad;
use crate::mask::mask_text;
use crate::settings::{DlqSettings, LetterPayload, SubjectSettings};
use crate::sink::Outgoing;

/// Room that the broker's own framing may need beside headers and payload, in bytes.
const FRAMING_BYTES: usize = 64;
/// Most bytes of one text about a failure in a dead letter: libraries quote what they were given.
const MAX_CAUSE_BYTES: usize = 4096;

/// Writes answers in the name of one worker. Cheap to clone.
#[derive(Clone)]
pub struct Answers {
    subjects: Arc<SubjectSettings>,
    worker_id: Arc<str>,
    letter_payload: LetterPayload,
}

/// A result as written, and whether its outputs had to be left out.
pub struct WrittenResult {
    /// The message.
    pub message: Outgoing,
    /// Size of the whole result, when it was more than the limit.
    pub too_large_bytes: Option<usize>,
}

impl Answers {
    /// Answers to these subjects.
    pub fn new(subjects: &SubjectSettings, worker_id: &str) -> Self {
        Self {
            subjects: Arc::new(subjects.clone()),
            worker_id: worker_id.into(),
            letter_payload: LetterPayload::Include,
        }
    }

    /// Dead letters as these settings want them.
    #[must_use]
    pub fn with_letters(mut self, settings: &DlqSettings) -> Self {
        self.letter_payload = settings.payload;
        self
    }

    /// This worker taking an assignment on for the first time; `started_at_ms` when something was begun.
    pub fn own_attempt(&self, started_at_ms: Option<u64>) -> Attempt {
        Attempt {
            worker_id: self.worker_id.to_string(),
            attempt: 1,
            started_at: started_at_ms,
        }
    }

    /// An acknowledgement; `rejection` is absent for an accepted job.
    pub fn ack(
        &self,
        identity: &Identity,
        rejection: Option<RejectReason>,
        overload: Option<OverloadStatus>,
        now_ms: u64,
    ) -> Outgoing {
        let ack = ExecAssignmentAck::new(identity, rejection, overload, now_ms);
        let headers = ack.headers();
        outgoing(&self.subjects.ack, headers, &ack)
    }

    /// A result of at most `limit` bytes. What is larger becomes an error that tells size and hash of the outputs:
    /// never a success with missing data (row 15).
    pub fn result(
        &self,
        identity: &Identity,
        step: &StepResult,
        load: Option<PoolLoad>,
        limit: usize,
        now_ms: u64,
    ) -> WrittenResult {
        let message = self.write_result(identity, step.clone(), load, now_ms);
        let size = wire_bytes(&message);
        if size <= limit {
            return WrittenResult {
                message,
                too_large_bytes: None,
            };
        }
        let outputs = match &step.outcome {
            Outcome::Success(outputs) => Some(outputs),
            other => other.failure().map(|failure| &failure.outputs),
        };
        let outputs = serde_json::to_vec(&outputs).unwrap_or_default();
        let mut outcome = step.outcome.clone();
        match &mut outcome {
            Outcome::Success(_) => outcome = Outcome::Error(too_large(&outputs, limit)),
            Outcome::Error(failure) | Outcome::Timeout(failure) | Outcome::Cancelled(failure) => {
                // The status stands; outputs and details that do not fit are replaced by their size and hash.
                let dropped = too_large(&outputs, limit);
                failure.outputs.clear();
                // What a block reports stays: the router needs the status of the other side.
                failure
                    .details
                    .retain(|key, value| key == "status_code" || !value_is_long(value));
                failure.details.extend(dropped.details);
                failure
                    .message
                    .truncate(failure.message.floor_char_boundary(1024));
            }
        }
        let message = self.write_result(identity, StepResult { outcome, ..*step }, load, now_ms);
        WrittenResult {
            message,
            too_large_bytes: Some(size),
        }
    }

    fn write_result(
        &self,
        identity: &Identity,
        step: StepResult,
        load: Option<PoolLoad>,
        now_ms: u64,
    ) -> Outgoing {
        let mut result = ExecResult::new(identity, step, &self.worker_id, now_ms);
        if let Some(load) = load {
            result.overload_status = Some(load.status).filter(|status| *status != OverloadStatus::Healthy);
            result.queue_depth = Some(load.depth as u64).filter(|depth| *depth > 0);
        }
        let headers = result.headers();
        outgoing(&self.subjects.result, headers, &result)
    }

    /// A dead letter of at most `limit` bytes; original bytes that do not fit are left out, hash and size stay. What the
    /// worker knows of the failure beyond the answer is in it, without secrets.
    pub fn dead_letter(
        &self,
        identity: Option<&Identity>,
        cause: &Cause<'_>,
        original: &Original<'_>,
        limit: usize,
        now_ms: u64,
    ) -> Outgoing {
        let mut letter = DeadLetter::new(identity, cause, original, &self.worker_id, now_ms);
        for text in &mut letter.error_chain {
            *text = mask_text(text).into_owned();
            text.truncate(text.floor_char_boundary(MAX_CAUSE_BYTES));
        }
        if self.letter_payload == LetterPayload::Hash {
            letter.drop_original_payload(Omitted::BySetting);
        }
        let headers = letter.headers();
        let shrink: [fn(&mut DeadLetter); 2] = [
            |letter| letter.drop_original_payload(Omitted::TooLarge),
            // A letter that cannot be kept tells nobody anything.
            |letter| {
                letter.error.details.retain(|_, value| !value_is_long(value));
                letter.original_headers.clear();
            },
        ];
        let mut message = outgoing(&self.subjects.dlq, headers.clone(), &letter);
        for shrink in shrink {
            if wire_bytes(&message) > limit {
                shrink(&mut letter);
                message = outgoing(&self.subjects.dlq, headers.clone(), &letter);
            }
        }
        message
    }
}

/// Longer than a fact about a failure needs to be.
fn value_is_long(value: &Value) -> bool {
    value.to_string().len() > 256
}

fn too_large(outputs: &[u8], limit: usize) -> Failure {
    Failure::new(
        ErrorCode::ResourceUnavailable,
        "outputs: larger than the largest message that the server takes",
    )
    .with("field", json!("outputs"))
    .with("outputs_bytes", json!(outputs.len()))
    .with("outputs_sha256", json!(sha256_hex(outputs)))
    .with("limit_bytes", json!(limit))
}

fn outgoing(subject: &str, headers: Headers, body: &impl Serialize) -> Outgoing {
    let payload =
        serde_json::to_vec(body).expect("messages hold only strings, numbers and maps with string keys");
    Outgoing {
        subject: subject.to_owned(),
        headers,
        payload: Bytes::from(payload),
    }
}

/// Bytes that count against the server's largest message: headers as they are written, and the payload.
fn wire_bytes(message: &Outgoing) -> usize {
    let headers: usize = message
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len() + 4)
        .sum();
    FRAMING_BYTES + headers + message.payload.len()
}

#[cfg(test)]
mod tests {
    use caf_protocol::block::Outputs;

    use super::*;

    fn answers() -> Answers {
        Answers::new(&SubjectSettings::default(), "w")
    }

    fn step(text: &str) -> StepResult {
        let outputs = Outputs::from_iter([("text".to_owned(), json!(text))]);
        StepResult {
            outcome: Outcome::Success(outputs),
            latency_ms: 1,
            retries_used: 0,
        }
    }

    fn identity() -> Identity {
        Identity {
            assignment_id: "a".into(),
            tenant_id: "t".into(),
            ..Identity::default()
        }
    }

    fn original<'a>(headers: &'a Headers, payload: &'a [u8]) -> Original<'a> {
        Original {
            subject: "s",
            headers,
            payload,
            position: None,
            received_at_ms: 1,
        }
    }

    fn cause(failure: &Failure) -> Cause<'_> {
        static ATTEMPT: std::sync::LazyLock<[Attempt; 1]> =
            std::sync::LazyLock::new(|| [answers().own_attempt(Some(7))]);
        Cause {
            failure,
            reason: "unreadable",
            retries_used: 3,
            attempts: &*ATTEMPT,
        }
    }

    #[test]
    fn a_result_of_exactly_the_limit_travels_whole_and_one_byte_more_does_not() {
        let whole = answers()
            .result(&identity(), &step("hello"), None, usize::MAX, 1)
            .message;
        let exact = wire_bytes(&whole);
        assert_eq!(
            answers()
                .result(&identity(), &step("hello"), None, exact, 1)
                .message,
            whole
        );
        let cut = answers().result(&identity(), &step("hello"), None, exact - 1, 1);
        assert_eq!(cut.too_large_bytes, Some(exact));
        let body: Value = serde_json::from_slice(&cut.message.payload).expect("json");
        assert_eq!(
            (&body["status"], &body["error_code"]),
            (&json!("error"), &json!("RESOURCE_UNAVAILABLE"))
        );
        let outputs = serde_json::to_vec(&json!({"text": "hello"})).expect("json");
        assert_eq!(body["error"]["details"]["outputs_bytes"], outputs.len());
        assert_eq!(body["error"]["details"]["outputs_sha256"], sha256_hex(&outputs));
        assert_eq!(body["outputs"], json!({}));
    }

    #[test]
    fn a_failure_that_does_not_fit_keeps_the_status_of_the_other_side() {
        let mut failure =
            Failure::new(ErrorCode::HttpError, "the server failed").with("status_code", json!(503));
        failure
            .outputs
            .insert("body".to_owned(), json!("x".repeat(5_000)));
        failure
            .details
            .insert("long".to_owned(), json!("x".repeat(5_000)));
        let step = StepResult {
            outcome: Outcome::from(failure),
            latency_ms: 1,
            retries_used: 0,
        };
        let cut = answers().result(&identity(), &step, None, 2_000, 1);
        assert!(wire_bytes(&cut.message) <= 2_000);
        let body: Value = serde_json::from_slice(&cut.message.payload).expect("json");
        assert_eq!(
            (&body["error_type"], &body["error"]["retryable"]),
            (&json!("server_error"), &json!(true))
        );
        assert_eq!(body["error"]["details"]["status_code"], 503);
        assert!(body["error"]["details"]["outputs_bytes"].as_u64() > Some(5_000));
    }

    #[test]
    fn a_dead_letter_that_does_not_fit_keeps_hash_and_size() {
        let headers = Headers::default();
        let original = original(&headers, &[b'x'; 5000]);
        let failure = Failure::new(ErrorCode::InvalidFormat, "payload: is not valid JSON")
            .with("long", json!("x".repeat(3_000)));
        let body = |limit| -> Value {
            let letter = answers().dead_letter(None, &cause(&failure), &original, limit, 2);
            assert!(wire_bytes(&letter) <= limit);
            serde_json::from_slice(&letter.payload).expect("json")
        };
        assert_eq!(
            body(10_000)["original_payload"].as_str().map(str::len),
            Some(5000)
        );
        let cut = body(5000);
        assert_eq!(cut.get("original_payload"), None);
        assert_eq!(
            (&cut["original_payload_bytes"], &cut["original_payload_hash"]),
            (&json!(5000), &json!(sha256_hex(&[b'x'; 5000])))
        );
        assert_eq!(cut["original_payload_omitted"], "too_large");
        assert!(cut["error"]["details"]["long"].is_string());
        assert_eq!(body(2000)["error"]["details"].get("long"), None);
    }

    #[test]
    fn a_dead_letter_tells_operators_the_whole_chain_without_secrets() {
        let failure = Failure::new(ErrorCode::NetworkError, "the server cannot be reached").internally(
            format!("dial db.internal: password=hunter2 {}", "y".repeat(10_000)),
        );
        let headers = Headers::default();
        let original = original(&headers, b"{}");
        let letter = answers().dead_letter(None, &cause(&failure), &original, usize::MAX, 2);
        let body: Value = serde_json::from_slice(&letter.payload).expect("json");
        assert_eq!(body["error_chain"][0], "the server cannot be reached");
        let inner = body["error_chain"][1].as_str().expect("is text");
        assert!(
            inner.starts_with("dial db.internal: password=[REDACTED]"),
            "{inner}"
        );
        assert_eq!(inner.len(), MAX_CAUSE_BYTES);
        assert!(!String::from_utf8_lossy(&letter.payload).contains("hunter2"));
        assert!(!body["error"].to_string().contains("db.internal"));
        assert_eq!(
            body["attempts"],
            json!([{"worker_id": "w", "attempt": 1, "started_at": 7}])
        );
        assert_eq!((&body["retries_used"], &body["replay"]), (&json!(3), &json!(0)));
    }

    #[test]
    fn a_dead_letter_keeps_only_the_hash_when_the_settings_say_so() {
        let mut headers = Headers::default();
        headers.push("Caf-Replay", "2");
        let failure = Failure::new(ErrorCode::InvalidFormat, "x");
        let settings = DlqSettings {
            payload: LetterPayload::Hash,
        };
        let letter = answers().with_letters(&settings).dead_letter(
            None,
            &cause(&failure),
            &original(&headers, b"top secret"),
            usize::MAX,
            2,
        );
        assert!(!String::from_utf8_lossy(&letter.payload).contains("top secret"));
        let body: Value = serde_json::from_slice(&letter.payload).expect("json");
        assert_eq!(body["original_payload_hash"], sha256_hex(b"top secret"));
        assert_eq!(
            (&body["original_payload_omitted"], &body["original_payload_bytes"]),
            (&json!("by_setting"), &json!(10))
        );
        assert_eq!(
            (&body["replay"], &body["original_headers"]["Caf-Replay"]),
            (&json!(2), &json!("2"))
        );
        let id = format!("sha256:{}.r2.dlq", sha256_hex(b"top secret"));
        assert_eq!(letter.headers.get("Nats-Msg-Id"), Some(id.as_str()));
    }
}
