//! Bounds what the server may send in one message. The driver keeps a message in memory until it is whole, and one value
//! may have a gigabyte: whoever asks for that must not get it into this process.
//!
//! Neighbours: `dial` connects through a [`Channel`], and so do requests to cancel. Knows of the protocol only that a
//! message begins with one byte and its length.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Socket;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres_rustls::MakeRustlsConnect;

type Encrypted = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;
type Encrypting = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;

/// Bytes before the content of a message: its kind and its length, which counts itself.
const HEAD_BYTES: usize = 5;

/// How connections to one server are made: encrypted or not, and within a bound.
#[derive(Clone)]
pub(super) struct Channel {
    tls: MakeRustlsConnect,
    is_plain: bool,
    max_message_bytes: u64,
    shared: Arc<Shared>,
}

/// What all clones know.
#[derive(Default)]
struct Shared {
    /// Whether the last connection that came about is not encrypted.
    last_is_plain: AtomicBool,
    /// Connections that were given up because of a message above the limit.
    given_up: AtomicU64,
}

impl Channel {
    pub(super) fn new(tls: MakeRustlsConnect, max_message_bytes: u64) -> Self {
        Self {
            tls,
            is_plain: false,
            max_message_bytes,
            shared: Arc::default(),
        }
    }

    /// For a connection that is encrypted, or is not.
    pub(super) fn that_is(&self, plain: bool) -> Self {
        Self {
            is_plain: plain,
            ..self.clone()
        }
    }

    /// Notes that a connection came about through this one.
    pub(super) fn connected(&self) {
        self.shared.last_is_plain.store(self.is_plain, SeqCst);
    }

    /// For a request to cancel: as the last connection, for the server is the same.
    pub(super) fn as_the_last(&self) -> Self {
        self.that_is(self.shared.last_is_plain.load(SeqCst))
    }

    /// How many connections were given up because of a message above the limit. The driver says no more of the cause than
    /// that a connection is closed: who sees the number grow while a query runs takes that for the cause.
    pub(super) fn given_up(&self) -> u64 {
        self.shared.given_up.load(SeqCst)
    }
}

impl MakeTlsConnect<Socket> for Channel {
    type Stream = Bounded;
    type TlsConnect = Handshake;
    type Error = io::Error;

    fn make_tls_connect(&mut self, domain: &str) -> io::Result<Handshake> {
        let tls = if self.is_plain {
            None
        } else {
            let made = <MakeRustlsConnect as MakeTlsConnect<Socket>>::make_tls_connect(&mut self.tls, domain);
            Some(made.map_err(io::Error::other)?)
        };
        Ok(Handshake {
            tls,
            max_message_bytes: self.max_message_bytes,
            shared: Arc::clone(&self.shared),
        })
    }
}

/// What the driver takes for encryption.
pub(super) struct Handshake {
    tls: Option<Encrypting>,
    max_message_bytes: u64,
    shared: Arc<Shared>,
}

impl TlsConnect<Socket> for Handshake {
    type Stream = Bounded;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Bounded>>;

    fn connect(self, socket: Socket) -> Self::Future {
        async move {
            let inner = match self.tls {
                None => Inner::Plain(socket),
                Some(tls) => Inner::Encrypted(Box::new(tls.connect(socket).await?)),
            };
            let frames = Frames::new(self.max_message_bytes);
            Ok(Bounded {
                inner,
                frames,
                shared: self.shared,
            })
        }
        .boxed()
    }
}

enum Inner {
    Plain(Socket),
    Encrypted(Box<Encrypted>),
}

/// A connection whose messages have a bound.
pub(super) struct Bounded {
    inner: Inner,
    frames: Frames,
    shared: Arc<Shared>,
}

impl AsyncRead for Bounded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = match &mut this.inner {
            Inner::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Inner::Encrypted(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        match polled {
            Poll::Ready(Ok(())) => {
                let passed = this.frames.pass(&buf.filled()[before..]);
                if passed.is_err() {
                    this.shared.given_up.fetch_add(1, SeqCst);
                }
                Poll::Ready(passed)
            }
            other => other,
        }
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            Inner::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Inner::Encrypted(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Inner::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Inner::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl TlsStream for Bounded {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.inner {
            Inner::Plain(_) => ChannelBinding::none(),
            Inner::Encrypted(stream) => stream.channel_binding(),
        }
    }
}

/// Where in its messages the server is.
struct Frames {
    limit: u64,
    /// What has come of the head of the next message.
    head: [u8; HEAD_BYTES],
    has: usize,
    /// What is still to come of the content of this one.
    left: u64,
}

impl Frames {
    fn new(limit: u64) -> Self {
        Self {
            limit,
            head: [0; HEAD_BYTES],
            has: 0,
            left: 0,
        }
    }

    /// Reads along. The error comes before the content of the message that is too long.
    fn pass(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (HEAD_BYTES - self.has).min(bytes.len());
            self.head[self.has..self.has + taken].copy_from_slice(&bytes[..taken]);
            self.has += taken;
            bytes = &bytes[taken..];
            if self.has == HEAD_BYTES {
                let [_, length @ ..] = self.head;
                // A length below its own four bytes is the driver's to object to.
                self.left = u64::from(u32::from_be_bytes(length)).saturating_sub(4);
                self.has = 0;
                if self.left > self.limit {
                    return Err(io::Error::other("the server began a message above the limit"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let mut bytes = vec![b'D'];
        bytes.extend((length + 4).to_be_bytes());
        bytes.resize(HEAD_BYTES + length as usize, b'x');
        bytes
    }

    #[test]
    fn messages_up_to_the_limit_pass_in_whatever_pieces_they_come() {
        let bytes = [message(0), message(3), message(10), message(9)].concat();
        for size in 1..=bytes.len() {
            let mut frames = Frames::new(10);
            for piece in bytes.chunks(size) {
                assert!(frames.pass(piece).is_ok(), "pieces of {size}");
            }
            assert_eq!((frames.has, frames.left), (0, 0));
        }
    }

    #[test]
    fn a_message_above_the_limit_is_an_error_at_its_head() {
        let mut frames = Frames::new(10);
        assert!(frames.pass(&message(10)).is_ok());
        let long = message(11);
        assert!(frames.pass(&long[..4]).is_ok());
        assert!(frames.pass(&long[4..5]).is_err());
        let mut frames = Frames::new(u64::MAX);
        assert!(frames.pass(&[b'D', 0xff, 0xff, 0xff, 0xff]).is_ok(), "no panic");
    }
}
