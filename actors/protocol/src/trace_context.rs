//! Who called, and what is passed on: trace and span ids in the W3C form, and the older ids that routers send
//! (contract 1.5, 8.5).
//!
//! Neighbours: [`crate::assignment`] reads a [`RemoteTrace`] off each message; while traces are on, the pipeline puts a
//! [`SpanContext`] beside it, and [`crate::ack`], [`crate::result`] and the HTTP block pass that on. What is malformed is
//! ignored, never repaired: the router's own `traceparent` is hex of text (contract 1.5). Decides nothing about sampling.

use std::fmt;

use crate::headers::Headers;
use crate::ids::{is_valid_trace_id, sha256};

/// Header of the trace context.
pub const TRACEPARENT: &str = "traceparent";
/// Header of what vendors add to it.
pub const TRACESTATE: &str = "tracestate";
/// Longest `tracestate` that is passed on, in bytes: as much as the recommendation asks for at least.
const MAX_STATE_BYTES: usize = 512;
/// Most members of a `tracestate`, as the recommendation has it.
const MAX_STATE_MEMBERS: usize = 32;
/// Longest key and longest value of a member, as the recommendation has it.
const MAX_STATE_PART_BYTES: usize = 256;

/// Id of a trace: 16 bytes, not all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// Id of a span: 8 bytes, not all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

impl TraceId {
    /// The id of these bytes, unless they are all zero.
    pub fn new(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; 16] {
        self.0
    }

    /// A trace id that the router accepts: 32 hexadecimal digits in any case, or a UUIDv4.
    fn lenient(text: &str) -> Option<Self> {
        if !is_valid_trace_id(text) {
            return None;
        }
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        Self::new(from_hex(&digits.to_ascii_lowercase())?)
    }
}

impl SpanId {
    /// The id of these bytes, unless they are all zero.
    pub fn new(bytes: [u8; 8]) -> Option<Self> {
        (bytes != [0; 8]).then_some(Self(bytes))
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; 8] {
        self.0
    }

    fn lenient(text: &str) -> Option<Self> {
        Self::new(from_hex(&text.to_ascii_lowercase())?)
    }
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

/// Lower-case hexadecimal digits, exactly as many as fill `N` bytes.
fn from_hex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let digits = digits.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

/// One span, as others are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span.
    pub span_id: SpanId,
    /// Whether it is recorded somewhere.
    pub sampled: bool,
    /// What vendors have added.
    pub state: Option<Box<str>>,
}

impl SpanContext {
    /// A strictly valid `traceparent`: of version 00, or the first fields of a later version's, as W3C asks. What else
    /// such a version says is not passed on; ff is none.
    pub fn from_traceparent(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        match from_hex(version)? {
            [0] if parts.next().is_some() => return None,
            [0xff] => return None,
            _ => {}
        }
        let [flags] = from_hex::<1>(flags)?;
        Some(Self {
            trace_id: TraceId::new(from_hex(trace)?)?,
            span_id: SpanId::new(from_hex(span)?)?,
            sampled: flags & 1 == 1,
            state: None,
        })
    }

    /// As a header. Of the flags only the one that this version knows.
    pub fn traceparent(&self) -> String {
        let flags = u8::from(self.sampled);
        format!("00-{}-{}-{flags:02x}", self.trace_id, self.span_id)
    }

    /// The span in which a message of this `kind` is published. Its id follows from this one's, so that it is known when
    /// the message is written, and is the same whenever the same bytes are sent again.
    #[must_use]
    pub fn publishing(&self, kind: &str) -> Self {
        let hash = sha256(&[&self.span_id.0, kind.as_bytes()].concat());
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hash[..8]);
        Self {
            span_id: SpanId::new(bytes).unwrap_or(self.span_id),
            ..self.clone()
        }
    }
}

/// What a message says of the trace that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteTrace {
    /// The trace.
    pub trace_id: TraceId,
    /// The span that sent it, if that is told.
    pub span_id: Option<SpanId>,
    /// Whether that is recorded, if that is told.
    pub sampled: Option<bool>,
    /// What vendors have added.
    pub state: Option<Box<str>>,
}

/// One place of a payload: the text under a name there.
pub(crate) type Place<'a> = dyn Fn(&str) -> Option<String> + 'a;

