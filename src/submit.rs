//! `caf-worker submit`: plays the router. Sends assignments, prints what comes back, and sums it up.
//!
//! Neighbours: speaks through `nats::router_side`; shares nothing with the node it talks to.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use caf_actors::events::Log;
use caf_actors::nats::router_side::{RouterSide, RouterSideError};
use caf_actors::sink::Outgoing;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::assignments::{Input, answerable_id, read_all};
use crate::exit::Exit;
use crate::settings::Settings;

/// Longest wait for the broker when `nats.connect_deadline_ms` sets none: a person is waiting.
const CONNECT_DEADLINE_MS: u64 = 5_000;

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// One short line each, and a summary.
    Text,
    /// One JSON line each: subject, headers, payload.
    Json,
}

/// What came back, as far as it matters to the sum.
#[derive(Default)]
struct Tally {
    /// Sent and not answered with a result yet, with the time of sending.
    open: HashMap<String, Instant>,
    answered: HashSet<String>,
    /// Results and acknowledgements that came already.
    seen: HashSet<(bool, String)>,
    by_status: BTreeMap<String, usize>,
    acks: BTreeMap<String, usize>,
    latencies: Vec<Duration>,
    unreadable: usize,
}

/// Sends every assignment of `input` and waits up to `limit` for all results.
///
/// # Errors
/// When the broker cannot be reached or the connection breaks, or the input cannot be read.
pub async fn run(
    settings: &Settings,
    input: Input,
    limit: Duration,
    show: Show,
    log: &Log,
) -> anyhow::Result<Exit> {
    let mut nats = settings.nats.clone();
    if nats.connect_deadline_ms == 0 {
        nats.connect_deadline_ms = CONNECT_DEADLINE_MS;
    }
    let router = match RouterSide::connect(&nats, log).await {
        Ok(router) => router,
        Err(error) => {
            eprintln!("caf-worker: {error}");
            return Ok(Exit::Unavailable);
        }
    };
    let assign = &nats.subjects.assign;
    match converse(&router, assign, input, limit, show).await {
        Ok(tally) => Ok(tally.conclude(limit, show)),
        Err(Conversation::Router(error)) => {
            eprintln!("caf-worker: {error}");
            Ok(Exit::Unavailable)
        }
        Err(Conversation::Input(error)) => Err(error.into()),
    }
}

enum Conversation {
    Router(RouterSideError),
    Input(std::io::Error),
}

impl From<RouterSideError> for Conversation {
    fn from(error: RouterSideError) -> Self {
        Self::Router(error)
    }
}

async fn converse(
    router: &RouterSide,
    assign: &str,
    input: Input,
    limit: Duration,
    show: Show,
) -> Result<Tally, Conversation> {
    // Beside each other: an API that does not answer is waited for once.
    let (answers, unstored) = tokio::join!(router.answers(), router.is_stored_by_nobody());
    let mut answers = answers?;
    if unstored {
        eprintln!(
            "caf-worker: no stream stores what is sent to {assign}: unless a worker listens right now, it is lost"
        );
    }
    let mut tally = Tally::default();
    let (lines, mut ready) = tokio::sync::mpsc::channel(16);
    std::thread::Builder::new()
        .name("input".to_owned())
        .spawn(move || read_all(input, |line| lines.blocking_send(line).is_ok()))
        .map_err(Conversation::Input)?;
    let mut reading = true;
    let mut deadline = Instant::now() + limit;
    while reading || !tally.open.is_empty() {
        tokio::select! {
            line = ready.recv(), if reading => match line {
                Some(line) => {
                    let payload = Bytes::from(line.map_err(Conversation::Input)?);
                    tally.sent(&payload);
                    match router.submit(payload.clone()).await {
                        Err(error @ RouterSideError::TooLarge) => tally.not_sent(&payload, &error),
                        sent => sent?,
                    }
                    deadline = Instant::now() + limit;
                }
                None => {
                    reading = false;
                    router.flush().await?;
                }
            },
            answer = timeout_at(deadline, answers.recv()), if !reading || !tally.open.is_empty() => match answer {
                Ok(Some(answer)) => tally.came_back(&answer, show),
                Ok(None) | Err(_) => break,
            },
        }
    }
    Ok(tally)
}

impl Tally {
    fn sent(&mut self, payload: &[u8]) {
        match answerable_id(payload) {
            Ok(id) => drop(self.open.insert(id, Instant::now())),
            Err(failure) => {
                self.unreadable += 1;
                eprintln!("caf-worker: sent, but nobody can answer it: {}", failure.message);
            }
        }
    }

