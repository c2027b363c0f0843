//! The thread that owns the database: commits what waits together, tells each caller, keeps the file small.
//!
//! Neighbours: [`super::Outbox`] sends orders; `sync_plan` says when to force to disk. It never waits for anybody but
//! the disk. A write that fails is told to its callers, and while writes fail one is tried every second, so that the
//! outbox recovers although nothing is pulled and nothing new comes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use caf_protocol::sqlite_heap;
use tokio::time::Instant;

use super::database::{self, Database, WriteError};
use super::reserve::{RESERVE_BYTES, Reserve};
use super::sync_plan::SyncPlan;
use super::{Entry, EntryId, NewEntry, Order, OutboxError, Reply, Shared};
use crate::events::{self, Log};
use crate::settings::OutboxSync;
use crate::state_dir::StateDir;

/// Most orders in one commit: nobody waits longer than for that many.
const MAX_BATCH: usize = 1_024;
/// Most bytes in one commit; one entry more may exceed it. Bounds what SQLite writes before anybody hears.
const MAX_BATCH_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes written to the log after which it is emptied into the database.
const LONG_LOG_BYTES: u64 = 4 * 1024 * 1024;
/// What an order writes to the log beside its payload, in bytes: a handful of pages.
const LOG_BYTES_PER_ORDER: u64 = 16 * 1024;
/// Quiet time after which the file is tidied.
const TIDY_AFTER: Duration = Duration::from_secs(1);
/// Time between tries while writes fail.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Time between two lines of the log that say so: what lasts is not news.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// Least and most bytes of such a try; between them it is as large as the entry that failed.
const PROBE_BYTES: (u64, u64) = (4 * 1024, 1024 * 1024);

/// What the writer needs.
pub(super) struct Parts {
    pub(super) database: Database,
    pub(super) reserve: Reserve,
    pub(super) orders: Receiver<Order>,
    pub(super) shared: Arc<Shared>,
    pub(super) sync: OutboxSync,
    pub(super) log: Log,
    /// Held until the database is closed.
    pub(super) dir: StateDir,
}

/// Starts the thread.
///
/// # Errors
/// When the system gives none.
pub(super) fn start(parts: Parts) -> std::io::Result<()> {
    let mut writer = Writer::new(parts);
    // Before anything is pulled: without the reserve there is no room.
    let reserved = writer.take_reserve();
    writer.works_or_fails(reserved);
    let (shared, log) = (Arc::clone(&writer.shared), writer.log.clone());
    let thread = std::thread::Builder::new().name("outbox".to_owned());
    thread.spawn(move || {
        let work = std::panic::AssertUnwindSafe(|| writer.run());
        if std::panic::catch_unwind(work).is_err() {
            let error = OutboxError::Ended {
                file: shared.file.clone(),
            };
            log.emit(events::outbox_failing(&error.to_string(), None));
            shared.set_failure(Some(error.to_string()));
        }
    })?;
    Ok(())
}

/// An entry to be stored, and who waits for it.
type Store = (NewEntry, Reply<EntryId>);

struct Writer {
    database: Database,
    reserve: Reserve,
    orders: Receiver<Order>,
    shared: Arc<Shared>,
    plan: SyncPlan,
    log: Log,
    /// The number of the next entry.
    next: EntryId,
    /// Removals that are not committed yet.
    removals: VecDeque<EntryId>,
    /// About what was written to the log since it was last emptied, in bytes.
    log_bytes: u64,
    /// When to tidy up, unless something is written before.
    tidy_at: Option<Instant>,
    /// When to try again whether writing works; nothing while it does.
    probe_at: Option<Instant>,
    /// Size of what failed.
    probe_bytes: u64,
    /// Why the last write failed, if it did.
    last_error: Option<OutboxError>,
    /// When that was last told, while it lasts.
    told_at: Option<Instant>,
    dir: StateDir,
}

