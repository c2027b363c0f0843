//! Directories that go away with their value.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// A new, empty directory under the system's temporary directory, removed with its content on drop.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes one; `purpose` becomes part of its name.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(purpose: &str) -> Result<Self> {
        // Short: a socket path inside must stay below 108 bytes.
        let id = uuid::Uuid::new_v4().simple().to_string();
        let path = std::env::temp_dir().join(format!("caf-{purpose}-{}", &id[..12]));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // A directory that stays behind harms no later test: names are never used twice.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_away_with_its_content() {
        let dir = TempDir::new("temp").expect("can be made");
        let path = dir.path().to_owned();
        std::fs::write(path.join("file"), "x").expect("can be written to");
        drop(dir);
        assert!(!path.exists());
    }
}
