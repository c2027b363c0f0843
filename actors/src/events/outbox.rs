//! Lines about what the outbox finds on disk.
//!
//! Neighbours: [`crate::outbox`] emits them. Never says what an entry holds.

use std::path::Path;

use super::{Event, Level};

/// The end of the log was never finished, as after a kill in the middle of a write: nobody was told that it is stored.
pub fn end_cut(file: &Path, bytes: u64) -> Event {
    Event::new(Level::Warn, "Unfinished end of the outbox cut off")
        .with("file", file.display().to_string())
        .with("bytes", bytes)
}
