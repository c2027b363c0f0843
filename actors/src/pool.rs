//! A pool: the waiting line and the slots of one resource class.
//!
//! Neighbours: intake takes a [`Place`] and hands over the job; as soon as a slot is free, the pool gives a block worker the
//! job whose turn it is by the line, if its tenant may run one more ([`Shares`]). A job that runs out of time in the line,
//! has to make room for another (row 16), or is cancelled by request, goes straight to the publisher. The pool never
//! rejects: whoever has a place gets in. Slots and places are owned values that return when dropped, so a pool that is
//! re-created sees the true counts; the jobs that waited in it come back by redelivery.

pub mod auditor;
pub mod deferrals;
pub mod line;
mod places;
pub mod policy;
pub mod room;
pub mod running;
mod slots;

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler, Message, SpawnHandle};
use caf_protocol::block::ResourceClass;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::ids::AssignmentKey;
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use tokio::time::Instant;

pub use self::deferrals::{Deferral, Deferrals};
use self::line::{Ageing, Line, Newcomer, Turn, Waiting};
pub use self::places::{Admitted, Debt, Deferrable, Place, Places, QueueSnapshot, Refused, TakenPlace};
use self::running::{RoomForTenant, Running, RunningJobs};
pub use self::slots::{Occupied, Slot, Slots};
use crate::block_worker::Run;
use crate::events::{self, Log};
use crate::intake::HAND_BACK_DELAY_MS;
use crate::intake::decision::Row;
use crate::job::Job;
use crate::publisher::{Conclude, PublisherRoutes, Settle};
use crate::runtime::{Route, Undelivered};
use crate::sink::Verdict;
use crate::tenants::Tenants;

/// How often tenants at their limit are looked at again, although none of their jobs has ended: nobody tells a pool that a
/// limit was raised.
const LIMITS_LOOK: Duration = Duration::from_secs(1);
/// How long a slot rests when its block worker is being re-created.
const WORKER_RESTART_WAIT: Duration = Duration::from_millis(100);

/// How intake reaches a pool.
#[derive(Clone)]
pub struct PoolDoor {
    /// Its places.
    pub places: Places,
    /// Where jobs with a place go.
    pub enqueue: Route<Enqueue>,
}

/// The doors of the three pools.
#[derive(Clone)]
pub struct PoolDoors {
    /// Door of the cpu pool.
    pub cpu: PoolDoor,
    /// Door of the gpu pool.
    pub gpu: PoolDoor,
    /// Door of the io pool.
    pub io: PoolDoor,
}

impl PoolDoors {
    /// The door of the pool for `class`.
    pub fn get(&self, class: ResourceClass) -> &PoolDoor {
        match class {
            ResourceClass::Cpu => &self.cpu,
            ResourceClass::Gpu => &self.gpu,
            ResourceClass::Io => &self.io,
        }
    }
}

// ---- Messages, in the order of a job's life ----

/// From intake: a job that has its place.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Enqueue(pub Box<Job>);

/// From a slot that was dropped.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SlotReturned;

/// From shutdown: what becomes of the jobs that wait. The reply comes when they have been sent on.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub enum EmptyLine {
    /// A broker delivers them again: hand them back.
    HandBack,
    /// Nobody delivers them again: answer that there is no room.
    Refuse,
}

/// From who explains an assignment: where it stands in the line. Nothing when it is not in it.
#[derive(Message)]
#[rtype(result = "Option<InLine>")]
pub struct LookInLine(pub AssignmentKey, pub String);

/// Where a job stands in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct InLine {
    /// Its priority.
    pub priority: u8,
    /// Jobs of its tenant that go first, those of higher rank that come later not counted.
    pub before_of_tenant: usize,
    /// Jobs of its tenant that wait here, itself included.
    pub of_tenant: usize,
    /// Tenants that wait here, its own included.
    pub tenants: usize,
    /// Jobs of its tenant that run, in all pools.
    pub tenant_running: usize,
    /// Most of them that may.
    pub tenant_max_running: Option<usize>,
    /// Whether it waits because its tenant runs as many as it may.
    pub at_limit: bool,
}

/// From whoever cancels: jobs in the line may have been cancelled by request.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub struct TakeCancelled;

/// From the health page: proof of life.
#[derive(Message)]
#[rtype(result = "PoolSnapshot")]
pub struct LookAtPool;

