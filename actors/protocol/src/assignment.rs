//! An assignment, read leniently from every shape that routers and documents know (contract 2.1 to 2.4).
//!
//! Neighbours: intake calls [`read`] once per message; everything downstream uses [`Identity`] and [`Assignment`].
//! Never decides whether a job runs: that is intake's row decision.

use serde_json::{Map, Value};

use crate::ack::RejectReason;
use crate::block::{Inputs, ResourceClass};
use crate::error_code::ErrorCode;
use crate::headers::Headers;
use crate::ids::{
    AssignmentKey, Correlation, MAX_ID_BYTES, MAX_IDEMPOTENCY_KEY_BYTES, MAX_TENANT_BYTES, RunFlowStep,
    is_usable, is_valid_trace_id,
};
use crate::json::{lenient_u64, object_from_str, parse};
use crate::outcome::Failure;
use crate::reference::{self, PayloadRef};
use crate::secret;
use crate::trace_context::{RemoteTrace, SpanContext, TRACEPARENT, TRACESTATE};

/// Deadline of a job that names none, or a bad one, in milliseconds.
pub const DEFAULT_DEADLINE_MS: u64 = 30_000;
/// Longest deadline in milliseconds: one hour.
pub const MAX_DEADLINE_MS: u64 = 3_600_000;
/// Most calls that an assignment may ask for; more would only outlive the longest deadline.
pub const MAX_ATTEMPTS: u32 = 100;
/// Priority of a job that names none, or no number; the router's default.
pub const DEFAULT_PRIORITY: u8 = 50;
/// The highest priority: what is beyond counts as this.
pub const MAX_PRIORITY: u8 = 100;
/// Key by which an assignment asks to be rehearsed: at top level, in `job`, `options` or `metadata`.
const SANDBOX: &str = "sandbox";
/// Longest correlation id that is carried along, valid or not, in bytes.
const MAX_RAW_ID_BYTES: usize = 128;

/// Whom an answer goes to: what can be known of an assignment even if it cannot run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Opaque, 1..128 bytes without control characters.
    pub assignment_id: String,
    /// Opaque, 1..256 bytes without control characters.
    pub tenant_id: String,
    /// The request behind the assignment.
    pub request_id: Option<String>,
    /// Who the router chose to run it.
    pub provider_id: Option<String>,
    /// The job's type.
    pub job_type: Option<String>,
    /// Trace, run, flow and step.
    pub correlation: Correlation,
    /// Caller's key, 1..256 bytes.
    pub idempotency_key: Option<String>,
    /// How often an operator sent it again, from the header `Caf-Replay`: 0 for the assignment itself, else 1..1000.
    pub replay: u32,
    /// Whether it is only rehearsed (contract 6.9): the assignment asks for that, or the node does nothing else.
    pub sandbox: bool,
}

impl Identity {
    /// The key of this assignment across tenants; each replay has its own.
    pub fn key(&self) -> AssignmentKey {
        AssignmentKey::of_replay(&self.tenant_id, &self.assignment_id, self.replay)
    }
}

/// An assignment that may run, if its inputs suit its block.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// Whom the answer goes to.
    pub identity: Identity,
    /// What is to be done.
    pub job_type: String,
    /// With what.
    pub payload: Payload,
    /// How long it may take from the first start of handling, in milliseconds: 1..3,600,000.
    pub deadline_ms: u64,
    /// Total calls that the assignment allows: 1..100. Absent: the worker's setting decides.
    pub max_attempts: Option<u32>,
    /// Wait before the first retry that the assignment asks for, in milliseconds: 0..3,600,000. Absent: the worker's
    /// policy decides.
    pub backoff_ms: Option<u64>,
    /// Pool that the assignment asks for. Absent: the block's own class.
    pub resource_class: Option<ResourceClass>,
    /// How urgent it is among the jobs of its tenant: 0..100, the higher the sooner.
    pub priority: u8,
    /// What it says that it will need.
    pub estimate: Estimate,
}

/// What a job says that it will need: 0 where it says nothing. Believed, and only held against the quotas of its tenant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Processor time, in milliseconds.
    pub cpu_time_ms: u64,
}

/// What a job is given.
#[derive(Debug, Clone, PartialEq)]
pub enum Payload {
    /// The inputs themselves.
    Inline(Inputs),
    /// Where they are: nobody has looked at them yet.
    Referenced(PayloadRef),
}

