//! Settings of tenants: who may send jobs, and how much of this worker each may use.
//!
//! Neighbours: [`crate::tenants`] keeps to them; the node reads them again at a SIGHUP. What one tenant may use is said in
//! three places, each on top of the one before: `default`, its entry in `overrides`, its policy in the store. The last
//! two are [`TenantOverride`]s, which say only what differs. Nothing here looks anything up.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use caf_protocol::ids::{MAX_TENANT_BYTES, is_usable};
use caf_protocol::secret::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use super::rules::Rules;
use crate::mask;

/// Most turns of one tenant for one of another: beyond it the other as good as never has one.
const MAX_WEIGHT: u32 = 1_000;
/// Most admissions at once that can be told from no limit.
const MAX_BURST: u32 = 1_000_000;
/// Most that a limit on jobs may say: more than any worker holds, so that an override can always lift one.
const MAX_JOBS: usize = 1_000_000;
/// Most that a limit on bytes or milliseconds may say, for the same reason.
const MAX_AMOUNT: u64 = 1 << 50;
/// Most admissions a second that can be told from no limit.
const MAX_RATE: f64 = 1_000_000.0;

/// Who may send jobs, and how much each may use of this worker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantSettings {
    /// Tenants that may; empty lets all.
    pub allowed: Vec<String>,
    /// What each tenant may use that has no entry in `overrides`.
    pub default: TenantPolicy,
    /// What differs for single tenants, by their ids.
    pub overrides: BTreeMap<String, TenantOverride>,
    /// Where else policies are kept.
    pub policy_store: PolicyStoreSettings,
}

/// How much one tenant may use of this worker. What is not limited is bounded for the worker as a whole only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantPolicy {
    /// Its share of the slots beside other tenants that wait for the same pool: a tenant of weight 2 gets twice as many
    /// turns as one of weight 1.
    #[schemars(range(min = 1, max = MAX_WEIGHT))]
    pub weight: u32,
    /// Most of its jobs that run at once, in all pools together; nothing is no limit.
    #[schemars(range(min = 1, max = MAX_JOBS))]
    pub max_running: Option<usize>,
    /// Most of its jobs that wait for a slot, in all pools together.
    #[schemars(range(min = 1, max = MAX_JOBS))]
    pub max_queued: Option<usize>,
    /// Its jobs that are taken on, per second.
    pub rate_per_s: Option<f64>,
    /// How many of them may come at once; nothing is what `rate_per_s` allows in a second, at least 1.
    #[schemars(range(min = 1, max = MAX_BURST))]
    pub burst: Option<u32>,
    /// Most bytes of its assignments whose jobs wait or run.
    #[schemars(range(min = 1, max = MAX_AMOUNT))]
    pub max_held_bytes: Option<u64>,
    /// Bytes of its assignments, and of what they refer to, per second. As many may come at once.
    #[schemars(range(min = 1, max = MAX_AMOUNT))]
    pub max_bytes_in_per_s: Option<u64>,
    /// Bytes of its results per second. As many may go at once; what was too much is waited for before the next job.
    #[schemars(range(min = 1, max = MAX_AMOUNT))]
    pub max_bytes_out_per_s: Option<u64>,
    /// Most memory that its jobs may say they need (`resources.memory_bytes`), those that wait or run together.
    #[schemars(range(min = 1, max = MAX_AMOUNT))]
    pub max_memory_bytes: Option<u64>,
    /// Most processor time that its jobs may say they need (`resources.cpu_time_ms`), those that wait or run together, in
    /// milliseconds.
    #[schemars(range(min = 1, max = MAX_AMOUNT))]
    pub max_cpu_time_ms: Option<u64>,
}

impl Default for TenantPolicy {
    fn default() -> Self {
        Self {
            weight: 1,
            max_running: None,
            max_queued: None,
            rate_per_s: None,
            burst: None,
            max_held_bytes: None,
            max_bytes_in_per_s: None,
            max_bytes_out_per_s: None,
            max_memory_bytes: None,
            max_cpu_time_ms: None,
        }
    }
}

