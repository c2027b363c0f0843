//! The pages of the health port: `/_health` for people and monitors, `/livez` and `/readyz` for orchestrators.
//!
//! Neighbours: `serve` and `exec` open the port; it asks pools and publisher for proof of life and reads the node's status.
//! `/_health` answers 200 also when something is wrong: the body tells.

use std::time::{Duration, SystemTime};

use actix_web::{HttpResponse, web};
use caf_actors::block_worker::threads::Threads;
use caf_actors::claims::Claims;
use caf_actors::lease::LeaseTable;
use caf_actors::outbox::Outbox;
use caf_actors::pool::LookAtPool;
use caf_actors::publisher::LookAtPublisher;
use caf_actors::runtime::Route;
use caf_actors::status::NodeStatus;
use caf_protocol::timestamp::iso_micros;
use futures_util::future::join_all;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::wiring::Tree;

/// How long a part may take to prove that it lives: the page answers within 100 ms.
const LIFE_LIMIT: Duration = Duration::from_millis(50);

/// A message that is not confirmed for this long, in milliseconds, is a fault of the broker or its streams.
const UNCONFIRMED_LIMIT_MS: u64 = 10_000;

/// What the page looks at. Before the tree is built, only the status is known.
#[derive(Clone)]
pub struct Health {
    status: NodeStatus,
    mode: &'static str,
    worker_id: String,
    parts: std::sync::Arc<std::sync::OnceLock<Parts>>,
}

struct Parts {
    pools: Vec<(&'static str, Route<LookAtPool>)>,
    publisher: Route<LookAtPublisher>,
    threads: Threads,
    claims: Claims,
    outbox: Option<Outbox>,
    leases: LeaseTable,
}

impl Health {
    /// A page that knows the node's status, its `mode` and who it is.
    pub fn new(status: NodeStatus, mode: &'static str, worker_id: &str) -> Self {
        Self {
            status,
            mode,
            worker_id: worker_id.to_owned(),
            parts: std::sync::Arc::default(),
        }
    }

    /// From now on the page looks at these parts too.
    pub fn watch(&self, tree: &Tree) {
        let pools = tree
            .pools
            .iter()
            .map(|pool| (pool.class.as_str(), pool.look.clone()))
            .collect();
        let _ = self.parts.set(Parts {
            pools,
            publisher: tree.publisher.clone(),
            threads: tree.threads.clone(),
            claims: tree.claims.clone(),
            outbox: tree.outbox.clone(),
            leases: tree.leases.clone(),
        });
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

    /// What is held from the broker; nothing before the tree is built.
    pub fn leases(&self) -> Option<&LeaseTable> {
        self.parts.get().map(|parts| &parts.leases)
    }

    /// The page as JSON (contract 8.3).
    pub async fn page(&self) -> Value {
        let mut checks = Map::new();
        let mut details = Map::new();
        let alive = self.look_at_parts(&mut checks, &mut details).await;
        self.look_at_broker(&mut checks);
        if self.mode != "local" {
            let obstacle = self.status.obstacle();
            let message = obstacle.as_deref().unwrap_or("usable");
            checks.insert("state_dir".to_owned(), check(obstacle.is_none(), message));
        }
        let well = checks.values().all(|check| check["status"] == "ok") && !self.status.is_draining();
        let status = match (alive, well) {
            (false, _) => "unhealthy",
            (true, false) => "degraded",
            (true, true) => "healthy",
        };
        details.insert("worker_id".to_owned(), json!(self.worker_id));
        details.insert("mode".to_owned(), json!(self.mode));
        if self.mode == "core" {
            details.insert(
                "delivery".to_owned(),
                json!("at most once: assignments are lost when the worker dies"),
            );
        }
        details.insert("draining".to_owned(), json!(self.status.is_draining()));
        details.insert("jobs_held".to_owned(), json!(self.status.held().held_jobs()));
        if self.mode != "local" {
            details.insert("consumption".to_owned(), json!(self.status.consumption().view()));
        }
        json!({
            "status": status,
            "timestamp": iso_micros(SystemTime::now()),
            "checks": checks,
            "details": details,
        })
    }

    fn look_at_broker(&self, checks: &mut Map<String, Value>) {
        let (ok, message) = match (self.mode, self.status.is_connected(), self.status.is_consuming()) {
            ("local", ..) => (true, "not used"),
            (_, false, _) => (false, "not connected"),
            (_, true, false) if self.status.is_draining() => (true, "connected, draining"),
            (_, true, false) => (false, "connected, not consuming"),
            (_, true, true) => (true, "connected"),
        };
        checks.insert("nats".to_owned(), check(ok, message));
    }

    /// Whether every part answers.
    async fn look_at_parts(&self, checks: &mut Map<String, Value>, details: &mut Map<String, Value>) -> bool {
        let Some(parts) = self.parts.get() else {
            for part in ["processor", "pools", "publisher"] {
                checks.insert(part.to_owned(), check(true, "starting"));
            }
            return true;
        };
        let pools = join_all(
            parts
                .pools
                .iter()
                .map(|(_, route)| route.ask(LookAtPool, LIFE_LIMIT)),
        )
        .await;
        let publisher = parts.publisher.ask(LookAtPublisher, LIFE_LIMIT).await;
        let silent: Vec<&str> = parts
            .pools
            .iter()
            .zip(&pools)
            .filter(|(_, answer)| answer.is_none())
            .map(|((name, _), _)| *name)
            .collect();
        let pools_ok = silent.is_empty();
        let pools_message = if pools_ok {
            "running".to_owned()
        } else {
            format!("no answer from {}", silent.join(", "))
        };
        let answers = parts
            .pools
            .iter()
            .zip(&pools)
            .map(|((name, _), answer)| ((*name).to_owned(), json!(answer)));
        details.insert("pools".to_owned(), Value::Object(answers.collect()));
        details.insert("publisher".to_owned(), json!(publisher));
        details.insert("stray_threads".to_owned(), json!(parts.threads.strays()));
        let exhausted = parts.threads.are_exhausted();
        let message = if exhausted {
            "too many outlived their job; jobs that need one are refused until some return"
        } else {
            "available"
        };
        checks.insert("threads".to_owned(), check(!exhausted, message));
        let claims = parts.claims.snapshot(Instant::now());
        let claiming = claims.unavailable_ms < UNCONFIRMED_LIMIT_MS;
        let message = if claiming {
            "available"
        } else {
            "cannot be read or written"
        };
        checks.insert("claims".to_owned(), check(claiming, message));
        details.insert("claims".to_owned(), json!(claims));
        if let Some(outbox) = &parts.outbox {
            details.insert("outbox".to_owned(), json!(outbox.snapshot()));
        }
        let confirming = publisher
            .as_ref()
            .is_none_or(|now| now.oldest_unconfirmed_ms < UNCONFIRMED_LIMIT_MS);
        let publisher_message = match (&publisher, confirming) {
            (None, _) => "no answer".to_owned(),
            (Some(now), false) => format!("{} messages are not confirmed", now.unconfirmed),
            (Some(_), true) => "running".to_owned(),
        };
        let all = pools_ok && publisher.is_some();
        checks.insert(
            "processor".to_owned(),
            check(all, if all { "running" } else { "failing" }),
        );
        checks.insert("pools".to_owned(), check(pools_ok, &pools_message));
        checks.insert(
            "publisher".to_owned(),
            check(publisher.is_some() && confirming, &publisher_message),
        );
        all
    }
}

fn check(ok: bool, message: &str) -> Value {
    json!({ "status": if ok { "ok" } else { "fail" }, "message": message })
}

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
