//! What an operator's checks look for in what a worker says: the form of log lines (contract 8.1) and of the health page
//! (contract 8.3), and secrets in either.
//!
//! Neighbours: `caf-worker check` reads the input, `scripts/observability/validate_observability.sh` calls that. Pure. Never
//! repeats what it found to be a secret.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use caf_actors::mask;
use caf_protocol::json;
use serde_json::{Map, Value};

/// Keys that may stand at the top of a line.
const TOP_KEYS: [&str; 13] = [
    "timestamp",
    "level",
    "component",
    "message",
    "tenant_id",
    "run_id",
    "flow_id",
    "step_id",
    "trace_id",
    "error_code",
    "latency_ms",
    "error",
    "context",
];
const LEVELS: [&str; 4] = ["ERROR", "WARN", "INFO", "DEBUG"];
/// What a step is never named without.
const BESIDE_STEP: [&str; 3] = ["run_id", "flow_id", "tenant_id"];
/// Shorter values are found everywhere by chance.
pub const LEAST_SECRET_BYTES: usize = 4;

/// Values that must be nowhere, in the forms in which they could be.
#[derive(Default)]
pub struct Secrets(Vec<Vec<String>>);

impl Secrets {
    /// Looks for each as it is, as JSON and as URLs write it, and as base64.
    pub fn new(values: impl IntoIterator<Item = String>) -> Self {
        let forms = |value: String| {
            let quoted = Value::from(value.as_str()).to_string();
            let url =
                percent_encoding::utf8_percent_encode(&value, percent_encoding::NON_ALPHANUMERIC).to_string();
            let mut forms = vec![
                quoted[1..quoted.len() - 1].to_owned(),
                url,
                STANDARD.encode(&value),
                STANDARD_NO_PAD.encode(&value),
                URL_SAFE_NO_PAD.encode(&value),
                value,
            ];
            forms.dedup();
            forms
        };
        Self(values.into_iter().map(forms).collect())
    }

    /// The numbers, from 1, of those that a text holds.
    fn in_text(&self, text: &str) -> Vec<usize> {
        let holds = |forms: &Vec<String>| forms.iter().any(|form| text.contains(form.as_str()));
        let found = self.0.iter().zip(1..).filter(|(forms, _)| holds(forms));
        found.map(|(_, number)| number).collect()
    }
}

/// Everything that is wrong with one line of a log.
pub fn line(text: &str, secrets: &Secrets) -> Vec<String> {
    let mut found = leaks(text, secrets);
    let parsed = match json::parse(text.as_bytes()) {
        Ok(document) => {
            let twice = document
                .duplicates
                .iter()
                .map(|key| format!("{} is given twice", key.path));
            found.extend(twice);
            document.value
        }
        Err(error) => {
            found.push(format!("is not JSON: {error}"));
            return found;
        }
    };
    match &parsed {
        Value::Object(fields) => {
            found.extend(form(fields));
            found.extend(unmasked(&parsed));
        }
        _ => found.push("is not a JSON object".to_owned()),
    }
    found
}

