//! The messages of the document: payload, headers, example.

use std::collections::BTreeMap;

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::transform::{RecursiveTransform, Transform as _};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::examples;
use crate::headers::{MESSAGE_ID, REPLAY};
use crate::schemas::exec_assignment::AssignmentMessage;
use crate::schemas::forbid_null;
use crate::{ack, approval, cancel, dead_letter, discovery, heartbeat, result};

/// Where schemas stand in the document.
const DEFINITIONS: &str = "/components/schemas";
/// What is put before the names of schemas of what is read: a name may mean something else in what is written.
const READ: &str = "Read";

/// Every schema of the document, and where the payload of each message is among them.
pub(super) fn schemas() -> (Map<String, Value>, BTreeMap<&'static str, Value>) {
    let settings = || {
        SchemaSettings::draft07().with(|settings| {
            settings.definitions_path = DEFINITIONS.into();
            settings.meta_schema = None;
        })
    };
    let mut payloads = BTreeMap::new();
    let mut written = settings().for_serialize().into_generator();
    let mut add = |name, reference: Schema| drop(payloads.insert(name, reference.to_value()));
    add("ExecAssignmentAck", of::<ack::ExecAssignmentAck>(&mut written));
    add("ExecResult", of::<result::ExecResult>(&mut written));
    add("DeadLetter", of::<dead_letter::DeadLetter>(&mut written));
    add("Heartbeat", of::<heartbeat::Heartbeat>(&mut written));
    add("Ping", of::<discovery::Ping>(&mut written));
    add("Info", of::<discovery::Info>(&mut written));
    add("Stats", of::<discovery::Stats>(&mut written));
    add("CancelAnswer", of::<cancel::CancelAnswer>(&mut written));
    add("CancelRefusal", of::<cancel::CancelRefusal>(&mut written));
    add("ApprovalRequested", of::<approval::RequestedEvent>(&mut written));
    add("ApprovalDecided", of::<approval::DecidedEvent>(&mut written));
    let mut read = settings().into_generator();
    add("ExecAssignment", of::<AssignmentMessage>(&mut read));
    add("CancelRequest", of::<cancel::CancelMessage>(&mut read));

    let mut schemas = Map::new();
    for (name, schema) in written.take_definitions(true) {
        let Ok(mut schema) = Schema::try_from(schema) else {
            continue;
        };
        RecursiveTransform(forbid_null).transform(&mut schema);
        schemas.insert(name, schema.to_value());
    }
    for (name, mut schema) in read.take_definitions(true) {
        rename(&mut schema);
        schemas.insert(format!("{READ}{name}"), schema);
    }
    for name in ["ExecAssignment", "CancelRequest"] {
        if let Some(reference) = payloads.get_mut(name) {
            rename(reference);
        }
    }
    (schemas, payloads)
}

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Makes references to schemas of what is read lead to their names.
fn rename(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(reference)) = object.get_mut("$ref")
                && let Some(name) = reference.strip_prefix(&format!("#{DEFINITIONS}/"))
            {
                *reference = format!("#{DEFINITIONS}/{READ}{name}");
            }
            object.values_mut().for_each(rename);
        }
        Value::Array(items) => items.iter_mut().for_each(rename),
        _ => {}
    }
}

