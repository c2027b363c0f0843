//! The outbox on disk: what SQLite is told, and how entries become rows.
//!
//! Neighbours: only the writer uses it, from its one thread. Decides nothing about when.
//!
//! The write-ahead log is emptied only on our order and, unless nothing is ever forced, with everything forced to disk:
//! SQLite's own moments would follow the setting of whichever commit came last.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use caf_protocol::headers::Headers;
use caf_protocol::ids::AssignmentKey;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params,
};

use super::{Entry, EntryId, MAX_MESSAGES, NewEntry, OutboxError};
use crate::settings::OutboxSync;
use crate::sink::Outgoing;

/// Name of the file in the slot's directory.
const FILE: &str = "outbox.sqlite";
/// Version of [`SCHEMA`], kept in the file.
const SCHEMA_VERSION: i64 = 1;
/// Messages stand apart from entries, so that counting those at start reads no payloads. A message's id is the entry's
/// id times 256 plus its place, which needs no second index. `probe` holds what is written to see whether writing works.
const SCHEMA: &str = "
    CREATE TABLE entries (
        id INTEGER PRIMARY KEY,
        assignment_key TEXT NOT NULL,
        owner TEXT NOT NULL,
        stream TEXT,
        sequence INTEGER,
        stored_at_ms INTEGER NOT NULL,
        bytes INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY,
        subject TEXT NOT NULL,
        headers TEXT NOT NULL,
        payload BLOB NOT NULL
    ) STRICT;
    CREATE TABLE probe (id INTEGER PRIMARY KEY, content BLOB NOT NULL) STRICT;
";
/// Pages kept in memory, in KiB: an entry passes once, so little is gained by more.
const CACHE_KIB: i64 = 1_024;
/// The log stays this long when it is emptied, in bytes: room that is ours when the disk is full, so that removals can
/// still be written.
const KEPT_LOG_BYTES: u64 = 1024 * 1024;
/// Free pages above which the file is made smaller: 1 MiB. Some are used again soon.
const MANY_FREE_PAGES: i64 = 256;
/// Pages given back at once, so that nobody waits long for it: 4 MiB.
const FREED_AT_ONCE: i64 = 1_024;
/// Most bytes of entries read at once.
const MAX_READ_BYTES: u64 = 8 * 1024 * 1024;

/// The file of a slot.
pub(super) fn file_in(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// Whether a file that nobody has open holds entries.
pub(super) fn holds_entries(file: &Path) -> rusqlite::Result<bool> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    pragma(&connection, "locking_mode = EXCLUSIVE")?;
    connection.query_row("SELECT EXISTS (SELECT 1 FROM entries)", [], |row| row.get(0))
}

/// The open database.
pub(super) struct Database {
    connection: Connection,
    file: PathBuf,
    /// What `PRAGMA synchronous` is set to: FULL or OFF.
    is_forcing: bool,
    ever_forces: bool,
}

/// What is in it at start.
pub(super) struct Tally {
    pub(super) entries: u64,
    pub(super) bytes: u64,
    /// When each was stored.
    pub(super) stored_at_ms: BTreeMap<EntryId, u64>,
    /// The first number that is not in use.
    pub(super) next: EntryId,
}

/// What a commit removed.
#[derive(Default)]
pub(super) struct Removed {
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

/// Why a write failed, as far as the writer acts on it.
pub(super) struct WriteError {
    pub(super) reason: String,
    /// Whether a smaller write may work: room or memory is short, nothing is broken.
    pub(super) is_shortage: bool,
    /// Whether it was SQLite's memory that was short, which jobs on SQLite use too.
    pub(super) is_out_of_memory: bool,
}

impl Database {
    /// Opens or makes the file, and looks through all of it.
    pub(super) fn open(file: &Path, sync: OutboxSync) -> Result<Self, OutboxError> {
        let failed = |error| open_error(file, &error);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(file, flags).map_err(failed)?;
        configure(&connection).map_err(failed)?;
        let mut database = Self {
            connection,
            file: file.to_owned(),
            is_forcing: true,
            ever_forces: sync != OutboxSync::None,
        };
        database.check_or_create()?;
        Ok(database)
    }

