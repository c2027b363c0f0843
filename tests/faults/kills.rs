//! Workers that die at named points, at random moments, by a job's doing, freeze or are sent away: every assignment
//! has one result, one acknowledgement and nothing left at the broker.
//!
//! Neighbours: `faults.rs`. Counted is what the streams hold, and beside it what a plain subscriber hears, whom no
//! stream protects from second copies. Jobs are counted where they have an effect, at an HTTP server. Never asserts how
//! long anything takes.

#[path = "kills/contests.rs"]
mod contests;
#[path = "kills/killers.rs"]
mod killers;
#[path = "kills/points.rs"]
mod points;
#[path = "kills/random.rs"]
mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use caf_testkit::client::{ACK, RESULT};
use caf_testkit::proxy::{Frame, Swallowed};
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, Client, Collector, NatsServer, Proxy, TempDir, Worker, wait_until};
use serde_json::{Value, json};

use crate::support::{SOON, answers, assert_each_answered_once, program, wait_answered};

/// Short, so that what a dead worker held comes back soon; long beside a hiccup of a busy machine.
const ACK_WAIT_MS: u64 = 2_000;
/// Longest time until everything is answered: an ack wait, silent owners asked, and that several times over.
const SETTLED: Duration = Duration::from_secs(60);
/// Deadline of jobs that must outlive their workers.
const PATIENT_MS: u64 = 600_000;

/// What jobs talk to. Paths that begin with `/held` are answered once [`Web::release`] has named their beginning.
struct Web {
    port: u16,
    shared: Arc<WebShared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct WebShared {
    ends: AtomicBool,
    book: Mutex<WebBook>,
}

#[derive(Default)]
struct WebBook {
    seen: Vec<String>,
    waiting: Vec<(String, TcpStream)>,
    released: Vec<String>,
}

impl Web {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("has an address").port();
        let shared = Arc::<WebShared>::default();
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if serving.ends.load(SeqCst) {
                    return;
                }
                serving.take(stream);
            }
        });
        Self {
            port,
            shared,
            thread: Some(thread),
        }
    }

    /// A job that asks for this path, and may take its time.
    fn job(&self, path: &str) -> AssignmentBuilder {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        patient(AssignmentBuilder::new(
            "http.request",
            json!({"url": url, "method": "POST"}),
        ))
    }

    /// How often a path was asked for.
    fn count(&self, path: &str) -> usize {
        let book = self.shared.book.lock().expect("is whole");
        book.seen.iter().filter(|seen| *seen == path).count()
    }

    /// Answers what waits under this beginning, and what comes later.
    fn release(&self, beginning: &str) {
        let mut book = self.shared.book.lock().expect("is whole");
        book.released.push(beginning.to_owned());
        let (free, waiting) = std::mem::take(&mut book.waiting)
            .into_iter()
            .partition(|(path, _)| path.starts_with(beginning));
        book.waiting = waiting;
        let free: Vec<(String, TcpStream)> = free;
        free.into_iter().for_each(|(_, stream)| answer(stream));
    }
}

impl WebShared {
    fn take(&self, mut stream: TcpStream) {
        let Some(path) = path_of(&mut stream) else { return };
        let mut book = self.book.lock().expect("is whole");
        book.seen.push(path.clone());
        let is_free = book
            .released
            .iter()
            .any(|beginning| path.starts_with(beginning.as_str()));
        if path.starts_with("/held") && !is_free {
            book.waiting.push((path, stream));
        } else {
            answer(stream);
        }
    }
}

/// The path of a request; nothing when whoever asks died over it.
fn path_of(stream: &mut TcpStream) -> Option<String> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(read @ 1..) => request.extend_from_slice(&buffer[..read]),
            _ => return None,
        }
    }
    let request = String::from_utf8_lossy(&request);
    request.split_whitespace().nth(1).map(str::to_owned)
}

fn answer(mut stream: TcpStream) {
    // Whoever asked may be dead.
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}");
}

