//! As `pool.rs` and `block_worker.rs`.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use caf_actors::block_worker::retry::limit::{End, Limit};
use caf_actors::block_worker::retry::{Course, NextStep, RetryPlan};
use caf_actors::block_worker::{Cleared, PROOF_RETRY, is_handed_back};
use caf_actors::cancellation::Stop;
use caf_actors::intake::HAND_BACK_DELAY_MS;
use caf_actors::job::{Holdings, PoolLoad, elapsed_ms};
use caf_actors::pool::Place;
use caf_actors::pool::line::{Newcomer, Turn};
use caf_actors::pool::running::Running;
use caf_actors::publisher::{AckState, dead_letter_of};
use caf_actors::sink::Verdict;
use caf_actors::state_dir::marks::Mark;
use caf_protocol::assignment::Identity;
use caf_protocol::block::{CancellationToken, Outputs, ResourceClass};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use tokio::time::Instant;

use super::Node;
use crate::scenario::Kind;
use crate::turns::Waits;

/// Why no lock is ever poisoned.
const UNBROKEN: &str = "no step panics and goes on";

/// An accepted assignment.
pub(crate) struct Job {
    pub spec: usize,
    pub sequence: u64,
    pub identity: Arc<Identity>,
    pub started: Instant,
    pub deadline: Instant,
    pub retry: RetryPlan,
    pub priority: u8,
    pub repeatable: bool,
    pub alone: bool,
    pub cancel: CancellationToken,
    pub load: Option<PoolLoad>,
    pub ack: AckState,
    pub place: Place,
    pub holdings: Holdings,
}

/// A job in the line, and its number among those that are watched.
pub(crate) struct Queued {
    job: Job,
    number: u64,
}

enum Ended {
    Outcome(Outcome, u32),
    Interrupted,
    TakenOver,
}

enum Attempt {
    Done(Result<Outputs, Failure>),
    OutOfTime(Limit),
    Cancelled,
}

impl Node {
    // ---- The pool ----

    pub(super) fn enqueue(self: &Arc<Self>, mut job: Job) {
        let (since, deadline) = (self.now(), job.deadline);
        self.debts.lock().expect(UNBROKEN).extend(job.place.take_debt());
        if job.holdings.cancel.asked().is_some() {
            self.conclude_cancelled(job);
            return self.pump();
        }
        let (tenant, priority) = (job.identity.tenant_id.clone(), job.priority);
        let number = self.turns.lock().expect(UNBROKEN).came(Waits {
            tenant: tenant.clone(),
            priority,
            since,
        });
        self.line.lock().expect(UNBROKEN).push(Newcomer {
            tenant: &tenant,
            priority,
            since,
            deadline,
            item: Queued { job, number },
        });
        let node = Arc::clone(self);
        self.spawn(async move {
            node.sim.sleep_until(deadline).await;
            node.pump();
        });
        self.pump();
    }

    /// As [`caf_actors::pool::TakeCancelled`] has it done.
    pub(super) fn take_cancelled(self: &Arc<Self>) {
        let now = self.now();
        let cancelled = self
            .line
            .lock()
            .expect(UNBROKEN)
            .take_where(now, |queued| queued.job.holdings.cancel.asked().is_some());
        for waiting in cancelled {
            self.sim.with(|world| world.audit.count("cancelled in the line"));
            let job = self.out_of_line(waiting.item);
            self.conclude_cancelled(job);
        }
        self.pump();
    }

    fn conclude_cancelled(self: &Arc<Self>, job: Job) {
        if let Some(asked) = job.holdings.cancel.asked().cloned() {
            self.conclude_job(job, "row 9", Outcome::from(asked.failure()), 0);
        }
    }

