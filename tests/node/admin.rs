//! Who gets through to the admin port, and what the log says of it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use caf_testkit::tls::Certificates;
use caf_testkit::wait::poll;
use caf_testkit::worker::{Finished, WorkerBuilder};
use caf_testkit::{TempDir, http};
use serde_json::Value;

use crate::support::{Node, SOON, program};

/// Files of a port that are exchanged while it is open.
struct Files(TempDir);

impl Files {
    fn of(certificates: &Certificates) -> Self {
        let files = Self(TempDir::new("admin").expect("makes"));
        files.exchange(certificates);
        files
    }

    fn exchange(&self, certificates: &Certificates) {
        let (cert, key) = certificates.server();
        for (from, to) in [(cert, "cert"), (key, "key"), (certificates.authority(), "ca")] {
            fs::copy(from, self.0.path().join(to)).expect("copies");
        }
    }

    fn settings(&self, worker: WorkerBuilder) -> WorkerBuilder {
        let named = |name: &str| self.0.path().join(name).display().to_string();
        worker
            .env("WORKER__HTTP__ADMIN_TLS__CERT_FILE", named("cert"))
            .env("WORKER__HTTP__ADMIN_TLS__KEY_FILE", named("key"))
            .env("WORKER__HTTP__ADMIN_TLS__CLIENT_CA_FILE", named("ca"))
    }
}

/// Runs `top` with what a client of these has.
fn top(port: u16, certificates: &Certificates, with_certificate: bool) -> Finished {
    let mut arguments = vec![
        "top".to_owned(),
        "--admin".to_owned(),
        format!("https://localhost:{port}"),
        "--ca-file".to_owned(),
        certificates.authority().display().to_string(),
        "--output".to_owned(),
        "json".to_owned(),
    ];
    if with_certificate {
        let (cert, key) = certificates.client();
        arguments.extend(["--cert".to_owned(), cert.display().to_string()]);
        arguments.extend(["--key".to_owned(), key.display().to_string()]);
    }
    program().args(arguments).run(SOON).expect("runs")
}

fn with_level(level: &str) -> String {
    format!("[log]\nlevel = \"{level}\"")
}

fn lines(node: &Node, message: &str) -> Vec<Value> {
    let lines = node.worker.logs().into_iter();
    lines.filter(|line| line["message"] == message).collect()
}

#[test]
fn only_who_shows_a_certificate_of_the_authority_is_answered_and_certificates_are_exchanged_while_it_runs() {
    let (first, second) = (
        Certificates::generate().expect("makes"),
        Certificates::generate().expect("makes"),
    );
    let files = Files::of(&first);
    let mut node =
        Node::start_with(|worker| files.settings(worker.file("config/worker.toml", with_level("info"))));
    let settings = node.worker.directory().join("config/worker.toml");
    let port = node.worker.admin_port().expect("is logged");
    let told = node
        .worker
        .wait_for_message("Admin certificate in force")
        .expect("is told");
    assert!(
        told["context"]["days_left"].as_i64().expect("is a number") > 30,
        "{told}"
    );

    let answered = top(port, &first, true);
    assert_eq!(answered.code(), Some(0), "{}", answered.stderr());
    assert!(answered.stdout().contains("\"worker\""));
    let audited = node.worker.wait_for_message("Admin request").expect("is told");
    let context = &audited["context"];
    assert_eq!(context["proven_by"], "certificate", "{audited}");
    assert!(
        context["certificate_subject"]
            .as_str()
            .expect("is told")
            .contains("CN=caf client"),
        "{audited}"
    );
    assert_eq!(
        context["certificate_sha256"].as_str().map(str::len),
        Some(64),
        "{audited}"
    );
    assert_eq!(context["path"], "/status", "{audited}");

    for (stranger, with_certificate) in [(&first, false), (&second, true)] {
        let refused = top(port, stranger, with_certificate);
        assert_eq!(refused.code(), Some(69), "{}", refused.stdout());
    }
    assert!(
        http::get(port, "/status").is_err(),
        "without encryption nobody is answered"
    );
    node.worker
        .wait_for_message("Admin connection refused")
        .expect("is told");

    // Half of a pair is refused, and all that was in force stays so, settings as well.
    fs::copy(second.server().1, files.0.path().join("key")).expect("copies");
    fs::write(&settings, with_level("debug")).expect("is written");
    node.worker.hang_up().expect("is sent");
    let refused = node
        .worker
        .wait_for_message("Admin certificate not exchanged")
        .expect("is told");
    let said = refused["context"]["error"].as_str().expect("says why");
    assert!(said.starts_with("http.admin_tls.key_file ("), "{said}");
    let refused = node
        .worker
        .wait_for_message("Settings not reloaded")
        .expect("is told");
    assert_eq!(refused["context"]["key"], "http.admin_tls.key_file", "{refused}");
    assert_eq!(top(port, &first, true).code(), Some(0));

    // And the other way round: beside settings that are wrong no certificate is exchanged.
    files.exchange(&second);
    fs::write(&settings, with_level("loud")).expect("is written");
    node.worker.hang_up().expect("is sent");
    poll(SOON, || {
        (lines(&node, "Settings not reloaded").len() == 2).then_some(())
    })
    .expect("is told");
    assert_eq!(top(port, &first, true).code(), Some(0));
    assert_eq!(lines(&node, "Settings reloaded"), Vec::<Value>::new());

    fs::write(&settings, with_level("info")).expect("is written");
    node.worker.hang_up().expect("is sent");
    poll(SOON, || {
        (top(port, &second, true).code() == Some(0)).then_some(())
    })
    .expect("the second certificate is in force");
    assert_eq!(top(port, &first, true).code(), Some(69));
    node.assert_alive();
}

