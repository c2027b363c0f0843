//! What an assignment becomes before it is decided upon: its block with inputs that suit it, its pool, its limits.
//!
//! Neighbours: intake prepares each assignment that it takes in; the dry run does the same and stops there. No I/O, no
//! waiting, nothing is run: inputs that are elsewhere are only looked up by their kind.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use caf_protocol::ack::RejectReason;
use caf_protocol::assignment::{Assignment, Estimate, Payload, Reading, Refusal, read};
use caf_protocol::block::{Block, Called, Inputs, Registry, ResourceClass, Task};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::headers::Headers;
use caf_protocol::outcome::Failure;
use caf_protocol::reference::{Fetchers, PayloadRef};
use caf_protocol::secret::reference::misplaced;

use crate::block_worker::retry::numbers::Asked;
use crate::block_worker::retry::{RetryPlan, RetryRules};
use crate::job::{Referenced, Work};

/// What can be run, and how.
#[derive(Clone)]
pub struct Preparation {
    /// What can be run.
    pub registry: Registry,
    /// Who gets inputs that a job refers to. Asked by block workers; here it is looked whether there is one.
    pub fetchers: Fetchers,
    /// What the node says of retries.
    pub retry: RetryRules,
    /// In place of the first two, for jobs that are only rehearsed.
    pub sandbox: Sandbox,
}

/// Blocks that only pretend.
#[derive(Clone, Default)]
pub struct Sandbox {
    /// Whether all jobs of this node are only rehearsed, whatever they ask for.
    pub whole_node: bool,
    /// What can be rehearsed.
    pub registry: Registry,
    /// Who gets their inputs, or says that nobody does.
    pub fetchers: Fetchers,
}

/// An assignment that may run: its inputs suit its block, or are still to be fetched.
pub struct Runnable {
    /// What to run.
    pub work: Work,
    /// Pool it runs in.
    pub class: ResourceClass,
    /// How urgent it is among the jobs of its tenant.
    pub priority: u8,
    /// Whether running it twice is harmless.
    pub repeatable: bool,
    /// How long it may take from the first start.
    pub time_limit: Duration,
    /// Whether, how often and when a failed attempt is followed by another.
    pub retry: RetryPlan,
    /// What it says that it will need.
    pub estimate: Estimate,
}

impl Preparation {
    /// Reads a message, and notes of what can be answered whether it is only rehearsed.
    pub fn read(&self, payload: &[u8], headers: &Headers) -> Reading {
        let mut reading = read(payload, headers);
        if let Reading::Invalid(identity, _) | Reading::Valid(Assignment { identity, .. }) = &mut reading {
            identity.sandbox |= self.sandbox.whole_node;
        }
        reading
    }

    /// Looks up the block and lets it check the inputs.
    ///
    /// # Errors
    /// Why the assignment will not run.
    pub fn prepare(&self, assignment: Assignment) -> Result<Runnable, Refusal> {
        let asked = Asked {
            max_attempts: assignment.max_attempts,
            backoff_ms: assignment.backoff_ms,
        };
        let (registry, fetchers) = if assignment.identity.sandbox {
            (&self.sandbox.registry, &self.sandbox.fetchers)
        } else {
            (&self.registry, &self.fetchers)
        };
        let Some(block) = registry.get(&assignment.job_type) else {
            let known = registry.job_types();
            let failure = Failure::of_field(
                ErrorCode::InvalidInput,
                "job.type",
                "is not supported by this worker",
            )
            .with("supported", known.into());
            return Err(Refusal {
                reason: RejectReason::UnsupportedJobType,
                failure,
            });
        };
        let chosen = choose(block, &assignment)?;
        let block = chosen.as_ref().unwrap_or(block);
        let work = match assignment.payload {
            Payload::Inline(inputs) => Work::Ready(check_inputs(block, inputs)?),
            Payload::Referenced(payload) => refer(block, payload, fetchers)?,
        };
        Ok(Runnable {
            work,
            class: assignment.resource_class.unwrap_or(block.spec().class),
            priority: assignment.priority,
            repeatable: block.spec().repeatable,
            time_limit: Duration::from_millis(assignment.deadline_ms),
            retry: self.retry.plan(&assignment.job_type, asked),
            estimate: assignment.estimate,
        })
    }
}

/// What runs in the place of the block of the job type, if anything does.
fn choose(block: &Arc<dyn Block>, assignment: &Assignment) -> Result<Option<Arc<dyn Block>>, Refusal> {
    let called = Called {
        job_type: &assignment.job_type,
        provider_id: assignment.identity.provider_id.as_deref(),
    };
    block.chosen(&called).map_err(|failure| Refusal {
        reason: RejectReason::UnknownProvider,
        failure,
    })
}

/// Inputs that are elsewhere are not looked at here: nobody waits for them yet.
fn refer(block: &Arc<dyn Block>, payload: PayloadRef, fetchers: &Fetchers) -> Result<Work, Refusal> {
    let fetcher = Arc::clone(fetchers.find(&payload.location)?);
    let block = Arc::clone(block);
    Ok(Work::Referenced(Referenced {
        block,
        payload,
        fetcher,
    }))
}

/// Blocks do not panic on input; one that does must not take the intake, and then the node, with it.
fn check_inputs(block: &Arc<dyn Block>, inputs: Inputs) -> Result<Arc<dyn Task>, Refusal> {
    let prepared = catch_unwind(AssertUnwindSafe(|| {
        misplaced(&inputs, block.secret_inputs())?;
        block.prepare(inputs)
    }));
    let panicked = || Failure::new(ErrorCode::InternalError, "the block panicked on these inputs");
    prepared
        .unwrap_or_else(|_| Err(panicked()))
        .map_err(|failure| Refusal {
            reason: RejectReason::InvalidInputs,
            failure,
        })
}
