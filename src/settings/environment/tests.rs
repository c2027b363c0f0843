use super::*;
use crate::settings::catalogue::Catalogue;
use crate::settings::feature::Feature;

fn read(variables: &[(&str, &str)]) -> (Vec<(String, Option<Value>)>, Vec<String>) {
    let catalogue = Catalogue::of_settings();
    let mut reader = Reader::new(catalogue);
    let environment = variables.iter().map(|(name, value)| (name.into(), value.into()));
    let variables = collect(&mut reader, environment);
    let mut entries = plain(&mut reader, &variables);
    entries.extend(prefixed(&mut reader, &variables));
    let entries = entries
        .into_iter()
        .map(|entry| (entry.key.join("."), entry.value))
        .collect();
    (entries, reader.problems.iter().map(ToString::to_string).collect())
}

fn values(variables: &[(&str, &str)]) -> Vec<(String, Value)> {
    let (entries, problems) = read(variables);
    assert_eq!(problems, Vec::<String>::new());
    entries
        .into_iter()
        .map(|(key, value)| (key, value.unwrap_or_default()))
        .collect()
}

#[test]
fn every_plain_name_sets_its_key() {
    let catalogue = Catalogue::of_settings();
    for (name, key) in PLAIN {
        let text = match key {
            "nats.url" | "blocks.sql.connections.default.url" => "nats://h",
            _ if name.ends_with("SUBJECT") => "a.b",
            "worker.sandbox.enabled" => "true",
            _ => "7",
        };
        let (entries, problems) = read(&[(name, text)]);
        assert_eq!(problems, Vec::<String>::new(), "{name}");
        assert_eq!(entries[0].0, key, "{name}");
        assert!(matches!(
            catalogue.find(&split(key)),
            crate::settings::catalogue::Found::Leaf(_)
        ));
    }
}

#[test]
fn the_workers_own_name_beats_the_shared_one() {
    let set = values(&[("RESOURCE_POOL_CPU", "2"), ("WORKER_CPU_POOL_SIZE", "3")]);
    assert_eq!(
        set.last().unwrap(),
        &("pools.cpu.max_concurrency".to_owned(), Value::from(3))
    );
    let set = values(&[("LOG_LEVEL", "WARN"), ("RUST_LOG", "debug")]);
    assert_eq!(set.last().unwrap().1, "warn");
}

#[test]
fn both_variables_of_the_log_hold_directives_and_one_is_shared_with_other_programs() {
    assert_eq!(
        values(&[
            ("RUST_LOG", "some_crate=trace,info,[span]=debug"),
            ("LOG_LEVEL", "nats::source=warn")
        ]),
        [
            ("log.level".to_owned(), Value::from("info")),
            ("log.levels.some_crate".to_owned(), Value::from("debug")),
            ("log.levels.nats::source".to_owned(), Value::from("warn")),
        ]
    );
    assert!(read(&[("LOG_LEVEL", "loud")]).1[0].contains("error, warn, info, debug"));
}

#[test]
fn either_name_switches_a_flag_on_and_both_off_switch_it_off() {
    let (one, two) = ("CP2_QUEUE_MANAGEMENT_ENABLED", "WORKER_QUEUE_V2_ENABLED");
    for (first, second, is_on) in [
        ("TRUE", "false", true),
        ("0", "yes", true),
        ("1", "", true),
        ("no", "FALSE", false),
        ("", "", false),
    ] {
        let set = values(&[(one, first), (two, second)]);
        let expected = [("worker.queue.v2.enabled".to_owned(), Value::Bool(is_on))];
        assert_eq!(set, expected, "{first:?} {second:?}");
    }
    let (_, problems) = read(&[(one, "on"), (two, "2")]);
    assert_eq!(problems.len(), 2);
    assert!(
        problems[0].starts_with("env CP2_QUEUE_MANAGEMENT_ENABLED: worker.queue.v2.enabled: must be true")
    );
}

