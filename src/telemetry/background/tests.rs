use std::io::{self, Write};
use std::sync::mpsc;

use serde_json::Value;

use super::lane::{IMPORTANT_ROOM_BYTES, ROOM_BYTES};
use super::*;

/// A writer that passes lines on, and waits at each for a word that it may go on.
struct Gate {
    lines: mpsc::Sender<String>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.go.lock().expect("not poisoned").recv();
        let _ = self.lines.send(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A log whose reader has stopped, what it will get, and the word that it may read on.
fn stopped() -> (Background, Flush, mpsc::Receiver<String>, mpsc::Sender<()>) {
    let (lines, written) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let gate = Gate {
        lines,
        go: Mutex::new(may_go),
    };
    let (background, flush) = Background::start(Output::writers(io::sink(), gate), "w").expect("a thread");
    (background, flush, written, go)
}

fn write(background: &Background, level: Level, text: &str) {
    let bytes = format!("{{\"text\":\"{text}\"}}\n").into_bytes();
    background.write(Line { level, bytes }, "A message");
}

fn read(written: &mpsc::Receiver<String>) -> Vec<Value> {
    let lines = written.try_iter();
    lines
        .map(|line| serde_json::from_str(&line).expect("is JSON"))
        .collect()
}

#[derive(Default)]
struct Counted(Mutex<Vec<(String, f64)>>);

impl Meter for Counted {
    fn record(&self, sample: &caf_actors::metrics::Sample) {
        self.0
            .lock()
            .expect("not poisoned")
            .push((sample.labels.join(","), sample.value));
    }
}

#[test]
fn a_reader_that_stops_stops_nobody_and_what_was_dropped_is_said_and_counted() {
    let (background, flush, written, go) = stopped();
    let meter = Arc::new(Counted::default());
    background.control().measure(Arc::clone(&meter) as _);
    let long = "x".repeat(ROOM_BYTES / 4);
    // Nobody reads: all of this returns at once, and only what fits is kept.
    for _ in 0..20 {
        write(&background, Level::Info, &long);
    }
    write(&background, Level::Warn, "a warning fits");
    drop(go);
    drop(flush);
    let lines = read(&written);
    let plain = lines.iter().filter(|line| line["text"] == *long).count();
    assert_eq!(plain, 3, "a quarter of the room less than four");
    assert!(lines.iter().any(|line| line["text"] == "a warning fits"));
    let said = lines.last().expect("there are some");
    assert_eq!(said["message"], "Log lines dropped");
    assert_eq!(
        (&said["context"]["count"], &said["context"]["info"]),
        (&17.into(), &17.into())
    );
    let counted: f64 = meter
        .0
        .lock()
        .expect("not poisoned")
        .iter()
        .map(|(_, value)| value)
        .sum();
    assert!((counted - 17.0).abs() < f64::EPSILON, "{counted}");
}

#[test]
fn no_warning_is_lost_while_nobody_reads_however_many_come() {
    let (background, flush, written, go) = stopped();
    let filler = "x".repeat(64 * 1024);
    let total = 4 * IMPORTANT_ROOM_BYTES / filler.len();
    for _ in 0..total {
        write(&background, Level::Warn, &filler);
    }
    drop(go);
    drop(flush);
    let lines = read(&written);
    let whole = lines.iter().filter(|line| line["text"] == *filler).count();
    let folded: Vec<_> = lines
        .iter()
        .filter(|line| line["context"]["folded"].is_u64())
        .collect();
    assert_eq!(folded.len(), 1, "one line for one message");
    let line = folded[0];
    assert_eq!(
        (&line["level"], &line["message"]),
        (&"WARN".into(), &"A message".into())
    );
    assert!(line["context"]["first_at"].as_str() <= line["context"]["last_at"].as_str());
    assert_eq!(
        whole as u64 + line["context"]["folded"].as_u64().expect("a number"),
        total as u64
    );
    assert!(whole * filler.len() > IMPORTANT_ROOM_BYTES / 2);
}

#[test]
fn debug_lines_take_no_room_from_warnings_and_the_order_is_kept() {
    let (background, flush, written, go) = stopped();
    for number in 0..1_000 {
        write(&background, Level::Debug, &"x".repeat(ROOM_BYTES / 8));
        write(&background, Level::Warn, &number.to_string());
    }
    drop(go);
    drop(flush);
    let lines = read(&written);
    let numbers: Vec<u64> = lines
        .iter()
        .filter_map(|line| line["text"].as_str()?.parse().ok())
        .collect();
    assert_eq!(numbers, (0..1_000).collect::<Vec<_>>());
}

#[test]
fn errors_go_on_while_the_reader_of_the_rest_has_stopped() {
    let (lines, written) = mpsc::channel();
    let (_go, may_go) = mpsc::channel::<()>();
    let (passing, passed) = mpsc::channel();
    let open = Gate {
        lines: passing,
        go: Mutex::new(mpsc::channel().1),
    };
    let shut = Gate {
        lines,
        go: Mutex::new(may_go),
    };
    let (background, flush) = Background::start(Output::writers(open, shut), "w").expect("a thread");
    write(&background, Level::Info, "nobody reads this");
    write(&background, Level::Error, "an error");
    let line = passed.recv_timeout(Duration::from_secs(30)).expect("is written");
    assert!(line.contains("an error"));
    assert_eq!(written.try_iter().count(), 0);
    std::mem::forget(flush);
}

#[test]
fn what_nobody_took_is_left_in_a_file_and_what_does_not_matter_is_not() {
    let (background, flush, _written, go) = stopped();
    let path = std::env::temp_dir().join(format!("caf-left-{}", uuid::Uuid::new_v4()));
    background.control().leave_at(path.clone());
    write(&background, Level::Info, "an information");
    write(&background, Level::Warn, "a warning");
    drop(flush);
    let left = std::fs::read_to_string(&path).expect("is there");
    std::fs::remove_file(&path).expect("is removed");
    assert_eq!(left, "{\"text\":\"a warning\"}\n");
    drop(go);
}

#[test]
fn a_panic_waits_for_its_line_and_the_next_one_not_again_where_nobody_reads() {
    let (background, _flush, written, go) = stopped();
    write(&background, Level::Warn, "one");
    background.control().flush_briefly();
    let again = Instant::now();
    for _ in 0..1_000 {
        background.control().flush_briefly();
    }
    assert!(again.elapsed() < 500 * PANIC_LIMIT, "it waited each time");
    drop(go);
    write(&background, Level::Warn, "two");
    // Somebody reads again.
    let line = written.recv_timeout(Duration::from_secs(30)).expect("is written");
    assert!(line.contains("one"));
}

#[test]
fn the_end_waits_for_the_last_lines() {
    let (background, flush, written, go) = stopped();
    drop(go);
    for _ in 0..1_000 {
        write(&background, Level::Info, "line");
    }
    drop(flush);
    assert_eq!(written.try_iter().count(), 1_000);
}
