//! `http.request`: one request to an HTTP server, redirects followed, answer bounded.
//!
//! Neighbours: [`crate::build`] builds it. In the order of a request: `request` reads the inputs, `guard` resolves (`lookup`)
//! and judges (`rules`, `ports`, `address`) the target, `clients`, `dial` and `wire` connect, `body` and `decode` receive,
//! `redirects` leads on. Never retries, never resolves a name twice for one hop, never follows a redirect past the guard.
//! `fetch` reads inputs that a job refers to by the same way.

mod address;
mod body;
mod clients;
mod decode;
mod dial;
mod direct;
mod fetch;
mod guard;
mod lookup;
mod ports;
#[cfg(any(test, fuzzing))]
pub(crate) mod properties;
mod redirects;
mod request;
mod retry_after;
mod rules;
mod secrets;
mod wire;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use awc::ClientResponse;
use awc::error::{ConnectError, SendRequestError};
use awc::http::{Method, StatusCode, header};
use caf_protocol::block::{
    Block, BlockContext, BlockFuture, BlockSpec, Inputs, Outputs, ResourceClass, RunMode, Task,
};
use caf_protocol::endpoint::{Endpoint, EndpointKind, Sign};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::limit::Operation;
use caf_protocol::outcome::Failure;
use caf_protocol::secret::vault::Vault;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use tokio_rustls::rustls::{CertificateError, ClientConfig, Error as TlsError};

use self::clients::{Clients, Owner, UnderWay};
use self::decode::Coding;
use self::dial::Dial;
pub(crate) use self::direct::{Direct, Exchange, Server, say_span};
pub(crate) use self::fetch::HttpFetch;
use self::guard::Guard;
pub(crate) use self::ports::DENIED_PORTS;
use self::request::Request;
pub use self::request::{UrlTarget, url_target};
pub use self::rules::TargetRules;
pub(crate) use self::rules::{TARGET_RULE, is_target};
use self::wire::Breach;
use crate::settings::{HttpSettings, SettingError};
use crate::watch::{attempt_limit, until_stopped};
use crate::{Extras, OperationLimits, tls};

/// Inputs of `http.request`.
#[derive(JsonSchema, Serialize)]
struct HttpInputs {
    /// Address, `http` or `https`, without credentials.
    url: String,
    /// GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS, in any case.
    method: String,
    /// Header names and values, as an object or as its JSON text. Values are strings, numbers, booleans, or references to
    /// secrets: `{"$secret": "name"}`, optionally with `"prefix": "Bearer "`.
    headers: Option<Value>,
    /// Text, or any other JSON value, which is sent as its JSON text with content type `application/json`. A reference to a
    /// secret may be the body, or stand for a text anywhere in it.
    body: Option<Value>,
    /// Body as base64, instead of `body`.
    body_base64: Option<String>,
    /// Shortens the deadline of the job; read by the pipeline.
    timeout_ms: Option<u64>,
}

/// Outputs of `http.request`. With status 400 or above, and with redirects that are not followed, the job fails with
/// HTTP_ERROR and has these outputs all the same.
#[derive(JsonSchema, Serialize)]
struct HttpOutputs {
    /// Status of the final answer.
    status_code: u16,
    /// Headers of the final answer: names in lower case, repeated ones joined by a comma and a space.
    headers: HashMap<String, String>,
    /// Body as text, or as base64 when it is not UTF-8. Decompressed.
    body: String,
    /// `base64` when `body` is, else absent.
    encoding: Option<String>,
    /// From the first byte sent to the last received, in milliseconds, over all hops.
    latency_ms: u64,
}

/// The block.
pub(crate) struct HttpRequest {
    spec: BlockSpec,
    shared: Arc<Shared>,
}

