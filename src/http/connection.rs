//! A connection that carries one request: its head and, up to a limit, the body that the head announces. What comes after
//! that is never passed on, and its time is limited.
//!
//! Neighbours: [`super::Port`] puts it between the socket and the HTTP server, which would otherwise read and keep all the
//! requests that whoever does not wait for answers sends.
//! Never looks at what is asked or answered, and keeps nothing of it.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use caf_protocol::cancel::MAX_REQUEST_BYTES;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Longest life of a connection: enough for the largest page over a slow line.
const LIFE_LIMIT: Duration = Duration::from_secs(20);
/// How long the other side may take nothing of an answer.
pub(super) const STALL_LIMIT: Duration = Duration::from_secs(5);
/// Largest head of a request, in bytes.
const HEAD_LIMIT: usize = 16 * 1024;
/// Largest body that is passed on, in bytes: the largest request that a page takes.
pub(super) const BODY_LIMIT: usize = MAX_REQUEST_BYTES;
/// What is said to whoever sends a larger one. The server behind would answer only to eight times as much.
const TOO_LARGE: &[u8] =
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
/// So much is read and dropped after the head, in bytes: closing a socket with something unread may take the answer from a
/// reader. The rest stays with the system, which lets the sender wait.
const REST_LIMIT: usize = 64 * 1024;
/// Bytes dropped at a time.
const DROPPED_AT_ONCE: usize = 2 * 1024;

/// One request and its answer on a stream.
///
/// Of the body nothing is passed on unless the head says its length, once, and it is not over the limit: a server that has
/// another idea of where it ends would take the rest for a request of its own.
#[derive(Debug)]
pub(super) struct OneRequest<S> {
    stream: S,
    head: Head,
    /// How much of the head came.
    head_bytes: usize,
    /// What the head says of the body.
    announced: Announced,
    /// How much of the body is still to come.
    body_bytes: usize,
    /// How much was dropped after it.
    dropped_bytes: usize,
    life: Pin<Box<Sleep>>,
    /// Runs while the other side takes nothing.
    stall: Option<Pin<Box<Sleep>>>,
    /// How much of [`TOO_LARGE`] was said, once the head is too large.
    refusing: Option<usize>,
}

/// Where in the head of a request its bytes have led. Ends where the parser of the server sees an end, which takes a line
/// feed for a whole line end and skips empty lines before a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    /// Nothing but line ends.
    Before,
    /// Within a line.
    Line,
    /// At the start of a line.
    LineStart,
    /// After a carriage return at the start of a line.
    Return,
    /// After the empty line.
    Over,
}

impl Head {
    fn after(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Over, _) | (Self::LineStart | Self::Return, b'\n') => Self::Over,
            (Self::Before, b'\r' | b'\n') => Self::Before,
            (Self::Line, b'\n') => Self::LineStart,
            (Self::LineStart, b'\r') => Self::Return,
            _ => Self::Line,
        }
    }
}

/// What a head says of the length of its body, line by line.
#[derive(Debug, Default)]
struct Announced {
    /// The beginning of the line.
    line: Vec<u8>,
    length: Option<usize>,
    /// It is said in more than one way, or in one that is not understood: nothing is passed on.
    is_unclear: bool,
}

/// Longest beginning of a line that is looked at, in bytes: enough for every line that says a length.
const LINE_LIMIT: usize = 64;

impl Announced {
    fn see(&mut self, byte: u8) {
        if byte != b'\n' {
            if self.line.len() < LINE_LIMIT {
                self.line.push(byte);
            }
            return;
        }
        let line = String::from_utf8_lossy(&self.line).to_ascii_lowercase();
        self.line.clear();
        let Some((name, value)) = line.split_once(':') else {
            return;
        };
        let length = value.trim().parse::<usize>().ok();
        match name.trim() {
            "content-length" if self.length.is_none() && length.is_some() => self.length = length,
            "content-length" | "transfer-encoding" => self.is_unclear = true,
            _ => {}
        }
    }

    fn body_bytes(&self) -> usize {
        let length = self.length.filter(|length| *length <= BODY_LIMIT);
        length.filter(|_| !self.is_unclear).unwrap_or_default()
    }
}

