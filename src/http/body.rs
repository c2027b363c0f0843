//! The body of a request that changes something: read whole, within its limits.
//!
//! Neighbours: [`super::admin`], [`super::approvals`] and [`super::approval_links`]; `connection` passes on no body without
//! a length, nor a longer one.

use actix_web::HttpRequest;
use actix_web::http::StatusCode;
use actix_web::http::header;
use actix_web::web::{Bytes, Payload};
use tokio::time::timeout;

use super::REQUEST_LIMIT;
use super::connection::BODY_LIMIT;

/// Reads it.
///
/// # Errors
/// Status and sentence for the answer.
pub(super) async fn read_body(
    request: &HttpRequest,
    payload: Payload,
) -> Result<Bytes, (StatusCode, String)> {
    let said = |status: StatusCode, error: &str| Err((status, error.to_owned()));
    // Without a length nothing of it is passed on: see the connection.
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    match length {
        None => return said(StatusCode::LENGTH_REQUIRED, "the request needs a Content-Length"),
        Some(length) if length > BODY_LIMIT => {
            let error = format!("a request has at most {BODY_LIMIT} bytes");
            return said(StatusCode::PAYLOAD_TOO_LARGE, &error);
        }
        Some(_) => {}
    }
    match timeout(REQUEST_LIMIT, payload.to_bytes_limited(BODY_LIMIT)).await {
        Ok(Ok(Ok(body))) => Ok(body),
        Ok(_) => said(StatusCode::BAD_REQUEST, "the request broke off"),
        Err(_) => said(StatusCode::REQUEST_TIMEOUT, "the request did not come in time"),
    }
}
