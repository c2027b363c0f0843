//! How workers are found, and how they say that they are: the NATS services API, heartbeats, and the AsyncAPI document of
//! both.

use std::collections::BTreeSet;
use std::time::Duration;

use caf_testkit::asyncapi::Document;
use caf_testkit::client::{ASSIGN, DLQ, HEARTBEAT, RESULT};
use caf_testkit::{AssignmentBuilder, Client, Collector, NatsOptions, NatsServer, wait_until};
use caf_worker::settings::Settings;
use serde_json::{Map, Value, json};

use crate::support::{
    ANSWERS, ASSIGNMENTS, CONSUMER, LETTERS, Node, SOON, assert_each_answered_once, jobs, program,
    ready_worker,
};

fn document() -> Document {
    Document::new(caf_worker::asyncapi::document(&Settings::default()))
}

/// Sends a question whose answers go to `reply`.
fn send(client: &Client, subject: &str, reply: &str) {
    let (nats, subject, reply) = (client.nats(), subject.to_owned(), reply.to_owned());
    let sent = client.run(async move {
        nats.publish_with_reply(subject, reply, "".into()).await?;
        nats.flush().await?;
        Ok::<_, async_nats_error::Any>(())
    });
    sent.expect("in time").expect("is sent");
}

/// Any error of the client library, which the tests do not name.
mod async_nats_error {
    pub(super) type Any = Box<dyn std::error::Error + Send + Sync>;
}

/// Answers to a question, asked until there are `wanted` or more at once.
#[track_caller]
fn ask(client: &Client, subject: &str, wanted: usize) -> Vec<Value> {
    let mut answers = Vec::new();
    wait_until(&format!("{wanted} answers to {subject}"), SOON, || {
        let inbox = client.nats().new_inbox();
        let collected = client.collect(&[&inbox]).expect("listens");
        send(client, subject, &inbox);
        let all_came = caf_testkit::wait::poll(Duration::from_secs(2), || {
            answers = collected.on(&inbox);
            // The broker says by an empty message that nobody listens.
            answers.retain(|answer| answer["type"].is_string());
            (answers.len() >= wanted).then_some(())
        });
        all_came.is_some()
    });
    answers
}

fn ids(answers: &[Value]) -> BTreeSet<String> {
    let ids = answers.iter().filter_map(|answer| answer["id"].as_str());
    ids.map(str::to_owned).collect()
}

/// The load that one worker tells.
#[track_caller]
fn load(client: &Client) -> Value {
    ask(client, "$SRV.STATS.caf-worker", 1)[0]["endpoints"][0]["data"].clone()
}

