//! Where a value came from, and what is wrong with it. Secrets never leave this file unmasked.
//!
//! Neighbours: everything that reads settings makes [`Problem`]s; [`super::load`] collects them; the command line prints
//! them.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use caf_actors::mask::{REDACTED, is_sensitive, mask_text};
use serde::Serialize;
use serde_json::Value;
use url::Url;

/// A key, segment by segment: `["nats", "url"]`.
pub type KeyPath = Vec<String>;

/// Keys whose values are never shown; `*` stands for any name.
pub const SECRET_KEYS: [&str; 8] = [
    "nats.password",
    "nats.token",
    "http.admin_token",
    "approvals.links.key",
    "blocks.sql.connections.*.password",
    "worker.tracing.secret_headers",
    "secrets.*.value",
    "tenants.policy_store.token",
];

/// Keys whose values are addresses that may carry a user part.
const URL_KEYS: [&str; 3] = [
    "nats.url",
    "blocks.sql.connections.*.url",
    "tenants.policy_store.url",
];

/// Keys whose values are addresses that may carry a key in path or query.
const ENDPOINT_KEYS: [&str; 2] = ["worker.tracing.endpoint", "worker.tracing.traces_endpoint"];

/// Longest value that an error repeats, in characters.
const MAX_SHOWN_CHARS: usize = 120;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A file.
    File(PathBuf),
    /// A file that holds this one value, and what names it.
    SecretFile(PathBuf, Box<Origin>),
    /// An environment variable.
    Environment(String),
    /// An option of the command line.
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::SecretFile(path, by) => write!(f, "file {} ({by})", path.display()),
            Self::Environment(name) => write!(f, "env {name}"),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

impl Origin {
    /// The value of a key that came from here, as it may be shown. Of what a file holds alone nothing is: whoever put it
    /// there wants it hidden, also where it turns out to be no address.
    pub fn shown(&self, key: &[String], value: &Value) -> Value {
        match (self, value) {
            (Self::SecretFile(..), value) if !value.is_null() => Value::String(REDACTED.to_owned()),
            _ => masked(key, value),
        }
    }
}

/// One thing wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// File, variable or command line.
    pub source: String,
    /// The key; empty when the source as a whole cannot be read.
    pub key: String,
    /// What the value must be, or what else is wrong.
    pub rule: String,
    /// The value found, masked; absent for tables and for keys that nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl Problem {
    /// A problem with the value of a known key.
    pub fn of_value(origin: &Origin, key: &[String], rule: impl Into<String>, value: &Value) -> Self {
        Self {
            value: shown(origin, key, value),
            ..Self::of_key(origin, key, rule)
        }
    }

    /// A problem with a key.
    pub fn of_key(origin: &Origin, key: &[String], rule: impl Into<String>) -> Self {
        Self {
            source: origin.to_string(),
            key: key_text(key),
            rule: rule.into(),
            value: None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.finding())
    }
}

impl Problem {
    /// What is wrong, for a reader who knows the source: `key: rule, found value`.
    pub fn finding(&self) -> String {
        let key = match self.key.as_str() {
            "" => String::new(),
            key => format!("{key}: "),
        };
        let found = self.value.iter().map(|value| format!(", found {value}"));
        format!("{key}{}{}", self.rule, found.collect::<String>())
    }
}

/// Settings that cannot be used, with everything that is wrong with them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct SettingsError {
    /// All problems, in the order of the sources. Never empty.
    pub problems: Vec<Problem>,
}

/// A key as people write it: segments joined by dots, quoted where a name needs it.
pub fn key_text(key: &[String]) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '*');
    key.iter()
        .map(|segment| {
            if !segment.is_empty() && segment.chars().all(is_plain) {
                segment.clone()
            } else {
                Value::String(segment.clone()).to_string()
            }
        })
        .collect::<Vec<_>>()
        .join(".")
}

