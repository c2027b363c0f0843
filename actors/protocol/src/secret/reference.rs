//! `{"$secret": "name"}`: how a job names a secret, and where it may.
//!
//! Neighbours: the pipeline asks [`misplaced`] of every job before its block sees the inputs; blocks read the references
//! of their own fields with [`SecretRef::read`]. A reference is an object: a text that looks like one is a text, unless
//! the field is read as JSON. Values are [`super::vault`]'s business.

use serde_json::{Map, Value};

use crate::error_code::ErrorCode;
use crate::outcome::Failure;

/// The key that makes an object a reference.
pub const KEY: &str = "$secret";
/// Text before the value, such as `Bearer `.
const PREFIX_KEY: &str = "prefix";
/// Longest prefix in bytes: a scheme of authorization, no document.
const MAX_PREFIX_BYTES: usize = 256;
/// Longest name in bytes.
const MAX_NAME_BYTES: usize = 64;
/// How deep it is looked for references. JSON that a message may hold is never deeper (`json::parse`).
const MAX_DEPTH: usize = 256;

/// A reference of good form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRef {
    /// Which secret.
    pub name: String,
    /// What stands before its value.
    pub prefix: String,
}

impl SecretRef {
    /// Reads a value of the input `field`; nothing when it is no reference.
    ///
    /// # Errors
    /// INVALID_INPUT for one of bad form. Never repeats it: somebody may have put the value where the name belongs.
    pub fn read(value: &Value, field: &str) -> Result<Option<Self>, Failure> {
        let Some(object) = value.as_object().filter(|object| object.contains_key(KEY)) else {
            return Ok(None);
        };
        let refuse = |rule: &str| Failure::of_field(ErrorCode::InvalidInput, field, rule);
        if object.keys().any(|key| key != KEY && key != PREFIX_KEY) {
            return Err(refuse(
                "a reference to a secret must hold \"$secret\", at most \"prefix\" beside it, and nothing else",
            ));
        }
        let name = object[KEY].as_str().filter(|name| is_name(name)).ok_or_else(|| {
            refuse("\"$secret\" must be a name of 1 to 64 letters, digits, '_', '-' or '.'")
        })?;
        let prefix = match object.get(PREFIX_KEY) {
            None => "",
            Some(prefix) => prefix
                .as_str()
                .filter(|prefix| prefix.len() <= MAX_PREFIX_BYTES)
                .ok_or_else(|| refuse("\"prefix\" must be a text of at most 256 bytes"))?,
        };
        Ok(Some(Self {
            name: name.to_owned(),
            prefix: prefix.to_owned(),
        }))
    }
}

/// Whether a secret can have this name.
pub fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}

/// Whether there is a reference, of good form or bad, anywhere in a value.
pub fn is_in(value: &Value) -> bool {
    // A list of its own, not the stack: depth is the caller's.
    let mut left = vec![(value, 0)];
    while let Some((value, depth)) = left.pop() {
        match value {
            Value::Object(fields) if fields.contains_key(KEY) => return true,
            // Nobody resolves what is deeper; to let it through would be a way past this check.
            Value::Object(_) | Value::Array(_) if depth == MAX_DEPTH => return true,
            Value::Object(fields) => left.extend(fields.values().map(|inner| (inner, depth + 1))),
            Value::Array(items) => left.extend(items.iter().map(|inner| (inner, depth + 1))),
            _ => {}
        }
    }
    false
}

/// The failure of fields that name a secret although they are none of those that may.
///
/// # Errors
/// PERMISSION_DENIED, for the first such field.
pub fn misplaced(fields: &Map<String, Value>, may: &[&str]) -> Result<(), Failure> {
    if fields.contains_key(KEY) {
        return Err(not_here(KEY));
    }
    let found = fields
        .iter()
        .find(|(name, value)| !may.contains(&name.as_str()) && is_in(value));
    found.map_or(Ok(()), |(name, _)| Err(not_here(name)))
}

/// A reference where none is resolved.
pub fn not_here(field: &str) -> Failure {
    Failure::of_field(ErrorCode::PermissionDenied, field, "must not name a secret")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Option<SecretRef>, ErrorCode> {
        SecretRef::read(&value, "headers").map_err(|failure| {
            assert!(!failure.message.contains("hunter"), "{failure:?}");
            failure.code
        })
    }

    #[test]
    fn a_reference_is_an_object_with_the_key_and_a_name() {
        let reference = |name: &str, prefix: &str| {
            Ok(Some(SecretRef {
                name: name.into(),
                prefix: prefix.into(),
            }))
        };
        assert_eq!(read(json!({"$secret": "a.b-C_1"})), reference("a.b-C_1", ""));
        assert_eq!(
            read(json!({"$secret": "a", "prefix": "Bearer "})),
            reference("a", "Bearer ")
        );
        for none in [
            json!("{\"$secret\": \"a\"}"),
            json!({"secret": "a"}),
            json!(["$secret"]),
        ] {
            assert_eq!(read(none), Ok(None));
        }
        for bad in [
            json!({"$secret": 1}),
            json!({"$secret": null}),
            json!({"$secret": ""}),
            json!({"$secret": "hunter 2"}),
            json!({"$secret": "x".repeat(65)}),
            json!({"$secret": "a", "suffix": "hunter"}),
            json!({"$secret": "a", "prefix": 1}),
            json!({"$secret": "a", "prefix": "x".repeat(257)}),
        ] {
            assert_eq!(read(bad), Err(ErrorCode::InvalidInput));
        }
    }

    #[test]
    fn a_reference_anywhere_but_in_its_fields_is_refused_at_any_depth() {
        let deep = (0..120).fold(json!({"$secret": 1}), |inner, _| json!([{"a": inner}]));
        let beyond = (0..300).fold(json!("x"), |inner, _| json!([inner]));
        for (inputs, field) in [
            (json!({"$secret": "a"}), Some("$secret")),
            (json!({"x": {"$secret": {"a": 1}}}), Some("x")),
            (json!({"x": deep}), Some("x")),
            (json!({"x": beyond}), Some("x")),
            (
                json!({"headers": {"a": {"$secret": "a"}}, "x": [1, "$secret"]}),
                None,
            ),
        ] {
            let found = misplaced(inputs.as_object().unwrap(), &["headers"]);
            let found = found.map_err(|failure| (failure.code, failure.details["field"].clone()));
            let expected = field.map_or(Ok(()), |field| Err((ErrorCode::PermissionDenied, json!(field))));
            assert_eq!(found, expected);
        }
    }
}
