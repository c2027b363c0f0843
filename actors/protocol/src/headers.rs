//! Headers of a message, as far as the contract uses them (contract 1.5).
//!
//! Neighbours: the NATS source fills [`Headers`] from what arrived, [`crate::ack`] and [`crate::result`] make them
//! for what leaves. Knows no broker.

use serde::Serialize;

use crate::VERSION;
use crate::ids::sha256_hex;

/// Header that JetStream de-duplicates by.
pub const MESSAGE_ID: &str = "Nats-Msg-Id";

/// Names and values in the order they were set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Headers(#[serde(serialize_with = "as_map")] Vec<(String, String)>);

fn as_map<S: serde::Serializer>(pairs: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, value)| (name, value)))
}

impl Headers {
    /// First value under `name`, compared without regard to case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Adds a header as it arrived.
    pub fn push(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    /// Name and value pairs.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Adds a header that leaves, if the value survives transport unchanged: the router lets headers win over the
    /// payload, so a value that arrives trimmed or cut would be worse than none.
    pub(crate) fn push_if_safe(&mut self, name: &str, value: &str) {
        let survives = !value.is_empty() && value.trim() == value && !value.chars().any(char::is_control);
        if survives {
            self.push(name, value);
        }
    }

    /// The headers of an answer.
    pub(crate) fn of_answer(message_id: String, tenant_id: &str, trace_id: Option<&str>) -> Self {
        let mut headers = Self::default();
        headers.push(MESSAGE_ID, message_id);
        headers.push("version", VERSION);
        headers.push_if_safe("tenant_id", tenant_id);
        if let Some(trace_id) = trace_id {
            headers.push_if_safe("trace_id", trace_id);
        }
        headers
    }
}

/// The message id of an answer: `<assignment_id>.<kind>`. An id that is not plain printable ASCII could be changed by
/// transport and then collide with another, so its hash stands in its place.
pub fn message_id(assignment_id: &str, kind: &str) -> String {
    if assignment_id.bytes().all(|b| b.is_ascii_graphic()) {
        format!("{assignment_id}.{kind}")
    } else {
        format!("sha256:{}.{kind}", sha256_hex(assignment_id.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_ids_are_plain_and_differ_by_kind() {
        assert_eq!(message_id("a-1", "ack"), "a-1.ack");
        assert_ne!(message_id(" a", "result"), message_id("a", "result"));
        assert!(message_id("ü", "result").is_ascii());
    }

    #[test]
    fn values_that_transport_would_change_are_left_out() {
        let headers = Headers::of_answer("m".to_owned(), " acme", Some("a\rb"));
        let names: Vec<_> = headers.iter().map(|(name, _)| name).collect();
        assert_eq!(names, [MESSAGE_ID, "version"]);
        assert_eq!(headers.get("nats-msg-id"), Some("m"));
    }
}
