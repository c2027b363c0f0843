//! A block worker: runs one job at a time to its outcome: attempts, waits, deadline, cancellation.
//!
//! Neighbours: its pool gives it a job with a slot; the outcome goes to the publisher. A block that panics, hangs or
//! blocks its thread hurts its own job only. Inputs that are kept elsewhere are fetched here, once, before the first call
//! (`payload`); no more of them are in memory than there are slots. The worker never retries what the plan does not allow
//! and never talks to a broker.

mod model;
mod payload;
pub mod retry;
mod spans;
pub mod threads;

use std::hash::{BuildHasher, RandomState};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Context, Handler, Message};
use caf_protocol::block::{BlockContext, Outputs, RunMode, Task};
use caf_protocol::endpoint::{EndpointKind, Sign};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::limit::{Operation, RanOut};
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use futures_util::FutureExt;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::time::{Instant, timeout_at};

use self::model::Calling;
use self::retry::course::LAST_ERROR;
use self::retry::limit::{End, Limit};
use self::retry::{Course, NextStep, RetryPlan};
use self::threads::{Threads, within};
use crate::breakers::{Breakers, CallEnd, Pass};
use crate::cancellation::Stop;
use crate::claims::fleet::Proof;
use crate::clock::whole_ms;
use crate::events::{self, Log};
use crate::intake::HAND_BACK_DELAY_MS;
use crate::intake::decision::Row;
use crate::job::{Job, Work};
use crate::pool::Slot;
use crate::publisher::{Conclude, PublisherRoutes, Settle};
use crate::sink::Verdict;
use crate::state_dir::marks::{Mark, Marks};
use crate::trace::Span;

/// Pause before a claim that did not answer is asked again.
pub const PROOF_RETRY: Duration = Duration::from_millis(200);

/// From the pool: run this job.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Run {
    /// The job.
    pub job: Box<Job>,
    /// Its slot; returns when the job is over.
    pub slot: Slot,
}

/// The block worker actor. Stateless between jobs: a job's state lives in the job's own future, which survives the
/// actor.
#[derive(Clone)]
pub struct BlockWorker(Arc<Tools>);

/// What block workers use; jobs that run share it.
#[derive(Clone)]
struct Tools {
    publisher: PublisherRoutes,
    threads: Threads,
    marks: Option<Marks>,
    /// Shared by all jobs that run; one that must run alone has it to itself.
    floor: Arc<RwLock<()>>,
    max_payload_ref_bytes: u64,
    tells_timeouts: bool,
    breakers: Breakers,
    log: Log,
}

/// How a run ended: as an outcome, or not at all because the node leaves and someone else may run it.
enum Ended {
    Outcome(Outcome, u32),
    Interrupted,
    TakenOver,
}

/// Whether an attempt may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleared {
    /// It may.
    Go,
    /// Not any more: somebody has cancelled it.
    Cancelled,
    /// Not any more: the deadline comes before certainty.
    OutOfTime,
    /// Not any more: another worker has the assignment.
    TakenOver,
}

impl Cleared {
    /// Row 13: no attempt begins while it is uncertain whose the assignment is. Nothing means: ask again after
    /// [`PROOF_RETRY`].
    pub fn by(proof: &Proof, now: Instant, deadline: Instant) -> Option<Self> {
        match proof {
            Proof::Ours => Some(Self::Go),
            Proof::Lost => Some(Self::TakenOver),
            Proof::Unknown(_) => (now + PROOF_RETRY >= deadline).then_some(Self::OutOfTime),
        }
    }
}

impl BlockWorker {
    /// A worker whose outcomes go to `publisher`; `threads` are shared by all workers of the node; inputs that are kept
    /// elsewhere are at most `max_payload_ref_bytes`; `marks` say what runs.
    pub fn new(
        publisher: PublisherRoutes,
        threads: Threads,
        max_payload_ref_bytes: u64,
        marks: Option<Marks>,
        log: Log,
    ) -> Self {
        Self(Arc::new(Tools {
            publisher,
            threads,
            max_payload_ref_bytes,
            marks,
            floor: Arc::default(),
            tells_timeouts: false,
            breakers: Breakers::default(),
            log,
        }))
    }

    /// Whether it tells which limits run out: while their policy is in force.
    #[must_use]
    pub fn telling_timeouts(mut self, tells: bool) -> Self {
        Arc::make_mut(&mut self.0).tells_timeouts = tells;
        self
    }

