//! Log lines of discovery. None of them is about a job.

use super::{Event, Level};

/// The broker does not let the worker listen or answer: said once.
pub fn not_permitted(error: &str) -> Event {
    Event::new(
        Level::Warn,
        "Discovery not permitted, this worker is not found by nats micro",
    )
    .with("error", error)
    .with("setting", "nats.discovery")
}

/// More questions come than are answered.
pub fn flooded(most_per_second: u32) -> Event {
    Event::new(Level::Warn, "Too many discovery requests, some are not answered")
        .with("most_per_second", most_per_second)
}

/// Nobody will be answered any more; the worker works on.
pub fn ended(error: &str) -> Event {
    Event::new(
        Level::Warn,
        "Discovery ended, this worker is not found by nats micro",
    )
    .with("error", error)
}