    fn check_or_create(&mut self) -> Result<(), OutboxError> {
        let failed = |error| open_error(&self.file, &error);
        let number = |sql| self.connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        let found = number("PRAGMA user_version").map_err(failed)?;
        let is_empty = number("SELECT count(*) FROM sqlite_schema").map_err(failed)? == 0;
        if found == 0 && is_empty {
            return self.create();
        }
        if found != SCHEMA_VERSION {
            return Err(OutboxError::OtherVersion {
                file: self.file.clone(),
                found,
                known: SCHEMA_VERSION,
            });
        }
        let verdict: String = self
            .connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(failed)?;
        if verdict == "ok" {
            return Ok(());
        }
        Err(OutboxError::Damaged {
            file: self.file.clone(),
            reason: verdict,
        })
    }

    fn create(&mut self) -> Result<(), OutboxError> {
        let file = self.file.clone();
        let made = (|| {
            let transaction = self.connection.transaction()?;
            transaction.execute_batch(SCHEMA)?;
            pragma(&transaction, &format!("user_version = {SCHEMA_VERSION}"))?;
            transaction.commit()
        })();
        made.map_err(|error| open_error(&file, &error))?;
        // SQLite forces the file to disk, not that it is there.
        let dir = file.parent().unwrap_or(Path::new("."));
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|error| OutboxError::CannotOpen {
                file: file.clone(),
                reason: error.to_string(),
            })
    }

    /// Counts what is in it.
    pub(super) fn tally(&self) -> Result<Tally, OutboxError> {
        let sql = "SELECT count(*), coalesce(sum(bytes), 0), coalesce(max(id), 0) + 1 FROM entries";
        self.connection
            .query_row(sql, [], |row| {
                Ok(Tally {
                    entries: row.get::<_, i64>(0)?.unsigned_abs(),
                    bytes: row.get::<_, i64>(1)?.unsigned_abs(),
                    stored_at_ms: self.stored_at_ms()?,
                    next: EntryId(row.get(2)?),
                })
            })
            .map_err(|error| open_error(&self.file, &error))
    }

    fn stored_at_ms(&self) -> rusqlite::Result<BTreeMap<EntryId, u64>> {
        let mut rows = self.connection.prepare("SELECT id, stored_at_ms FROM entries")?;
        let entries = rows.query_map([], |row| {
            Ok((EntryId(row.get(0)?), row.get::<_, i64>(1)?.unsigned_abs()))
        })?;
        entries.collect()
    }

    /// Makes one change: all of it, or nothing when it fails.
    pub(super) fn commit<T>(
        &mut self,
        force: bool,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, WriteError> {
        self.try_commit(force, change)
            .map_err(|error| WriteError::from(&error))
    }

    fn try_commit<T>(
        &mut self,
        force: bool,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.force_from_now(force)?;
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let made = change(&transaction)?;
        transaction.commit()?;
        Ok(made)
    }

    /// Empties the log into the database.
    pub(super) fn checkpoint(&mut self) -> Result<(), WriteError> {
        let is_busy = self
            .force_from_now(self.ever_forces)
            .and_then(|()| {
                self.connection
                    .query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get::<_, bool>(0))
            })
            .map_err(|error| WriteError::from(&error))?;
        if is_busy {
            return Err(WriteError {
                reason: "the log is in use".to_owned(),
                is_shortage: false,
                is_out_of_memory: false,
            });
        }
        Ok(())
    }

    /// Pages that could be given back; few of them are kept for what comes.
    pub(super) fn spare_pages(&self) -> i64 {
        let count = self
            .connection
            .query_row("PRAGMA freelist_count", [], |row| row.get::<_, i64>(0));
        count.unwrap_or(0).saturating_sub(MANY_FREE_PAGES).max(0)
    }

    /// Whether the log is longer than what it is kept at: the commit after a checkpoint cuts it.
    pub(super) fn has_long_log(&self) -> bool {
        let mut log = self.file.clone().into_os_string();
        log.push("-wal");
        std::fs::metadata(log).is_ok_and(|log| log.len() > KEPT_LOG_BYTES)
    }

