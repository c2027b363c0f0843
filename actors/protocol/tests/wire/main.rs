//! What travels, held to the wire: fixtures of every shape, hostile messages, and the router's own rules.
//!
//! One binary for all of it, because linking is slow. The judge is `caf-testkit`, which shares no code with this crate.

mod contract;
mod hostile;
mod reading;
mod schemas;
mod writing;
