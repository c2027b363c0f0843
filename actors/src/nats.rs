//! The edges towards NATS: the only place that knows the client library.
//!
//! Neighbours: `serve` connects, [`source`] feeds intake, [`sink`] serves the publisher, [`lease_keeper`] renews what
//! is held, on a thread and a connection of its own; [`discovery`] has others, and tells who is there. [`watchdog`] sees to it that the source is fed; what it learns of
//! acknowledgements is kept in `floor`. A connection that is away is told of by `outage`. `confirmations`
//! publishes what a stream stores. [`abandoned`] finds what the broker gave up. [`objects`] reads and keeps what fits
//! no message. [`router_side`] speaks as the router does, for `submit`; [`dead_letters`] reads and replays what was given
//! up, for `dlq`.

pub mod abandoned;
pub mod approval_link_key;
pub mod approval_store;
pub mod buckets;
pub mod cancel;
pub mod claim_store;
mod confirmations;
pub mod connection;
pub mod dead_letters;
pub mod discovery;
mod floor;
pub mod lease_keeper;
pub mod objects;
mod outage;
pub mod replays;
pub mod router_side;
pub mod sink;
pub mod source;
pub mod streams;
pub mod watchdog;

use async_nats::HeaderName;
use caf_protocol::headers::{Headers, MESSAGE_ID};
use caf_protocol::trace_context::TRACEPARENT;

use crate::settings::SubjectSettings;

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
            match KNOWN_HEADERS.iter().find(|(known, _)| *known == name) {
                Some((_, known)) => map.insert(known.clone(), value),
                None => map.insert(name, value),
            }
        }
    }
    map
}

/// Headers of every answer: their names are neither checked nor copied each time.
static KNOWN_HEADERS: [(&str, HeaderName); 5] = {
    const fn known(name: &'static str) -> (&'static str, HeaderName) {
        (name, HeaderName::from_static(name))
    }
    [
        known(MESSAGE_ID),
        known("version"),
        known("tenant_id"),
        known("trace_id"),
        known(TRACEPARENT),
    ]
};

/// First tokens of the subjects of the contract (1.1), some of which are others'.
const SPOKEN_FOR: [&str; 2] = ["caf", "beamline"];

/// Whether an answer may go where a question says: into somebody's inbox, whatever its prefix, but not to the broker, and
/// nowhere in the trees of subjects where messages have a meaning. Who may only ask must not make the worker speak there.
fn is_answerable(reply: &str, subjects: &SubjectSettings) -> bool {
    let tree = |subject: &str| subject.split('.').next().unwrap_or_default().to_owned();
    let ours = [
        &subjects.assign,
        &subjects.ack,
        &subjects.result,
        &subjects.heartbeat,
        &subjects.dlq,
        &subjects.owner,
        &subjects.cancel,
    ];
    let asked = tree(reply);
    !asked.starts_with('$')
        && !SPOKEN_FOR.contains(&asked.as_str())
        && !ours.into_iter().any(|subject| tree(subject) == asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_answered_into_inboxes_only() {
        let subjects = SubjectSettings::default();
        for reply in ["_INBOX.a.b", "any.where", "cafe.x"] {
            assert!(is_answerable(reply, &subjects), "{reply}");
        }
        for reply in [
            "$JS.ACK.caf-stream.caf-workers.1.2.3.4.5",
            "$KV.caf-claims.x",
            "caf.exec.assign.v1",
            "caf.exec.assign.v1.ack",
            "caf.exec.result.v1",
            "caf.exec.result.v1.dlq",
            "caf.worker.heartbeat.v1",
            "caf.exec.dlq.v1",
            "caf.worker.owner.v1.somebody",
            "caf.exec.cancel.v1.YWNtZQ",
            "caf.exec.result.v2",
            "beamline.usage.v1.metered",
        ] {
            assert!(!is_answerable(reply, &subjects), "{reply}");
        }
    }
}
