//! Which messages a consumer has given up: decisions on what the broker says about itself. Pure.
//!
//! A message is never delivered again when its consumer has passed it. The consumer has passed everything up to its
//! acknowledgement floor: each of these was acknowledged, or delivered as often as allowed. While nothing that it
//! delivered is waiting for an acknowledgement, it has also passed everything that it delivered: the floor moves only
//! with an acknowledgement, and after the last exhausted message there may be none. On a work queue what was
//! acknowledged is removed, so what is passed and still there was given up. (Measured on nats-server 2.15.)
//!
//! Advisories are hints and no more: every client of the broker may publish one. What stream and consumer contradict is
//! dropped, and where the audit can prove something, only the audit decides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde::Deserialize;

use crate::abandoned::Found;

/// Most sequences that are remembered of each kind: far more than a fleet has in flight. A forgotten one is found again,
/// or costs a second letter that the stream drops.
const MAX_REMEMBERED: usize = 10_000;
/// Most messages that are brought again and again because they could not be buried.
const MAX_UNBURIED: usize = 100;

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
    /// Last sequence that the stream gave to a message.
    pub(super) last_sequence: u64,
    /// How often the consumer delivers a message; no limit when it is not positive.
    pub(super) max_deliver: i64,
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
    /// What advisories said, as long as nothing contradicts it.
    hints: BTreeMap<u64, Found>,
    /// One that could not be buried was forgotten: everything is looked at again when the others are dealt with.
    forgot: bool,
}

/// What an advisory is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Worth {
    /// It is wrong.
    Nothing,
    /// The audit decides when it comes to the message.
    Suspicion,
    /// As [`Worth::Suspicion`] while the message is there; it is right when the message is gone.
    GoneOrSuspicion,
    /// Nothing contradicts it, and nobody else would find the message.
    Belief,
}

