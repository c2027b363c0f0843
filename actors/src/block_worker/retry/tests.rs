use caf_protocol::error_code::ErrorCode;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::settings::policies::{BlockPolicy, ErrorOverride, HttpErrorRule, Jitter};

mod properties;

const ENOUGH: Duration = Duration::ZERO;

fn failed(code: ErrorCode) -> Failure {
    Failure::new(code, "x")
}

fn answered(status: u64) -> Failure {
    failed(ErrorCode::HttpError).with("status_code", status.into())
}

fn asked(max_attempts: u32, backoff_ms: u64) -> Asked {
    Asked {
        max_attempts: Some(max_attempts),
        backoff_ms: Some(backoff_ms),
    }
}

/// The defaults, which are those of contract 7.2, without jitter.
fn policy() -> RetryPolicySettings {
    let mut policy = RetryPolicySettings::default();
    policy.default_policy.jitter_type = Jitter::None;
    // As the shipped file says; without a file the default policy's number counts.
    let categories = &mut policy.error_classification;
    categories.validation_errors.max_attempts = Some(0);
    categories.network_errors.max_attempts = Some(5);
    policy
}

fn under(policy: &RetryPolicySettings) -> RetryRules {
    RetryRules {
        default_attempts: 4,
        policy: Some(Arc::new(policy.clone())),
        total: None,
    }
}

fn plan(policy: &RetryPolicySettings, job_type: &str) -> RetryPlan {
    under(policy).plan(job_type, Asked::default())
}

/// Every wait in milliseconds, when each call ends at once with this failure.
fn waits_ms(plan: &RetryPlan, failure: &Failure) -> Vec<u128> {
    let mut spent = Duration::ZERO;
    (0..)
        .map_while(|attempt| match plan.after(failure, attempt, spent, 1.0) {
            NextStep::RetryAfter(delay) => {
                spent += delay;
                Some(delay.as_millis())
            }
            _ => None,
        })
        .collect()
}

mod with_the_flag_off {
    use super::*;

    /// POC-004: 100, 200, 300 ms, whatever the error.
    #[test]
    fn waits_grow_by_100_ms_for_every_error_of_a_running_block() {
        for code in [
            ErrorCode::NetworkError,
            ErrorCode::PermissionDenied,
            ErrorCode::InternalError,
            ErrorCode::UnknownError,
        ] {
            assert_eq!(
                waits_ms(&RetryPlan::cp1(4), &failed(code)),
                [100, 200, 300],
                "{code}"
            );
        }
        assert_eq!(waits_ms(&RetryPlan::cp1(2), &failed(ErrorCode::HttpError)), [100]);
        assert!(waits_ms(&RetryPlan::cp1(1), &failed(ErrorCode::HttpError)).is_empty());
        assert!(waits_ms(&RetryPlan::cp1(0), &failed(ErrorCode::HttpError)).is_empty());
    }

    #[test]
    fn the_assignment_has_a_say_in_calls_and_none_in_waits() {
        let rules = RetryRules {
            policy: None,
            ..under(&policy())
        };
        let failure = failed(ErrorCode::NetworkError).with("retry_after_ms", json!(5_000));
        assert_eq!(
            waits_ms(&rules.plan("http.request", asked(3, 7)), &failure),
            [100, 200]
        );
        assert_eq!(
            waits_ms(&rules.plan("http.request", Asked::default()), &failure),
            [100, 200, 300]
        );
        assert_eq!(rules.plan("x", Asked::default()).overall_limit(), None);
    }

    #[test]
    fn inputs_that_cannot_be_had_are_asked_for_again_only_if_that_can_help() {
        let plan = RetryPlan::cp1(2);
        let next = |code, attempt| plan.before_the_first_call(&failed(code), attempt, ENOUGH, 0.0);
        for code in [ErrorCode::NetworkError, ErrorCode::ResourceUnavailable] {
            let wait = NextStep::RetryAfter(Duration::from_millis(100));
            assert_eq!(next(code, 0), wait, "{code}");
            assert_eq!(next(code, 1), NextStep::Exhausted, "{code}");
        }
        for code in [
            ErrorCode::InvalidInput,
            ErrorCode::MissingRequiredField,
            ErrorCode::PermissionDenied,
            ErrorCode::InternalError,
        ] {
            assert_eq!(next(code, 0), NextStep::GiveUp, "{code}");
        }
    }

