//! The node as a process, as an operator meets it: arguments, environment, signals, log lines, exit code.
//!
//! Neighbours: whole-node tests give the path, `env!("CARGO_BIN_EXE_caf-worker")`. Each worker has a directory of its
//! own to run in, so that files and state of two never meet, and an environment without the machine's settings.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::http::{self, Response};
use crate::process::Process;
use crate::resolver::Names;
use crate::stall::Stall;
use crate::wait::poll;
use crate::{NatsServer, Proxy, TempDir};

/// Longest wait for a log line or a ready worker.
const PATIENCE: Duration = Duration::from_secs(30);
/// Variables of the test's environment that the worker keeps; all others could be settings.
const KEPT_VARIABLES: [&str; 6] = [
    "HOME",
    "LD_LIBRARY_PATH",
    "LLVM_PROFILE_FILE",
    "PATH",
    "RUST_BACKTRACE",
    "TMPDIR",
];
/// Lines of output that an error message quotes.
const QUOTED_LINES: usize = 40;

/// A worker to be.
#[derive(Debug)]
pub struct WorkerBuilder {
    program: PathBuf,
    arguments: Vec<OsString>,
    variables: BTreeMap<String, String>,
    files: Vec<(PathBuf, Vec<u8>)>,
    input: Vec<u8>,
    directory: Option<PathBuf>,
}

impl WorkerBuilder {
    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.variables.insert(name.to_owned(), value.to_string());
        self
    }

    /// Puts a file into the directory it runs in, e.g. `config/worker.toml`.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((path.into(), content.into()));
        self
    }

    /// Puts the shipped policy file of `area` (`retry`, `timeout` or `queue`) into `config/worker`, with `change` merged
    /// into what stands below `v2`: objects key by key, everything else in place of what was there.
    ///
    /// # Panics
    /// When there is no such file.
    #[must_use]
    pub fn policy(self, area: &str, change: &Value) -> Self {
        let name = format!("config/worker/{area}_policy.json");
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(&name);
        let text = std::fs::read_to_string(shipped).expect("it is shipped");
        let mut policy: Value = serde_json::from_str(&text).expect("it is JSON");
        let sections = policy["worker"].as_object_mut().into_iter();
        for (_, section) in sections.flatten() {
            merge(&mut section["v2"], change);
        }
        self.file(name, policy.to_string())
    }

    /// What it reads from standard input; nothing by default.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// Runs it beneath a file system that can hang. Its process id and its output are the worker's all the same.
    #[must_use]
    pub fn under(mut self, stall: &Stall) -> Self {
        let program = std::mem::replace(&mut self.program, stall.program());
        let before = stall.arguments().into_iter().chain([program]).map(OsString::from);
        self.arguments.splice(0..0, before);
        self
    }

    /// Lets its system answer look-ups of these names.
    #[must_use]
    pub fn names(self, names: &Names) -> Self {
        self.env("LD_PRELOAD", names.library().display())
            .env("CAF_TEST_NAMES", names.directory().display())
    }

    /// Runs in this directory instead of one of its own, e.g. that of an earlier worker whose state it is to find.
    /// The caller sees to its removal.
    #[must_use]
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// `serve` beside this broker, with ports that the system picks.
    #[must_use]
    pub fn serve(self, nats: &NatsServer) -> Self {
        self.serve_at(nats.url())
    }

    /// As [`WorkerBuilder::serve`], with this proxy in between.
    #[must_use]
    pub fn serve_through(self, proxy: &Proxy) -> Self {
        self.serve_at(proxy.url())
    }

    fn serve_at(self, url: String) -> Self {
        self.arg("serve")
            .env("NATS_URL", url)
            .env("WORKER__HTTP__HEALTH_ADDR", "127.0.0.1:0")
            .env("WORKER__HTTP__METRICS_ADDR", "127.0.0.1:0")
            .env("WORKER__HTTP__ADMIN_ADDR", "127.0.0.1:0")
    }

    /// Starts it. Does not wait until it is ready: [`Worker::wait_ready`] does.
    ///
    /// # Errors
    /// When the program or its directory is missing.
    pub fn start(self) -> Result<Worker> {
        let own = match &self.directory {
            Some(_) => None,
            None => Some(TempDir::new("worker")?),
        };
        let directory = match (&self.directory, &own) {
            (Some(directory), _) => directory.clone(),
            (None, Some(own)) => own.path().to_owned(),
            (None, None) => bail!("a worker runs somewhere"),
        };
        for (path, content) in &self.files {
            let path = directory.join(path);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let kept = KEPT_VARIABLES
            .iter()
            .filter_map(|name| std::env::var_os(name).map(|value| (*name, value)));
        let mut process = Process::spawn(
            Command::new(&self.program)
                .args(&self.arguments)
                .env_clear()
                .envs(kept)
                .envs(&self.variables)
                .current_dir(&directory)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        )?;
        let output = Output::default();
        let child = process.child();
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut threads = Vec::new();
        threads.extend(stdout.map(|pipe| capture(Stream::Stdout, pipe, &output)));
        threads.extend(stderr.map(|pipe| capture(Stream::Stderr, pipe, &output)));
        let input = self.input;
        threads.extend(stdin.map(|mut pipe| {
            // A worker that ends before it has read everything breaks the pipe; its exit code tells enough.
            std::thread::spawn(move || drop(pipe.write_all(&input)))
        }));
        Ok(Worker {
            process,
            output,
            threads,
            directory,
            _own: own,
        })
    }

    /// Starts it, waits until it ends by itself, and returns all it had to say.
    ///
    /// # Errors
    /// When it cannot be started or does not end `within` that time.
    pub fn run(self, within: Duration) -> Result<Finished> {
        self.start()?.finish(within)
    }
}

