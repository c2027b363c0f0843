//! Placeholder.
#![allow(missing_docs)]
pub mod mask;
pub mod settings;