    /// It counts as failed; the others go on.
    fn not_sent(&mut self, payload: &[u8], error: &RouterSideError) {
        self.unreadable += 1;
        let id = answerable_id(payload).unwrap_or_default();
        self.open.remove(&id);
        eprintln!("caf-worker: not sent: {id}: {error}");
    }

    fn came_back(&mut self, answer: &Outgoing, show: Show) {
        let Ok(body) = serde_json::from_slice::<Value>(&answer.payload) else {
            return;
        };
        let text = |key: &str| body[key].as_str().unwrap_or_default();
        let (id, status) = (text("assignment_id"), text("status"));
        // Others may be talking on these subjects.
        let is_result = body.get("job").is_some() || body.get("latency_ms").is_some();
        let Some(sent) = self
            .open
            .get(id)
            .copied()
            .or_else(|| self.answered.contains(id).then(Instant::now))
        else {
            return;
        };
        if !self.seen.insert((is_result, id.to_owned())) {
            return;
        }
        print_answer(answer, &body, is_result, show);
        if !is_result {
            *self.acks.entry(status.to_owned()).or_default() += 1;
        } else if self.open.remove(id).is_some() {
            self.answered.insert(id.to_owned());
            *self.by_status.entry(status.to_owned()).or_default() += 1;
            self.latencies.push(sent.elapsed());
        }
    }

    fn conclude(mut self, limit: Duration, show: Show) -> Exit {
        let was_acknowledged = |id: &String| self.seen.contains(&(false, id.clone()));
        for id in self.open.keys() {
            if was_acknowledged(id) {
                let limit_s = limit.as_secs();
                eprintln!("caf-worker: no result for {id}: acknowledged, no result within {limit_s} s");
            } else {
                eprintln!("caf-worker: no result for {id}");
            }
        }
        if !self.open.keys().all(was_acknowledged) {
            eprintln!("caf-worker: is a worker running?");
        }
        if show == Show::Text {
            self.latencies.sort_unstable();
            let (p50, p99) = (percentile(&self.latencies, 50), percentile(&self.latencies, 99));
            let sent = self.open.len() + self.answered.len() + self.unreadable;
            let counts = |map: &BTreeMap<String, usize>| {
                let counts: Vec<_> = map
                    .iter()
                    .map(|(status, count)| format!("{count} {status}"))
                    .collect();
                if counts.is_empty() {
                    "none".to_owned()
                } else {
                    counts.join(", ")
                }
            };
            println!(
                "sent {sent}; acks: {}; results: {}",
                counts(&self.acks),
                counts(&self.by_status)
            );
            println!("missing {}; unreadable {}", self.open.len(), self.unreadable);
            println!("latency p50 {} ms, p99 {} ms", p50.as_millis(), p99.as_millis());
        }
        let succeeded = self.by_status.get("success").copied().unwrap_or(0);
        let all = self.open.is_empty() && self.unreadable == 0 && succeeded == self.answered.len();
        if all { Exit::Ok } else { Exit::SomeFailed }
    }
}

fn print_answer(answer: &Outgoing, body: &Value, is_result: bool, show: Show) {
    let text = |key: &str| body[key].as_str().unwrap_or_default();
    let line = match show {
        Show::Json => {
            json!({ "subject": answer.subject, "headers": answer.headers, "payload": body }).to_string()
        }
        Show::Text if is_result => {
            let latency = body["latency_ms"].as_u64().unwrap_or(0);
            let failure = match text("error_code") {
                "" => String::new(),
                code => format!(
                    "  {code}: {}",
                    body["error"]["message"].as_str().unwrap_or_default()
                ),
            };
            format!(
                "result  {}  {}  {latency} ms{failure}",
                text("assignment_id"),
                text("status")
            )
        }
        Show::Text => format!(
            "ack     {}  {}  {}",
            text("assignment_id"),
            text("status"),
            text("message")
        ),
    };
    // A reader that has gone away ends the printing, not the waiting.
    let _ = writeln!(std::io::stdout(), "{}", line.trim_end());
}

/// Nearest-rank percentile of sorted values; zero when there are none.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let ms: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&ms, 50).as_millis(), 100);
        assert_eq!(percentile(&ms, 99).as_millis(), 198);
        assert_eq!(percentile(&ms[..1], 99).as_millis(), 1);
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }
}
