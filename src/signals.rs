//! The signals that ask the node to leave: SIGTERM and SIGINT.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens for both.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    last: &'static str,
}

impl Signals {
    /// Begins to listen. From here on neither signal ends the process by itself.
    ///
    /// # Errors
    /// When the system refuses the handlers.
    pub fn listen() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self {
            terminate,
            interrupt: signal(SignalKind::interrupt())?,
            last: "none",
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        self.last = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
    }

    /// Name of the last one that came.
    pub fn last(&self) -> &'static str {
        self.last
    }
}
