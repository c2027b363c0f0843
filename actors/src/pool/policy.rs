//! What happens to a job while the queue of its pool fills: which policy, and what it says (contract 4.2). Pure.
//!
//! Neighbours: the places of a pool ask at each admission and carry the answer out. Never looks at a clock or a queue
//! itself.

use std::time::Duration;

use caf_protocol::ack::OverloadStatus;
use serde::Serialize;

use crate::clock::whole_ms;
use crate::settings::policies::{DegradationLevel, OverloadThresholds, QueuePolicySettings, RejectionPolicy};

/// Shortest time for which a job is sent back to the broker, in milliseconds: an immediate return would come straight
/// back, thousands of times a second.
pub const SHORTEST_DEFERRAL_MS: u64 = 100;
/// Longest time that repetition alone keeps a job away, in milliseconds: so long a place may stay unused.
const LONGEST_BACKOFF_MS: u64 = 5_000;
/// Share of a queue from which on deferrals grow (contract 4.2), whatever counts as degraded.
const DEFERRALS_GROW_FROM: f64 = 0.5;

/// What is done about new jobs before a queue is full.
#[derive(Debug, Clone, PartialEq)]
pub enum Policy {
    /// Nothing.
    RejectNew,
    /// The one that waits longest makes room, unless it has waited longer than this.
    DropOldest {
        /// How long it may have waited.
        max_age: Duration,
    },
    /// They are sent back to the broker for a while.
    Defer {
        /// How long when the queue is all but full, in milliseconds.
        max_ms: u64,
    },
    /// They get less.
    Degrade {
        /// In a degraded pool.
        light: DegradationLevel,
        /// In an overloaded pool.
        medium: DegradationLevel,
    },
}

impl Policy {
    /// Its name, as settings and logs have it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::RejectNew => "reject_new",
            Self::DropOldest { .. } => "drop_oldest",
            Self::Defer { .. } => "defer",
            Self::Degrade { .. } => "degrade",
        }
    }

    /// The policy that is named; without one the first that is enabled, `reject_new` only where it is the default too.
    pub fn chosen(settings: &QueuePolicySettings) -> Self {
        let policies = &settings.policies;
        let drop_oldest = || Self::DropOldest {
            max_age: Duration::from_millis(policies.drop_oldest.max_drop_age_ms),
        };
        let defer = || Self::Defer {
            max_ms: policies.defer.max_defer_time_ms,
        };
        let levels = &policies.degrade.degradation_levels;
        let degrade = || Self::Degrade {
            light: levels.light.clone(),
            medium: levels.medium.clone(),
        };
        let reject_new = &policies.reject_new;
        match settings.rejection_policy {
            RejectionPolicy::DropOldest => drop_oldest(),
            RejectionPolicy::Defer => defer(),
            RejectionPolicy::Degrade => degrade(),
            RejectionPolicy::RejectNew if reject_new.enabled && reject_new.default => Self::RejectNew,
            RejectionPolicy::RejectNew if policies.drop_oldest.enabled => drop_oldest(),
            RejectionPolicy::RejectNew if policies.defer.enabled => defer(),
            RejectionPolicy::RejectNew if policies.degrade.enabled => degrade(),
            RejectionPolicy::RejectNew => Self::RejectNew,
        }
    }
}

/// How much less a job gets. `heavy` is never chosen: a critical pool rejects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The pool was degraded.
    Light,
    /// The pool was overloaded.
    Medium,
}

impl Level {
    /// Lower-case name, as in results and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Medium => "medium",
        }
    }
}

/// On what terms a job is let in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// It was degraded to this.
    pub degraded: Option<Level>,
    /// It is called once only.
    pub skip_retries: bool,
    /// It is called whatever its circuit breaker says.
    pub skip_circuit_breaker: bool,
    /// What is left of its time, above 0 and up to 1.
    pub time_factor: f64,
}

impl Terms {
    /// Nothing is taken away.
    pub const FULL: Self = Self {
        degraded: None,
        skip_retries: false,
        skip_circuit_breaker: false,
        time_factor: 1.0,
    };

    fn of(level: Level, loses: &DegradationLevel) -> Self {
        Self {
            degraded: Some(level),
            skip_retries: loses.skip_retries,
            skip_circuit_breaker: loses.skip_circuit_breaker,
            time_factor: if loses.reduce_timeout {
                loses.timeout_reduction_factor
            } else {
                1.0
            },
        }
    }
}

/// Size of a queue, and what happens as it fills.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueRules {
    /// Jobs that may wait.
    pub size: usize,
    /// From which share on the pool counts as what.
    pub thresholds: OverloadThresholds,
    /// What is done about it.
    pub policy: Policy,
}

