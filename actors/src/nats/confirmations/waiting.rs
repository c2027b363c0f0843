//! Who waits for a word, by number, and for how long. Pure: time passes in ticks.
//!
//! Neighbours: the listener takes out whom a word is for, and whom none came for.

use std::collections::{BTreeMap, VecDeque};

/// Ticks after which nobody waits any more. Numbers only grow, so a tick need only note which was next: nobody's own time
/// is kept. More ticks would wake the worker more often for words that hardly ever fail to come.
pub(super) const TICKS_PER_LIMIT: u32 = 8;

/// Everybody who waits.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    next: u64,
    by_number: BTreeMap<u64, T>,
    /// What was next at the latest ticks, oldest first.
    next_at_tick: VecDeque<u64>,
    closed: bool,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self {
            next: 0,
            by_number: BTreeMap::new(),
            next_at_tick: VecDeque::new(),
            closed: false,
        }
    }
}

impl<T> Waiting<T> {
    /// One more waits, under the number returned. Once closed, it is dropped.
    pub(super) fn enter(&mut self, waiter: T) -> u64 {
        let number = self.next;
        self.next += 1;
        if !self.closed {
            self.by_number.insert(number, waiter);
        }
        number
    }

    /// Its wait is over.
    pub(super) fn take(&mut self, number: u64) -> Option<T> {
        self.by_number.remove(&number)
    }

    /// Time passes. Returns who has waited for [`TICKS_PER_LIMIT`] whole ticks.
    pub(super) fn tick(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.next_at_tick.push_back(self.next);
        let mut late = BTreeMap::new();
        if self.next_at_tick.len() > TICKS_PER_LIMIT as usize
            && let Some(first_in_time) = self.next_at_tick.pop_front()
        {
            late = self.by_number.split_off(&first_in_time);
            std::mem::swap(&mut late, &mut self.by_number);
        }
        late.into_values()
    }

    /// Everybody's wait is over.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(&mut self.by_number).into_values()
    }

    /// As [`Waiting::take_all`], for those too who come later.
    pub(super) fn close(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.closed = true;
        self.take_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late(waiting: &mut Waiting<char>, ticks: u32) -> String {
        (0..ticks)
            .flat_map(|_| waiting.tick().collect::<Vec<_>>())
            .collect()
    }

    #[test]
    fn a_word_ends_one_wait_and_only_once() {
        let mut waiting = Waiting::default();
        let (a, b) = (waiting.enter('a'), waiting.enter('b'));
        assert_eq!(waiting.take(b), Some('b'));
        assert_eq!(waiting.take(b), None);
        assert_eq!(waiting.take(a), Some('a'));
        assert_eq!(waiting.take(b + 1), None, "nobody has this number yet");
    }

    #[test]
    fn nobody_waits_longer_than_the_limit_and_nobody_is_given_up_sooner() {
        let mut waiting = Waiting::default();
        waiting.enter('a');
        // The first tick may come at once.
        assert_eq!(late(&mut waiting, 3), "");
        waiting.enter('b');
        assert_eq!(late(&mut waiting, TICKS_PER_LIMIT - 3), "");
        assert_eq!(late(&mut waiting, 1), "a");
        waiting.enter('c');
        assert_eq!(late(&mut waiting, 2), "");
        assert_eq!(late(&mut waiting, 1), "b");
        assert_eq!(late(&mut waiting, TICKS_PER_LIMIT), "c");
        assert_eq!(late(&mut waiting, 3 * TICKS_PER_LIMIT), "");
    }

    #[test]
    fn whom_a_word_came_for_is_not_late() {
        let mut waiting = Waiting::default();
        let a = waiting.enter('a');
        waiting.enter('b');
        waiting.take(a);
        assert_eq!(late(&mut waiting, TICKS_PER_LIMIT + 1), "b");
    }

    #[test]
    fn who_was_cut_off_waits_no_more_and_later_ones_do_until_it_is_closed() {
        let mut waiting = Waiting::default();
        let a = waiting.enter('a');
        assert_eq!(waiting.take_all().collect::<String>(), "a");
        assert_eq!(waiting.take(a), None);
        let b = waiting.enter('b');
        assert_ne!(
            a, b,
            "a late word for the first must not be taken for one for the second"
        );
        assert_eq!(waiting.close().collect::<String>(), "b");
        let c = waiting.enter('c');
        assert_eq!(waiting.take(c), None);
    }
}
