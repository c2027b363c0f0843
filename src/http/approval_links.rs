//! The port behind links that were handed out: `/a/<link>`, and nothing else.
//!
//! Neighbours: `ports` opens it where `http.approval_addr` is set; the [`Desk`] reads links and decides, [`Letter`] is what
//! people see. Looking (GET, HEAD) changes nothing. The link is the proof: who does not have it can neither look nor make
//! a browser decide, so no cookie is set and no account needed. Never writes a link to the log.

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::{Next, from_fn};
use actix_web::{Error, HttpRequest, HttpResponse, web};
use caf_actors::clock;
use caf_protocol::approval::{Standing, Way};
use tokio::time::Instant;

use super::body::read_body;
use super::peers::{Peer, Peers};
use crate::approvals::form::read_form;
use crate::approvals::letter::Letter;
use crate::approvals::link::{Closed, Link};
use crate::approvals::{Desk, Opened, Person, Shut, Trouble};

/// Most connections: a page has some kilobytes.
pub const CONNECTIONS: usize = 64;
/// What a form of a page says that it is.
const FORM: &str = "application/x-www-form-urlencoded";

/// What every answer says to browsers: kept nowhere, framed nowhere, and the address told to nobody.
const ALWAYS: [(HeaderName, &str); 7] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CROSS_ORIGIN_RESOURCE_POLICY, "same-origin"),
    (header::CROSS_ORIGIN_OPENER_POLICY, "same-origin"),
    (HeaderName::from_static("x-robots-tag"), "noindex, nofollow"),
];

/// What the pages need.
#[derive(Clone)]
struct Counter {
    desk: Desk,
    peers: Peers,
}

/// Puts the pages where they belong. `peers` counts who tries links that lead nowhere.
pub fn pages(desk: Desk, peers: Peers) -> impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static {
    let counter = web::Data::new(Counter { desk, peers });
    move |config| {
        let scope = web::scope("")
            .wrap(from_fn(with_headers))
            .route("/a/{link}", web::route().to(link))
            .default_service(web::to(|| async { shown(&Letter::Unknown) }));
        config.app_data(counter.clone()).service(scope);
    }
}

