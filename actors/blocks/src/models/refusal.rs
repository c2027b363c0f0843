//! What a provider means by a failure status, or by an error within its answer.
//!
//! Neighbours: `call` reads the status and the beginning of the body, `answer` finds errors in streams; the pipeline goes by
//! the code. Pure. Only codes and types of the error are looked at, and words of its text: none of it is passed on, as
//! servers repeat prompts in it. Texts for faults that are not the provider's hold nothing by which the router's breaker
//! would blame it (contract 3.4).

use caf_protocol::endpoint::Sign;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use serde_json::{Value, json};

/// Field of the details, in milliseconds, that retries go by.
const RETRY_AFTER_MS: &str = "retry_after_ms";

/// What a provider says instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    status: u16,
    /// Its `code` and `type`, in lower case.
    words: [String; 2],
    /// Its text, in lower case, to look for words in.
    text: String,
    retry_after_ms: Option<u64>,
    is_within_answer: bool,
}

impl Refusal {
    /// By status, with what of the body came.
    pub(super) fn by_status(status: u16, body: &[u8], retry_after_ms: Option<u64>) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        // vLLM's older form has no `error` around it, TEI's has its text there.
        let error = body
            .get("error")
            .filter(|error| error.is_object())
            .unwrap_or(&body);
        let mut refusal = Self::of(status, error);
        refusal.retry_after_ms = retry_after_ms;
        refusal
    }

    /// An error in the place of an answer, or in the middle of one: the status that it would have had.
    pub(super) fn within(error: &Value) -> Self {
        let mut refusal = Self::of(0, error);
        let number = error["code"].as_u64().or_else(|| error["status"].as_u64());
        let number = number.and_then(|number| u16::try_from(number).ok());
        refusal.status = match number.filter(|status| (400..600).contains(status)) {
            Some(status) => status,
            None if refusal.says(&["rate_limit"]) => 429,
            None if refusal.says(&["invalid_request", "badrequest", "context_length"]) => 400,
            None if refusal.says(&["authentication", "invalid_api_key"]) => 401,
            None if refusal.says(&["permission"]) => 403,
            None if refusal.says(&["overloaded", "unavailable"]) => 503,
            None => 500,
        };
        refusal.is_within_answer = true;
        refusal
    }

    fn of(status: u16, error: &Value) -> Self {
        let word = |name: &str| error[name].as_str().unwrap_or_default().to_ascii_lowercase();
        let text = error.as_str().unwrap_or_default().to_ascii_lowercase();
        Self {
            status,
            words: [word("code"), word("type")],
            text: text + &word("message"),
            retry_after_ms: None,
            is_within_answer: false,
        }
    }

    fn says(&self, known: &[&str]) -> bool {
        let is_in = |word: &String| known.iter().any(|known| word.contains(known));
        self.words.iter().any(is_in)
    }

    fn is_quota(&self) -> bool {
        self.status == 402
            || self.says(&[
                "insufficient_quota",
                "quota_exceeded",
                "billing",
                "insufficient_credits",
            ])
    }

    fn is_context(&self) -> bool {
        let texts = [
            "context length",
            "context size",
            "context window",
            "maximum context",
        ];
        self.says(&["context_length", "exceed_context", "context_window"])
            || (matches!(self.status, 400 | 413 | 422) && texts.iter().any(|text| self.text.contains(text)))
    }

    fn is_model(&self) -> bool {
        self.says(&["model_not_found", "notfounderror", "model_not_available"])
            || (self.status == 404 && self.text.contains("model"))
    }

    /// What the caller learns.
    pub(super) fn failure(&self) -> Failure {
        let (code, text): (_, &str) = match self.status {
            400..500 if self.is_quota() => (
                ErrorCode::QuotaExceeded,
                "the quota at the provider is used up, or nothing is left to pay with",
            ),
            400..500 if self.is_context() => (
                ErrorCode::InvalidInput,
                "the prompt and the answer that is asked for are longer than the model's context",
            ),
            401 | 403 => (
                ErrorCode::PermissionDenied,
                "the provider does not let this worker, or this request, in",
            ),
            400..500 if self.is_model() => (ErrorCode::InvalidInput, "the provider does not have the model"),
            400 | 413 | 422 => (
                ErrorCode::InvalidInput,
                "the provider does not accept the request: a parameter, or a form of the messages",
            ),
            429 => (ErrorCode::HttpError, "the provider is asked too often"),
            300..400 => (
                ErrorCode::HttpError,
                "the provider redirects the request, and redirects are not followed",
            ),
            400..500 => (ErrorCode::HttpError, "the provider refused the request"),
            _ if self.is_within_answer => (
                ErrorCode::HttpError,
                "the provider failed in the middle of its answer",
            ),
            _ => (ErrorCode::HttpError, "the provider failed"),
        };
        let mut failure = Failure::new(code, text).with("status_code", json!(self.status));
        if self.is_within_answer {
            failure = failure.with("within_answer", json!(true));
        }
        match self.retry_after_ms {
            Some(wait_ms) => failure.with(RETRY_AFTER_MS, json!(wait_ms)),
            None => failure,
        }
        .saying(match self.status {
            500.. => Sign::Down,
            _ => Sign::Up,
        })
    }
}

