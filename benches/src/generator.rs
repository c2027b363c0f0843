//! Plays the router under load: sends assignments, reads what comes back, and counts.
//!
//! Neighbours: [`crate::assignment`] renders, [`crate::tally`] counts, [`crate::process`] tells what others used meanwhile.
//! One thread, no log: it shares the machine with what it measures, and says what it used itself.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::message::PublishMessage;
use async_nats::{Client, ConnectOptions, jetstream};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::LocalSet;
use tokio::time::{sleep, sleep_until, timeout};

use crate::assignment::{Job, Shape, Template, number_of};
use crate::process::{Usage, usage};
use crate::streams;
use crate::tally::{Latencies, Tally, Totals};

/// Answers that may wait to be read: more than any load has outstanding, so that the client library drops none.
const ANSWERS_AHEAD: usize = 1 << 20;
/// Publishes whose confirmation is waited for.
const UNCONFIRMED: usize = 1000;
/// How often a load looks whether it is over.
const LOOK: Duration = Duration::from_millis(5);
/// What comes twice comes within this time of the last answer.
const ECHO: Duration = Duration::from_millis(200);
/// Assignments that are due and not sent yet, before the pace waits; their times stay what they were.
const DUE_AHEAD: usize = 4096;

/// When a load ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Until {
    /// After so many assignments.
    Count(usize),
    /// After this time.
    Elapsed(Duration),
}

/// How assignments are paced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// As fast as possible, with at most so many unanswered.
    Window(usize),
    /// So many per second, whatever comes back.
    Rate(f64),
}

/// One load.
#[derive(Debug, Clone)]
pub struct Load {
    /// The broker.
    pub url: String,
    /// Jobs and their weights; taken in turn.
    pub mix: Vec<(Job, usize)>,
    /// What all assignments share.
    pub shape: Shape,
    /// How they are paced.
    pub pace: Pace,
    /// When sending ends.
    pub until: Until,
    /// What is sent before counts for nothing but missing and duplicated.
    pub warm_up: Duration,
    /// Whether each publish is confirmed by JetStream, pipelined; the router's are not.
    pub confirm: bool,
    /// Silence after which what is unanswered is missing.
    pub patience: Duration,
    /// Processes to watch, by name.
    pub watched: Vec<(String, u32)>,
}

/// What one process used while a load was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Used {
    /// Processor time per task, in microseconds.
    pub cpu_us_per_task: f64,
    /// When measuring began; nothing of a process that began later.
    pub at_begin: Usage,
    /// When measuring ended.
    pub at_end: Usage,
}

/// What a load came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Measured {
    /// Length of what was measured, in seconds.
    pub seconds: f64,
    /// From the first to the last result, in seconds.
    pub active_s: f64,
    /// First results within it.
    pub tasks: usize,
    /// First results per second.
    pub tasks_per_s: f64,
    /// Of all that were due after warming up.
    pub latency: Latencies,
    /// Tasks per second in each tenth of the whole run.
    pub tenths: Vec<f64>,
    /// Of the whole run.
    #[serde(flatten)]
    pub totals: Totals,
    /// Publishes that JetStream did not confirm, of those that were to be.
    pub unconfirmed: usize,
    /// By name of process; `generator` is this one.
    pub used: BTreeMap<String, Used>,
}

/// What travels back, as far as it is looked at.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    assignment_id: Cow<'a, str>,
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(borrow, default)]
    error_code: Option<Cow<'a, str>>,
    #[serde(default)]
    queue_depth: u64,
}

struct State {
    tally: RefCell<Tally>,
    room: Semaphore,
    unconfirmed: Cell<usize>,
    start: Instant,
    run: u32,
}

