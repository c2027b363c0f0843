//! How the worker is, in one word and in numbers: what heartbeat and discovery tell.
//!
//! Neighbours: the lease keeper and `nats::discovery` ask, each on its own thread; the node's status, slots and places
//! are looked at, never waited for. The word is decided by [`status_of`], a pure function.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use caf_protocol::block::ResourceClass;
use caf_protocol::discovery::{HeldLoad, Load, PoolLoad, ProcessLoad};
use caf_protocol::heartbeat::{Heartbeat, Intake, Resources, WorkerStatus};
use caf_protocol::timestamp::iso_micros;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::pool::{Places, Slots};
use crate::process_stats::{ProcessStats, Usage};
use crate::status::NodeStatus;

/// What the word follows from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts {
    /// It shuts down.
    pub draining: bool,
    /// It is connected, asks for assignments, and nothing is in the way of taking them on.
    pub taking_on: bool,
    /// A check of the health page fails.
    pub failing: bool,
    /// It holds as many jobs or bytes as it may, or its pools leave no room to ask for more.
    pub holds_all: bool,
    /// Every slot of every pool is taken.
    pub runs_all: bool,
    /// The bounded queue of a pool is critical: most likely what comes for it is refused.
    pub refuses: bool,
}

/// The first that fits, from what an operator must know first.
pub fn status_of(facts: Facts) -> WorkerStatus {
    match facts {
        Facts { draining: true, .. } => WorkerStatus::Draining,
        Facts { taking_on: false, .. } | Facts { failing: true, .. } => WorkerStatus::Degraded,
        Facts { holds_all: true, .. } | Facts { runs_all: true, .. } | Facts { refuses: true, .. } => {
            WorkerStatus::Busy
        }
        _ => WorkerStatus::Ready,
    }
}

/// Whoever tells how the worker is has one. Cheap to clone.
#[derive(Clone)]
pub struct Vitals {
    status: NodeStatus,
    pools: Arc<[PoolVitals]>,
    process: Arc<Mutex<ProcessStats>>,
}

/// A pool, as far as it is looked at.
pub struct PoolVitals {
    /// Which.
    pub class: ResourceClass,
    /// What runs in it.
    pub slots: Arc<Slots>,
    /// What waits in it.
    pub places: Places,
}

impl Vitals {
    /// Begins to measure the process.
    pub fn new(status: NodeStatus, pools: impl IntoIterator<Item = PoolVitals>) -> Self {
        Self {
            status,
            pools: pools.into_iter().collect(),
            process: Arc::new(Mutex::new(ProcessStats::start())),
        }
    }

    /// The node's status.
    pub fn status(&self) -> &NodeStatus {
        &self.status
    }

    /// A sign of life of `worker_id`.
    pub fn heartbeat(&self, worker_id: &str) -> Heartbeat {
        let usage = self.usage();
        let (state, reasons) = self.state();
        let resources = Resources {
            cpu: usage.cpu,
            gpu: self.gpu(),
            mem_bytes: usage.mem_bytes.unwrap_or_default(),
            jobs_in_flight: self.status.held().held_jobs() as u64,
        };
        let now = iso_micros(SystemTime::now());
        let metadata = metadata(&usage, &reasons);
        Heartbeat::new(worker_id, now, state, resources, self.intake(), metadata)
    }

    /// How loaded the worker is.
    pub fn load(&self) -> Load {
        let usage = self.usage();
        let (status, reasons) = self.state();
        Load {
            status,
            reasons,
            pools: self
                .pools
                .iter()
                .map(|pool| (pool.class.as_str(), pool.load()))
                .collect(),
            held: self.held(),
            process: ProcessLoad {
                cpu: usage.cpu,
                cpus: usage.cpus,
                gpu: self.gpu(),
                mem_bytes: usage.mem_bytes,
                mem_limit_bytes: usage.mem_limit_bytes,
            },
            intake: self.intake(),
        }
    }

    /// The word, and which checks fail.
    fn state(&self) -> (WorkerStatus, Vec<String>) {
        let (status, reasons) = (&self.status, self.status.failing(Instant::now()));
        let facts = Facts {
            draining: status.is_draining(),
            taking_on: status.is_ready(),
            failing: !reasons.is_empty(),
            holds_all: status.held().is_full(),
            runs_all: self
                .pools
                .iter()
                .all(|pool| pool.slots.busy() >= pool.slots.count()),
            refuses: self.pools.iter().any(|pool| pool.places.is_critical()),
        };
        (status_of(facts), reasons)
    }

