//! Hides secrets and personal data from what people read: log lines, `config show`, error texts (contract 8.1).
//!
//! Neighbours: the event emitter and the log drain mask what they write; the settings mask what they show. Pure: no
//! I/O, no state. Never used on what travels to the router: outcomes carry what the block returned.

use std::borrow::Cow;
use std::ops::Range;

use serde_json::Value;

/// What stands in place of a hidden value.
pub const REDACTED: &str = "[REDACTED]";

/// A key that contains one of these, in any case, has its value hidden. The substring rule hides too much now and
/// then (`tokens_used`); the other way round would be worse.
const SENSITIVE: [&str; 14] = [
    "password",
    "api_key",
    "secret",
    "token",
    "access_token",
    "refresh_token",
    "authorization",
    "credit_card",
    "ssn",
    "email",
    "phone",
    "bearer",
    "x-api-key",
    "x-auth-token",
];

/// Whether the value under this key is hidden.
pub fn is_sensitive(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    SENSITIVE.iter().any(|part| key.contains(part))
}

/// Hides the values of sensitive keys at every depth, whatever their type, and secrets inside the other strings.
pub fn mask(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields.iter_mut() {
                if is_sensitive(key) {
                    *field = Value::String(REDACTED.to_owned());
                } else {
                    mask(field);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(mask),
        Value::String(text) => {
            if let Cow::Owned(masked) = mask_text(text) {
                *text = masked;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Hides secrets that are recognisable inside a text: `Bearer …`, the user part of `scheme://user:password@host`, and
/// values given to sensitive names as in `password=…`, `"token": "…"` or `Authorization: …`.
pub fn mask_text(text: &str) -> Cow<'_, str> {
    let mut secrets = user_parts(text);
    secrets.extend(bearers(text));
    secrets.extend(assigned_values(text));
    if secrets.is_empty() {
        return Cow::Borrowed(text);
    }
    secrets.sort_by_key(|range| range.start);
    let mut masked = String::with_capacity(text.len());
    let mut written = 0;
    for secret in secrets {
        if secret.start >= written {
            masked.push_str(&text[written..secret.start]);
            masked.push_str(REDACTED);
        }
        written = written.max(secret.end);
    }
    masked.push_str(&text[written..]);
    Cow::Owned(masked)
}

/// The user parts of URLs: what stands between `://` and the last `@` of the authority.
fn user_parts(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for (at, separator) in text.match_indices("://") {
        let start = at + separator.len();
        let rest = &text[start..];
        let end = rest.find(|c: char| ends_word(c) || matches!(c, '/' | '?' | '#'));
        if let Some(length) = rest[..end.unwrap_or(rest.len())].rfind('@')
            && length > 0
        {
            found.push(start..start + length);
        }
    }
    found
}

/// What follows the word `bearer`.
fn bearers(text: &str) -> Vec<Range<usize>> {
    const WORD: &[u8] = b"bearer";
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = (from..bytes.len().saturating_sub(WORD.len()))
        .find(|&at| bytes[at..at + WORD.len()].eq_ignore_ascii_case(WORD))
    {
        from = at + WORD.len();
        let rest = &text[from..];
        let value = rest.trim_start_matches([' ', '\t']);
        let start = text.len() - value.len();
        let length = value.find(ends_word).unwrap_or(value.len());
        let starts_word = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
        if starts_word && value.len() < rest.len() && length > 0 {
            found.push(start..start + length);
        }
    }
    found
}

/// The values of `name=value`, `"name": "value"` and `authorization: value` whose name is sensitive.
fn assigned_values(text: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for (at, sign) in text.match_indices(['=', ':']) {
        // What is inside a hidden value is not looked at again: the work stays linear in the text.
        if found.last().is_some_and(|hidden| at < hidden.end) {
            continue;
        }
        let before = text[..at].trim_end_matches(' ');
        let bare = before.trim_end_matches(['"', '\'']);
        let start = bare.rfind(|c: char| !is_name(c)).map_or(0, |last| {
            last + bare[last..].chars().next().map_or(1, char::len_utf8)
        });
        let name = &bare[start..];
        let is_header = name.to_ascii_lowercase().ends_with("authorization");
        let assigns = sign == "=" || bare.len() < before.len() || is_header;
        if name.is_empty() || !assigns || !is_sensitive(name) {
            continue;
        }
        let value = text[at + sign.len()..].trim_start_matches(' ');
        let start = text.len() - value.len();
        let length = value_length(value, is_header);
        if length > 0 {
            found.push(start..start + length);
        }
    }
    found
}

/// Length of the value at the start of `text`: a quoted one runs to its closing quote, a header's to the end of its
/// line, another one to the end of the word.
fn value_length(text: &str, is_header: bool) -> usize {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''));
    let end = match quote {
        Some(quote) => {
            let closing = text[1..].find(quote).map(|at| at + 2);
            return closing.unwrap_or(text.len());
        }
        None if is_header => text.find(['\r', '\n', '"', '\'']),
        None => text.find(|c: char| ends_word(c) || matches!(c, '&' | ';' | ',' | ')' | '}')),
    };
    end.unwrap_or(text.len())
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

fn ends_word(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn values_of_sensitive_keys_are_hidden_at_every_depth_and_of_every_type() {
        let mut value = json!({
            "Password": "a", "db_PASSWORD": 7, "X-Api-Key": ["b"], "items": [{"user": {"email": {"x": "c"}}}],
            "tokens_used": 5, "refresh_token": null, "latency_ms": 42,
        });
        mask(&mut value);
        assert_eq!(
            value,
            json!({
                "Password": REDACTED, "db_PASSWORD": REDACTED, "X-Api-Key": REDACTED,
                "items": [{"user": {"email": REDACTED}}], "tokens_used": REDACTED,
                "refresh_token": REDACTED, "latency_ms": 42,
            })
        );
    }

    #[test]
    fn every_name_of_the_contract_is_sensitive() {
        for name in SENSITIVE {
            assert!(
                is_sensitive(&format!("my_{}_x", name.to_ascii_uppercase())),
                "{name}"
            );
        }
        for name in ["message", "tenant_id", "latency_ms", "block_type", "address"] {
            assert!(!is_sensitive(name), "{name}");
        }
    }

    #[test]
    fn secrets_inside_texts_are_hidden() {
        for (text, masked) in [
            ("Bearer xxx", "Bearer [REDACTED]"),
            ("sent bearer  a.b-c/d= twice", "sent bearer  [REDACTED] twice"),
            (
                "nats://u:p@h:1,tls://t@h",
                "nats://[REDACTED]@h:1,tls://[REDACTED]@h",
            ),
            ("postgres://u:p@ss@h/db?x=1", "postgres://[REDACTED]@h/db?x=1"),
            (
                "host=h password=hunter2 user=u",
                "host=h password=[REDACTED] user=u",
            ),
            ("password = 'a b' x", "password = [REDACTED] x"),
            ("GET /x?a=1&api_key=k&b=2", "GET /x?a=1&api_key=[REDACTED]&b=2"),
            (
                r#"body {"token": "t","n":1}"#,
                r#"body {"token": [REDACTED],"n":1}"#,
            ),
            (
                "Authorization: Basic dTpw\nx: y",
                "Authorization: [REDACTED]\nx: y",
            ),
            ("authorization: Bearer abc", "authorization: [REDACTED]"),
            ("ü password=é€ ü", "ü password=[REDACTED] ü"),
        ] {
            assert_eq!(mask_text(text), masked);
        }
    }

    #[test]
    fn harmless_texts_are_left_alone() {
        for text in [
            "",
            "bearer",
            "bearer ",
            "forbearer x",
            "https://host/path?mail=a@b",
            "nats.token: expected text",
            "a=b",
            "password=",
            "==::",
        ] {
            assert!(matches!(mask_text(text), Cow::Borrowed(_)), "{text:?}");
        }
    }

    #[test]
    fn a_long_text_full_of_names_is_masked_in_linear_time() {
        for name in ["token=", "authorization:", "bearer ", "token=\"", "://", "://@"] {
            assert!(mask_text(&name.repeat(500_000)).len() < 20_000_000, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_text_can_be_masked(text in "(\\PC|[\"'=: @/]|password|bearer |://){0,40}") {
            let _ = mask_text(&text);
        }

        #[test]
        fn a_password_in_a_url_never_survives(password in "[a-z0-9:@,;=&%!]{8,20}") {
            let masked = mask_text(&format!("see nats://u:{password}@host:4222 now")).into_owned();
            prop_assert!(!masked.contains(&password), "{}", masked);
        }
    }
}
