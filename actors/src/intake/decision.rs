//! Which row of the table an assignment leaves by (design, section 3). Pure: facts in, row out.
//!
//! Neighbours: intake collects the facts and carries the row out; tests drive it directly. Never looks anything up.

use caf_protocol::ack::RejectReason;
use caf_protocol::assignment::Refusal;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;

use super::{COME_BACK_DELAY_MS, HAND_BACK_DELAY_MS};
use crate::claims::Standing;
use crate::claims::record::{ClaimRecord, QuarantineRule};
use crate::pool::Admitted;
use crate::sink::Verdict;
use crate::tenants::quota::used_up;
use crate::tenants::{Exceeded, Share};

/// What is known when the row is chosen. Asked in the order of the rows.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// Row 1: nobody can be answered.
    pub unanswerable: bool,
    /// What this process, or the fleet, knows of the assignment.
    pub standing: StandingFact,
    /// Row 14: it has killed its workers, the last time alone.
    pub quarantined: bool,
    /// Row 17: too many attempts at it ended without a result.
    pub exhausted: bool,
    /// Row 18: it asks people, and questions can be kept. How its question ends, by a cancellation or by its time too, is
    /// then settled where the question is kept, and nowhere else: it may be there already.
    pub asks: bool,
    /// Whether the node shuts down.
    pub draining: bool,
    /// Whether a broker will deliver it again if it is handed back.
    pub redeliverable: bool,
    /// Why it will not run, if so.
    pub refusal: Option<&'a Refusal>,
    /// Whether the tenant may send jobs.
    pub tenant_allowed: bool,
    /// Whether somebody has asked to cancel it.
    pub cancelled: bool,
    /// Whether its deadline has passed.
    pub expired: bool,
    /// What the quotas of its tenant say.
    pub quota: QuotaFact,
    /// What its pool says.
    pub pool: PoolFact,
    /// Why a worker that has died since, or could not say so, had refused it: the acknowledgement may be out.
    pub refused_before: Option<RejectReason>,
}

/// What the quotas of a tenant say to a job that would run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum QuotaFact {
    /// It may, or they were not asked yet.
    Within,
    /// One is used up.
    Exceeded(Exceeded),
}

/// What a pool says to a job that would run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolFact {
    /// It has a place, or was not asked yet.
    Room,
    /// It has none, or should send it back and cannot.
    Full,
    /// It is to come again.
    Later {
        /// After so long, in milliseconds.
        delay_ms: u64,
    },
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
    /// Another worker works on it, by this very message; or it is not certain yet who does, and by which.
    ElsewhereSameMessage,
    /// Another worker works on it, by another message.
    ElsewhereOtherMessage,
}

impl<'a> Facts<'a> {
    /// Of a message that nobody has seen before, taken in at once by a worker that has room: what the dry run knows.
    pub fn of_new(refusal: Option<&'a Refusal>, tenant_allowed: bool) -> Self {
        Self {
            unanswerable: false,
            standing: StandingFact::Free,
            quarantined: false,
            exhausted: false,
            asks: false,
            draining: false,
            redeliverable: true,
            refusal,
            tenant_allowed,
            cancelled: false,
            expired: false,
            quota: QuotaFact::Within,
            pool: PoolFact::Room,
            refused_before: None,
        }
    }

    /// With what the fleet's claim says of the assignment, if there is one.
    #[must_use]
    pub fn with_record(self, record: Option<&ClaimRecord>, rule: &QuarantineRule) -> Self {
        let Some(record) = record else { return self };
        Self {
            quarantined: rule.is_quarantined(record),
            exhausted: self.exhausted || rule.is_exhausted(record),
            refused_before: record.refused_before(),
            ..self
        }
    }
}

