//! What the line promises, driven as a pool does it: slots, jobs that take their time, tenants that come and go.

use super::*;

/// The longest that a job runs, in milliseconds.
const LONGEST_MS: u64 = 200;

#[derive(Debug, Clone)]
struct Load {
    slots: usize,
    weights: Vec<u32>,
    /// Most jobs of each that run at once.
    max: Vec<Option<usize>>,
    arrivals: Vec<Arrival>,
}

#[derive(Debug, Clone)]
struct Arrival {
    gap_ms: u64,
    tenant: usize,
    priority: u8,
    lasts_ms: u64,
}

fn load() -> impl Strategy<Value = Load> {
    (1usize..5, 2usize..7).prop_flat_map(|(slots, tenants)| {
        // Half of all jobs are those of one tenant, in bursts: gaps are mostly none.
        let tenant = prop_oneof![Just(0), 0..tenants];
        let gap_ms = prop_oneof![8 => Just(0u64), 1 => 0..LONGEST_MS];
        let arrival =
            (gap_ms, tenant, 0u8..=100, 1..=LONGEST_MS).prop_map(|(gap_ms, tenant, priority, lasts_ms)| {
                Arrival {
                    gap_ms,
                    tenant,
                    priority,
                    lasts_ms,
                }
            });
        // The last one has no limit, so that somebody always may.
        let max = prop_oneof![3 => Just(None), 1 => (1usize..4).prop_map(Some)];
        (
            prop::collection::vec(1u32..6, tenants),
            prop::collection::vec(max, tenants),
            prop::collection::vec(arrival, 1..150),
        )
            .prop_map(move |(weights, max, arrivals)| Load {
                slots,
                weights,
                max,
                arrivals,
            })
    })
}

/// What happened, in order.
#[derive(Debug, Clone, Copy)]
enum Event {
    Came { job: usize, at_ms: u64 },
    Started { job: usize, at_ms: u64 },
}

/// A pool of so many slots under this load, to the end.
fn run(load: &Load) -> Vec<Event> {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let names: Vec<Arc<str>> = (0..load.weights.len()).map(|n| n.to_string().into()).collect();
    let mut line = Line::new(STEP);
    let (mut events, mut running) = (Vec::new(), BTreeSet::<(u64, usize)>::new());
    let (mut now_ms, mut coming) = (0, load.arrivals.iter().enumerate().peekable());
    let mut next_ms = load.arrivals[0].gap_ms;
    let mut by_tenant = vec![0usize; names.len()];
    while coming.peek().is_some() || !running.is_empty() || !line.is_empty() {
        let ends = running.first().map(|(at, _)| *at);
        now_ms = match (ends, coming.peek()) {
            (Some(ends), Some(_)) => ends.min(next_ms),
            (Some(ends), None) => ends,
            (None, _) => next_ms,
        }
        .max(now_ms);
        if ends == Some(now_ms) {
            let (_, job) = running.pop_first().expect("there is one");
            let tenant = load.arrivals[job].tenant;
            by_tenant[tenant] -= 1;
            line.readmit(&names[tenant], at(now_ms));
        } else if let Some((job, arrival)) = coming.next() {
            let deadline = at(100_000_000);
            line.push(newcomer(
                &names[arrival.tenant],
                arrival.priority,
                at(now_ms),
                deadline,
                job,
            ));
            events.push(Event::Came { job, at_ms: now_ms });
            next_ms = now_ms + coming.peek().map_or(0, |(_, next)| next.gap_ms);
        }
        while running.len() < load.slots {
            let enter = |tenant: &Arc<str>| {
                let tenant: usize = tenant.parse().expect("a number");
                let may = load.max[tenant].is_none_or(|max| by_tenant[tenant] < max);
                may.then(|| Turn {
                    weight: load.weights[tenant],
                    right: tenant,
                })
            };
            let Some((waiting, tenant)) = line.pop_next(at(now_ms), enter) else {
                break;
            };
            by_tenant[tenant] += 1;
            running.insert((now_ms + load.arrivals[waiting.item].lasts_ms, waiting.item));
            events.push(Event::Started {
                job: waiting.item,
                at_ms: now_ms,
            });
        }
    }
    events
}

