//! `scripts/observability/{validate_metrics,up}.sh`, run as an operator runs them.
//!
//! Neighbours: `boards.rs` has a worker under load judged. Pages that are wrong come from a server of the test.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use caf_testkit::wait::poll;
use caf_testkit::{TempDir, http, ports, wait_until};
use serde_json::Value;

use crate::deploy::shipped;
use crate::support::{Node, SOON};

const METRICS: &str = "CP2_OBSERVABILITY_METRICS_ENABLED";
const TEXT_FORM: &str = "text/plain; version=0.0.4";

/// A page that never changes, served until the test ends.
fn serve(status: &'static str, content_type: &'static str, page: String) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
    let port = listener.local_addr().expect("is bound").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = BufReader::new(stream.try_clone().expect("can be cloned"))
                .lines()
                .map_while(Result::ok);
            while request.next().is_some_and(|line| !line.is_empty()) {}
            let length = page.len();
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            // Whoever leaves early does not want it.
            let _ = stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(page.as_bytes()));
        }
    });
    port
}

fn validate_at(url: &str, health: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(shipped("scripts/observability/validate_metrics.sh"))
        .args(arguments)
        .env("WORKER_METRICS_URL", url)
        .env("WORKER_URL", health)
        .output()
        .expect("can be started");
    assert_eq!(String::from_utf8_lossy(&stderr), "");
    (status.code(), String::from_utf8_lossy(&stdout).into_owned())
}

/// What `validate_metrics.sh` says of the page at this port, and its exit code.
pub(crate) fn validate(port: u16, arguments: &[&str]) -> (Option<i32>, String) {
    validate_at(
        &format!("http://127.0.0.1:{port}/metrics"),
        "http://127.0.0.1:9",
        arguments,
    )
}

