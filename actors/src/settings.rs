//! Settings of the pipeline's parts. The node composes them with those of the blocks and reads them from files and
//! the environment; here they only have shapes, defaults and rules.
//!
//! Every struct refuses unknown keys. A default stands in one place: the `Default` of its struct. Rules that the types
//! cannot express are in the `validate` functions (`validate.rs`), which report to [`rules`].

pub mod approval_links;
pub mod approvals;
pub mod circuit_breaker;
pub mod policies;
pub mod rules;
pub mod tenants;

mod validate;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use caf_protocol::block::ResourceClass;
use caf_protocol::secret::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

pub use self::approvals::ApprovalSettings;
pub use self::tenants::{PolicyStoreSettings, TenantOverride, TenantPolicy, TenantSettings};
use crate::mask;

/// How assignments arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NatsMode {
    /// Pulled from a stream, acknowledged after their result is stored: at least once.
    Jetstream,
    /// A plain queue subscription, for a router or account without JetStream: at most once.
    Core,
}

/// Broker: where it is, who we are there, and the names we use. `Debug` hides its secrets.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NatsSettings {
    /// Server addresses, comma-separated, e.g. `nats://host:4222` or `tls://host:4222`.
    pub url: String,
    /// `jetstream` or `core`.
    pub mode: NatsMode,
    /// Stream of assignments.
    pub stream: String,
    /// Durable consumer (queue group in core mode) that all workers of a fleet share.
    pub durable: String,
    /// Stream of results and acknowledgements, created when no stream covers their subjects.
    pub results_stream: String,
    /// Stream of dead letters, created when no stream covers their subject.
    pub dlq_stream: String,
    /// Object store bucket of outputs that are too large for a result.
    pub objects_bucket: String,
    /// Whether missing streams, consumers and the bucket are created.
    pub create_streams: bool,
    /// How long the server waits for an answer or a renewal before it delivers again, in milliseconds.
    pub ack_wait_ms: u64,
    /// Most unanswered assignments of the whole fleet.
    pub max_ack_pending: u64,
    /// Most attempts at one assignment, counted by the workers in its claim; hand-backs do not count.
    pub max_deliver: u32,
    /// How long to wait for the server at start, in milliseconds; 0 waits for ever.
    pub connect_deadline_ms: u64,
    /// Longest wait for the answer to one request or publish, in milliseconds.
    pub request_timeout_ms: u64,
    /// How long no assignment may arrive although some wait and there is room, in milliseconds; each remedy gets as
    /// long before the next one is tried.
    pub stall_ms: u64,
    /// Key-value bucket for what the fleet must know of its streams; created when it is missing.
    pub state_bucket: String,
    /// Whether the worker answers when it is looked for: NATS services API, subjects `$SRV.>`.
    pub discovery: bool,
    /// User name.
    pub user: Option<String>,
    /// Password that goes with `user`.
    pub password: Option<Secret>,
    /// Token.
    pub token: Option<Secret>,
    /// File with a user JWT and its nkey seed (`.creds`).
    pub credentials_file: Option<PathBuf>,
    /// File that holds an nkey seed.
    pub nkey_file: Option<PathBuf>,
    /// Encryption.
    pub tls: NatsTlsSettings,
    /// Subjects.
    pub subjects: SubjectSettings,
}

impl Default for NatsSettings {
    fn default() -> Self {
        Self {
            url: "nats://localhost:4222".to_owned(),
            mode: NatsMode::Jetstream,
            stream: "caf-stream".to_owned(),
            durable: "caf-workers".to_owned(),
            results_stream: "caf-results".to_owned(),
            dlq_stream: "caf-dlq".to_owned(),
            objects_bucket: "caf-outputs".to_owned(),
            create_streams: true,
            ack_wait_ms: 30_000,
            max_ack_pending: 10_000,
            max_deliver: 10,
            connect_deadline_ms: 0,
            request_timeout_ms: 5_000,
            stall_ms: 10_000,
            state_bucket: "caf-state".to_owned(),
            discovery: true,
            user: None,
            password: None,
            token: None,
            credentials_file: None,
            nkey_file: None,
            tls: NatsTlsSettings::default(),
            subjects: SubjectSettings::default(),
        }
    }
}

impl NatsSettings {
    /// `stall_ms` as a duration.
    pub fn stall(&self) -> Duration {
        Duration::from_millis(self.stall_ms)
    }
}

impl fmt::Debug for NatsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = serde_json::to_value(self).map_err(|_| fmt::Error)?;
        mask::mask(&mut value);
        write!(f, "NatsSettings {value}")
    }
}

