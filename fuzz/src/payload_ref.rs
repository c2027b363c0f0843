//! A reference to inputs, as a job names it.

use caf_protocol::reference::{Location, PayloadRef, is_bucket_name};

/// What is taken has a form that cannot be understood in two ways; a refusal never repeats it.
pub fn holds(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let read = PayloadRef::parse(text, None);
    assert_eq!(read, PayloadRef::parse(text, None));
    match read {
        Ok(reference) => match &reference.location {
            Location::Object { bucket, key } => {
                assert!(is_bucket_name(bucket), "{bucket:?}");
                assert!(!key.is_empty() && !key.chars().any(char::is_control), "{key:?}");
            }
            Location::File { path } => assert!(!path.is_empty() && !path.contains('\0'), "{path:?}"),
            Location::Http { url } => {
                let read = url::Url::parse(url.as_str()).expect("is an address");
                assert!(matches!(read.scheme(), "http" | "https"), "{read}");
                assert!(read.has_host() && read.username().is_empty() && read.password().is_none());
            }
        },
        Err(refusal) => {
            let said = &refusal.failure.message;
            assert!(said.len() < 300, "{said}");
            // Short texts are in every sentence by chance.
            assert!(text.len() < 20 || !said.contains(text), "{said}");
        }
    }
}
