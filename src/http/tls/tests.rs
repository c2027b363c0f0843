use caf_testkit::TempDir;
use caf_testkit::tls::Certificates;

use super::*;

fn settings(certificates: &Certificates) -> AdminTlsSettings {
    let (cert, key) = certificates.server();
    AdminTlsSettings {
        cert_file: Some(cert),
        key_file: Some(key),
        client_ca_file: Some(certificates.authority()),
    }
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_its_setting() {
    let (ours, others) = (
        Certificates::generate().expect("makes"),
        Certificates::generate().expect("makes"),
    );
    let dir = TempDir::new("admin-tls").expect("makes");
    let (missing, empty) = (dir.path().join("missing.pem"), dir.path().join("empty.pem"));
    std::fs::write(&empty, "nothing").expect("writes");
    let good = settings(&ours);
    assert!(
        Identity::read("http.admin_tls", &good)
            .expect("is read")
            .is_some()
    );
    assert!(
        Identity::read("http.admin_tls", &AdminTlsSettings::default())
            .expect("nothing to read")
            .is_none()
    );
    let with = |change: &dyn Fn(&mut AdminTlsSettings)| {
        let mut settings = good.clone();
        change(&mut settings);
        Identity::read("http.admin_tls", &settings)
            .expect_err("cannot be used")
            .to_string()
    };
    for (said, key, file, rule) in [
        (
            with(&|s| s.cert_file = Some(missing.clone())),
            "cert_file",
            &missing,
            "must be a file",
        ),
        (
            with(&|s| s.cert_file = Some(empty.clone())),
            "cert_file",
            &empty,
            "must hold a certificate",
        ),
        (
            with(&|s| s.key_file = Some(empty.clone())),
            "key_file",
            &empty,
            "must hold a private key",
        ),
        (
            with(&|s| s.key_file = Some(others.server().1)),
            "key_file",
            &others.server().1,
            "must be the key",
        ),
        (
            with(&|s| s.client_ca_file = Some(empty.clone())),
            "client_ca_file",
            &empty,
            "must hold",
        ),
    ] {
        let begins = format!("http.admin_tls.{key} ({}): {rule}", file.display());
        assert!(said.starts_with(&begins), "{said}");
    }
}

#[test]
fn the_days_of_a_certificate_are_counted_and_one_that_is_over_is_not_put_in_force() {
    let ends = |year: i32| {
        let certificates = Certificates::good_until(year).expect("makes");
        let tls = AdminTls::new(&settings(&certificates))
            .expect("is read")
            .expect("is on");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        (
            tls.identity().days_left(now),
            tls.read_again().map(|read| read.is_some()),
        )
    };
    // 2026-01-01, and certificates until the beginning of a 31st of December.
    let (days, again) = ends(2024);
    assert_eq!(days, -367);
    let said = again.expect_err("is over").to_string();
    assert!(
        said.contains(OVER) && said.starts_with("http.admin_tls.cert_file"),
        "{said}"
    );
    let (days, again) = ends(4000);
    assert!(days > 700_000, "{days}");
    assert_eq!(again, Ok(true));
}

#[test]
fn a_client_is_told_by_subject_and_fingerprint() {
    let certificates = Certificates::generate().expect("makes");
    let pem = std::fs::read(certificates.client().0).expect("is there");
    let certificate = CertificateDer::from_pem_slice(&pem).expect("is one");
    let certified = Certified::of(&certificate);
    assert!(
        certified.subject.contains("CN=caf client"),
        "{}",
        certified.subject
    );
    assert_eq!(certified.name, "caf client");
    assert_eq!(certified.fingerprint, sha256(&certificate));
    let nonsense = Certified::of(&CertificateDer::from(vec![1, 2, 3]));
    assert_eq!(nonsense.subject, "");
}