/// What a pool is doing.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, actix::MessageResponse)]
pub struct PoolSnapshot {
    /// Jobs waiting.
    pub queued: usize,
    /// Jobs running.
    pub running: usize,
    /// Slots.
    pub slots: usize,
    /// Slots that are neither free nor with a job that runs, when the auditor looked last: 0 unless the program is
    /// at fault.
    pub slots_unaccounted: usize,
    /// Tenants that have jobs waiting.
    pub tenants_waiting: usize,
    /// Those of them that run as many jobs as they may.
    pub tenants_at_limit: usize,
    /// Its queue, if that has a bound of its own; the fields stand among the others.
    #[serde(flatten)]
    pub queue: Option<QueueSnapshot>,
}

// ---- State ----

/// By what tenants share the slots. Cheap to clone; the pools of a node have the same.
#[derive(Clone, Default)]
pub struct Shares {
    /// What each tenant may use.
    pub tenants: Tenants,
    /// What each runs.
    pub running: RunningJobs,
    /// How fast waiting jobs gain priority.
    pub ageing: Ageing,
}

impl Shares {
    /// The turn of a tenant, if it may run one more job.
    fn turn(&self, class: ResourceClass, tenant: &Arc<str>) -> Option<Turn<Running>> {
        let policy = self.tenants.policy(tenant);
        let right = self.running.try_run(class, tenant, policy.max_running)?;
        Some(Turn {
            weight: policy.weight,
            right,
        })
    }
}

/// The block workers of a pool. Cheap to clone.
#[derive(Clone)]
pub struct Workers {
    /// Each runs the job that holds the slot with its number.
    pub by_slot: Vec<Route<Run>>,
    /// Runs jobs that hardly do anything, whatever their slot, where the pool is.
    pub light: Route<Run>,
}

/// The pool actor.
pub struct Pool {
    class: ResourceClass,
    line: Line<Box<Job>>,
    /// For each, the job that waits longest has to leave.
    debts: Vec<Debt>,
    places: Places,
    slots: Arc<Slots>,
    workers: Workers,
    publisher: PublisherRoutes,
    shares: Shares,
    /// Whether it tells that a deadline ran out, as block workers do.
    tells_timeouts: bool,
    log: Log,
    alarm: Option<(Instant, SpawnHandle)>,
    /// Whether tenants at their limit are looked at again soon.
    looks_at_limits: bool,
}

impl Pool {
    /// A pool with an empty line.
    pub fn new(
        class: ResourceClass,
        places: Places,
        slots: Arc<Slots>,
        workers: Workers,
        publisher: PublisherRoutes,
        shares: Shares,
        log: Log,
    ) -> Self {
        Self {
            class,
            line: Line::new(shares.ageing),
            debts: Vec::new(),
            places,
            slots,
            workers,
            publisher,
            shares,
            tells_timeouts: false,
            log,
            alarm: None,
            looks_at_limits: false,
        }
    }

    /// Whether it tells which deadlines run out in its line: while the policy of limits is in force.
    #[must_use]
    pub fn telling_timeouts(mut self, tells: bool) -> Self {
        self.tells_timeouts = tells;
        self
    }

    // ---- Effects ----

    /// Starts waiting jobs while slots are free. `waited` tells jobs of the line from one that has just come.
    fn pump(&mut self, context: &mut Context<Self>, waited: bool) {
        self.expire();
        self.pay_debts(Instant::now());
        while !self.line.is_empty() && self.slots.has_free() {
            let Some((waiting, running)) = self.next() else {
                break;
            };
            self.start(waiting, running, waited, context);
        }
        self.places.note_oldest(self.line.oldest());
        self.set_alarm(context);
        self.look_at_limits(context);
    }

    /// The job whose turn it is, with the right to run it.
    fn next(&mut self) -> Option<(Waiting<Box<Job>>, Running)> {
        let (class, shares) = (self.class, &self.shares);
        let turn = |tenant: &Arc<str>| shares.turn(class, tenant);
        self.line.pop_next(Instant::now(), turn)
    }

    /// Gives a job to a block worker.
    fn start(
        &mut self,
        waiting: Waiting<Box<Job>>,
        running: Running,
        waited: bool,
        context: &mut Context<Self>,
    ) {
        // Only the pool takes slots: there is one still.
        let Some(slot) = self.slots.try_take() else {
            return self.line.push_front(waiting);
        };
        if waited {
            let (identity, left) = (&waiting.item.identity, self.line.len());
            self.log
                .detail(|| events::processing_queued(identity, self.class.as_str(), left));
        }
        let now = Instant::now();
        self.log_started(&waiting, now);
        let waited_ms = crate::job::elapsed_ms(waiting.since, now);
        let (mut job, turn) = waiting.split();
        let span = &mut job.holdings.span;
        span.set("queue.pool", self.class.as_str());
        span.set("queue.wait_ms", waited_ms);
        span.event("slot taken", vec![("queue.wait_ms", waited_ms.into())]);
        let run = Run {
            job,
            slot: slot.carrying(running),
        };
        if let Err(Undelivered(Run { job, mut slot })) = self.workers.of(&run).tell(run) {
            // Its block worker is being re-created: the job keeps its turn, the slot rests for a moment.
            drop(slot.let_go());
            self.line.push_front(turn.with(job));
            context.run_later(WORKER_RESTART_WAIT, move |_, _| drop(slot));
        }
    }

