//! Every feature flag with its value, where that came from, and what follows: for `config flags`, and for the log of a
//! node that starts.

use caf_actors::pool::policy::Policy;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::environment::split;
use super::feature::Feature;
use super::in_force::InForce;
use super::load::Loaded;
use super::origin::{Origin, SettingsError};

/// One flag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Flag {
    /// The feature, such as `retry`.
    pub feature: &'static str,
    /// Key of the flag, dotted.
    pub key: String,
    /// Variables that are the flag too.
    pub variables: &'static [&'static str],
    /// Whether it is on.
    pub enabled: bool,
    /// Where that came from.
    pub source: String,
    /// How the feature behaves: a flag that is on without a policy changes nothing.
    pub mode: Mode,
}

/// How a feature behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Mode {
    /// As with all flags off.
    #[serde(rename = "CP1 baseline")]
    Cp1,
    /// By its policy.
    #[serde(rename = "CP2 mode")]
    Cp2,
}

impl Mode {
    /// As logs name it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Cp1 => "cp1",
            Self::Cp2 => "cp2",
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cp1 => "CP1 baseline",
            Self::Cp2 => "CP2 mode",
        })
    }
}

impl std::fmt::Display for Flag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            feature,
            key,
            variables,
            enabled,
            source,
            mode,
        } = self;
        let [name, others @ ..] = variables else {
            return write!(f, "{key} = {enabled} ({source}): {mode}; {feature}");
        };
        let also: String = others.iter().map(|name| format!(", also {name}")).collect();
        write!(
            f,
            "{name} = {enabled} ({source}): {mode}; {feature}, key {key}{also}"
        )
    }
}

/// All flags, and what an operator should know of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// One for each feature.
    pub flags: Vec<Flag>,
    /// Sentences.
    pub warnings: Vec<String>,
}

/// Looks at the flags of settings that can be used.
pub fn report(loaded: &Loaded) -> Report {
    let in_force = InForce::of(&loaded.settings, &loaded.ranks);
    let flags = all(loaded, &in_force);
    let on = flags.iter().filter(|flag| flag.mode == Mode::Cp2);
    let on: Vec<_> = on.map(|flag| flag.feature).collect();
    let mut warnings = [loaded.flag_warnings.clone(), in_force.warnings].concat();
    if !on.is_empty() {
        warnings.push(format!(
            "CP2 is on for {}: behaviour differs from the CP1 baseline",
            on.join(", ")
        ));
    }
    Report { flags, warnings }
}

fn all(loaded: &Loaded, in_force: &InForce) -> Vec<Flag> {
    let tree = serde_json::to_value(&loaded.settings).unwrap_or_default();
    Feature::ALL
        .into_iter()
        .map(|feature| {
            let key = feature.flag_key();
            let path = split(&key);
            let value = path.iter().try_fold(&tree, |node, name| node.get(name));
            Flag {
                feature: feature.name(),
                variables: feature.variables(),
                enabled: value.and_then(Value::as_bool).unwrap_or_default(),
                source: loaded.origin(&path).to_string(),
                mode: if in_force.has(feature) {
                    Mode::Cp2
                } else {
                    Mode::Cp1
                },
                key,
            }
        })
        .collect()
}

/// What the log says at the start: the mode of each feature, where its flag came from, and which policy rejects.
pub fn for_log(loaded: &Loaded, in_force: &InForce) -> Map<String, Value> {
    let mut features = Map::new();
    let mut sources = Map::new();
    for flag in all(loaded, in_force) {
        features.insert(flag.feature.to_owned(), flag.mode.as_str().into());
        sources.insert(flag.feature.to_owned(), flag.source.into());
    }
    if let Some(policy) = &in_force.queue {
        features.insert(
            "rejection_policy".to_owned(),
            Policy::chosen(policy).as_str().into(),
        );
    }
    features.insert("admission".to_owned(), json!(in_force.admission));
    features.insert("sources".to_owned(), sources.into());
    features
}

/// Why the flags cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Untold {
    /// A flag, or some other setting, has a value that cannot be used.
    InvalidValues,
    /// A file of settings cannot be read.
    Unreadable,
}

impl Untold {
    /// What stands in the way, a wrong flag before anything else.
    pub fn of(error: &SettingsError) -> Self {
        let is_flag = |key: &str| Feature::ALL.iter().any(|feature| feature.flag_key() == key);
        let file = Origin::File("".into()).to_string();
        if error.problems.iter().any(|problem| is_flag(&problem.key)) {
            return Self::InvalidValues;
        }
        // What is wrong with a file as a whole has no key.
        let unreadable =
            |problem: &super::origin::Problem| problem.key.is_empty() && problem.source.starts_with(&file);
        if error.problems.iter().any(unreadable) {
            Self::Unreadable
        } else {
            Self::InvalidValues
        }
    }

    /// As reports name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidValues => "invalid values",
            Self::Unreadable => "the configuration cannot be read",
        }
    }
}
