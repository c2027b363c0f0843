//! What a link to an approval holds: who may decide what with it, and until when, with a code over it that only the fleet
//! can make (HMAC-SHA-256). Pure: key, time and chance come in.
//!
//! Neighbours: [`super::Desk`] hands links out, [`crate::http::approval_links`] is where they lead. Never says why a link is
//! none of ours: whoever tries some learns nothing.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use caf_actors::settings::approval_links::MIN_KEY_BYTES;
use caf_protocol::approval::{ApprovalId, MAX_NAME_BYTES};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

/// What the code is made over first: a key that is used for something else too makes no links.
const PURPOSE: &[u8] = b"caf-worker approval link\0";
/// The form below. Another one gets another number.
const VERSION: u8 = 1;
/// What makes two links to the same approval differ.
pub const NONCE_BYTES: usize = 16;
/// HMAC-SHA-256, whole.
const CODE_BYTES: usize = 32;
/// The digits of an approval's id.
const ID_BYTES: usize = 64;
/// Longest link that is looked at, in characters: nothing longer was ever made.
pub const MAX_CHARS: usize = (1 + 8 + NONCE_BYTES + ID_BYTES + MAX_NAME_BYTES + CODE_BYTES).div_ceil(3) * 4;
/// How much of the nonce names a link in the log, in bytes: it tells links apart, and opens none.
const NAME_BYTES: usize = 4;

/// What signs links.
#[derive(Clone)]
pub struct Key(Zeroizing<Vec<u8>>);

impl Key {
    /// Of at least [`MIN_KEY_BYTES`]; nothing of less.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= MIN_KEY_BYTES).then(|| Self(Zeroizing::new(bytes.to_vec())))
    }

    fn code_of(&self, said: &[u8]) -> Hmac<Sha256> {
        let mut code = Hmac::<Sha256>::new_from_slice(&self.0).expect("every length is a key");
        code.update(PURPOSE);
        code.update(said);
        code
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// What a link says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The approval.
    pub approval_id: ApprovalId,
    /// In whose name it decides; empty where nobody was named.
    pub approver: String,
    /// From then on it decides nothing, in milliseconds since the Unix epoch.
    pub expires_at_ms: u64,
    /// Chance.
    pub nonce: [u8; NONCE_BYTES],
}

/// Why a link opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// Nobody with the key has made it.
    Forged,
    /// It was good once.
    Expired,
}

impl Link {
    /// The last part of its address; nothing when the name is too long.
    pub fn write(&self, key: &Key) -> Option<String> {
        if self.approver.len() > MAX_NAME_BYTES {
            return None;
        }
        let mut said = vec![VERSION];
        said.extend(self.expires_at_ms.to_be_bytes());
        said.extend(self.nonce);
        said.extend(self.approval_id.as_str().bytes());
        // Whatever is left is the name: the code covers where it ends.
        said.extend(self.approver.bytes());
        let code = key.code_of(&said).finalize().into_bytes();
        said.extend(code);
        Some(URL_SAFE_NO_PAD.encode(said))
    }

