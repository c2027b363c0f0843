//! Messages that the broker has given up delivering: nobody would ever answer them.
//!
//! Neighbours: `nats::abandoned` finds them and hands each to an [`Undertaker`], once for sure and sometimes again; the
//! real one gives them to intake. The worker's own consumer has no limit on deliveries; these are the messages of
//! consumers that an operator made with one.

use std::time::Duration;

use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::held::HeldPermits;
use crate::job::{Arrival, Delivery};
use crate::runtime::Route;
use crate::sink::Verdict;

/// Longest wait for an abandoned message to be answered; it is brought again, and its answers are the same.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a message was found to be abandoned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The broker said that it was delivered as often as its consumer allows.
    Exhausted {
        /// So often.
        deliveries: u64,
    },
    /// The broker said that a client terminated it.
    Terminated,
    /// It is still in the stream although its consumer has passed it.
    LeftBehind,
}

impl Found {
    /// The word for it in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exhausted { .. } => "exhausted",
            Self::Terminated => "terminated",
            Self::LeftBehind => "left behind",
        }
    }

    /// The reason in the dead letter.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Exhausted { .. } | Self::LeftBehind => "max_deliver",
            Self::Terminated => "terminated",
        }
    }
}

/// A message that its consumer will never deliver again.
pub struct AbandonedMessage {
    /// The message; its position is known. It counts as received when it was found.
    pub arrival: Arrival,
    /// How it was found.
    pub found: Found,
    /// To be carried out when everything that is to be said about it is confirmed.
    pub removal: Removal,
}

/// Takes an abandoned message out of its stream, where it would lie for ever.
pub struct Removal(Option<Remove>);

type Remove = Box<dyn FnOnce() -> BoxFuture<'static, Result<(), String>> + Send>;

impl Removal {
    /// Carried out by `remove`.
    pub fn by(remove: impl FnOnce() -> BoxFuture<'static, Result<(), String>> + Send + 'static) -> Self {
        Self(Some(Box::new(remove)))
    }

    /// Nothing to do: the stream keeps messages for other readers, until its own limits.
    pub fn none() -> Self {
        Self(None)
    }

    /// Removes it.
    ///
    /// # Errors
    /// What the broker said. The message is then found again.
    pub async fn carry_out(self) -> Result<(), String> {
        match self.0 {
            Some(remove) => remove().await,
            None => Ok(()),
        }
    }
}

/// Has the last word on abandoned messages.
pub trait Undertaker: Send + Sync + 'static {
    /// Says what is to be said and removes the message. True when it is done with; else the message is brought again.
    /// Never waits without limit.
    fn bury(&self, message: AbandonedMessage) -> BoxFuture<'static, bool>;
}

/// Gives abandoned messages to intake, where each leaves by a row like any other: answered before, held, or row 17.
#[derive(Clone)]
pub struct Gravedigger {
    /// Next station.
    pub intake: Route<Delivery>,
    /// Room in the worker.
    pub held: HeldPermits,
}

/// What travels with a message that its consumer will never deliver again.
pub struct GivenUp {
    /// The reason in the dead letter.
    pub reason: &'static str,
    /// What the result says.
    pub failure: Failure,
    /// Told in place of the broker; dropped when there is nothing to tell.
    pub verdict: oneshot::Sender<Verdict>,
}

impl Gravedigger {
    async fn hand_over(self, message: AbandonedMessage) -> bool {
        let AbandonedMessage {
            arrival,
            found,
            removal,
        } = message;
        // One at a time is brought: a worker that is full must not keep it waiting.
        let permit = self.held.take_extra(arrival.payload.len());
        let (verdict, told) = oneshot::channel();
        let delivery = Delivery {
            arrival,
            permit,
            lease: None,
            given_up: Some(GivenUp {
                reason: found.reason(),
                failure: failure_of(found),
                verdict,
            }),
        };
        if self.intake.tell(delivery).is_err() {
            return false;
        }
        match told.await {
            Ok(Verdict::Ack) => removal.carry_out().await.is_ok(),
            // Somebody works on it, or it was lost on the way: it is looked at again.
            _ => false,
        }
    }
}

impl Undertaker for Gravedigger {
    fn bury(&self, message: AbandonedMessage) -> BoxFuture<'static, bool> {
        let buried = timeout(PATIENCE, self.clone().hand_over(message));
        async move { buried.await.unwrap_or(false) }.boxed()
    }
}

/// What an abandoned assignment died of (row 17).
pub fn failure_of(found: Found) -> Failure {
    let failure = Failure::new(
        ErrorCode::InternalError,
        "the assignment was given up before it was answered",
    );
    match found {
        Found::Exhausted { deliveries } => failure
            .with("deliveries", json!(deliveries))
            .internally("the broker delivered it as often as its consumer allows"),
        Found::Terminated => failure.internally("a client of the broker terminated it"),
        Found::LeftBehind => {
            failure.internally("the broker's consumer has passed it, and it is still in the stream")
        }
    }
}
