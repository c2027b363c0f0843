//! A PostgreSQL server of one's own.
//!
//! Neighbours: tests of the `sql` block. Trusts whoever connects from this machine and keeps nothing: `fsync` is off.

use std::fs::Permissions;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::process::Process;
use crate::tls::Certificates;
use crate::wait::poll;
use crate::{TempDir, ports, programs};

/// Longest wait for the server to accept connections, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many ports are tried when another process takes one in between.
const START_ATTEMPTS: usize = 5;
/// Account that the server runs as when the test runs as root, which the server refuses.
const ACCOUNT: &str = "postgres";

/// How a server is set up.
#[derive(Debug, Default)]
pub struct PostgresOptions {
    /// Certificates, when connections may be encrypted. They live as long as the server.
    pub tls: Option<Certificates>,
}

/// A running PostgreSQL; ended and cleaned away on drop.
#[derive(Debug)]
pub struct Postgres {
    process: Option<Process>,
    port: u16,
    options: PostgresOptions,
    // Last: removed after the process has ended.
    dir: TempDir,
}

impl Postgres {
    /// Makes a database cluster, starts it and waits until it accepts connections.
    ///
    /// # Errors
    /// When a program is missing (the message says what to install), or the server does not come up; then with its
    /// log.
    pub fn start() -> Result<Self> {
        Self::start_with(PostgresOptions::default())
    }

    /// Like [`Postgres::start`], set up as told.
    ///
    /// # Errors
    /// See [`Postgres::start`].
    pub fn start_with(options: PostgresOptions) -> Result<Self> {
        let dir = TempDir::new("pg")?;
        give_away(dir.path())?;
        if let Some(certificates) = &options.tls {
            // The server takes a key only from a file that nobody else can read.
            let (_, key) = certificates.server();
            let own = dir.path().join("server.key");
            std::fs::copy(&key, &own).context("cannot copy the key")?;
            std::fs::set_permissions(&own, Permissions::from_mode(0o600))?;
            give_away(&own)?;
            std::fs::copy(certificates.server().0, dir.path().join("server.pem"))
                .context("cannot copy the certificate")?;
        }
        let made = as_account(&programs::postgres("initdb")?)
            .args([
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
                "--no-locale",
                "--no-sync",
            ])
            .arg("--pgdata")
            .arg(dir.path().join("data"))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .output()
            .context("cannot start initdb")?;
        if !made.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&made.stderr));
        }
        let mut server = Self {
            process: None,
            port: ports::free_port(),
            options,
            dir,
        };
        for _ in 1..START_ATTEMPTS {
            match server.run() {
                Err(_) if server.log().contains("could not bind") => server.port = ports::free_port(),
                done => return done.map(|()| server),
            }
        }
        server.run().map(|()| server)
    }

    /// Address as the superuser, on the database `postgres`.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Port of 127.0.0.1; the same after every restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What the server has logged so far, over all restarts.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("server.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Runs statements through `psql` and returns its bare output: one row per line, columns split by `|`.
    ///
    /// # Errors
    /// When `psql` is missing, or a statement fails; then with what it said.
    pub fn execute(&self, statements: &str) -> Result<String> {
        let run = Command::new(programs::postgres("psql")?)
            .args([
                "--no-psqlrc",
                "--quiet",
                "--tuples-only",
                "--no-align",
                "--set=ON_ERROR_STOP=1",
            ])
            .args(["--dbname", &self.url(), "--command", statements])
            .stdin(Stdio::null())
            .output()
            .context("cannot start psql")?;
        if !run.status.success() {
            bail!("psql failed: {}", String::from_utf8_lossy(&run.stderr));
        }
        Ok(String::from_utf8_lossy(&run.stdout).trim_end().to_owned())
    }

    /// Ends it, breaking its connections off (SIGINT, a "fast" shutdown), and waits. Its data stays.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        process.signal(Signal::INT)?;
        let ended = process.wait(PATIENCE);
        ended
            .map(drop)
            .with_context(|| format!("postgres did not end within {PATIENCE:?}\n{}", self.log()))
    }

    /// Breaks it off at once (SIGQUIT): clients see a crash, the next start recovers. SIGKILL would leave helpers
    /// behind that keep it from starting again.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        process.signal(Signal::QUIT)?;
        let ended = process.wait(PATIENCE);
        ended
            .map(drop)
            .with_context(|| format!("postgres did not end within {PATIENCE:?}"))
    }

    /// Starts it again on the same port and data; a running one is stopped first.
    ///
    /// # Errors
    /// When it does not end or does not come up.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.run()
    }

    fn run(&mut self) -> Result<()> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("server.log"))?;
        let encryption: &[&str] = if self.options.tls.is_some() {
            &[
                "-c",
                "ssl=on",
                "-c",
                "ssl_cert_file=../server.pem",
                "-c",
                "ssl_key_file=../server.key",
            ]
        } else {
            &[]
        };
        let mut process = Process::spawn(
            as_account(&programs::postgres("postgres")?)
                .args(encryption)
                .arg("-D")
                .arg(self.dir.path().join("data"))
                .args(["-c", "listen_addresses=127.0.0.1"])
                .args(["-c", &format!("port={}", self.port)])
                .args([
                    "-c",
                    &format!("unix_socket_directories={}", self.dir.path().display()),
                ])
                .args([
                    "-c",
                    "fsync=off",
                    "-c",
                    "full_page_writes=off",
                    "-c",
                    "synchronous_commit=off",
                ])
                .args(["-c", "max_connections=50", "-c", "shared_buffers=16MB"])
                .current_dir(self.dir.path())
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log),
        )?;
        let came_up = poll(PATIENCE, || match process.status() {
            Some(status) => Some(Err(status)),
            None => self.accepts().then_some(Ok(())),
        });
        match came_up {
            Some(Ok(())) => self.process = Some(process),
            Some(Err(status)) => bail!("postgres ended at once: {status}\n{}", self.log()),
            None => bail!("postgres accepted nobody within {PATIENCE:?}\n{}", self.log()),
        }
        Ok(())
    }

    /// Whether this very server is ready: it writes so into its own directory, after it has bound its port.
    fn accepts(&self) -> bool {
        let pid_file = self.dir.path().join("data/postmaster.pid");
        let ready = std::fs::read_to_string(pid_file)
            .is_ok_and(|text| text.lines().last().is_some_and(|line| line.trim() == "ready"));
        ready && std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // When even this fails, the process is killed as its value is dropped.
        let _ = self.kill();
    }
}

