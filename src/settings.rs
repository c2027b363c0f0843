//! All settings of the node: the tree, composed of what each part owns, and the rules between parts.
//!
//! Neighbours: [`load`] fills the tree from defaults, files, environment and command line; the pipeline and the blocks
//! own the types of their sections. This file never reads anything and never looks at the clock.
//!
//! In reading order: [`catalogue`] knows every key, [`origin`] says where a value came from and what is wrong with it,
//! [`sources`] reads one source into entries, [`environment`] knows the names of variables, [`load`] puts entries on top
//! of each other, [`feature`] lists what is off by default, [`in_force`] says what of it follows, [`flags`] reports that,
//! [`show`] prints all, [`reloadable`] lists what may change at run time, [`not_yet`] lists keys without effect, [`worker_id`] finds a name.

pub mod admin_tls;
pub mod cancellation;
pub mod catalogue;
pub mod environment;
pub mod feature;
pub mod flags;
pub mod in_force;
pub mod load;
pub mod log;
pub mod metrics;
pub mod modules;
pub mod named_secrets;
pub mod not_yet;
pub mod origin;
pub mod reloadable;
mod secret_files;
mod secrets;
pub mod show;
pub mod sources;
pub mod tracing;
pub mod unused;
pub mod worker_id;

mod validate;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use caf_actors::mask;
use caf_actors::settings::circuit_breaker::CircuitBreakerSettings;
use caf_actors::settings::policies::{QueuePolicySettings, RetryPolicySettings, TimeoutPolicySettings};
use caf_actors::settings::{
    ApprovalSettings, DlqSettings, DrainSettings, IdempotencySettings, LimitSettings, NatsSettings,
    OutboxSettings, OutputSettings, PayloadRefSettings, PoolsSettings, RetrySettings, SupervisionSettings,
    TenantSettings,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::admin_tls::{AdminClientSettings, AdminTlsSettings, ApprovalTlsSettings};
use self::cancellation::CancellationSettings;
use self::named_secrets::NamedSecretSettings;
use self::tracing::TracingSettings;
use caf_blocks::sandbox::SandboxSettings;
use caf_blocks::settings::{BlockSettings, ProviderSettings};
use caf_protocol::secret::Secret;

pub use self::metrics::MetricsSettings;
pub use log::{LogLevel, LogSettings};

/// The whole tree. `Debug` hides its secrets.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The process itself.
    pub worker: WorkerSettings,
    /// Broker.
    pub nats: NatsSettings,
    /// What this worker may hold.
    pub limits: LimitSettings,
    /// Slots and queues per resource class.
    pub pools: PoolsSettings,
    /// Admission to the pools.
    pub queue: QueueSettings,
    /// What is remembered of finished assignments.
    pub idempotency: IdempotencySettings,
    /// Calls per job.
    pub retry: RetrySettings,
    /// Dead letters.
    pub dlq: DlqSettings,
    /// Who may send jobs.
    pub tenants: TenantSettings,
    /// How long a shutdown may take.
    pub drain: DrainSettings,
    /// Endpoints for operators and monitoring.
    pub http: HttpSettings,
    /// Results that are not published yet.
    pub outbox: OutboxSettings,
    /// Outputs of jobs.
    pub outputs: OutputSettings,
    /// Where references to inputs may lead.
    pub payload_ref: PayloadRefSettings,
    /// Questions that jobs ask people.
    pub approvals: ApprovalSettings,
    /// Log.
    pub log: LogSettings,
    /// What is executed.
    pub blocks: BlockSettings,
    /// Values that jobs may name without knowing them.
    pub secrets: BTreeMap<String, NamedSecretSettings>,
    /// Who runs models.
    pub providers: BTreeMap<String, ProviderSettings>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = serde_json::to_value(self).map_err(|_| fmt::Error)?;
        mask::mask(&mut value);
        write!(f, "Settings {value}")
    }
}

