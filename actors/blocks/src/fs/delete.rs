//! Removes a file: the name that the path ends in, never a directory, and never what a symbolic link leads to.
//!
//! Neighbours: [`super`] runs it on a thread of its own. Creates no directory below the root.

use std::io;

use caf_protocol::block::{Inputs, Outputs};
use caf_protocol::limit::Operation;
use caf_protocol::outcome::Failure;
use cap_std::fs::MetadataExt;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::get::not_regular;
use super::path::JobPath;
use super::roots::Place;
use super::{Action, Shared, failure_of};
use crate::inputs::Fields;
use crate::watch::Watch;

/// Inputs of `fs.blob_delete`.
#[derive(JsonSchema, Serialize)]
pub(super) struct DeleteInputs {
    /// `name/rest`, with a name from the settings, or an absolute path inside such a directory.
    path: String,
    /// Whether it is fine that there is no such file; default false. Only then is the job handed back when a worker
    /// shuts down.
    missing_ok: Option<bool>,
}

/// Outputs of `fs.blob_delete`.
#[derive(JsonSchema, Serialize)]
pub(super) struct DeleteOutputs {
    /// Path as given.
    path: String,
    /// Whether there was a file.
    deleted: bool,
}

/// A removal, ready to run.
pub(super) struct Delete {
    path: JobPath,
    missing_ok: bool,
}

impl Action for Delete {
    const OPERATIONS: &'static [Operation] = &[Operation::FsDelete];

    fn from_inputs(inputs: &Inputs) -> Result<Self, Failure> {
        let fields = Fields(inputs);
        let path = JobPath::parse(fields.required_text(&["path"])?)?;
        let missing_ok = fields.flag(&["missing_ok"], false)?;
        Ok(Self { path, missing_ok })
    }

    fn path(&self) -> &JobPath {
        &self.path
    }

    fn run(&self, shared: &Shared, watch: &Watch) -> Result<Outputs, Failure> {
        watch.check()?;
        let Place { dir, path, usage } = shared.roots.find(&self.path)?;
        let directory = match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            None => Ok(dir),
            Some(parent) => dir.open_dir(parent),
        };
        // A removal that was given up while its directory was stuck must not come true later.
        watch.check()?;
        let name = path.file_name().unwrap_or_default();
        let removed = directory.and_then(|directory| {
            let metadata = directory.symlink_metadata(name)?;
            Ok((directory, metadata))
        });
        let removed = match removed {
            Ok((_, metadata)) if !metadata.is_file() && !metadata.is_symlink() => return Err(not_regular()),
            Ok((directory, metadata)) => directory.remove_file(name).map(|()| metadata.size()),
            Err(error) => Err(error),
        };
        let deleted = match removed {
            Ok(bytes) => {
                if let Some(usage) = usage {
                    usage.removed(bytes);
                }
                true
            }
            Err(error) if self.missing_ok && error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(failure_of(error, "removing")),
        };
        Ok(Outputs::from_iter([
            ("path".to_owned(), json!(self.path.text)),
            ("deleted".to_owned(), json!(deleted)),
        ]))
    }

    fn is_repeatable(&self) -> Option<bool> {
        Some(self.missing_ok)
    }
}