#[test]
fn a_certificate_that_is_missing_ends_the_start_with_its_setting_and_one_that_is_over_is_an_error_in_the_log()
{
    let over = Certificates::good_until(2024).expect("makes");
    let files = Files::of(&over);
    let mut node = Node::start_with(|worker| files.settings(worker));
    let said = node
        .worker
        .wait_for_message("The admin port's certificate is over: clients refuse it")
        .expect("is told");
    assert_eq!(said["level"], "ERROR");
    assert_eq!(said["context"]["key"], "http.admin_tls.cert_file");
    let worker = files.settings(program().serve(&node.nats));
    let missing = "/no/such/file.pem";
    let refused = worker
        .env("WORKER__HTTP__ADMIN_TLS__CERT_FILE", missing)
        .run(SOON)
        .expect("runs");
    assert_eq!(refused.code(), Some(78));
    let expected = format!("http.admin_tls.cert_file ({missing}): must be a file that can be read");
    assert!(refused.stderr().contains(&expected), "{}", refused.stderr());
}

/// Sends this, and reads what comes until the other side ends.
fn say(port: u16, bytes: &[u8]) -> String {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    connection.set_read_timeout(Some(SOON)).expect("is a socket");
    let _ = connection.write_all(bytes);
    let mut answer = Vec::new();
    let _ = connection.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn what_is_slow_too_large_or_no_question_is_refused_with_its_status() {
    let certificates = Certificates::generate().expect("makes");
    let files = Files::of(&certificates);
    let mut node = Node::start();
    let port = node.worker.admin_port().expect("is logged");
    let slow = say(port, b"GET /status HTTP/1.1\r\nHost: localhost\r\n");
    assert!(slow.starts_with("HTTP/1.1 408 "), "{slow}");
    let head = format!(
        "GET /status HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "x".repeat(20_000)
    );
    let large = say(port, head.as_bytes());
    assert!(large.starts_with("HTTP/1.1 431 "), "{large}");
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
        let said = say(
            port,
            format!("{method} /status HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes(),
        );
        assert!(said.starts_with("HTTP/1.1 405 "), "{method}: {said}");
    }
    // Of an encrypted port: whoever does not shake hands holds no connection for long.
    let worker = node.another(|worker| files.settings(worker));
    let mut worker = worker;
    let port = worker.admin_port().expect("is logged");
    assert_eq!(say(port, b""), "");
    let told = worker
        .wait_for_log(|line| {
            line["message"] == "Admin connection refused"
                && line["context"]["reason"] == "the TLS handshake took too long"
        })
        .expect("is told");
    assert_eq!(told["level"], "INFO");
}

#[test]
fn who_guesses_tokens_has_to_wait_and_neither_guesses_nor_reading_fill_the_log() {
    let mut node = Node::start_with(|worker| worker.env("WORKER__HTTP__ADMIN_TOKEN", "right-one-of-them"));
    let port = node.worker.admin_port().expect("is logged");
    let ask = |token: &str| {
        let header = format!("Bearer {token}");
        let address = ([127, 0, 0, 1], port).into();
        let answer = http::request(
            address,
            "GET",
            "/status?tenant=hidden",
            &[("Authorization", &header)],
            b"",
        );
        answer.expect("answers")
    };
    for _ in 0..5 {
        assert_eq!(ask("right-one-of-them").status, 200);
    }
    let statuses: Vec<u16> = (0..30).map(|n| ask(&format!("guess-{n}")).status).collect();
    let refused = statuses.iter().filter(|status| **status == 401).count();
    // One in six seconds is forgiven.
    assert!((10..=15).contains(&refused), "{statuses:?}");
    let waits = ask("right-one-of-them");
    assert_eq!(
        waits.status, 429,
        "guessing tells nothing, not even of the right one"
    );
    assert!(waits.header("retry-after").is_some());
    poll(SOON, || (ask("right-one-of-them").status == 200).then_some(())).expect("it is forgiven");

    let (told, refusals) = (
        lines(&node, "Admin request"),
        lines(&node, "Admin request refused"),
    );
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["context"]["proven_by"], "token");
    assert_eq!(refusals.len(), 5, "{refusals:?}");
    let log = serde_json::to_string(&node.worker.logs()).expect("is JSON");
    for secret in ["right-one-of-them", "guess-", "hidden"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[test]
fn a_port_that_others_can_reach_warns_without_encryption_and_needs_no_token_with_certificates() {
    let certificates = Certificates::generate().expect("makes");
    let files = Files::of(&certificates);
    let mut node = Node::start_with(|worker| {
        worker
            .env("WORKER__HTTP__ADMIN_ADDR", "0.0.0.0:0")
            .env("WORKER__HTTP__ADMIN_TOKEN", "right-one-of-them")
    });
    let about = |line: &Value| {
        line["context"]["detail"]
            .as_str()
            .is_some_and(|detail| detail.starts_with("http.admin_addr can be reached"))
    };
    node.worker.wait_for_log(about).expect("is warned of");
    let mut worker = node.another(|worker| {
        files
            .settings(worker)
            .env("WORKER__HTTP__ADMIN_ADDR", "0.0.0.0:0")
    });
    let port = worker.admin_port().expect("is logged");
    assert_eq!(top(port, &certificates, true).code(), Some(0));
    assert!(!worker.logs().iter().any(about));
}
