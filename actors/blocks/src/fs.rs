//! `fs.blob_put` and `fs.blob_get`: whole files in and out of the directories that the settings name.
//!
//! Neighbours: [`crate::build`] builds both. `path` reads what a job calls a path, `roots` holds the directories as
//! capability handles, `put` and `get` do the work. Both block their thread and look at their watch between chunks. A
//! message for the caller holds the caller's path at most, never a path of the host. `fetch` reads inputs that a job refers
//! to by the same rules.

mod fetch;
mod get;
mod path;
mod put;
mod roots;

use std::io;
use std::sync::Arc;

use caf_protocol::block::{
    Block, BlockContext, BlockFuture, BlockSpec, Inputs, ResourceClass, RunMode, Task,
};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;

pub(crate) use self::fetch::FileFetch;
use self::get::{Get, GetInputs, GetOutputs};
use self::put::{Put, PutInputs, PutOutputs};
use self::roots::Roots;
use crate::settings::{FsSettings, ms};
use crate::watch::Watch;

/// How much is read or written between two looks at the watch, in bytes: a few milliseconds on a slow disk.
const CHUNK_BYTES: usize = 64 * 1024;

/// The block that writes.
pub(crate) struct BlobPut {
    spec: BlockSpec,
    shared: Arc<Shared>,
}

/// The block that reads.
pub(crate) struct BlobGet {
    spec: BlockSpec,
    shared: Arc<Shared>,
}

struct Shared {
    settings: FsSettings,
    roots: Roots,
}

impl Shared {
    fn new(settings: &FsSettings) -> Arc<Self> {
        Arc::new(Self {
            settings: settings.clone(),
            roots: Roots::new(&settings.roots),
        })
    }
}

impl BlobPut {
    pub(crate) fn new(settings: &FsSettings) -> Self {
        let spec = BlockSpec {
            job_types: &["fs.blob_put", "fs.put"],
            class: ResourceClass::Io,
            repeatable: false,
            inputs: schemars::schema_for!(PutInputs),
            outputs: schemars::schema_for!(PutOutputs),
        };
        let shared = Shared::new(settings);
        Self { spec, shared }
    }
}

impl Block for BlobPut {
    fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    fn prepare(&self, inputs: Inputs) -> Result<Arc<dyn Task>, Failure> {
        let put = Put::from_inputs(&inputs)?;
        let shared = Arc::clone(&self.shared);
        Ok(Arc::new(PutTask { shared, put }))
    }
}

impl BlobGet {
    pub(crate) fn new(settings: &FsSettings) -> Self {
        let spec = BlockSpec {
            job_types: &["fs.blob_get", "fs.get"],
            class: ResourceClass::Io,
            repeatable: true,
            inputs: schemars::schema_for!(GetInputs),
            outputs: schemars::schema_for!(GetOutputs),
        };
        let shared = Shared::new(settings);
        Self { spec, shared }
    }
}

impl Block for BlobGet {
    fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    fn prepare(&self, inputs: Inputs) -> Result<Arc<dyn Task>, Failure> {
        let get = Get::from_inputs(&inputs)?;
        let shared = Arc::clone(&self.shared);
        Ok(Arc::new(GetTask { shared, get }))
    }
}

struct PutTask {
    shared: Arc<Shared>,
    put: Put,
}

impl Task for PutTask {
    fn mode(&self) -> RunMode {
        RunMode::Thread
    }

    fn run(self: Arc<Self>, context: BlockContext) -> BlockFuture {
        Box::pin(async move {
            let settings = &self.shared.settings;
            let watch = Watch::start(&context, ms(settings.write_timeout_ms), "write limit");
            self.put.run(&self.shared.roots, settings.max_bytes, &watch)
        })
    }
}

struct GetTask {
    shared: Arc<Shared>,
    get: Get,
}

impl Task for GetTask {
    fn mode(&self) -> RunMode {
        RunMode::Thread
    }

    fn run(self: Arc<Self>, context: BlockContext) -> BlockFuture {
        Box::pin(async move {
            let settings = &self.shared.settings;
            let watch = Watch::start(&context, ms(settings.read_timeout_ms), "read limit");
            self.get.run(&self.shared.roots, settings.max_bytes, &watch)
        })
    }
}

/// What an error of the system means for the caller; its text stays inside.
fn failure_of(error: io::Error, doing: &str) -> Failure {
    use io::ErrorKind as Kind;
    let (code, rule) = match error.kind() {
        Kind::NotFound => (ErrorCode::ResourceUnavailable, "there is no such file"),
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem => {
            (ErrorCode::PermissionDenied, "access is not permitted")
        }
        Kind::StorageFull => (ErrorCode::ResourceUnavailable, "the disk is full"),
        Kind::QuotaExceeded => (ErrorCode::ResourceUnavailable, "the disk quota is used up"),
        Kind::FileTooLarge => (
            ErrorCode::ResourceUnavailable,
            "the file is too large for the disk",
        ),
        Kind::AlreadyExists => (
            ErrorCode::ExecutionFailed,
            "the file exists, and overwrite is not set",
        ),
        Kind::IsADirectory => (ErrorCode::ExecutionFailed, "is a directory"),
        Kind::NotADirectory => (
            ErrorCode::ExecutionFailed,
            "a part of it is a file, not a directory",
        ),
        Kind::InvalidFilename => (
            ErrorCode::InvalidInput,
            "a part of it is too long for the file system",
        ),
        _ => (ErrorCode::ExecutionFailed, doing),
    };
    Failure::of_field(code, "path", rule).internally(format!("{doing}: {error}"))
}

fn too_large(size: u64, limit: u64) -> Failure {
    Failure::new(
        ErrorCode::ResourceUnavailable,
        "the content is larger than the limit",
    )
    .with("size_bytes", size.into())
    .with("limit_bytes", limit.into())
}

#[cfg(test)]
mod tests;
