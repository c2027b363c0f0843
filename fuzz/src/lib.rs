//! What hostile bytes must never do: one function for each fuzz target, which panics when a property does not hold.
//!
//! Neighbours: `fuzz_targets/` gives each what the fuzzer makes up; `tests/settings/corpus.rs` includes this file and
//! replays `corpus/` on stable. What is private to the blocks stands in `actors/blocks/src/properties.rs` in the same form.
//! Never touches a network; files only below a directory of its own.

#![forbid(unsafe_code)]

pub mod assignment;
pub mod cancel;
pub mod claim;
pub mod dead_letter;
pub mod headers;
pub mod payload_ref;
pub mod policy_file;
pub mod settings;
pub mod tenant_policy;

/// Parts of an input, separated by the byte 0xFF, which is in no UTF-8 text.
pub(crate) fn parts<const N: usize>(bytes: &[u8]) -> [&[u8]; N] {
    let mut parts = bytes.splitn(N, |byte| *byte == 0xff);
    [(); N].map(|()| parts.next().unwrap_or_default())
}

/// Headers from lines `name: value`.
pub(crate) fn headers_of(bytes: &[u8]) -> caf_protocol::headers::Headers {
    let mut headers = caf_protocol::headers::Headers::default();
    for line in String::from_utf8_lossy(bytes).split('\n') {
        if let Some((name, value)) = line.split_once(':') {
            headers.push(name, value.strip_prefix(' ').unwrap_or(value));
        }
    }
    headers
}
