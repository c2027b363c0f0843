//! `scripts/worker/*`, run as an operator runs them: exit codes and lines. `validate_cp2.sh` needs a broker, so
//! `tests/node/scripts.rs` has it.

use std::process::Command;

use anyhow::{Context, Result};
use caf_worker::settings::feature::Feature;

use super::policies::{bad_files, shipped};
use super::{Place, Ran, policy_file, shipped_script};

const CONFIG: &str = "worker/validate_config.sh";
const FLAGS: &str = "worker/validate_feature_flags.sh";

/// A place with the shipped policy files.
pub(super) fn with_policies() -> Result<Place> {
    let place = Place::new()?;
    for feature in Feature::WITH_POLICY {
        place.file(policy_file(feature), &shipped(feature)?.to_string())?;
    }
    Ok(place)
}

#[test]
fn good_policy_files_are_ok_in_place_or_by_name() -> Result<()> {
    let place = with_policies()?;
    let ran = place.script(CONFIG, &[], &[])?;
    let lines: Vec<_> = ran.answer.lines().collect();
    let expected: Vec<_> = Feature::WITH_POLICY
        .iter()
        .flat_map(|feature| {
            let (file, name, section) = (policy_file(*feature), feature.name(), feature.section());
            [
                format!("[INFO] {file}: {name} policy ({section})"),
                format!("[OK] {file}: valid"),
            ]
        })
        .collect();
    assert_eq!(
        (ran.code, lines, ran.complaint.as_str()),
        (0, expected.iter().map(String::as_str).collect(), "")
    );
    // Names that look like options, or have spaces.
    for name in ["my file.json", "-o.json", "--output"] {
        place.file(name, &shipped(Feature::Retry)?.to_string())?;
        let ran = place.script(CONFIG, &[name], &[])?;
        assert_eq!(
            (ran.code, ran.answer.contains(&format!("[OK] {name}: valid"))),
            (0, true),
            "{ran:?}"
        );
    }
    Ok(())
}

#[test]
fn each_kind_of_mistake_has_its_exit_code_and_names_file_and_key() -> Result<()> {
    let place = Place::new()?;
    for (feature, text, code, says) in bad_files()? {
        let file = policy_file(feature);
        place.file(file, &text)?;
        let ran = place.script(CONFIG, &[file], &[])?;
        let start: String = text.chars().take(300).collect();
        assert_eq!(ran.code, code, "{says}: {start}\n{}", ran.answer);
        let wrong = |line: &str| line.starts_with(&format!("[ERROR] {file}: ")) && line.contains(&says);
        assert!(ran.answer.lines().any(wrong), "{says}: {}", ran.answer);
        assert!(
            !ran.answer.contains("[OK]") && ran.complaint.is_empty(),
            "{ran:?}"
        );
    }
    Ok(())
}

#[test]
fn files_that_are_not_there_or_cannot_be_read_are_named_too() -> Result<()> {
    let place = with_policies()?;
    std::fs::create_dir(place.0.join("directory.json"))?;
    // Nobody can read it, not even root.
    std::os::unix::fs::symlink("/proc/self/mem", place.0.join("unreadable.json"))?;
    std::fs::write(place.0.join("bytes.json"), [0xff, 0xfe])?;
    let good = policy_file(Feature::Queue);
    for (file, code, says) in [
        ("absent.json", 3, "the file is not there"),
        ("directory.json", 1, "cannot be read: Is a directory"),
        ("unreadable.json", 1, "cannot be read: "),
        ("bytes.json", 1, "is not UTF-8"),
    ] {
        let ran = place.script(CONFIG, &[good, file], &[])?;
        assert_eq!(ran.code, code, "{file}: {}", ran.answer);
        assert!(
            ran.answer.contains(&format!("[ERROR] {file}: {says}")),
            "{}",
            ran.answer
        );
        assert!(
            ran.answer.contains(&format!("[OK] {good}: valid")),
            "{}",
            ran.answer
        );
    }
    std::fs::remove_file(place.0.join(good))?;
    let ran = place.script(CONFIG, &[], &[])?;
    assert_eq!(ran.code, 3);
    assert!(
        ran.answer
            .contains(&format!("[ERROR] {good}: the file is not there")),
        "{}",
        ran.answer
    );
    assert_eq!(ran.answer.matches("[OK]").count(), 2, "{}", ran.answer);
    Ok(())
}