    fn pump(self: &Arc<Self>) {
        let now = self.now();
        let expired = self.line.lock().expect(UNBROKEN).take_expired(now);
        for waiting in expired {
            let job = self.out_of_line(waiting.item);
            let outcome = Outcome::from(Failure::timeout("the deadline of the assignment"));
            self.conclude_job(job, "row 8", outcome, 0);
        }
        self.pay_debts();
        let mut started = Vec::new();
        {
            let mut line = self.line.lock().expect(UNBROKEN);
            while self.running.load(SeqCst) < self.scenario.slots {
                let Some((waiting, right)) = line.pop_next(now, |tenant| self.turn(tenant)) else {
                    break;
                };
                self.watch_start(waiting.item.number, now);
                self.running.fetch_add(1, SeqCst);
                started.push((waiting.item.job, right));
            }
            self.places.note_oldest(line.oldest());
            let (waiting, running) = (line.len(), self.running.load(SeqCst));
            let (tenants, aside) = (line.tenants(), line.tenants_aside());
            drop(line);
            self.sim.with(|world| {
                world.check_pool(self.id, waiting, running);
                if aside > 0 {
                    world.audit.count("a tenant is at its limit");
                }
                if !started.is_empty() && tenants > 0 {
                    world.audit.count("a job starts while another tenant waits");
                }
            });
        }
        for (job, right) in started {
            self.spawn(Arc::clone(self).run(job, right));
        }
    }

    /// As `Shares::turn`.
    fn turn(&self, tenant: &Arc<str>) -> Option<Turn<Running>> {
        let max = self.scenario.max_running;
        let right = self.running_jobs.try_run(ResourceClass::Cpu, tenant, max)?;
        Some(Turn {
            weight: self.scenario.weight(tenant),
            right,
        })
    }

    fn watch_start(&self, number: u64, now: Instant) {
        let mut turns = self.turns.lock().expect(UNBROKEN);
        let wrong = turns.starts(number, now, &self.scenario, |tenant| self.running_jobs.of(tenant));
        if let Some(wrong) = wrong {
            self.sim.with(|world| world.fail(wrong));
        }
    }

    fn out_of_line(&self, queued: Queued) -> Job {
        self.turns.lock().expect(UNBROKEN).left(queued.number);
        queued.job
    }

    fn pay_debts(self: &Arc<Self>) {
        loop {
            let mut debts = self.debts.lock().expect(UNBROKEN);
            if debts.is_empty() {
                return;
            }
            if !self.places.is_due() {
                return debts.clear();
            }
            let mut line = self.line.lock().expect(UNBROKEN);
            if line.len() < 2 {
                return;
            }
            let (debt, oldest) = (debts.pop(), line.pop_oldest(self.now()));
            drop((line, debts));
            if let (Some(debt), Some(waiting)) = (debt, oldest) {
                let mut job = self.out_of_line(waiting.item);
                job.place.pay(debt);
                let failure = Failure::new(ErrorCode::SystemOverload, "dropped");
                self.conclude_job(job, "row 16", Outcome::from(failure), 0);
            }
        }
    }

    pub(super) fn hand_line_back(self: &Arc<Self>) {
        self.take_cancelled();
        let now = self.now();
        while let Some(waiting) = {
            let mut line = self.line.lock().expect(UNBROKEN);
            line.pop_oldest(now)
        } {
            let job = self.out_of_line(waiting.item);
            self.row("row 12", job.spec);
            self.hand_back(job.holdings);
        }
    }

    fn hand_back(self: &Arc<Self>, holdings: Holdings) {
        let node = Arc::clone(self);
        let verdict = Verdict::Nak {
            delay_ms: HAND_BACK_DELAY_MS,
        };
        self.spawn(async move { node.settle(holdings, verdict).await });
    }

