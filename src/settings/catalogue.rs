//! Every key there is, with its type, read off the JSON Schema of [`Settings`]: what is derived once cannot drift.
//!
//! Neighbours: [`super::sources`] asks what a key is and parses texts for it; [`super::load`] asks what is required.
//! Knows nothing of values, files or variables.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use schemars::{JsonSchema, schema_for};
use serde_json::{Map, Value};

use super::Settings;
use super::origin::{KeyPath, key_text};

mod kind;
pub use kind::{Kind, parse_flag};

/// So much of an unknown key is compared with the known ones: comparing takes time by the product of both lengths, and a file
/// that is no settings at all is to be refused as soon as any other.
const MAX_COMPARED_CHARS: usize = 128;

/// All keys of a settings type.
#[derive(Debug)]
pub struct Catalogue {
    root: Node,
    /// Every key, sorted; `*` stands for a name in a map.
    keys: Vec<KeyPath>,
    /// The same and the sections.
    with_sections: Vec<KeyPath>,
}

/// Made once: the schema takes milliseconds.
static OF_SETTINGS: LazyLock<Catalogue> = LazyLock::new(Catalogue::of::<Settings>);

/// A place in the tree of keys.
#[derive(Debug, Clone)]
pub enum Node {
    /// A section: fixed names.
    Table(Table),
    /// A section whose names the operator chooses.
    Map(Box<Node>),
    /// A key with a value.
    Leaf(Leaf),
}

/// A section.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// What it holds, by name.
    pub entries: BTreeMap<String, Node>,
    /// Names that must be given because they have no default.
    pub required: Vec<String>,
}

/// A key with a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Leaf {
    /// Type of the value.
    pub kind: Kind,
    /// Whether it may be absent.
    pub optional: bool,
}

/// What stands at a path.
#[derive(Debug)]
pub enum Found<'a> {
    /// A key.
    Leaf(&'a Leaf),
    /// A section.
    Section,
    /// Nothing.
    Unknown,
}

/// The JSON Schema of all settings.
pub fn schema() -> Value {
    schema_for!(Settings).to_value()
}

impl Catalogue {
    /// The keys of all settings.
    pub fn of_settings() -> &'static Self {
        &OF_SETTINGS
    }

    /// The keys of any settings type.
    pub fn of<T: JsonSchema>() -> Self {
        let schema = schema_for!(T).to_value();
        let empty = Map::new();
        let definitions = schema.get("$defs").and_then(Value::as_object).unwrap_or(&empty);
        let root = Reader { definitions }.node(&schema);
        let (mut keys, mut with_sections) = (Vec::new(), Vec::new());
        collect(&root, &mut Vec::new(), false, &mut keys);
        collect(&root, &mut Vec::new(), true, &mut with_sections);
        Self {
            root,
            keys,
            with_sections,
        }
    }

    /// The whole tree.
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// What stands at `path`. Any name fits in a map.
    pub fn find(&self, path: &[String]) -> Found<'_> {
        let mut node = &self.root;
        for segment in path {
            node = match node {
                Node::Table(table) => match table.entries.get(segment) {
                    Some(inner) => inner,
                    None => return Found::Unknown,
                },
                Node::Map(inner) => inner,
                Node::Leaf(_) => return Found::Unknown,
            };
        }
        match node {
            Node::Leaf(leaf) => Found::Leaf(leaf),
            Node::Table(_) | Node::Map(_) => Found::Section,
        }
    }

    /// Every key, sorted; `*` stands for a name in a map.
    pub fn keys(&self) -> &[KeyPath] {
        &self.keys
    }

    /// The known key that looks most like `path`; a section when `path` is one.
    pub fn nearest(&self, path: &[String], is_section: bool) -> String {
        let known = if is_section {
            &self.with_sections
        } else {
            &self.keys
        };
        let path: KeyPath = path
            .iter()
            .map(|name| name.chars().take(MAX_COMPARED_CHARS).collect())
            .collect();
        let given: String = key_text(&path).chars().take(MAX_COMPARED_CHARS).collect();
        let mut best: Option<((usize, usize), KeyPath)> = None;
        for key in known {
            let key = named_like(key, &path);
            let bound = best.as_ref().map(|(distance, _)| *distance);
            if let Some(distance) = distance_below(bound, &given, &path, &key) {
                best = Some((distance, key));
            }
        }
        best.map(|(_, key)| key_text(&key).replace('*', "<name>"))
            .unwrap_or_default()
    }
}

