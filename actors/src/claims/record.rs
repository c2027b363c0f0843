//! What all workers of a fleet know of one assignment, and what follows from it. Pure: no store, no clock.
//!
//! Neighbours: [`super::fleet`] keeps records in a store that all workers share and carries the decisions out; intake
//! turns a [`Judgement`] into a row. The record is written by its owner only, and only by compare-and-set.

use bytes::Bytes;
use caf_protocol::ack::RejectReason;
use caf_protocol::assignment::Identity;
use caf_protocol::headers::Headers;
use serde::{Deserialize, Serialize};

use crate::intake::decision::Row;
use crate::sink::Outgoing;

/// Most past attempts that a record remembers: enough to see a pattern, little enough to travel with every change.
const MAX_HISTORY: usize = 10;

/// One assignment, as the fleet knows it. Stored as JSON; fields that this version does not know are dropped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClaimRecord {
    /// Which assignment, for people: the key is a hash. Nothing in records of earlier versions.
    #[serde(default)]
    pub assignment_id: Option<String>,
    /// Whose assignment.
    #[serde(default)]
    pub tenant_id: Option<String>,
    /// The process that answers for it: one name per process, not per worker.
    pub owner: String,
    /// The worker that the process calls itself.
    pub worker_id: String,
    /// Stream of the message that carries it.
    pub stream: String,
    /// Sequence of the message there.
    pub sequence: u64,
    /// Starts that count, this one included, from 1: hand-backs do not.
    pub attempt: u32,
    /// How often a process died while it ran this, and nobody knows why.
    #[serde(default)]
    pub deaths: u32,
    /// Whether it ran alone when its process died.
    #[serde(default)]
    pub died_alone: bool,
    /// First start of handling by any worker, in milliseconds since the Unix epoch.
    pub first_start_ms: u64,
    /// How far it is.
    pub state: ClaimState,
    /// The acknowledgement, once it is fixed: no other is ever sent.
    pub ack: Option<StoredMessage>,
    /// Whether that is a rejection: then nothing else may follow, whoever takes the assignment over.
    #[serde(default)]
    pub refused: bool,
    /// The process that had stored the result which the owner has found and publishes; nothing while the owner gives an
    /// answer of its own. Should the owner die over it, whoever finds the result next knows that it still counts.
    #[serde(default)]
    pub heir_of: Option<String>,
    /// Where the result is, once it is stored.
    pub outcome: Option<OutcomeRef>,
    /// Earlier attempts, oldest first.
    #[serde(default)]
    pub history: Vec<PastAttempt>,
}

/// How far an assignment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClaimState {
    /// Its owner works on it, or has died.
    Running,
    /// Its owner has given it back.
    Interrupted,
    /// It was answered.
    Finished,
}

/// A message, byte for byte.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredMessage {
    /// Where to.
    pub subject: String,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// JSON text.
    pub payload: String,
}

/// Where the result of an assignment can be read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeRef {
    /// First 16 bytes of the SHA-256 of its payload, in hexadecimal; empty when they are not known.
    pub hash: String,
    /// Stream and sequence; absent when nothing stores results.
    pub position: Option<(String, u64)>,
}

/// An attempt that ended without a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastAttempt {
    /// Who made it.
    pub worker_id: String,
    /// Its number.
    pub attempt: u32,
    /// Whether it was given back; otherwise its worker died, or could not be reached.
    pub given_back: bool,
}

/// Who asks, and for which message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    /// This process.
    pub owner: String,
    /// This worker.
    pub worker_id: String,
    /// Stream of the message.
    pub stream: String,
    /// Sequence of the message there.
    pub sequence: u64,
}

/// What the owner of a claim said when it was asked whether it works on the assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerWord {
    /// It was not asked yet.
    NotAsked,
    /// It does.
    Holds,
    /// It does not.
    LetGo,
    /// It did not answer.
    Silent,
}

