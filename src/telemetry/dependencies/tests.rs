use std::io::{self, Write};
use std::sync::Mutex;

use caf_actors::levels::Rules;
use tracing_core::dispatcher::{self, Dispatch};

use super::super::output::Output;
use super::*;

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is written of what `speak` says, with these levels.
fn lines_of(rules: Rules, speak: impl FnOnce(&Bridge)) -> Vec<Value> {
    let written = Captured::default();
    let output = Output::writers(written.clone(), written.clone());
    let (background, flush) = Background::start(output, "w").expect("a thread");
    let bridge = Bridge::new(
        background,
        Levels::new(rules),
        "w",
        Secrets::new(["zq0000MARK".to_owned()]),
    );
    let dispatch = Dispatch::new(bridge.clone());
    dispatcher::with_default(&dispatch, || speak(&bridge));
    drop(flush);
    let text = String::from_utf8(written.0.lock().expect("not poisoned").clone()).expect("text");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("is JSON"))
        .collect()
}

fn noisy(name: &str) -> Rules {
    Rules {
        modules: vec![(name.to_owned(), Level::Debug)],
        ..Rules::default()
    }
}

#[test]
fn what_dependencies_say_has_the_form_of_our_lines_with_target_and_fields_in_context() {
    let lines = lines_of(Rules::default(), |_| {
        tracing::warn!(target: "quinn::connector", attempt = 3, url = "nats://u:hunter2@h", tenant_id = "x", "no {}", "luck");
    });
    let line = &lines[0];
    assert_eq!(
        (&line["level"], &line["message"]),
        (&Value::from("WARN"), &Value::from("no luck"))
    );
    assert_eq!(line["context"]["target"], "quinn::connector");
    assert_eq!(line["context"]["attempt"], 3);
    assert_eq!(line["context"]["worker_id"], "w");
    assert_eq!(line["context"]["url"], "nats://[REDACTED]@h");
    // Ids at the top are those of jobs.
    assert_eq!(
        (&line["tenant_id"], &line["context"]["tenant_id"]),
        (&Value::Null, &Value::from("x"))
    );
}

#[test]
fn a_secret_of_the_settings_is_hidden_wherever_it_stands() {
    let lines = lines_of(Rules::default(), |_| {
        tracing::warn!(target: "quinn", server = "Url { password: Some(\"zq0000MARK\") }", "zq0000MARK is odd");
    });
    assert_eq!(lines[0]["message"], "[REDACTED] is odd");
    assert!(!lines[0].to_string().contains("zq0000MARK"), "{}", lines[0]);
}

#[test]
fn both_interfaces_follow_the_levels_and_their_change() {
    let lines = lines_of(noisy("mio"), |bridge| {
        let say = |target: &str, level| {
            let record = log::Record::builder()
                .target(target)
                .level(level)
                .args(format_args!("x"))
                .build();
            log::Log::log(bridge, &record);
        };
        say("rustls::client", log::Level::Info);
        say("mio::poll", log::Level::Debug);
        say("mio::poll", log::Level::Trace);
        tracing::info!(target: "awc", "not taken");
        tracing::debug!(target: "mio", "taken");
        bridge.0.levels.set(Rules {
            base: Level::Error,
            ..Rules::default()
        });
        say("mio::poll", log::Level::Warn);
        tracing::debug!(target: "mio", "taken no more");
        tracing::error!(target: "mio", "still taken");
    });
    let said: Vec<_> = lines
        .iter()
        .map(|line| line["message"].as_str().unwrap_or_default())
        .collect();
    let mut sorted = said.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ["still taken", "taken", "x"]);
}

#[test]
fn a_value_that_logs_while_it_is_written_does_not_recurse_and_a_huge_one_is_cut() {
    struct Chatty;
    impl fmt::Debug for Chatty {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            tracing::error!(target: "x", "from inside");
            f.write_str("chatty")
        }
    }
    let huge = "y".repeat(1_000_000);
    let lines = lines_of(Rules::default(), |_| {
        tracing::error!(target: "x", value = ?Chatty, huge = %huge, "outside");
    });
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["context"]["value"], "chatty");
    assert!(lines[0]["context"]["huge"].as_str().expect("is there").len() <= MAX_FIELD_BYTES);
}
