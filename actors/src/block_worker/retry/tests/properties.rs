//! What holds for any policy, any assignment and any failures.

use super::*;

fn jitter() -> impl Strategy<Value = Jitter> {
    prop_oneof![Just(Jitter::None), Just(Jitter::Full), Just(Jitter::Equal)]
}

fn layer() -> impl Strategy<Value = ErrorOverride> {
    (
        proptest::option::of(0..=100_u32),
        proptest::option::of(0..=3_600_000_u64),
        proptest::option::of(0..=3_600_000_u64),
        proptest::option::of(jitter()),
        proptest::option::of(1.0..=10.0),
    )
        .prop_map(
            |(max_attempts, base_delay_ms, max_delay_ms, jitter_type, exponential_base)| ErrorOverride {
                max_attempts,
                base_delay_ms,
                max_delay_ms,
                jitter_type,
                exponential_base,
            },
        )
}

/// Any policy that the settings let pass, as far as plans look at it.
fn any_policy() -> impl Strategy<Value = RetryPolicySettings> {
    let bools = proptest::collection::vec(any::<bool>(), 8);
    let status = prop_oneof![
        Just("429"),
        Just("503"),
        Just("NETWORK_ERROR"),
        Just("HTTP_ERROR")
    ];
    let overrides = proptest::collection::btree_map(status.prop_map(str::to_owned), layer(), 0..3);
    (bools, layer(), layer(), overrides, 1..=3_600_000_u64).prop_map(
        |(bools, default, own, error_overrides, budget)| {
            let mut policy = RetryPolicySettings::default();
            let backoff = &mut policy.default_policy;
            backoff.max_attempts = default.max_attempts.unwrap_or(3);
            backoff.base_delay_ms = default.base_delay_ms.unwrap_or(100);
            backoff.max_delay_ms = default.max_delay_ms.unwrap_or(30_000);
            backoff.jitter_type = default.jitter_type.unwrap_or(Jitter::Full);
            backoff.exponential_base = default.exponential_base.unwrap_or(2.0);
            backoff.retry_budget_ms = budget;
            let rules = &mut policy.error_classification;
            rules.execution_errors.retryable.execution_failed = bools[0];
            rules.execution_errors.retryable.permission_denied = bools[1];
            rules.network_errors.retryable.network_error = bools[2];
            rules.system_errors.retryable.internal_error = bools[3];
            rules.network_errors.http_status_mapping.client.retryable = bools[4];
            rules.network_errors.http_status_mapping.server.retryable = bools[5];
            if bools[6] {
                rules.network_errors.retryable.http_error = HttpErrorRule::Flag(bools[7]);
            }
            let block = BlockPolicy {
                max_attempts: own.max_attempts,
                base_delay_ms: own.base_delay_ms,
                max_delay_ms: own.max_delay_ms,
                jitter_type: own.jitter_type,
                exponential_base: own.exponential_base,
                retry_budget_ms: bools[4].then_some(budget / 2 + 1),
                error_overrides,
            };
            policy.block_policies = [("http".to_owned(), block)].into();
            policy
        },
    )
}

fn any_asked() -> impl Strategy<Value = Asked> {
    (
        proptest::option::of(any::<u32>()),
        proptest::option::of(any::<u64>()),
    )
        .prop_map(|(max_attempts, backoff_ms)| Asked {
            max_attempts,
            backoff_ms,
        })
}

fn any_failure() -> impl Strategy<Value = Failure> {
    let code = (0..ErrorCode::ALL.len()).prop_map(|index| ErrorCode::ALL[index]);
    let facts = (
        proptest::option::of(300..=610_u64),
        proptest::option::of(any::<u64>()),
    );
    (code, facts, any::<bool>()).prop_map(|(code, (status, retry_after), total_limit)| {
        let mut failure = Failure::new(code, "x");
        failure.total_limit = total_limit;
        if let Some(status) = status {
            failure = failure.with("status_code", status.into());
        }
        match retry_after {
            Some(ms) => failure.with(backoff::RETRY_AFTER_MS, ms.into()),
            None => failure,
        }
    })
}

proptest! {
    #[test]
    fn a_wait_stays_between_the_bounds_of_its_jitter(
        policy in any_policy(), asked in any_asked(), failure in any_failure(), retry in any::<u32>(),
        chance in -1.0..2.0_f64,
    ) {
        let numbers = Numbers::resolve(&policy, "http", asked, &failure);
        let longest = Duration::from_millis(numbers.max_delay_ms);
        let full = delay(&Numbers { jitter: Jitter::None, ..numbers }, retry, chance);
        let wait = delay(&numbers, retry, chance);
        prop_assert!(full <= longest);
        prop_assert!(wait <= full);
        prop_assert!(numbers.jitter != Jitter::Equal || wait >= full / 2);
        let next = delay(&Numbers { jitter: Jitter::None, ..numbers }, retry.saturating_add(1), chance);
        prop_assert!(next >= full, "waits never shrink");
    }

    #[test]
    fn calls_and_waits_stay_within_their_bounds_whatever_happens(
        policy in any_policy(), asked in any_asked(),
        failures in proptest::collection::vec((any_failure(), 0..100_000_u64, 0.0..=1.0_f64), 1..200),
    ) {
        let plan = under(&policy).plan("http.request", asked);
        let budget = Duration::from_millis(plan.budget_ms().expect("a policy has one"));
        let (mut spent, mut calls) = (Duration::ZERO, 0);
        for (failure, took_us, chance) in failures {
            spent += Duration::from_micros(took_us);
            let next = plan.after(&failure, calls, spent, chance);
            calls += 1;
            prop_assert!(calls <= plan.max_attempts(&failure) || !matches!(next, NextStep::RetryAfter(_)));
            let NextStep::RetryAfter(wait) = next else { break };
            prop_assert!(plan.is_retryable(&failure));
            spent += wait;
            prop_assert!(spent < budget, "{spent:?} of {budget:?}");
        }
    }

    #[test]
    fn no_assignment_changes_what_is_retried(
        policy in any_policy(), asked in any_asked(), failure in any_failure(), attempt in any::<u32>(),
    ) {
        let said = under(&policy).plan("http.request", asked);
        let unsaid = under(&policy).plan("http.request", Asked::default());
        prop_assert_eq!(said.is_retryable(&failure), unsaid.is_retryable(&failure));
        let next = said.after(&failure, attempt, Duration::ZERO, 0.5);
        prop_assert_eq!(next == NextStep::GiveUp, !unsaid.is_retryable(&failure));
    }
}