/// Why an assignment will not run.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// Token for the acknowledgement.
    pub reason: RejectReason,
    /// Code, and text that names the field and the rule.
    pub failure: Failure,
}

impl Refusal {
    fn field(reason: RejectReason, code: ErrorCode, field: &str, rule: &str) -> Self {
        Self {
            reason,
            failure: Failure::of_field(code, field, rule),
        }
    }

    fn missing(field: &str) -> Self {
        Self {
            reason: RejectReason::MissingField,
            failure: Failure::missing(field),
        }
    }

    fn invalid(field: &str, rule: &str) -> Self {
        Self::field(RejectReason::InvalidField, ErrorCode::InvalidFormat, field, rule)
    }
}

/// Keys of a job that are no inputs.
const ABOUT_THE_JOB: [&str; 6] = [
    "type",
    "payload",
    "inputs",
    "payload_ref",
    "metadata",
    "resources",
];

/// What a message turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Reading {
    /// Nobody can be answered (row 1): not a JSON object, or no usable assignment or tenant id.
    Unanswerable(Failure),
    /// It can be answered but will not run (row 2).
    Invalid(Identity, Refusal),
    /// It may run.
    Valid(Assignment),
}

/// Reads one message. Pure; never panics, whatever the bytes.
pub fn read(payload: &[u8], headers: &Headers) -> Reading {
    let document = match parse(payload) {
        Ok(document) => document,
        Err(error) => {
            return Reading::Unanswerable(
                Failure::new(
                    ErrorCode::InvalidFormat,
                    format!("payload: is not valid JSON: {error}"),
                )
                .with("field", "payload".into()),
            );
        }
    };
    let Value::Object(top) = document.value else {
        return Reading::Unanswerable(Failure::of_field(
            ErrorCode::InvalidFormat,
            "payload",
            "must be a JSON object",
        ));
    };
    let shape = Shape::of(&top);
    let ambiguous = |field: &str| {
        let path = if shape.enveloped {
            format!("data.{field}")
        } else {
            field.to_owned()
        };
        document
            .duplicates
            .iter()
            .any(|d| d.differs && d.is_at_or_above(&path))
    };
    let identity = match read_identity(&shape, headers, ambiguous) {
        Ok(identity) => identity,
        Err(failure) => return Reading::Unanswerable(failure),
    };
    if let Some(duplicate) = document.duplicates.first() {
        let rule = "occurs more than once in one object";
        let refusal = Refusal::field(
            RejectReason::DuplicateKey,
            ErrorCode::InvalidFormat,
            &duplicate.path,
            rule,
        );
        return Reading::Invalid(identity, refusal);
    }
    match read_job(&shape, headers, &identity) {
        Ok(job) => Reading::Valid(Assignment { identity, ..job }),
        Err(refusal) => Reading::Invalid(identity, refusal),
    }
}

/// The objects in which fields are looked up, empty where the message has none.
struct Shape<'a> {
    /// The assignment itself: the whole message, or `data` of an envelope (contract 2.4 f).
    root: &'a Map<String, Value>,
    /// The message around it.
    envelope: &'a Map<String, Value>,
    enveloped: bool,
    job: &'a Map<String, Value>,
    options: &'a Map<String, Value>,
    correlation: &'a Map<String, Value>,
    metadata: &'a Map<String, Value>,
}

impl<'a> Shape<'a> {
    fn of(top: &'a Map<String, Value>) -> Self {
        let data = top
            .get("kind")
            .and_then(|_| top.get("data"))
            .and_then(Value::as_object);
        let root = data.unwrap_or(top);
        Self {
            root,
            envelope: top,
            enveloped: data.is_some(),
            job: object(root, "job"),
            options: object(root, "options"),
            correlation: object(root, "correlation"),
            metadata: object(root, "metadata"),
        }
    }
}

fn object<'a>(parent: &'a Map<String, Value>, key: &str) -> &'a Map<String, Value> {
    static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    parent.get(key).and_then(Value::as_object).unwrap_or(&EMPTY)
}

fn text<'a>(parent: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    parent.get(key).and_then(Value::as_str)
}

fn usable(candidate: Option<&str>, max: usize) -> Option<String> {
    candidate.filter(|text| is_usable(text, max)).map(str::to_owned)
}

