//! `POST /v1/cancel`: cancels jobs for an operator, here and at all workers of the broker.
//!
//! Neighbours: the admin port reads the request's bytes; [`caf_actors::cancellation`] carries it out, the listener on the
//! broker passes it on. The form is that of requests on the broker.

use caf_actors::cancellation::Asker;
use caf_actors::events;
use caf_protocol::cancel::{CancelAnswer, CancelRequest};
use tokio::time::Instant;

use super::Admin;

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotCancelled {
    /// The feature is off.
    Off,
    /// It is no request: field and rule.
    Bad(String),
}

impl Admin {
    /// Carries a request out, and passes it on: nobody knows which worker holds a job, or will.
    ///
    /// # Errors
    /// [`NotCancelled`].
    pub async fn cancel(&self, body: &[u8]) -> Result<CancelAnswer, NotCancelled> {
        let parts = &self.0;
        if !parts.cancellations.is_on() {
            return Err(NotCancelled::Off);
        }
        let log = parts.cancellations.log();
        let request = CancelRequest::read(body).map_err(|failure| {
            // Who asks is told why, and the log by the line about the call, which is limited for each peer.
            if let Some(log) = log {
                log.measure(|| events::cancellation::refused_again(Asker::Admin));
            }
            NotCancelled::Bad(failure.message)
        })?;
        let claims = parts.health.claims();
        let done = parts
            .cancellations
            .ask(&request, Asker::Admin, claims, Instant::now());
        let mut answer = done.ok_or(NotCancelled::Off)?;
        let passed_on = parts.pass_on.pass_on(request.clone()).await;
        if !passed_on && let Some(log) = log {
            let error = "the broker did not take the request in time: other workers may not have heard it";
            log.emit(events::cancellation::failed(&request, error));
        }
        answer.passed_on = Some(passed_on);
        Ok(answer)
    }
}