/// What follows from a claim that exists.
#[derive(Debug, Clone, PartialEq)]
pub enum Judgement {
    /// First ask its owner.
    AskOwner,
    /// Row 11: the recorded result again; nothing when this very message was answered with it.
    Finished(Option<OutcomeRef>),
    /// Rows 10b and 10c: another worker has it, by this message or by another one.
    HeldElsewhere {
        /// Whether it is the same message.
        same_message: bool,
    },
    /// Free to be taken over, with this record.
    TakeOver(Box<ClaimRecord>),
}

impl ClaimRecord {
    /// The first claim on an assignment.
    pub fn first(claimant: &Claimant, first_start_ms: u64) -> Self {
        Self {
            assignment_id: None,
            tenant_id: None,
            owner: claimant.owner.clone(),
            worker_id: claimant.worker_id.clone(),
            stream: claimant.stream.clone(),
            sequence: claimant.sequence,
            attempt: 1,
            deaths: 0,
            died_alone: false,
            first_start_ms,
            state: ClaimState::Running,
            ack: None,
            refused: false,
            heir_of: None,
            outcome: None,
            history: Vec::new(),
        }
    }

    /// Says which assignment it is about. Both ids are bounded: an identity has no others.
    pub fn name(&mut self, identity: &Identity) {
        self.assignment_id = Some(identity.assignment_id.clone());
        self.tenant_id = Some(identity.tenant_id.clone());
    }

    /// Fixes the acknowledgement that goes with `row`.
    pub fn fix_ack(&mut self, ack: StoredMessage, row: &Row) {
        self.ack = Some(ack);
        self.refused = row.rejection().is_some();
    }

    /// Row 5: whoever gets it next takes it on. That it was here counts for its deadline, and for nothing else.
    pub fn defer(&mut self) {
        self.state = ClaimState::Interrupted;
    }

    /// Why the acknowledgement that is fixed here refuses it; `None` when it accepts it, or none is fixed.
    pub fn refused_before(&self) -> Option<RejectReason> {
        let ack = self.ack.as_ref().filter(|_| self.refused)?;
        let ack: Option<serde_json::Value> = serde_json::from_str(&ack.payload).ok();
        match ack {
            Some(ack) if ack["message"] == RejectReason::QuotaExceeded.as_str() => {
                Some(RejectReason::QuotaExceeded)
            }
            _ => Some(RejectReason::QueueFull),
        }
    }

    /// Whether nobody works on it any more although it is not answered: its question waits for people.
    pub fn is_set_aside(&self) -> bool {
        let nowhere = |outcome: &OutcomeRef| outcome.hash.is_empty() && outcome.position.is_none();
        self.state == ClaimState::Finished && self.outcome.as_ref().is_some_and(nowhere)
    }

    /// What `claimant` may do about an assignment that is claimed like this.
    pub fn judge(&self, claimant: &Claimant, word: OwnerWord) -> Judgement {
        match (self.state, word) {
            // It was not asked again: only the word to the broker was lost. Whoever listens has heard the result.
            (ClaimState::Finished, _) if self.is_by(claimant) => Judgement::Finished(None),
            (ClaimState::Finished, _) => Judgement::Finished(self.outcome.clone()),
            (ClaimState::Interrupted, _) => Judgement::TakeOver(Box::new(self.taken_over(claimant))),
            // The caller has seen that this process does not hold it: it was lost with an actor.
            (ClaimState::Running, _) if self.owner == claimant.owner => {
                Judgement::TakeOver(Box::new(self.taken_over(claimant)))
            }
            (ClaimState::Running, OwnerWord::NotAsked) => Judgement::AskOwner,
            (ClaimState::Running, OwnerWord::Holds) => Judgement::HeldElsewhere {
                same_message: self.is_by(claimant),
            },
            (ClaimState::Running, OwnerWord::LetGo | OwnerWord::Silent) => {
                Judgement::TakeOver(Box::new(self.taken_over(claimant)))
            }
        }
    }

    /// Whether the claim is on the very message that `claimant` asks for.
    fn is_by(&self, claimant: &Claimant) -> bool {
        self.stream == claimant.stream && self.sequence == claimant.sequence
    }

