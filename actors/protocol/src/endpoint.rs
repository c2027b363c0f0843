//! What a task talks to, and what a failed call says of it.
//!
//! Neighbours: a task names its [`Endpoint`] ([`crate::block::Task::endpoint`]); a [`Failure`] carries a [`Sign`]; the
//! pipeline's circuit breakers go by both. Names hold no credentials, and no part of an address that may be a secret. Never
//! calls anything.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde::Serialize;

use crate::error_code::ErrorCode;
use crate::limit::{Operation, RanOut};
use crate::outcome::Failure;

/// Longest name in bytes: it is kept in memory and stands in log lines. A longer one is cut, and ends in its hash.
pub const MAX_NAME_BYTES: usize = 255;

/// Kinds of endpoints. A closed set: a label of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointKind {
    /// An HTTP server: scheme, host and port.
    Http,
    /// A database: a connection of the settings, or host and database of one that a job brought.
    Sql,
    /// A directory of the settings.
    Fs,
}

impl EndpointKind {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Http, Self::Sql, Self::Fs];

    /// Lower-case name, as in labels and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Sql => "sql",
            Self::Fs => "fs",
        }
    }
}

/// What a task talks to. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    kind: EndpointKind,
    name: Arc<str>,
}

impl Endpoint {
    /// The endpoint of this kind with this name, cut to [`MAX_NAME_BYTES`].
    pub fn new(kind: EndpointKind, name: &str) -> Self {
        let name = match name.len() {
            0..=MAX_NAME_BYTES => name.into(),
            _ => shortened(name).into(),
        };
        Self { kind, name }
    }

    /// Its kind.
    pub fn kind(&self) -> EndpointKind {
        self.kind
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The beginning of a name, and a hash by which two names with the same beginning differ.
fn shortened(name: &str) -> String {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let tail = format!("~{:016x}", hasher.finish());
    let mut end = MAX_NAME_BYTES - tail.len();
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{tail}", &name[..end])
}

/// What the failure of a call says of its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It cannot do its work: it is away, overloaded, full, or fails by itself.
    Down,
    /// It answered, and the fault is the job's: a status 4xx, a query with an error, a file that is not there.
    Up,
    /// Nothing: it was not asked, or the fault is the worker's.
    Nothing,
    /// It was not called, because it kept failing.
    LeftAlone,
    /// Nothing: rules that only inputs and settings decide refused the call before anything was asked. Another try would
    /// meet the same rules.
    Refused,
    /// It was not called: this worker knows none of that name.
    Unknown,
}

impl Sign {
    /// What a failure says of which the block has not said it, by code and by the limit that ran out.
    pub(crate) fn by(failure: &Failure) -> Self {
        let of_an_operation = match failure.ran_out.as_deref() {
            Some(RanOut::Limit { limit, .. }) => !matches!(
                limit.operation,
                Operation::RetryBudget | Operation::Total | Operation::Deadline
            ),
            Some(RanOut::Deadline) | None => false,
        };
        match failure.code {
            _ if of_an_operation => Self::Down,
            ErrorCode::NetworkError | ErrorCode::ConnectionTimeout => Self::Down,
            ErrorCode::HttpError => match failure.error_type() {
                "server_error" => Self::Down,
                _ => Self::Up,
            },
            ErrorCode::ExecutionFailed => Self::Up,
            _ => Self::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::limit::OperationLimit;

    #[test]
    fn a_long_name_is_cut_and_still_differs_from_others_that_begin_alike() {
        let name = |text: &str| Endpoint::new(EndpointKind::Http, text).name().to_owned();
        assert_eq!(name(&"x".repeat(255)), "x".repeat(255));
        let (one, other) = ("ü".repeat(500) + "1", "ü".repeat(500) + "2");
        assert!(name(&one).len() <= MAX_NAME_BYTES && name(&one).starts_with('ü'));
        assert_ne!(name(&one), name(&other));
        assert_eq!(name(&one), name(&one));
    }

    #[test]
    fn failures_say_of_their_endpoint_what_their_code_says_unless_the_block_knows_better() {
        let of = |code| Failure::new(code, "x");
        let http = |status: u16| of(ErrorCode::HttpError).with("status_code", json!(status));
        let ran_out = |operation| {
            OperationLimit {
                operation,
                allowed: Duration::ZERO,
            }
            .ends_the_job(Duration::ZERO)
        };
        for (failure, sign) in [
            (http(500), Sign::Down),
            (http(599), Sign::Down),
            (http(404), Sign::Up),
            (http(302), Sign::Up),
            (of(ErrorCode::NetworkError), Sign::Down),
            (of(ErrorCode::ConnectionTimeout), Sign::Down),
            (of(ErrorCode::ExecutionFailed), Sign::Up),
            (of(ErrorCode::ResourceUnavailable), Sign::Nothing),
            (of(ErrorCode::ResourceUnavailable).saying(Sign::Down), Sign::Down),
            (of(ErrorCode::PermissionDenied), Sign::Nothing),
            (of(ErrorCode::InvalidInput), Sign::Nothing),
            (of(ErrorCode::InternalError), Sign::Nothing),
            (of(ErrorCode::SystemOverload), Sign::Nothing),
            (of(ErrorCode::CancelledByUser), Sign::Nothing),
            (ran_out(Operation::FsWrite), Sign::Down),
            (ran_out(Operation::SqlStatement), Sign::Down),
            (ran_out(Operation::Total), Sign::Nothing),
            (Failure::deadline(), Sign::Nothing),
        ] {
            assert_eq!(failure.sign(), sign, "{failure:?}");
        }
    }
}
