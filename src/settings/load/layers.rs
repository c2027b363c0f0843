//! The entries of all sources in order, and their form as sources of the `config` crate, which merges them.

use std::collections::BTreeMap;

use config::{ConfigError, Map, Source, ValueKind};
use serde_json::Value;

use crate::settings::Settings;
use crate::settings::catalogue::{Catalogue, Node};
use crate::settings::environment::split;
use crate::settings::feature::Feature;
use crate::settings::origin::{KeyPath, Origin};
use crate::settings::sources::Entry;

/// Entries of sources, the strongest last.
#[derive(Debug, Default)]
pub(super) struct Layers(Vec<Vec<Entry>>);

/// One layer as `config` takes it.
#[derive(Debug, Clone)]
pub(super) struct Layer(Map<String, config::Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, config::Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

impl Layers {
    /// Adds a stronger layer. An entry without a value takes its key out of all weaker ones.
    pub(super) fn push(&mut self, entries: Vec<Entry>) {
        let mut layer: Vec<Entry> = Vec::new();
        for entry in entries {
            let weaker = self.0.iter_mut().chain(std::iter::once(&mut layer));
            if entry.value.is_none() {
                weaker.for_each(|entries| entries.retain(|weaker| weaker.key != entry.key));
            } else {
                layer.push(entry);
            }
        }
        self.0.push(layer);
    }

    /// Takes every key under `prefix` out.
    pub(super) fn drop_under(&mut self, prefix: &[String]) {
        for layer in &mut self.0 {
            layer.retain(|entry| !entry.key.starts_with(prefix));
        }
    }

    /// Where the strongest value of each key came from.
    pub(super) fn origins(&self) -> BTreeMap<KeyPath, Origin> {
        let entries = self.0.iter().flatten();
        entries
            .map(|entry| (entry.key.clone(), entry.origin.clone()))
            .collect()
    }

    /// Everything that was said of a key, the strongest last.
    pub(super) fn values(&self, key: &[String]) -> Vec<&Entry> {
        let entries = self.0.iter().flatten();
        entries.filter(|entry| entry.key == key).collect()
    }

    /// Whether a flag is on once these layers come on top.
    pub(super) fn is_on(&self, stronger: &[Vec<Entry>], feature: Feature) -> bool {
        let key = split(&feature.flag_key());
        let mut entries = self.0.iter().chain(stronger).flatten();
        let last = entries.rfind(|entry| entry.key == key);
        last.is_some_and(|entry| entry.value == Some(Value::Bool(true)))
    }

    /// In which layer, from 1, the strongest value of each key is.
    pub(super) fn ranks(&self) -> BTreeMap<KeyPath, usize> {
        let layers = self.0.iter().zip(1..);
        layers
            .flat_map(|(entries, rank)| entries.iter().map(move |entry| (entry.key.clone(), rank)))
            .collect()
    }

    /// All layers, with the defaults as the weakest.
    pub(super) fn into_sources(self, catalogue: &Catalogue) -> Result<Vec<Layer>, ConfigError> {
        let mut defaults =
            serde_json::to_value(Settings::default()).map_err(|e| ConfigError::Foreign(Box::new(e)))?;
        let keys: Vec<&KeyPath> = self.0.iter().flatten().map(|entry| &entry.key).collect();
        displace_maps(catalogue.root(), &mut defaults, &mut Vec::new(), &keys);
        let mut sources = vec![Layer::new(defaults)?];
        for entries in self.0 {
            let mut tree = Value::Object(serde_json::Map::new());
            for entry in entries {
                insert(&mut tree, &entry.key, entry.value.unwrap_or_default());
            }
            sources.push(Layer::new(tree)?);
        }
        Ok(sources)
    }
}

impl Layer {
    fn new(tree: Value) -> Result<Self, ConfigError> {
        let value: config::Value =
            serde_json::from_value(tree).map_err(|e| ConfigError::Foreign(Box::new(e)))?;
        match value.kind {
            ValueKind::Table(table) => Ok(Self(table)),
            _ => Ok(Self(Map::new())),
        }
    }
}

/// Empties the built-in maps that any key speaks about.
fn displace_maps(node: &Node, defaults: &mut Value, path: &mut KeyPath, keys: &[&KeyPath]) {
    match node {
        Node::Table(table) => {
            for (name, inner) in &table.entries {
                if let Some(value) = defaults.get_mut(name) {
                    path.push(name.clone());
                    displace_maps(inner, value, path, keys);
                    path.pop();
                }
            }
        }
        Node::Map(_) if keys.iter().any(|key| key.starts_with(path)) => {
            *defaults = Value::Object(serde_json::Map::new());
        }
        Node::Map(_) | Node::Leaf(_) => {}
    }
}

/// Puts a value at a path, making the tables on the way.
fn insert(tree: &mut Value, key: &[String], value: Value) {
    let mut node = tree;
    for segment in key {
        if !node.is_object() {
            *node = Value::Object(serde_json::Map::new());
        }
        node = &mut node[segment.as_str()];
    }
    // An empty table only says that a map was named; it must not wipe names given beside it.
    if !(value.is_object() && node.is_object()) {
        *node = value;
    }
}
