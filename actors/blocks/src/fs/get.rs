//! Reads a file: regular files only, whole, and not more than the limit.
//!
//! Neighbours: [`super`] runs it on a thread of its own. Opens without waiting, so that a FIFO without a writer cannot
//! hold the thread. Guesses no content type.

use std::io::{self, Read};

use caf_protocol::block::{Inputs, Outputs};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::limit::Operation;
use caf_protocol::outcome::Failure;
use caf_protocol::timestamp::iso_micros;
use cap_std::fs::{File, Metadata, MetadataExt, OpenOptions, OpenOptionsExt};
use rustix::fs::OFlags;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, json};

use super::path::JobPath;
use super::roots::Roots;
use super::{Action, CHUNK_BYTES, Shared, failure_of, too_large};
use crate::inputs::{Fields, to_base64};
use crate::watch::Watch;

/// Numbers of file systems of the kernel, as `statfs` tells them: proc, sysfs, debugfs, tracefs, securityfs, both cgroups,
/// devpts, bpf, configfs, efivarfs, selinuxfs, binfmt_misc and pstore.
const OF_THE_KERNEL: [u32; 14] = [
    0x9fa0,
    0x6265_6572,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0x0027_e0eb,
    0x6367_7270,
    0x1cd1,
    0xcafe_4a11,
    0x6265_6570,
    0xde5e_81e4,
    0xf97c_ff8c,
    0x4249_4e4d,
    0x6165_676c,
];

/// Inputs of `fs.blob_get`.
#[derive(JsonSchema, Serialize)]
pub(super) struct GetInputs {
    /// `name/rest`, with a name from the settings, or an absolute path inside such a directory.
    path: String,
}

/// Outputs of `fs.blob_get`.
#[derive(JsonSchema, Serialize)]
pub(super) struct GetOutputs {
    /// Path as given.
    path: String,
    /// Content as text, or as base64 when it is not UTF-8.
    content: String,
    /// `text` or `base64`.
    encoding: String,
    /// Bytes read.
    size: u64,
    /// The same as `size`.
    size_bytes: u64,
    /// When the file was last modified, UTC.
    modified: String,
}

/// A read, ready to run.
pub(super) struct Get {
    path: JobPath,
}

impl Action for Get {
    const OPERATIONS: &'static [Operation] = &[Operation::FsRead];

    fn from_inputs(inputs: &Inputs) -> Result<Self, Failure> {
        let path = JobPath::parse(Fields(inputs).required_text(&["path"])?)?;
        Ok(Self { path })
    }

    fn path(&self) -> &JobPath {
        &self.path
    }

    fn run(&self, shared: &Shared, watch: &Watch) -> Result<Outputs, Failure> {
        let rules = (shared.settings.max_bytes, shared.settings.allow_hard_links);
        let (bytes, metadata) = read_file(&self.path, &shared.roots, rules, watch)?;
        let modified = metadata
            .modified()
            .map_err(|error| failure_of(error, "reading the time"))?;
        let size = bytes.len();
        let (content, encoding) = match String::from_utf8(bytes) {
            Ok(text) => (text, "text"),
            Err(error) => (to_base64(error.as_bytes()), "base64"),
        };
        Ok(Map::from_iter([
            ("path".to_owned(), json!(self.path.text)),
            ("content".to_owned(), json!(content)),
            ("encoding".to_owned(), json!(encoding)),
            ("size".to_owned(), json!(size)),
            ("size_bytes".to_owned(), json!(size)),
            ("modified".to_owned(), json!(iso_micros(modified.into_std()))),
        ]))
    }
}

/// Opens a regular file and reads it whole.
pub(super) fn read_file(
    path: &JobPath,
    roots: &Roots,
    (max_bytes, allow_hard_links): (u64, bool),
    watch: &Watch,
) -> Result<(Vec<u8>, Metadata), Failure> {
    watch.check()?;
    let place = roots.find(path)?;
    // Before it is opened: to open a device or a FIFO is to do something to it.
    let before = place.dir.metadata(&place.path);
    if !before
        .map_err(|error| failure_of(error, "reading its kind"))?
        .is_file()
    {
        return Err(not_regular());
    }
    let mut options = OpenOptions::new();
    // What takes its place meanwhile must not hold the thread, nor become its terminal.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    options.read(true).custom_flags(flags.bits().cast_signed());
    let mut file = place.dir.open_with(&place.path, &options).map_err(|error| {
        match error.raw_os_error() {
            // What a socket says to being opened.
            Some(code) if code == rustix::io::Errno::NXIO.raw_os_error() => not_regular(),
            _ => failure_of(error, "opening"),
        }
    })?;
    let metadata = file
        .metadata()
        .map_err(|error| failure_of(error, "reading its kind"))?;
    if !metadata.is_file() {
        return Err(not_regular());
    }
    if metadata.nlink() > 1 && !allow_hard_links {
        let rule =
            "has more than one name, and may be a file of somebody else; see blocks.fs.allow_hard_links";
        return Err(Failure::of_field(ErrorCode::PermissionDenied, "path", rule));
    }
    if is_of_the_kernel(&file).map_err(|error| failure_of(error, "reading its file system"))? {
        let rule = "lies in a file system of the kernel";
        return Err(Failure::of_field(ErrorCode::PermissionDenied, "path", rule));
    }
    let bytes = read(&mut file, metadata.len(), max_bytes, watch)?;
    Ok((bytes, metadata))
}

/// Reads to the end. The size that the system tells is only a hint: a file may grow while it is read.
pub(super) fn read(
    file: &mut impl Read,
    size: u64,
    max_bytes: u64,
    watch: &Watch,
) -> Result<Vec<u8>, Failure> {
    if size > max_bytes {
        return Err(too_large(size, max_bytes));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    loop {
        watch.check()?;
        let read = file
            .by_ref()
            .take(CHUNK_BYTES as u64)
            .read_to_end(&mut bytes)
            .map_err(|error| failure_of(error, "reading"))?;
        if bytes.len() as u64 > max_bytes {
            return Err(too_large(bytes.len() as u64, max_bytes));
        }
        if read == 0 {
            return Ok(bytes);
        }
    }
}

/// Whether a file is one of those through which the kernel talks, such as `/proc`: regular by its kind, never content.
/// Somebody may have mounted one in a root.
fn is_of_the_kernel(file: &File) -> io::Result<bool> {
    let kind = rustix::fs::fstatfs(file)?.f_type;
    // The numbers have 32 bits, whatever the field has.
    Ok(u32::try_from(kind & 0xffff_ffff).is_ok_and(|kind| OF_THE_KERNEL.contains(&kind)))
}

pub(super) fn not_regular() -> Failure {
    Failure::of_field(ErrorCode::ExecutionFailed, "path", "is not a regular file")
}
