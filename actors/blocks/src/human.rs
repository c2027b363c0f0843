//! `human.approval`: asks people, and is answered when somebody has decided (contract 6.7).
//!
//! Neighbours: [`crate::build`] builds it where it is switched on. Reads the question; the pipeline keeps it, and never runs
//! the task. Where questions cannot be kept the task is run, and says so: nobody is told that something was approved that
//! nobody has seen.

use std::sync::Arc;
use std::time::Duration;

use caf_protocol::approval::{
    MAX_APPROVERS, MAX_DESCRIPTION_BYTES, MAX_NAME_BYTES, MAX_TYPE_BYTES, Question,
};
use caf_protocol::block::{
    Block, BlockContext, BlockFuture, BlockSpec, Inputs, ResourceClass, RunMode, Task,
};
use caf_protocol::endpoint::Sign;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::ids::is_usable;
use caf_protocol::outcome::Failure;
use schemars::{Schema, json_schema};
use serde_json::Value;

use crate::inputs::{Fields, invalid_format, invalid_input};

/// How long a question waits that says nothing, in seconds, in the shape with `description`.
const DEFAULT_TIMEOUT_S: u64 = 3_600;
/// The same in the shape with `prompt`, in milliseconds.
const DEFAULT_TIMEOUT_MS: u64 = 60_000;
/// Longest wait that can be asked for, in seconds: a year. A setting of the node caps it.
const MAX_TIMEOUT_S: u64 = 366 * 24 * 3600;

/// The block.
pub(crate) struct HumanApproval {
    spec: BlockSpec,
}

impl HumanApproval {
    pub(crate) fn new() -> Self {
        Self {
            spec: BlockSpec {
                job_types: &["human.approval"],
                class: ResourceClass::Cpu,
                repeatable: true,
                inputs: inputs(),
                outputs: outputs(),
            },
        }
    }
}

fn inputs() -> Schema {
    json_schema!({
        "type": "object",
        "description": "One of two shapes: approval_type and description, or prompt. What a shape does not know is not allowed beside it.",
        "properties": {
            "approval_type": {"type": "string", "minLength": 1, "maxLength": MAX_TYPE_BYTES},
            "description": {"type": "string", "minLength": 1, "maxLength": MAX_DESCRIPTION_BYTES},
            "prompt": {"type": "string", "minLength": 1, "maxLength": MAX_DESCRIPTION_BYTES},
            "approvers": {"type": "array", "maxItems": MAX_APPROVERS, "items": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_BYTES}},
            "timeout_seconds": {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_S, "default": DEFAULT_TIMEOUT_S},
            "timeout_ms": {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_S * 1_000, "default": DEFAULT_TIMEOUT_MS}
        },
        "oneOf": [{"required": ["approval_type", "description"]}, {"required": ["prompt"]}]
    })
}

fn outputs() -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "approval_id": {"type": "string"},
            "decision": {"enum": ["approved", "rejected"]},
            "approved": {"type": "boolean"},
            "approver": {"type": "string"},
            "approved_by": {"type": "string"},
            "comment": {"type": "string"},
            "reason": {"type": "string"},
            "approved_at": {"type": "integer", "description": "When it was decided, in milliseconds since the Unix epoch."}
        },
        "required": ["approval_id", "decision", "approved", "approver", "approved_by", "comment", "reason", "approved_at"]
    })
}

impl Block for HumanApproval {
    fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    fn prepare(&self, inputs: Inputs) -> Result<Arc<dyn Task>, Failure> {
        Ok(Arc::new(Asking(read(&Fields(&inputs))?)))
    }
}

/// Reads either shape. Which one it is is said by `prompt`; fields of the other one beside it are a mistake that must not be
/// guessed at: who is asked, and for how long, may hang on it.
fn read(fields: &Fields<'_>) -> Result<Question, Failure> {
    let is_prompt = fields.value(&["prompt"]).is_some();
    let strange: &[&'static str] = if is_prompt {
        &["approval_type", "description", "timeout_seconds"]
    } else {
        &["timeout_ms"]
    };
    if let Some((name, _)) = strange.iter().find_map(|name| fields.value(&[*name])) {
        let rule = if is_prompt {
            "must not stand beside prompt"
        } else {
            "goes with prompt; beside description it is timeout_seconds"
        };
        return Err(invalid_input(name, rule));
    }
    let (name, approval_type, timeout) = if is_prompt {
        let ms = fields.whole(&["timeout_ms"], 1..=MAX_TIMEOUT_S * 1_000)?;
        let timeout = Duration::from_millis(ms.unwrap_or(DEFAULT_TIMEOUT_MS));
        ("prompt", None, timeout)
    } else {
        let kind = fields.required_text(&["approval_type"])?;
        if !is_usable(kind, MAX_TYPE_BYTES) {
            let rule = format!("must be 1 to {MAX_TYPE_BYTES} bytes without control characters");
            return Err(invalid_input("approval_type", &rule));
        }
        let s = fields.whole(&["timeout_seconds"], 1..=MAX_TIMEOUT_S)?;
        let timeout = Duration::from_secs(s.unwrap_or(DEFAULT_TIMEOUT_S));
        ("description", Some(kind.to_owned()), timeout)
    };
    let description = fields.required_text(&[name])?;
    if description.len() > MAX_DESCRIPTION_BYTES {
        let rule = format!("must be at most {MAX_DESCRIPTION_BYTES} bytes");
        return Err(invalid_input(name, &rule));
    }
    Ok(Question {
        approval_type,
        description: description.to_owned(),
        approvers: approvers(fields)?,
        timeout,
    })
}

