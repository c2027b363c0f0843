//! A line of one of our events, written straight from its fields: the same bytes as [`super::values_line`] makes, which reads
//! and sorts a tree of JSON first.
//!
//! Neighbours: [`caf_actors::events`] tells a line's fields one by one. Whatever is rare (a name that has to be masked or escaped, a
//! line that is too long) is left to the other way. Pure.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use caf_actors::events::CONTEXT;
use caf_actors::mask::{REDACTED, is_sensitive, mask, mask_text};
use caf_protocol::secret::scrub::Scrubber;
use foldhash::fast::RandomState;
use serde_json::Value;
use slog::{KV as _, Key, OwnedKVList, Record, SerdeValue, Serializer};

use super::{MAX_LINE_BYTES, MAX_STRING_BYTES, TOP_KEYS, bound, bounded, cut, escaped, steering_lead};
use crate::telemetry::secrets::hide_in;

/// Longest name that is told apart by [`kind_of`], in bytes: ours are shorter.
const MAX_NAME_BYTES: usize = 64;
/// Most names that are known: ours are some hundreds.
const MAX_NAMES: usize = 1_024;
/// A usual line takes less: it is written without growing.
const USUAL_BYTES: usize = 768;

/// One line with its line feed; nothing when it has to be written the other way.
pub(super) fn line(
    record: &Record<'_>,
    values: &OwnedKVList,
    (level, message): (&'static str, &str),
    (worker_id, timestamp): (&str, &str),
    scrubber: &Scrubber,
) -> Option<Vec<u8>> {
    let mut fields = Fields {
        scrubber,
        bytes: Vec::with_capacity(USUAL_BYTES),
        top: Default::default(),
        context: Vec::with_capacity(16),
        place: Place::Top,
        is_rare: false,
    };
    let told = values
        .serialize(record, &mut fields)
        .and_then(|()| record.kv().serialize(record, &mut fields));
    if told.is_err() || fields.is_rare {
        return None;
    }
    fields.move_lonely_step();
    fields.put_worker(worker_id);
    fields.sort()?;
    let mut line = Vec::with_capacity(fields.bytes.len() + USUAL_BYTES / 2);
    line.extend_from_slice(b"{\"timestamp\":\"");
    line.extend_from_slice(timestamp.as_bytes());
    line.extend_from_slice(b"\",\"level\":\"");
    line.extend_from_slice(level.as_bytes());
    line.extend_from_slice(b"\",\"component\":\"worker\",\"message\":");
    write_text(&mut line, &bounded(message));
    for (key, value) in TOP_KEYS.iter().zip(&fields.top) {
        if let Some(value) = value {
            line.push(b',');
            write_field(&mut line, key, &fields.bytes[value.clone()]);
        }
    }
    line.extend_from_slice(b",\"context\":{");
    for (at, said) in fields.context.iter().enumerate() {
        if at > 0 {
            line.push(b',');
        }
        write_field(&mut line, said.key.as_str(), &fields.bytes[said.value.clone()]);
    }
    line.extend_from_slice(b"}}");
    if line.len() > MAX_LINE_BYTES {
        return None;
    }
    line.push(b'\n');
    Some(line)
}

/// Takes fields in, each as it will be written.
struct Fields<'a> {
    scrubber: &'a Scrubber,
    /// Values, one after the other.
    bytes: Vec<u8>,
    /// Where those of [`TOP_KEYS`] stand.
    top: [Option<Range<usize>>; TOP_KEYS.len()],
    context: Vec<Said>,
    place: Place,
    /// It has to be written the other way.
    is_rare: bool,
}

/// A field of the context.
struct Said {
    key: Key,
    place: Place,
    value: Range<usize>,
}

/// Where a field was said. Of two with one name in the context, that counts which was said there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Context,
    Top,
}

