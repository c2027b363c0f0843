//! Whether consumption has stalled, and what to do about it. Pure: what was seen comes in, with its time.
//!
//! Neighbours: the watchdog looks and carries out. A stall is what nobody would call normal: the broker has messages for
//! us and is reachable, we have room and have asked for them the whole time, and nothing comes. Everything else only
//! waits, however long it lasts.

use std::time::Duration;

use crate::consumption::Phase;

/// How many times the allowed time JetStream may leave questions unanswered before the connection is made anew.
const SILENT_PERIODS: u32 = 3;
/// The same after vain attempts: each doubles it up to here. A broker without a leader gains nothing by them, and a
/// large message on a slow line, which holds the answer up, must have the time to arrive.
const MOST_SILENT_PERIODS: u32 = 24;

/// What the broker says of the consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerView {
    /// It was not asked: the consumer is not known yet.
    NotAsked,
    /// No answer came.
    Silent,
    /// Somebody answered, but not for this consumer: no JetStream, no rights, being set up.
    Refused,
    /// There is no such stream or consumer.
    Missing,
    /// Its state.
    Consumer(ConsumerView),
}

/// State of the consumer, as the broker tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConsumerView {
    /// Messages that were not delivered to anybody yet.
    pub(super) pending: u64,
    /// Messages delivered and not answered.
    pub(super) ack_pending: u64,
    /// Most of them; 0 or less: no limit.
    pub(super) max_ack_pending: i64,
    /// Deliveries so far, to all workers.
    pub(super) delivered: u64,
    /// Requests that the server knows, of all workers. For the log: it changes too fast to decide by.
    pub(super) waiting: u64,
    /// Whether an operator holds it.
    pub(super) paused: bool,
}

/// What was seen at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Observation {
    /// When, on a clock that only goes forward.
    pub(super) now: Duration,
    /// Whether the broker is reachable.
    pub(super) connected: bool,
    /// How often it became reachable.
    pub(super) generation: u64,
    /// Whether the node shuts down.
    pub(super) draining: bool,
    /// What the source does.
    pub(super) phase: Phase,
    /// Assignments that arrived so far.
    pub(super) arrived: u64,
    /// How often the broker said anything about a request so far, its signs of life included.
    pub(super) heard: u64,
    /// What the broker says.
    pub(super) server: ServerView,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Action {
    /// All is well, or there is nothing to do but wait.
    Nothing,
    /// Ask on a new subscription.
    RebuildPull,
    /// See to stream and consumer as at the start.
    RebuildConsumer,
    /// Make the connection anew.
    Reconnect,
    /// Leave: a new process may do what this one cannot.
    Leave,
}

impl Action {
    fn after(self) -> Self {
        match self {
            Self::Nothing => Self::RebuildPull,
            Self::RebuildPull => Self::RebuildConsumer,
            Self::RebuildConsumer => Self::Reconnect,
            Self::Reconnect | Self::Leave => Self::Leave,
        }
    }
}

/// Since when something has lasted, and what was known as it began.
#[derive(Debug, Clone, Copy)]
struct Since {
    at: Duration,
    delivered: u64,
    heard: u64,
}

/// Remembers what it needs to tell a stall from a pause.
#[derive(Debug)]
pub(super) struct Judge {
    /// How long nothing may arrive.
    limit: Duration,
    /// The last thing done about this stall.
    stage: Action,
    stalled: Option<Since>,
    silent: Option<Duration>,
    /// How many times the allowed time it may last.
    silent_periods: u32,
    missing: Option<Duration>,
    /// Since when it is not reachable.
    away: Option<Duration>,
    arrived: u64,
    generation: u64,
    /// The next new connection is our own doing: it does not end the stall.
    reconnecting: bool,
}

