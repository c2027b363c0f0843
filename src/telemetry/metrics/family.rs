//! One metric with all its series.
//!
//! Neighbours: the registry beside it keeps one per name. Never has more series than its bound, and one for the rest.

use std::collections::{BTreeMap, BTreeSet};

use caf_actors::metrics::{Metric, MetricKind, Sample};
use prometheus::{CounterVec, GaugeVec, HistogramOpts, HistogramVec, Opts, Registry};

use super::{MAX_SERIES, OVERFLOW};

pub(super) struct Family {
    metric: &'static Metric,
    series: BTreeSet<Vec<String>>,
    values: Values,
}

enum Values {
    Counter(CounterVec),
    Gauge(GaugeVec),
    /// With sum and number of the samples of each series.
    Ratio(GaugeVec, BTreeMap<Vec<String>, (f64, f64)>),
    Seconds(HistogramVec),
}

impl Family {
    /// Nothing when Prometheus refuses the definition.
    pub(super) fn register(metric: &'static Metric, registry: &Registry) -> Option<Self> {
        let (opts, labels) = (Opts::new(metric.name, metric.help), metric.labels);
        let values = match metric.kind {
            MetricKind::Counter => Values::Counter(CounterVec::new(opts, labels).ok()?),
            MetricKind::Gauge => Values::Gauge(GaugeVec::new(opts, labels).ok()?),
            MetricKind::Ratio => Values::Ratio(GaugeVec::new(opts, labels).ok()?, BTreeMap::new()),
            MetricKind::Seconds(bounds_ms) => {
                let bounds = bounds_ms.iter().map(|&bound| seconds(bound)).collect();
                let opts = HistogramOpts::from(opts).buckets(bounds);
                Values::Seconds(HistogramVec::new(opts, labels).ok()?)
            }
        };
        let registered = match &values {
            Values::Counter(counter) => registry.register(Box::new(counter.clone())),
            Values::Gauge(gauge) | Values::Ratio(gauge, _) => registry.register(Box::new(gauge.clone())),
            Values::Seconds(histogram) => registry.register(Box::new(histogram.clone())),
        };
        registered.ok()?;
        Some(Self {
            metric,
            series: BTreeSet::new(),
            values,
        })
    }

    /// Takes a sample in; false when it is none of this metric.
    pub(super) fn record(&mut self, sample: &Sample) -> bool {
        let value = sample.value;
        let fits = *sample.metric == *self.metric && sample.labels.len() == self.metric.labels.len();
        let is_negative = value < 0.0 && !matches!(self.values, Values::Gauge(_));
        if !fits || is_negative || !value.is_finite() {
            return false;
        }
        let labels = self.series_for(&sample.labels);
        match &mut self.values {
            Values::Counter(counter) => counter
                .get_metric_with_label_values(&labels)
                .map(|one| one.inc_by(value)),
            Values::Gauge(gauge) => gauge
                .get_metric_with_label_values(&labels)
                .map(|one| one.set(value)),
            Values::Ratio(gauge, means) => {
                let (sum, count) = means.entry(labels.clone()).or_default();
                *sum += value;
                *count += 1.0;
                let mean = *sum / *count;
                gauge
                    .get_metric_with_label_values(&labels)
                    .map(|one| one.set(mean))
            }
            Values::Seconds(histogram) => histogram
                .get_metric_with_label_values(&labels)
                .map(|one| one.observe(value)),
        }
        .is_ok()
    }

    /// The labels to count under: these, or when there are too many series already the one for all others.
    fn series_for(&mut self, labels: &[String]) -> Vec<String> {
        if self.series.contains(labels) {
            return labels.to_vec();
        }
        if self.series.len() < MAX_SERIES {
            self.series.insert(labels.to_vec());
            return labels.to_vec();
        }
        vec![OVERFLOW.to_owned(); labels.len()]
    }
}

/// No bound is so long that a float could not hold it.
fn seconds(bound_ms: u64) -> f64 {
    std::time::Duration::from_millis(bound_ms).as_secs_f64()
}