    /// Asks these before each call and each retry.
    #[must_use]
    pub fn with_breakers(mut self, breakers: Breakers) -> Self {
        Arc::make_mut(&mut self.0).breakers = breakers;
        self
    }

    /// Whether it does.
    pub fn tells_timeouts(&self) -> bool {
        self.0.tells_timeouts
    }
}

impl Tools {
    /// What this job asks before it calls.
    fn breakers_for(&self, job: &Job) -> Breakers {
        if job.skip_circuit_breaker {
            Breakers::default()
        } else {
            self.breakers.clone()
        }
    }

    fn tell_limits(&self, job: &Job, operations: &[Operation], failure: Option<&Failure>) {
        let events = || events::timeouts::of_attempt(&job.identity, operations, failure);
        self.log.tell(self.tells_timeouts, events);
    }

    fn tell_limits_of_job(&self, job: &Job, outcome: &Outcome) {
        let since_start = |end: Instant| end.saturating_duration_since(job.started);
        let deadline = (since_start(job.deadline), since_start(Instant::now()));
        self.log.tell(self.tells_timeouts, || {
            events::timeouts::of_job(&job.identity, outcome.failure(), deadline)
        });
    }
}

async fn run(mut job: Box<Job>, slot: Slot, worker: &Tools) {
    let running = slot.occupy();
    job.began = Some(Instant::now());
    job.holdings.share.begin();
    let ended = on_the_floor(&mut job, worker).await;
    drop(running);
    if let Ended::Outcome(outcome, _) = &ended {
        worker.tell_limits_of_job(&job, outcome);
    }
    let Tools { publisher, log, .. } = worker;
    // The slot is free before the answer is written: publishing is not the pool's business.
    drop(slot);
    match ended {
        Ended::Outcome(outcome, retries_used) => {
            let step = StepResult {
                cost: job.cost(),
                outcome,
                latency_ms: job.latency_ms(Instant::now()),
                retries_used,
            };
            let _ = publisher.conclude.tell(Conclude::of_job(*job, step));
        }
        Ended::Interrupted => {
            log.measure(|| events::delivery::left_by("12"));
            let span = &mut job.holdings.span;
            span.set("execution.outcome", Row::HandBack.name());
            let verdict = Verdict::Nak {
                delay_ms: HAND_BACK_DELAY_MS,
            };
            let _ = publisher.settle.tell(Settle {
                holdings: job.holdings,
                verdict,
            });
        }
        Ended::TakenOver => {
            job.holdings.span.set("execution.outcome", "suppressed");
            let suppressed = events::result_suppressed(
                Some(&job.identity),
                "taken over by another worker before it ended",
            );
            log.emit(events::delivery::left(suppressed, "13"));
            if let Some(claim) = job.holdings.claim.take() {
                claim.suppress();
            }
        }
    }
}

/// Waits for room beside the others, or for a worker without others, and leaves a mark for as long as the job runs.
async fn on_the_floor(job: &mut Job, worker: &Tools) -> Ended {
    let floor = Arc::clone(&worker.floor);
    let entered = async {
        if job.alone {
            worker.log.emit(events::runs_alone(&job.identity));
            Floor::Alone(floor.write_owned().await)
        } else {
            Floor::Shared(floor.read_owned().await)
        }
    };
    let _floor = tokio::select! {
        biased;
        () = job.holdings.cancel.token().cancelled() => return cancelled(job, 0, worker),
        entered = timeout_at(job.deadline, entered) => match entered {
            Ok(floor) => floor,
            Err(_) => return too_late(),
        },
    };
    // Only the fleet asks who died with what; of what a light job does, no process dies.
    let claim = job.holdings.claim.as_ref();
    let claim = claim.filter(|claim| claim.fleet().is_some() && !job.is_light());
    let mark = async {
        let (marks, claim) = worker.marks.as_ref().zip(claim)?;
        let (key, alone) = (claim.key().clone(), job.alone);
        Some(marks.set(&Mark { key, alone }).await)
    };
    // The disk may hang.
    let _mark = tokio::select! {
        biased;
        () = job.holdings.cancel.token().cancelled() => return cancelled(job, 0, worker),
        marked = timeout_at(job.deadline, mark) => match marked {
            Ok(mark) => mark,
            Err(_) => return too_late(),
        },
    };
    attempts(job, worker).await
}

/// The deadline passed before the first call.
fn too_late() -> Ended {
    Ended::Outcome(Outcome::from(Limit::Deadline.failure().by(RanOut::Deadline)), 0)
}