/// The value of a key with its secrets hidden.
pub fn masked(key: &[String], value: &Value) -> Value {
    match value {
        Value::Null => Value::Null,
        _ if matches_any(key, &SECRET_KEYS) => Value::String(REDACTED.to_owned()),
        Value::String(text) if matches_any(key, &URL_KEYS) => Value::String(mask_urls(text)),
        Value::String(text) if matches_any(key, &ENDPOINT_KEYS) => {
            Value::String(Url::parse(text).map_or_else(|_| REDACTED.to_owned(), |url| shown_endpoint(&url)))
        }
        Value::String(text) if matches_any(key, &["worker.tracing.resource_attributes"]) => {
            Value::String(mask_pairs(text))
        }
        Value::String(text) => Value::String(mask_text(text).into_owned()),
        Value::Array(items) => Value::Array(items.iter().map(|item| masked(key, item)).collect()),
        other => other.clone(),
    }
}

/// An address as it may be read: scheme, host and port. A path may hold a key, unless it is the one that everybody has.
pub fn shown_endpoint(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let path = match url.path() {
        path @ ("" | "/" | "/v1/traces") => path,
        _ => "/…",
    };
    let query = if url.query().is_some() { "?[REDACTED]" } else { "" };
    let host = url.host_str().unwrap_or_default();
    format!("{}://{host}{port}{path}{query}", url.scheme())
}

/// Whether the value of this key is a secret as a whole.
pub fn is_secret(key: &[String]) -> bool {
    matches_any(key, &SECRET_KEYS)
}

/// The key that a name with `_file` at its end speaks of: one whose value is a secret, or may hold one.
pub fn secret_behind_file(key: &[String]) -> Option<KeyPath> {
    let (last, before) = key.split_last()?;
    let mut key = before.to_vec();
    key.push(last.strip_suffix("_file")?.to_owned());
    (matches_any(&key, &SECRET_KEYS) || matches_any(&key, &URL_KEYS)).then_some(key)
}

/// A scalar as an error repeats it, masked and short. Tables are not repeated: they may hold anything.
fn shown(origin: &Origin, key: &[String], value: &Value) -> Option<String> {
    match value {
        Value::Object(_) => None,
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => None,
        _ => {
            let text = origin.shown(key, value).to_string();
            let short: String = text.chars().take(MAX_SHOWN_CHARS).collect();
            let cut = short.len() < text.len();
            Some(if cut { short + "…" } else { short })
        }
    }
}

fn matches_any(key: &[String], patterns: &[&str]) -> bool {
    patterns.iter().any(|pattern| {
        let pattern: Vec<&str> = pattern.split('.').collect();
        let mut pairs = key.iter().zip(&pattern);
        key.len() == pattern.len() && pairs.all(|(given, known)| *known == "*" || given == known)
    })
}

/// `name=value` pairs, comma-separated, without the values of sensitive names.
fn mask_pairs(text: &str) -> String {
    let pairs = text.split(',').map(|pair| match pair.split_once('=') {
        Some((name, _)) if is_sensitive(name) => format!("{name}={REDACTED}"),
        _ => mask_text(pair).into_owned(),
    });
    pairs.collect::<Vec<_>>().join(",")
}

/// Addresses without their user parts, and without their queries but for how they are encrypted.
fn mask_urls(text: &str) -> String {
    let is_harmless = |query: &str| query.split('&').all(|pair| pair.starts_with("sslmode="));
    match text.split_once('?') {
        Some((address, query)) if text.contains("://") && !is_harmless(query) && !query.contains('@') => {
            format!("{}?{REDACTED}", mask_users(address))
        }
        _ => mask_users(text),
    }
}

