use std::path::PathBuf;

use caf_protocol::block::{Block, BlockContext, RunMode};
use caf_protocol::limit::{Operation, RanOut};
use caf_protocol::secret::vault::Vault;
use serde_json::Map;
use uuid::Uuid;

use super::*;
use crate::settings::{SqlConnectionSettings, SqlSettings};
use crate::sql::SqlQuery;
use crate::tests::{context, context_for, inputs, run as run_task};

fn query_with(settings: &SqlSettings, context: BlockContext, given: Value) -> Result<Outputs, Failure> {
    let block = SqlQuery::new(settings, Vault::default()).expect("builds");
    run_task(block.prepare(inputs(given))?, context)
}

fn query(given: Value) -> Result<Outputs, Failure> {
    query_with(&SqlSettings::default(), context(), given)
}

fn rows(given: Value) -> Value {
    query(given.clone()).unwrap_or_else(|failure| panic!("{given}: {failure:?}"))["rows"].clone()
}

/// A database file of the test's own, with table `t(a)` and one row, and connections `ro` and `rw` to it.
struct File {
    path: PathBuf,
    settings: SqlSettings,
}

impl File {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("caf-blocks-{}.db", Uuid::new_v4().simple()));
        let connection = Connection::open(&path).expect("opens");
        connection
            .execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1)")
            .expect("writes");
        let read_only = SqlConnectionSettings::new(format!("sqlite://{}", path.display()));
        let mut writable = read_only.clone();
        writable.read_only = false;
        let mut settings = SqlSettings::default();
        settings.connections.insert("ro".to_owned(), read_only);
        settings.connections.insert("rw".to_owned(), writable);
        Self { path, settings }
    }

    fn query(&self, connection: &str, text: &str) -> Result<Outputs, Failure> {
        query_with(
            &self.settings,
            context(),
            json!({"connection": connection, "query": text}),
        )
    }

    fn count(&self) -> Value {
        self.query("ro", "SELECT count(*) AS n FROM t").expect("reads")["rows"][0]["n"].clone()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn values_keep_their_types_and_nulls_are_kept() {
    let given = json!({"query": "SELECT 1 AS i, 1.5 AS f, 'x' AS t, x'ff00' AS b, NULL AS n, 9e999 AS inf, 9223372036854775807 AS big"});
    let expected = json!([{
        "i": 1, "f": 1.5, "t": "x", "b": "/wA=", "n": null, "inf": "Infinity", "big": i64::MAX,
    }]);
    let outputs = query(given).expect("succeeds");
    assert_eq!(outputs["rows"], expected);
    assert_eq!(outputs["columns"], json!(["i", "f", "t", "b", "n", "inf", "big"]));
    assert_eq!(outputs["row_count"], json!(1));
    assert!(!outputs.contains_key("affected_rows"));
}

#[test]
fn parameters_are_bound_by_position_and_never_become_text_of_the_query() {
    let evil = "'; DROP TABLE t; --";
    let params = json!([null, true, 5, 2.5, evil, {"a": [1]}]);
    let text = "SELECT ?1 AS a, ? AS b, ? AS c, ? AS d, ? AS e, ? AS f";
    let expected = json!([{"a": null, "b": 1, "c": 5, "d": 2.5, "e": evil, "f": "{\"a\":[1]}"}]);
    assert_eq!(rows(json!({"query": text, "params": params})), expected);
    assert_eq!(
        rows(json!({"sql": text, "parameters": params.to_string()})),
        expected
    );
}

#[test]
fn parameters_that_do_not_fit_are_refused_by_name() {
    for (params, field) in [
        (json!([]), "params"),
        (json!([1, 2]), "params"),
        (json!([u64::MAX]), "params[0]"),
    ] {
        let failure = query(json!({"query": "SELECT ?", "params": params})).expect_err("does not fit");
        assert_eq!(
            (failure.code, failure.details["field"].as_str()),
            (ErrorCode::InvalidInput, Some(field)),
            "{params}"
        );
    }
    for params in [json!("nonsense"), json!({"a": 1}), json!(5)] {
        let failure = query(json!({"query": "SELECT ?", "params": params})).expect_err("is no array");
        assert_eq!(failure.code, ErrorCode::InvalidFormat, "{params}");
    }
}

#[test]
fn a_job_without_connection_has_a_writable_database_of_its_own() {
    let text =
        "CREATE TABLE t(a); INSERT INTO t VALUES (1), (2); SELECT a FROM t WHERE a >= ? ORDER BY a -- done";
    for connection in [
        json!(null),
        json!(":memory:"),
        json!("sqlite://:memory:"),
        json!("sqlite::memory:"),
    ] {
        let given = json!({"query": text, "params": [1], "connection": connection});
        assert_eq!(rows(given), json!([{"a": 1}, {"a": 2}]), "{connection}");
    }
    let failure = query(json!({"query": "SELECT * FROM t"})).expect_err("the next job starts afresh");
    assert_eq!(failure.code, ErrorCode::ExecutionFailed);
    assert!(
        failure.message.contains("no such table: t"),
        "{}",
        failure.message
    );
}

#[test]
fn of_several_statements_the_last_one_has_parameters_and_answer() {
    let outputs = query(
        json!({"query": "CREATE TABLE t(a); SELECT 1; INSERT INTO t VALUES (?), (?);", "params": [1, 2]}),
    );
    assert_eq!(
        Value::Object(outputs.expect("succeeds")),
        json!({"rows": [], "row_count": 0, "columns": [], "affected_rows": 2})
    );
    for (text, params) in [
        (
            "CREATE TABLE t(a); INSERT INTO t VALUES (?); SELECT 1",
            json!([1]),
        ),
        ("SELECT ?; SELECT ?", json!([1])),
        ("SELECT 1; SELECT 2", json!([1])),
    ] {
        let failure = query(json!({"query": text, "params": params})).expect_err(text);
        assert_eq!(failure.code, ErrorCode::InvalidInput, "{text}");
    }
}

#[test]
fn affected_rows_are_those_of_the_statement() {
    for (text, affected) in [
        ("CREATE TABLE t(a)", 0),
        (
            "CREATE TABLE t(a); INSERT INTO t VALUES (1), (2), (3); UPDATE t SET a = 0 WHERE a > 1",
            2,
        ),
        (
            "CREATE TABLE t(a); INSERT INTO t VALUES (1), (2), (3); DELETE FROM t",
            3,
        ),
        (
            "CREATE TABLE t(a); INSERT INTO t VALUES (1); CREATE TABLE u(a)",
            0,
        ),
    ] {
        assert_eq!(
            query(json!({"query": text})).expect(text)["affected_rows"],
            json!(affected),
            "{text}"
        );
    }
}

#[test]
fn columns_with_the_same_name_are_all_there() {
    let outputs = query(json!({"query": "SELECT 1 AS a, 2 AS a, 3 AS b"})).expect("succeeds");
    assert_eq!(outputs["rows"], json!([{"a": 1, "a_2": 2, "b": 3}]));
    assert_eq!(outputs["columns"], json!(["a", "a_2", "b"]));
}

#[test]
fn bad_queries_fail_with_the_databases_words() {
    for (given, code) in [
        (json!({}), ErrorCode::MissingRequiredField),
        (json!({"query": " "}), ErrorCode::InvalidInput),
        (json!({"query": "-- nothing"}), ErrorCode::InvalidInput),
        (json!({"query": ";;"}), ErrorCode::InvalidInput),
        (json!({"query": "SELECT 1\u{0}"}), ErrorCode::InvalidInput),
        (json!({"query": 5}), ErrorCode::InvalidFormat),
        (json!({"query": "SELEC 1"}), ErrorCode::ExecutionFailed),
        (json!({"query": "SELECT * FROM none"}), ErrorCode::ExecutionFailed),
        (
            json!({"query": "CREATE TABLE t(a UNIQUE); INSERT INTO t VALUES (1), (1)"}),
            ErrorCode::ExecutionFailed,
        ),
    ] {
        assert_eq!(query(given.clone()).expect_err("fails").code, code, "{given}");
    }
    let failure = query(json!({"query": "SELECT hunter2 FROM none"})).expect_err("fails");
    assert!(
        failure.message.contains("no such table: none") && !failure.message.contains("hunter2"),
        "{}",
        failure.message
    );
}

#[test]
fn an_answer_over_a_limit_fails_and_is_not_cut_off() {
    let mut settings = SqlSettings::default();
    settings.memory.max_rows = 3;
    settings.memory.max_bytes = 1_000;
    let numbers = |n: u32| {
        format!(
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < {n}) SELECT x FROM c"
        )
    };
    let ask = |text: String| query_with(&settings, context(), json!({"query": text}));
    assert_eq!(ask(numbers(3)).expect("fits")["row_count"], json!(3));
    let failure = ask(numbers(4)).expect_err("has too many rows");
    assert_eq!(
        (failure.code, &failure.details["limit_rows"]),
        (ErrorCode::ResourceUnavailable, &json!(3))
    );
    let failure = ask("SELECT printf('%2000s', 'x')".to_owned()).expect_err("is too large");
    assert_eq!(
        (failure.code, &failure.details["limit_bytes"]),
        (ErrorCode::ResourceUnavailable, &json!(1_000))
    );
}

