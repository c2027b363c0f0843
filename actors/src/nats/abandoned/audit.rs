//! Which messages a consumer has given up: decisions on what the broker says about itself. Pure.
//!
//! A message is never delivered again when its consumer has passed it. The consumer has passed everything up to its
//! acknowledgement floor: each of these was acknowledged, or delivered as often as allowed. While nothing that it
//! delivered is waiting for an acknowledgement, it has also passed everything that it delivered: the floor moves only
//! with an acknowledgement, and after the last exhausted message there may be none. On a work queue what was
//! acknowledged is removed, so what is passed and still there was given up. (Measured on nats-server 2.15.)

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde::Deserialize;

use crate::abandoned::Found;

/// Most sequences that are remembered of each kind: far more than a fleet has in flight. A forgotten one is found again,
/// or costs a second letter that the stream drops.
const MAX_REMEMBERED: usize = 10_000;

/// What the broker says of a stream and the consumer of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    /// What happens to messages that were acknowledged.
    pub(super) retention: Retention,
    /// When the stream was made.
    pub(super) stream_created: SystemTime,
    /// When the consumer was made. One that was made anew delivers what is left once more.
    pub(super) consumer_created: SystemTime,
    /// First sequence in the stream.
    pub(super) first_sequence: u64,
    /// Everything up to here was acknowledged or given up.
    pub(super) ack_floor: u64,
    /// Everything up to here was delivered.
    pub(super) delivered: u64,
    /// Messages delivered and not acknowledged.
    pub(super) ack_pending: usize,
}

/// What happens to messages that were acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retention {
    /// They are removed: what is passed and still there was given up.
    Removed,
    /// They stay, for other consumers or by the stream's limits: nothing follows from their being there.
    Kept,
}

/// What the audit of one consumer has found so far.
#[derive(Debug, Default)]
pub(super) struct Audit {
    /// Of which stream and consumer.
    of: Option<(SystemTime, SystemTime)>,
    /// Every message up to here was looked at.
    looked_up_to: u64,
    /// Seen once after their consumer had passed them. An acknowledged message may be there for a moment longer than
    /// the word of its acknowledgement: only what is there at the next audit too was given up.
    suspects: BTreeSet<u64>,
    /// Given up for sure, but what was to be said about them is not confirmed yet.
    unburied: BTreeMap<u64, Found>,
    /// Dealt with before the audit came to them.
    dealt_with: BTreeSet<u64>,
}

/// What one audit has to look at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Round {
    /// Messages that were given up if they are still there.
    pub(super) suspects: Vec<(u64, Found)>,
    /// Look for messages from here …
    pub(super) from: u64,
    /// … up to here; nothing when it is less than `from`.
    pub(super) up_to: u64,
}

impl Audit {
    /// Begins a round.
    pub(super) fn begin(&mut self, view: &View) -> Round {
        let of = (view.stream_created, view.consumer_created);
        // What was told before the first round stands.
        if self.of.is_some_and(|known| known != of) {
            *self = Self::default();
        }
        self.of = Some(of);
        if view.retention == Retention::Kept {
            self.suspects.clear();
        }
        let mut suspects = self.unburied.clone();
        for sequence in &self.suspects {
            suspects.entry(*sequence).or_insert(Found::LeftBehind);
        }
        let suspects = suspects.into_iter().collect();
        if view.retention == Retention::Kept {
            let (from, up_to) = (1, 0);
            return Round {
                suspects,
                from,
                up_to,
            };
        }
        let passed = match view.ack_pending {
            0 => view.ack_floor.max(view.delivered),
            _ => view.ack_floor,
        };
        Round {
            suspects,
            from: (self.looked_up_to + 1).max(view.first_sequence),
            up_to: passed,
        }
    }

    /// There is a message in the range of the round.
    pub(super) fn saw(&mut self, sequence: u64) {
        self.looked_at(sequence);
        if !self.dealt_with.remove(&sequence) {
            self.suspects.insert(sequence);
        }
    }

