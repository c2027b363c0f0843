//! Where assignments come from: a pull on a stream, or a plain queue subscription.
//!
//! Neighbours: reserves held permits, then asks for as many messages, and hands each to intake with its permit and its
//! lease. Decides nothing about a message. On shutdown it stops asking, waits until the server has let go of the
//! request, and passes on what was still on its way.

mod attention;
mod pull;

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use self::attention::Attention;
use self::pull::{PullEnd, PullRequest, count_and_position_of, published_at_ms, pull_end};
use super::connection::{Connection, delay};
use super::headers_of;
use super::streams::ensure_consumer;
use super::watchdog::{Order, SourceControl};
use crate::clock::{self, whole_ms};
use crate::consumption::Phase;
use crate::events::{self, Log};
use crate::held::Reservation;
use crate::job::{Arrival, Delivery};
use crate::lease::LeaseTable;
use crate::runtime::{Route, Undelivered};
use crate::settings::NatsSettings;
use crate::status::NodeStatus;

/// How long the server keeps a request open.
const PULL_EXPIRES: Duration = Duration::from_secs(20);
/// How often the server says that an open request is alive, at least: nothing for twice as long, and we ask again.
const PULL_HEARTBEAT: Duration = Duration::from_secs(5);
/// Signs of life of an open request in the time after which the watchdog calls it stalled: two may be late.
const HEARTBEATS_PER_STALL: u32 = 3;
/// Shortest time between two signs of life, however soon the watchdog wants to know.
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(100);
/// How long shutdown waits for the server to confirm that the request is gone.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);
/// Pause while intake is being re-created.
const INTAKE_RESTART_WAIT: Duration = Duration::from_millis(20);

/// What a source needs. Cheap to clone: each incarnation gets its own.
#[derive(Clone)]
pub struct SourceParts {
    /// The connection, made on this runtime.
    pub connection: Connection,
    /// Broker settings.
    pub settings: Arc<NatsSettings>,
    /// What is held from the broker.
    pub leases: LeaseTable,
    /// Next station.
    pub intake: Route<Delivery>,
    /// State of the node; also the held permits.
    pub status: NodeStatus,
    /// Becomes true when the source is to stop.
    pub stop: watch::Receiver<bool>,
    /// Becomes true when the source has stopped and nothing more will arrive.
    pub stopped: Arc<watch::Sender<bool>>,
    /// The watchdog's orders; it hears from where we consume.
    pub control: SourceControl,
    /// Log.
    pub log: Log,
}

/// Why one subscription was enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// The source is to stop.
    Stop,
    /// The watchdog wants something built anew.
    Told(Order),
}

/// Why consuming broke off; it begins anew.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error(transparent)]
    Stream(#[from] super::streams::StreamError),
    #[error("{0}")]
    Broken(String),
}

fn broken(error: impl ToString) -> SourceError {
    SourceError::Broken(error.to_string())
}

/// Pulls until told to stop. Whatever breaks is rebuilt: consumer, streams, subscription.
pub async fn run_pull(mut parts: SourceParts) {
    let mut failures = 0;
    while !*parts.stop.borrow() {
        let began = Instant::now();
        match parts.consume_stream().await {
            Ok(()) => break,
            Err(error) => {
                parts.status.set_consuming(false);
                parts.status.consumption().set_phase(Phase::Preparing);
                failures = if began.elapsed() > PULL_EXPIRES {
                    0
                } else {
                    failures + 1
                };
                let wait = delay(failures);
                // The first line at once, then one every few seconds: waiting is not news.
                if failures % 10 <= 1 {
                    let wait_ms = whole_ms(wait);
                    parts.log.emit(events::pull_rebuilt(&error.to_string(), wait_ms));
                }
                parts.pause(wait).await;
            }
        }
    }
    parts.finish();
}

/// Subscribes until told to stop. At most once: nothing comes back.
pub async fn run_queue(mut parts: SourceParts) {
    while !*parts.stop.borrow() {
        if let Err(error) = parts.consume_queue().await {
            parts.status.set_consuming(false);
            parts.log.emit(events::pull_rebuilt(&error.to_string(), 500));
            parts.pause(Duration::from_millis(500)).await;
        } else {
            break;
        }
    }
    parts.finish();
}

impl SourceParts {
    fn finish(&self) {
        self.status.set_consuming(false);
        self.status.consumption().set_phase(Phase::Preparing);
        self.stopped.send_replace(true);
    }

    /// Waits, unless told to stop.
    async fn pause(&mut self, wait: Duration) {
        let _ = timeout(wait, self.stop.wait_for(|stop| *stop)).await;
    }

