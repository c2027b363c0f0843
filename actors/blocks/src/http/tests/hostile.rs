//! Servers that mean harm: each goes beyond one bound, on real sockets.

use std::net::IpAddr;
use std::sync::Mutex;

use tokio::net::TcpStream;

use super::*;
use crate::settings::HttpTenantSettings;

/// What a server writes after a request, and again and again until the other side is gone.
async fn pour(first: Vec<u8>, again: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
    let address = listener.local_addr().expect("is bound");
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (first, again) = (first.clone(), again.clone());
            tokio::task::spawn_local(async move {
                let _ = read_request(&mut stream).await;
                let mut sent = stream.write_all(&first).await;
                while sent.is_ok() && !again.is_empty() {
                    sent = stream.write_all(&again).await;
                }
                drain(stream).await;
            });
        }
    });
    address
}

/// Reads until the other side is gone.
async fn drain(mut stream: TcpStream) {
    let mut sink = [0; 1_024];
    while stream.read(&mut sink).await.is_ok_and(|count| count > 0) {}
}

fn poured(settings: &HttpSettings, first: &str, again: &str) -> Result<Outputs, Failure> {
    block_on(async {
        let address = pour(first.as_bytes().to_vec(), again.as_bytes().to_vec()).await;
        get(settings, format!("http://{address}/")).await
    })
}

/// Bodies of a kilobyte at most, so that bounds are met soon.
fn narrow() -> HttpSettings {
    HttpSettings {
        max_response_bytes: 1_000,
        ..settings()
    }
}

#[test]
fn heads_bodies_and_interim_answers_without_end_are_given_up_at_their_bounds() {
    let ok = "HTTP/1.1 200 OK\r\n";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (name, first, again) in [
        ("header lines", ok, "a: b\r\n"),
        ("one header", "HTTP/1.1 200 OK\r\na: ", "bbbbbbbbbbbbbbbbbbbbbbbb"),
        ("header name", ok, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
        ("reason", "HTTP/1.1 200 ", "OK OK OK OK OK"),
        ("empty lines", "", "\r\n"),
        ("interim answers", "", "HTTP/1.1 100 Continue\r\n\r\n"),
        (
            "interim answers with headers",
            "",
            "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n",
        ),
        (
            "body to the end of the connection",
            "HTTP/1.0 200 OK\r\n\r\n",
            "hello",
        ),
        (
            "announced body",
            "HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n",
            "x",
        ),
        ("chunks", chunked, "5\r\nhello\r\n"),
        (
            "chunk extension",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;",
            "a=b;",
        ),
        (
            "trailers",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
            "a: b\r\n",
        ),
    ] {
        let failure = poured(&narrow(), first, again).expect_err(name);
        assert_eq!(
            failure.code,
            ErrorCode::ResourceUnavailable,
            "{name}: {failure:?}"
        );
        let text = &failure.message;
        assert!(
            text.contains("larger than the limit") || text.contains("more headers"),
            "{name}: {text}"
        );
    }
}

#[test]
fn a_length_above_the_limit_is_refused_before_the_body_comes() {
    let failure =
        poured(&narrow(), "HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n", "").expect_err("is refused");
    assert_eq!(
        (failure.code, &failure.details["limit_bytes"]),
        (ErrorCode::ResourceUnavailable, &json!(1_000))
    );
}

#[test]
fn answers_that_leave_open_where_they_end_are_network_errors() {
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 3",
        "HTTP/1.1 200 OK\r\nContent-Length: -1",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello",
        "SSH-2.0-OpenSSH_9.9",
        "<html>HTTP/0.9</html>",
    ] {
        let failure = poured(&settings(), &format!("{head}\r\n\r\n"), "").expect_err(head);
        assert_eq!(failure.code, ErrorCode::NetworkError, "{head}: {failure:?}");
        assert_eq!(
            failure.message, "the connection was given up: the answer is not HTTP",
            "{head}"
        );
    }
}

#[test]
fn a_server_that_dribbles_is_ended_by_the_limit_or_else_the_deadline() {
    // A byte at a time, for ever: each would reset a limit on silence.
    let dribble = async |first: &'static str, limits: OperationLimits, left: Duration| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let address = listener.local_addr().expect("is bound");
        tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let _ = read_request(&mut stream).await;
            let mut sent = stream.write_all(first.as_bytes()).await;
            while sent.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
                sent = stream.write_all(b"x").await;
            }
        });
        let block = HttpRequest::new(&settings(), limits, Extras::default()).expect("builds");
        let given = inputs(json!({"url": format!("http://{address}/"), "method": "GET"}));
        block
            .prepare(given)
            .expect("is accepted")
            .run(context_for(left))
            .await
    };
    let limited = OperationLimits {
        http_read: Some(Duration::from_millis(100)),
        ..OperationLimits::default()
    };
    let (long, short) = (Duration::from_secs(30), Duration::from_millis(100));
    for first in [
        "HTTP/1.1 200 OK\r\nA: ",
        "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    ] {
        let failure = block_on(dribble(first, limited, long)).expect_err("is too slow");
        assert_eq!(
            (failure.code, failure.total_limit),
            (ErrorCode::ConnectionTimeout, false),
            "{first:?}"
        );
        let failure = block_on(dribble(first, OperationLimits::default(), short)).expect_err("is too slow");
        assert_eq!(
            (failure.code, failure.total_limit),
            (ErrorCode::CancelledByTimeout, true),
            "{first:?}"
        );
    }
}