impl<S> OneRequest<S> {
    /// Its time begins now.
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            head: Head::Before,
            head_bytes: 0,
            announced: Announced::default(),
            body_bytes: 0,
            dropped_bytes: 0,
            life: Box::pin(sleep(LIFE_LIMIT)),
            stall: None,
            refusing: None,
        }
    }

    /// What it stands on.
    pub(super) fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Whether it may go on; wakes the task when it may no longer.
    fn live(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.life.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    /// Notes whether the other side took something, and ends when it did not for too long.
    fn limit_stall<T>(
        &mut self,
        context: &mut Context<'_>,
        taken: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if taken.is_ready() {
            self.stall = None;
            return taken;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(STALL_LIMIT)));
        ready!(stall.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// How many of these bytes belong to the request.
    fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        if self.head != Head::Over {
            taken = self.take_head(bytes)?;
        }
        let body = self.body_bytes.min(bytes.len() - taken);
        self.body_bytes -= body;
        Ok(taken + body)
    }

    /// How many of these bytes belong to the head.
    fn take_head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        for byte in bytes {
            if self.head == Head::Over {
                break;
            }
            self.head = self.head.after(*byte);
            self.announced.see(*byte);
            taken += 1;
        }
        if self.head == Head::Over {
            self.body_bytes = self.announced.body_bytes();
        }
        self.head_bytes += taken;
        if self.head_bytes > HEAD_LIMIT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the head of a request is too large",
            ));
        }
        Ok(taken)
    }
}

