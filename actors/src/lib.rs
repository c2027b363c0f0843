//! The pipeline of the worker, in the order in which a message passes it:
//!
//! `nats::source` → [`intake`] → [`pool`] → [`block_worker`] → [`publisher`] → `nats::sink`.
//!
//! Neighbours: the node (`caf-worker`) wires the stations together and supervises them; `caf-protocol` is what
//! travels. Blocks come in as a registry: this crate does not know any.

pub mod abandoned;
pub mod answers;
pub mod approvals;
pub mod block_worker;
pub mod breakers;
pub mod cancellation;
pub mod cgroup;
pub mod claims;
pub mod clock;
pub mod consumption;
pub mod counts;
pub mod errors;
pub mod event_loop;
pub mod events;
pub mod held;
pub mod intake;
pub mod job;
pub mod journal;
pub mod lease;
pub mod levels;
pub mod mask;
pub mod metrics;
pub mod nats;
pub mod outbox;
pub mod pool;
pub mod process_stats;
pub mod publisher;
pub mod runtime;
pub mod settings;
pub mod sink;
pub mod spill;
pub mod state_dir;
pub mod status;
pub mod supervisor;
pub mod tenants;
pub mod trace;
pub mod vitals;
