//! What is known of one assignment: its phase, and what happened in order. Pure.
//!
//! Neighbours: [`super::book`] keeps it as a [`Life`] and bounds it; who asks gets an [`Entry`]. What an event means for the phase is decided here, by its
//! message; a test holds every message against the event that carries it.

use serde::Serialize;
use smol_str::SmolStr;

use super::notes::{Literals, Notes};
use crate::events::{Event, Word};
use crate::mask::mask_text;

/// Happenings that are kept from the beginning of an assignment's life.
pub(super) const FIRST_NOTES: usize = 16;
/// Happenings that are kept beyond those: the last ones. A job that is deferred makes two each time, for minutes.
pub(super) const LAST_NOTES: usize = 32;
/// Longest text of a fact, in bytes.
pub(super) const MAX_TEXT_BYTES: usize = 256;
/// Longest failure text that is masked, in bytes: as in the log.
const MAX_FAILURE_BYTES: usize = 8 * 1024;

/// Fields of events that are kept: ids, codes and numbers.
pub(super) const FACTS: [&str; 53] = [
    "acknowledgement_at_ms",
    "attempt",
    "backoff_delay_ms",
    "broker_told",
    "cancel_reason",
    "circuit_breaker",
    "dead_letter_at_ms",
    "deaths",
    "degraded",
    "delay_ms",
    "deliveries",
    "elapsed_ms",
    "endpoint",
    "error_code",
    "from_worker",
    "given_back",
    "handed_back",
    "last_error_code",
    "latency_ms",
    "limit",
    "limit_bytes",
    "limit_ms",
    "max_attempts",
    "max_queue_size",
    "next_wait_ms",
    "operation_type",
    "outputs_bytes",
    "overload_status",
    "part",
    "queue_depth",
    "queued_ms",
    "ran_alone",
    "reason",
    "rejection_reason",
    "replay",
    "requested_by",
    "requested_for",
    "resource_class",
    "resource_pool",
    "response_code",
    "result_at_ms",
    "result_bytes",
    "retries_used",
    "retry_after_ms",
    "retry_budget",
    "status",
    "stream",
    "stream_sequence",
    "time_left_ms",
    "time_limit_ms",
    "timeout_ms",
    "timeout_type",
    "waiting",
];

/// What stands for the masked text of a failure beside [`FACTS`].
pub(super) const ERROR: u8 = FACTS.len() as u8;

/// What an event means here, by its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    Received,
    Accepted,
    Started,
    CalledAgain,
    CallFailed,
    /// A refusal: nothing ran.
    Rejected,
    Ended,
    Concluded,
    Deferred,
    Asking,
    Suppressed,
    AnsweredAgain,
    CutOff,
    NotRun,
    Unreadable,
    /// Another event of the same moment says the same: the start of a job, the call that begins.
    Repetition,
    /// A repetition where it tells of a full queue.
    QueueRejection,
    ActorRestarted,
    ShuttingDown,
    /// It is noted.
    Other,
}

impl Meaning {
    pub(super) fn of(message: &str) -> Self {
        match message {
            "Assignment received" => Self::Received,
            "Assignment accepted" => Self::Accepted,
            "Step execution started" => Self::Started,
            "Attempt started" => Self::CalledAgain,
            "Attempt failed" => Self::CallFailed,
            "Assignment rejected" | "Unknown block type" | "Queue full - rejecting request" => Self::Rejected,
            "Step execution completed" | "Step execution failed" | "Step canceled" => Self::Ended,
            "Assignment concluded" | "Approval answered" => Self::Concluded,
            "Assignment deferred" => Self::Deferred,
            "Assignment set aside for approval" => Self::Asking,
            "Result suppressed" => Self::Suppressed,
            "Assignment answered again" => Self::AnsweredAgain,
            "Step cut off by shutdown" => Self::CutOff,
            "Assignment not run" => Self::NotRun,
            "Assignment unreadable" => Self::Unreadable,
            "Processing queued request" | "Retry attempt started" => Self::Repetition,
            "Queue rejection" => Self::QueueRejection,
            "Actor failed, restarting" => Self::ActorRestarted,
            "Worker shutting down" => Self::ShuttingDown,
            _ => Self::Other,
        }
    }
}

