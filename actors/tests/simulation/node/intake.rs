//! As `intake.rs` and `intake/admission.rs`.

use std::sync::Arc;
use std::time::Duration;

use caf_actors::block_worker::retry::numbers::Asked;
use caf_actors::claims::fleet::{Found, Learnt, Revision, StoreError, Taken};
use caf_actors::claims::record::{ClaimRecord, Claimant, StoredMessage};
use caf_actors::claims::{Claim, Standing};
use caf_actors::intake::HAND_BACK_DELAY_MS;
use caf_actors::intake::decision::{Facts, PoolFact, QuotaFact, Row, StandingFact, decide_with_place};
use caf_actors::job::{Holdings, PoolLoad, elapsed_ms};
use caf_actors::pool::policy::Terms;
use caf_actors::pool::{Admitted, Deferrable, Deferral, TakenPlace};
use caf_actors::publisher::AckState;
use caf_actors::sink::{Outgoing, Verdict};
use caf_actors::tenants::{Ask, Share};
use caf_protocol::ack::{OverloadStatus, RejectReason};
use caf_protocol::assignment::{Assignment, Identity, Reading, Refusal};
use caf_protocol::dead_letter::{Cause, Original};
use caf_protocol::headers::Headers;
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::answering::Written;
use super::parking::Parking;
use super::running::Job;
use super::{MAX_MESSAGE_BYTES, Message, Node};
use crate::broker::STREAM;
use crate::kernel::MS;
use crate::scenario::{Kind, TENANTS};

/// Pause before the claims are asked again after they did not answer.
const STORE_RETRY: u64 = 200 * MS;

/// A message that can be answered, with everything that is known of it.
pub(crate) struct Case {
    pub spec: usize,
    pub sequence: u64,
    pub identity: Arc<Identity>,
    prepared: Result<Assignment, Refusal>,
    standing: Standing,
    known: Option<ClaimRecord>,
    revision: Revision,
    pub first_start: Instant,
    sent_ack: Option<Message>,
    fixed_ack: Option<Message>,
    pub holdings: Holdings,
}

impl Case {
    fn deadline(&self, assignment: &Assignment, terms: Terms) -> Instant {
        self.first_start + Duration::from_millis(assignment.deadline_ms).mul_f64(terms.time_factor)
    }
}

impl Node {
    pub(super) async fn take_in(
        self: Arc<Self>,
        spec: usize,
        sequence: u64,
        received: Instant,
        mut holdings: Holdings,
    ) {
        let (identity, prepared) = match self.spec(spec).reading.clone() {
            Reading::Unanswerable(failure) => return self.bury(spec, sequence, &failure, holdings),
            Reading::Invalid(identity, refusal) => (Arc::new(identity), Err(refusal)),
            Reading::Valid(assignment) => (Arc::new(assignment.identity.clone()), Ok(assignment)),
        };
        let standing = self.claims.look(&identity.key(), received);
        if let Standing::New | Standing::Interrupted { .. } = &standing {
            let token = holdings.cancel.token().clone();
            holdings.cancel = self.cancellations.enter(&identity, token, received);
        }
        let (first_start, sent_ack) = match &standing {
            Standing::Interrupted { first_start, ack } => (*first_start, ack.clone()),
            _ => (received, None),
        };
        let mut case = Case {
            spec,
            sequence,
            identity,
            prepared,
            standing,
            known: None,
            revision: 0,
            first_start,
            sent_ack,
            fixed_ack: None,
            holdings,
        };
        let (row, admitted) = self.choose_row(&mut case);
        if !row.needs_claim() {
            return self.settle_without_answer(&row, case.standing, case.spec, case.holdings);
        }
        let (key, lease) = (case.identity.key(), case.holdings.lease.as_ref());
        case.holdings.claim = Some(self.claims.take(key, lease, case.first_start));
        self.admit(case, row, admitted).await;
    }

