//! Circuit breakers (contract 7.4) and retry tokens: what keeps failing is left alone for a while, and what fails is not
//! tried again without measure. Nothing is kept while the feature is off.
//!
//! Neighbours: block workers ask before each call and before each retry, and say how calls ended; the health view shows what
//! is so. In reading order: [`machine`] is one breaker, [`tokens`] are those of one endpoint, [`book`] keeps all, bounded: all
//! three are pure. Never calls an endpoint itself, never waits, and asks no clock but for the time.

pub mod book;
pub mod machine;
pub mod tokens;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use caf_protocol::assignment::Identity;
use caf_protocol::block::Task;
use caf_protocol::endpoint::{Endpoint, EndpointKind, Sign};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use tokio::time::Instant;

use self::book::{Book, Counts, Seen, Withheld};
use self::machine::{Refusal, Ticket, Verdict};
use crate::clock::whole_ms;
use crate::events::Log;
use crate::events::breakers as events;
use crate::settings::circuit_breaker::CircuitBreakerSettings;

/// Message of a result whose call was not made (contract 7.4).
pub const TOKEN: &str = "circuit_breaker_open";
/// The detail that says what the breaker was, and those beside it.
pub const STATE_DETAIL: &str = "circuit_breaker";
/// The detail that says for want of what a job was not tried again.
pub const BUDGET_DETAIL: &str = "retry_budget";

/// All breakers of the node. Cheap to clone; without any, everything is let through and nothing is kept.
#[derive(Clone, Default)]
pub struct Breakers(Option<Arc<Shared>>);

struct Shared {
    book: Mutex<Book>,
    settings: CircuitBreakerSettings,
    log: Log,
}

/// The right to one call. Says how it ended, or returns unsaid when dropped.
pub struct Pass {
    shared: Arc<Shared>,
    tenant_id: String,
    endpoint: Endpoint,
    /// Taken when it has been said how the call ended.
    ticket: Option<Ticket>,
    took_token: bool,
    began: Instant,
}

/// What is so at the moment.
#[derive(Debug, Clone)]
pub struct BreakersView {
    /// Most breakers that are kept.
    pub max: usize,
    /// How many there are, by kind and phase.
    pub counts: Counts,
    /// Some of them, open ones first.
    pub first: Vec<Seen>,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Breakers {
    /// By these settings; changes of state are told to `log`.
    pub fn new(settings: &CircuitBreakerSettings, log: Log) -> Self {
        Self(Some(Arc::new(Shared {
            book: Mutex::new(Book::new(settings)),
            settings: settings.clone(),
            log,
        })))
    }

    /// A job wants to call; `took_token`: it is a retry that has one. Nothing where nothing has to be asked.
    ///
    /// # Errors
    /// The endpoint is left alone: the failure that the job ends with.
    pub fn admit(
        &self,
        identity: &Arc<Identity>,
        task: &dyn Task,
        took_token: bool,
    ) -> Result<Option<Pass>, Failure> {
        let Some((shared, endpoint)) = self.asked(task) else {
            return Ok(None);
        };
        let (tenant_id, began) = (&identity.tenant_id, Instant::now());
        let mut book = shared.book();
        let admission = book.admit(tenant_id, &endpoint, !took_token, began);
        // Under the lock, so that lines come in the order of the changes.
        if let Some(forgotten) = &admission.forgotten {
            shared.log.emit(events::forgotten(forgotten));
        }
        if let Some(change) = admission.change {
            shared
                .log
                .emit(events::changed(tenant_id, &endpoint, change, &shared.settings));
        }
        drop(book);
        match admission.verdict {
            Ok(ticket) => Ok(Some(Pass {
                shared: Arc::clone(shared),
                tenant_id: tenant_id.clone(),
                endpoint,
                ticket: Some(ticket),
                took_token,
                began,
            })),
            Err(refusal) => {
                shared.log.emit(events::refused(identity, &endpoint, refusal));
                Err(left_alone(endpoint.kind(), refusal))
            }
        }
    }

    /// A job whose call failed with `failure` may be called again after this wait, as far as its plan goes. True when it has
    /// taken a token for that; false where none is needed.
    ///
    /// # Errors
    /// It must not be: the failure that the job ends with. When the breaker is open, that of a call that is not made; without
    /// a token its own.
    pub fn retry(
        &self,
        identity: &Arc<Identity>,
        task: &dyn Task,
        failure: &Failure,
        wait: Duration,
    ) -> Result<bool, Failure> {
        let Some((shared, endpoint)) = self.asked(task) else {
            return Ok(false);
        };
        let asked = shared
            .book()
            .retry(&identity.tenant_id, &endpoint, wait, Instant::now());
        let Err(withheld) = asked else {
            return Ok(true);
        };
        shared
            .log
            .emit(events::retry_withheld(identity, &endpoint, withheld));
        Err(match withheld {
            Withheld::Breaker(refusal) => left_alone(endpoint.kind(), refusal),
            Withheld::NoToken => failure.clone().with(BUDGET_DETAIL, "endpoint".into()),
        })
    }

    /// What is so at the moment, with at most `max` single breakers; nothing while the feature is off.
    pub fn look(&self, max: usize) -> Option<BreakersView> {
        let shared = self.0.as_ref()?;
        let now = Instant::now();
        let book = shared.book();
        Some(BreakersView {
            max: shared.settings.max_breakers,
            counts: book.counts(now),
            first: book.look(max, now),
        })
    }

    fn asked(&self, task: &dyn Task) -> Option<(&Arc<Shared>, Endpoint)> {
        Some((self.0.as_ref()?, task.endpoint()?))
    }
}

impl fmt::Debug for Breakers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.as_ref().map(|shared| shared.book().count());
        f.debug_tuple("Breakers").field(&count).finish()
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy)]
pub enum CallEnd<'a> {
    /// With outputs.
    Success,
    /// With a failure.
    Failed(&'a Failure),
    /// A limit on the whole job cut it off.
    CutOff,
}

