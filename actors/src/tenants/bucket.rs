//! A token bucket that is told its rate and size each time it is asked: a change of either counts at once, for what was
//! spent before too. Pure; the clock is given.
//!
//! Neighbours: [`super::accounts`] has three for each tenant. It keeps what was spent and not yet regained, not what is
//! left: a new one is full, whatever its size.

use std::time::Duration;

use tokio::time::Instant;

/// What was spent and not yet regained.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    spent: f64,
    /// When that was so.
    at: Instant,
}

/// How fast a bucket regains, and how much it holds; both above 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) per_s: f64,
    pub(super) size: f64,
}

impl Bucket {
    /// A full one.
    pub(super) fn full(now: Instant) -> Self {
        Self { spent: 0.0, at: now }
    }

    /// Regains what the time since the last look has brought. Without a rate nothing is owed.
    pub(super) fn settle(&mut self, now: Instant, rate: Option<Rate>) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.spent = rate.map_or(0.0, |rate| (self.spent - passed * rate.per_s).max(0.0));
        self.at = self.at.max(now);
    }

    /// After [`Bucket::settle`]: whether `amount` may be spent, else how long until it may be. What is larger than the bucket
    /// may be spent when the bucket is full: it can never hold more.
    pub(super) fn check(&self, amount: f64, rate: Rate) -> Result<(), Duration> {
        let room = rate.size.max(amount);
        match self.spent + amount - room {
            // A billionth is what the rounding of fractions leaves over.
            over if over <= 1e-9 * room => Ok(()),
            over => Err(seconds(over / rate.per_s)),
        }
    }

    /// After [`Bucket::settle`]: whether anything may be spent by one whose amount is known only afterwards, else how long
    /// until it may be.
    pub(super) fn check_open(&self, rate: Rate) -> Result<(), Duration> {
        match self.spent - rate.size {
            over if over < 0.0 => Ok(()),
            over => Err(seconds(over / rate.per_s)),
        }
    }

    /// Spends, whether there is so much or not.
    pub(super) fn spend(&mut self, amount: f64) {
        self.spent += amount;
    }

    /// Takes back what was spent.
    pub(super) fn refund(&mut self, amount: f64) {
        self.spent = (self.spent - amount).max(0.0);
    }

    /// When it is full again, at this rate.
    pub(super) fn full_at(&self, rate: Option<Rate>) -> Instant {
        match rate {
            Some(rate) if self.spent > 0.0 => self.at + seconds(self.spent / rate.per_s),
            _ => self.at,
        }
    }
}

/// At most a year: a debt may be as large as a tenant makes it.
fn seconds(seconds: f64) -> Duration {
    const YEAR_S: f64 = 365.0 * 24.0 * 3_600.0;
    Duration::from_secs_f64(seconds.clamp(0.0, YEAR_S))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spend(bucket: &mut Bucket, now: Instant, amount: f64, rate: Rate) -> Result<(), Duration> {
        bucket.settle(now, Some(rate));
        bucket.check(amount, rate)?;
        bucket.spend(amount);
        Ok(())
    }

    #[test]
    fn who_waits_as_long_as_he_is_told_gets_in_and_not_a_moment_before() {
        let (start, rate) = (
            Instant::now(),
            Rate {
                per_s: 0.5,
                size: 2.0,
            },
        );
        let mut bucket = Bucket::full(start);
        assert_eq!(spend(&mut bucket, start, 1.0, rate), Ok(()));
        assert_eq!(spend(&mut bucket, start, 1.0, rate), Ok(()));
        assert_eq!(spend(&mut bucket, start, 1.0, rate), Err(Duration::from_secs(2)));
        let early = start + Duration::from_millis(1_999);
        assert!(spend(&mut bucket, early, 1.0, rate).is_err());
        assert_eq!(
            spend(&mut bucket, start + Duration::from_secs(2), 1.0, rate),
            Ok(())
        );
    }

    #[test]
    fn what_never_fits_is_let_in_when_the_bucket_is_full_and_paid_for_afterwards() {
        let (start, rate) = (
            Instant::now(),
            Rate {
                per_s: 10.0,
                size: 10.0,
            },
        );
        let mut bucket = Bucket::full(start);
        assert_eq!(spend(&mut bucket, start, 100.0, rate), Ok(()));
        assert_eq!(
            spend(&mut bucket, start, 10.0, rate),
            Err(Duration::from_secs(10))
        );
        assert_eq!(bucket.full_at(Some(rate)), start + Duration::from_secs(10));
    }

    #[test]
    fn another_rate_counts_at_once_for_what_was_spent_before() {
        let (start, slow) = (
            Instant::now(),
            Rate {
                per_s: 1.0,
                size: 10.0,
            },
        );
        let mut bucket = Bucket::full(start);
        assert_eq!(spend(&mut bucket, start, 10.0, slow), Ok(()));
        let fast = Rate {
            per_s: 10.0,
            size: 10.0,
        };
        assert_eq!(spend(&mut bucket, start, 10.0, fast), Err(Duration::from_secs(1)));
        let wide = Rate {
            per_s: 1.0,
            size: 20.0,
        };
        assert_eq!(spend(&mut bucket, start, 10.0, wide), Ok(()));
        bucket.settle(start, None);
        assert_eq!(bucket.full_at(None), start, "without a rate nothing is owed");
    }

    proptest! {
        /// In every stretch of time no more is let in than the bucket holds and the rate brings, and what is refused would
        /// have been too much.
        #[test]
        fn no_stretch_of_time_gets_more_than_size_and_rate_allow_and_none_less(
            per_s in 1u32..50,
            size in 1u32..20,
            steps in proptest::collection::vec((0u64..400, 1u32..4), 1..200),
        ) {
            let rate = Rate { per_s: f64::from(per_s), size: f64::from(size) };
            let start = Instant::now();
            let (mut bucket, mut now) = (Bucket::full(start), start);
            let mut spent: Vec<(Instant, f64)> = Vec::new();
            for (ms, amount) in steps {
                now += Duration::from_millis(ms);
                let amount = f64::from(amount);
                let most = |from: Instant| {
                    rate.size.max(amount) + now.saturating_duration_since(from).as_secs_f64() * rate.per_s
                };
                let since = |from: Instant| spent.iter().filter(|(at, _)| *at >= from).map(|(_, a)| a).sum::<f64>();
                let fits = spent.iter().all(|(from, _)| since(*from) + amount <= most(*from) + 1e-6);
                match spend(&mut bucket, now, amount, rate) {
                    Ok(()) => {
                        prop_assert!(fits);
                        spent.push((now, amount));
                    }
                    Err(_) => {
                        let tight = spent.iter().any(|(from, _)| since(*from) + amount > most(*from) - 1e-6);
                        prop_assert!(tight, "refused although there was room");
                    }
                }
            }
        }

        /// What is taken back leaves no trace.
        #[test]
        fn what_is_refunded_was_never_spent(amounts in proptest::collection::vec(1u32..5, 0..50)) {
            let (now, rate) = (Instant::now(), Rate { per_s: 1.0, size: 1_000.0 });
            let mut bucket = Bucket::full(now);
            for amount in &amounts {
                prop_assert_eq!(spend(&mut bucket, now, f64::from(*amount), rate), Ok(()));
            }
            for amount in amounts {
                bucket.refund(f64::from(amount));
            }
            prop_assert_eq!(bucket.full_at(Some(rate)), now);
        }
    }
}
