//! Intake: reads each message, decides by which row of the table it leaves, and sends it that way.
//!
//! Neighbours: a source gives it [`Delivery`]s that hold their permits already; accepted jobs go to their pool,
//! everything else straight to the publisher. Intake never runs a block, never waits, and never talks to a broker.
//! A message it drops by failing is delivered again by the broker; nothing is parked here.

mod admission;
pub mod decision;
pub mod preparation;

use std::sync::Arc;

use actix::{Actor, Context, Handler, Message};
use caf_protocol::ack::{OverloadStatus, RejectReason};
use caf_protocol::approval::Question;
use caf_protocol::assignment::{Identity, Reading, Refusal};
use caf_protocol::block::{CancellationToken, ResourceClass};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::ids::AssignmentKey;
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use caf_protocol::trace_context::RemoteTrace;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::decision::{
    Facts, PoolFact, QuotaFact, Row, StandingFact, decide_with_place, give_up_number, rejection_number,
};
use self::preparation::{Preparation, Runnable};
use crate::answers::Answers;
use crate::approvals::parking::Parking;
use crate::approvals::{Approvals, Reservation};
use crate::cancellation::{Cancellable, Cancellations};
use crate::claims::fleet::Revision;
use crate::claims::record::{ClaimRecord, QuarantineRule};
use crate::claims::{Claims, Standing};
use crate::clock;
use crate::events::{self, Event, Log};
use crate::job::{Arrival, Delivery, Holdings, Job, PoolLoad, SentAck, Work, elapsed_ms};
use crate::pool::policy::Terms;
use crate::pool::{Admitted, Deferrable, Deferral, Enqueue, PoolDoors, Refused, TakenPlace};
use crate::publisher::{AckState, Acknowledge, Answer, Conclude, Conclusion, PublisherRoutes, Settle};
use crate::sink::{Outgoing, Verdict};
use crate::status::NodeStatus;
use crate::tenants::{Ask, FirstAnswer, Share, Tenants};
use crate::trace::{Span, Tracer};

/// How long a message stays away that another worker is busy with, in milliseconds: it is asked about no more often than
/// that, and answered again at most that late.
pub const COME_BACK_DELAY_MS: u64 = 2_000;
/// Delay of a hand-back in milliseconds: an immediate one would come straight back, thousands of times a second.
pub const HAND_BACK_DELAY_MS: u64 = 100;

impl Message for Delivery {
    type Result = ();
}

/// What intake needs to know. Every dependency comes in here.
#[derive(Clone)]
pub struct IntakeParts {
    /// What can be run, and how.
    pub preparation: Preparation,
    /// Where accepted jobs go.
    pub pools: PoolDoors,
    /// Where everything else goes.
    pub publisher: PublisherRoutes,
    /// What is known of assignments.
    pub claims: Claims,
    /// State of the node.
    pub status: NodeStatus,
    /// Writes acknowledgements.
    pub answers: Answers,
    /// Who may send jobs, and how much of the worker each may use.
    pub tenants: Tenants,
    /// What becomes of assignments that end their workers.
    pub quarantine: QuarantineRule,
    /// Parent of every job's cancellation.
    pub cancel_all: CancellationToken,
    /// Who is to be cancelled, by request.
    pub cancellations: Cancellations,
    /// Opens the span of each delivery.
    pub tracer: Tracer,
    /// Where jobs are set aside that ask people; nothing where they cannot be.
    pub approvals: Option<Approvals>,
    /// Log.
    pub log: Log,
}

/// The intake actor. Cheap to clone: what waits for the fleet's word takes a copy along, which survives the actor.
#[derive(Clone)]
pub struct Intake {
    parts: IntakeParts,
}

/// A message that can be answered, with everything that is known of it.
struct Case {
    arrival: Arrival,
    identity: Arc<Identity>,
    /// Its key.
    key: AssignmentKey,
    /// What would run, or why it will not.
    prepared: Result<Runnable, Refusal>,
    standing: Standing,
    /// What the fleet knows of it, and at which revision; nothing for what the fleet was not asked about.
    known: Known,
    /// First start of handling by a worker.
    first_start: Instant,
    /// The acknowledgement that was fixed then.
    sent_ack: Option<Arc<Outgoing>>,
    /// The one that was fixed now, with the claim.
    fixed_ack: Option<Arc<Outgoing>>,
    /// Room for its question, if it asks one.
    reservation: Option<Reservation>,
    holdings: Holdings,
}

