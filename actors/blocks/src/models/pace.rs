//! How many calls of one provider run at once, and how many begin within a minute.
//!
//! Neighbours: `call` takes a turn before each call and holds it until that is over; `provider` keeps one [`Pace`] for
//! each entry of the settings, over reloads. Exact: within any 60 s no more calls begin than are allowed. What
//! waits is a job that has a slot, and never waits beyond its deadline.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use caf_protocol::block::BlockContext;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::settings::ProviderSettings;

/// What limits on minutes are counted over.
const WINDOW: Duration = Duration::from_secs(60);

/// Calls of one provider.
#[derive(Debug, Default)]
pub(super) struct Pace {
    counts: Mutex<Counts>,
    /// Told when a call has ended, or more are allowed.
    changed: Notify,
}

/// What is allowed; nothing where there is no limit.
#[derive(Debug, Clone, Copy, Default)]
struct Allowed {
    running: Option<u32>,
    requests: Option<u64>,
    tokens: Option<u64>,
}

#[derive(Debug, Default)]
struct Counts {
    allowed: Allowed,
    running: u32,
    /// When calls began, while there is a limit on them: at most as many as that.
    begun: VecDeque<Instant>,
    /// When calls ended and how many tokens they used, while there is a limit on those.
    used: VecDeque<(Instant, u64)>,
}

/// What a newcomer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It may begin, and is counted.
    Go,
    /// Not before one that runs has ended.
    WhenOneEnds,
    /// Not before this.
    At(Instant),
}

impl Counts {
    fn ask(&mut self, now: Instant) -> Verdict {
        if self.allowed.running.is_some_and(|most| self.running >= most) {
            return Verdict::WhenOneEnds;
        }
        if let Some(at) = self.next_request(now).max(self.next_tokens(now)) {
            return Verdict::At(at);
        }
        self.running += 1;
        if self.allowed.requests.is_some() {
            self.begun.push_back(now);
        }
        Verdict::Go
    }

    fn next_request(&mut self, now: Instant) -> Option<Instant> {
        let most = usize::try_from(self.allowed.requests?).unwrap_or(usize::MAX);
        while self.begun.front().is_some_and(|began| *began + WINDOW <= now) {
            self.begun.pop_front();
        }
        // The one after whose leaving there is room.
        let last = self.begun.len().checked_sub(most)?;
        self.begun.get(last).map(|began| *began + WINDOW)
    }

    fn next_tokens(&mut self, now: Instant) -> Option<Instant> {
        let most = self.allowed.tokens?;
        while self.used.front().is_some_and(|(ended, _)| *ended + WINDOW <= now) {
            self.used.pop_front();
        }
        let mut left = self
            .used
            .iter()
            .map(|(_, tokens)| *tokens)
            .fold(0, u64::saturating_add);
        let mut at = None;
        for (ended, tokens) in &self.used {
            if left < most {
                break;
            }
            left -= tokens;
            at = Some(*ended + WINDOW);
        }
        at
    }

    fn end(&mut self, tokens: u64, now: Instant) {
        self.running = self.running.saturating_sub(1);
        if self.allowed.tokens.is_some() && tokens > 0 {
            match self.used.back_mut() {
                // Bounded by a minute's seconds, not by its calls; a little later than it was.
                Some((ended, sum)) if now.saturating_duration_since(*ended) < Duration::from_secs(1) => {
                    *sum = sum.saturating_add(tokens);
                }
                _ => self.used.push_back((now, tokens)),
            }
        }
    }
}

impl Pace {
    /// Goes by these settings from now on. What runs, runs on.
    pub(super) fn allow(&self, settings: &ProviderSettings) {
        let mut counts = self.counts();
        counts.allowed = Allowed {
            running: settings.max_concurrency,
            requests: settings.requests_per_minute,
            tokens: settings.tokens_per_minute,
        };
        if counts.allowed.requests.is_none() {
            counts.begun.clear();
        }
        if counts.allowed.tokens.is_none() {
            counts.used.clear();
        }
        drop(counts);
        self.changed.notify_waiters();
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a call may begin, and counts it until the turn is dropped.
    ///
    /// # Errors
    /// SYSTEM_OVERLOAD, at once, when the deadline comes before there is room within the minute.
    pub(super) async fn turn(self: &Arc<Self>, context: &BlockContext) -> Result<Turn, Failure> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Who is told between the look and the wait is told.
            changed.as_mut().enable();
            let now = Instant::now();
            let verdict = self.counts().ask(now);
            match verdict {
                Verdict::Go => {
                    return Ok(Turn {
                        pace: Arc::clone(self),
                        tokens: 0,
                    });
                }
                Verdict::WhenOneEnds => changed.await,
                Verdict::At(at) if at >= context.deadline => return Err(no_room(at - now)),
                Verdict::At(at) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
            }
        }
    }
}

fn no_room(wait: Duration) -> Failure {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let text = "the calls or tokens that this worker may use of the provider in a minute are used up";
    Failure::new(ErrorCode::SystemOverload, text).with("retry_after_ms", json!(wait_ms.saturating_add(1)))
}

/// One call; ends when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    pace: Arc<Pace>,
    /// Tokens that it used.
    pub(super) tokens: u64,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.pace.counts().end(self.tokens, Instant::now());
        self.pace.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(running: Option<u32>, requests: Option<u64>, tokens: Option<u64>) -> Counts {
        Counts {
            allowed: Allowed {
                running,
                requests,
                tokens,
            },
            ..Counts::default()
        }
    }

    #[test]
    fn no_more_run_at_once_than_may() {
        let now = Instant::now();
        let mut counts = counts(Some(2), None, None);
        assert_eq!(
            [(); 3].map(|()| counts.ask(now)),
            [Verdict::Go, Verdict::Go, Verdict::WhenOneEnds]
        );
        counts.end(7, now);
        assert_eq!(counts.ask(now), Verdict::Go);
    }

    #[test]
    fn tokens_that_are_used_up_come_back_after_a_minute() {
        let now = Instant::now();
        let at = |s: u64| now + Duration::from_secs(s);
        let mut counts = counts(None, None, Some(100));
        for (second, tokens) in [(0, 60), (10, 30), (20, 20)] {
            assert_eq!(counts.ask(at(second)), Verdict::Go);
            counts.end(tokens, at(second));
        }
        assert_eq!(counts.ask(at(21)), Verdict::At(at(60)));
        assert_eq!(counts.ask(at(60)), Verdict::Go);
    }

    proptest! {
        #[test]
        fn within_any_minute_no_more_begin_than_may(
            most in 1_u64..5,
            steps in prop::collection::vec(0_u64..40_000, 1..60),
        ) {
            let start = Instant::now();
            let mut counts = counts(None, Some(most), None);
            let (mut now, mut begun) = (start, Vec::new());
            for step in steps {
                now += Duration::from_millis(step);
                match counts.ask(now) {
                    Verdict::Go => begun.push(now),
                    Verdict::At(at) => {
                        prop_assert!(at > now && at <= now + WINDOW);
                        // Whoever waits as told may go.
                        now = at;
                        prop_assert_eq!(counts.ask(now), Verdict::Go);
                        begun.push(now);
                    }
                    Verdict::WhenOneEnds => prop_assert!(false, "there is no such limit"),
                }
                for window in begun.windows(usize::try_from(most).expect("is small") + 1) {
                    prop_assert!(window[window.len() - 1] - window[0] >= WINDOW);
                }
            }
        }
    }
}
