//! Steps of an assignment that no other event tells: where it came from, when it was let in, what was confirmed.
//!
//! Neighbours: intake, block worker and publisher emit them at level debug; [`crate::journal`] reads them, whatever the
//! level of the log, together with all other events about assignments.

use std::time::Duration;

use caf_protocol::assignment::Identity;

use super::{Event, Level};
use crate::clock::whole_ms;

/// A message with a usable assignment arrived: from which place of which stream, and for which time, where that is known.
pub fn received(identity: &Identity, position: Option<(&str, u64)>, deliveries: Option<u64>) -> Event {
    let event = Event::new(Level::Debug, "Assignment received").of(identity);
    let event = match position {
        Some((stream, sequence)) => event.with("stream", stream).with("stream_sequence", sequence),
        None => event,
    };
    match deliveries {
        Some(count) if count > 0 => event.with("deliveries", count),
        _ => event,
    }
}

/// It has a place in its pool and will run: within this time, with at most so many calls.
pub fn accepted(identity: &Identity, class: &'static str, time_left: Duration, max_attempts: u32) -> Event {
    Event::new(Level::Debug, "Assignment accepted")
        .of(identity)
        .with("resource_class", class)
        .with("time_left_ms", whole_ms(time_left))
        .with("max_attempts", max_attempts)
}

/// A call after a failed one begins; `attempt` counts calls, from 2, and at most `max_attempts` answer to that failure.
pub fn called_again(identity: &Identity, attempt: u32, max_attempts: u32) -> Event {
    Event::new(Level::Debug, "Attempt started")
        .of(identity)
        .with("attempt", attempt)
        .with("max_attempts", max_attempts)
}

/// A part of the answer (`acknowledgement`, `result`, `dead_letter`) is stored for whoever listens; where nothing stores,
/// handed over.
pub fn confirmed(identity: &Identity, part: &'static str) -> Event {
    Event::new(Level::Debug, "Answer confirmed")
        .of(identity)
        .with("part", part)
}

/// Everything is said about an assignment; `told` says whether the broker was told that its delivery is done with.
pub fn concluded(identity: &Identity, told: bool) -> Event {
    Event::new(Level::Debug, "Assignment concluded")
        .of(identity)
        .with("broker_told", told)
}
