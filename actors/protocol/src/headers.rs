//! Headers of a message, as far as the contract uses them (contract 1.5).
//!
//! Neighbours: the NATS source fills [`Headers`] from what arrived, [`crate::ack`] and [`crate::result`] make them
//! for what leaves. Knows no broker.

use serde::Serialize;
use smol_str::SmolStr;

use crate::VERSION;
use crate::ids::sha256_hex;
use crate::trace_context::{SpanContext, TRACEPARENT, TRACESTATE};

/// Header that JetStream de-duplicates by.
pub const MESSAGE_ID: &str = "Nats-Msg-Id";
/// Header of an assignment that `caf-worker dlq replay` sent again: how often it was. The router never sets it.
pub const REPLAY: &str = "Caf-Replay";
/// Highest replay count that is believed. More would be a loop, not an operator.
pub const MAX_REPLAY: u32 = 1_000;

/// Names and values in the order they were set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Headers(#[serde(serialize_with = "as_map")] Vec<(SmolStr, SmolStr)>);

fn as_map<S: serde::Serializer>(pairs: &[(SmolStr, SmolStr)], serializer: S) -> Result<S::Ok, S::Error> {
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

    /// How often an assignment was replayed, from [`REPLAY`]: 1 to [`MAX_REPLAY`] in plain digits. Anything else counts
    /// as 0, no replay: then it is answered as the assignment that it copies, and nothing runs twice by mistake.
    pub fn replay(&self) -> u32 {
        self.get(REPLAY)
            .filter(|text| text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0'))
            .and_then(|text| text.parse().ok())
            .filter(|count| *count <= MAX_REPLAY)
            .unwrap_or(0)
    }

    /// Adds a header as it arrived.
    pub fn push(&mut self, name: impl Into<SmolStr>, value: impl Into<SmolStr>) {
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

    /// Says in which span the message is published, while traces are on.
    pub(crate) fn in_span(mut self, span: Option<&SpanContext>) -> Self {
        if let Some(span) = span {
            self.push(TRACEPARENT, span.traceparent());
            if let Some(state) = &span.state {
                self.push_if_safe(TRACESTATE, state);
            }
        }
        self
    }
}

/// The message id of an answer: `<assignment_id>.<kind>`, and `<assignment_id>.r<replay>.<kind>` for a replay, which is
/// answered once more. The hash stands in the place of an id that could be taken for another: one that is not plain
/// printable ASCII could be changed by transport, and one that looks like a hash or a replay is ambiguous.
pub fn message_id(assignment_id: &str, replay: u32, kind: &str) -> String {
    let plain = assignment_id.bytes().all(|b| b.is_ascii_graphic());
    let name = if plain && !assignment_id.starts_with(HASHED) && !ends_like_a_replay(assignment_id) {
        assignment_id.to_owned()
    } else {
        format!("{HASHED}{}", sha256_hex(assignment_id.as_bytes()))
    };
    match replay {
        0 => format!("{name}.{kind}"),
        replay => format!("{name}.r{replay}.{kind}"),
    }
}

/// How a hash in the place of an id begins.
const HASHED: &str = "sha256:";

fn ends_like_a_replay(assignment_id: &str) -> bool {
    assignment_id
        .rsplit_once(".r")
        .is_some_and(|(_, count)| !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn message_ids_are_plain_and_differ_by_kind() {
        assert_eq!(message_id("a-1", 0, "ack"), "a-1.ack");
        assert_ne!(message_id(" a", 0, "result"), message_id("a", 0, "result"));
        assert!(message_id("ü", 0, "result").is_ascii());
    }

    #[test]
    fn a_replay_has_message_ids_of_its_own() {
        assert_eq!(message_id("a-1", 1, "ack"), "a-1.r1.ack");
        assert_eq!(message_id("a-1", 12, "result"), "a-1.r12.result");
        assert_ne!(message_id("a.r1", 0, "result"), message_id("a", 1, "result"));
        assert_ne!(
            message_id("a.r1", 2, "result"),
            message_id("a.r1.r2", 0, "result")
        );
        let hashed = message_id("ü", 0, "ack");
        assert_ne!(message_id(hashed.trim_end_matches(".ack"), 0, "ack"), hashed);
    }

    #[test]
    fn a_bad_replay_count_is_no_replay() {
        for (value, count) in [
            (Some("1"), 1),
            (Some("1000"), 1_000),
            (None, 0),
            (Some("0"), 0),
            (Some("1001"), 0),
            (Some("99999999999999999999"), 0),
            (Some("+1"), 0),
            (Some("-1"), 0),
            (Some("01"), 0),
            (Some(" 1"), 0),
            (Some("1.0"), 0),
            (Some("one"), 0),
            (Some(""), 0),
        ] {
            let mut headers = Headers::default();
            if let Some(value) = value {
                headers.push("caf-replay", value);
            }
            assert_eq!(headers.replay(), count, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn two_answers_share_a_message_id_only_when_they_are_the_same(
            one in ("(a|b|sha256:|\\.r1|\\.r12|\\.ack|ü| ){1,4}", 0u32..13, "ack|result"),
            other in ("(a|b|sha256:|\\.r1|\\.r12|\\.ack|ü| ){1,4}", 0u32..13, "ack|result"),
        ) {
            let id = |of: &(String, u32, String)| message_id(&of.0, of.1, &of.2);
            prop_assert_eq!(id(&one) == id(&other), one == other);
        }
    }

    #[test]
    fn values_that_transport_would_change_are_left_out() {
        let headers = Headers::of_answer("m".to_owned(), " acme", Some("a\rb"));
        let names: Vec<_> = headers.iter().map(|(name, _)| name).collect();
        assert_eq!(names, [MESSAGE_ID, "version"]);
        assert_eq!(headers.get("nats-msg-id"), Some("m"));
    }
}
