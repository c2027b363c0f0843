//! The router's side of the contract: what its intake makes of an acknowledgement or a result.
//!
//! Neighbours: [`crate::client`] and the fixtures feed it. Written from the contract (3.1 to 3.5, 9.6) and never
//! from the worker's code, so that a mistake on one side shows. Where the contract is silent it takes the harder
//! verdict. It judges messages, it does not play a broker: a negative acknowledgement is told by what becomes of
//! the message in the end.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

/// How long the router remembers that it has seen an answer.
const IDEMPOTENCY_TTL: Duration = Duration::from_secs(3600);
/// The router's word for a value it does not have.
const UNDEFINED: &str = "undefined";

/// Name and value of a header.
pub type Header = (String, String);

/// Code under which the router dead-letters an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DlqCode {
    /// Not a JSON object.
    SchemaValidationFailed,
    /// The version is missing or another.
    VersionUnsupported,
    /// Tenant, trace, run, flow, step or idempotency key break their rules.
    CorrelationFieldsInvalid,
}

/// What becomes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Processed; a result also yields a usage event.
    Accepted,
    /// Processed, but the usage event's type is `"undefined"`: `job` is no object, or has no type.
    AcceptedUndefinedEventType,
    /// Put aside and acknowledged.
    Dlq(DlqCode),
    /// The validator itself failed: refused on each delivery, then acknowledged. Lost.
    NakLost,
    /// Marked as seen, then refused; the next delivery counts as a duplicate. Lost.
    NakThenDuplicate,
    /// Neither acknowledged nor refused: delivered again until the limit. Lost.
    Stuck,
    /// Not the first answer for this assignment: acknowledged and dropped.
    DuplicateDropped,
    /// The consumer crashes after the mark was set. Lost.
    CrashAfterMark,
    /// The usage event is sent, then the consumer crashes; the next delivery counts as a duplicate.
    CrashAfterUsage,
}

impl Verdict {
    /// The name that fixtures use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::AcceptedUndefinedEventType => "accepted_undefined_event_type",
            Self::Dlq(DlqCode::SchemaValidationFailed) => "dlq:SCHEMA_VALIDATION_FAILED",
            Self::Dlq(DlqCode::VersionUnsupported) => "dlq:VERSION_UNSUPPORTED",
            Self::Dlq(DlqCode::CorrelationFieldsInvalid) => "dlq:CORRELATION_FIELDS_INVALID",
            Self::NakLost => "nak_lost",
            Self::NakThenDuplicate => "nak_then_duplicate",
            Self::Stuck => "stuck",
            Self::DuplicateDropped => "duplicate_dropped",
            Self::CrashAfterMark => "crash_after_mark",
            Self::CrashAfterUsage => "crash_after_usage",
        }
    }
}

/// What the router's circuit breaker makes of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BreakerCount {
    /// For the provider.
    Success,
    /// Against the provider.
    Failure,
    /// Neither.
    Ignored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Ack,
    Result,
}

/// The intake of one router, with its memory of answers seen.
#[derive(Debug, Default)]
pub struct RouterIntake {
    now: Duration,
    seen: HashMap<(Kind, String), Duration>,
    allowed_tenants: Option<Vec<String>>,
    usage: Vec<Value>,
}

impl RouterIntake {
    /// A router that has seen nothing and serves every tenant.
    pub fn new() -> Self {
        Self::default()
    }

    /// A router that serves these tenants only.
    #[must_use]
    pub fn with_allowed_tenants(tenants: &[&str]) -> Self {
        Self {
            allowed_tenants: Some(tenants.iter().map(|&tenant| tenant.to_owned()).collect()),
            ..Self::default()
        }
    }

    /// Lets time pass for its memory.
    pub fn advance(&mut self, by: Duration) {
        self.now += by;
    }

    /// Usage events sent so far, one per processed result (contract 3.5).
    pub fn usage(&self) -> &[Value] {
        &self.usage
    }

    /// What becomes of a message on the result subject.
    pub fn result(&mut self, headers: &[Header], payload: &[u8]) -> Verdict {
        self.consume(Kind::Result, headers, payload)
    }

    /// What becomes of a message on the acknowledgement subject.
    pub fn ack(&mut self, headers: &[Header], payload: &[u8]) -> Verdict {
        self.consume(Kind::Ack, headers, payload)
    }

