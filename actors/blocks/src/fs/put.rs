//! Writes a file: all of it or nothing, and never over another one unless told to.
//!
//! Neighbours: [`super`] runs it on a thread of its own. The content goes to a temporary file in the same directory,
//! which takes its name in one step when it is complete and on the disk; on any failure before, it is removed. A process
//! that is killed meanwhile leaves it behind, as `.caf-<id>.tmp`, which no job can name; `leftovers` removes it when the next
//! process writes in that directory. Modes of files and directories are those that the umask of the process leaves.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use caf_protocol::block::{Inputs, Outputs};
use caf_protocol::endpoint::Sign;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::limit::Operation;
use caf_protocol::outcome::Failure;
use caf_protocol::timestamp::iso_micros;
use cap_std::fs::{Dir, MetadataExt};
use rustix::fs::{RenameFlags, renameat_with};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::get::not_regular;
use super::path::JobPath;
use super::roots::Place;
use super::{Action, CHUNK_BYTES, Shared, failure_of, leftovers, too_large};
use crate::inputs::{self, Fields, invalid_input};
use crate::watch::Watch;

/// Longest content type in bytes; it is only passed through.
const MAX_CONTENT_TYPE_BYTES: usize = 256;

/// Inputs of `fs.blob_put`.
#[derive(JsonSchema, Serialize)]
pub(super) struct PutInputs {
    /// `name/rest`, with a name from the settings, or an absolute path inside such a directory.
    path: String,
    /// Content as text; any other JSON value is written as its JSON text. Alias `data`.
    content: Value,
    /// `text` (default) or `base64`: how `content` is to be read.
    encoding: Option<String>,
    /// Passed through to the outputs.
    content_type: Option<String>,
    /// Whether a file of that name may be replaced; default false.
    overwrite: Option<bool>,
}

/// Outputs of `fs.blob_put`.
#[derive(JsonSchema, Serialize)]
pub(super) struct PutOutputs {
    /// Path as given.
    path: String,
    /// Bytes written.
    size: u64,
    /// The same as `size`.
    size_bytes: u64,
    /// When it was written, UTC.
    created: String,
    /// As given.
    content_type: Option<String>,
}

/// A write, ready to run.
pub(super) struct Put {
    path: JobPath,
    content: Vec<u8>,
    content_type: Option<String>,
    overwrite: bool,
}

impl Action for Put {
    const OPERATIONS: &'static [Operation] = &[Operation::FsWrite];

    fn from_inputs(inputs: &Inputs) -> Result<Self, Failure> {
        let fields = Fields(inputs);
        let path = JobPath::parse(fields.required_text(&["path"])?)?;
        let encoding = fields.text(&["encoding"])?.unwrap_or("text").to_ascii_lowercase();
        let (name, value) = fields
            .value(&["content", "data"])
            .ok_or_else(|| Failure::missing("content"))?;
        let content = match (value, encoding.as_str()) {
            (Value::String(text), "text" | "utf-8" | "utf8") => text.clone().into_bytes(),
            (Value::String(text), "base64") => inputs::base64(name, text)?,
            (_, "base64") => return Err(inputs::invalid_format(name, "must be a string of base64")),
            (value, "text" | "utf-8" | "utf8") => value.to_string().into_bytes(),
            _ => return Err(invalid_input("encoding", "must be text or base64")),
        };
        let content_type = fields.text(&["content_type"])?.map(str::to_owned);
        if content_type
            .as_ref()
            .is_some_and(|text| text.len() > MAX_CONTENT_TYPE_BYTES)
        {
            return Err(invalid_input("content_type", "must be at most 256 bytes"));
        }
        let overwrite = fields.flag(&["overwrite"], false)?;
        Ok(Self {
            path,
            content,
            content_type,
            overwrite,
        })
    }

    fn path(&self) -> &JobPath {
        &self.path
    }

    fn run(&self, shared: &Shared, watch: &Watch) -> Result<Outputs, Failure> {
        let max_bytes = shared.settings.max_bytes;
        let size = self.content.len() as u64;
        if size > max_bytes {
            return Err(too_large(size, max_bytes));
        }
        watch.check()?;
        let place = shared.roots.find(&self.path)?;
        let room = match &place.usage {
            Some(usage) => {
                let entries = missing_names(&place);
                Some(usage.reserve(&place.dir, size, entries, watch)?)
            }
            None => None,
        };
        let (parent, name) = open_parent(place)?;
        let taken = parent.symlink_metadata(&name).ok();
        match &taken {
            None => {}
            Some(_) if !self.overwrite => {
                let exists = io::ErrorKind::AlreadyExists.into();
                return Err(failure_of(exists, "looking for the file"));
            }
            // A directory is told as such by the system.
            Some(taken) if !taken.is_file() && !taken.is_symlink() && !taken.is_dir() => {
                return Err(not_regular());
            }
            Some(_) => {}
        }
        let created = self.write(&parent, &name, watch)?;
        if let Some(room) = room {
            room.used(taken.map(|taken| taken.size()));
        }
        shared.swept.once(&parent, watch);
        let mut outputs = Map::new();
        outputs.insert("path".to_owned(), json!(self.path.text));
        outputs.insert("size".to_owned(), json!(size));
        outputs.insert("size_bytes".to_owned(), json!(size));
        outputs.insert("created".to_owned(), json!(created));
        if let Some(content_type) = &self.content_type {
            outputs.insert("content_type".to_owned(), json!(content_type));
        }
        Ok(outputs)
    }
}

