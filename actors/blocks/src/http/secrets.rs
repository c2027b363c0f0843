//! Secrets in a request: read as references when a job is prepared, put in when it runs, kept from where they are not for.
//!
//! Neighbours: `request` finds the references in headers and body; [`super`] asks for the values in each attempt, lets
//! [`follow`] judge every redirect, and takes the values out of the answer. A request that names none passes unchanged.

use awc::http::header::{HeaderName, HeaderValue};
use caf_protocol::block::{BlockContext, Outputs};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use caf_protocol::secret::reference::{SecretRef, is_in, not_here};
use caf_protocol::secret::vault::{Borrowed, Lent, Target, Vault};
use serde_json::{Map, Value};
use url::Url;

use super::redirects::same_origin;
use super::request::Request;
use crate::inputs::invalid_input;

/// The block type that secrets are asked for with.
const BLOCK_TYPE: &str = "http.request";

/// What of a request are secrets. `Debug` shows names only.
#[derive(Debug, Clone, Default)]
pub(super) struct Secrets {
    headers: Vec<(HeaderName, SecretRef)>,
    body: Option<Template>,
    /// The values, once they were put in; of the body apart, since it can go where headers do not.
    all: Borrowed,
    in_body: Borrowed,
}

/// A body with references in place of values.
#[derive(Debug, Clone)]
enum Template {
    /// The value is the body.
    Whole(SecretRef),
    /// Values are texts somewhere in it.
    Json(Value),
}

impl Secrets {
    /// Takes in the value of a header, if that is a reference. Whether the name may be used, the caller has checked.
    pub(super) fn take_header(&mut self, name: &HeaderName, value: &Value) -> Result<bool, Failure> {
        let Some(reference) = SecretRef::read(value, "headers")? else {
            return Ok(false);
        };
        if HeaderValue::try_from(reference.prefix.as_str()).is_err() {
            return Err(invalid_input(
                "headers",
                "\"prefix\" must not hold control characters",
            ));
        }
        self.headers.push((name.clone(), reference));
        Ok(true)
    }

    /// Takes in a body, if it holds references.
    pub(super) fn take_body(&mut self, body: &Value) -> Result<bool, Failure> {
        if !is_in(body) {
            return Ok(false);
        }
        self.body = Some(match SecretRef::read(body, "body")? {
            Some(reference) => Template::Whole(reference),
            None => {
                // All of them are looked at before any is sent.
                filled(body, &mut |reference| Ok(reference.name.clone()))?;
                Template::Json(body.clone())
            }
        });
        Ok(true)
    }

    /// Whether the body is a value, as it is, and not JSON around some.
    pub(super) fn are_whole_body(&self) -> bool {
        matches!(self.body, Some(Template::Whole(_)))
    }

    /// What an attempt returned, without the values.
    pub(super) fn scrub(&self, outcome: Result<Outputs, Failure>) -> Result<Outputs, Failure> {
        self.all.scrub(outcome)
    }

    /// The bytes of a body without the values; nothing of one that is encoded in a way that nobody here can read.
    pub(super) fn scrub_body(&self, bytes: Vec<u8>, is_readable: bool) -> Vec<u8> {
        if self.all.is_empty() {
            return bytes;
        }
        match is_readable {
            // Text is scrubbed with everything else that is returned.
            true if std::str::from_utf8(&bytes).is_ok() => bytes,
            true => self.all.scrubber().bytes(bytes),
            false => caf_protocol::secret::REDACTED.as_bytes().to_vec(),
        }
    }
}

/// Headers as a whole cannot be a secret.
pub(super) fn check_headers(headers: &Map<String, Value>) -> Result<(), Failure> {
    match headers.contains_key(caf_protocol::secret::reference::KEY) {
        true => Err(not_here("headers")),
        false => Ok(()),
    }
}

