//! Writes what leaves the worker: acknowledgements, results, dead letters, each as exact bytes with its headers.
//!
//! Neighbours: intake writes acknowledgements with it, the publisher the rest, [`crate::spill`] results whose outputs are
//! kept elsewhere. Pure but for the given time.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;
use caf_protocol::ack::{ExecAssignmentAck, OverloadStatus, RejectReason};
use caf_protocol::assignment::Identity;
use caf_protocol::block::Outputs;
use caf_protocol::dead_letter::{Attempt, Cause, DeadLetter, Omitted, Original};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::headers::Headers;
use caf_protocol::ids::sha256_hex;
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use caf_protocol::result::{ExecResult, OutputRef};
use serde::Serialize;
use serde_json::{Value, json};

use crate::job::PoolLoad;
use crate::mask::mask_text;
use crate::settings::{DlqSettings, LetterPayload, SubjectSettings};
use crate::sink::Outgoing;

/// What frames the headers of a message and counts with them: the line `NATS/1.0` and the empty line, in bytes.
const FRAMING_BYTES: usize = 12;
/// What frames one header: colon, space, carriage return and line feed, in bytes.
const HEADER_FRAMING_BYTES: usize = 4;
/// What of the room for writing a message is kept for the next one, in bytes: most messages are far smaller.
const MAX_DRAFT_BYTES: usize = 64 * 1024;
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
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenResult {
    /// The message.
    pub message: Outgoing,
    /// Size of the whole result, when it was more than the limit.
    pub too_large_bytes: Option<usize>,
    /// Where its outputs are, when they are kept elsewhere.
    pub output_ref: Option<OutputRef>,
}

impl WrittenResult {
    /// A result with everything in it.
    pub fn whole(message: Outgoing) -> Self {
        Self {
            message,
            too_large_bytes: None,
            output_ref: None,
        }
    }
}

/// A result with everything in it, if that fits.
#[derive(Debug, Clone, PartialEq)]
pub enum Draft {
    /// It fits.
    Whole(Outgoing),
    /// It does not.
    TooLarge {
        /// Size of the whole result.
        bytes: usize,
        /// JSON text of the outputs; absent when there are none, so that keeping them elsewhere would not help.
        outputs: Option<Bytes>,
    },
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

