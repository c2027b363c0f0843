//! A connection to an HTTP server, put right for the client library on its way in.
//!
//! awc reads three things wrongly, all of them silently: an answer of HTTP/1.1 whose body ends with the connection (no
//! length, not chunked) has an empty body there; a body that breaks off before its announced end counts as complete; an
//! interim answer (1xx) counts as the answer. So this stream looks at each answer's head: it drops interim ones, marks
//! a body that ends with the connection as HTTP/1.0, for which awc reads to the end, and makes every other end of the
//! connection an error.
//!
//! It is also where a server that means harm meets its bounds: how much comes before the answer, how long a head may be,
//! how many bytes a body may travel as, and heads that leave open where their body ends.
//!
//! Neighbours: `dial` wraps each new connection; awc reads and writes it, one request after the other. Never changes what
//! is sent, nor any byte of a body.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use actix_rt::net::{ActixStream, Ready, TcpStream};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

use super::clients::Open;

/// Most bytes of a head, interim answers before it included. Below what awc would read, and below the length of a header
/// name at which it panics; servers send a tenth of it.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Most header lines of an answer, as in awc.
const MAX_HEADERS: usize = 96;
/// Bytes after which an incomplete head is looked at again although it has not ended: what is no HTTP at all should be
/// told soon. The distance doubles each time, so that a head that comes byte by byte is not read all over for each.
const FIRST_LOOK_BYTES: usize = 16;

/// How an answer goes beyond its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Breach {
    /// Its head.
    #[error("the head, or the interim answers before it, have more than {MAX_HEAD_BYTES} bytes")]
    HeadTooLong,
    /// The lines of its head.
    #[error("the head has more than {MAX_HEADERS} lines")]
    TooManyHeaders,
    /// It is not HTTP, or leaves open where it ends.
    #[error("{0}")]
    Malformed(&'static str),
    /// The form in which its body travels.
    #[error("the body travels as far more bytes than it may have")]
    BodyTooLong,
}

impl Breach {
    /// The breach within an error of the connection.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }

    /// What the caller learns.
    pub(super) fn failure(self) -> Failure {
        let too_much = |text| Failure::new(ErrorCode::ResourceUnavailable, text);
        match self {
            Self::HeadTooLong => too_much("the answer's head is larger than the limit")
                .with("limit_bytes", json!(MAX_HEAD_BYTES)),
            Self::TooManyHeaders => too_much("the answer has more headers than the limit")
                .with("limit_headers", json!(MAX_HEADERS)),
            Self::BodyTooLong => too_much("the answer's body is larger than the limit"),
            Self::Malformed(_) => Failure::new(
                ErrorCode::NetworkError,
                "the connection was given up: the answer is not HTTP",
            ),
        }
        .internally(self)
    }
}

impl From<Breach> for io::Error {
    fn from(breach: Breach) -> Self {
        Self::new(io::ErrorKind::InvalidData, breach)
    }
}

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
    head: Head,
    /// Bytes to hand out before reading on, and how many of them are out.
    ready: Vec<u8>,
    handed_out: usize,
    /// Bytes of the body as it travels, and the most of them.
    body_bytes: u64,
    max_body_bytes: u64,
    _open: Open,
}

