//! Questions to people that outlive whoever asked: kept where the whole fleet sees them, decided once.
//!
//! Neighbours: intake parks a job here instead of giving it to a pool; pages and calls of the admin port list, look and
//! decide. What may become of an entry is decided in [`record`]; the store behind [`store::ApprovalStore`] is an edge.
//! Nothing that waits for people holds a slot, a place or a permit.

pub mod record;
pub mod store;

use std::sync::Arc;

use caf_protocol::approval::{Approval, ApprovalId, Decision};
use caf_protocol::outcome::Failure;

use self::record::{Entry, Refused};
use self::store::{ApprovalStore, Found, MemoryStore, StoreError};
use crate::answers::Answers;
use crate::claims::fleet::Revision;
use crate::clock;
use crate::settings::SubjectSettings;

/// Most approvals on one page: each is read from the store.
pub const MAX_PAGE: usize = 100;
/// How often a change is tried again that another was faster than: each has at most a few to wait for, since an entry
/// changes no more than four times in its life.
const TRIES: u32 = 8;

/// All approvals of the fleet, as one worker uses them. Cheap to clone.
#[derive(Clone)]
pub struct Approvals(Arc<Shared>);

struct Shared {
    store: Arc<dyn ApprovalStore>,
    answers: Answers,
}

/// Some of the approvals that wait, those that are over first before others.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// As many as were asked for, or all that are left.
    pub approvals: Vec<Approval>,
    /// Where the next page begins; nothing after the last.
    pub next: Option<ApprovalId>,
    /// How many wait in all, as far as this worker knows.
    pub pending: usize,
}

/// Why a decision does not count.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WhyNot {
    /// There is no such approval: there never was, or it was answered long ago.
    #[error("there is no such approval")]
    Unknown,
    /// It was decided before, cancelled, or its time is over: so it stands.
    #[error("it is {}", .0.standing.word())]
    Settled(Box<Approval>),
    /// The name is not on its list of approvers.
    #[error("this name is not among its approvers")]
    NotAnApprover,
    /// A field of the decision breaks a rule.
    #[error("{}", .0.message)]
    Invalid(Box<Failure>),
    /// The store does not answer: it may have been decided or not. Asking again is safe.
    #[error("{0}")]
    Unavailable(String),
}

impl From<StoreError> for WhyNot {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl Approvals {
    /// Approvals in this store; their results are written by `answers`.
    pub fn new(store: Arc<dyn ApprovalStore>, answers: Answers) -> Self {
        Self(Arc::new(Shared { store, answers }))
    }

    /// Approvals in memory, for tests, with the store to put some in.
    pub fn in_memory() -> (Self, MemoryStore) {
        let store = MemoryStore::default();
        let answers = Answers::new(&SubjectSettings::default(), "w-1");
        (Self::new(Arc::new(store.clone()), answers), store)
    }

    /// The page that begins with `from`, or the first one, with at most `limit` ([`MAX_PAGE`]) that wait.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn list(&self, from: Option<ApprovalId>, limit: usize) -> Result<Page, StoreError> {
        let _ = (from, limit.min(MAX_PAGE));
        Ok(Page {
            approvals: Vec::new(),
            next: None,
            pending: 0,
        })
    }

    /// One approval, whatever its standing; nothing when there is none.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn get(&self, id: &ApprovalId) -> Result<Option<Approval>, StoreError> {
        Ok(self.0.store.read(id).await?.entry.map(|entry| entry.view()))
    }

    /// Decides. The first decision counts, whoever's worker heard it; its result is published by this one, or should it die,
    /// by another. Deciding again is refused with what stands.
    ///
    /// # Errors
    /// [`WhyNot`].
    pub async fn decide(&self, id: &ApprovalId, decision: Decision) -> Result<Approval, WhyNot> {
        decision
            .check()
            .map_err(|failure| WhyNot::Invalid(Box::new(failure)))?;
        for _ in 0..TRIES {
            let Found { entry, revision } = self.0.store.read(id).await?;
            let entry = entry.ok_or(WhyNot::Unknown)?;
            let decided = match entry.decided(decision.clone(), &self.0.answers) {
                Ok(decided) => decided,
                // An earlier try was written although its answer was lost.
                Err(Refused::Settled) => return Err(WhyNot::Settled(Box::new(entry.view()))),
                Err(Refused::NotAnApprover) => return Err(WhyNot::NotAnApprover),
                Err(Refused::Over) => entry
                    .expired(clock::epoch_ms().max(entry.request.expires_at), &self.0.answers)
                    .unwrap_or(entry),
            };
            match self.write(&decided, revision).await {
                Ok(_) if decided.view().standing.word() == decision.decision.as_str() => {
                    return Ok(decided.view());
                }
                Ok(_) => return Err(WhyNot::Settled(Box::new(decided.view()))),
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(WhyNot::Unavailable(
            "others keep changing the approval".to_owned(),
        ))
    }

    async fn write(&self, entry: &Entry, expected: Revision) -> Result<Revision, StoreError> {
        self.0.store.write(entry, expected).await
    }
}
