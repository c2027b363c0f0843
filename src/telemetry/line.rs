//! Gives a log record its form (contract 8.1): fixed keys first, correlation ids at the top, everything else in
//! `context`, secrets masked, everything bounded.
//!
//! Neighbours: slog-json turns the record's values into JSON, [`caf_actors::mask`] hides secrets. Pure: the caller gives
//! the time. Never fails: values that cannot be written as JSON cost the line its values, not the line.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::SystemTime;

use caf_actors::mask::{mask, mask_text};
use caf_protocol::timestamp::iso_micros;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value, json};
use slog::{Drain, Level, OwnedKVList, Record};

/// Longest string in bytes, a message included: more is not read by anyone and costs everyone who ships logs.
pub const MAX_STRING_BYTES: usize = 8 * 1024;
/// Longest line in bytes: readers of pipes and log shippers cut longer ones in the middle.
pub const MAX_LINE_BYTES: usize = 256 * 1024;
/// What stands at the end of a cut string.
const CUT: &str = "…[truncated]";

/// Keys that stay at the top, in this order; correlation ids first.
const TOP_KEYS: [&str; 8] = [
    "tenant_id",
    "run_id",
    "flow_id",
    "step_id",
    "trace_id",
    "error_code",
    "latency_ms",
    "error",
];

/// One log line with its line feed.
pub fn line(record: &Record<'_>, values: &OwnedKVList, worker_id: &str, at: SystemTime) -> Vec<u8> {
    let mut message = String::new();
    // A Display that fails leaves what it wrote so far.
    let _ = write!(message, "{}", record.msg());
    let (top, context) = arrange(fields(record, values), worker_id);
    let mut line = Line {
        timestamp: iso_micros(at),
        level: level_name(record.level()),
        message: bounded(&message).into_owned(),
        top,
        context,
    };
    let mut bytes = line.to_bytes();
    if bytes.len() > MAX_LINE_BYTES {
        line.top
            .retain(|(_, value)| !value.is_object() && !value.is_array());
        line.context = json!({"worker_id": worker_id, "dropped_bytes": bytes.len()});
        bytes = line.to_bytes();
    }
    bytes.push(b'\n');
    bytes
}

/// A line in the order in which its keys are written.
struct Line {
    timestamp: String,
    level: &'static str,
    message: String,
    top: Vec<(&'static str, Value)>,
    context: Value,
}

impl Line {
    fn to_bytes(&self) -> Vec<u8> {
        // Strings and JSON values cannot fail to serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("timestamp", &self.timestamp)?;
        map.serialize_entry("level", self.level)?;
        map.serialize_entry("component", "worker")?;
        map.serialize_entry("message", &self.message)?;
        for (key, value) in &self.top {
            map.serialize_entry(key, value)?;
        }
        map.serialize_entry("context", &self.context)?;
        map.end()
    }
}

/// The values of the record and its logger. Of two with one key the record's stands.
fn fields(record: &Record<'_>, values: &OwnedKVList) -> Map<String, Value> {
    let mut buffer = Vec::new();
    let json = slog_json::Json::new(&mut buffer).set_newlines(false).build();
    let written = json.log(record, values);
    drop(json);
    let parsed = match written {
        Ok(()) => serde_json::from_slice(&buffer).ok(),
        Err(_) => None,
    };
    match parsed {
        Some(Value::Object(fields)) => fields,
        _ => Map::from_iter([("unreadable_values".to_owned(), Value::Bool(true))]),
    }
}

/// Sorts values into those at the top and `context`, masked and bounded.
fn arrange(mut fields: Map<String, Value>, worker_id: &str) -> (Vec<(&'static str, Value)>, Value) {
    let given = fields.remove("context");
    let mut top = Vec::new();
    for key in TOP_KEYS {
        match fields.remove(key) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) if text.is_empty() => {}
            Some(value) => top.push((key, value)),
        }
    }
    let mut context = match given {
        Some(Value::Object(context)) => context,
        None | Some(Value::Null) => Map::new(),
        Some(other) => Map::from_iter([("value".to_owned(), other)]),
    };
    for (key, value) in fields {
        context.entry(key).or_insert(value);
    }
    context
        .entry("worker_id")
        .or_insert_with(|| Value::from(worker_id));
    let mut context = Value::Object(context);
    for value in top.iter_mut().map(|(_, value)| value).chain([&mut context]) {
        mask(value);
        bound(value);
    }
    (top, context)
}

/// Cuts every string and key that is too long.
fn bound(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(cut) = cut(text) {
                *text = cut;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(bound),
        Value::Object(fields) => {
            fields.values_mut().for_each(bound);
            if fields.keys().any(|key| key.len() > MAX_STRING_BYTES) {
                let all = std::mem::take(fields);
                fields.extend(
                    all.into_iter()
                        .map(|(key, value)| (cut(&key).into_owned(), value)),
                );
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A message, masked before it is cut: half a secret would not be recognised.
fn bounded(message: &str) -> Cow<'_, str> {
    match mask_text(message) {
        Cow::Borrowed(text) => cut(text),
        Cow::Owned(text) => Cow::Owned(cut(&text).into_owned()),
    }
}

fn cut(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_STRING_BYTES {
        return Cow::Borrowed(text);
    }
    let mut end = MAX_STRING_BYTES - CUT.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(format!("{}{CUT}", &text[..end]))
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Critical | Level::Error => "ERROR",
        Level::Warning => "WARN",
        Level::Info => "INFO",
        Level::Debug | Level::Trace => "DEBUG",
    }
}
