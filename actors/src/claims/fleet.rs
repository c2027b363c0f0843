//! Claims that all workers of a fleet share: taken before the first side effect, kept fresh while a job is held, and
//! proven before anything is said that the lease no longer vouches for.
//!
//! Neighbours: intake takes them, block worker and publisher prove them, the publisher finishes them. What follows from
//! a record is decided in [`super::record`]; the store behind [`ClaimStore`] is an edge. Never blocks a station: every
//! call is a future of its own.

use std::sync::Arc;
use std::time::Duration;

use caf_protocol::ids::AssignmentKey;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::record::{
    AfterConflict, ClaimRecord, ClaimState, Claimant, Inheritance, Judgement, OutcomeRef, OwnerWord,
    after_conflict,
};
use crate::sink::Outgoing;

/// Revision of a record in the store; 0 stands for "there is none".
pub type Revision = u64;

/// Pause before the store is asked again after it did not answer.
pub const STORE_RETRY: Duration = Duration::from_millis(200);

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It holds another revision than the one expected.
    #[error("the claim has changed")]
    Conflict,
    /// It did not answer, or not as it should: it may have done it or not.
    #[error("claims: {0}")]
    Unavailable(String),
}

/// Where claims are kept. Every call tries once and never waits without limit.
pub trait ClaimStore: Send + Sync + 'static {
    /// Writes a record if the store holds the expected revision.
    fn write(
        &self,
        key: &AssignmentKey,
        record: &ClaimRecord,
        expected: Revision,
    ) -> BoxFuture<'static, Result<Revision, StoreError>>;

    /// What the store holds. A record that cannot be read has a revision but no content.
    fn read(&self, key: &AssignmentKey) -> BoxFuture<'static, Result<Found, StoreError>>;

    /// Asks the owner of a claim whether it works on the assignment.
    fn ask_owner(&self, owner: &str, key: &AssignmentKey) -> BoxFuture<'static, OwnerWord>;

    /// Whether a message still waits in its stream, so that it will be delivered again, and carries this assignment.
    fn is_waiting(
        &self,
        stream: &str,
        sequence: u64,
        key: &AssignmentKey,
    ) -> BoxFuture<'static, Result<bool, StoreError>>;

    /// For how long no call has succeeded, when the last one did not; in milliseconds.
    fn failing_ms(&self) -> u64 {
        0
    }

    /// The recorded result; nothing when it is gone or another message stands in its place.
    fn result(&self, outcome: &OutcomeRef) -> BoxFuture<'static, Result<Option<Outgoing>, StoreError>>;
}

/// What the store holds for a key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// The record, if there is one and it can be read.
    pub record: Option<ClaimRecord>,
    /// Its revision; 0 when there is none.
    pub revision: Revision,
}

/// The shared claims, as one process uses them. Cheap to clone.
#[derive(Clone)]
pub struct Fleet {
    store: Arc<dyn ClaimStore>,
    owner: Arc<str>,
    worker_id: Arc<str>,
}

/// Whether a claim is still ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// It is, as of now.
    Ours,
    /// Somebody else has taken it over or answered.
    Lost,
    /// The store does not say.
    Unknown(String),
}

/// A claim that this process holds.
pub struct FleetClaim {
    fleet: Fleet,
    key: AssignmentKey,
    held: Mutex<Held>,
}

struct Held {
    record: ClaimRecord,
    revision: Revision,
    written: Instant,
    /// Somebody else has taken it over or answered. There is no way back: whoever noticed may not be whoever speaks next.
    lost: bool,
}

/// What a claim that exists means for a message, as far as it could be found out.
pub enum Learnt {
    /// There is none, or none that can be read: a new one may be written.
    Nothing,
    /// It was answered with this result; nothing when it cannot be read back any more.
    Finished(Option<Outgoing>),
    /// Another worker has it, by this message or by another one.
    HeldElsewhere {
        /// Whether it is the same message.
        same_message: bool,
    },
    /// Free to be taken over, with this record.
    TakeOver(Box<ClaimRecord>),
}

/// How an attempt to take an assignment ended.
pub enum Taken {
    /// It is ours.
    Ours(FleetClaim),
    /// There is a claim already.
    Exists(Found),
}

impl Fleet {
    /// Claims of the process `owner`, which belongs to the worker `worker_id`.
    pub fn new(store: Arc<dyn ClaimStore>, owner: &str, worker_id: &str) -> Self {
        Self {
            store,
            owner: owner.into(),
            worker_id: worker_id.into(),
        }
    }

    /// For how long the store has not done what it was asked, in milliseconds.
    pub fn failing_ms(&self) -> u64 {
        self.store.failing_ms()
    }

    /// Name of this process in claims.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// What the fleet knows of an assignment, for people.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] only.
    pub async fn look(&self, key: &AssignmentKey) -> Result<Option<ClaimRecord>, StoreError> {
        Ok(self.store.read(key).await?.record)
    }

