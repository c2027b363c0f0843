//! How many assignments this worker has sent back to the broker for a while, and whether more may be.
//!
//! What is deferred keeps occupying `max_ack_pending`, which the whole fleet shares: at most half of it may be. No worker
//! sees what others defer. The rule: a worker defers only while its own deferrals, and everything else that is on its way
//! and not held here, are less than half together; others' jobs count as if they were deferred. What others did since
//! the watchdog looked last is not known, so a fleet may go beyond it for the time between two looks.
//!
//! Neighbours: the places of a pool ask; the watchdog says what it sees. A deferral counts until its time is over: then
//! the broker gives the message to whom it likes. Pure but for the lock.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The deferrals of one worker. Cheap to clone.
#[derive(Clone)]
pub struct Deferrals(Arc<Mutex<Book>>);

struct Book {
    max_ack_pending: usize,
    /// Deliveries that were on their way and not of this worker, when somebody looked last.
    of_others: usize,
    /// When each is over, with a number.
    outstanding: BTreeSet<(Instant, u64)>,
    next: u64,
}

/// One deferral. Given back when dropped before the broker was told.
#[must_use = "it is given back when dropped"]
pub struct Deferral {
    deferrals: Deferrals,
    key: (Instant, u64),
    told: bool,
    /// How long the broker is to keep the message, in milliseconds.
    pub delay_ms: u64,
}

impl Deferrals {
    /// None yet, on a consumer that lets so many deliveries be on their way.
    pub fn new(max_ack_pending: u64) -> Self {
        Self(Arc::new(Mutex::new(Book {
            max_ack_pending: usize::try_from(max_ack_pending).unwrap_or(usize::MAX),
            of_others: 0,
            outstanding: BTreeSet::new(),
            next: 0,
        })))
    }

    /// One more, unless there are too many.
    pub fn try_take(&self, now: Instant, delay_ms: u64) -> Option<Deferral> {
        let mut book = self.book();
        book.forget_before(now);
        if book.outstanding.len().saturating_add(book.of_others) >= book.max_ack_pending / 2 {
            return None;
        }
        let key = (now + Duration::from_millis(delay_ms), book.next);
        book.next += 1;
        book.outstanding.insert(key);
        drop(book);
        Some(Deferral {
            deferrals: self.clone(),
            key,
            told: false,
            delay_ms,
        })
    }

    /// What the broker says of the consumer: deliveries on their way, and most of them (0 or less: no limit). `held`:
    /// how many of them are held here.
    pub fn saw(&self, now: Instant, ack_pending: u64, max_ack_pending: i64, held: usize) {
        let mut book = self.book();
        book.forget_before(now);
        let own = held.saturating_add(book.outstanding.len());
        book.of_others = usize::try_from(ack_pending)
            .unwrap_or(usize::MAX)
            .saturating_sub(own);
        let most = usize::try_from(max_ack_pending).ok().filter(|most| *most > 0);
        book.max_ack_pending = most.unwrap_or(usize::MAX);
    }

    /// Deferrals whose time is not over.
    pub fn outstanding(&self, now: Instant) -> usize {
        let mut book = self.book();
        book.forget_before(now);
        book.outstanding.len()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn forget_before(&mut self, now: Instant) {
        while self.outstanding.first().is_some_and(|(over, _)| *over <= now) {
            self.outstanding.pop_first();
        }
    }
}

impl Deferral {
    /// The broker is being told: it counts until its time is over.
    pub fn keep(mut self) {
        self.told = true;
    }
}

impl Drop for Deferral {
    fn drop(&mut self) {
        if !self.told {
            self.deferrals.book().outstanding.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_half_is_deferred_until_the_time_of_one_is_over() {
        let (deferrals, start) = (Deferrals::new(6), Instant::now());
        for delay_ms in [100, 200, 300] {
            deferrals.try_take(start, delay_ms).expect("below half").keep();
        }
        assert!(deferrals.try_take(start, 100).is_none());
        let later = start + Duration::from_millis(100);
        assert_eq!(deferrals.outstanding(later), 2);
        let fourth = deferrals.try_take(later, 100).expect("one is over");
        assert!(deferrals.try_take(later, 100).is_none());
        drop(fourth);
        assert!(
            deferrals.try_take(later, 100).is_some(),
            "the broker was never told of the fourth"
        );
    }

    #[test]
    fn what_is_held_elsewhere_counts_as_if_it_were_deferred() {
        let (deferrals, now) = (Deferrals::new(100), Instant::now());
        deferrals.try_take(now, 1_000).expect("below half").keep();
        // Of 13 on their way one is deferred here and 4 are held here.
        deferrals.saw(now, 13, 20, 4);
        let more: Vec<_> = std::iter::from_fn(|| deferrals.try_take(now, 1_000)).collect();
        assert_eq!(more.len(), 1, "8 of others, 2 of ours");
        deferrals.saw(now, 13, 0, 4);
        assert!(deferrals.try_take(now, 1_000).is_some(), "there is no limit");
    }
}
