//! LOAD-001 to LOAD-007 of contract 9.1 as runs that pass or fail.
//!
//! Neighbours: `scripts/load.sh` runs them; [`crate::generator`] and [`crate::compare::stage`] do the work. Bodies above
//! 1 MiB travel as data of the HTTP call: the assignment refers to them (`job.payload_ref`), and the worker sends them on.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use async_nats::jetstream;
use clap::Args;

use crate::assignment::{Job, Shape};
use crate::compare::stage::{Contender, Stage};
use crate::compare::{Programs, until_told};
use crate::generator::{Generator, Load, Measured, Pace, Until};
use crate::streams;

/// Silence after which what is unanswered is missing: longer than the longest deadline but that of LOAD-004, whose jobs
/// come one after the other.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the offered rate so much must be answered in time; the first and the last are cut off by the measuring itself.
const EDGE: f64 = 0.99;

/// What is run.
#[derive(Debug, Clone, Args)]
pub struct LoadPlan {
    /// Scenarios, e.g. LOAD-001; all without.
    pub scenarios: Vec<String>,
    #[command(flatten)]
    programs: Programs,
    /// Durations and rates of the contract, in place of a few seconds.
    #[arg(long)]
    pub full: bool,
    /// Length of each scenario, in seconds, without --full.
    #[arg(long, default_value_t = 6.0)]
    pub seconds: f64,
}

/// One scenario of the contract.
struct Scenario {
    id: &'static str,
    what: &'static str,
    /// Assignments per second and length of the contract.
    rate: f64,
    seconds: f64,
    /// Assignments per second of the short form, where one machine cannot do more.
    short_rate: Option<f64>,
    timeout_ms: u64,
    max_attempts: u32,
    settings: Vec<(&'static str, &'static str)>,
    mix: fn(&str) -> Vec<(Job, usize)>,
    expected: Vec<Expected>,
}

/// What is to come of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Expected {
    /// Share of successes, in percent.
    OkPercentAtLeast(f64),
    /// Successes per second, as a share of the offered rate.
    RateShareAtLeast(f64),
    /// Of successes and failures, in milliseconds.
    P95Below(f64),
    P99Below(f64),
    /// Failures have this code, all of them.
    FailuresAre(&'static str),
    /// Share of refusals, in percent: some, and fewer.
    RefusedPercentBelow(f64),
    /// Deepest queue that an answer tells of.
    QueueAtMost(u64),
}

/// Runs the scenarios and prints what was expected, what was measured, and whether it passed.
///
/// # Errors
/// When one failed or could not be run.
pub async fn run(plan: LoadPlan) -> Result<()> {
    let all = scenarios();
    if let Some(unknown) = plan
        .scenarios
        .iter()
        .find(|id| all.iter().all(|known| known.id != **id))
    {
        bail!("there is no scenario {unknown}: there are LOAD-001 to LOAD-007");
    }
    let named =
        |scenario: &&Scenario| plan.scenarios.is_empty() || plan.scenarios.iter().any(|id| id == scenario.id);
    let failed = until_told(async {
        let stage = Stage::new(&plan.programs)?;
        let mut failed = 0;
        for scenario in all.iter().filter(named) {
            failed += usize::from(!scenario.run(&stage, &plan).await?);
        }
        Ok(failed)
    })
    .await?;
    ensure!(failed == 0, "{failed} scenarios failed");
    Ok(())
}

impl Scenario {
    /// Whether all came as expected; prints it.
    async fn run(&self, stage: &Stage, plan: &LoadPlan) -> Result<bool> {
        let (rate, seconds) = match (plan.full, self.short_rate) {
            (true, _) => (self.rate, self.seconds),
            (false, short) => (short.unwrap_or(self.rate), plan.seconds.min(self.seconds)),
        };
        println!("{} {}: {rate}/s for {seconds} s", self.id, self.what);
        let broker = stage.broker().await?;
        let (_web, port) = stage.web().await?;
        let settings = self
            .settings
            .iter()
            .map(|(key, value)| (*key, (*value).to_owned()));
        let usual = [("blocks.http.allow_targets", "127.0.0.1".to_owned())];
        let worker = Contender::Worker(usual.into_iter().chain(settings).collect());
        streams::renew(&jetstream::new(async_nats::connect(&broker.url).await?)).await?;
        let process = stage.contender(&broker, &worker).await?;
        let load = Load {
            url: broker.url.clone(),
            mix: (self.mix)(&format!("http://127.0.0.1:{port}")),
            shape: Shape {
                deadline_ms: self.timeout_ms,
                max_attempts: self.max_attempts,
                ..Shape::default()
            },
            pace: Pace::Rate(rate),
            until: Until::Elapsed(Duration::from_secs_f64(seconds)),
            warm_up: Duration::ZERO,
            confirm: false,
            patience: PATIENCE,
            watched: vec![("worker".to_owned(), process.pid)],
        };
        let measured = Generator::start(load).await?.measure().await?;
        // Fails when it has crashed.
        process.end().await?;
        let mut passed = told("every assignment answered once", complete(&measured));
        for expected in &self.expected {
            passed &= told(&expected.words(), expected.judge(&measured, rate, seconds));
        }
        Ok(passed)
    }
}