    /// This record in the hands of `claimant`. A hand-back does not count as an attempt.
    fn taken_over(&self, claimant: &Claimant) -> Self {
        let given_back = self.state == ClaimState::Interrupted;
        let mut history = self.history.clone();
        // What was only deferred, without an acknowledgement, was nobody's attempt.
        if !given_back || self.ack.is_some() {
            history.push(PastAttempt {
                worker_id: self.worker_id.clone(),
                attempt: self.attempt,
                given_back,
            });
        }
        let forgotten = history.len().saturating_sub(MAX_HISTORY);
        history.drain(..forgotten);
        Self {
            owner: claimant.owner.clone(),
            worker_id: claimant.worker_id.clone(),
            stream: claimant.stream.clone(),
            sequence: claimant.sequence,
            attempt: self.attempt.saturating_add(u32::from(!given_back)),
            state: ClaimState::Running,
            heir_of: None,
            history,
            ..self.clone()
        }
    }

    /// The process that ran this died, and nobody knows why.
    pub fn note_death(&mut self, alone: bool) {
        self.deaths = self.deaths.saturating_add(1);
        self.died_alone |= alone;
    }

    /// What becomes of a result that `entry_owner` stored before it ended, now that `heir` has found it.
    pub fn inherit(&self, entry_owner: &str, heir: &str) -> Inheritance {
        let counts = self.owner == entry_owner
            || self.owner == heir
            || self
                .heir_of
                .as_deref()
                .is_some_and(|process| process == entry_owner);
        match self.state {
            ClaimState::Finished => Inheritance::AnsweredBefore,
            ClaimState::Running if !counts => Inheritance::TakenOver,
            ClaimState::Running | ClaimState::Interrupted => Inheritance::Publish,
        }
    }
}

/// What becomes of a stored result whose process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inheritance {
    /// It is published by the heir.
    Publish,
    /// It is on the stream already.
    AnsweredBefore,
    /// Another worker runs the assignment again: its result counts.
    TakenOver,
}

/// What a writer does when the store holds another revision than the one it expected.
#[derive(Debug, Clone, PartialEq)]
pub enum AfterConflict {
    /// The claim is still the writer's: write again on top of what was found.
    WriteOnTop(Box<ClaimRecord>),
    /// The claim has gone, with its store or by age: write it anew.
    WriteAnew,
    /// Somebody else has it, or has answered.
    Lost,
}

/// Compare-and-set failed for `owner`; `found` is what the store holds now.
pub fn after_conflict(found: Option<&ClaimRecord>, owner: &str) -> AfterConflict {
    match found {
        None => AfterConflict::WriteAnew,
        Some(record) if record.owner == owner && record.state != ClaimState::Finished => {
            AfterConflict::WriteOnTop(Box::new(record.clone()))
        }
        Some(_) => AfterConflict::Lost,
    }
}

/// When an assignment that killed its workers runs again, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuarantineRule {
    /// Deaths at which an assignment that ran alone at least once is given up; one before it runs alone.
    pub max_deaths: u32,
    /// Most attempts that count.
    pub max_attempts: u32,
}

impl QuarantineRule {
    /// Row 14: it ran alone and its worker died all the same.
    pub fn is_quarantined(&self, record: &ClaimRecord) -> bool {
        record.died_alone && record.deaths >= self.max_deaths
    }

    /// Row 17: no attempt is left.
    pub fn is_exhausted(&self, record: &ClaimRecord) -> bool {
        record.attempt > self.max_attempts
    }

    /// Whether it must run with nothing beside it: so that neighbours of a killer are told from the killer.
    pub fn runs_alone(&self, record: &ClaimRecord) -> bool {
        record.deaths + 1 >= self.max_deaths
    }
}

impl From<&Outgoing> for StoredMessage {
    fn from(message: &Outgoing) -> Self {
        let headers = message.headers.iter();
        Self {
            subject: message.subject.clone(),
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            payload: String::from_utf8_lossy(&message.payload).into_owned(),
        }
    }
}

impl From<StoredMessage> for Outgoing {
    fn from(stored: StoredMessage) -> Self {
        let mut headers = Headers::default();
        for (name, value) in stored.headers {
            headers.push(name, value);
        }
        Self {
            subject: stored.subject,
            headers,
            payload: Bytes::from(stored.payload),
        }
    }
}

#[cfg(test)]
mod tests;
