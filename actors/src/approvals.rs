//! Questions to people that outlive whoever asked: kept where the whole fleet sees them, decided once.
//!
//! Neighbours: intake parks a job here ([`parking`]) instead of giving it to a pool; pages and calls of the admin port list,
//! look and decide; [`keeper`] publishes what is settled, expires what is over and forgets what is old, in every worker. What
//! may become of an entry is decided in [`record`]; the store behind [`store::ApprovalStore`] is an edge. Nothing that waits
//! for people holds a slot, a place or a permit.

mod index;
pub mod keeper;
pub mod parking;
pub mod record;
pub mod store;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use caf_protocol::approval::{Approval, ApprovalId, Decision, Standing};
use caf_protocol::block::CancellationToken;
use caf_protocol::outcome::Failure;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::Notify;

use self::index::{Full, Index};
use self::record::{Entry, Refused};
use self::store::{ApprovalStore, Found, MemoryStore, StoreError};
use crate::answers::Answers;
use crate::cancellation::Cancellations;
use crate::claims::fleet::{Fleet, Revision};
use crate::clock;
use crate::events::{self, Log};
use crate::settings::{ApprovalSettings, SubjectSettings};
use crate::sink::Sink;
use crate::tenants::{Exceeded, Quota};

/// Most approvals on one page: each is read from the store.
pub const MAX_PAGE: usize = 100;
/// Entries of a page that are read at once.
const READ_AT_ONCE: usize = 16;
/// How often a change is tried again that another was faster than: an entry changes no more than four times in its life.
const TRIES: u32 = 8;
/// How long the worker that settled an approval has to publish its result before others do, in milliseconds.
const TAKE_OVER_MS: u64 = 5_000;
/// Workers look at what is over or left within this time of each other, in milliseconds, and not at once.
const SPREAD_MS: u64 = 1_000;

/// All approvals of the fleet, as one worker uses them. Cheap to clone.
#[derive(Clone)]
pub struct Approvals(Arc<Shared>);

/// What approvals need. Every dependency comes in here.
pub struct ApprovalParts {
    /// Where they are kept.
    pub store: Arc<dyn ApprovalStore>,
    /// Where acknowledgements, results and what notifiers hear are published.
    pub sink: Option<Arc<dyn Sink>>,
    /// Writes results.
    pub answers: Answers,
    /// Claims that are told of results.
    pub fleet: Option<Fleet>,
    /// Who is cancelled by request.
    pub cancellations: Cancellations,
    /// Bounds.
    pub settings: ApprovalSettings,
    /// Log.
    pub log: Log,
}

struct Shared {
    parts: ApprovalParts,
    index: Mutex<Index>,
    /// Told when something is due earlier than it was.
    woken: Notify,
    /// This worker's place within [`SPREAD_MS`].
    spread_ms: u64,
}

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    expires_at: u64,
    id: ApprovalId,
}

impl Cursor {
    /// The cursor that was written as `text`; nothing when it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (expires_at, id) = text.split_once('-')?;
        Some(Self {
            expires_at: expires_at.parse().ok()?,
            id: ApprovalId::parse(id)?,
        })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.expires_at, self.id)
    }
}

/// Some of the approvals that wait, those first that are over first.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// As many as were asked for, or all that are left.
    pub approvals: Vec<Approval>,
    /// Where the next page begins; nothing after the last.
    pub next: Option<Cursor>,
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

/// Room for one question; given back when dropped.
pub struct Reservation {
    approvals: Approvals,
    tenant: Arc<str>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.approvals.index().release(&self.tenant);
    }
}

impl Approvals {
    /// Nothing is known yet: [`keeper::keep`] asks the store.
    pub fn new(parts: ApprovalParts) -> Self {
        let spread_ms = u64::from(uuid::Uuid::new_v4().as_fields().0) % SPREAD_MS;
        Self(Arc::new(Shared {
            parts,
            index: Mutex::default(),
            woken: Notify::new(),
            spread_ms,
        }))
    }

    /// Approvals in memory, for tests, with the store to put some in. Nothing is published.
    pub fn in_memory() -> (Self, MemoryStore) {
        let store = MemoryStore::default();
        let approvals = Self::new(ApprovalParts {
            store: Arc::new(store.clone()),
            sink: None,
            answers: Answers::new(&SubjectSettings::default(), "w-1"),
            fleet: None,
            cancellations: Cancellations::off(),
            settings: ApprovalSettings::default(),
            log: Log::discard(),
        });
        (approvals, store)
    }

