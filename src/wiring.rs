//! Builds the tree, back to front: publisher, block workers, pools, intake. This file is the picture of the pipeline.
//!
//! Neighbours: `serve` and `exec` give it an edge to publish to and feed [`Tree::intake`]; `shutdown` is its mirror.
//! It decides nothing about messages.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr};
use caf_actors::answers::Answers;
use caf_actors::approvals::Approvals;
use caf_actors::approvals::keeper::keep;
use caf_actors::block_worker::threads::Threads;
use caf_actors::block_worker::{BlockWorker, Run};
use caf_actors::breakers::Breakers;
use caf_actors::cancellation::Cancellations;
use caf_actors::claims::Claims;
use caf_actors::claims::record::QuarantineRule;
use caf_actors::event_loop::{self, LoopClock};
use caf_actors::events::{self, Log};
use caf_actors::held::HeldPermits;
use caf_actors::intake::preparation::{Preparation, Sandbox};
use caf_actors::intake::{Intake, IntakeParts};
use caf_actors::job::Delivery;
use caf_actors::lease::LeaseTable;
use caf_actors::outbox::Outbox;
use caf_actors::pool::auditor::audit;
use caf_actors::pool::line::Ageing;
use caf_actors::pool::policy::QueueRules;
use caf_actors::pool::room::{self, Room};
use caf_actors::pool::running::RunningJobs;
use caf_actors::pool::{
    Deferrals, EmptyLine, LookAtPool, LookInLine, Places, Pool, PoolDoor, PoolDoors, Shares, Slots,
    TakeCancelled, Workers,
};
use caf_actors::publisher::{LookAtPublisher, Publisher, PublisherParts, PublisherRoutes};
use caf_actors::runtime::{EventLoop, Route, spawn_actor, spawn_task};
use caf_actors::sink::Sink;
use caf_actors::spill::{OutputStore, Spiller};
use caf_actors::state_dir::marks::Marks;
use caf_actors::status::NodeStatus;
use caf_actors::supervisor::{Adopt, Budget, Child, Escalation, Supervisor};
use caf_actors::trace::Tracer;
use caf_blocks::{Blocks, OperationLimits};
use caf_protocol::block::{CancellationToken, ResourceClass};
use futures_util::FutureExt;
use tokio::sync::mpsc;

use crate::http::health::Health;
use crate::settings::in_force::InForce;
use crate::settings::{Admission, Settings};

/// The event loops of a node. The pipeline's runs no block but those that hardly compute.
pub struct EventLoops {
    /// Intake, pools, publisher, and the broker connection they use; and blocks that hardly do anything.
    pub pipeline: EventLoop,
    /// Block workers; one HTTP client each.
    pub blocks: Vec<EventLoop>,
}

impl EventLoops {
    /// Watches how late each of them is, and the one that this is called on.
    pub fn watch(&self, health: &Health, log: &Log) {
        let main = LoopClock::start("main");
        health.watch_loop(main.clone());
        actix::spawn(event_loop::watch(main, log.clone()));
        let blocks = self.blocks.iter().enumerate();
        let blocks = blocks.map(|(number, on)| (format!("block_{number}"), on));
        for (name, on) in blocks.chain([("pipeline".to_owned(), &self.pipeline)]) {
            let (clock, log) = (LoopClock::start(&name), log.clone());
            health.watch_loop(clock.clone());
            let watch = move || event_loop::watch(clock, log).boxed_local();
            spawn_task(&on.handle(), watch, Box::new(|_| {}));
        }
    }

    /// Starts the threads.
    pub fn start(settings: &Settings) -> Self {
        let blocks = (0..settings.worker.io_threads.max(1))
            .map(|_| EventLoop::start())
            .collect();
        Self {
            pipeline: EventLoop::start(),
            blocks,
        }
    }
}

