//! Changes of status while places are taken and returned by several threads at once.

use std::sync::Mutex;

use tokio::time::Instant;

use super::*;
use crate::metrics::{Meter, Sample};
use crate::pool::policy::QueueRules;
use crate::settings::policies::QueuePolicySettings;

/// Threads, and how often each fills the queue and lets go.
const THREADS: usize = 4;
const ROUNDS: usize = 200;

#[derive(Default)]
struct Gauge(Mutex<Vec<f64>>);

impl Meter for Gauge {
    fn record(&self, sample: &Sample) {
        self.0.lock().expect("no panic holds it").push(sample.value);
    }
}

#[test]
fn changes_are_told_in_their_order_and_none_is_missed_however_many_take_and_return() {
    let gauge = Arc::new(Gauge::default());
    let log = Log::discard().with_meter(Arc::clone(&gauge) as Arc<dyn Meter>);
    let rules = QueueRules::of(&QueuePolicySettings::default(), 4);
    let places = Places::new(ResourceClass::Cpu, 1, Some(rules), Arc::default(), log);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    let taken: Vec<_> = (0..3).map(|_| places.admit(Instant::now(), None)).collect();
                    drop(taken);
                }
            });
        }
    });
    let told = gauge.0.lock().expect("no panic holds it");
    assert!(told.len() > 1);
    let neighbours = told.windows(2);
    let same = neighbours.filter(|pair| (pair[0] - pair[1]).abs() < 0.5).count();
    assert_eq!(same, 0, "each is a change from the one before");
    assert!(
        told[0] > 0.5 && told[told.len() - 1] < 0.5,
        "from healthy to healthy"
    );
    assert_eq!(places.free(), Some(5));
}

#[test]
fn a_bounded_queue_is_critical_while_it_is_full_and_one_without_a_bound_never() {
    let rules = QueueRules::of(&QueuePolicySettings::default(), 4);
    let bounded = Places::new(ResourceClass::Io, 1, Some(rules), Arc::default(), Log::discard());
    let unbounded = Places::unbounded(ResourceClass::Io, 1);
    let fill = |places: &Places| (0..5).map(|_| places.admit(Instant::now(), None)).collect();
    let mut taken: Vec<_> = fill(&bounded);
    let _more: Vec<_> = fill(&unbounded);
    assert!(bounded.is_critical() && !unbounded.is_critical());
    taken.truncate(2);
    assert!(!bounded.is_critical());
}