/// What differs for one tenant. The keys are those of [`TenantPolicy`]; what is not given stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantOverride {
    /// As in the default.
    #[schemars(range(min = 1, max = MAX_WEIGHT))]
    pub weight: Option<u32>,
    /// As in the default.
    #[schemars(range(min = 1, max = MAX_JOBS))]
    pub max_running: Option<usize>,
    /// As in the default.
    #[schemars(range(min = 1, max = MAX_JOBS))]
    pub max_queued: Option<usize>,
    /// As in the default.
    pub rate_per_s: Option<f64>,
    /// As in the default.
    #[schemars(range(min = 1, max = MAX_BURST))]
    pub burst: Option<u32>,
    /// As in the default.
    #[schemars(range(min = 1, max = MAX_AMOUNT))]
    pub max_held_bytes: Option<u64>,
    /// As in the default.
    #[schemars(range(min = 1, max = MAX_AMOUNT))]
    pub max_bytes_in_per_s: Option<u64>,
    /// As in the default.
    #[schemars(range(min = 1, max = MAX_AMOUNT))]
    pub max_bytes_out_per_s: Option<u64>,
    /// As in the default.
    #[schemars(range(min = 1, max = MAX_AMOUNT))]
    pub max_memory_bytes: Option<u64>,
    /// As in the default.
    #[schemars(range(min = 1, max = MAX_AMOUNT))]
    pub max_cpu_time_ms: Option<u64>,
}

impl TenantOverride {
    /// `below`, with what this says in its place.
    pub fn on_top_of(&self, below: &TenantPolicy) -> TenantPolicy {
        TenantPolicy {
            weight: self.weight.unwrap_or(below.weight),
            max_running: self.max_running.or(below.max_running),
            max_queued: self.max_queued.or(below.max_queued),
            rate_per_s: self.rate_per_s.or(below.rate_per_s),
            burst: self.burst.or(below.burst),
            max_held_bytes: self.max_held_bytes.or(below.max_held_bytes),
            max_bytes_in_per_s: self.max_bytes_in_per_s.or(below.max_bytes_in_per_s),
            max_bytes_out_per_s: self.max_bytes_out_per_s.or(below.max_bytes_out_per_s),
            max_memory_bytes: self.max_memory_bytes.or(below.max_memory_bytes),
            max_cpu_time_ms: self.max_cpu_time_ms.or(below.max_cpu_time_ms),
        }
    }

    /// Checks what is given, by the rules of [`TenantPolicy`].
    pub fn validate(&self, rules: &mut Rules) {
        self.on_top_of(&TenantPolicy::default()).validate(rules);
    }
}

impl TenantPolicy {
    /// Checks that every limit lets something through.
    pub fn validate(&self, rules: &mut Rules) {
        rules.range("weight", self.weight, 1..=MAX_WEIGHT);
        for (key, jobs) in [("max_running", self.max_running), ("max_queued", self.max_queued)] {
            rules.range(key, jobs.unwrap_or(1), 1..=MAX_JOBS);
        }
        // Less than one job in a quarter of an hour is no rate any more.
        rules.range("rate_per_s", self.rate_per_s.unwrap_or(1.0), 0.001..=MAX_RATE);
        rules.range("burst", self.burst.unwrap_or(1), 1..=MAX_BURST);
        for (key, amount) in [
            ("max_held_bytes", self.max_held_bytes),
            ("max_bytes_in_per_s", self.max_bytes_in_per_s),
            ("max_bytes_out_per_s", self.max_bytes_out_per_s),
            ("max_memory_bytes", self.max_memory_bytes),
            ("max_cpu_time_ms", self.max_cpu_time_ms),
        ] {
            rules.range(key, amount.unwrap_or(1), 1..=MAX_AMOUNT);
        }
    }
}

