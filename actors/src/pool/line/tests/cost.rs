//! What the line costs, beside one that knows the arrival only. Printed, not asserted:
//! `LINE_COST=1 cargo test --release -p caf-actors --lib line::tests::cost -- --nocapture`

use super::*;

/// Operations of each kind that are measured.
const ROUNDS: u32 = 200_000;

fn measure(what: &str, mut round: impl FnMut(u32)) {
    let start = Instant::now();
    (0..ROUNDS).for_each(&mut round);
    println!("{what}: {:?} for one in and one out", start.elapsed() / ROUNDS);
}

#[test]
fn what_one_in_and_one_out_cost_is_printed() {
    if std::env::var_os("LINE_COST").is_none() {
        return;
    }
    let start = Instant::now();
    let deadline = |n: u32| start + Duration::from_millis(u64::from(n));
    let mut plain = VecDeque::from_iter((0..1_000).map(|n| (start, deadline(n), n)));
    let mut deadlines: BTreeMap<Instant, usize> = (0..1_000).map(|n| (deadline(n), 1)).collect();
    measure("arrival only, 1000 wait", |n| {
        plain.push_back((start, deadline(n + 1_000), n));
        *deadlines.entry(deadline(n + 1_000)).or_default() += 1;
        let (_, gone, _) = plain.pop_front().expect("some wait");
        deadlines.remove(&gone);
    });
    for (waiting, tenants) in [(0, 1), (1_000, 1), (1_000, 10), (1_000, 1_000), (10_000, 10_000)] {
        let names: Vec<String> = (0..tenants).map(|n| format!("tenant-{n}")).collect();
        let mut line = Line::new(STEP);
        let push = |line: &mut Line<u32>, n: u32| {
            let tenant = &names[n as usize % names.len()];
            line.push(newcomer(tenant, 50, start, deadline(n), n));
        };
        (0..waiting).for_each(|n| push(&mut line, n));
        measure(&format!("{waiting} wait, of {tenants} tenants"), |n| {
            push(&mut line, waiting + n);
            line.pop_next(start, weighing(1)).expect("some wait");
        });
    }
}
