//! A local HTTP server for jobs to call, and the client of the bare loop.
//!
//! Neighbours: the comparison starts the server as a process of its own, [`crate::bare`] calls. HTTP/1.1 with connections
//! that stay open.
//!
//! `POST /any` answers with a few bytes, `GET /bytes/N` with N bytes, `/status/N` with status N, `/slow/N` after N
//! milliseconds; `/busy` answers 503 when more than [`BUSY_AT`] requests run.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// Requests at once from which on `/busy` refuses.
pub const BUSY_AT: usize = 64;

/// Calls with connections that are kept.
#[derive(Debug, Clone)]
pub struct Caller {
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Default for Caller {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
        }
    }
}

impl Caller {
    /// Status, headers and body of the answer.
    ///
    /// # Errors
    /// When there is none.
    pub async fn call(&self, method: &str, url: &str, body: Bytes) -> Result<(u16, HeaderMap, Bytes)> {
        let request = Request::builder().method(method).uri(url).body(Full::new(body))?;
        let answer = self.client.request(request).await?;
        let (head, body) = answer.into_parts();
        Ok((
            head.status.as_u16(),
            head.headers,
            body.collect().await?.to_bytes(),
        ))
    }
}

/// Serves for ever.
///
/// # Errors
/// When nobody can connect any more.
pub async fn serve(listener: TcpListener) -> Result<()> {
    let running = Arc::new(AtomicUsize::new(0));
    loop {
        let (stream, _): (_, SocketAddr) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let running = Arc::clone(&running);
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, Arc::clone(&running)));
            let mut http = hyper::server::conn::http1::Builder::new();
            // A client that goes away is not of interest.
            drop(
                http.timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    running: Arc<AtomicUsize>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let before = running.fetch_add(1, Ordering::Relaxed);
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let mut received = 0;
    while let Some(Ok(frame)) = body.frame().await {
        received += frame.data_ref().map_or(0, Bytes::len);
    }
    let number = |prefix: &str| path.strip_prefix(prefix)?.parse::<u64>().ok();
    let (mut status, mut answer) = (
        StatusCode::OK,
        Bytes::from(format!("{{\"received\":{received}}}")),
    );
    if let Some(bytes) = number("/bytes/") {
        answer = vec![b'x'; usize::try_from(bytes).unwrap_or(0)].into();
    } else if let Some(code) = number("/status/") {
        let code = u16::try_from(code).unwrap_or(500);
        status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    } else if let Some(ms) = number("/slow/") {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    } else if path == "/busy" && before >= BUSY_AT {
        status = StatusCode::SERVICE_UNAVAILABLE;
    }
    running.fetch_sub(1, Ordering::Relaxed);
    let mut response = Response::new(Full::new(answer));
    *response.status_mut() = status;
    Ok(response)
}
