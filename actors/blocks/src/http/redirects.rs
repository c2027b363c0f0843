//! Where an answer sends the request next, and what of the request goes along.
//!
//! Neighbours: [`super`] asks after every answer, and lets the guard check the new target as it did the first. Never
//! sends anything.

use awc::http::header;
use awc::http::{Method, StatusCode};
use url::Url;

use super::request::{Request, check_url};

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

fn same_origin(a: &Url, b: &Url) -> bool {
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