    fn log_started(&self, waiting: &Waiting<Box<Job>>, now: Instant) {
        let job = &waiting.item;
        let queued_ms = crate::job::elapsed_ms(job.arrival.received, now);
        let started = events::step_started(&job.identity, self.class.as_str(), queued_ms);
        self.log
            .emit(events::queue::left(started, self.class, waiting.waited(now)));
    }

    /// Row 16: lets the jobs that wait longest leave for those that were let in for them. The last one in the line is
    /// such a newcomer itself and stays: whom it came for may be on the way still.
    fn pay_debts(&mut self, now: Instant) {
        while !self.debts.is_empty() {
            if !self.places.is_due() {
                self.debts.clear();
            } else if self.line.len() > 1
                && let (Some(debt), Some(oldest)) = (self.debts.pop(), self.line.pop_oldest(now))
            {
                self.measure_wait(&oldest, now);
                self.drop_oldest(*oldest.item, debt, now);
            } else {
                return;
            }
        }
    }

    fn drop_oldest(&self, mut job: Job, debt: Debt, now: Instant) {
        job.place.pay(debt);
        self.log
            .emit(events::queue::dropped(&job.identity, self.class, &self.places));
        let failure = Failure::new(
            ErrorCode::SystemOverload,
            "dropped from the queue of the pool: it waited longest, and others came",
        )
        .with("waiting", true.into());
        self.conclude_by("16", job, Outcome::from(failure), now);
    }

    /// Row 8 for jobs whose time ran out while they waited.
    fn expire(&mut self) {
        let now = Instant::now();
        for expired in self.line.take_expired(now) {
            self.measure_wait(&expired, now);
            let job = expired.item;
            let since_start = |end: Instant| end.saturating_duration_since(job.started);
            self.log.tell(self.tells_timeouts, || {
                vec![events::timeouts::of_waiting(
                    &job.identity,
                    since_start(job.deadline),
                    since_start(now),
                )]
            });
            let failure = Failure::timeout("the deadline of the assignment").with("waiting", true.into());
            self.conclude_by("8", *job, Outcome::from(failure), now);
        }
    }

    /// Row 9 for jobs that were cancelled by request while they waited.
    fn take_cancelled(&mut self, now: Instant) {
        let cancelled = self
            .line
            .take_where(now, |job| job.holdings.cancel.asked().is_some());
        for waiting in cancelled {
            self.measure_wait(&waiting, now);
            self.conclude_cancelled(*waiting.item, now);
        }
    }

    fn conclude_cancelled(&self, job: Job, now: Instant) {
        if let Some(asked) = job.holdings.cancel.asked().cloned() {
            self.conclude_by("9", job, Outcome::from(asked.failure()), now);
        }
    }

    /// A job leaves the line without a start. How long the others waited is measured with their start.
    fn measure_wait(&self, left: &Waiting<Box<Job>>, now: Instant) {
        self.log
            .measure(|| events::queue::left_without_start(self.class, left.waited(now)));
    }

    fn conclude_by(&self, row: &'static str, job: Job, outcome: Outcome, now: Instant) {
        let step = StepResult {
            cost: Default::default(),
            outcome,
            latency_ms: job.latency_ms(now),
            retries_used: 0,
        };
        let _ = self.publisher.conclude.tell(Conclude::of_job_by(row, job, step));
    }

    /// Wakes the pool when the next waiting job runs out of time.
    fn set_alarm(&mut self, context: &mut Context<Self>) {
        let next = self.line.next_deadline();
        if self.alarm.map(|(at, _)| at) == next {
            return;
        }
        if let Some((_, handle)) = self.alarm.take() {
            context.cancel_future(handle);
        }
        self.alarm = next.map(|at| {
            let wait = at.saturating_duration_since(Instant::now());
            let handle = context.run_later(wait, |pool, context| {
                pool.alarm = None;
                pool.pump(context, true);
            });
            (at, handle)
        });
    }

