//! The places of a pool: its slots and, when the queue is bounded, its queue. Owned values, shared across restarts of
//! the pool; what happens as they run out is decided in [`super::policy`].
//!
//! Neighbours: intake takes a place for each job that is to run, the job carries it, the pool keeps it up to date on who
//! waits longest and lets debts be paid. Taking, returning and telling that the status changed are one critical section,
//! so that changes are told in their order and none is missed. A place knows nothing of the job that has it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use caf_protocol::ack::OverloadStatus;
use caf_protocol::block::ResourceClass;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::deferrals::{Deferral, Deferrals};
use super::policy::{Judgement, Newcomer, QueueRules, Terms};
use crate::events::{self, Log};
use crate::job::PoolLoad;

/// The places of one pool. Cheap to clone.
#[derive(Clone)]
pub struct Places(Arc<Shared>);

struct Shared {
    class: ResourceClass,
    slots: usize,
    /// Nothing when only held permits bound the queue.
    rules: Option<QueueRules>,
    /// Most places that are taken and not owed.
    most: usize,
    state: Mutex<State>,
    /// Told whenever there may be more room.
    returned: Arc<Notify>,
    log: Log,
}

struct State {
    taken: usize,
    /// Jobs that are let in on the condition that another leaves, which has not left yet.
    owed: usize,
    status: OverloadStatus,
    /// Since when the job waits that waits longest.
    oldest: Option<Instant>,
    /// Jobs that row 4 refused since the start of the process.
    rejected: u64,
}

/// What a bounded queue says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct QueueSnapshot {
    /// Jobs that may wait.
    pub max_queue_size: usize,
    /// How loaded it is, in the words of acknowledgements (contract 4.1).
    pub overload_status: OverloadStatus,
    /// Jobs that row 4 refused since the start of the process.
    pub rejected: u64,
}

/// One place. Returns when dropped.
#[must_use = "it returns when dropped"]
pub struct Place {
    shared: Arc<Shared>,
    /// Whether a debt returns with it: its job came on the condition that another leaves, or leaves for such a one.
    owes: bool,
}

/// That one job of the line has to leave, because another was let in for it. Forgiven when dropped.
#[must_use = "it is forgiven when dropped"]
pub struct Debt(Option<Arc<Shared>>);

/// What became of a job that wants in.
pub enum Admitted {
    /// It has its place.
    Taken(TakenPlace),
    /// Row 5: it goes back to the broker.
    Deferred(Deferral),
    /// Row 4.
    Refused(Refused),
}

/// A place, and what goes with it.
pub struct TakenPlace {
    /// The place.
    pub place: Place,
    /// How loaded a bounded queue is with this job in it.
    pub load: Option<PoolLoad>,
    /// On what terms the job is let in.
    pub terms: Terms,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Jobs that wait.
    pub depth: usize,
    /// Whether there would be room, and the job should have gone back to the broker, but could not.
    pub cannot_defer: bool,
}

/// A job whose broker delivers it again.
#[derive(Clone, Copy)]
pub struct Deferrable<'a> {
    /// What is left of its time.
    pub left: Duration,
    /// Position of its message in the stream.
    pub sequence: u64,
    /// How often it was delivered, this time included; 0 where that is not known.
    pub deliveries: u64,
    /// Who says whether more may be sent back.
    pub deferrals: &'a Deferrals,
}

impl Places {
    /// Places of a pool whose queue only held permits bound.
    pub fn unbounded(class: ResourceClass, slots: usize) -> Self {
        Self::new(class, slots, None, Arc::default(), Log::discard())
    }

    /// Places of a pool. Without `rules` only held permits bound its queue. `returned` is told when there may be more
    /// room.
    pub fn new(
        class: ResourceClass,
        slots: usize,
        rules: Option<QueueRules>,
        returned: Arc<Notify>,
        log: Log,
    ) -> Self {
        let most = rules
            .as_ref()
            .map_or(usize::MAX, |rules| slots.saturating_add(rules.most()));
        let state = State {
            taken: 0,
            owed: 0,
            status: OverloadStatus::Healthy,
            oldest: None,
            rejected: 0,
        };
        Self(Arc::new(Shared {
            class,
            slots,
            rules,
            most,
            state: Mutex::new(state),
            returned,
            log,
        }))
    }

    /// Takes a place, if the rules say so. `deferrable`: nothing where no broker delivers the job again.
    pub fn admit(&self, now: Instant, deferrable: Option<Deferrable<'_>>) -> Admitted {
        let mut state = self.0.state();
        let Some(rules) = &self.0.rules else {
            return self.0.let_in(&mut state, Terms::FULL, false);
        };
        // While a slot is free, nobody waits.
        let depth = state.waiting(self.0.slots);
        if state.staying() < self.0.slots {
            return self.0.let_in(&mut state, Terms::FULL, false);
        }
        let newcomer = Newcomer {
            oldest_waited: state.oldest.map(|since| now.saturating_duration_since(since)),
            deferrable_within: deferrable.map(|job| job.left),
            deliveries: deferrable.map_or(0, |job| job.deliveries),
        };
        let refused = |cannot_defer| Admitted::Refused(Refused { depth, cannot_defer });
        match rules.judge(depth, newcomer) {
            Judgement::LetIn(terms) => self.0.let_in(&mut state, terms, false),
            Judgement::DropOldest => self.0.let_in(&mut state, Terms::FULL, true),
            Judgement::Full => refused(false),
            Judgement::CannotDefer => refused(true),
            Judgement::Defer { delay_ms } => deferrable
                .and_then(|job| job.deferrals.try_take(now, job.sequence, delay_ms))
                .map_or_else(|| refused(true), Admitted::Deferred),
        }
    }