#[test]
fn codings_on_top_of_each_other_come_as_they_are_with_their_name() {
    let mut once = GzEncoder::new(Vec::new(), Compression::best());
    once.write_all(b"hello").expect("writes");
    let once = once.finish().expect("finishes");
    for headers in [
        "Content-Encoding: gzip, gzip\r\n",
        "Content-Encoding: gzip\r\nContent-Encoding: gzip\r\n",
        "Content-Encoding: compress\r\n",
    ] {
        let outputs = ask(&settings(), sized("200 OK", headers, &once)).expect(headers);
        assert_eq!(outputs["encoding"], json!("base64"), "{headers}");
        assert!(outputs["headers"]["content-encoding"].is_string(), "{headers}");
    }
}

#[test]
fn a_name_that_changes_its_address_is_judged_for_each_request_and_met_where_it_was_judged() {
    block_on(async {
        let server = serve(vec![sized("200 OK", "", b"good")]).await;
        let mut block = block(&HttpSettings {
            deny_targets: vec!["127.0.0.2".to_owned(), "10.0.0.0/8".to_owned()],
            ..settings()
        });
        // Good first, bad from then on.
        let answers = Mutex::new(vec!["10.0.0.1", "169.254.169.254", "127.0.0.2", "127.0.0.1"]);
        let asked = Arc::new(AtomicU64::new(0));
        let shared = Arc::get_mut(&mut block.shared).expect("is not in use");
        let count = Arc::clone(&asked);
        shared.guard.resolve = Arc::new(move |_, port, _| {
            count.fetch_add(1, Ordering::Relaxed);
            let ip: IpAddr = answers
                .lock()
                .expect("not poisoned")
                .pop()
                .expect("has more")
                .parse()
                .expect("is one");
            Box::pin(std::future::ready(Ok(vec![SocketAddr::new(ip, port)])))
        });
        let url = format!("http://rebinding.example:{}/", server.address.port());
        let outputs = send(&block, json!({"url": url, "method": "GET"}))
            .await
            .expect("succeeds");
        assert_eq!(
            (&outputs["body"], asked.load(Ordering::Relaxed)),
            (&json!("good"), 1)
        );
        for _ in 0..3 {
            let failure = send(&block, json!({"url": url, "method": "GET"}))
                .await
                .expect_err("is denied");
            assert_eq!(
                failure.code,
                ErrorCode::PermissionDenied,
                "although a connection lies idle"
            );
        }
        assert_eq!((server.requests().len(), asked.load(Ordering::Relaxed)), (1, 4));
        assert!(
            server.requests()[0].contains("rebinding.example"),
            "{:?}",
            server.requests()
        );
    });
}

#[test]
fn a_redirect_to_a_name_that_has_become_private_is_denied() {
    block_on(async {
        let mut block = block(&settings());
        let server = serve(vec![sized("302 Found", "Location: /next\r\n", b"")]).await;
        let answers = Mutex::new(vec!["192.168.0.1", "127.0.0.1"]);
        let shared = Arc::get_mut(&mut block.shared).expect("is not in use");
        shared.guard.resolve = Arc::new(move |_, port, _| {
            let ip: IpAddr = answers
                .lock()
                .expect("not poisoned")
                .pop()
                .expect("has more")
                .parse()
                .expect("is one");
            Box::pin(std::future::ready(Ok(vec![SocketAddr::new(ip, port)])))
        });
        let url = format!("http://rebinding.example:{}/", server.address.port());
        let failure = send(&block, json!({"url": url, "method": "GET"}))
            .await
            .expect_err("is denied");
        assert_eq!(
            (failure.code, server.requests().len()),
            (ErrorCode::PermissionDenied, 1)
        );
    });
}

