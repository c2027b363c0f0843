//! `approvals`: asks a node what waits for people, decides, and has links made, as text.
//!
//! Neighbours: [`crate::http::approvals`] answers. What is asked of people was written by callers: it is made harmless
//! before it is printed.

use std::time::Duration;

use caf_protocol::approval::Answer;
use caf_protocol::timestamp::iso_micros;
use serde_json::{Map, Value, json};
use url::form_urlencoded;

use super::text::{clean, cut};
use super::{Node, Said, Silence};
use crate::approvals::text::length;
use crate::http::approvals::API_PATH;

/// Columns that a list gives to what is asked.
const DESCRIPTION_COLUMNS: usize = 76;

/// Asks for a page of those that wait.
///
/// # Errors
/// [`Silence`].
pub async fn list(
    node: &Node,
    tenant: Option<&str>,
    cursor: Option<&str>,
    limit: u32,
) -> Result<Said, Silence> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("limit", &limit.to_string());
    for (name, value) in [("tenant", tenant), ("cursor", cursor)] {
        value.map(|value| query.append_pair(name, value));
    }
    node.ask(&format!("{API_PATH}?{}", query.finish())).await
}

/// Asks for one. The id has digits only.
///
/// # Errors
/// [`Silence`].
pub async fn show(node: &Node, id: &str) -> Result<Said, Silence> {
    node.ask(&format!("{API_PATH}/{id}")).await
}

/// Decides one.
///
/// # Errors
/// [`Silence`].
pub async fn decide(
    node: &Node,
    id: &str,
    answer: Answer,
    (approver, comment): (Option<&str>, Option<&str>),
) -> Result<Said, Silence> {
    let mut body = Map::new();
    body.insert("decision".to_owned(), answer.as_str().into());
    for (name, value) in [("approver", approver), ("comment", comment)] {
        value.map(|value| body.insert(name.to_owned(), value.into()));
    }
    let body = Value::Object(body).to_string().into_bytes();
    node.tell(&format!("{API_PATH}/{id}/decision"), body).await
}

/// Has a link made.
///
/// # Errors
/// [`Silence`].
pub async fn link(
    node: &Node,
    id: &str,
    approver: Option<&str>,
    expires_in_s: Option<u64>,
) -> Result<Said, Silence> {
    let body = json!({"approver": approver, "expires_in_s": expires_in_s});
    node.tell(&format!("{API_PATH}/{id}/links"), body.to_string().into_bytes())
        .await
}