    /// There is nothing else up to here.
    pub(super) fn looked_at(&mut self, sequence: u64) {
        self.looked_up_to = self.looked_up_to.max(sequence);
    }

    /// A message is dealt with, or gone.
    pub(super) fn settle(&mut self, sequence: u64) {
        self.suspects.remove(&sequence);
        self.unburied.remove(&sequence);
        self.dealt_with = self.dealt_with.split_off(&(self.looked_up_to + 1));
        if sequence > self.looked_up_to {
            self.dealt_with.insert(sequence);
        }
        if self.dealt_with.len() > MAX_REMEMBERED {
            self.dealt_with.pop_first();
        }
    }

    /// A message was given up for sure but is not dealt with yet: the next round brings it again. That is not urgent, and
    /// what the broker refuses today it may refuse for long.
    pub(super) fn keep(&mut self, sequence: u64, found: Found) {
        self.suspects.remove(&sequence);
        self.unburied.insert(sequence, found);
        if self.unburied.len() > MAX_REMEMBERED {
            self.unburied.pop_first();
        }
    }

    /// Whether the next round should come soon.
    pub(super) fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }
}

/// The part of an advisory that matters here.
#[derive(Debug, Deserialize)]
pub(super) struct Advisory {
    #[serde(rename = "type")]
    kind: String,
    /// Which message.
    stream_seq: u64,
    /// How often it was delivered.
    #[serde(default)]
    deliveries: u64,
}

