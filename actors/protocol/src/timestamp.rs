//! Points in time as the contract writes them. Never reads a clock: the caller gives the time.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

/// Milliseconds since the Unix epoch; 0 for times before it.
pub fn epoch_ms(at: SystemTime) -> u64 {
    u64::try_from(since_epoch(at).as_millis()).unwrap_or(u64::MAX)
}

/// UTC, ISO 8601, exactly six fraction digits and `Z` (contract 8.1).
pub fn iso_micros(at: SystemTime) -> String {
    let since = since_epoch(at);
    let seconds = i64::try_from(since.as_secs()).unwrap_or(0);
    let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    // Digit by digit: every line and every answer has some, and a format description takes five times as long.
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    let (year, month, day) = time.to_calendar_date();
    let mut put = |at: Range<usize>, mut number: u32| {
        for digit in text[at].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
    };
    put(0..4, year.unsigned_abs());
    put(5..7, u8::from(month).into());
    put(8..10, day.into());
    put(11..13, time.hour().into());
    put(14..16, time.minute().into());
    put(17..19, time.second().into());
    put(20..26, since.subsec_micros());
    text.iter().copied().map(char::from).collect()
}

fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::format_description;

    use super::*;

    proptest! {
        #[test]
        fn a_time_is_written_as_its_format_says(nanos in 0_u64..u64::MAX) {
            let at = Duration::from_nanos(nanos).saturating_mul(13);
            let at = UNIX_EPOCH + at;
            let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
            prop_assert_eq!(iso_micros(at), OffsetDateTime::from(at).format(format).unwrap());
        }
    }

    #[test]
    fn a_time_has_six_fraction_digits_and_z() {
        let at = UNIX_EPOCH + Duration::from_nanos(1_767_225_600_000_120_999);
        assert_eq!(iso_micros(at), "2026-01-01T00:00:00.000120Z");
        assert_eq!(epoch_ms(at), 1_767_225_600_000);
    }
}
