//! A message of a stranger, headers and payload.

use caf_protocol::ack::{ExecAssignmentAck, RejectReason};
use caf_protocol::assignment::{Assignment, Identity, MAX_ATTEMPTS, MAX_DEADLINE_MS, Payload, Reading, read};
use caf_protocol::headers::{Headers, MAX_REPLAY};
use caf_protocol::ids::{MAX_ID_BYTES, MAX_TENANT_BYTES, is_usable};
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use caf_protocol::result::ExecResult;
use caf_testkit::router::{RouterIntake, Verdict};
use serde_json::json;

use super::{headers_of, parts};

/// Longest text of a refusal, in bytes.
const MAX_REFUSAL_BYTES: usize = 400;

/// It is read the same each time; whoever can be answered is answered so that the router takes it; a refusal names its
/// field; what may run is within the limits, and is read again from what it was read as.
pub fn holds(bytes: &[u8]) {
    let [head, payload] = parts(bytes);
    let headers = headers_of(head);
    let reading = read(payload, &headers);
    assert_eq!(reading, read(payload, &headers), "is read the same each time");
    match reading {
        Reading::Unanswerable(failure) => check_refusal(&failure),
        Reading::Invalid(identity, refusal) => {
            check_refusal(&refusal.failure);
            check_identity(&identity);
            check_answers(&identity, Some(refusal.reason), refusal.failure.into());
        }
        Reading::Valid(assignment) => {
            check_identity(&assignment.identity);
            check_answers(
                &assignment.identity,
                None,
                Outcome::Success(serde_json::Map::new()),
            );
            check_bounds(&assignment);
            check_again(&assignment);
        }
    }
}

fn check_refusal(failure: &Failure) {
    let field = failure.details["field"].as_str().unwrap_or_default();
    assert!(
        !field.is_empty() && failure.message.starts_with(field),
        "{}",
        failure.message
    );
    // A field may be a path of the message's own keys.
    assert!(
        failure.message.len() <= MAX_REFUSAL_BYTES,
        "{} bytes: {}",
        failure.message.len(),
        failure.message
    );
}

fn check_identity(identity: &Identity) {
    assert!(is_usable(&identity.assignment_id, MAX_ID_BYTES));
    assert!(is_usable(&identity.tenant_id, MAX_TENANT_BYTES));
    assert!(identity.replay <= MAX_REPLAY);
    let ids = [
        &identity.request_id,
        &identity.provider_id,
        &identity.job_type,
        &identity.correlation.trace_id,
        &identity.correlation.raw.run_id,
        &identity.correlation.raw.flow_id,
        &identity.correlation.raw.step_id,
    ];
    for id in ids.into_iter().flatten() {
        assert!(is_usable(id, MAX_ID_BYTES), "{id:?}");
    }
}

/// The router takes both answers, whether it reads headers or payload first.
fn check_answers(identity: &Identity, rejection: Option<RejectReason>, outcome: Outcome) {
    let ack = ExecAssignmentAck::new(identity, rejection, None, 1);
    let step = StepResult {
        cost: Default::default(),
        outcome,
        latency_ms: 0,
        retries_used: 0,
    };
    let result = ExecResult::new(identity, step, "w-1", 1);
    let pairs = |headers: &Headers| -> Vec<(String, String)> {
        let pairs = headers.iter();
        pairs
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    };
    let said = serde_json::to_vec(&ack).expect("an acknowledgement is JSON");
    let verdict = RouterIntake::new().ack(&pairs(&ack.headers()), &said);
    assert_eq!(verdict, Verdict::Accepted, "{}", String::from_utf8_lossy(&said));
    let said = serde_json::to_vec(&result).expect("a result is JSON");
    let verdict = RouterIntake::new().result(&pairs(&result.headers()), &said);
    assert_eq!(verdict, Verdict::Accepted, "{}", String::from_utf8_lossy(&said));
    for headers in [ack.headers(), result.headers()] {
        for (name, value) in headers.iter() {
            let survives = !value.is_empty() && value.trim() == value && !value.chars().any(char::is_control);
            assert!(survives, "{name}: {value:?}");
        }
    }
}

fn check_bounds(assignment: &Assignment) {
    assert!((1..=MAX_DEADLINE_MS).contains(&assignment.deadline_ms));
    assert!(
        assignment
            .max_attempts
            .is_none_or(|attempts| (1..=MAX_ATTEMPTS).contains(&attempts))
    );
    assert!(assignment.backoff_ms.is_none_or(|wait| wait <= MAX_DEADLINE_MS));
    assert_eq!(assignment.identity.job_type.as_ref(), Some(&assignment.job_type));
}

/// Written in the plainest form, it is read as the same job.
fn check_again(assignment: &Assignment) {
    let Payload::Inline(inputs) = &assignment.payload else {
        return;
    };
    let identity = &assignment.identity;
    let mut options = json!({ "deadline_ms": assignment.deadline_ms, "retry": {} });
    if let Some(attempts) = assignment.max_attempts {
        options["retry"]["max_attempts"] = attempts.into();
    }
    if let Some(wait) = assignment.backoff_ms {
        options["retry"]["backoff_ms"] = wait.into();
    }
    let mut job = json!({ "type": assignment.job_type, "payload": inputs });
    if let Some(class) = assignment.resource_class {
        job["resources"] = json!({ "class": class.as_str() });
    }
    let written = json!({
        "version": "1",
        "assignment_id": identity.assignment_id,
        "request_id": identity.request_id,
        "tenant_id": identity.tenant_id,
        // Only the envelope form goes without.
        "executor": { "provider_id": identity.provider_id.as_deref().unwrap_or("none") },
        "job": job,
        "options": options,
        "correlation": { "trace_id": identity.correlation.trace_id },
        "metadata": {},
        "run_id": identity.correlation.raw.run_id,
    });
    let bytes = serde_json::to_vec(&written).expect("is JSON");
    let Reading::Valid(again) = read(&bytes, &Headers::default()) else {
        panic!("is not read again: {written}");
    };
    assert_eq!(again.payload, assignment.payload, "{written}");
    assert_eq!(again.job_type, assignment.job_type);
    assert_eq!(again.deadline_ms, assignment.deadline_ms, "{written}");
    assert_eq!(again.max_attempts, assignment.max_attempts, "{written}");
    assert_eq!(again.backoff_ms, assignment.backoff_ms, "{written}");
    assert_eq!(again.resource_class, assignment.resource_class, "{written}");
    assert_eq!(again.identity.assignment_id, identity.assignment_id);
    assert_eq!(again.identity.tenant_id, identity.tenant_id);
    assert_eq!(again.identity.correlation.trace_id, identity.correlation.trace_id);
    let run = |identity: &Identity| identity.correlation.raw.run_id.clone();
    assert_eq!(run(&again.identity), run(identity));
}
