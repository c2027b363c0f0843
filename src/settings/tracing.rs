//! Traces: whether, where to, how much (contract 8.5, 10.2). Names of values are those of OpenTelemetry.
//!
//! Neighbours: [`super::environment`] knows the `OTEL_…` variables of these keys, `crate::telemetry::traces` exports by
//! them. Nothing else reads those variables: what `config show` prints is what counts.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use caf_actors::mask;
use caf_actors::settings::rules::Rules;
use caf_actors::trace::sampler::Sampler;
use caf_protocol::secret::Secret;
use percent_encoding::percent_decode_str;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

/// Longest time for anything in milliseconds: ten minutes.
const MAX_LIMIT_MS: u64 = 600_000;
/// Most spans that may wait: about 100 MiB of memory.
const MAX_QUEUE: usize = 100_000;
/// Path of traces below a base address, over HTTP.
const TRACES_PATH: &str = "/v1/traces";

/// Traces: what happens to each assignment, as spans. `Debug` hides its secrets.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TracingSettings {
    /// Whether spans are sent to a collector.
    pub enabled: bool,
    /// Address of the collector, `http` or `https`; without it the protocol's own on this host.
    pub endpoint: Option<String>,
    /// Address for traces as it is, in place of `endpoint`.
    pub traces_endpoint: Option<String>,
    /// `grpc` or `http/protobuf`; without it `http/protobuf` where the address has port 4318 or ends in `/v1/traces`,
    /// else `grpc`.
    pub protocol: Option<OtlpProtocol>,
    /// Sent with each export, for collectors that want to know who calls: `name=value`, comma-separated, values
    /// percent-encoded.
    pub secret_headers: Option<Secret>,
    /// PEM file with the authorities to trust beside the public ones.
    pub ca_file: Option<PathBuf>,
    /// Name of this service; without it that of `resource_attributes`, else `caf-worker`.
    pub service_name: Option<String>,
    /// More about this process: `name=value`, comma-separated, values percent-encoded.
    pub resource_attributes: Option<String>,
    /// Which traces are recorded.
    pub sampler: SamplerName,
    /// Share of traces, from 0 to 1, where the sampler has one.
    pub sampler_ratio: f64,
    /// Most spans of one export.
    pub batch_size: usize,
    /// How long spans wait for a batch to fill, in milliseconds.
    pub schedule_delay_ms: u64,
    /// Most spans that wait; what comes beyond is dropped and counted.
    pub queue_size: usize,
    /// Longest time of one request to the collector, in milliseconds.
    pub request_timeout_ms: u64,
    /// Longest time of one export, with all its tries, in milliseconds; then its spans are given up and counted.
    pub export_timeout_ms: u64,
    /// Longest time that a shutdown waits for the last export, in milliseconds.
    pub flush_timeout_ms: u64,
}

impl Default for TracingSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            endpoint: None,
            traces_endpoint: None,
            protocol: None,
            secret_headers: None,
            ca_file: None,
            service_name: None,
            resource_attributes: None,
            sampler: SamplerName::ParentbasedAlwaysOn,
            sampler_ratio: 1.0,
            batch_size: 512,
            schedule_delay_ms: 5_000,
            queue_size: 2_048,
            request_timeout_ms: 10_000,
            export_timeout_ms: 30_000,
            flush_timeout_ms: 2_000,
        }
    }
}

impl fmt::Debug for TracingSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = serde_json::to_value(self).map_err(|_| fmt::Error)?;
        mask::mask(&mut value);
        write!(f, "TracingSettings {value}")
    }
}

/// How spans travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OtlpProtocol {
    /// gRPC.
    #[serde(rename = "grpc")]
    Grpc,
    /// HTTP with protobuf.
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
}

/// Which traces are recorded, by OpenTelemetry's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SamplerName {
    /// All.
    AlwaysOn,
    /// None; callers and called are told so.
    AlwaysOff,
    /// The share `sampler_ratio`.
    #[serde(rename = "traceidratio")]
    TraceIdRatio,
    /// What the caller says; without its word all.
    ParentbasedAlwaysOn,
    /// What the caller says; without its word none.
    ParentbasedAlwaysOff,
    /// What the caller says; without its word the share `sampler_ratio`.
    #[serde(rename = "parentbased_traceidratio")]
    ParentbasedTraceIdRatio,
}

/// Where spans go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// By which protocol.
    pub protocol: OtlpProtocol,
    /// To which address; for gRPC its path is what stands before the method.
    pub url: Url,
}

