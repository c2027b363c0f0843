//! Row 18: a job that asks people is stored and let go. What it held here returns as soon as its question is stored.
//!
//! Neighbours: intake starts one of these futures per job, with its claim granted; the publisher sends the acknowledgement and
//! tells the broker. The order: stored, acknowledged, claim finished, broker told. Whoever dies in between leaves a message
//! that comes again, and finds the question stored: nothing is asked twice.

use std::sync::Arc;

use caf_protocol::approval::Question;
use caf_protocol::assignment::Identity;
use tokio::sync::oneshot;

use super::record::Entry;
use super::store::{Found, StoreError};
use super::{Approvals, Reservation};
use crate::claims::Claim;
use crate::claims::fleet::{Proof, Revision, STORE_RETRY};
use crate::claims::record::{OutcomeRef, StoredMessage};
use crate::clock;
use crate::events;
use crate::job::Holdings;
use crate::publisher::{Acknowledge, Conclude, Conclusion, PublisherRoutes, Settle};
use crate::sink::{Outgoing, Verdict};

/// A job that is to be set aside.
pub struct Parking {
    /// Whom the answer goes to.
    pub identity: Arc<Identity>,
    /// What it asks.
    pub question: Question,
    /// First start of handling by any worker, in milliseconds since the Unix epoch.
    pub first_start_ms: u64,
    /// The acknowledgement that is fixed in its claim.
    pub ack: Arc<Outgoing>,
    /// Room for it.
    pub reservation: Option<Reservation>,
    /// What it holds.
    pub holdings: Holdings,
}

/// What was found under the name of a question.
struct Stored {
    entry: Entry,
    revision: Revision,
}

impl Approvals {
    /// Stores a question and lets its job go. Gives up only when the message has lapsed: then it comes again.
    pub async fn park(self, mut parking: Parking, publisher: PublisherRoutes) {
        let Some(stored) = self.store_until_lapsed(&parking).await else {
            return forget(&mut parking.holdings);
        };
        drop(parking.reservation.take());
        let Stored { entry, revision } = stored;
        if let Some(result) = entry.result.clone().filter(|_| entry.answered.is_some()) {
            return repeat(parking, &publisher, Outgoing::from(result));
        }
        if !entry.acknowledged {
            self.tell_requested(&entry).await;
            acknowledge(&entry, &parking.holdings, &publisher).await;
            self.note_acknowledged(entry, revision).await;
        }
        self.let_go(parking, &publisher).await;
    }

    /// Stores the question, unless it is stored already. Nothing when the message has lapsed, or another worker has it.
    async fn store_until_lapsed(&self, parking: &Parking) -> Option<Stored> {
        let entry = self.entry_of(parking);
        for attempt in 0.. {
            if parking.holdings.has_lapsed() {
                return None;
            }
            let error = match parking.holdings.prove().await {
                Proof::Lost => return None,
                Proof::Unknown(why) => why,
                Proof::Ours => match self.store_once(&entry).await {
                    Ok(stored) => return Some(stored),
                    Err(error) => error.to_string(),
                },
            };
            if attempt % 25 == 0 {
                self.log(events::approvals::unavailable("request", &error));
            }
            tokio::time::sleep(STORE_RETRY).await;
        }
        None
    }

    fn entry_of(&self, parking: &Parking) -> Entry {
        let longest_ms = self.0.parts.settings.max_timeout_s.saturating_mul(1_000);
        let timeout_ms = clock::whole_ms(parking.question.timeout).min(longest_ms);
        let until = parking.first_start_ms.saturating_add(timeout_ms);
        Entry::new(
            &parking.identity,
            &parking.question,
            (parking.first_start_ms, until),
            clock::epoch_ms(),
            StoredMessage::from(&*parking.ack),
        )
    }

    async fn store_once(&self, entry: &Entry) -> Result<Stored, StoreError> {
        match self.0.parts.store.write(entry, 0).await {
            Ok(revision) => {
                self.note(entry, revision, true);
                self.log(events::approvals::requested(&entry.request, &entry.identity()));
                Ok(Stored {
                    entry: entry.clone(),
                    revision,
                })
            }
            Err(StoreError::Conflict) => {
                let Found { entry, revision } = self.0.parts.store.read(&entry.request.approval_id).await?;
                let entry = entry.ok_or(StoreError::Conflict)?;
                self.note(&entry, revision, false);
                Ok(Stored { entry, revision })
            }
            Err(error) => Err(error),
        }
    }

    /// The acknowledgement need not be sent again. Should this not be noted, it is: the same bytes.
    async fn note_acknowledged(&self, mut entry: Entry, mut revision: Revision) {
        for _ in 0..super::TRIES {
            if entry.acknowledged {
                return;
            }
            match self.change(&entry, &entry.acknowledged(), revision).await {
                Ok(()) => return,
                Err(StoreError::Conflict) => {}
                Err(error) => {
                    return self.log(events::approvals::unavailable("note", &error.to_string()));
                }
            }
            match self.0.parts.store.read(&entry.request.approval_id).await {
                Ok(Found {
                    entry: Some(found),
                    revision: now,
                }) => (entry, revision) = (found, now),
                _ => return,
            }
        }
    }

    /// The claim says that nobody works on it any more, and the broker forgets the message.
    async fn let_go(&self, mut parking: Parking, publisher: &PublisherRoutes) {
        let nowhere = OutcomeRef {
            hash: String::new(),
            position: None,
        };
        let claim = parking.holdings.claim.take();
        if let Some(fleet) = claim.as_ref().and_then(Claim::fleet) {
            // Tried once: whoever gets the message, or a copy of it, finds the question.
            let _ = fleet.finish(nowhere).await;
        }
        if let Some(claim) = claim {
            claim.forget();
        }
        let settle = Settle {
            holdings: parking.holdings,
            verdict: Verdict::Ack,
        };
        // Dropped while the publisher is being re-created: the message comes again.
        let _ = publisher.settle.tell(settle);
    }
}

/// Somebody else has it, or will.
fn forget(holdings: &mut Holdings) {
    holdings.span.set("execution.outcome", "lapsed");
    if let Some(claim) = holdings.claim.take() {
        claim.forget();
    }
}

/// It was answered long ago, and is answered with the same.
fn repeat(parking: Parking, publisher: &PublisherRoutes, result: Outgoing) {
    let conclude = Conclude {
        conclusion: Conclusion::Repeat(Arc::new(result)),
        holdings: parking.holdings,
    };
    let _ = publisher.conclude.tell(conclude);
}

/// Sends the acknowledgement until it is confirmed.
async fn acknowledge(entry: &Entry, holdings: &Holdings, publisher: &PublisherRoutes) {
    let message = Arc::new(Outgoing::from(entry.ack.clone()));
    loop {
        let (confirmed, is_confirmed) = oneshot::channel();
        let told = publisher.acknowledge.tell(Acknowledge {
            message: Arc::clone(&message),
            confirmed,
            scope: holdings.span.scope(),
        });
        if told.is_ok() && is_confirmed.await.is_ok() {
            return;
        }
        // The publisher is being re-created.
        tokio::time::sleep(STORE_RETRY).await;
    }
}
