//! Settings of the log, and the directives that `LOG_LEVEL` and `RUST_LOG` hold.
//!
//! Neighbours: [`super`] composes the tree, [`super::environment`] reads the variables, the log takes [`LogSettings::rules`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use caf_actors::events::Level;
use caf_actors::levels::Rules as Levels;
use caf_actors::settings::rules::Rules;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest name of a module, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// Log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// Least severity that is written.
    pub level: LogLevel,
    /// The same for single modules, and for dependencies by their target.
    pub levels: BTreeMap<String, LogLevel>,
    /// The same for lines of dependencies; never more than `level`.
    pub dependencies: LogLevel,
    /// File to append to; without it errors go to standard error, the rest to standard output.
    pub file: Option<PathBuf>,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            level: LogLevel::Info,
            levels: BTreeMap::new(),
            dependencies: LogLevel::Warn,
            file: None,
        }
    }
}

/// Severity of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Pages someone.
    Error,
    /// Is looked at in the morning.
    Warn,
    /// Changes of state, and one line per job.
    Info,
    /// Every step of a job.
    Debug,
}

impl From<LogLevel> for Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
        }
    }
}

impl LogSettings {
    /// What is written.
    pub fn rules(&self) -> Levels {
        let modules = self.levels.iter();
        Levels {
            base: self.level.into(),
            dependencies: self.dependencies.into(),
            modules: modules
                .map(|(name, level)| (name.replace('-', "_"), (*level).into()))
                .collect(),
        }
    }

    /// Checks every rule that types cannot express.
    pub(super) fn validate(&self, rules: &mut Rules) {
        let named = self.file.as_ref().is_none_or(|file| !file.as_os_str().is_empty());
        rules.require("file", named, "must not be empty");
        rules.section("levels", |rules| {
            for name in self.levels.keys() {
                rules.require(
                    name,
                    is_module(name),
                    "must be the name of a module such as intake, nats::source or rustls",
                );
            }
        });
    }
}

/// What `LOG_LEVEL` or `RUST_LOG` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Directives {
    /// For all of the worker.
    pub level: Option<&'static str>,
    /// For single modules.
    pub modules: Vec<(String, &'static str)>,
    /// Parts that are no directives.
    pub unreadable: Vec<String>,
}

impl Directives {
    /// Reads `level` and `module=level`, separated by commas, as other programs have them: `trace` counts as debug, `off`
    /// as error (errors are always written), and a module without a level as debug. Where only we are
    /// `spoken_to`, such a one is a level that is misspelt.
    pub fn read(text: &str, spoken_to: bool) -> Self {
        let mut directives = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, level) = match part.split_once('=') {
                Some((name, level)) => (Some(name.trim()), level_of(level.trim())),
                None => match level_of(part) {
                    Some(level) => (None, Some(level)),
                    None => (Some(part), (!spoken_to).then_some("debug")),
                },
            };
            match (name, level) {
                (None, Some(level)) => directives.level = Some(level),
                (Some(name), Some(level)) if is_module(name) => {
                    directives.modules.push((name.to_owned(), level));
                }
                _ => directives.unreadable.push(part.to_owned()),
            }
        }
        directives
    }
}

fn level_of(word: &str) -> Option<&'static str> {
    match word.to_ascii_lowercase().as_str() {
        "off" | "error" => Some("error"),
        "warn" | "warning" => Some("warn"),
        "info" => Some("info"),
        "debug" | "trace" => Some("debug"),
        _ => None,
    }
}

fn is_module(name: &str) -> bool {
    let is_part = |part: &str| {
        let mut bytes = part.bytes();
        bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    name.len() <= MAX_NAME_BYTES && name.split("::").all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_name_a_level_for_all_and_for_modules() {
        let read = Directives::read(
            " info ,caf_actors=debug, async-nats=WARN,nats::source=trace,pool,mio=off",
            false,
        );
        assert_eq!(read.level, Some("info"));
        let modules: Vec<_> = read
            .modules
            .iter()
            .map(|(name, level)| (&**name, *level))
            .collect();
        assert_eq!(
            modules,
            [
                ("caf_actors", "debug"),
                ("async-nats", "warn"),
                ("nats::source", "debug"),
                ("pool", "debug"),
                ("mio", "error"),
            ]
        );
        assert!(read.unreadable.is_empty());
    }

    #[test]
    fn what_is_no_directive_is_told() {
        let read = Directives::read("warn,x=loud,[span]=info,a::=debug,=info,a b", false);
        assert_eq!(
            read.unreadable,
            ["x=loud", "[span]=info", "a::=debug", "=info", "a b"]
        );
        assert_eq!(read.level, Some("warn"));
        assert_eq!(Directives::read("inof,pool=info", true).unreadable, ["inof"]);
        assert_eq!(Directives::read("", true), Directives::default());
    }
}
