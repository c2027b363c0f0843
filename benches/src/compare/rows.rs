//! The rows of the table: who does what, and what is to be reached.
//!
//! Neighbours: the comparison calls [`run`]; [`super::stage`] has the processes.

mod growth;
mod memory;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::jetstream;
use tokio::time::sleep;

use super::Plan;
use super::report::{Goal, Line, table};
use super::stage::{Broker, Contender, Stage, free_port};
use crate::assignment::{Job, Shape};
use crate::generator::{Generator, Load, Measured, Pace, Until};
use crate::streams;

/// Silence after which what is unanswered is missing.
const PATIENCE: Duration = Duration::from_secs(10);

/// All rows, in the order of the table.
const ROWS: [&str; 10] = [
    "echo", "fleet", "core", "http", "backlog", "latency", "memory", "start", "growth", "flags",
];
/// Jobs of the row `http` that run at once.
const CALLS: usize = 64;
/// Most payload bytes that are on their way at once, whatever the window: as much as a worker holds.
const WINDOW_BYTES: usize = 48 * 1024 * 1024;
/// In core mode nobody holds what a worker has no room for: no more than it holds.
const CORE_WINDOW: usize = 900;
/// Assignments that wait while the peak of memory is looked at, at most four times a backlog.
const CROWD: usize = 100_000;

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
        let of_row = match *row {
            "echo" => echo(plan, stage).await,
            "fleet" => fleet(plan, stage).await,
            "core" => core(plan, stage).await,
            "http" => http(plan, stage).await,
            "backlog" => backlog(plan, stage).await,
            "latency" => latency(plan, stage).await,
            "memory" => memory::run(plan, stage).await,
            "start" => start(plan, stage).await,
            "growth" => growth::run(plan, stage).await,
            _ => flags(plan, stage).await,
        };
        let of_row = of_row.with_context(|| format!("row {row}"))?;
        eprint!("{}", table(&of_row, false));
        lines.extend(of_row);
    }
    print!("{}", table(&lines, plan.markdown));
    Ok(())
}

impl Plan {
    /// As fast as possible.
    pub(super) fn load(&self, broker: &Broker, job: Job) -> Load {
        Load {
            url: broker.url.clone(),
            mix: vec![(job, 1)],
            shape: Shape::default(),
            pace: Pace::Window(self.window.min(WINDOW_BYTES / self.payload.max(1)).max(4)),
            until: Until::Elapsed(Duration::from_secs_f64(self.seconds)),
            warm_up: Duration::from_secs_f64(self.warm_up),
            confirm: false,
            patience: PATIENCE,
            watched: vec![("broker".to_owned(), broker.process.pid)],
        }
    }
}

/// One contender under one load, beside an empty store.
pub(super) async fn round(
    plan: &Plan,
    stage: &Stage,
    broker: &Broker,
    contender: &Contender,
    load: Load,
) -> Result<Measured> {
    let jetstream = jetstream::new(async_nats::connect(&broker.url).await?);
    if contender.is_durable() {
        streams::renew(&jetstream).await?;
    } else {
        streams::clear(&jetstream).await?;
    }
    let process = stage.contender(broker, contender).await?;
    let mut load = load;
    load.watched.push(("worker".to_owned(), process.pid));
    let measured = Generator::start(load).await?.measure().await?;
    process.end().await?;
    checked(plan, contender, measured)
}

/// Only what is complete is a measurement.
fn checked(plan: &Plan, contender: &Contender, measured: Measured) -> Result<Measured> {
    if plan.verbose {
        eprintln!("{}", serde_json::to_string(&measured)?);
    }
    let totals = &measured.totals;
    ensure!(
        totals.missing == 0 && totals.duplicated == 0 && totals.acks_missing == 0 && totals.answered > 0,
        "{contender:?} lost or repeated answers: {totals:?}"
    );
    Ok(measured)
}

