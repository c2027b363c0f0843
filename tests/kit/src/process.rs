//! A child process that does not outlive its value.
//!
//! Neighbours: the servers and the worker of this crate. Signals go to the child by its id, never by a name.

use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::poll;

/// A running, or ended, child.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_os_string();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child, status: None })
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(crate) fn status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Sends a signal, unless it has ended: its id may then belong to somebody else.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.status().is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("a process id is a positive number")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal process {}", self.child.id()))
    }

    /// How it ended, or nothing when it still runs after `within`.
    pub(crate) fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        poll(within, || self.status())
    }

    /// Ends it with SIGKILL and waits.
    pub(crate) fn kill(&mut self) {
        if self.status().is_none() {
            // Fails only when it has ended in between; then waiting returns at once.
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn sleeper() -> Process {
        Process::spawn(Command::new("sleep").arg("60")).expect("sleep can be started")
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let process = sleeper();
        let entry = PathBuf::from(format!("/proc/{}", process.id()));
        assert!(entry.exists());
        drop(process);
        assert!(!entry.exists());
    }

    #[test]
    fn a_signal_ends_a_process_and_a_second_one_is_harmless() {
        use std::os::unix::process::ExitStatusExt as _;
        let mut process = sleeper();
        assert!(process.wait(Duration::ZERO).is_none());
        process.signal(Signal::TERM).expect("can be signalled");
        let status = process.wait(Duration::from_secs(5)).expect("ends");
        assert_eq!(status.signal(), Some(15));
        process.signal(Signal::TERM).expect("nothing to signal");
    }
}
