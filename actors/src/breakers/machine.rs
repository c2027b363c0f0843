//! One circuit breaker: closed, open, half-open. Pure: the time comes in.
//!
//! Neighbours: [`super::book`] keeps one for each endpoint of a tenant. A call is let through with a [`Ticket`] and ends
//! with a [`Verdict`], or with none when it was given up. What was called before the state changed says nothing any more:
//! tickets are good for the state in which they were given.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

/// When a breaker opens and closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Failures in a row that open it; at least 1.
    pub failures: u32,
    /// How long it stays open.
    pub recovery: Duration,
    /// Successes that close it when it is half-open; at least 1.
    pub successes: u32,
    /// Most calls at once while it is half-open; at least 1.
    pub trials: u32,
}

/// What a breaker lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Every call.
    Closed,
    /// No call.
    Open,
    /// A few calls, which find out.
    HalfOpen,
}

impl Phase {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// Its name in results, labels and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It succeeded.
    Success,
    /// The endpoint failed.
    Failure,
    /// The endpoint answered that the job is at fault. That it answers is what a trial is for; otherwise it says nothing: many
    /// wrong jobs between failures do not make the endpoint well.
    Answered,
    /// It says nothing of the endpoint.
    Neutral,
}

/// The right to one call.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket {
    epoch: u64,
}

/// A change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// What it was.
    pub from: Phase,
    /// What it is.
    pub to: Phase,
}

/// No call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// [`Phase::Open`] or [`Phase::HalfOpen`].
    pub phase: Phase,
    /// When the next call may be let through at the latest, from now.
    pub retry_after: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed {
        /// In a row.
        failures: u32,
    },
    Open {
        until: Instant,
    },
    HalfOpen {
        /// Trials that run.
        running: u32,
        /// Trials that may run at once.
        limit: u32,
        /// When there are more although these have said nothing.
        more_at: Instant,
        successes: u32,
    },
}

/// The breaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    state: State,
    /// Differs for each state that it, or any other, was ever in.
    epoch: u64,
}

/// Numbers states. Shared by all breakers, so that a ticket is never good for a breaker that took the place of its own.
#[derive(Debug, Default)]
pub struct Epochs(u64);

impl Epochs {
    fn next(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
}

impl Machine {
    /// A closed one.
    pub fn new(epochs: &mut Epochs) -> Self {
        Self {
            state: State::Closed { failures: 0 },
            epoch: epochs.next(),
        }
    }

    /// What it lets through at this time. One whose time is over is half-open, whether anybody has called or not.
    pub fn phase(&self, now: Instant) -> Phase {
        match self.state {
            State::Closed { .. } => Phase::Closed,
            State::Open { until } if now < until => Phase::Open,
            State::Open { .. } | State::HalfOpen { .. } => Phase::HalfOpen,
        }
    }

    /// What it was when it was last asked or told: one whose time is over is open until somebody calls.
    pub fn recorded(&self) -> Phase {
        match self.state {
            State::Closed { .. } => Phase::Closed,
            State::Open { .. } => Phase::Open,
            State::HalfOpen { .. } => Phase::HalfOpen,
        }
    }

    /// Failures in a row while it is closed.
    pub fn failures(&self) -> u32 {
        match self.state {
            State::Closed { failures } => failures,
            State::Open { .. } | State::HalfOpen { .. } => 0,
        }
    }

    /// Why no call is let through at this time, if none is.
    pub fn refusal(&self, now: Instant) -> Option<Refusal> {
        let (phase, until) = match self.state {
            State::Open { until } => (Phase::Open, until),
            State::HalfOpen {
                running,
                limit,
                more_at,
                ..
            } if running >= limit => (Phase::HalfOpen, more_at),
            State::Closed { .. } | State::HalfOpen { .. } => return None,
        };
        (now < until).then(|| Refusal {
            phase,
            retry_after: until - now,
        })
    }

    /// Somebody wants to call.
    ///
    /// # Errors
    /// Nobody may.
    pub fn admit(
        &mut self,
        thresholds: &Thresholds,
        now: Instant,
        epochs: &mut Epochs,
    ) -> Result<(Ticket, Option<Change>), Refusal> {
        if let Some(refusal) = self.refusal(now) {
            return Err(refusal);
        }
        let mut change = None;
        if let State::Open { .. } = self.state {
            let half_open = State::HalfOpen {
                running: 0,
                limit: thresholds.trials,
                more_at: now + thresholds.recovery,
                successes: 0,
            };
            change = Some(self.turn_to(half_open, epochs));
        }
        if let State::HalfOpen {
            running,
            limit,
            more_at,
            ..
        } = &mut self.state
        {
            if *running >= *limit {
                // Those that run have said nothing for a whole recovery time: calls that hang must not keep it half-open
                // for as long as their deadlines allow.
                *limit = running.saturating_add(thresholds.trials);
                *more_at = now + thresholds.recovery;
            }
            *running += 1;
        }
        Ok((Ticket { epoch: self.epoch }, change))
    }

    /// A call has ended.
    pub fn settle(
        &mut self,
        ticket: &Ticket,
        verdict: Verdict,
        thresholds: &Thresholds,
        now: Instant,
        epochs: &mut Epochs,
    ) -> Option<Change> {
        if ticket.epoch != self.epoch {
            return None;
        }
        let open = State::Open {
            until: now + thresholds.recovery,
        };
        match &mut self.state {
            State::Closed { failures } => match verdict {
                Verdict::Success => *failures = 0,
                Verdict::Failure => {
                    *failures = failures.saturating_add(1);
                    if *failures >= thresholds.failures {
                        return Some(self.turn_to(open, epochs));
                    }
                }
                Verdict::Answered | Verdict::Neutral => {}
            },
            State::HalfOpen {
                running, successes, ..
            } => {
                *running = running.saturating_sub(1);
                match verdict {
                    Verdict::Success | Verdict::Answered => {
                        *successes = successes.saturating_add(1);
                        if *successes >= thresholds.successes {
                            return Some(self.turn_to(State::Closed { failures: 0 }, epochs));
                        }
                    }
                    Verdict::Failure => return Some(self.turn_to(open, epochs)),
                    Verdict::Neutral => {}
                }
            }
            // No ticket is given while it is open.
            State::Open { .. } => {}
        }
        None
    }

    fn turn_to(&mut self, state: State, epochs: &mut Epochs) -> Change {
        let from = self.recorded();
        self.state = state;
        self.epoch = epochs.next();
        Change {
            from,
            to: self.recorded(),
        }
    }
}

#[cfg(test)]
mod tests;