#[test]
fn temporary_tables_and_sorters_end_the_job_before_they_fill_memory_or_disk() {
    let n = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)";
    for text in [
        format!("CREATE TEMP TABLE x AS {n} SELECT randomblob(10000) AS r FROM n"),
        format!("{n} SELECT randomblob(10000) AS r FROM n ORDER BY r"),
    ] {
        let failure =
            query_with(&SqlSettings::default(), context(), json!({"query": text})).expect_err(&text);
        assert_eq!(
            failure.code,
            ErrorCode::ResourceUnavailable,
            "{text}: {failure:?}"
        );
    }
}

#[test]
fn a_database_in_memory_cannot_grow_without_end() {
    let mut settings = SqlSettings::default();
    settings.memory.max_database_bytes = 1 << 20;
    let fill = "CREATE TABLE t(a); INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT randomblob(10000) FROM c";
    for text in [
        fill.to_owned(),
        format!("PRAGMA max_page_count = 1000000; {fill}"),
        "SELECT zeroblob(1000000000)".to_owned(),
    ] {
        let failure = query_with(&settings, context(), json!({"query": text})).expect_err(&text);
        assert!(
            matches!(
                failure.code,
                ErrorCode::ResourceUnavailable | ErrorCode::PermissionDenied
            ),
            "{text}: {failure:?}"
        );
    }
}

