//! Requests to servers that the settings name: whoever chose them is trusted with the target, so that no rule on targets
//! of jobs holds. One request goes to that origin and nowhere else: redirects are not followed.
//!
//! Neighbours: `crate::models` sends by it. Connections are made and bounded as those of [`super`] (`clients`, `dial`,
//! `wire`), and kept apart by tenant too. Never retries, never reads a body to its end by itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use awc::ClientResponse;
use awc::error::SendRequestError;
use awc::http::header::{self, HeaderMap, HeaderValue};
use bytes::Bytes;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use caf_protocol::trace_context::{SpanContext, TRACEPARENT, TRACESTATE};
use futures_util::StreamExt;
use tokio_rustls::rustls::ClientConfig;
use url::{Host, Url};

use super::clients::{self, Clients, Owner, UnderWay};
use super::decode::Coding;
use super::dial::Dial;
use super::lookup::{self, Resolve};
use super::{NEXT_ID, body, client, failure_of, header_text, never_connected, request, retry_after};

/// Most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;

/// Sends to servers of the settings.
pub(crate) struct Direct {
    id: u64,
    tls: Arc<ClientConfig>,
    resolve: Resolve,
}

/// One of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Server<'a> {
    /// Where to.
    pub(crate) url: &'a Url,
    /// Which it is among those of the settings.
    pub(crate) number: usize,
    /// Grows when the settings change: no open connection outlives them.
    pub(crate) generation: u64,
    /// Longest look-up, and longest connecting.
    pub(crate) connect_limit: Duration,
    /// Most bytes as which the body of an answer may travel, whatever carries them.
    pub(crate) max_body_bytes: u64,
}

/// Why there is no answer.
pub(crate) struct Unanswered {
    pub(crate) failure: Failure,
    /// Whether the request may have arrived all the same.
    pub(crate) may_have_arrived: bool,
}

impl From<Failure> for Unanswered {
    /// Nothing was sent.
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            may_have_arrived: false,
        }
    }
}

impl Direct {
    pub(super) fn new(tls: Arc<ClientConfig>) -> Self {
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            tls,
            resolve: lookup::by_system(),
        }
    }

    /// Sends one POST and waits for the head of its answer. Addresses are tried in turn as long as none takes the
    /// connection; a request that may have been sent is never sent again.
    pub(crate) async fn post(
        &self,
        server: Server<'_>,
        tenant: &str,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Exchange, Unanswered> {
        let under_way = UnderWay::count();
        let lookup = self.addresses(server.url, tenant);
        let addresses = tokio::time::timeout(server.connect_limit, lookup)
            .await
            .map_err(|_| {
                let text = "timeout while the provider's host name was looked up";
                Failure::new(ErrorCode::ConnectionTimeout, text)
            })??;
        let mut last = Failure::new(ErrorCode::NetworkError, "the provider's host has no address");
        for address in addresses {
            match self.post_to(server, address, (tenant, headers, body)).await {
                Err(error) if never_connected(&error) => last = failure_of(error),
                Err(error) => {
                    return Err(Unanswered {
                        failure: failure_of(error),
                        may_have_arrived: true,
                    });
                }
                Ok(response) => {
                    return Ok(Exchange {
                        response,
                        max_body_bytes: server.max_body_bytes,
                        _under_way: under_way,
                    });
                }
            }
        }
        Err(last.into())
    }

    async fn addresses(&self, url: &Url, tenant: &str) -> Result<Vec<SocketAddr>, Failure> {
        let port = url.port_or_known_default().unwrap_or_default();
        let unresolved = || {
            Failure::new(
                ErrorCode::NetworkError,
                "the provider's host name cannot be resolved",
            )
        };
        let mut found = match url.host() {
            Some(Host::Ipv4(ip)) => vec![SocketAddr::new(ip.into(), port)],
            Some(Host::Ipv6(ip)) => vec![SocketAddr::new(ip.into(), port)],
            Some(Host::Domain(name)) => (self.resolve)(name.to_owned(), port, tenant.to_owned())
                .await
                .map_err(|error| unresolved().internally(error))?,
            None => return Err(unresolved()),
        };
        found.truncate(MAX_ADDRESSES);
        Ok(found)
    }

    async fn post_to(
        &self,
        server: Server<'_>,
        address: SocketAddr,
        (tenant, headers, body): (&str, &HeaderMap, &Bytes),
    ) -> Result<ClientResponse, SendRequestError> {
        let owner = Owner {
            block: self.id,
            server: server.number,
        };
        let clients = clients::of_thread(owner, server.generation, || Clients {
            plain: client(Dial::plain(server.max_body_bytes), server.connect_limit),
            secure: client(
                Dial::secure(Arc::clone(&self.tls), server.max_body_bytes),
                server.connect_limit,
            ),
        });
        let client = match server.url.scheme() {
            "https" => &clients.secure,
            _ => &clients.plain,
        };
        let pool = clients::pool_of(tenant, address, server.generation);
        let mut outgoing = client
            .post(request::target(server.url, &pool))
            .address(address)
            .no_decompress()
            .insert_header((header::HOST, request::host_header(server.url)));
        for (name, value) in headers {
            outgoing = outgoing.insert_header((name.clone(), value.clone()));
        }
        outgoing.send_body(body.clone()).await
    }
}

/// Adds the headers that say in which trace a request is made.
pub(crate) fn say_span(headers: &mut HeaderMap, span: &SpanContext) {
    let values = [
        (TRACEPARENT, Some(span.traceparent())),
        (TRACESTATE, span.state.as_deref().map(str::to_owned)),
    ];
    for (name, value) in values {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(header::HeaderName::from_static(name), value);
        }
    }
}

/// An answer whose head is here. Dropping it before its end closes the connection.
pub(crate) struct Exchange {
    response: ClientResponse,
    max_body_bytes: u64,
    _under_way: UnderWay,
}

impl Exchange {
    pub(crate) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// Content type in lower case, without parameters; empty where there is none.
    pub(crate) fn content_type(&self) -> String {
        let text = header_text(&self.response, header::CONTENT_TYPE).unwrap_or_default();
        let kind = text.split(';').next().unwrap_or_default();
        kind.trim().to_ascii_lowercase()
    }

    /// The wait that `Retry-After` asks for, in milliseconds.
    pub(crate) fn retry_after_ms(&self) -> Option<u64> {
        let text = header_text(&self.response, header::RETRY_AFTER)?;
        retry_after::wait_ms(&text, SystemTime::now())
    }

    /// Whether the body comes in a coding, although none was asked for.
    pub(crate) fn is_coded(&self) -> bool {
        let coding = header_text(&self.response, header::CONTENT_ENCODING);
        coding.is_some_and(|coding| !matches!(coding.trim().to_ascii_lowercase().as_str(), "" | "identity"))
    }

    /// The next bytes of the body; nothing at its end.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        let next = self.response.next().await?;
        let limit = usize::try_from(self.max_body_bytes).unwrap_or(usize::MAX);
        Some(next.map_err(|error| body::broken_off(error, limit)))
    }

    /// The whole body, if it is no larger than this.
    pub(crate) async fn receive(self, max_bytes: u64) -> Result<Vec<u8>, Failure> {
        let coding = header_text(&self.response, header::CONTENT_ENCODING);
        let coding = Coding::from_header(coding.as_deref());
        body::receive(self.response, coding, None, max_bytes).await
    }
}
