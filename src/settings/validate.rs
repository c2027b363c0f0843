//! Rules of the node's own sections and of the blocks, and the walk through all sections.
//!
//! Neighbours: [`super::load`] calls it after the types fit. Never looks at files, names or networks: whether a
//! directory or a server is there, the commands that need it find out.

use std::net::{IpAddr, SocketAddr};

use caf_actors::settings::rules::Rules;
use caf_blocks::settings::BlockSettings;

mod admin;

use super::{HttpSettings, Settings, WorkerSettings, named_secrets, worker_id};

/// Longest time between heartbeats: longer than the longest deadline would mean nothing.
const MAX_LIMIT_MS: u64 = 3_600_000;
/// Slowest ageing: at this one, a lead of 60 points lasts as long as the longest deadline.
const MAX_AGEING_MS: u64 = 60_000;

impl Settings {
    /// Checks every rule that types cannot express; reports all that are broken.
    pub fn validate(&self, rules: &mut Rules) {
        rules.section("worker", |rules| check_worker(&self.worker, rules));
        rules.section("nats", |rules| self.nats.validate(rules));
        rules.section("limits", |rules| self.limits.validate(rules));
        rules.section("pools", |rules| self.pools.validate(rules));
        rules.section("idempotency", |rules| self.idempotency.validate(rules));
        rules.section("approvals", |rules| self.approvals.validate(rules));
        rules.section("retry", |rules| self.retry.validate(rules));
        rules.section("tenants", |rules| self.tenants.validate(rules));
        rules.section("queue", |rules| {
            rules.range(
                "ageing_ms_per_point",
                self.queue.ageing_ms_per_point,
                0..=MAX_AGEING_MS,
            );
        });
        rules.section("drain", |rules| self.drain.validate(rules));
        rules.section("http", |rules| check_http(&self.http, rules));
        rules.section("outbox", |rules| self.outbox.validate(rules));
        rules.section("payload_ref", |rules| self.payload_ref.validate(rules));
        rules.section("log", |rules| self.log.validate(rules));
        rules.section("blocks", |rules| check_blocks(&self.blocks, rules));
        check_providers(self, rules);
        named_secrets::validate(self, rules);
    }
}

fn check_worker(worker: &WorkerSettings, rules: &mut Rules) {
    rules.require(
        "id",
        worker.id.as_deref().is_none_or(worker_id::is_valid),
        "must have 1 to 128 bytes and no spaces, control characters, '*' or '>'",
    );
    let named = !worker.state_dir.as_os_str().is_empty();
    rules.require("state_dir", named, "must not be empty");
    rules.range(
        "heartbeat_interval_ms",
        worker.heartbeat_interval_ms,
        100..=MAX_LIMIT_MS,
    );
    rules.range("io_threads", worker.io_threads, 1..=64);
    rules.section("supervision", |rules| worker.supervision.validate(rules));
    rules.section("retries", |rules| {
        rules.section("v2", |rules| worker.retries.v2.validate(rules))
    });
    rules.section("timeouts", |rules| {
        rules.section("v2", |rules| worker.timeouts.v2.validate(rules))
    });
    rules.section("queue", |rules| {
        rules.section("v2", |rules| worker.queue.v2.validate(rules))
    });
    rules.section("tracing", |rules| worker.tracing.validate(rules));
    rules.section("metrics", |rules| worker.metrics.validate(rules));
    rules.section("cancellation", |rules| worker.cancellation.validate(rules));
    rules.section("circuit_breaker", |rules| worker.circuit_breaker.validate(rules));
    rules.section("sandbox", |rules| {
        for (key, rule) in worker.sandbox.broken() {
            report(&key.split('.').collect::<Vec<_>>(), rule, rules);
        }
    });
}

fn check_http(http: &HttpSettings, rules: &mut Rules) {
    let all = [
        ("health_addr", Some(&http.health_addr)),
        ("metrics_addr", Some(&http.metrics_addr)),
        ("admin_addr", Some(&http.admin_addr)),
        ("approval_addr", http.approval_addr.as_ref()),
    ];
    let all = all.into_iter().filter_map(|(key, text)| Some((key, text?)));
    let mut taken: Vec<(&str, SocketAddr)> = Vec::new();
    for (key, text) in all {
        let Ok(address) = text.parse::<SocketAddr>() else {
            rules.require(
                key,
                false,
                "must be an IP address and a port such as 0.0.0.0:9091",
            );
            continue;
        };
        if let Some((other, _)) = taken.iter().find(|(_, earlier)| collide(*earlier, address)) {
            rules.relate(
                key,
                other,
                false,
                format!("must not use the port of http.{other}"),
            );
        }
        taken.push((key, address));
    }
    admin::check(http, rules);
}

/// Whether two listeners cannot both be bound. Port 0 is a different port each time.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let any = |ip: IpAddr| ip.is_unspecified();
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || any(a.ip()) || any(b.ip()))
}

/// The blocks know their own rules and name every broken one by its full key, segment by segment.
fn check_blocks(blocks: &BlockSettings, rules: &mut Rules) {
    for error in blocks.validate().err().unwrap_or_default() {
        // The first segment is the section in which this is called.
        let path: Vec<&str> = error.key.iter().skip(1).map(String::as_str).collect();
        report(&path, &error.rule, rules);
    }
}

/// As the blocks; and secrets that they name must be there.
fn check_providers(settings: &Settings, rules: &mut Rules) {
    let broken = caf_blocks::settings::providers::check(&settings.providers);
    for error in broken.err().unwrap_or_default() {
        let path: Vec<&str> = error.key.iter().map(String::as_str).collect();
        report(&path, &error.rule, rules);
    }
    rules.section("providers", |rules| {
        for (name, provider) in &settings.providers {
            let named = provider.secret.as_ref();
            let is_there = named.is_none_or(|secret| settings.secrets.contains_key(secret));
            let rule = "must be the name of a secret, see secrets.<name>";
            rules.section(name, |rules| rules.require("secret", is_there, rule));
        }
    });
}

fn report(path: &[&str], rule: &str, rules: &mut Rules) {
    match path {
        [] => {}
        [key] => rules.require(key, false, rule),
        [section, rest @ ..] => rules.section(section, |rules| report(rest, rule, rules)),
    }
}
