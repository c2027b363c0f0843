//! Settings of the blocks: what a job may reach, and how much of it.
//!
//! Neighbours: the node's settings hold a [`BlockSettings`] as section `blocks`, [`crate::build`] reads it. Units are
//! in the names. Unknown keys are refused. A default stands in one place: the `Default` of its struct. Credentials are
//! never shown by `Debug`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use caf_protocol::secret::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod http;
pub mod providers;
pub use self::http::{HttpSettings, HttpTenantSettings};
pub use self::providers::ProviderSettings;

/// A setting that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {rule}, got {value}", key_text(key))]
pub struct SettingError {
    /// Full key, segment by segment: `["blocks", "http", "max_redirects"]`. Names that an operator chose may hold dots.
    pub key: Vec<String>,
    /// What the value has to be.
    pub rule: String,
    /// The value, or `(hidden)` where it may hold credentials.
    pub value: String,
}

impl SettingError {
    /// `key` begins with `blocks`.
    pub(crate) fn new(key: &[&str], rule: impl Into<String>, value: impl fmt::Display) -> Self {
        Self {
            key: key.iter().map(|&segment| segment.to_owned()).collect(),
            rule: rule.into(),
            value: value.to_string(),
        }
    }
}

/// A key as people write it: segments joined by dots, quoted where a name needs it.
fn key_text(key: &[String]) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let segments: Vec<_> = key
        .iter()
        .map(|segment| match segment.as_str() {
            "" => "\"\"".to_owned(),
            plain if plain.chars().all(is_plain) => plain.to_owned(),
            other => format!("{other:?}"),
        })
        .collect();
    segments.join(".")
}

/// Broken rules found so far, and the section that is being checked.
struct Checks<'a> {
    section: Vec<&'a str>,
    broken: Vec<SettingError>,
}

impl<'a> Checks<'a> {
    /// Checks the section `name` inside the current one.
    fn section(&mut self, name: &'a str, check: impl FnOnce(&mut Self)) {
        self.section.push(name);
        check(self);
        self.section.pop();
    }

    /// Reports `rule` for `key` of the current section unless it holds.
    fn require(&mut self, key: &str, holds: bool, rule: &str, value: impl fmt::Display) {
        if !holds {
            let key = [self.section.as_slice(), &[key]].concat();
            self.broken.push(SettingError::new(&key, rule, value));
        }
    }

    /// Reports `rule` for the current section itself unless it holds.
    fn require_here(&mut self, holds: bool, rule: &str, value: impl fmt::Display) {
        if !holds {
            self.broken.push(SettingError::new(&self.section, rule, value));
        }
    }

    /// A limit of zero would fail every job, one beyond the longest deadline would never act.
    fn limit_ms(&mut self, key: &str, value: u64) {
        let holds = (1..=3_600_000).contains(&value);
        self.require(key, holds, "must be 1 to 3600000 milliseconds", value);
    }

    fn bytes(&mut self, key: &str, value: u64) {
        let holds = (1..=1 << 30).contains(&value);
        self.require(key, holds, "must be 1 to 1073741824 bytes", value);
    }

    fn rows(&mut self, key: &str, value: u64) {
        let holds = (1..=10_000_000).contains(&value);
        self.require(key, holds, "must be 1 to 10000000", value);
    }

    fn file(&mut self, key: &str, path: Option<&Path>) {
        let holds = path.is_none_or(|path| !path.as_os_str().is_empty());
        self.require(key, holds, "must be a path", "an empty string");
    }

    /// A name that the operator chose, itself a key of the current section.
    fn name(&mut self, name: &str) {
        let holds = (1..=64).contains(&name.len())
            && !name.starts_with('.')
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        let rule = "must have a name of 1 to 64 letters, digits, '_', '-' or '.', not starting with '.'";
        self.require(name, holds, rule, format_args!("the name {name:?}"));
    }
}

/// Section `blocks`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BlockSettings {
    /// `http.request`.
    pub http: HttpSettings,
    /// `fs.blob_put` and `fs.blob_get`.
    pub fs: FsSettings,
    /// `sql.query`.
    pub sql: SqlSettings,
}

impl BlockSettings {
    /// Checks every rule that the types cannot express. Never looks at files, names or networks.
    ///
    /// # Errors
    /// Every broken rule, with its key and value, in the order of the sections; never empty.
    pub fn validate(&self) -> Result<(), Vec<SettingError>> {
        let mut checks = Checks {
            section: vec!["blocks"],
            broken: Vec::new(),
        };
        checks.section("http", |checks| self.http.check(checks));
        checks.section("fs", |checks| self.fs.check(checks));
        checks.section("sql", |checks| self.sql.check(checks));
        if checks.broken.is_empty() {
            Ok(())
        } else {
            Err(checks.broken)
        }
    }
}

