//! `explain`: what became of an assignment, as text.
//!
//! Neighbours: [`crate::admin::wording`] has the words; this puts them below each other.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use url::form_urlencoded;

use super::text::clean;
use super::{Node, Said, Silence};
use crate::admin::wording::length;

/// What need not be encoded in a path.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// Asks the node.
///
/// # Errors
/// [`Silence`].
pub async fn ask(node: &Node, assignment_id: &str, tenant_id: Option<&str>) -> Result<Said, Silence> {
    let mut path = format!("/explain/{}", utf8_percent_encode(assignment_id, ENCODED));
    if let Some(tenant) = tenant_id {
        let mut query = form_urlencoded::Serializer::new(String::new());
        path.push('?');
        path.push_str(&query.append_pair("tenant", tenant).finish());
    }
    node.ask(&path).await
}

/// The answer as text.
pub fn render(body: &Value) -> String {
    let mut lines = Vec::new();
    let id = text(&body["assignment_id"]);
    let worker = text(&body["worker_id"]);
    let matches = body["matches"].as_array().map(Vec::as_slice).unwrap_or_default();
    for found in matches {
        let replay = match found["replay"].as_u64() {
            None | Some(0) => String::new(),
            Some(times) => format!(", replay {times}"),
        };
        lines.push(format!(
            "{id} of tenant {} ({}{replay}) on worker {worker}: {}",
            text(&found["tenant_id"]),
            text(&found["job_type"]),
            text(&found["state"]).replace('_', " "),
        ));
        lines.push(format!("  {}", text(&found["summary"])));
        if found["advice"].is_string() {
            lines.push(format!("  {}", text(&found["advice"])));
        }
        lines.push(String::new());
        lines.extend(events(found));
        lines.extend(attempts(found));
        lines.extend(holders(found));
        lines.push(String::new());
    }
    if body["summary"].is_string() {
        lines.push(format!("{id} on worker {worker}: {}", text(&body["summary"])));
    }
    lines.join("\n")
}

fn events(found: &Value) -> Vec<String> {
    let events = found["events"].as_array().map(Vec::as_slice).unwrap_or_default();
    events
        .iter()
        .map(|event| format!("  {}  {}", time(&event["at"]), text(&event["words"])))
        .collect()
}

fn attempts(found: &Value) -> Vec<String> {
    let attempts = found["attempts"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    attempts
        .iter()
        .map(|attempt| {
            let ended = match (attempt["running"].as_bool(), attempt["error_code"].as_str()) {
                (Some(true), _) => "runs".to_owned(),
                (_, Some(code)) => clean(code),
                (_, None) => "ended well".to_owned(),
            };
            let took = length(attempt["duration_ms"].as_u64().unwrap_or_default());
            format!("  attempt {}: {took}, {ended}", text(&attempt["number"]))
        })
        .collect()
}

fn holders(found: &Value) -> Vec<String> {
    let holders = found["waiting"]["slots_held_by"].as_array();
    let holders = holders.map(Vec::as_slice).unwrap_or_default();
    holders
        .iter()
        .map(|holder| {
            format!(
                "  slot held by {} of tenant {} ({}) for {}",
                text(&holder["assignment_id"]),
                text(&holder["tenant_id"]),
                text(&holder["job_type"]),
                length(holder["running_ms"].as_u64().unwrap_or_default())
            )
        })
        .collect()
}

/// A value as harmless text.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => clean(text),
        Value::Null => "?".to_owned(),
        other => clean(&other.to_string()),
    }
}

/// The time of day of a point in time, to the millisecond.
fn time(at: &Value) -> String {
    let at = at.as_str().unwrap_or_default();
    clean(at.get(11..23).unwrap_or(at))
}
