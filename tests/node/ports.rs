//! What strangers can do to the ports of a node: little.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use caf_testkit::http;

use crate::support::Node;

/// More memory than this is too much for whoever asks and does not read, in bytes.
const TOO_MUCH: u64 = 16 * 1024 * 1024;

fn ask(page: &str) -> Vec<u8> {
    format!("GET {page} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").into_bytes()
}

fn ports(node: &mut Node) -> [(u16, &'static str); 3] {
    let worker = &mut node.worker;
    [
        (worker.health_port().expect("is logged"), "/_health"),
        (worker.metrics_port().expect("is logged"), "/metrics"),
        (worker.admin_port().expect("is logged"), "/"),
    ]
}

#[test]
fn a_connection_has_one_answer_and_whoever_asks_without_reading_costs_no_memory() {
    let mut node = Node::start_with(|worker| worker.env("CP2_OBSERVABILITY_METRICS_ENABLED", "true"));
    for (port, page) in ports(&mut node) {
        let mut connection = TcpStream::connect(("127.0.0.1", port)).expect("connects");
        connection.write_all(&ask(page).repeat(3)).expect("is sent");
        let mut answer = Vec::new();
        // It stays open for its time, in silence.
        let patience = Some(Duration::from_millis(500));
        connection.set_read_timeout(patience).expect("is a socket");
        let _ = connection.read_to_end(&mut answer);
        let answers = String::from_utf8_lossy(&answer)
            .matches("HTTP/1.1 200 OK")
            .count();
        assert_eq!(answers, 1, "{page}");

        let before = node.worker.resident_bytes().expect("is known");
        let connections = (0..32).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("connects"));
        let mut connections: Vec<_> = connections.collect();
        let many = ask(page).repeat(1_000);
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            for connection in &mut connections {
                connection.set_nonblocking(true).expect("is a socket");
                // Full, or closed by the other side: both are well.
                let _ = connection.write(&many);
            }
        }
        let grown = node
            .worker
            .resident_bytes()
            .expect("is known")
            .saturating_sub(before);
        assert!(grown < TOO_MUCH, "{page}: {grown} bytes");
        drop(connections);
        assert_eq!(http::get(port, page).expect("answers").status, 200);
    }
    // Nor does it fill the log.
    let errors = node.worker.logs();
    let errors = errors.iter().filter(|log| log["level"] == "ERROR");
    assert_eq!(errors.count(), 0);
}

#[test]
fn garbage_is_no_error_of_the_worker() {
    let mut node = Node::start();
    let port = node.worker.health_port().expect("is logged");
    for _ in 0..20 {
        let mut connection = TcpStream::connect(("127.0.0.1", port)).expect("connects");
        connection
            .write_all(b"\x16\x03\x01 what is this\r\n\r\n")
            .expect("is sent");
        let mut answer = Vec::new();
        let _ = connection.read_to_end(&mut answer);
    }
    node.worker.get("/livez").expect("answers");
    let said = node.worker.logs();
    let said = said.iter().filter(|log| log["context"]["target"].is_string());
    assert_eq!(said.count(), 0);
}