/// The same on a machine that has no more than what is needed.
fn without_curl(port: u16) -> (Option<i32>, String) {
    let directory = TempDir::new("tools").expect("can be made");
    for tool in "bash awk cat dirname grep mktemp mv readlink rm sed tail".split(' ') {
        let paths = std::env::var_os("PATH").expect("there is one");
        let place = std::env::split_paths(&paths)
            .map(|path| path.join(tool))
            .find(|path| path.exists());
        let link = directory.path().join(tool);
        std::os::unix::fs::symlink(place.expect("is installed"), link).expect("can be made");
    }
    let output = Command::new(shipped("scripts/observability/validate_metrics.sh"))
        .env("PATH", directory.path())
        .env("WORKER_METRICS_URL", format!("http://localhost:{port}/metrics"))
        .output()
        .expect("can be started");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

#[test]
fn a_worker_that_measures_passes_and_each_fault_of_its_page_is_named() {
    let mut node = Node::start_with(|worker| worker.env(METRICS, "true"));
    node.assert_alive();
    let port = node.worker.metrics_port().expect("is logged");
    let (code, said) = validate(port, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("[OK] names, labels and types: ") && said.contains("(read by promtool)"),
        "{said}"
    );
    assert!(
        said.contains("[INFO] no series yet") && !said.contains("[ERROR]"),
        "{said}"
    );
    let (code, same) = without_curl(port);
    let checks = |said: &str| said.lines().filter(|line| line.starts_with("[OK]")).count();
    assert_eq!((code, checks(&same)), (Some(0), checks(&said)), "{same}");
    // Retries and the like have not happened yet.
    assert_eq!(validate(port, &["--strict"]).0, Some(1));

    let page = http::get(port, "/metrics").expect("answers").text();
    let without = |name: &str| {
        let of = |line: &&str| !line.contains(&format!("{name} ")) && !line.starts_with(&format!("{name}{{"));
        page.lines()
            .filter(of)
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    };
    let swapped = |old: &str, new: &str| {
        assert!(page.contains(old), "{old}");
        page.replace(old, new)
    };
    let more = |lines: &str| format!("{page}{lines}");
    let of_type = |kind: &str, series: &str| more(&format!("# TYPE x {kind}\n{series}\n"));
    for (page, says) in [
        (without("worker_active_tasks"), "worker_active_tasks is missing"),
        (
            swapped(
                "# TYPE worker_queue_depth gauge",
                "# TYPE worker_queue_depth counter",
            ),
            "worker_queue_depth is a counter, not a gauge",
        ),
        (
            swapped("worker_health_status{check=", "worker_health_status{checks="),
            "worker_health_status has no label check",
        ),
        (of_type("gauge", r#"x{trace_id=""} 1"#), "trace_id is a label"),
        (
            of_type("gauge", r#"x{assignment_id="a-1"} 1"#),
            "assignment_id is a label",
        ),
        (
            of_type("gauge", r#"x{run_id="01J8ZQ4T6M9X2K7V5R3N1B0CDE"} 1"#),
            "run_id has a value",
        ),
        (
            of_type("gauge", r#"x{y="6f1c3a7b-e24d-40c8-8a61-d2f05b7e934c"} 1"#),
            "an id is the value of y",
        ),
        (
            of_type("gauge", "x{y=\"1\"} 1\nx{y=\"1\"} 2"),
            "the series is there twice",
        ),
        (of_type("gauge", r#"x{y="1} 1"#), "no sample"),
        (of_type("gauge", "x one"), "no sample"),
        (of_type("gauges", "x 1"), "no type"),
        (of_type("gauge", "x 1\n# TYPE x gauge"), "the second type of x"),
        (more("y 1\n"), "y has no type"),
        (page.trim_end().to_owned(), "its last line has no end"),
        (String::new(), "the page is empty"),
    ] {
        let (code, said) = validate(serve("200 OK", TEXT_FORM, page), &[]);
        let named = said
            .lines()
            .any(|line| line.starts_with("[ERROR] ") && line.contains(says));
        assert!(code == Some(1) && named, "{says}: {code:?} {said}");
    }
    let json = serve("200 OK", "application/json", page.clone());
    let (code, said) = validate(json, &[]);
    assert!(
        code == Some(1) && said.contains("[ERROR] content type: application/json"),
        "{said}"
    );
    let (code, said) = validate(serve("503 Service Unavailable", TEXT_FORM, page.clone()), &[]);
    assert!(code == Some(1) && said.contains("answered 503"), "{said}");
    // What is allowed in detailed mode, and what is odd and right.
    let detailed = more(
        "# TYPE x gauge\nx{run_id=\"01J8ZQ4T6M9X2K7V5R3N1B0CDE\",tenant_id=\"6f1c3a7b-e24d-40c8-8a61-d2f05b7e934c\",y=\"a\\\"} 1,{\\\\\\n\"} +Inf 1700000000000\n",
    );
    assert_eq!(
        validate(serve("200 OK", TEXT_FORM, detailed), &["--detailed"]).0,
        Some(0)
    );
}

#[test]
fn too_many_series_warn_and_then_fail() {
    let mut node = Node::start_with(|worker| worker.env(METRICS, "true"));
    let port = node.worker.metrics_port().expect("is logged");
    let mut page = http::get(port, "/metrics").expect("answers").text() + "# TYPE x gauge\n";
    let mut grow = |from: usize, to: usize| {
        (from..to).for_each(|n| page.push_str(&format!("x{{y=\"{n}\"}} 1\n")));
        page.clone()
    };
    let (code, said) = validate(serve("200 OK", TEXT_FORM, grow(0, 100_000)), &[]);
    assert!(
        code == Some(0) && said.contains("[WARN] cardinality: 10"),
        "{said}"
    );
    let (code, said) = validate(serve("200 OK", TEXT_FORM, grow(100_000, 1_000_000)), &[]);
    assert!(
        code == Some(1) && said.contains("[ERROR] cardinality: 100"),
        "{said}"
    );
}

#[test]
fn a_worker_that_does_not_run_or_does_not_measure_is_told_from_one_that_fails() {
    let nobody = "http://127.0.0.1:9";
    let (code, said) = validate_at(&format!("{nobody}/metrics"), nobody, &[]);
    assert!(
        code == Some(2) && said.contains("the worker is not running"),
        "{said}"
    );
    let mut node = Node::start();
    let health = format!(
        "http://127.0.0.1:{}",
        node.worker.health_port().expect("is logged")
    );
    let (code, said) = validate_at(&format!("{nobody}/metrics"), &health, &[]);
    assert!(
        code == Some(2) && said.contains("measures nothing while CP2_OBSERVABILITY_METRICS_ENABLED is off"),
        "{said}"
    );
    for (argument, expected, says) in [
        ("--help", 0, "WORKER_METRICS_URL"),
        ("--nothing", 64, "there is no option"),
    ] {
        let (code, said) = validate_at(nobody, nobody, &[argument]);
        assert!(code == Some(expected) && said.contains(says), "{said}");
    }
}

/// `up.sh`, running; told to end when the test fails before that.
struct Up {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Up {
    fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(shipped("scripts/observability/up.sh"))
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("can be started");
        let said = BufReader::new(child.stdout.take().expect("is piped"));
        Self { child, said }
    }

    /// What it says up to this line.
    fn until(&mut self, wanted: &str) -> String {
        let mut said = String::new();
        while !said.contains(wanted) {
            let read = self.said.read_line(&mut said).expect("can be read");
            assert!(read > 0, "it ended: {said}");
        }
        said
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args(["-s", signal, &self.child.id().to_string()])
            .status();
        assert!(sent.expect("can be started").success());
    }

    /// What it said last, and its exit code.
    fn end(mut self) -> (Option<i32>, String) {
        let status = poll(SOON, || self.child.try_wait().expect("can be asked")).expect("it ends");
        let mut said = String::new();
        self.said.read_to_string(&mut said).expect("can be read");
        (status.code(), said)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // It has ended, unless the test fails; it must end what it has started.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal("TERM");
            let _ = self.child.wait();
        }
    }
}

fn listens(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn one_command_shows_a_worker_in_prometheus_with_its_alerts_and_leaves_nothing_behind() {
    let target = format!(
        "127.0.0.1:{}",
        serve("200 OK", TEXT_FORM, "# TYPE x gauge\nx 1\n".to_owned())
    );
    let temporary = TempDir::new("up").expect("can be made");
    let place = temporary.path().display().to_string();
    let port = ports::free_port();
    let arguments = [
        "--target",
        &target,
        "--port",
        &port.to_string(),
        "--scrape-interval",
        "1s",
    ];
    let mut up = Up::start(&arguments, &[("TMPDIR", &place)]);
    let said = up.until("Ctrl-C ends it");
    assert!(said.contains(&format!("[OK] scraped: {target}\n")), "{said}");
    let api = |path: &str| -> Value {
        http::get(port, &format!("/api/v1/{path}"))
            .expect("answers")
            .json()
            .expect("is JSON")["data"]
            .take()
    };
    let targets = api("targets");
    assert_eq!(targets["activeTargets"][0]["health"], "up", "{targets}");
    assert_eq!(api("rules")["groups"][0]["name"], "worker_alerts");
    // On this machine only.
    assert_eq!(
        api("status/flags")["web.listen-address"],
        format!("127.0.0.1:{port}")
    );
    // Ctrl-C; the other test sends what a supervisor does.
    up.signal("INT");
    let (code, said) = up.end();
    assert_eq!((code, said.as_str()), (Some(0), "[INFO] stopping\n"));
    assert!(!listens(port));
    assert_eq!(
        std::fs::read_dir(temporary.path())
            .expect("can be listed")
            .count(),
        0
    );
}

/// Grafana is not in Debian: something that takes its place tells what it was started with.
#[test]
fn where_grafana_is_installed_it_is_given_prometheus_and_the_dashboard() {
    let temporary = TempDir::new("grafana").expect("can be made");
    let fake = temporary.path().join("grafana");
    let script = "#!/bin/sh\n\
        { echo \"$@\"; env | grep ^GF_ | sort; cat \"$GF_PATHS_PROVISIONING\"/*/*.yml; } >\"$TOLD\"\n\
        exec python3 -c 'import http.server as h, os\n\
        class Answer(h.BaseHTTPRequestHandler):\n\
        \x20   def do_GET(self): self.send_response(200); self.end_headers()\n\
        h.HTTPServer((os.environ[\"GF_SERVER_HTTP_ADDR\"], int(os.environ[\"GF_SERVER_HTTP_PORT\"])), Answer).serve_forever()'\n";
    std::fs::write(&fake, script).expect("can be written");
    std::fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("can be set");
    let told = temporary.path().join("told").display().to_string();
    let data = temporary.path().join("data").display().to_string();
    let path = format!(
        "{}:{}",
        temporary.path().display(),
        std::env::var("PATH").expect("there is one")
    );
    let (port, grafana) = (ports::free_port(), ports::free_port());
    let target = format!(
        "127.0.0.1:{}",
        serve("200 OK", TEXT_FORM, "# TYPE x gauge\nx 1\n".to_owned())
    );
    let arguments = [
        ("--target", target),
        ("--port", port.to_string()),
        ("--grafana-port", grafana.to_string()),
        ("--data", data.clone()),
    ];
    let arguments: Vec<_> = arguments
        .iter()
        .flat_map(|(name, value)| [*name, value.as_str()])
        .collect();
    let mut up = Up::start(&arguments, &[("PATH", &path), ("TOLD", &told)]);
    let said = up.until("Ctrl-C ends it");
    assert!(
        said.contains(&format!(
            "[OK] Grafana: http://127.0.0.1:{grafana}/d/caf-worker-observability"
        )),
        "{said}"
    );
    let told = std::fs::read_to_string(&told).expect("was written");
    for part in [
        "server --homepath /usr/share/grafana".to_owned(),
        "GF_SERVER_HTTP_ADDR=127.0.0.1".to_owned(),
        format!("GF_PATHS_DATA={data}/grafana"),
        format!("url: 'http://127.0.0.1:{port}'"),
        format!("path: '{}'", shipped("dashboards").display()),
    ] {
        assert!(told.contains(&part), "{part}: {told}");
    }
    up.signal("TERM");
    assert_eq!(up.end().0, Some(0));
    wait_until("both are gone", Duration::from_secs(5), || {
        !listens(port) && !listens(grafana)
    });
    // What was asked to stay.
    assert!(std::path::Path::new(&data).join("prometheus").is_dir());
}

#[test]
fn up_says_what_is_wrong_with_its_options_and_with_a_port_that_is_taken() {
    for (arguments, expected, says) in [
        (&["--help"][..], 0, "--grafana-port"),
        (&["--nothing"], 64, "there is no option --nothing"),
        (&["--port"], 64, "--port needs a value"),
        (&["--port", "99999"], 64, "99999 is not a port"),
        (&["--target", "a'b"], 64, "is not HOST:PORT"),
        (&["--scrape-interval", "soon"], 64, "soon is not a time"),
    ] {
        let (code, said) = Up::start(arguments, &[]).end();
        assert!(
            code == Some(expected) && said.contains(says),
            "{arguments:?}: {code:?} {said}"
        );
    }
    let taken = serve("200 OK", TEXT_FORM, String::new()).to_string();
    let (code, said) = Up::start(&["--port", &taken], &[]).end();
    assert!(
        code == Some(1) && said.contains(&format!("[ERROR] prometheus: port {taken} is taken")),
        "{said}"
    );
}
