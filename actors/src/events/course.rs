//! Steps of an assignment that no other event tells: where it came from, when it was let in, what was confirmed.
//!
//! Neighbours: intake, block worker and publisher emit them at level debug; [`crate::journal`] reads them, whatever the
//! level of the log, together with all other events about assignments.

use std::sync::Arc;
use std::time::Duration;

use caf_protocol::assignment::Identity;
use caf_protocol::outcome::Failure;

use super::{Event, Level};
use crate::clock::whole_ms;

/// A message with a usable assignment arrived: from which place of which stream, and for which time, where that is known.
pub fn received(identity: &Arc<Identity>, position: Option<(&str, u64)>, deliveries: Option<u64>) -> Event {
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
pub fn accepted(
    identity: &Arc<Identity>,
    class: &'static str,
    time_left: Duration,
    max_attempts: u32,
) -> Event {
    Event::new(Level::Debug, "Assignment accepted")
        .of(identity)
        .with("resource_class", class)
        .with("time_left_ms", whole_ms(time_left))
        .with("max_attempts", max_attempts)
}

/// A call after a failed one begins; `attempt` counts calls, from 2, and at most `max_attempts` answer to that failure.
pub fn called_again(identity: &Arc<Identity>, attempt: u32, max_attempts: u32) -> Event {
    Event::new(Level::Debug, "Attempt started")
        .of(identity)
        .with("attempt", attempt)
        .with("max_attempts", max_attempts)
}

/// A job that sends HTTP requests to `url`, of which there is no more than scheme, host and port, failed after it was called
/// (contract 8.2). Once per job, beside [`super::step_ended`], which says why.
pub fn http_request_failed(
    identity: &Arc<Identity>,
    url: &str,
    failure: &Failure,
    retryable: bool,
    retries: u32,
) -> Event {
    Event::new(Level::Error, "HTTP request failed")
        .of(identity)
        .with("url", url)
        .with("error_code", failure.code.as_str())
        .with("retryable", retryable)
        .with("retry_count", retries)
}

/// A part of an answer is not confirmed yet, and is sent again.
pub fn unconfirmed(identity: &Arc<Identity>, part: Part) -> Event {
    Event::new(Level::Debug, "Answer not confirmed")
        .of(identity)
        .with("part", part.as_str())
}

/// Everything is said about an assignment: when each part of its answer was found to be stored for whoever listens (where
/// nothing stores, handed over), and whether the broker was told that the delivery is done with.
pub fn concluded(identity: &Arc<Identity>, confirmed: &Confirmed, broker_told: bool) -> Event {
    let event = Event::new(Level::Debug, "Assignment concluded")
        .of(identity)
        .with("broker_told", broker_told);
    let parts = [Part::Acknowledgement, Part::Result, Part::DeadLetter];
    parts
        .into_iter()
        .fold(event, |event, part| match confirmed.0[part as usize] {
            Some(at_ms) => event.with(part.confirmed_key(), at_ms),
            None => event,
        })
}

/// A part of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The acknowledgement.
    Acknowledgement,
    /// The result.
    Result,
    /// The dead letter, where there is one.
    DeadLetter,
}

impl Part {
    /// As events name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Acknowledgement => "acknowledgement",
            Self::Result => "result",
            Self::DeadLetter => "dead_letter",
        }
    }

    const fn confirmed_key(self) -> &'static str {
        match self {
            Self::Acknowledgement => "acknowledgement_at_ms",
            Self::Result => "result_at_ms",
            Self::DeadLetter => "dead_letter_at_ms",
        }
    }
}

/// When parts of an answer were found to be confirmed, in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Confirmed([Option<u64>; 3]);

impl Confirmed {
    /// This part is confirmed, at this time.
    pub fn note(&mut self, part: Part, at_ms: u64) {
        self.0[part as usize] = Some(at_ms);
    }
}
