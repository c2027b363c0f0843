//! Bounded queues, and what happens as they fill (contract 4.1, 4.2).

use caf_protocol::block::ResourceClass;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{MAX_POLICY_MS, MAX_QUEUE, MAX_SLOTS};
use crate::settings::rules::Rules;

/// Section `worker.queue.v2`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QueuePolicySettings {
    /// Whether it is in force.
    pub enabled: bool,
    /// Jobs that may wait in each pool beyond the running ones, where neither `resource_pools` nor `pools` says.
    #[schemars(range(min = 1, max = MAX_QUEUE))]
    pub max_queue_size: usize,
    /// What happens before a queue is full. `reject_new` leaves the choice to `policies`; a full queue always rejects.
    pub rejection_policy: RejectionPolicy,
    /// From which share of its queue on a pool counts as what.
    pub overload_thresholds: OverloadThresholds,
    /// The policies and their numbers.
    pub policies: RejectionPolicies,
    /// Numbers of single pools.
    pub resource_pools: ResourcePools,
}

impl Default for QueuePolicySettings {
    fn default() -> Self {
        Self {
            enabled: false,
            max_queue_size: 1_000,
            rejection_policy: RejectionPolicy::RejectNew,
            overload_thresholds: OverloadThresholds::default(),
            policies: RejectionPolicies::default(),
            resource_pools: ResourcePools::default(),
        }
    }
}

/// What happens to jobs while a queue fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RejectionPolicy {
    /// All are let in until the queue is full.
    RejectNew,
    /// The one that waits longest makes room.
    DropOldest,
    /// New ones are sent back to the broker for a while.
    Defer,
    /// New ones get less: no retries, less time.
    Degrade,
}

/// Shares of a queue; ascending.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OverloadThresholds {
    /// From here on `degraded`.
    pub degraded: f64,
    /// From here on `overloaded`.
    pub overloaded: f64,
    /// From here on `critical`.
    pub critical: f64,
}

impl Default for OverloadThresholds {
    fn default() -> Self {
        Self {
            degraded: 0.5,
            overloaded: 0.8,
            critical: 1.0,
        }
    }
}

/// The policies. The first that is enabled counts, in this order; `reject_new` only when it is the default too.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RejectionPolicies {
    /// All are let in until the queue is full.
    pub reject_new: RejectNewSettings,
    /// The one that waits longest makes room.
    pub drop_oldest: DropOldestSettings,
    /// New ones are sent back to the broker for a while.
    pub defer: DeferSettings,
    /// New ones get less.
    pub degrade: DegradeSettings,
}

/// Policy `reject_new`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RejectNewSettings {
    /// Whether it may be chosen.
    pub enabled: bool,
    /// Whether it comes before all others.
    pub default: bool,
}

impl Default for RejectNewSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            default: true,
        }
    }
}

/// Policy `drop_oldest`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DropOldestSettings {
    /// Whether it may be chosen.
    pub enabled: bool,
    /// A job that has waited longer than this is not dropped any more, in milliseconds.
    #[schemars(range(min = 1, max = MAX_POLICY_MS))]
    pub max_drop_age_ms: u64,
}

impl Default for DropOldestSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            max_drop_age_ms: 60_000,
        }
    }
}

/// Policy `defer`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeferSettings {
    /// Whether it may be chosen.
    pub enabled: bool,
    /// How long a job stays away when the queue is all but full, in milliseconds; nothing when it is half full.
    #[schemars(range(min = 100, max = MAX_POLICY_MS))]
    pub max_defer_time_ms: u64,
}

impl Default for DeferSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            max_defer_time_ms: 30_000,
        }
    }
}

/// Policy `degrade`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DegradeSettings {
    /// Whether it may be chosen.
    pub enabled: bool,
    /// What a job loses, by level.
    pub degradation_levels: DegradationLevels,
}

/// Levels: a degraded pool takes jobs on at `light`, an overloaded one at `medium`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DegradationLevels {
    /// In a degraded pool.
    pub light: DegradationLevel,
    /// In an overloaded pool.
    pub medium: DegradationLevel,
    /// Never chosen: a critical pool rejects.
    pub heavy: DegradationLevel,
}

impl Default for DegradationLevels {
    fn default() -> Self {
        let reduced = |factor| DegradationLevel {
            skip_retries: true,
            reduce_timeout: true,
            timeout_reduction_factor: factor,
            skip_circuit_breaker: false,
        };
        Self {
            light: DegradationLevel::default(),
            medium: reduced(0.8),
            heavy: DegradationLevel {
                skip_circuit_breaker: true,
                ..reduced(0.5)
            },
        }
    }
}

