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

/// The next hop: nothing when the answer is final, an error when it points where no request can go.
pub(super) fn next_hop(
    request: &Request,
    status: StatusCode,
    location: Option<&str>,
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
        for name in [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION] {
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
        next_hop(&request(method), status, Some(location))
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
            let hop = next_hop(&plain, StatusCode::FOUND, Some(location));
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
            let hop = next_hop(&request("GET"), StatusCode::FOUND, Some(location));
            assert!(matches!(hop, Some(Err(_))), "{location}");
        }
        assert!(next_hop(&request("GET"), StatusCode::FOUND, None).is_none());
        for status in [
            StatusCode::OK,
            StatusCode::NOT_MODIFIED,
            StatusCode::MULTIPLE_CHOICES,
            StatusCode::NOT_FOUND,
        ] {
            assert!(
                next_hop(&request("GET"), status, Some("/y")).is_none(),
                "{status}"
            );
        }
    }
}
