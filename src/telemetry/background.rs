//! Writes log lines on a thread of their own, so that a reader of the log that has stopped reading never stops the node.
//!
//! Neighbours: the drain hands lines over, [`super::output`] writes them. Bounded: below warning, lines that do not fit
//! are dropped and counted; warnings and errors have four times the room. What was dropped is said as soon as there is
//! room again.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use caf_protocol::timestamp::iso_micros;
use serde_json::json;

use super::output::Output;

/// Bytes of lines that may wait: about a second of the busiest log.
const ROOM_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of lines that may wait when the newest is a warning or an error.
const ROOM_BYTES_IMPORTANT: usize = 4 * ROOM_BYTES;
/// How long the end of the process waits for the last lines.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Weight {
    /// Below warning.
    Plain,
    /// A warning.
    Warning,
    /// An error; goes to the stream of errors.
    Error,
}

/// Lines on their way to the writing thread. Cheap to clone.
#[derive(Clone)]
pub(super) struct Background(Arc<Shared>);

/// Keeps the writing thread; dropping it waits for the last lines, but not for ever.
pub struct Flush(Background);

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<(Weight, Vec<u8>)>,
    bytes: usize,
    dropped: u64,
    /// The writing thread has lines in its hands.
    writing: bool,
    closed: bool,
}

impl Queue {
    /// Takes a line if it fits.
    fn push(&mut self, weight: Weight, line: Vec<u8>) {
        let room = if weight == Weight::Plain {
            ROOM_BYTES
        } else {
            ROOM_BYTES_IMPORTANT
        };
        if self.bytes + line.len() > room {
            self.dropped += 1;
            return;
        }
        self.bytes += line.len();
        self.lines.push_back((weight, line));
    }

    /// Everything that waits, and a word about what did not fit.
    fn take(&mut self, worker_id: &str) -> VecDeque<(Weight, Vec<u8>)> {
        let mut lines = std::mem::take(&mut self.lines);
        self.bytes = 0;
        if self.dropped > 0 {
            let count = std::mem::take(&mut self.dropped);
            lines.push_back((Weight::Warning, dropped_line(count, worker_id)));
        }
        lines
    }
}

impl Background {
    /// Starts the thread that writes to `output`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(output: Output, worker_id: &str) -> std::io::Result<(Self, Flush)> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        let (worker_id, writer) = (worker_id.to_owned(), Arc::clone(&shared));
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(&writer, &output, &worker_id))?;
        let background = Self(shared);
        Ok((background.clone(), Flush(background)))
    }

    /// Hands a line over. Never waits for the reader of the log.
    pub(super) fn write(&self, weight: Weight, line: Vec<u8>) {
        self.0.queue().push(weight, line);
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_all(shared: &Shared, output: &Output, worker_id: &str) {
    loop {
        let mut queue = shared.queue();
        while queue.lines.is_empty() {
            if queue.closed {
                return;
            }
            queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let lines = queue.take(worker_id);
        queue.writing = true;
        drop(queue);
        for (weight, line) in &lines {
            output.write(*weight == Weight::Error, line);
        }
        shared.queue().writing = false;
        shared.changed.notify_all();
    }
}

fn dropped_line(count: u64, worker_id: &str) -> Vec<u8> {
    let line = json!({
        "timestamp": iso_micros(SystemTime::now()),
        "level": "WARN",
        "component": "worker",
        "message": "Log lines dropped",
        "context": {"worker_id": worker_id, "count": count},
    });
    format!("{line}\n").into_bytes()
}

impl Drop for Flush {
    fn drop(&mut self) {
        let shared = &self.0.0;
        let end = Instant::now() + FLUSH_LIMIT;
        let mut queue = shared.queue();
        queue.closed = true;
        shared.changed.notify_all();
        while queue.writing || !queue.lines.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = shared
                .changed
                .wait_timeout(queue, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::mpsc;

    use super::*;

    /// A writer that passes lines on, and waits at each for a word that it may go on.
    struct Gate {
        lines: mpsc::Sender<String>,
        go: Mutex<mpsc::Receiver<()>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.go.lock().expect("not poisoned").recv();
            let _ = self.lines.send(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stops_stops_nobody_and_what_was_dropped_is_said() {
        let (lines, written) = mpsc::channel();
        let (go, may_go) = mpsc::channel();
        let gate = Gate {
            lines,
            go: Mutex::new(may_go),
        };
        let (background, flush) =
            Background::start(Output::writers(io::sink(), gate), "w").expect("a thread");
        let line = vec![b'x'; 1024 * 1024];
        // Nobody reads: all of this returns at once, and only what fits is kept.
        for _ in 0..20 {
            background.write(Weight::Plain, line.clone());
        }
        background.write(Weight::Warning, b"a warning fits\n".to_vec());
        drop(go);
        drop(flush);
        let written: Vec<String> = written.try_iter().collect();
        let plain = written.iter().filter(|line| line.starts_with('x')).count();
        assert!((4..=9).contains(&plain), "{plain} lines");
        assert!(written.iter().any(|line| line == "a warning fits\n"));
        let said = written
            .iter()
            .find(|line| line.contains("Log lines dropped"))
            .expect("said");
        let said: serde_json::Value = serde_json::from_str(said).expect("json");
        assert_eq!(said["context"]["count"], 20 - plain);
    }

    #[test]
    fn the_end_waits_for_the_last_lines() {
        let (lines, written) = mpsc::channel();
        let (go, may_go) = mpsc::channel();
        drop(go);
        let gate = Gate {
            lines,
            go: Mutex::new(may_go),
        };
        let (background, flush) =
            Background::start(Output::writers(io::sink(), gate), "w").expect("a thread");
        for _ in 0..1_000 {
            background.write(Weight::Plain, b"line\n".to_vec());
        }
        drop(flush);
        assert_eq!(written.try_iter().count(), 1_000);
    }
}