fn read_identity(
    shape: &Shape<'_>,
    headers: &Headers,
    ambiguous: impl Fn(&str) -> bool,
) -> Result<Identity, Failure> {
    let unusable = |field: &str, max: usize| {
        let rule = format!("must be a string of 1 to {max} bytes without control characters, given once");
        Err(Failure::of_field(ErrorCode::MissingRequiredField, field, &rule))
    };
    let root = shape.root;
    let Some(assignment_id) =
        usable(text(root, "assignment_id"), MAX_ID_BYTES).filter(|_| !ambiguous("assignment_id"))
    else {
        return unusable("assignment_id", MAX_ID_BYTES);
    };
    let decided = object(object(root, "decision"), "metadata");
    let tenant_id = usable(text(root, "tenant_id"), MAX_TENANT_BYTES)
        .or_else(|| usable(headers.get("tenant_id"), MAX_TENANT_BYTES))
        .or_else(|| {
            usable(text(decided, "tenant_id"), MAX_TENANT_BYTES)
                .filter(|_| !ambiguous("decision.metadata.tenant_id"))
        })
        .filter(|_| !ambiguous("tenant_id"));
    let Some(tenant_id) = tenant_id else {
        return unusable("tenant_id", MAX_TENANT_BYTES);
    };
    Ok(Identity {
        assignment_id,
        tenant_id,
        request_id: usable(text(root, "request_id"), MAX_ID_BYTES),
        provider_id: usable(text(object(root, "executor"), "provider_id"), MAX_ID_BYTES),
        job_type: usable(text(shape.job, "type"), MAX_ID_BYTES),
        correlation: read_correlation(shape, headers),
        idempotency_key: usable(text(root, "idempotency_key"), MAX_IDEMPOTENCY_KEY_BYTES),
        replay: headers.replay(),
        sandbox: wants_sandbox(shape),
    })
}

/// Whether any of the places that may ask for the sandbox does. None can ask to leave it.
fn wants_sandbox(shape: &Shape<'_>) -> bool {
    let places = [shape.root, shape.job, shape.options, shape.metadata];
    let asked = places.into_iter().filter_map(|place| place.get(SANDBOX));
    asked.filter_map(as_flag).any(|flag| flag)
}

/// True or false, or its string form.
fn as_flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

fn read_correlation(shape: &Shape<'_>, headers: &Headers) -> Correlation {
    let carried = |text: Option<&str>| usable(text, MAX_RAW_ID_BYTES);
    let traces = [
        carried(text(shape.correlation, "trace_id")),
        carried(text(shape.root, "trace_id")),
        carried(headers.get("trace_id")),
        headers
            .get(TRACEPARENT)
            .and_then(SpanContext::from_traceparent)
            .map(|context| context.trace_id.to_string()),
    ];
    let trace_id = traces
        .iter()
        .flatten()
        .find(|trace| is_valid_trace_id(trace))
        .cloned();
    let original_trace_id = traces
        .into_iter()
        .flatten()
        .next()
        .filter(|first| trace_id.is_none() && !first.is_empty());
    let id = |key: &str| {
        [shape.root, shape.correlation, shape.metadata]
            .into_iter()
            .find_map(|place| carried(text(place, key)))
    };
    let raw = RunFlowStep {
        run_id: id("run_id"),
        flow_id: id("flow_id"),
        step_id: id("step_id"),
    };
    Correlation {
        trace_id,
        original_trace_id,
        raw,
        remote: read_remote(shape, headers),
        span: None,
    }
}

/// The trace that the message says it belongs to.
fn read_remote(shape: &Shape<'_>, headers: &Headers) -> Option<RemoteTrace> {
    let in_correlation = |key: &str| text(shape.correlation, key).map(str::to_owned);
    let at_top = |key: &str| text(shape.root, key).map(str::to_owned);
    let is_context = |key: &str| key == TRACEPARENT || key == TRACESTATE;
    let in_metadata = |key: &str| {
        text(shape.metadata, key)
            .filter(|_| is_context(key))
            .map(str::to_owned)
    };
    RemoteTrace::read(headers, &[&in_correlation, &at_top, &in_metadata])
}