impl StandingFact {
    /// What a standing means for the message at this sequence of its stream.
    pub fn of(standing: &Standing, sequence: Option<u64>) -> Self {
        match standing {
            Standing::New | Standing::Interrupted { .. } => Self::Free,
            Standing::Elsewhere { same_message: true } => Self::ElsewhereSameMessage,
            Standing::Elsewhere { same_message: false } => Self::ElsewhereOtherMessage,
            Standing::Finished(_) => Self::Finished,
            Standing::Held(held) | Standing::Uncertain(held) => match (held, sequence) {
                (Some(held), Some(sequence)) if held.sequence == sequence => Self::HeldSameMessage,
                // Who is not certain may find that this very message carries it: to acknowledge it would lose it.
                _ if matches!(standing, Standing::Uncertain(_)) => Self::ElsewhereSameMessage,
                _ => Self::HeldOtherMessage,
            },
        }
    }
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
    /// 10b: the original carries the answer.
    Copy,
    /// 10c: back to the broker until whoever has it is done.
    ComeBack,
    /// 14, 17: error result, dead letter, and a rejection if no acknowledgement was fixed before.
    GiveUp {
        /// Token for the acknowledgement and the dead letter.
        reason: RejectReason,
        /// What the result says.
        failure: Failure,
    },
    /// 12: back to the broker.
    HandBack,
    /// 2, 3: rejected, error result, dead letter. 4, 4b: the same without dead letter.
    Reject {
        /// Token for the acknowledgement.
        reason: RejectReason,
        /// What the result says.
        failure: Failure,
        /// Whether a dead letter is kept.
        dead_letter: bool,
    },
    /// 5: back to the broker for a while; only the first start is kept.
    Defer {
        /// For so long, in milliseconds.
        delay_ms: u64,
    },
    /// 9: accepted and cancelled at once.
    Cancelled,
    /// 8b: accepted and timed out at once.
    Expired,
    /// 18: accepted and set aside until people have answered.
    Park,
    /// The job runs; 6, 7, 8 or 9 follow.
    Run,
}

/// The number of the row that rejects for this reason: 2, 3, 4 or 4b.
pub fn rejection_number(reason: RejectReason) -> &'static str {
    match reason {
        RejectReason::TenantNotAllowed => "3",
        RejectReason::QueueFull => "4",
        RejectReason::QuotaExceeded => "4b",
        _ => "2",
    }
}

/// The number of the row that gives up for this reason: 14 or 17.
pub fn give_up_number(reason: RejectReason) -> &'static str {
    match reason {
        RejectReason::Quarantined => "14",
        _ => "17",
    }
}

impl Row {
    /// Its number. A job that runs leaves by another, which is not known yet.
    pub fn number(&self) -> &'static str {
        match self {
            Self::Unanswerable => "1",
            Self::Repeat => "11",
            Self::Renew => "10",
            Self::Copy => "10b",
            Self::ComeBack => "10c",
            Self::GiveUp { reason, .. } => give_up_number(*reason),
            Self::HandBack => "12",
            Self::Reject { reason, .. } => rejection_number(*reason),
            Self::Defer { .. } => "5",
            Self::Cancelled => "9",
            Self::Expired => "8b",
            Self::Park => "18",
            Self::Run => "6",
        }
    }

    /// How an assignment is known that leaves by it without being run, in the words of
    /// [`crate::events::delivery::DUPLICATE_KINDS`].
    pub fn duplicate_kind(&self, standing: &Standing) -> Option<&'static str> {
        Some(match (self, standing) {
            (Self::Renew, _) => "held",
            (Self::Copy, _) => "copy",
            (Self::ComeBack, Standing::Elsewhere { .. }) => "elsewhere",
            // It may be this worker, and nobody else.
            (Self::ComeBack, _) => "uncertain",
            (Self::Repeat, _) => "finished",
            _ => return None,
        })
    }

    /// Whether the claim must be written first: for the right to give a new answer, or to keep the first start.
    pub fn needs_claim(&self) -> bool {
        matches!(
            self,
            Self::GiveUp { .. }
                | Self::Reject { .. }
                | Self::Defer { .. }
                | Self::Cancelled
                | Self::Expired
                | Self::Park
                | Self::Run
        )
    }

    /// What becomes of a delivery by it, as spans say it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Unanswerable => "unreadable",
            Self::Repeat => "repeated",
            Self::Renew => "held_here",
            Self::Copy => "copy",
            Self::ComeBack => "held_elsewhere",
            Self::GiveUp { .. } => "given_up",
            Self::HandBack => "handed_back",
            Self::Reject { .. } => "rejected",
            Self::Defer { .. } => "deferred",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Park => "parked",
            Self::Run => "run",
        }
    }

    /// Why the acknowledgement is a rejection, if it is one.
    pub fn rejection(&self) -> Option<RejectReason> {
        match self {
            Self::GiveUp { reason, .. } | Self::Reject { reason, .. } => Some(*reason),
            _ => None,
        }
    }

    /// What the broker is told by a row that says nothing new about the assignment: 5, 10, 10b, 10c, 12, and 11 when
    /// nothing can be repeated.
    pub fn verdict_without_answer(&self) -> Verdict {
        match self {
            Self::Repeat | Self::Copy => Verdict::Ack,
            Self::Renew => Verdict::InProgress,
            Self::Defer { delay_ms } => Verdict::Nak { delay_ms: *delay_ms },
            Self::ComeBack => Verdict::Nak {
                delay_ms: COME_BACK_DELAY_MS,
            },
            _ => Verdict::Nak {
                delay_ms: HAND_BACK_DELAY_MS,
            },
        }
    }
}

