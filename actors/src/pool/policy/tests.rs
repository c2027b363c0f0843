use super::*;
use crate::settings::policies::RejectionPolicies;

fn rules(policy: Policy, size: usize) -> QueueRules {
    QueueRules {
        size,
        thresholds: OverloadThresholds::default(),
        policy,
    }
}

fn enabled(change: impl FnOnce(&mut RejectionPolicies)) -> QueuePolicySettings {
    let mut settings = QueuePolicySettings::default();
    change(&mut settings.policies);
    settings
}

const BACK_WITHIN_A_MINUTE: Newcomer = Newcomer {
    oldest_waited: None,
    deferrable_within: Some(Duration::from_secs(60)),
    deliveries: 1,
};

#[test]
fn the_overload_word_changes_at_the_thresholds_of_the_contract() {
    use OverloadStatus::{Critical, Degraded, Healthy, Overloaded};
    for (size, depths) in [
        (100, [0, 49, 50, 79, 80, 99, 100]),
        (10, [0, 4, 5, 7, 8, 9, 10]),
        (
            1_000_000,
            [0, 499_999, 500_000, 799_999, 800_000, 999_999, 1_000_000],
        ),
    ] {
        let words = depths.map(|depth| rules(Policy::RejectNew, size).status(depth));
        assert_eq!(
            words,
            [
                Healthy, Healthy, Degraded, Degraded, Overloaded, Overloaded, Critical
            ],
            "{size}"
        );
    }
}

#[test]
fn thresholds_of_the_operator_count_and_a_lower_critical_one_makes_the_queue_shorter() {
    let own = QueueRules {
        size: 10,
        thresholds: OverloadThresholds {
            degraded: 0.1,
            overloaded: 0.25,
            critical: 0.65,
        },
        policy: Policy::RejectNew,
    };
    use OverloadStatus::{Critical, Degraded, Healthy, Overloaded};
    assert_eq!(
        [0, 1, 2, 3, 6, 7].map(|depth| own.status(depth)),
        [Healthy, Degraded, Degraded, Overloaded, Overloaded, Critical]
    );
    assert_eq!((own.most(), own.is_full(6), own.is_full(7)), (7, false, true));
    for size in 0..200 {
        assert_eq!(rules(Policy::RejectNew, size).most(), size);
    }
}

#[test]
fn a_named_policy_counts_and_otherwise_the_first_that_is_enabled() {
    let named = |rejection_policy| {
        Policy::chosen(&QueuePolicySettings {
            rejection_policy,
            ..QueuePolicySettings::default()
        })
    };
    let drop_oldest = Policy::DropOldest {
        max_age: Duration::from_secs(60),
    };
    let defer = Policy::Defer { max_ms: 30_000 };
    assert_eq!(named(RejectionPolicy::RejectNew), Policy::RejectNew);
    assert_eq!(named(RejectionPolicy::DropOldest), drop_oldest);
    assert_eq!(named(RejectionPolicy::Defer), defer);
    assert!(matches!(named(RejectionPolicy::Degrade), Policy::Degrade { .. }));

    let all = |policies: &mut RejectionPolicies| {
        policies.drop_oldest.enabled = true;
        policies.defer.enabled = true;
        policies.degrade.enabled = true;
    };
    assert_eq!(
        Policy::chosen(&enabled(all)),
        Policy::RejectNew,
        "the default comes first"
    );
    let chosen = |change: &dyn Fn(&mut RejectionPolicies)| {
        Policy::chosen(&enabled(|policies| {
            all(policies);
            policies.reject_new.default = false;
            change(policies);
        }))
    };
    assert_eq!(chosen(&|_| {}), drop_oldest);
    assert_eq!(chosen(&|policies| policies.drop_oldest.enabled = false), defer);
    assert!(matches!(
        chosen(&|policies| {
            policies.drop_oldest.enabled = false;
            policies.defer.enabled = false;
        }),
        Policy::Degrade { .. }
    ));
    assert_eq!(
        Policy::chosen(&enabled(|policies| policies.reject_new.enabled = false)),
        Policy::RejectNew,
        "nothing is enabled"
    );
}

#[test]
fn a_full_queue_rejects_whatever_the_policy() {
    let settings = |rejection_policy| QueuePolicySettings {
        rejection_policy,
        ..QueuePolicySettings::default()
    };
    for policy in [
        RejectionPolicy::RejectNew,
        RejectionPolicy::DropOldest,
        RejectionPolicy::Defer,
        RejectionPolicy::Degrade,
    ] {
        let rules = QueueRules::of(&settings(policy), 10);
        assert_eq!(
            rules.judge(10, BACK_WITHIN_A_MINUTE),
            Judgement::Full,
            "{policy:?}"
        );
        assert_eq!(
            rules.judge(4, BACK_WITHIN_A_MINUTE),
            Judgement::LetIn(Terms::FULL),
            "{policy:?}"
        );
        assert_ne!(
            rules.judge(9, BACK_WITHIN_A_MINUTE),
            Judgement::Full,
            "{policy:?}"
        );
    }
}

