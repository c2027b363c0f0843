//! Carries the steps of an answer out: keep, prove, publish until confirmed, record, settle.
//!
//! Neighbours: the publisher starts one of these futures per conclusion; [`super::plan`] says what comes next. They
//! survive a failed publisher. Nothing here decides what is said, or in which order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use caf_protocol::assignment::Identity;
use caf_protocol::headers::MESSAGE_ID;
use caf_protocol::ids::sha256_hex;
use caf_protocol::outcome::Status;
use tokio::time::Instant;

use super::plan::{Ended, Progress, Step, next_step};
use super::shrinking::Shrinker;
use super::{AckState, PublisherSnapshot};
use crate::claims::Claim;
use crate::claims::fleet::Proof;
use crate::claims::record::OutcomeRef;
use crate::clock::{self, whole_ms};
use crate::events::course::{Confirmed, Part};
use crate::events::{self, Event, Log};
use crate::job::{Holdings, SentAck, elapsed_ms};
use crate::outbox::{EntryId, NewEntry, Outbox};
use crate::sink::{Outgoing, PublishError, Published, Sink, Verdict};
use crate::trace::{Publishing, Span};

/// First wait before an unconfirmed message is sent again.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest wait before an unconfirmed message is sent again: short enough to be quick when the broker is back.
const LONGEST_RETRY: Duration = Duration::from_secs(2);
/// Hexadecimal digits of a result's hash that a claim keeps: 16 bytes.
const OUTCOME_HASH_DIGITS: usize = 32;

/// Says in the span of a result what that says. One that was written before is read, where anybody will see it.
pub(super) fn tell_status(span: &mut Span, result: &Outgoing, known: Option<Status>) {
    /// What is wanted of a result.
    #[derive(serde::Deserialize)]
    struct Recorded {
        status: Box<str>,
    }

    if !span.is_recorded() {
        return;
    }
    let recorded = || {
        let recorded = serde_json::from_slice::<Recorded>(&result.payload).ok()?;
        let all = [Status::Success, Status::Error, Status::Timeout, Status::Cancelled];
        all.into_iter()
            .find(|status| *recorded.status == *status.as_str())
    };
    if let Some(status) = known.or_else(recorded) {
        span.set("result.status", status.as_str());
    }
}

/// A conclusion as written: what is sent, in this order.
pub(super) struct Written {
    /// The acknowledgement, where the conclusion is news.
    pub(super) ack: Option<AckState>,
    /// The result, and for some rows a dead letter.
    pub(super) messages: Vec<Arc<Outgoing>>,
    /// Whom it goes to.
    pub(super) identity: Option<Arc<Identity>>,
    /// Stream and sequence of the assignment, when it came from a stream.
    pub(super) position: Option<(Arc<str>, u64)>,
    /// When the stream stored the assignment, in milliseconds since the Unix epoch.
    pub(super) published_at_ms: Option<u64>,
    /// What the result says, if it is known without reading it.
    pub(super) status: Option<Status>,
}

impl Written {
    /// What a stream knows already, or what nobody waits for: neither kept nor recorded.
    pub(super) fn repeated(messages: Vec<Arc<Outgoing>>) -> Self {
        Self {
            ack: None,
            messages,
            identity: None,
            position: None,
            published_at_ms: None,
            status: None,
        }
    }
}

/// Sends for the publisher, and for replays.
#[derive(Clone)]
pub(super) struct Sender {
    sink: Arc<dyn Sink>,
    outbox: Option<Outbox>,
    shrinker: Shrinker,
    log: Log,
    unconfirmed: Arc<Mutex<Unconfirmed>>,
}

/// Messages that are being sent, by number, with the time of their first try.
#[derive(Default)]
struct Unconfirmed {
    next: u64,
    since: BTreeMap<u64, Instant>,
}

/// How one try to send a message ended.
enum Tried {
    Sent(Published),
    /// The server will never take it.
    Refused,
    /// Not confirmed; the wait before the next try is over.
    Unconfirmed,
}

