//! An HTTP server that fails as it is told to, on real sockets, and counts every call.
//!
//! Neighbours: tests of `http.request` and of the whole node. What happens to a call is decided by its path and its number
//! on that path, never by the order in which calls of different paths arrive: so a share drawn from a seed
//! ([`draw`]) is exact, and so is the count of retries ([`FaultyHttp::calls`]).
//!
//! - Refused connections: [`FaultyHttp::refusing`] holds a port on which nobody listens (bound, never listened on, so that
//!   nobody else can take it) until [`FaultyHttp::recover`].
//! - Connections that are never established: [`Silent`], a listener whose backlog is full, so that the kernel drops every
//!   further SYN, as a router does that drops packets.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket, sockopt};

/// Longest head of a request that is read, in bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1_024;

/// What happens to one call.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is answered with 200 and the body `ok`.
    None,
    /// The same, after this time.
    Delay(Duration),
    /// It is answered with this status, and this header when it is not empty (`Retry-After: 1`).
    Status(u16, &'static str),
    /// It is answered with this status, these header lines, each with its end, and this body.
    Answer(u16, String, String),
    /// The connection is reset instead of an answer.
    Reset,
    /// Nothing is answered until the server is dropped.
    Hang,
    /// The head comes at once, the body in two halves with this time in between.
    SlowBody(Duration),
}

/// One call.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Path with query.
    pub path: &'a str,
    /// Number of the call among those with this path, from 0.
    pub number: usize,
}

type Faults = Arc<dyn Fn(Call<'_>) -> Fault + Send + Sync>;

struct Shared {
    faults: Mutex<Faults>,
    calls: Mutex<BTreeMap<String, usize>>,
    heads: Mutex<Vec<(String, String)>>,
    closed: Mutex<bool>,
    closing: Condvar,
}

/// The server. Gone when dropped.
pub struct FaultyHttp {
    address: SocketAddr,
    bound: Mutex<Option<OwnedFd>>,
    shared: Arc<Shared>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FaultyHttp {
    /// A server that answers well, until told otherwise.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start() -> Result<Self> {
        let server = Self::refusing()?;
        server.recover()?;
        Ok(server)
    }

    /// A server whose port refuses connections until [`FaultyHttp::recover`].
    ///
    /// # Errors
    /// When there is no port.
    pub fn refusing() -> Result<Self> {
        let (bound, address) = bound_socket()?;
        Ok(Self {
            address,
            bound: Mutex::new(Some(bound)),
            shared: Arc::new(Shared {
                faults: Mutex::new(Arc::new(|_| Fault::None)),
                calls: Mutex::default(),
                heads: Mutex::default(),
                closed: Mutex::new(false),
                closing: Condvar::new(),
            }),
        })
    }

    /// From now on connections are taken. Does nothing the second time.
    ///
    /// # Errors
    /// When the system does not let it listen.
    pub fn recover(&self) -> Result<()> {
        let Some(bound) = lock(&self.bound).take() else {
            return Ok(());
        };
        listen(&bound, BACKLOG)?;
        let listener = TcpListener::from(bound);
        let shared = Arc::clone(&self.shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if *lock(&shared.closed) {
                    return;
                }
                let shared = Arc::clone(&shared);
                // What goes wrong with one connection is the client's to notice.
                std::thread::spawn(move || drop(shared.serve(stream)));
            }
        });
        Ok(())
    }

    /// Decides from now on what happens to calls.
    pub fn set(&self, faults: impl Fn(Call<'_>) -> Fault + Send + Sync + 'static) {
        *lock(&self.shared.faults) = Arc::new(faults);
    }

    /// An address on this server.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The values of one header, in the order of the calls of a path; nothing for a call without it.
    pub fn header(&self, path: &str, name: &str) -> Vec<Option<String>> {
        let heads = lock(&self.shared.heads);
        let of_path = heads.iter().filter(|(called, _)| called == path);
        let value = |head: &String| {
            let mut pairs = head.lines().filter_map(|line| line.split_once(':'));
            let found = pairs.find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.trim().to_owned())
        };
        of_path.map(|(_, head)| value(head)).collect()
    }

    /// Calls of a path so far.
    pub fn calls(&self, path: &str) -> usize {
        lock(&self.shared.calls).get(path).copied().unwrap_or_default()
    }
}

