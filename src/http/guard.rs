//! Who may ask the admin port: the right host name, the token where one is set, and a method that suits the page. What
//! changes something is asked for with POST and JSON, by programs; by a browser only what the port's own page offers, and
//! only from that page.
//!
//! Neighbours: [`super::admin`] puts it before its pages. A page of another site that a browser was led to cannot read
//! answers (no CORS), nor pretend to be of this site: a name that was bound to this address (DNS rebinding) is not one of
//! ours. Compares tokens in a time that does not tell how much of them is right.

use std::hint::black_box;
use std::net::IpAddr;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, HttpResponse};
use caf_protocol::ids::sha256;
use serde_json::json;
use tokio::time::Instant;

use super::approvals;
use super::audit::{Asker, Audit};

/// The pages that need no token: they hold nothing, and ask for the token.
const OPEN_PATHS: [&str; 2] = ["/", approvals::PAGE_PATH];

/// Where something is changed by programs only: no page offers it.
const BY_PROGRAMS: [&str; 1] = ["/v1/cancel"];

/// What every answer of the port says to browsers.
const ALWAYS: [(HeaderName, &str); 6] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CROSS_ORIGIN_RESOURCE_POLICY, "same-origin"),
    (header::CROSS_ORIGIN_OPENER_POLICY, "same-origin"),
];
/// What an answer without a policy of its own says: nothing of it is to be run.
const NOTHING: &str = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Who may ask.
#[derive(Clone)]
pub struct Guard {
    /// Digest of the token, where one is set.
    token: Option<[u8; 32]>,
    /// Names under which the port is reached, beside addresses and `localhost`; in lower case.
    hosts: Vec<String>,
    /// Where calls are told of, and wrong tokens counted.
    audit: Option<Audit>,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Only questions are answered here.
    Method,
    /// Only POST changes something.
    NotPost,
    /// It comes from a browser, and changes something.
    Browser,
    /// It changes something, and what it brings is no JSON.
    NotJson,
    /// A name that is not ours, or none.
    Host,
    /// The token is missing or wrong.
    Token,
    /// Too many wrong tokens: the next is looked at after so many seconds.
    Guessing(u64),
}

impl Guard {
    /// With this token, and names beside addresses and `localhost`.
    pub fn new(token: Option<&str>, hosts: &[String]) -> Self {
        Self {
            token: token.map(|token| sha256(token.as_bytes())),
            hosts: hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            audit: None,
        }
    }

    /// Tells of every call, and lets nobody guess tokens.
    #[must_use]
    pub fn with_audit(mut self, audit: Audit) -> Self {
        self.audit = Some(audit);
        self
    }

