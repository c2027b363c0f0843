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

#[test]
fn a_hundred_thousand_random_tenants_leave_bounded_traces_and_the_known_ones_keep_their_policies() {
    let tenants = Tenants::new(TenantSettings {
        default: TenantPolicy {
            rate_per_s: Some(0.001),
            ..TenantPolicy::default()
        },
        policy_store: PolicyStoreSettings {
            url: Some("http://store".to_owned()),
            max_tenants: 1_000,
            ..PolicyStoreSettings::default()
        },
        ..TenantSettings::default()
    });
    let mut questions = tenants.questions();
    let (store, now) = (tenants.store(), Instant::now());
    let known = TenantOverride {
        weight: Some(9),
        ..TenantOverride::default()
    };
    for number in 0..100_000 {
        let tenant = match number {
            0 => "acme".to_owned(),
            number => format!("random-{number}-{}", "x".repeat(200)),
        };
        let waits = tenants.consult(&tenant, now);
        // From here on nobody asks: what waits is bounded, and what finds no room is not waited for.
        if number < 50_000 {
            let question = questions.try_recv().expect("is asked");
            let answer = match number {
                0 => Answer::Policy(known.clone(), None),
                _ => Answer::Absent,
            };
            assert_eq!(tenants.hear(&question, answer, &store, now), None);
        }
        assert_eq!(waits.is_some(), number < 50_000 + MAX_QUESTIONS, "{number}");
        drop(
            tenants
                .admit(&tenant, &Ask::default(), now)
                .expect("it is new")
                .kept(),
        );
    }
    assert_eq!(tenants.tracked(), accounts::MAX_IDLE);
    assert_eq!(tenants.state().told.len(), 1 + 1_000);
    assert_eq!(tenants.policy("acme").weight, 9);
}

#[test]
fn what_the_store_says_lies_on_top_of_the_settings_also_when_these_change_and_goes_with_the_store() {
    let settings = |weight, max_running, url: Option<&str>| {
        let mut settings = TenantSettings {
            default: TenantPolicy {
                weight,
                ..TenantPolicy::default()
            },
            ..TenantSettings::default()
        };
        let own = TenantOverride {
            max_running: Some(max_running),
            burst: Some(max_running.try_into().expect("small")),
            ..TenantOverride::default()
        };
        settings.overrides.insert("acme".to_owned(), own);
        settings.policy_store.url = url.map(str::to_owned);
        settings
    };
    let tenants = Tenants::new(settings(2, 3, Some("http://store")));
    let mut questions = tenants.questions();
    let now = Instant::now();
    let wait = tenants.consult("acme", now);
    assert!(wait.is_some());
    let question = questions.try_recv().expect("is asked");
    let told = TenantOverride {
        burst: Some(7),
        ..TenantOverride::default()
    };
    let answer = Answer::Policy(told, None);
    let other = PolicyStoreSettings {
        url: Some("http://other".to_owned()),
        ..PolicyStoreSettings::default()
    };
    assert_eq!(tenants.hear(&question, answer.clone(), &other, now), None);
    let seen = |tenants: &Tenants| {
        let policy = tenants.policy("acme");
        (policy.weight, policy.max_running, policy.burst)
    };
    assert_eq!(
        seen(&tenants),
        (2, Some(3), Some(3)),
        "another store's word does not count"
    );
    assert_eq!(tenants.hear(&question, answer, &tenants.store(), now), None);
    assert_eq!(seen(&tenants), (2, Some(3), Some(7)));
    tenants.replace(settings(5, 4, Some("http://store")));
    assert_eq!(seen(&tenants), (5, Some(4), Some(7)));
    tenants.replace(settings(5, 4, None));
    assert_eq!(seen(&tenants), (5, Some(4), Some(4)));
    assert!(tenants.consult("acme", now).is_none() && questions.try_recv().is_err());
}
