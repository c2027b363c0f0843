//! What the section `secrets` may say, and where its values come from.

use caf_testkit::TempDir;

use super::*;
use crate::settings::load::load;

const WHOM: &str =
    "tenants = [\"a\"]\nblock_types = [\"http.request\"]\ndestinations = [\"https://h.example\"]\n";

fn loaded(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, String> {
    let dir = TempDir::new("named").expect("can be made");
    std::fs::write(dir.path().join("w.toml"), text).expect("is written");
    std::fs::write(dir.path().join("good"), "hunter2hunter2\n").expect("is written");
    std::fs::write(dir.path().join("short"), "hunter2").expect("is written");
    let sources = Sources {
        working_dir: dir.path().to_owned(),
        files: vec!["w.toml".into()],
        environment: variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
        ..Sources::default()
    };
    load(&sources).map_err(|error| {
        assert!(!error.to_string().contains("hunter"), "{error}");
        error.to_string()
    })
}

#[test]
fn a_value_comes_from_the_settings_a_file_or_a_variable_and_is_known_to_be_a_secret() {
    let variables = [("OWN_NAME", "hunter2hunter2")];
    for from in [
        "value = \"hunter2hunter2\"",
        "file = \"good\"",
        "env = \"OWN_NAME\"",
    ] {
        let loaded = loaded(&format!("[secrets.\"a.b-C\"]\n{from}\n{WHOM}"), &variables).expect(from);
        let secret = &loaded.settings.secrets["a.b-C"];
        assert_eq!(secret.value, Some("hunter2hunter2".into()), "{from}");
        assert_eq!(loaded.settings.secrets(), ["hunter2hunter2"], "{from}");
        assert_eq!(vault_entries(&loaded.settings.secrets).len(), 1, "{from}");
        assert!(!format!("{:?}", loaded.settings.secrets).contains("hunter"));
    }
}

#[test]
fn every_broken_rule_names_its_key() {
    let good = format!("value = \"hunter2hunter2\"\n{WHOM}");
    let with = |from: &str, to: &str| good.replace(from, to);
    for (name, text, key, rule) in [
        ("\"a b\"", good.clone(), "secrets.\"a b\": ", "a name of 1 to 64"),
        (
            "a",
            with("value = \"hunter2hunter2\"", ""),
            "secrets.a.file: ",
            "must be given",
        ),
        (
            "a",
            format!("file = \"good\"\n{good}"),
            "secrets.a.value: ",
            "not more",
        ),
        (
            "a",
            with("hunter2hunter2", "hunter2"),
            "secrets.a.value: ",
            "8 to 8192 bytes",
        ),
        (
            "a",
            with("value = \"hunter2hunter2\"", "file = \"short\""),
            "secrets.a.value: ",
            "8 to 8192 bytes",
        ),
        (
            "a",
            with("value = \"hunter2hunter2\"", "file = \"none\""),
            "secrets.a.file: ",
            "not there",
        ),
        (
            "a",
            with("value = \"hunter2hunter2\"", "env = \"NONE\""),
            "secrets.a.env: ",
            "not set",
        ),
        ("a", with("\"a\"", "\"\""), "secrets.a.tenants: ", "tenant ids"),
        (
            "a",
            with("http.request", "echo"),
            "secrets.a.block_types: ",
            "no other block",
        ),
        (
            "a",
            with("https://h.example", "*"),
            "secrets.a.destinations: ",
            "must be a host",
        ),
        (
            "a",
            with("https://h.example", "sql:none"),
            "secrets.a.destinations: ",
            "must name connections",
        ),
    ] {
        let said = loaded(&format!("[secrets.{name}]\n{text}"), &[]).expect_err(rule);
        assert!(said.contains(key) && said.contains(rule), "{key} {rule}: {said}");
    }
    let connection = "[blocks.sql.connections.m]\nurl = \"postgres://u@h/d\"\npassword_secret = \"none\"\n";
    let said = loaded(connection, &[]).expect_err("is not there");
    assert!(
        said.contains("blocks.sql.connections.m.password_secret: must be the name of a secret"),
        "{said}"
    );
}

#[test]
fn nobody_is_listed_by_default() {
    let loaded = loaded("[secrets.a]\nvalue = \"hunter2hunter2\"\n", &[]).expect("loads");
    let secret = &loaded.settings.secrets["a"];
    let none: &[String] = &[];
    assert_eq!(
        (&*secret.tenants, &*secret.block_types, &*secret.destinations),
        (none, none, none)
    );
}