    /// Judges a request.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn judge(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Refused> {
        let by_programs = BY_PROGRAMS.contains(&path);
        let changes = by_programs || approvals::changes(path);
        if changes && method != Method::POST {
            return Err(Refused::NotPost);
        }
        if !changes && method != Method::GET && method != Method::HEAD {
            return Err(Refused::Method);
        }
        let host = only(headers, &header::HOST).filter(|host| self.is_ours(host));
        let host = host.ok_or(Refused::Host)?;
        if !OPEN_PATHS.contains(&path) && !self.has_token(headers) {
            return Err(Refused::Token);
        }
        if !changes {
            return Ok(());
        }
        if is_of_browser(headers) && (by_programs || !is_from_own_page(headers, host)) {
            return Err(Refused::Browser);
        }
        judge_change(headers)
    }

    /// Whether a `Host` header names this port: an address, `localhost`, or a configured name.
    fn is_ours(&self, host: &str) -> bool {
        if let Some(rest) = host.strip_prefix('[') {
            return rest.split_once(']').is_some_and(|(address, port)| {
                address.parse::<std::net::Ipv6Addr>().is_ok() && is_port(port)
            });
        }
        let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let known = name == "localhost"
            || self.hosts.contains(&name)
            || matches!(name.parse::<IpAddr>(), Ok(IpAddr::V4(_)));
        known && is_port(port)
    }

    fn has_token(&self, headers: &HeaderMap) -> bool {
        let Some(wanted) = &self.token else { return true };
        let mut given = headers.get_all(header::AUTHORIZATION);
        let (Some(given), None) = (given.next(), given.next()) else {
            return false;
        };
        let Some((scheme, token)) = given.to_str().ok().and_then(|text| text.split_once(' ')) else {
            return false;
        };
        // Digests have one length, and which of their bytes differ says nothing about the token.
        let given = sha256(token.trim().as_bytes());
        let different = given.iter().zip(wanted).fold(0, |bits, (a, b)| bits | (a ^ b));
        scheme.eq_ignore_ascii_case("bearer") && black_box(different) == 0
    }

    /// The middleware: refuses, or asks the page; and says to browsers what they may do with the answer.
    pub async fn pass<B: MessageBody + 'static>(
        self,
        request: ServiceRequest,
        next: Next<B>,
    ) -> Result<ServiceResponse<actix_web::body::BoxBody>, Error> {
        let (asker, began) = (Asker::of(&request), Instant::now());
        let asked = (request.method().clone(), request.path().to_owned());
        let has_token = self.token.is_some() && self.has_token(request.headers());
        let judged = self.judge_guesses(&asker, &request);
        let mut response = match judged {
            Ok(()) => next.call(request).await?.map_into_boxed_body(),
            Err(refused) => request.into_response(refused.response()),
        };
        let headers = response.headers_mut();
        for (name, value) in ALWAYS {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if !headers.contains_key(header::CONTENT_SECURITY_POLICY) {
            headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(NOTHING));
        }
        if let Some(audit) = &self.audit {
            let has_token = has_token && !matches!(judged, Err(Refused::Guessing(_)));
            audit.tell(
                &asker,
                has_token,
                (&asked.0, &asked.1),
                response.status(),
                began.elapsed(),
            );
        }
        Ok(response)
    }

    /// As [`Self::judge`]; but the token of a peer that guesses is not looked at, so that guessing tells nothing.
    fn judge_guesses(&self, asker: &Asker, request: &ServiceRequest) -> Result<(), Refused> {
        let headers = request.headers();
        let judge = || self.judge(request.method(), request.path(), headers);
        let brings_one = self.token.is_some() && headers.contains_key(header::AUTHORIZATION);
        let Some(audit) = self.audit.as_ref().filter(|_| brings_one) else {
            return judge();
        };
        if let Some(left) = audit.peers.must_wait(asker.peer, Instant::now()) {
            return Err(Refused::Guessing(left.as_secs() + 1));
        }
        if !self.has_token(headers) {
            audit.peers.note_wrong_token(asker.peer, Instant::now());
        }
        judge()
    }
}

/// The value of a header that is there once, as text.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut all = headers.get_all(name);
    match (all.next(), all.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// A browser says with each POST where it comes from.
fn is_of_browser(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN) || headers.contains_key(FETCH_SITE)
}

/// Whether a browser says that a page of this very host and port has sent it. A name that is not ours (DNS rebinding) was
/// refused before. Whether `http` or `https` is the proxy's affair.
fn is_from_own_page(headers: &HeaderMap, host: &str) -> bool {
    let same_site = !headers.contains_key(FETCH_SITE) || only(headers, &FETCH_SITE) == Some("same-origin");
    let origin = only(headers, &header::ORIGIN).and_then(|origin| origin.split_once("://"));
    same_site
        && origin.is_some_and(|(scheme, authority)| {
            matches!(scheme, "http" | "https") && authority.eq_ignore_ascii_case(host)
        })
}

/// No page can make a browser send JSON elsewhere without asking first, with a method that is refused here.
fn judge_change(headers: &HeaderMap) -> Result<(), Refused> {
    let mut kinds = headers.get_all(header::CONTENT_TYPE);
    let is_json = |kind: &HeaderValue| {
        let kind = kind.to_str().unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/json")
    };
    match (kinds.next(), kinds.next()) {
        (Some(kind), None) if is_json(kind) => Ok(()),
        _ => Err(Refused::NotJson),
    }
}

/// Nothing, or a colon and a port.
fn is_port(text: &str) -> bool {
    text.is_empty()
        || text
            .strip_prefix(':')
            .is_some_and(|port| port.parse::<u16>().is_ok())
}

impl Refused {
    fn response(self) -> HttpResponse {
        let (status, error) = match self {
            Self::Method => (
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET and HEAD are answered here",
            ),
            Self::NotPost => (
                StatusCode::METHOD_NOT_ALLOWED,
                "this page changes something: only POST is answered here",
            ),
            Self::Browser => (
                StatusCode::FORBIDDEN,
                "a request of a browser (it has an Origin) changes nothing here, but for approvals from their own page",
            ),
            Self::NotJson => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the request must say Content-Type: application/json",
            ),
            Self::Host => (
                StatusCode::MISDIRECTED_REQUEST,
                "the Host header must be an IP address, localhost, or a name of http.admin_hosts",
            ),
            Self::Token => (
                StatusCode::UNAUTHORIZED,
                "the token of http.admin_token is needed: Authorization: Bearer <token>",
            ),
            Self::Guessing(_) => (
                StatusCode::TOO_MANY_REQUESTS,
                "too many wrong tokens: try again later",
            ),
        };
        let mut response = HttpResponse::build(status);
        match self {
            Self::Guessing(secs) => {
                response.insert_header((header::RETRY_AFTER, secs));
            }
            Self::Method => {
                response.insert_header((header::ALLOW, "GET, HEAD"));
            }
            Self::Token => {
                response.insert_header((header::WWW_AUTHENTICATE, "Bearer realm=\"caf-worker\""));
            }
            Self::NotPost => {
                response.insert_header((header::ALLOW, "POST"));
            }
            Self::Host | Self::Browser | Self::NotJson => {}
        }
        response.json(json!({ "error": error }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(
                name.clone(),
                HeaderValue::from_bytes(value.as_bytes()).expect("fits"),
            );
        }
        headers
    }

