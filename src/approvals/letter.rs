//! The pages behind a link, for whoever got it: what is asked, with two buttons; or why there is nothing to decide. Pure.
//!
//! Neighbours: [`crate::http::approval_links`] sends them. No script, nothing from elsewhere, one form: works in the browser
//! of a chat program on a phone. Whatever callers and approvers wrote goes through [`super::text::html`].

use std::ops::Range;
use std::time::{Duration, SystemTime};

use caf_protocol::approval::{Answer, ApprovalRequest, Decision, Standing};
use caf_protocol::timestamp::iso_micros;

use super::form::MAX_COMMENT_UNITS;
use super::text::{html, length};

/// Around every page. `{{nonce}}` is a number that is used once.
const FRAME: &str = include_str!("letter.html");

/// What there is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Letter<'a> {
    /// It waits for a decision, in this name.
    Asks(&'a ApprovalRequest, &'a str),
    /// It has left `pending`, and how; `true` when that was before whoever sees this had sent a decision.
    Settled(&'a ApprovalRequest, &'a Standing, bool),
    /// This decision was just taken.
    Done(&'a ApprovalRequest, &'a Decision),
    /// This name may not decide it.
    NotYours(&'a str),
    /// What was sent is no decision: field and rule.
    Unreadable(&'a str),
    /// A page of another site has sent it.
    Elsewhere,
    /// The link was good once.
    Expired,
    /// No link of ours, or to nothing.
    Unknown,
    /// Too many of those.
    TooMany,
    /// The store does not answer.
    Silent,
}

impl Letter<'_> {
    /// Status of the answer.
    pub fn status(&self) -> u16 {
        match self {
            Self::Asks(..) | Self::Done(..) | Self::Settled(_, _, false) => 200,
            Self::Settled(_, _, true) => 409,
            Self::NotYours(_) | Self::Elsewhere => 403,
            Self::Unreadable(_) => 400,
            Self::Expired => 410,
            Self::Unknown => 404,
            Self::TooMany => 429,
            Self::Silent => 503,
        }
    }

    /// The page, with this nonce for its style, at this time.
    pub fn render(&self, nonce: &str, now_ms: u64) -> String {
        let (title, body) = self.parts(now_ms);
        // One walk over the frame: what is put in is never looked through for more places.
        let mut page = String::with_capacity(FRAME.len() + body.len() + 256);
        let mut rest = FRAME;
        while let Some((before, (name, after))) = rest
            .split_once("{{")
            .and_then(|(before, rest)| Some((before, rest.split_once("}}")?)))
        {
            page.push_str(before);
            page.push_str(match name {
                "nonce" => nonce,
                "title" => title,
                _ => &body,
            });
            rest = after;
        }
        page.push_str(rest);
        page
    }

    /// Title and body. Titles are ours.
    fn parts(&self, now_ms: u64) -> (&'static str, String) {
        match self {
            Self::Asks(request, name) => asks(request, name, now_ms),
            Self::Settled(request, standing, late) => settled(request, standing, *late, now_ms),
            Self::Done(request, decision) => {
                let title = match decision.decision {
                    Answer::Approved => "Approved",
                    Answer::Rejected => "Rejected",
                };
                let thanks = "<p>Thank you. Your decision is stored and on its way; you can close this page.</p>";
                (title, format!("{thanks}{}{}", decided(decision, now_ms), asked(request, now_ms)))
            }
            Self::NotYours(name) => (
                "Not yours to decide",
                format!(
                    "<p>This link decides as <b class=\"name\">{}</b>, who is not among the approvers of this request. Nothing was \
                     decided.</p>",
                    html(name)
                ),
            ),
            Self::Unreadable(rule) => (
                "Nothing was decided",
                format!("<p>What your browser sent is no decision: {}. Go back and try again.</p>", html(rule)),
            ),
            Self::Elsewhere => (
                "Nothing was decided",
                "<p>Another site has sent this. Open the link itself and decide there.</p>".to_owned(),
            ),
            Self::Expired => (
                "This link is over",
                "<p>The time to decide with this link is over. Ask whoever sent it for a new one.</p>".to_owned(),
            ),
            Self::Unknown => (
                "This link leads nowhere",
                "<p>Perhaps a part of it is missing: open it from the message again, or copy it whole. What was decided long ago \
                 is not kept either.</p>"
                    .to_owned(),
            ),
            Self::TooMany => (
                "Too many tries",
                "<p>Too many links that lead nowhere were tried from your network. Wait a minute.</p>".to_owned(),
            ),
            Self::Silent => (
                "Not just now",
                "<p>The store of approvals does not answer. Try again in a moment: if a decision of yours was stored, the \
                 page will say so.</p>"
                    .to_owned(),
            ),
        }
    }
}

