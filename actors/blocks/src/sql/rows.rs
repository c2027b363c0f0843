//! Collects the answer of a query: typed rows, within the limits of the connection, never cut off silently.
//!
//! Neighbours: `sqlite` and `postgres` push rows and finish. Knows no database.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use caf_protocol::block::Outputs;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use serde_json::{Map, Number, Value, json};

use super::source::Limits;

/// An answer in the making.
pub(super) struct RowSet {
    columns: Vec<String>,
    rows: Vec<Value>,
    bytes: u64,
    limits: Limits,
}

impl RowSet {
    /// An answer with these columns.
    pub(super) fn new<'a>(columns: impl IntoIterator<Item = &'a str>, limits: &Limits) -> Self {
        Self {
            columns: distinct(columns),
            rows: Vec::new(),
            bytes: 0,
            limits: limits.clone(),
        }
    }

    /// Adds a row; values in the order of the columns.
    pub(super) fn push(&mut self, values: impl IntoIterator<Item = Value>) -> Result<(), Failure> {
        if self.rows.len() as u64 >= self.limits.max_rows {
            let failure = Failure::new(
                ErrorCode::ResourceUnavailable,
                "the answer has more rows than the limit",
            );
            return Err(failure.with("limit_rows", json!(self.limits.max_rows)));
        }
        let row: Map<_, _> = self.columns.iter().cloned().zip(values).collect();
        let row = Value::Object(row);
        self.bytes += size(&row);
        if self.bytes > self.limits.max_bytes {
            return Err(self.limits.too_large());
        }
        self.rows.push(row);
        Ok(())
    }

    /// The outputs. `affected` counts only for a statement without columns.
    pub(super) fn finish(self, affected: u64) -> Outputs {
        let mut outputs = Map::new();
        outputs.insert("row_count".to_owned(), json!(self.rows.len()));
        outputs.insert("rows".to_owned(), Value::Array(self.rows));
        if self.columns.is_empty() {
            outputs.insert("affected_rows".to_owned(), json!(affected));
        }
        outputs.insert("columns".to_owned(), json!(self.columns));
        outputs
    }
}

/// Names made distinct: of equal ones, the second gets `_2`, the third `_3`, skipping what is taken.
fn distinct<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut taken = HashSet::new();
    // Where to go on counting: thousands of columns with one name would be compared with each other again and again.
    let mut next: HashMap<&str, u32> = HashMap::new();
    let mut chosen = Vec::new();
    for name in names {
        let mut candidate = name.to_owned();
        let number = next.entry(name).or_insert(2);
        while !taken.insert(candidate.clone()) {
            candidate = format!("{name}_{number}");
            *number += 1;
        }
        chosen.push(candidate);
    }
    chosen
}

/// A float as JSON. What JSON has no number for becomes text.
pub(super) fn float(number: f64) -> Value {
    Number::from_f64(number).map_or_else(
        || {
            let name = match number {
                n if n.is_nan() => "NaN",
                n if n > 0.0 => "Infinity",
                _ => "-Infinity",
            };
            json!(name)
        },
        Value::Number,
    )
}

/// Length of a value as JSON, in bytes.
fn size(value: &Value) -> u64 {
    struct Count(u64);
    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, value) {
        Ok(()) => count.0,
        // Cannot happen; counting as too large is the safe reading.
        Err(_) => u64::MAX / 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn limits(max_rows: u64, max_bytes: u64) -> Limits {
        Limits {
            max_rows,
            max_bytes,
            statement_timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn columns_with_the_same_name_stay_apart() {
        for (names, expected) in [
            (&["a", "b"][..], &["a", "b"][..]),
            (&["a", "a", "a"], &["a", "a_2", "a_3"]),
            (&["a", "a_2", "a"], &["a", "a_2", "a_3"]),
            (&["", ""], &["", "_2"]),
            (&["a", "a_2", "a", "a"], &["a", "a_2", "a_3", "a_4"]),
        ] {
            assert_eq!(distinct(names.iter().copied()), expected);
        }
    }

    #[test]
    fn a_row_over_a_limit_is_a_failure_that_names_the_limit() {
        let mut rows = RowSet::new(["a"], &limits(2, 1_000));
        assert_eq!(rows.push([json!(1)]), Ok(()));
        assert_eq!(rows.push([json!(null)]), Ok(()));
        let failure = rows.push([json!(3)]).expect_err("is one too many");
        assert_eq!(
            (failure.code, &failure.details["limit_rows"]),
            (ErrorCode::ResourceUnavailable, &json!(2))
        );

        // {"a":"xxxx"} has 12 bytes.
        let mut rows = RowSet::new(["a"], &limits(10, 24));
        assert_eq!(rows.push([json!("xxxx")]), Ok(()));
        assert_eq!(rows.push([json!("xxxx")]), Ok(()));
        let failure = rows.push([json!(1)]).expect_err("is too large");
        assert_eq!(
            (failure.code, &failure.details["limit_bytes"]),
            (ErrorCode::ResourceUnavailable, &json!(24))
        );
    }

    #[test]
    fn affected_rows_stand_only_where_there_are_no_columns() {
        let none = RowSet::new([], &limits(1, 1)).finish(3);
        assert_eq!(
            Value::Object(none),
            json!({"rows": [], "row_count": 0, "columns": [], "affected_rows": 3})
        );
        let some = RowSet::new(["a"], &limits(1, 1)).finish(3);
        assert_eq!(
            Value::Object(some),
            json!({"rows": [], "row_count": 0, "columns": ["a"]})
        );
    }
}
