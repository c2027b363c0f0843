//! What the worker executes: `echo`, `sleep`, `fail`, `http.request`, `fs.blob_put`, `fs.blob_get`, `fs.blob_delete`, `sql.query`,
//! and `human.approval` where it is switched on.
//!
//! Neighbours: `caf-protocol` says what a block is; the node builds all of them with [`build`] from its settings
//! and gives them to the pipeline. This crate knows neither actors nor the broker, never retries (the block worker does),
//! never logs, and never reads the environment: settings come in as values.
//!
//! In reading order: [`settings`] are the grants and bounds, `limits` how long an operation may take, `inputs` reads what a job brings, `watch` is how a block
//! notices that it must stop, `tls` whom they trust, `payload` what reading referenced inputs adds; then one file per kind of work.
//! [`sandbox`] holds what stands for them where a job is only rehearsed.

mod echo;
mod fail;
mod fs;
mod http;
mod human;
mod inputs;
mod limits;
mod models;
mod payload;
#[cfg(any(test, fuzzing))]
pub mod properties;
pub mod sandbox;
pub mod settings;
mod sleep;
mod sql;
mod tls;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;

use caf_protocol::block::{Block, Registry};
use caf_protocol::reference::Fetchers;
use caf_protocol::secret::vault::Vault;

pub use crate::fs::path_parts;
pub use crate::http::TargetRules;
pub use crate::limits::OperationLimits;
pub use crate::models::Providers;
use crate::sandbox::{Play, Rehearsal, SandboxSettings, Stage};
use crate::settings::{BlockSettings, SettingError};

/// What the node knows and the settings do not.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// A symbolic host name such as `health.worker.internal`, and the node's own health endpoint that it stands for.
    /// Requests to that name, whatever the port, and to the endpoint's loopback address pass the guard.
    pub health_target: Option<(String, SocketAddr)>,
    /// Where the rules on targets of HTTP requests are kept: who holds a clone may replace them while jobs run.
    pub http_targets: TargetRules,
    /// How jobs are rehearsed that are not to touch anything.
    pub sandbox: SandboxSettings,
    /// Who gives jobs the values of the secrets that they name.
    pub vault: Vault,
    /// Who runs models: who holds a clone may replace them while jobs run.
    pub providers: Providers,
    /// Whether jobs may ask people.
    pub approvals: bool,
}

/// Why the blocks cannot be built. All causes are settings: fix them, a retry does not help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// Settings break their rules; never empty.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Settings(Vec<SettingError>),
}

impl From<Vec<SettingError>> for SetupError {
    fn from(broken: Vec<SettingError>) -> Self {
        Self::Settings(broken)
    }
}

/// What the node gives to the pipeline.
#[derive(Debug)]
pub struct Blocks {
    /// Every block.
    pub registry: Registry,
    /// Who reads inputs that a job refers to by file or address: by the same grants and limits as the blocks.
    pub fetchers: Fetchers,
    /// In place of both, for jobs that are only rehearsed.
    pub sandbox: Rehearsal,
}

impl From<Registry> for Blocks {
    /// Blocks that take no references.
    fn from(registry: Registry) -> Self {
        Self {
            registry,
            fetchers: Fetchers::default(),
            sandbox: Rehearsal::default(),
        }
    }
}

/// Builds every block. Of the `limits` on operations those hold that are there. Reads the files of authorities; roots and
/// databases are opened by the first job that needs them.
///
/// # Errors
/// When settings break their rules; the message names every key.
pub fn build(
    settings: &BlockSettings,
    limits: OperationLimits,
    extras: Extras,
) -> Result<Blocks, SetupError> {
    settings.validate()?;
    let stage = Stage::new(&extras.sandbox)?;
    let (vault, approvals) = (extras.vault.clone(), extras.approvals);
    let providers = extras.providers.clone();
    let http = http::HttpRequest::new(&settings.http, limits, extras);
    let (http, sql) = match (http, sql::SqlQuery::new(&settings.sql, vault.clone())) {
        (Ok(http), Ok(sql)) => (http, sql),
        (http, sql) => {
            let of_sql = sql.err().into_iter().flatten();
            return Err(SetupError::Settings(
                http.err().into_iter().chain(of_sql).collect(),
            ));
        }
    };
    let files = fs::Shared::new(&settings.fs, limits);
    let fetchers = Fetchers::default()
        .with(Arc::new(http.fetcher()))
        .with(Arc::new(fs::FileFetch::new(&files)));
    let models = models::Shared::new(providers, http.direct(), vault);
    // Whoever adds a block says what it does in the sandbox.
    let mut blocks: Vec<(Arc<dyn Block>, Play)> = vec![
        (Arc::new(echo::Echo::new()), Play::AsItIs),
        (Arc::new(sleep::Sleep::new()), Play::AsItIs),
        (Arc::new(fail::Fail::new()), Play::AsItIs),
        (Arc::new(http), Play::Http),
        (Arc::new(fs::blob_put(&files)), Play::Put),
        (Arc::new(fs::blob_get(&files)), Play::Get),
        (Arc::new(fs::blob_delete(&files)), Play::Delete),
        (Arc::new(sql), Play::Sql),
        (Arc::new(models::Model::chat(&models)), Play::Chat),
        (Arc::new(models::Model::text(&models)), Play::Text),
        (Arc::new(models::Model::embedding(&models)), Play::Embedding),
    ];
    if approvals {
        blocks.push((Arc::new(human::HumanApproval::new()), Play::Human));
    }
    let sandbox = stage.rehearsal(&blocks);
    let registry = blocks
        .into_iter()
        .fold(Registry::default(), |registry, (block, _)| registry.with(block));
    Ok(Blocks {
        registry,
        fetchers,
        sandbox,
    })
}

/// Pure functions that fuzzing drives. No part of what the node uses.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::http::{UrlTarget, url_target};
}

#[cfg(test)]
mod tests;
