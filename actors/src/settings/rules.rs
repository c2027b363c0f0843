//! Collects the rules that settings break, all of them, each under its key.
//!
//! Neighbours: the `validate` functions of the settings report here; the node adds where a value came from and the
//! value itself. Nothing here prints a value: it might be a secret.

use std::fmt::Display;
use std::ops::RangeInclusive;

/// A rule that a setting breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenRule {
    /// The key, segment by segment.
    pub key: Vec<String>,
    /// The other key that the rule speaks about, if it is about two.
    pub other: Option<Vec<String>>,
    /// What the value must be, e.g. `must be at least 1`.
    pub rule: String,
}

/// Broken rules found so far, and the section that is being checked.
#[derive(Debug, Default)]
pub struct Rules {
    section: Vec<String>,
    broken: Vec<BrokenRule>,
}

impl Rules {
    /// Checks the section `name` inside the current one.
    pub fn section(&mut self, name: &str, check: impl FnOnce(&mut Self)) {
        self.section.push(name.to_owned());
        check(self);
        self.section.pop();
    }

    /// Reports `rule` for `key` unless it holds.
    pub fn require(&mut self, key: &str, holds: bool, rule: impl Display) {
        if !holds {
            let key = self.path(key);
            self.broken.push(BrokenRule {
                key,
                other: None,
                rule: rule.to_string(),
            });
        }
    }

    /// Reports `rule` for `key` unless it holds; the rule also depends on `other`, a key of the same section.
    pub fn relate(&mut self, key: &str, other: &str, holds: bool, rule: impl Display) {
        if !holds {
            let (key, other) = (self.path(key), self.path(other));
            self.broken.push(BrokenRule {
                key,
                other: Some(other),
                rule: rule.to_string(),
            });
        }
    }

    /// Requires a number to lie in `range`.
    pub fn range<T: PartialOrd + Display>(&mut self, key: &str, value: T, range: RangeInclusive<T>) {
        let rule = format!("must be from {} to {}", range.start(), range.end());
        self.require(key, range.contains(&value), rule);
    }

    /// All broken rules, in the order in which they were found.
    pub fn into_broken(self) -> Vec<BrokenRule> {
        self.broken
    }

    fn path(&self, key: &str) -> Vec<String> {
        let mut path = self.section.clone();
        path.push(key.to_owned());
        path
    }
}