/// An empty list is none; a list with something in it that is no name is refused, never shortened.
fn approvers(fields: &Fields<'_>) -> Result<Vec<String>, Failure> {
    let listed = fields.array(&["approvers"])?.unwrap_or_default();
    if listed.len() > MAX_APPROVERS {
        let rule = format!("must be at most {MAX_APPROVERS} names");
        return Err(invalid_input("approvers", &rule));
    }
    let mut names: Vec<String> = Vec::new();
    for name in listed {
        let Value::String(name) = name else {
            return Err(invalid_format("approvers", "must be a list of strings"));
        };
        if !is_usable(&name, MAX_NAME_BYTES) {
            let rule = format!("must be names of 1 to {MAX_NAME_BYTES} bytes without control characters");
            return Err(invalid_input("approvers", &rule));
        }
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// A question that was read.
struct Asking(Question);

impl Task for Asking {
    fn mode(&self) -> RunMode {
        RunMode::Async
    }

    fn question(&self) -> Option<&Question> {
        Some(&self.0)
    }

    fn run(self: Arc<Self>, _context: BlockContext) -> BlockFuture {
        let failure = Failure::new(
            ErrorCode::ResourceUnavailable,
            "nobody can be asked here: questions are kept where assignments come from a stream, claims are shared by the \
             fleet (idempotency.scope) and inputs are inline",
        );
        // Asking again at once does not help, and no provider is at fault.
        Box::pin(async move { Err(failure.saying(Sign::Nothing)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{context, inputs, run};
    use serde_json::json;

    fn question(value: serde_json::Value) -> Result<Question, Failure> {
        let inputs = inputs(value);
        read(&Fields(&inputs))
    }

    #[test]
    fn both_shapes_ask_the_same_question() {
        let asked = question(
            json!({"approval_type": "deploy", "description": "go?", "approvers": ["ann", "ann", "bob"]}),
        );
        let asked = asked.expect("is read");
        assert_eq!(asked.approval_type.as_deref(), Some("deploy"));
        assert_eq!(
            (&*asked.description, asked.timeout),
            ("go?", Duration::from_secs(3_600))
        );
        assert_eq!(asked.approvers, ["ann", "bob"]);
        let asked =
            question(json!({"prompt": "go?", "timeout_ms": "1500", "approvers": "[]"})).expect("is read");
        assert_eq!(
            (asked.approval_type, asked.timeout),
            (None, Duration::from_millis(1_500))
        );
        assert!(asked.approvers.is_empty());
        let asked = question(json!({"prompt": "go?"})).expect("is read");
        assert_eq!(asked.timeout, Duration::from_secs(60));
    }

    #[test]
    fn what_is_mixed_missing_or_too_long_is_refused_by_name() {
        let long = "x".repeat(MAX_DESCRIPTION_BYTES + 1);
        for (given, field) in [
            (json!({"prompt": "a", "description": "b"}), "description"),
            (json!({"prompt": "a", "approval_type": "b"}), "approval_type"),
            (json!({"prompt": "a", "timeout_seconds": 5}), "timeout_seconds"),
            (
                json!({"approval_type": "a", "description": "b", "timeout_ms": 5}),
                "timeout_ms",
            ),
            (json!({"description": "b"}), "approval_type"),
            (json!({"approval_type": "a"}), "description"),
            (json!({"prompt": ""}), "prompt"),
            (json!({"prompt": long}), "prompt"),
            (json!({"prompt": "a", "timeout_ms": 0}), "timeout_ms"),
            (json!({"prompt": "a", "approvers": ["ann", 5]}), "approvers"),
            (json!({"prompt": "a", "approvers": [""]}), "approvers"),
            (
                json!({"prompt": "a", "approvers": vec!["x"; MAX_APPROVERS + 1]}),
                "approvers",
            ),
            (json!({"prompt": "a", "approvers": "ann"}), "approvers"),
        ] {
            let failure = question(given.clone()).expect_err(field);
            assert_eq!(failure.details["field"], field, "{given}");
        }
    }

    #[test]
    fn where_nobody_can_be_asked_nothing_is_approved() {
        let task = HumanApproval::new().prepare(inputs(json!({"prompt": "go?"})));
        let failure = run(task.expect("is accepted"), context()).expect_err("nobody was asked");
        assert_eq!(failure.code, ErrorCode::ResourceUnavailable);
        assert!(!failure.blames_provider());
    }
}
