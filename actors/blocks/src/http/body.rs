//! Receives the body of an answer: bounded after decompression, and complete or not at all.
//!
//! Neighbours: [`super`] hands over the answer; the text form of the body is made here too. Never holds more than the
//! limit, however small the compressed form is.

use std::io::{self, Write};

use awc::error::PayloadError;
use bytes::Bytes;
use caf_protocol::block::Outputs;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use flate2::write::{MultiGzDecoder, ZlibDecoder};
use futures_util::{Stream, StreamExt};
use serde_json::json;

use crate::inputs::to_base64;

/// How the body travels, by its `Content-Encoding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// As it is, or in a coding that nobody asked for: passed on unchanged.
    Identity,
    /// gzip.
    Gzip,
    /// zlib, called "deflate".
    Deflate,
}

impl Coding {
    /// The coding of this header value.
    pub(super) fn from_header(value: Option<&str>) -> Self {
        match value.map(|value| value.trim().to_ascii_lowercase()).as_deref() {
            Some("gzip" | "x-gzip") => Self::Gzip,
            Some("deflate") => Self::Deflate,
            _ => Self::Identity,
        }
    }
}

/// Reads the body to its end.
pub(super) async fn receive<S>(mut stream: S, coding: Coding, max_bytes: u64) -> Result<Vec<u8>, Failure>
where
    S: Stream<Item = Result<Bytes, PayloadError>> + Unpin,
{
    let mut sink = Decoder::new(coding, max_bytes);
    let mut any = false;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| {
            Failure::new(
                ErrorCode::NetworkError,
                "the connection broke off in the answer's body",
            )
            .internally(error)
        })?;
        any = any || !chunk.is_empty();
        sink.write_all(&chunk).map_err(|error| sink.failure(error))?;
    }
    // An empty body is no gzip stream, yet servers label it as one.
    if !any {
        return Ok(Vec::new());
    }
    sink.finish()
}

/// Where received bytes go.
enum Decoder {
    Identity(Bounded),
    Gzip(Box<MultiGzDecoder<Bounded>>),
    Deflate(Box<ZlibDecoder<Bounded>>),
}

impl Decoder {
    fn new(coding: Coding, max_bytes: u64) -> Self {
        let bounded = Bounded {
            bytes: Vec::new(),
            max_bytes: usize::try_from(max_bytes).unwrap_or(usize::MAX),
            overflowed: false,
        };
        match coding {
            Coding::Identity => Self::Identity(bounded),
            Coding::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(bounded))),
            Coding::Deflate => Self::Deflate(Box::new(ZlibDecoder::new(bounded))),
        }
    }

    fn bounded(&self) -> &Bounded {
        match self {
            Self::Identity(bounded) => bounded,
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Deflate(decoder) => decoder.get_ref(),
        }
    }

    fn write_all(&mut self, chunk: &[u8]) -> io::Result<()> {
        match self {
            Self::Identity(bounded) => bounded.write_all(chunk),
            Self::Gzip(decoder) => decoder.write_all(chunk),
            Self::Deflate(decoder) => decoder.write_all(chunk),
        }
    }

    fn finish(mut self) -> Result<Vec<u8>, Failure> {
        let finished = match &mut self {
            Self::Identity(_) => Ok(()),
            Self::Gzip(decoder) => decoder.try_finish(),
            Self::Deflate(decoder) => decoder.try_finish(),
        };
        finished.map_err(|error| self.failure(error))?;
        let bounded = match &mut self {
            Self::Identity(bounded) => bounded,
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Deflate(decoder) => decoder.get_mut(),
        };
        Ok(std::mem::take(&mut bounded.bytes))
    }

    fn failure(&self, error: io::Error) -> Failure {
        let bounded = self.bounded();
        if bounded.overflowed {
            return Failure::new(
                ErrorCode::ResourceUnavailable,
                "the answer's body is larger than the limit",
            )
            .with("limit_bytes", json!(bounded.max_bytes));
        }
        Failure::new(
            ErrorCode::NetworkError,
            "the answer's body cannot be decompressed",
        )
        .internally(error)
    }
}

/// Memory that refuses to grow beyond a limit.
struct Bounded {
    bytes: Vec<u8>,
    max_bytes: usize,
    overflowed: bool,
}

impl Write for Bounded {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        if chunk.len() > self.max_bytes - self.bytes.len() {
            self.overflowed = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(chunk);
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::block_on;
    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).expect("writes");
        encoder.finish().expect("finishes")
    }

    fn read(bytes: &[u8], coding: Coding, max_bytes: u64) -> Result<Vec<u8>, Failure> {
        let chunks: Vec<_> = bytes
            .chunks(1_000)
            .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
            .collect();
        block_on(receive(futures_util::stream::iter(chunks), coding, max_bytes))
    }

    #[test]
    fn bodies_up_to_the_limit_are_read_and_larger_ones_are_refused() {
        let text = vec![b'x'; 5_000];
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(&text).expect("writes");
        let zlib = zlib.finish().expect("finishes");
        for (coding, bytes) in [
            (Coding::Identity, text.clone()),
            (Coding::Gzip, gzip(&text)),
            (Coding::Deflate, zlib),
        ] {
            assert_eq!(read(&bytes, coding, 5_000).as_ref(), Ok(&text), "{coding:?}");
            let failure = read(&bytes, coding, 4_999).expect_err("is too large");
            assert_eq!(failure.code, ErrorCode::ResourceUnavailable, "{coding:?}");
            assert_eq!(failure.details["limit_bytes"], json!(4_999), "{coding:?}");
        }
    }

    #[test]
    fn a_gzip_bomb_is_stopped_at_the_limit() {
        let bomb = gzip(&vec![0; 64 << 20]);
        assert!(bomb.len() < 100_000);
        let failure = read(&bomb, Coding::Gzip, 1 << 20).expect_err("is refused");
        assert_eq!(failure.code, ErrorCode::ResourceUnavailable);
    }

    #[test]
    fn a_compressed_body_that_is_cut_off_or_broken_is_no_body() {
        let whole = gzip(&(0..200_u8).collect::<Vec<_>>());
        for bytes in [&whole[..whole.len() - 1], &whole[..20], b"not gzip at all"] {
            assert_eq!(
                read(bytes, Coding::Gzip, 1_000).expect_err("is refused").code,
                ErrorCode::NetworkError
            );
        }
        assert_eq!(read(b"", Coding::Gzip, 1_000), Ok(Vec::new()));
    }
}