#[test]
fn a_connection_is_reused_by_the_tenant_that_opened_it_only() {
    block_on(async {
        let server = serve(vec![sized("200 OK", "", b"x")]).await;
        let mut settings = settings();
        settings.tenants.insert(
            "barred".to_owned(),
            HttpTenantSettings {
                deny_targets: vec!["127.0.0.1".to_owned()],
                ..HttpTenantSettings::default()
            },
        );
        let block = block(&settings);
        let ask = async |tenant: &str| {
            let context = BlockContext {
                tenant_id: tenant.to_owned(),
                ..context()
            };
            let given = inputs(json!({"url": server.url("/"), "method": "GET"}));
            block.prepare(given).expect("is accepted").run(context).await
        };
        let connections = || server.connections.load(Ordering::Relaxed);
        ask("acme").await.expect("succeeds");
        ask("acme").await.expect("succeeds");
        assert_eq!(connections(), 1);
        ask("Acme").await.expect("succeeds");
        assert_eq!(connections(), 2);
        let failure = ask("barred").await.expect_err("is denied");
        assert_eq!(failure.code, ErrorCode::PermissionDenied);
        assert_eq!((connections(), server.requests().len()), (2, 3));
    });
}

#[test]
fn a_job_that_names_ever_new_servers_leaves_few_connections_open() {
    block_on(async {
        let server = serve(vec![sized("200 OK", "", b"x")]).await;
        let mut block = block(&settings());
        let shared = Arc::get_mut(&mut block.shared).expect("is not in use");
        shared.guard.resolve = Arc::new(|_, port, _| {
            Box::pin(std::future::ready(Ok(vec![SocketAddr::from((
                [127, 0, 0, 1],
                port,
            ))])))
        });
        for n in 0..300 {
            let url = format!("http://n{n}.example:{}/", server.address.port());
            send(&block, json!({"url": url, "method": "GET"}))
                .await
                .expect("succeeds");
        }
        assert_eq!(server.connections.load(Ordering::Relaxed), 300);
        let open = clients::open_connections();
        assert!(open <= 66, "{open}");
    });
}

#[test]
fn secret_headers_stay_behind_when_a_redirect_leaves_the_origin() {
    block_on(async {
        let last = serve(vec![sized("200 OK", "", b"x")]).await;
        let location = format!("Location: http://localhost:{}/\r\n", last.address.port());
        let middle = serve(vec![
            sized("302 Found", "Location: /again\r\n", b""),
            sized("302 Found", &location, b""),
        ])
        .await;
        let given = json!({"url": middle.url("/"), "method": "GET", "headers": {
            "Authorization": "Bearer s3", "Cookie": "s3", "X-Api-Key": "s3", "X-Vault-Token": "s3", "X-Keep": "k",
        }});
        send(&block(&settings()), given).await.expect("succeeds");
        assert!(
            middle
                .requests()
                .iter()
                .all(|request| request.matches("s3").count() == 4)
        );
        let [arrived] = &last.requests()[..] else {
            panic!("one request")
        };
        assert!(
            !arrived.contains("s3") && arrived.to_lowercase().contains("x-keep: k"),
            "{arrived}"
        );
    });
}

/// A server whose certificate for these names comes from an authority that the block trusts, valid in these years; and what
/// becomes of a request to it under the name `localhost`.
fn ask_encrypted(name: &str, years: (i32, i32), trusted: bool) -> Result<Outputs, Failure> {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
    use tokio_rustls::rustls::RootCertStore;
    use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

    let mut params = CertificateParams::new(Vec::new()).expect("are good");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("makes")).expect("signs");
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("are good");
    params.not_before = date_time_ymd(years.0, 1, 1);
    params.not_after = date_time_ymd(years.1, 1, 1);
    let key = KeyPair::generate().expect("makes");
    let certificate = params.signed_by(&key, &authority).expect("signs");
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    block_on(async {
        let address = serve_tls_with(certificate.der().clone(), key.into(), true).await;
        let mut block = block(&settings());
        let mut roots = RootCertStore::empty();
        if trusted {
            roots.add(authority.der().clone()).expect("is a certificate");
        }
        let shared = Arc::get_mut(&mut block.shared).expect("is not in use");
        shared.tls = dial::tls_config(roots);
        let url = format!("https://localhost:{}/", address.port());
        send(&block, json!({"url": url, "method": "GET"})).await
    })
}

#[test]
fn a_certificate_that_does_not_vouch_for_the_server_is_a_network_error_that_says_why() {
    ask_encrypted("localhost", (2020, 4000), true).expect("is good");
    for (name, years, trusted, why) in [
        (
            "localhost",
            (2020, 2021),
            true,
            "the server's certificate has expired",
        ),
        (
            "localhost",
            (3000, 4000),
            true,
            "the server's certificate is not valid yet",
        ),
        (
            "other.example",
            (2020, 4000),
            true,
            "the server's certificate is for another name",
        ),
        (
            "localhost",
            (2020, 4000),
            false,
            "no known authority vouches for the server's certificate",
        ),
    ] {
        let failure = ask_encrypted(name, years, trusted).expect_err(why);
        assert_eq!(failure.code, ErrorCode::NetworkError, "{why}");
        assert_eq!(failure.message, format!("no encrypted connection: {why}"));
    }
}
