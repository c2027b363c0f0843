//! Keys that have no effect while a feature is off, so that nobody waits for it in vain.
//!
//! Neighbours: `config check` and the start print one warning for each such key that is not at its default, for what
//! [`super::load`] found of flags, for levels of what [`modules`] does not know, and for what is [`unused`].

use serde_json::Value;

use super::Settings;
use super::environment::split;
use super::feature::Feature;
use super::load::Loaded;
use super::{modules, unused};

/// Keys outside of the sections of features, and the feature that they belong to.
pub const OF_FEATURES: [(&str, Feature); 1] = [("nats.subjects.cancel", Feature::Cancellation)];

/// One sentence for each key without effect that is not at its default, and what is to be said of flags.
pub fn warnings(loaded: &Loaded) -> Vec<String> {
    let tree = |settings: &Settings| serde_json::to_value(settings).unwrap_or_default();
    let (set, default) = (tree(&loaded.settings), tree(&Settings::default()));
    let at = |tree: &Value, key: &str| tree.pointer(&format!("/{}", key.replace('.', "/"))).cloned();
    let is_off = |feature: &Feature| at(&set, &feature.flag_key()) == Some(Value::Bool(false));
    OF_FEATURES
        .iter()
        .filter(|(key, feature)| is_off(feature) && at(&set, key) != at(&default, key))
        .map(|(key, feature)| {
            let origin = loaded.origin(&split(key));
            format!(
                "{key} ({origin}) has no effect while {} is off",
                feature.flag_key()
            )
        })
        .chain(modules::warnings(loaded))
        .chain(unused::warnings(loaded))
        .chain(loaded.flag_warnings.iter().cloned())
        .collect()
}
