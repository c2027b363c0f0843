//! Requests to cancel assignments, and what is answered to them. A form of our own: the contract has none (5.3).
//!
//! Neighbours: the listener on the broker and the admin port read requests here and carry them out. Strict where
//! [`crate::assignment`] is lenient: who asks for the wrong thing must hear so, or runs on unawares. Never decides anything.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::assignment::Identity;
use crate::error_code::ErrorCode;
use crate::ids::{MAX_ID_BYTES, MAX_TENANT_BYTES, is_usable};
use crate::json::parse;
use crate::outcome::Failure;

/// Longest reason in bytes: a sentence for people.
pub const MAX_REASON_BYTES: usize = 256;
/// Largest request in bytes: ids and reason with every character escaped, several times over.
pub const MAX_REQUEST_BYTES: usize = 16 * 1024;
/// Every field that a request may have.
const FIELDS: [&str; 6] = [
    "version",
    "tenant_id",
    "assignment_id",
    "run_id",
    "step_id",
    "reason",
];
const ONE_TARGET: &str = "exactly one of assignment_id, run_id and step_id is needed";

/// What is to be cancelled, of one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target<Id = String> {
    /// One assignment.
    Assignment(Id),
    /// All jobs of a run.
    Run(Id),
    /// All jobs of a step.
    Step(Id),
}

impl<Id: AsRef<str>> Target<Id> {
    /// The field that names it.
    pub const fn field(&self) -> &'static str {
        match self {
            Self::Assignment(_) => "assignment_id",
            Self::Run(_) => "run_id",
            Self::Step(_) => "step_id",
        }
    }

    /// The id.
    pub fn id(&self) -> &str {
        match self {
            Self::Assignment(id) | Self::Run(id) | Self::Step(id) => id.as_ref(),
        }
    }

    /// The same, lent: it hashes as what it is lent from.
    pub fn lent(&self) -> Target<&str> {
        match self {
            Self::Assignment(id) => Target::Assignment(id.as_ref()),
            Self::Run(id) => Target::Run(id.as_ref()),
            Self::Step(id) => Target::Step(id.as_ref()),
        }
    }

    /// The same, to keep.
    pub fn kept(&self) -> Target {
        match self {
            Self::Assignment(id) => Target::Assignment(id.as_ref().to_owned()),
            Self::Run(id) => Target::Run(id.as_ref().to_owned()),
            Self::Step(id) => Target::Step(id.as_ref().to_owned()),
        }
    }
}

impl<'a> Target<&'a str> {
    /// Everything by which an assignment can be cancelled.
    pub fn all_of(identity: &'a Identity) -> impl Iterator<Item = Self> {
        let raw = &identity.correlation.raw;
        let assignment = Some(Self::Assignment(&identity.assignment_id));
        let run = raw.run_id.as_deref().map(Self::Run);
        let step = raw.step_id.as_deref().map(Self::Step);
        [assignment, run, step].into_iter().flatten()
    }
}

/// A request to cancel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelRequest {
    /// Whose jobs.
    pub tenant_id: String,
    /// Which of them.
    pub target: Target,
    /// Why, in the words of whoever asks: at most [`MAX_REASON_BYTES`], without control characters. Hostile text.
    pub reason: Option<String>,
}

impl CancelRequest {
    /// Reads one request. Never panics, whatever the bytes.
    ///
    /// # Errors
    /// The field and the rule that it breaks; nothing of the request is quoted.
    pub fn read(bytes: &[u8]) -> Result<Self, Failure> {
        if bytes.len() > MAX_REQUEST_BYTES {
            let rule = format!("must have at most {MAX_REQUEST_BYTES} bytes");
            return Err(broken("request", &rule));
        }
        let document = parse(bytes).map_err(|_| broken("request", "is not valid JSON"))?;
        if !document.duplicates.is_empty() {
            return Err(broken("request", "holds a key more than once"));
        }
        let Value::Object(fields) = document.value else {
            return Err(broken("request", "must be a JSON object"));
        };
        if fields.keys().any(|key| !FIELDS.contains(&key.as_str())) {
            let rule = format!("has no other fields than {}", FIELDS.join(", "));
            return Err(broken("request", &rule));
        }
        if fields.get("version") != Some(&json!(crate::VERSION)) {
            return Err(broken("version", "must be the string \"1\""));
        }
        let Some(tenant_id) = text(&fields, "tenant_id", MAX_TENANT_BYTES)? else {
            return Err(Failure::missing("tenant_id"));
        };
        let id = |field| text(&fields, field, MAX_ID_BYTES);
        let target = match (id("assignment_id")?, id("run_id")?, id("step_id")?) {
            (Some(id), None, None) => Target::Assignment(id),
            (None, Some(id), None) => Target::Run(id),
            (None, None, Some(id)) => Target::Step(id),
            _ => return Err(broken("request", ONE_TARGET)),
        };
        Ok(Self {
            tenant_id,
            target,
            reason: text(&fields, "reason", MAX_REASON_BYTES)?,
        })
    }

