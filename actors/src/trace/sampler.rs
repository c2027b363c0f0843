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
    /// Share of the other traces, from 0 to 1. Which ones follows from their id, so that all who see a trace agree.
    pub ratio: f64,
}

impl Sampler {
    /// Whether a trace is recorded; `parent`: what the caller says, if it says anything.
    pub fn takes(&self, parent: Option<bool>, trace_id: TraceId) -> bool {
        if let (true, Some(sampled)) = (self.follows_parent, parent) {
            return sampled;
        }
        let [.., a, b, c, d, e, f, g, h] = trace_id.bytes();
        // 53 bits fit a float exactly, and are more than any ratio needs.
        let position = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 11;
        (position as f64) < self.ratio * (1u64 << 53) as f64
    }
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

    #[test]
    fn a_ratio_takes_its_share_of_ids_and_more_of_a_greater_one() {
        let taken = |ratio| {
            let sampler = Sampler {
                follows_parent: true,
                ratio,
            };
            let ids = (0..1_000).map(|n: u64| n * (u64::MAX / 1_000));
            ids.filter(|last| sampler.takes(None, id(*last)))
                .collect::<Vec<_>>()
        };
        let (tenth, half) = (taken(0.1), taken(0.5));
        assert_eq!((tenth.len(), half.len()), (101, 501));
        assert!(tenth.iter().all(|last| half.contains(last)));
    }
}
