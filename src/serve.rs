//! `caf-worker serve`: the node. Connects, builds the tree, feeds it from NATS, and leaves cleanly.
//!
//! Neighbours: `wiring` builds, `shutdown` drains, `http` answers. The order here is the life of a node.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use caf_actors::abandoned::LetterWriter;
use caf_actors::answers::Answers;
use caf_actors::events::{self, Log};
use caf_actors::nats::abandoned::{WatchParts, watch_abandoned};
use caf_actors::nats::connection::{ConnectError, Connection, connect};
use caf_actors::nats::lease_keeper::{KeeperParts, LeaseKeeper};
use caf_actors::nats::sink::NatsSink;
use caf_actors::nats::source::{SourceParts, run_pull, run_queue};
use caf_actors::nats::streams::{AnswerStreams, ensure_answer_streams_when_possible};
use caf_actors::runtime::{EventLoop, run_on, spawn_task};
use caf_actors::settings::{NatsMode, NatsSettings};
use caf_actors::sink::Sink;
use caf_actors::status::NodeStatus;
use caf_actors::supervisor::{Child, Escalation};
use caf_protocol::block::{Registry, ResourceClass};
use futures_util::FutureExt;
use tokio::sync::watch;

use crate::exit::Exit;
use crate::http::{Health, HealthPort};
use crate::settings::Settings;
use crate::shutdown::{Feed, Guarantee, drain};
use crate::signals::Signals;
use crate::wiring::{EventLoops, Tree, adopt, build, new_status};

/// How long the last verdicts may take to reach the broker.
const LAST_FLUSH: Duration = Duration::from_secs(1);

/// Runs the node until a signal or an escalation ends it.
///
/// # Errors
/// When the system gives no thread.
pub async fn run(
    settings: &Settings,
    registry: Registry,
    mut signals: Signals,
    log: &Log,
) -> anyhow::Result<Exit> {
    let mode = settings.nats.mode;
    let mode_name = if mode == NatsMode::Core {
        "core"
    } else {
        "jetstream"
    };
    let sizes = ResourceClass::ALL.map(|class| settings.pools.get(class).max_concurrency);
    log.emit(events::starting(mode_name, sizes, env!("CARGO_PKG_VERSION")));
    if mode == NatsMode::Core {
        log.emit(events::warning(
            "nats.mode is core: assignments are delivered at most once",
        ));
    }
    let status = new_status(settings);
    let health = Health::new(status.clone(), mode_name, log.worker_id());
    let port = match open_health_port(settings, &health, log) {
        Ok(port) => port,
        Err(exit) => return Ok(exit),
    };
    let loops = EventLoops::start(settings);
    let connecting = connect_pipeline(&loops.pipeline, &settings.nats, &status, log);
    let connected = tokio::select! {
        connected = connecting => connected,
        () = signals.next() => {
            log.emit(events::stopped(0, Exit::Ok.code()));
            return Ok(Exit::Ok);
        }
    };
    let (connection, sink) = match connected {
        Ok(connected) => connected,
        Err(error) => {
            log.emit(events::fatal(&error.to_string()));
            return Ok(match error {
                ConnectError::Settings(_) => Exit::Config,
                ConnectError::Deadline { .. } => Exit::Unavailable,
            });
        }
    };
    let sink: Arc<dyn Sink> = Arc::new(sink);
    let undertaker = LetterWriter {
        sink: Arc::clone(&sink),
        answers: Answers::new(&settings.nats.subjects, log.worker_id()).with_letters(&settings.dlq),
        // The router has heard nothing of these yet: the message is all there is to answer from.
        remove: false,
        log: log.clone(),
    };
    let tree = build(settings, registry, sink, loops, status, log).await;
    health.watch(&tree);
    let edges = (&connection, undertaker);
    let exit = feed_and_wait(settings, tree, edges, &mut signals, log).await?;
    let address = port.address;
    port.close().await;
    log.emit(events::health_stopped(&address.ip().to_string(), address.port()));
    Ok(exit)
}

/// Opens the health port, or says why not.
fn open_health_port(settings: &Settings, health: &Health, log: &Log) -> Result<HealthPort, Exit> {
    let opened = settings
        .http
        .health_addr
        .parse()
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error))
        .and_then(|address| HealthPort::open(address, health.clone()));
    match opened {
        Ok(port) => {
            log.emit(events::health_started(
                &port.address.ip().to_string(),
                port.address.port(),
            ));
            Ok(port)
        }
        Err(error) => {
            log.emit(events::bind_failed(
                &settings.http.health_addr,
                &error.to_string(),
            ));
            Err(Exit::Unavailable)
        }
    }
}