/// The claim that a new one is written on top of.
#[derive(Default)]
struct Known {
    record: Option<ClaimRecord>,
    revision: Revision,
}

impl Case {
    /// When a job must be over that is let in on these terms.
    fn deadline(&self, job: &Runnable, terms: Terms) -> Instant {
        self.first_start + job.time_limit.mul_f64(terms.time_factor)
    }
}

impl Intake {
    /// An intake with these dependencies.
    pub fn new(parts: IntakeParts) -> Self {
        Self { parts }
    }

    // ---- Decisions ----

    /// Everything that is known of a message; nothing when nobody can be answered.
    fn open(&self, arrival: Arrival, mut holdings: Holdings) -> Option<Case> {
        let (mut identity, assignment) = match self.parts.preparation.read(&arrival.payload, &arrival.headers)
        {
            Reading::Unanswerable(failure) => {
                let remote = RemoteTrace::of_headers(&arrival.headers);
                holdings.span = self.parts.tracer.execution(remote.as_ref(), arrival.received);
                self.bury(arrival, failure, holdings);
                return None;
            }
            Reading::Invalid(identity, refusal) => (identity, Err(refusal)),
            Reading::Valid(assignment) => (assignment.identity.clone(), Ok(assignment)),
        };
        let remote = identity.correlation.remote.as_ref();
        holdings.span = self.parts.tracer.execution(remote, arrival.received);
        holdings.span.identify(&identity);
        identity.correlation.span = holdings.span.context().cloned();
        let identity = Arc::new(identity);
        self.log_received(&identity, &arrival, &holdings);
        let prepared = assignment.and_then(|assignment| self.parts.preparation.prepare(assignment));
        let mut case = Case {
            first_start: arrival.received,
            arrival,
            key: identity.key(),
            identity,
            prepared,
            standing: Standing::New,
            known: Known::default(),
            sent_ack: None,
            fixed_ack: None,
            reservation: None,
            holdings,
        };
        self.look(&mut case);
        Some(case)
    }

    /// From here on, requests to cancel find it; those that came before are found by it. Copies are not to be found.
    fn enter(&self, case: &mut Case) {
        if let Standing::New | Standing::Interrupted { .. } = &case.standing {
            let token = case.holdings.cancel.token().clone();
            let cancellations = &self.parts.cancellations;
            case.holdings.cancel = cancellations.enter(&case.identity, token, case.arrival.received);
        }
    }

    /// Takes in what this process knows of the assignment.
    fn look(&self, case: &mut Case) {
        case.standing = self.standing(&case.key, &case.arrival);
        (case.first_start, case.sent_ack) = match &case.standing {
            Standing::Interrupted { first_start, ack } => (*first_start, ack.clone()),
            _ => (case.arrival.received, None),
        };
    }

    fn log_received(&self, identity: &Arc<Identity>, arrival: &Arrival, holdings: &Holdings) {
        let position = arrival.position.as_ref();
        let position = position.map(|(stream, sequence)| (&**stream, *sequence));
        let deliveries = holdings.lease.as_ref().map(|lease| lease.deliveries);
        let received = events::course::received(identity, position, deliveries);
        self.parts.log.emit(received);
    }

    /// What this process knows of the assignment. A result that was confirmed for this very message is not repeated.
    fn standing(&self, key: &AssignmentKey, arrival: &Arrival) -> Standing {
        let claims = &self.parts.claims;
        match claims.look(key, arrival.received) {
            Standing::Finished(_) if claims.is_answered(key, arrival.position.as_ref()) => {
                Standing::Finished(None)
            }
            standing => standing,
        }
    }

