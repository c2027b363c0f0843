//! What one worker knows of the fleet's approvals: who waits, for whom, and what is due when. Pure: the clock is given.
//!
//! Neighbours: [`super::keeper`] feeds it with what the store tells and does what is due; pages are made from it. An entry
//! here is a few hundred bytes, whatever was asked: the rest is read from the store when it is needed.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use caf_protocol::approval::{ApprovalId, Standing};

use super::Cursor;
use super::record::Entry;
use crate::cancellation::{Asked, Cancellable};
use crate::claims::fleet::Revision;

/// How far an approval is, as far as something is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It waits for people, or for its time to be over.
    Pending,
    /// It waits for its result to be published.
    Settled,
    /// It waits to be forgotten.
    Answered,
}

struct Known {
    tenant: Arc<str>,
    revision: Revision,
    phase: Phase,
    requested_at: u64,
    expires_at: u64,
    /// When something is due, in milliseconds since the Unix epoch.
    due: u64,
    /// Whether somebody is at it.
    busy: bool,
    /// The round in which the store last told of it.
    round: u64,
    /// Requests to cancel find it by this; nothing while it does not wait.
    cancel: Option<Cancellable>,
}

/// Everything that is known. All times are in milliseconds since the Unix epoch.
#[derive(Default)]
pub(super) struct Index {
    known: HashMap<ApprovalId, Known>,
    due: BTreeSet<(u64, ApprovalId)>,
    pending: BTreeSet<Cursor>,
    /// Questions of each tenant that wait, and those that are on their way to.
    tenants: HashMap<Arc<str>, usize>,
    /// Of these, how many are on their way.
    reserved: usize,
    round: u64,
}

/// Which bound is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// Of this tenant.
    Tenant,
    /// Of all.
    Fleet,
}

impl Index {
    /// Room for one more question of a tenant; given back by [`Index::release`].
    pub(super) fn reserve(&mut self, tenant: &str, of_all: usize, of_tenant: usize) -> Result<(), Full> {
        if self.pending.len() + self.reserved >= of_all {
            return Err(Full::Fleet);
        }
        if self.of_tenant(tenant) >= of_tenant {
            return Err(Full::Tenant);
        }
        self.reserve_anyway(tenant);
        Ok(())
    }

    /// Room for a question that was taken on before.
    pub(super) fn reserve_anyway(&mut self, tenant: &str) {
        self.reserved += 1;
        *self.tenants.entry(tenant.into()).or_default() += 1;
    }

    /// Gives room back: the question waits now, or never will.
    pub(super) fn release(&mut self, tenant: &str) {
        self.reserved = self.reserved.saturating_sub(1);
        self.leave_tenant(tenant);
    }

    /// Questions of a tenant that wait, or are on their way to.
    pub(super) fn of_tenant(&self, tenant: &str) -> usize {
        self.tenants.get(tenant).copied().unwrap_or_default()
    }

    /// Whether it is known here that it is settled.
    pub(super) fn is_settled(&self, id: &ApprovalId) -> bool {
        self.known
            .get(id)
            .is_some_and(|known| known.phase != Phase::Pending)
    }

    /// How many wait.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// When the one was asked that has waited longest.
    pub(super) fn oldest(&self) -> Option<u64> {
        let waiting = self.known.values().filter(|known| known.phase == Phase::Pending);
        waiting.map(|known| known.requested_at).min()
    }

    /// Some that wait, of one tenant where one is named, those first that are over first; and where the next begin.
    pub(super) fn page(
        &self,
        tenant: Option<&str>,
        from: Option<&Cursor>,
        limit: usize,
    ) -> (Vec<ApprovalId>, Option<Cursor>) {
        let from = from.map_or(Bound::Unbounded, Bound::Included);
        let all = self.pending.range::<Cursor, _>((from, Bound::Unbounded));
        let is_wanted = |cursor: &&Cursor| {
            let known = self.known.get(&cursor.id);
            tenant.is_none_or(|tenant| known.is_some_and(|known| *known.tenant == *tenant))
        };
        let mut rest = all.filter(is_wanted);
        let ids = rest
            .by_ref()
            .take(limit)
            .map(|cursor| cursor.id.clone())
            .collect();
        (ids, rest.next().cloned())
    }

