//! What a database says about an error, without values: a message travels to the log, where nothing of a job's payload
//! and nothing of a table's content may stand.
//!
//! Neighbours: `sqlite` and `postgres` pass every message of their database through here. Names of tables, columns and
//! constraints stay, for they are what a message is about; what may be a value becomes `…`. In doubt it is hidden.

use serde_json::Value;
use tokio_postgres::error::{DbError, SqlState};

use super::Query;

/// Stands for what is hidden.
const HIDDEN: &str = "…";
/// Longest name that is shown, in characters; PostgreSQL has no longer ones.
const MAX_NAME_CHARS: usize = 63;
/// Longest message in characters: it stands in every log line about the failure.
const MAX_CHARS: usize = 300;
/// Shortest value, in bytes, that must occur nowhere in a message; shorter ones are parts of ordinary words.
const MIN_VALUE_BYTES: usize = 4;
/// Longest query, in bytes, that is searched for values. Whoever sends a longer one that fails is told less: the search
/// would cost more than the query.
const MAX_SEARCHED_BYTES: usize = 64 * 1024;
/// How deep quoted text is searched for quoted text. PostgreSQL's own functions have two levels; each level is a call and a
/// copy, so that a query of nothing but opening quotes would take the process with it.
const MAX_QUOTES_DEEP: usize = 8;
/// Said instead of a message that is nothing but somebody's text.
const WITHHELD: &str = "the query failed; the database's message may hold values and is not shown";

/// The values that a job has sent, in lower case: parameters, and literals and comments of the query.
struct Sent {
    values: Vec<String>,
    /// Whether these are all: a query that was not searched to its end may hold any word as a value.
    is_complete: bool,
}

/// A message of SQLite.
pub(super) fn of_sqlite(words: &str, query: &Query) -> String {
    let sent = Sent::by(query);
    let text = if let Some((head, rest)) = words.split_once('"') {
        // A token may hold quotes itself, so it ends at the last one.
        let (token, tail) = rest.rsplit_once('"').unwrap_or((rest, ""));
        let is_token = matches!(head, "near " | "unrecognized token: " | "no such column: ");
        let shown = if is_token { sent.shown(token) } else { HIDDEN };
        format!("{head}\"{shown}\"{tail}")
    } else if let Some((head, rest)) = words.split_once('\'') {
        let tail = rest.rsplit_once('\'').map_or("", |(_, tail)| tail);
        format!("{head}'{HIDDEN}'{tail}")
    } else if let Some((head, names)) = words.split_once(": ") {
        let shown: Vec<_> = names.split(", ").map(|name| sent.shown(name)).collect();
        format!("{head}: {}", shown.join(", "))
    } else {
        words.to_owned()
    };
    sent.checked(&text)
}

/// A message of PostgreSQL. Its detail, hint and context are never used: they are made of values.
pub(super) fn of_postgres(told: &DbError, query: &Query) -> String {
    let state = told.code().code();
    // Whatever code a function chooses, its text is its own: P0 is PL/pgSQL, 38 and 39 are other languages.
    let is_raised = told.routine() == Some("exec_stmt_raise");
    if is_raised || ["P0", "38", "39"].iter().any(|class| state.starts_with(class)) {
        return WITHHELD.to_owned();
    }
    let is_syntax = *told.code() == SqlState::SYNTAX_ERROR;
    // Class 22: a value does not fit, and is quoted.
    of_postgres_text(told.message(), state.starts_with("22"), is_syntax, query)
}

fn of_postgres_text(words: &str, quotes_values: bool, quotes_token: bool, query: &Query) -> String {
    let sent = Sent::by(query);
    let parts: Vec<_> = words.split('"').collect();
    let text = if quotes_values || quotes_token || parts.len() % 2 == 0 {
        match words.split_once('"') {
            None => words.to_owned(),
            Some((head, rest)) => {
                let (token, tail) = rest.rsplit_once('"').unwrap_or((rest, ""));
                let shown = if quotes_values { HIDDEN } else { sent.shown(token) };
                format!("{head}\"{shown}\"{tail}")
            }
        }
    } else {
        let shown = |(at, part)| if at % 2 == 0 { part } else { sent.shown(part) };
        let shown: Vec<_> = parts.into_iter().enumerate().map(shown).collect();
        shown.join("\"")
    };
    sent.checked(&text)
}

/// A name that a job chose, such as that of a column, for a message.
pub(super) fn name<'a>(name: &'a str, query: &Query) -> &'a str {
    Sent::by(query).shown(name)
}

