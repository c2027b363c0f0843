//! Who was sent, who was answered, and how long it took. Pure.
//!
//! Neighbours: the generator feeds it. Nothing is estimated: every latency is kept, so percentiles are exact.

use std::collections::BTreeMap;

use serde::Serialize;

/// What became of one assignment; times in nanoseconds since the tally began.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    due_ns: u64,
    answered_ns: u64,
    results: u16,
    acks: u16,
}

/// All assignments of one run, by number.
#[derive(Debug, Default)]
pub struct Tally {
    entries: Vec<Entry>,
    answered: usize,
    foreign: usize,
    statuses: BTreeMap<String, usize>,
    acks: BTreeMap<String, usize>,
    deepest_queue: u64,
    first_answer_ns: Option<u64>,
    last_answer_ns: u64,
}

/// What a tally comes to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Assignments that were sent.
    pub sent: usize,
    /// Those with at least one result.
    pub answered: usize,
    /// Those without any result.
    pub missing: usize,
    /// Results beyond the first of an assignment.
    pub duplicated: usize,
    /// Those without any acknowledgement.
    pub acks_missing: usize,
    /// Acknowledgements beyond the first of an assignment.
    pub acks_duplicated: usize,
    /// Messages that answer nothing of this run.
    pub foreign: usize,
    /// First results by status, with the error code where there is one.
    pub statuses: BTreeMap<String, usize>,
    /// First acknowledgements by status.
    pub acks: BTreeMap<String, usize>,
    /// Deepest queue that a result tells of.
    pub deepest_queue: u64,
}

/// Exact latencies, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latencies {
    /// How many were measured.
    pub count: usize,
    /// The median.
    pub p50_ms: f64,
    /// 95 % are not longer.
    pub p95_ms: f64,
    /// 99 % are not longer.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Tally {
    /// Another assignment, that was due at this time; its number.
    pub fn sent(&mut self, due_ns: u64) -> usize {
        self.entries.push(Entry {
            due_ns,
            ..Entry::default()
        });
        self.entries.len() - 1
    }

    /// A result; whether it is the first of its assignment.
    pub fn result(&mut self, number: Option<usize>, status: &str, now_ns: u64) -> bool {
        let Some(entry) = number.and_then(|number| self.entries.get_mut(number)) else {
            self.foreign += 1;
            return false;
        };
        entry.results = entry.results.saturating_add(1);
        if entry.results > 1 {
            return false;
        }
        entry.answered_ns = now_ns;
        self.answered += 1;
        self.first_answer_ns.get_or_insert(now_ns);
        self.last_answer_ns = now_ns;
        count(&mut self.statuses, status);
        true
    }

    /// An acknowledgement.
    pub fn ack(&mut self, number: Option<usize>, status: &str) {
        let Some(entry) = number.and_then(|number| self.entries.get_mut(number)) else {
            self.foreign += 1;
            return;
        };
        entry.acks = entry.acks.saturating_add(1);
        if entry.acks == 1 {
            count(&mut self.acks, status);
        }
    }

    /// Somebody told of so many jobs that waited.
    pub fn queue(&mut self, depth: u64) {
        self.deepest_queue = self.deepest_queue.max(depth);
    }

    /// Assignments sent so far.
    pub fn sent_so_far(&self) -> usize {
        self.entries.len()
    }

    /// Assignments answered so far.
    pub fn answered_so_far(&self) -> usize {
        self.answered
    }

    /// When the first and the last first result came, in nanoseconds; none before the first.
    pub fn span_ns(&self) -> Option<(u64, u64)> {
        self.first_answer_ns.map(|first| (first, self.last_answer_ns))
    }

    /// First results between two times, in nanoseconds.
    pub fn answered_between(&self, from_ns: u64, to_ns: u64) -> usize {
        let within = |entry: &&Entry| entry.results > 0 && (from_ns..to_ns).contains(&entry.answered_ns);
        self.entries.iter().filter(within).count()
    }

    /// First results per second in each tenth of them, in the order in which they came; empty below ten.
    pub fn tenths(&self) -> Vec<f64> {
        let answered = self.entries.iter().filter(|entry| entry.results > 0);
        let mut ns: Vec<u64> = answered.map(|entry| entry.answered_ns).collect();
        ns.sort_unstable();
        let tenth = ns.len() / 10;
        if tenth == 0 {
            return Vec::new();
        }
        let rate =
            |part: &[u64]| (part.len() - 1) as f64 * 1e9 / (part[part.len() - 1] - part[0]).max(1) as f64;
        ns.chunks_exact(tenth).take(10).map(rate).collect()
    }

    /// What it comes to.
    pub fn totals(&self) -> Totals {
        let beyond = |count: u16| usize::from(count.saturating_sub(1));
        Totals {
            sent: self.entries.len(),
            answered: self.answered,
            missing: self.entries.len() - self.answered,
            duplicated: self.entries.iter().map(|entry| beyond(entry.results)).sum(),
            acks_missing: self.entries.iter().filter(|entry| entry.acks == 0).count(),
            acks_duplicated: self.entries.iter().map(|entry| beyond(entry.acks)).sum(),
            foreign: self.foreign,
            statuses: self.statuses.clone(),
            acks: self.acks.clone(),
            deepest_queue: self.deepest_queue,
        }
    }

    /// Latencies of those that were due from this time on, in nanoseconds: from when they were due, not from when they
    /// could be sent, so that a stall counts for all who waited.
    pub fn latencies(&self, due_from_ns: u64) -> Latencies {
        let measured = |entry: &&Entry| entry.results > 0 && entry.due_ns >= due_from_ns;
        let mut ns: Vec<u64> = self
            .entries
            .iter()
            .filter(measured)
            .map(|entry| entry.answered_ns.saturating_sub(entry.due_ns))
            .collect();
        ns.sort_unstable();
        Latencies {
            count: ns.len(),
            p50_ms: percentile_ms(&ns, 0.50),
            p95_ms: percentile_ms(&ns, 0.95),
            p99_ms: percentile_ms(&ns, 0.99),
            max_ms: percentile_ms(&ns, 1.0),
        }
    }
}