    #[test]
    fn cancellations_and_total_limits_are_never_retried() {
        assert!(waits_ms(&RetryPlan::cp1(4), &failed(ErrorCode::CancelledByUser)).is_empty());
        assert_eq!(
            RetryPlan::cp1(4).after(&Failure::timeout("statement limit"), 0, ENOUGH, 0.0),
            NextStep::GiveUp
        );
    }
}

mod classification {
    use super::*;

    /// POC-002, 003, 006, 007, 008, and the design column of contract 7.2 as a whole.
    #[test]
    fn errors_are_retried_as_the_design_column_says() {
        let plan = plan(&policy(), "http.request");
        for code in ErrorCode::ALL {
            let expected = matches!(
                code,
                ErrorCode::ResourceUnavailable
                    | ErrorCode::NetworkError
                    | ErrorCode::ConnectionTimeout
                    | ErrorCode::SystemOverload
            );
            assert_eq!(plan.is_retryable(&failed(code)), expected, "{code}");
        }
    }

    #[test]
    fn http_errors_are_retried_by_their_status() {
        let plan = plan(&policy(), "http.request");
        for status in [408, 429, 500, 502, 503, 504, 599] {
            assert!(plan.is_retryable(&answered(status)), "{status}");
        }
        for status in [302, 400, 401, 403, 404, 409, 410, 422, 600] {
            assert!(!plan.is_retryable(&answered(status)), "{status}");
        }
    }

    #[test]
    fn a_policy_can_change_every_configurable_error_and_every_status() {
        let mut policy = policy();
        let rules = &mut policy.error_classification;
        rules.execution_errors.retryable.quota_exceeded = true;
        rules.execution_errors.retryable.resource_unavailable = false;
        rules.system_errors.retryable.internal_error = true;
        rules.network_errors.retryable.connection_timeout = false;
        let mapping = &mut rules.network_errors.http_status_mapping;
        mapping.client.exceptions = [("409".to_owned(), true)].into();
        mapping.server.exceptions = [("501".to_owned(), false)].into();
        let plan = plan(&policy, "http.request");
        for yes in [
            failed(ErrorCode::QuotaExceeded),
            failed(ErrorCode::InternalError),
            answered(409),
            answered(500),
        ] {
            assert!(plan.is_retryable(&yes), "{yes:?}");
        }
        for no in [
            failed(ErrorCode::ResourceUnavailable),
            failed(ErrorCode::ConnectionTimeout),
            answered(429),
            answered(501),
        ] {
            assert!(!plan.is_retryable(&no), "{no:?}");
        }
    }

    #[test]
    fn http_errors_can_all_be_retried_or_none() {
        for all in [true, false] {
            let mut policy = policy();
            policy.error_classification.network_errors.retryable.http_error = HttpErrorRule::Flag(all);
            let plan = plan(&policy, "http.request");
            for failure in [answered(400), answered(503), failed(ErrorCode::HttpError)] {
                assert_eq!(plan.is_retryable(&failure), all, "{failure:?}");
            }
        }
    }

    #[test]
    fn a_status_counts_only_for_an_http_error() {
        let plan = plan(&policy(), "http.request");
        let denied = failed(ErrorCode::PermissionDenied).with("status_code", json!(503));
        assert!(!plan.is_retryable(&denied));
    }

    #[test]
    fn a_total_limit_ends_the_job_whatever_its_code() {
        let mut failure = failed(ErrorCode::NetworkError);
        failure.total_limit = true;
        assert!(!plan(&policy(), "x").is_retryable(&failure));
    }
}

mod numbers {
    use super::*;

    /// POC-001.
    #[test]
    fn waits_double_from_the_base_on() {
        let plan = under(&policy()).plan("probe", asked(4, 100));
        assert_eq!(waits_ms(&plan, &failed(ErrorCode::NetworkError)), [100, 200, 400]);
    }

