//! The pages of the health port: `/_health` for people and monitors, `/livez` and `/readyz` for orchestrators.
//!
//! Neighbours: `serve` and `exec` open the port; [`super::view`] asks pools and publisher for proof of life. The checks that
//! are made of that here are metrics too.
//! `/_health` answers 200 also when something is wrong: the body tells.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use actix_web::{HttpResponse, web};
use caf_actors::approvals::Approvals;
use caf_actors::breakers::Breakers;
use caf_actors::claims::Claims;
use caf_actors::event_loop::LoopClock;
use caf_actors::lease::LeaseTable;
use caf_actors::pool::InLine;
use caf_actors::status::NodeStatus;
use caf_protocol::ids::AssignmentKey;
use caf_protocol::timestamp::iso_micros;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::view::{Check, NodeView, Parts, PartsView, View};
use crate::wiring::Tree;

/// How long a part may take to prove that it lives: pages answer within 100 ms.
const LIFE_LIMIT: Duration = Duration::from_millis(50);

/// A message that is not confirmed for this long, in milliseconds, is a fault of the broker or its streams.
const UNCONFIRMED_LIMIT_MS: u64 = 10_000;

/// How often the checks are looked at when nobody asks for the page.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the page looks at. Before the tree is built, only the status is known.
#[derive(Clone)]
pub struct Health {
    status: NodeStatus,
    mode: &'static str,
    worker_id: String,
    parts: Arc<OnceLock<Parts>>,
    loops: Arc<Mutex<Vec<LoopClock>>>,
    streams: Arc<OnceLock<watch::Receiver<bool>>>,
}

type Checks = BTreeMap<&'static str, Check>;

impl Health {
    /// A page that knows the node's status, its `mode` and who it is.
    pub fn new(status: NodeStatus, mode: &'static str, worker_id: &str) -> Self {
        Self {
            status,
            mode,
            worker_id: worker_id.to_owned(),
            parts: Arc::default(),
            loops: Arc::default(),
            streams: Arc::default(),
        }
    }

    /// From now on the page looks at these parts too.
    pub fn watch(&self, tree: &Tree) {
        let _ = self.parts.set(Parts::of(tree));
    }

    /// From now on a view tells of this event loop too.
    pub fn watch_loop(&self, clock: LoopClock) {
        let mut loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        loops.push(clock);
    }

    /// The node as it is now, for a page: whoever is silent for 50 ms is told to be.
    pub async fn look(&self) -> View {
        self.look_within(LIFE_LIMIT).await
    }

    /// The same; each part may take this long to prove that it lives.
    async fn look_within(&self, limit: Duration) -> View {
        let parts = match self.parts.get() {
            Some(parts) => Some(parts.look(limit).await),
            None => None,
        };
        let mut checks = Checks::new();
        let is_alive = match &parts {
            Some(parts) => check_parts(parts, &mut checks),
            None => {
                for part in ["processor", "pools", "publisher"] {
                    checks.insert(part, check(true, "starting"));
                }
                true
            }
        };
        let node = NodeView::of(&self.status, self.mode, &self.worker_id);
        checks.insert("nats", check_broker(&node));
        if let Some(streams) = self.streams.get() {
            // Without a connection nothing is known of them.
            checks.insert("streams", check_streams(*streams.borrow() || !node.is_connected));
        }
        if self.mode != "local" {
            let obstacle = self.status.obstacle();
            let message = obstacle.as_deref().unwrap_or("usable");
            checks.insert("state_dir", check(obstacle.is_none(), message));
        }
        View {
            checks,
            is_alive,
            node,
            parts,
            loops_blocked: self.loops_blocked(),
        }
    }

    fn loops_blocked(&self) -> Vec<(String, Duration)> {
        let loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let blocked = |clock: &LoopClock| (clock.name().to_owned(), clock.blocked_for(now));
        loops.iter().map(blocked).collect()
    }

