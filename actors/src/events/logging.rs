//! Lines about the log itself, and about settings that were read again.

use serde_json::{Value, json};

use super::{Event, Level};
use crate::metrics::{Metric, MetricKind};

/// Lines that were written nowhere.
pub static LINES_DROPPED: Metric = Metric {
    name: "worker_log_lines_dropped_total",
    help: "Log lines that were not written, because nobody took them or they could not be written",
    labels: &["level"],
    kind: MetricKind::Counter,
};

/// Values of its label.
pub const LEVELS: &[&str] = &["error", "warn", "info", "debug"];

/// An earlier process left with lines that nobody had taken.
pub fn unwritten_lines_found(path: &str, bytes: u64) -> Event {
    Event::new(Level::Warn, "An earlier process left log lines that nobody took")
        .with("path", path)
        .with("bytes", bytes)
}

/// The settings were read again, and this is in force now: keys with their values, secrets masked.
pub fn settings_reloaded(applied: &[(String, Value)], need_restart: usize) -> Event {
    let applied: Vec<_> = applied
        .iter()
        .map(|(key, value)| json!({"key": key, "value": value}))
        .collect();
    Event::new(Level::Info, "Settings reloaded")
        .with("applied", applied)
        .with("need_restart", need_restart)
}

/// A key was changed that is only read at the start; the node goes on with what it had.
pub fn setting_needs_restart(key: &str, origin: &str) -> Event {
    Event::new(Level::Warn, "Changed setting needs a restart")
        .with("key", key)
        .with("source", origin)
}

/// The settings cannot be used; all stays as it was. The first problem stands out, the others follow.
pub fn settings_refused(source: &str, key: &str, rule: &str, others: Vec<String>) -> Event {
    Event::new(Level::Error, "Settings not reloaded")
        .with("source", source)
        .with("key", key)
        .with("rule", rule)
        .with("further_problems", others)
}
