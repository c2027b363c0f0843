use caf_protocol::block::Outputs;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::ids::sha256_hex;
use caf_protocol::outcome::{Outcome, StepResult};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;

use super::*;
use crate::answers::{Answers, Draft};
use crate::settings::SubjectSettings;
use crate::spill::{OutputObject, OutputStore, StoreError};

/// Takes everything, or nothing.
struct FakeStore(bool);

impl OutputStore for FakeStore {
    fn put(&self, object: OutputObject) -> BoxFuture<'static, Result<OutputRef, StoreError>> {
        let answer = match self.0 {
            true => Ok(OutputRef {
                uri: format!("nats-obj://caf-outputs/{}", object.key),
                size: object.bytes.len() as u64,
                sha256: object.sha256,
            }),
            false => Err(StoreError::Refused("full".to_owned())),
        };
        std::future::ready(answer).boxed()
    }
}

fn shrinker(takes: Option<bool>) -> Shrinker {
    let store = takes.map(|takes| Arc::new(FakeStore(takes)) as Arc<dyn OutputStore>);
    Shrinker {
        spiller: Spiller::new(store, Log::discard()),
        result_subject: SubjectSettings::default().result.into(),
        log: Log::discard(),
    }
}

fn identity() -> Identity {
    Identity {
        assignment_id: "a".into(),
        tenant_id: "t".into(),
        ..Identity::default()
    }
}

/// Numbers whose text would not survive being read, among them.
fn outputs() -> Outputs {
    Outputs::from_iter([
        ("text".to_owned(), json!("ü\n".repeat(1_000))),
        ("number".to_owned(), json!(1.0e-7)),
    ])
}

fn written(outcome: Outcome) -> Outgoing {
    let mut step = StepResult {
        cost: Default::default(),
        outcome,
        latency_ms: 1,
        retries_used: 0,
    };
    let answers = Answers::new(&SubjectSettings::default(), "w");
    match answers.draft(&identity(), &mut step, None, usize::MAX, 1_000) {
        Draft::Whole(message) => message,
        Draft::TooLarge { .. } => unreachable!("nothing is too large"),
    }
}

async fn shrink(takes: Option<bool>, message: &Outgoing, limit: usize) -> Value {
    let smaller = shrinker(takes)
        .shrink(message, limit)
        .await
        .expect("there is a way");
    assert!(wire_bytes(&smaller) <= limit.min(wire_bytes(message) - 1));
    assert_eq!(
        (&smaller.subject, &smaller.headers),
        (&message.subject, &message.headers)
    );
    serde_json::from_slice(&smaller.payload).expect("is JSON")
}

#[tokio::test]
async fn a_result_that_is_refused_refers_to_its_outputs_and_is_the_same_otherwise() {
    let message = written(Outcome::Success(outputs()));
    let mut before: Value = serde_json::from_slice(&message.payload).expect("is JSON");
    let mut after = shrink(Some(true), &message, 1_500).await;
    let text = serde_json::to_string(&outputs()).expect("is JSON");
    assert_eq!(after["output_ref"]["sha256"], sha256_hex(text.as_bytes()));
    assert_eq!(after["output_ref"]["size"], text.len());
    let key = identity().key();
    let uri = after["output_ref"]["uri"].as_str().expect("is there");
    assert!(uri.contains(key.as_str()), "{uri}");
    (before["outputs"], after["output_ref"]) = (json!({}), Value::Null);
    before["output_ref"] = Value::Null;
    assert_eq!(after, before);
}

#[tokio::test]
async fn without_a_store_it_becomes_the_error_with_size_and_hash_that_it_would_have_been() {
    let message = written(Outcome::Success(outputs()));
    for takes in [None, Some(false)] {
        let after = shrink(takes, &message, 1_500).await;
        let text = serde_json::to_vec(&outputs()).expect("is JSON");
        let answers = Answers::new(&SubjectSettings::default(), "w");
        let mut step = StepResult {
            cost: Default::default(),
            outcome: Outcome::Success(outputs()),
            latency_ms: 1,
            retries_used: 0,
        };
        let expected = answers.result(&identity(), &mut step, None, 1_500, 1_000).message;
        let expected: Value = serde_json::from_slice(&expected.payload).expect("is JSON");
        assert_eq!(after, expected);
        assert_eq!(after["error_code"], "RESOURCE_UNAVAILABLE");
        assert_eq!(after["error"]["details"]["outputs_sha256"], sha256_hex(&text));
    }
}

#[tokio::test]
async fn the_status_of_a_job_that_had_failed_stands() {
    let mut failure = Failure::new(ErrorCode::HttpError, "long ".repeat(1_000))
        .with("status_code", json!(503))
        .with("body", json!("x".repeat(5_000)));
    failure.outputs = outputs();
    let after = shrink(None, &written(Outcome::Error(failure)), 3_500).await;
    assert_eq!(after["error_code"], "HTTP_ERROR");
    let details = &after["error"]["details"];
    assert_eq!(
        (&details["status_code"], &details["body"], &after["outputs"]),
        (&json!(503), &Value::Null, &json!({}))
    );
    assert!(details["outputs_bytes"].is_number(), "{details}");
}

#[tokio::test]
async fn a_reference_that_does_not_fit_either_is_given_up() {
    let message = written(Outcome::Success(outputs()));
    let referring = shrinker(Some(true))
        .shrink(&message, 1_500)
        .await
        .expect("there is a way");
    assert_eq!(shrinker(Some(true)).shrink(&referring, usize::MAX).await, None);
}

#[tokio::test]
async fn a_dead_letter_loses_its_original_bytes_and_what_cannot_shrink_is_given_up() {
    let letter = Outgoing {
        subject: SubjectSettings::default().dlq,
        payload: json!({"reason": "unreadable", "original_payload": "x".repeat(5_000)})
            .to_string()
            .into(),
        ..written(Outcome::Success(Outputs::default()))
    };
    assert_eq!(
        shrink(None, &letter, 1_000).await,
        json!({"reason": "unreadable"})
    );
    let small = Outgoing {
        payload: json!({"reason": "unreadable"}).to_string().into(),
        ..letter
    };
    assert_eq!(shrinker(None).shrink(&small, usize::MAX).await, None);
}