impl Sent {
    fn by(query: &Query) -> Self {
        let mut values = Vec::new();
        for param in &query.params {
            collect_param(param, &mut values);
        }
        // Whether a backslash escapes depends on the database and on the literal: both readings count.
        let is_complete = query.text.len() <= MAX_SEARCHED_BYTES
            && [false, true].into_iter().all(|backslash_escapes| {
                collect_literals(&query.text, backslash_escapes, MAX_QUOTES_DEEP, &mut values)
            });
        let values = values.iter().map(|value| value.trim().to_lowercase());
        Self {
            values: values.filter(|value| !value.is_empty()).collect(),
            is_complete,
        }
    }

    /// A name or a sign, unless it may be a value or a word of one.
    fn shown<'a>(&self, text: &'a str) -> &'a str {
        let is_sign = text.len() <= 2
            && text
                .chars()
                .all(|c| c.is_ascii_punctuation() && !"'\"`".contains(c));
        let lower = text.to_lowercase();
        let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
        let mut words = self.values.iter().flat_map(|value| value.split(|c| !is_word(c)));
        let is_value = words.any(|word| lower.split('.').any(|part| part == word));
        if is_sign || (self.is_complete && is_name(text) && !is_value) {
            text
        } else {
            HIDDEN
        }
    }

    /// The message, unless it holds a value all the same.
    fn checked(&self, text: &str) -> String {
        if !self.is_complete {
            return WITHHELD.to_owned();
        }
        let lower = text.to_lowercase();
        let mut long = self.values.iter().filter(|value| value.len() >= MIN_VALUE_BYTES);
        if long.any(|value| lower.contains(value.as_str())) {
            return WITHHELD.to_owned();
        }
        let line = text.lines().next().unwrap_or_default();
        line.chars().take(MAX_CHARS).collect()
    }
}

/// `name` or `schema.name`.
fn is_name(text: &str) -> bool {
    text.chars().count() <= MAX_NAME_CHARS
        && text.split('.').all(|part| {
            let mut chars = part.chars();
            chars
                .next()
                .is_some_and(|first| first.is_alphabetic() || first == '_')
                && chars.all(|c| c.is_alphanumeric() || matches!(c, '_' | '$'))
        })
}

fn collect_param(param: &Value, values: &mut Vec<String>) {
    match param {
        Value::Null | Value::Bool(_) => {}
        Value::Number(number) => values.push(number.to_string()),
        Value::String(text) => values.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| collect_param(item, values)),
        Value::Object(map) => {
            for (key, value) in map {
                values.push(key.clone());
                collect_param(value, values);
            }
        }
    }
}

/// Literals, numbers and comments of a statement in either dialect; what has no end ends with the text. False when the text
/// is quoted deeper than `depth`: what lies below was not looked at.
fn collect_literals(text: &str, backslash_escapes: bool, depth: usize, values: &mut Vec<String>) -> bool {
    let mut rest = text;
    let mut is_complete = true;
    while let Some(first) = rest.chars().next() {
        let taken = if first == '\'' {
            let end = end_of_quoted(rest, '\'', backslash_escapes);
            values.push(rest[1..end].trim_end_matches('\'').replace("''", "'"));
            end
        } else if first == '"' {
            end_of_quoted(rest, '"', false)
        } else if rest.starts_with("--") {
            let end = rest.find('\n').unwrap_or(rest.len());
            values.push(rest[2..end].to_owned());
            end
        } else if let Some(comment) = rest.strip_prefix("/*") {
            let end = comment.find("*/").unwrap_or(comment.len());
            values.push(comment[..end].to_owned());
            (end + 4).min(rest.len())
        } else if let Some((body, end)) = dollar_quoted(rest) {
            values.push(body.to_owned());
            is_complete &= depth > 0 && collect_literals(body, backslash_escapes, depth - 1, values);
            end
        } else if first.is_alphanumeric() || first == '_' {
            let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.');
            let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            if first.is_numeric() {
                values.push(rest[..end].to_owned());
            }
            end
        } else {
            first.len_utf8()
        };
        rest = &rest[taken..];
    }
    is_complete
}

/// Where a quoted piece that begins the text ends; a doubled quote is part of it.
fn end_of_quoted(text: &str, quote: char, backslash_escapes: bool) -> usize {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if backslash_escapes && c == '\\' {
            chars.next();
        } else if c == quote && chars.next_if(|(_, next)| *next == quote).is_none() {
            return at + 1;
        }
    }
    text.len()
}

