//! Takes the content coding off a body, and never makes more of it than a limit.
//!
//! Neighbours: `body` hands over what arrives. gzip, deflate and Brotli are undone as they come; Zstandard when all has come,
//! because its decoder wants whole blocks. Never trusts a size that the compressed form states.

use std::io::{self, Read as _, Write};

use brotli_decompressor::DecompressorWriter;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use flate2::write::{MultiGzDecoder, ZlibDecoder};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use serde_json::json;

/// Bytes by which the compressed form may be larger than the limit on the body. Compression makes what it cannot shrink
/// slightly larger; a form that is larger still says nothing in many words.
const MAX_OVERHEAD_BYTES: usize = 64 * 1024;
/// Largest window of Zstandard, in bytes: the most that HTTP lets a server use (RFC 9659).
const MAX_WINDOW_BYTES: u64 = 8 << 20;
/// Bytes undone after which others have their turn on this thread.
pub(super) const TURN_BYTES: usize = 1 << 20;
/// Room for what Brotli hands out at a time, in bytes.
const BROTLI_BUFFER_BYTES: usize = 16 * 1024;
/// Most members of a gzip body, and frames of one in Zstandard: each costs time, also when it is empty.
const MAX_MEMBERS: usize = 1_000;
/// How a member of gzip begins.
const GZIP_START: [u8; 3] = [0x1f, 0x8b, 0x08];
/// What a block of Zstandard counts for beside its bytes, until others have their turn.
const BLOCK_COST_BYTES: usize = 1 << 10;

/// How the body travels, by its `Content-Encoding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// As it is, or in a coding that is not undone here (unknown, or several on top of each other): passed on unchanged,
    /// within the limit, with the header that says so.
    Identity,
    /// gzip.
    Gzip,
    /// zlib, called "deflate".
    Deflate,
    /// Brotli.
    Brotli,
    /// Zstandard.
    Zstd,
}

impl Coding {
    /// The coding of this header value; repeated headers are one value, joined by commas.
    pub(super) fn from_header(value: Option<&str>) -> Self {
        match value.map(|value| value.trim().to_ascii_lowercase()).as_deref() {
            Some("gzip" | "x-gzip") => Self::Gzip,
            Some("deflate") => Self::Deflate,
            Some("br") => Self::Brotli,
            Some("zstd") => Self::Zstd,
            _ => Self::Identity,
        }
    }
}

/// Where received bytes go.
pub(super) struct Decoder {
    max_bytes: usize,
    received: usize,
    /// How often a member of gzip seemed to begin.
    members: usize,
    sink: Sink,
}

enum Sink {
    Identity(Bounded),
    Gzip(Box<MultiGzDecoder<Bounded>>),
    Deflate(Box<ZlibDecoder<Bounded>>),
    Brotli(Box<DecompressorWriter<Bounded>>),
    Zstd { packed: Vec<u8>, unpacked: Bounded },
}

impl Decoder {
    /// For a body of at most this many bytes when it is undone.
    pub(super) fn new(coding: Coding, max_bytes: u64) -> Self {
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        let bounded = Bounded {
            bytes: Vec::new(),
            max_bytes,
            overflowed: false,
        };
        let sink = match coding {
            Coding::Identity => Sink::Identity(bounded),
            Coding::Gzip => Sink::Gzip(Box::new(MultiGzDecoder::new(bounded))),
            Coding::Deflate => Sink::Deflate(Box::new(ZlibDecoder::new(bounded))),
            Coding::Brotli => Sink::Brotli(Box::new(DecompressorWriter::new(bounded, BROTLI_BUFFER_BYTES))),
            Coding::Zstd => Sink::Zstd {
                packed: Vec::new(),
                unpacked: bounded,
            },
        };
        Self {
            max_bytes,
            received: 0,
            members: 0,
            sink,
        }
    }