/// Prints one line of the table; whether it passed.
fn told(expected: &str, (measured, passed): (String, bool)) -> bool {
    let verdict = if passed { "pass" } else { "FAIL" };
    println!("  {verdict}  expected {expected}; measured {measured}");
    passed
}

fn complete(measured: &Measured) -> (String, bool) {
    let totals = &measured.totals;
    let words = format!(
        "{} sent, {} missing, {} twice, {:?}",
        totals.sent, totals.missing, totals.duplicated, totals.statuses
    );
    (
        words,
        totals.missing == 0 && totals.duplicated == 0 && totals.answered > 0,
    )
}

impl Expected {
    fn words(self) -> String {
        match self {
            Self::OkPercentAtLeast(least) => format!("at least {least} % ok"),
            Self::RateShareAtLeast(share) => format!("at least {:.0} % of the rate", share * 100.0),
            Self::P95Below(ms) => format!("p95 below {ms} ms"),
            Self::P99Below(ms) => format!("p99 below {ms} ms"),
            Self::FailuresAre(code) => format!("failures with {code} only"),
            Self::RefusedPercentBelow(most) => format!("some refused, fewer than {most} %"),
            Self::QueueAtMost(most) => format!("a queue of at most {most}"),
        }
    }

    /// What was measured, and whether it is as expected.
    fn judge(self, measured: &Measured, rate: f64, seconds: f64) -> (String, bool) {
        let totals = &measured.totals;
        let of = |status: &str| totals.statuses.get(status).copied().unwrap_or(0);
        let percent = |part: usize| part as f64 * 100.0 / totals.sent.max(1) as f64;
        let refused = totals.acks.get("rejected").copied().unwrap_or(0);
        match self {
            Self::OkPercentAtLeast(least) => {
                let ok = percent(of("success"));
                (format!("{ok:.2} %"), ok >= least)
            }
            Self::RateShareAtLeast(share) => {
                let per_s = of("success") as f64 / measured.active_s.max(seconds);
                (format!("{per_s:.1}/s"), per_s >= rate * share)
            }
            Self::P95Below(ms) => (
                format!("{:.1} ms", measured.latency.p95_ms),
                measured.latency.p95_ms < ms,
            ),
            Self::P99Below(ms) => (
                format!("{:.1} ms", measured.latency.p99_ms),
                measured.latency.p99_ms < ms,
            ),
            Self::FailuresAre(code) => {
                let others = totals.statuses.keys().filter(|status| *status != "success");
                let strange: Vec<_> = others.filter(|status| !status.ends_with(code)).collect();
                (format!("others: {strange:?}"), strange.is_empty())
            }
            Self::RefusedPercentBelow(most) => {
                let share = percent(refused);
                (
                    format!("{refused} refused, {share:.2} %"),
                    refused > 0 && share < most,
                )
            }
            Self::QueueAtMost(most) => {
                let deepest = totals.deepest_queue;
                (format!("{deepest}"), deepest <= most)
            }
        }
    }
}

fn small(target: &str) -> Vec<(Job, usize)> {
    vec![(
        Job::Http {
            url: format!("{target}/any"),
            bytes: 1024,
        },
        1,
    )]
}

/// `megabytes` that the worker fetches and sends on.
fn large(target: &str, megabytes: usize) -> Vec<(Job, usize)> {
    vec![(
        Job::Referred {
            uri: format!("{target}/payload/{}", megabytes << 20),
        },
        1,
    )]
}

fn mixed(target: &str) -> Vec<(Job, usize)> {
    let sizes = [(1 << 10, 5), (10 << 10, 3), (1_000_000, 2)];
    let kinds = sizes.into_iter().flat_map(|(bytes, weight)| {
        let url = format!("{target}/any");
        [
            (Job::Http { url, bytes }, 7 * weight),
            (Job::Put { bytes }, 3 * weight),
        ]
    });
    kinds.collect()
}

/// So that what is measured is the work and not the queue.
const ROOMY: [(&str, &str); 1] = [("pools.io.max_concurrency", "64")];
/// Room for bodies of 128 MiB.
const LARGE: [(&str, &str); 4] = [
    ("limits.max_payload_ref_bytes", "134217728"),
    ("blocks.http.max_response_bytes", "134217728"),
    ("blocks.http.max_request_bytes", "134217728"),
    ("pools.io.max_concurrency", "4"),
];

