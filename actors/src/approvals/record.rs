//! One approval as the fleet keeps it, and what may become of it. Pure: no store, no clock.
//!
//! Neighbours: [`super::Approvals`] writes entries by compare-and-set only, so that of two who decide the first wins. An
//! entry leaves `pending` together with the exact bytes of its job's result: whoever publishes them says the same.

use std::sync::Arc;

use caf_protocol::approval::{
    Approval, ApprovalId, ApprovalRequest, Decision, MAX_DESCRIPTION_BYTES, Question, Standing,
};
use caf_protocol::assignment::Identity;
use caf_protocol::block::Outputs;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::ids::{Correlation, RunFlowStep};
use caf_protocol::model::Cost;
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use caf_protocol::trace_context::SpanContext;
use serde::{Deserialize, Serialize};

use crate::answers::Answers;
use crate::claims::record::{OutcomeRef, StoredMessage};

/// An approval, and everything that is needed to answer its assignment. Stored as JSON; fields that this version does not
/// know are dropped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What is asked.
    pub request: ApprovalRequest,
    /// How far it is.
    pub standing: Standing,
    /// Whom the answer goes to.
    pub answer_to: AnswerTo,
    /// First start of handling of the assignment by any worker, in milliseconds since the Unix epoch.
    pub first_start_ms: u64,
    /// The acknowledgement, byte for byte: no other is ever sent.
    pub ack: StoredMessage,
    /// Whether that is known to be confirmed. Until it is, it goes before the result.
    pub acknowledged: bool,
    /// The result, byte for byte, from the moment when the standing is no longer `pending`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<StoredMessage>,
    /// When the result was confirmed, and where it can be read back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<Answered>,
}

/// That the result was confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// When, in milliseconds since the Unix epoch.
    pub at: u64,
    /// Where it is.
    pub outcome: OutcomeRef,
}

/// Whom an answer goes to: an identity as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerTo {
    provider_id: Option<String>,
    job_type: Option<String>,
    original_trace_id: Option<String>,
    idempotency_key: Option<String>,
    replay: u32,
    traceparent: Option<String>,
    tracestate: Option<String>,
}

/// Why a decision does not count.
#[derive(Debug, Clone, PartialEq)]
pub enum Refused {
    /// It was decided, cancelled or over before.
    Settled,
    /// Its time is over, and nobody has noted that yet.
    Over,
    /// The name is not on the list of approvers.
    NotAnApprover,
}

/// What is due of an approval. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing before that.
    Nothing {
        /// When something is.
        until: u64,
    },
    /// Its job is to be cancelled.
    Cancel,
    /// Its time is over.
    Expire,
    /// Its result is to be published.
    Answer,
    /// It has been remembered for long enough.
    Forget,
}

impl Entry {
    /// What is due. `cancel`: somebody wants its job cancelled; `kept_ms`: how long what was answered is remembered.
    pub fn due(&self, cancel: bool, now_ms: u64, kept_ms: u64) -> Due {
        let wait = |until: u64, due: Due| {
            if now_ms < until {
                Due::Nothing { until }
            } else {
                due
            }
        };
        match (&self.standing, &self.answered) {
            (_, Some(answered)) => wait(answered.at.saturating_add(kept_ms), Due::Forget),
            (Standing::Pending, None) if cancel => Due::Cancel,
            (Standing::Pending, None) => wait(self.request.expires_at, Due::Expire),
            (_, None) => Due::Answer,
        }
    }

    /// How its job has ended, for log and metrics: what was said is not in it.
    pub fn end(&self) -> Option<StepResult> {
        let outcome = match &self.standing {
            Standing::Pending => return None,
            Standing::Decided(_) => Outcome::Success(Outputs::new()),
            Standing::Expired { .. } => Outcome::from(over()),
            Standing::Cancelled { by, .. } => Outcome::from(
                Failure::new(ErrorCode::CancelledByUser, "cancelled by request")
                    .with("requested_by", by.as_str().into()),
            ),
        };
        let at = self.standing.settled_at().unwrap_or_default();
        Some(StepResult {
            outcome,
            latency_ms: at.saturating_sub(self.first_start_ms),
            retries_used: 0,
            cost: Cost::default(),
        })
    }

    /// A new one. `until_ms`: when its time is over, in milliseconds since the Unix epoch.
    pub fn new(
        identity: &Identity,
        question: &Question,
        (first_start_ms, until_ms): (u64, u64),
        now_ms: u64,
        ack: StoredMessage,
    ) -> Self {
        let ids = &identity.correlation;
        debug_assert!(
            question.description.len() <= MAX_DESCRIPTION_BYTES,
            "bounded when read"
        );
        Self {
            request: ApprovalRequest {
                approval_id: ApprovalId::of(identity.key()),
                tenant_id: identity.tenant_id.clone(),
                assignment_id: identity.assignment_id.clone(),
                request_id: identity.request_id.clone(),
                run_id: ids.raw.run_id.clone(),
                flow_id: ids.raw.flow_id.clone(),
                step_id: ids.raw.step_id.clone(),
                trace_id: ids.trace_id.clone(),
                approval_type: question.approval_type.clone(),
                description: question.description.clone(),
                approvers: question.approvers.clone(),
                requested_at: now_ms,
                expires_at: until_ms,
            },
            standing: Standing::Pending,
            answer_to: AnswerTo::from(identity),
            first_start_ms,
            ack,
            acknowledged: false,
            result: None,
            answered: None,
        }
    }