    /// The request as it is written.
    pub fn write(&self) -> Vec<u8> {
        let mut fields = json!({ "version": crate::VERSION, "tenant_id": self.tenant_id });
        fields[self.target.field()] = json!(self.target.id());
        if let Some(reason) = &self.reason {
            fields["reason"] = json!(reason);
        }
        fields.to_string().into_bytes()
    }
}

fn text(fields: &Map<String, Value>, field: &str, max: usize) -> Result<Option<String>, Failure> {
    match fields.get(field) {
        None => Ok(None),
        Some(Value::String(text)) if is_usable(text, max) => Ok(Some(text.clone())),
        Some(_) => {
            let rule = format!("must be a string of 1 to {max} bytes without control characters");
            Err(broken(field, &rule))
        }
    }
}

fn broken(field: &str, rule: &str) -> Failure {
    Failure::of_field(ErrorCode::InvalidInput, field, rule)
}

/// A tenant as the last token of the subject of its requests: base64url without padding, so that permissions of the broker
/// can name it whatever is in it.
pub fn tenant_token(tenant_id: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(tenant_id)
}

/// The tenant that a token names; nothing when it names none. Each tenant has one token only.
pub fn tenant_of_token(token: &str) -> Option<String> {
    let tenant = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    is_usable(&tenant, MAX_TENANT_BYTES).then_some(tenant)
}

/// What became of a request at one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CancelOutcome {
    /// Jobs were told to stop: their results are `cancelled`.
    Cancelled,
    /// It has ended before, and stays as it ended.
    Finished,
    /// This worker holds no such job.
    Unknown,
}

impl CancelOutcome {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Finished => "finished",
            Self::Unknown => "unknown",
        }
    }
}

/// The answer to a request, of one worker for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CancelAnswer {
    /// Always `"1"`.
    #[schemars(extend("const" = "1"))]
    pub version: &'static str,
    /// The worker that answers.
    pub worker_id: String,
    /// Whose jobs were asked for.
    pub tenant_id: String,
    /// What was asked for, as in the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assignment_id: Option<String>,
    /// What was asked for, as in the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// What was asked for, as in the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_id: Option<String>,
    /// What was done.
    pub outcome: CancelOutcome,
    /// Jobs told to stop, those included that were told before.
    pub cancelled: u64,
    /// For so many seconds, jobs that arrive here and were asked for are answered `cancelled`; absent when none will be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tombstone_s: Option<u64>,
    /// Whether the request was passed on to all workers of the broker; only where one worker was asked, on its admin port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed_on: Option<bool>,
}

impl CancelAnswer {
    /// The answer of `worker_id` to a request.
    pub fn new(
        worker_id: &str,
        request: &CancelRequest,
        outcome: CancelOutcome,
        cancelled: u64,
        tombstone_s: Option<u64>,
    ) -> Self {
        let of = |field| (request.target.field() == field).then(|| request.target.id().to_owned());
        Self {
            version: crate::VERSION,
            worker_id: worker_id.to_owned(),
            tenant_id: request.tenant_id.clone(),
            assignment_id: of("assignment_id"),
            run_id: of("run_id"),
            step_id: of("step_id"),
            outcome,
            cancelled,
            tombstone_s,
            passed_on: None,
        }
    }
}

/// The answer to what is no request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CancelRefusal {
    /// Always `"1"`.
    #[schemars(extend("const" = "1"))]
    pub version: &'static str,
    /// The worker that answers.
    pub worker_id: String,
    /// The field and the rule that it breaks.
    pub error: String,
}

