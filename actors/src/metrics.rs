//! Metrics of the pipeline, as data: their names, labels and buckets in one table (contract 8.4), and single samples.
//!
//! Neighbours: an [`crate::events::Event`] carries its samples, so that a log line and its metric are one call; the node
//! keeps the registry behind [`Meter`], and decides there which of the ids in [`CORRELATION`] are shown. All other labels
//! come from closed sets.

use smol_str::SmolStr;

/// Labels whose values come with assignments. The registry shows them as its settings say, and never all of them.
pub const CORRELATION: [&str; 4] = ["tenant_id", "run_id", "flow_id", "step_id"];

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it says, in one sentence.
    pub help: &'static str,
    /// Names of its labels, in the order in which samples give their values.
    pub labels: &'static [&'static str],
    /// What becomes of samples.
    pub kind: MetricKind,
}

/// What becomes of the samples of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// They are added up.
    Counter,
    /// The last one counts.
    Gauge,
    /// Their mean over the last five minutes: 1 for a hit, 0 for a miss. Not shown when there was none.
    Ratio,
    /// The largest of the last five minutes. Not shown when there was none.
    Peak,
    /// They are counted by size: upper bounds in milliseconds, shown in seconds; samples are in seconds.
    Seconds(&'static [u64]),
    /// They are counted by size: upper bounds in milliseconds, shown as such; samples are in milliseconds. Only for names
    /// that the contract gives: times are in seconds otherwise.
    Milliseconds(&'static [u64]),
}

/// One value of one metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Of which metric.
    pub metric: &'static Metric,
    /// Values of its labels.
    pub labels: Vec<SmolStr>,
    /// The value.
    pub value: f64,
}

impl Metric {
    /// A sample; `labels` in the order of the metric's names.
    pub fn sample(&'static self, labels: &[&str], value: f64) -> Sample {
        debug_assert_eq!(labels.len(), self.labels.len(), "{}", self.name);
        Sample {
            metric: self,
            labels: labels.iter().map(|&label| label.into()).collect(),
            value,
        }
    }

    /// One more.
    pub fn one(&'static self, labels: &[&str]) -> Sample {
        self.sample(labels, 1.0)
    }
}

/// Where samples go. Never blocks.
pub trait Meter: Send + Sync + 'static {
    /// Takes one sample in.
    fn record(&self, sample: &Sample);
}
