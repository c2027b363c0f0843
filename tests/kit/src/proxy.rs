//! A network that can be broken: a proxy between a worker and its broker that knows where a message begins and ends.
//!
//! Neighbours: [`crate::nats`] is behind it, [`crate::worker::WorkerBuilder::serve_through`] points a worker at it. Runs
//! on a thread of its own and ends on drop. It changes nothing of what it passes on, but for the addresses of other
//! servers in INFO. No TLS: there is nothing to see inside.

mod frame;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub use self::frame::{Direction, Frame, Splitter};
use crate::wait::poll;
use crate::{NatsServer, ports};

/// Longest wait for the proxy itself to do as it is told.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes read at once.
const CHUNK: usize = 64 * 1024;
/// Slices per second in which a slow proxy passes bytes on.
const SLICES_PER_SECOND: u64 = 20;

/// How slow a proxy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// At most so many bytes in a second, each way and connection.
    BytesPerSecond(u64),
    /// Everything arrives later by this.
    Delay(Duration),
}

/// What the connections do now.
#[derive(Debug, Clone, Copy, Default)]
struct Control {
    /// Nobody listens.
    refusing: bool,
    /// Connections of an earlier number end.
    generation: u64,
    /// They end with RST.
    with_reset: bool,
    /// No byte moves to the server.
    silent_to_server: bool,
    /// No byte moves to the worker.
    silent_to_worker: bool,
    pace: Option<Pace>,
    ending: bool,
}

impl Control {
    fn silent(&self, direction: Direction) -> bool {
        match direction {
            Direction::ToServer => self.silent_to_server,
            Direction::ToWorker => self.silent_to_worker,
        }
    }
}

type Wanted = Box<dyn Fn(&Frame) -> bool + Send + Sync>;

enum Rule {
    Hold(Wanted, Arc<Holding>),
    Swallow(Wanted, Arc<Swallowing>),
}

struct Holding {
    used: AtomicBool,
    state: watch::Sender<HeldState>,
}

#[derive(Debug, Clone, Default)]
enum HeldState {
    #[default]
    Waiting,
    Caught(Frame),
    Released,
    Dropped,
    Severed,
}

#[derive(Default)]
struct Swallowing {
    off: AtomicBool,
    count: AtomicUsize,
}

struct Shared {
    server: SocketAddr,
    control: watch::Sender<Control>,
    rules: Mutex<Vec<Rule>>,
    listening: AtomicBool,
    open: AtomicUsize,
    accepted: AtomicUsize,
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running proxy; its connections end and nobody listens any more when it is dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// One in front of this broker, which may end and come back on its port.
    ///
    /// # Errors
    /// When the broker speaks TLS, or no port or thread is to be had.
    pub fn start(nats: &NatsServer) -> Result<Self> {
        if nats.certificates().is_some() {
            bail!("a proxy cannot look into TLS");
        }
        let shared = Arc::new(Shared {
            server: (Ipv4Addr::LOCALHOST, nats.port()).into(),
            control: watch::Sender::default(),
            rules: Mutex::default(),
            listening: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            accepted: AtomicUsize::new(0),
        });
        let port = ports::free_port();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let running = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(move || runtime.block_on(listen(running, port)))?;
        let proxy = Self {
            shared,
            port,
            thread: Some(thread),
        };
        proxy
            .wait_listening(true)
            .context("the proxy found its port taken")?;
        Ok(proxy)
    }

