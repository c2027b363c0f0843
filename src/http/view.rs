//! What the node looks like at one moment: read once, and shown by the health page, by metrics, and by whoever else asks.
//!
//! Neighbours: [`super::health`] has the parts and makes it. Asks pools and publisher for proof of life, all at once, and
//! waits for nobody longer than it is told to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use caf_actors::approvals::Approvals;
use caf_actors::block_worker::threads::Threads;
use caf_actors::breakers::{Breakers, BreakersView};
use caf_actors::cancellation::Cancellations;
use caf_actors::claims::{Claims, ClaimsSnapshot};
use caf_actors::consumption::ConsumptionView;
use caf_actors::lease::{LeaseSnapshot, LeaseTable};
use caf_actors::outbox::{Outbox, OutboxSnapshot};
use caf_actors::pool::{InLine, LookAtPool, LookInLine, PoolSnapshot, Slots};
use caf_actors::publisher::{LookAtPublisher, PublisherSnapshot};
use caf_actors::runtime::Route;
use caf_actors::status::NodeStatus;
use caf_actors::supervisor::Budget;
use caf_protocol::ids::AssignmentKey;
use futures_util::future::{join, join_all};
use tokio::time::Instant;

use crate::wiring::Tree;

/// The node at one moment.
pub struct View {
    /// Checks by name, as the health page has them.
    pub checks: BTreeMap<&'static str, Check>,
    /// Whether every part answers.
    pub is_alive: bool,
    /// The node itself.
    pub node: NodeView,
    /// Its parts; nothing before the tree is built.
    pub parts: Option<PartsView>,
    /// For how long event loops are overdue, by name; empty where they are not watched.
    pub loops_blocked: Vec<(String, Duration)>,
}

/// One check.
pub struct Check {
    /// Whether all is well.
    pub ok: bool,
    /// What is so, in words for an operator.
    pub message: String,
}

/// What is known without asking anybody.
pub struct NodeView {
    /// The worker's id.
    pub worker_id: String,
    /// `jetstream`, `core` or `local`.
    pub mode: &'static str,
    /// Whether it was ever tried to reach the broker.
    pub has_tried_to_connect: bool,
    /// Whether the broker is reachable.
    pub is_connected: bool,
    /// Whether assignments are asked for.
    pub is_consuming: bool,
    /// Whether the node is ready.
    pub is_ready: bool,
    /// Whether it shuts down.
    pub is_draining: bool,
    /// Since when, if so.
    pub draining_for: Option<Duration>,
    /// Jobs that are held.
    pub jobs_held: usize,
    /// Jobs that may still be taken on.
    pub permits_available: usize,
    /// How assignments come in.
    pub consumption: ConsumptionView,
    /// What waits at the broker, as it last said.
    pub pending_messages: Option<u64>,
}

/// The parts of the tree.
pub struct PartsView {
    /// Each pool.
    pub pools: Vec<PoolView>,
    /// What the publisher says, if it does.
    pub publisher: Option<PublisherSnapshot>,
    /// Threads that outlived their job.
    pub stray_threads: usize,
    /// Whether there are as many as may be.
    pub threads_exhausted: bool,
    /// Claims.
    pub claims: ClaimsSnapshot,
    /// Results that are not confirmed.
    pub outbox: Option<OutboxSnapshot>,
    /// When the oldest of them was stored, in milliseconds since the Unix epoch.
    pub outbox_oldest_ms: Option<u64>,
    /// Deliveries that are held.
    pub leases: LeaseSnapshot,
    /// Circuit breakers, while their flag is on.
    pub breakers: Option<BreakersView>,
    /// Requests to cancel that wait for what they ask for; nothing while they are not carried out.
    pub tombstones: Option<usize>,
    /// Share of the restarts that is used up.
    pub restart_budget_used: f64,
}

