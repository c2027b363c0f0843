//! Feature flags by their plain names (contract 7.1): either name switches on, and both off switches off whatever
//! a file says. What is said of them in vain, and what only looks like one, is told.

use serde_json::Value;

use super::{Variables, is_prefixed, split};
use crate::settings::catalogue::parse_flag;
use crate::settings::feature::Feature;
use crate::settings::origin::Origin;
use crate::settings::sources::{Entry, Reader};

/// How names of flags begin and end.
const SHAPES: [(&str, &str); 5] = [
    ("CP2_", "_ENABLED"),
    ("WORKER_", "_V2_ENABLED"),
    ("BEAMLINE_", "_ENABLED"),
    // Near misses.
    ("CP2_", "_ENABLE"),
    ("WORKER_", "_V2_ENABLE"),
];

/// Whether a variable is the name of a flag.
pub(super) fn is_name(name: &str) -> bool {
    names().any(|known| known == name)
}

/// Whether a variable is named like a flag.
pub(super) fn looks_like_one(name: &str) -> bool {
    subject(name).is_some() && !is_prefixed(name)
}

/// Reads all flags that are given.
pub(super) fn read(reader: &mut Reader<'_>, variables: &Variables) -> Vec<Entry> {
    Feature::ALL
        .iter()
        .filter_map(|feature| flag(reader, variables, *feature))
        .collect()
}

/// One sentence for each flag whose names disagree, and for each variable that looks like a flag and switches nothing.
pub(super) fn warnings(variables: &Variables) -> Vec<String> {
    let disagreeing = Feature::ALL
        .iter()
        .flat_map(|feature| disagreement(variables, *feature));
    let others = variables
        .iter()
        .filter(|(name, _)| looks_like_one(name) && !is_name(name));
    let in_vain = others.filter_map(|(name, _)| without_effect(name));
    disagreeing.chain(in_vain).collect()
}

fn names() -> impl Iterator<Item = &'static str> {
    let all = Feature::ALL.into_iter();
    all.flat_map(|feature| feature.variables().iter().copied())
}

fn flag(reader: &mut Reader<'_>, variables: &Variables, feature: Feature) -> Option<Entry> {
    let key = split(&feature.flag_key());
    for name in feature.variables() {
        let text = variables.get(*name);
        if let Some(text) = text.filter(|text| parse_flag(text).is_none()) {
            let rule = "must be true, false, 1, 0, yes or no";
            let origin = Origin::Environment((*name).to_owned());
            reader.reject(&key, rule, &Value::from(text.as_str()), &origin);
        }
    }
    let (name, is_on) = plain(variables, feature)?;
    Some(Entry {
        key,
        value: Some(Value::Bool(is_on)),
        origin: Origin::Environment(name.to_owned()),
    })
}

/// The plain names of a flag that are given, with what they say.
fn given(variables: &Variables, feature: Feature) -> impl Iterator<Item = (&'static str, bool)> {
    let names = feature.variables().iter();
    names.filter_map(|name| Some((*name, parse_flag(variables.get(*name)?)?)))
}

/// What the plain names say together, and the one that counts: the first that is on, else the first.
fn plain(variables: &Variables, feature: Feature) -> Option<(&'static str, bool)> {
    let on = given(variables, feature).find(|(_, is_on)| *is_on);
    on.or_else(|| given(variables, feature).next())
}

/// What to say of names of one flag that do not say the same.
fn disagreement(variables: &Variables, feature: Feature) -> Vec<String> {
    let Some((counts, is_on)) = plain(variables, feature) else {
        return Vec::new();
    };
    let key = feature.flag_key();
    let other = given(variables, feature).find(|(_, other)| *other != is_on);
    let among_plain = other.map(|(other, _)| {
        format!("{counts} says true and {other} false: true counts, because either name switches {key} on")
    });
    let prefixed_name = format!("WORKER__{}", key.replace('.', "__"));
    let prefixed = variables
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(&prefixed_name));
    let over_plain = prefixed.and_then(|(name, text)| {
        let says = parse_flag(text).filter(|says| *says != is_on)?;
        Some(format!(
            "{name} says {says} and {counts} {is_on}: {says} counts, because WORKER__… comes after plain names"
        ))
    });
    // Of two the stronger is enough where it decides alone.
    over_plain.or(among_plain).into_iter().collect()
}

/// What to say of a variable that looks like a flag and is none.
fn without_effect(name: &str) -> Option<String> {
    let nearest = names().min_by_key(|known| distance(name, known))?;
    Some(format!(
        "{name} is no flag and has no effect; the nearest known one is {nearest}"
    ))
}

/// What a name speaks of: without how all flags begin and end.
fn subject(name: &str) -> Option<&str> {
    SHAPES
        .iter()
        .find_map(|(start, end)| name.strip_prefix(start)?.strip_suffix(end))
}

/// How far a known name is from a given one: by the words that come closest, then as a whole.
fn distance(given: &str, known: &str) -> (usize, usize) {
    let words = |name| subject(name).unwrap_or_default().split('_');
    let pairs = words(given).flat_map(|word| words(known).map(move |other| (word, other)));
    let by_word = pairs.map(|(word, other)| strsim::damerau_levenshtein(word, other));
    (
        by_word.min().unwrap_or(usize::MAX),
        strsim::damerau_levenshtein(given, known),
    )
}
