//! Hides secrets and personal data from what people read: log lines, `config show`, error texts (contract 8.1).
//!
//! Neighbours: the event emitter and the log drain mask what they write; the settings mask what they show. Pure: no
//! I/O, no state. Never used on what travels to the router: outcomes carry what the block returned.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use smol_str::SmolStr;

pub use caf_protocol::secret::REDACTED;

/// A key that contains one of these, in any case, has its value hidden (contract 8.1). The substring rule hides too much
/// now and then (`tokens_used`); the other way round would be worse.
const SENSITIVE: [&str; 14] = [
    "password",
    "api_key",
    "secret",
    "token",
    "access_token",
    "refresh_token",
    "authorization",
    "credit_card",
    "ssn",
    "email",
    "phone",
    "bearer",
    "x-api-key",
    "x-auth-token",
];
/// The same for keys without their dashes, underscores, dots and spaces: other spellings, and other names of the same things.
const SENSITIVE_SQUASHED: [&str; 11] = [
    "apikey",
    "accesskey",
    "accountkey",
    "xamzsignature",
    "privatekey",
    "creditcard",
    "cardnumber",
    "socialsecurity",
    "passwd",
    "passphrase",
    "cookie",
];
/// Headers whose value runs to the end of the line.
const HEADERS: [&str; 4] = ["authorization", "api-key", "auth-token", "cookie"];
/// How keys of known services begin, and how long they are at least.
const KEY_PREFIXES: [(&str, usize); 15] = [
    ("AKIA", 20),
    ("ASIA", 20),
    ("AIza", 35),
    ("sk_live_", 20),
    ("sk_test_", 20),
    ("rk_live_", 20),
    ("npm_", 36),
    ("hvs.", 20),
    ("gho_", 30),
    ("sk-", 20),
    ("ghp_", 30),
    ("github_pat_", 30),
    ("glpat-", 20),
    ("xoxb-", 20),
    ("xoxp-", 20),
];
/// The shortest of them, and of whatever else is a secret by its looks.
const SHORTEST_TELL_TALE: usize = 20;
/// What stands before the credentials of a request.
const BEARER: &[u8] = b"bearer";
const BASIC: &[u8] = b"basic";
/// How far beyond a comma it is looked whether another name follows.
const LOOK_AHEAD_BYTES: usize = 64;

/// Whether the value under this key is hidden.
pub fn is_sensitive(key: &str) -> bool {
    // Every key of every line comes here: all names are looked for at once.
    static NAMES: LazyLock<AhoCorasick> = LazyLock::new(|| names(&SENSITIVE));
    static SQUASHED: LazyLock<AhoCorasick> = LazyLock::new(|| names(&SENSITIVE_SQUASHED));
    if NAMES.is_match(key) {
        return true;
    }
    let separates = |c: char| matches!(c, '-' | '_' | ' ' | '.');
    let squashed: SmolStr = key.chars().filter(|c| !separates(*c)).collect();
    let is_word = |word: &str, name: &str| word.eq_ignore_ascii_case(name);
    let mut words = key.split(separates);
    let is_short = words.any(|word| is_word(word, "pw") || is_word(word, "sig"));
    // A file of them is none: where it lies is no secret.
    let is_whole = is_word(&squashed, "credential") || is_word(&squashed, "credentials");
    let end = squashed.as_bytes().last_chunk::<3>();
    is_short
        || is_whole
        || SQUASHED.is_match(&*squashed)
        || end.is_some_and(|end| end.eq_ignore_ascii_case(b"pwd"))
}

fn names(names: &[&str]) -> AhoCorasick {
    let mut builder = AhoCorasick::builder();
    let built = builder.ascii_case_insensitive(true).build(names);
    built.expect("a handful of short names")
}

