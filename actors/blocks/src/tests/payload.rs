//! No failure says what a job has brought: its message, details and internal text all end up in the log.

use std::net::Ipv4Addr;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::settings::SqlMemorySettings;

/// Planted wherever a job can put something.
const MARKER: &str = "hunter2";

/// Runs the job, which must fail without a word of the marker.
async fn fails_silently(registry: &Registry, job_type: &str, given: Value) -> Failure {
    let block = registry.get(job_type).expect("is registered");
    let ended = match block.prepare(inputs(given.clone())) {
        Ok(task) => task.run(context_for(Duration::from_secs(10))).await,
        Err(failure) => Err(failure),
    };
    let failure = ended.expect_err(&given.to_string());
    let told = format!("{} {:?} {:?}", failure.message, failure.internal, failure.details);
    assert!(!told.to_lowercase().contains(MARKER), "{given}: {told}");
    failure
}

/// Answers every connection with this and closes it.
async fn answering(answer: &'static str) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
    let port = listener.local_addr().expect("is bound").port();
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4_096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    port
}

fn blocks(adjust: impl FnOnce(&mut BlockSettings)) -> Registry {
    let mut settings = BlockSettings::default();
    settings.http.allow_targets = vec!["127.0.0.1".to_owned()];
    settings.http.max_redirects = 1;
    settings.http.max_request_bytes = 64;
    settings.sql.allow_inline = true;
    adjust(&mut settings);
    build(&settings, OperationLimits::default(), Extras::default())
        .expect("builds")
        .registry
}

#[test]
fn inputs_that_are_refused_are_not_repeated() {
    let registry = blocks(|_| {});
    block_on(async {
        let long = MARKER.repeat(20);
        for (job_type, given) in [
            ("sleep", json!({"duration_ms": MARKER})),
            ("fail", json!({"error_code": MARKER})),
            ("http.request", json!({"url": MARKER, "method": "GET"})),
            (
                "http.request",
                json!({"url": "http://hunter2:hunter2@a.example/", "method": "GET"}),
            ),
            (
                "http.request",
                json!({"url": "http://a.example:hunter2/hunter2", "method": "GET"}),
            ),
            (
                "http.request",
                json!({"url": "ftp://a.example/hunter2", "method": "GET"}),
            ),
            (
                "http.request",
                json!({"url": "http://10.0.0.1/hunter2?hunter2", "method": "GET"}),
            ),
            (
                "http.request",
                json!({"url": "http://a.example/", "method": MARKER}),
            ),
            (
                "http.request",
                json!({"url": "http://a.example/", "method": "GET", "headers": "{\"hunter2\":1,\"hunter2\":2}"}),
            ),
            (
                "http.request",
                json!({"url": "http://a.example/", "method": "GET", "headers": "hunter2"}),
            ),
            (
                "http.request",
                json!({"url": "http://a.example/", "method": "GET", "headers": {"hunter2 x": "a"}}),
            ),
            (
                "http.request",
                json!({"url": "http://a.example/", "method": "GET", "headers": {"x": "hunter2\r\n"}}),
            ),
            (
                "http.request",
                json!({"url": "http://a.example/", "method": "GET", "headers": {"x": "a\nhunter2"}}),
            ),
            (
                "http.request",
                json!({"url": "http://a.example/", "method": "GET", "headers": {"host": MARKER}}),
            ),
            (
                "http.request",
                json!({"url": "http://a.example/", "method": "GET", "headers": {"x": [MARKER]}}),
            ),
            (
                "http.request",
                json!({"url": "http://a.example/", "method": "POST", "body_base64": "hunter2!"}),
            ),
            (
                "http.request",
                json!({"url": "http://a.example/", "method": "POST", "body": long}),
            ),
            ("fs.put", json!({"path": "data/../hunter2", "content": MARKER})),
            (
                "fs.put",
                json!({"path": "data/x", "content": "hunter2!", "encoding": "base64"}),
            ),
            (
                "fs.put",
                json!({"path": "data/x", "content": MARKER, "encoding": MARKER}),
            ),
            (
                "fs.put",
                json!({"path": "data/x", "content": MARKER, "overwrite": MARKER}),
            ),
            ("sql.query", json!({"query": MARKER, "params": MARKER})),
            ("sql.query", json!({"query": "SELECT 1", "connection": MARKER})),
        ] {
            fails_silently(&registry, job_type, given).await;
        }
    });
}

