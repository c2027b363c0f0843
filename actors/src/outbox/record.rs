//! The form of the outbox's log: a header per segment, then records, each with a checksum. Pure: bytes in, bytes out.
//!
//! Neighbours: `segments` puts the bytes into files and reads them back. Checksums cover a record, its place in the
//! segment and a number drawn for the segment: what a payload happens to contain is never taken for a record, nor is one
//! that stands where it was not written. Integers are little-endian.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use caf_protocol::headers::Headers;
use caf_protocol::ids::AssignmentKey;

use super::{Entry, EntryId, MAX_MESSAGES, NewEntry};
use crate::sink::Outgoing;

/// Version of this form. 1 was a SQLite database.
pub(super) const VERSION: u32 = 2;
/// What a segment begins with.
const MAGIC: &[u8; 8] = b"cafoutbx";
/// Magic, version, number of the segment, id of the next entry, salt, checksum.
pub(super) const HEADER_BYTES: usize = 8 + 4 + 8 + 8 + 4 + 4;
/// What a record begins with, so that one can be looked for behind damage.
const MARK: [u8; 4] = [0x9e, 0xca, 0xf0, 0x0b];
/// Mark, checksum, length of the body, kind.
pub(super) const FRAME_BYTES: usize = 4 + 4 + 4 + 1;
/// Where in a frame the bytes begin that the checksum covers.
const COVERED_FROM: usize = 8;
/// An entry follows.
const ENTRY: u8 = 1;
/// Numbers of removed entries follow.
const REMOVAL: u8 = 2;
/// The body of an entry begins with its number.
const ID_BYTES: usize = 8;

// ---- A segment ----

/// What the header of a segment says.
#[derive(Clone)]
pub(super) struct Header {
    pub(super) number: u64,
    /// No entry stored before has this number or a greater one.
    pub(super) next: EntryId,
    salt: u32,
    /// Checksums begin with the salt.
    seal: crc32fast::Hasher,
}

/// Why bytes are no header.
#[derive(Debug)]
pub(super) enum NoHeader {
    /// Too short, or never written: nothing but zeros.
    Torn,
    /// Of another version.
    Version(u32),
    /// Something else.
    Foreign,
}

impl Header {
    pub(super) fn new(number: u64, next: EntryId, salt: u32) -> Self {
        let mut seal = crc32fast::Hasher::new();
        seal.update(&salt.to_le_bytes());
        Self {
            number,
            next,
            salt,
            seal,
        }
    }

    pub(super) fn put(&self, buffer: &mut Vec<u8>) {
        let start = buffer.len();
        buffer.extend_from_slice(MAGIC);
        buffer.extend_from_slice(&VERSION.to_le_bytes());
        buffer.extend_from_slice(&self.number.to_le_bytes());
        buffer.extend_from_slice(&self.next.0.to_le_bytes());
        buffer.extend_from_slice(&self.salt.to_le_bytes());
        let sum = crc32fast::hash(&buffer[start..]);
        buffer.extend_from_slice(&sum.to_le_bytes());
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, NoHeader> {
        let bytes = bytes.get(..HEADER_BYTES).unwrap_or(bytes);
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(NoHeader::Torn);
        }
        if !bytes.starts_with(&MAGIC[..bytes.len().min(MAGIC.len())]) {
            return Err(NoHeader::Foreign);
        }
        let Some((covered, sum)) = bytes
            .split_at_checked(HEADER_BYTES - 4)
            .filter(|(_, sum)| sum.len() == 4)
        else {
            return Err(NoHeader::Torn);
        };
        let mut fields = &covered[MAGIC.len()..];
        let version = fields.get_u32_le();
        if version != VERSION {
            return Err(NoHeader::Version(version));
        }
        if crc32fast::hash(covered).to_le_bytes() != sum {
            return Err(NoHeader::Foreign);
        }
        let (number, next) = (fields.get_u64_le(), EntryId(fields.get_i64_le()));
        Ok(Self::new(number, next, fields.get_u32_le()))
    }

    fn sum(&self, at: u64, covered: &[u8]) -> u32 {
        let mut sum = self.seal.clone();
        sum.update(&at.to_le_bytes());
        sum.update(covered);
        sum.finalize()
    }
}

// ---- Writing ----