#[test]
fn of_several_mistakes_the_worst_makes_the_exit_code() -> Result<()> {
    let place = Place::new()?;
    place.file("broken.json", "{")?;
    place.file("wrong.json", r#"{"worker": {"queue": {"v2": {"enabled": 1}}}}"#)?;
    place.file(
        "short.json",
        r#"{"worker": {"queue": {"v2": {"enabled": true}}}}"#,
    )?;
    for (files, code) in [
        (&["short.json", "wrong.json", "broken.json"][..], 1),
        (&["short.json", "wrong.json"], 2),
        (&["broken.json", "short.json"], 1),
        (&["short.json"], 3),
    ] {
        let ran = place.script(CONFIG, files, &[])?;
        assert_eq!(ran.code, code, "{files:?}: {}", ran.answer);
        let heads = ran.answer.lines().filter(|line| line.starts_with("[INFO] "));
        assert_eq!(heads.count(), files.len(), "{}", ran.answer);
    }
    Ok(())
}

#[test]
fn flags_are_printed_with_value_source_and_mode_and_cp2_is_warned_about() -> Result<()> {
    let place = with_policies()?;
    let ran = place.script(FLAGS, &[], &[])?;
    assert_eq!((ran.code, ran.complaint.as_str()), (0, ""), "{ran:?}");
    assert_eq!(
        ran.answer.matches(": CP1 baseline; ").count(),
        Feature::ALL.len(),
        "{}",
        ran.answer
    );
    assert!(!ran.answer.contains("[WARN]"), "{}", ran.answer);

    let ran = place.script(
        FLAGS,
        &[],
        &[
            ("CP2_ADVANCED_RETRY_ENABLED", "Yes"),
            ("WORKER_QUEUE_V2_ENABLED", "1"),
        ],
    )?;
    assert_eq!(ran.code, 0);
    for expected in [
        "[INFO] CP2_ADVANCED_RETRY_ENABLED = true (env CP2_ADVANCED_RETRY_ENABLED): CP2 mode; retry, key \
         worker.retries.v2.enabled, also WORKER_RETRIES_V2_ENABLED",
        "[INFO] CP2_COMPLETE_TIMEOUT_ENABLED = false (file config/worker/timeout_policy.json): CP1 baseline; timeouts, \
         key worker.timeouts.v2.enabled",
        "[INFO] CP2_QUEUE_MANAGEMENT_ENABLED = true (env WORKER_QUEUE_V2_ENABLED): CP2 mode; queue, key \
         worker.queue.v2.enabled, also WORKER_QUEUE_V2_ENABLED",
        "[WARN] CP2 is on for retry, queue: behaviour differs from the CP1 baseline",
        "[OK] the values of all flags are valid",
    ] {
        assert!(
            ran.answer.lines().any(|line| line == expected),
            "{expected} not in\n{}",
            ran.answer
        );
    }

    // On, and no policy: what an operator would not expect is said.
    let ran = Place::new()?.script(FLAGS, &[], &[("CP2_COMPLETE_TIMEOUT_ENABLED", "true")])?;
    assert_eq!(ran.code, 0);
    assert!(
        ran.answer
            .contains("CP2_COMPLETE_TIMEOUT_ENABLED = true (env CP2_COMPLETE_TIMEOUT_ENABLED): CP1 baseline")
    );
    assert!(
        ran.answer
            .contains("[WARN] worker.timeouts.v2.enabled is on, but no source says"),
        "{}",
        ran.answer
    );
    assert!(!ran.answer.contains("CP2 is on"), "{}", ran.answer);
    Ok(())
}

#[test]
fn the_production_profile_is_seen_when_it_is_named() -> Result<()> {
    let place = with_policies()?;
    let profile = concat!(env!("CARGO_MANIFEST_DIR"), "/config/production.toml");
    let ran = place.script(FLAGS, &["--config", profile], &[])?;
    assert_eq!(
        (ran.code, ran.answer.matches(": CP2 mode; ").count()),
        (0, Feature::ALL.len()),
        "{ran:?}"
    );
    assert!(
        ran.answer.contains(
            "[WARN] CP2 is on for retry, timeouts, queue, metrics, tracing, cancellation, circuit breaker:"
        ),
        "{}",
        ran.answer
    );
    Ok(())
}

#[test]
fn flags_that_are_no_flags_and_settings_that_cannot_be_read_have_codes_of_their_own() -> Result<()> {
    let place = with_policies()?;
    for name in Feature::ALL.iter().flat_map(|feature| feature.variables()) {
        let ran = place.script(FLAGS, &[], &[(name, "maybe")])?;
        assert_eq!(ran.code, 1, "{name}: {}", ran.answer);
        let said = ran.answer.lines().next().context("is said")?;
        assert!(
            said.starts_with(&format!("[ERROR] env {name}: ")) && said.ends_with("found \"maybe\""),
            "{said}"
        );
    }
    place.file("wrong.toml", "[worker.queue.v2]\nenabled = \"on\"\n")?;
    place.file("other.toml", "[nats]\nack_wait_ms = 1\n")?;
    place.file("broken.toml", "[nats")?;
    for (file, code) in [
        ("wrong.toml", 1),
        ("other.toml", 1),
        ("broken.toml", 2),
        ("absent.toml", 2),
    ] {
        let ran = place.script(FLAGS, &["--config", file], &[])?;
        assert_eq!(ran.code, code, "{file}: {}", ran.answer);
        assert!(
            ran.answer.contains(&format!("[ERROR] file {file}: ")),
            "{}",
            ran.answer
        );
    }
    // A wrong flag is said first of all.
    let flag = [("CP2_ADVANCED_RETRY_ENABLED", "maybe")];
    assert_eq!(place.script(FLAGS, &["--config", "broken.toml"], &flag)?.code, 1);
    place.file(policy_file(Feature::Queue), "{")?;
    let ran = place.script(FLAGS, &[], &[])?;
    assert!(
        ran.code == 2 && ran.answer.contains("queue_policy.json: is not JSON"),
        "{ran:?}"
    );
    Ok(())
}

#[test]
fn every_script_has_help_and_refuses_other_options_without_a_program() -> Result<()> {
    let place = Place::new()?;
    let no_program = [("CAF_WORKER_BIN", "/nowhere/caf-worker")];
    for script in [CONFIG, FLAGS, "validate_cp2.sh"] {
        for option in ["--help", "-h"] {
            let ran = place.script(script, &[option], &no_program)?;
            assert_eq!((ran.code, ran.complaint.as_str()), (0, ""), "{script}: {ran:?}");
            assert!(
                ran.answer.contains(&format!("\n  scripts/{script}")) && ran.answer.contains("Exit code: 0 "),
                "{script}: {ran:?}"
            );
        }
        let ran = place.script(script, &["--nope"], &no_program)?;
        assert!(
            ran.code == 64 && ran.answer.starts_with("[ERROR] there is no option --nope: see "),
            "{script}: {ran:?}"
        );
    }
    for arguments in [&["--output", "json"][..], &["a.toml"], &["--config"]] {
        assert_eq!(place.script(FLAGS, arguments, &[])?.code, 64, "{arguments:?}");
    }
    Ok(())
}

#[test]
fn a_script_can_be_called_through_a_symbolic_link() -> Result<()> {
    let place = with_policies()?;
    for script in [CONFIG, FLAGS, "validate_cp2.sh"] {
        let link = place.0.join("link.sh");
        std::os::unix::fs::symlink(shipped_script(script), &link)?;
        let output = Command::new(&link).arg("--help").current_dir(&place.0).output()?;
        let ran = Ran::new(output)?;
        assert_eq!((ran.code, ran.complaint.as_str()), (0, ""), "{script}: {ran:?}");
        std::fs::remove_file(link)?;
    }
    Ok(())
}

#[test]
fn without_the_program_the_scripts_say_what_to_do() -> Result<()> {
    let place = with_policies()?;
    for (program, expected) in [
        ("/nowhere/caf-worker", "is not there"),
        ("/bin/false", "it ended with 1"),
        ("/bin/true", "it ended with 0"),
    ] {
        for (script, code) in [(CONFIG, 69), (FLAGS, 2)] {
            let ran = place.script(script, &[], &[("CAF_WORKER_BIN", program)])?;
            assert_eq!(ran.code, code, "{script} {program}: {ran:?}");
            assert!(
                ran.answer.starts_with("[ERROR] ")
                    && ran.answer.contains(expected)
                    && ran.answer.contains("cargo build --release"),
                "{script} {program}: {ran:?}"
            );
        }
    }
    Ok(())
}
