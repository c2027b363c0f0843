//! How often an error is tried again and after which waits: the assignment's numbers come before those of its block for
//! this error, these before those of its block, these before the category's, these before the default policy's
//! (contract 7.2).

use caf_protocol::outcome::Failure;

use super::classification::{category_attempts, status_of};
use crate::settings::policies::{ErrorOverride, Jitter, MAX_POLICY_MS, RetryPolicySettings};

/// What an assignment asks for. It never makes an error retryable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// Total calls.
    pub max_attempts: Option<u32>,
    /// Wait before the first retry, in milliseconds.
    pub backoff_ms: Option<u64>,
}

/// The numbers for one error of one job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Numbers {
    /// Total calls, at least 1.
    pub max_attempts: u32,
    /// Wait before the first retry, in milliseconds.
    pub base_delay_ms: u64,
    /// Longest wait, in milliseconds.
    pub max_delay_ms: u64,
    /// How waits are spread.
    pub jitter: Jitter,
    /// By what the wait grows from retry to retry.
    pub exponential_base: f64,
}

/// The family of blocks that a job type belongs to: up to its first dot.
pub fn family(job_type: &str) -> &str {
    job_type.split('.').next().unwrap_or(job_type)
}

impl Numbers {
    /// The numbers of `policy` for a job of `family` that ended with `failure`.
    pub fn resolve(policy: &RetryPolicySettings, family: &str, asked: Asked, failure: &Failure) -> Self {
        let block = policy.block_policies.get(family);
        let status = status_of(failure).map(|status| status.to_string());
        // The status says more than the code.
        let names = status.as_deref().into_iter().chain([failure.code.as_str()]);
        let own = block.map(|block| {
            let overrides = names.filter_map(|name| block.error_overrides.get(name).cloned());
            overrides.chain([block.numbers()]).collect::<Vec<_>>()
        });
        let layers = own.unwrap_or_default();
        let default = &policy.default_policy;
        Self {
            max_attempts: asked
                .max_attempts
                .or_else(|| first(&layers, |layer| layer.max_attempts))
                .or_else(|| category_attempts(&policy.error_classification, failure))
                .unwrap_or(default.max_attempts)
                .max(1),
            base_delay_ms: asked
                .backoff_ms
                .map(|base| base.min(MAX_POLICY_MS))
                .or_else(|| first(&layers, |layer| layer.base_delay_ms))
                .unwrap_or(default.base_delay_ms),
            max_delay_ms: first(&layers, |layer| layer.max_delay_ms).unwrap_or(default.max_delay_ms),
            jitter: first(&layers, |layer| layer.jitter_type).unwrap_or(default.jitter_type),
            exponential_base: first(&layers, |layer| layer.exponential_base)
                .unwrap_or(default.exponential_base),
        }
    }
}

/// What the first layer that says anything says.
fn first<T>(layers: &[ErrorOverride], field: impl Fn(&ErrorOverride) -> Option<T>) -> Option<T> {
    layers.iter().find_map(field)
}
