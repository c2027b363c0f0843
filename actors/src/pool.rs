//! A pool: the waiting line and the slots of one resource class.
//!
//! Neighbours: intake takes a [`Place`] and hands over the job; the pool gives the oldest job to a block worker as soon
//! as a slot is free. A job that runs out of time in the line goes straight to the publisher. The pool never rejects:
//! whoever has a place gets in. Slots and places are owned values that return when dropped, so a pool that is
//! re-created sees the true counts; the jobs that waited in it come back by redelivery.

pub mod auditor;
mod line;
mod slots;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler, Message, SpawnHandle};
use caf_protocol::ack::OverloadStatus;
use caf_protocol::block::ResourceClass;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use tokio::time::Instant;

use self::line::Line;
pub use self::slots::{Occupied, Slot, Slots};
use crate::block_worker::Run;
use crate::events::{self, Log};
use crate::intake::HAND_BACK_DELAY_MS;
use crate::job::{Job, PoolLoad};
use crate::publisher::{Conclude, PublisherRoutes, Settle};
use crate::runtime::{Route, Undelivered};
use crate::sink::Verdict;

/// How long a slot rests when its block worker is being re-created.
const WORKER_RESTART_WAIT: Duration = Duration::from_millis(100);

// ---- Places: owned values, shared across restarts of the pool; slots are in `slots` ----

/// The places of a pool: its slots and, when the queue is bounded, its queue.
#[derive(Clone)]
pub struct Places(Arc<PlaceCount>);

struct PlaceCount {
    slots: usize,
    /// Jobs that may wait; nothing when only held permits bound them.
    queue: Option<usize>,
    taken: AtomicUsize,
}

/// One place. Returns when dropped.
pub struct Place(Arc<PlaceCount>);

impl Places {
    /// `queue` is absent for a queue that only the held permits bound.
    pub fn new(slots: usize, queue: Option<usize>) -> Self {
        Self(Arc::new(PlaceCount {
            slots,
            queue,
            taken: AtomicUsize::new(0),
        }))
    }

    /// Takes a place, and tells how loaded a bounded queue was with this job in it.
    pub fn try_take(&self) -> Option<(Place, Option<PoolLoad>)> {
        let count = &self.0;
        let bound = count.queue.map_or(usize::MAX, |queue| count.slots + queue);
        let before = count
            .taken
            .fetch_update(SeqCst, SeqCst, |taken| (taken < bound).then_some(taken + 1))
            .ok()?;
        let depth = (before + 1).saturating_sub(count.slots);
        let load = count.queue.map(|queue| PoolLoad {
            depth,
            status: overload_status(depth, queue),
        });
        Some((Place(Arc::clone(count)), load))
    }

    /// Jobs waiting now, and how many may.
    pub fn queue(&self) -> (usize, usize) {
        let waiting = self.0.taken.load(SeqCst).saturating_sub(self.0.slots);
        (waiting, self.0.queue.unwrap_or(usize::MAX))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, SeqCst);
    }
}

/// The word for `depth` waiting jobs in a queue of `size` (contract 4.1).
pub fn overload_status(depth: usize, size: usize) -> OverloadStatus {
    let share = |tenths: usize| depth * 10 >= size * tenths;
    match () {
        () if share(10) => OverloadStatus::Critical,
        () if share(8) => OverloadStatus::Overloaded,
        () if share(5) => OverloadStatus::Degraded,
        () => OverloadStatus::Healthy,
    }
}

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
}

// ---- State ----

/// The pool actor.
pub struct Pool {
    class: ResourceClass,
    line: Line<Box<Job>>,
    slots: Arc<Slots>,
    workers: Vec<Route<Run>>,
    publisher: PublisherRoutes,
    log: Log,
    alarm: Option<(Instant, SpawnHandle)>,
}

impl Pool {
    /// A pool with an empty line. `workers[i]` runs the job that holds slot `i`.
    pub fn new(
        class: ResourceClass,
        slots: Arc<Slots>,
        workers: Vec<Route<Run>>,
        publisher: PublisherRoutes,
        log: Log,
    ) -> Self {
        Self {
            class,
            line: Line::default(),
            slots,
            workers,
            publisher,
            log,
            alarm: None,
        }
    }

    // ---- Effects ----

    /// Starts waiting jobs while slots are free. `waited` tells jobs of the line from one that has just come.
    fn pump(&mut self, context: &mut Context<Self>, waited: bool) {
        self.expire();
        while !self.line.is_empty() {
            let Some(slot) = self.slots.try_take() else { break };
            let Some(job) = self.line.pop() else { break };
            if waited {
                self.log.emit(events::processing_queued(
                    &job.identity,
                    self.class.as_str(),
                    self.line.len(),
                ));
            }
            let queued_ms = crate::job::elapsed_ms(job.arrival.received, Instant::now());
            self.log.emit(events::step_started(
                &job.identity,
                self.class.as_str(),
                queued_ms,
            ));
            let deadline = job.deadline;
            let run = Run { job, slot };
            if let Err(Undelivered(Run { job, slot })) = self.workers[slot_index(&run)].tell(run) {
                // Its block worker is being re-created: the job keeps its turn, the slot rests for a moment.
                self.line.push_front(deadline, job);
                context.run_later(WORKER_RESTART_WAIT, move |_, _| drop(slot));
            }
        }
        self.set_alarm(context);
    }

    /// Row 8 for jobs whose time ran out while they waited.
    fn expire(&mut self) {
        let now = Instant::now();
        for job in self.line.take_expired(now) {
            let failure = Failure::timeout("the deadline of the assignment").with("waiting", true.into());
            self.conclude(*job, Outcome::from(failure), now);
        }
    }

    fn conclude(&self, job: Job, outcome: Outcome, now: Instant) {
        let step = StepResult {
            outcome,
            latency_ms: job.latency_ms(now),
            retries_used: 0,
        };
        let _ = self.publisher.conclude.tell(Conclude::of_job(job, step));
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

    fn empty_line(&mut self, how: EmptyLine) {
        let now = Instant::now();
        while let Some(job) = self.line.pop() {
            match how {
                EmptyLine::HandBack => {
                    let verdict = Verdict::Nak {
                        delay_ms: HAND_BACK_DELAY_MS,
                    };
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
                    self.conclude(*job, Outcome::from(failure), now);
                }
            }
        }
    }
}

fn slot_index(run: &Run) -> usize {
    run.slot.index
}

// ---- Actix shell ----

impl Actor for Pool {
    type Context = Context<Self>;
}

impl Handler<Enqueue> for Pool {
    type Result = ();

    fn handle(&mut self, Enqueue(job): Enqueue, context: &mut Self::Context) {
        self.line.push_back(job.deadline, job);
        self.pump(context, false);
    }
}

impl Handler<SlotReturned> for Pool {
    type Result = ();

    fn handle(&mut self, _: SlotReturned, context: &mut Self::Context) {
        self.pump(context, true);
    }
}

impl Handler<EmptyLine> for Pool {
    type Result = ();

    fn handle(&mut self, how: EmptyLine, _: &mut Self::Context) {
        self.empty_line(how);
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
        }
    }
}

#[cfg(test)]
mod tests;
