//! `fs.blob_put`, `fs.blob_get` and `fs.blob_delete`: whole files in and out of the directories that the settings name.
//!
//! Neighbours: [`crate::build`] builds them. `path` reads what a job calls a path, `roots` holds the directories as
//! capability handles, `usage` counts what they hold against their quotas, `put`, `get` and `delete` do the work, `leftovers` cleans up after
//! writers that died. All block their thread and look at their watch between
//! steps; the pipeline stops waiting for one that is stuck within a step. A message for the caller holds the caller's path
//! at most, never a path of the host. `fetch` reads inputs that a job refers to by the same rules.

mod delete;
mod fetch;
mod get;
mod leftovers;
mod path;
#[cfg(any(test, fuzzing))]
pub(crate) mod properties;
mod put;
mod roots;
mod usage;

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

use caf_protocol::block::{
    Block, BlockContext, BlockFuture, BlockSpec, Inputs, Outputs, ResourceClass, RunMode, Task,
};
use caf_protocol::endpoint::{Endpoint, EndpointKind, Sign};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::limit::{Operation, OperationLimit};
use caf_protocol::outcome::Failure;
use schemars::JsonSchema;

use self::delete::Delete;
pub(crate) use self::fetch::FileFetch;
use self::get::Get;
use self::leftovers::Swept;
use self::path::JobPath;
use self::put::Put;
use self::roots::Roots;
use crate::OperationLimits;
use crate::settings::FsSettings;
use crate::watch::Watch;

/// How much is read or written between two looks at the watch, in bytes: a few milliseconds on a slow disk.
const CHUNK_BYTES: usize = 64 * 1024;

/// What all of them use.
pub(crate) struct Shared {
    settings: FsSettings,
    limits: OperationLimits,
    roots: Roots,
    swept: Swept,
}

impl Shared {
    pub(crate) fn new(settings: &FsSettings, limits: OperationLimits) -> Arc<Self> {
        Arc::new(Self {
            settings: settings.clone(),
            limits,
            roots: Roots::new(settings),
            swept: Swept::default(),
        })
    }
}

/// The parts of a path that a job gives: at least one, none empty, `.` or `..`, none with a slash or a control character, none
/// longer than 255 bytes. Pure: for those who try it with every text there is.
///
/// # Errors
/// INVALID_INPUT with the rule that the path breaks.
pub fn path_parts(text: &str) -> Result<Vec<String>, Failure> {
    path::JobPath::parse(text).map(|path| path.parts)
}

/// One thing to do with one file, its inputs parsed.
trait Action: Sized + Send + Sync + 'static {
    /// What its limit is on.
    const OPERATIONS: &'static [Operation];

    fn from_inputs(inputs: &Inputs) -> Result<Self, Failure>;

    /// Which file.
    fn path(&self) -> &JobPath;

    fn run(&self, shared: &Shared, watch: &Watch) -> Result<Outputs, Failure>;

    /// See [`Task::is_repeatable`].
    fn is_repeatable(&self) -> Option<bool> {
        None
    }
}

/// The block for one kind of action.
struct FileBlock<A> {
    spec: BlockSpec,
    shared: Arc<Shared>,
    action: PhantomData<fn() -> A>,
}

impl<A: Action> FileBlock<A> {
    fn new<I: JsonSchema, O: JsonSchema>(
        job_types: &'static [&'static str],
        repeatable: bool,
        shared: &Arc<Shared>,
    ) -> Self {
        Self {
            spec: BlockSpec {
                job_types,
                class: ResourceClass::Io,
                repeatable,
                inputs: schemars::schema_for!(I),
                outputs: schemars::schema_for!(O),
            },
            shared: Arc::clone(shared),
            action: PhantomData,
        }
    }
}

/// The block that writes.
pub(crate) fn blob_put(shared: &Arc<Shared>) -> impl Block {
    FileBlock::<Put>::new::<put::PutInputs, put::PutOutputs>(&["fs.blob_put", "fs.put"], false, shared)
}

/// The block that reads.
pub(crate) fn blob_get(shared: &Arc<Shared>) -> impl Block {
    FileBlock::<Get>::new::<get::GetInputs, get::GetOutputs>(&["fs.blob_get", "fs.get"], true, shared)
}

/// The block that removes. Removing what has been removed fails, so it is repeatable only where that is let pass.
pub(crate) fn blob_delete(shared: &Arc<Shared>) -> impl Block {
    FileBlock::<Delete>::new::<delete::DeleteInputs, delete::DeleteOutputs>(
        &["fs.blob_delete", "fs.delete"],
        false,
        shared,
    )
}

impl<A: Action> Block for FileBlock<A> {
    fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    fn prepare(&self, inputs: Inputs) -> Result<Arc<dyn Task>, Failure> {
        let action = A::from_inputs(&inputs)?;
        let shared = Arc::clone(&self.shared);
        Ok(Arc::new(FileTask { shared, action }))
    }
}

struct FileTask<A> {
    shared: Arc<Shared>,
    action: A,
}

impl<A: Action> Task for FileTask<A> {
    fn mode(&self) -> RunMode {
        RunMode::Thread
    }

    fn limit(&self) -> Option<OperationLimit> {
        let operation = A::OPERATIONS.first()?;
        self.shared.limits.on(*operation)
    }

    fn operations(&self) -> &'static [Operation] {
        A::OPERATIONS
    }

    fn endpoint(&self) -> Option<Endpoint> {
        let root = self.shared.roots.name_of(self.action.path())?;
        Some(Endpoint::new(EndpointKind::Fs, root))
    }

    fn is_repeatable(&self) -> Option<bool> {
        self.action.is_repeatable()
    }

    fn run(self: Arc<Self>, context: BlockContext) -> BlockFuture {
        Box::pin(async move {
            let watch = Watch::start(&context, self.limit());
            self.action.run(&self.shared, &watch)
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
    let failure = Failure::of_field(code, "path", rule).internally(format!("{doing}: {error}"));
    match sign_of(&error) {
        Some(sign) => failure.saying(sign),
        None => failure,
    }
}

/// What an error of the system says of the directory of the settings; nothing where the failure's code says it. A file that
/// may not be read says nothing of its directory; one that cannot be written is the business of `put`.
fn sign_of(error: &io::Error) -> Option<Sign> {
    use io::ErrorKind as Kind;
    use rustix::io::Errno;
    let of_the_device = [Errno::IO, Errno::STALE, Errno::NODEV, Errno::HOSTDOWN];
    match error.kind() {
        Kind::NotFound => Some(Sign::Up),
        Kind::ReadOnlyFilesystem | Kind::StorageFull | Kind::QuotaExceeded | Kind::TimedOut => {
            Some(Sign::Down)
        }
        _ if Errno::from_io_error(error).is_some_and(|errno| of_the_device.contains(&errno)) => {
            Some(Sign::Down)
        }
        _ => None,
    }
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