#[test]
fn a_base_address_sets_health_one_above_and_metrics_two_above() {
    for (base, health, metrics) in [
        ("0.0.0.0:9090", "0.0.0.0:9091", "0.0.0.0:9092"),
        (
            "http://127.0.0.1:8000/metrics",
            "127.0.0.1:8001",
            "127.0.0.1:8002",
        ),
        ("localhost:1", "127.0.0.1:2", "127.0.0.1:3"),
        (":9090", "0.0.0.0:9091", "0.0.0.0:9092"),
        ("[::]:9090", "[::]:9091", "[::]:9092"),
        ("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"),
    ] {
        let set = values(&[("PROMETHEUS_ENDPOINT", base)]);
        assert_eq!(
            set[0],
            ("http.health_addr".to_owned(), Value::from(health)),
            "{base}"
        );
        assert_eq!(
            set[1],
            ("http.metrics_addr".to_owned(), Value::from(metrics)),
            "{base}"
        );
    }
    for bad in [
        "9090",
        "host:9090",
        "0.0.0.0:65534",
        "0.0.0.0:x",
        "ftp://0.0.0.0:1",
    ] {
        assert_eq!(read(&[("PROMETHEUS_ENDPOINT", bad)]).1.len(), 2, "{bad}");
    }
}

#[test]
fn prefixed_names_reach_every_key_in_any_case() {
    let set = values(&[
        ("WORKER__NATS__ACK_WAIT_MS", "2000"),
        ("worker__tenants__allowed", "a, b"),
        ("Worker__Blocks__Fs__Roots__Work", "/w"),
        ("WORKER__BLOCKS__SQL__CONNECTIONS__MAIN__READ_ONLY", "no"),
    ]);
    let expected: Vec<(String, Value)> = vec![
        ("nats.ack_wait_ms".into(), 2000.into()),
        ("blocks.sql.connections.main.read_only".into(), false.into()),
        ("blocks.fs.roots.work".into(), "/w".into()),
        ("tenants.allowed".into(), vec!["a", "b"].into()),
    ];
    for pair in &expected {
        assert!(set.contains(pair), "{pair:?} not in {set:?}");
    }
    assert_eq!(set.len(), expected.len());
}

#[test]
fn empty_prefixed_names_reset_and_empty_plain_names_are_not_set() {
    assert_eq!(
        read(&[("WORKER__LOG__FILE", "")]).0,
        [("log.file".to_owned(), None)]
    );
    assert_eq!(
        read(&[("NATS_URL", ""), ("PROMETHEUS_ENDPOINT", "")]),
        (vec![], vec![])
    );
}

#[test]
fn bad_prefixed_names_are_errors_that_help() {
    for (name, text, expected) in [
        (
            "WORKER__NATS__URI",
            "secret",
            "the nearest known one is nats.url (WORKER__NATS__URL)",
        ),
        ("WORKER__", "x", "unknown key"),
        ("WORKER__NATS", "x", "is a section"),
        ("WORKER__BLOCKS__FS__ROOTS", "x", "is a section"),
        (
            "WORKER__RETRY__MAX_ATTEMPTS",
            "many",
            "must be a whole number from 0 to 4294967295, found \"many\"",
        ),
        (
            "WORKER__NATS__ACK_WAIT_MS",
            "-1",
            "must be a whole number of at least 0",
        ),
    ] {
        let (entries, problems) = read(&[(name, text)]);
        assert_eq!((entries.len(), problems.len()), (0, 1), "{name}");
        assert!(problems[0].starts_with(&format!("env {name}: ")), "{problems:?}");
        assert!(
            problems[0].contains(expected) && !problems[0].contains("secret"),
            "{problems:?}"
        );
    }
    let (_, problems) = read(&[("WORKER__LOG__LEVEL", "info"), ("worker__log__level", "warn")]);
    assert!(problems[0].contains("in another case"), "{problems:?}");
}

#[cfg(unix)]
#[test]
fn bytes_that_are_no_text_are_an_error_only_in_our_variables() {
    use std::os::unix::ffi::OsStringExt;
    let catalogue = Catalogue::of_settings();
    let mut reader = Reader::new(catalogue);
    let bytes = || OsString::from_vec(vec![0xff]);
    let environment = [
        ("PATH".into(), bytes()),
        ("NATS_URL".into(), bytes()),
        (bytes(), bytes()),
    ];
    assert!(collect(&mut reader, environment).is_empty());
    assert_eq!(reader.problems.len(), 1);
    assert_eq!(reader.problems[0].to_string(), "env NATS_URL: is not UTF-8");
}

fn flag_warnings_of(pairs: &[(&str, &str)]) -> Vec<String> {
    let catalogue = Catalogue::of_settings();
    let mut reader = Reader::new(catalogue);
    let environment = pairs.iter().map(|(name, text)| (name.into(), text.into()));
    let variables = collect(&mut reader, environment);
    plain(&mut reader, &variables);
    assert_eq!(reader.problems, []);
    warnings(&variables)
}

