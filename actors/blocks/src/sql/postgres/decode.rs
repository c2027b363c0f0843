//! Reads a value of an answer, in the binary form in which the server sends it, as JSON.
//!
//! Numbers become numbers, but `numeric` becomes text, which keeps every digit. Dates and times become ISO 8601 text,
//! binary data base64, JSON itself, arrays arrays, enumerations and other types that are text become text.
//!
//! Neighbours: [`super`] calls [`value`] for every field that is not NULL. Never guesses: a type that it does not know is an
//! error, and the caller is told to cast.

use std::error::Error;

use serde_json::{Value, json};
use time::{Date, Duration, OffsetDateTime, PrimitiveDateTime, Time};
use tokio_postgres::types::{FromSql, Kind, Type};
use uuid::Uuid;

use super::super::rows::float;
use crate::inputs::to_base64;

/// The bytes of a field as they came.
pub(super) struct Raw<'a>(pub(super) &'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_ty: &Type) -> bool {
        true
    }
}

/// A field as JSON. The error is the second half of a sentence about its type.
pub(super) fn value(ty: &Type, raw: &[u8]) -> Result<Value, String> {
    let mut bytes = Bytes(raw);
    match ty.kind() {
        Kind::Domain(inner) => value(inner, raw),
        Kind::Array(item) => array(item, &mut bytes),
        Kind::Enum(_) => text(raw),
        _ => scalar(ty, &mut bytes),
    }
}

fn scalar(ty: &Type, bytes: &mut Bytes<'_>) -> Result<Value, String> {
    Ok(match *ty {
        Type::BOOL => json!(bytes.array::<1>()? != [0]),
        Type::INT2 => json!(i16::from_be_bytes(bytes.array()?)),
        Type::INT4 => json!(bytes.i32()?),
        Type::INT8 => json!(bytes.i64()?),
        Type::OID | Type::XID | Type::CID => json!(u32::from_be_bytes(bytes.array()?)),
        Type::FLOAT4 => single(f32::from_be_bytes(bytes.array()?)),
        Type::FLOAT8 => float(f64::from_be_bytes(bytes.array()?)),
        Type::NUMERIC => json!(numeric(bytes)?),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::CHAR | Type::UNKNOWN | Type::XML => {
            text(bytes.0)?
        }
        Type::JSON => parsed(bytes.0)?,
        // One byte of version before the text.
        Type::JSONB => parsed(bytes.take(1).and(Ok(bytes.0))?)?,
        Type::BYTEA => json!(to_base64(bytes.0)),
        Type::UUID => json!(Uuid::from_bytes(bytes.array()?).to_string()),
        Type::DATE => json!(date(bytes.i32()?)?),
        Type::TIME => json!(clock(bytes.i64()?)?),
        Type::TIMESTAMP => json!(timestamp(bytes.i64()?, "")?),
        Type::TIMESTAMPTZ => json!(timestamp(bytes.i64()?, "Z")?),
        Type::INTERVAL => json!(interval(bytes)?),
        Type::VOID => Value::Null,
        // Types of extensions that are text, by their usual names.
        ref other if matches!(other.name(), "citext") => text(bytes.0)?,
        _ => return Err("which has no form in JSON here".to_owned()),
    })
}

/// The shortest decimal that means the same single-precision number: widening would show digits nobody stored.
fn single(number: f32) -> Value {
    number
        .to_string()
        .parse()
        .map_or_else(|_| float(f64::from(number)), float)
}

fn text(raw: &[u8]) -> Result<Value, String> {
    std::str::from_utf8(raw)
        .map(|text| json!(text))
        .map_err(|_| "which is not valid UTF-8".to_owned())
}

fn parsed(raw: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(raw).map_err(|_| "which is no JSON that can be read here".to_owned())
}

