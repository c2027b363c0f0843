//! Where log lines go: standard streams, a file, or a writer that a test holds.
//!
//! Each line is one write, so lines of several threads never mix. What cannot be written (a closed pipe, a full disk)
//! is dropped without a word: there is nowhere left to say it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::Streams;

/// A writer that a logger may share between threads.
type Sink = Mutex<Box<dyn Write + Send + UnwindSafe + RefUnwindSafe>>;

/// Where log lines go.
pub struct Output(Kind);

enum Kind {
    Standard(Streams),
    File(Mutex<File>),
    Writers { errors: Sink, rest: Sink },
}

impl Output {
    /// The standard streams.
    pub fn standard(streams: Streams) -> Self {
        Self(Kind::Standard(streams))
    }

    /// A file, created if it is not there; lines are added at its end.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn file(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self(Kind::File(Mutex::new(file))))
    }

    /// Two writers in place of standard error and standard output.
    pub fn writers<E, R>(errors: E, rest: R) -> Self
    where
        E: Write + Send + UnwindSafe + RefUnwindSafe + 'static,
        R: Write + Send + UnwindSafe + RefUnwindSafe + 'static,
    {
        Self(Kind::Writers {
            errors: Mutex::new(Box::new(errors)),
            rest: Mutex::new(Box::new(rest)),
        })
    }

    /// Writes one line, which brings its own line feed.
    pub(super) fn write(&self, is_error: bool, line: &[u8]) {
        // The result is dropped on purpose: see above.
        let _ = match &self.0 {
            Kind::Standard(Streams::Split) if !is_error => write_once(&mut io::stdout().lock(), line),
            Kind::Standard(_) => write_once(&mut io::stderr().lock(), line),
            Kind::File(file) => write_once(&mut *file.lock().unwrap_or_else(PoisonError::into_inner), line),
            Kind::Writers { errors, rest } => {
                let sink = if is_error { errors } else { rest };
                write_once(&mut *sink.lock().unwrap_or_else(PoisonError::into_inner), line)
            }
        };
    }
}

fn write_once(to: &mut impl Write, line: &[u8]) -> io::Result<()> {
    to.write_all(line)?;
    to.flush()
}
