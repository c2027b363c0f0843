//! The slot auditor: issued = free + running, per pool, or somebody hears of it.
//!
//! Neighbours: the node starts one beside the pools; [`super::Slots`] keep the book; pools show what it found on the
//! health page. A slot on its way from pool to block worker, or back, is in neither count for a moment, so only what is
//! amiss on two looks in a row is said. It mends nothing: a leak is a fault of the program.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use caf_protocol::block::ResourceClass;

use super::Slots;
use crate::events::{self, Log};

/// Time between two looks: far longer than a slot is on its way.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What the book says at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Look {
    /// Slots that the pool has.
    pub slots: usize,
    /// Slots that can be taken.
    pub free: usize,
    /// Slots given out, by the number under which they were.
    pub issued: BTreeSet<u64>,
    /// Numbers under which a job runs.
    pub running: BTreeSet<u64>,
}

/// Slots that were not where they should be, neither `before` nor `now`: given out without a job that runs, or a job
/// that runs in a slot which is not its own any more; and slots that are neither free nor given out.
pub fn unaccounted(before: &Look, now: &Look) -> usize {
    let idle = |look: &Look| {
        look.issued
            .difference(&look.running)
            .copied()
            .collect::<BTreeSet<_>>()
    };
    let homeless = |look: &Look| {
        look.running
            .difference(&look.issued)
            .copied()
            .collect::<BTreeSet<_>>()
    };
    let vanished = |look: &Look| look.slots.abs_diff(look.free + look.issued.len());
    idle(before).intersection(&idle(now)).count()
        + homeless(before).intersection(&homeless(now)).count()
        + vanished(before).min(vanished(now))
}

/// Looks at the slots of all pools for as long as it is polled.
pub async fn audit(pools: Vec<(ResourceClass, Arc<Slots>)>, log: Log) {
    let look = |pools: &[(ResourceClass, Arc<Slots>)]| -> Vec<Look> {
        pools.iter().map(|(_, slots)| slots.look()).collect()
    };
    let mut before = look(&pools);
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = look(&pools);
        for ((class, slots), (before, now)) in pools.iter().zip(before.iter().zip(&now)) {
            let missed = unaccounted(before, now);
            // Said again only when it changes: a leak stays until the process ends.
            if missed != slots.unaccounted() {
                log.emit(events::slots_unaccounted(class.as_str(), missed, now));
            }
            slots.set_unaccounted(missed);
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Route;

    #[test]
    fn slots_on_their_way_are_not_missed_and_a_forgotten_one_is_on_the_second_look() {
        let slots = Slots::new(3, Route::default());
        let at_rest = slots.look();
        let (first, second) = (slots.try_take().expect("free"), slots.try_take().expect("free"));
        let under_way = slots.look();
        let running = first.occupy();
        assert_eq!(unaccounted(&at_rest, &under_way), 0);
        std::mem::forget(second);
        let leaked = slots.look();
        assert_eq!(unaccounted(&under_way, &leaked), 1);
        drop((running, first));
        assert_eq!(unaccounted(&leaked, &slots.look()), 1, "for ever");
        assert_eq!(slots.busy(), 1);
    }

    #[test]
    fn the_same_slot_under_way_on_two_looks_is_missed_only_if_it_was_not_back_in_between() {
        let slots = Slots::new(1, Route::default());
        let first = slots.try_take().expect("free");
        let before = slots.look();
        drop(first);
        let second = slots.try_take().expect("free");
        assert_eq!(unaccounted(&before, &slots.look()), 0);
        drop(second);
    }

    #[test]
    fn a_job_that_runs_on_without_its_slot_is_missed() {
        let slots = Slots::new(1, Route::default());
        let slot = slots.try_take().expect("free");
        let running = slot.occupy();
        drop(slot);
        let look = slots.look();
        assert_eq!(unaccounted(&look, &look), 1);
        drop(running);
        assert_eq!(unaccounted(&look, &slots.look()), 0);
    }

    #[test]
    fn slots_that_are_neither_free_nor_given_out_are_missed() {
        let look = |free| Look {
            slots: 3,
            free,
            ..Look::default()
        };
        assert_eq!(unaccounted(&look(1), &look(2)), 1);
        assert_eq!(unaccounted(&look(1), &look(3)), 0);
    }
}