    /// Address for the worker.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> usize {
        self.shared.open.load(SeqCst)
    }

    /// Connections that were ever taken.
    pub fn accepted_connections(&self) -> usize {
        self.shared.accepted.load(SeqCst)
    }

    /// Closes every connection; new ones are refused until [`Proxy::mend`].
    ///
    /// # Panics
    /// When the proxy's thread is gone.
    pub fn cut(&self) {
        self.shared.control.send_modify(|control| {
            control.refusing = true;
            control.generation += 1;
            control.with_reset = false;
        });
        self.wait_listening(false).expect("the proxy stops listening");
        self.wait_all_closed();
    }

    /// Ends every connection with RST; new ones are taken.
    ///
    /// # Panics
    /// When the proxy's thread is gone.
    pub fn reset(&self) {
        let ended = self.accepted_connections();
        self.shared.control.send_modify(|control| {
            control.generation += 1;
            control.with_reset = true;
        });
        // A new one may be there already.
        let closed = poll(PATIENCE, || {
            (self.open_connections() <= self.accepted_connections() - ended).then_some(())
        });
        closed.expect("the connections end");
    }

    /// Keeps connections, takes new ones, and moves no byte in these directions until [`Proxy::mend`].
    pub fn half_open(&self, directions: &[Direction]) {
        self.shared.control.send_modify(|control| {
            control.silent_to_server = directions.contains(&Direction::ToServer);
            control.silent_to_worker = directions.contains(&Direction::ToWorker);
        });
    }

    /// Passes everything on slowly until [`Proxy::mend`].
    pub fn slow(&self, pace: Pace) {
        self.shared
            .control
            .send_modify(|control| control.pace = Some(pace));
    }

    /// Takes connections again and moves bytes at full speed. What was silent arrives late, in order. Rules for frames
    /// stay.
    ///
    /// # Panics
    /// When another process has taken the port meanwhile.
    pub fn mend(&self) {
        self.shared.control.send_modify(|control| {
            control.refusing = false;
            control.silent_to_server = false;
            control.silent_to_worker = false;
            control.pace = None;
        });
        self.wait_listening(true).expect("the proxy listens again");
    }

    /// The first frame that `wanted` recognises is withheld, and its connection stands still in both directions until
    /// the test has decided. Other connections go on.
    pub fn hold_when(&self, wanted: impl Fn(&Frame) -> bool + Send + Sync + 'static) -> Held {
        let holding = Arc::new(Holding {
            used: AtomicBool::new(false),
            state: watch::Sender::default(),
        });
        let rule = Rule::Hold(Box::new(wanted), Arc::clone(&holding));
        self.shared.rules().push(rule);
        Held(holding)
    }

    /// Every frame that `wanted` recognises is swallowed, on all connections, until the value is dropped.
    pub fn drop_all(&self, wanted: impl Fn(&Frame) -> bool + Send + Sync + 'static) -> Swallowed {
        let swallowing = Arc::new(Swallowing::default());
        let rule = Rule::Swallow(Box::new(wanted), Arc::clone(&swallowing));
        self.shared.rules().push(rule);
        Swallowed(swallowing)
    }

    fn wait_listening(&self, wanted: bool) -> Option<()> {
        poll(PATIENCE, || {
            (self.shared.listening.load(SeqCst) == wanted).then_some(())
        })
    }

    fn wait_all_closed(&self) {
        let closed = poll(PATIENCE, || (self.open_connections() == 0).then_some(()));
        closed.expect("the connections end");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.control.send_modify(|control| control.ending = true);
        if let Some(thread) = self.thread.take() {
            // A panic over there has failed the test that waited for it.
            let _ = thread.join();
        }
    }
}

/// A frame to be withheld. Dropped without a decision, it lets the frame go on.
pub struct Held(Arc<Holding>);

impl Held {
    /// Waits until a frame is withheld, and returns it; nothing when none came within `limit`.
    pub fn wait(&self, limit: Duration) -> Option<Frame> {
        poll(limit, || match &*self.0.state.borrow() {
            HeldState::Caught(frame) => Some(frame.clone()),
            _ => None,
        })
    }

    /// The frame goes on, and its connection with it; also when the worker is gone meanwhile.
    pub fn release(self) {
        self.0.state.send_replace(HeldState::Released);
    }

    /// The frame never arrives; its connection goes on, and what was said after it arrives.
    pub fn drop_frame(self) {
        self.0.state.send_replace(HeldState::Dropped);
    }

    /// The frame never arrives, nor does anything that was said after it: its connection ends.
    pub fn sever(self) {
        self.0.state.send_replace(HeldState::Severed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.state.send_if_modified(|state| {
            let undecided = matches!(state, HeldState::Waiting | HeldState::Caught(_));
            if undecided {
                *state = HeldState::Released;
            }
            undecided
        });
    }
}

/// Swallows frames until dropped.
pub struct Swallowed(Arc<Swallowing>);

impl Swallowed {
    /// How many so far.
    pub fn count(&self) -> usize {
        self.0.count.load(SeqCst)
    }
}

impl Drop for Swallowed {
    fn drop(&mut self) {
        self.0.off.store(true, SeqCst);
    }
}

async fn listen(shared: Arc<Shared>, port: u16) {
    let mut control = shared.control.subscribe();
    loop {
        let told = control
            .wait_for(|control| control.ending || !control.refusing)
            .await;
        if told.is_ok_and(|control| control.ending) {
            return;
        }
        let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await else {
            return;
        };
        shared.listening.store(true, SeqCst);
        let mut told = control.clone();
        tokio::select! {
            biased;
            _ = told.wait_for(|control| control.ending || control.refusing) => {}
            () = accept(&shared, &listener) => {}
        }
        drop(listener);
        shared.listening.store(false, SeqCst);
    }
}

async fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    // Out of files or the like: nothing that a test could wait for.
    while let Ok((worker, _)) = listener.accept().await {
        shared.open.fetch_add(1, SeqCst);
        shared.accepted.fetch_add(1, SeqCst);
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            serve(&shared, worker).await;
            shared.open.fetch_sub(1, SeqCst);
        });
    }
}

