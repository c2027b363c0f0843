//! The wait before a retry: min(base·growth^retry, longest), spread by jitter (contract 7.2), and what the other side
//! asks for.

use std::time::Duration;

use caf_protocol::json::lenient_u64;
use caf_protocol::outcome::Failure;

use super::numbers::Numbers;
use crate::settings::policies::Jitter;

/// Key under which blocks put what a `Retry-After` header asks for, in milliseconds, into the details of a failure.
pub const RETRY_AFTER_MS: &str = "retry_after_ms";

/// The wait before retry number `retry`, from 0. `chance` is from 0 to 1; both ends are reached only by it.
pub fn delay(numbers: &Numbers, retry: u32, chance: f64) -> Duration {
    let full = before_jitter(numbers, retry);
    let chance = chance.clamp(0.0, 1.0);
    full.mul_f64(match numbers.jitter {
        Jitter::None => 1.0,
        Jitter::Full => chance,
        Jitter::Equal => 0.5 + chance / 2.0,
    })
}

fn before_jitter(numbers: &Numbers, retry: u32) -> Duration {
    let longest = Duration::from_millis(numbers.max_delay_ms);
    let base = Duration::from_millis(numbers.base_delay_ms);
    if base.is_zero() {
        return base;
    }
    let growth = numbers
        .exponential_base
        .powi(i32::try_from(retry).unwrap_or(i32::MAX));
    // Beyond what can be written down is beyond the longest wait, too.
    Duration::try_from_secs_f64(base.as_secs_f64() * growth).map_or(longest, |grown| grown.min(longest))
}

/// What the other side asked to be left alone for; zero when it did not.
pub fn retry_after(failure: &Failure) -> Duration {
    let asked = failure.details.get(RETRY_AFTER_MS).and_then(lenient_u64);
    Duration::from_millis(asked.unwrap_or_default())
}
