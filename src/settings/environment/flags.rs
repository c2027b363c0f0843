//! Feature flags with their names (contract 7.1): either name switches on, and both off switches off whatever
//! a file says.

use serde_json::Value;

use super::{Variables, split};
use crate::settings::catalogue::parse_flag;
use crate::settings::origin::Origin;
use crate::settings::sources::{Entry, Reader};

/// Flags: key and names.
const FLAGS: [(&str, &[&str]); 3] = [
    (
        "worker.retries.v2.enabled",
        &["CP2_ADVANCED_RETRY_ENABLED", "WORKER_RETRIES_V2_ENABLED"],
    ),
    ("worker.timeouts.v2.enabled", &["CP2_COMPLETE_TIMEOUT_ENABLED"]),
    (
        "worker.queue.v2.enabled",
        &["CP2_QUEUE_MANAGEMENT_ENABLED", "WORKER_QUEUE_V2_ENABLED"],
    ),
];

/// Whether a variable is the name of a flag.
pub(super) fn is_name(name: &str) -> bool {
    FLAGS.iter().any(|(_, names)| names.contains(&name))
}

/// Reads all flags that are given.
pub(super) fn read(reader: &mut Reader<'_>, variables: &Variables) -> Vec<Entry> {
    FLAGS
        .iter()
        .filter_map(|(key, names)| flag(reader, variables, key, names))
        .collect()
}

fn flag(reader: &mut Reader<'_>, variables: &Variables, key: &str, names: &[&str]) -> Option<Entry> {
    let mut given: Option<(bool, &str)> = None;
    for name in names {
        let Some(text) = variables.get(*name) else {
            continue;
        };
        match parse_flag(text) {
            Some(is_on) if is_on || given.is_none() => given = Some((is_on, name)),
            Some(_) => {}
            None => {
                let rule = "must be true, false, 1, 0, yes or no";
                let origin = Origin::Environment((*name).to_owned());
                reader.reject(&split(key), rule, &Value::from(text.as_str()), &origin);
            }
        }
    }
    given.map(|(is_on, name)| Entry {
        key: split(key),
        value: Some(Value::Bool(is_on)),
        origin: Origin::Environment(name.to_owned()),
    })
}
