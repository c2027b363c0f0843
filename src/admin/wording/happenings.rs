//! Each happening of an assignment in words.
//!
//! Neighbours: [`super::explain`] lists them. A message without words of its own stands as the log has it.

use caf_actors::journal::Note;

use super::{Happening, counted, iso, length};

pub(super) fn happening(note: &Note) -> Happening {
    Happening {
        at: iso(note.at_ms),
        words: words(note),
        note: note.clone(),
    }
}

/// One happening in words.
fn words(note: &Note) -> String {
    let text = |key| note.text(key).unwrap_or("?");
    let number = |key| note.number(key).unwrap_or_default();
    let time = |key| length(number(key));
    match note.event {
        "Assignment received" => match note.text("stream") {
            Some(stream) => {
                let sequence = number("stream_sequence");
                let again = match number("deliveries") {
                    0 | 1 => String::new(),
                    times => format!(", delivery {times}"),
                };
                format!("received: message {sequence} of stream {stream}{again}")
            }
            None => "received".to_owned(),
        },
        "Assignment accepted" => format!(
            "accepted by pool {}; {} left, at most {}",
            text("resource_class"),
            time("time_left_ms"),
            counted(number("max_attempts"), "attempt")
        ),
        "Assignment queued" => format!(
            "pool {} is {} with it, {} wait",
            text("resource_pool"),
            text("overload_status"),
            number("queue_depth")
        ),
        "Step execution started" => format!(
            "got a slot of pool {}, {} after it came",
            text("resource_class"),
            time("queued_ms")
        ),
        "Attempt failed" => format!(
            "attempt failed: {}; waits {}",
            text("error_code"),
            time("backoff_delay_ms")
        ),
        "Attempt started" => format!("attempt {} begins", number("attempt")),
        "Answer not confirmed" => format!("{} not confirmed, sent again", text("part").replace('_', " ")),
        "Assignment concluded" => concluded(note),
        "Assignment deferred" => format!(
            "sent back to the broker for {}: pool {} is loaded",
            time("delay_ms"),
            text("resource_pool")
        ),
        "Assignment rejected" | "Unknown block type" => {
            format!("refused: {}, {}", text("reason"), text("error_code"))
        }
        "Queue full - rejecting request" => format!(
            "refused: pool {} is full ({} of {} wait)",
            text("resource_class"),
            number("queue_depth"),
            number("max_queue_size")
        ),
        "Step execution completed" => format!("ended with success after {}", time("latency_ms")),
        "Step cancellation requested" => {
            let what = match text("requested_for") {
                "run_id" => "its whole run",
                "step_id" => "its step",
                _ => "this assignment",
            };
            format!("cancellation requested {}, for {what}", by_whom(note))
        }
        "Step canceled" if note.text("requested_by").is_some() => {
            format!("cancelled as requested {}", by_whom(note))
        }
        "Step execution failed" | "Step canceled" => {
            format!("ended with {}: {}", text("status"), text("error_code"))
        }
        "Assignment not run" => format!("not run: {}", text("reason")),
        "Queue rejection" => rejection(note),
        "Operation timeout" => limit_ran_out(note),
        "Call refused by circuit breaker" => format!(
            "not called: {} kept failing, its circuit breaker is {}",
            text("endpoint"),
            text("circuit_breaker").replace('_', "-")
        ),
        "Retry withheld" => match note.text("reason") {
            Some("circuit_breaker") => format!(
                "not tried again: the circuit breaker of {} is open",
                text("endpoint")
            ),
            _ => format!(
                "not tried again: too many retries at {} have not helped",
                text("endpoint")
            ),
        },
        "Suspect runs alone" => {
            "it may have ended its worker before: it waits until nothing else runs here".to_owned()
        }
        "Result suppressed" => format!("result not published: {}", text("reason")),
        "Assignment taken over" => format!("taken over from worker {}", text("from_worker")),
        other => match (note.text("reason"), note.text("error_code")) {
            (Some(reason), _) => format!("{}: {reason}", lower(other)),
            (None, Some(code)) => format!("{}: {code}", lower(other)),
            (None, None) => lower(other),
        },
    }
}

/// Who asked to cancel it, and why.
fn by_whom(note: &Note) -> String {
    let place = match note.text("requested_by") {
        Some("admin") => "on the admin port",
        _ => "on the broker",
    };
    match note.text("cancel_reason") {
        Some(reason) => format!("{place} ({reason})"),
        None => place.to_owned(),
    }
}

fn rejection(note: &Note) -> String {
    let pool = note.text("resource_pool").unwrap_or("?");
    match note.text("rejection_reason") {
        Some("overloaded") => {
            format!("dropped from the queue of pool {pool} for a newer job: it waited longest")
        }
        Some("critical") => format!("pool {pool} is loaded, and the broker cannot take it back for a while"),
        _ => format!("pool {pool} is full"),
    }
}

fn limit_ran_out(note: &Note) -> String {
    let time = |key| length(note.number(key).unwrap_or_default());
    let limit = note.text("operation_type").unwrap_or("?").replace('_', " ");
    let passed = format!("limit {limit} of {}", time("timeout_ms"));
    match note.number("next_wait_ms") {
        Some(wait_ms) => format!(
            "{passed} does not hold the next wait of {}; {} have passed",
            length(wait_ms),
            time("elapsed_ms")
        ),
        None => format!("{passed} ran out after {}", time("elapsed_ms")),
    }
}

fn concluded(note: &Note) -> String {
    let parts = [
        ("acknowledgement_at_ms", "acknowledgement confirmed"),
        ("result_at_ms", "result confirmed"),
        ("dead_letter_at_ms", "dead letter confirmed"),
    ];
    let said = parts.iter().filter(|(key, _)| note.number(key).is_some());
    let told = note.is_true("broker_told").then_some("the broker told");
    let said: Vec<_> = said.map(|(_, words)| *words).chain(told).collect();
    format!("all is said: {}", said.join(", "))
}

fn lower(message: &str) -> String {
    let mut characters = message.chars();
    let first = characters.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(characters).collect()
}
