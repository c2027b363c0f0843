//! Hostile messages: each leaves by the row that the contract gives it, and what can be answered is answered well.

use caf_protocol::ack::ExecAssignmentAck;
use caf_protocol::assignment::{Reading, read};
use caf_protocol::headers::Headers;
use caf_protocol::outcome::{Outcome, StepResult};
use caf_protocol::result::ExecResult;
use caf_testkit::malformed::{Expect, malformed};

use crate::writing::{check_ack, check_result};

#[test]
fn every_hostile_message_leaves_by_its_row() {
    let mut wrong = Vec::new();
    for message in malformed() {
        let reading = read(&message.bytes, &Headers::default());
        let as_expected = match message.expect {
            Expect::Row1 => matches!(reading, Reading::Unanswerable(_)),
            Expect::Row2 => matches!(reading, Reading::Invalid(..)),
            Expect::Row2ByJobType | Expect::Runs => matches!(reading, Reading::Valid(_)),
        };
        let id = match &reading {
            Reading::Unanswerable(_) => None,
            Reading::Invalid(identity, _) => Some(identity.assignment_id.clone()),
            Reading::Valid(assignment) => Some(assignment.identity.assignment_id.clone()),
        };
        if !as_expected || id != message.assignment_id {
            let shown: String = format!("{reading:?}").chars().take(300).collect();
            wrong.push(format!(
                "{}: expected {:?}, read as {shown}",
                message.name, message.expect
            ));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_answer_to_a_hostile_message_pleases_the_router() {
    for message in malformed() {
        let (identity, rejection, outcome) = match read(&message.bytes, &Headers::default()) {
            Reading::Unanswerable(_) => continue,
            Reading::Invalid(identity, refusal) => {
                (identity, Some(refusal.reason), Outcome::from(refusal.failure))
            }
            // Outputs as large as some of the inputs are not this test's concern.
            Reading::Valid(assignment) => (
                assignment.identity,
                None,
                Outcome::Success(serde_json::Map::new()),
            ),
        };
        check_ack(
            &ExecAssignmentAck::new(&identity, rejection, None, 1),
            &message.name,
        );
        let step = StepResult {
            cost: Default::default(),
            outcome,
            latency_ms: 0,
            retries_used: 0,
        };
        check_result(&ExecResult::new(&identity, step, "w-1", 1), &message.name);
    }
}

#[test]
fn a_refusal_names_the_field_and_never_quotes_the_message() {
    for message in malformed() {
        let failure = match read(&message.bytes, &Headers::default()) {
            Reading::Unanswerable(failure) => failure,
            Reading::Invalid(_, refusal) => refusal.failure,
            Reading::Valid(_) => continue,
        };
        let field = failure.details["field"].as_str().unwrap_or_default();
        assert!(
            !field.is_empty() && failure.message.starts_with(field),
            "{}: {}",
            message.name,
            failure.message
        );
        assert!(
            failure.message.len() < 400,
            "{}: {} bytes",
            message.name,
            failure.message.len()
        );
    }
}
