//! The order in which an answer leaves: what comes next, given what is done. Pure.
//!
//! Neighbours: the publisher carries the steps out and says how each ended; the simulation does the same with fake
//! edges. Never looks at a clock, a lease or a store itself.

/// How far an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Whether it is still to be kept on disk first. Trying counts: one that cannot be kept is published all the same.
    pub to_keep: bool,
    /// Whether it is on disk, and so to be forgotten there once it is out.
    pub kept: bool,
    /// Whether the lease has lapsed, or had before the message came again: then only the claim tells whose the assignment
    /// is.
    pub lapsed: bool,
    /// Whether the claim has told, since the last thing that failed.
    pub proven: bool,
    /// Whether an acknowledgement is still to be confirmed.
    pub to_acknowledge: bool,
    /// Messages that are confirmed.
    pub published: usize,
    /// All messages: the result, and for some rows a dead letter.
    pub messages: usize,
    /// Whether the claim is still to be told that the assignment is finished.
    pub to_record: bool,
    /// Whether the broker is still to be told.
    pub to_settle: bool,
}

impl Progress {
    /// Nothing is done yet. `is_news`: an acknowledgement and a result that nobody has said before; `keeps`: there is a
    /// disk to keep them on.
    pub fn new(is_news: bool, keeps: bool, messages: usize, has_lease: bool) -> Self {
        Self {
            to_keep: is_news && keeps,
            kept: false,
            lapsed: false,
            proven: false,
            to_acknowledge: is_news,
            published: 0,
            messages,
            to_record: is_news,
            to_settle: has_lease,
        }
    }

    /// Notes how a step ended.
    pub fn note(&mut self, step: Step, ended: Ended) {
        match (step, ended) {
            (Step::Keep, ended) => (self.to_keep, self.kept) = (false, ended == Ended::Done),
            // What a proof said may have changed while nothing was heard of the broker.
            (Step::Acknowledge | Step::Publish(_), Ended::Failed) => self.proven = false,
            (_, Ended::Failed) | (Step::Done, _) => {}
            (Step::Prove, Ended::Done) => self.proven = true,
            // It may have waited long for its confirmation.
            (Step::Acknowledge, Ended::Done) => (self.to_acknowledge, self.proven) = (false, false),
            (Step::Publish(number), Ended::Done) => self.published = number + 1,
            (Step::Record, Ended::Done) => self.to_record = false,
            (Step::Forget, Ended::Done) => self.kept = false,
            (Step::Settle, Ended::Done) => self.to_settle = false,
        }
    }
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// As it should.
    Done,
    /// Not, or nobody knows: it comes again, but for keeping.
    Failed,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Keep the messages on disk.
    Keep,
    /// Ask the claim whether the assignment is still ours.
    Prove,
    /// Confirm the acknowledgement.
    Acknowledge,
    /// Publish the message with this number.
    Publish(usize),
    /// Tell the claim where the result is.
    Record,
    /// Take the messages off the disk.
    Forget,
    /// Tell the broker that the delivery is done with.
    Settle,
    /// Let go.
    Done,
}

/// The next step. Nothing is published before it is kept, nothing is published that may be somebody else's, and the
/// broker is told last: a worker that dies in between leaves something behind that finishes the rest.
pub fn next_step(progress: &Progress) -> Step {
    let unpublished = progress.published < progress.messages;
    match progress {
        Progress { to_keep: true, .. } => Step::Keep,
        Progress {
            lapsed: true,
            proven: false,
            ..
        } if unpublished || progress.to_acknowledge => Step::Prove,
        Progress {
            to_acknowledge: true, ..
        } => Step::Acknowledge,
        _ if unpublished => Step::Publish(progress.published),
        Progress { to_record: true, .. } => Step::Record,
        Progress { kept: true, .. } => Step::Forget,
        // Whoever has the delivery now would be hit by a verdict; it comes back and is answered by row 11.
        Progress {
            to_settle: true,
            lapsed: false,
            ..
        } => Step::Settle,
        _ => Step::Done,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FRESH: Progress = Progress {
        to_keep: true,
        kept: false,
        lapsed: false,
        proven: false,
        to_acknowledge: true,
        published: 0,
        messages: 2,
        to_record: true,
        to_settle: true,
    };

    /// Carries a step out on paper; false when there is none left.
    fn carry_out(progress: &mut Progress, step: Step) -> bool {
        progress.note(step, Ended::Done);
        step != Step::Done
    }

    fn steps(mut progress: Progress) -> Vec<Step> {
        let mut steps = Vec::new();
        loop {
            let step = next_step(&progress);
            steps.push(step);
            if !carry_out(&mut progress, step) {
                return steps;
            }
        }
    }

    #[test]
    fn an_answer_is_kept_then_published_then_recorded_and_the_broker_is_told_last() {
        assert_eq!(
            steps(FRESH),
            [
                Step::Keep,
                Step::Acknowledge,
                Step::Publish(0),
                Step::Publish(1),
                Step::Record,
                Step::Forget,
                Step::Settle,
                Step::Done
            ]
        );
    }

    #[test]
    fn once_the_lease_has_lapsed_the_claim_is_asked_before_anything_is_said_and_the_broker_is_told_nothing() {
        let lapsed = Progress {
            lapsed: true,
            ..FRESH
        };
        let taken = steps(lapsed);
        assert_eq!(taken[..3], [Step::Keep, Step::Prove, Step::Acknowledge]);
        assert!(!taken.contains(&Step::Settle));
    }

    proptest! {
        #[test]
        fn every_answer_ends_and_nothing_is_published_unkept_or_unproven(
            lapse_at in 0usize..10, messages in 0usize..3, has_ack: bool, keeps: bool,
        ) {
            let mut progress = Progress { to_keep: keeps, to_acknowledge: has_ack, messages, ..FRESH };
            for step_number in 0..20 {
                progress.lapsed |= step_number == lapse_at;
                let step = next_step(&progress);
                if let Step::Publish(_) = step {
                    prop_assert!(!progress.to_keep && (!progress.lapsed || progress.proven));
                }
                if step == Step::Settle {
                    prop_assert!(!progress.lapsed && !progress.to_record && progress.published == messages);
                }
                if !carry_out(&mut progress, step) {
                    prop_assert_eq!(progress.published, messages);
                    return Ok(());
                }
            }
            prop_assert!(false, "does not end");
        }
    }
}
