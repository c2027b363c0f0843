//! Asks a node's admin port, for people at a terminal: [`explain`], [`top`], [`cancel`] and [`approvals`].
//!
//! Neighbours: the command line calls it; [`crate::http::admin`] answers. What comes back may hold whatever callers chose as
//! ids: it is made harmless for a terminal before it is printed.

pub mod approvals;
pub mod cancel;
pub mod explain;
pub mod text;
pub mod top;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use caf_actors::errors::chain;
use caf_protocol::secret::Secret;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::{Method, Request};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;
use tokio_rustls::rustls::ClientConfig;
use url::Url;

use crate::settings::HttpSettings;

/// How long a node may take to answer: it looks into the fleet's claims for up to two seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;

/// Where the node is, and the token it wants.
pub struct Node {
    base: Url,
    token: Option<Secret>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// An answer of the node.
#[derive(Debug)]
pub struct Said {
    /// Status of the answer.
    pub status: u16,
    /// The answer.
    pub body: Value,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Silence {
    /// The node is not there, or something else is.
    #[error("the node does not answer at {0}: {1}")]
    NoAnswer(String, String),
    /// It wants a token, or another one.
    #[error(
        "the node at {0} refuses the token: set http.admin_token as the node has it (WORKER__HTTP__ADMIN_TOKEN)"
    )]
    Token(String),
    /// It does not want to be asked like this.
    #[error("the node at {0} refuses to answer: {1}")]
    Refused(String, String),
}

/// Where to ask: `given`, else where the settings put the admin port.
///
/// # Errors
/// A sentence, when that is nowhere.
pub fn address(given: Option<&str>, settings: &HttpSettings) -> Result<Url, String> {
    let scheme = if settings.admin_tls.is_on() {
        "https"
    } else {
        "http"
    };
    let text = match given {
        Some(given) if given.contains("://") => given.to_owned(),
        Some(given) => format!("{scheme}://{given}"),
        None => format!("{scheme}://{}", own_address(&settings.admin_addr)?),
    };
    let url = Url::parse(&text).map_err(|error| format!("--admin {text}: {error}"))?;
    let is_http = matches!(url.scheme(), "http" | "https");
    let plain = is_http && url.has_host() && url.username().is_empty() && url.password().is_none();
    if !plain || url.query().is_some() || url.fragment().is_some() {
        return Err(format!(
            "--admin must have the form http://host:port or https://host:port, not {}",
            text::clean(&text)
        ));
    }
    Ok(url)
}

/// Where the port of this machine is that listens at `text`.
fn own_address(text: &str) -> Result<SocketAddr, String> {
    let mut address: SocketAddr = text
        .parse()
        .map_err(|error| format!("http.admin_addr: {error}"))?;
    if address.port() == 0 {
        return Err("http.admin_addr has port 0: name the port that the node logs with --admin".to_owned());
    }
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(address)
}

impl Node {
    /// The node at `base`, which trusts and is trusted as `tls` says.
    pub fn new(base: Url, token: Option<Secret>, tls: ClientConfig) -> Self {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        // Follows no redirects: nobody else gets the token.
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self { base, token, client }
    }

    /// Asks for a path below the node's address; `path` is encoded.
    ///
    /// # Errors
    /// [`Silence`].
    pub async fn ask(&self, path: &str) -> Result<Said, Silence> {
        self.exchange(Method::GET, path, Vec::new()).await
    }

    /// Tells it something that is JSON, at a path below its address.
    ///
    /// # Errors
    /// [`Silence`].
    pub async fn tell(&self, path: &str, body: Vec<u8>) -> Result<Said, Silence> {
        self.exchange(Method::POST, path, body).await
    }

    async fn exchange(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Said, Silence> {
        let base = self.base.as_str().trim_end_matches('/').to_owned();
        let silent = |why: &str| Silence::NoAnswer(base.clone(), text::clean(why));
        let mut request = Request::builder().method(method).uri(format!("{base}{path}"));
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| silent(&chain(&error)))?;
        let asked = async {
            let response = self.client.request(request).await;
            let response = response.map_err(|error| silent(&chain(&error)))?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
                .collect()
                .await;
            let body = body.map_err(|error| silent(&chain(error.as_ref())))?;
            Ok((status, body.to_bytes()))
        };
        let asked = timeout(PATIENCE, asked).await;
        let (status, body) = asked.unwrap_or_else(|_| Err(silent("no answer in time")))?;
        let body: Value =
            serde_json::from_slice(&body).map_err(|_| silent(&format!("status {status}, not JSON")))?;
        let refused = || text::clean(body["error"].as_str().unwrap_or("no reason given"));
        match status {
            200 | 404 | 409 => Ok(Said { status, body }),
            401 => Err(Silence::Token(base)),
            400..=499 => Err(Silence::Refused(base, refused())),
            _ => Err(silent(&format!("status {status}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_this_machine_is_asked_unless_another_is_named() {
        let of = |given: Option<&str>, admin_addr: &str| {
            let settings = HttpSettings {
                admin_addr: admin_addr.to_owned(),
                ..HttpSettings::default()
            };
            address(given, &settings).map(|url| url.to_string())
        };
        let url = |text: &str| Ok(text.to_owned());
        assert_eq!(of(None, "127.0.0.1:9093"), url("http://127.0.0.1:9093/"));
        assert_eq!(of(None, "0.0.0.0:7"), url("http://127.0.0.1:7/"));
        assert_eq!(of(None, "[::]:7"), url("http://[::1]:7/"));
        assert_eq!(of(Some("10.0.0.1:7"), "127.0.0.1:0"), url("http://10.0.0.1:7/"));
        assert_eq!(of(Some("http://w-0:7/"), "127.0.0.1:0"), url("http://w-0:7/"));
        assert!(of(None, "127.0.0.1:0").is_err());
        for bad in ["file:///etc", "http://", "http://u:p@a", "http://a?x", "a b"] {
            assert!(of(Some(bad), "127.0.0.1:1").is_err(), "{bad}");
        }
    }
}