struct Shared {
    /// Tells the clients of this block from those of other instances on the same thread.
    id: u64,
    settings: HttpSettings,
    limits: OperationLimits,
    guard: Guard,
    tls: Arc<ClientConfig>,
    vault: Vault,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// What awc is told where only the deadline limits connecting: longer than any job may take. Without a word it would
/// take a limit of its own.
const NO_LIMIT: Duration = Duration::from_secs(2 * 3_600);

/// How many times the limit on a body it may travel as: room for chunks of a few bytes each.
const MAX_TRAVEL_FACTOR: u64 = 2;
/// Bytes added to that, so that bodies far below the limit may come in chunks of one byte, six for one.
const TRAVEL_MARGIN_BYTES: u64 = 1 << 20;

impl HttpRequest {
    pub(crate) fn new(
        settings: &HttpSettings,
        limits: OperationLimits,
        extras: Extras,
    ) -> Result<Self, SettingError> {
        let spec = BlockSpec {
            job_types: &["http.request"],
            class: ResourceClass::Io,
            repeatable: false,
            inputs: schemars::schema_for!(HttpInputs),
            outputs: schemars::schema_for!(HttpOutputs),
        };
        let mut roots = tls::public_roots();
        if let Some(file) = &settings.ca_file {
            tls::add_file(&mut roots, file)
                .map_err(|rule| SettingError::new(&["blocks", "http", "ca_file"], rule, file.display()))?;
        }
        let shared = Arc::new(Shared {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            settings: settings.clone(),
            limits,
            vault: extras.vault.clone(),
            guard: Guard::new(settings, extras)?,
            tls: dial::tls_config(roots),
        });
        Ok(Self { spec, shared })
    }

    /// Connects to servers that settings name, trusting the same authorities.
    pub(crate) fn direct(&self) -> Direct {
        Direct::new(Arc::clone(&self.shared.tls))
    }

    /// Fetches by the same guard, clients and limits.
    pub(crate) fn fetcher(&self) -> HttpFetch {
        HttpFetch::new(Arc::clone(&self.shared))
    }
}

impl Block for HttpRequest {
    fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    fn secret_inputs(&self) -> &'static [&'static str] {
        &["body", "headers"]
    }

    fn prepare(&self, inputs: Inputs) -> Result<Arc<dyn Task>, Failure> {
        let request = Request::from_inputs(&inputs, &self.shared.settings)?;
        let shared = Arc::clone(&self.shared);
        Ok(Arc::new(HttpTask { shared, request }))
    }
}

struct HttpTask {
    shared: Arc<Shared>,
    request: Request,
}

impl Task for HttpTask {
    fn mode(&self) -> RunMode {
        RunMode::Async
    }

    fn operations(&self) -> &'static [Operation] {
        &[Operation::HttpConnect, Operation::HttpRead]
    }

    fn endpoint(&self) -> Option<Endpoint> {
        let origin = self.request.url.origin().ascii_serialization();
        Some(Endpoint::new(EndpointKind::Http, &origin))
    }

    fn run(self: Arc<Self>, context: BlockContext) -> BlockFuture {
        Box::pin(async move {
            let Shared {
                vault,
                settings,
                guard,
                ..
            } = &*self.shared;
            guard.check_first(&self.request.url, &context.tenant_id)?;
            let request = secrets::put_in(&self.request, vault, settings.max_request_bytes, &context)
                .map_err(|failure| failure.saying(Sign::Refused))?;
            let exchange = self.shared.exchange(&request, &context);
            request.secrets.scrub(until_stopped(&context, exchange).await)
        })
    }
}

/// The answer of the last hop: its head is here, its body is still to come.
struct Answer {
    hop: Request,
    response: ClientResponse,
    /// Why a redirect was not followed, when it is one.
    refused: Option<&'static str>,
    _under_way: UnderWay,
}

impl Answer {
    fn coding(&self) -> Coding {
        let values = self.response.headers().get_all(header::CONTENT_ENCODING);
        let texts: Vec<_> = values
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        Coding::from_header(Some(texts.join(", ").as_str()))
    }

    /// The length that the head states.
    fn announced(&self) -> Option<u64> {
        header_text(&self.response, header::CONTENT_LENGTH)?
            .trim()
            .parse()
            .ok()
    }