impl Judge {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            stage: Action::Nothing,
            stalled: None,
            silent: None,
            silent_periods: SILENT_PERIODS,
            missing: None,
            away: None,
            arrived: 0,
            generation: 0,
            reconnecting: false,
        }
    }

    /// The verdict on what was seen. The caller carries it out at once.
    pub(super) fn decide(&mut self, seen: &Observation) -> Action {
        if seen.generation != self.generation {
            self.generation = seen.generation;
            self.wait_anew();
            if !std::mem::take(&mut self.reconnecting) {
                self.stage = Action::Nothing;
            }
        }
        if seen.server != ServerView::Silent && seen.connected {
            self.silent_periods = SILENT_PERIODS;
        }
        if seen.arrived != self.arrived {
            self.arrived = seen.arrived;
            self.silent_periods = SILENT_PERIODS;
            return self.all_is_well();
        }
        if seen.draining {
            return self.all_is_well();
        }
        if !seen.connected {
            return self.unreachable(seen.now);
        }
        self.away = None;
        match seen.server {
            ServerView::NotAsked | ServerView::Refused => self.all_is_well(),
            ServerView::Silent => self.unanswered(seen.now),
            ServerView::Missing => self.consumer_missing(seen),
            ServerView::Consumer(consumer) => {
                (self.silent, self.missing) = (None, None);
                self.compare(seen, &consumer)
            }
        }
    }

    fn all_is_well(&mut self) -> Action {
        self.wait_anew();
        self.stage = Action::Nothing;
        Action::Nothing
    }

    /// Whatever was measured is measured from the beginning.
    fn wait_anew(&mut self) {
        (self.stalled, self.silent, self.missing) = (None, None, None);
    }

    /// A new connection takes a moment. A broker that is away longer is another matter: it starts afresh.
    fn unreachable(&mut self, now: Duration) -> Action {
        self.wait_anew();
        let since = *self.away.get_or_insert(now);
        if now.saturating_sub(since) >= self.limit {
            self.stage = Action::Nothing;
            self.reconnecting = false;
        }
        Action::Nothing
    }

    /// A broker that is busy, or a connection that only seems to be one. Never a reason to leave.
    fn unanswered(&mut self, now: Duration) -> Action {
        (self.stalled, self.missing) = (None, None);
        let since = *self.silent.get_or_insert(now);
        if now.saturating_sub(since) < self.limit * self.silent_periods {
            return Action::Nothing;
        }
        self.silent = None;
        self.silent_periods = (self.silent_periods * 2).min(MOST_SILENT_PERIODS);
        self.reconnecting = true;
        Action::Reconnect
    }

    /// The source believes that it asks a consumer which does not exist. Never a reason to leave: it may be the
    /// operator's to make.
    fn consumer_missing(&mut self, seen: &Observation) -> Action {
        (self.stalled, self.silent) = (None, None);
        if seen.phase != Phase::Pulling {
            self.missing = None;
            return Action::Nothing;
        }
        let since = *self.missing.get_or_insert(seen.now);
        if seen.now.saturating_sub(since) < self.limit {
            return Action::Nothing;
        }
        self.missing = None;
        Action::RebuildConsumer
    }

    fn compare(&mut self, seen: &Observation, consumer: &ConsumerView) -> Action {
        let most = u64::try_from(consumer.max_ack_pending)
            .ok()
            .filter(|most| *most > 0);
        let full = most.is_some_and(|most| consumer.ack_pending >= most);
        match seen.phase {
            // What was ordered is being done; time counts again when it is.
            Phase::Preparing => {
                self.stalled = None;
                return Action::Nothing;
            }
            Phase::NoRoom | Phase::TooLarge => return self.all_is_well(),
            Phase::Pulling if full || consumer.paused || consumer.pending == 0 => return self.all_is_well(),
            Phase::Pulling => {}
        }
        let since = *self.stalled.get_or_insert(Since {
            at: seen.now,
            delivered: consumer.delivered,
            heard: seen.heard,
        });
        // The broker knows our request and others are served: our turn comes.
        if since.delivered != consumer.delivered && since.heard != seen.heard {
            return self.all_is_well();
        }
        if seen.now.saturating_sub(since.at) < self.limit {
            return Action::Nothing;
        }
        self.stalled = None;
        self.stage = self.stage.after();
        self.reconnecting = self.stage == Action::Reconnect;
        self.stage
    }
}

#[cfg(test)]
mod tests;
