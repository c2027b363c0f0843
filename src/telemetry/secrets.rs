//! Hides the node's own secrets wherever their text stands in a line, by whatever name or none.
//!
//! Neighbours: the settings say which they are, also when they are read again; [`super::line`] and `dependencies` hide them
//! before anything is cut, the admin port in what it answers. What is a secret by its looks is [`caf_actors::mask`]'s business. Pure; keys are left alone.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use caf_protocol::live::Live;
use caf_protocol::secret::scrub::Scrubber;
use serde_json::Value;

/// Most values that are kept in mind beside those in force: what a job was given may still be on its way when another one
/// takes its place. Beyond that only the latest are hidden.
const MAX_RETIRED: usize = 1_000;

/// Texts that no line may hold, as they are and encoded. Clones share them, so that a reload reaches every writer.
#[derive(Clone, Default)]
pub struct Secrets {
    scrubber: Live<Scrubber>,
    known: Arc<Mutex<BTreeSet<String>>>,
}

impl Secrets {
    /// These; those of less than six bytes are left out.
    pub fn new(values: impl IntoIterator<Item = String>) -> Self {
        let secrets = Self::default();
        secrets.learn(values);
        secrets
    }

    /// Hides these too, from now on.
    pub fn learn(&self, values: impl IntoIterator<Item = String>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let values: BTreeSet<String> = values.into_iter().collect();
        if values.is_subset(&known) {
            return;
        }
        if known.len() > MAX_RETIRED {
            known.clear();
        }
        known.extend(values);
        self.scrubber.set(Scrubber::new(known.iter().map(String::as_str)));
    }

    /// Whether one of them stands in a text.
    pub(super) fn are_in(&self, text: &str) -> bool {
        matches!(self.scrubber.get().text(text), Cow::Owned(_))
    }

    /// Hides them in a text.
    pub(super) fn hide(&self, text: &mut String) {
        let scrubber = self.scrubber.get();
        if let Cow::Owned(clean) = scrubber.text(text) {
            *text = clean;
        }
    }

    /// What finds them, as they are known now.
    pub(super) fn scrubber(&self) -> Arc<Scrubber> {
        self.scrubber.get()
    }

    /// Hides them in every text of a value, keys left alone.
    pub fn hide_in(&self, value: &mut Value) {
        let scrubber = self.scrubber.get();
        if !scrubber.is_empty() {
            hide_in(&scrubber, value);
        }
    }
}

/// Hides in every text of a value what this finds, keys left alone.
pub(super) fn hide_in(scrubber: &Scrubber, value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(clean) = scrubber.text(text) {
                *text = clean;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| hide_in(scrubber, item)),
        Value::Object(fields) => fields.values_mut().for_each(|field| hide_in(scrubber, field)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets found by {:?}", self.scrubber.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn known_secrets_are_hidden_in_every_text_as_they_are_and_quoted() {
        let secrets = Secrets::new(["hun\"ter2", "hun\"ter2-longer", "short"].map(str::to_owned));
        let mut value =
            json!({"a": ["x hun\"ter2-longer y", {"b": format!("{:?}", "hun\"ter2")}], "n": 1, "c": "short"});
        secrets.hide_in(&mut value);
        assert_eq!(
            value,
            json!({"a": ["x [REDACTED] y", {"b": "\"[REDACTED]\""}], "n": 1, "c": "short"})
        );
    }

    #[test]
    fn what_is_learnt_is_hidden_by_all_clones_and_what_was_known_stays_hidden() {
        let secrets = Secrets::new(["first-one".to_owned()]);
        let clone = secrets.clone();
        secrets.learn(["second-one".to_owned()]);
        let mut text = "first-one c2Vjb25kLW9uZQ==".to_owned();
        clone.hide(&mut text);
        assert_eq!(text, "[REDACTED] [REDACTED]==");
        assert!(!format!("{secrets:?}").contains("one\""));
    }
}
