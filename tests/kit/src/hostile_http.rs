//! An HTTP server that means harm: what it answers on a path is any bytes, at any pace, without end if need be.
//!
//! Neighbours: tests of the whole node. [`crate::faulty_http`] fails as honest servers do; this one never keeps to the rules
//! unless told to. It listens on all addresses of the machine, so that it can tell which of them was reached.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;

/// Longest head of a request that is read, in bytes.
const MAX_HEAD_BYTES: usize = 256 * 1024;

/// What it answers on one path.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// Written once.
    pub first: Vec<u8>,
    /// Written again and again until the other side is gone; empty for nothing.
    pub again: Vec<u8>,
    /// Time before each of these.
    pub pause: Duration,
    /// Whether the connection then stays open, until the other side closes it or the server is dropped.
    pub stays: bool,
}

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its head.
    pub head: String,
    /// The address of this machine by which it came.
    pub to: IpAddr,
}

#[derive(Default)]
struct Shared {
    scripts: Mutex<BTreeMap<String, Script>>,
    seen: Mutex<BTreeMap<String, Vec<Seen>>>,
    closed: AtomicBool,
}

/// The server. Gone when dropped.
pub struct HostileHttp {
    port: u16,
    shared: Arc<Shared>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HostileHttp {
    /// A server that closes every connection without an answer, until told otherwise.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.closed.load(Ordering::Relaxed) {
                    return;
                }
                let serving = Arc::clone(&serving);
                // What goes wrong with one connection is the client's to notice.
                std::thread::spawn(move || drop(serving.serve(stream)));
            }
        });
        Ok(Self { port, shared })
    }

    /// Answers so on this path (with query) from now on.
    pub fn set(&self, path: &str, script: Script) {
        lock(&self.shared.scripts).insert(path.to_owned(), script);
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// An address on this server, by 127.0.0.1.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Requests that came on this path, in their order.
    pub fn seen(&self, path: &str) -> Vec<Seen> {
        lock(&self.shared.seen).get(path).cloned().unwrap_or_default()
    }

    /// The addresses by which requests came, whatever the path.
    pub fn reached(&self) -> Vec<IpAddr> {
        let seen = lock(&self.shared.seen);
        let mut all: Vec<IpAddr> = seen.values().flatten().map(|seen| seen.to).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl Drop for HostileHttp {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)));
    }
}

impl Shared {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn serve(&self, mut stream: TcpStream) -> Result<()> {
        let head = read_head(&mut stream)?;
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let to = stream.local_addr()?.ip();
        lock(&self.seen)
            .entry(path.clone())
            .or_default()
            .push(Seen { head, to });
        let Some(script) = lock(&self.scripts).get(&path).cloned() else {
            return Ok(());
        };
        stream.write_all(&script.first)?;
        while !script.again.is_empty() && !self.is_closed() {
            std::thread::park_timeout(script.pause);
            stream.write_all(&script.again)?;
        }
        if script.stays {
            stream.set_read_timeout(Some(Duration::from_millis(50)))?;
            let mut sink = [0; 64];
            while !self.is_closed() {
                match stream.read(&mut sink) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) => break,
                }
            }
        }
        Ok(())
    }
}

fn read_head(stream: &mut TcpStream) -> Result<String> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4_096];
    while !bytes.windows(4).any(|end| end == b"\r\n\r\n") && bytes.len() < MAX_HEAD_BYTES {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        bytes.extend_from_slice(&chunk[..count]);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