/// Every message by name.
pub(super) fn all(payloads: &BTreeMap<&'static str, Value>) -> Value {
    let json = |name: &str, summary: &str, headers: Option<Value>| {
        let payload = payloads.get(name).cloned().unwrap_or_default();
        message(name, summary, payload, headers)
    };
    let text = |name: &str, summary: &str, payload: Value| {
        let mut message = message(name, summary, payload, None);
        message["contentType"] = json!("text/plain");
        message
    };
    let key = json!({"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256 of tenant and assignment id."});
    let word = json!({"type": "string", "enum": ["held", "free"]});
    let empty = json!({"type": "string", "description": "Usually empty: nothing is read."});
    let record = json!({"type": "object"});
    json!({
        "ExecAssignment": json(
            "ExecAssignment",
            "A job for a worker. Other shapes are read too; unknown fields are ignored.",
            Some(assignment_headers()),
        ),
        "ExecAssignmentAck": json("ExecAssignmentAck", "Whether the worker took the job.", Some(answer_headers(true))),
        "ExecResult": json("ExecResult", "How the job ended.", Some(answer_headers(true))),
        "DeadLetter": json("DeadLetter", "An assignment that cannot be helped, and why.", Some(answer_headers(false))),
        "Heartbeat": json("Heartbeat", "Sign of life.", None),
        "Ping": json("Ping", "Who is there.", None),
        "Info": json("Info", "What a worker is.", None),
        "Stats": json("Stats", "How loaded a worker is.", None),
        "CancelRequest": json("CancelRequest", "What is to be cancelled: exactly one of assignment, run and step.", None),
        "CancelAnswer": json("CancelAnswer", "What one worker has done about a request to cancel.", None),
        "CancelRefusal": json("CancelRefusal", "Why something is no request to cancel.", None),
        "ApprovalRequested": json("ApprovalRequested", "Somebody is asked. The description was written by a caller: hostile text.", Some(event_headers())),
        "ApprovalDecided": json("ApprovalDecided", "How a question to people ended.", Some(event_headers())),
        "Question": text("Question", "A question to services.", empty),
        "OwnerQuestion": text("OwnerQuestion", "Asks for one assignment.", key),
        "OwnerAnswer": text("OwnerAnswer", "Whether it is worked on here.", word),
        "ClaimRecord": message("ClaimRecord", "A claim, as workers keep it.", record.clone(), Some(record_headers())),
        "ApprovalRecord": message("ApprovalRecord", "A question, as workers keep it.", record.clone(), Some(record_headers())),
        "StateRecord": message("StateRecord", "A note, as workers keep it.", record, Some(record_headers())),
    })
}

fn message(name: &str, summary: &str, payload: Value, headers: Option<Value>) -> Value {
    let mut message = json!({ "name": name, "summary": summary, "payload": payload });
    if let Some(headers) = headers {
        message["headers"] = headers;
    }
    let example = examples::of(name);
    if !example.is_null() {
        message["examples"] = json!([example]);
    }
    message
}

fn header(description: &str) -> Value {
    json!({ "type": "string", "description": description })
}

/// Contract 1.5: everything is in the payload too; headers are what it falls back to.
fn assignment_headers() -> Value {
    json!({
        "type": "object",
        "properties": {
            "version": header("Taken when the payload has none."),
            "tenant_id": header("Taken when the payload has none."),
            "trace_id": header("Taken when the payload has none, if it is valid."),
            "traceparent": header("W3C trace context; ignored unless it is valid."),
            MESSAGE_ID: header("By which a stream drops a second copy; not read."),
            REPLAY: header("How often the assignment was replayed from a dead letter: 1 to 1000. Set by caf-worker dlq replay."),
        },
    })
}

/// Of answers. `traced`: they may carry a trace.
fn answer_headers(traced: bool) -> Value {
    let mut properties = json!({
        MESSAGE_ID: header("By which a stream drops a second copy; the same when the message is sent again."),
        "version": { "type": "string", "const": crate::VERSION },
        "tenant_id": header("As in the payload; left out where a header could not carry it unchanged."),
    });
    if traced {
        properties["trace_id"] = header("As in the payload; left out where there is none.");
        properties["traceparent"] = header("W3C trace context of the job, while worker.tracing is on.");
    }
    json!({ "type": "object", "required": [MESSAGE_ID, "version"], "properties": properties })
}

/// Headers of what notifiers hear.
fn event_headers() -> Value {
    json!({
        "type": "object",
        "required": [MESSAGE_ID],
        "properties": { MESSAGE_ID: header("Id of the approval, and which of the two events it is.") },
    })
}

fn record_headers() -> Value {
    json!({
        "type": "object",
        "properties": {
            "Nats-Expected-Last-Subject-Sequence": header("Compare-and-set: the revision that is replaced."),
            "KV-Operation": header("Set when a record is removed."),
        },
    })
}
