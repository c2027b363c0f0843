//! Reading what a job brings. Every field may be a JSON value or its string form: `true` or `"true"`, `5` or `"5"`,
//! `{"a":1}` or `"{\"a\":1}"`. JSON null counts as absent; fields that no block asks for are ignored.
//!
//! Neighbours: every block's `prepare` reads through [`Fields`]. All failures carry a validation code and name the field
//! and its rule, never its value.

use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use caf_protocol::block::Inputs;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::json;
use caf_protocol::outcome::Failure;
use serde_json::{Map, Value};

/// The inputs of one job. Each getter takes the field's name, then its aliases; the first that is present counts.
pub(crate) struct Fields<'a>(pub(crate) &'a Inputs);

impl<'a> Fields<'a> {
    /// The field as it came, with the name under which it came.
    pub(crate) fn value(&self, names: &[&'static str]) -> Option<(&'static str, &'a Value)> {
        names
            .iter()
            .filter_map(|name| self.0.get(*name).map(|value| (*name, value)))
            .find(|(_, value)| !value.is_null())
    }

    /// A string.
    pub(crate) fn text(&self, names: &[&'static str]) -> Result<Option<&'a str>, Failure> {
        match self.value(names) {
            None => Ok(None),
            Some((_, Value::String(text))) => Ok(Some(text)),
            Some((name, _)) => Err(invalid_format(name, "must be a string")),
        }
    }

    /// A string that must be there and hold something.
    pub(crate) fn required_text(&self, names: &[&'static str]) -> Result<&'a str, Failure> {
        match self.text(names)? {
            None => Err(Failure::missing(names[0])),
            Some(text) if text.trim().is_empty() => Err(invalid_input(names[0], "must not be empty")),
            Some(text) => Ok(text),
        }
    }

    /// A boolean.
    pub(crate) fn flag(&self, names: &[&'static str], default: bool) -> Result<bool, Failure> {
        match self.value(names) {
            None => Ok(default),
            Some((_, Value::Bool(flag))) => Ok(*flag),
            Some((name, Value::String(text))) => match text.trim().to_ascii_lowercase().as_str() {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(invalid_format(name, "must be true or false")),
            },
            Some((name, _)) => Err(invalid_format(name, "must be true or false")),
        }
    }

    /// A whole number within a range.
    pub(crate) fn whole(
        &self,
        names: &[&'static str],
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, Failure> {
        let Some((name, value)) = self.value(names) else {
            return Ok(None);
        };
        let parsed = match value {
            Value::String(text) => serde_json::from_str(text.trim()).unwrap_or(Value::Null),
            other => other.clone(),
        };
        let Value::Number(number) = parsed else {
            return Err(invalid_format(name, "must be a whole number"));
        };
        let whole = number.as_u64().or_else(|| number.as_f64().and_then(exact));
        match whole {
            Some(whole) if range.contains(&whole) => Ok(Some(whole)),
            _ => {
                let rule = format!("must be a whole number from {} to {}", range.start(), range.end());
                Err(invalid_input(name, &rule))
            }
        }
    }

    /// An object.
    pub(crate) fn object(&self, names: &[&'static str]) -> Result<Option<Map<String, Value>>, Failure> {
        match self.value(names) {
            None => Ok(None),
            Some((_, Value::Object(map))) => Ok(Some(map.clone())),
            Some((name, Value::String(text))) => json::object_from_str(text)
                .map(Some)
                .map_err(|_| invalid_format(name, "must be a JSON object")),
            Some((name, _)) => Err(invalid_format(name, "must be a JSON object")),
        }
    }

    /// An array.
    pub(crate) fn array(&self, names: &[&'static str]) -> Result<Option<Vec<Value>>, Failure> {
        match self.value(names) {
            None => Ok(None),
            Some((_, Value::Array(items))) => Ok(Some(items.clone())),
            Some((name, Value::String(text))) => {
                match json::parse(text.as_bytes()).map(|parsed| parsed.value) {
                    Ok(Value::Array(items)) => Ok(Some(items)),
                    _ => Err(invalid_format(name, "must be a JSON array")),
                }
            }
            Some((name, _)) => Err(invalid_format(name, "must be a JSON array")),
        }
    }
}

/// A field with a value that its rule does not allow.
pub(crate) fn invalid_input(field: &str, rule: &str) -> Failure {
    Failure::of_field(ErrorCode::InvalidInput, field, rule)
}

/// A field of the wrong type, or that cannot be parsed.
pub(crate) fn invalid_format(field: &str, rule: &str) -> Failure {
    Failure::of_field(ErrorCode::InvalidFormat, field, rule)
}

/// Decodes base64 with padding; white space, as in wrapped text, is skipped.
pub(crate) fn base64(field: &str, text: &str) -> Result<Vec<u8>, Failure> {
    let compact: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    BASE64_STANDARD
        .decode(compact)
        .map_err(|_| invalid_format(field, "must be base64"))
}

/// Encodes base64 with padding.
pub(crate) fn to_base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be whole and within the range in which f64 is exact"
)]
fn exact(number: f64) -> Option<u64> {
    (number.fract() == 0.0 && (0.0..=9.0e15).contains(&number)).then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn inputs(value: Value) -> Inputs {
        value.as_object().cloned().expect("is an object")
    }

    #[test]
    fn values_and_their_string_forms_read_the_same() {
        let native = inputs(json!({"b": true, "n": 5, "o": {"a": 1}, "l": [1, null]}));
        let strings = inputs(json!({"b": " TRUE", "n": "5", "o": "{\"a\":1}", "l": "[1,null]"}));
        for inputs in [&native, &strings] {
            let fields = Fields(inputs);
            assert_eq!(fields.flag(&["b"], false), Ok(true));
            assert_eq!(fields.whole(&["n"], 0..=9), Ok(Some(5)));
            assert_eq!(fields.object(&["o"]), Ok(native["o"].as_object().cloned()));
            assert_eq!(fields.array(&["l"]), Ok(native["l"].as_array().cloned()));
        }
    }

    #[test]
    fn null_is_absent_and_an_alias_stands_in() {
        let inputs = inputs(json!({"a": null, "b": "x"}));
        let fields = Fields(&inputs);
        assert_eq!(fields.text(&["a"]), Ok(None));
        assert_eq!(fields.required_text(&["a", "b"]), Ok("x"));
        assert_eq!(fields.flag(&["a"], true), Ok(true));
        let missing = fields.required_text(&["a", "c"]).expect_err("is missing");
        assert_eq!(missing, Failure::missing("a"));
    }

    #[test]
    fn wrong_types_are_format_errors_and_wrong_values_are_input_errors() {
        let inputs = inputs(
            json!({"t": 1, "e": " ", "b": "yes", "n": 1.5, "big": 10, "neg": -1, "s": "x", "dup": "{\"a\":1,\"a\":2}"}),
        );
        let fields = Fields(&inputs);
        let code = |failure: Failure| (failure.code, failure.details["field"].clone());
        assert_eq!(
            code(fields.text(&["t"]).expect_err("t")),
            (ErrorCode::InvalidFormat, json!("t"))
        );
        assert_eq!(
            code(fields.required_text(&["e"]).expect_err("e")),
            (ErrorCode::InvalidInput, json!("e"))
        );
        assert_eq!(
            code(fields.flag(&["b"], false).expect_err("b")),
            (ErrorCode::InvalidFormat, json!("b"))
        );
        for name in ["n", "big", "neg"] {
            assert_eq!(
                code(fields.whole(&[name], 0..=9).expect_err(name)).0,
                ErrorCode::InvalidInput,
                "{name}"
            );
        }
        assert_eq!(
            code(fields.whole(&["s"], 0..=9).expect_err("s")).0,
            ErrorCode::InvalidFormat
        );
        for name in ["s", "dup", "t"] {
            assert_eq!(
                code(fields.object(&[name]).expect_err(name)).0,
                ErrorCode::InvalidFormat,
                "{name}"
            );
            assert_eq!(
                code(fields.array(&[name]).expect_err(name)).0,
                ErrorCode::InvalidFormat,
                "{name}"
            );
        }
    }

    #[test]
    fn a_failure_names_field_and_rule_but_not_the_value() {
        let inputs = inputs(json!({"n": "hunter2"}));
        let failure = Fields(&inputs).whole(&["n"], 0..=9).expect_err("is refused");
        assert_eq!(failure.message, "n: must be a whole number");
    }
}
