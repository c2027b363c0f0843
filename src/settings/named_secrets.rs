//! Section `secrets`: values that jobs may name, and whom each is for.
//!
//! Neighbours: [`super::load`] has their values read once everything else fits, at the start and at each SIGHUP; the node
//! fills the vault that blocks ask with [`vault_entries`]. What a value must be is said by
//! [`caf_protocol::secret::vault`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use caf_actors::settings::rules::Rules;
use caf_protocol::secret::Secret;
use caf_protocol::secret::reference::is_name;
use caf_protocol::secret::vault::{
    BLOCK_TYPES, DESTINATION_RULE, Destination, EVERY_TENANT, NamedSecret, Target, check_value,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Settings;
use super::load::{Loaded, Sources};
use super::origin::{KeyPath, Origin, Problem};
use super::secret_files::read_secret_file;

/// Most secrets: far beyond what a node's operator keeps apart, and a bound on what every line is searched for.
const MAX_SECRETS: usize = 1_000;
/// All values together in bytes: finding them takes some hundred times as much memory.
const MAX_VALUES_BYTES: usize = 128 * 1024;

/// Section `secrets.<name>`: one value, from exactly one of `value`, `file` and `env`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NamedSecretSettings {
    /// The value itself, 8 to 8192 bytes.
    pub value: Option<Secret>,
    /// File that holds the value; one line break at its end does not count. Read at the start and at each SIGHUP.
    pub file: Option<PathBuf>,
    /// Environment variable that holds the value.
    pub env: Option<String>,
    /// Tenants whose jobs may use it, `*` for all; nobody when empty.
    pub tenants: Vec<String>,
    /// Block types that may: `http.request`, `sql.query`, and `model.call` for `providers`.
    pub block_types: Vec<String>,
    /// Where it may be sent: `api.example.com` (https on any port; http too where it is this very host), the same with
    /// `:port`, `https://api.example.com:8443`, `postgres://db.example.com:5432`, or `sql:<connection>`.
    pub destinations: Vec<String>,
}

/// Checks the section and what speaks of it.
pub fn validate(settings: &Settings, rules: &mut Rules) {
    rules.section("secrets", |rules| {
        for (number, (name, secret)) in settings.secrets.iter().enumerate() {
            rules.require(name, number < MAX_SECRETS, "must be one of at most 1000");
            let rule = "must have a name of 1 to 64 letters, digits, '_', '-' or '.'";
            rules.require(name, is_name(name), rule);
            rules.section(name, |rules| secret.validate(settings, rules));
        }
    });
    rules.section("blocks", |rules| {
        rules.section("sql", |rules| {
            rules.section("connections", |rules| {
                for (name, connection) in &settings.blocks.sql.connections {
                    let named = connection.password_secret.as_ref();
                    let is_there = named.is_none_or(|secret| settings.secrets.contains_key(secret));
                    let rule = "must be the name of a secret, see secrets.<name>";
                    rules.section(name, |rules| rules.require("password_secret", is_there, rule));
                }
            });
        });
    });
}

impl NamedSecretSettings {
    fn validate(&self, settings: &Settings, rules: &mut Rules) {
        let given = [self.value.is_some(), self.file.is_some(), self.env.is_some()];
        let one = given.iter().filter(|given| **given).count() == 1;
        let first = match given {
            [true, ..] => "value",
            [_, _, true] => "env",
            _ => "file",
        };
        rules.require(
            first,
            one,
            "must be given, or one of value, file and env in its place, not more",
        );
        if let Some(value) = &self.value
            && let Err(rule) = check_value(value.expose())
        {
            rules.require("value", false, rule);
        }
        let named = |name: &String| !name.is_empty() && !name.contains(['=', '\0']);
        rules.require(
            "env",
            self.env.as_ref().is_none_or(named),
            "must be the name of a variable",
        );
        let named = |path: &PathBuf| !path.as_os_str().is_empty();
        rules.require("file", self.file.as_ref().is_none_or(named), "must be a path");
        let is_tenant =
            |tenant: &String| tenant == EVERY_TENANT || (!tenant.is_empty() && tenant.len() <= 256);
        let rule = "must be tenant ids of 1 to 256 bytes, or \"*\"";
        rules.require("tenants", self.tenants.iter().all(is_tenant), rule);
        let known = |name: &String| BLOCK_TYPES.contains(&name.as_str());
        let rule = "must be http.request, model.call or sql.query: no other block resolves secrets";
        rules.require("block_types", self.block_types.iter().all(known), rule);
        for text in &self.destinations {
            match Destination::parse(text) {
                Err(_) => rules.require("destinations", false, DESTINATION_RULE),
                Ok(Destination::Exactly(Target::Connection(name))) => {
                    let is_there = settings.blocks.sql.connections.contains_key(&name);
                    let rule = "must name connections of blocks.sql.connections after sql:";
                    rules.require("destinations", is_there, rule);
                }
                Ok(_) => {}
            }
        }
    }
}

