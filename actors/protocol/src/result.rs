//! The result that the worker sends once per assignment (contract 3.3, 3.4, 3.6).
//!
//! Neighbours: the publisher makes one from an identity and a [`StepResult`] and sends the exact bytes, again and
//! again if it must. Never written with null or empty strings, never with a number as a string.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::ack::OverloadStatus;
use crate::assignment::Identity;
use crate::error_code::ErrorCode;
use crate::headers::{Headers, message_id};
use crate::ids::RunFlowStep;
use crate::model::Cost;
use crate::outcome::{Failure, Status, StepResult, trips_breaker};
use crate::trace_context::SpanContext;
use crate::{VERSION, is_empty_map};

/// Result, as it travels.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ExecResult {
    /// Always `"1"`.
    pub version: &'static str,
    /// The assignment.
    pub assignment_id: String,
    /// As it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// As it came.
    pub tenant_id: String,
    /// How it ended.
    pub status: Status,
    /// `executor.provider_id` of the assignment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<String>,
    /// The job's type; the router makes it the event type of the usage record.
    pub job: JobRef,
    /// From the first start of handling to the end, in milliseconds.
    pub latency_ms: u64,
    /// In the currency of the provider's prices, all attempts together; 0.0 when unknown, and where nothing has a price.
    pub cost: f64,
    /// 32 hexadecimal digits or a UUIDv4, else absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Run, flow and step: all three valid, or none.
    #[serde(flatten)]
    pub run_flow_step: RunFlowStep,
    /// As it came, 1..256 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// When the result was made, in milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// Code of the failure; absent on success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<ErrorCode>,
    /// Steers the router's breaker; absent on success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_type: Option<&'static str>,
    /// Safe for the router's breaker; absent on success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// The whole error; absent on success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
    /// What the job yielded; empty when `output_ref` is there.
    pub outputs: Map<String, Value>,
    /// Where the outputs are, when the result would be larger than the largest message with them in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_ref: Option<OutputRef>,
    /// Calls beyond the first.
    pub retries_used: u32,
    /// Run, flow and step as they came, when they cannot stand at top level; the router does not look here.
    #[serde(skip_serializing_if = "RunFlowStep::is_empty")]
    pub correlation: RunFlowStep,
    /// Load of the pool when the job was queued, when its queue is bounded and not healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overload_status: Option<OverloadStatus>,
    /// Jobs waiting when the job was queued, when its queue is bounded and any waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_depth: Option<u64>,
    /// `worker_id`, `original_trace_id` when the trace id came in a bad format, and `degraded` when the pool was so loaded
    /// that the job got less: fewer calls, less time. `sandbox`, true, when the job was only rehearsed. `cost_unknown`, true,
    /// when the job cost more than `cost` says, because a provider did not tell what it counted.
    pub metadata: Map<String, Value>,
    /// Which replay of the assignment this answers; told by the message id only.
    #[serde(skip)]
    pub replay: u32,
    /// The span in which it is published, while traces are on; told by headers only.
    #[serde(skip)]
    pub span: Option<SpanContext>,
}

/// The job, as far as the router looks at it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct JobRef {
    /// The job's type; `unknown` when the assignment names no usable one, because a result without a job becomes a
    /// usage record without an event type.
    #[serde(rename = "type")]
    pub job_type: String,
}

impl From<&Identity> for JobRef {
    fn from(identity: &Identity) -> Self {
        Self {
            job_type: identity.job_type.clone().unwrap_or_else(|| "unknown".to_owned()),
        }
    }
}

/// Outputs that are kept in an object store because they do not fit a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct OutputRef {
    /// `nats-obj://bucket/key`, as `job.payload_ref` takes it. The object is the JSON text of `outputs`.
    pub uri: String,
    /// Bytes of the object.
    pub size: u64,
    /// SHA-256 of the object: 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// A failure, as it travels.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ErrorBody {
    /// The code.
    pub code: ErrorCode,
    /// Names the field and the rule where there is one.
    pub message: String,
    /// Whether sending the same assignment again can help.
    pub retryable: bool,
    /// Facts such as `field` or `status_code`.
    #[serde(skip_serializing_if = "is_empty_map")]
    pub details: Map<String, Value>,
}

