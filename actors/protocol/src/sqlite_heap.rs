//! Word that SQLite has no memory left for what must be stored. The limit on its memory is one for the whole process, and jobs
//! may come near it without reaching it themselves.
//!
//! Neighbours: the outbox tells; jobs on SQLite look between two steps and make room by ending. Counts, and does nothing
//! else. Of the process, not of a node in it, because the limit is.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static SHORTAGES: AtomicU64 = AtomicU64::new(0);

/// From whoever could not store something: all jobs that run now are to end.
pub fn tell_shortage() {
    SHORTAGES.fetch_add(1, Relaxed);
}

/// Grows with each shortage. A job that sees it grow has to end.
pub fn shortages() -> u64 {
    SHORTAGES.load(Relaxed)
}