/// The request with its values in it, as far as they are for this job and where it is sent.
pub(super) fn put_in(
    request: &Request,
    vault: &Vault,
    max_bytes: u64,
    context: &BlockContext,
) -> Result<Request, Failure> {
    let mut request = request.clone();
    let Secrets { headers, body, .. } = request.secrets.clone();
    if headers.is_empty() && body.is_none() {
        return Ok(request);
    }
    let target = Target::of_url(&request.url).ok_or_else(|| invalid_input("url", "must have a host"))?;
    let lend = |reference: &SecretRef, field| vault.lend((reference, field), (BLOCK_TYPE, context), &target);
    let mut all = Vec::new();
    for (name, reference) in headers {
        let lent = lend(&reference, "headers")?;
        let mut value = HeaderValue::try_from(text_of(&reference, &lent)).map_err(|_| {
            let rule = "the secret's value cannot be the value of a header";
            Failure::of_field(ErrorCode::ExecutionFailed, "headers", rule)
        })?;
        value.set_sensitive(true);
        request.headers.append(name, value);
        all.push(lent);
    }
    if let Some(template) = body {
        let mut in_body: Vec<Lent> = Vec::new();
        let mut value_of = |reference: &SecretRef| {
            let lent = lend(reference, "body")?;
            let text = text_of(reference, &lent);
            in_body.push(lent);
            Ok(text)
        };
        let text = match template {
            Template::Whole(reference) => value_of(&reference)?,
            Template::Json(body) => filled(&body, &mut value_of)?.to_string(),
        };
        if text.len() as u64 > max_bytes {
            return Err(invalid_input(
                "body",
                &format!("must be at most {max_bytes} bytes"),
            ));
        }
        request.body = Some(text.into());
        all.extend(in_body.iter().cloned());
        request.secrets.in_body = in_body.into();
    }
    request.secrets.all = all.into();
    Ok(request)
}

fn text_of(reference: &SecretRef, lent: &Lent) -> String {
    // Spaces around it are no part of a header's value, and line breaks at the end come from files.
    format!("{}{}", reference.prefix, lent.value().expose().trim())
}

/// A JSON value with texts in place of its references.
fn filled(
    value: &Value,
    text_of: &mut impl FnMut(&SecretRef) -> Result<String, Failure>,
) -> Result<Value, Failure> {
    if let Some(reference) = SecretRef::read(value, "body")? {
        return text_of(&reference).map(Value::String);
    }
    // A message is never nested deeper than the stack bears (`json::parse`).
    Ok(match value {
        Value::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| filled(item, text_of))
                .collect::<Result<_, _>>()?,
        ),
        Value::Object(fields) => {
            let filled = fields
                .iter()
                .map(|(key, field)| Ok((key.clone(), filled(field, text_of)?)));
            Value::Object(filled.collect::<Result<_, Failure>>()?)
        }
        other => other.clone(),
    })
}

