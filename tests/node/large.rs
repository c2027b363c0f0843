//! What fits no message: inputs that are fetched from where a reference says, and the buckets that keep outputs.
//!
//! Neighbours: `tests/pipeline/references.rs` shows attempts, deadline and shutdown with a scripted fetcher.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use caf_actors::answers::{Answers, wire_bytes};
use caf_actors::events::Log;
use caf_actors::nats::connection::{Connection, connect};
use caf_actors::nats::objects::ObjectOutputs;
use caf_actors::nats::sink::NatsSink;
use caf_actors::nats::streams::AnswerStreams;
use caf_actors::settings::{NatsSettings, SubjectSettings};
use caf_actors::sink::{PublishError, Published, Sink};
use caf_actors::spill::{OutputObject, OutputStore, StoreError};
use caf_protocol::assignment::Identity;
use caf_protocol::ids::{AssignmentKey, sha256_hex};
use caf_protocol::outcome::{Outcome, StepResult};
use caf_testkit::client::RESULT;
use caf_testkit::{AssignmentBuilder, Client, NatsOptions, NatsServer};
use serde_json::{Value, json};

use crate::support::{ANSWER_SUBJECTS, Node, SOON, assert_each_answered_once, jobs, program};

/// Most bytes of referenced inputs in these tests.
const LIMIT: usize = 1_000;
/// A bucket that jobs may read.
const BUCKET: &str = "inputs";

/// A job of this type with its inputs elsewhere; keys of `more` go into the job as well.
fn referring(job_type: &str, reference: &str, more: &Value) -> AssignmentBuilder {
    let mut job = json!({"type": job_type, "payload_ref": reference});
    for (key, value) in more.as_object().into_iter().flatten() {
        job[key] = value.clone();
    }
    AssignmentBuilder::echo().set("job", job)
}

/// A JSON object of exactly this many bytes.
fn inputs_of(bytes: usize) -> String {
    let text = format!("{{\"x\":\"{}\"}}", "x".repeat(bytes - 8));
    assert_eq!(text.len(), bytes);
    text
}

/// An HTTP server on a thread of its own; ends on drop.
struct WebServer {
    port: u16,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl WebServer {
    fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
        let port = listener.local_addr().expect("is bound").port();
        let ends = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            // Those that are kept waiting wait until the end.
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                if is_over.load(SeqCst) {
                    return;
                }
                kept.extend(stream.ok().and_then(|stream| answer(stream, port)));
            }
        });
        Self {
            port,
            ends,
            thread: Some(thread),
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.ends.store(true, SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Answers one request; returns the connection when its other end is to be kept waiting.
fn answer(mut stream: TcpStream, port: u16) -> Option<TcpStream> {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(read @ 1..) => request.extend_from_slice(&buffer[..read]),
            _ => return None,
        }
    }
    let path = String::from_utf8_lossy(&request);
    let path = path.split_whitespace().nth(1).unwrap_or_default();
    let (status, headers, body) = match path {
        "/good" => ("200 OK", String::new(), "{\"from\":\"http\"}".to_owned()),
        "/moved" => (
            "302 Found",
            format!("Location: http://127.0.0.1:{port}/good\r\n"),
            String::new(),
        ),
        "/away" => (
            "302 Found",
            "Location: http://127.0.0.2:9/\r\n".to_owned(),
            String::new(),
        ),
        "/large" => ("200 OK", String::new(), inputs_of(LIMIT + 1)),
        "/broken" => ("500 Internal Server Error", String::new(), "{}".to_owned()),
        "/slow" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{");
            return Some(stream);
        }
        _ => ("404 Not Found", String::new(), String::new()),
    };
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n");
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
    None
}

/// A node whose jobs may reach `web`, with files under its root `data` and a link out of it.
fn start(web: &WebServer) -> Node {
    let node = Node::start_with(|worker| {
        worker
            .env("WORKER__LIMITS__MAX_PAYLOAD_REF_BYTES", LIMIT)
            .env(
                "WORKER__BLOCKS__HTTP__ALLOW_TARGETS",
                format!("127.0.0.1:{}", web.port),
            )
            .file("data/in/good one.json", "{\"from\":\"file\"}")
            .file("data/query.json", "{\"query\":\"SELECT 41 + 1 AS answer\"}")
            .file("data/exact.json", inputs_of(LIMIT))
            .file("data/large.json", inputs_of(LIMIT + 1))
            .file("secret.json", "{\"from\":\"outside\"}")
    });
    let root = node.worker.directory().join("data");
    std::os::unix::fs::symlink("../secret.json", root.join("link.json")).expect("is made");
    node
}

