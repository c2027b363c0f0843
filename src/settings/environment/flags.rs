//! Feature flags by their plain names (contract 7.1): either name switches on, and both off switches off whatever
//! a file says.

use serde_json::Value;

use super::{Variables, split};
use crate::settings::catalogue::parse_flag;
use crate::settings::feature::Feature;
use crate::settings::origin::Origin;
use crate::settings::sources::{Entry, Reader};

/// Whether a variable is the name of a flag.
pub(super) fn is_name(name: &str) -> bool {
    let mut names = Feature::ALL.iter().flat_map(|feature| feature.variables());
    names.any(|known| *known == name)
}

/// Reads all flags that are given.
pub(super) fn read(reader: &mut Reader<'_>, variables: &Variables) -> Vec<Entry> {
    Feature::ALL
        .iter()
        .filter_map(|feature| flag(reader, variables, *feature))
        .collect()
}

fn flag(reader: &mut Reader<'_>, variables: &Variables, feature: Feature) -> Option<Entry> {
    let key = split(&feature.flag_key());
    let mut given: Option<(bool, &str)> = None;
    for name in feature.variables() {
        let Some(text) = variables.get(*name) else {
            continue;
        };
        match parse_flag(text) {
            Some(is_on) if is_on || given.is_none() => given = Some((is_on, name)),
            Some(_) => {}
            None => {
                let rule = "must be true, false, 1, 0, yes or no";
                let origin = Origin::Environment((*name).to_owned());
                reader.reject(&key, rule, &Value::from(text.as_str()), &origin);
            }
        }
    }
    given.map(|(is_on, name)| Entry {
        key,
        value: Some(Value::Bool(is_on)),
        origin: Origin::Environment(name.to_owned()),
    })
}