impl Wire {
    pub(super) fn new(io: Io, max_body_bytes: u64, open: Open) -> Self {
        Self {
            io,
            state: State::Request {
                is_head_method: false,
            },
            head: Head::default(),
            ready: Vec::new(),
            handed_out: 0,
            body_bytes: 0,
            max_body_bytes,
            _open: open,
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
            let mut space = [0; 8 * 1024];
            let mut chunk = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            if let Some(until_close) = self.head.take_in(chunk.filled(), is_head_method)? {
                self.ready = std::mem::take(&mut self.head).held;
                self.state = State::Body { until_close };
                self.body_bytes = 0;
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// The beginning of an answer, as far as it has come.
#[derive(Debug, Default)]
struct Head {
    /// An incomplete head.
    held: Vec<u8>,
    /// Bytes of interim answers before it.
    interim_bytes: usize,
    /// Length of `held` at which it is looked at even though it has not ended.
    look_at: usize,
}

impl Head {
    /// Adds to the incomplete head. When it is complete, says whether the body ends with the connection.
    fn take_in(&mut self, bytes: &[u8], is_head_method: bool) -> Result<Option<bool>, Breach> {
        let seen = self.held.len().saturating_sub(3);
        self.held.extend_from_slice(bytes);
        let new = &self.held[seen..];
        let may_end = new.windows(2).any(|end| end == b"\n\n") || new.windows(3).any(|end| end == b"\n\r\n");
        if may_end || self.held.len() >= self.look_at.max(FIRST_LOOK_BYTES) {
            let verdict = judge(&mut self.held, &mut self.interim_bytes, is_head_method)?;
            self.look_at = self.held.len() * 2;
            if verdict.is_some() {
                return Ok(verdict);
            }
        }
        if self.interim_bytes + self.held.len() > MAX_HEAD_BYTES {
            return Err(Breach::HeadTooLong);
        }
        Ok(None)
    }
}

/// Looks at the beginning of an answer. Nothing as long as the head is incomplete; else the head is put right, and the
/// value says whether the body ends with the connection.
fn judge(
    held: &mut Vec<u8>,
    interim_bytes: &mut usize,
    is_head_method: bool,
) -> Result<Option<bool>, Breach> {
    loop {
        let empty = held
            .iter()
            .take_while(|byte| matches!(byte, b'\r' | b'\n'))
            .count();
        held.drain(..empty);
        *interim_bytes += empty;
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut answer = httparse::Response::new(&mut headers);
        let mut parser = httparse::ParserConfig::default();
        parser.allow_spaces_after_header_name_in_responses(true);
        let length = match parser.parse_response(&mut answer, held) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(Breach::TooManyHeaders),
            Err(_) => return Err(Breach::Malformed("no head of an answer")),
        };
        if *interim_bytes + length > MAX_HEAD_BYTES {
            return Err(Breach::HeadTooLong);
        }
        let status = answer.code.unwrap_or_default();
        if status == 101 {
            return Err(Breach::Malformed("switches to a protocol that nobody asked for"));
        }
        if (100..200).contains(&status) {
            held.drain(..length);
            *interim_bytes += length;
            continue;
        }
        let has_length = has_length(&answer)?;
        let has_no_body = is_head_method || matches!(status, 204 | 304);
        let until_close = !has_length && !has_no_body;
        if until_close && let Some(at) = held.windows(8).position(|part| part == b"HTTP/1.1") {
            held[at + 7] = b'0';
        }
        return Ok(Some(until_close));
    }
}

/// Whether the head says where the body ends; an error where it says so in two ways, or in none that can be read (RFC 9112,
/// section 6.3): whoever else reads this connection might read another end.
fn has_length(answer: &httparse::Response<'_, '_>) -> Result<bool, Breach> {
    let values = |name: &'static str| {
        let named = answer
            .headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value.trim_ascii())
    };
    let lengths = values("content-length").count();
    let codings = values("transfer-encoding").count();
    if lengths + codings > 1 {
        return Err(Breach::Malformed("says in more than one way where the body ends"));
    }
    if values("content-length").any(|value| value.is_empty() || !value.iter().all(u8::is_ascii_digit)) {
        return Err(Breach::Malformed("has a length that is no number"));
    }
    let is_readable = |value: &[u8]| value.eq_ignore_ascii_case(b"chunked") && answer.version == Some(1);
    if !values("transfer-encoding").all(is_readable) {
        return Err(Breach::Malformed("has a transfer coding other than chunked"));
    }
    Ok(lengths + codings > 0)
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
        this.body_bytes += (buf.filled().len() - before) as u64;
        if this.body_bytes > this.max_body_bytes {
            return Poll::Ready(Err(Breach::BodyTooLong.into()));
        }
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
            this.head = Head::default();
        }
        if let State::Request { is_head_method } = &mut this.state
            && this.head.held.is_empty()
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
        ] {
            let mut held = given.as_bytes().to_vec();
            let verdict = judge(&mut held, &mut 0, is_head_method);
            assert_eq!(verdict, Ok(Some(until_close)), "{given:?}");
            assert_eq!(String::from_utf8_lossy(&held), expected, "{given:?}");
        }
    }

    /// What becomes of an answer that comes in pieces of this size.
    fn arrive(answer: &[u8], size: usize) -> Result<Option<bool>, Breach> {
        let mut head = Head::default();
        let verdicts = answer.chunks(size).map(|piece| head.take_in(piece, false));
        verdicts.last().expect("has pieces")
    }

    #[test]
    fn a_head_that_comes_byte_by_byte_is_complete_when_it_is_and_not_read_all_over_for_each() {
        let whole = format!(
            "HTTP/1.1 103 Hm\r\n\r\nHTTP/1.1 200 OK\r\nA: {}\r\n\r\n",
            "b".repeat(60_000)
        );
        let (mut head, mut looks) = (Head::default(), 0);
        for (at, byte) in whole.bytes().enumerate() {
            let before = head.look_at;
            let verdict = head.take_in(&[byte], false);
            looks += usize::from(head.look_at != before);
            let expected = if at + 1 == whole.len() { Some(true) } else { None };
            assert_eq!(verdict, Ok(expected), "{at}");
        }
        assert!(looks < 30, "{looks}");
        assert_eq!(arrive("HTTP/1.1 204 Hm\n\n".as_bytes(), 1), Ok(Some(false)));
    }

    #[test]
    fn an_incomplete_head_is_waited_for() {
        for partial in [
            "",
            "\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 2",
        ] {
            let mut held = partial.as_bytes().to_vec();
            assert_eq!(judge(&mut held, &mut 0, false), Ok(None), "{partial:?}");
        }
    }

    #[test]
    fn heads_that_leave_open_where_the_body_ends_are_refused() {
        for head in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: 5\r\ncontent-length: 5",
            "Content-Length: -5",
            "Content-Length: +5",
            "Content-Length: 5, 5",
            "Content-Length: 0x5",
            "Content-Length:",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: xchunked",
        ] {
            let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
            let verdict = arrive(answer.as_bytes(), 7);
            assert!(
                matches!(verdict, Err(Breach::Malformed(_))),
                "{head}: {verdict:?}"
            );
        }
        for answer in [
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
            "nonsense\r\n\r\n",
            "<html>HTTP/0.9</html>",
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
        ] {
            let verdict = arrive(answer.as_bytes(), 1);
            assert!(
                matches!(verdict, Err(Breach::Malformed(_))),
                "{answer}: {verdict:?}"
            );
        }
    }

    #[test]
    fn what_breaks_a_bound_is_told_as_such_and_other_errors_are_not() {
        let error: io::Error = Breach::HeadTooLong.into();
        assert_eq!(Breach::of(&error), Some(Breach::HeadTooLong));
        assert_eq!(Breach::of(&io::ErrorKind::InvalidData.into()), None);
        assert_eq!(Breach::Malformed("x").failure().code, ErrorCode::NetworkError);
        for breach in [Breach::HeadTooLong, Breach::TooManyHeaders, Breach::BodyTooLong] {
            let failure = breach.failure();
            assert_eq!(failure.code, ErrorCode::ResourceUnavailable);
            assert!(
                !caf_protocol::outcome::trips_breaker(&failure.message),
                "{failure:?}"
            );
        }
    }
}
