//! Settings of links to approvals that are handed out to people.
//!
//! Neighbours: the section `approvals` has them; `src/approvals.rs` makes and reads links.

use caf_protocol::secret::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

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
    /// Whether links travel where others can read them: unencrypted, and beyond this host.
    pub fn can_be_overheard(&self) -> bool {
        let url = self.base_url.as_deref().and_then(|text| Url::parse(text).ok());
        url.is_some_and(|url| url.scheme() == "http" && !is_own_host(&url))
    }

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

fn is_own_host(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

fn is_base(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let plain = url.has_host() && url.username().is_empty() && url.password().is_none();
    let bare = url.query().is_none() && url.fragment().is_none() && !text.contains(char::is_whitespace);
    matches!(url.scheme(), "http" | "https") && plain && bare && text.len() <= MAX_BASE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(settings: &ApprovalLinkSettings) -> Vec<String> {
        let mut rules = Rules::default();
        settings.validate(&mut rules);
        let broken = rules.into_broken().into_iter();
        broken.map(|broken| broken.key.join(".")).collect()
    }

    #[test]
    fn links_begin_with_an_address_that_leads_somewhere() {
        let base = |text: &str| {
            broken(&ApprovalLinkSettings {
                base_url: Some(text.to_owned()),
                key: None,
            })
        };
        for usable in [
            "https://a.example",
            "http://127.0.0.1:9094/",
            "https://a.example/below/it",
        ] {
            assert_eq!(base(usable), Vec::<String>::new(), "{usable}");
        }
        let long = format!("https://a.example/{}", "x".repeat(MAX_BASE_BYTES));
        for unusable in [
            "",
            "a.example",
            "ftp://a.example",
            "javascript:alert(1)",
            "https://u:p@a.example",
            "https://a.example/?x",
            "https://a.example/#x",
            "https://a.example/ x",
            &long,
        ] {
            assert_eq!(base(unusable), ["base_url"], "{unusable}");
        }
    }

    #[test]
    fn links_that_travel_unencrypted_beyond_this_host_can_be_overheard() {
        for (base, can) in [
            (None, false),
            (Some("https://a.example"), false),
            (Some("http://127.0.0.1:9094"), false),
            (Some("http://[::1]"), false),
            (Some("http://localhost/x"), false),
            (Some("http://a.example"), true),
            (Some("http://10.0.0.1"), true),
        ] {
            let settings = ApprovalLinkSettings {
                base_url: base.map(str::to_owned),
                key: None,
            };
            assert_eq!(settings.can_be_overheard(), can, "{base:?}");
        }
    }

    #[test]
    fn a_key_is_too_long_to_guess() {
        let key = |bytes: usize| {
            broken(&ApprovalLinkSettings {
                base_url: None,
                key: Some("k".repeat(bytes).into()),
            })
        };
        assert_eq!(key(MIN_KEY_BYTES), Vec::<String>::new());
        assert_eq!(key(MIN_KEY_BYTES - 1), ["key"]);
        assert_eq!(key(MAX_KEY_BYTES + 1), ["key"]);
    }
}
