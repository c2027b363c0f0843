//! The span of one attempt (contract 8.5): one each, so that the waits between attempts are seen as what they are, and
//! what a block calls is below the attempt that called it.
//!
//! Neighbours: [`super`] opens and closes it around each call. Reads nothing of inputs and outputs.

use super::Attempt;
use super::retry::limit::Limit;
use crate::job::Job;
use crate::trace::{Span, SpanKind};

/// Opens it; `retries`: calls before this one.
pub(super) fn open(job: &Job, retries: u32) -> Span {
    let mut span = job
        .holdings
        .span
        .child("worker.step.execution", SpanKind::Internal);
    if let Some(step_id) = &job.identity.correlation.raw.step_id {
        span.set("step.id", step_id.as_str());
    }
    if let Some(job_type) = &job.identity.job_type {
        span.set("step.type", job_type.as_str());
    }
    span.set("step.attempt", retries.saturating_add(1));
    span
}

/// Says how it ended.
pub(super) fn close(span: &mut Span, attempt: &Attempt) {
    let duration_ms = span.elapsed_ms();
    span.set("duration_ms", duration_ms);
    let status = match attempt {
        Attempt::Done(Ok(_)) => "success",
        Attempt::Done(Err(failure)) | Attempt::NoInputs(failure) | Attempt::Refused(failure) => {
            span.fail(failure);
            if failure.total_limit { "timeout" } else { "error" }
        }
        Attempt::OutOfTime(limit) => {
            span.fail(&Limit::failure(*limit));
            "timeout"
        }
        Attempt::Cancelled => "cancelled",
    };
    span.set("step.status", status);
}
