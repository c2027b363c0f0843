use caf_protocol::assignment::Estimate;
use proptest::prelude::*;

use super::*;

fn policy(rate_per_s: Option<f64>) -> TenantPolicy {
    TenantPolicy {
        rate_per_s,
        ..TenantPolicy::default()
    }
}

#[test]
fn a_hundred_thousand_tenants_that_come_once_leave_no_more_behind_than_the_bound() {
    let (mut accounts, policy, start) = (Accounts::default(), policy(Some(0.001)), Instant::now());
    for number in 0..100_000u64 {
        let now = start + Duration::from_micros(number);
        let taken = accounts
            .admit(&format!("tenant-{number}"), &policy, &Ask::default(), now)
            .expect("it is new");
        accounts.end(&taken.tenant, taken.used, false, &policy);
        assert!(accounts.len() <= MAX_IDLE + 1);
    }
    assert_eq!((accounts.len(), accounts.idle.len()), (MAX_IDLE, MAX_IDLE));
    assert!(
        accounts.open.capacity() < 4 * MAX_IDLE,
        "{}",
        accounts.open.capacity()
    );
    accounts.forget(start + Duration::from_secs(2_000));
    assert_eq!((accounts.len(), accounts.idle.len()), (0, 0));
}

#[test]
fn who_still_holds_something_is_never_forgotten_for_others() {
    let (mut accounts, policy, now) = (Accounts::default(), policy(Some(0.001)), Instant::now());
    let held = accounts
        .admit("acme", &policy, &Ask::default(), now)
        .expect("it is new");
    for number in 0..2 * MAX_IDLE {
        let taken = accounts
            .admit(&number.to_string(), &policy, &Ask::default(), now)
            .expect("it is new");
        accounts.end(&taken.tenant, taken.used, false, &policy);
    }
    assert_eq!(accounts.used("acme"), held.used);
}

#[derive(Debug, Clone)]
enum Step {
    Admit {
        tenant: u8,
        bytes: u64,
        memory: u64,
        has_slot: bool,
        before: bool,
    },
    Begin(usize),
    End(usize, bool),
    Charge(u8, u64),
    Pass(u64),
    Limit(Option<usize>, Option<u64>, Option<u64>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..3, 0u64..50, 0u64..50, any::<bool>(), proptest::bool::weighted(0.1)).prop_map(
            |(tenant, bytes, memory, has_slot, before)| Step::Admit { tenant, bytes, memory, has_slot, before }
        ),
        2 => (0usize..20).prop_map(Step::Begin),
        3 => (0usize..20, any::<bool>()).prop_map(|(at, refund)| Step::End(at, refund)),
        1 => (0u8..3, 0u64..100).prop_map(|(tenant, bytes)| Step::Charge(tenant, bytes)),
        1 => (0u64..3_000).prop_map(Step::Pass),
        1 => (proptest::option::of(1usize..6), proptest::option::of(1u64..200), proptest::option::of(1u64..200))
            .prop_map(|(queued, bytes, memory)| Step::Limit(queued, bytes, memory)),
    ];
    proptest::collection::vec(step, 0..300)
}

proptest! {
    /// What the accounts say is held is what the jobs hold, at every moment; a limit is never exceeded by whom it judges;
    /// and when all have ended and time has passed, nobody is remembered.
    #[test]
    fn sums_are_conserved_and_no_limit_is_exceeded(steps in steps()) {
        let (mut accounts, mut policy, mut now) = (Accounts::default(), policy(Some(5.0)), Instant::now());
        policy.max_bytes_out_per_s = Some(50);
        let mut held: Vec<Taken> = Vec::new();
        for step in steps {
            match step {
                Step::Admit { tenant, bytes, memory, has_slot, before } => {
                    let estimate = Estimate { memory_bytes: memory, cpu_time_ms: 0 };
                    let ask = Ask { bytes, estimate, has_slot, taken_on_before: before };
                    if let Ok(taken) = accounts.admit(&tenant.to_string(), &policy, &ask, now) {
                        let used = accounts.used(&taken.tenant);
                        if !before {
                            let over = |limit: Option<u64>, used: u64, new: u64| {
                                new > 0 && limit.is_some_and(|limit| used > limit)
                            };
                            prop_assert!(!over(policy.max_queued.map(|n| n as u64), used.waiting as u64, taken.used.waiting as u64));
                            prop_assert!(!over(policy.max_held_bytes, used.bytes, bytes));
                            prop_assert!(!over(policy.max_memory_bytes, used.memory_bytes, memory));
                        }
                        held.push(taken);
                    }
                }
                Step::Begin(at) if at < held.len() => {
                    let Taken { tenant, used } = &mut held[at];
                    accounts.begin(tenant, used);
                }
                Step::End(at, refund) if at < held.len() => {
                    let Taken { tenant, used } = held.swap_remove(at);
                    accounts.end(&tenant, used, refund, &policy);
                }
                Step::Charge(tenant, bytes) => accounts.charge(&tenant.to_string(), &policy, (0, bytes), now),
                Step::Pass(ms) => now += Duration::from_millis(ms),
                Step::Limit(queued, bytes, memory) => {
                    policy.max_queued = queued;
                    policy.max_held_bytes = bytes;
                    policy.max_memory_bytes = memory;
                    let in_force = Arc::new(policy.clone());
                    accounts.revise(|_| Arc::clone(&in_force));
                }
                Step::Begin(_) | Step::End(..) => {}
            }
            for tenant in ["0", "1", "2"] {
                let mut sum = Used::default();
                held.iter().filter(|taken| &*taken.tenant == tenant).for_each(|taken| sum.add(taken.used));
                prop_assert_eq!(accounts.used(tenant), sum);
            }
            let idle = accounts.open.values().filter(|account| account.idle_until.is_some()).count();
            prop_assert_eq!(accounts.idle.len(), idle);
        }
        for Taken { tenant, used } in held {
            accounts.end(&tenant, used, false, &policy);
        }
        accounts.forget(now + Duration::from_secs(3_600));
        prop_assert_eq!((accounts.len(), accounts.idle.len()), (0, 0));
    }
}
