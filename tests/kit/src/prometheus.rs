//! A Prometheus of one's own.
//!
//! Neighbours: the tests of dashboards and alerts point it at a worker. Scrapes much more often than in production, so that
//! a test sees rates within seconds; never shared between tests.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::http;
use crate::process::Process;
use crate::wait::poll;
use crate::{TempDir, ports, programs};

/// Longest wait for the server to be ready, and to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many ports are tried when another process takes one in between.
const START_ATTEMPTS: usize = 5;
/// Time between two scrapes, and between two evaluations of rules.
const INTERVAL: &str = "250ms";

/// A running Prometheus; ended and cleaned away on drop.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    port: u16,
    // Last: removed after the process has ended.
    dir: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes `/metrics` of these ports of 127.0.0.1 as job `caf-worker` and evaluates these rules, and
    /// waits until it is ready.
    ///
    /// # Errors
    /// When the program is missing (the message says what to do), or does not come up; then with its log.
    pub fn start(targets: &[u16], rules: &[&Path]) -> Result<Self> {
        let program = programs::prometheus("prometheus")?;
        for _ in 1..START_ATTEMPTS {
            match Self::run(&program, targets, rules) {
                Err(error) if format!("{error:#}").contains("address already in use") => {}
                done => return done,
            }
        }
        Self::run(&program, targets, rules)
    }

    /// Port of 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The value of an expression now: `data.result` of the answer.
    ///
    /// # Errors
    /// When the server does not answer, or refuses the expression; then with its reason.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let body = format!("query={}", encoded(expression));
        let answer = post(self.port, "/api/v1/query", &body)?;
        let result = answer["result"].as_array().cloned();
        result.with_context(|| format!("no vector for {expression}: {answer}"))
    }

    /// `data` of `GET /api/v1/<path>`.
    ///
    /// # Errors
    /// When the server does not answer, or refuses.
    pub fn get(&self, path: &str) -> Result<Value> {
        data(&http::get(self.port, &format!("/api/v1/{path}"))?)
    }

    /// Ends it in good order (SIGTERM) and waits until it has ended.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(mut self) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        let ended = self.process.wait(PATIENCE);
        ended
            .map(drop)
            .with_context(|| format!("Prometheus did not end within {PATIENCE:?}"))
    }

    fn run(program: &Path, targets: &[u16], rules: &[&Path]) -> Result<Self> {
        let dir = TempDir::new("prometheus")?;
        let port = ports::free_port();
        let config = dir.path().join("prometheus.yml");
        std::fs::write(&config, config_for(targets, rules)).context("cannot write the configuration")?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        let process = Process::spawn(
            Command::new(program)
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", data_of(&dir).display()))
                .arg(format!("--web.listen-address=127.0.0.1:{port}"))
                .current_dir(dir.path())
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log),
        )?;
        let mut server = Self { process, port, dir };
        let came_up = poll(PATIENCE, || match server.process.status() {
            Some(status) => Some(Err(anyhow!("Prometheus ended at once: {status}"))),
            None => server.is_ready().then_some(Ok(())),
        });
        match came_up {
            Some(Ok(())) => Ok(server),
            Some(Err(error)) => Err(error.context(server.log())),
            None => bail!("Prometheus was not ready within {PATIENCE:?}\n{}", server.log()),
        }
    }

    /// Whether this very server answers on the port: it tells where it keeps its data.
    fn is_ready(&self) -> bool {
        let flags = self.get("status/flags").unwrap_or_default();
        flags["storage.tsdb.path"] == data_of(&self.dir).display().to_string()
            && http::get(self.port, "/-/ready").is_ok_and(|answer| answer.status == 200)
    }

    fn log(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn data_of(dir: &TempDir) -> PathBuf {
    dir.path().join("data")
}

fn config_for(targets: &[u16], rules: &[&Path]) -> String {
    let targets: Vec<_> = targets.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    // JSON is YAML.
    serde_json::json!({
        "global": {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": rules,
        "scrape_configs": [{"job_name": "caf-worker", "static_configs": [{"targets": targets}]}],
    })
    .to_string()
}

/// `data` of the answer to a form.
fn post(port: u16, path: &str, form: &str) -> Result<Value> {
    let headers = [("Content-Type", "application/x-www-form-urlencoded")];
    let server = SocketAddr::from(([127, 0, 0, 1], port));
    data(&http::request(server, "POST", path, &headers, form.as_bytes())?)
}

fn data(answer: &http::Response) -> Result<Value> {
    let mut json = answer.json()?;
    if json["status"] != "success" {
        bail!("Prometheus answered {}: {}", answer.status, json["error"]);
    }
    Ok(json["data"].take())
}

/// As the value of a field of a form.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |out, byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out + char::from(byte).encode_utf8(&mut [0]),
        _ => out + &format!("%{byte:02X}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_scrapes_answers_and_leaves_nothing_behind() {
        let server = Prometheus::start(&[], &[]).expect("starts");
        let dir = server.dir.path().to_owned();
        let result = server.query(r#"label_replace(vector(2), "a", "é&+", "", "")"#);
        let result = result.expect("answers");
        assert_eq!(
            (&result[0]["metric"]["a"], &result[0]["value"][1]),
            (&"é&+".into(), &"2".into())
        );
        assert!(server.query("sum(").is_err());
        server.stop().expect("ends");
        assert!(!dir.exists());
    }
}
