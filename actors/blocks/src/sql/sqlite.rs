//! Runs a query on SQLite: a file, or a database in memory that lives as long as the job.
//!
//! Neighbours: [`super`] calls [`run`] on a thread of its own; `rows` collects. Each job has a connection of its own, so
//! nothing that a job sets reaches another one. A job cannot reach other files: attaching, extensions and all pragmas but
//! harmless ones are refused.

mod functions;

use std::time::Duration;

use caf_protocol::block::Outputs;
use caf_protocol::endpoint::Sign;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use rusqlite::config::DbConfig;
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::ffi::SQLITE_CONSTRAINT_TRIGGER;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::types::{Value as SqlValue, ValueRef};
use rusqlite::{Batch, Connection, Error, OpenFlags, Statement};
use serde_json::{Value, json};

use super::postgres::is_copy;
use super::rows::{RowSet, float};
use super::source::{Kind, Limits, Source};
use super::{Query, param_count_failure, param_failure, words};
use crate::inputs::{invalid_input, to_base64};
use crate::watch::Watch;

/// How many steps of SQLite's machine lie between two looks at the watch: well below a millisecond.
const STEPS_PER_LOOK: i32 = 1_000;
/// Longest wait for another process that has the file locked.
const MAX_BUSY_WAIT: Duration = Duration::from_secs(5);
/// Size of a page of an in-memory database in bytes.
const PAGE_BYTES: u64 = 4_096;
/// Largest single value in bytes, unless the answer may be larger: bounds what one expression can allocate.
const MIN_VALUE_LIMIT_BYTES: u64 = 16 << 20;
/// Further limits of one statement. Work within one step of the machine is not interrupted, so that none may be long.
const LIMITS: [(Limit, i32); 5] = [
    (Limit::SQLITE_LIMIT_ATTACHED, 0),
    // A pattern is compared at every place of a text, within one step.
    (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 200),
    // Triggers that fire themselves.
    (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 100),
    (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    // The compiler calls itself for each level.
    (Limit::SQLITE_LIMIT_EXPR_DEPTH, 500),
];
/// Pragmas that tell about the database or change only this connection, and neither lift a limit nor show a path.
const PRAGMAS: [&str; 20] = [
    "case_sensitive_like",
    "collation_list",
    "compile_options",
    "data_version",
    "defer_foreign_keys",
    "encoding",
    "foreign_key_check",
    "foreign_key_list",
    "foreign_keys",
    "function_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "quick_check",
    "recursive_triggers",
    "table_info",
    "table_list",
    "table_xinfo",
    "user_version",
];

/// Runs the query and collects its answer.
pub(super) fn run(source: &Source, query: &Query, watch: &Watch) -> Result<Outputs, Failure> {
    watch.check()?;
    let connection = open(source, watch)?;
    let ended = match source.kind {
        Kind::Memory { .. } => run_batch(&connection, query, &source.limits),
        _ => run_one(&connection, query, &source.limits),
    };
    ended.map_err(|stop| stop.into_failure(query, watch))
}

fn locked() -> Failure {
    Failure::new(
        ErrorCode::ResourceUnavailable,
        "the database is locked by somebody else",
    )
}

/// The memory that all jobs share is used up, whoever has taken it.
fn crowded_out() -> Failure {
    Failure::new(
        ErrorCode::ResourceUnavailable,
        "the databases of all jobs together use more memory than there is for them",
    )
}

/// Why a query stopped.
enum Stop {
    Sqlite(Error),
    Failure(Failure),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

fn open(source: &Source, watch: &Watch) -> Result<Connection, Failure> {
    let cannot_open = |error: Error| {
        use rusqlite::ErrorCode as Sqlite;
        match error.sqlite_error_code() {
            Some(Sqlite::OutOfMemory) => return crowded_out().internally(result_code(&error)),
            Some(Sqlite::DatabaseBusy | Sqlite::DatabaseLocked) => return locked(),
            _ => {}
        }
        Failure::new(ErrorCode::ExecutionFailed, "the database cannot be opened")
            .saying(Sign::Down)
            .internally(result_code(&error))
    };
    // Without SQLITE_OPEN_URI, so that a file name is a file name.
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX
        | if source.read_only {
            OpenFlags::SQLITE_OPEN_READ_ONLY
        } else {
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE
        };
    let opened = match &source.kind {
        Kind::Sqlite(path) => Connection::open_with_flags(path, flags),
        _ => Connection::open_in_memory_with_flags(flags),
    };
    let mut connection = opened.map_err(cannot_open)?;
    harden(&mut connection, source, watch).map_err(cannot_open)?;
    Ok(connection)
}

/// Most pages of a job's temporary tables: 16 MiB.
const MAX_TEMPORARY_PAGES: u64 = 4_096;
/// Memory that all SQLite jobs of the process may use together, in bytes: four in-memory databases of the default size.
const MAX_HEAP_BYTES: u64 = 256 * 1024 * 1024;

/// Sets every limit and ban. The authorizer comes last: it would refuse our own pragmas.
fn harden(connection: &mut Connection, source: &Source, watch: &Watch) -> Result<(), Error> {
    connection.busy_timeout(watch.left().min(MAX_BUSY_WAIT))?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    let value_bytes = source.limits.max_bytes.max(MIN_VALUE_LIMIT_BYTES);
    connection.set_limit(
        Limit::SQLITE_LIMIT_LENGTH,
        i32::try_from(value_bytes).unwrap_or(i32::MAX),
    )?;
    functions::replace_slow_ones(connection, value_bytes)?;
    for (limit, most) in LIMITS {
        connection.set_limit(limit, most)?;
    }
    // Temporary tables, sorters and queues of recursive queries would fill the disk; in memory the heap limit, which
    // all SQLite jobs of the process share, ends the job that grows.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.query_row(&format!("PRAGMA hard_heap_limit = {MAX_HEAP_BYTES}"), [], |_| {
        Ok(())
    })?;
    if let Kind::Memory { max_database_bytes } = source.kind {
        let pages = (max_database_bytes / PAGE_BYTES).max(1);
        connection.pragma_update(None, "page_size", PAGE_BYTES.cast_signed())?;
        connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
    }
    connection.query_row(
        &format!("PRAGMA temp.max_page_count = {MAX_TEMPORARY_PAGES}"),
        [],
        |_| Ok(()),
    )?;
    if source.read_only {
        connection.pragma_update(None, "query_only", true)?;
    }
    let looking = watch.clone();
    connection.progress_handler(STEPS_PER_LOOK, Some(move || looking.check().is_err()))?;
    let read_only = source.read_only;
    connection.authorizer(Some(move |context: AuthContext<'_>| {
        authorize(read_only, &context)
    }))
}