impl Advisory {
    /// The message and what became of it; nothing when it is of another kind.
    pub(super) fn read(payload: &[u8]) -> Option<(u64, Found)> {
        let advisory: Self = serde_json::from_slice(payload).ok()?;
        let deliveries = advisory.deliveries;
        let found = match advisory.kind.strip_prefix("io.nats.jetstream.advisory.v1.")? {
            "max_deliver" => Found::Exhausted { deliveries },
            "terminated" => Found::Terminated,
            _ => return None,
        };
        Some((advisory.stream_seq, found))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn view(ack_floor: u64, delivered: u64, ack_pending: usize) -> View {
        View {
            retention: Retention::Removed,
            stream_created: SystemTime::UNIX_EPOCH,
            consumer_created: SystemTime::UNIX_EPOCH,
            first_sequence: 1,
            ack_floor,
            delivered,
            ack_pending,
        }
    }

    #[test]
    fn what_was_delivered_and_waits_for_its_acknowledgement_is_not_looked_at() {
        let round = |view: View| {
            let round = Audit::default().begin(&view);
            (round.from, round.up_to)
        };
        assert_eq!(round(view(3, 9, 2)), (1, 3));
        assert_eq!(round(view(3, 9, 0)), (1, 9));
        assert_eq!(round(view(0, 0, 0)), (1, 0));
        let late = View {
            first_sequence: 5,
            ..view(9, 9, 0)
        };
        assert_eq!(round(late), (5, 9));
    }

    #[test]
    fn a_message_is_given_up_when_two_rounds_find_it() {
        let mut audit = Audit::default();
        assert_eq!(audit.begin(&view(4, 4, 0)).suspects, []);
        audit.saw(2);
        audit.saw(3);
        audit.looked_at(4);
        assert!(audit.has_suspects());
        let round = audit.begin(&view(6, 6, 0));
        assert_eq!(
            (round.suspects, round.from, round.up_to),
            (vec![(2, Found::LeftBehind), (3, Found::LeftBehind)], 5, 6)
        );
        // One was acknowledged after all, the other is buried.
        audit.settle(2);
        audit.settle(3);
        audit.looked_at(6);
        assert!(!audit.has_suspects());
        assert_eq!(audit.begin(&view(6, 6, 0)).from, 7);
    }

    #[test]
    fn what_an_advisory_told_is_not_found_again() {
        let mut audit = Audit::default();
        audit.begin(&view(0, 5, 3));
        audit.settle(5);
        audit.begin(&view(5, 5, 0));
        audit.saw(4);
        audit.saw(5);
        assert_eq!(audit.begin(&view(5, 5, 0)).suspects, [(4, Found::LeftBehind)]);
    }

    #[test]
    fn a_consumer_made_anew_has_given_up_nothing() {
        let mut audit = Audit::default();
        audit.begin(&view(4, 4, 0));
        audit.saw(2);
        let anew = View {
            consumer_created: SystemTime::UNIX_EPOCH + Duration::from_secs(1),
            ..view(0, 4, 4)
        };
        let round = audit.begin(&anew);
        assert_eq!((round.suspects, round.from, round.up_to), (vec![], 1, 0));
    }

    #[test]
    fn a_stream_that_keeps_what_was_acknowledged_proves_nothing() {
        let mut audit = Audit::default();
        audit.begin(&view(4, 4, 0));
        audit.saw(2);
        let kept = View {
            retention: Retention::Kept,
            ..view(4, 4, 0)
        };
        let round = audit.begin(&kept);
        assert!(round.suspects.is_empty() && round.up_to < round.from);
        // What the broker itself said is another matter.
        let told = Found::Exhausted { deliveries: 2 };
        audit.keep(9, told);
        assert_eq!(audit.begin(&kept).suspects, [(9, told)]);
        assert!(!audit.has_suspects());
        audit.settle(9);
        assert_eq!(audit.begin(&kept).suspects, []);
    }

    #[test]
    fn advisories_of_both_kinds_are_read_and_no_others() {
        let advisory = |kind: &str| {
            let text = format!(
                r#"{{"type":"io.nats.jetstream.advisory.v1.{kind}","id":"x","stream":"S","consumer":"c","stream_seq":7,"deliveries":2}}"#
            );
            Advisory::read(text.as_bytes())
        };
        assert_eq!(
            advisory("max_deliver"),
            Some((7, Found::Exhausted { deliveries: 2 }))
        );
        assert_eq!(advisory("terminated"), Some((7, Found::Terminated)));
        assert_eq!(advisory("nak"), None);
        assert_eq!(Advisory::read(b"noise"), None);
        assert_eq!(Advisory::read(b"{}"), None);
    }

    proptest! {
        /// A work queue: each message is acknowledged or exhausted at some time, in any order.
        #[test]
        fn every_exhausted_message_is_found_and_no_acknowledged_one_is(
            fates in prop::collection::vec((any::<bool>(), 0usize..8), 1..40),
            told in prop::collection::btree_set(1u64..41, 0..10),
        ) {
            let mut audit = Audit::default();
            let mut buried = Vec::new();
            let open_at = |now: usize| fates.iter().filter(move |(_, end)| *end > now).count();
            for now in 0..12 {
                let ended = |index: usize| fates[index].1 <= now;
                let floor = (0..fates.len()).take_while(|index| ended(*index)).count() as u64;
                let there = |sequence: u64| {
                    let (exhausted, end) = fates[sequence as usize - 1];
                    // What is acknowledged is there for one moment longer.
                    exhausted || now <= end
                };
                for sequence in told.iter().copied().filter(|sequence| *sequence <= fates.len() as u64) {
                    let (exhausted, end) = fates[sequence as usize - 1];
                    if exhausted && end == now && !buried.contains(&sequence) {
                        buried.push(sequence);
                        audit.settle(sequence);
                    }
                }
                let round = audit.begin(&view(floor, fates.len() as u64, open_at(now)));
                for (sequence, _) in round.suspects {
                    if there(sequence) {
                        buried.push(sequence);
                    }
                    audit.settle(sequence);
                }
                for sequence in round.from..=round.up_to {
                    if there(sequence) {
                        audit.saw(sequence);
                    }
                }
                audit.looked_at(round.up_to);
            }
            buried.sort_unstable();
            let expected: Vec<u64> =
                (1..=fates.len() as u64).filter(|sequence| fates[*sequence as usize - 1].0).collect();
            prop_assert_eq!(buried, expected);
        }
    }
}