/// One pool, as the rest of the node reaches it.
pub struct PoolHandle {
    /// Which.
    pub class: ResourceClass,
    /// Shutdown empties its line.
    pub empty: Route<EmptyLine>,
    /// Told when jobs of its line may have been cancelled.
    pub cancelled: Route<TakeCancelled>,
    /// The health page looks at it.
    pub look: Route<LookAtPool>,
    /// Who explains an assignment looks for it in its line.
    pub look_in_line: Route<LookInLine>,
    /// Its slots.
    pub slots: Arc<Slots>,
    /// Its places.
    pub places: Places,
}

/// What the tree is given to reach the world outside.
pub struct Edges {
    /// Where answers go.
    pub sink: Arc<dyn Sink>,
    /// Where outputs go that fit no answer; nothing where they must not.
    pub outputs: Option<Arc<dyn OutputStore>>,
    /// What is known of assignments, here and in the fleet.
    pub claims: Claims,
    /// Where results are kept until they are confirmed; nothing where nobody waits for them.
    pub outbox: Option<Outbox>,
    /// Where it stands what runs, for whoever comes after a sudden death.
    pub marks: Option<Marks>,
    /// Who is cancelled by request.
    pub cancellations: Cancellations,
    /// Opens the spans of deliveries; the default one opens none.
    pub tracer: Tracer,
    /// Where jobs are set aside that ask people; nothing where they cannot be.
    pub approvals: Option<Approvals>,
}

/// A running pipeline.
pub struct Tree {
    /// Where deliveries go in.
    pub intake: Route<Delivery>,
    /// The pools.
    pub pools: Vec<PoolHandle>,
    /// The health page looks at the publisher.
    pub publisher: Route<LookAtPublisher>,
    /// State of the node.
    pub status: NodeStatus,
    /// What is held from the broker.
    pub leases: LeaseTable,
    /// What is known of assignments.
    pub claims: Claims,
    /// Results that are not confirmed.
    pub outbox: Option<Outbox>,
    /// Threads that outlived their job.
    pub threads: Threads,
    /// What is left alone because it keeps failing.
    pub breakers: Breakers,
    /// Restarts that are left.
    pub restarts: Budget,
    /// Cancels every job.
    pub cancel_all: CancellationToken,
    /// Who is cancelled by request.
    pub cancellations: Cancellations,
    /// Questions to people, where they are kept.
    pub approvals: Option<Approvals>,
    /// Watches the parts.
    pub supervisor: Addr<Supervisor>,
    /// Tells when the node must leave.
    pub escalations: mpsc::UnboundedReceiver<Escalation>,
    /// For parts outside of the tree to say the same.
    pub escalate: mpsc::UnboundedSender<Escalation>,
    /// The threads; they end when dropped.
    pub loops: EventLoops,
}

impl Tree {
    /// The pool for `class`.
    pub fn pool(&self, class: ResourceClass) -> &PoolHandle {
        let found = self.pools.iter().find(|pool| pool.class == class);
        found.expect("there is a pool for every class")
    }
}

