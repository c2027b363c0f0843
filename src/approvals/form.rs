//! What people and programs say when they decide: read strictly, from a form or as JSON. Pure.
//!
//! Neighbours: [`crate::http::approval_links`] gets forms, [`crate::http::approvals`] JSON.

use caf_protocol::approval::{Answer, MAX_COMMENT_BYTES, MAX_NAME_BYTES};
use caf_protocol::ids::is_usable;
use serde::Deserialize;
use url::form_urlencoded;

/// Longest comment that a field takes, in UTF-16 units as browsers count: of those none has more than three bytes.
pub const MAX_COMMENT_UNITS: usize = MAX_COMMENT_BYTES / 3;

/// What was decided, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filled {
    /// Yes or no.
    pub decision: Answer,
    /// Why.
    pub comment: Option<String>,
}

/// What a program sends.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    decision: String,
    #[serde(default)]
    approver: Option<String>,
    #[serde(default)]
    comment: Option<String>,
}

/// What a program sends for a link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkAsked {
    /// In whose name it is to decide.
    pub approver: Option<String>,
    /// For how long, in seconds; no longer than the approval itself.
    pub expires_in_s: Option<u64>,
}

/// Reads the form of the page behind a link.
///
/// # Errors
/// Field and rule.
pub fn read_form(body: &[u8]) -> Result<Filled, String> {
    let (mut decision, mut comment) = (None, None);
    for (name, value) in form_urlencoded::parse(body) {
        let field = match &*name {
            "decision" => &mut decision,
            "comment" => &mut comment,
            _ => return Err("the form has the fields decision and comment only".to_owned()),
        };
        if field.replace(value.into_owned()).is_some() {
            return Err("a field of the form is given twice".to_owned());
        }
    }
    filled(decision.as_deref().unwrap_or_default(), comment)
}

/// Reads `{"decision": …, "approver": …, "comment": …}`: what is decided, and in whose name.
///
/// # Errors
/// Field and rule.
pub fn read_decision(body: &[u8]) -> Result<(Filled, Option<String>), String> {
    let said: Said = object(body)?;
    let approver = name(said.approver)?;
    Ok((filled(&said.decision, said.comment)?, approver))
}

/// Reads `{"approver": …, "expires_in_s": …}`; nothing at all is the same as `{}`.
///
/// # Errors
/// Field and rule.
pub fn read_link_asked(body: &[u8]) -> Result<LinkAsked, String> {
    if body.trim_ascii().is_empty() {
        return Ok(LinkAsked::default());
    }
    let mut asked: LinkAsked = object(body)?;
    asked.approver = name(asked.approver)?;
    match asked.expires_in_s {
        Some(0) => Err("expires_in_s must be at least 1".to_owned()),
        _ => Ok(asked),
    }
}

/// A name that may stand in a decision; one without letters is none.
fn name(said: Option<String>) -> Result<Option<String>, String> {
    let Some(name) = said
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
    else {
        return Ok(None);
    };
    match is_usable(&name, MAX_NAME_BYTES) {
        true => Ok(Some(name)),
        false => Err(format!(
            "approver must have 1 to {MAX_NAME_BYTES} bytes without control characters"
        )),
    }
}

/// An object only: the library takes a list for one whose fields are not named. The error never repeats a value: a comment
/// may stand in it.
fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    let read = match body.trim_ascii().starts_with(b"{") {
        true => serde_json::from_slice(body).map_err(|error| (error.line(), error.column())),
        false => Err((1, 1)),
    };
    read.map_err(|(line, column)| {
        format!("the request is not the JSON object that is expected here (line {line}, column {column})")
    })
}