/// Section `blocks.fs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FsSettings {
    /// Directories that jobs may use, by name. The path `data/a/b` is `a/b` in the directory named `data`. Created when
    /// missing; relative ones are relative to the working directory.
    pub roots: BTreeMap<String, PathBuf>,
    /// Largest content in bytes, written or read.
    pub max_bytes: u64,
    /// Whether files with more than one name may be read. A hard link in a root may be a file that lies outside of it.
    pub allow_hard_links: bool,
    /// How much each directory may hold, by its name in `roots`; one that is not named has no bound but the disk.
    pub quotas: BTreeMap<String, FsQuotaSettings>,
}

/// Section `blocks.fs.quotas.<root>`: bounds on a whole directory. Exact for what one worker writes; what others write
/// there is counted once a minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FsQuotaSettings {
    /// Most bytes in all files together.
    pub max_bytes: u64,
    /// Most files and directories together. The whole directory is counted now and then: it bounds that too.
    pub max_files: u64,
}

impl Default for FsQuotaSettings {
    fn default() -> Self {
        Self {
            max_bytes: 1 << 30,
            max_files: 100_000,
        }
    }
}

impl Default for FsSettings {
    fn default() -> Self {
        Self {
            roots: BTreeMap::from([("data".to_owned(), PathBuf::from("./data"))]),
            max_bytes: 16 << 20,
            allow_hard_links: false,
            quotas: BTreeMap::new(),
        }
    }
}

impl FsSettings {
    fn check<'a>(&'a self, checks: &mut Checks<'a>) {
        checks.section("roots", |checks| {
            for (name, path) in &self.roots {
                checks.name(name);
                checks.file(name, Some(path));
            }
        });
        checks.bytes("max_bytes", self.max_bytes);
        checks.section("quotas", |checks| {
            for (name, quota) in &self.quotas {
                let known = self.roots.contains_key(name);
                checks.require(name, known, "must be the name of one of blocks.fs.roots", name);
                checks.section(name, |checks| {
                    let holds = (1..=1 << 50).contains(&quota.max_bytes);
                    let rule = "must be 1 to 1125899906842624 bytes";
                    checks.require("max_bytes", holds, rule, quota.max_bytes);
                    let holds = (1..=10_000_000).contains(&quota.max_files);
                    checks.require("max_files", holds, "must be 1 to 10000000", quota.max_files);
                });
            }
        });
    }
}

/// Section `blocks.sql`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SqlSettings {
    /// Databases that jobs may use, by name.
    pub connections: BTreeMap<String, SqlConnectionSettings>,
    /// Whether a job may bring a connection string of its own, for any database that the worker can reach. Such
    /// connections are read-only.
    pub allow_inline: bool,
    /// `:memory:`, the database that a job gets when it names none, and inline connections.
    pub memory: SqlMemorySettings,
}

/// Section `blocks.sql.memory`: limits of the writable in-memory database that every job may have for itself, and of
/// inline connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SqlMemorySettings {
    /// Largest in-memory database in bytes.
    pub max_database_bytes: u64,
    /// Most rows of an answer. More fail the job; rows are never cut off silently.
    pub max_rows: u64,
    /// Largest answer in bytes, as JSON.
    pub max_bytes: u64,
    /// Longest run of the statements in milliseconds; running out ends the job as `timeout`.
    pub statement_timeout_ms: u64,
}

impl Default for SqlMemorySettings {
    fn default() -> Self {
        Self {
            max_database_bytes: 64 << 20,
            max_rows: 10_000,
            max_bytes: 4 << 20,
            statement_timeout_ms: 30_000,
        }
    }
}

