//! The worker node: everything between the command line and the pipeline.
//!
//! In the order in which a start meets them: [`cli`] parses the command line, [`settings`] are loaded, [`telemetry`]
//! opens the log, [`reload`] changes both at run time, [`serve`] or [`exec`] open their ports ([`ports`], [`http`]), build the tree ([`wiring`]), feed it, and drain
//! it ([`shutdown`]); [`exit`] says how it ended. Uses every other crate; nothing uses it but `main` and the tests.

pub mod admin;
pub mod approvals;
pub mod ask;
pub mod assignments;
pub mod asyncapi;
pub mod check;
pub mod cli;
pub mod dlq;
pub mod exec;
pub mod exit;
pub mod http;
pub mod policy_store;
pub mod ports;
pub mod reload;
pub mod serve;
pub mod settings;
pub mod shutdown;
pub mod signals;
pub mod state;
pub mod submit;
pub mod telemetry;
pub mod trust;
pub mod wiring;