/// Hides the values of sensitive keys at every depth, whatever their type, and secrets inside all other strings, keys
/// among them.
pub fn mask(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields.iter_mut() {
                if is_sensitive(key) {
                    *field = Value::String(REDACTED.to_owned());
                } else {
                    mask(field);
                }
            }
            if fields.keys().any(|key| matches!(mask_text(key), Cow::Owned(_))) {
                let all = std::mem::take(fields);
                fields.extend(
                    all.into_iter()
                        .map(|(key, value)| (mask_text(&key).into_owned(), value)),
                );
            }
        }
        Value::Array(items) => items.iter_mut().for_each(mask),
        Value::String(text) => {
            if let Cow::Owned(masked) = mask_text(text) {
                *text = masked;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Hides secrets that are recognisable inside a text: `Bearer …`, `Basic …`, the user part of
/// `scheme://user:password@host`, values given to sensitive names as in `password=…`, `"token": "…"` (also where the JSON
/// stands in a string itself) or `X-Api-Key: …`, JSON web tokens, private keys, and keys of well-known services.
pub fn mask_text(text: &str) -> Cow<'_, str> {
    if !may_hold_secrets(text) {
        return Cow::Borrowed(text);
    }
    without(text, secrets_in(text))
}

/// Where they stand, in any order; some may overlap.
fn secrets_in(text: &str) -> Vec<Range<usize>> {
    let mut secrets = user_parts(text);
    secrets.extend(after_word(text, BEARER, |value| !value.is_empty()));
    secrets.extend(after_word(text, BASIC, is_basic));
    secrets.extend(assigned_values(text));
    secrets.extend(named_values(text));
    secrets.extend(tell_tale_words(text));
    secrets.extend(private_keys(text));
    // What is hidden already stays as it is, so that a second look changes nothing.
    secrets.retain(|secret| !is_hidden(&text[secret.clone()]));
    secrets
}

fn without(text: &str, mut secrets: Vec<Range<usize>>) -> Cow<'_, str> {
    if secrets.is_empty() {
        return Cow::Borrowed(text);
    }
    secrets.sort_by_key(|range| range.start);
    let mut masked = String::with_capacity(text.len());
    let mut written = 0;
    for secret in secrets {
        if secret.start >= written {
            masked.push_str(&text[written..secret.start]);
            masked.push_str(REDACTED);
        }
        written = written.max(secret.end);
    }
    masked.push_str(&text[written..]);
    Cow::Owned(masked)
}

/// Whether something in a text may be a secret, after one look at each byte: most of what a line says is let pass here. What
/// gives a value to a name, begins a URL, an element or a PEM has one of these signs; what else is a secret is a word.
fn may_hold_secrets(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut start = 0;
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'=' | b':' | b'%' | b'<' | b'"' => return true,
            b'-' if bytes.get(at + 1) == Some(&b'-') => return true,
            b'b' | b'B' if begins_with_scheme(&bytes[at..]) => return true,
            byte if is_word_byte(*byte) => {}
            _ => {
                if at - start >= SHORTEST_TELL_TALE && is_tell_tale(&text[start..at]) {
                    return true;
                }
                start = at + 1;
            }
        }
    }
    bytes.len() - start >= SHORTEST_TELL_TALE && is_tell_tale(&text[start..])
}

fn begins_with_scheme(bytes: &[u8]) -> bool {
    [BEARER, BASIC].iter().any(|word| {
        let begin = bytes.get(..word.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(word))
    })
}

fn is_hidden(value: &str) -> bool {
    // The closing bracket may have been taken for one of the text around.
    let rest = value.strip_prefix(&REDACTED[..REDACTED.len() - 1]);
    rest.is_some_and(|rest| {
        !rest
            .trim_start_matches(']')
            .starts_with(|c: char| c.is_alphanumeric())
    })
}

/// The user parts of URLs: what stands between `://` and the last `@` of the authority. Where what looks like a port is
/// none, it is a password with a slash in it, and everything up to the last `@` of the word is hidden.
fn user_parts(text: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for (at, separator) in text.match_indices("://") {
        let start = at + separator.len();
        if found.last().is_some_and(|hidden| at < hidden.end) {
            continue;
        }
        let rest = &text[start..];
        let end = rest.find(|c: char| ends_word(c) || matches!(c, '/' | '?' | '#'));
        let authority = &rest[..end.unwrap_or(rest.len())];
        let port = authority.rsplit_once(':').map(|(_, port)| port);
        let has_port = port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()));
        let (area, hides_name) = match (authority.contains('@'), has_port) {
            (false, false) if end.is_some() => {
                // The next address of a list has its own user part.
                let own = &rest[..rest.find("://").unwrap_or(rest.len())];
                (&own[..own.find(ends_word).unwrap_or(own.len())], true)
            }
            (has_user, _) => (authority, has_user),
        };
        if let Some(length) = area.rfind('@').filter(|length| hides_name && *length > 0) {
            found.push(start..start + length);
        }
    }
    found
}