#[test]
fn a_query_without_end_is_stopped_by_limit_deadline_and_cancelling() {
    let endless = json!({"query": "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT sum(x) FROM c"});
    let mut settings = SqlSettings::default();
    settings.memory.statement_timeout_ms = 50;
    let failure = query_with(&settings, context(), endless.clone()).expect_err("runs out");
    assert_eq!(failure.message, "statement limit has passed");
    assert!(failure.total_limit);
    assert!(
        matches!(failure.ran_out.as_deref(), Some(RanOut::Limit { limit, .. }) if limit.operation == Operation::SqlStatement),
        "{failure:?}"
    );

    let failure = query_with(
        &SqlSettings::default(),
        context_for(Duration::from_millis(50)),
        endless.clone(),
    );
    assert_eq!(failure.expect_err("runs out"), Failure::deadline());

    let context = context();
    let cancel = context.cancel.clone();
    let canceller = std::thread::spawn(move || {
        let until = std::time::Instant::now() + Duration::from_millis(50);
        while std::time::Instant::now() < until {
            std::thread::yield_now();
        }
        cancel.cancel();
    });
    let failure = query_with(&SqlSettings::default(), context, endless).expect_err("is cancelled");
    assert_eq!(failure.code, ErrorCode::CancelledByUser);
    canceller.join().expect("ends");
}

#[test]
fn at_the_deadline_a_write_is_undone_and_its_lock_is_gone() {
    let file = File::new();
    let endless = json!({
        "connection": "rw",
        "query": "INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c",
    });
    let begin = std::time::Instant::now();
    let failure = query_with(&file.settings, context_for(Duration::from_millis(200)), endless);
    assert_eq!(failure.expect_err("runs out"), Failure::deadline());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(file.count(), json!(1));
    for left in ["-journal", "-wal", "-shm"] {
        let path = format!("{}{left}", file.path.display());
        assert!(!std::path::Path::new(&path).exists(), "{path}");
    }
    let holder = Connection::open(&file.path).expect("opens");
    holder
        .execute_batch("BEGIN EXCLUSIVE; ROLLBACK")
        .expect("nobody else holds a lock");
}

