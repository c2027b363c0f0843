//! As `approvals/parking.rs`, `approvals/keeper.rs` and what `Approvals::decide` does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use caf_actors::approvals::record::{Due, Entry};
use caf_actors::approvals::store::StoreError;
use caf_actors::cancellation::{Asked, Cancellable};
use caf_actors::claims::Claim;
use caf_actors::claims::fleet::{Proof, Revision};
use caf_actors::claims::record::{OutcomeRef, StoredMessage};
use caf_actors::job::Holdings;
use caf_actors::publisher::outcome_of;
use caf_actors::sink::{Outgoing, Verdict};
use caf_protocol::approval::{Answer, Decision, Question, Standing, Way};
use caf_protocol::assignment::Identity;
use caf_protocol::block::CancellationToken;

use super::answering::Written;
use super::{Message, Node};
use crate::kernel::MS;
use crate::world::{MAIN, World};

/// Pause before the store is asked again.
const STORE_RETRY: u64 = 200 * MS;
/// Time between two looks at what is due.
const LOOK_EVERY: u64 = 500 * MS;
/// Changes in one turn.
const TURNS: u32 = 4;

/// A job that is to be set aside.
pub(super) struct Parking {
    pub(super) spec: usize,
    pub(super) identity: Arc<Identity>,
    pub(super) first_start_ms: u64,
    pub(super) ack: Message,
    pub(super) holdings: Holdings,
}