    async fn consume_stream(&mut self) -> Result<(), SourceError> {
        let jetstream = jetstream::new(self.connection.client.clone());
        loop {
            let bound = ensure_consumer(&jetstream, &self.settings, &self.log).await?;
            self.leases.set_ack_wait(bound.ack_wait);
            let stream = Arc::clone(&bound.stream);
            self.control.set_bound(bound);
            loop {
                let over = self.consume_inbox(&stream).await?;
                self.status.consumption().set_phase(Phase::Preparing);
                match over {
                    Over::Stop => return Ok(()),
                    Over::Told(Order::RebuildPull) => {}
                    Over::Told(Order::RebuildConsumer) => break,
                }
            }
        }
    }

    /// Asks and listens on one subscription.
    async fn consume_inbox(&mut self, stream: &Arc<str>) -> Result<Over, SourceError> {
        let orders = self.control.orders();
        let inbox = self.connection.client.new_inbox();
        let subscription = self.connection.client.subscribe(format!("{inbox}.*"));
        let mut messages = subscription.await.map_err(broken)?;
        let mut request = PullRequest::new(stream, &self.settings.durable, &inbox);
        self.status.consumption().subscribed();
        self.status.set_consuming(true);
        let over = loop {
            let reservation = self.room(&request, &orders).await;
            let end = match reservation {
                Ok(reservation) => {
                    self.pull(&mut request, &mut messages, stream, reservation, &orders)
                        .await?
                }
                Err(end) => end,
            };
            match end {
                PullEnd::Stop => break Over::Stop,
                PullEnd::Told(order) => break Over::Told(order),
                PullEnd::Oversize if self.status.held().held_jobs() == 0 => request.ignore_bytes_once(),
                PullEnd::Oversize => {
                    self.status.consumption().set_phase(Phase::TooLarge);
                    tokio::select! {
                        _ = interrupted(self.stop.clone(), orders.clone()) => {}
                        () = self.status.held().more_free_than(request.bytes_left()) => {}
                    }
                }
                PullEnd::Over | PullEnd::Quiet => {}
            }
        };
        // The server has let go when it has answered; what it sent before that is still handled.
        messages.drain().await.map_err(broken)?;
        let mut rest = None;
        while let Ok(Some(message)) = timeout(RELEASE_LIMIT, messages.next()).await {
            if message.status.is_none() {
                self.hand_over(message, Instant::now(), stream, &mut rest).await;
            }
        }
        Ok(over)
    }

    /// Waits for room, or for a reason to ask no more.
    async fn room(
        &self,
        request: &PullRequest,
        orders: &watch::Receiver<Option<Order>>,
    ) -> Result<Reservation, PullEnd> {
        let reserve = self.status.held().reserve(request.most_messages());
        tokio::pin!(reserve);
        tokio::select! {
            biased;
            end = interrupted(self.stop.clone(), orders.clone()) => return Err(end),
            reservation = &mut reserve => return Ok(reservation),
            () = std::future::ready(()) => {}
        }
        self.status.consumption().set_phase(Phase::NoRoom);
        let since = Instant::now();
        tokio::select! {
            biased;
            end = interrupted(self.stop.clone(), orders.clone()) => Err(end),
            reservation = reserve => {
                self.log.measure(|| events::steps::waited("permit", since.elapsed()));
                Ok(reservation)
            }
        }
    }

    /// Sends one request and handles what comes of it.
    async fn pull(
        &mut self,
        request: &mut PullRequest,
        messages: &mut async_nats::Subscriber,
        stream: &Arc<str>,
        reservation: Reservation,
        orders: &watch::Receiver<Option<Order>>,
    ) -> Result<PullEnd, SourceError> {
        let mut link = self.connection.link.clone();
        if !self.connection.wait_up(PULL_HEARTBEAT).await {
            return Ok(PullEnd::Quiet);
        }
        let generation = link.borrow_and_update().generation;
        let wanted = reservation.remaining();
        let heartbeat =
            (self.settings.stall() / HEARTBEATS_PER_STALL).clamp(SHORTEST_HEARTBEAT, PULL_HEARTBEAT);
        let free = self.status.held().free_bytes();
        let (subject, reply, body) = request.next(wanted, free, PULL_EXPIRES, heartbeat);
        self.connection
            .client
            .publish_with_reply(subject, reply, body.into())
            .await
            .map_err(broken)?;
        let _open = self.status.consumption().open_pull();
        self.status.consumption().set_phase(Phase::Pulling);
        let deadline = Instant::now() + PULL_EXPIRES + PULL_HEARTBEAT;
        let mut reservation = Some(reservation);
        let mut attention = Attention::since(Instant::now());
        let mut quiet = (Instant::now() + PULL_HEARTBEAT * 2).min(deadline);
        while reservation
            .as_ref()
            .is_some_and(|reservation| reservation.remaining() > 0)
        {
            let message = tokio::select! {
                biased;
                end = interrupted(self.stop.clone(), orders.clone()) => return Ok(end),
                _ = link.wait_for(|link| link.generation != generation) => return Ok(PullEnd::Over),
                // Nothing may be taken on any more: only the end of the subscription takes the request back.
                () = self.status.held().shut() => return Ok(PullEnd::Told(Order::RebuildPull)),
                message = messages.next() => message.ok_or_else(|| broken("the subscription ended"))?,
                () = tokio::time::sleep_until(quiet) => return Ok(PullEnd::Quiet),
                () = tokio::time::sleep_until(attention.next_look()) => {
                    attention.look(Instant::now());
                    continue;
                }
            };
            let delivered = attention.look(Instant::now());
            quiet = (Instant::now() + PULL_HEARTBEAT * 2).min(deadline);
            match message.status {
                None => {
                    request.delivered(message.payload.len());
                    self.hand_over(message, delivered, stream, &mut reservation).await;
                }
                Some(status) => {
                    self.status.consumption().heard();
                    let description = message.description.as_deref().unwrap_or_default();
                    let current = request.is_current(&message.subject);
                    match pull_end(status.as_u16(), description) {
                        Ok(Some(end)) if current => return Ok(end),
                        Err(error) if current => return Err(SourceError::Broken(error)),
                        _ => {}
                    }
                }
            }
        }
        Ok(PullEnd::Over)
    }

