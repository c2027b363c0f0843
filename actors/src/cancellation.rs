//! Requests to cancel, carried out: who can be cancelled now, and who will be on arrival.
//!
//! Neighbours: intake enters each assignment that it takes on; the listener on the broker and the admin port bring requests;
//! pools, block workers and intake ask a [`Cancellable`] why it is to stop. A request that met a job whose outcome was not
//! known yet always decides it: [`Cancellable::seal`] is the one place where that is settled. Never ends anything itself, and
//! keeps nothing while the feature is off.

mod tombstones;

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use caf_protocol::assignment::Identity;
use caf_protocol::block::CancellationToken;
use caf_protocol::cancel::{CancelAnswer, CancelOutcome, CancelRequest, Target};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use foldhash::fast::RandomState;
use tokio::time::Instant;

use self::tombstones::{Tombstones, Wanted};
use crate::claims::{Claims, Standing};
use crate::events::{self, Log};
use crate::mask::mask_text;
use crate::pool::TakeCancelled;
use crate::runtime::Route;

/// Which way a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// On the broker: the tenant, or who may speak for it.
    Subject,
    /// On the admin port: an operator.
    Admin,
}

impl Asker {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Subject, Self::Admin];

    /// Its name in results, logs and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Subject => "subject",
            Self::Admin => "admin",
        }
    }
}

/// That somebody wants a job cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Who.
    pub by: Asker,
    /// Why, in their words: bounded, without control characters and known secrets, hostile all the same.
    pub reason: Option<String>,
}

impl Asked {
    /// What the result says.
    pub fn failure(&self) -> Failure {
        let message = match self.by {
            Asker::Subject => "cancelled by request on the broker",
            Asker::Admin => "cancelled by request on the admin port",
        };
        let failure =
            Failure::new(ErrorCode::CancelledByUser, message).with("requested_by", self.by.as_str().into());
        match &self.reason {
            Some(reason) => failure.with("reason", reason.as_str().into()),
            None => failure,
        }
    }
}

/// Why a job is to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The worker shuts down: somebody else may run it.
    Shutdown,
    /// Somebody asked for it: nobody runs it any more.
    Asked(Arc<Asked>),
}

/// Who can be cancelled, and who will be. Cheap to clone.
#[derive(Clone, Default)]
pub struct Cancellations(Option<Arc<Shared>>);

struct Shared {
    ttl: Duration,
    book: Mutex<Book>,
    /// Lines of pools, in which cancelled jobs may wait.
    lines: Mutex<Vec<Route<TakeCancelled>>>,
    log: Log,
}

struct Book {
    held: HashMap<u64, Held, RandomState>,
    /// What is held, by a digest of each name that it can be cancelled by. Each job enters and leaves, few are asked for: what
    /// has the digest is compared, and no name is kept.
    named: BTreeSet<(u64, u64)>,
    digests: RandomState,
    tombstones: Tombstones,
    last: u64,
}

/// What the book has of an assignment that is held.
struct Held {
    identity: Arc<Identity>,
    token: CancellationToken,
    asked: Arc<OnceLock<Arc<Asked>>>,
    /// Its outcome is known: a request comes too late.
    sealed: bool,
}

/// An assignment that can be cancelled, from its arrival until its answer is confirmed. Leaves the book when dropped.
#[derive(Default)]
pub struct Cancellable {
    token: CancellationToken,
    entry: Option<Entry>,
}

struct Entry {
    number: u64,
    asked: Arc<OnceLock<Arc<Asked>>>,
    shared: Arc<Shared>,
}

/// What a request met.
#[derive(Default)]
struct Met {
    newly: Vec<(Arc<Identity>, CancellationToken)>,
    before: usize,
    finished: usize,
}

impl Cancellations {
    /// Nobody can be cancelled yet. Requests for what is not here are kept for `ttl`, at most `max_tombstones` of them.
    pub fn new(ttl: Duration, max_tombstones: usize, log: Log) -> Self {
        Self(Some(Arc::new(Shared {
            ttl,
            book: Mutex::new(Book {
                held: HashMap::default(),
                named: BTreeSet::new(),
                digests: RandomState::default(),
                tombstones: Tombstones::new(ttl, max_tombstones),
                last: 0,
            }),
            lines: Mutex::default(),
            log,
        })))
    }

