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
    Node::start_with(|worker| {
        adjust(worker.file(
            "config/worker.toml",
            "[blocks.http]\nallow_targets = [\"127.0.0.1\"]",
        ))
    })
}

fn get(url: &str) -> AssignmentBuilder {
    AssignmentBuilder::new("http.request", json!({"url": url, "method": "GET"})).max_attempts(1)
}

/// Sends them and waits for their results.
fn answered(node: &Node, jobs: &[AssignmentBuilder]) -> (Collector, Vec<Value>) {
    node.client.assign_all(jobs).expect("are sent");
    node.wait_answered(jobs, SOON);
    let answers = node.answers();
    let results = jobs
        .iter()
        .map(|job| answers.results(job.assignment_id())[0].clone());
    let results = results.collect();
    (answers, results)
}

/// An answer that is all there.
fn whole(head: &str, body: &[u8]) -> Script {
    let mut first = format!(
        "HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
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
    names
        .set("metadata.google.internal", &["169.254.169.254"])
        .expect("is set");
    names
        .set("rebinding.example", &["127.0.0.1", "127.0.0.2"])
        .expect("is set");
    names
        .set("mixed.example", &["127.0.0.2 10.0.0.1 127.0.0.1"])
        .expect("is set");
    names.set("hop.example", &["127.0.0.2"]).expect("is set");
    server.set("/metadata", redirect("http://169.254.169.254/latest/meta-data/"));
    server.set(
        "/name",
        redirect("http://metadata.google.internal/computeMetadata/v1/"),
    );
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
    // What the rules refuse as it is written is refused once, whatever the plan of retries; where a server leads, another
    // try may be led elsewhere.
    let patient = |url: &str| get(url).max_attempts(3);
    let patient_ones = [
        patient("http://169.254.169.254/"),
        patient(&server.url("/metadata")),
    ];
    let (_, tried) = answered(&node, &patient_ones);
    let tries = |result: &Value| (result["error_code"].clone(), result["retries_used"].clone());
    assert_eq!(tries(&tried[0]), (json!("PERMISSION_DENIED"), json!(0)));
    assert_eq!(tries(&tried[1]), (json!("PERMISSION_DENIED"), json!(2)));
    sent.push(get(&format!("http://mixed.example:{port}/ok")));
    sent.push(get(&server.url("/file")));
    let (answers, results) = answered(&node, &sent);
    for (job, result) in sent.iter().zip(&results).take(count) {
        assert_eq!(result["error_code"], "PERMISSION_DENIED", "{job:?} {result}");
        let shown = result.to_string();
        assert!(
            !shown.contains("169.254") && !shown.contains("127.0.0.2"),
            "{shown}"
        );
    }
    assert_eq!(results[count]["status"], "success", "{}", results[count]);
    assert_eq!(
        results[count + 1]["error_code"],
        "HTTP_ERROR",
        "{}",
        results[count + 1]
    );
    sent.extend(patient_ones);
    assert_each_answered_once(&answers, &sent);
    assert_eq!(
        server.reached(),
        ["127.0.0.1".parse::<std::net::IpAddr>().expect("is one")]
    );
    assert_eq!(server.seen("/gone").len(), 1);
    assert!(names.looked_up("rebinding.example") >= 2);
}

/// Hundreds of MiB of zeroes, for each coding as small as it gets.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let zeroes = vec![0; 4 << 20];
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&zeroes).expect("writes");
    // A gzip body may have any number of members.
    let gzip = gzip.finish().expect("finishes").repeat(128);
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
    for _ in 0..16 {
        zlib.write_all(&zeroes).expect("writes");
    }
    // Brotli made by its reference program: metablocks of zeroes, 64 MiB in all.
    let brotli = [
        0xcb, 0xff, 0xff, 0x3f, 0xf8, 0x27, 0x00, 0xe2, 0xb1, 0x40, 0x20, 0xf7, 0xfe, 0x8f, 0xff, 0xff, 0x7f,
        0xf0, 0x4f, 0x00, 0xc4, 0x61, 0x11, 0x80, 0xee, 0xfd, 0x1f, 0xff, 0xff, 0xff, 0xe0, 0x9f, 0x00, 0x88,
        0xc3, 0x02, 0x00, 0xdd, 0xfb, 0x3f, 0xfe, 0xff, 0xff, 0xc1, 0x3f, 0x01, 0x10, 0x87, 0x05, 0x00, 0xba,
        0xf7, 0x7f, 0xfc, 0xff, 0xff, 0x83, 0x7f, 0x02, 0x20, 0x0e, 0x0b, 0x00, 0x74, 0xef, 0xff, 0xf8, 0xff,
        0xff, 0x07, 0xff, 0x04, 0x40, 0x1c, 0x16, 0x00, 0xe8, 0xde, 0xff, 0xf1, 0xff, 0xff, 0x0f, 0xfe, 0x09,
        0x80, 0x38, 0x2c, 0x00, 0xd0, 0xbd, 0xff, 0xe3, 0xff, 0xff, 0x1f, 0xfc, 0x13, 0x00, 0x71, 0x58, 0x00,
        0xa0, 0x7b, 0xff, 0x37,
    ];
    // Zstandard: blocks that each say "128 KiB of this byte" (RFC 8878, section 3.1.1.2).
    let mut zstd = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 10 << 3];
    for block in 1..=4_096_u32 {
        let header = u32::from(block == 4_096) | 1 << 1 | (128 * 1024) << 3;
        zstd.extend_from_slice(&header.to_le_bytes()[..3]);
        zstd.push(0);
    }
    vec![
        ("gzip", gzip),
        ("deflate", zlib.finish().expect("finishes")),
        ("br", brotli.to_vec()),
        ("zstd", zstd),
    ]
}