    /// Where results go.
    pub fn result_subject(&self) -> &str {
        &self.subjects.result
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

    /// A result with everything in it, if that is at most `limit` bytes. The step is as it was afterwards.
    pub fn draft(
        &self,
        identity: &Identity,
        step: &mut StepResult,
        load: Option<PoolLoad>,
        limit: usize,
        now_ms: u64,
    ) -> Draft {
        let message = self.write_result(identity, step, load, None, now_ms);
        let bytes = wire_bytes(&message);
        if bytes <= limit {
            return Draft::Whole(message);
        }
        let outputs = Some(outputs_of(&step.outcome)).filter(|outputs| !outputs.is_empty());
        Draft::TooLarge {
            bytes,
            outputs: outputs.map(|outputs| json_of(outputs).into()),
        }
    }

    /// A result of at most `limit` bytes whose outputs do not travel elsewhere. What is larger becomes an error that tells
    /// size and hash of the outputs: never a success with missing data (row 15).
    pub fn result(
        &self,
        identity: &Identity,
        step: &mut StepResult,
        load: Option<PoolLoad>,
        limit: usize,
        now_ms: u64,
    ) -> WrittenResult {
        let bytes = match self.draft(identity, step, load, limit, now_ms) {
            Draft::Whole(message) => return WrittenResult::whole(message),
            Draft::TooLarge { bytes, .. } => bytes,
        };
        let outputs = json_of(outputs_of(&step.outcome));
        let mut outcome = step.outcome.clone();
        match &mut outcome {
            Outcome::Success(_) => outcome = Outcome::Error(too_large(&outputs, limit)),
            // The status stands; outputs and details that do not fit are replaced by their size and hash.
            Outcome::Error(failure) | Outcome::Timeout(failure) | Outcome::Cancelled(failure) => {
                let dropped = too_large(&outputs, limit);
                shorten(failure);
                failure.details.extend(dropped.details);
            }
        }
        let message = self.write_result(identity, &mut StepResult { outcome, ..*step }, load, None, now_ms);
        WrittenResult {
            message,
            too_large_bytes: Some(bytes),
            output_ref: None,
        }
    }

    /// A result whose outputs are `kept` elsewhere, stored before this is called. Its status is that of the job. When
    /// even this is more than `limit` bytes, what a failure says at length is left out, and a success becomes row 15's
    /// error.
    pub fn referring(
        &self,
        identity: &Identity,
        step: &mut StepResult,
        load: Option<PoolLoad>,
        kept: &OutputRef,
        limit: usize,
        now_ms: u64,
    ) -> WrittenResult {
        let whole = wire_bytes(&self.write_result(identity, step, load, None, now_ms));
        let mut message = self.write_result(identity, step, load, Some(kept), now_ms);
        if wire_bytes(&message) > limit {
            match &mut step.outcome {
                Outcome::Success(_) => return self.result(identity, step, load, limit, now_ms),
                Outcome::Error(failure) | Outcome::Timeout(failure) | Outcome::Cancelled(failure) => {
                    shorten(failure);
                }
            }
            message = self.write_result(identity, step, load, Some(kept), now_ms);
        }
        WrittenResult {
            message,
            too_large_bytes: Some(whole),
            output_ref: Some(kept.clone()),
        }
    }

    fn write_result(
        &self,
        identity: &Identity,
        step: &mut StepResult,
        load: Option<PoolLoad>,
        kept: Option<&OutputRef>,
        now_ms: u64,
    ) -> Outgoing {
        // Outputs may be large: they are lent to the result instead of copied.
        let mut outputs = match &mut step.outcome {
            Outcome::Success(outputs) => Some(std::mem::take(outputs)),
            _ => None,
        };
        let mut result = ExecResult::new(identity, step.clone(), &self.worker_id, now_ms);
        if kept.is_none()
            && let Some(outputs) = outputs.take()
        {
            result.outputs = outputs;
        }
        if let Some(load) = load {
            result.overload_status = Some(load.status).filter(|status| *status != OverloadStatus::Healthy);
            result.queue_depth = Some(load.depth as u64).filter(|depth| *depth > 0);
            if let Some(level) = load.degraded {
                result
                    .metadata
                    .insert("degraded".to_owned(), level.as_str().into());
            }
        }
        if let Some(kept) = kept {
            result.outputs.clear();
            result.output_ref = Some(kept.clone());
        }
        let headers = result.headers();
        let message = outgoing(&self.subjects.result, headers, &result);
        if let Outcome::Success(lent) = &mut step.outcome {
            *lent = outputs.unwrap_or(result.outputs);
        }
        message
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

/// What the job yielded, also when it failed.
fn outputs_of(outcome: &Outcome) -> &Outputs {
    match outcome {
        Outcome::Success(outputs) => outputs,
        Outcome::Error(failure) | Outcome::Timeout(failure) | Outcome::Cancelled(failure) => &failure.outputs,
    }
}

fn json_of(outputs: &Outputs) -> Vec<u8> {
    serde_json::to_vec(outputs).expect("outputs are JSON already")
}

/// Leaves out of a failure what may be long. What a block reports of the other side's status stays: the router needs it.
fn shorten(failure: &mut Failure) {
    failure.outputs.clear();
    failure
        .details
        .retain(|key, value| key == "status_code" || !value_is_long(value));
    failure
        .message
        .truncate(failure.message.floor_char_boundary(1024));
}

/// Longer than a fact about a failure needs to be.
pub(crate) fn value_is_long(value: &Value) -> bool {
    value.to_string().len() > 256
}

/// Row 15: what becomes of outputs that do not fit, with their size and hash.
pub(crate) fn too_large(outputs: &[u8], limit: usize) -> Failure {
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
    thread_local! {
        /// Where messages are written before their size is known.
        static DRAFT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let write = |draft: &mut Vec<u8>| {
        serde_json::to_writer(draft, body)
            .expect("messages hold only strings, numbers and maps with string keys");
    };
    let payload = DRAFT.with_borrow_mut(|draft| {
        draft.clear();
        write(draft);
        // Exact: it is kept for as long as the assignment is remembered, and shrinking what has grown by doubling gives
        // nothing back below half.
        let payload = Bytes::copy_from_slice(draft);
        draft.shrink_to(MAX_DRAFT_BYTES);
        payload
    });
    Outgoing {
        subject: subject.to_owned(),
        headers,
        payload,
    }
}

/// Bytes that count against the server's largest message, exactly: headers as they are written, and the payload.
pub fn wire_bytes(message: &Outgoing) -> usize {
    let headers: usize = message
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len() + HEADER_FRAMING_BYTES)
        .sum();
    FRAMING_BYTES + headers + message.payload.len()
}

#[cfg(test)]
mod tests;