/// Where an assignment is, as far as this worker knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Received; its row is not chosen yet, or the fleet is asked for the right to answer.
    Deciding,
    /// Let in; no slot was free yet.
    Waiting,
    /// A call runs.
    Running,
    /// A call failed, the next one waits for its time; it keeps its slot.
    WaitingForRetry,
    /// It has ended or was refused; its answer is on its way.
    Answering,
    /// Sent back to the broker for a while, since its pool is loaded.
    Deferred,
    /// Given back to the broker for whoever is next.
    Returned,
    /// It has asked people, and waits for their answer; no worker has it in hand.
    Asking,
    /// Another worker has it.
    Elsewhere,
    /// Everything is said.
    Finished,
}

impl Phase {
    /// Whether this worker has it in hand.
    pub fn is_active(self) -> bool {
        matches!(
            self,
            Self::Deciding | Self::Waiting | Self::Running | Self::WaitingForRetry | Self::Answering
        )
    }

    /// Whether it has a slot.
    pub fn has_slot(self) -> bool {
        matches!(self, Self::Running | Self::WaitingForRetry)
    }

    /// The phase after an event.
    fn after(self, meaning: Meaning, event: &Event) -> Self {
        let active = self.is_active();
        let unless_active = |phase| if active { self } else { phase };
        let unless_taken_on = |phase| match self {
            Self::Waiting | Self::Running | Self::WaitingForRetry | Self::Answering => self,
            _ => phase,
        };
        match meaning {
            // Comes again while it is held.
            Meaning::Received => unless_active(Self::Deciding),
            Meaning::Accepted => Self::Waiting,
            Meaning::Started | Meaning::CalledAgain => Self::Running,
            Meaning::CallFailed => Self::WaitingForRetry,
            Meaning::Rejected | Meaning::Ended => Self::Answering,
            Meaning::Concluded => Self::Finished,
            Meaning::Deferred => Self::Deferred,
            Meaning::Asking => Self::Asking,
            Meaning::Suppressed => Self::Elsewhere,
            Meaning::AnsweredAgain => unless_taken_on(Self::Finished),
            Meaning::CutOff if is_true(event, "handed_back") => Self::Returned,
            Meaning::NotRun => match text(event, "reason") {
                "draining" | "its lease lapsed while claims were away" => Self::Returned,
                "answered before; nothing is repeated" => unless_taken_on(Self::Finished),
                "held here" | "copy of an assignment that is held" => self,
                _ => unless_taken_on(Self::Elsewhere),
            },
            _ => self,
        }
    }
}

/// A value of a happening.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Fact {
    /// A number.
    Number(u64),
    /// Yes or no.
    Flag(bool),
    /// A token, an id, or the masked text of a failure.
    Text(SmolStr),
}

/// One happening.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Note {
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The message of its event.
    pub event: &'static str,
    /// What the event said.
    #[serde(serialize_with = "as_object")]
    pub facts: Box<[(&'static str, Fact)]>,
}

fn as_object<S: serde::Serializer>(facts: &[(&'static str, Fact)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(facts.iter().map(|(key, fact)| (key, fact)))
}

impl Note {
    /// A number that the event said.
    pub fn number(&self, key: &str) -> Option<u64> {
        match self.fact(key)? {
            Fact::Number(number) => Some(*number),
            Fact::Flag(_) | Fact::Text(_) => None,
        }
    }

    /// A text that the event said.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.fact(key)? {
            Fact::Text(text) => Some(text),
            Fact::Flag(_) | Fact::Number(_) => None,
        }
    }

    /// Whether the event said yes to this.
    pub fn is_true(&self, key: &str) -> bool {
        self.fact(key) == Some(&Fact::Flag(true))
    }

    fn fact(&self, key: &str) -> Option<&Fact> {
        let found = self.facts.iter().find(|(name, _)| *name == key);
        found.map(|(_, fact)| fact)
    }
}

/// The text of a failure as people may see it: masked before it is cut, for half a secret is not recognised.
pub(super) fn masked(text: &str) -> String {
    let text = mask_text(cut(text, MAX_FAILURE_BYTES));
    cut(&text, MAX_TEXT_BYTES).to_owned()
}

pub(super) fn cut(text: &str, max_bytes: usize) -> &str {
    let mut end = text.len().min(max_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

pub(super) fn text<'a>(event: &'a Event, key: &str) -> &'a str {
    event.field(key).and_then(Word::as_str).unwrap_or_default()
}

fn is_true(event: &Event, key: &str) -> bool {
    event.field(key).is_some_and(Word::is_true)
}

fn number(event: &Event, key: &str) -> Option<u64> {
    event.field(key).and_then(Word::as_u64)
}

/// The type of the job that an event is about.
pub(super) fn job_type(event: &Event) -> &str {
    match event.identity() {
        Some(identity) => identity.job_type.as_deref().unwrap_or("unknown"),
        None => text(event, "block_type"),
    }
}

/// What is known of one assignment.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where it is.
    pub phase: Phase,
    /// Its job type.
    pub job_type: SmolStr,
    /// Pool that has taken it.
    pub pool: Option<SmolStr>,
    /// When the pool took it.
    pub accepted_ms: Option<u64>,
    /// When it got its slot.
    pub started_ms: Option<u64>,
    /// When it must be over.
    pub deadline_ms: Option<u64>,
    /// Number of the call that runs or comes next, from 1.
    pub attempt: u32,
    /// Most calls, as far as known: it may depend on the failure.
    pub max_attempts: Option<u32>,
    /// Until when it is away or waits for its next call.
    pub until_ms: Option<u64>,
    /// How much happened and is not kept.
    pub left_out: u64,
    notes: Vec<Note>,
    begun_with: usize,
}

