//! Turns a JSON value into a parameter of the type that the prepared statement expects.
//!
//! Neighbours: [`super`] asks for one [`Param`] per parameter. All travel as text, which the server reads by the rules of
//! the type; what can be judged here is judged here, so that a mistake is told by name. Never puts a value into a query.

use std::error::Error;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut, BytesMut};
use serde_json::Value;
use tokio_postgres::types::{Format, IsNull, Kind, ToSql, Type, to_sql_checked};
use uuid::Uuid;

/// A parameter as text; nothing for NULL.
#[derive(Debug, PartialEq)]
pub(super) struct Param(Option<String>);

impl Param {
    /// Reads a value for a type. The error says what the value must be.
    pub(super) fn new(value: &Value, ty: &Type) -> Result<Self, &'static str> {
        text_of(value, ty).map(Self)
    }
}

impl ToSql for Param {
    fn to_sql(&self, _ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        Ok(match &self.0 {
            None => IsNull::Yes,
            Some(text) => {
                out.put_slice(text.as_bytes());
                IsNull::No
            }
        })
    }

    fn accepts(_ty: &Type) -> bool {
        true
    }

    fn encode_format(&self, _ty: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

fn text_of(value: &Value, ty: &Type) -> Result<Option<String>, &'static str> {
    if value.is_null() {
        return Ok(None);
    }
    let text = match ty.kind() {
        Kind::Domain(inner) => return text_of(value, inner),
        Kind::Array(item) => array(value, item)?,
        _ => scalar(value, ty)?,
    };
    if text.contains('\0') {
        return Err("text without NUL characters");
    }
    Ok(Some(text))
}

fn scalar(value: &Value, ty: &Type) -> Result<String, &'static str> {
    match *ty {
        Type::BOOL => boolean(value),
        Type::INT2 => whole(value, i16::MIN.into(), i16::MAX.into()),
        Type::INT4 => whole(value, i32::MIN.into(), i32::MAX.into()),
        Type::INT8 => whole(value, i64::MIN, i64::MAX),
        Type::OID => whole(value, 0, u32::MAX.into()),
        Type::FLOAT4 | Type::FLOAT8 | Type::NUMERIC => number(value),
        Type::JSON | Type::JSONB => Ok(json(value)),
        Type::BYTEA => bytes(value),
        Type::UUID => uuid(value),
        Type::DATE | Type::TIME | Type::TIMETZ | Type::TIMESTAMP | Type::TIMESTAMPTZ | Type::INTERVAL => {
            match value {
                Value::String(text) => Ok(text.clone()),
                _ => Err("a string with a date or time"),
            }
        }
        // Text, and types that the server reads from text: enumerations, addresses, and whatever else there is.
        _ => Ok(match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }),
    }
}

fn boolean(value: &Value) -> Result<String, &'static str> {
    match value {
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::String(text) if matches!(text.trim().to_ascii_lowercase().as_str(), "true" | "false") => {
            Ok(text.clone())
        }
        _ => Err("true or false"),
    }
}

fn whole(value: &Value, min: i64, max: i64) -> Result<String, &'static str> {
    let number = match value {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().and_then(exact)),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number
        .filter(|number| (min..=max).contains(number))
        .map(|number| number.to_string())
        .ok_or("a whole number in the range of its type")
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "checked to be whole and in the range in which f64 is exact"
)]
fn exact(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() <= 9.0e15).then_some(number as i64)
}

fn number(value: &Value) -> Result<String, &'static str> {
    match value {
        Value::Number(number) => Ok(number.to_string()),
        Value::String(text) if text.trim().parse::<f64>().is_ok() => Ok(text.trim().to_owned()),
        _ => Err("a number"),
    }
}

/// Text that is an object or an array in its string form is taken as that; any other string is a JSON string.
fn json(value: &Value) -> String {
    if let Value::String(text) = value
        && text.trim_start().starts_with(['{', '['])
        && caf_protocol::json::parse(text.as_bytes()).is_ok()
    {
        return text.clone();
    }
    value.to_string()
}

/// Base64, as binary values come out.
fn bytes(value: &Value) -> Result<String, &'static str> {
    let expected = "a string of base64";
    let text = value.as_str().ok_or(expected)?;
    let bytes = BASE64_STANDARD.decode(text).map_err(|_| expected)?;
    let mut hex = String::with_capacity(2 + bytes.len() * 2);
    hex.push_str("\\x");
    for byte in bytes {
        hex.push_str(&format!("{byte:02x}"));
    }
    Ok(hex)
}