async fn with_headers<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    let mut response = next.call(request).await?;
    for (name, value) in ALWAYS {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

async fn link(
    request: HttpRequest,
    text: web::Path<String>,
    payload: web::Payload,
    counter: web::Data<Counter>,
) -> HttpResponse {
    let method = request.method();
    let decides = method == Method::POST;
    if !decides && method != Method::GET && method != Method::HEAD {
        let mut response = HttpResponse::MethodNotAllowed();
        return response
            .insert_header((header::ALLOW, "GET, HEAD, POST"))
            .finish();
    }
    let opened = match counter.desk.look(&text).await {
        Ok(opened) => opened,
        Err(shut) => return counter.refuse(&request, shut),
    };
    match decides {
        true => counter.decide(&request, payload, opened).await,
        false => {
            let Opened { link, approval } = &opened;
            let name = link.decides_as();
            shown(&match &approval.standing {
                Standing::Pending => Letter::Asks(&approval.request, &name),
                standing => Letter::Settled(&approval.request, standing, false),
            })
        }
    }
}

impl Counter {
    /// Says that a link opens nothing. A neighbour who tries many keeps nobody out: whole offices share an address, and no
    /// number of tries finds a link.
    fn refuse(&self, request: &HttpRequest, shut: Shut) -> HttpResponse {
        match shut {
            Shut::Silent => shown(&Letter::Silent),
            Shut::Link(Closed::Expired) => shown(&Letter::Expired),
            Shut::Link(Closed::Forged) => {
                let (address, now) = (request.peer_addr().map(|peer| peer.ip()), Instant::now());
                let peer = address.map(Peer::at);
                // A few in a minute: strangers do not fill the log.
                if let Some((address, peer)) = address.zip(peer)
                    && self.peers.tells_refusal(peer, now)
                {
                    self.desk.tell_forged(&address.to_string());
                }
                let wait = peer.and_then(|peer| self.peers.must_wait(peer, now));
                if let Some(wait) = wait {
                    let mut response = shown(&Letter::TooMany);
                    let secs = HeaderValue::from(wait.as_secs() + 1);
                    response.headers_mut().insert(header::RETRY_AFTER, secs);
                    return response;
                }
                if let Some(peer) = peer {
                    self.peers.note_wrong_token(peer, now);
                }
                shown(&Letter::Unknown)
            }
        }
    }

    async fn decide(&self, request: &HttpRequest, payload: web::Payload, opened: Opened) -> HttpResponse {
        if !is_from_the_page(request.headers()) {
            return shown(&Letter::Elsewhere);
        }
        if !is_form(request.headers()) {
            return shown(&Letter::Unreadable("it is not the form of the page"));
        }
        let body = match read_body(request, payload).await {
            Ok(body) => body,
            Err((_, error)) => return shown(&Letter::Unreadable(&error)),
        };
        let filled = match read_form(&body) {
            Ok(filled) => filled,
            Err(error) => return shown(&Letter::Unreadable(&error)),
        };
        let Opened { link, approval } = opened;
        let person = person(request, &link);
        let answer = filled.decision;
        match self.desk.decide(&link.approval_id, filled, &person).await {
            Ok(approval) => shown(&done(&approval.standing, &approval.request)),
            Err(Trouble::Settled(approval)) => {
                // The same finger twice, or a browser that asks again.
                let own = matches!(&approval.standing, Standing::Decided(decision)
                    if decision.decision == answer && decision.by == person.name && decision.via == Way::Link);
                shown(&match own {
                    true => done(&approval.standing, &approval.request),
                    false => Letter::Settled(&approval.request, &approval.standing, true),
                })
            }
            Err(Trouble::NotAnApprover(name)) => shown(&Letter::NotYours(&name)),
            Err(Trouble::Bad(error)) => shown(&Letter::Unreadable(&error)),
            Err(Trouble::Unknown | Trouble::Off | Trouble::NotKept) => {
                shown(&Letter::Settled(&approval.request, &approval.standing, false))
            }
            Err(Trouble::Silent | Trouble::Starting | Trouble::NoBase) => shown(&Letter::Silent),
        }
    }
}

fn done<'a>(standing: &'a Standing, request: &'a caf_protocol::approval::ApprovalRequest) -> Letter<'a> {
    match standing {
        Standing::Decided(decision) => Letter::Done(request, decision),
        standing => Letter::Settled(request, standing, true),
    }
}

fn person(request: &HttpRequest, link: &Link) -> Person {
    Person {
        name: link.decides_as(),
        via: Way::Link,
        named_by: "link",
        peer: request
            .peer_addr()
            .map(|peer| peer.ip().to_string())
            .unwrap_or_default(),
        link: Some(link.name()),
    }
}

/// Browsers say which site a form comes from. The page's own policy keeps `Origin` from being told, and who has no such
/// browser has the link all the same.
fn is_from_the_page(headers: &HeaderMap) -> bool {
    let sites = headers.get_all("sec-fetch-site");
    sites
        .into_iter()
        .all(|site| site == "same-origin" || site == "none")
}

fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default();
    kind.trim().eq_ignore_ascii_case(FORM)
}

fn shown(letter: &Letter<'_>) -> HttpResponse {
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; img-src data:; form-action 'self'; base-uri 'none'; \
         frame-ancestors 'none'"
    );
    let status = StatusCode::from_u16(letter.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = HttpResponse::build(status)
        .content_type("text/html; charset=utf-8")
        .body(letter.render(&nonce, clock::epoch_ms()));
    if let Ok(policy) = HeaderValue::try_from(policy) {
        response
            .headers_mut()
            .insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}
