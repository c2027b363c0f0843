//! Examples of messages. Those of assignment and result are wire fixtures, which a test compares; all are held against
//! their schemas.

use serde_json::Value;

const EXAMPLES: &str = include_str!("examples.json");

/// The example of a message: headers, if there are any, and payload. Null where there is none.
pub(super) fn of(message: &str) -> Value {
    let mut all: Value = serde_json::from_str(EXAMPLES).expect("a test reads the file");
    all.get_mut(message).map(Value::take).unwrap_or_default()
}
