//! Makes a message smaller that the server would not take: its largest message may have become smaller since the message
//! was written, over an outage or since an earlier process stored it.
//!
//! Neighbours: `sending` and `replay` ask when a publish was refused. Works on the bytes that were written, because
//! nothing else outlives a process; what it leaves alone stays as it was, byte for byte. A result keeps its status and
//! its outputs elsewhere, or becomes row 15's error: never a success with missing data.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use caf_protocol::assignment::Identity;
use caf_protocol::outcome::{Failure, Status};
use caf_protocol::result::{OutputRef, failure_fields};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

use crate::answers::{too_large, value_is_long, wire_bytes};
use crate::events::{self, Log};
use crate::sink::Outgoing;
use crate::spill::Spiller;

/// Most bytes of a failure's text that are kept.
const LONGEST_TEXT: usize = 1024;

/// Shrinks. Cheap to clone.
#[derive(Clone)]
pub(super) struct Shrinker {
    pub(super) spiller: Spiller,
    /// Tells results from dead letters.
    pub(super) result_subject: Arc<str>,
    pub(super) log: Log,
}

impl Shrinker {
    /// The message in a form that is smaller than before and at most `limit` bytes; nothing when there is none. Waits
    /// for as long as outputs cannot be kept elsewhere because the broker is away.
    pub(super) async fn shrink(&self, message: &Outgoing, limit: usize) -> Option<Outgoing> {
        let bytes = wire_bytes(message);
        let limit = limit.min(bytes.saturating_sub(1));
        let smaller = if *message.subject == *self.result_subject {
            self.result(message, bytes, limit).await
        } else {
            Written::read(message).map(Written::without_original)
        };
        smaller.filter(|smaller| wire_bytes(smaller) <= limit)
    }

    async fn result(&self, message: &Outgoing, bytes: usize, limit: usize) -> Option<Outgoing> {
        // A reference to outputs is as small as it gets.
        let written = Written::read(message).filter(|written| !written.fields.contains_key("output_ref"))?;
        let identity = written.identity();
        let outputs = written.outputs();
        if outputs.len() > "{}".len()
            && let Some(kept) = self.spiller.keep(&identity, Some(outputs.clone())).await
        {
            let referring = written.referring(&kept);
            if wire_bytes(&referring) <= limit {
                return Some(referring);
            }
        }
        self.log.emit(events::result_too_large(&identity, bytes, limit));
        Some(written.without_outputs(&outputs, limit))
    }
}

/// A message that was written before, field by field.
struct Written<'a> {
    message: &'a Outgoing,
    fields: BTreeMap<String, Box<RawValue>>,
}

impl<'a> Written<'a> {
    fn read(message: &'a Outgoing) -> Option<Self> {
        let fields = serde_json::from_slice(&message.payload).ok()?;
        Some(Self { message, fields })
    }

    fn text(&self, key: &str) -> String {
        let raw = self.fields.get(key).map_or("null", |raw| raw.get());
        serde_json::from_str(raw).unwrap_or_default()
    }

    fn identity(&self) -> Arc<Identity> {
        Arc::new(Identity {
            assignment_id: self.text("assignment_id"),
            tenant_id: self.text("tenant_id"),
            ..Identity::default()
        })
    }

    fn outputs(&self) -> Bytes {
        let raw = self.fields.get("outputs").map_or("{}", |raw| raw.get());
        Bytes::copy_from_slice(raw.as_bytes())
    }

    fn set(&mut self, key: &str, value: &impl Serialize) {
        let raw = to_raw_value(value).expect("what is written here has string keys");
        self.fields.insert(key.to_owned(), raw);
    }

    fn written(&self) -> Outgoing {
        let payload = serde_json::to_vec(&self.fields).expect("fields are JSON already");
        Outgoing {
            payload: payload.into(),
            ..self.message.clone()
        }
    }

    /// A result whose outputs are kept elsewhere.
    fn referring(&self, kept: &OutputRef) -> Outgoing {
        let mut referring = Self {
            message: self.message,
            fields: self.fields.clone(),
        };
        referring.set("outputs", &Map::new());
        referring.set("output_ref", kept);
        referring.written()
    }

    /// Row 15's error; the status of a job that had failed anyway stands.
    fn without_outputs(mut self, outputs: &[u8], limit: usize) -> Outgoing {
        let dropped = too_large(outputs, limit);
        self.set("outputs", &Map::new());
        if self.text("status") == "success" {
            self.set("status", &Status::Error);
            for (key, value) in failure_fields(&dropped) {
                self.set(&key, &value);
            }
        } else {
            self.shorten_error(&dropped);
        }
        self.written()
    }

    /// Leaves out what may be long, and tells what was left out of the outputs.
    fn shorten_error(&mut self, dropped: &Failure) {
        let raw = self.fields.get("error").map_or("{}", |raw| raw.get());
        let mut error: Map<String, Value> = serde_json::from_str(raw).unwrap_or_default();
        let mut details = match error.remove("details") {
            Some(Value::Object(details)) => details,
            _ => Map::new(),
        };
        details.retain(|key, value| key == "status_code" || !value_is_long(value));
        details.extend(dropped.details.clone());
        error.insert("details".to_owned(), details.into());
        if let Some(Value::String(message)) = error.get_mut("message") {
            truncate(message);
        }
        self.set("error", &error);
        let mut message = self.text("error_message");
        truncate(&mut message);
        self.set("error_message", &message);
    }

    /// A dead letter without the original bytes; their hash and size stay.
    fn without_original(mut self) -> Outgoing {
        self.fields.remove("original_payload");
        self.fields.remove("original_payload_base64");
        self.written()
    }
}

fn truncate(text: &mut String) {
    text.truncate(text.floor_char_boundary(LONGEST_TEXT));
}

#[cfg(test)]
mod tests;
