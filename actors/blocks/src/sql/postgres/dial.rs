//! Opens connections for the pool, encrypted as the address says.
//!
//! Neighbours: the pool of [`super`] calls [`Dial`] when it has no idle connection; `address` says whom to trust. The
//! driver writes queries, parameters and notices of the server to the `log` facade under its own name; notices are taken
//! from it here, and nobody may listen to the rest.

use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::Pin;

use deadpool_postgres::Connect;
use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, SslMode, SslNegotiation};
use tokio_postgres::{Client, Config, Error};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::RootCertStore;

use super::address::{Trust, may_fall_back};
use super::bounded::Channel;
use crate::tls;

/// Makes connections.
pub(super) struct Dial {
    channel: Channel,
}

impl Dial {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel }
    }
}

/// How to encrypt. The error is the rule that the file of authorities breaks.
pub(super) fn tls(trust: Trust, ca_file: Option<&Path>) -> Result<MakeRustlsConnect, String> {
    let mut roots = match trust {
        Trust::Name => tls::public_roots(),
        Trust::Authority => RootCertStore::empty(),
    };
    if let Some(file) = ca_file {
        tls::add_file(&mut roots, file)?;
    }
    let config = match trust {
        Trust::Name => tls::client_config(roots),
        Trust::Authority => tls::client_config_for_any_name(roots)?,
    };
    Ok(MakeRustlsConnect::new(config))
}

/// Whether the connection failed in the handshake.
pub(super) fn is_of_tls(error: &Error) -> bool {
    // The driver tells its kinds of errors by their texts only.
    error.to_string() == "error performing TLS handshake"
}

impl Connect for Dial {
    fn connect(
        &self,
        config: &Config,
    ) -> Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), Error>> + Send + '_>> {
        let config = config.clone();
        Box::pin(async move {
            if config.get_ssl_mode() == SslMode::Disable {
                return self.plain(config).await;
            }
            let mut encrypted = config.clone();
            // The driver would go on without encryption by itself, and past the bound.
            encrypted.ssl_mode(SslMode::Require);
            match open(&encrypted, self.channel.that_is(false)).await {
                Err(error) if may_fall_back(&config) && is_of_tls(&error) => self.plain(config).await,
                opened => opened,
            }
        })
    }
}

impl Dial {
    /// Without encryption. The driver is told that there is some, which begins at once: so what it takes for encryption, and
    /// is only our bound, lies around the socket. It cannot be told so for sockets of files, which have no name of a host.
    async fn plain(&self, mut config: Config) -> Result<(Client, JoinHandle<()>), Error> {
        let has_names = config.get_hosts().iter().all(|host| matches!(host, Host::Tcp(_)));
        if has_names && !config.get_hosts().is_empty() {
            config.ssl_mode(SslMode::Require);
            config.ssl_negotiation(SslNegotiation::Direct);
        } else {
            config.ssl_mode(SslMode::Disable);
        }
        open(&config, self.channel.that_is(true)).await
    }
}

async fn open(config: &Config, channel: Channel) -> Result<(Client, JoinHandle<()>), Error> {
    let (client, mut connection) = config.connect(channel.clone()).await?;
    channel.connected();
    // Notices are dropped: they may hold what a job has sent. Queries learn of an end by themselves.
    let talk = async move { while let Some(Ok(_)) = poll_fn(|cx| connection.poll_message(cx)).await {} };
    Ok((client, tokio::spawn(talk)))
}
