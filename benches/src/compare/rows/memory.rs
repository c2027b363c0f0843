//! The row `memory`: of a worker that waits, of one that has a crowd before it, and of one that works for long.
//!
//! Neighbours: [`super`] has what rows share.

use std::time::Duration;

use anyhow::Result;
use async_nats::jetstream;
use tokio::time::sleep;

use super::{CROWD, drained, round, worker};
use crate::assignment::Job;
use crate::compare::Plan;
use crate::compare::report::{Goal, Line};
use crate::compare::stage::{Broker, Stage};
use crate::generator::{Measured, Until};
use crate::process::{Usage, usage};
use crate::streams;

/// How long a worker has had nothing to do before it is looked at.
const IDLE: Duration = Duration::from_secs(2);

pub(super) async fn run(plan: &Plan, stage: &Stage) -> Result<Vec<Line>> {
    let broker = stage.broker().await?;
    let (mut idle, mut peak) = (Vec::new(), Vec::new());
    let crowd = CROWD.min(plan.backlog.saturating_mul(4));
    let load = plan.load(&broker, Job::Echo { bytes: plan.payload });
    // Memory drifts less than time.
    for _ in 0..plan.rounds.min(3) {
        streams::renew(&jetstream::new(async_nats::connect(&broker.url).await?)).await?;
        let process = stage.contender(&broker, &worker(&[])).await?;
        sleep(IDLE).await;
        idle.push(mib(usage(process.pid)?.resident_kib));
        process.end().await?;
        let measured = drained(plan, stage, &broker, &worker(&[]), &load, crowd).await?;
        peak.push(mib(of(&measured, "worker").1.peak_kib));
    }
    let mut lines = vec![
        Line::alone("memory: idle, MiB", &idle, Goal::AtMost(20.0)),
        Line::alone(
            format!("memory: peak while {crowd} wait in the stream, MiB"),
            &peak,
            Goal::AtMost(48.0),
        ),
    ];
    if plan.long {
        lines.extend(soak(plan, stage, &broker).await?);
        lines.extend(fleet(plan, stage).await?);
    }
    Ok(lines)
}

/// Minutes of full load: what is held at the end against after the first tenth.
async fn soak(plan: &Plan, stage: &Stage, broker: &Broker) -> Result<Vec<Line>> {
    let whole = Duration::from_secs_f64(plan.soak_minutes * 60.0);
    let mut load = plan.load(broker, Job::Echo { bytes: plan.payload });
    load.warm_up = whole / 10;
    load.until = Until::Elapsed(whole - load.warm_up);
    let measured = round(plan, stage, broker, &worker(&[]), load).await?;
    let (begin, end) = of(&measured, "worker");
    let minutes = plan.soak_minutes;
    let what = format!("memory: resident after {minutes} min of full load against after a tenth, MiB");
    let (begin, end) = (mib(begin.resident_kib), mib(end.resident_kib));
    Ok(vec![Line::duel(what, &[begin], &[end], Goal::RatioAtMost(1.10))])
}

/// What the broker holds for the claims of a fleet.
async fn fleet(plan: &Plan, stage: &Stage) -> Result<Vec<Line>> {
    let broker = stage.broker().await?;
    let mut load = plan.load(&broker, Job::Echo { bytes: plan.payload });
    load.until = Until::Count(plan.many);
    load.warm_up = Duration::ZERO;
    let fleet = worker(&[("idempotency.scope", "fleet")]);
    let measured = round(plan, stage, &broker, &fleet, load).await?;
    let line = |what: &str, who| {
        let held = mib(of(&measured, who).1.resident_kib);
        Line::alone(
            format!("memory: {what} after {} fleet tasks, MiB", plan.many),
            &[held],
            Goal::Shown,
        )
    };
    Ok(vec![
        line("of the broker", "broker"),
        line("of the worker", "worker"),
    ])
}

fn of(measured: &Measured, who: &str) -> (Usage, Usage) {
    let used = measured.used.get(who).copied().unwrap_or_default();
    (used.at_begin, used.at_end)
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
