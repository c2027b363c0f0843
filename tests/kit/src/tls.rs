//! Certificates for tests of encrypted connections, made on the spot and worth nothing elsewhere.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

use crate::TempDir;

/// An authority, a server certificate for `localhost` and 127.0.0.1, and a client certificate, as PEM files that go
/// away with this value.
#[derive(Debug)]
pub struct Certificates {
    dir: TempDir,
}

impl Certificates {
    /// Makes a new authority with both certificates.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn generate() -> Result<Self> {
        Self::good_until(4096)
    }

    /// As [`Self::generate`], with certificates that end with this year.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn good_until(year: i32) -> Result<Self> {
        let dir = TempDir::new("tls")?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        write(dir.path(), "ca.pem", &authority.pem())?;
        for (name, subjects) in [
            ("server", vec!["localhost".to_owned(), "127.0.0.1".to_owned()]),
            ("client", vec!["caf-worker-test".to_owned()]),
        ] {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(subjects)?;
            params.not_after = date_time_ymd(year, 12, 31);
            params
                .distinguished_name
                .push(DnType::CommonName, format!("caf {name}"));
            let certificate = params.signed_by(&key, &authority)?;
            write(dir.path(), &format!("{name}.pem"), &certificate.pem())?;
            write(dir.path(), &format!("{name}.key"), &key.serialize_pem())?;
        }
        Ok(Self { dir })
    }

    /// The authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The server's certificate and key.
    pub fn server(&self) -> (PathBuf, PathBuf) {
        self.pair("server")
    }

    /// The client's certificate and key.
    pub fn client(&self) -> (PathBuf, PathBuf) {
        self.pair("client")
    }

    fn pair(&self, name: &str) -> (PathBuf, PathBuf) {
        let file = |end: &str| self.dir.path().join(format!("{name}.{end}"));
        (file("pem"), file("key"))
    }
}

fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    std::fs::write(dir.join(name), text).with_context(|| format!("cannot write {name}"))
}