    #[test]
    fn only_addresses_localhost_and_configured_names_are_hosts_of_the_port() {
        let guard = Guard::new(None, &["Worker-0.workers".to_owned()]);
        let judge = |host: &str| guard.judge(&Method::GET, "/status", &headers(&[(header::HOST, host)]));
        for ours in [
            "127.0.0.1",
            "127.0.0.1:9093",
            "10.1.2.3:1",
            "[::1]",
            "[::1]:9093",
            "localhost",
            "LOCALHOST:80",
            "localhost.",
            "worker-0.WORKERS:9093",
        ] {
            assert_eq!(judge(ours), Ok(()), "{ours}");
        }
        for other in [
            "",
            "evil.example",
            "evil.example:9093",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "127.0.0.1:port",
            "127.0.0.1:99999",
            "user@127.0.0.1",
            "127.0.0.1:80@evil.example",
            "[::1",
            "[evil]",
            "[::1]evil",
            "::1",
            "worker-0",
            "2130706433",
            "0x7f.1",
        ] {
            assert_eq!(judge(other), Err(Refused::Host), "{other}");
        }
        let none = guard.judge(&Method::GET, "/status", &headers(&[]));
        assert_eq!(none, Err(Refused::Host));
        let two = headers(&[(header::HOST, "127.0.0.1"), (header::HOST, "evil")]);
        assert_eq!(guard.judge(&Method::GET, "/", &two), Err(Refused::Host));
    }

    #[test]
    fn a_token_that_is_set_is_needed_for_everything_but_the_empty_page() {
        let guard = Guard::new(Some("s3cret"), &[]);
        let host = (header::HOST, "127.0.0.1");
        let judge = |path: &str, given: &[&str]| {
            let given = given.iter().map(|given| (header::AUTHORIZATION, *given));
            let pairs: Vec<_> = given.chain([host.clone()]).collect();
            guard.judge(&Method::GET, path, &headers(&pairs))
        };
        for right in ["Bearer s3cret", "bearer s3cret", "Bearer  s3cret "] {
            assert_eq!(judge("/status", &[right]), Ok(()), "{right}");
        }
        for wrong in [
            "",
            "s3cret",
            "Bearer",
            "Bearer ",
            "Bearer s3cre",
            "Bearer s3cretx",
            "Basic s3cret",
            "Bearer S3CRET",
            "Bearer ü",
        ] {
            assert_eq!(judge("/status", &[wrong]), Err(Refused::Token), "{wrong}");
            assert_eq!(judge("/anything", &[wrong]), Err(Refused::Token), "{wrong}");
        }
        assert_eq!(judge("/status", &[]), Err(Refused::Token));
        let two = ["Bearer wrong", "Bearer s3cret"];
        assert_eq!(judge("/status", &two), Err(Refused::Token));
        assert_eq!(judge("/", &[]), Ok(()));
    }

    #[test]
    fn only_questions_are_answered() {
        let guard = Guard::new(None, &[]);
        let host = headers(&[(header::HOST, "127.0.0.1")]);
        for method in [
            Method::POST,
            Method::PUT,
            Method::DELETE,
            Method::OPTIONS,
            Method::TRACE,
        ] {
            assert_eq!(guard.judge(&method, "/", &host), Err(Refused::Method), "{method}");
        }
        assert_eq!(guard.judge(&Method::HEAD, "/", &host), Ok(()));
    }

