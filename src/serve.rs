//! `caf-worker serve`: the node. Connects, builds the tree, feeds it from NATS, and leaves cleanly.
//!
//! Neighbours: `wiring` builds, `shutdown` drains, `http` answers. The order here is the life of a node.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use caf_actors::abandoned::Gravedigger;
use caf_actors::answers::Answers;
use caf_actors::approvals::{ApprovalParts, Approvals};
use caf_actors::claims::Claims;
use caf_actors::claims::fleet::Fleet;
use caf_actors::counts::Counts;
use caf_actors::events::{self, Log};
use caf_actors::nats::abandoned::{WatchParts, watch_abandoned};
use caf_actors::nats::approval_link_key::link_key;
use caf_actors::nats::approval_store::NatsApprovalStore;
use caf_actors::nats::buckets::{ensure_claims_bucket_when_possible, watch_claims_window};
use caf_actors::nats::cancel::{CancelListener, CancelParts, ToPassOn, passing_on};
use caf_actors::nats::claim_store::NatsClaimStore;
use caf_actors::nats::connection::{ConnectError, Connection, connect};
use caf_actors::nats::discovery::{Discovery, DiscoveryParts, service};
use caf_actors::nats::lease_keeper::{KeeperParts, LeaseKeeper};
use caf_actors::nats::objects::{ObjectFetch, ObjectOutputs};
use caf_actors::nats::sink::NatsSink;
use caf_actors::nats::source::{SourceParts, run_pull, run_queue};
use caf_actors::nats::streams::{AnswerStreams, ensure_answer_streams_when_possible};
use caf_actors::nats::watchdog::{SourceControl, WatchdogParts, run_watchdog};
use caf_actors::publisher::replay::Replay;
use caf_actors::runtime::{EventLoop, run_on, spawn_task};
use caf_actors::settings::{NatsMode, Spill};
use caf_actors::sink::Sink;
use caf_actors::spill::{OutputStore, Spiller};
use caf_actors::status::NodeStatus;
use caf_actors::supervisor::{Child, Escalation};
use caf_actors::vitals::{PoolVitals, Vitals};
use caf_blocks::Blocks;
use caf_protocol::block::ResourceClass;
use caf_protocol::discovery::Service;
use caf_protocol::ids::AssignmentKey;
use caf_protocol::reference::Fetch;
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::admin::{Admin, Told};
use crate::approvals::{Desk, SharedKey};
use crate::exit::Exit;
use crate::http::health::Health;
use crate::policy_store::PolicyStore;
use crate::ports::Ports;
use crate::settings::Settings;
use crate::settings::feature::Feature;
use crate::settings::in_force::InForce;
use crate::shutdown::{Feed, Guarantee, drain};
use crate::signals::Signals;
use crate::state::{State, watch_room};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Traces;
use crate::wiring::{Edges, EventLoops, Tree, adopt, build, new_cancellations, new_status};

/// How long the last verdicts may take to reach the broker.
const LAST_FLUSH: Duration = Duration::from_secs(1);
/// How often a claim is written within its time to live: a few writes may fail.
const REFRESHES_PER_TTL: u32 = 6;
/// Longest time between two writes of a claim that is held: where much goes through a bucket, what was written longest ago
/// falls out of it long before its time to live has passed.
const REFRESH_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for the broker to take the subscription to requests to cancel, and that to questions.
const HEARING_LIMIT: Duration = Duration::from_secs(2);
/// Pause before it is tried again whether questions get through. Each try waits for some seconds itself.
const ASK_RETRY: Duration = Duration::from_secs(5);

