//! A connection to an HTTP server, put right for the client library on its way in.
//!
//! awc reads three things wrongly, all of them silently: an answer of HTTP/1.1 whose body ends with the connection (no
//! length, not chunked) has an empty body there; a body that breaks off before its announced end counts as complete; an
//! interim answer (1xx) counts as the answer. So this stream looks at each answer's head: it drops interim ones, marks
//! a body that ends with the connection as HTTP/1.0, for which awc reads to the end, and makes every other end of the
//! connection an error.
//!
//! Neighbours: `dial` wraps each new connection; awc reads and writes it, one request after the other. Never changes what
//! is sent, nor any byte of a body.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use actix_rt::net::{ActixStream, Ready, TcpStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

/// Longest head that is held back, in bytes; awc refuses longer ones itself.
const MAX_HEAD_BYTES: usize = 128 * 1024;
/// Most header lines of an answer, as in awc.
const MAX_HEADERS: usize = 96;

/// The connection below.
#[derive(Debug)]
pub(super) enum Io {
    /// As it is.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// A request is being written; the next bytes in begin a head.
    Request { is_head_method: bool },
    /// The head is passed on; what follows is body.
    Body { until_close: bool },
}

/// The connection.
#[derive(Debug)]
pub(super) struct Wire {
    io: Io,
    state: State,
    /// An incomplete head.
    held: Vec<u8>,
    /// Bytes to hand out before reading on, and how many of them are out.
    ready: Vec<u8>,
    handed_out: usize,
}

impl Wire {
    pub(super) fn new(io: Io) -> Self {
        Self {
            io,
            state: State::Request {
                is_head_method: false,
            },
            held: Vec::new(),
            ready: Vec::new(),
            handed_out: 0,
        }
    }

    fn tcp(&self) -> &TcpStream {
        match &self.io {
            Io::Plain(stream) => stream,
            Io::Tls(stream) => stream.get_ref().0,
        }
    }

    fn hand_out(&mut self, buf: &mut ReadBuf<'_>) {
        let rest = &self.ready[self.handed_out..];
        let count = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..count]);
        self.handed_out += count;
        if self.handed_out == self.ready.len() {
            self.ready = Vec::new();
            self.handed_out = 0;
        }
    }

    /// Reads until the head of the answer is complete and moves it to `ready`.
    fn poll_head(&mut self, cx: &mut Context<'_>, is_head_method: bool) -> Poll<io::Result<()>> {
        loop {
            if let Some(until_close) = judge(&mut self.held, is_head_method) {
                self.ready = std::mem::take(&mut self.held);
                self.state = State::Body { until_close };
                return Poll::Ready(Ok(()));
            }
            let mut space = [0; 8 * 1024];
            let mut chunk = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.held.extend_from_slice(chunk.filled());
        }
    }
}

/// Looks at the beginning of an answer. Nothing as long as the head is incomplete; else the head is put right, and the
/// value says whether the body ends with the connection.
fn judge(held: &mut Vec<u8>, is_head_method: bool) -> Option<bool> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut answer = httparse::Response::new(&mut headers);
        let mut parser = httparse::ParserConfig::default();
        parser.allow_spaces_after_header_name_in_responses(true);
        let length = match parser.parse_response(&mut answer, held) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if held.len() < MAX_HEAD_BYTES => return None,
            // Not HTTP, or too long: awc says so.
            Ok(httparse::Status::Partial) | Err(_) => return Some(false),
        };
        let status = answer.code.unwrap_or_default();
        if (100..200).contains(&status) && status != 101 {
            held.drain(..length);
            continue;
        }
        let has_length = answer.headers.iter().any(|header| {
            header.name.eq_ignore_ascii_case("content-length")
                || header.name.eq_ignore_ascii_case("transfer-encoding")
        });
        let has_no_body = is_head_method || matches!(status, 101 | 204 | 304);
        let until_close = !has_length && !has_no_body;
        if until_close && let Some(at) = held.windows(8).position(|part| part == b"HTTP/1.1") {
            held[at + 7] = b'0';
        }
        return Some(until_close);
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ready.is_empty()
            && let State::Request { is_head_method } = this.state
        {
            ready!(this.poll_head(cx, is_head_method))?;
        }
        if !this.ready.is_empty() {
            this.hand_out(buf);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let ended = buf.filled().len() == before && buf.remaining() > 0;
        if ended && this.state != (State::Body { until_close: true }) {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        // awc reads an answer to its end before it writes again, so a write after a head begins a request.
        if let State::Body { .. } = this.state {
            this.state = State::Request {
                is_head_method: false,
            };
            this.held.clear();
        }
        if let State::Request { is_head_method } = &mut this.state
            && this.held.is_empty()
        {
            *is_head_method |= buf.starts_with(b"HEAD ");
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

impl ActixStream for Wire {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        if self.ready.is_empty() {
            self.tcp().poll_read_ready(cx).map(|_| Ok(Ready::READABLE))
        } else {
            Poll::Ready(Ok(Ready::READABLE))
        }
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        ActixStream::poll_write_ready(self.tcp(), cx)
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_put_right_only_where_awc_would_misread_it() {
        for (given, is_head_method, expected, until_close) in [
            (
                "HTTP/1.1 200 OK\r\n\r\nbody",
                false,
                "HTTP/1.0 200 OK\r\n\r\nbody",
                true,
            ),
            (
                "HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n",
                false,
                "HTTP/1.0 404 Not Found\r\nConnection: close\r\n\r\n",
                true,
            ),
            ("HTTP/1.0 200 OK\r\n\r\n", false, "HTTP/1.0 200 OK\r\n\r\n", true),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                false,
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                false,
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
                false,
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
                false,
            ),
            ("HTTP/1.1 200 OK\r\n\r\n", true, "HTTP/1.1 200 OK\r\n\r\n", false),
            (
                "HTTP/1.1 204 No Content\r\n\r\n",
                false,
                "HTTP/1.1 204 No Content\r\n\r\n",
                false,
            ),
            (
                "HTTP/1.1 304 Not Modified\r\n\r\n",
                false,
                "HTTP/1.1 304 Not Modified\r\n\r\n",
                false,
            ),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
                false,
                "HTTP/1.0 200 OK\r\n\r\n",
                true,
            ),
            ("nonsense\r\n\r\n", false, "nonsense\r\n\r\n", false),
        ] {
            let mut held = given.as_bytes().to_vec();
            assert_eq!(judge(&mut held, is_head_method), Some(until_close), "{given:?}");
            assert_eq!(String::from_utf8_lossy(&held), expected, "{given:?}");
        }
    }

    #[test]
    fn an_incomplete_head_is_waited_for_up_to_a_bound() {
        for partial in [
            "",
            "HTTP/1.1 200 OK\r\nA: b\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 2",
        ] {
            assert_eq!(
                judge(&mut partial.as_bytes().to_vec(), false),
                None,
                "{partial:?}"
            );
        }
        let mut endless = format!("HTTP/1.1 200 OK\r\nA: {}", "b".repeat(MAX_HEAD_BYTES)).into_bytes();
        assert_eq!(judge(&mut endless, false), Some(false));
    }
}