impl State {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A run that listens already, and sends when told.
pub struct Generator {
    load: Load,
    client: Client,
    jetstream: jetstream::Context,
    confirmations: mpsc::Sender<PublishAckFuture>,
    state: Rc<State>,
    templates: Vec<Template>,
    turns: Vec<usize>,
}

/// Runs a load from beginning to end.
///
/// # Errors
/// When the broker is not there or a watched process is gone.
pub async fn run(load: Load) -> Result<Measured> {
    let local = LocalSet::new();
    let whole = async {
        let generator = Generator::start(load).await?;
        generator.measure().await
    };
    local.run_until(whole).await
}

/// Puts `count` assignments into the stream, tells when that is done, and measures how somebody drains it who begins
/// then: within the load's patience.
///
/// # Errors
/// When the broker is not there or one is not stored.
pub async fn drain(load: Load, count: usize, filled: impl FnOnce()) -> Result<Measured> {
    let local = LocalSet::new();
    let whole = async {
        let generator = Generator::start(load).await?;
        generator.prefill(count).await?;
        filled();
        generator.drain(vec![]).await
    };
    local.run_until(whole).await
}

impl Generator {
    /// Listens for answers from now on. To be called within a [`LocalSet`].
    ///
    /// # Errors
    /// When the broker is not there.
    pub async fn start(load: Load) -> Result<Self> {
        let client = ConnectOptions::new()
            .subscription_capacity(ANSWERS_AHEAD)
            .connect(&load.url)
            .await
            .with_context(|| format!("no broker at {}", load.url))?;
        let run = fresh_run();
        let window = match load.pace {
            Pace::Window(window) => window,
            Pace::Rate(_) => 0,
        };
        let state = Rc::new(State {
            tally: RefCell::default(),
            room: Semaphore::new(window),
            unconfirmed: Cell::new(0),
            start: Instant::now(),
            run,
        });
        let mut results = client.subscribe(streams::RESULT).await?;
        let mut acks = client.subscribe(streams::ACK).await?;
        client.flush().await?;
        let own = Rc::clone(&state);
        tokio::task::spawn_local(async move {
            while let Some(message) = results.next().await {
                result(&own, &message.payload);
            }
        });
        let own = Rc::clone(&state);
        tokio::task::spawn_local(async move {
            while let Some(message) = acks.next().await {
                ack(&own, &message.payload);
            }
        });
        let templates = load
            .mix
            .iter()
            .map(|(job, _)| Template::new(job, &load.shape, run))
            .collect();
        let turns = turns(&load.mix.iter().map(|(_, weight)| *weight).collect::<Vec<_>>());
        let (confirmations, mut sent) = mpsc::channel::<PublishAckFuture>(UNCONFIRMED);
        let own = Rc::clone(&state);
        tokio::task::spawn_local(async move {
            while let Some(confirmation) = sent.recv().await {
                if confirmation.await.is_err() {
                    own.unconfirmed.update(|count| count + 1);
                }
            }
        });
        let jetstream = jetstream::new(client.clone());
        Ok(Self {
            load,
            client,
            jetstream,
            confirmations,
            state,
            templates,
            turns,
        })
    }

    /// Sends everything and waits for the answers.
    ///
    /// # Errors
    /// When the broker is lost or a watched process is gone.
    pub async fn measure(self) -> Result<Measured> {
        let begin = self.state.now_ns() + ns(self.load.warm_up);
        let warm =
            tokio::task::spawn_local(at(self.state.start + Duration::from_nanos(begin), self.watched()));
        self.send().await?;
        let (end, after) = match self.load.until {
            Until::Elapsed(_) => (self.state.now_ns(), self.usages()?),
            Until::Count(_) => {
                self.settle().await;
                let last = self.state.tally.borrow().span_ns().map_or(0, |span| span.1);
                (last, self.usages()?)
            }
        };
        let before = warm.await??;
        self.settle().await;
        Ok(self.measured(begin, end, &before, &after))
    }

    /// Puts `count` assignments into the stream, each confirmed.
    ///
    /// # Errors
    /// When one is not stored.
    pub async fn prefill(&self, count: usize) -> Result<()> {
        let stored = futures_util::stream::iter(0..count).map(|_| {
            let number = self.state.tally.borrow_mut().sent(self.state.now_ns());
            let publish = PublishMessage::build().payload(self.render(number));
            let jetstream = &self.jetstream;
            async move {
                jetstream.send_publish(streams::ASSIGN, publish).await?.await?;
                anyhow::Ok(())
            }
        });
        let mut stored = std::pin::pin!(stored.buffered(UNCONFIRMED));
        while let Some(done) = stored.next().await {
            done?;
        }
        Ok(())
    }