    /// The row, and what the pool said to a job that would run: its place, or why there is none. Its share of the quotas
    /// is among its holdings then.
    fn choose_row(&self, case: &mut Case) -> (Row, Option<Admitted>) {
        let now = Instant::now();
        let facts = Facts {
            unanswerable: false,
            standing: StandingFact::of(
                &case.standing,
                case.arrival.position.as_ref().map(|(_, sequence)| *sequence),
            ),
            quarantined: false,
            exhausted: case.holdings.given_up.is_some(),
            asks: self.question_of(case).is_some(),
            draining: self.parts.status.is_draining(),
            redeliverable: case.holdings.lease.is_some(),
            refusal: case.prepared.as_ref().err(),
            tenant_allowed: self.parts.tenants.is_allowed(&case.identity.tenant_id),
            cancelled: case.holdings.cancel.asked().is_some(),
            expired: case
                .prepared
                .as_ref()
                .is_ok_and(|job| case.deadline(job, Terms::FULL) <= now),
            quota: QuotaFact::Within,
            pool: PoolFact::Room,
            refused_before: None,
        };
        let facts = facts.with_record(case.known.record.as_ref(), &self.parts.quarantine);
        let mut reservation = None;
        let ask_quotas = || {
            let ask = self.ask_of(case);
            if let Some((approvals, _)) = self.question_of(case) {
                let reserved = approvals.reserve(&case.identity.tenant_id, ask.taken_on_before)?;
                reservation = Some(reserved);
            }
            self.parts.tenants.admit(&case.identity.tenant_id, &ask, now)
        };
        let (row, admitted, share) = decide_with_place(facts, ask_quotas, || {
            let job = case.prepared.as_ref().ok()?;
            let left = case.deadline(job, Terms::FULL).saturating_duration_since(now);
            let deferrable = case.holdings.lease.as_ref().map(|lease| Deferrable {
                left,
                sequence: lease.sequence,
                deliveries: lease.deliveries,
                deferrals: self.parts.status.deferrals(),
            });
            Some(self.parts.pools.get(job.class).places.admit(now, deferrable))
        });
        case.holdings.share = share;
        case.reservation = reservation.filter(|_| row == Row::Park);
        (row, admitted)
    }

