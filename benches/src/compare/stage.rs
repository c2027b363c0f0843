//! Broker, contenders and HTTP server as processes in a directory of their own.
//!
//! Neighbours: rows ask for them. Each is ended by its own handle when that is dropped, and by the kernel when this
//! process dies first (`setpriv --pdeathsig`, where the system has it).

use std::fs::{self, File};
use std::net::TcpListener as StdListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::Programs;

/// Longest wait for a process to be ready.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often readiness is asked for.
const ASK: Duration = Duration::from_millis(1);

/// Where everything happens; removed on drop.
#[derive(Debug)]
pub struct Stage {
    directory: PathBuf,
    worker: PathBuf,
    broker: PathBuf,
    root: PathBuf,
    places: AtomicUsize,
}

/// Who does the work.
#[derive(Debug, Clone, PartialEq)]
pub enum Contender {
    /// The bare loop, with further options.
    Bare(Vec<&'static str>),
    /// The worker, with settings beside the usual ones; the later win.
    Worker(Vec<(&'static str, String)>),
}

/// A process that ends with its handle.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Its number.
    pub pid: u32,
    /// Directory of its own.
    pub directory: PathBuf,
}

/// A running nats-server.
#[derive(Debug)]
pub struct Broker {
    /// The process.
    pub process: Process,
    /// Its address.
    pub url: String,
}

impl Contender {
    /// Whether it works from a stream.
    pub fn is_durable(&self) -> bool {
        match self {
            Self::Bare(options) => !options.contains(&"--core"),
            Self::Worker(settings) => !settings.contains(&("nats.mode", "core".to_owned())),
        }
    }
}

impl Stage {
    /// An empty directory below the system's temporary one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(programs: &Programs) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("caf-bench-{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let absolute = |path: &Path| {
            path.canonicalize()
                .with_context(|| format!("no {}", path.display()))
        };
        Ok(Self {
            worker: absolute(&programs.worker)?,
            broker: absolute(&programs.broker)?,
            root: absolute(&programs.root)?,
            directory,
            places: AtomicUsize::new(0),
        })
    }

    fn place(&self, name: &str) -> Result<PathBuf> {
        let number = self.places.fetch_add(1, Ordering::Relaxed);
        let place = self.directory.join(format!("{name}-{number}"));
        fs::create_dir(&place)?;
        Ok(place)
    }

    /// Starts a broker with an empty store, and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn broker(&self) -> Result<Broker> {
        self.broker_on(free_port()?).await
    }

    /// The same, on this port.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn broker_on(&self, port: u16) -> Result<Broker> {
        let place = self.place("broker")?;
        let config = format!(
            "host: \"127.0.0.1\"\nport: {port}\nlog_file: \"{0}/log\"\n\
             jetstream {{ store_dir: \"{0}/store\", max_mem: 256MB, max_file: 64GB }}\n",
            place.display()
        );
        fs::write(place.join("config"), config)?;
        let mut command = bound_to_us(&self.broker);
        command.arg("-c").arg(place.join("config"));
        let process = Process::start(command, place)?;
        let broker = Broker {
            process,
            url: format!("nats://127.0.0.1:{port}"),
        };
        let up = until(|| async { TcpStream::connect(("127.0.0.1", port)).await.is_ok() }).await;
        up.context("the broker does not come up")?;
        Ok(broker)
    }

    /// Starts a contender, and waits until it works.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn contender(&self, broker: &Broker, contender: &Contender) -> Result<Process> {
        match contender {
            Contender::Bare(options) => {
                let mut command = bound_to_us(&std::env::current_exe()?);
                command
                    .args(["bare", "--url", &broker.url])
                    .args(options)
                    .stdout(Stdio::piped());
                let mut process = Process::start(command, self.place("bare")?)?;
                process.first_line().await?;
                Ok(process)
            }
            Contender::Worker(settings) => {
                let (process, health) = self.worker(&broker.url, settings)?;
                process.ready(health).await?;
                Ok(process)
            }
        }
    }

    /// Starts a worker, and returns it with the port of its health without waiting for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn worker(&self, url: &str, settings: &[(&'static str, String)]) -> Result<(Process, u16)> {
        let place = self.place("worker")?;
        fs::create_dir_all(place.join("config/worker"))?;
        for entry in fs::read_dir(self.root.join("config/worker"))? {
            let entry = entry?;
            fs::copy(entry.path(), place.join("config/worker").join(entry.file_name()))?;
        }
        let health = free_port()?;
        let mut command = bound_to_us(&self.worker);
        command
            .arg("serve")
            .arg("--config")
            .arg(self.root.join("config/production.toml"));
        let usual = [
            ("nats.url", url.to_owned()),
            ("http.health_addr", format!("127.0.0.1:{health}")),
            ("http.metrics_addr", "127.0.0.1:0".to_owned()),
            ("http.admin_addr", "127.0.0.1:0".to_owned()),
            ("worker.tracing.enabled", "false".to_owned()),
            ("queue.admission", "wait".to_owned()),
            ("idempotency.scope", "worker".to_owned()),
            ("log.level", "info".to_owned()),
            ("log.file", "worker.log".to_owned()),
        ];
        for (key, value) in usual.iter().chain(settings) {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        Ok((Process::start(command, place)?, health))
    }

    /// Starts the HTTP server; with its port.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn web(&self) -> Result<(Process, u16)> {
        let mut command = bound_to_us(&std::env::current_exe()?);
        command.arg("web").stdout(Stdio::piped());
        let mut process = Process::start(command, self.place("web")?)?;
        let port = process.first_line().await?.parse()?;
        Ok((process, port))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("cannot remove {}: {error}", self.directory.display());
        }
    }
}

