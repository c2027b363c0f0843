//! Speaks as the router does: sends assignments and listens to what comes back. For `caf-worker submit`.
//!
//! Neighbours: the command uses it; the worker's own stations never do.

use bytes::Bytes;
use futures_util::stream::{self, PollNext};
use futures_util::{Stream, StreamExt};

use super::connection::{ConnectError, Connection, connect};
use super::headers_of;
use crate::events::Log;
use crate::settings::NatsSettings;
use crate::sink::Outgoing;

/// A connection that plays the router.
pub struct RouterSide {
    connection: Connection,
    settings: NatsSettings,
}

/// Why it does not work.
#[derive(Debug, thiserror::Error)]
pub enum RouterSideError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke.
    #[error("nats: {0}")]
    Broken(String),
}

impl RouterSide {
    /// Connects.
    ///
    /// # Errors
    /// When the server cannot be reached within `nats.connect_deadline_ms`.
    pub async fn connect(settings: &NatsSettings, log: &Log) -> Result<Self, RouterSideError> {
        let connection = connect(settings, "submit", log, |_| {}).await?;
        Ok(Self {
            connection,
            settings: settings.clone(),
        })
    }

    /// Every acknowledgement and result from now on.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn answers(&self) -> Result<impl Stream<Item = Outgoing> + Unpin + use<>, RouterSideError> {
        let subjects = &self.settings.subjects;
        let client = &self.connection.client;
        let broken = |error: async_nats::client::SubscribeError| RouterSideError::Broken(error.to_string());
        let acks = client.subscribe(subjects.ack.clone()).await.map_err(broken)?;
        let results = client.subscribe(subjects.result.clone()).await.map_err(broken)?;
        // Nothing may be sent before the server knows what we listen to.
        client
            .flush()
            .await
            .map_err(|error| RouterSideError::Broken(error.to_string()))?;
        // An acknowledgement is sent before its result; it must not be overtaken here, or the last one is missed.
        let in_order = stream::select_with_strategy(acks, results, |(): &mut ()| PollNext::Left);
        Ok(in_order.map(|message| Outgoing {
            subject: message.subject.to_string(),
            headers: headers_of(message.headers.as_ref()),
            payload: message.payload,
        }))
    }

    /// Sends one assignment, as the router does: without headers.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn submit(&self, payload: Bytes) -> Result<(), RouterSideError> {
        let client = &self.connection.client;
        let subject = self.settings.subjects.assign.clone();
        client
            .publish(subject, payload)
            .await
            .map_err(|error| RouterSideError::Broken(error.to_string()))
    }

    /// Waits until the server has everything that was sent.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn flush(&self) -> Result<(), RouterSideError> {
        self.connection
            .client
            .flush()
            .await
            .map_err(|error| RouterSideError::Broken(error.to_string()))
    }
}
