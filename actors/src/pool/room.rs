//! How many messages may be asked for, as far as the pools say: which pool a message is for is known only when it is
//! here. Pure.
//!
//! Neighbours: [`crate::held`] asks before it gives a reservation, so that every source does the same.

use super::Places;

/// What happens while pools are full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Messages are asked for while any pool has room; what does not fit is refused.
    Refuse,
    /// Messages are asked for while every pool has room, and no more than the fullest of them can take.
    Wait,
}

/// The pools, as far as they bound what is asked for.
pub struct Room {
    /// What happens while they are full.
    pub admission: Admission,
    /// Their places.
    pub pools: Vec<Places>,
}

impl Room {
    /// Messages that may be asked for, `unplaced` ones having been asked for that have no place yet.
    pub fn left(&self, unplaced: usize) -> usize {
        let free = self.pools.iter().map(Places::free);
        left(self.admission, free, unplaced)
    }
}

/// `free`: places of each pool; nothing for a pool without a bound.
pub fn left(admission: Admission, mut free: impl Iterator<Item = Option<usize>>, unplaced: usize) -> usize {
    match admission {
        Admission::Refuse if free.any(|free| free != Some(0)) => usize::MAX,
        Admission::Refuse => 0,
        Admission::Wait => free
            .flatten()
            .min()
            .map_or(usize::MAX, |least| least.saturating_sub(unplaced)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_refuses_asks_while_any_pool_has_room_and_who_waits_for_what_the_fullest_can_take() {
        let refuse = |free: [Option<usize>; 3]| left(Admission::Refuse, free.into_iter(), 7);
        assert_eq!(refuse([Some(0), Some(0), Some(1)]), usize::MAX);
        assert_eq!(refuse([Some(0), Some(0), Some(0)]), 0);
        let wait = |free: [Option<usize>; 3], unplaced| left(Admission::Wait, free.into_iter(), unplaced);
        assert_eq!(wait([Some(5), Some(3), Some(9)], 0), 3);
        assert_eq!(wait([Some(5), Some(3), Some(9)], 2), 1);
        assert_eq!(wait([Some(5), Some(3), Some(9)], 4), 0);
        assert_eq!(wait([Some(5), Some(0), Some(9)], 0), 0);
    }

    #[test]
    fn without_bounds_there_is_always_room() {
        for admission in [Admission::Refuse, Admission::Wait] {
            assert_eq!(left(admission, [None, None, None].into_iter(), 1_000), usize::MAX);
        }
    }
}
