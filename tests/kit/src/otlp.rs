//! A collector: takes spans over OTLP, by gRPC and by HTTP with protobuf on one port, and keeps them.
//!
//! Neighbours: tests of traces. It can also be a bad collector: one that hangs, refuses, or is none.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::tls::Certificates;

/// Bytes before a message of gRPC: a flag and a length.
const GRPC_PREFIX: usize = 5;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Its spans are kept.
    Take,
    /// It is never answered.
    Hang,
    /// It is answered well, but not as a collector would.
    Garbage,
    /// It is refused for now.
    Busy,
    /// It is refused for good.
    Refuse,
    /// So many of its spans are refused; the others are kept.
    RefuseSome(i64),
}

/// A span as it arrived.
#[derive(Debug, Clone, PartialEq)]
pub struct ReceivedSpan {
    /// Its name.
    pub name: String,
    /// Its kind, by the number of OTLP: 1 internal, 2 server, 3 client, 4 producer, 5 consumer.
    pub kind: i32,
    /// Its trace: 32 hexadecimal digits.
    pub trace_id: String,
    /// Its id: 16 hexadecimal digits.
    pub span_id: String,
    /// The span above it; empty when there is none.
    pub parent_id: String,
    /// Ids of spans that it links to.
    pub links: Vec<String>,
    /// What vendors have added.
    pub state: String,
    /// When it began and ended, in nanoseconds since the Unix epoch.
    pub times: (u64, u64),
    /// What it says of itself.
    pub attributes: Map<String, Value>,
    /// Names of what happened within it.
    pub events: Vec<String>,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// What it says of its process.
    pub resource: Map<String, Value>,
}

#[derive(Default)]
struct Kept {
    spans: Vec<ReceivedSpan>,
    requests: Vec<BTreeMap<String, String>>,
}

struct Shared {
    kept: Mutex<Kept>,
    answer: Mutex<Answer>,
}

/// The collector. Gone when dropped.
pub struct OtlpReceiver {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    _stop: oneshot::Sender<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OtlpReceiver {
    /// A collector that takes everything, until told otherwise.
    ///
    /// # Errors
    /// When there is no port or no thread.
    pub fn start() -> Result<Self> {
        Self::listen(None)
    }

    /// The same, encrypted with the server's certificate of these.
    ///
    /// # Errors
    /// As [`OtlpReceiver::start`], and when the certificate cannot be used.
    pub fn start_encrypted(certificates: &Certificates) -> Result<Self> {
        let (certificate, key) = certificates.server();
        let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self::listen(Some(TlsAcceptor::from(Arc::new(config))))
    }

    fn listen(tls: Option<TlsAcceptor>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            kept: Mutex::default(),
            answer: Mutex::new(Answer::Take),
        });
        let (stop, is_stop) = oneshot::channel::<()>();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let accepting = accept(listener, tls, Arc::clone(&shared));
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accepting => {}
                    // Dropped with the collector.
                    _ = is_stop => {}
                }
            });
        });
        Ok(Self {
            address,
            scheme,
            shared,
            _stop: stop,
        })
    }

    /// Its base address.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Decides from now on what becomes of requests.
    pub fn set(&self, answer: Answer) {
        *lock(&self.shared.answer) = answer;
    }

    /// Spans that were taken, in the order in which they came.
    pub fn spans(&self) -> Vec<ReceivedSpan> {
        lock(&self.shared.kept).spans.clone()
    }

    /// How many those are.
    pub fn count(&self) -> usize {
        lock(&self.shared.kept).spans.len()
    }

    /// Those of one assignment: every span of the traces that it occurs in.
    pub fn of_assignment(&self, assignment_id: &str) -> Vec<ReceivedSpan> {
        let spans = self.spans();
        let is_its =
            |span: &&ReceivedSpan| span.attributes.get("assignment.id") == Some(&assignment_id.into());
        let traces: Vec<_> = spans
            .iter()
            .filter(is_its)
            .map(|span| span.trace_id.clone())
            .collect();
        spans
            .into_iter()
            .filter(|span| traces.contains(&span.trace_id))
            .collect()
    }

    /// Headers of every request, whatever became of it; names in lower case.
    pub fn requests(&self) -> Vec<BTreeMap<String, String>> {
        lock(&self.shared.kept).requests.clone()
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (shared, tls) = (Arc::clone(&shared), tls.clone());
        tokio::spawn(async move {
            // What goes wrong with one connection is the client's to notice.
            match tls {
                None => shared.serve(stream).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        shared.serve(stream).await;
                    }
                }
            }
        });
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl Shared {
    async fn serve(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(move |request| {
            let shared = Arc::clone(&self);
            async move { Ok::<_, Infallible>(shared.answer(request).await) }
        });
        let _ = auto::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let is_grpc = head
            .headers
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind == "application/grpc");
        let bytes = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => return plain(StatusCode::BAD_REQUEST, Bytes::new()),
        };
        let mut headers: BTreeMap<_, _> = head
            .headers
            .iter()
            .map(|(name, value)| {
                (
                    name.to_string(),
                    String::from_utf8_lossy(value.as_bytes()).into_owned(),
                )
            })
            .collect();
        headers.insert(":path".to_owned(), head.uri.path().to_owned());
        lock(&self.kept).requests.push(headers);
        let answer = *lock(&self.answer);
        let rejected_spans = match answer {
            Answer::Hang => return std::future::pending().await,
            Answer::Garbage => return plain(StatusCode::OK, Bytes::from_static(b"<html>hello</html>")),
            Answer::Busy if is_grpc => return status(14),
            Answer::Busy => return plain(StatusCode::SERVICE_UNAVAILABLE, Bytes::new()),
            Answer::Refuse if is_grpc => return status(3),
            Answer::Refuse => return plain(StatusCode::BAD_REQUEST, Bytes::new()),
            Answer::RefuseSome(count) => count,
            Answer::Take => 0,
        };
        let message = if is_grpc {
            bytes.slice(GRPC_PREFIX.min(bytes.len())..)
        } else {
            bytes
        };
        let Ok(export) = ExportTraceServiceRequest::decode(message) else {
            return plain(StatusCode::BAD_REQUEST, Bytes::new());
        };
        self.keep(export, usize::try_from(rejected_spans).unwrap_or_default());
        let partial = ExportTracePartialSuccess {
            rejected_spans,
            error_message: "enough".to_owned(),
        };
        let answer = ExportTraceServiceResponse {
            partial_success: (rejected_spans > 0).then_some(partial),
        };
        let encoded = Bytes::from(answer.encode_to_vec());
        if is_grpc {
            grpc(&encoded)
        } else {
            plain(StatusCode::OK, encoded)
        }
    }

    fn keep(&self, export: ExportTraceServiceRequest, refused: usize) {
        let mut received = Vec::new();
        for of_resource in export.resource_spans {
            let resource = attributes(
                &of_resource
                    .resource
                    .map(|resource| resource.attributes)
                    .unwrap_or_default(),
            );
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            received.extend(spans.map(|span| read(span, &resource)));
        }
        received.truncate(received.len().saturating_sub(refused));
        lock(&self.kept).spans.extend(received);
    }
}

