//! Secrets from files, by variables, options and keys: who names them, what is wrong with them, and that nothing shows them.

use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use caf_testkit::TempDir;

use super::*;
use crate::settings::load::{Loaded, SetKey, Sources, load};
use crate::settings::show;

/// A directory with a file of this name and content, for its owner only.
fn with_file(name: &str, content: impl AsRef<[u8]>) -> TempDir {
    let dir = TempDir::new("secret").expect("can be made");
    put(&dir, name, content);
    dir
}

fn put(dir: &TempDir, name: &str, content: impl AsRef<[u8]>) {
    let path = dir.path().join(name);
    std::fs::write(&path, content).expect("is written");
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("is its owner");
}

fn sources(dir: &TempDir, variables: &[(&str, &str)]) -> Sources {
    let pair = |(name, value): &(&str, &str)| (OsString::from(*name), OsString::from(*value));
    Sources {
        working_dir: dir.path().to_owned(),
        environment: variables.iter().map(pair).collect(),
        ..Sources::default()
    }
}

fn loaded(dir: &TempDir, variables: &[(&str, &str)]) -> Result<Loaded, String> {
    load(&sources(dir, variables)).map_err(|error| {
        assert!(!error.to_string().contains("hunter"), "{error}");
        error.to_string()
    })
}

#[test]
fn one_line_break_at_the_end_is_no_part_of_the_value() {
    for (content, value) in [
        ("hunter2", "hunter2"),
        ("hunter2\n", "hunter2"),
        ("hunter2\r\n", "hunter2"),
        ("hunter2\n\n", "hunter2\n"),
        (" hunter 2 ", " hunter 2 "),
    ] {
        let dir = with_file("f", content);
        let read = read_secret_file(dir.path(), Path::new("f")).expect("can be read");
        assert_eq!((read.value.expose(), read.warning), (value, None), "{content:?}");
    }
}

#[test]
fn what_is_no_secret_is_refused_with_its_reason_and_what_all_may_read_is_told() {
    let dir = with_file("big", vec![b'x'; 65_537]);
    put(&dir, "binary", [0xff, 0xfe]);
    put(&dir, "empty", "\n");
    for (name, reason) in [
        ("big", "larger than 65536 bytes"),
        ("binary", "not UTF-8"),
        ("empty", "empty"),
        (".", "no regular file"),
        ("none", "not there"),
    ] {
        let rule = read_secret_file(dir.path(), Path::new(name)).expect_err(name);
        assert!(rule.contains(reason), "{name}: {rule}");
    }
    put(&dir, "open", "hunter2");
    std::fs::set_permissions(dir.path().join("open"), Permissions::from_mode(0o644)).expect("can be");
    let read = read_secret_file(dir.path(), Path::new("open")).expect("can be read");
    assert!(read.warning.is_some_and(|warning| warning.contains("mode 0644")));
}

#[test]
fn every_secret_and_every_address_has_a_variable_for_a_file() {
    let dir = with_file("f", "hunter2hunter2\n");
    put(&dir, "url", "nats://u:hunter3@h:4222\n");
    put(&dir, "db", "postgres://u:hunter4@h/d");
    put(&dir, "headers", "authorization=hunter5\n");
    let loaded = loaded(
        &dir,
        &[
            ("WORKER__NATS__TOKEN_FILE", "f"),
            ("worker__http__admin_token_file", "f"),
            ("WORKER__BLOCKS__SQL__CONNECTIONS__MAIN__URL", "postgres://u@h/d"),
            ("WORKER__BLOCKS__SQL__CONNECTIONS__MAIN__PASSWORD_FILE", "f"),
            ("DATABASE_URL_FILE", "db"),
            ("WORKER__SECRETS__API__VALUE_FILE", "f"),
            ("NATS_URL_FILE", "url"),
            ("NATS_URL", ""),
            ("WORKER__NATS__PASSWORD_FILE", ""),
            ("CP2_OBSERVABILITY_TRACING_ENABLED", "true"),
            ("OTEL_EXPORTER_OTLP_HEADERS_FILE", "headers"),
        ],
    );
    // The address names a user, and so does the token.
    let said = loaded.expect_err("two ways to log in");
    assert!(said.contains("nats.token"), "{said}");
    let loaded = self::loaded(
        &dir,
        &[
            ("worker__http__admin_token_file", "f"),
            ("WORKER__BLOCKS__SQL__CONNECTIONS__MAIN__URL", "postgres://u@h/d"),
            ("WORKER__BLOCKS__SQL__CONNECTIONS__MAIN__PASSWORD_FILE", "f"),
            ("DATABASE_URL_FILE", "db"),
            ("WORKER__SECRETS__API__VALUE_FILE", "f"),
            ("NATS_URL_FILE", "url"),
            ("NATS_URL", ""),
            ("WORKER__NATS__PASSWORD_FILE", ""),
            ("CP2_OBSERVABILITY_TRACING_ENABLED", "true"),
            ("OTEL_EXPORTER_OTLP_HEADERS_FILE", "headers"),
        ],
    )
    .expect("loads");
    let settings = &loaded.settings;
    let value = Secret::new("hunter2hunter2");
    assert_eq!(settings.http.admin_token.as_ref(), Some(&value));
    assert_eq!(
        settings.blocks.sql.connections["main"].password.as_ref(),
        Some(&value)
    );
    assert_eq!(settings.secrets["api"].value.as_ref(), Some(&value));
    assert_eq!(settings.nats.url, "nats://u:hunter3@h:4222");
    assert_eq!(settings.nats.password, None);
    assert_eq!(
        settings.blocks.sql.connections["default"].url,
        "postgres://u:hunter4@h/d"
    );
    assert_eq!(settings.worker.tracing.headers()["authorization"], "hunter5");
    let shown: Vec<String> = show::lines(&loaded).iter().map(ToString::to_string).collect();
    let shown = shown.join("\n");
    assert!(!shown.contains("hunter"), "{shown}");
    assert!(
        shown.contains("http.admin_token = \"[REDACTED]\"  # file f (env worker__http__admin_token_file)"),
        "{shown}"
    );
}