#[test]
fn inputs_are_fetched_from_objects_files_and_addresses_and_the_job_runs_with_them() {
    let web = WebServer::start();
    let node = start(&web);
    let object = |key: &str, text: &str| {
        node.client.put_object(BUCKET, key, text).expect("is stored");
    };
    object("a/good one", "{\"from\":\"object\"}");
    object("query", "{\"query\":\"SELECT 'object' AS answer\"}");
    object("exact", &inputs_of(LIMIT));
    let path = node.worker.directory().join("data/in/good%20one.json");
    let absolute = format!("file://{}", path.display());
    let hash = json!({"payload_sha256": sha256_hex(b"{\"from\":\"object\"}")});
    let beside = json!({"payload": {"from": "the message"}});
    let nothing = json!({});
    let exact: Value = serde_json::from_str(&inputs_of(LIMIT)).expect("is JSON");
    let load = [
        (
            "echo",
            "nats-obj://inputs/a/good%20one",
            &nothing,
            json!({"from": "object"}),
        ),
        (
            "echo",
            "nats-obj://inputs/a/good%20one",
            &hash,
            json!({"from": "object"}),
        ),
        (
            "echo",
            "nats-obj://inputs/a/good%20one",
            &beside,
            json!({"from": "object"}),
        ),
        ("echo", "nats-obj://inputs/exact", &nothing, exact.clone()),
        (
            "echo",
            "file:data/in/good%20one.json",
            &nothing,
            json!({"from": "file"}),
        ),
        ("echo", absolute.as_str(), &nothing, json!({"from": "file"})),
        ("echo", "file:data/exact.json", &nothing, exact),
        ("echo", &web.url("good"), &nothing, json!({"from": "http"})),
        ("echo", &web.url("moved"), &nothing, json!({"from": "http"})),
        ("sql.query", "nats-obj://inputs/query", &nothing, json!("object")),
        ("sql.query", "file:data/query.json", &nothing, json!(42)),
    ]
    .map(|(job_type, reference, more, expected)| (referring(job_type, reference, more), expected));
    let sent = load.each_ref().map(|(job, _)| job.clone());
    node.client.assign_all(&sent).expect("are sent");
    node.wait_answered(&sent, SOON);
    let answers = node.answers();
    assert_each_answered_once(&answers, &sent);
    for (job, expected) in &load {
        let result = &answers.results(job.assignment_id())[0];
        assert_eq!(result["status"], "success", "{}: {result}", job.value()["job"]);
        let outputs = match result["job"]["type"].as_str() {
            Some("sql.query") => &result["outputs"]["rows"][0]["answer"],
            _ => &result["outputs"],
        };
        assert_eq!(outputs, expected, "{}", job.value()["job"]);
    }
}

/// Publishes an object as some other client might: the description need not be true.
fn put_raw(client: &Client, encoded_key: &str, description: &Value, chunk: &str) {
    let chunks = format!("$O.{BUCKET}.C.{}", description["nuid"].as_str().expect("has one"));
    let about = format!("$O.{BUCKET}.M.{encoded_key}");
    client.publish(&chunks, &[], chunk.to_owned()).expect("is sent");
    client
        .publish(&about, &[], description.to_string())
        .expect("is sent");
}

