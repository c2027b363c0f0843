use std::io::Write as _;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};

use super::*;
use crate::tests::block_on;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("writes");
    encoder.finish().expect("finishes")
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("writes");
    encoder.finish().expect("finishes")
}

/// A Zstandard frame of blocks that each say "this byte, so many times" (RFC 8878, section 3.1.1.2).
fn zstd_repeats(byte: u8, blocks: usize) -> Vec<u8> {
    // Magic number; no checksum, no size, no dictionary; a window of a megabyte.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 10 << 3];
    for block in 1..=blocks {
        let header = u32::from(block == blocks) | 1 << 1 | (128 * 1024) << 3;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(byte);
    }
    frame
}

/// 5000 times `x` as Brotli, and as Zstandard, each by its reference program; and 64 MiB of zeroes.
const BROTLI_5000: &[u8] = &[
    0x1b, 0x87, 0x13, 0xf8, 0x25, 0xf0, 0xe2, 0xb1, 0x40, 0x20, 0x68, 0x01, 0x00,
];
const ZSTD_5000: &[u8] = &[
    0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x88, 0x12, 0x4d, 0x00, 0x00, 0x10, 0x78, 0x78, 0x01, 0x00, 0x83, 0xd3,
    0x03, 0x2c,
];
const BROTLI_BOMB: &[u8] = &[
    0xcb, 0xff, 0xff, 0x3f, 0xf8, 0x27, 0x00, 0xe2, 0xb1, 0x40, 0x20, 0xf7, 0xfe, 0x8f, 0xff, 0xff, 0x7f,
    0xf0, 0x4f, 0x00, 0xc4, 0x61, 0x11, 0x80, 0xee, 0xfd, 0x1f, 0xff, 0xff, 0xff, 0xe0, 0x9f, 0x00, 0x88,
    0xc3, 0x02, 0x00, 0xdd, 0xfb, 0x3f, 0xfe, 0xff, 0xff, 0xc1, 0x3f, 0x01, 0x10, 0x87, 0x05, 0x00, 0xba,
    0xf7, 0x7f, 0xfc, 0xff, 0xff, 0x83, 0x7f, 0x02, 0x20, 0x0e, 0x0b, 0x00, 0x74, 0xef, 0xff, 0xf8, 0xff,
    0xff, 0x07, 0xff, 0x04, 0x40, 0x1c, 0x16, 0x00, 0xe8, 0xde, 0xff, 0xf1, 0xff, 0xff, 0x0f, 0xfe, 0x09,
    0x80, 0x38, 0x2c, 0x00, 0xd0, 0xbd, 0xff, 0xe3, 0xff, 0xff, 0x1f, 0xfc, 0x13, 0x00, 0x71, 0x58, 0x00,
    0xa0, 0x7b, 0xff, 0x37,
];

fn read(bytes: &[u8], coding: Coding, max_bytes: u64) -> Result<Vec<u8>, Failure> {
    let mut decoder = Decoder::new(coding, max_bytes);
    for piece in bytes.chunks(1_000) {
        decoder.write(piece)?;
    }
    block_on(decoder.finish())
}

#[test]
fn bodies_up_to_the_limit_are_read_and_larger_ones_are_refused() {
    let text = vec![b'x'; 5_000];
    for (coding, bytes) in [
        (Coding::Identity, text.clone()),
        (Coding::Gzip, gzip(&text)),
        (Coding::Deflate, zlib(&text)),
        (Coding::Brotli, BROTLI_5000.to_vec()),
        (Coding::Zstd, ZSTD_5000.to_vec()),
    ] {
        assert_eq!(read(&bytes, coding, 5_000).as_ref(), Ok(&text), "{coding:?}");
        let failure = read(&bytes, coding, 4_999).expect_err("is too large");
        assert_eq!(failure.code, ErrorCode::ResourceUnavailable, "{coding:?}");
        assert_eq!(failure.details["limit_bytes"], json!(4_999), "{coding:?}");
    }
}

#[test]
fn bombs_of_every_coding_are_stopped_at_the_limit() {
    let zeroes = vec![0; 64 << 20];
    for (coding, bomb) in [
        (Coding::Gzip, gzip(&zeroes)),
        (Coding::Deflate, zlib(&zeroes)),
        (Coding::Brotli, BROTLI_BOMB.to_vec()),
        (Coding::Zstd, zstd_repeats(0, 512)),
    ] {
        assert!(bomb.len() < 400_000, "{coding:?}: {}", bomb.len());
        let mut decoder = Decoder::new(coding, 1 << 20);
        let early = bomb.chunks(1_000).find_map(|piece| decoder.write(piece).err());
        let failure = early.unwrap_or_else(|| block_on(decoder.finish()).expect_err("is refused"));
        assert_eq!(failure.code, ErrorCode::ResourceUnavailable, "{coding:?}");
    }
}

