//! `chat`, `text.generate` and its aliases, and `embedding`: one call of a model, at the provider that the router chose.
//!
//! Neighbours: [`crate::build`] builds the three blocks. In the order of a call: `provider` finds who is meant by the
//! assignment's `executor.provider_id`, `request` reads the inputs, `call` takes a turn (`pace`), sends by `http::direct` and
//! receives (`sse`, `answer`, `refusal`). While no provider is in the settings the job types are unknown. Never retries,
//! never chooses a provider, and never says a word of prompts or answers to anybody but the job.

mod answer;
mod call;
mod pace;
mod provider;
mod refusal;
mod request;
mod sse;

use std::sync::{Arc, Mutex, PoisonError};

use caf_protocol::block::{
    Block, BlockContext, BlockFuture, BlockSpec, Called, Inputs, ResourceClass, RunMode, Task,
};
use caf_protocol::endpoint::{Endpoint, EndpointKind, Sign};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::model::Cost;
use caf_protocol::model_call::ModelTarget;
use caf_protocol::outcome::Failure;
use caf_protocol::secret::vault::Vault;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::Value;
use url::Url;

use self::provider::Provider;
pub use self::provider::Providers;
use self::request::Ask;
use crate::http::Direct;
use crate::watch::until_stopped;

/// The block type that secrets are asked for with.
pub(crate) const BLOCK_TYPE: &str = "model.call";

/// Inputs of `chat`, `text.generate`, `text.completion`, `completion` and `ai.generate`: exactly one of `messages`, `prompt`
/// and `text`, and parameters as the API knows them. Other fields are refused.
#[derive(JsonSchema, Serialize)]
struct ChatInputs {
    /// Messages with `role` and `content`, as the API takes them; passed on as they are.
    messages: Option<Vec<Value>>,
    /// Text of a single message.
    prompt: Option<String>,
    /// The same.
    text: Option<String>,
    /// Who says that; `user` without it.
    role: Option<String>,
    /// A message of the system before all others.
    system: Option<String>,
    /// Must be the model of the provider, if it is there.
    model: Option<String>,
    /// Must be 1, if it is there.
    n: Option<u32>,
    /// Most tokens of the answer.
    max_tokens: Option<u64>,
    /// The same, as newer models want it.
    max_completion_tokens: Option<u64>,
    /// Passed on, as all that follow.
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    min_p: Option<f64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    repetition_penalty: Option<f64>,
    logit_bias: Option<serde_json::Map<String, Value>>,
    seed: Option<i64>,
    /// A text or several.
    stop: Option<Value>,
    tools: Option<Vec<Value>>,
    /// A word or an object.
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    response_format: Option<serde_json::Map<String, Value>>,
    reasoning_effort: Option<String>,
    service_tier: Option<String>,
    prompt_cache_key: Option<String>,
    safety_identifier: Option<String>,
    user: Option<String>,
    /// The caller's own; not passed on.
    metadata: Option<serde_json::Map<String, Value>>,
    /// Shortens the deadline of the job; read by the pipeline.
    timeout_ms: Option<u64>,
}

/// Inputs of `embedding`.
#[derive(JsonSchema, Serialize)]
struct EmbeddingInputs {
    /// A text, or 1 to 2048 of them.
    input: Value,
    /// Must be the model of the provider, if it is there.
    model: Option<String>,
    /// Must be `float`, if it is there.
    encoding_format: Option<String>,
    /// Length of the embeddings; passed on.
    dimensions: Option<u64>,
    /// Passed on.
    user: Option<String>,
    /// The caller's own; not passed on.
    metadata: Option<serde_json::Map<String, Value>>,
    /// Shortens the deadline of the job; read by the pipeline.
    timeout_ms: Option<u64>,
}

/// Outputs of `chat`.
#[derive(JsonSchema, Serialize)]
struct ChatOutputs {
    /// The answer: `role`, `content` (a text, or null), and `tool_calls` and `refusal` where there are any.
    message: serde_json::Map<String, Value>,
    /// Why the model stopped: `stop`, `length`, `tool_calls`, `content_filter`, or another word of the provider's.
    finish_reason: String,
    /// Name of the model, as the provider says it.
    model: String,
    /// What was counted.
    usage: UsageOutputs,
}

/// Outputs of `text.generate` and its aliases.
#[derive(JsonSchema, Serialize)]
struct TextOutputs {
    /// The answer.
    text: String,
    /// Calls of tools, where the model answers with any.
    tool_calls: Option<Vec<Value>>,
    /// Why the model stopped: `stop`, `length`, `tool_calls`, `content_filter`, or another word of the provider's.
    finish_reason: String,
    /// Name of the model, as the provider says it.
    model: String,
    /// What was counted.
    usage: UsageOutputs,
}

/// Outputs of `embedding`.
#[derive(JsonSchema, Serialize)]
struct EmbeddingOutputs {
    /// One for each text, in their order.
    embeddings: Vec<Vec<f64>>,
    /// Name of the model, as the provider says it.
    model: String,
    /// What was counted.
    usage: UsageOutputs,
}

/// Tokens, as the provider counts them; absent where it does not say.
#[derive(JsonSchema, Serialize)]
struct UsageOutputs {
    /// Of the prompt.
    input_tokens: Option<u64>,
    /// Of the answer.
    output_tokens: Option<u64>,
}

/// What is asked for, and what comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A message.
    Chat,
    /// A text.
    Text,
    /// Vectors.
    Embedding,
}

/// What all calls share.
pub(crate) struct Shared {
    providers: Providers,
    direct: Direct,
    vault: Vault,
}

