//! Settings of approvals: whether jobs may ask people, where what they ask is kept, and how much of it.
//!
//! Neighbours: the node's settings hold them as section `approvals`; [`crate::approvals`] lives by them.

use caf_protocol::reference::is_bucket_name;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::approval_links::ApprovalLinkSettings;
use super::rules::Rules;

/// Section `approvals`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApprovalSettings {
    /// Whether `human.approval` is a job type of this worker. It needs `nats.mode` jetstream and `idempotency.scope` fleet;
    /// without them its jobs fail with RESOURCE_UNAVAILABLE.
    pub enabled: bool,
    /// Key-value bucket that all workers of the fleet share; created where `nats.create_streams` allows it.
    pub bucket: String,
    /// Longest time that a question may wait for an answer, in seconds, whatever its job asks for.
    pub max_timeout_s: u64,
    /// Most questions of all tenants that wait at once. Each has about 2 KiB in the bucket, 10 at most, and less than 1 KiB in
    /// each worker.
    pub max_pending: usize,
    /// Most questions of one tenant that wait at once.
    pub max_pending_per_tenant: usize,
    /// How long it is remembered what was answered, in seconds: pages and links tell it, and what arrives again is answered
    /// with it.
    pub kept_s: u64,
    /// Links that are handed out to people.
    pub links: ApprovalLinkSettings,
}

impl Default for ApprovalSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            bucket: "caf-approvals".to_owned(),
            max_timeout_s: 7 * 24 * 3600,
            max_pending: 20_000,
            max_pending_per_tenant: 10_000,
            kept_s: 24 * 3600,
            links: ApprovalLinkSettings::default(),
        }
    }
}

impl ApprovalSettings {
    /// Checks that questions wait for some time and not for ever, and that what is kept is bounded. What was answered is kept
    /// no shorter than the router remembers.
    pub fn validate(&self, rules: &mut Rules) {
        let rule = "must have 1 to 128 letters, digits, '-' or '_'";
        rules.require("bucket", is_bucket_name(&self.bucket), rule);
        rules.range("max_timeout_s", self.max_timeout_s, 1..=366 * 24 * 3600);
        rules.range("max_pending", self.max_pending, 1..=1_000_000);
        rules.range(
            "max_pending_per_tenant",
            self.max_pending_per_tenant,
            1..=1_000_000,
        );
        rules.range("kept_s", self.kept_s, 60..=366 * 24 * 3600);
        rules.section("links", |rules| self.links.validate(rules));
    }
}
