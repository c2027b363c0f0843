//! Reads one source into entries: a file, or single texts from variables and options.
//!
//! Neighbours: [`super::environment`] names the variables, [`super::load`] orders the sources. A value that does not fit
//! becomes a problem and is left out, so that the other values can still be judged.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use caf_protocol::json::{self, DuplicateKey};
use config::{FileFormat, Format, ValueKind};
use serde::Deserialize;
use serde_json::Value;

use super::catalogue::{Catalogue, Found, Leaf, Node};
use super::origin::{KeyPath, Origin, Problem, is_secret, key_text, secret_behind_file};
use super::secret_files::{SecretFile, read_secret_file};

/// Largest settings file in bytes: the one with every key and its meaning has a hundredth of that.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// For so many unknown keys the nearest known one is looked for, which takes a moment each: who misspells more has another
/// kind of file.
const MAX_NEAREST: usize = 16;

/// What some editors begin files with.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// One value from one source.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: KeyPath,
    /// The value; without one the key goes back to its default.
    pub value: Option<Value>,
    /// Where it came from.
    pub origin: Origin,
}

/// Reads sources and notes what is wrong with them.
#[derive(Debug)]
pub struct Reader<'a> {
    catalogue: &'a Catalogue,
    /// What is wrong so far.
    pub problems: Vec<Problem>,
    /// Known keys whose values were left out: rules about them must not be checked.
    pub rejected: BTreeSet<KeyPath>,
    /// What is usable and should be told.
    pub warnings: Vec<String>,
    /// Directory that files with single secrets are relative to.
    base: PathBuf,
    /// Unknown keys so far.
    unknown: usize,
}

impl<'a> Reader<'a> {
    /// A reader that knows these keys.
    pub fn new(catalogue: &'a Catalogue) -> Self {
        Self {
            catalogue,
            problems: Vec::new(),
            rejected: BTreeSet::new(),
            warnings: Vec::new(),
            base: PathBuf::new(),
            unknown: 0,
        }
    }

    /// Files with single secrets are relative to this directory.
    #[must_use]
    pub fn relative_to(mut self, base: &Path) -> Self {
        self.base = base.to_owned();
        self
    }

    /// The key whose value this name gives: another one where it names a file with a secret.
    pub fn key_of(&self, name: &[String]) -> KeyPath {
        let of_file =
            || secret_behind_file(name).filter(|_| matches!(self.catalogue.find(name), Found::Unknown));
        of_file().unwrap_or_else(|| name.to_vec())
    }

    /// Reads `path`, given relative to `base` and named as given.
    pub fn file(&mut self, base: &Path, path: &Path) -> Vec<Entry> {
        let origin = Origin::File(path.to_owned());
        match read_file(&base.join(path)).and_then(|text| self.parse(path, &text, &origin)) {
            Ok(tree) => self.document(tree, &origin),
            Err(rule) => {
                self.problems.push(Problem::of_key(&origin, &[], rule));
                Vec::new()
            }
        }
    }

    /// Takes a whole document apart into entries.
    pub fn document(&mut self, tree: Value, origin: &Origin) -> Vec<Entry> {
        let mut entries = Vec::new();
        let catalogue = self.catalogue;
        self.tree(catalogue.root(), &mut Vec::new(), tree, origin, &mut entries);
        entries
    }

    /// Notes the keys that a JSON document gives twice.
    pub fn twice(&mut self, duplicates: &[DuplicateKey], origin: &Origin) {
        for key in duplicates {
            let path: KeyPath = key.path.split('.').map(str::to_owned).collect();
            self.problems
                .push(Problem::of_key(origin, &path, "is given twice"));
        }
    }

    /// Reads a text for a key, as variables and options give it.
    pub fn text(&mut self, key: KeyPath, text: &str, origin: Origin) -> Option<Entry> {
        let leaf = match self.catalogue.find(&key) {
            Found::Leaf(leaf) => leaf,
            Found::Section => {
                let rule = "is a section: name a key inside it";
                self.problems.push(Problem::of_key(&origin, &key, rule));
                return None;
            }
            Found::Unknown => {
                if let Some(secret) = secret_behind_file(&key) {
                    return self.from_file(secret, text, origin);
                }
                self.unknown(&key, false, &origin);
                return None;
            }
        };
        let value = match text {
            "" => None,
            text => match leaf.kind.parse(text) {
                Some(value) => Some(value),
                None => {
                    self.misfit(leaf, &key, &Value::from(text), &origin);
                    return None;
                }
            },
        };
        Some(Entry { key, value, origin })
    }

    /// Reads a text for a key from the file at `path`; an empty path is none.
    pub fn from_file(&mut self, key: KeyPath, path: &str, origin: Origin) -> Option<Entry> {
        if path.is_empty() {
            return None;
        }
        match read_secret_file(&self.base, Path::new(path)) {
            Ok(SecretFile { value, warning }) => {
                self.warnings.extend(warning);
                let origin = Origin::SecretFile(path.into(), Box::new(origin));
                self.text(key, value.expose(), origin)
            }
            Err(rule) => {
                self.problems.push(Problem::of_key(&origin, &key, rule));
                self.rejected.insert(key);
                None
            }
        }
    }

