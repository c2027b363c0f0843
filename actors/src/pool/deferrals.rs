//! How many assignments this worker has sent back to the broker for a while, and whether more may be.
//!
//! What is deferred keeps occupying `max_ack_pending`, which the whole fleet shares: at most half of it may be. No worker
//! sees what others defer. The rule: a worker defers only while its own deferrals, and everything else that is on its way
//! and not held here, are less than half together; others' jobs count as if they were deferred. What others did since
//! the watchdog looked last is not known, so a fleet may go beyond it for the time between two looks.
//!
//! Neighbours: the places of a pool ask; the source says what came back; the watchdog says what it sees. A message whose
//! delay is over still occupies the consumer until it is delivered, so it counts until it comes back; it may also go to
//! another worker or be removed, so not for ever. Pure but for the lock.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a message whose delay is over is waited for. Longer than the time between two looks of the watchdog: what has
/// not come back by then counts among what is others'.
const GRACE: Duration = Duration::from_secs(10);

/// The deferrals of one worker. Cheap to clone.
#[derive(Clone)]
pub struct Deferrals(Arc<Mutex<Book>>);

struct Book {
    max_ack_pending: usize,
    /// Deliveries that were on their way and not of this worker, when somebody looked last.
    of_others: usize,
    /// Messages that were deferred and have not come back: when the delay of each is over, by stream sequence.
    away: HashMap<u64, Instant>,
    /// The same in the order of time.
    by_end: BTreeSet<(Instant, u64)>,
}

/// One deferral. Given back when dropped before the broker was told.
#[must_use = "it is given back when dropped"]
pub struct Deferral {
    deferrals: Deferrals,
    sequence: u64,
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
            away: HashMap::new(),
            by_end: BTreeSet::new(),
        })))
    }

    /// One more, of the message at this stream sequence, unless there are too many.
    pub fn try_take(&self, now: Instant, sequence: u64, delay_ms: u64) -> Option<Deferral> {
        let mut book = self.book();
        book.forget(sequence);
        book.forget_lost(now);
        if book.away.len().saturating_add(book.of_others) >= book.max_ack_pending / 2 {
            return None;
        }
        let end = now + Duration::from_millis(delay_ms);
        book.away.insert(sequence, end);
        book.by_end.insert((end, sequence));
        drop(book);
        Some(Deferral {
            deferrals: self.clone(),
            sequence,
            told: false,
            delay_ms,
        })
    }

    /// The message at this stream sequence was delivered to this worker: from now on it counts as held.
    pub fn came_back(&self, sequence: u64) {
        self.book().forget(sequence);
    }

    /// What the broker says of the consumer: deliveries on their way, and most of them (0 or less: no limit). `held`:
    /// how many of them are held here. `own_before`: [`Deferrals::outstanding`] and what was held, before the broker was
    /// asked: what has left since is in its answer all the same.
    pub fn saw(&self, now: Instant, ack_pending: u64, max_ack_pending: i64, held: usize, own_before: usize) {
        let mut book = self.book();
        book.forget_lost(now);
        let ack_pending = usize::try_from(ack_pending).unwrap_or(usize::MAX);
        book.forget_gone(now, ack_pending.saturating_sub(held));
        let own = held.saturating_add(book.away.len()).max(own_before);
        book.of_others = ack_pending.saturating_sub(own);
        let most = usize::try_from(max_ack_pending).ok().filter(|most| *most > 0);
        book.max_ack_pending = most.unwrap_or(usize::MAX);
    }

    /// Messages that were deferred and, as far as is known, still occupy the consumer.
    pub fn outstanding(&self, now: Instant) -> usize {
        let mut book = self.book();
        book.forget_lost(now);
        book.away.len()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn forget(&mut self, sequence: u64) {
        if let Some(end) = self.away.remove(&sequence) {
            self.by_end.remove(&(end, sequence));
        }
    }

    /// Those that were waited for long enough.
    fn forget_lost(&mut self, now: Instant) {
        while let Some((end, sequence)) = self.by_end.first().copied()
            && end + GRACE <= now
        {
            self.forget(sequence);
        }
    }

    /// Those whose delay is over and for which the broker has no room: they went to others, and are answered.
    fn forget_gone(&mut self, now: Instant, most: usize) {
        while let Some((end, sequence)) = self.by_end.first().copied()
            && end <= now
            && self.away.len() > most
        {
            self.forget(sequence);
        }
    }
}

impl Deferral {
    /// The broker is being told: it counts until the message comes back.
    pub fn keep(mut self) {
        self.told = true;
    }
}

