//! stub
use std::borrow::Cow;
pub fn mask(_: &mut serde_json::Value) {}
pub fn mask_text(t: &str) -> Cow<'_, str> {
    Cow::Borrowed(t)
}