/// Where a line of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where it came from.
    pub stream: Stream,
    /// The line without its end; bytes that are not UTF-8 are replaced.
    pub text: String,
}

#[derive(Debug, Clone, Default)]
struct Output(Arc<Mutex<Vec<Line>>>);

impl Output {
    fn push(&self, line: Line) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn lines(&self) -> Vec<Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lines from the given one on.
    fn since(&self, from: usize) -> Vec<Line> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.get(from..).unwrap_or_default().to_vec()
    }
}

fn capture(stream: Stream, pipe: impl Read + Send + 'static, output: &Output) -> JoinHandle<()> {
    let output = output.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            output.push(Line { stream, text });
        }
    })
}

/// All that a worker had to say, and how it ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Every line, in the order in which they arrived here.
    pub lines: Vec<Line>,
}

impl Finished {
    /// Exit code; nothing when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Standard output.
    pub fn stdout(&self) -> String {
        text_of(&self.lines, Stream::Stdout)
    }

    /// Standard error.
    pub fn stderr(&self) -> String {
        text_of(&self.lines, Stream::Stderr)
    }
}

fn text_of(lines: &[Line], stream: Stream) -> String {
    let of_stream = lines.iter().filter(|line| line.stream == stream);
    of_stream
        .map(|line| line.text.as_str())
        .collect::<Vec<_>>()
        .join("\n")
}

/// A running worker; killed on drop. When the test fails, its last lines are printed.
#[derive(Debug)]
pub struct Worker {
    process: Process,
    output: Output,
    threads: Vec<JoinHandle<()>>,
    directory: PathBuf,
    // Last: removed after the process has ended.
    _own: Option<TempDir>,
}

impl Worker {
    /// A worker to be; `program` is `env!("CARGO_BIN_EXE_caf-worker")` in the node's tests.
    pub fn builder(program: impl Into<PathBuf>) -> WorkerBuilder {
        WorkerBuilder {
            program: program.into(),
            arguments: Vec::new(),
            variables: BTreeMap::new(),
            files: Vec::new(),
            input: Vec::new(),
            directory: None,
        }
    }

    /// Directory it runs in.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Every line so far.
    pub fn lines(&self) -> Vec<Line> {
        self.output.lines()
    }

    /// Every line so far that is a JSON object, of both streams.
    pub fn logs(&self) -> Vec<Value> {
        self.lines().iter().filter_map(as_log).collect()
    }

