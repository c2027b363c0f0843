//! Sends batches to a collector: gRPC, or HTTP with protobuf; both by one HTTP client, plain or encrypted.
//!
//! Neighbours: [`super`] tries again. Never waits longer than one request may take, and reads no more of an answer than
//! OTLP has any use for.

use std::io;
use std::time::Duration;

use caf_actors::errors::chain;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use prost::Message;
use tokio::time::timeout;
use tokio_rustls::rustls::ClientConfig;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::otlp::Request;
use crate::settings::tracing::{OtlpProtocol, Target, TracingSettings};
use crate::trust;

/// Most bytes of an answer: OTLP has little to say.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Most bytes of a collector's words that are passed on.
const MAX_WORDS: usize = 256;
/// What spans and requests say of this program.
const AGENT: &str = concat!("caf-worker/", env!("CARGO_PKG_VERSION"));

type HttpClient = Client<HttpsConnector<HttpConnector>, Body>;

/// Why a batch was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Another try may help.
    Later(String),
    /// It will never be taken.
    Final(String),
}

/// Spans of a batch that a collector refused, although it took the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partly {
    /// How many.
    pub(super) spans: u64,
    /// Why.
    pub(super) reason: String,
}

/// A way to a collector.
pub(super) struct Wire {
    by: By,
    headers: HeaderMap,
    limit: Duration,
}

enum By {
    Grpc(TraceServiceClient<HttpClient>),
    Http(HttpClient, Uri),
}

impl Wire {
    /// A way to this target. Connects with the first request.
    pub(super) fn new(target: &Target, settings: &TracingSettings) -> io::Result<Self> {
        let limit = Duration::from_millis(settings.request_timeout_ms);
        let uri: Uri = target.url.as_str().parse().map_err(io::Error::other)?;
        let http2 = target.protocol == OtlpProtocol::Grpc;
        let tls = trust::client_config(settings.ca_file.as_deref(), "worker.tracing.ca_file")?;
        let client = client(tls, http2, limit);
        let by = match target.protocol {
            OtlpProtocol::Grpc => {
                let client = TraceServiceClient::with_origin(client, uri);
                By::Grpc(client.max_decoding_message_size(MAX_ANSWER_BYTES))
            }
            OtlpProtocol::HttpProtobuf => By::Http(client, uri),
        };
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        for (name, value) in settings.headers() {
            let name = HeaderName::try_from(name).map_err(io::Error::other)?;
            let mut value = HeaderValue::try_from(value).map_err(io::Error::other)?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(Self { by, headers, limit })
    }

    /// Sends once. Returns what was refused of it, if anything was.
    pub(super) async fn send(&mut self, request: &Request) -> Result<Option<Partly>, Refusal> {
        let headers = self.headers.clone();
        let sending = async {
            match &mut self.by {
                By::Grpc(client) => by_grpc(client, headers, request.clone()).await,
                By::Http(client, uri) => by_http(client, uri.clone(), headers, request).await,
            }
        };
        let sent = timeout(self.limit, sending).await;
        let answer =
            sent.unwrap_or_else(|_| Err(Refusal::Later("the collector did not answer in time".to_owned())))?;
        Ok(answer.partial_success.and_then(partly))
    }
}

fn partly(partial: ExportTracePartialSuccess) -> Option<Partly> {
    let spans = u64::try_from(partial.rejected_spans).unwrap_or_default();
    let words = shortened(&partial.error_message);
    (spans > 0).then(|| Partly {
        spans,
        reason: format!("the collector refused spans: {words}"),
    })
}

async fn by_grpc(
    client: &mut TraceServiceClient<HttpClient>,
    headers: HeaderMap,
    batch: Request,
) -> Result<ExportTraceServiceResponse, Refusal> {
    let mut request = tonic::Request::new(batch);
    *request.metadata_mut() = MetadataMap::from_headers(headers);
    let answer = client.export(request).await;
    answer.map(tonic::Response::into_inner).map_err(|status| {
        let reason = reason_of(&status);
        if is_passing(status.code()) {
            Refusal::Later(reason)
        } else {
            Refusal::Final(reason)
        }
    })
}

/// Whether another try may help, by the specification of OTLP; connections that fail are told as unknown or unavailable.
fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            | Code::ResourceExhausted
            | Code::Unknown
    )
}

fn reason_of(status: &Status) -> String {
    let cause = std::error::Error::source(status).map(chain);
    let words = cause.unwrap_or_else(|| status.message().to_owned());
    format!("gRPC status {:?}: {}", status.code(), shortened(&words))
}

async fn by_http(
    client: &HttpClient,
    uri: Uri,
    headers: HeaderMap,
    batch: &Request,
) -> Result<ExportTraceServiceResponse, Refusal> {
    let body = Body::new(Full::new(Bytes::from(batch.encode_to_vec())));
    let mut request = hyper::Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    let protobuf = HeaderValue::from_static("application/x-protobuf");
    request.headers_mut().insert(CONTENT_TYPE, protobuf);
    let later = |error: &dyn std::error::Error| Refusal::Later(shortened(&chain(error)));
    let answer = client.request(request).await.map_err(|error| later(&error))?;
    let status = answer.status();
    if !status.is_success() {
        return Err(refusal_of(status));
    }
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
    let bytes = body.map_err(|error| later(&*error))?.to_bytes();
    ExportTraceServiceResponse::decode(bytes)
        .map_err(|_| Refusal::Final("the answer is not that of a collector".to_owned()))
}

fn refusal_of(status: StatusCode) -> Refusal {
    let reason = format!("HTTP status {}", status.as_u16());
    match status.as_u16() {
        429 | 502..=504 => Refusal::Later(reason),
        _ => Refusal::Final(reason),
    }
}

fn client(tls: ClientConfig, http2: bool, limit: Duration) -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(limit));
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let connector = if http2 {
        builder.enable_http2().wrap_connector(connector)
    } else {
        builder.enable_http1().wrap_connector(connector)
    };
    Client::builder(TokioExecutor::new())
        .http2_only(http2)
        .timer(TokioTimer::new())
        .build(connector)
}

fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect()
}
