//! Settings of links to approvals that are handed out to people.
//!
//! Neighbours: the section `approvals` has them; `src/approvals.rs` makes and reads links.

use caf_protocol::secret::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use super::rules::Rules;

/// Shortest key in bytes: what SHA-256 gives. Shorter ones are no harder to guess than they are long.
pub const MIN_KEY_BYTES: usize = 32;
/// Longest key in bytes: more adds nothing.
const MAX_KEY_BYTES: usize = 1_024;
/// Longest beginning of a link, in bytes: with what follows it stays below what chat programs take.
const MAX_BASE_BYTES: usize = 512;

/// Section `approvals.links`: links with which people decide without an account.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApprovalLinkSettings {
    /// What links begin with: where people reach `http.approval_addr` of any worker of the fleet. Without it no links are made.
    pub base_url: Option<String>,
    /// Key that signs links, the same for all workers; without it one that is made by chance and kept beside the approvals.
    pub key: Option<Secret>,
}

impl ApprovalLinkSettings {
    /// Checks that links lead somewhere and are hard to forge.
    pub fn validate(&self, rules: &mut Rules) {
        rules.require(
            "base_url",
            self.base_url.as_deref().is_none_or(is_base),
            "must be an http or https address of at most 512 bytes without user, query and fragment",
        );
        let fits = |key: &Secret| (MIN_KEY_BYTES..=MAX_KEY_BYTES).contains(&key.expose().len());
        rules.require(
            "key",
            self.key.as_ref().is_none_or(fits),
            "must have 32 to 1024 bytes",
        );
    }
}

fn is_base(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let plain = url.has_host() && url.username().is_empty() && url.password().is_none();
    let bare = url.query().is_none() && url.fragment().is_none() && !text.contains(char::is_whitespace);
    matches!(url.scheme(), "http" | "https") && plain && bare && text.len() <= MAX_BASE_BYTES
}