/// Chooses the row, and asks quotas and pool, in this order, only for a job that would run; then it is decided again. The
/// share of a job that gets no place returns here.
pub fn decide_with_place(
    mut facts: Facts<'_>,
    ask_quotas: impl FnOnce() -> Result<Share, Exceeded>,
    ask_pool: impl FnOnce() -> Option<Admitted>,
) -> (Row, Option<Admitted>, Share) {
    match decide(&facts) {
        row @ (Row::Run | Row::Park) => {
            let share = match ask_quotas() {
                Ok(share) => share,
                Err(exceeded) => {
                    facts.quota = QuotaFact::Exceeded(exceeded);
                    return (decide(&facts), None, Share::default());
                }
            };
            if row == Row::Park {
                return (row, None, share);
            }
            let admitted = ask_pool();
            facts.pool = match &admitted {
                Some(Admitted::Taken(_)) => PoolFact::Room,
                Some(Admitted::Deferred(deferral)) => PoolFact::Later {
                    delay_ms: deferral.delay_ms,
                },
                Some(Admitted::Refused(_)) | None => PoolFact::Full,
            };
            match decide(&facts) {
                Row::Run => (Row::Run, admitted, share),
                row => (row, admitted, Share::default()),
            }
        }
        row => (row, None, Share::default()),
    }
}