/// Makes the account of the server the owner, when it is another one.
fn give_away(path: &Path) -> Result<()> {
    if is_root() {
        let (user, group) = (account_id("-u")?, account_id("-g")?);
        chown(path, Some(user), Some(group)).context("cannot give a file away")?;
    }
    Ok(())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn account_id(which: &str) -> Result<u32> {
    let output = Command::new("id")
        .args([which, ACCOUNT])
        .output()
        .context("cannot start id")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| {
        format!("there is no account {ACCOUNT}, which PostgreSQL needs when tests run as root: run scripts/install-test-tools.sh")
    })
}

/// The program, run as [`ACCOUNT`] when we are root. `setpriv` replaces itself by it, so the process id is its own.
fn as_account(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", ACCOUNT, "--regid", ACCOUNT, "--clear-groups", "--"])
        .arg(program);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_survives_a_restart_and_a_crash_and_nothing_stays_behind() {
        let mut server = Postgres::start().expect("starts");
        let (port, dir) = (server.port(), server.dir.path().to_owned());
        server
            .execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1), (2)")
            .expect("is done");
        server.restart().expect("restarts");
        server.kill().expect("crashes");
        assert!(server.execute("SELECT 1").is_err());
        server.restart().expect("starts again");
        assert_eq!(
            server
                .execute("SELECT n, 'x' FROM kept ORDER BY n")
                .expect("answers"),
            "1|x\n2|x"
        );
        assert_eq!(server.port(), port);
        drop(server);
        assert!(!dir.exists());
    }
}
