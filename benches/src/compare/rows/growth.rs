//! The row `growth`: more workers, larger payloads, more tasks before.
//!
//! Neighbours: [`super`] has what rows share.

use std::time::Duration;

use anyhow::Result;
use async_nats::jetstream;

use super::{bare, checked, duel, figures, round, worker};
use crate::assignment::Job;
use crate::compare::Plan;
use crate::compare::report::{Goal, Line};
use crate::compare::stage::{Broker, Contender, Stage};
use crate::generator::{Generator, Measured, Until};
use crate::streams;

/// Workers side by side.
const FLEETS: [usize; 3] = [1, 2, 4];
/// Bytes of a job's payload. The last is about the most that a message of 1 MiB holds beside the rest of an assignment.
const PAYLOADS: [(usize, &str); 4] = [
    (1 << 10, "1 KB"),
    (10 << 10, "10 KB"),
    (100 << 10, "100 KB"),
    (900 << 10, "900 KB"),
];

pub(super) async fn run(plan: &Plan, stage: &Stage) -> Result<Vec<Line>> {
    let broker = stage.broker().await?;
    let mut lines = Vec::new();
    for workers in FLEETS {
        let mut measured = [Vec::new(), Vec::new()];
        for _ in 0..plan.rounds {
            for (contender, measured) in [bare(), worker(&[])].iter().zip(&mut measured) {
                measured.push(side_by_side(plan, stage, &broker, contender, workers).await?);
            }
        }
        lines.push(tasks_per_s(
            &format!("growth: tasks/s of {workers} side by side"),
            &measured,
        ));
    }
    for (bytes, name) in PAYLOADS {
        let plan = Plan {
            payload: bytes,
            ..plan.clone()
        };
        let load = plan.load(&broker, Job::Echo { bytes });
        let measured = duel(&plan, stage, &broker, [&bare(), &worker(&[])], &load).await?;
        lines.push(tasks_per_s(&format!("growth: tasks/s with {name}"), &measured));
    }
    if plan.long {
        let mut load = plan.load(&broker, Job::Echo { bytes: plan.payload });
        load.until = Until::Count(plan.many);
        load.warm_up = Duration::ZERO;
        let measured = round(plan, stage, &broker, &worker(&[]), load).await?;
        // The first tenth warms up.
        let (early, late) = (measured.tenths[1], measured.tenths[9]);
        let what = format!(
            "growth: tasks/s in the last tenth of {} against the second",
            plan.many
        );
        lines.push(Line::duel(what, &[early], &[late], Goal::RatioAtLeast(0.90)));
    }
    Ok(lines)
}

fn tasks_per_s(what: &str, [bare, worker]: &[Vec<Measured>; 2]) -> Line {
    let figure = |measured: &Measured| measured.tasks_per_s;
    Line::duel(
        what,
        &figures(bare, figure),
        &figures(worker, figure),
        Goal::Shown,
    )
}

async fn side_by_side(
    plan: &Plan,
    stage: &Stage,
    broker: &Broker,
    contender: &Contender,
    count: usize,
) -> Result<Measured> {
    streams::renew(&jetstream::new(async_nats::connect(&broker.url).await?)).await?;
    let mut load = plan.load(broker, Job::Echo { bytes: plan.payload });
    let mut processes = Vec::new();
    for number in 0..count {
        let process = stage.contender(broker, contender).await?;
        load.watched.push((format!("worker {number}"), process.pid));
        processes.push(process);
    }
    let measured = Generator::start(load).await?.measure().await?;
    for process in processes {
        process.end().await?;
    }
    checked(plan, contender, measured)
}