    fn choose_row(&self, case: &mut Case) -> (Row, Option<Admitted>) {
        let now = self.now();
        let facts = Facts {
            cancelled: case.holdings.cancel.asked().is_some(),
            unanswerable: false,
            standing: StandingFact::of(
                &case.standing,
                case.holdings.lease.as_ref().map(|lease| lease.sequence),
            ),
            quarantined: false,
            exhausted: false,
            asks: case.prepared.is_ok() && self.spec(case.spec).kind == Kind::Asks,
            draining: self.is_draining(),
            redeliverable: case.holdings.lease.is_some(),
            refusal: case.prepared.as_ref().err(),
            tenant_allowed: TENANTS.contains(&&*case.identity.tenant_id),
            expired: case
                .prepared
                .as_ref()
                .is_ok_and(|job| case.deadline(job, Terms::FULL) <= now),
            quota: QuotaFact::Within,
            pool: PoolFact::Room,
            refused_before: None,
        };
        let facts = facts.with_record(case.known.as_ref(), &self.scenario.rule);
        let ask_quotas = || {
            let ask = Ask {
                has_slot: self.places.has_slot(),
                taken_on_before: case.sent_ack.is_some(),
                ..Ask::default()
            };
            self.tenants.admit(&case.identity.tenant_id, &ask, now)
        };
        let (row, admitted, share) = decide_with_place(facts, ask_quotas, || {
            let job = case.prepared.as_ref().ok()?;
            let left = case.deadline(job, Terms::FULL).saturating_duration_since(now);
            let deferrable = case.holdings.lease.as_ref().map(|lease| Deferrable {
                left,
                sequence: lease.sequence,
                deliveries: lease.deliveries,
                deferrals: &self.deferrals,
            });
            Some(self.places.admit(now, deferrable))
        });
        case.holdings.share = share;
        (row, admitted)
    }

    async fn admit(self: Arc<Self>, mut case: Case, mut row: Row, mut admitted: Option<Admitted>) {
        let claimant = self.fleet.claimant(STREAM, case.sequence);
        let key = case.identity.key();
        loop {
            let (record, ack) = self.proposal(&case, &row, admitted.as_ref(), &claimant);
            let found = match self.fleet.take(&key, record, case.revision).await {
                Ok(Taken::Ours(claim)) => {
                    if let Some(own) = &mut case.holdings.claim {
                        own.grant(claim);
                    }
                    case.fixed_ack = ack;
                    return self.granted(case, row, admitted).await;
                }
                Ok(Taken::Exists(found)) => Ok(found),
                Err(error) => Err(error),
            };
            drop(admitted.take());
            case.holdings.share = Share::default();
            let learnt = match found {
                Ok(found) => self.learn(&claimant, found, &mut case).await,
                Err(error) => Err(error),
            };
            if learnt.is_err() {
                self.sim.sleep(STORE_RETRY).await;
            }
            if case.holdings.has_lapsed_at(self.now()) {
                if let Some(claim) = case.holdings.claim.take() {
                    claim.forget();
                }
                return;
            }
            (row, admitted) = self.choose_row(&mut case);
            if !row.needs_claim() {
                return self.leave(case, &row);
            }
        }
    }

    fn proposal(
        &self,
        case: &Case,
        row: &Row,
        admitted: Option<&Admitted>,
        claimant: &Claimant,
    ) -> (ClaimRecord, Option<Message>) {
        let mut record = case.known.clone().unwrap_or_else(|| {
            let waited_ms = elapsed_ms(case.first_start, self.now());
            ClaimRecord::first(claimant, self.epoch_ms().saturating_sub(waited_ms))
        });
        record.name(&case.identity);
        if let Row::Defer { .. } = row {
            record.defer();
            return (record, None);
        }
        if record.ack.is_some() {
            return (record, None);
        }
        let load = match admitted {
            Some(Admitted::Taken(taken)) => taken.load,
            _ => None,
        };
        let ack = self.ack(case, row.rejection(), load);
        record.fix_ack(StoredMessage::from(&*ack), row);
        (record, Some(ack))
    }

    async fn learn(&self, claimant: &Claimant, found: Found, case: &mut Case) -> Result<(), StoreError> {
        let mut known = None;
        match self.fleet.learn(&found, claimant, &case.identity.key()).await? {
            Learnt::Nothing => {}
            Learnt::HeldElsewhere { same_message } => case.standing = Standing::Elsewhere { same_message },
            Learnt::Finished(result) => case.standing = Standing::Finished(result.map(Arc::new)),
            Learnt::TakeOver(record) => {
                let passed_ms = self.epoch_ms().saturating_sub(record.first_start_ms);
                let now = self.now();
                case.first_start = now.checked_sub(Duration::from_millis(passed_ms)).unwrap_or(now);
                case.sent_ack = record.ack.clone().map(|ack| Arc::new(Outgoing::from(ack)));
                known = Some(*record);
            }
        }
        (case.known, case.revision) = (known, found.revision);
        Ok(())
    }

