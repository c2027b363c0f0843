//! Watches for assignments that the broker has given up delivering, and brings them to the undertaker.
//!
//! Neighbours: `serve` runs it beside the source; [`Undertaker`] says what is to be said. Two ways lead to an abandoned
//! message: the broker's advisories, of which one worker of the fleet hears each (a queue group named after the
//! durable), and an audit that compares stream and consumer (`audit`), because an advisory that nobody hears is gone and
//! anybody may forge one: where the audit can tell, an advisory only makes it look soon. On a stream that keeps
//! acknowledged messages there are only the advisories. It never touches a message on another subject.

mod audit;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::context::RequestError;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{RawMessageError, RawMessageErrorKind, RetentionPolicy, Stream};
use async_nats::jetstream::{self, Context, consumer};
use futures_util::stream::select;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use self::audit::{Advisory, Audit, Retention, View, Worth};
use super::connection::Connection;
use super::headers_of;
use crate::abandoned::{AbandonedMessage, Found, Removal, Undertaker};
use crate::clock;
use crate::errors::chain;
use crate::events::{self, Log};
use crate::job::Arrival;
use crate::settings::NatsSettings;

/// Time between two audits: what they find waited for nobody, and two small requests cost nothing.
const AUDIT_INTERVAL: Duration = Duration::from_secs(30);
/// Time to the next audit while something is suspected: longer than an acknowledged message outlives its
/// acknowledgement.
const RECHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Time from an advisory until it is weighed, with all that came meanwhile: a flood costs no more than a few requests.
const HEARING: Duration = Duration::from_millis(500);
/// Pause before the stream is looked for again.
const STREAM_WAIT: Duration = Duration::from_secs(1);
/// Most messages that one audit looks at: they travel whole. The next goes on from there.
const MAX_LOOKS: usize = 100;

/// What the watch needs. Cheap to clone: each incarnation gets its own.
#[derive(Clone)]
pub struct WatchParts {
    /// The connection, made on this runtime.
    pub connection: Connection,
    /// Broker settings.
    pub settings: Arc<NatsSettings>,
    /// Has the last word on what is found.
    pub undertaker: Arc<dyn Undertaker>,
    /// Becomes true when the watch is to stop.
    pub stop: watch::Receiver<bool>,
    /// Log.
    pub log: Log,
}

/// Why the watch begins anew.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
struct WatchError {
    what: &'static str,
    why: String,
}

fn failed(what: &'static str) -> impl Fn(&dyn std::error::Error) -> WatchError {
    move |error| WatchError {
        what,
        why: chain(error),
    }
}

/// Watches until told to stop.
pub async fn watch_abandoned(parts: WatchParts) {
    let mut stop = parts.stop.clone();
    let mut audit = Audit::default();
    let watching = async {
        let mut said = false;
        loop {
            let began = Instant::now();
            let ended = parts.watch(&mut audit).await;
            said = said && began.elapsed() < AUDIT_INTERVAL;
            // That there is no stream yet, or no broker, others say.
            if let Err(error) = ended
                && !said
                && parts.connection.link.borrow().up
            {
                said = true;
                parts.log.emit(events::abandoned_unwatched(&error.to_string()));
            }
            tokio::time::sleep(STREAM_WAIT).await;
        }
    };
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        () = watching => {}
    }
}

