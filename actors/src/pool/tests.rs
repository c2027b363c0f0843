mod changes;
mod model;

use proptest::prelude::*;

use super::*;

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