#[test]
fn inputs_that_cannot_be_had_are_an_error_with_a_clear_code_and_a_dead_letter() {
    let web = WebServer::start();
    let node = start(&web);
    for (key, text) in [
        ("large", inputs_of(LIMIT + 1)),
        ("other", "{\"from\":\"object\"}".to_owned()),
        ("array", "[1]".to_owned()),
        ("twice", "{\"x\":1,\"x\":2}".to_owned()),
        ("text", "hello".to_owned()),
        ("empty", String::new()),
        ("deep", "[".repeat(500)),
    ] {
        node.client.put_object(BUCKET, key, text).expect("is stored");
    }
    // "wrong", "short", "huge", "gone" and "loop", as buckets write keys.
    let about = |name: &str, size: usize| json!({"name": name, "bucket": BUCKET, "nuid": name, "size": size, "chunks": 1, "digest": "SHA-256=AAAA"});
    put_raw(&node.client, "d3Jvbmc=", &about("wrong", 2), "{}");
    put_raw(&node.client, "c2hvcnQ=", &about("short", 1), "{}");
    put_raw(&node.client, "aHVnZQ==", &about("huge", 10_000_000_000), "{}");
    let mut deleted = about("gone", 2);
    deleted["deleted"] = json!(true);
    deleted["digest"] = json!("SHA-256=RBNvo1WzZ4oRRq0W9-hknpT7T8If536DEMBg9hyq_4o=");
    put_raw(&node.client, "Z29uZQ==", &deleted, "{}");
    let mut link = about("loop", 2);
    link["options"] = json!({"link": {"bucket": BUCKET, "name": "loop"}});
    put_raw(&node.client, "bG9vcA==", &link, "{}");

    let hash = json!({"payload_sha256": "0a".repeat(32)});
    let nothing = json!({});
    let closed = {
        let free = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
        free.local_addr().expect("is bound").port()
    };
    let elsewhere = format!("http://127.0.0.1:{closed}/");
    let (retried, at_once) = (1, 0);
    let load = [
        (
            "nats-obj://inputs/missing",
            &nothing,
            "RESOURCE_UNAVAILABLE",
            retried,
        ),
        (
            "nats-obj://inputs/gone",
            &nothing,
            "RESOURCE_UNAVAILABLE",
            retried,
        ),
        ("nats-obj://nowhere/x", &nothing, "RESOURCE_UNAVAILABLE", retried),
        ("nats-obj://caf-state/x", &nothing, "PERMISSION_DENIED", at_once),
        ("nats-obj://inputs/large", &nothing, "INVALID_INPUT", at_once),
        ("nats-obj://inputs/other", &hash, "INVALID_INPUT", at_once),
        ("nats-obj://inputs/array", &nothing, "INVALID_FORMAT", at_once),
        ("nats-obj://inputs/twice", &nothing, "INVALID_FORMAT", at_once),
        ("nats-obj://inputs/text", &nothing, "INVALID_FORMAT", at_once),
        ("nats-obj://inputs/empty", &nothing, "INVALID_FORMAT", at_once),
        ("nats-obj://inputs/deep", &nothing, "INVALID_FORMAT", at_once),
        (
            "nats-obj://inputs/wrong",
            &nothing,
            "RESOURCE_UNAVAILABLE",
            retried,
        ),
        (
            "nats-obj://inputs/short",
            &nothing,
            "RESOURCE_UNAVAILABLE",
            retried,
        ),
        ("nats-obj://inputs/huge", &nothing, "INVALID_INPUT", at_once),
        ("nats-obj://inputs/loop", &nothing, "INVALID_INPUT", at_once),
        // The block has the last word on its inputs.
        (
            "nats-obj://inputs/other",
            &nothing,
            "MISSING_REQUIRED_FIELD",
            at_once,
        ),
        (
            "file:data/missing.json",
            &nothing,
            "RESOURCE_UNAVAILABLE",
            retried,
        ),
        ("file:data/large.json", &nothing, "INVALID_INPUT", at_once),
        ("file:data/../secret.json", &nothing, "INVALID_INPUT", at_once),
        ("file:data/%2e%2e/secret.json", &nothing, "INVALID_INPUT", at_once),
        ("file:data/link.json", &nothing, "PERMISSION_DENIED", at_once),
        ("file:secret.json", &nothing, "PERMISSION_DENIED", at_once),
        ("file:///etc/passwd", &nothing, "PERMISSION_DENIED", at_once),
        (elsewhere.as_str(), &nothing, "PERMISSION_DENIED", at_once),
        (&web.url("away"), &nothing, "PERMISSION_DENIED", at_once),
        (&web.url("missing"), &nothing, "RESOURCE_UNAVAILABLE", retried),
        (&web.url("broken"), &nothing, "HTTP_ERROR", retried),
        (&web.url("large"), &nothing, "INVALID_INPUT", at_once),
    ]
    .map(|(reference, more, code, retries)| (referring("sleep", reference, more), code, retries));
    let sent = load.each_ref().map(|(job, ..)| job.clone());
    node.client.assign_all(&sent).expect("are sent");
    node.wait_answered(&sent, SOON);
    let answers = node.answers();
    assert_each_answered_once(&answers, &sent);
    let mut wrong = Vec::new();
    for (job, code, retries) in &load {
        let (id, about) = (job.assignment_id(), &job.value()["job"]);
        let result = &answers.results(id)[0];
        let details = &result["error"]["details"];
        let field = details["field"].as_str().unwrap_or_default();
        let seen = json!([
            answers.acks(id)[0]["status"],
            result["status"],
            result["error_code"],
            result["retries_used"],
            result["outputs"],
            answers.dead_letters(id).len(),
            field.starts_with("job.payload_") || field == "duration_ms",
        ]);
        let expected = json!(["accepted", "error", code, retries, {}, 1, true]);
        if seen != expected {
            wrong.push(format!("{about}: {seen} instead of {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_body_that_never_ends_is_ended_by_the_deadline_of_the_job() {
    let web = WebServer::start();
    let node = start(&web);
    let job = [referring("echo", &web.url("slow"), &json!({})).deadline_ms(500)];
    node.client.assign_all(&job).expect("is sent");
    node.wait_answered(&job, SOON);
    let result = &node.answers().results(job[0].assignment_id())[0];
    assert_eq!(
        (&result["status"], &result["error_code"]),
        (&json!("timeout"), &json!("CANCELLED_BY_TIMEOUT"))
    );
    assert!(node.answers().dead_letters(job[0].assignment_id()).is_empty());
    node.assert_alive();
}

#[test]
fn references_that_nobody_resolves_are_rejected_as_invalid() {
    let node = Node::start();
    let long = format!("file:data/{}", "x".repeat(2_048));
    let load = [
        ("s3://bucket/key", "unsupported_payload_ref", "INVALID_INPUT"),
        ("objects/1", "unsupported_payload_ref", "INVALID_INPUT"),
        ("nats-obj://bucket", "invalid_field", "INVALID_FORMAT"),
        ("file://host/x", "invalid_field", "INVALID_FORMAT"),
        ("http://user:hunter2@127.0.0.1/", "invalid_field", "INVALID_INPUT"),
        (&long, "invalid_field", "INVALID_FORMAT"),
    ]
    .map(|(reference, reason, code)| (referring("echo", reference, &json!({})), reason, code));
    let sent = load.each_ref().map(|(job, ..)| job.clone());
    node.client.assign_all(&sent).expect("are sent");
    node.wait_answered(&sent, SOON);
    let answers = node.answers();
    assert_each_answered_once(&answers, &sent);
    for (job, reason, code) in &load {
        let (id, about) = (job.assignment_id(), &job.value()["job"]);
        let (ack, result) = (&answers.acks(id)[0], &answers.results(id)[0]);
        assert_eq!(
            (&ack["status"], &ack["reason"]),
            (&json!("rejected"), &json!(reason)),
            "{about}"
        );
        assert_eq!(result["error_code"], *code, "{about}");
        assert_eq!(result["error"]["details"]["field"], "job.payload_ref", "{about}");
        assert!(!result.to_string().contains("hunter2"), "{result}");
        assert_eq!(answers.dead_letters(id).len(), 1, "{about}");
    }
}

#[test]
fn buckets_that_are_not_listed_are_not_read() {
    let node = Node::start_with(|worker| worker.env("WORKER__PAYLOAD_REF__BUCKETS", BUCKET));
    for bucket in [BUCKET, "others"] {
        node.client.put_object(bucket, "x", "{}").expect("is stored");
    }
    let load =
        [BUCKET, "others"].map(|bucket| referring("echo", &format!("nats-obj://{bucket}/x"), &json!({})));
    node.client.assign_all(&load).expect("are sent");
    node.wait_answered(&load, SOON);
    let answers = node.answers();
    let result = |job: &AssignmentBuilder| answers.results(job.assignment_id())[0].clone();
    assert_eq!(result(&load[0])["status"], "success");
    assert_eq!(result(&load[1])["error_code"], "PERMISSION_DENIED");
}

#[test]
fn without_jetstream_references_to_objects_are_rejected_and_others_work() {
    let node = Node::beside(NatsOptions::default(), |worker| {
        worker
            .env("WORKER__NATS__MODE", "core")
            .file("data/x.json", "{\"from\":\"file\"}")
    });
    let heard = node.client.collect(&ANSWER_SUBJECTS).expect("listens");
    let load = ["nats-obj://inputs/x", "file:data/x.json"].map(|text| referring("echo", text, &json!({})));
    node.client.assign_all(&load).expect("are sent");
    heard.wait_for(RESULT, 2, SOON).expect("are answered");
    let result = |job: &AssignmentBuilder| heard.results(job.assignment_id())[0].clone();
    assert_eq!(result(&load[0])["error_code"], "INVALID_INPUT");
    assert_eq!(result(&load[1])["outputs"], json!({"from": "file"}));
}

#[test]
fn exec_resolves_files_and_addresses_and_says_that_objects_need_a_broker() {
    let web = WebServer::start();
    let load = [
        referring("echo", "file:data/x.json", &json!({})),
        referring("echo", &web.url("good"), &json!({})),
        referring("echo", "nats-obj://inputs/x", &json!({})),
    ];
    let input = load.each_ref().map(AssignmentBuilder::bytes).join(&b'\n');
    let finished = program()
        .args(["exec", "-"])
        .env(
            "WORKER__BLOCKS__HTTP__ALLOW_TARGETS",
            format!("127.0.0.1:{}", web.port),
        )
        .file("data/x.json", "{\"from\":\"file\"}")
        .stdin(input)
        .run(SOON)
        .expect("ends by itself");
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
    let results: BTreeMap<String, Value> = finished
        .stdout()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("is JSON"))
        .filter(|line| line["subject"] == RESULT)
        .map(|line| {
            (
                line["payload"]["assignment_id"]
                    .as_str()
                    .expect("is text")
                    .to_owned(),
                line["payload"].clone(),
            )
        })
        .collect();
    let result = |job: &AssignmentBuilder| &results[job.assignment_id()];
    assert_eq!(result(&load[0])["outputs"], json!({"from": "file"}));
    assert_eq!(result(&load[1])["outputs"], json!({"from": "http"}));
    let message = result(&load[2])["error"]["message"].as_str().expect("is text");
    assert!(message.contains("broker"), "{message}");
}

// ---- Outputs: the store and the sizes, without a node ----

fn settings(nats: &NatsServer) -> NatsSettings {
    NatsSettings {
        url: nats.url(),
        ..NatsSettings::default()
    }
}

/// Connects as the node does and runs `work` beside the connection.
fn connected<T, F: Future<Output = T>>(settings: &NatsSettings, work: impl FnOnce(Connection) -> F) -> T {
    actix_rt::System::new().block_on(async {
        let connection = connect(settings, "test", &Log::discard(), |_| {})
            .await
            .expect("the broker is there");
        assert!(connection.wait_up(SOON).await);
        work(connection).await
    })
}

fn put(
    settings: &NatsSettings,
    object: &OutputObject,
) -> Result<caf_protocol::result::OutputRef, StoreError> {
    connected(settings, |connection| {
        ObjectOutputs::new(&connection, settings, &Log::discard()).put(object.clone())
    })
}

fn outputs_of(bytes: usize) -> OutputObject {
    OutputObject::new(&AssignmentKey::new("acme", "a"), inputs_of(bytes).into())
}

#[test]
fn outputs_are_stored_once_however_often_they_are_put_and_a_job_may_refer_to_them() {
    // Pieces must fit the server's messages.
    let node = Node::beside(
        NatsOptions {
            max_payload: Some(4_096),
            ..NatsOptions::jetstream()
        },
        |worker| worker,
    );
    let (settings, object) = (settings(&node.nats), outputs_of(20_000));
    let kept = put(&settings, &object).expect("is stored");
    assert_eq!((kept.size, &kept.sha256), (20_000, &object.sha256));
    let stored = node
        .client
        .object("caf-outputs", &object.key)
        .expect("there is a bucket");
    assert_eq!(stored.as_deref(), Some(object.bytes.as_ref()));
    let written = || {
        let bucket = node.client.stream("OBJ_caf-outputs").expect("answers");
        bucket.expect("is there").state.last_sequence
    };
    let before = written();
    assert_eq!(put(&settings, &object), Ok(kept.clone()));
    assert_eq!(written(), before);
    let config = node
        .client
        .stream("OBJ_caf-outputs")
        .expect("answers")
        .expect("is there")
        .config;
    assert_eq!(config.max_age, Duration::from_secs(24 * 3600));
    assert!(config.max_bytes > 0);

    // Twenty kilobytes of inputs; what comes of them is small.
    let given = json!({"payload_sha256": kept.sha256});
    let job = [referring("sleep", &kept.uri, &given)];
    node.client.assign_all(&job).expect("is sent");
    node.wait_answered(&job, SOON);
    let result = &node.answers().results(job[0].assignment_id())[0];
    assert_eq!(
        result["error_code"], "MISSING_REQUIRED_FIELD",
        "it was read: {result}"
    );
}

#[test]
fn where_no_bucket_may_be_or_fits_outputs_are_refused_and_without_jetstream_they_are_not_stored_yet() {
    let nats = NatsServer::start().expect("a broker");
    let client = Client::connect(&nats).expect("a client");
    let object = outputs_of(20_000);
    let not_made = NatsSettings {
        create_streams: false,
        ..settings(&nats)
    };
    assert!(matches!(put(&not_made, &object), Err(StoreError::Refused(_))));
    let bucket = json!({
        "name": "OBJ_caf-outputs", "subjects": ["$O.caf-outputs.C.>", "$O.caf-outputs.M.>"], "max_bytes": 10_000,
        "retention": "limits", "discard": "new", "storage": "file", "num_replicas": 1, "allow_rollup_hdrs": true,
        "allow_direct": true, "max_consumers": -1, "max_msgs": -1, "max_age": 0,
    });
    client
        .jetstream_api("STREAM.CREATE.OBJ_caf-outputs", &bucket)
        .expect("is made");
    let full = put(&settings(&nats), &object);
    assert!(matches!(full, Err(StoreError::Refused(_))), "{full:?}");

    let poor = NatsServer::start_with(NatsOptions {
        extra_config:
            "accounts { POOR { jetstream: { max_file: 1MB }, users: [{ user: p, password: p }] } }\n\
                       no_auth_user: p"
                .to_owned(),
        ..NatsOptions::jetstream()
    })
    .expect("a broker");
    let no_room = put(&settings(&poor), &object);
    assert!(matches!(no_room, Err(StoreError::Refused(_))), "{no_room:?}");

    let plain = NatsServer::start_with(NatsOptions::default()).expect("a broker");
    let nowhere = put(&settings(&plain), &object);
    assert!(matches!(nowhere, Err(StoreError::Unavailable(_))), "{nowhere:?}");
}

/// A result of exactly the server's maximum is taken, one byte more is not: the count is the server's.
#[test]
fn the_size_that_results_are_held_to_is_the_one_that_the_server_counts() {
    let answers = Answers::new(&SubjectSettings::default(), "w");
    let identity = Identity {
        assignment_id: "a".to_owned(),
        tenant_id: "t".to_owned(),
        ..Identity::default()
    };
    let mut step = StepResult {
        cost: Default::default(),
        outcome: Outcome::Success(
            json!({"x": "y".repeat(2_000)})
                .as_object()
                .cloned()
                .expect("is one"),
        ),
        latency_ms: 1,
        retries_used: 0,
    };
    let message = answers.result(&identity, &mut step, None, usize::MAX, 1).message;
    for (limit, fits) in [
        (wire_bytes(&message) - 1, false),
        (wire_bytes(&message), true),
        (wire_bytes(&message) + 1, true),
    ] {
        let nats = NatsServer::start_with(NatsOptions {
            max_payload: Some(limit),
            ..NatsOptions::default()
        })
        .expect("a broker");
        let client = Client::connect(&nats).expect("a client");
        let heard = client.collect(&[RESULT]).expect("listens");
        let settings = settings(&nats);
        let published = connected(&settings, async |connection| {
            let sink = NatsSink::new(
                connection,
                &settings,
                AnswerStreams::none(),
                None,
                &Log::discard(),
            );
            assert_eq!(sink.max_message_bytes(), limit);
            sink.publish(&message).await
        });
        match published {
            Ok(Published { .. }) => heard.wait_for(RESULT, 1, SOON).expect("arrives"),
            Err(PublishError::Refused(_)) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(heard.len() == 1, fits, "limit {limit}");
    }
}

#[test]
fn many_jobs_with_one_reference_are_answered_in_their_turn() {
    let node = Node::start();
    node.client
        .put_object(BUCKET, "x", inputs_of(200_000))
        .expect("is stored");
    let load = jobs(20, |_| referring("echo", "nats-obj://inputs/x", &json!({})));
    node.client.assign_all(&load).expect("are sent");
    node.wait_answered(&load, SOON);
    assert_each_answered_once(&node.answers(), &load);
}