    fn consume(&mut self, kind: Kind, headers: &[Header], payload: &[u8]) -> Verdict {
        let message = match validate(kind, headers, payload) {
            Ok(message) => message,
            Err(verdict) => return verdict,
        };
        match self.accept(kind, headers, &message) {
            Ok(()) if kind == Kind::Ack => Verdict::Accepted,
            Ok(()) => self.account(&message),
            Err(verdict) => verdict,
        }
    }

    /// The consumer's checks, up to the point where the answer takes effect.
    fn accept(
        &mut self,
        kind: Kind,
        headers: &[Header],
        message: &Map<String, Value>,
    ) -> Result<(), Verdict> {
        let assignment_id = message.get("assignment_id");
        let request_id = message.get("request_id");
        let statuses: &[&str] = match kind {
            Kind::Ack => &["accepted", "rejected", "error"],
            Kind::Result => &["success", "error", "timeout", "cancelled"],
        };
        let named = assignment_id.is_some() || (kind == Kind::Result && request_id.is_some());
        let status = message.get("status").and_then(Value::as_str);
        if !named || !status.is_some_and(|status| statuses.contains(&status)) {
            return Err(Verdict::Stuck);
        }
        // An id of another type is as good a key as any other; it is what follows that crashes.
        let key = assignment_id
            .or(request_id)
            .map(Value::to_string)
            .unwrap_or_default();
        let earlier = self.seen.get(&(kind, key.clone())).copied();
        if earlier.is_some_and(|at| self.now - at < IDEMPOTENCY_TTL) {
            return Err(Verdict::DuplicateDropped);
        }
        self.seen.insert((kind, key), self.now);

        let is_text = |id: Option<&Value>| id.is_none_or(Value::is_string);
        if !is_text(assignment_id) || !is_text(request_id) {
            return Err(Verdict::CrashAfterMark);
        }
        let has_header_id = header(headers, "nats-msg-id")
            .or(header(headers, "Nats-Msg-Id"))
            .is_some();
        if !has_header_id && !is_text(message.get("msg_id")) {
            return Err(Verdict::CrashAfterMark);
        }
        let tenant = header(headers, "tenant_id").or(message.get("tenant_id").and_then(Value::as_str));
        let served = |tenant: &str| {
            let listed = |list: &Vec<String>| list.iter().any(|allowed| allowed == tenant);
            !tenant.is_empty() && self.allowed_tenants.as_ref().is_none_or(listed)
        };
        if !tenant.is_some_and(served) {
            return Err(Verdict::NakThenDuplicate);
        }
        Ok(())
    }

    /// Sends the usage event and updates the breaker.
    fn account(&mut self, message: &Map<String, Value>) -> Verdict {
        let or_undefined = |key: &str| message.get(key).cloned().unwrap_or_else(|| UNDEFINED.into());
        let event_type = message
            .get("job")
            .and_then(|job| job.get("type"))
            .filter(|job_type| job_type.is_string());
        self.usage.push(json!({
            "version": "1",
            "tenant_id": or_undefined("tenant_id"),
            "provider_id": or_undefined("provider_id"),
            "event_type": event_type.cloned().unwrap_or_else(|| UNDEFINED.into()),
            "latency_ms": or_undefined("latency_ms"),
            "cost": or_undefined("cost"),
            "status": or_undefined("status"),
            "trace_id": or_undefined("trace_id"),
            "timestamp": or_undefined("timestamp"),
            "assignment_id": or_undefined("assignment_id"),
            "request_id": or_undefined("request_id"),
        }));
        if message
            .get("provider_id")
            .is_some_and(|provider| !provider.is_string())
        {
            return Verdict::CrashAfterUsage;
        }
        match event_type {
            Some(_) => Verdict::Accepted,
            None => Verdict::AcceptedUndefinedEventType,
        }
    }
}

