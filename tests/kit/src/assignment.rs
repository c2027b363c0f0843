//! Assignments as the router builds them (contract 2.1).
//!
//! Neighbours: [`crate::client`] publishes them. Shapes that other senders use are fixtures, see [`crate::fixtures`].

use serde_json::{Map, Value, json};

/// Builds an assignment: what is not set looks as the router would send it.
#[derive(Debug, Clone)]
pub struct AssignmentBuilder {
    value: Value,
}

impl AssignmentBuilder {
    /// An assignment of this job type for tenant `acme`, with ids that nobody else uses.
    pub fn new(job_type: &str, payload: Value) -> Self {
        let id = || uuid::Uuid::new_v4().to_string();
        let value = json!({
            "version": "1",
            "assignment_id": id(),
            "request_id": id(),
            "tenant_id": "acme",
            "executor": {"provider_id": "prov-a", "channel": "nats"},
            "job": {"type": job_type, "payload": payload},
            "options": {
                "priority": 50,
                "deadline_ms": 30_000,
                "retry": {"max_attempts": 2, "backoff_ms": 200},
            },
            "correlation": {"trace_id": uuid::Uuid::new_v4().simple().to_string()},
            "decision": {
                "provider_id": "prov-a",
                "priority": 50,
                "expected_latency_ms": 0,
                "expected_cost": 0.0,
                "reason": "weighted",
                "metadata": {"tenant_id": "acme"},
            },
            "metadata": {},
        });
        Self { value }
    }

    /// A job that returns its inputs.
    pub fn echo() -> Self {
        Self::new("echo", json!({"greeting": "hello"}))
    }

    /// A job that does nothing for a while.
    pub fn sleep(duration_ms: u64) -> Self {
        Self::new("sleep", json!({"duration_ms": duration_ms}))
    }

    /// Names it.
    #[must_use]
    pub fn id(self, assignment_id: impl Into<String>) -> Self {
        self.set("assignment_id", assignment_id.into().into())
    }

    /// Whose job it is; the decision's copy follows.
    #[must_use]
    pub fn tenant(mut self, tenant_id: &str) -> Self {
        self.value["decision"]["metadata"]["tenant_id"] = tenant_id.into();
        self.set("tenant_id", tenant_id.into())
    }

    /// Relative deadline in milliseconds.
    #[must_use]
    pub fn deadline_ms(mut self, deadline_ms: u64) -> Self {
        self.value["options"]["deadline_ms"] = deadline_ms.into();
        self
    }

    /// Total calls.
    #[must_use]
    pub fn max_attempts(mut self, max_attempts: u32) -> Self {
        self.value["options"]["retry"]["max_attempts"] = max_attempts.into();
        self
    }

    /// Run, flow and step id at top level.
    #[must_use]
    pub fn run_flow_step(self, run_id: &str, flow_id: &str, step_id: &str) -> Self {
        self.set("run_id", run_id.into())
            .set("flow_id", flow_id.into())
            .set("step_id", step_id.into())
    }

    /// Sets any key of the top level.
    #[must_use]
    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.value[key] = value;
        self
    }

    /// Takes a key of the top level away.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        let _ = self
            .value
            .as_object_mut()
            .map(|object: &mut Map<_, _>| object.remove(key));
        self
    }

    /// The id it has; empty when it was set to something that is not a string.
    pub fn assignment_id(&self) -> &str {
        self.value["assignment_id"].as_str().unwrap_or_default()
    }

    /// The assignment.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The assignment as it travels.
    pub fn bytes(&self) -> Vec<u8> {
        self.value.to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_assignments_never_share_an_id() {
        assert_ne!(
            AssignmentBuilder::echo().assignment_id(),
            AssignmentBuilder::echo().assignment_id()
        );
    }

    #[test]
    fn what_is_set_is_sent() {
        let bytes = AssignmentBuilder::sleep(5)
            .id("a-1")
            .tenant("t")
            .deadline_ms(7)
            .max_attempts(3)
            .without("metadata")
            .bytes();
        let sent: Value = serde_json::from_slice(&bytes).expect("is JSON");
        assert_eq!(
            (&sent["assignment_id"], &sent["tenant_id"]),
            (&json!("a-1"), &json!("t"))
        );
        assert_eq!(sent["decision"]["metadata"]["tenant_id"], "t");
        assert_eq!(
            (
                &sent["options"]["deadline_ms"],
                &sent["options"]["retry"]["max_attempts"]
            ),
            (&json!(7), &json!(3))
        );
        assert_eq!(
            sent["job"],
            json!({"type": "sleep", "payload": {"duration_ms": 5}})
        );
        assert_eq!(sent.get("metadata"), None);
    }
}
