//! Encryption of the admin port, on both sides: the node that listens there, and the commands that ask it; and of the port of
//! links to approvals.
//!
//! Neighbours: [`crate::http::tls`] reads the files for the port, [`crate::ask`] for the commands. Never looks at a file.

use std::path::PathBuf;

use caf_actors::settings::rules::Rules;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Section `http.admin_tls`: how the admin port proves who it is, and whom it lets in. PEM files, read at the start and
/// again at every SIGHUP.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdminTlsSettings {
    /// Certificate of the port, followed by those between it and its authority.
    pub cert_file: Option<PathBuf>,
    /// Its private key.
    pub key_file: Option<PathBuf>,
    /// Authorities of clients: once set, nobody connects without a certificate of one of them.
    pub client_ca_file: Option<PathBuf>,
}

impl AdminTlsSettings {
    /// Whether the port is encrypted.
    pub fn is_on(&self) -> bool {
        self.cert_file.is_some()
    }

    /// Checks that what belongs together is there.
    pub fn validate(&self, rules: &mut Rules) {
        belong_together(self.cert_file.as_ref(), self.key_file.as_ref(), rules);
        rules.require(
            "cert_file",
            self.client_ca_file.is_none() || self.cert_file.is_some(),
            "must be set when http.admin_tls.client_ca_file is",
        );
        named("client_ca_file", self.client_ca_file.as_ref(), rules);
    }
}

/// Section `http.approval_tls`: how the port of links to approvals proves who it is. PEM files, read at the start and again at
/// every SIGHUP.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApprovalTlsSettings {
    /// Certificate of the port, followed by those between it and its authority.
    pub cert_file: Option<PathBuf>,
    /// Its private key.
    pub key_file: Option<PathBuf>,
}

impl ApprovalTlsSettings {
    /// Checks that what belongs together is there.
    pub fn validate(&self, rules: &mut Rules) {
        let missing = match self.cert_file {
            None => "cert_file",
            Some(_) => "key_file",
        };
        let pair = self.cert_file.is_some() == self.key_file.is_some();
        rules.require(missing, pair, "must be set: certificate and key belong together");
        named("cert_file", self.cert_file.as_ref(), rules);
        named("key_file", self.key_file.as_ref(), rules);
    }
}

/// Section `http.admin_client`: with what `explain` and `top` ask an encrypted admin port. PEM files.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdminClientSettings {
    /// Authorities that vouch for the port, in place of the public ones.
    pub ca_file: Option<PathBuf>,
    /// Certificate of the client.
    pub cert_file: Option<PathBuf>,
    /// Its private key.
    pub key_file: Option<PathBuf>,
}

impl AdminClientSettings {
    /// Checks that what belongs together is there.
    pub fn validate(&self, rules: &mut Rules) {
        belong_together(self.cert_file.as_ref(), self.key_file.as_ref(), rules);
        named("ca_file", self.ca_file.as_ref(), rules);
    }
}

/// Certificate and key are both there, or neither is.
fn belong_together(cert_file: Option<&PathBuf>, key_file: Option<&PathBuf>, rules: &mut Rules) {
    let missing = if cert_file.is_none() {
        "cert_file"
    } else {
        "key_file"
    };
    let pair = cert_file.is_some() == key_file.is_some();
    rules.require(missing, pair, "must be set: certificate and key belong together");
    named("cert_file", cert_file, rules);
    named("key_file", key_file, rules);
}

fn named(key: &str, file: Option<&PathBuf>, rules: &mut Rules) {
    let holds = file.is_none_or(|file| !file.as_os_str().is_empty());
    rules.require(key, holds, "must not be empty");
}
