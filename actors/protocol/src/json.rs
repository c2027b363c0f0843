//! JSON as an assignment may bring it: parsed once, duplicate keys noticed, nesting bounded.
//!
//! Neighbours: [`crate::assignment`] calls [`parse`] on payloads; `caf-blocks` on string forms of inputs.

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Longest path that is remembered, in bytes: it travels in answers.
const MAX_PATH_BYTES: usize = 256;
/// How many duplicate keys are remembered; one is enough to refuse, a few help to mend.
const MAX_DUPLICATES: usize = 8;
/// Keys on the way to the ids that an answer is sent to: a flood of other duplicates must not hide these.
const ALWAYS_REMEMBERED: [&str; 5] = ["data", "decision", "metadata", "assignment_id", "tenant_id"];
/// Levels of the deepest of those ids, `data.decision.metadata.tenant_id`; it bounds how many such paths there are.
const ALWAYS_REMEMBERED_LEVELS: usize = 4;

/// A parsed document. For a duplicate key the last value stands, as in most decoders.
#[derive(Debug)]
pub struct Document {
    /// The value.
    pub value: Value,
    /// Paths such as `job.payload.url` of keys that occur twice in one object, with "differs" marked.
    pub duplicates: Vec<DuplicateKey>,
}

/// A key that one object holds twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DuplicateKey {
    /// Dotted path of the key.
    pub path: String,
    /// Whether the two values differ.
    pub differs: bool,
}

impl DuplicateKey {
    /// Whether the value at `path` is this key's, or part of it.
    pub(crate) fn is_at_or_above(&self, path: &str) -> bool {
        path.strip_prefix(self.path.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

/// Parses one JSON document. Nesting deeper than 127 levels is an error, as is anything after the value.
///
/// # Errors
/// The parser's own sentence with line and column; it never quotes the input.
pub fn parse(bytes: &[u8]) -> Result<Document, serde_json::Error> {
    let mut duplicates = Vec::new();
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let value = Node {
        path: &Path::Root,
        duplicates: &mut duplicates,
    }
    .deserialize(&mut parser)?;
    parser.end()?;
    Ok(Document { value, duplicates })
}

enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Path::Root, key) => write!(f, "{key}"),
            Self::Key(parent, key) => write!(f, "{parent}.{key}"),
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

impl Path<'_> {
    fn is_always_remembered(&self) -> bool {
        let (mut here, mut levels) = (self, 0);
        while let Self::Key(parent, key) = here {
            levels += 1;
            if levels > ALWAYS_REMEMBERED_LEVELS || !ALWAYS_REMEMBERED.contains(key) {
                return false;
            }
            here = parent;
        }
        matches!(here, Self::Root)
    }
}

struct Node<'a> {
    path: &'a Path<'a>,
    duplicates: &'a mut Vec<DuplicateKey>,
}

impl Node<'_> {
    fn remember(&mut self, path: &Path<'_>, differs: bool) {
        if self.duplicates.len() < MAX_DUPLICATES || path.is_always_remembered() {
            let mut path = path.to_string();
            path.truncate(path.floor_char_boundary(MAX_PATH_BYTES));
            let duplicate = DuplicateKey { path, differs };
            if !self.duplicates.contains(&duplicate) {
                self.duplicates.push(duplicate);
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = Path::Item(self.path, items.len());
            match seq.next_element_seed(Node {
                path: &path,
                duplicates: self.duplicates,
            })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = Path::Key(self.path, &key);
            let value = map.next_value_seed(Node {
                path: &path,
                duplicates: self.duplicates,
            })?;
            if let Some(earlier) = object.get(&key) {
                self.remember(&path, *earlier != value);
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// A whole non-negative number from a JSON number (fractions are cut) or its string form; nothing for anything else,
/// negative numbers included. Huge numbers become `u64::MAX`.
pub fn lenient_u64(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64().or_else(|| number.as_f64().and_then(whole)),
        Value::String(text) => {
            let text = text.trim();
            text.parse().ok().or_else(|| text.parse().ok().and_then(whole))
        }
        _ => None,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "range is checked, `as` saturates"
)]
fn whole(number: f64) -> Option<u64> {
    (number.is_finite() && number >= 0.0).then_some(number as u64)
}

/// Parses a JSON object from text, for inputs given in their string form.
///
/// # Errors
/// When the text is not one JSON object, or holds a key twice.
pub fn object_from_str(text: &str) -> Result<Map<String, Value>, serde_json::Error> {
    let document = parse(text.as_bytes())?;
    if let Some(duplicate) = document.duplicates.first() {
        return Err(serde_json::Error::custom(format!(
            "key {} occurs twice",
            duplicate.path
        )));
    }
    match document.value {
        Value::Object(map) => Ok(map),
        _ => Err(serde_json::Error::custom("not an object")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn duplicate_keys_are_named_by_path() {
        let document = parse(br#"{"a":1,"b":[{"c":1,"c":1}],"a":2}"#).expect("parses");
        let same = DuplicateKey {
            path: "b[0].c".to_owned(),
            differs: false,
        };
        let other = DuplicateKey {
            path: "a".to_owned(),
            differs: true,
        };
        assert_eq!(document.duplicates, [same, other]);
        assert_eq!(document.value, json!({"a": 2, "b": [{"c": 1}]}));
    }

    #[test]
    fn a_flood_of_duplicates_is_bounded_and_hides_no_id() {
        let flood: String = (0..100_000).map(|n| format!("\"k{n}\":1,\"k{n}\":2,")).collect();
        let ids = "\"tenant_id\":\"a\",\"tenant_id\":\"b\",".repeat(1000);
        let document = parse(format!("{{{flood}{ids}\"x\":1}}").as_bytes()).expect("parses");
        assert_eq!(document.duplicates.len(), MAX_DUPLICATES + 1);
        assert_eq!(document.duplicates[MAX_DUPLICATES].path, "tenant_id");
    }

    #[test]
    fn the_path_of_a_duplicate_is_bounded_because_it_travels() {
        let key = "ü".repeat(100_000);
        let document = parse(format!("{{\"{key}\":1,\"{key}\":2}}").as_bytes()).expect("parses");
        let path = &document.duplicates[0].path;
        assert!(
            path.len() <= MAX_PATH_BYTES && key.starts_with(path.as_str()),
            "{}",
            path.len()
        );
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        let deep = "[".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err());
        let fine = format!("{}1{}", "[".repeat(100), "]".repeat(100));
        assert!(parse(fine.as_bytes()).is_ok());
    }

    #[test]
    fn whole_numbers_are_read_leniently() {
        for (value, expected) in [
            (json!(5), Some(5)),
            (json!("5000"), Some(5000)),
            (json!(" 7 "), Some(7)),
            (json!(1.9), Some(1)),
            (json!("1.9"), Some(1)),
            (json!(1e300), Some(u64::MAX)),
            (json!(-1), None),
            (json!("-1"), None),
            (json!("soon"), None),
            (json!("NaN"), None),
            (json!(true), None),
            (json!(null), None),
            (json!([1]), None),
        ] {
            assert_eq!(lenient_u64(&value), expected, "{value}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_serde_json_writes_reads_back_the_same(text in ".{0,40}", number: i64, float in -1e12f64..1e12) {
            let value = json!({ "t": text, "n": number, "f": float, "l": [null, true, text] });
            let read = parse(value.to_string().as_bytes()).expect("own output parses");
            proptest::prop_assert_eq!(read.value, value);
            proptest::prop_assert!(read.duplicates.is_empty());
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