fn plain(status: StatusCode, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(bytes).boxed_unsync());
    *response.status_mut() = status;
    response
}

fn grpc(message: &[u8]) -> Response<Body> {
    let length = u32::try_from(message.len()).unwrap_or_default().to_be_bytes();
    let data = Bytes::from([&[0][..], &length, message].concat());
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(data)), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(stream::iter(frames));
    as_grpc(Response::new(body.boxed_unsync()))
}

/// A status of gRPC and nothing else.
fn status(code: u16) -> Response<Body> {
    let mut response = as_grpc(plain(StatusCode::OK, Bytes::new()));
    response.headers_mut().insert("grpc-status", code.into());
    response
}

fn as_grpc(mut response: Response<Body>) -> Response<Body> {
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn read(span: Span, resource: &Map<String, Value>) -> ReceivedSpan {
    const ERROR: i32 = 2;
    ReceivedSpan {
        name: span.name,
        kind: span.kind,
        trace_id: hex(&span.trace_id),
        span_id: hex(&span.span_id),
        parent_id: hex(&span.parent_span_id),
        links: span.links.iter().map(|link| hex(&link.span_id)).collect(),
        state: span.trace_state,
        times: (span.start_time_unix_nano, span.end_time_unix_nano),
        attributes: attributes(&span.attributes),
        events: span.events.into_iter().map(|event| event.name).collect(),
        error: span
            .status
            .filter(|status| status.code == ERROR)
            .map(|status| status.message),
        resource: resource.clone(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(pairs: &[KeyValue]) -> Map<String, Value> {
    let value = |pair: &KeyValue| match pair.value.clone().and_then(|value| value.value) {
        Some(any_value::Value::StringValue(text)) => json!(text),
        Some(any_value::Value::IntValue(number)) => json!(number),
        Some(any_value::Value::BoolValue(flag)) => json!(flag),
        other => json!(format!("{other:?}")),
    };
    pairs.iter().map(|pair| (pair.key.clone(), value(pair))).collect()
}

/// The one span with this name.
///
/// # Errors
/// When there is none, or more than one.
pub fn one<'a>(spans: &'a [ReceivedSpan], name: &str) -> Result<&'a ReceivedSpan> {
    let mut named = spans.iter().filter(|span| span.name == name);
    let first = named
        .next()
        .with_context(|| format!("no span {name}: {:?}", names(spans)))?;
    anyhow::ensure!(
        named.next().is_none(),
        "more than one span {name}: {:?}",
        names(spans)
    );
    Ok(first)
}

/// Names of spans, sorted.
pub fn names(spans: &[ReceivedSpan]) -> Vec<&str> {
    let mut names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    names
}
