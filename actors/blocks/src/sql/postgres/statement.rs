//! Which statements are sent to a PostgreSQL server at all: those that a query needs.
//!
//! Neighbours: [`super`] asks before it connects. Pure. This is the outer wall and knows words only; what a statement may
//! do is decided by the server: by the transaction, and by the rights of the role. It must not let through what the server
//! would read otherwise, so that in doubt it refuses.

use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;

use crate::inputs::invalid_input;

/// First words of statements that read.
const READING: [&str; 6] = ["select", "with", "values", "table", "show", "explain"];
/// First words of statements that no job may send, also where it may write: they reach files, programs and libraries of the
/// server, are code that hides what it does, change what is common to all who use the connection, or end the transaction of
/// the job.
const REFUSED: [&str; 23] = [
    "abort",
    "begin",
    "checkpoint",
    "close",
    "commit",
    "copy",
    "deallocate",
    "declare",
    "discard",
    "do",
    "end",
    "execute",
    "fetch",
    "listen",
    "load",
    "move",
    "notify",
    "prepare",
    "release",
    "rollback",
    "savepoint",
    "start",
    "unlisten",
];
/// Names that no statement may hold, wherever they stand. A superuser's connection would let them through.
const NAMES: [&str; 36] = [
    // Statements made of text: by them every other name could be put together.
    "cursor_to_xml",
    "cursor_to_xmlschema",
    "database_to_xml",
    "database_to_xml_and_xmlschema",
    "query_to_xml",
    "query_to_xml_and_xmlschema",
    "query_to_xmlschema",
    "schema_to_xml",
    "schema_to_xml_and_xmlschema",
    "table_to_xml",
    "table_to_xml_and_xmlschema",
    "ts_rewrite",
    "ts_stat",
    // Large objects: they are written also where the transaction is read-only, and some reach files.
    "lo_creat",
    "lo_create",
    "lo_export",
    "lo_from_bytea",
    "lo_import",
    "lo_open",
    "lo_put",
    "lo_truncate",
    "lo_truncate64",
    "lo_unlink",
    "lowrite",
    // Other sessions, and the server itself.
    "pg_cancel_backend",
    "pg_notify",
    "pg_promote",
    "pg_reload_conf",
    "pg_rotate_logfile",
    "pg_terminate_backend",
    // Passwords and addresses.
    "pg_authid",
    "pg_shadow",
    "pg_subscription",
    "pg_user_mapping",
    "pg_user_mappings",
    // The session's own settings: role, time limit, mode of the transaction.
    "set_config",
];
/// Beginnings of names that no statement may hold: files and directories of the server, and other servers.
const FAMILIES: [&str; 21] = [
    "binary_upgrade_",
    "dblink",
    // Replication, backups, the log and the statistics of the server.
    "pg_backup_",
    "pg_copy_",
    "pg_create_",
    "pg_drop_",
    "pg_logical_",
    "pg_log_",
    "pg_replication_",
    "pg_start_backup",
    "pg_stat_reset",
    "pg_stop_backup",
    "pg_switch_",
    "pg_sync_",
    "pg_wal_replay_",
    "pg_file_",
    "pg_ls_",
    "pg_read_binary_file",
    "pg_read_file",
    "pg_stat_file",
    "pg_logdir_ls",
];

/// Refuses what is not to be sent, with PERMISSION_DENIED.
pub(super) fn check(text: &str, read_only: bool) -> Result<(), Failure> {
    let denied = |rule: String| Err(Failure::of_field(ErrorCode::PermissionDenied, "query", &rule));
    let words: Vec<String> = leading_words(text, 3);
    let Some(first) = words.first() else {
        return Err(invalid_input("query", "must begin with a word"));
    };
    let first = first.as_str();
    if REFUSED.contains(&first) {
        return denied(format!("{} is not permitted here", first.to_ascii_uppercase()));
    }
    if read_only && !READING.contains(&first) {
        return denied("the connection is read-only, and takes only statements that read".to_owned());
    }
    let changes_the_server = first == "alter" && words.get(1).is_some_and(|word| word == "system");
    let rest = words
        .iter()
        .skip(1)
        .find(|word| !matches!(word.as_str(), "session" | "local"));
    let takes_a_role = first == "set"
        && rest.is_some_and(|word| matches!(word.as_str(), "role" | "authorization" | "transaction"));
    if changes_the_server || takes_a_role {
        return denied("changes more than the job's own data".to_owned());
    }
    let lower = text.to_ascii_lowercase();
    if lower.contains("u&\"") {
        return denied("names with escapes are not permitted".to_owned());
    }
    match names_in(&lower).find(|name| is_refused(name)) {
        Some(name) => denied(format!("{name} is not permitted here")),
        None => Ok(()),
    }
}

