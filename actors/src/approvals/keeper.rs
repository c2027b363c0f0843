//! Does what is due of approvals: publishes results, expires what is over, carries cancellations out, forgets.
//!
//! Neighbours: the node runs [`keep`] in every worker, as a part of its tree; decisions, expiries and parked jobs wake it. What
//! is due is decided in [`super::record`]. All workers do this for all approvals, so that none hangs on one of them: the
//! store's compare-and-set lets one win, and the result has one content and one message id, whoever publishes it.

use std::time::Duration;

use caf_protocol::approval::{ApprovalId, DECIDED_SUBJECT, DecidedEvent, REQUESTED_SUBJECT, RequestedEvent};
use caf_protocol::headers::{Headers, MESSAGE_ID};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use tokio::time::Instant;

use super::record::{Due, Entry};
use super::store::{Change, Found, StoreError};
use super::{Approvals, TAKE_OVER_MS};
use crate::claims::fleet;
use crate::claims::record::OutcomeRef;
use crate::clock;
use crate::events;
use crate::publisher::outcome_of;
use crate::sink::{Outgoing, PublishError, Published};

/// Approvals that are being worked on at once: after an outage thousands may be due, and answers of jobs that run go on the
/// same connection.
const AT_ONCE: usize = 32;
/// Pause before something is tried again that the store or the broker did not do, in milliseconds.
const RETRY_MS: u64 = 2_000;
/// Time between two looks at who is to be cancelled.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Time between two figures for monitoring.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How long the store is believed to tell every change: then it is asked for everything again.
const RESYNC: Duration = Duration::from_secs(600);
/// An entry of a later version that cannot be read is looked at again after an hour, in milliseconds.
const UNREADABLE_MS: u64 = 3_600_000;
/// Changes tried in one turn: settle, publish, forget, and a few that others were faster with.
const TURNS: u32 = 8;

/// What becomes of an approval that somebody was at.
enum Next {
    /// It is due again then.
    At(u64),
    /// The store has it no longer.
    Gone,
}

/// Does what is due, for as long as it is polled.
pub async fn keep(approvals: Approvals) {
    let mut attempt = 0;
    loop {
        let ended = approvals.keep_until_resync().await;
        match ended {
            Ok(()) => attempt = 0,
            Err(error) => {
                if attempt % 10 == 0 {
                    approvals.log(events::approvals::unavailable("watch", &error.to_string()));
                }
                attempt += 1;
                tokio::time::sleep(Duration::from_millis(RETRY_MS)).await;
            }
        }
    }
}

impl Approvals {
    async fn keep_until_resync(&self) -> Result<(), StoreError> {
        let mut changes = self.0.parts.store.changes();
        self.index().begin_round();
        let resync = Instant::now() + RESYNC + Duration::from_millis(self.0.spread_ms * 60);
        let mut at_it = FuturesUnordered::new();
        let (mut told, mut looked) = (Instant::now(), Instant::now());
        loop {
            // Whatever comes, all are looked through so often only.
            let is_time = looked <= Instant::now();
            if is_time {
                looked = Instant::now() + LOOK_EVERY;
            }
            let due = self.start_due(is_time, AT_ONCE - at_it.len());
            at_it.extend(due.into_iter().map(|id| self.attend(id)));
            if told <= Instant::now() {
                told = Instant::now() + TELL_EVERY;
                let (pending, oldest_ms) = self.waiting();
                let log = &self.0.parts.log;
                log.measure(|| events::approvals::waiting(pending, oldest_ms));
            }
            tokio::select! {
                Some(()) = at_it.next(), if !at_it.is_empty() => {}
                change = changes.next() => match change {
                    Some(change) => self.hear(change?),
                    None => return Ok(()),
                },
                () = self.0.woken.notified() => {}
                () = tokio::time::sleep(self.until_due()) => {}
                () = tokio::time::sleep_until(resync) => {
                    // Nobody is stopped in the middle of it.
                    while at_it.next().await.is_some() {}
                    return Ok(());
                }
            }
        }
    }

    /// What is due now, and where all are looked through, who is to be cancelled.
    fn start_due(&self, look: bool, room: usize) -> Vec<ApprovalId> {
        let now = clock::epoch_ms();
        let mut index = self.index();
        let to_cancel = if look { index.to_cancel() } else { Vec::new() };
        for id in to_cancel {
            index.hurry(&id, now);
        }
        index.take_due(now, room)
    }

    fn until_due(&self) -> Duration {
        let next = self.index().next_due();
        let left = next.map(|due| due.saturating_sub(clock::epoch_ms()));
        // What is due already waits for room: somebody ends, and wakes this.
        left.filter(|left| *left > 0)
            .map_or(LOOK_EVERY, |left| Duration::from_millis(left).min(LOOK_EVERY))
    }

    fn hear(&self, change: Change) {
        match change {
            Change::Is(entry, revision) => self.note(&entry, revision, false),
            Change::Gone(id) => self.index().forget(&id),
            Change::Complete => self.index().end_round(),
        }
    }