/// Section `blocks.sql.connections.<name>`.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqlConnectionSettings {
    /// `sqlite:///absolute/file.db`, `sqlite://relative.db`, or `postgres://host:port/database`.
    ///
    /// How a PostgreSQL connection is encrypted is said by `?sslmode=` in the address. Encrypted always means that the
    /// server's certificate is checked; there is no encryption without that.
    /// - `disable`: not encrypted.
    /// - `prefer` (default): encrypted if the server can and its certificate is good, else not. Protects from nobody who
    ///   can interfere.
    /// - `require` and `verify-full`: encrypted, by a certificate for the host's name from a public authority or one in
    ///   `ca_file`. Stricter than elsewhere, where `require` checks nothing.
    /// - `verify-ca`: encrypted, by a certificate for any name from an authority in `ca_file`, which must be given.
    pub url: String,
    /// Whether the database refuses writes.
    #[serde(default = "SqlConnectionSettings::read_only")]
    pub read_only: bool,
    /// Whether a role may be used that can reach files or programs of the server: a superuser, or a member of
    /// `pg_read_server_files`, `pg_write_server_files` or `pg_execute_server_program`. PostgreSQL only.
    #[serde(default)]
    pub allow_superuser: Option<bool>,
    /// Most rows of an answer. More fail the job; rows are never cut off silently.
    #[serde(default = "SqlConnectionSettings::max_rows")]
    pub max_rows: u64,
    /// Largest answer in bytes, as JSON.
    #[serde(default = "SqlConnectionSettings::max_bytes")]
    pub max_bytes: u64,
    /// Longest run of a statement in milliseconds; running out ends the job as `timeout`.
    #[serde(default = "SqlConnectionSettings::statement_timeout_ms")]
    pub statement_timeout_ms: u64,
    /// Longest wait for a connection in milliseconds, PostgreSQL only; running out is a retryable failure.
    #[serde(default = "SqlConnectionSettings::connect_timeout_ms")]
    pub connect_timeout_ms: u64,
    /// Most open connections, PostgreSQL only.
    #[serde(default = "SqlConnectionSettings::pool_size")]
    pub pool_size: usize,
    /// PEM file with certificates of further authorities that may vouch for the server, PostgreSQL only. Read at the
    /// start.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// User; beats the one in the url.
    #[serde(default)]
    pub user: Option<String>,
    /// Password; beats the one in the url. Meant to come from the environment,
    /// `WORKER__BLOCKS__SQL__CONNECTIONS__<NAME>__PASSWORD`.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Name of a secret (`secrets.<name>`) that is the password, for the jobs that it is for; in place of `password`. It must list
    /// `sql:<name of this connection>` among its destinations.
    #[serde(default)]
    pub password_secret: Option<String>,
}

impl SqlConnectionSettings {
    fn read_only() -> bool {
        true
    }

    fn max_rows() -> u64 {
        SqlMemorySettings::default().max_rows
    }

    fn max_bytes() -> u64 {
        SqlMemorySettings::default().max_bytes
    }

    fn statement_timeout_ms() -> u64 {
        SqlMemorySettings::default().statement_timeout_ms
    }

    fn connect_timeout_ms() -> u64 {
        5_000
    }

    fn pool_size() -> usize {
        4
    }

    /// A read-only connection with default limits.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            read_only: Self::read_only(),
            allow_superuser: None,
            max_rows: Self::max_rows(),
            max_bytes: Self::max_bytes(),
            statement_timeout_ms: Self::statement_timeout_ms(),
            connect_timeout_ms: Self::connect_timeout_ms(),
            pool_size: Self::pool_size(),
            ca_file: None,
            user: None,
            password: None,
            password_secret: None,
        }
    }
}

impl fmt::Debug for SqlConnectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlConnectionSettings")
            .field("read_only", &self.read_only)
            .field("max_rows", &self.max_rows)
            .field("max_bytes", &self.max_bytes)
            .field("statement_timeout_ms", &self.statement_timeout_ms)
            .field("connect_timeout_ms", &self.connect_timeout_ms)
            .field("pool_size", &self.pool_size)
            .field("ca_file", &self.ca_file)
            .finish_non_exhaustive()
    }
}

impl SqlSettings {
    fn check<'a>(&'a self, checks: &mut Checks<'a>) {
        checks.section("connections", |checks| {
            for (name, connection) in &self.connections {
                checks.name(name);
                checks.section(name, |checks| connection.check(checks));
            }
        });
        checks.section("memory", |checks| self.memory.check(checks));
    }
}

impl SqlMemorySettings {
    fn check(&self, checks: &mut Checks<'_>) {
        checks.bytes("max_database_bytes", self.max_database_bytes);
        checks.rows("max_rows", self.max_rows);
        checks.bytes("max_bytes", self.max_bytes);
        checks.limit_ms("statement_timeout_ms", self.statement_timeout_ms);
    }
}

impl SqlConnectionSettings {
    fn check(&self, checks: &mut Checks<'_>) {
        checks.file("ca_file", self.ca_file.as_deref());
        if let Err(broken) = crate::sql::check_address(self) {
            checks.require(broken.key, false, &broken.rule, "(hidden)");
        }
        let url = self.url.trim_start();
        let is_postgres = url.starts_with("postgres://") || url.starts_with("postgresql://");
        let holds = self.password_secret.is_none() || is_postgres;
        checks.require(
            "password_secret",
            holds,
            "must be on a PostgreSQL connection",
            "another",
        );
        let holds = self.password_secret.is_none() || self.password.is_none();
        checks.require("password_secret", holds, "must not stand beside password", "both");
        checks.rows("max_rows", self.max_rows);
        checks.bytes("max_bytes", self.max_bytes);
        checks.limit_ms("statement_timeout_ms", self.statement_timeout_ms);
        checks.limit_ms("connect_timeout_ms", self.connect_timeout_ms);
        let holds = (1..=1_000).contains(&self.pool_size);
        checks.require("pool_size", holds, "must be 1 to 1000", self.pool_size);
    }
}