    /// As people may see it.
    pub fn view(&self) -> Approval {
        Approval {
            request: self.request.clone(),
            standing: self.standing.clone(),
            answered_at: self.answered.as_ref().map(|answered| answered.at),
        }
    }

    /// Whom the answer goes to.
    pub fn identity(&self) -> Arc<Identity> {
        let (request, to) = (&self.request, &self.answer_to);
        let span = to.traceparent.as_deref().and_then(SpanContext::from_traceparent);
        Arc::new(Identity {
            assignment_id: request.assignment_id.clone(),
            tenant_id: request.tenant_id.clone(),
            request_id: request.request_id.clone(),
            provider_id: to.provider_id.clone(),
            job_type: to.job_type.clone(),
            correlation: Correlation {
                trace_id: request.trace_id.clone(),
                original_trace_id: to.original_trace_id.clone(),
                raw: RunFlowStep {
                    run_id: request.run_id.clone(),
                    flow_id: request.flow_id.clone(),
                    step_id: request.step_id.clone(),
                },
                remote: None,
                span: span.map(|span| SpanContext {
                    state: to.tracestate.as_deref().map(Box::from),
                    ..span
                }),
            },
            idempotency_key: to.idempotency_key.clone(),
            replay: to.replay,
            sandbox: false,
        })
    }

    /// Whether nobody has decided and its time is not over.
    pub fn is_open(&self, now_ms: u64) -> bool {
        self.standing == Standing::Pending && now_ms < self.request.expires_at
    }

    /// With this decision, if it counts.
    ///
    /// # Errors
    /// Why it does not.
    pub fn decided(&self, decision: Decision, answers: &Answers) -> Result<Self, Refused> {
        if self.standing != Standing::Pending {
            return Err(Refused::Settled);
        }
        if decision.at >= self.request.expires_at {
            return Err(Refused::Over);
        }
        if !self.request.lets(&decision.by) {
            return Err(Refused::NotAnApprover);
        }
        Ok(self.settled(Standing::Decided(decision), answers))
    }

    /// Its time is over; nothing while it is not, or when it was settled before.
    pub fn expired(&self, now_ms: u64, answers: &Answers) -> Option<Self> {
        let is_over = self.standing == Standing::Pending && now_ms >= self.request.expires_at;
        is_over.then(|| self.settled(Standing::Expired { at: now_ms }, answers))
    }

    /// Its job is cancelled; nothing when it was settled before.
    pub fn cancelled(&self, by: &str, failure: Failure, now_ms: u64, answers: &Answers) -> Option<Self> {
        let standing = Standing::Cancelled {
            at: now_ms,
            by: by.to_owned(),
        };
        let cancel = || self.with_result(standing, Outcome::from(failure), answers);
        (self.standing == Standing::Pending).then(cancel)
    }

    /// The acknowledgement was confirmed.
    #[must_use]
    pub fn acknowledged(&self) -> Self {
        Self {
            acknowledged: true,
            ..self.clone()
        }
    }

    /// The result was confirmed.
    #[must_use]
    pub fn answered(&self, at: u64, outcome: OutcomeRef) -> Self {
        Self {
            acknowledged: true,
            answered: Some(Answered { at, outcome }),
            ..self.clone()
        }
    }

    fn settled(&self, standing: Standing, answers: &Answers) -> Self {
        let outcome = match &standing {
            Standing::Decided(decision) => Outcome::Success(decision.outputs(&self.request.approval_id)),
            _ => Outcome::from(over().with("approval_id", self.request.approval_id.as_str().into())),
        };
        self.with_result(standing, outcome, answers)
    }

    fn with_result(&self, standing: Standing, outcome: Outcome, answers: &Answers) -> Self {
        let at = standing.settled_at().unwrap_or(self.request.requested_at);
        let mut step = StepResult {
            outcome,
            latency_ms: at.saturating_sub(self.first_start_ms),
            retries_used: 0,
            cost: Cost::default(),
        };
        // What is in it is bounded far below what any server takes.
        let written = answers.result(&self.identity(), &mut step, None, usize::MAX, at);
        Self {
            standing,
            result: Some(StoredMessage::from(&written.message)),
            ..self.clone()
        }
    }
}

/// Nobody has decided in time.
fn over() -> Failure {
    Failure::timeout("the time of the approval")
}

impl From<&Identity> for AnswerTo {
    fn from(identity: &Identity) -> Self {
        let span = identity.correlation.span.as_ref();
        Self {
            provider_id: identity.provider_id.clone(),
            job_type: identity.job_type.clone(),
            original_trace_id: identity.correlation.original_trace_id.clone(),
            idempotency_key: identity.idempotency_key.clone(),
            replay: identity.replay,
            traceparent: span.map(SpanContext::traceparent),
            tracestate: span.and_then(|span| span.state.as_deref().map(str::to_owned)),
        }
    }
}
