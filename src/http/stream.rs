//! A connection of a port, plain or encrypted, with what is known of the other side.
//!
//! Neighbours: `Port` lets it in, `connection` limits what it may bring. Never looks at what is sent.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_rt::net::TcpStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::peers::{Connected, Peers};
use super::tls::Certified;

/// How long a handshake may take: it is three small messages each way at most.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(3);

/// A connection that was let in.
#[derive(Debug)]
pub(super) struct Stream {
    inner: Inner,
    /// Counts for its address until it is closed.
    _counted: Option<Connected>,
}

#[derive(Debug)]
enum Inner {
    Plain(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// One that nobody counts and nothing encrypts.
    pub(super) fn plain(stream: TcpStream) -> Self {
        Self {
            inner: Inner::Plain(stream),
            _counted: None,
        }
    }

    /// Counts the connection and shakes hands. The error says in words why it is not let in.
    pub(super) async fn admit(
        stream: TcpStream,
        peer: SocketAddr,
        peers: &Peers,
        acceptor: Option<TlsAcceptor>,
    ) -> Result<Self, String> {
        let counted = peers.connect(peer.ip(), Instant::now());
        let counted = Some(counted.ok_or("too many connections of one address")?);
        let inner = match acceptor {
            None => Inner::Plain(stream),
            Some(acceptor) => match timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => Inner::Encrypted(Box::new(stream)),
                Ok(Err(error)) => return Err(format!("no TLS handshake: {error}")),
                Err(_) => return Err("the TLS handshake took too long".to_owned()),
            },
        };
        Ok(Self {
            inner,
            _counted: counted,
        })
    }

    /// The certificate of the other side, which the handshake has verified.
    pub(super) fn certified(&self) -> Option<Certified> {
        let Inner::Encrypted(stream) = &self.inner else {
            return None;
        };
        let chain = stream.get_ref().1.peer_certificates()?;
        chain.first().map(Certified::of)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Inner::Encrypted(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            Inner::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Inner::Encrypted(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(stream) => Pin::new(stream).poll_flush(context),
            Inner::Encrypted(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Inner::Encrypted(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}