    /// The first log line, of those so far and those to come, that `wanted` recognises.
    ///
    /// # Errors
    /// When none comes in time, or the worker ends without one; then with its last lines.
    pub fn wait_for_log(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut seen = 0;
        let output = self.output.clone();
        let mut look = || {
            let lines = output.since(seen);
            seen += lines.len();
            lines.iter().filter_map(as_log).find(|log| wanted(log))
        };
        let found = poll(PATIENCE, || {
            // In this order: what it said last before it ended must not be missed.
            let ended = self.process.status().is_some() && self.threads.iter().all(JoinHandle::is_finished);
            match look() {
                Some(log) => Some(Ok(log)),
                None => ended.then(|| Err(anyhow!("the worker ended without that log line"))),
            }
        });
        found
            .unwrap_or_else(|| Err(anyhow!("no such log line within {PATIENCE:?}")))
            .with_context(|| self.last_lines())
    }

    /// Waits for the log line with this `message`.
    ///
    /// # Errors
    /// As [`Worker::wait_for_log`].
    pub fn wait_for_message(&mut self, message: &str) -> Result<Value> {
        self.wait_for_log(|log| log["message"] == message)
            .with_context(|| format!("waiting for the message {message:?}"))
    }

    /// Port of the health endpoint, from the log.
    ///
    /// # Errors
    /// When the worker does not log it.
    pub fn health_port(&mut self) -> Result<u16> {
        self.port_in("Health endpoint started")
    }

    /// Port of the metrics endpoint, from the log.
    ///
    /// # Errors
    /// When the worker does not log it.
    pub fn metrics_port(&mut self) -> Result<u16> {
        self.port_in("Metrics endpoint started")
    }

    /// Port of the admin endpoint, from the log.
    ///
    /// # Errors
    /// When the worker does not log it.
    pub fn admin_port(&mut self) -> Result<u16> {
        self.port_in("Admin endpoint started")
    }

    fn port_in(&mut self, message: &str) -> Result<u16> {
        let log = self.wait_for_message(message)?;
        let port = &log["context"]["port"];
        let number = port.as_u64().or_else(|| port.as_str()?.parse().ok());
        number
            .and_then(|port| u16::try_from(port).ok())
            .with_context(|| format!("no port in {log}"))
    }

    /// The answer of the health endpoint to `GET path`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn get(&mut self, path: &str) -> Result<Response> {
        http::get(self.health_port()?, path)
    }

    /// Waits until `/readyz` says 200.
    ///
    /// # Errors
    /// When it does not in time, or the worker ends; then with its last lines.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.wait_for_readiness(200)
    }

    /// Waits until `/readyz` answers with this status code.
    ///
    /// # Errors
    /// As [`Worker::wait_ready`].
    pub fn wait_for_readiness(&mut self, code: u16) -> Result<()> {
        let port = self.health_port()?;
        let ready = poll(PATIENCE, || {
            let ended = self.process.status().is_some();
            let answered = http::get(port, "/readyz").is_ok_and(|answer| answer.status == code);
            (answered || ended).then_some(answered)
        });
        if ready == Some(true) {
            return Ok(());
        }
        bail!("/readyz never answered {code}\n{}", self.last_lines())
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.status_bytes("VmRSS:")
    }

    /// Resident memory that is not mapped from a file, in bytes: what the program has taken for itself.
    ///
    /// # Errors
    /// When it has ended.
    pub fn own_resident_bytes(&self) -> Result<u64> {
        self.status_bytes("RssAnon:")
    }

    fn status_bytes(&self, name: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let kib = status
            .lines()
            .find_map(|line| {
                line.strip_prefix(name)?
                    .trim()
                    .strip_suffix("kB")?
                    .trim()
                    .parse::<u64>()
                    .ok()
            })
            .with_context(|| format!("no {name} the worker has ended"))?;
        Ok(kib * 1024)
    }

    /// The most memory that was ever resident, in bytes.
    ///
    /// # Errors
    /// When it has ended.
    pub fn peak_resident_bytes(&self) -> Result<u64> {
        self.status_bytes("VmHWM:")
    }

    /// Sends SIGTERM and returns at once.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn terminate(&mut self) -> Result<()> {
        self.process.signal(Signal::TERM)
    }

    /// Sends SIGINT and returns at once.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn interrupt(&mut self) -> Result<()> {
        self.process.signal(Signal::INT)
    }

    /// Sends SIGHUP and returns at once.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn hang_up(&mut self) -> Result<()> {
        self.process.signal(Signal::HUP)
    }

    /// Holds it still (SIGSTOP).
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn pause(&mut self) -> Result<()> {
        self.process.signal(Signal::STOP)
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn resume(&mut self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }

    /// Ends it on the spot (SIGKILL) and waits.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.status().is_none()
    }

    /// How it ended.
    ///
    /// # Errors
    /// When it still runs after `within`; then with its last lines.
    pub fn wait_exit(&mut self, within: Duration) -> Result<ExitStatus> {
        self.process
            .wait(within)
            .with_context(|| format!("the worker still runs after {within:?}\n{}", self.last_lines()))
    }

    /// Waits until it ends by itself, and returns all it had to say.
    ///
    /// # Errors
    /// When it still runs after `within`.
    pub fn finish(mut self, within: Duration) -> Result<Finished> {
        let status = self.wait_exit(within)?;
        for thread in self.threads.drain(..) {
            thread
                .join()
                .map_err(|_| anyhow!("a reader of the worker's output panicked"))?;
        }
        let lines = self.lines();
        Ok(Finished { status, lines })
    }

    fn last_lines(&self) -> String {
        let lines = self.lines();
        let from = lines.len().saturating_sub(QUOTED_LINES);
        let texts: Vec<_> = lines[from..].iter().map(|line| line.text.as_str()).collect();
        format!("the worker's last lines:\n{}", texts.join("\n"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.last_lines());
        }
    }
}

