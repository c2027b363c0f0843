use caf_protocol::limit::{Operation, OperationLimit};

use super::*;

const SLOW: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(999);

#[test]
fn what_a_jobs_own_limits_cut_off_counts_only_when_the_endpoint_had_its_time() {
    assert_eq!(CallEnd::CutOff.verdict(SOON, SLOW), Verdict::Neutral);
    assert_eq!(CallEnd::CutOff.verdict(SLOW, SLOW), Verdict::Failure);
    let by_the_block = Failure::deadline();
    let end = CallEnd::Failed(&by_the_block);
    assert_eq!(
        (end.verdict(SOON, SLOW), end.verdict(SLOW, SLOW)),
        (Verdict::Neutral, Verdict::Failure)
    );
}

#[test]
fn what_a_call_says_of_its_endpoint_is_what_its_failure_says() {
    let of = |failure: Failure| CallEnd::Failed(&failure).verdict(SLOW, SLOW);
    let limit = OperationLimit {
        operation: Operation::FsWrite,
        allowed: SOON,
    };
    for (failure, verdict) in [
        (Failure::new(ErrorCode::NetworkError, "x"), Verdict::Failure),
        (limit.ends_the_job(SOON), Verdict::Failure),
        (Failure::new(ErrorCode::ExecutionFailed, "x"), Verdict::Answered),
        (Failure::new(ErrorCode::CancelledByUser, "x"), Verdict::Neutral),
        (Failure::new(ErrorCode::InvalidInput, "x"), Verdict::Neutral),
        (Failure::new(ErrorCode::SystemOverload, "x"), Verdict::Neutral),
    ] {
        assert_eq!(of(failure.clone()), verdict, "{failure:?}");
    }
    assert_eq!(CallEnd::Success.verdict(SLOW, SLOW), Verdict::Success);
}

#[test]
fn a_call_that_is_not_made_blames_the_provider_and_is_not_tried_again() {
    let refusal = Refusal {
        phase: machine::Phase::Open,
        retry_after: Duration::from_millis(1_500),
    };
    for (kind, code) in [
        (EndpointKind::Http, ErrorCode::HttpError),
        (EndpointKind::Sql, ErrorCode::ResourceUnavailable),
        (EndpointKind::Fs, ErrorCode::ResourceUnavailable),
    ] {
        let failure = left_alone(kind, refusal);
        assert_eq!((failure.code, &*failure.message), (code, "circuit_breaker_open"));
        assert_eq!(
            (failure.error_type(), failure.is_retryable()),
            ("provider_unavailable", false)
        );
        assert_eq!(failure.details["circuit_breaker"], "open");
        assert_eq!(failure.details["retry_after_ms"], 1_501);
    }
}
