//! A PostgreSQL server of the test's own: fresh directory, free port, ended on drop.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// Longest start of a server.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running server.
pub(crate) struct Postgres {
    process: Child,
    home: PathBuf,
    port: u16,
}

impl Postgres {
    /// Starts a server. Panics, with what to install, when there is none.
    pub(crate) fn start() -> Self {
        let home = std::env::temp_dir().join(format!("caf-postgres-{}", Uuid::new_v4().simple()));
        std::fs::create_dir(&home).expect("creates the directory");
        if runs_as_root() {
            let owned = Command::new("chown").arg("postgres").arg(&home).status();
            assert!(
                owned.is_ok_and(|status| status.success()),
                "a user named postgres is needed to run as root"
            );
        }
        let data = home.join("data");
        let made = unprivileged("initdb", &home)
            .args([
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--no-sync",
                "--pgdata",
            ])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .expect("initdb runs");
        assert!(made.success(), "initdb failed");
        let port = free_port();
        let process = unprivileged("postgres", &home)
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string()])
            .args([
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "unix_socket_directories=",
            ])
            .args([
                "-c",
                "fsync=off",
                "-c",
                "max_connections=20",
                "-c",
                "log_min_messages=fatal",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("postgres runs");
        let mut server = Self { process, home, port };
        server.wait_until_ready();
        server
    }

    /// Where it is, without a password.
    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Ready means that it answers a request for encryption, which needs no login.
    fn wait_until_ready(&mut self) {
        let begin = Instant::now();
        while begin.elapsed() < START_LIMIT {
            if let Ok(Some(status)) = self.process.try_wait() {
                let mut told = String::new();
                let _ = self
                    .process
                    .stderr
                    .take()
                    .map(|mut pipe| pipe.read_to_string(&mut told));
                panic!("postgres ended with {status}: {told}");
            }
            if self.answers() && self.home.join("data/postmaster.pid").exists() && self.is_ready() {
                return;
            }
            std::thread::yield_now();
        }
        panic!("postgres is not ready after {START_LIMIT:?}");
    }

    fn answers(&self) -> bool {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
    }

    /// The last line of the file tells the state.
    fn is_ready(&self) -> bool {
        let state = std::fs::read_to_string(self.home.join("data/postmaster.pid")).unwrap_or_default();
        state.lines().nth(7).is_some_and(|line| line.trim() == "ready")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The quick end of a server: its children notice and leave too.
        let _ = Command::new("kill")
            .args(["-QUIT", &self.process.id().to_string()])
            .status();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

/// A free port at this moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
    listener.local_addr().expect("is bound").port()
}

/// The server refuses to run as root, so it runs as the user `postgres` then.
fn unprivileged(program: &str, home: &Path) -> Command {
    let path = find(program);
    let mut command = if runs_as_root() {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
            .arg(path);
        command
    } else {
        Command::new(path)
    };
    command.current_dir(home);
    command
}

fn runs_as_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The program's own directory is preferred: a wrapper in the path may not bear another user.
fn find(program: &str) -> PathBuf {
    let mut places: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    places.sort();
    places.reverse();
    places.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    places
        .into_iter()
        .map(|place| place.join(program))
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!("{program} not found: install the PostgreSQL server (Debian: apt install postgresql)")
        })
}
