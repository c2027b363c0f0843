//! Settings of the blocks: limits and what jobs may reach. Stand-in with the agreed keys until the blocks bring their
//! own type; nothing here but shapes and defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use caf_actors::mask;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of all block families.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BlockSettings {
    /// `http.request`.
    pub http: HttpBlockSettings,
    /// `fs.blob_put`, `fs.blob_get`.
    pub fs: FsBlockSettings,
    /// `sql.query`.
    pub sql: SqlBlockSettings,
}

/// Limits of `http.request`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpBlockSettings {
    /// Longest wait for a connection, in milliseconds.
    pub connect_timeout_ms: u64,
    /// Longest wait for the head of the answer, in milliseconds.
    pub response_head_timeout_ms: u64,
    /// Longest wait for the body of the answer, in milliseconds.
    pub body_timeout_ms: u64,
    /// Most bytes of an answer's body after decompression.
    pub max_response_bytes: usize,
    /// Most bytes of a request's body.
    pub max_request_bytes: usize,
    /// Most redirects followed.
    pub max_redirects: u32,
    /// Networks (CIDR) and hosts that jobs may reach although they are not public.
    pub allow_targets: Vec<String>,
}

impl Default for HttpBlockSettings {
    fn default() -> Self {
        Self {
            connect_timeout_ms: 5_000,
            response_head_timeout_ms: 30_000,
            body_timeout_ms: 30_000,
            max_response_bytes: 10 * 1024 * 1024,
            max_request_bytes: 10 * 1024 * 1024,
            max_redirects: 5,
            allow_targets: Vec::new(),
        }
    }
}

/// Directories and limits of the file blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FsBlockSettings {
    /// Directories that jobs may reach, by name.
    pub roots: BTreeMap<String, PathBuf>,
    /// Most bytes of one file.
    pub max_bytes: u64,
}

impl Default for FsBlockSettings {
    fn default() -> Self {
        Self {
            roots: BTreeMap::from([("data".to_owned(), PathBuf::from("./data"))]),
            max_bytes: 64 * 1024 * 1024,
        }
    }
}

/// Databases that jobs may reach.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SqlBlockSettings {
    /// Whether a job may bring its own connection string.
    pub allow_inline: bool,
    /// Databases, by name.
    pub connections: BTreeMap<String, SqlConnectionSettings>,
}

/// One database. `Debug` hides its secrets.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqlConnectionSettings {
    /// Address: `sqlite://path` or `postgres://host/database`.
    pub url: String,
    /// Whether only reading statements are let through.
    #[serde(default = "SqlConnectionSettings::default_read_only")]
    pub read_only: bool,
    /// Most rows of one answer.
    #[serde(default = "SqlConnectionSettings::default_max_rows")]
    pub max_rows: usize,
    /// Most bytes of one answer.
    #[serde(default = "SqlConnectionSettings::default_max_bytes")]
    pub max_bytes: usize,
    /// Longest run of one statement, in milliseconds.
    #[serde(default = "SqlConnectionSettings::default_statement_timeout_ms")]
    pub statement_timeout_ms: u64,
    /// Most connections held open.
    #[serde(default = "SqlConnectionSettings::default_pool_size")]
    pub pool_size: usize,
    /// User name, when the address has none.
    #[serde(default)]
    pub user: Option<String>,
    /// Password, when the address has none.
    #[serde(default)]
    pub password: Option<String>,
}

impl SqlConnectionSettings {
    fn default_read_only() -> bool {
        true
    }
    fn default_max_rows() -> usize {
        10_000
    }
    fn default_max_bytes() -> usize {
        8 * 1024 * 1024
    }
    fn default_statement_timeout_ms() -> u64 {
        30_000
    }
    fn default_pool_size() -> usize {
        4
    }
}

impl fmt::Debug for SqlConnectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = serde_json::to_value(self).map_err(|_| fmt::Error)?;
        mask::mask(&mut value);
        write!(f, "SqlConnectionSettings {value}")
    }
}
