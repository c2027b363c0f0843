//! What was measured in the last five minutes: a share or a peak over all the time that a worker runs would hardly move after a
//! week.
//!
//! Neighbours: a series of a family has one where its metric asks for it. Asks no clock: whoever uses it says what time it is.
//! Time goes by in steps, so that a sample counts for four and a half to five minutes.

use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_secs(30);
const STEPS: usize = 10;

/// Samples of the last five minutes, by the step in which they came.
pub(super) struct Window {
    begun: Instant,
    steps: [Step; STEPS],
}

#[derive(Clone, Copy, Default)]
struct Step {
    number: u64,
    sum: f64,
    count: f64,
    peak: f64,
}

impl Window {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            begun: now,
            steps: [Step::default(); STEPS],
        }
    }

    /// Takes a sample in, which is not negative.
    pub(super) fn take(&mut self, value: f64, now: Instant) {
        let number = self.number(now);
        let place = usize::try_from(number % STEPS as u64).unwrap_or_default();
        let step = &mut self.steps[place];
        if step.number != number {
            *step = Step {
                number,
                ..Step::default()
            };
        }
        step.sum += value;
        step.count += 1.0;
        step.peak = step.peak.max(value);
    }

    /// Mean of the samples; nothing when there is none.
    pub(super) fn mean(&self, now: Instant) -> Option<f64> {
        let all = self.recent(now).fold((0.0, 0.0), |(sum, count), step| {
            (sum + step.sum, count + step.count)
        });
        (all.1 > 0.0).then(|| all.0 / all.1)
    }

    /// The largest sample; nothing when there is none.
    pub(super) fn peak(&self, now: Instant) -> Option<f64> {
        self.recent(now).map(|step| step.peak).reduce(f64::max)
    }

    fn recent(&self, now: Instant) -> impl Iterator<Item = &Step> {
        let number = self.number(now);
        let is_recent = move |step: &&Step| step.count > 0.0 && step.number + STEPS as u64 > number;
        self.steps.iter().filter(is_recent)
    }

    fn number(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.begun).as_secs() / STEP.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_counts_for_five_minutes_and_no_longer() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut window = Window::new(begun);
        assert_eq!((window.mean(begun), window.peak(begun)), (None, None));
        for (seconds, value) in [(0, 1.0), (29, 1.0), (31, 0.0), (200, 0.5)] {
            window.take(value, at(seconds));
        }
        assert_eq!(
            (window.mean(at(299)), window.peak(at(299))),
            (Some(0.625), Some(1.0))
        );
        // The first step is over, then the second, then all.
        assert_eq!(
            (window.mean(at(300)), window.peak(at(300))),
            (Some(0.25), Some(0.5))
        );
        assert_eq!(window.mean(at(330)), Some(0.5));
        assert_eq!((window.mean(at(480)), window.peak(at(480))), (None, None));
        // A place is used again by a later step: what stood there is gone.
        window.take(0.25, at(500));
        assert_eq!(
            (window.mean(at(500)), window.peak(at(500))),
            (Some(0.25), Some(0.25))
        );
    }

    #[test]
    fn after_a_week_what_happens_now_counts_alone() {
        let begun = Instant::now();
        let mut window = Window::new(begun);
        let week = 7 * 24 * 3_600;
        for seconds in (0..week).step_by(60) {
            window.take(0.0, begun + Duration::from_secs(seconds));
        }
        let now = begun + Duration::from_secs(week + 600);
        window.take(1.0, now);
        assert_eq!(window.mean(now), Some(1.0));
    }
}
