//! What is known of one assignment: its phase, and what happened in order. Pure.
//!
//! Neighbours: [`super::book`] keeps entries and bounds them. What an event means for the phase is decided here, by its
//! message; a test holds every message against the event that carries it.

use std::collections::VecDeque;

use serde::Serialize;
use smol_str::SmolStr;

use crate::events::{Event, Word};
use crate::mask::mask_text;

/// Happenings that are kept from the beginning of an assignment's life.
pub(super) const FIRST_NOTES: usize = 16;
/// Happenings that are kept beyond those: the last ones. A job that is deferred makes two each time, for minutes.
pub(super) const LAST_NOTES: usize = 32;
/// Longest text of a fact, in bytes.
const MAX_TEXT_BYTES: usize = 256;
/// Longest failure text that is masked, in bytes: as in the log.
const MAX_FAILURE_BYTES: usize = 8 * 1024;

/// Fields of events that are kept: ids, codes and numbers.
const FACTS: [&str; 53] = [
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
    fn after(self, event: &Event) -> Self {
        let active = self.is_active();
        let unless_active = |phase| if active { self } else { phase };
        let unless_taken_on = |phase| match self {
            Self::Waiting | Self::Running | Self::WaitingForRetry | Self::Answering => self,
            _ => phase,
        };
        match event.message() {
            // Comes again while it is held.
            "Assignment received" => unless_active(Self::Deciding),
            "Assignment accepted" => Self::Waiting,
            "Step execution started" | "Attempt started" => Self::Running,
            "Attempt failed" => Self::WaitingForRetry,
            "Assignment rejected" | "Unknown block type" | "Queue full - rejecting request" => {
                Self::Answering
            }
            "Step execution completed" | "Step execution failed" | "Step canceled" => Self::Answering,
            "Assignment concluded" | "Approval answered" => Self::Finished,
            "Assignment deferred" => Self::Deferred,
            "Assignment set aside for approval" => Self::Asking,
            "Result suppressed" => Self::Elsewhere,
            "Assignment answered again" => unless_taken_on(Self::Finished),
            "Step cut off by shutdown" if is_true(event, "handed_back") => Self::Returned,
            "Assignment not run" => match text(event, "reason") {
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
    fn of(event: &Event, at_ms: u64) -> Self {
        let known = event.fields().filter_map(|(key, value)| {
            let at = FACTS.binary_search(&key).ok()?;
            Some((FACTS[at], fact(value)?))
        });
        let mut facts: Vec<_> = known.collect();
        if let Some(identity) = event.identity().filter(|identity| identity.replay > 0) {
            facts.push(("replay", Fact::Number(identity.replay.into())));
        }
        if let Some(error) = event.field("error").and_then(Word::as_str) {
            facts.push(("error", Fact::Text(masked(error).into())));
        }
        Self {
            at_ms,
            event: event.message(),
            facts: facts.into(),
        }
    }

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

    fn bytes(&self) -> usize {
        let texts = self.facts.iter().map(|(_, fact)| match fact {
            Fact::Text(text) => text.len(),
            Fact::Number(_) | Fact::Flag(_) => 0,
        });
        size_of::<Self>() + self.facts.len() * size_of::<(&str, Fact)>() + texts.sum::<usize>()
    }
}

fn fact(value: &Word) -> Option<Fact> {
    match value {
        Word::Number(number) => Some(Fact::Number(*number)),
        Word::Flag(flag) => Some(Fact::Flag(*flag)),
        Word::Text(text) if text.len() <= MAX_TEXT_BYTES => Some(Fact::Text(text.clone())),
        Word::Text(text) => Some(Fact::Text(cut(text, MAX_TEXT_BYTES).into())),
        Word::Other(_) => None,
    }
}

/// The text of a failure as people may see it: masked before it is cut, for half a secret is not recognised.
pub(super) fn masked(text: &str) -> String {
    let text = mask_text(cut(text, MAX_FAILURE_BYTES));
    cut(&text, MAX_TEXT_BYTES).to_owned()
}

fn cut(text: &str, max_bytes: usize) -> &str {
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
    /// What happened first, in order.
    first: Vec<Note>,
    /// What happened last, in order.
    last: VecDeque<Note>,
    /// How much happened in between and is not kept.
    pub left_out: u64,
    notes_bytes: usize,
}

impl Entry {
    pub(super) fn new(event: &Event) -> Self {
        Self {
            phase: Phase::Elsewhere,
            job_type: cut(job_type(event), MAX_TEXT_BYTES).into(),
            pool: None,
            accepted_ms: None,
            started_ms: None,
            deadline_ms: None,
            attempt: 1,
            max_attempts: None,
            until_ms: None,
            first: Vec::new(),
            last: VecDeque::new(),
            left_out: 0,
            notes_bytes: 0,
        }
    }

    pub(super) fn note(&mut self, event: &Event, at_ms: u64) {
        self.phase = self.phase.after(event);
        match event.message() {
            "Assignment accepted" => {
                self.pool = Some(text(event, "resource_class").into());
                self.accepted_ms = Some(at_ms);
                self.started_ms = None;
                self.deadline_ms = number(event, "time_left_ms").map(|left| at_ms.saturating_add(left));
                self.attempt = 1;
                self.max_attempts = number(event, "max_attempts").and_then(|max| max.try_into().ok());
            }
            "Step execution started" => self.started_ms = Some(at_ms),
            "Attempt failed" => {
                self.until_ms = number(event, "backoff_delay_ms").map(|delay| at_ms.saturating_add(delay));
                self.attempt = self.attempt.saturating_add(1);
            }
            "Attempt started" => {
                self.max_attempts = number(event, "max_attempts").and_then(|max| max.try_into().ok());
            }
            "Assignment deferred" => {
                self.until_ms = number(event, "delay_ms").map(|delay| at_ms.saturating_add(delay));
            }
            _ => {}
        }
        let note = Note::of(event, at_ms);
        self.notes_bytes += note.bytes();
        if self.first.len() < FIRST_NOTES {
            self.first.push(note);
            return;
        }
        if self.last.len() == LAST_NOTES
            && let Some(oldest) = self.last.pop_front()
        {
            self.notes_bytes -= oldest.bytes();
            self.left_out += 1;
        }
        self.last.push_back(note);
    }

    /// What happened, in order; [`Entry::left_out`] says how much is missing, after the first [`Entry::begun_with`].
    pub fn notes(&self) -> impl DoubleEndedIterator<Item = &Note> {
        self.first.iter().chain(&self.last)
    }

    /// How many of the notes are from the beginning.
    pub fn begun_with(&self) -> usize {
        self.first.len()
    }

    pub(super) fn bytes(&self) -> usize {
        let pool = self.pool.as_ref().map_or(0, |pool| pool.len());
        size_of::<Self>() + self.job_type.len() + pool + self.notes_bytes
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
