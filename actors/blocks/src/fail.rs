//! `fail`: ends with the failure asked for. For rehearsing alerts, dashboards and retry policies.
//!
//! Neighbours: [`crate::build`] builds it. Never cancels: the two cancellation codes belong to the pipeline.

use std::sync::Arc;

use caf_protocol::block::{
    Block, BlockContext, BlockFuture, BlockSpec, Inputs, ResourceClass, RunMode, Task,
};
use caf_protocol::error_code::{Category, ErrorCode};
use caf_protocol::outcome::Failure;
use schemars::JsonSchema;
use serde::Serialize;

use crate::inputs::{Fields, invalid_input};

/// Longest message in bytes: it travels in every log line and result.
const MAX_MESSAGE_BYTES: usize = 1_024;

/// Inputs of `fail`.
#[derive(JsonSchema, Serialize)]
struct FailInputs {
    /// Code to end with: any but the cancellation codes.
    error_code: ErrorCode,
    /// Message to end with, at most 1024 bytes.
    message: Option<String>,
}

/// `fail` has no outputs.
#[derive(JsonSchema, Serialize)]
struct FailOutputs {}

/// The block.
pub(crate) struct Fail {
    spec: BlockSpec,
}

impl Fail {
    pub(crate) fn new() -> Self {
        Self {
            spec: BlockSpec {
                job_types: &["fail"],
                class: ResourceClass::Cpu,
                repeatable: true,
                inputs: schemars::schema_for!(FailInputs),
                outputs: schemars::schema_for!(FailOutputs),
            },
        }
    }
}

impl Block for Fail {
    fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    fn prepare(&self, inputs: Inputs) -> Result<Arc<dyn Task>, Failure> {
        let fields = Fields(&inputs);
        let asked = fields.required_text(&["error_code"])?;
        let code = ErrorCode::ALL
            .into_iter()
            .find(|code| code.as_str() == asked && code.category() != Category::Cancellation)
            .ok_or_else(|| invalid_input("error_code", "must be an error code, and not of a cancellation"))?;
        let message = fields.text(&["message"])?.unwrap_or("failed as asked");
        if message.len() > MAX_MESSAGE_BYTES {
            return Err(invalid_input("message", "must be at most 1024 bytes"));
        }
        Ok(Arc::new(FailTask(Failure::new(code, message))))
    }
}

struct FailTask(Failure);

impl Task for FailTask {
    fn mode(&self) -> RunMode {
        RunMode::Light
    }

    fn run(self: Arc<Self>, _context: BlockContext) -> BlockFuture {
        Box::pin(async move { Err(self.0.clone()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{context, inputs, run};
    use serde_json::json;

    #[test]
    fn it_ends_with_any_code_but_those_of_a_cancellation() {
        for code in ErrorCode::ALL {
            let prepared =
                Fail::new().prepare(inputs(json!({"error_code": code.as_str(), "message": "drill"})));
            if code.category() == Category::Cancellation {
                assert_eq!(prepared.err().expect("is refused").code, ErrorCode::InvalidInput);
            } else {
                let ended = run(prepared.expect("is accepted"), context());
                assert_eq!(ended, Err(Failure::new(code, "drill")));
            }
        }
    }

    #[test]
    fn an_unknown_code_is_refused() {
        for (given, code) in [
            (json!({}), ErrorCode::MissingRequiredField),
            (json!({"error_code": "NONE"}), ErrorCode::InvalidInput),
            (json!({"error_code": "http_error"}), ErrorCode::InvalidInput),
            (
                json!({"error_code": "HTTP_ERROR", "message": 1}),
                ErrorCode::InvalidFormat,
            ),
            (
                json!({"error_code": "HTTP_ERROR", "message": "x".repeat(1_025)}),
                ErrorCode::InvalidInput,
            ),
        ] {
            let failure = Fail::new()
                .prepare(inputs(given.clone()))
                .err()
                .expect("is refused");
            assert_eq!(failure.code, code, "{given}");
        }
    }
}