impl From<&Failure> for ErrorBody {
    fn from(failure: &Failure) -> Self {
        let message = match failure.message.as_str() {
            // Nothing travels empty.
            "" => failure.code.sentence(),
            message => message,
        };
        Self {
            code: failure.code,
            message: message.to_owned(),
            retryable: failure.is_retryable(),
            details: failure.details.clone(),
        }
    }
}

/// The fields of a result that tell of a failure, for one that was written without them.
pub fn failure_fields(failure: &Failure) -> Map<String, Value> {
    Map::from_iter([
        ("error_code".to_owned(), json!(failure.code)),
        ("error_type".to_owned(), json!(failure.error_type())),
        ("error_message".to_owned(), json!(breaker_safe_message(failure))),
        ("error".to_owned(), json!(ErrorBody::from(failure))),
    ])
}

/// The message for the router: a fault that is not the provider's must not trip the breaker by its wording.
pub(crate) fn breaker_safe_message(failure: &Failure) -> String {
    let usable =
        !failure.message.is_empty() && (failure.blames_provider() || !trips_breaker(&failure.message));
    if usable {
        failure.message.clone()
    } else {
        failure.code.sentence().to_owned()
    }
}

pub(crate) fn metadata(worker_id: &str, identity: &Identity) -> Map<String, Value> {
    let mut metadata = Map::new();
    metadata.insert("worker_id".to_owned(), worker_id.into());
    if let Some(original) = &identity.correlation.original_trace_id {
        metadata.insert("original_trace_id".to_owned(), original.as_str().into());
    }
    if identity.sandbox {
        metadata.insert("sandbox".to_owned(), true.into());
    }
    metadata
}

fn metadata_of_result(worker_id: &str, identity: &Identity, cost: Cost) -> Map<String, Value> {
    let mut metadata = metadata(worker_id, identity);
    if cost.is_incomplete() {
        metadata.insert("cost_unknown".to_owned(), true.into());
    }
    metadata
}

impl ExecResult {
    /// Writes down how a job ended. `now_ms`: milliseconds since the Unix epoch.
    pub fn new(identity: &Identity, step: StepResult, worker_id: &str, now_ms: u64) -> Self {
        let status = step.outcome.status();
        let failure = step.outcome.failure().cloned();
        let outputs = match step.outcome {
            crate::outcome::Outcome::Success(outputs) => outputs,
            _ => failure.as_ref().map(|f| f.outputs.clone()).unwrap_or_default(),
        };
        let run_flow_step = identity.correlation.raw.all_valid_or_none();
        let at_top_level = !run_flow_step.is_empty();
        Self {
            version: VERSION,
            assignment_id: identity.assignment_id.clone(),
            request_id: identity.request_id.clone(),
            tenant_id: identity.tenant_id.clone(),
            status,
            provider_id: identity.provider_id.clone(),
            job: JobRef::from(identity),
            latency_ms: step.latency_ms,
            cost: step.cost.amount(),
            trace_id: identity.correlation.trace_id.clone(),
            run_flow_step,
            idempotency_key: identity.idempotency_key.clone(),
            timestamp: now_ms,
            error_code: failure.as_ref().map(|f| f.code),
            error_type: failure.as_ref().map(Failure::error_type),
            error_message: failure.as_ref().map(breaker_safe_message),
            error: failure.as_ref().map(ErrorBody::from),
            outputs,
            output_ref: None,
            retries_used: step.retries_used,
            correlation: if at_top_level {
                RunFlowStep::default()
            } else {
                identity.correlation.raw.clone()
            },
            overload_status: None,
            queue_depth: None,
            metadata: metadata_of_result(worker_id, identity, step.cost),
            replay: identity.replay,
            span: identity
                .correlation
                .span
                .as_ref()
                .map(|span| span.publishing("result")),
        }
    }

    /// Headers that go with it.
    pub fn headers(&self) -> Headers {
        let id = message_id(&self.assignment_id, self.replay, "result");
        let original = self.metadata.get("original_trace_id").and_then(Value::as_str);
        Headers::of_answer(id, &self.tenant_id, self.trace_id.as_deref().or(original))
            .in_span(self.span.as_ref())
    }
}
