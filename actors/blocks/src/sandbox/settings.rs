//! Settings of the sandbox.
//!
//! Neighbours: the node's settings hold them as `worker.sandbox`. Rates and times are off unless asked for, so that a
//! rehearsal is quick and the same each time.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Play;

/// Section `worker.sandbox`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxSettings {
    /// Whether every job of this node is only rehearsed. A single assignment asks for it with `sandbox: true`, and none can
    /// ask to leave it.
    pub enabled: bool,
    /// What made-up outputs, delays and failures are drawn by, together with tenant, assignment and inputs: who sends the
    /// same again gets the same again.
    pub seed: u64,
    /// How much of the delays that the contract names is waited: 0 nothing, 1 all (http 100 to 500 ms, files 20 to 200 ms,
    /// databases 30 to 300 ms). 0 to 10.
    pub delay_scale: f64,
    /// Shares of attempts that fail.
    pub failures: SandboxFailures,
    /// Directory of recorded answers, read at the start; nothing means that all are made up.
    pub recordings: Option<PathBuf>,
}

/// Section `worker.sandbox.failures`: shares of attempts that fail, from 0 (default, none) to 1 (all). The contract's are
/// 0.05 for http, 0.03 for put, 0.02 for get, 0.01 for sql and 0.1 for human.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxFailures {
    /// Of `http.request`, with NETWORK_ERROR.
    pub http: f64,
    /// Of `fs.blob_put`, with EXECUTION_FAILED.
    pub put: f64,
    /// Of `fs.blob_get`, with RESOURCE_UNAVAILABLE.
    pub get: f64,
    /// Of `fs.blob_delete`, with EXECUTION_FAILED.
    pub delete: f64,
    /// Of `sql.query`, with EXECUTION_FAILED.
    pub sql: f64,
    /// Of calls of models, with NETWORK_ERROR.
    pub model: f64,
    /// Of `human.approval`: these are rejected, which is no failure.
    pub human: f64,
}

impl SandboxFailures {
    /// The share for this kind of work.
    pub(super) fn rate(&self, play: Play) -> f64 {
        match play {
            Play::AsItIs => 0.0,
            Play::Http => self.http,
            Play::Put => self.put,
            Play::Get => self.get,
            Play::Delete => self.delete,
            Play::Sql => self.sql,
            Play::Chat | Play::Text | Play::Embedding => self.model,
            Play::Human => self.human,
        }
    }
}

impl SandboxSettings {
    /// Rules that are broken: key below `worker.sandbox`, and the rule.
    pub fn broken(&self) -> Vec<(&'static str, &'static str)> {
        let rate = "must be from 0 to 1";
        let failures = &self.failures;
        let all = [
            ("delay_scale", self.delay_scale, 10.0, "must be from 0 to 10"),
            ("failures.http", failures.http, 1.0, rate),
            ("failures.put", failures.put, 1.0, rate),
            ("failures.get", failures.get, 1.0, rate),
            ("failures.delete", failures.delete, 1.0, rate),
            ("failures.sql", failures.sql, 1.0, rate),
            ("failures.model", failures.model, 1.0, rate),
            ("failures.human", failures.human, 1.0, rate),
        ];
        let beyond = all
            .into_iter()
            .filter(|(_, value, most, _)| !(0.0..=*most).contains(value));
        let mut broken: Vec<_> = beyond.map(|(key, _, _, rule)| (key, rule)).collect();
        if self
            .recordings
            .as_ref()
            .is_some_and(|path| path.as_os_str().is_empty())
        {
            broken.push(("recordings", "must be a path"));
        }
        broken
    }
}
