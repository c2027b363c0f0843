//! One metric with all its series.
//!
//! Neighbours: the registry beside it keeps one per name. Has a bound on series whose labels come with assignments, and
//! another on all the rest: what is beyond is counted under [`OVERFLOW`], so that sums stay right. One lock per family: a
//! scrape sees all parts of a histogram as they were at one moment.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use caf_actors::metrics::{CORRELATION, Metric, MetricKind};
use foldhash::fast::RandomState;
use prometheus::core::Collector;
use prometheus::proto::{self, MetricFamily};
use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, Opts, TextEncoder,
};
use smol_str::SmolStr;

use super::labels::TENANT;
use super::window::Window;
use super::{MAX_LINES, MAX_SERIES, OVERFLOW};

/// Lines of a scrape that series may take whose labels come with assignments. Shared by all families.
#[derive(Default)]
pub(super) struct Lines(AtomicUsize);

impl Lines {
    fn take(&self, lines: usize, most: usize) -> bool {
        let more = |taken: usize| taken.checked_add(lines).filter(|taken| *taken <= most);
        self.0.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    fn give_back(&self, lines: usize) {
        self.0.fetch_sub(lines, Relaxed);
    }
}

/// Whom a series names. A quarter of the room is kept for those that name nobody but a tenant: the list of tenants bounds them,
/// and nothing bounds the others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Named {
    Nobody,
    Tenant,
    /// A run, flow or step.
    Passing,
}

/// What became of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is in the series of its labels.
    Recorded,
    /// It is in the series of all that there was no room for.
    Limited,
    /// It is none of this metric.
    Misfit,
}

pub(super) struct Family {
    metric: &'static Metric,
    /// Places of the labels whose values come with assignments.
    open: Vec<usize>,
    state: Mutex<State>,
}

struct State {
    values: Values,
    series: HashMap<Vec<SmolStr>, Series, RandomState>,
    /// Series that name somebody.
    naming: usize,
}

enum Values {
    Counter(CounterVec),
    Gauge(GaugeVec),
    Histogram(HistogramVec),
}

struct Series {
    cell: Cell,
    /// Whether it names a tenant, run, flow or step.
    names: bool,
    touched: Instant,
}

enum Cell {
    Counter(Counter),
    Gauge(Gauge),
    /// With what it is taken from when it is shown.
    Ratio(Gauge, Window),
    Peak(Gauge, Window),
    Histogram(Histogram),
}

impl Family {
    /// Nothing when Prometheus refuses the definition.
    pub(super) fn new(metric: &'static Metric) -> Option<Self> {
        let (opts, labels) = (Opts::new(metric.name, metric.help), metric.labels);
        let values = match metric.kind {
            MetricKind::Counter => Values::Counter(CounterVec::new(opts, labels).ok()?),
            MetricKind::Gauge | MetricKind::Ratio | MetricKind::Peak => {
                Values::Gauge(GaugeVec::new(opts, labels).ok()?)
            }
            MetricKind::Seconds(bounds) => Values::Histogram(histogram(opts, labels, bounds, seconds)?),
            MetricKind::Milliseconds(bounds) => {
                let whole = |bound| seconds(bound) * 1_000.0;
                Values::Histogram(histogram(opts, labels, bounds, whole)?)
            }
        };
        let is_open = |&place: &usize| CORRELATION.contains(&metric.labels[place]);
        Some(Self {
            metric,
            open: (0..metric.labels.len()).filter(is_open).collect(),
            state: Mutex::new(State {
                values,
                series: HashMap::default(),
                naming: 0,
            }),
        })
    }

