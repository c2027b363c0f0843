//! As `src/state.rs` and `publisher/replay.rs`: what earlier processes left is finished before anything is pulled.

use std::sync::Arc;

use caf_actors::claims::Claim;
use caf_actors::claims::fleet::{Proof, StoreError};
use caf_actors::claims::record::Inheritance;
use caf_actors::outbox::NewEntry;
use caf_actors::publisher::outcome_of;
use caf_actors::state_dir::marks::Mark;
use futures_util::future::join_all;

use super::Node;
use crate::kernel::MS;

/// Pause before the claims are asked again.
const RETRY: u64 = 100 * MS;

impl Node {
    pub(super) async fn recover(&self) {
        let (host, own) = self.sim.with(|world| {
            let process = &world.processes[self.id];
            (process.host, process.slot)
        });
        self.recover_slot(host, own).await;
        // Slots of the same host that nobody uses and that hold results.
        loop {
            let found = self.sim.with(|world| {
                let slots = &mut world.hosts[host];
                let slot = slots
                    .iter()
                    .position(|disk| disk.locked_by.is_none() && !disk.outbox.is_empty())?;
                slots[slot].locked_by = Some(self.id);
                Some(slot)
            });
            let Some(slot) = found else { return };
            self.recover_slot(host, slot).await;
            self.sim.with(|world| world.hosts[host][slot].locked_by = None);
        }
    }

    async fn recover_slot(&self, host: usize, slot: usize) {
        let (marks, entries) = self.sim.with(|world| {
            let disk = &mut world.hosts[host][slot];
            let marks: Vec<Mark> = std::mem::take(&mut disk.marks).into_values().collect();
            let entries: Vec<(u64, NewEntry)> = disk
                .outbox
                .iter()
                .map(|(id, entry)| (*id, entry.clone()))
                .collect();
            (marks, entries)
        });
        self.sim.moment().await;
        for mark in marks {
            self.note_death(&mark).await;
        }
        let all = entries.into_iter().map(async |(id, entry)| {
            self.publish_entry(&entry).await;
            self.sim.moment().await;
            self.sim.with(|world| world.hosts[host][slot].outbox.remove(&id));
        });
        join_all(all).await;
    }

    async fn note_death(&self, mark: &Mark) {
        let mut written = None;
        loop {
            match self
                .fleet
                .try_note_death(&mark.key, mark.alone, &mut written)
                .await
            {
                Ok(_) => return,
                Err(StoreError::Conflict) => {}
                Err(StoreError::Unavailable(_)) => self.sim.sleep(2 * RETRY).await,
            }
        }
    }

    async fn publish_entry(&self, entry: &NewEntry) {
        self.sim.with(|world| world.audit.count("replayed"));
        let mut claim = self.claims.take(entry.key.clone(), None, self.now());
        if self.inherit(entry, &mut claim).await {
            self.publish_all(entry, &claim).await;
        } else {
            self.sim.with(|world| world.audit.count("replay suppressed"));
            claim.forget();
        }
    }

    async fn inherit(&self, entry: &NewEntry, claim: &mut Claim) -> bool {
        loop {
            match self.fleet.inherit(&entry.key, &entry.owner).await {
                Ok(Ok(Some(granted))) => {
                    claim.grant(granted);
                    return true;
                }
                Ok(Ok(None) | Err(Inheritance::Publish)) => return true,
                Ok(Err(Inheritance::AnsweredBefore | Inheritance::TakenOver)) => return false,
                Err(StoreError::Conflict) => {}
                Err(StoreError::Unavailable(_)) => self.sim.sleep(RETRY).await,
            }
        }
    }

    async fn publish_all(&self, entry: &NewEntry, claim: &Claim) {
        for message in &entry.messages {
            self.decide_to_publish(None, message);
            let published = self.send_until_confirmed(message).await;
            if *message.subject == *self.subjects.result {
                claim.record_result(&Arc::clone(message));
                let Some(fleet_claim) = claim.fleet() else {
                    continue;
                };
                let outcome = outcome_of(message, published);
                while let Proof::Unknown(_) = fleet_claim.finish(outcome.clone()).await {
                    self.sim.sleep(RETRY).await;
                }
            }
        }
    }
}
