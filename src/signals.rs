//! The signals that ask the node to leave, SIGTERM and SIGINT, and the one that asks it to read its settings again, SIGHUP.
//!
//! Neighbours: `serve` and `exec` wait for them, `shutdown` for the second and third. Whoever embeds the node brings a
//! channel of its own instead.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Hang-ups. From here on none ends the process.
///
/// # Errors
/// When the system refuses the handler.
pub fn hangups() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Requests to leave, by name, in the order in which they come.
pub struct Signals {
    requests: mpsc::Receiver<&'static str>,
    last: &'static str,
}

impl Signals {
    /// Listens for both signals. From here on neither ends the process by itself.
    ///
    /// # Errors
    /// When the system refuses the handlers.
    pub fn listen() -> std::io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (request, requests) = mpsc::channel(4);
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                if request.send(name).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self::from(requests))
    }

    /// Waits for the next one; for ever when none can come any more.
    pub async fn next(&mut self) {
        match self.requests.recv().await {
            Some(name) => self.last = name,
            None => std::future::pending().await,
        }
    }

    /// Name of the last one that came.
    pub fn last(&self) -> &'static str {
        self.last
    }
}

impl From<mpsc::Receiver<&'static str>> for Signals {
    fn from(requests: mpsc::Receiver<&'static str>) -> Self {
        Self {
            requests,
            last: "none",
        }
    }
}