impl Drop for Deferral {
    fn drop(&mut self) {
        if !self.told {
            self.deferrals.book().forget(self.sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn at_most_half_is_deferred_until_one_comes_back_or_was_waited_for_long_enough() {
        let (deferrals, start) = (Deferrals::new(6), Instant::now());
        for sequence in [1, 2, 3] {
            deferrals
                .try_take(start, sequence, 100 * sequence)
                .expect("below half")
                .keep();
        }
        assert!(deferrals.try_take(start, 4, 100).is_none());
        let later = start + Duration::from_millis(100);
        assert_eq!(deferrals.outstanding(later), 3, "it still occupies the consumer");
        deferrals.came_back(1);
        let fourth = deferrals.try_take(later, 4, 100).expect("one came back");
        assert!(deferrals.try_take(later, 1, 100).is_none());
        drop(fourth);
        let first = deferrals.try_take(later, 1, 100);
        first.expect("the broker was never told of the fourth").keep();
        assert!(deferrals.try_take(later, 4, 100).is_none());
        let much_later = start + Duration::from_millis(200) + GRACE;
        assert_eq!(deferrals.outstanding(much_later), 1, "nobody waits for ever");
        assert!(deferrals.try_take(much_later, 4, 100).is_some());
    }

    #[test]
    fn what_is_held_elsewhere_counts_as_if_it_were_deferred() {
        let (deferrals, now) = (Deferrals::new(100), Instant::now());
        deferrals.try_take(now, 1, 1_000).expect("below half").keep();
        // Of 13 on their way one is deferred here and 4 are held here.
        deferrals.saw(now, 13, 20, 4, 5);
        let more: Vec<_> = (2..50)
            .filter_map(|sequence| deferrals.try_take(now, sequence, 1_000))
            .collect();
        assert_eq!(more.len(), 1, "8 of others, 2 of ours");
        deferrals.saw(now, 13, 0, 4, 5);
        assert!(deferrals.try_take(now, 50, 1_000).is_some(), "there is no limit");
    }

    #[test]
    fn what_left_while_the_broker_was_asked_is_not_taken_for_somebody_elses() {
        let (deferrals, now) = (Deferrals::new(8), Instant::now());
        deferrals.saw(now, 5, 8, 0, 5);
        assert!(deferrals.try_take(now, 1, 100).is_some());
    }

    #[test]
    fn what_others_have_answered_does_not_count_after_the_next_look() {
        let (deferrals, start) = (Deferrals::new(8), Instant::now());
        for sequence in 1..5 {
            deferrals
                .try_take(start, sequence, 1_000)
                .expect("below half")
                .keep();
        }
        deferrals.saw(start, 0, 8, 0, 4);
        assert_eq!(
            deferrals.outstanding(start),
            4,
            "they cannot have gone to anybody"
        );
        deferrals.saw(start + SECOND, 2, 8, 1, 5);
        assert_eq!(deferrals.outstanding(start + SECOND), 1);
    }

    proptest::proptest! {
        /// One worker alone on its consumer; messages are deferred, come back late and are deferred again, and the
        /// watchdog looks whenever it likes: as many as may be are deferred, and not one more.
        #[test]
        fn none_is_refused_below_half_and_none_let_away_beyond_it(
            steps in proptest::collection::vec((0u8..6, 0u64..12, 0u64..2_000), 0..300),
        ) {
            let deferrals = Deferrals::new(16);
            let mut now = Instant::now();
            // What the broker keeps: when the delay is over of each that is away. Nobody stays away past the grace.
            let mut away: HashMap<u64, Instant> = HashMap::new();
            for (step, sequence, ms) in steps {
                match step {
                    0 => deferrals.saw(now, away.len() as u64, 16, 0, deferrals.outstanding(now)),
                    1 => {
                        let first_lost = away.values().map(|end| *end + GRACE).min();
                        let next = now + Duration::from_millis(ms);
                        now = first_lost.map_or(next, |lost| next.min(lost - Duration::from_millis(1)));
                    }
                    // It is delivered, for the first time or when its delay is over, and deferred or refused.
                    _ if away.get(&sequence).is_none_or(|end| *end <= now) => {
                        deferrals.came_back(sequence);
                        away.remove(&sequence);
                        let taken = deferrals.try_take(now, sequence, ms);
                        proptest::prop_assert_eq!(taken.is_some(), away.len() < 8);
                        if let Some(deferral) = taken {
                            deferral.keep();
                            away.insert(sequence, now + Duration::from_millis(ms));
                        }
                    }
                    _ => {}
                }
                proptest::prop_assert_eq!(deferrals.outstanding(now), away.len());
            }
        }
    }
}
