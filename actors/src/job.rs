//! What travels from intake to publisher: the delivery it began as, and the job it became.
//!
//! Neighbours: a source makes a [`Delivery`], intake turns it into a [`Job`], pool and block worker pass it on, the
//! publisher takes it apart. Everything a job holds is an owned value that returns when dropped.

use std::sync::Arc;

use bytes::Bytes;
use caf_protocol::ack::OverloadStatus;
use caf_protocol::assignment::Identity;
use caf_protocol::block::{Block, ResourceClass, RunMode, Task};
use caf_protocol::dead_letter::Original;
use caf_protocol::headers::Headers;
use caf_protocol::model::Cost;
use caf_protocol::reference::{Fetch, PayloadRef};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::abandoned::GivenUp;
use crate::block_worker::retry::RetryPlan;
use crate::cancellation::Cancellable;
use crate::claims::Claim;
use crate::claims::fleet::Proof;
use crate::clock::whole_ms;
use crate::held::HeldPermit;
use crate::lease::Lease;
use crate::pool::Place;
use crate::pool::policy::Level;
use crate::sink::Outgoing;
use crate::tenants::Share;
use crate::trace::Span;

/// A message as it arrived, byte for byte. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Subject it arrived on.
    pub subject: Arc<str>,
    /// Its headers.
    pub headers: Arc<Headers>,
    /// Its bytes.
    pub payload: Bytes,
    /// Stream and sequence, when it came from a stream.
    pub position: Option<(Arc<str>, u64)>,
    /// When it was stored in the stream, by the clock of the broker, in milliseconds since the Unix epoch; nothing where it
    /// came from no stream, or that is not known.
    pub published_at_ms: Option<u64>,
    /// When it arrived, in milliseconds since the Unix epoch.
    pub received_at_ms: u64,
    /// When it arrived: the first start of handling, unless a claim knows an earlier one.
    pub received: Instant,
}

impl Arrival {
    /// The form in which a dead letter quotes it.
    pub fn original(&self) -> Original<'_> {
        Original {
            subject: &self.subject,
            headers: &self.headers,
            payload: &self.payload,
            position: self
                .position
                .as_ref()
                .map(|(stream, sequence)| (&**stream, *sequence)),
            received_at_ms: self.received_at_ms,
        }
    }
}

/// What a source hands to intake. Dropping it unanswered lets a broker deliver it again.
pub struct Delivery {
    /// The message.
    pub arrival: Arrival,
    /// Room that it takes.
    pub permit: HeldPermit,
    /// Hold on it, when it came from a stream.
    pub lease: Option<Arc<Lease>>,
    /// Set when the broker has given it up: it is answered and never run.
    pub given_up: Option<GivenUp>,
}

/// What a job holds until it is answered: returned together, when the answer is confirmed.
pub struct Holdings {
    /// The right to answer.
    pub claim: Option<Claim>,
    /// Hold on the delivery.
    pub lease: Option<Arc<Lease>>,
    /// Room in the worker.
    pub permit: HeldPermit,
    /// Fires when it is to stop, and says why.
    pub cancel: Cancellable,
    /// In place of a lease, when the broker has given the message up.
    pub given_up: Option<GivenUp>,
    /// What it takes of the quotas of its tenant: waiting and running until it has an outcome.
    pub share: Share,
    /// The span of the delivery: over when everything else is let go. Empty while traces are off.
    pub span: Span,
}

impl Holdings {
    /// Whether the assignment is still ours to answer and to work on: the lease vouches for it, and when that has
    /// lapsed, the claim. Where no claim is shared with others, nobody else can tell.
    pub async fn prove(&self) -> Proof {
        self.prove_at(Instant::now()).await
    }

    /// [`Holdings::prove`] for a caller that has its own clock.
    pub async fn prove_at(&self, now: Instant) -> Proof {
        if !self.has_lapsed_at(now) {
            return Proof::Ours;
        }
        let token = self.lease.as_ref().and_then(|lease| lease.token(now));
        let proof = match self.claim.as_ref().and_then(Claim::fleet) {
            Some(claim) => claim.prove().await,
            None => Proof::Ours,
        };
        if let (Proof::Ours, Some(lease), Some(token)) = (&proof, &self.lease, token) {
            lease.proven(&token);
        }
        proof
    }

