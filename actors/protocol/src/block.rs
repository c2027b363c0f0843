//! The contract of a block: the unit of work that the node executes.
//!
//! Neighbours: `caf-blocks` implements [`Block`]; intake calls [`Block::prepare`], the block worker runs the
//! [`Task`] that came of it. A block returns a value or a typed failure, never panics on input, never logs payloads.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::Instant;
pub use tokio_util::sync::CancellationToken;

use crate::approval::Question;
use crate::endpoint::Endpoint;
use crate::ids::Correlation;
use crate::limit::{Operation, OperationLimit};
use crate::model::Cost;
use crate::model_call::{ModelCall, ModelTarget};
use crate::outcome::Failure;

/// What a job brings: a JSON object. A value may also be in its string form; blocks accept both.
pub type Inputs = Map<String, Value>;
/// What a job yields: a JSON object.
pub type Outputs = Map<String, Value>;
/// A running attempt. Not `Send`: it stays on the thread that polls it.
pub type BlockFuture = LocalBoxFuture<'static, Result<Outputs, Failure>>;

/// Which pool a job belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ResourceClass {
    /// Computing.
    Cpu,
    /// Work on an accelerator.
    Gpu,
    /// Waiting for files and networks.
    Io,
}

impl ResourceClass {
    /// All classes, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Gpu, Self::Io];

    /// Lower-case name, as in settings, labels and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
            Self::Io => "io",
        }
    }

    /// The class with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == name)
    }
}

/// Where an attempt may be polled. Apart from the resource class: a cpu job may wait, an io job may block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunMode {
    /// Never blocks its thread and hardly computes, less than reading its message took: polled where the pipeline runs, which
    /// saves two hops between threads.
    Light,
    /// Never blocks its thread: polled on a shared event loop.
    Async,
    /// May block its thread: gets one of its own, which it keeps until it returns, also past its deadline.
    Thread,
}

/// What a block declares about itself.
#[derive(Debug, Clone)]
pub struct BlockSpec {
    /// Job types it runs; the first is its own name, the others are aliases.
    pub job_types: &'static [&'static str],
    /// Pool of its jobs unless the assignment names another.
    pub class: ResourceClass,
    /// Whether running twice leaves the world as running once does. Such jobs are handed back on shutdown.
    pub repeatable: bool,
    /// JSON Schema of the inputs.
    pub inputs: Schema,
    /// JSON Schema of the outputs.
    pub outputs: Schema,
}

/// What an assignment says, beside the inputs, of what is to run.
#[derive(Debug, Clone, Copy)]
pub struct Called<'a> {
    /// The job type, own name or alias.
    pub job_type: &'a str,
    /// `executor.provider_id`.
    pub provider_id: Option<&'a str>,
}

/// One kind of work.
pub trait Block: Send + Sync + 'static {
    /// What it declares about itself.
    fn spec(&self) -> &BlockSpec;

    /// Whether it can do anything at all, as the settings are now. While it cannot, its job types are unknown.
    fn is_offered(&self) -> bool {
        true
    }

    /// What runs this call in its place, where that depends on more than the job type.
    ///
    /// # Errors
    /// Why nothing does; the assignment is then rejected and never runs.
    fn chosen(&self, _: &Called<'_>) -> Result<Option<Arc<dyn Block>>, Failure> {
        Ok(None)
    }

    /// Inputs in which it resolves references to secrets (`{"$secret": "name"}`). The pipeline refuses one in any other.
    fn secret_inputs(&self) -> &'static [&'static str] {
        &[]
    }

    /// Turns inputs into a task, or says which field breaks which rule. Does no I/O and does not wait.
    ///
    /// # Errors
    /// A failure with a validation code (1xxx); the assignment is then rejected and never runs.
    fn prepare(&self, inputs: Inputs) -> Result<Arc<dyn Task>, Failure>;
}

