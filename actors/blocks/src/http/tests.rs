mod hostile;

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::time::Duration;

use caf_protocol::limit::RanOut;
use caf_protocol::reference::{Fetch, Location};
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::tests::{block_on, context, context_for, inputs};

/// What the server does with each request, in order; the last entry serves all further ones. Requests are kept.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicU64>,
}

/// One answer: bytes to write, then what happens to the connection.
#[derive(Clone)]
struct Answer {
    bytes: Vec<u8>,
    then: Then,
}

#[derive(Clone, Copy)]
enum Then {
    Keep,
    Close,
    Hang,
}

fn answer(text: impl Into<Vec<u8>>, then: Then) -> Answer {
    Answer {
        bytes: text.into(),
        then,
    }
}

/// An answer with a length.
fn sized(status: &str, headers: &str, body: &[u8]) -> Answer {
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    answer(bytes, Then::Keep)
}

async fn serve(answers: Vec<Answer>) -> Server {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
    let server = Server {
        address: listener.local_addr().expect("is bound"),
        requests: Arc::default(),
        connections: Arc::default(),
    };
    let (requests, connections) = (Arc::clone(&server.requests), Arc::clone(&server.connections));
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::Relaxed);
            let (requests, answers) = (Arc::clone(&requests), answers.clone());
            tokio::task::spawn_local(async move {
                while let Some(request) = read_request(&mut stream).await {
                    let index = {
                        let mut all = requests.lock().expect("not poisoned");
                        all.push(request);
                        all.len() - 1
                    };
                    let answer = &answers[index.min(answers.len() - 1)];
                    if stream.write_all(&answer.bytes).await.is_err() {
                        return;
                    }
                    match answer.then {
                        Then::Keep => {}
                        Then::Close => return,
                        Then::Hang => std::future::pending().await,
                    }
                }
            });
        }
    });
    server
}

async fn read_request(stream: &mut tokio::net::TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok())
                .unwrap_or(0);
            if body.len() >= length {
                return Some(text);
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

impl Server {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("not poisoned").clone()
    }
}

fn settings() -> HttpSettings {
    HttpSettings {
        allow_targets: vec!["127.0.0.1".to_owned(), "localhost".to_owned()],
        ..HttpSettings::default()
    }
}

fn block(settings: &HttpSettings) -> HttpRequest {
    HttpRequest::new(settings, OperationLimits::default(), Extras::default()).expect("builds")
}

async fn send(block: &HttpRequest, given: Value) -> Result<Outputs, Failure> {
    block.prepare(inputs(given))?.run(context()).await
}

async fn get(settings: &HttpSettings, url: String) -> Result<Outputs, Failure> {
    send(&block(settings), json!({"url": url, "method": "GET"})).await
}

/// One GET, one answer.
fn ask(settings: &HttpSettings, answer: Answer) -> Result<Outputs, Failure> {
    block_on(async {
        let server = serve(vec![answer]).await;
        get(settings, server.url("/")).await
    })
}

#[test]
fn an_answer_becomes_status_headers_body_and_latency() {
    let headers = "X-A: 1\r\nx-a: 2\r\nContent-Type: text/plain\r\n";
    let outputs = ask(&settings(), sized("200 OK", headers, "grüß".as_bytes())).expect("succeeds");
    assert_eq!(outputs["status_code"], json!(200));
    assert_eq!(outputs["body"], json!("grüß"));
    assert_eq!(outputs["headers"]["x-a"], json!("1, 2"));
    assert_eq!(outputs["headers"]["content-type"], json!("text/plain"));
    assert!(outputs["latency_ms"].is_u64());
    assert!(!outputs.contains_key("encoding"));
}

#[test]
fn a_body_that_is_not_text_comes_as_base64() {
    let outputs = ask(&settings(), sized("200 OK", "", &[0xff, 0x00])).expect("succeeds");
    assert_eq!(
        (&outputs["body"], &outputs["encoding"]),
        (&json!("/wA="), &json!("base64"))
    );
}