/// One connection, until a side ends it or the test does.
async fn serve(shared: &Shared, mut worker: TcpStream) {
    let mut control = shared.control.subscribe();
    let generation = control.borrow().generation;
    let Ok(mut server) = TcpStream::connect(shared.server).await else {
        return;
    };
    let _ = (worker.set_nodelay(true), server.set_nodelay(true));
    let still = watch::Sender::new(false);
    let told = {
        let (from_worker, to_worker) = worker.split();
        let (from_server, to_server) = server.split();
        let up = pump(shared, Direction::ToServer, from_worker, to_server, &still);
        let down = pump(shared, Direction::ToWorker, from_server, to_worker, &still);
        let both = async {
            tokio::pin!(up);
            tokio::select! {
                _ = &mut up => {}
                // A worker that is gone may have said something before.
                end = down => if end == End::Unwritable { up.await; },
            }
        };
        tokio::select! {
            biased;
            told = control.wait_for(|control| control.ending || control.generation != generation) => {
                told.is_ok_and(|control| control.with_reset && control.generation != generation)
            }
            () = both => false,
        }
    };
    if told {
        for stream in [&worker, &server] {
            let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
        }
    }
}

/// Why a direction is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The sender has nothing more to say.
    Unreadable,
    /// The receiver is gone.
    Unwritable,
    /// The test has ended the connection at a frame.
    Severed,
}

async fn pump(
    shared: &Shared,
    direction: Direction,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    still: &watch::Sender<bool>,
) -> End {
    let mut splitter = Splitter::new(direction);
    let mut chunk = vec![0; CHUNK];
    loop {
        let size = match from.read(&mut chunk).await {
            Ok(size @ 1..) => size,
            Ok(0) | Err(_) => return End::Unreadable,
        };
        splitter.push(&chunk[..size]);
        let pace = shared.control.borrow().pace;
        if let Some(Pace::Delay(delay)) = pace {
            tokio::time::sleep(delay).await;
        }
        while let Some(frame) = splitter.next_frame() {
            let frame = match pass(shared, frame.without_other_servers(), still).await {
                Passage::Through(frame) => frame,
                Passage::Swallowed => continue,
                Passage::Severed => return End::Severed,
            };
            if write(shared, direction, &frame.raw, &mut to).await.is_err() {
                return End::Unwritable;
            }
        }
    }
}

/// What becomes of a frame.
enum Passage {
    Through(Frame),
    Swallowed,
    Severed,
}

/// Decides on a frame by the rules; one that is held has to wait here.
async fn pass(shared: &Shared, frame: Frame, still: &watch::Sender<bool>) -> Passage {
    let _ = still.subscribe().wait_for(|still| !still).await;
    let holding = {
        let mut rules = shared.rules();
        rules.retain(|rule| match rule {
            Rule::Hold(_, holding) => !holding.used.load(SeqCst),
            Rule::Swallow(_, swallowing) => !swallowing.off.load(SeqCst),
        });
        let matching = rules.iter().find(|rule| match rule {
            Rule::Hold(wanted, _) | Rule::Swallow(wanted, _) => wanted(&frame),
        });
        match matching {
            None => return Passage::Through(frame),
            Some(Rule::Swallow(_, swallowing)) => {
                swallowing.count.fetch_add(1, SeqCst);
                return Passage::Swallowed;
            }
            Some(Rule::Hold(_, holding)) => {
                holding.used.store(true, SeqCst);
                Arc::clone(holding)
            }
        }
    };
    let mut state = holding.state.subscribe();
    still.send_replace(true);
    holding.state.send_if_modified(|state| {
        let waiting = matches!(state, HeldState::Waiting);
        if waiting {
            *state = HeldState::Caught(frame.clone());
        }
        waiting
    });
    let decided = state
        .wait_for(|state| !matches!(state, HeldState::Waiting | HeldState::Caught(_)))
        .await;
    let passage = match decided.as_deref() {
        Ok(HeldState::Dropped) => Passage::Swallowed,
        Ok(HeldState::Severed) => Passage::Severed,
        _ => Passage::Through(frame),
    };
    if !matches!(passage, Passage::Severed) {
        still.send_replace(false);
    }
    passage
}

/// Passes bytes on, at the pace that was asked for and not while it is silent.
async fn write(
    shared: &Shared,
    direction: Direction,
    mut bytes: &[u8],
    to: &mut WriteHalf<'_>,
) -> std::io::Result<()> {
    let mut control = shared.control.subscribe();
    while !bytes.is_empty() {
        let pace = match control.wait_for(|control| !control.silent(direction)).await {
            Ok(control) => control.pace,
            Err(_) => return Err(std::io::ErrorKind::BrokenPipe.into()),
        };
        let Some(Pace::BytesPerSecond(per_second)) = pace else {
            return to.write_all(bytes).await;
        };
        let slice = usize::try_from((per_second / SLICES_PER_SECOND).max(1)).unwrap_or(usize::MAX);
        let (now, later) = bytes.split_at(slice.min(bytes.len()));
        to.write_all(now).await?;
        let share = Duration::from_secs(1).mul_f64(now.len() as f64 / per_second.max(1) as f64);
        tokio::time::sleep(share).await;
        bytes = later;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
