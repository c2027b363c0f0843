//! Secrets in a node as a process: planted everywhere, used by jobs that succeed and fail, and then looked for wherever the
//! node writes. Who is not given one, what a reload changes, and what operators hear.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use caf_testkit::nats::NatsAuth;
use caf_testkit::otlp::OtlpReceiver;
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, NatsOptions, TempDir, http};
use serde_json::{Value, json};

use crate::support::{Node, SOON, program};

#[path = "secrets/hostile.rs"]
mod hostile;
use hostile::Hostile;

/// A value with every sign that some encoding changes.
const API: &str = "api%2F\"k3y\"\\u0041/+&=<planted>~1";
const BODY: &str = "b0dy-planted-in-a-file-2";
const FROM_ENV: &str = "env-planted-value-3/4";
const OTHER: &str = "other-tenants-planted-5";
const NATS: &str = "nats-planted-password-6";
const ADMIN: &str = "admin-planted-token-7";
const OTEL: &str = "otel-planted-key-8";
const SQL: &str = "sql-planted-password-9";

/// All that is planted.
const PLANTED: [&str; 8] = [API, BODY, FROM_ENV, OTHER, NATS, ADMIN, OTEL, SQL];

/// The settings of the section, with the hosts that they are for.
fn named(origin: &str) -> String {
    format!(
        r#"
[secrets.api]
value = '{API}'
tenants = ["acme"]
block_types = ["http.request"]
destinations = ["{origin}"]
[secrets.body]
file = "body.secret"
tenants = ["*"]
block_types = ["http.request"]
destinations = ["{origin}"]
[secrets.from-env]
env = "PLANTED"
tenants = ["acme"]
block_types = ["http.request"]
destinations = ["{origin}"]
[secrets.other]
value = "{OTHER}"
tenants = ["other"]
block_types = ["http.request"]
destinations = ["{origin}"]
[secrets.sql]
value = "{SQL}"
tenants = ["acme"]
block_types = ["sql.query"]
destinations = ["sql:main"]
"#
    )
}

/// A worker with everything planted, whose log goes to a file at the finest level.
fn planted(worker: WorkerBuilder, origin: &str, files: &TempDir, otlp: &OtlpReceiver) -> WorkerBuilder {
    let file = |name: &str, text: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, format!("{text}\n")).expect("is written");
        path.display().to_string()
    };
    let sql =
        "[blocks.sql.connections.main]\nurl = \"postgres://app@127.0.0.1:1/db\"\npassword_secret = \"sql\"\n";
    worker
        .file("config/worker.toml", format!("{}{sql}", named(origin)))
        .file("body.secret", format!("{BODY}\n"))
        .env("PLANTED", FROM_ENV)
        .env("WORKER__NATS__USER", "worker")
        .env("WORKER__NATS__PASSWORD_FILE", file("nats", NATS))
        .env("WORKER__HTTP__ADMIN_TOKEN_FILE", file("admin", ADMIN))
        .env(
            "OTEL_EXPORTER_OTLP_HEADERS_FILE",
            file("otel", &format!("x-api-key={OTEL}")),
        )
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.url())
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .env("OTEL_BSP_SCHEDULE_DELAY", "20")
        .env("CP2_OBSERVABILITY_TRACING_ENABLED", "true")
        .env("CP2_OBSERVABILITY_METRICS_ENABLED", "true")
        .env("WORKER__BLOCKS__HTTP__ALLOW_TARGETS", "127.0.0.0/8")
        .env("LOG_LEVEL", "debug")
        .env("WORKER__LOG__DEPENDENCIES", "debug")
}

fn guarded_broker() -> NatsOptions {
    NatsOptions {
        auth: NatsAuth::User {
            user: "worker".to_owned(),
            password: NATS.to_owned(),
        },
        ..NatsOptions::jetstream()
    }
}

fn secret(name: &str) -> Value {
    json!({"$secret": name})
}

fn bearer(name: &str) -> Value {
    json!({"$secret": name, "prefix": "Bearer "})
}

fn call(method: &str, url: String, headers: Value, body: Value) -> AssignmentBuilder {
    let inputs = json!({"method": method, "url": url, "headers": headers, "body": body});
    AssignmentBuilder::new("http.request", inputs).max_attempts(1)
}

/// The one result of a job that was answered.
fn result_of(node: &Node, job: &AssignmentBuilder) -> Value {
    let results = node.answers().results(job.assignment_id());
    assert_eq!(results.len(), 1, "{results:?}");
    results[0].clone()
}

