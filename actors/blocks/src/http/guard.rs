//! Which addresses a job may reach: public ones, and those that the settings let through. Names are resolved here, once,
//! and the request goes to the very address that was checked, so that a second lookup cannot change the answer.
//!
//! Neighbours: [`super`] asks before every hop of a request; `dial` connects to what this returned and to nothing else.
//! A pooled connection was made to a checked address, so reuse cannot bypass the guard. Never connects.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use caf_protocol::error_code::ErrorCode;
use caf_protocol::live::Live;
use caf_protocol::outcome::Failure;
use url::{Host, Url};

use crate::Extras;
use crate::settings::SettingError;

/// The setting that lets further targets through.
const ALLOW_KEY: [&str; 3] = ["blocks", "http", "allow_targets"];
/// What an entry of it has to be.
pub(crate) const TARGET_RULE: &str = "must be an address, a range such as 10.0.0.0/8, or a host name";

/// Targets beside the public ones that jobs may reach. All clones share them, and they may be replaced at any time: what
/// is asked for from then on is judged by the new ones.
#[derive(Debug, Clone, Default)]
pub struct AllowedTargets(Live<Targets>);

#[derive(Debug, Default)]
struct Targets {
    list: Vec<Target>,
    /// How often they were replaced.
    generation: u64,
}

impl AllowedTargets {
    /// Lets these through and no others.
    ///
    /// # Errors
    /// When an entry is none; nothing has changed then.
    pub fn replace(&self, entries: &[String]) -> Result<(), SettingError> {
        let list = entries
            .iter()
            .map(|entry| {
                Target::parse(entry).ok_or_else(|| SettingError::new(&ALLOW_KEY, TARGET_RULE, entry))
            })
            .collect::<Result<_, _>>()?;
        let generation = self.0.get().generation + 1;
        self.0.set(Targets { list, generation });
        Ok(())
    }
}

/// The rules.
#[derive(Debug)]
pub(super) struct Guard {
    allowed: AllowedTargets,
    health: Option<(String, SocketAddr)>,
}

/// What one entry of the setting lets through.
#[derive(Debug, PartialEq)]
enum Target {
    Range { base: IpAddr, prefix: u8 },
    Address { ip: IpAddr, port: Option<u16> },
    Name { host: String, port: Option<u16> },
}

impl Guard {
    /// Reads the settings.
    pub(super) fn new(allow_targets: &[String], extras: Extras) -> Result<Self, SettingError> {
        let allowed = extras.http_targets;
        allowed.replace(allow_targets)?;
        let health = extras
            .health_target
            .map(|(host, address)| (normal_name(&host), reachable(address)));
        Ok(Self { allowed, health })
    }

    /// Grows when the rules are replaced: connections that are still open were let through by the rules before.
    pub(super) fn generation(&self) -> u64 {
        self.allowed.0.get().generation
    }

    /// The addresses that a request to `url` may be sent to, in the order in which to try them.
    pub(super) async fn addresses(&self, url: &Url) -> Result<Vec<SocketAddr>, Failure> {
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(Failure::of_field(
                ErrorCode::InvalidInput,
                "url",
                "must have a host",
            ));
        };
        if let Some(address) = self.health_address(&host, port) {
            return Ok(vec![address]);
        }
        let (name, found) = match host {
            Host::Ipv4(ip) => (None, vec![SocketAddr::new(ip.into(), port)]),
            Host::Ipv6(ip) => (None, vec![SocketAddr::new(ip.into(), port)]),
            Host::Domain(name) => (Some(normal_name(name)), resolve(name, port).await?),
        };
        let passing: Vec<_> = found
            .iter()
            .copied()
            .filter(|address| self.passes(name.as_deref(), *address))
            .collect();
        if passing.is_empty() {
            return Err(denied(&found));
        }
        Ok(passing)
    }

    fn health_address(&self, host: &Host<&str>, port: u16) -> Option<SocketAddr> {
        let (symbolic, address) = self.health.as_ref()?;
        let is_symbolic = matches!(host, Host::Domain(name) if normal_name(name) == *symbolic);
        let is_literal = port == address.port()
            && match host {
                Host::Domain(name) => normal_name(name) == "localhost" && address.ip().is_loopback(),
                Host::Ipv4(ip) => IpAddr::from(*ip) == address.ip(),
                Host::Ipv6(ip) => IpAddr::from(*ip) == address.ip(),
            };
        (is_symbolic || is_literal).then_some(*address)
    }

    fn passes(&self, name: Option<&str>, address: SocketAddr) -> bool {
        refusal(address.ip()).is_none()
            || self
                .allowed
                .0
                .get()
                .list
                .iter()
                .any(|target| target.covers(name, address))
    }
}