/// The process itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerSettings {
    /// Identity in heartbeat, logs and journal; without it host name and a random suffix.
    pub id: Option<String>,
    /// Directory of outbox and journal; each worker of a host takes a numbered one in it for itself.
    pub state_dir: PathBuf,
    /// Time between signs of life, in milliseconds.
    pub heartbeat_interval_ms: u64,
    /// Event loops that run blocks which never block their thread.
    pub io_threads: usize,
    /// How often a failed actor is re-created before the node gives up.
    pub supervision: SupervisionSettings,
    /// Retries.
    pub retries: WorkerRetrySettings,
    /// Limits on operations.
    pub timeouts: WorkerTimeoutSettings,
    /// Queue management.
    pub queue: WorkerQueueSettings,
    /// Metrics.
    pub metrics: MetricsSettings,
    /// Traces.
    pub tracing: TracingSettings,
    /// Requests to cancel.
    pub cancellation: CancellationSettings,
    /// What keeps failing is not called.
    pub circuit_breaker: CircuitBreakerSettings,
    /// Jobs are only rehearsed.
    pub sandbox: SandboxSettings,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            id: None,
            state_dir: PathBuf::from("./state"),
            heartbeat_interval_ms: 5_000,
            io_threads: 1,
            supervision: SupervisionSettings::default(),
            retries: WorkerRetrySettings::default(),
            timeouts: WorkerTimeoutSettings::default(),
            queue: WorkerQueueSettings::default(),
            metrics: MetricsSettings::default(),
            tracing: TracingSettings::default(),
            cancellation: CancellationSettings::default(),
            circuit_breaker: CircuitBreakerSettings::default(),
            sandbox: SandboxSettings::default(),
        }
    }
}

/// Retries, by version.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerRetrySettings {
    /// Exponential backoff, classification and budget.
    pub v2: RetryPolicySettings,
}

/// Limits on operations, by version.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerTimeoutSettings {
    /// Limits on files, HTTP connections and all attempts together.
    pub v2: TimeoutPolicySettings,
}

/// Queue management, by version.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerQueueSettings {
    /// Bounded queues and overload answers.
    pub v2: QueuePolicySettings,
}

/// Admission to the pools, and the order in which they start jobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QueueSettings {
    /// What happens while pools are full; without it `refuse` with the queue flag. Without the flag pools are never full.
    pub admission: Option<Admission>,
    /// A waiting job gains one point of `options.priority` in so many milliseconds: one of priority 0 starts before all of
    /// its tenant that come more than a hundred times as much later. With 0 priorities mean nothing.
    pub ageing_ms_per_point: u64,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            admission: None,
            // The widest lead, of priority 100 over 0, is 10 s: a job gets its turn well within the default deadline.
            ageing_ms_per_point: 100,
        }
    }
}

/// What happens to assignments while pools are full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Admission {
    /// Pull while any pool has room; what does not fit is refused.
    Refuse,
    /// Pull only while every pool has room; nothing is refused.
    Wait,
}

/// Endpoints: IP address and port; port 0 picks a free one and logs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSettings {
    /// Health, liveness and readiness.
    pub health_addr: String,
    /// Metrics, while the flag of metrics is on.
    pub metrics_addr: String,
    /// For operators: what the node does, and what became of an assignment.
    pub admin_addr: String,
    /// Token without which nobody is answered there, but for the empty page; where `admin_addr` is not loopback, it or
    /// certificates of clients are needed.
    pub admin_token: Option<Secret>,
    /// Host names under which that port is reached, beside IP addresses and `localhost`.
    pub admin_hosts: Vec<String>,
    /// Certificate of that port, and authorities of its clients.
    pub admin_tls: AdminTlsSettings,
    /// Where links to approvals lead that are handed out to people; nothing listens without it.
    pub approval_addr: Option<String>,
    /// Certificate of that port.
    pub approval_tls: ApprovalTlsSettings,
    /// With what the commands that ask it trust it, and prove who they are.
    pub admin_client: AdminClientSettings,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            health_addr: "0.0.0.0:9091".to_owned(),
            metrics_addr: "0.0.0.0:9092".to_owned(),
            admin_addr: "127.0.0.1:9093".to_owned(),
            admin_token: None,
            admin_hosts: Vec::new(),
            admin_tls: AdminTlsSettings::default(),
            approval_addr: None,
            approval_tls: ApprovalTlsSettings::default(),
            admin_client: AdminClientSettings::default(),
        }
    }
}

#[cfg(test)]
mod tests;
