//! Lines of dependencies, in the form of ours: what they say through `tracing` or `log` gets its target and fields in
//! `context`, is masked and bounded, and goes the same way.
//!
//! Neighbours: [`super::open`] installs this once per process; [`Levels`] says what is taken. Spans are not kept. Never
//! blocks, and never takes a line that arises while one is written.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::SystemTime;

use caf_actors::events::Level;
use caf_actors::levels::Levels;
use serde_json::{Map, Value};
use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Id, Record};
use tracing_core::{Event, Interest, LevelFilter, Metadata, Subscriber};

use super::background::{Background, Line};
use super::line;
use super::secrets::Secrets;

/// Longest text of one field, in bytes; the line cuts it further.
const MAX_FIELD_BYTES: usize = 16 * 1024;
/// Most fields of one line.
const MAX_FIELDS: usize = 64;

thread_local! {
    /// A line is being made on this thread.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// Takes lines in from both interfaces.
#[derive(Clone)]
pub(super) struct Bridge(Arc<Inner>);

struct Inner {
    background: Background,
    levels: Levels,
    worker_id: String,
    secrets: Secrets,
}

impl Bridge {
    pub(super) fn new(background: Background, levels: Levels, worker_id: &str, secrets: Secrets) -> Self {
        Self(Arc::new(Inner {
            background,
            levels,
            worker_id: worker_id.to_owned(),
            secrets,
        }))
    }

    /// From here on, this process's dependencies speak through it. Whoever was there first stays.
    pub(super) fn install(self) {
        let rules = self.0.levels.rules();
        let for_log = Box::new(self.clone());
        if log::set_boxed_logger(for_log).is_ok() {
            log::set_max_level(log_filter(rules.loudest_dependency()));
        }
        let _ = tracing_core::dispatcher::set_global_default(tracing_core::Dispatch::new(self));
    }

    /// Writes one line, made by `fill`.
    fn take(&self, level: Level, target: &str, fill: impl FnOnce(&mut Collected)) {
        if BUSY.replace(true) {
            return;
        }
        let mut collected = Collected::default();
        fill(&mut collected);
        let Collected {
            mut message,
            mut fields,
        } = collected;
        self.0.secrets.hide(&mut message);
        fields
            .values_mut()
            .for_each(|value| self.0.secrets.hide_in(value));
        fields.insert("target".to_owned(), Value::from(target));
        // In `context`, whatever they call themselves: the ids at the top are those of jobs.
        let fields = Map::from_iter([("context".to_owned(), Value::Object(fields))]);
        let name = match level {
            Level::Error => "ERROR",
            Level::Warn => "WARN",
            Level::Info => "INFO",
            Level::Debug | Level::Silent => "DEBUG",
        };
        let bytes = line::compose(name, &message, fields, &self.0.worker_id, SystemTime::now());
        self.0.background.write(Line { level, bytes }, &message);
        BUSY.set(false);
    }

    fn takes(&self, level: Option<Level>, target: &str) -> Option<Level> {
        level
            .map(|level| ours(level, target))
            .filter(|level| !BUSY.get() && self.0.levels.let_target_through(*level, target))
    }
}

/// Tells both interfaces that other levels hold.
pub(super) fn levels_changed(levels: &Levels) {
    log::set_max_level(log_filter(levels.rules().loudest_dependency()));
    tracing_core::callsite::rebuild_interest_cache();
}

/// What a line says.
/// How bad it is for the worker: what strangers send to its ports is no fault of it, and must not fill the log.
fn ours(level: Level, target: &str) -> Level {
    if target.starts_with("actix_http") {
        level.max(Level::Debug)
    } else {
        level
    }
}

#[derive(Default)]
struct Collected {
    message: String,
    fields: Map<String, Value>,
}

impl Collected {
    fn put(&mut self, field: &Field, value: Value) {
        if self.fields.len() < MAX_FIELDS {
            self.fields.insert(field.name().to_owned(), value);
        }
    }
}

impl Visit for Collected {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = bounded(format_args!("{value:?}"));
        match field.name() {
            "message" => self.message = text,
            _ => self.put(field, Value::from(text)),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::from(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::from(value));
    }
}

/// Text that stops growing: what is formatted may be of any size.
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_FIELD_BYTES.saturating_sub(self.0.len());
        self.0.push_str(&text[..text.floor_char_boundary(room)]);
        if text.len() > room {
            Err(fmt::Error)
        } else {
            Ok(())
        }
    }
}

fn bounded(text: fmt::Arguments<'_>) -> String {
    let mut bounded = Bounded(String::new());
    // It is an error when the text is full; what fits is there.
    let _ = bounded.write_fmt(text);
    bounded.0
}

impl Subscriber for Bridge {
    /// Levels may change: each line asks.
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match metadata.is_event() && level_of_tracing(metadata).is_some() {
            true => Interest::sometimes(),
            false => Interest::never(),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.takes(level_of_tracing(metadata), metadata.target())
            .is_some()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match self.0.levels.rules().loudest_dependency() {
            Level::Error => LevelFilter::ERROR,
            Level::Warn => LevelFilter::WARN,
            Level::Info => LevelFilter::INFO,
            Level::Debug | Level::Silent => LevelFilter::DEBUG,
        })
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        if let Some(level) = self.takes(level_of_tracing(metadata), metadata.target()) {
            self.take(level, metadata.target(), |collected| event.record(collected));
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl log::Log for Bridge {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        self.takes(level_of_log(metadata.level()), metadata.target())
            .is_some()
    }

    fn log(&self, record: &log::Record<'_>) {
        if let Some(level) = self.takes(level_of_log(record.level()), record.target()) {
            self.take(level, record.target(), |collected| {
                collected.message = bounded(*record.args());
            });
        }
    }

    fn flush(&self) {}
}

/// Nothing for what is below debug.
fn level_of_tracing(metadata: &Metadata<'_>) -> Option<Level> {
    match *metadata.level() {
        tracing_core::Level::ERROR => Some(Level::Error),
        tracing_core::Level::WARN => Some(Level::Warn),
        tracing_core::Level::INFO => Some(Level::Info),
        tracing_core::Level::DEBUG => Some(Level::Debug),
        tracing_core::Level::TRACE => None,
    }
}

fn level_of_log(level: log::Level) -> Option<Level> {
    match level {
        log::Level::Error => Some(Level::Error),
        log::Level::Warn => Some(Level::Warn),
        log::Level::Info => Some(Level::Info),
        log::Level::Debug => Some(Level::Debug),
        log::Level::Trace => None,
    }
}

fn log_filter(level: Level) -> log::LevelFilter {
    match level {
        Level::Error => log::LevelFilter::Error,
        Level::Warn => log::LevelFilter::Warn,
        Level::Info => log::LevelFilter::Info,
        Level::Debug | Level::Silent => log::LevelFilter::Debug,
    }
}

#[cfg(test)]
mod tests;
