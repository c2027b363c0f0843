//! Where the pipeline's messages leave: the edge that the publisher writes to.
//!
//! Neighbours: `nats::sink` is the real one, `exec` prints, tests bring their own. A sink tries once and says what
//! became of it; trying again is the publisher's business.

use std::sync::Arc;

use bytes::Bytes;
use caf_protocol::headers::Headers;
use futures_util::future::BoxFuture;

use crate::lease::LeaseToken;

/// One message to publish: exact bytes, so that sending it again sends the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    /// Where to.
    pub subject: String,
    /// With which headers; the message id is among them.
    pub headers: Headers,
    /// The bytes.
    pub payload: Bytes,
}

/// What is said to the broker about a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Done with it.
    Ack,
    /// Deliver it again after this many milliseconds; at least 100, an immediate one loops.
    Nak {
        /// The delay.
        delay_ms: u64,
    },
    /// Still working on it.
    InProgress,
}

impl Verdict {
    /// Whether the assignment is given up with the delivery, so that whoever gets it next need not ask.
    pub fn frees_claim(&self) -> bool {
        matches!(self, Self::Nak { .. })
    }
}

/// A message that was published: stored, or where nothing stores, handed over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// Stream and sequence at which it can be read back, where a stream stores it.
    pub position: Option<(Arc<str>, u64)>,
    /// The stream had one with the same message id already and kept that one.
    pub known_before: bool,
}

/// Why a message was not published.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    /// Not confirmed: it may or may not have arrived. Send the same bytes again.
    #[error("not confirmed: {0}")]
    Unconfirmed(String),
    /// The server will never take it. Sending it again is pointless.
    #[error("refused: {0}")]
    Refused(String),
}

/// An edge to publish to.
pub trait Sink: Send + Sync + 'static {
    /// Publishes once. Resolves when the message is confirmed as stored, or where nothing confirms, handed over.
    /// Never waits without limit.
    fn publish(&self, message: &Outgoing) -> BoxFuture<'static, Result<Published, PublishError>>;

    /// Tells the broker what became of a delivery. A lost verdict is harmless: the delivery comes back.
    fn settle(&self, token: LeaseToken, verdict: Verdict) -> BoxFuture<'static, ()>;

    /// Largest message, headers included, in bytes.
    fn max_message_bytes(&self) -> usize;
}
