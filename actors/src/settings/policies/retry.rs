//! Which failures are tried again, how often, and after which waits (contract 7.2).

use std::collections::BTreeMap;

use caf_protocol::error_code::ErrorCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{MAX_ATTEMPTS, MAX_POLICY_MS};
use crate::settings::rules::Rules;

/// Section `worker.retries.v2`. A request's own numbers come before those of its block, these before those of the
/// category of the error, these before the default policy. Whether an error is tried again at all, only the
/// classification says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryPolicySettings {
    /// Whether it is in force.
    pub enabled: bool,
    /// What holds where nothing else says.
    pub default_policy: BackoffSettings,
    /// Which errors are tried again.
    pub error_classification: ErrorClassification,
    /// By family of blocks: the job type up to its first dot, such as `http`.
    pub block_policies: BTreeMap<String, BlockPolicy>,
}

/// Calls and waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BackoffSettings {
    /// Total calls.
    #[schemars(range(min = 0, max = MAX_ATTEMPTS))]
    pub max_attempts: u32,
    /// Wait before the first retry, in milliseconds, before jitter.
    #[schemars(range(min = 0, max = MAX_POLICY_MS))]
    pub base_delay_ms: u64,
    /// Longest wait, in milliseconds, before jitter.
    #[schemars(range(min = 0, max = MAX_POLICY_MS))]
    pub max_delay_ms: u64,
    /// How waits are spread.
    pub jitter_type: Jitter,
    /// By what the wait grows from retry to retry.
    pub exponential_base: f64,
    /// Most time for all calls and waits together, in milliseconds, from the first call on.
    #[schemars(range(min = 1, max = MAX_POLICY_MS))]
    pub retry_budget_ms: u64,
}

impl Default for BackoffSettings {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            base_delay_ms: 100,
            max_delay_ms: 30_000,
            jitter_type: Jitter::Full,
            exponential_base: 2.0,
            retry_budget_ms: 30_000,
        }
    }
}

/// How a wait of `b` is spread, so that callers that failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Jitter {
    /// Not at all: `b`.
    None,
    /// Anywhere from 0 to `b`.
    Full,
    /// Anywhere from `b`/2 to `b`.
    Equal,
}

/// Which errors are tried again, by category. A category that says no number of calls leaves it to the default policy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ErrorClassification {
    /// 1xxx: the inputs are wrong.
    pub validation_errors: CategorySettings<bool>,
    /// 2xxx: the work failed.
    pub execution_errors: CategorySettings<ExecutionRetryable>,
    /// 3xxx: the other side failed.
    pub network_errors: NetworkCategory,
    /// 4xxx: the worker failed.
    pub system_errors: CategorySettings<SystemRetryable>,
    /// 5xxx: the job was ended.
    pub cancellation_errors: CategorySettings<bool>,
}

/// A category of errors: which of them are tried again, and how often.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "CategorySettings_{T}")]
pub struct CategorySettings<T: Default> {
    /// Which.
    pub retryable: T,
    /// Total calls, where neither request nor block say; 0 counts as 1.
    pub max_attempts: Option<u32>,
}

/// Errors of the work itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExecutionRetryable {
    /// RESOURCE_UNAVAILABLE.
    pub resource_unavailable: bool,
    /// EXECUTION_FAILED.
    pub execution_failed: bool,
    /// PERMISSION_DENIED.
    pub permission_denied: bool,
    /// QUOTA_EXCEEDED.
    pub quota_exceeded: bool,
}

impl Default for ExecutionRetryable {
    fn default() -> Self {
        Self {
            resource_unavailable: true,
            execution_failed: false,
            permission_denied: false,
            quota_exceeded: false,
        }
    }
}

/// Errors of the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SystemRetryable {
    /// INTERNAL_ERROR.
    pub internal_error: bool,
    /// SYSTEM_OVERLOAD.
    pub system_overload: bool,
}

impl Default for SystemRetryable {
    fn default() -> Self {
        Self {
            internal_error: false,
            system_overload: true,
        }
    }
}

/// Errors of the other side.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkCategory {
    /// Which are tried again.
    pub retryable: NetworkRetryable,
    /// Total calls, where neither request nor block say; 0 counts as 1.
    pub max_attempts: Option<u32>,
    /// Which HTTP statuses are tried again where `http_error` is `conditional`.
    pub http_status_mapping: StatusMapping,
}

/// Which errors of the other side are tried again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkRetryable {
    /// NETWORK_ERROR.
    pub network_error: bool,
    /// CONNECTION_TIMEOUT.
    pub connection_timeout: bool,
    /// HTTP_ERROR: `conditional` by status, or true or false for all.
    pub http_error: HttpErrorRule,
}

impl Default for NetworkRetryable {
    fn default() -> Self {
        Self {
            network_error: true,
            connection_timeout: true,
            http_error: HttpErrorRule::Word(ConditionalWord::Conditional),
        }
    }
}

/// When HTTP_ERROR is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum HttpErrorRule {
    /// Always or never.
    Flag(bool),
    /// By status.
    Word(ConditionalWord),
}

/// The one word that stands for "by status".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConditionalWord {
    /// By status.
    Conditional,
}

/// Which HTTP statuses are tried again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StatusMapping {
    /// 400 to 499.
    #[serde(rename = "4xx")]
    pub client: StatusClass,
    /// 500 to 599.
    #[serde(rename = "5xx")]
    pub server: StatusClass,
}

impl Default for StatusMapping {
    fn default() -> Self {
        let exceptions = ["408", "429"].map(|status| (status.to_owned(), true));
        Self {
            client: StatusClass {
                retryable: false,
                exceptions: exceptions.into(),
            },
            server: StatusClass {
                retryable: true,
                exceptions: BTreeMap::new(),
            },
        }
    }
}

