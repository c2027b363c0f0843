use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use slog::{Serde, crit, debug, error, info, trace, warn};

use super::line::{MAX_LINE_BYTES, MAX_MESSAGE_BYTES, MAX_STRING_BYTES};
use super::*;

/// Keeps what is written, and in how many writes.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<Vec<u8>>>>);

impl Captured {
    fn lines(&self) -> Vec<Value> {
        let writes = self.0.lock().unwrap();
        writes
            .iter()
            .map(|write| {
                assert_eq!(
                    write.iter().filter(|b| **b == b'\n').count(),
                    1,
                    "one line per write"
                );
                assert_eq!(write.last(), Some(&b'\n'));
                serde_json::from_slice(write).unwrap()
            })
            .collect()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn captured(level: LogLevel) -> (Logger, Captured, Captured) {
    let (errors, rest) = (Captured::default(), Captured::default());
    let output = Output::writers(errors.clone(), rest.clone());
    (direct_logger(level, output, "worker_4711"), errors, rest)
}

/// The one line that `write` logs at any level.
fn line_of(write: impl FnOnce(&Logger)) -> Value {
    let (log, errors, rest) = captured(LogLevel::Debug);
    write(&log);
    let lines = [errors.lines(), rest.lines()].concat();
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.into_iter().next().unwrap()
}

#[test]
fn a_line_has_the_fixed_keys_first_and_a_context_with_the_worker() {
    let (log, _, rest) = captured(LogLevel::Info);
    let context = Serde(json!({"block_type": "echo", "status": "success"}));
    info!(log, "Step execution completed";
        "latency_ms" => 42, "trace_id" => "9f", "context" => context, "tenant_id" => "acme");
    let text = String::from_utf8(rest.0.lock().unwrap()[0].clone()).unwrap();
    let (timestamp, others) = text.split_once(',').unwrap();
    assert!(timestamp.starts_with(r#"{"timestamp":"2"#), "{text}");
    let expected = concat!(
        r#""level":"INFO","component":"worker","message":"Step execution completed","#,
        r#""tenant_id":"acme","trace_id":"9f","latency_ms":42,"#,
        r#""context":{"block_type":"echo","status":"success","worker_id":"worker_4711"}}"#,
        "\n"
    );
    assert_eq!(others, expected);
}

#[test]
fn timestamps_are_utc_with_six_digits() {
    let values = slog::OwnedKV(()).into();
    let at = UNIX_EPOCH + Duration::from_nanos(1_767_225_600_123_456_789);
    let bytes = line::line(
        &slog::record!(Level::Info, "", &format_args!("x"), slog::b!()),
        &values,
        "w",
        &Secrets::default(),
        at,
    );
    let line: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(line["timestamp"], "2026-01-01T00:00:00.123456Z");
}

#[test]
fn a_secret_of_the_settings_is_hidden_under_any_name() {
    let bytes = line::line(
        &slog::record!(
            Level::Info,
            "",
            &format_args!("x"),
            slog::b!("reason" => "said zq0000MARK twice")
        ),
        &slog::OwnedKV(()).into(),
        "w",
        &Secrets::new(["zq0000MARK".to_owned()]),
        UNIX_EPOCH,
    );
    let line: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(line["context"]["reason"], "said [REDACTED] twice");
}

#[test]
fn errors_go_apart_and_every_level_has_its_name() {
    let (log, errors, rest) = captured(LogLevel::Debug);
    crit!(log, "a");
    error!(log, "b");
    warn!(log, "c");
    info!(log, "d");
    debug!(log, "e");
    trace!(log, "f");
    let levels = |lines: Vec<Value>| lines.iter().map(|line| line["level"].clone()).collect::<Vec<_>>();
    assert_eq!(levels(errors.lines()), ["ERROR", "ERROR"]);
    assert_eq!(levels(rest.lines()), ["WARN", "INFO", "DEBUG"]);
}

#[test]
fn lines_below_the_level_are_not_written() {
    for (level, count) in [
        (LogLevel::Error, 1),
        (LogLevel::Warn, 2),
        (LogLevel::Info, 3),
        (LogLevel::Debug, 4),
    ] {
        let (log, errors, rest) = captured(level);
        error!(log, "a");
        warn!(log, "b");
        info!(log, "c");
        debug!(log, "d");
        assert_eq!(errors.lines().len() + rest.lines().len(), count, "{level:?}");
        assert_eq!(log.is_debug_enabled(), level == LogLevel::Debug);
    }
}

#[test]
fn empty_correlation_ids_are_left_out_and_stray_values_move_into_context() {
    let line = line_of(|log| {
        info!(log, "x"; "tenant_id" => "", "run_id" => None::<&str>, "port" => 9091, "error_code" => "timeout");
    });
    assert_eq!(line["context"], json!({"worker_id": "worker_4711", "port": 9091}));
    assert_eq!(line["error_code"], "timeout");
    assert!(line.get("tenant_id").is_none() && line.get("run_id").is_none() && line.get("port").is_none());
}

#[test]
fn the_records_values_win_over_the_loggers_but_not_over_the_fixed_keys() {
    let line = line_of(|log| {
        let log = log.new(o!("actor" => "pool", "worker_id" => "other", "trace_id" => "1"));
        info!(log, "x"; "trace_id" => "2", "level" => "LOUD", "message" => "y");
    });
    assert_eq!(
        (&line["trace_id"], &line["level"], &line["message"]),
        (&json!("2"), &json!("INFO"), &json!("x"))
    );
    assert_eq!(line["context"]["actor"], "pool");
    assert_eq!(line["context"]["worker_id"], "other");
}

#[test]
fn a_context_that_is_no_object_is_kept_inside_one() {
    let line = line_of(|log| info!(log, "x"; "context" => "{not json"));
    assert_eq!(
        line["context"],
        json!({"value": "{not json", "worker_id": "worker_4711"})
    );
    let line = line_of(|log| info!(log, "x"; "context" => Serde(Value::Null)));
    assert_eq!(line["context"], json!({"worker_id": "worker_4711"}));
}

#[test]
fn secrets_are_masked_over_the_whole_line() {
    let line = line_of(|log| {
        let context = json!({"headers": [{"Authorization": "hunter"}], "user": {"Email": "hunter"}, "url": "http://u:hunter@h"});
        let error = json!({"type": "x", "message": "got Bearer hunter", "api_key": "hunter"});
        error!(log, "login with password=hunter"; "context" => Serde(context), "error" => Serde(error), "db_password" => "hunter");
    });
    assert!(!line.to_string().contains("hunter"), "{line}");
    assert_eq!(line["message"], "login with password=[REDACTED]");
    assert_eq!(line["error"]["message"], "got Bearer [REDACTED]");
    assert_eq!(line["context"]["url"], "http://[REDACTED]@h");
}

#[test]
fn very_long_strings_are_cut_with_a_mark() {
    let long = "ü".repeat(100 * 1024);
    let line = line_of(|log| {
        let key = "k".repeat(100 * 1024);
        let context = Value::Object(Map::from_iter([
            (key, json!(1)),
            ("items".to_owned(), json!([long])),
        ]));
        info!(log, "{}", long; "trace_id" => long.as_str(), "context" => Serde(context));
    });
    for (text, limit) in [
        (&line["message"], MAX_MESSAGE_BYTES),
        (&line["trace_id"], MAX_STRING_BYTES),
        (&line["context"]["items"][0], MAX_STRING_BYTES),
    ] {
        let text = text.as_str().unwrap();
        assert!(
            text.len() <= limit && text.ends_with("ü…[truncated]"),
            "{}",
            text.len()
        );
    }
    assert!(line.to_string().len() < MAX_MESSAGE_BYTES + 4 * MAX_STRING_BYTES);
}

#[test]
fn a_secret_on_the_cut_does_not_survive_in_half() {
    let text = format!(
        "{} nats://u:hunter2hunter2@h {}",
        "x".repeat(MAX_MESSAGE_BYTES - 40),
        "y".repeat(100)
    );
    let line = line_of(|log| info!(log, "{}", text; "url" => text.as_str()));
    assert!(!line.to_string().contains("hunter"), "{line}");
}

#[test]
fn a_large_context_is_kept_and_a_huge_one_is_dropped() {
    let context = |count: usize, bytes: usize| {
        let value = "v".repeat(bytes);
        Serde(Value::Object(
            (0..count).map(|i| (format!("k{i}"), json!(value))).collect(),
        ))
    };
    let line = line_of(|log| info!(log, "x"; "context" => context(1_000, 10)));
    assert_eq!(line["context"].as_object().unwrap().len(), 1_001);
    let line = line_of(|log| info!(log, "x"; "context" => context(30_000, 1_000), "trace_id" => "t"));
    assert!(line["context"]["dropped_bytes"].as_u64().unwrap() > MAX_LINE_BYTES as u64);
    assert_eq!(
        (&line["context"]["worker_id"], &line["trace_id"]),
        (&json!("worker_4711"), &json!("t"))
    );
}

#[test]
fn special_characters_stay_inside_their_line() {
    let text = "a\n\r\t\"\\\0\u{7f}\u{2028}\u{1f600}é\u{202e}";
    let line = line_of(|log| info!(log, "{}", text; "tenant_id" => text, "k\n" => text));
    assert_eq!(
        (&line["message"], &line["tenant_id"], &line["context"]["k\n"]),
        (&json!(text), &json!(text), &json!(text))
    );
}

#[test]
fn values_that_cannot_be_written_do_not_lose_the_line() {
    struct Broken;
    impl slog::Value for Broken {
        fn serialize(&self, _: &Record<'_>, _: slog::Key, _: &mut dyn slog::Serializer) -> slog::Result {
            Err(slog::Error::Fmt(fmt::Error))
        }
    }
    let line = line_of(|log| info!(log, "x"; "a" => 1, "b" => Broken));
    assert_eq!(line["message"], "x");
    assert_eq!(
        line["context"],
        json!({"unreadable_values": true, "worker_id": "worker_4711"})
    );
}

#[test]
fn a_writer_that_fails_stops_nothing() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
    let log = direct_logger(LogLevel::Info, Output::writers(Closed, Closed), "w");
    info!(log, "x");
    error!(log, "y");
}

#[test]
fn lines_of_several_threads_never_mix() {
    let (log, _, rest) = captured(LogLevel::Info);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let log = log.clone();
            scope.spawn(move || (0..250).for_each(|i| info!(log, "x"; "thread" => thread, "i" => i)));
        }
    });
    assert_eq!(rest.lines().len(), 1_000);
}

