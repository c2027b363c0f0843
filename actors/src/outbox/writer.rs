//! The thread that owns the log: writes what waits together, tells each caller, keeps the log short.
//!
//! Neighbours: [`super::Outbox`] sends orders, and leaves removals for the next turn; `sync_plan` says when to force to
//! disk. It never waits for anybody but the disk. A write that fails is told to its callers, and while writes fail one is
//! tried every second, so that the outbox recovers although nothing is pulled and nothing new comes.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::time::Instant;

use super::record;
use super::reserve::{RESERVE_BYTES, Reserve};
use super::segments::{SPARE_BYTES, Segments, WriteError};
use super::sync_plan::SyncPlan;
use super::{EntryId, NewEntry, Order, OutboxError, Reply, Shared};
use crate::events::{self, Log};
use crate::settings::OutboxSync;
use crate::state_dir::StateDir;

/// Most entries in one write: nobody waits longer than for that many.
const MAX_BATCH: usize = 1_024;
/// Most bytes in one write; one entry more may exceed it. Bounds what is written before anybody hears.
const MAX_BATCH_BYTES: u64 = 4 * 1024 * 1024;
/// Longest time that a removal waits for company, while something is stored: nobody waits for it, and each turn costs a
/// wake-up.
const REMOVALS_WITHIN: Duration = Duration::from_millis(20);
/// Quiet time after which the log is tidied.
const TIDY_AFTER: Duration = Duration::from_secs(1);
/// A log in which nothing lives may stay so long: it is written on soon.
const KEPT_BYTES: u64 = 1024 * 1024;
/// Time between tries while writes fail.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Time between two lines of the log that say so: what lasts is not news.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// Least and most bytes of such a try; between them it is as large as the entry that failed.
const PROBE_BYTES: (u64, u64) = (4 * 1024, 1024 * 1024);
/// While writes fail, the log may be so much longer than twice what lives in it: then room is worth some copying.
const SHORT_SPARE_BYTES: u64 = 1024 * 1024;
/// Most segments copied in one try.
const COPIES_PER_PROBE: usize = 16;