fn is_refused(name: &str) -> bool {
    NAMES.contains(&name) || FAMILIES.iter().any(|family| name.starts_with(family))
}

/// Everything that could be a name, in quotes, strings and comments too.
fn names_in(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .filter(|name| !name.is_empty())
}

/// Whether a statement is a `COPY`, which no database lets jobs send.
pub(in crate::sql) fn is_copy(text: &str) -> bool {
    leading_words(text, 1) == ["copy"]
}

/// The first words in lower case, after white space, comments and opening parentheses.
fn leading_words(text: &str, count: usize) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = text;
    while words.len() < count {
        rest = after_space(rest);
        let end = rest
            .find(|c: char| !(c.is_ascii_alphabetic() || c == '_'))
            .unwrap_or(rest.len());
        if end == 0 {
            break;
        }
        words.push(rest[..end].to_ascii_lowercase());
        rest = &rest[end..];
    }
    words
}

fn after_space(mut rest: &str) -> &str {
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c', '(', ';']);
        if rest.starts_with("--") {
            let end = rest.find(['\n', '\r']);
            rest = end.map_or("", |end| &rest[end..]);
        } else if rest.starts_with("/*") {
            rest = after_comment(rest);
        } else {
            return rest;
        }
    }
}

/// Comments lie in each other, as the server has it.
fn after_comment(text: &str) -> &str {
    let (mut depth, mut at) = (0_usize, 0);
    let bytes = text.as_bytes();
    while at < bytes.len() {
        match &bytes[at..(at + 2).min(bytes.len())] {
            b"/*" => {
                depth += 1;
                at += 2;
            }
            b"*/" => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return &text[at..];
                }
            }
            _ => at += 1,
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_only_connection_takes_what_reads() {
        for text in [
            "SELECT 1",
            " \n-- hello\n/* a /* b */ c */ (select 1)",
            "with x as (select 1) table x",
            "VALUES (1)",
            "TABLE t",
            "SHOW server_version",
            "EXPLAIN SELECT 1",
            "SELECT 'drop it', \"copy\" FROM t -- do",
            "SELECT reset_config, dbl, lo_price FROM pg_stat_activity",
        ] {
            assert_eq!(check(text, true), Ok(()), "{text}");
        }
        for text in [
            "INSERT INTO t VALUES (1)",
            "SET x = 1",
            "CALL p()",
            "VACUUM",
            "MERGE INTO t",
            "EXECUTE x",
        ] {
            let failure = check(text, true).expect_err(text);
            assert_eq!(failure.code, ErrorCode::PermissionDenied, "{text}");
        }
        assert!(check("-- nothing", true).is_err() && check("/* no end SELECT 1", true).is_err());
    }

    #[test]
    fn no_connection_takes_what_reaches_beyond_the_data() {
        for text in [
            "COPY t TO PROGRAM 'sh'",
            "/**/copy t from '/etc/passwd'",
            "COPY (SELECT 1) TO STDOUT",
            "LOAD 'x'",
            "DO $$BEGIN END$$",
            "COMMIT",
            "PREPARE x AS SELECT 1",
            "LISTEN x",
            "NOTIFY x",
            "DISCARD ALL",
            "ALTER SYSTEM SET x = 1",
            "SET ROLE postgres",
            "SET SESSION AUTHORIZATION postgres",
            "set local role x",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE; SELECT dblink('')",
            "SELECT pg_read_file('/etc/passwd')",
            "SELECT PG_READ_BINARY_FILE('x')",
            "SELECT \"pg_read_file\"('x')",
            "SELECT pg_catalog.pg_ls_dir('.')",
            "SELECT pg_ls_logdir()",
            "SELECT lo_import('/etc/passwd')",
            "SELECT lo_create(0)",
            "SELECT pg_create_physical_replication_slot('x', true)",
            "SELECT pg_logical_emit_message(true, 'a', 'b')",
            "SELECT pg_stat_reset()",
            "SELECT pg_switch_wal()",
            "SELECT * FROM dblink_connect('x')",
            "SELECT set_config('role', 'x', false)",
            "SELECT query_to_xml('x', true, true, '')",
            "SELECT U&\"pg_read\\005ffile\"('x')",
            "SELECT rolpassword FROM pg_authid",
            "SELECT passwd FROM pg_shadow",
        ] {
            for read_only in [true, false] {
                let failure = check(text, read_only).expect_err(text);
                assert_eq!(failure.code, ErrorCode::PermissionDenied, "{text}");
            }
        }
    }

    #[test]
    fn a_writable_connection_takes_what_writes() {
        for text in [
            "INSERT INTO t VALUES (1)",
            "CREATE TABLE t(a int)",
            "SET search_path = x",
            "CALL p()",
            "ALTER TABLE t ADD b int",
            "DELETE FROM t",
        ] {
            assert_eq!(check(text, false), Ok(()), "{text}");
        }
    }
}