    /// An entry as the store holds it now. `due`: when something is to be done about it. What is older than what is known
    /// changes nothing.
    pub(super) fn take(
        &mut self,
        entry: &Entry,
        revision: Revision,
        due: u64,
        enter: impl FnOnce() -> Cancellable,
    ) {
        let id = entry.request.approval_id.clone();
        let round = self.round;
        if let Some(known) = self.known.get_mut(&id)
            && known.revision >= revision
        {
            known.round = round;
            return;
        }
        let before = self.remove(&id);
        let busy = before.as_ref().is_some_and(|known| known.busy);
        let phase = match (&entry.standing, &entry.answered) {
            (_, Some(_)) => Phase::Answered,
            (Standing::Pending, None) => Phase::Pending,
            (_, None) => Phase::Settled,
        };
        let tenant: Arc<str> = entry.request.tenant_id.as_str().into();
        let cancel = match phase {
            Phase::Pending => Some(before.and_then(|known| known.cancel).unwrap_or_else(enter)),
            Phase::Settled | Phase::Answered => None,
        };
        let expires_at = entry.request.expires_at;
        if phase == Phase::Pending {
            self.pending.insert(Cursor {
                expires_at,
                id: id.clone(),
            });
            *self.tenants.entry(Arc::clone(&tenant)).or_default() += 1;
        }
        if !busy {
            self.due.insert((due, id.clone()));
        }
        let known = Known {
            tenant,
            revision,
            phase,
            requested_at: entry.request.requested_at,
            expires_at,
            due,
            busy,
            round,
            cancel,
        };
        self.known.insert(id, known);
    }

    /// The store has it no longer.
    pub(super) fn forget(&mut self, id: &ApprovalId) {
        drop(self.remove(id));
    }

    /// The store begins to tell everything from the beginning. Whoever was at something is gone.
    pub(super) fn begin_round(&mut self) {
        self.round += 1;
        for (id, known) in self.known.iter_mut().filter(|(_, known)| known.busy) {
            known.busy = false;
            known.due = 0;
            self.due.insert((0, id.clone()));
        }
    }

    /// It has told everything: what it did not tell of is gone.
    pub(super) fn end_round(&mut self) {
        let round = self.round;
        let gone = self.known.iter().filter(|(_, known)| known.round < round);
        for id in gone.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.forget(&id);
        }
    }

    /// At most `limit` that something is due of, each with somebody at it from now on.
    pub(super) fn take_due(&mut self, now: u64, limit: usize) -> Vec<ApprovalId> {
        let mut taken = Vec::new();
        while taken.len() < limit
            && let Some((due, _)) = self.due.first()
            && *due <= now
            && let Some((_, id)) = self.due.pop_first()
        {
            if let Some(known) = self.known.get_mut(&id) {
                known.busy = true;
                known.due = u64::MAX;
                taken.push(id);
            }
        }
        taken
    }

    /// Nobody is at it any more; it is due again then, or earlier if it has changed meanwhile.
    pub(super) fn leave(&mut self, id: &ApprovalId, due: u64) {
        if let Some(known) = self.known.get_mut(id)
            && std::mem::take(&mut known.busy)
        {
            known.due = known.due.min(due);
            self.due.insert((known.due, id.clone()));
        }
    }

    /// Something is due of it then, if not earlier; or as soon as nobody is at it any more.
    pub(super) fn hurry(&mut self, id: &ApprovalId, now: u64) {
        if let Some(known) = self.known.get_mut(id)
            && known.due > now
        {
            if !known.busy {
                self.due.remove(&(known.due, id.clone()));
                self.due.insert((now, id.clone()));
            }
            known.due = now;
        }
    }

    /// When the next is due.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Those that somebody wants cancelled and nobody is at.
    pub(super) fn to_cancel(&self) -> Vec<ApprovalId> {
        let asked = |known: &Known| {
            known
                .cancel
                .as_ref()
                .is_some_and(|cancel| cancel.asked().is_some())
        };
        let wanted = self.known.iter().filter(|(_, known)| !known.busy && asked(known));
        wanted.map(|(id, _)| id.clone()).collect()
    }

    /// Who wants it cancelled, if somebody does.
    pub(super) fn asked(&self, id: &ApprovalId) -> Option<Arc<Asked>> {
        self.known.get(id)?.cancel.as_ref()?.asked().cloned()
    }

    fn remove(&mut self, id: &ApprovalId) -> Option<Known> {
        let known = self.known.remove(id)?;
        self.due.remove(&(known.due, id.clone()));
        if known.phase == Phase::Pending {
            let cursor = Cursor {
                expires_at: known.expires_at,
                id: id.clone(),
            };
            self.pending.remove(&cursor);
            self.leave_tenant(&known.tenant);
        }
        Some(known)
    }

    fn leave_tenant(&mut self, tenant: &str) {
        if let Some(count) = self.tenants.get_mut(tenant) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.tenants.remove(tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests;
