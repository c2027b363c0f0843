//! Runs a query on PostgreSQL, in a transaction of its own, on a connection from a pool.
//!
//! Neighbours: [`super`] runs it on an event loop; `address` reads the settings, `dial` connects, `bounded` limits what the
//! server may send at once, `statement` says which statements are sent at all, `params` binds, `decode` reads values, `rows`
//! collects. A query that is
//! given up (dropped, cancelled, over a limit) is cancelled on the server too, and its connection is thrown away: none is
//! left running, none comes back to the pool in an unknown state.

mod address;
mod bounded;
mod decode;
mod dial;
mod params;
mod statement;

pub(super) use self::statement::is_copy;

use std::error::Error as _;
use std::io;
use std::pin::pin;
use std::time::Duration;

use caf_protocol::block::{BlockContext, Outputs};
use caf_protocol::endpoint::Sign;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::limit::{Operation, OperationLimit};
use caf_protocol::outcome::Failure;
use caf_protocol::secret::vault::Target;
use deadpool_postgres::{
    ClientWrapper, Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod,
    Runtime, TimeoutType, Timeouts,
};
use futures_util::StreamExt;
use serde_json::json;
use tokio::time::Instant;
use tokio_postgres::config::Host;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, Error, SimpleQueryMessage};

use self::address::Address;
use self::bounded::Channel;
use self::decode::Raw;
use self::dial::Dial;
use super::rows::RowSet;
use super::source::{Broken, Limits};
use super::{Query, param_count_failure, param_failure, words};
use crate::settings::{SqlConnectionSettings, ms};
use crate::watch::attempt_limit;

/// How much longer than the server we wait for an answer to a statement: time for its own timeout to arrive.
const SERVER_GRACE: Duration = Duration::from_secs(1);
/// Longest wait for the end of a transaction that failed; then the connection is thrown away.
const ROLLBACK_LIMIT: Duration = Duration::from_secs(1);
/// Cancel requests for one query: the server forgets one that overtakes its query, which may happen on a busy machine.
const CANCEL_TRIES: u32 = 10;
/// How long a query may take to end after a cancel request, before the next is sent.
const CANCEL_AGAIN: Duration = Duration::from_millis(250);
/// Longest wait until a connection is as it was before its job; then it is thrown away.
const RESET_LIMIT: Duration = Duration::from_secs(5);
/// Undoes what a job can have done to its session, and tells whether it prepared statements, which have names and texts that
/// the next tenant could see. `DISCARD ALL` would drop the driver's own ones too.
const RESET: &str = "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; \
    SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; \
    SELECT count(*) AS prepared FROM pg_prepared_statements WHERE from_sql";
/// Second wall around a read-only connection: whatever ends the transaction of a job, the next one cannot write either.
const READ_ONLY: &str = "SET default_transaction_read_only = on";
/// How much more the server may send in one message than an answer may have bytes of JSON: numbers are longer in binary, and
/// an error or a row has more around it. In bytes.
const MESSAGE_ALLOWANCE: u64 = 1 << 20;
/// Times that the binary form of a value may be longer than JSON, at most: arrays of small numbers.
const BINARY_FACTOR: u64 = 8;
/// Whether the role can do more on the server than use the database.
const IS_PRIVILEGED: &str = "SELECT count(*) FROM pg_roles WHERE pg_has_role(oid, 'MEMBER') AND (rolsuper OR rolname IN \
    ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program'))";
/// Longest wait for the server to take a cancel request.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);

