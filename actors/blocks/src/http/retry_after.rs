//! `Retry-After`: when a server wants to be asked again (RFC 9110, section 10.2.3).
//!
//! Neighbours: [`super`] puts it into the details of a failure; the plan of retries reads it there. Reads no clock.

use std::time::{Duration, SystemTime};

/// Field of the details, in milliseconds.
pub(super) const DETAIL: &str = "retry_after_ms";
/// Longest wait that is passed on: no job lives longer.
const MAX_WAIT: Duration = Duration::from_secs(3_600);

/// The wait that the header asks for, in milliseconds: seconds, or a date, relative to `now`. A date that has passed is no
/// wait; what is neither is ignored.
pub(super) fn wait_ms(header: &str, now: SystemTime) -> Option<u64> {
    let text = header.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let wait = if is_number {
        // More digits than a number holds ask for a long wait all the same.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let date = httpdate::parse_http_date(text).ok()?;
        date.duration_since(now).unwrap_or_default()
    };
    u64::try_from(wait.min(MAX_WAIT).as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read_junk_is_not_and_an_hour_is_the_most() {
        // 1994-11-06 08:49:37 UTC, the date of the standard's examples.
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let before = date - Duration::from_millis(1_500);
        for (header, wait) in [
            ("0", Some(0)),
            (" 2 ", Some(2_000)),
            ("3600", Some(3_600_000)),
            ("3601", Some(3_600_000)),
            ("99999999999999999999999999", Some(3_600_000)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(1_500)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(1_500)),
            ("Sun Nov  6 08:49:37 1994", Some(1_500)),
            ("Sun, 06 Nov 1994 08:49:35 GMT", Some(0)),
            ("Sat, 06 Nov 2094 08:49:37 GMT", Some(3_600_000)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("2, 3", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
        ] {
            assert_eq!(wait_ms(header, before), wait, "{header:?}");
        }
    }
}