impl TracingSettings {
    /// Where spans go; an address that cannot be read is that of the protocol ([`TracingSettings::validate`] says so).
    pub fn target(&self) -> Target {
        let given = self.traces_endpoint.as_ref().or(self.endpoint.as_ref());
        let url = given.and_then(|text| Url::parse(text).ok());
        let speaks_http = |url: &Url| url.port() == Some(4318) || ends_in_traces(url);
        let protocol = self.protocol.unwrap_or_else(|| match &url {
            Some(url) if speaks_http(url) => OtlpProtocol::HttpProtobuf,
            _ => OtlpProtocol::Grpc,
        });
        let port = match protocol {
            OtlpProtocol::Grpc => 4317,
            OtlpProtocol::HttpProtobuf => 4318,
        };
        let own = || Url::parse(&format!("http://localhost:{port}")).expect("is an address");
        let mut url = url.unwrap_or_else(own);
        let is_base = self.traces_endpoint.is_none() && protocol == OtlpProtocol::HttpProtobuf;
        if is_base && !ends_in_traces(&url) {
            let path = format!("{}{TRACES_PATH}", url.path().trim_end_matches('/'));
            url.set_path(&path);
        }
        Target { protocol, url }
    }

    /// The sampler.
    pub fn sampler(&self) -> Sampler {
        let (follows_parent, ratio) = match self.sampler {
            SamplerName::AlwaysOn => (false, 1.0),
            SamplerName::AlwaysOff => (false, 0.0),
            SamplerName::TraceIdRatio => (false, self.sampler_ratio),
            SamplerName::ParentbasedAlwaysOn => (true, 1.0),
            SamplerName::ParentbasedAlwaysOff => (true, 0.0),
            SamplerName::ParentbasedTraceIdRatio => (true, self.sampler_ratio),
        };
        Sampler {
            follows_parent,
            ratio,
        }
    }

    /// The name of this service.
    pub fn service_name(&self) -> String {
        let given = self.service_name.clone();
        given
            .or_else(|| self.resource_attributes().remove("service.name"))
            .unwrap_or_else(|| "caf-worker".to_owned())
    }

    /// More about this process.
    pub fn resource_attributes(&self) -> BTreeMap<String, String> {
        pairs(self.resource_attributes.as_deref()).unwrap_or_default()
    }

    /// Headers of each export, names in lower case.
    pub fn headers(&self) -> BTreeMap<String, String> {
        let pairs = pairs(self.header_text()).unwrap_or_default();
        let lower = |(name, value): (String, String)| (name.to_ascii_lowercase(), value);
        pairs.into_iter().map(lower).collect()
    }

    fn header_text(&self) -> Option<&str> {
        self.secret_headers.as_ref().map(Secret::expose)
    }

    /// Checks every rule that types cannot express.
    pub fn validate(&self, rules: &mut Rules) {
        for (key, text) in [
            ("endpoint", &self.endpoint),
            ("traces_endpoint", &self.traces_endpoint),
        ] {
            let holds = text.as_deref().is_none_or(is_endpoint);
            rules.require(key, holds, "must be an http or https address without credentials");
        }
        let are_headers = pairs(self.header_text()).is_some_and(|all| all.iter().all(is_header));
        let rule = "must be name=value pairs of HTTP headers, comma-separated, values percent-encoded";
        rules.require("secret_headers", are_headers, rule);
        let are_pairs = pairs(self.resource_attributes.as_deref()).is_some();
        let rule = "must be name=value pairs, comma-separated, values percent-encoded";
        rules.require("resource_attributes", are_pairs, rule);
        let named = |text: &Option<String>| text.as_ref().is_none_or(|text| !text.trim().is_empty());
        rules.require("service_name", named(&self.service_name), "must not be empty");
        let named = self
            .ca_file
            .as_ref()
            .is_none_or(|file| !file.as_os_str().is_empty());
        rules.require("ca_file", named, "must not be empty");
        rules.range("sampler_ratio", self.sampler_ratio, 0.0..=1.0);
        rules.range("queue_size", self.queue_size, 1..=MAX_QUEUE);
        rules.range("batch_size", self.batch_size, 1..=MAX_QUEUE);
        rules.relate(
            "batch_size",
            "queue_size",
            self.batch_size <= self.queue_size,
            "must be at most queue_size",
        );
        rules.range("schedule_delay_ms", self.schedule_delay_ms, 1..=MAX_LIMIT_MS);
        rules.range("request_timeout_ms", self.request_timeout_ms, 1..=MAX_LIMIT_MS);
        rules.range("export_timeout_ms", self.export_timeout_ms, 1..=MAX_LIMIT_MS);
        rules.range("flush_timeout_ms", self.flush_timeout_ms, 0..=60_000);
    }
}

fn ends_in_traces(url: &Url) -> bool {
    url.path().trim_end_matches('/').ends_with(TRACES_PATH)
}

fn is_endpoint(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.host_str().is_some_and(|host| !host.is_empty())
            && url.username().is_empty()
            && url.password().is_none()
    })
}