    fn conclude_job(self: &Arc<Self>, mut job: Job, row: &'static str, outcome: Outcome, retries_used: u32) {
        job.holdings.share.end();
        let step = StepResult {
            cost: Default::default(),
            latency_ms: elapsed_ms(job.started, self.now()),
            outcome,
            retries_used,
        };
        let (row, step) = match job.holdings.cancel.seal() {
            Some(asked) => {
                let outcome = Outcome::from(asked.failure());
                ("row 9", StepResult { outcome, ..step })
            }
            None => (row, step),
        };
        let letter = dead_letter_of(&step.outcome);
        let at = (job.spec, job.sequence);
        let written = self.write_answer(
            row,
            at,
            &job.identity,
            job.ack,
            &step,
            job.load,
            letter,
            &job.holdings,
        );
        drop(job.place);
        self.spawn(Arc::clone(self).conclude(written, job.holdings));
    }

    // ---- The block worker ----

    async fn run(self: Arc<Self>, mut job: Job, right: Running) {
        job.holdings.share.begin();
        let ended = self.on_the_floor(&job).await;
        drop(right);
        self.running.fetch_sub(1, SeqCst);
        let tenant = &job.identity.tenant_id;
        self.turns.lock().expect(UNBROKEN).ended(tenant);
        self.line.lock().expect(UNBROKEN).readmit(tenant, self.now());
        self.pump();
        match ended {
            Ended::Outcome(outcome, retries_used) => {
                let row = match &outcome {
                    Outcome::Success(_) => "row 6",
                    Outcome::Error(_) => "row 7",
                    Outcome::Timeout(_) => "row 8",
                    Outcome::Cancelled(_) => "row 9",
                };
                self.conclude_job(job, row, outcome, retries_used);
            }
            Ended::Interrupted => {
                self.row("row 12", job.spec);
                self.hand_back(job.holdings);
            }
            Ended::TakenOver => {
                self.row("suppressed before it ended", job.spec);
                if let Some(claim) = job.holdings.claim.take() {
                    claim.forget();
                }
            }
        }
    }

    async fn on_the_floor(self: &Arc<Self>, job: &Job) -> Ended {
        let (alone, floor) = (job.alone, Arc::clone(&self.floor));
        let entered = async {
            if alone {
                (Some(floor.write_owned().await), None)
            } else {
                (None, Some(floor.read_owned().await))
            }
        };
        let _floor = tokio::select! {
            biased;
            () = job.cancel.cancelled() => return cancelled(job, 0),
            entered = self.sim.limit_at(job.deadline, entered) => match entered {
                Some(floor) => floor,
                None => return Ended::Outcome(Outcome::from(Limit::Deadline.failure()), 0),
            },
        };
        let mark = Mark {
            key: job.identity.key(),
            alone: job.alone,
        };
        let number = self.sim.with(|world| {
            let disk = world.disk(self.id);
            disk.next += 1;
            disk.marks.insert(disk.next, mark);
            disk.next
        });
        self.sim.moment().await;
        let ended = self.attempts(job).await;
        self.sim.with(|world| world.disk(self.id).marks.remove(&number));
        ended
    }