/// All servers that an address leads to, each of which a password may be sent to.
///
/// # Errors
/// Why no named secret can be the password there.
pub(super) fn servers(settings: &SqlConnectionSettings) -> Result<Vec<Target>, String> {
    let url = settings.url.trim();
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err("must be a PostgreSQL address where its password is a secret".to_owned());
    }
    let Address { config, .. } = Address::of(settings).map_err(|broken| broken.rule)?;
    if config.get_password().is_some() || !config.get_hostaddrs().is_empty() {
        // Where `hostaddr` leads is not what `host` says.
        return Err("must hold no password and no hostaddr where its password is a secret".to_owned());
    }
    let ports = config.get_ports();
    let server = |(index, host): (usize, &Host)| {
        let port = ports.get(index).or(ports.first()).copied().unwrap_or(5_432);
        match host {
            Host::Tcp(name) => Target::server("postgres", name, port),
            // Nobody can say where a socket leads.
            _ => None,
        }
    };
    let servers: Option<Vec<Target>> = config.get_hosts().iter().enumerate().map(server).collect();
    servers.ok_or_else(|| "must name hosts where its password is a secret".to_owned())
}

/// A server, and the connections to it.
pub(super) struct Postgres {
    pool: Pool,
    read_only: bool,
    allow_superuser: bool,
    connect_limit: Duration,
    channel: Channel,
    place: String,
}

impl Postgres {
    /// The rule that the address breaks, if it breaks one.
    pub(super) fn check(settings: &SqlConnectionSettings) -> Result<(), Broken> {
        Address::of(settings).map(drop)
    }

    /// Reads the settings and the file of authorities. Connects only when a job needs it.
    pub(super) fn new(settings: &SqlConnectionSettings) -> Result<Self, Broken> {
        let Address { mut config, trust } = Address::of(settings)?;
        let tls = dial::tls(trust, settings.ca_file.as_deref()).map_err(Broken::ca_file)?;
        if let Some(user) = &settings.user {
            config.user(user);
        }
        if let Some(password) = &settings.password {
            config.password(password.expose());
        }
        if config.get_application_name().is_none() {
            config.application_name("caf-worker");
        }
        let connect_limit = ms(settings.connect_timeout_ms);
        let place = address::place(&config);
        config.connect_timeout(connect_limit);
        let max_message = settings.max_bytes.saturating_mul(BINARY_FACTOR) + MESSAGE_ALLOWANCE;
        let channel = Channel::new(tls, max_message);
        // What a job did to its session is undone as soon as it is over; here it is only seen whether there is a server.
        let recycling = ManagerConfig {
            recycling_method: RecyclingMethod::Verified,
        };
        let read_only = settings.read_only;
        let begin = Hook::async_fn(move |client: &mut ClientWrapper, _| {
            Box::pin(async move {
                if read_only {
                    client
                        .batch_execute(READ_ONLY)
                        .await
                        .map_err(HookError::Backend)?;
                }
                Ok(())
            })
        });
        let manager = Manager::from_connect(config, Dial::new(channel.clone()), recycling);
        let pool = Pool::builder(manager)
            .max_size(settings.pool_size)
            .runtime(Runtime::Tokio1)
            .post_create(begin)
            .build()
            .map_err(|error| Broken::url(error.to_string()))?;
        Ok(Self {
            pool,
            read_only,
            allow_superuser: settings.allow_superuser.unwrap_or(settings.read_only),
            connect_limit,
            channel,
            place,
        })
    }

    /// Host, port and database.
    pub(super) fn place(&self) -> String {
        self.place.clone()
    }

