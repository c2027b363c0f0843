//! Publishes what an earlier process had stored before it ended.
//!
//! Neighbours: the node calls it at start, before anything is pulled, so that a message that comes back is answered from
//! its claim. Whether a stored result may still be published is [`ClaimRecord::inherit`]'s decision. Sends as the
//! publisher does, byte for byte what was stored.
//!
//! [`ClaimRecord::inherit`]: crate::claims::record::ClaimRecord::inherit

use std::sync::Arc;

use caf_protocol::headers::MESSAGE_ID;
use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::Instant;

use super::sending::{Sender, outcome_of, tell_status};
use super::shrinking::Shrinker;
use crate::claims::fleet::{Proof, StoreError};
use crate::claims::record::Inheritance;
use crate::claims::{Claim, Claims};
use crate::events::{self, Log};
use crate::outbox::{Entry, EntryId, NewEntry, Outbox};
use crate::sink::{Outgoing, Sink};
use crate::spill::Spiller;
use crate::trace::{Publishing, Span, Tracer};

/// Entries read at once.
const PAGE: usize = 64;
/// Entries on their way at once.
const AT_ONCE: usize = 32;

/// What a replay needs. Cheap to clone.
#[derive(Clone)]
pub struct Replay {
    sender: Sender,
    claims: Claims,
    result_subject: Arc<str>,
    tracer: Tracer,
}

impl Replay {
    /// `result_subject` tells the result from what else was stored with it; `spiller` keeps elsewhere what the server
    /// takes no longer.
    pub fn new(
        sink: Arc<dyn Sink>,
        claims: Claims,
        spiller: Spiller,
        result_subject: &str,
        log: Log,
    ) -> Self {
        let result_subject: Arc<str> = result_subject.into();
        let shrinker = Shrinker {
            spiller,
            result_subject: Arc::clone(&result_subject),
            log,
        };
        Self {
            sender: Sender::new(sink, None, shrinker),
            claims,
            result_subject,
            tracer: Tracer::default(),
        }
    }

    /// Opens spans with `tracer`.
    #[must_use]
    pub fn with_tracer(mut self, tracer: Tracer) -> Self {
        self.tracer = tracer;
        self
    }

    /// Publishes everything that earlier processes left in an outbox, and removes it there. Tries until the broker has
    /// confirmed it.
    pub async fn publish_left_behind(&self, outbox: &Outbox) {
        let mut after: Option<EntryId> = None;
        let mut count = 0;
        loop {
            let page = match outbox.left_behind(after, PAGE).await {
                Ok(page) => page,
                Err(error) => return self.sender.log(events::state_unusable(&error.to_string())),
            };
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            count += page.len();
            stream::iter(page)
                .for_each_concurrent(AT_ONCE, |entry| self.publish_entry(outbox, entry))
                .await;
        }
        if count > 0 {
            self.sender.log(events::replayed(count));
        }
    }

    async fn publish_entry(&self, outbox: &Outbox, Entry { id, content }: Entry) {
        // While it is on its way, other workers that ask hear that it is held here.
        let mut claim = self.claims.take(content.key.clone(), None, Instant::now());
        match self.inherit(&content, &mut claim).await {
            Ok(()) => self.publish_all(&content, &claim).await,
            Err(why) => {
                self.sender.log(events::result_suppressed(None, why));
                claim.suppress();
            }
        }
        outbox.remove(id);
    }

    /// Takes the assignment over, or says why nothing is to be said about it any more.
    async fn inherit(&self, entry: &NewEntry, claim: &mut Claim) -> Result<(), &'static str> {
        let Some(fleet) = self.claims.fleet() else {
            return Ok(());
        };
        loop {
            match fleet.inherit(&entry.key, &entry.owner).await {
                Ok(Ok(Some(granted))) => {
                    claim.grant(granted);
                    return Ok(());
                }
                Ok(Ok(None) | Err(Inheritance::Publish)) => return Ok(()),
                Ok(Err(Inheritance::AnsweredBefore)) => return Err("answered before"),
                Ok(Err(Inheritance::TakenOver)) => return Err("taken over by another worker"),
                Err(StoreError::Conflict) => {}
                Err(StoreError::Unavailable(why)) => self.sender.wait_for_claims(&why).await,
            }
        }
    }

    async fn publish_all(&self, entry: &NewEntry, claim: &Claim) {
        for message in &entry.messages {
            let mut span = self.open_span(message);
            let sending = self.sender.send_or_shrink(Arc::clone(message), &mut span);
            let (message, published) = sending.await;
            drop(span);
            if *message.subject == *self.result_subject {
                claim.record_result(&message);
                self.finish(claim, &message, published.unwrap_or_default()).await;
                claim.note_answered(entry.position.as_ref());
            }
        }
    }

    fn open_span(&self, message: &Outgoing) -> Span {
        let name = message.headers.get(MESSAGE_ID).unwrap_or_default();
        let what = match self.sender.what(message) {
            Publishing::DeadLetter if name.ends_with(".ack") => Publishing::Ack,
            what => what,
        };
        let mut span = self.tracer.left_behind(message).publishing(what, message);
        span.set("left_behind", true);
        if what == Publishing::Result {
            tell_status(&mut span, message, None);
        }
        span
    }

    async fn finish(&self, claim: &Claim, result: &Outgoing, published: crate::sink::Published) {
        let Some(fleet_claim) = claim.fleet() else { return };
        let outcome = outcome_of(result, published);
        while let Proof::Unknown(why) = fleet_claim.finish(outcome.clone()).await {
            self.sender.wait_for_claims(&why).await;
        }
    }
}