/// The validator: it looks at the payload only, but for the version.
fn validate(kind: Kind, headers: &[Header], payload: &[u8]) -> Result<Map<String, Value>, Verdict> {
    let Ok(Value::Object(message)) = serde_json::from_slice(payload) else {
        return Err(Verdict::Dlq(DlqCode::SchemaValidationFailed));
    };
    let by_subject = match kind {
        Kind::Ack => Some("1"),
        Kind::Result => None,
    };
    let version = match (header(headers, "version"), message.get("version")) {
        (Some(version), _) => Some(version),
        (None, Some(Value::String(version))) => Some(version.as_str()),
        (None, Some(_)) => return Err(Verdict::NakLost),
        (None, None) => by_subject,
    };
    if version != Some("1") {
        return Err(Verdict::Dlq(DlqCode::VersionUnsupported));
    }
    let invalid = Err(Verdict::Dlq(DlqCode::CorrelationFieldsInvalid));
    match message.get("tenant_id") {
        None => return invalid,
        Some(Value::String(tenant)) if tenant.is_empty() => return invalid,
        // Another type passes here and fails in the consumer.
        Some(_) => {}
    }
    let steps = ["run_id", "flow_id", "step_id"].map(|key| message.get(key));
    let known = steps.iter().flatten().count();
    if known != 0 && known != steps.len() {
        return invalid;
    }
    let holds =
        |value: Option<&Value>, rule: fn(&str) -> bool| value.is_none_or(|v| v.as_str().is_some_and(rule));
    let step_ids_hold = steps
        .into_iter()
        .all(|id| holds(id, |id| is_uuid_v4(id) || is_ulid(id)));
    let trace_holds = holds(message.get("trace_id"), |id| is_hex(id, 32) || is_uuid_v4(id));
    let key_holds = holds(message.get("idempotency_key"), |key| {
        (1..=256).contains(&key.len())
    });
    if !(step_ids_hold && trace_holds && key_holds) {
        return invalid;
    }
    Ok(message)
}

/// The router looks headers up by their exact, lower-case names.
fn header<'a>(headers: &'a [Header], name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.as_str())
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_uuid_v4(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').collect();
    parts.len() == 5
        && parts
            .iter()
            .zip([8, 4, 4, 4, 12])
            .all(|(part, digits)| is_hex(part, digits))
        && parts[2].starts_with('4')
        && parts[3].starts_with(['8', '9', 'a', 'b', 'A', 'B'])
}

fn is_ulid(text: &str) -> bool {
    const CROCKFORD: &str = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    text.len() == 26 && text.chars().all(|c| CROCKFORD.contains(c))
}

/// What the breaker makes of a result that the router has processed (contract 3.4). Without a provider nothing counts.
pub fn breaker_counts(payload: &[u8]) -> BreakerCount {
    let Ok(Value::Object(result)) = serde_json::from_slice(payload) else {
        return BreakerCount::Ignored;
    };
    let text = |key: &str| result.get(key).and_then(Value::as_str).unwrap_or_default();
    if text("provider_id").is_empty() {
        return BreakerCount::Ignored;
    }
    let blamed = || {
        let codes = [
            "TIMEOUT",
            "CONNECTION_ERROR",
            "PROVIDER_UNAVAILABLE",
            "5XX",
            "HTTP_5XX",
            "SERVER_ERROR",
        ];
        let types = [
            "timeout",
            "connection_error",
            "provider_unavailable",
            "5xx",
            "server_error",
        ];
        let words = ["timeout", "connection", "5", "unavailable"];
        codes.contains(&text("error_code"))
            || types.contains(&text("error_type"))
            || words.iter().any(|word| text("error_message").contains(word))
    };
    match text("status") {
        "success" => BreakerCount::Success,
        "timeout" => BreakerCount::Failure,
        "error" if blamed() => BreakerCount::Failure,
        _ => BreakerCount::Ignored,
    }
}

/// Rules for the headers of a result that the router only counts when broken (contract 1.5). Empty headers break none.
pub fn header_violations(headers: &[Header]) -> Vec<&'static str> {
    if headers.is_empty() {
        return Vec::new();
    }
    let given = |name: &str| header(headers, name).is_some_and(|value| !value.is_empty());
    let rules = [
        ("trace_id", given("trace_id")),
        ("tenant_id", given("tenant_id")),
        ("version", header(headers, "version") == Some("1")),
        ("nats-msg-id", given("nats-msg-id") || given("Nats-Msg-Id")),
    ];
    rules
        .into_iter()
        .filter(|(_, holds)| !holds)
        .map(|(name, _)| name)
        .collect()
}

#[cfg(test)]
mod tests;
