//! The edges towards NATS: the only place that knows the client library.
//!
//! Neighbours: `serve` connects, [`source`] feeds intake, [`sink`] serves the publisher, [`lease_keeper`] renews what
//! is held, on a thread and a connection of its own. [`watchdog`] sees to it that the source is fed; what it learns of
//! acknowledgements is kept in `floor`. [`abandoned`] finds what the broker gave up. [`objects`] reads and keeps what fits
//! no message. [`router_side`] speaks as the router does, for `submit`; [`dead_letters`] reads and replays what was given
//! up, for `dlq`.

pub mod abandoned;
pub mod buckets;
pub mod claim_store;
pub mod connection;
pub mod dead_letters;
mod floor;
pub mod lease_keeper;
pub mod objects;
pub mod replays;
pub mod router_side;
pub mod sink;
pub mod source;
pub mod streams;
pub mod watchdog;

use caf_protocol::headers::Headers;

/// Headers as they arrived. Values that are not text are left out.
fn headers_of(map: Option<&async_nats::HeaderMap>) -> Headers {
    let mut headers = Headers::default();
    for (name, values) in map.into_iter().flat_map(async_nats::HeaderMap::iter) {
        if let Some(value) = values.first() {
            headers.push(name.to_string(), value.as_str());
        }
    }
    headers
}

/// Headers as they leave. Values go through the fallible parser: the other one panics on CR and LF.
fn header_map(headers: &Headers) -> async_nats::HeaderMap {
    let mut map = async_nats::HeaderMap::new();
    for (name, value) in headers.iter() {
        if let Ok(value) = value.parse::<async_nats::HeaderValue>() {
            map.insert(name, value);
        }
    }
    map
}
