//! An HTTP server that says back what it was sent, in many ways, and sends callers elsewhere.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::Value;

/// Ends when dropped.
pub(super) struct Hostile {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Hostile {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("has one");
        let (seen, stop) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicBool>::default());
        let (noted, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut callers = Vec::new();
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let noted = Arc::clone(&noted);
                callers.push(std::thread::spawn(move || drop(answer(stream, &noted))));
            }
            for caller in callers {
                let _ = caller.join();
            }
        });
        Self {
            address,
            seen,
            stop,
            thread: Some(thread),
        }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Head and body of each request.
    pub(super) fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("no test panics with it").clone()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(mut stream: TcpStream, seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let header = |name: &str| {
        let lines = head.iter().filter_map(|line| line.split_once(": "));
        let mut values = lines.filter(|(known, _)| known.eq_ignore_ascii_case(name));
        values.next().map(|(_, value)| value.to_owned())
    };
    let length = header("content-length")
        .and_then(|length| length.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body = String::from_utf8_lossy(&body).into_owned();
    let lower: Vec<String> = head
        .iter()
        .map(|line| match line.split_once(": ") {
            Some((name, value)) => format!("{}: {value}", name.to_lowercase()),
            None => line.clone(),
        })
        .collect();
    seen.lock()
        .expect("no test panics with it")
        .push(format!("{}\n\n{body}", lower.join("\n")));

    let said = |name: &str| header(name).unwrap_or_else(|| "none".to_owned());
    let sent = format!(
        "authorization: {}, x-body: {}, x-env: {}, body: {body}",
        said("authorization"),
        said("x-body"),
        said("x-env")
    );
    let target = head[0].split(' ').nth(1).unwrap_or_default();
    let whole = |status: &str, more: &str, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\n{more}Content-Length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    };
    let bytes = match target.split('?').next().unwrap_or_default() {
        "/plain" => whole(
            "200 OK",
            &format!("X-Echo: {}\r\n", said("authorization")),
            sent.as_bytes(),
        ),
        "/encodings" => whole(
            "200 OK",
            "",
            encodings(&[said("authorization"), said("x-body"), body]).as_bytes(),
        ),
        "/binary" => whole("200 OK", "", &[b"\xff\xfe", sent.as_bytes(), b"\xff"].concat()),
        "/fail" => whole("500 No", "", sent.as_bytes()),
        "/status-text" => whole(&format!("418 {}", said("authorization")), "", b""),
        "/break" => format!("HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{sent}").into_bytes(),
        "/chunked" => {
            let mut all =
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for chunk in sent.as_bytes().chunks(3) {
                all.extend(
                    format!("{:x}\r\n", chunk.len())
                        .bytes()
                        .chain(chunk.iter().copied())
                        .chain(*b"\r\n"),
                );
            }
            [&all[..], b"0\r\n\r\n"].concat()
        }
        "/hang" => {
            // Until the other side gives up.
            let mut rest = Vec::new();
            let _ = reader.read_to_end(&mut rest);
            Vec::new()
        }
        path => {
            let code = path.rsplit('/').next().unwrap_or_default();
            let to = target.split_once('?').map(|(_, to)| to).unwrap_or_default();
            whole(
                &format!("{code} Elsewhere"),
                &format!("Location: {to}\r\n"),
                sent.as_bytes(),
            )
        }
    };
    stream.write_all(&bytes)
}

fn encodings(values: &[String]) -> String {
    let mut all = Vec::new();
    for value in values {
        let hex = |before: &str| {
            value
                .bytes()
                .map(|byte| format!("{before}{byte:02x}"))
                .collect::<String>()
        };
        all.extend([
            BASE64_STANDARD.encode(value),
            BASE64_STANDARD.encode(format!("u:{value}")),
            BASE64_URL_SAFE_NO_PAD.encode(format!("us:{value}!")),
            hex(""),
            hex("").to_uppercase(),
            hex("%"),
            hex("\\x"),
            Value::from(value.as_str()).to_string(),
            Value::from(Value::from(value.as_str()).to_string()).to_string(),
            value.to_uppercase(),
            value
                .replace('&', "&amp;")
                .replace('"', "&quot;")
                .replace('<', "&lt;")
                .replace('>', "&gt;"),
        ]);
    }
    all.join("\n")
}
