use super::*;
use crate::settings::{PoolSettings, TenantSettings};

fn broken(check: impl FnOnce(&mut Rules)) -> Vec<String> {
    let mut rules = Rules::default();
    check(&mut rules);
    rules
        .into_broken()
        .into_iter()
        .map(|broken| broken.key.join("."))
        .collect()
}

fn nats(change: impl FnOnce(&mut NatsSettings)) -> Vec<String> {
    let mut settings = NatsSettings::default();
    change(&mut settings);
    broken(|rules| settings.validate(rules))
}

#[test]
fn the_defaults_break_no_rule() {
    assert_eq!(nats(|_| ()), Vec::<String>::new());
    let rest = broken(|rules| {
        LimitSettings::default().validate(rules);
        PoolsSettings::default().validate(rules);
        IdempotencySettings::default().validate(rules);
        RetrySettings::default().validate(rules);
        SupervisionSettings::default().validate(rules);
        DrainSettings::default().validate(rules);
        OutboxSettings::default().validate(rules);
        TenantSettings::default().validate(rules);
    });
    assert_eq!(rest, Vec::<String>::new());
}

#[test]
fn server_addresses_need_a_known_scheme_and_a_host() {
    for good in [
        "nats://h",
        "h:4222",
        "tls://h:1,nats://[::1]:4222",
        "wss://h/path",
        "nats://u:p@h:1",
    ] {
        assert_eq!(nats(|s| s.url = good.to_owned()), Vec::<String>::new(), "{good}");
    }
    for bad in [
        "",
        "nats://",
        "http://h",
        "nats://h/path",
        "nats://h?x",
        "nats://a,,b",
        "nats://h h",
        "nats://h:0",
        "nats://h:99999",
        "nats://h#f",
        "://",
    ] {
        assert_eq!(nats(|s| s.url = bad.to_owned()), ["url"], "{bad}");
    }
}

#[test]
fn subjects_have_no_wildcards_and_differ() {
    for bad in [
        "",
        ".",
        "a..b",
        "a.",
        "a b",
        "a.*",
        ">",
        "a\n",
        "ä",
        "$SYS.x",
        &"x".repeat(256),
    ] {
        let keys = nats(|s| s.subjects.assign = bad.to_owned());
        assert_eq!(keys, ["subjects.assign"], "{bad:?}");
    }
    let keys = nats(|s| s.subjects.cancel = s.subjects.result.clone());
    assert_eq!(keys, ["subjects.cancel"]);
}

#[test]
fn credentials_come_whole_and_of_one_kind() {
    assert_eq!(nats(|s| s.user = Some("u".into())), ["user"]);
    assert_eq!(nats(|s| s.password = Some("p".into())), ["password"]);
    let several = nats(|s| {
        s.url = "nats://u:p@h".to_owned();
        s.token = Some("t".into());
        s.nkey_file = Some("f".into());
    });
    assert_eq!(several, ["token", "nkey_file"]);
    assert_eq!(nats(|s| s.tls.cert_file = Some("c".into())), ["tls.cert_file"]);
    assert_eq!(nats(|s| s.tls.key_file = Some("k".into())), ["tls.key_file"]);
}

#[test]
fn a_bucket_has_a_name_that_the_server_takes() {
    for name in ["", "a.b", "a b", "ä"] {
        assert_eq!(
            nats(|s| s.state_bucket = name.to_owned()),
            ["state_bucket"],
            "{name}"
        );
    }
    assert!(nats(|s| s.state_bucket = "A-b_1".to_owned()).is_empty());
}

#[test]
fn numbers_outside_their_range_are_named() {
    let keys = nats(|s| {
        s.ack_wait_ms = 999;
        s.max_ack_pending = 0;
        s.max_deliver = 0;
        s.request_timeout_ms = 0;
        s.connect_deadline_ms = u64::MAX;
        s.stall_ms = 199;
    });
    let expected = [
        "ack_wait_ms",
        "max_ack_pending",
        "max_deliver",
        "connect_deadline_ms",
        "request_timeout_ms",
        "stall_ms",
    ];
    assert_eq!(keys, expected);
    let drain = DrainSettings {
        soft_s: 40,
        hard_s: 30,
    };
    assert_eq!(broken(|rules| drain.validate(rules)), ["soft_s"]);
    let mut pools = PoolsSettings::default();
    pools.gpu.max_concurrency = 0;
    pools.io.max_queue_size = Some(0);
    let keys = broken(|rules| pools.validate(rules));
    assert_eq!(keys, ["gpu.max_concurrency", "io.max_queue_size"]);
    let held = LimitSettings {
        max_held: 0,
        max_held_bytes: 0,
        max_payload_ref_bytes: 0,
    };
    assert_eq!(
        broken(|rules| held.validate(rules)),
        ["max_held", "max_held_bytes", "max_payload_ref_bytes"]
    );
}

#[test]
fn tenants_and_stream_names_must_be_usable() {
    let tenants = TenantSettings {
        allowed: vec!["acme".into(), String::new()],
        ..TenantSettings::default()
    };
    assert_eq!(broken(|rules| tenants.validate(rules)), ["allowed"]);
    for bad in ["", "a.b", "a b", "a/b", "*", &"x".repeat(256)] {
        assert_eq!(nats(|s| s.durable = bad.to_owned()), ["durable"], "{bad}");
    }
    assert_eq!(nats(|s| s.dlq_stream = s.stream.clone()), ["dlq_stream"]);
}

#[test]
fn a_partial_pool_keeps_the_other_defaults_of_that_pool() {
    let pools: PoolsSettings =
        serde_json::from_str(r#"{"gpu":{"max_queue_size":5},"io":{"max_concurrency":2}}"#).unwrap();
    let pool = |max_concurrency, max_queue_size| PoolSettings {
        max_concurrency,
        max_queue_size,
    };
    assert_eq!(pools.cpu, pool(4, None));
    assert_eq!(pools.gpu, pool(1, Some(5)));
    assert_eq!(pools.io, pool(2, None));
    assert!(serde_json::from_str::<PoolsSettings>(r#"{"gpu":{"size":5}}"#).is_err());
}

#[test]
fn debug_shows_no_secret() {
    let settings = NatsSettings {
        url: "nats://hunter1@h".to_owned(),
        password: Some("hunter2".into()),
        token: Some("hunter3".into()),
        ..NatsSettings::default()
    };
    let shown = format!("{settings:?}");
    assert!(
        !shown.contains("hunter") && shown.contains("caf-workers"),
        "{shown}"
    );
}

#[test]
fn buckets_must_have_names_that_buckets_can_have_and_be_nobodys_state() {
    for bad in ["", "a.b", "a b", "a/b", "caf-claims", "caf-state"] {
        let payload_ref = PayloadRefSettings {
            buckets: vec!["inputs".into(), bad.into()],
        };
        assert_eq!(broken(|rules| payload_ref.validate(rules)), ["buckets"], "{bad}");
        let nats = NatsSettings {
            objects_bucket: bad.into(),
            ..NatsSettings::default()
        };
        assert_eq!(broken(|rules| nats.validate(rules)), ["objects_bucket"], "{bad}");
    }
    let any = PayloadRefSettings::default();
    assert!(any.allows("inputs") && any.allows("caf-outputs") && !any.allows("caf-state"));
    let some = PayloadRefSettings {
        buckets: vec!["inputs".into()],
    };
    assert!(some.allows("inputs") && !some.allows("caf-outputs"));
}
