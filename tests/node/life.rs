//! The life of a node: what it sets up at the broker, how it waits for it, and how it is let in.

use std::time::{Duration, Instant};

use caf_testkit::client::{ACK, HEARTBEAT, RESULT};
use caf_testkit::tls::Certificates;
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, Client, NatsAuth, NatsOptions, NatsServer, wait_until};
use serde_json::{Value, json};

use crate::support::{
    ANSWERS, ASSIGNMENTS, CONSUMER, LETTERS, Node, SOON, assert_each_answered_once, program,
};

fn ask(client: &Client, request: &str) -> Value {
    client.jetstream_api(request, &json!({})).expect("is answered")
}

fn stream_config(client: &Client, name: &str) -> Value {
    ask(client, &format!("STREAM.INFO.{name}"))["config"].clone()
}

const SECOND_NS: u64 = 1_000_000_000;
const DAY_NS: u64 = 24 * 3600 * SECOND_NS;

#[test]
fn an_empty_broker_is_set_up_once_and_as_designed() {
    let node = Node::start();
    node.assert_alive();
    let client = &node.client;
    let assignments = stream_config(client, ASSIGNMENTS);
    assert_eq!(assignments["subjects"], json!(["caf.exec.assign.v1"]));
    assert_eq!(
        (&assignments["retention"], &assignments["discard"]),
        (&json!("workqueue"), &json!("new"))
    );
    assert!(assignments["max_bytes"].as_i64() > Some(0) && assignments["max_msgs"].as_i64() > Some(0));
    let answers = stream_config(client, ANSWERS);
    assert_eq!(
        answers["subjects"],
        json!(["caf.exec.result.v1", "caf.exec.assign.v1.ack"])
    );
    assert_eq!(answers["retention"], "limits");
    assert_eq!(
        (&answers["max_age"], &answers["duplicate_window"]),
        (&json!(DAY_NS), &json!(3600 * SECOND_NS))
    );
    assert!(answers["max_bytes"].as_i64() > Some(0));
    let letters = stream_config(client, LETTERS);
    assert_eq!(
        (&letters["subjects"], &letters["max_age"]),
        (&json!(["caf.exec.dlq.v1"]), &json!(7 * DAY_NS))
    );
    let consumer = || ask(client, &format!("CONSUMER.INFO.{ASSIGNMENTS}.{CONSUMER}"))["config"].clone();
    let first = consumer();
    assert_eq!(
        (&first["ack_policy"], &first["ack_wait"]),
        (&json!("explicit"), &json!(30 * SECOND_NS))
    );
    assert_eq!(
        (&first["max_deliver"], &first["backoff"]),
        (&json!(-1), &Value::Null)
    );
    assert_eq!(first["max_ack_pending"], 10_000);

    let second = node.another(|worker| worker.env("NATS_ACK_WAIT_MS", 20_000));
    assert_eq!(consumer(), first);
    let ready = second
        .logs()
        .into_iter()
        .filter(|log| log["message"] == "Stream ready");
    assert!(ready.into_iter().all(|log| log["context"]["created"] == false));
}

#[test]
fn streams_of_an_operator_are_used_as_they_are() {
    let nats = NatsServer::start().expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    let config =
        json!({"name": "everything", "subjects": ["caf.exec.>"], "retention": "limits", "storage": "memory"});
    client
        .jetstream_api("STREAM.CREATE.everything", &config)
        .expect("is created");
    let before = stream_config(&client, "everything");
    let mut worker = program().serve(&nats).start().expect("starts");
    worker.wait_ready().expect("becomes ready");
    let heard = client.collect_answers().expect("listens");
    let job = [AssignmentBuilder::echo()];
    client.assign_all(&job).expect("is sent");
    heard
        .wait_for_result(job[0].assignment_id(), SOON)
        .expect("is answered");
    assert_eq!(
        ask(&client, "STREAM.NAMES")["streams"],
        json!(["KV_caf-claims", "KV_caf-state", "everything"]),
        "the buckets of claims and of state beside them"
    );
    assert_eq!(stream_config(&client, "everything"), before);
    wait_until("both answers are stored", SOON, || {
        client.stream_count("everything").is_ok_and(|count| count == 3)
    });
    assert_each_answered_once(&heard, &job);
}