/// Builds and starts the tree. Returns when every part takes messages.
pub async fn build(
    settings: &Settings,
    in_force: &InForce,
    blocks: Blocks,
    edges: Edges,
    loops: EventLoops,
    status: NodeStatus,
    log: &Log,
) -> Tree {
    let Edges {
        sink,
        outputs,
        claims,
        outbox,
        marks,
        cancellations,
        tracer,
        approvals,
    } = edges;
    let (escalate, escalations) = mpsc::unbounded_channel();
    let supervisor = Supervisor::new(&settings.worker.supervision, escalate.clone(), log.clone());
    let restarts = supervisor.budget();
    let supervisor = supervisor.start();
    let answers = Answers::new(&settings.nats.subjects, log.worker_id()).with_letters(&settings.dlq);
    let cancel_all = CancellationToken::new();

    let parts = PublisherParts {
        sink,
        outbox: outbox.clone(),
        answers: answers.clone(),
        spiller: Spiller::new(outputs, log.clone()),
        answered: status.answered().clone(),
        log: log.clone(),
    };
    let publisher = PublisherRoutes::default();
    let look_at_publisher = Route::default();
    adopt(
        &supervisor,
        publisher_child(&loops, &publisher, &look_at_publisher, parts),
    )
    .await;

    let threads = Threads::default();
    let breakers = breakers(in_force, log);
    let max_payload_ref_bytes = settings.limits.max_payload_ref_bytes;
    let workers = BlockWorker::new(
        publisher.clone(),
        threads.clone(),
        max_payload_ref_bytes,
        marks,
        log.clone(),
    )
    .telling_timeouts(in_force.timeouts.is_some())
    .with_breakers(breakers.clone());
    let shares = Shares {
        tenants: in_force.tenants.clone(),
        running: RunningJobs::default(),
        ageing: Ageing(Duration::from_millis(settings.queue.ageing_ms_per_point)),
    };
    let mut pools = Vec::new();
    let mut doors = Vec::new();
    for class in ResourceClass::ALL {
        let size = in_force.pool(class);
        let rules = in_force.queue.as_ref().zip(size.queue);
        let rules = rules.map(|(policy, queue)| QueueRules::of(policy, queue));
        let places = Places::new(class, size.slots, rules, status.held().returned(), log.clone());
        let (handle, door) = start_pool(
            class,
            (size.slots, places, shares.clone()),
            &supervisor,
            &loops,
            (&publisher, &workers),
            log,
        )
        .await;
        cancellations.watch_line(&handle.cancelled);
        pools.push(handle);
        doors.push(door);
    }
    status.held().mind(Room {
        admission: match in_force.admission {
            Admission::Refuse => room::Admission::Refuse,
            Admission::Wait => room::Admission::Wait,
        },
        pools: doors.iter().map(|door| door.places.clone()).collect(),
    });
    let [cpu, gpu, io] = <[PoolDoor; 3]>::try_from(doors).unwrap_or_else(|_| unreachable!("three classes"));

    log.emit(events::blocks_registered(&blocks.registry.job_types()));
    let parts = IntakeParts {
        preparation: preparation(settings, in_force, blocks),
        pools: PoolDoors { cpu, gpu, io },
        publisher,
        claims: claims.clone(),
        status: status.clone(),
        answers,
        tenants: in_force.tenants.clone(),
        quarantine: QuarantineRule {
            max_deaths: settings.worker.supervision.max_deaths,
            max_attempts: settings.nats.max_deliver,
        },
        cancel_all: cancel_all.clone(),
        cancellations: cancellations.clone(),
        tracer,
        approvals: approvals.clone(),
        log: log.clone(),
    };
    if let Some(approvals) = &approvals {
        adopt(&supervisor, approvals_child(&loops, approvals)).await;
    }
    adopt(&supervisor, auditor_child(&loops, &pools, log)).await;
    let intake = Route::default();
    adopt(&supervisor, intake_child(&loops, &intake, parts)).await;
    let sizes = ResourceClass::ALL.map(|class| in_force.pool(class).slots);
    log.emit(events::pools_initialized(sizes));
    log.emit(events::tree_initialized(sizes));

    let leases = LeaseTable::default();
    Tree {
        intake,
        pools,
        publisher: look_at_publisher,
        status,
        leases,
        claims,
        outbox,
        threads,
        breakers,
        restarts,
        cancel_all,
        cancellations,
        approvals,
        supervisor,
        escalations,
        escalate,
        loops,
    }
}

/// What can be run, and how: the same for the tree and for the dry run.
pub fn preparation(settings: &Settings, in_force: &InForce, blocks: Blocks) -> Preparation {
    Preparation {
        registry: blocks.registry,
        fetchers: blocks.fetchers,
        retry: in_force.retry_rules(settings),
        sandbox: Sandbox {
            whole_node: settings.worker.sandbox.enabled,
            registry: blocks.sandbox.registry,
            fetchers: blocks.sandbox.fetchers,
        },
    }
}

/// Circuit breakers, while their flag is on; otherwise none, and nothing is kept.
fn breakers(in_force: &InForce, log: &Log) -> Breakers {
    let settings = in_force.circuit_breaker.as_ref();
    settings.map_or_else(Breakers::default, |settings| Breakers::new(settings, log.clone()))
}