/// Ways in which a value may be written, beside those that the scrubber's own tests know.
fn forms(value: &str) -> Vec<String> {
    let quoted = Value::from(value).to_string();
    let quoted = quoted[1..quoted.len() - 1].to_owned();
    let hex: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
    let percent: String = value.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let twice = Value::from(quoted.as_str()).to_string();
    // Where it begins in what was encoded, without the signs at its ends.
    let inner = (0..3).map(|offset| {
        let whole = BASE64_STANDARD.encode(format!("{}{value}", &"xxx"[..offset]));
        whole[4..whole.len() - 4].to_owned()
    });
    let all = [
        value.to_owned(),
        quoted,
        twice[1..twice.len() - 1].to_owned(),
        hex,
        percent,
    ];
    all.into_iter().chain(inner).collect()
}

#[track_caller]
fn assert_clean(place: &str, text: &str) {
    let lower = text.to_lowercase();
    for value in PLANTED {
        for form in forms(value) {
            let at = lower.find(&form.to_lowercase());
            assert_eq!(
                at,
                None,
                "{place} holds {value} as {form}: {}",
                around(text, at.unwrap_or(0))
            );
        }
    }
}

fn around(text: &str, at: usize) -> String {
    text.chars().skip(at.saturating_sub(200)).take(600).collect()
}

/// Every file below a directory, but for the settings that were put there.
fn files_below(directory: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("can be read").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            found.extend(files_below(&path));
        } else if name != "worker.toml" && name != "body.secret" {
            let bytes = std::fs::read(&path).unwrap_or_default();
            found.push((
                path.display().to_string(),
                String::from_utf8_lossy(&bytes).into_owned(),
            ));
        }
    }
    found
}