/// One conclusion on its way out.
struct Leaving {
    ack: Option<AckState>,
    messages: Vec<Arc<Outgoing>>,
    is_news: bool,
    identity: Option<Arc<Identity>>,
    position: Option<(Arc<str>, u64)>,
    published_at_ms: Option<u64>,
    status: Option<Status>,
    kept_as: Option<EntryId>,
    /// Tries at the present message.
    tries: u32,
    /// When the first of them began.
    tried_since: Instant,
    /// The span in which it is published.
    span: Option<Span>,
    result: Published,
    confirmed: Confirmed,
    /// Whether the broker is told when all is said.
    to_settle: bool,
    progress: Progress,
}

impl Sender {
    pub(super) fn new(sink: Arc<dyn Sink>, outbox: Option<Outbox>, shrinker: Shrinker) -> Self {
        Self {
            sink,
            outbox,
            log: shrinker.log.clone(),
            shrinker,
            unconfirmed: Arc::default(),
        }
    }

    pub(super) fn log(&self, event: Event) {
        self.log.emit(event);
    }

    pub(super) fn snapshot(&self) -> PublisherSnapshot {
        let unconfirmed = self.unconfirmed.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = unconfirmed.since.first_key_value().map(|(_, since)| *since);
        PublisherSnapshot {
            unconfirmed: unconfirmed.since.len(),
            oldest_unconfirmed_ms: oldest.map_or(0, |since| elapsed_ms(since, Instant::now())),
        }
    }

    /// Sends until confirmed. Gives up only on what the server will never take: then there is nothing to tell.
    pub(super) async fn send_until_confirmed(
        &self,
        message: &Outgoing,
        span: &mut Span,
    ) -> Option<Published> {
        let _counted = Counted::new(&self.unconfirmed);
        for attempt in 1.. {
            match self.try_to_send(None, message, attempt, span).await {
                Tried::Sent(published) => return Some(published),
                Tried::Refused => return None,
                Tried::Unconfirmed => {}
            }
        }
        None
    }

    /// As [`Sender::send_until_confirmed`], in a smaller form when the server does not take this one. Returns what was
    /// sent in the end.
    pub(super) async fn send_or_shrink(
        &self,
        mut message: Arc<Outgoing>,
        span: &mut Span,
    ) -> (Arc<Outgoing>, Option<Published>) {
        loop {
            if let Some(published) = self.send_until_confirmed(&message, span).await {
                return (message, Some(published));
            }
            match self.smaller(&message).await {
                Some(smaller) => message = smaller,
                None => return (message, None),
            }
        }
    }

    /// A refused message in a form that the server takes, if there is one.
    async fn smaller(&self, message: &Outgoing) -> Option<Arc<Outgoing>> {
        let limit = self.sink.max_message_bytes();
        self.shrinker.shrink(message, limit).await.map(Arc::new)
    }

    /// Sends once, and waits when it was not confirmed. `of` is for the log.
    async fn try_to_send(
        &self,
        of: Option<&Arc<Identity>>,
        message: &Outgoing,
        attempt: u32,
        span: &mut Span,
    ) -> Tried {
        let error = match self.sink.publish(message).await {
            Ok(published) => return Tried::Sent(published),
            Err(PublishError::Refused(error)) => {
                self.log(events::publish_refused(&message.subject, &error));
                span.event("refused", vec![("attempt", attempt.into())]);
                return Tried::Refused;
            }
            Err(PublishError::Unconfirmed(error)) => error,
        };
        let delay = retry_delay(attempt);
        let delay_ms = whole_ms(delay);
        let id = message.headers.get(MESSAGE_ID).unwrap_or_default();
        let which = (&*message.subject, id);
        self.log(events::publish_retried(of, which, &error, attempt, delay_ms));
        span.event(
            "not confirmed",
            vec![("attempt", attempt.into()), ("wait_ms", delay_ms.into())],
        );
        tokio::time::sleep(delay).await;
        Tried::Unconfirmed
    }