fn asks(request: &ApprovalRequest, name: &str, now_ms: u64) -> (&'static str, String) {
    let form = format!(
        "<form method=\"post\" accept-charset=\"utf-8\" autocomplete=\"off\">\
         <label for=\"comment\">Comment (optional; whoever asked will read it)</label>\
         <textarea id=\"comment\" name=\"comment\" rows=\"3\" maxlength=\"{MAX_COMMENT_UNITS}\"></textarea>\
         <div class=\"buttons\">\
         <button name=\"decision\" value=\"approved\" class=\"good\">Approve</button>\
         <button name=\"decision\" value=\"rejected\" class=\"bad\">Reject</button></div>\
         <p class=\"soft\">You decide as <b class=\"name\">{}</b>, once: it cannot be taken back.</p></form>",
        html(name)
    );
    (
        "Your decision is asked for",
        format!("{}{form}", asked(request, now_ms)),
    )
}

/// What was asked, by whom, since and until when.
fn asked(request: &ApprovalRequest, now_ms: u64) -> String {
    let kind = request
        .approval_type
        .as_deref()
        .map(|kind| fact("Kind", &name(kind)));
    let facts = [
        Some(fact("Asked by", &name(&request.tenant_id))),
        kind,
        Some(fact("Asked", &moment(request.requested_at, now_ms))),
        Some(fact("Until", &moment(request.expires_at, now_ms))),
    ];
    format!(
        "<blockquote dir=\"auto\">{}</blockquote><dl>{}</dl>",
        html(&request.description),
        facts.into_iter().flatten().collect::<String>()
    )
}

fn settled(
    request: &ApprovalRequest,
    standing: &Standing,
    late: bool,
    now_ms: u64,
) -> (&'static str, String) {
    let (title, body) = match standing {
        Standing::Decided(decision) => ("Decided already", decided(decision, now_ms)),
        Standing::Expired { at } => (
            "Nobody decided in time",
            format!("<p>The time was over {}.</p>", moment(*at, now_ms)),
        ),
        Standing::Cancelled { at, .. } => (
            "Cancelled",
            format!("<p>Whoever asked has withdrawn it {}.</p>", moment(*at, now_ms)),
        ),
        Standing::Pending => ("Not decided yet", String::new()),
    };
    let late = match late {
        true => "<p><b>Your decision came too late and does not count.</b></p>",
        false => "",
    };
    (title, format!("{late}{body}{}", asked(request, now_ms)))
}

fn decided(decision: &Decision, now_ms: u64) -> String {
    let word = match decision.decision {
        Answer::Approved => "<b class=\"good\">approved</b>",
        Answer::Rejected => "<b class=\"bad\">rejected</b>",
    };
    let comment = decision.comment.as_deref().map(|text| {
        let text = html(text);
        format!("<blockquote dir=\"auto\" class=\"comment\">{text}</blockquote>")
    });
    format!(
        "<p>It was {word} by {}, {}.</p>{}",
        name(&decision.by),
        moment(decision.at, now_ms),
        comment.unwrap_or_default()
    )
}

fn fact(title: &str, value: &str) -> String {
    format!("<div><dt>{title}</dt><dd>{value}</dd></div>")
}

/// A name that does not turn its neighbours around.
fn name(text: &str) -> String {
    format!("<bdi class=\"name\">{}</bdi>", html(text))
}

/// How long ago or ahead, and when.
fn moment(at_ms: u64, now_ms: u64) -> String {
    let apart = length(Duration::from_millis(at_ms.abs_diff(now_ms)));
    let relative = match at_ms > now_ms {
        _ if at_ms.abs_diff(now_ms) < 1_000 => "just now".to_owned(),
        true => format!("in {apart}"),
        false => format!("{apart} ago"),
    };
    format!("{relative} <span class=\"soft\">({})</span>", utc(at_ms))
}

/// As `2026-11-21 21:45:10 UTC`.
fn utc(at_ms: u64) -> String {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(at_ms));
    let iso = at.map(iso_micros).unwrap_or_default();
    let part = |range: Range<usize>| iso.get(range).unwrap_or_default();
    format!("{} {} UTC", part(0..10), part(11..19))
}

