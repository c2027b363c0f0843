//! Command line of the load generator, the bare loop and the comparison.
//!
//! Neighbours: everything is in the library; here options become values.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use caf_bench::assignment::{Job, Shape};
use caf_bench::bare::Bare;
use caf_bench::compare::{self, Plan};
use caf_bench::generator::{self, Load, Pace, Until};
use caf_bench::scenarios::{self, LoadPlan};
use caf_bench::{streams, web};
use clap::{Args, Parser, Subcommand};
use tokio::net::TcpListener;

/// Measures the worker beside a bare loop.
#[derive(Parser)]
#[command(name = "caf-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sends assignments, reads the answers, prints what was measured as JSON.
    Generate(Generate),
    /// The smallest honest worker, until it is ended.
    Bare(BareOptions),
    /// HTTP server for jobs to call; prints its port.
    Web,
    /// Takes all streams of a broker away and makes those of assignments and results anew.
    Renew {
        /// The broker.
        #[arg(long)]
        url: String,
    },
    /// Starts broker and contenders in turn, and prints the rows of BENCHMARKS.md.
    Compare(Plan),
    /// LOAD-001 to LOAD-007: what was expected, what was measured, pass or fail.
    Load(LoadPlan),
}

#[derive(Args)]
struct Generate {
    /// The broker.
    #[arg(long)]
    url: String,
    /// Jobs and their weights, e.g. echo:1024=7,put:1024=3; echo:BYTES, sleep:MS, http:BYTES, put:BYTES.
    #[arg(long, default_value = "echo:1024=1", value_delimiter = ',')]
    mix: Vec<String>,
    /// What http jobs call.
    #[arg(long, default_value = "http://127.0.0.1:8080/any")]
    target: String,
    /// Assignments per second; as fast as possible without.
    #[arg(long)]
    rate: Option<f64>,
    /// Most unanswered assignments, when as fast as possible.
    #[arg(long, default_value_t = 2000)]
    window: usize,
    /// How long to send, in seconds, after warming up.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How many to send, in place of seconds.
    #[arg(long)]
    count: Option<usize>,
    /// Puts so many into the stream first, says "filled" on standard error, and measures how they are drained by a worker
    /// that begins then.
    #[arg(long)]
    prefill: Option<usize>,
    /// What is not measured at the beginning, in seconds.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Has JetStream confirm each assignment.
    #[arg(long)]
    confirm: bool,
    /// Tenant of all assignments.
    #[arg(long, default_value = "acme")]
    tenant: String,
    /// Relative deadline of all assignments, in milliseconds.
    #[arg(long, default_value_t = 30_000)]
    deadline_ms: u64,
    /// Total calls of each job.
    #[arg(long, default_value_t = 2)]
    max_attempts: u32,
    /// Silence after which what is unanswered is missing, in seconds.
    #[arg(long, default_value_t = 10.0)]
    patience: f64,
    /// Processes to watch, e.g. worker=4711; may be repeated.
    #[arg(long)]
    watch: Vec<String>,
}

#[derive(Args)]
struct BareOptions {
    /// The broker.
    #[arg(long)]
    url: String,
    /// Plain queue subscription in place of JetStream.
    #[arg(long)]
    core: bool,
    /// HTTP calls at once.
    #[arg(long, default_value_t = 64)]
    calls: usize,
    /// Leaves every n-th assignment unanswered: to see whether it is noticed.
    #[arg(long, default_value_t = 0)]
    drop_every: usize,
    /// Answers every n-th assignment twice.
    #[arg(long, default_value_t = 0)]
    double_every: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Generate(options) => {
            let load = options.load()?;
            let measured = match options.prefill {
                Some(count) => generator::drain(load, count, || eprintln!("filled")).await?,
                None => generator::run(load).await?,
            };
            println!("{}", serde_json::to_string_pretty(&measured)?);
            Ok(())
        }
        Command::Bare(options) => options.bare().run().await,
        Command::Web => {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            println!("{}", listener.local_addr()?.port());
            web::serve(listener).await
        }
        Command::Renew { url } => {
            let client = async_nats::connect(&url).await?;
            streams::renew(&async_nats::jetstream::new(client)).await
        }
        Command::Compare(plan) => compare::run(plan).await,
        Command::Load(plan) => scenarios::run(plan).await,
    }
}

impl Generate {
    fn load(&self) -> Result<Load> {
        let mix = self.mix.iter().map(|word| kind_of_job(word, &self.target));
        let watched = self.watch.iter().map(|word| {
            let (name, pid) = word.split_once('=').context("--watch is NAME=PID")?;
            Ok((name.to_owned(), pid.parse()?))
        });
        Ok(Load {
            url: self.url.clone(),
            mix: mix.collect::<Result<_>>()?,
            shape: Shape {
                tenant: self.tenant.clone(),
                deadline_ms: self.deadline_ms,
                max_attempts: self.max_attempts,
            },
            pace: self.rate.map_or(Pace::Window(self.window), Pace::Rate),
            until: self.count.map_or(
                Until::Elapsed(Duration::from_secs_f64(self.seconds)),
                Until::Count,
            ),
            warm_up: Duration::from_secs_f64(self.warm_up),
            confirm: self.confirm,
            patience: Duration::from_secs_f64(self.patience),
            watched: watched.collect::<Result<_>>()?,
        })
    }
}

/// `KIND:NUMBER=WEIGHT`.
fn kind_of_job(word: &str, target: &str) -> Result<(Job, usize)> {
    let (job, weight) = word.split_once('=').unwrap_or((word, "1"));
    let (kind, number) = job.split_once(':').unwrap_or((job, "0"));
    let bytes = number.parse()?;
    let job = match kind {
        "echo" => Job::Echo { bytes },
        "sleep" => Job::Sleep { ms: number.parse()? },
        "http" => Job::Http {
            url: target.to_owned(),
            bytes,
        },
        "put" => Job::Put { bytes },
        _ => bail!("--mix knows echo, sleep, http and put, not {kind}"),
    };
    Ok((job, weight.parse()?))
}

impl BareOptions {
    fn bare(self) -> Bare {
        Bare {
            url: self.url,
            core: self.core,
            calls: self.calls,
            drop_every: self.drop_every,
            double_every: self.double_every,
        }
    }
}
