//! Writes log lines on threads of their own, so that a reader of the log that has stopped reading never stops the node.
//!
//! Neighbours: the drain hands lines over, [`super::output`] writes them. Errors have a lane of their own where they go to
//! a stream of their own; in each lane the order is kept. Bounded: below warning, lines that do not fit are dropped and
//! counted. Warnings and errors are never lost while the process lives: they have eight times the room, never share it with the
//! others, and what does not fit is folded ([`fold`]) into one line for each message, with a count. What cannot be written
//! goes to standard error; what nobody has taken when the process ends, to a file.

mod fold;
mod lane;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use caf_actors::events::Level;
use caf_actors::events::logging::LINES_DROPPED;
use caf_actors::metrics::Meter;

use super::output::Output;
use lane::Lane;

/// How long the end of the process waits for the last lines, and then for the file of what nobody took.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);
/// How long a panic waits for its line: what follows may be the end of the process.
const PANIC_LIMIT: Duration = Duration::from_millis(100);
/// Most bytes that the file of what nobody took grows to.
const MAX_LEFT_BYTES: u64 = 64 * 1024 * 1024;

/// One line on its way.
pub(super) struct Line {
    /// How much it matters.
    pub(super) level: Level,
    /// Its bytes with the line feed.
    pub(super) bytes: Vec<u8>,
}

/// Lines on their way to the writing threads. Cheap to clone.
#[derive(Clone)]
pub(super) struct Background(Arc<Shared>);

/// Keeps the writing threads; dropping it waits for the last lines, but not for ever.
pub struct Flush(Background);

/// Everything about the log that may change while it is written.
#[derive(Clone)]
pub(super) struct Control(Background);

struct Shared {
    /// One for everything, or one for the rest and one for errors.
    lanes: Vec<Arc<Lane>>,
    drops: Arc<Drops>,
    /// Where what nobody took is left.
    left: Mutex<Option<PathBuf>>,
}

/// Where it is counted what is lost.
#[derive(Default)]
pub(super) struct Drops(OnceLock<AssertUnwindSafe<Arc<dyn Meter>>>);

impl Drops {
    fn count(&self, level: Level) {
        self.add(level, 1.0);
    }

    fn add(&self, level: Level, count: f64) {
        if let Some(meter) = self.0.get() {
            meter.record(&LINES_DROPPED.sample(&[name_of(level)], count));
        }
    }
}

fn name_of(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug | Level::Silent => "debug",
    }
}

impl Background {
    /// Starts the threads that write to `output`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(output: Output, worker_id: &str) -> std::io::Result<(Self, Flush)> {
        let (output, drops) = (Arc::new(output), Arc::new(Drops::default()));
        let lanes: &[(bool, &str)] = match output.is_split() {
            true => &[(false, "log"), (true, "log.errors")],
            false => &[(false, "log")],
        };
        let lanes = lanes.iter().map(|(is_errors, name)| {
            Lane::start(
                name,
                *is_errors,
                Arc::clone(&output),
                worker_id,
                Arc::clone(&drops),
            )
        });
        let background = Self(Arc::new(Shared {
            lanes: lanes.collect::<std::io::Result<_>>()?,
            drops,
            left: Mutex::default(),
        }));
        Ok((background.clone(), Flush(background)))
    }

    /// Hands a line over. `message` names its kind. Never waits for the reader of the log.
    pub(super) fn write(&self, line: Line, message: &str) {
        let lanes = &self.0.lanes;
        let lane = match line.level {
            Level::Error => lanes.last(),
            _ => lanes.first(),
        };
        if let Some(lane) = lane {
            lane.push(line, message);
        }
    }

    pub(super) fn control(&self) -> Control {
        Control(self.clone())
    }
}

impl Control {
    /// Counts there what is lost.
    pub(super) fn measure(&self, meter: Arc<dyn Meter>) {
        let drops = &self.0.0.drops;
        let _ = drops.0.set(AssertUnwindSafe(meter));
        for level in [Level::Error, Level::Warn, Level::Info, Level::Debug] {
            drops.add(level, 0.0);
        }
    }

    /// Leaves there at the end what nobody took.
    pub(super) fn leave_at(&self, path: PathBuf) {
        *self.0.0.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(path);
    }

    /// Opens a log file anew; the writing thread does it.
    pub(super) fn reopen(&self) {
        self.0.0.lanes.iter().for_each(|lane| lane.reopen());
    }

    /// Waits until the lines so far are written, a moment at most; where somebody waited in vain already, not at all.
    pub(super) fn flush_briefly(&self) {
        let end = Instant::now() + PANIC_LIMIT;
        // Errors come last, and matter first.
        for lane in self.0.0.lanes.iter().rev() {
            lane.wait_written(end);
        }
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        let shared = &self.0.0;
        let end = Instant::now() + FLUSH_LIMIT;
        shared.lanes.iter().for_each(|lane| lane.close());
        for lane in shared.lanes.iter().rev() {
            lane.wait_empty(end);
        }
        let left: Vec<u8> = shared
            .lanes
            .iter()
            .rev()
            .flat_map(|lane| lane.take_important())
            .collect();
        let path = shared.left.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let (false, Some(path)) = (left.is_empty(), path) {
            leave(path, left);
        }
    }
}

/// The disk may hang too, and must not keep the process.
fn leave(path: PathBuf, lines: Vec<u8>) {
    let (done, is_done) = mpsc::channel();
    let thread = std::thread::Builder::new().name("log.left".to_owned());
    let spawned = thread.spawn(move || {
        let size = std::fs::metadata(&path).map_or(0, |meta| meta.len());
        if size < MAX_LEFT_BYTES
            && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(&path)
        {
            // There is nowhere left to say that this failed.
            let _ = file.write_all(&lines);
        }
        let _ = done.send(());
    });
    if spawned.is_ok() {
        let _ = is_done.recv_timeout(FLUSH_LIMIT);
    }
}

#[cfg(test)]
mod tests;
