//! A message in the stream of dead letters, perhaps written by a stranger.

use caf_protocol::dead_letter::kept::KeptLetter;
use caf_protocol::headers::MAX_REPLAY;
use caf_protocol::ids::sha256_hex;

/// Original bytes are given back only with the hash that the letter tells; all else is read without harm.
pub fn holds(bytes: &[u8]) {
    let letter = KeptLetter::read(bytes);
    if let Ok(original) = letter.original_payload() {
        let told = letter.text("original_payload_hash");
        assert_eq!(told, Some(sha256_hex(&original).as_str()));
    }
    let workers = letter.workers();
    let mut once = workers.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), workers.len(), "each worker is named once");
    assert!(letter.replay() <= MAX_REPLAY);
    let _ = (letter.original_headers(), letter.job_type());
}
