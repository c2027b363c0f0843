//! The three policies behind the CP2 flags: retry, timeouts, queue (contract 4.2, 7.2, 7.3). One file each, and one
//! section `v2` each below `worker` in the settings.
//!
//! Neighbours: the node reads them and decides which are in force; pools, block workers and blocks are given what
//! follows from them. Shapes, defaults and rules only.

mod queue;
mod retry;
mod timeouts;

pub use queue::{
    DeferSettings, DegradationLevel, DegradationLevels, DegradeSettings, DropOldestSettings,
    OverloadThresholds, PoolQueueSettings, QueuePolicySettings, RejectNewSettings, RejectionPolicies,
    RejectionPolicy, ResourcePools,
};
pub use retry::{
    BackoffSettings, BlockPolicy, CategorySettings, ConditionalWord, ErrorClassification, ErrorOverride,
    ExecutionRetryable, HttpErrorRule, Jitter, NetworkCategory, NetworkRetryable, RetryPolicySettings,
    StatusClass, StatusMapping, SystemRetryable,
};
pub use timeouts::{FsOperationLimits, HttpConnectionLimits, TimeoutPolicySettings, TotalLimit};

/// Longest time that any of the policies may name, in milliseconds: no deadline is longer.
pub const MAX_POLICY_MS: u64 = 3_600_000;
/// Most calls that any of the policies may name.
const MAX_ATTEMPTS: u32 = 100;
/// Most jobs that may wait in a queue.
const MAX_QUEUE: usize = 1_000_000;
/// Most jobs that a pool may run at once.
const MAX_SLOTS: usize = 1_024;