/// Limits on the operations of blocks, while their policy is in force.
pub fn operation_limits(in_force: &InForce) -> OperationLimits {
    let Some(policy) = &in_force.timeouts else {
        return OperationLimits::default();
    };
    let (fs, http) = (&policy.fs_operations, &policy.http_connection);
    let ms = |limit| Some(Duration::from_millis(limit));
    OperationLimits {
        fs_read: ms(fs.read_timeout_ms),
        fs_write: ms(fs.write_timeout_ms),
        fs_delete: ms(fs.delete_timeout_ms),
        http_connect: ms(http.connect_timeout_ms),
        http_read: ms(http.read_timeout_ms),
    }
}

/// What the node holds, from its settings.
pub fn new_status(settings: &Settings) -> NodeStatus {
    let deferrals = Deferrals::new(settings.nats.max_ack_pending);
    NodeStatus::new(HeldPermits::new(&settings.limits), deferrals)
}

/// Who can be cancelled by request: nobody, unless the feature is in force.
pub fn new_cancellations(settings: &Settings, in_force: &InForce, log: &Log) -> Cancellations {
    let settings = &settings.worker.cancellation;
    if !in_force.cancellation {
        return Cancellations::off();
    }
    let ttl = Duration::from_secs(settings.tombstone_ttl_s);
    Cancellations::new(ttl, settings.max_tombstones, log.clone())
}

/// Gives a child to the supervisor and waits until it takes messages.
pub async fn adopt(supervisor: &Addr<Supervisor>, child: Child) {
    // The supervisor lives on this thread for as long as the node does.
    let _ = supervisor.send(Adopt(child)).await;
}

fn publisher_child(
    loops: &EventLoops,
    routes: &PublisherRoutes,
    look: &Route<LookAtPublisher>,
    parts: PublisherParts,
) -> Child {
    let on = loops.pipeline.handle();
    let (routes, look) = (routes.clone(), look.clone());
    Child {
        name: "publisher".to_owned(),
        may_finish: false,
        start: Box::new(move |ended| {
            let (on, routes, look, parts) = (on.clone(), routes.clone(), look.clone(), parts.clone());
            async move {
                let make = move || Publisher::new(parts);
                let connect = move |address: &Addr<Publisher>| {
                    routes.acknowledge.connect(address);
                    routes.conclude.connect(address);
                    routes.settle.connect(address);
                    look.connect(address);
                };
                spawn_actor(&on, make, connect, ended).await;
            }
            .boxed()
        }),
    }
}

