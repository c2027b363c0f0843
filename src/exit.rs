//! stub
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit { Ok = 0, SomeFailed = 1, Usage = 64, Unavailable = 69, Internal = 70, Config = 78, DrainTimedOut = 80, RestartBudgetSpent = 81, LeaseKeeperLost = 82 }
