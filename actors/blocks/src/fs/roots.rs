//! The directories that jobs may use, held as capability handles: what is opened through a handle cannot lead out of its
//! directory, neither by `..` nor by a symbolic link, even if somebody swaps directories meanwhile.
//!
//! Neighbours: `put` and `get` ask [`Roots::find`]. A directory is opened, and created if missing, by the first job that
//! needs it, so that a node that never uses it does not need it; then the handle is kept, for as long as the path leads to it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use caf_protocol::endpoint::Sign;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use cap_std::ambient_authority;
use cap_std::fs::{Dir, MetadataExt as _};

use super::path::{JobPath, join};
use super::usage::Usage;
use crate::settings::FsSettings;

/// All of them.
pub(super) struct Roots(Vec<Root>);

struct Root {
    name: String,
    path: PathBuf,
    /// The handle, with the directory's own absolute path.
    open: Mutex<Option<(Dir, PathBuf)>>,
    /// What it holds, where that has a bound.
    usage: Option<Arc<Usage>>,
}

/// A file in a root.
pub(super) struct Place {
    pub(super) dir: Dir,
    /// Relative to `dir`, at least one part.
    pub(super) path: PathBuf,
    /// What the root holds, where that has a bound.
    pub(super) usage: Option<Arc<Usage>>,
}

impl Roots {
    pub(super) fn new(settings: &FsSettings) -> Self {
        let roots = settings.roots.iter().map(|(name, path)| Root {
            name: name.clone(),
            path: path.clone(),
            open: Mutex::new(None),
            usage: settings.quotas.get(name).map(Usage::new),
        });
        Self(roots.collect())
    }

    /// The name of the root that a path lies in. Opens nothing, so that a root whose own path holds symbolic links is known
    /// by its configured path only.
    pub(super) fn name_of(&self, path: &JobPath) -> Option<&str> {
        if !path.is_absolute {
            let mut named = self.0.iter().filter(|root| root.name == path.parts[0]);
            return named.next().map(|root| &*root.name);
        }
        let inside = self.0.iter().filter_map(|root| {
            let configured = std::path::absolute(&root.path).ok()?;
            Some((leads_into(&configured, &path.parts)?, root))
        });
        let innermost = inside.max_by_key(|(depth, _)| *depth);
        innermost.map(|(_, root)| &*root.name)
    }

    /// The root that a path lies in, opened.
    pub(super) fn find(&self, path: &JobPath) -> Result<Place, Failure> {
        if path.is_absolute {
            return self.find_absolute(path);
        }
        let root = self
            .0
            .iter()
            .find(|root| root.name == path.parts[0])
            .ok_or_else(outside)?;
        if path.parts.len() == 1 {
            return Err(crate::inputs::invalid_input(
                "path",
                "must name a file in the directory, not the directory",
            ));
        }
        let (dir, _) = root.open()?;
        Ok(Place {
            dir,
            path: join(&path.parts[1..]),
            usage: root.usage.clone(),
        })
    }

    /// The innermost root that holds the path wins. Only the root's own path may hold symbolic links that lead elsewhere;
    /// what follows is resolved by the handle.
    fn find_absolute(&self, path: &JobPath) -> Result<Place, Failure> {
        let mut best: Option<(usize, Dir, &Root)> = None;
        let mut failed = None;
        for root in &self.0 {
            let configured = std::path::absolute(&root.path).unwrap_or_else(|_| root.path.clone());
            let opened = match root.open() {
                Ok(opened) => opened,
                Err(failure) if leads_into(&configured, &path.parts).is_some() => {
                    failed = Some(failure);
                    continue;
                }
                Err(_) => continue,
            };
            let (dir, canonical) = opened;
            let depth = leads_into(&configured, &path.parts).max(leads_into(&canonical, &path.parts));
            if let Some(depth) = depth
                && best.as_ref().is_none_or(|(other, _, _)| depth > *other)
            {
                best = Some((depth, dir, root));
            }
        }
        let (depth, dir, root) = best.ok_or_else(|| failed.unwrap_or_else(outside))?;
        Ok(Place {
            dir,
            path: join(&path.parts[depth..]),
            usage: root.usage.clone(),
        })
    }
}

impl Root {
    fn open(&self) -> Result<(Dir, PathBuf), Failure> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = match &*open {
            Some((dir, path)) if self.leads_to(dir) => dir.try_clone().map(|dir| (dir, path.clone())),
            _ => self.open_first(&mut open),
        };
        opened.map_err(|error| {
            let rule = format!("the directory named {} cannot be opened", self.name);
            Failure::of_field(ErrorCode::ResourceUnavailable, "path", &rule)
                .saying(Sign::Down)
                .internally(format!("{}: {error}", self.path.display()))
        })
    }

    /// Whether the configured path is still this directory: an operator may have moved it away, or mounted another there.
    fn leads_to(&self, dir: &Dir) -> bool {
        let (Ok(there), Ok(kept)) = (std::fs::metadata(&self.path), dir.dir_metadata()) else {
            return false;
        };
        (there.dev(), there.ino()) == (kept.dev(), kept.ino())
    }

    fn open_first(&self, open: &mut Option<(Dir, PathBuf)>) -> io::Result<(Dir, PathBuf)> {
        std::fs::create_dir_all(&self.path)?;
        let canonical = self.path.canonicalize()?;
        let dir = Dir::open_ambient_dir(&canonical, ambient_authority())?;
        let kept = dir.try_clone()?;
        *open = Some((kept, canonical.clone()));
        Ok((dir, canonical))
    }
}

/// How many parts of an absolute path lead to the directory, when it lies inside.
fn leads_into(directory: &Path, parts: &[String]) -> Option<usize> {
    let directory: Vec<&OsStr> = directory
        .components()
        .filter_map(|component| match component {
            Component::Normal(part) => Some(part),
            _ => None,
        })
        .collect();
    let inside =
        directory.len() < parts.len() && directory.iter().zip(parts).all(|(a, b)| *a == OsStr::new(b));
    inside.then_some(directory.len())
}

fn outside() -> Failure {
    let rule = "must lie in one of the directories of blocks.fs.roots";
    Failure::of_field(ErrorCode::PermissionDenied, "path", rule).saying(Sign::Refused)
}
