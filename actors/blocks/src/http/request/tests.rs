use super::*;
use crate::tests::inputs;
use caf_protocol::error_code::ErrorCode;
use serde_json::json;

fn read(value: Value) -> Result<Request, Failure> {
    Request::from_inputs(&inputs(value), &HttpSettings::default())
}

fn header<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request.headers.get(name).and_then(|value| value.to_str().ok())
}

#[test]
fn methods_are_read_in_any_case_and_others_are_refused() {
    for (text, method) in [
        ("get", Method::GET),
        (" Patch ", Method::PATCH),
        ("OPTIONS", Method::OPTIONS),
    ] {
        let request = read(json!({"url": "http://a.example/", "method": text})).expect("reads");
        assert_eq!(request.method, method);
    }
    for text in ["TRACE", "CONNECT", "G ET", "GET\r\n", "FETCH"] {
        let result = read(json!({"url": "http://a.example/", "method": text}));
        if text.trim() == "GET" {
            assert!(result.is_ok());
        } else {
            assert_eq!(result.expect_err(text).code, ErrorCode::InvalidInput, "{text}");
        }
    }
}

#[test]
fn inputs_that_break_a_rule_are_refused_with_field_and_code() {
    use ErrorCode::{InvalidFormat, InvalidInput, MissingRequiredField};
    let url = "http://a.example/";
    for (given, code, field) in [
        (json!({"method": "GET"}), MissingRequiredField, "url"),
        (json!({"url": url}), MissingRequiredField, "method"),
        (json!({"url": null, "method": "GET"}), MissingRequiredField, "url"),
        (json!({"url": "", "method": "GET"}), InvalidInput, "url"),
        (json!({"url": 7, "method": "GET"}), InvalidFormat, "url"),
        (json!({"url": "/relative", "method": "GET"}), InvalidFormat, "url"),
        (json!({"url": "http://", "method": "GET"}), InvalidFormat, "url"),
        (
            json!({"url": "http://a.example:99999/", "method": "GET"}),
            InvalidFormat,
            "url",
        ),
        (
            json!({"url": "http://a.example:0/", "method": "GET"}),
            InvalidInput,
            "url",
        ),
        (
            json!({"url": "ftp://a.example/", "method": "GET"}),
            InvalidInput,
            "url",
        ),
        (
            json!({"url": "file:///etc/passwd", "method": "GET"}),
            InvalidInput,
            "url",
        ),
        (
            json!({"url": "http://u:p@a.example/", "method": "GET"}),
            InvalidInput,
            "url",
        ),
        (
            json!({"url": "http://u@a.example/", "method": "GET"}),
            InvalidInput,
            "url",
        ),
        (
            json!({"url": format!("{url}{}", "x".repeat(MAX_URL_BYTES)), "method": "GET"}),
            InvalidInput,
            "url",
        ),
        (json!({"url": url, "method": 1}), InvalidFormat, "method"),
        (
            json!({"url": url, "method": "GET", "headers": "nonsense"}),
            InvalidFormat,
            "headers",
        ),
        (
            json!({"url": url, "method": "GET", "headers": [1]}),
            InvalidFormat,
            "headers",
        ),
        (
            json!({"url": url, "method": "GET", "headers": {"a": {"b": 1}}}),
            InvalidFormat,
            "headers",
        ),
        (
            json!({"url": url, "method": "GET", "headers": {"a b": "c"}}),
            InvalidInput,
            "headers",
        ),
        (
            json!({"url": url, "method": "GET", "headers": {"": "c"}}),
            InvalidInput,
            "headers",
        ),
        (
            json!({"url": url, "method": "GET", "headers": {"a\r\nb": "c"}}),
            InvalidInput,
            "headers",
        ),
        (
            json!({"url": url, "method": "GET", "headers": {"a": "b\r\nc: d"}}),
            InvalidInput,
            "headers",
        ),
        (
            json!({"url": url, "method": "GET", "headers": {"a": "b\u{0}c"}}),
            InvalidInput,
            "headers",
        ),
        (
            json!({"url": url, "method": "GET", "headers": {"Host": "b.example"}}),
            InvalidInput,
            "headers",
        ),
        (
            json!({"url": url, "method": "GET", "headers": {"transfer-encoding": "chunked"}}),
            InvalidInput,
            "headers",
        ),
        (
            json!({"url": url, "method": "GET", "headers": {"a": "b".repeat(MAX_HEADER_BYTES)}}),
            InvalidInput,
            "headers",
        ),
        (
            json!({"url": url, "method": "POST", "body_base64": "!!"}),
            InvalidFormat,
            "body_base64",
        ),
        (
            json!({"url": url, "method": "POST", "body": "a", "body_base64": "YQ=="}),
            InvalidInput,
            "body_base64",
        ),
    ] {
        let failure = read(given.clone()).expect_err(&given.to_string());
        assert_eq!(
            (failure.code, failure.details["field"].as_str()),
            (code, Some(field)),
            "{given}"
        );
    }
}

#[test]
fn a_body_over_the_limit_is_refused_before_anything_is_sent() {
    let settings = HttpSettings {
        max_request_bytes: 3,
        ..HttpSettings::default()
    };
    let read = |body: &str| {
        let given = json!({"url": "http://a.example/", "method": "POST", "body": body});
        Request::from_inputs(&inputs(given), &settings)
    };
    assert!(read("abc").is_ok());
    assert_eq!(
        read("abcd").expect_err("is too large").code,
        ErrorCode::InvalidInput
    );
}

