//! Messages that the broker has given up delivering: nobody would ever answer them.
//!
//! Neighbours: `nats::abandoned` finds them and hands each to an [`Undertaker`], once for sure and sometimes again: what
//! it publishes must carry message ids by which streams drop second copies. The worker's own consumer has no limit on
//! deliveries; these are the messages of consumers that an operator made with one.

use std::sync::Arc;

use caf_protocol::assignment::{Identity, Reading, read};
use caf_protocol::dead_letter::Cause;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;

use crate::answers::Answers;
use crate::clock;
use crate::events::{self, Log};
use crate::job::Arrival;
use crate::sink::{PublishError, Sink};

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

/// Keeps a dead letter of each abandoned message and says nothing to the router.
#[derive(Clone)]
pub struct LetterWriter {
    /// Where letters go.
    pub sink: Arc<dyn Sink>,
    /// Writes them.
    pub answers: Answers,
    /// Whether messages are removed when their letter is kept.
    pub remove: bool,
    /// Log.
    pub log: Log,
}

impl LetterWriter {
    async fn write(self, message: AbandonedMessage) -> bool {
        let AbandonedMessage {
            arrival,
            found,
            removal,
        } = message;
        let identity = identity_of(&arrival);
        let failure = failure_of(found);
        // Who attempted it, only the consumer's clients know.
        let cause = Cause {
            failure: &failure,
            reason: found.reason(),
            retries_used: 0,
            attempts: &[],
        };
        let letter = self.answers.dead_letter(
            identity.as_ref(),
            &cause,
            &arrival.original(),
            self.sink.max_message_bytes(),
            clock::epoch_ms(),
        );
        match self.sink.publish(&letter).await {
            Ok(_) => {}
            Err(PublishError::Refused(error)) => {
                // Kept where it is: removing it would lose the only copy.
                self.log.emit(events::publish_refused(&letter.subject, &error));
                return true;
            }
            Err(PublishError::Unconfirmed(_)) => return false,
        }
        !self.remove || removal.carry_out().await.is_ok()
    }
}

impl Undertaker for LetterWriter {
    fn bury(&self, message: AbandonedMessage) -> BoxFuture<'static, bool> {
        self.clone().write(message).boxed()
    }
}

/// Whose assignment it is, when it names anybody.
fn identity_of(arrival: &Arrival) -> Option<Identity> {
    match read(&arrival.payload, &arrival.headers) {
        Reading::Valid(assignment) => Some(assignment.identity),
        Reading::Invalid(identity, _) => Some(identity),
        Reading::Unanswerable(_) => None,
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use caf_protocol::headers::Headers;
    use serde_json::Value;
    use tokio::time::Instant;

    use super::*;
    use crate::lease::LeaseToken;
    use crate::settings::SubjectSettings;
    use crate::sink::{Outgoing, Published, Verdict};

    /// Answers every publish in the same way.
    struct Fake {
        answer: Result<Published, PublishError>,
        published: Mutex<Vec<Outgoing>>,
    }

    impl Sink for Fake {
        fn publish(&self, message: &Outgoing) -> BoxFuture<'static, Result<Published, PublishError>> {
            self.published.lock().unwrap().push(message.clone());
            let answer = self.answer.clone();
            async move { answer }.boxed()
        }

        fn settle(&self, _: LeaseToken, _: Verdict) -> BoxFuture<'static, ()> {
            async {}.boxed()
        }

        fn max_message_bytes(&self) -> usize {
            1_000_000
        }
    }

    /// Whether it is done with, whether the message was removed, and the letters.
    async fn bury(
        answer: Result<Published, PublishError>,
        remove: bool,
        payload: &'static [u8],
    ) -> (bool, bool, Vec<Outgoing>) {
        let sink = Arc::new(Fake {
            answer,
            published: Mutex::default(),
        });
        let removed = Arc::new(AtomicBool::new(false));
        let removal = {
            let (removed, sink) = (Arc::clone(&removed), Arc::clone(&sink));
            Removal::by(move || {
                assert!(
                    !sink.published.lock().unwrap().is_empty(),
                    "removed before it was kept"
                );
                removed.store(true, Ordering::Relaxed);
                async { Ok(()) }.boxed()
            })
        };
        let writer = LetterWriter {
            sink: Arc::clone(&sink) as Arc<dyn Sink>,
            answers: Answers::new(&SubjectSettings::default(), "w"),
            remove,
            log: Log::discard(),
        };
        let arrival = Arrival {
            subject: "caf.exec.assign.v1".into(),
            headers: Arc::new(Headers::default()),
            payload: payload.into(),
            position: Some(("caf-stream".into(), 7)),
            received_at_ms: 1,
            received: Instant::now(),
        };
        let message = AbandonedMessage {
            arrival,
            found: Found::Exhausted { deliveries: 2 },
            removal,
        };
        let done = writer.bury(message).await;
        let letters = sink.published.lock().unwrap().clone();
        (done, removed.load(Ordering::Relaxed), letters)
    }

    fn body(letter: &Outgoing) -> Value {
        serde_json::from_slice(&letter.payload).expect("json")
    }

    #[tokio::test]
    async fn an_abandoned_message_is_removed_only_after_its_letter_is_kept() {
        let payload = br#"{"assignment_id":"a-1","tenant_id":"acme"}"#;
        let (done, removed, letters) = bury(Ok(Published::Stored), true, payload).await;
        assert_eq!((done, removed, letters.len()), (true, true, 1));
        assert_eq!(letters[0].headers.get("Nats-Msg-Id"), Some("caf-stream.7.dlq"));
        let letter = body(&letters[0]);
        assert_eq!(
            (&letter["reason"], &letter["error_code"], &letter["assignment_id"]),
            (&json!("max_deliver"), &json!("INTERNAL_ERROR"), &json!("a-1"))
        );
        assert_eq!(letter["error"]["details"]["deliveries"], 2);
        let unconfirmed = || Err(PublishError::Unconfirmed("away".to_owned()));
        let (done, removed, _) = bury(unconfirmed(), true, payload).await;
        assert_eq!((done, removed), (false, false));
        let refused = || Err(PublishError::Refused("too large".to_owned()));
        let (done, removed, _) = bury(refused(), true, payload).await;
        assert_eq!((done, removed), (true, false));
        let (done, removed, _) = bury(Ok(Published::KnownBefore), false, payload).await;
        assert_eq!((done, removed), (true, false));
    }

    #[tokio::test]
    async fn an_abandoned_message_that_nobody_can_read_is_kept_too() {
        let (done, removed, letters) = bury(Ok(Published::Stored), true, b"noise").await;
        assert_eq!((done, removed), (true, true));
        let letter = body(&letters[0]);
        assert_eq!(
            (&letter["original_payload"], letter.get("assignment_id")),
            (&json!("noise"), None)
        );
    }
}
