//! A dead letter as it is found again, perhaps written by an older worker or by a stranger: read leniently.
//!
//! Neighbours: `caf-worker dlq` reads letters with it. Believes nothing: bytes are held to their hash.

use serde_json::Value;

use super::Omitted;
use crate::headers::Headers;
use crate::ids::sha256_hex;

/// A letter that was kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KeptLetter(Value);

/// Why the original bytes cannot be had from a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoOriginal {
    /// The worker's settings say so.
    #[error("only the hash of its bytes was kept, as dlq.payload says")]
    BySetting,
    /// They did not fit into a letter.
    #[error("its bytes did not fit into a letter, only their hash was kept")]
    TooLarge,
    /// They are not there, and nothing says why.
    #[error("its bytes were not kept")]
    Missing,
    /// They are not what arrived.
    #[error("its bytes do not have the hash that the letter tells")]
    HashDiffers,
}

impl KeptLetter {
    /// Reads a letter; what is not a JSON object has no fields.
    pub fn read(bytes: &[u8]) -> Self {
        Self(serde_json::from_slice(bytes).unwrap_or_default())
    }

    /// The letter as it is.
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// A field of text, when it is there.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.0[field].as_str()
    }

    /// The job's type.
    pub fn job_type(&self) -> Option<&str> {
        self.0["job"]["type"].as_str()
    }

    /// Everybody who worked on it: those who took the assignment on and who wrote the letter, each once.
    pub fn workers(&self) -> Vec<&str> {
        let attempts = self.0["attempts"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let mut workers: Vec<&str> = Vec::new();
        let all = attempts.iter().map(|attempt| attempt["worker_id"].as_str());
        for worker in all.chain([self.text("worker_id")]).flatten() {
            if !workers.contains(&worker) {
                workers.push(worker);
            }
        }
        workers
    }

    /// The original headers.
    pub fn original_headers(&self) -> Headers {
        let mut headers = Headers::default();
        for (name, value) in self.0["original_headers"].as_object().into_iter().flatten() {
            if let Some(value) = value.as_str() {
                headers.push(name.as_str(), value);
            }
        }
        headers
    }

    /// How often the assignment had been replayed when it arrived: what its headers say.
    pub fn replay(&self) -> u32 {
        self.original_headers().replay()
    }

    /// The original bytes, byte for byte.
    ///
    /// # Errors
    /// [`NoOriginal`]: they were not kept, or are not what arrived.
    pub fn original_payload(&self) -> Result<Vec<u8>, NoOriginal> {
        let omitted = |why: Omitted| self.0["original_payload_omitted"] == serde_json::json!(why);
        let bytes = match (
            self.text("original_payload"),
            self.text("original_payload_base64"),
        ) {
            (Some(text), _) => text.as_bytes().to_vec(),
            (None, Some(text)) => unbase64(text).ok_or(NoOriginal::HashDiffers)?,
            _ if omitted(Omitted::BySetting) => return Err(NoOriginal::BySetting),
            _ if omitted(Omitted::TooLarge) => return Err(NoOriginal::TooLarge),
            // Empty bytes are left out as well; an assignment is never empty.
            _ => return Err(NoOriginal::Missing),
        };
        if self.text("original_payload_hash") == Some(sha256_hex(&bytes).as_str()) {
            Ok(bytes)
        } else {
            Err(NoOriginal::HashDiffers)
        }
    }
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::{Attempt, Cause, DeadLetter, Original};
    use super::*;
    use crate::outcome::Failure;

    fn letter(payload: &[u8], headers: &Headers) -> DeadLetter {
        let original = Original {
            subject: "s",
            headers,
            payload,
            position: Some(("caf-stream", 7)),
            received_at_ms: 1,
        };
        let attempt = |worker: &str| Attempt {
            worker_id: worker.to_owned(),
            attempt: 1,
            started_at: None,
        };
        let attempts = [attempt("w-0"), attempt("w-1")];
        let failure = Failure::missing("x");
        let cause = Cause {
            failure: &failure,
            reason: "missing_field",
            retries_used: 0,
            attempts: &attempts,
        };
        DeadLetter::new(None, &cause, &original, "w-1", 2)
    }

    fn kept(letter: &DeadLetter) -> KeptLetter {
        KeptLetter::read(&serde_json::to_vec(letter).expect("serialises"))
    }

    #[test]
    fn what_is_left_out_is_told_apart() {
        let mut letter = letter(b"{}", &Headers::default());
        letter.drop_original_payload(Omitted::BySetting);
        assert_eq!(kept(&letter).original_payload(), Err(NoOriginal::BySetting));
        letter.drop_original_payload(Omitted::TooLarge);
        assert_eq!(kept(&letter).original_payload(), Err(NoOriginal::TooLarge));
        assert_eq!(kept(&letter).workers(), ["w-0", "w-1"]);
    }

    #[test]
    fn bytes_that_are_not_what_arrived_are_not_given_out() {
        let mut letter = letter(b"{}", &Headers::default());
        letter.original_payload = Some("{ }".to_owned());
        assert_eq!(kept(&letter).original_payload(), Err(NoOriginal::HashDiffers));
        letter.original_payload = None;
        letter.original_payload_base64 = Some("?".to_owned());
        assert_eq!(kept(&letter).original_payload(), Err(NoOriginal::HashDiffers));
    }

    #[test]
    fn what_is_no_letter_has_no_fields() {
        for bytes in [
            &b""[..],
            b"null",
            b"[1]",
            b"\"x\"",
            b"{\"attempts\":5,\"original_headers\":[]}",
        ] {
            let kept = KeptLetter::read(bytes);
            assert_eq!(
                (kept.text("reason"), kept.job_type(), kept.replay()),
                (None, None, 0)
            );
            assert_eq!(kept.original_payload(), Err(NoOriginal::Missing));
            assert!(kept.workers().is_empty());
        }
        let odd = KeptLetter(json!({"original_headers": {"Caf-Replay": 7, "x": "y"}}));
        assert_eq!((odd.replay(), odd.original_headers().get("x")), (0, Some("y")));
    }

    proptest! {
        #[test]
        fn bytes_and_headers_come_back_as_they_were(
            payload in prop_oneof!["\\PC{1,40}".prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 1..40)],
            replay in 0u32..1_001,
        ) {
            let mut headers = Headers::default();
            headers.push("x", "y z");
            if replay > 0 {
                headers.push("caf-replay", replay.to_string());
            }
            let kept = kept(&letter(&payload, &headers));
            prop_assert_eq!(kept.original_payload(), Ok(payload));
            prop_assert_eq!(kept.replay(), replay);
            let headers = kept.original_headers();
            prop_assert_eq!(headers.get("x"), Some("y z"));
        }
    }
}
