//! Connections whose password is a named secret: of the settings (`password_secret`), or brought by a job where that is
//! allowed.
//!
//! Neighbours: [`super`] opens one in each attempt, so that a job gets the password only if the secret is for it, and a new
//! value from the moment it is there. Connections made with one value stay together until the next one comes.

use std::sync::{Arc, Mutex, PoisonError};

use caf_protocol::block::BlockContext;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use caf_protocol::secret::Secret;
use caf_protocol::secret::reference::{SecretRef, is_in, not_here};
use caf_protocol::secret::vault::{Borrowed, Target, Vault};
use serde_json::{Map, Value};

use super::postgres;
use super::source::Source;
use crate::inputs::invalid_input;
use crate::settings::{SqlConnectionSettings, SqlMemorySettings};

/// The block type that secrets are asked for with.
const BLOCK_TYPE: &str = "sql.query";
/// The input that failures are about.
const FIELD: &str = "connection";

/// How to log in.
pub(super) struct Login {
    password: SecretRef,
    /// All that the password is sent to, or may be.
    targets: Vec<Target>,
    settings: SqlConnectionSettings,
    memory: SqlMemorySettings,
    /// The database, and the password that it was opened with.
    opened: Mutex<Option<(Secret, Arc<Source>)>>,
}

impl Login {
    /// The login of a connection of the settings, if its password is a named secret.
    pub(super) fn named(
        name: &str,
        settings: &SqlConnectionSettings,
        memory: &SqlMemorySettings,
    ) -> Option<Self> {
        let password = SecretRef {
            name: settings.password_secret.clone()?,
            prefix: String::new(),
        };
        Some(Self {
            password,
            targets: vec![Target::Connection(name.to_owned())],
            settings: settings.clone(),
            memory: memory.clone(),
            opened: Mutex::default(),
        })
    }

    /// What a job says of a connection of its own: `{"url", "user", "password": {"$secret": "name"}}`.
    pub(super) fn inline(object: &Map<String, Value>, memory: &SqlMemorySettings) -> Result<Self, Failure> {
        let text = |key: &str| match object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(value) if is_in(value) => Err(not_here(FIELD)),
            Some(_) => Err(invalid_input(FIELD, "\"url\" and \"user\" must be texts")),
        };
        let password = object
            .get("password")
            .map(|password| SecretRef::read(password, FIELD));
        let Some(password) = password.transpose()?.flatten() else {
            return Err(invalid_input(
                FIELD,
                "\"password\" must be a reference to a secret",
            ));
        };
        if !password.prefix.is_empty()
            || object
                .keys()
                .any(|key| !["url", "user", "password"].contains(&key.as_str()))
        {
            let rule = "must hold \"url\", \"user\" and \"password\" only, and the password no \"prefix\"";
            return Err(invalid_input(FIELD, rule));
        }
        let url = text("url")?.ok_or_else(|| invalid_input(FIELD, "\"url\" is required"))?;
        let mut settings = Source::inline_settings(url, memory);
        settings.user = text("user")?.map(str::to_owned);
        let targets = postgres::servers(&settings).map_err(|rule| invalid_input(FIELD, &rule))?;
        Ok(Self {
            password,
            targets,
            settings,
            memory: memory.clone(),
            opened: Mutex::default(),
        })
    }

    /// The database without a password: how it is run and for how long does not depend on it.
    pub(super) fn without_password(&self) -> Result<Source, Failure> {
        Source::named(&self.settings, &self.memory).map_err(|broken| invalid_input(FIELD, &broken.rule))
    }

    /// The database, opened for a job that the password is for.
    pub(super) fn open(
        &self,
        vault: &Vault,
        context: &BlockContext,
    ) -> Result<(Arc<Source>, Borrowed), Failure> {
        let asked = self.targets.iter();
        let lent = asked.map(|target| vault.lend((&self.password, FIELD), (BLOCK_TYPE, context), target));
        let lent = lent.collect::<Result<Vec<_>, _>>()?;
        let first = lent
            .first()
            .ok_or_else(|| invalid_input(FIELD, "must name a host"))?;
        let password = first.value().clone();
        let source = self.source_with(password)?;
        // One secret, however many servers it may be sent to.
        Ok((source, lent.into_iter().take(1).collect::<Vec<_>>().into()))
    }

    fn source_with(&self, password: Secret) -> Result<Arc<Source>, Failure> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, source)) = &*opened
            && *known == password
        {
            return Ok(Arc::clone(source));
        }
        let mut settings = self.settings.clone();
        settings.password = Some(password.clone());
        let source = Source::named(&settings, &self.memory).map_err(|broken| {
            Failure::of_field(ErrorCode::ExecutionFailed, FIELD, "cannot be opened").internally(broken.rule)
        })?;
        let source = Arc::new(source);
        // Who still uses the connections of the value before keeps them until his job is over.
        *opened = Some((password, Arc::clone(&source)));
        Ok(source)
    }
}
