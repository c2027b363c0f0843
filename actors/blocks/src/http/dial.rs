//! Opens connections for the HTTP client: TCP to the address that the guard has checked, then TLS where asked for.
//!
//! Neighbours: `guard` chooses addresses, awc calls [`Dial`] when its pool has no connection, `wire` wraps the result.
//! Never resolves a name: a request without a checked address does not get out.

use std::sync::Arc;
use std::task::{Context, Poll};

use actix_rt::net::TcpStream;
use actix_service::Service;
use actix_tls::connect::{ConnectError, ConnectInfo, Connection};
use awc::http::Uri;
use futures_util::future::LocalBoxFuture;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::clients::Open;
use super::wire::{Io, Wire};
use crate::tls;

/// Makes connections of one kind.
#[derive(Clone)]
pub(super) struct Dial {
    tls: Option<TlsConnector>,
    /// Most bytes as which the body of one answer may travel.
    max_body_bytes: u64,
}

impl Dial {
    /// Unencrypted connections.
    pub(super) fn plain(max_body_bytes: u64) -> Self {
        Self {
            tls: None,
            max_body_bytes,
        }
    }

    /// Encrypted connections.
    pub(super) fn secure(config: Arc<ClientConfig>, max_body_bytes: u64) -> Self {
        Self {
            tls: Some(TlsConnector::from(config)),
            max_body_bytes,
        }
    }
}

/// Trusts these authorities and speaks HTTP/1.1 only.
pub(super) fn tls_config(roots: RootCertStore) -> Arc<ClientConfig> {
    let mut config = tls::client_config(roots);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

impl Service<ConnectInfo<Uri>> for Dial {
    type Response = Connection<Uri, Wire>;
    type Error = ConnectError;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&self, info: ConnectInfo<Uri>) -> Self::Future {
        let tls = self.tls.clone();
        let max_body_bytes = self.max_body_bytes;
        Box::pin(async move {
            let address = info.addrs().next().ok_or(ConnectError::Unresolved)?;
            let stream = TcpStream::connect(address).await.map_err(ConnectError::Io)?;
            let open = Open::count();
            // Requests are written in one piece; waiting to fill a packet would only delay them.
            stream.set_nodelay(true).map_err(ConnectError::Io)?;
            let uri = info.request().clone();
            let io = match tls {
                None => Io::Plain(stream),
                Some(tls) => {
                    let host = uri.host().unwrap_or_default();
                    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                    let name = ServerName::try_from(host).map_err(|_| ConnectError::Unresolved)?;
                    let stream = tls.connect(name, stream).await.map_err(ConnectError::Io)?;
                    Io::Tls(Box::new(stream))
                }
            };
            Ok(Connection::new(uri, Wire::new(io, max_body_bytes, open)))
        })
    }
}
