//! The slots of a pool: owned values, shared across restarts of the pool, and the book of who has them.
//!
//! Neighbours: the pool takes a slot and sends it along with a job; the block worker says that it runs
//! ([`Slot::occupy`]) and drops it; the auditor compares both sides of the book. The book is kept for the auditor:
//! nothing is decided by it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::SlotReturned;
use super::auditor::Look;
use super::running::Running;
use crate::runtime::Route;

/// The slots of a pool, one per block worker.
pub struct Slots {
    count: usize,
    book: Mutex<Book>,
    wake: Route<SlotReturned>,
}

#[derive(Default)]
struct Book {
    free: Vec<usize>,
    /// Number of the next issue.
    next: u64,
    /// Slots that were given out, by issue.
    issued: BTreeSet<u64>,
    /// Issues whose job really runs, as the block workers have it.
    running: BTreeSet<u64>,
    /// What the auditor found last.
    unaccounted: usize,
}

/// The right to run one job. Returns when dropped, and wakes the pool.
pub struct Slot {
    /// Which block worker it stands for.
    pub index: usize,
    issue: u64,
    /// The right of its job's tenant, which is over with it.
    running: Option<Running>,
    slots: Arc<Slots>,
}

/// A job runs in a slot, for as long as this lives.
#[must_use = "the job counts as running until this is dropped"]
pub struct Occupied {
    issue: u64,
    slots: Arc<Slots>,
}

impl Slots {
    /// All free. `wake` leads to the pool.
    pub fn new(count: usize, wake: Route<SlotReturned>) -> Arc<Self> {
        let book = Book {
            free: (0..count).rev().collect(),
            ..Book::default()
        };
        Arc::new(Self {
            count,
            book: Mutex::new(book),
            wake,
        })
    }

    /// Takes a free slot; the pool does.
    pub fn try_take(self: &Arc<Self>) -> Option<Slot> {
        let mut book = self.book();
        let index = book.free.pop()?;
        let issue = book.next;
        book.next += 1;
        book.issued.insert(issue);
        drop(book);
        Some(Slot {
            index,
            issue,
            running: None,
            slots: Arc::clone(self),
        })
    }

    /// Whether one is free.
    pub fn has_free(&self) -> bool {
        !self.book().free.is_empty()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Slots that are not free now.
    pub fn busy(&self) -> usize {
        self.count.saturating_sub(self.book().free.len())
    }

    /// Share of slots that are busy, 0..1.
    pub fn busy_share(&self) -> f64 {
        let float = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        float(self.busy()) / float(self.count.max(1))
    }

    /// Slots that the auditor missed when it looked last.
    pub fn unaccounted(&self) -> usize {
        self.book().unaccounted
    }

    pub(super) fn set_unaccounted(&self, slots: usize) {
        self.book().unaccounted = slots;
    }

    /// Both sides of the book.
    pub(super) fn look(&self) -> Look {
        let book = self.book();
        Look {
            slots: self.count,
            free: book.free.len(),
            issued: book.issued.clone(),
            running: book.running.clone(),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Takes along the right to run one more job of a tenant.
    #[must_use]
    pub fn carrying(mut self, running: Running) -> Self {
        self.running = Some(running);
        self
    }

    /// What it takes along: its job does not run after all.
    pub fn let_go(&mut self) -> Option<Running> {
        self.running.take()
    }

    /// Says that the job really runs.
    pub fn occupy(&self) -> Occupied {
        self.slots.book().running.insert(self.issue);
        Occupied {
            issue: self.issue,
            slots: Arc::clone(&self.slots),
        }
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.slots.book().running.remove(&self.issue);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // First: who is woken by the slot is to find room for the tenant too.
        drop(self.running.take());
        let mut book = self.slots.book();
        book.issued.remove(&self.issue);
        book.free.push(self.index);
        drop(book);
        let _ = self.slots.wake.tell(SlotReturned);
    }
}
