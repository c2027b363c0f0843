//! What a job asks for, read and checked before anything is sent.
//!
//! Neighbours: [`super`] prepares a [`Request`] from inputs and sends it; `redirects` derives the next one from it. Does
//! no I/O and knows no addresses.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use awc::http::Method;
use awc::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use caf_protocol::block::Inputs;
use caf_protocol::outcome::Failure;
use serde_json::{Map, Value};
use url::{Host, Url};

use super::rules::{Asked, Rules, normal_name};
use super::secrets::{self, Secrets};
use crate::inputs::{self, Fields, invalid_format, invalid_input};
use crate::settings::HttpSettings;

/// Longest URL in bytes; longer ones are refused by most servers anyway.
const MAX_URL_BYTES: usize = 16 * 1024;
/// Most headers of a request; servers commonly stop at about this many.
const MAX_HEADERS: usize = 100;
/// Largest sum of header names and values in bytes.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// Methods that a job may use.
const METHODS: [Method; 7] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::OPTIONS,
];
/// Headers that describe one hop or this very message: the client writes them, a value from the job is dropped.
const DROPPED: [&str; 6] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
];
/// Headers by which a job could make the two ends disagree on where a message ends or whom it is for.
const REFUSED: [&str; 4] = ["expect", "host", "transfer-encoding", "upgrade"];

/// One hop of a request.
#[derive(Clone)]
pub(super) struct Request {
    pub(super) url: Url,
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Bytes>,
    pub(super) secrets: Secrets,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = self.url.origin().ascii_serialization();
        write!(f, "{} {origin} {:?}", self.method, self.secrets)
    }
}

impl Request {
    /// Reads the inputs of a job.
    pub(super) fn from_inputs(inputs: &Inputs, settings: &HttpSettings) -> Result<Self, Failure> {
        let fields = Fields(inputs);
        let url = parse_url(fields.required_text(&["url"])?)?;
        let method = parse_method(fields.required_text(&["method"])?)?;
        let mut secrets = Secrets::default();
        let mut headers = match fields.object(&["headers"])? {
            Some(map) => parse_headers(&map, &mut secrets)?,
            None => HeaderMap::new(),
        };
        let (body, is_json) = parse_body(&fields, &mut secrets)?;
        let size = body.as_ref().map_or(0, Bytes::len) as u64;
        if size > settings.max_request_bytes {
            let rule = format!("must be at most {} bytes", settings.max_request_bytes);
            return Err(invalid_input("body", &rule));
        }
        if is_json {
            default(&mut headers, header::CONTENT_TYPE, "application/json");
        }
        default_headers(&mut headers);
        Ok(Self {
            url,
            method,
            headers,
            body,
            secrets,
        })
    }

    /// A plain GET.
    pub(super) fn get(url: Url) -> Result<Self, Failure> {
        check_url(&url).map_err(|rule| invalid_input("url", rule))?;
        let mut headers = HeaderMap::new();
        default_headers(&mut headers);
        Ok(Self {
            url,
            method: Method::GET,
            headers,
            body: None,
            secrets: Secrets::default(),
        })
    }
}

fn default_headers(headers: &mut HeaderMap) {
    default(headers, header::ACCEPT, "*/*");
    default(headers, header::ACCEPT_ENCODING, "gzip, deflate");
    default(
        headers,
        header::USER_AGENT,
        concat!("caf-worker/", env!("CARGO_PKG_VERSION")),
    );
}

fn default(headers: &mut HeaderMap, name: HeaderName, value: &'static str) {
    if !headers.contains_key(&name) {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

fn parse_url(text: &str) -> Result<Url, Failure> {
    if text.len() > MAX_URL_BYTES {
        return Err(invalid_input("url", "must be at most 16384 bytes"));
    }
    // The parser would leave out tabs and line ends: what is asked for would not be what was written.
    if text.trim().chars().any(char::is_control) {
        return Err(invalid_input("url", "must not hold control characters"));
    }
    let url =
        Url::parse(text.trim()).map_err(|error| invalid_format("url", "must be a URL").internally(error))?;
    check_url(&url).map_err(|rule| invalid_input("url", rule))?;
    Ok(url)
}

/// The rule that a URL breaks, if it breaks one. Holds for redirects too.
pub(super) fn check_url(url: &Url) -> Result<(), &'static str> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err("must be an http or https address");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold credentials; use the authorization header");
    }
    if url.host_str().is_none_or(str::is_empty) || url.port() == Some(0) {
        return Err("must have a host and a usable port");
    }
    let sent = target(url, "").parse::<awc::http::Uri>();
    let sent = sent.map_err(|_| "must not hold characters that have no place in a request line")?;
    // Two parsers read an address. Where they disagree, the one of the guard would not be the one of the client.
    if sent.host() != url.host_str() || sent.port_u16() != url.port_or_known_default() {
        return Err("must have a host that can be read in one way only");
    }
    Ok(())
}