    #[test]
    fn a_browser_decides_from_the_page_of_this_port_only() {
        let guard = Guard::new(None, &["worker".to_owned()]);
        let judge = |path: &str, host: &str, said: &[(HeaderName, &str)]| {
            let json = (header::CONTENT_TYPE, "application/json");
            let all = [&[(header::HOST, host), json], said].concat();
            guard.judge(&Method::POST, path, &headers(&all))
        };
        let origin = |of: &'static str| (header::ORIGIN, of);
        let site = |of: &'static str| (FETCH_SITE, of);
        let path = "/v1/approvals/x/decision";
        for (host, said) in [
            ("127.0.0.1:9093", vec![]),
            ("127.0.0.1:9093", vec![origin("http://127.0.0.1:9093")]),
            (
                "[::1]:9093",
                vec![origin("http://[::1]:9093"), site("same-origin")],
            ),
            ("Worker", vec![origin("https://worker"), site("same-origin")]),
        ] {
            assert_eq!(judge(path, host, &said), Ok(()), "{said:?}");
        }
        for said in [
            vec![origin("http://127.0.0.1:9094")],
            vec![origin("http://127.0.0.1")],
            vec![origin("http://localhost:9093")],
            vec![origin("null")],
            vec![origin("")],
            vec![origin("http://evil.example")],
            vec![origin("http://evil.example/127.0.0.1:9093")],
            vec![origin("ftp://127.0.0.1:9093")],
            vec![origin("http://127.0.0.1:9093"), origin("http://127.0.0.1:9093")],
            vec![origin("http://127.0.0.1:9093"), site("same-site")],
            vec![origin("http://127.0.0.1:9093"), site("cross-site")],
            vec![origin("http://127.0.0.1:9093"), site("none")],
            vec![
                origin("http://127.0.0.1:9093"),
                site("same-origin"),
                site("same-origin"),
            ],
            vec![site("same-origin")],
            vec![site("none")],
        ] {
            assert_eq!(
                judge(path, "127.0.0.1:9093", &said),
                Err(Refused::Browser),
                "{said:?}"
            );
        }
        // A name that was bound to this address, from its own page.
        let rebound = [origin("http://evil.example"), site("same-origin")];
        assert_eq!(judge(path, "evil.example", &rebound), Err(Refused::Host));
        // What no page offers.
        let own = [origin("http://127.0.0.1:9093"), site("same-origin")];
        assert_eq!(judge("/v1/cancel", "127.0.0.1:9093", &own), Err(Refused::Browser));
        let host = headers(&[(header::HOST, "127.0.0.1")]);
        assert_eq!(guard.judge(&Method::POST, path, &host), Err(Refused::NotJson));
        assert_eq!(guard.judge(&Method::GET, path, &host), Err(Refused::NotPost));
        let closed = Guard::new(Some("t"), &[]);
        assert_eq!(closed.judge(&Method::GET, "/approvals", &host), Ok(()));
        for wants_token in ["/v1/approvals", "/v1/approvals/x", "/approvals/", "/approvalsx"] {
            assert_eq!(
                closed.judge(&Method::GET, wants_token, &host),
                Err(Refused::Token),
                "{wants_token}"
            );
        }
    }

    #[test]
    fn what_changes_something_is_asked_by_programs_with_post_and_json_only() {
        let guard = Guard::new(Some("t"), &[]);
        let judge = |method: &Method, change: &[(HeaderName, &str)]| {
            let all = [
                &[(header::HOST, "127.0.0.1"), (header::AUTHORIZATION, "Bearer t")],
                change,
            ]
            .concat();
            guard.judge(method, "/v1/cancel", &headers(&all))
        };
        let json = (header::CONTENT_TYPE, "application/json; charset=utf-8");
        assert_eq!(judge(&Method::POST, std::slice::from_ref(&json)), Ok(()));
        for method in [Method::GET, Method::HEAD, Method::PUT, Method::OPTIONS] {
            let judged = judge(&method, std::slice::from_ref(&json));
            assert_eq!(judged, Err(Refused::NotPost), "{method}");
        }
        for kind in [
            None,
            Some("text/plain"),
            Some("application/x-www-form-urlencoded"),
            Some(""),
        ] {
            let kind: Vec<_> = kind
                .map(|kind| (header::CONTENT_TYPE, kind))
                .into_iter()
                .collect();
            assert_eq!(judge(&Method::POST, &kind), Err(Refused::NotJson), "{kind:?}");
        }
        for origin in ["http://127.0.0.1", "http://evil.example", "null"] {
            let from = [json.clone(), (header::ORIGIN, origin)];
            assert_eq!(judge(&Method::POST, &from), Err(Refused::Browser), "{origin}");
        }
        let fetched = [json.clone(), (HeaderName::from_static("sec-fetch-site"), "none")];
        assert_eq!(judge(&Method::POST, &fetched), Err(Refused::Browser));
        let no_token = headers(&[(header::HOST, "127.0.0.1"), json]);
        assert_eq!(
            guard.judge(&Method::POST, "/v1/cancel", &no_token),
            Err(Refused::Token)
        );
    }
}
