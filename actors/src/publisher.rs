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
use std::time::Duration;

use actix::{Actor, Context, Handler, Message};
use caf_protocol::assignment::Identity;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::sending::Sender;
pub use self::sending::{outcome_of, retry_delay};
use self::shrinking::Shrinker;
use self::writing::Writer;
use crate::answers::Answers;
use crate::counts::Counts;
use crate::events::{self, Log};
use crate::job::{Arrival, Holdings, Job, PoolLoad, SentAck};
use crate::outbox::Outbox;
use crate::runtime::Route;
use crate::sink::{Outgoing, Sink, Verdict};
use crate::spill::Spiller;
use crate::trace::{Publishing, Scope, Span, SpanKind};

// ---- Messages, in the order of a job's life ----

/// From intake: the pool has taken the job.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Acknowledge {
    /// The acknowledgement.
    pub message: Arc<Outgoing>,
    /// Told when it is confirmed.
    pub confirmed: oneshot::Sender<()>,
    /// The span that it is sent in.
    pub scope: Scope,
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
        arrival: Box<Arrival>,
        /// Why.
        failure: Failure,
    },
    /// Row 11: the recorded result again.
    Repeat(Arc<Outgoing>),
    /// Every other row that ends with a result.
    Answer(Box<Answer>),
}

impl Conclusion {
    /// Says to the span of the delivery how it ends.
    fn tell(&self, span: &mut Span) {
        let (status, outcome, failure) = match self {
            Self::Bury { failure, .. } => ("error", "unreadable", Some(failure)),
            Self::Repeat(_) => ("completed", "repeated", None),
            Self::Answer(answer) => {
                let outcome = &answer.step.outcome;
                let (status, failure) = match outcome.failure() {
                    None => ("completed", None),
                    Some(failure) => ("error", Some(failure)),
                };
                let word = if answer.rejected {
                    "rejected"
                } else {
                    outcome.status().as_str()
                };
                (status, word, failure)
            }
        };
        span.set("execution.status", status);
        span.set("execution.outcome", outcome);
        if let Some(failure) = failure {
            span.fail(failure);
        }
    }
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
    /// The row by which it leaves, as metrics name it.
    pub row: &'static str,
    /// How long it had its slot; nothing when it never had one.
    pub ran: Option<Duration>,
    /// Load of the pool when the job came.
    pub load: Option<PoolLoad>,
    /// The message.
    pub arrival: Arrival,
    /// Whom it goes to.
    pub identity: Arc<Identity>,
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
        let row = match &step.outcome {
            Outcome::Success(_) => "6",
            Outcome::Error(_) => "7",
            Outcome::Timeout(_) => "8",
            Outcome::Cancelled(_) => "9",
        };
        Self::of_job_by(row, job, step)
    }

    /// [`Conclude::of_job`] for a job that leaves by another row. Row 9 it is all the same when somebody has asked for that:
    /// from here on, nobody can any more.
    pub fn of_job_by(row: &'static str, mut job: Job, step: StepResult) -> Self {
        job.holdings.share.end();
        let (row, step) = match job.holdings.cancel.seal() {
            Some(asked) => {
                let outcome = Outcome::from(asked.failure());
                ("9", StepResult { outcome, ..step })
            }
            None => (row, step),
        };
        let answer = Answer {
            ack: AckState::Sent(job.ack),
            dead_letter: dead_letter_of(&step.outcome),
            step,
            rejected: false,
            row,
            ran: job.began.map(|began| began.elapsed()),
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
    sender: Arc<Sender>,
    writer: Arc<Writer>,
    answered: Counts,
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
    /// What is answered is counted here.
    pub answered: Counts,
    /// Log.
    pub log: Log,
}

impl Conclusion {
    /// Counts it, unless it is said again.
    fn count(&self, answered: &Counts) {
        match self {
            Self::Answer(answer) => {
                let took = Duration::from_millis(answer.step.latency_ms);
                answered.answered(took, answer.step.outcome.failure().map(|failure| failure.code));
            }
            Self::Bury { failure, .. } => answered.answered(Duration::ZERO, Some(failure.code)),
            Self::Repeat(_) => {}
        }
    }
}

impl Publisher {
    /// A publisher with these dependencies.
    pub fn new(parts: PublisherParts) -> Self {
        let PublisherParts {
            sink,
            outbox,
            answers,
            spiller,
            answered,
            log,
        } = parts;
        let shrinker = Shrinker {
            spiller: spiller.clone(),
            result_subject: answers.result_subject().into(),
            log: log.clone(),
        };
        Self {
            writer: Arc::new(Writer {
                answers,
                spiller,
                sink: Arc::clone(&sink),
                log,
            }),
            sender: Arc::new(Sender::new(sink, outbox, shrinker)),
            answered,
        }
    }
}

impl Publisher {
    fn tell_end(&self, answer: &Answer) {
        let Answer { identity, step, .. } = answer;
        let log = &self.writer.log;
        match step.outcome.failure() {
            Some(failure) if answer.rejected => log.measure(|| events::steps::rejected(identity, failure)),
            _ => log.emit(events::steps::ended(identity, step, answer.ran)),
        }
    }
}

// ---- Actix shell. What is being sent lives in futures of its own: they survive a failed publisher. ----

impl Actor for Publisher {
    type Context = Context<Self>;
}

impl Handler<Acknowledge> for Publisher {
    type Result = ();

    fn handle(&mut self, acknowledge: Acknowledge, _: &mut Self::Context) {
        let Acknowledge {
            message,
            confirmed,
            scope,
        } = acknowledge;
        let sender = Arc::clone(&self.sender);
        actix::spawn(async move {
            let since = Instant::now();
            let mut span = scope.publishing(Publishing::Ack, &message);
            let sent = sender.send_until_confirmed(&message, &mut span).await;
            drop(span);
            if sent.is_some() {
                sender.tell_confirmed(Publishing::Ack, since);
            }
            let _ = confirmed.send(());
        });
    }
}

impl Handler<Conclude> for Publisher {
    type Result = ();

    fn handle(&mut self, conclude: Conclude, _: &mut Self::Context) {
        let Conclude {
            conclusion,
            mut holdings,
        } = conclude;
        conclusion.count(&self.answered);
        conclusion.tell(&mut holdings.span);
        if let Conclusion::Answer(answer) = &conclusion {
            self.tell_end(answer);
        }
        let (sender, writer) = (Arc::clone(&self.sender), Arc::clone(&self.writer));
        actix::spawn(async move {
            let processing = match conclusion {
                Conclusion::Answer(_) => holdings.span.child("worker.response.process", SpanKind::Internal),
                Conclusion::Bury { .. } | Conclusion::Repeat(_) => Span::default(),
            };
            let written = writer.write(conclusion, &holdings).await;
            drop(processing);
            sender.conclude(written, holdings).await;
        });
    }
}

impl Handler<Settle> for Publisher {
    type Result = ();

    fn handle(&mut self, Settle { holdings, verdict }: Settle, _: &mut Self::Context) {
        let sender = Arc::clone(&self.sender);
        actix::spawn(async move { sender.settle(holdings, verdict).await });
    }
}

impl Handler<LookAtPublisher> for Publisher {
    type Result = PublisherSnapshot;

    fn handle(&mut self, _: LookAtPublisher, _: &mut Self::Context) -> PublisherSnapshot {
        self.sender.snapshot()
    }
}
