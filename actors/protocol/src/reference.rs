//! Inputs that are kept elsewhere: what `job.payload_ref` may say, and the contract of whoever fetches them.
//!
//! Neighbours: [`crate::assignment`] parses a [`PayloadRef`]; `caf-blocks` and the edge towards NATS implement [`Fetch`];
//! the block worker asks the [`Fetchers`] before the first attempt. Only the form is judged here: never looks at a file,
//! a name or a network.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use percent_encoding::percent_decode_str;
use serde_json::json;
use url::Url;

use crate::ack::RejectReason;
use crate::assignment::Refusal;
use crate::block::{BlockContext, RunMode};
use crate::error_code::ErrorCode;
use crate::limit::OperationLimit;
use crate::outcome::Failure;

/// The field that holds a reference; failures on the way to its bytes name it.
pub const FIELD: &str = "job.payload_ref";
/// The field that holds the hash of what is referenced.
pub const SHA256_FIELD: &str = "job.payload_sha256";
/// Longest reference in bytes: longer than any sensible address, short enough to be quoted in a log line.
const MAX_REFERENCE_BYTES: usize = 2_048;
/// Longest key of an object in bytes, decoded: written out it is part of a subject, which the server bounds.
const MAX_KEY_BYTES: usize = 512;
/// Longest name of a bucket in bytes.
const MAX_BUCKET_BYTES: usize = 128;

/// How a reference is resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `nats-obj`: an object store bucket of the broker.
    NatsObj,
    /// `file`: a file under one of the worker's named directories.
    File,
    /// `http` and `https`.
    Http,
}

/// Where the inputs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `nats-obj://bucket/key`. The key is everything after the bucket's slash, slashes, `?` and `#` included, with `%XX`
    /// decoded once.
    Object {
        /// The bucket: letters, digits, `-` and `_`.
        bucket: String,
        /// The key: 1..512 bytes without control characters.
        key: String,
    },
    /// `file:root/rest`, or `file:/absolute` and `file:///absolute`, with `%XX` decoded once. What a path may be is the
    /// rule of whoever opens it.
    File {
        /// `root/rest` with a name from the settings, or an absolute path.
        path: String,
    },
    /// `http://…` or `https://…`, without credentials.
    Http {
        /// The address.
        url: Url,
    },
}

impl Location {
    /// How it is resolved.
    pub fn scheme(&self) -> Scheme {
        match self {
            Self::Object { .. } => Scheme::NatsObj,
            Self::File { .. } => Scheme::File,
            Self::Http { .. } => Scheme::Http,
        }
    }
}

/// A reference of good form. No rule for it stands in any public document; this is the worker's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadRef {
    /// Where the inputs are.
    pub location: Location,
    /// SHA-256 that their bytes must have, as 64 lower-case hexadecimal digits (`job.payload_sha256`).
    pub sha256: Option<String>,
}

impl PayloadRef {
    /// Reads a reference.
    ///
    /// # Errors
    /// What the acknowledgement and the result say: unknown schemes with INVALID_INPUT and a token of their own, bad
    /// forms with INVALID_FORMAT, addresses with credentials with INVALID_INPUT. Never quotes the reference.
    pub fn parse(text: &str, sha256: Option<&str>) -> Result<Self, Refusal> {
        if text.len() > MAX_REFERENCE_BYTES || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(malformed(
                "must be at most 2048 bytes, without spaces and control characters",
            ));
        }
        let (scheme, rest) = text.split_once(':').ok_or_else(unknown_scheme)?;
        let location = match scheme.to_ascii_lowercase().as_str() {
            "nats-obj" => object(rest)?,
            "file" => file(rest)?,
            "http" | "https" => http(text)?,
            _ => return Err(unknown_scheme()),
        };
        let sha256 = sha256.map(str::to_owned);
        Ok(Self { location, sha256 })
    }
}

fn object(rest: &str) -> Result<Location, Refusal> {
    let rule = "must be nats-obj://bucket/key";
    let (bucket, key) = rest
        .strip_prefix("//")
        .and_then(|rest| rest.split_once('/'))
        .ok_or_else(|| malformed(rule))?;
    if !is_bucket_name(bucket) {
        return Err(malformed(
            "the bucket must be 1 to 128 letters, digits, '-' or '_'",
        ));
    }
    let key = decoded(key)?;
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(malformed("the key must be 1 to 512 bytes"));
    }
    let bucket = bucket.to_owned();
    Ok(Location::Object { bucket, key })
}

fn file(rest: &str) -> Result<Location, Refusal> {
    let path = match rest.strip_prefix("//") {
        None => rest,
        Some(path) if path.starts_with('/') => path,
        Some(_) => {
            return Err(malformed(
                "must be file:root/rest or file:///absolute, without a host",
            ));
        }
    };
    let path = decoded(path)?;
    if path.is_empty() {
        return Err(malformed("must name a file"));
    }
    Ok(Location::File { path })
}