    /// Whether the body is in no coding, or in one that is undone here.
    fn is_readable(&self) -> bool {
        let coding = header_text(&self.response, header::CONTENT_ENCODING);
        let is_none = |coding: String| matches!(coding.trim().to_ascii_lowercase().as_str(), "" | "identity");
        self.coding() != Coding::Identity || coding.is_none_or(is_none)
    }

    /// Some answers have none, whatever their headers say.
    fn has_no_body(&self) -> bool {
        self.hop.method == Method::HEAD || matches!(self.response.status().as_u16(), 204 | 304)
    }

    fn failure(&self) -> Option<Failure> {
        let failure = failure_of_status(self.response.status(), self.refused)?;
        let wait_ms = header_text(&self.response, header::RETRY_AFTER)
            .and_then(|text| retry_after::wait_ms(&text, SystemTime::now()));
        Some(match wait_ms {
            Some(wait_ms) => failure.with(retry_after::DETAIL, json!(wait_ms)),
            None => failure,
        })
    }
}

impl Shared {
    /// Sends the request, follows redirects, and writes the final answer down.
    async fn exchange(&self, request: &Request, context: &BlockContext) -> Result<Outputs, Failure> {
        let started = Instant::now();
        let answer = self.follow(request, context).await?;
        self.finish(answer, started, context).await
    }

    /// Sends the request and follows redirects to the final answer.
    async fn follow(&self, request: &Request, context: &BlockContext) -> Result<Answer, Failure> {
        let mut hop = request.clone();
        let said_span = redirects::say_span(&mut hop, context.correlation.span.as_ref());
        let mut hops_left = self.settings.max_redirects;
        let under_way = UnderWay::count();
        loop {
            let response = self.send(&hop, context).await?;
            let location = header_text(&response, header::LOCATION);
            let downgrades = self.settings.follow_downgrades;
            let refused = match redirects::next_hop(&hop, response.status(), location.as_deref(), downgrades)
            {
                Some(Ok(mut next)) if hops_left > 0 => {
                    hops_left -= 1;
                    secrets::follow(&hop.url, &mut next)?;
                    if said_span {
                        redirects::unsay_span(&mut next, &hop.url);
                    }
                    hop = next;
                    continue;
                }
                Some(Ok(_)) => Some("too many redirects"),
                Some(Err(rule)) => Some(rule),
                None => None,
            };
            return Ok(Answer {
                hop,
                response,
                refused,
                _under_way: under_way,
            });
        }
    }

    /// Sends one hop and waits for the head of its answer. Addresses are tried in turn as long as none takes the
    /// connection; a request that may have been sent is never sent again.
    async fn send(&self, hop: &Request, context: &BlockContext) -> Result<ClientResponse, Failure> {
        let connect_limit = self.limits.on(Operation::HttpConnect);
        let tenant = &context.tenant_id;
        let lookup = self.guard.passage(&hop.url, tenant);
        let passage = attempt_limit(context, connect_limit, "resolving the host name", lookup).await??;
        let attempts = async {
            let mut last = None;
            for address in passage.addresses {
                let began = Instant::now();
                let pool = clients::pool_of(tenant, address, passage.generation);
                match self.send_to(hop, address, &pool).await {
                    Err(error) if never_connected(&error) => last = Some((error, began.elapsed())),
                    Err(error) => return Err(failure_of(error)),
                    Ok(response) => return Ok(response),
                }
            }
            Err(match (last, connect_limit) {
                (None, _) => Failure::new(ErrorCode::NetworkError, "the host has no address"),
                // Only our own limit is told by this: the system's is an error of its own kind.
                (Some((SendRequestError::Connect(ConnectError::Timeout), taken)), Some(limit)) => {
                    limit.ends_the_attempt("connecting", taken)
                }
                (Some((error, _)), _) => failure_of(error),
            })
        };
        let head_limit = self.limits.on(Operation::HttpRead);
        attempt_limit(context, head_limit, "waiting for the answer's head", attempts).await?
    }

