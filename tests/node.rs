//! The node as a process beside real brokers, as an operator and a router meet it.
//!
//! What faults do to it is in `faults.rs`; what the tree does with fake edges in `pipeline.rs`.

#[path = "node/abandoned.rs"]
mod abandoned;
#[path = "node/admin.rs"]
mod admin;
#[path = "node/alerts.rs"]
mod alerts;
#[path = "node/answering.rs"]
mod answering;
#[path = "node/boards.rs"]
mod boards;
#[path = "node/breakers.rs"]
mod breakers;
#[path = "node/cancellation.rs"]
mod cancellation;
#[path = "node/commands.rs"]
mod commands;
#[path = "node/core_mode.rs"]
mod core_mode;
#[path = "node/dead_letters.rs"]
mod dead_letters;
#[path = "node/deploy.rs"]
mod deploy;
#[path = "node/discovery.rs"]
mod discovery;
#[path = "node/fairness.rs"]
mod fairness;
#[path = "node/files_guard.rs"]
mod files_guard;
#[path = "node/gates.rs"]
mod gates;
#[path = "node/hostile.rs"]
mod hostile;
#[path = "node/http_guard.rs"]
mod http_guard;
#[path = "node/kubernetes.rs"]
mod kubernetes;
#[path = "node/large.rs"]
mod large;
#[path = "node/life.rs"]
mod life;
#[path = "node/logging.rs"]
mod logging;
#[path = "node/metrics.rs"]
mod metrics;
#[path = "node/metrics_cost.rs"]
mod metrics_cost;
#[path = "node/models.rs"]
mod models;
#[path = "node/observability_scripts.rs"]
mod observability_scripts;
#[path = "node/page.rs"]
mod page;
#[path = "node/ports.rs"]
mod ports;
#[path = "node/queue.rs"]
mod queue;
#[path = "node/retries.rs"]
mod retries;
#[path = "node/sandbox.rs"]
mod sandbox;
#[path = "node/scripts.rs"]
mod scripts;
#[path = "node/secrets.rs"]
mod secrets;
#[path = "node/seen_from_outside.rs"]
mod seen_from_outside;
#[path = "faults/side_effects.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod side_effects;
#[path = "node/status.rs"]
mod status;
#[path = "node/support.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod support;
#[path = "node/tenants.rs"]
mod tenants;
#[path = "node/tracing.rs"]
mod tracing;
