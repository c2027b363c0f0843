//! Inputs that a job refers to by a `file:` path, read by the rules of `fs.blob_get`.
//!
//! Neighbours: `get` opens and reads; the pipeline calls [`Fetch`]. Knows nothing of what the bytes mean.

use std::sync::Arc;

use caf_protocol::block::{BlockContext, RunMode};
use caf_protocol::limit::{Operation, OperationLimit};
use caf_protocol::reference::{Fetch, FetchFuture, Location, Scheme, misdirected};

use super::Shared;
use super::get::read_file;
use super::path::JobPath;
use crate::payload::too_large_for_a_payload;
use crate::watch::Watch;

/// Fetches from the directories of the settings.
pub(crate) struct FileFetch {
    shared: Arc<Shared>,
}

impl FileFetch {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        let shared = Arc::clone(shared);
        Self { shared }
    }
}

impl Fetch for FileFetch {
    fn scheme(&self) -> Scheme {
        Scheme::File
    }

    fn mode(&self) -> RunMode {
        RunMode::Thread
    }

    fn limit(&self) -> Option<OperationLimit> {
        self.shared.limits.on(Operation::FsRead)
    }

    fn fetch(self: Arc<Self>, location: Location, max_bytes: u64, context: BlockContext) -> FetchFuture {
        Box::pin(async move {
            let Location::File { path } = location else {
                return Err(misdirected());
            };
            let max_bytes = max_bytes.min(self.shared.settings.max_bytes);
            let rules = (max_bytes, self.shared.settings.allow_hard_links);
            let watch = Watch::start(&context, self.limit());
            let read =
                JobPath::parse(&path).and_then(|path| read_file(&path, &self.shared.roots, rules, &watch));
            let (bytes, _) = read.map_err(|failure| too_large_for_a_payload(failure, max_bytes))?;
            Ok(bytes.into())
        })
    }
}