/// Answers without end, and what each ends with.
fn floods() -> Vec<(&'static str, Script, &'static str)> {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let line = "x".repeat(4_000);
    let slowly = |first: &str, again: &str| Script {
        pause: Duration::from_millis(20),
        ..endless(first, again)
    };
    vec![
        (
            "/body",
            endless("HTTP/1.1 200 OK\r\n\r\n", &line),
            "RESOURCE_UNAVAILABLE",
        ),
        (
            "/chunks",
            endless(chunked, &format!("fa0\r\n{line}\r\n")),
            "RESOURCE_UNAVAILABLE",
        ),
        (
            "/length",
            endless("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", &line),
            "RESOURCE_UNAVAILABLE",
        ),
        (
            "/extension",
            endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", &line),
            "RESOURCE_UNAVAILABLE",
        ),
        (
            "/headers",
            endless("HTTP/1.1 200 OK\r\n", "a: b\r\n"),
            "RESOURCE_UNAVAILABLE",
        ),
        (
            "/header",
            endless("HTTP/1.1 200 OK\r\na: ", &line),
            "RESOURCE_UNAVAILABLE",
        ),
        (
            "/interim",
            endless("", "HTTP/1.1 100 Continue\r\n\r\n"),
            "RESOURCE_UNAVAILABLE",
        ),
        (
            "/both",
            whole("200 OK\r\nTransfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"),
            "NETWORK_ERROR",
        ),
        ("/garbage", endless(chunked, "garbage"), "NETWORK_ERROR"),
        ("/old", endless("<html>", ""), "NETWORK_ERROR"),
        (
            "/slow-head",
            slowly("HTTP/1.1 200 OK\r\n", "a"),
            "CONNECTION_TIMEOUT",
        ),
        (
            "/slow-body",
            slowly("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", "a"),
            "CONNECTION_TIMEOUT",
        ),
        (
            "/silent",
            Script {
                stays: true,
                ..Script::default()
            },
            "CONNECTION_TIMEOUT",
        ),
    ]
}

