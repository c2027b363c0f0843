//! Host names that change their addresses: what the worker's system answers when it looks up a name.
//!
//! Neighbours: `resolver.c`, a library that stands before the system's; [`crate::worker::WorkerBuilder::names`] runs a worker
//! with it. The worker itself is the program under test, unchanged. Needs `cc`, as the build of SQLite does.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::TempDir;

/// Names and their answers.
#[derive(Debug)]
pub struct Names {
    home: TempDir,
}

impl Names {
    /// No names yet.
    ///
    /// # Errors
    /// When there is no compiler, or no room.
    pub fn new() -> Result<Self> {
        let names = Self {
            home: TempDir::new("names")?,
        };
        std::fs::create_dir(names.directory())?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("resolver.c");
        let compiled = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .arg(names.library())
            .arg(source)
            .args(["-ldl", "-lpthread"])
            .output();
        let compiled = compiled.context("cc is not installed: install a C compiler")?;
        if !compiled.status.success() {
            bail!("resolver.c: {}", String::from_utf8_lossy(&compiled.stderr));
        }
        Ok(names)
    }

    /// Answers look-ups of this name from now on: the first with the first of `answers`, and so on; the last answers all
    /// further ones. Addresses of one answer stand with spaces between.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn set(&self, name: &str, answers: &[&str]) -> Result<()> {
        std::fs::write(self.directory().join(name), answers.join("\n"))?;
        Ok(())
    }

    /// How often this name was looked up.
    pub fn looked_up(&self, name: &str) -> usize {
        let counted = std::fs::read_to_string(self.directory().join(format!("{name}.count")));
        counted
            .ok()
            .and_then(|count| count.parse().ok())
            .unwrap_or_default()
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.home.path().join("answers")
    }

    pub(crate) fn library(&self) -> PathBuf {
        self.home.path().join("resolver.so")
    }
}