    /// Notes a problem with a value of a known key.
    pub fn reject(&mut self, key: &[String], rule: impl Into<String>, value: &Value, origin: &Origin) {
        self.problems.push(Problem::of_value(origin, key, rule, value));
        self.rejected.insert(key.to_vec());
    }

    fn parse(&mut self, path: &Path, text: &str, origin: &Origin) -> Result<Value, String> {
        let extension = path
            .extension()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let format = match extension.to_ascii_lowercase().as_str() {
            "toml" => FileFormat::Toml,
            "json" => FileFormat::Json,
            _ => return Err("must have a name that ends in .toml or .json".to_owned()),
        };
        if format == FileFormat::Json
            && let Ok(document) = json::parse(text.as_bytes())
        {
            self.twice(&document.duplicates, origin);
        }
        let table = Format::parse(&format, None, text).map_err(|error| parser_text(&error.to_string()))?;
        let table = config::Value::new(None, ValueKind::Table(table));
        Value::deserialize(table).map_err(|error| parser_text(&error.to_string()))
    }

    /// Takes a tree apart into the keys that the catalogue knows.
    fn tree(&mut self, node: &Node, key: &mut KeyPath, value: Value, origin: &Origin, out: &mut Vec<Entry>) {
        match (node, value) {
            (Node::Table(table), Value::Object(fields)) => {
                for (name, field) in fields {
                    key.push(name);
                    match key.last().and_then(|name| table.entries.get(name)) {
                        Some(inner) => self.tree(inner, key, field, origin, out),
                        None if secret_behind_file(key).is_some() && field.is_string() => {
                            self.file_in_document(key, field.as_str().unwrap_or_default(), origin, out);
                        }
                        None => self.unknown(key, field.is_object(), origin),
                    }
                    key.pop();
                }
            }
            (Node::Map(inner), Value::Object(fields)) if !fields.is_empty() => {
                for (name, field) in fields {
                    key.push(name);
                    self.tree(inner, key, field, origin, out);
                    key.pop();
                }
            }
            (Node::Leaf(leaf), value) => {
                if leaf.kind.accepts(&value) || (leaf.optional && value.is_null()) {
                    out.push(Entry {
                        key: key.clone(),
                        value: Some(value),
                        origin: origin.clone(),
                    });
                } else {
                    self.misfit(leaf, key, &value, origin);
                }
            }
            (Node::Map(_), value @ Value::Object(_)) => {
                out.push(Entry {
                    key: key.clone(),
                    value: Some(value),
                    origin: origin.clone(),
                });
            }
            (_, value) => self.reject(key, "must be a table", &value, origin),
        }
    }

    fn file_in_document(&mut self, name: &[String], path: &str, origin: &Origin, out: &mut Vec<Entry>) {
        let key = self.key_of(name);
        if let Some(twin) = out.iter().find(|entry| entry.key == key) {
            let rule = format!(
                "is given as {} and as {}: one of them",
                key_text(&twin.key),
                key_text(name)
            );
            self.problems.push(Problem::of_key(origin, &key, rule));
            self.rejected.insert(key);
        } else {
            out.extend(self.from_file(key, path, origin.clone()));
        }
    }

    fn misfit(&mut self, leaf: &Leaf, key: &[String], value: &Value, origin: &Origin) {
        let rule = format!("must be {}", leaf.kind.description());
        self.reject(key, rule, value, origin);
    }

    /// The value is not repeated: a misspelled password is still a password.
    fn unknown(&mut self, key: &[String], is_section: bool, origin: &Origin) {
        let what = if is_section { "section" } else { "key" };
        self.unknown += 1;
        if self.unknown > MAX_NEAREST {
            let rule = format!("unknown {what}");
            self.problems.push(Problem::of_key(origin, key, rule));
            return;
        }
        let nearest = self.catalogue.nearest(key, is_section);
        let mut rule = format!("unknown {what}; the nearest known one is {nearest}");
        if let Origin::Environment(_) = origin {
            let variable = nearest.to_ascii_uppercase().replace('.', "__");
            rule = format!("{rule} (WORKER__{variable})");
        }
        self.problems.push(Problem::of_key(origin, key, rule));
    }
}

/// Text of a file; an error says why there is none.
pub(super) fn read_file(path: &Path) -> Result<String, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    let mut text = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("is larger than {MAX_FILE_BYTES} bytes"));
    }
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len());
    }
    String::from_utf8(text).map_err(|_| "is not UTF-8".to_owned())
}

/// A parser's complaint without the lines that it quotes: they may hold a secret.
fn parser_text(message: &str) -> String {
    let is_quote = |line: &&str| {
        let gutter = line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit());
        !gutter.trim_start().starts_with('|')
    };
    message.lines().filter(is_quote).collect::<Vec<_>>().join(": ")
}

/// The rule for a value that its own type refuses although it looks right. Says nothing of secrets.
pub(super) fn refused(key: &[String], error: &str) -> String {
    if key.is_empty() || !is_secret(key) {
        caf_actors::mask::mask_text(error).into_owned()
    } else {
        format!("the value of {} cannot be used", key_text(key))
    }
}