/// Judges a redirect: headers that are secrets stay with the origin that the job named, a body that holds one goes only
/// where its secrets are for.
pub(super) fn follow(from: &Url, next: &mut Request) -> Result<(), Failure> {
    if same_origin(from, &next.url) {
        return Ok(());
    }
    for (name, _) in &next.secrets.headers {
        next.headers.remove(name);
    }
    let holds_secrets = next.body.is_some() && !next.secrets.in_body.is_empty();
    let is_for = || Target::of_url(&next.url).is_some_and(|target| next.secrets.in_body.are_for(&target));
    if holds_secrets && !is_for() {
        let rule = "holds a secret that is not for where the server redirects to";
        return Err(Failure::of_field(ErrorCode::PermissionDenied, "body", rule));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use caf_protocol::secret::vault::{Destination, NamedSecret};
    use serde_json::json;

    use super::*;
    use crate::settings::HttpSettings;
    use crate::tests::{context, inputs};

    fn vault() -> Vault {
        let vault = Vault::default();
        let named = |value: &str, hosts: &[&str]| {
            let hosts = hosts.iter().map(|host| Destination::parse(host).expect("is one"));
            let types = [BLOCK_TYPE.to_owned()];
            NamedSecret::new(value.into(), ["acme".to_owned()], types, hosts.collect())
        };
        vault.replace([
            ("a".to_owned(), named("value-of-a\n", &["a.example", "b.example"])),
            ("b".to_owned(), named("value-of-b\u{e4}", &["a.example"])),
            ("broken".to_owned(), named("value\nof-c", &["a.example"])),
        ]);
        vault
    }

    fn filled_in(headers: Value, body: Value) -> Result<Request, Failure> {
        let given = json!({"url": "https://a.example/x", "method": "POST", "headers": headers, "body": body});
        let request = Request::from_inputs(&inputs(given), &HttpSettings::default())?;
        assert!(!format!("{request:?}").contains("value-of"), "{request:?}");
        put_in(&request, &vault(), 64, &context())
    }

    #[test]
    fn values_are_put_in_for_each_attempt_and_shown_by_nothing() {
        let headers = json!({"X-A": {"$secret": "a", "prefix": "Key "}, "x-plain": 1});
        let request = filled_in(headers, json!([{"$secret": "b"}, 2])).expect("is for this job");
        assert_eq!(request.headers.get("x-a").expect("is set"), "Key value-of-a");
        assert_eq!(
            request.body.as_deref(),
            Some("[\"value-of-b\u{e4}\",2]".as_bytes())
        );
        assert_eq!(
            request.headers.get("content-type").expect("is set"),
            "application/json"
        );
        assert!(!format!("{request:?}").contains("value-of"), "{request:?}");
        let whole = filled_in(json!({}), json!({"$secret": "a"})).expect("is for this job");
        assert_eq!(whole.body.as_deref(), Some(b"value-of-a".as_slice()));
        assert!(!whole.headers.contains_key("content-type"), "a value is a text");
        for (headers, body, code) in [
            (
                json!({"x": {"$secret": "broken"}}),
                json!("x"),
                ErrorCode::ExecutionFailed,
            ),
            (
                json!({"x": {"$secret": "a", "prefix": "a\nb"}}),
                json!("x"),
                ErrorCode::InvalidInput,
            ),
            (
                json!({"host": {"$secret": "a"}}),
                json!("x"),
                ErrorCode::InvalidFormat,
            ),
            (
                json!({"x": [{"$secret": "a"}]}),
                json!("x"),
                ErrorCode::InvalidFormat,
            ),
            (
                json!({}),
                json!([{"$secret": "a"}, "x".repeat(60)]),
                ErrorCode::InvalidInput,
            ),
        ] {
            assert_eq!(
                filled_in(headers.clone(), body).expect_err("is refused").code,
                code,
                "{headers}"
            );
        }
    }

    #[test]
    fn a_redirect_takes_headers_nowhere_and_a_body_only_where_its_secrets_are_for() {
        let from = Url::parse("https://a.example/x").expect("is one");
        for (body, to, keeps_headers, is_followed) in [
            (json!({"$secret": "b"}), "https://a.example/y", true, true),
            (json!({"$secret": "b"}), "https://b.example/y", false, false),
            (json!({"$secret": "b"}), "http://a.example/y", false, false),
            (json!([{"$secret": "a"}]), "https://b.example/y", false, true),
            (
                json!([{"$secret": "a"}, {"$secret": "b"}]),
                "https://b.example/y",
                false,
                false,
            ),
            (json!("plain"), "https://c.example/y", false, true),
        ] {
            let mut next =
                filled_in(json!({"x-a": {"$secret": "a"}}), body.clone()).expect("is for this job");
            next.url = Url::parse(to).expect("is one");
            let followed = follow(&from, &mut next);
            assert_eq!(followed.is_ok(), is_followed, "{body} {to}");
            assert_eq!(next.headers.contains_key("x-a"), keeps_headers, "{body} {to}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_returned_beside_a_secret() {
        let secrets = filled_in(json!({"x-a": {"$secret": "a"}}), json!("x"))
            .expect("is for this job")
            .secrets;
        assert_eq!(
            secrets.scrub_body(b"\xffvalue-of-a\xff".to_vec(), true),
            b"\xff[REDACTED]\xff"
        );
        assert_eq!(secrets.scrub_body(b"anything".to_vec(), false), b"[REDACTED]");
        assert_eq!(
            Secrets::default().scrub_body(b"anything".to_vec(), false),
            b"anything"
        );
    }
}