fn uuid(value: &Value) -> Result<String, &'static str> {
    value
        .as_str()
        .and_then(|text| Uuid::parse_str(text.trim()).ok())
        .map(|uuid| uuid.to_string())
        .ok_or("a UUID")
}

/// A JSON array, or the server's own notation as a string.
fn array(value: &Value, item: &Type) -> Result<String, &'static str> {
    let items = match value {
        Value::Array(items) => items,
        Value::String(text) => return Ok(text.clone()),
        _ => return Err("an array"),
    };
    let mut parts = Vec::with_capacity(items.len());
    for value in items {
        parts.push(match value {
            // Arrays of arrays have the same type as arrays.
            Value::Array(_) if !matches!(*item, Type::JSON | Type::JSONB) => array(value, item)?,
            _ => match text_of(value, item)? {
                None => "NULL".to_owned(),
                Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
            },
        });
    }
    Ok(format!("{{{}}}", parts.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(value: Value, ty: &Type) -> Result<Option<String>, &'static str> {
        text_of(&value, ty)
    }

    #[test]
    fn values_become_the_text_of_their_type() {
        for (value, ty, expected) in [
            (json!(null), Type::INT4, None),
            (json!(true), Type::BOOL, Some("true")),
            (json!("false"), Type::BOOL, Some("false")),
            (json!(-5), Type::INT2, Some("-5")),
            (json!("7"), Type::INT8, Some("7")),
            (json!(3.0), Type::INT4, Some("3")),
            (json!(1.5), Type::FLOAT8, Some("1.5")),
            (
                json!("12345678901234567890.12"),
                Type::NUMERIC,
                Some("12345678901234567890.12"),
            ),
            (json!("x"), Type::TEXT, Some("x")),
            (json!(5), Type::TEXT, Some("5")),
            (json!({"a": 1}), Type::TEXT, Some("{\"a\":1}")),
            (json!({"a": 1}), Type::JSONB, Some("{\"a\":1}")),
            (json!("{\"a\":1}"), Type::JSON, Some("{\"a\":1}")),
            (json!("{broken"), Type::JSON, Some("\"{broken\"")),
            (json!("x"), Type::JSON, Some("\"x\"")),
            (json!("/wA="), Type::BYTEA, Some("\\xff00")),
            (
                json!("9F3C1A7BE24D40C88A61D2F05B7E934C"),
                Type::UUID,
                Some("9f3c1a7b-e24d-40c8-8a61-d2f05b7e934c"),
            ),
            (json!("2024-01-02"), Type::DATE, Some("2024-01-02")),
            (json!([1, null, 3]), Type::INT4_ARRAY, Some("{\"1\",NULL,\"3\"}")),
            (
                json!(["a\"b\\c", ""]),
                Type::TEXT_ARRAY,
                Some("{\"a\\\"b\\\\c\",\"\"}"),
            ),
            (json!([[1], [2]]), Type::INT4_ARRAY, Some("{{\"1\"},{\"2\"}}")),
            (json!("{1,2}"), Type::INT4_ARRAY, Some("{1,2}")),
        ] {
            assert_eq!(
                text(value.clone(), &ty),
                Ok(expected.map(str::to_owned)),
                "{value} {ty}"
            );
        }
    }

    #[test]
    fn values_that_do_not_fit_say_what_they_must_be() {
        for (value, ty) in [
            (json!(1), Type::BOOL),
            (json!("yes"), Type::BOOL),
            (json!(40_000), Type::INT2),
            (json!(3_000_000_000_u64), Type::INT4),
            (json!(u64::MAX), Type::INT8),
            (json!(1.5), Type::INT4),
            (json!("x"), Type::INT4),
            (json!(true), Type::INT4),
            (json!("x"), Type::NUMERIC),
            (json!([1]), Type::FLOAT8),
            (json!("!"), Type::BYTEA),
            (json!("x"), Type::UUID),
            (json!(5), Type::TIMESTAMPTZ),
            (json!(["x"]), Type::INT4_ARRAY),
            (json!(5), Type::TEXT_ARRAY),
            (json!("a\u{0}b"), Type::TEXT),
        ] {
            assert!(text(value.clone(), &ty).is_err(), "{value} {ty}");
        }
    }
}
