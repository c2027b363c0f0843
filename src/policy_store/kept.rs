//! What the policy store has told, on disk: a restart while the store is away keeps it.
//!
//! Neighbours: [`super`] gives it what has changed, at most once a second, and reads it at the start. Written whole beside
//! the old file and renamed, by a thread of its own, one at a time: a disk that hangs keeps nobody. It is a copy of what can
//! be asked again, so it is not forced to disk, and losing it loses no job.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use caf_actors::settings::PolicyStoreSettings;
use caf_actors::settings::rules::Rules;
use caf_actors::tenants::Kept;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Longest time that reading may take: the start of the node does not hang on it.
const READ_LIMIT: Duration = Duration::from_secs(1);
/// Largest file that is read: some 600 bytes for each of as many tenants as the settings allow.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// The file.
#[derive(Serialize, Deserialize)]
struct Document {
    /// The store that told it: another one's words do not count.
    url: String,
    policy: String,
    tenants: BTreeMap<String, Kept>,
}

/// Keeps what was told.
pub(super) struct Keeper {
    file: PathBuf,
    /// What went wrong with the last write; the thread holds a copy while it writes.
    failed: Arc<Mutex<Option<String>>>,
    /// Whether the last failure has been told.
    has_complained: bool,
}

impl Keeper {
    pub(super) fn new(file: PathBuf) -> Self {
        Self {
            file,
            failed: Arc::default(),
            has_complained: false,
        }
    }

    /// What this store told an earlier process; nothing when there was none.
    pub(super) async fn read(&self, store: &PolicyStoreSettings) -> Result<BTreeMap<String, Kept>, String> {
        let (done, is_done) = oneshot::channel();
        let file = self.file.clone();
        let thread = std::thread::Builder::new().name("policies".to_owned());
        let started = thread.spawn(move || drop(done.send(read(&file))));
        started.map_err(|error| error.to_string())?;
        let read = timeout(READ_LIMIT, is_done).await;
        let Ok(Ok(read)) = read else {
            return Err("the disk did not answer in time".to_owned());
        };
        let told = read?.filter(|told| store.url.as_ref() == Some(&told.url) && store.policy == told.policy);
        let mut tenants = told.map(|told| told.tenants).unwrap_or_default();
        tenants.retain(|_, kept| is_valid(kept));
        Ok(tenants)
    }

    /// Keeps what has changed, unless the last write has not ended yet.
    pub(super) fn keep(
        &mut self,
        store: &PolicyStoreSettings,
        changed: impl FnOnce() -> Option<BTreeMap<String, Kept>>,
    ) {
        if Arc::strong_count(&self.failed) > 1 {
            return;
        }
        let Some(tenants) = changed() else { return };
        let document = Document {
            url: store.url.clone().unwrap_or_default(),
            policy: store.policy.clone(),
            tenants,
        };
        let (file, failed) = (self.file.clone(), Arc::clone(&self.failed));
        let thread = std::thread::Builder::new().name("policies".to_owned());
        let started = thread.spawn(move || {
            let written = write(&file, &document);
            *failed.lock().unwrap_or_else(PoisonError::into_inner) =
                written.err().map(|error| error.to_string());
        });
        if let Err(error) = started {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        }
    }

    /// Why the last write failed, once until one succeeds.
    pub(super) fn complaint(&mut self) -> Option<String> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_new = failed.is_some() && !self.has_complained;
        self.has_complained = failed.is_some();
        failed.filter(|_| is_new)
    }
}

/// A file that was changed by hand is not believed more than the store.
fn is_valid(kept: &Kept) -> bool {
    let mut rules = Rules::default();
    kept.policy.validate(&mut rules);
    rules.into_broken().is_empty()
}

fn read(file: &Path) -> Result<Option<Document>, String> {
    let size = match fs::metadata(file) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    if size > MAX_FILE_BYTES {
        return Err("the file is too large".to_owned());
    }
    let bytes = fs::read(file).map_err(|error| error.to_string())?;
    // Its own words would quote what stands there.
    let document = serde_json::from_slice(&bytes).map_err(|_| "the file is damaged".to_owned())?;
    Ok(Some(document))
}

fn write(file: &Path, document: &Document) -> io::Result<()> {
    let new = file.with_extension("json.new");
    let bytes = serde_json::to_vec(document).map_err(io::Error::other)?;
    fs::write(&new, bytes)?;
    fs::rename(&new, file)
}
