//! Certificates of the admin port and of the port of links to approvals: read from the files of `http.admin_tls` and
//! `http.approval_tls`, and exchanged while the port is open.
//!
//! Neighbours: `Port` accepts connections with [`AdminTls::acceptor`]; [`crate::reload`] has the files read again at every
//! SIGHUP. Clients without a certificate are refused where authorities of clients are set. TLS 1.2 and 1.3, nothing below.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use caf_protocol::ids::sha256;
use caf_protocol::live::Live;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode as _, Tag, Tagged as _};
use x509_cert::name::Name;

use crate::settings::admin_tls::{AdminClientSettings, AdminTlsSettings, ApprovalTlsSettings};

/// Largest file in bytes; all public authorities together have a quarter of it.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// A certificate that ends sooner than this is warned of.
pub const SOON: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Longest subject that is told, in characters.
const MAX_SUBJECT_CHARS: usize = 128;
/// What is said of a certificate that has ended.
pub const OVER: &str = "the certificate is over: clients refuse it";
/// Common name (RFC 5280, A.1).
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
/// Seconds of a day.
const DAY_SECS: i64 = 24 * 3_600;

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} ({}): {rule}", file.display())]
pub struct Unusable {
    /// The setting that names it.
    pub key: String,
    /// The file.
    pub file: PathBuf,
    /// What it must be.
    pub rule: String,
}

/// What was read: all that a handshake needs, and until when it is good.
#[derive(Debug, Clone)]
pub struct Identity {
    config: Arc<ServerConfig>,
    /// Section of the settings that names its files.
    pub section: &'static str,
    /// End of the certificate.
    pub not_after: SystemTime,
    /// Its file.
    pub cert_file: PathBuf,
}

impl Identity {
    /// Reads the files; nothing where the port is not encrypted.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn read(section: &'static str, settings: &AdminTlsSettings) -> Result<Option<Self>, Unusable> {
        let (Some(cert_file), Some(key_file)) = (&settings.cert_file, &settings.key_file) else {
            return Ok(None);
        };
        let (cert_key, key_key) = (format!("{section}.cert_file"), format!("{section}.key_file"));
        let chain = certificates(&cert_key, cert_file)?;
        let not_after = not_after(&chain[0]).ok_or_else(|| Unusable {
            key: cert_key,
            file: cert_file.clone(),
            rule: "must hold a certificate that can be read".to_owned(),
        })?;
        let key = private_key(&key_key, key_file)?;
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring implements the default protocol versions");
        let builder = match &settings.client_ca_file {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let ca_key = format!("{section}.client_ca_file");
                let roots = Arc::new(authorities(&ca_key, file)?);
                let provider = Arc::new(ring::default_provider());
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| Unusable {
                    key: ca_key,
                    file: file.clone(),
                    rule: error.to_string(),
                })?)
            }
        };
        let config = builder.with_single_cert(chain, key).map_err(|error| Unusable {
            key: key_key,
            file: key_file.clone(),
            rule: format!(
                "must be the key of the certificate in {}: {error}",
                cert_file.display()
            ),
        })?;
        Ok(Some(Self {
            config: Arc::new(config),
            section,
            not_after,
            cert_file: cert_file.clone(),
        }))
    }

    /// Days until the certificate ends, rounded down; negative when it has.
    pub fn days_left(&self, now: SystemTime) -> i64 {
        match self.not_after.duration_since(now) {
            Ok(left) => i64::try_from(left.as_secs()).unwrap_or(i64::MAX) / DAY_SECS,
            Err(over) => {
                -1 - i64::try_from(over.duration().as_secs()).unwrap_or(i64::MAX - DAY_SECS) / DAY_SECS
            }
        }
    }
}

/// What is in force. Clones share it.
#[derive(Clone)]
pub struct AdminTls {
    section: &'static str,
    settings: AdminTlsSettings,
    identity: Live<Identity>,
}

impl AdminTls {
    /// The admin port of these settings; nothing where it is not encrypted.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn new(settings: &AdminTlsSettings) -> Result<Option<Self>, Unusable> {
        Self::of("http.admin_tls", settings)
    }

    /// The port of links to approvals; nothing where it is not encrypted.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn of_approvals(settings: &ApprovalTlsSettings) -> Result<Option<Self>, Unusable> {
        let settings = AdminTlsSettings {
            cert_file: settings.cert_file.clone(),
            key_file: settings.key_file.clone(),
            client_ca_file: None,
        };
        Self::of("http.approval_tls", &settings)
    }

    fn of(section: &'static str, settings: &AdminTlsSettings) -> Result<Option<Self>, Unusable> {
        let identity = Identity::read(section, settings)?;
        Ok(identity.map(|identity| Self {
            section,
            settings: settings.clone(),
            identity: Live::new(identity),
        }))
    }

    /// For the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.identity.get().config))
    }

    /// What is in force.
    pub fn identity(&self) -> Arc<Identity> {
        self.identity.get()
    }

    /// Reads the files again. Reads the disk: not on an event loop.
    ///
    /// # Errors
    /// The first file that cannot be used, or that its certificate is over.
    pub fn read_again(&self) -> Result<Option<Identity>, Unusable> {
        match Identity::read(self.section, &self.settings)? {
            Some(read) if read.not_after <= SystemTime::now() => Err(Unusable {
                key: format!("{}.cert_file", self.section),
                file: read.cert_file,
                rule: OVER.to_owned(),
            }),
            read => Ok(read),
        }
    }

    /// Puts this in force for whoever connects from now on.
    pub fn exchange(&self, identity: Identity) {
        self.identity.set(identity);
    }
}