/// Milliseconds as a duration.
pub(crate) const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: serde_json::Value) -> Result<BlockSettings, serde_json::Error> {
        serde_json::from_value(value)
    }

    #[test]
    fn the_defaults_are_valid_and_are_what_an_empty_section_means() {
        let settings = read(json!({})).expect("reads");
        assert_eq!(settings, BlockSettings::default());
        assert_eq!(settings.validate(), Ok(()));
        assert_eq!(settings.fs.roots["data"], PathBuf::from("./data"));
        assert!(settings.http.allow_targets.is_empty());
    }

    #[test]
    fn a_connection_is_read_only_unless_it_says_otherwise() {
        let settings =
            read(json!({"sql": {"connections": {"main": {"url": "sqlite://x.db"}}}})).expect("reads");
        assert_eq!(
            settings.sql.connections["main"],
            SqlConnectionSettings::new("sqlite://x.db")
        );
        assert!(settings.sql.connections["main"].read_only);
    }

    #[test]
    fn unknown_keys_are_refused() {
        for bad in [
            json!({"htp": {}}),
            json!({"http": {"max_redirect": 1}}),
            json!({"fs": {"root": {}}}),
            json!({"sql": {"connections": {"a": {"url": "sqlite://x", "readonly": true}}}}),
        ] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_broken_rule_names_key_and_value() {
        let settings = read(json!({
            "http": {"max_request_bytes": 0, "max_redirects": 51, "allow_targets": ["10.0.0.0/8", "10.0.0.0/33", "a b"]},
            "fs": {"roots": {"a": "", "a/b": "x", "": "x"}, "max_bytes": 0},
            "sql": {
                "connections": {
                    ".x": {"url": "sqlite://x"},
                    "v1.2": {"url": "postgres://u:hunter2@h:port/d", "pool_size": 0, "max_rows": 0},
                },
                "memory": {"max_bytes": 0},
            },
        }))
        .expect("reads");
        let broken = settings.validate().expect_err("is refused");
        let shown: Vec<_> = broken.iter().map(ToString::to_string).collect();
        let name = "must have a name of 1 to 64 letters, digits, '_', '-' or '.', not starting with '.', got the name";
        let target = "must be an address, a range such as 10.0.0.0/8, or a host name, got";
        let expected = [
            format!("blocks.http.allow_targets.1: {target} 10.0.0.0/33"),
            format!("blocks.http.allow_targets.2: {target} a b"),
            "blocks.http.max_request_bytes: must be 1 to 1073741824 bytes, got 0".to_owned(),
            "blocks.http.max_redirects: must be at most 50, got 51".to_owned(),
            format!("blocks.fs.roots.\"\": {name} \"\""),
            "blocks.fs.roots.a: must be a path, got an empty string".to_owned(),
            format!("blocks.fs.roots.\"a/b\": {name} \"a/b\""),
            "blocks.fs.max_bytes: must be 1 to 1073741824 bytes, got 0".to_owned(),
            format!("blocks.sql.connections.\".x\": {name} \".x\""),
            "blocks.sql.connections.\"v1.2\".url: must be a PostgreSQL address, postgres://user@host:port/database, got (hidden)"
                .to_owned(),
            "blocks.sql.connections.\"v1.2\".max_rows: must be 1 to 10000000, got 0".to_owned(),
            "blocks.sql.connections.\"v1.2\".pool_size: must be 1 to 1000, got 0".to_owned(),
            "blocks.sql.memory.max_bytes: must be 1 to 1073741824 bytes, got 0".to_owned(),
        ];
        assert_eq!(shown, expected);
        assert_eq!(
            broken[10].key,
            ["blocks", "sql", "connections", "v1.2", "max_rows"]
        );
    }

    #[test]
    fn debug_shows_neither_address_nor_password() {
        let mut connection = SqlConnectionSettings::new("postgres://u:hunter2@db.host/x");
        connection.password = Some("hunter3".into());
        let shown = format!("{connection:?}");
        assert!(!shown.contains("hunter") && !shown.contains("db.host"), "{shown}");
    }
}