impl WatchParts {
    /// Watches one stream for as long as it is there.
    async fn watch(&self, audit: &mut Audit) -> Result<(), WatchError> {
        let mut jetstream = jetstream::new(self.connection.client.clone());
        jetstream.set_timeout(Duration::from_millis(self.settings.request_timeout_ms));
        let assign = self.settings.subjects.assign.as_str();
        let Ok(name) = jetstream.stream_by_subject(assign).await else {
            return Ok(());
        };
        let durable = &self.settings.durable;
        let what = "listening to advisories";
        let listen = async |kind: &str| {
            let subject = format!("$JS.EVENT.ADVISORY.CONSUMER.{kind}.{name}.{durable}");
            let client = &self.connection.client;
            let advisories = client.queue_subscribe(subject, durable.clone()).await;
            advisories.map_err(|error| failed(what)(&error))
        };
        let mut advisories = select(listen("MAX_DELIVERIES").await?, listen("MSG_TERMINATED").await?);
        let mut desk = Desk {
            parts: self,
            jetstream,
            stream: name,
            audit,
        };
        let mut next = Instant::now();
        let mut weigh = None;
        loop {
            tokio::select! {
                advisory = advisories.next() => {
                    let Some(advisory) = advisory else { return Ok(()) };
                    if let Some((sequence, found)) = Advisory::read(&advisory.payload)
                        && desk.audit.hear(sequence, found)
                    {
                        weigh.get_or_insert_with(|| Instant::now() + HEARING);
                    }
                }
                () = sleep_until(weigh.unwrap_or(next)), if weigh.is_some() => {
                    weigh = None;
                    desk.weigh().await?;
                    if desk.audit.has_suspects() {
                        next = next.min(Instant::now() + RECHECK_INTERVAL);
                    }
                }
                () = sleep_until(next) => {
                    desk.weigh().await?;
                    desk.look().await?;
                    let soon = desk.audit.has_suspects();
                    next = Instant::now() + if soon { RECHECK_INTERVAL } else { AUDIT_INTERVAL };
                }
            }
        }
    }
}

/// One stream under watch.
struct Desk<'a> {
    parts: &'a WatchParts,
    jetstream: Context,
    stream: String,
    audit: &'a mut Audit,
}

impl Desk<'_> {
    /// Weighs what the advisories said.
    async fn weigh(&mut self) -> Result<(), WatchError> {
        if !self.audit.has_suspects() {
            return Ok(());
        }
        let stream = self.open().await?;
        let Ok(consumer) = stream.consumer_info(&self.parts.settings.durable).await else {
            return Ok(());
        };
        let most = match retention(&stream) {
            Retention::Removed => MAX_LOOKS,
            Retention::Kept => self.audit.room(),
        };
        for (sequence, worth) in self.audit.weigh_hints(&view(&stream, &consumer), most) {
            match (worth, self.audit.hinted(sequence)) {
                (Worth::Belief, Some(found)) => self.bring(&stream, sequence, found).await,
                (Worth::GoneOrSuspicion, _) => {
                    // What is still there is left to the audit.
                    self.fetch(&stream, sequence, Found::Terminated).await;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// One audit.
    async fn look(&mut self) -> Result<(), WatchError> {
        let stream = self.open().await?;
        let durable = &self.parts.settings.durable;
        let Ok(consumer) = stream.consumer_info(durable).await else {
            // Not made yet; the source sees to it.
            return Ok(());
        };
        let round = self.audit.begin(&view(&stream, &consumer));
        for (sequence, found) in round.suspects {
            self.bring(&stream, sequence, found).await;
        }
        let assign = self.parts.settings.subjects.assign.as_str();
        let mut from = round.from;
        for _ in 0..MAX_LOOKS {
            if from > round.up_to {
                return Ok(());
            }
            let next = stream.raw_message_builder().sequence(from);
            let sequence = match next.next_by_subject(assign).send().await {
                Ok(message) => message.sequence,
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => u64::MAX,
                // The next in line, which nobody can read: what comes after it is not to wait for it.
                Err(error) if is_unreadable(&error) => {
                    self.audit.looked_at(from);
                    from += 1;
                    continue;
                }
                Err(error) => return Err(failed("looking at messages")(&error)),
            };
            if sequence > round.up_to {
                self.audit.looked_at(round.up_to);
                return Ok(());
            }
            self.audit.saw(sequence);
            from = sequence + 1;
        }
        Ok(())
    }

    /// The stream with its state of now.
    async fn open(&self) -> Result<Stream, WatchError> {
        let stream = self.jetstream.get_stream(&self.stream).await;
        stream.map_err(|error| failed("reading the stream of assignments")(&error))
    }

    /// The message, if it is still there, can be read and is one of ours; else it is settled, or kept for later when
    /// the broker did not answer.
    async fn fetch(&mut self, stream: &Stream, sequence: u64, found: Found) -> Option<StreamMessage> {
        let log = &self.parts.log;
        match stream.get_raw_message(sequence).await {
            Ok(message) if message.subject.as_str() == self.parts.settings.subjects.assign => {
                return Some(message);
            }
            Ok(_) => self.audit.settle(sequence),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                if found == Found::Terminated {
                    // A work queue forgets at once what was terminated: nothing is left to answer.
                    log.emit(events::terminated_and_gone(&self.stream, sequence));
                }
                self.audit.settle(sequence);
            }
            Err(error) => {
                let why = format!("reading message {sequence}: {}", chain(&error));
                log.emit(events::abandoned_unwatched(&why));
                if is_refused(&error) || is_unreadable(&error) {
                    self.audit.settle(sequence);
                } else if found != Found::Terminated || retention(stream) == Retention::Kept {
                    self.audit.keep(sequence, found);
                }
            }
        }
        None
    }

    /// Brings a message to the undertaker, if it is still there. What fails is tried again.
    async fn bring(&mut self, stream: &Stream, sequence: u64, found: Found) {
        let Some(message) = self.fetch(stream, sequence, found).await else {
            return;
        };
        self.parts
            .log
            .emit(events::abandoned(&self.stream, sequence, found.name()));
        let abandoned = AbandonedMessage {
            arrival: Arrival {
                subject: message.subject.as_str().into(),
                headers: Arc::new(headers_of(Some(&message.headers))),
                payload: message.payload,
                position: Some((self.stream.as_str().into(), sequence)),
                published_at_ms: None,
                received_at_ms: clock::epoch_ms(),
                received: Instant::now(),
            },
            found,
            removal: self.removal(stream, sequence),
        };
        if self.parts.undertaker.bury(abandoned).await {
            self.audit.settle(sequence);
        } else {
            self.audit.keep(sequence, found);
        }
    }

    /// Deletes the message where nobody else reads it.
    fn removal(&self, stream: &Stream, sequence: u64) -> Removal {
        if retention(stream) == Retention::Kept {
            return Removal::none();
        }
        let (stream, limit) = (
            stream.clone(),
            Duration::from_millis(self.parts.settings.request_timeout_ms),
        );
        Removal::by(move || {
            async move {
                match timeout(limit, stream.delete_message(sequence)).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(error)) => Err(chain(&error)),
                    Err(_) => Err("no answer in time".to_owned()),
                }
            }
            .boxed()
        })
    }
}