    /// Gives one message its permit and its lease, which began when it was `delivered`, and passes it on.
    async fn hand_over(
        &self,
        message: async_nats::Message,
        delivered: Instant,
        stream: &Arc<str>,
        reservation: &mut Option<Reservation>,
    ) {
        let Some(reply) = message.reply.as_ref() else {
            return;
        };
        self.status.consumption().delivered();
        let (deliveries, sequence) = count_and_position_of(reply).unwrap_or_default();
        let lease = self
            .leases
            .hold(reply.as_str().into(), sequence, deliveries, delivered);
        let size = message.payload.len();
        let permit = match reservation
            .as_mut()
            .and_then(|reservation| reservation.take(size))
        {
            Some(permit) => permit,
            // A late message of an earlier request: there are few of them, and none is worth waiting for room.
            None => self.status.held().take_extra(size),
        };
        // It is held now, and no longer deferred.
        self.status.deferrals().came_back(sequence);
        let arrival = arrival(&message, Some((Arc::clone(stream), sequence)));
        self.pass_on(Delivery {
            arrival,
            permit,
            lease: Some(Arc::new(lease)),
            given_up: None,
        })
        .await;
    }

    async fn pass_on(&self, mut delivery: Delivery) {
        while let Err(Undelivered(back)) = self.intake.tell(delivery) {
            delivery = back;
            tokio::time::sleep(INTAKE_RESTART_WAIT).await;
        }
    }

    async fn consume_queue(&mut self) -> Result<(), SourceError> {
        let (subject, group) = (
            self.settings.subjects.assign.clone(),
            self.settings.durable.clone(),
        );
        let mut messages = self
            .connection
            .client
            .queue_subscribe(subject, group)
            .await
            .map_err(broken)?;
        // Ready is who would hear the next message. A server that lets us hear nothing of ours is taken at its word.
        let _ = timeout(RELEASE_LIMIT, self.connection.round_trip()).await;
        self.status.set_consuming(true);
        let mut stop = self.stop.clone();
        loop {
            let message = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                message = messages.next() => message.ok_or_else(|| broken("the subscription ended"))?,
            };
            self.hand_over_unleased(message).await;
        }
        messages.drain().await.map_err(broken)?;
        while let Ok(Some(message)) = timeout(RELEASE_LIMIT, messages.next()).await {
            self.hand_over_unleased(message).await;
        }
        Ok(())
    }

    async fn hand_over_unleased(&self, message: async_nats::Message) {
        self.status.consumption().delivered();
        let Some(permit) = self.status.held().reserve(1).await.take(message.payload.len()) else {
            return;
        };
        self.pass_on(Delivery {
            arrival: arrival(&message, None),
            permit,
            lease: None,
            given_up: None,
        })
        .await;
    }
}

/// Waits until there is a reason to ask no more. An order that was given before counts too.
async fn interrupted(mut stop: watch::Receiver<bool>, mut orders: watch::Receiver<Option<Order>>) -> PullEnd {
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => PullEnd::Stop,
        order = ordered(&mut orders) => PullEnd::Told(order),
    }
}

/// The next order.
async fn ordered(orders: &mut watch::Receiver<Option<Order>>) -> Order {
    while orders.changed().await.is_ok() {
        if let Some(order) = *orders.borrow_and_update() {
            return order;
        }
    }
    std::future::pending().await
}

fn arrival(message: &async_nats::Message, position: Option<(Arc<str>, u64)>) -> Arrival {
    Arrival {
        subject: message.subject.as_str().into(),
        headers: Arc::new(headers_of(message.headers.as_ref())),
        payload: message.payload.clone(),
        position,
        published_at_ms: message.reply.as_deref().and_then(published_at_ms),
        received_at_ms: clock::epoch_ms(),
        received: Instant::now(),
    }
}
