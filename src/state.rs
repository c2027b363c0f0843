//! The state directory of a running node: opened before anything is taken on, and what was left in it is finished first.
//!
//! Neighbours: `serve` opens it and hands outbox and marks to `wiring`; `recover` publishes what earlier processes had
//! stored and tells the fleet which assignments they died with. An unusable directory is waited for: the log, readiness
//! and the health page say what is wrong.

use std::path::{Path, PathBuf};
use std::time::Duration;

use caf_actors::claims::Claims;
use caf_actors::claims::fleet::Fleet;
use caf_actors::events::{self, Log};
use caf_actors::outbox::Outbox;
use caf_actors::publisher::replay::Replay;
use caf_actors::state_dir::StateDir;
use caf_actors::state_dir::marks::{Mark, Marks};
use caf_actors::status::NodeStatus;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::settings::Settings;

/// Pause before an unusable directory is tried again.
const OPEN_RETRY: Duration = Duration::from_secs(1);
/// Tries between two log lines about an unusable directory.
const TRIES_PER_LINE: u32 = 30;
/// Pause between two looks whether the directory is still there.
const PLACE_INTERVAL: Duration = Duration::from_secs(2);
/// Longest time that a look or a small write may take before the disk counts as hung.
const HANG_LIMIT: Duration = Duration::from_secs(5);

/// What a node keeps on disk.
pub struct State {
    /// Results that are not confirmed.
    pub outbox: Outbox,
    /// Assignments that run.
    pub marks: Marks,
    /// Where policies of tenants are kept that a store has told.
    pub policies: PathBuf,
    /// Assignments that ran when an earlier process in this slot ended without a word.
    died_with: Vec<Mark>,
    slot: u32,
}

impl State {
    /// Opens the first free slot, however long that takes. At most `jobs` run at once.
    pub async fn open(settings: &Settings, jobs: usize, status: &NodeStatus, log: &Log) -> Self {
        // Opening the marks clears them: what they told is kept when another part of the directory is not usable yet.
        let mut died_with = Vec::new();
        for attempt in 0.. {
            match Self::try_open(settings, jobs, &mut died_with, log) {
                Ok(state) => {
                    status.clear_obstacle();
                    return state;
                }
                Err(error) => {
                    if attempt % TRIES_PER_LINE == 0 {
                        log.emit(events::state_unusable(&error.to_string()));
                    }
                    status.set_obstacle(&error.to_string());
                    tokio::time::sleep(OPEN_RETRY).await;
                }
            }
        }
        unreachable!("the loop has no end of its own")
    }

    fn try_open(
        settings: &Settings,
        jobs: usize,
        died_with: &mut Vec<Mark>,
        log: &Log,
    ) -> anyhow::Result<Self> {
        let dir = StateDir::take(&settings.worker.state_dir)?;
        // The few pages of the marks come first: the reserve of the outbox would take the last of a disk that is full, and
        // each try say so.
        let (marks, left) = Marks::open(&dir, jobs)?;
        died_with.extend(left);
        let outbox = Outbox::open(&dir, &settings.outbox, log)?;
        log.emit(events::state_opened(dir.path(), outbox.snapshot().entries));
        Ok(Self {
            outbox,
            marks,
            policies: dir.path().join("policies.json"),
            died_with: std::mem::take(died_with),
            slot: dir.slot(),
        })
    }

    /// Finishes what earlier processes left, here and in slots that nobody uses any more. As long as the broker is away
    /// this does not end.
    pub async fn recover(&self, settings: &Settings, replay: &Replay, claims: &Claims, log: &Log) {
        if let Some(fleet) = claims.fleet() {
            note_deaths(fleet, &self.died_with, log).await;
        }
        replay.publish_left_behind(&self.outbox).await;
        for dir in StateDir::take_left_behind(&settings.worker.state_dir, self.slot) {
            self.recover_slot(&dir, settings, replay, claims, log).await;
        }
    }