#[test]
fn headers_are_read_from_an_object_or_its_string_form() {
    for headers in [
        json!({"X-A": "b", "n": 1, "t": true, "z": null}),
        json!("{\"X-A\":\"b\",\"n\":1,\"t\":true}"),
    ] {
        let request =
            read(json!({"url": "http://a.example/", "method": "GET", "headers": headers})).expect("reads");
        assert_eq!(header(&request, "x-a"), Some("b"));
        assert_eq!(header(&request, "n"), Some("1"));
        assert_eq!(header(&request, "t"), Some("true"));
        assert_eq!(header(&request, "z"), None);
        assert!(header(&request, "user-agent").is_some_and(|agent| agent.starts_with("caf-worker/")));
    }
}

#[test]
fn headers_of_one_hop_are_dropped() {
    let headers =
        json!({"Content-Length": 999, "Connection": "upgrade", "TE": "trailers", "Accept": "text/css"});
    let request =
        read(json!({"url": "http://a.example/", "method": "GET", "headers": headers})).expect("reads");
    for name in ["content-length", "connection", "te"] {
        assert_eq!(header(&request, name), None, "{name}");
    }
    assert_eq!(header(&request, "accept"), Some("text/css"));
}

#[test]
fn a_body_is_text_json_or_base64() {
    for (given, body, content_type) in [
        (json!({"body": "{\"a\":1}"}), Some("{\"a\":1}"), None),
        (
            json!({"body": {"a": 1}}),
            Some("{\"a\":1}"),
            Some("application/json"),
        ),
        (
            json!({"body": [1, null]}),
            Some("[1,null]"),
            Some("application/json"),
        ),
        (json!({"body": 5}), Some("5"), Some("application/json")),
        (
            json!({"body": {"a": 1}, "headers": {"content-type": "x/y"}}),
            Some("{\"a\":1}"),
            Some("x/y"),
        ),
        (json!({"body_base64": "aGk="}), Some("hi"), None),
        (json!({"body": null}), None, None),
        (json!({}), None, None),
    ] {
        let mut all = inputs(given.clone());
        all.extend(inputs(json!({"url": "http://a.example/", "method": "POST"})));
        let request = Request::from_inputs(&all, &HttpSettings::default()).expect("reads");
        assert_eq!(request.body.as_deref(), body.map(str::as_bytes), "{given}");
        assert_eq!(header(&request, "content-type"), content_type, "{given}");
    }
}

#[test]
fn the_host_header_names_a_port_only_when_it_is_not_the_schemes_own() {
    for (url, host, target_text) in [
        (
            "http://a.example/x?y=1#z",
            "a.example",
            "http://a.example:80/x?y=1",
        ),
        ("https://a.example", "a.example", "http://a.example:443/"),
        ("http://a.example:443/", "a.example:443", "http://a.example:443/"),
        (
            "https://[2606:4700::1]:8443/",
            "[2606:4700::1]:8443",
            "http://[2606:4700::1]:8443/",
        ),
    ] {
        let url = Url::parse(url).expect("is a URL");
        assert_eq!(
            (host_header(&url).as_str(), target(&url, "").as_str()),
            (host, target_text)
        );
    }
}

#[test]
fn what_the_parser_of_addresses_would_mend_silently_is_refused() {
    for url in [
        "http://exa\nmple.com/",
        "http://example.com/a\r\nHost: b",
        "http://example.com/\ta",
        "http://example.com/\0",
        "http://user@example.com/",
        "http://user:pw@example.com/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://[fe80::1%25eth0]/",
        "http://exa mple.com/",
        "http:///",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "javascript:1",
        "//example.com/",
        "",
    ] {
        assert_eq!(url_target(url), UrlTarget::Refused, "{url:?}");
    }
}

#[test]
fn what_an_address_means_is_told_without_a_look_up() {
    let name = |name: &str| UrlTarget::Name(name.to_owned());
    let at = |text: &str| text.parse().expect("is an address");
    for (url, target) in [
        (" https://EXAMPLE.com./x ", name("example.com")),
        ("http://bücher.example/", name("xn--bcher-kva.example")),
        ("http://example.com\\@127.0.0.1/", name("example.com")),
        ("http://8.8.8.8/", UrlTarget::Public(at("8.8.8.8:80"))),
        ("https://8.8.8.8/", UrlTarget::Public(at("8.8.8.8:443"))),
        ("http://8.8.8.8:25/", UrlTarget::Denied(at("8.8.8.8:25"))),
        ("http://127.1/", UrlTarget::Denied(at("127.0.0.1:80"))),
        ("http://%31%32%37.1/", UrlTarget::Denied(at("127.0.0.1:80"))),
        (
            "http://0251.0376.169.254/",
            UrlTarget::Denied(at("169.254.169.254:80")),
        ),
        (
            "http://[::ffff:8.8.8.8]/",
            UrlTarget::Denied(at("[::ffff:8.8.8.8]:80")),
        ),
    ] {
        assert_eq!(url_target(url), target, "{url:?}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_without_a_panic(text in "(https?:|//|@|:|\\.|\\[|\\]|%[0-9a-f]{2}|\\\\|[0-9a-zé①]{1,4}){0,12}") {
        let _ = url_target(&text);
    }
}