fn authorize(read_only: bool, context: &AuthContext<'_>) -> Authorization {
    if read_only && !reads(&context.action) {
        return Authorization::Deny;
    }
    match context.action {
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => Authorization::Deny,
        AuthAction::Pragma { pragma_name, .. } => {
            let name = pragma_name.to_ascii_lowercase();
            if PRAGMAS.contains(&name.as_str()) {
                Authorization::Allow
            } else {
                Authorization::Deny
            }
        }
        AuthAction::Function {
            // The last two compare every key of one object with every key of the other, within one step.
            function_name: "load_extension" | "fts3_tokenizer" | "json_patch" | "jsonb_patch",
        } => Authorization::Deny,
        _ => Authorization::Allow,
    }
}

/// Whether an action belongs to a statement that reads. Others are refused by the mode of the connection too.
fn reads(action: &AuthAction<'_>) -> bool {
    matches!(
        action,
        AuthAction::Select
            | AuthAction::Read { .. }
            | AuthAction::Function { .. }
            | AuthAction::Recursive
            | AuthAction::Pragma { .. }
    )
}

/// Several statements; parameters belong to the last, and so does the answer. Each is prepared after the one before has
/// run, because it may need what that one made; so it shows only afterwards which was the last.
fn run_batch(connection: &Connection, query: &Query, limits: &Limits) -> Result<Outputs, Stop> {
    let mut batch = Batch::new(connection, &query.text);
    let Some(mut statement) = batch.next()? else {
        return Err(no_statement().into());
    };
    loop {
        let takes = statement.parameter_count();
        let given = if takes == 0 { &[][..] } else { &query.params[..] };
        let outputs = run_statement(connection, &mut statement, given, limits)?;
        match batch.next()? {
            Some(_) if takes > 0 => {
                let rule = "only the last statement can take parameters";
                return Err(invalid_input("params", rule).into());
            }
            Some(next) => statement = next,
            None if takes != query.params.len() => {
                return Err(param_count_failure(takes, query.params.len()).into());
            }
            None => return Ok(outputs),
        }
    }
}

fn run_one(connection: &Connection, query: &Query, limits: &Limits) -> Result<Outputs, Stop> {
    let mut batch = Batch::new(connection, &query.text);
    let Some(mut statement) = batch.next()? else {
        return Err(no_statement().into());
    };
    // Whether a second statement can be prepared or not: that there is one is enough.
    if !matches!(batch.next(), Ok(None)) {
        return Err(invalid_input("query", "must be one statement on this connection").into());
    }
    run_statement(connection, &mut statement, &query.params, limits)
}

fn run_statement(
    connection: &Connection,
    statement: &mut Statement<'_>,
    params: &[Value],
    limits: &Limits,
) -> Result<Outputs, Stop> {
    if statement.parameter_count() != params.len() {
        return Err(param_count_failure(statement.parameter_count(), params.len()).into());
    }
    for (index, param) in params.iter().enumerate() {
        statement.raw_bind_parameter(index + 1, bound(index, param)?)?;
    }
    let mut answer = RowSet::new(statement.column_names(), limits);
    let width = statement.column_count();
    let before = connection.total_changes();
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        let values = (0..width)
            .map(|index| row.get_ref(index))
            .collect::<Result<Vec<_>, _>>()?;
        // A row of thousands of large values must not be copied before it is judged.
        if values.iter().map(size_of).sum::<u64>() > limits.max_bytes {
            return Err(limits.too_large().into());
        }
        answer.push(values.into_iter().map(value_of))?;
    }
    drop(rows);
    // The count of the last change stands until the next one, so it counts only if something changed now.
    let affected = if connection.total_changes() == before {
        0
    } else {
        connection.changes()
    };
    Ok(answer.finish(affected))
}