impl Process {
    /// Waits until it says on this port that it is ready.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ready(&self, health: u16) -> Result<()> {
        let ready = until(|| async { is_ready(health).await }).await;
        ready.with_context(|| format!("the worker does not become ready: {}", self.last_words()))
    }

    /// What it prints when it is ready.
    async fn first_line(&mut self) -> Result<String> {
        let stdout = self.child.stdout.take().context("its standard output is ours")?;
        let mut line = String::new();
        let read = timeout(PATIENCE, BufReader::new(stdout).read_line(&mut line)).await;
        read.ok()
            .transpose()?
            .filter(|bytes| *bytes > 0)
            .with_context(|| format!("it is not ready: {}", self.last_words()))?;
        Ok(line.trim().to_owned())
    }

    fn start(mut command: Command, directory: PathBuf) -> Result<Self> {
        let errors = File::create(directory.join("stderr"))?;
        command
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stderr(errors)
            .kill_on_drop(true);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let pid = child.id().context("it has just been started")?;
        Ok(Self {
            child,
            pid,
            directory,
        })
    }

    /// Ends it on the spot, waits for that and removes its files.
    ///
    /// # Errors
    /// When it had ended before.
    pub async fn end(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("ended by itself: {status}: {}", self.last_words());
        }
        self.child.kill().await?;
        Ok(fs::remove_dir_all(&self.directory)?)
    }

    fn last_words(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.directory.join(name)).unwrap_or_default();
        let lines = read("worker.log") + &read("stderr");
        let lines: Vec<&str> = lines.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

/// A program that the kernel ends when we are gone.
fn bound_to_us(program: &Path) -> Command {
    let setpriv = Path::new("/usr/bin/setpriv");
    let mut command = if setpriv.exists() {
        let mut command = Command::new(setpriv);
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.env_remove("NATS_URL").stdout(Stdio::null());
    command
}

/// A port on which nobody listens.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    Ok(StdListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Asks again and again until it is so.
async fn until<F: Future<Output = bool>>(is_so: impl Fn() -> F) -> Result<()> {
    let since = Instant::now();
    while !is_so().await {
        if since.elapsed() > PATIENCE {
            bail!("not within {PATIENCE:?}");
        }
        sleep(ASK).await;
    }
    Ok(())
}

async fn is_ready(port: u16) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        anyhow::Ok(answer.ends_with(b"200"))
    };
    matches!(timeout(Duration::from_secs(1), ask).await, Ok(Ok(true)))
}
