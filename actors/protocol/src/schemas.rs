//! JSON Schemas of the messages, generated from the types. `actors/protocol/schemas/` holds them for readers without
//! a Rust compiler; a test keeps the files current.

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform as _};
use schemars::{JsonSchema, Schema, schema_for};
use serde_json::Value;

pub mod asyncapi;
pub mod exec_assignment;

/// File name and schema of each message that the worker reads or writes.
pub fn all() -> Vec<(&'static str, Schema)> {
    vec![
        (
            "exec_assignment.json",
            schema_for!(exec_assignment::AssignmentMessage),
        ),
        (
            "exec_assignment_ack.json",
            written::<crate::ack::ExecAssignmentAck>(),
        ),
        ("exec_result.json", written::<crate::result::ExecResult>()),
        ("dead_letter.json", written::<crate::dead_letter::DeadLetter>()),
        ("heartbeat.json", written::<crate::heartbeat::Heartbeat>()),
    ]
}

/// Schema of a message that leaves the worker: what may be left out is optional, and nothing is ever null.
fn written<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    RecursiveTransform(forbid_null).transform(&mut schema);
    schema
}

fn forbid_null(schema: &mut Schema) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.retain(|choice| choice["type"] != "null");
        if let [Value::Object(only)] = choices.as_slice() {
            let only = only.clone();
            schema.remove("anyOf");
            schema.ensure_object().extend(only);
        }
    }
}