/// Most starts before the `k`-th job of a tenant, among those that `others` weigh that wait meanwhile.
fn most_before(k: usize, weight: u32, others: impl Iterator<Item = u32>) -> usize {
    let rounds = k.div_ceil(weight as usize);
    k - 1 + rounds * others.map(|weight| weight as usize).sum::<usize>()
}

proptest! {
    /// The formula of ARCHITECTURE.md, for every job of a tenant without a limit of its own: how many start before it, and
    /// how long it waits for that.
    #[test]
    fn the_wait_of_a_job_is_bounded_whatever_other_tenants_send(load in load()) {
        let events = run(&load);
        let tenant_of = |job: usize| load.arrivals[job].tenant;
        let mut checked = 0;
        for (n, event) in events.iter().enumerate() {
            let Event::Came { job, at_ms: came_ms } = *event else { continue };
            let own = tenant_of(job);
            let is_start = |event: &Event| matches!(event, Event::Started { job: started, .. } if *started == job);
            let end = events.iter().position(is_start).expect("every job starts");
            let Event::Started { at_ms: started_ms, .. } = events[end] else { unreachable!() };
            if load.max[own].is_some() {
                continue;
            }
            let between: Vec<usize> = events[n..end]
                .iter()
                .filter_map(|event| match event {
                    Event::Started { job, .. } => Some(tenant_of(*job)),
                    Event::Came { .. } => None,
                })
                .collect();
            let k = 1 + between.iter().filter(|tenant| **tenant == own).count();
            let others = (0..load.weights.len()).filter(|tenant| *tenant != own && between.contains(tenant));
            let most = most_before(k, load.weights[own], others.map(|tenant| load.weights[tenant]));
            prop_assert!(between.len() <= most, "{} start before {job}, its {k}th, {most} may", between.len());
            let longest_ms = LONGEST_MS * (most as u64 + 1).div_ceil(load.slots as u64);
            prop_assert!(started_ms - came_ms <= longest_ms, "{job} waits {} ms", started_ms - came_ms);
            checked += 1;
        }
        let limited = load.arrivals.iter().filter(|arrival| load.max[arrival.tenant].is_some()).count();
        prop_assert_eq!(checked + limited, load.arrivals.len());
    }

    /// While tenants have more waiting than they can start, what each starts is its weight times the turns it had, and no
    /// tenant has two turns more than another: at any time, and between any two.
    #[test]
    fn shares_are_those_of_the_weights_to_within_one_turn(weights in prop::collection::vec(1u32..8, 2..5)) {
        let start = Instant::now();
        let deadline = start + Duration::from_secs(1_000);
        let mut line = Line::new(STEP);
        for n in 0..weights.len() * 200 {
            line.push(newcomer(&(n % weights.len()).to_string(), 50, start, deadline, n % weights.len()));
        }
        let enter = |tenant: &Arc<str>| {
            let tenant: usize = tenant.parse().expect("a number");
            Some(Turn { weight: weights[tenant], right: () })
        };
        let mut starts = Vec::new();
        while line.tenants() == weights.len() {
            starts.push(line.pop_next(start, enter).expect("all may").0.item);
        }
        for from in 0..weights.len() * 8 {
            let mut counts = vec![0u32; weights.len()];
            for (n, tenant) in starts[from..].iter().enumerate() {
                counts[*tenant] += 1;
                let turns = |more: u32| {
                    let fewest = counts.iter().zip(&weights).map(|(count, weight)| count / weight).min();
                    fewest.expect("some") + more
                };
                let most = turns(if from == 0 { 1 } else { 2 });
                let fits = counts.iter().zip(&weights).all(|(count, weight)| *count <= weight * most);
                prop_assert!(fits, "from {from}, after {n} more: {counts:?} of {weights:?}");
            }
        }
    }
}

/// A flood of the most urgent jobs of the same tenant, as fast as they start: what has waited long enough goes first.
#[test]
fn the_least_urgent_job_starts_when_what_came_later_has_no_lead_left() {
    let start = Instant::now();
    let deadline = start + Duration::from_secs(1_000);
    let mut line = Line::new(STEP);
    line.push(newcomer("acme", 0, start, deadline, 0));
    let mut started_ms = None;
    for ms in (0..20_000).step_by(10) {
        let now = start + Duration::from_millis(ms);
        line.push(newcomer("acme", 100, now, deadline, 1));
        if line.pop_next(now, weighing(1)).expect("one waits").0.item == 0 {
            started_ms = Some(ms);
            break;
        }
    }
    assert_eq!(started_ms, Some(10_000), "of equal rank the first goes first");
}

