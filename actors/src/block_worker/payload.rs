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
use caf_protocol::secret::reference::misplaced;
use futures_util::FutureExt;
use serde_json::Value;

use super::threads::{Threads, within};
use crate::job::Referenced;

/// A task whose inputs were fetched.
pub(super) struct Prepared {
    /// What to run.
    pub(super) task: Arc<dyn Task>,
    /// `timeout_ms` among the inputs, which intake could not see.
    pub(super) timeout_ms: Option<u64>,
    /// How many bytes were fetched.
    pub(super) bytes: u64,
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
    let limit = fetcher.limit();
    let fetching = async {
        let fetched = match mode {
            RunMode::Light | RunMode::Async => {
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
    };
    within(limit, fetching).await
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
    misplaced(&inputs, block.secret_inputs())?;
    let task = block.prepare(inputs)?;
    Ok(Prepared {
        task,
        timeout_ms,
        bytes: bytes.len() as u64,
    })
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
mod tests;