/// A server that keeps policies of tenants: `GET {url}/tenants/{tenant}/policies/{policy}`. `Debug` hides its secrets.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyStoreSettings {
    /// Base address, http or https; nothing asks nobody.
    pub url: Option<String>,
    /// Name of the policy that is asked for.
    pub policy: String,
    /// Sent as `Authorization: Bearer …`.
    pub token: Option<Secret>,
    /// PEM file with authorities to trust beside the public ones.
    pub ca_file: Option<PathBuf>,
    /// How long an answer counts before it is asked again, in seconds; what was told counts until something else is.
    pub refresh_s: u64,
    /// Longest time that one question may take, in milliseconds.
    pub timeout_ms: u64,
    /// How long the first jobs of a tenant wait for its policy, in milliseconds; then they go by the settings. 0 never waits.
    pub first_wait_ms: u64,
    /// Most tenants whose policies are kept, and most that are known to have none; those that were asked about longest ago go
    /// first.
    pub max_tenants: usize,
}

impl Default for PolicyStoreSettings {
    fn default() -> Self {
        Self {
            url: None,
            policy: "worker".to_owned(),
            token: None,
            ca_file: None,
            refresh_s: 60,
            timeout_ms: 2_000,
            first_wait_ms: 50,
            max_tenants: 10_000,
        }
    }
}

impl PolicyStoreSettings {
    /// `first_wait_ms` as a duration.
    pub fn first_wait(&self) -> Duration {
        Duration::from_millis(self.first_wait_ms)
    }

    /// `refresh_s` as a duration.
    pub fn refresh(&self) -> Duration {
        Duration::from_secs(self.refresh_s)
    }

    /// Checks address, names and times.
    pub fn validate(&self, rules: &mut Rules) {
        let rule = "must be an address such as https://host:8080/base, with scheme http or https and without user, \
                    query or fragment";
        rules.require("url", self.url.as_deref().is_none_or(is_base_url), rule);
        let rule = "must have 1 to 256 bytes and no control characters, and not be . or ..";
        let is_name = is_usable(&self.policy, MAX_TENANT_BYTES) && !is_dots(&self.policy);
        rules.require("policy", is_name, rule);
        let is_visible = |token: &Secret| {
            !token.expose().is_empty() && token.expose().bytes().all(|byte| byte.is_ascii_graphic())
        };
        let rule = "must be visible ASCII characters without spaces";
        rules.require("token", self.token.as_ref().is_none_or(is_visible), rule);
        let named = self
            .ca_file
            .as_ref()
            .is_none_or(|file| !file.as_os_str().is_empty());
        rules.require("ca_file", named, "must be a path");
        rules.range("refresh_s", self.refresh_s, 1..=24 * 3_600);
        rules.range("timeout_ms", self.timeout_ms, 10..=60_000);
        // Longer than a second would be a part of every first job's deadline that its sender notices.
        rules.range("first_wait_ms", self.first_wait_ms, 0..=1_000);
        rules.range("max_tenants", self.max_tenants, 1..=1_000_000);
    }
}

impl fmt::Debug for PolicyStoreSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = serde_json::to_value(self).map_err(|_| fmt::Error)?;
        mask::mask(&mut value);
        write!(f, "PolicyStoreSettings {value}")
    }
}

impl TenantSettings {
    /// Checks that every entry can match a tenant, and what each may use.
    pub fn validate(&self, rules: &mut Rules) {
        let usable = |tenant: &str| is_usable(tenant, MAX_TENANT_BYTES);
        let rule = format!("each tenant must have 1 to {MAX_TENANT_BYTES} bytes and no control characters");
        let all_usable = self.allowed.iter().all(|tenant| usable(tenant));
        rules.require("allowed", all_usable, rule);
        rules.section("default", |rules| self.default.validate(rules));
        rules.section("overrides", |rules| {
            let rule = format!(
                "the name of a tenant must have 1 to {MAX_TENANT_BYTES} bytes and no control characters"
            );
            for (tenant, policy) in &self.overrides {
                rules.require(tenant, usable(tenant), &rule);
                rules.section(tenant, |rules| policy.validate(rules));
            }
        });
        rules.section("policy_store", |rules| self.policy_store.validate(rules));
    }
}

