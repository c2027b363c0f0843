//! The worker node: everything between the command line and the pipeline.
//!
//! In the order in which a start meets them: [`cli`] parses the command line, [`settings`] are loaded, [`telemetry`]
//! opens the log, [`exit`] says how it ended. Uses every other crate; nothing uses it but `main` and the tests.

pub mod cli;
pub mod exit;
pub mod settings;
pub mod telemetry;
