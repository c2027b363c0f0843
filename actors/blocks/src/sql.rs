//! `sql.query`: one query on a database that the settings name, or on an in-memory SQLite database of the job's own.
//!
//! Neighbours: [`crate::build`] builds it. `source` says what a job may connect to, `sqlite` and `postgres` run the
//! query, `rows` collects the answer within its limits, `words` cleans what the database says. Parameters are always bound, never put into the text of a query.
//! No message, not even an internal one, holds an address or credentials of a database, text of a query, or a value.

mod login;
mod postgres;
mod rows;
mod source;
mod sqlite;
mod words;

use std::collections::HashMap;
use std::sync::Arc;

use caf_protocol::block::{
    Block, BlockContext, BlockFuture, BlockSpec, Inputs, ResourceClass, RunMode, Task,
};
use caf_protocol::endpoint::{Endpoint, EndpointKind, Sign};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::limit::{Operation, OperationLimit};
use caf_protocol::outcome::Failure;
use caf_protocol::secret::reference::{KEY, is_in, not_here};
use caf_protocol::secret::vault::{Borrowed, Vault};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use self::login::Login;
pub(crate) use self::source::check_address;
use self::source::{Broken, Kind, Source};
use crate::inputs::{Fields, invalid_input};
use crate::settings::{SettingError, SqlSettings};
use crate::watch::{Watch, until_stopped};

/// The input that says which database, and its alias.
const CONNECTION: [&str; 2] = ["connection", "connection_string"];

/// Inputs of `sql.query`.
#[derive(JsonSchema, Serialize)]
struct SqlInputs {
    /// The statement; alias `sql`. On `:memory:` several, separated by semicolons: the answer is that of the last one.
    query: String,
    /// Name of a connection in the settings, or `:memory:` (default), a fresh writable database for this job. Alias
    /// `connection_string`. Where connections of jobs are allowed, also a connection string, or
    /// `{"url", "user", "password": {"$secret": "name"}}`.
    connection: Option<Value>,
    /// Values of `?` (SQLite) or `$1` (PostgreSQL), by position; objects and arrays are bound as JSON. Alias
    /// `parameters`. On `:memory:` they belong to the last statement.
    params: Option<Vec<Value>>,
}

/// Outputs of `sql.query`.
#[derive(JsonSchema, Serialize)]
struct SqlOutputs {
    /// One object per row, by column name. Of columns with the same name, the second is called `name_2`, and so on.
    rows: Vec<Map<String, Value>>,
    /// Number of rows.
    row_count: u64,
    /// Column names in order.
    columns: Vec<String>,
    /// Rows changed, for a statement that has no columns; else absent.
    affected_rows: Option<u64>,
}

/// The block.
pub(crate) struct SqlQuery {
    spec: BlockSpec,
    allow_inline: bool,
    memory: Arc<Source>,
    named: HashMap<String, Arc<Source>>,
    logins: HashMap<String, Arc<Login>>,
    vault: Vault,
    settings: SqlSettings,
}

impl SqlQuery {
    /// The errors are all settings that no connection can be made of.
    pub(crate) fn new(settings: &SqlSettings, vault: Vault) -> Result<Self, Vec<SettingError>> {
        let spec = BlockSpec {
            job_types: &["sql.query"],
            class: ResourceClass::Cpu,
            repeatable: false,
            inputs: schemars::schema_for!(SqlInputs),
            outputs: schemars::schema_for!(SqlOutputs),
        };
        let mut named = HashMap::new();
        let mut broken = Vec::new();
        for (name, connection) in &settings.connections {
            match Source::named(connection, &settings.memory) {
                Ok(source) => {
                    named.insert(name.clone(), Arc::new(source.called(name)));
                }
                Err(Broken { key, rule }) => {
                    let key = ["blocks", "sql", "connections", name, key];
                    broken.push(SettingError::new(&key, rule, "(hidden)"));
                }
            }
        }
        if !broken.is_empty() {
            return Err(broken);
        }
        let logins = settings.connections.iter().filter_map(|(name, connection)| {
            let login = Login::named(name, connection, &settings.memory)?;
            Some((name.clone(), Arc::new(login)))
        });
        Ok(Self {
            spec,
            allow_inline: settings.allow_inline,
            memory: Arc::new(Source::memory(&settings.memory)),
            named,
            logins: logins.collect(),
            vault,
            settings: settings.clone(),
        })
    }

    /// What the input `connection` stands for. A string that looks like an address is never looked up as a name, so that
    /// a job cannot tell from the answer which addresses are configured.
    fn source(&self, connection: Option<&str>) -> Result<Target, Failure> {
        let Some(text) = connection.map(str::trim) else {
            return Ok(Target::Source(Arc::clone(&self.memory)));
        };
        if source::is_memory(text) {
            return Ok(Target::Source(Arc::clone(&self.memory)));
        }
        if let Some(source) = self.named.get(text) {
            return Ok(Target::Source(Arc::clone(source)));
        }
        if !source::looks_inline(text) {
            return Err(invalid_input(
                "connection",
                "is not configured; see blocks.sql.connections",
            ));
        }
        if !self.allow_inline {
            return Ok(Target::Refused);
        }
        let source = Source::inline(text, &self.settings.memory)
            .map_err(|broken| invalid_input("connection", &broken.rule))?;
        Ok(Target::Source(Arc::new(source)))
    }
}