impl Put {
    /// Writes the file and gives the time at which the system says it was written.
    fn write(&self, parent: &Dir, name: &Path, watch: &Watch) -> Result<String, Failure> {
        let in_step = |doing: &'static str| move |error| failure_of(error, doing);
        let (temporary, mut file) =
            leftovers::create(parent).map_err(|error| not_writable(error, "creating the temporary file"))?;
        let mut guard = Temporary {
            parent,
            name: Some(&temporary),
        };
        for chunk in self.content.chunks(CHUNK_BYTES) {
            watch.check()?;
            file.write_all(chunk).map_err(in_step("writing"))?;
        }
        file.sync_all()
            .map_err(in_step("bringing the content to the disk"))?;
        let written = file.metadata().and_then(|metadata| metadata.modified());
        let written = written.map_err(in_step("reading the time"))?;
        // A write that was given up while it was stuck must not come true later.
        watch.check()?;
        if self.overwrite {
            parent
                .rename(&temporary, parent, name)
                .map_err(in_step("giving the file its name"))?;
            guard.name = None;
        } else if name_if_free(parent, &temporary, name).map_err(in_step("giving the file its name"))? {
            guard.name = None;
        }
        drop(guard);
        // The file is there and whole. Not every file system can bring a directory to the disk, and a job that failed now
        // could not be repeated, so what may be lost with the power is not told as a failure.
        let _ = parent.open(".").and_then(|directory| directory.sync_all());
        Ok(iso_micros(written.into_std()))
    }
}

/// Gives the temporary file its name unless the name is taken, in one step. True when the temporary name is gone by that.
/// A rename that refuses to replace does it, or a link where a file system does not know such a rename. Not the link first:
/// for a moment the file would have two names, and whoever read it then would be refused.
pub(super) fn name_if_free(parent: &Dir, temporary: &Path, name: &Path) -> io::Result<bool> {
    match renameat_with(parent, temporary, parent, name, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            parent.hard_link(temporary, parent, name)?;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// The failure to make something new. Where the system does not permit that, it is the directory that is at fault; what leads
/// out of it is refused before the system is asked.
fn not_writable(error: io::Error, doing: &str) -> Failure {
    let by_the_system = error.raw_os_error().is_some() && error.kind() == io::ErrorKind::PermissionDenied;
    let failure = failure_of(error, doing);
    if by_the_system {
        failure.saying(Sign::Down)
    } else {
        failure
    }
}

/// How many names the file needs that are not there yet: its own, and those of directories.
fn missing_names(place: &Place) -> u64 {
    let ancestors = place
        .path
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty());
    let missing = ancestors.take_while(|path| place.dir.symlink_metadata(path).is_err());
    // The name of a file that is replaced counts until it is.
    (missing.count() as u64).max(1)
}

/// The directory that the file goes to, created when missing, and the file's name in it.
fn open_parent(place: Place) -> Result<(Dir, PathBuf), Failure> {
    let Place { dir, path, .. } = place;
    let name = path.file_name().map(PathBuf::from).unwrap_or_default();
    let parent = match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        None => dir,
        Some(parent) => match dir.open_dir(parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => dir
                .create_dir_all(parent)
                .and_then(|()| dir.open_dir(parent))
                .map_err(|error| not_writable(error, "creating the directory"))?,
            opened => opened.map_err(|error| failure_of(error, "opening the directory"))?,
        },
    };
    if name.as_os_str().is_empty() {
        return Err(Failure::of_field(
            ErrorCode::InvalidInput,
            "path",
            "must name a file",
        ));
    }
    Ok((parent, name))
}

/// Removes the temporary file unless it has become the file.
struct Temporary<'a> {
    parent: &'a Dir,
    name: Option<&'a Path>,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name {
            // Nothing is left to do if this fails: the failure that led here is the one to tell.
            let _ = self.parent.remove_file(name);
        }
    }
}