/// Whether this can be an entry of the setting.
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
        // The parser of URLs decides what a name is; it also turns odd spellings of addresses into addresses, which
        // nobody means in a setting.
        match Host::parse(host).ok()? {
            Host::Domain(name) if !name.contains('*') => Some(Self::Name {
                host: normal_name(&name),
                port,
            }),
            _ => None,
        }
    }

    fn covers(&self, name: Option<&str>, address: SocketAddr) -> bool {
        let port_fits = |port: &Option<u16>| port.is_none_or(|port| port == address.port());
        let ip = address.ip().to_canonical();
        match self {
            Self::Range { base, prefix } => {
                in_range(ip, *base, *prefix) || in_range(address.ip(), *base, *prefix)
            }
            Self::Address { ip: allowed, port } => port_fits(port) && ip == allowed.to_canonical(),
            Self::Name { host, port } => port_fits(port) && name == Some(host.as_str()),
        }
    }
}

async fn resolve(name: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    let unresolved = || Failure::new(ErrorCode::NetworkError, "url: the host name cannot be resolved");
    let found: Vec<_> = tokio::net::lookup_host((name, port))
        .await
        .map_err(|error| unresolved().internally(error))?
        .collect();
    if found.is_empty() {
        return Err(unresolved().internally("the name has no addresses"));
    }
    Ok(found)
}

/// External text names the rule only: which address a name has inside is nothing a caller is to learn.
fn denied(found: &[SocketAddr]) -> Failure {
    let kinds: Vec<_> = found
        .iter()
        .map(|address| {
            let kind = refusal(address.ip()).unwrap_or("public");
            format!("{} ({kind})", address.ip())
        })
        .collect();
    let key = ALLOW_KEY.join(".");
    let rule = format!("the target is not public, and {key} does not let it through");
    Failure::of_field(ErrorCode::PermissionDenied, "url", &rule).internally(kinds.join(", "))
}

fn normal_name(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// An endpoint that listens on all addresses is reached on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, address.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, address.port()).into(),
        _ => address,
    }
}

fn in_range(ip: IpAddr, base: IpAddr, prefix: u8) -> bool {
    match (ip, base) {
        (IpAddr::V4(ip), IpAddr::V4(base)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            ip.to_bits() & mask == base.to_bits() & mask
        }
        (IpAddr::V6(ip), IpAddr::V6(base)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            ip.to_bits() & mask == base.to_bits() & mask
        }
        _ => false,
    }
}

/// IPv4 blocks that are not public, with the reason (IANA special-purpose registry).
const REFUSED_V4: &[(Ipv4Addr, u8, &str)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8, "unspecified"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "carrier-grade NAT"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "protocol assignments"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "documentation"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "6to4 relay"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

/// IPv6 blocks that are not public. What is in none of them must still be in 2000::/3, the only block from which public
/// addresses are given out; the entries outside of it serve the reason.
const REFUSED_V6: &[(Ipv6Addr, u8, &str)] = &[
    (Ipv6Addr::UNSPECIFIED, 128, "unspecified"),
    (Ipv6Addr::LOCALHOST, 128, "loopback"),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, "IPv4-mapped"),
    (Ipv6Addr::UNSPECIFIED, 96, "IPv4-compatible"),
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96, "NAT64"),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, "local NAT64"),
    (
        Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0),
        23,
        "protocol assignments",
    ),
    (
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0),
        32,
        "documentation",
    ),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "6to4"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "documentation"),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, "unique local"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "link-local"),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, "site-local"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "multicast"),
];

/// Why an address is not public; nothing when it is.
fn refusal(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(_) => REFUSED_V4
            .iter()
            .find(|(base, prefix, _)| in_range(ip, (*base).into(), *prefix))
            .map(|(_, _, reason)| *reason),
        IpAddr::V6(v6) => REFUSED_V6
            .iter()
            .find(|(base, prefix, _)| in_range(ip, (*base).into(), *prefix))
            .map(|(_, _, reason)| *reason)
            .or_else(|| (v6.segments()[0] >> 13 != 1).then_some("reserved")),
    }
}

#[cfg(test)]
mod tests;