    /// Runs the query and collects its answer.
    pub(super) async fn run(
        &self,
        query: &Query,
        limits: &Limits,
        context: &BlockContext,
    ) -> Result<Outputs, Failure> {
        statement::check(&query.text, self.read_only).map_err(|failure| failure.saying(Sign::Refused))?;
        let client = self.connect(context).await?;
        let running = Running {
            client: Some(client),
            tls: self.channel.clone(),
            read_only: self.read_only,
        };
        let given_up = self.channel.given_up();
        let limit = context.cap(limits.statement_timeout);
        let began = Instant::now();
        let timed_out = || {
            if Instant::now() >= context.deadline || limit < limits.statement_timeout {
                Failure::deadline()
            } else {
                limits.statement_limit().ends_the_job(began.elapsed())
            }
        };
        let work = self.transact(running.client(), query, limits, limit);
        match tokio::time::timeout(limit + SERVER_GRACE, work).await {
            Err(_) => Err(timed_out()),
            Ok(Ok(outputs)) => {
                running.release();
                Ok(outputs)
            }
            Ok(Err(Stop::Failure(failure))) => Err(failure),
            Ok(Err(Stop::Refused(failure))) => {
                running.roll_back().await;
                Err(failure)
            }
            Ok(Err(Stop::Postgres(error))) => {
                // Only an error that the server itself reports leaves the connection in a known state.
                if error.as_db_error().is_some() && !error.is_closed() {
                    running.roll_back().await;
                }
                let cancelled_there = error.code() == Some(&SqlState::QUERY_CANCELED);
                if cancelled_there && began.elapsed() >= limit {
                    return Err(timed_out().internally(internal_text(&error)));
                }
                if error.is_closed() && self.channel.given_up() > given_up {
                    return Err(limits.too_large());
                }
                Err(failure_of(&error, query))
            }
        }
    }

    async fn connect(&self, context: &BlockContext) -> Result<Object, Failure> {
        let limit = Some(context.cap(self.connect_limit));
        let timeouts = Timeouts {
            wait: limit,
            create: limit,
            recycle: limit,
        };
        let connecting = OperationLimit {
            operation: Operation::SqlConnect,
            allowed: self.connect_limit,
        };
        // The pool applies each limit to one step; together they may take one limit as well.
        let get = self.pool.timeout_get(&timeouts);
        let got = attempt_limit(context, Some(connecting), "connecting to the database", get).await?;
        got.map_err(|error| match error {
            PoolError::Timeout(TimeoutType::Wait) => Failure::new(
                ErrorCode::ResourceUnavailable,
                "every connection to the database is in use",
            ),
            PoolError::Timeout(_) => Failure::new(
                ErrorCode::ConnectionTimeout,
                "timeout while connecting to the database",
            ),
            PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => {
                failure_to_connect(error)
            }
            other => {
                Failure::new(ErrorCode::InternalError, "the pool of connections failed").internally(other)
            }
        })
    }

    async fn transact(
        &self,
        client: &Client,
        query: &Query,
        limits: &Limits,
        limit: Duration,
    ) -> Result<Outputs, Stop> {
        let begin = if self.read_only {
            "BEGIN READ ONLY"
        } else {
            "BEGIN"
        };
        // The SELECT takes a snapshot; after one, no statement can make a read-only transaction writable any more.
        let timeout_ms = limit.as_millis().max(1);
        let asked = if self.allow_superuser {
            "SELECT 0"
        } else {
            IS_PRIVILEGED
        };
        let preamble = format!("{begin}; SET LOCAL statement_timeout = {timeout_ms}; {asked}");
        if count_of(&client.simple_query(&preamble).await?) > 0 {
            let text = "the role of the connection can reach files of the server; see allow_superuser";
            return Err(Stop::Refused(Failure::new(ErrorCode::PermissionDenied, text)));
        }
        let statement = client.prepare(&query.text).await?;
        let types = statement.params();
        if types.len() != query.params.len() {
            return Err(Stop::Refused(param_count_failure(
                types.len(),
                query.params.len(),
            )));
        }
        let mut params = Vec::with_capacity(types.len());
        for (index, (value, ty)) in query.params.iter().zip(types).enumerate() {
            let param = params::Param::new(value, ty).map_err(|expected| {
                let rule = format!("must be {expected}, for the type {}", ty.name());
                Stop::Refused(param_failure(index, &rule))
            })?;
            params.push(param);
        }
        let names = statement.columns().iter().map(tokio_postgres::Column::name);
        let mut answer = RowSet::new(names, limits);
        let mut rows = pin!(client.query_raw(&statement, params).await?);
        while let Some(row) = rows.next().await {
            let row = row?;
            let mut values = Vec::with_capacity(row.len());
            for (index, column) in statement.columns().iter().enumerate() {
                let raw: Option<Raw<'_>> = row.try_get(index)?;
                let value = raw.map_or(Ok(json!(null)), |raw| decode::value(column.type_(), raw.0));
                values.push(value.map_err(|cause| unreadable(column, &cause, query))?);
            }
            // Over a limit, the rest of the answer is on its way: the connection is thrown away.
            answer.push(values).map_err(Stop::Failure)?;
        }
        let affected = rows.rows_affected().unwrap_or(0);
        client.batch_execute("COMMIT").await?;
        Ok(answer.finish(affected))
    }
}

