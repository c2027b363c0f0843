//! The waiting line of a pool: first come, first served, and nobody waits past a deadline. Pure.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::Instant;

/// An item in the line.
pub(super) struct Waiting<T> {
    /// Since when it waits.
    pub(super) since: Instant,
    /// When it gives up.
    pub(super) deadline: Instant,
    /// What waits.
    pub(super) item: T,
}

/// A line of items, each with the time at which it gives up.
pub(super) struct Line<T> {
    items: VecDeque<Waiting<T>>,
    /// How many items give up at each time: the first key is the next deadline.
    deadlines: BTreeMap<Instant, usize>,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self {
            items: VecDeque::new(),
            deadlines: BTreeMap::new(),
        }
    }
}

impl<T> Line<T> {
    pub(super) fn push_back(&mut self, since: Instant, deadline: Instant, item: T) {
        *self.deadlines.entry(deadline).or_default() += 1;
        self.items.push_back(Waiting {
            since,
            deadline,
            item,
        });
    }

    /// Gives an item its turn back.
    pub(super) fn push_front(&mut self, waiting: Waiting<T>) {
        *self.deadlines.entry(waiting.deadline).or_default() += 1;
        self.items.push_front(waiting);
    }

    /// Takes the one out that waits longest.
    pub(super) fn pop(&mut self) -> Option<Waiting<T>> {
        let first = self.items.pop_front()?;
        self.uncount(first.deadline);
        Some(first)
    }

    /// Since when the one waits that waits longest.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.items.front().map(|first| first.since)
    }

    /// Takes out everything that gives up at `now` or before. Looks at the items only when there is something.
    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<Waiting<T>> {
        if self.next_deadline().is_none_or(|next| next > now) {
            return Vec::new();
        }
        let (expired, waiting): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.items)
            .into_iter()
            .partition(|waiting| waiting.deadline <= now);
        self.items = waiting;
        self.deadlines = self.deadlines.split_off(&now);
        self.deadlines.remove(&now);
        expired.into()
    }

    /// Takes out everything that `is_wanted`.
    pub(super) fn take(&mut self, is_wanted: impl Fn(&T) -> bool) -> Vec<Waiting<T>> {
        let (taken, waiting): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.items)
            .into_iter()
            .partition(|waiting| is_wanted(&waiting.item));
        self.items = waiting;
        for taken in &taken {
            self.uncount(taken.deadline);
        }
        taken.into()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first_key_value().map(|(deadline, _)| *deadline)
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Since when each waits, and when it gives up.
    #[cfg(test)]
    pub(super) fn waits(&self) -> impl Iterator<Item = (Instant, Instant)> {
        self.items.iter().map(|waiting| (waiting.since, waiting.deadline))
    }

    fn uncount(&mut self, deadline: Instant) {
        if let Some(count) = self.deadlines.get_mut(&deadline) {
            *count -= 1;
            if *count == 0 {
                self.deadlines.remove(&deadline);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Steps: 0..=9 push with that deadline, 10 pop, 11.. let time pass and take the expired, 16 take every third.
        #[test]
        fn items_leave_once_in_order_and_never_after_their_deadline(steps in prop::collection::vec(0u64..17, 0..200)) {
            let start = Instant::now();
            let (mut line, mut model, mut clock) = (Line::default(), Vec::<(u64, usize)>::new(), 0);
            for (id, step) in steps.into_iter().enumerate() {
                match step {
                    0..=9 => {
                        let since = start + Duration::from_secs(clock);
                        line.push_back(since, start + Duration::from_secs(clock + step), id);
                        model.push((clock + step, id));
                    }
                    10 => {
                        let first = (!model.is_empty()).then(|| model.remove(0).1);
                        prop_assert_eq!(line.pop().map(|waiting| waiting.item), first);
                    }
                    16 => {
                        let gone: Vec<_> = model.iter().map(|(_, id)| *id).filter(|id| id % 3 == 0).collect();
                        model.retain(|(_, id)| id % 3 != 0);
                        let taken = line.take(|id| id % 3 == 0).into_iter().map(|waiting| waiting.item);
                        prop_assert_eq!(taken.collect::<Vec<_>>(), gone);
                    }
                    _ => {
                        clock += step - 10;
                        let gone: Vec<_> = model.iter().filter(|(at, _)| *at <= clock).map(|(_, id)| *id).collect();
                        model.retain(|(at, _)| *at > clock);
                        let taken = line.take_expired(start + Duration::from_secs(clock)).into_iter();
                        prop_assert_eq!(taken.map(|waiting| waiting.item).collect::<Vec<_>>(), gone);
                    }
                }
                prop_assert_eq!(line.len(), model.len());
                let next = model.iter().map(|(at, _)| *at).min().map(|at| start + Duration::from_secs(at));
                prop_assert_eq!(line.next_deadline(), next);
            }
        }
    }
}
