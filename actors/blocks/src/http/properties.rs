//! What a hostile request must never lead to: bodies of fuzz targets, replayed by ordinary tests. In no other build.
//!
//! Neighbours: `fuzz/` of the workspace calls these with what the fuzzer makes up, `crate::properties` with its corpus.
//! Never sends anything and resolves no names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use awc::http::{StatusCode, header};
use caf_protocol::json;
use futures_util::FutureExt as _;
use serde_json::Value;
use url::{Host, Url};

use super::guard::Guard;
use super::redirects::next_hop;
use super::request::{Request, check_url};
use crate::Extras;
use crate::settings::HttpSettings;

/// An address that stands in a URL is let through only when it is public, however it is written.
pub fn url_guard(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(url) = Url::parse(text.trim()) else { return };
    // Of other schemes the host is not read at all, and nothing is sent to them.
    if check_url(&url).is_err() {
        return;
    }
    let is_literal = match url.host() {
        Some(Host::Domain(name)) => {
            // Names are looked up, and what comes of it is judged: but an address must not pass for a name.
            let bare = name.trim_end_matches('.');
            assert!(bare.parse::<IpAddr>().is_err(), "{name} is taken for a name");
            false
        }
        Some(_) => true,
        None => false,
    };
    if !is_literal {
        return;
    }
    let guard = Guard::new(&HttpSettings::default(), Extras::default()).expect("the defaults are valid");
    let judged = guard.passage(&url, "acme").now_or_never();
    let judged = judged.expect("no name has to be looked up");
    for address in judged.into_iter().flat_map(|passage| passage.addresses) {
        assert!(is_public(address.ip()), "{url} leads to {address}");
    }
}

/// A second opinion, written from the registries of IANA and not from the guard.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let benchmarks = a == 198 && (18..20).contains(&b);
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_unspecified()
        || ip.is_broadcast()
        || ip.is_documentation()
        || ip.is_multicast()
        || a == 0
        || a >= 240
        || shared
        || benchmarks)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let first = ip.segments()[0];
    if let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = ip.segments() {
        // NAT64 leads to the IPv4 address within.
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    // IPv4 in any of its disguises is judged as a disguise: none of them is a public address of its own.
    let is_disguise = ip.to_ipv4().is_some() || first == 0x64 || first == 0x2002;
    let is_global = (0x2000..0x4000).contains(&first);
    let is_documentation = first == 0x2001 && ip.segments()[1] == 0xdb8;
    is_global && !is_disguise && !is_documentation
}

/// What is sent cannot end a header early or be taken for two messages; and what is secret does not follow to another host.
/// The bytes: inputs as JSON, 0xFF, a `Location`.
pub fn http_request(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0xff);
    let [inputs, location] = [parts.next(), parts.next()].map(Option::unwrap_or_default);
    let Ok(document) = json::parse(inputs) else { return };
    let Value::Object(inputs) = document.value else {
        return;
    };
    let settings = HttpSettings::default();
    let request = match Request::from_inputs(&inputs, &settings) {
        Ok(request) => request,
        Err(failure) => {
            let field = failure.details["field"].as_str().unwrap_or_default();
            assert!(
                !field.is_empty() && failure.message.starts_with(field),
                "{}",
                failure.message
            );
            return;
        }
    };
    check(&request);
    let size = request.body.as_ref().map_or(0, bytes::Bytes::len) as u64;
    assert!(size <= settings.max_request_bytes);
    let Ok(location) = std::str::from_utf8(location) else {
        return;
    };
    for status in [301, 302, 303, 307, 308] {
        let status = StatusCode::from_u16(status).expect("is a status");
        let Some(Ok(next)) = next_hop(&request, status, Some(location), false) else {
            continue;
        };
        check(&next);
        if next.url.origin() != request.url.origin() {
            for secret in [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION] {
                assert!(
                    !next.headers.contains_key(&secret),
                    "{secret} goes to {}",
                    next.url
                );
            }
        }
    }
}

fn check(request: &Request) {
    assert!(matches!(request.url.scheme(), "http" | "https") && request.url.has_host());
    for (name, value) in &request.headers {
        let ends = value.as_bytes().iter().any(|byte| b"\r\n\0".contains(byte));
        assert!(!ends, "{name} holds a line end");
    }
    for framing in [
        header::HOST,
        header::TRANSFER_ENCODING,
        header::CONTENT_LENGTH,
        header::CONNECTION,
        header::UPGRADE,
    ] {
        assert!(!request.headers.contains_key(&framing), "{framing} is the job's");
    }
}
