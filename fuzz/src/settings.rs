//! All sources of the settings at once: two files, variables, options.

use std::ffi::OsString;
use std::path::Path;

use caf_actors::settings::rules::Rules;
use caf_testkit::TempDir;
use caf_worker::settings::Settings;
use caf_worker::settings::load::{DEFAULT_FILE, Loaded, SetKey, Sources, load};
use caf_worker::settings::origin::SettingsError;

use super::parts;

/// Is in no message, whatever else is wrong. With a space it is no token: its own problem must be told without it.
const SECRET: &str = "pl4nted 5ecret";

/// What is wrong is told with its source, its rule and its key, and without a secret; what is taken keeps every rule, and
/// survives being written down.
pub fn holds(bytes: &[u8]) {
    let [toml, json, variables, options] = parts(bytes);
    let dir = TempDir::new("fuzz-settings").expect("creates");
    let place = dir.path();
    put(place, DEFAULT_FILE, toml);
    put(place, "more.json", json);
    let variables = String::from_utf8_lossy(variables).into_owned();
    let variables = variables.split('\n').filter_map(|line| line.split_once('='));
    let variables = variables.map(|(name, value)| (name.to_owned().into(), value.to_owned().into()));
    let options = String::from_utf8_lossy(options).into_owned();
    let options = options.split('\n').filter_map(|line| line.split_once('='));
    let mut sources = Sources {
        working_dir: place.to_owned(),
        files: if json.is_empty() {
            Vec::new()
        } else {
            vec!["more.json".into()]
        },
        environment: variables.collect(),
        command_line: options
            .map(|(key, value)| SetKey::Key(key.to_owned(), value.to_owned()))
            .collect(),
    };
    match load(&sources) {
        Ok(loaded) => check_taken(&loaded),
        Err(error) => check_refused(&error),
    }
    let name: OsString = "WORKER__HTTP__ADMIN_TOKEN".into();
    sources.environment.retain(|(other, _)| *other != name);
    sources.environment.push((name, SECRET.into()));
    let told = match load(&sources) {
        Ok(loaded) => format!("{:?}", loaded.settings),
        Err(error) => error.to_string(),
    };
    assert!(!told.contains(SECRET), "{told}");
}

fn put(place: &Path, name: &str, text: &[u8]) {
    let path = place.join(name);
    let folder = path.parent().expect("it is below the place");
    std::fs::create_dir_all(folder).expect("creates");
    std::fs::write(path, text).expect("writes");
}

/// Every problem names its source and its rule, and its key unless the source as a whole is unreadable.
pub(super) fn check_refused(error: &SettingsError) {
    assert!(!error.problems.is_empty());
    for problem in &error.problems {
        assert!(
            !problem.source.is_empty() && !problem.rule.is_empty(),
            "{problem}"
        );
        let whole = problem.source.starts_with("file ") || problem.source.starts_with("env ");
        assert!(!problem.key.is_empty() || whole, "{problem}");
    }
}

fn check_taken(loaded: &Loaded) {
    let mut rules = Rules::default();
    loaded.settings.validate(&mut rules);
    let broken = rules.into_broken();
    assert!(broken.is_empty(), "{broken:?}");
    // A secret is never written: a mark stands in its place.
    if loaded.settings.secrets().is_empty() {
        let written = serde_json::to_value(&loaded.settings).expect("settings are JSON");
        let again: Settings = serde_json::from_value(written).expect("what is written is read");
        assert!(again == loaded.settings);
    }
    let shown = format!("{:?}", loaded.settings);
    for secret in loaded.settings.secrets() {
        // Short ones are everywhere by chance.
        assert!(
            secret.len() < 12 || !shown.contains(&secret),
            "{secret} in {shown}"
        );
    }
}
