use super::*;
use crate::settings::origin::SECRET_KEYS;

fn path(key: &str) -> KeyPath {
    key.split('.').map(str::to_owned).collect()
}

fn kind_of(key: &str) -> (Kind, bool) {
    match Catalogue::default().find(&path(key)) {
        Found::Leaf(leaf) => (leaf.kind.clone(), leaf.optional),
        other => panic!("{key}: {other:?}"),
    }
}

#[test]
fn every_key_has_a_type_that_texts_can_be_read_for() {
    let catalogue = Catalogue::default();
    let keys = catalogue.keys();
    assert!(keys.len() > 70, "{}", keys.len());
    for key in keys {
        let text = key_text(&key);
        assert_ne!(kind_of(&text).0, Kind::Other, "{text}");
    }
}

#[test]
fn types_are_read_off_the_schema() {
    assert_eq!(kind_of("nats.url"), (Kind::Text, false));
    assert_eq!(kind_of("worker.id"), (Kind::Text, true));
    assert_eq!(kind_of("worker.queue.v2.enabled"), (Kind::Flag, false));
    let words = |words: &[&str]| Kind::Choice(words.iter().map(|word| (*word).to_owned()).collect());
    assert_eq!(kind_of("nats.mode"), (words(&["jetstream", "core"]), false));
    assert_eq!(kind_of("queue.admission"), (words(&["refuse", "wait"]), true));
    assert_eq!(
        kind_of("tenants.allowed"),
        (Kind::List(Box::new(Kind::Text)), false)
    );
    let u32_max = i128::from(u32::MAX);
    assert_eq!(
        kind_of("retry.max_attempts"),
        (Kind::Integer { min: 0, max: u32_max }, false)
    );
    assert_eq!(kind_of("blocks.fs.roots.anything"), (Kind::Text, false));
    assert_eq!(kind_of("blocks.sql.connections.x.read_only"), (Kind::Flag, false));
}

#[test]
fn keys_that_sound_secret_are_secret() {
    let keys: Vec<String> = Catalogue::default()
        .keys()
        .iter()
        .map(|key| key_text(key))
        .collect();
    for key in &keys {
        let last = key.rsplit('.').next().unwrap();
        let is_listed = SECRET_KEYS.contains(&key.as_str());
        // The name of a secret, and values and keys in sections that say so.
        if last == "password_secret" || matches!(key.as_str(), "secrets.*.value" | "approvals.links.key") {
            continue;
        }
        assert_eq!(caf_actors::mask::is_sensitive(last), is_listed, "{key}");
    }
    for secret in SECRET_KEYS {
        assert!(keys.iter().any(|key| key == secret), "{secret}");
    }
}

#[test]
fn the_nearest_key_is_found_across_sections_and_names() {
    let catalogue = Catalogue::default();
    for (given, nearest) in [
        ("nats.durabel", "nats.durable"),
        ("nats.ack_wait", "nats.ack_wait_ms"),
        ("url", "nats.url"),
        ("ttl_s", "idempotency.ttl_s"),
        ("worker.health_addr", "http.health_addr"),
        ("pool.cpu.max_concurrency", "pools.cpu.max_concurrency"),
        (
            "blocks.sql.connections.main.usr",
            "blocks.sql.connections.main.user",
        ),
        ("nats.url.x", "nats.url"),
    ] {
        assert_eq!(catalogue.nearest(&path(given), false), nearest, "{given}");
    }
    assert_eq!(catalogue.nearest(&path("nat"), true), "nats");
    assert_eq!(catalogue.nearest(&path("nats.subject"), true), "nats.subjects");
}

#[test]
fn texts_become_values_of_the_keys_type() {
    let integer = Kind::Integer { min: 0, max: 10 };
    for (kind, text, value) in [
        (&Kind::Text, " x ", Some(Value::from(" x "))),
        (&Kind::Flag, "YES", Some(Value::from(true))),
        (&Kind::Flag, "No", Some(Value::from(false))),
        (&Kind::Flag, "on", None),
        (&integer, " 10 ", Some(Value::from(10))),
        (&integer, "11", None),
        (&integer, "1.5", None),
        (&integer, "1e1", None),
        (&integer, "ten", None),
        (
            &Kind::Choice(vec!["info".into()]),
            "INFO",
            Some(Value::from("info")),
        ),
        (&Kind::Choice(vec!["info".into()]), "trace", None),
        (
            &Kind::List(Box::new(Kind::Text)),
            "a, b,,c",
            Some(Value::from(vec!["a", "b", "c"])),
        ),
    ] {
        assert_eq!(kind.parse(text), value, "{text}");
    }
}

#[test]
fn values_from_files_must_have_the_keys_type_exactly() {
    let integer = Kind::Integer {
        min: 0,
        max: i128::from(u64::MAX),
    };
    for value in [
        Value::from(-1),
        Value::from(1.0),
        Value::from("1"),
        Value::Null,
        Value::from(true),
    ] {
        assert!(!integer.accepts(&value), "{value}");
    }
    assert!(integer.accepts(&Value::from(u64::MAX)));
    assert!(!Kind::Text.accepts(&Value::from(5)) && !Kind::Flag.accepts(&Value::from("true")));
    assert!(!Kind::List(Box::new(Kind::Text)).accepts(&Value::from(vec![1])));
}
