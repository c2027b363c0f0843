//! Whether a failed attempt is followed by another, and when; and which limit ends a job that goes on for too long. Pure.
//!
//! Neighbours: intake makes a [`RetryPlan`] for each job from the node's [`RetryRules`]; the block worker follows it with
//! a [`Course`]; the dry run shows its [`preview`]. Within: [`classification`] says whether an error is retried at all,
//! [`numbers`] how often and after which waits, [`backoff`] makes the waits. Never sleeps, never asks a clock, never
//! draws a random number: all three come in.

pub mod backoff;
pub mod classification;
pub mod course;
pub mod limit;
pub mod numbers;
pub mod preview;

use std::sync::Arc;
use std::time::Duration;

use caf_protocol::endpoint::Sign;
use caf_protocol::error_code::Category;
use caf_protocol::outcome::Failure;

use self::backoff::{delay, retry_after};
use self::classification::is_retryable;
use self::limit::Limit;
use self::numbers::{Asked, Numbers, family};
use crate::settings::policies::{RetryPolicySettings, TotalLimit};

pub use self::course::Course;

/// Step of the CP1 backoff in milliseconds (contract 7.2).
const CP1_STEP_MS: u64 = 100;

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStep {
    /// Call again after this wait.
    RetryAfter(Duration),
    /// The failure is the outcome: another call would not help.
    GiveUp,
    /// The failure is the outcome: another call might help, but all are used up.
    Exhausted,
    /// The job ends here as `timeout`: the wait would last until this limit, or beyond.
    OutOfTime {
        /// Which.
        limit: Limit,
        /// The wait that is not begun.
        wait: Duration,
    },
}

/// What the node says of retries, for all jobs.
#[derive(Debug, Clone)]
pub struct RetryRules {
    /// Total calls under CP1 of a job whose assignment does not say.
    pub default_attempts: u32,
    /// The policy in force; nothing is CP1.
    pub policy: Option<Arc<RetryPolicySettings>>,
    /// The limit on all attempts that is in force, if one is. Independent of the policy.
    pub total: Option<TotalLimit>,
}

impl RetryRules {
    /// The plan for a job of this type, whose assignment asks for `asked`.
    pub fn plan(&self, job_type: &str, asked: Asked) -> RetryPlan {
        let kind = match &self.policy {
            None => Kind::Cp1 {
                max_attempts: asked.max_attempts.unwrap_or(self.default_attempts).max(1),
            },
            Some(policy) => Kind::Policy {
                policy: Arc::clone(policy),
                family: family(job_type).to_owned(),
                asked,
            },
        };
        RetryPlan {
            kind,
            total: self.total.clone(),
            only_once: false,
        }
    }
}

/// The plan of one job. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RetryPlan {
    kind: Kind,
    total: Option<TotalLimit>,
    only_once: bool,
}

#[derive(Debug, Clone)]
enum Kind {
    /// Every error of a running block is retried after 100·(attempt+1) ms; of blocks that mind advice only what may help.
    Cp1 { max_attempts: u32 },
    /// As a policy says (CP2).
    Policy {
        policy: Arc<RetryPolicySettings>,
        family: String,
        asked: Asked,
    },
}

impl RetryPlan {
    /// CP1 without any limit but the deadline.
    pub fn cp1(max_attempts: u32) -> Self {
        Self {
            kind: Kind::Cp1 {
                max_attempts: max_attempts.max(1),
            },
            total: None,
            only_once: false,
        }
    }

    /// The same plan with a single call.
    #[must_use]
    pub fn without_retries(mut self) -> Self {
        self.only_once = true;
        self
    }

    /// Whether a policy is in force: only then are its log lines and samples emitted.
    pub fn is_by_policy(&self) -> bool {
        matches!(self.kind, Kind::Policy { .. })
    }

    /// What follows when attempt number `attempt`, from 0, ended with `failure`, `spent` after the start of the first
    /// one. `chance` is a random number from 0 to 1.
    pub fn after(&self, failure: &Failure, attempt: u32, spent: Duration, chance: f64) -> NextStep {
        if !self.is_retryable(failure) {
            return NextStep::GiveUp;
        }
        if attempt.saturating_add(1) >= self.max_attempts(failure) {
            return NextStep::Exhausted;
        }
        let wait = self.wait(failure, attempt, chance);
        match self.overall_limit() {
            // A call that begins when nothing is left would be ended at once.
            Some((limit, length)) if wait >= length.saturating_sub(spent) => {
                NextStep::OutOfTime { limit, wait }
            }
            _ => NextStep::RetryAfter(wait),
        }
    }