    /// What was left by earlier processes, between two numbers.
    pub(super) fn entries(
        &self,
        after: Option<EntryId>,
        below: EntryId,
        limit: usize,
    ) -> Result<Vec<Entry>, OutboxError> {
        let not_read = |error: rusqlite::Error| OutboxError::NotRead {
            file: self.file.clone(),
            reason: reason(&error),
        };
        let mut statement = self
            .connection
            .prepare(
                "SELECT id, assignment_key, owner, stream, sequence, stored_at_ms, bytes FROM entries
                 WHERE id > ?1 AND id < ?2 ORDER BY id LIMIT ?3",
            )
            .map_err(not_read)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let after = after.map_or(0, |id| id.0);
        let mut rows = statement
            .query(params![after, below.0, limit])
            .map_err(not_read)?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while bytes < MAX_READ_BYTES
            && let Some(row) = rows.next().map_err(not_read)?
        {
            bytes += row.get::<_, i64>(6).map_err(not_read)?.unsigned_abs();
            entries.push(self.entry(row).map_err(not_read)?);
        }
        Ok(entries)
    }

    fn entry(&self, row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
        let id: i64 = row.get(0)?;
        let stream: Option<String> = row.get(3)?;
        let sequence: Option<i64> = row.get(4)?;
        let content = NewEntry {
            key: AssignmentKey::from_hex(&row.get::<_, String>(1)?)
                .ok_or_else(|| unreadable(1, "not an assignment key"))?,
            owner: row.get(2)?,
            position: stream
                .zip(sequence)
                .map(|(stream, sequence)| (stream.into(), sequence.cast_unsigned())),
            messages: self.messages(id)?,
            stored_at_ms: row.get::<_, i64>(5)?.cast_unsigned(),
        };
        Ok(Entry {
            id: EntryId(id),
            content,
        })
    }

    fn messages(&self, entry: i64) -> rusqlite::Result<Vec<Arc<Outgoing>>> {
        let mut statement = self.connection.prepare(
            "SELECT subject, headers, payload FROM messages WHERE id >= ?1 AND id < ?2 ORDER BY id",
        )?;
        let found = statement.query_map([message_id(entry, 0), message_id(entry + 1, 0)], |row| {
            Ok(Arc::new(Outgoing {
                subject: row.get(0)?,
                headers: headers_from(&row.get::<_, String>(1)?)?,
                payload: Bytes::from(row.get::<_, Vec<u8>>(2)?),
            }))
        })?;
        found.collect()
    }

    fn force_from_now(&mut self, force: bool) -> rusqlite::Result<()> {
        if self.is_forcing != force {
            pragma(
                &self.connection,
                if force {
                    "synchronous = FULL"
                } else {
                    "synchronous = OFF"
                },
            )?;
            self.is_forcing = force;
        }
        Ok(())
    }

    /// For tests: the connection itself.
    #[cfg(test)]
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    pragma(connection, "locking_mode = EXCLUSIVE")?;
    if connection.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0))? == 0 {
        // Has an effect before the first table only. Later it would only be a write, which a full disk refuses.
        pragma(connection, "auto_vacuum = INCREMENTAL")?;
    }
    for text in [
        "journal_mode = WAL".to_owned(),
        "synchronous = FULL".to_owned(),
        "wal_autocheckpoint = 0".to_owned(),
        format!("journal_size_limit = {KEPT_LOG_BYTES}"),
        format!("cache_size = -{CACHE_KIB}"),
        "temp_store = MEMORY".to_owned(),
    ] {
        pragma(connection, &text)?;
    }
    Ok(())
}

/// Runs a pragma to its end; some work row by row.
fn pragma(connection: &Connection, text: &str) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(&format!("PRAGMA {text}"))?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}

// ---- Changes, to be made inside of a commit ----

/// Bytes that an entry counts as.
pub(super) fn size_of(entry: &NewEntry) -> u64 {
    let headers = |message: &Outgoing| -> usize {
        message
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum()
    };
    entry
        .messages
        .iter()
        .map(|message| (message.subject.len() + headers(message) + message.payload.len()) as u64)
        .sum()
}