/// Looks at all that the worker has written, said and sent.
fn assert_nothing_leaked(node: &mut Node, otlp: &OtlpReceiver, jobs: &[AssignmentBuilder]) {
    let streams = node
        .client
        .jetstream_api("STREAM.NAMES", &json!({}))
        .expect("answers");
    let names: BTreeSet<&str> = streams["streams"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    assert!(names.iter().any(|name| name.starts_with("KV_")), "{names:?}");
    for name in names {
        for message in node.client.stream_messages(name).expect("can be read") {
            let payload = String::from_utf8_lossy(&message.payload);
            assert_clean(
                &format!("stream {name}"),
                &format!("{payload} {:?}", message.headers),
            );
        }
    }
    for (path, text) in files_below(node.worker.directory()) {
        assert_clean(&path, &text);
    }
    let admin = ([127, 0, 0, 1], node.worker.admin_port().expect("is told")).into();
    let token = format!("Bearer {ADMIN}");
    let ask = |path: &str| {
        let answer = http::request(admin, "GET", path, &[("Authorization", &token)], b"").expect("answers");
        assert_ne!(answer.status, 401, "the token of the file is the one");
        answer.text()
    };
    assert_clean("/status", &ask("/status"));
    for job in jobs {
        assert_clean("/explain", &ask(&format!("/explain/{}", job.assignment_id())));
    }
    let metrics = http::get(node.worker.metrics_port().expect("is told"), "/metrics").expect("answers");
    assert_clean("/metrics", &metrics.text());
    assert!(!otlp.spans().is_empty());
    assert_clean("spans", &format!("{:?}", otlp.spans()));
    for line in node.worker.lines() {
        assert_clean("output", &line.text);
    }
}

#[test]
fn what_is_planted_is_used_and_is_nowhere_to_be_found() {
    let server = Hostile::start();
    let elsewhere = Hostile::start();
    let otlp = OtlpReceiver::start().expect("starts");
    let files = TempDir::new("planted").expect("can be made");
    let mut node = Node::beside(guarded_broker(), |worker| {
        planted(worker, &server.url(""), &files, &otlp)
    });

    let headers = json!({"Authorization": bearer("api"), "x-body": secret("body")});
    let mut jobs = Vec::new();
    for path in [
        "/plain",
        "/encodings",
        "/binary",
        "/chunked",
        "/fail",
        "/break",
        "/status-text",
    ] {
        jobs.push(call("POST", server.url(path), headers.clone(), json!("x")));
    }
    // As the text of an object, as a body, inside of one, and from a variable.
    let text = json!({"X-Env": secret("from-env")}).to_string();
    let body = json!({"a": [{"b": secret("api")}, 1], "c": bearer("body")});
    jobs.push(call("POST", server.url("/plain"), json!(text), body.clone()));
    jobs.push(call("PUT", server.url("/encodings"), json!({}), secret("body")));
    let to = |code: u16, url: String| server.url(&format!("/redirect/{code}?{url}"));
    jobs.push(call(
        "GET",
        to(302, elsewhere.url("/plain")),
        headers.clone(),
        Value::Null,
    ));
    jobs.push(call(
        "POST",
        to(303, elsewhere.url("/plain")),
        headers.clone(),
        body.clone(),
    ));
    jobs.push(call(
        "POST",
        to(307, server.url("/plain")),
        headers.clone(),
        body.clone(),
    ));
    let denied = call("POST", to(307, elsewhere.url("/plain")), headers.clone(), body);
    jobs.push(denied.clone());
    jobs.push(call("GET", server.url("/hang"), headers, Value::Null).deadline_ms(700));
    let sql = AssignmentBuilder::new("sql.query", json!({"connection": "main", "query": "SELECT 1"}))
        .max_attempts(1);
    jobs.push(sql.clone());
    // A tenant that quotes what it should not know.
    let quoted = json!({"message": format!("it was {NATS} and {API}")});
    let quoting = AssignmentBuilder::new("fail", quoted).max_attempts(1);
    node.client.assign_all(&jobs).expect("are sent");
    node.wait_answered(&jobs, SOON);

    let of = |number: usize| result_of(&node, &jobs[number]);
    for number in [0, 1, 2, 3, 7, 8] {
        let result = of(number);
        assert_eq!(result["status"], "success", "{result}");
        let outputs = &result["outputs"];
        let binary = outputs["encoding"]
            .as_str()
            .map(|_| BASE64_STANDARD.decode(outputs["body"].as_str().unwrap_or_default()));
        let binary = binary.map(|bytes| String::from_utf8_lossy(&bytes.expect("is base64")).into_owned());
        let said = binary.unwrap_or_else(|| outputs.to_string());
        assert!(said.contains("[REDACTED]"), "{said}");
    }
    assert_eq!(
        of(9)["outputs"]["body"],
        "authorization: none, x-body: none, x-env: none, body: "
    );
    assert_eq!(of(11)["status"], "success", "its own origin");
    let refused = of(12);
    assert_eq!(refused["error"]["code"], "PERMISSION_DENIED", "{refused}");
    assert_eq!(of(13)["status"], "timeout");
    assert_eq!(
        of(14)["error"]["code"],
        "NETWORK_ERROR",
        "it got as far as the server: {}",
        of(14)
    );

    // The values did arrive where they are for, and nowhere else.
    let seen = server.seen();
    assert!(
        seen.iter()
            .any(|request| request.contains(&format!("authorization: Bearer {API}")))
    );
    assert!(
        seen.iter()
            .any(|request| request.contains(&format!("x-env: {FROM_ENV}")))
    );
    let sent = json!({"a": [{"b": API}, 1], "c": format!("Bearer {BODY}")}).to_string();
    assert!(seen.iter().any(|request| request.ends_with(&sent)), "{seen:?}");
    assert!(
        seen.iter()
            .any(|request| request.ends_with(&format!("\n\n{BODY}")))
    );
    assert_clean("what another server was sent", &elsewhere.seen().join("\n"));

    assert_nothing_leaked(&mut node, &otlp, &jobs);
    // What a tenant says itself is answered to it; it is in no line all the same.
    node.client
        .assign_all(std::slice::from_ref(&quoting))
        .expect("is sent");
    node.wait_answered(std::slice::from_ref(&quoting), SOON);
    let metrics = http::get(node.worker.metrics_port().expect("is told"), "/metrics").expect("answers");
    assert!(
        metrics
            .text()
            .contains("worker_secret_uses_total{outcome=\"used\"} "),
        "{}",
        metrics.text()
    );
    node.worker.terminate().expect("is told");
    let finished = node.worker.finish(SOON).expect("ends");
    let log = format!("{}\n{}", finished.stdout(), finished.stderr());
    assert!(
        log.contains("Secret used") && log.contains("\"name\":\"from-env\""),
        "uses are told"
    );
    assert_clean("the log", &log);
}

#[test]
fn a_secret_that_is_not_for_a_job_is_refused_with_one_answer_and_sent_nowhere() {
    let server = Hostile::start();
    let otlp = OtlpReceiver::start().expect("starts");
    let files = TempDir::new("planted").expect("can be made");
    let node = Node::beside(guarded_broker(), |worker| {
        planted(worker, &server.url(""), &files, &otlp)
    });
    let url = || server.url("/plain");
    let header = |reference: Value| call("GET", url(), json!({"a": reference}), Value::Null);
    let other_port = server.url("/plain").replace("127.0.0.1", "localhost");

    // Unknown, another tenant's, another block's, another destination's: nobody can tell one from the other.
    let alike = [
        header(secret("no-such-secret")),
        header(secret("other")),
        header(secret("sql")),
        call("GET", other_port, json!({"a": secret("api")}), Value::Null),
        header(secret("api")).tenant("other"),
    ];
    // Where none is resolved.
    let elsewhere = [
        AssignmentBuilder::new("echo", json!({"x": [{"y": {"$secret": "api"}}]})),
        AssignmentBuilder::new("echo", json!({"x": {"$secret": 1, "more": 2}})),
        AssignmentBuilder::new("echo", secret("api")),
        AssignmentBuilder::new("http.request", json!({"method": "GET", "url": secret("api")})),
        AssignmentBuilder::new("http.request", json!({"method": secret("api"), "url": url()})),
        AssignmentBuilder::new(
            "http.request",
            json!({"method": "GET", "url": url(), "headers": secret("api")}),
        ),
        AssignmentBuilder::new(
            "http.request",
            json!({"method": "GET", "url": url(), "body_base64": secret("api")}),
        ),
        AssignmentBuilder::new("fs.blob_put", json!({"path": "data/x", "content": secret("api")})),
        AssignmentBuilder::new(
            "sql.query",
            json!({"query": "SELECT ?", "params": [secret("api")]}),
        ),
        AssignmentBuilder::new(
            "sql.query",
            json!({"query": "SELECT ?", "params": "[{\"$secret\":\"api\"}]"}),
        ),
        AssignmentBuilder::new("sql.query", json!({"query": secret("api")})),
        AssignmentBuilder::new(
            "sql.query",
            json!({"query": "SELECT 1", "connection": secret("sql")}),
        ),
        AssignmentBuilder::echo().set("metadata", json!({"a": secret("api")})),
        AssignmentBuilder::echo().set("job", json!({"type": "echo", "payload_ref": secret("api")})),
    ];
    let malformed = [
        header(json!({"$secret": 1})),
        header(json!({"$secret": "api", "format": "x"})),
        header(json!({"$secret": "a b"})),
        call("POST", url(), json!({}), json!([{"$secret": null}])),
    ];
    let all = [alike.to_vec(), elsewhere.to_vec(), malformed.to_vec()].concat();
    node.client.assign_all(&all).expect("are sent");
    node.wait_answered(&all, SOON);

    let error = |job: &AssignmentBuilder| {
        let result = result_of(&node, job);
        assert_eq!(result["status"], "error", "{result}");
        result["error"].clone()
    };
    let first = error(&alike[0]);
    assert_eq!(first["code"], "PERMISSION_DENIED");
    for job in &alike {
        assert_eq!(error(job), first, "{}", job.value());
    }
    for job in &elsewhere {
        assert_eq!(error(job)["code"], "PERMISSION_DENIED", "{}", job.value());
        let acks = node.answers().acks(job.assignment_id());
        assert_eq!(
            acks[0]["status"],
            "rejected",
            "it is refused before it runs: {}",
            job.value()
        );
    }
    for job in &malformed {
        assert_eq!(error(job)["code"], "INVALID_INPUT", "{}", job.value());
    }
    assert_eq!(server.seen(), Vec::<String>::new(), "nothing was sent");
    let told: BTreeSet<String> = node
        .worker
        .logs()
        .iter()
        .filter(|log| log["message"] == "Secret denied")
        .map(|log| {
            format!(
                "{} {}",
                log["context"]["name"].as_str().unwrap_or("?"),
                log["context"]["reason"]
            )
        })
        .collect();
    let expected = [
        "(unknown) \"unknown\"",
        "api \"destination\"",
        "api \"tenant\"",
        "other \"tenant\"",
        "sql \"block_type\"",
    ];
    assert_eq!(
        told.iter().map(String::as_str).collect::<Vec<_>>(),
        expected,
        "operators hear why"
    );
}

#[test]
fn a_file_that_changed_is_read_at_a_sighup_and_a_broken_one_changes_nothing() {
    let server = Hostile::start();
    let mut node = Node::start_with(|worker| {
        let settings = named(&server.url("")).replace("[secrets.sql]", "[secrets.unused]");
        let settings = settings.replace("\"sql:main\"", "\"h.example\"").replace(
            "[secrets.from-env]\nenv = \"PLANTED\"",
            "[secrets.from-env]\nvalue = \"unused-unused\"",
        );
        worker
            .file("config/worker.toml", settings)
            .file("body.secret", "first-value-of-it\n")
            .env("WORKER__BLOCKS__HTTP__ALLOW_TARGETS", "127.0.0.0/8")
    });
    let path = node.worker.directory().join("body.secret");
    let sent = |node: &mut Node| {
        let job = [call(
            "GET",
            server.url("/plain"),
            json!({"x-body": secret("body")}),
            Value::Null,
        )];
        node.client.assign_all(&job).expect("is sent");
        node.wait_answered(&job, SOON);
        assert_eq!(result_of(node, &job[0])["status"], "success");
        server.seen().last().cloned().unwrap_or_default()
    };
    assert!(sent(&mut node).contains("x-body: first-value-of-it"));

    std::fs::write(&path, "second-value-of-it").expect("is written");
    node.worker.hang_up().expect("is told");
    let applied = node
        .worker
        .wait_for_message("Settings reloaded")
        .expect("is said");
    assert_eq!(applied["context"]["need_restart"], 0, "{applied}");
    assert!(sent(&mut node).contains("x-body: second-value-of-it"));

    std::fs::write(&path, "short").expect("is written");
    node.worker.hang_up().expect("is told");
    let refused = node
        .worker
        .wait_for_message("Settings not reloaded")
        .expect("is said");
    assert!(
        refused["context"]["rule"]
            .as_str()
            .is_some_and(|rule| rule.contains("8 to 8192")),
        "{refused}"
    );
    assert!(sent(&mut node).contains("x-body: second-value-of-it"));
    for line in node.worker.lines() {
        assert!(
            !line.text.contains("-value-of-it") && !line.text.contains("short\""),
            "{}",
            line.text
        );
    }
}

#[test]
fn the_command_line_shows_where_secrets_come_from_and_never_what_they_are() {
    let dir = TempDir::new("shown").expect("can be made");
    let otlp = OtlpReceiver::start().expect("starts");
    let run = |arguments: &[&str], input: &str| {
        let worker = planted(program(), "https://h.example", &dir, &otlp);
        worker.args(arguments).stdin(input).run(SOON).expect("ends")
    };
    let shown = run(&["config", "show"], "");
    assert_eq!(shown.code(), Some(0), "{}", shown.stderr());
    let file = dir.path().join("nats").display().to_string();
    for line in [
        format!("nats.password = \"[REDACTED]\"  # file {file} (env WORKER__NATS__PASSWORD_FILE)"),
        "secrets.body.value = \"[REDACTED]\"  # file body.secret (file config/worker.toml); SIGHUP reloads"
            .to_owned(),
        "secrets.from-env.value = \"[REDACTED]\"  # env PLANTED; SIGHUP reloads".to_owned(),
        "secrets.api.tenants = [\"acme\"]  # file config/worker.toml; SIGHUP reloads".to_owned(),
    ] {
        assert!(shown.stdout().contains(&line), "{line}\n{}", shown.stdout());
    }
    assert_clean("config show", &shown.stdout());
    let job = call(
        "POST",
        "https://h.example/x".to_owned(),
        json!({"a": bearer("api")}),
        secret("body"),
    );
    let dry = run(&["exec", "--dry-run", "-"], &job.value().to_string());
    assert_eq!(dry.code(), Some(0), "{}", dry.stderr());
    assert_clean("dry run", &format!("{}{}", dry.stdout(), dry.stderr()));
    // Others may read the files that the test has made.
    let checked = run(&["config", "check"], "");
    assert!(
        checked.stderr().contains("every user of this host may read it")
            || checked.stdout().contains("every user of this host may read it"),
        "{} {}",
        checked.stdout(),
        checked.stderr()
    );
    assert_clean(
        "config check",
        &format!("{}{}", checked.stdout(), checked.stderr()),
    );
    std::io::stdout().flush().expect("can be");
}