    /// Its definition.
    pub(super) fn metric(&self) -> &'static Metric {
        self.metric
    }

    /// Whether ids that come with assignments are among its labels.
    pub(super) fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Begins a series without a sample.
    pub(super) fn begin(&self, labels: &[SmolStr], lines: &Lines) {
        if labels.len() == self.metric.labels.len() {
            let _ = self.with_series(labels, lines, |_| {});
        }
    }

    /// Takes a sample in.
    pub(super) fn record(&self, metric: &Metric, labels: &[SmolStr], value: f64, lines: &Lines) -> Taken {
        let is_same = std::ptr::eq(metric, self.metric) || *metric == *self.metric;
        let fits = is_same && labels.len() == self.metric.labels.len();
        let is_negative = value < 0.0 && self.metric.kind != MetricKind::Gauge;
        if !fits || is_negative || !value.is_finite() {
            return Taken::Misfit;
        }
        self.with_series(labels, lines, |cell| cell.take(value))
    }

    fn with_series(&self, labels: &[SmolStr], lines: &Lines, act: impl FnOnce(&mut Cell)) -> Taken {
        let mut state = self.state();
        if let Some(series) = state.series.get_mut(labels) {
            if series.names {
                series.touched = Instant::now();
            }
            act(&mut series.cell);
            return Taken::Recorded;
        }
        let names = self.named(labels);
        let of_tenant = || self.of_tenant(labels).filter(|_| names == Named::Passing);
        let (labels, names, taken) = if self.has_room(&state, names, lines) {
            (labels.to_vec(), names != Named::Nobody, Taken::Recorded)
        } else if let Some(of_tenant) = of_tenant()
            && (state.series.contains_key(&of_tenant) || self.has_room(&state, Named::Tenant, lines))
        {
            (of_tenant, true, Taken::Limited)
        } else {
            let shared = self.shared(labels, names != Named::Nobody);
            (shared, false, Taken::Limited)
        };
        match state.series_of(self.metric, labels, names) {
            Some(series) => act(&mut series.cell),
            None => return Taken::Misfit,
        }
        taken
    }

    fn named(&self, labels: &[SmolStr]) -> Named {
        let named = self.open.iter().filter(|&&place| is_name(&labels[place]));
        named.fold(Named::Nobody, |most, &place| match self.metric.labels[place] {
            TENANT => most.max(Named::Tenant),
            _ => Named::Passing,
        })
    }

    /// Takes the lines too, where it names somebody.
    fn has_room(&self, state: &State, names: Named, lines: &Lines) -> bool {
        let (series, most) = match names {
            Named::Nobody => return state.series.len() - state.naming < MAX_SERIES,
            Named::Tenant => (MAX_SERIES, MAX_LINES),
            Named::Passing => (MAX_SERIES - MAX_SERIES / 4, MAX_LINES - MAX_LINES / 4),
        };
        state.naming < series && lines.take(self.lines_per_series(), most)
    }

    /// The same for its tenant, whatever run, flow and step; nothing when it names no tenant.
    fn of_tenant(&self, labels: &[SmolStr]) -> Option<Vec<SmolStr>> {
        let tenant = self.metric.labels.iter().position(|label| *label == TENANT)?;
        let passing = |place: &usize| self.open.contains(place) && *place != tenant;
        let kept = labels.iter().enumerate().map(|(place, value)| {
            if passing(&place) && !value.is_empty() {
                SmolStr::new_static(OVERFLOW)
            } else {
                value.clone()
            }
        });
        is_name(&labels[tenant]).then(|| kept.collect())
    }

    /// The labels of what there is no room for. Those of closed sets stay as long as it is names that are too many.
    fn shared(&self, labels: &[SmolStr], names: bool) -> Vec<SmolStr> {
        let is_kept = |place: &usize, value: &SmolStr| match self.open.contains(place) {
            true => value.is_empty(),
            false => names,
        };
        let kept = labels.iter().enumerate().map(|(place, value)| {
            if is_kept(&place, value) {
                value.clone()
            } else {
                SmolStr::new_static(OVERFLOW)
            }
        });
        kept.collect()
    }

    fn lines_per_series(&self) -> usize {
        match self.metric.kind {
            // The last bucket, sum and count.
            MetricKind::Seconds(bounds) | MetricKind::Milliseconds(bounds) => bounds.len() + 3,
            _ => 1,
        }
    }

    /// Brings what is shown up to `now`. Series of which nothing is known any more go: no figure is better than an old one.
    pub(super) fn look(&self, lines: &Lines, now: Instant) {
        if matches!(self.metric.kind, MetricKind::Ratio | MetricKind::Peak) {
            self.keep(lines, |_, series| series.cell.look(now));
        }
    }

    /// Lets series go that name somebody, and that `keeps` does not want: what they counted is gone.
    pub(super) fn retain(&self, lines: &Lines, keeps: impl Fn(&[SmolStr], Duration) -> bool) {
        self.keep(lines, |labels, series| {
            !series.names || keeps(labels, series.touched.elapsed())
        });
    }

    fn keep(&self, lines: &Lines, keeps: impl Fn(&[SmolStr], &Series) -> bool) {
        let mut state = self.state();
        let State {
            values,
            series,
            naming,
        } = &mut *state;
        series.retain(|labels, series| {
            let keeps = keeps(labels, series);
            if !keeps {
                // It is there: its cell was made from it.
                let _ = match values {
                    Values::Counter(counters) => counters.remove_label_values(labels),
                    Values::Gauge(gauges) => gauges.remove_label_values(labels),
                    Values::Histogram(histograms) => histograms.remove_label_values(labels),
                };
                if series.names {
                    *naming -= 1;
                    lines.give_back(self.lines_per_series());
                }
            }
            keeps
        });
    }

    /// Adds it to `text`, with help and type also when there is no series.
    pub(super) fn write(&self, text: &mut String) {
        let collected = {
            let state = self.state();
            match &state.values {
                Values::Counter(counters) => counters.collect(),
                Values::Gauge(gauges) => gauges.collect(),
                Values::Histogram(histograms) => histograms.collect(),
            }
        };
        let mut filled: Vec<MetricFamily> = collected;
        filled.retain(|family| !family.get_metric().is_empty());
        if filled.is_empty() {
            let (name, help) = (self.metric.name, self.metric.help);
            let kind = match self.metric.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge | MetricKind::Ratio | MetricKind::Peak => "gauge",
                MetricKind::Seconds(_) | MetricKind::Milliseconds(_) => "histogram",
            };
            text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
            return;
        }
        for family in &mut filled {
            let values = |metric: &proto::Metric| {
                let labels = metric.get_label().iter();
                labels.map(|label| label.value().to_owned()).collect::<Vec<_>>()
            };
            family.mut_metric().sort_by_cached_key(values);
        }
        // Writing to a string cannot fail; a family that cannot be written is left out.
        let _ = TextEncoder::new().encode_utf8(&filled, text);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The series of these labels, made if need be; nothing when Prometheus refuses them.
    fn series_of(&mut self, metric: &Metric, labels: Vec<SmolStr>, names: bool) -> Option<&mut Series> {
        if !self.series.contains_key(&labels) {
            let cell = match &self.values {
                Values::Counter(counters) => {
                    Cell::Counter(counters.get_metric_with_label_values(&labels).ok()?)
                }
                Values::Gauge(gauges) => {
                    let gauge = gauges.get_metric_with_label_values(&labels).ok()?;
                    match metric.kind {
                        MetricKind::Ratio => Cell::Ratio(gauge, Window::new(Instant::now())),
                        MetricKind::Peak => Cell::Peak(gauge, Window::new(Instant::now())),
                        _ => Cell::Gauge(gauge),
                    }
                }
                Values::Histogram(histograms) => {
                    Cell::Histogram(histograms.get_metric_with_label_values(&labels).ok()?)
                }
            };
            let series = Series {
                cell,
                names,
                touched: Instant::now(),
            };
            self.series.insert(labels.clone(), series);
            self.naming += usize::from(names);
        }
        self.series.get_mut(&labels)
    }
}