/// What follows a word such as `bearer`, if it is a secret.
fn after_word(text: &str, word: &[u8], is_secret: impl Fn(&str) -> bool) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = (from..bytes.len().saturating_sub(word.len()))
        .find(|&at| bytes[at..at + word.len()].eq_ignore_ascii_case(word))
    {
        from = at + word.len();
        let rest = &text[from..];
        let value = rest.trim_start_matches([' ', '\t']);
        let start = text.len() - value.len();
        let length = value.find(ends_word).unwrap_or(value.len());
        let starts_word = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
        if starts_word && value.len() < rest.len() && is_secret(&value[..length]) {
            found.push(start..start + length);
        }
    }
    found
}

/// Whether it is user and password as HTTP carries them.
fn is_basic(value: &str) -> bool {
    let decoded = STANDARD.decode(value.trim_end_matches([',', ';', '.', ')']));
    decoded.is_ok_and(|decoded| decoded.contains(&b':'))
}

/// The values of `name=value`, `name: value` and `"name": "value"` whose name is sensitive, and of headers. A dotted name
/// before a colon is a key of the settings, and a sentence about it follows.
fn assigned_values(text: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for (at, sign) in text.match_indices(['=', ':']) {
        // What is inside a hidden value is not looked at again: the work stays linear in the text.
        if found.last().is_some_and(|hidden| at < hidden.end) {
            continue;
        }
        let before = text[..at].trim_end_matches([' ', '\u{a0}']);
        let bare = before.trim_end_matches(['"', '\'', '\\']);
        let start = bare.rfind(|c: char| !is_name(c)).map_or(0, |last| {
            last + bare[last..].chars().next().map_or(1, char::len_utf8)
        });
        let name = &bare[start..];
        if name.is_empty() || !is_sensitive(name) {
            continue;
        }
        let after = &text[at + sign.len()..];
        let is_quoted = bare.len() < before.len();
        let is_path = sign == ":" && (after.starts_with(':') || text[..at].ends_with(':'));
        let is_dotted = sign == ":" && !is_quoted && text[..start].ends_with('.');
        if is_path || (is_dotted && !is_one_word(after)) {
            continue;
        }
        let lower = name.to_ascii_lowercase();
        // `Authorization=Token x` and `cookie=a=1; b=2` are headers that somebody wrote so.
        let is_bare_header = matches!(
            &*lower,
            "authorization" | "proxy-authorization" | "cookie" | "set-cookie"
        );
        let is_header =
            (sign == ":" || is_bare_header) && HEADERS.iter().any(|header| lower.ends_with(header));
        let value = after
            .trim_start_matches('>')
            .trim_start_matches([' ', '\t', '\u{a0}']);
        // As Rust shows what may be missing.
        let value = value.strip_prefix("Some(").unwrap_or(value);
        let below = value.trim_start_matches(['\r', '\n']);
        let value = match below.len() < value.len() && is_one_word(below) {
            true => below.trim_start_matches([' ', '\t']),
            false => value,
        };
        let start = text.len() - value.len();
        let length = value_length(value, is_header);
        if length > 0 {
            found.push(start..start + length);
        }
    }
    found
}

/// Values that no `=` or `:` gives to their name: `--password x`, `password%3Dx`, `<password>x</password>`,
/// `("authorization", "x")` and `name: "authorization", value: "x"`.
fn named_values(text: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let bytes = text.as_bytes();
    let mut start = 0;
    while let Some(offset) = bytes[start..].iter().position(|b| is_name(char::from(*b))) {
        start += offset;
        let rest = &bytes[start..];
        let length = rest.iter().position(|b| !is_name(char::from(*b)));
        let end = start + length.unwrap_or(rest.len());
        let name = &text[start..end];
        let is_hidden = found.last().is_some_and(|hidden| start < hidden.end);
        if !is_hidden
            && let Some(begin) = value_after(&text[..start], name, &text[end..])
            && is_sensitive(name)
        {
            let begin = end + begin;
            let value = &text[begin..];
            let tag = value.find('<').filter(|_| text[..start].ends_with('<'));
            let length = tag.filter(|end| value[*end..].starts_with("</"));
            let length = length.unwrap_or_else(|| value_length(value, false));
            found.extend((length > 0).then(|| begin..begin + length));
        }
        start = end;
    }
    found
}