fn count(counts: &mut BTreeMap<String, usize>, key: &str) {
    match counts.get_mut(key) {
        Some(count) => *count += 1,
        None => drop(counts.insert(key.to_owned(), 1)),
    }
}

/// The smallest of the sorted values that a share of `share` does not exceed (nearest rank), in milliseconds; 0 of none.
fn percentile_ms(sorted_ns: &[u64], share: f64) -> f64 {
    let rank = (share * sorted_ns.len() as f64).ceil() as usize;
    let index = rank.clamp(1, sorted_ns.len().max(1)) - 1;
    sorted_ns.get(index).map_or(0.0, |&ns| ns as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_and_what_came_twice_is_counted() {
        let mut tally = Tally::default();
        for due_ns in 0..10 {
            tally.sent(due_ns);
        }
        for number in 0..8 {
            tally.ack(Some(number), "accepted");
            assert!(tally.result(Some(number), "success", 100));
        }
        assert!(!tally.result(Some(3), "error", 100));
        assert!(!tally.result(Some(3), "error", 100));
        tally.ack(Some(5), "rejected");
        assert!(!tally.result(Some(10), "success", 100));
        assert!(!tally.result(None, "success", 100));
        let totals = tally.totals();
        assert_eq!((totals.sent, totals.answered, totals.missing), (10, 8, 2));
        assert_eq!((totals.duplicated, totals.acks_duplicated), (2, 1));
        assert_eq!((totals.acks_missing, totals.foreign), (2, 2));
        assert_eq!(totals.statuses, BTreeMap::from([("success".to_owned(), 8)]));
        assert_eq!(totals.acks, BTreeMap::from([("accepted".to_owned(), 8)]));
    }

    #[test]
    fn percentiles_are_exact_and_begin_where_they_are_asked_to() {
        let mut tally = Tally::default();
        for number in 0..=100u64 {
            tally.sent(number * 1_000_000);
        }
        for number in 0..=100u64 {
            // Takes as many milliseconds as its number.
            tally.result(Some(number as usize), "success", 2 * number * 1_000_000);
        }
        let latencies = tally.latencies(1_000_000);
        assert_eq!(
            (latencies.count, latencies.p50_ms, latencies.p95_ms),
            (100, 50.0, 95.0)
        );
        assert_eq!((latencies.p99_ms, latencies.max_ms), (99.0, 100.0));
        assert_eq!(Tally::default().latencies(0), Latencies::default());
        assert_eq!(tally.answered_between(0, 20_000_000), 10);
    }

    #[test]
    fn a_run_that_slows_down_shows_it_in_its_tenths() {
        let mut tally = Tally::default();
        let mut now_ns = 0;
        for number in 0..100u64 {
            tally.sent(0);
            now_ns += if number < 90 { 1_000_000 } else { 10_000_000 };
            tally.result(Some(number as usize), "success", now_ns);
        }
        let tenths: Vec<u64> = tally.tenths().iter().map(|rate| rate.round() as u64).collect();
        assert_eq!((tenths.len(), tenths[0], tenths[9]), (10, 1000, 100));
        assert!(Tally::default().tenths().is_empty());
    }
}
