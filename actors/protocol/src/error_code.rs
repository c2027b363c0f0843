//! Why a job failed, as the contract numbers it (contract 6.1), and what to do about it.
//!
//! Neighbours: [`crate::outcome::Failure`] carries a code; [`crate::result`] writes it. Never decides a retry: the
//! retry plan does, from this advice.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Error codes of a job. Success has none; its string form is [`NONE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// An input has a value that the rule of its field does not allow.
    InvalidInput,
    /// A field that the job cannot do without is absent.
    MissingRequiredField,
    /// A field has the wrong type or cannot be parsed.
    InvalidFormat,
    /// The block ran and the work itself failed.
    ExecutionFailed,
    /// Something the job needs is absent or exhausted (file, disk, database, size limit).
    ResourceUnavailable,
    /// The job is not allowed to do this.
    PermissionDenied,
    /// The tenant has used up what it may use.
    QuotaExceeded,
    /// The other side could not be reached or broke off.
    NetworkError,
    /// A limit on one attempt ran out while talking to the other side.
    ConnectionTimeout,
    /// The other side answered with a failure status.
    HttpError,
    /// A fault of the worker itself.
    InternalError,
    /// The worker has no room for this job now.
    SystemOverload,
    /// Somebody cancelled the job.
    CancelledByUser,
    /// The deadline or a total limit ran out.
    CancelledByTimeout,
    /// A code that this version does not know.
    UnknownError,
}

/// What kind of fault a code stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Category {
    /// The assignment is wrong: mend the caller.
    Validation,
    /// The work failed where it was done.
    Execution,
    /// The other side failed.
    Network,
    /// The worker failed or is full.
    System,
    /// Somebody or a limit ended the job.
    Cancellation,
}

/// Whether running the same assignment again can help (contract 7.2, design column).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RetryAdvice {
    /// The same assignment fails the same way.
    Never,
    /// It may succeed later.
    Retry,
    /// An operator decides by policy; without a policy, do not retry.
    ByPolicy,
    /// The status of the other side's answer decides: 408, 429 and 5xx may succeed later.
    ByStatus,
}

/// String form of "no error", for places that always name a code.
pub const NONE: &str = "NONE";

impl ErrorCode {
    /// Every code, in the order of its number.
    pub const ALL: [Self; 15] = [
        Self::InvalidInput,
        Self::MissingRequiredField,
        Self::InvalidFormat,
        Self::ExecutionFailed,
        Self::ResourceUnavailable,
        Self::PermissionDenied,
        Self::QuotaExceeded,
        Self::NetworkError,
        Self::ConnectionTimeout,
        Self::HttpError,
        Self::InternalError,
        Self::SystemOverload,
        Self::CancelledByUser,
        Self::CancelledByTimeout,
        Self::UnknownError,
    ];

    /// Number, string, category, advice and sentence of a code, side by side.
    const fn facts(self) -> (u16, &'static str, Category, RetryAdvice, &'static str) {
        use Category as C;
        use RetryAdvice as R;
        match self {
            Self::InvalidInput => (
                1001,
                "INVALID_INPUT",
                C::Validation,
                R::Never,
                "an input breaks the rule of its field",
            ),
            Self::MissingRequiredField => (
                1002,
                "MISSING_REQUIRED_FIELD",
                C::Validation,
                R::Never,
                "a required field is missing",
            ),
            Self::InvalidFormat => (
                1003,
                "INVALID_FORMAT",
                C::Validation,
                R::Never,
                "a field has the wrong type or cannot be parsed",
            ),
            Self::ExecutionFailed => (
                2001,
                "EXECUTION_FAILED",
                C::Execution,
                R::ByPolicy,
                "the work itself failed",
            ),
            Self::ResourceUnavailable => (
                2002,
                "RESOURCE_UNAVAILABLE",
                C::Execution,
                R::Retry,
                "something the job needs is absent or exhausted",
            ),
            Self::PermissionDenied => (
                2003,
                "PERMISSION_DENIED",
                C::Execution,
                R::Never,
                "the job is not allowed to do this",
            ),
            Self::QuotaExceeded => (
                2004,
                "QUOTA_EXCEEDED",
                C::Execution,
                R::ByPolicy,
                "the tenant has used up its quota",
            ),
            Self::NetworkError => (
                3001,
                "NETWORK_ERROR",
                C::Network,
                R::Retry,
                "the other side could not be reached or broke off",
            ),
            Self::ConnectionTimeout => (
                3002,
                "CONNECTION_TIMEOUT",
                C::Network,
                R::Retry,
                "the other side was too slow for one attempt",
            ),
            Self::HttpError => (
                3003,
                "HTTP_ERROR",
                C::Network,
                R::ByStatus,
                "the other side answered with a failure status",
            ),
            Self::InternalError => (
                4001,
                "INTERNAL_ERROR",
                C::System,
                R::ByPolicy,
                "the worker itself failed",
            ),
            Self::SystemOverload => (
                4002,
                "SYSTEM_OVERLOAD",
                C::System,
                R::Retry,
                "the worker has no room for this job",
            ),
            Self::CancelledByUser => (
                5001,
                "CANCELLED_BY_USER",
                C::Cancellation,
                R::Never,
                "the job was cancelled on request",
            ),
            Self::CancelledByTimeout => (
                5002,
                "CANCELLED_BY_TIMEOUT",
                C::Cancellation,
                R::Never,
                "the time allowed for the job ran out",
            ),
            Self::UnknownError => (
                9999,
                "UNKNOWN_ERROR",
                C::System,
                R::Never,
                "the cause has no code in this version",
            ),
        }
    }

    /// Number of the contract. `UNKNOWN_ERROR` has none there; 9999 stands for it.
    pub const fn number(self) -> u16 {
        self.facts().0
    }

    /// String form, the one that travels in `error_code`.
    pub const fn as_str(self) -> &'static str {
        self.facts().1
    }

    /// What kind of fault this is.
    pub const fn category(self) -> Category {
        self.facts().2
    }

    /// Whether running again can help.
    pub const fn retry_advice(self) -> RetryAdvice {
        self.facts().3
    }

    /// One sentence for people. Holds none of the words by which the router's breaker blames the provider.
    pub const fn sentence(self) -> &'static str {
        self.facts().4
    }

    /// The code with this string form; unknown strings become [`ErrorCode::UnknownError`].
    pub fn from_wire(text: &str) -> Self {
        Self::ALL
            .into_iter()
            .find(|code| code.as_str() == text)
            .unwrap_or(Self::UnknownError)
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_number_and_string_and_reads_back() {
        let mut numbers: Vec<_> = ErrorCode::ALL.iter().map(|code| code.number()).collect();
        numbers.dedup();
        assert_eq!(numbers.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_wire(code.as_str()), code);
            assert_eq!(serde_json::to_value(code).expect("serialises"), code.as_str());
        }
        assert_eq!(ErrorCode::from_wire("SOMETHING_NEW"), ErrorCode::UnknownError);
    }

    #[test]
    fn no_sentence_makes_the_routers_breaker_blame_the_provider() {
        for code in ErrorCode::ALL {
            assert!(!crate::outcome::trips_breaker(code.sentence()), "{code}");
        }
    }
}