/// A block that does not know yet who is to be called.
pub(crate) struct Model {
    spec: BlockSpec,
    shape: Shape,
    shared: Arc<Shared>,
}

impl Shared {
    pub(crate) fn new(providers: Providers, direct: Direct, vault: Vault) -> Arc<Self> {
        Arc::new(Self {
            providers,
            direct,
            vault,
        })
    }
}

fn spec(job_types: &'static [&'static str], inputs: Schema, outputs: Schema) -> BlockSpec {
    BlockSpec {
        job_types,
        class: ResourceClass::Io,
        // A second call costs a second time and changes nothing: better than to lose the job.
        repeatable: true,
        inputs,
        outputs,
    }
}

impl Model {
    /// `chat`.
    pub(crate) fn chat(shared: &Arc<Shared>) -> Self {
        let (inputs, outputs) = (
            schemars::schema_for!(ChatInputs),
            schemars::schema_for!(ChatOutputs),
        );
        Self {
            spec: spec(&["chat"], inputs, outputs),
            shape: Shape::Chat,
            shared: Arc::clone(shared),
        }
    }

    /// `text.generate` and its aliases.
    pub(crate) fn text(shared: &Arc<Shared>) -> Self {
        let types = &["text.generate", "text.completion", "completion", "ai.generate"];
        let (inputs, outputs) = (
            schemars::schema_for!(ChatInputs),
            schemars::schema_for!(TextOutputs),
        );
        Self {
            spec: spec(types, inputs, outputs),
            shape: Shape::Text,
            shared: Arc::clone(shared),
        }
    }

    /// `embedding`.
    pub(crate) fn embedding(shared: &Arc<Shared>) -> Self {
        let (inputs, outputs) = (
            schemars::schema_for!(EmbeddingInputs),
            schemars::schema_for!(EmbeddingOutputs),
        );
        Self {
            spec: spec(&["embedding"], inputs, outputs),
            shape: Shape::Embedding,
            shared: Arc::clone(shared),
        }
    }
}

impl Block for Model {
    fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    fn is_offered(&self) -> bool {
        !self.shared.providers.are_none()
    }

    fn chosen(&self, called: &Called<'_>) -> Result<Option<Arc<dyn Block>>, Failure> {
        let id = called.provider_id.unwrap_or_default();
        let Some(provider) = self.shared.providers.find(id) else {
            return Err(unknown_provider());
        };
        let mut spec = self.spec.clone();
        spec.class = provider.settings.pool;
        Ok(Some(Arc::new(At {
            spec,
            shape: self.shape,
            provider,
            provider_id: id.into(),
            shared: Arc::clone(&self.shared),
        })))
    }

    fn prepare(&self, _: Inputs) -> Result<Arc<dyn Task>, Failure> {
        Err(unknown_provider())
    }
}

/// The router is meant to hold it against the provider: another may be there for the same job.
fn unknown_provider() -> Failure {
    let rule = "is no provider of this worker's settings";
    Failure::of_field(ErrorCode::ResourceUnavailable, "executor.provider_id", rule).saying(Sign::Unknown)
}

/// A block that calls one provider, for the assignments that name it.
struct At {
    spec: BlockSpec,
    shape: Shape,
    provider: Arc<Provider>,
    provider_id: Arc<str>,
    shared: Arc<Shared>,
}

impl Block for At {
    fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    fn prepare(&self, inputs: Inputs) -> Result<Arc<dyn Task>, Failure> {
        let Some(model) = self.provider.model(&self.provider_id) else {
            let rule = "must name a model after its first \":\"";
            return Err(Failure::of_field(
                ErrorCode::InvalidInput,
                "executor.provider_id",
                rule,
            ));
        };
        let ask = Ask::from_inputs(self.shape, &inputs, model)?;
        Ok(Arc::new(ModelTask {
            shape: self.shape,
            model: model.into(),
            provider: Arc::clone(&self.provider),
            provider_id: Arc::clone(&self.provider_id),
            shared: Arc::clone(&self.shared),
            ask,
            cost: Mutex::default(),
        }))
    }
}

struct ModelTask {
    shape: Shape,
    model: Arc<str>,
    provider: Arc<Provider>,
    provider_id: Arc<str>,
    shared: Arc<Shared>,
    ask: Ask,
    /// Of all attempts so far.
    cost: Mutex<Cost>,
}

impl ModelTask {
    fn streams(&self) -> bool {
        self.provider.settings.stream && self.shape != Shape::Embedding
    }

    fn url(&self) -> &Url {
        match self.shape {
            Shape::Chat | Shape::Text => &self.provider.chat,
            Shape::Embedding => &self.provider.embeddings,
        }
    }

    fn spend(&self, cost: Cost) {
        let mut all = self.cost.lock().unwrap_or_else(PoisonError::into_inner);
        *all = all.and(cost);
    }
}

impl Task for ModelTask {
    fn mode(&self) -> RunMode {
        RunMode::Async
    }

    fn endpoint(&self) -> Option<Endpoint> {
        let origin = self.url().origin().ascii_serialization();
        Some(Endpoint::new(EndpointKind::Http, &origin))
    }

    fn model(&self) -> Option<ModelTarget> {
        Some(ModelTarget {
            provider_id: Arc::clone(&self.provider_id),
            listed_as: Arc::clone(&self.provider.name),
            model: Arc::clone(&self.model),
        })
    }

    fn cost(&self) -> Cost {
        *self.cost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(self: Arc<Self>, context: BlockContext) -> BlockFuture {
        Box::pin(async move {
            let outcome = until_stopped(&context, call::run(&self, &context)).await;
            outcome.map_err(Failure::minding_advice)
        })
    }
}

#[cfg(test)]
mod tests;
