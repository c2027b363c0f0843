//! A `.creds` file and the operator, account and user behind it, made on the spot and worth nothing elsewhere.
//!
//! Neighbours: [`crate::nats`] trusts the operator. The tokens hold only what a nats-server asks for.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::TempDir;

/// A user of one account of one operator. The file goes away with this value.
#[derive(Debug)]
pub struct Credentials {
    dir: TempDir,
    config: String,
}

impl Credentials {
    /// Makes a new operator with one account, which may use JetStream without limit, and one user.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn generate() -> Result<Self> {
        let (operator, account, user) = (
            KeyPair::new_operator(),
            KeyPair::new_account(),
            KeyPair::new_user(),
        );
        let system = KeyPair::new_account();
        let limits = json!({"limits": {
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
            "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
        }});
        // The server's own account is there for JetStream and may store nothing.
        let no_storage =
            json!({"limits": {"subs": -1, "data": -1, "payload": -1, "wildcards": true, "conn": -1}});
        let user_token = token(
            &account,
            &user,
            "user",
            &json!({"subs": -1, "data": -1, "payload": -1}),
        )?;
        let config = format!(
            "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload {{\n{}: {}\n{}: {}\n}}",
            token(&operator, &operator, "operator", &json!({}))?,
            system.public_key(),
            system.public_key(),
            token(&operator, &system, "account", &no_storage)?,
            account.public_key(),
            token(&operator, &account, "account", &limits)?,
        );
        let dir = TempDir::new("creds")?;
        let made = Self { dir, config };
        let seed = user.seed().context("a new key pair has a seed")?;
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{user_token}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        std::fs::write(made.file(), text).context("cannot write the credentials")?;
        Ok(made)
    }

    /// The `.creds` file.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("user.creds")
    }

    /// Lines for the configuration of a server that trusts the operator.
    pub(crate) fn config(&self) -> &str {
        &self.config
    }
}

/// A token about `subject`, signed by `issuer`.
fn token(issuer: &KeyPair, subject: &KeyPair, kind: &str, rights: &Value) -> Result<String> {
    let mut nats = rights.clone();
    nats["type"] = kind.into();
    nats["version"] = 2.into();
    let claims = json!({
        "jti": uuid::Uuid::new_v4().simple().to_string(),
        "iat": 1_767_225_600,
        "iss": issuer.public_key(),
        "sub": subject.public_key(),
        "name": kind,
        "nats": nats,
    });
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&claims));
    let signature = issuer
        .sign(signed.as_bytes())
        .context("a new key pair can sign")?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
