//! Which targets a job may reach: the public ones, as the settings widen and narrow them, for all tenants and for one.
//!
//! Neighbours: `guard` asks for each address that a name has; the node replaces the rules while jobs run. Pure: never
//! resolves, never connects.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use caf_protocol::live::Live;
use url::Host;

use super::address::{embedded, in_range, refusal};
use crate::settings::{HttpSettings, SettingError};

/// What an entry of a list of targets has to be.
pub(crate) const TARGET_RULE: &str = "must be an address, a range such as 10.0.0.0/8, or a host name";

/// The rules on targets, `blocks.http.{allow,deny,only}_targets`, `.{deny,only}_ports` and `.tenants`. All clones share
/// them, and they may be replaced at any time: what is asked for from then on is judged by the new ones.
#[derive(Debug, Clone, Default)]
pub struct TargetRules(Live<Rules>);

impl TargetRules {
    /// Puts the rules of these settings in force, instead of all that were.
    ///
    /// # Errors
    /// When an entry is no target; nothing has changed then.
    pub fn replace(&self, settings: &HttpSettings) -> Result<(), SettingError> {
        let mut rules = Rules::new(settings)?;
        rules.generation = self.0.get().generation + 1;
        self.0.set(rules);
        Ok(())
    }

    /// The rules of this moment.
    pub(super) fn get(&self) -> Arc<Rules> {
        self.0.get()
    }
}

/// The rules as they are at one moment.
#[derive(Debug, Default)]
pub(super) struct Rules {
    everyone: Lists,
    tenants: HashMap<String, Lists>,
    deny_ports: Vec<u16>,
    only_ports: Vec<u16>,
    /// How often they were replaced.
    generation: u64,
}

/// What one section of the settings says.
#[derive(Debug, Default)]
struct Lists {
    allow: Vec<Target>,
    deny: Vec<Target>,
    only: Vec<Target>,
}

/// Which rule a target breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A list names it; the key of the list.
    Denied(&'static str),
    /// A list that names everything that may be reached does not name it; the key of the list.
    NotListed(&'static str),
    /// Its port; the key of the list.
    Port(&'static str),
    /// It is not public but this.
    NotPublic(&'static str),
}

impl Refusal {
    /// The rule, for the caller. Names no address.
    pub(super) fn rule(self) -> String {
        match self {
            Self::Denied(key) => format!("{key} refuses the target"),
            Self::NotListed(key) => format!("{key} does not hold the target"),
            Self::Port(key) => format!("{key} refuses the port"),
            Self::NotPublic(_) => {
                "the target is not public, and blocks.http.allow_targets does not let it through".to_owned()
            }
        }
    }

    /// What stands in the log beside the address.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::NotPublic(kind) => kind,
            Self::Denied(key) | Self::NotListed(key) | Self::Port(key) => key,
        }
    }
}

/// A target that a job asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The tenant of the job.
    pub(super) tenant: &'a str,
    /// The host as the address has it, in its normal form, when it is a name.
    pub(super) name: Option<&'a str>,
    /// Where it leads.
    pub(super) address: SocketAddr,
}

impl Rules {
    /// Reads the settings.
    pub(super) fn new(settings: &HttpSettings) -> Result<Self, SettingError> {
        let lists = |path: &[&str], allow: &[String], deny: &[String], only: &[String]| {
            Ok::<_, SettingError>(Lists {
                allow: parse(path, "allow_targets", allow)?,
                deny: parse(path, "deny_targets", deny)?,
                only: parse(path, "only_targets", only)?,
            })
        };
        let root = ["blocks", "http"];
        let everyone = lists(
            &root,
            &settings.allow_targets,
            &settings.deny_targets,
            &settings.only_targets,
        )?;
        let tenants = settings.tenants.iter().map(|(tenant, own)| {
            let path = ["blocks", "http", "tenants", tenant.as_str()];
            let own = lists(&path, &own.allow_targets, &own.deny_targets, &own.only_targets)?;
            Ok((tenant.clone(), own))
        });
        Ok(Self {
            everyone,
            tenants: tenants.collect::<Result<_, SettingError>>()?,
            deny_ports: settings.deny_ports.clone(),
            only_ports: settings.only_ports.clone(),
            generation: 0,
        })
    }

    /// Grows when the rules are replaced: connections that are still open were let through by the rules before.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether a job may reach this. What is denied stays so, whatever else names it.
    pub(super) fn judge(&self, asked: Asked<'_>) -> Result<(), Refusal> {
        let own = self.tenants.get(asked.tenant);
        let names = |list: &[Target]| list.iter().any(|target| target.names(asked));
        if names(&self.everyone.deny) {
            return Err(Refusal::Denied("blocks.http.deny_targets"));
        }
        if own.is_some_and(|own| names(&own.deny)) {
            return Err(Refusal::Denied("blocks.http.tenants.*.deny_targets"));
        }
        let covers = |list: &[Target]| list.iter().any(|target| target.covers(asked));
        if !self.everyone.only.is_empty() && !covers(&self.everyone.only) {
            return Err(Refusal::NotListed("blocks.http.only_targets"));
        }
        if own.is_some_and(|own| !own.only.is_empty() && !covers(&own.only)) {
            return Err(Refusal::NotListed("blocks.http.tenants.*.only_targets"));
        }
        let mut allowing = self
            .everyone
            .allow
            .iter()
            .chain(own.iter().flat_map(|own| &own.allow));
        self.judge_port(asked, allowing.clone())?;
        match refusal(asked.address.ip()) {
            Some(kind) if !allowing.any(|target| target.covers(asked)) => Err(Refusal::NotPublic(kind)),
            _ => Ok(()),
        }
    }