    async fn send_to(
        &self,
        hop: &Request,
        address: SocketAddr,
        pool: &str,
    ) -> Result<ClientResponse, SendRequestError> {
        let clients = self.clients();
        let client = if hop.url.scheme() == "https" {
            &clients.secure
        } else {
            &clients.plain
        };
        let mut outgoing = client
            .request(hop.method.clone(), request::target(&hop.url, pool))
            .address(address)
            .no_decompress()
            .insert_header((header::HOST, request::host_header(&hop.url)));
        for (name, value) in &hop.headers {
            outgoing = outgoing.append_header((name.clone(), value.clone()));
        }
        match &hop.body {
            Some(body) => outgoing.send_body(body.clone()).await,
            None if matches!(hop.method, Method::POST | Method::PUT | Method::PATCH) => {
                outgoing.send_body("").await
            }
            None => outgoing.send().await,
        }
    }

    fn clients(&self) -> Rc<Clients> {
        let travel = self.settings.max_response_bytes.saturating_mul(MAX_TRAVEL_FACTOR);
        let travel = travel.saturating_add(TRAVEL_MARGIN_BYTES);
        let owner = Owner {
            block: self.id,
            server: 0,
        };
        clients::of_thread(owner, self.guard.generation(), || Clients {
            plain: client(Dial::plain(travel), self.connect_limit()),
            secure: client(Dial::secure(Arc::clone(&self.tls), travel), self.connect_limit()),
        })
    }

    fn connect_limit(&self) -> Duration {
        self.limits.http_connect.unwrap_or(NO_LIMIT)
    }

    /// Receives the body of an answer, decompressed.
    async fn receive(
        &self,
        answer: Answer,
        max_bytes: u64,
        context: &BlockContext,
    ) -> Result<Vec<u8>, Failure> {
        if answer.has_no_body() {
            return Ok(Vec::new());
        }
        let (coding, announced) = (answer.coding(), answer.announced());
        let receive = body::receive(answer.response, coding, announced, max_bytes);
        let limit = self.limits.on(Operation::HttpRead);
        attempt_limit(context, limit, "receiving the answer's body", receive)
            .await
            .flatten()
    }

    /// Receives the final answer.
    async fn finish(
        &self,
        answer: Answer,
        started: Instant,
        context: &BlockContext,
    ) -> Result<Outputs, Failure> {
        let status = answer.response.status();
        let mut outputs = Map::new();
        outputs.insert("status_code".to_owned(), json!(status.as_u16()));
        outputs.insert(
            "headers".to_owned(),
            headers_of(&answer.response, answer.coding()),
        );

        let failure = answer.failure();
        let (secrets, is_readable) = (answer.hop.secrets.clone(), answer.is_readable());
        let max_bytes = self.settings.max_response_bytes;
        let received = self.receive(answer, max_bytes, context).await;
        match received {
            Ok(bytes) => body::put(&mut outputs, secrets.scrub_body(bytes, is_readable)),
            // With a failure status, the status is the news and the body is an extra.
            Err(of_body) if failure.is_none() || of_body.total_limit => return Err(of_body),
            Err(_) => {}
        }
        let latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        outputs.insert("latency_ms".to_owned(), json!(latency_ms));
        match failure {
            None => Ok(outputs),
            Some(mut failure) => {
                failure.outputs = outputs;
                Err(failure)
            }
        }
    }
}

fn client(dial: Dial, connect_limit: Duration) -> awc::Client {
    let connector = awc::Connector::new()
        .connector(dial)
        .timeout(connect_limit)
        // The slots of the pool bound requests in flight; a second bound here would be a hidden queue.
        .limit(0);
    awc::Client::builder()
        .connector(connector)
        .disable_redirects()
        .disable_timeout()
        .no_default_headers()
        .finish()
}

