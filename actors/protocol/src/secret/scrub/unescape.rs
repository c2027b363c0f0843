//! Reads a text as if it were escaped, once, whatever the kind: percent signs and plus signs of addresses and forms, backslashes
//! of JSON and programs, entities of HTML, line breaks of wrapped base64. Remembers where each byte came from.
//!
//! Neighbours: [`super`] looks for values in what comes out, and takes them out of what went in. What is no escape stays.

use std::ops::Range;

/// A text without one layer of escapes.
pub(super) struct Unescaped {
    /// What it says.
    pub(super) bytes: Vec<u8>,
    /// Runs of bytes, in order, the first from 0.
    runs: Vec<Run>,
}

/// From here on, byte by byte, until the next run.
struct Run {
    inside: usize,
    outside: usize,
    /// Whether the run as a whole stands for one escape.
    is_escape: bool,
}

/// An escape: how long it is, and what it stands for.
type Escape = (usize, [u8; 4], usize);

impl Unescaped {
    /// Nothing when there is no escape.
    pub(super) fn of(text: &[u8]) -> Option<Self> {
        let may_be = |byte: &u8| matches!(byte, b'%' | b'\\' | b'&' | b'+' | b'\r' | b'\n');
        let first = text.iter().position(may_be)?;
        let mut read = Self {
            bytes: Vec::with_capacity(text.len()),
            runs: vec![Run {
                inside: 0,
                outside: 0,
                is_escape: false,
            }],
        };
        read.bytes.extend_from_slice(&text[..first]);
        let mut at = first;
        while at < text.len() {
            let Some((len, stands_for, count)) = escape(&text[at..]) else {
                read.bytes.push(text[at]);
                at += 1;
                continue;
            };
            read.begin_run(at, true);
            read.bytes.extend_from_slice(&stands_for[..count]);
            at += len;
            read.begin_run(at, false);
        }
        (read.runs.len() > 1).then_some(read)
    }

    fn begin_run(&mut self, outside: usize, is_escape: bool) {
        self.runs.push(Run {
            inside: self.bytes.len(),
            outside,
            is_escape,
        });
    }

    /// Where a range of what was read stood, escapes as a whole.
    pub(super) fn outside(&self, inside: Range<usize>) -> Range<usize> {
        let run_of = |at: usize| self.runs.partition_point(|run| run.inside <= at) - 1;
        let first = &self.runs[run_of(inside.start)];
        let start = match first.is_escape {
            true => first.outside,
            false => first.outside + inside.start - first.inside,
        };
        // The last byte, not the one behind it: what was dropped between the two is no part of the range.
        let last = inside.end.saturating_sub(1);
        let at = run_of(last);
        let end = match self.runs[at].is_escape {
            true => self.runs[at + 1].outside,
            false => self.runs[at].outside + last - self.runs[at].inside + 1,
        };
        start..end
    }
}

fn escape(text: &[u8]) -> Option<Escape> {
    match text[0] {
        b'%' => Some((3, [hex(text.get(1..3)?)?.try_into().ok()?, 0, 0, 0], 1)),
        b'+' => Some((1, [b' ', 0, 0, 0], 1)),
        b'\r' | b'\n' => Some((1, [0; 4], 0)),
        b'\\' => backslash(text),
        b'&' => entity(text),
        _ => None,
    }
}

fn backslash(text: &[u8]) -> Option<Escape> {
    let one = |byte| Some((2, [byte, 0, 0, 0], 1));
    match *text.get(1)? {
        b'n' => one(b'\n'),
        b'r' => one(b'\r'),
        b't' => one(b'\t'),
        b'b' => one(0x08),
        b'f' => one(0x0c),
        b'x' => Some((4, [hex(text.get(2..4)?)?.try_into().ok()?, 0, 0, 0], 1)),
        b'u' => unicode(text),
        byte @ (b'"' | b'\'' | b'\\' | b'/') => one(byte),
        _ => None,
    }
}

/// `\uXXXX`, or two of them for what lies beyond sixteen bits.
fn unicode(text: &[u8]) -> Option<Escape> {
    let unit = hex(text.get(2..6)?)?;
    if let Some(c) = char::from_u32(unit) {
        return Some(of_char(6, c));
    }
    let second = text.get(6..12).filter(|second| second.starts_with(b"\\u"))?;
    let units = [u16::try_from(unit).ok()?, u16::try_from(hex(&second[2..])?).ok()?];
    let c = char::decode_utf16(units).next()?.ok()?;
    Some(of_char(12, c))
}

fn entity(text: &[u8]) -> Option<Escape> {
    // The longest is `&#x10ffff;`.
    let end = text.iter().take(11).position(|byte| *byte == b';')?;
    let name = std::str::from_utf8(&text[1..end]).ok()?;
    let c = match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(digits) => hex(digits.as_bytes())?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)?
        }
    };
    Some(of_char(end + 1, c))
}

fn of_char(len: usize, c: char) -> Escape {
    let mut bytes = [0; 4];
    let count = c.encode_utf8(&mut bytes).len();
    (len, bytes, count)
}

fn hex(digits: &[u8]) -> Option<u32> {
    let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(digits).ok().filter(|_| is_hex)?;
    u32::from_str_radix(text, 16).ok()
}
