use std::time::Duration;

use caf_protocol::block::{BlockFuture, BlockSpec, CancellationToken, ResourceClass};
use caf_protocol::ids::Correlation;
use caf_protocol::reference::{Fetch, FetchFuture, Location, PayloadRef, Scheme};
use tokio::time::Instant;

use super::*;

/// Takes inputs with `x` only.
struct Picky(BlockSpec);

struct Nothing;

impl Task for Nothing {
    fn mode(&self) -> RunMode {
        RunMode::Thread
    }

    fn run(self: Arc<Self>, _: BlockContext) -> BlockFuture {
        async { Ok(Inputs::new()) }.boxed_local()
    }
}

impl Block for Picky {
    fn spec(&self) -> &BlockSpec {
        &self.0
    }

    fn prepare(&self, inputs: Inputs) -> Result<Arc<dyn Task>, Failure> {
        assert!(!inputs.contains_key("panic"), "asked to panic");
        if inputs.contains_key("x") {
            Ok(Arc::new(Nothing))
        } else {
            Err(Failure::missing("x"))
        }
    }
}

fn picky() -> Arc<dyn Block> {
    Arc::new(Picky(BlockSpec {
        job_types: &["picky"],
        class: ResourceClass::Cpu,
        repeatable: true,
        inputs: true.into(),
        outputs: true.into(),
    }))
}

type Answer = fn() -> Result<Bytes, Failure>;

/// Has one answer, whatever it is asked for.
struct Canned(RunMode, Answer);

impl Fetch for Canned {
    fn scheme(&self) -> Scheme {
        Scheme::File
    }

    fn mode(&self) -> RunMode {
        self.0
    }

    fn fetch(self: Arc<Self>, _: Location, _: u64, _: BlockContext) -> FetchFuture {
        async move { (self.1)() }.boxed_local()
    }
}

async fn prepared(mode: RunMode, sha256: Option<&str>, answer: Answer) -> Result<Option<u64>, Failure> {
    let referenced = Referenced {
        block: picky(),
        payload: PayloadRef::parse("file:data/x", sha256).expect("parses"),
        fetcher: Arc::new(Canned(mode, answer)),
    };
    let context = BlockContext {
        tenant_id: "acme".to_owned(),
        assignment_id: "a".to_owned(),
        correlation: Correlation::default(),
        deadline: Instant::now() + Duration::from_secs(30),
        attempt: 0,
        model_call: Default::default(),
        cancel: CancellationToken::new(),
    };
    prepare(&referenced, context, 40, &Threads::default())
        .await
        .map(|prepared| prepared.timeout_ms)
}

#[tokio::test]
async fn bytes_become_a_task_by_the_rules_of_a_message() {
    for mode in [RunMode::Async, RunMode::Thread] {
        let good = prepared(mode, None, || {
            Ok(Bytes::from_static(b"{\"x\":1,\"timeout_ms\":\"70\"}"))
        })
        .await;
        assert_eq!(good, Ok(Some(70)));
    }
    use ErrorCode as E;
    let cases: [(Answer, E, &str); 8] = [
        (|| Ok(Bytes::from_static(b"{}")), E::MissingRequiredField, "x"),
        (|| Ok(Bytes::new()), E::InvalidFormat, "job.payload_ref"),
        (
            || Ok(Bytes::from_static(b"[1]")),
            E::InvalidFormat,
            "job.payload_ref",
        ),
        (
            || Ok(Bytes::from_static(b"{\"x\":1} {}")),
            E::InvalidFormat,
            "job.payload_ref",
        ),
        (
            || Ok(Bytes::from_static(b"{\"x\":1,\"x\":2}")),
            E::InvalidFormat,
            "job.payload_ref",
        ),
        (
            || Ok(Bytes::from(vec![b' '; 41])),
            E::InvalidInput,
            "job.payload_ref",
        ),
        (
            || Err(Failure::of_field(E::PermissionDenied, "path", "must not")),
            E::PermissionDenied,
            "job.payload_ref",
        ),
        (
            || Err(Failure::timeout("read limit")),
            E::CancelledByTimeout,
            "job.payload_ref",
        ),
    ];
    for (answer, code, field) in cases {
        let failure = prepared(RunMode::Async, None, answer)
            .await
            .expect_err("is refused");
        assert_eq!(
            (failure.code, failure.details["field"].as_str()),
            (code, Some(field))
        );
        assert!(failure.message.starts_with(&format!("{field}: ")), "{failure:?}");
        assert!(!failure.message.contains("path"), "{failure:?}");
    }
}

#[tokio::test]
async fn a_hash_that_is_given_must_be_that_of_the_bytes() {
    let answer = || Ok(Bytes::from_static(b"{\"x\":1}"));
    let right = sha256_hex(b"{\"x\":1}");
    assert!(prepared(RunMode::Async, Some(&right), answer).await.is_ok());
    let failure = prepared(RunMode::Async, Some(&"0a".repeat(32)), answer)
        .await
        .expect_err("is another");
    assert_eq!(
        (failure.code, failure.details["field"].as_str()),
        (ErrorCode::InvalidInput, Some("job.payload_sha256"))
    );
}

#[tokio::test]
async fn what_came_instead_of_the_inputs_is_not_an_output() {
    let answer: Answer = || {
        let mut failure = Failure::new(ErrorCode::HttpError, "the server failed");
        failure.outputs.insert("body".to_owned(), "secret".into());
        Err(failure)
    };
    let failure = prepared(RunMode::Async, None, answer)
        .await
        .expect_err("is refused");
    assert!(failure.outputs.is_empty());
}

#[tokio::test]
async fn panics_end_as_internal_error() {
    let fetching: Answer = || panic!("asked to panic");
    let preparing: Answer = || Ok(Bytes::from_static(b"{\"panic\":1}"));
    for answer in [fetching, preparing] {
        for mode in [RunMode::Async, RunMode::Thread] {
            let failure = prepared(mode, None, answer).await.expect_err("panicked");
            assert_eq!(failure.code, ErrorCode::InternalError);
        }
    }
}