impl Node {
    async fn approvals<T: Send + 'static>(
        &self,
        handle: impl FnOnce(&mut World) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let limit = self.scenario.request_limit;
        let unavailable = || StoreError::Unavailable("no answer in time".to_owned());
        if self.sim.limit(limit, self.sim.until_up()).await.is_none() {
            return Err(unavailable());
        }
        let asked = self
            .sim
            .request(self.id, MAIN, limit, move |_, world| handle(world));
        asked.await.unwrap_or_else(|| Err(unavailable()))
    }

    async fn write_approval(&self, entry: &Entry, expected: Revision) -> Result<Revision, StoreError> {
        let (id, entry) = (self.id, entry.clone());
        self.approvals(move |world| world.write_approval(id, entry, expected))
            .await
    }

    async fn read_approval(&self, key: &str) -> Option<(Revision, Entry)> {
        let key = key.to_owned();
        let read = self.approvals(move |world| Ok(world.broker.approvals.get(&key).cloned()));
        read.await.ok()?
    }

    /// Row 18.
    pub(super) async fn park(self: Arc<Self>, mut parking: Parking) {
        self.row("row 18", parking.spec);
        let Some((mut revision, mut entry)) = self.store_until_lapsed(&parking).await else {
            if let Some(claim) = parking.holdings.claim.take() {
                claim.forget();
            }
            return;
        };
        if let (Some(result), true) = (entry.result.clone(), entry.answered.is_some()) {
            let result = Arc::new(Outgoing::from(result));
            let written = Written::repeated(parking.spec, vec![result]);
            return self.conclude(written, parking.holdings).await;
        }
        if !entry.acknowledged {
            let ack = Arc::new(Outgoing::from(entry.ack.clone()));
            self.send_until_confirmed(&ack).await;
            while !entry.acknowledged {
                match self.write_approval(&entry.acknowledged(), revision).await {
                    Ok(_) | Err(StoreError::Unavailable(_)) => break,
                    Err(StoreError::Conflict) => {}
                }
                match self.read_approval(entry.request.approval_id.as_str()).await {
                    Some(found) => (revision, entry) = found,
                    None => break,
                }
            }
        }
        let claim = parking.holdings.claim.take();
        if let Some(fleet) = claim.as_ref().and_then(Claim::fleet) {
            let nowhere = OutcomeRef {
                hash: String::new(),
                position: None,
            };
            let _ = fleet.finish(nowhere).await;
        }
        if let Some(claim) = claim {
            claim.forget();
        }
        self.settle(parking.holdings, Verdict::Ack).await;
    }

    async fn store_until_lapsed(&self, parking: &Parking) -> Option<(Revision, Entry)> {
        let question = Question {
            approval_type: None,
            description: "?".to_owned(),
            approvers: Vec::new(),
            timeout: Duration::from_millis(self.spec(parking.spec).deadline_ms),
        };
        let until = parking.first_start_ms + self.spec(parking.spec).deadline_ms;
        let entry = Entry::new(
            &parking.identity,
            &question,
            (parking.first_start_ms, until),
            self.epoch_ms(),
            StoredMessage::from(&*parking.ack),
        );
        loop {
            let now = self.now();
            if parking.holdings.has_lapsed_at(now) {
                return None;
            }
            match parking.holdings.prove_at(now).await {
                Proof::Lost => return None,
                Proof::Unknown(_) => {}
                Proof::Ours => match self.write_approval(&entry, 0).await {
                    Ok(revision) => return Some((revision, entry)),
                    Err(StoreError::Conflict) => {
                        if let Some(found) = self.read_approval(entry.request.approval_id.as_str()).await {
                            return Some(found);
                        }
                    }
                    Err(StoreError::Unavailable(_)) => {}
                },
            }
            self.sim.sleep(STORE_RETRY).await;
        }
    }

    /// Does what is due.
    pub(super) async fn keep_approvals(self: Arc<Self>) {
        let mut waiting: BTreeMap<String, Cancellable> = BTreeMap::new();
        loop {
            self.sim.sleep(LOOK_EVERY).await;
            let Ok(all) = self.approvals(|world| Ok(world.broker.approvals.clone())).await else {
                continue;
            };
            for (key, (_, entry)) in all {
                if entry.standing == Standing::Pending {
                    waiting.entry(key.clone()).or_insert_with(|| {
                        let (identity, token) = (entry.identity(), CancellationToken::new());
                        self.cancellations.enter(&identity, token, self.now())
                    });
                } else {
                    waiting.remove(&key);
                }
                let asked = waiting.get(&key).and_then(|cancel| cancel.asked().cloned());
                self.attend(&key, asked.as_deref()).await;
            }
        }
    }

    async fn attend(&self, key: &str, asked: Option<&Asked>) {
        for _ in 0..TURNS {
            let Some((revision, entry)) = self.read_approval(key).await else {
                return;
            };
            let now_ms = self.epoch_ms();
            let next = match entry.due(asked.is_some(), now_ms, u64::MAX) {
                Due::Nothing { .. } | Due::Forget => return,
                Due::Cancel => {
                    asked.and_then(|asked| entry.cancelled("subject", asked.failure(), now_ms, &self.answers))
                }
                Due::Expire => entry.expired(now_ms, &self.answers),
                Due::Answer => self.answer_approval(&entry).await,
            };
            let Some(next) = next else { return };
            let _ = self.write_approval(&next, revision).await;
        }
    }

    async fn answer_approval(&self, entry: &Entry) -> Option<Entry> {
        if !entry.acknowledged {
            let ack = Arc::new(Outgoing::from(entry.ack.clone()));
            self.try_to_send(&ack, 1).await?;
        }
        let result = Arc::new(Outgoing::from(entry.result.clone()?));
        let published = self.try_to_send(&result, 1).await?;
        Some(entry.answered(self.epoch_ms(), outcome_of(&result, published)))
    }

    /// Somebody decides here.
    pub(crate) async fn decide(self: Arc<Self>, key: String) {
        let Some((revision, entry)) = self.read_approval(&key).await else {
            return;
        };
        let decision = Decision {
            decision: Answer::Approved,
            by: format!("somebody at process {}", self.id),
            comment: None,
            at: self.epoch_ms(),
            via: Way::Api,
        };
        if let Ok(decided) = entry.decided(decision, &self.answers)
            && self.write_approval(&decided, revision).await.is_ok()
        {
            self.attend(&key, None).await;
        }
    }
}
