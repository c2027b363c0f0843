//! Puts the sources on top of each other and judges the result: defaults, `config/worker.toml`, the policy files, files
//! given with `--config`, environment, command line; the later wins, key by key.
//!
//! Neighbours: the command line makes [`Sources`]; [`super::sources`] reads each; `config` merges them. The named
//! entries of a map (directories, databases) add up; the built-in ones count only while no source names any.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use caf_actors::settings::rules::{BrokenRule, Rules};
use config::{Config, ConfigError};
use serde_json::Value;

use super::catalogue::{Catalogue, Node};
use super::feature::Feature;
use super::origin::{KeyPath, Origin, Problem, SettingsError};
use super::sources::{Entry, Reader, refused};
use super::{Settings, environment, named_secrets};

mod layers;
pub mod policy_file;
use layers::Layers;
use policy_file::PolicyFile;

/// The file that is read when it is there, relative to the working directory.
pub const DEFAULT_FILE: &str = "config/worker.toml";

/// Where settings come from. Everything is given: nothing here looks at the process.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Directory that file names are relative to.
    pub working_dir: PathBuf,
    /// Files of `--config`, in order.
    pub files: Vec<PathBuf>,
    /// Environment variables.
    pub environment: Vec<(OsString, OsString)>,
    /// Options, in order.
    pub command_line: Vec<SetKey>,
}

/// What an option sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetKey {
    /// A key, dotted, and its value as text; empty puts it back to its default.
    Key(String, String),
    /// The base address of `--prometheus-endpoint`.
    PrometheusEndpoint(String),
}

/// How strong the sources of keys are: the number of the layer, from 1. What is not there has its default.
pub type Ranks = BTreeMap<KeyPath, usize>;

/// Settings that can be used, and where each came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Keys that a source gave; all others have their default.
    pub origins: BTreeMap<KeyPath, Origin>,
    /// How strong the source of each of those was.
    pub ranks: Ranks,
    /// What the sources say of flags in vain, each with a sentence: a file whose policy file comes later and says off,
    /// variables that disagree, or that look like flags and are none.
    pub flag_warnings: Vec<String>,
}

impl Loaded {
    /// Where the value of a key came from.
    pub fn origin(&self, key: &[String]) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }
}

/// Reads, merges and checks all sources.
///
/// # Errors
/// Everything that is wrong, not only the first thing.
pub fn load(sources: &Sources) -> Result<Loaded, SettingsError> {
    let catalogue = Catalogue::of_settings();
    let mut reader = Reader::new(catalogue).relative_to(&sources.working_dir);
    let mut layers = Layers::default();
    let default_file = Path::new(DEFAULT_FILE);
    if is_there(&sources.working_dir, default_file) {
        layers.push(reader.file(&sources.working_dir, default_file));
    }
    for file in Feature::ALL.iter().filter_map(|feature| feature.policy_file()) {
        let file = Path::new(file);
        if is_there(&sources.working_dir, file) {
            let judged = PolicyFile::judge(catalogue, &sources.working_dir, file);
            reader.problems.extend(judged.problems().cloned());
            reader.rejected.extend(judged.rejected);
            layers.push(judged.entries);
        }
    }
    for file in &sources.files {
        layers.push(reader.file(&sources.working_dir, file));
    }
    let variables = environment::collect(&mut reader, sources.environment.iter().cloned());
    let strongest = [
        environment::plain(&mut reader, &variables),
        environment::prefixed(&mut reader, &variables),
        options(&mut reader, &sources.command_line),
    ];
    if layers.is_on(&strongest, Feature::Tracing) {
        layers.push(environment::of_tracing(&mut reader, &variables));
    }
    strongest.into_iter().for_each(|entries| layers.push(entries));

    let Reader {
        problems,
        rejected,
        warnings,
        ..
    } = reader;
    let mut loaded = judge(catalogue, layers, problems, &rejected)?;
    loaded
        .flag_warnings
        .extend(environment::warnings(&variables).into_iter().chain(warnings));
    named_secrets::read_values(&mut loaded, sources).map_err(|problems| SettingsError { problems })?;
    Ok(loaded)
}

/// Whether a file is there; one of which that cannot be told is, so that reading it says why.
fn is_there(base: &Path, file: &Path) -> bool {
    !matches!(base.join(file).try_exists(), Ok(false))
}

/// Merges what could be read and checks the rest of the rules, so that one run shows every problem.
fn judge(
    catalogue: &Catalogue,
    mut layers: Layers,
    mut problems: Vec<Problem>,
    rejected: &BTreeSet<KeyPath>,
) -> Result<Loaded, SettingsError> {
    for (instance, missing, origin) in incomplete(catalogue, &layers.origins()) {
        if !rejected.contains(&missing) {
            problems.push(Problem::of_key(&origin, &missing, "is required here"));
        }
        layers.drop_under(&instance);
    }
    let (origins, ranks) = (layers.origins(), layers.ranks());
    let flag_warnings = Feature::ALL
        .iter()
        .filter_map(|feature| overruled(*feature, &layers))
        .collect();
    match merge(catalogue, layers) {
        Ok(settings) => {
            // A policy file was judged by itself already.
            let broken = broken_rules(&settings, &origins, rejected);
            let new: Vec<_> = broken
                .into_iter()
                .filter(|rule| !problems.contains(rule))
                .collect();
            problems.extend(new);
            if problems.is_empty() {
                return Ok(Loaded {
                    settings,
                    origins,
                    ranks,
                    flag_warnings,
                });
            }
        }
        Err(error) => problems.push(unusable(&error, &origins)),
    }
    Err(SettingsError { problems })
}