    /// Takes the next bytes.
    pub(super) fn write(&mut self, piece: &[u8]) -> Result<(), Failure> {
        let first = self.received == 0;
        self.received = self.received.saturating_add(piece.len());
        if self.received > self.max_bytes.saturating_add(MAX_OVERHEAD_BYTES) {
            return Err(too_large(self.max_bytes));
        }
        let written = match &mut self.sink {
            Sink::Identity(bounded) => bounded.write_all(piece),
            Sink::Gzip(decoder) => {
                self.members += piece
                    .windows(GZIP_START.len())
                    .filter(|start| *start == GZIP_START)
                    .count();
                let are_too_many = self.members > MAX_MEMBERS;
                decoder.get_mut().overflowed |= are_too_many;
                match are_too_many {
                    true => Err(io::Error::other("too many members")),
                    false => decoder.write_all(piece),
                }
            }
            Sink::Deflate(decoder) => decoder.write_all(piece),
            // A window beyond what the standard knows (RFC 7932, section 9.1), of up to a gigabyte.
            Sink::Brotli(_) if first && piece.first().is_some_and(|byte| byte & 0x7f == 0x11) => {
                Err(io::Error::other("large window"))
            }
            Sink::Brotli(decoder) => decoder.write_all(piece),
            Sink::Zstd { packed, .. } => {
                packed.extend_from_slice(piece);
                Ok(())
            }
        };
        written.map_err(|error| self.failure(error))
    }

    /// Bytes undone so far.
    pub(super) fn len(&self) -> usize {
        self.bounded().bytes.len()
    }

    /// The body, if it is whole. Gives way to others while it is at work.
    pub(super) async fn finish(mut self) -> Result<Vec<u8>, Failure> {
        let finished = match &mut self.sink {
            Sink::Identity(_) => Ok(()),
            Sink::Gzip(decoder) => decoder.try_finish(),
            Sink::Deflate(decoder) => decoder.try_finish(),
            Sink::Brotli(decoder) => decoder.close(),
            Sink::Zstd { packed, unpacked } => unpack_zstd(packed, unpacked).await,
        };
        finished.map_err(|error| self.failure(error))?;
        let bounded = match &mut self.sink {
            Sink::Identity(bounded)
            | Sink::Zstd {
                unpacked: bounded, ..
            } => bounded,
            Sink::Gzip(decoder) => decoder.get_mut(),
            Sink::Deflate(decoder) => decoder.get_mut(),
            Sink::Brotli(decoder) => decoder.get_mut(),
        };
        Ok(std::mem::take(&mut bounded.bytes))
    }

    fn bounded(&self) -> &Bounded {
        match &self.sink {
            Sink::Identity(bounded)
            | Sink::Zstd {
                unpacked: bounded, ..
            } => bounded,
            Sink::Gzip(decoder) => decoder.get_ref(),
            Sink::Deflate(decoder) => decoder.get_ref(),
            Sink::Brotli(decoder) => decoder.get_ref(),
        }
    }

    fn failure(&self, error: io::Error) -> Failure {
        if self.bounded().overflowed {
            return too_large(self.max_bytes);
        }
        Failure::new(
            ErrorCode::NetworkError,
            "the answer's body cannot be decompressed",
        )
        .internally(error)
    }
}

/// A body that is larger than the limit.
pub(super) fn too_large(max_bytes: usize) -> Failure {
    Failure::new(
        ErrorCode::ResourceUnavailable,
        "the answer's body is larger than the limit",
    )
    .with("limit_bytes", json!(max_bytes))
}

/// Undoes all frames, block by block.
async fn unpack_zstd(packed: &[u8], unpacked: &mut Bounded) -> io::Result<()> {
    let (mut rest, mut since_turn, mut frames) = (packed, 0, 0);
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(MAX_WINDOW_BYTES);
    while !rest.is_empty() {
        frames += 1;
        if frames > MAX_MEMBERS {
            unpacked.overflowed = true;
            return Err(io::Error::other("too many frames"));
        }
        match decoder.reset(&mut rest) {
            Ok(()) => {}
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length, ..
            })) => {
                let mut skipped = rest.take(length.into());
                if io::copy(&mut skipped, &mut io::sink())? < length.into() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                rest = skipped.into_inner();
                continue;
            }
            Err(error) => return Err(io::Error::other(error.to_string())),
        }
        loop {
            let is_over = decoder
                .decode_blocks(&mut rest, BlockDecodingStrategy::UptoBlocks(1))
                .map_err(|error| io::Error::other(error.to_string()))?;
            let came = decoder.collect_to_writer(&mut *unpacked)?;
            if is_over {
                break;
            }
            // A block that yields nothing is work too.
            since_turn += came + BLOCK_COST_BYTES;
            if since_turn >= TURN_BYTES {
                since_turn = 0;
                tokio::task::yield_now().await;
            }
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests;
