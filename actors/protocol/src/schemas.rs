//! JSON Schemas of the messages, generated from the types. `actors/protocol/schemas/` holds them for readers without
//! a Rust compiler; a test keeps the files current.

use schemars::{Schema, schema_for};

/// File name and schema of each message that leaves the worker.
pub fn all() -> Vec<(&'static str, Schema)> {
    vec![
        (
            "exec_assignment_ack.json",
            schema_for!(crate::ack::ExecAssignmentAck),
        ),
        ("exec_result.json", schema_for!(crate::result::ExecResult)),
        ("dead_letter.json", schema_for!(crate::dead_letter::DeadLetter)),
        ("heartbeat.json", schema_for!(crate::heartbeat::Heartbeat)),
    ]
}
