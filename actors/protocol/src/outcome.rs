//! How a job ended. What cannot be, cannot be written down: success has no code, everything else has one.
//!
//! Neighbours: blocks return a [`Failure`] or outputs, the block worker makes a [`StepResult`] of them, and
//! [`crate::result`] writes it. No I/O.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::block::Outputs;
use crate::endpoint::Sign;
use crate::error_code::{ErrorCode, NONE};
use crate::limit::RanOut;
use crate::model::Cost;

/// Why a job, or one attempt of it, did not succeed. External and internal text are two fields: what travels to the
/// caller names fields and rules; hosts, paths outside the caller's view and library errors stay in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// The code.
    pub code: ErrorCode,
    /// For the caller. Lower case, no full stop, no secrets, no hosts.
    pub message: String,
    /// Facts for the caller, such as `field` or `status_code`.
    pub details: Map<String, Value>,
    /// What the caller gets although the job failed, such as the body of a failure status.
    pub outputs: Outputs,
    /// For the log only.
    pub internal: Option<Box<str>>,
    /// Whether a total limit ran out: the job's status is then `timeout`, not `error`.
    pub total_limit: bool,
    /// Which limit ran out, when one did. For log and metrics; never travels.
    pub ran_out: Option<Box<RanOut>>,
    /// What it says of the endpoint, where the code does not say it. Never travels.
    pub sign: Option<Sign>,
    /// Whether [`Failure::is_retryable`] and a wait that the other side asks for hold also where no policy is in force. CP1
    /// tries everything again after a moment; blocks that it does not have need not follow it in that. Never travels.
    pub minds_advice: bool,
}

impl Failure {
    /// A failure with a message for the caller.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: Map::new(),
            outputs: Map::new(),
            internal: None,
            total_limit: false,
            ran_out: None,
            sign: None,
            minds_advice: false,
        }
    }

    /// A failure of one input field: names the field and its rule.
    pub fn of_field(code: ErrorCode, field: &str, rule: &str) -> Self {
        Self::new(code, format!("{field}: {rule}")).with("field", json!(field))
    }

    /// A required input that is absent.
    pub fn missing(field: &str) -> Self {
        Self::of_field(ErrorCode::MissingRequiredField, field, "is required")
    }

    /// The job as a whole ran out of time; `limit` says which limit.
    pub fn timeout(limit: &str) -> Self {
        let mut failure = Self::new(ErrorCode::CancelledByTimeout, format!("{limit} has passed"));
        failure.total_limit = true;
        failure
    }

    /// The deadline of the assignment passed.
    pub fn deadline() -> Self {
        Self::timeout("deadline").by(RanOut::Deadline)
    }

    /// Says which limit ran out.
    #[must_use]
    pub fn by(mut self, ran_out: RanOut) -> Self {
        self.ran_out = Some(Box::new(ran_out));
        self
    }

    /// Says what it means for the endpoint.
    #[must_use]
    pub fn saying(mut self, sign: Sign) -> Self {
        self.sign = Some(sign);
        self
    }

    /// Has retries go by what it says of itself, whatever is in force.
    #[must_use]
    pub fn minding_advice(mut self) -> Self {
        self.minds_advice = true;
        self
    }

    /// What it says of the endpoint that was called.
    pub fn sign(&self) -> Sign {
        self.sign.unwrap_or_else(|| Sign::by(self))
    }

    /// Adds a fact for the caller.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.details.insert(key.to_owned(), value);
        self
    }

    /// Adds text for the log.
    #[must_use]
    pub fn internally(mut self, text: impl std::fmt::Display) -> Self {
        self.internal = Some(text.to_string().into());
        self
    }

    /// The same failure, said of the field that the caller knows it by: what stood for it on the way is not the caller's.
    #[must_use]
    pub fn said_of(mut self, field: &str) -> Self {
        let known = self.details.get("field").and_then(Value::as_str);
        let rule = known.and_then(|known| self.message.strip_prefix(known)?.strip_prefix(": "));
        self.message = format!("{field}: {}", rule.unwrap_or(&self.message));
        self.with("field", json!(field))
    }

    /// The word by which the router's breaker tells faults of the provider from all others (contract 3.4).
    pub fn error_type(&self) -> &'static str {
        match self.code {
            _ if self.was_not_there() => "provider_unavailable",
            ErrorCode::HttpError => {
                let server = self.status_code().is_some_and(|status| status >= 500);
                if server { "server_error" } else { "client_error" }
            }
            ErrorCode::NetworkError => "connection_error",
            ErrorCode::ConnectionTimeout => "timeout",
            ErrorCode::InvalidInput | ErrorCode::MissingRequiredField | ErrorCode::InvalidFormat => {
                "validation"
            }
            ErrorCode::PermissionDenied => "permission",
            ErrorCode::QuotaExceeded => "quota",
            ErrorCode::SystemOverload => "overload",
            ErrorCode::ResourceUnavailable => "resource",
            ErrorCode::ExecutionFailed => "execution",
            ErrorCode::CancelledByUser | ErrorCode::CancelledByTimeout => "cancelled",
            ErrorCode::InternalError | ErrorCode::UnknownError => "internal",
        }
    }

    /// Whether the router's breaker is meant to count this against the provider.
    pub fn blames_provider(&self) -> bool {
        matches!(
            self.error_type(),
            "server_error" | "connection_error" | "timeout" | "provider_unavailable"
        )
    }

    /// Whether running again can help, by the design column of contract 7.2; policies may say otherwise.
    pub fn is_retryable(&self) -> bool {
        use crate::error_code::RetryAdvice;
        if self.was_not_there() {
            return false;
        }
        match self.code.retry_advice() {
            RetryAdvice::Never | RetryAdvice::ByPolicy => false,
            RetryAdvice::Retry => true,
            RetryAdvice::ByStatus => self
                .status_code()
                .is_some_and(|status| matches!(status, 408 | 429) || status >= 500),
        }
    }

    /// Whether nobody was called, and another worker, or the same one later, may have somebody to call.
    fn was_not_there(&self) -> bool {
        matches!(self.sign, Some(Sign::LeftAlone | Sign::Unknown))
    }

    fn status_code(&self) -> Option<u64> {
        self.details.get("status_code").and_then(Value::as_u64)
    }
}

