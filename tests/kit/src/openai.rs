//! A server that speaks as the OpenAI API does, on real sockets: well, slowly, in part, or not at all, as it is told.
//!
//! Neighbours: tests of model calls, of the whole node. [`answers`] makes what it says. It holds requests against what the
//! API demands of them, keeps each, and counts calls and connections. What becomes of a call is decided by the request
//! ([`OpenAi::set`]), never by the order in which calls arrive, unless the test asks for its number.

pub mod answers;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::net::sockopt;
use serde_json::Value;

pub use self::answers::{Said, ToolCall, vector_of};

/// Longest request that is read, in bytes.
const MAX_REQUEST_BYTES: usize = 16 * 1024 * 1024;
/// Time between two looks at whether the other side, or the server, is gone.
const LOOK: Duration = Duration::from_millis(20);

/// One request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Its number, from 0, in the order in which they came.
    pub number: usize,
    /// `GET` or `POST`.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// Its body; null when it is none, or no JSON.
    pub body: Value,
    /// When it was there as a whole.
    pub at: Instant,
}

impl Asked {
    /// First value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Everything that a model would read, in one text.
    pub fn prompt(&self) -> String {
        ["messages", "prompt", "input"]
            .map(|field| self.body[field].to_string())
            .concat()
    }

    /// Whether the answer is to come as a stream.
    pub fn is_streamed(&self) -> bool {
        self.body["stream"] == true
    }
}

/// How an answer ends.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum End {
    /// As it should.
    #[default]
    Whole,
    /// Without `[DONE]`, after everything else.
    NoDone,
    /// After so many pieces, as if that were all: neither a reason nor `[DONE]`, but the body ends well.
    Short(usize),
    /// After so many pieces the connection is closed in the middle of the body.
    Cut(usize),
    /// After so many pieces the connection is reset.
    Reset(usize),
    /// After so many pieces comes this in place of the rest.
    Event(usize, Value),
    /// After so many pieces come bytes that are no event, again and again, until the other side is gone.
    Endless(usize, Vec<u8>),
}

/// How an answer travels.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    /// Time until anything is sent.
    pub before_head: Duration,
    /// Time between head and first piece.
    pub before_first: Duration,
    /// Time between pieces.
    pub between: Duration,
    /// Nothing is sent before [`OpenAi::release`]: not even a head.
    pub holds_head: bool,
    /// After so many pieces nothing more is sent before [`OpenAi::release`].
    pub holds_after: Option<usize>,
    /// Streams are written in parts of so many bytes, wherever those end.
    pub part_bytes: Option<usize>,
    /// Comments stand between events, and lines end in CR LF, as with some servers.
    pub is_chatty: bool,
    /// The body of a stream ends with the connection, and has no length: as with some servers.
    pub is_unframed: bool,
}

/// What becomes of a call.
#[derive(Debug, Clone)]
pub enum Reply {
    /// It is answered.
    Say(Said, Pace, End),
    /// It is answered with this status, these header lines (each with its end) and this body as JSON.
    Fail(u16, String, Value),
    /// It is answered with 200, this content type and this body.
    Odd(&'static str, Vec<u8>),
    /// These bytes are sent, then these again and again, until the other side is gone.
    Raw(Vec<u8>, Vec<u8>),
}

impl Default for Reply {
    fn default() -> Self {
        Said::default().into()
    }
}

impl From<Said> for Reply {
    fn from(said: Said) -> Self {
        Self::Say(said, Pace::default(), End::default())
    }
}

impl Reply {
    /// The default answer, at this pace.
    pub fn at(pace: Pace) -> Self {
        Self::Say(Said::default(), pace, End::Whole)
    }

    /// The default answer with this end.
    pub fn ending(end: End) -> Self {
        Self::Say(Said::default(), Pace::default(), end)
    }

