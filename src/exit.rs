//! How the process ends: one code for each thing an operator or a service manager does next. 64 to 78 follow
//! `sysexits.h`; 80 and above are our own.

use std::process::ExitCode;

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All is well.
    Ok = 0,
    /// `exec` or `submit` ran, and some assignments failed; or `dlq` refused some letters, nobody knows what `explain` was
    /// asked about, or `check` found something.
    SomeFailed = 1,
    /// The command line makes no sense: mend it.
    Usage = 64,
    /// A service that is needed is not there: start it, or try again later.
    Unavailable = 69,
    /// A mistake of the program: report it.
    Internal = 70,
    /// The settings cannot be used: mend them, `config check` names what is wrong.
    Config = 78,
    /// The hard limit of the shutdown passed with work still running.
    DrainTimedOut = 80,
    /// Actors failed too often: restart the process, and look why.
    RestartsSpent = 81,
    /// The thread that renews leases is gone: restart the process.
    LeaseKeeperLost = 82,
    /// Assignments wait at the broker and none arrives, also over a new connection: restart the process, and look at
    /// the way between the two.
    ConsumptionStalled = 83,
}

impl Exit {
    /// The number that the process returns.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