/// Header, dimensions, then the items in one row after the other.
fn array(item: &Type, bytes: &mut Bytes<'_>) -> Result<Value, String> {
    let dimensions = bytes.i32()?;
    bytes.take(8)?;
    let mut lengths = Vec::new();
    for _ in 0..dimensions {
        lengths.push(usize::try_from(bytes.i32()?).map_err(|_| malformed())?);
        bytes.take(4)?;
    }
    if lengths.is_empty() || lengths.contains(&0) {
        return Ok(json!([]));
    }
    items(item, bytes, &lengths)
}

fn items(item: &Type, bytes: &mut Bytes<'_>, lengths: &[usize]) -> Result<Value, String> {
    let Some((length, inner)) = lengths.split_first() else {
        return Err(malformed());
    };
    let mut values = Vec::new();
    for _ in 0..*length {
        values.push(if inner.is_empty() {
            match usize::try_from(bytes.i32()?) {
                Ok(size) => value(item, bytes.take(size)?)?,
                // A negative size is NULL.
                Err(_) => Value::Null,
            }
        } else {
            items(item, bytes, inner)?
        });
    }
    Ok(Value::Array(values))
}

/// Digits to the base of 10000, with a weight and a scale.
fn numeric(bytes: &mut Bytes<'_>) -> Result<String, String> {
    let count = u16::from_be_bytes(bytes.array()?);
    let weight = i32::from(i16::from_be_bytes(bytes.array()?));
    let sign = u16::from_be_bytes(bytes.array()?);
    let scale = usize::from(u16::from_be_bytes(bytes.array()?));
    match sign {
        0x0000 | 0x4000 => {}
        0xC000 => return Ok("NaN".to_owned()),
        0xD000 => return Ok("Infinity".to_owned()),
        0xF000 => return Ok("-Infinity".to_owned()),
        _ => return Err(malformed()),
    }
    let mut digits = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        digits.push(u16::from_be_bytes(bytes.array()?));
    }
    let group = |position: i32| {
        let index = usize::try_from(weight - position).ok();
        index.and_then(|index| digits.get(index)).copied().unwrap_or(0)
    };
    let mut whole = String::new();
    for position in (0..=weight.max(0)).rev() {
        whole.push_str(&format!("{:04}", group(position)));
    }
    let mut fraction = String::new();
    let mut position = -1;
    while fraction.len() < scale {
        fraction.push_str(&format!("{:04}", group(position)));
        position -= 1;
    }
    fraction.truncate(scale);
    let whole = whole.trim_start_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    let sign = if sign == 0x4000 { "-" } else { "" };
    let point = if scale == 0 { "" } else { "." };
    Ok(format!("{sign}{whole}{point}{fraction}"))
}

/// Days since 2000-01-01; the two ends of the range mean infinity.
fn date(days: i32) -> Result<String, String> {
    match days {
        i32::MAX => return Ok("infinity".to_owned()),
        i32::MIN => return Ok("-infinity".to_owned()),
        _ => {}
    }
    let date = epoch()
        .date()
        .checked_add(Duration::days(days.into()))
        .ok_or_else(out_of_range)?;
    iso_date(date)
}

/// Microseconds since midnight. 24:00 is a time there.
fn clock(micros: i64) -> Result<String, String> {
    if micros == 86_400_000_000 {
        return Ok("24:00:00".to_owned());
    }
    let time = Time::MIDNIGHT + Duration::microseconds(micros);
    Ok(iso_time(time))
}

/// Microseconds since 2000-01-01; the two ends of the range mean infinity.
fn timestamp(micros: i64, zone: &str) -> Result<String, String> {
    match micros {
        i64::MAX => return Ok("infinity".to_owned()),
        i64::MIN => return Ok("-infinity".to_owned()),
        _ => {}
    }
    let at = epoch()
        .checked_add(Duration::microseconds(micros))
        .ok_or_else(out_of_range)?;
    let at = PrimitiveDateTime::new(at.date(), at.time());
    Ok(format!("{}T{}{zone}", iso_date(at.date())?, iso_time(at.time())))
}

