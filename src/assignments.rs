//! Assignments from a file or standard input: one JSON document per line, or one document, or one array of them.
//!
//! Neighbours: `exec` and `submit` read with it. Refuses nothing: whatever the bytes, the tree answers them.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::str::FromStr;

use caf_protocol::assignment::{Reading, read};
use caf_protocol::headers::Headers;
use caf_protocol::outcome::Failure;

/// Where assignments come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// `-`: line by line, as they come.
    Stdin,
    /// A file.
    File(PathBuf),
}

impl FromStr for Input {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "-" {
            Self::Stdin
        } else {
            Self::File(PathBuf::from(text))
        })
    }
}

impl Input {
    /// Checks that a file can be read, before anything else is started.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Stdin => Ok(()),
            Self::File(path) => {
                let readable = std::fs::File::open(path).and_then(|file| file.metadata());
                match readable {
                    Ok(meta) if meta.is_dir() => Err(format!("{}: is a directory", path.display())),
                    Ok(meta) if meta.file_type().is_char_device() => {
                        Err(format!("{}: is a device", path.display()))
                    }
                    Ok(_) => Ok(()),
                    Err(error) => Err(format!("{}: {error}", path.display())),
                }
            }
        }
    }
}

/// The id under which an assignment will be answered.
///
/// # Errors
/// Why nobody can answer it.
pub fn answerable_id(payload: &[u8]) -> Result<String, Failure> {
    match read(payload, &Headers::default()) {
        Reading::Valid(assignment) => Ok(assignment.identity.assignment_id),
        Reading::Invalid(identity, _) => Ok(identity.assignment_id),
        Reading::Unanswerable(failure) => Err(failure),
    }
}

/// Gives every assignment to `each` until it returns false. Empty lines are skipped.
pub fn read_all(input: Input, mut each: impl FnMut(std::io::Result<Vec<u8>>) -> bool) {
    let outcome = match input {
        Input::Stdin => read_lines(std::io::stdin().lock(), &mut each),
        Input::File(path) => {
            std::fs::read(path).and_then(|bytes| match split_document(without_mark(&bytes)) {
                Some(documents) => {
                    let _ = documents.into_iter().all(|document| each(Ok(document)));
                    Ok(())
                }
                None => read_lines(BufReader::new(without_mark(&bytes)), &mut each),
            })
        }
    };
    if let Err(error) = outcome {
        each(Err(error));
    }
}

fn read_lines(
    mut reader: impl BufRead,
    each: &mut impl FnMut(std::io::Result<Vec<u8>>) -> bool,
) -> std::io::Result<()> {
    loop {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let text = line.trim_ascii();
        if !text.is_empty() && !each(Ok(text.to_vec())) {
            return Ok(());
        }
    }
}

/// Some editors begin a file with a byte order mark; it is no part of the first assignment.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// A file that is one JSON document over several lines, or an array of them; nothing when it is lines.
fn split_document(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    use serde_json::value::RawValue;
    if let Ok(items) = serde_json::from_slice::<Vec<Box<RawValue>>>(bytes) {
        return Some(items.iter().map(|item| item.get().as_bytes().to_vec()).collect());
    }
    let document: Box<RawValue> = serde_json::from_slice(bytes).ok()?;
    Some(vec![document.get().as_bytes().to_vec()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Vec<String> {
        let mut seen = Vec::new();
        let mut each = |line: std::io::Result<Vec<u8>>| {
            seen.push(String::from_utf8(line.expect("readable")).expect("text"));
            true
        };
        match split_document(bytes) {
            Some(documents) => documents
                .into_iter()
                .for_each(|document| assert!(each(Ok(document)))),
            None => read_lines(bytes, &mut each).expect("readable"),
        }
        seen
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_assignment() {
        assert_eq!(without_mark(b"\xef\xbb\xbf{}"), b"{}");
        assert_eq!(without_mark(b"{}"), b"{}");
    }

    #[test]
    fn lines_documents_and_arrays_are_told_apart() {
        assert_eq!(lines(b"{\"a\":1}\n\n {\"b\":2}"), ["{\"a\":1}", "{\"b\":2}"]);
        assert_eq!(lines(b"{\n\"a\":1\n}\n"), ["{\n\"a\":1\n}"]);
        assert_eq!(lines(b"[{\"a\":1},\n{\"b\":2}]"), ["{\"a\":1}", "{\"b\":2}"]);
        assert_eq!(lines(b"not json\n{\"a\":1}\n"), ["not json", "{\"a\":1}"]);
        assert!(lines(b"\n\n").is_empty());
    }
}
