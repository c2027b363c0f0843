//! Approvals on the admin port: the page `/approvals` for people, and below `/v1/approvals` what it and programs ask.
//!
//! Neighbours: [`super::admin`] puts it behind its guard, which lets browsers decide from this very page only; the
//! [`Desk`] does what is asked. What is asked of people comes from callers: it leaves as JSON, and the page puts it in as
//! text.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap};
use actix_web::{HttpRequest, HttpResponse, web};
use caf_actors::approvals::Cursor;
use caf_actors::clock;
use caf_protocol::approval::{Approval, ApprovalId, Way};
use serde_json::{Value, json};
use url::form_urlencoded;

use super::admin::page_of;
use super::body::read_body;
use super::tls::Certified;
use crate::approvals::form::{MAX_COMMENT_UNITS, read_decision, read_link_asked};
use crate::approvals::{Desk, Person, Trouble};

/// The page. Each answer puts a number that is used once in place of its marks.
const PAGE: &str = include_str!("approvals.html");
/// Where the page is.
pub const PAGE_PATH: &str = "/approvals";
/// Below which everything else is.
pub const API_PATH: &str = "/v1/approvals";
/// What may be done to one.
const DEEDS: [&str; 2] = ["decision", "links"];
/// Approvals of a list that does not say how many.
const LIMIT: usize = 50;
/// Longest tenant that is looked for, in bytes.
const MAX_TENANT_BYTES: usize = 1_024;

/// Puts them where they belong.
pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .route(PAGE_PATH, web::route().to(page))
        .route(API_PATH, web::route().to(list))
        .route("/v1/approvals/{id}", web::route().to(show))
        .route("/v1/approvals/{id}/decision", web::route().to(decide))
        .route("/v1/approvals/{id}/links", web::route().to(hand_out));
}

/// Whether a path changes something of an approval.
pub(super) fn changes(path: &str) -> bool {
    let deed = path
        .strip_prefix(API_PATH)
        .and_then(|rest| rest.strip_prefix('/')?.split_once('/'));
    deed.is_some_and(|(_, deed)| DEEDS.contains(&deed))
}

async fn page() -> HttpResponse {
    page_of(&PAGE.replace("{{comment}}", &MAX_COMMENT_UNITS.to_string()))
}

async fn list(request: HttpRequest, desk: web::Data<Desk>) -> HttpResponse {
    let bad = |error: &str| refused(StatusCode::BAD_REQUEST, error);
    let (mut tenant, mut from, mut limit) = (None, None, LIMIT);
    for (key, value) in form_urlencoded::parse(request.query_string().as_bytes()) {
        match &*key {
            "tenant" if value.len() <= MAX_TENANT_BYTES => {
                tenant = Some(value.into_owned()).filter(|tenant| !tenant.is_empty());
            }
            "cursor" if value.is_empty() => {}
            "cursor" => match Cursor::parse(&value) {
                Some(cursor) => from = Some(cursor),
                None => return bad("cursor must be the next_cursor of an earlier answer"),
            },
            "limit" => match value.parse() {
                Ok(wanted @ 1..) => limit = wanted,
                _ => return bad("limit must be a number from 1 on"),
            },
            _ => return bad("the only parameters are tenant, cursor and limit"),
        }
    }
    match desk.list(tenant.as_deref(), from.as_ref(), limit).await {
        Ok(listed) => HttpResponse::Ok().json(json!({
            "approvals": listed.approvals,
            "next_cursor": listed.next.map(|next| next.to_string()),
            "pending": listed.pending,
            "decides_as": request.conn_data::<Certified>().map(|certified| &certified.name),
            "now": clock::epoch_ms(),
        })),
        Err(trouble) => in_trouble(&trouble),
    }
}

async fn show(id: web::Path<String>, desk: web::Data<Desk>) -> HttpResponse {
    let Some(id) = ApprovalId::parse(&id) else {
        return in_trouble(&Trouble::Unknown);
    };
    match desk.show(&id).await {
        Ok(approval) => HttpResponse::Ok().json(told(&approval)),
        Err(trouble) => in_trouble(&trouble),
    }
}

