//! Messages that a stream stores, and the stream's word for each of them.
//!
//! Neighbours: the sink's answers and the claims of a fleet leave here. One subscription takes all words in, one clock
//! gives up on those that do not come: a subscription, a permit and timers per message, as the client library has them,
//! cost more than the message. Publishes once per call and decides nothing: what to do without a word is the caller's
//! business. How many wait is bounded by what the worker holds: each held job waits for a few words at most.

mod waiting;
mod word;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::client::PublishErrorKind;
use async_nats::{Client, HeaderMap, Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{OnceCell, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};

use self::waiting::{TICKS_PER_LIMIT, Waiting};
use self::word::Names;
use super::connection::{Connection, Link};
use crate::errors::chain;

/// A stream has the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    /// Name of the stream.
    pub(super) stream: Arc<str>,
    /// Where in it.
    pub(super) sequence: u64,
    /// It had one with the same message id already and kept that one.
    pub(super) known_before: bool,
}

/// Why there is no word that a stream has the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotStored {
    /// Larger than the server takes; it was not sent.
    #[error("{0}")]
    TooLarge(String),
    /// No stream takes the subject, and nobody else does.
    #[error("no stream takes the subject")]
    NoStream,
    /// The limit passed.
    #[error("no confirmation in time")]
    Silent,
    /// The connection broke meanwhile.
    #[error("the connection broke before the confirmation")]
    CutOff,
    /// The stream did not take it.
    #[error("{description} (error code {code})")]
    Refused {
        /// Number of the error, as JetStream has it.
        code: u64,
        /// Its words.
        description: String,
    },
    /// Not sent, or answered with something else than a word of JetStream.
    #[error("{0}")]
    Other(String),
}

type Answer = Result<Stored, NotStored>;
type Table = Mutex<Waiting<oneshot::Sender<Answer>>>;

/// Publishes and waits for the stream's word. Cheap to clone; all clones share one subscription.
#[derive(Clone)]
pub(super) struct Confirmations(Arc<Inner>);

struct Inner {
    client: Client,
    link: watch::Receiver<Link>,
    /// Begins every reply subject; the number of the message ends it.
    prefix: String,
    limit: Duration,
    waiting: Arc<Table>,
    /// Made before the first message is sent: who publishes nothing of the kind subscribes to nothing. Tells the listener
    /// by its end that nobody asks any more.
    listening: OnceCell<oneshot::Sender<()>>,
}

impl Confirmations {
    /// Confirmations on a connection; each comes within about `limit`, or none does.
    pub(super) fn new(connection: &Connection, limit: Duration) -> Self {
        Self(Arc::new(Inner {
            client: connection.client.clone(),
            link: connection.link.clone(),
            prefix: format!("{}.", connection.client.new_inbox()),
            limit,
            waiting: Arc::default(),
            listening: OnceCell::new(),
        }))
    }

    /// Publishes once. Resolves with the stream's word, or without one when the limit has passed (up to an eighth late) or
    /// the connection broke. A word that comes later is not heard.
    ///
    /// # Errors
    /// [`NotStored`]; but for [`NotStored::TooLarge`] and [`NotStored::Refused`], the message may be stored all the same.
    pub(super) async fn publish(&self, subject: Subject, headers: HeaderMap, payload: Bytes) -> Answer {
        let Inner { client, waiting, .. } = &*self.0;
        let heard = self.0.listening.get_or_try_init(|| self.listen()).await;
        heard.map_err(|error| NotStored::Other(chain(&error)))?;
        let (teller, mut answer) = oneshot::channel();
        let number = lock(waiting).enter(teller);
        let reply = reply_subject(&self.0.prefix, number);
        tokio::select! {
            biased;
            // Waits while the client's queue is full; the limit counts from here all the same.
            sent = client.publish_with_reply_and_headers(subject, reply, headers, payload) => if let Err(error) = sent {
                lock(waiting).take(number);
                return Err(match error.kind() {
                    PublishErrorKind::MaxPayloadExceeded => NotStored::TooLarge(chain(&error)),
                    PublishErrorKind::InvalidSubject | PublishErrorKind::Send => NotStored::Other(chain(&error)),
                });
            },
            answer = &mut answer => return answer.unwrap_or(Err(NotStored::CutOff)),
        }
        answer.await.unwrap_or(Err(NotStored::CutOff))
    }

