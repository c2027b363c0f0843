//! Metrics of what is so at the moment: read when somebody looks, from the same view as the health page.
//!
//! Neighbours: the metrics page takes a [`View`] and gives [`samples`] of it to the registry; nothing is kept here, so that
//! what is gone is not shown any more.

use std::time::{Duration, SystemTime};

use caf_actors::breakers::machine::Phase;
use caf_actors::metrics::{Metric, MetricKind, Sample};
use caf_actors::process_stats;
use caf_protocol::endpoint::EndpointKind;
use caf_protocol::timestamp::epoch_ms;

use crate::http::view::{NodeView, PartsView, PoolView, View};

macro_rules! states {
    ($($(#[doc = $doc:literal])+ $id:ident = $name:literal [$($label:literal),*] $kind:ident: $help:literal;)+) => {
        $(
            $(#[doc = $doc])+
            pub static $id: Metric = Metric {
                name: $name,
                help: $help,
                labels: &[$($label),*],
                kind: MetricKind::$kind,
            };
        )+

        /// All of them.
        pub static ALL: &[&Metric] = &[$(&$id),+];
    };
}

states! {
    /// Jobs that wait.
    QUEUE_DEPTH = "worker_queue_depth" ["resource_pool"] Gauge: "Jobs that wait for a slot.";
    /// Jobs that wait, under the name of CP1.
    POOL_QUEUE_DEPTH = "worker_pool_queue_depth" ["resource_class"] Gauge: "Jobs that wait for a slot.";
    /// Jobs that run.
    ACTIVE_TASKS = "worker_active_tasks" ["resource_pool"] Gauge: "Jobs that have a slot.";
    /// Slots.
    POOL_SLOTS = "worker_pool_slots" ["resource_pool"] Gauge: "Slots of the pool.";
    /// Slots in use.
    POOL_SLOTS_USED = "worker_pool_slots_used" ["resource_pool"] Gauge: "Slots that are not free.";
    /// Free slots.
    POOL_SLOTS_AVAILABLE = "worker_pool_slots_available" ["resource_pool"] Gauge: "Slots that are free.";
    /// Tenants that wait.
    TENANTS_WAITING = "worker_tenants_waiting" ["resource_pool"] Gauge: "Tenants that have jobs waiting for a slot.";
    /// Tenants whose jobs wait for their own limit.
    TENANTS_AT_LIMIT = "worker_tenants_at_limit" ["resource_pool"] Gauge:
        "Those of them that run as many jobs as they may (max_running).";
    /// The checks of the health page.
    HEALTH_STATUS = "worker_health_status" ["check"] Gauge: "Checks of the health page: 1 ok, 0 failed.";
    /// Answers on disk.
    OUTBOX_ENTRIES = "worker_outbox_entries" [] Gauge: "Results that are stored and not confirmed yet.";
    /// Their bytes.
    OUTBOX_BYTES = "worker_outbox_bytes" [] Gauge: "Bytes of results that are stored and not confirmed yet.";
    /// Their age.
    OUTBOX_OLDEST_AGE = "worker_outbox_oldest_age_seconds" [] Gauge:
        "How long the oldest result has been stored that is not confirmed; 0 when there is none.";
    /// Jobs that are held.
    JOBS_HELD = "worker_jobs_held" [] Gauge: "Assignments that are here and not answered yet.";
    /// Room for more.
    PERMITS_AVAILABLE = "worker_permits_available" [] Gauge:
        "Assignments that may still be taken on (limits.max_held less those that are held).";
    /// Leases.
    LEASES_HELD = "worker_leases_held" [] Gauge: "Deliveries of the broker that are held.";
    /// Age of the oldest renewal.
    LEASE_OLDEST_AGE = "worker_lease_oldest_age_seconds" [] Gauge:
        "How long ago the oldest renewal was sent that keeps a lease; 0 without leases. At nine tenths of the ack wait it lapses.";
    /// Leases that were lost.
    LEASES_LAPSED = "worker_leases_lapsed_total" [] Counter: "Leases that were not renewed in time.";
    /// Age of the last delivery.
    LAST_DELIVERY_AGE = "worker_last_delivery_age_seconds" [] Gauge:
        "Time since the last assignment arrived; absent before the first.";
    /// What waits at the broker.
    PENDING_MESSAGES = "worker_pending_messages" [] Gauge:
        "Assignments that the broker has for the fleet and that nobody has got yet; absent while it does not say.";
    /// Connection.
    CONNECTED = "worker_connected" [] Gauge: "Whether the broker is connected.";
    /// Consumption.
    CONSUMING = "worker_consuming" [] Gauge: "Whether assignments are asked for.";
    /// Readiness.
    READY = "worker_ready" [] Gauge: "Whether /readyz says ready.";
    /// Shutdown.
    DRAINING = "worker_draining" [] Gauge: "Whether the worker shuts down.";
    /// How long that takes.
    DRAIN_SECONDS = "worker_drain_seconds" [] Gauge: "How long the worker has been shutting down; 0 while it does not.";
    /// Pulls that were set up anew.
    PULL_REBUILDS = "worker_pull_rebuilds_total" [] Counter:
        "How often asking for assignments was set up anew, after a failure or a stall.";
    /// Restarts that are left.
    RESTART_BUDGET_USED = "worker_restart_budget_used" [] Gauge:
        "Restarts within the window as a share of those allowed: above 1 the worker ends.";
    /// Threads without a job.
    STRAY_THREADS = "worker_stray_threads" [] Gauge: "Threads that are still busy although their job has ended.";
    /// Circuit breakers.
    CIRCUIT_BREAKERS = "worker_circuit_breakers" ["kind", "state"] Gauge:
        "Circuit breakers by kind of endpoint and state; absent while their flag is off. One that may be tried again is half_open.";
    /// Requests to cancel that wait for what they ask for.
    CANCEL_TOMBSTONES = "worker_cancel_tombstones" [] Gauge:
        "Requests to cancel that are kept for what has not arrived; absent while worker.cancellation is off.";
    /// Event loops that do not wake up.
    LOOP_BLOCKED = "worker_event_loop_blocked_seconds" ["event_loop"] Gauge:
        "How long the event loop is overdue at this moment: 0 unless it is blocked.";
    /// Processor time, under the name of the platform's documents.
    RESOURCE_CPU = "worker_resource_cpu_time_ms" [] Gauge: "Processor time of this process so far, in milliseconds.";
    /// Memory, under the name of the platform's documents.
    RESOURCE_MEM = "worker_resource_mem_bytes" [] Gauge: "Resident memory of this process in bytes.";
    /// Which program this is.
    BUILD_INFO = "worker_build_info" ["version", "mode", "worker_id"] Gauge: "Always 1; the labels tell.";
    /// Processor time.
    PROCESS_CPU = "process_cpu_seconds_total" [] Counter: "Processor time of this process so far, in seconds.";
    /// Memory.
    PROCESS_MEM = "process_resident_memory_bytes" [] Gauge: "Resident memory in bytes.";
    /// Open files.
    PROCESS_FDS = "process_open_fds" [] Gauge: "Open file descriptors.";
    /// Most open files.
    PROCESS_MAX_FDS = "process_max_fds" [] Gauge: "Most open file descriptors.";
    /// Threads.
    PROCESS_THREADS = "process_threads" [] Gauge: "Threads of this process.";
    /// Start.
    PROCESS_START = "process_start_time_seconds" [] Gauge: "Start of this process, in seconds since the Unix epoch.";
}

/// What a view says, as samples.
pub fn samples(view: &View) -> Vec<Sample> {
    let mut samples = Vec::new();
    let checks = view.checks.iter();
    samples.extend(checks.map(|(name, check)| HEALTH_STATUS.sample(&[name], flag(check.ok))));
    of_node(&view.node, &mut samples);
    if let Some(parts) = &view.parts {
        of_parts(parts, &mut samples);
    }
    for (name, overdue) in &view.loops_blocked {
        samples.push(LOOP_BLOCKED.sample(&[name], overdue.as_secs_f64()));
    }
    let labels = [env!("CARGO_PKG_VERSION"), view.node.mode, &view.node.worker_id];
    samples.push(BUILD_INFO.sample(&labels, 1.0));
    of_process(&mut samples);
    samples
}

fn of_node(node: &NodeView, samples: &mut Vec<Sample>) {
    let since = |age: Option<Duration>| age.unwrap_or_default().as_secs_f64();
    samples.extend([
        JOBS_HELD.sample(&[], number(node.jobs_held)),
        PERMITS_AVAILABLE.sample(&[], number(node.permits_available)),
        CONNECTED.sample(&[], flag(node.is_connected)),
        CONSUMING.sample(&[], flag(node.is_consuming)),
        READY.sample(&[], flag(node.is_ready)),
        DRAINING.sample(&[], flag(node.is_draining)),
        DRAIN_SECONDS.sample(&[], since(node.draining_for)),
        PULL_REBUILDS.sample(&[], number(node.consumption.pull_rebuilds)),
    ]);
    let age = node.consumption.last_delivery_age_ms.map(Duration::from_millis);
    samples.extend(age.map(|age| LAST_DELIVERY_AGE.sample(&[], age.as_secs_f64())));
    let pending = node.pending_messages;
    samples.extend(pending.map(|pending| PENDING_MESSAGES.sample(&[], number(pending))));
}

fn of_parts(parts: &PartsView, samples: &mut Vec<Sample>) {
    parts.pools.iter().for_each(|pool| of_pool(pool, samples));
    let lease_age = Duration::from_millis(parts.leases.oldest_renewal_age_ms);
    samples.extend([
        LEASES_HELD.sample(&[], number(parts.leases.held)),
        LEASE_OLDEST_AGE.sample(&[], lease_age.as_secs_f64()),
        LEASES_LAPSED.sample(&[], number(parts.leases.lapsed_total)),
        RESTART_BUDGET_USED.sample(&[], parts.restart_budget_used),
        STRAY_THREADS.sample(&[], number(parts.stray_threads)),
    ]);
    if let Some(breakers) = &parts.breakers {
        for (kind, phase) in EndpointKind::ALL
            .into_iter()
            .flat_map(|kind| Phase::ALL.map(|phase| (kind, phase)))
        {
            let count = breakers.counts.get(&(kind, phase)).copied().unwrap_or_default();
            samples.push(CIRCUIT_BREAKERS.sample(&[kind.as_str(), phase.as_str()], number(count)));
        }
    }
    if let Some(tombstones) = parts.tombstones {
        samples.push(CANCEL_TOMBSTONES.sample(&[], number(tombstones)));
    }
    if let Some(outbox) = &parts.outbox {
        let now_ms = epoch_ms(SystemTime::now());
        let age = parts.outbox_oldest_ms.map(|stored| now_ms.saturating_sub(stored));
        let age = Duration::from_millis(age.unwrap_or_default());
        samples.extend([
            OUTBOX_ENTRIES.sample(&[], number(outbox.entries)),
            OUTBOX_BYTES.sample(&[], number(outbox.bytes)),
            OUTBOX_OLDEST_AGE.sample(&[], age.as_secs_f64()),
        ]);
    }
}

fn of_pool(pool: &PoolView, samples: &mut Vec<Sample>) {
    let (class, used) = ([pool.class], number(pool.slots_used));
    samples.extend([
        ACTIVE_TASKS.sample(&class, used),
        POOL_SLOTS.sample(&class, number(pool.slots)),
        POOL_SLOTS_USED.sample(&class, used),
        POOL_SLOTS_AVAILABLE.sample(&class, number(pool.slots.saturating_sub(pool.slots_used))),
    ]);
    // An actor that does not answer leaves nothing to show, which is better than an old figure.
    if let Some(snapshot) = &pool.snapshot {
        let queued = number(snapshot.queued);
        samples.push(QUEUE_DEPTH.sample(&class, queued));
        samples.push(POOL_QUEUE_DEPTH.sample(&class, queued));
        samples.push(TENANTS_WAITING.sample(&class, number(snapshot.tenants_waiting)));
        samples.push(TENANTS_AT_LIMIT.sample(&class, number(snapshot.tenants_at_limit)));
    }
}

fn of_process(samples: &mut Vec<Sample>) {
    let cpu = process_stats::cpu_seconds();
    samples.extend([
        RESOURCE_CPU.sample(&[], cpu * 1_000.0),
        PROCESS_CPU.sample(&[], cpu),
        PROCESS_THREADS.sample(&[], process_stats::threads()),
    ]);
    let memory = process_stats::resident_bytes().map(number);
    let files = process_stats::open_files().map(number);
    let max_files = process_stats::max_open_files();
    let start = process_stats::start_time_seconds();
    let known = [
        (&RESOURCE_MEM, memory),
        (&PROCESS_MEM, memory),
        (&PROCESS_FDS, files),
        (&PROCESS_MAX_FDS, max_files),
        (&PROCESS_START, start),
    ];
    samples.extend(
        known
            .into_iter()
            .filter_map(|(metric, value)| Some(metric.sample(&[], value?))),
    );
}

fn flag(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

/// As a float, which holds every number up to 2^53 exactly: more than any of these.
fn number(count: impl TryInto<u64>) -> f64 {
    let count: u64 = count.try_into().unwrap_or(u64::MAX);
    count as f64
}
