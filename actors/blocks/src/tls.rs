//! Whom the blocks trust when they encrypt a connection: the public authorities, and those of a file that the settings
//! name. There is no way to encrypt without checking the other side's certificate.
//!
//! Neighbours: `http` and `sql` make their configuration here. Files are read once, when the blocks are built.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// Largest file of authorities in bytes; all public ones together have a quarter of it.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The public authorities.
pub(crate) fn public_roots() -> RootCertStore {
    RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned())
}

/// Adds the certificates of a PEM file. The error is the rule that the file breaks.
pub(crate) fn add_file(roots: &mut RootCertStore, file: &Path) -> Result<(), String> {
    let mut pem = Vec::new();
    File::open(file)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut pem))
        .map_err(|error| format!("must be a file that can be read: {error}"))?;
    if pem.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("must have at most {MAX_FILE_BYTES} bytes"));
    }
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let unusable = "must hold usable certificates of authorities only, as PEM";
        let certificate = certificate.map_err(|_| unusable)?;
        roots.add(certificate).map_err(|_| unusable)?;
        count += 1;
    }
    if count == 0 {
        return Err("must hold a certificate of an authority, as PEM".to_owned());
    }
    Ok(())
}

/// Trusts these authorities to vouch for a name.
pub(crate) fn client_config(roots: RootCertStore) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring implements the default protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Trusts whoever has a certificate of these authorities, whatever its name. The error is the rule that they break.
pub(crate) fn client_config_for_any_name(roots: RootCertStore) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let roots = Arc::new(roots);
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
        .build()
        .map_err(|error| error.to_string())?;
    let verifier = AnyName {
        roots,
        inner,
        provider: Arc::clone(&provider),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring implements the default protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(config)
}

/// Checks all of a certificate but its name.
#[derive(Debug)]
struct AnyName {
    roots: Arc<RootCertStore>,
    inner: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caf_testkit::TempDir;

    #[test]
    fn a_file_of_authorities_is_read_whole_or_refused_with_its_rule() {
        let dir = TempDir::new("ca").expect("creates");
        let path = dir.path().join("ca.pem");
        let add = |text: &str| {
            std::fs::write(&path, text).expect("writes");
            let mut roots = RootCertStore::empty();
            add_file(&mut roots, &path).map(|()| roots.len())
        };
        let pem = || {
            let made = rcgen::generate_simple_self_signed(["x".to_owned()]).expect("makes");
            made.cert.pem()
        };
        assert_eq!(add(&format!("first\n{}between\n{}", pem(), pem())), Ok(2));
        for (text, rule) in [
            (String::new(), "must hold a certificate"),
            ("no certificate".to_owned(), "must hold a certificate"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
                "must hold usable",
            ),
            (
                format!("{}-----BEGIN CERTIFICATE-----\nAAAA\n", pem()),
                "must hold usable",
            ),
            ("x".repeat(1 << 21), "must have at most"),
        ] {
            let refused = add(&text).expect_err(rule);
            assert!(refused.starts_with(rule), "{refused}");
        }
        std::fs::remove_file(&path).expect("removes");
        let missing = add_file(&mut RootCertStore::empty(), &path).expect_err("is missing");
        assert!(
            missing.starts_with("must be a file that can be read"),
            "{missing}"
        );
    }
}
