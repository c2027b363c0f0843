//! One way out of the process: lines in their order, and the thread that writes them.
//!
//! A line stays in its lane until it is written, so that what waits is counted whole, and can still be saved by somebody
//! else when the stream stands still.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use caf_actors::events::Level;
use serde_json::json;

use super::fold::{Folds, own_line};
use super::{Drops, Line};
use crate::telemetry::output::Output;

/// Bytes of lines below warning that may wait: about a second of the busiest log.
pub(super) const ROOM_BYTES: usize = 4 * 1024 * 1024;
/// Most bytes that are written at once.
const BATCH_BYTES: usize = 64 * 1024;
/// How long lines below warning may wait for others to be written with.
const LINGER: Duration = Duration::from_millis(2);
/// Bytes of warnings and errors that may wait beside them.
pub(super) const IMPORTANT_ROOM_BYTES: usize = 8 * ROOM_BYTES;

thread_local! {
    /// This thread writes the log: what it would log itself has nowhere to go.
    static WRITES: Cell<bool> = const { Cell::new(false) };
}

/// Lines on their way to one stream.
pub(super) struct Lane {
    state: Mutex<State>,
    changed: Condvar,
    output: Arc<Output>,
    is_errors: bool,
    worker_id: String,
    drops: Arc<Drops>,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Arc<Line>>,
    plain_bytes: usize,
    important_bytes: usize,
    /// Lines below warning that were not kept, debug and info.
    dropped: [u64; 2],
    folds: Folds,
    /// Lines that came in, and that have left.
    pushed: u64,
    left: u64,
    /// Nobody took lines any more after this one: it is not waited for again.
    stuck_at: Option<u64>,
    idle: bool,
    reopen: bool,
    failing: bool,
    closed: bool,
}

fn is_important(level: Level) -> bool {
    level <= Level::Warn
}

impl State {
    /// Takes a line if there is room for it, else says so.
    fn keep(&mut self, line: Line) -> bool {
        let (bytes, room) = match is_important(line.level) {
            true => (&mut self.important_bytes, IMPORTANT_ROOM_BYTES),
            false => (&mut self.plain_bytes, ROOM_BYTES),
        };
        if *bytes + line.bytes.len() > room {
            return false;
        }
        *bytes += line.bytes.len();
        self.pushed += 1;
        self.lines.push_back(Arc::new(line));
        true
    }

    /// Says what did not fit, before anything that came later.
    fn tell(&mut self, worker_id: &str) {
        if self.important_bytes > IMPORTANT_ROOM_BYTES / 2 {
            return;
        }
        for line in self.folds.take(worker_id) {
            self.keep(line);
        }
        // While nothing can be written, it is counted and not told.
        if self.dropped != [0, 0] && !self.failing && self.plain_bytes <= ROOM_BYTES / 2 {
            let [debug, info] = std::mem::take(&mut self.dropped);
            let context =
                json!({"worker_id": worker_id, "count": debug + info, "debug": debug, "info": info});
            let now = SystemTime::now();
            self.keep(own_line(Level::Warn, "WARN", "Log lines dropped", now, &context));
        }
    }

    fn is_written(&self) -> bool {
        let is_told = self.failing || self.dropped == [0, 0];
        self.lines.is_empty() && self.folds.is_empty() && is_told
    }

    fn drop_plain(&mut self, level: Level) {
        self.dropped[usize::from(level == Level::Info)] += 1;
    }

    /// The line at the front has been written, or given up.
    fn remove_front(&mut self) {
        let Some(line) = self.lines.pop_front() else {
            return;
        };
        self.left += 1;
        let bytes = match is_important(line.level) {
            true => &mut self.important_bytes,
            false => &mut self.plain_bytes,
        };
        *bytes = bytes.saturating_sub(line.bytes.len());
    }
}

