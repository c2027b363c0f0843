//! Limits on single operations and on all attempts together (contract 7.3).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::MAX_POLICY_MS;
use crate::settings::rules::Rules;

/// Section `worker.timeouts.v2`. The deadline of an assignment caps all of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TimeoutPolicySettings {
    /// Whether it is in force.
    pub enabled: bool,
    /// Files.
    pub fs_operations: FsOperationLimits,
    /// HTTP requests.
    pub http_connection: HttpConnectionLimits,
    /// All attempts of a job together.
    pub retry_budget: TotalLimit,
}

/// Limits on files; running out ends the job as `timeout`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FsOperationLimits {
    /// Longest read, in milliseconds.
    #[schemars(range(min = 1, max = MAX_POLICY_MS))]
    pub read_timeout_ms: u64,
    /// Longest write, in milliseconds.
    #[schemars(range(min = 1, max = MAX_POLICY_MS))]
    pub write_timeout_ms: u64,
    /// Longest removal, in milliseconds.
    #[schemars(range(min = 1, max = MAX_POLICY_MS))]
    pub delete_timeout_ms: u64,
}

impl Default for FsOperationLimits {
    fn default() -> Self {
        Self {
            read_timeout_ms: 5_000,
            write_timeout_ms: 10_000,
            delete_timeout_ms: 5_000,
        }
    }
}

/// Limits on one HTTP request; running out fails the attempt, and another may follow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConnectionLimits {
    /// Longest name lookup, and longest TCP and TLS handshake, in milliseconds.
    #[schemars(range(min = 1, max = MAX_POLICY_MS))]
    pub connect_timeout_ms: u64,
    /// Longest wait for the head of the answer (connecting counts too), and longest reception of its body, in milliseconds.
    #[schemars(range(min = 1, max = MAX_POLICY_MS))]
    pub read_timeout_ms: u64,
}

impl Default for HttpConnectionLimits {
    fn default() -> Self {
        Self {
            connect_timeout_ms: 5_000,
            read_timeout_ms: 30_000,
        }
    }
}

/// Limit on all attempts of a job and the waits between them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TotalLimit {
    /// Most time, in milliseconds, from the first attempt on; running out ends the job as `timeout`.
    #[schemars(range(min = 1, max = MAX_POLICY_MS))]
    pub total_timeout_ms: u64,
    /// Whether it holds across attempts; otherwise each attempt has it for itself.
    pub enforce_across_retries: bool,
}

impl Default for TotalLimit {
    fn default() -> Self {
        Self {
            total_timeout_ms: 30_000,
            enforce_across_retries: true,
        }
    }
}

impl TimeoutPolicySettings {
    /// Checks that every limit can act.
    pub fn validate(&self, rules: &mut Rules) {
        let range = 1..=MAX_POLICY_MS;
        let fs = &self.fs_operations;
        rules.section("fs_operations", |rules| {
            rules.range("read_timeout_ms", fs.read_timeout_ms, range.clone());
            rules.range("write_timeout_ms", fs.write_timeout_ms, range.clone());
            rules.range("delete_timeout_ms", fs.delete_timeout_ms, range.clone());
        });
        let http = &self.http_connection;
        rules.section("http_connection", |rules| {
            rules.range("connect_timeout_ms", http.connect_timeout_ms, range.clone());
            rules.range("read_timeout_ms", http.read_timeout_ms, range.clone());
        });
        rules.section("retry_budget", |rules| {
            rules.range("total_timeout_ms", self.retry_budget.total_timeout_ms, range);
        });
    }
}
