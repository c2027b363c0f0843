//! A worker process: the production decisions and bookkeeping, with the glue of its stations written down once more.
//!
//! Real: rows, claims (here and in the fleet), leases, permits, places, answers, the order of an answer's steps, retries.
//! Written down again, because the originals live in actors: who calls what, and in which order. Where the stations
//! change that order, this file must follow.

#[path = "node/answering.rs"]
mod answering;
#[path = "node/intake.rs"]
mod intake;
#[path = "node/parking.rs"]
mod parking;
#[path = "node/running.rs"]
mod running;
#[path = "node/starting.rs"]
mod starting;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use caf_actors::answers::Answers;
use caf_actors::cancellation::{Asker, Cancellable, Cancellations};
use caf_actors::claims::Claims;
use caf_actors::claims::fleet::Fleet;
use caf_actors::events::Log;
use caf_actors::held::HeldPermits;
use caf_actors::job::Holdings;
use caf_actors::lease::LeaseTable;
use caf_actors::pool::line::Line;
use caf_actors::pool::room::Room;
use caf_actors::pool::running::RunningJobs;
use caf_actors::pool::{Debt, Deferrals, Places};
use caf_actors::settings::{IdempotencySettings, LimitSettings, SubjectSettings, TenantSettings};
use caf_actors::sink::{Outgoing, Verdict};
use caf_actors::tenants::{Share, TenantPolicy, Tenants};
use caf_actors::trace::Span;
use caf_protocol::assignment::{Assignment, Reading};
use caf_protocol::block::{CancellationToken, ResourceClass};
use caf_protocol::cancel::{CancelRequest, Target};
use tokio::sync::{RwLock, oneshot, watch};
use tokio::time::Instant;

use super::edge::Edge;
use super::kernel::{MS, Micros, SECOND};
use super::scenario::{Scenario, Spec};
use super::turns::Turns;
use super::world::{KEEPER, MAIN, Sim, World};
use running::Queued;

/// Largest message, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// Where the wall clock stood when the simulation began, in milliseconds since the Unix epoch.
const EPOCH_MS: u64 = 1_700_000_000_000;
/// How long a request to cancel is kept: longer than any run.
const TOMBSTONE_TTL: std::time::Duration = std::time::Duration::from_secs(3_600);
/// More than there are assignments.
const MAX_TOMBSTONES: usize = 100;
/// How long a pull waits at the broker.
const PULL_WAIT: Micros = 5 * SECOND;

pub(crate) struct Node {
    pub sim: Sim,
    pub id: usize,
    scenario: Arc<Scenario>,
    skew_ms: u64,
    pub claims: Claims,
    fleet: Fleet,
    pub leases: LeaseTable,
    pub held: HeldPermits,
    pub places: Places,
    pub tenants: Tenants,
    deferrals: Deferrals,
    /// As in the pool.
    debts: Mutex<Vec<Debt>>,
    answers: Answers,
    subjects: SubjectSettings,
    cancel: CancellationToken,
    cancellations: Cancellations,
    draining: AtomicBool,
    /// Whether the source still asks for messages.
    pulling: watch::Sender<bool>,
    line: Mutex<Line<Queued>>,
    turns: Mutex<Turns>,
    pub running: AtomicUsize,
    running_jobs: RunningJobs,
    floor: Arc<RwLock<()>>,
}

