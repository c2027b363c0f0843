//! The pages of the admin port: `/` for people, `/status`, `/explain/{assignment_id}` and `POST /v1/cancel` for programs;
//! [`super::approvals`] has its own.
//!
//! Neighbours: `serve` opens the port, [`super::guard`] stands before the pages, [`crate::admin`] has the answers. The page
//! at `/` is one file that asks the other two; what it may do is said by its policy.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::middleware::from_fn;
use actix_web::{HttpRequest, HttpResponse, web};
use percent_encoding::percent_decode_str;
use serde_json::json;
use url::form_urlencoded;

use super::approvals;
use super::body::read_body;
use super::guard::Guard;
use crate::admin::Admin;
use crate::admin::cancel::NotCancelled;
use crate::approvals::Desk;

/// The page. Each answer puts a number that is used once in place of [`NONCE`].
const PAGE: &str = include_str!("page.html");
/// Stands for the number in the page.
const NONCE: &str = "{{nonce}}";
/// Where explanations are; what follows is the id, percent-encoded.
const EXPLAIN: &str = "/explain/";
/// Longest id that is looked at, in bytes: no assignment has a longer one.
const MAX_ASKED_BYTES: usize = 1_024;

/// Most connections of the admin port: a page may have some 100 kB.
pub const CONNECTIONS: usize = 64;

/// Puts the pages where they belong.
pub fn pages(
    admin: Admin,
    desk: Desk,
    guard: Guard,
) -> impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static {
    let (admin, desk) = (web::Data::new(admin), web::Data::new(desk));
    move |config| {
        let guard = guard.clone();
        let guarded = web::scope("")
            .wrap(from_fn(move |request, next| guard.clone().pass(request, next)))
            .route("/", web::route().to(|| async { page_of(PAGE) }))
            .route("/status", web::route().to(status))
            .route("/explain/{assignment_id:.*}", web::route().to(explain))
            .route("/v1/cancel", web::route().to(cancel))
            .configure(approvals::routes)
            .default_service(web::to(nothing_here));
        config
            .app_data(admin.clone())
            .app_data(desk.clone())
            .service(guarded);
    }
}

/// One of the port's pages, with what it may do.
pub(super) fn page_of(page: &str) -> HttpResponse {
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut response = HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .body(page.replace(NONCE, &nonce));
    if let Ok(policy) = HeaderValue::try_from(policy) {
        response
            .headers_mut()
            .insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

async fn status(admin: web::Data<Admin>) -> HttpResponse {
    HttpResponse::Ok().json(admin.clean(admin.status().await))
}

async fn explain(request: HttpRequest, admin: web::Data<Admin>) -> HttpResponse {
    let bad = |error: &str| HttpResponse::BadRequest().json(json!({ "error": error }));
    // As it came: an id may hold an encoded slash.
    let asked = request.uri().path().strip_prefix(EXPLAIN).unwrap_or_default();
    let Ok(assignment_id) = percent_decode_str(asked).decode_utf8() else {
        return bad("the assignment id is not UTF-8");
    };
    if assignment_id.is_empty() || assignment_id.len() > MAX_ASKED_BYTES {
        return bad("ask for /explain/<assignment id>, percent-encoded, optionally with ?tenant=<tenant id>");
    }
    let mut tenant = None;
    for (key, value) in form_urlencoded::parse(request.query_string().as_bytes()) {
        match &*key {
            "tenant" if value.len() <= MAX_ASKED_BYTES => tenant = Some(value.into_owned()),
            _ => return bad("the only parameter is tenant"),
        }
    }
    let tenant = tenant.filter(|tenant| !tenant.is_empty());
    let explained = admin.explain(&assignment_id, tenant.as_deref()).await;
    let body = admin.clean(explained.body);
    match explained.found {
        true => HttpResponse::Ok().json(body),
        false => HttpResponse::NotFound().json(body),
    }
}

async fn cancel(request: HttpRequest, payload: web::Payload, admin: web::Data<Admin>) -> HttpResponse {
    let said = |status: StatusCode, error: &str| HttpResponse::build(status).json(json!({ "error": error }));
    let body = match read_body(&request, payload).await {
        Ok(body) => body,
        Err((status, error)) => return said(status, &error),
    };
    match admin.cancel(&body).await {
        Ok(answer) => HttpResponse::Ok().json(answer),
        Err(NotCancelled::Bad(error)) => said(StatusCode::BAD_REQUEST, &error),
        Err(NotCancelled::Off) => said(
            StatusCode::NOT_FOUND,
            "requests to cancel are not carried out: worker.cancellation.enabled is off",
        ),
    }
}

async fn nothing_here() -> HttpResponse {
    HttpResponse::NotFound().json(json!({
        "error": "there is nothing here: see /, /status, /explain/<assignment id>, /approvals, /v1/approvals and POST /v1/cancel"
    }))
}