/// Encryption between worker and broker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NatsTlsSettings {
    /// Refuse servers without TLS.
    pub required: bool,
    /// PEM file with the authorities to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client's certificate.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the key of `cert_file`.
    pub key_file: Option<PathBuf>,
}

/// Subjects (contract 1.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SubjectSettings {
    /// Assignments, from the router.
    pub assign: String,
    /// Acknowledgements, to the router.
    pub ack: String,
    /// Results, to the router.
    pub result: String,
    /// Signs of life.
    pub heartbeat: String,
    /// Dead letters.
    pub dlq: String,
    /// Questions between workers: the subject is this, a dot and the name of the process that is asked.
    pub owner: String,
    /// Requests to cancel: the subject is this, a dot and the tenant as base64url without padding. Heard while
    /// `worker.cancellation.enabled` is on.
    pub cancel: String,
}

impl Default for SubjectSettings {
    fn default() -> Self {
        Self {
            assign: "caf.exec.assign.v1".to_owned(),
            ack: "caf.exec.assign.v1.ack".to_owned(),
            result: "caf.exec.result.v1".to_owned(),
            heartbeat: "caf.worker.heartbeat.v1".to_owned(),
            dlq: "caf.exec.dlq.v1".to_owned(),
            owner: "caf.worker.owner.v1".to_owned(),
            cancel: "caf.exec.cancel.v1".to_owned(),
        }
    }
}

/// What one worker may hold, in every mode and whatever the flags.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSettings {
    /// Most jobs held: queued, running, or waiting for their answer to be confirmed.
    pub max_held: usize,
    /// Most payload bytes of held jobs.
    pub max_held_bytes: usize,
    /// Most bytes that one `job.payload_ref` may bring. They do not count as held: a job fetches them when it has its slot,
    /// so the slots of all pools times this bound them.
    pub max_payload_ref_bytes: u64,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            max_held: 1_000,
            max_held_bytes: 64 * 1024 * 1024,
            max_payload_ref_bytes: 8 * 1024 * 1024,
        }
    }
}

/// One pool. Read as a part of [`PoolsSettings`] only, which knows each pool's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, extend("required" = []))]
pub struct PoolSettings {
    /// Slots: jobs that run at once.
    pub max_concurrency: usize,
    /// Jobs that may wait beyond the running ones when the queue flag is on, in place of the queue policy's number; with
    /// the flag off only `limits` bound them.
    pub max_queue_size: Option<usize>,
}

/// The three pools.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PoolsSettings {
    /// Computing.
    #[serde(deserialize_with = "cpu_pool")]
    pub cpu: PoolSettings,
    /// Work on an accelerator.
    #[serde(deserialize_with = "gpu_pool")]
    pub gpu: PoolSettings,
    /// Waiting for files and networks.
    #[serde(deserialize_with = "io_pool")]
    pub io: PoolSettings,
}

/// A pool as it may be written: what is left out keeps the default of that pool, not of pools in general.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartialPool {
    max_concurrency: Option<usize>,
    max_queue_size: Option<usize>,
}

fn pool<'de, D: Deserializer<'de>>(from: D, default: PoolSettings) -> Result<PoolSettings, D::Error> {
    let given = PartialPool::deserialize(from)?;
    Ok(PoolSettings {
        max_concurrency: given.max_concurrency.unwrap_or(default.max_concurrency),
        max_queue_size: given.max_queue_size.or(default.max_queue_size),
    })
}

fn cpu_pool<'de, D: Deserializer<'de>>(from: D) -> Result<PoolSettings, D::Error> {
    pool(from, PoolsSettings::default().cpu)
}

fn gpu_pool<'de, D: Deserializer<'de>>(from: D) -> Result<PoolSettings, D::Error> {
    pool(from, PoolsSettings::default().gpu)
}

fn io_pool<'de, D: Deserializer<'de>>(from: D) -> Result<PoolSettings, D::Error> {
    pool(from, PoolsSettings::default().io)
}

impl Default for PoolsSettings {
    fn default() -> Self {
        let pool = |slots| PoolSettings {
            max_concurrency: slots,
            max_queue_size: None,
        };
        Self {
            cpu: pool(4),
            gpu: pool(1),
            io: pool(8),
        }
    }
}

impl PoolsSettings {
    /// Settings of the pool for `class`.
    pub fn get(&self, class: ResourceClass) -> &PoolSettings {
        match class {
            ResourceClass::Cpu => &self.cpu,
            ResourceClass::Gpu => &self.gpu,
            ResourceClass::Io => &self.io,
        }
    }
}

/// Where finished assignments are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IdempotencyScope {
    /// In this process.
    Worker,
    /// In a bucket that all workers share.
    Fleet,
}

