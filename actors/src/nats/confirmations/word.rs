//! A stream's word, as JetStream writes it. Pure.
//!
//! Neighbours: the listener reads all words here.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;

use super::{NotStored, Stored};

/// Names kept to be shared: a worker writes into three or four streams. More would be somebody else's answers.
const MOST_NAMES: usize = 16;

/// Either error or the rest.
#[derive(Deserialize)]
struct Word<'a> {
    #[serde(borrow)]
    error: Option<ApiError<'a>>,
    #[serde(borrow, default)]
    stream: Cow<'a, str>,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
}

#[derive(Deserialize)]
struct ApiError<'a> {
    #[serde(default)]
    err_code: u64,
    #[serde(borrow, default)]
    description: Cow<'a, str>,
}

/// The names of the streams that were heard of: each is kept once, not with every message.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<Arc<str>>);

impl Names {
    /// What a stream says about one message.
    pub(super) fn read(&mut self, payload: &[u8]) -> Result<Stored, NotStored> {
        let word: Word =
            serde_json::from_slice(payload).map_err(|error| NotStored::Other(error.to_string()))?;
        if let Some(error) = word.error {
            return Err(NotStored::Refused {
                code: error.err_code,
                description: error.description.into_owned(),
            });
        }
        if word.stream.is_empty() || word.seq == 0 {
            return Err(NotStored::Other("the answer is no stream's".to_owned()));
        }
        Ok(Stored {
            stream: self.shared(&word.stream),
            sequence: word.seq,
            known_before: word.duplicate,
        })
    }

    fn shared(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.iter().find(|known| ***known == *name) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name.into();
        if self.0.len() < MOST_NAMES {
            self.0.push(Arc::clone(&name));
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_server_are_understood() {
        let read = |text: &str| Names::default().read(text.as_bytes());
        let stored = |sequence, known_before| {
            Ok(Stored {
                stream: "caf-results".into(),
                sequence,
                known_before,
            })
        };
        assert_eq!(read(r#"{"stream":"caf-results", "seq":7}"#), stored(7, false));
        assert_eq!(
            read(r#"{"stream":"caf-results","domain":"hub","seq":7,"duplicate": true}"#),
            stored(7, true)
        );
        assert_eq!(
            read(
                r#"{"type":"io.nats.jetstream.api.v1.pub_ack_response","error":{"code":400,"err_code":10071,"description":"wrong last sequence: 3"},"stream":"KV_caf-claims","seq":0}"#
            ),
            Err(NotStored::Refused {
                code: 10_071,
                description: "wrong last sequence: 3".to_owned()
            })
        );
        assert_eq!(
            read(r#"{"error":{"code":503}}"#),
            Err(NotStored::Refused {
                code: 0,
                description: String::new()
            })
        );
    }

    #[test]
    fn what_no_stream_says_is_no_confirmation() {
        for text in ["", "+OK", "[]", "{}", r#"{"stream":"s"}"#, r#"{"seq":1}"#] {
            let read = Names::default().read(text.as_bytes());
            assert!(matches!(read, Err(NotStored::Other(_))), "{text}: {read:?}");
        }
    }

    #[test]
    fn a_stream_is_named_once_and_a_flood_of_names_is_not_kept() {
        let mut names = Names::default();
        let first = names.shared("a");
        assert!(Arc::ptr_eq(&first, &names.shared("a")));
        for number in 0..2 * MOST_NAMES {
            names.shared(&number.to_string());
        }
        assert_eq!(names.0.len(), MOST_NAMES);
        assert_eq!(&*names.shared("late"), "late");
    }
}