/// The broker refuses the sequence, and will refuse it again.
fn is_refused(error: &RawMessageError) -> bool {
    matches!(error.kind(), RawMessageErrorKind::JetStream(error) if (400..500).contains(&error.code()))
}

/// The broker answered with a message that is not one.
fn is_unreadable(error: &RawMessageError) -> bool {
    let unanswered = std::error::Error::source(error).is_some_and(|source| source.is::<RequestError>());
    error.kind() == RawMessageErrorKind::Other && !unanswered
}

fn view(stream: &Stream, consumer: &consumer::Info) -> View {
    let info = stream.cached_info();
    View {
        retention: retention(stream),
        stream_created: SystemTime::from(info.created),
        consumer_created: SystemTime::from(consumer.created),
        first_sequence: info.state.first_sequence,
        last_sequence: info.state.last_sequence,
        max_deliver: consumer.config.max_deliver,
        ack_floor: consumer.ack_floor.stream_sequence,
        delivered: consumer.delivered.stream_sequence,
        ack_pending: consumer.num_ack_pending,
    }
}

/// A stream by interest removes what all of its consumers have acknowledged: with one it is a work queue.
fn retention(stream: &Stream) -> Retention {
    let info = stream.cached_info();
    match info.config.retention {
        RetentionPolicy::WorkQueue => Retention::Removed,
        RetentionPolicy::Interest if info.state.consumer_count == 1 => Retention::Removed,
        RetentionPolicy::Interest | RetentionPolicy::Limits => Retention::Kept,
    }
}