impl RemoteTrace {
    /// From headers alone.
    pub fn of_headers(headers: &Headers) -> Option<Self> {
        Self::read(headers, &[])
    }

    /// Contract 8.5: `traceparent` (header, then payload), else `trace_id` and `span_id` (payload, then headers), else
    /// `X-Trace-Id` and `X-Span-Id`. `payload` are the places of the payload, strongest first.
    pub(crate) fn read(headers: &Headers, payload: &[&Place<'_>]) -> Option<Self> {
        let of_header = single(headers, TRACEPARENT).and_then(SpanContext::from_traceparent);
        if let Some(context) = of_header {
            return Some(Self::with_state(context, joined(headers, TRACESTATE).as_deref()));
        }
        for place in payload {
            let context = place(TRACEPARENT).and_then(|text| SpanContext::from_traceparent(&text));
            if let Some(context) = context {
                return Some(Self::with_state(context, place(TRACESTATE).as_deref()));
            }
        }
        Self::of_plain_ids(headers, payload)
    }

    fn with_state(context: SpanContext, state: Option<&str>) -> Self {
        Self {
            trace_id: context.trace_id,
            span_id: Some(context.span_id),
            sampled: Some(context.sampled),
            state: state.filter(|state| is_valid_state(state)).map(Into::into),
        }
    }

    /// The first usable trace id, with the first usable span id that is not said of another trace.
    fn of_plain_ids(headers: &Headers, payload: &[&Place<'_>]) -> Option<Self> {
        let header = |name: &str| single(headers, name).map(str::to_owned);
        let in_payload = payload.iter().map(|place| (place("trace_id"), place("span_id")));
        let pairs: Vec<_> = in_payload
            .chain([
                (header("trace_id"), header("span_id")),
                (header("x-trace-id"), header("x-span-id")),
            ])
            .map(|(trace, span)| {
                let trace_given = trace.is_some();
                let trace = trace.and_then(|text| TraceId::lenient(&text));
                let span = span.and_then(|text| SpanId::lenient(&text));
                (trace_given, trace, span)
            })
            .collect();
        let trace_id = pairs.iter().find_map(|(_, trace, _)| *trace)?;
        let of_this_trace = pairs
            .iter()
            .filter(|(given, trace, _)| !given || *trace == Some(trace_id));
        Some(Self {
            trace_id,
            span_id: of_this_trace.into_iter().find_map(|(_, _, span)| *span),
            sampled: None,
            state: None,
        })
    }
}

/// The value of a header that is there once: of two, nobody knows which counts.
fn single<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    let mut values = all(headers, name);
    values.next().filter(|_| values.next().is_none())
}

/// Headers that may be split over several lines.
fn joined(headers: &Headers, name: &str) -> Option<String> {
    let values: Vec<_> = all(headers, name).collect();
    (!values.is_empty()).then(|| values.join(","))
}

fn all<'a>(headers: &'a Headers, name: &str) -> impl Iterator<Item = &'a str> {
    let named = headers
        .iter()
        .filter(move |(key, _)| key.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value)
}

/// Whether a `tracestate` may be passed on: up to 32 members `key=value`, no key twice, 512 bytes in all.
fn is_valid_state(text: &str) -> bool {
    let mut keys = Vec::new();
    let members = text.split(',').map(|member| member.trim_matches([' ', '\t']));
    for member in members.filter(|member| !member.is_empty()) {
        let Some((key, value)) = member.split_once('=') else {
            return false;
        };
        if !is_state_key(key) || !is_state_value(value) || keys.contains(&key) {
            return false;
        }
        keys.push(key);
    }
    text.len() <= MAX_STATE_BYTES && (1..=MAX_STATE_MEMBERS).contains(&keys.len())
}

fn is_state_key(key: &str) -> bool {
    let starts = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_part = |c: char| starts(c) || matches!(c, '_' | '-' | '*' | '/' | '@');
    key.starts_with(starts)
        && key.len() <= MAX_STATE_PART_BYTES
        && key.chars().all(is_part)
        && key.matches('@').count() <= 1
}

fn is_state_value(value: &str) -> bool {
    let fits = |c: char| (' '..='~').contains(&c) && c != ',' && c != '=';
    !value.is_empty() && value.len() <= MAX_STATE_PART_BYTES && value.chars().all(fits)
}

#[cfg(test)]
mod tests;
