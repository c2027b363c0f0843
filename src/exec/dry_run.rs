//! `caf-worker exec --dry-run`: what would happen to each assignment, by the settings and flags in force. Nothing does.
//!
//! Neighbours: the row, the preparation of a job and its retry plan are the pipeline's own; here they are only written
//! down, one JSON line per assignment. Fetches, calls, opens and writes nothing.

use std::io::Write;

use caf_actors::block_worker::retry::numbers::family;
use caf_actors::block_worker::retry::preview::Preview;
use caf_actors::clock::whole_ms;
use caf_actors::intake::decision::{Facts, QuotaFact, Row, decide};
use caf_actors::intake::preparation::{Preparation, Runnable};
use caf_actors::job::Work;
use caf_actors::pool::policy::Policy;
use caf_actors::settings::circuit_breaker::CircuitBreakerSettings;
use caf_actors::settings::policies::TotalLimit;
use caf_actors::tenants::Ask;
use caf_blocks::Blocks;
use caf_protocol::assignment::{Identity, Reading};
use caf_protocol::block::ResourceClass;
use caf_protocol::endpoint::EndpointKind;
use caf_protocol::headers::Headers;
use caf_protocol::outcome::Failure;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::assignments::{Input, read_all};
use crate::exit::Exit;
use crate::settings::in_force::InForce;
use crate::settings::{Admission, Settings};
use crate::wiring;

/// One printed line.
#[derive(Serialize)]
struct Line<'a> {
    assignment_id: Option<&'a str>,
    tenant_id: Option<&'a str>,
    job_type: Option<&'a str>,
    #[serde(flatten)]
    verdict: Verdict,
    #[serde(flatten)]
    job: Option<PlannedJob>,
    flags: Flags,
}

/// The row, as far as it can be known without a broker.
#[derive(Serialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
enum Verdict {
    Runs,
    Rejected {
        /// Token of the acknowledgement.
        reason: &'static str,
        error_code: &'static str,
        error: String,
    },
    Unanswerable {
        error_code: &'static str,
        error: String,
    },
}

/// How a job that runs would run.
#[derive(Serialize)]
struct PlannedJob {
    pool: &'static str,
    deadline_ms: u64,
    /// Whether the inputs stand in the assignment; others were not looked at.
    inputs: &'static str,
    repeatable: bool,
    retry: Preview,
    timeouts: Option<Timeouts>,
    queue: Queue,
    /// Absent with the flag off, for jobs that talk to nobody, and where the inputs were not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    circuit_breaker: Option<Breaker>,
}

/// What calls and retries of a job depend on beside its own plan.
#[derive(Serialize)]
struct Breaker {
    kind: EndpointKind,
    endpoint: String,
    #[serde(flatten)]
    rules: CircuitBreakerSettings,
}

/// Limits on operations that are in force for the job's block; absent with the flag off.
#[derive(Serialize)]
struct Timeouts {
    total: TotalLimit,
    /// Those of the block's family, if the policy has any.
    operations: Option<Value>,
}

/// The job's pool.
#[derive(Serialize)]
struct Queue {
    slots: usize,
    /// Absent where only held permits bound it.
    max_queue_size: Option<usize>,
    admission: Admission,
    /// The policy that counts, whichever is named; absent with the flag off.
    effective_policy: Option<&'static str>,
    /// Thresholds and policies; absent with the flag off.
    policy: Option<Value>,
}

/// What is in force beyond CP1.
#[derive(Clone, Copy, Serialize)]
struct Flags {
    retry: bool,
    timeouts: bool,
    queue: bool,
}

/// Says what would happen to every assignment of `input`.
///
/// # Errors
/// When the input cannot be read.
pub fn run(settings: &Settings, in_force: &InForce, input: Input, blocks: Blocks) -> anyhow::Result<Exit> {
    let dry_run = DryRun {
        preparation: wiring::preparation(settings, in_force, blocks),
        settings,
        in_force,
    };
    let (mut all_run, mut failed) = (true, None);
    let mut out = std::io::stdout().lock();
    read_all(input, |line| match line {
        Ok(payload) => {
            let (runs, text) = dry_run.line(&payload);
            all_run &= runs;
            // A reader that has gone away ends the run, quietly.
            writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
        }
        Err(error) => {
            failed = Some(error);
            false
        }
    });
    match failed {
        Some(error) => Err(error.into()),
        None if all_run => Ok(Exit::Ok),
        None => Ok(Exit::SomeFailed),
    }
}

struct DryRun<'a> {
    preparation: Preparation,
    settings: &'a Settings,
    in_force: &'a InForce,
}