    async fn granted(self: Arc<Self>, case: Case, mut row: Row, admitted: Option<Admitted>) {
        if row == Row::Run && case.holdings.cancel.asked().is_some() {
            row = Row::Cancelled;
        }
        if self.is_draining() && matches!(row, Row::Run | Row::Park) {
            self.row("row 12", case.spec);
            let verdict = Verdict::Nak {
                delay_ms: HAND_BACK_DELAY_MS,
            };
            return self.settle(case.holdings, verdict).await;
        }
        match (row, admitted) {
            (Row::Run, Some(Admitted::Taken(taken))) => self.accept(case, taken),
            (Row::Park, _) => self.set_aside(case),
            (row @ Row::Defer { .. }, Some(Admitted::Deferred(deferral))) => self.defer(case, &row, deferral),
            (
                Row::Reject {
                    reason,
                    failure,
                    dead_letter,
                },
                _,
            ) => {
                let name = match reason {
                    RejectReason::QueueFull => "row 4",
                    RejectReason::QuotaExceeded => "row 4b",
                    RejectReason::TenantNotAllowed => "row 3",
                    _ => "row 2",
                };
                let ack = AckState::Unsent(self.ack(&case, Some(reason), None));
                let letter = dead_letter.then_some(reason.as_str());
                self.answer(case, name, ack, Outcome::from(failure), letter);
            }
            (Row::GiveUp { reason, failure }, _) => {
                let name = if reason == RejectReason::Quarantined {
                    "row 14"
                } else {
                    "row 17"
                };
                let ack = match &case.sent_ack {
                    Some(_) => AckState::Known,
                    None => AckState::Unsent(self.ack(&case, Some(reason), None)),
                };
                self.answer(case, name, ack, Outcome::from(failure), Some(reason.as_str()));
            }
            (Row::Expired | Row::Cancelled, _) => {
                let ack = AckState::Unsent(self.ack(&case, None, None));
                let (name, failure) = match case.holdings.cancel.seal() {
                    Some(asked) => ("row 9", asked.failure()),
                    None => ("row 8b", Failure::timeout("the deadline of the assignment")),
                };
                self.answer(case, name, ack, Outcome::from(failure), None);
            }
            (row, _) => self.settle_without_answer(&row, case.standing, case.spec, case.holdings),
        }
    }

    fn set_aside(self: Arc<Self>, mut case: Case) {
        case.holdings.permit.placed();
        case.holdings.share = std::mem::take(&mut case.holdings.share).kept();
        case.holdings.share.end();
        let waited_ms = elapsed_ms(case.first_start, self.now());
        let parking = Parking {
            spec: case.spec,
            first_start_ms: self.epoch_ms().saturating_sub(waited_ms),
            ack: self.ack(&case, None, None),
            identity: case.identity,
            holdings: case.holdings,
        };
        let node = Arc::clone(&self);
        self.spawn(async move { node.park(parking).await });
    }

    fn defer(self: Arc<Self>, mut case: Case, row: &Row, deferral: Deferral) {
        self.row("row 5", case.spec);
        deferral.keep();
        case.holdings.permit.placed();
        let (node, verdict) = (Arc::clone(&self), row.verdict_without_answer());
        self.spawn(async move { node.settle(case.holdings, verdict).await });
    }

    fn leave(self: Arc<Self>, mut case: Case, row: &Row) {
        if let Some(claim) = case.holdings.claim.take() {
            match &case.standing {
                Standing::Finished(Some(result)) => claim.record_result(result),
                _ => Claim::forget(claim),
            }
        }
        self.settle_without_answer(row, case.standing, case.spec, case.holdings);
    }

    fn settle_without_answer(
        self: Arc<Self>,
        row: &Row,
        standing: Standing,
        spec: usize,
        mut holdings: Holdings,
    ) {
        holdings.permit.placed();
        let name = match row {
            Row::Repeat => "row 11",
            Row::Renew => "row 10",
            Row::Copy => "row 10b",
            Row::ComeBack => "row 10c",
            _ => "row 12",
        };
        self.row(name, spec);
        match (row, standing) {
            (Row::Repeat, Standing::Finished(Some(result))) => {
                let written = Written::repeated(spec, vec![result]);
                return self.spawn(Arc::clone(&self).conclude(written, holdings));
            }
            (Row::Renew, Standing::Held(held) | Standing::Uncertain(held)) => {
                let now = self.now();
                if let (Some(held), Some(lease)) = (held, &holdings.lease)
                    && let Some(token) = lease.token(now)
                {
                    held.adopt(token, now);
                }
            }
            _ => {}
        }
        let (node, verdict) = (Arc::clone(&self), row.verdict_without_answer());
        self.spawn(async move { node.settle(holdings, verdict).await });
    }