/// Work with its inputs parsed, ready to run, more than once if need be.
pub trait Task: Send + Sync + 'static {
    /// Where its attempts may be polled.
    fn mode(&self) -> RunMode;

    /// How long one attempt may take, where the attempt is one operation with a limit. The pipeline gives up waiting
    /// when it has passed, also while a thread is stuck in one system call; the failure is
    /// [`OperationLimit::ends_the_job`].
    fn limit(&self) -> Option<OperationLimit> {
        None
    }

    /// Operations of which an attempt may need each once, in order. For metrics only.
    fn operations(&self) -> &'static [Operation] {
        &[]
    }

    /// What its attempts talk to, if they leave the process. Of an HTTP address no more than scheme, host and port: the rest
    /// may hold secrets anywhere.
    fn endpoint(&self) -> Option<Endpoint> {
        None
    }

    /// The model that its attempts call, if they do: each is then one span and one count of its own, by what the attempt
    /// writes into [`BlockContext::model_call`].
    fn model(&self) -> Option<ModelTarget> {
        None
    }

    /// What it asks people, if that is all it does. It is set aside then until they have answered, and never run; where
    /// questions cannot be kept, it is run, and says so.
    fn question(&self) -> Option<&Question> {
        None
    }

    /// Whether running twice leaves the world as running once does, where that depends on the inputs; nothing is what the
    /// block declares.
    fn is_repeatable(&self) -> Option<bool> {
        None
    }

    /// What its attempts have cost so far, those that failed too.
    fn cost(&self) -> Cost {
        Cost::default()
    }

    /// Runs one attempt. Dropping the future ends an [`RunMode::Async`] attempt; a [`RunMode::Thread`] attempt looks
    /// at [`BlockContext::cancel`] between its steps.
    fn run(self: Arc<Self>, context: BlockContext) -> BlockFuture;
}

/// What an attempt knows about its job.
#[derive(Debug, Clone)]
pub struct BlockContext {
    /// Whose job it is.
    pub tenant_id: String,
    /// The assignment.
    pub assignment_id: String,
    /// Ids to pass on to systems that the block talks to.
    pub correlation: Correlation,
    /// When the job as a whole must be over. Caps every inner limit.
    pub deadline: Instant,
    /// Number of this attempt, from 0.
    pub attempt: u32,
    /// Where it says what is known of the model that it calls.
    pub model_call: ModelCall,
    /// Fires when the job is to stop.
    pub cancel: CancellationToken,
}

impl BlockContext {
    /// The time an inner step may take: `limit`, or what is left until the deadline if that is less.
    pub fn cap(&self, limit: Duration) -> Duration {
        limit.min(self.deadline.saturating_duration_since(Instant::now()))
    }
}

/// All blocks of a node, by job type. Built by the node, given to the pipeline as an argument.
#[derive(Clone, Default)]
pub struct Registry {
    by_type: HashMap<&'static str, Arc<dyn Block>>,
}

impl Registry {
    /// Adds a block under each of its job types.
    ///
    /// # Panics
    /// When a job type is taken already: two blocks for one type is a mistake of the build, not of a message.
    #[must_use]
    pub fn with(mut self, block: Arc<dyn Block>) -> Self {
        for job_type in block.spec().job_types {
            let earlier = self.by_type.insert(job_type, Arc::clone(&block));
            assert!(earlier.is_none(), "job type {job_type} is registered twice");
        }
        self
    }

    /// The block for a job type, if it is offered.
    pub fn get(&self, job_type: &str) -> Option<&Arc<dyn Block>> {
        self.by_type.get(job_type).filter(|block| block.is_offered())
    }

    /// Every job type that is offered, sorted.
    pub fn job_types(&self) -> Vec<&'static str> {
        self.sorted(|block| block.is_offered())
    }

    /// Every job type that is, or may come to be offered while the node runs, sorted.
    pub fn all_job_types(&self) -> Vec<&'static str> {
        self.sorted(|_| true)
    }

    /// Every block, offered or not, once for each of its job types.
    pub fn blocks(&self) -> impl Iterator<Item = &Arc<dyn Block>> {
        self.by_type.values()
    }

    fn sorted(&self, is_in: impl Fn(&dyn Block) -> bool) -> Vec<&'static str> {
        let types = self.by_type.iter().filter(|(_, block)| is_in(&***block));
        let mut types: Vec<_> = types.map(|(name, _)| *name).collect();
        types.sort_unstable();
        types
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.job_types()).finish()
    }
}