/// Reads everything but the identity, in the order in which a person would look: version, ids, job, inputs.
fn read_job(shape: &Shape<'_>, headers: &Headers, identity: &Identity) -> Result<Assignment, Refusal> {
    check_version(shape, headers)?;
    check_secrets(shape)?;
    check_id(
        shape.root,
        "request_id",
        "request_id",
        identity.request_id.as_deref(),
    )?;
    // The envelope form carries no executor.
    if !shape.enveloped || shape.root.contains_key("executor") {
        check_object(shape.root, "executor")?;
        let executor = object(shape.root, "executor");
        check_id(
            executor,
            "provider_id",
            "executor.provider_id",
            identity.provider_id.as_deref(),
        )?;
    }
    check_object(shape.root, "job")?;
    check_id(shape.job, "type", "job.type", identity.job_type.as_deref())?;
    check_sandbox(shape)?;
    let payload = read_payload(shape)?;
    let deadline_ms = read_deadline_ms(shape, &payload);
    Ok(Assignment {
        identity: Identity::default(),
        job_type: identity.job_type.clone().unwrap_or_default(),
        payload,
        deadline_ms,
        max_attempts: read_max_attempts(shape),
        backoff_ms: read_backoff_ms(shape),
        resource_class: read_resource_class(shape),
        priority: read_priority(shape),
        estimate: read_estimate(shape),
    })
}

fn check_version(shape: &Shape<'_>, headers: &Headers) -> Result<(), Refusal> {
    let given = shape
        .root
        .get("version")
        .or_else(|| shape.envelope.get("version"));
    let version = match given {
        Some(Value::String(version)) => Some(version.as_str()),
        Some(Value::Null) | None => headers.get("version"),
        Some(_) => None,
    };
    match version {
        Some("1" | "1.0" | "v1") => Ok(()),
        _ => Err(Refusal::field(
            RejectReason::UnsupportedVersion,
            ErrorCode::InvalidInput,
            "version",
            "must be the string \"1\"",
        )),
    }
}

/// Who asks for the sandbox in words that cannot be read must not get the real thing. `metadata` is the caller's own: what
/// stands there may mean something else.
fn check_sandbox(shape: &Shape<'_>) -> Result<(), Refusal> {
    let places = [
        (shape.root, SANDBOX),
        (shape.job, "job.sandbox"),
        (shape.options, "options.sandbox"),
    ];
    for (place, path) in places {
        let given = place.get(SANDBOX).filter(|value| !value.is_null());
        if given.is_some_and(|value| as_flag(value).is_none()) {
            return Err(Refusal::invalid(path, "must be true or false"));
        }
    }
    Ok(())
}

/// Nobody resolves a reference to a secret outside of inputs. Which inputs may hold one, the pipeline asks the block.
fn check_secrets(shape: &Shape<'_>) -> Result<(), Refusal> {
    let is_named = |(_, value): &(&String, &Value)| secret::reference::is_in(value);
    let mut beside = shape.root.iter().filter(|(key, _)| *key != "job");
    let mut of_job = shape.job.iter().filter(|(key, _)| {
        ABOUT_THE_JOB.contains(&key.as_str()) && !matches!(key.as_str(), "payload" | "inputs")
    });
    let in_job = || of_job.find(is_named).map(|(key, _)| format!("job.{key}"));
    match beside.find(is_named).map(|(key, _)| key.clone()).or_else(in_job) {
        None => Ok(()),
        Some(path) => Err(Refusal {
            reason: RejectReason::InvalidField,
            failure: secret::reference::not_here(&path),
        }),
    }
}

fn check_object(parent: &Map<String, Value>, key: &str) -> Result<(), Refusal> {
    match parent.get(key) {
        Some(Value::Object(_)) => Ok(()),
        Some(Value::Null) | None => Err(Refusal::missing(key)),
        Some(_) => Err(Refusal::invalid(key, "must be an object")),
    }
}

fn check_id(parent: &Map<String, Value>, key: &str, path: &str, usable: Option<&str>) -> Result<(), Refusal> {
    if usable.is_some() {
        return Ok(());
    }
    match parent.get(key) {
        None | Some(Value::Null) => Err(Refusal::missing(path)),
        Some(Value::String(text)) if text.is_empty() || text == "undefined" => Err(Refusal::missing(path)),
        Some(_) => Err(Refusal::invalid(
            path,
            "must be a string of 1 to 128 bytes without control characters",
        )),
    }
}

/// A reference beats inputs that stand beside it (contract 2.3).
fn read_payload(shape: &Shape<'_>) -> Result<Payload, Refusal> {
    match shape.job.get("payload_ref") {
        None | Some(Value::Null) => read_inputs(shape).map(Payload::Inline),
        Some(Value::String(text)) => {
            let sha256 = read_sha256(shape.job)?;
            PayloadRef::parse(text, sha256).map(Payload::Referenced)
        }
        Some(_) => Err(Refusal::invalid(reference::FIELD, "must be a string")),
    }
}

