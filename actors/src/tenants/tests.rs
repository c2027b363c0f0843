use std::time::Duration;

use caf_protocol::assignment::Estimate;

use super::*;
use crate::settings::TenantOverride;

fn by(default: TenantPolicy) -> Tenants {
    Tenants::new(TenantSettings {
        default,
        ..TenantSettings::default()
    })
}

fn quota_of(answer: Result<Share, Exceeded>) -> Option<Quota> {
    answer.err().map(|exceeded| exceeded.quota)
}

#[test]
fn without_limits_every_job_is_taken_on_and_nothing_is_left_of_it() {
    let (tenants, now) = (by(TenantPolicy::default()), Instant::now());
    let ask = Ask {
        bytes: u64::MAX,
        estimate: Estimate {
            memory_bytes: u64::MAX,
            cpu_time_ms: u64::MAX,
        },
        ..Ask::default()
    };
    let shares: Vec<_> = (0..3)
        .map(|_| tenants.admit("acme", &ask, now).map(Share::kept))
        .collect();
    assert!(shares.iter().all(Result::is_ok));
    assert_eq!(tenants.tracked(), 1);
    drop(shares);
    assert!(tenants.admit("other", &ask, now).is_ok());
    assert_eq!(
        tenants.tracked(),
        1,
        "acme is forgotten, other not yet looked for"
    );
}

#[test]
fn jobs_that_find_a_slot_do_not_count_as_waiting_up_to_what_the_tenant_may_run() {
    let tenants = by(TenantPolicy {
        max_running: Some(2),
        max_queued: Some(3),
        ..TenantPolicy::default()
    });
    let now = Instant::now();
    let ask = Ask {
        has_slot: true,
        ..Ask::default()
    };
    let mut shares: Vec<_> = std::iter::from_fn(|| tenants.admit("acme", &ask, now).ok())
        .map(Share::kept)
        .collect();
    assert_eq!(shares.len(), 5, "two run, three wait");
    assert_eq!(quota_of(tenants.admit("acme", &ask, now)), Some(Quota::Queued));
    assert!(
        tenants.admit("other", &ask, now).is_ok(),
        "others are not affected"
    );
    shares.remove(0).end();
    assert!(tenants.admit("acme", &ask, now).is_ok(), "one may run again");
    for share in &mut shares {
        share.begin();
    }
    let waiting = Ask::default();
    let more: Vec<_> = std::iter::from_fn(|| tenants.admit("acme", &waiting, now).ok()).collect();
    assert_eq!(more.len(), 3, "nobody waits when all have begun");
}

#[test]
fn sums_of_bytes_and_estimates_are_held_until_the_job_ends() {
    let tenants = by(TenantPolicy {
        max_held_bytes: Some(100),
        max_memory_bytes: Some(1 << 30),
        max_cpu_time_ms: Some(3_600_000),
        ..TenantPolicy::default()
    });
    let now = Instant::now();
    let ask = |bytes, memory_bytes, cpu_time_ms| Ask {
        bytes,
        estimate: Estimate {
            memory_bytes,
            cpu_time_ms,
        },
        ..Ask::default()
    };
    let first = tenants
        .admit("acme", &ask(60, 1 << 29, 3_000_000), now)
        .expect("fits")
        .kept();
    for (ask, quota) in [
        (ask(41, 0, 0), Some(Quota::HeldBytes)),
        (ask(1, (1 << 29) + 1, 0), Some(Quota::Memory)),
        (ask(1, 0, 600_001), Some(Quota::CpuTime)),
        (ask(40, 1 << 29, 600_000), None),
    ] {
        assert_eq!(quota_of(tenants.admit("acme", &ask, now)), quota);
    }
    drop(first);
    assert_eq!(
        quota_of(tenants.admit("acme", &ask(100, 1 << 30, 3_600_000), now)),
        None
    );
}

