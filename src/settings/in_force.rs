//! Which CP2 features are in force, and with what numbers. A flag that is on while no source says anything of its policy
//! leaves its feature as in CP1, with a warning (contract 7.1).
//!
//! Neighbours: made once from what [`super::load`] found; `serve`, `exec` and the dry run build the pipeline from it.
//! Nothing else asks a flag.

use std::sync::Arc;

use caf_actors::block_worker::retry::RetryRules;
use caf_actors::pool::policy::Policy;
use caf_actors::settings::PoolsSettings;
use caf_actors::settings::circuit_breaker::CircuitBreakerSettings;
use caf_actors::settings::policies::{
    QueuePolicySettings, RejectionPolicy, RetryPolicySettings, TimeoutPolicySettings,
};
use caf_actors::tenants::Tenants;
use caf_protocol::block::ResourceClass;

use super::environment::split;
use super::feature::Feature;
use super::load::Ranks;
use super::origin::KeyPath;
use super::{Admission, Settings};

mod advice;

/// What is in force beyond CP1.
#[derive(Debug, Clone, PartialEq)]
pub struct InForce {
    /// Retries by policy; nothing is CP1's fixed plan.
    pub retry: Option<RetryPolicySettings>,
    /// Limits on operations; nothing is the deadline alone.
    pub timeouts: Option<TimeoutPolicySettings>,
    /// Bounded queues; nothing is a queue that only held permits bound.
    pub queue: Option<QueuePolicySettings>,
    /// Whether anything is measured, and shown on a port.
    pub metrics: bool,
    /// Whether spans are sent to a collector.
    pub tracing: bool,
    /// Whether requests to cancel are read and obeyed.
    pub cancellation: bool,
    /// When nothing is called any more that keeps failing; nothing is never.
    pub circuit_breaker: Option<CircuitBreakerSettings>,
    /// Slots and queue of each pool, in the order of [`ResourceClass::ALL`].
    pools: [PoolSize; 3],
    /// The keys that the slots of each pool come from, in the same order.
    slots_keys: [String; 3],
    /// What happens while pools are full.
    pub admission: Admission,
    /// Who may send jobs, and how much each may use. May change while the node runs.
    pub tenants: Tenants,
    /// Flags that are on, and parts of policies, that have no effect: each with a sentence for the operator.
    pub warnings: Vec<String>,
}

/// Size of one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSize {
    /// Jobs that run at once.
    pub slots: usize,
    /// Jobs that may wait; nothing when only held permits bound them.
    pub queue: Option<usize>,
}

impl InForce {
    /// From settings, and what the sources said.
    pub fn of(settings: &Settings, said: &Ranks) -> Self {
        Self::with_admission(settings, said, Admission::Refuse)
    }

    /// The same for a run without a broker: nobody delivers again what is refused, and the rest of the input can wait.
    pub fn without_broker(settings: &Settings, said: &Ranks) -> Self {
        Self::with_admission(settings, said, Admission::Wait)
    }

    /// `bounded` is the admission to bounded queues where the settings do not say.
    fn with_admission(settings: &Settings, said: &Ranks, bounded: Admission) -> Self {
        let Settings { worker, pools, .. } = settings;
        let mut warnings = Vec::new();
        let mut gate = |feature: Feature, is_on: bool| {
            let configured = is_configured(said, feature);
            if is_on && !configured {
                warnings.push(no_policy(feature));
            }
            is_on && configured
        };
        let retry = gate(Feature::Retry, worker.retries.v2.enabled).then(|| worker.retries.v2.clone());
        let timeouts =
            gate(Feature::Timeouts, worker.timeouts.v2.enabled).then(|| worker.timeouts.v2.clone());
        let mut queue = gate(Feature::Queue, worker.queue.v2.enabled).then(|| worker.queue.v2.clone());
        let metrics = gate(Feature::Metrics, worker.metrics.enabled);
        let tracing = gate(Feature::Tracing, worker.tracing.enabled);
        let cancellation = gate(Feature::Cancellation, worker.cancellation.enabled);
        let circuit_breaker = gate(Feature::CircuitBreaker, worker.circuit_breaker.enabled)
            .then(|| worker.circuit_breaker.clone());
        warnings.extend(retry.iter().flat_map(advice::of_retry));
        warnings.extend(queue.iter().flat_map(advice::of_queue));
        let admission = settings.queue.admission.unwrap_or(match queue {
            Some(_) => bounded,
            None => Admission::Wait,
        });
        if let (Admission::Wait, Some(policy)) = (admission, &mut queue) {
            warnings.extend(refuse_nothing(policy));
        }
        let chosen = ResourceClass::ALL.map(|class| match &queue {
            None => Chosen {
                slots: (pools.get(class).max_concurrency, own_slots_key(class)),
                queue: None,
            },
            Some(policy) => Chosen::of(settings, said, class, policy, &mut warnings),
        });
        Self {
            pools: chosen.each_ref().map(Chosen::size),
            slots_keys: chosen.map(|pool| pool.slots.1),
            retry,
            timeouts,
            queue,
            metrics,
            tracing,
            cancellation,
            circuit_breaker,
            admission,
            tenants: Tenants::new(settings.tenants.clone()),
            warnings,
        }
    }

    /// Whether a feature is in force; otherwise it behaves as in CP1.
    pub fn has(&self, feature: Feature) -> bool {
        match feature {
            Feature::Retry => self.retry.is_some(),
            Feature::Timeouts => self.timeouts.is_some(),
            Feature::Queue => self.queue.is_some(),
            Feature::Metrics => self.metrics,
            Feature::Tracing => self.tracing,
            Feature::Cancellation => self.cancellation,
            Feature::CircuitBreaker => self.circuit_breaker.is_some(),
        }
    }