/// Room to run, returned when dropped.
#[expect(dead_code, reason = "held, never looked at")]
enum Floor {
    Shared(OwnedRwLockReadGuard<()>),
    Alone(OwnedRwLockWriteGuard<()>),
}

/// Calls the block until it succeeds, the plan says stop, time runs out or somebody cancels.
async fn attempts(job: &mut Job, worker: &Tools) -> Ended {
    let plan = job.retry.clone();
    let mut course = Course::new(if job.skip_retries {
        plan.without_retries()
    } else {
        plan
    });
    let ended = follow(&mut course, job, worker).await;
    if let Ended::Outcome(outcome, retries) = &ended {
        tell_http_failure(job, course.plan(), outcome, *retries, worker);
        let spent = course.spent(Instant::now());
        let events = || events::retry::ended(&job.identity, &course, outcome, spent);
        worker.log.tell(course.plan().is_by_policy(), events);
    }
    ended
}

/// Says that a job of HTTP requests failed, if it got as far as having one to send.
fn tell_http_failure(job: &Job, plan: &RetryPlan, outcome: &Outcome, retries: u32, worker: &Tools) {
    let (Outcome::Error(failure) | Outcome::Timeout(failure), Work::Ready(task)) = (outcome, &job.work)
    else {
        return;
    };
    let was_called = failure.sign() != Sign::LeftAlone || failure.details.contains_key(LAST_ERROR);
    let endpoint = task.endpoint().filter(|to| to.kind() == EndpointKind::Http);
    if let Some(origin) = endpoint.filter(|_| was_called) {
        let (origin, retryable) = (origin.name(), plan.is_retryable(failure));
        let event = events::course::http_request_failed(&job.identity, origin, failure, retryable, retries);
        worker.log.emit(event);
    }
}

async fn follow(course: &mut Course, job: &mut Job, worker: &Tools) -> Ended {
    let mut took_token = false;
    loop {
        match clearance(job, course.end(job.deadline)).await {
            Cleared::Go => {}
            Cleared::Cancelled => return cancelled(job, course.retries(), worker),
            Cleared::OutOfTime => return out_of_time(course, course.end(job.deadline).limit),
            Cleared::TakenOver => return Ended::TakenOver,
        }
        if let Err(limit) = course.begin(Instant::now()) {
            return out_of_time(course, limit);
        }
        let pass = match pass(job, took_token, worker) {
            Ok(pass) => pass,
            // The attempt that comes next is not made.
            Err(refused) => {
                let retries = course.retries().saturating_sub(1);
                return Ended::Outcome(Outcome::from(course.refused(refused)), retries);
            }
        };
        if let Some(pending) = course.pending() {
            let call = course.retries() + 1;
            let again = events::course::called_again(&job.identity, call, pending.max_attempts);
            worker.log.emit(again);
            let started = || events::retry::attempt_started(&job.identity, course.retries(), &pending);
            worker.log.tell(course.plan().is_by_policy(), || vec![started()]);
        }
        let mut span = spans::open(job, course.retries());
        let attempt = one_attempt(job, course, worker, &span, (pass, took_token)).await;
        spans::close(&mut span, &attempt);
        drop(span);
        let (failure, called) = match attempt {
            Attempt::Done(Ok(outputs)) => {
                return Ended::Outcome(Outcome::Success(outputs), course.retries());
            }
            Attempt::Done(Err(failure)) => (failure, true),
            Attempt::NoInputs(failure) => (failure, false),
            Attempt::Refused(refused) => {
                return Ended::Outcome(Outcome::from(course.refused(refused)), course.retries());
            }
            Attempt::OutOfTime(limit) => return out_of_time(course, limit),
            Attempt::Cancelled => return cancelled(job, course.retries(), worker),
        };
        let delay = match course.failed(&failure, called, job.deadline, Instant::now(), chance()) {
            NextStep::RetryAfter(delay) => delay,
            NextStep::OutOfTime { limit, .. } => return out_of_time(course, limit),
            NextStep::GiveUp | NextStep::Exhausted => {
                return Ended::Outcome(Outcome::from(failure), course.retries());
            }
        };
        took_token = match (&job.work, called) {
            (Work::Ready(task), true) => {
                match worker
                    .breakers_for(job)
                    .retry(&job.identity, &**task, &failure, delay)
                {
                    Ok(took_token) => took_token,
                    Err(failure) => {
                        return Ended::Outcome(Outcome::from(course.withheld(failure)), course.retries());
                    }
                }
            }
            _ => false,
        };
        let (attempt, delay_ms) = (course.retries(), whole_ms(delay));
        worker
            .log
            .emit(events::attempt_failed(&job.identity, &failure, attempt, delay_ms));
        let since = Instant::now();
        tokio::select! {
            biased;
            () = job.holdings.cancel.token().cancelled() => return cancelled(job, attempt, worker),
            () = tokio::time::sleep_until(job.deadline) => return out_of_time(course, Limit::Deadline),
            () = tokio::time::sleep(delay) => {}
        }
        worker
            .log
            .measure(|| events::steps::waited("retry", since.elapsed()));
        course.waited();
    }
}