#[test]
fn every_way_to_end_a_body_is_understood() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";
    for (name, given) in [
        ("length", sized("200 OK", "", b"hello")),
        ("chunks", answer(chunked, Then::Keep)),
        (
            "end of connection",
            answer("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello", Then::Close),
        ),
        (
            "end of connection, unannounced",
            answer("HTTP/1.1 200 OK\r\n\r\nhello", Then::Close),
        ),
        ("HTTP/1.0", answer("HTTP/1.0 200 OK\r\n\r\nhello", Then::Close)),
        (
            "interim answers before",
            answer(
                "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
                Then::Keep,
            ),
        ),
    ] {
        let outputs = ask(&settings(), given).expect(name);
        assert_eq!(
            (&outputs["status_code"], &outputs["body"]),
            (&json!(200), &json!("hello")),
            "{name}"
        );
    }
}

#[test]
fn a_body_that_breaks_off_is_a_network_error_and_no_success() {
    for given in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        "HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
        "HTTP/1.1 200 OK\r\nContent-Le",
        "not http at all\r\n\r\n",
        "",
    ] {
        let failure = ask(&settings(), answer(given, Then::Close)).expect_err(given);
        assert_eq!(failure.code, ErrorCode::NetworkError, "{given:?}: {failure:?}");
    }
}

#[test]
fn answers_without_a_body_do_not_wait_for_one() {
    for (method, given) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("DELETE", "HTTP/1.1 204 No Content\r\nContent-Length: 10\r\n\r\n"),
    ] {
        let outputs = block_on(async {
            let server = serve(vec![answer(given, Then::Hang)]).await;
            send(
                &block(&settings()),
                json!({"url": server.url("/"), "method": method}),
            )
            .await
        });
        assert_eq!(outputs.expect(given)["body"], json!(""), "{method} {given:?}");
    }
}

#[test]
fn the_request_on_the_wire_is_the_one_asked_for() {
    let (requests, host) = block_on(async {
        let server = serve(vec![sized("200 OK", "", b"")]).await;
        let block = block(&settings());
        let given = json!({
            "url": server.url("/p%20q?x=1&y=ü#frag"), "method": "post", "body": {"a": [1]},
            "headers": {"X-Trace": "t", "Content-Length": "999"},
        });
        send(&block, given).await.expect("succeeds");
        send(&block, json!({"url": server.url("/"), "method": "POST"}))
            .await
            .expect("succeeds");
        (server.requests(), server.address.to_string())
    });
    let first = requests[0].to_lowercase();
    assert!(
        first.starts_with("post /p%20q?x=1&y=%c3%bc http/1.1\r\n"),
        "{first}"
    );
    assert!(first.contains(&format!("\r\nhost: {host}\r\n")), "{first}");
    assert!(
        first.contains("\r\nx-trace: t\r\n") && first.contains("\r\ncontent-type: application/json\r\n"),
        "{first}"
    );
    assert_eq!(first.matches("content-length: ").count(), 1, "{first}");
    assert_eq!(first.matches("\r\nuser-agent: caf-worker/").count(), 1, "{first}");
    assert!(first.ends_with("\r\n\r\n{\"a\":[1]}"), "{first}");
    assert!(
        requests[1].to_lowercase().contains("\r\ncontent-length: 0\r\n"),
        "{}",
        requests[1]
    );
}

