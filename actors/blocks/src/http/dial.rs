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
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::wire::{Io, Wire};

/// Makes connections of one kind.
#[derive(Clone)]
pub(super) struct Dial {
    tls: Option<TlsConnector>,
}

impl Dial {
    /// Unencrypted connections.
    pub(super) fn plain() -> Self {
        Self { tls: None }
    }

    /// Encrypted connections.
    pub(super) fn secure(config: Arc<ClientConfig>) -> Self {
        Self {
            tls: Some(TlsConnector::from(config)),
        }
    }
}

/// The public authorities.
pub(super) fn public_roots() -> RootCertStore {
    RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned())
}

/// Trusts these authorities and speaks HTTP/1.1 only.
pub(super) fn tls_config(roots: RootCertStore) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring implements the default protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
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
        Box::pin(async move {
            let address = info.addrs().next().ok_or(ConnectError::Unresolved)?;
            let stream = TcpStream::connect(address).await.map_err(ConnectError::Io)?;
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
            Ok(Connection::new(uri, Wire::new(io)))
        })
    }
}