/// Appends to `buffer`, whose first byte comes to stand at `base` in the segment. Returns where the record begins there.
fn put(buffer: &mut Vec<u8>, header: &Header, base: u64, kind: u8, body: impl FnOnce(&mut Vec<u8>)) -> u64 {
    let start = buffer.len();
    buffer.extend_from_slice(&MARK);
    buffer.extend_from_slice(&[0; 8]);
    buffer.push(kind);
    body(buffer);
    // An entry is far below 4 GiB: `Outbox::store` refuses others.
    let length = (buffer.len() - start - FRAME_BYTES) as u32;
    buffer[start + COVERED_FROM..start + COVERED_FROM + 4].copy_from_slice(&length.to_le_bytes());
    let at = base + start as u64;
    let sum = header.sum(at, &buffer[start + COVERED_FROM..]);
    buffer[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
    at
}

/// An entry. Returns where it begins.
pub(super) fn put_entry(
    buffer: &mut Vec<u8>,
    header: &Header,
    base: u64,
    id: EntryId,
    entry: &NewEntry,
) -> u64 {
    put(buffer, header, base, ENTRY, |body| {
        body.extend_from_slice(&id.0.to_le_bytes());
        write_entry(body, entry);
    })
}

/// An entry that was read elsewhere. Returns where it begins.
pub(super) fn put_copy(buffer: &mut Vec<u8>, header: &Header, base: u64, entry: &Frame<'_>) -> u64 {
    put(buffer, header, base, ENTRY, |body| {
        body.extend_from_slice(entry.body)
    })
}

/// Numbers of removed entries. Returns where the record begins.
pub(super) fn put_removal(buffer: &mut Vec<u8>, header: &Header, base: u64, ids: &[EntryId]) -> u64 {
    put(buffer, header, base, REMOVAL, |body| {
        for id in ids {
            body.extend_from_slice(&id.0.to_le_bytes());
        }
    })
}

fn write_entry(out: &mut Vec<u8>, entry: &NewEntry) {
    out.extend_from_slice(&entry.stored_at_ms.to_le_bytes());
    write_bytes(out, entry.key.as_str().as_bytes());
    write_bytes(out, entry.owner.as_bytes());
    match &entry.position {
        None => out.push(0),
        Some((stream, sequence)) => {
            out.push(1);
            write_bytes(out, stream.as_bytes());
            out.extend_from_slice(&sequence.to_le_bytes());
        }
    }
    write_length(out, entry.messages.len());
    for message in &entry.messages {
        write_bytes(out, message.subject.as_bytes());
        write_length(out, message.headers.iter().count());
        for (name, value) in message.headers.iter() {
            write_bytes(out, name.as_bytes());
            write_bytes(out, value.as_bytes());
        }
        write_bytes(out, &message.payload);
    }
}

fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    write_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn write_length(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(&(length as u32).to_le_bytes());
}

// ---- Reading ----

/// A record whose checksum is right.
pub(super) struct Frame<'a> {
    kind: u8,
    body: &'a [u8],
}

/// What a record says.
pub(super) enum Record<'a> {
    /// An entry.
    Entry(EntryId, &'a [u8]),
    /// Entries that are removed.
    Removal(Vec<EntryId>),
}

/// What is wrong with bytes whose checksum is right: no version of ours wrote them.
pub(super) type Nonsense = &'static str;

impl<'a> Frame<'a> {
    /// The record at the beginning of `bytes`, which stand at `at` in the segment; nothing when it is not whole.
    pub(super) fn read(bytes: &'a [u8], header: &Header, at: u64) -> Option<Self> {
        let frame = bytes.get(..FRAME_BYTES)?;
        if !frame.starts_with(&MARK) {
            return None;
        }
        let (mut sum, mut length) = (&frame[4..8], &frame[8..12]);
        let end = FRAME_BYTES.checked_add(usize::try_from(length.get_u32_le()).ok()?)?;
        let covered = bytes.get(COVERED_FROM..end)?;
        (sum.get_u32_le() == header.sum(at, covered)).then(|| Self {
            kind: frame[12],
            body: &bytes[FRAME_BYTES..end],
        })
    }

    /// Bytes of the record.
    pub(super) fn length(&self) -> usize {
        FRAME_BYTES + self.body.len()
    }

