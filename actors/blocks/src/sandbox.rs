//! Sandbox mode (contract 6.9): jobs are rehearsed. Inputs are checked as always; then outputs are recorded or made-up
//! ones, marked with `sandbox: true`. No file, network or database is touched.
//!
//! Neighbours: [`crate::build`] says of each block what it plays and gives the pipeline a [`Rehearsal`] beside the real
//! blocks; the pipeline takes one or the other. `forbidden` says what is refused, `made` makes outputs up, `chance` draws
//! by a seed, `recordings` are read at the start. A block of this kind never holds a real task that reaches outside.

mod chance;
mod forbidden;
mod made;
mod recordings;
mod settings;

use std::sync::Arc;
use std::time::Duration;

use caf_protocol::block::{
    Block, BlockContext, BlockFuture, BlockSpec, Called, Inputs, Outputs, Registry, RunMode, Task,
};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::ids::sha256_hex;
use caf_protocol::limit::{Operation, OperationLimit};
use caf_protocol::outcome::Failure;
use caf_protocol::reference::{Fetch, FetchFuture, Fetchers, Location, Scheme};
use serde_json::{Value, json};

use self::chance::Chance;
use self::recordings::Recordings;
pub use self::settings::{SandboxFailures, SandboxSettings};
use crate::settings::SettingError;
use crate::watch::until_stopped;

/// The output that says that nothing was done.
const MARK: &str = "sandbox";

/// What is run, and who fetches inputs, in the sandbox.
#[derive(Debug, Clone, Default)]
pub struct Rehearsal {
    /// A stand-in for every block.
    pub registry: Registry,
    /// Fetchers that refuse whatever lies outside of the broker.
    pub fetchers: Fetchers,
}

/// What a block does in the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Play {
    /// The real thing: it touches nothing.
    AsItIs,
    /// An answer of a server.
    Http,
    /// A file written.
    Put,
    /// A file read.
    Get,
    /// A file removed.
    Delete,
    /// An answer of a database.
    Sql,
    /// A message of a model.
    Chat,
    /// A text of a model.
    Text,
    /// Embeddings of a model.
    Embedding,
    /// An answer of people.
    Human,
}

/// What all stand-ins share.
pub(crate) struct Stage {
    settings: SandboxSettings,
    recordings: Recordings,
}

impl Stage {
    /// Reads the recordings.
    pub(crate) fn new(settings: &SandboxSettings) -> Result<Arc<Self>, Vec<SettingError>> {
        let key = |name| ["worker", "sandbox", name];
        let broken: Vec<_> = settings
            .broken()
            .into_iter()
            .map(|(name, rule)| SettingError::new(&key(name), rule, "another value"))
            .collect();
        if !broken.is_empty() {
            return Err(broken);
        }
        let recordings = match &settings.recordings {
            None => Recordings::default(),
            Some(directory) => Recordings::read(directory).map_err(|rule| {
                let value = directory.display();
                vec![SettingError::new(&key("recordings"), rule, value)]
            })?,
        };
        Ok(Arc::new(Self {
            settings: settings.clone(),
            recordings,
        }))
    }

    /// A stand-in for each block.
    pub(crate) fn rehearsal(self: &Arc<Self>, blocks: &[(Arc<dyn Block>, Play)]) -> Rehearsal {
        let stand_in = |(block, play): &(Arc<dyn Block>, Play)| StandIn {
            spec: spec_of(block.spec()),
            real: Arc::clone(block),
            play: *play,
            stage: Arc::clone(self),
        };
        let registry = blocks.iter().fold(Registry::default(), |registry, block| {
            registry.with(Arc::new(stand_in(block)))
        });
        let fetchers = Fetchers::default()
            .with(Arc::new(Closed(Scheme::File)))
            .with(Arc::new(Closed(Scheme::Http)));
        Rehearsal { registry, fetchers }
    }
}

/// As the block declares itself, but for the mark; what does nothing can be done twice.
fn spec_of(real: &BlockSpec) -> BlockSpec {
    let mut spec = real.clone();
    spec.repeatable = true;
    if let Some(properties) = spec.outputs.get_mut("properties").and_then(Value::as_object_mut) {
        let mark = json!({"const": true, "description": "The job was only rehearsed."});
        properties.insert(MARK.to_owned(), mark);
    }
    spec
}

/// Stands in for a block.
struct StandIn {
    spec: BlockSpec,
    real: Arc<dyn Block>,
    play: Play,
    stage: Arc<Stage>,
}

impl Block for StandIn {
    fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    fn is_offered(&self) -> bool {
        self.real.is_offered()
    }

    fn chosen(&self, called: &Called<'_>) -> Result<Option<Arc<dyn Block>>, Failure> {
        let chosen = self.real.chosen(called)?;
        Ok(chosen.map(|real| -> Arc<dyn Block> {
            Arc::new(Self {
                spec: spec_of(real.spec()),
                real,
                play: self.play,
                stage: Arc::clone(&self.stage),
            })
        }))
    }