fn no_statement() -> Failure {
    invalid_input("query", "holds no statement")
}

/// A parameter as SQLite has it.
fn bound(index: usize, param: &Value) -> Result<SqlValue, Failure> {
    Ok(match param {
        Value::Null => SqlValue::Null,
        Value::Bool(flag) => SqlValue::Integer(i64::from(*flag)),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => SqlValue::Integer(whole),
            (None, Some(float)) if !number.is_u64() => SqlValue::Real(float),
            _ => return Err(param_failure(index, "must fit into 64 bits with a sign")),
        },
        Value::String(text) => SqlValue::Text(text.clone()),
        Value::Array(_) | Value::Object(_) => SqlValue::Text(param.to_string()),
    })
}

/// Bytes that a value has at least in an answer.
fn size_of(value: &ValueRef<'_>) -> u64 {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.len() as u64,
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => 1,
    }
}

fn value_of(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(whole) => json!(whole),
        ValueRef::Real(number) => float(number),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => json!(text),
            Err(_) => json!(to_base64(bytes)),
        },
        ValueRef::Blob(bytes) => json!(to_base64(bytes)),
    }
}

impl Stop {
    fn into_failure(self, query: &Query, watch: &Watch) -> Failure {
        let error = match self {
            Self::Failure(failure) => return failure,
            Self::Sqlite(error) => error,
        };
        use rusqlite::ErrorCode as Sqlite;
        let kind = error.sqlite_error_code();
        if matches!(kind, Some(Sqlite::DatabaseBusy | Sqlite::DatabaseLocked)) {
            return locked();
        }
        if kind == Some(Sqlite::OperationInterrupted) {
            return watch.check().err().unwrap_or_else(crate::watch::cancelled);
        }
        let (code, message) = match kind {
            Some(Sqlite::DiskFull) => (
                ErrorCode::ResourceUnavailable,
                "the database, or its disk, is full".to_owned(),
            ),
            Some(Sqlite::TooBig | Sqlite::OutOfMemory) => (
                ErrorCode::ResourceUnavailable,
                "a value, the query or its working memory is too large".to_owned(),
            ),
            Some(Sqlite::ReadOnly) => (
                ErrorCode::PermissionDenied,
                "the connection is read-only".to_owned(),
            ),
            Some(Sqlite::AuthorizationForStatementDenied) => (
                ErrorCode::PermissionDenied,
                "the statement is not permitted here".to_owned(),
            ),
            Some(Sqlite::CannotOpen | Sqlite::PermissionDenied) => (
                ErrorCode::ExecutionFailed,
                "the database cannot be opened".to_owned(),
            ),
            // SQLite does not know it; refused is refused, on whatever database.
            _ if is_copy(&query.text) => (
                ErrorCode::PermissionDenied,
                "query: COPY is not permitted here".to_owned(),
            ),
            // Functions are refused with words of their own.
            _ if error.to_string().starts_with("not authorized") => (
                ErrorCode::PermissionDenied,
                "the statement is not permitted here".to_owned(),
            ),
            _ => (ErrorCode::ExecutionFailed, words_of(&error, query)),
        };
        let failure = Failure::new(code, message).internally(result_code(&error));
        if kind.is_some_and(is_of_the_file) {
            failure.saying(Sign::Down)
        } else {
            failure
        }
    }
}

/// Whether an error is due to the file of the database, or its disk, and not to the query.
fn is_of_the_file(kind: rusqlite::ErrorCode) -> bool {
    use rusqlite::ErrorCode as Sqlite;
    matches!(
        kind,
        Sqlite::DatabaseBusy
            | Sqlite::DatabaseLocked
            | Sqlite::DiskFull
            | Sqlite::CannotOpen
            | Sqlite::PermissionDenied
            | Sqlite::SystemIoFailure
            | Sqlite::DatabaseCorrupt
            | Sqlite::NotADatabase
    )
}

/// The database's own words, without values. A trigger's words are its author's.
fn words_of(error: &Error, query: &Query) -> String {
    match error {
        Error::SqliteFailure(code, Some(_)) if code.extended_code == SQLITE_CONSTRAINT_TRIGGER => {
            "a trigger of the database refused the statement".to_owned()
        }
        Error::SqliteFailure(_, Some(words)) => words::of_sqlite(words, query),
        Error::SqlInputError { msg, .. } => words::of_sqlite(msg, query),
        Error::SqliteFailure(code, None) => code.to_string(),
        _ => "the query failed".to_owned(),
    }
}

/// For the log: the library's own text would hold the query, or the path of the database.
fn result_code(error: &Error) -> String {
    match error.sqlite_error() {
        Some(code) => format!("SQLite result code {}: {code}", code.extended_code),
        None => "the library refused a call".to_owned(),
    }
}

#[cfg(test)]
mod tests;