/// The certificate of a client, as the log tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// Who it is, as the certificate says.
    pub subject: String,
    /// The name of that: its one common name, or without one the whole subject.
    pub name: String,
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
}

impl Certified {
    /// Of a certificate that the handshake has verified.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let read = Certificate::from_der(certificate).map(|read| read.tbs_certificate.subject);
        let shown = |text: &str| {
            let seen = text.chars().filter(|c| !c.is_control());
            seen.take(MAX_SUBJECT_CHARS).collect::<String>()
        };
        let subject = shown(&read.as_ref().map(ToString::to_string).unwrap_or_default());
        let name = read.ok().and_then(|read| common_name(&read));
        Self {
            name: name.map_or_else(|| subject.clone(), |name| shown(&name)),
            subject,
            fingerprint: sha256(certificate),
        }
    }
}

/// The common name of a subject that has just one.
fn common_name(subject: &Name) -> Option<String> {
    let parts = subject.0.iter().flat_map(|part| part.0.iter());
    let mut names = parts.filter(|part| part.oid == COMMON_NAME);
    let (name, None) = (names.next()?, names.next()) else {
        return None;
    };
    let is_text = matches!(
        name.value.tag(),
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String
    );
    let text = str::from_utf8(name.value.value()).ok().filter(|_| is_text)?;
    // One that would have to be changed to be shown is nobody's name.
    (!text.chars().any(char::is_control)).then(|| text.to_owned())
}

/// What a command needs to ask an encrypted port: the authorities of the settings, or the public ones.
///
/// # Errors
/// The first file that cannot be used.
pub fn client_config(settings: &AdminClientSettings) -> Result<ClientConfig, Unusable> {
    let roots = match &settings.ca_file {
        Some(file) => authorities("http.admin_client.ca_file", file)?,
        None => RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring implements the default protocol versions")
        .with_root_certificates(roots);
    let (Some(cert_file), Some(key_file)) = (&settings.cert_file, &settings.key_file) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates("http.admin_client.cert_file", cert_file)?;
    let key = private_key("http.admin_client.key_file", key_file)?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| Unusable {
            key: "http.admin_client.key_file".to_owned(),
            file: key_file.clone(),
            rule: format!("must be the key of the certificate: {error}"),
        })
}

fn not_after(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let read = Certificate::from_der(certificate).ok()?;
    Some(read.tbs_certificate.validity.not_after.to_system_time())
}

fn authorities(key: &str, file: &Path) -> Result<RootCertStore, Unusable> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(key, file)? {
        roots.add(certificate).map_err(|_| Unusable {
            key: key.to_owned(),
            file: file.to_owned(),
            rule: "must hold usable certificates of authorities only, as PEM".to_owned(),
        })?;
    }
    Ok(roots)
}

/// At least one.
fn certificates(key: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let pem = pem(key, file)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match read {
        Ok(read) if !read.is_empty() => Ok(read),
        _ => Err(Unusable {
            key: key.to_owned(),
            file: file.to_owned(),
            rule: "must hold a certificate, as PEM".to_owned(),
        }),
    }
}

fn private_key(key: &str, file: &Path) -> Result<PrivateKeyDer<'static>, Unusable> {
    PrivateKeyDer::from_pem_slice(&pem(key, file)?).map_err(|_| Unusable {
        key: key.to_owned(),
        file: file.to_owned(),
        rule: "must hold a private key, as PEM".to_owned(),
    })
}

fn pem(key: &str, file: &Path) -> Result<Vec<u8>, Unusable> {
    let unusable = |rule: String| Unusable {
        key: key.to_owned(),
        file: file.to_owned(),
        rule,
    };
    let mut pem = Vec::new();
    File::open(file)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut pem))
        .map_err(|error| unusable(format!("must be a file that can be read: {error}")))?;
    if pem.len() as u64 > MAX_FILE_BYTES {
        return Err(unusable(format!("must have at most {MAX_FILE_BYTES} bytes")));
    }
    Ok(pem)
}

#[cfg(test)]
mod tests;
