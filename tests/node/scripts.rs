//! `scripts/validate_cp2.sh`, run as an operator runs it: with a broker and a worker that it starts and ends itself.
//!
//! Neighbours: the scripts that need no broker are in `tests/settings/scripts.rs`.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use caf_testkit::TempDir;

use crate::deploy::shipped;

/// What the script promises.
const LONGEST: Duration = Duration::from_secs(60);

/// Runs the script in an empty directory; what it printed, and its exit code. Nothing of it may be left.
fn validate(environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let directory = TempDir::new("validate").expect("can be made");
    let temporary = directory.path().join("tmp");
    let elsewhere = directory.path().join("elsewhere");
    for path in [&temporary, &elsewhere] {
        std::fs::create_dir(path).expect("can be made");
    }
    let kept = ["PATH", "HOME", "NATS_SERVER_BIN"];
    let kept = kept
        .iter()
        .filter_map(|name| std::env::var_os(name).map(|value| (*name, value)));
    let started = Instant::now();
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(shipped("scripts/validate_cp2.sh"))
        .env_clear()
        .envs(kept)
        .env("CAF_WORKER_BIN", env!("CARGO_BIN_EXE_caf-worker"))
        .env("TMPDIR", &temporary)
        .envs(environment.iter().copied())
        .current_dir(&elsewhere)
        .output()
        .expect("can be started");
    let said = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
    assert!(started.elapsed() < LONGEST, "{said}");
    for path in [&temporary, &elsewhere] {
        let left = std::fs::read_dir(path).expect("can be listed").count();
        assert_eq!(left, 0, "{said}");
    }
    assert_eq!(
        processes_of(&temporary.display().to_string()),
        Vec::<String>::new(),
        "{said}"
    );
    (status.code(), said)
}

/// Command lines of running processes that work in `directory` or name it.
fn processes_of(directory: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").expect("can be listed").flatten();
    processes
        .filter_map(|process| {
            let works_in = std::fs::read_link(process.path().join("cwd")).unwrap_or_default();
            let command = std::fs::read(process.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let is_of = works_in.display().to_string().starts_with(directory) || command.contains(directory);
            is_of.then_some(command)
        })
        .collect()
}

#[test]
fn all_checks_of_cp2_hold_and_nothing_is_left_behind() {
    let (code, said) = validate(&[]);
    assert_eq!(code, Some(0), "{said}");
    let checks: Vec<_> = said
        .lines()
        .filter_map(|line| line.strip_prefix("[OK] "))
        .collect();
    let names: Vec<_> = checks.iter().filter_map(|line| line.split(':').next()).collect();
    let expected = [
        "feature flags",
        "policy files",
        "JetStream",
        "idempotency",
        "tenants",
        "metrics",
        "shutdown",
        "tracing",
    ];
    assert_eq!(names, expected, "{said}");
    assert!(said.contains("[WARN] CP2 is on for retry, timeouts, queue"));
    assert!(!said.contains("[ERROR]"), "{said}");
}

#[test]
fn the_first_check_of_cp2_that_fails_ends_it_and_says_why() {
    let directory = TempDir::new("fakes").expect("can be made");
    let fake = |name: &str, script: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = directory.path().join(name);
        std::fs::write(&path, script).expect("can be written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("can be set");
        path.display().to_string()
    };
    let program = env!("CARGO_BIN_EXE_caf-worker");
    // A broker that ends at once: nothing answers on its port.
    let ends = "#!/bin/sh\n[ \"$1\" = --version ] && echo 'nats-server: v2.10.0'\n";
    let no_broker = fake("nats-server", ends);
    // A worker that is no worker, but tells the flags.
    let serves_not = format!("#!/bin/sh\n[ \"$1\" = serve ] && exit 7\nexec {program} \"$@\"\n");
    let no_worker = fake("idle-worker", &serves_not);
    // A worker that lets every tenant in.
    let lets_in = format!(
        "#!/bin/sh\n[ \"$1\" = serve ] && set -- \"$@\" --set tenants.allowed=\nexec {program} \"$@\"\n"
    );
    let careless = fake("careless-worker", &lets_in);
    // A worker beside a router that gives each message an id of its own: nothing is the same assignment.
    let renames = format!(
        "#!/bin/sh\n[ \"$1\" = submit ] || exec {program} \"$@\"\nsed \"s/cp2-twice/cp2-twice-$$/\" | {program} \"$@\"\n"
    );
    let forgetful = fake("forgetful-worker", &renames);
    for (environment, says) in [
        (
            [("CAF_WORKER_BIN", forgetful.as_str())],
            "[ERROR] idempotency: the same assignment, sent again, ",
        ),
        (
            [("CP2_ADVANCED_RETRY_ENABLED", "maybe")],
            "[ERROR] feature flags: ",
        ),
        (
            [("CAF_WORKER_BIN", "/nowhere/caf-worker")],
            "[ERROR] preparation: caf-worker is not there",
        ),
        (
            [("NATS_SERVER_BIN", "/nowhere/nats-server")],
            "[ERROR] preparation: NATS_SERVER_BIN names no nats-server",
        ),
        (
            [("NATS_SERVER_BIN", no_broker.as_str())],
            "[ERROR] JetStream: nats-server ended",
        ),
        (
            [("CAF_WORKER_BIN", no_worker.as_str())],
            "[ERROR] JetStream: the worker ended before it was ready",
        ),
        (
            [("CAF_WORKER_BIN", careless.as_str())],
            "[ERROR] tenants: submit ended with 0",
        ),
    ] {
        let (code, said) = validate(&environment);
        assert_eq!(code, Some(1), "{environment:?}: {said}");
        let errors: Vec<_> = said.lines().filter(|line| line.starts_with("[ERROR] ")).collect();
        assert!(errors[0].starts_with(says), "{environment:?}: {said}");
        let place = says["[ERROR] ".len()..].split(':').next().expect("names a check");
        assert!(!said.contains(&format!("[OK] {place}:")), "{said}");
    }
}
