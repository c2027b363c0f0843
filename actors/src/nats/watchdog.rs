//! The watchdog over consumption: sees that messages wait, that we have room, and that nothing comes.
//!
//! Neighbours: beside the source, to which it gives orders through [`SourceControl`]; the decision is in
//! `watchdog/decision.rs`. It asks the broker for the consumer's state, which also tells up to where everything is
//! acknowledged: that is kept in `floor.rs`. It never touches a message.

mod decision;

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use self::decision::{Action, ConsumerView, Judge, Observation, ServerView};
use super::connection::Connection;
use super::floor::Floors;
use super::streams::Bound;
use crate::clock::whole_ms;
use crate::consumption::Phase;
use crate::events::{self, Log};
use crate::settings::NatsSettings;
use crate::status::NodeStatus;
use crate::supervisor::Escalation;

/// Looks in the time that a stall may last: so much later than that it is noticed at most.
const LOOKS_PER_STALL: u32 = 4;
/// Shortest time between two looks: each is a request to the broker.
const SHORTEST_LOOK: Duration = Duration::from_millis(50);
/// Longest time between two looks: what is acknowledged is noted as often.
const LONGEST_LOOK: Duration = Duration::from_secs(5);
/// Longest wait for the client library to take an order.
const ORDER_LIMIT: Duration = Duration::from_secs(1);

/// What the source is told to do anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Ask on a new subscription.
    RebuildPull,
    /// See to stream and consumer as at the start.
    RebuildConsumer,
}

/// Between source and watchdog: orders one way, what is consumed from the other. Cheap to clone.
#[derive(Clone)]
pub struct SourceControl {
    orders: Arc<watch::Sender<Option<Order>>>,
    bound: Arc<watch::Sender<Option<Bound>>>,
}

impl Default for SourceControl {
    fn default() -> Self {
        Self {
            orders: Arc::new(watch::Sender::new(None)),
            bound: Arc::new(watch::Sender::new(None)),
        }
    }
}

impl SourceControl {
    /// Orders from now on.
    pub(super) fn orders(&self) -> watch::Receiver<Option<Order>> {
        self.orders.subscribe()
    }

    /// The source consumes from here.
    pub(super) fn set_bound(&self, bound: Bound) {
        self.bound.send_replace(Some(bound));
    }
}

/// What the watchdog needs. Cheap to clone: each incarnation gets its own.
#[derive(Clone)]
pub struct WatchdogParts {
    /// The source's connection.
    pub connection: Connection,
    /// Broker settings.
    pub settings: Arc<NatsSettings>,
    /// State of the node.
    pub status: NodeStatus,
    /// The source.
    pub source: SourceControl,
    /// Becomes true when the source is to stop.
    pub stop: watch::Receiver<bool>,
    /// For saying that the node must leave.
    pub escalate: mpsc::UnboundedSender<Escalation>,
    /// Log.
    pub log: Log,
}

/// Watches until told to stop.
pub async fn run_watchdog(mut parts: WatchdogParts) {
    let limit = parts.settings.stall();
    let began = Instant::now();
    let mut judge = Judge::new(limit);
    let mut floors = Floors::new(&parts.connection, &parts.settings);
    let mut looks = interval((limit / LOOKS_PER_STALL).clamp(SHORTEST_LOOK, LONGEST_LOOK));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stop = parts.stop.clone();
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            _ = looks.tick() => {}
        }
        let look = async {
            let own = parts.status.held().held_jobs() + parts.status.deferrals().outstanding(Instant::now());
            let (server, acknowledged) = parts.ask().await;
            parts.note_pending(&server);
            parts.note_deferrals(&server, own);
            let seen = parts.observe(began, server);
            let action = judge.decide(&seen);
            parts.carry_out(action, &seen).await;
            parts.note_floor(&mut floors, acknowledged).await;
        };
        // A shutdown waits for no answer.
        let mut stop = stop.clone();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = look => {}
        }
    }
}

impl WatchdogParts {
    /// What the broker says of the consumer, and up to where everything is acknowledged.
    async fn ask(&self) -> (ServerView, Option<u64>) {
        let bound = self.source.bound.borrow().clone();
        let Some(bound) = bound.filter(|_| self.connection.link.borrow().up) else {
            return (ServerView::NotAsked, None);
        };
        let subject = format!("$JS.API.CONSUMER.INFO.{}.{}", bound.stream, self.settings.durable);
        let limit = Duration::from_millis(self.settings.request_timeout_ms).min(self.settings.stall());
        match timeout(limit, self.connection.client.request(subject, "".into())).await {
            Err(_) => (ServerView::Silent, None),
            Ok(Err(error)) if error.kind() == async_nats::RequestErrorKind::TimedOut => {
                (ServerView::Silent, None)
            }
            Ok(Err(_)) => (ServerView::Refused, None),
            Ok(Ok(message)) => view_of(&message.payload),
        }
    }

    fn observe(&self, began: Instant, server: ServerView) -> Observation {
        let link = *self.connection.link.borrow();
        let consumption = self.status.consumption();
        Observation {
            now: began.elapsed(),
            connected: link.up,
            generation: link.generation,
            draining: self.status.is_draining(),
            phase: consumption.phase(),
            arrived: consumption.deliveries(),
            heard: consumption.times_heard(),
            server,
        }
    }