    /// What a job asks people, and where that is kept.
    fn question_of<'a>(&'a self, case: &'a Case) -> Option<(&'a Approvals, &'a Question)> {
        let approvals = self.parts.approvals.as_ref()?;
        match &case.prepared.as_ref().ok()?.work {
            Work::Ready(task) => Some((approvals, task.question()?)),
            Work::Referenced(_) => None,
        }
    }

    /// What a job asks of the quotas of its tenant. One whose acknowledgement is fixed was taken on before.
    fn ask_of(&self, case: &Case) -> Ask {
        let job = case.prepared.as_ref().ok();
        Ask {
            bytes: case.arrival.payload.len() as u64,
            estimate: job.map(|job| job.estimate).unwrap_or_default(),
            has_slot: job.is_some_and(|job| self.parts.pools.get(job.class).places.has_slot()),
            taken_on_before: case.sent_ack.is_some(),
        }
    }

    // ---- Effects ----

    fn take_in(&self, delivery: Delivery) {
        let Delivery {
            arrival,
            permit,
            lease,
            given_up,
        } = delivery;
        let holdings = Holdings {
            claim: None,
            lease,
            permit,
            given_up,
            share: Share::default(),
            cancel: Cancellable::by_shutdown(self.parts.cancel_all.child_token()),
            span: Span::default(),
        };
        let Some(mut case) = self.open(arrival, holdings) else {
            return;
        };
        match self.policy_to_wait_for(&case) {
            None => self.proceed(case),
            Some(policy) => {
                let intake = self.clone();
                actix::spawn(async move {
                    policy.wait().await;
                    // Another message with the same assignment may have come meanwhile.
                    intake.look(&mut case);
                    intake.proceed(case);
                });
            }
        }
    }

    /// Has the policy store asked, for a job that may run; something to wait for only for the first jobs of a tenant.
    fn policy_to_wait_for(&self, case: &Case) -> Option<FirstAnswer> {
        let tenant = &case.identity.tenant_id;
        let may_run = case.prepared.is_ok()
            && StandingFact::of(&case.standing, None) == StandingFact::Free
            && !self.parts.status.is_draining()
            && self.parts.tenants.is_allowed(tenant);
        may_run.then(|| self.parts.tenants.consult(tenant, Instant::now()))?
    }

    /// Decides the row of a case and carries it out, at once or when the fleet has granted it.
    fn proceed(&self, mut case: Case) {
        self.enter(&mut case);
        let (row, admitted) = self.choose_row(&mut case);
        if !row.needs_claim() {
            return self.settle_without_answer(&row, &case.standing, &case.identity, case.holdings);
        }
        // From here on, the same assignment is seen to be held here, whatever the fleet says.
        let (key, lease) = (case.key.clone(), case.holdings.lease.as_ref());
        case.holdings.claim = Some(self.parts.claims.take(key, lease, case.first_start));
        match self.parts.claims.fleet().zip(case.arrival.position.clone()) {
            None => self.carry_out(case, row, admitted),
            Some((fleet, position)) => {
                let waiting = self.clone().admit(fleet.clone(), position, case, row, admitted);
                actix::spawn(waiting);
            }
        }
    }

    /// Rows that end with a new answer.
    fn carry_out(&self, case: Case, row: Row, admitted: Option<Admitted>) {
        match (row, admitted) {
            (Row::Run, Some(Admitted::Taken(taken))) => self.accept(case, taken),
            (Row::Park, _) => self.park(case),
            (row @ Row::Defer { .. }, Some(Admitted::Deferred(deferral))) => self.defer(case, &row, deferral),
            (
                Row::Reject {
                    reason,
                    failure,
                    dead_letter,
                },
                admitted,
            ) => {
                let refused = match admitted {
                    Some(Admitted::Refused(refused)) => Some(refused),
                    _ => None,
                };
                self.reject(case, reason, failure, dead_letter, refused);
            }
            (Row::GiveUp { reason, failure }, _) => self.give_up(case, reason, failure),
            (Row::Expired | Row::Cancelled, _) => self.end_unstarted(case),
            (row, _) => self.settle_without_answer(&row, &case.standing, &case.identity, case.holdings),
        }
    }

    /// Row 1.
    fn bury(&self, arrival: Arrival, failure: Failure, holdings: Holdings) {
        let line = events::unanswerable(&arrival.subject, arrival.payload.len(), &failure);
        self.parts
            .log
            .emit(events::delivery::left(line, Row::Unanswerable.number()));
        let arrival = Box::new(arrival);
        self.conclude(Conclusion::Bury { arrival, failure }, holdings);
    }

    /// Rows 10, 10b, 10c, 11 and 12: nothing new is said about the assignment.
    fn settle_without_answer(
        &self,
        row: &Row,
        standing: &Standing,
        identity: &Arc<Identity>,
        mut holdings: Holdings,
    ) {
        holdings.span.set("execution.outcome", row.name());
        let why = match (row, standing) {
            (Row::Repeat, Standing::Finished(Some(result))) => {
                self.tell_left(events::answered_again(identity), row, standing);
                return self.conclude(Conclusion::Repeat(Arc::clone(result)), holdings);
            }
            (Row::Repeat, _) => "answered before; nothing is repeated",
            (Row::Renew, Standing::Held(held) | Standing::Uncertain(held)) => {
                let now = Instant::now();
                if let (Some(held), Some(lease)) = (held, &holdings.lease)
                    && let Some(token) = lease.token(now)
                {
                    held.adopt(token, now);
                }
                "held here"
            }
            (Row::Copy, Standing::Elsewhere { .. }) => "copy of an assignment that another worker holds",
            (Row::Copy, _) => "copy of an assignment that is held",
            (Row::ComeBack, Standing::Elsewhere { .. }) => "held by another worker",
            (Row::ComeBack, _) => "not certain yet who holds it",
            _ => "draining",
        };
        self.tell_left(events::not_run(identity, why), row, standing);
        self.settle(holdings, row.verdict_without_answer());
    }

    fn tell_left(&self, line: Event, row: &Row, standing: &Standing) {
        let line = events::delivery::left(line, row.number());
        self.parts.log.emit(match row.duplicate_kind(standing) {
            Some(kind) => events::delivery::known(line, kind),
            None => line,
        });
    }

    /// Row 5. The claim, or where there is none the book of this process, keeps the first start.
    fn defer(&self, mut case: Case, row: &Row, deferral: Deferral) {
        case.holdings.span.set("execution.outcome", row.name());
        if let Ok(job) = &case.prepared {
            let queue = self.parts.pools.get(job.class).places.queue();
            let line = events::queue::deferred(&case.identity, job.class, queue, deferral.delay_ms);
            self.parts.log.emit(events::delivery::left(line, row.number()));
        }
        deferral.keep();
        self.settle(case.holdings, row.verdict_without_answer());
    }

    /// Rows 2, 3, 4 and 4b. `refused`: what the pool says.
    fn reject(
        &self,
        case: Case,
        reason: RejectReason,
        failure: Failure,
        dead_letter: bool,
        refused: Option<Refused>,
    ) {
        match (reason, &case.prepared) {
            (RejectReason::QueueFull, Ok(job)) => self.log_no_place(&case.identity, job.class, refused),
            (RejectReason::QuotaExceeded, _) => {
                let line = events::tenants::over_quota(&case.identity, &failure);
                self.parts.log.emit(line);
            }
            _ => self
                .parts
                .log
                .emit(events::rejected(&case.identity, reason, &failure)),
        }
        let ack = AckState::Unsent(self.ack(&case, Some(reason), None));
        let load = refused.map(|refused| PoolLoad {
            depth: refused.depth,
            status: OverloadStatus::Critical,
            degraded: None,
        });
        let dead_letter = dead_letter.then_some(reason.as_str());
        let row = rejection_number(reason);
        self.answer(case, ack, (Outcome::from(failure), load), dead_letter, row);
    }

    fn log_no_place(&self, identity: &Arc<Identity>, class: ResourceClass, refused: Option<Refused>) {
        let (depth, size) = self.parts.pools.get(class).places.queue();
        let depth = refused.map_or(depth, |refused| refused.depth);
        self.parts
            .log
            .emit(events::queue_full(identity, class.as_str(), depth, size));
        if let Some(refused) = refused {
            self.parts.pools.get(class).places.note_rejected();
            self.parts
                .log
                .emit(events::queue::refused(identity, class, refused, size));
        }
    }

    /// Rows 14 and 17. An acknowledgement that is fixed may not have been sent, so it goes again: the same bytes under the
    /// same message id.
    fn give_up(&self, case: Case, reason: RejectReason, failure: Failure) {
        let (failure, why) = match &case.holdings.given_up {
            Some(given_up) => (given_up.failure.clone(), given_up.reason),
            None => (failure, reason.as_str()),
        };
        self.parts
            .log
            .emit(events::rejected(&case.identity, reason, &failure));
        let ack = AckState::Unsent(self.ack(&case, Some(reason), None));
        let row = give_up_number(reason);
        self.answer(case, ack, (Outcome::from(failure), None), Some(why), row);
    }

    /// Rows 8b and 9.
    fn end_unstarted(&self, case: Case) {
        let ack = AckState::Unsent(self.ack(&case, None, None));
        let (row, failure) = match case.holdings.cancel.seal() {
            Some(asked) => (Row::Cancelled, asked.failure()),
            None => (Row::Expired, Failure::timeout("the deadline of the assignment")),
        };
        self.answer(case, ack, (Outcome::from(failure), None), None, row.number());
    }

    /// The last word on a case that does not run.
    fn answer(
        &self,
        case: Case,
        ack: AckState,
        (outcome, load): (Outcome, Option<PoolLoad>),
        dead_letter: Option<&'static str>,
        row: &'static str,
    ) {
        // It says so itself when somebody asks to cancel it now.
        let _ = case.holdings.cancel.seal();
        // Rows 8b and 9 have an acknowledgement like any job that runs.
        let rejected = ![Row::Expired, Row::Cancelled]
            .map(|row| row.number())
            .contains(&row);
        let latency_ms = if rejected {
            0
        } else {
            elapsed_ms(case.first_start, Instant::now())
        };
        let answer = Answer {
            ack,
            step: StepResult {
                cost: Default::default(),
                outcome,
                latency_ms,
                retries_used: 0,
            },
            dead_letter,
            rejected,
            row,
            ran: None,
            load,
            arrival: case.arrival,
            identity: case.identity,
        };
        self.conclude(Conclusion::Answer(Box::new(answer)), case.holdings);
    }

    /// Rows 6 to 9 follow. Here the job has its place, so the acknowledgement may go.
    fn accept(&self, mut case: Case, taken: TakenPlace) {
        let TakenPlace { place, load, terms } = taken;
        case.holdings.permit.placed();
        case.holdings.share = std::mem::take(&mut case.holdings.share).kept();
        let message = self.ack(&case, None, load);
        let record = case.known.record.as_ref();
        let alone = record.is_some_and(|record| self.parts.quarantine.runs_alone(record));
        let deadline = match &case.prepared {
            Ok(runnable) => case.deadline(runnable, terms),
            Err(_) => return,
        };
        let Ok(runnable) = case.prepared else { return };
        self.log_accepted(&case.identity, &runnable, deadline, terms);
        match load {
            Some(load) => self.log_queued(&case.identity, &runnable, load, terms),
            None => self.parts.log.measure(|| events::queue::let_in(runnable.class)),
        }
        let (confirmed, is_confirmed) = oneshot::channel();
        // When the publisher is being re-created, the receiver fails and the ack is sent with the result.
        let acknowledge = Acknowledge {
            message: Arc::clone(&message),
            confirmed,
            scope: case.holdings.span.scope(),
        };
        let _ = self.parts.publisher.acknowledge.tell(acknowledge);
        let job = Job {
            arrival: case.arrival,
            identity: case.identity,
            work: runnable.work,
            class: runnable.class,
            priority: runnable.priority,
            repeatable: runnable.repeatable,
            started: case.first_start,
            began: None,
            deadline,
            retry: runnable.retry,
            skip_retries: terms.skip_retries,
            skip_circuit_breaker: terms.skip_circuit_breaker,
            alone,
            load,
            ack: SentAck {
                message,
                confirmed: is_confirmed,
            },
            place,
            holdings: case.holdings,
        };
        // When the pool is being re-created, the job drops and the broker delivers it again.
        let _ = self
            .parts
            .pools
            .get(job.class)
            .enqueue
            .tell(Enqueue(Box::new(job)));
    }

    /// Row 18. It takes no place in a pool; what it holds returns when its question is stored.
    fn park(&self, mut case: Case) {
        let asked = self.question_of(&case);
        let Some((approvals, question)) = asked.map(|(approvals, asked)| (approvals.clone(), asked.clone()))
        else {
            return;
        };
        case.holdings.permit.placed();
        case.holdings.share = std::mem::take(&mut case.holdings.share).kept();
        case.holdings.share.end();
        case.holdings.span.set("execution.outcome", Row::Park.name());
        let line = events::approvals::parked(&case.identity);
        self.parts
            .log
            .emit(events::delivery::left(line, Row::Park.number()));
        let waited_ms = elapsed_ms(case.first_start, Instant::now());
        let parking = Parking {
            ack: self.ack(&case, None, None),
            question,
            first_start_ms: clock::epoch_ms().saturating_sub(waited_ms),
            reservation: case.reservation.take(),
            identity: case.identity,
            holdings: case.holdings,
        };
        actix::spawn(approvals.park(parking, self.parts.publisher.clone()));
    }

    /// How often it may be called is known for each error; most may be called again as often as this one.
    fn log_accepted(&self, identity: &Arc<Identity>, job: &Runnable, deadline: Instant, terms: Terms) {
        let left = deadline.saturating_duration_since(Instant::now());
        let usual = Failure::new(ErrorCode::ResourceUnavailable, String::new());
        let max_attempts = match terms.skip_retries {
            true => 1,
            false => job.retry.max_attempts(&usual),
        };
        let accepted = events::course::accepted(identity, job.class.as_str(), left, max_attempts);
        self.parts.log.emit(accepted);
    }

    fn log_queued(&self, identity: &Arc<Identity>, job: &Runnable, load: PoolLoad, terms: Terms) {
        let log = &self.parts.log;
        log.emit(events::queue::accepted(identity, job.class, load));
        if let Some(level) = load.degraded {
            let limit_ms = clock::whole_ms(job.time_limit.mul_f64(terms.time_factor));
            let (class, once) = (job.class, terms.skip_retries);
            log.emit(events::queue::degraded(identity, class, level, once, limit_ms));
        }
    }

    /// The acknowledgement: the one that is fixed if there is one, byte for byte.
    fn ack(&self, case: &Case, rejection: Option<RejectReason>, load: Option<PoolLoad>) -> Arc<Outgoing> {
        let overload = match rejection {
            Some(RejectReason::QueueFull) => Some(OverloadStatus::Critical),
            _ => load.map(|load| load.status),
        };
        let fixed = case.fixed_ack.as_ref().or(case.sent_ack.as_ref());
        let ack = fixed.cloned().unwrap_or_else(|| {
            Arc::new(
                self.parts
                    .answers
                    .ack(&case.identity, rejection, overload, clock::epoch_ms()),
            )
        });
        if let Some(claim) = &case.holdings.claim {
            claim.record_ack(&ack);
        }
        ack
    }

    fn conclude(&self, conclusion: Conclusion, mut holdings: Holdings) {
        holdings.permit.placed();
        // Dropped while the publisher is being re-created: the broker delivers it again.
        let _ = self
            .parts
            .publisher
            .conclude
            .tell(Conclude { conclusion, holdings });
    }

    fn settle(&self, mut holdings: Holdings, verdict: Verdict) {
        holdings.permit.placed();
        let _ = self.parts.publisher.settle.tell(Settle { holdings, verdict });
    }
}

impl Actor for Intake {
    type Context = Context<Self>;
}

impl Handler<Delivery> for Intake {
    type Result = ();

    fn handle(&mut self, delivery: Delivery, _: &mut Self::Context) {
        self.take_in(delivery);
    }
}