/// The same load for two contenders in turn.
pub(super) async fn duel(
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
pub(super) fn figures(measured: &[Measured], figure: impl Fn(&Measured) -> f64) -> Vec<f64> {
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

pub(super) fn bare() -> Contender {
    Contender::Bare(vec![])
}

pub(super) fn worker(settings: &[(&'static str, &str)]) -> Contender {
    let settings = settings.iter().map(|(key, value)| (*key, (*value).to_owned()));
    Contender::Worker(settings.collect())
}

async fn echo(plan: &Plan, stage: &Stage) -> Result<Vec<Line>> {
    let broker = stage.broker().await?;
    let load = plan.load(&broker, Job::Echo { bytes: plan.payload });
    let measured = duel(plan, stage, &broker, [&bare(), &worker(&[])], &load).await?;
    Ok(throughput("echo", &measured, 0.90, Goal::RatioAtMost(2.0)))
}

/// Claims in the broker for the whole fleet. The outbox is durable in every row.
async fn fleet(plan: &Plan, stage: &Stage) -> Result<Vec<Line>> {
    let broker = stage.broker().await?;
    let load = plan.load(&broker, Job::Echo { bytes: plan.payload });
    let fleet = worker(&[("idempotency.scope", "fleet")]);
    let measured = duel(plan, stage, &broker, [&bare(), &fleet], &load).await?;
    Ok(throughput("echo, fleet", &measured, 0.50, Goal::Shown))
}

async fn core(plan: &Plan, stage: &Stage) -> Result<Vec<Line>> {
    let broker = stage.broker().await?;
    let mut load = plan.load(&broker, Job::Echo { bytes: plan.payload });
    load.pace = Pace::Window(plan.window.min(CORE_WINDOW));
    let contenders = [
        &Contender::Bare(vec!["--core"]),
        &worker(&[("nats.mode", "core")]),
    ];
    let measured = duel(plan, stage, &broker, contenders, &load).await?;
    Ok(throughput("echo, core", &measured, 0.50, Goal::RatioAtMost(3.0)))
}

async fn http(plan: &Plan, stage: &Stage) -> Result<Vec<Line>> {
    let broker = stage.broker().await?;
    let (_web, port) = stage.web().await?;
    let url = format!("http://127.0.0.1:{port}/any");
    let load = plan.load(
        &broker,
        Job::Http {
            url,
            bytes: plan.payload,
        },
    );
    let calls = CALLS.to_string();
    let caller = worker(&[
        ("pools.io.max_concurrency", &calls),
        ("blocks.http.allow_targets", "127.0.0.1"),
    ]);
    let measured = duel(plan, stage, &broker, [&bare(), &caller], &load).await?;
    Ok(throughput(
        "http.request",
        &measured,
        0.90,
        Goal::RatioAtMost(1.5),
    ))
}

async fn backlog(plan: &Plan, stage: &Stage) -> Result<Vec<Line>> {
    let broker = stage.broker().await?;
    let load = plan.load(&broker, Job::Echo { bytes: plan.payload });
    let mut measured = [Vec::new(), Vec::new()];
    for _ in 0..plan.rounds {
        for (contender, measured) in [bare(), worker(&[])].iter().zip(&mut measured) {
            measured.push(drained(plan, stage, &broker, contender, &load, plan.backlog).await?);
        }
    }
    Ok(throughput("backlog", &measured, 0.90, Goal::Shown))
}

/// Puts assignments into the stream first, and starts the contender then. Its processor time includes its start.
pub(super) async fn drained(
    plan: &Plan,
    stage: &Stage,
    broker: &Broker,
    contender: &Contender,
    load: &Load,
    count: usize,
) -> Result<Measured> {
    let jetstream = jetstream::new(async_nats::connect(&broker.url).await?);
    streams::renew(&jetstream).await?;
    let generator = Generator::start(load.clone()).await?;
    generator.prefill(count).await?;
    let process = stage.contender(broker, contender).await?;
    let measured = generator.drain(vec![("worker".to_owned(), process.pid)]).await?;
    process.end().await?;
    checked(plan, contender, measured)
}

async fn latency(plan: &Plan, stage: &Stage) -> Result<Vec<Line>> {
    let broker = stage.broker().await?;
    let mut lines = Vec::new();
    for rate in [200.0, 1000.0] {
        let mut load = plan.load(&broker, Job::Echo { bytes: plan.payload });
        load.pace = Pace::Rate(rate);
        let [bare, worker] = duel(plan, stage, &broker, [&bare(), &worker(&[])], &load).await?;
        let mut line = |name: &str, figure: &dyn Fn(&Measured) -> f64, goal| {
            let what = format!("latency at {rate}/s: {name}, ms");
            lines.push(Line::duel(
                what,
                &figures(&bare, figure),
                &figures(&worker, figure),
                goal,
            ));
        };
        line("p50", &|measured| measured.latency.p50_ms, Goal::RatioAtMost(1.4));
        line("p95", &|measured| measured.latency.p95_ms, Goal::Shown);
        line("p99", &|measured| measured.latency.p99_ms, Goal::RatioAtMost(2.0));
        line("longest", &|measured| measured.latency.max_ms, Goal::Shown);
    }
    Ok(lines)
}

/// From the execution of the worker to the answer "ready": beside a broker that has nothing of it, and again when all is
/// there; and from the first connection that a broker takes, when the worker was there before it.
async fn start(plan: &Plan, stage: &Stage) -> Result<Vec<Line>> {
    let (mut first, mut again, mut after) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let broker = stage.broker().await?;
        for measured in [&mut first, &mut again] {
            let since = Instant::now();
            let (process, health) = stage.worker(&broker.url, &[])?;
            process.ready(health).await?;
            measured.push(since.elapsed().as_secs_f64() * 1e3);
            process.end().await?;
        }
        let port = free_port()?;
        let (process, health) = stage.worker(&format!("nats://127.0.0.1:{port}"), &[])?;
        // Long enough for the worker to have asked in vain.
        sleep(Duration::from_secs(1)).await;
        let _broker = stage.broker_on(port).await?;
        let since = Instant::now();
        process.ready(health).await?;
        after.push(since.elapsed().as_secs_f64() * 1e3);
        process.end().await?;
    }
    let line = |what: &str, measured: &[f64]| {
        Line::alone(
            format!("start: ready, ms after {what}"),
            measured,
            Goal::AtMost(50.0),
        )
    };
    Ok(vec![
        line("exec, first start beside a broker", &first),
        line("exec, streams and consumer are there", &again),
        line("the broker came, first start", &after),
    ])
}

/// What metrics and logs cost: without, as the base, against with.
async fn flags(plan: &Plan, stage: &Stage) -> Result<Vec<Line>> {
    let broker = stage.broker().await?;
    let load = plan.load(&broker, Job::Echo { bytes: plan.payload });
    let mut lines = Vec::new();
    let without = [
        ("metrics", worker(&[("worker.metrics.enabled", "false")])),
        ("logs", worker(&[("log.level", "error")])),
    ];
    for (what, without) in without {
        let [without, with] = duel(plan, stage, &broker, [&without, &worker(&[])], &load).await?;
        let mut line = |name: &str, figure: &dyn Fn(&Measured) -> f64, goal| {
            let what = format!("{what} off against on: {name}");
            lines.push(Line::duel(
                what,
                &figures(&without, figure),
                &figures(&with, figure),
                goal,
            ));
        };
        line(
            "tasks/s",
            &|measured| measured.tasks_per_s,
            Goal::RatioAtLeast(0.95),
        );
        line("µs CPU per task", &cpu("worker"), Goal::Shown);
    }
    Ok(lines)
}