#[test]
fn a_file_for_what_can_be_no_secret_is_told_to_be_in_vain() {
    for name in [
        "CAF_ASSIGN_SUBJECT",
        "OTEL_SERVICE_NAME",
        "RESOURCE_POOL_CPU",
        "PROMETHEUS_ENDPOINT",
        "LOG_LEVEL",
        "CP2_CANCELLATION_ENABLED",
    ] {
        let said = format!(
            "{name}_FILE has no effect: only what may be a secret can be given as a file, and {name} is none"
        );
        assert_eq!(flag_warnings_of(&[(&format!("{name}_FILE"), "/run/x")]), [said]);
    }
    let others = [
        ("SSL_CERT_FILE", "/x"),
        ("RUST_LOG_FILE", "/x"),
        ("LOG_FILE", "/x"),
    ];
    assert_eq!(flag_warnings_of(&others), Vec::<String>::new());
}

#[test]
fn a_variable_that_looks_like_a_flag_and_is_none_is_told_the_nearest_flag() {
    for (name, nearest) in [
        ("CP2_ADVANCED_RETRIES_ENABLED", "CP2_ADVANCED_RETRY_ENABLED"),
        ("WORKER_RETRIS_V2_ENABLED", "WORKER_RETRIES_V2_ENABLED"),
        ("WORKER_TIMEOUTS_V2_ENABLED", "CP2_COMPLETE_TIMEOUT_ENABLED"),
        ("CP2_QUEUE_MANAGMENT_ENABLED", "CP2_QUEUE_MANAGEMENT_ENABLED"),
        ("BEAMLINE_QUEUE_ENABLED", "WORKER_QUEUE_V2_ENABLED"),
        ("CP2_CANCELLATION_ENABLE", "CP2_CANCELLATION_ENABLED"),
        ("WORKER_QUEUE_V2_ENABLE", "WORKER_QUEUE_V2_ENABLED"),
    ] {
        for value in ["true", "false", "maybe"] {
            let said = format!("{name} is no flag and has no effect; the nearest known one is {nearest}");
            assert_eq!(flag_warnings_of(&[(name, value)]), [said]);
        }
    }
    for name in Feature::ALL.iter().flat_map(|feature| feature.variables()) {
        assert_eq!(flag_warnings_of(&[(name, "true")]), Vec::<String>::new());
    }
    let none = [
        ("CP2_ADVANCED_RETRY", "1"),
        ("WORKER_RETRIES_ENABLED", "1"),
        ("WORKER__WORKER__QUEUE__V2__ENABLED", "1"),
        ("CP2_ENABLED", "1"),
    ];
    assert_eq!(flag_warnings_of(&none), Vec::<String>::new());
}

#[test]
fn names_of_one_flag_that_disagree_are_said_with_the_one_that_counts() {
    let (first, second) = ("CP2_ADVANCED_RETRY_ENABLED", "WORKER_RETRIES_V2_ENABLED");
    let prefixed = "WORKER__WORKER__RETRIES__V2__ENABLED";
    let either = |on: &str, off: &str| {
        format!(
            "{on} says true and {off} false: true counts, because either name switches worker.retries.v2.enabled on"
        )
    };
    let over = |says: bool, plain: &str| {
        format!(
            "{prefixed} says {says} and {plain} {}: {says} counts, because WORKER__… comes after plain names",
            !says
        )
    };
    for (given, said) in [
        (
            &[(first, "false"), (second, "true")][..],
            vec![either(second, first)],
        ),
        (&[(first, "1"), (second, "")], vec![either(first, second)]),
        (&[(prefixed, "false"), (first, "true")], vec![over(false, first)]),
        (&[(prefixed, "true"), (second, "no")], vec![over(true, second)]),
        (&[(prefixed, ""), (first, "true")], vec![over(false, first)]),
        (
            &[(prefixed, "0"), (first, "0"), (second, "1")],
            vec![over(false, second)],
        ),
        (&[(first, "1"), (second, "yes"), (prefixed, "true")], vec![]),
        (&[(first, "0"), (second, ""), (prefixed, "no")], vec![]),
    ] {
        assert_eq!(flag_warnings_of(given), said, "{given:?}");
    }
}
