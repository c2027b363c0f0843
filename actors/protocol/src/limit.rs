//! Limits on single operations: which there are, and the fact that one ran out.
//!
//! Neighbours: a task declares its limit ([`crate::block::Task::limit`]) and the pipeline holds it to that; a
//! [`crate::outcome::Failure`] carries a [`RanOut`], so that log and metrics need not read texts. Keeps no time itself.

use std::time::Duration;

use crate::error_code::ErrorCode;
use crate::outcome::Failure;

/// What a limit is on. A closed set: label and log field `operation_type` (contract 8.2, 8.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Reading a file.
    FsRead,
    /// Writing a file.
    FsWrite,
    /// Removing a file.
    FsDelete,
    /// Finding and reaching an HTTP server: name lookup, TCP, TLS.
    HttpConnect,
    /// Waiting for the head of an answer, or receiving its body.
    HttpRead,
    /// Getting a connection to a database.
    SqlConnect,
    /// Running a statement.
    SqlStatement,
    /// All attempts of a job and the waits between them, by the policy of retries.
    RetryBudget,
    /// The same by the policy of timeouts; or a single attempt, where that limit holds for each.
    Total,
    /// The assignment.
    Deadline,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::FsRead,
        Self::FsWrite,
        Self::FsDelete,
        Self::HttpConnect,
        Self::HttpRead,
        Self::SqlConnect,
        Self::SqlStatement,
        Self::RetryBudget,
        Self::Total,
        Self::Deadline,
    ];

    /// Its name in logs and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FsRead => "fs_read",
            Self::FsWrite => "fs_write",
            Self::FsDelete => "fs_delete",
            Self::HttpConnect => "http_connect",
            Self::HttpRead => "http_read",
            Self::SqlConnect => "sql_connect",
            Self::SqlStatement => "sql_statement",
            Self::Total => "total",
            Self::RetryBudget => "retry_budget",
            Self::Deadline => "deadline",
        }
    }

    /// What running out ends, as label and log field `timeout_type`: one `attempt`, after which another may follow, or
    /// the job, because of one `operation`, the `total` limit or the `deadline`.
    pub const fn timeout_type(self) -> &'static str {
        match self {
            Self::HttpConnect | Self::HttpRead | Self::SqlConnect => "attempt",
            Self::FsRead | Self::FsWrite | Self::FsDelete | Self::SqlStatement => "operation",
            Self::RetryBudget | Self::Total => "total",
            Self::Deadline => "deadline",
        }
    }

    /// The limit in words for the caller.
    const fn limit_in_words(self) -> &'static str {
        match self {
            Self::FsRead => "read limit",
            Self::FsWrite => "write limit",
            Self::FsDelete => "delete limit",
            Self::HttpConnect | Self::SqlConnect => "connect limit",
            Self::HttpRead => "answer limit",
            Self::SqlStatement => "statement limit",
            Self::Total => "total limit",
            Self::RetryBudget => "retry budget",
            Self::Deadline => "deadline",
        }
    }
}

/// How long one operation may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperationLimit {
    /// Which operation.
    pub operation: Operation,
    /// How long.
    pub allowed: Duration,
}

impl OperationLimit {
    /// The fact that it ran out after `taken`.
    pub const fn ran_out(self, taken: Duration) -> RanOut {
        RanOut::Limit { limit: self, taken }
    }

    /// The failure of a job whose operation took longer than it may: status `timeout`, CANCELLED_BY_TIMEOUT, never
    /// retried (design section 5). Limits on one attempt make failures of their own.
    pub fn ends_the_job(self, taken: Duration) -> Failure {
        Failure::timeout(self.operation.limit_in_words()).by(self.ran_out(taken))
    }

    /// The failure of an attempt that took longer than it may while `doing`: status `error`, CONNECTION_TIMEOUT, and another
    /// attempt may follow (design section 5).
    pub fn ends_the_attempt(self, doing: &str, taken: Duration) -> Failure {
        let message = format!("timeout while {doing}");
        Failure::new(ErrorCode::ConnectionTimeout, message).by(self.ran_out(taken))
    }
}

/// Which limit ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RanOut {
    /// The deadline of the assignment; its figures are the job's.
    Deadline,
    /// A limit on an operation.
    Limit {
        /// Which.
        limit: OperationLimit,
        /// How long the operation had taken when it was given up.
        taken: Duration,
    },
}