impl CallEnd<'_> {
    /// What it says of the endpoint, `ran` after it began. What a job's own limits cut off sooner than `slow` says nothing:
    /// they may be absurd.
    fn verdict(self, ran: Duration, slow: Duration) -> Verdict {
        let cut_off = if ran >= slow {
            Verdict::Failure
        } else {
            Verdict::Neutral
        };
        match self {
            Self::Success => Verdict::Success,
            Self::CutOff => cut_off,
            Self::Failed(failure) => match failure.sign() {
                Sign::Down => Verdict::Failure,
                Sign::Up => Verdict::Answered,
                Sign::Nothing if failure.total_limit => cut_off,
                Sign::Nothing | Sign::LeftAlone | Sign::Refused | Sign::Unknown => Verdict::Neutral,
            },
        }
    }
}

impl Pass {
    /// The call ended.
    pub fn end(mut self, end: CallEnd<'_>) {
        let slow = Duration::from_millis(self.shared.settings.slow_call_ms);
        let verdict = end.verdict(self.began.elapsed(), slow);
        self.settle(verdict);
    }

    fn settle(&mut self, verdict: Verdict) {
        let Some(ticket) = self.ticket.take() else { return };
        let (tenant_id, endpoint) = (&self.tenant_id, &self.endpoint);
        let mut book = self.shared.book();
        let call = (&ticket, self.took_token);
        let change = book.settle(tenant_id, endpoint, call, verdict, Instant::now());
        if let Some(change) = change {
            let event = events::changed(tenant_id, endpoint, change, &self.shared.settings);
            self.shared.log.emit(event);
        }
    }
}

impl Drop for Pass {
    /// Cancelled, handed back, or lost with its job: a trial that has said nothing makes room for another.
    fn drop(&mut self) {
        self.settle(Verdict::Neutral);
    }
}

/// The failure of a call that is not made. Its text is a token; the details tell.
fn left_alone(kind: EndpointKind, refusal: Refusal) -> Failure {
    let code = match kind {
        EndpointKind::Http => ErrorCode::HttpError,
        EndpointKind::Sql | EndpointKind::Fs => ErrorCode::ResourceUnavailable,
    };
    // Rounded up: who comes back after it is not refused for the rest of a millisecond.
    let retry_after_ms = whole_ms(refusal.retry_after).saturating_add(1);
    Failure::new(code, TOKEN)
        .saying(Sign::LeftAlone)
        .with(STATE_DETAIL, refusal.phase.as_str().into())
        .with("retry_after_ms", retry_after_ms.into())
}

#[cfg(test)]
mod tests;