#[test]
fn a_value_and_a_file_for_it_are_one_too_many_and_both_are_named() {
    let dir = with_file("f", "hunter2hunter2");
    for (one, other) in [
        ("WORKER__NATS__TOKEN", "WORKER__NATS__TOKEN_FILE"),
        ("DATABASE_URL", "DATABASE_URL_FILE"),
    ] {
        let said = loaded(&dir, &[(one, "postgres://hunter1/d"), (other, "f")]).expect_err("both are given");
        assert!(
            said.contains(&format!("env {one} too")) && said.contains(&format!("env {other}: ")),
            "{said}"
        );
    }
    put(
        &dir,
        "w.toml",
        "[nats]\ntoken = \"hunter1hunter1\"\ntoken_file = \"f\"\n",
    );
    let both = Sources {
        files: vec!["w.toml".into()],
        ..sources(&dir, &[])
    };
    let said = load(&both).expect_err("both are given").to_string();
    assert!(said.contains("nats.token and as nats.token_file"), "{said}");
}

#[test]
fn a_later_source_beats_an_earlier_one_whichever_way_the_value_comes() {
    let dir = with_file("f", "hunter2hunter2");
    put(&dir, "w.toml", "[nats]\ntoken_file = \"f\"\n");
    let by_file = Sources {
        files: vec!["w.toml".into()],
        ..sources(&dir, &[])
    };
    let token = |sources: &Sources| {
        let loaded = load(sources).expect("loads");
        loaded.settings.nats.token.map(|token| token.expose().to_owned())
    };
    assert_eq!(token(&by_file).as_deref(), Some("hunter2hunter2"));
    let by_variable = Sources {
        environment: vec![("WORKER__NATS__TOKEN".into(), "other".into())],
        ..by_file.clone()
    };
    assert_eq!(token(&by_variable).as_deref(), Some("other"));
    let by_option = Sources {
        command_line: vec![SetKey::Key("nats.token_file".to_owned(), "f".to_owned())],
        ..by_variable
    };
    assert_eq!(token(&by_option).as_deref(), Some("hunter2hunter2"));
}

#[test]
fn keys_that_hold_no_secret_have_no_such_variable() {
    let dir = with_file("f", "x");
    let said = loaded(&dir, &[("WORKER__NATS__STREAM_FILE", "f")]).expect_err("is unknown");
    assert!(said.contains("unknown key"), "{said}");
    let said = loaded(&dir, &[("WORKER__NATS__TOKEN_FILE", "none")]).expect_err("is not there");
    assert!(
        said.contains("env WORKER__NATS__TOKEN_FILE: nats.token: names the file none, which is not there"),
        "{said}"
    );
}

#[test]
fn what_a_file_holds_for_an_address_is_never_shown_whether_it_is_one_or_not() {
    let dir = with_file("plain", "hunter2plain");
    put(&dir, "host", "nats://hunter3.example:4222");
    for variable in [
        "DATABASE_URL_FILE",
        "NATS_URL_FILE",
        "WORKER__NATS__URL_FILE",
        "WORKER__TENANTS__POLICY_STORE__URL_FILE",
    ] {
        // Where it is let through or refused, `loaded` looks at every problem.
        if let Ok(loaded) = loaded(&dir, &[(variable, "plain")]) {
            let shown: Vec<String> = show::lines(&loaded).iter().map(ToString::to_string).collect();
            assert!(!shown.join("\n").contains("hunter"), "{variable}: {shown:?}");
        }
    }
    let said = loaded(&dir, &[("DATABASE_URL_FILE", "plain")]).expect_err("is no address");
    assert!(said.contains("found \"[REDACTED]\""), "{said}");
    let good = loaded(&dir, &[("NATS_URL_FILE", "host")]).expect("is an address");
    let shown: Vec<String> = show::lines(&good).iter().map(ToString::to_string).collect();
    let expected = "nats.url = \"[REDACTED]\"  # file host (env NATS_URL_FILE)";
    assert!(shown.iter().any(|line| line == expected), "{shown:?}");
    put(&dir, "w.toml", "[tenants.policy_store]\nurl_file = \"plain\"\n");
    let by_key = Sources {
        files: vec!["w.toml".into()],
        ..sources(&dir, &[])
    };
    let said = load(&by_key).expect_err("is no address").to_string();
    assert!(
        said.contains("tenants.policy_store.url") && !said.contains("hunter"),
        "{said}"
    );
}