/// The body of `$tag$body$tag$` at the beginning of the text, and where the whole ends.
fn dollar_quoted(text: &str) -> Option<(&str, usize)> {
    let tag_end = text.strip_prefix('$')?.find('$')? + 2;
    let (tag, rest) = text.split_at(tag_end);
    let is_tag = |c: char| c.is_alphanumeric() || c == '_';
    if !tag[1..tag_end - 1].chars().all(is_tag) || tag[1..].starts_with(|c: char| c.is_numeric()) {
        return None;
    }
    let end = rest.find(tag).unwrap_or(rest.len());
    Some((&rest[..end], (tag_end + end + tag_end).min(text.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn query(text: &str, params: Value) -> Query {
        Query {
            text: text.to_owned(),
            params: params.as_array().cloned().expect("is an array"),
        }
    }

    #[test]
    fn literals_and_comments_are_found_in_both_dialects() {
        for text in [
            "SELECT 'hunter2'",
            "SELECT 'hunter2",
            "SELECT 'it''s hunter2', \"col\"",
            "SELECT E'it\\'s hunter2'",
            "SELECT 'x\\' || 'hunter2'",
            "SELECT 1 -- hunter2\n, 2",
            "SELECT /* hunter2 */ 1",
            "SELECT /* hunter2",
            "SELECT $$hunter2$$",
            "SELECT $a_1$ x $$ hunter2 $a_1$",
            "DO $$BEGIN RAISE 'hunter2'; END$$",
            "SELECT \"it's\" || 'hunter2'",
            "SELECT ü'hunter2'",
        ] {
            let sent = Sent::by(&query(text, json!([])));
            assert_eq!(sent.shown("hunter2"), HIDDEN, "{text}");
            assert_eq!(sent.shown("col"), "col", "{text}");
        }
        let sent = Sent::by(&query("SELECT 41111, $1", json!([["hunter2"], {"key": 42424}])));
        for value in ["hunter2", "Hunter2", "x.hunter2", "key", "41111"] {
            assert_eq!(sent.shown(value), HIDDEN, "{value}");
        }
        assert_eq!(sent.checked("so 42424 it is"), WITHHELD);
    }

    #[test]
    fn a_query_of_nothing_but_opening_quotes_is_searched_no_deeper_than_the_bound() {
        let opened = |count: usize| (0..count).map(|n| format!("$a{n}$")).collect::<String>();
        // A level costs a call and a copy: without a bound this ends the process.
        for text in [opened(8_000), opened(200_000)] {
            let given = query(&text, json!([]));
            assert_eq!(of_sqlite("near \"a\": syntax error", &given), WITHHELD);
            assert_eq!(name("col", &given), HIDDEN);
        }
        let shallow = query(&opened(MAX_QUOTES_DEEP), json!([]));
        assert_eq!(of_sqlite("malformed JSON", &shallow), "malformed JSON");
    }

    #[test]
    fn what_sqlite_says_keeps_names_and_signs_only() {
        let given = query("SELECT 'secret one', \"x\"", json!(["hunter2"]));
        for (words, expected) in [
            ("no such table: none", "no such table: none"),
            ("no such column: hunter2", "no such column: …"),
            ("no such table: two words", "no such table: …"),
            (
                "UNIQUE constraint failed: t.a, t.b",
                "UNIQUE constraint failed: t.a, t.b",
            ),
            ("near \"SELEC\": syntax error", "near \"SELEC\": syntax error"),
            ("near \")\": syntax error", "near \")\": syntax error"),
            ("near \"'\": syntax error", "near \"…\": syntax error"),
            ("near \"123456\": syntax error", "near \"…\": syntax error"),
            ("near \"\"a b\"\": syntax error", "near \"…\": syntax error"),
            ("unrecognized token: \"'rest", "unrecognized token: \"…\""),
            ("bad JSON path: 'anything'", "bad JSON path: '…'"),
            (
                "fts5: syntax error near \"word\"",
                "fts5: syntax error near \"…\"",
            ),
            ("malformed JSON", "malformed JSON"),
            ("Secret One", WITHHELD),
        ] {
            assert_eq!(of_sqlite(words, &given), expected, "{words}");
        }
    }

    #[test]
    fn what_postgres_says_keeps_names_and_no_values() {
        let given = query("SELECT 'literal'", json!(["hunter2"]));
        let of =
            |words, quotes_values, quotes_token| of_postgres_text(words, quotes_values, quotes_token, &given);
        assert_eq!(
            of("column \"a\" of relation \"b\" does not exist", false, false),
            "column \"a\" of relation \"b\" does not exist"
        );
        assert_eq!(
            of("column \"a b\" of relation \"hunter2\" is", false, false),
            "column \"…\" of relation \"…\" is"
        );
        assert_eq!(
            of("invalid value \"abc\" for \"YYYY\"", true, false),
            "invalid value \"…\""
        );
        assert_eq!(
            of("syntax error at or near \"SELEC\"", false, true),
            "syntax error at or near \"SELEC\""
        );
        assert_eq!(
            of(
                "unterminated quoted string at or near \"'a \"b\" c\"",
                false,
                true
            ),
            "unterminated quoted string at or near \"…\""
        );
        assert_eq!(of("one \" quote", false, false), "one \"…\"");
        assert_eq!(of("so much for hunter2", false, false), WITHHELD);
    }
}