    /// The same when the block was not called because its inputs could not be had: only what another try can mend is
    /// tried again. Validation that fails before the block runs never is.
    pub fn before_the_first_call(
        &self,
        failure: &Failure,
        attempt: u32,
        spent: Duration,
        chance: f64,
    ) -> NextStep {
        if failure.is_retryable() {
            self.after(failure, attempt, spent, chance)
        } else {
            NextStep::GiveUp
        }
    }

    /// Whether another call could help. What ended by cancellation or by a total limit is over, and what a circuit breaker
    /// refused too. The assignment has no say.
    pub fn is_retryable(&self, failure: &Failure) -> bool {
        let was_not_called = failure.sign() == Sign::LeftAlone;
        if was_not_called || failure.total_limit || failure.code.category() == Category::Cancellation {
            return false;
        }
        match &self.kind {
            Kind::Cp1 { .. } => !failure.minds_advice || failure.is_retryable(),
            Kind::Policy { policy, .. } => is_retryable(&policy.error_classification, failure),
        }
    }

    /// Total calls when they end with this failure; at least 1.
    pub fn max_attempts(&self, failure: &Failure) -> u32 {
        if self.only_once {
            return 1;
        }
        match &self.kind {
            Kind::Cp1 { max_attempts } => *max_attempts,
            Kind::Policy { .. } => self.numbers(failure).map_or(1, |numbers| numbers.max_attempts),
        }
    }

    /// The policy's numbers for this failure; nothing under CP1.
    fn numbers(&self, failure: &Failure) -> Option<Numbers> {
        match &self.kind {
            Kind::Cp1 { .. } => None,
            Kind::Policy {
                policy,
                family,
                asked,
            } => Some(Numbers::resolve(policy, family, *asked, failure)),
        }
    }

    /// The wait before retry number `retry`, from 0. What the other side asked for (`Retry-After`) comes before a
    /// shorter wait of the policy, and is not bounded by its longest one.
    fn wait(&self, failure: &Failure, retry: u32, chance: f64) -> Duration {
        match self.numbers(failure) {
            None => {
                let step = Duration::from_millis(CP1_STEP_MS * (u64::from(retry) + 1));
                let asked = failure.minds_advice.then(|| retry_after(failure));
                step.max(asked.unwrap_or_default())
            }
            Some(numbers) => delay(&numbers, retry, chance).max(retry_after(failure)),
        }
    }

    /// The first limit that holds across calls and waits, counted from the start of the first call.
    pub fn overall_limit(&self) -> Option<(Limit, Duration)> {
        let total = self.total.as_ref().filter(|total| total.enforce_across_retries);
        let total = total.map(|total| Limit::TotalTime {
            limit_ms: total.total_timeout_ms,
        });
        let budget = self.budget_ms().map(|limit_ms| Limit::RetryBudget { limit_ms });
        let limits = budget.into_iter().chain(total);
        let first = limits.min_by_key(|limit| limit.length());
        first.and_then(|limit| Some((limit, limit.length()?)))
    }

    /// The policy's budget for all calls and waits, in milliseconds.
    pub fn budget_ms(&self) -> Option<u64> {
        match &self.kind {
            Kind::Cp1 { .. } => None,
            Kind::Policy { policy, family, .. } => {
                let own = policy.block_policies.get(family);
                let own = own.and_then(|block| block.retry_budget_ms);
                Some(own.unwrap_or(policy.default_policy.retry_budget_ms))
            }
        }
    }

    /// The limit that each call has for itself.
    pub fn limit_of_each_call(&self) -> Option<(Limit, Duration)> {
        let total = self
            .total
            .as_ref()
            .filter(|total| !total.enforce_across_retries)?;
        let limit_ms = total.total_timeout_ms;
        Some((
            Limit::TotalTimeOfOneCall { limit_ms },
            Duration::from_millis(limit_ms),
        ))
    }
}

#[cfg(test)]
mod tests;