/// ADR-32.
#[test]
fn a_fleet_of_three_answers_thrice_and_each_worker_by_its_name() {
    let node = Node::start_with(|worker| worker.env("WORKER__WORKER__ID", "first"));
    let _others = [
        node.another(|worker| worker.env("WORKER__WORKER__ID", "second")),
        node.another(|worker| worker.env("WORKER__WORKER__ID", "third")),
    ];
    let document = document();
    for (verb, message, kind) in [
        ("PING", "Ping", "io.nats.micro.v1.ping_response"),
        ("INFO", "Info", "io.nats.micro.v1.info_response"),
        ("STATS", "Stats", "io.nats.micro.v1.stats_response"),
    ] {
        let all = ask(&node.client, &format!("$SRV.{verb}"), 3);
        assert_eq!((all.len(), ids(&all).len()), (3, 3), "{all:?}");
        let mut workers = BTreeSet::new();
        for answer in &all {
            assert_eq!(
                document.faults(message, &Value::Null, answer),
                Vec::<String>::new()
            );
            assert_eq!(
                (&answer["type"], &answer["name"]),
                (&json!(kind), &json!("caf-worker"))
            );
            assert_eq!(answer["version"], env!("CARGO_PKG_VERSION"));
            assert_eq!(answer["metadata"]["mode"], "jetstream");
            workers.insert(answer["metadata"]["worker_id"].as_str().unwrap_or_default());
        }
        assert_eq!(workers, BTreeSet::from(["first", "second", "third"]));
        assert_eq!(
            ids(&ask(&node.client, &format!("$SRV.{verb}.caf-worker"), 3)),
            ids(&all)
        );
        let one = all[0]["id"].as_str().expect("is text");
        let answers = ask(&node.client, &format!("$SRV.{verb}.caf-worker.{one}"), 1);
        assert_eq!(
            (answers.len(), ids(&answers)),
            (1, BTreeSet::from([one.to_owned()]))
        );
    }
    let endpoint = &ask(&node.client, "$SRV.INFO", 3)[0]["endpoints"][0];
    assert_eq!(
        endpoint["metadata"],
        json!({"ack": "caf.exec.assign.v1.ack", "result": "caf.exec.result.v1", "stream": "caf-stream"})
    );
    // Listening for questions takes no assignment away.
    let load = jobs(30, |_| AssignmentBuilder::echo());
    node.client.assign_all(&load).expect("is sent");
    node.wait_answered(&load, SOON);
    assert_each_answered_once(&node.answers(), &load);
    // An endpoint is where other workers really ask.
    let info = &ask(&node.client, "$SRV.INFO.caf-worker", 3)[0];
    let owner = &info["endpoints"][1];
    assert_eq!(owner["name"], "owner", "{info}");
    let asked = ask_plainly(&node.client, owner["subject"].as_str().expect("is text"));
    assert_eq!(asked, "free");
}

fn ask_plainly(client: &Client, subject: &str) -> String {
    let (nats, subject) = (client.nats(), subject.to_owned());
    let answer = client.run(async move { nats.request(subject, "0f".repeat(32).into()).await });
    let answer = answer.expect("in time").expect("is answered");
    String::from_utf8_lossy(&answer.payload).into_owned()
}

#[test]
fn the_stats_tell_load_and_outcomes_and_that_the_worker_leaves() {
    let mut node = Node::start_with(|worker| {
        worker
            .env("WORKER__POOLS__IO__MAX_CONCURRENCY", 2)
            .env("WORKER__LIMITS__MAX_HELD", 7)
    });
    let mut done = vec![AssignmentBuilder::echo()];
    done.push(AssignmentBuilder::new("fail", json!({"error_code": "EXECUTION_FAILED"})).max_attempts(1));
    node.client.assign_all(&done).expect("is sent");
    node.wait_answered(&done, SOON);
    let stats = ask(&node.client, "$SRV.STATS.caf-worker", 1).remove(0);
    let assign = &stats["endpoints"][0];
    assert_eq!(
        (&assign["name"], &assign["subject"], &assign["queue_group"]),
        (&json!("assign"), &json!("caf.exec.assign.v1"), &json!(CONSUMER))
    );
    assert_eq!(
        (
            &assign["num_requests"],
            &assign["num_errors"],
            &assign["last_error"]
        ),
        (&json!(2), &json!(1), &json!("EXECUTION_FAILED"))
    );
    assert_eq!(
        assign["processing_time"].as_u64().map(|all| all / 2),
        assign["average_processing_time"].as_u64()
    );

    let long = jobs(3, |_| AssignmentBuilder::sleep(4_000));
    node.client.assign_all(&long).expect("is sent");
    let mut seen = Value::Null;
    wait_until("all three are seen", SOON, || {
        seen = load(&node.client);
        seen["held"]["jobs"] == 3 && seen["pools"]["io"]["slots_used"] == 2
    });
    assert_eq!(seen["status"], "ready", "{seen}");
    assert_eq!(
        seen["pools"]["io"],
        json!({"slots": 2, "slots_used": 2, "slots_available": 0, "queue_depth": 1}),
        "{seen}"
    );
    assert_eq!(
        (&seen["held"]["max_jobs"], &seen["held"]["permits_available"]),
        (&json!(7), &json!(4))
    );
    assert!(seen["held"]["bytes"].as_u64() > Some(0), "{seen}");
    assert!(seen["process"]["mem_bytes"].as_u64() > Some(0), "{seen}");
    node.worker.terminate().expect("is told");
    wait_until("the worker says that it leaves", SOON, || {
        load(&node.client)["status"] == "draining"
    });
    assert_eq!(node.worker.wait_exit(SOON).expect("ends").code(), Some(0));
}

