//! Lines of bounded queues, only while the queue flag is in force, and metrics of all queues (contract 8.2, 8.4).

use std::sync::Arc;
use std::time::Duration;

use caf_protocol::ack::OverloadStatus;
use caf_protocol::assignment::Identity;
use caf_protocol::block::ResourceClass;

use super::{Event, Level, steps};
use crate::job::PoolLoad;
use crate::metrics::{Metric, MetricKind};
use crate::pool::line::Waited;
use crate::pool::policy::Level as Degradation;
use crate::pool::{Places, Refused};

/// Jobs that found no place, or lost it.
pub static REJECTIONS: Metric = Metric {
    name: "worker_queue_rejections_total",
    help: "Jobs refused: queue_full, the queue had no place; critical, it should have been deferred and could not be; \
           overloaded, it was dropped from the queue for a newer one.",
    labels: &["resource_pool", "rejection_reason"],
    kind: MetricKind::Counter,
};

/// Jobs that got a place.
pub static ACCEPTANCES: Metric = Metric {
    name: "worker_queue_acceptances_total",
    help: "Jobs that a pool has taken.",
    labels: &["resource_pool"],
    kind: MetricKind::Counter,
};

/// How full each queue is.
pub static OVERLOAD_STATUS: Metric = Metric {
    name: "worker_overload_status",
    help: "Status of the queue: 0 healthy, 1 degraded, 2 overloaded, 3 critical.",
    labels: &["resource_pool"],
    kind: MetricKind::Gauge,
};

/// How long jobs waited.
pub static WAIT: Metric = Metric {
    name: "worker_queue_wait_seconds",
    help: "Time that jobs were in the queue of a pool, whether they left it for a slot or without one: dropped, out of time, \
           handed back.",
    labels: &["resource_pool"],
    kind: MetricKind::Seconds(&[1, 10, 50, 100, 500, 1_000, 5_000, 10_000, 30_000, 60_000, 300_000]),
};

fn rejection(
    identity: &Arc<Identity>,
    class: ResourceClass,
    (depth, size): (usize, usize),
    status: OverloadStatus,
    reason: &'static str,
) -> Event {
    Event::new(Level::Warn, "Queue rejection")
        .of(identity)
        .with("resource_pool", class.as_str())
        .with("queue_depth", depth)
        .with("max_queue_size", size)
        .with("overload_status", status.as_str())
        .with("rejection_reason", reason)
        .measuring(REJECTIONS.one(&[class.as_str(), reason]))
}

/// Row 4: a job found no place.
pub fn refused(identity: &Arc<Identity>, class: ResourceClass, refused: Refused, size: usize) -> Event {
    let reason = if refused.cannot_defer {
        "critical"
    } else {
        "queue_full"
    };
    let queue = (refused.depth, size);
    rejection(identity, class, queue, OverloadStatus::Critical, reason)
}

/// Row 16: a job that waited was dropped for a newer one.
pub fn dropped(identity: &Arc<Identity>, class: ResourceClass, places: &Places) -> Event {
    let (queue, status) = (places.queue(), OverloadStatus::Overloaded);
    rejection(identity, class, queue, status, "overloaded")
}

/// Row 5: a job goes back to the broker for a while. It does so again and again while the queue is loaded, which the line
/// of the change of status has said.
pub fn deferred(
    identity: &Arc<Identity>,
    class: ResourceClass,
    queue: (usize, usize),
    delay_ms: u64,
) -> Event {
    Event::new(Level::Debug, "Assignment deferred")
        .of(identity)
        .with("resource_pool", class.as_str())
        .with("queue_depth", queue.0)
        .with("max_queue_size", queue.1)
        .with("delay_ms", delay_ms)
}

/// A job got its place.
pub fn accepted(identity: &Arc<Identity>, class: ResourceClass, load: PoolLoad) -> Event {
    Event::new(Level::Debug, "Assignment queued")
        .of(identity)
        .with("resource_pool", class.as_str())
        .with("queue_depth", load.depth)
        .with("overload_status", load.status.as_str())
        .measuring(ACCEPTANCES.one(&[class.as_str()]))
}

/// A job got its place in a pool whose queue has no bound of its own.
pub fn let_in(class: ResourceClass) -> Event {
    Event::silent().measuring(ACCEPTANCES.one(&[class.as_str()]))
}

/// A job gets less because its pool was loaded.
pub fn degraded(
    identity: &Arc<Identity>,
    class: ResourceClass,
    level: Degradation,
    skip_retries: bool,
    time_limit_ms: u64,
) -> Event {
    Event::new(Level::Info, "Assignment degraded")
        .of(identity)
        .with("resource_pool", class.as_str())
        .with("degraded", level.as_str())
        .with("skip_retries", skip_retries)
        .with("time_limit_ms", time_limit_ms)
}

/// `event`, of a job that leaves the queue after it had `waited` there.
pub fn left(event: Event, class: ResourceClass, waited: Waited) -> Event {
    let all = waited.slot + waited.limit;
    let event = event
        .measuring(WAIT.sample(&[class.as_str()], all.as_secs_f64()))
        .measuring(steps::wait("queue", waited.slot));
    match waited.limit {
        Duration::ZERO => event,
        limit => event.measuring(steps::wait("tenant_limit", limit)),
    }
}

/// A job leaves the queue without a start, after it had `waited` there.
pub fn left_without_start(class: ResourceClass, waited: Waited) -> Event {
    left(Event::silent(), class, waited)
}

/// A queue has become fuller or emptier.
pub fn status_changed(
    class: ResourceClass,
    (depth, size): (usize, usize),
    old: OverloadStatus,
    new: OverloadStatus,
) -> Event {
    let gauge = match new {
        OverloadStatus::Healthy => 0.0,
        OverloadStatus::Degraded => 1.0,
        OverloadStatus::Overloaded => 2.0,
        OverloadStatus::Critical => 3.0,
    };
    Event::new(Level::Info, "Overload status changed")
        .with("resource_pool", class.as_str())
        .with("queue_depth", depth)
        .with("max_queue_size", size)
        .with("old_status", old.as_str())
        .with("new_status", new.as_str())
        .measuring(OVERLOAD_STATUS.sample(&[class.as_str()], gauge))
}