    /// Whether there was a lease and it has lapsed, now or before the message was last delivered again.
    pub fn has_lapsed(&self) -> bool {
        self.has_lapsed_at(Instant::now())
    }

    /// [`Holdings::has_lapsed`] for a caller that has its own clock.
    pub fn has_lapsed_at(&self, now: Instant) -> bool {
        self.lease.as_ref().is_some_and(|lease| !lease.vouches(now))
    }
}

/// The acknowledgement of an accepted job: its exact bytes, and word of its confirmation.
pub struct SentAck {
    /// For sending again if the word never comes.
    pub message: Arc<Outgoing>,
    /// Resolves when it is confirmed; fails when whoever was sending it is gone.
    pub confirmed: oneshot::Receiver<()>,
}

/// What a job is to run.
#[derive(Clone)]
pub enum Work {
    /// A block's work with its inputs parsed.
    Ready(Arc<dyn Task>),
    /// A block whose inputs are still elsewhere.
    Referenced(Referenced),
}

/// A block, and where its inputs are. The block worker fetches them once and makes a task of both.
#[derive(Clone)]
pub struct Referenced {
    /// What will run.
    pub block: Arc<dyn Block>,
    /// Where the inputs are.
    pub payload: PayloadRef,
    /// Who gets them.
    pub fetcher: Arc<dyn Fetch>,
}

/// An accepted assignment on its way to an outcome.
pub struct Job {
    /// The message it came as.
    pub arrival: Arrival,
    /// Whom the answer goes to.
    pub identity: Arc<Identity>,
    /// What to run.
    pub work: Work,
    /// Pool it runs in.
    pub class: ResourceClass,
    /// How urgent it is among the jobs of its tenant.
    pub priority: u8,
    /// Whether running it twice is harmless.
    pub repeatable: bool,
    /// First start of handling by a worker: deadline and latency count from here.
    pub started: Instant,
    /// When it got its slot; nothing before.
    pub began: Option<Instant>,
    /// When it must be over.
    pub deadline: Instant,
    /// Whether, how often and when a failed attempt is followed by another.
    pub retry: RetryPlan,
    /// Whether it is called once only, whatever its plan: its pool was overloaded when it came.
    pub skip_retries: bool,
    /// Whether it is called whatever its circuit breaker says: its pool was loaded when it came.
    pub skip_circuit_breaker: bool,
    /// Whether nothing may run beside it: it may have killed its worker before.
    pub alone: bool,
    /// Load of the pool when the job came, if its queue is bounded.
    pub load: Option<PoolLoad>,
    /// Its acknowledgement.
    pub ack: SentAck,
    /// Its place in the pool: queue or slot.
    pub place: Place,
    /// What it holds.
    pub holdings: Holdings,
}

impl Job {
    /// Whether it runs where the pipeline does.
    pub fn is_light(&self) -> bool {
        matches!(&self.work, Work::Ready(task) if task.mode() == RunMode::Light)
    }

    /// What its calls have cost.
    pub fn cost(&self) -> Cost {
        match &self.work {
            Work::Ready(task) => task.cost(),
            Work::Referenced(_) => Cost::default(),
        }
    }

    /// Milliseconds since the first start of handling.
    pub fn latency_ms(&self, now: Instant) -> u64 {
        elapsed_ms(self.started, now)
    }
}

/// Whole milliseconds from `from` to `to`; 0 when the order is reversed.
pub fn elapsed_ms(from: Instant, to: Instant) -> u64 {
    whole_ms(to.saturating_duration_since(from))
}

/// How full a bounded queue was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLoad {
    /// Jobs waiting.
    pub depth: usize,
    /// The word for it.
    pub status: OverloadStatus,
    /// What the job got less for it, if anything.
    pub degraded: Option<Level>,
}
