//! Reads the address of a server: where it is, and how a connection to it is encrypted.
//!
//! Neighbours: [`super`] builds its pool of an [`Address`]; `dial` keeps to its [`Trust`]. Does no I/O. Rules are told
//! without the address that breaks them: it may hold credentials.

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use crate::settings::SqlConnectionSettings;
use crate::sql::source::Broken;

/// Ways to encrypt, as an address names them.
const MODES: [&str; 5] = ["disable", "prefer", "require", "verify-ca", "verify-full"];

/// A server.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) config: Config,
    pub(super) trust: Trust,
}

/// What the certificate of the server must be, where a connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Trust {
    /// From a known authority, for the name of the host.
    Name,
    /// From an authority of the settings, for any name.
    Authority,
}

impl Address {
    pub(super) fn of(settings: &SqlConnectionSettings) -> Result<Self, Broken> {
        let (url, trust) = without_verify(settings.url.trim())?;
        let config: Config = url
            .parse()
            .map_err(|_| Broken::url("must be a PostgreSQL address, postgres://user@host:port/database"))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(Broken::url("must name a host"));
        }
        if trust == Trust::Authority && settings.ca_file.is_none() {
            // With public authorities it would let in whoever has a certificate for any name at all.
            return Err(Broken::ca_file("must be given for sslmode=verify-ca"));
        }
        Ok(Self { config, trust })
    }
}

/// Where a connection leads: hosts with their ports, and database; no user, no password, no other option.
pub(super) fn place(config: &Config) -> String {
    let ports = config.get_ports();
    // One port for all hosts, one for each, or the usual one.
    let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(5_432);
    let hosts = config.get_hosts().iter().enumerate();
    let mut hosts: Vec<_> = hosts
        .map(|(index, host)| match host {
            Host::Tcp(name) => format!("{name}:{}", port(index)),
            Host::Unix(path) => format!("{}:{}", path.display(), port(index)),
        })
        .collect();
    if hosts.is_empty() {
        let addresses = config.get_hostaddrs().iter().enumerate();
        hosts = addresses
            .map(|(index, address)| format!("{address}:{}", port(index)))
            .collect();
    }
    format!(
        "postgres://{}/{}",
        hosts.join(","),
        config.get_dbname().unwrap_or_default()
    )
}

/// Takes the modes that the driver does not know out of an address: it only knows that encryption is required.
fn without_verify(url: &str) -> Result<(String, Trust), Broken> {
    let mut trust = Trust::Name;
    // What holds an `@` is not the query: a question mark stands in a password, and the driver will judge it.
    let Some((before, query)) = url.rsplit_once('?').filter(|(_, query)| !query.contains('@')) else {
        return Ok((url.to_owned(), trust));
    };
    let mut parts = Vec::new();
    for part in query.split('&') {
        let Some(mode) = part.strip_prefix("sslmode=") else {
            parts.push(part);
            continue;
        };
        if !MODES.contains(&mode) {
            let rule = format!("sslmode must be one of {}", MODES.join(", "));
            return Err(Broken::url(rule));
        }
        // As in the driver, the last one counts.
        trust = if mode == "verify-ca" {
            Trust::Authority
        } else {
            Trust::Name
        };
        let is_verify = mode.starts_with("verify-");
        parts.push(if is_verify { "sslmode=require" } else { part });
    }
    Ok((format!("{before}?{}", parts.join("&")), trust))
}

/// Whether the connection may be made without encryption when it cannot be made with it.
pub(super) fn may_fall_back(config: &Config) -> bool {
    config.get_ssl_mode() == SslMode::Prefer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_connection_holds_no_credentials() {
        for (url, expected) in [
            ("postgres://u:p@h/d?application_name=x", "postgres://h:5432/d"),
            ("postgres://u:p@h:1,i:2/d", "postgres://h:1,i:2/d"),
            ("postgres://u:p@h:6000", "postgres://h:6000/"),
            ("postgres://u@/d?host=h&password=p", "postgres://h:5432/d"),
        ] {
            let address = Address::of(&SqlConnectionSettings::new(url)).expect(url);
            assert_eq!(place(&address.config), expected, "{url}");
        }
    }

    #[test]
    fn the_mode_says_whether_to_encrypt_and_whom_to_trust() {
        for (url, mode, trust) in [
            ("postgres://h/d", SslMode::Prefer, Trust::Name),
            ("postgres://h/d?sslmode=disable", SslMode::Disable, Trust::Name),
            ("postgres://h/d?sslmode=prefer", SslMode::Prefer, Trust::Name),
            ("postgres://h/d?sslmode=require", SslMode::Require, Trust::Name),
            (
                "postgres://h/d?sslmode=verify-full",
                SslMode::Require,
                Trust::Name,
            ),
            (
                "postgres://h/d?sslmode=verify-ca&connect_timeout=1",
                SslMode::Require,
                Trust::Authority,
            ),
            (
                "postgres://h/d?sslmode=verify-ca&sslmode=disable",
                SslMode::Disable,
                Trust::Name,
            ),
            (
                "postgres://u:p?sslmode=verify-ca@h/d",
                SslMode::Prefer,
                Trust::Name,
            ),
        ] {
            let mut settings = SqlConnectionSettings::new(url);
            settings.ca_file = Some("ca.pem".into());
            let address = Address::of(&settings).expect(url);
            assert_eq!(
                (address.config.get_ssl_mode(), address.trust),
                (mode, trust),
                "{url}"
            );
            settings.ca_file = None;
            let key = Address::of(&settings).err().map(|broken| broken.key);
            assert_eq!(key, (trust == Trust::Authority).then_some("ca_file"), "{url}");
        }
        for url in [
            "postgres://h/d?sslmode=allow",
            "postgres://h/d?sslmode=verify",
            "postgres://h/d?sslmode=",
        ] {
            let broken = Address::of(&SqlConnectionSettings::new(url)).expect_err(url);
            assert_eq!(
                broken.rule,
                "sslmode must be one of disable, prefer, require, verify-ca, verify-full"
            );
        }
    }
}
