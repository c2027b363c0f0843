//! The log: one JSON object per line, as contract 8.1 has it; the registry of [`metrics`]; the export of [`traces`].
//!
//! Neighbours: the command line opens it; the pipeline's event emitter and stray sources write to the logger. Between
//! the logger and the stream, [`mod@line`] gives a record its form and [`output`] writes it. A line that cannot be written
//! is lost: the log never stops or panics the node.

mod background;
pub mod line;
pub mod metrics;
pub mod output;
pub mod traces;

use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::PathBuf;
use std::time::SystemTime;

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record, o};

use crate::settings::{LogLevel, LogSettings};
pub use background::Flush;
use background::{Background, Weight};
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

/// Opens the log of worker `worker_id`. Lines are written until the second value is dropped.
///
/// # Errors
/// When `log.file` cannot be opened for appending, or the system gives no thread.
pub fn logger(
    settings: &LogSettings,
    streams: Streams,
    worker_id: &str,
) -> Result<(Logger, Flush), TelemetryError> {
    let failed = |source| TelemetryError {
        path: settings.file.clone().unwrap_or_default(),
        source,
    };
    let output = match &settings.file {
        Some(path) => Output::file(path).map_err(failed)?,
        None => Output::standard(streams),
    };
    let (background, flush) = Background::start(output, worker_id).map_err(failed)?;
    Ok((
        logger_to(settings.level, Writer::Background(background), worker_id),
        flush,
    ))
}

/// A log that writes to any output at once, for tests and for embedding.
pub fn direct_logger(level: LogLevel, output: Output, worker_id: &str) -> Logger {
    logger_to(level, Writer::Direct(output), worker_id)
}

fn logger_to(level: LogLevel, writer: Writer, worker_id: &str) -> Logger {
    let lines = Lines {
        writer,
        worker_id: worker_id.to_owned(),
        clock: SystemTime::now,
    };
    Logger::root(lines.filter_level(slog_level(level)).ignore_res(), o!())
}

/// Gives each record its form and writes it.
struct Lines {
    writer: Writer,
    worker_id: String,
    clock: fn() -> SystemTime,
}

enum Writer {
    Background(Background),
    Direct(Output),
}

impl Drain for Lines {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        let line = line::line(record, values, &self.worker_id, (self.clock)());
        let weight = match record.level() {
            level if level.is_at_least(Level::Error) => Weight::Error,
            Level::Warning => Weight::Warning,
            _ => Weight::Plain,
        };
        match &self.writer {
            Writer::Background(background) => background.write(weight, line),
            Writer::Direct(output) => output.write(weight == Weight::Error, &line),
        }
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
