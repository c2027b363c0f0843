//! Section `blocks.http`: which servers a job may reach over HTTP, and how much may come from them.
//!
//! Neighbours: [`super`] holds it as a section; the rules on targets are read by `crate::http`, which also says what an
//! entry has to be. Everything here that names targets or ports may be replaced while the node runs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Checks;
use crate::http::{DENIED_PORTS, TARGET_RULE, is_target};

/// Longest id of a tenant in bytes, as on the wire.
const MAX_TENANT_BYTES: usize = 256;

/// Section `blocks.http`. How long a request may take is said by the policy of timeouts, while that is in force.
///
/// A target is an address (`10.1.2.3`), a range (`10.0.0.0/8`), a host name (`db.internal`) or all names below one
/// (`*.example.com`), each but a range optionally with a port (`127.0.0.1:8080`, `[::1]:8080`). Rules hold for every hop
/// of a request. What is denied stays denied, whatever else names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSettings {
    /// Targets that jobs may reach although their address is not public. An entry with a port also lets that port through.
    pub allow_targets: Vec<String>,
    /// Targets that no job may reach.
    pub deny_targets: Vec<String>,
    /// When not empty: targets beside which no job may reach any. Lets nothing through that is not public.
    pub only_targets: Vec<String>,
    /// Ports that no job may reach, unless an entry of `allow_targets` names the port. By default those that browsers
    /// refuse, and those of services that take commands line by line.
    #[schemars(inner(range(min = 1)))]
    pub deny_ports: Vec<u16>,
    /// When not empty: ports beside which no job may reach any, unless an entry of `allow_targets` names the port.
    #[schemars(inner(range(min = 1)))]
    pub only_ports: Vec<u16>,
    /// Further rules for single tenants, by tenant id.
    pub tenants: BTreeMap<String, HttpTenantSettings>,
    /// PEM file with certificates of further authorities that may vouch for a host, beside the public ones. Read at the
    /// start.
    pub ca_file: Option<PathBuf>,
    /// Largest answer body in bytes, counted after decompression.
    pub max_response_bytes: u64,
    /// Largest request body in bytes.
    pub max_request_bytes: u64,
    /// How many redirects are followed; 0 follows none.
    pub max_redirects: u32,
    /// Whether a redirect from https to http is followed. Secret headers never go along.
    pub follow_downgrades: bool,
}

/// Section `blocks.http.tenants.<tenant>`: rules for the jobs of one tenant, beside those for all.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpTenantSettings {
    /// Targets that jobs of this tenant may reach although their address is not public.
    pub allow_targets: Vec<String>,
    /// Targets that no job of this tenant may reach.
    pub deny_targets: Vec<String>,
    /// When not empty: targets beside which no job of this tenant may reach any.
    pub only_targets: Vec<String>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            allow_targets: Vec::new(),
            deny_targets: Vec::new(),
            only_targets: Vec::new(),
            deny_ports: DENIED_PORTS.to_vec(),
            only_ports: Vec::new(),
            tenants: BTreeMap::new(),
            ca_file: None,
            max_response_bytes: 8 << 20,
            max_request_bytes: 8 << 20,
            max_redirects: 5,
            follow_downgrades: true,
        }
    }
}

impl HttpSettings {
    /// Takes over the rules on targets and ports, which may change while the node runs, and nothing else.
    pub fn take_rules(&mut self, from: &Self) {
        self.allow_targets.clone_from(&from.allow_targets);
        self.deny_targets.clone_from(&from.deny_targets);
        self.only_targets.clone_from(&from.only_targets);
        self.deny_ports.clone_from(&from.deny_ports);
        self.only_ports.clone_from(&from.only_ports);
        self.tenants.clone_from(&from.tenants);
    }

    pub(super) fn check<'a>(&'a self, checks: &mut Checks<'a>) {
        targets(checks, "allow_targets", &self.allow_targets);
        targets(checks, "deny_targets", &self.deny_targets);
        targets(checks, "only_targets", &self.only_targets);
        for (key, ports) in [("deny_ports", &self.deny_ports), ("only_ports", &self.only_ports)] {
            checks.require(key, !ports.contains(&0), "must be ports from 1 to 65535", 0);
        }
        checks.section("tenants", |checks| {
            for (tenant, rules) in &self.tenants {
                let holds = (1..=MAX_TENANT_BYTES).contains(&tenant.len());
                let rule = "must be a tenant id of 1 to 256 bytes";
                checks.require(tenant, holds, rule, format_args!("{} bytes", tenant.len()));
                checks.section(tenant, |checks| rules.check(checks));
            }
        });
        checks.file("ca_file", self.ca_file.as_deref());
        checks.bytes("max_response_bytes", self.max_response_bytes);
        checks.bytes("max_request_bytes", self.max_request_bytes);
        let holds = self.max_redirects <= 50;
        checks.require("max_redirects", holds, "must be at most 50", self.max_redirects);
    }
}

impl HttpTenantSettings {
    fn check<'a>(&'a self, checks: &mut Checks<'a>) {
        targets(checks, "allow_targets", &self.allow_targets);
        targets(checks, "deny_targets", &self.deny_targets);
        targets(checks, "only_targets", &self.only_targets);
    }
}

/// Each wrong entry is named by its place, counted from 0.
fn targets(checks: &mut Checks<'_>, key: &'static str, entries: &[String]) {
    checks.section(key, |checks| {
        for (place, entry) in entries.iter().enumerate() {
            checks.require(&place.to_string(), is_target(entry), TARGET_RULE, entry);
        }
    });
}