/// How long and how much the worker remembers of finished assignments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IdempotencySettings {
    /// Where: `worker` is in this process, `fleet` in all workers. Core mode knows `worker` only.
    pub scope: IdempotencyScope,
    /// Key-value bucket that all workers of the fleet share.
    pub bucket: String,
    /// How long, in seconds. The router itself forgets after 3600.
    pub ttl_s: u64,
    /// Most finished assignments remembered; the oldest go first.
    pub max_entries: usize,
    /// Most bytes that remembered answers take; the oldest go first.
    pub memory_bytes: usize,
}

impl Default for IdempotencySettings {
    fn default() -> Self {
        Self {
            scope: IdempotencyScope::Fleet,
            bucket: "caf-claims".to_owned(),
            ttl_s: 3_600,
            max_entries: 100_000,
            memory_bytes: 8 * 1024 * 1024,
        }
    }
}

/// Calls per job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetrySettings {
    /// Total calls of a job whose assignment does not say (CP1: 4).
    pub max_attempts: u32,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self { max_attempts: 4 }
    }
}

/// How often a failed actor is re-created before the node gives up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SupervisionSettings {
    /// Most restarts of all actors within the window; one more ends the node.
    pub max_restarts: usize,
    /// The window in seconds.
    pub window_s: u64,
    /// Deaths of a process that an assignment may be running at before it is given up; before the last of them it runs
    /// alone, so that neighbours of a killer are told from the killer.
    pub max_deaths: u32,
}

impl Default for SupervisionSettings {
    fn default() -> Self {
        Self {
            max_restarts: 5,
            window_s: 60,
            max_deaths: 3,
        }
    }
}

/// How long a shutdown may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DrainSettings {
    /// Running jobs may finish for this long, in seconds; then they are cancelled.
    pub soft_s: u64,
    /// The node leaves after this long, in seconds, whatever still runs.
    pub hard_s: u64,
}

impl Default for DrainSettings {
    fn default() -> Self {
        Self {
            soft_s: 20,
            hard_s: 30,
        }
    }
}

impl DrainSettings {
    /// The soft limit.
    pub fn soft(&self) -> Duration {
        Duration::from_secs(self.soft_s)
    }

    /// The hard limit.
    pub fn hard(&self) -> Duration {
        Duration::from_secs(self.hard_s)
    }
}

/// What a dead letter keeps of the assignment's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LetterPayload {
    /// The bytes: they can be looked at and replayed.
    Include,
    /// Hash and size only: what tenants send is kept nowhere, and nothing can be replayed.
    Hash,
}

/// Dead letters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DlqSettings {
    /// What they keep of an assignment: `include` its bytes, or only their `hash`.
    pub payload: LetterPayload,
}

impl Default for DlqSettings {
    fn default() -> Self {
        Self {
            payload: LetterPayload::Include,
        }
    }
}

/// Results that are stored and not published yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutboxSettings {
    /// When they are forced to disk.
    pub sync: OutboxSync,
    /// At this many bytes of them pulling stops until some are published. What is under way is stored all the same.
    pub max_bytes: u64,
}

impl Default for OutboxSettings {
    fn default() -> Self {
        Self {
            sync: OutboxSync::Interval,
            max_bytes: 1024 * 1024 * 1024,
        }
    }
}

/// When stored results are forced to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OutboxSync {
    /// When the system likes: kill -9 loses none, power loss may, and may leave a file that cannot be read.
    None,
    /// Every 100 ms: kill -9 loses none, power loss at most those of the last 100 ms.
    Interval,
    /// Before each publish.
    Always,
}

/// Where `job.payload_ref` may lead. Files are bound by `blocks.fs.roots`, addresses by `blocks.http.allow_targets`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PayloadRefSettings {
    /// Object store buckets that jobs may read, whatever their tenant; empty lets them read any but the worker's own.
    pub buckets: Vec<String>,
}

/// Buckets in which workers keep what is theirs: never read for a job.
pub const INTERNAL_BUCKETS: [&str; 2] = ["caf-claims", "caf-state"];

impl PayloadRefSettings {
    /// Whether a job may read this bucket.
    pub fn allows(&self, bucket: &str) -> bool {
        let is_listed = || self.buckets.iter().any(|listed| listed == bucket);
        !INTERNAL_BUCKETS.contains(&bucket) && (self.buckets.is_empty() || is_listed())
    }
}

/// What becomes of outputs that do not fit the largest message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Spill {
    /// Kept in the bucket `nats.objects_bucket`; the result says where.
    Objects,
    /// Not kept: the result is an error with their size and hash.
    Off,
}

/// Outputs of jobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutputSettings {
    /// What becomes of those that do not fit the largest message.
    pub spill: Spill,
}

impl Default for OutputSettings {
    fn default() -> Self {
        Self {
            spill: Spill::Objects,
        }
    }
}