#[test]
fn connections_are_reused_and_lost_ones_replaced() {
    block_on(async {
        let block = block(&settings());
        let keeping = serve(vec![sized("200 OK", "", b"x")]).await;
        let closing = serve(vec![answer(
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
            Then::Close,
        )])
        .await;
        for (server, connections) in [(&keeping, 1), (&closing, 3)] {
            for _ in 0..3 {
                send(&block, json!({"url": server.url("/"), "method": "GET"}))
                    .await
                    .expect("succeeds");
                tokio::task::yield_now().await;
                // Lets the end of the connection arrive: the server closes before the next request begins.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(server.connections.load(Ordering::Relaxed), connections);
        }
    });
}

#[test]
fn a_failure_status_is_an_http_error_that_keeps_the_answer() {
    for (status, code, blames_provider) in [
        ("400 Bad Request", 400, false),
        ("404 Not Found", 404, false),
        ("405 Method Not Allowed", 405, false),
        ("408 Request Timeout", 408, false),
        ("415 Unsupported Media Type", 415, false),
        ("429 Too Many Requests", 429, false),
        ("451 Unavailable For Legal Reasons", 451, false),
        ("500 Internal Server Error", 500, true),
        ("503 Service Unavailable", 503, true),
        ("304 Not Modified", 304, false),
        ("300 Multiple Choices", 300, false),
    ] {
        let body: &[u8] = if code == 304 { b"" } else { b"why" };
        let failure = ask(&settings(), sized(status, "X-A: b\r\n", body)).expect_err(status);
        assert_eq!(failure.code, ErrorCode::HttpError, "{status}");
        assert_eq!(failure.details["status_code"], json!(code), "{status}");
        assert_eq!(failure.outputs["status_code"], json!(code), "{status}");
        assert_eq!(failure.outputs["headers"]["x-a"], json!("b"), "{status}");
        assert_eq!(
            failure.outputs["body"],
            json!(String::from_utf8_lossy(body)),
            "{status}"
        );
        assert_eq!(failure.blames_provider(), blames_provider, "{status}");
        assert_eq!(
            caf_protocol::outcome::trips_breaker(&failure.message),
            blames_provider,
            "{status}"
        );
    }
}

#[test]
fn a_failure_status_with_a_broken_body_is_still_that_failure_status() {
    let given = answer(
        "HTTP/1.1 500 Oops\r\nContent-Length: 10\r\n\r\nhello",
        Then::Close,
    );
    let failure = ask(&settings(), given).expect_err("fails");
    assert_eq!(failure.code, ErrorCode::HttpError);
    assert!(!failure.outputs.contains_key("body"));
}

#[test]
fn bodies_over_the_limit_are_refused_also_when_compressed() {
    let small = HttpSettings {
        max_response_bytes: 1_000,
        ..settings()
    };
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&[b'x'; 1_001]).expect("writes");
    let zipped = encoder.finish().expect("finishes");
    for given in [
        sized("200 OK", "", &[b'x'; 1_001]),
        sized("200 OK", "Content-Encoding: gzip\r\n", &zipped),
    ] {
        let failure = ask(&small, given).expect_err("is too large");
        assert_eq!(failure.code, ErrorCode::ResourceUnavailable);
        assert_eq!(failure.details["limit_bytes"], json!(1_000));
    }
    let outputs = ask(
        &settings(),
        sized("200 OK", "Content-Encoding: gzip\r\n", &zipped),
    )
    .expect("fits");
    assert_eq!(outputs["body"], json!("x".repeat(1_001)));
    assert!(
        outputs["headers"].get("content-encoding").is_none(),
        "the body is not encoded any more"
    );
}

