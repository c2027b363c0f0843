//! `sleep`: waits as long as it is told. For load tests and for rehearsing deadlines and cancellation.
//!
//! Neighbours: [`crate::build`] builds it. Never blocks its thread.

use std::sync::Arc;

use caf_protocol::block::{
    Block, BlockContext, BlockFuture, BlockSpec, Inputs, ResourceClass, RunMode, Task,
};
use caf_protocol::outcome::Failure;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, json};

use crate::inputs::Fields;
use crate::settings::ms;
use crate::watch::until_stopped;

/// Longest sleep in milliseconds: the longest deadline that a job can have.
const MAX_SLEEP_MS: u64 = 3_600_000;

/// Inputs of `sleep`.
#[derive(JsonSchema, Serialize)]
struct SleepInputs {
    /// How long to wait, in milliseconds; alias `ms`.
    #[schemars(range(min = 0, max = 3_600_000))]
    duration_ms: u64,
}

/// Outputs of `sleep`.
#[derive(JsonSchema, Serialize)]
struct SleepOutputs {
    /// How long it waited, in milliseconds.
    slept_ms: u64,
}

/// The block.
pub(crate) struct Sleep {
    spec: BlockSpec,
}

impl Sleep {
    pub(crate) fn new() -> Self {
        Self {
            spec: BlockSpec {
                job_types: &["sleep"],
                class: ResourceClass::Io,
                repeatable: true,
                inputs: schemars::schema_for!(SleepInputs),
                outputs: schemars::schema_for!(SleepOutputs),
            },
        }
    }
}

impl Block for Sleep {
    fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    fn prepare(&self, inputs: Inputs) -> Result<Arc<dyn Task>, Failure> {
        let duration_ms = Fields(&inputs)
            .whole(&["duration_ms", "ms"], 0..=MAX_SLEEP_MS)?
            .ok_or_else(|| Failure::missing("duration_ms"))?;
        Ok(Arc::new(SleepTask { duration_ms }))
    }
}

struct SleepTask {
    duration_ms: u64,
}

impl Task for SleepTask {
    fn mode(&self) -> RunMode {
        RunMode::Light
    }

    fn run(self: Arc<Self>, context: BlockContext) -> BlockFuture {
        Box::pin(async move {
            let nap = async {
                tokio::time::sleep(ms(self.duration_ms)).await;
                Ok(Map::from_iter([("slept_ms".to_owned(), json!(self.duration_ms))]))
            };
            until_stopped(&context, nap).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{block_on, context, inputs, run};
    use caf_protocol::error_code::ErrorCode;

    #[test]
    fn it_sleeps_as_long_as_it_is_told() {
        for given in [
            json!({"duration_ms": 30}),
            json!({"ms": "30"}),
            json!({"duration_ms": 30.0, "x": 1}),
        ] {
            let task = Sleep::new().prepare(inputs(given)).expect("is accepted");
            let begin = std::time::Instant::now();
            assert_eq!(run(task, context()), Ok(inputs(json!({"slept_ms": 30}))));
            assert!(begin.elapsed() >= ms(30));
        }
    }

    #[test]
    fn durations_that_are_not_whole_or_not_in_range_are_refused() {
        for (given, code) in [
            (json!({}), ErrorCode::MissingRequiredField),
            (json!({"duration_ms": null}), ErrorCode::MissingRequiredField),
            (json!({"duration_ms": -1}), ErrorCode::InvalidInput),
            (json!({"duration_ms": 1.5}), ErrorCode::InvalidInput),
            (json!({"duration_ms": 3_600_001}), ErrorCode::InvalidInput),
            (json!({"duration_ms": "soon"}), ErrorCode::InvalidFormat),
            (json!({"duration_ms": [1]}), ErrorCode::InvalidFormat),
        ] {
            let failure = Sleep::new()
                .prepare(inputs(given.clone()))
                .err()
                .expect("is refused");
            assert_eq!(failure.code, code, "{given}");
        }
    }

    #[test]
    fn cancelling_ends_it_early() {
        let task = Sleep::new()
            .prepare(inputs(json!({"ms": 3_600_000})))
            .expect("is accepted");
        let context = context();
        let cancel = context.cancel.clone();
        let result = block_on(async move {
            let running = task.run(context);
            cancel.cancel();
            running.await
        });
        assert_eq!(result.expect_err("is cancelled").code, ErrorCode::CancelledByUser);
    }
}