async fn start_pool(
    class: ResourceClass,
    (count, places, shares): (usize, Places, Shares),
    supervisor: &Addr<Supervisor>,
    loops: &EventLoops,
    (publisher, blueprint): (&PublisherRoutes, &BlockWorker),
    log: &Log,
) -> (PoolHandle, PoolDoor) {
    let mut workers = Vec::new();
    for index in 0..count {
        let worker = Route::default();
        let on = &loops.blocks[index % loops.blocks.len()];
        let name = format!("block_worker.{}.{index}", class.as_str());
        adopt(supervisor, worker_child(name, on, &worker, blueprint)).await;
        workers.push(worker);
    }
    let workers = Workers {
        by_slot: workers,
        light: Route::default(),
    };
    let name = format!("block_worker.{}.light", class.as_str());
    let light = worker_child(name, &loops.pipeline, &workers.light, blueprint);
    adopt(supervisor, light).await;
    let slots_returned = Route::default();
    let slots = Slots::new(count, slots_returned.clone());
    let door = PoolDoor {
        places,
        enqueue: Route::default(),
    };
    let handle = PoolHandle {
        class,
        empty: Route::default(),
        cancelled: Route::default(),
        look: Route::default(),
        look_in_line: Route::default(),
        slots: Arc::clone(&slots),
        places: door.places.clone(),
    };

    let (on, publisher, log) = (loops.pipeline.handle(), publisher.clone(), log.clone());
    let tells_timeouts = blueprint.tells_timeouts();
    let places = door.places.clone();
    let (enqueue, empty, look) = (door.enqueue.clone(), handle.empty.clone(), handle.look.clone());
    let look_in_line = handle.look_in_line.clone();
    let cancelled = handle.cancelled.clone();
    let child = Child {
        name: format!("pool.{}", class.as_str()),
        may_finish: false,
        start: Box::new(move |ended| {
            let on = on.clone();
            let (places, slots, workers) = (places.clone(), Arc::clone(&slots), workers.clone());
            let (publisher, log) = (publisher.clone(), log.clone());
            let (enqueue, empty, look) = (enqueue.clone(), empty.clone(), look.clone());
            let (slots_returned, cancelled) = (slots_returned.clone(), cancelled.clone());
            let (shares, look_in_line) = (shares.clone(), look_in_line.clone());
            async move {
                let room_for_tenant = shares.running.door(class).clone();
                let make = move || {
                    let pool = Pool::new(class, places, slots, workers, publisher, shares, log);
                    pool.telling_timeouts(tells_timeouts)
                };
                let connect = move |address: &Addr<Pool>| {
                    enqueue.connect(address);
                    slots_returned.connect(address);
                    empty.connect(address);
                    cancelled.connect(address);
                    look.connect(address);
                    look_in_line.connect(address);
                    room_for_tenant.connect(address);
                };
                spawn_actor(&on, make, connect, ended).await;
            }
            .boxed()
        }),
    };
    adopt(supervisor, child).await;
    (handle, door)
}

fn worker_child(name: String, on: &EventLoop, route: &Route<Run>, blueprint: &BlockWorker) -> Child {
    let (on, route, blueprint) = (on.handle(), route.clone(), blueprint.clone());
    Child {
        name,
        may_finish: false,
        start: Box::new(move |ended| {
            let (on, route, blueprint) = (on.clone(), route.clone(), blueprint.clone());
            async move {
                let make = move || blueprint;
                spawn_actor(
                    &on,
                    make,
                    move |address: &Addr<BlockWorker>| route.connect(address),
                    ended,
                )
                .await;
            }
            .boxed()
        }),
    }
}

fn auditor_child(loops: &EventLoops, pools: &[PoolHandle], log: &Log) -> Child {
    let (on, log) = (loops.pipeline.handle(), log.clone());
    let slots = pools.iter().map(|pool| (pool.class, Arc::clone(&pool.slots)));
    let slots: Vec<_> = slots.collect();
    Child {
        name: "slot_auditor".to_owned(),
        may_finish: false,
        start: Box::new(move |ended| {
            let (on, slots, log) = (on.clone(), slots.clone(), log.clone());
            async move { spawn_task(&on, move || audit(slots, log).boxed_local(), ended) }.boxed()
        }),
    }
}

fn approvals_child(loops: &EventLoops, approvals: &Approvals) -> Child {
    let (on, approvals) = (loops.pipeline.handle(), approvals.clone());
    Child {
        name: "approvals".to_owned(),
        may_finish: false,
        start: Box::new(move |ended| {
            let (on, approvals) = (on.clone(), approvals.clone());
            async move { spawn_task(&on, move || keep(approvals).boxed_local(), ended) }.boxed()
        }),
    }
}

fn intake_child(loops: &EventLoops, route: &Route<Delivery>, parts: IntakeParts) -> Child {
    let (on, route) = (loops.pipeline.handle(), route.clone());
    Child {
        name: "intake".to_owned(),
        may_finish: false,
        start: Box::new(move |ended| {
            let (on, route, parts) = (on.clone(), route.clone(), parts.clone());
            async move {
                let make = move || Intake::new(parts);
                spawn_actor(
                    &on,
                    make,
                    move |address: &Addr<Intake>| route.connect(address),
                    ended,
                )
                .await;
            }
            .boxed()
        }),
    }
}
