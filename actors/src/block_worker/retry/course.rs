//! How far a job has come with its plan: which attempt it is at, since when, and when it must be over. Pure.
//!
//! Neighbours: the block worker tells it what happened and does what it says; the simulation does the same.

use std::time::Duration;

use caf_protocol::endpoint::Sign;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::backoff::RETRY_AFTER_MS;
use super::limit::{End, Limit};
use super::{NextStep, RetryPlan};
use crate::clock::whole_ms;

/// The detail that says how the last call had failed where another failure took its place.
pub const LAST_ERROR: &str = "last_error";

/// The course of one job.
#[derive(Debug, Clone)]
pub struct Course {
    plan: RetryPlan,
    first_call: Option<Instant>,
    attempt: u32,
    /// The failure before the attempt that comes or runs, and the wait that follows it.
    pending: Option<Pending>,
    /// The one before, while the wait is not begun.
    earlier: Option<Pending>,
    exhausted: Option<Exhaustion>,
    /// How the last attempt failed, for whoever asks why the job ran out of time.
    last_error: Option<Value>,
    /// A wait that was not begun because a limit does not hold it.
    not_begun: Option<Duration>,
}

/// A retry that was decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// How the attempt before it ended.
    pub code: ErrorCode,
    /// Total calls for that error.
    pub max_attempts: u32,
    /// The wait before it.
    pub delay: Duration,
}

/// Why no retry follows an error that another call might have mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exhaustion {
    /// The error.
    pub code: ErrorCode,
    /// Total calls for that error. Fewer were made if it was a limit in time that ended the job.
    pub max_attempts: u32,
}

impl Course {
    /// At the start of `plan`.
    pub fn new(plan: RetryPlan) -> Self {
        Self {
            plan,
            first_call: None,
            attempt: 0,
            pending: None,
            earlier: None,
            exhausted: None,
            last_error: None,
            not_begun: None,
        }
    }

    /// The plan.
    pub fn plan(&self) -> &RetryPlan {
        &self.plan
    }

    /// Retries that were begun, which is the number of the attempt that runs, from 0.
    pub fn retries(&self) -> u32 {
        self.attempt
    }

    /// The failure that the last retry answered to.
    pub fn pending(&self) -> Option<Pending> {
        self.pending
    }

    /// The error for which calls or time were used up, if that ended the job.
    pub fn exhausted(&self) -> Option<Exhaustion> {
        self.exhausted
    }

    /// Time since the first call began.
    pub fn spent(&self, now: Instant) -> Duration {
        let first = self.first_call.unwrap_or(now);
        now.saturating_duration_since(first)
    }

    /// An attempt is to begin. It does not when a limit across calls ran out before anybody noticed, as while the process
    /// was stopped.
    ///
    /// # Errors
    /// That limit: the job is over.
    pub fn begin(&mut self, now: Instant) -> Result<(), Limit> {
        self.first_call.get_or_insert(now);
        match self.plan.overall_limit() {
            Some((limit, length)) if self.spent(now) >= length => Err(limit),
            _ => Ok(()),
        }
    }

    /// When the job must be over whose deadline this is.
    pub fn end(&self, deadline: Instant) -> End {
        let end = End {
            at: deadline,
            limit: Limit::Deadline,
        };
        match self.first_call {
            Some(first) => end.or_sooner(first, self.plan.overall_limit()),
            None => end,
        }
    }

    /// When a call that begins now must be over.
    pub fn end_of_call(&self, deadline: Instant, now: Instant) -> End {
        self.end(deadline).or_sooner(now, self.plan.limit_of_each_call())
    }

    /// The attempt failed; `called` says whether the block was called at all, or only its inputs asked for. By policy a
    /// wait that reaches up to the deadline is not begun: it would hold a slot for nothing. CP1 waits.
    pub fn failed(
        &mut self,
        failure: &Failure,
        called: bool,
        deadline: Instant,
        now: Instant,
        chance: f64,
    ) -> NextStep {
        let (attempt, spent) = (self.attempt, self.spent(now));
        let next = if called {
            self.plan.after(failure, attempt, spent, chance)
        } else {
            self.plan.before_the_first_call(failure, attempt, spent, chance)
        };
        let next = match next {
            NextStep::RetryAfter(wait) if self.plan.is_by_policy() && now + wait >= deadline => {
                let limit = Limit::Deadline;
                NextStep::OutOfTime { limit, wait }
            }
            next => next,
        };
        self.last_error = Some(summary(failure));
        match next {
            NextStep::RetryAfter(delay) => {
                let pending = Pending {
                    code: failure.code,
                    max_attempts: self.plan.max_attempts(failure),
                    delay,
                };
                self.earlier = self.pending.replace(pending);
            }
            // The deadline is no budget of retries.
            NextStep::OutOfTime {
                limit: Limit::Deadline,
                wait,
            } => self.not_begun = Some(wait),
            NextStep::Exhausted | NextStep::OutOfTime { .. } => {
                if let NextStep::OutOfTime { wait, .. } = next {
                    self.not_begun = Some(wait);
                }
                self.exhausted = Some(Exhaustion {
                    code: failure.code,
                    max_attempts: self.plan.max_attempts(failure),
                });
            }
            NextStep::GiveUp => {}
        }
        next
    }

    /// The wait is over: the next attempt follows.
    pub fn waited(&mut self) {
        self.attempt = self.attempt.saturating_add(1);
    }

    /// The retry that was just decided on is not made, for a reason that is not the plan's: `failure` ends the job.
    pub fn withheld(&mut self, failure: Failure) -> Failure {
        self.pending = self.earlier.take();
        self.refused(failure)
    }

    /// A circuit breaker refused the call, or the retry: beside that, the details say how the last call had failed
    /// (`last_error`), if there was one.
    pub fn refused(&mut self, failure: Failure) -> Failure {
        match self.last_error.take() {
            Some(last_error) if failure.sign() == Sign::LeftAlone => failure.with(LAST_ERROR, last_error),
            _ => failure,
        }
    }

    /// A limit ends the job. One of retries is used up if there was an error to retry. Beside the limit, the details say how
    /// the last attempt had failed (`last_error`) and which wait the limit does not hold (`next_wait_ms`); those of a
    /// deadline that has passed are CP1's, without.
    pub fn ran_out(&mut self, limit: Limit, now: Instant) -> Failure {
        let taken = match limit {
            // Its clock began with the call.
            Limit::TotalTimeOfOneCall { limit_ms } => Duration::from_millis(limit_ms),
            _ => self.spent(now),
        };
        let mut failure = limit.failure().by(limit.ran_out(taken));
        if limit == Limit::Deadline && self.not_begun.is_none() {
            return failure;
        }
        if self.exhausted.is_none() && limit != Limit::Deadline {
            self.exhausted = self.pending.map(|pending| Exhaustion {
                code: pending.code,
                max_attempts: pending.max_attempts,
            });
        }
        if let Some(last_error) = self.last_error.take() {
            failure = failure.with(LAST_ERROR, last_error);
        }
        if let Some(wait) = self.not_begun {
            failure = failure.with("next_wait_ms", whole_ms(wait).into());
            failure.message =
                "the wait before the next call would outlast a limit; the details say which".to_owned();
        }
        failure
    }
}

/// What the caller is told of a failure that another one took the place of.
fn summary(failure: &Failure) -> Value {
    let mut summary = json!({"code": failure.code.as_str(), "message": failure.message});
    for key in ["status_code", RETRY_AFTER_MS] {
        if let Some(value) = failure.details.get(key) {
            summary[key] = value.clone();
        }
    }
    summary
}
