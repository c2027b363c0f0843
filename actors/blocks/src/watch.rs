//! How a block notices that it must stop: cancelled, deadline reached, or a limit of its own run out.
//!
//! Neighbours: blocks that may block their thread ask [`Watch::check`] between steps; the pipeline stops waiting for one
//! that does not come to its next step. Waiting blocks wrap what they wait for in [`until_stopped`] or [`attempt_limit`].
//! Never ends anything itself.

use std::future::Future;
use std::time::Duration;

use caf_protocol::block::{BlockContext, CancellationToken};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::limit::OperationLimit;
use caf_protocol::outcome::Failure;
use tokio::time::Instant;

/// The end of an operation that looks at it between its steps.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    cancel: CancellationToken,
    deadline: Instant,
    began: Instant,
    limit: Option<OperationLimit>,
}

impl Watch {
    /// An operation that begins now.
    pub(crate) fn start(context: &BlockContext, limit: Option<OperationLimit>) -> Self {
        Self {
            cancel: context.cancel.clone(),
            deadline: context.deadline,
            began: Instant::now(),
            limit,
        }
    }

    /// The failure to end with, when it is time to.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let now = Instant::now();
        if now >= self.deadline {
            return Err(Failure::deadline());
        }
        if self.cancel.is_cancelled() {
            return Err(cancelled());
        }
        let taken = now.saturating_duration_since(self.began);
        match self.limit {
            Some(limit) if taken >= limit.allowed => Err(limit.ends_the_job(taken)),
            _ => Ok(()),
        }
    }

    /// What is left until the first of deadline and limit.
    pub(crate) fn left(&self) -> Duration {
        let now = Instant::now();
        let left = self.deadline.saturating_duration_since(now);
        let taken = now.saturating_duration_since(self.began);
        self.limit
            .map_or(left, |limit| left.min(limit.allowed.saturating_sub(taken)))
    }
}

/// The job was told to stop.
pub(crate) fn cancelled() -> Failure {
    Failure::new(ErrorCode::CancelledByUser, "cancelled while running")
}

/// Waits for `work`, but not beyond cancellation. The pipeline enforces the deadline; when both have come, the deadline
/// is the cause that is told.
pub(crate) async fn until_stopped<T>(
    context: &BlockContext,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = context.cancel.cancelled() => Err(if Instant::now() >= context.deadline {
            Failure::deadline()
        } else {
            cancelled()
        }),
        result = work => result,
    }
}

/// Waits for one step of an attempt. A limit that runs out is a retryable failure, unless it was the deadline that
/// cut it short. Without a limit there is the deadline.
pub(crate) async fn attempt_limit<T>(
    context: &BlockContext,
    limit: Option<OperationLimit>,
    step: &str,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    let began = Instant::now();
    let end = limit.and_then(|limit| began.checked_add(limit.allowed));
    let until = end.map_or(context.deadline, |end| end.min(context.deadline));
    tokio::time::timeout_at(until, work)
        .await
        .map_err(|_| match limit {
            Some(limit) if Instant::now() < context.deadline => limit.ends_the_attempt(step, began.elapsed()),
            _ => Failure::deadline(),
        })
}
