//! How a block notices that it must stop: cancelled, deadline reached, or a limit of its own run out.
//!
//! Neighbours: blocks that may block their thread ask [`Watch::check`] between steps; waiting blocks wrap what they
//! wait for in [`until_stopped`] or [`attempt_limit`]. Never ends anything itself.

use std::future::Future;
use std::time::Duration;

use caf_protocol::block::{BlockContext, CancellationToken};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use tokio::time::Instant;

/// The end of an operation that looks at it between its steps.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    cancel: CancellationToken,
    deadline: Instant,
    limit: Instant,
    limit_name: &'static str,
}

impl Watch {
    /// An operation that begins now and may take `limit`.
    pub(crate) fn start(context: &BlockContext, limit: Duration, limit_name: &'static str) -> Self {
        Self {
            cancel: context.cancel.clone(),
            deadline: context.deadline,
            limit: Instant::now() + limit,
            limit_name,
        }
    }

    /// The failure to end with, when it is time to.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let now = Instant::now();
        if now >= self.deadline {
            return Err(Failure::timeout("deadline"));
        }
        if self.cancel.is_cancelled() {
            return Err(cancelled());
        }
        if now >= self.limit {
            return Err(Failure::timeout(self.limit_name));
        }
        Ok(())
    }

    /// What is left until the first of deadline and limit.
    pub(crate) fn left(&self) -> Duration {
        self.deadline
            .min(self.limit)
            .saturating_duration_since(Instant::now())
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
            Failure::timeout("deadline")
        } else {
            cancelled()
        }),
        result = work => result,
    }
}

/// Waits for one step of an attempt. A limit that runs out is a retryable failure, unless it was the deadline that
/// cut it short.
pub(crate) async fn attempt_limit<T>(
    context: &BlockContext,
    limit: Duration,
    step: &str,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    tokio::time::timeout(context.cap(limit), work).await.map_err(|_| {
        if Instant::now() >= context.deadline {
            Failure::timeout("deadline")
        } else {
            Failure::new(ErrorCode::ConnectionTimeout, format!("timeout while {step}"))
        }
    })
}
