//! Where a secret may be sent, as settings write it, and where it is about to be sent.
//!
//! Neighbours: settings parse [`Destination`]s, blocks make [`Target`]s of what they connect to. Names are compared as they
//! are, never resolved: whom a name leads to is the business of guards and certificates.

use std::fmt;
use std::net::IpAddr;

use url::{Host, Url};

/// What a destination must be.
pub const RULE: &str = "must be a host as in api.example.com (https on any port), a host with its port, an origin as in \
                        https://api.example.com:8443, http://10.0.0.1:8080 or postgres://db.example.com, or sql:<connection>";

/// Where a value is about to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A server.
    Server {
        /// `http`, `https` or `postgres`.
        scheme: String,
        /// Name in lower case, or address; IPv6 in brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A database that the settings name.
    Connection(String),
}

impl Target {
    /// The server that an address leads to; nothing for one without host or port.
    pub fn of_url(url: &Url) -> Option<Self> {
        let scheme = match url.scheme() {
            "postgresql" => "postgres",
            other => other,
        };
        let port = url
            .port_or_known_default()
            .or((scheme == "postgres").then_some(5_432))?;
        Self::server(scheme, url.host_str()?, port)
    }

    /// A server by its parts; nothing when the host is none.
    pub fn server(scheme: &str, host: &str, port: u16) -> Option<Self> {
        // Addresses in one form, names in lower case, also for schemes whose hosts nobody has looked at.
        let host = Host::parse(host).ok()?.to_string();
        Some(Self::Server {
            scheme: scheme.to_owned(),
            host,
            port,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server { scheme, host, port } => write!(f, "{scheme}://{host}:{port}"),
            Self::Connection(name) => write!(f, "sql:{name}"),
        }
    }
}

/// Where a secret may be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A host: by https, or by http when it is this very machine, where nobody listens on the way; on this port, or on any.
    Host(String, Option<u16>),
    /// Exactly this.
    Exactly(Target),
}

impl Destination {
    /// Reads one.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(name) = text.strip_prefix("sql:").filter(|name| !name.starts_with("//")) {
            let is_name = !name.is_empty() && name.trim() == name;
            return is_name
                .then(|| Self::Exactly(Target::Connection(name.to_owned())))
                .ok_or(RULE);
        }
        let (whole, is_origin) = match text.contains("://") {
            true => (text.to_owned(), true),
            false => (format!("https://{text}"), false),
        };
        let url = Url::parse(&whole).map_err(|_| RULE)?;
        let is_bare = matches!(url.path(), "" | "/")
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none()
            && !text.ends_with('/')
            && !text.contains(|c: char| c == '*' || c.is_whitespace())
            && url.port() != Some(0);
        let known = matches!(url.scheme(), "http" | "https" | "postgres" | "postgresql");
        let target = Target::of_url(&url).filter(|_| is_bare && known).ok_or(RULE)?;
        match target {
            Target::Server { host, port, .. } if !is_origin => {
                let has_port = text
                    .rsplit_once(':')
                    .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
                // The last part of an IPv6 address looks like a port, but for its bracket.
                Ok(Self::Host(host, has_port.then_some(port)))
            }
            target => Ok(Self::Exactly(target)),
        }
    }

    /// Whether what is for this destination may go there.
    pub fn covers(&self, target: &Target) -> bool {
        match (self, target) {
            (Self::Exactly(exactly), target) => exactly == target,
            (
                Self::Host(host, port),
                Target::Server {
                    scheme,
                    host: to,
                    port: at,
                },
            ) => {
                let by = scheme == "https" || (scheme == "http" && is_loopback(to));
                by && host == to && port.is_none_or(|port| port == *at)
            }
            (Self::Host(..), Target::Connection(_)) => false,
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}
