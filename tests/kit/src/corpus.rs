//! The committed inputs of the fuzz targets, `fuzz/corpus/<target>/`: each is replayed by an ordinary test.
//!
//! Neighbours: `fuzz/src` has what must hold. A new finding is put there as a file.

use std::path::Path;

/// Gives every input of a target to what must hold. Says which input it was when that panics.
///
/// # Panics
/// When there is no corpus, or a property does not hold.
pub fn replay(target: &str, holds: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = files.flatten().map(|entry| entry.path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    for file in files {
        let bytes = std::fs::read(&file).expect("a file of the corpus can be read");
        eprintln!("{}", file.display());
        holds(&bytes);
    }
}