impl<S: AsyncRead + Unpin> OneRequest<S> {
    /// Ready when the other side sends no more.
    fn drop_rest(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; DROPPED_AT_ONCE];
        while self.dropped_bytes < REST_LIMIT {
            let mut dropped = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut dropped))?;
            if dropped.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.dropped_bytes += dropped.filled().len();
        }
        // The life limit wakes the task.
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> OneRequest<S> {
    /// Says that the head is too large, and ends.
    fn refuse(&mut self, context: &mut Context<'_>, mut said: usize) -> Poll<io::Result<()>> {
        while said < TOO_LARGE.len() {
            let wrote = Pin::new(&mut self.stream).poll_write(context, &TOO_LARGE[said..]);
            let wrote = ready!(self.limit_stall(context, wrote))?;
            if wrote == 0 {
                break;
            }
            said += wrote;
            self.refusing = Some(said);
        }
        ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        ready!(self.drop_rest(context))?;
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the head of a request is too large",
        )))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for OneRequest<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.live(context)?;
        if let Some(said) = this.refusing {
            return this.refuse(context, said);
        }
        if this.head == Head::Over && this.body_bytes == 0 {
            return this.drop_rest(context);
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        let read = buffer.filled().get(before..).unwrap_or_default();
        let (read, taken) = (read.len(), this.take(read));
        // With an error nothing is handed over.
        buffer.set_filled(before + taken.as_ref().map_or(0, |taken| *taken));
        let Ok(taken) = taken else {
            return this.refuse(context, 0);
        };
        this.dropped_bytes += read - taken;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for OneRequest<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.live(context)?;
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.limit_stall(context, written)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.live(context)?;
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.live(context)?;
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    const ASKED: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    #[tokio::test]
    async fn only_the_first_head_is_passed_on_however_it_comes() {
        let mixed: &[u8] = b"\r\n\nGET / HTTP/1.1\nHost: a\n\r\n";
        let bare: &[u8] = b"GET / HTTP/1.1\nHost: a\n\n";
        for head in [ASKED, mixed, bare] {
            for at_once in [1, 7, 4096] {
                let (mut client, server) = duplex(4096);
                let mut server = OneRequest::new(server);
                let sent = [head.repeat(3), b"more".to_vec()].concat();
                let writing = async {
                    for part in sent.chunks(at_once) {
                        client.write_all(part).await.expect("is sent");
                        tokio::task::yield_now().await;
                    }
                    client.shutdown().await.expect("ends");
                };
                let mut read = Vec::new();
                let (_, got) = tokio::join!(writing, server.read_to_end(&mut read));
                assert_eq!(got.expect("ends"), head.len());
                assert_eq!(read, head);
            }
        }
    }

    #[tokio::test]
    async fn of_a_body_so_much_is_passed_on_as_the_head_says_and_nothing_of_what_is_unclear() {
        let limit = BODY_LIMIT.to_string();
        let over = (BODY_LIMIT + 1).to_string();
        for (headers, passed) in [
            ("Content-Length: 5\r\n", 5),
            ("content-length:5\n", 5),
            ("CONTENT-LENGTH:   5  \r\nHost: a\r\n", 5),
            ("Content-Length: 0\r\n", 0),
            (&format!("Content-Length: {limit}\r\n"), BODY_LIMIT),
            (&format!("Content-Length: {over}\r\n"), 0),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", 0),
            ("Content-Length: 5, 5\r\n", 0),
            ("Content-Length: -5\r\n", 0),
            ("Content-Length: 99999999999999999999999\r\n", 0),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 0),
            ("Transfer-Encoding: chunked\r\n", 0),
            ("X-Content-Length: 5\r\n", 0),
            (&format!("X: {}content-length: 5\r\n", " ".repeat(80)), 0),
        ] {
            let head = format!("POST / HTTP/1.1\r\n{headers}\r\n").into_bytes();
            let sent = [head.clone(), vec![b'{'; BODY_LIMIT + 100]].concat();
            for at_once in [3, 4096] {
                let (mut client, server) = duplex(4096);
                let mut server = OneRequest::new(server);
                let writing = async {
                    for part in sent.chunks(at_once) {
                        client.write_all(part).await.expect("is sent");
                    }
                    client.shutdown().await.expect("ends");
                };
                let mut read = Vec::new();
                let (_, got) = tokio::join!(writing, server.read_to_end(&mut read));
                assert_eq!(got.expect("ends"), head.len() + passed, "{headers}");
            }
        }
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_is_refused_with_its_status_and_ends_the_connection() {
        let (mut client, server) = duplex(2 * HEAD_LIMIT);
        let endless = vec![b'\n'; HEAD_LIMIT + 1];
        client.write_all(&endless).await.expect("is sent");
        client.shutdown().await.expect("ends");
        let mut read = Vec::new();
        let error = OneRequest::new(server).read_to_end(&mut read).await;
        assert_eq!(error.expect_err("ends").kind(), io::ErrorKind::InvalidData);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("is answered");
        assert_eq!(answer, TOO_LARGE);
    }

    #[tokio::test]
    async fn what_comes_after_the_head_is_read_up_to_a_limit() {
        let (mut client, server) = duplex(1024);
        let mut server = OneRequest::new(server);
        let sent = [ASKED.to_vec(), vec![b'x'; 2 * REST_LIMIT]].concat();
        let mut read = Vec::new();
        let both = async { tokio::join!(client.write_all(&sent), server.read_to_end(&mut read)) };
        let waited = tokio::time::timeout(Duration::from_millis(50), both).await;
        assert!(waited.is_err());
        assert_eq!(read, ASKED);
        assert!(server.dropped_bytes <= REST_LIMIT + DROPPED_AT_ONCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_life_is_over_after_its_time() {
        let (_client, server) = duplex(1024);
        let mut server = OneRequest::new(server);
        let began = tokio::time::Instant::now();
        let error = server.read(&mut [0; 8]).await.expect_err("ends");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= LIFE_LIMIT);
        assert!(server.write_all(b"late").await.is_err());
        assert!(server.flush().await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_nothing_is_left() {
        let (mut client, server) = duplex(8);
        let mut server = OneRequest::new(server);
        server.write_all(&[0; 8]).await.expect("fits");
        let began = tokio::time::Instant::now();
        let slow = async {
            sleep(STALL_LIMIT - Duration::from_secs(1)).await;
            client.read_exact(&mut [0; 8]).await.expect("is there");
        };
        let (_, written) = tokio::join!(slow, server.write_all(&[0; 16]));
        assert_eq!(written.expect_err("ends").kind(), io::ErrorKind::TimedOut);
        // What was taken began the time anew.
        assert!(began.elapsed() > STALL_LIMIT + Duration::from_secs(1));
        assert!(began.elapsed() < LIFE_LIMIT);
    }
}
