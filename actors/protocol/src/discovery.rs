//! What a worker says when it is looked for: answers of the NATS services API (ADR-32), so that `nats micro` and
//! whatever else speaks it finds workers and their load.
//!
//! Neighbours: the discovery of the pipeline fills these in. The form of everything but [`Load`] is that of the API.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::heartbeat::{Intake, WorkerStatus};

/// Name of the service: that of every worker, of whatever fleet.
pub const SERVICE: &str = "caf-worker";
/// First part of every subject of the API.
pub const PREFIX: &str = "$SRV";

/// What may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Who is there?
    Ping,
    /// What are you?
    Info,
    /// How are you?
    Stats,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ping, Self::Info, Self::Stats];

    /// As in subjects.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ping => "PING",
            Self::Info => "INFO",
            Self::Stats => "STATS",
        }
    }

    /// Subjects on which all services, all workers, and the worker `id` are asked.
    pub fn subjects(self, id: &str) -> [String; 3] {
        let all = format!("{PREFIX}.{}", self.as_str());
        let workers = format!("{all}.{SERVICE}");
        let one = format!("{workers}.{id}");
        [all, workers, one]
    }

    /// The verb of such a subject.
    pub fn of(subject: &str) -> Option<Self> {
        let verb = subject.split('.').nth(1)?;
        Self::ALL.into_iter().find(|known| known.as_str() == verb)
    }
}

/// Which worker answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Service {
    /// Always `caf-worker`.
    pub name: String,
    /// Name of the process, new at each start.
    pub id: String,
    /// Version of the program, by semantic versioning.
    pub version: String,
    /// `worker_id`, `mode` (`jetstream` or `core`) and `features` (names of the flags that are in force, comma-separated).
    pub metadata: BTreeMap<String, String>,
}

/// Type of an answer to `PING`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub enum PingType {
    /// The only one.
    #[serde(rename = "io.nats.micro.v1.ping_response")]
    V1,
}

/// Type of an answer to `INFO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub enum InfoType {
    /// The only one.
    #[serde(rename = "io.nats.micro.v1.info_response")]
    V1,
}

/// Type of an answer to `STATS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub enum StatsType {
    /// The only one.
    #[serde(rename = "io.nats.micro.v1.stats_response")]
    V1,
}

/// Answer to `$SRV.PING`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Ping {
    /// What this is.
    #[serde(rename = "type")]
    pub kind: PingType,
    /// Who answers.
    #[serde(flatten)]
    pub service: Service,
}

/// Answer to `$SRV.INFO`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Info {
    /// What this is.
    #[serde(rename = "type")]
    pub kind: InfoType,
    /// Who answers.
    #[serde(flatten)]
    pub service: Service,
    /// What a worker is, for people.
    pub description: String,
    /// What it listens to.
    pub endpoints: Vec<EndpointInfo>,
}

/// A subject that a worker takes messages from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct EndpointInfo {
    /// `assign`, or `owner` where workers ask each other about assignments.
    pub name: String,
    /// The subject.
    pub subject: String,
    /// Consumer (queue group in core mode) that the workers of a fleet share; empty where each listens for itself.
    pub queue_group: String,
    /// For `assign`: `ack` and `result`, the subjects of the answers (there is no reply), and `stream` in jetstream mode.
    pub metadata: BTreeMap<String, String>,
}

/// Answer to `$SRV.STATS`.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Stats {
    /// What this is.
    #[serde(rename = "type")]
    pub kind: StatsType,
    /// Who answers.
    #[serde(flatten)]
    pub service: Service,
    /// When the process began: UTC, ISO 8601.
    pub started: String,
    /// The same as in [`Info`], with numbers.
    pub endpoints: Vec<EndpointStats>,
}

/// What came of the messages on a subject since the process began.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct EndpointStats {
    /// As in [`EndpointInfo`].
    pub name: String,
    /// As in [`EndpointInfo`].
    pub subject: String,
    /// As in [`EndpointInfo`].
    pub queue_group: String,
    /// Messages that were answered: for `assign` with a result or, where nobody can be answered, a dead letter.
    pub num_requests: u64,
    /// Those of them that were answered with anything but success.
    pub num_errors: u64,
    /// Error code of the last of these; empty before.
    pub last_error: String,
    /// Nanoseconds from the first start of handling to the answer, in all.
    pub processing_time: u64,
    /// Nanoseconds on average.
    pub average_processing_time: u64,
    /// How loaded the worker is; with the endpoint `assign` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Load>,
}

/// How loaded a worker is, now.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Load {
    /// As in its heartbeat.
    pub status: WorkerStatus,
    /// Why it is degraded: names of the checks of its health page that fail. Empty when none does.
    pub reasons: Vec<String>,
    /// Each pool: `cpu`, `gpu` and `io`.
    pub pools: BTreeMap<&'static str, PoolLoad>,
    /// What it holds.
    pub held: HeldLoad,
    /// What its process uses.
    pub process: ProcessLoad,
    /// How assignments come in.
    #[serde(flatten)]
    pub intake: Intake,
}

/// How loaded a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PoolLoad {
    /// Jobs that can run at once.
    pub slots: u64,
    /// Jobs that run.
    pub slots_used: u64,
    /// Jobs that could run besides.
    pub slots_available: u64,
    /// Jobs that wait.
    pub queue_depth: u64,
    /// Jobs that may wait; absent where only what the worker holds is bounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queue_size: Option<u64>,
}

/// What a worker holds: jobs that wait, run, or whose answer is not confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct HeldLoad {
    /// Jobs held.
    pub jobs: u64,
    /// Most jobs held.
    pub max_jobs: u64,
    /// Jobs that may be taken on besides.
    pub permits_available: u64,
    /// Payload bytes held.
    pub bytes: u64,
    /// Most payload bytes held.
    pub max_bytes: u64,
}

/// What a worker's process uses. What the system does not tell is absent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub struct ProcessLoad {
    /// Share of `cpus` over the last seconds, 0..1.
    pub cpu: f64,
    /// Processors that it may use: its affinity, or the quota of its control group when that is less.
    pub cpus: f64,
    /// Share of busy gpu slots, 0..1.
    pub gpu: f64,
    /// Resident memory in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_bytes: Option<u64>,
    /// Limit of its control group in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_limit_bytes: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verb_is_found_in_each_of_its_subjects() {
        for verb in Verb::ALL {
            for subject in verb.subjects("an-id") {
                assert_eq!(Verb::of(&subject), Some(verb), "{subject}");
            }
        }
        assert_eq!(Verb::Ping.subjects("x")[2], "$SRV.PING.caf-worker.x");
        assert_eq!(Verb::of("$SRV.SCHEMA"), None);
        assert_eq!(Verb::of("$SRV"), None);
    }
}