    async fn listen(&self) -> Result<oneshot::Sender<()>, async_nats::SubscribeError> {
        let answers = self.0.client.subscribe(format!("{}*", self.0.prefix)).await?;
        let (asking, nobody_asks) = oneshot::channel();
        let listener = Listener {
            answers,
            prefix: self.0.prefix.len(),
            waiting: Arc::clone(&self.0.waiting),
            names: Names::default(),
        };
        tokio::spawn(listener.keep(self.0.link.clone(), self.0.limit, nobody_asks));
        Ok(asking)
    }
}

fn lock(waiting: &Table) -> MutexGuard<'_, Waiting<oneshot::Sender<Answer>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sixteen digits, so that the text is as long as its memory and becomes a subject without being copied.
fn reply_subject(prefix: &str, number: u64) -> Subject {
    use std::fmt::Write;
    let mut reply = String::with_capacity(prefix.len() + 16);
    reply.push_str(prefix);
    write!(reply, "{number:016x}").expect("a string takes all text");
    reply.into()
}

/// Takes in the words of all streams.
struct Listener {
    answers: Subscriber,
    /// Length of what stands before the number in a reply subject.
    prefix: usize,
    waiting: Arc<Table>,
    names: Names,
}

impl Listener {
    /// Until nobody asks any more, or the client has ended.
    async fn keep(
        mut self,
        mut link: watch::Receiver<Link>,
        limit: Duration,
        mut nobody_asks: oneshot::Receiver<()>,
    ) {
        let mut clock = interval(limit / TICKS_PER_LIMIT);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = *link.borrow_and_update();
        loop {
            let answer = tokio::select! {
                biased;
                _ = &mut nobody_asks => return,
                _ = clock.tick() => {
                    self.take_in_what_is_there();
                    let late = lock(&self.waiting).tick();
                    tell_all(late, &NotStored::Silent);
                    continue;
                }
                changed = link.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let now = *link.borrow_and_update();
                    let broke = seen.up && (!now.up || now.generation != seen.generation);
                    seen = now;
                    if broke {
                        self.take_in_what_is_there();
                        let cut_off = lock(&self.waiting).take_all();
                        tell_all(cut_off, &NotStored::CutOff);
                    }
                    continue;
                }
                answer = self.answers.next() => answer,
            };
            let Some(answer) = answer else { break };
            self.take_in(&answer);
            self.take_in_what_is_there();
        }
        // Nothing will be heard any more, for those neither who ask from now on.
        let cut_off = lock(&self.waiting).close();
        tell_all(cut_off, &NotStored::CutOff);
    }

    /// All that arrived together costs one look at the clock.
    fn take_in_what_is_there(&mut self) {
        while let Some(Some(answer)) = self.answers.next().now_or_never() {
            self.take_in(&answer);
        }
    }

    fn take_in(&mut self, answer: &Message) {
        let number = answer.subject.get(self.prefix..);
        let Some(number) = number.and_then(|digits| u64::from_str_radix(digits, 16).ok()) else {
            return;
        };
        let Some(teller) = lock(&self.waiting).take(number) else {
            return;
        };
        let word = match answer.status {
            Some(StatusCode::NO_RESPONDERS) => Err(NotStored::NoStream),
            _ => self.names.read(&answer.payload),
        };
        // Who asked may have left.
        let _ = teller.send(word);
    }
}

fn tell_all(tellers: impl IntoIterator<Item = oneshot::Sender<Answer>>, why: &NotStored) {
    for teller in tellers {
        let _ = teller.send(Err(why.clone()));
    }
}
