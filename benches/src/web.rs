//! A local HTTP server for jobs to call, and the client of the bare loop.
//!
//! Neighbours: the comparison starts the server as a process of its own, [`crate::bare`] calls. HTTP/1.1 with connections
//! that stay open.
//!
//! `/any` answers with a few bytes, `/slow/N` after N milliseconds; `/payload/N` with the payload of a job that sends N
//! bytes to `/any`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpListener;

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
    let here = listener.local_addr()?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, here));
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

async fn answer(request: Request<Incoming>, here: SocketAddr) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let mut received = 0;
    while let Some(Ok(frame)) = body.frame().await {
        received += frame.data_ref().map_or(0, Bytes::len);
    }
    let number = |prefix: &str| path.strip_prefix(prefix)?.parse::<u64>().ok();
    if let Some(bytes) = number("/payload/") {
        let body = "x".repeat(usize::try_from(bytes).unwrap_or(0));
        let payload = format!(r#"{{"url":"http://{here}/any","method":"POST","body":"{body}"}}"#);
        return Ok(Response::new(Full::new(payload.into())));
    }
    if let Some(ms) = number("/slow/") {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    Ok(Response::new(Full::new(
        format!("{{\"received\":{received}}}").into(),
    )))
}