impl Writer {
    fn new(parts: Parts) -> Self {
        Self {
            next: parts.shared.first_own,
            database: parts.database,
            reserve: parts.reserve,
            orders: parts.orders,
            shared: parts.shared,
            plan: SyncPlan::new(parts.sync),
            log: parts.log,
            removals: VecDeque::new(),
            log_bytes: 0,
            // What a killed process left in the log is forced to disk soon.
            tidy_at: Some(Instant::now()),
            probe_at: None,
            probe_bytes: 0,
            last_error: None,
            told_at: None,
            dir: parts.dir,
        }
    }

    fn run(mut self) {
        loop {
            let next = self.wake_at();
            let received = match next {
                Some(at) => self
                    .orders
                    .recv_timeout(at.saturating_duration_since(Instant::now())),
                None => self.orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(order) => self.serve(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.do_chores(Instant::now());
        }
        self.end();
    }

    // ---- Orders ----

    /// Takes what waits up to a bound, commits it together, then does what cannot be part of a commit.
    fn serve(&mut self, first: Order) {
        let (mut stores, mut removed, mut bytes) = (Vec::new(), 0, 0);
        let mut apart = None;
        let mut order = Some(first);
        while let Some(taken) = order {
            match taken {
                Order::Store(entry, reply) => {
                    bytes += database::size_of(&entry);
                    stores.push((entry, reply));
                }
                Order::Remove(id) => {
                    self.removals.push_back(id);
                    removed += 1;
                }
                other => {
                    apart = Some(other);
                    break;
                }
            }
            let is_full = stores.len() + removed >= MAX_BATCH || bytes >= MAX_BATCH_BYTES;
            order = if is_full {
                None
            } else {
                self.orders.try_recv().ok()
            };
        }
        self.commit_batch(stores);
        match apart {
            Some(Order::LeftBehind { after, limit, reply }) => {
                let _ = reply.send(self.left_behind(after, limit));
            }
            Some(Order::Flush(reply)) => {
                let _ = reply.send(self.flush());
            }
            #[cfg(test)]
            Some(Order::Meddle(meddle, reply)) => {
                meddle(self.database.connection());
                let _ = reply.send(Ok(()));
            }
            _ => {}
        }
    }

    /// Stores and removes. When room or memory is short, all of it one by one: what still fits shall not suffer from
    /// what does not.
    fn commit_batch(&mut self, stores: Vec<Store>) {
        if stores.is_empty() && self.removals.is_empty() {
            return;
        }
        let removals: Vec<EntryId> = self
            .removals
            .drain(..self.removals.len().min(MAX_BATCH))
            .collect();
        let is_one = stores.len() + usize::from(!removals.is_empty()) == 1;
        let entries: Vec<&NewEntry> = stores.iter().map(|(entry, _)| entry).collect();
        match self.write(&entries, &removals) {
            Ok(first) => tell_stored(first, stores),
            Err(error) if is_one || !error.is_shortage => {
                self.keep_removals(&removals);
                self.fails(error, stores);
            }
            Err(_) => self.one_by_one(stores, &removals),
        }
    }

    /// Removals first: they make room.
    fn one_by_one(&mut self, stores: Vec<Store>, removals: &[EntryId]) {
        if !removals.is_empty()
            && let Err(error) = self.write(&[], removals)
        {
            self.keep_removals(removals);
            self.fails(error, Vec::new());
        }
        for store in stores {
            match self.write(&[&store.0], &[]) {
                Ok(id) => tell_stored(id, vec![store]),
                Err(error) => self.fails(error, vec![store]),
            }
        }
    }

    /// One commit. Returns the number of the first entry stored.
    fn write(&mut self, stores: &[&NewEntry], removals: &[EntryId]) -> Result<EntryId, WriteError> {
        let first = self.next;
        let bytes: u64 = stores.iter().map(|entry| database::size_of(entry)).sum();
        let removed = self.commit(None, |transaction| {
            database::insert(transaction, first, stores)?;
            database::delete(transaction, removals)
        })?;
        self.next = EntryId(first.0 + stores.len() as i64);
        self.shared
            .entries
            .fetch_add(stores.len() as u64, Ordering::Relaxed);
        self.shared.entries.fetch_sub(removed.entries, Ordering::Relaxed);
        self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shared.bytes.fetch_sub(removed.bytes, Ordering::Relaxed);
        self.note_ages(first, stores, removals);
        self.shared.update_room();
        self.log_bytes += bytes + LOG_BYTES_PER_ORDER * (stores.len() + removals.len()) as u64;
        Ok(first)
    }

    fn note_ages(&self, first: EntryId, stores: &[&NewEntry], removals: &[EntryId]) {
        let mut stored = self.shared.stored_at_ms();
        let numbers = (first.0..).map(EntryId);
        stored.extend(numbers.zip(stores.iter().map(|entry| entry.stored_at_ms)));
        for id in removals {
            stored.remove(id);
        }
    }

    /// Every commit goes through here; `force` overrides the plan.
    fn commit<T>(
        &mut self,
        force: Option<bool>,
        change: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, WriteError> {
        let now = Instant::now();
        let force = force.unwrap_or_else(|| self.plan.forces(now));
        let made = self.database.commit(force, change).inspect_err(|error| {
            if error.is_out_of_memory {
                sqlite_heap::tell_shortage();
            }
        })?;
        self.plan.committed(now, force);
        if force {
            self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        }
        self.tidy_at = Some(now + TIDY_AFTER);
        Ok(made)
    }

    fn left_behind(&self, after: Option<EntryId>, limit: usize) -> Result<Vec<Entry>, OutboxError> {
        self.database.entries(after, self.shared.first_own, limit)
    }

    fn flush(&mut self) -> Result<(), OutboxError> {
        if self.probe_at.is_some() {
            self.probe();
        }
        while !self.removals.is_empty() && self.probe_at.is_none() {
            self.commit_batch(Vec::new());
        }
        if self.plan.due().is_some() {
            self.sync();
        }
        self.last_error.clone().map_or(Ok(()), Err)
    }

    // ---- Failing and recovering ----

    fn keep_removals(&mut self, removals: &[EntryId]) {
        for id in removals.iter().rev() {
            self.removals.push_front(*id);
        }
    }

    /// Writing works, the log can be emptied and the reserve is in place. A single entry that got through says less.
    fn works(&mut self) {
        self.probe_at = None;
        self.probe_bytes = 0;
        self.last_error = None;
        self.told_at = None;
        if self.shared.set_failure(None).is_some() {
            self.log.emit(events::outbox_recovered());
        }
    }

    /// The last write failed: from now on nothing is pulled, and those who wait for it are told.
    fn fails(&mut self, error: WriteError, stores: Vec<Store>) {
        self.probe_at = Some(Instant::now() + PROBE_EVERY);
        let is_shortage = error.is_shortage;
        let error = OutboxError::NotWritten {
            file: self.shared.file.clone(),
            reason: error.reason,
        };
        let text = error.to_string();
        self.shared.set_failure(Some(text.clone()));
        self.last_error = Some(error.clone());
        for (entry, reply) in stores {
            self.probe_bytes = self.probe_bytes.max(database::size_of(&entry));
            let _ = reply.send(Err(error.clone()));
        }
        if self.told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            self.told_at = Some(Instant::now());
            let needed = is_shortage.then(|| RESERVE_BYTES + self.probe_size());
            self.log.emit(events::outbox_failing(&text, needed));
        }
    }

    /// How much is written to see whether writing works.
    fn probe_size(&self) -> u64 {
        self.probe_bytes.clamp(PROBE_BYTES.0, PROBE_BYTES.1)
    }

    fn works_or_fails(&mut self, outcome: Result<(), WriteError>) {
        match outcome {
            Ok(()) => self.works(),
            Err(error) => self.fails(error, Vec::new()),
        }
    }

    /// Removes and compacts with the room of the reserve, takes that room again, and then writes about as much as what
    /// failed, and takes it away again.
    fn probe(&mut self) {
        self.reserve.release();
        let removals: Vec<EntryId> = self
            .removals
            .drain(..self.removals.len().min(MAX_BATCH))
            .collect();
        if !removals.is_empty() && self.write(&[], &removals).is_err() {
            self.keep_removals(&removals);
        }
        let outcome = self
            .compact()
            .and_then(|()| self.take_reserve())
            .and_then(|()| self.write_and_take_away());
        self.works_or_fails(outcome);
    }

    fn take_reserve(&mut self) -> Result<(), WriteError> {
        self.reserve.fill().map_err(|error| {
            let mut error = WriteError::from(&error);
            if error.is_shortage {
                // Whoever looks sees room on the disk: what was there is taken only for a moment.
                let needed = format!("; {RESERVE_BYTES} bytes must be free for the reserve");
                error.reason.push_str(&needed);
            }
            error
        })
    }

    fn write_and_take_away(&mut self) -> Result<(), WriteError> {
        let bytes = self.probe_size();
        let force = Some(self.plan.ever_forces());
        self.commit(force, |transaction| database::probe(transaction, bytes))?;
        self.commit(force, |transaction| database::probe(transaction, 0))
    }

    // ---- Chores ----

    fn wake_at(&self) -> Option<Instant> {
        if self.probe_at.is_some() {
            return self.probe_at;
        }
        if !self.removals.is_empty() {
            return Some(Instant::now());
        }
        [self.plan.due(), self.tidy_at].into_iter().flatten().min()
    }

    fn do_chores(&mut self, now: Instant) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if self.probe_at.is_some() {
            if is_due(self.probe_at) {
                self.probe();
            }
            return;
        }
        if is_due(self.plan.due()) {
            self.sync();
        }
        if self.log_bytes >= LONG_LOG_BYTES || is_due(self.tidy_at) {
            self.tidy();
        } else if !self.removals.is_empty() {
            self.commit_batch(Vec::new());
        }
    }

    /// Forces what was committed before, by a commit that changes next to nothing: one without change forces nothing.
    fn sync(&mut self) {
        if let Err(error) = self.commit(Some(true), |transaction| database::probe(transaction, 0)) {
            self.fails(error, Vec::new());
        }
    }

    /// Empties the log and gives free pages back, a bounded step at a time.
    fn tidy(&mut self) {
        self.tidy_at = None;
        // A log that cannot be emptied would outgrow the reserve: nothing is pulled until it can.
        if let Err(error) = self.compact() {
            self.fails(error, Vec::new());
        }
    }

    fn compact(&mut self) -> Result<(), WriteError> {
        let spare = self.database.spare_pages();
        if spare > 0 {
            self.commit(None, |transaction| database::free_pages(transaction))?;
        }
        self.checkpoint()?;
        if self.database.has_long_log() {
            // The commit after a checkpoint begins the log anew and cuts it.
            self.commit(None, |transaction| database::probe(transaction, 0))?;
            self.checkpoint()?;
        }
        let left = self.database.spare_pages();
        self.tidy_at = (left > 0 && left < spare).then(Instant::now);
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), WriteError> {
        self.database.checkpoint()?;
        self.plan.checkpointed();
        self.log_bytes = 0;
        Ok(())
    }

    /// Nobody can ask for anything any more.
    fn end(mut self) {
        let _ = self.flush();
        // With everything forced: closing empties the log the way the last setting says.
        let _ = self.checkpoint();
        drop(self.database);
        // Nothing is written here before the next start.
        self.reserve.release();
        // Only now may another process have the slot.
        drop(self.dir);
    }
}

fn tell_stored(first: EntryId, stores: Vec<Store>) {
    for (id, (_, reply)) in (first.0..).zip(stores) {
        let _ = reply.send(Ok(EntryId(id)));
    }
}
