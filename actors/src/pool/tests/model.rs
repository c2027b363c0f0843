//! Places, line and policy driven by any sequence of submit, finish, cancel and tick, beside a model that counts on its
//! fingers. As `pool.rs` does it, without the actor.

use std::collections::VecDeque;
use std::time::Duration;

use caf_protocol::ack::OverloadStatus;
use tokio::time::Instant;

use super::*;
use crate::pool::policy::{Level, Policy, QueueRules, Terms};
use crate::settings::policies::{DegradationLevels, OverloadThresholds};

/// How long a job may wait and still be dropped, in milliseconds.
const MAX_AGE_MS: u64 = 50;
const MAX_DEFER_MS: u64 = 1_000;

#[derive(Debug, Clone)]
enum Step {
    /// A job asks for a place; it has so much time.
    Submit { deadline_ms: u64 },
    /// The job at this position of those that were admitted reaches the pool; all do at once without it.
    Arrive(usize),
    /// It turns out that somebody else has it.
    GoElsewhere(usize),
    /// A running job ends.
    Finish(usize),
    /// A waiting job is taken out.
    Cancel,
    /// Time passes.
    Tick(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1u64..2_000).prop_map(|deadline_ms| Step::Submit { deadline_ms }),
        4 => any::<usize>().prop_map(Step::Arrive),
        1 => any::<usize>().prop_map(Step::GoElsewhere),
        2 => any::<usize>().prop_map(Step::Finish),
        1 => Just(Step::Cancel),
        1 => (0u64..200).prop_map(Step::Tick),
    ];
    prop::collection::vec(step, 0..150)
}

fn rules() -> impl Strategy<Value = QueueRules> {
    let levels = DegradationLevels::default();
    let policy = prop_oneof![
        Just(Policy::RejectNew),
        Just(Policy::DropOldest {
            max_age: Duration::from_millis(MAX_AGE_MS)
        }),
        Just(Policy::Defer { max_ms: MAX_DEFER_MS }),
        Just(Policy::Degrade {
            light: levels.light,
            medium: levels.medium
        }),
    ];
    (1usize..12, policy).prop_map(|(size, policy)| QueueRules {
        size,
        thresholds: OverloadThresholds::default(),
        policy,
    })
}

struct Job {
    place: Place,
    deadline: Instant,
}

/// The pool, and what became of all that asked.
struct Driven {
    places: Places,
    deferrals: Deferrals,
    submitted: u64,
    slots: usize,
    size: usize,
    now: Instant,
    admitted: Vec<Job>,
    line: Line<Job>,
    debts: Vec<Debt>,
    running: Vec<Job>,
    accepted: usize,
    finished: usize,
    dropped: usize,
    elsewhere: usize,
}

impl Driven {
    fn new(slots: usize, rules: QueueRules) -> Self {
        let size = rules.size;
        Self {
            places: Places::new(
                ResourceClass::Cpu,
                slots,
                Some(rules),
                Arc::default(),
                Log::discard(),
            ),
            deferrals: Deferrals::new(1_000),
            submitted: 0,
            slots,
            size,
            now: Instant::now(),
            admitted: Vec::new(),
            line: Line::new(Ageing(Duration::from_millis(100))),
            debts: Vec::new(),
            running: Vec::new(),
            accepted: 0,
            finished: 0,
            dropped: 0,
            elsewhere: 0,
        }
    }

    fn submit(&mut self, deadline_ms: u64) -> Admitted {
        let left = Duration::from_millis(deadline_ms);
        self.submitted += 1;
        let job = Deferrable {
            left,
            sequence: self.submitted,
            deliveries: 1,
            deferrals: &self.deferrals,
        };
        self.places.admit(self.now, Some(job))
    }

    fn admit(&mut self, taken: TakenPlace, deadline_ms: u64) {
        self.accepted += 1;
        self.admitted.push(Job {
            place: taken.place,
            deadline: self.now + Duration::from_millis(deadline_ms),
        });
    }

    fn arrive(&mut self, index: usize) {
        let mut job = self.admitted.remove(index);
        self.debts.extend(job.place.take_debt());
        // Of several tenants and priorities: who has to leave is the oldest all the same.
        let number = usize::from(self.accepted.to_le_bytes()[0]);
        self.line.push(Newcomer {
            tenant: ["a", "b", "c"][number % 3],
            priority: [0, 50, 100, 50][number % 4],
            since: self.now,
            deadline: job.deadline,
            item: job,
        });
        self.pump();
    }