    /// Whether a newcomer would find a slot that nobody waits for.
    pub fn has_slot(&self) -> bool {
        self.0.state().staying() < self.0.slots
    }

    /// Jobs waiting now, and how many may.
    pub fn queue(&self) -> (usize, usize) {
        let waiting = self.0.state().waiting(self.0.slots);
        (waiting, self.size())
    }

    /// The queue as the health page shows it; nothing when it has no bound of its own.
    pub fn snapshot(&self) -> Option<QueueSnapshot> {
        let rules = self.0.rules.as_ref()?;
        let state = self.0.state();
        Some(QueueSnapshot {
            max_queue_size: rules.size,
            overload_status: state.status,
            rejected: state.rejected,
        })
    }

    /// Whether its queue has a bound of its own, and is critical.
    pub fn is_critical(&self) -> bool {
        self.is_bounded() && self.0.state().status == OverloadStatus::Critical
    }

    /// From intake: row 4 refused a job. What the places refuse may still leave by another row.
    pub fn note_rejected(&self) {
        self.0.state().rejected += 1;
    }

    /// How many may wait.
    pub fn size(&self) -> usize {
        self.0.rules.as_ref().map_or(usize::MAX, |rules| rules.size)
    }

    /// Whether the queue has a bound of its own.
    pub fn is_bounded(&self) -> bool {
        self.0.rules.is_some()
    }

    /// Places that are free; nothing when there is no bound.
    pub fn free(&self) -> Option<usize> {
        let state = self.0.state();
        self.is_bounded()
            .then(|| self.0.most.saturating_sub(state.staying()))
    }

    /// From the pool: since when the job waits that waits longest.
    pub fn note_oldest(&self, since: Option<Instant>) {
        self.0.state().oldest = since;
    }

    /// Whether a debt is still due: without the job that was let in for it, the pool would be overloaded. As jobs end, it
    /// no longer is, and then nobody has to leave.
    pub fn is_due(&self) -> bool {
        let state = self.0.state();
        let Some(rules) = &self.0.rules else { return false };
        let all = state.taken.saturating_sub(self.0.slots);
        rules.status(all.saturating_sub(1)) >= OverloadStatus::Overloaded
    }
}

impl State {
    /// Jobs that are not about to leave. More may be owed than there are: when many end at once, their debts are forgiven
    /// a moment later.
    fn staying(&self) -> usize {
        self.taken.saturating_sub(self.owed)
    }

    /// Those of them that wait.
    fn waiting(&self, slots: usize) -> usize {
        self.staying().saturating_sub(slots)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn let_in(self: &Arc<Self>, state: &mut State, terms: Terms, owes: bool) -> Admitted {
        state.taken += 1;
        state.owed += usize::from(owes);
        let load = self.rules.as_ref().map(|rules| {
            let depth = state.waiting(self.slots);
            PoolLoad {
                depth,
                status: rules.status(depth),
                degraded: terms.degraded,
            }
        });
        self.tell_change(state);
        let place = Place {
            shared: Arc::clone(self),
            owes,
        };
        Admitted::Taken(TakenPlace { place, load, terms })
    }

    /// Called with the lock held, so that lines come in the order of the changes.
    fn tell_change(&self, state: &mut State) {
        let Some(rules) = &self.rules else { return };
        let depth = state.waiting(self.slots);
        let status = rules.status(depth);
        if status != state.status {
            let old = std::mem::replace(&mut state.status, status);
            let queue = (depth, rules.size);
            self.log
                .emit(events::queue::status_changed(self.class, queue, old, status));
        }
    }

    fn give_back(&self, places: usize, debts: usize) {
        let mut state = self.state();
        state.taken -= places;
        state.owed -= debts;
        self.tell_change(&mut state);
        drop(state);
        self.returned.notify_waiters();
    }
}

impl Place {
    /// Whether its job was let in on the condition that another leaves, and carries that debt.
    pub fn owes(&self) -> bool {
        self.owes
    }

    /// The debt that its job was let in with, if it was. From now on it is somebody else's.
    pub fn take_debt(&mut self) -> Option<Debt> {
        std::mem::take(&mut self.owes).then(|| Debt(Some(Arc::clone(&self.shared))))
    }

    /// Its job leaves for that debt: both return at once.
    pub fn pay(&mut self, mut debt: Debt) {
        debug_assert!(!self.owes, "a job that waits has handed its debt over");
        if debt.0.take().is_some() {
            self.owes = true;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.give_back(1, usize::from(self.owes));
    }
}

impl Drop for Debt {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            shared.give_back(0, 1);
        }
    }
}