impl Drop for Web {
    fn drop(&mut self) {
        self.shared.ends.store(true, SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A job whose deadline no number of deaths reaches.
fn patient(job: AssignmentBuilder) -> AssignmentBuilder {
    job.deadline_ms(PATIENT_MS)
}

/// A broker, a line to it, what jobs talk to, and all that was sent and heard. Fields end in this order.
struct Fleet {
    client: Client,
    /// Hears every publication, also those that a stream drops as second copies.
    plain: Collector,
    proxy: Proxy,
    web: Web,
    nats: NatsServer,
    sent: Vec<AssignmentBuilder>,
}

impl Fleet {
    fn start() -> Self {
        let nats = NatsServer::start().expect("the broker starts");
        let client = Client::connect(&nats).expect("the client connects");
        let plain = client.collect_answers().expect("listens");
        let proxy = Proxy::start(&nats).expect("the proxy starts");
        Self {
            client,
            plain,
            proxy,
            web: Web::start(),
            nats,
            sent: Vec::new(),
        }
    }

    /// A worker to be, with its state in `home`, directly at the broker.
    fn worker(&self, home: &TempDir) -> WorkerBuilder {
        settings(program().serve(&self.nats), home)
    }

    /// As [`Fleet::worker`], behind the line.
    fn worker_behind_the_line(&self, home: &TempDir) -> WorkerBuilder {
        settings(program().serve_through(&self.proxy), home)
    }

    fn assign(&mut self, jobs: Vec<AssignmentBuilder>) {
        self.client.assign_all(&jobs).expect("are sent");
        self.sent.extend(jobs);
    }

    /// Everything is answered, once and with one content on the streams, and the broker holds nothing.
    #[track_caller]
    fn assert_each_answered_once(&self) {
        wait_answered(&self.client, &self.sent, SETTLED);
        let stored = answers(&self.client);
        assert_each_answered_once(&stored, &self.sent);
        wait_until("the plain subscriber has heard it too", SOON, || {
            let heard = self.contents(RESULT);
            self.sent
                .iter()
                .all(|job| heard.contains_key(job.assignment_id()))
        });
        let acknowledged = self.with_many_contents(ACK);
        assert!(
            acknowledged.is_empty(),
            "acknowledged in two ways: {acknowledged:?}"
        );
    }

    /// Distinct payloads that a plain subscriber heard, by assignment.
    fn contents(&self, subject: &str) -> BTreeMap<String, usize> {
        let mut contents: BTreeMap<String, BTreeSet<Vec<u8>>> = BTreeMap::new();
        for message in self.plain.messages() {
            if message.subject == subject {
                let id = message.json()["assignment_id"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                contents.entry(id).or_default().insert(message.payload);
            }
        }
        contents.into_iter().map(|(id, all)| (id, all.len())).collect()
    }

    /// Assignments of which a plain subscriber heard more than one content.
    fn with_many_contents(&self, subject: &str) -> BTreeSet<String> {
        let contents = self.contents(subject).into_iter();
        contents
            .filter(|(_, count)| *count > 1)
            .map(|(id, _)| id)
            .collect()
    }

    /// The only result of an assignment on the stream.
    fn result_of(&self, job: &AssignmentBuilder) -> Value {
        let results = answers(&self.client).results(job.assignment_id());
        assert_eq!(results.len(), 1, "{results:?}");
        results[0].clone()
    }
}

fn settings(worker: WorkerBuilder, home: &TempDir) -> WorkerBuilder {
    worker
        .env("WORKER__WORKER__STATE_DIR", home.path().display())
        .env("NATS_ACK_WAIT_MS", ACK_WAIT_MS)
        .env("WORKER__BLOCKS__HTTP__ALLOW_TARGETS", "127.0.0.0/8")
        .env("LOG_LEVEL", "debug")
}

fn home() -> TempDir {
    TempDir::new("state").expect("a directory")
}

fn ready(worker: WorkerBuilder) -> Worker {
    let mut worker = worker.start().expect("the worker starts");
    worker.wait_ready().expect("the worker becomes ready");
    worker
}

/// Log lines with this message.
fn lines(worker: &Worker, message: &str) -> Vec<Value> {
    let mut logs = worker.logs();
    logs.retain(|log| log["message"] == message);
    logs
}

fn mentions(frame: &Frame, text: &str) -> bool {
    let wanted = text.as_bytes();
    frame.payload.windows(wanted.len()).any(|window| window == wanted)
}

/// What the names of deliveries begin with.
const DELIVERY: &str = "$JS.ACK.";

/// Everything that passes a proxy, from now on until dropped.
struct Traffic {
    frames: Arc<Mutex<Vec<Frame>>>,
    _rule: Swallowed,
}

impl Traffic {
    fn record(proxy: &Proxy) -> Self {
        let frames = Arc::<Mutex<Vec<Frame>>>::default();
        let seen = Arc::clone(&frames);
        let rule = proxy.drop_all(move |frame| {
            seen.lock().expect("is whole").push(frame.clone());
            false
        });
        Self { frames, _rule: rule }
    }

    fn len(&self) -> usize {
        self.frames.lock().expect("is whole").len()
    }

    fn frames(&self) -> Vec<Frame> {
        self.frames.lock().expect("is whole").clone()
    }
}

/// What names the deliveries that these frames bring.
fn deliveries(frames: &[Frame]) -> BTreeSet<String> {
    let replies = frames.iter().filter(|frame| frame.delivers(""));
    replies
        .filter_map(|frame| frame.reply.clone())
        .filter(|reply| reply.starts_with(DELIVERY))
        .collect()
}
