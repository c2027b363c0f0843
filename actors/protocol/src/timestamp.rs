//! Points in time as the contract writes them. Never reads a clock: the caller gives the time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::macros::format_description;

/// Milliseconds since the Unix epoch; 0 for times before it.
pub fn epoch_ms(at: SystemTime) -> u64 {
    u64::try_from(since_epoch(at).as_millis()).unwrap_or(u64::MAX)
}

/// UTC, ISO 8601, exactly six fraction digits and `Z` (contract 8.1).
pub fn iso_micros(at: SystemTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    let nanos = i128::try_from(since_epoch(at).as_nanos()).unwrap_or(0);
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
        .format(format)
        .unwrap_or_else(|_| "1970-01-01T00:00:00.000000Z".to_owned())
}

fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_six_fraction_digits_and_z() {
        let at = UNIX_EPOCH + Duration::from_nanos(1_767_225_600_000_120_999);
        assert_eq!(iso_micros(at), "2026-01-01T00:00:00.000120Z");
        assert_eq!(epoch_ms(at), 1_767_225_600_000);
    }
}