    /// From now on the page tells whether answers can be stored.
    pub fn watch_streams(&self, is_open: watch::Receiver<bool>) {
        let _ = self.streams.set(is_open);
    }

    /// Tells the node's status which checks fail, for as long as it is polled: heartbeat and discovery say so. A check fails
    /// when it does on two looks in a row: a part that is busy for a moment is not ill.
    pub async fn keep_looking(self) {
        let mut before: Vec<String> = Vec::new();
        loop {
            let checks = self.look_within(LOOK_EVERY).await.checks;
            let failing = checks.iter().filter(|(_, check)| !check.ok);
            let failing: Vec<String> = failing.map(|(name, _)| (*name).to_owned()).collect();
            let twice = failing
                .iter()
                .filter(|name| before.contains(name))
                .cloned()
                .collect();
            self.status.set_failing(twice, Instant::now());
            before = failing;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The node's status.
    pub fn node(&self) -> &NodeStatus {
        &self.status
    }

    /// The worker's id.
    pub fn worker_id(&self) -> &str {
        &self.worker_id
    }

    /// What is known of assignments; nothing before the tree is built.
    pub fn claims(&self) -> Option<&Claims> {
        self.parts.get().map(|parts| &parts.claims)
    }

    /// What is left alone because it keeps failing; nothing before the tree is built.
    pub fn breakers(&self) -> Option<&Breakers> {
        self.parts.get().map(|parts| &parts.breakers)
    }

    /// Questions to people; nothing before the tree is built, or where they are not kept.
    pub fn approvals(&self) -> Option<&Approvals> {
        self.parts.get()?.approvals.as_ref()
    }

    /// What is held from the broker; nothing before the tree is built.
    pub fn leases(&self) -> Option<&LeaseTable> {
        self.parts.get().map(|parts| &parts.leases)
    }

    /// Where an assignment of this tenant stands in the line of a pool; nothing when it does not wait there.
    pub async fn find_in_line(&self, pool: &str, key: AssignmentKey, tenant_id: &str) -> Option<InLine> {
        let parts = self.parts.get()?;
        parts.find_in_line(pool, (key, tenant_id), LIFE_LIMIT).await
    }

    /// The page as JSON (contract 8.3).
    pub async fn page(&self) -> Value {
        let view = self.look().await;
        let well = view.checks.values().all(|check| check.ok) && !view.node.is_draining;
        let status = match (view.is_alive, well) {
            (false, _) => "unhealthy",
            (true, false) => "degraded",
            (true, true) => "healthy",
        };
        let checks = view.checks.iter().map(|(name, check)| {
            let status = if check.ok { "ok" } else { "fail" };
            let value = json!({ "status": status, "message": check.message });
            ((*name).to_owned(), value)
        });
        json!({
            "status": status,
            "timestamp": iso_micros(SystemTime::now()),
            "checks": checks.collect::<Map<_, _>>(),
            "details": details(&view),
        })
    }
}

fn details(view: &View) -> Map<String, Value> {
    let (node, mut details) = (&view.node, Map::new());
    let mut tell = |key: &str, value: Value| details.insert(key.to_owned(), value);
    tell("worker_id", json!(node.worker_id));
    tell("mode", json!(node.mode));
    if node.mode == "core" {
        let delivery = "at most once: assignments are lost when the worker dies";
        tell("delivery", json!(delivery));
    }
    tell("draining", json!(node.is_draining));
    tell("jobs_held", json!(node.jobs_held));
    if node.mode != "local" {
        tell("consumption", json!(node.consumption));
    }
    if let Some(parts) = &view.parts {
        let pools = parts.pools.iter();
        let pools = pools.map(|pool| (pool.class.to_owned(), json!(pool.snapshot)));
        tell("pools", Value::Object(pools.collect()));
        tell("publisher", json!(parts.publisher));
        tell("stray_threads", json!(parts.stray_threads));
        tell("claims", json!(parts.claims));
        if let Some(outbox) = &parts.outbox {
            tell("outbox", json!(outbox));
        }
    }
    details
}

fn check_broker(node: &NodeView) -> Check {
    let (ok, message) = match (node.mode, node.is_connected, node.is_consuming) {
        ("local", ..) => (true, "not used"),
        (_, false, _) if !node.has_tried_to_connect => (false, "not tried yet: waiting for worker.state_dir"),
        (_, false, _) => (false, "not connected"),
        (_, true, false) if node.is_draining => (true, "connected, draining"),
        (_, true, false) => (false, "connected, not consuming"),
        (_, true, true) => (true, "connected"),
    };
    check(ok, message)
}

fn check_streams(there: bool) -> Check {
    let message = if there {
        "there"
    } else {
        "missing, or being looked for"
    };
    check(there, message)
}

/// Whether every part answers.
fn check_parts(parts: &PartsView, checks: &mut Checks) -> bool {
    let silent = parts.pools.iter().filter(|pool| pool.snapshot.is_none());
    let silent: Vec<&str> = silent.map(|pool| pool.class).collect();
    let pools_message = if silent.is_empty() {
        "running".to_owned()
    } else {
        format!("no answer from {}", silent.join(", "))
    };
    checks.insert("pools", check(silent.is_empty(), &pools_message));
    let message = if parts.threads_exhausted {
        "too many outlived their job; jobs that need one are refused until some return"
    } else {
        "available"
    };
    checks.insert("threads", check(!parts.threads_exhausted, message));
    let claiming = parts.claims.unavailable_ms < UNCONFIRMED_LIMIT_MS;
    let message = if claiming {
        "available"
    } else {
        "cannot be read or written"
    };
    checks.insert("claims", check(claiming, message));
    let publisher = match &parts.publisher {
        None => check(false, "no answer"),
        Some(now) if now.oldest_unconfirmed_ms < UNCONFIRMED_LIMIT_MS => check(true, "running"),
        Some(now) => check(false, &format!("{} messages are not confirmed", now.unconfirmed)),
    };
    checks.insert("publisher", publisher);
    let all = silent.is_empty() && parts.publisher.is_some();
    checks.insert("processor", check(all, if all { "running" } else { "failing" }));
    all
}

fn check(ok: bool, message: &str) -> Check {
    Check {
        ok,
        message: message.to_owned(),
    }
}

/// Most connections of the health port: little is held by each, and probes must come through whoever opens many.
pub const CONNECTIONS: usize = 1_024;

/// Puts the pages of the health port where they belong.
pub fn pages(health: Health) -> impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static {
    let health = web::Data::new(health);
    move |config| {
        config
            .app_data(health.clone())
            .route("/_health", web::get().to(page))
            .route("/_health", web::head().to(page))
            .route("/livez", web::get().to(HttpResponse::Ok))
            .route("/readyz", web::get().to(ready));
    }
}

async fn page(health: web::Data<Health>) -> HttpResponse {
    HttpResponse::Ok().json(health.page().await)
}

/// What keeps a node that is not ready from it, in words for an operator.
pub fn why_not_ready(status: &NodeStatus) -> String {
    match status.obstacle() {
        _ if status.is_draining() => "draining".to_owned(),
        Some(obstacle) => obstacle,
        None if !status.is_connected() => "waiting for NATS".to_owned(),
        None => "not consuming".to_owned(),
    }
}

async fn ready(health: web::Data<Health>) -> HttpResponse {
    let status = &health.status;
    let seen = status.consumption().view();
    let age = seen
        .last_delivery_age_ms
        .map_or("none".to_owned(), |age| age.to_string());
    let consumption = format!(
        "last_delivery_age_ms: {age}\npulls_outstanding: {}\npull_rebuilds: {}\n",
        seen.pulls_outstanding, seen.pull_rebuilds
    );
    if status.is_ready() {
        return HttpResponse::Ok().body(format!("ready\n{consumption}"));
    }
    let why = why_not_ready(status);
    HttpResponse::ServiceUnavailable().body(format!("{why}\n{consumption}"))
}
