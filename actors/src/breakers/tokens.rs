//! How much may be tried again at one endpoint, over all jobs: a bucket of tokens. Pure.
//!
//! Neighbours: [`super::book`] keeps one beside each breaker. A breaker sees failures in a row; what fails now and then, or
//! slowly, it lets through, and each job would multiply its calls. The bucket bounds that: retries that did not help are
//! never more than it held at first, and a share of the first calls.

/// How tokens come and go, in thousandths, so that sums are exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenRules {
    max: u64,
    per_first_call: u64,
}

/// One token.
const TOKEN: u64 = 1_000;

impl TokenRules {
    /// At most `max` tokens, of which each first call adds the share `ratio`.
    pub fn new(max: u32, ratio: f64) -> Self {
        Self {
            max: u64::from(max) * TOKEN,
            // Settings are checked; whatever came past that becomes 0 or a large number.
            per_first_call: (ratio * TOKEN as f64).round() as u64,
        }
    }
}

/// The tokens of one endpoint. Full at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tokens(u64);

impl Tokens {
    /// All that there may be.
    pub fn full(rules: &TokenRules) -> Self {
        Self(rules.max)
    }

    /// A job calls for the first time.
    pub fn first_call(&mut self, rules: &TokenRules) {
        self.add(rules, rules.per_first_call);
    }

    /// A job wants to call again: whether it may.
    pub fn take(&mut self) -> bool {
        let left = self.0.checked_sub(TOKEN);
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }

    /// A retry helped: what helps is no storm.
    pub fn give_back(&mut self, rules: &TokenRules) {
        self.add(rules, TOKEN);
    }

    /// Whole tokens that are left.
    pub fn whole(self) -> u64 {
        self.0 / TOKEN
    }

    fn add(&mut self, rules: &TokenRules, thousandths: u64) {
        self.0 = self.0.saturating_add(thousandths).min(rules.max);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        FirstCall,
        Retry,
        Helped,
    }

    proptest! {
        #[test]
        fn retries_that_do_not_help_are_bounded_by_the_first_calls(
            max in 0u32..20,
            ratio_percent in 0u32..300,
            steps in prop::collection::vec(
                prop_oneof![Just(Step::FirstCall), Just(Step::Retry), Just(Step::Retry), Just(Step::Helped)],
                0..500,
            ),
        ) {
            let rules = TokenRules::new(max, f64::from(ratio_percent) / 100.0);
            let mut tokens = Tokens::full(&rules);
            let (mut first_calls, mut taken, mut helped) = (0u64, 0u64, 0u64);
            for step in steps {
                match step {
                    Step::FirstCall => {
                        tokens.first_call(&rules);
                        first_calls += 1;
                    }
                    Step::Retry => {
                        let had = tokens.whole() > 0;
                        prop_assert_eq!(tokens.take(), had);
                        taken += u64::from(had);
                    }
                    Step::Helped => if helped < taken {
                        tokens.give_back(&rules);
                        helped += 1;
                    },
                }
                let bound = u64::from(max) * 100 + first_calls * u64::from(ratio_percent);
                prop_assert!((taken - helped) * 100 <= bound);
                prop_assert!(tokens.whole() <= u64::from(max));
            }
        }
    }

    #[test]
    fn a_fifth_of_a_token_for_each_first_call_is_exact() {
        let rules = TokenRules::new(10, 0.2);
        let mut tokens = Tokens::full(&rules);
        let mut retries = 0;
        for _ in 0..200 {
            tokens.first_call(&rules);
            retries += usize::from(tokens.take());
        }
        // The first calls find it full: what they add has no room until a token is taken.
        assert_eq!((retries, tokens.whole()), (49, 0));
    }

    #[test]
    fn without_room_for_a_token_nothing_is_tried_again() {
        let rules = TokenRules::new(0, 100.0);
        let mut tokens = Tokens::full(&rules);
        tokens.first_call(&rules);
        assert!(!tokens.take());
    }
}