/// Where in what follows a name its value begins.
fn value_after(before: &str, name: &str, after: &str) -> Option<usize> {
    let skipped = |rest: &str| after.len() - rest.len();
    if let Some(rest) = after.strip_prefix("%3D").or_else(|| after.strip_prefix("%3d")) {
        return Some(skipped(rest));
    }
    if name.starts_with("--") {
        let rest = after.strip_prefix(' ')?;
        return (!rest.starts_with('-')).then(|| skipped(rest));
    }
    if before.ends_with('<') {
        return after.strip_prefix('>').map(skipped);
    }
    let quoted = before.strip_suffix('"')?.trim_end_matches(['\\', ' ']);
    let rest = after.trim_start_matches('\\').strip_prefix('"')?;
    let rest = rest.strip_prefix(',')?.trim_start_matches(' ');
    if quoted.ends_with("name:") {
        let rest = rest.strip_prefix("value:")?.trim_start_matches(' ');
        return Some(skipped(rest));
    }
    let is_quoted = rest.trim_start_matches('\\').starts_with('"');
    (quoted.ends_with('(') && is_quoted).then(|| skipped(rest))
}

/// Whether nothing but one word stands on the line at the start of `text`, which gives no value to a name itself.
fn is_one_word(text: &str) -> bool {
    // No further than to the first sign that decides: the work stays linear in the text.
    let word = text.trim_start_matches([' ', '\t']);
    let end = word.find(|c: char| c.is_whitespace() || matches!(c, ':' | '='));
    let rest = end.map_or("", |end| word[end..].trim_start_matches([' ', '\t']));
    end != Some(0) && !word.is_empty() && (rest.is_empty() || rest.starts_with(['\r', '\n']))
}

/// Length of the value at the start of `text`: a quoted one runs to its closing quote, a list or object to its closing
/// bracket, a header's to the end of its line, another one to the end of the word.
fn value_length(text: &str, is_header: bool) -> usize {
    let depth = text.bytes().take_while(|b| *b == b'\\').count();
    if let Some(quote) = text.as_bytes().get(depth).filter(|b| matches!(b, b'"' | b'\'')) {
        return quoted_length(text, depth, *quote);
    }
    if text.starts_with(['{', '[']) && !text.starts_with(REDACTED) {
        return bracketed_length(text);
    }
    if is_header {
        return text.find(['\r', '\n', '"', '\'']).unwrap_or(text.len());
    }
    let ends = |(at, c): (usize, char)| match c {
        '&' | ';' => true,
        ',' => begins_another(&text[at + 1..]),
        c => ends_word(c),
    };
    let end = text.char_indices().find(|found| ends(*found));
    let word = &text[..end.map_or(text.len(), |(at, _)| at)];
    // A bracket at the end closes what began before the name.
    word.trim_end_matches([')', '}', ']', ',']).len()
}

/// Up to and with the closing quote. A string inside of a string has its quotes behind `depth` backslashes, and quotes
/// inside of its own text behind more.
fn quoted_length(text: &str, depth: usize, quote: u8) -> usize {
    let mut backslashes = 0;
    for (at, byte) in text.bytes().enumerate().skip(depth + 1) {
        match byte {
            b'\\' => backslashes += 1,
            byte if byte == quote => {
                if backslashes < depth || backslashes % (2 * (depth + 1)) == depth {
                    return at + 1;
                }
                backslashes = 0;
            }
            _ => backslashes = 0,
        }
    }
    text.len()
}

