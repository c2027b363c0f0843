//! Wall-clock time, for what is written down. Durations and deadlines use tokio's clock, which tests can pause.

use std::time::SystemTime;

/// Milliseconds since the Unix epoch, now.
pub fn epoch_ms() -> u64 {
    caf_protocol::timestamp::epoch_ms(SystemTime::now())
}
