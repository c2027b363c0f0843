//! Where an answer sends the request next, and what of the request goes along.
//!
//! Neighbours: [`super`] asks after every answer, and lets the guard check the new target as it did the first. Never
//! sends anything.

use awc::http::header::{self, HeaderName, HeaderValue};
use awc::http::{Method, StatusCode};
use caf_protocol::trace_context::{SpanContext, TRACEPARENT, TRACESTATE};
use url::Url;

use super::request::{Request, check_url};

/// Tells the other side in which span it is called (W3C), unless the job speaks of a trace itself. Returns whether it did.
pub(super) fn say_span(request: &mut Request, span: Option<&SpanContext>) -> bool {
    let Some(span) = span.filter(|_| !request.headers.contains_key(TRACEPARENT)) else {
        return false;
    };
    let headers = [
        (TRACEPARENT, Some(span.traceparent())),
        (TRACESTATE, span.state.as_deref().map(str::to_owned)),
    ];
    for (name, value) in headers {
        let value = value.and_then(|value| HeaderValue::try_from(value).ok());
        request.headers.remove(name);
        if let Some(value) = value {
            request.headers.insert(HeaderName::from_static(name), value);
        }
    }
    true
}

/// Takes that back where a redirect leads to another origin: whose trace it is, only the one that the job named is told.
pub(super) fn unsay_span(next: &mut Request, from: &Url) {
    if !same_origin(from, &next.url) {
        next.headers.remove(TRACEPARENT);
        next.headers.remove(TRACESTATE);
    }
}

/// Parts of header names that hold secrets, in names without their dashes and underscores. Wider than what the log hides:
/// a header too few costs a redirect to another host, one too many costs the secret.
const SECRET_PARTS: [&str; 19] = [
    "auth",
    "bearer",
    "cookie",
    "creditcard",
    "cardnumber",
    "credential",
    "email",
    "passphrase",
    "passwd",
    "password",
    "phone",
    "pwd",
    "secret",
    "session",
    "signature",
    "socialsecurity",
    "ssn",
    "token",
    "jwt",
];

/// Whether a header may hold what only the origin that the job named is to learn.
fn is_secret(name: &str) -> bool {
    let squashed: String = name.chars().filter(|c| !matches!(c, '-' | '_' | '.')).collect();
    let is_short = name
        .split(['-', '_', '.'])
        .any(|word| matches!(word, "pw" | "sig" | "sid"));
    // x-api-key, ocp-apim-subscription-key, x-functions-key and their like; only the key of idempotence opens nothing.
    let is_key = squashed.ends_with("key") && !squashed.ends_with("idempotencykey")
        || ["apikey", "accesskey", "accountkey", "privatekey", "masterkey"]
            .iter()
            .any(|part| squashed.contains(part));
    is_short || is_key || SECRET_PARTS.iter().any(|part| squashed.contains(part))
}

/// The next hop: nothing when the answer is final, an error when it points where no request can go.
pub(super) fn next_hop(
    request: &Request,
    status: StatusCode,
    location: Option<&str>,
    follow_downgrades: bool,
) -> Option<Result<Request, &'static str>> {
    let keeps_method = match status.as_u16() {
        301..=303 => false,
        307 | 308 => true,
        _ => return None,
    };
    let Ok(mut url) = request.url.join(location?) else {
        return Some(Err("the redirect's target is not an address"));
    };
    if check_url(&url).is_err() {
        return Some(Err("the redirect's target is not an http or https address"));
    }
    if !follow_downgrades && request.url.scheme() == "https" && url.scheme() == "http" {
        return Some(Err("the redirect leads from https to http"));
    }
    if url.fragment().is_none() {
        url.set_fragment(request.url.fragment());
    }
    let mut next = request.clone();
    if !keeps_method {
        if next.method != Method::HEAD {
            next.method = Method::GET;
        }
        next.body = None;
        for name in [
            header::CONTENT_TYPE,
            header::CONTENT_ENCODING,
            header::CONTENT_LANGUAGE,
        ] {
            next.headers.remove(name);
        }
    }
    if !same_origin(&request.url, &url) {
        let secret: Vec<HeaderName> = next
            .headers
            .keys()
            .filter(|name| is_secret(name.as_str()))
            .cloned()
            .collect();
        for name in secret {
            next.headers.remove(name);
        }
    }
    next.url = url;
    Some(Ok(next))
}

pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host_str() == b.host_str()
        && a.port_or_known_default() == b.port_or_known_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::HttpSettings;
    use crate::tests::inputs;
    use serde_json::json;

    fn request(method: &str) -> Request {
        let given = json!({
            "url": "http://a.example/x", "method": method, "body": {"a": 1},
            "headers": {"Authorization": "Bearer t", "Cookie": "c", "Proxy-Authorization": "p", "X-Keep": "k"},
        });
        Request::from_inputs(&inputs(given), &HttpSettings::default()).expect("reads")
    }

    fn next(method: &str, status: u16, location: &str) -> Request {
        let status = StatusCode::from_u16(status).expect("is a status");
        next_hop(&request(method), status, Some(location), true)
            .expect("is a redirect")
            .expect("can be followed")
    }

    #[test]
    fn the_status_decides_whether_method_and_body_go_along() {
        for (method, status, expected, has_body) in [
            ("POST", 301, Method::GET, false),
            ("PUT", 302, Method::GET, false),
            ("DELETE", 303, Method::GET, false),
            ("HEAD", 302, Method::HEAD, false),
            ("POST", 307, Method::POST, true),
            ("PATCH", 308, Method::PATCH, true),
        ] {
            let next = next(method, status, "/y");
            assert_eq!(
                (next.method, next.body.is_some()),
                (expected, has_body),
                "{method} {status}"
            );
            assert_eq!(
                next.headers.contains_key("content-type"),
                has_body,
                "{method} {status}"
            );
        }
    }

    #[test]
    fn credentials_stay_with_their_origin() {
        for (location, keeps) in [
            ("/y", true),
            ("http://a.example:80/y", true),
            ("http://A.EXAMPLE/y", true),
            ("http://b.example/y", false),
            ("http://a.example:81/y", false),
            ("https://a.example/y", false),
            ("//b.example/y", false),
        ] {
            let next = next("GET", 307, location);
            for name in ["authorization", "cookie", "proxy-authorization"] {
                assert_eq!(next.headers.contains_key(name), keeps, "{location} {name}");
            }
            assert!(next.headers.contains_key("x-keep"), "{location}");
        }
    }

    #[test]
    fn headers_that_may_hold_secrets_are_told_from_others_by_their_names() {
        for name in [
            "authorization",
            "proxy-authorization",
            "cookie",
            "cookie2",
            "x-api-key",
            "api-key",
            "apikey",
            "x-auth-token",
            "x-amz-security-token",
            "x-goog-api-key",
            "ocp-apim-subscription-key",
            "x-functions-key",
            "x-vault-token",
            "private-token",
            "x-csrf-token",
            "x-hub-signature-256",
            "x-webhook-secret",
            "x-session-id",
            "x-user-email",
            "x-client-sig",
            "x_api_key",
            "x-jwt-assertion",
            "x-forwarded-access-token",
        ] {
            assert!(is_secret(name), "{name}");
        }
        for name in [
            "accept",
            "content-type",
            "idempotency-key",
            "x-idempotency-key",
            "traceparent",
            "user-agent",
            "x-keep",
            "x-request-id",
            "range",
            "if-none-match",
        ] {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[test]
    fn a_redirect_to_an_unencrypted_connection_is_followed_only_where_the_settings_let_it() {
        let mut secure = request("GET");
        secure.url = Url::parse("https://a.example/").expect("is a URL");
        let hop =
            |location, follow| next_hop(&secure, StatusCode::FOUND, Some(location), follow).expect("is one");
        let followed = hop("http://a.example/", true).expect("is followed");
        assert!(
            !followed.headers.contains_key("authorization"),
            "credentials stay"
        );
        assert_eq!(
            hop("http://a.example/", false).err(),
            Some("the redirect leads from https to http")
        );
        assert!(hop("https://b.example/", false).is_ok());
        assert!(
            next_hop(
                &request("GET"),
                StatusCode::FOUND,
                Some("http://b.example/"),
                false
            )
            .is_some_and(|hop| hop.is_ok())
        );
    }

    #[test]
    fn the_span_is_told_to_the_origin_that_the_job_names_and_to_no_other() {
        let mut span =
            SpanContext::from_traceparent("00-9f3c1a7be24d40c88a61d2f05b7e934c-00f067aa0ba902b7-01").unwrap();
        span.state = Some("a=1".into());
        let mut plain = request("GET");
        assert!(!say_span(&mut plain, None) && !plain.headers.contains_key(TRACEPARENT));
        assert!(say_span(&mut plain, Some(&span)));
        assert_eq!(plain.headers.get(TRACEPARENT).unwrap(), &*span.traceparent());
        assert_eq!(plain.headers.get(TRACESTATE).unwrap(), "a=1");
        for (location, keeps) in [
            ("/y", true),
            ("http://b.example/y", false),
            ("https://a.example/y", false),
        ] {
            let hop = next_hop(&plain, StatusCode::FOUND, Some(location), true);
            let mut hop = hop.expect("is a redirect").expect("can be followed");
            unsay_span(&mut hop, &plain.url);
            assert_eq!(hop.headers.contains_key(TRACEPARENT), keeps, "{location}");
            assert_eq!(hop.headers.contains_key(TRACESTATE), keeps, "{location}");
        }
        let mut own = request("GET");
        own.headers.insert(
            HeaderName::from_static(TRACEPARENT),
            HeaderValue::from_static("mine"),
        );
        assert!(!say_span(&mut own, Some(&span)));
        assert_eq!(own.headers.get(TRACEPARENT).unwrap(), "mine");
    }

    #[test]
    fn what_cannot_be_followed_is_told_and_what_is_no_redirect_is_final() {
        for location in [
            "ftp://a.example/",
            "file:///etc/passwd",
            "http://u:p@a.example/",
            "http://",
            "javascript:1",
        ] {
            let hop = next_hop(&request("GET"), StatusCode::FOUND, Some(location), true);
            assert!(matches!(hop, Some(Err(_))), "{location}");
        }
        assert!(next_hop(&request("GET"), StatusCode::FOUND, None, true).is_none());
        for status in [
            StatusCode::OK,
            StatusCode::NOT_MODIFIED,
            StatusCode::MULTIPLE_CHOICES,
            StatusCode::NOT_FOUND,
        ] {
            assert!(
                next_hop(&request("GET"), status, Some("/y"), true).is_none(),
                "{status}"
            );
        }
    }
}
