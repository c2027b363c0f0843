//! A server outside of the fleet whose answers the test decides: it counts every request, so that work that was done
//! twice shows, and withholds its answers until it is told.
//!
//! Neighbours: `outages` and `drain`, whose jobs are POST requests to it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use caf_testkit::AssignmentBuilder;
use caf_testkit::worker::WorkerBuilder;
use serde_json::json;

/// Longest time for which an answer is withheld: above any test.
const LONGEST: Duration = Duration::from_secs(300);

/// The server. Ends on drop, and whoever waits with it.
pub(crate) struct Outside {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<BTreeMap<String, usize>>,
    open: Mutex<bool>,
    opened: Condvar,
    ends: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outside {
    /// A server that withholds its answers.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
        let port = listener.local_addr().expect("is bound").port();
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.ends.load(SeqCst) {
                    return;
                }
                let (Ok(stream), shared) = (stream, Arc::clone(&serving)) else {
                    continue;
                };
                std::thread::spawn(move || shared.answer(stream));
            }
        });
        Self {
            port,
            shared,
            thread: Some(thread),
        }
    }

    /// Settings with which jobs may ask here, for as long as it takes.
    pub(crate) fn allow(&self, worker: WorkerBuilder) -> WorkerBuilder {
        worker.env(
            "WORKER__BLOCKS__HTTP__ALLOW_TARGETS",
            format!("127.0.0.1:{}", self.port),
        )
    }

    /// A job that asks once, may not be repeated, and is answered when the server is opened. What ends with a number
    /// after a dash is answered with as many bytes; `/after/<ms>/…` is answered that late.
    pub(crate) fn job(&self, path: &str) -> AssignmentBuilder {
        let url = format!("http://127.0.0.1:{}/{path}", self.port);
        AssignmentBuilder::new("http.request", json!({"url": url, "method": "POST", "body": "x"}))
            .deadline_ms(200_000)
    }

    /// From now on everybody is answered.
    pub(crate) fn open(&self) {
        *lock(&self.shared.open) = true;
        self.shared.opened.notify_all();
    }

    /// Requests so far, by path.
    pub(crate) fn seen(&self) -> BTreeMap<String, usize> {
        lock(&self.shared.seen).clone()
    }

    /// Paths that were asked for more than once.
    pub(crate) fn repeated(&self) -> Vec<String> {
        let mut seen = self.seen();
        seen.retain(|_, count| *count > 1);
        seen.into_keys().collect()
    }
}

impl Shared {
    fn answer(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream);
        let Some(path) = read_request(&mut reader) else {
            return;
        };
        *lock(&self.seen).entry(path.clone()).or_default() += 1;
        let delay = path
            .strip_prefix("/after/")
            .and_then(|rest| rest.split('/').next()?.parse().ok())
            .map(Duration::from_millis);
        self.wait(delay);
        let size = path.rsplit('-').next().and_then(|size| size.parse().ok());
        let body = "x".repeat(size.unwrap_or(2));
        let head = format!(
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        // Whoever asked may have died since.
        let _ = reader.get_mut().write_all(format!("{head}{body}").as_bytes());
    }

    /// Until the time has passed, or without one until the server is opened.
    fn wait(&self, delay: Option<Duration>) {
        let until = Instant::now() + delay.unwrap_or(LONGEST);
        let mut open = lock(&self.open);
        while !self.ends.load(SeqCst) && (delay.is_some() || !*open) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.opened.wait_timeout(open, left);
            open = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The path of a request whose head and body have been read.
fn read_request(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut lines = reader.by_ref().lines().map_while(Result::ok);
    let path = lines.next()?.split_whitespace().nth(1)?.to_owned();
    let mut length = 0;
    for line in lines.take_while(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok()?;
        }
    }
    reader.read_exact(&mut vec![0; length]).ok()?;
    Some(path)
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.shared.ends.store(true, SeqCst);
        self.shared.opened.notify_all();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