fn as_log(line: &Line) -> Option<Value> {
    serde_json::from_str(&line.text).ok().filter(Value::is_object)
}

fn merge(into: &mut Value, change: &Value) {
    match change.as_object() {
        Some(fields) => fields
            .iter()
            .for_each(|(key, change)| merge(&mut into[key.as_str()], change)),
        None => *into = change.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell stands in for the worker: what is tested here is how a process is watched.
    fn shell(script: &str) -> WorkerBuilder {
        Worker::builder("/bin/sh").arg("-c").arg(script)
    }

    #[test]
    fn the_health_port_is_read_from_the_log() {
        let line = r#"{"message":"Health endpoint started","context":{"address":"127.0.0.1","port":4711}}"#;
        let mut worker = shell("echo noise; echo \"$LINE\"; exec sleep 60")
            .env("LINE", line)
            .start()
            .expect("starts");
        assert_eq!(worker.health_port().expect("is logged"), 4711);
        assert_eq!(worker.logs().len(), 1);
        assert!(worker.is_running());
    }

    #[test]
    fn a_worker_that_ends_is_not_waited_for_any_longer() {
        let mut worker = shell("echo '{\"message\":\"last\"}' >&2; exit 3")
            .start()
            .expect("starts");
        let error = worker.wait_for_message("never").expect_err("never comes");
        assert!(format!("{error:?}").contains("ended without"), "{error:?}");
        worker.wait_for_message("last").expect("was not missed");
        let finished = worker.finish(PATIENCE).expect("has ended");
        assert_eq!(
            (finished.code(), finished.stderr().as_str()),
            (Some(3), "{\"message\":\"last\"}")
        );
    }

    #[test]
    fn input_and_files_reach_the_worker_and_the_machines_settings_do_not() {
        let finished = shell("cat; cat config/worker.toml; env")
            .stdin("in\n")
            .file("config/worker.toml", "file\n")
            .env("WORKER__X", 1)
            .run(PATIENCE)
            .expect("ends");
        let out = finished.stdout();
        assert!(
            out.starts_with("in\nfile\n") && out.contains("WORKER__X=1"),
            "{out}"
        );
        assert!(!out.contains("CARGO_"), "{out}");
    }

    #[test]
    fn signals_reach_the_worker_itself() {
        let script =
            "trap 'echo {\\\"message\\\":\\\"bye\\\"}; exit 7' TERM; echo {}; while :; do sleep 0.01; done";
        let mut worker = shell(script).start().expect("starts");
        worker.wait_for_log(|_| true).expect("is up");
        worker.terminate().expect("can be signalled");
        assert_eq!(worker.wait_exit(PATIENCE).expect("ends").code(), Some(7));
    }
}