    /// The feature is off: nothing can be cancelled but by a shutdown.
    pub fn off() -> Self {
        Self(None)
    }

    /// Whether requests are carried out.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The log, while requests are carried out.
    pub fn log(&self) -> Option<&Log> {
        self.0.as_ref().map(|shared| &shared.log)
    }

    /// Tells this pool, too, when jobs in its line may have been cancelled.
    pub fn watch_line(&self, line: &Route<TakeCancelled>) {
        if let Some(shared) = &self.0 {
            shared.lines().push(line.clone());
        }
    }

    /// Requests that wait for what they ask for; nothing while the feature is off.
    pub fn tombstones(&self, now: Instant) -> Option<usize> {
        let shared = self.0.as_ref()?;
        Some(shared.book().tombstones.count(now))
    }

    /// Who asked for this assignment to be cancelled by its own id, and for how long that is still remembered.
    pub fn look(&self, tenant_id: &str, assignment_id: &str, now: Instant) -> Option<(Asker, Duration)> {
        let shared = self.0.as_ref()?;
        let wanted = Wanted {
            tenant_id: tenant_id.into(),
            target: Target::Assignment(assignment_id.to_owned()),
        };
        let (asked, left) = shared.book().tombstones.look(&wanted, now)?;
        Some((asked.by, left))
    }

    /// Enters an assignment that is being taken on; `token` is what makes it stop. If it was asked for before it came, it is
    /// cancelled from the beginning.
    pub fn enter(&self, identity: &Arc<Identity>, token: CancellationToken, now: Instant) -> Cancellable {
        let Some(shared) = &self.0 else {
            return Cancellable { token, entry: None };
        };
        let (number, asked) = shared.book().enter(identity, token.clone(), now);
        if asked.get().is_some() {
            token.cancel();
        }
        Cancellable {
            token,
            entry: Some(Entry {
                number,
                asked,
                shared: Arc::clone(shared),
            }),
        }
    }

    /// Carries a request out: whoever it asks for is told to stop, now or, unless it has ended, on arrival. `claims` know what
    /// has ended. Nothing while the feature is off.
    pub fn ask(
        &self,
        request: &CancelRequest,
        by: Asker,
        claims: Option<&Claims>,
        now: Instant,
    ) -> Option<CancelAnswer> {
        let shared = self.0.as_ref()?;
        let asked = Arc::new(Asked {
            by,
            reason: request
                .reason
                .as_deref()
                .map(|reason| mask_text(reason).to_string()),
        });
        let wanted = Wanted {
            tenant_id: request.tenant_id.as_str().into(),
            target: request.target.clone(),
        };
        let met = shared.book().ask(&wanted, &asked, now);
        let cancelled = met.newly.len() + met.before;
        // Nothing else of an assignment that has ended will come; of a run or a step, more may.
        let has_ended = cancelled == 0
            && matches!(request.target, Target::Assignment(_))
            && (met.finished > 0 || has_finished(claims, request, now));
        if has_ended {
            shared.book().tombstones.take_away(&wanted);
        }
        let outcome = match cancelled {
            0 if has_ended || met.finished > 0 => CancelOutcome::Finished,
            0 => CancelOutcome::Unknown,
            _ => CancelOutcome::Cancelled,
        };
        shared.tell(request, &asked, outcome, met.newly);
        let tombstone_s = (!has_ended).then_some(shared.ttl.as_secs());
        let worker_id = shared.log.worker_id();
        Some(CancelAnswer::new(
            worker_id,
            request,
            outcome,
            cancelled as u64,
            tombstone_s,
        ))
    }
}

