//! `dlq list`, `show` and `replay`, as an operator meets them beside a worker that gave jobs up.

use caf_actors::events::Log;
use caf_actors::nats::dead_letters::DeadLetters;
use caf_actors::settings::NatsSettings;
use caf_testkit::client::{ACK, DLQ, RESULT};
use caf_testkit::worker::Finished;
use caf_testkit::{AssignmentBuilder, Client, NatsOptions, NatsServer, wait_until};
use serde_json::{Value, json};

use crate::support::{ANSWERS, ASSIGNMENTS, LETTERS, Node, SOON, program, ready_worker};

/// Runs `dlq` beside this broker.
fn dlq(nats: &NatsServer, arguments: &[&str]) -> Finished {
    program()
        .arg("dlq")
        .args(arguments)
        .env("NATS_URL", nats.url())
        .run(SOON)
        .expect("ends by itself")
}

/// As [`dlq`], for JSON lines; every line must be one.
fn lines(nats: &NatsServer, arguments: &[&str], code: i32) -> Vec<Value> {
    let finished = dlq(nats, &[arguments, &["--output", "json"]].concat());
    assert_eq!(finished.code(), Some(code), "{arguments:?}: {finished:?}");
    let stdout = finished.stdout();
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    stdout.lines().map(parse).collect()
}

fn outcomes(lines: &[Value]) -> Vec<&str> {
    lines
        .iter()
        .map(|line| line["outcome"].as_str().unwrap_or_default())
        .collect()
}

fn failing() -> AssignmentBuilder {
    AssignmentBuilder::new("fail", json!({"error_code": "INTERNAL_ERROR"})).max_attempts(1)
}

/// Sends jobs and waits for the letters, which come after the results, in this order.
fn give_up(node: &Node, jobs: &[AssignmentBuilder]) {
    for job in jobs {
        let before = letters(&node.client);
        node.client.assign(job).expect("is sent");
        wait_for_letters(&node.client, before + 1);
    }
}

fn letters(client: &Client) -> u64 {
    client.stream_count(LETTERS).expect("the broker answers")
}

fn wait_for_letters(client: &Client, count: u64) {
    wait_until("the letters are there", SOON, || letters(client) >= count);
}

