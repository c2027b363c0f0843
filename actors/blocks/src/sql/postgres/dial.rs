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
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, Error};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::RootCertStore;

use super::address::{Trust, may_fall_back};
use crate::tls;

/// Makes connections.
pub(super) struct Dial {
    tls: MakeRustlsConnect,
}

impl Dial {
    pub(super) fn new(tls: MakeRustlsConnect) -> Self {
        Self { tls }
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
        let mut config = config.clone();
        Box::pin(async move {
            match open(&config, self.tls.clone()).await {
                Err(error) if may_fall_back(&config) && is_of_tls(&error) => {
                    config.ssl_mode(SslMode::Disable);
                    open(&config, self.tls.clone()).await
                }
                opened => opened,
            }
        })
    }
}

async fn open(config: &Config, tls: MakeRustlsConnect) -> Result<(Client, JoinHandle<()>), Error> {
    let (client, mut connection) = config.connect(tls).await?;
    // Notices are dropped: they may hold what a job has sent. Queries learn of an end by themselves.
    let talk = async move { while let Some(Ok(_)) = poll_fn(|cx| connection.poll_message(cx)).await {} };
    Ok((client, tokio::spawn(talk)))
}
