//! Where the programs of the servers, and the checkers of what is shipped in `deploy/`, are.
//!
//! Neighbours: [`crate::nats`], [`crate::postgres`] and [`mod@crate::prometheus`]; the tests of `deploy/` and of alerts. Never installs anything: `scripts/install-test-tools.sh` does.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Root of the workspace that this crate was built in.
pub(crate) fn workspace() -> &'static Path {
    let kit = Path::new(env!("CARGO_MANIFEST_DIR"));
    kit.ancestors().nth(2).unwrap_or(kit)
}

/// First directory of `PATH` that holds `name`.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
}

/// Every `<parent>/*/<rest>` that is a file, sorted by name, last first.
fn below(parent: &Path, rest: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path().join(rest))
        .filter(|program| program.is_file())
        .collect();
    found.sort_by_key(|program| std::cmp::Reverse(version_in(program)));
    found
}

/// The number in a path such as `/usr/lib/postgresql/15/bin/initdb`, so that 15 comes before 9.
fn version_in(program: &Path) -> u64 {
    program
        .components()
        .filter_map(|part| part.as_os_str().to_str()?.parse().ok())
        .next_back()
        .unwrap_or(0)
}

/// `nats-server`: from `NATS_SERVER_BIN`, `PATH`, what the install script put under `target/tools`, or Debian's package,
/// whose directory is not on everybody's `PATH`.
pub(crate) fn nats_server() -> Result<PathBuf> {
    let tools = workspace().join("target/tools");
    std::env::var_os("NATS_SERVER_BIN")
        .map(PathBuf::from)
        .or_else(|| in_path("nats-server"))
        .or_else(|| below(&tools, "bin/nats-server").into_iter().next())
        .or_else(|| Some(PathBuf::from("/usr/sbin/nats-server")).filter(|program| program.is_file()))
        .context(
            "nats-server is not installed: run scripts/install-test-tools.sh, or name it in NATS_SERVER_BIN",
        )
}

/// A program of the PostgreSQL server, from where Debian keeps them, else from `PATH` with links resolved: it finds
/// its siblings and its shared files by its own place.
pub(crate) fn postgres(name: &str) -> Result<PathBuf> {
    let found = below(Path::new("/usr/lib/postgresql"), &format!("bin/{name}"))
        .into_iter()
        .next()
        .or_else(|| in_path(name).and_then(|link| link.canonicalize().ok()));
    found.with_context(|| {
        format!(
            "{name} of PostgreSQL is not installed: run scripts/install-test-tools.sh (Debian package `postgresql`)"
        )
    })
}

/// `prometheus` or `promtool`, from `PATH` or what the install script unpacked under `target/tools`.
///
/// # Errors
/// When it is missing; then with what to do. A check is never skipped.
pub fn prometheus(name: &str) -> Result<PathBuf> {
    let own = workspace().join("target/tools/prometheus/usr/bin").join(name);
    in_path(name)
        .or_else(|| Some(own).filter(|program| program.is_file()))
        .with_context(|| {
            format!("{name} is not installed: run scripts/install-test-tools.sh --only prometheus")
        })
}

/// A headless Chromium: the one named by `CHROMIUM_BIN`, Debian's small one, or any other.
pub(crate) fn chromium() -> Result<PathBuf> {
    let names = ["chromium-headless-shell", "chromium", "google-chrome"];
    std::env::var_os("CHROMIUM_BIN")
        .map(PathBuf::from)
        .or_else(|| names.iter().find_map(|name| in_path(name)))
        .context(
            "Chromium is not installed: run scripts/install-test-tools.sh (Debian package `chromium-headless-shell`), or \
             name it in CHROMIUM_BIN",
        )
}

/// A program that checks files of `deploy/`: of the system (`systemd-analyze`), or what the install script put under
/// `target/tools` (`kubernetes-validate`, `hadolint`, `python` with a reader of YAML).
///
/// # Errors
/// When it is missing; then with what to do. A check is never skipped.
pub fn deploy_checker(name: &str) -> Result<PathBuf> {
    let own = workspace().join("target/tools/deploy-venv/bin").join(name);
    Some(own)
        .filter(|program| program.is_file())
        .or_else(|| in_path(name).filter(|_| name == "systemd-analyze"))
        .with_context(|| format!("{name} is not installed: run scripts/install-test-tools.sh"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_comes_first_by_number_and_not_by_letter() {
        let dir = crate::TempDir::new("programs").expect("can be made");
        for version in ["9", "15"] {
            let bin = dir.path().join(version).join("bin");
            std::fs::create_dir_all(&bin).expect("can be made");
            std::fs::write(bin.join("initdb"), "").expect("can be written");
        }
        let found = below(dir.path(), "bin/initdb");
        assert_eq!(found[0], dir.path().join("15/bin/initdb"));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn the_workspace_is_where_the_lock_file_is() {
        assert!(workspace().join("Cargo.lock").is_file());
    }
}