    /// This process, asking for one message.
    pub fn claimant(&self, stream: &str, sequence: u64) -> Claimant {
        Claimant {
            owner: self.owner.to_string(),
            worker_id: self.worker_id.to_string(),
            stream: stream.to_owned(),
            sequence,
        }
    }

    /// Writes a claim on top of `expected`, which is 0 for a new one.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] only.
    pub async fn take(
        &self,
        key: &AssignmentKey,
        record: ClaimRecord,
        expected: Revision,
    ) -> Result<Taken, StoreError> {
        let ours = |record, revision| {
            Taken::Ours(FleetClaim {
                fleet: self.clone(),
                key: key.clone(),
                held: Mutex::new(Held {
                    record,
                    revision,
                    written: Instant::now(),
                    lost: false,
                }),
            })
        };
        match self.store.write(key, &record, expected).await {
            Ok(revision) => return Ok(ours(record, revision)),
            Err(StoreError::Conflict) => {}
            Err(error) => return Err(error),
        }
        let found = self.store.read(key).await?;
        // An earlier try was written although its answer was lost.
        if found.record.as_ref() == Some(&record) {
            return Ok(ours(record, found.revision));
        }
        Ok(Taken::Exists(found))
    }

    /// Finds out what a claim means for the message of `claimant`: asks its owner, reads the result back.
    ///
    /// # Errors
    /// Nothing is known then, and nothing may be written on top of the claim. [`StoreError::Conflict`]: it has changed
    /// while its owner was asked.
    pub async fn learn(
        &self,
        found: &Found,
        claimant: &Claimant,
        key: &AssignmentKey,
    ) -> Result<Learnt, StoreError> {
        let Some(record) = &found.record else {
            return Ok(Learnt::Nothing);
        };
        let mut judgement = record.judge(claimant, OwnerWord::NotAsked);
        if judgement == Judgement::AskOwner {
            let word = self.word_of(record, claimant, key).await?;
            // Who is cut off hears nothing either: silence counts only while the store still answers, and says the same.
            if word == OwnerWord::Silent && self.store.read(key).await?.revision != found.revision {
                return Err(StoreError::Conflict);
            }
            judgement = record.judge(claimant, word);
        }
        Ok(match judgement {
            // Asked once, an owner has a word; should it not, the case comes back.
            Judgement::AskOwner => Learnt::HeldElsewhere { same_message: true },
            Judgement::HeldElsewhere { same_message } => Learnt::HeldElsewhere { same_message },
            Judgement::Finished(None) => Learnt::Finished(None),
            Judgement::Finished(Some(outcome)) => Learnt::Finished(self.store.result(&outcome).await?),
            Judgement::TakeOver(record) => Learnt::TakeOver(record),
        })
    }

    /// Whether the owner of a claim works on it, as far as it matters for this message. A copy of a message that still
    /// waits need not be taken over from a silent owner: the original will carry it. Silence says nothing when not even this
    /// process can be asked: questions do not get through then, or are not allowed.
    async fn word_of(
        &self,
        record: &ClaimRecord,
        claimant: &Claimant,
        key: &AssignmentKey,
    ) -> Result<OwnerWord, StoreError> {
        let word = self.store.ask_owner(&record.owner, key).await;
        if word != OwnerWord::Silent {
            return Ok(word);
        }
        self.ask_oneself(key).await?;
        let is_copy = record.stream != claimant.stream || record.sequence != claimant.sequence;
        if is_copy
            && self
                .store
                .is_waiting(&record.stream, record.sequence, key)
                .await?
        {
            return Ok(OwnerWord::Holds);
        }
        Ok(word)
    }

    /// Whether questions get through to this process, and so from it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when they do not: it must take nothing over, and others would take over what it holds.
    pub async fn ask_oneself(&self, key: &AssignmentKey) -> Result<(), StoreError> {
        match self.store.ask_owner(&self.owner, key).await {
            OwnerWord::Silent | OwnerWord::NotAsked => Err(StoreError::Unavailable(
                "questions between workers do not get through (nats.subjects.owner)".to_owned(),
            )),
            OwnerWord::Holds | OwnerWord::LetGo => Ok(()),
        }
    }

    /// Notes that a process died while it ran this assignment. Tries until the store answers. Returns the claim, if there
    /// is one: it knows the name of what ran.
    pub async fn note_death(&self, key: &AssignmentKey, alone: bool) -> Option<ClaimRecord> {
        let mut written = None;
        loop {
            let noted = self.try_note_death(key, alone, &mut written).await;
            match noted {
                Ok(claim) => return claim,
                Err(StoreError::Conflict) => {}
                Err(StoreError::Unavailable(_)) => tokio::time::sleep(STORE_RETRY).await,
            }
        }
    }