    /// What follows from it for retries.
    pub fn retry_rules(&self, settings: &Settings) -> RetryRules {
        RetryRules {
            default_attempts: settings.retry.max_attempts,
            policy: self.retry.clone().map(Arc::new),
            total: self
                .timeouts
                .as_ref()
                .map(|timeouts| timeouts.retry_budget.clone()),
        }
    }

    /// Size of the pool for `class`.
    pub fn pool(&self, class: ResourceClass) -> PoolSize {
        self.pools[index(class)]
    }

    /// The setting that the slots of the pool for `class` come from.
    pub fn slots_key(&self, class: ResourceClass) -> &str {
        &self.slots_keys[index(class)]
    }
}

fn index(class: ResourceClass) -> usize {
    let index = ResourceClass::ALL.iter().position(|other| *other == class);
    index.unwrap_or_default()
}

/// While pulling waits for room, nothing that came is sent away: what does not fit is safe where it is.
fn refuse_nothing(policy: &mut QueuePolicySettings) -> Option<String> {
    let chosen = Policy::chosen(policy);
    policy.policies.drop_oldest.enabled = false;
    policy.policies.defer.enabled = false;
    if matches!(
        policy.rejection_policy,
        RejectionPolicy::DropOldest | RejectionPolicy::Defer
    ) {
        policy.rejection_policy = RejectionPolicy::RejectNew;
    }
    (Policy::chosen(policy) != chosen).then(|| {
        let (section, name) = (Feature::Queue.section(), chosen.as_str());
        format!("{section}: {name} has no effect with queue.admission = wait, which sends nothing away")
    })
}

/// Whether a source says anything of a policy beside its flag, where one is needed.
fn is_configured(said: &Ranks, feature: Feature) -> bool {
    if feature.policy_file().is_none() {
        return true;
    }
    let prefix = split(feature.section());
    let flag = split(&feature.flag_key());
    let says = |key: &KeyPath| key.starts_with(&prefix) && *key != flag;
    let own_sizes =
        ResourceClass::ALL.map(|class| split(&format!("pools.{}.max_queue_size", class.as_str())));
    let is_own_size = |key: &KeyPath| feature == Feature::Queue && own_sizes.contains(key);
    said.keys().any(|key| says(key) || is_own_size(key))
}

fn no_policy(feature: Feature) -> String {
    let (section, file) = (feature.section(), feature.policy_file().unwrap_or_default());
    format!(
        "{section}.enabled is on, but no source says anything else below {section}: the feature stays off (CP1). \
         {file} of the working directory is where its policy is looked for"
    )
}

/// Slots and queue of a pool, each with the key it comes from.
struct Chosen {
    slots: (usize, String),
    queue: Option<(usize, String)>,
}

fn own_slots_key(class: ResourceClass) -> String {
    format!("pools.{}.max_concurrency", class.as_str())
}

impl Chosen {
    /// The strongest source counts; of equally strong ones, what speaks of this pool's queue policy, then of this pool, then
    /// of all pools.
    fn of(
        settings: &Settings,
        said: &Ranks,
        class: ResourceClass,
        policy: &QueuePolicySettings,
        warnings: &mut Vec<String>,
    ) -> Self {
        let (name, section) = (class.as_str(), Feature::Queue.section());
        let pool = settings.pools.get(class);
        let own = policy.resource_pools.get(class);
        let own_slots = (Some(pool.max_concurrency), own_slots_key(class));
        let own_queue = (pool.max_queue_size, format!("pools.{name}.max_queue_size"));
        let slots = [
            (
                own.max_concurrency,
                format!("{section}.resource_pools.{name}.max_concurrency"),
            ),
            own_slots.clone(),
        ];
        let queue = [
            (
                own.max_queue_size,
                format!("{section}.resource_pools.{name}.max_queue_size"),
            ),
            own_queue.clone(),
            (Some(policy.max_queue_size), format!("{section}.max_queue_size")),
        ];
        let chosen = Self {
            slots: strongest(said, &slots).unwrap_or((pool.max_concurrency, own_slots.1.clone())),
            queue: strongest(said, &queue),
        };
        // The shipped file gives every pool its default: nobody asked for that.
        let is_default = pool.max_concurrency == PoolsSettings::default().get(class).max_concurrency;
        if !is_default {
            warnings.extend(in_vain(said, &own_slots, Some(&chosen.slots)));
        }
        warnings.extend(in_vain(said, &own_queue, chosen.queue.as_ref()));
        chosen
    }

    fn size(&self) -> PoolSize {
        PoolSize {
            slots: self.slots.0,
            queue: self.queue.as_ref().map(|(size, _)| *size),
        }
    }
}

/// What is to be said of a size that a source gives for a pool, while another one counts.
fn in_vain(
    said: &Ranks,
    (given, key): &(Option<usize>, String),
    counts: Option<&(usize, String)>,
) -> Option<String> {
    let (value, winner) = counts?;
    let differs = given.is_some_and(|given| given != *value);
    (differs && winner != key && said.contains_key(&split(key)))
        .then(|| format!("{key} is given and has no effect: {winner} = {value} is in force"))
}

/// The value from the strongest source, with its key; of equals the first.
fn strongest(said: &Ranks, candidates: &[(Option<usize>, String)]) -> Option<(usize, String)> {
    let rank = |key: &str| said.get(&split(key)).copied().unwrap_or_default();
    let given = candidates
        .iter()
        .filter_map(|(value, key)| Some((*value.as_ref()?, key)));
    let best = given.reduce(|best, next| if rank(next.1) > rank(best.1) { next } else { best });
    best.map(|(value, key)| (value, key.clone()))
}

#[cfg(test)]
mod tests;
