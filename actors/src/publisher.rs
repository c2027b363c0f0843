//! The publisher: writes answers down, sends them until they are confirmed, and only then settles the delivery.
//!
//! Neighbours: intake, pools and block workers tell it what to say; it writes to a [`Sink`]. It is the only station
//! that sends. What it sends again is the same, byte for byte, under the same message id. What a job holds is let go
//! when its answer is confirmed, so unconfirmed answers are bounded by the held permits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::{Actor, Context, Handler, Message};
use caf_protocol::assignment::Identity;
use caf_protocol::dead_letter::Cause;
use caf_protocol::headers::MESSAGE_ID;
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::answers::Answers;
use crate::clock::{self, whole_ms};
use crate::events::{self, Log};
use crate::job::{Arrival, Holdings, Job, PoolLoad, SentAck, elapsed_ms};
use crate::runtime::Route;
use crate::sink::{Outgoing, PublishError, Published, Sink, Verdict};

/// First wait before an unconfirmed message is sent again.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest wait before an unconfirmed message is sent again: short enough to be quick when the broker is back.
const LONGEST_RETRY: Duration = Duration::from_secs(2);

// ---- Messages, in the order of a job's life ----

/// From intake: the pool has taken the job.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Acknowledge {
    /// The acknowledgement.
    pub message: Arc<Outgoing>,
    /// Told when it is confirmed.
    pub confirmed: oneshot::Sender<()>,
}

/// From anyone: the last word on an assignment.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Conclude {
    /// What is to be said.
    pub conclusion: Conclusion,
    /// Let go when it is confirmed.
    pub holdings: Holdings,
}

/// From anyone: a delivery that nothing new is said about.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Settle {
    /// Let go when the broker has been told.
    pub holdings: Holdings,
    /// What the broker is told.
    pub verdict: Verdict,
}

/// From the health page: proof of life.
#[derive(Message)]
#[rtype(result = "PublisherSnapshot")]
pub struct LookAtPublisher;

/// What the publisher is doing.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, actix::MessageResponse)]
pub struct PublisherSnapshot {
    /// Messages sent and not confirmed yet.
    pub unconfirmed: usize,
    /// How long the oldest of them has waited, in milliseconds.
    pub oldest_unconfirmed_ms: u64,
}

/// A last word.
pub enum Conclusion {
    /// Row 1: only a dead letter.
    Bury {
        /// The message.
        arrival: Arrival,
        /// Why.
        failure: Failure,
    },
    /// Row 11: the recorded result again.
    Repeat(Arc<Outgoing>),
    /// Every other row that ends with a result.
    Answer(Box<Answer>),
}

/// An acknowledgement, a result, and for some rows a dead letter.
pub struct Answer {
    /// The acknowledgement: on its way, or to be sent first.
    pub ack: AckState,
    /// How the job ended.
    pub step: StepResult,
    /// Why a dead letter is kept, if one is.
    pub dead_letter: Option<&'static str>,
    /// Whether it was rejected: then intake has said so in the log, and nothing ran.
    pub rejected: bool,
    /// Load of the pool when the job came.
    pub load: Option<PoolLoad>,
    /// The message.
    pub arrival: Arrival,
    /// Whom it goes to.
    pub identity: Identity,
}

/// Where an acknowledgement is.
pub enum AckState {
    /// Sent when the pool took the job.
    Sent(SentAck),
    /// To be sent before the result.
    Unsent(Arc<Outgoing>),
}

impl Conclude {
    /// The last word on a job that was accepted: rows 6, 7 and 8, and what a shutdown cancels.
    pub fn of_job(job: Job, step: StepResult) -> Self {
        // Failed for good: kept for people. Time and cancellation are nobody's fault; overload is retried.
        let dead_letter = match &step.outcome {
            Outcome::Error(failure)
                if failure.code != caf_protocol::error_code::ErrorCode::SystemOverload =>
            {
                Some("execution_failed")
            }
            _ => None,
        };
        let answer = Answer {
            ack: AckState::Sent(job.ack),
            step,
            dead_letter,
            rejected: false,
            load: job.load,
            arrival: job.arrival,
            identity: job.identity,
        };
        Self {
            conclusion: Conclusion::Answer(Box::new(answer)),
            holdings: job.holdings,
        }
    }
}