    #[test]
    fn waits_end_at_the_longest_and_never_overflow() {
        let mut policy = policy();
        policy.default_policy.max_delay_ms = 1_000;
        policy.default_policy.exponential_base = 10.0;
        let plan = under(&policy).plan("probe", asked(100, 300));
        let wait = |attempt| match plan.after(&failed(ErrorCode::NetworkError), attempt, ENOUGH, 1.0) {
            NextStep::RetryAfter(delay) => delay.as_millis(),
            other => panic!("{other:?}"),
        };
        assert_eq!([wait(0), wait(1), wait(98)], [300, 1_000, 1_000]);
        let numbers = Numbers::resolve(&policy, "x", asked(1, 1), &failed(ErrorCode::NetworkError));
        assert_eq!(delay(&numbers, u32::MAX, 1.0), Duration::from_secs(1));
        let none = Numbers {
            base_delay_ms: 0,
            ..numbers
        };
        assert_eq!(delay(&none, u32::MAX, 1.0), Duration::ZERO);
    }

    #[test]
    fn jitter_spreads_a_wait_from_zero_or_from_its_half() {
        let failure = failed(ErrorCode::NetworkError);
        for (jitter, expected) in [
            (Jitter::None, [400, 400, 400]),
            (Jitter::Full, [0, 200, 400]),
            (Jitter::Equal, [200, 300, 400]),
        ] {
            let mut policy = policy();
            policy.default_policy.jitter_type = jitter;
            let numbers = Numbers::resolve(&policy, "x", asked(9, 100), &failure);
            let found = [0.0, 0.5, 1.0].map(|chance| delay(&numbers, 2, chance).as_millis());
            assert_eq!(found, expected, "{jitter:?}");
        }
    }

    #[test]
    fn without_a_word_of_request_or_block_the_category_says_how_often() {
        let plan = plan(&policy(), "probe");
        for (failure, calls) in [
            (failed(ErrorCode::NetworkError), 5),
            (failed(ErrorCode::ResourceUnavailable), 3),
            (failed(ErrorCode::SystemOverload), 3),
            (failed(ErrorCode::InvalidInput), 1),
        ] {
            assert_eq!(plan.max_attempts(&failure), calls, "{failure:?}");
        }
        let mut policy = policy();
        policy.error_classification.network_errors.max_attempts = None;
        policy.default_policy.max_attempts = 7;
        let plan = super::plan(&policy, "probe");
        assert_eq!(plan.max_attempts(&failed(ErrorCode::NetworkError)), 7);
    }

    fn with_block(own: BlockPolicy) -> RetryPolicySettings {
        let mut policy = policy();
        policy.block_policies = [("http".to_owned(), own)].into();
        policy
    }

    #[test]
    fn a_block_comes_before_category_and_default_and_a_single_error_before_its_block() {
        let policy = with_block(BlockPolicy {
            max_attempts: Some(4),
            base_delay_ms: Some(200),
            error_overrides: [
                (
                    "429".to_owned(),
                    ErrorOverride {
                        max_attempts: Some(3),
                        base_delay_ms: Some(1_000),
                        ..ErrorOverride::default()
                    },
                ),
                (
                    "HTTP_ERROR".to_owned(),
                    ErrorOverride {
                        base_delay_ms: Some(50),
                        exponential_base: Some(1.0),
                        ..ErrorOverride::default()
                    },
                ),
            ]
            .into(),
            ..BlockPolicy::default()
        });
        let http = plan(&policy, "http.request");
        assert_eq!(waits_ms(&http, &failed(ErrorCode::NetworkError)), [200, 400, 800]);
        assert_eq!(
            waits_ms(&http, &answered(429)),
            [1_000, 1_000],
            "its growth is the code's"
        );
        assert_eq!(
            waits_ms(&http, &answered(503)),
            [50, 50, 50],
            "its calls are the block's"
        );
        let broken_off = failed(ErrorCode::NetworkError).with("status_code", json!(429));
        assert_eq!(waits_ms(&http, &broken_off), [200, 400, 800], "no HTTP error");
        let other = plan(&policy, "sql.query");
        assert_eq!(
            waits_ms(&other, &failed(ErrorCode::NetworkError)),
            [100, 200, 400, 800]
        );
        // The family ends at the first dot: a longer name is another one.
        assert_eq!(plan(&policy, "https.request").max_attempts(&answered(503)), 5);
    }

    #[test]
    fn the_request_comes_before_every_policy_but_its_longest_wait_stays() {
        let policy = with_block(BlockPolicy {
            max_attempts: Some(5),
            max_delay_ms: Some(10_000),
            error_overrides: [(
                "503".to_owned(),
                ErrorOverride {
                    max_attempts: Some(9),
                    base_delay_ms: Some(1),
                    ..ErrorOverride::default()
                },
            )]
            .into(),
            ..BlockPolicy::default()
        });
        let plan = under(&policy).plan("http.request", asked(3, 8_000));
        assert_eq!(waits_ms(&plan, &answered(503)), [8_000, 10_000]);
    }