#[test]
fn other_files_are_out_of_reach() {
    let file = File::new();
    let path = file.path.display();
    for text in [
        format!("ATTACH '{path}' AS x"),
        format!("ATTACH '{path}' AS x; SELECT * FROM x.t"),
        format!("VACUUM INTO '{path}.copy'"),
        "SELECT load_extension('x')".to_owned(),
        "PRAGMA database_list".to_owned(),
        "SELECT * FROM pragma_database_list".to_owned(),
        "PRAGMA temp_store_directory = '/'".to_owned(),
        "PRAGMA journal_mode = OFF".to_owned(),
        "PRAGMA writable_schema = ON".to_owned(),
        "PRAGMA max_page_count = 1073741823".to_owned(),
        "SELECT readfile('/etc/passwd')".to_owned(),
        "COPY t TO PROGRAM 'id'".to_owned(),
        "/**/ copy t from '/etc/passwd'".to_owned(),
    ] {
        for connection in [":memory:", "ro", "rw"] {
            let result = file.query(connection, &text);
            let failure = result.expect_err(&text);
            if !text.contains("readfile") {
                assert_eq!(
                    failure.code,
                    ErrorCode::PermissionDenied,
                    "{connection}: {text}: {failure:?}"
                );
            }
        }
    }
    assert!(!PathBuf::from(format!("{path}.copy")).exists());
    assert!(query(json!({"query": "CREATE TABLE t(a); SELECT name FROM pragma_table_info('t')"})).is_ok());
}

#[test]
fn a_read_only_connection_reads_and_does_not_write() {
    let file = File::new();
    assert_eq!(file.count(), json!(1));
    for text in [
        "INSERT INTO t VALUES (2)",
        "DELETE FROM t",
        "CREATE TABLE u(a)",
        "DROP TABLE t",
        "PRAGMA query_only = OFF",
        "PRAGMA user_version = 5",
    ] {
        let failure = file.query("ro", text).expect_err(text);
        assert_eq!(failure.code, ErrorCode::PermissionDenied, "{text}: {failure:?}");
    }
    assert_eq!(file.count(), json!(1));
}

#[test]
fn a_writable_connection_keeps_what_was_written() {
    let file = File::new();
    let outputs = file.query("rw", "INSERT INTO t VALUES (2)").expect("writes");
    assert_eq!(outputs["affected_rows"], json!(1));
    assert_eq!(file.count(), json!(2));
    let returned = file
        .query("rw", "INSERT INTO t VALUES (3) RETURNING a")
        .expect("writes");
    assert_eq!(returned["rows"], json!([{"a": 3}]));
    assert_eq!(file.count(), json!(3));
}

#[test]
fn a_named_connection_takes_one_statement() {
    let file = File::new();
    for text in [
        "SELECT 1; SELECT 2",
        "DELETE FROM t; nonsense",
        "INSERT INTO t VALUES (5); INSERT INTO t VALUES (6)",
    ] {
        let failure = file.query("rw", text).expect_err(text);
        assert_eq!(failure.code, ErrorCode::InvalidInput, "{text}");
    }
    assert_eq!(file.count(), json!(1));
    assert!(file.query("rw", "SELECT 1; -- that is all").is_ok());
}

#[test]
fn a_locked_database_can_be_tried_again() {
    let file = File::new();
    let holder = Connection::open(&file.path).expect("opens");
    holder.execute_batch("BEGIN EXCLUSIVE").expect("locks");
    let given = json!({"connection": "rw", "query": "INSERT INTO t VALUES (2)"});
    let mut settings = file.settings.clone();
    settings
        .connections
        .get_mut("rw")
        .expect("is there")
        .statement_timeout_ms = 50;
    let failure = query_with(&settings, context(), given).expect_err("is locked");
    assert_eq!(failure.code, ErrorCode::ResourceUnavailable, "{failure:?}");
}