/// How the other stations reach the publisher.
#[derive(Clone, Default)]
pub struct PublisherRoutes {
    /// Acknowledgements of accepted jobs.
    pub acknowledge: Route<Acknowledge>,
    /// Last words.
    pub conclude: Route<Conclude>,
    /// Verdicts without words.
    pub settle: Route<Settle>,
}

// ---- State ----

/// The publisher actor.
pub struct Publisher {
    sender: Sender,
    answers: Answers,
}

/// Sends one message after the other until each is confirmed. Cheap to clone.
#[derive(Clone)]
struct Sender {
    sink: Arc<dyn Sink>,
    log: Log,
    unconfirmed: Arc<Mutex<Unconfirmed>>,
}

/// Messages that are being sent, by number, with the time of their first try.
#[derive(Default)]
struct Unconfirmed {
    next: u64,
    since: BTreeMap<u64, Instant>,
}

impl Publisher {
    /// A publisher that writes to `sink`.
    pub fn new(sink: Arc<dyn Sink>, answers: Answers, log: Log) -> Self {
        Self {
            sender: Sender {
                sink,
                log,
                unconfirmed: Arc::default(),
            },
            answers,
        }
    }

    // ---- Decisions ----

    /// Writes a conclusion down: the acknowledgement still to be confirmed, and the messages in the order they go.
    fn write(&self, conclusion: Conclusion, holdings: &Holdings) -> (Option<AckState>, Vec<Arc<Outgoing>>) {
        let limit = self.sender.sink.max_message_bytes();
        let now_ms = clock::epoch_ms();
        match conclusion {
            Conclusion::Bury { arrival, failure } => {
                let cause = Cause {
                    failure: &failure,
                    reason: "unreadable",
                    retries_used: 0,
                    attempts: &[self.answers.own_attempt(None)],
                };
                let letter = self
                    .answers
                    .dead_letter(None, &cause, &arrival.original(), limit, now_ms);
                (None, vec![Arc::new(letter)])
            }
            Conclusion::Repeat(result) => (None, vec![result]),
            Conclusion::Answer(answer) => {
                let Answer {
                    ack,
                    step,
                    dead_letter,
                    rejected,
                    load,
                    arrival,
                    identity,
                } = *answer;
                let written = self.answers.result(&identity, &step, load, limit, now_ms);
                if let Some(bytes) = written.too_large_bytes {
                    self.sender
                        .log
                        .emit(events::result_too_large(&identity, bytes, limit));
                }
                if !rejected {
                    self.sender.log.emit(events::step_ended(&identity, &step));
                }
                let result = Arc::new(written.message);
                if let Some(claim) = &holdings.claim {
                    claim.record_result(&result);
                }
                let letter = step.outcome.failure().zip(dead_letter).map(|(failure, reason)| {
                    let started_at = (!rejected).then_some(arrival.received_at_ms);
                    let cause = Cause {
                        failure,
                        reason,
                        retries_used: step.retries_used,
                        attempts: &[self.answers.own_attempt(started_at)],
                    };
                    self.answers
                        .dead_letter(Some(&identity), &cause, &arrival.original(), limit, now_ms)
                });
                (
                    Some(ack),
                    std::iter::once(result).chain(letter.map(Arc::new)).collect(),
                )
            }
        }
    }
}

// ---- Effects ----

impl Sender {
    /// Sends until confirmed. Gives up only on what the server will never take. True when the stream had an answer with
    /// this message id before this process sent any.
    async fn send(&self, message: &Outgoing) -> bool {
        let _counted = Counted::new(&self.unconfirmed);
        for attempt in 1.. {
            let error = match self.sink.publish(message).await {
                Ok(published) => return attempt == 1 && published == Published::KnownBefore,
                Err(PublishError::Refused(error)) => {
                    self.log.emit(events::publish_refused(&message.subject, &error));
                    return false;
                }
                Err(PublishError::Unconfirmed(error)) => error,
            };
            let delay = retry_delay(attempt);
            let delay_ms = whole_ms(delay);
            self.log.emit(events::publish_retried(
                &message.subject,
                &error,
                attempt,
                delay_ms,
            ));
            tokio::time::sleep(delay).await;
        }
        false
    }

