//! How many restarts are left in the window. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Restarts within the window, and how many it allows.
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
        self.forget_old(now);
        self.restarts.push_back(now);
        self.restarts.len() <= self.max
    }

    /// Share of the budget that is used up: 1 when the next restart ends the node.
    pub(super) fn used(&mut self, now: Instant) -> f64 {
        self.forget_old(now);
        let float = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        if self.max == 0 {
            return 1.0;
        }
        float(self.restarts.len()) / float(self.max)
    }

    fn forget_old(&mut self, now: Instant) {
        while self
            .restarts
            .front()
            .is_some_and(|at| now.duration_since(*at) > self.window)
        {
            self.restarts.pop_front();
        }
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

    #[test]
    fn what_is_used_of_it_returns_with_time() {
        let mut budget = RestartBudget::new(2, Duration::from_secs(60));
        let start = Instant::now();
        assert_eq!(budget.used(start), 0.0);
        budget.spend(start);
        assert_eq!(budget.used(start + Duration::from_secs(60)), 0.5);
        assert_eq!(budget.used(start + Duration::from_secs(61)), 0.0);
        assert_eq!(RestartBudget::new(0, Duration::from_secs(60)).used(start), 1.0);
    }
}
