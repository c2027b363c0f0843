//! Wall-clock time, and durations as they are written down. Deadlines use tokio's clock, which tests can pause.

use std::time::{Duration, SystemTime};

/// Milliseconds since the Unix epoch, now.
pub fn epoch_ms() -> u64 {
    caf_protocol::timestamp::epoch_ms(SystemTime::now())
}

/// Whole milliseconds of a duration.
pub fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