fn filled(decision: &str, comment: Option<String>) -> Result<Filled, String> {
    let decision = match decision {
        "approved" => Answer::Approved,
        "rejected" => Answer::Rejected,
        _ => return Err("decision must be approved or rejected".to_owned()),
    };
    // Forms have line ends of their own.
    let comment = comment.map(|text| text.replace("\r\n", "\n").trim().to_owned());
    let comment = comment.filter(|text| !text.is_empty());
    let fits = comment
        .as_ref()
        .is_none_or(|text| text.len() <= MAX_COMMENT_BYTES);
    match fits {
        true => Ok(Filled { decision, comment }),
        false => Err(format!("comment must have at most {MAX_COMMENT_BYTES} bytes")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(decision: Answer, comment: Option<&str>) -> Filled {
        let comment = comment.map(str::to_owned);
        Filled { decision, comment }
    }

    #[test]
    fn a_form_has_a_decision_and_perhaps_a_comment() {
        for (body, read) in [
            ("decision=approved", said(Answer::Approved, None)),
            ("decision=rejected&comment=", said(Answer::Rejected, None)),
            ("comment=+%0D%0A&decision=rejected", said(Answer::Rejected, None)),
            (
                "comment=a%26b%0D%0A%C3%BC+c&decision=approved",
                said(Answer::Approved, Some("a&b\nü c")),
            ),
        ] {
            assert_eq!(read_form(body.as_bytes()), Ok(read), "{body}");
        }
        let novel = format!("decision=approved&comment={}", "x".repeat(MAX_COMMENT_BYTES + 1));
        for bad in [
            "",
            "decision=",
            "decision=yes",
            "decision=Approved",
            "comment=approved",
            "decision=approved&decision=rejected",
            "decision=approved&comment=a&comment=b",
            "decision=approved&approver=eve",
            &novel,
        ] {
            assert!(read_form(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_program_names_the_decision_and_who_decides() {
        let read = read_decision(br#"{"decision": "rejected", "approver": " ann ", "comment": "no"}"#);
        assert_eq!(
            read,
            Ok((said(Answer::Rejected, Some("no")), Some("ann".to_owned())))
        );
        let read = read_decision(br#"{"decision": "approved", "approver": " "}"#);
        assert_eq!(read, Ok((said(Answer::Approved, None), None)));
        for bad in [
            "",
            "[]",
            "{}",
            r#"["approved", "ann"]"#,
            r#"{"decision": "maybe"}"#,
            r#"{"decision": true}"#,
            r#"{"decision": "approved", "approver": "a\u0000b"}"#,
            r#"{"decision": "approved", "decision": "rejected"}"#,
            r#"{"decision": "approved", "aprover": "ann"}"#,
        ] {
            assert!(read_decision(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_what_was_sent() {
        let secret = r#"{"decision": "approved", "comment": {"s3cret": 1}, "s3cret": "s3cret"}"#;
        let error = read_decision(secret.as_bytes()).expect_err("is refused");
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn a_link_may_be_asked_for_with_nothing_said() {
        for empty in ["", " \n", "{}"] {
            assert_eq!(read_link_asked(empty.as_bytes()), Ok(LinkAsked::default()));
        }
        let asked = read_link_asked(br#"{"approver": "ann", "expires_in_s": 60}"#);
        let wanted = LinkAsked {
            approver: Some("ann".to_owned()),
            expires_in_s: Some(60),
        };
        assert_eq!(asked, Ok(wanted));
        for bad in [
            r#"{"expires_in_s": 0}"#,
            r#"{"expires_in_s": -1}"#,
            r#"{"for": "ann"}"#,
            "null",
            "[]",
        ] {
            assert!(read_link_asked(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_comment_comes_back_as_it_was_written(comment in "[^\\r]{0,200}") {
            let body = form_urlencoded::Serializer::new(String::new())
                .append_pair("comment", &comment)
                .append_pair("decision", "approved")
                .finish();
            let comment = Some(comment.trim().to_owned()).filter(|text| !text.is_empty());
            prop_assert_eq!(read_form(body.as_bytes()), Ok(Filled { decision: Answer::Approved, comment }));
        }

        #[test]
        fn no_bytes_do_harm(body: Vec<u8>) {
            let _ = (read_form(&body), read_decision(&body), read_link_asked(&body));
        }
    }
}