/// What to say of a flag that is on in a file and off in its policy file: there it was probably overlooked.
fn overruled(feature: Feature, layers: &Layers) -> Option<String> {
    let key = feature.flag_key();
    let values = layers.values(&environment::split(&key));
    let (last, earlier) = values.split_last()?;
    let is_on = |entry: &&&Entry| entry.value == Some(Value::Bool(true));
    let policy_file = Origin::File(feature.policy_file()?.into());
    let in_vain = earlier.iter().find(is_on)?;
    (last.origin == policy_file && !is_on(&last)).then(|| {
        let by = &last.origin;
        format!(
            "{key} ({}) has no effect: {by} comes later and says false",
            in_vain.origin
        )
    })
}

fn options(reader: &mut Reader<'_>, assignments: &[SetKey]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for assignment in assignments {
        match assignment {
            SetKey::Key(key, text) => {
                entries.extend(reader.text(environment::split(key), text, Origin::CommandLine));
            }
            SetKey::PrometheusEndpoint(base) => {
                entries.extend(environment::endpoints(reader, base, &Origin::CommandLine));
            }
        }
    }
    entries
}

/// Entries of maps that lack a name without default: the entry, the missing key, and where the entry came from.
/// Sections with fixed names get what is missing from the defaults.
fn incomplete(catalogue: &Catalogue, origins: &BTreeMap<KeyPath, Origin>) -> Vec<(KeyPath, KeyPath, Origin)> {
    let mut found = BTreeMap::new();
    for (key, origin) in origins {
        for (instance, required) in named_tables(catalogue, key) {
            for name in required {
                let missing = [instance, std::slice::from_ref(name)].concat();
                if !origins.contains_key(&missing) {
                    found
                        .entry(missing)
                        .or_insert((instance.to_vec(), origin.clone()));
                }
            }
        }
    }
    let unfold = |(missing, (instance, origin))| (instance, missing, origin);
    found.into_iter().map(unfold).collect()
}

/// The tables on the way to `key` that an operator named, or that are inside such a one, with what they require.
fn named_tables<'a>(catalogue: &'a Catalogue, key: &'a [String]) -> Vec<(&'a [String], &'a [String])> {
    let mut node = catalogue.root();
    let mut is_named = false;
    let mut tables = Vec::new();
    for (depth, segment) in key.iter().enumerate() {
        let inner = match node {
            Node::Table(table) => table.entries.get(segment),
            Node::Map(inner) => {
                is_named = true;
                Some(inner.as_ref())
            }
            Node::Leaf(_) => None,
        };
        let Some(inner) = inner else { break };
        if let (Node::Table(table), true) = (inner, is_named) {
            tables.push((&key[..=depth], table.required.as_slice()));
        }
        node = inner;
    }
    tables
}

fn merge(catalogue: &Catalogue, layers: Layers) -> Result<Settings, ConfigError> {
    layers
        .into_sources(catalogue)?
        .into_iter()
        .fold(Config::builder(), |builder, source| builder.add_source(source))
        .build()?
        .try_deserialize()
}

fn broken_rules(
    settings: &Settings,
    origins: &BTreeMap<KeyPath, Origin>,
    rejected: &BTreeSet<KeyPath>,
) -> Vec<Problem> {
    let mut rules = Rules::default();
    settings.validate(&mut rules);
    let tree = serde_json::to_value(settings).unwrap_or_default();
    let is_judged = |broken: &BrokenRule| {
        let other_is_rejected = broken
            .other
            .as_ref()
            .is_some_and(|other| rejected.contains(other));
        !rejected.contains(&broken.key) && !other_is_rejected
    };
    rules
        .into_broken()
        .into_iter()
        .filter(is_judged)
        .map(|BrokenRule { key, other, rule }| {
            // A rule about the name of an entry: whoever says something inside it has named it.
            let inside = || origins.iter().find(|(inner, _)| inner.starts_with(&key));
            let list = key.split_last().map_or(&key[..], |(_, list)| list);
            let origin = origins
                .get(&key)
                .or_else(|| origins.get(list))
                .or_else(|| origins.get(other.as_ref()?))
                .or_else(|| inside().map(|(_, origin)| origin));
            let value = key.iter().try_fold(&tree, |node, name| match node {
                // The rule is about one entry of a list.
                Value::Array(entries) => entries.get(name.parse::<usize>().ok()?),
                node => node.get(name),
            });
            Problem::of_value(
                origin.unwrap_or(&Origin::Default),
                &key,
                rule,
                value.unwrap_or(&Value::Null),
            )
        })
        .collect()
}

/// What a type of its own refused although the schema lets it through.
fn unusable(error: &ConfigError, origins: &BTreeMap<KeyPath, Origin>) -> Problem {
    let key = match error {
        ConfigError::Type { key, .. } | ConfigError::At { key, .. } => key.as_deref(),
        ConfigError::NotFound(key) => Some(key.as_str()),
        _ => None,
    };
    let key = key.map(environment::split).unwrap_or_default();
    let origin = origins.get(&key).unwrap_or(&Origin::Default);
    Problem::of_key(origin, &key, refused(&key, &error.to_string()))
}

#[cfg(test)]
mod tests;
