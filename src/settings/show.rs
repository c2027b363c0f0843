//! Every setting with its value and source, for `config show`. Secrets are masked.

use serde::Serialize;
use serde_json::Value;

use super::catalogue::{Catalogue, Node};
use super::load::Loaded;
use super::origin::{KeyPath, key_text};
use super::reloadable::is_reloadable;

/// One setting.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// The key, dotted.
    pub key: String,
    /// The value, masked; null when an optional key is not set.
    pub value: Value,
    /// Where it came from.
    pub source: String,
    /// Whether a SIGHUP puts a change in force.
    pub reloadable: bool,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reload = if self.reloadable { "; SIGHUP reloads" } else { "" };
        match &self.value {
            Value::Null => write!(f, "{} = (unset)  # {}{reload}", self.key, self.source),
            value => write!(f, "{} = {value}  # {}{reload}", self.key, self.source),
        }
    }
}

/// All settings, sorted by key.
pub fn lines(loaded: &Loaded) -> Vec<Line> {
    let tree = serde_json::to_value(&loaded.settings).unwrap_or_default();
    let mut lines = Vec::new();
    walk(
        Catalogue::of_settings().root(),
        &mut Vec::new(),
        &tree,
        loaded,
        &mut lines,
    );
    lines.sort_by(|a, b| a.key.cmp(&b.key));
    lines
}

fn walk(node: &Node, key: &mut KeyPath, value: &Value, loaded: &Loaded, lines: &mut Vec<Line>) {
    let inner: Vec<(&String, &Node)> = match (node, value) {
        (Node::Table(table), _) => table.entries.iter().collect(),
        (Node::Map(inner), Value::Object(fields)) if !fields.is_empty() => {
            fields.keys().map(|name| (name, inner.as_ref())).collect()
        }
        (Node::Map(_) | Node::Leaf(_), _) => {
            let origin = loaded.origin(key);
            lines.push(Line {
                key: key_text(key),
                value: origin.shown(key, value),
                source: origin.to_string(),
                reloadable: is_reloadable(key),
            });
            return;
        }
    };
    for (name, node) in inner {
        key.push(name.clone());
        walk(node, key, value.get(name).unwrap_or(&Value::Null), loaded, lines);
        key.pop();
    }
}