/// Adds every key under `node`, and the sections too if asked for.
fn collect(node: &Node, path: &mut KeyPath, with_sections: bool, keys: &mut Vec<KeyPath>) {
    let mut inner = |name: &str, node: &Node, keys: &mut Vec<KeyPath>| {
        path.push(name.to_owned());
        if with_sections && !matches!(node, Node::Leaf(_)) {
            keys.push(path.clone());
        }
        collect(node, path, with_sections, keys);
        path.pop();
    };
    match node {
        Node::Table(table) => {
            for (name, node) in &table.entries {
                inner(name, node, keys);
            }
        }
        Node::Map(node) => inner("*", node, keys),
        Node::Leaf(_) => keys.push(path.clone()),
    }
}

/// The key with the operator's own names in place of `*`, as far as `path` gives them.
fn named_like(key: &[String], path: &[String]) -> KeyPath {
    let mut same_so_far = true;
    key.iter()
        .enumerate()
        .map(|(at, segment)| {
            let given = path.get(at).filter(|_| same_so_far);
            match given {
                Some(given) if segment == "*" => given.clone(),
                _ => {
                    same_so_far &= given == Some(segment);
                    segment.clone()
                }
            }
        })
        .collect()
}

/// How far a known key is from a given one, when that is less than `bound`: typing errors anywhere, or the right name in the
/// wrong section; of two equally far ones the more similar as a whole.
fn distance_below(
    bound: Option<(usize, usize)>,
    given: &str,
    path: &[String],
    key: &[String],
) -> Option<(usize, usize)> {
    let known = key_text(key);
    let name = match (path.last(), key.last()) {
        (Some(given), Some(known)) => 2 + 2 * strsim::damerau_levenshtein(given, known),
        _ => usize::MAX,
    };
    // Texts differ by what one is longer, at least: comparing them as a whole takes most of the time.
    let at_least = given.chars().count().abs_diff(known.chars().count());
    if bound.is_some_and(|bound| bound <= (at_least.min(name), at_least)) {
        return None;
    }
    let whole = strsim::damerau_levenshtein(given, &known);
    let distance = (whole.min(name), whole);
    bound.is_none_or(|bound| distance < bound).then_some(distance)
}

/// Reads schemas as the schema generator writes them.
struct Reader<'a> {
    definitions: &'a Map<String, Value>,
}

impl Reader<'_> {
    fn node(&self, schema: &Value) -> Node {
        let schema = self.resolve(schema);
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            return Node::Table(self.table(schema, properties));
        }
        match schema.get("additionalProperties") {
            Some(inner) if inner.is_object() => Node::Map(Box::new(self.node(inner))),
            _ => {
                let (kind, optional) = self.kind(schema);
                Node::Leaf(Leaf { kind, optional })
            }
        }
    }

    fn table(&self, schema: &Value, properties: &Map<String, Value>) -> Table {
        let required = schema.get("required").and_then(Value::as_array);
        let names = required.into_iter().flatten().filter_map(Value::as_str);
        Table {
            entries: properties
                .iter()
                .map(|(name, inner)| (name.clone(), self.node(inner)))
                .collect(),
            required: names.map(str::to_owned).collect(),
        }
    }

    /// The type of a leaf, and whether null is allowed.
    fn kind(&self, schema: &Value) -> (Kind, bool) {
        let schema = self.resolve(schema);
        let choices = ["anyOf", "oneOf"]
            .iter()
            .find_map(|key| schema.get(key)?.as_array());
        if let Some(choices) = choices {
            let is_null = |choice: &Value| choice.get("type").is_some_and(|name| name == "null");
            let optional = choices.iter().any(is_null);
            let kinds: Vec<Kind> = choices
                .iter()
                .filter(|choice| !is_null(choice))
                .map(|choice| self.kind(choice).0)
                .collect();
            return (Kind::any_of(kinds), optional);
        }
        let types: Vec<&str> = match schema.get("type") {
            Some(Value::String(name)) => vec![name],
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let optional = types.contains(&"null");
        let name = types.into_iter().find(|name| *name != "null");
        let items = schema.get("items").map(|items| self.kind(items).0);
        (Kind::of_schema(name, schema, items), optional)
    }

    fn resolve<'s>(&'s self, schema: &'s Value) -> &'s Value {
        let name = schema.get("$ref").and_then(Value::as_str);
        name.and_then(|name| self.definitions.get(name.strip_prefix("#/$defs/")?))
            .unwrap_or(schema)
    }
}

#[cfg(test)]
mod tests;