impl DryRun<'_> {
    /// Whether an assignment would run, and its line.
    fn line(&self, payload: &[u8]) -> (bool, String) {
        let (identity, assignment) = match self.preparation.read(payload, &Headers::default()) {
            Reading::Unanswerable(failure) => {
                let verdict = Verdict::Unanswerable {
                    error_code: failure.code.as_str(),
                    error: failure.message,
                };
                return (false, self.written(&Identity::default(), verdict, None));
            }
            Reading::Invalid(identity, refusal) => (identity, Err(refusal)),
            Reading::Valid(assignment) => (assignment.identity.clone(), Ok(assignment)),
        };
        let prepared = assignment.and_then(|assignment| self.preparation.prepare(assignment));
        let allowed = &self.settings.tenants.allowed;
        let tenant_allowed = allowed.is_empty() || allowed.contains(&identity.tenant_id);
        let mut facts = Facts::of_new(prepared.as_ref().err(), tenant_allowed);
        if let (true, Ok(job)) = (tenant_allowed, &prepared) {
            facts.quota = self.quota(&identity, payload, job);
        }
        let verdict = match decide(&facts) {
            Row::Reject { reason, failure, .. } | Row::GiveUp { reason, failure } => {
                rejected(reason.as_str(), failure)
            }
            // The other rows need a broker, or another message.
            _ => Verdict::Runs,
        };
        let runs = matches!(verdict, Verdict::Runs);
        let job = prepared.ok().filter(|_| runs);
        let job = job.map(|job| self.planned(identity.job_type.as_deref().unwrap_or_default(), &job));
        (runs, self.written(&identity, verdict, job))
    }

    /// What the quotas of the tenant say, as if nothing else of it were under way: nothing is taken of them.
    fn quota(&self, identity: &Identity, payload: &[u8], job: &Runnable) -> QuotaFact {
        let ask = Ask {
            bytes: payload.len() as u64,
            estimate: job.estimate,
            has_slot: true,
            taken_on_before: false,
        };
        let tenants = &self.in_force.tenants;
        let answer = tenants.admit(&identity.tenant_id, &ask, Instant::now());
        answer.map_or_else(QuotaFact::Exceeded, |_| QuotaFact::Within)
    }

    fn written(&self, identity: &Identity, verdict: Verdict, job: Option<PlannedJob>) -> String {
        let known = |id: &str| (!id.is_empty()).then(|| id.to_owned());
        let (assignment_id, tenant_id) = (known(&identity.assignment_id), known(&identity.tenant_id));
        let line = Line {
            assignment_id: assignment_id.as_deref(),
            tenant_id: tenant_id.as_deref(),
            job_type: identity.job_type.as_deref(),
            verdict,
            job,
            flags: Flags {
                retry: self.in_force.retry.is_some(),
                timeouts: self.in_force.timeouts.is_some(),
                queue: self.in_force.queue.is_some(),
            },
        };
        serde_json::to_string(&line).expect("keys are strings, and nothing in it fails")
    }

    fn planned(&self, job_type: &str, job: &Runnable) -> PlannedJob {
        PlannedJob {
            pool: job.class.as_str(),
            deadline_ms: whole_ms(job.time_limit),
            inputs: match job.work {
                Work::Ready(_) => "inline",
                Work::Referenced(_) => "referenced",
            },
            repeatable: job.repeatable,
            retry: job.retry.preview(Instant::now(), job.time_limit),
            timeouts: self.timeouts(family(job_type)),
            queue: self.queue(job.class),
            circuit_breaker: self.breaker(&job.work),
        }
    }

    fn breaker(&self, work: &Work) -> Option<Breaker> {
        let rules = self.in_force.circuit_breaker.clone()?;
        let Work::Ready(task) = work else { return None };
        let endpoint = task.endpoint()?;
        Some(Breaker {
            kind: endpoint.kind(),
            endpoint: endpoint.name().to_owned(),
            rules,
        })
    }

    fn timeouts(&self, family: &str) -> Option<Timeouts> {
        let policy = self.in_force.timeouts.as_ref()?;
        Some(Timeouts {
            total: policy.retry_budget.clone(),
            operations: match family {
                "fs" => Some(json!(policy.fs_operations)),
                "http" => Some(json!(policy.http_connection)),
                // The server's own limit on statements; each connection may have another.
                "sql" => {
                    let limit_ms = self.settings.blocks.sql.memory.statement_timeout_ms;
                    let own = self.settings.blocks.sql.connections.iter();
                    let own = own.map(|(name, connection)| (name, connection.statement_timeout_ms));
                    let own: std::collections::BTreeMap<_, _> = own.collect();
                    Some(json!({"statement_timeout_ms": limit_ms, "connections": own}))
                }
                _ => None,
            },
        })
    }

    fn queue(&self, class: ResourceClass) -> Queue {
        let size = self.in_force.pool(class);
        let settings = self.in_force.queue.as_ref();
        let policy = settings.map(|policy| {
            json!({
                "rejection_policy": policy.rejection_policy,
                "overload_thresholds": policy.overload_thresholds,
                "policies": policy.policies,
            })
        });
        Queue {
            slots: size.slots,
            max_queue_size: size.queue,
            admission: self.in_force.admission,
            effective_policy: settings.map(|settings| Policy::chosen(settings).as_str()),
            policy,
        }
    }
}

fn rejected(reason: &'static str, failure: Failure) -> Verdict {
    Verdict::Rejected {
        reason,
        error_code: failure.code.as_str(),
        error: failure.message,
    }
}
