//! Attacks by way of `http.request` on a whole node: targets that no job may reach, names that change, and servers that pour,
//! dribble and explode; the worker's memory watched, and other jobs served meanwhile.

use std::io::Write as _;
use std::time::Duration;

use caf_testkit::hostile_http::{HostileHttp, Script};
use caf_testkit::resolver::Names;
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, Collector};
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use serde_json::{Value, json};

use crate::support::{Node, SOON, assert_each_answered_once, jobs};

/// A worker whose jobs may reach this machine by 127.0.0.1 only.
fn guarded(adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Node {
    Node::start_with(|worker| adjust(worker.file("config/worker.toml", "[blocks.http]\nallow_targets = [\"127.0.0.1\"]")))
}

fn get(url: &str) -> AssignmentBuilder {
    AssignmentBuilder::new("http.request", json!({"url": url, "method": "GET"})).max_attempts(1)
}

/// Sends them and waits for their results.
fn answered(node: &Node, jobs: &[AssignmentBuilder]) -> (Collector, Vec<Value>) {
    node.client.assign_all(jobs).expect("are sent");
    node.wait_answered(jobs, SOON);
    let answers = node.answers();
    let results = jobs.iter().map(|job| answers.results(job.assignment_id())[0].clone());
    let results = results.collect();
    (answers, results)
}

/// An answer that is all there.
fn whole(head: &str, body: &[u8]) -> Script {
    let mut first = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    first.extend_from_slice(body);
    Script {
        first,
        ..Script::default()
    }
}

fn redirect(to: &str) -> Script {
    whole(&format!("302 Found\r\nLocation: {to}"), b"")
}

fn endless(first: &str, again: &str) -> Script {
    Script {
        first: first.as_bytes().to_vec(),
        again: again.as_bytes().to_vec(),
        ..Script::default()
    }
}

#[test]
fn no_job_reaches_what_is_not_public_by_whatever_way_it_asks() {
    let names = Names::new().expect("are made");
    let server = HostileHttp::start().expect("starts");
    let port = server.port();
    names.set("metadata.google.internal", &["169.254.169.254"]).expect("is set");
    names.set("rebinding.example", &["127.0.0.1", "127.0.0.2"]).expect("is set");
    names.set("mixed.example", &["127.0.0.2 10.0.0.1 127.0.0.1"]).expect("is set");
    names.set("hop.example", &["127.0.0.2"]).expect("is set");
    server.set("/metadata", redirect("http://169.254.169.254/latest/meta-data/"));
    server.set("/name", redirect("http://metadata.google.internal/computeMetadata/v1/"));
    server.set("/hop", redirect(&format!("http://hop.example:{port}/secret")));
    server.set("/spelling", redirect(&format!("//2130706434:{port}/secret")));
    server.set("/file", redirect("file:///etc/passwd"));
    server.set("/ok", whole("200 OK", b"ok"));
    let node = guarded(|worker| worker.names(&names));

    let denied = [
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://metadata.google.internal/".to_owned(),
        format!("http://127.0.0.2:{port}/secret"),
        format!("http://[::1]:{port}/secret"),
        format!("http://[::ffff:127.0.0.2]:{port}/secret"),
        format!("http://0.0.0.0:{port}/secret"),
        format!("http://0x7f.0.0.2:{port}/secret"),
        "http://100.100.100.200/".to_owned(),
        "http://168.63.129.16/".to_owned(),
        "http://8.8.8.8:25/".to_owned(),
        server.url("/metadata"),
        server.url("/name"),
        server.url("/hop"),
        server.url("/spelling"),
    ];
    let mut sent: Vec<_> = denied.iter().map(|url| get(url)).collect();
    // The first call is let through and ends without an answer, the second meets the other address.
    sent.push(get(&format!("http://rebinding.example:{port}/gone")).max_attempts(3));
    sent.push(AssignmentBuilder::echo().set(
        "job",
        json!({"type": "echo", "payload_ref": server.url("/metadata")}),
    ));
    let count = sent.len();
    sent.push(get(&format!("http://mixed.example:{port}/ok")));
    sent.push(get(&server.url("/file")));
    let (answers, results) = answered(&node, &sent);
    for (job, result) in sent.iter().zip(&results).take(count) {
        assert_eq!(result["error"]["code"].as_str().or(result["error_code"].as_str()), Some("PERMISSION_DENIED"), "{job:?} {result}");
        let shown = result.to_string();
        assert!(!shown.contains("169.254") && !shown.contains("127.0.0.2"), "{shown}");
    }
    assert_eq!(results[count]["status"], "success", "{}", results[count]);
    assert_eq!(results[count + 1]["error_code"], "HTTP_ERROR", "{}", results[count + 1]);
    assert_each_answered_once(&answers, &sent);
    assert_eq!(server.reached(), ["127.0.0.1".parse::<std::net::IpAddr>().expect("is one")]);
    assert_eq!(server.seen("/gone").len(), 1);
    assert!(names.looked_up("rebinding.example") >= 2);
}