    fn pump(&mut self) {
        self.finished += self.line.take_expired(self.now).len();
        while !self.debts.is_empty() {
            if !self.places.is_due() {
                self.debts.clear();
            } else if self.line.len() > 1
                && let (Some(debt), Some(mut oldest)) = (self.debts.pop(), self.line.pop_oldest(self.now))
            {
                oldest.item.place.pay(debt);
                self.dropped += 1;
            } else {
                break;
            }
        }
        while self.running.len() < self.slots
            && let Some((waiting, ())) = self
                .line
                .pop_next(self.now, |_| Some(Turn { weight: 2, right: () }))
        {
            self.running.push(waiting.item);
        }
        self.places.note_oldest(self.line.oldest());
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Submit { .. } => unreachable!("looked at by the test"),
            Step::Arrive(n) if !self.admitted.is_empty() => self.arrive(n % self.admitted.len()),
            Step::GoElsewhere(n) if !self.admitted.is_empty() => {
                drop(self.admitted.remove(n % self.admitted.len()));
                self.elsewhere += 1;
            }
            Step::Finish(n) if !self.running.is_empty() => {
                drop(self.running.remove(n % self.running.len()));
                self.finished += 1;
                self.pump();
            }
            Step::Cancel => {
                self.finished += usize::from(self.line.pop_oldest(self.now).is_some());
                self.pump();
            }
            Step::Tick(ms) => {
                self.now += Duration::from_millis(*ms);
                self.pump();
            }
            _ => {}
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        prop_assert!(self.line.len() <= self.size, "{} wait", self.line.len());
        prop_assert!(self.running.len() <= self.slots);
        let held = self.admitted.len() + self.line.len() + self.running.len();
        prop_assert_eq!(
            self.accepted,
            self.finished + held + self.dropped + self.elsewhere
        );
        prop_assert!(self.places.queue().0 <= self.size);
        prop_assert!(
            self.places
                .free()
                .is_some_and(|free| free <= self.slots + self.size)
        );
        Ok(())
    }
}