/// The address as the client library gets it. Always `http`, always with a port: TLS is the business of `dial`, and the
/// library keys its pool by what stands before the path: `pool` makes connections a pool of their own, and is not sent.
pub(super) fn target(url: &Url, pool: &str) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or_default();
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let at = if pool.is_empty() { "" } else { "@" };
    format!("http://{pool}{at}{host}:{port}{}{query}", url.path())
}

/// The value of the `Host` header.
pub(super) fn host_header(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// What a job's address means to the guard, as far as that can be told without looking up a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UrlTarget {
    /// It is no address for a request.
    Refused,
    /// A name, in the form in which it is looked up.
    Name(String),
    /// An address that is public and may be connected to.
    Public(SocketAddr),
    /// An address that may not be reached, by the rules that hold unless the settings say otherwise.
    Denied(SocketAddr),
}

/// Reads an address exactly as a job's `url` is read, and judges it by the default rules. Pure, and panics on nothing.
pub fn url_target(text: &str) -> UrlTarget {
    let Ok(url) = parse_url(text) else {
        return UrlTarget::Refused;
    };
    let ip: IpAddr = match url.host() {
        Some(Host::Domain(name)) => return UrlTarget::Name(normal_name(name)),
        Some(Host::Ipv4(ip)) => ip.into(),
        Some(Host::Ipv6(ip)) => ip.into(),
        None => return UrlTarget::Refused,
    };
    let address = SocketAddr::new(ip, url.port_or_known_default().unwrap_or_default());
    let rules = Rules::new(&HttpSettings::default());
    let asked = Asked {
        tenant: "",
        name: None,
        address,
    };
    match rules.map(|rules| rules.judge(asked)) {
        Ok(Ok(())) => UrlTarget::Public(address),
        _ => UrlTarget::Denied(address),
    }
}

fn parse_method(text: &str) -> Result<Method, Failure> {
    let upper = text.trim().to_ascii_uppercase();
    METHODS
        .into_iter()
        .find(|method| method.as_str() == upper)
        .ok_or_else(|| invalid_input("method", "must be GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS"))
}

fn parse_headers(map: &Map<String, Value>, secrets: &mut Secrets) -> Result<HeaderMap, Failure> {
    secrets::check_headers(map)?;
    let bytes: usize = map
        .iter()
        .map(|(name, value)| name.len() + value.to_string().len())
        .sum();
    if map.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        return Err(invalid_input(
            "headers",
            "must be at most 100, and 65536 bytes in all",
        ));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in map {
        if let (Value::Object(_), Ok(name)) = (value, HeaderName::try_from(name.as_str()))
            && !REFUSED.contains(&name.as_str())
            && secrets.take_header(&name, value)?
        {
            continue;
        }
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text.trim().to_owned(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            Value::Array(_) | Value::Object(_) => {
                return Err(invalid_format(
                    "headers",
                    "values must be strings, numbers or booleans",
                ));
            }
        };
        let name = HeaderName::try_from(name.as_str())
            .map_err(|_| invalid_input("headers", "names must be HTTP header names"))?;
        let value = HeaderValue::try_from(text)
            .map_err(|_| invalid_input("headers", "values must not hold control characters"))?;
        if REFUSED.contains(&name.as_str()) {
            let rule = format!("{name} is not for a job to set");
            return Err(invalid_input("headers", &rule));
        }
        if !DROPPED.contains(&name.as_str()) {
            headers.append(name, value);
        }
    }
    Ok(headers)
}

/// The body, and whether it is JSON.
fn parse_body(fields: &Fields<'_>, secrets: &mut Secrets) -> Result<(Option<Bytes>, bool), Failure> {
    let encoded = fields.text(&["body_base64"])?;
    match (fields.value(&["body"]), encoded) {
        (Some(_), Some(_)) => Err(invalid_input("body_base64", "must not stand beside body")),
        (None, Some(text)) => Ok((Some(inputs::base64("body_base64", text)?.into()), false)),
        (None, None) => Ok((None, false)),
        (Some((_, value)), None) if secrets.take_body(value)? => {
            // What stands for it until it is put in, for its size.
            Ok((Some(value.to_string().into()), !secrets.are_whole_body()))
        }
        (Some((_, Value::String(text))), None) => Ok((Some(text.clone().into()), false)),
        (Some((_, value)), None) => Ok((Some(value.to_string().into()), true)),
    }
}

#[cfg(test)]
mod tests;