/// The right to call what the job's task talks to, where that is known before the attempt.
fn pass(job: &Job, took_token: bool, worker: &Tools) -> Result<Option<Pass>, Failure> {
    match &job.work {
        Work::Ready(task) => worker.breakers_for(job).admit(&job.identity, &**task, took_token),
        Work::Referenced(_) => Ok(None),
    }
}

/// Asks until it is certain.
async fn clearance(job: &Job, end: End) -> Cleared {
    loop {
        let proof = tokio::select! {
            biased;
            () = job.holdings.cancel.token().cancelled() => return Cleared::Cancelled,
            proof = timeout_at(end.at, job.holdings.prove()) => proof,
        };
        let Ok(proof) = proof else {
            return Cleared::OutOfTime;
        };
        let now = Instant::now();
        if let Some(cleared) = Cleared::by(&proof, now, end.at) {
            return cleared;
        }
        tokio::select! {
            biased;
            () = job.holdings.cancel.token().cancelled() => return Cleared::Cancelled,
            () = tokio::time::sleep_until(now + PROOF_RETRY) => {}
        }
    }
}

/// A random number from 0 to 1: enough to spread waits, no secret.
fn chance() -> f64 {
    let bits = RandomState::new().hash_one(()) >> 32;
    // 32 bits fit a float exactly.
    f64::from(u32::try_from(bits).unwrap_or_default()) / f64::from(u32::MAX)
}

fn out_of_time(course: &mut Course, limit: Limit) -> Ended {
    let failure = course.ran_out(limit, Instant::now());
    Ended::Outcome(Outcome::from(failure), course.retries())
}

/// Whether a job that is cut off is handed back instead of answered: where running it twice is harmless, and a broker
/// delivers it again.
pub fn is_handed_back(repeatable: bool, has_lease: bool) -> bool {
    repeatable && has_lease
}

fn cancelled(job: &Job, attempt: u32, worker: &Tools) -> Ended {
    if let Stop::Asked(asked) = job.holdings.cancel.stop() {
        return Ended::Outcome(Outcome::from(asked.failure()), attempt);
    }
    let may_run_twice = match &job.work {
        Work::Ready(task) => task.is_repeatable().unwrap_or(job.repeatable),
        Work::Referenced(_) => true,
    };
    let handed_back = is_handed_back(may_run_twice, job.holdings.lease.is_some());
    worker.log.emit(events::cut_off(&job.identity, handed_back));
    if handed_back {
        return Ended::Interrupted;
    }
    let failure = Failure::new(
        ErrorCode::CancelledByUser,
        "the worker shut down while the job ran",
    );
    Ended::Outcome(Outcome::from(failure), attempt)
}

enum Attempt {
    Done(Result<Outputs, Failure>),
    /// The block was not called: its inputs could not be had.
    NoInputs(Failure),
    /// The block was not called: what it talks to is left alone.
    Refused(Failure),
    OutOfTime(Limit),
    Cancelled,
}

impl Attempt {
    fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Done(Err(failure)) | Self::NoInputs(failure) | Self::Refused(failure) => Some(failure),
            Self::Done(Ok(_)) | Self::OutOfTime(_) | Self::Cancelled => None,
        }
    }

    /// How the call of the block ended, if it says anything of what was called.
    fn of_call(&self) -> Option<CallEnd<'_>> {
        match self {
            Self::Done(Ok(_)) => Some(CallEnd::Success),
            Self::Done(Err(failure)) => Some(CallEnd::Failed(failure)),
            Self::OutOfTime(_) => Some(CallEnd::CutOff),
            Self::NoInputs(_) | Self::Refused(_) | Self::Cancelled => None,
        }
    }
}

