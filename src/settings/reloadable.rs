//! Keys that may change while the node runs, and what changed between two readings of the settings.
//!
//! Neighbours: `config show` marks these keys; [`crate::reload`] puts them in force. Pure.

use serde_json::Value;

use super::Settings;
use super::catalogue::{Catalogue, Node};
use super::origin::KeyPath;

/// Keys and sections that a SIGHUP puts in force. Who adds one adds it to [`crate::reload::Live`] too.
pub const RELOADABLE: [&str; 13] = [
    "blocks.http.allow_targets",
    "blocks.http.deny_ports",
    "blocks.http.deny_targets",
    "blocks.http.only_ports",
    "blocks.http.only_targets",
    "blocks.http.tenants",
    "log.dependencies",
    "log.level",
    "log.levels",
    "providers",
    "secrets",
    "tenants",
    "worker.metrics.tenant_label_allowlist",
];

/// Whether a change of this key needs no restart.
pub fn is_reloadable(key: &[String]) -> bool {
    entry_of(key).is_some()
}

/// What of the list this key is, or is below.
fn entry_of(key: &[String]) -> Option<&'static str> {
    RELOADABLE.into_iter().find(|known| {
        known
            .split('.')
            .zip(key)
            .filter(|(known, given)| known == given)
            .count()
            == known.split('.').count()
    })
}

/// Every key whose value differs, with its value in `new`; sections with names of the operator's choice count as one key.
pub fn changes(old: &Settings, new: &Settings) -> Vec<(KeyPath, Value)> {
    let tree = |settings: &Settings| serde_json::to_value(settings).unwrap_or_default();
    let mut found = Vec::new();
    walk(
        Catalogue::of_settings().root(),
        &mut Vec::new(),
        (&tree(old), &tree(new)),
        &mut found,
    );
    found
}

fn walk(node: &Node, key: &mut KeyPath, (old, new): (&Value, &Value), found: &mut Vec<(KeyPath, Value)>) {
    match node {
        Node::Table(table) => {
            for (name, inner) in &table.entries {
                key.push(name.clone());
                let at = |tree: &Value| tree.get(name).cloned().unwrap_or_default();
                walk(inner, key, (&at(old), &at(new)), found);
                key.pop();
            }
        }
        Node::Map(_) | Node::Leaf(_) if old != new => found.push((key.clone(), new.clone())),
        Node::Map(_) | Node::Leaf(_) => {}
    }
}

/// `running` with the reloadable keys of `new`.
pub fn merged(running: &Settings, new: &Settings) -> Settings {
    let mut merged = running.clone();
    merged.log.level = new.log.level;
    merged.log.levels.clone_from(&new.log.levels);
    merged.log.dependencies = new.log.dependencies;
    merged.tenants.clone_from(&new.tenants);
    merged.secrets.clone_from(&new.secrets);
    merged.providers.clone_from(&new.providers);
    let labels = &new.worker.metrics.tenant_label_allowlist;
    merged.worker.metrics.tenant_label_allowlist.clone_from(labels);
    merged.blocks.http.take_rules(&new.blocks.http);
    merged
}

#[cfg(test)]
mod tests {
    use super::super::environment::split;
    use super::super::log::LogLevel;
    use super::*;
    use caf_blocks::settings::HttpTenantSettings;

    #[test]
    fn what_is_listed_is_what_is_merged() {
        let mut new = Settings::default();
        new.log.level = LogLevel::Debug;
        new.log.dependencies = LogLevel::Error;
        new.log.levels.insert("pool".to_owned(), LogLevel::Debug);
        new.tenants.allowed = vec!["a".to_owned()];
        new.tenants.default.weight = 2;
        new.secrets.insert("s".to_owned(), Default::default());
        let provider = caf_blocks::settings::ProviderSettings::new("http://h/v1");
        new.providers.insert("p:x".to_owned(), provider);
        new.worker.metrics.tenant_label_allowlist = vec!["t".to_owned()];
        let http = &mut new.blocks.http;
        http.allow_targets = vec!["h".to_owned()];
        http.deny_targets = vec!["d".to_owned()];
        http.only_targets = vec!["o".to_owned()];
        http.deny_ports = vec![81];
        http.only_ports = vec![80];
        http.tenants.insert("t".to_owned(), HttpTenantSettings::default());
        new.nats.url = "nats://other".to_owned();
        let merged = merged(&Settings::default(), &new);
        let changed = changes(&Settings::default(), &merged);
        let mut listed: Vec<_> = changed.iter().filter_map(|(key, _)| entry_of(key)).collect();
        assert_eq!(listed.len(), changed.len(), "{changed:?}");
        listed.dedup();
        assert_eq!(listed, RELOADABLE);
        let left: Vec<_> = changes(&merged, &new).into_iter().map(|(key, _)| key).collect();
        assert_eq!(left, [split("nats.url")]);
    }

    #[test]
    fn what_is_listed_is_what_operators_are_told() {
        for (text, from, to) in [
            (
                include_str!("../../README.md"),
                "In force at once:",
                "(`config show`",
            ),
            (
                include_str!("../../config/worker.toml"),
                "In force at once:",
                "; any other",
            ),
        ] {
            let start = text.split_once(from).unwrap().1;
            let told = start.split_once(to).unwrap().0.replace(['`', '#', '\n'], " ");
            let mut told: Vec<&str> = told.split(',').map(str::trim).collect();
            told.sort_unstable();
            assert_eq!(told, RELOADABLE);
        }
    }

    #[test]
    fn names_below_a_listed_section_are_reloadable_and_neighbours_are_not() {
        for (key, is) in [
            ("log.level", true),
            ("log.levels.intake", true),
            ("log.file", false),
            ("log", false),
            ("tenants.allowed", true),
            ("tenants.default.weight", true),
        ] {
            assert_eq!(is_reloadable(&split(key)), is, "{key}");
        }
    }
}
