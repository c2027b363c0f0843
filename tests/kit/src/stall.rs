//! A file system that hangs, or is slow: system calls of the worker below one directory are held.
//!
//! Neighbours: `stall.c`, which does it and says how; [`crate::worker::WorkerBuilder::under`] runs a worker beneath it. The
//! worker itself is the program under test, unchanged: a thread of it is stuck within a real call. Everything else of the
//! worker (state directory, log, sockets) is never held. Needs `cc`, as the build of SQLite does, and no privilege.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::TempDir;

/// Which calls are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldCall {
    /// Opening through a handle of a directory.
    Open,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Forcing to disk.
    Sync,
    /// Linking.
    Link,
    /// Renaming.
    Rename,
    /// Removing.
    Unlink,
}

impl HeldCall {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Link => "link",
            Self::Rename => "rename",
            Self::Unlink => "unlink",
        }
    }
}

/// A directory whose calls can be held. Nothing is held at first.
#[derive(Debug)]
pub struct Stall {
    home: TempDir,
}

impl Stall {
    /// Makes the directory, and compiles the program that watches over it.
    ///
    /// # Errors
    /// When there is no compiler, or no room.
    pub fn new() -> Result<Self> {
        let stall = Self {
            home: TempDir::new("stall")?,
        };
        std::fs::create_dir(stall.directory())?;
        std::fs::create_dir(stall.switches())?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("stall.c");
        let compiled = Command::new("cc")
            .arg("-O1")
            .arg("-o")
            .arg(stall.program())
            .arg(source)
            .output();
        let compiled = compiled.context("cc is not installed: install a C compiler")?;
        if !compiled.status.success() {
            bail!("stall.c: {}", String::from_utf8_lossy(&compiled.stderr));
        }
        Ok(stall)
    }

    /// The directory, absolute.
    pub fn directory(&self) -> PathBuf {
        self.home.path().join("slow")
    }

    fn switches(&self) -> PathBuf {
        self.home.path().join("switches")
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.home.path().join("stall")
    }

    /// Arguments that make the program run another one.
    pub(crate) fn arguments(&self) -> [PathBuf; 2] {
        [self.directory(), self.switches()]
    }

    /// Holds these calls from now on, until [`Stall::release`].
    ///
    /// # Errors
    /// When the switch cannot be made.
    pub fn hold(&self, call: HeldCall) -> Result<()> {
        self.switch(call, "")
    }

    /// Delays each of these calls from now on.
    ///
    /// # Errors
    /// When the switch cannot be made.
    pub fn delay(&self, call: HeldCall, by: Duration) -> Result<()> {
        self.switch(call, &by.as_millis().max(1).to_string())
    }

    /// Fails each of these calls from now on, as a system does that does not permit them: also to a user who may do
    /// everything.
    ///
    /// # Errors
    /// When the switch cannot be made.
    pub fn refuse(&self, call: HeldCall) -> Result<()> {
        let code = rustix::io::Errno::ACCESS.raw_os_error();
        self.switch(call, &format!("-{code}"))
    }

    /// Fails each write from now on, as on a full disk.
    ///
    /// # Errors
    /// When the switch cannot be made.
    pub fn fill_up(&self) -> Result<()> {
        let code = rustix::io::Errno::NOSPC.raw_os_error();
        self.switch(HeldCall::Write, &format!("-{code}"))
    }

    fn switch(&self, call: HeldCall, content: &str) -> Result<()> {
        // Whole at once: a half written number would be another delay.
        let draft = self.home.path().join("draft");
        std::fs::write(&draft, content)?;
        std::fs::rename(draft, self.switches().join(call.as_str()))?;
        Ok(())
    }

    /// Lets these calls go on, those that are held and those to come.
    ///
    /// # Errors
    /// When the switch cannot be removed.
    pub fn release(&self, call: HeldCall) -> Result<()> {
        std::fs::remove_file(self.switches().join(call.as_str()))?;
        Ok(())
    }

    /// How many of these calls have been held, delayed or refused so far.
    pub fn held(&self, call: HeldCall) -> usize {
        let noted = std::fs::read_to_string(self.switches().join("held")).unwrap_or_default();
        noted.lines().filter(|line| *line == call.as_str()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Worker;
    use crate::wait::wait_until;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn calls_below_the_directory_wait_until_they_are_released_and_all_others_go_on() {
        let stall = Stall::new().expect("is made");
        stall.hold(HeldCall::Write).expect("is switched");
        let script = "echo outside > ./file; echo {}; echo inside > \"$SLOW/file\"; echo '{\"a\":1}'";
        let mut worker = Worker::builder("/bin/sh")
            .arg("-c")
            .arg(script)
            .env("SLOW", stall.directory().display())
            .under(&stall)
            .start()
            .expect("starts");
        worker.wait_for_log(|_| true).expect("is not held by its log");
        wait_until("the call is held", PATIENCE, || stall.held(HeldCall::Write) == 1);
        assert_eq!(
            std::fs::read(stall.directory().join("file")).expect("is open"),
            b""
        );
        stall.release(HeldCall::Write).expect("is switched");
        let finished = worker.finish(PATIENCE).expect("ends");
        assert_eq!((finished.code(), finished.lines.len()), (Some(0), 2));
        assert_eq!(
            std::fs::read(stall.directory().join("file")).expect("is there"),
            b"inside\n"
        );
    }

    #[test]
    fn calls_can_be_refused() {
        let stall = Stall::new().expect("is made");
        stall.refuse(HeldCall::Unlink).expect("is switched");
        let file = stall.directory().join("file");
        std::fs::write(&file, "").expect("is written");
        // Removing a directory goes through a handle of it, so that the call begins with a descriptor below.
        let finished = Worker::builder("/bin/sh")
            .args(["-c", "rm -r \"$SLOW\" 2> /dev/null || echo refused"])
            .env("SLOW", stall.directory().display())
            .under(&stall)
            .run(PATIENCE)
            .expect("ends");
        assert_eq!(
            (finished.stdout().as_str(), stall.held(HeldCall::Unlink)),
            ("refused", 1)
        );
        assert!(file.exists());
    }
}