/// What the writer needs.
pub(super) struct Parts {
    pub(super) segments: Segments,
    pub(super) reserve: Reserve,
    pub(super) orders: Receiver<Order>,
    pub(super) shared: Arc<Shared>,
    pub(super) sync: OutboxSync,
    pub(super) log: Log,
    /// Held until the log is closed.
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
    segments: Segments,
    reserve: Reserve,
    orders: Receiver<Order>,
    shared: Arc<Shared>,
    plan: SyncPlan,
    log: Log,
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
            segments: parts.segments,
            reserve: parts.reserve,
            orders: parts.orders,
            shared: parts.shared,
            plan: SyncPlan::new(parts.sync),
            log: parts.log,
            // What an earlier process left may be dead by now.
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
            if matches!(received, Err(RecvTimeoutError::Disconnected)) {
                break;
            }
            let shared = Arc::clone(&self.shared);
            shared.disk.during(|| {
                match received {
                    Ok(order) => self.serve(order),
                    Err(_) => self.write_removals(),
                }
                self.do_chores(Instant::now());
            });
        }
        self.end();
    }

    // ---- Orders ----

    /// Takes what waits up to a bound, writes it together, then does what cannot be part of a write.
    fn serve(&mut self, first: Order) {
        let (mut stores, mut bytes) = (Vec::new(), 0);
        let mut apart = None;
        let mut order = Some(first);
        while let Some(taken) = order {
            match taken {
                Order::Store(entry, reply) => {
                    bytes += record::size_of(&entry);
                    stores.push((entry, reply));
                }
                Order::Remove => {}
                other => {
                    apart = Some(other);
                    break;
                }
            }
            let is_full = stores.len() >= MAX_BATCH || bytes >= MAX_BATCH_BYTES;
            order = if is_full {
                None
            } else {
                self.orders.try_recv().ok()
            };
        }
        self.take_removals();
        self.write_batch(stores);
        match apart {
            Some(Order::LeftBehind { after, limit, reply }) => {
                let _ = reply.send(self.segments.left(after, self.shared.first_own, limit));
            }
            Some(Order::Flush(reply)) => {
                let _ = reply.send(self.flush());
            }
            #[cfg(test)]
            Some(Order::Meddle(meddle, reply)) => {
                meddle(&mut self.segments);
                let _ = reply.send(Ok(()));
            }
            _ => {}
        }
    }

    /// Removes in memory what is to be removed: it makes room at once.
    fn take_removals(&mut self) {
        let removals = std::mem::take(&mut *self.shared.removals());
        if !removals.is_empty() {
            self.segments.remove(removals);
            self.tell_state();
        }
    }

    fn write_removals(&mut self) {
        self.take_removals();
        if self.probe_at.is_none() {
            self.write_batch(Vec::new());
        }
    }

    /// Stores, and writes removals down. When room is short, all of it one by one: what still fits shall not suffer from
    /// what does not.
    fn write_batch(&mut self, stores: Vec<Store>) {
        let parts = stores.len() + usize::from(self.segments.has_unwritten());
        if parts == 0 {
            return;
        }
        match self.write(&stores) {
            Ok(first) => tell_stored(first, stores),
            Err(error) if parts == 1 || !error.is_shortage => self.fails(error, stores),
            Err(_) => self.one_by_one(stores),
        }
    }

    /// Removals first: they may make room.
    fn one_by_one(&mut self, stores: Vec<Store>) {
        if self.segments.has_unwritten()
            && let Err(error) = self.write(&[])
        {
            self.fails(error, Vec::new());
        }
        for store in stores {
            let store = [store];
            match self.write(&store) {
                Ok(id) => tell_stored(id, store),
                Err(error) => self.fails(error, store),
            }
        }
    }

    /// One write. Returns the number of the first entry stored.
    fn write(&mut self, stores: &[Store]) -> Result<EntryId, WriteError> {
        let first = self.segments.write(stores.iter().map(|(entry, _)| entry))?;
        let now = Instant::now();
        self.plan.written(now);
        self.tidy_at = Some(now + TIDY_AFTER);
        let mut synced = Ok(());
        if self.plan.forces_stores() && !stores.is_empty() {
            synced = self.sync();
            if synced.is_err() {
                // Nobody will remove what nobody knows to be stored.
                self.segments.remove((first.0..).map(EntryId).take(stores.len()));
            }
        }
        self.tell_state();
        synced.map(|()| first)
    }

    /// Tells the handles what is in the log.
    fn tell_state(&self) {
        let (log, shared) = (&self.segments, &self.shared);
        shared.entries.store(log.entries(), Relaxed);
        shared.bytes.store(log.content_bytes(), Relaxed);
        shared.syncs.store(log.syncs(), Relaxed);
        let oldest = log.oldest_stored_at_ms();
        shared.oldest_ms.store(oldest.unwrap_or(u64::MAX), Relaxed);
        shared.update_room();
    }

    fn flush(&mut self) -> Result<(), OutboxError> {
        if self.probe_at.is_some() {
            self.probe();
        }
        while self.segments.has_unwritten() && self.probe_at.is_none() {
            self.write_batch(Vec::new());
        }
        if self.plan.due(true).is_some()
            && let Err(error) = self.sync()
        {
            self.fails(error, Vec::new());
        }
        self.last_error.clone().map_or(Ok(()), Err)
    }

    // ---- Failing and recovering ----

    /// Writing works, the log is short and the reserve is in place. A single entry that got through says less.
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
    fn fails(&mut self, error: WriteError, stores: impl IntoIterator<Item = Store>) {
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
            self.probe_bytes = self.probe_bytes.max(record::size_of(&entry));
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

    /// Shortens the log with the room of the reserve, takes that room again, and then writes about as much as what
    /// failed, and takes it away again.
    fn probe(&mut self) {
        self.reserve.release();
        let outcome = self
            .shorten()
            .and_then(|()| self.take_reserve())
            .and_then(|()| self.segments.probe(self.probe_size()))
            .and_then(|()| {
                if self.plan.due(true).is_some() {
                    self.sync()
                } else {
                    Ok(())
                }
            });
        self.tell_state();
        self.works_or_fails(outcome);
    }

    /// Makes the log as short as copying makes it.
    fn shorten(&mut self) -> Result<(), WriteError> {
        self.segments.end_empty(0)?;
        for _ in 0..COPIES_PER_PROBE {
            if !self.segments.is_wasteful(SHORT_SPARE_BYTES) {
                break;
            }
            self.segments.copy_oldest()?;
        }
        if self.segments.has_unwritten() {
            self.write(&[])?;
        }
        Ok(())
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

    // ---- Chores ----

    fn wake_at(&self) -> Option<Instant> {
        if self.probe_at.is_some() {
            return self.probe_at;
        }
        let now = Instant::now();
        let removals = if self.segments.has_unwritten() {
            Some(now)
        } else {
            // Whoever removes something does not say so.
            (self.segments.entries() > 0).then(|| now + REMOVALS_WITHIN)
        };
        let sync = self.plan.due(self.segments.holds_unsynced());
        [sync, self.tidy_at, removals].into_iter().flatten().min()
    }

    fn do_chores(&mut self, now: Instant) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if self.probe_at.is_some() {
            if is_due(self.probe_at) {
                self.probe();
            }
            return;
        }
        if let Err(error) = self.keep_up(is_due(self.tidy_at), now) {
            self.fails(error, Vec::new());
        }
    }

    /// A bounded step of what nobody waits for. A log that cannot be shortened would outgrow the disk: nothing is pulled
    /// until it can.
    fn keep_up(&mut self, is_quiet: bool, now: Instant) -> Result<(), WriteError> {
        if self
            .plan
            .due(self.segments.holds_unsynced())
            .is_some_and(|at| at <= now)
        {
            self.sync()?;
            self.tell_state();
        }
        self.segments.drop_dead()?;
        if self.segments.is_wasteful(SPARE_BYTES) {
            self.segments.copy_oldest()?;
        }
        if is_quiet {
            self.tidy_at = None;
            self.segments.end_empty(KEPT_BYTES)?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), WriteError> {
        self.segments.sync()?;
        self.plan.synced();
        Ok(())
    }

    /// Nobody can ask for anything any more.
    fn end(mut self) {
        self.take_removals();
        if self.segments.entries() > 0 {
            let _ = self.flush();
        }
        // The next start has nothing to read then.
        let _ = self.segments.end_empty(0);
        drop(self.segments);
        // Nothing is written here before the next start.
        self.reserve.release();
        // Only now may another process have the slot.
        drop(self.dir);
    }
}

fn tell_stored(first: EntryId, stores: impl IntoIterator<Item = Store>) {
    for (id, (_, reply)) in (first.0..).zip(stores) {
        let _ = reply.send(Ok(EntryId(id)));
    }
}