impl Drop for FaultyHttp {
    fn drop(&mut self) {
        *lock(&self.shared.closed) = true;
        self.shared.closing.notify_all();
        // Wakes the thread that accepts, if there is one.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    /// One request, one answer, one connection.
    fn serve(&self, mut stream: TcpStream) -> Result<()> {
        let (path, head) = read_request(&mut stream)?;
        lock(&self.heads).push((path.clone(), head));
        let number = {
            let mut calls = lock(&self.calls);
            let count = calls.entry(path.clone()).or_default();
            *count += 1;
            *count - 1
        };
        let faults = Arc::clone(&lock(&self.faults));
        let well =
            |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{body}");
        match faults(Call { path: &path, number }) {
            Fault::None => stream.write_all(well("ok").as_bytes())?,
            Fault::Delay(delay) => {
                self.pause(Some(delay));
                stream.write_all(well("ok").as_bytes())?;
            }
            Fault::Status(code, header) => {
                let header = if header.is_empty() {
                    String::new()
                } else {
                    format!("{header}\r\n")
                };
                let head = format!(
                    "HTTP/1.1 {code} Fault\r\n{header}Content-Length: 0\r\nConnection: close\r\n\r\n"
                );
                stream.write_all(head.as_bytes())?;
            }
            Fault::Answer(code, headers, body) => {
                let length = body.len();
                let text = format!(
                    "HTTP/1.1 {code} Answer\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                stream.write_all(text.as_bytes())?;
            }
            Fault::Reset => sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?,
            Fault::Hang => self.pause(None),
            Fault::SlowBody(delay) => {
                stream.write_all(well("o").as_bytes())?;
                self.pause(Some(delay));
                stream.write_all(b"k")?;
            }
        }
        Ok(())
    }

    /// Waits, but not beyond the end of the server.
    fn pause(&self, time: Option<Duration>) {
        let closed = lock(&self.closed);
        // Waking up is all that matters.
        match time {
            Some(time) => drop(self.closing.wait_timeout_while(closed, time, |closed| !*closed)),
            None => drop(self.closing.wait_while(closed, |closed| !*closed)),
        }
    }
}

/// Reads head and body of a request; its path with query, and the head.
fn read_request(stream: &mut TcpStream) -> Result<(String, String)> {
    let mut bytes = Vec::new();
    let end = loop {
        let mut chunk = [0; 4_096];
        let count = stream.read(&mut chunk)?;
        if count == 0 || bytes.len() > MAX_HEAD_BYTES {
            bail!("no request");
        }
        bytes.extend_from_slice(&chunk[..count]);
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = std::str::from_utf8(&bytes[..end])?.to_owned();
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(Ok(0), |(_, value)| value.trim().parse::<usize>())?;
    // A server that closes with bytes unread resets the connection.
    let rest = length.saturating_sub(bytes.len() - end);
    std::io::copy(&mut stream.take(rest as u64), &mut std::io::sink())?;
    let path = head.split(' ').nth(1).map(str::to_owned);
    Ok((path.context("the request has no path")?, head))
}

fn bound_socket() -> Result<(OwnedFd, SocketAddr)> {
    let bound = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&bound, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    let address = SocketAddr::try_from(getsockname(&bound)?)?;
    Ok((bound, address))
}

/// Just `percent` of the numbers below `count` (rounded down): which ones, `seed` says.
pub fn draw(seed: u64, count: usize, percent: usize) -> BTreeSet<usize> {
    let mut numbers: Vec<_> = (0..count).collect();
    numbers.sort_by_key(|number| mixed(seed ^ mixed(*number as u64)));
    numbers.truncate(count * percent / 100);
    numbers.into_iter().collect()
}

/// A number that shares no pattern with this one (the finaliser of SplitMix64).
const fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A port that takes no connection and refuses none: connecting hangs.
pub struct Silent {
    address: SocketAddr,
    _listener: OwnedFd,
    _waiting: Vec<OwnedFd>,
}

impl Silent {
    /// Opens one and fills its backlog. Nobody ever accepts.
    ///
    /// # Errors
    /// When there is no port, or its backlog does not fill up.
    pub fn open() -> Result<Self> {
        let (listener, address) = bound_socket()?;
        listen(&listener, 0)?;
        let mut waiting = Vec::new();
        // A backlog of nothing has room for one; what comes when it is full is dropped.
        while TcpStream::connect_timeout(&address, Duration::from_millis(100))
            .map(|stream| waiting.push(OwnedFd::from(stream)))
            .is_ok()
        {
            if waiting.len() > 16 {
                bail!("the backlog does not fill up");
            }
        }
        Ok(Self {
            address,
            _listener: listener,
            _waiting: waiting,
        })
    }

    /// An address there.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request;

    fn get(server: &FaultyHttp, path: &str) -> Result<u16> {
        Ok(request(server.address, "GET", path, &[], b"")?.status)
    }

    #[test]
    fn each_call_fails_as_it_was_told_to_and_is_counted() {
        let server = FaultyHttp::start().expect("starts");
        server.set(|call| match (call.path, call.number) {
            ("/status", 0) => Fault::Status(503, "Retry-After: 1"),
            ("/reset", _) => Fault::Reset,
            ("/slow", _) => Fault::SlowBody(Duration::from_millis(5)),
            ("/late", _) => Fault::Delay(Duration::from_millis(5)),
            _ => Fault::None,
        });
        assert_eq!(get(&server, "/status").expect("answers"), 503);
        assert_eq!(get(&server, "/status").expect("answers"), 200);
        get(&server, "/reset").expect_err("is reset");
        assert_eq!(get(&server, "/slow").expect("answers"), 200);
        assert_eq!(get(&server, "/late").expect("answers"), 200);
        assert_eq!(
            ["/status", "/reset", "/other"].map(|path| server.calls(path)),
            [2, 1, 0]
        );
    }

    #[test]
    fn a_port_refuses_until_its_server_recovers() {
        let server = FaultyHttp::refusing().expect("has a port");
        let refused = TcpStream::connect(server.address).expect_err("nobody listens");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        server.recover().expect("listens");
        assert_eq!(get(&server, "/").expect("answers"), 200);
    }

    #[test]
    fn a_silent_port_lets_connections_hang() {
        let silent = Silent::open().expect("opens");
        let error =
            TcpStream::connect_timeout(&silent.address, Duration::from_millis(50)).expect_err("hangs");
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_share_is_exact_the_same_each_time_and_spread() {
        let drawn = draw(7, 1_000, 30);
        assert_eq!((drawn.len(), &drawn), (300, &draw(7, 1_000, 30)));
        let early = drawn.range(..500).count();
        assert!((100..200).contains(&early), "{early}");
        assert_ne!(drawn, draw(8, 1_000, 30));
        assert_eq!((draw(7, 10, 0).len(), draw(7, 10, 100).len()), (0, 10));
    }
}
