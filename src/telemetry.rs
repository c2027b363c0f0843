//! The log: one JSON object per line, as contract 8.1 has it; the registry of [`metrics`]; the export of [`traces`].
//!
//! Neighbours: the command line opens it; the pipeline's event emitter, dependencies and stray sources write to it. Between
//! them and the stream, [`mod@line`] gives a record its form, [`Flush`] and what stands behind it hands it to a thread, and
//! [`output`] writes it. The log never stops or panics the node.

mod background;
mod dependencies;
pub mod line;
pub mod metrics;
pub mod output;
pub mod secrets;
pub mod traces;

use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use caf_actors::events;
use caf_actors::levels::{Levels, Rules};
use caf_actors::metrics::Meter;
use slog::{Drain, Level, Logger, Never, OwnedKVList, Record, o};

use crate::settings::{LogLevel, LogSettings};
pub use background::Flush;
use background::{Background, Line};
use output::Output;
use secrets::Secrets;

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

/// An open log. Lines are written until `flush` is dropped.
pub struct Opened {
    /// Writes lines of ours. Give [`LogControl::levels`] to whoever writes through it.
    pub logger: Logger,
    /// Changes the log while it is written.
    pub control: LogControl,
    /// Waits for the last lines when dropped.
    pub flush: Flush,
}

/// Changes the log while it is written. Cheap to clone.
#[derive(Clone)]
pub struct LogControl {
    levels: Levels,
    background: background::Background,
    worker_id: String,
    secrets: Secrets,
}

impl LogControl {
    /// What is written.
    pub fn levels(&self) -> &Levels {
        &self.levels
    }

    /// Puts other levels in force, for lines of ours and of dependencies.
    pub fn set_levels(&self, rules: Rules) {
        self.levels.set(rules);
        dependencies::levels_changed(&self.levels);
    }

    /// Lets dependencies speak through this log.
    pub fn hear_dependencies(&self) {
        let (background, levels) = (self.background.clone(), self.levels.clone());
        dependencies::Bridge::new(background, levels, &self.worker_id, self.secrets.clone()).install();
    }

    /// What no line may hold.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Counts with `meter` what is not written.
    pub fn measure(&self, meter: Arc<dyn Meter>) {
        self.background.control().measure(meter);
    }

    /// Leaves warnings and errors that nobody took in this file when the log ends.
    pub fn leave_at(&self, path: PathBuf) {
        self.background.control().leave_at(path);
    }

    /// Opens a log file anew, so that one that was moved away gets no more lines.
    pub fn reopen(&self) {
        self.background.control().reopen();
    }

    /// Waits for the lines so far, at most a tenth of a second: for a panic, which may be the last.
    pub fn flush_briefly(&self) {
        self.background.control().flush_briefly();
    }
}

/// Opens the log of worker `worker_id`, which never holds these `secrets`.
///
/// # Errors
/// When `log.file` cannot be opened for appending, or the system gives no thread.
pub fn open(
    settings: &LogSettings,
    secrets: Secrets,
    streams: Streams,
    worker_id: &str,
) -> Result<Opened, TelemetryError> {
    let failed = |source| TelemetryError {
        path: settings.file.clone().unwrap_or_default(),
        source,
    };
    let output = match &settings.file {
        Some(path) => Output::file(path).map_err(failed)?,
        None => Output::standard(streams),
    };
    let (background, flush) = Background::start(output, worker_id).map_err(failed)?;
    let levels = Levels::new(settings.rules());
    let lines = Lines::new(Writer::Background(background.clone()), worker_id, secrets.clone());
    let judged = Judged(lines, levels.clone());
    Ok(Opened {
        logger: Logger::root(judged.ignore_res(), o!()),
        control: LogControl {
            levels,
            background,
            worker_id: worker_id.to_owned(),
            secrets,
        },
        flush,
    })
}

/// A log that writes to any output at once, for tests and for embedding.
pub fn direct_logger(level: LogLevel, output: Output, worker_id: &str) -> Logger {
    let lines = Lines::new(Writer::Direct(output), worker_id, Secrets::default());
    Logger::root(lines.filter_level(slog_level(level)).ignore_res(), o!())
}

/// Gives each record its form and writes it.
struct Lines {
    writer: Writer,
    worker_id: String,
    secrets: Secrets,
    clock: fn() -> SystemTime,
}

enum Writer {
    Background(Background),
    Direct(Output),
}

impl Lines {
    fn new(writer: Writer, worker_id: &str, secrets: Secrets) -> Self {
        Self {
            writer,
            worker_id: worker_id.to_owned(),
            secrets,
            clock: SystemTime::now,
        }
    }
}

impl Drain for Lines {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        let bytes = line::line(record, values, &self.worker_id, &self.secrets, (self.clock)());
        let level = event_level(record.level());
        match &self.writer {
            Writer::Background(background) => {
                background.write(Line { level, bytes }, &line::message_of(record));
            }
            // A line that cannot be written has nobody else to go to.
            Writer::Direct(output) => drop(output.write(level == events::Level::Error, &bytes)),
        }
        Ok(())
    }
}

/// Lets through what the levels let through. Events were judged where they arose, by their module.
struct Judged(Lines, Levels);

impl Drain for Judged {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        let level = event_level(record.level());
        match record.module() == events::MODULE || self.1.let_target_through(level, record.module()) {
            true => self.0.log(record, values),
            false => Ok(()),
        }
    }
}

fn event_level(level: Level) -> events::Level {
    match level {
        Level::Critical | Level::Error => events::Level::Error,
        Level::Warning => events::Level::Warn,
        Level::Info => events::Level::Info,
        Level::Debug | Level::Trace => events::Level::Debug,
    }
}

/// The compiler checks that a logger may be shared and may survive a caught panic.
const _: fn() = || {
    fn shared<T: Send + Sync + UnwindSafe + RefUnwindSafe>() {}
    shared::<Lines>();
    shared::<Judged>();
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
