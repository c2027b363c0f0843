//! What `deploy/` ships for one host and for an image, held against the program: the systemd unit, Dockerfile, and
//! that workers of one durable name and one directory share the load.
//!
//! Neighbours: `kubernetes.rs` for the manifests. The checkers are real programs (`scripts/install-test-tools.sh`); one
//! that is missing fails the test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use caf_testkit::programs::deploy_checker;
use caf_testkit::{AssignmentBuilder, Client, NatsServer, TempDir};
use caf_worker::exit::Exit;
use caf_worker::settings::Settings;
use caf_worker::settings::feature::Feature;
use serde_json::Value;

use crate::support::{SOON, answers, assert_each_answered_once, jobs, program, ready_worker, wait_answered};

/// Time between the hard limit of a drain and the kill, in seconds: the last flush, a closing port, a busy machine.
pub(crate) const MARGIN_S: u64 = 10;
/// The instances that a unit is tried with: the first that is allowed, which has the default ports, and the last.
const INSTANCES: [&str; 2] = ["09", "99"];
/// Most exposure that `systemd-analyze security` may find, in tenths of its points (0 to 100).
const EXPOSURE_LIMIT: &str = "20";

/// A file of this repository.
pub(crate) fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Text of a file of this repository.
pub(crate) fn text_of(path: &str) -> String {
    std::fs::read_to_string(shipped(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Runs a checker; its exit code and all that it said.
pub(crate) fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().expect("can be started");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// `config show` under this environment, with this file: keys with value and source. The settings must be good.
pub(crate) fn shown_settings(environment: &BTreeMap<String, String>, file: &str) -> BTreeMap<String, Value> {
    let run = |arguments: &[&str]| {
        let start = program().args(arguments.to_vec()).file("given.toml", file);
        let finished = environment
            .iter()
            .fold(start, |worker, (name, value)| worker.env(name, value))
            .run(SOON)
            .expect("ends by itself");
        assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
        finished.stdout()
    };
    assert_eq!(run(&["config", "check", "--config", "given.toml"]), "OK");
    run(&["config", "show", "--output", "json", "--config", "given.toml"])
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("is JSON"))
        .map(|setting| (setting["key"].as_str().expect("is text").to_owned(), setting))
        .collect()
}

/// Each variable is what some setting comes from: none has a name that the program ignores.
#[track_caller]
pub(crate) fn assert_all_are_settings(
    environment: &BTreeMap<String, String>,
    shown: &BTreeMap<String, Value>,
) {
    for name in environment.keys() {
        let source = format!("env {name}");
        assert!(
            shown.values().any(|setting| setting["source"] == source.as_str()),
            "{name} sets nothing"
        );
    }
}

/// The files of the repository that a command line names with `--config`, in an image or as installed on a host; another
/// one, that has no place in the repository, is `own`.
fn config_files(arguments: &[String], own: Option<&Path>) -> Vec<PathBuf> {
    let joined = arguments.join(" ").replace("--config=", "--config ");
    let named = joined.split("--config ").skip(1).map(str::trim);
    named
        .map(|path| {
            let inside = path.strip_prefix("/usr/share/caf-worker/");
            let installed = path.strip_prefix("/etc/caf-worker/");
            match (inside, installed, own) {
                (Some(rest), ..) => shipped("config").join(rest),
                (_, Some("worker.toml"), Some(own)) => own.to_owned(),
                (_, Some("worker.toml"), None) => shipped("config/worker.toml"),
                (_, Some(rest), _) => shipped("config/worker").join(rest),
                _ => panic!("{path}: nobody puts it there"),
            }
        })
        .collect()
}

/// Started so, every flag is off, and a variable is enough to switch it on.
#[track_caller]
pub(crate) fn assert_flags_have_their_policies(arguments: &[String], own: Option<&Path>) {
    let modes = |value: &str| {
        let start = program().args(["config", "flags"]);
        let files = config_files(arguments, own);
        let start = files
            .into_iter()
            .fold(start, |program, file| program.arg("--config").arg(file));
        let flags = Feature::ALL.map(|feature| feature.variables()[0]);
        let start = flags
            .into_iter()
            .fold(start, |program, flag| program.env(flag, value));
        let finished = start.run(SOON).expect("ends by itself");
        assert_eq!(finished.code(), Some(0), "{}", finished.stdout());
        let count = |mode: &str| finished.stdout().matches(mode).count();
        (count(": CP1 baseline; "), count(": CP2 mode; "))
    };
    assert_eq!(
        (modes("false"), modes("true")),
        ((Feature::ALL.len(), 0), (0, Feature::ALL.len()))
    );
}

/// The unit's lines `key=value`, with specifiers filled in as systemd does.
struct Unit(Vec<(String, String)>);

impl Unit {
    fn of_instance(instance: &str) -> Self {
        let text = text_of("deploy/systemd/caf-worker@.service");
        let fill = |value: &str| {
            value
                .replace("%i", instance)
                .replace("%H", "host")
                .replace("%S", "/var/lib")
        };
        let text = text.replace("\\\n", " ");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.filter_map(|line| line.split_once('='));
        Self(pairs.map(|(key, value)| (key.to_owned(), fill(value))).collect())
    }

    fn all(&self, key: &str) -> Vec<&str> {
        let of_key = self.0.iter().filter(|(name, _)| name == key);
        of_key.map(|(_, value)| value.as_str()).collect()
    }

    fn one(&self, key: &str) -> &str {
        let [value] = self.all(key)[..] else {
            panic!("{key} is given {} times", self.all(key).len());
        };
        value
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let assignments = self
            .all("Environment")
            .into_iter()
            .filter_map(|text| text.split_once('='));
        assignments
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }
}

/// The unit as one instance of it, in a file whose name says so; with a program that exists.
fn instance_file(directory: &TempDir, instance: &str) -> PathBuf {
    let text = text_of("deploy/systemd/caf-worker@.service");
    let installed = "/usr/local/bin/caf-worker serve";
    assert!(text.contains(&format!("ExecStart={installed} ")));
    let text = text.replace(
        &format!("ExecStart={installed}"),
        &format!("ExecStart={} serve", env!("CARGO_BIN_EXE_caf-worker")),
    );
    let file = directory.path().join(format!("caf-worker@{instance}.service"));
    std::fs::write(&file, text).expect("can be written");
    file
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit_and_little_that_it_exposes() {
    let analyze = deploy_checker("systemd-analyze").expect("is installed");
    let directory = TempDir::new("unit").expect("can be made");
    let file = instance_file(&directory, INSTANCES[0]);
    let verify = ["verify", "--man=no", "--recursive-errors=no"];
    let (code, said) = run(Command::new(&analyze).args(verify).arg(&file));
    // A key that it does not know is a warning only: whatever it says of this unit is a mistake.
    let about_us: Vec<_> = said.lines().filter(|line| line.contains("caf-worker@")).collect();
    assert!(code == Some(0) && about_us.is_empty(), "{code:?}: {said}");
    let security = [
        "security",
        "--offline=yes",
        "--no-pager",
        "--threshold",
        EXPOSURE_LIMIT,
    ];
    let (code, said) = run(Command::new(&analyze).args(security).arg(&file));
    assert!(
        code == Some(0) && said.contains("Overall exposure level"),
        "{code:?}: {said}"
    );
}

#[test]
fn the_unit_starts_the_worker_with_the_files_that_its_head_installs() {
    let command = Unit::of_instance(INSTANCES[0]).one("ExecStart").to_owned();
    let arguments: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    assert_eq!(arguments[..2], ["/usr/local/bin/caf-worker", "serve"]);
    assert_flags_have_their_policies(&arguments, None);
    let head = "install -D -m 644 -t /etc/caf-worker config/worker.toml config/worker/*.json";
    assert!(text_of("deploy/systemd/caf-worker@.service").contains(head));
    // Read as below config/: settings, then policies.
    let order = ["config/worker.toml"]
        .into_iter()
        .chain(Feature::ALL.into_iter().filter_map(Feature::policy_file));
    assert_eq!(
        config_files(&arguments, None),
        order.map(shipped).collect::<Vec<_>>()
    );
}

#[test]
fn the_variables_of_the_unit_are_settings_and_each_instance_has_its_own_ports() {
    for instance in INSTANCES {
        let environment = Unit::of_instance(instance).environment();
        let shown = shown_settings(&environment, &text_of("config/worker.toml"));
        assert_all_are_settings(&environment, &shown);
        let value = |key: &str| shown[key]["value"].as_str().expect("is text").to_owned();
        let addresses = ["http.health_addr", "http.metrics_addr", "http.admin_addr"].map(value);
        let defaults = Settings::default().http;
        let wanted = [defaults.health_addr, defaults.metrics_addr, defaults.admin_addr]
            .map(|address| address.replace(":909", &format!(":9{instance}")));
        assert_eq!(addresses, wanted);
        assert_eq!(value("worker.id"), format!("host-{instance}"));
        assert_eq!(value("worker.state_dir"), "/var/lib/caf-worker/state");
    }
}

#[test]
fn systemd_waits_longer_than_a_drain_and_restarts_only_what_a_restart_can_mend() {
    let unit = Unit::of_instance(INSTANCES[0]);
    let seconds = unit
        .one("TimeoutStopSec")
        .strip_suffix('s')
        .and_then(|text| text.parse::<u64>().ok());
    let hard_s = Settings::default().drain.hard_s;
    assert!(
        seconds >= Some(hard_s + MARGIN_S),
        "{seconds:?} s for a drain of {hard_s} s"
    );
    assert_eq!(
        (unit.one("KillSignal"), unit.one("Restart")),
        ("SIGTERM", "always")
    );
    let codes: Vec<u8> = unit
        .one("RestartPreventExitStatus")
        .split(' ')
        .map(|code| code.parse().expect("is a code"))
        .collect();
    assert_eq!(codes, [Exit::Usage.code(), Exit::Config.code()]);
    // The program really ends with them, when started as the unit starts it.
    let start = |worker: caf_testkit::worker::WorkerBuilder| worker.run(SOON).expect("ends by itself").code();
    let serve = || {
        program()
            .args(["serve", "--config", "given.toml"])
            .file("given.toml", "")
    };
    assert_eq!(start(serve().arg("--nonsense")), Some(64));
    assert_eq!(start(serve().env("WORKER__NATS__ACK_WAIT_MS", "soon")), Some(78));
    // An instance whose name makes no port.
    let named = Unit::of_instance("blue").environment();
    let addressed = serve().env("WORKER__HTTP__HEALTH_ADDR", &named["WORKER__HTTP__HEALTH_ADDR"]);
    assert_eq!(start(addressed), Some(78));
}

/// Instructions of the Dockerfile: name and the rest, with continued lines joined.
fn instructions() -> Vec<(String, String)> {
    let text = text_of("deploy/Dockerfile");
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let joined = lines.join("\n").replace("\\\n", " ");
    let pairs = joined.lines().filter_map(|line| line.split_once(' '));
    pairs
        .map(|(name, rest)| (name.to_owned(), rest.trim().to_owned()))
        .collect()
}

/// What follows the last of these instructions: the one that counts for the image.
fn last(of: &[(String, String)], name: &str) -> String {
    let found = of.iter().rev().find(|(given, _)| given == name);
    found.unwrap_or_else(|| panic!("no {name}")).1.clone()
}

/// Copies a file, or a directory with all that is in it, to the same place below `to`.
fn copy(path: &str, to: &Path) {
    let from = shipped(path);
    if from.is_dir() {
        std::fs::create_dir_all(to.join(path)).expect("can be made");
        for entry in std::fs::read_dir(from).expect("can be listed").flatten() {
            copy(&format!("{path}/{}", entry.file_name().display()), to);
        }
    } else {
        std::fs::copy(from, to.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}

#[test]
fn what_the_dockerfile_copies_is_let_through_and_is_enough_for_its_build() {
    let sources: Vec<String> = instructions()
        .into_iter()
        .filter(|(name, rest)| name == "COPY" && !rest.contains("--from="))
        .flat_map(|(_, rest)| {
            let mut words: Vec<_> = rest.split_whitespace().map(str::to_owned).collect();
            words.pop();
            words
        })
        .collect();
    let ignore = text_of(".dockerignore");
    let mut let_through: Vec<_> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(ignore.lines().any(|line| line == "*"));
    let mut copied: Vec<_> = sources.iter().map(String::as_str).collect();
    let_through.sort_unstable();
    copied.sort_unstable();
    assert_eq!(let_through, copied);

    // Cargo reads every manifest of the workspace there, and finds the program. Nothing is built.
    let context = TempDir::new("context").expect("can be made");
    std::fs::create_dir_all(context.path().join("tests")).expect("can be made");
    sources.iter().for_each(|path| copy(path, context.path()));
    let arguments = ["metadata", "--no-deps", "--offline", "--format-version", "1"];
    let (code, said) = run(Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(context.path()));
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains(r#""kind":["bin"],"crate_types":["bin"],"name":"caf-worker""#),
        "{said}"
    );
    let builds = instructions().into_iter().filter(|(name, _)| name == "RUN");
    let builds: Vec<_> = builds.map(|(_, rest)| rest).collect();
    let [build] = &builds[..] else {
        panic!("{builds:?}")
    };
    for part in [
        "cargo build --release --locked --bin caf-worker ",
        "install -D target/release/caf-worker /image/bin/caf-worker",
    ] {
        assert!(build.contains(part), "{part}: {build}");
    }
}

#[test]
fn the_image_runs_the_worker_as_nobody_in_particular_and_is_stopped_by_a_drain() {
    let all = instructions();
    let (code, said) = run(Command::new(deploy_checker("hadolint").expect("is installed"))
        .arg("--no-color")
        .arg(shipped("deploy/Dockerfile")));
    assert_eq!((code, said.as_str()), (Some(0), ""));

    let bases: Vec<_> = all
        .iter()
        .filter(|(name, _)| name == "FROM")
        .map(|(_, rest)| rest.as_str())
        .collect();
    let [builder, last_base] = bases[..] else {
        panic!("{bases:?}")
    };
    let toolchain = builder
        .strip_prefix("rust:")
        .and_then(|tag| tag.split('-').next())
        .expect("is an image of Rust");
    let number = |version: &str| {
        version
            .split('.')
            .filter_map(|part| part.parse::<u32>().ok())
            .collect::<Vec<_>>()
    };
    assert!(
        number(toolchain) >= number(env!("CARGO_PKG_RUST_VERSION")),
        "{toolchain}"
    );
    // Both of Debian 12: the program needs the C library that it was linked against.
    assert!(
        builder.contains("bookworm") && last_base.contains("debian12"),
        "{bases:?}"
    );

    let user = last(&all, "USER");
    let ids: Vec<u32> = user
        .split(':')
        .map(|id| id.parse().expect("is a number"))
        .collect();
    assert!(ids.len() == 2 && ids.iter().all(|id| *id > 0), "{user}");
    let owner = format!("--chown={user} /image/state/ /var/lib/");
    assert!(
        all.iter()
            .any(|(name, rest)| name == "COPY" && rest.contains(&owner)),
        "{owner}"
    );
    assert_eq!(last(&all, "ENTRYPOINT"), r#"["/usr/local/bin/caf-worker"]"#);
    assert!(
        all.iter()
            .any(|(name, rest)| name == "COPY" && rest.ends_with(" /usr/local/bin/caf-worker"))
    );
    assert_eq!(last(&all, "STOPSIGNAL"), "SIGTERM");
    let command: Vec<String> = serde_json::from_str(&last(&all, "CMD")).expect("is a list");
    assert_eq!(command[0], "serve");
    assert_flags_have_their_policies(&command, None);
    let port = Settings::default().http.health_addr;
    assert!(port.ends_with(&format!(":{}", last(&all, "EXPOSE"))), "{port}");

    let (name, value) = last(&all, "ENV")
        .split_once('=')
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .expect("is NAME=value");
    let environment = BTreeMap::from([(name, value)]);
    let shown = shown_settings(&environment, "");
    assert_all_are_settings(&environment, &shown);
    let volume = last(&all, "VOLUME");
    let volume = volume.trim_matches(['[', ']', '"']);
    assert!(
        shown["worker.state_dir"]["value"]
            .as_str()
            .is_some_and(|path| Path::new(path).starts_with(volume))
    );
    assert_eq!(last(&all, "WORKDIR"), volume);
}

#[test]
fn three_workers_with_one_durable_name_and_one_directory_share_the_load() {
    let nats = NatsServer::start_with(caf_testkit::NatsOptions::jetstream()).expect("the broker starts");
    let client = Client::connect(&nats).expect("the client connects");
    let directory = TempDir::new("host").expect("can be made");
    let start = |id: &str| {
        ready_worker(&nats, |worker| {
            worker
                .current_dir(directory.path())
                .env("LOG_LEVEL", "debug")
                .env("WORKER__WORKER__ID", id)
                .env("WORKER__LIMITS__MAX_HELD", 10)
        })
    };
    let workers = ["w-1", "w-2", "w-3"].map(start);
    let load = jobs(90, |_| AssignmentBuilder::sleep(50));
    client.assign_all(&load).expect("are sent");
    wait_answered(&client, &load, SOON);
    assert_each_answered_once(&answers(&client), &load);
    let shares = workers.each_ref().map(|worker| {
        let logs = worker.logs();
        logs.iter()
            .filter(|log| log["message"] == "Step execution completed")
            .count()
    });
    // Each answer was counted on the stream; the last lines of a log may be on their way.
    assert!(
        shares.iter().all(|share| *share > 0) && shares.iter().sum::<usize>() <= load.len(),
        "{shares:?}"
    );
}

#[test]
fn the_documented_command_for_a_second_worker_moves_every_port_that_the_first_one_has() {
    let readme = text_of("README.md");
    let line = readme
        .lines()
        .find(|line| line.starts_with("WORKER__HTTP__HEALTH_ADDR=") && line.ends_with("caf-worker serve"))
        .expect("is documented");
    let given: BTreeMap<String, String> = line
        .split(' ')
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let shown = shown_settings(&given, "");
    assert_all_are_settings(&given, &shown);
    let is_open = |value: &Value| value["value"].as_str().is_some_and(|address| !address.is_empty());
    for (key, value) in shown
        .iter()
        .filter(|(key, value)| key.starts_with("http.") && key.ends_with("_addr") && is_open(value))
    {
        assert_ne!(value["source"], "default", "{key}");
    }
}
