//! How much went through lately, how long it took, and what failed last. Pure: every question brings its own time.
//!
//! Neighbours: [`super::Journal`] shares it between threads. Fixed in size, whatever goes through.

use std::collections::VecDeque;

use caf_protocol::assignment::Identity;
use serde::Serialize;

use super::entry::{Meaning, job_type, masked, text};
use crate::events::{Event, Word};

/// Length of a bucket in seconds.
pub const BUCKET_S: u64 = 5;
/// Buckets: the last ten minutes.
pub const BUCKETS: usize = 120;
/// Failures that are kept.
pub const MAX_FAILURES: usize = 50;
/// Upper bounds of latencies in milliseconds; the last one takes in whatever is longer.
const BOUNDS_MS: [u64; 34] = [
    1, 2, 5, 10, 20, 35, 50, 75, 100, 150, 200, 350, 500, 750, 1_000, 1_500, 2_000, 2_750, 3_500, 5_000,
    7_500, 10_000, 15_000, 20_000, 30_000, 45_000, 60_000, 90_000, 120_000, 180_000, 300_000, 600_000,
    1_200_000, 3_600_000,
];

/// What went through.
#[derive(Debug, Clone, Default)]
pub struct Flow {
    /// Since the start.
    pub total: Outcomes,
    buckets: VecDeque<Filling>,
    failures: VecDeque<FailureNote>,
}

/// Assignments by how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Outcomes {
    /// Well.
    pub success: u64,
    /// Failed.
    pub error: u64,
    /// Out of time.
    pub timeout: u64,
    /// Cancelled.
    pub cancelled: u64,
    /// Refused: nothing ran.
    pub rejected: u64,
    /// Without ids: only a dead letter was left.
    pub unreadable: u64,
}

/// A bucket that is being filled.
#[derive(Debug, Clone)]
struct Filling {
    /// Number of the bucket since the Unix epoch.
    number: u64,
    outcomes: Outcomes,
    latencies: [Latencies; BOUNDS_MS.len()],
}

/// Latencies between two bounds, in milliseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Latencies {
    count: u32,
    least: u32,
    most: u32,
}

/// What went through in one stretch of time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bucket {
    /// Its beginning, in seconds since the Unix epoch.
    pub at_s: u64,
    /// How what ended in it ended.
    #[serde(flatten)]
    pub outcomes: Outcomes,
    /// Half of what ran took no longer, in milliseconds; nothing when nothing ended.
    pub p50_ms: Option<f64>,
    /// All but a twentieth of what ran took no longer.
    pub p95_ms: Option<f64>,
}

/// Something that failed, or several of the same kind in a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailureNote {
    /// When, in milliseconds since the Unix epoch; of several the last.
    pub at_ms: u64,
    /// Which; of several the last. Nothing when it could not be read.
    pub assignment_id: Option<String>,
    /// Whose.
    pub tenant_id: Option<String>,
    /// Its job type.
    pub job_type: String,
    /// `error`, `timeout`, `cancelled`, `rejected` or `unreadable`.
    pub status: &'static str,
    /// Its code, as in results.
    pub error_code: String,
    /// Why it was rejected.
    pub reason: Option<String>,
    /// Calls that were made.
    pub attempts: u64,
    /// What was wrong, masked and cut.
    pub message: String,
    /// How many in a row: refusals for a full queue are one line for each tenant and type.
    pub count: u64,
}

impl Flow {
    /// Notes the end of an assignment; `had_slot`: without one, nothing was called.
    pub(super) fn note(&mut self, meaning: Meaning, event: &Event, had_slot: bool, at_ms: u64) {
        let status = match meaning {
            Meaning::Ended => match text(event, "status") {
                "success" => "success",
                "timeout" => "timeout",
                "cancelled" => "cancelled",
                _ => "error",
            },
            Meaning::Rejected => "rejected",
            Meaning::Unreadable => "unreadable",
            _ => return,
        };
        let number = |key| event.field(key).and_then(Word::as_u64);
        let bucket = self.bucket(at_ms / 1000 / BUCKET_S);
        bucket.outcomes.add(status);
        if !matches!(status, "rejected" | "unreadable") {
            let latency_ms = number("latency_ms").unwrap_or_default();
            let at = BOUNDS_MS.partition_point(|bound| *bound < latency_ms);
            bucket.latencies[at.min(BOUNDS_MS.len() - 1)].add(latency_ms);
        }
        self.total.add(status);
        if status != "success" {
            self.note_failure(event, (status, had_slot), at_ms);
        }
    }