#[test]
fn every_subject_header_and_field_that_a_worker_sends_is_in_the_document() {
    // Inputs that are one message still, and outputs that are none any more.
    let options = NatsOptions {
        max_payload: Some(65_536),
        ..NatsOptions::jetstream()
    };
    let nats = NatsServer::start_with(options).expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    let large = json!({"x": "y".repeat(65_390)}).to_string();
    client
        .put_object("inputs", "large", large.into_bytes())
        .expect("is stored");
    let all = client.collect(&[">"]).expect("listens");
    let worker = ready_worker(&nats, |worker| {
        worker
            .env("WORKER__WORKER__HEARTBEAT_INTERVAL_MS", 200)
            .env("WORKER__TENANTS__ALLOWED", "acme,tenant-a")
    });
    let mut load = jobs(5, |_| AssignmentBuilder::echo());
    let reference = json!({"type": "echo", "payload_ref": "nats-obj://inputs/large"});
    load.extend([
        AssignmentBuilder::echo().set("job", reference),
        AssignmentBuilder::echo().run_flow_step(
            "01J8ZQ4T6M9X2K7V5R3N1B0CDE",
            "01J8ZQ4T6M9X2K7V5R3N1B0CDF",
            "01J8ZQ4T6M9X2K7V5R3N1B0CDG",
        ),
        AssignmentBuilder::echo().tenant("not-allowed"),
        AssignmentBuilder::new("no.such.type", json!({})),
        AssignmentBuilder::new("fail", json!({"error_code": "HTTP_ERROR"})).max_attempts(1),
        AssignmentBuilder::new("fs.blob_get", json!({"path": "nowhere"})),
        AssignmentBuilder::sleep(5_000).deadline_ms(50),
    ]);
    client.assign_all(&load).expect("is sent");
    client.publish(ASSIGN, &[("x", "y")], "no JSON").expect("is sent");
    crate::support::wait_answered(&client, &load, SOON);
    wait_until(
        "a letter of what cannot be answered, and a few heartbeats",
        SOON,
        || all.on(DLQ).len() >= 4 && all.on(HEARTBEAT).len() >= 3,
    );
    ask(&client, "$SRV.PING", 1);
    let document = document();
    let mut channels = BTreeSet::new();
    for message in all.messages() {
        let subject = message.subject.as_str();
        // What the broker itself says, to others too.
        let is_event = subject.starts_with("$JS.EVENT.");
        // What this test has stored, as the broker hands it out.
        if subject.starts_with("$O.inputs.") {
            continue;
        }
        let Some(channel) = document.channel_of(subject) else {
            assert!(
                is_event || document.is_brokers(subject),
                "{subject} is not in the document"
            );
            continue;
        };
        channels.insert(channel.to_owned());
        // What this test sent itself.
        if ["assign", "pingAll"].contains(&channel) {
            continue;
        }
        // Its form is NATS' own.
        if document.messages_of(channel).is_empty() {
            continue;
        }
        let headers: Map<String, Value> = message
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        let payload = match document.messages_of(channel)[..] {
            ["OwnerQuestion"] => json!(String::from_utf8_lossy(&message.payload)),
            _ => message.json(),
        };
        for name in document.messages_of(channel) {
            let faults = document.faults(name, &Value::Object(headers.clone()), &payload);
            assert_eq!(faults, Vec::<String>::new(), "{subject}: {payload}");
        }
    }
    for channel in [
        "ack",
        "result",
        "dlq",
        "heartbeat",
        "claims",
        "outputChunks",
        "outputMeta",
    ] {
        assert!(
            channels.contains(channel),
            "nothing was sent on {channel}: {channels:?}"
        );
    }
    drop(worker);
}

