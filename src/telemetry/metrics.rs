//! The registry of metrics: takes the samples that come with events, and writes them in Prometheus' text form.
//!
//! Neighbours: the log hands it every sample ([`Meter`]); the metrics page asks [`Metrics::encode`] and gives it what is read
//! at that moment ([`state`]). What there is stands in [`catalogue`]: those metrics are shown from the start, and where labels
//! come from closed sets, at 0. Any other is registered with its first sample. Opens no port, and never fails whoever
//! measures: a sample that fits nothing is counted.

pub mod catalogue;
mod family;
mod labels;
pub mod state;
mod window;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use caf_actors::metrics::{CORRELATION, Meter, Metric, MetricKind, Sample};
use foldhash::fast::RandomState;
use smol_str::SmolStr;

use crate::settings::MetricsSettings;
use crate::telemetry::secrets::Secrets;
use family::{Family, Lines, Taken};
use labels::Shown;

/// Most series of one metric that name a tenant, run, flow or step, and most of all its other ones. The latter come from
/// closed sets: only a mistake gets there.
pub const MAX_SERIES: usize = 1_000;
/// Most lines of a scrape, of all metrics together, in series that name a tenant, run, flow or step: a histogram takes one for
/// each bucket. A scrape of so many takes some tens of milliseconds, and the scraper stores as many series.
pub const MAX_LINES: usize = 20_000;
/// Value of every label of the series that takes what there is no room for, and of tenants that are not listed.
pub const OVERFLOW: &str = "other";
/// Series that name a run, flow or step go when nothing was counted in them for this long: what they tell of is over.
const FORGET_AFTER: Duration = Duration::from_secs(15 * 60);

/// Samples that were counted elsewhere than their labels say.
pub static LIMITED: Metric = Metric {
    name: "worker_series_limited_total",
    help: "Samples that were counted under the label value other, because a metric has as many series as it may; the tenant is kept \
           as long as there is room for it.",
    labels: &["metric"],
    kind: MetricKind::Counter,
};

/// Samples that were counted nowhere.
pub static DROPPED: Metric = Metric {
    name: "worker_samples_dropped_total",
    help: "Samples that fit no metric: a fault of the program.",
    labels: &[],
    kind: MetricKind::Counter,
};

/// All metrics of a node.
pub struct Metrics {
    families: RwLock<BTreeMap<&'static str, Arc<Family>>>,
    /// The same by where their definitions are: a sample finds its family without reading names.
    known: RwLock<HashMap<usize, Arc<Family>, RandomState>>,
    shown: Shown,
    lines: Lines,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(&MetricsSettings::default())
    }
}

impl Metrics {
    /// A registry of everything in the catalogue.
    pub fn new(settings: &MetricsSettings) -> Self {
        let metrics = Self {
            families: RwLock::default(),
            known: RwLock::default(),
            shown: Shown::new(settings),
            lines: Lines::default(),
        };
        for listed in catalogue::listed() {
            for labels in &listed.from_zero {
                metrics.begin(listed.metric, labels);
            }
            // Without a series it has help and type all the same.
            metrics.family(listed.metric);
        }
        metrics
    }

    /// Shows no id that holds one of these.
    #[must_use]
    pub fn hiding(mut self, secrets: Secrets) -> Self {
        self.shown.hide(secrets);
        self
    }

    /// Begins the series of jobs of these types at 0. Called once the blocks are known.
    pub fn know_job_types(&self, job_types: &[&str]) {
        for (metric, labels) in catalogue::of_job_types(job_types) {
            self.begin(metric, &labels);
        }
    }

    /// From now on `tenant_id` names these tenants, as `worker.metrics.tenant_label_allowlist` does at the start. Series of
    /// others go.
    pub fn allow_tenants(&self, tenants: impl IntoIterator<Item = String>) {
        self.shown.allow_tenants(tenants);
        for (metric, family) in self.open_families() {
            family.retain(&self.lines, |labels, _| self.shown.still_shows(metric, labels));
        }
    }

    /// Everything measured so far, and `now`, which is read at this moment, in Prometheus' text form 0.0.4.
    pub fn encode(&self, now: &[Sample]) -> String {
        self.encode_at(now, Instant::now())
    }

    /// [`Metrics::encode`] for a caller that has its own clock.
    fn encode_at(&self, now: &[Sample], at: Instant) -> String {
        self.forget_what_is_over();
        let mut families = self.families();
        let mut read_now: BTreeMap<&'static str, Arc<Family>> = BTreeMap::new();
        for sample in now {
            let name = sample.metric.name;
            if !read_now.contains_key(name)
                && let Some(family) = Family::new(sample.metric)
            {
                read_now.insert(name, Arc::new(family));
            }
            if let Some(family) = read_now.get(name) {
                family.record(sample.metric, &sample.labels, sample.value, &self.lines);
            }
        }
        families.extend(read_now);
        let mut text = String::new();
        for family in families.values() {
            family.look(&self.lines, at);
            family.write(&mut text);
        }
        text
    }

