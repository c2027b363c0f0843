//! `sql.query` against a real PostgreSQL server.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use caf_blocks::settings::{BlockSettings, SqlConnectionSettings};
use caf_blocks::{Extras, OperationLimits, build};
use caf_protocol::block::{BlockContext, CancellationToken, Outputs, Registry, Task};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::ids::Correlation;
use caf_protocol::outcome::Failure;
use caf_testkit::tls::Certificates;
use caf_testkit::{Postgres, PostgresOptions};
use serde_json::{Value, json};
use tokio::time::Instant;

#[path = "postgres/secrets.rs"]
mod secrets;

/// Longest wait for something to happen on the server.
const PATIENCE: Duration = Duration::from_secs(20);

/// Blocks with the connections `ro` and `rw`, after an adjustment of both.
fn blocks(url: &str, adjust: impl Fn(&mut SqlConnectionSettings)) -> Registry {
    let mut settings = BlockSettings::default();
    for (name, read_only) in [("ro", true), ("rw", false)] {
        let mut connection = SqlConnectionSettings::new(url);
        connection.read_only = read_only;
        // The server of the tests has no other role.
        connection.allow_superuser = Some(true);
        adjust(&mut connection);
        settings.sql.connections.insert(name.to_owned(), connection);
    }
    build(&settings, OperationLimits::default(), Extras::default())
        .expect("builds")
        .registry
}

fn context(left: Duration) -> BlockContext {
    BlockContext {
        tenant_id: "acme".to_owned(),
        assignment_id: "a-1".to_owned(),
        correlation: Correlation::default(),
        deadline: Instant::now() + left,
        attempt: 0,
        model_call: Default::default(),
        cancel: CancellationToken::new(),
    }
}

fn prepare(blocks: &Registry, connection: &str, text: &str, params: Value) -> Result<Arc<dyn Task>, Failure> {
    let given = json!({"connection": connection, "query": text, "params": params});
    let inputs = given.as_object().cloned().expect("is an object");
    blocks.get("sql.query").expect("is registered").prepare(inputs)
}

async fn query(blocks: &Registry, connection: &str, text: &str, params: Value) -> Result<Outputs, Failure> {
    prepare(blocks, connection, text, params)?
        .run(context(Duration::from_secs(30)))
        .await
}

async fn row(blocks: &Registry, text: &str, params: Value) -> Value {
    let outputs = query(blocks, "ro", text, params).await;
    outputs.unwrap_or_else(|failure| panic!("{text}: {failure:?}"))["rows"][0].clone()
}

/// Runs a test as the node runs blocks.
fn with_server(test: impl AsyncFnOnce(Postgres)) {
    let server = Postgres::start().expect("starts");
    actix_rt::System::new().block_on(test(server));
}