/// Runs the node until a signal or an escalation ends it.
///
/// # Errors
/// When the system gives no thread.
pub async fn run(
    settings: &Settings,
    in_force: &InForce,
    mut blocks: Blocks,
    mut signals: Signals,
    (log, metrics): (&Log, Option<Arc<Metrics>>),
    told: Told,
) -> anyhow::Result<Exit> {
    let mode = settings.nats.mode;
    let mode_name = mode_name(mode);
    let sizes = ResourceClass::ALL.map(|class| in_force.pool(class).slots);
    let sandbox = settings.worker.sandbox.enabled;
    log.emit(events::starting(
        mode_name,
        sizes,
        sandbox,
        env!("CARGO_PKG_VERSION"),
    ));
    if mode == NatsMode::Core {
        log.emit(events::warning(
            "nats.mode is core: assignments are delivered at most once",
        ));
    }
    let status = new_status(settings);
    let health = Health::new(status.clone(), mode_name, log.worker_id());
    if let Some(metrics) = &metrics {
        metrics.know_job_types(&blocks.registry.all_job_types());
    }
    let measures = metrics.is_some();
    let secrets = told.secrets.clone();
    let cancellations = new_cancellations(settings, in_force, log);
    let (pass_on, to_pass_on) = passing_on();
    let tls = [told.admin_tls.clone(), told.approval_tls.clone()];
    let admin = Admin::new(settings, health.clone(), told, (cancellations.clone(), pass_on));
    let desk = Desk::new(settings.approvals.enabled, &settings.approvals.links, log);
    let ports = match Ports::open(&settings.http, &health, metrics, (admin, desk.clone()), tls, log) {
        Ok(ports) => ports,
        Err(exit) => return Ok(exit),
    };
    let traces = in_force
        .tracing
        .then(|| Traces::start(&settings.worker.tracing, &secrets, log));
    let traces = match traces.transpose() {
        Ok(traces) => traces,
        Err(error) => {
            log.emit(events::fatal(&format!("traces cannot be exported: {error}")));
            return Ok(Exit::Config);
        }
    };
    let tracer = traces
        .as_ref()
        .map(|traces| traces.tracer.clone())
        .unwrap_or_default();
    let state = tokio::select! {
        state = State::open(settings, sizes.iter().sum(), &status, log) => state,
        () = signals.next() => {
            log.emit(events::stopped(0, Exit::Ok.code()));
            return Ok(Exit::Ok);
        }
    };
    let loops = EventLoops::start(settings);
    if measures {
        loops.watch(&health, log);
    }
    let connecting = connect_pipeline(&loops.pipeline, settings, &status, log);
    let connected = tokio::select! {
        connected = connecting => connected,
        () = signals.next() => {
            log.emit(events::stopped(0, Exit::Ok.code()));
            return Ok(Exit::Ok);
        }
    };
    let Connected {
        connection,
        sink,
        claims,
        approvals,
    } = match connected {
        Ok(connected) => connected,
        Err(error) => {
            log.emit(events::fatal(&error.to_string()));
            return Ok(match error {
                ConnectError::Settings(_) => Exit::Config,
                ConnectError::Deadline { .. } => Exit::Unavailable,
            });
        }
    };
    let approvals = approvals.map(|store| {
        Approvals::new(ApprovalParts {
            store: Arc::new(store),
            sink: Some(Arc::clone(&sink) as Arc<dyn Sink>),
            answers: Answers::new(&settings.nats.subjects, log.worker_id()),
            fleet: claims.fleet().cloned(),
            cancellations: cancellations.clone(),
            settings: settings.approvals.clone(),
            log: log.clone(),
        })
    });
    let link_key = shared_key(&connection, settings);
    desk.open(approvals.clone().map(|approvals| (approvals, link_key)));
    let is_open = sink.is_open();
    let spills = mode == NatsMode::Jetstream && settings.outputs.spill == Spill::Objects;
    let outputs = spills
        .then(|| Arc::new(ObjectOutputs::new(&connection, &settings.nats, log)) as Arc<dyn OutputStore>);
    let edges = Edges {
        sink: Arc::clone(&sink) as Arc<dyn Sink>,
        outputs: outputs.clone(),
        claims: claims.clone(),
        outbox: Some(state.outbox.clone()),
        marks: Some(state.marks.clone()),
        cancellations,
        tracer: tracer.clone(),
        approvals,
    };
    let spiller = Spiller::new(outputs, log.clone());
    let replay =
        Replay::new(sink, claims, spiller, &settings.nats.subjects.result, log.clone()).with_tracer(tracer);
    if mode == NatsMode::Jetstream {
        let fetcher = ObjectFetch::new(&connection, &settings.nats, &settings.payload_ref);
        let fetcher: Arc<dyn Fetch> = Arc::new(fetcher);
        blocks.fetchers = blocks.fetchers.with(Arc::clone(&fetcher));
        // The broker is where assignments come from, and no outside of them.
        blocks.sandbox.fetchers = blocks.sandbox.fetchers.with(fetcher);
    }
    let tree = build(settings, in_force, blocks, edges, loops, status, log).await;
    health.watch(&tree);
    health.watch_streams(is_open);
    let looking = actix_rt::spawn(health.clone().keep_looking());
    let policies = PolicyStore::open(&in_force.tenants, state.policies.clone(), log).await;
    let asking = actix_rt::spawn(policies.run());
    let outside = Outside::start(settings, in_force, &tree, to_pass_on, log)?;
    let exit = feed_and_wait(
        settings,
        tree,
        outside,
        (&state, &replay),
        &connection,
        &mut signals,
        log,
    )
    .await?;
    looking.abort();
    asking.abort();
    if let Some(traces) = traces {
        traces.stop().await;
    }
    ports.close(log).await;
    Ok(exit)
}

