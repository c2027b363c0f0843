//! The registry of metrics: takes the samples that come with events, and writes them in Prometheus' text form.
//!
//! Neighbours: the log hands it every sample ([`Meter`]); whoever shows metrics asks [`Metrics::encode`]. There is no list
//! of metrics here: one is registered with its first sample, from the definition that comes along, so that what never
//! happened is not shown. Opens no port, and never fails whoever measures: a sample that fits nothing is counted.

mod family;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use caf_actors::metrics::{Meter, Metric, MetricKind, Sample};
use prometheus::{IntCounter, Registry, TextEncoder};

use family::Family;

/// Most series of one metric. Labels come from closed sets, so that only a mistake gets here; a scrape stays small then.
pub const MAX_SERIES: usize = 1_000;
/// Value of every label of the series that takes what is beyond [`MAX_SERIES`].
pub const OVERFLOW: &str = "other";

/// All metrics of a node.
pub struct Metrics {
    registry: Registry,
    families: Mutex<BTreeMap<&'static str, Family>>,
    /// Shown once there are any.
    dropped: IntCounter,
}

impl Default for Metrics {
    fn default() -> Self {
        let dropped = IntCounter::new(
            "worker_samples_dropped_total",
            "Samples that fit no metric: a fault of the program",
        );
        Self {
            registry: Registry::new(),
            families: Mutex::default(),
            dropped: dropped.expect("the name is valid"),
        }
    }
}

impl Metrics {
    /// Everything measured so far, in Prometheus' text form 0.0.4. Empty while nothing was.
    pub fn encode(&self) -> String {
        // Nothing is added while this gathers, so that a histogram's parts fit each other.
        let _families = self.families();
        let mut text = String::new();
        let gathered = self.registry.gather();
        // Writing to a string cannot fail; a family that cannot be written is left out.
        let _ = TextEncoder::new().encode_utf8(&gathered, &mut text);
        text
    }

    fn families(&self) -> MutexGuard<'_, BTreeMap<&'static str, Family>> {
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_sample(&self) {
        if self.dropped.get() == 0 {
            // Refused only when it is there already.
            let _ = self.registry.register(Box::new(self.dropped.clone()));
        }
        self.dropped.inc();
    }
}

impl Meter for Metrics {
    fn record(&self, sample: &Sample) {
        let mut families = self.families();
        let name = sample.metric.name;
        if !families.contains_key(name) {
            let Some(family) = Family::register(sample.metric, &self.registry) else {
                return self.drop_sample();
            };
            families.insert(name, family);
        }
        let taken = families.get_mut(name).is_some_and(|family| family.record(sample));
        if !taken {
            self.drop_sample();
        }
    }
}

/// What is wrong with a metric's definition, if anything: names and labels as Prometheus and contract 8.4 want them.
pub fn fault_of(metric: &Metric) -> Option<&'static str> {
    let is_name = |name: &str| {
        name.starts_with(|first: char| first.is_ascii_lowercase())
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let is_time = matches!(metric.kind, MetricKind::Seconds(_));
    let repeats = |label: &&str| metric.labels.iter().filter(|other| *other == label).count() > 1;
    match metric {
        _ if !is_name(metric.name) => Some("its name is not in lower case with underscores"),
        _ if metric.help.trim().is_empty() => Some("it has no help"),
        _ if !metric.labels.iter().all(|label| is_name(label)) => Some("a label is not a name"),
        _ if metric.labels.iter().any(repeats) => Some("a label is named twice"),
        // Prometheus writes these itself.
        _ if metric.labels.contains(&"le") => Some("a label is reserved"),
        _ if matches!(metric.kind, MetricKind::Counter) != metric.name.ends_with("_total") => {
            Some("counters, and only they, end in _total")
        }
        _ if is_time && !metric.name.ends_with("_seconds") => Some("times end in _seconds"),
        Metric {
            kind: MetricKind::Seconds(bounds),
            ..
        } if bounds.is_empty() || !bounds.is_sorted_by(|low, high| low < high) => {
            Some("its buckets do not grow")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