/// Whether a text in `error_message` makes the router's breaker count a failure of the provider: it looks for these
/// words, and for the digit 5 anywhere (contract 3.4).
pub fn trips_breaker(text: &str) -> bool {
    ["timeout", "connection", "5", "unavailable"]
        .iter()
        .any(|word| text.contains(word))
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It did what it was asked to.
    Success(Outputs),
    /// It failed.
    Error(Failure),
    /// Its deadline or a total limit ran out.
    Timeout(Failure),
    /// It was cancelled.
    Cancelled(Failure),
}

/// The four words that the router accepts; `cancelled` has two l's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It did what it was asked to.
    Success,
    /// It failed.
    Error,
    /// Its deadline or a total limit ran out.
    Timeout,
    /// It was cancelled.
    Cancelled,
}

impl Status {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Outcome {
    /// The status on the wire.
    pub fn status(&self) -> Status {
        match self {
            Self::Success(_) => Status::Success,
            Self::Error(_) => Status::Error,
            Self::Timeout(_) => Status::Timeout,
            Self::Cancelled(_) => Status::Cancelled,
        }
    }

    /// The failure, unless it succeeded.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Success(_) => None,
            Self::Error(failure) | Self::Timeout(failure) | Self::Cancelled(failure) => Some(failure),
        }
    }

    /// The code's string form, `NONE` for success.
    pub fn error_code(&self) -> &'static str {
        self.failure().map_or(NONE, |failure| failure.code.as_str())
    }
}

impl From<Failure> for Outcome {
    /// Sorts a failure by its code: the two cancellation codes have statuses of their own.
    fn from(failure: Failure) -> Self {
        match failure.code {
            ErrorCode::CancelledByUser => Self::Cancelled(failure),
            ErrorCode::CancelledByTimeout => Self::Timeout(failure),
            _ if failure.total_limit => Self::Timeout(failure),
            _ => Self::Error(failure),
        }
    }
}

/// The end of a job with its figures (contract 6.2). Valid by construction: success has no code, everything else has
/// one, and no figure is negative.
#[derive(Debug, Clone, PartialEq)]
pub struct StepResult {
    /// How it ended.
    pub outcome: Outcome,
    /// From the first start of handling to the end, in milliseconds.
    pub latency_ms: u64,
    /// Calls beyond the first.
    pub retries_used: u32,
    /// What its calls cost, where they cost anything.
    pub cost: Cost,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_faults_of_the_provider_get_a_word_that_the_breaker_counts() {
        let counted = [
            "timeout",
            "connection_error",
            "provider_unavailable",
            "5xx",
            "server_error",
        ];
        let http = |status: u16| Failure::new(ErrorCode::HttpError, "x").with("status_code", json!(status));
        assert_eq!(http(503).error_type(), "server_error");
        assert_eq!(http(404).error_type(), "client_error");
        for code in ErrorCode::ALL {
            let failure = Failure::new(code, "x");
            assert_eq!(
                counted.contains(&failure.error_type()),
                failure.blames_provider(),
                "{code}"
            );
        }
    }

    #[test]
    fn retry_advice_follows_the_status_for_http_errors() {
        let http = |status: u16| Failure::new(ErrorCode::HttpError, "x").with("status_code", json!(status));
        let verdicts: Vec<bool> = [400, 404, 408, 429, 500, 503]
            .map(|status| http(status).is_retryable())
            .to_vec();
        assert_eq!(verdicts, [false, false, true, true, true, true]);
    }

    #[test]
    fn codes_decide_the_status() {
        for (code, status) in [
            (ErrorCode::CancelledByUser, Status::Cancelled),
            (ErrorCode::CancelledByTimeout, Status::Timeout),
            (ErrorCode::ConnectionTimeout, Status::Error),
            (ErrorCode::InternalError, Status::Error),
        ] {
            assert_eq!(Outcome::from(Failure::new(code, "x")).status(), status);
        }
        assert_eq!(Outcome::Success(Map::new()).error_code(), "NONE");
        assert_eq!(Status::Cancelled.as_str(), "cancelled");
    }
}
