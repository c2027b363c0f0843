//! Values that nobody may read, and how jobs name them.
//!
//! Neighbours: settings hold a [`Secret`] where a value is one; [`reference`](mod@reference) reads `{"$secret": "name"}` in inputs, [`vault`]
//! says who gets which value, [`scrub`] takes values out of what is shown. No I/O: whoever reads files gives the values in.

pub mod reference;
pub mod scrub;
pub mod vault;

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// What stands in place of a value that nobody may read.
pub const REDACTED: &str = "[REDACTED]";

/// A value that is never shown: not by `Debug`, `Display` or serialisation. Overwritten in memory when its last clone goes.
#[derive(Clone, Default)]
pub struct Secret(Arc<Zeroizing<String>>);

impl Secret {
    /// Takes the value in.
    pub fn new(value: impl Into<String>) -> Self {
        Self(Arc::new(Zeroizing::new(value.into())))
    }

    /// The value. Every call is a place where it could get out.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self::new(value)
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self::new(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl PartialEq for Secret {
    /// Takes as long for any two values of one length: where they differ is told to nobody.
    fn eq(&self, other: &Self) -> bool {
        let (one, other) = (self.0.as_bytes(), other.0.as_bytes());
        one.len() == other.len() && one.iter().zip(other).fold(0, |any, (a, b)| any | (a ^ b)) == 0
    }
}

impl Eq for Secret {}

impl Serialize for Secret {
    /// A mark in place of the value. Two values of one process have the same mark only when they are the same: so it is
    /// seen that a setting was changed, and not to what.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let mark = KEY.hash_one(self.expose());
        serializer.serialize_str(&format!("{REDACTED} {mark:016x}"))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl JsonSchema for Secret {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_shown_by_nothing_that_writes_it() {
        let secret = Secret::new("hunter2hunter2");
        let written = [
            format!("{secret:?} {secret} {:?}", Some(&secret)),
            serde_json::to_string(&secret).unwrap(),
        ];
        for text in written {
            assert!(text.contains(REDACTED) && !text.contains("hunter"), "{text}");
        }
        let read: Secret = serde_json::from_str("\"hunter2hunter2\"").unwrap();
        assert_eq!(read.expose(), "hunter2hunter2");
    }

    #[test]
    fn two_secrets_are_written_alike_only_when_they_are_the_same() {
        let written = |text: &str| serde_json::to_string(&Secret::new(text)).unwrap();
        assert_eq!(written("one"), written("one"));
        assert_ne!(written("one"), written("two"));
        assert_eq!(Secret::new("one"), Secret::new("one"));
        for other in ["two", "on", "onee", ""] {
            assert_ne!(Secret::new("one"), Secret::new(other));
        }
    }
}
