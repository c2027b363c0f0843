//! Keys that are accepted although they have no effect, so that files keep working.
//!
//! Neighbours: `config check` and the start print one warning for each such key that is not at its default, for what
//! [`super::load`] found of flags, and for levels of what [`modules`] does not know.

use serde_json::Value;

use super::Settings;
use super::environment::split;
use super::load::Loaded;
use super::modules;

/// Keys without effect, and why.
pub const NOT_YET_IN_EFFECT: [(&str, &str); 1] =
    [("nats.subjects.cancel", "requests to cancel are not read")];

/// One sentence for each key without effect that is not at its default, and what is to be said of flags.
pub fn warnings(loaded: &Loaded) -> Vec<String> {
    let tree = |settings: &Settings| serde_json::to_value(settings).unwrap_or_default();
    let (set, default) = (tree(&loaded.settings), tree(&Settings::default()));
    let at = |tree: &Value, key: &str| tree.pointer(&format!("/{}", key.replace('.', "/"))).cloned();
    NOT_YET_IN_EFFECT
        .iter()
        .filter(|(key, _)| at(&set, key) != at(&default, key))
        .map(|(key, reason)| {
            let origin = loaded.origin(&split(key));
            format!("{key} ({origin}) has no effect in this version: {reason}")
        })
        .chain(modules::warnings(loaded))
        .chain(loaded.flag_warnings.iter().cloned())
        .collect()
}
