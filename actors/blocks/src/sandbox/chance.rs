//! Chance that is the same each time: numbers drawn by a seed.
//!
//! Neighbours: [`super`] makes one for each end. No secret: who knows the seed knows what comes.

use std::ops::RangeInclusive;
use std::time::Duration;

use caf_protocol::ids::sha256_hex;

/// A source of numbers: splitmix64, begun at the hash of what it is drawn for.
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn of(seed: u64, parts: &[&str]) -> Self {
        // Lengths keep ("a", "bc") and ("ab", "c") apart.
        let text: String = parts
            .iter()
            .map(|part| format!("{}:{part};", part.len()))
            .collect();
        let hash = sha256_hex(format!("{seed};{text}").as_bytes());
        Self(u64::from_str_radix(&hash[..16], 16).unwrap_or(seed))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to below `end`, which is not 0.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// A time in a range of milliseconds.
    pub(super) fn in_range(&mut self, ms: RangeInclusive<u64>) -> Duration {
        let width = ms.end().saturating_sub(*ms.start()) + 1;
        Duration::from_millis(ms.start() + self.below(width))
    }

    /// True in this share of draws, from 0 to 1.
    pub(super) fn happens(&mut self, share: f64) -> bool {
        // 32 bits fit a float exactly.
        let drawn = f64::from(u32::try_from(self.next() >> 32).unwrap_or_default());
        drawn < share * 4_294_967_296.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_seed_and_parts_and_on_nothing_else() {
        let draw = |seed, parts: &[&str]| Chance::of(seed, parts).next();
        assert_eq!(draw(1, &["a", "b"]), draw(1, &["a", "b"]));
        assert_ne!(draw(1, &["a", "b"]), draw(2, &["a", "b"]));
        assert_ne!(draw(1, &["a", "bc"]), draw(1, &["ab", "c"]));
    }

    #[test]
    fn shares_of_nothing_and_all_are_exact_and_others_are_close() {
        let count = |share| (0..10_000).filter(|n| Chance::of(*n, &[]).happens(share)).count();
        assert_eq!((count(0.0), count(1.0)), (0, 10_000));
        assert!((400..600).contains(&count(0.05)), "{}", count(0.05));
    }
}
