//! Which row of the table an assignment leaves by (design, section 3). Pure: facts in, row out.
//!
//! Neighbours: intake collects the facts and carries the row out; tests drive it directly. Never looks anything up.

use caf_protocol::ack::RejectReason;
use caf_protocol::assignment::Refusal;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;

/// What is known when the row is chosen. Asked in the order of the rows.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// Row 1: nobody can be answered.
    pub unanswerable: bool,
    /// What this process knows of the assignment.
    pub standing: StandingFact,
    /// Whether the node shuts down.
    pub draining: bool,
    /// Whether a broker will deliver it again if it is handed back.
    pub redeliverable: bool,
    /// Why it will not run, if so.
    pub refusal: Option<&'a Refusal>,
    /// Whether the tenant may send jobs.
    pub tenant_allowed: bool,
    /// Whether its deadline has passed.
    pub expired: bool,
    /// Whether its pool has a place.
    pub pool_has_room: bool,
}

/// [`crate::claims::Standing`], as far as the decision looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandingFact {
    /// Not known, or interrupted: free to be taken on.
    Free,
    /// Answered before.
    Finished,
    /// This process works on it; the same message was delivered again.
    HeldSameMessage,
    /// This process works on it; this is another message with the same assignment.
    HeldOtherMessage,
}

/// The row by which a message leaves. Numbers are those of the design.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// 1: dead letter.
    Unanswerable,
    /// 11: the recorded result again.
    Repeat,
    /// 10: hold on to the new delivery.
    Renew,
    /// 10b, within this process: the original carries the answer.
    Copy,
    /// 12: back to the broker.
    HandBack,
    /// 2, 3: rejected, error result, dead letter. 4: the same without dead letter.
    Reject {
        /// Token for the acknowledgement.
        reason: RejectReason,
        /// What the result says.
        failure: Failure,
        /// Whether a dead letter is kept.
        dead_letter: bool,
    },
    /// 8b: accepted and timed out at once.
    Expired,
    /// The job runs; 6, 7, 8 or 9 follow.
    Run,
}

/// Chooses the row: the first that fits wins.
pub fn decide(facts: &Facts<'_>) -> Row {
    if facts.unanswerable {
        return Row::Unanswerable;
    }
    match facts.standing {
        StandingFact::Finished => return Row::Repeat,
        StandingFact::HeldSameMessage => return Row::Renew,
        StandingFact::HeldOtherMessage => return Row::Copy,
        StandingFact::Free => {}
    }
    if facts.draining && facts.redeliverable {
        return Row::HandBack;
    }
    if let Some(Refusal { reason, failure }) = facts.refusal {
        return Row::Reject {
            reason: *reason,
            failure: failure.clone(),
            dead_letter: true,
        };
    }
    if !facts.tenant_allowed {
        let failure = Failure::new(
            ErrorCode::PermissionDenied,
            "tenant_id: is not on the allow-list of this worker",
        )
        .with("field", "tenant_id".into());
        return Row::Reject {
            reason: RejectReason::TenantNotAllowed,
            failure,
            dead_letter: true,
        };
    }
    if facts.expired {
        return Row::Expired;
    }
    if !facts.pool_has_room {
        let failure = Failure::new(ErrorCode::SystemOverload, "the queue of the pool is full");
        return Row::Reject {
            reason: RejectReason::QueueFull,
            failure,
            dead_letter: false,
        };
    }
    Row::Run
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything wrong at once: each test then mends one fact after the other.
    fn worst(refusal: &Refusal) -> Facts<'_> {
        Facts {
            unanswerable: true,
            standing: StandingFact::Finished,
            draining: true,
            redeliverable: true,
            refusal: Some(refusal),
            tenant_allowed: false,
            expired: true,
            pool_has_room: false,
        }
    }

    #[test]
    fn rows_are_tried_in_the_order_of_the_table() {
        let refusal = Refusal {
            reason: RejectReason::MissingField,
            failure: Failure::missing("request_id"),
        };
        let mut facts = worst(&refusal);
        let mut seen = vec![decide(&facts)];
        facts.unanswerable = false;
        seen.push(decide(&facts));
        facts.standing = StandingFact::HeldSameMessage;
        seen.push(decide(&facts));
        facts.standing = StandingFact::HeldOtherMessage;
        seen.push(decide(&facts));
        facts.standing = StandingFact::Free;
        seen.push(decide(&facts));
        assert_eq!(
            seen,
            [
                Row::Unanswerable,
                Row::Repeat,
                Row::Renew,
                Row::Copy,
                Row::HandBack
            ]
        );

        facts.draining = false;
        let reason_of = |facts: &Facts<'_>| match decide(facts) {
            Row::Reject {
                reason, dead_letter, ..
            } => (reason, dead_letter),
            other => panic!("{other:?}"),
        };
        assert_eq!(reason_of(&facts), (RejectReason::MissingField, true));
        facts.refusal = None;
        assert_eq!(reason_of(&facts), (RejectReason::TenantNotAllowed, true));
        facts.tenant_allowed = true;
        assert_eq!(decide(&facts), Row::Expired);
        facts.expired = false;
        assert_eq!(reason_of(&facts), (RejectReason::QueueFull, false));
        facts.pool_has_room = true;
        assert_eq!(decide(&facts), Row::Run);
    }

    #[test]
    fn without_a_broker_that_delivers_again_nothing_is_handed_back() {
        let refusal = Refusal {
            reason: RejectReason::MissingField,
            failure: Failure::missing("request_id"),
        };
        let facts = Facts {
            unanswerable: false,
            standing: StandingFact::Free,
            redeliverable: false,
            ..worst(&refusal)
        };
        assert!(matches!(
            decide(&facts),
            Row::Reject {
                reason: RejectReason::MissingField,
                ..
            }
        ));
    }
}