    /// An error with this status, and the words that go with it there.
    pub fn status(status: u16) -> Self {
        let (message, kind, code) = match status {
            400 => ("The request is not one.", "invalid_request_error", None),
            401 => (
                "The key is not one.",
                "invalid_request_error",
                Some("invalid_api_key"),
            ),
            403 => (
                "The key may not do that.",
                "invalid_request_error",
                Some("unsupported_country_region_territory"),
            ),
            404 => (
                "There is no such model.",
                "invalid_request_error",
                Some("model_not_found"),
            ),
            429 => ("Too many requests.", "requests", Some("rate_limit_exceeded")),
            503 => ("Overloaded.", "service_unavailable", None),
            _ => ("The server had an error.", "server_error", None),
        };
        Self::Fail(status, String::new(), answers::error(message, kind, code))
    }

    /// Too many, for now; `retry_after` as the header says it.
    pub fn rate_limited(retry_after: &str) -> Self {
        let body = answers::error("Too many requests.", "requests", Some("rate_limit_exceeded"));
        Self::Fail(429, format!("Retry-After: {retry_after}\r\n"), body)
    }

    /// The account has nothing left.
    pub fn quota() -> Self {
        let body = answers::error(
            "You have no quota left.",
            "insufficient_quota",
            Some("insufficient_quota"),
        );
        Self::Fail(429, String::new(), body)
    }

    /// The prompt is too long for the model.
    pub fn context_length() -> Self {
        let kind = "invalid_request_error";
        let body = answers::error("The context is too long.", kind, Some("context_length_exceeded"));
        Self::Fail(400, String::new(), body)
    }
}

type Replies = Arc<dyn Fn(&Asked) -> Reply + Send + Sync>;

struct Shared {
    key: Option<String>,
    models: Vec<String>,
    replies: Mutex<Replies>,
    asked: Mutex<Vec<Asked>>,
    objections: Mutex<Vec<String>>,
    calls: AtomicUsize,
    most_calls: AtomicUsize,
    abandoned: AtomicUsize,
    connections: AtomicUsize,
    all_connections: AtomicUsize,
    released: AtomicBool,
    closed: AtomicBool,
}

/// The server. Gone when dropped.
pub struct OpenAi {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// One more for as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicUsize) -> (Self, usize) {
        let count = counter.fetch_add(1, SeqCst) + 1;
        (Self(counter), count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OpenAi {
    /// A server for whoever has this key (anybody, without one), where these models are (any, if none is named). It answers
    /// well until told otherwise.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start(key: Option<&str>, models: &[&str]) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            key: key.map(str::to_owned),
            models: models.iter().map(|&model| model.to_owned()).collect(),
            replies: Mutex::new(Arc::new(|_| Reply::default())),
            asked: Mutex::default(),
            objections: Mutex::default(),
            calls: AtomicUsize::default(),
            most_calls: AtomicUsize::default(),
            abandoned: AtomicUsize::default(),
            connections: AtomicUsize::default(),
            all_connections: AtomicUsize::default(),
            released: AtomicBool::default(),
            closed: AtomicBool::default(),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.closed.load(SeqCst) {
                    return;
                }
                let serving = Arc::clone(&serving);
                // What goes wrong with one connection is the client's to notice.
                std::thread::spawn(move || drop(serving.serve(stream)));
            }
        });
        Ok(Self { address, shared })
    }

    /// Decides from now on what becomes of calls.
    pub fn set(&self, replies: impl Fn(&Asked) -> Reply + Send + Sync + 'static) {
        *lock(&self.shared.replies) = Arc::new(replies);
    }

    /// Base URL, as settings take it.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All requests so far, in their order.
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }

    /// What the API would have refused of the requests so far, key and model aside.
    pub fn objections(&self) -> Vec<String> {
        lock(&self.shared.objections).clone()
    }

    /// Calls that are being answered.
    pub fn calls(&self) -> usize {
        self.shared.calls.load(SeqCst)
    }

    /// The most there were at once.
    pub fn most_calls(&self) -> usize {
        self.shared.most_calls.load(SeqCst)
    }

    /// Calls whose other side left before the answer was whole.
    pub fn abandoned(&self) -> usize {
        self.shared.abandoned.load(SeqCst)
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }

    /// Connections so far.
    pub fn all_connections(&self) -> usize {
        self.shared.all_connections.load(SeqCst)
    }

    /// Lets go of what is held, now and from now on.
    pub fn release(&self) {
        self.shared.released.store(true, SeqCst);
    }

    /// Holds again what is to be held.
    pub fn hold(&self) {
        self.shared.released.store(false, SeqCst);
    }
}