#[test]
fn slow_heads_and_slow_bodies_are_timeouts_of_one_attempt() {
    let limits = OperationLimits {
        http_read: Some(Duration::from_millis(50)),
        ..OperationLimits::default()
    };
    for (given, step) in [
        ("", "head"),
        ("HTTP/1.1 200 OK\r\nContent-Le", "head"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", "body"),
        ("HTTP/1.1 200 OK\r\n\r\nhello", "body"),
    ] {
        let failure = block_on(async {
            let server = serve(vec![answer(given, Then::Hang)]).await;
            let block = HttpRequest::new(&settings(), limits, Extras::default()).expect("builds");
            send(&block, json!({"url": server.url("/"), "method": "GET"})).await
        })
        .expect_err(given);
        assert_eq!(failure.code, ErrorCode::ConnectionTimeout, "{given:?}");
        assert!(
            failure.message.contains(step) && !failure.total_limit && failure.is_retryable(),
            "{given:?}: {}",
            failure.message
        );
        let Some(RanOut::Limit { limit, taken }) = failure.ran_out.as_deref().copied() else {
            panic!("{failure:?}")
        };
        assert_eq!(Some(limit), limits.on(Operation::HttpRead));
        assert!(taken >= limit.allowed, "{taken:?}");
    }
}

#[test]
fn connecting_has_a_limit_of_its_own_and_without_one_the_deadline() {
    let silent = caf_testkit::faulty_http::Silent::open().expect("opens");
    let ask = |limits, context: BlockContext| {
        block_on(async {
            let block = HttpRequest::new(&settings(), limits, Extras::default()).expect("builds");
            let given = inputs(json!({"url": silent.url("/"), "method": "GET"}));
            block.prepare(given).expect("is accepted").run(context).await
        })
    };
    let limits = OperationLimits {
        http_connect: Some(Duration::from_millis(50)),
        ..OperationLimits::default()
    };
    let failure = ask(limits, context()).expect_err("nobody answers");
    assert_eq!(failure.code, ErrorCode::ConnectionTimeout);
    assert_eq!(failure.message, "timeout while connecting");
    assert!(
        matches!(failure.ran_out.as_deref(), Some(RanOut::Limit { limit, .. }) if Some(*limit) == limits.on(Operation::HttpConnect)),
        "{failure:?}"
    );
    let failure = ask(
        OperationLimits::default(),
        context_for(Duration::from_millis(200)),
    );
    assert_eq!(failure, Err(Failure::deadline()));
}

#[test]
fn a_failure_says_when_the_server_wants_to_be_asked_again() {
    for (header, expected) in [
        ("Retry-After: 2\r\n", Some(json!(2_000))),
        ("Retry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n", Some(json!(0))),
        ("Retry-After: soon\r\n", None),
        ("", None),
    ] {
        for status in ["503 Service Unavailable", "429 Too Many Requests"] {
            let failure = ask(&settings(), sized(status, header, b"")).expect_err("fails");
            assert_eq!(
                failure.details.get("retry_after_ms"),
                expected.as_ref(),
                "{header}"
            );
        }
    }
    let outputs = ask(&settings(), sized("200 OK", "Retry-After: 2\r\n", b"")).expect("is well");
    assert!(outputs.get("retry_after_ms").is_none());
}

#[test]
fn the_deadline_cuts_an_attempt_short_and_cancelling_ends_it() {
    block_on(async {
        let server = serve(vec![answer("", Then::Hang)]).await;
        let task = block(&settings())
            .prepare(inputs(json!({"url": server.url("/"), "method": "GET"})))
            .expect("is accepted");
        let late = Arc::clone(&task)
            .run(context_for(Duration::from_millis(50)))
            .await;
        assert_eq!(late, Err(Failure::deadline()));

        let context = context();
        let cancel = context.cancel.clone();
        let (ended, ()) = tokio::join!(task.run(context), async {
            while server.requests().len() < 2 {
                tokio::task::yield_now().await;
            }
            cancel.cancel();
        });
        assert_eq!(ended.expect_err("is cancelled").code, ErrorCode::CancelledByUser);
    });
}

#[test]
fn at_the_deadline_the_connection_is_closed_wherever_the_answer_is() {
    block_on(async {
        for (begun, by_drop) in [
            ("", false),
            ("", true),
            ("HTTP/1.1 200 OK\r\nContent-Le", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", true),
        ] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
            let address = listener.local_addr().expect("is bound");
            let task = block(&settings())
                .prepare(inputs(
                    json!({"url": format!("http://{address}/"), "method": "GET"}),
                ))
                .expect("is accepted");
            let context = context_for(Duration::from_millis(200));
            let deadline = context.deadline;
            let (ended, ()) = tokio::join!(
                async {
                    if by_drop {
                        // As the pipeline does; a moment before, so that the block does not notice by itself.
                        let limit = deadline - Duration::from_millis(50);
                        tokio::time::timeout_at(limit, task.run(context)).await.ok()
                    } else {
                        Some(task.run(context).await)
                    }
                },
                async {
                    let (mut stream, _) = listener.accept().await.expect("accepts");
                    read_request(&mut stream).await.expect("is asked");
                    stream.write_all(begun.as_bytes()).await.expect("writes");
                    // An end or a reset, but soon.
                    let mut space = [0; 16];
                    let rest = stream.read(&mut space);
                    let seen = tokio::time::timeout(Duration::from_secs(10), rest).await;
                    assert!(matches!(seen, Ok(Ok(0) | Err(_))), "{begun:?}: {seen:?}");
                },
            );
            let expected = (!by_drop).then(|| Err(Failure::deadline()));
            assert_eq!(ended, expected, "{begun:?}");
            assert!(deadline.elapsed() < Duration::from_secs(5), "{begun:?}");
        }
    });
}

#[test]
fn refused_connections_unknown_hosts_and_failed_handshakes_are_network_errors() {
    block_on(async {
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let address = closed.local_addr().expect("is bound");
        drop(closed);
        // Speaks before it is spoken to, and not TLS.
        let plain = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let plain_address = plain.local_addr().expect("is bound");
        tokio::task::spawn_local(async move {
            let (mut stream, _) = plain.accept().await.expect("accepts");
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .expect("writes");
            std::future::pending::<()>().await;
        });
        for url in [
            format!("http://{address}/"),
            "http://no-such-host.invalid/".to_owned(),
            format!("https://{plain_address}/"),
        ] {
            let failure = get(&settings(), url.clone()).await.expect_err(&url);
            assert_eq!(failure.code, ErrorCode::NetworkError, "{url}: {failure:?}");
            assert!(
                !failure.message.contains("127.0.0.1"),
                "hosts stay inside: {}",
                failure.message
            );
        }
    });
}

#[test]
fn a_host_with_several_addresses_is_tried_at_each() {
    block_on(async {
        let server = serve(vec![sized("200 OK", "", b"here")]).await;
        // Where the name has ::1 as well, nobody listens there.
        let url = format!("http://localhost:{}/", server.address.port());
        assert_eq!(
            get(&settings(), url).await.expect("succeeds")["body"],
            json!("here")
        );
    });
}

#[test]
fn a_target_that_is_not_public_is_refused_before_anything_is_sent() {
    block_on(async {
        let server = serve(vec![sized("200 OK", "", b"secret")]).await;
        let failure = get(&HttpSettings::default(), server.url("/"))
            .await
            .expect_err("is refused");
        assert_eq!(failure.code, ErrorCode::PermissionDenied);
        assert!(
            failure.message.contains("blocks.http.allow_targets"),
            "{}",
            failure.message
        );
        assert_eq!(server.connections.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_pooled_connection_does_not_open_the_guard_for_another_block() {
    block_on(async {
        let server = serve(vec![sized("200 OK", "", b"x")]).await;
        get(&settings(), server.url("/")).await.expect("is let through");
        let failure = get(&HttpSettings::default(), server.url("/"))
            .await
            .expect_err("is refused");
        assert_eq!(failure.code, ErrorCode::PermissionDenied);
        assert_eq!(server.requests().len(), 1);
    });
}

#[test]
fn the_nodes_own_health_endpoint_is_reached_under_its_symbolic_name() {
    block_on(async {
        let server = serve(vec![sized("200 OK", "", b"healthy")]).await;
        let extras = Extras {
            health_target: Some(("health.worker.internal".to_owned(), server.address)),
            ..Extras::default()
        };
        let block =
            HttpRequest::new(&HttpSettings::default(), OperationLimits::default(), extras).expect("builds");
        for url in [
            "http://health.worker.internal/_health".to_owned(),
            server.url("/_health"),
        ] {
            let outputs = send(&block, json!({"url": url, "method": "GET"}))
                .await
                .expect("succeeds");
            assert_eq!(outputs["body"], json!("healthy"));
        }
        assert!(
            server.requests()[0]
                .to_lowercase()
                .contains("\r\nhost: health.worker.internal\r\n")
        );
    });
}

#[test]
fn redirects_are_followed_to_the_final_answer() {
    block_on(async {
        let server = serve(vec![
            sized("302 Found", "Location: /second\r\n", b"moved"),
            sized("307 Temporary Redirect", "Location: third?x=1\r\n", b""),
            sized("200 OK", "", b"arrived"),
        ])
        .await;
        let given = json!({"url": server.url("/a/first"), "method": "POST", "body": "b"});
        let outputs = send(&block(&settings()), given).await.expect("succeeds");
        assert_eq!(outputs["body"], json!("arrived"));
        let lines: Vec<_> = server
            .requests()
            .iter()
            .map(|request| request.lines().next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(
            lines,
            [
                "POST /a/first HTTP/1.1",
                "GET /second HTTP/1.1",
                "GET /third?x=1 HTTP/1.1"
            ]
        );
    });
}

#[test]
fn a_redirect_to_another_host_leaves_credentials_behind() {
    block_on(async {
        let other = serve(vec![sized("200 OK", "", b"")]).await;
        let location = format!("Location: {}\r\n", other.url("/"));
        let server = serve(vec![sized("307 Temporary Redirect", &location, b"")]).await;
        let given = json!({"url": server.url("/"), "method": "GET", "headers": {"Authorization": "Bearer t", "X-A": "b"}});
        send(&block(&settings()), given).await.expect("succeeds");
        assert!(
            server.requests()[0]
                .to_lowercase()
                .contains("authorization: bearer t")
        );
        let second = other.requests()[0].to_lowercase();
        assert!(
            !second.contains("authorization") && second.contains("x-a: b"),
            "{second}"
        );
    });
}

#[test]
fn a_redirect_to_a_target_that_is_not_public_is_refused() {
    for target in [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/",
        "http://10.0.0.1/",
    ] {
        let given = sized("302 Found", &format!("Location: {target}\r\n"), b"");
        let failure = ask(&settings(), given).expect_err(target);
        assert_eq!(failure.code, ErrorCode::PermissionDenied, "{target}");
    }
}

#[test]
fn redirects_without_end_or_aim_are_http_errors() {
    block_on(async {
        let server = serve(vec![sized("302 Found", "Location: /\r\n", b"")]).await;
        let failure = get(&settings(), server.url("/")).await.expect_err("has no end");
        assert_eq!((failure.code, server.requests().len()), (ErrorCode::HttpError, 6));
        assert_eq!(failure.outputs["status_code"], json!(302));
        assert!(
            failure.message.contains("too many redirects"),
            "{}",
            failure.message
        );
        assert!(!failure.blames_provider());
    });
    for headers in ["", "Location: ftp://x/\r\n", "Location: http://u:p@x/\r\n"] {
        let failure = ask(&settings(), sized("302 Found", headers, b"")).expect_err(headers);
        assert_eq!(
            (failure.code, &failure.details["status_code"]),
            (ErrorCode::HttpError, &json!(302)),
            "{headers}"
        );
    }
}

/// A server for `localhost` with a certificate of its own, and a block that trusts it. Every answer leaves the body cut off
/// unless `whole`.
async fn serve_tls(whole: bool) -> (HttpRequest, SocketAddr) {
    use tokio_rustls::rustls::RootCertStore;
    use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("makes a certificate");
    let certificate = made.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let address = serve_tls_with(certificate.clone(), key.into(), whole).await;
    let mut block = block(&settings());
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("is a certificate");
    let shared = Arc::get_mut(&mut block.shared).expect("is not in use");
    shared.tls = dial::tls_config(roots);
    (block, address)
}

async fn serve_tls_with(
    certificate: tokio_rustls::rustls::pki_types::CertificateDer<'static>,
    key: tokio_rustls::rustls::pki_types::PrivateKeyDer<'static>,
    whole: bool,
) -> SocketAddr {
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::ring;

    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("has versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("key and certificate belong together");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
    let address = listener.local_addr().expect("is bound");
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut request = [0; 4_096];
            let _ = stream.read(&mut request).await;
            let length = if whole { 6 } else { 7 };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nsecret");
            stream.write_all(head.as_bytes()).await.expect("writes");
            // Says goodbye properly, which must not make a cut body whole.
            let _ = stream.shutdown().await;
        }
    });
    address
}

#[test]
fn an_encrypted_answer_is_read_when_the_certificate_fits_the_host() {
    block_on(async {
        let (trusting, address) = serve_tls(true).await;
        let url = format!("https://localhost:{}/", address.port());
        let outputs = send(&trusting, json!({"url": url, "method": "GET"}))
            .await
            .expect("succeeds");
        assert_eq!(outputs["body"], json!("secret"));

        // The same server under a name that its certificate does not have, and to a block that does not know it.
        let other_name = format!("https://{address}/");
        let failure = send(&trusting, json!({"url": other_name, "method": "GET"}))
            .await
            .expect_err("is refused");
        assert_eq!(failure.code, ErrorCode::NetworkError, "{failure:?}");
        let failure = get(&settings(), url).await.expect_err("is refused");
        assert_eq!(failure.code, ErrorCode::NetworkError, "{failure:?}");
    });
}

#[test]
fn an_authority_of_the_settings_vouches_beside_the_public_ones() {
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

    let certificates = caf_testkit::tls::Certificates::generate().expect("generates");
    let stranger = caf_testkit::tls::Certificates::generate().expect("generates");
    let (certificate, key) = certificates.server();
    let certificate = CertificateDer::from_pem_file(certificate).expect("reads");
    let key = PrivateKeyDer::from_pem_file(key).expect("reads");
    let with = |ca_file| {
        let ca_file = Some(ca_file);
        block(&HttpSettings {
            ca_file,
            ..settings()
        })
    };
    block_on(async {
        let address = serve_tls_with(certificate, key, true).await;
        let given = json!({"url": format!("https://localhost:{}/", address.port()), "method": "GET"});
        let trusting = with(certificates.authority());
        let outputs = send(&trusting, given.clone()).await.expect("succeeds");
        assert_eq!(outputs["body"], json!("secret"));
        let failure = send(&with(stranger.authority()), given)
            .await
            .expect_err("is refused");
        assert_eq!(failure.code, ErrorCode::NetworkError, "{failure:?}");
    });
    let missing = HttpSettings {
        ca_file: Some("no/such/ca.pem".into()),
        ..settings()
    };
    let error = HttpRequest::new(&missing, OperationLimits::default(), Extras::default())
        .err()
        .expect("is refused");
    assert_eq!(error.key, ["blocks", "http", "ca_file"]);
}

#[test]
fn an_encrypted_body_that_breaks_off_is_a_network_error() {
    block_on(async {
        let (trusting, address) = serve_tls(false).await;
        let url = format!("https://localhost:{}/", address.port());
        let failure = send(&trusting, json!({"url": url, "method": "GET"}))
            .await
            .expect_err("breaks off");
        assert_eq!(failure.code, ErrorCode::NetworkError, "{failure:?}");
    });
}

/// Fetches what a job refers to.
async fn fetch(
    settings: &HttpSettings,
    url: String,
    max_bytes: u64,
    context: BlockContext,
) -> Result<Vec<u8>, Failure> {
    let url = url::Url::parse(&url).expect("is a URL");
    let fetcher = Arc::new(block(settings).fetcher());
    let fetched = fetcher.fetch(Location::Http { url }, max_bytes, context).await;
    fetched.map(|bytes| bytes.to_vec())
}

#[test]
fn referenced_inputs_are_bounded_after_decompression_by_the_smaller_limit() {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&[b'x'; 5_000]).expect("writes");
    let packed = sized(
        "200 OK",
        "Content-Encoding: gzip\r\n",
        &gzip.finish().expect("finishes"),
    );
    let narrow = HttpSettings {
        max_response_bytes: 4_999,
        ..settings()
    };
    for answer in [packed, sized("200 OK", "", &[b'x'; 5_000])] {
        block_on(async {
            let server = serve(vec![answer]).await;
            let whole = fetch(&settings(), server.url("/"), 5_000, context()).await;
            assert_eq!(whole, Ok(vec![b'x'; 5_000]));
            for (settings, max_bytes) in [(settings(), 4_999), (narrow.clone(), 10_000)] {
                let failure = fetch(&settings, server.url("/"), max_bytes, context())
                    .await
                    .expect_err("is too large");
                assert_eq!(
                    (failure.code, &failure.details["limit_bytes"]),
                    (ErrorCode::InvalidInput, &json!(4_999))
                );
            }
        });
    }
}

#[test]
fn referenced_inputs_come_with_success_only_and_an_answer_without_a_body_has_none() {
    let code = |answer: Answer| {
        block_on(async {
            let server = serve(vec![answer]).await;
            let fetched = fetch(&settings(), server.url("/"), 100, context()).await;
            fetched.map_err(|failure| (failure.code, failure.is_retryable()))
        })
    };
    for (status, expected) in [
        ("404 Not Found", (ErrorCode::ResourceUnavailable, true)),
        ("410 Gone", (ErrorCode::ResourceUnavailable, true)),
        ("403 Forbidden", (ErrorCode::HttpError, false)),
        ("503 Service Unavailable", (ErrorCode::HttpError, true)),
        ("304 Not Modified", (ErrorCode::HttpError, false)),
    ] {
        assert_eq!(code(sized(status, "", b"{}")), Err(expected), "{status}");
    }
    // Nothing says where the body ends: there is none.
    let empty = answer("HTTP/1.1 204 No Content\r\n\r\n", Then::Hang);
    assert_eq!(code(empty), Ok(Vec::new()));
}

#[test]
fn fetching_ends_when_the_job_is_cancelled() {
    block_on(async {
        let server = serve(vec![answer("", Then::Hang)]).await;
        let context = context();
        let cancel = context.cancel.clone();
        let settings = settings();
        let fetching = fetch(&settings, server.url("/"), 100, context);
        let cancelling = async {
            while server.requests().is_empty() {
                tokio::task::yield_now().await;
            }
            cancel.cancel();
        };
        let (fetched, ()) = tokio::join!(fetching, cancelling);
        assert_eq!(
            fetched.expect_err("is cancelled").code,
            ErrorCode::CancelledByUser
        );
    });
}
