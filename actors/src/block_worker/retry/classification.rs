//! Which errors a policy tries again: the design column of contract 7.2, as far as the policy does not say otherwise.

use caf_protocol::error_code::{Category, ErrorCode};
use caf_protocol::outcome::Failure;
use serde_json::Value;

use crate::settings::policies::{ErrorClassification, HttpErrorRule, NetworkCategory, StatusClass};

/// Whether another call could help. Only the policy says: no assignment, and no block policy, makes an error retryable.
pub fn is_retryable(rules: &ErrorClassification, failure: &Failure) -> bool {
    let execution = &rules.execution_errors.retryable;
    let network = &rules.network_errors.retryable;
    let system = &rules.system_errors.retryable;
    match failure.code {
        ErrorCode::InvalidInput | ErrorCode::MissingRequiredField | ErrorCode::InvalidFormat => false,
        ErrorCode::ExecutionFailed => execution.execution_failed,
        ErrorCode::ResourceUnavailable => execution.resource_unavailable,
        ErrorCode::PermissionDenied => execution.permission_denied,
        ErrorCode::QuotaExceeded => execution.quota_exceeded,
        ErrorCode::NetworkError => network.network_error,
        ErrorCode::ConnectionTimeout => network.connection_timeout,
        ErrorCode::HttpError => match network.http_error {
            HttpErrorRule::Flag(all) => all,
            HttpErrorRule::Word(_) => {
                status_of(failure).is_some_and(|status| by_status(&rules.network_errors, status))
            }
        },
        ErrorCode::InternalError => system.internal_error,
        ErrorCode::SystemOverload => system.system_overload,
        ErrorCode::CancelledByUser | ErrorCode::CancelledByTimeout | ErrorCode::UnknownError => false,
    }
}

/// A status that is neither 4xx nor 5xx is none that another call would change.
fn by_status(rules: &NetworkCategory, status: u64) -> bool {
    let mapping = &rules.http_status_mapping;
    let of = |class: &StatusClass| {
        let exception = class.exceptions.get(&status.to_string());
        exception.copied().unwrap_or(class.retryable)
    };
    match status {
        400..=499 => of(&mapping.client),
        500..=599 => of(&mapping.server),
        _ => false,
    }
}

/// The HTTP status that a failure stands for.
pub(super) fn status_of(failure: &Failure) -> Option<u64> {
    if failure.code != ErrorCode::HttpError {
        return None;
    }
    failure.details.get("status_code").and_then(Value::as_u64)
}

/// Total calls that the category of a failure says, if it says.
pub(super) fn category_attempts(rules: &ErrorClassification, failure: &Failure) -> Option<u32> {
    match failure.code.category() {
        Category::Validation => rules.validation_errors.max_attempts,
        Category::Execution => rules.execution_errors.max_attempts,
        Category::Network => rules.network_errors.max_attempts,
        Category::System => rules.system_errors.max_attempts,
        Category::Cancellation => rules.cancellation_errors.max_attempts,
    }
}