fn epoch() -> OffsetDateTime {
    // 2000-01-01T00:00:00Z.
    OffsetDateTime::UNIX_EPOCH + Duration::seconds(946_684_800)
}

fn iso_date(date: Date) -> Result<String, String> {
    if date.year() < 0 {
        return Err(out_of_range());
    }
    Ok(format!(
        "{:04}-{:02}-{:02}",
        date.year(),
        u8::from(date.month()),
        date.day()
    ))
}

fn iso_time(time: Time) -> String {
    let whole = format!("{:02}:{:02}:{:02}", time.hour(), time.minute(), time.second());
    match time.microsecond() {
        0 => whole,
        micros => format!("{whole}.{micros:06}").trim_end_matches('0').to_owned(),
    }
}

/// ISO 8601 duration, with a sign at each part as the server writes it.
fn interval(bytes: &mut Bytes<'_>) -> Result<String, String> {
    let (micros, days, months) = (bytes.i64()?, bytes.i32()?, bytes.i32()?);
    let mut text = String::from("P");
    for (count, unit) in [(months / 12, 'Y'), (months % 12, 'M'), (days, 'D')] {
        if count != 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    if micros != 0 {
        text.push('T');
        let (seconds, rest) = (micros / 1_000_000, (micros % 1_000_000).unsigned_abs());
        for (count, unit) in [(seconds / 3_600, 'H'), (seconds / 60 % 60, 'M')] {
            if count != 0 {
                text.push_str(&format!("{count}{unit}"));
            }
        }
        let sign = if micros < 0 { "-" } else { "" };
        let seconds = (seconds % 60).unsigned_abs();
        if rest != 0 {
            let fraction = format!("{rest:06}");
            text.push_str(&format!("{sign}{seconds}.{}S", fraction.trim_end_matches('0')));
        } else if seconds != 0 {
            text.push_str(&format!("{sign}{seconds}S"));
        }
    }
    if text == "P" {
        text.push_str("T0S");
    }
    Ok(text)
}

fn malformed() -> String {
    "whose value is malformed".to_owned()
}

fn out_of_range() -> String {
    "whose value lies beyond the years 0 to 9999".to_owned()
}

/// What is left to read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| malformed())
    }

    fn i32(&mut self) -> Result<i32, String> {
        self.array().map(i32::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64, String> {
        self.array().map(i64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_values_are_errors_and_no_panics() {
        for ty in [
            Type::BOOL,
            Type::INT8,
            Type::NUMERIC,
            Type::UUID,
            Type::TIMESTAMPTZ,
            Type::INTERVAL,
            Type::INT4_ARRAY,
            Type::JSONB,
        ] {
            for raw in [&[][..], &[1], &[0, 0, 0, 1], &[0xff; 7]] {
                // Anything but a panic will do; the empty one cannot be right for any of them.
                let read = value(&ty, raw);
                assert!(!raw.is_empty() || read.is_err(), "{ty} {raw:?}");
            }
        }
        // An array that claims two billion items and holds none.
        let mut claim = vec![
            0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 1,
        ];
        assert!(value(&Type::INT4_ARRAY, &claim).is_err());
        claim[0] = 0x7f;
        assert!(value(&Type::INT4_ARRAY, &claim).is_err());
    }

    #[test]
    fn times_beyond_the_calendar_are_told_and_infinity_has_a_name() {
        assert_eq!(timestamp(i64::MAX, "Z"), Ok("infinity".to_owned()));
        assert_eq!(timestamp(i64::MIN, "Z"), Ok("-infinity".to_owned()));
        assert_eq!(timestamp(1, "Z"), Ok("2000-01-01T00:00:00.000001Z".to_owned()));
        assert_eq!(date(-1), Ok("1999-12-31".to_owned()));
        assert!(timestamp(i64::MAX - 1, "Z").is_err());
        assert!(date(i32::MIN + 1).is_err());
    }
}