#[test]
fn switched_off_a_worker_is_not_found() {
    let node = Node::start_with(|worker| worker.env("WORKER__NATS__DISCOVERY", "false"));
    let nats = node.client.nats();
    let asked = node
        .client
        .run(async move { nats.request("$SRV.PING", "".into()).await });
    let error = asked.expect("in time").expect_err("nobody answers");
    assert!(error.to_string().contains("no responders"), "{error}");
    node.assert_alive();
}

#[test]
fn without_permission_there_is_one_warning_and_nothing_else() {
    let options = NatsOptions {
        extra_config: r#"
            authorization { users: [
                { user: w, password: w, permissions: { subscribe: { deny: ["$SRV.>"] } } }
            ] }
            no_auth_user: w"#
            .to_owned(),
        ..NatsOptions::jetstream()
    };
    let mut node = Node::beside(options, |worker| worker);
    let warning = |log: &Value| {
        let message = log["message"].as_str().unwrap_or_default();
        message.starts_with("Discovery not permitted")
    };
    node.worker.wait_for_log(warning).expect("is said");
    node.assert_alive();
    node.nats.restart().expect("restarts");
    wait_until("every connection is back", SOON, || {
        let logs = node.worker.logs();
        let connected = logs.iter().filter(|log| log["message"] == "NATS connected");
        connected.count() >= 6
    });
    node.worker.wait_ready().expect("is ready again");
    node.assert_alive();
    let page = node
        .worker
        .get("/_health")
        .expect("answers")
        .json()
        .expect("is JSON");
    assert_eq!(page["status"], "healthy");
    let loud = |log: &Value| log["level"] != "INFO" && log.to_string().contains("ermission");
    let logs = node.worker.logs();
    assert_eq!(logs.iter().filter(|log| loud(log)).count(), 1, "{logs:#?}");
}

/// What README.md says that a worker needs.
#[test]
fn the_permissions_of_the_manual_are_enough() {
    let manual = include_str!("../../README.md");
    let permissions = manual
        .split("```conf\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let permissions = permissions.expect("README.md has a block of permissions");
    let options = NatsOptions {
        extra_config: format!(
            "authorization {{ users: [
                {{ user: w, password: w, permissions: {{ {permissions} }} }}
                {{ user: a, password: a }}
            ] }}
            no_auth_user: a"
        ),
        ..NatsOptions::jetstream()
    };
    let nats = NatsServer::start_with(options).expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    let url = nats.url().replace("nats://", "nats://w:w@");
    let mut worker = program()
        .serve(&nats)
        .env("NATS_URL", url)
        .start()
        .expect("starts");
    worker.wait_ready().expect("is ready");
    let mut load = jobs(3, |_| AssignmentBuilder::echo());
    load.push(AssignmentBuilder::new("no.such.type", json!({})));
    // As large as a message may be: its result is larger, and its outputs go to the object store.
    let large =
        |bytes| AssignmentBuilder::new("echo", json!({"text": "x".repeat(bytes)})).without("decision");
    let large = large(1024 * 1024 - large(0).bytes().len());
    load.push(large.clone());
    client.assign_all(&load).expect("is sent");
    crate::support::wait_answered(&client, &load, SOON);
    let result = &crate::support::answers(&client).results(large.assignment_id())[0];
    assert!(result["output_ref"].is_object(), "is kept elsewhere");
    assert_eq!(client.stream_count(LETTERS).expect("answers"), 1);
    assert_eq!(ask(&client, "$SRV.PING", 1).len(), 1);
    let logs = worker.logs();
    let refused = |log: &&Value| log.to_string().to_lowercase().contains("permission");
    assert_eq!(logs.iter().filter(refused).count(), 0, "{logs:#?}");
}