/// Without ageing there is no lead: priorities mean nothing.
#[test]
fn without_ageing_only_the_arrival_counts() {
    let start = Instant::now();
    let deadline = start + Duration::from_secs(1_000);
    let mut line = Line::new(Ageing(Duration::ZERO));
    for (n, priority) in [0, 100, 50, 255].into_iter().enumerate() {
        line.push(newcomer("acme", priority, start, deadline, n));
    }
    let order: Vec<_> = std::iter::from_fn(|| line.pop_next(start, weighing(1)))
        .map(|(waiting, ())| waiting.item)
        .collect();
    assert_eq!(order, [0, 1, 2, 3]);
}

/// Who leaves and comes again, or changes its name, has its turn after all that wait: nothing is gained by it.
#[test]
fn a_tenant_that_disappears_and_comes_again_gains_nothing() {
    let start = Instant::now();
    let deadline = start + Duration::from_secs(1_000);
    let mut line = Line::new(STEP);
    let push = |line: &mut Line<u32>, tenant: &str, n| {
        line.push(newcomer(tenant, 50, start, deadline, n));
    };
    for n in 0..10 {
        push(&mut line, "patient", n);
    }
    let mut starts = Vec::new();
    for n in 100..110 {
        // One at a time, each time as if for the first time, with a weight of five.
        push(&mut line, "fickle", n);
        for _ in 0..2 {
            let enter = |tenant: &Arc<str>| {
                let weight = if &**tenant == "fickle" { 5 } else { 1 };
                Some(Turn { weight, right: () })
            };
            starts.push(line.pop_next(start, enter).expect("both wait").0.item);
        }
    }
    let of_patient = starts.iter().filter(|n| **n < 100).count();
    assert_eq!(of_patient, 10, "{starts:?}");
}

/// A lower weight counts in the turn that has begun.
#[test]
fn a_weight_that_changes_counts_at_once() {
    let start = Instant::now();
    let deadline = start + Duration::from_secs(1_000);
    let mut line = Line::new(STEP);
    for n in 0..20 {
        line.push(newcomer(
            ["a", "b"][n % 2],
            50,
            start,
            deadline,
            ["a", "b"][n % 2],
        ));
    }
    let mut next = |weight_of_a: u32| {
        let enter = |tenant: &Arc<str>| {
            let weight = if &**tenant == "a" { weight_of_a } else { 1 };
            Some(Turn { weight, right: () })
        };
        line.pop_next(start, enter).expect("both wait").0.item
    };
    assert_eq!(
        [100, 100, 1, 1, 1, 1, 2, 2].map(&mut next),
        ["a", "a", "a", "b", "a", "b", "a", "a"]
    );
}

/// Time that a tenant is at its limit is told apart from time without a slot.
#[test]
fn the_wait_for_a_limit_is_told_apart() {
    let start = Instant::now();
    let at = |s: u64| start + Duration::from_secs(s);
    let mut line = Line::new(STEP);
    line.push(newcomer("acme", 50, at(0), at(100), 'a'));
    line.push(newcomer("acme", 50, at(0), at(100), 'b'));
    assert!(line.pop_next(at(1), |_| None::<Turn<()>>).is_none());
    line.push(newcomer("acme", 50, at(2), at(100), 'c'));
    assert_eq!((line.tenants(), line.tenants_aside()), (1, 1));
    let standing = line.find("acme", |item| *item == 'c').expect("waits");
    assert_eq!(
        (standing.before, standing.of_tenant, standing.aside),
        (2, 3, true)
    );
    line.readmit_all(at(4));
    let waited = |slot, limit| Waited {
        slot: Duration::from_secs(slot),
        limit: Duration::from_secs(limit),
    };
    for expected in [waited(2, 3), waited(2, 3), waited(1, 2)] {
        let (waiting, ()) = line.pop_next(at(5), weighing(1)).expect("may");
        assert_eq!(waiting.waited(at(5)), expected);
    }
    assert!(line.find("acme", |_| true).is_none());
}
