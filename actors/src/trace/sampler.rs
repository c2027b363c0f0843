//! Which traces are recorded. Pure.
//!
//! Neighbours: [`super::Tracer`] asks once per delivery; the node's settings name a sampler as OpenTelemetry does
//! (`OTEL_TRACES_SAMPLER`).

use caf_protocol::trace_context::TraceId;

/// A sampler.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Whether the caller's word counts where there is one.
    pub follows_parent: bool,
    /// Share of the other traces, from 0 to 1. Which ones follows from their id, so that all workers agree on a trace.
    /// Of the whole id: one that is a UUID, as contract 1.5 allows, has bits that are the same in all.
    pub ratio: f64,
}

impl Sampler {
    /// Whether a trace is recorded; `parent`: what the caller says, if it says anything.
    pub fn takes(&self, parent: Option<bool>, trace_id: TraceId) -> bool {
        if let (true, Some(sampled)) = (self.follows_parent, parent) {
            return sampled;
        }
        // 53 bits fit a float exactly, and are more than any ratio needs.
        let position = mixed(trace_id) >> 11;
        (position as f64) < self.ratio * (1u64 << 53) as f64
    }
}

/// Hash of an id, the same in every process and release: splitmix64's finalizer over both halves, one after the other.
fn mixed(trace_id: TraceId) -> u64 {
    let id = u128::from_be_bytes(trace_id.bytes());
    let finalized = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    finalized(finalized((id >> 64) as u64) ^ id as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(last: u64) -> TraceId {
        TraceId::new((1u128 << 64 | u128::from(last)).to_be_bytes()).expect("is not zero")
    }

    #[test]
    fn the_callers_word_counts_where_the_sampler_follows_it() {
        for (follows_parent, ratio, parent, taken) in [
            (true, 1.0, None, true),
            (true, 1.0, Some(false), false),
            (true, 0.0, Some(true), true),
            (true, 0.0, None, false),
            (false, 1.0, Some(false), true),
            (false, 0.0, Some(true), false),
        ] {
            let sampler = Sampler {
                follows_parent,
                ratio,
            };
            for last in [0, 1, u64::MAX] {
                assert_eq!(sampler.takes(parent, id(last)), taken, "{sampler:?} {parent:?}");
            }
        }
    }

    /// Ids of every kind that callers make: random, UUIDs of version 4, and counted ones.
    fn kinds() -> [(&'static str, Vec<TraceId>); 3] {
        let numbers = || (1..=4_000u64).map(|n| u128::from(mixed(id(n))) << 64 | u128::from(mixed(id(!n))));
        let uuid = |n: u128| n & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
        let made = |n: u128| TraceId::new(n.to_be_bytes()).expect("is not zero");
        [
            ("random", numbers().map(made).collect()),
            ("UUIDv4", numbers().map(uuid).map(made).collect()),
            ("counted", (1..=4_000).map(made).collect()),
        ]
    }

    #[test]
    fn a_ratio_takes_its_share_of_ids_of_every_kind_and_more_of_a_greater_one() {
        for (kind, ids) in kinds() {
            let mut fewer = Vec::new();
            for ratio in [0.0, 0.05, 0.25, 0.5, 0.75, 0.9, 1.0] {
                let sampler = Sampler {
                    follows_parent: true,
                    ratio,
                };
                let taken: Vec<_> = ids.iter().filter(|id| sampler.takes(None, **id)).collect();
                let share = taken.len() as f64 / ids.len() as f64;
                // Four standard deviations of 4,000 throws at a half.
                assert!((share - ratio).abs() < 0.032, "{kind}: {share} of {ratio}");
                assert!(fewer.iter().all(|id| taken.contains(id)), "{kind} {ratio}");
                fewer = taken;
            }
            assert_eq!(fewer.len(), ids.len(), "{kind}");
        }
    }

    #[test]
    fn workers_of_all_releases_agree_on_a_trace() {
        assert_eq!(mixed(id(1)), 0x83ec_686c_1600_460a);
    }
}