    async fn attempts(self: &Arc<Self>, job: &Job) -> Ended {
        let mut course = Course::new(job.retry.clone());
        loop {
            match self.clearance(job, course.end(job.deadline)).await {
                Cleared::Go => {}
                Cleared::Cancelled => return cancelled(job, course.retries()),
                Cleared::OutOfTime => {
                    let limit = course.end(job.deadline).limit;
                    return out_of_time(&mut course, limit, self.now());
                }
                Cleared::TakenOver => return Ended::TakenOver,
            }
            if let Err(limit) = course.begin(self.now()) {
                return out_of_time(&mut course, limit, self.now());
            }
            let (retries, spent) = (course.retries(), course.spent(self.now()));
            self.sim.with(|world| {
                world.check_retries(job.spec, retries, spent);
                world.attempt_begins(self.id, job.sequence, job.spec, job.alone);
            });
            let done = self.one_attempt(job, &course).await;
            self.sim.with(|world| world.attempt_ends(self.id, job.spec));
            let failure = match done {
                Attempt::Done(Ok(outputs)) => {
                    return Ended::Outcome(Outcome::Success(outputs), course.retries());
                }
                Attempt::Done(Err(failure)) => failure,
                Attempt::OutOfTime(limit) => return out_of_time(&mut course, limit, self.now()),
                Attempt::Cancelled => return cancelled(job, course.retries()),
            };
            let delay = match course.failed(
                &failure,
                true,
                job.deadline,
                self.now(),
                self.chance(job, &course),
            ) {
                NextStep::RetryAfter(delay) => delay,
                NextStep::OutOfTime { limit, .. } => return out_of_time(&mut course, limit, self.now()),
                NextStep::GiveUp | NextStep::Exhausted => {
                    return Ended::Outcome(Outcome::from(failure), course.retries());
                }
            };
            tokio::select! {
                biased;
                () = job.cancel.cancelled() => return cancelled(job, course.retries()),
                () = self.sim.sleep_until(job.deadline) => {
                    return out_of_time(&mut course, Limit::Deadline, self.now());
                }
                () = self.sim.sleep_for(delay) => {}
            }
            course.waited();
        }
    }

    /// Jitter that differs from wait to wait and is the same each time that a seed is run.
    fn chance(&self, job: &Job, course: &Course) -> f64 {
        let mixed = (job.sequence * 7 + u64::from(course.retries()) * 3) % 11;
        f64::from(u8::try_from(mixed).expect("small")) / 10.0
    }

    async fn clearance(&self, job: &Job, end: End) -> Cleared {
        loop {
            let now = self.now();
            if job.holdings.has_lapsed_at(now) {
                self.row("row 13", job.spec);
            }
            let proof = tokio::select! {
                biased;
                () = job.cancel.cancelled() => return Cleared::Cancelled,
                proof = self.sim.limit_at(end.at, job.holdings.prove_at(now)) => proof,
            };
            let Some(proof) = proof else {
                return Cleared::OutOfTime;
            };
            let now = self.now();
            if let Some(cleared) = Cleared::by(&proof, now, end.at) {
                return cleared;
            }
            tokio::select! {
                biased;
                () = job.cancel.cancelled() => return Cleared::Cancelled,
                () = self.sim.sleep_until(now + PROOF_RETRY) => {}
            }
        }
    }

    async fn one_attempt(&self, job: &Job, course: &Course) -> Attempt {
        let end = course.end_of_call(job.deadline, self.now());
        let spec = self.spec(job.spec);
        let work = async {
            self.sim.sleep(spec.duration).await;
            let failure = || Failure::new(ErrorCode::NetworkError, "the other side is away");
            match spec.kind {
                Kind::Works { failures } if course.retries() >= failures => Ok(Outputs::new()),
                Kind::Poison => {
                    self.sim.with(|world| world.doomed.push(self.id));
                    std::future::pending().await
                }
                _ => Err(failure()),
            }
        };
        tokio::select! {
            biased;
            () = job.cancel.cancelled() => Attempt::Cancelled,
            done = self.sim.limit_at(end.at, work) => {
                done.map_or(Attempt::OutOfTime(end.limit), Attempt::Done)
            }
        }
    }
}

fn out_of_time(course: &mut Course, limit: Limit, now: Instant) -> Ended {
    Ended::Outcome(Outcome::from(course.ran_out(limit, now)), course.retries())
}

fn cancelled(job: &Job, attempt: u32) -> Ended {
    if let Stop::Asked(asked) = job.holdings.cancel.stop() {
        return Ended::Outcome(Outcome::from(asked.failure()), attempt);
    }
    if is_handed_back(job.repeatable, job.holdings.lease.is_some()) {
        return Ended::Interrupted;
    }
    let failure = Failure::new(
        ErrorCode::CancelledByUser,
        "the worker shut down while the job ran",
    );
    Ended::Outcome(Outcome::from(failure), attempt)
}
