//! The publisher: writes answers down, sends them until they are confirmed, and only then settles the delivery.
//!
//! Neighbours: intake, pools and block workers tell it what to say; it writes to a [`Sink`]. It is the only station
//! that sends. What it sends again is the same, byte for byte, under the same message id. What a job holds is let go
//! when its answer is confirmed, so unconfirmed answers are bounded by the held permits. The order of the steps is in
//! [`plan`]; `writing` and `sending` carry them out.

pub mod plan;
pub mod replay;
mod sending;
mod shrinking;
mod writing;

use std::sync::Arc;

use actix::{Actor, Context, Handler, Message};
use caf_protocol::assignment::Identity;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use tokio::sync::oneshot;

use self::sending::Sender;
pub use self::sending::{outcome_of, retry_delay};
use self::shrinking::Shrinker;
use self::writing::Writer;
use crate::answers::Answers;
use crate::events::{self, Log};
use crate::job::{Arrival, Holdings, Job, PoolLoad, SentAck};
use crate::outbox::Outbox;
use crate::runtime::Route;
use crate::sink::{Outgoing, Sink, Verdict};
use crate::spill::Spiller;

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
    /// Confirmed.
    Known,
}

impl AckState {
    /// What is kept on disk beside the result: also one that is on its way, for its confirmation may never come.
    pub fn to_keep(&mut self) -> Option<Arc<Outgoing>> {
        if let Self::Sent(SentAck { confirmed, .. }) = self
            && confirmed.try_recv().is_ok()
        {
            *self = Self::Known;
        }
        match self {
            Self::Sent(SentAck { message, .. }) | Self::Unsent(message) => Some(Arc::clone(message)),
            Self::Known => None,
        }
    }
}

impl Conclude {
    /// The last word on a job that was accepted: rows 6, 7 and 8, and what a shutdown cancels.
    pub fn of_job(job: Job, step: StepResult) -> Self {
        let answer = Answer {
            ack: AckState::Sent(job.ack),
            dead_letter: dead_letter_of(&step.outcome),
            step,
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

/// Why a dead letter is kept of a job that ran: failed for good, it is kept for people. Time and cancellation are
/// nobody's fault; overload is retried.
pub fn dead_letter_of(outcome: &Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Error(failure) if failure.code != ErrorCode::SystemOverload => Some("execution_failed"),
        _ => None,
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
    writer: Writer,
}

/// What the publisher needs. Every dependency comes in here; cheap to clone.
#[derive(Clone)]
pub struct PublisherParts {
    /// Where messages go.
    pub sink: Arc<dyn Sink>,
    /// Where results are kept until they are confirmed, if they are.
    pub outbox: Option<Outbox>,
    /// Writes messages.
    pub answers: Answers,
    /// Keeps elsewhere what does not fit.
    pub spiller: Spiller,
    /// Log.
    pub log: Log,
}

impl Publisher {
    /// A publisher with these dependencies.
    pub fn new(parts: PublisherParts) -> Self {
        let PublisherParts {
            sink,
            outbox,
            answers,
            spiller,
            log,
        } = parts;
        let shrinker = Shrinker {
            spiller: spiller.clone(),
            result_subject: answers.result_subject().into(),
            log: log.clone(),
        };
        Self {
            writer: Writer {
                answers,
                spiller,
                sink: Arc::clone(&sink),
                log,
            },
            sender: Sender::new(sink, outbox, shrinker),
        }
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
            sender.send_until_confirmed(&message).await;
            let _ = confirmed.send(());
        });
    }
}

impl Handler<Conclude> for Publisher {
    type Result = ();

    fn handle(&mut self, Conclude { conclusion, holdings }: Conclude, _: &mut Self::Context) {
        if let Conclusion::Answer(answer) = &conclusion
            && !answer.rejected
        {
            self.sender
                .log(events::step_ended(&answer.identity, &answer.step));
        }
        let (sender, writer) = (self.sender.clone(), self.writer.clone());
        actix::spawn(async move {
            let written = writer.write(conclusion, &holdings).await;
            sender.conclude(written, holdings).await;
        });
    }
}

impl Handler<Settle> for Publisher {
    type Result = ();

    fn handle(&mut self, Settle { holdings, verdict }: Settle, _: &mut Self::Context) {
        let sender = self.sender.clone();
        actix::spawn(async move { sender.settle(holdings, verdict).await });
    }
}

impl Handler<LookAtPublisher> for Publisher {
    type Result = PublisherSnapshot;

    fn handle(&mut self, _: LookAtPublisher, _: &mut Self::Context) -> PublisherSnapshot {
        self.sender.snapshot()
    }
}
