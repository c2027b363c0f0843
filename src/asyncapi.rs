//! `caf-worker asyncapi`: the AsyncAPI document of a worker with these settings.
//!
//! Neighbours: `caf_protocol::schemas::asyncapi` writes it; here it gets its names. Connects to nothing.

use caf_protocol::schemas::asyncapi::{self, Names};
use serde_json::Value;
use url::Url;

use crate::settings::Settings;

/// Port of NATS where an address names none.
const NATS_PORT: u16 = 4222;

/// The document.
pub fn document(settings: &Settings) -> Value {
    let (protocol, host) = broker(&settings.nats.url);
    let (nats, subjects) = (&settings.nats, &settings.nats.subjects);
    asyncapi::document(&Names {
        host,
        protocol,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        assign: subjects.assign.clone(),
        ack: subjects.ack.clone(),
        result: subjects.result.clone(),
        heartbeat: subjects.heartbeat.clone(),
        dlq: subjects.dlq.clone(),
        owner: subjects.owner.clone(),
        cancel: subjects.cancel.clone(),
        durable: nats.durable.clone(),
        claims_bucket: settings.idempotency.bucket.clone(),
        approvals_bucket: settings.approvals.bucket.clone(),
        state_bucket: nats.state_bucket.clone(),
        objects_bucket: nats.objects_bucket.clone(),
    })
}

/// Scheme, and host with port, of the first address. What else is in it may be a secret.
fn broker(addresses: &str) -> (String, String) {
    let first = addresses.split(',').next().unwrap_or_default().trim();
    let with_scheme = match first.contains("://") {
        true => first.to_owned(),
        false => format!("nats://{first}"),
    };
    let url = Url::parse(&with_scheme).ok();
    let host = url.as_ref().and_then(Url::host_str).unwrap_or("localhost");
    let port = url
        .as_ref()
        .and_then(Url::port_or_known_default)
        .unwrap_or(NATS_PORT);
    let scheme = url.as_ref().map_or("nats", Url::scheme);
    (scheme.to_owned(), format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_brokers_address_only_scheme_host_and_port_are_told() {
        for (address, scheme, host) in [
            ("nats://u:secret@h:1?x=y, tls://other", "nats", "h:1"),
            ("tls://secret@h", "tls", "h:4222"),
            ("h:4223", "nats", "h:4223"),
            ("[::1]:4223", "nats", "[::1]:4223"),
            ("", "nats", "localhost:4222"),
        ] {
            assert_eq!(broker(address), (scheme.to_owned(), host.to_owned()), "{address}");
        }
    }
}
