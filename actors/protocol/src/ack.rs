//! The acknowledgement that the worker sends once per assignment (contract 3.2).
//!
//! Neighbours: intake decides which one, the publisher sends the exact bytes. Never written with null or empty
//! strings: the router dead-letters those.

use schemars::JsonSchema;
use serde::Serialize;

use crate::VERSION;
use crate::assignment::Identity;
use crate::headers::{Headers, message_id};
use crate::trace_context::SpanContext;

/// Load of the pool that a job went to, or was refused by (contract 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OverloadStatus {
    /// Below half.
    Healthy,
    /// Half or more.
    Degraded,
    /// Four fifths or more.
    Overloaded,
    /// Full.
    Critical,
}

impl OverloadStatus {
    /// Lower-case name, as in answers and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Overloaded => "overloaded",
            Self::Critical => "critical",
        }
    }
}

/// Whether the worker took the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AckStatus {
    /// The pool has taken it; one result follows.
    Accepted,
    /// It will not run; an error result follows all the same, because acks are usually not consumed.
    Rejected,
}

/// Why an assignment was rejected: the router makes a metric label of it, so the set is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// The version is none that this worker speaks.
    UnsupportedVersion,
    /// A required field is absent, or `"undefined"`.
    MissingField,
    /// A field has the wrong type, is too long or holds control characters.
    InvalidField,
    /// An object holds a key twice.
    DuplicateKey,
    /// No block runs this job type.
    UnsupportedJobType,
    /// Nobody runs this job type for the provider that the assignment names.
    UnknownProvider,
    /// The block does not accept the inputs.
    InvalidInputs,
    /// The inputs are a reference of a kind that this worker does not resolve.
    UnsupportedPayloadRef,
    /// The tenant is not on the allow-list.
    TenantNotAllowed,
    /// The tenant has used up one of its quotas.
    QuotaExceeded,
    /// The pool is full.
    QueueFull,
    /// It kills the workers that run it.
    Quarantined,
    /// Too many attempts at it ended without a result.
    AttemptsExhausted,
}

impl RejectReason {
    /// The token on the wire and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnsupportedVersion => "unsupported_version",
            Self::MissingField => "missing_field",
            Self::InvalidField => "invalid_field",
            Self::DuplicateKey => "duplicate_key",
            Self::UnsupportedJobType => "unsupported_job_type",
            Self::UnknownProvider => "unknown_provider",
            Self::InvalidInputs => "invalid_inputs",
            Self::UnsupportedPayloadRef => "unsupported_payload_ref",
            Self::TenantNotAllowed => "tenant_not_allowed",
            Self::QuotaExceeded => "quota_exceeded",
            Self::QueueFull => "queue_full",
            Self::Quarantined => "quarantined",
            Self::AttemptsExhausted => "attempts_exhausted",
        }
    }
}

/// Acknowledgement, as it travels.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ExecAssignmentAck {
    /// Always `"1"`.
    pub version: &'static str,
    /// The assignment.
    pub assignment_id: String,
    /// As it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// As it came.
    pub tenant_id: String,
    /// Whether the worker took the job.
    pub status: AckStatus,
    /// Token for the reason of a rejection; the router reads this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<RejectReason>,
    /// The same token, for readers of the documents that call it so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<RejectReason>,
    /// 32 hexadecimal digits or a UUIDv4, else absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Milliseconds since the Unix epoch.
    pub acknowledged_at: u64,
    /// Load of the pool, when its queue is bounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overload_status: Option<OverloadStatus>,
    /// Which replay of the assignment this answers; told by the message id only.
    #[serde(skip)]
    pub replay: u32,
    /// The span in which it is published, while traces are on; told by headers only.
    #[serde(skip)]
    pub span: Option<SpanContext>,
}

impl ExecAssignmentAck {
    /// `rejection` is absent when the pool has taken the job. `now_ms`: milliseconds since the Unix epoch.
    pub fn new(
        identity: &Identity,
        rejection: Option<RejectReason>,
        overload_status: Option<OverloadStatus>,
        now_ms: u64,
    ) -> Self {
        Self {
            version: VERSION,
            assignment_id: identity.assignment_id.clone(),
            request_id: identity.request_id.clone(),
            tenant_id: identity.tenant_id.clone(),
            status: if rejection.is_some() {
                AckStatus::Rejected
            } else {
                AckStatus::Accepted
            },
            message: rejection,
            reason: rejection,
            trace_id: identity.correlation.trace_id.clone(),
            acknowledged_at: now_ms,
            overload_status,
            replay: identity.replay,
            span: identity
                .correlation
                .span
                .as_ref()
                .map(|span| span.publishing("ack")),
        }
    }

    /// Headers that go with it.
    pub fn headers(&self) -> Headers {
        let id = message_id(&self.assignment_id, self.replay, "ack");
        Headers::of_answer(id, &self.tenant_id, self.trace_id.as_deref()).in_span(self.span.as_ref())
    }
}