    /// What this last part of an address says, at this time. The code is compared in a time that does not tell how much of it
    /// is right, and before anything else is looked at.
    ///
    /// # Errors
    /// [`Closed`].
    pub fn read(text: &str, key: &Key, now_ms: u64) -> Result<Self, Closed> {
        if text.len() > MAX_CHARS {
            return Err(Closed::Forged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Closed::Forged)?;
        let (said, code) = bytes.split_last_chunk::<CODE_BYTES>().ok_or(Closed::Forged)?;
        key.code_of(said).verify_slice(code).map_err(|_| Closed::Forged)?;
        let link = Self::of(said).ok_or(Closed::Forged)?;
        match link.expires_at_ms > now_ms {
            true => Ok(link),
            false => Err(Closed::Expired),
        }
    }

    fn of(said: &[u8]) -> Option<Self> {
        let rest = said.strip_prefix(&[VERSION])?;
        let (expires_at_ms, rest) = rest.split_first_chunk::<8>()?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_BYTES>()?;
        let (approval_id, approver) = rest.split_first_chunk::<ID_BYTES>()?;
        Some(Self {
            approval_id: ApprovalId::parse(str::from_utf8(approval_id).ok()?)?,
            approver: str::from_utf8(approver).ok()?.to_owned(),
            expires_at_ms: u64::from_be_bytes(*expires_at_ms),
            nonce: *nonce,
        })
    }

    /// Which link it is, for the log: opens nothing.
    pub fn name(&self) -> String {
        let shown = self.nonce.iter().take(NAME_BYTES);
        shown.map(|byte| format!("{byte:02x}")).collect()
    }

    /// In whose name it decides; of a link for nobody in particular, its own.
    pub fn decides_as(&self) -> String {
        match self.approver.is_empty() {
            true => format!("link-{}", self.name()),
            false => self.approver.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use caf_protocol::ids::AssignmentKey;
    use proptest::prelude::*;

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn key() -> Key {
        Key::new(&[7; MIN_KEY_BYTES]).expect("is long enough")
    }

    fn link() -> Link {
        Link {
            approval_id: ApprovalId::of(AssignmentKey::new("t", "a")),
            approver: "bob".to_owned(),
            expires_at_ms: NOW_MS + 1,
            nonce: [9; NONCE_BYTES],
        }
    }

    #[test]
    fn a_link_says_what_was_put_in_until_its_time_is_over() {
        let text = link().write(&key()).expect("fits");
        assert_eq!(Link::read(&text, &key(), NOW_MS), Ok(link()));
        assert_eq!(Link::read(&text, &key(), NOW_MS + 1), Err(Closed::Expired));
        assert_eq!(Link::read(&text, &key(), u64::MAX), Err(Closed::Expired));
    }

    #[test]
    fn every_bit_that_is_changed_and_every_byte_that_is_missing_or_too_much_makes_it_a_forgery() {
        let text = link().write(&key()).expect("fits");
        let bytes = URL_SAFE_NO_PAD.decode(&text).expect("is base64");
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                let changed = URL_SAFE_NO_PAD.encode(changed);
                assert_eq!(
                    Link::read(&changed, &key(), NOW_MS),
                    Err(Closed::Forged),
                    "{at}.{bit}"
                );
            }
        }
        for end in 0..text.len() {
            assert_eq!(
                Link::read(&text[..end], &key(), NOW_MS),
                Err(Closed::Forged),
                "{end}"
            );
        }
        for more in ["A", "=", "AAAA", "/", " "] {
            assert_eq!(
                Link::read(&format!("{text}{more}"), &key(), NOW_MS),
                Err(Closed::Forged)
            );
        }
    }

    #[test]
    fn a_link_of_another_key_or_purpose_is_a_forgery_also_when_it_is_over() {
        let other = Key::new(&[8; MIN_KEY_BYTES]).expect("is long enough");
        let over = Link {
            expires_at_ms: 1,
            ..link()
        };
        for forged in [link(), over] {
            let text = forged.write(&other).expect("fits");
            assert_eq!(Link::read(&text, &key(), NOW_MS), Err(Closed::Forged));
        }
        let text = link().write(&key()).expect("fits");
        let bytes = URL_SAFE_NO_PAD.decode(text).expect("is base64");
        let said = &bytes[..bytes.len() - CODE_BYTES];
        let mut without_purpose = Hmac::<Sha256>::new_from_slice(&[7; MIN_KEY_BYTES]).expect("is a key");
        without_purpose.update(said);
        let text = URL_SAFE_NO_PAD.encode([said, &without_purpose.finalize().into_bytes()].concat());
        assert_eq!(Link::read(&text, &key(), NOW_MS), Err(Closed::Forged));
    }

    #[test]
    fn what_has_a_right_code_and_another_form_opens_nothing() {
        let head = [VERSION; 25];
        for said in [
            &b""[..],
            b"\x02",
            b"\x01",
            &head,
            &[&head[..], &[b'a'; ID_BYTES - 1]].concat(),
            &[&head[..], &[b'A'; ID_BYTES]].concat(),
            &[&head[..], &[b'a'; ID_BYTES], &[0xff]].concat(),
            &[&[2][..], &head[1..], &[b'a'; ID_BYTES]].concat(),
        ] {
            let code = key().code_of(said).finalize().into_bytes();
            let text = URL_SAFE_NO_PAD.encode([said, &code].concat());
            assert_eq!(Link::read(&text, &key(), 0), Err(Closed::Forged), "{said:?}");
        }
    }

    #[test]
    fn a_short_key_makes_no_links_and_the_key_is_never_shown() {
        assert!(Key::new(&[1; MIN_KEY_BYTES - 1]).is_none());
        let shown = format!("{:?}", Key::new(&[b'k'; MIN_KEY_BYTES]));
        assert_eq!(shown, "Some(Key(..))");
    }

    #[test]
    fn a_name_that_is_too_long_makes_no_link() {
        let named = |bytes: usize| Link {
            approver: "b".repeat(bytes),
            ..link()
        };
        let text = named(MAX_NAME_BYTES).write(&key()).expect("fits");
        assert!(text.len() <= MAX_CHARS, "{}", text.len());
        assert_eq!(Link::read(&text, &key(), NOW_MS), Ok(named(MAX_NAME_BYTES)));
        assert_eq!(named(MAX_NAME_BYTES + 1).write(&key()), None);
    }

    proptest! {
        #[test]
        fn any_link_comes_back_as_it_was(
            id in "[a-z]{1,9}", approver in "\\PC{0,60}", nonce: [u8; NONCE_BYTES], expires_at_ms in 1..u64::MAX
        ) {
            let approval_id = ApprovalId::of(AssignmentKey::new("t", &id));
            let link = Link { approval_id, approver, expires_at_ms, nonce };
            let text = link.write(&key()).expect("fits");
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
            prop_assert_eq!(Link::read(&text, &key(), expires_at_ms - 1), Ok(link));
        }

        #[test]
        fn whatever_else_is_tried_is_a_forgery(text in "\\PC{0,200}") {
            prop_assert_eq!(Link::read(&text, &key(), NOW_MS), Err(Closed::Forged));
        }
    }
}
