//! Receives the body of an answer: bounded before and after decompression, and complete or not at all.
//!
//! Neighbours: [`super`] hands over the answer, `decode` undoes its coding; the text form of the body is made here too.
//! Never holds more than the limit, however small the compressed form is.

use std::io;

use awc::error::PayloadError;
use bytes::Bytes;
use caf_protocol::block::Outputs;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use futures_util::{Stream, StreamExt};
use serde_json::json;

use super::decode::{self, Coding, Decoder, TURN_BYTES};
use super::wire::Breach;
use crate::inputs::to_base64;

/// Compressed bytes that are undone in one go: of gzip at most a megabyte comes of them, a millisecond's work.
const PIECE_BYTES: usize = 1_024;
/// Pieces after which others have their turn on this thread, however little came of them.
const TURN_PIECES: usize = 32;

/// Reads the body to its end. `announced` is the length that its head states, if it does.
pub(super) async fn receive<S>(
    mut stream: S,
    coding: Coding,
    announced: Option<u64>,
    max_bytes: u64,
) -> Result<Vec<u8>, Failure>
where
    S: Stream<Item = Result<Bytes, PayloadError>> + Unpin,
{
    let limit = usize::try_from(max_bytes).unwrap_or(usize::MAX);
    if coding == Coding::Identity && announced.is_some_and(|length| length > max_bytes) {
        return Err(decode::too_large(limit));
    }
    let mut decoder = Decoder::new(coding, max_bytes);
    let (mut any, mut turn_from, mut pieces) = (false, 0, 0);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| broken_off(error, limit))?;
        any = any || !chunk.is_empty();
        for piece in chunk.chunks(PIECE_BYTES) {
            decoder.write(piece)?;
            pieces += 1;
            if decoder.len() - turn_from >= TURN_BYTES
                || (pieces >= TURN_PIECES && coding != Coding::Identity)
            {
                (turn_from, pieces) = (decoder.len(), 0);
                tokio::task::yield_now().await;
            }
        }
    }
    // An empty body is no gzip stream, yet servers label it as one.
    if !any {
        return Ok(Vec::new());
    }
    decoder.finish().await
}

pub(super) fn broken_off(error: PayloadError, limit: usize) -> Failure {
    let io = match &error {
        PayloadError::Io(io) | PayloadError::Incomplete(Some(io)) => Some(io),
        _ => None,
    };
    match io.and_then(Breach::of) {
        Some(Breach::BodyTooLong) => decode::too_large(limit),
        Some(breach) => breach.failure(),
        None if io.is_some_and(|io| io.kind() == io::ErrorKind::InvalidInput) => {
            Breach::Malformed("chunks").failure()
        }
        None => Failure::new(
            ErrorCode::NetworkError,
            "the connection broke off in the answer's body",
        ),
    }
    .internally(error)
}

/// Puts a body into outputs: as text, or as base64 with an `encoding` that says so.
pub(super) fn put(outputs: &mut Outputs, body: Vec<u8>) {
    match String::from_utf8(body) {
        Ok(text) => {
            outputs.insert("body".to_owned(), json!(text));
        }
        Err(error) => {
            outputs.insert("body".to_owned(), json!(to_base64(error.as_bytes())));
            outputs.insert("encoding".to_owned(), json!("base64"));
        }
    }
}
