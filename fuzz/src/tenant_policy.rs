//! A policy of a tenant, as a policy store or the settings tell it.

use caf_actors::settings::rules::Rules;
use caf_actors::settings::{TenantOverride, TenantPolicy};

/// What is taken keeps every rule on top of the default and is written as it is read; what is refused names its key.
pub fn holds(bytes: &[u8]) {
    let Ok(policy) = serde_json::from_slice::<TenantOverride>(bytes) else {
        return;
    };
    let mut rules = Rules::default();
    policy.validate(&mut rules);
    let broken = rules.into_broken();
    for rule in &broken {
        assert!(!rule.key.concat().is_empty() && !rule.rule.is_empty(), "{rule:?}");
    }
    if broken.is_empty() {
        let whole = policy.on_top_of(&TenantPolicy::default());
        let mut rules = Rules::default();
        whole.validate(&mut rules);
        assert!(rules.into_broken().is_empty(), "{whole:?}");
        assert!(whole.weight >= 1 && whole.rate_per_s.is_none_or(|rate| rate.is_finite() && rate > 0.0));
        let written = serde_json::to_vec(&policy).expect("is JSON");
        let again: TenantOverride = serde_json::from_slice(&written).expect("is read again");
        assert_eq!(again, policy);
    }
}