    fn usage(&self) -> Usage {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        process.usage(std::time::Instant::now())
    }

    fn gpu(&self) -> f64 {
        let gpu = self.pools.iter().find(|pool| pool.class == ResourceClass::Gpu);
        gpu.map_or(0.0, |pool| pool.slots.busy_share())
    }

    fn held(&self) -> HeldLoad {
        let held = self.status.held();
        let (max_jobs, max_bytes) = held.most();
        let jobs = held.held_jobs();
        HeldLoad {
            jobs: jobs as u64,
            max_jobs: max_jobs as u64,
            permits_available: max_jobs.saturating_sub(jobs) as u64,
            bytes: max_bytes.saturating_sub(held.free_bytes()) as u64,
            max_bytes: max_bytes as u64,
        }
    }

    fn intake(&self) -> Intake {
        let seen = self.status.consumption().view();
        Intake {
            last_delivery_age_ms: seen.last_delivery_age_ms,
            pulls_outstanding: seen.pulls_outstanding as u64,
            pull_rebuilds: seen.pull_rebuilds,
        }
    }
}

impl PoolVitals {
    fn load(&self) -> PoolLoad {
        let (count, busy) = (self.slots.count(), self.slots.busy());
        let (waiting, size) = self.places.queue();
        PoolLoad {
            slots: count as u64,
            slots_used: busy as u64,
            slots_available: count.saturating_sub(busy) as u64,
            queue_depth: waiting as u64,
            max_queue_size: self.places.is_bounded().then_some(size as u64),
        }
    }
}

/// What a heartbeat tells beside the contract's fields.
fn metadata(usage: &Usage, reasons: &[String]) -> Map<String, Value> {
    let mut metadata = Map::new();
    metadata.insert("cpus".to_owned(), json!(usage.cpus));
    if let Some(bytes) = usage.mem_limit_bytes {
        metadata.insert("mem_limit_bytes".to_owned(), json!(bytes));
    }
    if usage.mem_bytes.is_none() {
        metadata.insert("unmeasured".to_owned(), json!(["mem_bytes"]));
    }
    if !reasons.is_empty() {
        metadata.insert("reasons".to_owned(), json!(reasons));
    }
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Facts = Facts {
        draining: false,
        taking_on: true,
        failing: false,
        holds_all: false,
        runs_all: false,
        refuses: false,
    };

    #[test]
    fn a_worker_that_takes_jobs_on_is_ready_until_it_holds_or_runs_all_it_may_or_a_queue_is_full() {
        assert_eq!(status_of(WELL), WorkerStatus::Ready);
        for full in [
            Facts {
                holds_all: true,
                ..WELL
            },
            Facts {
                runs_all: true,
                ..WELL
            },
            Facts {
                refuses: true,
                ..WELL
            },
        ] {
            assert_eq!(status_of(full), WorkerStatus::Busy, "{full:?}");
        }
    }

    #[test]
    fn what_is_wrong_counts_before_what_is_full_and_leaving_before_both() {
        for ill in [
            Facts {
                taking_on: false,
                ..WELL
            },
            Facts {
                failing: true,
                ..WELL
            },
        ] {
            for full in [false, true] {
                let facts = Facts {
                    holds_all: full,
                    runs_all: full,
                    refuses: full,
                    ..ill
                };
                assert_eq!(status_of(facts), WorkerStatus::Degraded, "{facts:?}");
                let leaving = Facts {
                    draining: true,
                    ..facts
                };
                assert_eq!(status_of(leaving), WorkerStatus::Draining, "{leaving:?}");
            }
        }
        assert_eq!(
            status_of(Facts {
                draining: true,
                ..WELL
            }),
            WorkerStatus::Draining
        );
    }

    #[test]
    fn a_heartbeat_says_which_number_is_none() {
        let usage = Usage {
            cpu: 0.1,
            cpus: 0.5,
            mem_bytes: None,
            mem_limit_bytes: Some(7),
        };
        let told = Value::Object(metadata(&usage, &["claims".to_owned()]));
        let expected =
            json!({"cpus": 0.5, "mem_limit_bytes": 7, "unmeasured": ["mem_bytes"], "reasons": ["claims"]});
        assert_eq!(told, expected);
        let measured = Usage {
            mem_bytes: Some(1),
            mem_limit_bytes: None,
            ..usage
        };
        assert_eq!(Value::Object(metadata(&measured, &[])), json!({"cpus": 0.5}));
    }
}
