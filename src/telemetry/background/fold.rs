//! Warnings and errors that found no room, by message: one line each, once there is room again.
//!
//! Neighbours: [`super::lane`] puts them here and takes the lines out. Bounded: beyond [`MAX_KINDS`] messages, all that
//! follow of a level share one line.

use std::collections::BTreeMap;
use std::time::SystemTime;

use caf_actors::events::Level;
use caf_protocol::timestamp::iso_micros;
use serde_json::{Map, Value, json};

use super::Line;
use crate::telemetry::line;

/// Most messages that are told apart: the worker has fewer; dependencies write numbers and names into theirs.
const MAX_KINDS: usize = 512;
/// Longest message that is told, in bytes.
const MAX_MESSAGE_BYTES: usize = 256;
/// Message of what is beyond [`MAX_KINDS`].
const OTHERS: &str = "Other messages";

/// What found no room.
#[derive(Default)]
pub(super) struct Folds(BTreeMap<(Level, String), Fold>);

struct Fold {
    count: u64,
    first: SystemTime,
    last: SystemTime,
}

impl Folds {
    /// Counts one more.
    pub(super) fn add(&mut self, level: Level, message: &str, now: SystemTime) {
        let cut = message.floor_char_boundary(MAX_MESSAGE_BYTES);
        let mut kind = (level, message[..cut].to_owned());
        if self.0.len() >= MAX_KINDS && !self.0.contains_key(&kind) {
            kind.1 = OTHERS.to_owned();
        }
        let fold = self.0.entry(kind).or_insert(Fold {
            count: 0,
            first: now,
            last: now,
        });
        fold.count += 1;
        fold.last = now;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One line for each message; nothing is left here.
    pub(super) fn take(&mut self, worker_id: &str) -> Vec<Line> {
        let folds = std::mem::take(&mut self.0);
        let lines = folds.into_iter().map(|((level, message), fold)| {
            let name = if level == Level::Error { "ERROR" } else { "WARN" };
            let context = json!({
                "worker_id": worker_id,
                "folded": fold.count,
                "first_at": iso_micros(fold.first),
                "last_at": iso_micros(fold.last),
            });
            own_line(level, name, &message, fold.last, &context)
        });
        lines.collect()
    }
}

/// A line about the log itself.
pub(super) fn own_line(
    level: Level,
    name: &'static str,
    message: &str,
    at: SystemTime,
    context: &Value,
) -> Line {
    // The context names the worker.
    let fields = Map::from_iter([("context".to_owned(), context.clone())]);
    Line {
        level,
        bytes: line::compose(name, message, fields, "", at),
    }
}
