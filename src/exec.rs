//! `caf-worker exec`: runs assignments from a file or standard input in the same tree as `serve`, without a broker,
//! and prints what would be published.
//!
//! Neighbours: `wiring` builds the tree, `shutdown` drains it. Standard output carries one JSON line per message and
//! nothing else; the log goes to standard error.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use bytes::Bytes;
use caf_actors::clock;
use caf_actors::events::{self, Log};
use caf_actors::job::{Arrival, Delivery};
use caf_actors::lease::LeaseToken;
use caf_actors::runtime::Route;
use caf_actors::sink::{Outgoing, PublishError, Sink, Verdict};
use caf_actors::status::NodeStatus;
use caf_protocol::block::Registry;
use caf_protocol::headers::Headers;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::assignments::{Input, read_all};
use crate::exit::Exit;
use crate::http::{Health, HealthPort};
use crate::settings::Settings;
use crate::shutdown::{Feed, Intake, drain};
use crate::signals::Signals;
use crate::wiring::{EventLoops, build, new_status};

/// Host by which an assignment names the run's own health page, whatever its port.
pub const HEALTH_HOST: &str = "health.worker.internal";
/// Largest message printed, in bytes: what a NATS server takes by default.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// Lines read ahead of the tree.
const READ_AHEAD: usize = 16;

/// Runs every assignment of `input`. `registry` is given the address of the run's own health page, which it lets
/// through.
///
/// # Errors
/// When the input cannot be read, or no port or signal handler can be had.
pub async fn run(
    settings: &Settings,
    input: Input,
    registry: impl FnOnce(SocketAddr) -> anyhow::Result<Registry>,
    log: &Log,
) -> anyhow::Result<Exit> {
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let status = new_status(settings);
    status.set_connected(true);
    status.set_consuming(true);
    let health = Health::new(status.clone(), "local", log.worker_id());
    let port = open_health_port(&settings.http.health_addr, &health)?;
    let printer = Arc::new(Printer::default());
    let sink = Arc::new(LocalSink {
        printer: Arc::clone(&printer),
    });
    let loops = EventLoops::start(settings);
    let tree = build(
        settings,
        registry(port.address)?,
        sink,
        loops,
        status.clone(),
        log,
    )
    .await;
    health.watch(&tree);

    let (stop, is_stop) = watch::channel(false);
    let (stopped, has_stopped) = watch::channel(false);
    let feed = Feed {
        stop,
        stopped: has_stopped,
    };
    let subject: Arc<str> = settings.nats.subjects.assign.as_str().into();
    let mut feeding = std::pin::pin!(feed_lines(input, &subject, &tree.intake, &status, is_stop));
    let fed = tokio::select! {
        fed = &mut feeding => Some(fed?),
        () = signals.next() => None,
    };
    let interrupted = fed.is_none();
    if interrupted {
        log.emit(events::shutting_down(signals.last(), status.held().held_jobs()));
    }
    stopped.send_replace(true);
    let exit = if interrupted {
        drain(&tree, &feed, Intake::DeliversOnce, settings, &mut signals).await
    } else {
        tokio::select! {
            () = status.held().all_returned() => Exit::Ok,
            () = signals.next() => drain(&tree, &feed, Intake::DeliversOnce, settings, &mut signals).await,
        }
    };
    port.close().await;
    Ok(verdict(exit, interrupted, fed.unwrap_or(0), &printer))
}

/// 0 only when every assignment that went in came out as a success.
fn verdict(exit: Exit, interrupted: bool, fed: usize, printer: &Printer) -> Exit {
    let all_succeeded =
        !interrupted && printer.failed.load(SeqCst) == 0 && printer.succeeded.load(SeqCst) >= fed.min(1);
    match exit {
        Exit::Ok if all_succeeded && !printer.broken.load(SeqCst) => Exit::Ok,
        Exit::Ok => Exit::SomeFailed,
        other => other,
    }
}