/// Whether a name is one that a path would take for a way up, or for nothing.
pub fn is_dots(name: &str) -> bool {
    matches!(name, "." | "..")
}

fn is_base_url(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.host_str().is_some_and(|host| !host.is_empty())
            && url.port() != Some(0)
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(change: impl FnOnce(&mut TenantSettings)) -> Vec<String> {
        let (mut settings, mut rules) = (TenantSettings::default(), Rules::default());
        change(&mut settings);
        settings.validate(&mut rules);
        rules
            .into_broken()
            .into_iter()
            .map(|broken| broken.key.join("/"))
            .collect()
    }

    #[test]
    fn an_override_says_only_what_differs() {
        let default = TenantPolicy {
            max_running: Some(4),
            rate_per_s: Some(10.0),
            ..TenantPolicy::default()
        };
        let told: TenantOverride =
            serde_json::from_str(r#"{"weight": 3, "rate_per_s": 0.5, "max_queued": 7}"#).expect("known keys");
        let expected = TenantPolicy {
            weight: 3,
            max_running: Some(4),
            max_queued: Some(7),
            rate_per_s: Some(0.5),
            ..TenantPolicy::default()
        };
        assert_eq!(told.on_top_of(&default), expected);
        assert_eq!(TenantOverride::default().on_top_of(&default), default);
    }

    #[test]
    fn an_override_knows_every_key_of_the_default() {
        let keys = |value: serde_json::Value| {
            let object = value.as_object().expect("a table").clone();
            object.keys().cloned().collect::<Vec<_>>()
        };
        assert_eq!(
            keys(serde_json::to_value(TenantPolicy::default()).expect("plain data")),
            keys(serde_json::to_value(TenantOverride::default()).expect("plain data")),
        );
    }

    #[test]
    fn what_no_job_could_pass_is_refused_under_its_key_also_for_ids_with_dots() {
        assert_eq!(broken(|_| ()), Vec::<String>::new());
        let keys = broken(|settings| {
            settings.allowed = vec![String::new()];
            settings.default.weight = 0;
            settings.default.max_queued = Some(0);
            settings.default.rate_per_s = Some(f64::NAN);
            let zero = TenantOverride {
                burst: Some(0),
                max_memory_bytes: Some(0),
                ..TenantOverride::default()
            };
            settings.overrides.insert("acme.eu".to_owned(), zero);
            settings
                .overrides
                .insert("a\nb".to_owned(), TenantOverride::default());
        });
        let expected = [
            "allowed",
            "default/weight",
            "default/max_queued",
            "default/rate_per_s",
            "overrides/a\nb",
            "overrides/acme.eu/burst",
            "overrides/acme.eu/max_memory_bytes",
        ];
        assert_eq!(keys, expected);
    }

    #[test]
    fn a_store_has_a_plain_address_a_name_and_bounded_times() {
        let keys = broken(|settings| {
            settings.policy_store = PolicyStoreSettings {
                url: Some("https://user:pw@host/x?y".to_owned()),
                policy: "..".to_owned(),
                token: Some("a\r\nb".into()),
                ca_file: Some(PathBuf::new()),
                refresh_s: 0,
                timeout_ms: 1,
                first_wait_ms: 1_001,
                max_tenants: 0,
            };
        });
        let named = [
            "url",
            "policy",
            "token",
            "ca_file",
            "refresh_s",
            "timeout_ms",
            "first_wait_ms",
            "max_tenants",
        ];
        assert_eq!(keys, named.map(|key| format!("policy_store/{key}")));
        let fine = broken(|settings| settings.policy_store.url = Some("http://[::1]:80/base/".to_owned()));
        assert_eq!(fine, Vec::<String>::new());
    }

    #[test]
    fn the_token_of_the_store_is_not_shown() {
        let settings = PolicyStoreSettings {
            token: Some("s3cret".into()),
            ..PolicyStoreSettings::default()
        };
        assert!(!format!("{settings:?}").contains("s3cret"));
    }
}
