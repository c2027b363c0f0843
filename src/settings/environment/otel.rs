//! Variables of OpenTelemetry and the keys that they mean (contract 10.2). They are other programs' as well and often set
//! for a whole host: with traces off they are not looked at, whatever they say.
//!
//! Neighbours: [`crate::settings::load`] asks for them while the flag of traces is on. `WORKER__…` beats them.

use super::{Variables, plain_or_file};
use crate::settings::sources::{Entry, Reader};

/// Names and their keys. Of two for one key the later one wins.
pub(super) const NAMES: [(&str, &str); 19] = [
    ("OTLP_ENDPOINT", "worker.tracing.endpoint"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "worker.tracing.endpoint"),
    (
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "worker.tracing.traces_endpoint",
    ),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "worker.tracing.protocol"),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "worker.tracing.protocol"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "worker.tracing.secret_headers"),
    (
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
        "worker.tracing.secret_headers",
    ),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "worker.tracing.ca_file"),
    ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "worker.tracing.ca_file"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "worker.tracing.request_timeout_ms"),
    (
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
        "worker.tracing.request_timeout_ms",
    ),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "worker.tracing.batch_size"),
    ("OTEL_BSP_SCHEDULE_DELAY", "worker.tracing.schedule_delay_ms"),
    ("OTEL_BSP_EXPORT_TIMEOUT", "worker.tracing.export_timeout_ms"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "worker.tracing.queue_size"),
    ("OTEL_TRACES_SAMPLER", "worker.tracing.sampler"),
    ("OTEL_TRACES_SAMPLER_ARG", "worker.tracing.sampler_ratio"),
    ("OTEL_SERVICE_NAME", "worker.tracing.service_name"),
    ("OTEL_RESOURCE_ATTRIBUTES", "worker.tracing.resource_attributes"),
];

/// Whether a variable is one of these.
pub(super) fn is_name(name: &str) -> bool {
    NAMES.iter().any(|(known, _)| *known == name)
}

/// Reads all that are given; an empty one counts as not set.
pub fn of_tracing(reader: &mut Reader<'_>, variables: &Variables) -> Vec<Entry> {
    let entries = NAMES
        .into_iter()
        .filter_map(|named| plain_or_file(reader, variables, named));
    entries.collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use crate::settings::load::{Loaded, Sources, load};
    use crate::settings::origin::SettingsError;
    use crate::settings::show;
    use crate::settings::tracing::{OtlpProtocol, SamplerName};

    fn loaded(variables: &[(&str, &str)]) -> Result<Loaded, SettingsError> {
        let pair = |(name, value): &(&str, &str)| (OsString::from(*name), OsString::from(*value));
        load(&Sources {
            environment: variables.iter().map(pair).collect(),
            ..Sources::default()
        })
    }

    const ON: (&str, &str) = ("CP2_OBSERVABILITY_TRACING_ENABLED", "true");

    #[test]
    fn every_name_sets_its_key_while_traces_are_on() {
        let loaded = loaded(&[
            ON,
            ("OTLP_ENDPOINT", "http://weaker:4317"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://d/v1/traces"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "11"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "12"),
            ("OTEL_BSP_SCHEDULE_DELAY", "13"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "14"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "15"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_SERVICE_NAME", "named"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=b"),
        ])
        .expect("loads");
        let set = &loaded.settings.worker.tracing;
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            (&set.endpoint, &set.traces_endpoint),
            (&text("http://c:4318"), &text("https://d/v1/traces"))
        );
        assert_eq!(
            (set.protocol, set.sampler),
            (Some(OtlpProtocol::HttpProtobuf), SamplerName::TraceIdRatio)
        );
        assert_eq!(
            (set.sampler_ratio, set.request_timeout_ms, set.batch_size),
            (0.25, 11, 12)
        );
        assert_eq!(
            (set.schedule_delay_ms, set.export_timeout_ms, set.queue_size),
            (13, 14, 15)
        );
        assert_eq!(
            (set.service_name(), set.resource_attributes().len()),
            ("named".to_owned(), 1)
        );
        let lines = show::lines(&loaded);
        let shown: String = lines.iter().map(|line| format!("{line}\n")).collect();
        assert!(
            !shown.contains("s3cret") && shown.contains("OTEL_EXPORTER_OTLP_HEADERS"),
            "{shown}"
        );
    }

    #[test]
    fn with_traces_off_they_are_not_looked_at() {
        let hostile = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "nonsense"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
        ];
        assert!(loaded(&hostile).is_ok());
        let problems = loaded(&[&[ON], &hostile[..]].concat())
            .expect_err("are refused")
            .problems;
        let keys: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "worker.tracing.protocol",
                "worker.tracing.queue_size",
                "worker.tracing.endpoint"
            ]
        );
    }
}