/// A page of those that wait, as text.
pub fn render_list(body: &Value) -> String {
    let all = body["approvals"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let mut lines: Vec<String> = all.iter().flat_map(|one| summary(one, &body["now"])).collect();
    let pending = body["pending"].as_u64().unwrap_or_default();
    lines.push(format!("{} listed, {pending} wait in all", all.len()));
    if let Some(next) = body["next_cursor"].as_str() {
        lines.push(format!("more: --cursor {}", clean(next)));
    }
    lines.join("\n")
}

fn summary(one: &Value, now: &Value) -> [String; 2] {
    let first = one["description"]
        .as_str()
        .unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default();
    [
        format!(
            "{}  {}  until {}",
            text(&one["approval_id"]),
            text(&one["tenant_id"]),
            moment(&one["expires_at"], now)
        ),
        format!("    {}", cut(&clean(first), DESCRIPTION_COLUMNS)),
    ]
}

/// One, as text.
pub fn render(one: &Value) -> String {
    let now = &one["now"];
    let mut lines = vec![
        format!("approval    {}", text(&one["approval_id"])),
        format!("asked by    {}", text(&one["tenant_id"])),
        format!("assignment  {}", text(&one["assignment_id"])),
    ];
    if one["approval_type"].is_string() {
        lines.push(format!("kind        {}", text(&one["approval_type"])));
    }
    lines.push(format!("asked       {}", moment(&one["requested_at"], now)));
    lines.push(format!("until       {}", moment(&one["expires_at"], now)));
    let approvers = one["approvers"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !approvers.is_empty() {
        let names: Vec<String> = approvers.iter().map(text).collect();
        lines.push(format!("approvers   {}", names.join(", ")));
    }
    lines.push(format!("standing    {}", standing(&one["standing"], now)));
    lines.push(String::new());
    let description = one["description"].as_str().unwrap_or_default();
    lines.extend(description.split('\n').map(|line| format!("    {}", clean(line))));
    lines.join("\n")
}

/// How far it is, as a sentence.
pub fn standing(standing: &Value, now: &Value) -> String {
    match standing["state"].as_str() {
        Some("decided") => {
            let comment = standing["comment"]
                .as_str()
                .map(|text| format!(": {}", clean(text)));
            format!(
                "{} by {}, {}{}",
                text(&standing["decision"]),
                text(&standing["by"]),
                moment(&standing["at"], now),
                comment.unwrap_or_default()
            )
        }
        Some("expired") => "nobody decided in time".to_owned(),
        Some("cancelled") => "cancelled by whoever asked".to_owned(),
        _ => "pending".to_owned(),
    }
}

/// A link that was made, as text: by itself on its line, to be copied.
pub fn render_link(body: &Value) -> String {
    let at = body["expires_at"].as_u64().map(utc).unwrap_or_default();
    format!(
        "{}\ndecides once as {}, until {at}",
        text(&body["url"]),
        text(&body["approver"])
    )
}

fn text(value: &Value) -> String {
    clean(value.as_str().unwrap_or("?"))
}

fn moment(at: &Value, now: &Value) -> String {
    let (Some(at), Some(now)) = (at.as_u64(), now.as_u64()) else {
        return "?".to_owned();
    };
    let apart = length(Duration::from_millis(at.abs_diff(now)));
    match at > now {
        true => format!("{} (in {apart})", utc(at)),
        false => format!("{} ({apart} ago)", utc(at)),
    }
}

fn utc(at_ms: u64) -> String {
    let at = std::time::UNIX_EPOCH.checked_add(Duration::from_millis(at_ms));
    let iso = at.map(iso_micros).unwrap_or_default();
    format!("{}Z", iso.get(..19).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> Value {
        json!({
            "approval_id": "ab", "tenant_id": "acme", "assignment_id": "a-1", "approval_type": "deploy",
            "description": "Shall we?\u{1b}[2J\n\u{202e}Yes", "approvers": ["ann", "bob"],
            "requested_at": 1_000, "expires_at": 3_601_000, "standing": {"state": "pending"}, "now": 2_000,
        })
    }

    #[test]
    fn one_is_told_whole_and_harmless() {
        let said = render(&one());
        for part in [
            "asked by    acme",
            "until       1970-01-01T01:00:01Z (in 59 minutes 59 seconds)",
            "approvers   ann, bob",
            "standing    pending",
            "    Shall we?\\u{1b}[2J\n    \\u{202e}Yes",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains(['\u{1b}', '\u{202e}']));
    }

    #[test]
    fn a_list_has_two_lines_for_each_and_says_how_to_go_on() {
        let body = json!({"approvals": [one()], "pending": 7, "next_cursor": "ff", "now": 2_000});
        let said = render_list(&body);
        assert_eq!(said.lines().count(), 4, "{said}");
        assert!(
            said.ends_with("1 listed, 7 wait in all\nmore: --cursor ff"),
            "{said}"
        );
    }

    #[test]
    fn how_it_stands_is_told_with_who_and_why() {
        let decided = json!({"state": "decided", "decision": "rejected", "by": "bob", "comment": "no\u{9b}", "at": 1_000});
        assert_eq!(
            standing(&decided, &json!(2_000)),
            "rejected by bob, 1970-01-01T00:00:01Z (1 second ago): no\\u{9b}"
        );
    }
}
