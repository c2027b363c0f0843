//! The smallest HTTP client that can read a health page.
//!
//! Neighbours: tests of the node's endpoints. Speaks HTTP/1.1 with `Connection: close` and nothing else: no
//! redirects, no encryption.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Longest wait for connection, and between two pieces of the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest answer that is read, in bytes.
const MAX_ANSWER_BYTES: u64 = 16 * 1024 * 1024;

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// Body, chunks put together.
    pub body: Vec<u8>,
}

impl Response {
    /// First value of a header; the name is compared without regard to case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The body as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is not JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }
}

/// `GET path` from a server on 127.0.0.1.
///
/// # Errors
/// When the server cannot be reached or its answer is not HTTP.
pub fn get(port: u16, path: &str) -> Result<Response> {
    request(SocketAddr::from(([127, 0, 0, 1], port)), "GET", path, &[], b"")
}

/// Any request without a body limit of its own; `headers` go out as given, `Host` in place of the right one.
///
/// # Errors
/// When the server cannot be reached or its answer is not HTTP.
pub fn request(
    server: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Response> {
    let mut stream =
        TcpStream::connect_timeout(&server, PATIENCE).with_context(|| format!("cannot reach {server}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str(&format!("Host: {server}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    parse(&answer)
}

fn parse(answer: &[u8]) -> Result<Response> {
    let end = find(answer, b"\r\n\r\n").context("the answer has no end of headers")?;
    let head = std::str::from_utf8(&answer[..end]).context("the headers are not text")?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("not a status line: {status_line}"))?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let chunked = headers
        .iter()
        .any(|(name, value)| name == "transfer-encoding" && value.eq_ignore_ascii_case("chunked"));
    let raw = &answer[end + 4..];
    let body = if chunked { unchunk(raw)? } else { raw.to_vec() };
    Ok(Response {
        status,
        headers,
        body,
    })
}

fn unchunk(mut raw: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = find(raw, b"\r\n").context("a chunk has no length")?;
        let length = std::str::from_utf8(&raw[..line])?
            .split(';')
            .next()
            .unwrap_or_default()
            .trim();
        let length = usize::from_str_radix(length, 16).context("a chunk's length is not a number")?;
        raw = &raw[line + 2..];
        if length == 0 {
            return Ok(body);
        }
        if raw.len() < length + 2 {
            bail!("the answer ends inside a chunk");
        }
        body.extend_from_slice(&raw[..length]);
        raw = &raw[length + 2..];
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        let plain =
            parse(b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n\r\nnothing").expect("is HTTP");
        assert_eq!((plain.status, plain.text().as_str()), (404, "nothing"));
        assert_eq!(plain.header("content-type"), Some("text/plain"));
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n4;x\r\n\":1}\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).expect("is HTTP").json().expect("is JSON")["a"], 1);
    }

    #[test]
    fn an_answer_that_breaks_off_is_an_error() {
        for broken in [
            &b"HTTP/1.1 200 OK\r\nX: y"[..],
            b"HTTP/1.1 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nshort",
        ] {
            assert!(parse(broken).is_err());
        }
    }
}
