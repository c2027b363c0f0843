//! The wire fixtures of `tests/fixtures`, read.
//!
//! Neighbours: the protocol's tests read and write by them, the router's rules are held to them, and whole-node tests
//! may publish them. A file that does not fit its form makes the test fail; none is skipped.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::programs::workspace;
use crate::router::Header;

/// An assignment and how it is to be read.
#[derive(Debug, Clone)]
pub struct AssignmentFixture {
    /// File name without its ending, e.g. `a_as_the_router_builds_it`. The first letter names the variant of 2.4.
    pub name: String,
    /// The message, byte for byte.
    pub payload: Vec<u8>,
    /// Headers that come with it.
    pub headers: Vec<Header>,
    /// Whether it is only tolerated: it breaks the published schema and is read all the same.
    pub tolerated: bool,
    /// The reading: `reading` is `valid`, `invalid` or `unanswerable`; the other fields go with it.
    pub expected: Value,
}

/// A result and what the router makes of it.
#[derive(Debug, Clone)]
pub struct ResultFixture {
    /// File name without its ending.
    pub name: String,
    /// Headers that come with it.
    pub headers: Vec<Header>,
    /// A result that the router has processed before.
    pub earlier: Option<Value>,
    /// The message.
    pub payload: Value,
    /// Name of the verdict, see [`crate::router::Verdict::name`].
    pub verdict: String,
}

/// Directory of the fixtures.
pub fn directory() -> PathBuf {
    workspace().join("tests/fixtures")
}

/// Every assignment on file, by name.
///
/// # Panics
/// When a file cannot be read or does not fit its form.
pub fn assignments() -> Vec<AssignmentFixture> {
    let read = |path: PathBuf| {
        let expectation = path.with_extension("expected.json");
        let Value::Object(mut expected) = json(&expectation) else {
            panic!("{} holds no object", expectation.display());
        };
        AssignmentFixture {
            name: stem(&path),
            payload: bytes(&path),
            headers: headers(expected.remove("given_headers")),
            tolerated: expected
                .remove("tolerated")
                .is_some_and(|tolerated| tolerated == true),
            expected: Value::Object(expected),
        }
    };
    files("assignments").into_iter().map(read).collect()
}

/// Every result on file, by name.
///
/// # Panics
/// When a file cannot be read or does not fit its form.
pub fn results() -> Vec<ResultFixture> {
    let read = |path: PathBuf| {
        let Value::Object(mut file) = json(&path) else {
            panic!("{} holds no object", path.display());
        };
        ResultFixture {
            name: stem(&path),
            headers: headers(file.remove("headers")),
            earlier: file.remove("earlier"),
            payload: file.remove("payload").unwrap_or_default(),
            verdict: file["verdict"].as_str().unwrap_or_default().to_owned(),
        }
    };
    files("results").into_iter().map(read).collect()
}

fn files(folder: &str) -> Vec<PathBuf> {
    let directory = directory().join(folder);
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut paths: Vec<_> = entries
        .map(|entry| {
            entry
                .unwrap_or_else(|e| panic!("{}: {e}", directory.display()))
                .path()
        })
        .filter(|path| !path.to_string_lossy().ends_with(".expected.json"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", directory.display());
    paths
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&bytes(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn headers(value: Option<Value>) -> Vec<Header> {
    let object: Map<String, Value> = match value {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    };
    object
        .into_iter()
        .map(|(name, value)| (name, value.as_str().unwrap_or_default().to_owned()))
        .collect()
}
