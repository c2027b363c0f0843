//! `caf-worker exec`: runs assignments from a file or standard input in the same tree as `serve`, without a broker,
//! and prints what would be published.
//!
//! Neighbours: `wiring` builds the tree, `shutdown` drains it. Standard output carries one JSON line per message and
//! nothing else; the log goes to standard error. [`dry_run`] stops before anything is run.

pub mod dry_run;

use std::collections::HashSet;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use bytes::Bytes;
use caf_actors::cancellation::Cancellations;
use caf_actors::claims::Claims;
use caf_actors::clock;
use caf_actors::errors::chain;
use caf_actors::events::{self, Log};
use caf_actors::job::{Arrival, Delivery};
use caf_actors::lease::LeaseToken;
use caf_actors::runtime::Route;
use caf_actors::sink::{Outgoing, PublishError, Published, Sink, Verdict};
use caf_actors::status::NodeStatus;
use caf_actors::trace::Tracer;
use caf_blocks::{Blocks, SetupError};
use caf_protocol::headers::Headers;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::assignments::{Input, answerable_id, read_all};
use crate::exit::Exit;
use crate::http::Port;
use crate::http::health::{self, Health};
use crate::settings::Settings;
use crate::settings::in_force::InForce;
use crate::shutdown::{Feed, Guarantee, drain};
use crate::signals::Signals;
use crate::wiring::{Edges, EventLoops, build, new_status};

/// Host by which an assignment names the run's own health page, whatever its port.
pub const HEALTH_HOST: &str = "health.worker.internal";
/// Largest message printed, in bytes: what a NATS server takes by default.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// Lines read ahead of the tree.
const READ_AHEAD: usize = 16;

/// Runs every assignment of `input`. `blocks` is given the address of the run's own health page, which it lets
/// through.
///
/// # Errors
/// When the input cannot be read, or no port can be had.
pub async fn run(
    settings: &Settings,
    in_force: &InForce,
    input: Input,
    blocks: impl FnOnce(SocketAddr) -> Result<Blocks, SetupError>,
    mut signals: Signals,
    log: &Log,
) -> anyhow::Result<Exit> {
    let status = new_status(settings);
    status.set_connected(true);
    status.set_consuming(true);
    let health = Health::new(status.clone(), "local", log.worker_id());
    let port = open_health_port(&settings.http.health_addr, &health)?;
    let blocks = match blocks(port.address) {
        Ok(blocks) => blocks,
        Err(error) => {
            log.emit(events::fatal(&chain(&error)));
            port.close().await;
            return Ok(Exit::Config);
        }
    };
    let result_subject = settings.nats.subjects.result.clone();
    let printer = Arc::new(Printer {
        result_subject,
        ..Printer::default()
    });
    let sink = Arc::new(LocalSink {
        printer: Arc::clone(&printer),
    });
    let edges = Edges {
        approvals: None,
        sink,
        outputs: None,
        claims: Claims::new(&settings.idempotency, None),
        outbox: None,
        marks: None,
        cancellations: Cancellations::off(),
        tracer: Tracer::default(),
    };
    let loops = EventLoops::start(settings);
    let tree = build(settings, in_force, blocks, edges, loops, status.clone(), log).await;
    health.watch(&tree);

    let mut nobody_reads = printer.gone.subscribe();
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
        () = stop_early(&mut signals, &mut nobody_reads, false) => None,
    };
    stopped.send_replace(true);
    let finished = async {
        match &fed {
            Some(_) => status.held().all_returned().await,
            None => std::future::pending().await,
        }
    };
    let exit = tokio::select! {
        () = finished => Exit::Ok,
        () = stop_early(&mut signals, &mut nobody_reads, fed.is_none()) => {
            log.emit(events::shutting_down(signals.last(), status.held().held_jobs()));
            drain(&tree, &feed, Guarantee::AtMostOnce, settings, &mut signals).await
        }
    };
    port.close().await;
    Ok(verdict(exit, fed, &printer))
}

/// Waits for a reason to leave before all is done: a signal, or a reader that has gone away.
async fn stop_early(signals: &mut Signals, nobody_reads: &mut watch::Receiver<bool>, already: bool) {
    if already {
        return;
    }
    tokio::select! {
        () = signals.next() => {}
        _ = nobody_reads.wait_for(|gone| *gone) => {}
    }
}

