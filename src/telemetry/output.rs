//! Where log lines go: standard streams, a file, or a writer that a test holds.
//!
//! Each line, and in a file each batch of lines, is one write, so that lines of several threads never mix. Says whether a line was written; what to do about it
//! if not is the caller's business.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::Streams;

/// A writer that a logger may share between threads.
type Sink = Mutex<Box<dyn Write + Send + UnwindSafe + RefUnwindSafe>>;

/// Where log lines go.
pub struct Output(Kind);

enum Kind {
    Standard(Streams),
    File(Mutex<LogFile>),
    Writers { errors: Sink, rest: Sink },
}

/// A file that only grows.
struct LogFile {
    path: PathBuf,
    file: File,
    /// The last write broke off inside of a line, and that could not be undone.
    torn: bool,
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
        Ok(Self(Kind::File(Mutex::new(LogFile {
            path: path.to_owned(),
            file: open(path)?,
            torn: false,
        }))))
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

    /// Whether errors go another way than the rest, so that one may stand still while the other goes on.
    pub(super) fn is_split(&self) -> bool {
        matches!(self.0, Kind::Standard(Streams::Split) | Kind::Writers { .. })
    }

    /// Whether lines with this weight end up at standard error.
    pub(super) fn is_standard_error(&self, is_error: bool) -> bool {
        match self.0 {
            Kind::Standard(Streams::Split) => is_error,
            Kind::Standard(Streams::StandardError) => true,
            Kind::File(_) | Kind::Writers { .. } => false,
        }
    }

    /// Whether several lines may be written at once: what was written of them is taken back when the rest is not.
    pub(super) fn takes_batches(&self) -> bool {
        matches!(self.0, Kind::File(_))
    }

    /// Writes one line, which brings its own line feed, or several where [`Output::takes_batches`].
    ///
    /// # Errors
    /// When it was not written: a closed pipe, a full disk.
    pub(super) fn write(&self, is_error: bool, line: &[u8]) -> io::Result<()> {
        match &self.0 {
            Kind::Standard(Streams::Split) if !is_error => write_once(&mut io::stdout().lock(), line),
            Kind::Standard(_) => write_once(&mut io::stderr().lock(), line),
            Kind::File(file) => lock(file).write(line),
            Kind::Writers { errors, rest } => {
                write_once(&mut *lock(if is_error { errors } else { rest }), line)
            }
        }
    }

    /// Opens the file anew, which somebody may have moved away; the old one is kept when that fails. Does nothing for
    /// anything but a file.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn reopen(&self) -> io::Result<()> {
        if let Kind::File(file) = &self.0 {
            let mut log = lock(file);
            log.file = open(&log.path)?;
            log.torn = false;
        }
        Ok(())
    }
}

impl LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            self.file.write_all(b"\n")?;
            self.torn = false;
        }
        let mut written = 0;
        while written < line.len() {
            match self.file.write(&line[written..]) {
                Ok(0) => return Err(self.undo(written, io::ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.undo(written, error)),
            }
        }
        Ok(())
    }

    /// Half a line is worse than none. Where it cannot be cut off (somebody else writes there too), the next line begins
    /// on a line of its own.
    fn undo(&mut self, written: usize, error: io::Error) -> io::Error {
        if written > 0 {
            let cut = self.file.metadata().and_then(|meta| {
                let length = meta.len().saturating_sub(written as u64);
                self.file.set_len(length)
            });
            self.torn = cut.is_err();
        }
        error
    }
}

/// Never waits: a pipe without a reader would keep the start of the node.
fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new()
        .create(true)
        .append(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::NXIO.raw_os_error() => {
            io::Error::new(error.kind(), "it is a pipe that nobody reads, or a socket")
        }
        _ => error,
    })?;
    let kind = file.metadata()?.file_type();
    if !(kind.is_file() || kind.is_char_device() || kind.is_fifo()) {
        let rule = "it is neither a file, nor a pipe, nor a character device";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, rule));
    }
    // Only the opening must not wait: lines have a thread of their own, which may.
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_once(to: &mut impl Write, line: &[u8]) -> io::Result<()> {
    to.write_all(line)?;
    to.flush()
}
