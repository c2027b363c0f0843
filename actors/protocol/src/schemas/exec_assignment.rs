//! The assignment as a sender should write it (contract 2.1, 2.4): documentation with a schema, nothing else.
//!
//! Neighbours: none at run time. [`crate::assignment::read`] is what reads, and it tolerates more: numbers in their
//! string form, bad values of optional fields, `"undefined"`. Fields that are not listed are allowed everywhere.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::{Map, Value};

use crate::block::ResourceClass;

/// An assignment, plain or in an envelope.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub enum AssignmentMessage {
    /// In an envelope.
    Enveloped(Envelope),
    /// Plain.
    Plain(ExecAssignment),
}

/// An envelope around an assignment. The assignment inside may leave out `version` and `executor`.
#[derive(Debug, JsonSchema)]
pub struct Envelope {
    /// `v1`.
    pub version: Version,
    /// What it is, e.g. `exec_assign`.
    pub kind: String,
    /// The assignment.
    pub data: EnvelopedAssignment,
}

/// An assignment as the router builds it, with the fields that other senders use.
#[derive(Debug, JsonSchema)]
pub struct ExecAssignment {
    /// Version of the protocol.
    pub version: Version,
    /// Who was chosen to run it.
    pub executor: Executor,
    /// The rest.
    #[schemars(flatten)]
    pub common: Common,
}

/// An assignment inside an envelope.
#[derive(Debug, JsonSchema)]
pub struct EnvelopedAssignment {
    /// Version of the protocol; the envelope's when absent.
    pub version: Option<Version>,
    /// Who was chosen to run it.
    pub executor: Option<Executor>,
    /// The rest.
    #[schemars(flatten)]
    pub common: Common,
}

/// Fields of an assignment, whatever it travels in.
#[derive(Debug, JsonSchema)]
pub struct Common {
    /// Opaque, at most 128 bytes without control characters. One answer each per id and tenant.
    #[schemars(length(min = 1, max = 128))]
    pub assignment_id: String,
    /// Opaque, at most 128 bytes without control characters.
    #[schemars(length(min = 1, max = 128))]
    pub request_id: String,
    /// At most 256 bytes without control characters. Required: here, in the header `tenant_id`, or in
    /// `decision.metadata`.
    #[schemars(length(min = 1, max = 256))]
    pub tenant_id: String,
    /// What is to be done.
    pub job: Job,
    /// How.
    pub options: Option<AssignmentOptions>,
    /// Ids to follow the work by.
    pub correlation: Option<Map<String, Value>>,
    /// Why this provider was chosen. Only `metadata.tenant_id` is read.
    pub decision: Option<Map<String, Value>>,
    /// The caller's own; `run_id`, `flow_id` and `step_id` are read when they stand nowhere else.
    pub metadata: Option<Map<String, Value>>,
    /// 32 hexadecimal digits or a UUIDv4; `correlation.trace_id` comes first.
    pub trace_id: Option<String>,
    /// UUIDv4 or upper-case ULID.
    pub run_id: Option<String>,
    /// UUIDv4 or upper-case ULID.
    pub flow_id: Option<String>,
    /// UUIDv4 or upper-case ULID.
    pub step_id: Option<String>,
    /// Caller's key, at most 256 bytes.
    #[schemars(length(min = 1, max = 256))]
    pub idempotency_key: Option<String>,
    /// Relative deadline in milliseconds, when `options` name none.
    #[schemars(range(min = 1))]
    pub timeout_ms: Option<u64>,
    /// Retry, when `options` name none.
    pub retry: Option<Retry>,
    /// Which pool; hints of other names are not read.
    pub resources: Option<Resources>,
    /// Whether the job is only rehearsed: nothing outside the worker is touched, and outputs are made up. May stand in
    /// `job`, `options` or `metadata` too; one that is true is enough, and none leads out of a node's sandbox.
    pub sandbox: Option<bool>,
}

/// Version of the protocol: each of these means 1.
#[derive(Debug, JsonSchema)]
pub enum Version {
    /// As the router sends it.
    #[schemars(rename = "1")]
    One,
    /// Inside an envelope.
    #[schemars(rename = "1.0")]
    OneDotZero,
    /// On an envelope.
    #[schemars(rename = "v1")]
    V1,
}

/// Who was chosen to run the job.
#[derive(Debug, JsonSchema)]
pub struct Executor {
    /// Echoed in the result; steers the router's circuit breaker.
    #[schemars(length(min = 1, max = 128))]
    pub provider_id: String,
    /// `nats` or `grpc`; not read.
    pub channel: Option<String>,
    /// Not read.
    pub endpoint: Option<String>,
}

/// What is to be done. The inputs are what `payload_ref` refers to, else `payload`, else `inputs`, else every other
/// field in here.
#[derive(Debug, JsonSchema)]
pub struct Job {
    /// One of the job types that the worker has a block for.
    #[schemars(rename = "type", length(min = 1, max = 128))]
    pub job_type: String,
    /// Inputs of the block. Its `timeout_ms` may shorten the deadline.
    pub payload: Option<Map<String, Value>>,
    /// Inputs of the block, when there is no payload.
    pub inputs: Option<Map<String, Value>>,
    /// Where the inputs are, as one JSON object; beats `payload` and `inputs`. `nats-obj://bucket/key`,
    /// `file:root/rest`, `http://` or `https://`; others are rejected. `%XX` in bucket keys and paths is decoded once.
    #[schemars(length(max = 2048))]
    pub payload_ref: Option<String>,
    /// SHA-256 of the referenced bytes: 64 lower-case hexadecimal digits. Others are not run with.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub payload_sha256: Option<String>,
    /// Which pool.
    pub resources: Option<Resources>,
    /// Retry, when nothing else names one.
    pub retry: Option<Retry>,
    /// Whether the job is only rehearsed.
    pub sandbox: Option<bool>,
}

/// How a job is to be run.
#[derive(Debug, JsonSchema)]
pub struct AssignmentOptions {
    /// How urgent the job is among those of its tenant: a number from 0 to 100, the higher the sooner. What is beyond
    /// counts as the nearest of these, anything else as 50, which is the default.
    pub priority: Option<Value>,
    /// Relative deadline in milliseconds: counts from the first start of handling. Default 30,000, at most 3,600,000.
    #[schemars(range(min = 0))]
    pub deadline_ms: Option<u64>,
    /// Retry.
    pub retry: Option<Retry>,
    /// Whether the job is only rehearsed.
    pub sandbox: Option<bool>,
}

/// How often a job may be tried.
#[derive(Debug, JsonSchema)]
pub struct Retry {
    /// Total calls; 0 means 1, at most 100.
    pub max_attempts: Option<u32>,
    /// Calls beyond the first, when there is no `max_attempts`.
    pub max_retries: Option<u32>,
    /// Base of the wait between two calls, in milliseconds.
    pub backoff_ms: Option<u64>,
}

/// Which pool runs the job, and what it will need.
#[derive(Debug, JsonSchema)]
pub struct Resources {
    /// The pool; without it, or when it is none of the three, the block's own.
    pub class: Option<ResourceClass>,
    /// Memory that the job will need, in bytes: held against the quota of its tenant. Absent: nothing is.
    pub memory_bytes: Option<u64>,
    /// Processor time that the job will need, in milliseconds: held against the quota of its tenant. Absent: nothing is.
    pub cpu_time_ms: Option<u64>,
    /// Anything else.
    #[schemars(flatten)]
    pub other: BTreeMap<String, Value>,
}