/// Waits for a query to answer with this value.
async fn until(blocks: &Registry, text: &str, expected: Value) {
    let begin = Instant::now();
    loop {
        let seen = row(blocks, text, json!([])).await["v"].clone();
        if seen == expected {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{text}: still {seen}");
        tokio::task::yield_now().await;
    }
}

const RUNNING: &str = "SELECT count(*) AS v FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(6%' AND pid <> pg_backend_pid()";

#[test]
fn values_of_every_common_type_come_as_json() {
    with_server(async |server| {
        let blocks = blocks(&server.url(), |_| {});
        for (expression, expected) in [
            ("NULL", json!(null)),
            ("true", json!(true)),
            ("(-5)::int2", json!(-5)),
            ("5", json!(5)),
            ("9223372036854775807", json!(i64::MAX)),
            ("4000000000::oid", json!(4_000_000_000_u32)),
            ("0.1::float4", json!(0.1)),
            ("1.5::float8", json!(1.5)),
            ("'NaN'::float8", json!("NaN")),
            ("'-Infinity'::float8", json!("-Infinity")),
            (
                "12345678901234567890.1230::numeric",
                json!("12345678901234567890.1230"),
            ),
            ("-0.00012::numeric", json!("-0.00012")),
            ("10000::numeric", json!("10000")),
            ("0::numeric(10,2)", json!("0.00")),
            ("'NaN'::numeric", json!("NaN")),
            ("1e-20::numeric", json!("0.00000000000000000001")),
            ("'grüß'", json!("grüß")),
            ("'x'::varchar(5)", json!("x")),
            ("'x'::char(3)", json!("x  ")),
            ("'x'::name", json!("x")),
            ("'{\"a\": [1, null]}'::json", json!({"a": [1, null]})),
            ("'{\"a\": [1, null]}'::jsonb", json!({"a": [1, null]})),
            ("'null'::jsonb", json!(null)),
            ("'\\xff00'::bytea", json!("/wA=")),
            (
                "'9f3c1a7b-e24d-40c8-8a61-d2f05b7e934c'::uuid",
                json!("9f3c1a7b-e24d-40c8-8a61-d2f05b7e934c"),
            ),
            ("'2024-02-29'::date", json!("2024-02-29")),
            ("'1969-12-31'::date", json!("1969-12-31")),
            ("'infinity'::date", json!("infinity")),
            ("'12:34:56.7'::time", json!("12:34:56.7")),
            ("'24:00'::time", json!("24:00:00")),
            (
                "'2024-02-29 12:34:56.000001'::timestamp",
                json!("2024-02-29T12:34:56.000001"),
            ),
            (
                "'2024-02-29 12:34:56+02'::timestamptz",
                json!("2024-02-29T10:34:56Z"),
            ),
            ("'infinity'::timestamptz", json!("infinity")),
            (
                "'1 year 2 months 3 days 04:05:06.7'::interval",
                json!("P1Y2M3DT4H5M6.7S"),
            ),
            ("'-1 second'::interval", json!("PT-1S")),
            ("'0'::interval", json!("PT0S")),
            ("ARRAY[1, NULL, 3]", json!([1, null, 3])),
            ("ARRAY[['a','b'],['c','d']]", json!([["a", "b"], ["c", "d"]])),
            ("'{}'::int[]", json!([])),
            ("pg_sleep(0)", json!(null)),
        ] {
            let seen = row(&blocks, &format!("SELECT {expression} AS v"), json!([])).await;
            assert_eq!(seen["v"], expected, "{expression}");
        }
        query(
            &blocks,
            "rw",
            "CREATE TYPE mood AS ENUM ('sad', 'glad')",
            json!([]),
        )
        .await
        .expect("creates");
        query(
            &blocks,
            "rw",
            "CREATE DOMAIN small AS int CHECK (VALUE < 10)",
            json!([]),
        )
        .await
        .expect("creates");
        assert_eq!(
            row(&blocks, "SELECT 'glad'::mood AS v, 5::small AS w", json!([])).await,
            json!({"v": "glad", "w": 5})
        );
        assert_eq!(
            row(&blocks, "SELECT $1::mood AS v", json!(["sad"])).await["v"],
            json!("sad")
        );

        let failure = query(&blocks, "ro", "SELECT '10.0.0.1'::inet AS v", json!([]))
            .await
            .expect_err("is unknown");
        assert_eq!(failure.code, ErrorCode::ExecutionFailed);
        assert!(
            failure.message.contains("column v has the type inet"),
            "{}",
            failure.message
        );
        assert_eq!(
            row(&blocks, "SELECT '10.0.0.1'::inet::text AS v", json!([])).await["v"],
            json!("10.0.0.1/32")
        );
    });
}

#[test]
fn parameters_are_bound_as_the_type_that_the_statement_expects() {
    with_server(async |server| {
        let blocks = blocks(&server.url(), |_| {});
        for (ty, given, expected) in [
            ("bool", json!(true), json!(true)),
            ("bool", json!("false"), json!(false)),
            ("int2", json!(5), json!(5)),
            ("int4", json!("5"), json!(5)),
            ("int8", json!(i64::MIN), json!(i64::MIN)),
            ("float8", json!(1.5), json!(1.5)),
            ("float4", json!("2.5"), json!(2.5)),
            (
                "numeric",
                json!("12345678901234567890.5"),
                json!("12345678901234567890.5"),
            ),
            ("numeric", json!(1.25), json!("1.25")),
            ("text", json!("'; DROP TABLE t; --"), json!("'; DROP TABLE t; --")),
            ("text", json!({"a": 1}), json!("{\"a\":1}")),
            ("varchar", json!(5), json!("5")),
            ("json", json!({"a": [1]}), json!({"a": [1]})),
            ("jsonb", json!("{\"a\":1}"), json!({"a": 1})),
            ("jsonb", json!("plain"), json!("plain")),
            ("bytea", json!("/wA="), json!("/wA=")),
            (
                "uuid",
                json!("9f3c1a7b-e24d-40c8-8a61-d2f05b7e934c"),
                json!("9f3c1a7b-e24d-40c8-8a61-d2f05b7e934c"),
            ),
            (
                "timestamptz",
                json!("2024-02-29T12:00:00Z"),
                json!("2024-02-29T12:00:00Z"),
            ),
            (
                "timestamp",
                json!("2024-02-29T12:00:00"),
                json!("2024-02-29T12:00:00"),
            ),
            ("date", json!("2024-02-29"), json!("2024-02-29")),
            ("interval", json!("1 day"), json!("P1D")),
            ("int4[]", json!([1, null, 3]), json!([1, null, 3])),
            ("text[]", json!(["a\"b", "c,d", ""]), json!(["a\"b", "c,d", ""])),
            ("jsonb[]", json!([{"a": [1]}]), json!([{"a": [1]}])),
            ("int4", json!(null), json!(null)),
        ] {
            let text = format!("SELECT $1::{ty} AS v");
            assert_eq!(
                row(&blocks, &text, json!([given])).await["v"],
                expected,
                "{ty} {given}"
            );
        }
    });
}

#[test]
fn parameters_that_do_not_fit_are_refused_by_position_and_type() {
    with_server(async |server| {
        let blocks = blocks(&server.url(), |_| {});
        for (text, params, field, ty) in [
            ("SELECT $1::int4", json!(["x"]), "params[0]", "int4"),
            (
                "SELECT $1::text, $2::uuid",
                json!(["a", "b"]),
                "params[1]",
                "uuid",
            ),
            (
                "SELECT $1::text, $2::date",
                json!(["a", "2024-13-01"]),
                "params[1]",
                "date",
            ),
            (
                "SELECT $1::timestamptz",
                json!(["soon"]),
                "params[0]",
                "timestamp",
            ),
            ("SELECT $1::int4[]", json!(["{1,x}"]), "params[0]", "integer"),
            ("SELECT $1::int4", json!([]), "params", ""),
            ("SELECT $1::int4", json!([1, 2]), "params", ""),
            ("SELECT 1", json!([1]), "params", ""),
        ] {
            let failure = query(&blocks, "ro", text, params.clone()).await.expect_err(text);
            assert_eq!(
                failure.code,
                ErrorCode::InvalidInput,
                "{text} {params}: {failure:?}"
            );
            assert_eq!(failure.details["field"], json!(field), "{text} {params}");
            assert!(
                failure.message.contains(ty),
                "{text} {params}: {}",
                failure.message
            );
        }
        // A refusal leaves the connection usable.
        assert_eq!(row(&blocks, "SELECT 1 AS v", json!([])).await["v"], json!(1));
    });
}

#[test]
fn a_connection_is_read_only_unless_the_settings_say_otherwise() {
    with_server(async |server| {
        let blocks = blocks(&server.url(), |_| {});
        let made = query(&blocks, "rw", "CREATE TABLE t(a int)", json!([]))
            .await
            .expect("creates");
        assert_eq!(
            Value::Object(made),
            json!({"rows": [], "row_count": 0, "columns": [], "affected_rows": 0})
        );
        let written = query(&blocks, "rw", "INSERT INTO t VALUES ($1), ($2)", json!([1, 2]))
            .await
            .expect("writes");
        assert_eq!(written["affected_rows"], json!(2));
        let returned = query(&blocks, "rw", "UPDATE t SET a = a + 1 RETURNING a", json!([]))
            .await
            .expect("writes");
        assert_eq!(returned["rows"], json!([{"a": 2}, {"a": 3}]));

        for text in [
            "INSERT INTO t VALUES (9)",
            "DELETE FROM t",
            "DROP TABLE t",
            "CREATE TABLE u(a int)",
            "WITH x AS (INSERT INTO t VALUES (9) RETURNING a) SELECT * FROM x",
        ] {
            let failure = query(&blocks, "ro", text, json!([])).await.expect_err(text);
            assert_eq!(failure.code, ErrorCode::PermissionDenied, "{text}: {failure:?}");
        }
        for text in [
            "DO $$ BEGIN INSERT INTO t VALUES (9); END $$",
            "DO $$ BEGIN SET TRANSACTION READ WRITE; INSERT INTO t VALUES (9); END $$",
            "DO $$ BEGIN COMMIT; INSERT INTO t VALUES (9); END $$",
            "SET TRANSACTION READ WRITE",
        ] {
            assert!(query(&blocks, "ro", text, json!([])).await.is_err(), "{text}");
        }
        // Ways to leave the transaction, or to change the session: the next job must not notice.
        for text in [
            "COMMIT",
            "ROLLBACK",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
            "SET statement_timeout = 1",
        ] {
            let _ = query(&blocks, "ro", text, json!([])).await;
            let failure = query(&blocks, "ro", "INSERT INTO t VALUES (9)", json!([]))
                .await
                .expect_err(text);
            assert_eq!(failure.code, ErrorCode::PermissionDenied, "{text}: {failure:?}");
        }
        assert_eq!(
            row(&blocks, "SELECT count(*) AS v FROM t", json!([])).await["v"],
            json!(2)
        );
    });
}

#[test]
fn what_a_job_sets_on_its_connection_does_not_reach_the_next_job() {
    with_server(async |server| {
        let blocks = blocks(&server.url(), |connection| connection.pool_size = 1);
        query(&blocks, "rw", "SET search_path = elsewhere", json!([]))
            .await
            .expect("sets");
        query(&blocks, "rw", "CREATE TEMP TABLE leftover(a int)", json!([]))
            .await
            .expect("creates");
        let text = "SELECT current_setting('search_path') AS path, to_regclass('pg_temp.leftover')::text AS leftover";
        let seen = query(&blocks, "rw", text, json!([])).await.expect("reads")["rows"][0].clone();
        assert_eq!(seen, json!({"path": "\"$user\", public", "leftover": null}));
    });
}

#[test]
fn a_failed_statement_writes_nothing_and_only_one_statement_is_taken() {
    with_server(async |server| {
        let blocks = blocks(&server.url(), |connection| connection.max_rows = 2);
        query(&blocks, "rw", "CREATE TABLE t(a int UNIQUE)", json!([]))
            .await
            .expect("creates");
        for (text, code) in [
            ("INSERT INTO t VALUES (1), (1)", ErrorCode::ExecutionFailed),
            (
                "INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)",
                ErrorCode::ExecutionFailed,
            ),
            (
                "INSERT INTO t VALUES (1), (2), (3) RETURNING a",
                ErrorCode::ResourceUnavailable,
            ),
            ("SELECT * FROM none", ErrorCode::ExecutionFailed),
            ("SELEC 1", ErrorCode::ExecutionFailed),
            ("SELECT 1/0", ErrorCode::ExecutionFailed),
            ("COPY t TO STDOUT", ErrorCode::PermissionDenied),
            ("COPY t FROM STDIN", ErrorCode::PermissionDenied),
        ] {
            let failure = query(&blocks, "rw", text, json!([])).await.expect_err(text);
            assert_eq!(failure.code, code, "{text}: {failure:?}");
        }
        let failure = query(&blocks, "ro", "SELECT * FROM none", json!([]))
            .await
            .expect_err("fails");
        assert_eq!(failure.details["sqlstate"], json!("42P01"));
        assert!(
            failure.message.contains("relation \"none\" does not exist"),
            "{}",
            failure.message
        );
        assert_eq!(
            row(&blocks, "SELECT count(*) AS v FROM t", json!([])).await["v"],
            json!(0)
        );
    });
}

#[test]
fn an_answer_over_a_limit_fails_and_is_not_cut_off() {
    with_server(async |server| {
        let blocks = blocks(&server.url(), |connection| {
            connection.max_rows = 1_000;
            connection.max_bytes = 100_000;
        });
        let series = |n: u32| format!("SELECT g AS v FROM generate_series(1, {n}) g");
        let fits = query(&blocks, "ro", &series(1_000), json!([]))
            .await
            .expect("fits");
        assert_eq!(fits["row_count"], json!(1_000));
        for (text, key) in [
            (series(1_001), "limit_rows"),
            (series(100_000_000), "limit_rows"),
            ("SELECT repeat('x', 200000) AS v".to_owned(), "limit_bytes"),
        ] {
            let failure = query(&blocks, "ro", &text, json!([])).await.expect_err(&text);
            assert_eq!(failure.code, ErrorCode::ResourceUnavailable, "{text}");
            assert!(failure.details.contains_key(key), "{text}: {failure:?}");
        }
        assert_eq!(row(&blocks, "SELECT 1 AS v", json!([])).await["v"], json!(1));
    });
}

#[test]
fn limit_and_deadline_end_a_statement_as_a_timeout() {
    with_server(async |server| {
        let quick = blocks(&server.url(), |connection| connection.statement_timeout_ms = 100);
        let failure = query(&quick, "ro", "SELECT pg_sleep(60)", json!([]))
            .await
            .expect_err("runs out");
        assert_eq!(
            (failure.message.as_str(), failure.total_limit),
            ("statement limit has passed", true),
            "{failure:?}"
        );

        let patient = blocks(&server.url(), |_| {});
        let task = prepare(&patient, "ro", "SELECT pg_sleep(60)", json!([])).expect("is accepted");
        let failure = task
            .run(context(Duration::from_millis(300)))
            .await
            .expect_err("runs out");
        assert_eq!(
            (failure.code, failure.message.as_str()),
            (ErrorCode::CancelledByTimeout, "deadline has passed")
        );
        until(&patient, RUNNING, json!(0)).await;
    });
}

#[test]
fn the_server_is_told_the_shorter_of_limit_and_what_is_left() {
    with_server(async |server| {
        let blocks = blocks(&server.url(), |connection| {
            connection.statement_timeout_ms = 20_000
        });
        let told = async |left| {
            let text =
                "SELECT extract(epoch FROM current_setting('statement_timeout')::interval)::float8 AS v";
            let task = prepare(&blocks, "ro", text, json!([])).expect("is accepted");
            let outputs = task
                .run(context(Duration::from_secs(left)))
                .await
                .expect("answers");
            outputs["rows"][0]["v"].as_f64().expect("is a number")
        };
        assert_eq!(told(60).await, 20.0, "the limit");
        let left = told(10).await;
        assert!(
            left > 0.0 && left <= 10.0,
            "what is left until the deadline, not {left}"
        );
    });
}

#[test]
fn a_statement_that_is_given_up_does_not_go_on_at_the_server() {
    with_server(async |server| {
        let blocks = blocks(&server.url(), |_| {});
        // Dropped, as when the pipeline ends an attempt.
        let task = prepare(&blocks, "ro", "SELECT pg_sleep(60)", json!([])).expect("is accepted");
        let mut dropped = task.run(context(Duration::from_secs(60)));
        tokio::select! {
            _ = &mut dropped => panic!("cannot end"),
            () = until(&blocks, RUNNING, json!(1)) => {}
        }
        drop(dropped);
        until(&blocks, RUNNING, json!(0)).await;

        // Cancelled.
        let task = prepare(&blocks, "ro", "SELECT pg_sleep(61)", json!([])).expect("is accepted");
        let context = context(Duration::from_secs(60));
        let cancel = context.cancel.clone();
        let (ended, ()) = tokio::join!(task.run(context), async {
            until(&blocks, RUNNING, json!(1)).await;
            cancel.cancel();
        });
        assert_eq!(ended.expect_err("is cancelled").code, ErrorCode::CancelledByUser);
        until(&blocks, RUNNING, json!(0)).await;
    });
}

#[test]
fn at_the_deadline_neither_statement_nor_connection_stays() {
    with_server(async |server| {
        let observer = blocks(&server.url(), |connection| connection.pool_size = 1);
        let others = "SELECT count(*) AS v FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        query(&observer, "rw", "CREATE TABLE t(a text)", json!([]))
            .await
            .expect("creates");
        let seen = async || row(&observer, others, json!([])).await["v"].clone();
        let before = seen().await;
        // The second one is dropped long before any limit of its own, so that only cancelling can end it.
        for by_drop in [false, true] {
            let blocks = blocks(&server.url(), |_| {});
            let write = "INSERT INTO t SELECT pg_sleep(60)::text";
            let task = prepare(&blocks, "rw", write, json!([])).expect("is accepted");
            let begin = Instant::now();
            if by_drop {
                let running = task.run(context(Duration::from_secs(60)));
                let limit = begin + Duration::from_millis(500);
                assert!(tokio::time::timeout_at(limit, running).await.is_err());
            } else {
                let ended = task.run(context(Duration::from_millis(500))).await;
                assert_eq!(ended.expect_err("runs out").message, "deadline has passed");
            }
            assert!(begin.elapsed() < Duration::from_secs(5));
            until(&observer, RUNNING, json!(0)).await;
            drop(blocks);
            until(&observer, others, before.clone()).await;
        }
        let kept = row(&observer, "SELECT count(*) AS v FROM t", json!([])).await;
        assert_eq!(kept["v"], json!(0));
    });
}

#[test]
fn the_pool_bounds_connections_and_waiting_for_one_is_bounded_too() {
    with_server(async |server| {
        let blocks = blocks(&server.url(), |connection| {
            connection.pool_size = 1;
            connection.connect_timeout_ms = 200;
        });
        let first = query(&blocks, "ro", "SELECT pg_sleep(1)", json!([]));
        let second = query(&blocks, "ro", "SELECT 1", json!([]));
        let (first, second) = tokio::join!(biased; first, second);
        first.expect("has the connection");
        let failure = second.expect_err("has to wait too long");
        assert!(
            matches!(
                failure.code,
                ErrorCode::ResourceUnavailable | ErrorCode::ConnectionTimeout
            ),
            "{failure:?}"
        );
    });
}

#[test]
fn a_lost_connection_is_a_network_error_and_is_replaced() {
    with_server(async |server| {
        let blocks = blocks(&server.url(), |connection| connection.pool_size = 1);
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE state = 'active' AND query LIKE '%pg_sleep(6%' AND pid <> pg_backend_pid()";
        let (failure, ()) = tokio::join!(query(&blocks, "ro", "SELECT pg_sleep(60)", json!([])), async {
            while server.execute(end).expect("answers") == "0" {
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(failure.expect_err("is ended").code, ErrorCode::NetworkError);
        assert_eq!(row(&blocks, "SELECT 1 AS v", json!([])).await["v"], json!(1));
        let url = server.url();
        drop(server);
        let failure = query(&blocks, "ro", "SELECT 1", json!([]))
            .await
            .expect_err("nobody is there");
        assert_eq!(failure.code, ErrorCode::NetworkError, "{failure:?}");
        let told = format!("{} {:?}", failure.message, failure.details);
        let port = url
            .rsplit(':')
            .next()
            .expect("has a port")
            .trim_end_matches("/postgres")
            .to_owned();
        assert!(!told.contains("127.0.0.1") && !told.contains(&port), "{told}");
    });
}

#[test]
fn failures_repeat_no_query_no_parameter_and_no_value() {
    with_server(async |server| {
        let blocks = blocks(&server.url(), |_| {});
        for text in [
            "CREATE TABLE kept(a text UNIQUE, b text CHECK (b <> 'hunter2'))",
            "INSERT INTO kept VALUES ('hunter2', 'b')",
            "CREATE TYPE mood AS ENUM ('sad')",
        ] {
            query(&blocks, "rw", text, json!([])).await.expect(text);
        }
        for (text, params) in [
            ("SELECT 'hunter2' FROM none", json!([])),
            ("SELECT 'hunter2' x y z", json!([])),
            ("SELECT 1 'hunter2'", json!([])),
            ("SELECT 'hunter2", json!([])),
            ("SELECT $$hunter2", json!([])),
            ("SELECT 1 /* hunter2 */ SELEC FROM", json!([])),
            ("SELECT 'hunter2'::int", json!([])),
            ("SELECT a::int FROM kept", json!([])),
            ("SELECT a::mood FROM kept", json!([])),
            ("SELECT ('{\"' || a)::json FROM kept", json!([])),
            ("SELECT to_date(a, 'YYYY') FROM kept", json!([])),
            ("SELECT jsonb_path_query('{}', a::jsonpath) FROM kept", json!([])),
            ("SELECT set_config('hunter2', 'hunter2', true)", json!([])),
            ("SELECT $1::date", json!(["hunter2"])),
            ("SELECT $1::int", json!(["hunter2"])),
            ("SELECT $1::int[]", json!(["{hunter2"])),
            ("SELECT $1::mood", json!(["hunter2"])),
            ("SELECT $1::xml", json!(["<hunter2"])),
            ("SELECT $1::text", json!(["hunter2", "hunter2"])),
            ("SELECT '10.0.0.1'::inet AS \"hunter2 x\"", json!([])),
            ("INSERT INTO kept VALUES ($1, 'b')", json!(["hunter2"])),
            ("INSERT INTO kept VALUES ('x', $1)", json!(["hunter2"])),
            ("DO $$ BEGIN RAISE 'hunter2'; END $$", json!([])),
            (
                "DO $$ BEGIN RAISE 'hun%', 'ter2' USING ERRCODE = '42P01'; END $$",
                json!([]),
            ),
        ] {
            let failure = query(&blocks, "rw", text, params).await.expect_err(text);
            let told = format!("{} {:?} {:?}", failure.message, failure.internal, failure.details);
            assert!(!told.contains("hunter2"), "{text}: {told}");
        }
    });
}

/// Whether the connection that answers is encrypted.
async fn encrypted(blocks: &Registry) -> Result<bool, Failure> {
    let text = "SELECT ssl AS v FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let outputs = query(blocks, "ro", text, json!([])).await?;
    Ok(outputs["rows"][0]["v"] == json!(true))
}

#[test]
fn the_mode_decides_whether_a_connection_is_encrypted_and_whom_it_trusts() {
    let certificates = Certificates::generate().expect("generates");
    let known = Some(certificates.authority());
    let stranger = Certificates::generate().expect("generates");
    let unknown = Some(stranger.authority());
    let tls = Some(certificates);
    let server = Postgres::start_with(PostgresOptions { tls }).expect("starts");
    let url = |host: &str, mode: &str| {
        let port = server.port();
        format!("postgres://postgres@{host}:{port}/postgres?hostaddr=127.0.0.1&sslmode={mode}")
    };
    actix_rt::System::new().block_on(async {
        for (host, mode, ca_file, expected) in [
            ("localhost", "disable", &known, Some(false)),
            ("localhost", "prefer", &known, Some(true)),
            ("localhost", "prefer", &unknown, Some(false)),
            ("localhost", "prefer", &None, Some(false)),
            ("other.example", "prefer", &known, Some(false)),
            ("localhost", "require", &known, Some(true)),
            ("127.0.0.1", "require", &known, Some(true)),
            ("localhost", "require", &None, None),
            ("localhost", "require", &unknown, None),
            ("other.example", "require", &known, None),
            ("localhost", "verify-full", &known, Some(true)),
            ("localhost", "verify-full", &unknown, None),
            ("other.example", "verify-full", &known, None),
            ("localhost", "verify-ca", &known, Some(true)),
            ("other.example", "verify-ca", &known, Some(true)),
            ("other.example", "verify-ca", &unknown, None),
        ] {
            let blocks = blocks(&url(host, mode), |connection| {
                connection.ca_file.clone_from(ca_file)
            });
            match encrypted(&blocks).await {
                Ok(seen) => assert_eq!(Some(seen), expected, "{host} {mode} {ca_file:?}"),
                Err(failure) => {
                    assert_eq!(None, expected, "{host} {mode} {ca_file:?}: {failure:?}");
                    assert_eq!(failure.code, ErrorCode::NetworkError);
                    assert!(
                        failure.message.ends_with("the TLS handshake failed"),
                        "{failure:?}"
                    );
                    assert!(!failure.message.contains("example"), "{failure:?}");
                }
            }
        }

        // What is given up is cancelled over an encrypted connection too.
        let blocks = blocks(&url("localhost", "require"), |connection| {
            connection.ca_file.clone_from(&known)
        });
        let task = prepare(&blocks, "ro", "SELECT pg_sleep(60)", json!([])).expect("is accepted");
        let mut dropped = task.run(context(Duration::from_secs(60)));
        tokio::select! {
            _ = &mut dropped => panic!("cannot end"),
            () = until(&blocks, RUNNING, json!(1)) => {}
        }
        drop(dropped);
        until(&blocks, RUNNING, json!(0)).await;
    });
}

#[test]
fn a_server_without_encryption_is_used_only_where_none_is_required() {
    with_server(async |server| {
        for (mode, expected) in [
            ("disable", true),
            ("prefer", true),
            ("require", false),
            ("verify-full", false),
        ] {
            let blocks = blocks(&format!("{}?sslmode={mode}", server.url()), |_| {});
            match encrypted(&blocks).await {
                Ok(seen) => assert_eq!((expected, seen), (true, false), "{mode}"),
                Err(failure) => {
                    assert_eq!(
                        (expected, failure.code),
                        (false, ErrorCode::NetworkError),
                        "{mode}"
                    );
                }
            }
        }
    });
}

#[test]
fn user_and_password_of_the_settings_count_and_are_never_shown() {
    with_server(async |server| {
        let blocks = blocks(&server.url(), |connection| {
            connection.user = Some("nobody_here".to_owned());
            connection.password = Some("hunter2".into());
        });
        let failure = query(&blocks, "ro", "SELECT 1", json!([]))
            .await
            .expect_err("is refused");
        assert_eq!(failure.code, ErrorCode::ExecutionFailed, "{failure:?}");
        let internal = failure.internal.as_deref().expect("says what the log needs");
        assert!(internal.starts_with("SQLSTATE 28000 "), "{internal}");
        let shown = format!("{failure:?}");
        assert!(
            !shown.contains("nobody_here") && !shown.contains("hunter2"),
            "{shown}"
        );
    });
}

#[test]
fn a_server_that_does_not_answer_is_a_timeout_of_one_attempt() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
    let url = format!("postgres://u@{}/db", silent.local_addr().expect("is bound"));
    let blocks = blocks(&url, |connection| connection.connect_timeout_ms = 100);
    let failure = actix_rt::System::new()
        .block_on(query(&blocks, "ro", "SELECT 1", json!([])))
        .expect_err("does not answer");
    assert_eq!(
        (failure.code, failure.total_limit),
        (ErrorCode::ConnectionTimeout, false),
        "{failure:?}"
    );
}

/// The test's role is a superuser, who may do everything: what is refused is refused by the worker.
#[test]
fn a_job_reaches_neither_files_nor_programs_nor_passwords_of_the_server() {
    with_server(async |server| {
        let blocks = blocks(&server.url(), |_| {});
        for text in [
            "COPY (SELECT 1) TO PROGRAM 'touch /tmp/caf-owned'",
            "COPY (SELECT 1) TO '/tmp/caf-owned'",
            "SELECT pg_read_file('/etc/passwd')",
            "SELECT pg_catalog.\"pg_read_binary_file\"('/etc/passwd')",
            "SELECT pg_ls_dir('/')",
            "SELECT lo_import('/etc/passwd')",
            "SELECT query_to_xml('SELECT pg_' || 'read_file(''/etc/passwd'')', true, true, '')",
            "SELECT U&\"pg\\005fread_file\"('/etc/passwd')",
            "SELECT rolpassword FROM pg_authid",
            "SELECT set_config('transaction_read_only', 'off', true)",
            "DO $$ BEGIN PERFORM pg_sleep(0); END $$",
            "ALTER SYSTEM SET log_statement = 'all'",
        ] {
            for connection in ["ro", "rw"] {
                let failure = query(&blocks, connection, text, json!([])).await.expect_err(text);
                assert_eq!(
                    failure.code,
                    ErrorCode::PermissionDenied,
                    "{connection}: {text}: {failure:?}"
                );
            }
        }
        assert!(!std::path::Path::new("/tmp/caf-owned").exists());
    });
}

#[test]
fn a_role_with_rights_on_the_server_is_refused_where_the_settings_say_so() {
    with_server(async |server| {
        server.execute("CREATE ROLE plain LOGIN").expect("creates");
        server
            .execute("CREATE ROLE reader LOGIN IN ROLE pg_read_server_files")
            .expect("creates");
        for (user, allowed) in [("plain", true), ("reader", false), ("", false)] {
            let blocks = blocks(&server.url(), |connection| {
                connection.allow_superuser = Some(false);
                if !user.is_empty() {
                    connection.user = Some(user.to_owned());
                }
            });
            let asked = query(&blocks, "ro", "SELECT 1 AS v", json!([])).await;
            match asked {
                Ok(_) => assert!(allowed, "{user}"),
                Err(failure) => {
                    assert_eq!(failure.code, ErrorCode::PermissionDenied, "{user}: {failure:?}");
                    assert!(!allowed, "{user}: {failure:?}");
                }
            }
        }
    });
}

#[test]
fn one_giant_value_is_refused_before_it_is_in_memory_and_the_next_query_works() {
    with_server(async |server| {
        let blocks = blocks(&server.url(), |connection| connection.max_bytes = 1_000_000);
        let before = resident_bytes();
        for _ in 0..3 {
            let failure = query(&blocks, "ro", "SELECT repeat('x', 500000000) AS v", json!([]))
                .await
                .expect_err("is too large");
            assert_eq!(
                (failure.code, failure.message.as_str()),
                (
                    ErrorCode::ResourceUnavailable,
                    "the answer is larger than the limit"
                )
            );
            assert_eq!(row(&blocks, "SELECT 1 AS v", json!([])).await["v"], json!(1));
        }
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 200_000_000, "grew by {grown} bytes");
        let fits = row(&blocks, "SELECT length(repeat('x', 500000)) AS v", json!([])).await;
        assert_eq!(fits["v"], json!(500_000));
    });
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("is there");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("is told");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("is a number");
    kib * 1_024
}

#[test]
fn thousands_of_columns_with_one_name_are_told_apart_at_once() {
    with_server(async |server| {
        let blocks = blocks(&server.url(), |_| {});
        let text = format!("SELECT {}", vec!["1 AS a"; 1_600].join(", "));
        let outputs = query(&blocks, "ro", &text, json!([])).await.expect("succeeds");
        assert_eq!(outputs["columns"].as_array().map(Vec::len), Some(1_600));
        assert_eq!(outputs["columns"][1_599], json!("a_1600"));
    });
}

#[test]
fn nothing_of_a_job_stays_in_the_session_not_even_until_the_next_one() {
    with_server(async |server| {
        let blocks = blocks(&server.url(), |connection| connection.pool_size = 1);
        server
            .execute(
                "CREATE FUNCTION leave() RETURNS int LANGUAGE plpgsql AS 'BEGIN EXECUTE ''PREPARE leftover AS SELECT 41''; \
                 PERFORM set_config(''my.secret'', ''x'', false); EXECUTE ''LISTEN leftover''; RETURN 1; END'",
            )
            .expect("creates");
        query(&blocks, "rw", "SELECT pg_advisory_lock(42)", json!([]))
            .await
            .expect("locks");
        let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
        let begin = Instant::now();
        while server.execute(locks).expect("answers") != "0" {
            assert!(
                begin.elapsed() < PATIENCE,
                "the lock is held by an idle connection"
            );
            tokio::task::yield_now().await;
        }
        query(&blocks, "rw", "SELECT leave()", json!([]))
            .await
            .expect("runs");
        let text = "SELECT (SELECT count(*) FROM pg_prepared_statements WHERE from_sql) AS prepared, \
                    (SELECT count(*) FROM pg_listening_channels()) AS listening, \
                    coalesce(current_setting('my.secret', true), '') AS secret";
        let seen = query(&blocks, "rw", text, json!([])).await.expect("reads")["rows"][0].clone();
        assert_eq!(seen, json!({"prepared": 0, "listening": 0, "secret": ""}));
        assert_eq!(
            row(
                &blocks,
                "SELECT current_setting('default_transaction_read_only') AS v",
                json!([])
            )
            .await["v"],
            json!("on")
        );
    });
}