    /// What can be said of a name before anybody is asked for its addresses; [`TargetRules`] judge each of those as well.
    pub(super) fn judge_name(&self, tenant: &str, name: &str, port: u16) -> Result<(), Refusal> {
        let asked = Asked {
            tenant,
            name: Some(name),
            address: SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), port),
        };
        let own = self.tenants.get(tenant);
        let names = |list: &[Target]| list.iter().any(|target| target.is_name() && target.covers(asked));
        let leaves_out = |list: &[Target]| {
            !list.is_empty()
                && list
                    .iter()
                    .all(|target| target.is_name() && !target.covers(asked))
        };
        if names(&self.everyone.deny) {
            return Err(Refusal::Denied("blocks.http.deny_targets"));
        }
        if own.is_some_and(|own| names(&own.deny)) {
            return Err(Refusal::Denied("blocks.http.tenants.*.deny_targets"));
        }
        if leaves_out(&self.everyone.only) {
            return Err(Refusal::NotListed("blocks.http.only_targets"));
        }
        if own.is_some_and(|own| leaves_out(&own.only)) {
            return Err(Refusal::NotListed("blocks.http.tenants.*.only_targets"));
        }
        Ok(())
    }

    fn judge_port<'a>(
        &self,
        asked: Asked<'_>,
        mut allowing: impl Iterator<Item = &'a Target>,
    ) -> Result<(), Refusal> {
        let port = asked.address.port();
        let refused = if self.deny_ports.contains(&port) {
            "blocks.http.deny_ports"
        } else if !self.only_ports.is_empty() && !self.only_ports.contains(&port) {
            "blocks.http.only_ports"
        } else {
            return Ok(());
        };
        let is_named = allowing.any(|target| target.has_port() && target.covers(asked));
        if is_named {
            Ok(())
        } else {
            Err(Refusal::Port(refused))
        }
    }
}

fn parse(path: &[&str], key: &str, entries: &[String]) -> Result<Vec<Target>, SettingError> {
    let parsed = entries.iter().map(|entry| {
        Target::parse(entry).ok_or_else(|| SettingError::new(&[path, &[key]].concat(), TARGET_RULE, entry))
    });
    parsed.collect()
}

/// What one entry names.
#[derive(Debug, PartialEq)]
enum Target {
    Range {
        base: IpAddr,
        prefix: u8,
    },
    Address {
        ip: IpAddr,
        port: Option<u16>,
    },
    Name {
        host: String,
        port: Option<u16>,
    },
    /// All names below this one; it begins with a dot.
    Below {
        suffix: String,
        port: Option<u16>,
    },
}

/// Whether this can be an entry of a list of targets.
pub(crate) fn is_target(entry: &str) -> bool {
    Target::parse(entry).is_some()
}

impl Target {
    fn parse(entry: &str) -> Option<Self> {
        let entry = entry.trim();
        if let Some((base, prefix)) = entry.split_once('/') {
            let base: IpAddr = base.parse().ok()?;
            let prefix: u8 = prefix.parse().ok()?;
            let width = if base.is_ipv4() { 32 } else { 128 };
            return (prefix <= width).then_some(Self::Range { base, prefix });
        }
        if let Ok(address) = entry.parse::<SocketAddr>() {
            let port = Some(address.port());
            return Some(Self::Address {
                ip: address.ip(),
                port,
            });
        }
        let bare = entry.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = bare.parse() {
            return Some(Self::Address { ip, port: None });
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (entry, None),
        };
        let (is_below, host) = match host.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, host),
        };
        // The parser of URLs decides what a name is; it also turns odd spellings of addresses into addresses, which
        // nobody means in a setting.
        let name = match Host::parse(host).ok()? {
            Host::Domain(name) if !name.contains('*') => normal_name(&name),
            _ => return None,
        };
        if name.is_empty() || name.starts_with('.') {
            return None;
        }
        Some(if is_below {
            let suffix = format!(".{name}");
            Self::Below { suffix, port }
        } else {
            Self::Name { host: name, port }
        })
    }

    fn is_name(&self) -> bool {
        matches!(self, Self::Name { .. } | Self::Below { .. })
    }

    fn has_port(&self) -> bool {
        match self {
            Self::Range { .. } => false,
            Self::Address { port, .. } | Self::Name { port, .. } | Self::Below { port, .. } => port.is_some(),
        }
    }

    /// Whether an entry that lets something through means this.
    fn covers(&self, asked: Asked<'_>) -> bool {
        let address = asked.address;
        let port_fits = |port: &Option<u16>| port.is_none_or(|port| port == address.port());
        let ip = address.ip().to_canonical();
        match self {
            Self::Range { base, prefix } => {
                in_range(ip, *base, *prefix) || in_range(address.ip(), *base, *prefix)
            }
            Self::Address { ip: allowed, port } => port_fits(port) && ip == allowed.to_canonical(),
            Self::Name { host, port } => port_fits(port) && asked.name == Some(host.as_str()),
            Self::Below { suffix, port } => {
                port_fits(port) && asked.name.is_some_and(|name| name.ends_with(suffix.as_str()))
            }
        }
    }

    /// Whether an entry that refuses something means this: under whatever address it is reached.
    fn names(&self, asked: Asked<'_>) -> bool {
        let port = asked.address.port();
        let within = embedded(asked.address.ip()).map(|v4| Asked {
            address: SocketAddr::new(v4.into(), port),
            ..asked
        });
        self.covers(asked) || within.is_some_and(|within| self.covers(within))
    }
}

/// A host name as it is compared: in lower case, without the dot that may end it.
pub(super) fn normal_name(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests;
