//! The rows of the table: who does what, and what is to be reached.
//!
//! Neighbours: the comparison calls [`run`]; [`super::stage`] has the processes.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::Plan;
use super::report::{Goal, Line, table};
use super::stage::{Broker, Contender, Stage};
use crate::assignment::{Job, Shape};
use crate::generator::{Generator, Load, Measured, Pace, Until};
use crate::streams;

/// Silence after which what is unanswered is missing.
const PATIENCE: Duration = Duration::from_secs(10);

/// All rows, in the order of the table.
const ROWS: [&str; 1] = ["echo"];

/// Runs the rows that the plan names, and prints the table.
///
/// # Errors
/// When one cannot be measured, or an answer is missing or came twice.
pub async fn run(plan: &Plan, stage: &Stage) -> Result<()> {
    let named: Vec<&str> = plan.rows.iter().map(String::as_str).collect();
    if let Some(unknown) = named.iter().find(|row| !ROWS.contains(row)) {
        bail!("there is no row {unknown}: there are {}", ROWS.join(", "));
    }
    let mut lines = Vec::new();
    for row in ROWS.iter().filter(|row| named.is_empty() || named.contains(row)) {
        eprintln!("== {row}");
        lines.extend(match *row {
            _ => echo(plan, stage).await?,
        });
    }
    print!("{}", table(&lines, plan.markdown));
    Ok(())
}

impl Plan {
    /// As fast as possible.
    fn load(&self, broker: &Broker, job: Job) -> Load {
        Load {
            url: broker.url.clone(),
            mix: vec![(job, 1)],
            shape: Shape::default(),
            pace: Pace::Window(self.window),
            until: Until::Elapsed(Duration::from_secs_f64(self.seconds)),
            warm_up: Duration::from_secs_f64(self.warm_up),
            confirm: false,
            patience: PATIENCE,
            watched: vec![("broker".to_owned(), broker.process.pid)],
        }
    }
}

/// One contender under one load, beside an empty store.
async fn round(
    plan: &Plan,
    stage: &Stage,
    broker: &Broker,
    contender: &Contender,
    load: Load,
) -> Result<Measured> {
    let client = async_nats::connect(&broker.url).await?;
    streams::renew(&async_nats::jetstream::new(client)).await?;
    let (process, _) = stage.contender(broker, contender).await?;
    let mut load = load;
    load.watched.push(("worker".to_owned(), process.pid));
    let measured = Generator::start(load).await?.measure().await?;
    process.end().await?;
    if plan.verbose {
        eprintln!("{}", serde_json::to_string(&measured)?);
    }
    let totals = &measured.totals;
    ensure!(
        totals.missing == 0 && totals.duplicated == 0 && totals.acks_missing == 0,
        "{contender:?} lost or repeated answers: {totals:?}"
    );
    Ok(measured)
}

/// The same load for two contenders in turn.
async fn duel(
    plan: &Plan,
    stage: &Stage,
    broker: &Broker,
    contenders: [&Contender; 2],
    load: &Load,
) -> Result<[Vec<Measured>; 2]> {
    let mut measured = [Vec::new(), Vec::new()];
    for _ in 0..plan.rounds {
        for (contender, measured) in contenders.iter().zip(&mut measured) {
            measured.push(round(plan, stage, broker, contender, load.clone()).await?);
        }
    }
    Ok(measured)
}

/// One figure of all rounds.
fn figures(measured: &[Measured], figure: impl Fn(&Measured) -> f64) -> Vec<f64> {
    measured.iter().map(figure).collect()
}

fn cpu(of: &'static str) -> impl Fn(&Measured) -> f64 {
    move |measured| {
        measured
            .used
            .get(of)
            .map_or(f64::NAN, |used| used.cpu_us_per_task)
    }
}

/// Tasks per second, and processor time per task of everybody.
fn throughput(what: &str, [bare, worker]: &[Vec<Measured>; 2], least: f64, most_cpu: Goal) -> Vec<Line> {
    let line = |name: &str, figure: &dyn Fn(&Measured) -> f64, goal| {
        Line::duel(
            format!("{what}: {name}"),
            &figures(bare, figure),
            &figures(worker, figure),
            goal,
        )
    };
    vec![
        line(
            "tasks/s",
            &|measured| measured.tasks_per_s,
            Goal::RatioAtLeast(least),
        ),
        line("µs CPU per task", &cpu("worker"), most_cpu),
        line("µs CPU of the broker per task", &cpu("broker"), Goal::Shown),
        line("µs CPU of the generator per task", &cpu("generator"), Goal::Shown),
    ]
}

async fn echo(plan: &Plan, stage: &Stage) -> Result<Vec<Line>> {
    let broker = stage.broker().await?;
    let load = plan.load(&broker, Job::Echo { bytes: plan.payload });
    let contenders = [&Contender::Bare(vec![]), &Contender::Worker(vec![])];
    let measured = duel(plan, stage, &broker, contenders, &load).await?;
    Ok(throughput("echo", &measured, 0.90, Goal::RatioAtMost(2.0)))
}