fn http(text: &str) -> Result<Location, Refusal> {
    let url = Url::parse(text).map_err(|_| malformed("must be an http or https address"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Refusal {
            reason: RejectReason::InvalidField,
            failure: Failure::of_field(ErrorCode::InvalidInput, FIELD, "must not hold credentials"),
        });
    }
    Ok(Location::Http { url })
}

/// `%XX` decoded once. A lone `%` or bytes that are no text are refused: two readers would take them for two names.
fn decoded(text: &str) -> Result<String, Refusal> {
    let is_escape = |after: &str| {
        let digits = after.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if !text.split('%').skip(1).all(is_escape) {
        return Err(malformed("'%' must be followed by two hexadecimal digits"));
    }
    let decoded = percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| malformed("must be UTF-8 once decoded"))?;
    if decoded.chars().any(char::is_control) {
        return Err(malformed("must not hold control characters"));
    }
    Ok(decoded.into_owned())
}

/// Whether this can be the name of an object store bucket.
pub fn is_bucket_name(name: &str) -> bool {
    (1..=MAX_BUCKET_BYTES).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Whether this is a SHA-256 as 64 lower-case hexadecimal digits.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn malformed(rule: &str) -> Refusal {
    Refusal {
        reason: RejectReason::InvalidField,
        failure: Failure::of_field(ErrorCode::InvalidFormat, FIELD, rule),
    }
}

fn unknown_scheme() -> Refusal {
    unsupported("must begin with nats-obj:, file:, http: or https:")
}

/// A reference that this worker does not resolve; `rule` says which it does.
pub fn unsupported(rule: &str) -> Refusal {
    Refusal {
        reason: RejectReason::UnsupportedPayloadRef,
        failure: Failure::of_field(ErrorCode::InvalidInput, FIELD, rule),
    }
}

/// What is referenced is larger than `max_bytes`: the same however often it is fetched.
pub fn too_large(max_bytes: u64) -> Failure {
    Failure::of_field(
        ErrorCode::InvalidInput,
        FIELD,
        "what it refers to is larger than the limit",
    )
    .with("limit_bytes", json!(max_bytes))
}

/// A location that was given to the fetcher of another scheme.
pub fn misdirected() -> Failure {
    Failure::new(
        ErrorCode::InternalError,
        "the reference was given to the wrong fetcher",
    )
}

/// Bytes on their way. Not `Send`: it stays on the thread that polls it.
pub type FetchFuture = LocalBoxFuture<'static, Result<Bytes, Failure>>;

/// One way to resolve references.
pub trait Fetch: Send + Sync + 'static {
    /// Which references it resolves.
    fn scheme(&self) -> Scheme;

    /// Where the future may be polled, as with a task.
    fn mode(&self) -> RunMode;

    /// How long fetching may take, as with a task.
    fn limit(&self) -> Option<OperationLimit> {
        None
    }

    /// Fetches the bytes: whole, and at most `max_bytes`. A location of another scheme is [`misdirected`]. Deadline
    /// and cancellation are in the context; an [`RunMode::Async`] future is also dropped when they come.
    ///
    /// # Errors
    /// [`too_large`]; RESOURCE_UNAVAILABLE when there is nothing; PERMISSION_DENIED when the worker's settings do not let
    /// a job there; network codes as for `http.request`. Whether fetching again can help is
    /// [`Failure::is_retryable`].
    fn fetch(self: Arc<Self>, location: Location, max_bytes: u64, context: BlockContext) -> FetchFuture;
}

/// All fetchers of a node, by scheme. Built by the node, given to the pipeline as an argument.
#[derive(Clone, Default)]
pub struct Fetchers {
    by_scheme: HashMap<Scheme, Arc<dyn Fetch>>,
}

impl Fetchers {
    /// Adds a fetcher; an earlier one of its scheme is replaced.
    #[must_use]
    pub fn with(mut self, fetcher: Arc<dyn Fetch>) -> Self {
        self.by_scheme.insert(fetcher.scheme(), fetcher);
        self
    }

    /// The fetcher for a location.
    ///
    /// # Errors
    /// The refusal, when this node has none.
    pub fn find(&self, location: &Location) -> Result<&Arc<dyn Fetch>, Refusal> {
        self.by_scheme.get(&location.scheme()).ok_or_else(|| {
            unsupported(match location.scheme() {
                Scheme::NatsObj => "nats-obj references need a broker with JetStream",
                Scheme::File => "file references are not resolved by this worker",
                Scheme::Http => "http references are not resolved by this worker",
            })
        })
    }
}

impl std::fmt::Debug for Fetchers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.by_scheme.keys()).finish()
    }
}

#[cfg(test)]
mod tests;
