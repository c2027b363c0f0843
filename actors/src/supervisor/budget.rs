//! How many restarts are left in the window. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

pub(super) struct RestartBudget {
    max: usize,
    window: Duration,
    restarts: VecDeque<Instant>,
}

impl RestartBudget {
    pub(super) fn new(max: usize, window: Duration) -> Self {
        Self {
            max,
            window,
            restarts: VecDeque::new(),
        }
    }

    /// Counts a restart; false when it is one more than the window allows.
    pub(super) fn spend(&mut self, now: Instant) -> bool {
        while self
            .restarts
            .front()
            .is_some_and(|at| now.duration_since(*at) > self.window)
        {
            self.restarts.pop_front();
        }
        self.restarts.push_back(now);
        self.restarts.len() <= self.max
    }

    /// Restarts within the window at the last count.
    pub(super) fn spent(&self) -> usize {
        self.restarts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_spent_by_one_restart_too_many_and_recovers_with_time() {
        let mut budget = RestartBudget::new(2, Duration::from_secs(60));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(
            [0, 10, 20, 71].map(|s| budget.spend(at(s))),
            [true, true, false, true]
        );
    }
}
