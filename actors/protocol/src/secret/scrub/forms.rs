//! In which forms a value may stand in a text: as it is, in UTF-16, as base64 wherever it begins in what was encoded, as
//! hexadecimal digits with and without separators; each also as it looks after escapes were read.
//!
//! Neighbours: [`super`] looks for them all at once, in any case. Pure.

use std::ops::Range;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};

use super::unescape::Unescaped;
use super::{MAX_LAYERS, MIN_BYTES};

/// base64 with padding or without.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What stands between the hexadecimal digits of two bytes, where something does.
const SEPARATORS: [&[u8]; 4] = [b"", b":", b"-", b" "];

/// One way to write a value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Form {
    /// What is looked for.
    pub(super) bytes: Vec<u8>,
    /// Whether the sign before it holds a part of the value too, as in base64 that did not begin with it.
    before: bool,
    /// The same of the sign behind it.
    after: bool,
}

impl Form {
    fn plain(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            before: false,
            after: false,
        }
    }

    /// The range of all signs that hold a part of the value.
    pub(super) fn whole(&self, text: &[u8], found: Range<usize>) -> Range<usize> {
        let is_sign = |at: usize| {
            text.get(at)
                .is_some_and(|byte| byte.is_ascii_alphanumeric() || b"+/-_".contains(byte))
        };
        let before = self.before && found.start > 0 && is_sign(found.start - 1);
        let after = self.after && is_sign(found.end);
        found.start - usize::from(before)..found.end + usize::from(after)
    }
}

/// All forms of a value; none of one that is too short to be looked for.
pub(super) fn of(value: &str) -> Vec<Form> {
    let mut forms = Vec::new();
    for value in meanings(value) {
        forms.push(Form::plain(value.clone()));
        forms.extend(SEPARATORS.map(|separator| Form::plain(hexadecimal(&value, separator))));
        forms.extend(utf_16(&value).map(Form::plain));
        for offset in 0..3 {
            forms.extend(base64_from(&value, offset));
        }
    }
    forms
        .into_iter()
        .flat_map(|form| {
            let layers = std::iter::successors(Some(form.bytes.clone()), |bytes| {
                Unescaped::of(bytes).map(|layer| layer.bytes)
            });
            let as_read = move |bytes| Form {
                bytes,
                ..form.clone()
            };
            layers.take(MAX_LAYERS + 1).map(as_read).collect::<Vec<_>>()
        })
        .filter(|form| form.bytes.len() >= MIN_BYTES)
        .collect()
}

/// The value itself, and what others make of it: of `Bearer x` the second half, of base64 what was encoded.
fn meanings(value: &str) -> Vec<Vec<u8>> {
    let value = value.trim();
    let last_word = value.rsplit_once(' ').map(|(_, word)| word.to_owned());
    let mut texts = vec![value.to_owned()];
    texts.extend(last_word);
    let decoded = texts.iter().filter_map(|text| LENIENT.decode(text).ok());
    let decoded = decoded
        .filter_map(|bytes| String::from_utf8(bytes).ok())
        .collect::<Vec<_>>();
    // Of the user and password of basic authentication the password.
    let passwords = decoded
        .iter()
        .filter_map(|pair| pair.split_once(':').map(|(_, password)| password.to_owned()))
        .collect::<Vec<_>>();
    let all = texts.into_iter().chain(decoded).chain(passwords);
    all.filter(|text| text.len() >= MIN_BYTES)
        .map(String::into_bytes)
        .collect()
}

/// The signs of base64 that depend on the value alone when it begins `offset` bytes after a group of three, in both
/// alphabets.
fn base64_from(value: &[u8], offset: usize) -> [Form; 2] {
    let padded = [&[0; 3][..offset], value].concat();
    // Signs hold six bits each.
    let first = (offset * 8).div_ceil(6);
    let last = padded.len() * 8 / 6;
    let has_rest = padded.len() * 8 % 6 != 0;
    [BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD].map(|alphabet| Form {
        bytes: alphabet.encode(&padded).as_bytes()[first..last].to_vec(),
        before: offset > 0,
        after: has_rest,
    })
}

fn hexadecimal(value: &[u8], separator: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = |byte: &u8| vec![DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    value.iter().map(digits).collect::<Vec<_>>().join(separator)
}

/// In both orders of bytes.
fn utf_16(value: &[u8]) -> [Vec<u8>; 2] {
    let text = String::from_utf8_lossy(value);
    [
        text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
    ]
}