impl Entry {
    /// What happened, in order; [`Entry::left_out`] says how much is missing, after the first [`Entry::begun_with`].
    pub fn notes(&self) -> impl DoubleEndedIterator<Item = &Note> {
        self.notes.iter()
    }

    /// How many of the notes are from the beginning.
    pub fn begun_with(&self) -> usize {
        self.begun_with
    }
}

/// The same as it is kept; for what is what see [`Entry`].
pub(super) struct Life {
    pub(super) phase: Phase,
    pub(super) pool: Option<SmolStr>,
    pub(super) accepted_ms: Option<u64>,
    pub(super) started_ms: Option<u64>,
    pub(super) deadline_ms: Option<u64>,
    pub(super) until_ms: Option<u64>,
    pub(super) attempt: u32,
    pub(super) max_attempts: Option<u32>,
    notes: Notes,
}

impl Life {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Elsewhere,
            pool: None,
            accepted_ms: None,
            started_ms: None,
            deadline_ms: None,
            until_ms: None,
            attempt: 1,
            max_attempts: None,
            notes: Notes::default(),
        }
    }

    /// Notes an event that means this, and that `note` tells.
    pub(super) fn note(&mut self, meaning: Meaning, event: &Event, at_ms: u64, note: &[u8]) {
        self.phase = self.phase.after(meaning, event);
        let max_attempts = || number(event, "max_attempts").and_then(|max| max.try_into().ok());
        let in_ms = |key| number(event, key).map(|delay| at_ms.saturating_add(delay));
        match meaning {
            Meaning::Accepted => {
                self.pool = Some(text(event, "resource_class").into());
                self.accepted_ms = Some(at_ms);
                self.started_ms = None;
                self.deadline_ms = in_ms("time_left_ms");
                self.attempt = 1;
                self.max_attempts = max_attempts();
            }
            Meaning::Started => self.started_ms = Some(at_ms),
            Meaning::CallFailed => {
                self.until_ms = in_ms("backoff_delay_ms");
                self.attempt = self.attempt.saturating_add(1);
            }
            Meaning::CalledAgain => self.max_attempts = max_attempts(),
            Meaning::Deferred => self.until_ms = in_ms("delay_ms"),
            _ => {}
        }
        self.notes.push(note);
    }

    /// All of it, to be read.
    pub(super) fn entry(&self, job_type: &str, literals: &Literals) -> Entry {
        let (notes, begun_with, left_out) = self.notes.read(literals);
        Entry {
            phase: self.phase,
            job_type: job_type.into(),
            pool: self.pool.clone(),
            accepted_ms: self.accepted_ms,
            started_ms: self.started_ms,
            deadline_ms: self.deadline_ms,
            attempt: self.attempt,
            max_attempts: self.max_attempts,
            until_ms: self.until_ms,
            left_out,
            notes,
            begun_with,
        }
    }

    /// Bytes beside itself. Names of pools stand in place.
    pub(super) fn bytes(&self) -> usize {
        self.notes.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_sorted_so_that_they_are_found() {
        assert!(FACTS.is_sorted());
    }
}
