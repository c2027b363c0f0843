//! The line beside models that count on their fingers, and its bounds.

mod bounds;
mod cost;

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

const STEP: Ageing = Ageing(Duration::from_millis(100));

fn newcomer<T>(tenant: &str, priority: u8, since: Instant, deadline: Instant, item: T) -> Newcomer<'_, T> {
    Newcomer {
        tenant,
        priority,
        since,
        deadline,
        item,
    }
}

/// Everybody may start, with this weight.
fn weighing(weight: u32) -> impl FnMut(&Arc<str>) -> Option<Turn<()>> {
    move |_| Some(Turn { weight, right: () })
}

proptest! {
    /// One tenant, equal priorities: first come, first served, as it was before there were tenants.
    /// Steps: 0..=9 push with that deadline, 10 the next, 11 the next gets its turn back, 12.. let time pass and take
    /// the expired.
    #[test]
    fn items_of_one_tenant_leave_once_in_order_and_never_after_their_deadline(
        steps in prop::collection::vec(0u64..16, 0..200),
    ) {
        let start = Instant::now();
        let (mut line, mut model, mut clock) = (Line::new(STEP), VecDeque::<(u64, usize)>::new(), 0);
        for (id, step) in steps.into_iter().enumerate() {
            let now = start + Duration::from_secs(clock);
            match step {
                0..=9 => {
                    let deadline = start + Duration::from_secs(clock + step);
                    line.push(newcomer("acme", 50, now, deadline, id));
                    model.push_back((clock + step, id));
                }
                10 => {
                    let next = line.pop_next(now, weighing(1)).map(|(waiting, ())| waiting.item);
                    prop_assert_eq!(next, model.pop_front().map(|(_, id)| id));
                }
                11 => {
                    if let Some((waiting, ())) = line.pop_next(now, weighing(1)) {
                        line.push_front(waiting);
                    }
                }
                _ => {
                    clock += step - 11;
                    let gone: Vec<_> = model.iter().filter(|(at, _)| *at <= clock).map(|(_, id)| *id).collect();
                    model.retain(|(at, _)| *at > clock);
                    let taken = line.take_expired(start + Duration::from_secs(clock)).into_iter();
                    prop_assert_eq!(taken.map(|waiting| waiting.item).collect::<Vec<_>>(), gone);
                }
            }
            prop_assert_eq!(line.len(), model.len());
            let next = model.iter().map(|(at, _)| *at).min().map(|at| start + Duration::from_secs(at));
            prop_assert_eq!(line.next_deadline(), next);
            line.check();
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Push {
        tenant: usize,
        priority: u8,
        lasts_ms: u64,
    },
    Next,
    /// The next gets its turn back.
    GiveBack,
    Oldest,
    /// Takes out those whose number leaves this rest.
    TakeWhere(usize),
    /// From now on this tenant may run so many; none is no limit.
    Limit {
        tenant: usize,
        max: Option<usize>,
    },
    /// One of its jobs ends.
    End {
        tenant: usize,
    },
    ReadmitAll,
    Tick(u64),
}

const TENANTS: usize = 4;
const NAMES: [&str; TENANTS] = ["a", "b", "c", "d"];

fn step() -> impl Strategy<Value = Step> {
    let tenant = 0..TENANTS;
    let max = prop_oneof![Just(None), (0usize..3).prop_map(Some)];
    prop_oneof![
        8 => (tenant.clone(), 0u8..=120, 1u64..5_000)
            .prop_map(|(tenant, priority, lasts_ms)| Step::Push { tenant, priority, lasts_ms }),
        8 => Just(Step::Next),
        1 => Just(Step::GiveBack),
        1 => Just(Step::Oldest),
        1 => (0usize..3).prop_map(Step::TakeWhere),
        1 => (tenant.clone(), max).prop_map(|(tenant, max)| Step::Limit { tenant, max }),
        3 => tenant.prop_map(|tenant| Step::End { tenant }),
        1 => Just(Step::ReadmitAll),
        1 => (0u64..3_000).prop_map(Step::Tick),
    ]
}

/// The same, slowly: every tenant's jobs in a list, and the order of turns in another.
struct Model {
    waiting: BTreeMap<usize, Vec<Job>>,
    turns: VecDeque<usize>,
    left: [u32; TENANTS],
    weights: [u32; TENANTS],
    running: [usize; TENANTS],
    max: [Option<usize>; TENANTS],
}

#[derive(Debug, Clone, Copy)]
struct Job {
    id: usize,
    priority: u8,
    since_ms: u64,
    deadline_ms: u64,
}

impl Model {
    fn enter(&self, tenant: usize) -> bool {
        self.max[tenant].is_none_or(|max| self.running[tenant] < max)
    }

    /// The tenant whose turn it is, after those were set aside that may start nothing.
    fn next(&mut self, now_ms: u64) -> Option<(usize, Job)> {
        while let Some(&tenant) = self.turns.front() {
            if !self.enter(tenant) {
                self.left[tenant] = 0;
                self.turns.pop_front();
                continue;
            }
            if self.left[tenant] == 0 {
                self.left[tenant] = self.weights[tenant];
            }
            self.left[tenant] -= 1;
            // By what the priority is worth now, not by what the line keeps.
            let worth = |job: &Job| u64::from(job.priority.min(100)) * 100 + (now_ms - job.since_ms);
            let jobs = &self.waiting[&tenant];
            let best = *jobs
                .iter()
                .max_by_key(|job| (worth(job), std::cmp::Reverse(job.id)))?;
            if self.left[tenant] == 0 {
                self.turns.rotate_left(1);
            }
            self.forget(tenant, best.id);
            return Some((tenant, best));
        }
        None
    }

    /// As if nothing had happened, but that those are set aside that may start nothing.
    fn give_back(&mut self, tenant: usize) {
        while self.turns.front() != Some(&tenant) {
            let aside = self.turns.pop_front().expect("it is among them");
            self.left[aside] = 0;
        }
        if self.waiting[&tenant].len() == 1 {
            self.left[tenant] = 1;
        } else if self.left[tenant] == 0 {
            self.left[tenant] = self.weights[tenant];
        }
    }

    fn forget(&mut self, tenant: usize, id: usize) {
        let jobs = self.waiting.get_mut(&tenant).expect("has jobs");
        jobs.retain(|job| job.id != id);
        if jobs.is_empty() {
            self.waiting.remove(&tenant);
            self.turns.retain(|turn| *turn != tenant);
            self.left[tenant] = 0;
        }
    }

    fn all(&self) -> Vec<(usize, Job)> {
        let each = self.waiting.iter();
        let mut all: Vec<_> = each
            .flat_map(|(tenant, jobs)| jobs.iter().map(|job| (*tenant, *job)))
            .collect();
        all.sort_by_key(|(_, job)| job.id);
        all
    }

    fn take(&mut self, fits: impl Fn(&Job) -> bool) -> Vec<usize> {
        let taken: Vec<_> = self.all().into_iter().filter(|(_, job)| fits(job)).collect();
        taken
            .iter()
            .for_each(|(tenant, job)| self.forget(*tenant, job.id));
        taken.into_iter().map(|(_, job)| job.id).collect()
    }

    fn readmit(&mut self, tenant: usize) {
        if self.waiting.contains_key(&tenant) && !self.turns.contains(&tenant) {
            self.turns.push_back(tenant);
        }
    }
}

fn ids(taken: Vec<Waiting<usize>>) -> Vec<usize> {
    taken.into_iter().map(|waiting| waiting.item).collect()
}

proptest! {
    /// Any order of everything that can happen to a line: each item leaves once, and it is the one that the model says.
    #[test]
    fn whose_turn_it_is_is_exact_and_nothing_is_lost_or_doubled(
        weights in prop::array::uniform4(1u32..5),
        steps in prop::collection::vec(step(), 0..300),
    ) {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut line = Line::new(STEP);
        let mut model = Model {
            waiting: BTreeMap::new(),
            turns: VecDeque::new(),
            left: [0; TENANTS],
            weights,
            running: [0; TENANTS],
            max: [None; TENANTS],
        };
        let mut now_ms = 0;
        for (id, step) in steps.into_iter().enumerate() {
            let now = at(now_ms);
            match step {
                Step::Push { tenant, priority, lasts_ms } => {
                    line.push(newcomer(NAMES[tenant], priority, now, at(now_ms + lasts_ms), id));
                    let job = Job { id, priority, since_ms: now_ms, deadline_ms: now_ms + lasts_ms };
                    model.waiting.entry(tenant).or_default().push(job);
                    if model.waiting[&tenant].len() == 1 {
                        model.turns.push_back(tenant);
                    }
                }
                Step::Next | Step::GiveBack => {
                    let enter = |tenant: &Arc<str>| {
                        let tenant = NAMES.iter().position(|name| **name == **tenant).expect("known");
                        model.enter(tenant).then(|| Turn { weight: weights[tenant], right: tenant })
                    };
                    let next = line.pop_next(now, enter);
                    match (step, next) {
                        (Step::GiveBack, Some((waiting, tenant))) => {
                            let (item, turn) = waiting.split();
                            line.push_front(turn.with(item));
                            model.give_back(tenant);
                        }
                        (Step::GiveBack, None) => prop_assert!(model.next(now_ms).is_none()),
                        (_, next) => {
                            let expected = model.next(now_ms);
                            prop_assert_eq!(
                                next.map(|(waiting, tenant)| (tenant, waiting.item)),
                                expected.map(|(tenant, job)| (tenant, job.id))
                            );
                            if let Some((tenant, _)) = expected {
                                model.running[tenant] += 1;
                            }
                        }
                    }
                }
                Step::Oldest => {
                    let oldest = model.all().first().map(|(_, job)| job.id);
                    prop_assert_eq!(line.pop_oldest(now).map(|waiting| waiting.item), oldest);
                    model.take(|job| Some(job.id) == oldest);
                }
                Step::TakeWhere(rest) => {
                    let taken = ids(line.take_where(now, |id| id % 3 == rest));
                    prop_assert_eq!(taken, model.take(|job| job.id % 3 == rest));
                }
                Step::Limit { tenant, max } => model.max[tenant] = max,
                Step::End { tenant } if model.running[tenant] > 0 => {
                    model.running[tenant] -= 1;
                    line.readmit(NAMES[tenant], now);
                    model.readmit(tenant);
                }
                Step::End { .. } => {}
                Step::ReadmitAll => {
                    // Their order is that in which they were set aside, which the model does not know.
                    if TENANTS - model.turns.len() > 0 {
                        for (tenant, name) in NAMES.iter().enumerate() {
                            line.readmit(name, now);
                            model.readmit(tenant);
                        }
                        line.readmit_all(now);
                    }
                }
                Step::Tick(ms) => {
                    now_ms += ms;
                    let expired = ids(line.take_expired(at(now_ms)));
                    prop_assert_eq!(expired, model.take(|job| job.deadline_ms <= now_ms));
                }
            }
            line.check();
            let all = model.all();
            prop_assert_eq!(line.len(), all.len());
            prop_assert_eq!(line.oldest(), all.first().map(|(_, job)| at(job.since_ms)));
            prop_assert_eq!(line.tenants(), model.waiting.len());
            prop_assert_eq!(line.tenants_aside(), model.waiting.len() - model.turns.len());
        }
    }
}

impl<T> Line<T> {
    /// All maps say the same, and nothing is kept of whom nothing waits.
    fn check(&self) {
        let order: usize = self.tenants.values().map(|queue| queue.order.len()).sum();
        assert_eq!(
            (order, self.deadlines.len()),
            (self.items.len(), self.items.len())
        );
        assert!(self.tenants.values().all(|queue| !queue.order.is_empty()));
        for (turn, tenant) in &self.turns {
            assert_eq!(self.tenants[tenant].turn, Some(*turn));
        }
        for (tenant, queue) in &self.tenants {
            assert_eq!(queue.turn.is_some(), self.turns.values().any(|one| one == tenant));
            assert_eq!(queue.turn.is_none(), queue.aside_since.is_some());
        }
    }
}
