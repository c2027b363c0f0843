//! Whom the node trusts when it asks a server over TLS: the public authorities, and those of a file that the settings name.
//!
//! Neighbours: the exporter of traces and the client of the policy store. The broker's and the blocks' clients have rules of
//! their own.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Trusts the public authorities, and those of the file; `key` is the setting that names it.
///
/// # Errors
/// When the file cannot be read, or holds no certificate that can be used.
pub fn client_config(ca_file: Option<&Path>, key: &str) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    if let Some(file) = ca_file {
        let unusable = |why: String| io::Error::other(format!("{key}: {}: {why}", file.display()));
        let pem = fs::read(file).map_err(|error| unusable(error.to_string()))?;
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| unusable(error.to_string()))?;
        }
        if roots.len() == before {
            return Err(unusable("holds no certificate".to_owned()));
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
