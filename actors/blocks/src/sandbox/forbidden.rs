//! What is refused even in play (contract 6.9): addresses that are no HTTP, and statements that remove or grant.
//!
//! Neighbours: [`super`] asks before inputs are checked. Pure. In earnest other guards hold: the scheme of an address is a
//! rule of the HTTP block, and what a statement may do is decided by the database.

use caf_protocol::block::Inputs;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use serde_json::Value;

use super::Play;

/// Words of statements that are refused.
const WORDS: [&str; 7] = ["drop", "delete", "truncate", "alter", "create", "grant", "revoke"];
/// Schemes that are refused.
const SCHEMES: [&str; 2] = ["file:", "ftp:"];

/// Why these inputs are refused, if they are.
pub(super) fn of(play: Play, inputs: &Inputs) -> Option<Failure> {
    let text = |names: &[&str]| {
        names
            .iter()
            .find_map(|name| inputs.get(*name).and_then(Value::as_str))
    };
    let denied = |field, rule: &str| Some(Failure::of_field(ErrorCode::PermissionDenied, field, rule));
    match play {
        Play::Http => {
            let url = text(&["url"])?.trim_start().to_ascii_lowercase();
            let scheme = SCHEMES.into_iter().find(|scheme| url.starts_with(scheme))?;
            denied("url", &format!("{scheme}// is not allowed in the sandbox"))
        }
        Play::Sql => {
            let word = statement_word(text(&["query", "sql"])?)?;
            let word = word.to_ascii_uppercase();
            denied("query", &format!("{word} is not allowed in the sandbox"))
        }
        Play::AsItIs
        | Play::Put
        | Play::Get
        | Play::Delete
        | Play::Chat
        | Play::Text
        | Play::Embedding
        | Play::Human => None,
    }
}

/// The first refused word that stands as a word of the statement: not in a string, a quoted name or a comment. Text in
/// dollar quotes may be code and counts.
fn statement_word(text: &str) -> Option<&'static str> {
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let taken = match first {
            '\'' | '"' | '`' => rest[1..].find(first).map_or(rest.len(), |end| end + 2),
            '-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            c if is_part(c) => {
                let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
                let word = &rest[..end];
                if let Some(found) = WORDS.into_iter().find(|known| known.eq_ignore_ascii_case(word)) {
                    return Some(found);
                }
                end
            }
            c => c.len_utf8(),
        };
        rest = &rest[taken..];
    }
    None
}

fn is_part(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::inputs;
    use serde_json::json;

    #[test]
    fn addresses_of_files_are_refused_and_others_are_left_to_the_block() {
        for (url, refused) in [
            ("file:///etc/passwd", true),
            (" FILE:/x", true),
            ("ftp://h/x", true),
            ("http://h/file://", false),
            ("gopher://h", false),
        ] {
            let refusal = of(Play::Http, &inputs(json!({"url": url})));
            assert_eq!(refusal.is_some(), refused, "{url}");
            assert!(refusal.is_none_or(|refusal| refusal.code == ErrorCode::PermissionDenied));
        }
    }

    #[test]
    fn statements_that_remove_or_grant_are_refused_and_words_that_only_look_so_are_not() {
        for text in [
            "DROP TABLE t",
            "select 1; drop table t",
            "WITH x AS (DELETE FROM t RETURNING a) SELECT * FROM x",
            "/* a */truncate t",
            "CREATE TABLE t(a)",
            "ALTER TABLE t ADD b",
            "GRANT ALL ON t TO u",
            "REVOKE ALL ON t FROM u",
            "DO $$ BEGIN DROP TABLE t; END $$",
            "SELECT 'it''s' ; DROP TABLE t",
        ] {
            assert!(of(Play::Sql, &inputs(json!({"query": text}))).is_some(), "{text}");
            assert!(of(Play::Sql, &inputs(json!({"sql": text}))).is_some(), "{text}");
        }
        for text in [
            "SELECT 'drop table t'",
            "SELECT created_at, \"delete\", `alter` FROM t",
            "SELECT 1 -- drop",
            "SELECT /* drop */ 1",
            "SELECT deleted, undrop FROM dropped",
            "SELECT 'unfinished drop",
        ] {
            assert!(of(Play::Sql, &inputs(json!({"query": text}))).is_none(), "{text}");
        }
    }
}