/// What a job loses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DegradationLevel {
    /// It is called once only.
    pub skip_retries: bool,
    /// It gets less time.
    pub reduce_timeout: bool,
    /// How much of its time is left to it, above 0 and up to 1.
    pub timeout_reduction_factor: f64,
    /// It goes past the circuit breaker.
    pub skip_circuit_breaker: bool,
}

impl Default for DegradationLevel {
    fn default() -> Self {
        Self {
            skip_retries: false,
            reduce_timeout: false,
            timeout_reduction_factor: 1.0,
            skip_circuit_breaker: false,
        }
    }
}

/// Numbers of single pools.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResourcePools {
    /// Computing.
    pub cpu: PoolQueueSettings,
    /// Work on an accelerator.
    pub gpu: PoolQueueSettings,
    /// Waiting for files and networks.
    pub io: PoolQueueSettings,
}

impl ResourcePools {
    /// Those of the pool for `class`.
    pub fn get(&self, class: ResourceClass) -> &PoolQueueSettings {
        match class {
            ResourceClass::Cpu => &self.cpu,
            ResourceClass::Gpu => &self.gpu,
            ResourceClass::Io => &self.io,
        }
    }
}

/// Numbers of one pool, in place of those under `pools`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PoolQueueSettings {
    /// Jobs that may wait beyond the running ones.
    #[schemars(range(min = 1, max = MAX_QUEUE))]
    pub max_queue_size: Option<usize>,
    /// Jobs that run at once.
    #[schemars(range(min = 1, max = MAX_SLOTS))]
    pub max_concurrency: Option<usize>,
}

impl QueuePolicySettings {
    /// Checks that thresholds ascend and numbers can act.
    pub fn validate(&self, rules: &mut Rules) {
        rules.range("max_queue_size", self.max_queue_size, 1..=MAX_QUEUE);
        rules.section("overload_thresholds", |rules| {
            self.overload_thresholds.validate(rules)
        });
        rules.section("policies", |rules| self.policies.validate(rules));
        rules.section("resource_pools", |rules| {
            for class in ResourceClass::ALL {
                let pool = self.resource_pools.get(class);
                rules.section(class.as_str(), |rules| {
                    rules.range("max_queue_size", pool.max_queue_size.unwrap_or(1), 1..=MAX_QUEUE);
                    rules.range(
                        "max_concurrency",
                        pool.max_concurrency.unwrap_or(1),
                        1..=MAX_SLOTS,
                    );
                });
            }
        });
    }
}

impl OverloadThresholds {
    fn validate(self, rules: &mut Rules) {
        let Self {
            degraded,
            overloaded,
            critical,
        } = self;
        let share = |value: f64| value > 0.0 && value <= 1.0;
        rules.require("degraded", share(degraded), "must be above 0 and at most 1");
        rules.require("overloaded", share(overloaded), "must be above 0 and at most 1");
        rules.require("critical", share(critical), "must be above 0 and at most 1");
        rules.relate(
            "degraded",
            "overloaded",
            degraded <= overloaded,
            "must not exceed overloaded",
        );
        rules.relate(
            "overloaded",
            "critical",
            overloaded <= critical,
            "must not exceed critical",
        );
    }
}

impl RejectionPolicies {
    fn validate(&self, rules: &mut Rules) {
        rules.section("drop_oldest", |rules| {
            rules.range(
                "max_drop_age_ms",
                self.drop_oldest.max_drop_age_ms,
                1..=MAX_POLICY_MS,
            );
        });
        rules.section("defer", |rules| {
            rules.range(
                "max_defer_time_ms",
                self.defer.max_defer_time_ms,
                100..=MAX_POLICY_MS,
            );
        });
        let levels = &self.degrade.degradation_levels;
        rules.section("degrade", |rules| {
            rules.section("degradation_levels", |rules| {
                for (name, level) in [
                    ("light", &levels.light),
                    ("medium", &levels.medium),
                    ("heavy", &levels.heavy),
                ] {
                    rules.section(name, |rules| {
                        let factor = level.timeout_reduction_factor;
                        let holds = factor > 0.0 && factor <= 1.0;
                        rules.require("timeout_reduction_factor", holds, "must be above 0 and at most 1");
                    });
                }
            });
        });
    }
}