    /// The page that begins with `from`, or the first one, with at most `limit` ([`MAX_PAGE`]) that wait.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn list(&self, from: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        self.list_of(None, from, limit).await
    }

    /// As [`Self::list`], of one tenant where one is named; all are counted.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn list_of(
        &self,
        tenant: Option<&str>,
        from: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let (ids, next, pending) = {
            let index = self.index();
            let (ids, next) = index.page(tenant, from, limit.min(MAX_PAGE));
            (ids, next, index.pending())
        };
        let read = |id: ApprovalId| async move { self.0.parts.store.read(&id).await };
        let found: Vec<Found> = stream::iter(ids)
            .map(read)
            .buffered(READ_AT_ONCE)
            .try_collect()
            .await?;
        // What was settled a moment ago does not wait any more.
        let now = clock::epoch_ms();
        let open = found.into_iter().filter_map(|found| found.entry);
        let approvals = open.filter(|entry| entry.is_open(now)).map(|entry| entry.view());
        Ok(Page {
            approvals: approvals.collect(),
            next,
            pending,
        })
    }

    /// One approval, whatever its standing; nothing when there is none.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn get(&self, id: &ApprovalId) -> Result<Option<Approval>, StoreError> {
        Ok(self.0.parts.store.read(id).await?.entry.map(|entry| entry.view()))
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
        let answers = &self.0.parts.answers;
        for _ in 0..TRIES {
            let Found { entry, revision } = self.0.parts.store.read(id).await?;
            let entry = entry.ok_or(WhyNot::Unknown)?;
            let changed = match entry.decided(decision.clone(), answers) {
                Ok(decided) => decided,
                // An earlier try was written although another was in its way.
                Err(Refused::Settled) if entry.standing == Standing::Decided(decision.clone()) => {
                    return Ok(entry.view());
                }
                Err(Refused::Settled) => return Err(WhyNot::Settled(Box::new(entry.view()))),
                Err(Refused::NotAnApprover) => return Err(WhyNot::NotAnApprover),
                Err(Refused::Over) => {
                    let at = clock::epoch_ms().max(entry.request.expires_at);
                    let expired = entry.expired(at, answers);
                    expired.ok_or_else(|| WhyNot::Settled(Box::new(entry.view())))?
                }
            };
            match self.change(&entry, &changed, revision).await {
                Ok(()) if matches!(changed.standing, Standing::Decided(_)) => return Ok(changed.view()),
                Ok(()) => return Err(WhyNot::Settled(Box::new(changed.view()))),
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(WhyNot::Unavailable(
            "others keep changing the approval".to_owned(),
        ))
    }

    /// Room for one more question of a tenant, if there is any. Exact for what comes to this worker; what others have
    /// stored counts a moment later.
    ///
    /// # Errors
    /// Which bound is reached.
    pub fn reserve(&self, tenant: &str, taken_on_before: bool) -> Result<Reservation, Exceeded> {
        let settings = &self.0.parts.settings;
        let (of_all, of_tenant) = (settings.max_pending, settings.max_pending_per_tenant);
        let mut index = self.index();
        if taken_on_before {
            index.reserve_anyway(tenant);
        } else {
            index
                .reserve(tenant, of_all, of_tenant)
                .map_err(|full| Exceeded {
                    quota: Quota::Approvals,
                    #[expect(clippy::cast_precision_loss, reason = "settings allow at most a million")]
                    limit: match full {
                        Full::Tenant => of_tenant,
                        Full::Fleet => of_all,
                    } as f64,
                    retry_after: None,
                })?;
        }
        drop(index);
        Ok(Reservation {
            approvals: self.clone(),
            tenant: tenant.into(),
        })
    }

    /// How many wait, as far as this worker knows, and for how long the oldest has, in milliseconds.
    pub fn waiting(&self) -> (usize, u64) {
        let (now, index) = (clock::epoch_ms(), self.index());
        let oldest = index.oldest().map_or(0, |at| now.saturating_sub(at));
        (index.pending(), oldest)
    }

    /// Puts `next` in the place of `entry`, tells what has changed, and sees to it that what is due then is done.
    async fn change(&self, entry: &Entry, next: &Entry, expected: Revision) -> Result<(), StoreError> {
        let revision = self.0.parts.store.write(next, expected).await?;
        let log = &self.0.parts.log;
        if entry.standing != next.standing {
            let identity = next.identity();
            log.emit(events::approvals::settled(
                &next.request,
                &next.standing,
                &identity,
            ));
            if let Some(end) = next.end() {
                log.emit(events::steps::ended(&identity, &end, None));
            }
        }
        if entry.answered != next.answered {
            log.emit(events::approvals::answered(&next.request, &next.identity()));
        }
        self.note(next, revision, true);
        Ok(())
    }

    /// Takes in how an entry is now. `own`: by a change of this worker, which then does at once what is due.
    fn note(&self, entry: &Entry, revision: Revision, own: bool) {
        let parts = &self.0.parts;
        let (now, spread) = (clock::epoch_ms(), self.0.spread_ms);
        let due = match (&entry.answered, entry.standing.settled_at()) {
            (Some(answered), _) => answered.at.saturating_add(self.kept_ms()) + spread,
            (None, None) => entry.request.expires_at.saturating_add(spread / 4),
            (None, Some(_)) if own => now,
            (None, Some(at)) => at.saturating_add(TAKE_OVER_MS + spread),
        };
        let enter = || {
            let arrived = tokio::time::Instant::now();
            parts
                .cancellations
                .enter(&entry.identity(), CancellationToken::new(), arrived)
        };
        let mut index = self.index();
        index.take(entry, revision, due, enter);
        if own {
            // The store may have told of it before it answered.
            index.hurry(&entry.request.approval_id, due);
        }
        drop(index);
        if due <= now.saturating_add(SPREAD_MS) {
            self.0.woken.notify_one();
        }
    }

    fn kept_ms(&self) -> u64 {
        self.0.parts.settings.kept_s.saturating_mul(1_000)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.0.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
