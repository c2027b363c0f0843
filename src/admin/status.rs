//! `GET /status`: what the node does now, as one JSON object. Field names are stable; README.md describes them.
//!
//! Neighbours: the page at `/` and `caf-worker top` draw it. What the health page says stands here as it says it.

use std::time::Duration;

use caf_actors::breakers::book::Seen;
use caf_actors::clock::{self, whole_ms};
use caf_actors::consumption::Phase;
use caf_actors::journal::{BUCKET_S, Running};
use caf_protocol::ids::AssignmentKey;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{Admin, Parts, iso};
use crate::http::health::why_not_ready;

/// Most running jobs that are listed: the longest.
const MAX_RUNNING: usize = 100;
/// Most circuit breakers that are listed: open ones first.
const MAX_BREAKERS: usize = 100;

impl Admin {
    /// The whole object.
    pub async fn status(&self) -> Value {
        let parts = &self.0;
        let now_ms = clock::epoch_ms();
        let mut page = parts.health.page().await;
        let mut details = taken_object(&mut page, "details");
        let mut take = |key: &str| details.remove(key).unwrap_or_default();
        let node = parts.health.node();
        let is_ready = node.is_ready();
        let flow = parts.journal.flow();
        let failures: Vec<_> = flow.failures().collect();
        let restarts = parts.journal.restarts();
        json!({
            "schema": 1,
            "time": iso(now_ms),
            "time_ms": now_ms,
            "worker": {
                "id": take("worker_id"),
                "version": env!("CARGO_PKG_VERSION"),
                "mode": take("mode"),
                "pid": std::process::id(),
                "sandbox": parts.sandbox,
                "started_at": iso(parts.journal.started_ms()),
                "uptime_ms": now_ms.saturating_sub(parts.journal.started_ms()),
            },
            "status": page["status"].take(),
            "checks": page["checks"].take(),
            "ready": is_ready,
            "not_ready_because": (!is_ready).then(|| why_not_ready(node)),
            "pools": pools(&take("pools")),
            "held": parts.held(),
            "totals": flow.total,
            "throughput": {"bucket_s": BUCKET_S, "buckets": flow.buckets(now_ms)},
            "failures": failures,
            "running": parts.running(now_ms),
            "leases": parts.health.leases().map(|leases| leases.snapshot(Instant::now())),
            "consumption": parts.consumption(),
            "publisher": take("publisher"),
            "outbox": take("outbox"),
            "claims": take("claims"),
            "circuit_breakers": parts.circuit_breakers(),
            "drain": parts.drain(now_ms),
            "features": parts.features,
            "restarts": {"total": restarts.values().sum::<u64>(), "by_part": restarts},
            "stray_threads": take("stray_threads"),
            "cancellation": parts.cancellation(),
            "approvals": parts.approvals(),
            "journal": parts.journal.memory(),
        })
    }
}

fn taken_object(value: &mut Value, key: &str) -> Map<String, Value> {
    match value[key].take() {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// The pools as a list, in their order. One that did not answer has its name only.
fn pools(by_name: &Value) -> Vec<Value> {
    let known = ["cpu", "gpu", "io"]
        .into_iter()
        .filter_map(|name| Some((name, by_name.get(name)?)));
    known
        .map(|(name, snapshot)| {
            let mut pool = json!({"name": name, "answers": !snapshot.is_null()});
            for (key, value) in snapshot.as_object().into_iter().flatten() {
                pool[key] = value.clone();
            }
            pool
        })
        .collect()
}

fn breaker(seen: &Seen, now: Instant) -> Value {
    let since_ms = |at: Instant| whole_ms(now.saturating_duration_since(at));
    json!({
        "tenant_id": &*seen.tenant_id,
        "kind": seen.endpoint.kind(),
        "endpoint": seen.endpoint.name(),
        "state": seen.phase,
        "failures": seen.failures,
        "changed_ms_ago": seen.changed.map(since_ms),
        "retry_after_ms": seen.retry_after.map(whole_ms),
        "refused": seen.refused,
        "retry_budget": seen.retry_tokens,
    })
}

impl Parts {
    fn held(&self) -> Value {
        let held = self.health.node().held();
        json!({
            "jobs": held.held_jobs(),
            "max_jobs": self.limits.max_held,
            "bytes": self.limits.max_held_bytes.saturating_sub(held.free_bytes()),
            "max_bytes": self.limits.max_held_bytes,
        })
    }

    /// The jobs that run here, the longest first. What a failed part of the node has lost is not among them.
    fn running(&self, now_ms: u64) -> Vec<Value> {
        let running = self.journal.running(MAX_RUNNING);
        let here = running.into_iter().filter(|job| self.is_held(job));
        here.map(|job| {
            let left_ms = job.deadline_ms.map(|deadline| deadline.saturating_sub(now_ms));
            let mut value = json!(job);
            value["since"] = iso(job.since_ms).into();
            value["running_ms"] = now_ms.saturating_sub(job.since_ms).into();
            value["deadline_left_ms"] = json!(left_ms);
            value
        })
        .collect()
    }

    fn is_held(&self, job: &Running) -> bool {
        let key = AssignmentKey::of_replay(&job.tenant_id, &job.assignment_id, job.replay);
        self.health.claims().is_none_or(|claims| claims.is_held(&key))
    }

    fn consumption(&self) -> Value {
        let node = self.health.node();
        let consumption = node.consumption();
        let mut value = json!(consumption.view());
        value["connected"] = node.is_connected().into();
        value["connecting"] = node.has_tried_to_connect().into();
        value["consuming"] = node.is_consuming().into();
        value["deliveries"] = consumption.deliveries().into();
        let phase = match consumption.phase() {
            Phase::Preparing => "preparing",
            Phase::NoRoom => "no_room",
            Phase::Pulling => "pulling",
            Phase::TooLarge => "too_large",
        };
        value["phase"] = phase.into();
        value
    }

    /// Nothing while the flag is off.
    fn circuit_breakers(&self) -> Option<Value> {
        let view = self.health.breakers()?.look(MAX_BREAKERS)?;
        let now = Instant::now();
        let mut kept = Map::new();
        for (&(kind, phase), count) in &view.counts {
            kept.entry(kind.as_str()).or_insert_with(|| json!({}))[phase.as_str()] = json!(count);
        }
        let listed: Vec<_> = view.first.iter().map(|seen| breaker(seen, now)).collect();
        let total: usize = view.counts.values().sum();
        Some(json!({"total": total, "max": view.max, "by_kind": kept, "listed": listed}))
    }

    /// Nothing while requests to cancel are not carried out.
    fn cancellation(&self) -> Option<Value> {
        let tombstones = self.cancellations.tombstones(Instant::now())?;
        Some(json!({ "tombstones": tombstones }))
    }

    /// Nothing where nobody is asked.
    fn approvals(&self) -> Option<Value> {
        let (pending, oldest_ms) = self.health.approvals()?.waiting();
        Some(json!({ "pending": pending, "oldest_ms": oldest_ms }))
    }

    fn drain(&self, now_ms: u64) -> Value {
        let node = self.health.node();
        let since_ms = self.journal.draining_since_ms();
        let passed_ms = since_ms.map(|since| now_ms.saturating_sub(since));
        let left = |limit: Duration| passed_ms.map(|passed| whole_ms(limit).saturating_sub(passed));
        json!({
            "draining": node.is_draining(),
            "since": since_ms.map(iso),
            "for_ms": passed_ms,
            "jobs_left": node.held().held_jobs(),
            "soft_limit_left_ms": left(self.drain.soft()),
            "hard_limit_left_ms": left(self.drain.hard()),
        })
    }
}