/// One pool.
pub struct PoolView {
    /// Its class.
    pub class: &'static str,
    /// Its slots.
    pub slots: usize,
    /// Those that are not free.
    pub slots_used: usize,
    /// What its actor says, if it does.
    pub snapshot: Option<PoolSnapshot>,
}

/// What is looked at, once the tree is built.
pub(super) struct Parts {
    pools: Vec<(&'static str, Route<LookAtPool>, Arc<Slots>)>,
    lines: Vec<(&'static str, Route<LookInLine>)>,
    publisher: Route<LookAtPublisher>,
    threads: Threads,
    pub(super) breakers: Breakers,
    pub(super) approvals: Option<Approvals>,
    pub(super) claims: Claims,
    outbox: Option<Outbox>,
    pub(super) leases: LeaseTable,
    restarts: Budget,
    cancellations: Cancellations,
}

impl Parts {
    pub(super) fn of(tree: &Tree) -> Self {
        let pools = tree
            .pools
            .iter()
            .map(|pool| (pool.class.as_str(), pool.look.clone(), Arc::clone(&pool.slots)));
        let lines = tree.pools.iter();
        Self {
            pools: pools.collect(),
            lines: lines
                .map(|pool| (pool.class.as_str(), pool.look_in_line.clone()))
                .collect(),
            publisher: tree.publisher.clone(),
            threads: tree.threads.clone(),
            breakers: tree.breakers.clone(),
            approvals: tree.approvals.clone(),
            claims: tree.claims.clone(),
            outbox: tree.outbox.clone(),
            leases: tree.leases.clone(),
            restarts: tree.restarts.clone(),
            cancellations: tree.cancellations.clone(),
        }
    }

    /// Where this assignment of this tenant stands in the line of a pool, if it does.
    pub(super) async fn find_in_line(
        &self,
        pool: &str,
        (key, tenant_id): (AssignmentKey, &str),
        limit: Duration,
    ) -> Option<InLine> {
        let (_, route) = self.lines.iter().find(|(class, _)| *class == pool)?;
        route.ask(LookInLine(key, tenant_id.to_owned()), limit).await?
    }

    pub(super) async fn look(&self, limit: Duration) -> PartsView {
        let asked = self
            .pools
            .iter()
            .map(|(_, route, _)| route.ask(LookAtPool, limit));
        let publisher = self.publisher.ask(LookAtPublisher, limit);
        let (answers, publisher) = join(join_all(asked), publisher).await;
        let now = Instant::now();
        let pools = self
            .pools
            .iter()
            .zip(answers)
            .map(|((class, _, slots), snapshot)| PoolView {
                class,
                slots: slots.count(),
                slots_used: slots.busy(),
                snapshot,
            });
        PartsView {
            pools: pools.collect(),
            publisher,
            stray_threads: self.threads.strays(),
            threads_exhausted: self.threads.are_exhausted(),
            claims: self.claims.snapshot(now),
            outbox: self.outbox.as_ref().map(Outbox::snapshot),
            outbox_oldest_ms: self.outbox.as_ref().and_then(Outbox::oldest_stored_at_ms),
            leases: self.leases.snapshot(now),
            // Metrics and checks want numbers only.
            breakers: self.breakers.look(0),
            tombstones: self.cancellations.tombstones(now),
            restart_budget_used: self.restarts.used(now),
        }
    }
}

impl NodeView {
    pub(super) fn of(status: &NodeStatus, mode: &'static str, worker_id: &str) -> Self {
        Self {
            worker_id: worker_id.to_owned(),
            mode,
            has_tried_to_connect: status.has_tried_to_connect(),
            is_connected: status.is_connected(),
            is_consuming: status.is_consuming(),
            is_ready: status.is_ready(),
            is_draining: status.is_draining(),
            draining_for: status.draining_for(),
            jobs_held: status.held().held_jobs(),
            permits_available: status.held().free_jobs(),
            consumption: status.consumption().view(),
            pending_messages: status.consumption().pending(),
        }
    }
}