    async fn attend(&self, id: ApprovalId) {
        let next = self.try_to_attend(&id).await;
        match next {
            Ok(Next::At(due)) => self.index().leave(&id, due),
            Ok(Next::Gone) => self.index().forget(&id),
            Err(error) => {
                self.log(events::approvals::unavailable("answer", &error));
                self.index().leave(&id, clock::epoch_ms() + RETRY_MS);
            }
        }
    }

    async fn try_to_attend(&self, id: &ApprovalId) -> Result<Next, String> {
        let parts = &self.0.parts;
        // What is known to be settled is come to for its answer, when that is due; another may have been first to settle the rest.
        let mut was_first = self.index().is_settled(id);
        for _ in 0..TURNS {
            let Found { entry, revision } = parts.store.read(id).await.map_err(text)?;
            let Some(entry) = entry else {
                let unreadable = Next::At(clock::epoch_ms() + UNREADABLE_MS);
                return Ok(if revision == 0 { Next::Gone } else { unreadable });
            };
            let (now, asked) = (clock::epoch_ms(), self.index().asked(id));
            let next = match entry.due(asked.is_some(), now, self.kept_ms()) {
                Due::Nothing { until } => return Ok(Next::At(until + self.0.spread_ms / 4)),
                Due::Forget => {
                    return match parts.store.remove(id, revision).await {
                        Ok(()) => Ok(Next::Gone),
                        Err(error) => Err(text(error)),
                    };
                }
                Due::Cancel => asked.and_then(|asked| {
                    entry.cancelled(asked.by.as_str(), asked.failure(), now, &parts.answers)
                }),
                Due::Expire => entry.expired(now, &parts.answers),
                // Whoever settled it is at it.
                Due::Answer if !was_first => {
                    let settled_at = entry.standing.settled_at().unwrap_or(now);
                    return Ok(Next::At(settled_at + TAKE_OVER_MS + self.0.spread_ms));
                }
                Due::Answer => Some(self.answer(&entry).await?),
            };
            let Some(next) = next else { continue };
            was_first = match self.change(&entry, &next, revision).await {
                Ok(()) => true,
                Err(StoreError::Conflict) => false,
                Err(error) => return Err(text(error)),
            };
            if let Some(answered) = &next.answered {
                self.tell_claim(&next, &answered.outcome).await;
            }
        }
        Ok(Next::At(clock::epoch_ms() + RETRY_MS))
    }

    /// Publishes what is said to an assignment, in the order in which it may be heard. Returns the entry as answered.
    async fn answer(&self, entry: &Entry) -> Result<Entry, String> {
        if !entry.acknowledged {
            self.publish(&Outgoing::from(entry.ack.clone())).await?;
        }
        self.tell_decided(entry).await;
        let Some(result) = entry.result.clone() else {
            return Err("the result is missing in the store".to_owned());
        };
        let result = Outgoing::from(result);
        let published = self.publish(&result).await?;
        Ok(entry.answered(clock::epoch_ms(), outcome_of(&result, published)))
    }

    /// Publishes once. What the server will never take is given up, with a line.
    pub(super) async fn publish(&self, message: &Outgoing) -> Result<Published, String> {
        let Some(sink) = &self.0.parts.sink else {
            return Ok(Published::default());
        };
        match sink.publish(message).await {
            Ok(published) => Ok(published),
            Err(PublishError::Unconfirmed(error)) => Err(error),
            Err(PublishError::Refused(error)) => {
                self.log(events::publish_refused(&message.subject, &error));
                Ok(Published::default())
            }
        }
    }

    /// Tells notifiers that a question is asked. Nobody waits for them: who misses it finds the question on the page.
    pub(super) async fn tell_requested(&self, entry: &Entry) {
        let event = RequestedEvent::new(&entry.request);
        self.notify(REQUESTED_SUBJECT, entry, "requested", &event).await;
    }

    async fn tell_decided(&self, entry: &Entry) {
        if let Some(event) = DecidedEvent::new(&entry.request, &entry.standing) {
            self.notify(DECIDED_SUBJECT, entry, "decided", &event).await;
        }
    }

    async fn notify(&self, subject: &str, entry: &Entry, what: &str, event: &impl Serialize) {
        let mut headers = Headers::default();
        // A stream that somebody has for these keeps one of each, however often it is told.
        headers.push(MESSAGE_ID, format!("{}.{what}", entry.request.approval_id));
        let message = Outgoing {
            subject: subject.to_owned(),
            headers,
            payload: serde_json::to_vec(event)
                .expect("an event holds only strings and numbers")
                .into(),
        };
        if let Err(error) = self.publish(&message).await {
            self.log(events::approvals::unavailable("notify", &error));
        }
    }

    /// Tells the fleet's claim where the result is, so that what arrives again is answered from there. Tried once: the entry
    /// says the same.
    async fn tell_claim(&self, entry: &Entry, outcome: &OutcomeRef) {
        if let Some(fleet) = &self.0.parts.fleet {
            let told = fleet.tell_outcome(entry.request.approval_id.key(), outcome).await;
            if let Err(fleet::StoreError::Unavailable(error)) = told {
                self.log(events::claims_silent(&error));
            }
        }
    }

    pub(super) fn log(&self, event: events::Event) {
        self.0.parts.log.emit(event);
    }
}

fn text(error: impl ToString) -> String {
    error.to_string()
}