    pub(super) fn record(&self) -> Result<Record<'a>, Nonsense> {
        match self.kind {
            ENTRY => {
                let (mut id, content) = self
                    .body
                    .split_at_checked(ID_BYTES)
                    .ok_or("an entry without a number")?;
                Ok(Record::Entry(EntryId(id.get_i64_le()), content))
            }
            REMOVAL if self.body.len().is_multiple_of(ID_BYTES) => {
                let ids = self.body.chunks_exact(ID_BYTES);
                Ok(Record::Removal(
                    ids.map(|mut id| EntryId(id.get_i64_le())).collect(),
                ))
            }
            REMOVAL => Err("half the number of an entry"),
            _ => Err("a record of an unknown kind"),
        }
    }
}

/// Whether a whole record stands anywhere in `bytes`, which stand at `base` in the segment.
pub(super) fn has_record(bytes: &[u8], header: &Header, base: u64) -> bool {
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(MARK.len()).position(|window| window == MARK) {
        at += found;
        if Frame::read(&bytes[at..], header, base + at as u64).is_some() {
            return true;
        }
        at += 1;
    }
    false
}

/// An entry from the record of it.
pub(super) fn entry(id: EntryId, content: &[u8]) -> Result<Entry, Nonsense> {
    // Copied once; payloads are slices of the copy.
    let mut rest = Bytes::copy_from_slice(content);
    let stored_at_ms = read_u64(&mut rest)?;
    let key = AssignmentKey::from_hex(&read_text(&mut rest)?).ok_or("not an assignment key")?;
    let owner = read_text(&mut rest)?;
    let position = match read_u8(&mut rest)? {
        0 => None,
        1 => Some((read_text(&mut rest)?.into(), read_u64(&mut rest)?)),
        _ => return Err("a position of an unknown kind"),
    };
    let count = read_length(&mut rest)?;
    if count > MAX_MESSAGES {
        return Err("too many messages");
    }
    let messages = (0..count)
        .map(|_| read_message(&mut rest).map(Arc::new))
        .collect::<Result<Vec<_>, Nonsense>>()?;
    if !rest.is_empty() {
        return Err("something behind an entry");
    }
    let content = NewEntry {
        key,
        owner,
        position,
        messages,
        stored_at_ms,
    };
    Ok(Entry { id, content })
}

fn read_message(rest: &mut Bytes) -> Result<Outgoing, Nonsense> {
    let subject = read_text(rest)?;
    let mut headers = Headers::default();
    // Each takes bytes, so there are no more of them than bytes.
    for _ in 0..read_length(rest)? {
        headers.push(read_text(rest)?, read_text(rest)?);
    }
    let payload = read_bytes(rest)?;
    Ok(Outgoing {
        subject,
        headers,
        payload,
    })
}

/// What ends before its time.
const SHORT: Nonsense = "an entry that ends in the middle";

fn read_u8(rest: &mut Bytes) -> Result<u8, Nonsense> {
    rest.try_get_u8().map_err(|_| SHORT)
}

fn read_u64(rest: &mut Bytes) -> Result<u64, Nonsense> {
    rest.try_get_u64_le().map_err(|_| SHORT)
}

fn read_length(rest: &mut Bytes) -> Result<usize, Nonsense> {
    let length = rest.try_get_u32_le().map_err(|_| SHORT)?;
    usize::try_from(length).map_err(|_| SHORT)
}

fn read_bytes(rest: &mut Bytes) -> Result<Bytes, Nonsense> {
    let length = read_length(rest)?;
    if length > rest.len() {
        return Err(SHORT);
    }
    Ok(rest.split_to(length))
}

fn read_text(rest: &mut Bytes) -> Result<String, Nonsense> {
    let bytes = read_bytes(rest)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "a text that is not UTF-8")?;
    Ok(text.to_owned())
}

/// When an entry was stored, in milliseconds since the Unix epoch, and the bytes that it counts as.
pub(super) fn age_and_size(id: EntryId, content: &[u8]) -> Result<(u64, u64), Nonsense> {
    let entry = entry(id, content)?.content;
    Ok((entry.stored_at_ms, size_of(&entry)))
}

/// Bytes that an entry counts as.
pub(super) fn size_of(entry: &NewEntry) -> u64 {
    let headers = |message: &Outgoing| -> usize {
        message
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum()
    };
    entry
        .messages
        .iter()
        .map(|message| (message.subject.len() + headers(message) + message.payload.len()) as u64)
        .sum()
}
