//! Where a request may go: names are resolved here, once, every address is judged, and the request goes to the very
//! address that was judged, so that a second look-up cannot change the answer.
//!
//! Neighbours: [`super`] asks before every hop of a request; `rules` judges, `lookup` resolves; `dial` connects to what
//! this returned and to nothing else. A pooled connection is found only by tenant, address and rules that are the same
//! ([`Passage`]), so reuse cannot bypass the guard. Never connects.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use caf_protocol::endpoint::Sign;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use url::{Host, Url};

use super::lookup::{self, Resolve};
use super::rules::{Asked, Refusal, Rules, TargetRules, normal_name};
use crate::Extras;
use crate::settings::{HttpSettings, SettingError};

/// Most addresses of a name that are tried. More would let a name have one job knock at any number of doors.
const MAX_ADDRESSES: usize = 8;

/// The rules.
pub(super) struct Guard {
    rules: TargetRules,
    health: Option<(String, SocketAddr)>,
    pub(super) resolve: Resolve,
}

/// Where a request may be sent, and by which rules.
#[derive(Debug, PartialEq)]
pub(super) struct Passage {
    /// In the order in which to try them; never empty.
    pub(super) addresses: Vec<SocketAddr>,
    /// Which rules let it through.
    pub(super) generation: u64,
}

impl Guard {
    /// Reads the settings.
    pub(super) fn new(settings: &HttpSettings, extras: Extras) -> Result<Self, SettingError> {
        let rules = extras.http_targets;
        rules.replace(settings)?;
        let health = extras
            .health_target
            .map(|(host, address)| (normal_name(&host), reachable(address)));
        Ok(Self {
            rules,
            health,
            resolve: lookup::by_system(),
        })
    }

    /// Grows when the rules are replaced.
    pub(super) fn generation(&self) -> u64 {
        self.rules.get().generation()
    }

    /// Where a request of this tenant to `url` may be sent.
    ///
    /// Of a name with addresses of both kinds only those are used that may be reached. To refuse the name would gain
    /// nothing, as no other is ever connected to; and a second, private address is common where a network has names
    /// of its own.
    pub(super) async fn passage(&self, url: &Url, tenant: &str) -> Result<Passage, Failure> {
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(Failure::of_field(
                ErrorCode::InvalidInput,
                "url",
                "must have a host",
            ));
        };
        if let Some(address) = self.health_address(&host, port) {
            return Ok(Passage {
                addresses: vec![address],
                generation: self.generation(),
            });
        }
        // Nobody is asked about a name that is denied as such.
        self.judge_as_written(&host, port, tenant)?;
        let (name, found) = match host {
            Host::Ipv4(ip) => (None, vec![SocketAddr::new(ip.into(), port)]),
            Host::Ipv6(ip) => (None, vec![SocketAddr::new(ip.into(), port)]),
            Host::Domain(name) => (Some(normal_name(name)), self.look_up(name, port, tenant).await?),
        };
        // After the look-up: whatever it took, these are the rules of the moment at which it is decided.
        let rules = self.rules.get();
        let name = name.as_deref();
        let (mut addresses, mut refused) = (Vec::new(), Vec::new());
        for address in found {
            match rules.judge(Asked {
                tenant,
                name,
                address,
            }) {
                Ok(()) if addresses.contains(&address) => {}
                Ok(()) => addresses.push(address),
                Err(refusal) => refused.push((Some(address), refusal)),
            }
        }
        if addresses.is_empty() {
            return Err(denied(&refused));
        }
        addresses.truncate(MAX_ADDRESSES);
        Ok(Passage {
            addresses,
            generation: rules.generation(),
        })
    }

    /// Judges the target of a request that is still to be sent by what can be said of it without asking anybody. What is
    /// refused here is refused each time.
    pub(super) fn check_first(&self, url: &Url, tenant: &str) -> Result<(), Failure> {
        match (url.host(), url.port_or_known_default()) {
            (Some(host), Some(port)) if self.health_address(&host, port).is_none() => self
                .judge_as_written(&host, port, tenant)
                .map_err(|failure| failure.saying(Sign::Refused)),
            _ => Ok(()),
        }
    }

    fn judge_as_written(&self, host: &Host<&str>, port: u16, tenant: &str) -> Result<(), Failure> {
        let rules = self.rules.get();
        let (address, judged) = match host {
            Host::Domain(name) => (None, rules.judge_name(tenant, &normal_name(name), port)),
            Host::Ipv4(ip) => judge_literal(&rules, (*ip).into(), port, tenant),
            Host::Ipv6(ip) => judge_literal(&rules, (*ip).into(), port, tenant),
        };
        judged.map_err(|refusal| denied(&[(address, refusal)]))
    }

    async fn look_up(&self, name: &str, port: u16, tenant: &str) -> Result<Vec<SocketAddr>, Failure> {
        let unresolved = || Failure::new(ErrorCode::NetworkError, "url: the host name cannot be resolved");
        let found = (self.resolve)(name.to_owned(), port, tenant.to_owned())
            .await
            .map_err(|error| unresolved().internally(error))?;
        if found.is_empty() {
            return Err(unresolved().internally("the name has no addresses"));
        }
        Ok(found)
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
}

fn judge_literal(
    rules: &Rules,
    ip: IpAddr,
    port: u16,
    tenant: &str,
) -> (Option<SocketAddr>, Result<(), Refusal>) {
    let address = SocketAddr::new(ip, port);
    let asked = Asked {
        tenant,
        name: None,
        address,
    };
    (Some(address), rules.judge(asked))
}

/// External text names the rule only: which address a name has inside is nothing a caller is to learn.
fn denied(refused: &[(Option<SocketAddr>, Refusal)]) -> Failure {
    let shown: Vec<_> = refused
        .iter()
        .take(MAX_ADDRESSES)
        .map(|(address, refusal)| match address {
            Some(address) => format!("{} ({})", address.ip(), refusal.reason()),
            None => format!("not looked up ({})", refusal.reason()),
        })
        .collect();
    let rule = refused.first().map(|(_, refusal)| refusal.rule());
    Failure::of_field(ErrorCode::PermissionDenied, "url", &rule.unwrap_or_default())
        .internally(shown.join(", "))
}

/// An endpoint that listens on all addresses is reached on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, address.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, address.port()).into(),
        _ => address,
    }
}

#[cfg(test)]
mod tests;