/// Addresses without their user parts. What cannot be taken apart for certain is hidden as a whole: a password may hold
/// commas and slashes.
fn mask_users(text: &str) -> String {
    if !text.contains('@') {
        return mask_text(text).into_owned();
    }
    let parts: Option<Vec<Cow<'_, str>>> = text
        .split(',')
        .map(|part| {
            let masked = mask_text(part);
            let clean = part.contains("://")
                && Url::parse(part.trim()).is_ok_and(|url| url.has_host())
                && masked.matches('@').count() <= masked.matches(&format!("{REDACTED}@")).count();
            clean.then_some(masked)
        })
        .collect();
    parts.map_or_else(|| REDACTED.to_owned(), |parts| parts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn path(key: &str) -> KeyPath {
        key.split('.').map(str::to_owned).collect()
    }

    #[test]
    fn user_parts_of_addresses_are_hidden_even_when_malformed() {
        let key = path("nats.url");
        for (text, shown) in [
            ("nats://h:1,tls://g", "nats://h:1,tls://g"),
            (
                "nats://u:p@h:1,tls://t@g",
                "nats://[REDACTED]@h:1,tls://[REDACTED]@g",
            ),
            ("nats://u:hunter,hunter@h", "[REDACTED]"),
            ("nats://u:hunter/hunter@h", "[REDACTED]"),
            ("nats://u:12/hunter@h", "[REDACTED]"),
            ("u:hunter@h", "[REDACTED]"),
        ] {
            assert_eq!(masked(&key, &json!(text)), json!(shown), "{text}");
        }
        let key = path("blocks.sql.connections.main.url");
        for text in ["postgres://h/d?password=hunter", "host=h password=hunter user=u"] {
            assert!(
                !masked(&key, &json!(text)).to_string().contains("hunter"),
                "{text}"
            );
        }
    }

    #[test]
    fn paths_and_queries_of_addresses_are_hidden_where_they_may_hold_a_key() {
        for (key, text, shown) in [
            ("worker.tracing.endpoint", "http://c:4317", "http://c:4317/"),
            (
                "worker.tracing.endpoint",
                "https://c/k3y/otlp?sig=k3y",
                "https://c/…?[REDACTED]",
            ),
            (
                "worker.tracing.traces_endpoint",
                "http://[::1]:4318/v1/traces",
                "http://[::1]:4318/v1/traces",
            ),
            ("worker.tracing.traces_endpoint", "k3y", "[REDACTED]"),
            (
                "worker.tracing.resource_attributes",
                "team=a,api.key=k3y,deployment.environment=prod",
                "team=a,api.key=[REDACTED],deployment.environment=prod",
            ),
            (
                "blocks.sql.connections.a.url",
                "postgres://u:k3y@h/d?options=k3y",
                "postgres://[REDACTED]@h/d?[REDACTED]",
            ),
            (
                "blocks.sql.connections.a.url",
                "postgres://h/d?sslmode=disable",
                "postgres://h/d?sslmode=disable",
            ),
            (
                "blocks.sql.connections.a.url",
                "postgres://u:k?3y@h/d",
                "[REDACTED]",
            ),
        ] {
            assert_eq!(masked(&path(key), &json!(text)), json!(shown), "{text}");
        }
    }

    #[test]
    fn secret_keys_are_hidden_whatever_their_value() {
        for key in [
            "nats.password",
            "nats.token",
            "tenants.policy_store.token",
            "blocks.sql.connections.a.password",
        ] {
            for value in [json!("x"), json!(5), json!(["x"])] {
                assert_eq!(masked(&path(key), &value), json!(REDACTED), "{key}");
            }
            assert_eq!(masked(&path(key), &Value::Null), Value::Null);
        }
        for key in ["nats.user", "blocks.fs.roots.password", "nats.token.x", "nats"] {
            assert!(!is_secret(&path(key)), "{key}");
        }
    }

    #[test]
    fn errors_repeat_scalars_briefly_and_tables_not_at_all() {
        let key = path("nats.stream");
        assert_eq!(
            shown(&Origin::Default, &key, &json!({"password": "hunter"})),
            None
        );
        assert_eq!(
            shown(&Origin::Default, &key, &json!([{"password": "hunter"}])),
            None
        );
        let long = shown(&Origin::Default, &key, &json!("ü".repeat(500))).unwrap();
        assert_eq!(long.chars().count(), MAX_SHOWN_CHARS + 1);
    }
}
