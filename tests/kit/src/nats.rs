//! A nats-server of one's own.
//!
//! Neighbours: [`crate::client`] talks to it, [`crate::worker`] is pointed at it. Never shared between tests.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::Signal;

use crate::credentials::Credentials;
use crate::process::Process;
use crate::tls::Certificates;
use crate::wait::poll;
use crate::{TempDir, ports, programs};

/// Longest wait for the server to accept connections, and to end after SIGTERM. Recovery of a large store on a busy
/// machine takes seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many ports are tried when another process takes one in between.
const START_ATTEMPTS: usize = 5;

/// Whom the server lets in.
#[derive(Debug, Clone, Default)]
pub enum NatsAuth {
    /// Anybody.
    #[default]
    None,
    /// One user with a password.
    User {
        /// Name.
        user: String,
        /// Password.
        password: String,
    },
    /// Whoever knows the token.
    Token(String),
    /// Whoever can sign for a user nkey, see [`NatsAuth::nkey`].
    Nkey {
        /// Secret (`SU…`).
        seed: String,
        /// Public key (`U…`).
        public: String,
    },
    /// Whoever holds a `.creds` file of this operator.
    Credentials(Arc<Credentials>),
}

impl NatsAuth {
    /// A new user nkey.
    ///
    /// # Errors
    /// When the key has no seed.
    pub fn nkey() -> Result<Self> {
        let pair = nkeys::KeyPair::new_user();
        let seed = pair.seed().context("a new key pair has a seed")?;
        Ok(Self::Nkey {
            seed,
            public: pair.public_key(),
        })
    }

    /// A new operator, account and user.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn credentials() -> Result<Self> {
        Ok(Self::Credentials(Arc::new(Credentials::generate()?)))
    }
}

/// How the server is set up.
#[derive(Debug, Default)]
pub struct NatsOptions {
    /// Whether it has JetStream, with its files in the server's own directory.
    pub jetstream: bool,
    /// Largest message in bytes; absent: the server's default, 1 MiB.
    pub max_payload: Option<usize>,
    /// Whom it lets in.
    pub auth: NatsAuth,
    /// Certificates, when connections are to be encrypted. They live as long as the server.
    pub tls: Option<Certificates>,
    /// Whether a client must show the client certificate.
    pub verify_clients: bool,
    /// More lines for the server's configuration file.
    pub extra_config: String,
}

impl NatsOptions {
    /// Defaults, with JetStream.
    pub fn jetstream() -> Self {
        Self {
            jetstream: true,
            ..Self::default()
        }
    }
}

/// A running (or, after [`NatsServer::stop`], waiting) nats-server; ended and cleaned away on drop.
#[derive(Debug)]
pub struct NatsServer {
    process: Option<Process>,
    options: NatsOptions,
    program: PathBuf,
    port: u16,
    name: String,
    // Last: removed after the process has ended.
    dir: TempDir,
}

impl NatsServer {
    /// Starts one with JetStream and without authentication.
    ///
    /// # Errors
    /// See [`NatsServer::start_with`].
    pub fn start() -> Result<Self> {
        Self::start_with(NatsOptions::jetstream())
    }

    /// Starts one and waits until it accepts connections.
    ///
    /// # Errors
    /// When the program is missing (the message says what to do), or does not come up; then with its log.
    pub fn start_with(options: NatsOptions) -> Result<Self> {
        let mut server = Self {
            process: None,
            options,
            program: programs::nats_server()?,
            port: ports::free_port(),
            name: format!("caf-test-{}", uuid::Uuid::new_v4().simple()),
            dir: TempDir::new("nats")?,
        };
        for _ in 1..START_ATTEMPTS {
            match server.run() {
                Err(_) if server.log().contains("address already in use") => server.port = ports::free_port(),
                done => return done.map(|()| server),
            }
        }
        server.run().map(|()| server)
    }

    /// Address without credentials, e.g. `nats://127.0.0.1:15001`; `tls://localhost:…` with certificates.
    pub fn url(&self) -> String {
        let (scheme, host) = match self.options.tls {
            Some(_) => ("tls", "localhost"),
            None => ("nats", "127.0.0.1"),
        };
        format!("{scheme}://{host}:{}", self.port)
    }