/// Connects on the pipeline's event loop, where the socket is then served, and makes the sink there.
async fn connect_pipeline(
    pipeline: &EventLoop,
    settings: &NatsSettings,
    status: &NodeStatus,
    log: &Log,
) -> Result<(Connection, NatsSink), ConnectError> {
    let (settings, status, log) = (settings.clone(), status.clone(), log.clone());
    let on = pipeline.handle();
    let connected = run_on(&on, move || {
        async move {
            let connection = connect(&settings, "pipeline", &log, move |up| status.set_connected(up)).await?;
            let streams = match settings.mode {
                NatsMode::Core => AnswerStreams::none(),
                NatsMode::Jetstream => {
                    ensure_answer_streams_when_possible(&connection, &settings, &log).await
                }
            };
            let sink = NatsSink::new(connection.clone(), &settings, streams, &log);
            Ok((connection, sink))
        }
        .boxed_local()
    });
    connected.await.unwrap_or_else(|| {
        Err(ConnectError::Settings(
            "the pipeline's event loop is gone".to_owned(),
        ))
    })
}

/// Starts lease keeper, source and the watch over abandoned messages, waits for a reason to leave, and drains.
async fn feed_and_wait(
    settings: &Settings,
    mut tree: Tree,
    (connection, undertaker): (&Connection, LetterWriter),
    signals: &mut Signals,
    log: &Log,
) -> anyhow::Result<Exit> {
    let keeper = start_keeper(settings, &tree, log)?;
    let (stop, is_stop) = watch::channel(false);
    let stopped = Arc::new(watch::Sender::new(false));
    let feed = Feed {
        stop,
        stopped: stopped.subscribe(),
    };
    if settings.nats.mode == NatsMode::Jetstream {
        let parts = WatchParts {
            connection: connection.clone(),
            settings: Arc::new(settings.nats.clone()),
            undertaker: Arc::new(undertaker),
            stop: is_stop.clone(),
            log: log.clone(),
        };
        adopt(&tree.supervisor, watch_child(&tree.loops.pipeline, parts)).await;
    }
    let parts = SourceParts {
        connection: connection.clone(),
        settings: Arc::new(settings.nats.clone()),
        leases: tree.leases.clone(),
        intake: tree.intake.clone(),
        status: tree.status.clone(),
        stop: is_stop,
        stopped,
        log: log.clone(),
    };
    adopt(&tree.supervisor, source_child(&tree.loops.pipeline, parts)).await;
    log.emit(events::running(&settings.nats.subjects.assign));

    let escalation = tokio::select! {
        () = signals.next() => None,
        escalation = tree.escalations.recv() => escalation,
    };
    let drained = match escalation {
        None => {
            let held = tree.status.held().held_jobs();
            log.emit(events::shutting_down(signals.last(), held));
            let guarantee = match settings.nats.mode {
                NatsMode::Jetstream => Guarantee::AtLeastOnce,
                NatsMode::Core => Guarantee::AtMostOnce,
            };
            drain(&tree, &feed, guarantee, settings, signals).await
        }
        // The tree cannot be trusted to drain; what it holds is delivered again.
        Some(Escalation::RestartBudgetSpent) => Exit::RestartsSpent,
        Some(Escalation::LeaseKeeperLost) => Exit::LeaseKeeperLost,
    };
    connection.flush(LAST_FLUSH).await;
    keeper.stop();
    log.emit(events::stopped(tree.status.held().held_jobs(), drained.code()));
    Ok(drained)
}

fn start_keeper(settings: &Settings, tree: &Tree, log: &Log) -> anyhow::Result<LeaseKeeper> {
    let escalate = tree.escalate.clone();
    let parts = KeeperParts {
        settings: settings.nats.clone(),
        heartbeat: Duration::from_millis(settings.worker.heartbeat_interval_ms),
        leases: tree.leases.clone(),
        status: tree.status.clone(),
        gpu: Arc::clone(&tree.pool(ResourceClass::Gpu).slots),
        log: log.clone(),
    };
    let ended = move || {
        let _ = escalate.send(Escalation::LeaseKeeperLost);
    };
    LeaseKeeper::start(parts, ended).context("cannot start the lease keeper's thread")
}

fn source_child(pipeline: &EventLoop, parts: SourceParts) -> Child {
    let on = pipeline.handle();
    Child {
        name: "source".to_owned(),
        may_finish: true,
        start: Box::new(move |ended| {
            let (on, parts) = (on.clone(), parts.clone());
            async move {
                spawn_task(
                    &on,
                    move || match parts.settings.mode {
                        NatsMode::Jetstream => run_pull(parts).boxed_local(),
                        NatsMode::Core => run_queue(parts).boxed_local(),
                    },
                    ended,
                );
            }
            .boxed()
        }),
    }
}

fn watch_child(pipeline: &EventLoop, parts: WatchParts) -> Child {
    let on = pipeline.handle();
    Child {
        name: "abandoned".to_owned(),
        may_finish: true,
        start: Box::new(move |ended| {
            let (on, parts) = (on.clone(), parts.clone());
            async move { spawn_task(&on, move || watch_abandoned(parts).boxed_local(), ended) }.boxed()
        }),
    }
}