#[test]
fn connections_are_named_or_refused() {
    let file = File::new();
    let path = file.path.display().to_string();
    let failure = file.query("other", "SELECT 1").expect_err("is not configured");
    assert_eq!(failure.code, ErrorCode::InvalidInput);
    assert!(!failure.message.contains(&path), "{}", failure.message);
    for inline in [
        format!("sqlite://{path}"),
        path.clone(),
        "postgres://h/db".to_owned(),
        "file:x".to_owned(),
        "host=h".to_owned(),
    ] {
        let failure = file.query(&inline, "SELECT 1").expect_err(&inline);
        assert_eq!(failure.code, ErrorCode::PermissionDenied, "{inline}");
    }

    let mut settings = file.settings.clone();
    settings.allow_inline = true;
    let ask = |connection: &str, text: &str| {
        query_with(
            &settings,
            context(),
            json!({"connection_string": connection, "query": text}),
        )
    };
    let inline = format!("sqlite://{path}");
    assert_eq!(
        ask(&inline, "SELECT a FROM t").expect("is allowed")["rows"],
        json!([{"a": 1}])
    );
    assert_eq!(
        ask(&inline, "DELETE FROM t").expect_err("is read-only").code,
        ErrorCode::PermissionDenied
    );
    assert_eq!(
        ask("mysql://h/db", "SELECT 1").expect_err("is unknown").code,
        ErrorCode::InvalidInput
    );
}

#[test]
fn a_database_that_cannot_be_opened_does_not_tell_where_it_is() {
    let mut settings = SqlSettings::default();
    settings.connections.insert(
        "x".to_owned(),
        SqlConnectionSettings::new("sqlite:///no/such/file.db"),
    );
    let failure = query_with(
        &settings,
        context(),
        json!({"connection": "x", "query": "SELECT 1"}),
    )
    .expect_err("fails");
    assert_eq!(failure.code, ErrorCode::ExecutionFailed);
    assert!(
        !failure.message.contains("/no/such") && failure.details == Map::new(),
        "{failure:?}"
    );
}

#[test]
fn sqlite_asks_for_a_thread_and_postgres_does_not() {
    let mut settings = SqlSettings::default();
    settings.connections.insert(
        "pg".to_owned(),
        SqlConnectionSettings::new("postgres://127.0.0.1/x"),
    );
    let block = SqlQuery::new(&settings, Vault::default()).expect("builds");
    for (connection, mode) in [(":memory:", RunMode::Thread), ("pg", RunMode::Async)] {
        let task = block
            .prepare(inputs(json!({"connection": connection, "query": "SELECT 1"})))
            .expect("is accepted");
        assert_eq!(task.mode(), mode, "{connection}");
    }
}

#[test]
fn statements_that_only_mean_harm_end_soon_and_within_memory() {
    let deep = format!("SELECT {}1{}", "(".repeat(5_000), ")".repeat(5_000));
    let nested = format!("SELECT {}1", "-(".repeat(2_000));
    let joined = format!("SELECT 1 FROM {}", vec!["(SELECT 1)"; 100].join(","));
    let wide = format!("SELECT {}", vec!["randomblob(3000000)"; 60].join(", "));
    let long_pattern = format!("SELECT 'a' LIKE '{}'", "%a".repeat(10_000));
    for text in [
        "SELECT randomblob(1000000000)",
        "SELECT zeroblob(2000000000)",
        "SELECT printf('%.*c', 1000000000, 'x')",
        "SELECT hex(zeroblob(100000000))",
        "SELECT replace(hex(zeroblob(4000000)), '0', hex(zeroblob(4000000)))",
        "WITH RECURSIVE x(a) AS (SELECT 'x' UNION ALL SELECT a || a FROM x) SELECT length(a) FROM x",
        "SELECT load_extension('/tmp/x.so')",
        "SELECT writefile('/tmp/x', 'x')",
        "SELECT edit('x')",
        "CREATE VIRTUAL TABLE t USING csv(filename='/etc/passwd')",
        "CREATE TABLE t(a); CREATE TRIGGER r AFTER INSERT ON t BEGIN INSERT INTO t VALUES (1); END; \
         PRAGMA recursive_triggers = ON; INSERT INTO t VALUES (1)",
        deep.as_str(),
        nested.as_str(),
        joined.as_str(),
        wide.as_str(),
        long_pattern.as_str(),
    ] {
        let context = context_for(Duration::from_secs(20));
        let shown: String = text.chars().take(60).collect();
        let failure = query_with(&SqlSettings::default(), context, json!({"query": text})).expect_err(&shown);
        assert_ne!(failure, Failure::deadline(), "{shown}");
    }
}