impl SqlQuery {
    /// What the input `connection` stands for, and how to log in where the password is a named secret.
    fn target(&self, fields: &Fields<'_>) -> Result<(Target, Option<Arc<Login>>), Failure> {
        let is_object = |value: &Value| match value {
            Value::String(text) => text.trim_start().starts_with('{'),
            other => other.is_object(),
        };
        if fields
            .value(&CONNECTION)
            .is_some_and(|(_, value)| is_object(value))
        {
            let object = fields.object(&CONNECTION)?.unwrap_or_default();
            if object.contains_key(KEY) {
                return Err(not_here(CONNECTION[0]));
            }
            let login = Login::inline(&object, &self.settings.memory)?;
            if !self.allow_inline {
                return Ok((Target::Refused, None));
            }
            let source = Arc::new(login.without_password()?);
            return Ok((Target::Source(source), Some(Arc::new(login))));
        }
        let text = fields.text(&CONNECTION)?;
        let login = text.and_then(|name| self.logins.get(name.trim()).cloned());
        Ok((self.source(text)?, login))
    }
}

impl Block for SqlQuery {
    fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    fn secret_inputs(&self) -> &'static [&'static str] {
        &CONNECTION
    }

    fn prepare(&self, inputs: Inputs) -> Result<Arc<dyn Task>, Failure> {
        let fields = Fields(&inputs);
        let text = fields.required_text(&["query", "sql"])?;
        if text.contains('\0') {
            return Err(invalid_input("query", "must not hold a NUL character"));
        }
        let query = Query {
            text: text.to_owned(),
            params: fields.array(&["params", "parameters"])?.unwrap_or_default(),
        };
        if query.params.iter().any(is_in) {
            return Err(not_here("params"));
        }
        let (target, login) = self.target(&fields)?;
        let vault = self.vault.clone();
        Ok(Arc::new(SqlTask {
            target,
            login,
            vault,
            query,
        }))
    }
}

/// What a job asks.
struct Query {
    text: String,
    params: Vec<Value>,
}

enum Target {
    Source(Arc<Source>),
    /// An inline connection string, which the settings do not allow.
    Refused,
}

struct SqlTask {
    target: Target,
    login: Option<Arc<Login>>,
    vault: Vault,
    query: Query,
}

impl Task for SqlTask {
    fn mode(&self) -> RunMode {
        match &self.target {
            Target::Source(source) if !matches!(source.kind, Kind::Postgres(_)) => RunMode::Thread,
            _ => RunMode::Async,
        }
    }

    /// A file may be on a disk that hangs. A server is asked to stop instead, by `postgres`.
    fn limit(&self) -> Option<OperationLimit> {
        match &self.target {
            Target::Source(source) if !matches!(source.kind, Kind::Postgres(_)) => {
                Some(source.limits.statement_limit())
            }
            _ => None,
        }
    }

    fn operations(&self) -> &'static [Operation] {
        match &self.target {
            Target::Source(source) if matches!(source.kind, Kind::Postgres(_)) => {
                &[Operation::SqlConnect, Operation::SqlStatement]
            }
            Target::Source(_) => &[Operation::SqlStatement],
            Target::Refused => &[],
        }
    }

    fn endpoint(&self) -> Option<Endpoint> {
        match &self.target {
            Target::Source(source) => {
                let name = source.name.as_deref()?;
                Some(Endpoint::new(EndpointKind::Sql, name))
            }
            Target::Refused => None,
        }
    }

    fn run(self: Arc<Self>, context: BlockContext) -> BlockFuture {
        Box::pin(async move {
            let Target::Source(source) = &self.target else {
                let rule = "connection strings are not allowed; see blocks.sql.connections and blocks.sql.allow_inline";
                let refused = Failure::of_field(ErrorCode::PermissionDenied, "connection", rule);
                return Err(refused.saying(Sign::Refused));
            };
            let (source, borrowed) = match &self.login {
                Some(login) => login
                    .open(&self.vault, &context)
                    .map_err(|failure| failure.saying(Sign::Refused))?,
                None => (Arc::clone(source), Borrowed::default()),
            };
            let outcome = match &source.kind {
                Kind::Memory { .. } | Kind::Sqlite(_) => {
                    let watch = Watch::start(&context, self.limit());
                    sqlite::run(&source, &self.query, &watch)
                }
                Kind::Postgres(postgres) => {
                    let work = postgres.run(&self.query, &source.limits, &context);
                    until_stopped(&context, work).await
                }
            };
            borrowed.scrub(outcome)
        })
    }
}

/// A parameter that does not fit.
fn param_failure(index: usize, rule: &str) -> Failure {
    invalid_input(&format!("params[{index}]"), rule)
}

fn param_count_failure(expected: usize, given: usize) -> Failure {
    invalid_input(
        "params",
        &format!("the statement takes {expected} parameters, {given} were given"),
    )
}