    /// Everything that is said about an assignment, then the verdict, then letting go.
    pub(super) async fn conclude(&self, written: Written, mut holdings: Holdings) {
        let _counted = Counted::new(&self.unconfirmed);
        let mut leaving = Leaving::new(written, &holdings, self.outbox.is_some());
        loop {
            leaving.progress.lapsed = holdings.has_lapsed();
            let step = next_step(&leaving.progress);
            let ended = match step {
                Step::Keep => self.keep(&mut leaving, &holdings).await,
                Step::Prove => match holdings.prove().await {
                    Proof::Ours => Ended::Done,
                    Proof::Lost => return self.suppress(&mut leaving, &mut holdings),
                    Proof::Unknown(why) => {
                        self.wait_for_claims(&why).await;
                        Ended::Failed
                    }
                },
                Step::Acknowledge => self.acknowledge(&mut leaving, &holdings.span).await,
                Step::Publish(number) => self.publish(&mut leaving, number, &holdings).await,
                Step::Record => self.record(&leaving, &holdings).await,
                Step::Forget => self.forget(&mut leaving),
                Step::Settle => self.tell_broker(&mut holdings, Verdict::Ack).await,
                Step::Done => return self.log_concluded(&leaving),
            };
            if ended == Ended::Failed {
                self.log_unconfirmed(&leaving, step);
            }
            leaving.progress.note(step, ended);
        }
    }

    fn log_unconfirmed(&self, leaving: &Leaving, step: Step) {
        let part = match step {
            Step::Acknowledge => Part::Acknowledgement,
            Step::Publish(0) => Part::Result,
            Step::Publish(_) => Part::DeadLetter,
            _ => return,
        };
        if let Some(identity) = &leaving.identity {
            self.log(events::course::unconfirmed(identity, part));
        }
    }

    fn log_concluded(&self, leaving: &Leaving) {
        if let Some(identity) = &leaving.identity {
            let told = leaving.to_settle && !leaving.progress.to_settle;
            self.log(events::course::concluded(identity, &leaving.confirmed, told));
        }
    }

    /// Stores what is to be said, so that it is said even if this process dies now.
    async fn keep(&self, leaving: &mut Leaving, holdings: &Holdings) -> Ended {
        let (Some(outbox), Some(identity)) = (&self.outbox, &leaving.identity) else {
            return Ended::Failed;
        };
        let ack = leaving.ack.as_mut().and_then(AckState::to_keep);
        let claim = holdings.claim.as_ref().and_then(Claim::fleet);
        let entry = NewEntry {
            key: holdings
                .claim
                .as_ref()
                .map_or_else(|| identity.key(), |claim| claim.key().clone()),
            owner: claim.map(|claim| claim.owner().to_owned()).unwrap_or_default(),
            position: leaving.position.clone(),
            messages: ack.into_iter().chain(leaving.messages.iter().cloned()).collect(),
            stored_at_ms: clock::epoch_ms(),
        };
        match outbox.store(entry).await {
            Ok(id) => {
                leaving.kept_as = Some(id);
                Ended::Done
            }
            // Published without: until it is, the broker still has the assignment.
            Err(error) => {
                self.log(events::not_kept(&error.to_string()));
                Ended::Failed
            }
        }
    }

    fn forget(&self, leaving: &mut Leaving) -> Ended {
        if let (Some(outbox), Some(id)) = (&self.outbox, leaving.kept_as.take()) {
            outbox.remove(id);
        }
        Ended::Done
    }