#[test]
fn a_file_gets_every_level_and_keeps_what_it_holds() {
    let path = std::env::temp_dir().join(format!("caf-log-{}", uuid::Uuid::new_v4()));
    let settings = LogSettings {
        level: LogLevel::Info,
        file: Some(path.clone()),
        ..LogSettings::default()
    };
    for _ in 0..2 {
        let opened = open(&settings, Secrets::default(), Streams::Split, "w").unwrap();
        info!(opened.logger, "x");
        error!(opened.logger, "y");
    }
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(text.lines().count(), 4);
    let nowhere = LogSettings {
        file: Some(path.join("x")),
        ..settings
    };
    let error = open(&nowhere, Secrets::default(), Streams::Split, "w")
        .err()
        .unwrap();
    assert!(error.to_string().contains("caf-log-"), "{error}");
}

#[test]
fn a_pipe_without_a_reader_is_refused_at_once_and_one_with_a_reader_is_written_to() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let path = std::env::temp_dir().join(format!("caf-pipe-{}", uuid::Uuid::new_v4()));
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let error = Output::file(&path).err().unwrap().to_string();
    assert!(error.contains("nobody reads"), "{error}");
    let reader = std::thread::spawn({
        let path = path.clone();
        move || std::fs::read_to_string(path).unwrap()
    });
    let end = std::time::Instant::now() + Duration::from_secs(10);
    let output = loop {
        match Output::file(&path) {
            Ok(output) => break output,
            Err(_) if std::time::Instant::now() < end => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    output.write(false, b"x\n").unwrap();
    drop(output);
    assert_eq!(reader.join().unwrap(), "x\n");
    std::fs::remove_file(&path).unwrap();
    assert!(Output::file(&std::env::temp_dir()).is_err());
}

#[test]
fn ids_with_control_and_direction_characters_stand_escaped_in_the_line() {
    let id = "a\u{9b}31m\u{7f}\u{202e}b\u{2066}\u{2028}\u{61c}ü€";
    let bytes = line::line(
        &slog::record!(Level::Info, "", &format_args!("x"), slog::b!("run_id" => id)),
        &slog::OwnedKV(()).into(),
        "w",
        &Secrets::default(),
        UNIX_EPOCH,
    );
    let text = String::from_utf8(bytes).unwrap();
    assert!(
        text.contains(r#""a\u009b31m\u007f\u202eb\u2066\u2028\u061cü€""#),
        "{text}"
    );
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["run_id"], id);
}

#[test]
fn ten_thousand_lines_all_arrive_in_order() {
    let (log, _, rest) = captured(LogLevel::Info);
    for i in 0..10_000 {
        let context = json!({"block_type": "echo", "status": "success", "i": i});
        info!(log, "Step execution completed"; "tenant_id" => "acme", "context" => Serde(context));
    }
    assert_eq!(rest.0.lock().unwrap().len(), 10_000);
    let numbers: Vec<_> = rest
        .lines()
        .iter()
        .map(|line| line["context"]["i"].as_u64())
        .collect();
    assert_eq!(numbers, (0..10_000).map(Some).collect::<Vec<_>>());
}

mod contract;