    /// Port of 127.0.0.1; the same after every restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificates it was started with.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.options.tls.as_ref()
    }

    /// Whom it lets in.
    pub fn auth(&self) -> &NatsAuth {
        &self.options.auth
    }

    /// What the server has logged so far, over all restarts.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("server.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Ends it in good order (SIGTERM) and waits until it has ended. Its store stays.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        process.signal(Signal::TERM)?;
        let ended = process.wait(PATIENCE);
        ended
            .map(drop)
            .with_context(|| format!("nats-server did not end within {PATIENCE:?}\n{}", self.log()))
    }

    /// Ends it on the spot (SIGKILL). Its store stays.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Ends it on the spot and takes its files away: the next start knows no stream.
    ///
    /// # Errors
    /// When the files cannot be removed.
    pub fn forget(&mut self) -> Result<()> {
        self.kill();
        std::fs::remove_dir_all(self.dir.path().join("store")).context("cannot remove the server's store")
    }

    /// Holds it still (SIGSTOP): connections stay open and nobody answers.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn pause(&mut self) -> Result<()> {
        self.running()?.signal(Signal::STOP)
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn resume(&mut self) -> Result<()> {
        self.running()?.signal(Signal::CONT)
    }

    /// Starts it again on the same port and store; a running one is stopped first.
    ///
    /// # Errors
    /// When it does not end or does not come up.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.run()
    }

    /// Whether it has JetStream from its next start on. Without, its store stays for a later one.
    pub fn set_jetstream(&mut self, enabled: bool) {
        self.options.jetstream = enabled;
    }

    /// Its largest message from its next start on, in bytes; its default without.
    pub fn set_max_payload(&mut self, bytes: Option<usize>) {
        self.options.max_payload = bytes;
    }

    fn running(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the nats-server is not running")
    }

    fn run(&mut self) -> Result<()> {
        let config = self.dir.path().join("server.conf");
        std::fs::write(&config, self.config()).context("cannot write the server's configuration")?;
        let mut process = Process::spawn(
            Command::new(&self.program)
                .arg("-c")
                .arg(&config)
                .current_dir(self.dir.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )?;
        let came_up = poll(PATIENCE, || {
            if let Some(status) = process.status() {
                return Some(Err(anyhow!("nats-server ended at once: {status}")));
            }
            self.accepts().then_some(Ok(()))
        });
        match came_up {
            Some(Ok(())) => self.process = Some(process),
            Some(Err(error)) => return Err(error.context(self.log())),
            None => bail!("nats-server accepted nobody within {PATIENCE:?}\n{}", self.log()),
        }
        Ok(())
    }

    /// Whether this very server answers on the port: its greeting carries its name.
    fn accepts(&self) -> bool {
        let greeting = || -> Option<String> {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).ok()?;
            Some(line)
        };
        greeting().is_some_and(|line| line.starts_with("INFO ") && line.contains(&self.name))
    }

    fn config(&self) -> String {
        let dir = self.dir.path().display();
        let mut lines = vec![
            "host: \"127.0.0.1\"".to_owned(),
            format!("port: {}", self.port),
            format!("server_name: \"{}\"", self.name),
            format!("log_file: \"{dir}/server.log\""),
        ];
        if self.options.jetstream {
            // Bounds of its own: a store shared with nobody must not be refused for lack of room elsewhere.
            lines.push(format!(
                "jetstream {{ store_dir: \"{dir}/store\", max_mem: 256MB, max_file: 4GB }}"
            ));
        }
        lines.extend(
            self.options
                .max_payload
                .map(|bytes| format!("max_payload: {bytes}")),
        );
        match &self.options.auth {
            NatsAuth::None => {}
            NatsAuth::User { user, password } => {
                lines.push(format!(
                    "authorization {{ user: \"{user}\", password: \"{password}\" }}"
                ));
            }
            NatsAuth::Token(token) => lines.push(format!("authorization {{ token: \"{token}\" }}")),
            NatsAuth::Nkey { public, .. } => {
                lines.push(format!("authorization {{ users: [ {{ nkey: {public} }} ] }}"));
            }
            NatsAuth::Credentials(credentials) => lines.push(credentials.config().to_owned()),
        }
        if let Some(certificates) = &self.options.tls {
            let (certificate, key) = certificates.server();
            lines.push(format!(
                "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: {} }}",
                certificate.display(),
                key.display(),
                certificates.authority().display(),
                self.options.verify_clients,
            ));
        }
        lines.push(self.options.extra_config.clone());
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Client;

    #[test]
    fn a_stream_survives_every_way_of_ending_the_server() {
        let mut server = NatsServer::start().expect("starts");
        let client = Client::connect(&server).expect("connects");
        let context = client.jetstream();
        let config = async_nats::jetstream::stream::Config {
            name: "kept".to_owned(),
            subjects: vec!["kept.*".to_owned()],
            ..Default::default()
        };
        client
            .run(async move { context.create_stream(config).await.map(drop) })
            .expect("answers")
            .expect("is created");
        client
            .publish("kept.one", &[("a", "b")], "1")
            .expect("is published");
        crate::wait_until("the message is stored", PATIENCE, || {
            client.stream_count("kept").is_ok_and(|count| count == 1)
        });
        let port = server.port();
        server.restart().expect("restarts");
        server.kill();
        server.restart().expect("starts again");
        server.pause().expect("can be paused");
        server.resume().expect("can be resumed");
        assert_eq!(server.port(), port);
        let messages = client.stream_messages("kept").expect("is still there");
        assert_eq!((messages.len(), messages[0].header("a")), (1, Some("b")));
        assert_eq!(client.stream("another").expect("answers").map(|_| ()), None);
    }

    #[test]
    fn a_stopped_or_dropped_server_answers_nobody_and_leaves_nothing() {
        let mut server = NatsServer::start().expect("starts");
        let (port, dir) = (server.port(), server.dir.path().to_owned());
        server.stop().expect("stops");
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
        assert!(dir.exists(), "the store stays for a restart");
        server.restart().expect("starts again");
        drop(server);
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
        assert!(!dir.exists());
    }

    #[test]
    fn a_server_without_jetstream_that_wants_a_password_and_small_messages_gets_its_way() {
        let server = NatsServer::start_with(NatsOptions {
            max_payload: Some(1000),
            auth: NatsAuth::User {
                user: "worker".to_owned(),
                password: "pa ss".to_owned(),
            },
            ..NatsOptions::default()
        })
        .expect("starts");
        let client = Client::connect(&server).expect("connects");
        client.publish("x", &[], vec![b'x'; 1000]).expect("fits");
        client
            .publish("x", &[], vec![b'x'; 1001])
            .expect_err("does not fit");
        client.stream("x").expect_err("there is no jetstream");
        let nobody = Client::connect_with(&server.url(), async_nats::ConnectOptions::new());
        nobody.expect_err("a stranger is not let in");
    }

    #[test]
    fn every_way_to_show_who_one_is_opens_its_own_server_only() {
        let ways = [
            NatsAuth::Token("s3cret".to_owned()),
            NatsAuth::nkey().expect("can be made"),
            NatsAuth::credentials().expect("can be made"),
        ];
        for auth in ways {
            let server = NatsServer::start_with(NatsOptions {
                auth,
                ..NatsOptions::jetstream()
            })
            .expect("starts");
            let client = Client::connect(&server).expect("connects");
            assert_eq!(client.stream_count("none").expect("jetstream answers"), 0);
            let stranger = Client::connect_with(&server.url(), async_nats::ConnectOptions::new());
            stranger.expect_err("a stranger is not let in");
        }
    }

    #[test]
    fn an_encrypted_server_lets_only_holders_of_its_certificates_in() {
        let server = NatsServer::start_with(NatsOptions {
            tls: Some(Certificates::generate().expect("can be made")),
            verify_clients: true,
            ..NatsOptions::default()
        })
        .expect("starts");
        let client = Client::connect(&server).expect("connects");
        client.publish("x", &[], "x").expect("is published");
        let stranger = Client::connect_with(&server.url(), async_nats::ConnectOptions::new());
        stranger.expect_err("a stranger does not know the authority");
    }

    #[test]
    fn what_is_published_is_collected() {
        let server = NatsServer::start_with(NatsOptions::default()).expect("starts");
        let client = Client::connect(&server).expect("connects");
        let collector = client.collect_answers().expect("subscribes");
        let result = serde_json::json!({"version": "1", "assignment_id": "a"});
        client
            .publish(crate::client::RESULT, &[("version", "1")], result.to_string())
            .expect("is published");
        collector.wait_for_result("a", PATIENCE).expect("arrives");
        assert_eq!(collector.messages()[0].header("version"), Some("1"));
        collector
            .wait_for(crate::client::ACK, 1, Duration::ZERO)
            .expect_err("there was none");
    }
}