/// One call of the block. A thread that outlives it keeps running until it returns; nobody waits for it.
async fn one_attempt(
    job: &mut Job,
    course: &Course,
    worker: &Tools,
    span: &Span,
    (pass, took_token): (Option<Pass>, bool),
) -> Attempt {
    let begun = Instant::now();
    let mut context = BlockContext {
        tenant_id: job.identity.tenant_id.clone(),
        assignment_id: job.identity.assignment_id.clone(),
        correlation: job.identity.correlation.clone(),
        deadline: job.deadline,
        attempt: course.retries(),
        model_call: Default::default(),
        cancel: job.holdings.cancel.token().child_token(),
    };
    context.correlation.span = span.context().cloned();
    // Tells a thread that outlives its attempt to stop at its next step.
    let _stop_when_over = context.cancel.clone().drop_guard();
    let task = match take_task(job, &context, course.end_of_call(job.deadline, begun), worker).await {
        Ok(task) => task,
        Err(ended) => {
            worker.tell_limits(job, &[], ended.failure());
            return ended;
        }
    };
    // Of inputs that were elsewhere it is known only now what the task talks to.
    let pass = match pass {
        Some(pass) => Some(pass),
        None => match worker.breakers_for(job).admit(&job.identity, &*task, took_token) {
            Ok(pass) => pass,
            Err(refused) => return Attempt::Refused(refused),
        },
    };
    context.deadline = job.deadline;
    let calling = Calling::open(&*task, span, &mut context);
    let (limit, operations) = (task.limit(), task.operations());
    let work = async {
        match task.mode() {
            RunMode::Light | RunMode::Async => on_this_loop(task, context).await,
            RunMode::Thread => on_a_thread(task, context, &worker.threads).await,
        }
    };
    let end = course.end_of_call(job.deadline, begun);
    let ended = in_time(job, end, within(limit, work))
        .await
        .map_or_else(|ended| ended, Attempt::Done);
    if let (Some(pass), Some(end)) = (pass, ended.of_call()) {
        pass.end(end);
    }
    if let Some(calling) = calling {
        calling.close(&ended, &job.identity, &worker.log);
    }
    worker.tell_limits(job, operations, ended.failure());
    ended
}

/// The job's task. Inputs that are elsewhere are fetched now, and stay with the job.
async fn take_task(
    job: &mut Job,
    context: &BlockContext,
    end: End,
    worker: &Tools,
) -> Result<Arc<dyn Task>, Attempt> {
    let prepared = match &job.work {
        Work::Ready(task) => return Ok(Arc::clone(task)),
        Work::Referenced(referenced) => {
            let limit = worker.max_payload_ref_bytes;
            let prepare = payload::prepare(referenced, context.clone(), limit, &worker.threads);
            in_time(job, end, prepare).await?.map_err(Attempt::NoInputs)?
        }
    };
    job.holdings.share.charge_in(prepared.bytes);
    if let Some(timeout_ms) = prepared.timeout_ms {
        let shorter = job.started.checked_add(Duration::from_millis(timeout_ms.max(1)));
        job.deadline = shorter.map_or(job.deadline, |shorter| shorter.min(job.deadline));
    }
    job.work = Work::Ready(Arc::clone(&prepared.task));
    Ok(prepared.task)
}

/// Waits for `work`, but not beyond its end and the cancellation of the job.
async fn in_time<T>(job: &Job, end: End, work: impl Future<Output = T>) -> Result<T, Attempt> {
    tokio::select! {
        biased;
        () = job.holdings.cancel.token().cancelled() => Err(Attempt::Cancelled),
        done = timeout_at(end.at, work) => done.map_err(|_| Attempt::OutOfTime(end.limit)),
    }
}

async fn on_this_loop(task: Arc<dyn Task>, context: BlockContext) -> Result<Outputs, Failure> {
    AssertUnwindSafe(async move { task.run(context).await })
        .catch_unwind()
        .await
        .unwrap_or_else(|_| Err(panicked()))
}

async fn on_a_thread(
    task: Arc<dyn Task>,
    context: BlockContext,
    threads: &Threads,
) -> Result<Outputs, Failure> {
    let handle = tokio::runtime::Handle::current();
    let done = threads.run(move || handle.block_on(task.run(context))).await?;
    done.unwrap_or_else(|| Err(panicked()))
}

fn panicked() -> Failure {
    Failure::new(ErrorCode::InternalError, "the block panicked")
}

impl Actor for BlockWorker {
    type Context = Context<Self>;
}

impl Handler<Run> for BlockWorker {
    type Result = ();

    fn handle(&mut self, Run { job, slot }: Run, _: &mut Self::Context) {
        let tools = Arc::clone(&self.0);
        actix::spawn(async move { run(job, slot, &tools).await });
    }
}

#[cfg(test)]
mod tests;