#[test]
fn members_and_frames_beyond_the_limit_are_refused_although_they_say_little() {
    let member = gzip(b"a");
    let (few, many) = (member.repeat(100), member.repeat(2_000));
    assert_eq!(read(&few, Coding::Gzip, 1 << 20), Ok(vec![b'a'; 100]));
    let failure = read(&many, Coding::Gzip, 1 << 20).expect_err("is refused");
    assert_eq!(failure.code, ErrorCode::ResourceUnavailable);
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
    let failure = read(&skippable.repeat(2_000), Coding::Zstd, 1 << 20).expect_err("is refused");
    assert_eq!(failure.code, ErrorCode::ResourceUnavailable);
}

#[test]
fn many_bytes_that_say_nothing_are_refused_too() {
    // Members, frames and blocks without content: nothing would ever come of them, however many there are.
    let empty_frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 10 << 3, 1, 0, 0];
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
    for (coding, nothing) in [
        (Coding::Gzip, gzip(b"").repeat(10_000)),
        (Coding::Zstd, empty_frame.repeat(20_000)),
        (Coding::Zstd, skippable.repeat(20_000)),
    ] {
        let failure = read(&nothing, coding, 1_000).expect_err("is refused");
        assert_eq!(failure.code, ErrorCode::ResourceUnavailable, "{coding:?}");
    }
    assert_eq!(read(&empty_frame.repeat(3), Coding::Zstd, 1_000), Ok(Vec::new()));
    let framed = [&skippable[..], ZSTD_5000, &skippable, ZSTD_5000].concat();
    assert_eq!(
        read(&framed, Coding::Zstd, 10_000).map(|body| body.len()),
        Ok(10_000)
    );
}

#[test]
fn a_compressed_body_that_is_cut_off_or_broken_is_no_body() {
    let whole = gzip(&(0..200_u8).collect::<Vec<_>>());
    let zstd = zstd_repeats(1, 2);
    let huge_window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 14 << 3, 1, 0, 0];
    for (coding, bytes) in [
        (Coding::Gzip, &whole[..whole.len() - 1]),
        (Coding::Gzip, &whole[..20]),
        (Coding::Gzip, b"not gzip at all"),
        (Coding::Deflate, b"not zlib at all"),
        (Coding::Brotli, &BROTLI_5000[..BROTLI_5000.len() - 1]),
        (Coding::Brotli, b"\xff\xff\xff\xff not Brotli at all"),
        (Coding::Brotli, b"\x11\x1e large window"),
        (Coding::Zstd, &zstd[..zstd.len() - 1]),
        (Coding::Zstd, &zstd[..7]),
        (Coding::Zstd, &zstd[..3]),
        (Coding::Zstd, b"not Zstandard at all"),
        (Coding::Zstd, &huge_window),
        (Coding::Zstd, &[0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff]),
    ] {
        let failure = read(bytes, coding, 10 << 20).expect_err("is refused");
        assert_eq!(
            failure.code,
            ErrorCode::NetworkError,
            "{coding:?} {bytes:?}: {failure:?}"
        );
    }
}

#[test]
fn only_single_known_codings_are_undone() {
    for (header, coding) in [
        (None, Coding::Identity),
        (Some(""), Coding::Identity),
        (Some("identity"), Coding::Identity),
        (Some(" GZIP "), Coding::Gzip),
        (Some("x-gzip"), Coding::Gzip),
        (Some("deflate"), Coding::Deflate),
        (Some("br"), Coding::Brotli),
        (Some("zstd"), Coding::Zstd),
        (Some("gzip, gzip"), Coding::Identity),
        (Some("br, gzip"), Coding::Identity),
        (Some("aws-chunked"), Coding::Identity),
        (Some("compress"), Coding::Identity),
    ] {
        assert_eq!(Coding::from_header(header), coding, "{header:?}");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic_or_exceed_its_limit(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400),
        at in 0_usize..64,
        flip: u8,
    ) {
        let mut bent = [ZSTD_5000.to_vec(), BROTLI_5000.to_vec(), gzip(b"hello hello hello"), zstd_repeats(7, 3)];
        for sample in &mut bent {
            let at = at % sample.len();
            sample[at] ^= flip;
        }
        for sample in bent.iter().chain([&bytes]) {
            for coding in [Coding::Gzip, Coding::Deflate, Coding::Brotli, Coding::Zstd] {
                if let Ok(body) = read(sample, coding, 6_000) {
                    proptest::prop_assert!(body.len() <= 6_000);
                }
            }
        }
    }
}