/// The form of a request, for schemas. [`CancelRequest::read`] says what is read.
#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
pub struct CancelMessage {
    /// Always `"1"`.
    #[schemars(extend("const" = "1"))]
    version: String,
    /// Whose jobs: as in the subject, decoded.
    #[schemars(length(min = 1, max = 256))]
    tenant_id: String,
    /// One assignment. Exactly one of `assignment_id`, `run_id` and `step_id` is needed.
    #[schemars(length(min = 1, max = 128))]
    assignment_id: Option<String>,
    /// All jobs of a run.
    #[schemars(length(min = 1, max = 128))]
    run_id: Option<String>,
    /// All jobs of a step.
    #[schemars(length(min = 1, max = 128))]
    step_id: Option<String>,
    /// Why, for people: in the results and in the log of the worker.
    #[schemars(length(min = 1, max = 256))]
    reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(value: &Value) -> Result<CancelRequest, String> {
        CancelRequest::read(value.to_string().as_bytes()).map_err(|failure| failure.message)
    }

    #[test]
    fn a_request_is_read_as_it_is_written() {
        let of = |target| CancelRequest {
            tenant_id: "acme ü".to_owned(),
            target,
            reason: Some("superseded".to_owned()),
        };
        for target in [Target::Assignment, Target::Run, Target::Step] {
            let request = of(target("a-1".to_owned()));
            assert_eq!(CancelRequest::read(&request.write()), Ok(request));
        }
        let bare = json!({"version": "1", "tenant_id": "acme", "run_id": "r"});
        assert_eq!(read(&bare).map(|request| request.reason), Ok(None));
    }

    #[test]
    fn whatever_is_not_exactly_a_request_is_refused_with_field_and_rule() {
        let good = json!({"version": "1", "tenant_id": "acme", "assignment_id": "a"});
        let with = |key: &str, value: Value| {
            let mut changed = good.clone();
            changed[key] = value;
            changed
        };
        let long = |bytes| json!("x".repeat(bytes));
        let mut no_tenant = good.clone();
        no_tenant.as_object_mut().expect("is one").remove("tenant_id");
        for (bad, field) in [
            (json!([]), "request"),
            (json!("cancel"), "request"),
            (json!({}), "version"),
            (with("version", json!(1)), "version"),
            (with("version", json!("2")), "version"),
            (no_tenant, "tenant_id"),
            (with("tenant_id", json!(null)), "tenant_id"),
            (with("tenant_id", json!("undefined")), "tenant_id"),
            (with("tenant_id", long(257)), "tenant_id"),
            (with("assignment_id", json!(7)), "assignment_id"),
            (with("assignment_id", json!("")), "assignment_id"),
            (with("assignment_id", long(129)), "assignment_id"),
            (with("assignment_id", json!("a\nb")), "assignment_id"),
            (with("run_id", json!("r")), "request"),
            (with("run_id", json!(null)), "run_id"),
            (with("reason", json!("a\u{1b}[31m")), "reason"),
            (with("reason", long(257)), "reason"),
            (with("assigment_id", json!("a")), "request"),
            (json!({"version": "1", "tenant_id": "acme"}), "request"),
        ] {
            let message = read(&bad).expect_err("is refused");
            assert!(message.starts_with(&format!("{field}: ")), "{bad}: {message}");
        }
        let twice = br#"{"version":"1","tenant_id":"a","tenant_id":"b","assignment_id":"x"}"#;
        let huge = vec![b' '; MAX_REQUEST_BYTES + 1];
        let deep = "[".repeat(200);
        for bad in [&twice[..], &huge, deep.as_bytes(), b"", b"\xff"] {
            assert!(CancelRequest::read(bad).is_err());
        }
    }

    #[test]
    fn each_tenant_has_one_token_of_its_own() {
        for tenant in ["acme", "a.b", "*", ">", "ü", " "] {
            let token = tenant_token(tenant);
            assert!(
                token
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            );
            assert_eq!(tenant_of_token(&token).as_deref(), Some(tenant));
        }
        // Not the shortest form, padded, another alphabet, no tenant, no text.
        for bad in ["YR", "YQ==", "YQ=", "+/+/", "", "AA", "_w", "dW5kZWZpbmVk"] {
            assert_eq!(tenant_of_token(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = CancelRequest::read(&bytes);
            let _ = tenant_of_token(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn what_is_read_is_written_the_same(tenant in "\\PC{1,60}", id in "\\PC{1,30}", reason in prop::option::of("\\PC{1,60}")) {
            let request = CancelRequest { tenant_id: tenant, target: Target::Run(id), reason };
            if let Ok(read) = CancelRequest::read(&request.write()) {
                prop_assert_eq!(read, request);
            }
        }
    }
}
