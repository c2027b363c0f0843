//! The settings as an operator meets them: the program is run with files, variables and options, and its output and exit
//! code are judged. Also checks the shipped `config/worker.toml`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use caf_worker::settings::Settings;
use caf_worker::settings::catalogue::Catalogue;
use caf_worker::settings::feature::Feature;
use caf_worker::settings::load::{DEFAULT_FILE, Sources, load};
use caf_worker::settings::origin::key_text;
use serde_json::Value;

#[path = "settings/asyncapi.rs"]
mod asyncapi;
#[path = "settings/corpus.rs"]
mod corpus;
#[path = "settings/flags.rs"]
mod flags;
#[path = "settings/policies.rs"]
mod policies;
#[path = "settings/scripts.rs"]
mod scripts;
#[path = "settings/security.rs"]
mod security;

/// Where the policy of a feature that needs one stands.
fn policy_file(feature: Feature) -> &'static str {
    feature.policy_file().expect("it needs a policy")
}

/// A working directory of its own, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("caf-worker-settings-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(path.join("config/worker"))?;
        Ok(Self(path))
    }

    fn file(&self, name: &str, text: &str) -> Result<()> {
        Ok(std::fs::write(self.0.join(name), text)?)
    }

    /// Runs a shipped script here with these arguments, with the program under test and nothing else in its environment.
    fn script(&self, name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Ran> {
        let output = Command::new(shipped_script(name))
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").context("there is a PATH")?)
            .env("CAF_WORKER_BIN", env!("CARGO_BIN_EXE_caf-worker"))
            .envs(environment.iter().copied())
            .current_dir(&self.0)
            .output()?;
        Ran::new(output)
    }

    /// Runs the program here with these arguments, separated by spaces, and nothing else in its environment.
    fn run(&self, arguments: &str, environment: &[(&str, &str)]) -> Result<Ran> {
        let output = Command::new(env!("CARGO_BIN_EXE_caf-worker"))
            .args(arguments.split_whitespace())
            .env_clear()
            .envs(environment.iter().copied())
            .current_dir(&self.0)
            .output()?;
        Ran::new(output)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn shipped_script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

#[derive(Debug)]
struct Ran {
    code: i32,
    answer: String,
    complaint: String,
}

impl Ran {
    fn new(output: Output) -> Result<Self> {
        Ok(Self {
            code: output.status.code().context("killed by a signal")?,
            answer: String::from_utf8(output.stdout)?,
            complaint: String::from_utf8(output.stderr)?,
        })
    }

    fn line(&self, key: &str) -> Result<&str> {
        let start = format!("{key} = ");
        let line = self.answer.lines().find(|line| line.starts_with(&start));
        line.with_context(|| format!("{key} not in {}", self.answer))
    }
}

#[test]
fn settings_without_any_file_are_ok() -> Result<()> {
    let ran = Place::new()?.run("config check", &[])?;
    assert_eq!(
        (ran.code, ran.answer.as_str(), ran.complaint.as_str()),
        (0, "OK\n", "")
    );
    Ok(())
}

#[test]
fn every_problem_is_printed_and_the_exit_code_is_78() -> Result<()> {
    let place = Place::new()?;
    place.file(
        "bad.toml",
        "[nats]\nurll = \"x\"\nack_wait_ms = 5\n[log]\nlevel = 3\n",
    )?;
    let environment = [
        ("WORKER__POOLS__CPU__MAX_CONCURENCY", "2"),
        ("NATS_MAX_DELIVER", "many"),
    ];
    for command in ["config check", "config show", "serve", "exec -", "submit -"] {
        let ran = place.run(
            &format!("{command} --config bad.toml --set drain.hard_s=0"),
            &environment,
        )?;
        assert_eq!((ran.code, ran.answer.as_str()), (78, ""), "{command}");
        for expected in [
            "file bad.toml: nats.urll: unknown key; the nearest known one is nats.url",
            "file bad.toml: nats.ack_wait_ms: must be from 1000 to 3600000, found 5",
            "file bad.toml: log.level: must be one of error, warn, info, debug, found 3",
            "the nearest known one is pools.cpu.max_concurrency (WORKER__POOLS__CPU__MAX_CONCURRENCY)",
            "env NATS_MAX_DELIVER: nats.max_deliver: must be a whole number from 0 to 4294967295, found \"many\"",
            "command line: drain.hard_s: must be from 1 to 3600, found 0",
        ] {
            assert!(
                ran.complaint.contains(expected),
                "{expected} not in\n{}",
                ran.complaint
            );
        }
    }
    let ran = place.run("config check --config bad.toml --output json", &[])?;
    assert_eq!(ran.code, 78);
    let first: Value = serde_json::from_str(ran.answer.lines().next().context("no line")?)?;
    assert_eq!(
        (&first["source"], &first["key"]),
        (&"file bad.toml".into(), &"log.level".into())
    );
    Ok(())
}

#[test]
fn files_that_are_missing_or_broken_are_errors() -> Result<()> {
    let place = Place::new()?;
    place.file("broken.json", "{\"nats\":")?;
    place.file("settings.ini", "")?;
    for (file, expected) in [
        ("missing.toml", "file missing.toml: cannot be read"),
        ("broken.json", "file broken.json: EOF while parsing"),
        ("settings.ini", "must have a name that ends in .toml or .json"),
        ("config", "file config: cannot be read"),
    ] {
        let ran = place.run(&format!("config check --config {file}"), &[])?;
        assert_eq!(ran.code, 78, "{file}");
        assert!(ran.complaint.contains(expected), "{file}: {}", ran.complaint);
    }
    place.file(DEFAULT_FILE, "[nope]\n")?;
    let ran = place.run("config check", &[])?;
    assert!(
        ran.code == 78
            && ran
                .complaint
                .contains("config/worker.toml: nope: unknown section"),
        "{ran:?}"
    );
    Ok(())
}

#[test]
fn show_tells_where_each_value_comes_from() -> Result<()> {
    let place = Place::new()?;
    place.file(
        DEFAULT_FILE,
        "[limits]\nmax_held = 7\n[retry]\nmax_attempts = 1\n[log]\nlevel = \"warn\"",
    )?;
    place.file("a.json", r#"{"retry": {"max_attempts": 2}}"#)?;
    let environment = [
        ("NATS_URL", "nats://plain:1"),
        ("WORKER__NATS__URL", "nats://prefixed:1"),
        ("LOG_LEVEL", "debug"),
        ("RUST_LOG", "error"),
        ("RESOURCE_POOL_CPU", "2"),
        ("WORKER_QUEUE_V2_ENABLED", "Yes"),
        ("PROMETHEUS_ENDPOINT", "127.0.0.1:7000"),
    ];
    let ran = place.run(
        "--config a.json config show --io-pool-size 3 --set worker.id=w",
        &environment,
    )?;
    assert_eq!((ran.code, ran.complaint.as_str()), (0, ""));
    for (key, shown) in [
        ("limits.max_held", "7  # file config/worker.toml"),
        ("retry.max_attempts", "2  # file a.json"),
        ("nats.url", "\"nats://prefixed:1\"  # env WORKER__NATS__URL"),
        ("log.level", "\"debug\"  # env LOG_LEVEL; SIGHUP reloads"),
        ("pools.cpu.max_concurrency", "2  # env RESOURCE_POOL_CPU"),
        ("pools.io.max_concurrency", "3  # command line"),
        ("pools.gpu.max_concurrency", "1  # default"),
        ("worker.queue.v2.enabled", "true  # env WORKER_QUEUE_V2_ENABLED"),
        (
            "http.health_addr",
            "\"127.0.0.1:7001\"  # env PROMETHEUS_ENDPOINT",
        ),
        (
            "http.metrics_addr",
            "\"127.0.0.1:7002\"  # env PROMETHEUS_ENDPOINT",
        ),
        ("worker.id", "\"w\"  # command line"),
    ] {
        assert_eq!(ran.line(key)?, format!("{key} = {shown}"));
    }
    assert!(ran.answer.lines().is_sorted());
    Ok(())
}

#[test]
fn secrets_are_shown_nowhere() -> Result<()> {
    let place = Place::new()?;
    let environment = [
        ("NATS_URL", "nats://user:hunter@h:4222"),
        ("DATABASE_URL", "postgres://user:hunter@h/d"),
        ("WORKER__BLOCKS__SQL__CONNECTIONS__DEFAULT__PASSWORD", "hunter"),
    ];
    for command in ["config show", "config show --output json", "config check"] {
        let ran = place.run(command, &environment)?;
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(
            !ran.answer.contains("hunter") && !ran.complaint.contains("hunter"),
            "{ran:?}"
        );
        let masked = ran.answer.matches("[REDACTED]").count();
        assert_eq!(masked, if command == "config check" { 0 } else { 3 }, "{ran:?}");
    }
    place.file("bad.toml", "[nats]\ntoken = hunter\n")?;
    let arguments =
        "config check --config bad.toml --set nats.passwort=hunter --nats-url nats://u:hunter@h/x";
    let ran = place.run(arguments, &environment)?;
    assert_eq!(ran.code, 78);
    assert!(
        !ran.complaint.contains("hunter") && ran.complaint.lines().count() == 3,
        "{ran:?}"
    );
    Ok(())
}

#[test]
fn keys_without_effect_are_warned_about() -> Result<()> {
    let ran = Place::new()?.run(
        "config check --set nats.subjects.cancel=caf.cancel --set http.metrics_addr=0.0.0.0:9092",
        &[],
    )?;
    assert_eq!((ran.code, ran.answer.as_str()), (0, "OK\n"));
    assert!(
        ran.complaint.starts_with(
            "warning: nats.subjects.cancel (command line) has no effect while worker.cancellation.enabled is off"
        ),
        "{ran:?}"
    );
    assert_eq!(ran.complaint.lines().count(), 1);
    Ok(())
}

#[test]
fn a_senseless_command_line_ends_with_64_and_help_with_0() -> Result<()> {
    let place = Place::new()?;
    for arguments in [
        "",
        "nope",
        "config",
        "exec",
        "submit",
        "config show --nope",
        "config check --set nats.url",
        "config check --set =x",
        "config check --cpu-pool-size many",
        "config check --output xml",
        "submit - --timeout-s 0",
        "completions",
    ] {
        let ran = place.run(arguments, &[])?;
        assert_eq!((ran.code, ran.answer.as_str()), (64, ""), "{arguments:?}");
        assert!(
            ran.complaint.contains("Usage:") || ran.complaint.contains("--help"),
            "{ran:?}"
        );
    }
    for arguments in [
        "--help",
        "--version",
        "help",
        "submit --help",
        "config show -h",
        "serve --version",
    ] {
        let ran = place.run(arguments, &[])?;
        assert!(
            ran.code == 0 && !ran.answer.is_empty() && ran.complaint.is_empty(),
            "{arguments}: {ran:?}"
        );
    }
    Ok(())
}

#[test]
fn completions_name_every_command() -> Result<()> {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = Place::new()?.run(&format!("completions {shell}"), &[])?;
        assert_eq!(ran.code, 0);
        for command in ["serve", "exec", "submit", "config", "completions"] {
            assert!(ran.answer.contains(command), "{shell}: {command}");
        }
    }
    Ok(())
}

#[test]
fn the_schema_accepts_the_defaults_and_refuses_what_the_program_refuses() -> Result<()> {
    let ran = Place::new()?.run("config schema", &[])?;
    assert_eq!(ran.code, 0);
    let schema = jsonschema::validator_for(&serde_json::from_str(&ran.answer)?)?;
    assert!(schema.is_valid(&serde_json::to_value(Settings::default())?));
    for good in [
        r#"{}"#,
        r#"{"pools": {"gpu": {"max_queue_size": 5}}, "log": {"file": null}}"#,
        r#"{"blocks": {"sql": {"connections": {"main": {"url": "x"}}}}, "queue": {"admission": "wait"}}"#,
    ] {
        assert!(schema.is_valid(&serde_json::from_str(good)?), "{good}");
    }
    for bad in [
        r#"{"nope": {}}"#,
        r#"{"pools": {"gpu": {"size": 5}}}"#,
        r#"{"retry": {"max_attempts": -1}}"#,
        r#"{"nats": {"mode": "kafka"}}"#,
        r#"{"blocks": {"sql": {"connections": {"main": {}}}}}"#,
    ] {
        assert!(!schema.is_valid(&serde_json::from_str(bad)?), "{bad}");
    }
    Ok(())
}

fn shipped_file() -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(DEFAULT_FILE);
    Ok(std::fs::read_to_string(path)?)
}

/// The settings in a file of this text.
fn load_text(text: &str) -> Result<Settings> {
    let place = Place::new()?;
    place.file(DEFAULT_FILE, text)?;
    let sources = Sources {
        working_dir: place.0.clone(),
        ..Sources::default()
    };
    Ok(load(&sources)?.settings)
}

#[test]
fn the_shipped_file_holds_the_defaults() -> Result<()> {
    let settings = load_text(&shipped_file()?)?;
    assert_eq!(settings, Settings::default());
    Ok(())
}

#[test]
fn the_shipped_file_names_every_key_with_its_meaning() -> Result<()> {
    let is_key = |line: &str| {
        line.strip_prefix('#')
            .is_some_and(|rest| rest.starts_with(|c: char| !c.is_whitespace()))
    };
    let text = shipped_file()?;
    let all: String = text
        .lines()
        .map(|line| format!("{}\n", if is_key(line) { &line[1..] } else { line }))
        .collect();
    // Only one kind of credentials is allowed at a time, and one place for the value of a secret.
    let others = [
        "token",
        "credentials_file",
        "nkey_file",
        "password_secret",
        "file = \"/run/secrets",
        "env = ",
    ];
    let one_kind: Vec<&str> = all
        .lines()
        .filter(|line| !others.iter().any(|key| line.starts_with(key)))
        .collect();
    load_text(&one_kind.join("\n")).context("the keys that are commented out must be valid")?;

    let mut named = Vec::new();
    let mut section = String::new();
    for line in all.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.replace(".example", ".*");
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            named.push(
                format!("{section}.{key}")
                    .replace("roots.data", "roots.*")
                    .replace("quotas.data", "quotas.*")
                    .replace("levels.async_nats", "levels.*")
                    .replace("providers.\"openai:*\"", "providers.*"),
            );
        }
    }
    named.sort();
    // The numbers of the policies stand in files of their own.
    let is_policy = |key: &String| {
        let of = |feature: &Feature| key.starts_with(feature.section()) && *key != feature.flag_key();
        Feature::WITH_POLICY.iter().any(of)
    };
    let mut known: Vec<String> = Catalogue::of_settings()
        .keys()
        .iter()
        .map(|key| key_text(key))
        .filter(|key| !is_policy(key))
        .collect();
    known.sort();
    assert_eq!(named, known);

    let mut meant = false;
    for line in text.lines().filter(|line| !line.is_empty()) {
        let is_comment = line.starts_with('#') && !is_key(line);
        meant = is_comment || (meant && !line.starts_with('['));
        ensure!(
            meant || line.starts_with('[') || line.starts_with("#["),
            "no meaning above {line}"
        );
    }
    Ok(())
}