fn header_text(response: &ClientResponse, name: header::HeaderName) -> Option<String> {
    let value = response.headers().get(name)?;
    Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// Header names in lower case, repeated ones joined. What described the compressed form goes with it.
fn headers_of(response: &ClientResponse, coding: Coding) -> Value {
    let mut headers: Map<String, Value> = Map::new();
    for (name, value) in response.headers() {
        let decoded = coding != Coding::Identity;
        if decoded && (name == header::CONTENT_ENCODING || name == header::CONTENT_LENGTH) {
            continue;
        }
        let value = String::from_utf8_lossy(value.as_bytes());
        match headers.get_mut(name.as_str()) {
            Some(Value::String(joined)) => {
                joined.push_str(", ");
                joined.push_str(&value);
            }
            _ => {
                headers.insert(name.as_str().to_owned(), json!(value));
            }
        }
    }
    Value::Object(headers)
}

/// The failure that a final status means. Texts for 4xx hold nothing by which the router's breaker would blame the
/// provider (contract 3.4): no numbers, none of its words.
fn failure_of_status(status: StatusCode, refused: Option<&'static str>) -> Option<Failure> {
    let message = match (refused, status.as_u16()) {
        (Some(rule), _) => rule.to_owned(),
        (None, 200..=299) => return None,
        (None, 400..=499) => "the server refused the request; the status code is in the details".to_owned(),
        (None, 500..) => format!("the server failed with status {}", status.as_u16()),
        (None, _) => "the server's answer is neither success nor a redirect to follow".to_owned(),
    };
    let failure = Failure::new(ErrorCode::HttpError, message);
    Some(failure.with("status_code", json!(status.as_u16())))
}

/// Whether the request cannot have been sent.
fn never_connected(error: &SendRequestError) -> bool {
    matches!(
        error,
        SendRequestError::Connect(ConnectError::Io(_) | ConnectError::Timeout | ConnectError::Unresolved)
    )
}

/// What went wrong before the head of the answer, by the kind of error; the library's words stay inside.
fn failure_of(error: SendRequestError) -> Failure {
    if let SendRequestError::Response(inner) = &error
        && let Some(breach) = breach_in(inner)
    {
        return breach.failure();
    }
    let timed_out = |error: &io::Error| error.kind() == io::ErrorKind::TimedOut;
    let failure = match &error {
        SendRequestError::Timeout | SendRequestError::Connect(ConnectError::Timeout) => {
            Failure::new(ErrorCode::ConnectionTimeout, "timeout while connecting")
        }
        SendRequestError::Connect(ConnectError::Io(io)) if timed_out(io) => {
            Failure::new(ErrorCode::ConnectionTimeout, "timeout while connecting")
        }
        SendRequestError::Connect(ConnectError::Io(io)) if io.kind() == io::ErrorKind::ConnectionRefused => {
            Failure::new(ErrorCode::NetworkError, "connection refused")
        }
        SendRequestError::Connect(ConnectError::Io(io)) if io.kind() == io::ErrorKind::InvalidData => {
            Failure::new(
                ErrorCode::NetworkError,
                format!("no encrypted connection: {}", handshake_rule(io)),
            )
        }
        SendRequestError::Connect(_) => Failure::new(ErrorCode::NetworkError, "no connection to the server"),
        SendRequestError::Response(_) => Failure::new(
            ErrorCode::NetworkError,
            "the connection broke off, or the answer is not HTTP",
        ),
        _ => Failure::new(ErrorCode::NetworkError, "the connection broke off"),
    };
    failure.internally(error)
}

/// Which bound the answer went beyond, if that is what the connection failed of.
fn breach_in(error: &(dyn std::error::Error + 'static)) -> Option<Breach> {
    Breach::of(error.source()?.downcast_ref()?)
}

/// What was wrong when TLS was to begin.
fn handshake_rule(error: &io::Error) -> &'static str {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(TlsError::InvalidCertificate(reason)) => match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the server's certificate has expired"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the server's certificate is not valid yet"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the server's certificate is for another name"
            }
            CertificateError::UnknownIssuer => "no known authority vouches for the server's certificate",
            _ => "the server's certificate is not valid",
        },
        _ => "the TLS handshake failed",
    }
}

#[cfg(test)]
mod tests;