/// A class of statuses.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StatusClass {
    /// Whether they are tried again.
    pub retryable: bool,
    /// Single statuses for which it is otherwise.
    pub exceptions: BTreeMap<String, bool>,
}

/// What a block says otherwise than category and default policy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BlockPolicy {
    /// Total calls.
    #[schemars(range(min = 0, max = MAX_ATTEMPTS))]
    pub max_attempts: Option<u32>,
    /// Wait before the first retry, in milliseconds.
    #[schemars(range(min = 0, max = MAX_POLICY_MS))]
    pub base_delay_ms: Option<u64>,
    /// Longest wait, in milliseconds.
    #[schemars(range(min = 0, max = MAX_POLICY_MS))]
    pub max_delay_ms: Option<u64>,
    /// How waits are spread.
    pub jitter_type: Option<Jitter>,
    /// By what the wait grows from retry to retry.
    pub exponential_base: Option<f64>,
    /// Most time for all calls and waits together, in milliseconds.
    #[schemars(range(min = 1, max = MAX_POLICY_MS))]
    pub retry_budget_ms: Option<u64>,
    /// Other numbers for single errors: an HTTP status such as `429`, or a code such as `NETWORK_ERROR`.
    pub error_overrides: BTreeMap<String, ErrorOverride>,
}

/// Numbers for one error.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ErrorOverride {
    /// Total calls.
    #[schemars(range(min = 0, max = MAX_ATTEMPTS))]
    pub max_attempts: Option<u32>,
    /// Wait before the first retry, in milliseconds.
    #[schemars(range(min = 0, max = MAX_POLICY_MS))]
    pub base_delay_ms: Option<u64>,
    /// Longest wait, in milliseconds.
    #[schemars(range(min = 0, max = MAX_POLICY_MS))]
    pub max_delay_ms: Option<u64>,
    /// How waits are spread.
    pub jitter_type: Option<Jitter>,
    /// By what the wait grows from retry to retry.
    pub exponential_base: Option<f64>,
}

impl RetryPolicySettings {
    /// Checks numbers and names.
    pub fn validate(&self, rules: &mut Rules) {
        let policy = &self.default_policy;
        rules.section("default_policy", |rules| {
            let numbers = ErrorOverride {
                max_attempts: Some(policy.max_attempts),
                base_delay_ms: Some(policy.base_delay_ms),
                max_delay_ms: Some(policy.max_delay_ms),
                jitter_type: None,
                exponential_base: Some(policy.exponential_base),
            };
            numbers.validate(rules);
            rules.range("retry_budget_ms", policy.retry_budget_ms, 1..=MAX_POLICY_MS);
        });
        rules.section("error_classification", |rules| {
            self.error_classification.validate(rules)
        });
        rules.section("block_policies", |rules| {
            for (family, policy) in &self.block_policies {
                rules.section(family, |rules| policy.validate(rules));
            }
        });
    }
}

impl ErrorClassification {
    fn validate(&self, rules: &mut Rules) {
        for (name, retryable) in [
            ("validation_errors", self.validation_errors.retryable),
            ("cancellation_errors", self.cancellation_errors.retryable),
        ] {
            rules.section(name, |rules| {
                rules.require("retryable", !retryable, "must be false: another try cannot help");
            });
        }
        let mapping = &self.network_errors.http_status_mapping;
        rules.section("network_errors", |rules| {
            rules.section("http_status_mapping", |rules| {
                for (name, class, first) in [("4xx", &mapping.client, '4'), ("5xx", &mapping.server, '5')] {
                    rules.section(name, |rules| {
                        rules.section("exceptions", |rules| {
                            for status in class.exceptions.keys() {
                                let holds = is_status(status) && status.starts_with(first);
                                rules.require(status, holds, format!("must be a status of {name}"));
                            }
                        });
                    });
                }
            });
        });
    }
}

impl BlockPolicy {
    fn validate(&self, rules: &mut Rules) {
        self.numbers().validate(rules);
        rules.range(
            "retry_budget_ms",
            self.retry_budget_ms.unwrap_or(1),
            1..=MAX_POLICY_MS,
        );
        rules.section("error_overrides", |rules| {
            for (error, numbers) in &self.error_overrides {
                let holds = is_status(error) || ErrorCode::ALL.iter().any(|code| code.as_str() == error);
                rules.require(
                    error,
                    holds,
                    "must be an HTTP status from 400 to 599, or a code such as NETWORK_ERROR",
                );
                rules.section(error, |rules| numbers.validate(rules));
            }
        });
    }

    /// Its numbers in the form of those for one error.
    pub fn numbers(&self) -> ErrorOverride {
        ErrorOverride {
            max_attempts: self.max_attempts,
            base_delay_ms: self.base_delay_ms,
            max_delay_ms: self.max_delay_ms,
            jitter_type: self.jitter_type,
            exponential_base: self.exponential_base,
        }
    }
}

impl ErrorOverride {
    fn validate(&self, rules: &mut Rules) {
        rules.range("max_attempts", self.max_attempts.unwrap_or(1), 0..=MAX_ATTEMPTS);
        rules.range(
            "base_delay_ms",
            self.base_delay_ms.unwrap_or(1),
            0..=MAX_POLICY_MS,
        );
        rules.range("max_delay_ms", self.max_delay_ms.unwrap_or(1), 0..=MAX_POLICY_MS);
        let grows = self
            .exponential_base
            .is_none_or(|base| (1.0..=10.0).contains(&base));
        rules.require("exponential_base", grows, "must be from 1 to 10");
    }
}

/// Whether this is an HTTP status that is an error.
fn is_status(text: &str) -> bool {
    text.len() == 3
        && text
            .parse::<u16>()
            .is_ok_and(|status| (400..=599).contains(&status))
}