    async fn recover_slot(
        &self,
        dir: &StateDir,
        settings: &Settings,
        replay: &Replay,
        claims: &Claims,
        log: &Log,
    ) {
        match Marks::open(dir, 0) {
            Ok((_, died_with)) => {
                if let Some(fleet) = claims.fleet() {
                    note_deaths(fleet, &died_with, log).await;
                }
            }
            Err(error) => log.emit(events::warning(&error.to_string())),
        }
        match Outbox::open(dir, &settings.outbox, log) {
            Ok(outbox) => {
                replay.publish_left_behind(&outbox).await;
                let _ = outbox.flush().await;
            }
            Err(error) => log.emit(events::state_unusable(&error.to_string())),
        }
    }
}

async fn note_deaths(fleet: &Fleet, died_with: &[Mark], log: &Log) {
    for mark in died_with {
        let claim = fleet.note_death(&mark.key, mark.alone).await;
        log.emit(events::death_noted(mark.key.as_str(), mark.alone, claim.as_ref()));
    }
}

/// Lets the node take work on only while results can be stored and are found by a later process, for as long as it is
/// polled.
pub async fn watch_room(state: &State, status: NodeStatus, state_dir: &Path, log: &Log) {
    let State { outbox, marks, .. } = state;
    let (lost, is_lost) = watch::channel(None);
    // The second ends with the outbox only, and the first when nobody listens.
    tokio::select! {
        () = watch_place(outbox, marks, &lost, log) => {}
        () = let_in(outbox, &status, state_dir, is_lost) => {}
    }
}

/// Looks whether the directory is still there, and whether its disk answers. This process cannot mend it, its files have no
/// names any more; whoever moved the directory may move it back.
async fn watch_place(outbox: &Outbox, marks: &Marks, lost: &watch::Sender<Option<String>>, log: &Log) {
    loop {
        tokio::time::sleep(PLACE_INTERVAL).await;
        let place = outbox.clone();
        // A disk that hangs must not stop the node.
        let mut look = tokio::task::spawn_blocking(move || place.is_in_place());
        let looked = match timeout(HANG_LIMIT, &mut look).await {
            Err(_) => {
                tell(lost, Some(hung(outbox)), log);
                look.await
            }
            Ok(looked) => looked,
        };
        // The runtime ends.
        let Ok(looked) = looked else { return };
        let why = looked.err().map(|error| error.to_string());
        let is_hung = marks.writing_for().max(outbox.writing_for()) >= HANG_LIMIT;
        tell(lost, why.or_else(|| is_hung.then(|| hung(outbox))), log);
    }
}

fn hung(outbox: &Outbox) -> String {
    format!(
        "worker.state_dir: the disk that holds {} does not answer",
        outbox.file().display()
    )
}

fn tell(lost: &watch::Sender<Option<String>>, why: Option<String>, log: &Log) {
    if let Some(why) = &why
        && lost.borrow().is_none()
    {
        log.emit(events::state_unusable(why));
    }
    lost.send_if_modified(|known| {
        let changed = *known != why;
        *known = why;
        changed
    });
}

async fn let_in(
    outbox: &Outbox,
    status: &NodeStatus,
    state_dir: &Path,
    mut lost: watch::Receiver<Option<String>>,
) {
    let mut has_room = outbox.room_changes();
    loop {
        let room = *has_room.borrow_and_update();
        let obstacle = lost.borrow_and_update().clone();
        // A full outbox may empty itself; a lost directory stays lost until somebody acts.
        let obstacle = obstacle.or_else(|| (!room).then(|| why_no_room(outbox, state_dir)));
        status.held().let_in(obstacle.is_none());
        match obstacle {
            None => status.clear_obstacle(),
            Some(why) => status.set_obstacle(&why),
        }
        let changed = tokio::select! {
            changed = has_room.changed() => changed,
            changed = lost.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

fn why_no_room(outbox: &Outbox, state_dir: &Path) -> String {
    let snapshot = outbox.snapshot();
    snapshot.failure.unwrap_or_else(|| {
        format!(
            "worker.state_dir: the outbox in {} is full: {} of {} bytes wait to be published",
            state_dir.display(),
            snapshot.bytes,
            snapshot.max_bytes
        )
    })
}
