//! Hides the node's own secrets wherever their text stands in a line, by whatever name or none.
//!
//! Neighbours: the settings say which they are, [`super::line`] and `dependencies` hide them before anything is
//! cut. What is a secret by its looks is [`caf_actors::mask`]'s business. Pure; keys are left alone.

use std::sync::Arc;

use caf_actors::mask::REDACTED;
use serde_json::Value;

/// Shorter texts are no secrets, but stand in ordinary words.
const MIN_BYTES: usize = 6;

/// Texts that no line may hold. Cheap to clone.
#[derive(Clone, Default)]
pub struct Secrets(Arc<[String]>);

impl Secrets {
    /// These, as they are and as Rust writes them in quotes; those of less than six bytes are left out.
    pub fn new(values: impl IntoIterator<Item = String>) -> Self {
        let quoted = |value: &String| {
            let quoted = format!("{value:?}");
            quoted[1..quoted.len() - 1].to_owned()
        };
        let both = values.into_iter().flat_map(|value| [quoted(&value), value]);
        let mut all: Vec<String> = both.filter(|value| value.len() >= MIN_BYTES).collect();
        // A secret that holds another one goes as a whole.
        all.sort_by(|one, other| other.len().cmp(&one.len()).then_with(|| one.cmp(other)));
        all.dedup();
        Self(all.into())
    }

    /// Hides them in a text.
    pub(super) fn hide(&self, text: &mut String) {
        for secret in self.0.iter() {
            if text.contains(secret.as_str()) {
                *text = text.replace(secret.as_str(), REDACTED);
            }
        }
    }

    /// Hides them in every text of a value.
    pub(super) fn hide_in(&self, value: &mut Value) {
        match value {
            Value::String(text) => self.hide(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.hide_in(item)),
            Value::Object(fields) => fields.values_mut().for_each(|field| self.hide_in(field)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
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
}