/// The configured port on this host only, or any when that one is taken.
fn open_health_port(configured: &str, health: &Health) -> anyhow::Result<HealthPort> {
    let port = configured
        .parse::<SocketAddr>()
        .map_or(0, |address| address.port());
    let here = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    HealthPort::open(here(port), health.clone())
        .or_else(|_| HealthPort::open(here(0), health.clone()))
        .context("cannot open a port for the health page")
}

/// Hands the assignments over, each with its permit. Returns how many there were.
async fn feed_lines(
    input: Input,
    subject: &Arc<str>,
    intake: &Route<Delivery>,
    status: &NodeStatus,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<usize> {
    let (lines, mut ready) = mpsc::channel(READ_AHEAD);
    // Reading may wait for a terminal: it gets a thread of its own, which nobody waits for.
    std::thread::Builder::new()
        .name("input".to_owned())
        .spawn(move || read_all(input, |line| lines.blocking_send(line).is_ok()))?;
    let mut count = 0;
    loop {
        let line = tokio::select! {
            line = ready.recv() => line,
            _ = stop.wait_for(|stop| *stop) => None,
        };
        let Some(line) = line else { return Ok(count) };
        let payload = Bytes::from(line?);
        count += 1;
        let Some(permit) = status.held().reserve(1).await.take(payload.len()) else {
            continue;
        };
        let arrival = Arrival {
            subject: Arc::clone(subject),
            headers: Arc::new(Headers::default()),
            payload,
            position: None,
            received_at_ms: clock::epoch_ms(),
            received: Instant::now(),
        };
        if intake
            .tell(Delivery {
                arrival,
                permit,
                lease: None,
            })
            .is_err()
        {
            anyhow::bail!("the intake is gone");
        }
    }
}

/// Prints what would be published.
struct LocalSink {
    printer: Arc<Printer>,
}

#[derive(Default)]
struct Printer {
    lock: Mutex<()>,
    succeeded: AtomicUsize,
    failed: AtomicUsize,
    /// Standard output is gone.
    broken: AtomicBool,
}

/// One printed line.
#[derive(serde::Serialize)]
struct Line<'a> {
    subject: &'a str,
    headers: &'a Headers,
    payload: &'a RawValue,
}

impl Printer {
    fn print(&self, message: &Outgoing) -> Result<(), PublishError> {
        let refused = |error: &dyn std::fmt::Display| PublishError::Refused(error.to_string());
        let text = std::str::from_utf8(&message.payload).map_err(|error| refused(&error))?;
        let payload: &RawValue = serde_json::from_str(text).map_err(|error| refused(&error))?;
        let line = Line {
            subject: &message.subject,
            headers: &message.headers,
            payload,
        };
        let mut line = serde_json::to_vec(&line).map_err(|error| refused(&error))?;
        line.push(b'\n');
        self.count(text);
        let _one_at_a_time = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = std::io::stdout().lock();
        out.write_all(&line).and_then(|()| out.flush()).map_err(|error| {
            self.broken.store(true, SeqCst);
            refused(&error)
        })
    }

    /// Results and dead letters carry a status of a job; acknowledgements carry another set of words.
    fn count(&self, text: &str) {
        #[derive(serde::Deserialize)]
        struct Status {
            status: String,
        }
        match serde_json::from_str::<Status>(text)
            .map(|body| body.status)
            .as_deref()
        {
            Ok("success") => self.succeeded.fetch_add(1, SeqCst),
            Ok("error" | "timeout" | "cancelled") => self.failed.fetch_add(1, SeqCst),
            _ => 0,
        };
    }
}

impl Sink for LocalSink {
    fn publish(&self, message: &Outgoing) -> BoxFuture<'static, Result<(), PublishError>> {
        std::future::ready(self.printer.print(message)).boxed()
    }

    fn settle(&self, _: LeaseToken, _: Verdict) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }

    fn max_message_bytes(&self) -> usize {
        MAX_MESSAGE_BYTES
    }
}