#[cfg(test)]
mod tests {
    use caf_protocol::approval::{ApprovalId, Way};
    use caf_protocol::ids::AssignmentKey;
    use proptest::prelude::*;

    use super::*;

    const NOW_MS: u64 = 1_763_761_510_000;

    fn request(description: &str) -> ApprovalRequest {
        ApprovalRequest {
            approval_id: ApprovalId::of(AssignmentKey::new("t", "a")),
            tenant_id: "acme".to_owned(),
            assignment_id: "a".to_owned(),
            request_id: None,
            run_id: None,
            flow_id: None,
            step_id: None,
            trace_id: None,
            approval_type: Some("deploy".to_owned()),
            description: description.to_owned(),
            approvers: Vec::new(),
            requested_at: NOW_MS - 61_000,
            expires_at: NOW_MS + 3_600_000,
        }
    }

    fn decision(comment: &str) -> Decision {
        Decision {
            decision: Answer::Rejected,
            by: "bob".to_owned(),
            comment: Some(comment.to_owned()),
            at: NOW_MS - 1_000,
            via: Way::Link,
        }
    }

    #[test]
    fn who_has_a_link_sees_what_is_asked_by_whom_since_and_until_when_and_two_buttons() {
        let request = request("Shall we?\nYes or no");
        let page = Letter::Asks(&request, "bob").render("n1", NOW_MS);
        for part in [
            "<style nonce=\"n1\">",
            "Shall we?\nYes or no",
            "acme",
            "deploy",
            "1 minute 1 second ago <span class=\"soft\">(2025-11-21 21:44:09 UTC)</span>",
            "in 1 hour <span class=\"soft\">(2025-11-21 22:45:10 UTC)</span>",
            "value=\"approved\"",
            "value=\"rejected\"",
            "<b class=\"name\">bob</b>",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("{{") && !page.contains("<script"), "{page}");
    }

    #[test]
    fn what_was_decided_is_told_and_who_comes_too_late_is_told_so() {
        let request = request("?");
        let standing = Standing::Decided(decision("too <early>"));
        let early = Letter::Settled(&request, &standing, false);
        let late = Letter::Settled(&request, &standing, true);
        for part in ["rejected", "bob", "1 second ago", "too &lt;early&gt;"] {
            assert!(early.render("n", NOW_MS).contains(part), "{part}");
        }
        assert!(!early.render("n", NOW_MS).contains("too late"));
        assert!(late.render("n", NOW_MS).contains("too late"));
        assert_eq!((early.status(), late.status()), (200, 409));
        for (standing, word) in [
            (Standing::Expired { at: NOW_MS }, "Nobody decided in time"),
            (
                Standing::Cancelled {
                    at: NOW_MS,
                    by: "nats".to_owned(),
                },
                "Cancelled",
            ),
        ] {
            let page = Letter::Settled(&request, &standing, false).render("n", NOW_MS);
            assert!(page.contains(word) && !page.contains("<form"), "{page}");
        }
    }

    #[test]
    fn a_page_about_nothing_tells_nothing() {
        for (letter, status) in [
            (Letter::Expired, 410),
            (Letter::Unknown, 404),
            (Letter::TooMany, 429),
            (Letter::Silent, 503),
            (Letter::Elsewhere, 403),
        ] {
            let page = letter.render("n", NOW_MS);
            assert_eq!(letter.status(), status);
            assert!(!page.contains("<form") && !page.contains("<dl>"), "{page}");
        }
    }

    proptest! {
        #[test]
        fn no_text_of_strangers_adds_an_element_or_a_place_to_fill(text: String, name: String, comment: String) {
            let count = |page: &str| (page.matches('<').count(), page.matches('"').count());
            let (plain, hostile) = (request("x"), request(&format!("{text}<b>{{{{nonce}}}}\"")));
            let asks = Letter::Asks(&hostile, &name).render("n", NOW_MS);
            prop_assert_eq!(count(&asks), count(&Letter::Asks(&plain, "x").render("n", NOW_MS)));
            let is_kept = asks.contains("{{nonce}}");
            prop_assert!(is_kept);
            let hostile = Letter::Done(&hostile, &Decision { by: name, ..decision(&comment) }).render("n", NOW_MS);
            prop_assert_eq!(count(&hostile), count(&Letter::Done(&plain, &decision("x")).render("n", NOW_MS)));
        }
    }
}