/// 0 only when every assignment that went in came out as a success.
fn verdict(exit: Exit, fed: Option<Fed>, printer: &Printer) -> Exit {
    let Some(fed) = fed else {
        return if exit == Exit::Ok { Exit::SomeFailed } else { exit };
    };
    let answered = printer.answered.lock().unwrap_or_else(PoisonError::into_inner);
    let lost: Vec<_> = fed.ids.difference(&answered).collect();
    for id in &lost {
        eprintln!("caf-worker: no result for {id}");
    }
    let all = fed.unanswerable == 0 && lost.is_empty() && printer.failed.load(SeqCst) == 0;
    match exit {
        Exit::Ok if !all || *printer.gone.borrow() => Exit::SomeFailed,
        other => other,
    }
}

/// What went in.
#[derive(Default)]
struct Fed {
    ids: HashSet<String>,
    unanswerable: usize,
}

/// The configured port on this host only, or any when that one is taken.
fn open_health_port(configured: &str, health: &Health) -> anyhow::Result<Port> {
    let port = configured
        .parse::<SocketAddr>()
        .map_or(0, |address| address.port());
    let here = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let pages = health::pages(health.clone());
    Port::open(here(port), health::CONNECTIONS, pages.clone())
        .or_else(|_| Port::open(here(0), health::CONNECTIONS, pages))
        .context("cannot open a port for the health page")
}

/// Hands the assignments over, each with its permit. Returns what they were.
async fn feed_lines(
    input: Input,
    subject: &Arc<str>,
    intake: &Route<Delivery>,
    status: &NodeStatus,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<Fed> {
    let (lines, mut ready) = mpsc::channel(READ_AHEAD);
    // Reading may wait for a terminal: it gets a thread of its own, which nobody waits for.
    std::thread::Builder::new()
        .name("input".to_owned())
        .spawn(move || read_all(input, |line| lines.blocking_send(line).is_ok()))?;
    let mut fed = Fed::default();
    loop {
        let line = tokio::select! {
            line = ready.recv() => line,
            _ = stop.wait_for(|stop| *stop) => None,
        };
        let Some(line) = line else { return Ok(fed) };
        let payload = Bytes::from(line?);
        match answerable_id(&payload) {
            Ok(id) => drop(fed.ids.insert(id)),
            Err(_) => fed.unanswerable += 1,
        }
        let Some(permit) = status.held().reserve(1).await.take(payload.len()) else {
            continue;
        };
        let arrival = Arrival {
            subject: Arc::clone(subject),
            headers: Arc::new(Headers::default()),
            payload,
            position: None,
            published_at_ms: None,
            received_at_ms: clock::epoch_ms(),
            received: Instant::now(),
        };
        if intake
            .tell(Delivery {
                arrival,
                permit,
                lease: None,
                given_up: None,
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
    result_subject: String,
    one_at_a_time: Mutex<()>,
    answered: Mutex<HashSet<String>>,
    failed: AtomicUsize,
    /// Becomes true when nobody reads standard output any more.
    gone: watch::Sender<bool>,
}

/// One printed line.
#[derive(serde::Serialize)]
struct Line<'a> {
    subject: &'a str,
    headers: &'a Headers,
    payload: &'a RawValue,
}

impl Printer {
    fn print(&self, message: &Outgoing) -> Result<Published, PublishError> {
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
        self.count(message, text);
        let _one_at_a_time = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = std::io::stdout().lock();
        if out.write_all(&line).and_then(|()| out.flush()).is_err() {
            // The reader has gone away: the run ends, quietly.
            let _ = self.gone.send_replace(true);
        }
        Ok(Published::default())
    }

    /// Remembers who was answered with a result, and how.
    fn count(&self, message: &Outgoing, text: &str) {
        #[derive(serde::Deserialize)]
        struct Body {
            status: String,
            assignment_id: String,
        }
        if message.subject != self.result_subject {
            return;
        }
        if let Ok(body) = serde_json::from_str::<Body>(text) {
            if body.status != "success" {
                self.failed.fetch_add(1, SeqCst);
            }
            self.answered
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(body.assignment_id);
        }
    }
}

impl Sink for LocalSink {
    fn publish(&self, message: &Outgoing) -> BoxFuture<'static, Result<Published, PublishError>> {
        std::future::ready(self.printer.print(message)).boxed()
    }

    fn settle(&self, _: LeaseToken, _: Verdict) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }

    fn max_message_bytes(&self) -> usize {
        MAX_MESSAGE_BYTES
    }
}
