//! Contenders in turn beside the same broker, in one run: A B A B, so that what drifts hits all alike.
//!
//! Neighbours: [`stage`] starts and ends the processes, [`rows`] says what is compared, [`report`] prints it. Ratios are
//! taken within a round; what is shown is their median.

pub mod report;
pub mod rows;
pub mod stage;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use self::stage::Stage;

/// Where everything is.
#[derive(Debug, Clone, Args)]
pub struct Programs {
    /// Program of the worker.
    #[arg(long)]
    pub worker: PathBuf,
    /// Program of the broker.
    #[arg(long)]
    pub broker: PathBuf,
    /// The worker's sources, for config/.
    #[arg(long)]
    pub root: PathBuf,
}

/// What is compared, and how long.
#[derive(Debug, Clone, Args)]
pub struct Plan {
    /// Rows: echo, fleet, core, http, backlog, latency, memory, start, growth, flags; all without.
    pub rows: Vec<String>,
    #[command(flatten)]
    programs: Programs,
    /// Rounds of each row.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// How long each contender is measured in each round, in seconds.
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// What is not measured before, in seconds.
    #[arg(long, default_value_t = 1.0)]
    pub warm_up: f64,
    /// Most unanswered assignments.
    #[arg(long, default_value_t = 2000)]
    pub window: usize,
    /// Bytes of a job's payload.
    #[arg(long, default_value_t = 1024)]
    pub payload: usize,
    /// Assignments of the row backlog.
    #[arg(long, default_value_t = 30_000)]
    pub backlog: usize,
    /// Also what takes long: 10 minutes of full load, 1,000,000 tasks.
    #[arg(long)]
    pub long: bool,
    /// Minutes of full load, with --long.
    #[arg(long, default_value_t = 10.0)]
    pub soak_minutes: f64,
    /// Tasks of the longest runs, with --long.
    #[arg(long, default_value_t = 1_000_000)]
    pub many: usize,
    /// Prints Markdown, as BENCHMARKS.md holds it.
    #[arg(long)]
    pub markdown: bool,
    /// Prints every round as a line of JSON, on standard error.
    #[arg(long)]
    pub verbose: bool,
}

/// Runs the plan; ends all processes however it ends.
///
/// # Errors
/// When something does not start, a signal comes, or an answer is missing.
pub async fn run(plan: Plan) -> Result<()> {
    until_told(async {
        let stage = Stage::new(&plan.programs)?;
        rows::run(&plan, &stage).await
    })
    .await
}

/// Does it, unless a signal comes first: then everything that it holds is dropped.
///
/// # Errors
/// Its own, or that a signal came.
pub async fn until_told<T>(whole: impl Future<Output = Result<T>>) -> Result<T> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let local = LocalSet::new();
    tokio::select! {
        done = local.run_until(whole) => done,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("told to end"),
    }
}