impl Cell {
    fn take(&mut self, value: f64) {
        match self {
            Self::Counter(counter) => counter.inc_by(value),
            Self::Gauge(gauge) => gauge.set(value),
            Self::Ratio(_, window) | Self::Peak(_, window) => window.take(value, Instant::now()),
            Self::Histogram(histogram) => histogram.observe(value),
        }
    }

    /// Brings what is shown up to `now`. Whether there is anything to show.
    fn look(&self, now: Instant) -> bool {
        let (gauge, value) = match self {
            Self::Ratio(gauge, window) => (gauge, window.mean(now)),
            Self::Peak(gauge, window) => (gauge, window.peak(now)),
            Self::Counter(_) | Self::Gauge(_) | Self::Histogram(_) => return true,
        };
        if let Some(value) = value {
            gauge.set(value);
        }
        value.is_some()
    }
}

/// Whether the value of a label tells of somebody.
fn is_name(value: &str) -> bool {
    !value.is_empty() && value != OVERFLOW
}

fn histogram(
    opts: Opts,
    labels: &[&str],
    bounds_ms: &[u64],
    unit: impl Fn(u64) -> f64,
) -> Option<HistogramVec> {
    let bounds = bounds_ms.iter().map(|&bound| unit(bound)).collect();
    HistogramVec::new(HistogramOpts::from(opts).buckets(bounds), labels).ok()
}

/// No bound is so long that a float could not hold it.
fn seconds(bound_ms: u64) -> f64 {
    Duration::from_millis(bound_ms).as_secs_f64()
}