#[test]
fn a_flood_of_questions_delays_no_renewal_and_is_over_when_it_is_over() {
    const FLOOD: usize = 100_000;
    let mut node = Node::start_with(|worker| {
        worker
            .env("WORKER__NATS__ACK_WAIT_MS", 1_000)
            .env("WORKER__WORKER__HEARTBEAT_INTERVAL_MS", 200)
    });
    let long = jobs(4, |_| AssignmentBuilder::sleep(4_000));
    node.client.assign_all(&long).expect("is sent");
    let nats = node.client.nats();
    let flood = node.client.run(async move {
        for n in 0..FLOOD {
            let verb = ["PING", "INFO", "STATS"][n % 3];
            nats.publish_with_reply(format!("$SRV.{verb}"), "nobody.listens", "".into())
                .await?;
        }
        nats.flush().await?;
        Ok::<_, async_nats_error::Any>(())
    });
    flood.expect("in time").expect("is sent");
    node.wait_answered(&long, SOON);
    let state = node.client.consumer(ASSIGNMENTS, CONSUMER).expect("is there");
    assert_eq!((state.redelivered, state.ack_pending), (0, 0));
    assert_each_answered_once(&node.answers(), &long);
    let logs = node.worker.logs();
    let said = |message: &str| logs.iter().filter(|log| log["message"] == message).count();
    assert_eq!(said("Too many discovery requests, some are not answered"), 1);
    assert!(!logs.iter().any(|log| log.to_string().contains("slow consumer")));
    assert_eq!(ask(&node.client, "$SRV.PING", 1).len(), 1);
    assert!(node.worker.is_running());
}

/// Who may only ask must not make a worker speak where messages have a meaning.
#[test]
fn no_answer_goes_to_a_subject_of_the_contract() {
    let node = Node::start();
    let owner = ask(&node.client, "$SRV.INFO", 1)[0]["endpoints"][1]["subject"].clone();
    let heard = node
        .client
        .collect(&[RESULT, "caf.worker.>", "caf.exec.>"])
        .expect("listens");
    for subject in ["$SRV.PING", "$SRV.STATS", owner.as_str().expect("is text")] {
        send(&node.client, subject, RESULT);
        send(&node.client, subject, HEARTBEAT);
    }
    // Answered after the others.
    ask(&node.client, "$SRV.PING", 1);
    ask_plainly(&node.client, owner.as_str().expect("is text"));
    let strange = |beat: &Value| beat.get("resources").is_none();
    assert_eq!(heard.on(RESULT), Vec::<Value>::new());
    assert!(!heard.on(HEARTBEAT).iter().any(strange));
}

#[test]
fn workers_are_found_again_when_the_broker_is_back() {
    let mut node = Node::start();
    let before = ids(&ask(&node.client, "$SRV.PING", 1));
    node.nats.restart().expect("restarts");
    assert_eq!(ids(&ask(&node.client, "$SRV.PING", 1)), before);
}

#[test]
fn in_core_mode_a_worker_is_found_too() {
    let node = Node::beside(NatsOptions::default(), |worker| {
        worker.env("WORKER__NATS__MODE", "core")
    });
    let info = ask(&node.client, "$SRV.INFO", 1).remove(0);
    assert_eq!(info["metadata"]["mode"], "core");
    assert_eq!(info["endpoints"].as_array().map(Vec::len), Some(1), "{info}");
}

/// Waits for a heartbeat that `wanted` recognises among those still to come.
#[track_caller]
fn wait_for_beat(beats: &Collector, what: &str, wanted: impl Fn(&Value) -> bool) {
    let seen = beats.on(HEARTBEAT).len();
    wait_until(what, SOON, || beats.on(HEARTBEAT).iter().skip(seen).any(&wanted));
}

