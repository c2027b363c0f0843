//! What a hostile path must never lead to: the body of a fuzz target, replayed by ordinary tests. In no other build.
//!
//! Neighbours: `fuzz/` of the workspace calls it with what the fuzzer makes up, `crate::properties` with its corpus.
//! Touches files only below a directory of its own, which it plants with traps.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use super::path::JobPath;
use super::roots::Roots;
use crate::settings::FsSettings;

/// Where the roots are; it stays behind in the system's temporary directory, once.
static PLACE: LazyLock<PathBuf> = LazyLock::new(|| plant().expect("a temporary directory can be written"));

/// A root with links that lead out of it, around and up, beside a file that is nobody's.
fn plant() -> std::io::Result<PathBuf> {
    use std::os::unix::fs::symlink;
    let place = std::env::temp_dir().join("caf-path-properties");
    let root = place.join("base");
    std::fs::create_dir_all(root.join("a/b"))?;
    std::fs::create_dir_all(place.join("other"))?;
    std::fs::write(place.join("secret"), "outside")?;
    std::fs::write(root.join("a/b/file"), "inside")?;
    let links = [
        ("up", ".."),
        ("out", "../secret"),
        ("etc", "/etc"),
        ("round", "round"),
        ("in", "a/b"),
    ];
    for (name, target) in links {
        match symlink(target, root.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    place.canonicalize()
}

/// Whatever a path is called, what is opened lies in the root; a refusal names the field and not the host's directories.
pub fn path_guard(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let place = PLACE.as_path();
    // `@` stands for where the roots are, which the fuzzer cannot know.
    let text = text.replacen('@', &place.display().to_string(), 1);
    let path = match JobPath::parse(&text) {
        Ok(path) => path,
        Err(failure) => return check_refusal(&failure.message),
    };
    assert!(!path.parts.is_empty());
    for part in &path.parts {
        let plain = !part.is_empty() && part != "." && part != ".." && !part.contains(['/', '\0']);
        assert!(plain, "{part:?} of {text:?}");
    }
    let roots = BTreeMap::from([
        ("data".to_owned(), place.join("base")),
        ("other".to_owned(), place.join("other")),
    ]);
    let settings = FsSettings {
        roots,
        ..FsSettings::default()
    };
    match Roots::new(&settings).find(&path) {
        Ok(found) => {
            assert!(found.path.is_relative());
            if let Ok(file) = found.dir.open(&found.path) {
                check_inside(place, file.as_raw_fd(), &text);
            }
        }
        Err(failure) => check_refusal(&failure.message),
    }
}

fn check_refusal(said: &str) {
    assert!(said.starts_with("path: "), "{said}");
    assert!(!said.contains("caf-path-properties"), "{said}");
}

/// Asks the system what was opened.
fn check_inside(place: &Path, descriptor: i32, text: &str) {
    let Ok(opened) = std::fs::read_link(format!("/proc/self/fd/{descriptor}")) else {
        return;
    };
    let inside = opened.starts_with(place.join("base")) || opened.starts_with(place.join("other"));
    assert!(inside, "{text:?} opens {}", opened.display());
}
