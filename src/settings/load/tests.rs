use super::*;
use crate::settings::not_yet::warnings;
use crate::settings::show::lines;

/// A directory of its own, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("caf-settings-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(path.join("config")).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.0.join(name), text).unwrap();
        PathBuf::from(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn sources(dir: &Dir, files: &[PathBuf], environment: &[(&str, &str)], options: &[(&str, &str)]) -> Sources {
    let option = |(key, value): &(&str, &str)| SetKey::Key((*key).to_owned(), (*value).to_owned());
    Sources {
        working_dir: dir.0.clone(),
        files: files.to_vec(),
        environment: environment
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
        command_line: options.iter().map(option).collect(),
    }
}

/// What is wrong with one file, one problem per line.
fn problems_of(name: &str, text: &str) -> String {
    let dir = Dir::new();
    let file = dir.file(name, text);
    load(&sources(&dir, &[file], &[], &[])).unwrap_err().to_string()
}

fn origin(loaded: &Loaded, key: &str) -> String {
    loaded.origin(&environment::split(key)).to_string()
}

#[test]
fn without_any_source_the_defaults_stand() {
    let loaded = load(&sources(&Dir::new(), &[], &[], &[])).unwrap();
    assert_eq!(loaded.settings, Settings::default());
    assert!(loaded.origins.is_empty() && warnings(&loaded).is_empty());
}

#[test]
fn each_source_beats_the_ones_before_it() {
    let dir = Dir::new();
    let limit = |value: u32| format!("[limits]\nmax_held = {value}\n");
    let steps = [
        ("file config/worker.toml", 1),
        ("file a.toml", 2),
        ("file b.json", 3),
        ("env NATS_ACK_WAIT_MS", 4),
        ("env WORKER__NATS__ACK_WAIT_MS", 5),
        ("command line", 6),
    ];
    dir.file(DEFAULT_FILE, &(limit(1) + "[nats]\nack_wait_ms = 1001"));
    let a = dir.file("a.toml", "[nats]\nack_wait_ms = 1002");
    let b = dir.file("b.json", r#"{"nats": {"ack_wait_ms": 1003}}"#);
    for count in 1..=steps.len() {
        let files: Vec<_> = [a.clone(), b.clone()]
            .into_iter()
            .take(count.saturating_sub(1))
            .collect();
        let variables = [
            ("NATS_ACK_WAIT_MS", "1004"),
            ("WORKER__NATS__ACK_WAIT_MS", "1005"),
        ];
        let options = [("nats.ack_wait_ms", "1006")];
        let variables = &variables[..count.saturating_sub(3).min(2)];
        let options = &options[..count.saturating_sub(5)];
        let loaded = load(&sources(&dir, &files, variables, options)).unwrap();
        let (source, value) = steps[count - 1];
        assert_eq!(loaded.settings.nats.ack_wait_ms, 1000 + value);
        assert_eq!(origin(&loaded, "nats.ack_wait_ms"), source);
        assert_eq!(loaded.settings.limits.max_held, 1);
        assert_eq!(origin(&loaded, "limits.max_held"), "file config/worker.toml");
        assert_eq!(origin(&loaded, "nats.url"), "default");
    }
}

#[test]
fn an_empty_text_puts_a_key_back_to_its_default() {
    let dir = Dir::new();
    let file = dir.file(
        "a.toml",
        "[log]\nfile = \"x\"\nlevel = \"warn\"\n[worker]\nid = \"w\"",
    );
    let environment = [
        ("WORKER__LOG__FILE", ""),
        ("WORKER__WORKER__ID", "v"),
        ("LOG_LEVEL", ""),
    ];
    let loaded = load(&sources(&dir, &[file], &environment, &[("worker.id", "")])).unwrap();
    assert_eq!(
        (
            loaded.settings.log.file.clone(),
            loaded.settings.worker.id.clone()
        ),
        (None, None)
    );
    assert_eq!(loaded.settings.log.level, crate::settings::LogLevel::Warn);
    assert_eq!(origin(&loaded, "log.file"), "default");
}

#[test]
fn partial_tables_keep_the_defaults_beside_them() {
    let dir = Dir::new();
    let file = dir.file(
        "a.toml",
        "[pools]\ngpu.max_queue_size = 7\n[nats.subjects]\nack = \"a.b\"",
    );
    let loaded = load(&sources(&dir, &[file], &[], &[])).unwrap();
    let pool = &loaded.settings.pools;
    assert_eq!(
        (
            pool.cpu.max_concurrency,
            pool.gpu.max_concurrency,
            pool.gpu.max_queue_size
        ),
        (4, 1, Some(7))
    );
    assert_eq!(loaded.settings.nats.subjects.assign, "caf.exec.assign.v1");
}

#[test]
fn names_in_maps_add_up_and_displace_the_built_in_ones() {
    let dir = Dir::new();
    let file = dir.file(
        "a.toml",
        "[blocks.fs.roots]\n\"my.dir\" = \"/a\"\n[blocks.sql.connections.main]\nurl = \"sqlite://u.db\"",
    );
    let environment = [
        ("WORKER__BLOCKS__FS__ROOTS__WORK", "/b"),
        ("WORKER__BLOCKS__SQL__CONNECTIONS__MAIN__PASSWORD", "hunter"),
        ("DATABASE_URL", "postgres://h/d"),
    ];
    let loaded = load(&sources(&dir, &[file], &environment, &[])).unwrap();
    let names: Vec<_> = loaded.settings.blocks.fs.roots.keys().cloned().collect();
    assert_eq!(names, ["my.dir", "work"]);
    let connections = &loaded.settings.blocks.sql.connections;
    assert_eq!(connections["main"].password, Some("hunter".into()));
    assert!(connections["main"].read_only && connections["default"].url == "postgres://h/d");

    let empty = dir.file("b.toml", "[blocks.fs]\nroots = {}");
    let loaded = load(&sources(&dir, &[empty], &[], &[])).unwrap();
    assert!(loaded.settings.blocks.fs.roots.is_empty());
}

#[test]
fn every_problem_of_every_source_is_reported_at_once() {
    let dir = Dir::new();
    dir.file(DEFAULT_FILE, "[limits]\nmax_held = 0\n[nats]\nurll = \"x\"");
    let file = dir.file(
        "a.json",
        r#"{"log": {"level": "loud", "file": 5}, "pools": 3, "tenants": {"allowed": [1]}}"#,
    );
    let missing = PathBuf::from("missing.toml");
    let environment = [("WORKER__RETRY__MAX_ATTEMPTS", "x"), ("WORKER__NOPE", "1")];
    let options = [("drain.soft_s", "99"), ("nope", "1"), ("nats", "x")];
    let error = load(&sources(&dir, &[file, missing], &environment, &options)).unwrap_err();
    let text = error.to_string();
    for expected in [
        "file config/worker.toml: nats.urll: unknown key; the nearest known one is nats.url",
        "file a.json: log.level: must be one of error, warn, info, debug, found \"loud\"",
        "file a.json: log.file: must be text, found 5",
        "file a.json: pools: must be a table, found 3",
        "file a.json: tenants.allowed: must be a list, found [1]",
        "file missing.toml: cannot be read",
        "env WORKER__RETRY__MAX_ATTEMPTS: retry.max_attempts: must be a whole number",
        "env WORKER__NOPE: nope: unknown key",
        "command line: nope: unknown key",
        "command line: nats: is a section",
        "file config/worker.toml: limits.max_held: must be from 1 to 100000, found 0",
        "command line: drain.soft_s: must not exceed drain.hard_s (30), found 99",
    ] {
        assert!(text.contains(expected), "{expected:?} not in\n{text}");
    }
    assert_eq!(error.problems.len(), 12, "{text}");
}

#[test]
fn a_rule_between_two_keys_names_the_source_that_broke_it() {
    let text = problems_of("a.toml", "[drain]\nhard_s = 10");
    assert_eq!(
        text,
        "file a.toml: drain.soft_s: must not exceed drain.hard_s (10), found 20"
    );
    let text = problems_of("a.toml", "[drain]\nhard_s = \"x\"\nsoft_s = 40");
    assert!(
        text.contains("drain.hard_s: must be a whole number") && !text.contains("soft_s"),
        "{text}"
    );
}

#[test]
fn entries_of_maps_must_be_complete() {
    let text = problems_of(
        "a.toml",
        "[blocks.sql.connections.main]\nread_only = false\nmax_rows = 0",
    );
    assert_eq!(
        text,
        "file a.toml: blocks.sql.connections.main.url: is required here"
    );
    let text = problems_of("a.toml", "[blocks.sql.connections.main]\nurl = 5");
    assert_eq!(
        text,
        "file a.toml: blocks.sql.connections.main.url: must be text, found 5"
    );
}

#[test]
fn files_that_cannot_be_read_are_errors() {
    assert!(problems_of("a.yaml", "").contains("must have a name that ends in .toml or .json"));
    assert!(problems_of("a.toml", "[nats").contains("TOML parse error at line 1"));
    assert!(problems_of("a.json", "{\"nats\": ").contains("line 1"));
    assert!(problems_of("a.json", "[]").contains("expected a map"));
    assert!(
        problems_of("a.json", r#"{"log":{"level":"info","level":"warn"}}"#)
            .contains("log.level: is given twice")
    );
    assert!(problems_of("a.json", &"[".repeat(100_000)).contains("recursion"));
    assert!(problems_of("a.toml", &"#".repeat(1024 * 1024 + 1)).contains("larger than 1048576"));
    assert!(problems_of("a.toml", "[log]\nlevel = 99999999999999999999").contains("number too large"));
    let dir = Dir::new();
    std::fs::write(dir.0.join("a.toml"), [0xff, 0xfe]).unwrap();
    let error = load(&sources(&dir, &["a.toml".into()], &[], &[])).unwrap_err();
    assert_eq!(error.to_string(), "file a.toml: is not UTF-8");
    let error = load(&sources(&dir, &["config".into()], &[], &[])).unwrap_err();
    assert!(
        error.to_string().starts_with("file config: cannot be read: "),
        "{error}"
    );
}

#[test]
fn no_error_repeats_a_secret() {
    for text in [
        "[nats]\npassword = hunter\n",
        "[nats]\npassword = \"hunter\n",
        "[nats]\npassword = 'hunter'\npassword = 'hunter'\n",
        "[nats]\npassword = [\"hunter\"]\n",
        "[nats]\npassword = \"hunter\"\n",
        "[nats]\npasword = \"hunter\"\nuser = \"u\"\n",
        "[nats.password]\nx = \"hunter\"\n",
        "[[nats]]\npassword = \"hunter\"\n",
        "[nats]\nurl = \"gopher://u:hunter@h\"\n",
        "[nats]\nurl = \"nats://u:hunter@h/x\"\n",
        "nats = \"nats://u:hunter@h\"\n",
        "[blocks.sql.connections.main]\nurl = \"postgres://u:hunter@h/d\"\npool_size = 0\n",
        "[blocks.sql.connections.main]\npassword = 5\nurl = [\"postgres://u:hunter@h/d\"]\n",
    ] {
        let shown = problems_of("a.toml", text);
        assert!(!shown.contains("hunter"), "{text}\n{shown}");
    }
}

#[test]
fn lines_show_every_key_once_with_its_source_and_no_secret() {
    let dir = Dir::new();
    let environment = [
        ("NATS_URL", "nats://u:hunter@h:4222"),
        (
            "WORKER__BLOCKS__SQL__CONNECTIONS__MAIN__URL",
            "postgres://u:hunter@h/d",
        ),
        ("WORKER__BLOCKS__SQL__CONNECTIONS__MAIN__PASSWORD", "hunter"),
    ];
    let loaded = load(&sources(&dir, &[], &environment, &[("retry.max_attempts", "2")])).unwrap();
    let shown: Vec<String> = lines(&loaded).iter().map(ToString::to_string).collect();
    for expected in [
        "nats.url = \"nats://[REDACTED]@h:4222\"  # env NATS_URL",
        "blocks.sql.connections.main.password = \"[REDACTED]\"  # env WORKER__BLOCKS__SQL__CONNECTIONS__MAIN__PASSWORD",
        "blocks.sql.connections.main.read_only = true  # default",
        "blocks.fs.roots.data = \"./data\"  # default",
        "retry.max_attempts = 2  # command line",
        "worker.id = (unset)  # default",
        "tenants.allowed = []  # default; SIGHUP reloads",
    ] {
        assert!(
            shown.iter().any(|line| line == expected),
            "{expected} not in {shown:#?}"
        );
    }
    assert!(!shown.iter().any(|line| line.contains("hunter")));
    let mut keys: Vec<_> = lines(&loaded).into_iter().map(|line| line.key).collect();
    assert!(keys.is_sorted());
    keys.dedup();
    assert_eq!(keys.len(), shown.len());
}

#[test]
fn keys_of_a_feature_that_is_off_warn_only_when_they_are_not_at_their_default() {
    let dir = Dir::new();
    let options = [
        ("nats.subjects.cancel", "caf.cancel"),
        ("http.metrics_addr", "0.0.0.0:9092"),
    ];
    let loaded = load(&sources(
        &dir,
        &[],
        &[("WORKER__HTTP__ADMIN_ADDR", "127.0.0.1:9999")],
        &options,
    ))
    .unwrap();
    let warned = warnings(&loaded);
    assert_eq!(warned.len(), 1, "{warned:?}");
    let expected =
        "nats.subjects.cancel (command line) has no effect while worker.cancellation.enabled is off";
    assert_eq!(warned[0], expected);
    let on = [("CP2_CANCELLATION_ENABLED", "true")];
    assert_eq!(
        warnings(&load(&sources(&dir, &[], &on, &options)).unwrap()),
        [""; 0]
    );
    let catalogue = Catalogue::of_settings();
    for (key, _) in crate::settings::not_yet::OF_FEATURES {
        assert!(catalogue.keys().contains(&environment::split(key)), "{key}");
    }
}

#[test]
fn what_is_wrong_inside_of_a_section_or_a_list_is_named_with_its_own_value_and_its_real_range() {
    for (text, said) in [
        (
            "[worker.sandbox.failures]\nhttp = 2.0",
            "worker.sandbox.failures.http: must be from 0 to 1, found 2.0",
        ),
        (
            "[blocks.http]\ndeny_ports = [0, 70000]",
            "blocks.http.deny_ports: must be a list of whole numbers from 1 to 65535, found [0,70000]",
        ),
        (
            "[blocks.http]\nonly_ports = [\"http\"]",
            "blocks.http.only_ports: must be a list of whole numbers from 1 to 65535, found [\"http\"]",
        ),
        (
            "[blocks.http]\nallow_targets = [\"good.example\", \"a b\"]",
            "blocks.http.allow_targets.1: must be an address, a range such as 10.0.0.0/8, or a host name, found \"a b\"",
        ),
        (
            "[blocks.http.tenants.t]\nonly_targets = [\"a b\"]",
            "blocks.http.tenants.t.only_targets.0: must be an address, a range such as 10.0.0.0/8, or a host name, found \"a b\"",
        ),
        (
            "[tenants.default]\nweight = -1",
            "tenants.default.weight: must be a whole number from 1 to 1000, found -1",
        ),
        (
            "[tenants.overrides.a]\nmax_running = -2",
            "tenants.overrides.a.max_running: must be a whole number from 1 to 1000000, found -2",
        ),
    ] {
        assert_eq!(problems_of("a.toml", text), format!("file a.toml: {said}"));
    }
    let dir = Dir::new();
    let error = load(&sources(&dir, &[], &[], &[("worker.sandbox.failures.http", "2")])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "command line: worker.sandbox.failures.http: must be from 0 to 1, found 2.0"
    );
}

#[test]
fn a_file_that_is_no_settings_at_all_is_refused_as_soon_as_any_other() {
    // Found by fuzzing: to look for the nearest key took minutes, in which the start and a reload hung.
    let long = problems_of("long.json", &format!(r#"{{"{}": 1}}"#, "x".repeat(900_000)));
    assert!(long.contains("unknown key; the nearest known one is "));
    let keys: Vec<String> = (0..10_000).map(|n| format!(r#""key_{n}": 1"#)).collect();
    let many = problems_of("many.json", &format!("{{{}}}", keys.join(",")));
    assert_eq!(many.lines().count(), 10_000);
    let with_nearest = many.lines().filter(|line| line.contains("nearest"));
    assert_eq!(with_nearest.count(), 16);
}

#[test]
fn providers_of_models_keep_their_names_and_variables_name_them_by_id() {
    let dir = Dir::new();
    let file = dir.file(
        "own.toml",
        "[providers.\"OpenAI:GPT-4o.x/y*\"]\nbase_url = \"https://api.example/v1\"\noutput_price_per_million = 10\n",
    );
    let variables = [
        ("WORKER__PROVIDERS__MAIN__ID", "openai:*"),
        ("WORKER__PROVIDERS__MAIN__BASE_URL", "http://127.0.0.1:1/v1"),
        ("WORKER__PROVIDERS__MAIN__INPUT_PRICE_PER_MILLION", "0.15"),
        ("WORKER__PROVIDERS__MAIN__POOL", "gpu"),
    ];
    let loaded = load(&sources(&dir, &[file], &variables, &[])).unwrap();
    let ids: Vec<_> = loaded
        .settings
        .providers
        .iter()
        .map(|(name, own)| own.id(name))
        .collect();
    assert_eq!(ids, ["OpenAI:GPT-4o.x/y*", "openai:*"]);
    let prices = |name: &str| {
        let own = &loaded.settings.providers[name];
        (own.input_price_per_million, own.output_price_per_million)
    };
    assert_eq!(
        (prices("OpenAI:GPT-4o.x/y*"), prices("main")),
        ((0.0, 10.0), (0.15, 0.0))
    );
}

#[test]
fn each_rule_of_a_provider_is_told_with_its_key_and_no_address_is_repeated() {
    for (text, told) in [
        (
            "base_url = \"ftp://u:hunter2@h\"\nmodel = \"m\"",
            "providers.p.base_url: must be an http or https address",
        ),
        (
            "base_url = \"http://u:hunter2@h\"\nmodel = \"m\"",
            "providers.p.base_url: must be an http or https address",
        ),
        ("base_url = \"http://h\"", "providers.p.model: must be given"),
        (
            "base_url = \"http://h\"\nid = \"a*b\"\nmodel = \"m\"",
            "providers.p.id: must be an id",
        ),
        (
            "base_url = \"http://h\"\nid = \"q:x\"\n[providers.\"q:x\"]\nbase_url = \"http://h\"",
            "must not be for the same id",
        ),
        (
            "base_url = \"http://h\"\nmodel = \"m\"\npool = \"cpu\"",
            "providers.p.pool: must be io or gpu",
        ),
        (
            "base_url = \"http://h\"\nmodel = \"m\"\nsecret = \"x\"",
            "providers.p.secret: must be the name of a secret",
        ),
        (
            "base_url = \"http://h\"\nmodel = \"m\"\ninput_price_per_million = -1",
            "providers.p.input_price_per_million: must be a price",
        ),
        (
            "base_url = \"http://h\"\nmodel = \"m\"\nmax_concurrency = 0",
            "providers.p.max_concurrency: must be 1",
        ),
        (
            "base_url = \"http://h\"\nmodel = \"m\"\ntotal_timeout_ms = 0",
            "providers.p.total_timeout_ms: must be 1",
        ),
        ("model = \"m\"", "base_url"),
    ] {
        let problems = problems_of("own.toml", &format!("[providers.p]\n{text}\n"));
        assert!(
            problems.contains(told) && !problems.contains("hunter2"),
            "{text}: {problems}"
        );
    }
}
