//! What a query may connect to, and within which limits: made of settings, or of an inline string where allowed.
//!
//! Neighbours: [`super`] chooses a [`Source`] for each job; `sqlite` and `postgres` open it. Does no I/O. Rules are told
//! without the address that breaks them: it may hold credentials.

use std::path::PathBuf;
use std::time::Duration;

use caf_protocol::error_code::ErrorCode;
use caf_protocol::limit::{Operation, OperationLimit};
use caf_protocol::outcome::Failure;

use super::postgres::Postgres;
use crate::settings::{SqlConnectionSettings, SqlMemorySettings, ms};

/// A database with its limits.
pub(super) struct Source {
    /// What it is called: as in the settings, or by its place. Nothing in memory, which cannot fail. Holds no credentials.
    pub(super) name: Option<String>,
    pub(super) kind: Kind,
    pub(super) read_only: bool,
    pub(super) limits: Limits,
}

/// Where it is.
pub(super) enum Kind {
    /// In memory, fresh for each job.
    Memory {
        /// Largest database in bytes.
        max_database_bytes: u64,
    },
    /// A file of SQLite.
    Sqlite(PathBuf),
    /// A server.
    Postgres(Postgres),
}

/// How much a query may take.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) max_rows: u64,
    pub(super) max_bytes: u64,
    pub(super) statement_timeout: Duration,
}

impl Limits {
    /// What an answer above the limit in bytes fails with.
    pub(super) fn too_large(&self) -> Failure {
        let text = "the answer is larger than the limit";
        Failure::new(ErrorCode::ResourceUnavailable, text).with("limit_bytes", self.max_bytes.into())
    }

    /// The limit on the run of a statement.
    pub(super) fn statement_limit(&self) -> OperationLimit {
        OperationLimit {
            operation: Operation::SqlStatement,
            allowed: self.statement_timeout,
        }
    }
}

/// A rule that the settings of a connection break.
#[derive(Debug, PartialEq)]
pub(crate) struct Broken {
    /// `url` or `ca_file`.
    pub(crate) key: &'static str,
    /// What the value has to be.
    pub(crate) rule: String,
}

impl Broken {
    pub(super) fn url(rule: impl Into<String>) -> Self {
        let rule = rule.into();
        Self { key: "url", rule }
    }

    pub(super) fn ca_file(rule: impl Into<String>) -> Self {
        let rule = rule.into();
        Self { key: "ca_file", rule }
    }
}

impl Source {
    /// The database that a job gets when it names none.
    pub(super) fn memory(settings: &SqlMemorySettings) -> Self {
        Self {
            name: None,
            kind: Kind::Memory {
                max_database_bytes: settings.max_database_bytes,
            },
            read_only: false,
            limits: Limits {
                max_rows: settings.max_rows,
                max_bytes: settings.max_bytes,
                statement_timeout: ms(settings.statement_timeout_ms),
            },
        }
    }

    /// A connection of the settings. Reads the file of its authorities.
    pub(super) fn named(
        settings: &SqlConnectionSettings,
        memory: &SqlMemorySettings,
    ) -> Result<Self, Broken> {
        let url = settings.url.trim();
        if is_memory(url) {
            return Ok(Self::memory(memory));
        }
        let kind = if is_postgres(url) {
            Kind::Postgres(Postgres::new(settings)?)
        } else {
            Kind::Sqlite(sqlite_path(url)?)
        };
        Ok(Self {
            name: match &kind {
                Kind::Memory { .. } => None,
                Kind::Sqlite(path) => Some(format!("sqlite:{}", path.display())),
                Kind::Postgres(postgres) => Some(postgres.place()),
            },
            kind,
            read_only: settings.read_only,
            limits: Limits {
                max_rows: settings.max_rows,
                max_bytes: settings.max_bytes,
                statement_timeout: ms(settings.statement_timeout_ms),
            },
        })
    }

    /// The same under the name of the settings.
    pub(super) fn called(mut self, name: &str) -> Self {
        self.name = self.name.map(|_| name.to_owned());
        self
    }

    /// A connection that a job brings: read-only, one connection, limits as in memory.
    pub(super) fn inline(text: &str, memory: &SqlMemorySettings) -> Result<Self, Broken> {
        Self::named(&Self::inline_settings(text, memory), memory)
    }

    /// What such a connection is allowed.
    pub(super) fn inline_settings(text: &str, memory: &SqlMemorySettings) -> SqlConnectionSettings {
        let mut settings = SqlConnectionSettings::new(text);
        settings.max_rows = memory.max_rows;
        settings.max_bytes = memory.max_bytes;
        settings.statement_timeout_ms = memory.statement_timeout_ms;
        settings.pool_size = 1;
        settings
    }
}

/// The rule that the address of a connection breaks, if it breaks one. Reads no file.
pub(crate) fn check_address(settings: &SqlConnectionSettings) -> Result<(), Broken> {
    let url = settings.url.trim();
    if is_memory(url) {
        return Ok(());
    }
    if is_postgres(url) {
        return Postgres::check(settings);
    }
    sqlite_path(url).map(drop)
}

/// Whether this is one of the spellings of "in memory".
pub(super) fn is_memory(text: &str) -> bool {
    matches!(
        text,
        ":memory:" | "sqlite://:memory:" | "sqlite::memory:" | "sqlite:///:memory:"
    )
}

/// Whether this is a connection string and not a name.
pub(super) fn looks_inline(text: &str) -> bool {
    text.contains([':', '/', '=', '\\', ' '])
}

fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

fn sqlite_path(url: &str) -> Result<PathBuf, Broken> {
    let rule = || Broken::url("must begin with sqlite:, postgres: or postgresql:");
    let path = url
        .strip_prefix("sqlite://")
        .or_else(|| url.strip_prefix("sqlite:"))
        .ok_or_else(rule)?;
    if path.is_empty() || path.contains(['?', '\0']) {
        return Err(Broken::url("must name a database file, without options"));
    }
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(url: &str) -> Result<String, Broken> {
        let source = Source::named(&SqlConnectionSettings::new(url), &SqlMemorySettings::default())?;
        Ok(match source.kind {
            Kind::Memory { .. } => "memory".to_owned(),
            Kind::Sqlite(path) => path.display().to_string(),
            Kind::Postgres(_) => "postgres".to_owned(),
        })
    }

    #[test]
    fn the_scheme_says_which_database_it_is() {
        for (url, expected) in [
            (":memory:", "memory"),
            ("sqlite::memory:", "memory"),
            ("sqlite:///var/a.db", "/var/a.db"),
            ("sqlite://a.db", "a.db"),
            ("sqlite:a/b.db", "a/b.db"),
            ("postgres://h/db", "postgres"),
            ("postgresql://u:p@h:1/db", "postgres"),
        ] {
            assert_eq!(kind(url), Ok(expected.to_owned()), "{url}");
        }
        for url in [
            "",
            "a.db",
            "mysql://h/db",
            "sqlite:",
            "sqlite://a.db?mode=rwc",
            "postgres://h:port/db",
            "file:a.db",
        ] {
            assert!(kind(url).is_err(), "{url}");
        }
    }
}
