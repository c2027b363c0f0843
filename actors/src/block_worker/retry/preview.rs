//! A plan as an operator reads it: which errors are retried, how often, and every wait that can happen.
//!
//! Neighbours: the dry run prints it. Asks the plan itself, with failures made up for each error, and decides nothing.

use std::time::Duration;

use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use serde::Serialize;
use tokio::time::Instant;

use super::limit::Limit;
use super::{Course, Kind, RetryPlan};
use crate::clock::whole_ms;

/// A plan, written down.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Preview {
    /// `cp1`: the fixed plan; `cp2`: as the policy in force says.
    pub mode: &'static str,
    /// Most time for all calls and waits, in milliseconds; absent under CP1.
    pub budget_ms: Option<u64>,
    /// What holds for most errors that are retried: the first of `by_error`.
    #[serde(flatten)]
    pub most: Waits,
    /// Which errors are retried, by equal numbers, the largest group first. `any` is every error of a running block.
    pub by_error: Vec<ErrorGroup>,
    /// Which errors end the job at once.
    pub not_retried: Vec<String>,
}

/// Errors with equal numbers. An HTTP status stands as `HTTP_ERROR 503`; `4xx` and `5xx` are those not named.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ErrorGroup {
    /// Which.
    pub errors: Vec<String>,
    /// Their numbers.
    #[serde(flatten)]
    pub waits: Waits,
}

/// Calls and waits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Waits {
    /// Total calls.
    pub max_attempts: u32,
    /// Before each retry, as far as it can happen when calls take no time.
    pub waits_ms: Vec<Range>,
    /// The limit that leaves no time for further retries, also if each wait is its shortest and calls take no time:
    /// `deadline`, `retry_budget` or `total_timeout`.
    pub cut_by: Option<&'static str>,
    /// The limit that leaves no time for some of the retries if each wait is its longest. Calls take time too, so others
    /// may be cut off all the same.
    pub may_be_cut_by: Option<&'static str>,
}

/// Shortest and longest wait, in milliseconds; equal without jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Range {
    /// Shortest.
    pub min: u64,
    /// Longest.
    pub max: u64,
}

impl RetryPlan {
    /// The plan of a job that begins at `start` and has `time_limit` until its deadline.
    pub fn preview(&self, start: Instant, time_limit: Duration) -> Preview {
        let mut by_error: Vec<ErrorGroup> = Vec::new();
        let mut not_retried = Vec::new();
        for (name, failure) in self.made_up_failures() {
            if !self.is_retryable(&failure) {
                not_retried.push(name);
                continue;
            }
            let waits = self.waits(&failure, start, time_limit);
            match by_error.iter_mut().find(|group| group.waits == waits) {
                Some(group) => group.errors.push(name),
                None => by_error.push(ErrorGroup {
                    errors: vec![name],
                    waits,
                }),
            }
        }
        by_error.sort_by_key(|group| std::cmp::Reverse(group.errors.len()));
        let once = Waits {
            max_attempts: 1,
            waits_ms: Vec::new(),
            cut_by: None,
            may_be_cut_by: None,
        };
        Preview {
            mode: if self.is_by_policy() { "cp2" } else { "cp1" },
            budget_ms: self.budget_ms(),
            most: by_error.first().map_or(once, |group| group.waits.clone()),
            by_error,
            not_retried,
        }
    }

    /// One failure for each error that a policy may treat as its own.
    fn made_up_failures(&self) -> Vec<(String, Failure)> {
        let failed = |code| Failure::new(code, "");
        let Kind::Policy { policy, family, .. } = &self.kind else {
            return vec![("any".to_owned(), failed(ErrorCode::ExecutionFailed))];
        };
        let mapping = &policy.error_classification.network_errors.http_status_mapping;
        let block = policy.block_policies.get(family);
        let overrides = block.into_iter().flat_map(|block| block.error_overrides.keys());
        let exceptions = [&mapping.client, &mapping.server].map(|class| class.exceptions.keys());
        let named = overrides.chain(exceptions.into_iter().flatten());
        let mut named: Vec<u64> = named.filter_map(|name| name.parse().ok()).collect();
        named.sort_unstable();
        named.dedup();
        let others = [("4xx", 400..500), ("5xx", 500..600)].map(|(name, mut class)| {
            let unnamed = class.find(|status| !named.contains(status));
            (name.to_owned(), unnamed)
        });
        let statuses = named.iter().map(|status| (status.to_string(), Some(*status)));
        let statuses = statuses.chain(others).filter_map(|(name, status)| {
            let failure = failed(ErrorCode::HttpError).with("status_code", status?.into());
            Some((format!("{} {name}", ErrorCode::HttpError), failure))
        });
        let codes = ErrorCode::ALL
            .into_iter()
            .filter(|code| *code != ErrorCode::HttpError);
        codes
            .map(|code| (code.as_str().to_owned(), failed(code)))
            .chain(statuses)
            .collect()
    }

    fn waits(&self, failure: &Failure, start: Instant, time_limit: Duration) -> Waits {
        let mut course = Course::new(self.clone());
        // The first call begins in any case.
        let _ = course.begin(start);
        let end = start.checked_add(time_limit).map(|deadline| course.end(deadline));
        let cut_after = |spent: Duration| {
            end.filter(|end| spent >= end.at.saturating_duration_since(start))
                .map(|end| limit_name(end.limit))
        };
        let max_attempts = self.max_attempts(failure);
        let mut waits = Waits {
            max_attempts,
            waits_ms: Vec::new(),
            cut_by: None,
            may_be_cut_by: None,
        };
        let (mut shortest, mut longest) = (Duration::ZERO, Duration::ZERO);
        for retry in 0..max_attempts.saturating_sub(1) {
            let [min, max] = [0.0, 1.0].map(|chance| self.wait(failure, retry, chance));
            shortest = shortest.saturating_add(min);
            longest = longest.saturating_add(max);
            waits.cut_by = cut_after(shortest);
            waits.may_be_cut_by = cut_after(longest);
            if waits.cut_by.is_some() {
                break;
            }
            let [min, max] = [min, max].map(whole_ms);
            waits.waits_ms.push(Range { min, max });
        }
        waits
    }
}

fn limit_name(limit: Limit) -> &'static str {
    match limit {
        Limit::Deadline => "deadline",
        Limit::RetryBudget { .. } => "retry_budget",
        Limit::TotalTime { .. } | Limit::TotalTimeOfOneCall { .. } => "total_timeout",
    }
}