/// Where the key of links comes from that all workers share.
fn shared_key(connection: &Connection, settings: &Settings) -> SharedKey {
    let (connection, nats) = (connection.clone(), settings.nats.clone());
    let bucket = settings.approvals.bucket.clone();
    Arc::new(move |fresh| {
        let (connection, nats, bucket) = (connection.clone(), nats.clone(), bucket.clone());
        async move { link_key(&connection, &nats, &bucket, &fresh).await }.boxed()
    })
}

/// What the pipeline reaches the broker by.
struct Connected {
    connection: Connection,
    sink: Arc<NatsSink>,
    claims: Claims,
    /// Where questions to people are kept, if they are.
    approvals: Option<NatsApprovalStore>,
}

/// Connects on the pipeline's event loop, where the socket is then served, and makes the sink there.
async fn connect_pipeline(
    pipeline: &EventLoop,
    settings: &Settings,
    status: &NodeStatus,
    log: &Log,
) -> Result<Connected, ConnectError> {
    let idempotency = settings.idempotency.clone();
    let approvals = settings.approvals.clone();
    let settings = &settings.nats;
    let (settings, status, log) = (settings.clone(), status.clone(), log.clone());
    let on = pipeline.handle();
    let connected = run_on(&on, move || {
        async move {
            status.start_connecting();
            let connection = connect(&settings, "pipeline", &log, move |up| status.set_connected(up)).await?;
            let (streams, bucket) = match settings.mode {
                NatsMode::Core => (AnswerStreams::none(), None),
                NatsMode::Jetstream => tokio::join!(
                    ensure_answer_streams_when_possible(&connection, &settings, &log),
                    ensure_claims_bucket_when_possible(&connection, &settings, &idempotency, &log),
                ),
            };
            let has_bucket = bucket.is_some();
            let sink = NatsSink::new(connection.clone(), &settings, streams, bucket, &log);
            let fleet = has_bucket.then(|| {
                let store = NatsClaimStore::new(&sink, &settings, &idempotency.bucket);
                Fleet::new(
                    Arc::new(store),
                    &uuid::Uuid::new_v4().simple().to_string(),
                    log.worker_id(),
                )
            });
            let approvals = if has_bucket && approvals.enabled {
                NatsApprovalStore::open_when_possible(&connection, &settings, &approvals.bucket, &log).await
            } else {
                None
            };
            Ok(Connected {
                claims: Claims::new(&idempotency, fleet),
                sink: Arc::new(sink),
                approvals,
                connection,
            })
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
    outside: Outside,
    (state, replay): (&State, &Replay),
    connection: &Connection,
    signals: &mut Signals,
    log: &Log,
) -> anyhow::Result<Exit> {
    let (stop, is_stop) = watch::channel(false);
    // Until the source has begun, there is none to wait for.
    let stopped = Arc::new(watch::Sender::new(true));
    let feed = Feed {
        stop,
        stopped: stopped.subscribe(),
    };
    let parts = SourceParts {
        connection: connection.clone(),
        settings: Arc::new(settings.nats.clone()),
        leases: tree.leases.clone(),
        intake: tree.intake.clone(),
        status: tree.status.clone(),
        stop: is_stop,
        stopped,
        control: SourceControl::default(),
        log: log.clone(),
    };
    let supervisor = tree.supervisor.clone();
    let source_stopped = Arc::clone(&parts.stopped);
    let watchdog = (settings.nats.mode == NatsMode::Jetstream)
        .then(|| watchdog_child(&tree.loops.pipeline, &parts, &tree));
    let abandoned = (settings.nats.mode == NatsMode::Jetstream)
        .then(|| abandoned_child(&tree.loops.pipeline, &parts, &tree));
    let source = source_child(&tree.loops.pipeline, parts);
    let claims = tree.claims.clone();
    let working = async {
        state.recover(settings, replay, &claims, log).await;
        until_askable(&claims, &outside.keeper, log).await;
        outside.until_it_hears().await;
        for child in [watchdog, abandoned].into_iter().flatten() {
            adopt(&supervisor, child).await;
        }
        source_stopped.send_replace(false);
        adopt(&supervisor, source).await;
        log.emit(events::running(&settings.nats.subjects.assign));
        let room = watch_room(state, tree.status.clone(), &settings.worker.state_dir, log);
        let window = async {
            if claims.fleet().is_some() {
                watch_claims_window(connection, &settings.nats, &settings.idempotency, &claims).await;
            }
        };
        tokio::join!(room, keep_fresh(&claims, settings.idempotency.ttl_s), window);
    };
    let escalation = tokio::select! {
        () = signals.next() => None,
        escalation = tree.escalations.recv() => escalation,
        () = working => None,
    };
    let held = tree.status.held().held_jobs();
    let guarantee = match settings.nats.mode {
        NatsMode::Jetstream => Guarantee::AtLeastOnce,
        NatsMode::Core => Guarantee::AtMostOnce,
    };
    let drained = match escalation {
        None => {
            log.emit(events::shutting_down(signals.last(), held));
            drain(&tree, &feed, guarantee, settings, signals).await
        }
        // Only the way in is ill: what is held ends as it should.
        Some(Escalation::ConsumptionStalled) => {
            log.emit(events::shutting_down("none: consumption stalled", held));
            drain(&tree, &feed, guarantee, settings, signals).await;
            Exit::ConsumptionStalled
        }
        // The tree cannot be trusted to drain; what it holds is delivered again.
        Some(Escalation::RestartBudgetSpent) => Exit::RestartsSpent,
        Some(Escalation::LeaseKeeperLost) => Exit::LeaseKeeperLost,
    };
    connection.flush(LAST_FLUSH).await;
    let _ = timeout(LAST_FLUSH, state.outbox.flush()).await;
    // The disk may hang, and must not keep the process.
    let _ = timeout(LAST_FLUSH, state.marks.clear()).await;
    outside.stop();
    log.emit(events::stopped(tree.status.held().held_jobs(), drained.code()));
    Ok(drained)
}

/// What speaks for the worker whatever the pipeline does, each on a thread and a connection of its own.
struct Outside {
    keeper: LeaseKeeper,
    discovery: Option<Discovery>,
    listener: Option<CancelListener>,
}

impl Outside {
    fn start(
        settings: &Settings,
        in_force: &InForce,
        tree: &Tree,
        to_pass_on: ToPassOn,
        log: &Log,
    ) -> anyhow::Result<Self> {
        let pools = tree.pools.iter().map(|pool| PoolVitals {
            class: pool.class,
            slots: Arc::clone(&pool.slots),
            places: pool.places.clone(),
        });
        let (vitals, questions) = (Vitals::new(tree.status.clone(), pools), Counts::default());
        let keeper = KeeperParts {
            settings: settings.nats.clone(),
            heartbeat: Duration::from_millis(settings.worker.heartbeat_interval_ms),
            leases: tree.leases.clone(),
            claims: tree.claims.clone(),
            vitals: vitals.clone(),
            questions: questions.clone(),
            log: log.clone(),
        };
        let escalate = tree.escalate.clone();
        let ended = move || {
            let _ = escalate.send(Escalation::LeaseKeeperLost);
        };
        let keeper = LeaseKeeper::start(keeper, ended).context("cannot start the lease keeper's thread")?;
        let owner = tree.claims.fleet().map(|fleet| fleet.owner().to_owned());
        let discovery = || {
            Discovery::start(DiscoveryParts {
                settings: settings.nats.clone(),
                service: who_we_are(settings, in_force, owner.as_deref(), log),
                vitals,
                questions: owner.as_ref().map(|_| questions),
                log: log.clone(),
            })
        };
        let discovery = settings.nats.discovery.then(discovery).flatten();
        let listener = tree.cancellations.is_on().then(|| {
            CancelListener::start(CancelParts {
                settings: settings.nats.clone(),
                cancellations: tree.cancellations.clone(),
                claims: tree.claims.clone(),
                to_pass_on,
                log: log.clone(),
            })
        });
        Ok(Self {
            keeper,
            discovery,
            listener: listener.flatten(),
        })
    }

    /// Waits until requests to cancel are heard: what was asked for before an assignment is taken must be known by then.
    async fn until_it_hears(&self) {
        if let Some(listener) = &self.listener {
            // A broker that does not permit it keeps nobody from working.
            let _ = timeout(HEARING_LIMIT, listener.listens()).await;
        }
    }

    fn stop(self) {
        self.keeper.stop();
        if let Some(listener) = self.listener {
            listener.stop();
        }
        if let Some(discovery) = self.discovery {
            discovery.stop();
        }
    }
}

/// This process, as discovery tells it: by the name by which other workers ask it, where they do.
fn who_we_are(settings: &Settings, in_force: &InForce, owner: Option<&str>, log: &Log) -> Service {
    let id = owner.map_or_else(|| uuid::Uuid::new_v4().simple().to_string(), str::to_owned);
    let features = Feature::ALL.into_iter().filter(|feature| in_force.has(*feature));
    let features: Vec<&str> = features.map(Feature::name).collect();
    let mode = mode_name(settings.nats.mode);
    service(&id, env!("CARGO_PKG_VERSION"), log.worker_id(), mode, &features)
}

fn mode_name(mode: NatsMode) -> &'static str {
    match mode {
        NatsMode::Core => "core",
        NatsMode::Jetstream => "jetstream",
    }
}

/// Waits until questions between workers get through. A worker that nobody can ask would look dead while it works.
async fn until_askable(claims: &Claims, keeper: &LeaseKeeper, log: &Log) {
    let Some(fleet) = claims.fleet() else { return };
    // A question that comes before the subscription costs more than half a second.
    let _ = timeout(HEARING_LIMIT, keeper.hears_questions()).await;
    let nothing = AssignmentKey::new("", "");
    while let Err(error) = fleet.ask_oneself(&nothing).await {
        log.emit(events::not_askable(&error.to_string()));
        tokio::time::sleep(ASK_RETRY).await;
    }
}

/// Writes the claims of jobs that are held again before they are the oldest, for as long as it is polled.
async fn keep_fresh(claims: &Claims, ttl_s: u64) {
    let age = (Duration::from_secs(ttl_s) / REFRESHES_PER_TTL).min(REFRESH_LIMIT);
    loop {
        tokio::time::sleep(age / 2).await;
        for claim in claims.held_in_fleet() {
            if claim.written().await.elapsed() >= age / 2 {
                // Whoever answers for the job proves the claim by itself.
                let _ = claim.prove().await;
            }
        }
    }
}

fn watchdog_child(pipeline: &EventLoop, source: &SourceParts, tree: &Tree) -> Child {
    let on = pipeline.handle();
    let parts = WatchdogParts {
        connection: source.connection.clone(),
        settings: Arc::clone(&source.settings),
        status: source.status.clone(),
        source: source.control.clone(),
        stop: source.stop.clone(),
        escalate: tree.escalate.clone(),
        log: source.log.clone(),
    };
    Child {
        name: "watchdog".to_owned(),
        may_finish: true,
        start: Box::new(move |ended| {
            let (on, parts) = (on.clone(), parts.clone());
            async move { spawn_task(&on, move || run_watchdog(parts).boxed_local(), ended) }.boxed()
        }),
    }
}

fn abandoned_child(pipeline: &EventLoop, source: &SourceParts, tree: &Tree) -> Child {
    let on = pipeline.handle();
    let parts = WatchParts {
        connection: source.connection.clone(),
        settings: Arc::clone(&source.settings),
        undertaker: Arc::new(Gravedigger {
            intake: tree.intake.clone(),
            held: tree.status.held().clone(),
        }),
        stop: source.stop.clone(),
        log: source.log.clone(),
    };
    Child {
        name: "abandoned".to_owned(),
        may_finish: true,
        start: Box::new(move |ended| {
            let (on, parts) = (on.clone(), parts.clone());
            async move { spawn_task(&on, move || watch_abandoned(parts).boxed_local(), ended) }.boxed()
        }),
    }
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