    fn forget_what_is_over(&self) {
        for (metric, family) in self.open_families() {
            let ends = |name: &&str| CORRELATION[1..].contains(name);
            family.retain(&self.lines, |labels, idle| {
                let mut named = metric.labels.iter().zip(labels);
                let is_lasting =
                    named.all(|(name, value)| !ends(name) || value.is_empty() || value == OVERFLOW);
                is_lasting || idle < FORGET_AFTER
            });
        }
    }

    fn begin(&self, metric: &'static Metric, labels: &[&str]) {
        let labels: Vec<SmolStr> = labels.iter().map(|&label| label.into()).collect();
        if let Some(family) = self.family(metric) {
            family.begin(&labels, &self.lines);
        }
    }

    fn families(&self) -> BTreeMap<&'static str, Arc<Family>> {
        self.families
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn open_families(&self) -> Vec<(&'static Metric, Arc<Family>)> {
        let families = self.families().into_values();
        families
            .filter(|family| family.is_open())
            .map(|family| (family.metric(), family))
            .collect()
    }

    /// The family of this metric; nothing when its definition is refused.
    fn family(&self, metric: &'static Metric) -> Option<Arc<Family>> {
        let at = std::ptr::from_ref(metric).addr();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(family) = known.get(&at) {
            return Some(Arc::clone(family));
        }
        drop(known);
        let mut families = self.families.write().unwrap_or_else(PoisonError::into_inner);
        let family = match families.get(metric.name) {
            Some(family) => Arc::clone(family),
            None => Arc::new(Family::new(metric)?),
        };
        families.insert(metric.name, Arc::clone(&family));
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(at, Arc::clone(&family));
        Some(family)
    }

    fn take(&self, sample: &Sample) -> Taken {
        let at = std::ptr::from_ref(sample.metric).addr();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(family) = known.get(&at) {
            return self.take_in(family, sample);
        }
        drop(known);
        match self.family(sample.metric) {
            Some(family) => self.take_in(&family, sample),
            None => Taken::Misfit,
        }
    }

    fn take_in(&self, family: &Family, sample: &Sample) -> Taken {
        let is_whole = sample.labels.len() == sample.metric.labels.len();
        let labels = if family.is_open() && is_whole {
            Cow::Owned(self.shown.of(sample.metric, &sample.labels))
        } else {
            Cow::Borrowed(&sample.labels)
        };
        family.record(sample.metric, &labels, sample.value, &self.lines)
    }
}

impl Meter for Metrics {
    fn record(&self, sample: &Sample) {
        match self.take(sample) {
            Taken::Recorded => {}
            Taken::Limited => drop(self.take(&LIMITED.one(&[sample.metric.name]))),
            Taken::Misfit => drop(self.take(&DROPPED.one(&[]))),
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
    let unit = match metric.kind {
        MetricKind::Seconds(_) => "_seconds",
        MetricKind::Milliseconds(_) => "_ms",
        _ => "",
    };
    let repeats = |label: &&str| metric.labels.iter().filter(|other| *other == label).count() > 1;
    match metric {
        _ if !is_name(metric.name) => Some("its name is not in lower case with underscores"),
        _ if metric.help.trim().is_empty() => Some("it has no help"),
        _ if metric.help.contains(['\\', '\n']) => Some("its help is not one plain line"),
        _ if !metric.labels.iter().all(|label| is_name(label)) => Some("a label is not a name"),
        _ if metric.labels.iter().any(repeats) => Some("a label is named twice"),
        // Prometheus writes the first itself; the second would be a series per assignment.
        _ if metric.labels.contains(&"le") => Some("a label is reserved"),
        _ if metric.labels.contains(&"trace_id") => Some("traces are no labels"),
        _ if matches!(metric.kind, MetricKind::Counter) != metric.name.ends_with("_total") => {
            Some("counters, and only they, end in _total")
        }
        _ if !metric.name.ends_with(unit) => {
            Some("times end in _seconds, or in _ms where they are in milliseconds")
        }
        Metric {
            kind: MetricKind::Seconds(bounds) | MetricKind::Milliseconds(bounds),
            ..
        } if bounds.is_empty() || !bounds.is_sorted_by(|low, high| low < high) => {
            Some("its buckets do not grow")
        }
        _ => None,
    }
}

#[cfg(test)]
mod bench;
#[cfg(test)]
mod tests;