fn beating() -> Node {
    Node::start_with(|worker| {
        worker
            .env("WORKER__WORKER__HEARTBEAT_INTERVAL_MS", 100)
            .env("WORKER__POOLS__CPU__MAX_CONCURRENCY", 1)
            .env("WORKER__POOLS__GPU__MAX_CONCURRENCY", 1)
            .env("WORKER__POOLS__IO__MAX_CONCURRENCY", 1)
    })
}

#[test]
fn a_worker_whose_pools_are_all_full_is_busy_and_one_with_a_free_slot_is_not() {
    let node = beating();
    let beats = node.client.collect(&[HEARTBEAT]).expect("listens");
    let in_pool = |class: &str| AssignmentBuilder::sleep(2_500).set("resources", json!({"class": class}));
    let two = [in_pool("cpu"), in_pool("gpu")];
    node.client.assign_all(&two).expect("is sent");
    wait_for_beat(&beats, "two run and the worker is ready", |beat| {
        beat["resources"]["jobs_in_flight"] == 2
            && beat["status"] == "ready"
            && beat["resources"]["gpu"] == 1.0
    });
    let third = [in_pool("io")];
    node.client.assign_all(&third).expect("is sent");
    wait_for_beat(&beats, "three run and the worker is busy", |beat| {
        beat["status"] == "busy"
    });
    node.wait_answered(&[two.to_vec(), third.to_vec()].concat(), SOON);
    wait_for_beat(&beats, "the worker is ready again", |beat| {
        beat["status"] == "ready"
    });
}

#[test]
fn a_worker_whose_state_directory_is_gone_is_degraded_and_says_why() {
    let node = beating();
    let beats = node.client.collect(&[HEARTBEAT]).expect("listens");
    wait_for_beat(&beats, "the worker is ready", |beat| beat["status"] == "ready");
    std::fs::remove_dir_all(node.worker.directory().join("state")).expect("can be removed");
    wait_for_beat(&beats, "the worker is degraded", |beat| {
        beat["status"] == "degraded" && beat["metadata"]["reasons"] == json!(["state_dir"])
    });
    assert_eq!(load(&node.client)["reasons"], json!(["state_dir"]));
}

#[test]
fn a_worker_whose_results_or_claims_no_stream_stores_is_degraded_until_one_does() {
    let nats = NatsServer::start().expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    // Makes the streams, and leaves.
    let mut first = ready_worker(&nats, |worker| worker);
    first.terminate().expect("is told");
    first.wait_exit(SOON).expect("ends");
    let mut worker = program()
        .serve(&nats)
        .env("WORKER__NATS__CREATE_STREAMS", "false")
        .env("WORKER__WORKER__HEARTBEAT_INTERVAL_MS", 100)
        .env("WORKER__NATS__REQUEST_TIMEOUT_MS", 500)
        .start()
        .expect("starts");
    worker.wait_ready().expect("is ready");
    let beats = client.collect(&[HEARTBEAT]).expect("listens");
    for (stream, reason) in [(ANSWERS, "streams"), ("KV_caf-claims", "claims")] {
        let info = client.stream(stream).expect("answers").expect("is there");
        let config = serde_json::to_value(&info.config).expect("is JSON");
        client
            .jetstream_api(&format!("STREAM.DELETE.{stream}"), &json!({}))
            .expect("is deleted");
        client.assign(&AssignmentBuilder::echo()).expect("is sent");
        wait_for_beat(&beats, "the worker is degraded", |beat| {
            let reasons = beat["metadata"]["reasons"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            beat["status"] == "degraded" && reasons.contains(&json!(reason))
        });
        client
            .jetstream_api(&format!("STREAM.CREATE.{stream}"), &config)
            .expect("is made again");
        wait_for_beat(&beats, "the worker is ready again", |beat| {
            beat["status"] == "ready"
        });
    }
}