    #[test]
    fn a_count_of_zero_is_one_call() {
        let plan = under(&policy()).plan("probe", asked(0, 1));
        assert_eq!(
            plan.after(&failed(ErrorCode::NetworkError), 0, ENOUGH, 0.0),
            NextStep::Exhausted
        );
    }

    #[test]
    fn a_plan_without_retries_makes_one_call_with_or_without_a_policy() {
        for plan in [RetryPlan::cp1(4), plan(&policy(), "probe")] {
            assert!(waits_ms(&plan.without_retries(), &failed(ErrorCode::NetworkError)).is_empty());
        }
    }
}

#[test]
fn a_block_that_minds_advice_is_not_asked_again_in_vain_nor_too_early_without_a_policy() {
    let plan = RetryPlan::cp1(4);
    let asking = answered(429).with("retry_after_ms", json!(7_000));
    assert_eq!(waits_ms(&plan, &asking), [100, 200, 300], "CP1 as it is");
    assert_eq!(waits_ms(&plan, &asking.minding_advice()), [7_000; 3]);
    for code in [
        ErrorCode::InvalidInput,
        ErrorCode::PermissionDenied,
        ErrorCode::QuotaExceeded,
    ] {
        assert_eq!(waits_ms(&plan, &failed(code)), [100, 200, 300], "CP1 as it is");
        assert!(
            waits_ms(&plan, &failed(code).minding_advice()).is_empty(),
            "{code}"
        );
    }
    let network = failed(ErrorCode::NetworkError).minding_advice();
    assert_eq!(waits_ms(&plan, &network), [100, 200, 300]);
}

mod retry_after {
    use super::*;

    fn asking(ms: serde_json::Value) -> Failure {
        answered(429).with(backoff::RETRY_AFTER_MS, ms)
    }

    #[test]
    fn the_other_side_is_left_alone_for_as_long_as_it_asks_even_beyond_the_longest_wait() {
        let mut policy = policy();
        policy.default_policy.max_delay_ms = 200;
        let plan = under(&policy).plan("http.request", asked(3, 100));
        assert_eq!(waits_ms(&plan, &asking(json!(3_000))), [3_000, 3_000]);
        assert_eq!(
            waits_ms(&plan, &asking(json!(150))),
            [150, 200],
            "the longer of both"
        );
        for junk in [json!(-5), json!(null), json!({}), json!("soon")] {
            assert_eq!(waits_ms(&plan, &asking(junk.clone())), [100, 200], "{junk}");
        }
    }

    #[test]
    fn what_it_asks_for_does_not_outlast_the_budget() {
        let plan = plan(&policy(), "http.request");
        let limit = Limit::RetryBudget { limit_ms: 30_000 };
        for ms in [30_000, u64::MAX] {
            assert_eq!(
                plan.after(&asking(json!(ms)), 0, ENOUGH, 0.0),
                NextStep::OutOfTime {
                    limit,
                    wait: Duration::from_millis(ms),
                }
            );
        }
    }
}

mod limits {
    use super::*;
    use tokio::time::Instant;

    fn limited(total_timeout_ms: u64, enforce_across_retries: bool) -> RetryRules {
        RetryRules {
            total: Some(TotalLimit {
                total_timeout_ms,
                enforce_across_retries,
            }),
            ..under(&policy())
        }
    }

    #[test]
    fn a_job_ends_at_once_when_its_next_wait_would_use_up_the_budget() {
        let mut policy = policy();
        policy.default_policy.retry_budget_ms = 1_000;
        let plan = plan(&policy, "probe");
        let next = |spent_ms| {
            plan.after(
                &failed(ErrorCode::NetworkError),
                1,
                Duration::from_millis(spent_ms),
                1.0,
            )
        };
        assert_eq!(next(799), NextStep::RetryAfter(Duration::from_millis(200)));
        let limit = Limit::RetryBudget { limit_ms: 1_000 };
        let wait = Duration::from_millis(200);
        let ended = NextStep::OutOfTime { limit, wait };
        assert_eq!(next(800), ended, "nothing would be left");
        assert_eq!(next(5_000), ended);
    }

