use std::sync::Mutex;

use caf_protocol::block::Outputs;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::{Failure, Outcome};
use caf_protocol::reference::{Location, PayloadRef};
use futures_util::FutureExt;
use serde_json::{Value, json};

use super::*;
use crate::settings::SubjectSettings;

/// Answers with these errors first, then takes everything.
#[derive(Default)]
struct FakeStore {
    errors: Mutex<Vec<StoreError>>,
    stored: Mutex<Vec<OutputObject>>,
}

impl OutputStore for FakeStore {
    fn put(&self, object: OutputObject) -> BoxFuture<'static, Result<OutputRef, StoreError>> {
        let answer = match self.errors.lock().expect("no panic holds it").pop() {
            Some(error) => Err(error),
            None => Ok(OutputRef {
                uri: format!("nats-obj://caf-outputs/{}", object.key),
                size: object.bytes.len() as u64,
                sha256: object.sha256.clone(),
            }),
        };
        if answer.is_ok() {
            self.stored.lock().expect("no panic holds it").push(object);
        }
        std::future::ready(answer).boxed()
    }
}

fn identity() -> Arc<Identity> {
    Arc::new(Identity {
        assignment_id: "a".into(),
        tenant_id: "t".into(),
        ..Identity::default()
    })
}

fn step(outcome: Outcome) -> StepResult {
    StepResult {
        cost: Default::default(),
        outcome,
        latency_ms: 1,
        retries_used: 0,
    }
}

fn yielding(bytes: usize) -> StepResult {
    let outputs = Outputs::from_iter([("text".to_owned(), json!("ü".repeat(bytes / 2)))]);
    step(Outcome::Success(outputs))
}

async fn write(store: Option<Arc<FakeStore>>, step: &StepResult, limit: usize) -> (WrittenResult, Value) {
    let answers = Answers::new(&SubjectSettings::default(), "w");
    let store = store.map(|store| store as Arc<dyn OutputStore>);
    let spiller = Spiller::new(store, Log::discard());
    let written = spiller
        .result(&answers, (&identity(), &mut step.clone()), None, limit, 1)
        .await;
    let body = serde_json::from_slice(&written.message.payload).expect("json");
    (written, body)
}

#[tokio::test]
async fn outputs_that_do_not_fit_are_stored_as_they_are_and_referred_to() {
    let store = Arc::new(FakeStore::default());
    let (written, body) = write(Some(Arc::clone(&store)), &yielding(5_000), 2_000).await;
    let stored = store.stored.lock().expect("no panic holds it").clone();
    let [object] = stored.as_slice() else {
        panic!("{stored:?}")
    };
    assert_eq!(
        object.bytes,
        serde_json::to_vec(&json!({"text": "ü".repeat(2_500)})).expect("json")
    );
    assert_eq!(object.sha256, sha256_hex(&object.bytes));
    assert_eq!(
        object.key,
        format!("{}/{}", identity().key().as_str(), object.sha256)
    );
    assert_eq!(body["status"], "success");
    assert_eq!(body["outputs"], json!({}));
    let uri = body["output_ref"]["uri"].as_str().expect("is there");
    assert_eq!(
        body["output_ref"],
        json!({"uri": uri, "size": object.bytes.len(), "sha256": object.sha256})
    );
    // The next job may take it as its inputs.
    let Location::Object { bucket, key } = PayloadRef::parse(uri, None).expect("parses").location else {
        panic!("{uri}")
    };
    assert_eq!((bucket.as_str(), key), ("caf-outputs", object.key.clone()));
    assert!(written.too_large_bytes.is_some());
    assert_eq!(written.output_ref.map(|kept| kept.uri), Some(uri.to_owned()));
}

#[tokio::test]
async fn what_fits_is_not_stored() {
    let store = Arc::new(FakeStore::default());
    let (written, body) = write(Some(Arc::clone(&store)), &yielding(500), 2_000).await;
    assert!(store.stored.lock().expect("no panic holds it").is_empty());
    assert_eq!((written.too_large_bytes, written.output_ref), (None, None));
    assert_eq!(
        (&body["status"], body.get("output_ref")),
        (&json!("success"), None)
    );
}

fn answering(errors: impl IntoIterator<Item = StoreError>) -> Arc<FakeStore> {
    Arc::new(FakeStore {
        errors: Mutex::new(errors.into_iter().collect()),
        ..FakeStore::default()
    })
}

#[tokio::test(start_paused = true)]
async fn a_store_is_asked_until_the_broker_is_back_and_the_store_too() {
    let silent = StoreError::Unavailable("asked to be silent".to_owned());
    let silence = std::iter::repeat_n(silent, 10);
    let store = answering(std::iter::repeat_n(StoreError::Away, 10_000).chain(silence));
    let (written, body) = write(Some(Arc::clone(&store)), &yielding(5_000), 2_000).await;
    assert!(written.output_ref.is_some());
    assert_eq!(body["status"], "success");
    assert_eq!(store.stored.lock().expect("no panic holds it").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_silent_beside_its_broker_costs_the_outputs_but_not_the_answer() {
    let silent = StoreError::Unavailable("asked to be silent".to_owned());
    let store = answering(std::iter::repeat_n(silent, 10_000));
    let (written, body) = write(Some(store), &yielding(5_000), 2_000).await;
    assert_eq!(written.output_ref, None);
    assert_eq!(body["error_code"], "RESOURCE_UNAVAILABLE");
}

#[tokio::test]
async fn without_a_store_or_when_it_refuses_the_result_is_an_error() {
    let refusing = answering([StoreError::Refused("asked to refuse".to_owned())]);
    for store in [None, Some(refusing)] {
        let (written, body) = write(store, &yielding(5_000), 2_000).await;
        assert_eq!(
            (&body["status"], &body["error_code"]),
            (&json!("error"), &json!("RESOURCE_UNAVAILABLE"))
        );
        assert_eq!((written.output_ref, body.get("output_ref")), (None, None));
    }
}

#[tokio::test]
async fn a_failure_keeps_its_status_and_code_and_its_outputs_are_referred_to() {
    let mut failure = Failure::new(ErrorCode::HttpError, "the server failed").with("status_code", json!(503));
    failure
        .outputs
        .insert("body".to_owned(), json!("x".repeat(5_000)));
    // Even when its details do not fit either.
    for details in [0, 5_000] {
        let failure = failure.clone().with("long", json!("x".repeat(details)));
        let store = Arc::new(FakeStore::default());
        let (written, body) = write(Some(store), &step(Outcome::from(failure)), 2_000).await;
        assert_eq!(
            (&body["status"], &body["error_code"], &body["error_type"]),
            (&json!("error"), &json!("HTTP_ERROR"), &json!("server_error"))
        );
        assert_eq!(body["error"]["details"]["status_code"], 503);
        assert!(body["output_ref"]["size"].as_u64() > Some(5_000), "{body}");
        assert!(written.message.payload.len() < 2_000);
    }
}