fn bracketed_length(text: &str) -> usize {
    let mut open = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' | b'[' => open += 1,
            b'}' | b']' => {
                open -= 1;
                if open == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    text.len()
}

/// Whether what follows a comma is not part of the value before it.
fn begins_another(rest: &str) -> bool {
    if rest.is_empty() || rest.starts_with(char::is_whitespace) {
        return true;
    }
    let mut ahead = rest.bytes().take(LOOK_AHEAD_BYTES);
    let stop = ahead.find(|b| !is_name(char::from(*b)) && !matches!(b, b'"' | b'\\'));
    matches!(stop, Some(b'=' | b':'))
}

/// Words that are secrets by their looks: JSON web tokens, seeds of NATS keys, keys of well-known services.
fn tell_tale_words(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut start = 0;
    let is_part = |c: char| u8::try_from(c).is_ok_and(is_word_byte);
    let ends = text.char_indices().filter(|(_, c)| !is_part(*c));
    for (end, separator) in ends.map(|(at, c)| (at, c.len_utf8())).chain([(text.len(), 0)]) {
        let word = text[start..end].trim_end_matches('.');
        if is_tell_tale(word) {
            found.push(start..start + word.len());
        }
        start = end + separator;
    }
    found
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

fn is_tell_tale(word: &str) -> bool {
    let word = word.trim_end_matches('.');
    let has_prefix = |(prefix, least): &(&str, usize)| word.starts_with(prefix) && word.len() >= *least;
    is_jwt(word) || is_seed(word) || KEY_PREFIXES.iter().any(has_prefix)
}

fn is_jwt(word: &str) -> bool {
    // Signed, or encrypted.
    word.starts_with("eyJ") && word.len() > 30 && matches!(word.split('.').count(), 3 | 5)
}

fn is_seed(word: &str) -> bool {
    let is_base32 = |b: u8| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b);
    word.len() == 58
        && word.starts_with('S')
        && matches!(word.as_bytes()[1], b'A' | b'C' | b'N' | b'O' | b'U' | b'X')
        && word.bytes().all(is_base32)
}

/// Private keys in PEM, from their first line to their last or to the end of the text.
fn private_keys(text: &str) -> Vec<Range<usize>> {
    const END: &str = "PRIVATE KEY-----";
    let mut found: Vec<Range<usize>> = Vec::new();
    for (at, begin) in text.match_indices("-----BEGIN ") {
        if found.last().is_some_and(|hidden| at < hidden.end) {
            continue;
        }
        let start = at + begin.len();
        // Between the two words stands the kind of the key at most.
        let head = &text[start..text.floor_char_boundary(start + LOOK_AHEAD_BYTES)];
        let Some(length) = head.find(END) else {
            continue;
        };
        let body = start + length + END.len();
        let end = text[body..]
            .find(END)
            .map_or(text.len(), |length| body + length + END.len());
        found.push(at..end);
    }
    found
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

fn ends_word(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn values_of_sensitive_keys_are_hidden_at_every_depth_and_of_every_type() {
        let mut value = json!({
            "Password": "a", "db_PASSWORD": 7, "X-Api-Key": ["b"], "items": [{"user": {"email": {"x": "c"}}}],
            "tokens_used": 5, "refresh_token": null, "latency_ms": 42,
        });
        mask(&mut value);
        assert_eq!(
            value,
            json!({
                "Password": REDACTED, "db_PASSWORD": REDACTED, "X-Api-Key": REDACTED,
                "items": [{"user": {"email": REDACTED}}], "tokens_used": REDACTED,
                "refresh_token": REDACTED, "latency_ms": 42,
            })
        );
    }

    #[test]
    fn every_name_of_the_contract_is_sensitive() {
        for name in SENSITIVE {
            assert!(
                is_sensitive(&format!("my_{}_x", name.to_ascii_uppercase())),
                "{name}"
            );
        }
        for name in [
            "apiKey",
            "api.key",
            "Api-Key",
            "credit-card",
            "PASSWD",
            "Pwd",
            "pw",
            "db_pw",
            "Set-Cookie",
        ] {
            assert!(is_sensitive(name), "{name}");
        }
        for name in [
            "message",
            "tenant_id",
            "latency_ms",
            "block_type",
            "address",
            "process_name",
            "pwrite",
        ] {
            assert!(!is_sensitive(name), "{name}");
        }
    }

    #[test]
    fn secrets_inside_keys_are_hidden() {
        let mut value = json!({"see Basic dXNlcjpwYXNz": 1, "b": {"nats://u:p@h": 2}});
        mask(&mut value);
        assert_eq!(
            value,
            json!({"see Basic [REDACTED]": 1, "b": {"nats://[REDACTED]@h": 2}})
        );
    }

    #[test]
    fn secrets_inside_texts_are_hidden() {
        for (text, masked) in [
            ("Bearer xxx", "Bearer [REDACTED]"),
            ("pw=a user=u, db-pw: b", "pw=[REDACTED] user=u, db-pw: [REDACTED]"),
            ("sent bearer  a.b-c/d= twice", "sent bearer  [REDACTED] twice"),
            (
                "nats://u:p@h:1,tls://t@h",
                "nats://[REDACTED]@h:1,tls://[REDACTED]@h",
            ),
            ("postgres://u:p@ss@h/db?x=1", "postgres://[REDACTED]@h/db?x=1"),
            (
                "host=h password=hunter2 user=u",
                "host=h password=[REDACTED] user=u",
            ),
            (
                r#"Url { username: "u", password: Some("zq0MARK"), host: 1 }"#,
                r#"Url { username: "u", password: Some([REDACTED]), host: 1 }"#,
            ),
            (
                r#"[("authorization", "x y"), ("a", "b")]"#,
                r#"[("authorization", [REDACTED]), ("a", "b")]"#,
            ),
            (
                r#"Header { name: "authorization", value: "x" }"#,
                r#"Header { name: "authorization", value: [REDACTED] }"#,
            ),
            (
                "Authorization: Digest username=a, response=b",
                "Authorization: [REDACTED]",
            ),
            ("Authorization=Token x", "Authorization=[REDACTED]"),
            ("cookie=a=1; b=2", "cookie=[REDACTED]"),
            ("password:\u{a0}x y", "password:\u{a0}[REDACTED] y"),
            ("q=password%3Dx&b=2", "q=password%3D[REDACTED]&b=2"),
            ("run --password x --fast", "run --password [REDACTED] --fast"),
            (
                "credentials=x sig=y pw=z",
                "credentials=[REDACTED] sig=[REDACTED] pw=[REDACTED]",
            ),
            ("?X-Amz-Signature=x&a=1", "?X-Amz-Signature=[REDACTED]&a=1"),
            (
                "AccountName=n;AccountKey=k==;b",
                "AccountName=n;AccountKey=[REDACTED];b",
            ),
            (
                "<a><password>x y</password>",
                "<a><password>[REDACTED]</password>",
            ),
            ("run --password \"a&b\" c", "run --password [REDACTED] c"),
            ("password:\n  x\nuser: u", "password:\n  [REDACTED]\nuser: u"),
            ("nats.password: x", "nats.password: [REDACTED]"),
            (
                "AKIAIOSFODNN7EXAMPLE and hvs.CAESIJ0123456789abcd",
                "[REDACTED] and [REDACTED]",
            ),
            (
                "jwe eyJhbGciOiJSU0EtT0FFUCJ9.a0.b1.c2.d3012345 x",
                "jwe [REDACTED] x",
            ),
            ("password = 'a b' x", "password = [REDACTED] x"),
            ("GET /x?a=1&api_key=k&b=2", "GET /x?a=1&api_key=[REDACTED]&b=2"),
            (
                r#"body {"token": "t","n":1}"#,
                r#"body {"token": [REDACTED],"n":1}"#,
            ),
            (
                "Authorization: Basic dTpw\nx: y",
                "Authorization: [REDACTED]\nx: y",
            ),
            ("authorization: Bearer abc", "authorization: [REDACTED]"),
            ("ü password=é€ ü", "ü password=[REDACTED] ü"),
            ("password: hunter2, user: u", "password: [REDACTED], user: u"),
            ("{password: hunter2}", "{password: [REDACTED]}"),
            ("PWD=a,b;x=1", "PWD=[REDACTED];x=1"),
            ("password=a,b user=u", "password=[REDACTED] user=u"),
            ("(token=abc)", "(token=[REDACTED])"),
            ("X-Api-Key: a b\r\nx: y", "X-Api-Key: [REDACTED]\r\nx: y"),
            (
                r#"{"password": "a\"b", "n": 1}"#,
                r#"{"password": [REDACTED], "n": 1}"#,
            ),
            (
                r#""{\"password\":\"a\\\"b\",\"n\":1}""#,
                r#""{\"password\":[REDACTED],\"n\":1}""#,
            ),
            (
                r#"{"secret": {"a": ["hunter"]}, "n": 1}"#,
                r#"{"secret": [REDACTED], "n": 1}"#,
            ),
            ("postgres://u:pa/ss@h/db", "postgres://[REDACTED]@h/db"),
            ("got Basic dXNlcjpwYXNz.", "got Basic [REDACTED]"),
            (
                "jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl!",
                "jwt [REDACTED]!",
            ),
            (
                "seed SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
                "seed [REDACTED]",
            ),
            (
                "x -----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY----- y",
                "x [REDACTED] y",
            ),
        ] {
            assert_eq!(mask_text(text), masked);
            assert_eq!(mask_text(masked), masked);
        }
    }

    #[test]
    fn harmless_texts_are_left_alone() {
        for text in [
            "",
            "bearer",
            "bearer ",
            "forbearer x",
            "https://host/path?mail=a@b",
            "nats.token: expected text",
            "a=b",
            "password=",
            "==::",
            "caf_x::secret::x",
            "https://host:80/path?mail=a@b",
            "basic arithmetic",
            "eyJ.not.one",
            "-----BEGIN CERTIFICATE-----",
            "--password",
            "--password --fast",
            "signature=valid design: x signals=3",
            "the password is wrong, token (\"x\") expired",
            "the keys \"password\", \"token\" are unknown",
            "expected <token>, found x",
            "secret:\n  name: x",
        ] {
            assert!(matches!(mask_text(text), Cow::Borrowed(_)), "{text:?}");
        }
    }

    #[test]
    fn a_long_text_full_of_names_is_masked_in_linear_time() {
        for name in [
            "token=",
            "authorization:",
            "bearer ",
            "basic ",
            "token=\"",
            "token=[",
            "token=a,b",
            "\\\"token\\\":\\\"",
            "://",
            "://@",
            "://a:b/",
            "-----BEGIN ",
            "-----BEGIN PRIVATE KEY-----",
            "eyJ.",
            "--token ",
            "token%3D",
            "<token>",
            "(\"token\",",
            "(\"token\", \"",
            "name: \"token\", value: {",
            "token=Some(",
            "authorization=",
            "token%3D[",
            "token%3D[&",
            "token:\n",
            "a.token:",
            "<token>x",
        ] {
            assert!(mask_text(&name.repeat(100_000)).len() < 5_000_000, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_text_can_be_masked(text in "(\\PC|[\"'=: @/]|password|bearer |://){0,40}") {
            let _ = mask_text(&text);
        }

        #[test]
        fn what_one_look_lets_pass_holds_no_secret(
            text in "(bearer|Basic|dTpw|AKIA|eyJ|SUA|hvs\\.|name|password|Some|PRIVATE KEY|[a-z0-9A-Z]{5,19}|%3D|--|[-_. /\"'=:<>,ü\t])\
                     {0,12}",
        ) {
            prop_assert!(may_hold_secrets(&text) || secrets_in(&text).is_empty(), "{}", text);
        }

        #[test]
        fn a_secret_in_json_never_survives_however_deep_it_is_wrapped_in_strings(
            secret in "([a-z0-9@ :;&%!{}\\[\\]'/]|\\\\|\"|\n|ü){4,20}",
            name in "(password|apiKey|X-Auth-Token|my_secret|Authorization)",
            depth in 0_usize..4,
        ) {
            let marked = format!("HUNTER{secret}HUNTER");
            let mut text = json!({"a": 1, name: marked, "b": [true]}).to_string();
            for _ in 0..depth {
                text = json!({"wrapped": text}).to_string();
            }
            let masked = mask_text(&text).into_owned();
            prop_assert!(!masked.contains("HUNTER"), "{} -> {}", text, masked);
            let mut value = json!({"items": [text]});
            mask(&mut value);
            prop_assert!(!value.to_string().contains("HUNTER"), "{}", value);
            prop_assert_eq!(mask_text(&masked), masked.as_str());
        }

        #[test]
        fn a_password_in_a_url_never_survives(password in "[a-z0-9:@,;=&%!]{8,20}") {
            let masked = mask_text(&format!("see nats://u:{password}@host:4222 now")).into_owned();
            prop_assert!(!masked.contains(&password), "{}", masked);
        }
    }
}
