//! `echo`: outputs are the inputs. For smoke and load tests of everything around a block.
//!
//! Neighbours: [`crate::build`] builds it. Never waits, never fails.

use std::sync::Arc;

use caf_protocol::block::{
    Block, BlockContext, BlockFuture, BlockSpec, Inputs, ResourceClass, RunMode, Task,
};
use caf_protocol::outcome::Failure;
use serde_json::{Map, Value};

/// The block.
pub(crate) struct Echo {
    spec: BlockSpec,
}

impl Echo {
    pub(crate) fn new() -> Self {
        Self {
            spec: BlockSpec {
                job_types: &["echo"],
                class: ResourceClass::Cpu,
                repeatable: true,
                inputs: schemars::schema_for!(Map<String, Value>),
                outputs: schemars::schema_for!(Map<String, Value>),
            },
        }
    }
}

impl Block for Echo {
    fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    fn prepare(&self, inputs: Inputs) -> Result<Arc<dyn Task>, Failure> {
        Ok(Arc::new(EchoTask(inputs)))
    }
}

struct EchoTask(Inputs);

impl Task for EchoTask {
    fn mode(&self) -> RunMode {
        RunMode::Light
    }

    fn run(self: Arc<Self>, _context: BlockContext) -> BlockFuture {
        Box::pin(async move { Ok(self.0.clone()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{context, inputs, run};
    use serde_json::json;

    #[test]
    fn outputs_are_the_inputs_on_every_attempt() {
        let given = inputs(json!({"a": [1, null], "b": {"c": "d"}}));
        let task = Echo::new().prepare(given.clone()).expect("is accepted");
        for _ in 0..2 {
            assert_eq!(run(task.clone(), context()), Ok(given.clone()));
        }
    }
}
