//! The lease keeper: renews what the worker holds and sends its heartbeat, whatever the rest of the worker does.
//!
//! Neighbours: reads the lease table, the claims and how the worker is; nothing waits for it. It has a thread, a runtime
//! and a connection of its own, because a busy event loop would delay renewals until the broker gives the jobs to
//! others. For the same reason it tells other workers what is held here. It never looks at an assignment.

use std::time::Duration;

use caf_protocol::ids::AssignmentKey;
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};

use super::claim_store::{OWNER_HOLDS, OWNER_LET_GO, owner_subject};
use super::connection::{Connection, connect};
use super::is_answerable;
use super::sink::verdict_body;
use crate::claims::Claims;
use crate::counts::Counts;
use crate::events::{self, Log};
use crate::lease::LeaseTable;
use crate::settings::NatsSettings;
use crate::sink::Verdict;
use crate::vitals::Vitals;

/// Renewals per ack wait: two may be lost.
const RENEWALS_PER_ACK_WAIT: u32 = 3;
/// Shortest time between renewals, whatever a consumer asks for: each is a message per held job.
const SHORTEST_RENEWAL: Duration = Duration::from_millis(20);
/// Longest wait for handing one message to the connection.
const SEND_LIMIT: Duration = Duration::from_secs(1);

/// What the lease keeper needs.
pub struct KeeperParts {
    /// Broker settings.
    pub settings: NatsSettings,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// What is held, as deliveries.
    pub leases: LeaseTable,
    /// What is held, as assignments: other workers ask.
    pub claims: Claims,
    /// How the worker is.
    pub vitals: Vitals,
    /// Questions of other workers are counted here.
    pub questions: Counts,
    /// Log; also the worker's id.
    pub log: Log,
}

/// The running thread. Stops when told to; renewals end with it.
pub struct LeaseKeeper {
    stop: watch::Sender<bool>,
    hears: watch::Receiver<bool>,
    thread: std::thread::JoinHandle<()>,
}

impl LeaseKeeper {
    /// Starts the thread. `ended` is called on it if it ends without being told to.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(parts: KeeperParts, ended: impl FnOnce() + Send + 'static) -> std::io::Result<Self> {
        let (stop, is_stopped) = watch::channel(false);
        let (hearing, hears) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("lease-keeper".to_owned())
            .spawn(move || {
                let told = is_stopped.clone();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let kept = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    if let Ok(runtime) = runtime {
                        runtime.block_on(keep(parts, hearing, is_stopped));
                    }
                }));
                if kept.is_err() || !*told.borrow() {
                    ended();
                }
            })?;
        Ok(Self { stop, hears, thread })
    }

    /// Resolves when the broker has taken the subscription to questions, or the thread has ended. Waits without limit.
    pub async fn hears_questions(&self) {
        let _ = self.hears.clone().wait_for(|hears| *hears).await;
    }

    /// Ends renewals and heartbeats, after a last heartbeat.
    pub fn stop(self) {
        self.stop.send_replace(true);
        let _ = self.thread.join();
    }
}

async fn keep(parts: KeeperParts, hearing: watch::Sender<bool>, mut stop: watch::Receiver<bool>) {
    let connecting = connect(&parts.settings, "lease keeper", &parts.log, |_| {});
    let connection = tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => return,
        connection = connecting => match connection {
            Ok(connection) => connection,
            Err(error) => return parts.log.emit(events::fatal(&error.to_string())),
        },
    };
    let mut ack_wait = parts.leases.ack_wait();
    let mut renewals = renewal_clock(&parts, *ack_wait.borrow_and_update());
    let mut heartbeats = interval(parts.heartbeat);
    heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut draining = parts.vitals.status().draining();
    let mut questions = questions(&parts, &connection).await;
    // Renewals do not wait for it.
    tokio::spawn({
        let connection = connection.clone();
        async move {
            connection.round_trip().await;
            hearing.send_replace(true);
        }
    });
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            _ = ack_wait.changed() => renewals = renewal_clock(&parts, *ack_wait.borrow_and_update()),
            _ = renewals.tick() => renew(&parts, &connection, renewals.period()).await,
            _ = heartbeats.tick() => beat(&parts, &connection).await,
            _ = draining.changed() => beat(&parts, &connection).await,
            // Last: a flood of questions must delay nothing else.
            question = next_question(&mut questions) => say_what_is_held(&parts, &connection, question).await,
        }
    }
    beat(&parts, &connection).await;
    let _ = timeout(SEND_LIMIT, connection.client.flush()).await;
}

