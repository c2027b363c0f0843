//! What an event says, by name: few, each once, in the order in which they were said.
//!
//! Neighbours: an [`super::Event`] has two of them, for the top of a line and for its context; [`crate::journal`] reads them.
//! A list and not a map: most events are never written, and their names are literals. Short texts are kept in place, so that
//! an event that nobody writes costs next to no memory.

use std::borrow::Cow;

use serde::ser::{Serialize, Serializer};
use serde_json::{Map, Value};
use slog::{Key, Serializer as Emitter};
use smol_str::SmolStr;

/// Names with their values.
#[derive(Debug, Clone, Default)]
pub(super) struct Fields(Vec<(Cow<'static, str>, Word)>);

/// One value of an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Word {
    /// A number.
    Number(u64),
    /// Yes or no.
    Flag(bool),
    /// A text.
    Text(SmolStr),
    /// Anything else.
    Other(Box<Value>),
}

impl Fields {
    /// Says this, in place of what was said under the same name.
    pub(super) fn set(&mut self, name: Cow<'static, str>, value: Word) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name, value)),
        }
    }

    /// Says all of these.
    pub(super) fn extend(&mut self, others: Self) {
        for (name, value) in others.0 {
            self.set(name, value);
        }
    }

    /// What was said under this name.
    pub(super) fn get(&self, name: &str) -> Option<&Word> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value)
    }

    /// Says all of it to a logger, value by value.
    pub(super) fn emit(&self, emitter: &mut dyn Emitter) -> slog::Result {
        let key = |name: &Cow<'static, str>| match name {
            Cow::Borrowed(name) => Key::from(*name),
            Cow::Owned(name) => Key::from(name.clone()),
        };
        let mut said = self.0.iter();
        said.try_for_each(|(name, value)| value.emit(key(name), emitter))
    }

    /// All that was said.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Cow<'static, str>, &Word)> {
        self.0.iter().map(|(name, value)| (name, value))
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl Word {
    fn emit(&self, key: Key, emitter: &mut dyn Emitter) -> slog::Result {
        match self {
            Self::Number(number) => emitter.emit_u64(key, *number),
            Self::Flag(flag) => emitter.emit_bool(key, *flag),
            Self::Text(text) => emitter.emit_str(key, text),
            Self::Other(value) => emitter.emit_serde(key, &slog::Serde(Value::clone(value))),
        }
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Other(value) => value.as_str(),
            Self::Number(_) | Self::Flag(_) => None,
        }
    }

    /// The number, if it is a whole one that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Other(value) => value.as_u64(),
            Self::Text(_) | Self::Flag(_) => None,
        }
    }

    /// Whether it says yes.
    pub fn is_true(&self) -> bool {
        *self == Self::Flag(true)
    }
}

impl Serialize for Word {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => serializer.serialize_u64(*number),
            Self::Flag(flag) => serializer.serialize_bool(*flag),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Other(value) => value.serialize(serializer),
        }
    }
}

// ---- What can be said ----

impl From<&str> for Word {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Word {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<&String> for Word {
    fn from(text: &String) -> Self {
        Self::Text(text.into())
    }
}

impl From<Cow<'_, str>> for Word {
    fn from(text: Cow<'_, str>) -> Self {
        Self::Text(text.into())
    }
}

impl From<bool> for Word {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<u64> for Word {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Word {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u8> for Word {
    fn from(number: u8) -> Self {
        Self::Number(number.into())
    }
}

impl From<u16> for Word {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Word {
    fn from(number: usize) -> Self {
        Self::Number(number as u64)
    }
}

impl From<i32> for Word {
    fn from(number: i32) -> Self {
        Self::from(Value::from(number))
    }
}

impl From<i64> for Word {
    fn from(number: i64) -> Self {
        Self::from(Value::from(number))
    }
}

impl From<f64> for Word {
    fn from(number: f64) -> Self {
        Self::from(Value::from(number))
    }
}

impl From<Map<String, Value>> for Word {
    fn from(map: Map<String, Value>) -> Self {
        Self::Other(Box::new(map.into()))
    }
}

impl<T: Into<Value>> From<Vec<T>> for Word {
    fn from(list: Vec<T>) -> Self {
        Self::Other(Box::new(list.into()))
    }
}

impl<T: Into<Value> + Clone> From<&[T]> for Word {
    fn from(list: &[T]) -> Self {
        Self::Other(Box::new(list.into()))
    }
}

impl<T: Into<Value>> From<Option<T>> for Word {
    fn from(value: Option<T>) -> Self {
        Self::from(value.map_or(Value::Null, Into::into))
    }
}

impl From<Value> for Word {
    fn from(value: Value) -> Self {
        match value {
            Value::Bool(flag) => Self::Flag(flag),
            Value::String(text) => Self::from(text),
            Value::Number(number) => match number.as_u64() {
                Some(number) => Self::Number(number),
                None => Self::Other(Box::new(number.into())),
            },
            other => Self::Other(Box::new(other)),
        }
    }
}