/// Reads the values that are in files and variables, into the settings as if they had been given there.
///
/// # Errors
/// What cannot be read or used, without any value.
pub(super) fn read_values(loaded: &mut Loaded, sources: &Sources) -> Result<(), Vec<Problem>> {
    let mut problems = Vec::new();
    let mut bytes = 0;
    for (name, secret) in &mut loaded.settings.secrets {
        let key = |last: &str| -> KeyPath { ["secrets", name, last].map(str::to_owned).into() };
        let (given, origin) = match (&secret.file, &secret.env) {
            (Some(file), _) => {
                let named_by = loaded
                    .origins
                    .get(&key("file"))
                    .cloned()
                    .unwrap_or(Origin::Default);
                let origin = Origin::SecretFile(file.clone(), Box::new(named_by));
                let read = read_secret_file(&sources.working_dir, file).map(|read| {
                    loaded.flag_warnings.extend(read.warning);
                    read.value
                });
                (read.map_err(|rule| (key("file"), rule)), origin)
            }
            (None, Some(env)) => {
                let value = from_environment(sources, env);
                (
                    value.map_err(|rule| (key("env"), rule)),
                    Origin::Environment(env.clone()),
                )
            }
            (None, None) => {
                bytes += secret.value.as_ref().map_or(0, |value| value.expose().len());
                continue;
            }
        };
        let usable = given.and_then(|value| {
            let broken = |rule: &str| (key("value"), format!("{rule} ({origin})"));
            check_value(value.expose()).map(|()| value).map_err(broken)
        });
        match usable {
            Ok(value) => {
                bytes += value.expose().len();
                secret.value = Some(value);
                loaded.origins.insert(key("value"), origin);
            }
            Err((key, rule)) => {
                let source = loaded.origins.get(&key).unwrap_or(&origin);
                problems.push(Problem::of_key(source, &key, rule));
            }
        }
    }
    if bytes > MAX_VALUES_BYTES {
        let rule = format!("all values together must be at most {MAX_VALUES_BYTES} bytes");
        problems.push(Problem::of_key(&Origin::Default, &["secrets".to_owned()], rule));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

fn from_environment(sources: &Sources, name: &str) -> Result<Secret, String> {
    let found = sources.environment.iter().find(|(known, _)| known == name);
    let (_, value) = found.ok_or_else(|| format!("names the variable {name}, which is not set"))?;
    let text = value
        .to_str()
        .ok_or_else(|| format!("names the variable {name}, which is not UTF-8"))?;
    Ok(Secret::new(text))
}

/// What a vault holds by these settings. A secret without a value, which a check would have refused, is left out.
pub fn vault_entries(named: &BTreeMap<String, NamedSecretSettings>) -> Vec<(String, NamedSecret)> {
    let entry = |(name, secret): (&String, &NamedSecretSettings)| {
        let destinations = secret
            .destinations
            .iter()
            .filter_map(|text| Destination::parse(text).ok());
        let made = NamedSecret::new(
            secret.value.clone()?,
            secret.tenants.iter().cloned(),
            secret.block_types.iter().cloned(),
            destinations.collect(),
        );
        Some((name.clone(), made))
    };
    named.iter().filter_map(entry).collect()
}

#[cfg(test)]
mod tests;