fn unreadable(column: &tokio_postgres::Column, cause: &str, query: &Query) -> Stop {
    let text = format!(
        "column {} has the type {}, {cause}; cast it to text",
        words::name(column.name(), query),
        column.type_().name()
    );
    Stop::Failure(Failure::new(ErrorCode::ExecutionFailed, text))
}

/// Why a query stopped.
enum Stop {
    /// The connection or the server says so.
    Postgres(Error),
    /// We say so before the statement began.
    Refused(Failure),
    /// We say so while its answer is on its way.
    Failure(Failure),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Postgres(error)
    }
}

/// A connection in use. Unless it is given back, dropping it cancels what runs on it and closes it.
struct Running {
    client: Option<Object>,
    /// The request to cancel is encrypted as the connection is.
    tls: Channel,
    read_only: bool,
}

impl Running {
    fn client(&self) -> &Client {
        self.client
            .as_ref()
            .expect("is taken only by what consumes or drops it")
    }

    /// Back to the pool as soon as it is as it was before; nobody waits for that. A lock or a table that a job leaves must
    /// not last until the connection is used again.
    fn release(self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let reset = tokio::time::timeout(RESET_LIMIT, self.reset());
                if matches!(reset.await, Ok(Ok(true))) {
                    self.give_back();
                }
            });
        }
    }

    /// True when nothing of the job is left.
    async fn reset(&self) -> Result<bool, Error> {
        let script = if self.read_only {
            &format!("{RESET}; {READ_ONLY}")
        } else {
            RESET
        };
        Ok(count_of(&self.client().simple_query(script).await?) == 0)
    }

    fn give_back(mut self) {
        drop(self.client.take());
    }

    /// Back to the pool after a rollback, if that works.
    async fn roll_back(self) {
        let rollback = self.client().batch_execute("ROLLBACK");
        if let Ok(Ok(())) = tokio::time::timeout(ROLLBACK_LIMIT, rollback).await {
            self.release();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(object) = self.client.take() else {
            return;
        };
        let tls = self.tls.as_the_last();
        let client = Object::take(object);
        let cancel = client.cancel_token();
        // Without a runtime the process is ending, and the connection with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // Answered when everything before it has ended.
                let mut ended = pin!(client.simple_query(""));
                for _ in 0..CANCEL_TRIES {
                    let _ = tokio::time::timeout(CANCEL_LIMIT, cancel.cancel_query(tls.clone())).await;
                    if tokio::time::timeout(CANCEL_AGAIN, &mut ended).await.is_ok() {
                        break;
                    }
                }
            });
        }
    }
}

/// The number that stands alone in the last row of an answer.
fn count_of(answer: &[SimpleQueryMessage]) -> u64 {
    let rows = answer.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let last = rows.last().and_then(|row| row.try_get(0).ok().flatten());
    // What is no number is nothing that may pass.
    last.and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}