/// Message ids of one subject's messages about an assignment, oldest first.
fn message_ids(client: &Client, subject: &str, assignment_id: &str) -> Vec<String> {
    let stream = if subject == DLQ { LETTERS } else { ANSWERS };
    let messages = client.stream_messages(stream).expect("can be read");
    messages
        .iter()
        .filter(|message| message.subject == subject && message.json()["assignment_id"] == assignment_id)
        .map(|message| message.header("Nats-Msg-Id").unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn a_replayed_job_runs_again_and_is_answered_under_ids_of_its_own() {
    let node = Node::start();
    let job = AssignmentBuilder::new("fs.blob_get", json!({"path": "data/late.txt"})).max_attempts(1);
    let id = job.assignment_id();
    give_up(&node, std::slice::from_ref(&job));
    let directory = node.worker.directory().join("data");
    std::fs::create_dir_all(&directory).expect("can be made");
    std::fs::write(directory.join("late.txt"), "there").expect("can be written");

    let replayed = lines(&node.nats, &["replay", "1"], 0);
    assert_eq!(outcomes(&replayed), ["replayed"]);
    assert_eq!(
        (&replayed[0]["assignment_id"], &replayed[0]["replay"]),
        (&json!(id), &json!(1))
    );
    wait_until("the replay is answered", SOON, || {
        message_ids(&node.client, RESULT, id).len() == 2
    });
    assert_eq!(
        message_ids(&node.client, RESULT, id),
        [format!("{id}.result"), format!("{id}.r1.result")]
    );
    assert_eq!(
        message_ids(&node.client, ACK, id),
        [format!("{id}.ack"), format!("{id}.r1.ack")]
    );
    let results = node.answers().results(id);
    assert_eq!(
        (&results[0]["status"], &results[1]["status"]),
        (&json!("error"), &json!("success"))
    );
    assert_eq!(results[1]["outputs"]["content"], "there");

    // Once more only when that is asked for.
    let refused = lines(&node.nats, &["replay", "1"], 1);
    assert_eq!(outcomes(&refused), ["refused"]);
    let why = refused[0]["why"].as_str().unwrap_or_default();
    assert!(
        why.contains("replayed as replay 1 at") && why.contains("--again sends it once more as replay 2"),
        "{why}"
    );
    assert_eq!(message_ids(&node.client, RESULT, id).len(), 2);
    let again = lines(&node.nats, &["replay", "1", "--again"], 0);
    assert_eq!(
        (&again[0]["outcome"], &again[0]["replay"]),
        (&json!("replayed"), &json!(2))
    );
    wait_until("the second replay is answered", SOON, || {
        message_ids(&node.client, RESULT, id).len() == 3
    });
    let capped = lines(&node.nats, &["replay", "1", "--again", "--max-replays", "2"], 1);
    assert!(
        capped[0]["why"].as_str().unwrap_or_default().contains("2 times"),
        "{capped:?}"
    );
    node.assert_alive();
}

/// Last sequence of the stream of assignments: it tells whether anything was sent.
fn last_assignment(client: &Client) -> u64 {
    let info = client.stream(ASSIGNMENTS).expect("the broker answers");
    info.expect("it is there").state.last_sequence
}

/// Key of the marker of a letter, as a subject.
fn marker_subject(sequence: u64) -> String {
    format!("$KV.caf-state.replayed.caf-dlq.{sequence}")
}

/// The last marker of a letter, if any.
fn marker(client: &Client, sequence: u64) -> Option<Value> {
    let messages = client.stream_messages("KV_caf-state").expect("can be read");
    let of_letter = |message: &&caf_testkit::client::Message| message.subject == marker_subject(sequence);
    messages.iter().rfind(of_letter).map(|message| message.json())
}

#[test]
fn a_letter_whose_replay_succeeded_is_told_in_lists_and_chosen_by_no_filter() {
    let node = Node::start();
    let job = AssignmentBuilder::new("fs.blob_get", json!({"path": "data/late.txt"})).max_attempts(1);
    let id = job.assignment_id();
    give_up(&node, &[job.clone(), failing(), failing()]);
    node.client
        .publish("caf.exec.assign.v1", &[], "not json")
        .expect("is sent");
    wait_for_letters(&node.client, 4);
    let directory = node.worker.directory().join("data");
    std::fs::create_dir_all(&directory).expect("can be made");
    std::fs::write(directory.join("late.txt"), "there").expect("can be written");
    assert_eq!(outcomes(&lines(&node.nats, &["replay", "1"], 0)), ["replayed"]);
    wait_until("the replay is answered", SOON, || {
        message_ids(&node.client, RESULT, id).len() == 2
    });

    let listed = lines(&node.nats, &["list", "--assignment", id], 0);
    assert_eq!(listed[0]["replays"], 1);
    assert!(listed[0]["replayed_at"].is_string(), "{listed:?}");
    let shown = &lines(&node.nats, &["show", "1"], 0)[0];
    assert_eq!(
        (&shown["replays"], &shown["replayed_at"]),
        (&json!(1), &listed[0]["replayed_at"])
    );
    let table = dlq(&node.nats, &["list", "--assignment", id]).stdout();
    assert!(
        table
            .lines()
            .nth(1)
            .is_some_and(|row| row.trim_end().ends_with('1')),
        "{table}"
    );
    let text = dlq(&node.nats, &["show", "1"]).stdout();
    assert!(text.contains("replayed as replay 1 at"), "{text}");

    // What is skipped uses nothing of the cap, and is no error.
    let before = last_assignment(&node.client);
    let only = dlq(&node.nats, &["replay", "--assignment", id]);
    assert_eq!(
        (only.code(), only.stdout().lines().count()),
        (Some(0), 0),
        "{only:?}"
    );
    assert!(
        only.stderr().contains("1 skipped: they were replayed already"),
        "{only:?}"
    );
    assert_eq!(last_assignment(&node.client), before);
    let all = dlq(&node.nats, &["replay", "--all", "--max", "1", "--output", "json"]);
    assert_eq!(all.code(), Some(0), "{all:?}");
    let sent: Value = serde_json::from_str(all.stdout().trim()).expect("is one line");
    assert_eq!(
        (&sent["sequence"], &sent["outcome"]),
        (&json!(2), &json!("replayed"))
    );
    for words in [
        "1 skipped: they were replayed already",
        "1 skipped: they cannot be replayed",
        "1 more match",
    ] {
        assert!(all.stderr().contains(words), "{words}: {all:?}");
    }
    assert_eq!(last_assignment(&node.client), before + 1);
}

#[test]
fn a_replay_that_was_not_confirmed_is_sent_again_under_its_number_and_markers_go_with_their_letters() {
    let node = Node::start();
    give_up(&node, &[failing(), failing()]);
    assert_eq!(outcomes(&lines(&node.nats, &["replay", "1"], 0)), ["replayed"]);
    wait_for_letters(&node.client, 3);
    let mut kept = marker(&node.client, 1).expect("is kept");
    assert_eq!((&kept["replay"], &kept["confirmed"]), (&json!(1), &json!(true)));

    // As a run leaves it that ends between sending and the confirmation.
    kept["confirmed"] = json!(false);
    kept["sent_at_ms"] = json!(kept["sent_at_ms"].as_u64().map(|at| at - 60_000));
    node.client
        .publish(&marker_subject(1), &[], kept.to_string())
        .expect("is sent");
    wait_until("the marker is there", SOON, || {
        marker(&node.client, 1).is_some_and(|marker| marker["confirmed"] == false)
    });
    let listed = lines(&node.nats, &["list", "--limit", "3"], 0);
    assert_eq!(
        (&listed[0]["replays"], &listed[0]["unconfirmed_replay"]),
        (&json!(0), &json!(1))
    );
    let before = last_assignment(&node.client);
    let again = lines(&node.nats, &["replay", "1"], 0);
    assert_eq!(
        (&again[0]["outcome"], &again[0]["replay"]),
        (&json!("already_replayed"), &json!(1))
    );
    assert_eq!(last_assignment(&node.client), before, "the stream dropped it");
    assert_eq!(lines(&node.nats, &["replay", "1"], 1)[0]["outcome"], "refused");

    node.client
        .jetstream_api("STREAM.PURGE.caf-dlq", &json!({"seq": 2}))
        .expect("is purged");
    assert_eq!(outcomes(&lines(&node.nats, &["replay", "2"], 0)), ["replayed"]);
    assert_eq!(marker(&node.client, 1), None);
    assert!(marker(&node.client, 2).is_some());
}

#[test]
fn where_replays_cannot_be_remembered_none_is_sent() {
    let node = Node::start();
    give_up(&node, &[failing()]);
    let before = last_assignment(&node.client);
    for arguments in [
        &["replay", "1"][..],
        &["replay", "1", "--again"],
        &["replay", "--all"],
    ] {
        let finished = program()
            .arg("dlq")
            .args(arguments)
            .env("NATS_URL", node.nats.url())
            .env("WORKER__NATS__CREATE_STREAMS", "false")
            .env("WORKER__NATS__STATE_BUCKET", "not-there")
            .run(SOON)
            .expect("ends by itself");
        assert_eq!(finished.code(), Some(69), "{finished:?}");
        assert!(
            finished
                .stderr()
                .contains("replays cannot be remembered: key-value bucket not-there"),
            "{finished:?}"
        );
    }
    assert_eq!(last_assignment(&node.client), before);
    assert_eq!(dlq(&node.nats, &["list"]).code(), Some(0));
}

#[test]
fn a_replay_of_a_replay_counts_two_and_the_cap_ends_it() {
    let node = Node::start();
    let job = failing();
    let id = job.assignment_id();
    give_up(&node, &[job.clone(), failing()]);
    assert_eq!(outcomes(&lines(&node.nats, &["replay", "1"], 0)), ["replayed"]);
    wait_for_letters(&node.client, 3);
    let third = &lines(&node.nats, &["show", "3"], 0)[0]["letter"];
    assert_eq!(
        (&third["replay"], &third["assignment_id"]),
        (&json!(1), &json!(id))
    );

    // Of the letters of one assignment only the last is replayed, the other assignment too, and no new letter.
    let all = lines(&node.nats, &["replay", "--all"], 0);
    let sent: Vec<_> = all
        .iter()
        .map(|line| (line["sequence"].as_u64(), line["replay"].as_u64()))
        .collect();
    assert_eq!(sent, [(Some(2), Some(1)), (Some(3), Some(2))]);
    wait_for_letters(&node.client, 5);
    assert_eq!(
        message_ids(&node.client, RESULT, id),
        [
            format!("{id}.result"),
            format!("{id}.r1.result"),
            format!("{id}.r2.result")
        ]
    );
    let listed = lines(&node.nats, &["list", "--assignment", id], 0);
    let replays: Vec<_> = listed.iter().map(|row| row["replays"].as_u64()).collect();
    // The first two were replayed themselves, the last by nobody yet.
    assert_eq!(replays, [Some(1), Some(2), Some(2)]);

    let last = listed[2]["sequence"].to_string();
    let refused = lines(&node.nats, &["replay", &last, "--max-replays", "2"], 1);
    assert_eq!(outcomes(&refused), ["refused"]);
    assert!(
        refused[0]["why"].as_str().unwrap_or_default().contains("2 times"),
        "{refused:?}"
    );
    assert_eq!(letters(&node.client), 5);
}

#[test]
fn letters_are_listed_by_filter_and_shown_whole() {
    let node = Node::start_with(|worker| worker.env("WORKER__WORKER__ID", "w-7"));
    let jobs = [
        failing().tenant("acme"),
        failing().tenant("other"),
        AssignmentBuilder::new("no.such.type", json!({})).tenant("acme"),
    ];
    give_up(&node, &jobs);
    node.client
        .publish("caf.exec.assign.v1", &[], "not json")
        .expect("is sent");
    wait_for_letters(&node.client, 4);
    let sequences = |filter: &[&str]| -> Vec<u64> {
        let listed = lines(&node.nats, &[&["list"], filter].concat(), 0);
        listed.iter().filter_map(|row| row["sequence"].as_u64()).collect()
    };
    for (filter, expected) in [
        (&[][..], &[1, 2, 3, 4][..]),
        (&["--tenant", "acme"], &[1, 3]),
        (&["--tenant", "acme", "--job-type", "fail"], &[1]),
        (&["--assignment", jobs[1].assignment_id()], &[2]),
        (&["--reason", "unreadable"], &[4]),
        (&["--error-code", "INTERNAL_ERROR"], &[1, 2]),
        (&["--job-type", "no.such.type"], &[3]),
        (&["--worker", "w-7"], &[1, 2, 3, 4]),
        (&["--worker", "w-8"], &[]),
        (&["--since", "1h"], &[1, 2, 3, 4]),
        (&["--since", "0s"], &[]),
        (&["--until", "1h"], &[]),
        (&["--after", "2"], &[3, 4]),
        (&["--after", "4"], &[]),
        (&["--limit", "1"], &[4]),
    ] {
        assert_eq!(sequences(filter), expected, "{filter:?}");
    }
    let table = dlq(&node.nats, &["list", "--limit", "2"]);
    let out = table.stdout();
    assert!(out.starts_with("SEQ") && out.contains("no.such.type"), "{out}");
    assert!(table.stderr().contains("the last 2 of 4"), "{}", table.stderr());

    let shown = &lines(&node.nats, &["show", "1"], 0)[0];
    let letter = &shown["letter"];
    assert_eq!(shown["sequence"], 1);
    assert_eq!(letter["original_payload"], jobs[0].value().to_string());
    assert_eq!(letter["attempts"][0]["worker_id"], "w-7");
    assert!(letter["attempts"][0]["started_at"].is_u64());
    assert_eq!(
        (&letter["stream"], &letter["retries_used"]),
        (&json!(ASSIGNMENTS), &json!(0))
    );
    let text = dlq(&node.nats, &["show", "1"]).stdout();
    assert!(
        text.contains("reason: execution_failed") && text.contains(jobs[0].assignment_id()),
        "{text}"
    );
    let absent = dlq(&node.nats, &["show", "99"]);
    assert_eq!(absent.code(), Some(1));
    assert!(absent.stderr().contains("99"), "{}", absent.stderr());
    assert_eq!(node.answers().objections(), Vec::<String>::new());
}

#[test]
fn a_dry_run_sends_nothing_and_a_cap_leaves_the_rest() {
    let node = Node::start();
    let jobs = [failing(), failing(), failing()];
    give_up(&node, &jobs);
    let last = || {
        let info = node.client.stream(ASSIGNMENTS).expect("the broker answers");
        info.map(|info| info.state.last_sequence)
    };
    let before = last();
    let dry = lines(
        &node.nats,
        &["replay", "--error-code", "INTERNAL_ERROR", "--dry-run"],
        0,
    );
    assert_eq!(outcomes(&dry), ["would_replay"; 3]);
    assert_eq!(dry[1]["payload"], jobs[1].value().to_string());
    assert_eq!(dry[1]["subject"], "caf.exec.assign.v1");
    assert_eq!(
        dry[1]["headers"],
        json!({"Caf-Replay": "1", "Nats-Msg-Id": "caf-dlq.2.replay.1"})
    );
    assert_eq!(last(), before);

    let first = dlq(&node.nats, &["replay", "--all", "--max", "2"]);
    assert_eq!(first.code(), Some(0));
    assert!(first.stderr().contains("1 more match"), "{}", first.stderr());
    assert!(first.stderr().contains("--after 2"), "{}", first.stderr());
    assert_eq!(first.stdout().lines().count(), 2);
    assert_eq!(last(), before.map(|last| last + 2));
}

#[test]
fn letters_that_cannot_be_replayed_are_refused_by_name_and_the_others_go() {
    let node = Node::start();
    give_up(&node, &[failing()]);
    node.client
        .publish("caf.exec.assign.v1", &[], "not json")
        .expect("is sent");
    wait_for_letters(&node.client, 2);
    // Who else writes there is not believed.
    let forged = json!({
        "assignment_id": "a", "tenant_id": "t", "original_subject": "caf.exec.assign.v1", "original_payload": "{}",
        "original_payload_hash": "0".repeat(64),
    });
    node.client
        .publish(DLQ, &[], forged.to_string())
        .expect("is sent");
    wait_for_letters(&node.client, 3);
    let lines = lines(&node.nats, &["replay", "1", "2", "3", "77"], 1);
    assert_eq!(outcomes(&lines), ["replayed", "refused", "refused", "refused"]);
    for (line, why) in lines[1..].iter().zip(["unreadable", "hash", "no dead letter"]) {
        assert!(line["why"].as_str().unwrap_or_default().contains(why), "{line}");
    }
    let text = dlq(&node.nats, &["replay", "2"]);
    assert_eq!(text.code(), Some(1));
    assert!(text.stdout().contains("refused"), "{}", text.stdout());
}

#[test]
fn with_hashes_only_no_letter_holds_what_a_tenant_sent_and_none_is_replayed() {
    let node = Node::start_with(|worker| worker.env("WORKER__DLQ__PAYLOAD", "hash"));
    give_up(&node, &[failing().set("note", json!("private-words"))]);
    let letter = &node.client.stream_messages(LETTERS).expect("can be read")[0];
    assert!(!String::from_utf8_lossy(&letter.payload).contains("private-words"));
    assert_eq!(letter.json()["original_payload_omitted"], "by_setting");
    let refused = lines(&node.nats, &["replay", "1"], 1);
    assert!(
        refused[0]["why"]
            .as_str()
            .unwrap_or_default()
            .contains("dlq.payload"),
        "{refused:?}"
    );
}

#[test]
fn exit_codes_tell_a_wrong_call_from_a_missing_server() {
    let nats = NatsServer::start().expect("the broker starts");
    for arguments in [
        &["replay"][..],
        &["replay", "1", "--all"],
        &["replay", "1", "--tenant", "t"],
        &["replay", "1", "2", "--max", "1"],
        &["replay", "--all", "--max-replays", "0"],
        &["list", "--since", "yesterday"],
        &["show"],
        &["show", "x"],
    ] {
        assert_eq!(dlq(&nats, arguments).code(), Some(64), "{arguments:?}");
    }
    let empty = dlq(&nats, &["list"]);
    assert_eq!(empty.code(), Some(69), "{}", empty.stderr());
    assert!(
        empty.stderr().contains("no stream stores caf.exec.dlq.v1"),
        "{}",
        empty.stderr()
    );
    let nobody = program()
        .args(["dlq", "list"])
        .env("NATS_URL", "nats://127.0.0.1:1")
        .env("WORKER__NATS__CONNECT_DEADLINE_MS", 200)
        .run(SOON)
        .expect("ends by itself");
    assert_eq!(nobody.code(), Some(69));
}

#[test]
fn without_a_stream_of_assignments_a_replay_is_sent_plainly_and_says_so() {
    let nats = NatsServer::start_with(NatsOptions::jetstream()).expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    client
        .jetstream_api(
            "STREAM.CREATE.caf-dlq",
            &json!({"name": LETTERS, "subjects": [DLQ]}),
        )
        .expect("is created");
    let _worker = ready_worker(&nats, |worker| worker.env("WORKER__NATS__MODE", "core"));
    let answers = client.collect_answers().expect("can listen");
    let job = failing();
    client.assign(&job).expect("is sent");
    wait_for_letters(&client, 1);
    let finished = dlq(&nats, &["replay", "1"]);
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
    assert!(
        finished.stderr().contains("no stream stores caf.exec.assign.v1"),
        "{}",
        finished.stderr()
    );
    wait_until("the replay is answered and its letter kept", SOON, || {
        answers.results(job.assignment_id()).len() == 2 && letters(&client) == 2
    });
}

#[test]
fn of_runs_that_replay_the_same_letter_at_once_one_sends() {
    // Without a stream of assignments, so that no server drops a second copy.
    let nats = NatsServer::start_with(NatsOptions::jetstream()).expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    client
        .jetstream_api(
            "STREAM.CREATE.caf-dlq",
            &json!({"name": LETTERS, "subjects": [DLQ]}),
        )
        .expect("is created");
    let _worker = ready_worker(&nats, |worker| worker.env("WORKER__NATS__MODE", "core"));
    client.assign(&failing()).expect("is sent");
    wait_for_letters(&client, 1);
    let runs: Vec<_> = std::thread::scope(|scope| {
        let run = || dlq(&nats, &["replay", "1", "--output", "json"]);
        let runs: Vec<_> = (0..6).map(|_| scope.spawn(run)).collect();
        runs.into_iter().map(|run| run.join().expect("ends")).collect()
    });
    let sent = runs.iter().filter(|run| run.code() == Some(0)).count();
    let refused = runs
        .iter()
        .filter(|run| run.code() == Some(1) && run.stdout().contains("refused"))
        .count();
    assert_eq!((sent, refused), (1, 5), "{runs:?}");
}

#[test]
fn of_two_that_saw_the_same_of_a_letter_one_may_send_and_what_was_noted_only_rises() {
    let nats = NatsServer::start().expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    client
        .jetstream_api(
            "STREAM.CREATE.caf-dlq",
            &json!({"name": LETTERS, "subjects": [DLQ]}),
        )
        .expect("is created");
    let settings = NatsSettings {
        url: nats.url(),
        ..NatsSettings::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("is built");
    runtime.block_on(async {
        let letters = DeadLetters::connect(&settings, &Log::discard())
            .await
            .expect("connects");
        let one = letters.replays(true).await.expect("is made");
        let other = letters.replays(true).await.expect("is there");
        // First where nothing is kept, then where something is.
        for replay in [1, 2] {
            let seen = one.get(7).await.expect("is read");
            let same = other.get(7).await.expect("is read");
            assert_eq!(seen.marker, same.marker);
            assert!(one.begin(7, replay, 1, &seen).await.expect("is noted"));
            assert!(!other.begin(7, replay, 2, &same).await.expect("answers"));
            one.confirm(7, replay, 3).await.expect("is noted");
        }
        other.confirm(7, 1, 4).await.expect("is noted already");
        let kept = other.all().await.expect("is read").remove(&7).expect("is kept");
        assert_eq!((kept.replay, kept.sent_at_ms, kept.confirmed), (2, 3, true));
    });
}