#[test]
fn a_share_that_is_not_kept_costs_nothing_and_one_that_is_costs_its_rate() {
    let tenants = by(TenantPolicy {
        rate_per_s: Some(1.0),
        burst: Some(2),
        max_bytes_in_per_s: Some(10),
        ..TenantPolicy::default()
    });
    let now = Instant::now();
    let ask = Ask {
        bytes: 5,
        ..Ask::default()
    };
    for _ in 0..10 {
        drop(
            tenants
                .admit("acme", &ask, now)
                .expect("the one before has given it back"),
        );
    }
    for _ in 0..2 {
        drop(tenants.admit("acme", &ask, now).expect("within the burst").kept());
    }
    let refused = tenants.admit("acme", &ask, now).err().expect("both are spent");
    assert_eq!(refused.quota, Quota::BytesIn);
    assert_eq!(refused.retry_after, Some(Duration::from_millis(500)));
    let small = tenants
        .admit("acme", &Ask::default(), now)
        .err()
        .expect("the rate is spent");
    assert_eq!(
        (small.quota, small.retry_after),
        (Quota::Rate, Some(Duration::from_secs(1)))
    );
    let again = Ask {
        taken_on_before: true,
        ..ask
    };
    let again = tenants
        .admit("acme", &again, now)
        .expect("it was paid for before");
    drop(again);
    assert_eq!(
        quota_of(tenants.admit("acme", &ask, now)),
        Some(Quota::BytesIn),
        "nothing came back"
    );
    assert!(tenants.admit("acme", &ask, now + Duration::from_secs(1)).is_ok());
}

#[test]
fn results_are_charged_when_they_go_and_the_next_job_waits_for_it() {
    let tenants = by(TenantPolicy {
        max_bytes_out_per_s: Some(1_000),
        ..TenantPolicy::default()
    });
    let mut share = tenants
        .admit("acme", &Ask::default(), Instant::now())
        .expect("nothing went")
        .kept();
    share.end();
    share.charge_out(3_000);
    drop(share);
    let now = Instant::now();
    let refused = tenants
        .admit("acme", &Ask::default(), now)
        .err()
        .expect("too much went");
    assert_eq!(refused.quota, Quota::BytesOut);
    let wait = refused.retry_after.expect("it comes back with time");
    assert!(wait <= Duration::from_secs(2), "{wait:?}");
    let later = now + wait + Duration::from_millis(1);
    assert!(tenants.admit("acme", &Ask::default(), later).is_ok());
}

#[test]
fn other_settings_count_at_once_for_what_is_held_and_spent_already() {
    let limits = |rate_per_s, max_queued| TenantSettings {
        default: TenantPolicy {
            rate_per_s: Some(rate_per_s),
            burst: Some(4),
            max_queued: Some(max_queued),
            ..TenantPolicy::default()
        },
        ..TenantSettings::default()
    };
    let (tenants, now) = (Tenants::new(limits(1.0, 10)), Instant::now());
    let held: Vec<_> = std::iter::from_fn(|| tenants.admit("acme", &Ask::default(), now).ok())
        .map(Share::kept)
        .collect();
    assert_eq!(held.len(), 4);
    tenants.replace(limits(1_000.0, 4));
    let soon = now + Duration::from_millis(4);
    assert_eq!(
        quota_of(tenants.admit("acme", &Ask::default(), soon)),
        Some(Quota::Queued)
    );
    tenants.replace(limits(1_000.0, 5));
    assert_eq!(quota_of(tenants.admit("acme", &Ask::default(), soon)), None);
    let mut settings = limits(1_000.0, 1);
    let more = TenantOverride {
        max_queued: Some(9),
        ..TenantOverride::default()
    };
    settings.overrides.insert("acme".to_owned(), more);
    tenants.replace(settings);
    assert_eq!(
        quota_of(tenants.admit("acme", &Ask::default(), soon)),
        None,
        "its own entry counts"
    );
    assert_eq!(
        tenants.policy("acme").rate_per_s,
        Some(1_000.0),
        "on top of the default"
    );
}