    /// Waits for the answers to what [`Generator::prefill`] sent: measured from the first to the last, the processor time
    /// of whoever began meanwhile from its beginning.
    ///
    /// # Errors
    /// When a watched process is gone.
    pub async fn drain(mut self, watched: Vec<(String, u32)>) -> Result<Measured> {
        let before = self.usages()?;
        self.load.watched.extend(watched);
        self.settle().await;
        let after = self.usages()?;
        let (begin, end) = self.state.tally.borrow().span_ns().unwrap_or_default();
        Ok(self.measured(begin, end + 1, &before, &after))
    }

    fn measured(
        &self,
        begin: u64,
        end: u64,
        before: &BTreeMap<String, Usage>,
        after: &BTreeMap<String, Usage>,
    ) -> Measured {
        let tally = self.state.tally.borrow();
        let (tasks, seconds) = (
            tally.answered_between(begin, end),
            end.saturating_sub(begin) as f64 / 1e9,
        );
        let used = after.iter().map(|(name, after)| {
            let before = before.get(name).copied().unwrap_or_default();
            let used = Used {
                cpu_us_per_task: (after.cpu_s - before.cpu_s) * 1e6 / tasks.max(1) as f64,
                at_begin: before,
                at_end: *after,
            };
            (name.clone(), used)
        });
        let (first, last) = tally.span_ns().unwrap_or_default();
        Measured {
            seconds,
            active_s: last.saturating_sub(first) as f64 / 1e9,
            tasks,
            tasks_per_s: if seconds > 0.0 {
                tasks as f64 / seconds
            } else {
                0.0
            },
            latency: tally.latencies(begin),
            tenths: tally.tenths(),
            totals: tally.totals(),
            unconfirmed: self.state.unconfirmed.get(),
            used: used.collect(),
        }
    }

    fn watched(&self) -> Vec<(String, u32)> {
        let own = ("generator".to_owned(), std::process::id());
        self.load.watched.iter().cloned().chain([own]).collect()
    }

    fn usages(&self) -> Result<BTreeMap<String, Usage>> {
        usages(&self.watched())
    }

    fn render(&self, number: usize) -> Bytes {
        self.templates[self.turns[number % self.turns.len()]].render(number)
    }

    async fn send(&self) -> Result<()> {
        let start = self.state.now_ns();
        let end = match self.load.until {
            Until::Count(_) => u64::MAX,
            Until::Elapsed(length) => start + ns(self.load.warm_up + length),
        };
        let most = match self.load.until {
            Until::Count(count) => count,
            Until::Elapsed(_) => usize::MAX,
        };
        match self.load.pace {
            Pace::Window(_) => self.send_within_window(end, most).await,
            Pace::Rate(rate) => {
                let mut dues = pace(self.state.start, start..end, most, rate)?;
                while let Some(due) = dues.recv().await {
                    self.send_one(due).await?;
                }
                Ok(())
            }
        }
    }

    async fn send_within_window(&self, end: u64, most: usize) -> Result<()> {
        let mut number = 0;
        while number < most && self.state.now_ns() < end {
            // The end must be seen although nobody answers.
            let Ok(room) = timeout(LOOK, self.state.room.acquire()).await else {
                continue;
            };
            room?.forget();
            self.send_one(self.state.now_ns()).await?;
            number += 1;
        }
        Ok(())
    }

    async fn send_one(&self, due: u64) -> Result<()> {
        let number = self.state.tally.borrow_mut().sent(due);
        self.publish(self.render(number)).await
    }