    /// The acknowledgement that was on its way; sent again when word of it never came.
    async fn confirm(&self, ack: AckState) {
        match ack {
            AckState::Unsent(message) => {
                self.send(&message).await;
            }
            AckState::Sent(SentAck { message, confirmed }) => {
                if confirmed.await.is_err() {
                    self.send(&message).await;
                }
            }
        }
    }

    /// Everything that is said about an assignment, then the verdict, then letting go.
    async fn conclude(self, ack: Option<AckState>, messages: Vec<Arc<Outgoing>>, holdings: Holdings) {
        // What is repeated is known to the stream; what is said for the first time should not be.
        let is_news = ack.is_some();
        let ack = async {
            if let Some(ack) = ack {
                self.confirm(ack).await;
            }
        };
        // Polled in this order, so the acknowledgement is handed to the connection first.
        tokio::join!(biased; ack, async {
            for message in &messages {
                if self.send(message).await && is_news {
                    let id = message.headers.get(MESSAGE_ID).unwrap_or_default();
                    self.log.emit(events::answered_before(&message.subject, id));
                }
            }
        });
        self.settle(&holdings, Verdict::Ack).await;
        drop(holdings);
    }

    async fn settle(&self, holdings: &Holdings, verdict: Verdict) {
        if let Some(lease) = &holdings.lease {
            self.sink.settle(lease.token(), verdict).await;
        }
    }
}

/// Doubles from [`FIRST_RETRY`] up to [`LONGEST_RETRY`].
fn retry_delay(attempt: u32) -> Duration {
    FIRST_RETRY
        .saturating_mul(1 << attempt.saturating_sub(1).min(16))
        .min(LONGEST_RETRY)
}

/// One message among the unconfirmed ones, for as long as it is being sent.
struct Counted<'a> {
    unconfirmed: &'a Mutex<Unconfirmed>,
    number: u64,
}

impl<'a> Counted<'a> {
    fn new(unconfirmed: &'a Mutex<Unconfirmed>) -> Self {
        let mut all = unconfirmed.lock().unwrap_or_else(PoisonError::into_inner);
        let number = all.next;
        all.next += 1;
        all.since.insert(number, Instant::now());
        Self { unconfirmed, number }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut all = self.unconfirmed.lock().unwrap_or_else(PoisonError::into_inner);
        all.since.remove(&self.number);
    }
}

// ---- Actix shell. What is being sent lives in futures of its own: they survive a failed publisher. ----

impl Actor for Publisher {
    type Context = Context<Self>;
}

impl Handler<Acknowledge> for Publisher {
    type Result = ();

    fn handle(&mut self, Acknowledge { message, confirmed }: Acknowledge, _: &mut Self::Context) {
        let sender = self.sender.clone();
        actix::spawn(async move {
            sender.send(&message).await;
            let _ = confirmed.send(());
        });
    }
}

impl Handler<Conclude> for Publisher {
    type Result = ();

    fn handle(&mut self, Conclude { conclusion, holdings }: Conclude, _: &mut Self::Context) {
        let (ack, messages) = self.write(conclusion, &holdings);
        actix::spawn(self.sender.clone().conclude(ack, messages, holdings));
    }
}

impl Handler<Settle> for Publisher {
    type Result = ();

    fn handle(&mut self, Settle { holdings, verdict }: Settle, _: &mut Self::Context) {
        let sender = self.sender.clone();
        actix::spawn(async move {
            sender.settle(&holdings, verdict).await;
        });
    }
}

impl Handler<LookAtPublisher> for Publisher {
    type Result = PublisherSnapshot;

    fn handle(&mut self, _: LookAtPublisher, _: &mut Self::Context) -> PublisherSnapshot {
        let unconfirmed = self
            .sender
            .unconfirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let oldest = unconfirmed.since.first_key_value().map(|(_, since)| *since);
        PublisherSnapshot {
            unconfirmed: unconfirmed.since.len(),
            oldest_unconfirmed_ms: oldest.map_or(0, |since| elapsed_ms(since, Instant::now())),
        }
    }
}