/// An operator's stream has the name that ours would get, and stores only half of what it must.
#[test]
fn a_stream_that_stores_too_little_is_named_with_what_to_mend() {
    let nats = NatsServer::start().expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    let config =
        |subjects: &[&str]| json!({"name": "caf-results", "subjects": subjects, "storage": "memory"});
    client
        .jetstream_api("STREAM.CREATE.caf-results", &config(&[RESULT]))
        .expect("is created");
    let mut worker = program().serve(&nats).start().expect("starts");
    let log = worker
        .wait_for_message("Answers wait for their stream")
        .expect("says why it waits");
    let error = log["context"]["error"].as_str().unwrap_or_default();
    assert!(
        error.contains("stream caf-results exists and does not store caf.exec.assign.v1.ack"),
        "{error}"
    );
    client
        .jetstream_api("STREAM.UPDATE.caf-results", &config(&[RESULT, ACK]))
        .expect("is mended");
    worker.wait_ready().expect("becomes ready");
}

#[test]
fn a_worker_that_may_create_nothing_waits_for_the_operator_and_says_so() {
    let nats = NatsServer::start().expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    let beats = client.collect(&[HEARTBEAT]).expect("listens");
    let heard = client.collect_answers().expect("listens");
    let mut worker = program()
        .serve(&nats)
        .env("WORKER__NATS__CREATE_STREAMS", false)
        .env("CAF_HEARTBEAT_INTERVAL_MS", 100)
        .start()
        .expect("starts");
    let log = worker
        .wait_for_message("Pull failed, rebuilding")
        .expect("says why it waits");
    let error = log["context"]["error"].as_str().unwrap_or_default();
    assert!(
        error.contains("caf.exec.assign.v1") && error.contains("create_streams"),
        "{log}"
    );
    assert_eq!(worker.get("/readyz").expect("answers").status, 503);
    let page = worker.get("/_health").expect("answers").json().expect("is JSON");
    assert_eq!(
        page["checks"]["nats"],
        json!({"status": "fail", "message": "connected, not consuming"})
    );
    beats.wait_for(HEARTBEAT, 1, SOON).expect("lives");
    assert_eq!(beats.on(HEARTBEAT)[0]["status"], "degraded");
    assert_eq!(ask(&client, "STREAM.NAMES")["total"], 0);

    let stream = json!({"name": "theirs", "subjects": ["caf.exec.assign.v1"], "retention": "workqueue"});
    client
        .jetstream_api("STREAM.CREATE.theirs", &stream)
        .expect("is created");
    let consumer = json!({
        "stream_name": "theirs", "config": {"durable_name": CONSUMER, "ack_policy": "explicit", "max_deliver": -1},
    });
    let request = format!("CONSUMER.DURABLE.CREATE.theirs.{CONSUMER}");
    client.jetstream_api(&request, &consumer).expect("is created");
    worker.wait_ready().expect("becomes ready");
    let job = [AssignmentBuilder::echo()];
    client.assign_all(&job).expect("is sent");
    heard.wait_for(RESULT, 1, SOON).expect("is answered");
    wait_until("it is settled", SOON, || {
        client.stream_count("theirs").is_ok_and(|count| count == 0)
    });
    assert_each_answered_once(&heard, &job);
}

/// A broker that is not there yet; its port is known.
fn absent_broker() -> NatsServer {
    let mut nats = NatsServer::start().expect("the broker starts");
    nats.stop().expect("the broker stops");
    nats
}

