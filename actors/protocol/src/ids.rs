//! Which identifiers are usable, and which formats the router accepts (contract 2.1, 3.1, 3.6).
//!
//! Neighbours: [`crate::assignment`] reads with these rules, [`crate::result`] and [`crate::ack`] write with them.

use schemars::JsonSchema;
use serde::Serialize;
use sha2::{Digest, Sha256};
use smol_str::SmolStr;

use crate::trace_context::{RemoteTrace, SpanContext};

/// Longest id in bytes (assignment, request, provider, job type).
pub const MAX_ID_BYTES: usize = 128;
/// Longest tenant id in bytes.
pub const MAX_TENANT_BYTES: usize = 256;
/// Longest idempotency key in bytes; the router refuses longer ones.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 256;

/// Whether `text` can name something: 1..`max` bytes, no control characters, and not `"undefined"`, which is how
/// the router writes a value it does not have.
pub fn is_usable(text: &str, max: usize) -> bool {
    !text.is_empty() && text.len() <= max && text != "undefined" && !text.chars().any(char::is_control)
}

/// Whether the router accepts this trace id: 32 hexadecimal digits of any case, or a UUIDv4.
pub fn is_valid_trace_id(text: &str) -> bool {
    (text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())) || is_uuid_v4(text)
}

/// Whether the router accepts this run, flow or step id: a UUIDv4 of any case, or an upper-case ULID.
pub fn is_valid_correlation_id(text: &str) -> bool {
    is_uuid_v4(text) || is_ulid(text)
}

fn is_uuid_v4(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 36
        && bytes.iter().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => *b == b'-',
            14 => *b == b'4',
            19 => matches!(b, b'8' | b'9' | b'a' | b'b' | b'A' | b'B'),
            _ => b.is_ascii_hexdigit(),
        })
}

fn is_ulid(text: &str) -> bool {
    text.len() == 26
        && text.bytes().all(|b| {
            b.is_ascii_digit() || (b.is_ascii_uppercase() && !matches!(b, b'I' | b'L' | b'O' | b'U'))
        })
}

/// Identifies an assignment across tenants: hexadecimal SHA-256 of tenant and assignment id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssignmentKey(SmolStr);

impl AssignmentKey {
    /// The key of one assignment of one tenant. The length prefix keeps `("a","bc")` and `("ab","c")` apart.
    pub fn new(tenant_id: &str, assignment_id: &str) -> Self {
        Self::of_replay(tenant_id, assignment_id, 0)
    }

    /// The key of an assignment that was replayed so often; 0 is the assignment itself. A replay is to run although the
    /// assignment is remembered as answered, so it is another. Ids hold no NUL, which keeps `("a1", 0)` and `("a", 1)`
    /// apart.
    pub fn of_replay(tenant_id: &str, assignment_id: &str, replay: u32) -> Self {
        let mut hash = Sha256::new();
        hash.update((tenant_id.len() as u64).to_be_bytes());
        hash.update(tenant_id);
        hash.update(assignment_id);
        if replay > 0 {
            hash.update([0]);
            hash.update(replay.to_be_bytes());
        }
        Self(hex(&hash.finalize()).into())
    }

    /// The key that was written down as `digits`; nothing when they are not 64 lower-case hexadecimal ones.
    pub fn from_hex(digits: &str) -> Option<Self> {
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (digits.len() == 64 && digits.bytes().all(is_digit)).then(|| Self(digits.into()))
    }

    /// The 64 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Hexadecimal SHA-256, lower case.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&sha256(bytes))
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = |b: &u8| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]].map(char::from);
    bytes.iter().flat_map(digits).collect()
}

/// The correlation ids that came with an assignment: valid ones travel at top level, all of them, as they came,
/// under `correlation`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Correlation {
    /// A trace id that the router accepts.
    pub trace_id: Option<String>,
    /// The trace id as it came, when it was not valid.
    pub original_trace_id: Option<String>,
    /// Run, flow and step as they came.
    pub raw: RunFlowStep,
    /// The trace that the message belongs to, as it says.
    pub remote: Option<RemoteTrace>,
    /// The span that work on it is part of, for whoever is called or answered; nothing while traces are off.
    pub span: Option<SpanContext>,
}