    /// The acknowledgement that was on its way; sent again when word of it never came.
    async fn acknowledge(&self, leaving: &mut Leaving, of: &Span) -> Ended {
        let message = match leaving.ack.take() {
            None | Some(AckState::Known) => None,
            Some(AckState::Unsent(message)) => Some(message),
            Some(AckState::Sent(SentAck { message, confirmed })) => {
                confirmed.await.is_err().then_some(message)
            }
        };
        let Some(message) = message else {
            leaving.note(Part::Acknowledgement);
            return Ended::Done;
        };
        leaving.count_try();
        let scope = of.scope();
        let open = || scope.publishing(Publishing::Ack, &message);
        let span = leaving.span.get_or_insert_with(open);
        let of = leaving.identity.as_ref();
        match self.try_to_send(of, &message, leaving.tries, span).await {
            tried @ (Tried::Sent(_) | Tried::Refused) => {
                if let Tried::Sent(_) = tried {
                    self.tell_confirmed(Publishing::Ack, leaving.tried_since);
                    leaving.note(Part::Acknowledgement);
                }
                leaving.tries = 0;
                leaving.span = None;
                Ended::Done
            }
            Tried::Unconfirmed => {
                leaving.ack = Some(AckState::Unsent(message));
                Ended::Failed
            }
        }
    }

    /// A result, or else a dead letter.
    pub(super) fn what(&self, message: &Outgoing) -> Publishing {
        if *message.subject == *self.shrinker.result_subject {
            Publishing::Result
        } else {
            Publishing::DeadLetter
        }
    }

    async fn publish(&self, leaving: &mut Leaving, number: usize, holdings: &Holdings) -> Ended {
        leaving.count_try();
        let message = &leaving.messages[number];
        let (what, scope) = (self.what(message), holdings.span.scope());
        let open = || {
            let mut span = scope.publishing(what, message);
            if what == Publishing::Result {
                tell_status(&mut span, message, leaving.status);
            }
            span
        };
        let mut span = leaving.span.take().unwrap_or_else(open);
        let of = leaving.identity.as_ref();
        match self.try_to_send(of, message, leaving.tries, &mut span).await {
            Tried::Sent(published) => {
                self.tell_confirmed(what, leaving.tried_since);
                if let (0, Some(at_ms)) = (number, leaving.published_at_ms) {
                    let after = Duration::from_millis(clock::epoch_ms().saturating_sub(at_ms));
                    self.log.measure(|| events::delivery::answered(after));
                }
                if published.known_before && leaving.is_news && leaving.tries == 1 {
                    let id = message.headers.get(MESSAGE_ID).unwrap_or_default();
                    self.log(events::answered_before(&message.subject, id));
                }
                leaving.note(if number == 0 {
                    Part::Result
                } else {
                    Part::DeadLetter
                });
                if number == 0 {
                    leaving.result = published;
                }
            }
            // A smaller form takes its place and is next.
            Tried::Refused if self.shrink(leaving, number, holdings).await => {
                leaving.span = Some(span);
                return Ended::Failed;
            }
            Tried::Refused => span.mark_failed("the server does not take the message"),
            Tried::Unconfirmed => {
                leaving.span = Some(span);
                return Ended::Failed;
            }
        }
        leaving.tries = 0;
        Ended::Done
    }

    /// Puts a smaller form in the place of a message that was refused. What is only repeated has its one content already,
    /// on the stream.
    async fn shrink(&self, leaving: &mut Leaving, number: usize, holdings: &Holdings) -> bool {
        if !leaving.is_news {
            return false;
        }
        let Some(smaller) = self.smaller(&leaving.messages[number]).await else {
            return false;
        };
        if let (0, Some(claim)) = (number, &holdings.claim) {
            claim.record_result(&smaller);
        }
        leaving.messages[number] = smaller;
        leaving.tries = 0;
        true
    }

    /// Tells the fleet where the result is.
    async fn record(&self, leaving: &Leaving, holdings: &Holdings) -> Ended {
        let claim = holdings.claim.as_ref().and_then(Claim::fleet);
        if let (Some(claim), Some(result)) = (claim, leaving.messages.first()) {
            let outcome = outcome_of(result, leaving.result.clone());
            if let Proof::Unknown(why) = claim.finish(outcome).await {
                self.wait_for_claims(&why).await;
                return Ended::Failed;
            }
        }
        if let Some(claim) = &holdings.claim {
            claim.note_answered(leaving.position.as_ref());
        }
        // When it was lost in this moment, the new owner will find this result on the stream in place of its own.
        Ended::Done
    }