/// Whether this process has answered the assignment.
fn has_finished(claims: Option<&Claims>, request: &CancelRequest, now: Instant) -> bool {
    let key = caf_protocol::ids::AssignmentKey::new(&request.tenant_id, request.target.id());
    claims.is_some_and(|claims| matches!(claims.look(&key, now), Standing::Finished(_)))
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Route<TakeCancelled>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says it to the log and to the jobs. At most one line per job: a flood of requests makes none.
    fn tell(
        &self,
        request: &CancelRequest,
        asked: &Asked,
        outcome: CancelOutcome,
        newly: Vec<(Arc<Identity>, CancellationToken)>,
    ) {
        self.log
            .emit(events::cancellation::asked(request, asked, outcome));
        if newly.is_empty() {
            return;
        }
        for (identity, token) in newly {
            self.log
                .emit(events::cancellation::requested(&identity, request, asked));
            token.cancel();
        }
        for line in self.lines().iter() {
            // A pool that is being re-created has an empty line: its jobs come back, and find the tombstone.
            let _ = line.tell(TakeCancelled);
        }
    }
}

impl Book {
    fn enter(
        &mut self,
        identity: &Arc<Identity>,
        token: CancellationToken,
        now: Instant,
    ) -> (u64, Arc<OnceLock<Arc<Asked>>>) {
        let asked = Arc::new(OnceLock::new());
        let before = self
            .tombstones
            .find(&identity.tenant_id, Target::all_of(identity), now);
        if let Some(before) = before {
            let _ = asked.set(before);
        }
        self.last += 1;
        for target in Target::all_of(identity) {
            let digest = self.digests.hash_one((&*identity.tenant_id, target));
            self.named.insert((digest, self.last));
        }
        let held = Held {
            identity: Arc::clone(identity),
            token,
            asked: Arc::clone(&asked),
            sealed: false,
        };
        self.held.insert(self.last, held);
        (self.last, asked)
    }

    fn ask(&mut self, wanted: &Wanted, asked: &Arc<Asked>, now: Instant) -> Met {
        let mut met = Met::default();
        let target = wanted.target.lent();
        let digest = self.digests.hash_one((&*wanted.tenant_id, target));
        for (_, number) in self.named.range((digest, 0)..=(digest, u64::MAX)) {
            let held = self.held.get(number);
            let Some(held) = held.filter(|held| held.is_named(&wanted.tenant_id, target)) else {
                continue;
            };
            if held.sealed {
                met.finished += 1;
            } else if held.asked.set(Arc::clone(asked)).is_ok() {
                met.newly.push((held.identity.clone(), held.token.clone()));
            } else {
                met.before += 1;
            }
        }
        // Also for what is held: it may be lost with an actor, or be handed back at this moment, and come again.
        self.tombstones.leave(wanted.clone(), Arc::clone(asked), now);
        met
    }

    fn leave(&mut self, number: u64) {
        let Some(held) = self.held.remove(&number) else {
            return;
        };
        for target in Target::all_of(&held.identity) {
            let digest = self.digests.hash_one((&*held.identity.tenant_id, target));
            self.named.remove(&(digest, number));
        }
    }
}

impl Held {
    fn is_named(&self, tenant_id: &str, target: Target<&str>) -> bool {
        self.identity.tenant_id == tenant_id && Target::all_of(&self.identity).any(|own| own == target)
    }
}

impl Cancellable {
    /// What only a shutdown stops, or what is not known yet.
    pub fn by_shutdown(token: CancellationToken) -> Self {
        Self { token, entry: None }
    }

    /// Fires when it is to stop.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Who has asked to cancel it, if somebody has.
    pub fn asked(&self) -> Option<&Arc<Asked>> {
        self.entry.as_ref()?.asked.get()
    }

    /// Why it is to stop, once its token has fired. When there are two reasons, the request counts: whoever else ran it
    /// would do what nobody wants any more.
    pub fn stop(&self) -> Stop {
        match self.asked() {
            Some(asked) => Stop::Asked(Arc::clone(asked)),
            None => Stop::Shutdown,
        }
    }

    /// Its outcome is known. A request that came before is returned, and decides it all the same; one that comes later
    /// changes nothing.
    #[must_use]
    pub fn seal(&self) -> Option<Arc<Asked>> {
        let entry = self.entry.as_ref()?;
        // Requests are noted under the same lock.
        let mut book = entry.shared.book();
        if let Some(held) = book.held.get_mut(&entry.number) {
            held.sealed = true;
        }
        entry.asked.get().cloned()
    }
}

impl Drop for Cancellable {
    fn drop(&mut self) {
        if let Some(entry) = &self.entry {
            entry.shared.book().leave(entry.number);
        }
    }
}

#[cfg(test)]
mod tests;