#[test]
fn a_worker_waits_for_the_broker_and_is_ready_a_second_after_it_appears() {
    let mut nats = absent_broker();
    let mut worker = program().serve(&nats).start().expect("starts");
    worker
        .wait_for_message("Waiting for NATS")
        .expect("says that it waits");
    assert_eq!(worker.get("/livez").expect("answers").status, 200);
    let ready = worker.get("/readyz").expect("answers");
    let expected = "waiting for NATS\nlast_delivery_age_ms: none\npulls_outstanding: 0\npull_rebuilds: 0\n";
    assert_eq!((ready.status, ready.text().as_str()), (503, expected));
    let page = worker.get("/_health").expect("answers").json().expect("is JSON");
    assert_eq!(
        page["checks"]["nats"],
        json!({"status": "fail", "message": "not connected"})
    );
    assert_eq!(page["status"], "degraded");
    nats.restart().expect("appears");
    let appeared = Instant::now();
    worker.wait_ready().expect("becomes ready");
    let took = appeared.elapsed();
    assert!(took <= Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_worker_that_waits_for_the_broker_leaves_when_told_or_at_its_deadline() {
    let nats = absent_broker();
    let mut worker = program().serve(&nats).start().expect("starts");
    worker.wait_for_message("Waiting for NATS").expect("waits");
    worker.terminate().expect("is told");
    assert_eq!(worker.wait_exit(SOON).expect("ends").code(), Some(0));

    let finished = program()
        .serve(&nats)
        .env("WORKER__NATS__CONNECT_DEADLINE_MS", 300)
        .run(SOON)
        .expect("ends by itself");
    assert_eq!(finished.code(), Some(69), "{}", finished.stderr());
    assert!(
        finished.stderr().contains("nats.connect_deadline_ms"),
        "{}",
        finished.stderr()
    );
}

#[test]
fn a_broker_without_jetstream_is_said_to_have_none() {
    let nats = NatsServer::start_with(NatsOptions::default()).expect("the broker starts");
    let mut worker = program().serve(&nats).start().expect("starts");
    let log = worker
        .wait_for_log(|log| log["level"] == "WARN")
        .expect("says what is missing");
    let error = log["context"]["error"].as_str().unwrap_or_default();
    assert!(
        error.starts_with("the broker or the account has no JetStream"),
        "{log}"
    );
    assert_eq!(worker.get("/readyz").expect("answers").status, 503);
    worker.terminate().expect("is told");
    assert_eq!(worker.wait_exit(SOON).expect("ends").code(), Some(0));
}

/// A worker that is let in answers a job.
fn assert_let_in(
    options: NatsOptions,
    credentials: impl FnOnce(&NatsServer, WorkerBuilder) -> WorkerBuilder,
) {
    let nats = NatsServer::start_with(options).expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    let mut worker = credentials(&nats, program().serve(&nats))
        .start()
        .expect("starts");
    worker.wait_ready().expect("is let in");
    let heard = client.collect_answers().expect("listens");
    let job = [AssignmentBuilder::echo()];
    client.assign_all(&job).expect("is sent");
    heard
        .wait_for_result(job[0].assignment_id(), SOON)
        .expect("is answered");
    worker.terminate().expect("is told");
    assert_eq!(worker.wait_exit(SOON).expect("ends").code(), Some(0));
    assert_each_answered_once(&heard, &job);
}

fn with_auth(auth: NatsAuth) -> NatsOptions {
    NatsOptions {
        auth,
        ..NatsOptions::jetstream()
    }
}

#[test]
fn a_worker_is_let_in_with_user_and_password_or_a_token() {
    let auth = NatsAuth::User {
        user: "worker".to_owned(),
        password: "hunter2-secret".to_owned(),
    };
    assert_let_in(with_auth(auth), |_, worker| {
        worker
            .env("WORKER__NATS__USER", "worker")
            .env("WORKER__NATS__PASSWORD", "hunter2-secret")
    });
    assert_let_in(
        with_auth(NatsAuth::Token("t0ken-secret".to_owned())),
        |_, worker| worker.env("WORKER__NATS__TOKEN", "t0ken-secret"),
    );
}

#[test]
fn a_worker_is_let_in_with_an_nkey_or_a_credentials_file() {
    let auth = NatsAuth::nkey().expect("a key");
    let NatsAuth::Nkey { seed, .. } = auth.clone() else {
        unreachable!("it was made as one")
    };
    assert_let_in(with_auth(auth), |_, worker| {
        worker
            .file("worker.nk", format!("{seed}\n"))
            .env("WORKER__NATS__NKEY_FILE", "worker.nk")
    });
    let auth = NatsAuth::credentials().expect("credentials");
    assert_let_in(with_auth(auth), |nats, worker| {
        let NatsAuth::Credentials(credentials) = nats.auth() else {
            unreachable!("it was started with them")
        };
        worker.env("WORKER__NATS__CREDENTIALS_FILE", credentials.file().display())
    });
}

#[test]
fn a_worker_is_let_in_over_tls_with_a_certificate_of_its_own() {
    let options = NatsOptions {
        tls: Some(Certificates::generate().expect("certificates")),
        verify_clients: true,
        ..NatsOptions::jetstream()
    };
    assert_let_in(options, |nats, worker| {
        let certificates = nats.certificates().expect("it was started with them");
        let (certificate, key) = certificates.client();
        worker
            .env("WORKER__NATS__TLS__REQUIRED", true)
            .env("WORKER__NATS__TLS__CA_FILE", certificates.authority().display())
            .env("WORKER__NATS__TLS__CERT_FILE", certificate.display())
            .env("WORKER__NATS__TLS__KEY_FILE", key.display())
    });
}

#[test]
fn a_worker_with_a_wrong_password_is_not_ready_and_its_log_tells_no_secret() {
    let auth = NatsAuth::User {
        user: "worker".to_owned(),
        password: "right-secret".to_owned(),
    };
    let nats = NatsServer::start_with(with_auth(auth)).expect("the broker starts");
    let mut worker = program()
        .serve(&nats)
        .env("WORKER__NATS__USER", "worker")
        .env("WORKER__NATS__PASSWORD", "wrong-secret")
        .env("LOG_LEVEL", "debug")
        .start()
        .expect("starts");
    let log = worker
        .wait_for_message("Waiting for NATS")
        .expect("says that it waits");
    let error = log["context"]["error"].as_str().unwrap_or_default();
    assert!(error.to_lowercase().contains("authorization"), "{log}");
    assert_eq!(worker.get("/readyz").expect("answers").status, 503);
    worker.terminate().expect("is told");
    let finished = worker.finish(SOON).expect("ends");
    assert_eq!(finished.code(), Some(0));
    let telling = finished.lines.iter().filter(|line| line.text.contains("secret"));
    assert_eq!(telling.count(), 0, "{}", finished.stdout());
}

/// A password in the address is a secret too.
#[test]
fn a_password_in_the_address_of_the_broker_is_not_logged() {
    let auth = NatsAuth::User {
        user: "worker".to_owned(),
        password: "right-secret".to_owned(),
    };
    let nats = NatsServer::start_with(with_auth(auth)).expect("the broker starts");
    let url = format!("nats://worker:right-secret@127.0.0.1:{}", nats.port());
    let mut worker = program()
        .serve(&nats)
        .env("NATS_URL", url)
        .start()
        .expect("starts");
    worker.wait_ready().expect("is let in");
    worker.terminate().expect("is told");
    let finished = worker.finish(SOON).expect("ends");
    assert_eq!(finished.code(), Some(0));
    let telling = finished.lines.iter().filter(|line| line.text.contains("secret"));
    assert_eq!(telling.count(), 0, "{}", finished.stdout());
}