#[test]
fn servers_that_pour_dribble_and_explode_end_their_own_jobs_only_and_take_no_memory() {
    let server = HostileHttp::start().expect("starts");
    server.set("/ok", whole("200 OK", b"ok"));
    let node = guarded(|worker| {
        worker
            .policy("timeout", &json!({"http_connection": {"read_timeout_ms": 3_000}}))
            .env("CP2_COMPLETE_TIMEOUT_ENABLED", "true")
            .env("WORKER__BLOCKS__HTTP__MAX_RESPONSE_BYTES", 1 << 20)
    });
    node.assert_alive();
    let before = node.worker.peak_resident_bytes().expect("runs");
    let mut expected = Vec::new();
    for (coding, bomb) in bombs() {
        let path = format!("/{coding}");
        server.set(
            &path,
            whole(&format!("200 OK\r\nContent-Encoding: {coding}"), &bomb),
        );
        expected.push((get(&server.url(&path)), "RESOURCE_UNAVAILABLE"));
    }
    for (path, script, code) in floods() {
        server.set(path, script);
        expected.push((get(&server.url(path)), code));
    }
    // The deadline comes first, and is told as what it is.
    expected.push((
        get(&server.url("/slow-body")).deadline_ms(200),
        "CANCELLED_BY_TIMEOUT",
    ));
    let hostile: Vec<_> = expected.iter().map(|(job, _)| job.clone()).collect();
    let others = jobs(30, |n| match n % 2 {
        0 => AssignmentBuilder::echo(),
        _ => get(&server.url("/ok")).tenant("globex"),
    });
    node.client.assign_all(&hostile).expect("are sent");
    let (_, served) = answered(&node, &others);
    assert!(
        served.iter().all(|result| result["status"] == "success"),
        "{served:?}"
    );
    node.wait_answered(&hostile, SOON);
    let answers = node.answers();
    for (job, code) in &expected {
        let result = &answers.results(job.assignment_id())[0];
        assert_eq!(result["error_code"], *code, "{job:?} {result}");
    }
    let grown = node
        .worker
        .peak_resident_bytes()
        .expect("runs")
        .saturating_sub(before);
    println!("peak of memory grew by {} MiB", grown >> 20);
    assert!(grown < 128 << 20, "{grown}");
    node.assert_alive();
}

#[test]
fn secret_headers_stay_with_their_origin_and_rules_of_a_tenant_change_while_the_node_runs() {
    let server = HostileHttp::start().expect("starts");
    let other = HostileHttp::start().expect("starts");
    server.set("/here", redirect("/there"));
    server.set("/there", redirect(&other.url("/end")));
    other.set("/end", whole("200 OK", b"ok"));
    let mut node = guarded(|worker| worker);
    let headers = json!({"Authorization": "Bearer hunter2", "Cookie": "hunter2", "X-Api-Key": "hunter2", "X-Keep": "kept"});
    let inputs = json!({"url": server.url("/here"), "method": "GET", "headers": headers});
    let (_, results) = answered(&node, &[AssignmentBuilder::new("http.request", inputs)]);
    assert_eq!(results[0]["status"], "success", "{}", results[0]);
    assert_eq!(server.seen("/there")[0].head.matches("hunter2").count(), 3);
    let end = &other.seen("/end")[0].head;
    assert!(end.contains("kept") && !end.contains("hunter2"), "{end}");

    let barred = "[blocks.http]\nallow_targets = [\"127.0.0.1\"]\n[blocks.http.tenants.globex]\ndeny_targets = [\"127.0.0.0/8\"]";
    std::fs::write(node.worker.directory().join("config/worker.toml"), barred).expect("is written");
    let ask = || [get(&other.url("/end")).tenant("globex"), get(&other.url("/end"))];
    let (_, results) = answered(&node, &ask());
    assert!(
        results.iter().all(|result| result["status"] == "success"),
        "{results:?}"
    );
    node.worker.hang_up().expect("is told");
    node.worker
        .wait_for_message("Settings reloaded")
        .expect("is said");
    let (_, results) = answered(&node, &ask());
    assert_eq!(results[0]["error_code"], "PERMISSION_DENIED", "{}", results[0]);
    assert_eq!(results[1]["status"], "success", "{}", results[1]);
}
