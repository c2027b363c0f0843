//! The log: one JSON object per line, as contract 8.1 has it.
//!
//! Neighbours: the command line opens it; the pipeline's event emitter and stray sources write to the logger. Between
//! the logger and the stream, [`mod@line`] gives a record its form and [`output`] writes it. A line that cannot be written
//! is lost: the log never stops or panics the node.

pub mod line;
pub mod output;

use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::PathBuf;
use std::time::SystemTime;

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record, o};

use crate::settings::{LogLevel, LogSettings};
use output::Output;

/// Why the log cannot be opened. Fix the settings or the file's permissions.
#[derive(Debug, thiserror::Error)]
#[error("log file {} cannot be opened", path.display())]
pub struct TelemetryError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Which standard stream gets which lines, when no file is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    /// Errors to standard error, the rest to standard output.
    Split,
    /// Everything to standard error: standard output carries a command's answer.
    StandardError,
}

/// Opens the log of worker `worker_id`.
///
/// # Errors
/// When `log.file` cannot be opened for appending.
pub fn logger(settings: &LogSettings, streams: Streams, worker_id: &str) -> Result<Logger, TelemetryError> {
    let output = match &settings.file {
        Some(path) => Output::file(path).map_err(|source| TelemetryError {
            path: path.clone(),
            source,
        })?,
        None => Output::standard(streams),
    };
    Ok(logger_to(settings.level, output, worker_id))
}

/// A log that writes to any output, for tests and for embedding.
pub fn logger_to(level: LogLevel, output: Output, worker_id: &str) -> Logger {
    let lines = Lines {
        output,
        worker_id: worker_id.to_owned(),
        clock: SystemTime::now,
    };
    Logger::root(lines.filter_level(slog_level(level)).ignore_res(), o!())
}

/// Gives each record its form and writes it.
struct Lines {
    output: Output,
    worker_id: String,
    clock: fn() -> SystemTime,
}

impl Drain for Lines {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        let line = line::line(record, values, &self.worker_id, (self.clock)());
        self.output.write(record.level().is_at_least(Level::Error), &line);
        Ok(())
    }
}

/// The compiler checks that a logger may be shared and may survive a caught panic.
const _: fn() = || {
    fn shared<T: Send + Sync + UnwindSafe + RefUnwindSafe>() {}
    shared::<Lines>();
};

fn slog_level(level: LogLevel) -> Level {
    match level {
        LogLevel::Error => Level::Error,
        LogLevel::Warn => Level::Warning,
        LogLevel::Info => Level::Info,
        LogLevel::Debug => Level::Debug,
    }
}

#[cfg(test)]
mod tests;