fn read_sha256(job: &Map<String, Value>) -> Result<Option<&str>, Refusal> {
    match job.get("payload_sha256") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if reference::is_sha256(text) => Ok(Some(text)),
        Some(_) => Err(Refusal::invalid(
            reference::SHA256_FIELD,
            "must be 64 lower-case hexadecimal digits",
        )),
    }
}

fn read_inputs(shape: &Shape<'_>) -> Result<Inputs, Refusal> {
    let job = shape.job;
    for key in ["payload", "inputs"] {
        let path = format!("job.{key}");
        match job.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::Object(inputs)) => return Ok(inputs.clone()),
            Some(Value::String(text)) => {
                return object_from_str(text)
                    .map_err(|_| Refusal::invalid(&path, "must be an object, or its string form"));
            }
            Some(_) => return Err(Refusal::invalid(&path, "must be an object")),
        }
    }
    let flat = job
        .iter()
        .filter(|(key, _)| !ABOUT_THE_JOB.contains(&key.as_str()));
    Ok(flat.map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// The job's own `timeout_ms` may only shorten what the assignment allows.
fn read_deadline_ms(shape: &Shape<'_>, payload: &Payload) -> u64 {
    let given = |place: &Map<String, Value>, key: &str| place.get(key).and_then(lenient_u64);
    let deadline = given(shape.options, "deadline_ms")
        .or_else(|| given(shape.root, "timeout_ms"))
        .unwrap_or(DEFAULT_DEADLINE_MS);
    let of_inputs = match payload {
        Payload::Inline(inputs) => own_timeout_ms(inputs),
        Payload::Referenced(_) => None,
    };
    let own = of_inputs
        .or_else(|| given(shape.job, "timeout_ms"))
        .unwrap_or(u64::MAX);
    deadline.min(own).clamp(1, MAX_DEADLINE_MS)
}

/// The `timeout_ms` among the inputs of a job, in milliseconds: it may only shorten the deadline.
pub fn own_timeout_ms(inputs: &Inputs) -> Option<u64> {
    inputs.get("timeout_ms").and_then(lenient_u64)
}

fn read_max_attempts(shape: &Shape<'_>) -> Option<u32> {
    let retry = |place| object(place, "retry");
    let given = |place: &Map<String, Value>, key: &str| place.get(key).and_then(lenient_u64);
    let attempts = given(retry(shape.options), "max_attempts").or_else(|| {
        [retry(shape.root), retry(shape.job)]
            .into_iter()
            .find_map(|retry| {
                given(retry, "max_attempts")
                    .or_else(|| given(retry, "max_retries").map(|n| n.saturating_add(1)))
            })
    })?;
    Some(
        u32::try_from(attempts)
            .unwrap_or(MAX_ATTEMPTS)
            .clamp(1, MAX_ATTEMPTS),
    )
}

/// No wait is longer than the longest deadline.
fn read_backoff_ms(shape: &Shape<'_>) -> Option<u64> {
    let given = [shape.options, shape.root, shape.job]
        .into_iter()
        .find_map(|place| object(place, "retry").get("backoff_ms").and_then(lenient_u64));
    given.map(|backoff_ms| backoff_ms.min(MAX_DEADLINE_MS))
}

fn read_resource_class(shape: &Shape<'_>) -> Option<ResourceClass> {
    [shape.root, shape.job]
        .into_iter()
        .find_map(|place| text(object(place, "resources"), "class").and_then(ResourceClass::from_name))
}

/// What is no number is taken for none; what is out of range, for the nearest that is in it.
fn read_priority(shape: &Shape<'_>) -> u8 {
    let number = match shape.options.get("priority") {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    let Some(number) = number.filter(|number: &f64| !number.is_nan()) else {
        return DEFAULT_PRIORITY;
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range is that of the type"
    )]
    let priority = number.clamp(0.0, f64::from(MAX_PRIORITY)) as u8;
    priority
}

/// Where `resources` stands is read in the order of the class; a value that is no number counts as absent.
fn read_estimate(shape: &Shape<'_>) -> Estimate {
    let read = |key: &str| {
        [shape.root, shape.job]
            .into_iter()
            .find_map(|place| lenient_u64(object(place, "resources").get(key)?))
            .unwrap_or_default()
    };
    Estimate {
        memory_bytes: read("memory_bytes"),
        cpu_time_ms: read("cpu_time_ms"),
    }
}

#[cfg(test)]
mod tests;