async fn decide(
    request: HttpRequest,
    id: web::Path<String>,
    payload: web::Payload,
    desk: web::Data<Desk>,
) -> HttpResponse {
    let body = match read_body(&request, payload).await {
        Ok(body) => body,
        Err((status, error)) => return refused(status, &error),
    };
    let (filled, stated) = match read_decision(&body) {
        Ok(read) => read,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error),
    };
    let person = match person(&request, stated) {
        Ok(person) if !person.name.is_empty() => person,
        Ok(_) => return refused(StatusCode::BAD_REQUEST, "approver is missing: who decides?"),
        Err(error) => return refused(StatusCode::FORBIDDEN, error),
    };
    let Some(id) = ApprovalId::parse(&id) else {
        return in_trouble(&Trouble::Unknown);
    };
    match desk.decide(&id, filled, &person).await {
        Ok(approval) => HttpResponse::Ok().json(told(&approval)),
        Err(trouble) => in_trouble(&trouble),
    }
}

async fn hand_out(
    request: HttpRequest,
    id: web::Path<String>,
    payload: web::Payload,
    desk: web::Data<Desk>,
) -> HttpResponse {
    let body = match read_body(&request, payload).await {
        Ok(body) => body,
        Err((status, error)) => return refused(status, &error),
    };
    let asked = match read_link_asked(&body) {
        Ok(asked) => asked,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error),
    };
    // In whose name the link decides is in the body; who makes it is known by a certificate, or not at all.
    let maker = match person(&request, None) {
        Ok(maker) => maker,
        Err(error) => return refused(StatusCode::FORBIDDEN, error),
    };
    let Some(id) = ApprovalId::parse(&id) else {
        return in_trouble(&Trouble::Unknown);
    };
    match desk.hand_out(&id, asked, &maker).await {
        Ok(handed) => HttpResponse::Ok().json(json!({
            "url": handed.url,
            "approver": handed.approver,
            "expires_at": handed.expires_at,
        })),
        Err(trouble) => in_trouble(&trouble),
    }
}

/// Who asks: the holder of the certificate, or whoever was stated. Nobody decides in another's name with a certificate.
fn person(request: &HttpRequest, stated: Option<String>) -> Result<Person, &'static str> {
    let certified = request.conn_data::<Certified>();
    let (name, named_by) = match (certified, stated) {
        (Some(certified), Some(stated)) if stated != certified.name => {
            return Err("approver must be the name of your certificate, or left out");
        }
        (Some(certified), _) => (certified.name.clone(), "certificate"),
        (None, stated) => (stated.unwrap_or_default(), "stated"),
    };
    let from_page = comes_from_a_browser(request.headers());
    Ok(Person {
        name,
        via: if from_page { Way::Page } else { Way::Api },
        named_by,
        peer: request
            .peer_addr()
            .map(|peer| peer.ip().to_string())
            .unwrap_or_default(),
        link: None,
    })
}

fn comes_from_a_browser(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site")
}

/// With the time of this worker, so that who shows it need not trust its own.
fn told(approval: &Approval) -> Value {
    let mut told = json!(approval);
    told["now"] = clock::epoch_ms().into();
    told
}

fn refused(status: StatusCode, error: &str) -> HttpResponse {
    HttpResponse::build(status).json(json!({ "error": error }))
}

fn in_trouble(trouble: &Trouble) -> HttpResponse {
    let status = match trouble {
        Trouble::Off | Trouble::NotKept | Trouble::Unknown => StatusCode::NOT_FOUND,
        Trouble::Starting | Trouble::Silent => StatusCode::SERVICE_UNAVAILABLE,
        Trouble::Settled(_) | Trouble::NoBase => StatusCode::CONFLICT,
        Trouble::NotAnApprover(_) => StatusCode::FORBIDDEN,
        Trouble::Bad(_) => StatusCode::BAD_REQUEST,
    };
    let mut body = json!({ "error": trouble.to_string() });
    if let Trouble::Settled(approval) = trouble {
        body["approval"] = told(approval);
    }
    HttpResponse::build(status).json(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_and_a_link_change_something_and_nothing_else_does() {
        for path in [
            "/v1/approvals/x/decision",
            "/v1/approvals//links",
            "/v1/approvals/%2f/links",
        ] {
            assert!(changes(path), "{path}");
        }
        for path in [
            "/approvals",
            "/v1/approvals",
            "/v1/approvals/x",
            "/v1/approvals/x/decisions",
            "/v1/approvals/x/y/decision",
            "/v1/approvalsx/decision",
        ] {
            assert!(!changes(path), "{path}");
        }
    }
}