#[cfg(test)]
mod tests {
    use caf_protocol::outcome::trips_breaker;

    use super::*;

    #[test]
    fn statuses_and_bodies_of_all_kinds_of_servers_mean_what_they_should() {
        let error = |code: &str, kind: &str, message: &str| {
            json!({"error": {"code": code, "type": kind, "message": message}}).to_string()
        };
        for (status, body, code, kind, retryable) in [
            (401, error("invalid_api_key", "invalid_request_error", "hunter2"), "PERMISSION_DENIED", "permission", false),
            (403, String::new(), "PERMISSION_DENIED", "permission", false),
            (403, error("insufficient_quota", "", ""), "QUOTA_EXCEEDED", "quota", false),
            (429, error("insufficient_quota", "insufficient_quota", "hunter2"), "QUOTA_EXCEEDED", "quota", false),
            (402, String::new(), "QUOTA_EXCEEDED", "quota", false),
            (429, error("rate_limit_exceeded", "requests", ""), "HTTP_ERROR", "client_error", true),
            (429, "nonsense".to_owned(), "HTTP_ERROR", "client_error", true),
            (400, error("context_length_exceeded", "invalid_request_error", "hunter2"), "INVALID_INPUT", "validation", false),
            (400, json!({"object": "error", "message": "This model's maximum context length is 4096", "code": 400}).to_string(), "INVALID_INPUT", "validation", false),
            (400, error("", "exceed_context_size_error", ""), "INVALID_INPUT", "validation", false),
            (400, error("", "invalid_request_error", ""), "INVALID_INPUT", "validation", false),
            (413, json!({"error": "Input validation error", "error_type": "Validation"}).to_string(), "INVALID_INPUT", "validation", false),
            (422, String::new(), "INVALID_INPUT", "validation", false),
            (404, error("model_not_found", "invalid_request_error", ""), "INVALID_INPUT", "validation", false),
            (404, error("", "api_error", "model 'x' not found"), "INVALID_INPUT", "validation", false),
            (404, json!({"detail": "Not Found"}).to_string(), "HTTP_ERROR", "client_error", false),
            (302, String::new(), "HTTP_ERROR", "client_error", false),
            (408, String::new(), "HTTP_ERROR", "client_error", true),
            (500, error("", "server_error", "hunter2"), "HTTP_ERROR", "server_error", true),
            (503, String::new(), "HTTP_ERROR", "server_error", true),
            (529, String::new(), "HTTP_ERROR", "server_error", true),
        ] {
            let failure = Refusal::by_status(status, body.as_bytes(), None).failure();
            let seen = (failure.code.as_str(), failure.error_type(), failure.is_retryable());
            assert_eq!(seen, (code, kind, retryable), "{status} {body}");
            assert!(!format!("{failure:?}").contains("hunter2"), "{failure:?}");
            assert!(failure.blames_provider() || !trips_breaker(&failure.message), "{failure:?}");
        }
    }

    #[test]
    fn an_error_within_an_answer_counts_as_the_status_that_it_would_have_had() {
        for (error, status) in [
            (json!({"code": 503}), 503),
            (json!({"code": "rate_limit_exceeded"}), 429),
            (json!({"type": "overloaded_error"}), 503),
            (json!({"type": "invalid_request_error", "code": null}), 400),
            (json!({"code": "context_length_exceeded"}), 400),
            (json!({"type": "server_error", "message": "x"}), 500),
            (json!({"code": 200}), 500),
            (json!("a text"), 500),
            (json!(null), 500),
        ] {
            let failure = Refusal::within(&error).failure();
            assert_eq!(failure.details["status_code"], status, "{error}");
        }
    }

    #[test]
    fn the_wait_that_a_server_asks_for_is_handed_on() {
        let failure = Refusal::by_status(429, b"", Some(7_000)).failure();
        assert_eq!(failure.details[RETRY_AFTER_MS], 7_000);
    }
}