    #[test]
    fn the_budget_of_a_block_comes_before_the_default_one() {
        let mut policy = policy();
        let own = BlockPolicy {
            retry_budget_ms: Some(700),
            ..BlockPolicy::default()
        };
        policy.block_policies = [("http".to_owned(), own)].into();
        assert_eq!(plan(&policy, "http.request").budget_ms(), Some(700));
        assert_eq!(plan(&policy, "fs.get").budget_ms(), Some(30_000));
    }

    #[test]
    fn the_first_of_budget_and_total_limit_counts() {
        for (total_ms, expected) in [
            (900, Limit::TotalTime { limit_ms: 900 }),
            (40_000, Limit::RetryBudget { limit_ms: 30_000 }),
        ] {
            let plan = limited(total_ms, true).plan("probe", Asked::default());
            assert_eq!(plan.overall_limit().map(|(limit, _)| limit), Some(expected));
            assert_eq!(plan.limit_of_each_call(), None);
        }
    }

    #[test]
    fn the_total_limit_holds_under_cp1_too() {
        let rules = RetryRules {
            policy: None,
            ..limited(250, true)
        };
        let plan = rules.plan("probe", Asked::default());
        assert_eq!(waits_ms(&plan, &failed(ErrorCode::PermissionDenied)), [100]);
        assert_eq!(
            plan.after(
                &failed(ErrorCode::PermissionDenied),
                1,
                Duration::from_millis(100),
                0.0
            ),
            NextStep::OutOfTime {
                limit: Limit::TotalTime { limit_ms: 250 },
                wait: Duration::from_millis(200),
            }
        );
    }

    #[test]
    fn a_total_limit_of_each_call_begins_anew_with_each() {
        let plan = limited(500, false).plan("probe", Asked::default());
        assert_eq!(
            plan.overall_limit().map(|(limit, _)| limit),
            Some(Limit::RetryBudget { limit_ms: 30_000 })
        );
        let mut course = Course::new(plan);
        let start = Instant::now();
        let deadline = start + Duration::from_secs(60);
        assert_eq!(course.begin(start), Ok(()));
        let later = start + Duration::from_secs(10);
        let end = course.end_of_call(deadline, later);
        assert_eq!(end.at, later + Duration::from_millis(500));
        assert_eq!(end.limit, Limit::TotalTimeOfOneCall { limit_ms: 500 });
        assert!(!course.plan().is_retryable(&end.limit.failure()));
        assert_eq!(course.end(deadline).at, start + Duration::from_secs(30));
    }

    #[test]
    fn no_call_begins_after_the_budget_is_over_even_if_nobody_noticed() {
        let mut course = Course::new(plan(&policy(), "probe"));
        let start = Instant::now();
        assert_eq!(course.begin(start), Ok(()));
        assert_eq!(course.begin(start + Duration::from_millis(29_999)), Ok(()));
        let limit = Limit::RetryBudget { limit_ms: 30_000 };
        assert_eq!(course.begin(start + Duration::from_secs(30)), Err(limit));
    }

    #[test]
    fn the_deadline_comes_before_a_later_limit_and_is_told_as_in_cp1() {
        let mut course = Course::new(limited(900, true).plan("probe", Asked::default()));
        let start = Instant::now();
        assert_eq!(course.begin(start), Ok(()));
        let end = course.end(start + Duration::from_millis(900));
        assert_eq!(end.limit, Limit::Deadline);
        assert_eq!(
            end.limit.failure(),
            Failure::timeout("the deadline of the assignment")
        );
    }

    /// Contract 3.4: what ran out here is no fault of the provider.
    #[test]
    fn what_a_limit_tells_names_it_and_blames_nobody() {
        for (limit, name) in [
            (Limit::RetryBudget { limit_ms: 30_000 }, "retry_budget"),
            (Limit::TotalTime { limit_ms: 30_000 }, "total_timeout"),
        ] {
            let failure = limit.failure();
            assert_eq!(
                (failure.code, failure.total_limit),
                (ErrorCode::CancelledByTimeout, true)
            );
            assert_eq!(failure.details["limit"], name);
            assert_eq!(failure.details["limit_ms"], 30_000);
            assert!(!caf_protocol::outcome::trips_breaker(&failure.message), "{name}");
        }
    }
}
