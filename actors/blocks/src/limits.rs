//! How long single operations of the blocks may take, while limits on them are in force.
//!
//! Neighbours: the node makes an [`OperationLimits`] of the policy (contract 7.3) and gives it to [`crate::build`]. The
//! deadline of a job caps all of them. Limits of databases are properties of their connections
//! ([`crate::settings::SqlSettings`]) and hold always.

use std::time::Duration;

use caf_protocol::limit::{Operation, OperationLimit};

/// Nothing means that only the deadline limits it, as in CP1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OperationLimits {
    /// Reading a file.
    pub fs_read: Option<Duration>,
    /// Writing a file.
    pub fs_write: Option<Duration>,
    /// Removing a file.
    pub fs_delete: Option<Duration>,
    /// Looking up the name of an HTTP server, and connecting to it with TCP and TLS: each.
    pub http_connect: Option<Duration>,
    /// Waiting for the head of an answer (connecting counts too), and receiving its body: each.
    pub http_read: Option<Duration>,
}

impl OperationLimits {
    /// The limit on `operation`, if one is in force.
    pub(crate) fn on(&self, operation: Operation) -> Option<OperationLimit> {
        let allowed = match operation {
            Operation::FsRead => self.fs_read,
            Operation::FsWrite => self.fs_write,
            Operation::FsDelete => self.fs_delete,
            Operation::HttpConnect => self.http_connect,
            Operation::HttpRead => self.http_read,
            _ => None,
        }?;
        Some(OperationLimit { operation, allowed })
    }
}