/// Adds entries, numbered from `first` on.
pub(super) fn insert(connection: &Connection, first: EntryId, entries: &[&NewEntry]) -> rusqlite::Result<()> {
    let mut entry_row = connection.prepare("INSERT INTO entries VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
    let mut message_row = connection.prepare("INSERT INTO messages VALUES (?1, ?2, ?3, ?4)")?;
    for (id, entry) in (first.0..).zip(entries) {
        let (stream, sequence) = entry
            .position
            .as_ref()
            .map(|(stream, sequence)| (stream.as_ref(), sequence.cast_signed()))
            .unzip();
        entry_row.execute(params![
            id,
            entry.key.as_str(),
            entry.owner,
            stream,
            sequence,
            entry.stored_at_ms.cast_signed(),
            size_of(entry).cast_signed(),
        ])?;
        for (place, message) in (0..).zip(&entry.messages) {
            message_row.execute(params![
                message_id(id, place),
                message.subject,
                headers_to(&message.headers),
                &message.payload[..],
            ])?;
        }
    }
    Ok(())
}

/// Removes entries. Those that are not there change nothing.
pub(super) fn delete(connection: &Connection, ids: &[EntryId]) -> rusqlite::Result<Removed> {
    let mut entry_row = connection.prepare("DELETE FROM entries WHERE id = ?1 RETURNING bytes")?;
    let mut message_rows = connection.prepare("DELETE FROM messages WHERE id >= ?1 AND id < ?2")?;
    let mut removed = Removed::default();
    for EntryId(id) in ids {
        let bytes: Option<i64> = entry_row.query_row([id], |row| row.get(0)).optional()?;
        message_rows.execute([message_id(*id, 0), message_id(id + 1, 0)])?;
        removed.entries += u64::from(bytes.is_some());
        removed.bytes += bytes.map_or(0, i64::unsigned_abs);
    }
    Ok(removed)
}

/// Writes so many bytes of nothing, in place of the ones before; 0 takes them away.
pub(super) fn probe(connection: &Connection, bytes: u64) -> rusqlite::Result<()> {
    connection.execute(
        "REPLACE INTO probe VALUES (1, zeroblob(?1))",
        [bytes.cast_signed()],
    )?;
    Ok(())
}

/// Gives some free pages back to the system; the file is cut at the next checkpoint.
pub(super) fn free_pages(connection: &Connection) -> rusqlite::Result<()> {
    pragma(connection, &format!("incremental_vacuum({FREED_AT_ONCE})"))
}

fn message_id(entry: i64, place: i64) -> i64 {
    entry * MAX_MESSAGES as i64 + place
}

fn headers_to(headers: &Headers) -> String {
    let pairs: Vec<(&str, &str)> = headers.iter().collect();
    serde_json::json!(pairs).to_string()
}

fn headers_from(text: &str) -> rusqlite::Result<Headers> {
    let pairs: Vec<(String, String)> =
        serde_json::from_str(text).map_err(|error| unreadable(1, &error.to_string()))?;
    let mut headers = Headers::default();
    for (name, value) in pairs {
        headers.push(name, value);
    }
    Ok(headers)
}

// ---- What went wrong ----

fn unreadable(column: usize, reason: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, reason.into())
}

fn open_error(file: &Path, error: &rusqlite::Error) -> OutboxError {
    let (file, reason) = (file.to_owned(), reason(error));
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => OutboxError::Damaged { file, reason },
        _ => OutboxError::CannotOpen { file, reason },
    }
}

impl From<&std::io::Error> for WriteError {
    fn from(error: &std::io::Error) -> Self {
        let is_shortage = error.kind() == std::io::ErrorKind::StorageFull;
        Self {
            reason: if is_shortage {
                NO_SPACE.to_owned()
            } else {
                error.to_string()
            },
            is_shortage,
            is_out_of_memory: false,
        }
    }
}

impl From<&rusqlite::Error> for WriteError {
    fn from(error: &rusqlite::Error) -> Self {
        let code = error.sqlite_error_code();
        Self {
            reason: reason(error),
            is_shortage: matches!(
                code,
                Some(ErrorCode::DiskFull | ErrorCode::OutOfMemory | ErrorCode::TooBig)
            ),
            is_out_of_memory: code == Some(ErrorCode::OutOfMemory),
        }
    }
}

/// What is said of a full disk.
pub(super) const NO_SPACE: &str = "no space left on the disk";

/// What to tell people: SQLite's words, made clearer where they are not.
fn reason(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => NO_SPACE.to_owned(),
        Some(ErrorCode::OutOfMemory) => {
            "out of memory: it shares one limit with the SQL jobs of this process".to_owned()
        }
        Some(ErrorCode::ReadOnly) => "the file, its directory or its file system is read-only".to_owned(),
        Some(ErrorCode::DatabaseBusy) => "another process has it open".to_owned(),
        Some(ErrorCode::SystemIoFailure) => match error.sqlite_error() {
            Some(error) => format!("disk I/O error (SQLite code {})", error.extended_code),
            None => error.to_string(),
        },
        _ => error.to_string(),
    }
}