    async fn publish(&self, payload: Bytes) -> Result<()> {
        if !self.load.confirm {
            return Ok(self.client.publish(streams::ASSIGN, payload).await?);
        }
        let publish = PublishMessage::build().payload(payload);
        let confirmation = self.jetstream.send_publish(streams::ASSIGN, publish).await?;
        self.confirmations
            .send(confirmation)
            .await
            .context("nobody confirms any more")
    }

    /// Waits until all are answered, or nothing more comes.
    async fn settle(&self) {
        let progress = || {
            let tally = self.state.tally.borrow();
            let totals = (tally.answered_so_far(), tally.sent_so_far());
            (totals.0 >= totals.1, totals.0)
        };
        let (mut seen, mut since) = (progress(), Instant::now());
        while !seen.0 && since.elapsed() < self.load.patience {
            sleep(LOOK).await;
            let now = progress();
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
        sleep(ECHO).await;
    }
}

/// Tells when each assignment is due, at that time: from a thread of its own, because timers of the runtime are no finer
/// than a millisecond, and what they are late would count for those who are measured.
fn pace(zero: Instant, span: Range<u64>, most: usize, rate: f64) -> Result<mpsc::Receiver<u64>> {
    let (due, dues) = mpsc::channel(DUE_AHEAD);
    let thread = move || {
        let times = (0..most).map(|number| span.start + (number as f64 * 1e9 / rate) as u64);
        for at in times.take_while(|at| *at < span.end) {
            while let Some(left) = Duration::from_nanos(at).checked_sub(zero.elapsed()) {
                thread::park_timeout(left);
            }
            if due.blocking_send(at).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("pace".to_owned()).spawn(thread)?;
    Ok(dues)
}

fn result(state: &State, payload: &[u8]) {
    let now = state.now_ns();
    let Ok(answer) = serde_json::from_slice::<Answer>(payload) else {
        state.tally.borrow_mut().result(None, "", now);
        return;
    };
    let number = number_of(state.run, &answer.assignment_id);
    state.tally.borrow_mut().queue(answer.queue_depth);
    let status = match answer.error_code {
        Some(code) => Cow::Owned(format!("{} {code}", answer.status)),
        None => answer.status,
    };
    if state.tally.borrow_mut().result(number, &status, now) {
        state.room.add_permits(1);
    }
}

fn ack(state: &State, payload: &[u8]) {
    match serde_json::from_slice::<Answer>(payload) {
        Ok(answer) => {
            let number = number_of(state.run, &answer.assignment_id);
            state.tally.borrow_mut().ack(number, &answer.status);
        }
        Err(_) => state.tally.borrow_mut().ack(None, ""),
    }
}

/// What these processes used until now.
fn usages(watched: &[(String, u32)]) -> Result<BTreeMap<String, Usage>> {
    let each = watched.iter().map(|(name, pid)| Ok((name.clone(), usage(*pid)?)));
    each.collect()
}

async fn at(when: Instant, watched: Vec<(String, u32)>) -> Result<BTreeMap<String, Usage>> {
    sleep_until(when.into()).await;
    usages(&watched)
}

/// Which kind of job comes when: each as often as its weight, spread evenly.
fn turns(weights: &[usize]) -> Vec<usize> {
    let total: usize = weights.iter().sum();
    let mut given = vec![0; weights.len()];
    let mut turns = Vec::with_capacity(total);
    for turn in 1..=total {
        // Whoever is furthest behind its share.
        let behind = |kind: &usize| (weights[*kind] * turn) as i64 - (given[*kind] * total) as i64;
        let next = (0..weights.len()).max_by_key(behind).unwrap_or(0);
        given[next] += 1;
        turns.push(next);
    }
    turns
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A number that no other run of this machine has.
fn fresh_run() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.subsec_nanos() ^ (now.as_secs() as u32).rotate_left(16) ^ std::process::id().rotate_left(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_jobs_come_as_often_as_their_weights_say_and_are_mixed() {
        let turns = turns(&[5, 3, 2]);
        let times = |kind| turns.iter().filter(|turn| **turn == kind).count();
        assert_eq!((times(0), times(1), times(2)), (5, 3, 2));
        assert_ne!(turns[..5], [0; 5]);
    }
}