/// Ticks as often as the consumer that was found asks for; until one is, as the settings say.
fn renewal_clock(parts: &KeeperParts, found: Option<Duration>) -> Interval {
    let ack_wait = found.unwrap_or(Duration::from_millis(parts.settings.ack_wait_ms));
    let mut clock = interval((ack_wait / RENEWALS_PER_ACK_WAIT).max(SHORTEST_RENEWAL));
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    clock
}

/// Renews whatever is held. The last renewal asks the broker for a word: renewals count only when it comes, because what
/// is written into a dead connection renews nothing. Nobody waits for the word here; the heartbeat is due.
async fn renew(parts: &KeeperParts, connection: &Connection, limit: Duration) {
    if !connection.link.borrow().up {
        return;
    }
    let sent = Instant::now();
    let renewable = parts.leases.renewable(sent);
    let Some(((_, last), earlier)) = renewable.split_last() else {
        return;
    };
    let body = || verdict_body(Verdict::InProgress);
    for (_, token) in earlier {
        send(connection, token.to_string(), body()).await;
    }
    let confirmed = {
        let (client, token, body) = (connection.client.clone(), last.to_string(), body());
        async move { timeout(limit, client.request(token, body)).await }
    };
    let leases = parts.leases.clone();
    tokio::spawn(async move {
        if let Ok(Ok(_)) = confirmed.await {
            leases.renewed(&renewable, sent);
        }
    });
}

/// Answers another worker that asks whether an assignment is worked on here.
async fn say_what_is_held(parts: &KeeperParts, connection: &Connection, question: async_nats::Message) {
    let Some(reply) = question.reply else { return };
    if !is_answerable(&reply, &parts.settings.subjects) {
        return;
    }
    let key = std::str::from_utf8(&question.payload)
        .ok()
        .and_then(AssignmentKey::from_hex);
    let word = match key {
        Some(key) if parts.claims.is_held(&key) => OWNER_HOLDS,
        _ => OWNER_LET_GO,
    };
    let begun = Instant::now();
    send(connection, reply.to_string(), word.into()).await;
    parts.questions.answered(begun.elapsed(), None);
}

/// Listens to questions about what this process holds; for ever silent where nobody asks.
async fn questions(parts: &KeeperParts, connection: &Connection) -> Option<async_nats::Subscriber> {
    let owner = parts.claims.fleet()?.owner();
    let subject = owner_subject(&parts.settings, owner);
    connection.client.subscribe(subject).await.ok()
}

async fn next_question(questions: &mut Option<async_nats::Subscriber>) -> async_nats::Message {
    match questions {
        Some(subscription) => match subscription.next().await {
            Some(question) => question,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn beat(parts: &KeeperParts, connection: &Connection) {
    if !connection.link.borrow().up {
        return;
    }
    let beat = parts.vitals.heartbeat(parts.log.worker_id());
    let body = serde_json::to_vec(&beat).expect("a heartbeat holds only strings and numbers");
    send(connection, parts.settings.subjects.heartbeat.clone(), body.into()).await;
}

/// A lost renewal or heartbeat is followed by the next.
async fn send(connection: &Connection, subject: String, body: bytes::Bytes) {
    let _ = timeout(SEND_LIMIT, connection.client.publish(subject, body)).await;
}
