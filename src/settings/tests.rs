use super::*;
use caf_actors::settings::rules::Rules;

fn broken(change: impl FnOnce(&mut Settings)) -> Vec<String> {
    let mut settings = Settings::default();
    change(&mut settings);
    let mut rules = Rules::default();
    settings.validate(&mut rules);
    rules
        .into_broken()
        .into_iter()
        .map(|broken| broken.key.join("."))
        .collect()
}

#[test]
fn the_defaults_break_no_rule() {
    assert_eq!(broken(|_| ()), Vec::<String>::new());
}

#[test]
fn rules_of_every_section_are_checked_under_its_name() {
    let keys = broken(|s| {
        s.worker.id = Some("a\nb".into());
        s.worker.state_dir = PathBuf::new();
        s.worker.heartbeat_interval_ms = 99;
        s.worker.io_threads = 0;
        s.worker.supervision.window_s = 0;
        s.nats.subjects.ack = "a b".into();
        s.limits.max_held = 0;
        s.pools.io.max_concurrency = 0;
        s.idempotency.ttl_s = 0;
        s.retry.max_attempts = 0;
        s.tenants.allowed = vec![String::new()];
        s.drain.soft_s = 31;
        s.http.admin_addr = "here".into();
        s.outbox.max_bytes = 1_048_575;
        s.log.file = Some(PathBuf::new());
        s.blocks.http.max_request_bytes = 0;
        s.blocks.http.allow_targets = vec!["a b".into()];
        s.blocks.fs.roots.insert("a/b".into(), "x".into());
    });
    let expected = [
        "worker.id",
        "worker.state_dir",
        "worker.heartbeat_interval_ms",
        "worker.io_threads",
        "worker.supervision.window_s",
        "nats.subjects.ack",
        "limits.max_held",
        "pools.io.max_concurrency",
        "idempotency.ttl_s",
        "retry.max_attempts",
        "tenants.allowed",
        "drain.soft_s",
        "http.admin_addr",
        "outbox.max_bytes",
        "log.file",
        "blocks.http.allow_targets.0",
        "blocks.http.max_request_bytes",
        "blocks.fs.roots.a/b",
    ];
    assert_eq!(keys, expected);
}

#[test]
fn tenants_that_labels_name_have_usable_ids() {
    let listed = |tenant: &str| broken(|s| s.worker.metrics.tenant_label_allowlist = vec![tenant.to_owned()]);
    assert_eq!(listed("acme"), Vec::<String>::new());
    for wrong in ["", "a\nb", &"t".repeat(129)] {
        assert_eq!(listed(wrong), ["worker.metrics.tenant_label_allowlist"]);
    }
}

#[test]
fn listeners_must_not_share_a_port() {
    let http = |metrics: &str, admin: &str| {
        broken(|s| {
            s.http.metrics_addr = metrics.to_owned();
            s.http.admin_addr = admin.to_owned();
            s.http.admin_token = Some("token".into());
        })
    };
    assert_eq!(http("127.0.0.1:9091", "[::1]:9093"), ["http.metrics_addr"]);
    assert_eq!(http("0.0.0.0:0", "0.0.0.0:0"), Vec::<String>::new());
    assert_eq!(http("127.0.0.1:9", "127.0.0.2:9"), Vec::<String>::new());
}

#[test]
fn an_admin_port_that_others_can_reach_needs_a_token() {
    let http = |admin: &str, token: Option<&str>| {
        broken(|s| {
            s.http.admin_addr = admin.to_owned();
            s.http.admin_token = token.map(Into::into);
        })
    };
    for loopback in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        assert_eq!(http(loopback, None), Vec::<String>::new(), "{loopback}");
    }
    for reachable in ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "[::ffff:10.0.0.1]:1"] {
        assert_eq!(http(reachable, None), ["http.admin_token"], "{reachable}");
        assert_eq!(
            http(reachable, Some("t0ken")),
            Vec::<String>::new(),
            "{reachable}"
        );
    }
    for unusable in ["", "a b", "a\n", "ü"] {
        assert_eq!(
            http("127.0.0.1:1", Some(unusable)),
            ["http.admin_token"],
            "{unusable:?}"
        );
    }
    let named = |host: &str| broken(|s| s.http.admin_hosts = vec![host.to_owned()]);
    assert_eq!(named("worker-0.workers"), Vec::<String>::new());
    for unusable in ["", "http://a", "a:1", "*"] {
        assert_eq!(named(unusable), ["http.admin_hosts"], "{unusable}");
    }
}

#[test]
fn a_connection_is_checked_under_its_name() {
    let connection = serde_json::from_str(r#"{"url":" ","pool_size":0}"#).unwrap();
    let keys = broken(|s| {
        s.blocks.sql.connections.insert("main".into(), connection);
    });
    assert_eq!(
        keys,
        [
            "blocks.sql.connections.main.url",
            "blocks.sql.connections.main.pool_size"
        ]
    );
}

#[test]
fn a_name_with_dots_is_one_segment_of_the_key() {
    let connection = serde_json::from_str(r#"{"url":"sqlite://x.db","max_rows":0}"#).unwrap();
    let mut settings = Settings::default();
    settings.blocks.sql.connections.insert("v1.2".into(), connection);
    settings.blocks.fs.roots.insert("a.b".into(), PathBuf::new());
    let mut rules = Rules::default();
    settings.validate(&mut rules);
    let broken = rules.into_broken();
    let keys: Vec<_> = broken.iter().map(|broken| broken.key.as_slice()).collect();
    assert_eq!(
        keys,
        [
            ["blocks", "fs", "roots", "a.b"].as_slice(),
            &["blocks", "sql", "connections", "v1.2", "max_rows"],
        ]
    );
}

#[test]
fn debug_shows_no_secret() {
    let mut settings = Settings::default();
    settings.nats.password = Some("hunter1".into());
    let connection = r#"{"url":"postgres://u:hunter2@h/d","password":"hunter3"}"#;
    let connection = serde_json::from_str(connection).unwrap();
    settings.blocks.sql.connections.insert("main".into(), connection);
    for shown in [
        format!("{settings:?}"),
        format!("{:?}", settings.blocks),
        format!("{settings:#?}"),
    ] {
        assert!(!shown.contains("hunter") && shown.contains("main"), "{shown}");
    }
}