/// `name=value` pairs; nothing when the text is none.
fn pairs(text: Option<&str>) -> Option<BTreeMap<String, String>> {
    let parts = text.unwrap_or_default().split(',').map(str::trim);
    let pair = |part: &str| {
        let (name, value) = part.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        let name = name.trim();
        (!name.is_empty()).then(|| (name.to_owned(), value.into_owned()))
    };
    parts.filter(|part| !part.is_empty()).map(pair).collect()
}

/// Whether it can be sent as a header, over HTTP and as metadata of gRPC, and is not one that the client writes.
fn is_header((name, value): (&String, &String)) -> bool {
    let name = name.to_ascii_lowercase();
    let is_reserved = name.starts_with("grpc-")
        || name.ends_with("-bin")
        || [
            "content-type",
            "content-length",
            "te",
            "host",
            "user-agent",
            "transfer-encoding",
            "connection",
        ]
        .contains(&&*name);
    let is_name = hyper::header::HeaderName::try_from(name.as_str()).is_ok();
    let is_value = value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    is_name && is_value && !is_reserved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(
        endpoint: Option<&str>,
        traces: Option<&str>,
        protocol: Option<OtlpProtocol>,
    ) -> TracingSettings {
        TracingSettings {
            endpoint: endpoint.map(str::to_owned),
            traces_endpoint: traces.map(str::to_owned),
            protocol,
            ..TracingSettings::default()
        }
    }

    #[test]
    fn the_address_is_the_one_that_opentelemetry_means() {
        use OtlpProtocol::{Grpc, HttpProtobuf};
        for (endpoint, traces, protocol, expected, url) in [
            (None, None, None, Grpc, "http://localhost:4317/"),
            (
                None,
                None,
                Some(HttpProtobuf),
                HttpProtobuf,
                "http://localhost:4318/v1/traces",
            ),
            (Some("http://c:4317"), None, None, Grpc, "http://c:4317/"),
            (
                Some("http://c:4318"),
                None,
                None,
                HttpProtobuf,
                "http://c:4318/v1/traces",
            ),
            (Some("http://c:4318"), None, Some(Grpc), Grpc, "http://c:4318/"),
            (
                Some("https://c/otlp/"),
                None,
                Some(HttpProtobuf),
                HttpProtobuf,
                "https://c/otlp/v1/traces",
            ),
            (
                Some("https://c/v1/traces"),
                None,
                None,
                HttpProtobuf,
                "https://c/v1/traces",
            ),
            (
                Some("http://c:1"),
                Some("http://d:4318/x"),
                None,
                HttpProtobuf,
                "http://d:4318/x",
            ),
            (
                None,
                Some("http://d:9/v1/traces"),
                None,
                HttpProtobuf,
                "http://d:9/v1/traces",
            ),
        ] {
            let target = settings(endpoint, traces, protocol).target();
            assert_eq!(
                (target.protocol, target.url.as_str()),
                (expected, url),
                "{endpoint:?} {traces:?}"
            );
        }
    }

    #[test]
    fn pairs_are_read_with_their_percents_and_what_is_no_pair_is_refused() {
        let mut settings = TracingSettings {
            resource_attributes: Some("service.name=n%20m, a=b=c,".to_owned()),
            secret_headers: Some("Authorization=Basic%20eDp5".into()),
            ..TracingSettings::default()
        };
        assert_eq!(settings.service_name(), "n m");
        assert_eq!(settings.resource_attributes()["a"], "b=c");
        assert_eq!(settings.headers()["authorization"], "Basic eDp5");
        assert!(!format!("{settings:?}").contains("eDp5"));
        settings.service_name = Some("other".to_owned());
        assert_eq!(settings.service_name(), "other");
    }

    #[test]
    fn broken_rules_name_their_keys() {
        let broken = TracingSettings {
            endpoint: Some("localhost:4317".to_owned()),
            traces_endpoint: Some("http://user:pass@c".to_owned()),
            secret_headers: Some("a b=c".into()),
            resource_attributes: Some("a".to_owned()),
            service_name: Some(" ".to_owned()),
            sampler_ratio: 1.5,
            batch_size: 10,
            queue_size: 5,
            schedule_delay_ms: 0,
            ..TracingSettings::default()
        };
        let mut rules = Rules::default();
        broken.validate(&mut rules);
        let keys: Vec<_> = rules
            .into_broken()
            .into_iter()
            .map(|rule| rule.key.join("."))
            .collect();
        let expected = [
            "endpoint",
            "traces_endpoint",
            "secret_headers",
            "resource_attributes",
            "service_name",
            "sampler_ratio",
            "batch_size",
            "schedule_delay_ms",
        ];
        assert_eq!(keys, expected);
        let mut rules = Rules::default();
        TracingSettings::default().validate(&mut rules);
        assert_eq!(rules.into_broken(), []);
    }
}