    /// Tenants at their limit are looked at again when one of their jobs ends, and now and then besides.
    fn look_at_limits(&mut self, context: &mut Context<Self>) {
        if self.line.tenants_aside() == 0 || self.looks_at_limits {
            return;
        }
        self.looks_at_limits = true;
        context.run_later(LIMITS_LOOK, |pool, context| {
            pool.looks_at_limits = false;
            pool.line.readmit_all(Instant::now());
            pool.pump(context, true);
        });
    }

    fn find_in_line(&self, key: &AssignmentKey, tenant_id: &str) -> Option<InLine> {
        let mut priority = 0;
        let standing = self.line.find(tenant_id, |job| {
            priority = job.priority;
            job.identity.key() == *key
        })?;
        Some(InLine {
            priority,
            before_of_tenant: standing.before,
            of_tenant: standing.of_tenant,
            tenants: standing.tenants,
            tenant_running: self.shares.running.of(tenant_id),
            tenant_max_running: self.shares.tenants.policy(tenant_id).max_running,
            at_limit: standing.aside,
        })
    }

    fn empty_line(&mut self, how: EmptyLine) {
        let now = Instant::now();
        self.take_cancelled(now);
        while let Some(waiting) = self.line.pop_oldest(now) {
            self.measure_wait(&waiting, now);
            let mut job = waiting.item;
            match how {
                EmptyLine::HandBack => {
                    self.log.measure(|| events::delivery::left_by("12"));
                    let row = Row::HandBack.name();
                    job.holdings.span.set("execution.outcome", row);
                    let verdict = Verdict::Nak {
                        delay_ms: HAND_BACK_DELAY_MS,
                    };
                    self.log.emit(events::not_run(&job.identity, "draining"));
                    let _ = self.publisher.settle.tell(Settle {
                        holdings: job.holdings,
                        verdict,
                    });
                }
                EmptyLine::Refuse => {
                    let failure = Failure::new(
                        ErrorCode::SystemOverload,
                        "the worker shut down before the job started",
                    );
                    self.conclude_by("7", *job, Outcome::from(failure), now);
                }
            }
        }
    }
}

impl Workers {
    fn of(&self, run: &Run) -> &Route<Run> {
        if run.job.is_light() {
            &self.light
        } else {
            &self.by_slot[run.slot.index]
        }
    }
}

// ---- Actix shell ----

impl Actor for Pool {
    type Context = Context<Self>;
}

impl Handler<Enqueue> for Pool {
    type Result = ();

    fn handle(&mut self, enqueue: Enqueue, context: &mut Self::Context) {
        let (Enqueue(mut job), now) = (enqueue, Instant::now());
        self.debts.extend(job.place.take_debt());
        if job.holdings.cancel.asked().is_some() {
            // On its way here it was in no line.
            self.conclude_cancelled(*job, now);
        } else {
            let tenant = job.identity.tenant_id.clone();
            self.line.push(Newcomer {
                tenant: &tenant,
                priority: job.priority,
                since: now,
                deadline: job.deadline,
                item: job,
            });
        }
        self.pump(context, false);
    }
}

impl Handler<SlotReturned> for Pool {
    type Result = ();

    fn handle(&mut self, _: SlotReturned, context: &mut Self::Context) {
        self.pump(context, true);
    }
}

impl Handler<RoomForTenant> for Pool {
    type Result = ();

    fn handle(&mut self, RoomForTenant(tenant): RoomForTenant, context: &mut Self::Context) {
        self.line.readmit(&tenant, Instant::now());
        self.pump(context, true);
    }
}

impl Handler<LookInLine> for Pool {
    type Result = Option<InLine>;

    fn handle(&mut self, LookInLine(key, tenant_id): LookInLine, _: &mut Self::Context) -> Option<InLine> {
        self.find_in_line(&key, &tenant_id)
    }
}

impl Handler<EmptyLine> for Pool {
    type Result = ();

    fn handle(&mut self, how: EmptyLine, _: &mut Self::Context) {
        self.empty_line(how);
    }
}

impl Handler<TakeCancelled> for Pool {
    type Result = ();

    fn handle(&mut self, _: TakeCancelled, context: &mut Self::Context) {
        self.take_cancelled(Instant::now());
        self.pump(context, true);
    }
}

impl Handler<LookAtPool> for Pool {
    type Result = PoolSnapshot;

    fn handle(&mut self, _: LookAtPool, _: &mut Self::Context) -> PoolSnapshot {
        PoolSnapshot {
            queued: self.line.len(),
            running: self.slots.busy(),
            slots: self.slots.count(),
            slots_unaccounted: self.slots.unaccounted(),
            tenants_waiting: self.line.tenants(),
            tenants_at_limit: self.line.tenants_aside(),
            queue: self.places.snapshot(),
        }
    }
}

#[cfg(test)]
mod tests;
