//! What a policy in force says in vain: a family that no block has, a rejection policy that does not count.
//!
//! Neighbours: [`super::InForce`] shows these sentences with its own. Refuses nothing: what is wrong beyond doubt, the
//! rules of the settings refuse.

use std::collections::BTreeSet;

use caf_actors::block_worker::retry::numbers::family;
use caf_actors::pool::policy::Policy;
use caf_actors::settings::policies::{QueuePolicySettings, RejectionPolicy, RetryPolicySettings};
use caf_blocks::settings::BlockSettings;
use caf_blocks::{Extras, OperationLimits};

use crate::settings::feature::Feature;
use crate::settings::origin::key_text;

/// One sentence for each block policy whose family no block has.
pub(super) fn of_retry(policy: &RetryPolicySettings) -> Vec<String> {
    if policy.block_policies.is_empty() {
        return Vec::new();
    }
    let known = families();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let names = policy.block_policies.keys();
    let strange = names.filter(|name| !known.is_empty() && !known.contains(&name.as_str()));
    strange
        .map(|name| {
            let key = key_text(&["block_policies".to_owned(), name.clone()]);
            let (section, known) = (Feature::Retry.section(), known.join(", "));
            format!(
                "{section}.{key} has no effect: no block is of that family; the families are {known} (the job type up \
                 to its first dot)"
            )
        })
        .collect()
}

/// The families of all blocks. Which blocks there are does not depend on settings.
fn families() -> BTreeSet<String> {
    let built = caf_blocks::build(
        &BlockSettings::default(),
        OperationLimits::default(),
        Extras::default(),
    );
    let job_types = built
        .map(|blocks| blocks.registry.all_job_types())
        .unwrap_or_default();
    job_types
        .into_iter()
        .map(|name| family(name).to_owned())
        .collect()
}

/// One sentence for each rejection policy that is enabled and does not count. Nothing of `reject_new`: a full queue rejects
/// under all of them.
pub(super) fn of_queue(settings: &QueuePolicySettings) -> Vec<String> {
    let policies = &settings.policies;
    let counts = Policy::chosen(settings).as_str();
    let why = match (settings.rejection_policy, counts) {
        (RejectionPolicy::RejectNew, "reject_new") => "policies.reject_new is enabled and the default",
        (RejectionPolicy::RejectNew, _) => "of those that are enabled it comes first",
        _ => "rejection_policy names it",
    };
    let enabled = [
        ("drop_oldest", policies.drop_oldest.enabled),
        ("defer", policies.defer.enabled),
        ("degrade", policies.degrade.enabled),
    ];
    let in_vain = enabled
        .into_iter()
        .filter(|(name, is_on)| *is_on && *name != counts);
    let section = Feature::Queue.section();
    in_vain
        .map(|(name, _)| {
            format!(
                "{section}.policies.{name} is enabled and has no effect: {counts} counts, because {why}; \
                 {section}.rejection_policy = {name} would choose it"
            )
        })
        .collect()
}
