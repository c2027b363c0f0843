//! What calls of models use and cost.
//!
//! Neighbours: the blocks that call models count [`Usage`] and make a [`Cost`] of it; the result carries the cost, and
//! [`crate::model_call`] says both of each call. Money is counted in whole numbers and becomes a float once, at the end. Never holds
//! prompts or answers.

use serde::Serialize;

/// Parts of the unit of currency that costs are counted in: tokens times a price in billionths for a million tokens.
const PARTS: u128 = 1_000_000_000_000_000;
/// Most tokens that one answer is believed to have used, far beyond what any model reads; what says more says nothing.
pub const MAX_TOKENS: u64 = 1_000_000_000_000;

/// Tokens that a call used, as the provider says. Nothing where it does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Of the prompt.
    #[serde(rename = "input_tokens", skip_serializing_if = "Option::is_none")]
    pub input: Option<u64>,
    /// Of the answer.
    #[serde(rename = "output_tokens", skip_serializing_if = "Option::is_none")]
    pub output: Option<u64>,
}

/// A price, in billionths of the unit of currency for a million tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Price(u64);

impl Price {
    /// The dearest that can be told, for a million tokens.
    pub const MAX: f64 = 1_000_000.0;

    /// The price of a million tokens. Nothing for what is no price: negative, not finite, beyond [`Price::MAX`], or not a whole
    /// number of billionths, which would be another price in silence.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to lie from 0 to 10^15, in which every whole f64 is exact"
    )]
    pub fn per_million(price: f64) -> Option<Self> {
        let billionths = price * 1e9;
        // What a decimal fraction is off by as a float, after the multiplication.
        let unsure = 1e-6 + billionths * 4.0 * f64::EPSILON;
        let is_whole = (billionths - billionths.round()).abs() <= unsure;
        let is_price = (0.0..=Self::MAX).contains(&price) && is_whole;
        is_price.then(|| Self(billionths.round() as u64))
    }
}

/// What a job cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    parts: u128,
    is_incomplete: bool,
}

impl Cost {
    /// Of so many tokens; of an unknown number of them, at a price, that it is not known.
    pub fn of(tokens: Option<u64>, price: Price) -> Self {
        Self {
            parts: u128::from(tokens.unwrap_or(0)) * u128::from(price.0),
            is_incomplete: tokens.is_none() && price.0 > 0,
        }
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            parts: self.parts.saturating_add(other.parts),
            is_incomplete: self.is_incomplete || other.is_incomplete,
        }
    }

    /// In the currency of the prices: the float nearest to the exact sum.
    pub fn amount(self) -> f64 {
        let text = format!("{}.{:015}", self.parts / PARTS, self.parts % PARTS);
        text.parse().unwrap_or(0.0)
    }

    /// Whether some of it is not known: the provider did not say what it counted.
    pub fn is_incomplete(self) -> bool {
        self.is_incomplete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(price: f64) -> Price {
        Price::per_million(price).expect("is a price")
    }

    #[test]
    fn a_cost_is_the_float_that_a_person_would_write() {
        for (input, output, prices, cost) in [
            (1_000_000, 0, (0.15, 0.6), 0.15),
            (9, 12, (2.5, 10.0), 0.000_142_5),
            (1, 0, (0.000_000_001, 0.0), 0.000_000_000_000_001),
            (3, 7, (0.1, 0.2), 0.000_001_7),
            (123_456_789, 987_654_321, (0.075, 0.3), 305.555_555_475),
            (MAX_TOKENS, MAX_TOKENS, (1e6, 1e6), 2e12),
            (0, 0, (1.0, 1.0), 0.0),
        ] {
            let all = Cost::of(Some(input), price(prices.0)).and(Cost::of(Some(output), price(prices.1)));
            assert_eq!(all.amount(), cost, "{input} {output} {prices:?}");
            assert!(!all.is_incomplete());
        }
    }

    #[test]
    fn what_was_not_counted_is_unknown_where_it_has_a_price() {
        assert!(Cost::of(None, price(1.0)).and(Cost::default()).is_incomplete());
        assert!(!Cost::of(None, price(0.0)).is_incomplete());
        for exact in [0.15, 2.5, 0.000_000_001, 123_456.123_456_789, 999_999.999_999_999] {
            assert!(Price::per_million(exact).is_some(), "{exact}");
        }
        for wrong in [
            -0.1,
            f64::NAN,
            f64::INFINITY,
            1_000_000.1,
            0.123_456_789_012,
            4e-10,
        ] {
            assert_eq!(Price::per_million(wrong), None, "{wrong}");
        }
    }
}