/// Run, flow and step id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RunFlowStep {
    /// Run id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// Flow id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow_id: Option<String>,
    /// Step id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_id: Option<String>,
}

impl RunFlowStep {
    /// Whether none of the three is known.
    pub fn is_empty(&self) -> bool {
        self.run_id.is_none() && self.flow_id.is_none() && self.step_id.is_none()
    }

    /// All three when each is valid, else none of them: the router dead-letters anything in between.
    pub fn all_valid_or_none(&self) -> Self {
        let all = [&self.run_id, &self.flow_id, &self.step_id];
        if all
            .iter()
            .all(|id| id.as_deref().is_some_and(is_valid_correlation_id))
        {
            self.clone()
        } else {
            Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usable_ids_are_short_and_free_of_control_characters() {
        for good in [
            "a",
            "7be1d04c-52f4-a1c9-3e77-90b2f6d81a35",
            "*",
            ">",
            " x ",
            ".lead",
            "ü",
        ] {
            assert!(is_usable(good, MAX_ID_BYTES), "{good:?}");
        }
        for bad in [
            "",
            "undefined",
            "a\rb",
            "a\nb",
            "a\0b",
            "a\u{7f}",
            &"x".repeat(129),
        ] {
            assert!(!is_usable(bad, MAX_ID_BYTES), "{bad:?}");
        }
        assert!(is_usable(&"x".repeat(128), MAX_ID_BYTES));
    }

    #[test]
    fn trace_and_correlation_ids_follow_the_routers_validator() {
        for good in [
            "9f3c1a7be24d40c88a61d2f05b7e934c",
            "9F3C1A7BE24D40C88A61D2F05B7E934C",
        ] {
            assert!(is_valid_trace_id(good), "{good}");
        }
        assert!(is_valid_trace_id("9f3c1a7b-e24d-40c8-8a61-d2f05b7e934c"));
        for bad in [
            "",
            "tr-1",
            "9f3c1a7be24d40c88a61d2f05b7e934",
            "9f3c1a7b-e24d-50c8-8a61-d2f05b7e934c",
        ] {
            assert!(!is_valid_trace_id(bad), "{bad}");
        }
        assert!(is_valid_correlation_id("01J8ZQ4T6M9X2K7V5R3N1B0CDE"));
        for bad in [
            "01j8zq4t6m9x2k7v5r3n1b0cde",
            "01J8ZQ4T6M9X2K7V5R3N1B0CDI",
            "run-1",
        ] {
            assert!(!is_valid_correlation_id(bad), "{bad}");
        }
    }

    #[test]
    fn tenants_do_not_share_keys() {
        assert_ne!(AssignmentKey::new("a", "bc"), AssignmentKey::new("ab", "c"));
        assert_eq!(AssignmentKey::new("a", "b").as_str().len(), 64);
    }

    #[test]
    fn a_key_that_was_written_down_is_read_again_and_nothing_else_is() {
        let key = AssignmentKey::new("a", "b");
        assert_eq!(AssignmentKey::from_hex(key.as_str()), Some(key.clone()));
        let upper = key.as_str().to_uppercase();
        for bad in [
            "",
            &key.as_str()[1..],
            &format!("{key}0", key = key.as_str()),
            &upper,
        ] {
            assert_eq!(AssignmentKey::from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_replay_has_a_key_of_its_own_and_the_assignment_keeps_its_key() {
        // What claims of earlier versions hold must still be found.
        assert_eq!(
            AssignmentKey::new("a", "b").as_str(),
            sha256_hex(b"\0\0\0\0\0\0\0\x01ab")
        );
        let keys = [0, 1, 2, 256].map(|replay| AssignmentKey::of_replay("a", "b", replay));
        assert_eq!(keys[0], AssignmentKey::new("a", "b"));
        let distinct: std::collections::BTreeSet<_> = keys.into_iter().collect();
        assert_eq!(distinct.len(), 4);
    }
}
