use proptest::prelude::*;

use super::*;

#[test]
fn exactly_slots_and_queue_are_taken_and_a_returned_place_is_free_again() {
    let places = Places::new(2, Some(3));
    let mut taken: Vec<_> = std::iter::from_fn(|| places.try_take()).collect();
    assert_eq!(taken.len(), 5);
    let depths: Vec<_> = taken
        .iter()
        .filter_map(|(_, load)| load.map(|load| load.depth))
        .collect();
    assert_eq!(depths, [0, 0, 1, 2, 3]);
    taken.pop();
    assert!(places.try_take().is_some());
}

#[test]
fn without_a_bound_the_pool_always_has_a_place_and_no_load() {
    let places = Places::new(1, None);
    let taken: Vec<_> = (0..10_000).filter_map(|_| places.try_take()).collect();
    assert_eq!(taken.len(), 10_000);
    assert!(taken.iter().all(|(_, load)| load.is_none()));
}

#[test]
fn the_overload_word_changes_at_the_thresholds_of_the_contract() {
    let words = [0, 49, 50, 79, 80, 99, 100].map(|depth| overload_status(depth, 100));
    use OverloadStatus::{Critical, Degraded, Healthy, Overloaded};
    assert_eq!(
        words,
        [
            Healthy, Healthy, Degraded, Degraded, Overloaded, Overloaded, Critical
        ]
    );
}

proptest! {
    #[test]
    fn slots_are_never_given_twice(takes in prop::collection::vec(any::<bool>(), 0..100)) {
        let slots = Slots::new(3, Route::default());
        let mut held: Vec<Slot> = Vec::new();
        for take in takes {
            if take {
                held.extend(slots.try_take());
            } else {
                held.pop();
            }
            let mut indices: Vec<_> = held.iter().map(|slot| slot.index).collect();
            indices.sort_unstable();
            indices.dedup();
            prop_assert_eq!(indices.len(), held.len());
            prop_assert_eq!(slots.busy(), held.len());
        }
    }
}