    fn secret_inputs(&self) -> &'static [&'static str] {
        self.real.secret_inputs()
    }

    fn prepare(&self, inputs: Inputs) -> Result<Arc<dyn Task>, Failure> {
        let script = match forbidden::of(self.play, &inputs) {
            Some(refusal) => Script::Refused(refusal),
            None => {
                let task = self.real.prepare(inputs.clone())?;
                match self.stage.recordings.find(self.spec.job_types[0], &inputs) {
                    Some(recorded) => Script::Recorded(recorded),
                    None if self.play == Play::AsItIs => Script::AsItIs(task),
                    None => Script::Made,
                }
            }
        };
        let digest = match &script {
            Script::Made => sha256_hex(Value::Object(inputs.clone()).to_string().as_bytes()),
            _ => String::new(),
        };
        let inputs = match &script {
            Script::Made => inputs,
            _ => Inputs::new(),
        };
        Ok(Arc::new(Rehearsed {
            job_type: self.spec.job_types[0],
            play: self.play,
            stage: Arc::clone(&self.stage),
            script,
            inputs,
            digest,
        }))
    }
}

/// What will be answered.
enum Script {
    /// That this must not be, not even in play.
    Refused(Failure),
    /// What a file says.
    Recorded(Result<Outputs, Failure>),
    /// What the real task yields.
    AsItIs(Arc<dyn Task>),
    /// Something made up.
    Made,
}

/// A job that is only rehearsed.
struct Rehearsed {
    job_type: &'static str,
    play: Play,
    stage: Arc<Stage>,
    script: Script,
    /// Of what is made up, else empty.
    inputs: Inputs,
    /// Hash of them.
    digest: String,
}

impl Rehearsed {
    /// What may differ between jobs, and not between two runs of one: `what` keeps draws for different ends apart.
    fn chance(&self, context: &BlockContext, what: &str) -> Chance {
        let seed = self.stage.settings.seed;
        let parts = [
            self.job_type,
            &context.tenant_id,
            &context.assignment_id,
            &self.digest,
            what,
        ];
        Chance::of(seed, &parts)
    }

    fn delay(&self, context: &BlockContext) -> Duration {
        let Some(range) = made::delay_ms(self.play) else {
            return Duration::ZERO;
        };
        let what = format!("delay {}", context.attempt);
        let ms = self.chance(context, &what).in_range(range);
        ms.mul_f64(self.stage.settings.delay_scale)
    }

    fn outputs(&self, context: &BlockContext) -> Result<Outputs, Failure> {
        match &self.script {
            Script::Refused(refusal) => return Err(refusal.clone()),
            Script::Recorded(recorded) => return recorded.clone(),
            Script::Made | Script::AsItIs(_) => {}
        }
        let what = format!("failure {}", context.attempt);
        let rate = self.stage.settings.failures.rate(self.play);
        if self.play == Play::Human {
            // A rejection is an answer, and no failure.
            let rejected = self.chance(context, &what).happens(rate);
            return Ok(made::approval(rejected, &mut self.chance(context, "outputs")));
        }
        if self.chance(context, &what).happens(rate) {
            return Err(made::failure(self.play));
        }
        Ok(made::outputs(
            self.play,
            &self.inputs,
            &mut self.chance(context, "outputs"),
        ))
    }
}

fn marked(mut outputs: Outputs) -> Outputs {
    outputs.insert(MARK.to_owned(), true.into());
    outputs
}

impl Task for Rehearsed {
    fn mode(&self) -> RunMode {
        match &self.script {
            Script::AsItIs(task) => task.mode(),
            _ => RunMode::Async,
        }
    }

    fn limit(&self) -> Option<OperationLimit> {
        match &self.script {
            Script::AsItIs(task) => task.limit(),
            _ => None,
        }
    }

    fn operations(&self) -> &'static [Operation] {
        match &self.script {
            Script::AsItIs(task) => task.operations(),
            _ => &[],
        }
    }

    fn run(self: Arc<Self>, context: BlockContext) -> BlockFuture {
        Box::pin(async move {
            if let Script::AsItIs(task) = &self.script {
                return Arc::clone(task).run(context).await.map(marked);
            }
            let delay = self.delay(&context);
            if !delay.is_zero() {
                let wait = async {
                    tokio::time::sleep(delay).await;
                    Ok(())
                };
                until_stopped(&context, wait).await?;
            }
            self.outputs(&context).map(marked)
        })
    }
}

/// A fetcher that fetches nothing.
struct Closed(Scheme);

impl Fetch for Closed {
    fn scheme(&self) -> Scheme {
        self.0
    }

    fn mode(&self) -> RunMode {
        RunMode::Async
    }

    fn fetch(self: Arc<Self>, _: Location, _: u64, _: BlockContext) -> FetchFuture {
        let refusal = Failure::new(
            ErrorCode::PermissionDenied,
            "in the sandbox inputs are fetched from the broker only",
        );
        Box::pin(async move { Err(refusal) })
    }
}

#[cfg(test)]
mod tests;
