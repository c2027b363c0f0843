//! The sign of life that a worker sends (contract 5.1). Numbers are given by the caller.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::VERSION;

/// What the worker says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WorkerStatus {
    /// Takes jobs.
    Ready,
    /// Holds as many jobs as it may, or runs as many in every pool as can run at once.
    Busy,
    /// Something it needs is away: a check of its health page fails, or it takes nothing on.
    Degraded,
    /// Shuts down; takes no more jobs.
    Draining,
}

/// Sign of life, as it travels.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Heartbeat {
    /// Always `"1"`.
    pub version: &'static str,
    /// Who.
    pub worker_id: String,
    /// When: UTC, ISO 8601, six fraction digits.
    pub timestamp: String,
    /// How it is.
    pub status: WorkerStatus,
    /// What it uses.
    pub resources: Resources,
    /// How assignments come in.
    #[serde(flatten)]
    pub intake: Intake,
    /// `cpus`: processors that `cpu` is a share of. `mem_limit_bytes`: limit of the control group, when there is one.
    /// `reasons`: while degraded, the checks of the health page that fail. `unmeasured`: names of resources that are 0
    /// because the system does not tell them.
    pub metadata: Map<String, Value>,
}

/// What the worker's process uses.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub struct Resources {
    /// Share of the processors that it may use (affinity, or the quota of its control group when that is less) over the
    /// last seconds, 0..1.
    pub cpu: f64,
    /// Share of busy gpu slots, 0..1.
    pub gpu: f64,
    /// Resident memory in bytes.
    pub mem_bytes: u64,
    /// Jobs held: queued, running, or waiting for their answer to be confirmed.
    pub jobs_in_flight: u64,
}

/// How assignments come in. Not in the contract, which allows more fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Intake {
    /// Milliseconds since the last assignment arrived; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub last_delivery_age_ms: Option<u64>,
    /// Requests for assignments that are open at the broker.
    pub pulls_outstanding: u64,
    /// How often asking for assignments was set up anew.
    pub pull_rebuilds: u64,
}

impl Heartbeat {
    /// A heartbeat of `worker_id` at `timestamp` (see [`crate::timestamp::iso_micros`]).
    pub fn new(
        worker_id: &str,
        timestamp: String,
        status: WorkerStatus,
        resources: Resources,
        intake: Intake,
        metadata: Map<String, Value>,
    ) -> Self {
        Self {
            version: VERSION,
            worker_id: worker_id.to_owned(),
            timestamp,
            status,
            resources,
            intake,
            metadata,
        }
    }
}