fn failure_to_connect(error: Error) -> Failure {
    let failure = match error.as_db_error() {
        Some(told) if *told.code() == SqlState::TOO_MANY_CONNECTIONS => Failure::new(
            ErrorCode::ResourceUnavailable,
            "the database has no connection left",
        )
        .saying(Sign::Down),
        Some(told) if is_going_away(told) => {
            Failure::new(ErrorCode::NetworkError, "the database is starting or stopping")
        }
        // The server's words would name user and host.
        Some(_) => {
            Failure::new(ErrorCode::ExecutionFailed, "the database refused the login").saying(Sign::Down)
        }
        None if io_kind(&error) == Some(io::ErrorKind::TimedOut) => Failure::new(
            ErrorCode::ConnectionTimeout,
            "timeout while connecting to the database",
        ),
        None if dial::is_of_tls(&error) => Failure::new(
            ErrorCode::NetworkError,
            "no encrypted connection to the database: the TLS handshake failed",
        ),
        None if io_kind(&error).is_some() => {
            Failure::new(ErrorCode::NetworkError, "no connection to the database")
        }
        None => Failure::new(
            ErrorCode::NetworkError,
            "no connection to the database, or its answer is not understood",
        ),
    };
    with_state(failure, &error).internally(internal_text(&error))
}

fn failure_of(error: &Error, query: &Query) -> Failure {
    let Some(told) = error.as_db_error() else {
        let failure = if error.is_closed() || io_kind(error).is_some() {
            Failure::new(
                ErrorCode::NetworkError,
                "the connection to the database broke off",
            )
        } else {
            // Such as a COPY, which talks another way than queries do.
            Failure::new(
                ErrorCode::ExecutionFailed,
                "the statement's answer is none that a query has",
            )
        };
        return failure.internally(internal_text(error));
    };
    let words = words::of_postgres(told, query);
    if let Some(index) = parameter_at_fault(told) {
        return with_state(param_failure(index, &words), error).internally(internal_text(error));
    }
    let state = told.code().code();
    let failure = match *told.code() {
        _ if is_going_away(told) => {
            Failure::new(ErrorCode::NetworkError, "the database ended the connection")
        }
        SqlState::INSUFFICIENT_PRIVILEGE => Failure::new(ErrorCode::PermissionDenied, words),
        SqlState::READ_ONLY_SQL_TRANSACTION => {
            Failure::new(ErrorCode::PermissionDenied, "the connection is read-only")
        }
        // Class 53: insufficient resources.
        _ if state.starts_with("53") => {
            Failure::new(ErrorCode::ResourceUnavailable, words).saying(Sign::Down)
        }
        _ => Failure::new(ErrorCode::ExecutionFailed, words),
    };
    with_state(failure, error).internally(internal_text(error))
}

/// The server was stopped, has crashed, or does not take connections yet.
fn is_going_away(error: &DbError) -> bool {
    matches!(
        *error.code(),
        SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN | SqlState::CANNOT_CONNECT_NOW
    )
}

/// The parameter, from 0, that the server could not read: it says so in the context of its error.
fn parameter_at_fault(error: &DbError) -> Option<usize> {
    // Class 22: the value does not fit its type.
    if !error.code().code().starts_with("22") {
        return None;
    }
    let (_, rest) = error.where_()?.split_once("portal parameter $")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse::<usize>().ok()?.checked_sub(1)
}

fn with_state(failure: Failure, error: &Error) -> Failure {
    match error.code() {
        Some(state) => failure.with("sqlstate", json!(state.code())),
        None => failure,
    }
}

fn io_kind(error: &Error) -> Option<io::ErrorKind> {
    error.source()?.downcast_ref::<io::Error>().map(io::Error::kind)
}

/// For the log. The server's words would hold values in their detail and the user in a refused login; its code and the
/// place in its source say as much.
fn internal_text(error: &Error) -> String {
    match (error.as_db_error(), error.source()) {
        (Some(told), _) => format!(
            "SQLSTATE {} from {}",
            told.code().code(),
            told.routine().unwrap_or("an unknown place")
        ),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}