impl Lane {
    /// Starts its thread.
    pub(super) fn start(
        name: &str,
        is_errors: bool,
        output: Arc<Output>,
        worker_id: &str,
        drops: Arc<Drops>,
    ) -> std::io::Result<Arc<Self>> {
        let lane = Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            output,
            is_errors,
            worker_id: worker_id.to_owned(),
            drops,
        });
        let writer = Arc::clone(&lane);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            WRITES.set(true);
            // A line that ends its writer is given up, and the next one is written.
            while catch_unwind(AssertUnwindSafe(|| writer.write_all())).is_err() {
                writer.state().remove_front();
            }
        })?;
        Ok(lane)
    }

    /// Takes a line in, or counts it.
    pub(super) fn push(&self, line: Line, message: &str) {
        if WRITES.get() {
            return;
        }
        let level = line.level;
        let mut state = self.state();
        // Whoever lingers is told of what does not.
        let hastens = is_important(level);
        // What was folded is told before what comes after it.
        state.tell(&self.worker_id);
        let kept = (state.folds.is_empty() || !is_important(level)) && state.keep(line);
        match (kept, is_important(level)) {
            (false, true) => state.folds.add(level, message, SystemTime::now()),
            (false, false) => state.drop_plain(level),
            (true, _) => {}
        }
        let wake = std::mem::take(&mut state.idle) || hastens;
        drop(state);
        if wake {
            self.changed.notify_all();
        }
        if !kept && !is_important(level) {
            self.drops.count(level);
        }
    }

    pub(super) fn reopen(&self) {
        let mut state = self.state();
        state.reopen = true;
        state.idle = false;
        drop(state);
        self.changed.notify_all();
    }

    /// Everything that comes is still written, but nobody waits for more.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Waits until everything is written.
    pub(super) fn wait_empty(&self, end: Instant) {
        let mut state = self.state();
        while !state.is_written() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits until what is there now is written. Who has waited in vain is not followed by another.
    pub(super) fn wait_written(&self, end: Instant) {
        if WRITES.get() {
            return;
        }
        let mut state = self.state();
        let target = state.pushed;
        if state.stuck_at == Some(state.left) {
            return;
        }
        while state.left < target {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.stuck_at = Some(state.left);
                return;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// The warnings and errors that nobody has taken.
    pub(super) fn take_important(&self) -> Vec<u8> {
        let mut state = self.state();
        let folded = state.folds.take(&self.worker_id);
        let waiting = state.lines.iter().filter(|line| is_important(line.level));
        let waiting = waiting.map(|line| line.bytes.as_slice());
        waiting
            .chain(folded.iter().map(|line| line.bytes.as_slice()))
            .flatten()
            .copied()
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all(&self) {
        while let Some(lines) = self.next() {
            let written = match &*lines {
                [line] => self.output.write(self.is_errors, &line.bytes),
                lines => {
                    let bytes: Vec<&[u8]> = lines.iter().map(|line| &*line.bytes).collect();
                    self.output.write(self.is_errors, &bytes.concat())
                }
            };
            let (first_failure, fails) = {
                let mut state = self.state();
                let first = written.is_err() && !state.failing;
                state.failing = written.is_err();
                (first, written.is_err())
            };
            if let Err(error) = &written
                && first_failure
            {
                self.complain(&error.to_string());
            }
            if fails {
                lines.iter().for_each(|line| self.rescue(line));
            }
            let mut state = self.state();
            lines.iter().for_each(|_| state.remove_front());
            drop(state);
            self.changed.notify_all();
        }
    }

    /// The lines at the front, once there are any; none when the lane is closed and empty. They stay where they are.
    fn next(&self) -> Option<Vec<Arc<Line>>> {
        let mut state = self.state();
        loop {
            if std::mem::take(&mut state.reopen) {
                drop(state);
                self.reopen_now();
                state = self.state();
            }
            if state.lines.is_empty() {
                state.tell(&self.worker_id);
            }
            if !state.lines.is_empty() {
                return Some(self.batch(state));
            }
            if state.closed {
                return None;
            }
            state.idle = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What is written at once. A file takes whole batches or nothing of them; to others each line goes alone. Lines below
    /// warning wait a moment for others to come along: a thread that is woken for each of them costs more than they do.
    fn batch(&self, mut state: MutexGuard<'_, State>) -> Vec<Arc<Line>> {
        if !self.output.takes_batches() || state.failing {
            return state.lines.front().cloned().into_iter().collect();
        }
        let lingers = |state: &mut State| {
            !state.closed && state.important_bytes == 0 && state.plain_bytes < BATCH_BYTES
        };
        let waited = self.changed.wait_timeout_while(state, LINGER, lingers);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let mut bytes = 0;
        let fits = |line: &&Arc<Line>| {
            bytes += line.bytes.len();
            bytes <= BATCH_BYTES
        };
        let batch: Vec<_> = state.lines.iter().take_while(fits).cloned().collect();
        match batch.is_empty() {
            true => state.lines.front().cloned().into_iter().collect(),
            false => batch,
        }
    }

    fn reopen_now(&self) {
        if let Err(error) = self.output.reopen() {
            let context = json!({"worker_id": self.worker_id, "error": error.to_string()});
            let message = "Log file not opened again";
            let line = own_line(Level::Error, "ERROR", message, SystemTime::now(), &context);
            self.state().keep(line);
        }
    }

    /// A line that its stream does not take: standard error may.
    fn rescue(&self, line: &Line) {
        let is_saved = is_important(line.level) && self.to_standard_error(&line.bytes);
        if is_saved {
            return;
        }
        self.drops.count(line.level);
        if !is_important(line.level) {
            self.state().drop_plain(line.level);
        }
    }

    fn complain(&self, error: &str) {
        let context = json!({"worker_id": self.worker_id, "error": error});
        let line = own_line(
            Level::Error,
            "ERROR",
            "Log cannot be written",
            SystemTime::now(),
            &context,
        );
        self.to_standard_error(&line.bytes);
    }

    fn to_standard_error(&self, line: &[u8]) -> bool {
        if self.output.is_standard_error(self.is_errors) {
            return false;
        }
        let mut stream = std::io::stderr().lock();
        stream.write_all(line).is_ok()
    }
}