    /// Somebody else answers: nothing is said.
    fn suppress(&self, leaving: &mut Leaving, holdings: &mut Holdings) {
        holdings.span.set("execution.outcome", "suppressed");
        if let Some(span) = &mut leaving.span {
            span.mark_failed("another worker has the assignment");
        }
        let identity = leaving.identity.as_ref();
        let suppressed = events::result_suppressed(identity, "taken over by another worker");
        self.log(suppressed);
        if let (Some(outbox), Some(id)) = (&self.outbox, leaving.kept_as) {
            outbox.remove(id);
        }
        if let Some(claim) = holdings.claim.take() {
            claim.suppress();
        }
    }

    /// An answer that was first sent at `since` is confirmed.
    pub(super) fn tell_confirmed(&self, what: Publishing, since: Instant) {
        self.log
            .measure(|| events::delivery::confirmed(what, since.elapsed()));
    }

    pub(super) async fn wait_for_claims(&self, why: &str) {
        self.log(events::claims_silent(why));
        tokio::time::sleep(FIRST_RETRY).await;
    }

    /// A verdict without words. What is given back is free for others first, so that they need not ask.
    pub(super) async fn settle(&self, mut holdings: Holdings, verdict: Verdict) {
        let claim = holdings.claim.as_ref().filter(|_| verdict.frees_claim());
        if let Some(claim) = claim.and_then(Claim::fleet) {
            let _ = claim.give_back().await;
        }
        self.tell_broker(&mut holdings, verdict).await;
    }

    async fn tell_broker(&self, holdings: &mut Holdings, verdict: Verdict) -> Ended {
        if let Some(given_up) = holdings.given_up.take() {
            let _ = given_up.verdict.send(verdict);
        }
        let token = holdings
            .lease
            .as_ref()
            .and_then(|lease| lease.token(Instant::now()));
        if let Some(token) = token {
            self.sink.settle(token, verdict).await;
        }
        Ended::Done
    }
}

impl Leaving {
    /// One more try at the present message.
    fn count_try(&mut self) {
        if self.tries == 0 {
            self.tried_since = Instant::now();
        }
        self.tries += 1;
    }

    fn new(written: Written, holdings: &Holdings, keeps: bool) -> Self {
        let is_news = written.ack.is_some();
        let to_settle = holdings.lease.is_some() || holdings.given_up.is_some();
        let progress = Progress::new(is_news, keeps, written.messages.len(), to_settle);
        Self {
            ack: written.ack,
            messages: written.messages,
            is_news,
            identity: written.identity,
            position: written.position,
            published_at_ms: written.published_at_ms,
            status: written.status,
            kept_as: None,
            tries: 0,
            tried_since: Instant::now(),
            span: None,
            result: Published::default(),
            confirmed: Confirmed::default(),
            to_settle,
            progress,
        }
    }
}

impl Leaving {
    fn note(&mut self, part: Part) {
        self.confirmed.note(part, clock::epoch_ms());
    }
}

/// Where a published result can be read back, for its claim.
pub fn outcome_of(result: &Outgoing, published: Published) -> OutcomeRef {
    // When the stream kept another result with this id, the bytes of that one are not known here.
    let mut hash = if published.known_before {
        String::new()
    } else {
        sha256_hex(&result.payload)
    };
    hash.truncate(OUTCOME_HASH_DIGITS);
    OutcomeRef {
        hash,
        position: published
            .position
            .map(|(stream, sequence)| (stream.to_string(), sequence)),
    }
}

/// Wait after try number `attempt`, from 1: doubles from 100 ms up to 2 s.
pub fn retry_delay(attempt: u32) -> Duration {
    FIRST_RETRY
        .saturating_mul(1 << attempt.saturating_sub(1).min(16))
        .min(LONGEST_RETRY)
}

/// One conclusion or acknowledgement among the unconfirmed ones, for as long as it is being sent.
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