fn form(line: &Map<String, Value>) -> Vec<String> {
    let mut found = Vec::new();
    let mut require = |holds: bool, rule: &str| {
        if !holds {
            found.push(rule.to_owned());
        }
    };
    let text = |key: &str| line.get(key).and_then(Value::as_str);
    require(
        text("timestamp").is_some_and(is_timestamp),
        "timestamp must be UTC with six digits, as in 2026-01-01T00:00:00.123456Z",
    );
    require(
        text("level").is_some_and(|level| LEVELS.contains(&level)),
        "level must be ERROR, WARN, INFO or DEBUG",
    );
    require(
        text("component") == Some("worker"),
        "component must be \"worker\"",
    );
    require(text("message").is_some(), "message must be a string");
    let context = line.get("context").and_then(Value::as_object);
    require(context.is_some(), "context must be an object");
    let worker = context.and_then(|context| context.get("worker_id")?.as_str());
    require(
        context.is_none() || worker.is_some_and(|id| !id.is_empty()),
        "context.worker_id must be a string that is not empty",
    );
    for key in [
        "tenant_id",
        "run_id",
        "flow_id",
        "step_id",
        "trace_id",
        "error_code",
    ] {
        let fits = line
            .get(key)
            .is_none_or(|value| value.as_str().is_some_and(|id| !id.is_empty()));
        require(
            fits,
            &format!("{key} must be a string that is not empty, or absent"),
        );
    }
    let fits = line.get("latency_ms").is_none_or(Value::is_number);
    require(fits, "latency_ms must be a number, or absent");
    let fits = line.get("error").is_none_or(Value::is_object);
    require(fits, "error must be an object, or absent");
    if line.contains_key("step_id") {
        for key in BESIDE_STEP {
            require(
                line.contains_key(key),
                &format!("step_id is there, and {key} is not"),
            );
        }
    }
    for key in line.keys().filter(|key| !TOP_KEYS.contains(&key.as_str())) {
        // A key may be a secret itself.
        let name = mask::mask_text(key);
        require(false, &format!("{name} must stand in context"));
    }
    found
}

/// Keys whose values should be hidden, and secrets that tell themselves by their looks.
fn unmasked(line: &Value) -> Option<String> {
    let mut masked = line.clone();
    mask::mask(&mut masked);
    (masked != *line).then(|| format!("holds what should be {}", mask::REDACTED))
}

/// The given secrets that a text holds.
pub fn leaks(text: &str, secrets: &Secrets) -> Vec<String> {
    let found = secrets.in_text(text).into_iter();
    found
        .map(|number| format!("holds the secret number {number}"))
        .collect()
}

/// Everything that is wrong with a health page.
pub fn health(text: &str, secrets: &Secrets) -> Vec<String> {
    let mut found = leaks(text, secrets);
    let page: Value = match serde_json::from_str(text) {
        Ok(page) => page,
        Err(error) => {
            found.push(format!("is not JSON: {error}"));
            return found;
        }
    };
    let is_one_of = |value: &Value, words: &[&str]| value.as_str().is_some_and(|word| words.contains(&word));
    if !is_one_of(&page["status"], &["healthy", "degraded", "unhealthy"]) {
        found.push("status must be healthy, degraded or unhealthy".to_owned());
    }
    if !page["timestamp"].as_str().is_some_and(is_timestamp) {
        found.push("timestamp must be UTC with six digits, as in 2026-01-01T00:00:00.123456Z".to_owned());
    }
    match page["checks"].as_object() {
        Some(checks) if !checks.is_empty() => {
            for (name, check) in checks {
                if !is_one_of(&check["status"], &["ok", "fail"]) {
                    found.push(format!("checks.{name}.status must be ok or fail"));
                }
                if !check["message"].is_string() {
                    found.push(format!("checks.{name}.message must be a string"));
                }
            }
        }
        _ => found.push("checks must be an object with at least one check".to_owned()),
    }
    found
}

/// Whether it is UTC, ISO 8601, with six fraction digits.
fn is_timestamp(text: &str) -> bool {
    let form = "dddd-dd-ddTdd:dd:dd.ddddddZ";
    let fits = |(given, wanted): (u8, u8)| match wanted {
        b'd' => given.is_ascii_digit(),
        other => given == other,
    };
    text.len() == form.len() && text.bytes().zip(form.bytes()).all(fits) && in_range(text)
}

fn in_range(text: &str) -> bool {
    let at = |from: usize| text[from..from + 2].parse::<u8>().unwrap_or(u8::MAX);
    (1..=12).contains(&at(5)) && (1..=31).contains(&at(8)) && at(11) < 24 && at(14) < 60 && at(17) <= 60
}

#[cfg(test)]
mod tests;