/// The same by counting: who waits, and since when.
#[derive(Default)]
struct Fingers {
    running: usize,
    waiting: VecDeque<(Instant, Instant)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Expected {
    Taken { degraded: Option<Level>, dropping: bool },
    Deferred { delay_ms: u64 },
    Full,
    CannotDefer,
}

impl Fingers {
    /// What the contract says, in whole numbers.
    fn expect(&self, slots: usize, rules: &QueueRules, now: Instant, left_ms: u64) -> Expected {
        let plain = Expected::Taken {
            degraded: None,
            dropping: false,
        };
        let (depth, size) = (self.waiting.len(), rules.size);
        if self.running < slots {
            return plain;
        }
        if depth >= size {
            return Expected::Full;
        }
        let (degraded, overloaded) = (depth * 10 >= size * 5, depth * 10 >= size * 8);
        match &rules.policy {
            Policy::DropOldest { .. } if overloaded => {
                let oldest = self.waiting.front().expect("it is overloaded").0;
                let is_young = now.saturating_duration_since(oldest) <= Duration::from_millis(MAX_AGE_MS);
                Expected::Taken {
                    degraded: None,
                    dropping: is_young,
                }
            }
            Policy::Defer { .. } if degraded && left_ms < 100 => Expected::CannotDefer,
            Policy::Defer { max_ms } if degraded => {
                let grown = (2 * depth as u64 - size as u64) * max_ms * 1_000 / size as u64;
                Expected::Deferred {
                    delay_ms: (grown / 1_000).max(100).min(left_ms),
                }
            }
            Policy::Degrade { .. } if degraded => Expected::Taken {
                degraded: Some(if overloaded { Level::Medium } else { Level::Light }),
                dropping: false,
            },
            _ => plain,
        }
    }
}

fn kind(admitted: &Admitted) -> Expected {
    match admitted {
        Admitted::Taken(taken) => Expected::Taken {
            degraded: taken.terms.degraded,
            dropping: taken.place.owes(),
        },
        Admitted::Deferred(deferral) => Expected::Deferred {
            delay_ms: deferral.delay_ms,
        },
        Admitted::Refused(refused) if refused.cannot_defer => Expected::CannotDefer,
        Admitted::Refused(_) => Expected::Full,
    }
}

proptest! {
    /// Each job reaches the pool as soon as it is admitted: every answer is foreseen.
    #[test]
    fn rejections_drops_deferrals_and_degradations_are_exact(slots in 1usize..4, rules in rules(), steps in steps()) {
        let mut pool = Driven::new(slots, rules.clone());
        let mut fingers = Fingers::default();
        for step in &steps {
            match step {
                Step::Submit { deadline_ms } => {
                    let dropped = pool.dropped;
                    let admitted = pool.submit(*deadline_ms);
                    let expected = fingers.expect(slots, &rules, pool.now, *deadline_ms);
                    prop_assert_eq!(kind(&admitted), expected.clone());
                    if let Admitted::Taken(taken) = admitted {
                        pool.admit(taken, *deadline_ms);
                        pool.arrive(0);
                        let drops = matches!(expected, Expected::Taken { dropping: true, .. });
                        prop_assert_eq!(pool.dropped - dropped, usize::from(drops));
                    }
                }
                Step::Arrive(_) | Step::GoElsewhere(_) => {}
                step => pool.take(step),
            }
            pool.check()?;
            prop_assert!(pool.debts.is_empty());
            fingers = Fingers {
                running: pool.running.len(),
                waiting: pool.line.waits().collect(),
            };
            let wait = fingers.waiting.len();
            prop_assert_eq!(pool.places.queue(), (wait, rules.size));
        }
    }

    /// Jobs reach the pool later, in any order or never: the bounds hold, nothing is lost, and in the end all is free.
    #[test]
    fn bounds_hold_and_nothing_is_lost_however_late_admitted_jobs_arrive(
        slots in 1usize..4,
        rules in rules(),
        steps in steps(),
    ) {
        let all = slots + rules.size;
        let mut pool = Driven::new(slots, rules);
        for step in &steps {
            if let Step::Submit { deadline_ms } = step {
                if let Admitted::Taken(taken) = pool.submit(*deadline_ms) {
                    pool.admit(taken, *deadline_ms);
                }
            } else {
                pool.take(step);
            }
            pool.check()?;
        }
        while !pool.admitted.is_empty() {
            pool.arrive(0);
            pool.check()?;
        }
        while !pool.running.is_empty() {
            pool.take(&Step::Finish(0));
            pool.check()?;
        }
        prop_assert_eq!((pool.line.len(), pool.debts.len()), (0, 0));
        prop_assert_eq!(pool.places.free(), Some(all));
        prop_assert_eq!(pool.places.queue().0, 0);
    }
}

#[test]
fn a_job_that_finds_a_slot_free_is_let_in_on_full_terms_whatever_the_policy() {
    let rules = QueueRules {
        size: 1,
        thresholds: OverloadThresholds {
            degraded: 0.1,
            overloaded: 0.1,
            critical: 0.1,
        },
        policy: Policy::Defer { max_ms: MAX_DEFER_MS },
    };
    let mut pool = Driven::new(2, rules);
    for _ in 0..2 {
        let Admitted::Taken(taken) = pool.submit(1) else {
            panic!("a slot is free")
        };
        assert_eq!(taken.terms, Terms::FULL);
        assert_eq!(
            taken.load.map(|load| (load.depth, load.status)),
            Some((0, OverloadStatus::Healthy))
        );
        pool.admit(taken, 1);
    }
    assert!(
        matches!(pool.submit(1), Admitted::Taken(taken) if taken.load.is_some_and(|load| load.depth == 1))
    );
}

#[test]
fn without_a_bound_there_is_always_a_place_and_no_load() {
    let places = Places::unbounded(ResourceClass::Io, 1);
    let taken: Vec<_> = (0..10_000).map(|_| places.admit(Instant::now(), None)).collect();
    assert!(
        taken
            .iter()
            .all(|admitted| matches!(admitted, Admitted::Taken(taken) if taken.load.is_none()))
    );
    assert_eq!((places.free(), places.queue()), (None, (9_999, usize::MAX)));
}
