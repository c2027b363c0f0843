//! Gets the inputs of a job from where its reference says, once, and lets the block make a task of them.
//!
//! Neighbours: the block worker calls [`prepare`] within an attempt, before the first call of the block; what comes out
//! is kept for later attempts. Nothing of the job has run when this fails. Never decides a retry.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use caf_protocol::assignment::own_timeout_ms;
use caf_protocol::block::{Block, BlockContext, Inputs, RunMode, Task};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::ids::sha256_hex;
use caf_protocol::json;
use caf_protocol::outcome::Failure;
use caf_protocol::reference;
use futures_util::FutureExt;
use serde_json::Value;

use super::threads::Threads;
use crate::job::Referenced;

/// A task whose inputs were fetched.
pub(super) struct Prepared {
    /// What to run.
    pub(super) task: Arc<dyn Task>,
    /// `timeout_ms` among the inputs, which intake could not see.
    pub(super) timeout_ms: Option<u64>,
}

/// Fetches at most `max_bytes`, checks the hash, reads the inputs and prepares the block. The caller enforces deadline
/// and cancellation.
///
/// # Errors
/// Why there are no bytes, by the codes of [`reference::Fetch::fetch`]; a validation code for bytes that are no inputs of
/// the block; INTERNAL_ERROR for a panic.
pub(super) async fn prepare(
    referenced: &Referenced,
    context: BlockContext,
    max_bytes: u64,
    threads: &Threads,
) -> Result<Prepared, Failure> {
    let bytes = fetch(referenced, context, max_bytes, threads)
        .await
        .map_err(|mut failure| {
            // What the other side said instead of the inputs is not an output of the job.
            failure.outputs.clear();
            failure.said_of(reference::FIELD)
        })?;
    let (block, sha256) = (Arc::clone(&referenced.block), referenced.payload.sha256.clone());
    // Reading some megabytes takes longer than an event loop may be kept.
    let prepared = threads
        .run(move || read(&*block, sha256.as_deref(), &bytes, max_bytes))
        .await?;
    prepared.unwrap_or_else(|| Err(panicked("the block panicked on these inputs")))
}

async fn fetch(
    referenced: &Referenced,
    context: BlockContext,
    max_bytes: u64,
    threads: &Threads,
) -> Result<Bytes, Failure> {
    let fetcher = Arc::clone(&referenced.fetcher);
    let (mode, location) = (fetcher.mode(), referenced.payload.location.clone());
    let fetched = match mode {
        RunMode::Async => {
            let fetch = async move { fetcher.fetch(location, max_bytes, context).await };
            AssertUnwindSafe(fetch).catch_unwind().await.ok()
        }
        RunMode::Thread => {
            let handle = tokio::runtime::Handle::current();
            let fetch = move || handle.block_on(fetcher.fetch(location, max_bytes, context));
            threads.run(fetch).await?
        }
    };
    fetched.unwrap_or_else(|| Err(panicked("the inputs could not be fetched")))
}

/// Pure: bytes in, task out.
fn read(block: &dyn Block, sha256: Option<&str>, bytes: &[u8], max_bytes: u64) -> Result<Prepared, Failure> {
    if bytes.len() as u64 > max_bytes {
        return Err(reference::too_large(max_bytes));
    }
    if sha256.is_some_and(|wanted| wanted != sha256_hex(bytes)) {
        let rule = "is not the hash of what was referred to";
        return Err(Failure::of_field(
            ErrorCode::InvalidInput,
            reference::SHA256_FIELD,
            rule,
        ));
    }
    let inputs = inputs_of(bytes)?;
    let timeout_ms = own_timeout_ms(&inputs);
    let task = block.prepare(inputs)?;
    Ok(Prepared { task, timeout_ms })
}

/// By the rules of a message: one JSON object, no key twice, nesting bounded.
fn inputs_of(bytes: &[u8]) -> Result<Inputs, Failure> {
    let refuse = |rule: &str| Failure::of_field(ErrorCode::InvalidFormat, reference::FIELD, rule);
    let document = json::parse(bytes)
        .map_err(|error| refuse("what it refers to is not valid JSON").internally(error))?;
    if let Some(duplicate) = document.duplicates.first() {
        return Err(
            refuse("what it refers to holds a key more than once in one object")
                .with("key", duplicate.path.as_str().into()),
        );
    }
    match document.value {
        Value::Object(inputs) => Ok(inputs),
        _ => Err(refuse("what it refers to is not a JSON object")),
    }
}

fn panicked(what: &str) -> Failure {
    Failure::new(ErrorCode::InternalError, what)
}

#[cfg(test)]
mod tests {
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

    /// Has one answer, whatever it is asked for.
    struct Canned(RunMode, fn() -> Result<Bytes, Failure>);

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

    async fn prepared(
        mode: RunMode,
        sha256: Option<&str>,
        answer: fn() -> Result<Bytes, Failure>,
    ) -> Result<Option<u64>, Failure> {
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
        let cases: [(fn() -> Result<Bytes, Failure>, E, &str); 8] = [
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
        let answer: fn() -> Result<Bytes, Failure> = || {
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
        let fetching: fn() -> Result<Bytes, Failure> = || panic!("asked to panic");
        let preparing: fn() -> Result<Bytes, Failure> = || Ok(Bytes::from_static(b"{\"panic\":1}"));
        for answer in [fetching, preparing] {
            for mode in [RunMode::Async, RunMode::Thread] {
                let failure = prepared(mode, None, answer).await.expect_err("panicked");
                assert_eq!(failure.code, ErrorCode::InternalError);
            }
        }
    }
}