    /// For whoever looks at the node.
    fn note_pending(&self, server: &ServerView) {
        let pending = match server {
            ServerView::Consumer(view) => Some(view.pending),
            _ => None,
        };
        self.status.consumption().set_pending(pending);
    }

    /// What is on its way to others bounds what may be deferred here. `own_before`: held and deferred here before the
    /// broker was asked.
    fn note_deferrals(&self, server: &ServerView, own_before: usize) {
        if let ServerView::Consumer(view) = server {
            let (deferrals, held) = (self.status.deferrals(), self.status.held().held_jobs());
            deferrals.saw(
                Instant::now(),
                view.ack_pending,
                view.max_ack_pending,
                held,
                own_before,
            );
        }
    }

    async fn carry_out(&self, action: Action, seen: &Observation) {
        let (what, order) = match action {
            Action::Nothing => return,
            Action::RebuildPull => ("rebuild the pull", Some(Order::RebuildPull)),
            Action::RebuildConsumer => ("rebuild the consumer", Some(Order::RebuildConsumer)),
            Action::Reconnect => ("reconnect", None),
            Action::Leave => ("leave", None),
        };
        let facts = facts_of(seen);
        let limit_ms = whole_ms(self.settings.stall());
        self.log.emit(events::consumption_stalled(
            what,
            facts,
            limit_ms,
            action == Action::Leave,
        ));
        if let Some(order) = order {
            self.source.orders.send_replace(Some(order));
        }
        if action == Action::Reconnect {
            // Its queue may be full, and then it is no connection to wait for.
            let _ = timeout(ORDER_LIMIT, self.connection.client.force_reconnect()).await;
        }
        if action == Action::Leave {
            let _ = self.escalate.send(Escalation::ConsumptionStalled);
        }
    }

    async fn note_floor(&mut self, floors: &mut Floors, acknowledged: Option<u64>) {
        let bound = self.source.bound.borrow().clone();
        if let (Some(sequence), Some(bound)) = (acknowledged, bound)
            && let Err(error) = floors.note(&bound, sequence).await
        {
            self.log.emit(events::floor_not_kept(&error.to_string()));
        }
    }
}

/// What the log says of a stall.
fn facts_of(seen: &Observation) -> Vec<(&'static str, u64)> {
    match seen.server {
        ServerView::Consumer(consumer) => vec![
            ("pending", consumer.pending),
            ("ack_pending", consumer.ack_pending),
            ("waiting_pulls", consumer.waiting),
            ("delivered_here", seen.arrived),
        ],
        _ => vec![("pulling", u64::from(seen.phase == Phase::Pulling))],
    }
}

/// The answer to a question for a consumer. Read by ourselves: the client library leaves out what newer servers say.
#[derive(Deserialize)]
struct InfoAnswer {
    error: Option<ApiError>,
    config: Option<InfoConfig>,
    delivered: Option<Position>,
    ack_floor: Option<Position>,
    #[serde(default)]
    num_ack_pending: u64,
    #[serde(default)]
    num_waiting: u64,
    #[serde(default)]
    num_pending: u64,
    #[serde(default)]
    paused: bool,
}

#[derive(Deserialize)]
struct ApiError {
    code: u16,
}

#[derive(Deserialize)]
struct InfoConfig {
    #[serde(default)]
    max_ack_pending: i64,
}

#[derive(Deserialize)]
struct Position {
    consumer_seq: u64,
    stream_seq: u64,
}

fn view_of(answer: &[u8]) -> (ServerView, Option<u64>) {
    let Ok(answer) = serde_json::from_slice::<InfoAnswer>(answer) else {
        return (ServerView::Refused, None);
    };
    match (answer.error, answer.config, answer.delivered) {
        (Some(ApiError { code: 404 }), ..) => (ServerView::Missing, None),
        (None, Some(config), Some(delivered)) => {
            let view = ConsumerView {
                pending: answer.num_pending,
                ack_pending: answer.num_ack_pending,
                max_ack_pending: config.max_ack_pending,
                delivered: delivered.consumer_seq,
                waiting: answer.num_waiting,
                paused: answer.paused,
            };
            let floor = answer.ack_floor.map(|floor| floor.stream_seq);
            (ServerView::Consumer(view), floor)
        }
        _ => (ServerView::Refused, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_server_are_read_for_what_they_say() {
        let info = br#"{"type":"t","config":{"max_ack_pending":9},"delivered":{"consumer_seq":5,"stream_seq":6},
            "ack_floor":{"consumer_seq":3,"stream_seq":4},"num_ack_pending":2,"num_redelivered":0,"num_waiting":1,
            "num_pending":7,"paused":true}"#;
        let expected = ConsumerView {
            pending: 7,
            ack_pending: 2,
            max_ack_pending: 9,
            delivered: 5,
            waiting: 1,
            paused: true,
        };
        assert_eq!(view_of(info), (ServerView::Consumer(expected), Some(4)));
        let missing = br#"{"error":{"code":404,"err_code":10014,"description":"consumer not found"}}"#;
        assert_eq!(view_of(missing), (ServerView::Missing, None));
        for other in [&br#"{"error":{"code":503}}"#[..], b"{}", b"", b"[]"] {
            assert_eq!(view_of(other), (ServerView::Refused, None));
        }
    }
}
