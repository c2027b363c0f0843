//! A policy file is a whole statement: JSON with `worker.<area>.v2` and nothing else, every value in its range, and no
//! required field missing. Judged by itself, whatever other sources say.
//!
//! Neighbours: [`super::load`] refuses a node the files that [`PolicyFile::judge`] finds wrong, and `config check
//! --policy` (so `scripts/worker/validate_config.sh`) prints the same: there is one judge. Prints nothing itself.

use std::collections::BTreeSet;
use std::path::Path;

use caf_protocol::json;
use serde_json::Value;

use super::layers::Layers;
use super::{is_there, judge};
use crate::settings::catalogue::Catalogue;
use crate::settings::environment::split;
use crate::settings::feature::Feature;
use crate::settings::origin::{KeyPath, Origin, Problem};
use crate::settings::sources::{Entry, Reader, read_file};

/// What kind of mistake a file has; the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It is no JSON, or cannot be read at all.
    NotJson,
    /// Something stands where it must not, or a value does not fit.
    Structure,
    /// Something required is not there: a field, or the file.
    Missing,
}

impl Fault {
    /// As reports name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotJson => "bad JSON",
            Self::Structure => "structure mismatch",
            Self::Missing => "missing required field",
        }
    }
}

/// A policy file, read and judged.
#[derive(Debug)]
pub struct PolicyFile {
    /// Whose policy it is, if that can be told by its name or by what it holds.
    pub feature: Option<Feature>,
    /// What it sets.
    pub(super) entries: Vec<Entry>,
    /// Keys whose values do not fit.
    pub(super) rejected: BTreeSet<KeyPath>,
    /// What is wrong with it.
    pub findings: Vec<(Fault, Problem)>,
}

impl PolicyFile {
    /// Reads and judges the file at `path`, relative to `base`.
    pub fn judge(catalogue: &Catalogue, base: &Path, path: &Path) -> Self {
        let origin = Origin::File(path.to_owned());
        let mut file = Self {
            feature: named_by(path),
            entries: Vec::new(),
            rejected: BTreeSet::new(),
            findings: Vec::new(),
        };
        match document(base, path) {
            Ok(document) => file.take(catalogue, document, &origin),
            Err((fault, rule)) => file.find(fault, Problem::of_key(&origin, &[], rule)),
        }
        file
    }

    /// Everything that is wrong.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.findings.iter().map(|(_, problem)| problem)
    }

    /// The worst of what is wrong.
    pub fn worst(&self) -> Option<Fault> {
        self.findings.iter().map(|(fault, _)| *fault).min()
    }

    fn find(&mut self, fault: Fault, problem: Problem) {
        self.findings.push((fault, problem));
    }

    fn take(&mut self, catalogue: &Catalogue, document: json::Document, origin: &Origin) {
        let root = document.value;
        if !root.is_object() {
            let section = self.feature.map_or_else(any_section, |f| f.section().to_owned());
            let rule = format!("must be an object that holds {section}");
            return self.find(Fault::Structure, Problem::of_key(origin, &[], rule));
        }
        match self.feature.map_or_else(|| held_by(&root), Ok) {
            Ok(feature) => self.feature = Some(feature),
            Err(rule) => self.find(Fault::Structure, Problem::of_key(origin, &[], rule)),
        }
        let has_section = self
            .feature
            .is_some_and(|feature| at(&root, feature.section()).is_some());
        let mut reader = Reader::new(catalogue);
        reader.twice(&document.duplicates, origin);
        self.entries = reader.document(root, origin);
        self.rejected = reader.rejected;
        for problem in reader.problems {
            self.find(Fault::Structure, problem);
        }
        if let Some(feature) = self.feature {
            self.check_place(feature, has_section, origin);
            self.check_rules(catalogue);
            self.check_required(feature, has_section, origin);
        }
    }

    /// Nothing but the policy may stand here, and it must.
    fn check_place(&mut self, feature: Feature, has_section: bool, origin: &Origin) {
        let section = split(feature.section());
        if !has_section {
            let rule = format!("is missing: it holds the whole {} policy", feature.name());
            self.find(Fault::Structure, Problem::of_key(origin, &section, rule));
        }
        let (own, strange): (Vec<_>, Vec<_>) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition(|entry| entry.key.starts_with(&section));
        self.entries = own;
        let rule = format!("does not belong here: only {} may be set", feature.section());
        for Entry { key, .. } in strange {
            self.find(Fault::Structure, Problem::of_key(origin, &key, rule.as_str()));
        }
    }

    /// The rules of all settings, with defaults for what the file leaves out.
    fn check_rules(&mut self, catalogue: &Catalogue) {
        let mut alone = Layers::default();
        alone.push(self.entries.clone());
        if let Err(error) = judge(catalogue, alone, Vec::new(), &self.rejected) {
            for problem in error.problems {
                self.find(Fault::Structure, problem);
            }
        }
    }

    fn check_required(&mut self, feature: Feature, has_section: bool, origin: &Origin) {
        for key in feature.required().into_iter().filter(|_| has_section) {
            let is_given = self.entries.iter().any(|entry| entry.key == key);
            let is_judged = self.rejected.iter().any(|rejected| key.starts_with(rejected));
            if !is_given && !is_judged {
                let rule = "is missing: a policy file must say it";
                self.find(Fault::Missing, Problem::of_key(origin, &key, rule));
            }
        }
    }
}

fn document(base: &Path, path: &Path) -> Result<json::Document, (Fault, String)> {
    if !is_there(base, path) {
        return Err((Fault::Missing, "the file is not there".to_owned()));
    }
    let text = read_file(&base.join(path)).map_err(|rule| (Fault::NotJson, rule))?;
    if text.trim().is_empty() {
        return Err((Fault::NotJson, "is empty".to_owned()));
    }
    json::parse(text.as_bytes()).map_err(|error| (Fault::NotJson, format!("is not JSON: {error}")))
}

/// The feature whose file has this name.
fn named_by(path: &Path) -> Option<Feature> {
    let name = path.file_name()?;
    let has_name = |feature: &Feature| {
        let file = feature.policy_file().map(Path::new);
        file.and_then(Path::file_name) == Some(name)
    };
    Feature::ALL.into_iter().find(has_name)
}

/// The feature whose area stands below `worker`.
fn held_by(root: &Value) -> Result<Feature, String> {
    let area = |feature: Feature| feature.section().trim_end_matches(".v2");
    let held: Vec<Feature> = Feature::WITH_POLICY
        .into_iter()
        .filter(|feature| at(root, area(*feature)).is_some())
        .collect();
    match held[..] {
        [feature] => Ok(feature),
        [] => Err(format!("must hold {}", any_section())),
        _ => Err(format!(
            "must hold one policy, not {}",
            held.iter()
                .map(|feature| feature.section())
                .collect::<Vec<_>>()
                .join(" and ")
        )),
    }
}

fn any_section() -> String {
    Feature::WITH_POLICY.map(Feature::section).join(" or ")
}

fn at<'a>(root: &'a Value, key: &str) -> Option<&'a Value> {
    split(key)
        .iter()
        .try_fold(root, |node, name| node.get(name.as_str()))
}
