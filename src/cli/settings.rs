//! Options that set something, and the loading of settings for a command.

use std::path::PathBuf;

use clap::Args;

use super::{Environment, OutputFormat, print};
use crate::exit::Exit;
use crate::settings::load::{Loaded, SetKey, Sources, load};
use crate::settings::origin::SettingsError;

/// Options that set something. They beat files and environment; `--set` beats the named ones.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Settings")]
pub struct SettingsArgs {
    /// Read settings from this .toml or .json file; repeatable, the later wins
    #[arg(long = "config", global = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Set one key, e.g. --set nats.ack_wait_ms=10000; repeatable, empty means default
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = assignment)]
    pub set: Vec<(String, String)>,
    /// Servers of NATS, comma-separated
    #[arg(long, global = true, value_name = "URL")]
    pub nats_url: Option<String>,
    /// Jobs that run at once on the cpu pool
    #[arg(long, global = true, value_name = "JOBS")]
    pub cpu_pool_size: Option<u64>,
    /// Jobs that run at once on the gpu pool
    #[arg(long, global = true, value_name = "JOBS")]
    pub gpu_pool_size: Option<u64>,
    /// Jobs that run at once on the io pool
    #[arg(long, global = true, value_name = "JOBS")]
    pub io_pool_size: Option<u64>,
    /// Only rehearse jobs: nothing outside is touched, outputs are made up
    #[arg(long, global = true)]
    pub sandbox: bool,
    /// Base address: health one port above, metrics two
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub prometheus_endpoint: Option<String>,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("must have the form KEY=VALUE".to_owned()),
    }
}

impl SettingsArgs {
    /// All sources of a run in the working directory.
    pub fn sources(&self, environment: Environment) -> Sources {
        let size = |size: Option<u64>| size.map(|size| size.to_string());
        let named = [
            ("nats.url", self.nats_url.clone()),
            ("pools.cpu.max_concurrency", size(self.cpu_pool_size)),
            ("pools.gpu.max_concurrency", size(self.gpu_pool_size)),
            ("pools.io.max_concurrency", size(self.io_pool_size)),
            ("worker.sandbox.enabled", self.sandbox.then(|| "true".to_owned())),
        ];
        let named = named
            .into_iter()
            .filter_map(|(key, value)| Some(SetKey::Key(key.to_owned(), value?)));
        let base = self.prometheus_endpoint.clone().map(SetKey::PrometheusEndpoint);
        let set = self
            .set
            .iter()
            .cloned()
            .map(|(key, value)| SetKey::Key(key, value));
        Sources {
            working_dir: PathBuf::new(),
            files: self.files.clone(),
            environment,
            command_line: named.chain(base).chain(set).collect(),
        }
    }
}

/// Loads the settings and goes on with them, or prints what is wrong.
pub fn with_settings(sources: &Sources, output: OutputFormat, go_on: impl FnOnce(&Loaded) -> Exit) -> Exit {
    match load(sources) {
        Ok(loaded) => go_on(&loaded),
        Err(error) => {
            complain(&error, output);
            Exit::Config
        }
    }
}

/// Prints every problem: sentences to standard error, JSON lines to standard output.
pub(super) fn complain(error: &SettingsError, output: OutputFormat) {
    match output {
        OutputFormat::Text => print::error(&error.to_string()),
        OutputFormat::Json => print::answer(&super::config::json_lines(&error.problems)),
    }
}