impl Fields<'_> {
    /// Writes a value; `write` returns false for none.
    fn put(&mut self, key: Key, write: impl FnOnce(&mut Vec<u8>, &Scrubber) -> bool) -> slog::Result {
        let at_top = match self.place {
            Place::Top => TOP_KEYS.iter().position(|top| key == *top),
            Place::Context => None,
        };
        let start = self.bytes.len();
        // Nothing is no value at the top, and one elsewhere.
        let is_some = write(&mut self.bytes, self.scrubber);
        let value = start..self.bytes.len();
        let place = self.place;
        match at_top {
            Some(at) => self.top[at] = is_some.then_some(value),
            None => self.context.push(Said { key, place, value }),
        }
        Ok(())
    }

    /// The log checker wants run, flow and tenant beside a step.
    fn move_lonely_step(&mut self) {
        let [tenant, run, flow, step, ..] = &mut self.top;
        let is_lonely = [tenant, run, flow].iter().any(|id| id.is_none());
        if is_lonely && let Some(value) = step.take() {
            self.context.push(Said {
                key: TOP_KEYS[3].into(),
                place: Place::Top,
                value,
            });
        }
    }

    fn put_worker(&mut self, worker_id: &str) {
        let key: Key = "worker_id".into();
        if self.context.iter().all(|said| said.key != key) {
            let start = self.bytes.len();
            write_bounded(&mut self.bytes, worker_id);
            let value = start..self.bytes.len();
            let place = Place::Top;
            self.context.push(Said { key, place, value });
        }
    }

    /// Brings the context into the order of its names, each once, and hides what is under sensitive ones; nothing when a name is
    /// not written as it is.
    fn sort(&mut self) -> Option<()> {
        // What was said later counts; the sort keeps the order of equals.
        self.context.reverse();
        let rank = |said: &Said| said.place;
        self.context
            .sort_by(|one, other| (one.key.as_str(), rank(one)).cmp(&(other.key.as_str(), rank(other))));
        self.context.dedup_by(|later, first| later.key == first.key);
        for said in &mut self.context {
            match kind_of(said.key.as_str()) {
                Name::Plain => {}
                Name::Sensitive => {
                    let start = self.bytes.len();
                    write_text(&mut self.bytes, REDACTED);
                    said.value = start..self.bytes.len();
                }
                Name::Rare => return None,
            }
        }
        Some(())
    }
}

impl Serializer for Fields<'_> {
    /// Events say nothing that way.
    fn emit_arguments(&mut self, _: Key, _: &fmt::Arguments<'_>) -> slog::Result {
        self.is_rare = true;
        Ok(())
    }

    fn emit_bool(&mut self, key: Key, flag: bool) -> slog::Result {
        self.put(key, |bytes, _| {
            bytes.extend_from_slice(if flag { b"true" } else { b"false" });
            true
        })
    }

    fn emit_u64(&mut self, key: Key, number: u64) -> slog::Result {
        self.put(key, |bytes, _| serde_json::to_writer(bytes, &number).is_ok())
    }

    fn emit_str(&mut self, key: Key, text: &str) -> slog::Result {
        self.put(key, |bytes, scrubber| {
            write_bounded(bytes, &scrubber.text(text));
            !text.is_empty()
        })
    }

    fn emit_serde(&mut self, key: Key, value: &dyn SerdeValue) -> slog::Result {
        if self.place == Place::Top && key == CONTEXT {
            self.place = Place::Context;
            let told = value.serialize_fallback(key, self);
            self.place = Place::Top;
            return told;
        }
        let Ok(mut value) = serde_json::to_value(value.as_serde()) else {
            self.is_rare = true;
            return Ok(());
        };
        hide_in(self.scrubber, &mut value);
        self.put(key, |bytes, _| {
            let is_some = !(value.is_null() || value.as_str().is_some_and(str::is_empty));
            mask(&mut value);
            bound(&mut value, MAX_STRING_BYTES);
            bytes.extend_from_slice(escaped(value.to_string()).as_bytes());
            is_some
        })
    }
}

/// How a name of the context is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    /// As it is.
    Plain,
    /// As it is, and nothing of its value.
    Sensitive,
    /// Not as it is.
    Rare,
}

/// Judging a name costs more than all the rest of its field, and there are few.
fn kind_of(name: &str) -> Name {
    thread_local! {
        static KNOWN: RefCell<HashMap<Box<str>, Name, RandomState>> = RefCell::default();
    }
    if name.len() > MAX_NAME_BYTES {
        return Name::Rare;
    }
    KNOWN.with_borrow_mut(|known| {
        if let Some(kind) = known.get(name) {
            return *kind;
        }
        let is_plain = name.bytes().all(is_written_as_it_is) && mask_text(name) == name;
        let kind = match is_plain {
            false => Name::Rare,
            true if is_sensitive(name) => Name::Sensitive,
            true => Name::Plain,
        };
        if known.len() < MAX_NAMES {
            known.insert(name.into(), kind);
        }
        kind
    })
}

/// Writes a text, masked before it is cut.
fn write_bounded(bytes: &mut Vec<u8>, text: &str) {
    write_text(bytes, &cut(&mask_text(text), MAX_STRING_BYTES));
}

fn write_field(line: &mut Vec<u8>, key: &str, value: &[u8]) {
    line.push(b'"');
    line.extend_from_slice(key.as_bytes());
    line.extend_from_slice(b"\":");
    line.extend_from_slice(value);
}

fn write_text(bytes: &mut Vec<u8>, text: &str) {
    if text.bytes().all(is_written_as_it_is) {
        bytes.push(b'"');
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(b'"');
    } else {
        bytes.extend_from_slice(escaped(Value::from(text).to_string()).as_bytes());
    }
}

fn is_written_as_it_is(byte: u8) -> bool {
    byte >= b' ' && !matches!(byte, b'"' | b'\\') && !steering_lead(byte)
}