/// Weighs what an advisory said against what stream and consumer say of themselves.
pub(super) fn weigh(view: &View, sequence: u64, found: Found) -> Worth {
    let delivered = sequence <= view.delivered && sequence <= view.last_sequence;
    if sequence == 0 || !delivered {
        return Worth::Nothing;
    }
    match (found, view.retention) {
        (Found::Exhausted { .. }, _) if view.max_deliver <= 0 => Worth::Nothing,
        // Nobody says this but the audit.
        (Found::LeftBehind, _) => Worth::Nothing,
        (_, Retention::Kept) => Worth::Belief,
        (Found::Exhausted { .. }, Retention::Removed) => Worth::Suspicion,
        (Found::Terminated, Retention::Removed) => Worth::GoneOrSuspicion,
    }
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
    /// An advisory was heard. False when it is not kept: it cannot be right, or there are too many.
    pub(super) fn hear(&mut self, sequence: u64, found: Found) -> bool {
        let room = self.hints.len() < MAX_REMEMBERED || self.hints.contains_key(&sequence);
        let kept = room && (1..u64::MAX).contains(&sequence) && !self.unburied.contains_key(&sequence);
        if kept {
            self.hints.insert(sequence, found);
        }
        kept
    }

    /// Weighs what was heard; what has to be fetched now, at most `most`: to be buried on belief, or to see whether it
    /// is gone.
    pub(super) fn weigh_hints(&mut self, view: &View, most: usize) -> Vec<(u64, Worth)> {
        self.attend(view);
        self.hints
            .retain(|sequence, found| weigh(view, *sequence, *found) != Worth::Nothing);
        let weighed = self.hints.iter().map(|(sequence, found)| {
            let worth = weigh(view, *sequence, *found);
            (*sequence, worth)
        });
        let fetch = weighed.filter(|(_, worth)| *worth != Worth::Suspicion);
        let fetch: Vec<_> = fetch.take(most).collect();
        // What the audit has passed and does not suspect was acknowledged or is gone.
        let (looked_up_to, suspects) = (self.looked_up_to, &self.suspects);
        let open = |sequence: &u64| *sequence > looked_up_to || suspects.contains(sequence);
        self.hints
            .retain(|sequence, found| open(sequence) || weigh(view, *sequence, *found) == Worth::Belief);
        fetch
    }

    /// What an advisory said of a message.
    pub(super) fn hinted(&self, sequence: u64) -> Option<Found> {
        self.hints.get(&sequence).copied()
    }

    /// What the audit says of a message that was heard of; nothing when it was only said to be terminated and is still there.
    fn told(&self, sequence: u64) -> Option<Found> {
        self.hinted(sequence).filter(|found| *found != Found::Terminated)
    }

    /// Forgets everything when stream or consumer were made anew. What was told before the first round stands.
    fn attend(&mut self, view: &View) {
        let of = (view.stream_created, view.consumer_created);
        if self.of.is_some_and(|known| known != of) {
            *self = Self::default();
        }
        self.of = Some(of);
    }

    /// Begins a round.
    pub(super) fn begin(&mut self, view: &View) -> Round {
        self.attend(view);
        if self.forgot && self.unburied.is_empty() {
            self.forgot = false;
            self.looked_up_to = 0;
        }
        if view.retention == Retention::Kept {
            self.suspects.clear();
        }
        let mut suspects = self.unburied.clone();
        for sequence in &self.suspects {
            let found = self.told(*sequence).unwrap_or(Found::LeftBehind);
            suspects.entry(*sequence).or_insert(found);
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
        if !self.dealt_with.remove(&sequence) && !self.unburied.contains_key(&sequence) {
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
        self.hints.remove(&sequence);
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
        self.hints.remove(&sequence);
        self.unburied.insert(sequence, found);
        if self.unburied.len() > MAX_UNBURIED {
            self.unburied.pop_first();
            self.forgot = true;
        }
    }

    /// Whether the next round should come soon.
    pub(super) fn has_suspects(&self) -> bool {
        !self.suspects.is_empty() || !self.hints.is_empty()
    }

    /// How many more messages on belief may wait to be buried: on a stream that proves nothing, one that is forgotten
    /// is not found again.
    pub(super) fn room(&self) -> usize {
        MAX_UNBURIED.saturating_sub(self.unburied.len())
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
    /// Why, in the words of whoever did it.
    #[serde(default)]
    reason: String,
}

/// What the server says when a message that somebody has in hand is removed from its stream. That is no termination by a
/// client: after a crash the server says so of messages that were acknowledged and removed before, when its consumer had
/// not noted it yet; and what an operator removes is still answered by whoever works on it.
const REMOVED: &str = "Unacknowledged message was deleted";

impl Advisory {
    /// The message and what became of it; nothing when it is of another kind.
    pub(super) fn read(payload: &[u8]) -> Option<(u64, Found)> {
        let advisory: Self = serde_json::from_slice(payload).ok()?;
        let deliveries = advisory.deliveries;
        let found = match advisory.kind.strip_prefix("io.nats.jetstream.advisory.v1.")? {
            "max_deliver" => Found::Exhausted { deliveries },
            "terminated" if advisory.reason != REMOVED => Found::Terminated,
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
            last_sequence: delivered.max(20),
            max_deliver: 2,
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

    const TOLD: Found = Found::Exhausted { deliveries: 2 };

    #[test]
    fn an_advisory_that_stream_or_consumer_contradict_is_worth_nothing() {
        let work = view(3, 9, 2);
        let kept = View {
            retention: Retention::Kept,
            ..work
        };
        let unlimited = |view| View {
            max_deliver: -1,
            ..view
        };
        for wrong in [0, 10, 21, u64::MAX] {
            for found in [TOLD, Found::Terminated] {
                assert_eq!(weigh(&work, wrong, found), Worth::Nothing);
                assert_eq!(weigh(&kept, wrong, found), Worth::Nothing);
            }
        }
        assert_eq!(weigh(&work, 9, TOLD), Worth::Suspicion);
        assert_eq!(weigh(&kept, 9, TOLD), Worth::Belief);
        assert_eq!(weigh(&unlimited(work), 9, TOLD), Worth::Nothing);
        assert_eq!(weigh(&unlimited(kept), 9, TOLD), Worth::Nothing);
        assert_eq!(
            weigh(&unlimited(work), 9, Found::Terminated),
            Worth::GoneOrSuspicion
        );
        assert_eq!(weigh(&unlimited(kept), 9, Found::Terminated), Worth::Belief);
    }

    #[test]
    fn what_an_advisory_says_of_a_work_queue_is_said_only_when_two_rounds_find_it() {
        let mut audit = Audit::default();
        assert!(audit.hear(5, TOLD) && audit.hear(6, Found::Terminated) && audit.hear(7, TOLD));
        // In work: nothing is brought, and the next round comes soon.
        let in_work = view(2, 9, 3);
        assert_eq!(audit.weigh_hints(&in_work, 9), [(6, Worth::GoneOrSuspicion)]);
        assert_eq!(audit.begin(&in_work).suspects, []);
        assert!(audit.has_suspects());
        let done = view(9, 9, 0);
        assert_eq!(audit.begin(&done).suspects, []);
        audit.saw(5);
        audit.saw(6);
        audit.looked_at(9);
        audit.weigh_hints(&done, 9);
        let suspects = audit.begin(&done).suspects;
        assert_eq!(suspects, [(5, TOLD), (6, Found::LeftBehind)]);
        audit.settle(5);
        audit.settle(6);
        // The last was acknowledged: nothing is left to wait for.
        assert!(!audit.has_suspects());
    }

    #[test]
    fn hints_and_what_cannot_be_buried_are_bounded_and_what_was_forgotten_is_found_again() {
        let mut audit = Audit::default();
        assert!(!audit.hear(0, TOLD) && !audit.hear(u64::MAX, TOLD));
        let heard = (1..=20_000).filter(|sequence| audit.hear(*sequence, TOLD));
        assert_eq!(heard.count(), MAX_REMEMBERED);
        // Only what was delivered is kept.
        audit.weigh_hints(&view(0, 9, 9), 9);
        assert_eq!(audit.hints.len(), 9);

        let all = view(200, 200, 0);
        audit.begin(&all);
        for sequence in 1..=101 {
            audit.saw(sequence);
            audit.keep(sequence, TOLD);
        }
        audit.looked_at(200);
        let round = audit.begin(&all);
        assert_eq!(
            (round.suspects.len(), round.from, audit.room()),
            (MAX_UNBURIED, 201, 0)
        );
        for (sequence, _) in round.suspects {
            audit.settle(sequence);
        }
        assert_eq!(audit.begin(&all).from, 1);
        audit.saw(1);
        assert_eq!(audit.begin(&all).suspects, [(1, Found::LeftBehind)]);
    }

    #[test]
    fn advisories_of_both_kinds_are_read_and_no_others() {
        let advisory_because = |kind: &str, reason: &str| {
            let text = format!(
                r#"{{"type":"io.nats.jetstream.advisory.v1.{kind}","id":"x","stream":"S","consumer":"c","stream_seq":7,"deliveries":2,"reason":"{reason}"}}"#
            );
            Advisory::read(text.as_bytes())
        };
        let advisory = |kind| advisory_because(kind, "");
        assert_eq!(
            advisory("max_deliver"),
            Some((7, Found::Exhausted { deliveries: 2 }))
        );
        assert_eq!(advisory("terminated"), Some((7, Found::Terminated)));
        let because = |reason| advisory_because("terminated", reason);
        assert_eq!(because("enough of it"), Some((7, Found::Terminated)));
        assert_eq!(because("Unacknowledged message was deleted"), None);
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