#[test]
fn the_oldest_is_dropped_from_overloaded_on_unless_it_has_waited_too_long() {
    let rules = rules(
        Policy::DropOldest {
            max_age: Duration::from_secs(60),
        },
        10,
    );
    let waited = |seconds| Newcomer {
        oldest_waited: Some(Duration::from_secs(seconds)),
        ..Newcomer::default()
    };
    assert_eq!(rules.judge(7, waited(1)), Judgement::LetIn(Terms::FULL));
    assert_eq!(rules.judge(8, waited(1)), Judgement::DropOldest);
    assert_eq!(rules.judge(9, waited(60)), Judgement::DropOldest);
    assert_eq!(rules.judge(9, waited(61)), Judgement::LetIn(Terms::FULL));
    assert_eq!(rules.judge(10, waited(61)), Judgement::Full);
}

#[test]
fn deferrals_grow_with_the_queue_and_end_with_the_deadline() {
    let rules = rules(Policy::Defer { max_ms: 30_000 }, 10);
    let delay = |depth, left_ms| {
        let newcomer = Newcomer {
            deferrable_within: Some(Duration::from_millis(left_ms)),
            ..BACK_WITHIN_A_MINUTE
        };
        rules.judge(depth, newcomer)
    };
    let delays = [5, 6, 7, 8, 9].map(|depth| match delay(depth, 60_000) {
        Judgement::Defer { delay_ms } => delay_ms,
        other => panic!("{other:?}"),
    });
    assert_eq!(delays, [100, 6_000, 12_000, 18_000, 24_000]);
    assert_eq!(delay(9, 700), Judgement::Defer { delay_ms: 700 });
    assert_eq!(delay(5, 100), Judgement::Defer { delay_ms: 100 });
    assert_eq!(delay(5, 99), Judgement::CannotDefer);
    assert_eq!(delay(4, 99), Judgement::LetIn(Terms::FULL));
    let nobody_delivers_again = Newcomer::default();
    assert_eq!(
        rules.judge(9, nobody_delivers_again),
        Judgement::LetIn(Terms::FULL)
    );
}

#[test]
fn who_is_deferred_again_stays_away_twice_as_long_up_to_the_longest_and_half_of_the_time_left() {
    let rules = rules(Policy::Defer { max_ms: 3_000 }, 10);
    let delays = |depth, left_ms, deliveries: &[u64]| -> Vec<u64> {
        let judge = |&deliveries| {
            let newcomer = Newcomer {
                oldest_waited: None,
                deferrable_within: Some(Duration::from_millis(left_ms)),
                deliveries,
            };
            match rules.judge(depth, newcomer) {
                Judgement::Defer { delay_ms } => delay_ms,
                other => panic!("{other:?}"),
            }
        };
        deliveries.iter().map(judge).collect()
    };
    assert_eq!(
        delays(5, 60_000, &[0, 1, 2, 3, 4, 5, 6, 7, 70, u64::MAX]),
        [100, 100, 200, 400, 800, 1_600, 3_000, 3_000, 3_000, 3_000]
    );
    assert_eq!(
        delays(7, 60_000, &[1, 4, 5, 6]),
        [1_200, 1_200, 1_600, 3_000],
        "the longer of both"
    );
    let half = "no more than half of what is left, so that it can still run";
    assert_eq!(delays(5, 700, &[2, 3, 4, 5]), [200, 350, 350, 350], "{half}");
    assert_eq!(delays(7, 700, &[1]), [700], "the contract's number may take all");
}

#[test]
fn degraded_jobs_lose_what_their_level_says() {
    let settings = QueuePolicySettings {
        rejection_policy: RejectionPolicy::Degrade,
        ..QueuePolicySettings::default()
    };
    let rules = QueueRules::of(&settings, 10);
    let terms = |depth| match rules.judge(depth, BACK_WITHIN_A_MINUTE) {
        Judgement::LetIn(terms) => (terms.degraded, terms.skip_retries, terms.time_factor),
        other => panic!("{other:?}"),
    };
    assert_eq!(terms(4), (None, false, 1.0));
    assert_eq!(terms(5), (Some(Level::Light), false, 1.0));
    assert_eq!(terms(8), (Some(Level::Medium), true, 0.8));
    assert_eq!(terms(9), (Some(Level::Medium), true, 0.8));
}