#[test]
fn failures_of_http_repeat_neither_request_nor_answer() {
    let registry = blocks(|settings| settings.http.max_response_bytes = 16);
    let ask = async |scheme: &str, port: u16| {
        let given = json!({
            "url": format!("{scheme}://127.0.0.1:{port}/hunter2?hunter2#hunter2"), "method": "POST",
            "headers": {"authorization": MARKER, "x-hunter2": MARKER}, "body": MARKER,
        });
        fails_silently(&registry, "http.request", given).await
    };
    block_on(async {
        let refused = ask("http", 1).await;
        assert_eq!(refused.message, "connection refused");
        for answer in [
            "",
            "hunter2",
            "HTTP/1.1 hunter2 hunter2\r\n\r\n",
            "HTTP/1.1 200 hunter2\r\nhunter2 hunter2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: hunter2\r\n\r\n",
            "HTTP/1.1 404 hunter2\r\nhunter2: hunter2\r\nContent-Length: 7\r\n\r\nhunter2",
            "HTTP/1.1 503 hunter2\r\nContent-Length: 9\r\n\r\nhunter2",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhunter2",
            "HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\nhunter2hunter2hunter2",
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 7\r\n\r\nhunter2",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhunter2\r\n",
            "HTTP/1.1 302 Found\r\nLocation: ftp://hunter2:hunter2@hunter2/\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/hunter2\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 307 Found\r\nLocation: /hunter2\r\nContent-Length: 0\r\n\r\n",
        ] {
            ask("http", answering(answer).await).await;
        }
        ask("https", answering("hunter2").await).await;
    });
}

#[test]
fn failures_of_fs_do_not_repeat_content() {
    let place = std::env::temp_dir().join(format!("caf-payload-{}", uuid::Uuid::new_v4().simple()));
    let root = place.clone();
    let registry = blocks(move |settings| {
        settings.fs.roots.insert("data".to_owned(), root);
        settings.fs.max_bytes = 16;
    });
    std::fs::create_dir(&place).expect("creates");
    std::fs::write(place.join("there"), MARKER).expect("writes");
    std::fs::write(place.join("large"), MARKER.repeat(3)).expect("writes");
    block_on(async {
        for path in [
            "data/there",
            "data/there/x",
            "data/../x",
            "nowhere/x",
            "/elsewhere/x",
        ] {
            fails_silently(&registry, "fs.put", json!({"path": path, "content": MARKER})).await;
        }
        let content = MARKER.repeat(3);
        fails_silently(&registry, "fs.put", json!({"path": "data/x", "content": content})).await;
        fails_silently(&registry, "fs.get", json!({"path": "data/large"})).await;
    });
    std::fs::remove_dir_all(&place).expect("removes");
}

#[test]
fn failures_of_sqlite_repeat_no_query_no_parameter_and_no_address() {
    let registry = blocks(|settings| {
        settings.sql.memory = SqlMemorySettings {
            max_bytes: 16,
            ..SqlMemorySettings::default()
        };
    });
    let trigger = "CREATE TABLE t(a); CREATE TRIGGER g BEFORE INSERT ON t BEGIN SELECT RAISE(ABORT, 'hunter2'); END; INSERT INTO t VALUES (1)";
    let search = "CREATE VIRTUAL TABLE f USING fts5(a); SELECT * FROM f WHERE f MATCH ?";
    block_on(async {
        for (query, params) in [
            ("SELECT 'hunter2' FROM none", json!([])),
            ("SELECT 'hunter2' hunter /* hunter2 */ SELEC", json!([])),
            ("SELECT 'a' AS x 'hunter2'", json!([])),
            ("SELECT 'hunter2", json!([])),
            ("SELECT 'it''s hunter2' x y z", json!([])),
            ("SELECT \"hunter2 and more\" FROM sqlite_schema WHERE", json!([])),
            ("SELECT json_extract('{}', 'hunter2')", json!([])),
            ("SELECT json('hunter2')", json!([])),
            ("SELECT json(?)", json!([MARKER])),
            ("SELECT load_extension('hunter2')", json!([])),
            ("ATTACH 'hunter2' AS hunter2", json!([])),
            ("SELECT ?, ?", json!([MARKER])),
            ("SELECT ?", json!(["hunter2hunter2hunter2"])),
            ("-- hunter2", json!([])),
            (
                "CREATE TABLE t(a CHECK (a <> 'hunter2')); INSERT INTO t VALUES (?)",
                json!([MARKER]),
            ),
            (
                "CREATE TABLE t(a UNIQUE); INSERT INTO t VALUES ('hunter2'), ('hunter2')",
                json!([]),
            ),
            ("SELECT 1 LIMIT ?", json!([MARKER])),
            (trigger, json!([])),
            (search, json!(["\"hunter2"])),
            (search, json!(["hunter2:x"])),
            (search, json!(["hunter2 AND"])),
        ] {
            let given = json!({"query": query, "params": params});
            fails_silently(&registry, "sql.query", given).await;
        }
        for connection in [
            "sqlite:///no/such/hunter2/x.db",
            "sqlite://x.db?password=hunter2",
            "postgres://hunter2:hunter2@127.0.0.1:1/hunter2",
            "postgres://hunter2:hunter2@127.0.0.1:port/hunter2",
            "postgres://hunter2:hunter2@/hunter2",
            "mysql://hunter2@h/d",
        ] {
            let given = json!({"query": "SELECT 1", "connection": connection});
            fails_silently(&registry, "sql.query", given).await;
        }
    });
}