impl Drop for OpenAi {
    fn drop(&mut self) {
        self.shared.closed.store(true, SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

/// Why a connection is not used again.
struct Closing;

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> Result<()> {
        let _counted = Counted::new(&self.connections);
        self.all_connections.fetch_add(1, SeqCst);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        while let Some(mut asked) = self.read(&mut stream)? {
            let (_counted, count) = Counted::new(&self.calls);
            self.most_calls.fetch_max(count, SeqCst);
            {
                let mut all = lock(&self.asked);
                asked.number = all.len();
                all.push(asked.clone());
            }
            match self.answer(&asked, &mut stream) {
                Ok(None) if asked.header("connection") == Some("close") => return Ok(()),
                Ok(None) => {}
                Ok(Some(Closing)) => return Ok(()),
                Err(error) => {
                    if !self.closed.load(SeqCst) {
                        self.abandoned.fetch_add(1, SeqCst);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The next request; nothing when there is none to come.
    fn read(&self, stream: &mut TcpStream) -> Result<Option<Asked>> {
        let (mut bytes, mut head_end) = (Vec::new(), None);
        let mut wanted = usize::MAX;
        while bytes.len() < wanted {
            let mut part = [0; 16 * 1024];
            match stream.read(&mut part) {
                Ok(0) => return Ok(None),
                Ok(count) => bytes.extend_from_slice(&part[..count]),
                Err(error) if is_pause(&error) && !self.closed.load(SeqCst) => continue,
                Err(_) => return Ok(None),
            }
            if head_end.is_none()
                && let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n")
            {
                head_end = Some(end + 4);
                wanted = end + 4 + content_length(&bytes[..end])?;
            }
            if bytes.len() > MAX_REQUEST_BYTES {
                bail!("the request is too long");
            }
        }
        let (head, body) = bytes.split_at(head_end.context("it has a head")?);
        let head = std::str::from_utf8(head)?;
        let mut words = head.split(' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let headers =
            headers.map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        Ok(Some(Asked {
            number: 0,
            method: word(),
            path: word(),
            headers: headers.collect(),
            body: serde_json::from_slice(body).unwrap_or_default(),
            at: Instant::now(),
        }))
    }

    fn answer(&self, asked: &Asked, stream: &mut TcpStream) -> Result<Option<Closing>> {
        let key = self.key.as_ref().map(|key| format!("Bearer {key}"));
        if key.is_some() && asked.header("authorization") != key.as_deref() {
            return whole(stream, Reply::status(401));
        }
        if (asked.method.as_str(), asked.path.as_str()) == ("GET", "/v1/models") {
            return json(stream, 200, "", &answers::models(&self.models));
        }
        if let Some(objection) = objection(asked) {
            let body = answers::error(objection, "invalid_request_error", None);
            lock(&self.objections).push(format!("{} {}: {objection}", asked.method, asked.path));
            return json(stream, 400, "", &body);
        }
        let model = asked.body["model"].as_str().unwrap_or_default();
        if !self.models.is_empty() && !self.models.iter().any(|known| known == model) {
            return whole(stream, Reply::status(404));
        }
        let replies = Arc::clone(&lock(&self.replies));
        match replies(asked) {
            Reply::Say(said, pace, end) => {
                self.hold_until_released(stream, pace.holds_head)?;
                self.rest(stream, pace.before_head)?;
                if asked.is_streamed() {
                    return self.stream(asked, stream, &said, &pace, &end);
                }
                self.say_at_once(asked, stream, &said, &pace, &end)
            }
            Reply::Raw(first, again) => {
                stream.write_all(&first)?;
                while !again.is_empty() && !self.closed.load(SeqCst) {
                    stream.write_all(&again)?;
                }
                Ok(Some(Closing))
            }
            other => whole(stream, other),
        }
    }

    fn say_at_once(
        &self,
        asked: &Asked,
        stream: &mut TcpStream,
        said: &Said,
        pace: &Pace,
        end: &End,
    ) -> Result<Option<Closing>> {
        let model = asked.body["model"].as_str().unwrap_or_default();
        let answer = match asked.path.as_str() {
            "/v1/embeddings" => said.embeddings(&asked.body, model),
            path => said.whole(path == "/v1/chat/completions", model),
        };
        let text = answer.to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            text.len()
        );
        let half = text.floor_char_boundary(text.len() / 2);
        stream.write_all(head.as_bytes())?;
        self.rest(stream, pace.before_first)?;
        stream.write_all(&text.as_bytes()[..half])?;
        match end {
            End::Cut(_) => return Ok(Some(Closing)),
            End::Reset(_) => return reset(stream),
            _ => {}
        }
        self.hold_until_released(stream, pace.holds_after.is_some())?;
        self.rest(stream, pace.between)?;
        stream.write_all(&text.as_bytes()[half..])?;
        Ok(None)
    }

    fn stream(
        &self,
        asked: &Asked,
        stream: &mut TcpStream,
        said: &Said,
        pace: &Pace,
        end: &End,
    ) -> Result<Option<Closing>> {
        let framing = match pace.is_unframed {
            true => "Connection: close",
            false => "Transfer-Encoding: chunked",
        };
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n{framing}\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let is_chat = asked.path == "/v1/chat/completions";
        let tells_usage = asked.body["stream_options"]["include_usage"] == true;
        let model = asked.body["model"].as_str().unwrap_or_default();
        let mut pieces = 0;
        for (is_piece, chunk) in said.chunks(is_chat, model, tells_usage) {
            if is_piece {
                if let Some(ended) = self.ends(stream, pace, end, pieces)? {
                    return Ok(ended);
                }
                self.hold_until_released(stream, pace.holds_after == Some(pieces))?;
                self.rest(
                    stream,
                    if pieces == 0 {
                        pace.before_first
                    } else {
                        pace.between
                    },
                )?;
                pieces += 1;
            }
            pace.event(stream, &chunk.to_string())?;
        }
        if *end != End::NoDone {
            pace.event(stream, "[DONE]")?;
        }
        finish(stream, pace)
    }

    /// Ends a stream after `pieces` if it is to end there; how, for the connection.
    fn ends(
        &self,
        stream: &mut TcpStream,
        pace: &Pace,
        end: &End,
        pieces: usize,
    ) -> Result<Option<Option<Closing>>> {
        Ok(Some(match end {
            End::Short(after) if *after == pieces => finish(stream, pace)?,
            End::Cut(after) if *after == pieces => Some(Closing),
            End::Reset(after) if *after == pieces => reset(stream)?,
            End::Event(after, event) if *after == pieces => {
                pace.event(stream, &event.to_string())?;
                finish(stream, pace)?
            }
            End::Endless(after, again) if *after == pieces => {
                while !self.closed.load(SeqCst) {
                    pace.send(stream, again)?;
                }
                Some(Closing)
            }
            _ => return Ok(None),
        }))
    }

    fn hold_until_released(&self, stream: &mut TcpStream, holds: bool) -> Result<()> {
        while holds && !self.released.load(SeqCst) {
            self.rest(stream, LOOK)?;
        }
        Ok(())
    }

    /// Waits so long.
    ///
    /// # Errors
    /// When the other side, or the server, is gone by then.
    fn rest(&self, stream: &mut TcpStream, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            if self.closed.load(SeqCst) {
                bail!("the server is closing");
            }
            // No time at all would mean no limit.
            stream.set_read_timeout(Some(left.min(LOOK).max(Duration::from_millis(1))))?;
            match stream.peek(&mut [0]) {
                Ok(0) => bail!("the other side has left"),
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => bail!("the other side says more than it was asked for"),
            }
        }
        stream.set_read_timeout(Some(LOOK))?;
        Ok(())
    }
}

impl Pace {
    fn event(&self, stream: &mut TcpStream, data: &str) -> Result<()> {
        let text = match self.is_chatty {
            true => format!(": still here\r\n\r\nevent: message\r\ndata:{data}\r\n\r\n"),
            false => format!("data: {data}\n\n"),
        };
        self.send(stream, text.as_bytes())
    }

    fn send(&self, stream: &mut TcpStream, bytes: &[u8]) -> Result<()> {
        for part in bytes.chunks(self.part_bytes.unwrap_or(bytes.len()).max(1)) {
            if self.is_unframed {
                stream.write_all(part)?;
            } else {
                let framed = [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
                stream.write_all(&framed)?;
            }
        }
        Ok(())
    }
}

fn finish(stream: &mut TcpStream, pace: &Pace) -> Result<Option<Closing>> {
    if pace.is_unframed {
        return Ok(Some(Closing));
    }
    stream.write_all(b"0\r\n\r\n")?;
    Ok(None)
}

fn reset(stream: &mut TcpStream) -> Result<Option<Closing>> {
    sockopt::set_socket_linger(&*stream, Some(Duration::ZERO))?;
    Ok(Some(Closing))
}

fn whole(stream: &mut TcpStream, reply: Reply) -> Result<Option<Closing>> {
    match reply {
        Reply::Fail(status, headers, body) => json(stream, status, &headers, &body),
        Reply::Odd(content_type, body) => {
            let length = body.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
            );
            stream.write_all(&[head.as_bytes(), &body].concat())?;
            Ok(None)
        }
        Reply::Say(..) | Reply::Raw(..) => bail!("not in one piece"),
    }
}

fn json(stream: &mut TcpStream, status: u16, headers: &str, body: &Value) -> Result<Option<Closing>> {
    let body = body.to_string();
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status} Answer\r\n{headers}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes())?;
    Ok(None)
}

fn is_pause(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn content_length(head: &[u8]) -> Result<usize> {
    let head = std::str::from_utf8(head)?;
    let mut pairs = head.lines().filter_map(|line| line.split_once(':'));
    let length = pairs.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    Ok(length.map_or(Ok(0), |(_, value)| value.trim().parse())?)
}

/// What the API refuses in a request, if it refuses it.
fn objection(asked: &Asked) -> Option<&'static str> {
    let body = &asked.body;
    let is_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let are_texts = |value: &Value| {
        value
            .as_array()
            .is_some_and(|all| !all.is_empty() && all.iter().all(is_text))
    };
    if asked.method != "POST" {
        return Some("the method is POST");
    }
    if !asked
        .header("content-type")
        .is_some_and(|kind| kind.starts_with("application/json"))
    {
        return Some("the content type is application/json");
    }
    if !is_text(&body["model"]) {
        return Some("model is a text");
    }
    if !matches!(body["stream"], Value::Null | Value::Bool(_)) {
        return Some("stream is true or false");
    }
    if !body["stream_options"].is_null() && body["stream"] != true {
        return Some("stream_options goes with stream only");
    }
    match asked.path.as_str() {
        "/v1/chat/completions" => objection_to_chat(body),
        "/v1/completions" if is_text(&body["prompt"]) || are_texts(&body["prompt"]) => None,
        "/v1/completions" => Some("prompt is a text"),
        "/v1/embeddings" if is_text(&body["input"]) || are_texts(&body["input"]) => None,
        "/v1/embeddings" => Some("input is a text, or texts, none of them empty"),
        _ => Some("there is no such path"),
    }
}

fn objection_to_chat(body: &Value) -> Option<&'static str> {
    const ROLES: [&str; 5] = ["developer", "system", "user", "assistant", "tool"];
    let Some(messages) = body["messages"]
        .as_array()
        .filter(|messages| !messages.is_empty())
    else {
        return Some("messages is a list, and not empty");
    };
    for message in messages {
        let role = message["role"].as_str().unwrap_or_default();
        if !ROLES.contains(&role) {
            return Some("role is one of five");
        }
        let has_calls = role == "assistant" && message["tool_calls"].is_array();
        if !has_calls && !message["content"].is_string() && !message["content"].is_array() {
            return Some("content is a text, or parts");
        }
        if role == "tool" && !message["tool_call_id"].is_string() {
            return Some("an answer of a tool names its call");
        }
    }
    let is_bad = |tool: &Value| tool["type"] != "function" || !tool["function"]["name"].is_string();
    match &body["tools"] {
        Value::Null => None,
        Value::Array(tools) if !tools.is_empty() && !tools.iter().any(is_bad) => None,
        _ => Some("tools is a list of functions"),
    }
}

#[cfg(test)]
mod tests;