/// What is known of a job that wants in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Newcomer {
    /// How long the job has waited that waits longest, if any does.
    pub oldest_waited: Option<Duration>,
    /// What is left of its time, where a broker delivers it again; nothing where none does.
    pub deferrable_within: Option<Duration>,
    /// How often it was delivered, this time included; 0 where that is not known.
    pub deliveries: u64,
}

/// What becomes of a job that wants in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Judgement {
    /// It is let in.
    LetIn(Terms),
    /// It is let in, and the one that waits longest leaves (row 16).
    DropOldest,
    /// It goes back to the broker (row 5).
    Defer {
        /// For so long, in milliseconds.
        delay_ms: u64,
    },
    /// Row 4: the queue is full.
    Full,
    /// Row 4: it should go back to the broker and has no time left for it.
    CannotDefer,
}

impl QueueRules {
    /// By these settings, for a queue of `size`.
    pub fn of(settings: &QueuePolicySettings, size: usize) -> Self {
        Self {
            size,
            thresholds: settings.overload_thresholds,
            policy: Policy::chosen(settings),
        }
    }

    /// The word for `depth` waiting jobs (contract 4.1).
    pub fn status(&self, depth: usize) -> OverloadStatus {
        let used = self.used(depth);
        match () {
            () if depth == 0 => OverloadStatus::Healthy,
            () if used >= self.thresholds.critical => OverloadStatus::Critical,
            () if used >= self.thresholds.overloaded => OverloadStatus::Overloaded,
            () if used >= self.thresholds.degraded => OverloadStatus::Degraded,
            () => OverloadStatus::Healthy,
        }
    }

    /// Whether nobody else may wait.
    pub fn is_full(&self, depth: usize) -> bool {
        depth >= self.size || self.status(depth) == OverloadStatus::Critical
    }

    /// Most jobs that may wait: fewer than the size when the critical threshold is below 1.
    pub fn most(&self) -> usize {
        let (mut low, mut high) = (0, self.size);
        while low < high {
            let middle = low.midpoint(high);
            if self.is_full(middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }

    /// What becomes of a job that comes while `depth` others wait and no slot is free.
    pub fn judge(&self, depth: usize, newcomer: Newcomer) -> Judgement {
        if self.is_full(depth) {
            return Judgement::Full;
        }
        let status = self.status(depth);
        match &self.policy {
            Policy::DropOldest { max_age } if status >= OverloadStatus::Overloaded => {
                if newcomer.oldest_waited.is_none_or(|waited| waited <= *max_age) {
                    Judgement::DropOldest
                } else {
                    Judgement::LetIn(Terms::FULL)
                }
            }
            Policy::Defer { max_ms } if status >= OverloadStatus::Degraded => {
                match newcomer.deferrable_within {
                    Some(left) => deferral(self.used(depth), *max_ms, newcomer.deliveries, whole_ms(left)),
                    // There is room, and nobody to send it back to.
                    None => Judgement::LetIn(Terms::FULL),
                }
            }
            Policy::Degrade { medium, .. } if status >= OverloadStatus::Overloaded => {
                Judgement::LetIn(Terms::of(Level::Medium, medium))
            }
            Policy::Degrade { light, .. } if status >= OverloadStatus::Degraded => {
                Judgement::LetIn(Terms::of(Level::Light, light))
            }
            _ => Judgement::LetIn(Terms::FULL),
        }
    }

    /// The share of the queue that is used. Division rounds to the nearest: four of five is exactly what 0.8 is.
    fn used(&self, depth: usize) -> f64 {
        float(depth) / float(self.size.max(1))
    }
}

/// (u − 0.5)·2·max, at least the shortest time, at most what is left. From the second delivery on also at least what
/// doubles with each, up to `max_ms` and a few seconds: a queue that stays half full would have everything come round at
/// the shortest time. That takes no more than half of what is left, or a job would come back only to time out.
fn deferral(used: f64, max_ms: u64, deliveries: u64, left_ms: u64) -> Judgement {
    if left_ms < SHORTEST_DEFERRAL_MS {
        return Judgement::CannotDefer;
    }
    let share = ((used - DEFERRALS_GROW_FROM) * 2.0).clamp(0.0, 1.0);
    let wanted = Duration::from_millis(max_ms).mul_f64(share);
    let doublings = u32::try_from(deliveries.saturating_sub(1)).unwrap_or(u32::MAX);
    let backoff_ms = SHORTEST_DEFERRAL_MS
        .saturating_mul(2u64.saturating_pow(doublings))
        .min(max_ms)
        .min(LONGEST_BACKOFF_MS)
        .min(left_ms / 2);
    Judgement::Defer {
        delay_ms: whole_ms(wanted)
            .max(backoff_ms)
            .max(SHORTEST_DEFERRAL_MS)
            .min(left_ms),
    }
}

fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