    fn bury(self: Arc<Self>, spec: usize, sequence: u64, failure: &Failure, mut holdings: Holdings) {
        holdings.permit.placed();
        self.row("row 1", spec);
        let letter = self.letter(spec, sequence, None, failure, "unreadable");
        let written = Written::repeated(spec, vec![letter]);
        self.spawn(Arc::clone(&self).conclude(written, holdings));
    }

    pub(super) fn letter(
        &self,
        spec: usize,
        sequence: u64,
        identity: Option<&Identity>,
        failure: &Failure,
        reason: &'static str,
    ) -> Message {
        let now_ms = self.epoch_ms();
        let original = Original {
            subject: "assign",
            headers: &Headers::default(),
            payload: &self.spec(spec).payload,
            position: Some((STREAM, sequence)),
            received_at_ms: now_ms,
        };
        let cause = Cause {
            failure,
            reason,
            retries_used: 0,
            attempts: &[],
        };
        let letter = self
            .answers
            .dead_letter(identity, &cause, &original, MAX_MESSAGE_BYTES, now_ms);
        let letter = Arc::new(letter);
        self.sim.with(|world| world.audit.letter_written(spec, &letter));
        letter
    }

    fn accept(self: Arc<Self>, mut case: Case, taken: TakenPlace) {
        let TakenPlace { place, load, terms } = taken;
        case.holdings.permit.placed();
        case.holdings.share = std::mem::take(&mut case.holdings.share).kept();
        let message = self.ack(&case, None, load);
        let alone = case
            .known
            .as_ref()
            .is_some_and(|record| self.scenario.rule.runs_alone(record));
        let Ok(assignment) = case.prepared.clone() else {
            return;
        };
        let (confirmed, is_confirmed) = oneshot::channel();
        let (node, sending) = (Arc::clone(&self), Arc::clone(&message));
        self.spawn(async move {
            node.send_until_confirmed(&sending).await;
            let _ = confirmed.send(());
        });
        let deadline = case.deadline(&assignment, terms);
        let asked = Asked {
            max_attempts: assignment.max_attempts,
            backoff_ms: assignment.backoff_ms,
        };
        let plan = self.scenario.retry.plan(&assignment.job_type, asked);
        let job = Job {
            spec: case.spec,
            sequence: case.sequence,
            identity: case.identity,
            started: case.first_start,
            deadline,
            retry: if terms.skip_retries {
                plan.without_retries()
            } else {
                plan
            },
            priority: assignment.priority,
            repeatable: self.spec(case.spec).repeatable,
            alone,
            cancel: case.holdings.cancel.token().clone(),
            load,
            ack: AckState::Sent(caf_actors::job::SentAck {
                message,
                confirmed: is_confirmed,
            }),
            place,
            holdings: case.holdings,
        };
        self.enqueue(job);
    }

    /// The acknowledgement: the one that is fixed if there is one, byte for byte.
    fn ack(&self, case: &Case, rejection: Option<RejectReason>, load: Option<PoolLoad>) -> Message {
        let overload = match rejection {
            Some(RejectReason::QueueFull) => Some(OverloadStatus::Critical),
            _ => load.map(|load| load.status),
        };
        let fixed = case.fixed_ack.as_ref().or(case.sent_ack.as_ref());
        let ack = fixed.cloned().unwrap_or_else(|| {
            Arc::new(
                self.answers
                    .ack(&case.identity, rejection, overload, self.epoch_ms()),
            )
        });
        if let Some(claim) = &case.holdings.claim {
            claim.record_ack(&ack);
        }
        ack
    }

    /// The last word on a case that does not run.
    fn answer(
        self: Arc<Self>,
        mut case: Case,
        row: &'static str,
        ack: AckState,
        outcome: Outcome,
        dead_letter: Option<&'static str>,
    ) {
        case.holdings.permit.placed();
        let _ = case.holdings.cancel.seal();
        let step = StepResult {
            cost: Default::default(),
            outcome,
            latency_ms: 0,
            retries_used: 0,
        };
        let place = (case.spec, case.sequence);
        let written = self.write_answer(
            row,
            place,
            &case.identity,
            ack,
            &step,
            None,
            dead_letter,
            &case.holdings,
        );
        self.spawn(Arc::clone(&self).conclude(written, case.holdings));
    }
}
