//! Takes the values of secrets out of texts, whatever common way they are written in.
//!
//! Neighbours: blocks scrub what a job that used a secret returns; the log scrubs every line of every value that the node
//! knows. [`forms`] says how a value may be written, [`unescape`] sees through escapes. Pure. A net for accidents, no
//! guard: whoever is given a value on purpose can write it in a way that nobody knows.

mod forms;
mod unescape;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use serde_json::{Map, Value};

use self::forms::Form;
use self::unescape::Unescaped;
use super::REDACTED;
use crate::block::Outputs;
use crate::outcome::Failure;

/// Shorter values stand in ordinary words: they are left alone here, and no secret may be so short.
pub const MIN_BYTES: usize = 6;
/// How many times a text is read as an escaped one: a value in JSON, in a JSON text, in a form.
const MAX_LAYERS: usize = 3;

/// Finds some values. Cheap to clone. The default one finds nothing and costs nothing.
#[derive(Clone, Default)]
pub struct Scrubber(Option<Arc<Finder>>);

struct Finder {
    automaton: AhoCorasick,
    /// By pattern.
    forms: Vec<Form>,
}

impl Scrubber {
    /// Finds these, exactly or in any case, and their encodings; those of less than [`MIN_BYTES`] bytes are left out.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut forms: Vec<Form> = values.into_iter().flat_map(forms::of).collect();
        forms.sort_unstable();
        forms.dedup_by(|later, earlier| later.bytes == earlier.bytes);
        if forms.is_empty() {
            return Self::default();
        }
        let automaton = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            // The compact one: secrets may be long, and there may be many.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(forms.iter().map(|form| &form.bytes))
            .expect("fails beyond two thousand million bytes only; settings bound secrets far below");
        Self(Some(Arc::new(Finder { automaton, forms })))
    }

    /// Whether there is nothing to find.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The text without the values.
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let found = self.found(text.as_bytes());
        if found.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut clean = String::with_capacity(text.len());
        let mut from = 0;
        for range in found {
            // Values are text, so a border within a character is that of an escape somebody broke off.
            let start = text.floor_char_boundary(range.start).max(from);
            clean.push_str(&text[from..start]);
            clean.push_str(REDACTED);
            from = text.ceil_char_boundary(range.end).max(start);
        }
        clean.push_str(&text[from..]);
        Cow::Owned(clean)
    }

    /// The bytes without the values.
    pub fn bytes(&self, bytes: Vec<u8>) -> Vec<u8> {
        let found = self.found(&bytes);
        if found.is_empty() {
            return bytes;
        }
        let mut clean = Vec::with_capacity(bytes.len());
        let mut from = 0;
        for range in found {
            clean.extend_from_slice(&bytes[from..range.start]);
            clean.extend_from_slice(REDACTED.as_bytes());
            from = range.end;
        }
        clean.extend_from_slice(&bytes[from..]);
        clean
    }

    /// Takes the values out of every text, number and key of a value.
    pub fn value(&self, value: &mut Value) {
        if self.is_empty() {
            return;
        }
        match value {
            Value::String(text) => {
                if let Cow::Owned(clean) = self.text(text) {
                    *text = clean;
                }
            }
            Value::Number(number) => {
                if let Cow::Owned(clean) = self.text(&number.to_string()) {
                    *value = Value::String(clean);
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.value(item)),
            Value::Object(fields) => self.map(fields),
            Value::Null | Value::Bool(_) => {}
        }
    }

    /// Takes the values out of an object, keys included.
    pub fn map(&self, fields: &mut Map<String, Value>) {
        if self.is_empty() {
            return;
        }
        fields.values_mut().for_each(|field| self.value(field));
        let telling: Vec<(String, String)> = fields
            .keys()
            .filter_map(|key| match self.text(key) {
                Cow::Owned(clean) => Some((key.clone(), clean)),
                Cow::Borrowed(_) => None,
            })
            .collect();
        for (key, clean) in telling {
            let value = fields.remove(&key).unwrap_or_default();
            let free = (2..).map(|number| format!("{clean}_{number}"));
            let mut names = std::iter::once(clean.clone()).chain(free);
            let name = names.find(|name| !fields.contains_key(name)).unwrap_or_default();
            fields.insert(name, value);
        }
    }

    /// What an attempt returned, without the values.
    ///
    /// # Errors
    /// The failure that was given, without the values.
    pub fn outcome(&self, outcome: Result<Outputs, Failure>) -> Result<Outputs, Failure> {
        if self.is_empty() {
            return outcome;
        }
        match outcome {
            Ok(mut outputs) => {
                self.map(&mut outputs);
                Ok(outputs)
            }
            Err(mut failure) => {
                failure.message = self.text(&failure.message).into_owned();
                failure.internal = failure.internal.map(|text| self.text(&text).into());
                self.map(&mut failure.details);
                self.map(&mut failure.outputs);
                Err(failure)
            }
        }
    }

    /// Where the values are, in order; ranges that touch are one.
    fn found(&self, text: &[u8]) -> Vec<Range<usize>> {
        let Some(finder) = &self.0 else {
            return Vec::new();
        };
        let mut found = finder.found(text);
        // Which layers lie between what is looked at and the text itself.
        let mut layers: Vec<Unescaped> = Vec::new();
        while layers.len() < MAX_LAYERS {
            let top = layers.last().map_or(text, |layer| &layer.bytes);
            let Some(layer) = Unescaped::of(top) else { break };
            let inner = finder.found(&layer.bytes);
            layers.push(layer);
            let outward = |range| {
                layers
                    .iter()
                    .rev()
                    .fold(range, |range, layer| layer.outside(range))
            };
            found.extend(inner.into_iter().map(outward));
        }
        merged(found)
    }
}

impl Finder {
    fn found(&self, text: &[u8]) -> Vec<Range<usize>> {
        // Looking for any is much quicker than for all, and there is seldom one.
        if !self.automaton.is_match(text) {
            return Vec::new();
        }
        let matches = self.automaton.find_overlapping_iter(text);
        matches
            .map(|found| self.forms[found.pattern().as_usize()].whole(text, found.range()))
            .collect()
    }
}

fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

impl fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let forms = self.0.as_ref().map_or(0, |finder| finder.forms.len());
        write!(f, "Scrubber of {forms} forms")
    }
}

#[cfg(test)]
mod tests;