    fn note_failure(&mut self, event: &Event, (status, had_slot): (&'static str, bool), at_ms: u64) {
        let some = |key| Some(text(event, key)).filter(|text| !text.is_empty());
        let owned = |key| some(key).map(str::to_owned);
        let id = |key, of: fn(&Identity) -> &String| match event.identity() {
            Some(identity) => Some(of(identity).clone()),
            None => owned(key),
        };
        let calls = event
            .field("retries_used")
            .and_then(Word::as_u64)
            .filter(|_| had_slot);
        let failure = FailureNote {
            at_ms,
            assignment_id: id("assignment_id", |of| &of.assignment_id),
            tenant_id: id("tenant_id", |of| &of.tenant_id),
            job_type: Some(job_type(event).to_owned())
                .filter(|kind| !kind.is_empty())
                .unwrap_or_else(|| "unknown".to_owned()),
            status,
            // A full queue has one code.
            error_code: owned("error_code").unwrap_or_else(|| "SYSTEM_OVERLOAD".to_owned()),
            reason: owned("reason"),
            attempts: calls.map_or(0, |retries| retries + 1),
            message: masked(some("error").unwrap_or("the queue of its pool is full")),
            count: 1,
        };
        if let Some(last) = self.failures.back_mut().filter(|last| last.takes_in(&failure)) {
            (last.at_ms, last.count) = (at_ms, last.count + 1);
            last.assignment_id = failure.assignment_id;
            return;
        }
        if self.failures.len() == MAX_FAILURES {
            self.failures.pop_front();
        }
        self.failures.push_back(failure);
    }

    /// The bucket with this number, or the newest one when the clock was set back.
    fn bucket(&mut self, number: u64) -> &mut Filling {
        let newest = self.buckets.back().map(|bucket| bucket.number);
        if newest.is_none_or(|newest| newest < number) {
            if self.buckets.len() == BUCKETS {
                self.buckets.pop_front();
            }
            self.buckets.push_back(Filling {
                number,
                outcomes: Outcomes::default(),
                latencies: [Latencies::default(); BOUNDS_MS.len()],
            });
        }
        self.buckets
            .back_mut()
            .expect("one was pushed when there was none")
    }

    /// The last ten minutes, the oldest first, without gaps; the last one is still being filled.
    pub fn buckets(&self, now_ms: u64) -> Vec<Bucket> {
        let newest = self.buckets.back().map_or(0, |bucket| bucket.number);
        let last = (now_ms / 1000 / BUCKET_S).max(newest);
        let first = last.saturating_sub(BUCKETS as u64 - 1);
        let mut filled = self
            .buckets
            .iter()
            .filter(|bucket| bucket.number >= first)
            .peekable();
        (first..=last)
            .map(|number| match filled.next_if(|bucket| bucket.number == number) {
                Some(bucket) => bucket.closed(),
                None => Bucket::empty(number),
            })
            .collect()
    }

    /// What failed last, the newest first.
    pub fn failures(&self) -> impl Iterator<Item = &FailureNote> {
        self.failures.iter().rev()
    }
}

impl FailureNote {
    /// Whether one more is not worth a line of its own.
    fn takes_in(&self, next: &Self) -> bool {
        let is_full = |note: &Self| note.reason.as_deref() == Some("queue_full");
        is_full(self) && is_full(next) && self.tenant_id == next.tenant_id && self.job_type == next.job_type
    }
}

impl Outcomes {
    fn add(&mut self, status: &str) {
        let count = match status {
            "success" => &mut self.success,
            "timeout" => &mut self.timeout,
            "cancelled" => &mut self.cancelled,
            "rejected" => &mut self.rejected,
            "unreadable" => &mut self.unreadable,
            _ => &mut self.error,
        };
        *count += 1;
    }
}

impl Filling {
    fn closed(&self) -> Bucket {
        Bucket {
            at_s: self.number * BUCKET_S,
            outcomes: self.outcomes,
            p50_ms: quantile(&self.latencies, 0.5),
            p95_ms: quantile(&self.latencies, 0.95),
        }
    }
}

impl Bucket {
    fn empty(number: u64) -> Self {
        Self {
            at_s: number * BUCKET_S,
            outcomes: Outcomes::default(),
            p50_ms: None,
            p95_ms: None,
        }
    }
}

impl Latencies {
    fn add(&mut self, latency_ms: u64) {
        let latency_ms = u32::try_from(latency_ms).unwrap_or(u32::MAX);
        self.least = match self.count {
            0 => latency_ms,
            _ => self.least.min(latency_ms),
        };
        self.most = self.most.max(latency_ms);
        self.count = self.count.saturating_add(1);
    }
}

/// The value that this share of the latencies does not exceed. Between two bounds they are taken to be spread evenly from
/// the least to the most that was seen there, so that nothing is told that is longer or shorter than what happened.
fn quantile(latencies: &[Latencies; BOUNDS_MS.len()], share: f64) -> Option<f64> {
    let all: u32 = latencies.iter().map(|some| some.count).sum();
    let wanted = (f64::from(all) * share).ceil();
    let mut below = 0.0;
    for some in latencies.iter().filter(|some| some.count > 0) {
        let count = f64::from(some.count);
        if below + count >= wanted {
            let (least, most) = (f64::from(some.least), f64::from(some.most));
            let place = (wanted - below - 1.0) / (count - 1.0).max(1.0);
            let value = least + (most - least) * place.clamp(0.0, 1.0);
            return Some((value * 10.0).round() / 10.0);
        }
        below += count;
    }
    None
}