#[test]
fn a_read_only_connection_is_refused_what_writes_before_it_runs() {
    let file = File::new();
    for text in [
        "CREATE TEMP TABLE x(a)",
        "CREATE VIEW v AS SELECT 1",
        "ANALYZE",
        "BEGIN IMMEDIATE",
        "SAVEPOINT s",
        "ALTER TABLE t ADD b",
        "VACUUM",
        "UPDATE t SET a = 2",
    ] {
        let failure = file.query("ro", text).expect_err(text);
        assert_eq!(failure.code, ErrorCode::PermissionDenied, "{text}: {failure:?}");
    }
    assert!(
        file.query(
            "ro",
            "WITH x AS (SELECT a FROM t) SELECT count(*) FROM x, json_each('[1]')"
        )
        .is_ok()
    );
}

#[test]
fn long_texts_are_searched_in_one_pass_with_the_same_results_as_ever() {
    let long = "WITH x(a) AS (SELECT hex(zeroblob(1000000))) ";
    // Built in, each of these takes from minutes to hours, and nothing interrupts it.
    for (expression, expected) in [
        ("instr(a, substr(a, 1, 1000000) || '1')", json!(0)),
        (
            "length(replace(a, substr(a, 1, 1000000) || '1', 'x'))",
            json!(2_000_000),
        ),
        (
            "length(trim(a, replace(substr(a, 1, 500000), '0', 'b') || '0'))",
            json!(0),
        ),
        ("a LIKE '%' || substr(a, 1, 150) || '1'", json!(0)),
    ] {
        let text = format!("{long} SELECT {expression} AS v FROM x");
        let given = json!({"query": text});
        let outputs = query_with(
            &SqlSettings::default(),
            context_for(Duration::from_secs(20)),
            given,
        );
        assert_eq!(
            outputs.expect(expression)["rows"][0]["v"],
            expected,
            "{expression}"
        );
    }
    for (expression, expected) in [
        ("instr('grüße', 'ß')", json!(4)),
        ("instr('abc', '')", json!(1)),
        ("instr('abc', 'x')", json!(0)),
        ("instr(x'00ff01', x'01')", json!(3)),
        ("instr(NULL, 'a')", json!(null)),
        ("instr(12345, 34)", json!(3)),
        ("replace('aXbX', 'X', 'yy')", json!("ayybyy")),
        ("replace('abc', '', 'x')", json!("abc")),
        ("replace('abc', 'b', NULL)", json!(null)),
        ("replace(1231, 1, 9)", json!("9239")),
        ("trim('xyaxy', 'xy')", json!("a")),
        ("ltrim('xxa', 'x') || rtrim('axx', 'x')", json!("aa")),
        ("trim('  a ')", json!("a")),
        ("trim('a', NULL)", json!(null)),
    ] {
        assert_eq!(
            rows(json!({"query": format!("SELECT {expression} AS v")})),
            json!([{"v": expected}]),
            "{expression}"
        );
    }
}

#[test]
fn temporary_tables_have_a_bound_and_functions_that_compare_everything_with_everything_are_refused() {
    let query_text = "CREATE TEMP TABLE h AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40) \
                      SELECT randomblob(1000000) AS b FROM n; SELECT count(*) FROM h";
    let failure = query(json!({"query": query_text})).expect_err("is too much");
    assert_eq!(failure.code, ErrorCode::ResourceUnavailable, "{failure:?}");
    let failure = query(json!({"query": "SELECT json_patch('{}', '{}')"})).expect_err("is refused");
    assert_eq!(failure.code, ErrorCode::PermissionDenied, "{failure:?}");
}