fn scenarios() -> Vec<Scenario> {
    use Expected::{
        FailuresAre, OkPercentAtLeast, P95Below, P99Below, QueueAtMost, RateShareAtLeast, RefusedPercentBelow,
    };
    let scenario =
        |id, what, rate, seconds, timeout_ms, max_attempts, settings: &[_], mix, expected| Scenario {
            id,
            what,
            rate,
            seconds,
            short_rate: None,
            timeout_ms,
            max_attempts,
            settings: settings.to_vec(),
            mix,
            expected,
        };
    let overload = FailuresAre("SYSTEM_OVERLOAD");
    let exhausted = FailuresAre("RESOURCE_UNAVAILABLE");
    vec![
        scenario(
            "LOAD-001",
            "HTTP, 1 KB",
            200.0,
            60.0,
            30_000,
            1,
            &ROOMY,
            small,
            vec![
                OkPercentAtLeast(100.0),
                RateShareAtLeast(EDGE),
                P95Below(1000.0),
                P99Below(2000.0),
            ],
        ),
        scenario(
            "LOAD-002",
            "HTTP, 1 KB",
            500.0,
            60.0,
            30_000,
            1,
            &ROOMY,
            small,
            vec![
                OkPercentAtLeast(95.0),
                overload,
                RateShareAtLeast(0.8),
                P95Below(2000.0),
            ],
        ),
        scenario(
            "LOAD-003",
            "HTTP, 10 MB",
            10.0,
            60.0,
            60_000,
            1,
            &LARGE,
            |target| large(target, 10),
            vec![OkPercentAtLeast(100.0), P95Below(5000.0), P99Below(10_000.0)],
        ),
        Scenario {
            // 50/s would be 10 GB/s through the loopback of one machine, with fetching and sending.
            short_rate: Some(1.0),
            ..scenario(
                "LOAD-004",
                "HTTP, 100 MB",
                50.0,
                60.0,
                120_000,
                1,
                &LARGE,
                |target| large(target, 100),
                vec![OkPercentAtLeast(90.0), exhausted, P95Below(30_000.0)],
            )
        },
        scenario(
            "LOAD-005",
            "1 KB, 10 KB and 1 MB, HTTP and files",
            100.0,
            120.0,
            30_000,
            3,
            &ROOMY,
            mixed,
            vec![OkPercentAtLeast(95.0), RateShareAtLeast(0.9), P95Below(2000.0)],
        ),
        // The server takes 410 ms, so that 400 at once are 975/s at most: a little less than is offered.
        scenario(
            "LOAD-006",
            "HTTP, 1 KB, queue of 100",
            1000.0,
            10.0,
            30_000,
            1,
            &[
                ("queue.admission", "refuse"),
                ("pools.io.max_queue_size", "100"),
                ("pools.io.max_concurrency", "400"),
                ("limits.max_held", "2000"),
            ],
            |target| {
                vec![(
                    Job::Http {
                        url: format!("{target}/slow/410"),
                        bytes: 1024,
                    },
                    1,
                )]
            },
            vec![RefusedPercentBelow(10.0), overload, QueueAtMost(100)],
        ),
        scenario(
            "LOAD-007",
            "HTTP, 1 KB, 10 at once",
            200.0,
            300.0,
            30_000,
            4,
            &[
                ("queue.admission", "refuse"),
                ("pools.io.max_queue_size", "1000"),
                ("pools.io.max_concurrency", "10"),
            ],
            small,
            vec![OkPercentAtLeast(90.0), exhausted, QueueAtMost(1000)],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(ok: usize, refused: usize) -> Measured {
        let mut measured = Measured::default();
        measured.totals.sent = ok + refused;
        measured.totals.answered = ok + refused;
        measured.totals.statuses.insert("success".to_owned(), ok);
        measured
            .totals
            .statuses
            .insert("error SYSTEM_OVERLOAD".to_owned(), refused);
        measured.totals.acks.insert("rejected".to_owned(), refused);
        measured
    }

    #[test]
    fn what_is_expected_is_judged_by_what_was_measured() {
        use Expected::*;
        let some = measured(95, 5);
        let judge = |expected: Expected, measured: &Measured| expected.judge(measured, 100.0, 1.0).1;
        assert!(judge(OkPercentAtLeast(95.0), &some) && !judge(OkPercentAtLeast(96.0), &some));
        assert!(judge(RateShareAtLeast(0.95), &some) && !judge(RateShareAtLeast(0.99), &some));
        assert!(judge(FailuresAre("SYSTEM_OVERLOAD"), &some) && !judge(FailuresAre("QUOTA_EXCEEDED"), &some));
        assert!(judge(RefusedPercentBelow(10.0), &some) && !judge(RefusedPercentBelow(5.0), &some));
        // None refused is not what an overload brings.
        assert!(!judge(RefusedPercentBelow(10.0), &measured(100, 0)));
        assert!(complete(&some).1 && !complete(&Measured::default()).1);
    }

    #[test]
    fn the_mix_of_the_fifth_has_the_shares_of_the_contract() {
        let mix = mixed("http://x");
        let share = |wanted: fn(&Job) -> bool| -> usize {
            mix.iter()
                .filter(|(job, _)| wanted(job))
                .map(|(_, weight)| weight)
                .sum()
        };
        assert_eq!(
            (share(|_| true), share(|job| matches!(job, Job::Http { .. }))),
            (100, 70)
        );
    }
}