/// Chooses the row: the first that fits wins.
pub fn decide(facts: &Facts<'_>) -> Row {
    if facts.unanswerable {
        return Row::Unanswerable;
    }
    match facts.standing {
        StandingFact::Finished => return Row::Repeat,
        StandingFact::HeldSameMessage => return Row::Renew,
        StandingFact::HeldOtherMessage | StandingFact::ElsewhereOtherMessage => return Row::Copy,
        StandingFact::ElsewhereSameMessage => return Row::ComeBack,
        StandingFact::Free => {}
    }
    if facts.quarantined && !facts.asks {
        return give_up(
            RejectReason::Quarantined,
            "the assignment ended the process of every worker that ran it, the last time with nothing beside it",
        );
    }
    if facts.exhausted && !facts.asks {
        return give_up(
            RejectReason::AttemptsExhausted,
            "every attempt ended without a result, and no attempt is left (nats.max_deliver)",
        );
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
    // Before anything that happened since: an acknowledgement that says so may be out.
    if let Some(reason) = facts.refused_before {
        return match reason {
            RejectReason::QuotaExceeded => no_quota_left(used_up()),
            _ => no_place(),
        };
    }
    if facts.asks && facts.quota == QuotaFact::Within {
        return Row::Park;
    }
    // Before time is looked at: who has asked for it is told that it was done.
    if facts.cancelled {
        return Row::Cancelled;
    }
    if facts.expired {
        return Row::Expired;
    }
    if let QuotaFact::Exceeded(exceeded) = &facts.quota {
        return no_quota_left(exceeded.failure());
    }
    match facts.pool {
        PoolFact::Room => Row::Run,
        PoolFact::Later { delay_ms } => Row::Defer { delay_ms },
        PoolFact::Full => no_place(),
    }
}

fn no_quota_left(failure: Failure) -> Row {
    Row::Reject {
        reason: RejectReason::QuotaExceeded,
        failure,
        dead_letter: false,
    }
}

fn no_place() -> Row {
    Row::Reject {
        reason: RejectReason::QueueFull,
        failure: Failure::new(ErrorCode::SystemOverload, "the queue of the pool is full"),
        dead_letter: false,
    }
}

fn give_up(reason: RejectReason, message: &str) -> Row {
    Row::GiveUp {
        reason,
        failure: Failure::new(ErrorCode::InternalError, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenants::Quota;

    /// Everything wrong at once: each test then mends one fact after the other.
    fn worst(refusal: &Refusal) -> Facts<'_> {
        Facts {
            unanswerable: true,
            standing: StandingFact::Finished,
            quarantined: true,
            exhausted: true,
            asks: false,
            draining: true,
            redeliverable: true,
            refusal: Some(refusal),
            tenant_allowed: false,
            cancelled: true,
            expired: true,
            quota: QuotaFact::Exceeded(no_rate_left()),
            pool: PoolFact::Full,
            refused_before: Some(RejectReason::QuotaExceeded),
        }
    }

    fn no_rate_left() -> Exceeded {
        Exceeded {
            quota: Quota::Rate,
            limit: 2.0,
            retry_after: None,
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
        facts.standing = StandingFact::ElsewhereOtherMessage;
        seen.push(decide(&facts));
        facts.standing = StandingFact::ElsewhereSameMessage;
        seen.push(decide(&facts));
        facts.standing = StandingFact::Free;
        let mut given_up = vec![decide(&facts).rejection()];
        facts.quarantined = false;
        given_up.push(decide(&facts).rejection());
        facts.exhausted = false;
        seen.push(decide(&facts));
        assert_eq!(
            seen,
            [
                Row::Unanswerable,
                Row::Repeat,
                Row::Renew,
                Row::Copy,
                Row::Copy,
                Row::ComeBack,
                Row::HandBack
            ]
        );
        assert_eq!(
            given_up,
            [
                Some(RejectReason::Quarantined),
                Some(RejectReason::AttemptsExhausted)
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
        assert_eq!(reason_of(&facts), (RejectReason::QuotaExceeded, false));
        facts.refused_before = Some(RejectReason::QueueFull);
        assert_eq!(reason_of(&facts), (RejectReason::QueueFull, false));
        facts.refused_before = None;
        assert_eq!(decide(&facts), Row::Cancelled);
        facts.cancelled = false;
        assert_eq!(decide(&facts), Row::Expired);
        facts.expired = false;
        assert_eq!(reason_of(&facts), (RejectReason::QuotaExceeded, false));
        facts.quota = QuotaFact::Within;
        assert_eq!(reason_of(&facts), (RejectReason::QueueFull, false));
        facts.pool = PoolFact::Later { delay_ms: 7 };
        assert_eq!(decide(&facts), Row::Defer { delay_ms: 7 });
        facts.pool = PoolFact::Room;
        assert_eq!(decide(&facts), Row::Run);
    }

    #[test]
    fn what_asks_people_is_set_aside_whatever_became_of_earlier_attempts_and_asks_no_pool() {
        let fresh = || Facts {
            asks: true,
            ..Facts::of_new(None, true)
        };
        let late = Facts {
            quarantined: true,
            exhausted: true,
            cancelled: true,
            expired: true,
            ..fresh()
        };
        assert_eq!(decide(&late), Row::Park);
        let (row, admitted, _) =
            decide_with_place(fresh(), || Ok(Share::default()), || panic!("no place is taken"));
        assert_eq!((row.number(), admitted.is_none()), ("18", true));
        let draining = Facts {
            draining: true,
            ..fresh()
        };
        assert_eq!(decide(&draining), Row::HandBack);
        let strange = Facts {
            tenant_allowed: false,
            ..fresh()
        };
        assert_eq!(decide(&strange).number(), "3");
        for (reason, row) in [
            (RejectReason::QuotaExceeded, "4b"),
            (RejectReason::QueueFull, "4"),
        ] {
            let refused = Facts {
                refused_before: Some(reason),
                ..fresh()
            };
            assert_eq!(decide(&refused).number(), row);
        }
    }

    #[test]
    fn quotas_are_asked_before_the_pool_and_only_for_a_job_that_would_run() {
        let exceeded = no_rate_left();
        let facts = Facts::of_new(None, true);
        let (row, admitted, _) = decide_with_place(facts, || Err(exceeded), || panic!("no place is taken"));
        assert_eq!((row.number(), admitted.is_none()), ("4b", true));
        let facts = Facts::of_new(None, false);
        let nobody = || -> Result<Share, Exceeded> { panic!("nothing is spent") };
        let (row, ..) = decide_with_place(facts, nobody, || None);
        assert_eq!(row.number(), "3");
        let facts = Facts::of_new(None, true);
        let (row, ..) = decide_with_place(facts, || Ok(Share::default()), || None);
        assert_eq!(row.number(), "4");
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
            quarantined: false,
            exhausted: false,
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

    #[test]
    fn a_copy_that_comes_before_it_is_certain_who_holds_it_is_not_counted_as_held_elsewhere() {
        let refusal = Refusal {
            reason: RejectReason::MissingField,
            failure: Failure::missing("request_id"),
        };
        let elsewhere = Standing::Elsewhere { same_message: true };
        for (standing, kind) in [(Standing::Uncertain(None), "uncertain"), (elsewhere, "elsewhere")] {
            let row = decide(&Facts {
                unanswerable: false,
                standing: StandingFact::of(&standing, Some(7)),
                ..worst(&refusal)
            });
            assert_eq!(row, Row::ComeBack);
            assert_eq!(row.duplicate_kind(&standing), Some(kind));
        }
        assert_eq!(Row::Run.duplicate_kind(&Standing::New), None);
    }
}