    /// Notes a death, trying once. `written` goes from try to try: the count that one may have written whose answer was
    /// lost. A count that is that high is taken for ours: a death too few is made up for by the next, one too many would
    /// condemn an assignment that has killed nobody. Returns the claim as it stands then; a finished one is left alone.
    ///
    /// # Errors
    /// [`StoreError`]: try again.
    pub async fn try_note_death(
        &self,
        key: &AssignmentKey,
        alone: bool,
        written: &mut Option<u32>,
    ) -> Result<Option<ClaimRecord>, StoreError> {
        let found = self.store.read(key).await?;
        let Some(mut record) = found.record else {
            return Ok(None);
        };
        let is_noted = written.is_some_and(|deaths| record.deaths >= deaths);
        if is_noted || record.state == ClaimState::Finished {
            return Ok(Some(record));
        }
        record.note_death(alone);
        let noted = self.store.write(key, &record, found.revision).await;
        if let Err(StoreError::Unavailable(_)) = noted {
            *written = Some(record.deaths);
        }
        noted.map(|_| Some(record))
    }

    /// Notes where the result is of an assignment that nobody works on any more: it was set aside, and is answered now.
    /// Nothing when nobody remembers it.
    ///
    /// # Errors
    /// [`StoreError`]: nothing was noted.
    pub async fn tell_outcome(&self, key: &AssignmentKey, outcome: &OutcomeRef) -> Result<(), StoreError> {
        let found = self.store.read(key).await?;
        match found.record {
            Some(mut record) if record.is_set_aside() => {
                record.outcome = Some(outcome.clone());
                self.store.write(key, &record, found.revision).await.map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Takes over the claim behind a result that a process stored before it ended. Nothing when the result must not be
    /// published any more.
    ///
    /// # Errors
    /// [`StoreError`]: try again.
    pub async fn inherit(
        &self,
        key: &AssignmentKey,
        entry_owner: &str,
    ) -> Result<Result<Option<FleetClaim>, Inheritance>, StoreError> {
        let found = self.store.read(key).await?;
        let Some(record) = found.record else {
            return Ok(Ok(None));
        };
        match record.inherit(entry_owner, &self.owner) {
            Inheritance::Publish => {}
            other => return Ok(Err(other)),
        }
        let ours = ClaimRecord {
            owner: self.owner.to_string(),
            worker_id: self.worker_id.to_string(),
            state: ClaimState::Running,
            heir_of: Some(entry_owner.to_owned()),
            ..record
        };
        match self.take(key, ours, found.revision).await? {
            Taken::Ours(claim) => Ok(Ok(Some(claim))),
            Taken::Exists(_) => Err(StoreError::Conflict),
        }
    }
}

impl FleetClaim {
    /// The process that holds it, which is this one.
    pub fn owner(&self) -> &str {
        self.fleet.owner()
    }

    /// Writes the record again, so that it does not age and it is certain whose it is.
    pub async fn prove(&self) -> Proof {
        self.change(|_| {}).await
    }

    /// The assignment was answered.
    pub async fn finish(&self, outcome: OutcomeRef) -> Proof {
        self.change(|record| {
            record.state = ClaimState::Finished;
            record.outcome = Some(outcome.clone());
        })
        .await
    }

    /// The assignment is given back: whoever gets it next need not ask. What was given back as it was claimed is left as it
    /// is.
    pub async fn give_back(&self) -> Proof {
        if self.held.lock().await.record.state == ClaimState::Interrupted {
            return Proof::Ours;
        }
        self.change(|record| record.state = ClaimState::Interrupted).await
    }

    /// Earlier attempts and this one, for a dead letter.
    pub async fn record(&self) -> ClaimRecord {
        self.held.lock().await.record.clone()
    }

    /// When the record was last written.
    pub async fn written(&self) -> Instant {
        self.held.lock().await.written
    }

    async fn change(&self, change: impl Fn(&mut ClaimRecord)) -> Proof {
        let mut held = self.held.lock().await;
        if held.lost {
            return Proof::Lost;
        }
        loop {
            let mut next = held.record.clone();
            change(&mut next);
            match self.fleet.store.write(&self.key, &next, held.revision).await {
                Ok(revision) => {
                    *held = Held {
                        record: next,
                        revision,
                        written: Instant::now(),
                        lost: false,
                    };
                    return Proof::Ours;
                }
                Err(StoreError::Conflict) => {}
                Err(StoreError::Unavailable(why)) => return Proof::Unknown(why),
            }
            let found = match self.fleet.store.read(&self.key).await {
                Ok(found) => found,
                Err(error) => return Proof::Unknown(error.to_string()),
            };
            // An earlier try was written although its answer was lost.
            if found.record.as_ref() == Some(&next) {
                held.record = next;
                held.revision = found.revision;
                return Proof::Ours;
            }
            match after_conflict(found.record.as_ref(), &self.fleet.owner) {
                AfterConflict::WriteOnTop(record) => held.record = *record,
                AfterConflict::WriteAnew => {}
                AfterConflict::Lost => {
                    held.lost = true;
                    return Proof::Lost;
                }
            }
            held.revision = found.revision;
        }
    }
}

#[cfg(test)]
mod tests;