impl Node {
    pub(crate) fn new(sim: &Sim, world: &World, id: usize, worker: usize, owner: &str) -> Self {
        let scenario = Arc::clone(&world.scenario);
        let store = Edge::new(sim, id, scenario.request_limit);
        let fleet = Fleet::new(Arc::new(store), owner, &format!("w{worker}"));
        let subjects = SubjectSettings::default();
        let idempotency = IdempotencySettings {
            // Releases are stamped with the system's clock, which stands still here.
            ttl_s: 1_000_000,
            ..IdempotencySettings::default()
        };
        let leases = LeaseTable::default();
        leases.set_ack_wait(std::time::Duration::from_micros(scenario.ack_wait));
        let held = HeldPermits::new(&LimitSettings {
            max_held: scenario.max_held,
            ..LimitSettings::default()
        });
        let rules = scenario.queue.clone();
        let places = Places::new(
            ResourceClass::Cpu,
            scenario.slots,
            rules,
            held.returned(),
            Log::discard(),
        );
        held.mind(Room {
            admission: scenario.admission,
            pools: vec![places.clone()],
        });
        let default = TenantPolicy {
            max_queued: scenario.max_queued,
            ..TenantPolicy::default()
        };
        let tenants = TenantSettings {
            default,
            ..TenantSettings::default()
        };
        Self {
            sim: sim.clone(),
            id,
            skew_ms: scenario.skew_ms[worker],
            claims: Claims::new(&idempotency, Some(fleet.clone())),
            fleet,
            leases,
            held,
            places,
            tenants: Tenants::new(tenants),
            deferrals: Deferrals::new(scenario.max_ack_pending),
            debts: Mutex::default(),
            answers: Answers::new(&subjects, &format!("w{worker}")),
            subjects,
            cancel: CancellationToken::new(),
            cancellations: Cancellations::new(TOMBSTONE_TTL, MAX_TOMBSTONES, Log::discard()),
            draining: AtomicBool::new(false),
            pulling: watch::Sender::new(true),
            line: Mutex::new(Line::new(scenario.ageing)),
            turns: Mutex::default(),
            running: AtomicUsize::new(0),
            running_jobs: RunningJobs::default(),
            floor: Arc::default(),
            scenario,
        }
    }

    pub(crate) fn start(self: &Arc<Self>, world: &mut World) {
        let (main, keeper) = (Arc::clone(self), Arc::clone(self));
        world.kernel.spawn(Some(self.id), async move {
            main.recover().await;
            main.pull().await;
        });
        world.kernel.spawn(Some(self.id), keeper.keep_leases());
        if self.scenario.asks() {
            world
                .kernel
                .spawn(Some(self.id), Arc::clone(self).keep_approvals());
        }
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.sim.with(|world| world.kernel.spawn(Some(self.id), work));
    }

    fn now(&self) -> Instant {
        self.sim.instant()
    }

    fn epoch_ms(&self) -> u64 {
        EPOCH_MS + self.sim.now() / MS + self.skew_ms
    }

    fn spec(&self, number: usize) -> &Spec {
        &self.scenario.specs[number]
    }

    fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }

    /// Counts a row.
    fn row(&self, row: &'static str, spec: usize) {
        self.sim.with(|world| {
            world.audit.count(row);
            let id = self.id;
            world.note(|| format!("process {id}: assignment {spec} takes {row}"));
        });
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.held.held_jobs() == 0
    }

    // ---- The source ----

    async fn pull(self: Arc<Self>) {
        while !self.is_draining() {
            let mut reservation = self.held.reserve(1).await;
            if self.is_draining() {
                break;
            }
            self.sim.until_up().await;
            let (hand_over, handed_over) = oneshot::channel();
            let id = self.id;
            self.sim.with(|world| {
                world.send(
                    id,
                    MAIN,
                    Box::new(move |_, world| {
                        if world.processes[id].alive {
                            let until = world.kernel.now + PULL_WAIT;
                            world.pull(id, until, hand_over);
                        }
                    }),
                );
            });
            let heard = async {
                match handed_over.await {
                    Ok(delivered) => delivered,
                    Err(_) => std::future::pending().await,
                }
            };
            // A drain ends the wait as soon as the broker has let go, which is not modelled: it takes until the pull ends.
            let Some(delivered) = self.sim.limit(PULL_WAIT + SECOND, heard).await else {
                continue;
            };
            let now = self.now();
            let late = self.sim.now() - delivered.sent_at > self.scenario.ack_wait / 10;
            if late {
                self.sim.with(|world| {
                    world
                        .audit
                        .count("race: a delivery waited in a socket for longer than the margin");
                    world.broker.late.insert(delivered.sequence);
                });
            }
            let (token, sequence) = (delivered.token, delivered.sequence);
            let lease = Arc::new(self.leases.hold(token, sequence, delivered.deliveries, now));
            let permit = reservation
                .take(self.spec(delivered.spec).payload.len())
                .expect("reserved one");
            self.deferrals.came_back(sequence);
            let holdings = Holdings {
                claim: None,
                lease: Some(lease),
                permit,
                given_up: None,
                share: Share::default(),
                cancel: Cancellable::by_shutdown(self.cancel.child_token()),
                span: Span::default(),
            };
            if self.is_draining() {
                let node = Arc::clone(&self);
                self.spawn(async move { node.settle(holdings, Verdict::Nak { delay_ms: 100 }).await });
                break;
            }
            let node = Arc::clone(&self);
            self.spawn(async move {
                node.sim.moment().await;
                node.take_in(delivered.spec, sequence, now, holdings).await;
            });
        }
        self.pulling.send_replace(false);
    }

    // ---- The lease keeper ----

    async fn keep_leases(self: Arc<Self>) {
        let period = self.scenario.ack_wait / 3;
        loop {
            self.sim.sleep(period).await;
            if !self.sim.with(|world| world.broker.up) {
                continue;
            }
            let sent = self.now();
            let mut renewable = self.leases.renewable(sent);
            renewable.sort();
            let Some(((_, last), earlier)) = renewable.split_last() else {
                continue;
            };
            for (_, token) in earlier {
                self.say(token, Verdict::InProgress);
            }
            let (node, last) = (Arc::clone(&self), Arc::clone(last));
            self.spawn(async move {
                let id = node.id;
                node.sim.with(|world| world.check_verdict(id, &last));
                let renewed = node.sim.request(id, KEEPER, period, move |_, world| {
                    world.verdict(&last, Verdict::InProgress);
                });
                if renewed.await.is_some() {
                    node.leases.renewed(&renewable, sent);
                }
            });
        }
    }

    /// Tells the broker something; nothing comes back.
    fn say(&self, token: &Arc<str>, verdict: Verdict) {
        let (id, token) = (self.id, Arc::clone(token));
        let line = if verdict == Verdict::InProgress {
            KEEPER
        } else {
            MAIN
        };
        self.sim.with(|world| {
            world.check_verdict(id, &token);
            world.send(id, line, Box::new(move |_, world| world.verdict(&token, verdict)));
        });
    }

    // ---- The listener ----

    /// Somebody asks to cancel an assignment.
    pub(crate) fn hear(self: Arc<Self>, spec: usize) {
        let (Reading::Invalid(identity, _) | Reading::Valid(Assignment { identity, .. })) =
            &self.spec(spec).reading
        else {
            return;
        };
        let request = CancelRequest {
            tenant_id: identity.tenant_id.clone(),
            target: Target::Assignment(identity.assignment_id.clone()),
            reason: None,
        };
        let now = self.now();
        let answer = self
            .cancellations
            .ask(&request, Asker::Subject, Some(&self.claims), now);
        let outcome = answer.expect("it is on").outcome;
        let id = self.id;
        self.sim.with(|world| world.cancel_heard(id, spec, outcome));
        self.take_cancelled();
    }

    // ---- Shutdown ----

    /// SIGTERM.
    pub(crate) async fn drain(self: Arc<Self>) {
        self.draining.store(true, SeqCst);
        let begun = self.sim.now();
        let id = self.id;
        self.sim
            .with(|world| world.send(id, MAIN, Box::new(move |_, world| world.broker.drop_pulls_of(id))));
        let mut pulling = self.pulling.subscribe();
        let stopped = async {
            let _ = pulling.wait_for(|pulling| !*pulling).await;
        };
        self.sim.limit(self.scenario.soft_limit, stopped).await;
        self.hand_line_back();
        let left = (begun + self.scenario.soft_limit).saturating_sub(self.sim.now());
        if self.sim.limit(left, self.held.all_returned()).await.is_none() {
            self.cancel.cancel();
            let left = (begun + self.scenario.hard_limit).saturating_sub(self.sim.now());
            self.sim.limit(left, self.held.all_returned()).await;
        }
        self.sim.with(|world| world.leaving.push(id));
    }
}

/// A message that is shared between those who send it.
type Message = Arc<Outgoing>;
