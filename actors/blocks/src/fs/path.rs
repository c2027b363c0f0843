//! What a job may call a path: `name/rest`, or an absolute path. Only its form is judged here.
//!
//! Neighbours: `put` and `get` read their input with [`JobPath::parse`]; `roots` finds the directory. Never looks at a
//! file system.

use std::path::PathBuf;

use caf_protocol::outcome::Failure;

use super::leftovers::is_temporary;
use crate::inputs::invalid_input;

/// Longest path in bytes, as the system has it.
const MAX_PATH_BYTES: usize = 4_096;
/// Longest part of a path in bytes, as the system has it.
const MAX_PART_BYTES: usize = 255;

/// A path of good form: not empty, no `..`, and something at its end that can be a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct JobPath {
    /// As the job wrote it.
    pub(super) text: String,
    /// Whether it begins at the root of the host.
    pub(super) is_absolute: bool,
    /// Its parts; never empty.
    pub(super) parts: Vec<String>,
}

impl JobPath {
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let refuse = |rule| Err(invalid_input("path", rule));
        if text.len() > MAX_PATH_BYTES {
            return refuse("must be at most 4096 bytes");
        }
        if text.contains('\0') {
            return refuse("must not hold a NUL character");
        }
        if text.chars().any(char::is_control) {
            return refuse("must not hold control characters");
        }
        if text.ends_with('/') || text == "." || text.ends_with("/.") {
            return refuse("must name a file, not a directory");
        }
        let parts: Vec<_> = text
            .split('/')
            .filter(|part| !part.is_empty() && *part != ".")
            .map(str::to_owned)
            .collect();
        if parts.iter().any(|part| part == "..") {
            return refuse("must not hold '..'");
        }
        if parts.iter().any(|part| part.len() > MAX_PART_BYTES) {
            return refuse("each part must be at most 255 bytes");
        }
        if parts.is_empty() {
            return refuse("must name a file");
        }
        // What is being written is no content yet, and whose writer died never will be.
        if parts.iter().any(|part| is_temporary(part)) {
            return refuse("must not be the name of a temporary file of the worker");
        }
        Ok(Self {
            text: text.to_owned(),
            is_absolute: text.starts_with('/'),
            parts,
        })
    }
}

/// Parts joined to a relative path.
pub(super) fn join(parts: &[String]) -> PathBuf {
    parts.iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use caf_protocol::error_code::ErrorCode;

    #[test]
    fn paths_that_cannot_be_a_file_or_climb_are_refused() {
        let long_part = format!("data/{}", "x".repeat(256));
        let long = "x/".repeat(2_048) + "x";
        for bad in [
            ".",
            "./",
            "./.",
            "/",
            "//",
            "..",
            "data/..",
            "data/../x",
            "/../x",
            "data/x/../../y",
            "data/",
            "data/.",
            "data/a\0b",
            "data/a\nb",
            "data/a\u{7f}",
            "data/\u{85}",
            "data/.caf-0123.tmp",
            "data/.caf-0123.tmp/x",
            &long_part,
            &long,
        ] {
            let failure = JobPath::parse(bad).expect_err(bad);
            assert_eq!(
                (failure.code, failure.details["field"].as_str()),
                (ErrorCode::InvalidInput, Some("path")),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn doubled_slashes_and_single_dots_mean_nothing() {
        for (text, is_absolute, parts) in [
            ("data/a", false, &["data", "a"][..]),
            ("./data//a/./b", false, &["data", "a", "b"]),
            ("//x/y", true, &["x", "y"]),
            ("data/..a/b..", false, &["data", "..a", "b.."]),
            ("data/a\\..\\b", false, &["data", "a\\..\\b"]),
        ] {
            let path = JobPath::parse(text).expect(text);
            assert_eq!(
                (path.is_absolute, path.parts),
                (is_absolute, parts.iter().map(|p| (*p).to_owned()).collect()),
                "{text}"
            );
        }
        assert!(JobPath::parse(&format!("data/{}", "x".repeat(255))).is_ok());
    }
}
