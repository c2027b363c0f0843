//! Gives a log record its form (contract 8.1): fixed keys first, correlation ids at the top, everything else in
//! `context`, secrets masked, everything bounded.
//!
//! Neighbours: `event` writes the lines of our events, slog-json turns the values of other records into JSON;
//! [`caf_actors::mask`] hides secrets. Pure: the caller gives the time. Never fails: values that cannot be written as JSON
//! cost the line its values, not the line.

mod event;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::SystemTime;

use caf_actors::events::MODULE;
use caf_actors::mask::{mask, mask_text};
use caf_protocol::timestamp::iso_micros;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value, json};
use slog::{Drain, Level, OwnedKVList, Record};

use super::secrets::Secrets;

/// Longest string in bytes: more is not read by anyone and costs everyone who ships logs.
pub const MAX_STRING_BYTES: usize = 8 * 1024;
/// Longest message in bytes. Messages of ours are short; one that somebody made long arrives whole.
pub const MAX_MESSAGE_BYTES: usize = 128 * 1024;
/// Longest line in bytes: a quarter of what may wait to be written.
pub const MAX_LINE_BYTES: usize = 1024 * 1024;
/// What strings are cut to, one after the other, until the line fits: rather all keys with short values than none.
const SHORTER_BYTES: [usize; 2] = [512, 64];
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

/// One log line with its line feed, without these `secrets`.
pub fn line(
    record: &Record<'_>,
    values: &OwnedKVList,
    worker_id: &str,
    secrets: &Secrets,
    at: SystemTime,
) -> Vec<u8> {
    event_line(record, values, worker_id, secrets, at)
        .unwrap_or_else(|| values_line(record, values, worker_id, secrets, at))
}

/// The line of one of our events.
fn event_line(
    record: &Record<'_>,
    values: &OwnedKVList,
    worker_id: &str,
    secrets: &Secrets,
    at: SystemTime,
) -> Option<Vec<u8>> {
    if record.module() != MODULE {
        return None;
    }
    let head = (level_name(record.level()), &*message_of(record));
    event::line(
        record,
        values,
        head,
        (worker_id, &iso_micros(at)),
        &secrets.scrubber(),
    )
}

/// The line of any record.
fn values_line(
    record: &Record<'_>,
    values: &OwnedKVList,
    worker_id: &str,
    secrets: &Secrets,
    at: SystemTime,
) -> Vec<u8> {
    let mut fields = fields(record, values);
    fields.values_mut().for_each(|value| secrets.hide_in(value));
    // Messages of ours are literals.
    compose(
        level_name(record.level()),
        &message_of(record),
        fields,
        worker_id,
        at,
    )
}

/// The message of a record.
pub(super) fn message_of(record: &Record<'_>) -> String {
    let mut message = String::new();
    // A Display that fails leaves what it wrote so far.
    let _ = write!(message, "{}", record.msg());
    message
}

/// The same from its parts: a level's name, and fields that are sorted into the top and `context`.
pub(super) fn compose(
    level: &'static str,
    message: &str,
    fields: Map<String, Value>,
    worker_id: &str,
    at: SystemTime,
) -> Vec<u8> {
    let (top, context) = arrange(fields, worker_id);
    let mut line = Line {
        timestamp: iso_micros(at),
        level,
        message: bounded(message).into_owned(),
        top,
        context,
    };
    let mut bytes = line.to_bytes();
    let whole = bytes.len();
    for shorter in SHORTER_BYTES {
        if bytes.len() > MAX_LINE_BYTES {
            let values = line.top.iter_mut().map(|(_, value)| value);
            values
                .chain([&mut line.context])
                .for_each(|value| bound(value, shorter));
            bytes = line.to_bytes();
        }
    }
    if bytes.len() > MAX_LINE_BYTES {
        line.top
            .retain(|(_, value)| !value.is_object() && !value.is_array());
        line.context = json!({"worker_id": worker_id, "dropped_bytes": whole});
        bytes = line.to_bytes();
    }
    if bytes.len() > MAX_LINE_BYTES {
        // Signs that JSON writes with six bytes each.
        line.message = cut(&line.message, MAX_STRING_BYTES).into_owned();
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
        escaped(serde_json::to_string(self).unwrap_or_default()).into_bytes()
    }
}

/// JSON without characters that steer a terminal or turn the direction of a text: those that JSON lets stand in its strings,
/// and nowhere else.
fn escaped(json: String) -> String {
    if !json.bytes().any(steering_lead) {
        return json;
    }
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        if steers(c) {
            let _ = write!(escaped, "\\u{:04x}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// Whether a sign that [`steers`] may begin with this byte.
fn steering_lead(byte: u8) -> bool {
    matches!(byte, 0x7f | 0xc2 | 0xd8 | 0xe2)
}

fn steers(c: char) -> bool {
    matches!(c,
        '\u{7f}'..='\u{9f}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}')
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
    // The log checker wants run, flow and tenant beside a step.
    let has = |key: &str| top.iter().any(|(name, _)| *name == key);
    let is_complete = ["run_id", "flow_id", "tenant_id"].into_iter().all(has);
    let alone = top
        .iter()
        .position(|(name, _)| *name == "step_id" && !is_complete);
    if let Some((key, step)) = alone.map(|at| top.remove(at)) {
        fields.insert(key.to_owned(), step);
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
        bound(value, MAX_STRING_BYTES);
    }
    (top, context)
}

/// Cuts every string and key that is longer than this.
fn bound(value: &mut Value, limit: usize) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(cut) = cut(text, limit) {
                *text = cut;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| bound(item, limit)),
        Value::Object(fields) => {
            fields.values_mut().for_each(|value| bound(value, limit));
            if fields.keys().any(|key| key.len() > limit) {
                let all = std::mem::take(fields);
                fields.extend(
                    all.into_iter()
                        .map(|(key, value)| (cut(&key, limit).into_owned(), value)),
                );
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A message, masked before it is cut: half a secret would not be recognised.
fn bounded(message: &str) -> Cow<'_, str> {
    match mask_text(message) {
        Cow::Borrowed(text) => cut(text, MAX_MESSAGE_BYTES),
        Cow::Owned(text) => Cow::Owned(cut(&text, MAX_MESSAGE_BYTES).into_owned()),
    }
}

fn cut(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(limit - CUT.len());
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

#[cfg(test)]
mod tests;
